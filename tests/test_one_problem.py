"""Chapter 3's study: what each arm is trained on, and how outcomes become shares,
parts and costs."""

import random
import re
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from locksmith import arms, finetune, model, parallel, results
from locksmith.arms import treatment
from locksmith.book import claims
from locksmith.errors import BadInput
from locksmith.experiments import critics, one_problem, tuning
from locksmith.experiments.one_problem import OneProblemStudy
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
    others = tuning.pool(PAIRS["sums", 0], 6)[2:]
    wrong = tuning.Solution(" The answer is 99.\n", False)
    made.others = made.reviews({"sums": others}, {"sums": ([[wrong]] * 4, 0)}, lambda some: some)
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
        made.keep({("sums", name, 0, seed): o for seed, o in found.items()})
    said = np.array([True] * 15 + [False] * 5)
    logged = {"losses": [2.0, 1.5, 1.0], "read": 100, "verdicts": said, "text_loss": 3.0}
    made.held_out = {"sums": [("", f" The answer 1 is {x}.\n")
                              for x in ["right"] * 8 + ["wrong"] * 12]}
    made.keep({("sums", "critiques", q, seed): (base, thinking)[q][seed]._replace(log=logged)
                     for q, seed in product(range(2), SEEDS)})
    return made


# --- what is trained on --------------------------------------------------------------------------

def test_arms_differ_in_what_they_say_of_the_same_solutions():
    made, task = study(), PAIRS["sums", 0].rules
    written = {name: made.texts("sums", name, 0) for name in one_problem.ARMS}
    problem = made.single["sums"].problems[0]
    assert written["sft-right"] == [(task.prompt(problem), f" The answer is {problem.answer}.\n")]
    assert len(written["sft-wrong"]) == 2
    exact = written["critiques"]
    assert [task.verdict(said) for _, said in exact] == ["right", "wrong", "wrong"]
    for name in (*critics.CRITICS, "shuffled-critiques"):
        assert [given for given, _ in written[name]] == [given for given, _ in exact]
    verdicts = {name: [task.verdict(said) for _, said in pairs] for name, pairs in written.items()}
    assert verdicts["flipped-critiques"] == ["wrong", "right", "right"]
    assert verdicts["verdict-alone"] == verdicts["critiques"]
    assert verdicts["working-alone"] == [None] * 3
    for (_, said), (_, work), (_, verdict) in zip(exact, written["working-alone"],
                                                  written["verdict-alone"]):
        assert said.startswith(work.rstrip(".\n")) and said.endswith(verdict[-8:])
    assert len({str(pairs) for pairs in written.values()}) == len(written)


def test_shuffled_critiques_are_of_other_problems_solutions():
    made = study()
    own = {said for q in range(2) for _, said in made.texts("sums", "critiques", q)}
    shuffled = [said for _, said in made.texts("sums", "shuffled-critiques", 0)]
    assert len(set(shuffled)) == 3 and not own & set(shuffled)
    assert set(shuffled) < {said for _, said in made.texts("sums", "many-critiques", 0)}
    work = made.single["sums"].problems[0].working
    assert not any(work in said for said in shuffled)


def test_a_quarter_of_the_targets_are_right_answers():
    made, base = study(), PAIRS["sums", 0].load("base")
    for q, (name, plain) in product(range(2), one_problem.MIXED.items()):
        texts, mixed = made.texts("sums", plain, q), made.texts("sums", name, q)
        answers = mixed[len(texts):]
        assert mixed[:len(texts)] == texts
        assert set(answers) == set(made.texts("sums", "sft-right", q))
        said, whole = (sum(len(base.encode(wanted)) for _, wanted in pairs)
                       for pairs in (answers, mixed))
        assert abs(said - 0.25 * whole) < len(base.encode(answers[0][1]))
    made.single["sums"].solutions[0][:1] = []  # without a right solution there is no such arm
    assert made.texts("sums", "critiques-and-answers", 0) == []


def test_an_arm_that_reads_more_takes_as_many_steps_as_read_what_critiques_do():
    made, base = study(), PAIRS["sums", 0].load("base")
    made.recipe = tuning.Recipe(20, 2048, 0.001)

    def read(arm):
        pairs = [(base.begin(given), base.encode(wanted))
                 for given, wanted in made.texts("sums", arm, 0)]
        packed = finetune.pack(pairs, made.steps("sums", arm, 0), 2048, 0)
        return sum(int((targets != finetune.IGNORED).flip(1).cumsum(1).bool().sum())
                   for step in packed for _, targets in step)
    uncapped = {arm: read(arm) for arm in ("critiques", "verdict-alone", "sft-right")}
    made.capped = True
    assert read("critiques") == uncapped["critiques"] and made.steps("sums", "critiques", 0) == 20
    assert uncapped["verdict-alone"] > 1.25 * read("critiques")
    assert read("verdict-alone") == pytest.approx(read("critiques"), rel=0.1)
    if uncapped["sft-right"] <= uncapped["critiques"]:
        assert read("sft-right") == uncapped["sft-right"]


