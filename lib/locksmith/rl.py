"""RL post-training with an outcome reward only: GRPO in three functions, in a plain loop.

Shao et al. 2024 (DeepSeekMath), section 4.1, minus the KL term and the reference model, minus the
clipped ratio (one update a batch, so the ratio is 1), minus the division by the group's standard
deviation (Liu et al. 2025, "Understanding R1-Zero-like training", section 3). Nothing rewards a
behaviour: a rollout earns 1 if its conclusions are right and it ended by itself, otherwise 0.

Not TRL: on one thread, at 8 problems x 16 samples of up to 320 tokens, GRPOTrainer 1.16 reached a
ninth of this loop's sampled tokens a second, a fifth with bf16 weights and two fifths with our
engine for its rollouts (benchmarks/trl_step.py). On one identical batch both make the same update
(tests/test_trl.py).
"""

import argparse
import numbers
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn
from tqdm import tqdm

from locksmith import (
    cards,
    corpus,
    device,
    engine,
    errors,
    model,
    parallel,
    params,
    results,
    rewards,
    staging,
    vocabulary,
)

LARGEST = 1e9  # a reward in size; sums of larger ones leave float32
MEASURED = ("correct", "trace", "attempts", "valid_attempts", "checks", "backtracks")


def rollout(net: nn.Module, task: ModuleType, problems: Sequence, samples: int,
            max_new_tokens: int, seed: int) -> tuple[list[list[int]], list[int], list]:
    """Samples each problem `samples` times at temperature 1.

    Returns sequences (list of prompt + continuation ids), prompt lengths, and grades, prompt-major.
    """
    prompts = [vocabulary.encode(p.prompt) for p in problems]
    out = engine.sample(net, prompts, samples, max_new_tokens=max_new_tokens,
                        stop=vocabulary.STOP, seed=seed).ids()
    owners = [i for i in range(len(problems)) for _ in range(samples)]
    grades = [task.grade(problems[i], vocabulary.decode(ids)) for i, ids in zip(owners, out)]
    return [prompts[i] + ids for i, ids in zip(owners, out)], [len(prompts[i])
                                                               for i in owners], grades


def rewarded(reward: Callable[[object, random.Random], float], grades: Sequence, samples: int,
             step: int, rng: random.Random) -> list[float]:
    """The reward of each grade, `samples` a problem; BadInput for one that is no finite number."""
    found = []
    for i, grade in enumerate(grades):
        value = reward(grade, rng)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if not isinstance(value, (numbers.Real, np.bool_)) or not abs(value) <= LARGEST:
            name = getattr(reward, "__name__", repr(reward))
            raise errors.BadInput(
                f"reward {name} is {value!r} at step {step} for answer {i % samples} to problem "
                f"{i // samples} of its batch, {grade!r}; allowed is a number of at most "
                f"{LARGEST:g} in size.")
        found.append(float(value))
    return found


def advantages(rewards: Sequence[float], samples: int) -> Float32[Tensor, " rollouts"]:
    """Reward minus the mean of its group, `samples` rewards in a row."""
    groups = torch.tensor(rewards, dtype=torch.float32).view(-1, samples)
    return (groups - groups.mean(1, keepdim=True)).flatten()


