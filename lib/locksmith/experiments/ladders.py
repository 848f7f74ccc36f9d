"""Chapter 7's models: RL on bases whose pre-training lacked a thing, or held little of it.

    python -m locksmith.experiments.ladders --profile lab --family countdown

A rung is a base and what the lab's RL makes of it, one of each a seed. The ladders:

    exposure  how much of a behaviour the base has read, all else equal, the same in tokens:
              Countdown  share of go-ons after a failed check that are backtracks
              chain      share of documents about problems deeper than one that write all steps
    start     a base of lower exposure also starts lower and gives RL fewer groups with contrast:
              easier     RL on the 0 rung with problems on which it starts as the full base does
              harder     RL on the full base with problems on which it starts as the 0 rung does
              contrast   RL on the 0 rung with groups that all have contrast, as many as RL can use
              plateau    RL on the 0 rung for several times the steps
    skill     RL from the full base's pre-training at a share of its way
    depth     chain alone; the edge is one deeper than any problem of pre-training:
              range      RL within range: the ordinary model
              mixed      RL on problems in range and at the edge, in turns
              edge       RL on problems at the edge
              taught     no RL: the base fine-tuned on right workings of the same edge problems
              read       RL at the edge from a base that has read a share of edge problems

The full rungs are the lab's own base and RL model of these seeds, and Countdown's 0 rung has the
lab's twin for its base. A run is written whole when it ends and kept when it is there, made from
the same settings and code in the same precision; one that was killed goes on from its last minutes.

Forecast in core minutes a seed in the profile lab. Measured are 9 for a pre-training, 10 and 3 for
RL in Countdown and in chains; answers of models that read little are shorter, and their groups
without contrast cost no update.

                                                     countdown  chain
    exposure  pre-training of rungs the lab has not     3 x 9   4 x 9
              RL, from the lowest rung up                  20       8
    start     RL: easier, harder, contrast, plateau        27      16
    skill     0.3 of a pre-training, RL from two stops     17       8
    depth     a pre-training, RL three times, SFT           -      22
    sum                                                    91      90

Three seeds on two cores: some 140 minutes a family. All jobs of a family share one pool, so that no
core waits for a third seed; the twin, the full rungs and the stops of one pre-training are not
trained twice.
"""

import argparse
import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel

from locksmith import (
    cache,
    cards,
    corpus,
    device,
    drawing,
    engine,
    errors,
    finetune,
    grammar,
    model,
    parallel,
    params,
    pretrain,
    results,
    resuming,
    rewards,
    rl,
    staging,
    vocabulary,
)
from locksmith.loading import Pair
from locksmith.tasks import chain, countdown

CODE = (cache, cards, chain, corpus, countdown, drawing, engine, finetune, grammar, model,
        pretrain, rewards, rl, vocabulary)  # what trains and grades
UNFINISHED = Path("build/ladders")  # states of runs that have not ended


class Rung(NamedTuple):
    """A base and what training makes of it, for every seed of the ladders.

    ladder, value: which ladder, and the place on it: a share, or a word. base, thinking: names of
    the models, as `loading` takes them. corpus: what the base's corpus changes of the family's
    generator. rl: how its RL differs from the lab's.
    """
    profile: str
    family: str
    ladder: str
    value: float | str
    base: str
    thinking: str
    corpus: dict
    rl: dict

    @property
    def name(self) -> str:
        """"exposure-0.01", "start-easier"."""
        value = self.value if isinstance(self.value, str) else f"{self.value:g}"
        return f"{self.ladder}-{value}"

    def pair(self, seed: int) -> Pair:
        """Base and trained model of a seed, on the family's problems."""
        return Pair(self.profile, self.family, seed, self.base, self.thinking)

    def curve(self, seed: int) -> list[dict]:
        """What `rl.learn` noted of each step of a seed's RL; [] of a model without RL. From the
        records, so that it is there without checkpoints. BadInput where no record is there."""
        own = _config(self.profile)["profile"]
        if self.thinking == "lab/thinking":
            curve = results.read(own, f"train/{self.family}_rl")["extra"]["curve"]
            return [point for point in curve if point["seed"] == seed]
        logs = results.read(own, f"train/{self.family}_ladders")["extra"]["logs"]
        return logs[f"{self.name} {seed}"].get("curve", [])


