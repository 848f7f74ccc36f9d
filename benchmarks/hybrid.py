"""Hybrid decoding: what it costs that a second model reads along, and what other tools take for it.

Lab-sized random models, one thread, all of it in one run. All prompts have 12 tokens; rollouts end
by themselves after about 70 tokens, at the cap of 200 at the latest (two of the 144 tokens stop
them). The base is steered where the thinking model draws one of 16 opening tokens, at one token in
nine.

1. `hybrid_cost_ratio`: seconds of the hybrid over those of base and thinking model alone, each per
   token; `[variant=fixed length]`: the same where every row runs to a cap of 64.
2. `speedup_vs_hooks`: the same hybrid by forward hooks on `generate`, where the thinking model
   reads along with a cache of its own. Both draw at the same uniform numbers and must write the
   same tokens (a rounding may flip a draw: at least 98 % of the rollouts).
3. `speedup_vs_hooks` and `speedup_vs_nnsight`, `[variant=constant]`: one vector at every even
   position, no second model, same tokens. nnsight runs in an environment of its own, without this
   library:

       python -m venv nn && nn/bin/pip install torch==2.13.0 transformers==5.23.0 nnsight==0.8.1
       python benchmarks/hybrid.py --nnsight nn/bin/python

   Without the option it is left out.

Everything alternates, and each ratio is taken within one repeat, so that other work on the machine
falls on all alike; value is the median of the repeats, low and high their extremes. Writes
results/<profile>/bench_hybrid.json.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from locksmith import drawing, engine, results
from locksmith.experiments import hybrid, taxonomy
from safetensors.torch import save_file
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, LogitsProcessor

LENGTH, CAP, STOP, LAYER = 12, 200, {2, 3}, 2
TABLE = torch.full((144,), -1)
TABLE[100:116] = torch.arange(16) // 4
VECTORS = 0.3 * torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
EVEN = range(LENGTH, LENGTH + CAP, 2)


def lab_sized(seed, dtype):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=144, hidden_size=128, intermediate_size=384, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=384, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, tie_word_embeddings=True)).to(dtype).eval()


def sampled(model, prompts, seed, cap=CAP, stop=STOP, **how):
    """Seconds, seconds a token, and the tokens of 16 rollouts of each prompt by the engine."""
    start = time.perf_counter()
    out = engine.sample(model, prompts, 16, max_new_tokens=cap, stop=stop, seed=seed, **how)
    seconds = time.perf_counter() - start
    return seconds, seconds / int(out.lengths.sum()), out.tokens


def read_along(base, thinking, *args, **how):
    gate = hybrid.Gate(hybrid.Oracle(taxonomy.Openings(TABLE)), 4)
    return sampled(base, *args, **how, control=engine.Control(
        [engine.Steer(LAYER, VECTORS, gate=gate)], [thinking]))


def cost_ratios(base, thinking, prompts, seed):
    out = {}
    for variant, how in (("", {}), ("[variant=fixed length]", dict(cap=64, stop=()))):
        alone = sum(sampled(model, prompts, seed, **how)[1] for model in (base, thinking))
        together = read_along(base, thinking, prompts, seed, **how)[1]
        out["hybrid_cost_ratio" + variant] = together / alone
    return out


# --- the same with hooks on `generate` ------------------------------------------------------------

class Draw(LogitsProcessor):
    """Leaves only the token that is drawn at the given numbers (R, T)."""

    def __init__(self, u):
        self.u = u

    def __call__(self, ids, logits):
        token = hybrid.draw(logits, self.u[:, ids.shape[1] - LENGTH])
        return torch.full_like(logits, -torch.inf).scatter_(1, token[:, None], 0.0)


@torch.no_grad()
def by_hooks(model, ids, u, add, thinking=None):
    """Seconds and tokens (R, T) of `generate` with add(position, logits of the thinking model or
    None), (R, D), added to the last position after block LAYER."""
    end, logits, cache = 0, None, DynamicCache()

    def before(module, args, how):
        nonlocal end, logits
        end += how["input_ids"].shape[1]
        if thinking is not None:
            logits = thinking(input_ids=how["input_ids"], past_key_values=cache, use_cache=True,
                              logits_to_keep=1).logits[:, -1]

    def after(module, args, out):
        out = out.clone()
        out[:, -1] += add(end - 1, logits)
        return out
    hooks = [model.register_forward_pre_hook(before, with_kwargs=True),
             model.model.layers[LAYER].register_forward_hook(after)]
    start = time.perf_counter()
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                         max_new_tokens=u.shape[1], eos_token_id=sorted(STOP),
                         logits_processor=[Draw(u)])
    seconds = time.perf_counter() - start
    for hook in hooks:
        hook.remove()
    return seconds, out[:, LENGTH:]


def speedups(base, thinking, prompts, seed, nnsight):
    """The engine against the others; nnsight: the interpreter that has it, or None."""
    ids, rows = torch.tensor(prompts).repeat_interleave(16, 0), torch.arange(16 * len(prompts))
    places = LENGTH + torch.arange(CAP)
    u = drawing.uniforms(seed, rows[:, None] // 16, rows[:, None] % 16, places)  # the engine's own

    def at_openings(position, logits):
        which = TABLE[hybrid.draw(logits, u[:, position + 1 - LENGTH])]
        return F.one_hot(which + 1, 5)[:, 1:].float() @ VECTORS

    def at_even(position, _):
        return VECTORS[0] * (position in EVEN)

    mine, _, tokens = read_along(base, thinking, prompts, seed)
    seconds, others = by_hooks(base, ids, u, at_openings, thinking)
    must_agree(tokens, others, "hooks on generate")
    out = {"speedup_vs_hooks": seconds / mine}
    mine, _, tokens = sampled(base, prompts, seed, control=engine.Control(
        [engine.Steer(LAYER, VECTORS[0], positions=EVEN)]))
    seconds, others = by_hooks(base, ids, u, at_even)
    must_agree(tokens, others, "hooks on generate")
    out["speedup_vs_hooks[variant=constant]"] = seconds / mine
    if nnsight:
        seconds, others = by_nnsight(nnsight, base, ids, u)
        must_agree(tokens, others, "nnsight")
        out["speedup_vs_nnsight[variant=constant]"] = seconds / mine
    return out


def must_agree(ours, others, who):
    """RuntimeError unless 98 % of the rollouts are the same."""
    width = max(ours.shape[1], others.shape[1])
    a, b = (F.pad(x, (0, width - x.shape[1])) for x in (ours, others))
    share = (a == b).all(1).float().mean().item()
    if share < 0.98:
        raise RuntimeError(f"only {share:.0%} of the rollouts of {who} are the engine's")


# --- the same in another environment --------------------------------------------------------------

def by_nnsight(python, model, ids, u):
    """Seconds and tokens (R, T) of nnsight in its own interpreter: the vector at EVEN positions."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        save_file({"ids": ids, "u": u, "vector": VECTORS[0]}, Path(folder) / "job.safetensors")
        script = Path(__file__).with_name("hybrid_nnsight.py")
        done = subprocess.run([python, script, folder, str(LAYER)], check=True, text=True,
                              stdout=subprocess.PIPE)
    found = json.loads(done.stdout.splitlines()[-1])
    return found["seconds"], torch.tensor(found["tokens"])


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--rows", type=int, default=384)
    args.add_argument("--repeats", type=int, default=3)
    args.add_argument("--nnsight", metavar="PYTHON", help="interpreter that has nnsight")
    args.add_argument("--profile", default="lab")
    args = args.parse_args()
    torch.set_num_threads(1)
    prompts = [[1] + [4 + (i * 7 + j) % 90 for j in range(LENGTH - 1)]
               for i in range(args.rows // 16)]
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        base, thinking = lab_sized(0, dtype), lab_sized(1, dtype)
        for repeat in range(args.repeats + 1):  # the first one warms up
            ratios = cost_ratios(base, thinking, prompts, repeat)
            if dtype == torch.float32:  # in bfloat16 others round otherwise and write other tokens
                ratios |= speedups(base, thinking, prompts, repeat, args.nnsight)
            for quantity, ratio in ratios.items():
                if repeat > 0:
                    key = str(dtype).removeprefix("torch."), quantity
                    found.setdefault(key, []).append(ratio)
    record = results.Recorder(args.profile, "bench_hybrid", seeds=range(1, args.repeats + 1),
                              n_problems=len(prompts), n_samples=args.rows)
    for (name, quantity), ratios in found.items():
        ends = record.fact("engine", name, quantity,
                           (statistics.median(ratios), min(ratios), max(ratios)))
        print("{:9} {:42} {:7.2f} ({:.2f} to {:.2f})".format(name, quantity, *ends))
    print(record.write())


if __name__ == "__main__":
    main()
