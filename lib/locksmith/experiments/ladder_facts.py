"""Chapter 7: what RL adds on the rungs of `ladders`, and whether it taught or only used.

Every model answers test problems at temperature 1. Scores of a place on a ladder are stacked to
(seeds, problems, answers), and everything is paired by seed and problem. Two things that an answer
may do depend on the family, as the ladder does:

              unread                           invented
    Countdown goes back after a check          tries again straight after a failed check, with no
                                               word of going back
    chain     writes every step                has both results although a step was never written

Unread is what the exposure is of; invented is what it is for, without it: no document of either
family has that.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from locksmith import corpus, grammar, params, results, rollouts, stats
from locksmith.experiments import ladders, sampling
from locksmith.experiments.ladders import Rung
from locksmith.experiments.two_models import relative_gain, stacked
from locksmith.loading import Pair

# Rungs of the ladders "start" and "depth", as arms.yml names what was trained there.
STARTS = {"easier": "easier-problems", "harder": "harder-problems", "contrast": "equal-groups",
          "plateau": "plateau"}
DEPTHS = {"range": "thinking", "mixed": "rl-mixed", "edge": "rl-at-edge", "taught": "sft-at-edge",
          "read": "edge-exposed-after-rl"}
PLACES = ("in range", "edge", "beyond")  # of problems by depth
ORDINARY = "ordinary"  # problems as chapters ask them


class Marks(NamedTuple):
    """n answers to each of P problems: (P, n) bool; attempts and valid_attempts (P, n) int;
    invention: the first right answer that invents, behind its problem, or ""."""
    correct: np.ndarray
    trace: np.ndarray
    strategy: np.ndarray
    unread: np.ndarray
    invented: np.ndarray
    attempts: np.ndarray
    valid_attempts: np.ndarray
    invention: str


def places(rung: Rung) -> tuple[str, ...]:
    """Where the models of a rung are measured: on what problems."""
    if rung.ladder == "depth":
        return PLACES
    return (rung.value,) if rung.value in ("easier", "harder") else (ORDINARY,)


def problems(rungs: Sequence[Rung], n: int, depth_n: int) -> dict[tuple[str, str], list]:
    """(family, place) -> test problems, n of them, on the ladder of depths depth_n."""
    asked = {}
    for rung in rungs:
        pair = rung.pair(0)
        for i, place in enumerate(places(rung)):
            if (rung.family, place) in asked:
                continue
            if rung.ladder == "depth":
                depth = None if i == 0 else ladders.edge(pair.generator) + i - 1
                asked[rung.family, place] = pair.problems(depth_n, depth=depth)
            elif place == ORDINARY:
                asked[rung.family, place] = pair.problems(n)
            else:
                changes, first = start_setting(rung), _config(rung)["first_test"]
                asked[rung.family, place] = pair.rules.problems(
                    "test", first + n, 0, {**pair.generator, **changes})[first:]
    return asked


def start_setting(rung: Rung) -> dict:
    """What a rung of easier or harder problems changed of its family's generator, as its run
    recorded it."""
    record = results.read(_config(rung)["profile"], f"train/{rung.family}_ladders")
    found = record["extra"]["starts"][rung.value]
    return found["settings"][found["chosen"]]


def _config(rung):
    """The parameters of the profile that trained a rung's models."""
    return params.load(params.load(rung.profile)["checkpoints"])


def jobs(rungs: Sequence[Rung], seeds: Sequence[int], asked: dict, n: int, base_n: int,
         max_new_tokens: int) -> dict[tuple, dict]:
    """(family, model, place, seed) -> what `measure` takes, each model once a place, those that
    write most first. base_n: answers of a base, and of every model on the ladder of depths; n: of
    others."""
    out = {}
    for role in ("thinking", "base"):
        for rung in rungs:
            size = n if role == "thinking" and rung.ladder != "depth" else base_n
            for place in places(rung):
                for seed in seeds:
                    out[rung.family, getattr(rung, role), place, seed] = dict(
                        pair=rung.pair(seed), role=role, problems=asked[rung.family, place],
                        n=size, max_new_tokens=max_new_tokens)
    return out