def rungs(profile: str, family: str) -> list[Rung]:
    """Every rung of a family, ladder by ladder, from the lowest up."""
    config = _config(profile)
    own = config["ladders"]
    found = []

    def add(ladder, value, base="", thinking="", corpus=None, rl=None):
        rung = Rung(profile, family, ladder, value, base, thinking, corpus or {}, rl or {})
        found.append(rung._replace(base=base or f"lab/ladders/{rung.name}/base",
                                   thinking=thinking or f"lab/ladders/{rung.name}/rl"))
        return found[-1]

    dial = {"countdown": "backtrack", "chain": "whole"}[family]
    for share in sorted(own["exposures"]):
        changes = {dial: share}
        twin = family == "countdown" and changes == config["twin"]
        add("exposure", share, "lab/twin" if twin else "", corpus=changes)
    nothing = found[0]
    add("exposure", full_exposure(profile, family), "lab/base", "lab/thinking")
    add("start", "easier", nothing.base, corpus=nothing.corpus, rl={"problems": "easier"})
    add("start", "harder", "lab/base", rl={"problems": "harder"})
    add("start", "contrast", nothing.base, corpus=nothing.corpus, rl={"contrast": True})
    add("start", "plateau", nothing.base, corpus=nothing.corpus, rl={"steps": own["plateau"]})
    for share in sorted(own["skills"]):
        add("skill", share)
    add("skill", 1.0, "lab/base", "lab/thinking")
    if family == "chain":
        add("depth", "range", "lab/base", "lab/thinking")
        add("depth", "mixed", "lab/base", rl={"problems": "mixed"})
        add("depth", "edge", "lab/base", rl={"problems": "edge"})
        add("depth", "taught", "lab/base", "lab/ladders/depth-taught/sft",
            rl={"problems": "edge"})
        depths = _with_edge(config["families"]["chain"], own["edge_share"])
        add("depth", "read", corpus={"depths": depths}, rl={"problems": "edge"})
    return found


def full_exposure(profile: str, family: str) -> float:
    """The exposure of the lab's own base, on the axis of its ladder."""
    generator = _config(profile)["families"][family]
    return generator["backtrack"] if family == "countdown" else chain.whole_share(generator)


def edge(generator: dict) -> int:
    """The depth of chain problems one deeper than any that a corpus of the generator holds."""
    return max(generator["depths"]) + 1


def _with_edge(generator, share):
    """`depths` of which the edge is a share, and the others in their old proportions."""
    turns = round((1 - share) / (share * len(generator["depths"])))
    return [*(depth for depth in generator["depths"] for _ in range(turns)), edge(generator)]


def _config(profile):
    """The parameters of the profile whose checkpoints `profile` uses."""
    return params.load(params.load(profile)["checkpoints"])


# --- what is trained ------------------------------------------------------------------------------

def folder(rung: Rung, role: str, seed: int) -> Path:
    """The folder of a rung's "base" or "thinking" model."""
    return rung.pair(seed).folder(role)


def trained_here(rung: Rung, role: str) -> bool:
    """Whether a rung's "base" or "thinking" model is its own, and not the lab's or another's."""
    return getattr(rung, role).startswith(f"lab/ladders/{rung.name}/")


def _made(rung, role, seed, **how):
    """What a model is made with, as its manifest states it."""
    made = {"name": getattr(rung, role).removeprefix("lab/"), "family": rung.family, "seed": seed,
            **how, "precision": str(device.pick("cpu")[1]), "code": resuming.code(CODE)}
    return json.loads(json.dumps(made))


def _progress(place, made):
    """The state of an unfinished run into a folder."""
    return resuming.Progress(
        UNFINISHED / place.with_suffix(".safetensors").relative_to("checkpoints"), made)


