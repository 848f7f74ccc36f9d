"""Chapter 2's plumbing on tiny random models, and the functions its cells define."""

import json
import math
import random
from collections import Counter
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import yaml
from locksmith import (
    corpus,
    decoding,
    engine,
    errors,
    grammar,
    lab,
    stats,
    vocabulary,
)
from locksmith.book import plots
from locksmith.experiments import sampling
from repository import ROOT, smoke_lab

CHAPTER = ROOT / "chapters/02_base_model_sampling.ipynb"
N, NEW = 4, 12  # problems, tokens


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the smoke profile's problems and untrained models, where a chapter looks."""
    with smoke_lab(tmp_path_factory.mktemp("lab")) as root:
        yield root


@pytest.fixture(autouse=True)
def inside(home, monkeypatch):
    monkeypatch.chdir(home)


def draw(**options):
    return sampling.draw("smoke", "countdown", "base", 0, N, 3, NEW, **options)


def test_problems_are_the_versioned_ones(home):
    kept = (home / "data/smoke/chain_test.jsonl").read_text().splitlines()
    assert [p.key for p in lab.problems("smoke", "chain", 5)] == [
        json.loads(line)["key"] for line in kept[:5]]
    with pytest.raises(errors.BadInput, match=f"n_problems is 999; allowed is at most {len(kept)}"):
        lab.problems("smoke", "chain", 999)


def test_other_problems_in_data_are_noticed(home, monkeypatch):
    path = home / "data/smoke/chain_test.jsonl"
    whole = path.read_text()
    path.write_text("\n".join(whole.splitlines()[::-1]))
    with pytest.raises(errors.BadInput, match="holds other problems"):
        lab.problems("smoke", "chain", 5)
    path.write_text(whole)


def test_samples_are_the_engines_graded_one_by_one():
    drawn = draw()
    task, problems = corpus.FAMILIES["countdown"], lab.problems("smoke", "countdown", N)
    net = lab.load("smoke", "countdown", "base", 0)
    prompts = [vocabulary.encode(p.prompt) for p in problems]
    rollouts = engine.sample(net, prompts, 3, max_new_tokens=NEW, stop=vocabulary.STOP, seed=0)
    texts = drawn.texts()
    assert drawn.correct.shape == drawn.trace.shape == (N, 3)
    for row, ids in enumerate(rollouts.ids()):
        p, s = divmod(row, 3)
        grade = task.grade(problems[p], vocabulary.decode(ids))
        assert texts[p][s] == bytes(ids) and drawn.answers[p][s] == grade.answer
        assert drawn.correct[p, s] == grade.correct
        assert len(drawn.behaviours[p][s]) == len(grade.behaviours)


def test_a_subset_of_problems_keeps_its_samples_and_streams_differ():
    whole, part = draw().texts(), draw(only=[1, 3]).texts()
    assert part == [whole[1], whole[3]]
    assert draw(stream="again").texts() != whole


def test_no_two_streams_share_their_random_numbers(monkeypatch):
    seen = []
    real = engine.sample
    for module in (engine, decoding):
        monkeypatch.setattr(
            module, "sample", lambda *a, **k: seen.append(k["seed"]) or real(*a, **k))
    for options in ({"which": "base"}, {"which": "thinking"}, {"which": "base", "stream": "again"},
                    {"which": "thinking", "stream": "matched"}):
        sampling.draw("smoke", "chain", seed=0, n_problems=1, n=1, max_new_tokens=2, **options)
    sampling.apply("smoke", "chain", 0, "low_temperature", 1, 2, temperature=0.5)
    assert len(set(seen)) == len(seen) == 5


def test_methods_average_over_their_chains():
    for chains in (1, 3):
        outcome = sampling.apply("smoke", "chain", 0, "low_temperature", N, NEW, chains=chains,
                                 temperature=0.5)["low_temperature"]
        assert outcome.correct.shape == outcome.tokens.shape == (N,)
        assert np.allclose(outcome.tokens * chains % 1, 0) and outcome.tokens.max() <= NEW
    found = sampling.apply("smoke", "chain", 0, "cot_decoding", 2, NEW, k=3)
    assert {"delta", "delta_sum", "longest", "random"} == set(found)
    assert found["delta"].tokens.max() <= 3 * NEW


