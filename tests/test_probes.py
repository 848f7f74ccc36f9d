"""Probes, vectors and dose-response against closed forms, brute force and constructed models."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from locksmith import corpus, grammar, lab, model, params, vocabulary
from locksmith.experiments import probes
from repository import ROOT, smoke_lab
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

FAMILIES = ("countdown", "chain")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the smoke profile's problems and untrained models in the lab's places."""
    with smoke_lab(tmp_path_factory.mktemp("lab")) as root:
        yield root


@pytest.fixture
def inside(home, monkeypatch):
    monkeypatch.chdir(home)


# --- areas, probes, calibration -------------------------------------------------------------------

def test_auroc_of_two_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    y = rng.random(40_000) < 0.3
    for distance in (0, 0.5, 2):
        scores = rng.normal(size=len(y)) + distance * y
        assert abs(probes.auroc(scores, y) - norm.cdf(distance / np.sqrt(2))) < 0.01


def test_auroc_counts_ties_half_and_weights_are_repetitions():
    rng = np.random.default_rng(1)
    scores, y = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.4
    times = rng.integers(0, 4, (3, 60))
    assert probes.auroc(scores, y) == pytest.approx(roc_auc_score(y, scores))
    for value, w in zip(probes.auroc(scores, y, times), times, strict=True):
        assert value == pytest.approx(roc_auc_score(np.repeat(y, w), np.repeat(scores, w)))
    assert np.isnan(probes.auroc(scores, np.ones(60, bool), times)).all()


def test_interval_covers_the_closed_form_as_often_as_it_says():
    rng = np.random.default_rng(2)
    truth, covered, widths = norm.cdf(1 / np.sqrt(2)), 0, []
    for i in range(60):
        p, y = np.arange(200) % 50, rng.random(200) < 0.5
        found = probes.auroc_interval([(rng.normal(size=200) + y, y, p)], 200, i)
        covered += found.low <= truth <= found.high
        widths.append(found.high - found.low)
    assert 50 <= covered <= 60 and 0.05 < np.mean(widths) < 0.25


def test_interval_widens_where_seeds_differ():
    rng = np.random.default_rng(3)
    p, y = np.arange(600) % 100, rng.random(600) < 0.5
    one = [(rng.normal(size=600) + y, y, p)]
    far = [*one, (rng.normal(size=600) + 4 * y, y, p)]
    same, apart = (probes.auroc_interval(x, 300) for x in (one * 2, far))
    assert apart.high - apart.low > 2 * (same.high - same.low)


def test_probe_reaches_the_closed_form_and_shuffled_labels_do_not():
    rng = np.random.default_rng(4)
    y, groups = rng.random(4000) < 0.5, np.arange(4000) % 40
    x = rng.normal(size=(4000, 10))
    x[:, 3] += 1.5 * y
    assert abs(probes.auroc(probes.held_out(x, y, groups), y)
               - norm.cdf(1.5 / np.sqrt(2))) < 0.015
    z = probes.shuffled(y)
    assert z.sum() == y.sum() and (z != y).any()
    assert abs(probes.auroc(probes.held_out(x, z, groups), z) - 0.5) < 0.05


def test_probe_never_sees_the_problem_it_is_scored_on():
    """Features that name the problem tell its label, unless the problem is left out."""
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(30), 20)
    y = (rng.random(30) < 0.5)[groups]
    x = np.eye(30)[groups] * 3 + rng.normal(size=(600, 30)) * 0.1
    assert probes.auroc(probes.held_out(x, y, groups), y) < 0.75
    assert probes.auroc(probes.held_out(x, y, np.arange(600)), y) > 0.99


def test_calibration_error_of_known_forecasts():
    rng = np.random.default_rng(6)
    odds = rng.normal(0, 2, 50_000)
    y = rng.random(50_000) < 1 / (1 + np.exp(-odds))
    error, rows = probes.calibration(odds, y)
    assert error < 0.01 and sum(n for *_, n in rows) == 50_000
    assert probes.calibration(np.full(1000, 40.0), np.arange(1000) < 300)[0] == pytest.approx(0.7)


