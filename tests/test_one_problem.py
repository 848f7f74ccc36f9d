"""Chapter 3's study: what each arm is trained on, and how outcomes become shares,
parts and costs."""

import re
from itertools import product

import numpy as np
import pytest
from locksmith import arms, parallel, results
from locksmith.arms import treatment
from locksmith.book import claims
from locksmith.errors import BadInput
from locksmith.experiments import critics, one_problem, tuning
from locksmith.experiments.one_problem import OneProblemStudy, treatment_of
from locksmith.loading import Pair

SEEDS = (0, 1)
PAIRS = {("sums", seed): Pair("toy", "sums", seed, "toy", "toy/thinking") for seed in SEEDS}
RECIPE = tuning.Recipe(2, 24, 0.001)


def study():
    """A study of sums with two single problems, each with a right and two wrong solutions."""
    made = OneProblemStudy(PAIRS, parallel.Serial(), tuning.Size(4, 2, 16), RECIPE)
    problems = tuning.pool(PAIRS["sums", 0], 2)
    solutions = [[tuning.Solution(f" The answer is {int(p.answer) + off}.\n", off == 0)
                  for off in (0, 1, 2)] for p in problems]
    made.single = {"sums": one_problem.Singles(problems, [0.5, 0.1], solutions, 30.0)}
    return made


def outcome(right, strategy, **log):
    right, strategy = np.asarray(right, bool), np.asarray(strategy, bool)
    return tuning.Evaluation(right, right, strategy, np.full(right.shape, 7),
                             {name: np.ones(right.shape) for name in tuning.COUNTS}, log)


@pytest.fixture
def known():
    """A study of one critique arm whose first single problem gains nothing and whose second all."""
    rng, made = np.random.default_rng(0), study()
    base, thinking = ({seed: outcome(rng.random((50, 4)) < rate, rng.random((50, 4)) < 0.5)
                       for seed in SEEDS} for rate in (0.1, 0.7))
    for name, found in (("base", base), ("thinking", thinking)):
        made.keep(None, {("sums", name, 0, seed): o for seed, o in found.items()})
    logged = {"losses": [2.0, 1.5, 1.0], "read": 100, "verdicts": (0.0, 1.0), "text_loss": 3.0}
    made.keep(None, {("sums", "critiques", q, seed): (base, thinking)[q][seed]._replace(log=logged)
                     for q, seed in product(range(2), SEEDS)})
    return made


# --- what is trained on --------------------------------------------------------------------------

def test_arms_differ_in_what_they_say_of_the_same_solutions():
    made, task = study(), PAIRS["sums", 0].rules
    names = (*one_problem.MAIN, *one_problem.MORE)
    written = {name: made.texts("sums", name, 0) for name in names}
    problem = made.single["sums"].problems[0]
    assert written["sft-right"] == [(task.prompt(problem), f" The answer is {problem.answer}.\n")]
    assert len(written["sft-wrong"]) == 2
    exact = written["critiques"]
    assert [task.verdict(said) for _, said in exact] == ["right", "wrong", "wrong"]
    for name in critics.CRITICS:
        assert [given for given, _ in written[name]] == [given for given, _ in exact]
    assert [task.verdict(said) for _, said in written["flipped-critiques"]] == ["wrong", "right",
                                                                                "right"]
    shuffled = written["shuffled-critiques"]
    assert sorted(said for _, said in shuffled) == sorted(said for _, said in exact)
    assert all(a[0] == b[0] and a[1] != b[1] for a, b in zip(exact, shuffled))
    # noise may flip nothing
    assert len({str(pairs) for pairs in written.values()}) >= len(names) - 1


def test_single_problems_are_chosen_with_solutions_that_end():
    made = OneProblemStudy(PAIRS, parallel.Serial(), tuning.Size(4, 2, 64), RECIPE)
    made.choose(2, 3, 2, 3)
    single = made.single["sums"]
    assert len(single.problems) == len(single.solutions) == 2 and single.generated > 0
    assert all(one.text.endswith("\n") for some in single.solutions for one in some)
    short = OneProblemStudy(PAIRS, parallel.Serial(), tuning.Size(4, 2, 1), RECIPE)
    with pytest.raises(BadInput, match="^max_new_tokens is 1, .* allowed is"):
        short.choose(2, 3, 2, 3)


