"""What RL changes in models that others pre-trained: every arm of `real_rl` on the same problems.

A `Measured` is one model's answers to problems of a task. Scores are (problems, answers); those of
several seeds are stacked in front, so that `stats` takes seeds and problems together. Arms are
those of `real_rl`, and "base".
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch

from locksmith import bounds, device, grading, loading, prose, rollouts, stats, tasks
from locksmith.experiments import real_rl
from locksmith.experiments.divergence import POSITIONS, Divergence
from locksmith.loading import Pair
from locksmith.results import ROOT, Recorder
from locksmith.tasks import gsm8k

_NUMBER = re.compile(r"(?<!\d)-?\d{1,40}(?:,\d{3})*(?:\.\d{1,40})?")


class Measured(NamedTuple):
    """P problems, n answers each: correct, strategy, trace (bool) and attempts, valid_attempts,
    tokens (int), (P, n) as in `rollouts.Answers`; strict: right, said as the examples say it, and
    ended by itself; lenient: the last number is right, whatever stands around it; text: the first
    answer to the first problem."""
    correct: np.ndarray
    strategy: np.ndarray
    trace: np.ndarray
    attempts: np.ndarray
    valid_attempts: np.ndarray
    tokens: np.ndarray
    strict: np.ndarray
    lenient: np.ndarray
    text: str


def name(pair: Pair, arm: str) -> str:
    """The name of an arm's model, one a seed: the base with its adapter."""
    if arm == "base":
        return pair.base
    place = real_rl.folder(pair.profile, pair.base, arm) / "seed{seed}"
    return f"{pair.base}{loading.ADAPTER}{place.as_posix()}"


def measure(pair: Pair, arm: str, problems: list, n: int, max_new_tokens: int,
            temperature: float = 1.0, other_rounding: bool = False) -> Measured:
    """`Measured` of an arm on problems of the pair's task. other_rounding: of its weights and
    sums, float32 where `device.pick` gives bfloat16 and the other way round."""
    model = pair._replace(thinking=name(pair, arm)).load("thinking")
    if other_rounding:
        model.net.to(rounding()[1])
    drawn = rollouts.answer(model, pair.rules, problems, n, max_new_tokens=max_new_tokens,
                            temperature=temperature, seed=pair.seed)
    said = np.array([["answer is" in text for text in row] for row in drawn.texts])
    lenient = np.array([[last_is_right(problem, text) for text in row]
                        for problem, row in zip(problems, drawn.texts)])
    return Measured(drawn.correct, drawn.strategy, drawn.trace, drawn.table("attempts"),
                    drawn.table("valid_attempts"), drawn.lengths,
                    drawn.correct & said & drawn.stopped, lenient, drawn.texts[0][0])


def rounding() -> tuple[torch.dtype, torch.dtype]:
    """The dtype that models are asked in here, and the other one."""
    here = device.pick()[1]
    return here, torch.float32 if here == torch.bfloat16 else torch.bfloat16


def last_is_right(problem: Any, text: str) -> bool:
    """Whether the last number of an answer, whole or decimal, is the right one."""
    found = _NUMBER.findall(prose.one_writing(text))
    return bool(found) and Fraction(found[-1].replace(",", "")) == grading.exact(problem.answer)


def shares(worked: Measured, direct_greedy: Measured) -> dict:
    """What the look at a mix of examples tells of a base: shares of right answers at temperature 1
    and of greedy ones, of answers that work it out, of steps that are valid."""
    return {"accuracy": worked.correct.mean(), "greedy": direct_greedy.correct.mean(),
            "strategy": worked.strategy.mean(),
            "valid": worked.valid_attempts.sum() / max(1, worked.attempts.sum())}


def look(pair: Pair, generator: dict, n_problems: int, samples: int, max_new_tokens: int) -> dict:
    """`shares` of the base on validation problems of a generator."""
    problems = pair.rules.problems("validation", n_problems, 0, generator)
    return shares(measure(pair, "base", problems, samples, max_new_tokens),
                  measure(pair, "base", problems, 1, max_new_tokens, temperature=0.0))


# --- facts ----------------------------------------------------------------------------------------

def stacked(found: Sequence[Measured], what: str) -> np.ndarray:
    """(seeds, problems, answers) of a field."""
    return np.stack([getattr(one, what) for one in found])


def facts(found: Sequence[Measured], base: Sequence[Measured] | None = None) -> dict:
    """Facts of an arm from what was measured of it, a seed each: name -> interval.

    base: of the base, in the same order, for an arm that is compared with it.
    """
    def mean(what):
        return stats.mean_interval(stacked(found, what).mean(-1))
    tokens = stacked(found, "tokens").mean(-1)
    out = {"pass_at_k[k=1]": mean("correct"), "trace_pass_at_k[k=1]": mean("trace"),
           "pass_at_k[k=1, variant=strict]": mean("strict"),
           "pass_at_k[k=1, variant=lenient]": mean("lenient"),
           "strategy_share": mean("strategy"),
           "valid_attempts": stats.share(stacked(found, "valid_attempts").sum(-1),
                                         stacked(found, "attempts").sum(-1)),
           "tokens_per_answer": stats.interval(lambda m: m, tokens)}
    if base is not None:
        when, how = stats.gain_parts(*((stacked(x, "strategy"), stacked(x, "correct"))
                                       for x in (base, found)))
        steps = [stacked(x, what).sum(-1) for x in (found, base)
                 for what in ("valid_attempts", "attempts")]
        out |= {"gain": gain(found, base), "gain_when": when, "gain_how": how}
        if steps[1].any() and steps[3].any():
            out["valid_attempts_change"] = stats.interval(
                lambda valid, tried, before, tries: valid / tried - before / tries, *steps)
    return out


