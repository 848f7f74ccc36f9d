"""pass@k, intervals over problems and seeds, and where two curves cross.

pass@k is the unbiased estimator 1 - C(n-c, k) / C(n, k) of Chen et al. (arXiv 2107.03374, section
2.1). Every seed answers the same problems, so a table of scores is crossed and its mean varies with
both. Radiology has the same design, readers by cases, and so have our intervals its analysis: the
variance of a mean is put together from the mean squares of the crossed table, and goes with
Satterthwaite's degrees of freedom into a t-interval (`spread`). What is no mean enters by how it
changes when a cell weighs a little more (`interval`), what is measured a seed at once by its
pseudo-values (`pseudovalues`). Shares get Wilson's interval at the effective size that belongs to
their variance. All that is compared (base and thinking model, a method and its baseline) is one
table, so that differences and ratios are paired.

How often a nominal 95 % holds the truth, 2,000 simulated tables of 200 problems a cell: of an
accuracy of .62, of a share of a gap of .5, and in brackets the median width of the latter (`python
tests/test_intervals.py` prints it). n: samples a problem; sd: points by which seeds truly differ.

    seeds  n   sd 0               sd 3               sd 6               sd 10
        3   1   .968 .966 (0.24)   .945 .948 (0.37)   .932 .939 (0.64)   .921 .931 (1.02)
        3   4   .965 .963 (0.17)   .942 .945 (0.27)   .922 .921 (0.55)   .933 .930 (0.98)
        3  64   .952 .958 (0.14)   .944 .938 (0.23)   .930 .920 (0.52)   .927 .931 (0.97)
        6   1   .971 .970 (0.20)   .958 .954 (0.24)   .944 .948 (0.34)   .944 .951 (0.53)
        6   4   .948 .957 (0.15)   .944 .952 (0.19)   .948 .949 (0.31)   .949 .954 (0.51)
        6  64   .941 .960 (0.13)   .952 .948 (0.18)   .956 .947 (0.30)   .945 .944 (0.50)

So six seeds cover what they say, three up to three points too little where seeds differ, and beyond
four samples a problem more samples hardly help: seeds do. A crossed bootstrap, used here before,
counts the noise of a cell three times (Owen 2007, Ann. Appl. Stat. 1:386) and that of seeds
(S - 1) / S times: with three seeds it covered .997 at n = 1 and sd 0, .85 at n = 64 and sd 6.
`bootstrap` remains for medians, crossings and what has two sets of problems.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from scipy.special import gammaln
from scipy.stats import binomtest, t

LEVEL = 0.95
NUDGE = 1e-4  # by which a cell's weight is changed


class Interval(NamedTuple):
    """A value with its 95 % interval: floats, or arrays of one shape."""

    value: np.ndarray | float
    low: np.ndarray | float
    high: np.ndarray | float


class Crossing(NamedTuple):
    """Where one curve overtakes another; None stands for 'not within the measured range'.

    share: share of the resamples in which the curves cross within the range.
    """

    k: float | None
    low: float | None
    high: float | None
    share: float


def pass_at_k(n: ArrayLike, c: ArrayLike, k: ArrayLike) -> Float[np.ndarray, "..."]:
    """Chance that at least one of k samples is correct, from c correct ones among n.

    n, c, k: integers or integer arrays that broadcast; returns float64 of the broadcast shape.
    Raises ValueError unless 1 <= k <= n and 0 <= c <= n.
    """
    n, c, k = np.broadcast_arrays(np.asarray(n), np.asarray(c), np.asarray(k))
    if (k < 1).any():
        raise ValueError(f"k is {k.min()}, but pass@k needs k of at least 1")
    if (k > n).any():
        worst = np.argmax(k - n)
        raise ValueError(f"k is {k.flat[worst]}, but there are only n = {n.flat[worst]} samples")
    if (c < 0).any() or (c > n).any():
        raise ValueError(f"c is between {c.min()} and {c.max()}, but must lie in 0..n")
    wrong = n - c
    with np.errstate(invalid="ignore"):  # wrong < k: no all-wrong subset, replaced below
        log_fail = (gammaln(wrong + 1.0) - gammaln(wrong - k + 1.0)) - (
            gammaln(n + 1.0) - gammaln(n - k + 1.0)
        )
    return np.where(wrong < k, 1.0, -np.expm1(log_fail))


def per_problem(correct: Bool[np.ndarray, "seeds problems samples"],
                ks: Sequence[int]) -> Float[np.ndarray, "seeds problems ks"]:
    """pass@k of each seed and problem."""
    correct = np.asarray(correct)
    if correct.ndim != 3:
        raise ValueError(
            f"correct has shape {correct.shape}, but must be (seeds, problems, samples)"
        )
    solved = correct.astype(bool).sum(-1)
    return pass_at_k(correct.shape[-1], solved[..., None], np.asarray(ks))


def drawn(*sizes: int, resamples: int = 2000, seed: int = 0) -> list[np.ndarray]:
    """How often every resample holds each member of an axis, such as the seeds or the problems.

    sizes: of the axes, each of which is drawn by itself, with replacement, as often as it has
    members. Returns for each an int64 array (resamples, size) whose rows sum to size.
    """
    rng = np.random.default_rng(seed)
    return [rng.multinomial(n, np.full(n, 1 / n), resamples) for n in sizes]


def ends(values: np.ndarray, method: str = "linear") -> np.ndarray:
    """(2, ...): the middle 95 % of values (B, ...); NaN, a value that there is not, is left out."""
    return np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0, method=method)


def bootstrap(statistic: Callable, *sizes: int, resamples: int = 2000, seed: int = 0) -> Interval:
    """Interval of any statistic over axes of these sizes.

    statistic: called with one int64 array (B, size) an axis, how often each member counts, returns
    (B, ...), NaN where it has no value. Its value is where each counts once.
    """
    value = statistic(*(np.ones((1, n), np.int64) for n in sizes))[0]
    return Interval(value, *ends(statistic(*drawn(*sizes, resamples=resamples, seed=seed))))


def resampled_means(*scores: Float[np.ndarray, "seeds problems ..."], resamples: int = 2000,
                    seed: int = 0) -> list[Float[np.ndarray, "resamples ..."]]:
    """Bootstrap means of paired score tables.

    scores: they share their first two axes, which one draw of seeds and problems serves for all;
    returns one array for each.
    """
    scores = [np.asarray(s, dtype=np.float64) for s in scores]
    shapes = {s.shape[:2] for s in scores}
    if len(shapes) > 1:
        raise ValueError(f"paired scores must share (seeds, problems), but have {sorted(shapes)}")
    n_seeds, n_problems = shapes.pop()
    by_seed, by_problem = drawn(n_seeds, n_problems, resamples=resamples, seed=seed)
    by_seed, by_problem = by_seed / n_seeds, by_problem / n_problems
    means = []
    for table in scores:
        flat = table.reshape(n_seeds, n_problems, -1)
        # one matrix product over the problems, then the few seeds
        over_problems = np.stack([by_problem @ one_seed for one_seed in flat], axis=1)  # (B, S, K)
        mean = (by_seed[:, :, None] * over_problems).sum(1)
        means.append(mean.reshape(resamples, *table.shape[2:]))
    return means


def spread(table: Float[np.ndarray, "..."],
           axes: int) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Variance of the mean over the first `axes` axes of a crossed table, and the degrees of
    freedom it is known with, each of the trailing axes' shape.

    The axes are random: seeds, problems, what was trained on. The variance is the unbiased sum and
    difference of mean squares, for two axes (MS_seed + MS_problem - MS_cell) / cells: Gallas et
    al. 2009 (Commun. Stat. Theory Methods 38:2586) and Hillis 2007 (Stat. Med. 26:596), or two-way
    clustering (Cameron, Gelbach and Miller 2011, J. Bus. Econ. Stat. 29:238). A component that
    comes out below 0 counts as 0. Degrees of freedom: Satterthwaite 1946 (Biometrics Bull. 2:110).
    Of an axis of one member nothing is known, and nothing is added.
    """
    sizes = table.shape[:axes]
    varied = [i for i in range(axes) if sizes[i] > 1]
    effects = [some for k in range(len(varied)) for some in itertools.combinations(varied, k + 1)]
    square, freedom = {}, {}
    for some in effects:
        effect = table.mean(tuple(i for i in range(axes) if i not in some), keepdims=True)
        for i in some:
            effect = effect - effect.mean(i, keepdims=True)
        freedom[some] = math.prod(sizes[i] - 1 for i in some)
        square[some] = (effect**2).mean(tuple(range(axes))) * math.prod(sizes) / freedom[some]
    weight = dict.fromkeys(effects, 0.0)
    for some in effects:  # its variance component, from the squares of all effects that hold it
        signs = {other: (-1) ** (len(other) - len(some)) for other in effects
                 if set(some) <= set(other)}
        positive = sum(sign * square[other] for other, sign in signs.items()) > 0
        weight |= {other: weight[other] + sign * positive for other, sign in signs.items()}
    terms = {some: weight[some] * square[some] for some in effects}
    total = sum(terms.values(), np.zeros(table.shape[axes:]))
    doubt = sum((term**2 / freedom[some] for some, term in terms.items()), np.zeros_like(total))
    with np.errstate(invalid="ignore"):
        known = np.where(doubt > 0, total**2 / doubt, 1.0)
    return total / math.prod(sizes), known