def sides(found: dict, rungs: Sequence[Rung], seeds: Sequence[int], family: str,
          ladder: str) -> dict:
    """Value of each rung, or on the ladder of depths (value, place) -> (after RL, before), lists of
    `Marks`, a seed each; found: what `jobs` gave."""
    out = {}
    for rung in rungs:
        if (rung.family, rung.ladder) == (family, ladder):
            for place in places(rung):
                key = (rung.value, place) if ladder == "depth" else rung.value
                out[key] = tuple([found[family, model, place, seed] for seed in seeds]
                                 for model in (rung.thinking, rung.base))
    return out


def measure(pair: Pair, role: str, problems: list, n: int, max_new_tokens: int) -> Marks:
    """`Marks` of the model in a role, n answers a problem."""
    drawn = rollouts.answer(pair.load(role), pair.rules, problems, n, max_new_tokens=max_new_tokens,
                            seed=sampling.stream_seed(pair.seed, role))
    unread, invented = (np.array([[does(problem, text) for text in row]
                                  for problem, row in zip(problems, drawn.texts)])
                        for does in (UNREAD[pair.task], INVENTED[pair.task]))
    shown = [f"{pair.rules.prompt(problems[i])} {drawn.texts[i][s]}"
             for i, s in np.argwhere(invented & drawn.correct)[:1]]
    return Marks(drawn.correct, drawn.trace, drawn.strategy, unread, invented,
                    drawn.table("attempts"), drawn.table("valid_attempts"), "".join(shown))


def solved_within(pair: Pair, role: str, problems: list, only: Sequence[int], n: int,
                  max_new_tokens: int, first: int = 256) -> np.ndarray:
    """(P,) bool: which of the problems `only`, indices into `problems`, the model in a role solves
    within n answers. They are drawn in rounds, `first` and then as many as so far, until a problem
    is solved."""
    model, solved, drawn = pair.load(role), np.zeros(len(problems), bool), 0
    left = [int(i) for i in only]
    while left and drawn < n:
        size = min(n - drawn, max(first, drawn))
        seed = sampling.stream_seed(pair.seed, "again") + 10_000 * drawn
        found = rollouts.answer(model, pair.rules, [problems[i] for i in left], size,
                                max_new_tokens=max_new_tokens, seed=seed, keys=left)
        solved[left] = found.correct.any(1)
        left, drawn = [i for i in left if not solved[i]], drawn + size
    return solved


def goes_back(problem: Any, text: str) -> bool:
    """Whether a trace has a backtrack."""
    return any(kind == "wait" for kind, _ in grammar.steps(grammar.words(text)))


def tries_on(problem: Any, text: str) -> bool:
    """Whether an attempt follows a failed check with nothing between them."""
    found = grammar.steps(grammar.words(text))
    return any(kind == "check" and said[-1:] == ["no"] and after == "try"
               for (kind, said), (after, _) in zip(found, found[1:]))


def in_the_head(problem: Any, text: str) -> bool:
    """Whether a chain's answer is right although not all steps are written."""
    task = corpus.FAMILIES["chain"]
    return not task.strategy(problem, text) and task.grade(problem, text).correct


UNREAD = {"countdown": goes_back, "chain": corpus.FAMILIES["chain"].strategy}
INVENTED = {"countdown": tries_on, "chain": in_the_head}


def curves(rungs: Sequence[Rung], seeds: Sequence[int], steps: int = 10) -> list[dict]:
    """Of RL on each exposure, and to the plateau: rows with family, rung, step and accuracy, the
    mean over seeds and so many steps up to this one."""
    rows = []
    for rung in rungs:
        if rung.ladder == "exposure" or rung.value == "plateau":
            each = np.array([[point["accuracy"] for point in rung.curve(seed)] for seed in seeds])
            name = "plateau" if rung.value == "plateau" else f"{100 * rung.value:.2g} %"
            ends = [*range(steps, each.shape[1], steps), each.shape[1]]
            rows += [{"family": rung.family, "rung": name, "step": end,
                      "accuracy": float(each[:, max(0, end - steps):end].mean())} for end in ends]
    return rows


