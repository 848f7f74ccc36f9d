"""Chapter 2: what a base model reaches by sampling alone, and how likely it finds given traces.

Every draw has a `stream` of random numbers of its own. Two models that shared theirs would write
the same trace more often than chance, and the chapter counts matching traces.

A trace is an answer's text. Its tokens are those of the model that reads it.
"""

import itertools
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from locksmith import (
    decoding,
    engine,
    parallel,
    prose,
    rollouts,
    sharding,
    stats,
    tasks,
    vocabulary,
)
from locksmith.loading import Model, Pair
from locksmith.rollouts import Answers

STREAMS = {"base": 0, "thinking": 1, "again": 2, "matched": 3, "methods": 4, "entropy": 5}
# Answers of a shard of `draw`: whole batches of the engine, so that each answer has the neighbours
# that it has anyhow, and the same bits. (Of large models, whose answers `rollouts` keeps, a shard's
# are drawn 256 at a time, and without shards as many whole problems as 256 hold: the last bit of a
# product may differ.)
SHARD = 8 * 384
TRAIN = 10  # training problems, for each problem, whose answers a guess in words may give
# What the selectors of `decoding.cot_decoding` are called in arms.yml.
PATHS = {"delta": "cot-decoding", "delta_sum": "cot-decoding-summed",
         "longest": "cot-longest-path", "random": "cot-random-path"}


class Guesses(NamedTuple):
    """correct, trace (P, n) bool of n guesses a problem."""
    correct: np.ndarray
    trace: np.ndarray


class MethodOutcome(NamedTuple):
    """What a method chose: correct and trace (P,), shares of its chains; tokens (P,), generated for
    one answer; log, name -> (P,) of what the method reports about itself."""
    correct: np.ndarray
    trace: np.ndarray
    tokens: np.ndarray
    log: dict


class Likelihood(NamedTuple):
    """Of traces under the base, each (P, traces a problem) with NaN where there is none: per_token
    and total log-probability in nats, likeliest: share of tokens that the base held likeliest.
    tokens: (label, log-probability, held likeliest) of every token of every trace."""
    per_token: np.ndarray
    total: np.ndarray
    likeliest: np.ndarray
    tokens: list


def first_asked(pairs: dict, role: str) -> dict:
    """Key of each pair -> key of the first pair on its task with the very same model in a role:
    its own, but where one base stands before several runs of RL and need not be asked again."""
    firsts = {}
    return {key: firsts.setdefault((pair.task, pair.name(role), pair.folder(role)), key)
            for key, pair in pairs.items()}


def stream_seed(seed: int, stream: str) -> int:
    """The engine's seed for one of STREAMS: no two draws of a chapter share random numbers."""
    return 1000 * STREAMS[stream] + seed


# --- the work of one process ----------------------------------------------------------------------


def draw(pair: Pair, role: str, n_problems: int, n: int, max_new_tokens: int,
         temperature: float = 1.0, stream: str | None = None,
         only: Sequence | None = None, split: str = "test") -> Answers:
    """n answers of a model to each problem of a split, or to those whose indices are `only`; their
    rollouts are as small as they can be, because they travel between processes."""
    model, problems = pair.load(role), pair.problems(n_problems, split)
    only = list(range(n_problems)) if only is None else [int(i) for i in only]
    answers = rollouts.answer(
        model, pair.rules, [problems[i] for i in only], n, max_new_tokens=max_new_tokens,
        temperature=temperature, seed=stream_seed(pair.seed, stream or role), keys=only)
    return replace(answers, rollouts=rollouts.compact(answers.rollouts))


def in_shards(size: int = SHARD, *, n_problems: int, n: int, only: Sequence | None = None,
              **job: object) -> dict[str, dict]:
    """A job of `draw` in shards of so many answers: "answers 0 to 3071" -> job of `draw_rows`."""
    job |= dict(n_problems=n_problems, n=n, only=only)
    total = (n_problems if only is None else len(only)) * n
    shards = [range(start, min(start + size, total)) for start in range(0, max(total, 1), size)]
    return {f"answers {rows.start} to {rows.stop - 1}": job | {"rows": rows} for rows in shards}


