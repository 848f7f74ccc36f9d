"""RL on models that others pre-trained: an adapter a run, by an outcome reward or by a control.

    python -m locksmith.experiments.real_rl --profile open

A profile's section `real` names two models with the sums that each is asked: `present`, which has
the skill (its steps are mostly valid when it takes them), and `absent`, which has not. The loop and
its schedule are the lab's (`rl.learn`), what is trained is a LoRA adapter, and no term holds it
near the base. Arms:

    correct      1 for a right answer that ended by itself
    format       1 for writing out every step, right or wrong
    random       1 for half of all answers, whatever they say
    one-problem  correct, all answers to one problem: the middle one of those that the base solves
    sft-right    no RL: fine-tuning on the base's own right workings, of as many answers as RL draws
    direct-N     correct, with N direct examples among those of the prompt; the first seed alone

Where one card does not hold a model, several do (`cards`), for one run after the other:

    accelerate launch --num_processes 4 -m locksmith.experiments.real_rl --profile open

A run is written whole when it ends, and one that is there, from the same weights, settings and
code, is kept: so a stage that was killed goes on where it stopped.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn

from locksmith import (
    cache,
    cards,
    drawing,
    engine,
    errors,
    finetune,
    grading,
    loading,
    model,
    narrowing,
    parallel,
    params,
    prose,
    results,
    resuming,
    rewards,
    rl,
    rollouts,
    staging,
    words,
)
from locksmith.experiments import tuning
from locksmith.loading import Pair
from locksmith.tasks import sums

ROLES = ("present", "absent")
REWARDS = {"format": "strategy", "random": "random"}  # of an arm; any other's is "correct"
# Arms as arms.yml has them; all others are the thinking model's.
NAMES = {"format": "format-reward", "random": "random-reward", "one-problem": "rl-one-problem",
         "sft-right": "sft-right"}
MEASURED = ("correct", "trace", "strategy", "attempts", "valid_attempts")
CODE = (cache, cards, drawing, engine, finetune, grading, model, narrowing, prose, rewards, rl,
        rollouts, sums, tuning, words)


def pair(profile: str, role: str, seed: int) -> Pair:
    """A model of `real` as the base of a pair; the thinking model is what `correct` makes of it."""
    own = params.load(profile)["real"]
    base = own[role]["model"]
    trained = folder(profile, base, "correct") / "seed{seed}"
    return Pair(profile, "sums", seed, base, f"{base}{loading.ADAPTER}{trained.as_posix()}",
                accept_terms=own["accept_terms"], tokens=own["tokens"])


def folder(profile: str, base: str, arm: str) -> Path:
    """Where an arm's adapters are, one in seed<seed> each. Those of the controls have a folder of
    their own, as they do not travel."""
    short = base.partition("@")[0].rpartition("/")[2]
    return Path("checkpoints", profile, "rl" if arm == "correct" else "rl_controls", short, arm)


def family(profile: str, role: str) -> str:
    """What facts call the sums of a model: "sums", and "sums_gemma" of one that lacks the skill."""
    base = params.load(profile)["real"][role]["model"].rpartition("/")[2]
    return "sums" if role == "present" else f"sums_{re.match('[a-z]*', base.lower())[0]}"


def asked(setting: Mapping, arm: str) -> dict:
    """What the problems of an arm are made with, in a setting of `real`."""
    own = dict(setting["sums"])
    if not arm.startswith("direct-"):
        return own
    direct = int(arm.removeprefix("direct-"))
    return own | {"direct": direct, "worked": own["direct"] + own["worked"] - direct}


def named(arm: str) -> str:
    """An arm as facts name it: thinking, thinking[variant=2 direct], random-reward."""
    if arm.startswith("direct-"):
        return f"thinking[variant={arm.removeprefix('direct-')} direct]"
    return NAMES.get(arm, "thinking")


# --- one run --------------------------------------------------------------------------------------

def weights(net: nn.Module) -> str:
    """Hex SHA-256 of all parameters, the same on every machine."""
    digest = hashlib.sha256()
    for name, tensor in net.named_parameters():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def code() -> str:
    """Hex SHA-256 of what trains and grades."""
    return resuming.code(CODE)


def start(pair: Pair, n_problems: int, samples: int, max_new_tokens: int) -> tuple[str, list, int]:
    """(hash of a base's weights, how often it solves each of n_problems training problems, which
    of them is to be the single one: the middle of those that it solves at all)."""
    rates = tuning.difficulty(pair, n_problems, samples, max_new_tokens)
    whole = pair._replace(tokens=0).load("base", exact=True)
    return weights(whole.net), rates.tolist(), tuning.spread(rates, 3)[1]


def train(pair: Pair, arm: str, setting: dict, recipe: dict, base: str, single: int) -> dict:
    """One adapter of an arm into its folder; returns what its training says of itself: a curve, or
    losses and the tokens read. base, single: as `start` tells them. BadInput where the base gives
    no right working to be fine-tuned on."""
    place = folder(pair.profile, pair.base, arm) / f"seed{pair.seed}"
    made = json.loads(json.dumps({"arm": arm, "seed": pair.seed, "base": base, "code": code(),
                                  "generator": asked(setting, arm), "recipe": recipe}))
    if (log := cards.first(lambda: resuming.kept(place, made))) is not None:
        return log
    trained = tuning.adapter(pair, recipe["rank"])
    n = recipe["steps"] * recipe["problems"]
    problems = pair.rules.problems("train", n, pair.seed + 1, made["generator"])
    if arm == "sft-right":
        log = imitate(trained, pair, problems, recipe)
    else:
        if arm == "one-problem":
            problems = [tuning.pool(pair, single + 1)[single]] * recipe["steps"]
            recipe = recipe | {"problems": 1, "samples": recipe["problems"] * recipe["samples"]}
        log = {"curve": tuning.reinforce(trained, pair, problems, recipe,
                                         REWARDS.get(arm, "correct"), measured=MEASURED)}
    # peft would write where the base's weights are on this machine
    trained.net.peft_config["default"].base_model_name_or_path = ""
    cards.first(lambda: model.save_adapter(trained.net, place, **made, log=log))
    return log


def imitate(trained: tuning.Trained, pair: Pair, problems: list, recipe: dict) -> dict:
    """Fine-tuning on the base's right answers whose every step holds, of as many as RL draws."""
    base = pair.load("base")
    drawn = rollouts.answer(base, pair.rules, problems, recipe["samples"], seed=pair.seed,
                            max_new_tokens=recipe["max_new_tokens"])
    right = [(pair.rules.prompt(problem), text.removesuffix(base.end) + base.end)
             for problem, texts, sound in zip(problems, drawn.texts, drawn.trace)
             for text, ok in zip(texts, sound) if ok]
    if not right:
        raise errors.BadInput(f"arms hold sft-right, but {pair.base} gave no right working among "
                              f"{drawn.correct.size} answers; allowed is to leave it out.")
    how = tuning.Recipe(recipe["steps"], recipe["target_tokens"], recipe["lr"], "adapter")
    return {"texts": len(right), "drawn": int(drawn.lengths.sum()),
            **tuning.supervise(trained, base, right, how, pair.seed)}


