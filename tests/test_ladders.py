"""Chapter 7's models: what their corpora hold, what their RL is given, kept and killed runs."""

import dataclasses
import hashlib
import multiprocessing
import os
import random
import shutil
import signal

import numpy as np
import pytest
import torch
from locksmith import (
    corpus,
    errors,
    grammar,
    lab,
    model,
    params,
    pretrain,
    results,
    resuming,
    rl,
    vocabulary,
)
from locksmith.experiments import ladders
from locksmith.tasks import Grade, chain, countdown
from repository import ROOT, smoke_lab
from safetensors.torch import save
from scipy.stats import binom

FAMILIES = params.load("lab", ROOT / "params.yaml")["families"]
both = pytest.mark.parametrize("family", ["countdown", "chain"])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The smoke profile's problems, and the models that ladders stand on."""
    with smoke_lab(tmp_path_factory.mktemp("ladders"), models=("base", "thinking", "twin")) as root:
        for name in ("arms.yml", "claims.yml"):
            shutil.copy(ROOT / name, root)
        yield root


def rung(name, family="chain"):
    return {r.name: r for r in ladders.rungs("smoke", family)}[name]


def documents(family, changes, n_tokens=150_000, seed=0):
    """Documents (lists of words) of a corpus."""
    ids, counts = corpus.write(corpus.FAMILIES[family], {**FAMILIES[family], **changes}, n_tokens,
                               seed)
    words = vocabulary.decode(ids.tolist())
    starts = [i for i, word in enumerate(words) if word == "<bos>"]
    return [words[a:b] for a, b in zip(starts, [*starts[1:], len(words)])], counts


# --- dials ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("family, sha256", [("countdown", "28b583cc7555529f"),
                                            ("chain", "3c1ac744f658a07e")])
def test_without_a_dial_the_corpus_is_that_of_the_versioned_models(family, sha256):
    """Of the bytes before there were dials."""
    ids, _ = corpus.write(corpus.FAMILIES[family], FAMILIES[family], 50_000, 3)
    assert hashlib.sha256(ids.tobytes()).hexdigest().startswith(sha256)


def likely(found, n, share):
    """Whether `found` of n is what a share gives, but in one case in ten thousand."""
    low, high = binom.interval(0.9999, n, share)
    return low <= found <= high


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.95])
def test_so_many_failed_checks_are_followed_by_a_backtrack(share):
    found, counts = documents("countdown", {"backtrack": share})
    backtracks = handed_on = 0
    for words in found:
        if words[1] != "review":  # which is of the first author's work alone
            opened = [grammar.BEHAVIOUR.get(word, word) for word in words]
            backtracks += opened.count("wait")
            handed_on += opened.count("next")
    assert backtracks + handed_on > 2000 and likely(backtracks, backtracks + handed_on, share)
    assert sum(map(len, found)) - 150_000 < 400  # equal tokens, but for the last document


def writes_all(words):
    """Whether a chain document has a step for every link: the problem read back from its words."""
    review = words[1] == "review"
    problem = words[2 + review:words.index(":")]
    links = sum(word in vocabulary.OPERATORS for word in problem)
    if review:
        return links, words[words.index(";", words.index(":")):].count("=") == links
    opened = [grammar.BEHAVIOUR.get(word, word) for word in words[words.index(":"):]]
    return links, opened.count("try") - opened.count("next") == links


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, None])
def test_so_many_documents_write_all_steps_of_a_deeper_problem(share):
    found, _ = documents("chain", {} if share is None else {"whole": share})
    asked = [writes_all(words) for words in found if ":" in words]
    deeper = [whole for links, whole in asked if links > 2]
    wanted = chain.whole_share(FAMILIES["chain"]) if share is None else share
    assert len(deeper) > 1500 and likely(sum(deeper), len(deeper), wanted)
    shallow = [whole for links, whole in asked if links == 2]
    assert np.mean(shallow) > 0.25  # as many as without a bound
    assert sum(map(len, found)) - 150_000 < 400


def test_who_may_not_write_all_steps_leaves_out_the_last_alone():
    generator = {**FAMILIES["chain"], "whole": 0.0, "slip": 0.0, "check_steps": 0.0}
    rng = random.Random(0)
    for problem in chain.problems("train", 30, 0, generator, depth=3):
        author = dataclasses.replace(corpus.author(rng, generator), persistence=1.0)
        words = chain.document(rng, problem, author, generator)
        (*_, last), answers = chain.plan(problem)[1], grammar.steps(words)[-1][1]
        assert len(grammar.steps(words)) == 6  # five steps and the conclusion
        assert answers == [str(chain.plan(problem)[0][-1][3]), str(last[0])]