def interval(f: Callable[..., np.ndarray], *scores: Float[np.ndarray, "seeds problems ..."],
             axes: int = 2) -> Interval:
    """Interval of f(mean of scores[0], mean of scores[1], ...).

    scores: paired, crossed in their first `axes` axes. f works elementwise on the means, so that it
    can be given many at once, e.g. `lambda x, base: x - base`. What a cell adds to f is its
    derivative by the cell's weight, the infinitesimal jackknife (Jaeckel 1972; Efron 1982, chapter
    6); a difference or a mean is that sum exactly.
    """
    value, variance, freedom = _linear(f, scores, axes)
    half = t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(variance)
    return Interval(value, value - half, value + half)


def _linear(f, scores, axes):
    """(value, variance, degrees of freedom) of a function of means, as `interval`."""
    scores = [np.asarray(s, dtype=np.float64) for s in scores]
    shapes = {s.shape[:axes] for s in scores}
    if len(shapes) > 1:
        raise ValueError(f"paired scores must share (seeds, problems), but have {sorted(shapes)}")
    means = [s.mean(tuple(range(axes))) for s in scores]
    more, less = (f(*(m + step * (s - m) for s, m in zip(scores, means)))
                  for step in (NUDGE, -NUDGE))
    return f(*means), *spread((more - less) / (2 * NUDGE), axes)


