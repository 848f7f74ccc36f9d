"""Does a model know that it is wrong? Its own answers, read by a probe and steered along it.

The label is whether the answer that follows is right; it is read at several moments, and at every
step whether the step just written is valid. The control reads the same answers with an untrained
model: what the surface of a text gives away.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float

from locksmith import grammar, vocabulary
from locksmith.experiments import skills
from locksmith.experiments.directions import Target, means, noise, steer
from locksmith.experiments.places import Sizes, Text, finished, headline, steps_in_words, traces
from locksmith.experiments.probes import enough, score, score_shuffled
from locksmith.experiments.reading import stream
from locksmith.loading import Model, Pair
from locksmith.tasks import chain, countdown, name_of

MOMENTS = ("prompt", "first attempt", "last attempt", "answer", "answer unchecked", "step")
ARMS = ("correctness", "noise")  # directions that are steered


def calibration(scores: Float[np.ndarray, " answers"], y: Bool[np.ndarray, " answers"],
                bins: int = 10) -> tuple[float, list[tuple[float, float, int]]]:
    """(expected calibration error, rows of (mean probability, share true, n)) of log odds.

    Bins hold equally many scores; the error is the mean distance between the two, weighted by n.
    """
    p, y = 1 / (1 + np.exp(-np.asarray(scores))), np.asarray(y, float)
    rows = [(p[i].mean(), y[i].mean(), len(i))
            for i in np.array_split(np.argsort(p, kind="stable"), bins) if len(i)]
    return float(sum(abs(a - b) * n for a, b, n in rows) / len(y)), rows


# --- moments --------------------------------------------------------------------------------------

@dataclass
class Moments:
    """N moments of texts: moment (N,) str; text, place, problem (N,) int; right (N,) bool. Ordered
    by text, as the residual stream is read."""
    moment: np.ndarray
    text: np.ndarray
    place: np.ndarray
    right: np.ndarray
    problem: np.ndarray

    def positions(self, n_texts: int) -> list[list[int]]:
        return [self.place[self.text == i].tolist() for i in range(n_texts)]


def moments(task: ModuleType, model: Model, problems: list, texts: list[Text],
            grades: list) -> Moments | None:
    """Where to ask of a model's own answers whether they will be right; None where there is
    none."""
    find = _lab_moments if task.OPENINGS else _word_moments
    rows = [(m, i, place, right, text.problem) for i, (text, grade) in enumerate(zip(texts, grades))
            for m, place, right in find(task, model, problems[text.problem], text, grade)]
    if not rows:
        return None
    columns = list(map(np.array, zip(*rows, strict=True)))
    order = np.argsort(columns[1], kind="stable")
    return Moments(*(column[order] for column in columns))


def _lab_moments(task, model, problem, text, grade) -> Iterator[tuple]:
    """(moment, place, right) of a lab's trace, by its grammar."""
    for right, places in answers(task, problem, text.ids, text.start):
        for moment, place in places.items():
            yield moment, place, right
    ends = finished(task, torch.tensor(text.ids)).nonzero()[:, 0].tolist()
    valid = skills.valid_attempts(task, problem, vocabulary.decode(text.ids[text.start:]))
    if len(ends) == len(valid):  # a trace outside the grammar does not say which is which
        for place, holds in zip(ends, valid, strict=True):
            yield "step", place, holds


def _word_moments(task, model, problem, text, grade) -> Iterator[tuple]:
    """(moment, place, right) of an answer in words: attempts are equations, and the answer's
    moment is the last token before its value."""
    yield "prompt", text.start - 1, grade.correct
    steps = steps_in_words(task, model, text)
    if steps:
        yield "first attempt", steps[0][0], grade.correct
        yield "last attempt", steps[-1][0], grade.correct
    ids = text.ids[text.start:]
    for start, _ in task.stated(model.decode(ids)):
        value = next(k for k, (_, end) in enumerate(model.spans(ids)) if end > start)
        yield "answer", text.start + value - 1, grade.correct
    for place, holds, _ in steps:
        yield "step", place, holds


