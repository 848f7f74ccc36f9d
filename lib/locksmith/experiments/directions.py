"""Behaviours as directions: differences of means, how alike two are, and what adding one does.

A vector of `point` contrast is the mean over the places before a behaviour minus the mean over all
places (Venhoff et al., arXiv 2506.18167; Ward et al., arXiv 2507.12638, appendix A, subtract the
mean over all tokens). One of `choice` contrast compares the two outcomes of a choice. They are
kept as sums a problem, so that intervals can leave problems out.

Dose-response: how often the behaviour comes against the strength at which a vector is added. In the
lab the share of steps that are the behaviour, all arms in one batch with common random numbers; in
words the exact probability that the text goes on with it, where it is a choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from locksmith import activations, prose, rollouts, stats, steering
from locksmith.experiments import next_words
from locksmith.experiments.places import (
    Places,
    Sizes,
    asked,
    attempts,
    documents,
    gate,
    places,
    works_out,
)
from locksmith.experiments.probes import Scored, auroc, enough, score
from locksmith.loading import Model, Pair

# What is counted of a trace: openings of the behaviour among all (in words: whether it is worked
# out), and their number; whether it is right; share of attempts (or equations) that stood there
# before, and that are valid. The first alone is known where nothing is sampled.
COUNTS = ("rate", "opened", "correct", "tokens", "repeated", "truncated", "valid")


EXACT = 20  # problems on which a layer is chosen by exact rates


class Target(NamedTuple):
    """What is steered: towards a behaviour, after which block (or blocks, one a vector), at
    "choice" places or at "all"."""
    behaviour: str
    layer: int | Sequence[int]
    where: str = "choice"


# --- vectors --------------------------------------------------------------------------------------

@dataclass
class Means:
    """Sums a problem of the residual stream over two sets of points, from which a vector comes.

    up, down: (P, D) float64 sums; n_up, n_down: (P,) counts.
    """
    up: np.ndarray
    down: np.ndarray
    n_up: np.ndarray
    n_down: np.ndarray

    def vector(
        self, weights: Float[np.ndarray, "weightings problems"] | None = None,
    ) -> Float[np.ndarray, "... width"]:
        """Difference of means, or one for each weighting of the problems."""
        w = np.ones((1, len(self.up))) if weights is None else np.asarray(weights, float)
        out = (w @ self.up / np.maximum(w @ self.n_up, 1e-9)[:, None]
               - w @ self.down / np.maximum(w @ self.n_down, 1e-9)[:, None])
        return out[0] if weights is None else out


def means(x: Float[np.ndarray, "points width"], up: Bool[np.ndarray, " points"],
          down: Bool[np.ndarray, " points"], problems: Int[np.ndarray, " points"],
          n_problems: int) -> Means:
    """`Means` of x over the points `up` against the points `down`."""
    def sums(chosen):
        total = np.zeros((n_problems, x.shape[1]))
        np.add.at(total, problems[chosen], x[chosen])
        return total, np.bincount(problems[chosen], minlength=n_problems)
    (a, n_a), (b, n_b) = sums(up), sums(down)
    return Means(a, b, n_a, n_b)


def cosine(a: Float[np.ndarray, "... width"],
           b: Float[np.ndarray, "... width"]) -> Float[np.ndarray, "..."]:
    """Cosine of the last axes; NaN where a vector is 0, as one without events is."""
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def cosine_interval(pairs: Sequence[Sequence[tuple[Means, Means]]]) -> stats.Interval:
    """Cosine of two vectors with its interval over seeds and problems.

    pairs: one list a seed of (Means, Means); of several the largest cosine counts, each time. Where
    a vector loses all its events with a problem, the cosine counts as 0.
    """
    def largest(few, problems):
        return np.max([np.nan_to_num(cosine(a.vector(problems), b.vector(problems)))
                       for a, b in few], 0)
    table = np.stack([stats.pseudovalues(lambda problems, few=few: largest(few, problems),
                                         len(few[0][0].up)) for few in pairs])
    return stats.Interval(*map(float, stats.interval(lambda m: m, table)))


def halves(m: Means, seed: int = 0) -> tuple[Means, Means]:
    """Two `Means` from random halves of the problems: how alike vectors of one kind can be."""
    first = np.random.default_rng(seed).permutation(len(m.up)) % 2 == 0
    return tuple(Means(m.up * k[:, None], m.down * k[:, None], m.n_up * k, m.n_down * k)
                 for k in (first, ~first))


def corrected_cosine(pairs: Sequence[tuple[Means, Means]]) -> stats.Interval | None:
    """Cosine of two vectors were there no noise in either, with its interval over seeds and
    problems.

    pairs: one (Means, Means) a seed, of the same events. Each is split into halves of the problems.
    The cosine across models and halves shares no event, so that no common noise raises it; over
    the root of the product of both models' cosines between their own halves, no noise lowers it
    (Spearman 1904, Am. J. Psychol. 15:72). None where those are not clear of 0.
    """
    def tables(a, c):
        (a1, a2), (c1, c2) = halves(a), halves(c)
        for together in (((a1, c2), (a2, c1)), ((a1, a2),), ((c1, c2),)):
            yield stats.pseudovalues(lambda problems, some=together: np.mean(
                [np.nan_to_num(cosine(x.vector(problems), y.vector(problems))) for x, y in some],
                0), len(a.up))
    across, *within = (np.stack(x) for x in zip(*(tables(*pair) for pair in pairs)))
    if any(stats.interval(lambda m: m, own).low <= 0 for own in within):
        return None
    return stats.Interval(*map(float, stats.interval(
        lambda x, a, c: x / np.sqrt(a * c), across, *within)))


def noise(vector: Float[np.ndarray, " width"], seed: int) -> Float[np.ndarray, " width"]:
    """A random direction with the norm of `vector`."""
    out = np.random.default_rng(seed).normal(size=len(vector))
    return out * np.linalg.norm(vector) / np.linalg.norm(out)


def unit(x: np.ndarray, at: Places, behaviour: str) -> float:
    """What strength 1 means: the mean norm of the residual stream x (N, D) where the behaviour is
    a choice. (Elsewhere it can be many times longer, at the end of the prompt above all.)"""
    here = at.choice[behaviour]
    return float(np.linalg.norm(x[here] if here.any() else x, axis=1).mean())


# --- steering -------------------------------------------------------------------------------------

def counts(task: ModuleType, grade: Any, text: str, length: int, stopped: bool,
           behaviour: str) -> tuple:
    """One answer in COUNTS; length: its tokens."""
    opened, tried = list(grade.behaviours), attempts(task, text)
    n = opened.count(behaviour) if task.OPENINGS else int(works_out(task, text))
    return (n / max(len(opened), 1), n, grade.correct, length,
            1 - len(set(tried)) / len(tried) if tried else 0, not stopped,
            grade.valid_attempts / max(grade.attempts, 1))


def dose(model: Model, task: ModuleType, problems: list, target: Target, vectors: dict,
         strengths: Sequence[float], max_new_tokens: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Dose-response in one batch: name -> (strengths, problems, len(COUNTS)) float64.

    vectors: name -> (D,), already of the length that strength 1 means. All arms and strengths of a
    problem share their random numbers, and strength 0 is sampled once for all.
    """
    arms = [(name, s) for name in vectors for s in strengths if s] + [(None, 0)]
    steer = []
    for name, vector in vectors.items():
        weight = torch.tensor([s if name == arm else 0.0 for arm, s in arms for _ in problems])
        steer.append(steering.Steer(
            target.layer, torch.as_tensor(vector, dtype=torch.float32), rows=weight != 0,
            gate=gate(model, task, target.behaviour, target.where, weight.to(model.net.device))))
    out = rollouts.answer(model, task, problems * len(arms), max_new_tokens=max_new_tokens,
                          seed=seed, keys=list(range(len(problems))) * len(arms),
                          control=steering.Control(steer))
    rows = zip(out.grades, out.texts, out.lengths[:, 0], out.stopped[:, 0])
    table = np.array([counts(task, grade, text, length, stopped, target.behaviour)
                      for (grade,), (text,), length, stopped in rows], float)
    table = dict(zip(arms, table.reshape(len(arms), len(problems), -1), strict=True))
    return {name: np.stack([table[name, s] if s else table[None, 0] for s in strengths])
            for name in vectors}


