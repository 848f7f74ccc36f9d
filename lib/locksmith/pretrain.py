"""Pre-trains the lab's base models from scratch: one plain loop.

Every document is a row of its own, from position 0 as at test time, in batches of like length: no
attention across documents, hardly any padding, and short rows keep attention cheap. One thread a
process; the seeds run side by side, one process a core. Weights, corpus and order are a pure
function of the seed, and one thread makes the run repeatable to the bit.
"""

import argparse
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from tqdm import tqdm

from locksmith import corpus, errors, model, parallel, params, results, staging, vocabulary


def batches(ids: UInt8[np.ndarray, " tokens"], micro: int,
            rng: np.random.Generator) -> list[UInt8[np.ndarray, "rows time"]]:
    """Cuts a corpus into batches of documents of like length, in random order.

    ids: documents end to end. micro: tokens a batch, padding included.
    """
    starts = np.flatnonzero(ids == vocabulary.BOS)
    lengths = np.diff(np.append(starts, len(ids)))
    order = rng.permutation(len(starts))
    order = order[np.argsort(lengths[order], kind="stable")]
    out, i = [], 0
    while i < len(order):
        j = i + 1
        while j < len(order) and lengths[order[j]] * (j + 1 - i) <= micro:
            j += 1
        batch = np.full((j - i, lengths[order[j - 1]]), vocabulary.PAD, dtype=np.uint8)
        for row, doc in zip(batch, order[i:j]):
            row[:lengths[doc]] = ids[starts[doc]:starts[doc] + lengths[doc]]
        out.append(batch)
        i = j
    rng.shuffle(out)
    return out


def schedule(done: float, warmup: float = 0.02, cooldown: float = 0.4) -> float:
    """Learning-rate factor after a share `done` of training: warm-up, constant, linear to zero."""
    return min(1.0, done / warmup, (1 - done) / cooldown)


def padding(ids: Int[Tensor, "rows time"],
            pad_token_id: int = vocabulary.PAD) -> Bool[Tensor, "rows time"]:
    """Where rows are filled up: behind their last other token. A <pad> within a text is a token."""
    return (ids == pad_token_id).flip(1).cumprod(1).flip(1).bool()


def loss(net: torch.nn.Module, ids: Int[Tensor, "rows time"],
         pad_token_id: int = vocabulary.PAD) -> Float[Tensor, ""]:
    """Mean next-token cross-entropy (nats) over the real tokens of ids."""
    targets = ids[:, 1:].masked_fill(padding(ids, pad_token_id)[:, 1:], -100)
    out = model.logits(net, ids[:, :-1])
    return F.cross_entropy(out.flatten(0, 1), targets.flatten(), ignore_index=-100)


def steps(work: Sequence, recipe: dict, until: float = 1.0) -> int:
    """How many steps the batches of `work` make up to a share `until` of them."""
    return math.ceil(math.ceil(until * len(work)) / recipe["micro_batches"])


def fit(net: nn.Module, optimizers: Sequence[torch.optim.Optimizer], work: Sequence, recipe: dict,
        curve: list[dict], before: Callable[[float, int], object], until: float = 1.0,
        label: str = "pretrain") -> None:
    """Trains `net` on the batches of `work` from the step at which `curve` ends up to `until`.

    optimizers: of `model.optimizer`. curve: gets a point a step, {"tokens" seen so far, "loss"}.
    before: called with (share of `work` done, tokens seen) before each step. until: share of
    `work`; the schedule is that of all of it.
    """
    rates, per_step = (recipe["muon_lr"], recipe["adam_lr"]), recipe["micro_batches"]
    seen = curve[-1]["tokens"] if curve else 0
    for step in (bar := tqdm(range(len(curve), steps(work, recipe, until)), desc=label,
                             mininterval=5)):
        at = step * per_step
        done = at / len(work)
        before(done, seen)
        group = [torch.from_numpy(batch.astype(np.int64)) for batch in work[at:at + per_step]]
        sizes = [(~padding(batch)[:, 1:]).sum() for batch in group]
        total, step_loss = int(sum(sizes)), 0.0
        for batch, size in zip(group, sizes, strict=True):
            micro_loss = loss(net, batch) * (size / total)
            micro_loss.backward()
            step_loss += micro_loss.item()
        errors.finite(step_loss, f"the loss of step {step}")
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for o, rate in zip(optimizers, rates, strict=True):
            for g in o.param_groups:
                g["lr"] = rate * schedule(done)
            o.step()
            o.zero_grad()
        seen += total
        curve.append({"tokens": seen, "loss": step_loss})
        bar.set_postfix(loss=f"{step_loss:.3f}")


