"""Chapter 5's study: every method on one axis, by hand and on a toy pair in words."""

import csv
import re
from types import SimpleNamespace

import numpy as np
import pytest
from locksmith import arms, parallel, results, stats
from locksmith.arms import treatment
from locksmith.book import claims
from locksmith.experiments import cheaper_keys, tuning
from locksmith.experiments.cheaper_keys import Comparison, Scores, Shown
from locksmith.experiments.one_problem import parameters
from locksmith.loading import Pair

PAIRS = {("sums", seed): Pair("toy", "sums", seed, "toy", "toy/thinking") for seed in (0, 1)}


def study():
    return Comparison(PAIRS, parallel.Serial(), tuning.Size(4, 1, 12))


@pytest.fixture(scope="module")
def walked():
    """A study that went all the way, with little of everything."""
    made = study()
    made.try_out(made.methods([" The", " It"]))
    made.thinking()
    made.vote()
    made.fine_tune([1], 2, 2, tuning.Recipe(2, 24, 0.001), [0.001])
    recipe = dict(steps=2, problems=2, samples=2, max_new_tokens=8)
    made.reinforce(recipe, {
        "last-vector-rl": ([0.3], dict(trains="vectors", layers=[1], apart=True)),
        "lora-rl": ([0.01, 0.1], dict(trains="adapter"))})
    made.choose()
    return made


def test_everything_that_a_task_in_words_has_is_there_and_the_rest_is_not(walked):
    ids = {name.id for _, name in walked.scores}
    assert ids == {"base", "cognitive-tools", "dummy-tools", "prefix", "thinking", "matched-vote",
                   # the toy solves nothing itself
                   "guess", "last-vector-rl", "lora-rl", "chosen-key"}
    assert all(arms.get(name) for name in ids)
    # nor kinds of steps, for tools one by one
    assert [name for _, name in walked.scores if name.id == "cognitive-tools"] == [
        treatment("cognitive-tools")]
    for scores in walked.scores.values():
        assert scores.correct.shape == (2, 4)


def test_votes_stay_within_what_the_tools_spent(walked):
    tools, vote = (walked.scores["sums", treatment(name)].tokens
                   for name in ("cognitive-tools", "matched-vote"))
    assert (vote <= np.maximum(tools.round(), 1)).all()


def test_facts_of_a_walk_are_in_the_vocabulary_and_costs_are_counted(walked):
    record = results.Recorder("toy", "05", seeds=[0, 1], n_problems=4, n_samples=1)
    shown = walked.record(record)
    assert record.get("sums", "prefix", "tokens_per_answer", variant="The").value > 0
    assert record.get("sums", "last-vector-rl", "tokens_per_answer", position="first token") is None
    tokens = 4 * np.mean([sum(p["tokens"] for p in log["curve"])
                          for log in walked.logs["sums", treatment("lora-rl")]])
    spent = parameters(PAIRS["sums", 0]) * 8 * tokens
    assert shown["sums", treatment("lora-rl")].operations == spent
    assert shown["sums", treatment("base")].operations is None
    assert record.get("sums", "thinking", "log10_flops") is None  # what it cost is not known


def test_shares_by_hand():
    made, rng = study(), np.random.default_rng(0)
    base, full = ((rng.random((2, 200)) < rate).astype(float) for rate in (0.1, 0.7))
    for name, correct in (("base", base), ("thinking", full), ("few-shot", (base + full) / 2)):
        made.scores["sums", treatment(name)] = Scores(correct, None, None)
    assert made.recovered("sums", treatment("few-shot")).value == pytest.approx(0.5, abs=0.01)
    assert made.recovered("sums", treatment("thinking")) is None
    made.scores["sums", treatment("guess")] = Scores(full[:1], None, None)
    assert made.recovered("sums", treatment("guess")) is None  # not measured for all seeds