def test_easier_targets_have_so_many_solutions():
    generator = {**FAMILIES["countdown"], **countdown.easier(FAMILIES["countdown"], 3)}
    found = countdown.problems("test", countdown.count("test", generator) - 20, 0, generator)
    for problem in found:
        pool = countdown.expressions(tuple(sorted(problem.numbers)))
        assert min(sum(e[-1] == t for e in pool) for t in problem.targets) >= 3
        assert 8 <= len(pool) <= 20
    assert len(found) > 500
    assert countdown.harder({"expressions": [12, 16]}, 20) == {"expressions": [20, 24]}


def test_a_base_may_read_a_share_of_edge_problems():
    depths = {r.name: r for r in ladders.rungs("lab", "chain")}["depth-read"].corpus["depths"]
    assert depths.count(4) / len(depths) == pytest.approx(0.01, rel=0.02) and max(depths) == 4
    plain = FAMILIES["chain"]["depths"]
    assert {d: depths.count(d) / (len(depths) - 1) for d in plain} == {
        d: plain.count(d) / len(plain) for d in plain}


# --- rungs ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("profile", ["lab", "smoke", "colab"])
@both
def test_every_rung_has_models_of_its_own_or_the_labs(profile, family):
    found = ladders.rungs(profile, family)
    names = [r.name for r in found]
    own = [(role, getattr(r, role)) for r in found for role in ("base", "thinking")
           if ladders.trained_here(r, role)]
    assert len(set(names)) == len(names) and len(set(own)) == len(own)
    trained = {"lab/base", "lab/thinking", "lab/twin", *(name for _, name in own)}
    assert all({r.base, r.thinking} <= trained for r in found)
    exposures = [r.value for r in found if r.ladder == "exposure"]
    assert exposures == sorted(exposures) and exposures[0] == 0
    assert any(r.ladder == "depth" for r in found) == (family == "chain")
    folders = [ladders.folder(r, role, 3) for r in found for role in ("base", "thinking")
               if ladders.trained_here(r, role)]
    assert len(set(folders)) == len(folders)


# --- what RL is given -----------------------------------------------------------------------------

