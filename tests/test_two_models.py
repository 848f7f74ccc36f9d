"""Chapter 6's measurements: scores by hand, facts from known answers, curves, the axis."""

import numpy as np
import pytest
from locksmith import results, words
from locksmith.experiments import real_rl, two_models
from locksmith.experiments.divergence import Divergence
from locksmith.experiments.two_models import Measured
from repository import ROOT


def problem(answer):
    return words.WordProblem("sums", "Calculate 1 + 1.", answer)


@pytest.mark.parametrize("answer, text, right", [
    ("12", " 5 + 7 = 12.", True), ("12", " 12. So 13 is wrong", False),
    ("-3", " so -3 it is", True), ("3", " 5-3", True),
    ("1200", " That is 1,200.", True), ("2.50", " $2.5 each", True),
    ("12", "", False), ("12", " none", False), ("12", " 1/0", False)])
def test_the_last_number_counts(answer, text, right):
    assert two_models.last_is_right(problem(answer), text) is right


def measured(correct, strategy):
    """Answers of which it is known who is right and works it out; two of three steps hold."""
    correct, strategy = np.array(correct, bool), np.array(strategy, bool)
    ones = np.ones(correct.shape, int)
    return Measured(correct, strategy, correct & strategy, 3 * ones, 2 * ones, 5 * ones,
                    correct & strategy, correct | strategy, "")


BASE = measured([[1, 0], [0, 0]], [[0, 0], [0, 0]])  # guesses, one of four right
AFTER = measured([[1, 1], [1, 0]], [[1, 1], [1, 1]])  # works everything out, three of four right


def test_facts_of_an_arm_by_hand():
    found = two_models.facts([AFTER, AFTER], [BASE, BASE])
    assert found["pass_at_k[k=1]"].value == 0.75 and found["strategy_share"].value == 1
    assert found["valid_attempts"].value == pytest.approx(2 / 3)
    assert found["pass_at_k[k=1, variant=lenient]"].value == 1
    assert found["gain"].value == 0.5
    # Neither side used the other's way, whose rate stands in: all of the gain is when.
    assert found["gain_when"].value == pytest.approx(0.5)
    assert found["gain_how"].value == pytest.approx(0)
    assert found["valid_attempts_change"].value == 0
    assert set(two_models.facts([BASE])) == {
        name for name in found if not name.startswith(("gain", "valid_attempts_change"))}


def test_gains_are_compared_with_those_of_rl_and_of_another_model():
    rng = np.random.default_rng(0)

    def drawn(share, n):
        return [measured(rng.random((n, 4)) < share, np.ones((n, 4))) for _ in range(3)]
    base, after, weak, weaker = drawn(0.1, 80), drawn(0.9, 80), drawn(0.3, 60), drawn(0.1, 60)
    some = two_models.share_of_gain(drawn(0.5, 80), base, after)
    assert some.low < 0.5 < some.high and some.high - some.low < 0.4
    assert two_models.share_of_gain(after, base, base) is None  # of nothing there is no share
    found = two_models.relative_gain((weak, weaker), (after, base))
    by_hand = [np.mean([one.correct for one in x]) for x in (weak, weaker, after, base)]
    assert found.value == pytest.approx((by_hand[0] - by_hand[1]) / (by_hand[2] - by_hand[3]))
    assert found.low < 0.25 < found.high
    assert two_models.relative_gain((weak, weaker), (base, base)) is None


def test_divergence_is_nats_over_tokens_of_all_seeds():
    one = {"decision": Divergence(np.array([2.0, 4.0]), np.array([9.0, 9.0]), np.array([1, 2])),
           "execution": Divergence(*np.zeros((3, 2)))}
    found = two_models.divergences([one, one])
    assert found.keys() == {"kl[position=decision]"}
    assert found["kl[position=decision]"].value == 2