# --- scores ---------------------------------------------------------------------------------------

def means(found: Sequence[Marks], what: str) -> np.ndarray:
    """(seeds, problems): the share of a problem's answers that have a field."""
    return stacked(found, what).mean(-1)


def gains(after: Sequence[Marks], before: Sequence[Marks],
          what: str = "correct") -> np.ndarray:
    """(seeds, problems): what RL changed, one model's share of answers minus the other's."""
    return means(after, what) - means(before, what)


def change(after: Sequence[Marks], before: Sequence[Marks], what: str) -> stats.Interval:
    """Interval of `gains`. Where no answer did it before, it is that of a share, so that nothing
    seen among a few hundred problems does not count as certainty."""
    if stacked(before, what).any():
        return stats.difference(means(after, what), means(before, what))
    return stats.mean_interval(means(after, what))


def share_of(gain: np.ndarray, full: np.ndarray) -> stats.Interval | None:
    """Interval of one gain as a share of another, both (seeds, problems) on the same problems; None
    where the other is not clear of 0."""
    return stats.gap_recovered(gain, np.zeros(full.shape), full)


def slope(exposures: Sequence[float], gained: Sequence[np.ndarray],
          full: np.ndarray) -> stats.Interval | None:
    """What a tenfold of exposure adds to the share of the full gain: the least-squares slope over
    the logarithms to base 10 of exposures, of which 0 has none and is left out."""
    kept = [(np.log10(x), gain) for x, gain in zip(exposures, gained, strict=True) if x > 0]
    places = np.array([x for x, _ in kept])
    centred = places - places.mean()
    weights = centred / (centred ** 2).sum()
    return share_of(sum(w * gain for w, (_, gain) in zip(weights, kept)), full)


def contrast(correct: np.ndarray, group: int) -> stats.Interval:
    """Interval of the share of groups of so many answers that hold right and wrong ones, from
    (seeds, problems, n); fewer answers than a group make smaller groups."""
    n, right = correct.shape[-1], correct.sum(-1)
    group = min(group, n)
    some_right, some_wrong = (stats.pass_at_k(n, c, group) for c in (right, n - right))
    return stats.mean_interval(np.clip(some_right + some_wrong - 1, 0, 1))


# --- facts ----------------------------------------------------------------------------------------

def of_model(found: Sequence[Marks]) -> dict[str, stats.Interval]:
    """Facts of one model: name -> interval; a share of nothing is left out."""
    out = {"pass_at_k[k=1]": stats.mean_interval(means(found, "correct")),
           "trace_pass_at_k[k=1]": stats.mean_interval(means(found, "trace")),
           "strategy_share": stats.mean_interval(means(found, "strategy")),
           "unread_share": stats.mean_interval(means(found, "unread")),
           "invented_share": stats.mean_interval(means(found, "invented")),
           "valid_attempts": stats.share(stacked(found, "valid_attempts").mean(-1),
                                         stacked(found, "attempts").mean(-1))}
    return {name: interval for name, interval in out.items() if interval is not None}


def of_gain(after: Sequence[Marks], before: Sequence[Marks]) -> dict[str, stats.Interval]:
    """Facts of what RL changed, by name."""
    when, how = stats.gain_parts(*((stacked(side, "strategy"), stacked(side, "correct"))
                                   for side in (before, after)))
    out = {"gain": change(after, before, "correct"), "gain_when": when, "gain_how": how,
           "trace_gain": change(after, before, "trace"),
           "unread_change": change(after, before, "unread"),
           "invented_change": change(after, before, "invented")}
    steps = [means(side, what) for side in (after, before) for what in ("valid_attempts",
                                                                       "attempts")]
    if steps[1].any() and steps[3].any():
        with np.errstate(invalid="ignore"):  # a resample may hold no attempt
            out["valid_attempts_change"] = stats.interval(
                lambda valid, tried, held, tries: valid / tried - held / tries, *steps)
    return out