def pseudovalues(statistic: Callable, n: int) -> Float[np.ndarray, " problems"]:
    """One value a problem whose mean is the statistic, and by which it varies as by a mean's.

    statistic: called with int64 (B, n), how often each of n problems counts, returns (B,).
    Jackknife pseudo-values, shifted to the statistic: Dorfman, Berbaum and Metz 1992 (Invest.
    Radiol. 27:723) analyse areas under ROC curves so, a reader at a time.
    """
    value = statistic(np.ones((1, n), np.int64))[0]
    without = statistic(1 - np.eye(n, dtype=np.int64)) if n > 1 else np.array([value])
    return value + (n - 1) * (without.mean() - without)


def wilson(successes: int, n: int) -> Interval:
    """Wilson interval of the proportion successes / n (two integers)."""
    low, high = binomtest(int(successes), int(n)).proportion_ci(LEVEL, method="wilson")
    return Interval(successes / n, low, high)


def mean_interval(scores: Float[np.ndarray, "seeds problems ..."]) -> Interval:
    """Mean over seeds and problems of scores in [0, 1], with its interval.

    Where every score is 0, or every score is 1, nothing varies; there Wilson's interval has the
    number of problems as n: seeds and samples answer the same problems, so counting them too would
    claim more than was seen.
    """
    return _bounded(lambda m: m, [scores], np.shape(scores)[1])


def pass_curve(correct: Bool[np.ndarray, "seeds problems samples"],
               ks: Sequence[int]) -> Interval:
    """pass@k with intervals, one value a k."""
    return mean_interval(per_problem(correct, ks))


def share(part: np.ndarray, whole: np.ndarray) -> Interval | None:
    """Interval of sum(part) / sum(whole), counts of one shape (seeds, problems), or None if 0 / 0.

    Where the share is 0 or 1 throughout, the problems that have anything to count are Wilson's n.
    """
    if not whole.sum():
        return None
    return Interval(*map(float, _bounded(np.divide, [part, whole], (whole > 0).any(0).sum())))