# --- points ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("family", FAMILIES)
def test_boundaries_are_where_steps_open(family):
    generator = params.load("lab", ROOT / "params.yaml")["families"][family]
    rng, task = random.Random(0), corpus.FAMILIES[family]
    for _ in range(200):
        problem = task.sample(rng, "train", generator)
        author = corpus.author(rng, generator)
        words = [*problem.prompt, *task.document(rng, problem, author, generator)]
        here = probes.boundaries(family, torch.tensor(vocabulary.encode(words))).tolist()
        for is_here, following in zip(here, words[1:], strict=False):
            if following not in ("<eos>", "next"):
                assert is_here == (following in grammar.BEHAVIOUR)


def test_points_know_what_was_a_choice():
    words = ("<bos> find 9 * 3 ; 45 - 18 : try 9 * 3 = 26 check 27 no wait 9 * 3 = 27 "
             "is it good 27 yes maybe 45 - 18 = 27 so 27 27 <eos>").split()
    found = probes.points("chain", [probes.Text(vocabulary.encode(words), 9, 7)])
    assert found.behaviour.tolist() == ["try", "check", "wait", "check", "try", "conclude"]
    assert [words[p] for p in found.place] == [":", "26", "no", "27", "yes", "27"]
    assert found.choice["check"].tolist() == [False, True, False, True, False, True]
    assert found.choice["wait"].tolist() == [False, False, True, False, False, False]
    assert set(found.problem) == {7} and found.positions(1) == [found.place.tolist()]


def test_no_points_in_texts_without_steps():
    assert len(probes.points("chain", [probes.Text([1, 3, 4], 2, 0)]).place) == 0


# --- vectors --------------------------------------------------------------------------------------

def some_means(rng, n=90, size=6, shift=0.0):
    x = rng.normal(size=(n, size))
    up = rng.random(n) < 0.4
    x[up] += shift
    return x, up, probes.means(x, up, ~up, np.arange(n) % 9, 9)


def test_vectors_are_differences_of_means_and_weights_are_repetitions():
    rng = np.random.default_rng(7)
    x, up, found = some_means(rng)
    assert np.allclose(found.vector(), x[up].mean(0) - x[~up].mean(0))
    times = rng.integers(0, 3, 9)
    rows = np.repeat(np.arange(90), times[np.arange(90) % 9])
    again = x[rows][up[rows]].mean(0) - x[rows][~up[rows]].mean(0)
    assert np.allclose(found.vector(times[None])[0], again)


def test_cosines_of_vectors_that_are_the_same_opposite_or_unrelated():
    rng = np.random.default_rng(8)
    _, _, a = some_means(rng, 900, 50, 1.0)
    _, _, b = some_means(rng, 900, 50, 1.0)
    opposite = probes.Means(a.down, a.up, a.n_down, a.n_up)
    assert probes.cosine_interval([[(a, a)]], 50) == pytest.approx((1, 1, 1))
    assert probes.cosine_interval([[(a, opposite)]], 50).high == pytest.approx(-1)
    # With several the largest counts.
    assert probes.cosine_interval([[(a, opposite), (a, a)]], 50).low == pytest.approx(1)
    found = probes.cosine_interval([[(a, b)]], 100)
    assert 0.9 < found.low < found.value < 1
    directions = [probes.noise(a.vector(), i) for i in range(300)]
    assert np.allclose(np.linalg.norm(directions, axis=1), np.linalg.norm(a.vector()))
    assert abs(np.mean([probes.cosine(a.vector(), d) for d in directions])) < 3 / np.sqrt(300 * 50)


def test_halves_share_no_problem_and_add_up():
    _, _, found = some_means(np.random.default_rng(9))
    first, second = probes.halves(found)
    assert not (first.n_up * second.n_up).any()
    assert np.allclose(first.up + second.up, found.up)


# --- steering -------------------------------------------------------------------------------------

def test_slope_is_that_of_a_fitted_line():
    rng = np.random.default_rng(10)
    values, strengths = rng.random((2, 5, 7)), [-1, -0.5, 0, 0.5, 1]
    wanted = [[np.polyfit(strengths, values[i, :, j], 1)[0] for j in range(7)] for i in range(2)]
    assert np.allclose(probes.slope(values, strengths), wanted)