def gain(found: Sequence[Measured], other: Sequence[Measured]) -> stats.Interval:
    """Accuracy minus that of others on the same problems, paired."""
    return stats.difference(*(stacked(x, "correct").mean(-1) for x in (found, other)))


def share_of_gain(found: Sequence[Measured], base: Sequence[Measured],
                  full: Sequence[Measured]) -> stats.Interval | None:
    """Share of RL's gain, full minus base, that an arm has, paired; None where that gain is not
    clear of 0."""
    return stats.gap_recovered(*(stacked(x, "correct").mean(-1) for x in (found, base, full)))


def relative_gain(absent: tuple, present: tuple) -> stats.Interval | None:
    """What RL adds to one model as a share of what it adds to another, each over its own base.

    absent, present: (after RL, base), a list of `Measured` each, a seed each; each model has
    problems of its own, so that problems are drawn for either and seeds for both. None where the
    gain of `present` is not clear of 0.
    """
    gains = [stacked(after, "correct").mean(-1) - stacked(before, "correct").mean(-1)
             for after, before in (absent, present)]
    if stats.interval(lambda m: m, gains[1]).low <= 0:
        return None

    def share(seeds, *problems):
        part, whole = (np.einsum("bs,sp,bp->b", seeds, gain, drawn) / gain.shape[1]
                       for gain, drawn in zip(gains, problems, strict=True))
        return np.where(whole > 0, part, np.nan) / np.where(whole > 0, whole, 1)
    return stats.Interval(*map(float, stats.bootstrap(
        share, len(gains[0]), *(gain.shape[1] for gain in gains))))


def divergences(found: Sequence[dict[str, Divergence]]) -> dict:
    """Facts of how far RL moved a model, from `divergence.of_answers`, a seed each."""
    nats = {place: [np.stack([getattr(one[place], what) for one in found])
                    for what in ("nats", "tokens")] for place in POSITIONS}
    return {f"kl[position={place}]": stats.interval(np.divide, *x) for place, x in nats.items()
            if x[1].any()}


def keep(record: Recorder, family: str, arm: str, found: dict, variant: str = "",
         **size: object) -> None:
    """Records the facts of an arm; variant: what is special about the problems, before "strict" or
    "lenient". Those two are left out for an arm whose name has a variant."""
    named = "base" if arm == "base" else real_rl.named(arm)
    for fact, interval in found.items():
        plain, _, score = fact.removesuffix("]").partition(", variant=")
        if score and "variant=" in named:
            continue
        told = " ".join(filter(None, (variant, score)))
        record.fact(family, named, plain + "]" * ("[" in plain), interval,
                    **({"variant": told} if told else {}), **size)


def curves(logs: dict, role: str) -> list[dict]:
    """What `results.frame` takes, from the logs of `real_rl` for a model: a row for each step, arm
    and part (in place of the family), the mean over seeds, the lowest and the highest."""
    by_arm = {}
    for key, log in logs.items():
        where, arm, _ = key.split()
        if where == role and "curve" in log and not arm.startswith("direct-"):
            by_arm.setdefault(arm, []).append(log["curve"])
    rows = []
    for arm, runs in by_arm.items():
        for points in zip(*runs, strict=True):
            values = {"right": [p["accuracy"] for p in points],
                      "work everything out": [p["strategy"] for p in points],
                      "steps that hold": [p["valid_attempts"] / p["attempts"] for p in points
                                          if p["attempts"]]}
            rows += [{"family": part, "model": real_rl.named(arm), "quantity": "accuracy",
                      "step": points[0]["step"], "value": float(np.mean(x)), "low": min(x),
                      "high": max(x), "seeds": [p["seed"] for p in points]}
                     for part, x in values.items() if x]
    return rows


def axis(record: Recorder, families: Sequence[str], lab: str = "lab") -> dict:
    """family -> {"skill": the base's share of valid steps before RL, "when", "how": the two parts
    of RL's gain}, each an Interval: of a record, and of the lab's families where its records are
    here."""
    records = {family: (record, record) for family in families}
    if (ROOT / lab / "03.json").exists():
        records |= {family: tuple(Recorder.reopen(lab, chapter) for chapter in ("00", "03"))
                    for family in bounds.FAMILIES}
    found = {family: {"skill": first.get(family, "base", "valid_attempts"),
                      "when": second.get(family, "thinking", "gain_when"),
                      "how": second.get(family, "thinking", "gain_how")}
             for family, (first, second) in records.items()}
    return {family: {what: list(x) for what, x in parts.items()}
            for family, parts in found.items() if None not in parts.values()}


def word_tasks(counts: dict[str, int]) -> dict[str, list]:
    """{task: its first so many test problems}, without tasks of which none are asked, and without
    gsm8k where its file is not here, which it says."""
    if counts.get("gsm8k") and not (gsm8k.folder() / "test.jsonl").is_file():
        print(f"gsm8k is left out: {gsm8k.folder()} lacks test.jsonl of {gsm8k.SOURCE}.")
        counts = counts | {"gsm8k": 0}
    return {task: tasks.load(task).problems("test", n, 0, tasks.load(task).GENERATOR)
            for task, n in counts.items() if n}