def test_the_best_within_a_budget_by_hand():
    gap = [stats.Interval(x, x, x) for x in (0.2, 0.5, 0.9)]
    points = {"thinking": Shown(None, 100, 1e9), "prefix": Shown(gap[0], 90, None),
              "majority": Shown(gap[1], 800, None), "lora-rl": Shown(gap[2], 100, 1e8)}
    shown = {("sums", treatment(name)): point for name, point in points.items()}
    best = {budget: study().best("sums", shown, *budget)
            for budget in ((0, 1), (0, 10), (0.1, 1), (0, 0.1))}
    assert [found and found[0].id for found in best.values()] == ["prefix", "majority", "lora-rl",
                                                                  None]


def test_what_stands_for_several_is_chosen_on_validation_problems_within_the_budget(monkeypatch):
    """Openings, tools and trainings whose validation and test results say the opposite."""
    made = study()
    spent = {"lora-rl": 9.0, "vector-rl": 11.0, "thinking": 100.0}
    monkeypatch.setattr(made, "operations", lambda task, name: spent.get(name.id, 0.0))
    found = {treatment("thinking"): (0.9, 30), treatment("base"): (0.99, 30),
             treatment("prefix", variant="The"): (0.3, 30),
             treatment("prefix", variant="It"): (0.2, 30),
             treatment("cognitive-tools"): (0.8, 301), treatment("lora-rl"): (0.5, 300),
             treatment("vector-rl"): (0.7, 30), treatment("few-shot", examples=1): (0.1, 30)}
    for name, (right, _) in found.items():
        made.scores["sums", name] = Scores(np.full((2, 4), 1 - right), None, None)
        made.logs["sums", name] = [{}, {}]
    made.validation = {("sums", name): pair for name, pair in found.items()}
    made.choose()
    assert made.chosen == {("sums", treatment("prefix")): treatment("prefix", variant="The"),
                           ("sums", treatment("chosen-key")): treatment("lora-rl")}
    assert made.scores["sums", treatment("chosen-key")].correct[0, 0] == 0.5
    assert made.scores["sums", treatment("prefix")].correct[0, 0] == 0.7


def test_all_seeds_take_the_rate_at_which_the_first_is_right_most_often(monkeypatch):
    made, arm, asked = study(), treatment("lora-rl"), []

    def run(function, jobs):
        asked.extend(jobs)
        return {key: SimpleNamespace(lr=lr, log={"validation": ({0.1: 0.5, 0.2: 0.6, 0.3: 0.6}[lr],
                                                                7)}) for key, lr in jobs.items()}
    monkeypatch.setattr(made, "run", run)
    jobs = {("sums", arm, seed): lambda lr: lr for seed in (0, 1)}
    done = made.at_best_rate(tuning.reinforced, jobs, {"lora-rl": [0.1, 0.2, 0.3]})
    assert {key: found.lr for key, found in done.items()} == {
        ("sums", arm, 0): 0.2, ("sums", arm, 1): 0.2}
    assert len(asked) == 4 and made.validation == {("sums", arm): (0.6, 7)}


def test_an_arm_may_go_on_at_its_rate_with_a_larger_recipe(monkeypatch):
    made, asked = study(), []

    def run(function, jobs):
        asked.extend((key, job["recipe"]["steps"], job["recipe"]["lr"], len(job["problems"]))
                     for key, job in jobs.items())
        right = {0.1: 0.5, 0.2: 0.6}
        return {key: SimpleNamespace(job=job, log={"validation": (
            right[job["recipe"]["lr"]] + job["recipe"]["steps"] / 100, 7)})
            for key, job in jobs.items()}
    monkeypatch.setattr(made, "run", run)
    monkeypatch.setattr(made, "keep", lambda done: asked.append(sorted(
        (key[1].id, key[2], o.job["recipe"]["steps"]) for key, o in done.items())))
    small = dict(steps=2, problems=2, samples=2, max_new_tokens=8)
    made.reinforce(small, {"vector-rl": ([0.1, 0.2], {}), "lora-rl": ([0.2], {})},
                   {"vector-rl": small | {"steps": 5}})
    *asked, done = asked
    vector, lora = treatment("vector-rl"), treatment("lora-rl")
    assert {x for x in asked if x[0][1] == vector} == {
        (("sums", vector, 0, 0.1), 2, 0.1, 4), (("sums", vector, 0, 0.2), 2, 0.2, 4),
        (("sums", vector, 0), 5, 0.2, 10), (("sums", vector, 1), 5, 0.2, 10)}
    assert {x[0][2:] for x in asked if x[0][1] == lora} == {(0, 0.2), (1,)}
    assert done == [("lora-rl", 0, 2), ("lora-rl", 1, 2), ("vector-rl", 0, 5), ("vector-rl", 1, 5)]
    assert made.validation["sums", vector] == (0.6 + 0.05, 7)


