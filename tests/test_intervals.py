"""Do intervals hold the truth as often as they say? Simulated seeds by problems, at our sizes.

`python tests/test_intervals.py` prints the table of `locksmith.stats`, in some minutes.
"""

import sys

import numpy as np
import pandas as pd
import pytest
from locksmith import stats
from locksmith.experiments import probes
from scipy.stats import norm
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.proportion import proportion_confint

MEANS = (0.12, 0.62, 0.40)  # accuracy of the base, the thinking model, and an arm between them
PROBLEM, CELL = 0.25, 0.08  # sd of a problem, and of a seed's own view of it
SEEDS, SAMPLES, SPREADS = (3, 6), (1, 4, 64), (0.0, 0.03, 0.06)


def share(base, thinking, arm):
    return (arm - base) / (thinking - base)


def simulated(rng, tables, seeds, problems, samples, spread):
    """(three models, seeds, problems, tables) of shares right, and the models' true accuracies.

    The truth is the mean over all seeds and problems that could be drawn; half of what makes a
    problem hard it has in common for all models.
    """
    size = (3, seeds, problems, tables)
    common, own = rng.normal(size=(1, 1, *size[2:])), rng.normal(size=(3, 1, *size[2:]))
    chance = (np.reshape(MEANS, (3, 1, 1, 1)) + spread * rng.normal(size=(3, seeds, 1, tables))
              + PROBLEM * np.sqrt(0.5) * (common + own) + CELL * rng.normal(size=size))
    grid = norm.ppf((np.arange(20_000) + 0.5) / 20_000) * np.hypot(spread, np.hypot(PROBLEM, CELL))
    truth = [np.clip(mean + grid, 0, 1).mean() for mean in MEANS]
    return rng.binomial(samples, np.clip(chance, 0, 1)) / samples, truth


def coverage(rng, tables, seeds, problems, samples, spread):
    """Shares of tables whose interval holds the truth: of an accuracy, and of a share of the gap;
    and the median width of the latter."""
    scores, truth = simulated(rng, tables, seeds, problems, samples, spread)
    found = stats.mean_interval(scores[1]), stats.interval(share, *scores)
    held = [np.mean((x.low <= right) & (right <= x.high))
            for x, right in zip(found, (truth[1], share(*truth)), strict=True)]
    return *held, np.median(found[1].high - found[1].low)


def test_six_seeds_hold_the_truth_as_often_as_they_say_and_three_nearly():
    """300 tables a cell: six seeds cover 94 to 97 % over all, three at least 93."""
    rng = np.random.default_rng(0)
    held = {seeds: np.array([[coverage(rng, 300, seeds, 100, n, spread)[:2] for n in SAMPLES]
                             for spread in SPREADS]) for seeds in SEEDS}
    for both in (held[6].mean((0, 1)), held[6].mean((0, 2)), held[6].mean((1, 2))):
        assert (both > 0.94).all() and (both < 0.97).all()
    assert 0.93 < held[3].mean() < 0.97
    for cells in held.values():
        assert cells.min() > 0.89 and cells.max() < 0.99


def test_gaps_are_shares_over_seeds_problems_and_what_was_trained_on():
    """`gap_recovered` and `gap_difference` of arms that were trained on four things each."""
    rng, held, tables = np.random.default_rng(1), np.zeros(2), 150
    scores, truth = simulated(rng, tables, 6, 100, 4, 0.03)
    effect = rng.normal(0, 0.05, (2, tables, 4))
    for i in range(tables):
        base, thinking, arm = scores[..., i]
        one, two = (arm[..., None] + few[i] for few in effect)
        gap = share(*truth), 0
        found = (stats.gap_recovered(one, base, thinking),
                 stats.gap_difference(one, two, base, thinking))
        held += [x.low <= right <= x.high for x, right in zip(found, gap, strict=True)]
        plain = stats.interval(share, base, thinking, arm)
        assert stats.gap_recovered(arm, base, thinking) == pytest.approx(plain)
    # The two arms share seeds and problems, so only the things are left: 2 x 0.05^2 / 4, known with
    # three degrees of freedom and more.
    assert (held / tables > 0.9).all() and (held / tables < 0.99).all()


def test_rare_events_are_covered_from_above():
    """Of 1 % of the answers, n = 1: the truth is hardly ever above the upper end."""
    rng = np.random.default_rng(2)
    hits = rng.random((6, 100, 500)) < rng.beta(0.2, 19.8, (1, 100, 500))
    found = stats.mean_interval(hits)
    assert np.mean(found.high < 0.01) < 0.05 and np.mean(found.low > 0.01) < 0.05
    assert (found.low >= 0).all() and (found.low <= found.value).all()


# --- against something else -----------------------------------------------------------------------

