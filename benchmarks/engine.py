"""The decoding engine against `generate`, side by side in one run, on a lab-sized random model.

Both produce the very same tokens from the same prompts. `speedup_vs_generate`: 384 rollouts that
end by themselves after about 65 tokens on average, at the cap of 250 at the latest (two of the
random model's 130 tokens stop it; the lab's documents have 50 to 70 tokens, up to 300). The engine
samples them first; `generate` samples too, from logits in which only the recorded token is left, so
that its rows end where the engine's ended. `speedup_vs_generate_fixed_length`: the same, but every
row runs to the cap, so that dropping finished rows (which only the engine does) counts for nothing.
`speedup_vs_generate_batch1`: one rollout to the cap. The two alternate, and each ratio is taken
within one repeat, so that other work on the machine falls on both; value is the median of the
repeats, low and high their extremes. Writes results/<profile>/bench_engine.json.
"""

import argparse
import statistics
import time

import torch
from locksmith import engine, results
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor


def lab_sized(dtype):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=130, hidden_size=128, intermediate_size=384, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=384, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, tie_word_embeddings=True)).to(dtype).eval()


class Replay(LogitsProcessor):
    """Leaves only the recorded tokens (R, T) to be sampled."""

    def __init__(self, tokens, prompt_length):
        self.tokens, self.prompt_length = tokens, prompt_length

    def __call__(self, ids, logits):
        token = self.tokens[:, ids.shape[1] - self.prompt_length, None]
        return torch.full_like(logits, -torch.inf).scatter_(1, token, 0.0)


def compare(model, rows, cap, stop, repeats):
    """Pairs of seconds (engine, `generate`) for `rows` rollouts, and how many tokens they have."""
    prompts = [[1] + [4 + (i * 7 + j) % 120 for j in range(11)] for i in range(max(rows // 16, 1))]
    n = rows // len(prompts)
    ids = torch.tensor(prompts).repeat_interleave(n, 0)
    pairs = []
    for repeat in range(repeats + 1):  # the first one warms up
        start = time.perf_counter()
        ours = engine.sample(model, prompts, n, max_new_tokens=cap, stop=stop, seed=repeat)
        middle = time.perf_counter()
        theirs = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=cap,
            eos_token_id=sorted(stop) or None,
            logits_processor=[Replay(ours.tokens, len(prompts[0]))])
        pairs.append((middle - start, time.perf_counter() - middle))
        if not torch.equal(theirs[:, ids.shape[1]:], ours.tokens):
            raise RuntimeError("engine and generate did not produce the same tokens")
    return pairs[1:], int(ours.lengths.sum())


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--cap", type=int, default=250, help="most new tokens")
    args.add_argument("--repeats", type=int, default=3)
    args.add_argument("--profile", default="lab")
    args = args.parse_args()
    torch.set_num_threads(1)
    record = results.Recorder(args.profile, "bench_engine", seeds=range(1, args.repeats + 1))

    def fact(name, quantity, values, rows):
        found = record.fact("engine", name, quantity,
                            (statistics.median(values), min(values), max(values)),
                            n_problems=max(rows // 16, 1), n_samples=rows)
        print("{:16} {:42} {:10.2f} ({:.2f} to {:.2f})".format(name, quantity, *found))

    for dtype in (torch.float32, torch.bfloat16):
        model, name = lab_sized(dtype), str(dtype).removeprefix("torch.")
        for rows, stop, variant in ((384, {2, 3}, ""), (384, set(), "[variant=fixed length]"),
                                   (1, set(), "[variant=batch1]")):
            pairs, n_tokens = compare(model, rows, args.cap, stop, args.repeats)
            fact(name, "speedup_vs_generate" + variant, [b / a for a, b in pairs], rows)
            fact(name, "tokens_per_second" + variant, [n_tokens / a for a, _ in pairs], rows)
    print(record.write())


if __name__ == "__main__":
    main()