def update(net: nn.Module, optimizer: torch.optim.Optimizer, sequences: list[list[int]],
           prompt_lengths: list[int], advantage: Float32[Tensor, " rollouts"], micro_tokens: int,
           logits: Callable[[nn.Module, Tensor], Tensor] = model.logits, bonus: float = 0.0,
           pad_token_id: int = vocabulary.PAD, by_prompt: bool = False) -> tuple[float, float]:
    """One policy-gradient step on a batch: sum of advantage x log-prob, over all sampled tokens.

    Groups without contrast have no gradient and cost nothing, unless there is a `bonus` on the
    entropy of every sampled token. logits: (net, ids (B, T)) -> (B, S, V), those of the last S <= T
    positions, none sampled before. by_prompt: a micro-batch has answers to one prompt alone, which
    `logits` reads once for all of them, so that `micro_tokens` counts it once. Returns (gradient
    norm, entropy in nats a token). BadInput for a gradient that is not finite; the weights are then
    as before.
    """
    live = [i for i in range(len(sequences)) if advantage[i] != 0 or bonus]
    prompts = [tuple(s[:n]) if by_prompt else () for s, n in zip(sequences, prompt_lengths)]
    live.sort(key=lambda i: (prompts[i], len(sequences[i])))
    n_tokens = sum(len(s) for s in sequences) - sum(prompt_lengths)
    entropy, counted, place = 0.0, 0, next(net.parameters()).device
    optimizer.zero_grad()  # of a step that was not taken
    micros = []
    while live:
        prompt, longest = prompts[live[-1]], len(sequences[live[-1]])
        rows = max(1, (micro_tokens - len(prompt)) // max(1, longest - len(prompt)))
        micros.append([i for i in live[-rows:] if prompts[i] == prompt])
        del live[-len(micros[-1]):]
    for micro, share in cards.turns(micros):
        longest = len(sequences[micro[-1]])
        ids = torch.full((len(micro), longest), pad_token_id)
        sampled = torch.zeros(len(micro), longest, dtype=torch.bool)
        for row, i in enumerate(micro):
            ids[row, :len(sequences[i])] = torch.tensor(sequences[i])
            sampled[row, prompt_lengths[i]:len(sequences[i])] = True
        ids, sampled, gain = ids.to(place), sampled.to(place), advantage[micro].to(place)
        logp = logits(net, ids[:, :-1]).float().log_softmax(-1)
        ids, sampled = ids[:, -logp.shape[1]:], sampled[:, -logp.shape[1]:]
        chosen = logp.gather(-1, ids[..., None])[..., 0]
        weight = gain[:, None] * sampled
        with torch.set_grad_enabled(bonus != 0):
            undecided = -((logp.exp() * logp).sum(-1) * sampled).sum()
        gained = (chosen * weight).sum()
        (-(gained + bonus * undecided if bonus else gained) * share / n_tokens).backward()
        entropy += undecided.item() * share
        counted += int(sampled.sum()) * share
    cards.add_gradients(net.parameters())
    entropy, counted = cards.total(entropy), cards.total(counted)
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0).item()
    errors.finite(norm, "the gradient's norm")
    optimizer.step()
    optimizer.zero_grad()
    return norm, entropy / max(1, counted)


def schedule(step: int, steps: int, warmup: float = 10, cooldown: float = 0.6) -> float:
    """Learning-rate factor: linear warm-up over `warmup` steps, then linear to zero at the end.

    The cool-down averages out what the gradient's noise does to steps that no reward looks at: with
    a constant rate Countdown's valid attempts fell by 4.5 points on validation problems, with it by
    2.6, at the same accuracy.
    """
    return min(1.0, (step + 1) / warmup, (steps - step) / (cooldown * steps))


