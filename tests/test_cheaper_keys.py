"""Chapter 5's study: every method on one axis, by hand and on a toy pair in words."""

import re

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
    made.try_out(made.methods([1], [" The"]))
    made.thinking()
    made.vote()
    made.fine_tune([1], 2, 2, tuning.Recipe(2, 24, 0.001))
    recipe = dict(steps=2, problems=2, samples=2, max_new_tokens=8)
    made.reinforce(recipe, {"last-vector-rl": (0.3, dict(trains="vectors", layers=[1], apart=True)),
                            "lora-rl": (0.01, dict(trains="adapter"))})
    return made


def test_everything_that_a_task_in_words_has_is_there_and_the_rest_is_not(walked):
    ids = {name.id for _, name in walked.scores}
    assert ids == {"base", "cognitive-tools", "dummy-tools", "prefix", "thinking", "matched-vote",
                   # no documents; the toy solves nothing itself
                   "guess", "last-vector-rl", "lora-rl"}
    assert all(arms.get(name) for name in ids)
    tools = {name.given["variant"] for _, name in walked.scores if name.id == "cognitive-tools" and
             name.conditions}
    assert tools == {"understand", "recall", "examine", "backtrack", "examine+backtrack"}
    for scores in walked.scores.values():
        assert scores.correct.shape == (2, 4)


def test_votes_stay_within_what_the_tools_spent(walked):
    tools, vote = (walked.scores["sums", treatment(name)].tokens
                   for name in ("cognitive-tools", "matched-vote"))
    assert (vote <= np.maximum(tools.round(), 1)).all()


def test_facts_of_a_walk_are_in_the_vocabulary_and_costs_are_counted(walked):
    record = results.Recorder("toy", "05", seeds=[0, 1], n_problems=4, n_samples=1)
    shown = walked.record(record, a_step=4)
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


def test_every_arm_that_a_rule_of_the_claim_reads_is_one_of_the_study(walked):
    rules = next(c for c in claims.load()["claims"] if c["id"] == "cheaper-keys")["parts"]
    text = "\n".join(part["rule"] for part in rules)
    own = set(re.findall(r"(?:^|\s)([a-z-]+)\.gap_recovered", text))
    others = set(re.findall(r"(\d\d):([a-z-]+)\.gap_recovered", text))
    assert own <= {name.id for _, name in walked.scores} | {"vector-rl", "sft-solved",
                                                            "rl-higher-rate"}
    assert own and all(name in cheaper_keys.OTHERS[chapter] for chapter, name in others)
