"""Distils a thinking model into the base by supervised fine-tuning (LoRA),
from two kinds of traces.

    distilled  the RL model's own successful traces: the behaviours pre-training had shown
    taught     a stronger author's, who uses one behaviour that no pre-training document holds
               (Countdown: measuring how far off a miss is; chain: undoing each step)

The lab runs the first kind alone so far. 0.3 M tokens of the second did not teach it: working
backward from the target reached 0.10 correct on validation problems, measuring misses 0.15 (0.18
with all weights trained), against 0.67 for the RL model;
arithmetic suffered first and came back slowly.

Papers compare RL models with distilled ones of another family and teacher; here both start from the
same base, and what was distilled was in pre-training or was not. Fine-tuning looks at validation
problems `evaluations` times and keeps the one whose accuracy is nearest to the RL model's, so that
the models differ in what they were taught and not in how well they do.

LoRA (Hu et al. 2021, arXiv 2106.09685) on every linear layer, by `peft`: an adapter takes a fifth
of a checkpoint. By `finetune`, on one thread, batches of like length, as in pretrain.
"""

import argparse
import copy
import random
import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from locksmith import (
    corpus,
    device,
    engine,
    errors,
    finetune,
    lab,
    model,
    parallel,
    params,
    pretrain,
    results,
    staging,
    vocabulary,
)

KINDS = ("distilled",)  # what the pipeline trains; "taught" is there for whoever has more hours


def traces(profile: str, family: str, kind: str, seed: int) -> list[list[int]]:
    """Prompt and trace of training problems, as lists of ids.

    distilled: one sample of the RL model a problem, the right ones. taught: the stronger author's.
    """
    config = params.load(profile)
    generator, task = config["families"][family], corpus.FAMILIES[family]
    n = config["distill"]["problems"]
    problems = task.problems("train", n, 1000 + seed, generator)
    prompts = [vocabulary.encode(p.prompt) for p in problems]
    if kind == "taught":
        rng = random.Random(f"stronger {family} {seed}")
        return [ids + vocabulary.encode(task.stronger(rng, p, corpus.author(rng, generator),
                                                      generator))
                for ids, p in zip(prompts, problems)]
    out = engine.sample(lab.load(profile, family, "thinking", seed), prompts, seed=seed,
                        max_new_tokens=config["rl"]["max_new_tokens"], stop=vocabulary.STOP).ids()
    right = [a + b for a, b, p in zip(prompts, out, problems)
             if task.grade(p, vocabulary.decode(b)).correct]
    return right or [a + b for a, b in zip(prompts, out)]  # a model of the smoke profile has none


def accuracy(net: PreTrainedModel, profile: str, family: str, n: int) -> float:
    """Share of n validation problems that two samples at temperature 1 solve."""
    task, problems = corpus.FAMILIES[family], lab.problems(profile, family, n, "validation")
    out = engine.sample(net, [vocabulary.encode(p.prompt) for p in problems], 2,
                        stop=vocabulary.STOP,
                        max_new_tokens=params.load(profile)["rl"]["max_new_tokens"], seed=0).ids()
    return float(np.mean([task.grade(problems[i // 2], vocabulary.decode(ids)).correct
                          for i, ids in enumerate(out)]))


def _whole(batch):
    """A step of `finetune` in which every token but padding is a target."""
    ids = torch.from_numpy(batch.astype(np.int64))
    return ids, ids.masked_fill(pretrain.padding(ids), finetune.IGNORED)


def train(profile: str, family: str, kind: str, seed: int) -> dict:
    """One adapter into checkpoints/<profile>/<family>/<kind>/seed<seed>; returns its record."""
    recipe = params.load(profile)["distill"]
    base = lab.load(profile, family, "base", seed, exact=True)
    net = model.adapter(base, recipe["rank"], seed)
    goal = accuracy(lab.load(profile, family, "thinking", seed), profile, family,
                    recipe["validation"])
    texts = traces(profile, family, kind, seed)
    flat = np.array([i for ids in texts for i in ids], dtype=np.uint8)
    rng = np.random.default_rng(seed)
    batches = [b for _ in range(recipe["epochs"]) for b in pretrain.batches(flat, 4096, rng)]
    evaluations = set(np.linspace(0, len(batches), recipe["evaluations"]
                                  + 1).astype(int)[1:].tolist())
    best, curve = None, []

    def look(step, bar):
        nonlocal best
        if step not in evaluations:
            return
        merged = model.merged(net).to(device.pick()[1])
        found = accuracy(merged, profile, family, recipe["validation"])
        curve.append({"seed": seed, "step": step, "accuracy": found})
        bar.set_postfix(accuracy=f"{found:.2f}", goal=f"{goal:.2f}")
        if best is None or abs(found - goal) < abs(best[0] - goal):
            best = found, step, copy.deepcopy(net.state_dict())

    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], recipe["lr"])
    finetune.train(net, [[_whole(b)] for b in batches], optimizer,
                   lambda step: min(1, (step + 1) / 10),
                   finetune.own_logits, clip=0, label=f"{kind} {family} seed {seed}", look=look)
    net.load_state_dict(best[2])
    model.save_adapter(net, lab.folder(profile, family, kind, seed), family=family, seed=seed,
                       step=best[1], base=model.checksum(lab.folder(profile, family, "base", seed)))
    return {"seed": seed, "goal": goal, "reached": best[0], "step": best[1], "traces": len(texts),
            "curve": curve}


def run(profile: str, family: str) -> None:
    """All seeds of both kinds, in a pool of one-thread processes."""
    config = params.load(profile)
    seeds = config["seeds"]
    shutil.rmtree(Path("checkpoints") / profile / family / "distilled", ignore_errors=True)
    with parallel.workers(profile, "cpu") as workers:
        jobs = {(kind, s): workers.submit(train, profile, family, kind, s)
                for kind in KINDS for s in seeds}
        records = {key: job.result() for key, job in jobs.items()}
    facts = []
    for kind in KINDS:
        reached = [records[kind, s]["reached"] - records[kind, s]["goal"] for s in seeds]
        facts.append({"family": family, "model": kind, "quantity": "accuracy_minus_thinking",
                      "value": float(np.mean(reached)), "low": min(reached), "high": max(reached),
                      "n_problems": config["distill"]["validation"], "n_samples": 2,
                      "seeds": seeds})
    results.write(profile, f"train/{family}_distill", facts,
                  extra={kind: [records[kind, s] for s in seeds] for kind in KINDS},
                  checkpoints=[Path(lab.folder(profile, family, kind, s)) for kind in KINDS
                               for s in seeds])


def main() -> None:
    parser = argparse.ArgumentParser(description=run.__doc__)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--family", required=True, choices=corpus.FAMILIES)
    arguments = parser.parse_args()
    with staging.alone(f"{arguments.profile}/{arguments.family}_distilled"):
        run(arguments.profile, arguments.family)


if __name__ == "__main__":
    errors.run(main)