def keep(record: results.Recorder, family: str, arm: str, like: Sequence[Marks], found: dict,
         **given: object) -> None:
    """Records facts of an arm, each under the same conditions, with the size of `like`; those that
    are None are left out."""
    n_problems, n_samples = like[0].correct.shape
    for name, interval in found.items():
        record.fact(family, arm, name, interval, n_problems=n_problems, n_samples=n_samples,
                    **given)


def exposure(record: results.Recorder, family: str, rungs: dict, group: int) -> None:
    """Records a family's exposure ladder, its last rung both with its exposure and without.

    rungs: exposure -> (after RL, before), as of `sides`, from the lowest up; group: the answers
    that RL compares.
    """
    ways = list(rungs.values())
    full = {what: gains(*ways[-1], what) for what in ("correct", "trace")}
    for share, (after, before) in rungs.items():
        facts = of_model(after) | of_gain(after, before) | {
            "gain_share": share_of(gains(after, before), full["correct"]),
            "trace_gain_share": share_of(gains(after, before, "trace"), full["trace"])}
        of_base = of_model(before) | {
            "contrast_share": contrast(stacked(before, "correct"), group)}
        for given in [{"exposure": share}] + [{}] * (after is ways[-1][0]):
            keep(record, family, "base", before, of_base, **given)
            keep(record, family, "thinking", after, facts, **given)
    keep(record, family, "absent-after-rl", ways[0][0],
         {"gap_recovered": share_of(gains(*ways[0]), full["correct"]),
          "pass_at_k[k=1]": stats.mean_interval(means(ways[0][0], "correct"))})
    keep(record, family, "thinking", ways[0][0], {"gain_slope": slope(
        list(rungs), [gains(*way) for way in ways], full["correct"])})


def start(record: results.Recorder, family: str, rungs: dict, full: tuple, group: int) -> None:
    """Records the controls that start alike.

    rungs: one of STARTS -> (after RL, before), those with easier or harder problems on their own;
    full: the same of the full rung, on ordinary problems.
    """
    for value, (after, before) in rungs.items():
        own = value in ("easier", "harder")
        share = (relative_gain((after, before), full) if own else
                 share_of(gains(after, before), gains(*full)))
        keep(record, family, STARTS[value], after,
             of_model(after) | of_gain(after, before) | {"gain_share": share})
        keep(record, family, "base", before, {
            "pass_at_k[k=1]": stats.mean_interval(means(before, "correct")),
            "contrast_share": contrast(stacked(before, "correct"), group)}, variant=value)


def skill(record: results.Recorder, family: str, rungs: dict) -> None:
    """Records RL from bases stopped early: rungs, share of pre-training -> (after RL, before)."""
    for share, (after, before) in rungs.items():
        keep(record, family, "base", before, of_model(before), pretraining=share)
        keep(record, family, "thinking", after, of_model(after) | of_gain(after, before),
             pretraining=share)


def depth(record: results.Recorder, family: str, rungs: dict) -> None:
    """Records the depth ladder: rungs, (one of DEPTHS, one of PLACES) -> (after, before)."""
    for (value, place), (after, before) in rungs.items():
        if value in ("range", "read"):
            keep(record, family, "base" if value == "range" else "edge-exposed-base", before,
                 of_model(before), variant=place)
        keep(record, family, DEPTHS[value], after, of_model(after) | of_gain(after, before),
             variant=place)
    for place in PLACES:
        ways = rungs["read", place], rungs["edge", place]
        keep(record, family, DEPTHS["read"], ways[0][0],
             {"gain_lead": stats.difference(*(gains(*way) for way in ways))},
             against=DEPTHS["edge"], variant=place)


def solved(found: Sequence[Marks]) -> np.ndarray:
    """(seeds, problems) bool: whether one of the answers is right."""
    return stacked(found, "correct").any(-1)


def alone(solved: dict, base: np.ndarray, taught: np.ndarray) -> dict[str, stats.Interval]:
    """Arm -> interval of the share of problems that it solves and neither the base nor the
    fine-tuned model does; "any-rl" of all arms together. All are (seeds, problems) bool."""
    found = solved | {"any-rl": np.any(list(solved.values()), axis=0)}
    return {arm: stats.mean_interval(rows & ~base & ~taught) for arm, rows in found.items()}
