"""Chapter 7's facts against brute force, its intervals against worlds whose truth is known, and its
verdict on made-up models that only use what was read, or that learn whatever it is."""

import itertools
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from locksmith import results, stats
from locksmith.book import claims
from locksmith.experiments import ladder_facts
from locksmith.experiments.ladder_facts import Marks
from locksmith.tasks import chain, countdown
from repository import ROOT

EXPOSURES = (0.0, 0.001, 0.01, 0.1, 0.95)
READ = dict(zip(EXPOSURES, (0.0, 0.03, 0.25, 0.4, 0.5)))  # what RL gains where it only uses


# --- what an answer does --------------------------------------------------------------------------

@pytest.mark.parametrize("text, back, on", [
    ("try 3 * 7 = 21 + 9 = 30 check 30 no wait 9 * 7 = 63 - 3 = 60 so 9 * 7 - 3 <eos>", 1, 0),
    ("try 3 * 7 = 21 + 9 = 30 check 30 no maybe 9 * 7 = 63 - 3 = 60 so 9 * 7 - 3 <eos>", 0, 1),
    ("try 3 * 7 = 21 + 9 = 30 check 30 no so 3 * 7 + 9 try 9 * 7 = 63 - 3 = 60 <eos>", 0, 0),
    ("try 3 * 7 = 21 + 9 = 30 check 30 yes try 9 * 7 = 63 - 3 = 60 <eos>", 0, 0),
    ("try 3 * 7 = 21 + 9 = 30 check 30 no so 3 * 7 + 9 next try 9 * 7 = 63 - 3 = 60", 0, 0),
    ("", 0, 0),
])
def test_going_back_and_trying_on_are_told_apart(text, back, on):
    problem = countdown.Problem((3, 7, 9), (30, 63))
    assert ladder_facts.goes_back(problem, text) == back
    assert ladder_facts.tries_on(problem, text) == on


@pytest.mark.parametrize("text, whole, head", [
    ("try 9 * 3 = 27 try 27 - 8 = 19 try 45 - 18 = 27 so 19 27 <eos>", 1, 0),
    ("try 9 * 3 = 27 try 27 - 8 = 19 so 19 27 <eos>", 0, 1),
    ("try 9 * 3 = 27 so 27 45 <eos>", 0, 0),
    ("try 9 * 3 = 27 try 27 - 8 = 18 try 45 - 18 = 27 so 18 27 <eos>", 1, 0),
])
def test_a_whole_working_and_an_answer_in_the_head_are_told_apart(text, whole, head):
    problem = chain.Problem(((9, (("*", 3), ("-", 8))), (45, (("-", 18),))))
    assert ladder_facts.UNREAD["chain"](problem, text) == whole
    assert ladder_facts.in_the_head(problem, text) == head


# --- estimators -----------------------------------------------------------------------------------

def one(rng, problems=30, n=4, right=0.5, **rates):
    """A made-up `Marks`: an answer is right at its rate and takes the strategy where it is, and
    does any other thing at that thing's rate."""
    correct, attempts = rng.random((problems, n)) < right, np.full((problems, n), 4)
    other = {name: rng.random((problems, n)) < rates.get(name, 0.0)
             for name in ("unread", "invented")}
    return Marks(correct=correct, trace=correct, strategy=correct, **other, attempts=attempts,
                    valid_attempts=attempts, invention="")


def several(seed, **how):
    return [one(np.random.default_rng([seed, i]), **how) for i in range(3)]


def test_shares_and_the_slope_are_those_of_plain_means():
    bases = [several(i, right=0.1) for i in range(5)]
    tuned = [several(10 + i, right=0.15 + 0.1 * i, n=2) for i in range(5)]
    gained = [ladder_facts.gains(*pair) for pair in zip(tuned, bases, strict=True)]
    means = [np.mean([one.correct.mean() for one in after])
             - np.mean([one.correct.mean() for one in before])
             for after, before in zip(tuned, bases, strict=True)]
    for gain, mean in zip(gained, means, strict=True):
        found = ladder_facts.share_of(gain, gained[-1])
        assert found.value == pytest.approx(mean / means[-1])
    assert tuple(ladder_facts.share_of(gained[-1], gained[-1])) == pytest.approx((1, 1, 1))
    assert ladder_facts.share_of(gained[0], 0 * gained[-1]) is None
    slope = ladder_facts.slope(EXPOSURES, gained, gained[-1])
    line = np.polyfit(np.log10(EXPOSURES[1:]), np.array(means[1:]) / means[-1], 1)
    assert slope.value == pytest.approx(line[0]) and slope.low < line[0] < slope.high
    alike = ladder_facts.slope(EXPOSURES, [gained[-1]] * 5, gained[-1])
    assert tuple(alike) == pytest.approx((0, 0, 0), abs=1e-12)


