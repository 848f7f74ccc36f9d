"""One vector at every even position, by nnsight: the other side of hybrid.py.

    PYTHON hybrid_nnsight.py FOLDER LAYER

Runs in an environment of its own and needs torch, transformers and nnsight, not this library.
FOLDER holds a Llama model and job.safetensors: ids (R, 12), u (R, T), the uniform numbers behind
the tokens, and the vector (D,). Prints {"seconds": ..., "tokens": (R, T)} as one line of JSON. The
first run, on a few rows, only warms up.
"""

import json
import sys
import time
from pathlib import Path

import torch
from nnsight import NNsight
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LogitsProcessor

STOP = [2, 3]


def draw(logits, u):
    """Tokens (R,) by inverse CDF, as the engine draws them."""
    cdf = logits.float().softmax(-1).double().cumsum(-1)
    return (cdf <= u[:, None] * cdf[:, -1:]).sum(-1)


class Draw(LogitsProcessor):
    """Leaves only the token that is drawn at the given numbers (R, T)."""

    def __init__(self, u, length):
        self.u, self.length = u, length

    def __call__(self, ids, logits):
        token = draw(logits, self.u[:, ids.shape[1] - self.length])
        return torch.full_like(logits, -torch.inf).scatter_(1, token[:, None], 0.0)


def steered(model, ids, u, vector, layer):
    """Seconds and tokens (R, T) of `generate` inside an nnsight trace."""
    length, cap = ids.shape[1], u.shape[1]
    wrapped, found = NNsight(model), {}

    def generate(ids, **how):
        found["tokens"] = model.generate(ids, **how)[:, length:]
        return found["tokens"]
    start = time.perf_counter()
    with wrapped.trace(ids, fn=generate, attention_mask=torch.ones_like(ids), do_sample=False,
                       max_new_tokens=cap, eos_token_id=STOP,
                       logits_processor=[Draw(u, length)]) as tracer:
        for step in tracer.iter[:]:
            if step > 0 and (length - 1 + step) % 2 == 0:
                wrapped.model.layers[layer].output[:, -1] += vector
    return time.perf_counter() - start, found["tokens"]


def main():
    folder, layer = sys.argv[1:]
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    job = load_file(Path(folder) / "job.safetensors")
    steered(model, job["ids"][:4], job["u"][:4], job["vector"], int(layer))
    seconds, tokens = steered(model, job["ids"], job["u"], job["vector"], int(layer))
    print(json.dumps({"seconds": seconds, "tokens": tokens.tolist()}))


if __name__ == "__main__":
    main()