def pretrain_bases(stops: Sequence[Rung], seed: int) -> dict[str, dict]:
    """Pre-trains the bases of rungs that read one corpus: of one rung, or, in order, of those of
    the skill ladder, which are stages of one pre-training. Returns {rung's name: log}."""
    config, rung = _config(stops[-1].profile), stops[-1]
    generator, recipe = {**config["families"][rung.family], **rung.corpus}, config["pretrain"]
    until = {stop.name: stop.value if stop.ladder == "skill" else 1.0 for stop in stops}
    made = {stop.name: _made(stop, "base", seed, generator=generator, recipe=recipe,
                             architecture=config["model"], until=until[stop.name])
            for stop in stops}
    logs = {stop.name: resuming.kept(folder(stop, "base", seed), made[stop.name])
            for stop in stops}
    missing = [name for name, log in logs.items() if log is None]
    if not missing:
        return logs
    ids, counts = corpus.write(corpus.FAMILIES[rung.family], generator, recipe["tokens"], seed)
    net = model.build(config["model"], seed).train()
    optimizers = model.optimizer(net, recipe["muon_lr"], recipe["adam_lr"], recipe["weight_decay"])
    work = pretrain.batches(ids, recipe["micro_tokens"], np.random.default_rng(seed))
    progress, curve = _progress(folder(rung, "base", seed), made[rung.name]), []
    there = progress.state
    if there and len(there["curve"]) <= pretrain.steps(work, recipe, until[missing[0]]):
        net.load_state_dict(there["net"])
        for optimizer, state in zip(optimizers, there["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        curve = there["curve"]

    def before(done, seen):
        progress.keep(lambda: {"net": net.state_dict(), "curve": curve,
                               "optimizers": [o.state_dict() for o in optimizers]})
    for stop in stops:
        pretrain.fit(net, optimizers, work, recipe, curve, before, until[stop.name],
                     f"pretrain {rung.family} {stop.name} seed {seed}")
        if stop.name in missing:
            logs[stop.name] = {"tokens": curve[-1]["tokens"], "counts": counts,
                               "loss": pretrain.thinned(curve)[-1]["loss"]}
            model.save(net, folder(stop, "base", seed), **made[stop.name], log=logs[stop.name])
    progress.end()
    return logs


def asked(rung: Rung, recipe: dict, seed: int, changes: dict) -> list:
    """The training problems of a rung's RL, in order: a step's, or as many as it may draw.

    changes: to the family's generator, where the rung's problems are "easier" or "harder".
    """
    config, task = _config(rung.profile), corpus.FAMILIES[rung.family]
    generator = config["families"][rung.family]
    which = rung.rl.get("problems")
    kinds = [changes]
    if which in ("edge", "mixed"):
        kinds = [{"depth": edge(generator)}] + [{}] * (which == "mixed")
    n = recipe["steps"] * recipe["problems"]
    pools = [task.problems("train", -(-n // len(kinds)), seed + 1, {**generator, **kind})
             for kind in kinds]
    return [problem for turn in zip(*pools) for problem in turn][:n]


def contrasting(draw: Callable, n: int, samples: int) -> Callable:
    """A `rollout_fn` of `rl.learn` whose groups have contrast, as far as its problems go: it draws
    n of them at a time until n groups hold right and wrong answers, and fills up with others.

    draw: (problems, seed) -> what `rl.rollout` returns. Dynamic sampling, Yu et al. 2025 (DAPO,
    arXiv 2503.14476), section 3.2.
    """
    def rollout_fn(problems, seed):
        groups = []  # (whether it has contrast, its part of what draw returns)
        for turn in range(0, len(problems), n):
            drawn = draw(problems[turn:turn + n], seed + 1000 * turn)
            for i in range(0, len(drawn[0]), samples):
                group = [part[i:i + samples] for part in drawn]
                groups.append((len({grade.correct for grade in group[2]}) == 2, group))
            if sum(live for live, _ in groups) >= n:
                break
        groups.sort(key=lambda one: not one[0])
        return tuple([x for _, group in groups[:n] for x in group[part]] for part in range(3))
    return rollout_fn


def train(rung: Rung, seed: int, changes: dict) -> dict:
    """The trained model of a rung and seed into its folder; returns its log: the curve of its RL,
    or of fine-tuning the losses.

    changes: to the generator of its problems, where they are "easier" or "harder".
    """
    place, config = folder(rung, "thinking", seed), _config(rung.profile)
    recipe = {**config["rl"], "steps": config["rl"]["steps"] * rung.rl.get("steps", 1)}
    if rung.rl.get("contrast"):  # a step is offered more problems than it trains on
        recipe["problems"] *= config["ladders"]["most_drawn"]
    made = _made(rung, "thinking", seed, base=model.checksum(folder(rung, "base", seed)),
                 generator={**config["families"][rung.family], **changes}, recipe=recipe,
                 rl=rung.rl)
    if rung.value == "taught":
        made["taught"] = {key: config["ladders"][key] for key in ("taught_passes", "taught_lrs")}
    if (log := resuming.kept(place, made)) is not None:
        return log
    problems = asked(rung, recipe, seed, changes)
    if rung.value == "taught":
        net, log = imitate(rung, seed, problems)
    else:
        progress = _progress(place, made)
        net, log = reinforce(rung, seed, problems, recipe, progress)
        progress.end()
    model.save(net, place, **made, log=log)
    return log


def reinforce(rung: Rung, seed: int, problems: list, recipe: dict,
              progress: resuming.Progress) -> tuple[PreTrainedModel, dict]:
    """The lab's RL from a rung's base, as `rl.train` does it: (model, log)."""
    base, task = folder(rung, "base", seed), corpus.FAMILIES[rung.family]
    net, sampler = model.load(base).train(), model.load(base, dtype=device.pick("cpu")[1])

    def rollout_fn(problems, seed):
        sampler.load_state_dict(net.state_dict())
        return rl.rollout(sampler, task, problems, recipe["samples"], recipe["max_new_tokens"],
                          seed)
    if rung.rl.get("contrast"):
        n = recipe["problems"] // _config(rung.profile)["ladders"]["most_drawn"]
        rollout_fn = contrasting(rollout_fn, n, recipe["samples"])
    curve = resuming.learn(net, problems, recipe, seed, rollout_fn, progress,
                           f"RL {rung.family} {rung.name} seed {seed}")
    return net, {"curve": curve}


def imitate(rung: Rung, seed: int, problems: list) -> tuple[PreTrainedModel, dict]:
    """A rung's base fine-tuned on right workings of problems, in as many steps as RL takes, at the
    rate that solves most of the validation problems at the edge: (model, log)."""
    config, base = _config(rung.profile), folder(rung, "base", seed)
    own, generator = config["ladders"], config["families"][rung.family]
    task, steps = corpus.FAMILIES[rung.family], config["rl"]["steps"]
    pairs = [(vocabulary.encode(problem.prompt), vocabulary.encode(words)) for problem, words in
             zip(problems, workings(task, problems, generator, seed), strict=True)]
    tokens = own["taught_passes"] * sum(len(target) for _, target in pairs)
    tried = []
    for rate in own["taught_lrs"]:
        net = model.load(base).train()
        losses, _ = finetune.fit(net, pairs, steps, -(-tokens // steps), rate, seed)
        reached = accuracy(net, rung, {"depth": edge(generator)})
        tried.append((net, {"lr": rate, "accuracy": reached, "losses": losses}))
    net, log = max(tried, key=lambda one: one[1]["accuracy"])
    return net, {**log, "texts": len(pairs), "rates": {
        f"{one['lr']:g}": one["accuracy"] for _, one in tried}}


def workings(task: Any, problems: list, generator: dict, seed: int) -> list[list[str]]:
    """A right working of each problem with every step sound, by authors of the corpus who never
    stop early."""
    rng, found = random.Random(f"taught {seed}"), []
    for problem in problems:
        words = []
        while not task.grade(problem, words).trace:
            author = dataclasses.replace(corpus.author(rng, generator), persistence=1.0)
            words = task.document(rng, problem, author, generator)
        found.append(words)
    return found


# --- problems on which two bases start alike ------------------------------------------------------

def accuracy(net: PreTrainedModel, rung: Rung, changes: dict) -> float:
    """Share of validation problems, of a generator with changes, that a model's samples solve."""
    config, task = _config(rung.profile), corpus.FAMILIES[rung.family]
    own = config["ladders"]
    problems = task.problems("validation", own["start_problems"], 0,
                             {**config["families"][rung.family], **changes})
    _, _, grades = rl.rollout(net, task, problems, own["start_samples"],
                              config["rl"]["max_new_tokens"], seed=0)
    return float(np.mean([grade.correct for grade in grades]))


def start(rung: Rung, seed: int, changes: dict) -> float:
    """`accuracy` of a rung's base."""
    return accuracy(model.load(folder(rung, "base", seed), device.pick("cpu")[1]), rung, changes)


def settings(profile: str, family: str, how: str) -> list[dict]:
    """Changes of a family's generator that make problems "easier" or "harder", the least first."""
    config = _config(profile)
    change = getattr(corpus.FAMILIES[family], how)
    return [change(config["families"][family], n) for n in config["ladders"][how][family]]


def chosen(levels: Sequence[float], goal: float, how: str) -> int:
    """Which of some settings, with a base's accuracies on them, is taken: the first on which it is
    as low ("harder") or as high ("easier") as a goal, or the last."""
    met = [level >= goal if how == "easier" else level <= goal for level in levels]
    return met.index(True) if any(met) else len(met) - 1


def match(pool: Executor, every: Sequence[Rung], seeds: Sequence[int]) -> dict[str, dict]:
    """{"easier", "harder": {"settings", "levels", "goal", "chosen"}}: mean accuracies over seeds of
    the 0 rung's base on ever easier problems, and of the full base on ever harder ones, and which
    setting is the first where each starts as the other does on the family's own problems."""
    found = {}
    for rung in every:
        if rung.rl.get("problems") not in ("easier", "harder"):
            continue
        how = rung.value
        tried = [{}, *settings(rung.profile, rung.family, how)]
        levels = parallel.run(pool, start, {(i, seed): dict(rung=rung, seed=seed, changes=changes)
                                            for i, changes in enumerate(tried) for seed in seeds})
        means = [float(np.mean([levels[i, seed] for seed in seeds])) for i in range(len(tried))]
        found[how] = {"settings": tried, "levels": means}
    for how, other in (("easier", "harder"), ("harder", "easier")):
        goal = found[other]["levels"][0]
        found[how] |= {"goal": goal, "chosen": 1 + chosen(found[how]["levels"][1:], goal, how)}
    return found


# --- all of them ----------------------------------------------------------------------------------

def run(profile: str, family: str) -> None:
    """Every rung of a family, in a pool of one-thread processes, and their record."""
    config = params.load(profile)
    if "ladders" not in config:
        raise errors.BadInput(f"profile is {profile!r}, which states no `ladders`; allowed is one "
                              "that trains a lab of its own.")
    every, seeds = rungs(profile, family), config["ladders"]["seeds"]
    for rung in every:
        for role in ("base", "thinking"):
            if not getattr(rung, role).startswith("lab/ladders/"):
                [model.manifest(folder(rung, role, seed)) for seed in seeds]  # it is there
    corpora = [[rung] for rung in every if trained_here(rung, "base") and rung.ladder != "skill"]
    corpora.append([rung for rung in every if trained_here(rung, "base")
                    and rung.ladder == "skill"])
    with parallel.workers(profile, "cpu") as pool:
        bases = parallel.run(pool, pretrain_bases, {
            (stops[-1].name, seed): dict(stops=stops, seed=seed)
            for stops in corpora for seed in seeds}, writes=True)
        starts = match(pool, every, seeds)
        taken = {how: one["settings"][one["chosen"]] for how, one in starts.items()}
        own = [rung for rung in every if trained_here(rung, "thinking")]
        own.sort(key=lambda rung: rung.value not in ("contrast", "plateau"))  # the longest first
        logs = parallel.run(pool, train, {
            (rung.name, seed): dict(rung=rung, seed=seed,
                                    changes=taken.get(rung.rl.get("problems"), {}))
            for rung in own for seed in seeds}, writes=True)
    record = results.Recorder(profile, f"train/{family}_ladders", seeds=seeds)
    record.extra = {
        "starts": starts,
        "bases": {f"{name} {seed}": log for (_, seed), found in bases.items()
                  for name, log in found.items()},
        "logs": {f"{name} {seed}": log for (name, seed), log in logs.items()}}
    record.write(folder(rung, role, seed) for rung in every for role in ("base", "thinking")
                 if trained_here(rung, role) for seed in seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=run.__doc__)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--family", required=True, choices=corpus.FAMILIES)
    arguments = parser.parse_args()
    with staging.alone(f"{arguments.profile}/{arguments.family}_ladders"):
        run(arguments.profile, arguments.family)


if __name__ == "__main__":
    errors.run(main)