def draw_rows(pair: Pair, role: str, n_problems: int, n: int, max_new_tokens: int, rows: range,
              temperature: float = 1.0, stream: str | None = None, only: Sequence | None = None,
              split: str = "test") -> Answers:
    """What `draw` finds, but of all answers, in the order of problems, only some `rows`; each has
    its problem to itself."""
    model, problems = pair.load(role), pair.problems(n_problems, split)
    only = range(n_problems) if only is None else [int(i) for i in only]
    seed = stream_seed(pair.seed, stream or role)
    drawn = [(only[row // n], row % n) for row in rows]
    answers = rollouts.answer(
        model, pair.rules, [problems[i] for i, _ in drawn], max_new_tokens=max_new_tokens,
        temperature=temperature, seed=seed,
        keys=[sharding.key_of(seed, i, sample) for i, sample in drawn])
    return replace(answers, rollouts=rollouts.compact(answers.rollouts))


draw.in_parts = parallel.InParts(in_shards, draw_rows,
                                 lambda parts, n, **job: sharding.pooled(parts, n))


def guesses(pair: Pair, n_problems: int, n: int, only: Sequence | None = None) -> Guesses:
    """The control without a strategy, on all test problems or those whose indices are `only`."""
    task, problems = pair.rules, pair.problems(n_problems)
    train = pair.problems(TRAIN * n_problems, "train")
    grades = []
    for i in range(n_problems) if only is None else only:
        rng = random.Random(f"guess {pair.seed} {problems[i].key}")
        grades.append([task.grade(problems[i], task.guess(problems[i], rng, train))
                       for _ in range(n)])
    return Guesses(*(np.array([[getattr(g, level) for g in row] for row in grades])
                     for level in Guesses._fields))


def matched_temperature(pair: Pair, n_problems: int, max_new_tokens: int,
                        temperature: float = 1.0) -> tuple[float, float, float]:
    """(temperature, entropy reached, the base's entropy): the temperature at which the thinking
    model is as undecided as the base at `temperature`, in nats a token."""
    problems, seed = pair.problems(n_problems), stream_seed(pair.seed, "entropy")
    base, thinking = pair.load("base"), pair.load("thinking")
    target = decoding.mean_entropy(engine.sample(
        base.net, [base.ask(pair.rules, p) for p in problems], 16, stop=base.stop, seed=seed,
        max_new_tokens=max_new_tokens, temperature=temperature))
    return *decoding.entropy_matched_temperature(
        thinking.net, [thinking.ask(pair.rules, p) for p in problems], target, high=3.0,
        stop=thinking.stop, seed=seed, max_new_tokens=max_new_tokens), target


def likelihoods(pair: Pair, n_problems: int, traces: dict, width: int) -> dict:
    """kind -> `Likelihood` under the base of traces, kind -> [(index of the problem, text)], with
    at most `width` of a kind and problem."""
    model, task, problems = pair.measured("base"), pair.rules, pair.problems(n_problems)
    out = {}
    for kind, pairs in traces.items():
        ids, shape = [model.encode(text) for _, text in pairs], (n_problems, width)
        prompts = [model.ask(task, problems[i]) for i, _ in pairs]
        logprobs, ranks = engine.score(model.net, prompts, ids, ranks=True) if pairs else ([], [])
        first = [(rank == 0).double() for rank in ranks]
        tokens = [token for (_, text), *trace in zip(pairs, ids, logprobs, first)
                  for token in zip(labels(model, task, text, trace[0]),
                                   *(values.tolist() for values in trace[1:]))]
        out[kind] = Likelihood(
            table(pairs, [float(x.mean()) for x in logprobs], shape),
            table(pairs, [float(x.double().sum()) for x in logprobs], shape),
            table(pairs, [float(x.mean()) for x in first], shape), tokens)
    return out


def apply(pair: Pair, method: str, n_problems: int, max_new_tokens: int, chains: int = 1,
          **options: object) -> dict:
    """Arm -> `MethodOutcome` of a method of `decoding` on the base, for each of its selectors.

    chains: independent answers a problem, over which accuracy and tokens are averaged.
    """
    model, task = pair.measured("base"), pair.rules
    chosen = [p for p in pair.problems(n_problems) for _ in range(chains)]
    if method == "cot_decoding":
        options["read_answer"] = lambda i, ids: read_answer(model, task, chosen[i], ids)
    elif method != "greedy":
        options["seed"] = stream_seed(pair.seed, "methods")
    selected = getattr(decoding, method)(model.net, [model.ask(task, p) for p in chosen],
                                         max_new_tokens=max_new_tokens, stop=model.stop, **options)
    selected = {method: selected} if isinstance(selected, decoding.Chosen) else selected
    return {PATHS.get(name, name.replace("_", "-")): outcome(
        [task.grade(p, model.decode(ids)) for p, ids in zip(chosen, one.continuations)], one,
        chains)
        for name, one in selected.items()}


def outcome(grades: list, chosen: decoding.Chosen, chains: int = 1) -> MethodOutcome:
    """`MethodOutcome` of a `decoding.Chosen` and its grades, both chain by chain a problem."""
    return MethodOutcome(*(np.mean(np.reshape(x, (-1, chains)), 1, dtype=float)
                           for x in ([g.correct for g in grades], [g.trace for g in grades],
                                     chosen.tokens)), chosen.log)


def read_answer(model: Model, task: ModuleType, problem: Any, ids: list) -> tuple[object, list]:
    """(canonical answer or None, indices in `ids` of the tokens that state it)."""
    text = model.decode(ids)
    answer = task.grade(problem, text).answer
    return (None, []) if answer is None else (answer, [
        i for i, places in enumerate(touched(model, ids, task.stated(text))) if places])


# --- choosing among samples -----------------------------------------------------------------------

def averaged(answers: Answers) -> MethodOutcome:
    """`MethodOutcome` of one answer, taken at random among those there are."""
    return MethodOutcome(answers.correct.mean(1), answers.trace.mean(1), answers.lengths.mean(1),
                         {})


def hardest(correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(chosen, solved), (seeds, problems) bool, from (seeds, problems, samples): the half of a
    seed's problems that the first half of the samples solves least often, ties in their order; and
    which problems the other half solves, so that choosing and judging share no sample."""
    half = correct.shape[-1] // 2
    ranks = correct[..., :half].sum(-1).argsort(1, kind="stable").argsort(1)
    return ranks < correct.shape[1] // 2, correct[..., half:].any(-1)


def select(answers: Answers, rows: list) -> dict:
    """Arm -> `MethodOutcome` of the selectors that need no grader, among the rollouts `rows`."""
    votes = [grade.answer for row in answers.grades for grade in row]
    picks = {"majority": decoding.majority(answers.rollouts, votes, rows),
             "best-of-n": decoding.best_by_likelihood(answers.rollouts, rows=rows),
             "best-of-n-per-token": decoding.best_by_likelihood(answers.rollouts, True, rows)}
    return {arm: outcome([grades[ids.index(one)] for grades, ids, one in
                          zip(answers.grades, answers.ids, pick.continuations)], pick)
            for arm, pick in picks.items()}


def first(answers: Answers, n: int) -> list:
    """The rows of the first n samples of each problem."""
    return np.flatnonzero(answers.rollouts.sample.numpy() < n).tolist()


def solved_again(shape: tuple[int, int], seeds: Sequence[int], found: dict) -> np.ndarray:
    """`shape` (seeds, problems) bool: whether further samples solve a problem; found: seed ->
    (indices of its problems that were drawn again, their answers)."""
    solved = np.zeros(shape, bool)
    for i, seed in enumerate(seeds):
        if seed in found:
            only, answers = found[seed]
            solved[i, only] = answers.correct.any(-1)
    return solved


# --- traces --------------------------------------------------------------------------------------


def shuffled(task: ModuleType, text: str, rng: random.Random) -> str | None:
    """The same steps in another order, what stands between them in its place; None where there is
    no other."""
    parts = task.steps(text)
    steps = [text[step.start:step.end] for step in parts]
    if len(set(steps)) < 2:
        return None
    new = steps
    while new == steps:
        new = rng.sample(steps, len(steps))
    edges = [0, *(edge for step in parts for edge in (step.start, step.end)), len(text)]
    between = [text[a:b] for a, b in zip(edges[::2], edges[1::2])]
    return "".join(gap + step for gap, step in zip(between, [*new, ""]))


def corrupted(text: str, rng: random.Random) -> str | None:
    """One result, behind a "=", changed to another number of the lab's;
    None where there is none."""
    places = list(re.finditer(rf"(?<==)( ?)({prose.NUMBER})", text))
    if not places:
        return None
    place = rng.choice(places)
    wrong = rng.choice([number for number in vocabulary.NUMBERS if number != place[2]])
    return text[:place.start(2)] + wrong + text[place.end(2):]


def successes(answers: Answers, n: int) -> list:
    """(index of the problem, sound trace), the first n a problem that can be shuffled and
    corrupted."""
    task, pairs = tasks.load(answers.task), []
    for i, (texts, sound) in enumerate(zip(answers.texts, answers.trace)):
        usable = (text for text, good in zip(texts, sound) if good
                  and shuffled(task, text, random.Random(0)) and corrupted(text, random.Random(0)))
        pairs += [(i, text) for text in itertools.islice(usable, n)]
    return pairs


def variants(thinking: Answers, base: Answers, n: int, seed: int) -> dict:
    """Arm -> [(index of the problem, text)]: n sound traces a problem of either model, and the
    thinking model's with their steps shuffled and with one result made wrong."""
    task, traces, rng = tasks.load(thinking.task), successes(thinking, n), random.Random(seed)
    return {"thinking-traces": traces, "base-traces": successes(base, n),
            "shuffled-traces": [(i, shuffled(task, text, rng)) for i, text in traces],
            "corrupted-traces": [(i, corrupted(text, rng)) for i, text in traces]}


def touched(model: Model, ids: list, spans: list) -> list:
    """For each token the indices of those spans [start, end) of the text that it writes part of."""
    return [[j for j, (start, end) in enumerate(spans) if a < end and start < b]
            for a, b in model.spans(ids)]


def labels(model: Model, task: ModuleType, text: str, ids: list) -> list[str]:
    """Per token of a text: the kind of step that it opens ("step opening" where kinds are not
    known), otherwise "execute". The space before a step is part of its opening, for some tokenizers
    make it a token of its own, and with it the choice between a word and a number falls."""
    opened, places = _opened(model, task, text, ids)
    return [opened[some[0]].kind or "step opening" if some else "execute" for some in places]


def opens(model: Model, task: ModuleType, text: str, ids: list) -> list[bool]:
    """Per token of a text: whether it is the first of a step's opening, as `labels` has it."""
    _, places = _opened(model, task, text, ids)
    return [bool(some) and some[0] not in before for before, some in zip([[], *places], places)]


def _opened(model, task, text, ids):
    """The openings of a text's steps, and for each token the indices of those it writes part of."""
    opened = tasks.openings(task, text)
    return opened, touched(model, ids, [(len(text[:step.start].rstrip()), step.end)
                                        for step in opened])


def behaviours(answers: Answers) -> list:
    """P lists of n sequences of kinds of steps, a letter a step, such as "tcwcs"."""
    return [["".join((kind or "?")[0] for kind in grade.behaviours) for grade in row]
            for row in answers.grades]


def matches(thinking: list, base: list, ks: np.ndarray) -> dict:
    """(arm, against) -> (P, ks): the chance that one of the samples of `thinking`, P lists, is
    among k of `base`; that one of the base's own is among k others; and that one of `thinking` is
    among k of the base's for another problem."""
    return {("base", "thinking"): found_among(thinking, base, ks),
            ("base", "base"): found_among(base, base, ks, itself=True),
            ("other-problem", "thinking"): found_among(thinking, base[1:] + base[:1], ks)}


def found_among(mine: list, theirs: list, ks: np.ndarray, itself: bool = False) -> np.ndarray:
    """Chance that a sample of `mine` is among k of `theirs`: lists (P) of lists -> (P, ks).

    itself: `mine` is `theirs`, and a sample does not count as its own match.
    """
    shares = []
    for a, b in zip(mine, theirs):
        counts, n = Counter(b), len(b) - itself
        c = np.array([counts[x] - itself for x in a])
        shares.append(stats.pass_at_k(n, c[:, None], np.minimum(ks, n)).mean(0))
    return np.array(shares)


# --- means of what is not everywhere -------------------------------------------------------------


def table(traces: list, values: list, shape: tuple[int, int]) -> np.ndarray:
    """One value a trace of `traces`, [(index of the problem, ...)], as (P, traces),
    NaN for none."""
    out = np.full(shape, np.nan)
    for (i, _), value in zip(traces, values, strict=True):
        out[i, np.isnan(out[i]).argmax()] = value
    return out


def lead(values: np.ndarray, against: np.ndarray) -> np.ndarray:
    """Mean of a problem's traces minus that of others of its: two (seeds, problems, traces), NaN
    for none -> (seeds, problems, 1), NaN for a problem that lacks either."""
    means = []
    for some in (values, against):
        there = ~np.isnan(some)
        with np.errstate(invalid="ignore"):
            means.append(np.where(there, some, 0).sum(-1, keepdims=True)
                         / there.sum(-1, keepdims=True))
    return means[0] - means[1]


def mean_of_some(values: np.ndarray) -> stats.Interval:
    """Mean over the traces there are, with interval: (seeds, problems, traces), NaN for none."""
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return stats.interval(np.divide, np.where(there, values, 0).sum(-1), there.sum(-1))
