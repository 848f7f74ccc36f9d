"""Is something in the activations? Probes of the residual stream, fitted and scored.

A probe is a logistic regression on the standardised residual stream at some places, scored on
problems that it was not fitted on.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from locksmith import stats

FOLDS = 5
ENOUGH = 20  # events of either outcome, below which nothing is fitted


class Scored(NamedTuple):
    """Forecasts at n places: scores (n,) float64 (a probe's log odds), labels (n,) bool, problems
    (n,) int."""
    scores: np.ndarray
    labels: np.ndarray
    problems: np.ndarray


def score(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> Scored:
    """A probe of y (N,) in x (N, D), scored on problems `groups` (N,) that it was not fitted
    on."""
    return Scored(held_out(x, y, groups), y, groups)


def score_shuffled(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> Scored:
    """The same with the labels in a random order: what so many dimensions find by chance."""
    return score(x, shuffled(y), groups)


def held_out(x: Float[np.ndarray, "points width"], y: Bool[np.ndarray, " points"],
             groups: Int[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """Log odds by a logistic regression on standardised x, each for a group (problem) not seen."""
    scores = np.zeros(len(y))
    for fit, rest in GroupKFold(FOLDS).split(x, y, groups):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        scores[rest] = probe.fit(x[fit], y[fit]).decision_function(x[rest])
    return scores


def shuffled(y: Bool[np.ndarray, " points"]) -> Bool[np.ndarray, " points"]:
    """The labels in a random order: the control for what so many dimensions find by chance."""
    return np.random.default_rng(0).permutation(y)


def enough(y: Bool[np.ndarray, " points"], groups: Int[np.ndarray, " points"]) -> bool:
    """Whether there are events enough of both outcomes, in problems enough for the folds."""
    y = np.asarray(y, bool)
    return (min(y.sum(), (~y).sum()) >= ENOUGH
            and min(len(set(groups[y])), len(set(groups[~y]))) >= FOLDS)


def auroc(
    scores: Float[np.ndarray, " points"], y: Bool[np.ndarray, " points"],
    weights: Float[np.ndarray, "weightings points"] | None = None,
) -> float | Float[np.ndarray, " weightings"]:
    """Chance that a random positive scores above a random negative, ties counting half.

    weights: one value for each weighting. NaN where a weighting has no positive or no negative.
    """
    y, one = np.asarray(y, bool), weights is None
    weights = np.ones((1, len(y))) if one else np.asarray(weights, float)
    _, rank = np.unique(scores, return_inverse=True)
    order = np.argsort(rank, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(rank[order]) > 0])
    ordered = weights[:, order]
    up, down = (np.add.reduceat(ordered * side[order], starts, axis=1) for side in (y, ~y))
    below = np.cumsum(down, 1) - down / 2
    with np.errstate(invalid="ignore"):
        value = (up * below).sum(1) / (up.sum(1) * down.sum(1))
    return float(value[0]) if one else value


def auroc_interval(by_seed: Sequence[Scored]) -> stats.Interval:
    """Mean AUROC over seeds with its interval over seeds and problems."""
    return stats.Interval(*map(float, stats.interval(lambda m: m, _by_problem(by_seed))))


def difference(mine: Sequence[Scored], other: Sequence[Scored]) -> stats.Interval:
    """Mean AUROC over seeds minus that of another reader of the same places, paired."""
    return stats.Interval(*map(float, stats.difference(_by_problem(mine), _by_problem(other))))


def decodable_share(mine: Sequence[Scored], ceiling: Sequence[Scored]) -> stats.Interval | None:
    """Mean AUROC above one half as a share of the ceiling's, paired; None where the ceiling itself
    is not clear of one half."""
    if auroc_interval(ceiling).low <= 0.5:
        return None
    return stats.Interval(*map(float, stats.interval(
        lambda a, b: (a - 0.5) / (b - 0.5), *map(_by_problem, (mine, ceiling)))))


def _by_problem(by_seed):
    """(seeds, problems) of `stats.pseudovalues` of each seed's AUROC, 0.5 where leaving a problem
    out leaves no positive or no negative; by_seed: (scores, y, problems) of one length each."""
    n = 1 + max(int(p.max()) for _, _, p in by_seed)
    return np.stack([stats.pseudovalues(
        lambda counts, s=s, y=y, p=p: np.nan_to_num(auroc(s, y, counts[:, p]), nan=0.5), n)
        for s, y, p in by_seed])
