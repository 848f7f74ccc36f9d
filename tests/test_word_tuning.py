"""One problem in words: critics, reviews, and both trainers on a toy with random weights."""

import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from locksmith import loading, model, words
from locksmith.errors import BadInput
from locksmith.experiments import word_tuning as wt

TOY = "toy"
SUM = words.WordProblem("basic_arithmetic", "Calculate 12 * 3.", "36")
RECIPE = dict(steps=2, problems=1, samples=3, lr=0.1, max_new_tokens=8)
RIGHT, WRONG = " 12 * 3 = 36. The answer is 36.", " 12 * 3 = 38. The answer is 38."


@pytest.fixture
def test(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCKSMITH_CACHE", str(tmp_path))
    return dict(problems=[SUM, words.WordProblem("basic_arithmetic", "Calculate 1 + 1.", "2")], n=3,
                max_new_tokens=8, low_temperature=0.6, seed=0, judged=[(SUM, RIGHT), (SUM, WRONG)])


def test_critics_by_hand():
    assert wt.exact(SUM, RIGHT, None) == (
        " 12 * 3 = 36: right. 12 * 3 = 36, so the answer 36 is right.\n")
    assert wt.exact(SUM, WRONG, None) == (
        " 12 * 3 = 38: wrong, it is 36. 12 * 3 = 36, so the answer 38 is wrong.\n")
    assert wt.flipped(SUM, WRONG, None) == (
        " 12 * 3 = 38: right, it is 36. 12 * 3 = 36, so the answer 38 is right.\n")
    drawn = [wt.form(SUM, WRONG, random.Random(i)) for i in range(40)]
    shape = {re.sub(r"\d", "0", text) for text in drawn}
    assert shape == {f" 00 * 0 = 00: {u}, it is 00. 00 * 0 = 00, so the answer 00 is {v}.\n"
                     for u in ("right", "wrong") for v in ("right", "wrong")}


def test_each_arm_is_trained_on_what_its_name_says():
    answers = [RIGHT, WRONG, " 12 * 3 = 63. The answer is 63."]
    told = {arm: wt.continuations(arm, SUM, answers) for arm in (
        "critiques", "flipped-critiques", "shuffled-critiques", "format-only", "sft-right")}
    exact = [wt.exact(SUM, text, None) for text in answers]
    assert [said for _, said in told["critiques"]] == exact
    assert [said for _, said in told["flipped-critiques"]] == [
        wt.flipped(SUM, text, None) for text in answers]
    given, said = zip(*told["shuffled-critiques"])
    assert given == tuple(words.review(SUM, text) for text in answers)
    assert sorted(said) == sorted(exact) and all(a != b for a, b in zip(said, exact))
    assert [said for _, said in told["sft-right"]] == [RIGHT + "\n"]
    page = wt.told(SUM, 1, [0.5, 0.25], answers, 99)
    assert page["chosen"] == 0.25 and page["example"] == WRONG
    assert page["right"] == [True, False, False]
    assert page["critiques"]["critiques"] == exact[1]


def test_the_parts_of_a_gain_add_up_to_it():
    rng = np.random.default_rng(1)
    base, tuned = (wt.WordEvaluation(rng.random((40, 4)) < right, rng.random((40, 4)) < works,
                                     None, 0, 0, 0, {})
                   for right, works in ((0.2, 0.4), (0.6, 0.9)))
    when, how = wt.gain_parts(tuned, base)
    assert when.value + how.value == pytest.approx(tuned.correct.mean() - base.correct.mean())
    for part in (when, how):
        assert part.low < part.value < part.high
    assert [part.value for part in wt.gain_parts(base, base)] == [0, 0]


@pytest.mark.parametrize(("text", "works"), [
    (RIGHT, True), (" 4 + 5=9", True), (" The answer is 9.", False), (" 4 + 5", False),
    (" It is\n4 + 5 = 9", False)])
def test_a_calculation_counts_when_it_is_written_out_with_its_result(text, works):
    assert wt.works_out(text) == works


def test_to_always_say_the_same_judges_half_of_the_pairs_right():
    some = words.problems("validation", 20, 0, {"basic_arithmetic": dict(min_terms=2, max_terms=2)})
    some = [p for p in some if re.fullmatch(r"-?\d+", p.answer) and words.calculation(p)]
    right = [words.grade(*pair).correct for pair in wt.judged(some, random.Random(0))]
    assert len(some) > 3 and np.mean(right) == 0.5


def test_fitting_learns_what_it_is_shown_and_counts_its_tokens(test):
    written = wt.critiques(SUM, [RIGHT, WRONG], wt.exact, 0)
    o = wt.arm(TOY, 0, test, supervise=dict(written=written, steps=12, target_tokens=100, lr=0.03))
    assert len(o.log["losses"]) == 12 and o.log["losses"][-1] < o.log["losses"][0] - 0.1
    # 100 target tokens a step, and the inputs of the two reviews that they are taken from
    tokenizer = loading.load("toy").tokenizer
    sizes = [len(tokenizer(given).input_ids) for given, _ in written]
    assert all(50 <= len(tokenizer(wanted).input_ids) < 100 for _, wanted in written)
    assert 12 * (100 + 2 * min(sizes)) <= o.log["read"] <= 12 * (100 + 2 * max(sizes))


def test_a_reward_that_nobody_earns_changes_nothing(test):
    plain = wt.arm(TOY, 0, test)
    o = wt.arm(TOY, 0, test, reinforce=dict(problems=[SUM] * 2, recipe=RECIPE))
    assert [p["accuracy"] for p in o.log["curve"]] == [0, 0]
    assert (o.english, o.tokens, o.verdicts) == (plain.english, plain.tokens, plain.verdicts)


def test_a_reward_is_earned_more_often_after_rl(monkeypatch):
    monkeypatch.setattr(wt, "works_out", lambda text: any(vowel in text for vowel in "aeiou"))
    lm = loading.load("toy", exact=True)
    lm.net.lm_head.weight.data.mul_(30)  # as drawn, no hidden state could prefer a byte
    recipe = RECIPE | dict(steps=8, samples=48, lr=0.05)
    trained = replace(lm, net=model.adapter(lm.net, 8, 0))
    curve = wt.reinforced(trained, 0, [SUM] * 8, recipe, "format")["curve"]
    assert curve[0]["works"] < 0.4 and curve[-1]["works"] > 0.8


def test_a_model_that_answers_one_thing_alone_is_refused(test, monkeypatch):
    def drawn(lm, problems, n, **options):
        table, texts = np.ones((len(problems), n), bool), [[" 1"] * n for _ in problems]
        return words.WordSamples(table, table, texts, texts, 1)
    monkeypatch.setattr(words, "sample_words", drawn)
    with pytest.raises(BadInput, match="only 1 different answers"):
        wt.single(TOY, [SUM], 4, 2, 8)


def test_the_single_problem_is_the_middle_one_of_those_that_are_solved(test, monkeypatch):
    rates = [0.0, 0.9, 0.3, 0.0, 0.1]
    asked = [words.WordProblem("basic_arithmetic", f"Calculate {i} + 1.", str(i + 1))
             for i in range(5)]

    def drawn(lm, problems, n, **options):
        table = np.array([[rates[asked.index(p)] * n > j for j in range(n)] for p in problems])
        texts = [[f" {j % 3} it is\nmore" if j % 2 else " nothing" for j in range(n)]
                 for _ in problems]
        return words.WordSamples(table, table, texts, texts, 10 * len(problems))
    monkeypatch.setattr(words, "sample_words", drawn)
    chosen, found, answers, spent = wt.single(TOY, asked, 10, 2, 8)
    assert chosen == 2 and found.tolist() == rates and spent == 60
    assert answers == [" 1 it is", " 0 it is"]  # different, with a number, at most two


def test_a_reward_that_is_no_number_names_the_answer_and_leaves_the_adapter(monkeypatch):
    monkeypatch.setitem(wt.REWARDS, "format", lambda grade, rng: float("nan"))
    lm = loading.load("toy", exact=True)
    trained = replace(lm, net=model.adapter(lm.net, 8, 0))
    before = {name: x.clone() for name, x in trained.net.state_dict().items()}
    with pytest.raises(BadInput, match="reward <lambda> is nan at step 0 for answer 0 to problem 0 "
                                       "of its batch, Answer.correct=False, works=.*, text='.+'"):
        wt.reinforced(trained, 0, [SUM] * 2, RECIPE, "format")
    assert all(torch.equal(x, before[name]) for name, x in trained.net.state_dict().items())
