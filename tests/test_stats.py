import itertools
import math
import time

import numpy as np
import pytest
from locksmith import stats
from scipy import stats as scipy_stats
from statsmodels.stats.proportion import proportion_confint


def test_pass_at_k_equals_counting_every_subset():
    for n in range(1, 8):
        for c in range(n + 1):
            row = [1] * c + [0] * (n - c)
            for k in range(1, n + 1):
                subsets = list(itertools.combinations(row, k))
                counted = sum(any(s) for s in subsets) / len(subsets)
                assert stats.pass_at_k(n, c, k) == pytest.approx(counted, abs=1e-12)


def test_pass_at_k_equals_the_closed_form_at_large_n():
    for n, c, k in [(256, 1, 256), (256, 3, 64), (4096, 5, 512), (4096, 4090, 7), (256, 0, 9)]:
        exact = 1 - math.comb(n - c, k) / math.comb(n, k)
        assert stats.pass_at_k(n, c, k) == pytest.approx(exact, abs=1e-10)


@pytest.mark.parametrize(
    "n, c, k, names", [(4, 1, 5, "k is 5"), (4, 5, 1, "c is"), (4, 1, 0, "k is 0")]
)
def test_pass_at_k_rejects_impossible_counts(n, c, k, names):
    with pytest.raises(ValueError, match=names):
        stats.pass_at_k(n, c, k)


def table(seeds=3, problems=60, samples=16, seed=0, lift=0.0):
    rng = np.random.default_rng(seed)
    skill = np.clip(rng.beta(0.5, 1.5, (1, problems, 1)) + lift, 0, 1)
    return rng.random((seeds, problems, samples)) < skill


def test_interval_agrees_with_scipy_for_one_seed():
    correct = table(seeds=1)
    ks = [1, 4, 16]
    ours = stats.pass_curve(correct, ks)
    scores = stats.per_problem(correct, ks)[0]
    theirs = scipy_stats.bootstrap(
        (scores,), np.mean, axis=0, method="BCa", n_resamples=20000, rng=1
    ).confidence_interval
    width = theirs.high - theirs.low
    assert np.allclose(ours.value, scores.mean(0))
    assert np.all(np.abs(ours.low - theirs.low) < 0.12 * width)
    assert np.all(np.abs(ours.high - theirs.high) < 0.12 * width)


def test_paired_difference_is_the_paired_t_test_and_narrower_than_unpaired():
    a, b = table(seeds=1, seed=1), table(seeds=1, seed=1, lift=0.1)
    x, y = a.mean(-1), b.mean(-1)
    ours = stats.difference(y, x)
    theirs = scipy_stats.ttest_rel(y[0], x[0]).confidence_interval(0.95)
    assert ours[1:] == pytest.approx((theirs.low, theirs.high))
    unpaired = stats.mean_interval(y).high - stats.mean_interval(y).low
    assert theirs.high - theirs.low < 0.7 * unpaired


def test_seeds_that_differ_widen_the_interval():
    """Three seeds whose problems agree: the t-interval of the three seeds' means."""
    seeds = np.array([[0.1], [0.4], [0.7]])
    scores = np.random.default_rng(3).random((1, 40)) * 0.02 + seeds
    found = stats.interval(lambda m: m, scores)
    theirs = scipy_stats.ttest_1samp(scores.mean(1), 0).confidence_interval(0.95)
    assert found[1:] == pytest.approx((theirs.low, theirs.high), rel=0.01)
    only_problems = stats.interval(lambda m: m, scores.mean(0, keepdims=True))
    assert found.high - found.low > 30 * (only_problems.high - only_problems.low)


@pytest.mark.parametrize("constant", [0, 1])
def test_all_equal_falls_back_to_wilson(constant):
    correct = np.full((3, 50, 8), bool(constant))
    found = stats.pass_curve(correct, [1, 8])
    low, high = proportion_confint(50 * constant, 50, method="wilson")
    assert np.allclose(found.value, constant)
    assert np.allclose(found.low, low) and np.allclose(found.high, high)
    assert np.all(found.high - found.low > 0.05)


# --- any statistic -------------------------------------------------------------------------------

def times(values, counts):
    """(B, n) of values repeated: the resamples themselves."""
    return np.stack([np.repeat(values, row) for row in counts])


@pytest.mark.parametrize("statistic", [np.std, np.median, scipy_stats.skew])
def test_any_statistic_of_one_axis_agrees_with_scipy(statistic):
    values = np.random.default_rng(4).gamma(2, 1, 50)
    ours = stats.bootstrap(lambda counts: statistic(times(values, counts), axis=1), 50,
                           resamples=20000)
    theirs = scipy_stats.bootstrap((values,), statistic, method="percentile", n_resamples=20000,
                                   rng=1).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == statistic(values)
    assert abs(ours.low - theirs.low) < 0.06 * width and abs(ours.high - theirs.high) < 0.06 * width


