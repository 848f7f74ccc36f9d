"""What chapter 0 counts, against counting by hand, and a checkpoint that is measured end to end."""

import json
import random
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from locksmith import corpus, loading, model, params
from locksmith.experiments import skills
from locksmith.tasks import countdown
from repository import ROOT

FAMILIES = params.load("lab")["families"]
both = pytest.mark.parametrize("family", list(corpus.FAMILIES))


@both
def test_a_tally_is_the_mean_over_samples_of_what_the_grader_says(family):
    task, generator = corpus.FAMILIES[family], FAMILIES[family]
    problems, rng = task.problems("train", 6, 0, generator), random.Random(0)
    traces = [task.document(rng, p, corpus.author(rng, generator), generator)
              for p in problems for _ in range(2)]
    tally = skills.tally(task, problems, traces)
    grades = [task.grade(problems[i // 2], words) for i, words in enumerate(traces)]
    for name in skills.COUNTS[:-1]:
        pairs = [(getattr(a, name) + getattr(b, name)) / 2
                 for a, b in zip(grades[::2], grades[1::2], strict=True)]
        assert tally[name].tolist() == pytest.approx(pairs)
    assert tally["tokens"].tolist() == [(len(a) + len(b)) / 2
                                        for a, b in zip(traces[::2], traces[1::2], strict=True)]
    assert tally["attempts_at"].sum(1).tolist() == pytest.approx(tally["attempts"].tolist())
    assert tally["valid_at"].sum(1).tolist() == pytest.approx(tally["valid_attempts"].tolist())


def test_attempts_are_counted_where_they_stand():
    problem = countdown.Problem((3, 7, 9), (30, 63))
    right, wrong = "3 * 7 = 21 + 9 = 30", "3 * 7 = 20 + 9 = 29"
    words = " ".join(f"{opening} {right if i in (0, 1, 3, 19) else wrong}" for i, opening in
                     enumerate(["try", "go back", "what about", "hmm", *["wait"] * 16])).split()
    tally = skills.tally(countdown, [problem], [[*words, "<eos>"]])
    assert tally["attempts_at"].tolist() == [[1, 1, 2, 4, 8, 4]]
    assert tally["valid_at"].tolist() == [[1, 1, 1, 0, 0, 1]]
    found = skills.by_position(skills.stack([tally]))
    assert {name: i.value for name, i in found.items()} == dict(
        zip(skills.POSITION_NAMES, (1, 1, 0.5, 0, 0, 0.25), strict=True))


@both
def test_a_checkpoint_is_measured_in_every_way(tmp_path, monkeypatch, family):
    shutil.copy("params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    corpus.run("smoke")
    config = {"hidden": 16, "layers": 1, "heads": 2, "mlp": 16, "context": 128}
    model.save(model.build(config, 0), tmp_path / "seed0")
    asked = {"problems": 5, "samples": 3, "max_new_tokens": 12, "low_temperature": 0.3,
             "depths": [1, 3]}
    found, again = (skills.measure(tmp_path / "seed0", loading.Pair("smoke", family, 0), **asked)
                    for _ in range(2))
    ways = ["sampled", "greedy", "low temperature"]
    assert list(found) == ways + (["depth 1", "depth 3"] if family == "chain" else [])
    for way, tally in found.items():
        assert all(np.array_equal(x, again[way][name]) for name, x in tally.items())
        assert tally["tokens"].shape == (5,) and (tally["tokens"] <= 12).all()
        samples = 1 if way in ways[1:] else 3
        assert tally["tokens"] * samples == pytest.approx((tally["tokens"] * samples).round())
    summary = skills.summary(skills.stack([found["sampled"]] * 2))
    assert summary["tokens_per_answer"].value == pytest.approx(found["sampled"]["tokens"].mean())


def test_an_attempt_hits_the_target_that_is_open():
    problem = countdown.Problem((3, 7, 9), (30, 63))
    first, second, wrong = "3 * 7 = 21 + 9 = 30", "9 - 3 = 6 + 7 = 13", "3 * 7 = 20 + 9 = 30"
    words = f"try {wrong} wait {first} check 30 yes so 3 * 7 + 9 try {first} maybe {second} <eos>"
    assert countdown.hits(problem, words) == [False, True, False, False]
    assert countdown.hits(countdown.Problem((3, 7, 9), (30, 13)), words)[2:] == [False, True]
    tally = skills.tally(countdown, [problem], [words.split(), ["try", *first.split()]])
    assert tally["hits"].tolist() == [1]
    assert tally["hits_at"].tolist() == [[0.5, 0.5, 0, 0, 0, 0]]
    found = skills.by_position(skills.stack([tally]), "hits_at")
    # The second answer has one attempt, so a second one was made in one answer of two.
    assert {name: i.value for name, i in found.items()} == {"1": 0.5, "2": 1, "3-4": 0}
    assert skills.summary(skills.stack([tally]))["attempt_hits"].value == pytest.approx(2 / 5)
    assert tally["places"].tolist() == tally["went_on"].tolist() == [0]  # no check said "no"


def test_both_recipes_of_rl_are_what_their_commits_recorded():
    """Where the clone has them: a shallow one has not."""
    tried = pd.read_csv(ROOT / "chapters/rl_recipes.csv")
    for commit, rows in tried.groupby("commit"):
        shown = subprocess.run(["git", "show", f"{commit}:results/lab/00.json"], cwd=ROOT,
                               capture_output=True, text=True)
        if shown.returncode:
            pytest.skip("an earlier commit is not in this clone")
        record = json.loads(shown.stdout)
        value = {(f["family"], f["model"], f["quantity"]): f["value"] for f in record["facts"]}
        assert set(rows["steps"]) == {record["provenance"]["parameters"]["rl"]["steps"]}
        for row in rows.itertuples():
            assert row.accuracy == round(value[row.family, row.model, "pass@1"], 4)
            assert row.valid_attempts == round(value[row.family, row.model, "valid_attempts"], 4)
    assert len(tried) == 8


def test_a_gain_is_split_and_paired():
    rng = np.random.default_rng(1)

    def side(share, rate, valid):
        strategy = rng.random((3, 30, 2)) < share
        right = rng.random((3, 30, 2)) < np.where(strategy, rate, 0.1)
        attempts = rng.integers(1, 9, (3, 30)).astype(float)
        return {"strategy": strategy, "right": right, "correct": right.mean(-1),
                "attempts": attempts, "valid_attempts": valid * attempts}
    base, thinking = side(0.2, 0.8, 0.9), side(0.8, 0.8, 0.85)
    found = skills.gain(base, thinking)
    assert found["gain"].value == pytest.approx(
        found["gain_when"].value + found["gain_how"].value)
    assert found["gain"].value == pytest.approx(
        thinking["right"].mean() - base["right"].mean())
    assert found["gain_when"].low > found["gain_how"].high
    change = found["valid_attempts_change"]  # the same share everywhere: no spread is left
    assert [*change] == pytest.approx([-0.05] * 3)
    base["attempts"] = base["valid_attempts"] = np.zeros((3, 30))
    assert "valid_attempts_change" not in skills.gain(base, thinking)