def thinned(curve: list[dict]) -> list[dict]:
    """A curve of about a hundred points: the mean loss of as many steps each, at their last."""
    every = max(1, len(curve) // 100)
    return [{**part[-1], "loss": float(np.mean([p["loss"] for p in part]))}
            for part in (curve[i:i + every] for i in range(0, len(curve), every))]


def train(profile: str, family: str, name: str, seed: int, folder: Path) -> dict:
    """One model into folder/seed<seed>; the first seed of the base keeps its way there in
    base_steps.

    name: "base", or "twin", whose corpus differs in the settings of the profile's `twin`, the same
    in tokens, problems and order. Returns the training record: loss curve, tokens, corpus counts.
    """
    config = params.load(profile)
    generator, recipe = config["families"][family], config["pretrain"]
    if name == "twin":
        generator = {**generator, **config["twin"]}
    task = corpus.FAMILIES[family]
    ids, counts = corpus.write(task, generator, recipe["tokens"], seed)
    rng = np.random.default_rng(seed)
    net = model.build(config["model"], seed).train()
    optimizers = model.optimizer(net, recipe["muon_lr"], recipe["adam_lr"], recipe["weight_decay"])
    work = batches(ids, recipe["micro_tokens"], rng)
    kept = set(np.geomspace(0.01, 1, recipe["checkpoints"] + 1)[:-1].tolist())
    curve, started = [], time.perf_counter()

    def before(done, seen):
        for early in sorted(k for k in kept if k <= done):
            kept.discard(early)
            if name == "base" and seed == config["seeds"][0]:
                model.save(net, folder.with_name("base_steps") / f"seed{seed}" / f"{seen:09d}",
                           tokens=seen)

    fit(net, optimizers, work, recipe, curve, before, label=f"pretrain {family} {name} seed {seed}")
    seen, seconds = curve[-1]["tokens"], time.perf_counter() - started
    model.save(net, folder / f"seed{seed}", tokens=seen, seed=seed, family=family)
    print(f"pretrain {family} {name} seed {seed}: {seen / seconds:.0f} tokens/s", flush=True)
    return {"seed": seed, "tokens": seen, "counts": counts,
            "curve": [{"seed": seed, **point} for point in thinned(curve)]}


def run(profile: str, family: str, name: str) -> None:
    """All seeds of a base model or its twin, in a pool of one-thread processes."""
    config = params.load(profile)
    folder = Path("checkpoints") / profile / family / name
    for old in (folder, folder.with_name(f"{name}_steps")):
        shutil.rmtree(old, ignore_errors=True)
    with parallel.workers(profile, "cpu") as workers:
        jobs = [workers.submit(train, profile, family, name, s, folder) for s in config["seeds"]]
        records = [job.result() for job in jobs]
    last = [record["curve"][-1]["loss"] for record in records]
    facts = [{"family": family, "model": name, "quantity": "training_loss",
              "value": float(np.mean(last)), "low": min(last), "high": max(last),
              "n_problems": None, "n_samples": None, "seeds": config["seeds"]}]
    curve = [point for record in records for point in record.pop("curve")]
    results.write(profile, f"train/{family}_{name}", facts,
                  extra={"curve": curve, "corpus": records},
                  checkpoints=[folder / f"seed{s}" for s in config["seeds"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=run.__doc__)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--family", required=True, choices=corpus.FAMILIES)
    parser.add_argument("--name", default="base", choices=("base", "twin"))
    arguments = parser.parse_args()
    with staging.alone(f"{arguments.profile}/{arguments.family}_{arguments.name}"):
        run(arguments.profile, arguments.family, arguments.name)


if __name__ == "__main__":
    errors.run(main)
