"""pass@k, intervals over problems and seeds, and where two curves cross.

pass@k is the unbiased estimator 1 - C(n-c, k) / C(n, k) of Chen et al. (arXiv 2107.03374, section
2.1). Intervals come from one crossed bootstrap, `drawn`: every resample draws seeds and,
independently, problems, with replacement, and keeps their whole table of scores. `bootstrap` takes
any statistic, `interval` functions of means. All quantities that are compared (base and thinking
model, a method and its baseline) are resampled with the same draws, so differences and ratios are
paired. Percentile intervals, no bias correction: with all scores equal BCa is undefined, and there
the Wilson interval takes over. Three seeds are few: the bootstrap over seeds understates their
spread, which is why the seeds are also shown one by one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from scipy.special import gammaln
from scipy.stats import binomtest

LEVEL = 0.95


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


def interval(f: Callable[..., np.ndarray], *scores: Float[np.ndarray, "seeds problems ..."],
             resamples: int = 2000, seed: int = 0) -> Interval:
    """Interval of f(mean of scores[0], mean of scores[1], ...).

    scores: paired. f works elementwise on the means, so that it can be given all resamples at
    once, e.g. `lambda x, base: x - base`; NaN where it has no value.
    """
    means = resampled_means(*scores, resamples=resamples, seed=seed)
    value = f(*[np.asarray(s, dtype=np.float64).mean((0, 1)) for s in scores])
    return Interval(value, *ends(f(*means)))


def wilson(successes: int, n: int) -> Interval:
    """Wilson interval of the proportion successes / n (two integers)."""
    low, high = binomtest(int(successes), int(n)).proportion_ci(LEVEL, method="wilson")
    return Interval(successes / n, low, high)


def mean_interval(scores: Float[np.ndarray, "seeds problems ..."], resamples: int = 2000,
                  seed: int = 0) -> Interval:
    """Mean over seeds and problems of scores in [0, 1], with its interval.

    Where every score is 0, or every score is 1, all resamples are equal and the bootstrap would
    claim certainty; there the Wilson interval stands in, with the number of problems as n: seeds
    and samples answer the same problems, so counting them too would claim more than was seen.
    """
    scores = np.asarray(scores, dtype=np.float64)
    value, low, high = interval(lambda m: m, scores, resamples=resamples, seed=seed)
    lowest, highest, problems = scores.min((0, 1)), scores.max((0, 1)), scores.shape[1]
    low = np.where(lowest == 1, wilson(problems, problems).low, low)
    high = np.where(highest == 0, wilson(0, problems).high, high)
    return Interval(value, low, high)


def pass_curve(correct: Bool[np.ndarray, "seeds problems samples"], ks: Sequence[int],
               resamples: int = 2000, seed: int = 0) -> Interval:
    """pass@k with intervals, one value a k."""
    return mean_interval(per_problem(correct, ks), resamples=resamples, seed=seed)


def share(part: np.ndarray, whole: np.ndarray, resamples: int = 2000) -> Interval | None:
    """Interval of sum(part) / sum(whole), counts of one shape (seeds, problems), or None if 0 / 0.

    Where the share is 0 or 1 throughout, Wilson's interval stands in, with the problems that have
    anything to count as n.
    """
    if not whole.sum():
        return None
    value, n = float(part.sum() / whole.sum()), int((whole > 0).any(0).sum())
    if value in (0, 1):
        return Interval(value, *map(float, wilson(n * int(value), n)[1:]))
    with np.errstate(invalid="ignore"):  # a resample may hold nothing to count
        _, low, high = interval(np.divide, part, whole, resamples=resamples)
    return Interval(value, float(low), float(high))


def median(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> Interval:
    """Median with its interval: values (seeds, problems, m), NaN where there is none."""
    values = np.asarray(values, dtype=np.float64)

    def of(seeds, problems):
        some = (values.repeat(s, 0).repeat(p, 1) for s, p in zip(seeds, problems, strict=True))
        kept = (x[~np.isnan(x)] for x in some)
        return np.array([np.median(x) if len(x) else np.nan for x in kept])
    return Interval(*map(float, bootstrap(of, *values.shape[:2], resamples=resamples, seed=seed)))


def difference(x: Float[np.ndarray, "seeds problems ..."],
               base: Float[np.ndarray, "seeds problems ..."], resamples: int = 2000,
               seed: int = 0) -> Interval:
    """Paired interval of mean(x) - mean(base)."""
    return interval(lambda x, base: x - base, x, base, resamples=resamples, seed=seed)


def gap_recovered(x: Float[np.ndarray, "seeds problems ..."],
                  base: Float[np.ndarray, "seeds problems"],
                  thinking: Float[np.ndarray, "seeds problems"], resamples: int = 2000,
                  seed: int = 0) -> Interval | None:
    """Share of the gap between base and thinking model that x recovers, paired.

    x may have a third axis, the things that were trained on, which are resampled too. None where
    the gap itself is not above 0 in at least 97.5 % of the resamples: a share of it has no meaning
    then.
    """
    found = _shares(x, base, thinking, resamples, seed)
    return found and Interval(found[0], *map(float, ends(found[1])))


def gap_difference(x: Float[np.ndarray, "seeds problems ..."],
                   other: Float[np.ndarray, "seeds problems ..."],
                   base: Float[np.ndarray, "seeds problems"],
                   thinking: Float[np.ndarray, "seeds problems"], resamples: int = 2000,
                   seed: int = 0) -> Interval | None:
    """The share of the gap that x recovers minus the one that `other` recovers, paired.

    As `gap_recovered`; third axes of one size hold the same things and are resampled together.
    """
    one, two = (_shares(scores, base, thinking, resamples, seed) for scores in (x, other))
    return one and Interval(one[0] - two[0], *map(float, ends(one[1] - two[1])))


def _shares(x, base, thinking, resamples, seed):
    """(share of the gap, the same in the resamples that have a gap), or None as `gap_recovered`."""
    x = np.asarray(x)
    x = x[..., None] if x.ndim == 2 else x
    got, low, high = resampled_means(x, base, thinking, resamples=resamples, seed=seed)
    [things] = drawn(x.shape[2], resamples=resamples, seed=seed + 1)
    got, gap = (got * (things / x.shape[2])).sum(1), high - low
    if ends(gap)[0] <= 0:
        return None
    value = (np.mean(x) - np.mean(base)) / (np.mean(thinking) - np.mean(base))
    return float(value), (got - low)[gap > 0] / gap[gap > 0]


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
               after: tuple[np.ndarray, np.ndarray], resamples: int = 2000,
               seed: int = 0) -> tuple[Interval, Interval]:
    """`when_and_how` with intervals, paired: arrays (seeds, problems, n), n of each side's own."""
    means = [x.mean(-1) for pair in (before, after) for x in _factors(*pair)]
    return tuple(Interval(*map(float, interval(lambda *m, i=i: _parts(*m)[i], *means,
                                               resamples=resamples, seed=seed))) for i in (0, 1))


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