def test_gate_opens_at_choices_and_nowhere_else():
    words = "<bos> find 9 * 3 ; 45 - 18 : try 9 * 3 = 26 check 27 no wait 9 * 3 = 27".split()
    ids = torch.tensor([vocabulary.encode(words)] * 2)
    moment = SimpleNamespace(rows=torch.tensor([1, 0]), tokens=ids,
                             positions=torch.arange(len(words)).repeat(2, 1),
                             prompt_lengths=torch.tensor([10, 10]))
    strengths = torch.tensor([0.5, 2.0])
    for behaviour, where, wanted in (("check", "choice", [15, 24]), ("wait", "choice", [18]),
                                     ("wait", "all", list(range(9, 25)))):
        found = probes.gate("chain", behaviour, where, strengths)(moment)
        assert found[0].nonzero()[:, 0].tolist() == found[1].nonzero()[:, 0].tolist() == wanted
        assert set(found[0].tolist()) == {0, 2.0} and set(found[1].tolist()) == {0, 0.5}


def plain_model():
    """A model whose residual stream is the embedding alone: what a vector does is known."""
    net = model.build({"hidden": 16, "layers": 1, "heads": 2, "mlp": 16, "context": 64}, 0)
    with torch.no_grad():
        for block in net.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        net.model.embed_tokens.weight.mul_(40)
    return net.eval()


def test_dose_response_is_exact_where_one_direction_decides_a_token():
    net = plain_model()
    table = net.model.embed_tokens.weight.detach()
    first = [vocabulary.IDS[o[0]] for o in grammar.OPENINGS["check"]]
    vector = 5 * table[first[0]]
    problems = [SimpleNamespace(prompt=["<bos>", "find", str(i % 90), ":"]) for i in range(400)]
    strengths = [-1, 0, 1]
    with pytest.MonkeyPatch.context() as patch:
        graded = SimpleNamespace(grade=lambda problem, words: SimpleNamespace(
            correct=False, behaviours=tuple(grammar.BEHAVIOUR.get(w) for w in words)))
        patch.setitem(corpus.FAMILIES, "chain", graded)
        found = probes.dose(net, "chain", problems, 0, {"v": vector.numpy(), "0": 0 * vector},
                            strengths, "check", "all", 1)
    for i, s in enumerate(strengths):
        stream = table[vocabulary.IDS[":"]] + s * vector
        p = (net.lm_head(net.model.norm(stream))).softmax(-1)[first].sum().item()
        assert abs(found["v"][i, :, 0].mean() - p) < 4 * np.sqrt(p * (1 - p) / 400) + 1e-6
    assert (found["0"] == found["0"][1]).all() and (found["v"][1] == found["0"][1]).all()
    rates = found["v"][..., 0].mean(1)
    assert rates[0] < rates[1] < rates[2] and rates[2] - rates[0] > 0.3


def test_counts_tell_repetition_and_truncation():
    problem = corpus.FAMILIES["chain"].Problem(((9, (("*", 3),)), (45, (("-", 18),))))
    trace = "try 9 * 3 = 27 check 27 yes try 9 * 3 = 27 maybe 45 - 18 = 27 so 27 27 <eos>".split()
    row = probes.counts(corpus.FAMILIES["chain"], problem, vocabulary.encode(trace), "check", False)
    found = dict(zip(probes.COUNTS, row, strict=True))
    assert found["rate"] == 1 / 5 and found["opened"] == 1 and found["correct"]
    assert found["tokens"] == len(trace) and found["truncated"]
    assert found["repeated"] == pytest.approx(1 / 3)


# --- answers --------------------------------------------------------------------------------------

def test_answers_of_countdown_are_judged_one_by_one():
    problem = corpus.FAMILIES["countdown"].Problem((3, 7, 9), (30, 54))
    words = ("try 3 * 7 = 21 + 9 = 30 check 30 yes so 3 * 7 + 9 maybe 9 * 7 = 63 - 3 = 60 "
             "the answer 9 * 7 - 3 <eos>").split()
    ids = vocabulary.encode([*problem.prompt, *words])
    found = probes.answers("countdown", problem, ids, len(problem.prompt))
    text = [*problem.prompt, *words]
    assert [right for right, _ in found] == [True, False]
    assert [text[p["answer"]] for _, p in found] == ["so", "answer"]
    assert [text[p["last attempt"]] for _, p in found] == ["30", "60"]
    assert ["answer, unchecked" in p for _, p in found] == [False, True]
    assert all(text[p["prompt"]] == ":" for _, p in found)