def test_facts_are_kept_with_what_is_special_about_them():
    record = results.Recorder("toy", "06", seeds=[0, 1], n_problems=2, n_samples=2)
    found = two_models.facts([AFTER, AFTER], [BASE, BASE])
    two_models.keep(record, "sums", "correct", found)
    two_models.keep(record, "sums", "correct", found, "5 terms")
    two_models.keep(record, "sums", "direct-3", found, seeds=[0])
    two_models.keep(record, "sums_gemma", "random", found)

    def value(arm, fact, family="sums"):
        return record.get(family, arm, fact).value
    assert value("thinking", "pass_at_k[k=1]") == 0.75
    assert value("thinking", "pass_at_k[k=1, variant=strict]") == 0.75
    assert value("thinking", "pass_at_k[k=1, variant=5 terms lenient]") == 1
    assert value("thinking", "gain_when[variant=3 direct]") == pytest.approx(0.5)
    assert value("random-reward", "gain", "sums_gemma") == 0.5
    for fact in record.facts:
        results.check(fact)


def test_curves_have_the_mean_and_the_ends_of_the_seeds():
    def point(step, seed, accuracy, attempts=4):
        return {"step": step, "seed": seed, "accuracy": accuracy, "strategy": 0.5,
                "attempts": attempts, "valid_attempts": 3}
    logs = {"present correct 0": {"curve": [point(0, 0, 0.25), point(1, 0, 1.0)]},
            "present correct 1": {"curve": [point(0, 1, 0.75), point(1, 1, 1.0, attempts=0)]},
            "present direct-1 0": {"curve": [point(0, 0, 0.0)]},
            "present sft-right 0": {"losses": [1.0]},
            "absent correct 0": {"curve": [point(0, 0, 0.0)]}}
    rows = results.frame(two_models.curves(logs, "present"))
    right = rows[rows["family"] == "right"].set_index("step")
    assert set(rows["model"]) == {"thinking"} and right.loc[0, "value"] == 0.5
    assert (right.loc[0, "low"], right.loc[0, "high"], right.loc[1, "value"]) == (0.25, 0.75, 1)
    hold = rows[rows["family"] == "steps that hold"].set_index("step")
    assert list(hold["value"]) == [0.75, 0.75] and list(map(len, hold["seeds"])) == [2, 2]


def test_the_axis_takes_the_lab_beside_what_was_measured(monkeypatch):
    monkeypatch.chdir(ROOT)
    record = results.Recorder("open", "06", seeds=[0], n_problems=2, n_samples=2)
    two_models.keep(record, "sums", "base", two_models.facts([BASE]))
    two_models.keep(record, "sums", "correct", two_models.facts([AFTER], [BASE]))
    found = two_models.axis(record, ["sums", "sums_gemma"])
    assert set(found) == {"sums", "countdown", "chain"}  # of Gemma nothing was measured
    assert found["sums"]["skill"][0] == pytest.approx(2 / 3)
    first = results.Recorder.reopen("lab", "00").get("chain", "base", "valid_attempts")
    assert found["chain"]["skill"] == list(first)
    assert set(two_models.axis(record, ["sums"], lab="none")) == {"sums"}


def test_gsm8k_is_left_out_where_its_file_is_not(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LOCKSMITH_GSM8K", str(tmp_path))
    assert list(two_models.word_tasks({"chain_sum": 2, "gsm8k": 3, "gsm_symbolic": 0})) == [
        "chain_sum"]
    assert "gsm8k is left out" in capsys.readouterr().out


def test_an_arm_is_asked_by_its_adapter_and_in_two_roundings(monkeypatch):
    monkeypatch.chdir(ROOT)
    pair = real_rl.pair("toy", "present", 1)
    assert two_models.name(pair, "base") == "toy"
    assert two_models.name(pair, "correct") == pair.thinking
    problems = pair.problems(2, "validation")
    one, other = (two_models.measure(pair, "base", problems, 2, 6, other_rounding=x)
                  for x in (False, True))
    assert one.correct.shape == other.tokens.shape == (2, 2) and (one.tokens <= 6).all()
    assert set(map(str, two_models.rounding())) == {"torch.float32", "torch.bfloat16"}
    looked = two_models.look(pair, pair.generator, 2, 1, 4)
    assert looked["accuracy"] == looked["greedy"] == 0