def _bounded(f, scores, problems):
    """Interval of a share: Wilson's, with the n at which a proportion would vary as much, and t for
    z (Franco et al. 2019, J. Surv. Stat. Methodol. 7:334)."""
    value, variance, freedom = _linear(f, scores, 2)
    value = np.clip(value, 0, 1)  # rounding
    spent = np.where((value == 0) | (value == 1), 1 / problems,
                     variance / np.maximum(value * (1 - value), 1e-12))  # 1 / n
    spent = spent * t.ppf((1 + LEVEL) / 2, np.where(value * (1 - value) > 0, freedom, 1e9))**2
    half = np.sqrt(spent * value * (1 - value) + spent**2 / 4)
    low, high = ((value + spent / 2 + side * half) / (1 + spent) for side in (-1, 1))
    return Interval(value, np.clip(low, 0, value), np.clip(high, value, 1))


def median(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> Interval:
    """Median with its interval: values (seeds, problems, m), NaN where there is none."""
    values = np.asarray(values, dtype=np.float64)

    def of(seeds, problems):
        some = (values.repeat(s, 0).repeat(p, 1) for s, p in zip(seeds, problems, strict=True))
        kept = (x[~np.isnan(x)] for x in some)
        return np.array([np.median(x) if len(x) else np.nan for x in kept])
    return Interval(*map(float, bootstrap(of, *values.shape[:2], resamples=resamples, seed=seed)))


def difference(x: Float[np.ndarray, "seeds problems ..."],
               base: Float[np.ndarray, "seeds problems ..."]) -> Interval:
    """Paired interval of mean(x) - mean(base)."""
    return interval(lambda x, base: x - base, x, base)


def gap_recovered(x: Float[np.ndarray, "seeds problems ..."],
                  base: Float[np.ndarray, "seeds problems"],
                  thinking: Float[np.ndarray, "seeds problems"]) -> Interval | None:
    """Share of the gap between base and thinking model that x recovers, paired.

    x may have a third axis, the things that were trained on, which vary as seeds and problems do.
    None where the gap itself is not clear of 0: a share of it has no meaning then.
    """
    return _of_gap(lambda low, high, x: (x - low) / (high - low), base, thinking, x)


def gap_difference(x: Float[np.ndarray, "seeds problems ..."],
                   other: Float[np.ndarray, "seeds problems ..."],
                   base: Float[np.ndarray, "seeds problems"],
                   thinking: Float[np.ndarray, "seeds problems"]) -> Interval | None:
    """The share of the gap that x recovers minus the one that `other` recovers, paired.

    As `gap_recovered`; third axes of one size hold the same things, and one of size 1 stands beside
    any. Where both have several and not as many, things are fixed.
    """
    return _of_gap(lambda low, high, x, other: (x - other) / (high - low), base, thinking, x, other)


def _of_gap(f, base, thinking, *arms):
    """Interval of f(base, thinking, *arms), or None as `gap_recovered`."""
    if difference(thinking, base).low <= 0:
        return None
    base, thinking, *arms = ([*map(np.atleast_3d, (base, thinking, *arms))])
    several = {arm.shape[2] for arm in arms} - {1}
    if len(several) > 1:
        arms = [arm.mean(2, keepdims=True) for arm in arms]
    return Interval(*map(float, interval(f, *np.broadcast_arrays(base, thinking, *arms), axes=3)))


def when_and_how(before: tuple[np.ndarray, np.ndarray],
                 after: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """A gain in accuracy as (when, how), which add up to it exactly, for two (strategy, correct)
    pairs of arrays of one shape.

    when: the strategies' shares changed; how: they work better or worse. Each change is weighted by
    the mean of the other factor before and after, so that neither comes first.
    """
    return tuple(float(part) for part in _parts(*(
        np.mean(x) for pair in (before, after) for x in _factors(*pair))))


def gain_parts(before: tuple[np.ndarray, np.ndarray],
               after: tuple[np.ndarray, np.ndarray]) -> tuple[Interval, Interval]:
    """`when_and_how` with intervals, paired: arrays (seeds, problems, n), n of each side's own."""
    means = [x.mean(-1) for pair in (before, after) for x in _factors(*pair)]
    return tuple(Interval(*map(float, interval(lambda *m, i=i: _parts(*m)[i], *means)))
                 for i in (0, 1))


def _factors(strategy, correct):
    """Indicators of taking the strategy, of being right with it, and of being right without it."""
    strategy, correct = np.asarray(strategy, bool), np.asarray(correct, bool)
    return strategy, correct & strategy, correct & ~strategy


def _parts(p, right, lucky, q, right_after, lucky_after):
    """(when, how) from the means of `_factors` before and after."""
    def rates(hits, share, other_hits, other_share):
        # A strategy that one side never used has no success rate there: the other side's stands in.
        with np.errstate(invalid="ignore", divide="ignore"):
            mine, other = np.divide(hits, share), np.divide(other_hits, other_share)
        other = np.where(other_share > 0, other, 0.0)
        return np.where(share > 0, mine, other)
    with_it = [rates(right, p, right_after, q), rates(right_after, q, right, p)]
    without = [rates(lucky, 1 - p, lucky_after, 1 - q), rates(lucky_after, 1 - q, lucky, 1 - p)]
    when = (q - p) * (sum(with_it) - sum(without)) / 2
    how = (p + q) / 2 * (with_it[1] - with_it[0]) + (1 - (p + q) / 2) * (without[1] - without[0])
    return when, how


def cross_at(ks: Sequence[int], a: Float[np.ndarray, "... ks"],
             b: Float[np.ndarray, "... ks"]) -> Float[np.ndarray, "..."]:
    """The k at which curves a overtake curves b, linear in log k between grid points.

    ks: ascending. Returns ks[0] where a is not below b at the start already, inf where a stays
    below b to the end.
    """
    log_k = np.log(np.asarray(ks, dtype=np.float64))
    lead = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    ahead = lead >= 0
    after = ahead.argmax(-1)
    before = np.maximum(after - 1, 0)
    lead_before = np.take_along_axis(lead, before[..., None], -1)[..., 0]
    lead_after = np.take_along_axis(lead, after[..., None], -1)[..., 0]
    rise = np.where(after > 0, lead_after - lead_before, 1.0)
    part = np.where(after > 0, -lead_before / np.where(rise > 0, rise, 1.0), 0.0)
    k = np.exp(log_k[before] + part * (log_k[after] - log_k[before]))
    return np.where(ahead.any(-1), k, np.inf)


def crossing(ks: Sequence[int], a: Bool[np.ndarray, "seeds problems samples_a"],
             b: Bool[np.ndarray, "seeds problems samples_b"], resamples: int = 2000,
             seed: int = 0) -> Crossing:
    """The k at which pass@k of a (the base) overtakes that of b (the thinking model).

    a, b: which answers are correct. k is None where a is ahead from the start or never; an end of
    the interval is None where it lies beyond the last k measured, and low is ks[0] where it lies
    below the first.
    """
    scores = per_problem(a, ks), per_problem(b, ks)
    resampled = cross_at(ks, *resampled_means(*scores, resamples=resamples, seed=seed))
    point = float(cross_at(ks, *[s.mean((0, 1)) for s in scores]))
    if scores[0][..., 0].mean() >= scores[1][..., 0].mean():
        point = np.inf
    # no interpolation towards infinity, "beyond the last k"
    k, low, high = [float(v) if np.isfinite(v) else None
                    for v in (point, *ends(resampled, method="nearest"))]
    return Crossing(k, low, high, float((np.isfinite(resampled) & (resampled > ks[0])).mean()))


def four_cells(base_solved: np.ndarray, thinking_solved: np.ndarray) -> dict[str, np.ndarray]:
    """Which problems both models, one or neither solved: bool arrays,
    of the shape of the two given.
    """
    base, thinking = np.asarray(base_solved, bool), np.asarray(thinking_solved, bool)
    if base.shape != thinking.shape:
        raise ValueError(
            f"base_solved has shape {base.shape} and thinking_solved {thinking.shape}: they differ"
        )
    return {"both": base & thinking, "base_only": base & ~thinking,
            "thinking_only": ~base & thinking, "neither": ~base & ~thinking}