def test_answers_are_read_where_they_stand():
    problem = corpus.FAMILIES["countdown"].Problem((3, 7, 9), (30, 54))
    words = "try 3 * 7 = 21 + 9 = 30 so 3 * 7 + 9 the answer 7 + 3 * 9 <eos>".split()
    answer, places = sampling.read_answer("countdown", problem, vocabulary.encode(words))
    assert [words[i] for i in places] == "3 * 7 + 9 7 + 3 * 9".split()
    assert answer == (("3", "*", "7", "+", "9"), ("7", "+", "3", "*", "9"))
    unfinished = vocabulary.encode(["try", "<pad>", "3"])
    assert sampling.read_answer("countdown", problem, unfinished) == (None, [])


def test_median_interval_covers_the_median_and_skips_what_is_missing():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 1, (3, 60, 2))
    values[rng.random(values.shape) < 0.3] = np.nan
    found = sampling.median_interval(values, resamples=400)
    assert found.value == np.median(values[~np.isnan(values)])
    assert found.low < found.value < found.high and found.low < 3 < found.high
    same = sampling.median_interval(np.full((2, 5, 1), 7.0), resamples=20)
    assert same == stats.Interval(7, 7, 7)


# --- the functions that the chapter defines -------------------------------------------------------

@pytest.fixture(scope="module")
def chapter():
    """The functions of the chapter's cells, by name, with what they need around them."""
    scope = {"math": math, "random": random, "np": np, "stats": stats, "grammar": grammar,
             "vocabulary": vocabulary,
             "plots": plots, "Counter": Counter, "ks": np.array([1, 2, 4])}
    for cell in nbformat.read(CHAPTER, as_version=4).cells:
        if cell.cell_type == "code" and cell.source.startswith("def "):
            functions = cell.source.split("\n\n\n")
            exec("\n\n\n".join(f for f in functions if f.startswith("def ")), scope)
    return SimpleNamespace(**{k: v for k, v in scope.items() if callable(v)})


TRACE = "try 9 * 3 = 27 maybe 27 - 8 = 19 check 19 yes try 45 - 18 = 27 so 19 27 <eos>".split()


def test_shuffled_traces_keep_their_steps_and_change_their_order(chapter):
    for seed in range(20):
        new = chapter.shuffled(TRACE, random.Random(seed))
        assert new != TRACE and new[-1] == "<eos>"
        assert sorted(map(str, grammar.steps(new))) == sorted(map(str, grammar.steps(TRACE)))
    assert chapter.shuffled("so 1 2 <eos>".split(), random.Random(0)) is None


def test_corrupted_traces_differ_in_one_result(chapter):
    places = set()
    for seed in range(40):
        new = chapter.corrupted(TRACE, random.Random(seed))
        changed = [i for i, (a, b) in enumerate(zip(TRACE, new)) if a != b]
        assert len(new) == len(TRACE) and len(changed) == 1 and TRACE[changed[0] - 1] == "="
        places |= set(changed)
    assert len(places) == TRACE.count("=")
    assert chapter.corrupted("so 1 2 <eos>".split(), random.Random(0)) is None


def test_matches_are_what_drawing_k_base_samples_would_find(chapter):
    base = ["a", "a", "b", "c", "d"]
    found = chapter.found_among([["a", "d", "x"]], [base])[0]
    rng = random.Random(0)
    for k, estimate in zip((1, 2, 4), found):
        drawn = [np.mean([x in rng.sample(base, k) for x in ("a", "d", "x")]) for _ in range(4000)]
        assert abs(np.mean(drawn) - estimate) < 0.02
    itself = chapter.found_among([base], [base], itself=True)[0]
    assert itself[0] == pytest.approx(2 / 5 * 1 / 4)  # only "a" has another, one among four
    assert itself[-1] == pytest.approx(2 / 5)


def test_means_over_missing_traces_leave_them_out(chapter):
    values = np.array([[[1.0, np.nan], [2.0, 6.0], [np.nan, np.nan]]])
    assert chapter.mean_of_some(values).value == pytest.approx(3)


def test_the_lab_profile_serves_the_claims():
    """Enough problems, samples and seeds for what claims.yml reads from this chapter."""
    profile = yaml.safe_load((ROOT / "params.yaml").read_text())["lab"]
    needs = yaml.safe_load((ROOT / "claims.yml").read_text())["needs"]["default"]
    chosen = profile["chapters"]["ch02"]
    assert chosen["n_problems"] >= needs["problems"] and len(profile["seeds"]) >= needs["seeds"]
    assert chosen["n_samples"] >= 256 and set(chosen["families"]) == set(profile["families"])