def test_rl_asks_the_problems_of_its_rung(home):
    recipe = params.load("smoke")["rl"]
    n = recipe["steps"] * recipe["problems"]

    def depths(name, changes=None, recipe=recipe):
        return [p.depth for p in ladders.asked(rung(name), recipe, 0, changes or {})]
    assert depths("exposure-0") == [2] * n and depths("depth-edge") == [3] * n
    assert depths("depth-mixed") == [3, 2] * (n // 2)
    assert depths("start-easier", {"depth": 1}) == [1] * n
    ordinary = chain.problems("train", n, 1, params.load("smoke")["families"]["chain"])
    assert ladders.asked(rung("skill-0.5"), recipe, 0, {}) == ordinary


def test_groups_with_contrast_come_first_and_no_more_is_drawn_than_needed():
    right = {1: [1, 0], 4: [0, 1], 5: [1, 0], 2: [1, 1]}  # of a problem's two answers; else none
    asked = []

    def draw(problems, seed):
        asked.append((problems, seed))
        grades = [Grade(bool(x), False, None) for p in problems for x in right.get(p, [0, 0])]
        return [[p, i] for p in problems for i in range(2)], [1] * len(grades), grades
    rollout_fn = ladders.contrasting(draw, 2, 2)
    sequences, lengths, grades = rollout_fn([0, 1, 2, 3, 4, 5, 6, 7], 9)
    assert sequences == [[1, 0], [1, 1], [4, 0], [4, 1]] and lengths == [1] * 4
    assert [g.correct for g in grades] == [True, False, False, True]
    assert [problems for problems, _ in asked] == [[0, 1], [2, 3], [4, 5]]  # 6 and 7 are not needed
    assert len({seed for _, seed in asked}) == 3
    assert rollout_fn([0, 1, 2, 3], 9)[0] == [[1, 0], [1, 1], [0, 0], [0, 1]]  # fills up


@pytest.mark.parametrize("how, levels, goal, right", [
    ("easier", [0.05, 0.2, 0.5], 0.1, 1), ("easier", [0.05, 0.06], 0.1, 1),
    ("harder", [0.08, 0.02, 0.0], 0.02, 1), ("harder", [0.01, 0.0], 0.02, 0)])
def test_the_first_setting_that_reaches_the_other_start_is_taken(how, levels, goal, right):
    assert ladders.chosen(levels, goal, how) == right


def test_workings_are_right_in_every_step():
    problems = chain.problems("train", 20, 0, FAMILIES["chain"], depth=4)
    for problem, words in zip(problems, ladders.workings(chain, problems, FAMILIES["chain"], 0)):
        assert chain.grade(problem, words).trace and chain.strategy(problem, " ".join(words))


# --- a run of all rungs ---------------------------------------------------------------------------

def test_every_rung_is_trained_once_and_can_be_loaded(home, monkeypatch):
    ladders.run("smoke", "chain")
    record = results.read("smoke", "train/chain_ladders")
    every, seed = ladders.rungs("smoke", "chain"), 0
    own = [(r, role) for r in every for role in ("base", "thinking")
           if ladders.trained_here(r, role)]
    assert set(record["provenance"]["checkpoints"]) == {
        ladders.folder(r, role, seed).as_posix() for r, role in own}
    for r, role in own:
        loaded = r.pair(seed).load(role)
        assert loaded.name == getattr(r, role) and r.pair(seed).has(role)
        stated = model.manifest(ladders.folder(r, role, seed))
        if role == "thinking":
            assert stated["base"] == model.checksum(ladders.folder(r, "base", seed))
            steps = params.load("smoke")["rl"]["steps"] * r.rl.get("steps", 1)
            assert len(r.curve(seed)) == (0 if r.value == "taught" else steps)
    starts = record["extra"]["starts"]
    assert starts["easier"]["goal"] == starts["harder"]["levels"][0]
    whole, early = (model.manifest(lab.folder("smoke", "chain", f"ladders/{name}/base", 0))["log"]
                    for name in ("exposure-0", "skill-0.5"))
    assert whole["tokens"] == pytest.approx(20_000, rel=0.05)
    assert early["tokens"] == pytest.approx(0.5 * whole["tokens"], rel=0.2)
    calls = []
    for module, name in ((rl, "learn"), (pretrain, "fit"), (ladders, "imitate")):
        monkeypatch.setattr(module, name, lambda *a, **k: calls.append(a))
    ladders.run("smoke", "chain")
    assert not calls and results.read("smoke", "train/chain_ladders") == record
    assert not list((home / ladders.UNFINISHED).rglob("*.safetensors"))
    place = lab.folder("smoke", "chain", "ladders/exposure-0.1/rl", 0)
    shutil.rmtree(place)
    shutil.copytree(lab.folder("smoke", "chain", "ladders/exposure-0/rl", 0), place)
    with pytest.raises(model.ModelError, match="is another model: its manifest says name"):
        rung("exposure-0.1").pair(0).load("thinking")


def test_a_run_in_another_precision_is_not_taken_for_this_one(home, monkeypatch):
    rung = ladders.rungs("smoke", "countdown")[0]
    made = {}
    for fast in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        made[fast] = ladders._made(rung, "base", 0)
    assert made[False] | {"precision": "torch.bfloat16"} == made[True] != made[False]


def test_pretraining_in_parts_is_that_of_the_whole(home):
    """The last stop of the skill ladder, at the end of pre-training, is the lab's own base."""
    stops = [rung("skill-0.5")._replace(value=share) for share in (0.25, 1.0)]
    stops = [r._replace(base=f"lab/ladders/{r.name}/base") for r in stops]
    logs = ladders.pretrain_bases(stops, 1)
    place = home / "whole"
    stated = pretrain.train("smoke", "chain", "base", 1, place)
    assert model.checksum(place / "seed1") == model.checksum(ladders.folder(stops[1], "base", 1))
    assert logs["skill-1"]["counts"] == stated["counts"]
    assert logs["skill-1"]["loss"] == stated["curve"][-1]["loss"]


def test_a_profile_without_ladders_and_a_missing_base_are_named(home):
    with pytest.raises(errors.BadInput, match="profile is 'toy', which states no `ladders`"):
        ladders.run("toy", "chain")
    with pytest.raises(model.ModelError, match="checkpoints/lab/countdown/twin/seed3 is missing"):
        ladders.run("lab", "countdown")


# --- a kill ---------------------------------------------------------------------------------------

def killed(function, at, counted, monkeypatch):
    """Runs a function in a child, which kills itself at a call of `counted` (module, name); then
    here, and returns how often it is called here."""
    module, name = counted
    real, calls = getattr(module, name), []

    def counting(*args, **options):
        calls.append(1)
        if multiprocessing.parent_process() is not None and len(calls) > at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    monkeypatch.setattr(module, name, counting)
    monkeypatch.setattr(resuming, "EVERY", 0.0)
    # A fork has none of torch's threads, and new ones that load weights would ask for them.
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    child = multiprocessing.get_context("fork").Process(target=function)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    function()
    return len(calls)


def test_killed_rl_ends_with_the_weights_of_a_whole_run(home, monkeypatch):
    """Graded so that there are gradients: right are the answers of an even number of words."""
    graded = chain.grade
    monkeypatch.setattr(chain, "grade", lambda problem, words: dataclasses.replace(
        graded(problem, words), correct=len(words) % 2 == 0))
    plateau = rung("start-plateau")._replace(base="lab/base")
    place = ladders.folder(plateau, "thinking", 0)
    log = ladders.train(plateau, 0, {})
    whole, base = model.checksum(place), model.checksum(ladders.folder(plateau, "base", 0))
    assert len(log["curve"]) == 4 and whole != base
    assert all(0 < point["contrast"] <= 4 for point in log["curve"])
    shutil.rmtree(place)
    again = []
    taken = killed(lambda: again.append(ladders.train(plateau, 0, {})), 3, (rl, "update"),
                   monkeypatch)
    assert taken == 1  # three steps were there
    assert again == [log] and model.checksum(place) == whole


def test_killed_pretraining_ends_with_the_weights_of_a_whole_run(home, monkeypatch):
    read = rung("exposure-0.1")
    place = ladders.folder(read, "base", 2)
    log = ladders.pretrain_bases([read], 2)
    whole = model.checksum(place)
    shutil.rmtree(place)
    again = []
    batches = killed(lambda: again.append(ladders.pretrain_bases([read], 2)), 7, (pretrain, "loss"),
                     monkeypatch)
    assert 0 < batches < 8 and again == [log] and model.checksum(place) == whole


def test_a_state_comes_back_as_it_was_and_a_damaged_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(resuming, "EVERY", 0.0)
    path, tied = tmp_path / "run.safetensors", torch.randn(3).bfloat16()
    state = {"net": {"a": tied, "b": tied}, "curve": [{"loss": 0.1, "tensor": None}], "none": {},
             "optimizer": {"state": {0: {"step": torch.tensor(2.0)}}, "betas": (0.9, 0.95)}}
    resuming.Progress(path, {}).keep(lambda: state)
    back = resuming.Progress(path, {}).state
    assert all(torch.equal(back["net"][name], tied) for name in "ab")
    assert back["curve"] == state["curve"] and back["none"] == {}
    assert back["optimizer"]["state"][0]["step"].item() == 2
    assert back["optimizer"]["betas"] == [0.9, 0.95]
    whole = path.read_bytes()
    for damaged in (b"", whole[:40], whole[:-2], save({"a": tied})):
        path.write_bytes(damaged)
        with pytest.raises(errors.BadInput, match="run.safetensors is no state of a run") as raised:
            resuming.Progress(path, {})
        assert "\n" not in str(raised.value)


def test_a_state_of_another_run_is_not_taken_up(tmp_path, monkeypatch):
    monkeypatch.setattr(resuming, "EVERY", 0.0)
    first = resuming.Progress(tmp_path / "a/run.safetensors", {"lr": 0.1})
    first.keep(lambda: {"net": torch.ones(2)})
    assert resuming.Progress(tmp_path / "a/run.safetensors", {"lr": 0.2}).state == {}
    there = resuming.Progress(tmp_path / "a/run.safetensors", {"lr": 0.1})
    assert torch.equal(there.state["net"], torch.ones(2))
    there.end()
    assert not (tmp_path / "a/run.safetensors").exists()
    monkeypatch.setattr(resuming, "EVERY", 60.0)
    there.keep(lambda: pytest.fail("it is not time to"))