def test_every_arm_leaves_an_outcome_for_each_seed_and_single_problem():
    made = study()
    made.judge(2)
    made.untouched()
    made.train(["critiques"], range(2))
    made.train(["critiques"], [1], 0.01)
    made.train_own([1])
    made.train_many(3, 2)
    made.reinforce(dict(steps=2, problems=2, samples=2, lr=0.001, max_new_tokens=8), [0])
    sizes = {(arm.id, arm.given.get("learning_rate")): [len(row) for row in made.rows("sums", arm)]
             for _, arm in made.outcomes}
    assert all(size == [1, 1] for name, size in sizes.items() if name != ("critiques", None))
    assert sizes["critiques", None] == [2, 2]
    assert {"rl-one-problem", *one_problem.SPURIOUS} <= {name for name, _ in sizes}
    assert all(arms.get(arm.id) for _, arm in made.outcomes)
    assert made.resized(3).single is made.single and made.resized(3).outcomes == {}


# --- what came of it -----------------------------------------------------------------------------

def test_a_problem_that_gains_all_and_one_that_gains_nothing_make_half(known):
    arm = treatment("critiques")
    whole = known.recovered("sums", arm)
    assert whole.value == pytest.approx(0.5)
    assert known.recovered("sums", arm, 0).value == pytest.approx(0)
    assert known.recovered("sums", arm, 1).value == pytest.approx(1)
    assert whole.low < 0.2 and whole.high > 0.8  # two problems that differ: nothing is certain
    assert known.recovered("sums", treatment("thinking")) is None
    assert known.each("sums", arm) == pytest.approx([0, 1])
    best = known.best_and_worst("sums", arm)
    assert best["best"][0] == 1 and best["worst"][0] == 0


def test_facts_name_their_arm_and_stand_once(known):
    arm, faster = treatment("critiques"), treatment("critiques", learning_rate=0.5)
    known.keep(0.5, {("sums", "critiques", 1, seed): known.outcomes["sums", arm][seed, 1]
                     for seed in SEEDS})
    record = results.Recorder("toy", "03", seeds=SEEDS, n_problems=50, n_samples=4)
    known.record(record, {})
    assert {treatment_of(fact) for fact in record.facts} == {arm for _, arm in known.outcomes}
    rows = record.frame("gap_recovered")
    assert [treatment_of(row) for _, row in rows.iterrows()] == [arm, faster]
    assert faster.label == "critiques, rate 0.5"
    assert record.get("sums", "critiques", "gap_recovered",
                      learning_rate=0.5).value == pytest.approx(1)
    assert known.not_below("sums", treatment("critiques")) == []  # of other arms
    known.keep(None, {("sums", "flipped-critiques", 0,
                       seed): known.outcomes["sums", treatment("thinking")][
        seed, 0] for seed in SEEDS})
    assert known.not_below("sums", treatment("critiques")) == ["flipped critiques"]


def test_when_and_how_add_up_to_the_gain(known):
    when, how = known.when_and_how("sums", treatment("thinking"))
    levels = [known.level("sums", treatment(name)).value for name in ("base", "thinking")]
    assert when.value + how.value == pytest.approx(levels[1] - levels[0])


def test_logs_and_costs_by_hand(known):
    arm, size = treatment("critiques"), one_problem.parameters(PAIRS["sums", 0])
    assert known.log("sums", arm, "losses").tolist() == [2, 1]
    assert known.log("sums", arm, "verdicts").tolist() == [0, 1]
    assert known.log("sums", treatment("base"), "verdicts") is None
    assert known.operations("sums", arm, {}) == size * (6 * 100 + 2 * 30)
    assert known.operations("sums", treatment("base"), {}) == 0
    assert known.operations("sums", treatment("thinking"), {}) is None  # nobody knows
    known.keep(None, {("sums", "format-reward", 0, seed): outcome(
        [[1]], [[1]], curve=[{"tokens": 5.0}, {"tokens": 7.0}]) for seed in SEEDS})
    spent = known.operations("sums", treatment("format-reward"), {"format-reward": 10})
    assert spent == size * 8 * 120
    assert known.mean("sums", arm, "tokens") == 7


def test_every_arm_that_a_rule_of_the_claim_reads_is_one_of_the_study():
    rules = next(c for c in claims.load()["claims"] if c["id"] == "one-problem")["parts"]
    asked = {name for part in rules for name in re.findall(
        r"(?:^|[\s])([a-z-]+)\.gap_recovered", part["rule"])}
    assert asked and asked <= {*one_problem.MAIN, *one_problem.MORE}
