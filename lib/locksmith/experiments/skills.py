"""What a lab model can do step by step (skill), and how much of it it uses (deployment).

Skill is a share: of the attempts, those that are valid; of the checks, those that are correct.
Deployment is a number a problem: attempts, checks, backtracks, tokens. `measure` samples one
checkpoint in every way that is compared.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from locksmith import device, engine, grammar, model, stats, vocabulary
from locksmith.loading import Pair

COUNTS = ("correct", "trace", "attempts", "valid_attempts", "checks", "correct_checks",
          "backtracks", "tokens")
# Where in a trace an attempt stands, counted from 1: the bins by their first number.
POSITIONS = (1, 2, 3, 5, 9, 17)
POSITION_NAMES = ("1", "2", "3-4", "5-8", "9-16", "17+")


def tally(task: ModuleType, problems: Sequence,
          traces: Sequence[list[str]]) -> dict[str, np.ndarray]:
    """Counts of `traces` (lists of words, problem-major, equally many a problem).

    Returns {name: float64 (problems,)}: for each of COUNTS the mean over a problem's samples;
    "attempts_at", "valid_at" (problems, positions), the same by place in the trace; "strategy",
    "right" (problems, samples) bool, what each answer does; and where the task tells it, which
    attempts find what they seek: "hits" (problems,), "hits_at" (problems, positions); and where one
    could stop too early: "places" and "went_on" (problems,).
    """
    n = len(traces) // len(problems)
    rows, at, valid_at = [], [], []
    for i, words in enumerate(traces):
        grade = task.grade(problems[i // n], words)
        rows.append([*(getattr(grade, name) for name in COUNTS[:-1]), len(words)])
        valid = valid_attempts(task, problems[i // n], words)
        at.append(_at(valid))
        valid_at.append(_at(valid, valid))
    mean = [np.reshape(x, (len(problems), n, -1)).mean(1) for x in (rows, at, valid_at)]
    each = [(task.strategy(problems[i // n], words), row[0])
            for i, (words, row) in enumerate(zip(traces, rows))]
    strategy, right = np.array(each, bool).T.reshape(2, len(problems), n)
    out = {**dict(zip(COUNTS, mean[0].T, strict=True)), "attempts_at": mean[1], "valid_at": mean[2],
           "strategy": strategy, "right": right}
    asked = [(problems[i // n], words) for i, words in enumerate(traces)]
    if hasattr(task, "hits"):
        hits = [task.hits(*one) for one in asked]
        out["hits_at"] = np.reshape([_at(hit, hit) for hit in hits], (len(problems), n, -1)).mean(1)
        out["hits"] = out["hits_at"].sum(-1)
    if hasattr(task, "went_on"):
        on = [task.went_on(*one) for one in asked]
        out["places"], out["went_on"] = (np.reshape(x, (-1, n)).mean(1) for x in (
            [len(one) for one in on], [sum(one) for one in on]))
    return out


def _at(attempts, weights=None):
    """(positions,) how many attempts of a trace stand in each bin, or the sum of their weights."""
    bins = np.searchsorted(POSITIONS, np.arange(len(attempts)) + 1, side="right") - 1
    return np.bincount(bins, weights, minlength=len(POSITIONS))


def valid_attempts(task: ModuleType, problem: Any, words: list[str]) -> list[bool]:
    """For each attempt of a trace, in order, whether it is valid (list of bool)."""
    return [bool(task.grade(problem, ["try", *content]).valid_attempts)
            for behaviour, content in grammar.steps(words) if behaviour in ("try", "wait")]


def guesses(task: ModuleType, problems: Sequence, samples: int,
            seed: int) -> dict[str, np.ndarray]:
    """The tally of the strategy-free control."""
    rng = random.Random(f"guess {seed}")
    return tally(task, problems, [grammar.words(task.guess(p, rng)) for p in problems
                                  for _ in range(samples)])


def measure(checkpoint: str | Path, pair: Pair, *, problems: int, samples: int,
            max_new_tokens: int, low_temperature: float, depths: Sequence[int],
            seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """The tallies of one checkpoint on the test problems of a pair, by the way it was sampled.

    "sampled" (temperature 1, `samples` a problem), "greedy" and "low temperature" (one a problem),
    and, for the chain, "depth 1", ... (temperature 1) for each of `depths`.
    """
    where, dtype = device.pick()
    net = model.load(checkpoint, dtype, where)
    task = pair.rules

    def sample(problems, n, temperature):
        prompts = [vocabulary.encode(p.prompt) for p in problems]
        out = engine.sample(net, prompts, n, max_new_tokens=max_new_tokens, stop=vocabulary.STOP,
                            temperature=temperature, seed=seed)
        return tally(task, problems, [vocabulary.decode(ids) for ids in out.ids()])

    test = pair.problems(problems)
    out = {"sampled": sample(test, samples, 1.0), "greedy": sample(test, 1, 0.0),
           "low temperature": sample(test, 1, low_temperature)}
    for depth in depths if pair.task == "chain" else ():
        ladder = pair.problems(problems, depth=depth)
        out[f"depth {depth}"] = sample(ladder, samples, 1.0)
    return out


def stack(tallies: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Tallies of several seeds as one: {name: (seeds, problems, ...)}."""
    return {name: np.stack([t[name] for t in tallies]) for name in tallies[0]}


def summary(tally: dict[str, np.ndarray]) -> dict[str, stats.Interval]:
    """{name of the fact: Interval} of a stacked tally; a share of nothing is left out."""
    out = {"pass_at_k[k=1]": stats.mean_interval(tally["correct"]),
           "trace_pass_at_k[k=1]": stats.mean_interval(tally["trace"]),
           "strategy_share": stats.mean_interval(tally["strategy"].mean(-1)),
           "valid_attempts": stats.share(tally["valid_attempts"], tally["attempts"]),
           "correct_checks": stats.share(tally["correct_checks"], tally["checks"])}
    if "hits" in tally:
        out["attempt_hits"] = stats.share(tally["hits"], tally["attempts"])
    if "places" in tally:
        out["went_on"] = stats.share(tally["went_on"], tally["places"])
    for name in ("attempts", "checks", "backtracks", "tokens"):
        quantity = "tokens_per_answer" if name == "tokens" else name
        out[quantity] = stats.interval(lambda mean: mean, tally[name])
    return {name: interval for name, interval in out.items() if interval is not None}


def gain(base: dict[str, np.ndarray],
         thinking: dict[str, np.ndarray]) -> dict[str, stats.Interval]:
    """{name of the fact: Interval} of what RL gained, paired, from the stacked tallies of both."""
    when, how = stats.gain_parts(*((side["strategy"], side["right"]) for side in (base, thinking)))
    counts = [side[name] for side in (thinking, base) for name in ("valid_attempts", "attempts")]
    out = {"gain": stats.difference(thinking["correct"], base["correct"]),
           "gain_when": when, "gain_how": how}
    if all(count.sum() for count in counts[1::2]):
        out["valid_attempts_change"] = stats.interval(
            lambda valid, tried, before, tries: valid / tried - before / tries, *counts)
    return out


def by_position(tally: dict[str, np.ndarray],
                what: str = "valid_at") -> dict[str, stats.Interval]:
    """{name of the position: Interval of the share of attempts there that are valid, or `what`}."""
    shares = {name: stats.share(tally[what][..., i], tally["attempts_at"][..., i])
              for i, name in enumerate(POSITION_NAMES)}
    return {name: interval for name, interval in shares.items() if interval is not None}
