"""Sampling and RL on open weights on one thread: what each lever brings, in time and in memory.

For each model, with the very prompts of the task `sums`:
    tokens_per_second    64 rollouts (4 problems x 16) of 32 tokens, none of which stops, and one
                         ("alone"): by `generate` with a dynamic and with a static cache, by the
                         engine over all tokens, and over few of them (`narrowing`), in turn
    speedup_vs_generate  of either engine against the quicker `generate` of the same turn; both
                         also as "AVX2" below, where the processor multiplies bf16
    seconds              with --steps, of an RL step of 32 rollouts (4 problems x 8, up to 48
                         tokens, LoRA r=8) by part: merging, sampling, updating; the update with
                         contrast in all groups
    peak_gib             the most memory that a process doing nothing but such steps held
Variants of the step leave out one lever each: "all tokens", "prompts read anew" (each row reads its
own), "copied" (a copy of the model is merged instead of one that is kept); "half contrast" has
contrast in two of four groups; "AVX2" is in float32 and without newer instructions, as on a
processor that has none and does not multiply bf16.
Every variant has a process of its own. Seconds are CPU seconds of the one thread, which other work
on the machine disturbs least; value is the median of the repeats, low and high their extremes.
Writes results/<profile>/bench_open.json.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from itertools import product

import torch
from locksmith import device, engine, finetune, model, results, rl, rollouts
from locksmith.experiments import tuning
from locksmith.loading import Pair

# What facts call the sums of a model, as `real_rl.family` does.
MODELS = {"qwen2.5-coder-0.5b-instruct": "sums", "gemma-3-270m": "sums_gemma"}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
STEPS = {"": {}, "all tokens": {"tokens": 0}, "prompts read anew": {"shared": False},
         "copied": {"copied": True}, "half contrast": {"groups": 2}, "AVX2": {"plain": True}}


def timed(job, *given, **options):
    """(CPU seconds, what the job returns)."""
    start = time.process_time()
    done = job(*given, **options)
    return time.process_time() - start, done


def sampling(pair, repeats, rows=64, cap=32):
    """Way -> tokens a second, one a repeat."""
    whole, few = pair._replace(tokens=0).load("base"), pair.load("base")
    problems = pair.problems(min(4, rows), "validation")
    asked = [whole.ask(pair.rules, problem) for problem in problems]
    width = max(map(len, asked))
    ids = torch.tensor([[whole.pad] * (width - len(x)) + x for x in asked])
    mask = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in asked])
    each = rows // len(asked)

    def generate(cache):
        whole.net.generate(
            ids.repeat_interleave(each, 0), attention_mask=mask.repeat_interleave(each, 0),
            do_sample=True, top_k=0, top_p=1.0, temperature=1.0, repetition_penalty=1.0,
            min_new_tokens=cap, max_new_tokens=cap, cache_implementation=cache)

    def sample(asked_model):
        prompts = [asked_model.ask(pair.rules, problem) for problem in problems]
        engine.sample(asked_model.net, prompts, each, max_new_tokens=cap, stop=set())
    ways = {"generate": partial(generate, "dynamic"),
            "generate static": partial(generate, "static"),
            "engine": partial(sample, whole), "engine few tokens": partial(sample, few)}
    found = {way: [] for way in ways}
    for _ in range(repeats):
        for way, job in ways.items():
            found[way].append(rows * cap / timed(job)[0])
    return found


def step(pair, repeats, shared=True, copied=False, groups=4):
    """Part of an RL step -> seconds, one a repeat; peak_gib."""
    trained, problems = tuning.adapter(pair, 8), pair.problems(4, "train")
    sampled = trained.ask()[0]
    optimizer = torch.optim.AdamW([p for p in trained.net.parameters() if p.requires_grad], 1e-3)
    asked = [sampled.ask(pair.rules, problem) for problem in problems]
    logits = trained.logits(asked) if shared else finetune.own_logits
    gain = torch.tensor([1.0, -1.0] * 4 * groups + [0.0] * 8 * (4 - groups))
    found = {"merging": [], "sampling": [], "updating": []}

    def merge():
        return model.merged(trained.net).to(sampled.net.dtype) if copied else trained.ask()
    for _ in range(repeats):
        merging, _ = timed(merge)
        sampling, drawn = timed(rollouts.sampled, sampled, asked, 8, False, max_new_tokens=48)
        sequences = [asked[i // 8] + ids for i, ids in enumerate(drawn.ids())]
        updating, _ = timed(
            rl.update, trained.net, optimizer, sequences, [len(asked[i // 8]) for i in range(32)],
            gain, trained.micro_tokens, logits, pad_token_id=sampled.pad, by_prompt=shared)
        for part, value in zip(found, (merging, sampling, updating)):
            found[part].append(value)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return found | {"peak": [peak]}


def child(name, tokens, repeats, what, plain=False, **options):
    """What a process of its own measures, told as JSON on its last line."""
    if plain:  # `device.pick` takes float32 where the processor does not multiply bf16
        torch.cpu._is_avx512_bf16_supported = lambda: False
    torch.set_num_threads(1)
    pair = Pair("open", "sums", 0, name, "", accept_terms=True, tokens=tokens)
    return (sampling if what == "sampling" else step)(pair, repeats, **options)


def measured(name, tokens, repeats, what, plain=False, **options):
    """`child` in a process of its own."""
    given = json.dumps([name, tokens, repeats, what, plain, options])
    done = subprocess.run([sys.executable, __file__, "--child", given], stdout=subprocess.PIPE,
                          env=os.environ | (AVX2 if plain else {}), check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--profile", default="open")
    args.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    args.add_argument("--tokens", type=int, default=16384)
    args.add_argument("--repeats", type=int, default=5)
    args.add_argument("--steps", action="store_true", help="also time steps of RL")
    args.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = args.parse_args()
    if args.child:
        *given, options = args.child
        return print(json.dumps(child(*given, **options)))
    record = results.Recorder(args.profile, "bench_open", seeds=range(args.repeats))

    native = str(device.pick("cpu")[1]).removeprefix("torch.")

    def fact(name, quantity, values, rows, problems=4, plain=False):
        value = (statistics.median(values), min(values), max(values))
        found = record.fact(MODELS[name], "float32" if plain else native, quantity, value,
                            n_problems=problems, n_samples=rows)
        print("{:30} {:60} {:9.4f} ({:.4f} to {:.4f})".format(name, quantity, *found), flush=True)

    for name in args.models:
        measure = partial(measured, name)
        for plain, rows in product((False, True), (64, 1)):
            if plain and native == "float32":
                continue  # measured already
            found = measure(args.tokens, args.repeats, "sampling", plain, rows=rows)
            best = list(map(max, found["generate"], found["generate static"]))
            size = (16, 4) if rows > 1 else (1, 1)
            for way, speeds in found.items():
                variant = f"[variant={way}{' alone' if rows == 1 else ''}]"
                fact(name, f"tokens_per_second{variant}", speeds, *size, plain)
                if way.startswith("engine"):
                    fact(name, f"speedup_vs_generate{variant}",
                         [a / b for a, b in zip(speeds, best)], *size, plain)
        for variant, options in STEPS.items() if args.steps else ():
            options = {"tokens": args.tokens} | options
            found = measure(options.pop("tokens"), args.repeats, "step", **options)
            for part, values in found.items():
                told = f"[variant={part} {variant}".rstrip() + "]"
                fact(name, ("peak_gib" if part == "peak" else "seconds") + told, values, 8,
                     plain=options.get("plain", False))
    print(record.write())


if __name__ == "__main__":
    main()