def slope(values: Float[np.ndarray, "... strengths problems"],
          strengths: Sequence[float]) -> Float[np.ndarray, "... problems"]:
    """Least-squares slope against strength."""
    s = np.asarray(strengths, float) - np.mean(strengths)
    return np.tensordot(np.moveaxis(values, -2, -1), s / (s**2).sum(), axes=1)


def steer(pair: Pair, role: str, target: Target, vectors: dict, strengths: Sequence[float],
          n_problems: int, max_new_tokens: int) -> dict[str, np.ndarray]:
    """`dose` of a model of the pair on test problems."""
    return dose(pair.load(role), pair.rules, pair.problems(n_problems), target, vectors, strengths,
                max_new_tokens, pair.seed)


def steer_exactly(pair: Pair, role: str, target: Target, vectors: dict,
                  strengths: Sequence[float], n_problems: int) -> dict[str, np.ndarray]:
    """Dose-response in words on test problems, of the rate alone, without a sample: name ->
    (strengths, problems, 1) float64, the probability that the behaviour's words come next where it
    is a choice (`places.asked`)."""
    return _rates(pair.load(role), pair.rules, pair.problems(n_problems), target, vectors,
                  strengths)


def _rates(model, task, problems, target, vectors, strengths):
    """name -> (strengths, problems, 1) float64 of `steer_exactly`; target.layer: one for all
    vectors, or one each."""
    arms = np.array([s * vector for vector in vectors.values() for s in strengths])
    layers = np.repeat(np.broadcast_to(target.layer, len(vectors)), len(strengths))
    p = np.array([next_words.chances(model, asked(model, task, problem, target.behaviour),
                                     layers, arms, target.where)
                  for problem in problems if prose.equations(problem.working)])
    table = p.T.reshape(len(vectors), len(strengths), len(p), 1)
    return dict(zip(vectors, table, strict=True))


