"""RL on models of others: every arm's adapter and record, kept runs, fine-tuning on workings."""

import json
import shutil

import numpy as np
import pytest
import torch
from locksmith import errors, loading, model, params, results, rl
from locksmith.experiments import real_rl, tuning
from repository import ROOT

RECIPE = {"steps": 2, "problems": 2, "samples": 4, "lr": 0.01, "rank": 2, "max_new_tokens": 8,
          "target_tokens": 24}
SETTING = {"model": "toy", "sums": {"terms": 4, "digits": 1, "direct": 3, "worked": 1},
           "arms": ["correct"]}


@pytest.fixture
def here(tmp_path, monkeypatch):
    for name in ("params.yaml", "arms.yml", "claims.yml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)


def test_the_stage_writes_an_adapter_a_run_and_its_record(here, capsys):
    real_rl.run("toy")
    record = results.read("toy", "train/real_rl")
    own = params.load("toy")["real"]
    assert len(record["extra"]["logs"]) == sum(len(own[role]["arms"]) for role in real_rl.ROLES)
    for place in record["provenance"]["checkpoints"]:
        model.verify(place)
        config = json.loads(open(f"{place}/adapter_config.json").read())
        assert not config["base_model_name_or_path"] and config["r"] == own["rank"]
    pair = real_rl.pair("toy", "present", 0)
    trained, base = pair.load("thinking", exact=True), pair.load("base", exact=True)
    assert pair.folder("thinking").is_dir() and loading.check([pair.thinking])
    change = max(float((a - b).detach().abs().max()) for a, b in
                 zip(trained.net.parameters(), base.net.parameters()))
    assert change == 0  # random weights answer nothing right, so nothing rewards them
    place = real_rl.folder("toy", "toy", "random") / "seed0"
    drawn = pair._replace(thinking=f"toy+{place}").load("thinking", exact=True)
    assert any((a != b).any() for a, b in zip(drawn.net.parameters(), base.net.parameters()))
    assert {fact["family"] for fact in record["facts"]} == {"sums", "sums_thinking"}
    assert pair.generator == own["present"]["sums"]
    assert real_rl.pair("toy", "absent", 0).generator == own["absent"]["sums"]


def test_a_run_is_kept_until_anything_that_made_it_changes(here, monkeypatch):
    pair, calls, learn = real_rl.pair("toy", "present", 0), [], rl.learn
    monkeypatch.setattr(rl, "learn", lambda *a, **k: calls.append(1) or learn(*a, **k))

    def train(recipe=RECIPE, arm="random"):
        return real_rl.train(pair, arm, SETTING, recipe, base="weights", single=0)
    first = train()
    assert len(calls) == 1 and train() == first and len(calls) == 1
    for change in ({"steps": 1}, {"lr": 0.02}):
        train(RECIPE | change)
    train()
    assert len(calls) == 4
    place = real_rl.folder("toy", "toy", "random") / "seed0"
    (place / "adapter_model.safetensors").write_bytes(b"half")
    assert train() == first and len(calls) == 5  # the same floats again
    monkeypatch.setattr(real_rl, "code", lambda: "other")
    train()
    assert len(calls) == 6


def test_one_problem_gets_all_answers_and_direct_arms_their_mix(here, monkeypatch):
    asked = []
    monkeypatch.setattr(tuning, "reinforce", lambda trained, pair, problems, recipe, reward, **_:
                        asked.append((problems, recipe, reward)) or [])
    pair = real_rl.pair("toy", "present", 0)
    for arm in ("one-problem", "direct-1", "format"):
        real_rl.train(pair, arm, SETTING, RECIPE, base="weights", single=3)
    (single, recipe, reward), (many, _, _), (_, _, form) = asked
    assert single == [tuning.pool(pair, 4)[3]] * 2 and reward == "correct" and form == "strategy"
    assert (recipe["problems"], recipe["samples"]) == (1, 8)
    assert len(many) == 4 and all(
        [bool(work) for _, work, _ in problem.examples].count(False) == 1 for problem in many)


def test_fine_tuning_takes_right_workings_alone(here, monkeypatch):
    pair = real_rl.pair("toy", "present", 0)
    problem, = pair.problems(1, "train")
    said = [f" {problem.working} The answer is {problem.answer}.\n",
            f" The answer is {problem.answer}.\n", f" {problem.working} The answer is 99.\n"]
    drawn = real_rl.rollouts.Answers(
        "sums", [problem], [[1]], [[[1]] * 3], [said],
        [[pair.rules.grade(problem, text) for text in said]], np.ones((1, 3), bool))
    monkeypatch.setattr(real_rl.rollouts, "answer", lambda *a, **k: drawn)
    trained = tuning.adapter(pair, 2)
    log = real_rl.imitate(trained, pair, [problem], RECIPE | {"steps": 30, "lr": 0.02})
    assert log["texts"] == 1 and log["losses"][-1] < log["losses"][0] - 0.3
    said[0] = " 1 + 1 = 3.\n"
    drawn.grades = [[pair.rules.grade(problem, text) for text in said]]
    with pytest.raises(errors.BadInput, match="sft-right, but toy gave no right working among 3"):
        real_rl.imitate(trained, pair, [problem], RECIPE)


def test_the_hash_of_weights_sees_every_weight():
    net = loading.load("toy", exact=True).net
    before = real_rl.weights(net)
    assert before == real_rl.weights(loading.load("toy", exact=True).net)
    with torch.no_grad():
        list(net.parameters())[-1].view(-1)[-1] += 1e-3
    assert real_rl.weights(net) != before