def answers(task: ModuleType, problem: Any, ids: list[int], start: int) -> list[tuple[bool, dict]]:
    """The answers of a lab's trace: (right, {moment: place}) each, from prompt and trace `ids`.

    "answer" is the last word of the conclusion's opening, before anything of the answer stands
    there; an answer is unchecked if no verdict stands right before that opening.
    """
    words = [vocabulary.VOCABULARY[i] for i in ids]
    done = finished(task, torch.tensor(ids)).tolist()
    out, attempts, i = [], [], start
    while i < len(words) and words[i] not in grammar.END:
        length = grammar.opening_length(words, i)
        if length and grammar.BEHAVIOUR[words[i]] == "conclude" and i + length < len(words):
            places = {"prompt": start - 1, "answer": i + length - 1}
            if attempts:
                places |= {"first attempt": attempts[0], "last attempt": attempts[-1]}
            if words[i - 1] not in ("yes", "no"):
                places["answer unchecked"] = places["answer"]
            out.append((_right(task, problem, words[i + length:], len(out)), places))
            attempts = []
        elif done[i]:
            attempts.append(i)
        i += max(length, 1)
    return out


def _right(task, problem, words, number):
    """Whether the answer that `words` begin with is right, as the `number`-th of its trace."""
    if name_of(task) == "chain":
        return number == 0 and words[:2] == [str(links[-1][3]) for links in chain.plan(problem)]
    return (number < len(problem.targets)
            and countdown.answer_value(words[:5], problem) == problem.targets[number])


# --- the work of one process ----------------------------------------------------------------------

class Knowing(NamedTuple):
    """Whether a model knows that it is wrong: scores, (moment, "own", "untrained" or "shuffled",
    layer) -> Scored; means: role -> Means of right and wrong at the answer, of the pair's models
    where the thinking one answered; dose: `directions.steer` along right minus wrong and along
    noise, or None."""
    scores: dict
    means: dict
    dose: dict | None


def uncertainty(pair: Pair, role: str, layer: int, sizes: Sizes, n_test: int,
                strengths: Sequence[float]) -> Knowing:
    """Probes of a model's own answers to validation problems, and steering along right minus wrong
    at the answer, everywhere, on test problems. sizes.documents: answers a problem."""
    problems = pair.problems(sizes.n_problems, "validation")
    model = pair.measured(role)
    texts, found = traces(model, pair.rules, problems, sizes.documents,
                          max_new_tokens=sizes.max_new_tokens, seed=pair.seed)
    grades = [grade for row in found.grades for grade in row]
    at = moments(pair.rules, model, problems, texts, grades)
    if at is None:
        return Knowing({}, {}, None)
    own, streams = _scores(model, texts, at, "own", layer)
    other, _ = _scores(pair.measured("untrained"), texts, at, "untrained", layer)
    vectors, forms = _directions(streams[layer], at, pair.seed), {}
    if vectors is None:
        return Knowing(own | other, forms, None)
    if role == "thinking":
        base = stream(pair.measured("base"), texts, at, [layer])
        forms = {"thinking": _means(streams[layer], at, sizes.n_problems),
                 "base": _means(base[layer], at, sizes.n_problems)}
    target = Target(headline(pair.rules), layer, "all")
    return Knowing(own | other, forms, steer(pair, role, target, vectors, strengths, n_test,
                                             sizes.max_new_tokens))


def _scores(reader, texts, at, name, layer):
    """(scores of every moment by a reader, its streams)."""
    streams, out = stream(reader, texts, at), {}
    for moment in MOMENTS:
        rows = at.moment == moment
        y, groups = at.right[rows].astype(bool), at.problem[rows]
        if not enough(y, groups):
            continue
        for one, x in streams.items():
            out[moment, name, one] = score(x[rows], y, groups)
        if name == "own":
            out[moment, "shuffled", layer] = score_shuffled(streams[layer][rows], y, groups)
    return out, streams


def _means(x, at, n_problems):
    """`Means` of right against wrong at the answer in x (N, D)."""
    rows = at.moment == "answer"
    right = at.right.astype(bool)
    return means(x, rows & right, rows & ~right, at.problem, n_problems)


def _directions(x, at, seed):
    """Right minus wrong at the answer in x (N, D), and noise, both as long as the stream; or
    None."""
    rows = at.moment == "answer"
    y = at.right[rows].astype(bool)
    if not enough(y, at.problem[rows]):
        return None
    direction = x[rows][y].mean(0) - x[rows][~y].mean(0)
    direction *= float(np.linalg.norm(x[rows], axis=1).mean()) / np.linalg.norm(direction)
    return dict(zip(ARMS, (direction, noise(direction, seed))))