# --- at which layer -------------------------------------------------------------------------------

def layer_scores(pair: Pair, behaviour: str, sizes: Sizes, strength: float) -> list[float] | None:
    """What the layer is chosen by: a number for each block of the base, from validation problems.

    The slope of the behaviour's rate, steered by the block's own choice vector. Of an error or of
    concluding in words, where a small base may never show the behaviour: the AUROC of the block's
    probe. None where there are too few events.
    """
    model, task = pair.load("base"), pair.rules
    texts = documents(pair, model, sizes.n_problems, sizes.documents)
    at = places(task, model, texts)
    rows, y, groups = at.chosen(behaviour)
    if not enough(y, groups):
        return None
    layers = list(range(model.depth))
    streams = activations.residuals(model.net, [t.ids for t in texts], layers,
                                    at.positions(len(texts)))
    if not task.OPENINGS and behaviour != "work":
        return [auroc(*score(streams[layer].numpy()[rows], y, groups)[:2]) for layer in layers]
    problems = pair.problems(sizes.n_problems, "validation")[:50]
    vectors = {layer: _choice_vector(streams[layer].numpy(), at, behaviour) for layer in layers}
    strengths = (-strength, 0, strength)
    if not task.OPENINGS:
        tables = _rates(model, task, problems[:EXACT], Target(behaviour, layers), vectors,
                        strengths)
    else:
        tables = {layer: dose(model, task, problems, Target(behaviour, layer), {layer: vector},
                              strengths, sizes.max_new_tokens, pair.seed)[layer]
                  for layer, vector in vectors.items()}
    return [float(slope(tables[layer][..., 0], strengths).mean()) for layer in layers]


def _choice_vector(x, at, behaviour):
    """The behaviour's choice vector in x (N, D), of the length that strength 1 means."""
    up, down = at.sides(behaviour)
    vector = x[up].mean(0) - x[down].mean(0)
    return vector * (unit(x, at, behaviour) / np.linalg.norm(vector))


def best_layer(task: ModuleType, scores: list[float]) -> int:
    """The block with the highest score, short of the last (a vector there is a push on the
    output); in words of the middle third, where there is one: earlier blocks hold words, later
    ones the output."""
    blocks = range(len(scores) - 1) or range(1)
    third = len(scores) // 3
    if not task.OPENINGS and third:
        blocks = range(third, 2 * third)
    return max(blocks, key=lambda block: scores[block])


# --- checkpoints on the way -----------------------------------------------------------------------

class Milestone(NamedTuple):
    """A checkpoint's probe, vector (and its length, a share of the stream's), and `dose` along
    it."""
    scored: Scored
    means: Means
    length: float
    dose: np.ndarray


def milestone(pair: Pair, folder: Path, target: Target, sizes: Sizes, strength: float,
              n_test: int) -> Milestone | None:
    """What a checkpoint on the way holds: the probe, the vector, and its effect at 0 and
    +-strength, at choices; None where the documents hold too few events."""
    model, task = pair.load_checkpoint(folder), pair.rules
    texts = documents(pair, model, sizes.n_problems, sizes.documents)
    at = places(task, model, texts)
    rows, y, groups = at.chosen(target.behaviour)
    if not enough(y, groups):
        return None
    exact = pair.load_checkpoint(folder, exact=True)
    x = activations.residuals(exact.net, [t.ids for t in texts], [target.layer],
                              at.positions(len(texts)))[target.layer].numpy()
    form = means(x, *at.sides(target.behaviour), at.problem, sizes.n_problems)
    vector, size = form.vector(), unit(x, at, target.behaviour)
    length = float(np.linalg.norm(vector))
    table = dose(model, task, pair.problems(n_test), target, {"own": vector * size / length},
                 (-strength, 0, strength), sizes.max_new_tokens)["own"]
    return Milestone(score(x[rows], y, groups), form, length / size, table)