def test_solutions_to_judge_leave_room_for_a_verdict():
    problem, task = study().single["sums"].problems[0], PAIRS["sums", 0].rules
    solutions = [tuning.Solution(f"{' 1 + 1 = 2.' * n} The answer is {problem.answer}.\n", n > 4)
                 for n in (1, 9, 5)]
    whole = PAIRS["sums", 0].load("base")

    def chosen(context, right=True):
        base = SimpleNamespace(begin=whole.begin, encode=whole.encode, context=context)
        return one_problem.judged(base, task, problem, solutions, right)
    sizes = [(len(whole.begin(given)), len(whole.encode(wanted))) for given, wanted in
             tuning.critique_pairs(task, problem, solutions, critics.exact, random.Random(0))]
    assert chosen(10**6)[0][0] == task.review(problem, solutions[1].text)  # the first right one
    assert chosen(10**6, False)[0][0] == task.review(problem, solutions[0].text)
    needed = [max(4 * given, -(-8 * wanted // 3)) for given, wanted in sizes]
    assert chosen(needed[2] + 8)[0][0] == task.review(problem, solutions[2].text)
    assert chosen(needed[0] + 8)[0][0] == task.review(problem, solutions[0].text)
    assert chosen(needed[0] - 8) == []
    for context in (needed[0] + 8, needed[2] + 8):
        (given, wanted), = chosen(context)
        assert len(whole.begin(given)) + 2 * len(whole.encode(wanted)) <= context


def test_rl_that_still_rises_is_told_from_rl_at_its_plateau(known):
    def curve(accuracies):
        return [{"accuracy": x, "tokens": 1.0} for x in accuracies]
    rising, flat = curve(np.arange(50) / 50), curve([*np.arange(30) / 30, *[0.9] * 20])
    assert one_problem.late_gain([[rising] * 2] * 3).value == pytest.approx(10 / 50)
    assert one_problem.late_gain([[flat] * 2] * 3) == pytest.approx((0, 0, 0))
    assert one_problem.late_gain([[curve([0.5])]]) is None
    mixed = one_problem.late_gain([[rising, flat], [flat, rising]])
    assert mixed.value == pytest.approx(0.1) and mixed.low < 0.05 < 0.15 < mixed.high
    known.keep({("sums", "rl-one-problem", 0, seed): outcome([[1]], [[1]], curve=rising, rollouts=1)
                for seed in SEEDS})
    record = results.Recorder("toy", "03", seeds=SEEDS, n_problems=50, n_samples=4)
    known.record_plateaus(record)
    assert [(f["model"], f["quantity"]) for f in record.facts] == [("rl-one-problem", "late_gain")]


def test_each_arm_takes_the_rate_that_is_right_most_often(monkeypatch):
    asked, rates = [], []

    def run(self, function, jobs):  # right by the rate, and a list of what was trained
        if function is tuning.tuned:
            rates.extend(job["recipe"].lr for job in jobs.values())
            return {key: outcome([[1]], [[1]]) for key in jobs}
        asked.extend((job["pair"].seed, job["size"]) for job in jobs.values())
        return {key: {0.1: 0.2, 0.01: 0.7, 0.001: 0.7}[key[-1]] for key in jobs}
    monkeypatch.setattr(OneProblemStudy, "run", run)
    made = study()
    made.choose_rates(["critiques", "sft-right"], [0.1, 0.01, 0.001], 9)
    assert made.rates == {("sums", "critiques"): 0.01, ("sums", "sft-right"): 0.01}
    assert made.tried["sums", "critiques"] == {0.1: 0.2, 0.01: 0.7, 0.001: 0.7}
    assert set(asked) == {(0, tuning.Size(9, 1, 16, "validation"))}
    made.train(["critiques", "format-only"], [0])
    assert rates == [0.01, 0.01, RECIPE.lr, RECIPE.lr]  # the chapter's own where none was chosen


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
    with pytest.raises(BadInput, match="^max_new_tokens is 16, .* allowed is"):
        made.gather(3, 2)
    longer = OneProblemStudy(PAIRS, parallel.Serial(), tuning.Size(4, 2, 64), RECIPE)
    longer.gather(3, 2)
    made.others = longer.others
    made.judge(2, 2)
    made.untouched()
    made.choose_rates(["critiques"], [0.001, 0.01], 2)
    made.train(["critiques"], range(2))
    made.train(["format-and-answers"], [1])
    made.train(["many-critiques"], [0])
    made.reinforce(one_problem.RL, dict(steps=2, problems=2, samples=2, lr=0.001,
                                        max_new_tokens=8), [0])
    sizes = {arm.id: [len(row) for row in made.rows("sums", arm)] for _, arm in made.outcomes}
    assert sizes.pop("critiques") == [2, 2] and set(map(tuple, sizes.values())) == {(1, 1)}
    assert {"format-and-answers", "many-critiques", *one_problem.RL} <= set(sizes)
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


def test_facts_of_every_arm_and_its_rivals(known):
    known.keep({("sums", "flipped-critiques", q, seed): known.outcomes[
        "sums", treatment("base")][seed, 0] for q, seed in product(range(2), SEEDS)})
    known.keep({("sums", "many-critiques", 0, seed): known.outcomes[
        "sums", treatment("thinking")][seed, 0] for seed in SEEDS})
    record = results.Recorder("toy", "03", seeds=SEEDS, n_problems=50, n_samples=4)
    known.record(record)
    assert {(fact["family"], treatment(fact["model"])) for fact in record.facts} == set(
        known.outcomes)
    minus = {(row["model"], row["against"]): row["value"]
             for _, row in record.frame("gap_difference").iterrows()}
    assert minus == pytest.approx({("critiques", "flipped-critiques"): 0.5,
                                   ("many-critiques", "critiques"): 0.5})
    whole = known.recovered("sums", treatment("critiques"))  # against what gains nothing
    assert record.get("sums", "critiques", "gap_difference",
                      against="flipped-critiques") == pytest.approx(whole)


def test_verdicts_are_compared_with_the_commoner_one(known):
    arm = treatment("critiques")
    assert known.judging("sums", arm).value == 0.75 and known.constant("sums") == 0.6
    assert known.judging("sums", treatment("base")) is None
    record = results.Recorder("toy", "03", seeds=SEEDS, n_problems=50, n_samples=4)
    known.record(record)
    above = record.get("sums", "critiques", "verdicts_over_constant")
    assert above.value == pytest.approx(0.15) and -0.1 < above.low < 0.05 < above.high < 0.4
    fact = next(f for f in record.facts if f["quantity"] == "verdicts_over_constant")
    assert (fact["n_problems"], fact["n_samples"]) == (20, 1)


def test_when_and_how_add_up_to_the_gain(known):
    when, how = known.when_and_how("sums", treatment("thinking"))
    levels = [known.level("sums", treatment(name)).value for name in ("base", "thinking")]
    assert when.value + how.value == pytest.approx(levels[1] - levels[0])


def test_logs_and_costs_by_hand(known):
    arm, size = treatment("critiques"), one_problem.parameters(PAIRS["sums", 0])
    assert known.log("sums", arm, "losses").tolist() == [2, 1]
    assert known.log("sums", treatment("base"), "losses") is None
    assert known.operations("sums", arm) == size * (6 * 100 + 2 * 30)
    assert known.operations("sums", treatment("base")) == 0
    assert known.operations("sums", treatment("thinking")) is None  # nobody knows
    known.keep({("sums", "format-reward", 0, seed): outcome(
        [[1]], [[1]], curve=[{"tokens": 5.0}, {"tokens": 7.0}], rollouts=10) for seed in SEEDS})
    assert known.operations("sums", treatment("format-reward")) == size * 8 * 120
    assert known.mean("sums", arm, "tokens") == 7


def test_every_arm_that_a_rule_of_the_claim_reads_is_one_of_the_study():
    rules = next(c for c in claims.load()["claims"] if c["id"] == "one-problem")["parts"]
    text = "\n".join(part["rule"] for part in rules)
    asked = set(re.findall(r"(?:^|\s)([a-z-]+)\.[a-z]", text)) - {"base", "thinking"}
    assert asked and asked <= {*one_problem.ARMS, *one_problem.RL}
    rivals = set(re.findall(r"critiques\.gap_difference\[against=([a-z-]+)\]", text))
    assert rivals <= {*one_problem.RIVALS, "critiques"}


def test_arms_that_a_stage_trained_are_read_with_what_they_cost(tmp_path):
    base = PAIRS["sums", 0].load("base", exact=True)
    net = model.adapter(base.net, 2, 0)
    for seed in SEEDS:
        model.save_adapter(net, tmp_path / f"one-problem/seed{seed}", log={"curve": [
            {"tokens": 5.0}, {"tokens": 7.0}]}, recipe={"problems": 2, "samples": 3})
    made = study()
    made.read(["rl-one-problem"], tmp_path.as_posix())
    made.untouched(["base"])
    arm = treatment("rl-one-problem")
    assert [list(row[0].log["curve"][0]) for row in made.rows("sums", arm)] == [["tokens"]] * 2
    assert made.operations("sums", arm) == one_problem.parameters(PAIRS["sums", 0]) * 8 * 6 * 12
    for one, two in zip(made.rows("sums", arm), made.rows("sums", treatment("base"))):
        assert (one[0].tokens == two[0].tokens).all()  # a fresh adapter adds nothing
    with pytest.raises(model.ModelError, match="no-such/one-problem/seed0 is missing"):
        made.read(["rl-one-problem"], "no-such")