def test_contrast_is_that_of_every_group_there_is():
    correct = np.random.default_rng(0).random((2, 5, 6)) < 0.3
    for group in (1, 2, 4, 6, 9):
        groups = list(itertools.combinations(range(6), min(group, 6)))
        mixed = [0 < sum(row[list(some)]) < len(some) for row in correct.reshape(-1, 6)
                 for some in groups]
        assert ladder_facts.contrast(correct, group).value == pytest.approx(np.mean(mixed))


def test_a_change_is_paired_and_what_was_never_seen_is_no_certainty():
    before, after = several(0, unread=0.3), several(1, unread=0.5, n=2)
    found = ladder_facts.change(after, before, "unread")
    rates = [np.mean([one.unread.mean() for one in side]) for side in (after, before)]
    assert found.value == pytest.approx(rates[0] - rates[1])
    nothing = ladder_facts.change(several(0), several(1), "unread")
    assert (nothing.value, nothing.low) == (0, 0)
    assert nothing.high == pytest.approx(stats.wilson(0, 30).high)


def test_what_an_arm_solves_alone_is_counted_problem_by_problem():
    rng = np.random.default_rng(0)
    range_, edge, base, taught = (rng.random((3, 40)) < p for p in (0.3, 0.4, 0.2, 0.5))
    found = ladder_facts.alone({"thinking": range_, "rl-at-edge": edge}, base, taught)
    for arm, rows in {"thinking": range_, "rl-at-edge": edge, "any-rl": range_ | edge}.items():
        count = sum(rows[s, p] and not base[s, p] and not taught[s, p]
                    for s in range(3) for p in range(40))
        assert found[arm].value == pytest.approx(count / 120)


def test_answers_are_drawn_in_rounds_until_a_problem_is_solved(monkeypatch):
    """A problem p is solved by its answer number p; every answer has random numbers of its own."""
    sizes, seeds, asked = [], set(), Counter()

    def answer(model, task, problems, n, seed, keys, max_new_tokens):
        assert keys == problems and seed not in seeds
        seeds.add(seed)
        sizes.append((len(problems), n))
        start = dict(asked)
        asked.update(dict.fromkeys(problems, n))
        return SimpleNamespace(correct=np.array([[start.get(p, 0) + i == p for i in range(n)]
                                                 for p in problems]))
    monkeypatch.setattr(ladder_facts.rollouts, "answer", answer)
    pair = SimpleNamespace(load=lambda role: None, rules=None, seed=3)
    solved = ladder_facts.solved_within(pair, "base", list(range(20)), range(0, 20, 2), 10, 8,
                                        first=4)
    assert np.flatnonzero(solved).tolist() == [0, 2, 4, 6, 8]
    assert sizes == [(10, 4), (8, 4), (6, 2)]
    assert not ladder_facts.solved_within(pair, "base", [0], [], 10, 8).any()


# --- worlds of which the truth is known -----------------------------------------------------------

def test_intervals_of_a_share_cover_the_truth_at_the_chapters_size():
    """Three seeds, 200 problems, 16 answers of a base and 2 of a trained model: with seeds as far
    apart as those of edition 1 (gains of .55, .47 and .53, and of .56, .57 and .49) a 95 % interval
    of a tenth to three tenths of the gain holds it 94 to 97 times in a hundred."""
    rng, held, wide = np.random.default_rng(7), [], np.random.default_rng(1).normal(size=1_000_000)

    def rates(middle, spread, hardness):
        """Of right answers, (seeds, problems): what is hard is so for all, and a bit by seed."""
        apart = rng.normal(0, spread, (3, 1)) + rng.normal(0, 0.8, (3, 200))
        return 1 / (1 + np.exp(-(middle + hardness + apart)))

    def mean(middle, spread):
        return np.mean(1 / (1 + np.exp(-(middle + np.sqrt(1.2**2 + 0.8**2 + spread**2) * wide))))
    base, full = (-2.4, 0.1), (0.5, 0.25)
    for lower in ((-2.0, 0.1), (-1.6, 0.15), (-1.35, 0.2)):
        truth = (mean(*lower) - mean(*base)) / (mean(*full) - mean(*base))
        for _ in range(500):
            hardness = rng.normal(0, 1.2, 200)
            before = [rng.binomial(16, rates(*base, hardness)) / 16 for _ in "01"]
            after = [rng.binomial(2, rates(*how, hardness)) / 2 for how in (full, lower)]
            found = stats.gap_recovered(after[1] - before[1], np.zeros((3, 200)),
                                        after[0] - before[0])
            held.append(found.low <= truth <= found.high)
        assert 0.09 < truth < 0.3
    assert 0.94 <= np.mean(held) <= 0.97