def test_crossed_axes_have_the_variance_of_the_closed_form():
    """Of a sum of an effect of each of three axes: the sum of their variances over their sizes."""
    rng, sizes = np.random.default_rng(5), (30, 40, 50)
    effects = [rng.normal(size=n) for n in sizes]

    def mean(*counts):
        return sum(c @ x / len(x) for c, x in zip(counts, effects, strict=True))
    found = stats.bootstrap(mean, *sizes, resamples=20000)
    half = scipy_stats.norm.ppf(0.975) * np.sqrt(sum(x.var() / len(x) for x in effects))
    assert found.value == pytest.approx(sum(x.mean() for x in effects))
    assert found.high - found.value == pytest.approx(half, rel=0.05)
    assert found.value - found.low == pytest.approx(half, rel=0.05)


def test_what_has_no_value_in_a_resample_is_left_out():
    found = stats.bootstrap(lambda counts: np.where(counts[:, 0] == 1, 1.0, np.nan), 5)
    assert found == stats.Interval(1, 1, 1)


def test_a_median_covers_the_truth_as_often_as_it_says():
    """Normal values, some of them missing: about 95 of 100 intervals hold their median."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(100):
        values = rng.normal(3, 1, (1, 80, 1))
        values[rng.random(values.shape) < 0.3] = np.nan
        found = stats.median(values, resamples=200)
        assert found.value == np.median(values[~np.isnan(values)])
        held += found.low <= 3 <= found.high
    assert 86 <= held <= 100
    assert stats.median(np.full((2, 5, 1), 7.0), resamples=20) == stats.Interval(7, 7, 7)


def test_a_share_is_pooled_and_of_nothing_there_is_none():
    part, whole = np.array([[1.0, 0, 3]]), np.array([[2.0, 0, 8]])
    found = stats.share(part, whole)
    assert found.value == pytest.approx(0.4) and 0 <= found.low < 3 / 8 and 0.5 < found.high <= 1
    assert stats.share(np.zeros((2, 3)), np.zeros((2, 3))) is None
    always = stats.share(np.ones((2, 30)), np.ones((2, 30)))
    assert always == pytest.approx(stats.wilson(30, 30))


def test_a_shares_interval_covers_the_truth_as_often_as_it_says():
    """Problems of unequal size with a share of 0.7: about 95 of 100 intervals hold it."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(100):
        whole = rng.integers(1, 9, (1, 60))
        found = stats.share(rng.binomial(whole, 0.7).astype(float), whole.astype(float))
        held += found.low <= 0.7 <= found.high
    assert 86 <= held <= 100


def test_gap_recovered_is_a_paired_ratio():
    base, thinking = table(seed=1).mean(-1), table(seed=1, lift=0.4).mean(-1)
    halfway = (base + thinking) / 2
    found = stats.gap_recovered(halfway, base, thinking)
    assert found.value == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5) and found.high == pytest.approx(0.5)
    assert stats.gap_recovered(thinking, base, thinking).value == pytest.approx(1)
    assert stats.gap_recovered(base, thinking, thinking) is None
    assert stats.gap_recovered(base, thinking, base) is None


def test_crossing_of_known_curves():
    ks = [1, 2, 4, 8, 16]
    assert stats.cross_at(ks, [0.1, 0.2, 0.4, 0.6, 0.7], [0.3] * 5) == pytest.approx(2**1.5)
    assert stats.cross_at(ks, [0.1] * 5, [0.3] * 5) == np.inf
    assert stats.cross_at(ks, [0.4] * 5, [0.3] * 5) == 1


def test_crossing_with_interval():
    """Base: every problem solved at rate 0.1. Thinking: 70 % always solved, the rest never.

    1 - 0.9^k = 0.7 at k = 11.4.
    """
    rng = np.random.default_rng(0)
    base = rng.random((3, 200, 64)) < 0.1
    thinking = np.broadcast_to((rng.random((1, 200, 1)) < 0.7), (3, 200, 64))
    ks = [1, 2, 4, 6, 8, 10, 12, 14, 16, 24, 32, 64]
    found = stats.crossing(ks, base, thinking)
    assert found.low < math.log(0.3) / math.log(0.9) < found.high
    assert found.low <= found.k <= found.high and found.high - found.low < 8
    assert found.share == 1
    never = stats.crossing([1, 2, 4], base, thinking)
    assert never.k is None and never.high is None and never.share == 0
    assert stats.crossing(ks, thinking, base).k is None


def test_four_cells():
    base = np.array([1, 1, 0, 0, 0, 1], bool)
    thinking = np.array([1, 0, 1, 0, 0, 1], bool)
    assert {cell: np.flatnonzero(where).tolist()
            for cell, where in stats.four_cells(base, thinking).items()} == {
        "both": [0, 5], "base_only": [1], "thinking_only": [2], "neither": [3, 4],
    }
    with pytest.raises(ValueError, match="thinking_solved"):
        stats.four_cells(base, thinking[:3])