def test_in_the_lab_each_class_has_its_best_whatever_it_costs(monkeypatch):
    pair = Pair("smoke", "chain", 0)
    made = Comparison({("chain", 0): pair}, parallel.Serial(), tuning.Size(4, 1, 12))
    monkeypatch.setattr(made, "operations", lambda task, name: 90.0 * (name.id == "vector-rl"))
    found = {treatment("thinking"): 0.9, treatment("prefix", variant="wait"): 0.3,
             treatment("vector-rl"): 0.7, treatment("last-vector-rl"): 0.2,
             treatment("sft-solved", examples=10): 0.4, treatment("lora-rl"): 0.6}
    for name, right in found.items():
        made.scores["chain", name] = Scores(np.full((1, 4), 1 - right), None, None)
        made.logs["chain", name] = [{}]
        made.validation["chain", name] = right, 30
    made.choose()
    chosen = {copy.given.get("variant", copy.id): best for (_, copy), best in made.chosen.items()}
    assert chosen == {
        "prefix": treatment("prefix", variant="wait"), "chosen-key": treatment("lora-rl"),
        "prompting and tools": treatment("prefix", variant="wait"),
        "steering": treatment("vector-rl"), "little training": treatment("lora-rl")}


def test_the_table_holds_every_method_and_the_figure_at_most_twelve(walked):
    record = results.Recorder("toy", "05", seeds=[0, 1], n_problems=4, n_samples=1)
    shown = walked.record(record)
    rows = list(csv.DictReader(cheaper_keys.table(shown).splitlines()))
    assert {(row["task"], row["method"]) for row in rows} == {
        (task, name.label) for task, name in shown}
    lora = next(row for row in rows if row["method"] == "LoRA RL")
    point = shown["sums", treatment("lora-rl")]
    assert float(lora["operations"]) == pytest.approx(point.operations)
    assert float(lora["tokens_per_answer"]) == pytest.approx(point.tokens)
    assert len(cheaper_keys.SHOWN) == len(set(cheaper_keys.SHOWN)) <= 12


def test_tools_are_compared_with_their_controls(walked):
    made, rng = study(), np.random.default_rng(0)
    base, full = ((rng.random((2, 200)) < rate).astype(float) for rate in (0.1, 0.7))
    for name, correct in (("base", base), ("thinking", full), ("dummy-tools", base),
                          ("cognitive-tools", (base + full) / 2)):
        made.scores["sums", treatment(name)] = Scores(correct, None, None)
    tool, dummy = treatment("cognitive-tools"), treatment("dummy-tools")
    assert made.difference("sums", tool, dummy) == pytest.approx(made.recovered("sums", tool))


def test_every_arm_that_a_rule_of_the_claim_reads_is_one_of_the_study(walked):
    rules = next(c for c in claims.load()["claims"] if c["id"] == "cheaper-keys")["parts"]
    text = "\n".join(part["rule"] for part in rules)
    own = set(re.findall(r"(?:^|\s)([a-z-]+)\.[a-z]", text))
    others = set(re.findall(r"(\d\d):([a-z-]+)\.[a-z]", text))
    assert own <= {name.id for _, name in walked.scores} | {"vector-rl", "sft-solved",
                                                            "rl-higher-rate"}
    assert own and all(name in cheaper_keys.OTHERS[chapter] for chapter, name in others)
    against = set(re.findall(r"cognitive-tools\.gap_difference\[against=([a-z-]+)\]", text))
    assert {("cognitive-tools", rival) for rival in against} <= set(cheaper_keys.COMPARED)
