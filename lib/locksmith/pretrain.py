"""Pre-trains the lab's base models from scratch: one plain loop.

Every document is a row of its own, from position 0 as at test time, in batches of like length: no
attention across documents, hardly any padding, and short rows keep attention cheap. One thread a
process; the seeds run side by side, one process a core. Weights, corpus and order are a pure
function of the seed, and one thread makes the run repeatable to the bit.
"""

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
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
    rates = [group["lr"] for o in optimizers for group in o.param_groups]
    work = batches(ids, recipe["micro_tokens"], rng)
    per_step = recipe["micro_batches"]
    kept = set(np.geomspace(0.01, 1, recipe["checkpoints"] + 1)[:-1].tolist())
    seen, curve, started = 0, [], time.perf_counter()
    bar = tqdm(range(0, len(work), per_step), desc=f"pretrain {family} {name} seed {seed}",
               mininterval=5)
    for at in bar:
        done = at / len(work)
        for early in sorted(k for k in kept if k <= done):
            kept.discard(early)
            if name == "base" and seed == config["seeds"][0]:
                model.save(net, folder.with_name("base_steps") / f"seed{seed}" / f"{seen:09d}",
                           tokens=seen)
        group = [torch.from_numpy(batch.astype(np.int64)) for batch in work[at:at + per_step]]
        sizes = [(~padding(batch)[:, 1:]).sum() for batch in group]
        total, step_loss = int(sum(sizes)), 0.0
        for batch, size in zip(group, sizes, strict=True):
            micro_loss = loss(net, batch) * (size / total)
            micro_loss.backward()
            step_loss += micro_loss.item()
        errors.finite(step_loss, f"the loss of step {at // per_step}")
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for o in optimizers:
            for g in o.param_groups:
                g["lr"] = rates[0 if o is optimizers[0] else 1] * schedule(done)
            o.step()
            o.zero_grad()
        seen += total
        curve.append({"seed": seed, "tokens": seen, "loss": step_loss})
        bar.set_postfix(loss=f"{step_loss:.3f}")
    seconds = time.perf_counter() - started
    model.save(net, folder / f"seed{seed}", tokens=seen, seed=seed, family=family)
    print(f"pretrain {family} {name} seed {seed}: {seen / seconds:.0f} tokens/s", flush=True)
    every = max(1, len(curve) // 100)
    means = [{**part[-1], "loss": float(np.mean([p["loss"] for p in part]))}
             for part in (curve[i:i + every] for i in range(0, len(curve), every))]
    return {"seed": seed, "tokens": seen, "counts": counts, "curve": means}


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