def record_of(monkeypatch, gain_at, taught=0.0, start_gain=0.05):
    """A record of the lab whose RL adds gain_at(exposure), in both families."""
    monkeypatch.chdir(ROOT)
    record = results.Recorder("lab", "07", seeds=[3, 4, 5], n_problems=100, n_samples=4)
    size = dict(problems=100)
    for f, family in enumerate(("countdown", "chain")):
        def pair(i, gain, start=0.15, f=f, **how):
            return (several(100 * f + i, right=start + gain, **size, **how),
                    several(1000 + 100 * f + i, right=start, n=16, **size))
        ladder = {x: pair(i, gain_at(x), unread=taught if x == 0 else 0.3)
                  for i, x in enumerate(EXPOSURES)}
        ladder_facts.exposure(record, family, ladder, 16)
        starts = {"easier": start_gain, "harder": gain_at(0.95) - 0.1, "contrast": start_gain,
                  "plateau": start_gain}
        ladder_facts.start(record, family, {name: pair(10 + i, gain) for i, (name, gain)
                                            in enumerate(starts.items())}, ladder[0.95], 16)
        ladder_facts.skill(record, family, {share: pair(20 + i, 0.3) for i, share in
                                            enumerate((0.1, 0.3, 1.0))})
    rows = {("range", 0): 0.4, ("mixed", 0): 0.4, ("edge", 0): 0.3, ("taught", 0): 0.3,
            ("read", 0): 0.5, ("read", 1): 0.4}
    ladder_facts.depth(record, "chain", {
        (value, place): pair(30 + 3 * j + i, rows.get((value, i), 0.0), start=0.05)
        for j, value in enumerate(ladder_facts.DEPTHS)
        for i, place in enumerate(ladder_facts.PLACES)})
    solved = np.zeros((3, 100), bool)
    solved[:, :20] = taught > 0
    found = ladder_facts.alone({"rl-at-edge": solved}, 0 * solved, 0 * solved)
    for arm, interval in found.items():
        record.fact("chain", arm, "solved_alone", interval, variant="edge")
    return record


def verdicts(record):
    rows = [{"profile": "lab", "chapter": "07", **fact, "seeds": len(fact["seeds"])}
            for fact in record.facts]
    for row in rows:
        row["quantity"] = results.quantities.name(row["quantity"], row)
    book = claims.load(ROOT / "claims.yml")
    return {row["family"]: row for row in claims.verdicts(book, rows, {}, ["lab"])
            if row["claim"] == "keys-never-cut"}


def told(row):
    return {part["id"]: part["outcome"] for part in row["parts"]}


def test_a_world_where_rl_uses_what_was_read_bears_the_claim_out(monkeypatch):
    found = verdicts(record_of(monkeypatch, READ.get))
    assert {row["verdict"] for row in found.values()} == {"holds"}, found
    assert told(found["countdown"])["edge"] is None and told(found["chain"])["edge"] == "holds"


def test_a_world_where_rl_teaches_what_was_never_read_refutes_it(monkeypatch):
    found = verdicts(record_of(monkeypatch, lambda exposure: 0.5, taught=0.4))
    for family, row in found.items():
        assert row["verdict"] == "refuted"
        outcomes = told(row)
        for part in ("absent", "a-trace", "slope", "unread", *["edge"] * (family == "chain")):
            assert outcomes[part] == "refuted", (family, part)


def test_a_base_that_merely_starts_lower_takes_the_credit(monkeypatch):
    found = verdicts(record_of(monkeypatch, READ.get, start_gain=0.5))
    for row in found.values():
        assert row["verdict"] == claims.NOT_BECAUSE
        assert row["causes"] == ["what pre-training showed"] * 3