def test_unpaired_shapes_are_rejected():
    with pytest.raises(ValueError, match="share"):
        stats.difference(np.zeros((3, 5)), np.zeros((3, 6)))
    with pytest.raises(ValueError, match="seeds, problems, samples"):
        stats.pass_curve(np.zeros((3, 5)), [1])


def test_full_size_is_quick():
    """3 seeds x 200 problems x 256 samples, the size of chapter 2: 0.1 s on an idle core."""
    correct = table(3, 200, 256)
    began = time.perf_counter()
    stats.pass_curve(correct, [2**i for i in range(9)])
    stats.crossing([2**i for i in range(9)], correct, table(3, 200, 256, seed=5))
    assert time.perf_counter() - began < 5


# --- parts of a gain, and things that were trained on --------------------------------------------

def toy(share, rates, n=100):
    """(strategy, correct) of n rollouts, as an enumerable policy deals them out exactly."""
    strategy = np.arange(n) < share * n
    correct = np.zeros(n, bool)
    for side, rate in zip((True, False), rates, strict=True):
        where = np.flatnonzero(strategy == side)
        correct[where[:round(rate * len(where))]] = True
    return strategy, correct


def test_the_split_adds_up_and_knows_pure_cases():
    before, after = toy(0.2, (0.5, 0.1)), toy(0.6, (0.8, 0.3))
    when, how = stats.when_and_how(before, after)
    assert when + how == pytest.approx(after[1].mean() - before[1].mean(), abs=1e-12)
    assert when == pytest.approx(0.4 * (0.65 - 0.2), abs=1e-9)
    assert how == pytest.approx(0.4 * 0.3 + 0.6 * 0.2, abs=1e-9)
    assert stats.when_and_how(before, toy(0.6, (0.5, 0.1)))[1] == pytest.approx(0)  # when alone
    assert stats.when_and_how(before, toy(0.2, (0.9, 0.5)))[0] == pytest.approx(0)  # how alone
    never = toy(0.0, (0.0, 0.1))  # a strategy that did not occur before
    when, how = stats.when_and_how(never, after)
    assert when + how == pytest.approx(after[1].mean() - 0.1, abs=1e-12)


def test_the_split_has_intervals_over_problems_and_seeds():
    rng = np.random.default_rng(3)
    strategy = [rng.random((3, 40, 4)) < share for share in (0.2, 0.7)]
    correct = [rng.random((3, 40, 4)) < np.where(s, 0.8, 0.1) for s in strategy]
    before, after = zip(strategy, correct, strict=True)
    parts = stats.gain_parts(before, after)
    assert [part.value for part in parts] == pytest.approx(stats.when_and_how(before, after))
    assert parts[0].low > 0.2 and parts[1].low < 0 < parts[1].high  # when alone
    once, again = stats.drawn(3, 40)
    found = [stats.when_and_how(*([x.repeat(s, 0).repeat(p, 1) for x in side]
                                  for side in (before, after)))
             for s, p in zip(once, again, strict=True)]
    # A bootstrap is wider, as it counts a cell's noise three times, but not by more than that.
    for part, (low, high) in zip(parts, stats.ends(np.array(found)).T, strict=True):
        assert 0.5 * (high - low) < part.high - part.low < 1.1 * (high - low)


def test_gap_difference_is_paired_over_problems_and_what_was_trained_on():
    rng = np.random.default_rng(0)
    base, thinking = ((rng.random((3, 100)) < rate).astype(float) for rate in (0.1, 0.6))
    x = np.stack([base + 0.1, thinking - 0.1, thinking], 2)
    found = stats.gap_difference(x + 0.05, x, base, thinking)
    gap = thinking.mean() - base.mean()
    assert found.value == pytest.approx(0.05 / gap)
    # what they share cancels in every resample, and leaves the gap's own spread
    assert 0.05 / (gap + 0.15) < found.low < found.value < found.high < 0.05 / (gap - 0.15)
    apart = stats.gap_difference(x[..., ::-1] + 0.05, x, base, thinking)
    assert apart.value == pytest.approx(found.value) and apart.low < -0.2 and apart.high > 0.2
    alone = stats.gap_difference(x, base, base, thinking)  # against nothing gained
    assert alone == pytest.approx(stats.gap_recovered(x, base, thinking))
    assert stats.gap_difference(x, x, base, base) is None


def test_gap_recovered_over_single_problems():
    rng = np.random.default_rng(0)
    base, thinking = rng.random((3, 80)) < 0.1, rng.random((3, 80)) < 0.7
    one = rng.random((3, 80, 1)) < 0.4
    found, plain = (stats.gap_recovered(one, base, thinking),
                    stats.gap_recovered(one[..., 0], base, thinking))
    assert found == pytest.approx(plain)
    several = np.stack([base, thinking] * 4, 2).astype(float)  # half of them gain all, half nothing
    wide = stats.gap_recovered(several, base, thinking)
    assert wide.value == pytest.approx(0.5) and wide.low < 0.3 and wide.high > 0.7
    assert stats.gap_recovered(several, base, base) is None