# --- all of them ----------------------------------------------------------------------------------

def run(profile: str) -> None:
    """Every arm of both models, in a pool of one-thread processes, and their record; over several
    cards one after the other, each on all of them."""
    config = params.load(profile)
    own, seeds = config["real"], config["seeds"]
    recipe = {name: own[name] for name in ("steps", "problems", "samples", "lr", "rank",
                                           "max_new_tokens", "target_tokens", "tokens")}
    for place in ("rl", "rl_controls"):  # outputs of the stage, whichever arms there are
        Path("checkpoints", profile, place).mkdir(parents=True, exist_ok=True)
    several = cards.world() > 1
    with parallel.Serial() if several else parallel.workers(profile, fresh=True) as pool:
        begun = parallel.run(pool, start, {role: dict(
            pair=pair(profile, role, seeds[0]), n_problems=own["pool_problems"],
            samples=own["pool_samples"], max_new_tokens=own["max_new_tokens"]) for role in ROLES})
        first = sorted(((role, arm) for role in ROLES for arm in own[role]["arms"]),
                       key=lambda one: one[1] != "correct")  # what other chapters wait for
        jobs = {(role, arm, seed): dict(
                    pair=pair(profile, role, seed), arm=arm, setting=own[role], recipe=recipe,
                    base=begun[role][0], single=begun[role][2])
                for role, arm in first
                for seed in (seeds[:1] if arm.startswith("direct-") else seeds)}
        logs = parallel.run(pool, train, jobs, writes=True)
    cards.first(lambda: write(profile, {role: begun[role][1] for role in ROLES}, logs))


def write(profile: str, rates: Mapping, logs: Mapping) -> None:
    """The record of all runs. rates, logs: what `start` and `train` found, by role, and by (role,
    arm, seed)."""
    config = params.load(profile)
    own, seeds = config["real"], config["seeds"]
    record = results.Recorder(profile, "train/real_rl", seeds=seeds, n_samples=own["samples"],
                              n_problems=own["problems"] * min(10, own["steps"]))
    for role in ROLES:
        for arm in own[role]["arms"]:
            curves = {seed: logs[role, arm, seed].get("curve") for seed in seeds
                      if (role, arm, seed) in logs}
            last = [float(np.mean([point["accuracy"] for point in curve[-10:]]))
                    for curve in curves.values() if curve]
            record.fact(family(profile, role), named(arm), "training_accuracy",
                        (float(np.mean(last)), min(last), max(last)) if last else None,
                        seeds=list(curves))
    record.extra = {"rates": dict(rates),
                    "logs": {f"{role} {arm} {seed}": log
                             for (role, arm, seed), log in logs.items()}}
    record.write([folder(profile, own[role]["model"], arm) / f"seed{seed}"
                  for role, arm, seed in logs])


def main() -> None:
    parser = argparse.ArgumentParser(description=run.__doc__)
    parser.add_argument("--profile", required=True)
    arguments = parser.parse_args()
    name = f"{arguments.profile}/real_rl"
    with cards.joined(), staging.alone(name) if cards.rank() == 0 else nullcontext():
        run(arguments.profile)


if __name__ == "__main__":
    errors.run(main)