def learn(net: nn.Module, pool: Sequence, recipe: dict, seed: int, rollout_fn: Callable,
          reward: Callable[[object, random.Random], float] = rewards.correct,
          update_fn: Callable = update, label: str = "RL",
          before: Callable[[int], object] | None = None,
          measured: Sequence[str] = MEASURED) -> list[dict]:
    """`recipe["steps"]` updates of what `net` trains, each on the next
    recipe["problems"] of `pool`.

    rollout_fn: (problems, seed) -> what `rollout` returns, recipe["samples"] a problem, by the
    model as it is now. reward: one of `rewards`. update_fn: `update`, with its options. before:
    called with each step's number. measured: attributes of the grades, `correct` among them.
    Returns the curve; its accuracies are on the problems of the step, before its update. BadInput
    for a reward or a gradient that is no finite number; the weights are then as before the step.
    """
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=recipe["lr"],
                                  betas=(0.9, 0.95), weight_decay=0.0)
    curve = []
    for step in (bar := tqdm(range(recipe["steps"]), desc=label, mininterval=5)):
        if before:
            before(step)
        optimizer.param_groups[0]["lr"] = recipe["lr"] * schedule(step, recipe["steps"])
        batch = pool[step * recipe["problems"]:(step + 1) * recipe["problems"]]
        sequences, lengths, grades = rollout_fn(batch, seed * 1_000_000 + step)
        rng = random.Random(f"reward {seed} {step}")
        gain = advantages(rewarded(reward, grades, recipe["samples"], step, rng),
                          recipe["samples"])
        norm, entropy = update_fn(net, optimizer, sequences, lengths, gain, recipe["micro_tokens"])
        mean = {name: float(np.mean([getattr(g, name) for g in grades])) for name in measured}
        size = float(np.mean([len(s) - n for s, n in zip(sequences, lengths)]))
        curve.append({"seed": seed, "step": step, "accuracy": mean.pop("correct"), **mean,
                      "tokens": size, "entropy": entropy, "grad_norm": norm})
        bar.set_postfix(accuracy=f"{curve[-1]['accuracy']:.2f}", tokens=f"{size:.0f}")
    return curve


def train(profile: str, family: str, seed: int, base: Path, folder: Path) -> list[dict]:
    """One RL run from base/seed<seed> into folder/seed<seed>; the first seed keeps its way there
    in rl_steps.

    Returns its curve. The curve's accuracies are on fresh training problems, each seen once.
    """
    config = params.load(profile)
    generator, recipe = config["families"][family], config["rl"]
    task = corpus.FAMILIES[family]
    net = model.load(base / f"seed{seed}").train()
    sampler = model.load(base / f"seed{seed}", dtype=device.pick("cpu")[1])
    pool = task.problems("train", recipe["steps"] * recipe["problems"], seed + 1, generator)

    def rollout_fn(problems, seed):
        sampler.load_state_dict(net.state_dict())
        return rollout(sampler, task, problems, recipe["samples"], recipe["max_new_tokens"], seed)

    def keep(step):
        if step in recipe["checkpoints"] and seed == config["seeds"][0]:
            model.save(net, folder.with_name("rl_steps") / f"seed{seed}" / f"{step:03d}", step=step)

    curve = learn(net, pool, recipe, seed, rollout_fn, label=f"RL {family} seed {seed}",
                  before=keep)
    model.save(net, folder / f"seed{seed}", seed=seed, family=family,
               base=model.checksum(base / f"seed{seed}"))
    return curve


def run(profile: str, family: str) -> None:
    """All seeds of an RL model, in a pool of one-thread processes."""
    config = params.load(profile)
    base = Path("checkpoints") / profile / family / "base"
    folder = base.with_name("rl")
    for old in (folder, base.with_name("rl_steps")):
        shutil.rmtree(old, ignore_errors=True)
        old.mkdir(parents=True)
    with parallel.workers(profile, "cpu") as workers:
        jobs = [workers.submit(train, profile, family, s, base, folder) for s in config["seeds"]]
        curves = [job.result() for job in jobs]
    last = [np.mean([point["accuracy"] for point in curve[-10:]]) for curve in curves]
    facts = [{"family": family, "model": "thinking", "quantity": "training_accuracy",
              "value": float(np.mean(last)), "low": float(min(last)), "high": float(max(last)),
              "n_problems": 10 * config["rl"]["problems"], "n_samples": config["rl"]["samples"],
              "seeds": config["seeds"]}]
    results.write(profile, f"train/{family}_rl", facts, extra={"curve": sum(curves, [])},
                  checkpoints=[folder / f"seed{s}" for s in config["seeds"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=run.__doc__)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--family", required=True, choices=corpus.FAMILIES)
    arguments = parser.parse_args()
    with staging.alone(f"{arguments.profile}/{arguments.family}_rl"):
        run(arguments.profile, arguments.family)


if __name__ == "__main__":
    errors.run(main)