def test_the_variance_is_put_together_from_the_mean_squares_of_an_analysis_of_variance():
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(4, 9)) + rng.normal(size=(4, 1)) + rng.normal(size=(1, 9))
    rows = pd.DataFrame([(s, p, scores[s, p]) for s in range(4) for p in range(9)],
                        columns=["seed", "problem", "y"])
    table = anova_lm(ols("y ~ C(seed) + C(problem)", rows).fit())
    square, freedom = table["sum_sq"] / table["df"], table["df"]
    sign = np.array([1, 1, -1])
    variance, known = stats.spread(scores, 2)
    assert variance == pytest.approx((sign * square).sum() / 36)
    assert known == pytest.approx((sign * square).sum() ** 2 / (square**2 / freedom).sum())
    assert stats.spread(scores[:1], 2) == pytest.approx((scores[0].var(ddof=1) / 9, 8))
    assert stats.spread(np.broadcast_to(scores[:1], (4, 9)), 2) == pytest.approx(
        (scores[0].var(ddof=1) / 9, 8))  # seeds that agree add nothing


def test_three_crossed_axes_have_the_variance_of_the_closed_form():
    """The mean of 2,000 estimates is the sum of the components over how many stand behind each."""
    rng, sizes, sd = np.random.default_rng(4), (3, 20, 4), (0.5, 1.0, 0.7)
    effects = [a * rng.normal(size=[n if i == j else 1 for j in range(3)] + [2000])
               for i, (n, a) in enumerate(zip(sizes, sd, strict=True))]
    both = 0.8 * rng.normal(size=(3, 20, 1, 2000))
    variance, _ = stats.spread(sum(effects) + both + 0.3 * rng.normal(size=(*sizes, 2000)), 3)
    right = sum(a**2 / n for n, a in zip(sizes, sd, strict=True)) + 0.64 / 60 + 0.09 / 240
    assert variance.mean() == pytest.approx(right, rel=0.03)


def test_a_ratios_interval_is_near_fiellers():
    """Fieller 1954: the ratios r for which mean(x - b - r (t - b)) is not told from 0."""
    rng = np.random.default_rng(5)
    base, thinking, arm = (rng.random((1, 200)) < np.reshape([0.1, 0.6, 0.4], (3, 1, 1))).astype(
        float)
    found = stats.gap_recovered(arm, base, thinking)
    ratios = np.linspace(0, 1.5, 3001)
    left = arm - base - ratios[:, None] * (thinking - base)
    t = np.abs(left.mean(1)) / (left.std(1, ddof=1) / np.sqrt(200))
    inside = ratios[t < 1.97]
    assert found.low == pytest.approx(inside[0], abs=0.03)
    assert found.high == pytest.approx(inside[-1], abs=0.03)


def test_a_share_of_single_answers_is_wilsons():
    """One seed, one answer a problem: a proportion, up to n - 1 for n and t for z."""
    for right in (1, 10, 50, 99):
        found = stats.mean_interval((np.arange(100) < right).astype(float)[None])
        low, high = proportion_confint(right, 100, method="wilson")
        assert found.low == pytest.approx(low, abs=0.004)
        assert found.high == pytest.approx(high, abs=0.004)


def test_an_area_under_the_curve_has_delongs_variance():
    """DeLong, DeLong and Clarke-Pearson 1988, one place a problem, from the structural components:
    how often each positive scores above the negatives, and the other way round."""
    rng = np.random.default_rng(6)
    y = rng.random(150) < 0.4
    scores = rng.normal(size=150) + y
    above = scores[y][:, None] > scores[~y][None]
    error = np.sqrt(above.mean(1).var(ddof=1) / y.sum() + above.mean(0).var(ddof=1) / (~y).sum())
    found = probes.auroc_interval([(scores, y, np.arange(150))])
    assert found.value == pytest.approx(above.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.976 * error, rel=0.03)


def test_pseudovalues_of_a_mean_are_its_values():
    values = np.random.default_rng(7).normal(size=12)
    assert stats.pseudovalues(lambda counts: counts @ values / counts.sum(1), 12) == pytest.approx(
        values)


def main():
    rng, tables = np.random.default_rng(0), int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print("seeds  n " + "".join(f"   seed sd {100 * spread:.0f}" for spread in (*SPREADS, 0.1)))
    for seeds in SEEDS:
        for n in SAMPLES:
            cells = [coverage(rng, tables, seeds, 200, n, spread) for spread in (*SPREADS, 0.1)]
            print(f"{seeds:5d} {n:3d}" + "".join(f"   {mean:.3f} {gap:.3f} ({width:.2f})"
                                               for mean, gap, width in cells), flush=True)


if __name__ == "__main__":
    main()