def test_answers_of_the_chain():
    problem = corpus.FAMILIES["chain"].Problem(((9, (("*", 3),)), (45, (("-", 18),))))
    for words, right in (("try 9 * 3 = 27 so 27 27 <eos>", True), ("so 9 45 <eos>", False)):
        ids = vocabulary.encode([*problem.prompt, *words.split()])
        (found, places), = probes.answers("chain", problem, ids, len(problem.prompt))
        assert found is right and ("first attempt" in places) is right
    assert probes.answers("chain", problem, vocabulary.encode([*problem.prompt, "so"]),
                          len(problem.prompt)) == []


# --- whole jobs on tiny models --------------------------------------------------------------------

def test_reading_gives_every_model_the_same_points(inside):
    found = probes.read("smoke", "countdown", 0, ["base", "thinking", "untrained"],
                        {"wait": 1, "check": 0}, 16, 12, 40, [(0, 0), (1, 4)])
    counts = found["counts"]["documents", "wait"]
    assert counts["wait"] >= probes.ENOUGH and counts["conclude"] >= probes.ENOUGH
    key = "documents", "wait", "choice"
    _, y, groups = found["scores"][*key, "base", 0]
    assert y.sum() == counts["wait"] and set(groups) <= set(range(16))
    for which in ("thinking", "untrained"):
        assert (found["scores"][*key, which, 1][1] == y).all()
    # After a verdict the token is always "no": embeddings alone cannot tell anything.
    for fold in set(found["scores"][*key, "base", -1][0].round(9)):
        assert np.isfinite(fold)
    assert len(set(found["scores"][*key, "base", -1][0].round(6))) <= probes.FOLDS
    forms = found["means"]["documents", "base", "wait"]
    assert forms["choice", "wait"].n_up.sum() == y.sum()
    assert np.allclose(forms["window", (0, 0)].vector(), forms["choice", "wait"].vector(),
                       atol=1e-4)
    back = found["stable"]["documents", "wait", "base"]
    p = found["scores"][*key, "base", "own forecast"][0][y]
    assert len(back) == len(p) and abs(back.mean() / 10 - p.mean()) < 4 * np.sqrt(
        (p * (1 - p)).mean() / 10 / len(p))


def test_the_own_forecast_is_the_next_tokens_probability(inside):
    net = lab.load("smoke", "countdown", "base", 0, exact=True)
    texts = probes.documents("smoke", "countdown", 4, 1)
    found = probes.points("countdown", texts)
    p = probes.own_forecasts(net, texts, found)["check"]
    for i in (0, len(p) // 2, len(p) - 1):
        ids = torch.tensor([texts[found.text[i]].ids[:found.place[i] + 1]])
        with torch.no_grad():
            wanted = net(ids).logits[0, -1].softmax(-1)
        first = [vocabulary.IDS[o[0]] for o in grammar.OPENINGS["check"]]
        assert p[i] == pytest.approx(float(wanted[first].sum()), abs=1e-5)


def test_jobs_on_models_without_events_say_so(inside):
    got = probes.uncertainty("smoke", "chain", 0, "base", 0, 8, 1, 4, [-1, 0, 1], 8)
    assert got["dose"] is None
    assert probes.layer_effects("smoke", "chain", 0, "wait", 8, 1, 8, 1.0) is None
    assert probes.milestone("smoke", "chain", lab.folder("smoke", "chain", "base", 0), "wait", 0,
                            8, 1, 4, 1.0, 8) is None


def test_a_milestone_and_the_layers_are_measured_where_events_are(inside):
    folder = lab.folder("smoke", "countdown", "base", 0)
    (scores, y, _), form, length, table = probes.milestone(
        "smoke", "countdown", folder, "wait", 1, 16, 12, 4, 0.5, 8)
    assert len(scores) == len(y) and form.n_up.sum() == y.sum() and length > 0
    assert table.shape == (3, 4, len(probes.COUNTS))
    assert len(probes.layer_effects("smoke", "countdown", 0, "wait", 16, 12, 8, 0.5)) == 2


def test_other_vectors_are_steered_as_given(inside):
    vectors = {"a": np.zeros(32), "b": np.ones(32)}
    got = probes.steer("smoke", "chain", 0, "base", 1, vectors, [-1, 0, 1], "check", "all", 5, 6)
    assert got["a"].shape == (3, 5, len(probes.COUNTS))
    assert (got["a"] == got["a"][1]).all() and (got["b"][1] == got["a"][1]).all()
