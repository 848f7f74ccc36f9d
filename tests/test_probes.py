"""Probes, places, vectors and dose-response against closed forms, brute force and known models."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from locksmith import corpus, errors, grammar, loading, model, params, vocabulary, words
from locksmith.experiments import directions, places, probes, reading, uncertainty
from locksmith.experiments.directions import COUNTS, Target
from locksmith.experiments.places import Sizes
from locksmith.tasks import chain, countdown, sums
from repository import ROOT, smoke_lab
from scipy.stats import norm
from sklearn.metrics import roc_auc_score


@pytest.fixture(scope="module")
def tiny_lab(tmp_path_factory):
    """A folder with the smoke profile's problems and untrained models in the lab's places."""
    with smoke_lab(tmp_path_factory.mktemp("lab")) as root:
        yield root


@pytest.fixture
def inside(tiny_lab, monkeypatch):
    monkeypatch.chdir(tiny_lab)


@pytest.fixture(scope="module")
def toys():
    """The toy pair in words, and its base."""
    pair = loading.Pair("toy", "sums", 0, "toy", "toy/thinking")
    return pair, pair.load("base")


def pair_of(task):
    return loading.Pair("smoke", task, 0)


def lab_model(net):
    """A network with the lab's vocabulary, as `loading` gives it."""
    return loading.Model("tiny", net, vocabulary.tokenizer(), frozenset(vocabulary.STOP),
                         special=True)


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
    for _ in range(60):
        p, y = np.arange(200) % 50, rng.random(200) < 0.5
        found = probes.auroc_interval([(rng.normal(size=200) + y, y, p)])
        covered += found.low <= truth <= found.high
        widths.append(found.high - found.low)
    assert 50 <= covered <= 60 and 0.05 < np.mean(widths) < 0.25


def test_interval_widens_where_seeds_differ():
    rng = np.random.default_rng(3)
    p, y = np.arange(600) % 100, rng.random(600) < 0.5
    one = [(rng.normal(size=600) + y, y, p)]
    far = [*one, (rng.normal(size=600) + 4 * y, y, p)]
    same, apart = (probes.auroc_interval(x) for x in (one * 2, far))
    assert apart.high - apart.low > 2 * (same.high - same.low)


def test_readers_of_the_same_places_are_compared_in_pairs():
    """A forecast that is the chance itself, and one with noise on it: gaps are far surer than what
    they are gaps of."""
    rng, by_seed = np.random.default_rng(0), []
    for _ in range(3):
        chance, groups = rng.normal(size=600), np.arange(600) % 60
        y = rng.random(600) < norm.cdf(2 * chance + rng.normal(size=60)[groups])
        off = chance + rng.normal(scale=0.05, size=600)
        by_seed.append(((off, y, groups), (chance, y, groups)))
    near, best = zip(*by_seed)
    one, gap = probes.auroc_interval(near), probes.difference(near, best)
    assert gap.value == pytest.approx(one.value - probes.auroc_interval(best).value)
    assert gap.high - gap.low < (one.high - one.low) / 4
    share = probes.decodable_share(near, best)
    assert share.low < 1 and 0.97 < share.value < 1.02 and share.high - share.low < 0.05
    assert probes.decodable_share(best, best) == pytest.approx((1, 1, 1))
    nothing = [(rng.normal(size=600), y, groups) for _, y, groups in best]
    assert probes.decodable_share(near, nothing) is None


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
    error, rows = uncertainty.calibration(odds, y)
    assert error < 0.01 and sum(n for *_, n in rows) == 50_000
    assert uncertainty.calibration(np.full(1000, 40.0),
                                   np.arange(1000) < 300)[0] == pytest.approx(0.7)


# --- places ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("task", [countdown, chain])
def test_boundaries_are_where_steps_open(task):
    generator = params.load("lab", ROOT / "params.yaml")["families"][places.name_of(task)]
    rng = random.Random(0)
    for _ in range(200):
        problem = task.sample(rng, "train", generator)
        author = corpus.author(rng, generator)
        words = [*problem.prompt, *task.document(rng, problem, author, generator)]
        here = places.boundaries(task, torch.tensor(vocabulary.encode(words))).tolist()
        for is_here, following in zip(here, words[1:], strict=False):
            if following not in ("<eos>", "next"):
                assert is_here == (following in grammar.BEHAVIOUR)


def test_places_know_what_was_a_choice():
    words = ("<bos> find 9 * 3 ; 45 - 18 : try 9 * 3 = 26 check 27 no wait 9 * 3 = 27 "
             "is it good 27 yes maybe 45 - 18 = 27 so 27 27 <eos>").split()
    found = places.places(chain, None, [places.Text(vocabulary.encode(words), 9, 7)])
    assert found.opens.tolist() == ["try", "check", "wait", "check", "try", "conclude"]
    assert [words[p] for p in found.place] == [":", "26", "no", "27", "yes", "27"]
    assert found.choice["check"].tolist() == [False, True, False, False, False, True]  # no repeats
    assert found.choice["wait"].tolist() == [False, False, True, False, False, False]
    assert set(found.problem) == {7} and found.positions(1) == [found.place.tolist()]


def test_no_places_in_texts_without_steps():
    assert len(places.places(chain, None, [places.Text([1, 3, 4], 2, 0)]).place) == 0


def test_minimal_pairs_differ_in_one_number_and_end_alike(toys):
    pair, base = toys
    texts = places.documents(pair, base, 5, 6)
    found = places.places(sums, base, texts)
    assert [t.problem for t in texts if t.habits] == [i // places.PROMPTS for i in range(20)]
    texts = [t for t in texts if not t.habits]
    found = places.places(sums, base, texts)
    assert len(texts) == 30 and found.place.tolist() == [len(t.ids) - 1 for t in texts]
    assert [t.last for t in texts[:6]] == [("step",), ("error",)] * 2 + [("conclude",), ("error",)]
    for right, wrong in zip(texts[::2], texts[1::2], strict=True):
        one, other = (base.decode(t.ids[t.start:]) for t in (right, wrong))
        assert one.endswith(".") and other.endswith(".") and base.decode(right.ids).startswith("Q:")
        said, instead = (x.strip(".").split(" = ") for x in (one, other))
        assert said[:-1] == instead[:-1] and said[-1] != instead[-1]
    assert found.choice["conclude"].tolist() == [t.last != ("error",) for t in texts]
    up, down = found.sides("error")
    assert up.sum() == down.sum() == 15


def test_what_is_read_as_wrong_in_a_right_working_is_not_called_right(toys):
    _, base = toys
    problem = words.WordProblem("sums", "What is it?", "17",
                                "5 + 7 = 12. 80 - 25% = 60. 12 + 5 = 17.")
    pair = SimpleNamespace(rules=sums, task="sums", seed=0, generator={}, problems=lambda n,
                           split: [problem])
    texts = [text for text in places.documents(pair, base, 1, 6) if not text.habits]
    assert [t.last for t in texts] == [("step",), ("error",), ("conclude",), ("error",)]
    assert base.decode(texts[2].ids).endswith("80 - 25% = 60. 12 + 5 = 17.")


def test_what_a_base_does_is_drawn_by_its_chance_and_not_told_by_the_order_of_examples(toys,
                                                                                       monkeypatch):
    pair, base = toys
    [problem] = pair.problems(1, "validation")
    given = places.asked(base, sums, problem, "work")
    opening = base.decode([*given.forced, *given.last])
    assert problem.working.startswith(opening.strip()) and opening.endswith(" =")
    monkeypatch.setattr(places, "DRAWN", 4000)
    monkeypatch.setattr(places.next_words, "chances", lambda *given: np.array([0.3]))
    text = places.documents(pair, base, 1, 2)[-1]
    assert text.habits == {"work": [0.3]} and len(text.ids) == text.start
    assert abs(text.last.count("work") / 4000 - 0.3) < 0.03 and set(text.last) == {"work", "answer"}
    shown = base.decode(text.ids).split("\nA: ")[1:]
    assert [x.split("\n")[0].count("=") for x in shown] == [0, 0, 0, 3]
    found = places.places(sums, base, [text])
    assert found.sides("work")[0].sum() == text.last.count("work")
    assert not found.choice["error"].any()


def test_steps_of_an_answer_in_words_are_found_at_their_last_token(toys):
    _, base = toys
    said = " 5 + 7 = 12. Now 12 - 3 = 8. Let us see what that means. 8 + 9 = 17. The answer is 17."
    asked = base.encode("Q: Calculate 5 + 7 - 3 + 9.\nA:")
    text = places.Text([*asked, *base.encode(said)], len(asked), 0)
    found = places.places(sums, base, [text])
    read = [base.decode(text.ids[:p + 1]) for p in found.place]
    assert [x.split("= ")[-1] for x in read[1:]] == ["12.", "8.", "17."] and read[0].endswith("A:")
    assert found.opens.tolist() == ["work", "step", "error", "conclude"]


def test_attempts_in_words_and_whether_an_answer_is_worked_out_are_read_from_the_text():
    said = " 5 + 7 = 13. Wait, that is not right. 5 + 7 = 13. The answer is 12."
    assert places.works_out(sums, said)
    assert not any(places.works_out(sums, other) for other in (
        " The answer is 12.", " 12.", "", " It is easy. 5 + 7 = 12."))
    assert places.attempts(sums, said) == ["5 + 7 = 13"] * 2


def test_a_wrong_first_step_is_what_going_back_is_asked_after(toys):
    _, base = toys
    problem = sums.problems("test", 1, 0, sums.GENERATOR)[0]
    given = places.asked(base, sums, problem, "error")
    said, right = base.decode(given.ids[given.start:]), problem.working.split(".")[0]
    assert said != f" {right}." and said.split(" = ")[0] == f" {right}".split(" = ")[0]
    assert given.forced == [] and given.last == places.opening_ids(base, sums, "error")
    ends = places.asked(base, sums, problem, "conclude")
    assert base.decode(ends.ids[ends.start:]) == f" {problem.working}"


def test_models_must_share_a_vocabulary_and_a_shape(toys):
    _, base = toys
    lab = lab_model(plain_model())
    places.check_alike(base, base)
    with pytest.raises(errors.BadInput, match="different vocabularies"):
        places.check_alike(base, lab)
    with pytest.raises(errors.BadInput, match="1 blocks of 16 dimensions and tiny has 1 of 32"):
        places.check_alike(lab, lab_model(model.build(
            {"hidden": 32, "layers": 1, "heads": 2, "mlp": 16, "context": 64}, 0)))


# --- vectors --------------------------------------------------------------------------------------

def some_means(rng, n=90, size=6, shift=0.0):
    x = rng.normal(size=(n, size))
    up = rng.random(n) < 0.4
    x[up] += shift
    return x, up, directions.means(x, up, ~up, np.arange(n) % 9, 9)


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
    opposite = directions.Means(a.down, a.up, a.n_down, a.n_up)
    assert directions.cosine_interval([[(a, a)]]) == pytest.approx((1, 1, 1))
    assert directions.cosine_interval([[(a, opposite)]]).high == pytest.approx(-1)
    # With several the largest counts.
    assert directions.cosine_interval([[(a, opposite), (a, a)]]).low == pytest.approx(1)
    found = directions.cosine_interval([[(a, b)]])
    assert 0.9 < found.low < found.value < 1
    drawn = [directions.noise(a.vector(), i) for i in range(300)]
    assert np.allclose(np.linalg.norm(drawn, axis=1), np.linalg.norm(a.vector()))
    assert abs(np.mean([directions.cosine(a.vector(), d) for d in drawn])) < 3 / np.sqrt(300 * 50)


def test_a_corrected_cosine_is_that_of_the_directions_beneath_common_noise():
    """Two models whose directions have a cosine of 0.6 read the same few events, each with noise of
    its own and noise that both share: the plain cosine is too high, the crossed one too low."""
    rng, width, found, crossed, plain = np.random.default_rng(10), 60, [], [], []
    one = np.eye(width)[0]
    beneath = 1.8 * np.stack([one, 0.6 * one + 0.8 * np.eye(width)[1]])
    for _ in range(30):
        pairs = []
        for _ in range(6):
            common = rng.normal(size=(2, 80, width))
            own = 0.5 * rng.normal(size=(2, 2, 80, width))
            models = [directions.Means(d + (common + noise)[0], (common + noise)[1],
                                       np.ones(80), np.ones(80))
                      for d, noise in zip(beneath, own, strict=True)]
            pairs.append(tuple(models))
        found.append(directions.corrected_cosine(pairs))
        plain.append(directions.cosine_interval([[pair] for pair in pairs]).value)
        crossed.append(directions.cosine_interval(
            [[(directions.halves(a)[0], directions.halves(c)[1])] for a, c in pairs]).value)
    assert np.mean(plain) > 0.65 and np.mean(crossed) < 0.5
    told = [x for x in found if x]
    assert len(told) > 27 and np.mean([x.value for x in told]) == pytest.approx(0.6, abs=0.04)
    assert 26 <= sum(x.low <= 0.6 <= x.high for x in told)
    nothing = [directions.Means(*rng.normal(size=(2, 80, width)), np.ones(80), np.ones(80))
               for _ in range(2)]
    assert directions.corrected_cosine([tuple(nothing)] * 2) is None


def test_halves_share_no_problem_and_add_up():
    _, _, found = some_means(np.random.default_rng(9))
    first, second = directions.halves(found)
    assert not (first.n_up * second.n_up).any()
    assert np.allclose(first.up + second.up, found.up)


# --- steering -------------------------------------------------------------------------------------

def test_slope_is_that_of_a_fitted_line():
    rng = np.random.default_rng(10)
    values, strengths = rng.random((2, 5, 7)), [-1, -0.5, 0, 0.5, 1]
    wanted = [[np.polyfit(strengths, values[i, :, j], 1)[0] for j in range(7)] for i in range(2)]
    assert np.allclose(directions.slope(values, strengths), wanted)


def moment(ids, prompt_length, rows=(1, 0)):
    ids = torch.tensor([ids] * len(rows))
    return SimpleNamespace(rows=torch.tensor(rows), tokens=ids,
                           positions=torch.arange(ids.shape[1]).repeat(len(rows), 1),
                           prompt_lengths=torch.tensor([prompt_length] * len(rows)))


def test_gate_opens_at_choices_and_nowhere_else():
    words = "<bos> find 9 * 3 ; 45 - 18 : try 9 * 3 = 26 check 27 no wait 9 * 3 = 27".split()
    now, strengths = moment(vocabulary.encode(words), 10), torch.tensor([0.5, 2.0])
    for behaviour, where, wanted in (("check", "choice", [15, 24]), ("wait", "choice", [18]),
                                     ("wait", "all", list(range(9, 25)))):
        found = places.gate(None, chain, behaviour, where, strengths)(now)
        assert found[0].nonzero()[:, 0].tolist() == found[1].nonzero()[:, 0].tolist() == wanted
        assert set(found[0].tolist()) == {0, 2.0} and set(found[1].tolist()) == {0, 0.5}


def test_gate_in_words_opens_where_a_sentence_of_the_answer_may_end(toys):
    _, base = toys
    asked, said = base.encode("Q: 1. 2? A:"), " 5 + 7 = 12. Hm! So"
    now = moment([*asked, *base.encode(said)], len(asked), rows=(0,))
    found = places.gate(base, sums, "error", "choice", torch.tensor([0.5]))(now)
    assert found[0].nonzero()[:, 0].tolist() == [len(asked) + i for i, c in enumerate(said)
                                                 if c in ".!"]
    worked = places.gate(base, sums, "work", "choice", torch.tensor([0.5]))(now)
    assert worked[0].nonzero()[:, 0].tolist() == [len(asked) - 1]


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
    problems = [SimpleNamespace(text=f"<bos> find {i % 90} :") for i in range(400)]
    task = SimpleNamespace(
        __name__="chain", OPENINGS=grammar.OPENINGS, prompt=lambda problem: problem.text,
        grade=lambda problem, text: SimpleNamespace(
            correct=False, attempts=0, valid_attempts=0,
            behaviours=tuple(grammar.BEHAVIOUR.get(w) for w in text.split())))
    strengths = [-1, 0, 1]
    found = directions.dose(lab_model(net), task, problems, Target("check", 0, "all"),
                            {"v": vector.numpy(), "0": 0 * vector}, strengths, 1)
    for i, s in enumerate(strengths):
        stream = table[vocabulary.IDS[":"]] + s * vector
        p = (net.lm_head(net.model.norm(stream))).softmax(-1)[first].sum().item()
        assert abs(found["v"][i, :, 0].mean() - p) < 4 * np.sqrt(p * (1 - p) / 400) + 1e-6
    assert (found["0"] == found["0"][1]).all() and (found["v"][1] == found["0"][1]).all()
    rates = found["v"][..., 0].mean(1)
    assert rates[0] < rates[1] < rates[2] and rates[2] - rates[0] > 0.3


def test_counts_tell_repetition_truncation_and_valid_steps():
    problem = chain.Problem(((9, (("*", 3),)), (45, (("-", 18),))))
    text = "try 9 * 3 = 27 check 27 yes try 9 * 3 = 27 maybe 45 - 18 = 26 so 27 27 <eos>"
    row = directions.counts(chain, chain.grade(problem, text), text, 25, False, "check")
    found = dict(zip(COUNTS, row, strict=True))
    assert found["rate"] == 1 / 5 and found["opened"] == 1 and found["correct"]
    assert found["tokens"] == 25 and found["truncated"]
    assert found["repeated"] == pytest.approx(1 / 3) and found["valid"] == pytest.approx(2 / 3)


def test_counts_in_words_tell_whether_it_was_worked_out():
    problem = sums.problems("test", 1, 0, sums.GENERATOR)[0]
    text = " 1 + 1 = 3. Wait, that is not right. 1 + 1 = 2. The answer is 2."
    row = directions.counts(sums, sums.grade(problem, text), text, 9, True, "work")
    found = dict(zip(COUNTS, row, strict=True))
    assert found["rate"] == 1 and found["valid"] == 1 / 2 and not found["truncated"]


def test_the_best_layer_is_never_the_last_and_in_words_of_the_middle():
    assert directions.best_layer(chain, [0.1, 0.3, 0.2, 0.9]) == 1
    assert directions.best_layer(sums, [0.9, 0.9, 0.6, 0.7, 0.9, 0.9]) == 3
    assert directions.best_layer(sums, [0.1, 0.9]) == 0


# --- answers --------------------------------------------------------------------------------------

def test_answers_of_countdown_are_judged_one_by_one():
    problem = countdown.Problem((3, 7, 9), (30, 54))
    words = ("try 3 * 7 = 21 + 9 = 30 check 30 yes so 3 * 7 + 9 maybe 9 * 7 = 63 - 3 = 60 "
             "the answer 9 * 7 - 3 <eos>").split()
    text = [*problem.prompt, *words]
    found = uncertainty.answers(countdown, problem, vocabulary.encode(text), len(problem.prompt))
    assert [right for right, _ in found] == [True, False]
    assert [text[p["answer"]] for _, p in found] == ["so", "answer"]
    assert [text[p["last attempt"]] for _, p in found] == ["30", "60"]
    assert ["answer unchecked" in p for _, p in found] == [False, True]
    assert all(text[p["prompt"]] == ":" for _, p in found)


def test_answers_of_the_chain():
    problem = chain.Problem(((9, (("*", 3),)), (45, (("-", 18),))))
    for said, right in (("try 9 * 3 = 27 so 27 27 <eos>", True), ("so 9 45 <eos>", False)):
        ids = vocabulary.encode([*problem.prompt, *said.split()])
        (found, at), = uncertainty.answers(chain, problem, ids, len(problem.prompt))
        assert found is right and ("first attempt" in at) is right
    assert uncertainty.answers(chain, problem, vocabulary.encode([*problem.prompt, "so"]),
                               len(problem.prompt)) == []


def test_moments_in_words_stand_before_the_answer_and_at_the_ends_of_equations(toys):
    _, base = toys
    problem = sums.problems("test", 1, 0, sums.GENERATOR)[0]
    said = f" 1 + 1 = 3. 2 + 2 = 4. The answer is {problem.answer}."
    asked = base.encode(sums.prompt(problem))
    text = places.Text([*asked, *base.encode(said)], len(asked), 0)
    found = uncertainty.moments(sums, base, [problem], [text], [sums.grade(problem, said)])
    at = {m: base.decode(text.ids[:p + 1]) for m, p in zip(found.moment, found.place)}
    assert at["prompt"].endswith("A:") and at["first attempt"].endswith("= 3.")
    assert at["last attempt"].endswith("= 4.") and at["answer"].endswith("answer is ")
    assert found.right[found.moment == "answer"].tolist() == [True]
    assert found.right[found.moment == "step"].tolist() == [False, True]


def test_right_answers_are_one_direction_in_two_models_that_are_one(inside, monkeypatch):
    """Answers that are made up, read by a pair whose models have the same weights."""
    pair = loading.Pair("toy", "sums", 0, "toy", "toy")
    problems, base = pair.problems(24, "validation"), pair.load("base", exact=True)
    rng, texts, grades = random.Random(0), [], []
    for i, problem in enumerate(problems):
        for right in (True, False):
            work = " Surely." if right else " Hmm, hmm?"
            said = f"{work} The answer is {problem.answer if right else rng.randint(100, 200)}."
            asked = base.ask(sums, problem)
            texts.append(places.Text([*asked, *base.encode(said)], len(asked), i))
            grades.append(sums.grade(problem, said))
    monkeypatch.setattr(uncertainty, "traces",
                        lambda *args, **how: (texts, SimpleNamespace(grades=[grades])))
    found = uncertainty.uncertainty(pair, "thinking", 0, Sizes(24, 2, 4), 2, [-1, 0, 1])
    assert found.scores["answer", "own", 0].labels.tolist() == [True, False] * 24
    assert found.means["base"].vector() == pytest.approx(found.means["thinking"].vector())
    assert set(found.dose) == set(uncertainty.ARMS)


# --- whole jobs on tiny models --------------------------------------------------------------------

def test_reading_gives_every_model_the_same_places(inside):
    found = reading.read(pair_of("countdown"), ["base", "thinking", "untrained"],
                         {"wait": 1, "check": 0}, Sizes(16, 12, 40), [(0, 0), (1, 4)])
    counts = found.counts["documents", "wait"]
    assert counts["wait"] >= probes.ENOUGH and counts["conclude"] >= probes.ENOUGH
    wait = reading.ProbeSpec("wait", "base", 0)
    _, y, groups = found.scores[wait]
    assert y.sum() == counts["wait"] and set(groups) <= set(range(16))
    for role in ("thinking", "untrained"):
        assert (found.scores[wait._replace(reader=role, layer=1)].labels == y).all()
    # After a verdict the token is always "no": embeddings alone cannot tell anything.
    assert len(set(found.scores[wait._replace(layer=-1)].scores.round(6))) <= probes.FOLDS
    form = reading.Form("base", "wait", "wait")
    assert found.means[form].n_up.sum() == y.sum()
    assert np.allclose(found.means[form._replace(window=(0, 0))].vector(),
                       found.vector("base", "wait"), atol=1e-4)
    back = found.stable["documents", "wait", "base"]
    p = found.scores[reading.ProbeSpec("wait", "base", None, variant="forecast")].scores[y]
    assert len(back) == len(p) and abs(back.mean() / reading.AGAIN - p.mean()) < 4 * np.sqrt(
        (p * (1 - p)).mean() / reading.AGAIN / len(p))


def test_the_own_forecast_is_the_next_tokens_probability(inside):
    pair = pair_of("countdown")
    base = pair.load("base", exact=True)
    texts = places.documents(pair, base, 4, 1)
    found = places.places(countdown, base, texts)
    p = reading.forecast(base, countdown, texts, found)["check"]
    for i in (0, len(p) // 2, len(p) - 1):
        ids = torch.tensor([texts[found.text[i]].ids[:found.place[i] + 1]])
        with torch.no_grad():
            wanted = base.net(ids).logits[0, -1].softmax(-1)
        first = [vocabulary.IDS[o[0]] for o in grammar.OPENINGS["check"]]
        assert p[i] == pytest.approx(float(wanted[first].sum()), abs=1e-5)


def test_a_pair_in_words_is_read_and_its_error_has_a_direction(inside, toys):
    pair, _ = toys
    found = reading.read(pair, ["base", "thinking"], {"error": 0}, Sizes(16, 6, 8), [(0, 0)])
    assert found.counts["documents", "error"] == {"conclude": 16, "error": 48, "step": 32,
                                                  "of all": 48}
    assert found.counts["documents", "work"] == {
        "answer": 16 * places.PROMPTS * places.DRAWN, "of all": 0}
    assert found.vector("thinking", "error").shape == found.vector("base", "error").shape
    assert not found.stable and not any(p.source == "traces" for p in found.scores)
    vectors = {"v": 200 * found.vector("base", "error"), "0": np.zeros(32)}
    steered = directions.steer_exactly(pair, "base", Target("error", 0), vectors, [-1, 0, 1], 2)
    assert steered["v"].shape == (3, 2, 1) and np.allclose(steered["v"][1], steered["0"][2])
    assert not np.allclose(steered["v"][0], steered["v"][2], rtol=0.01)


def test_jobs_on_models_without_events_say_so(inside):
    pair, sizes = pair_of("chain"), Sizes(8, 1, 8)
    got = uncertainty.uncertainty(pair, "base", 0, sizes, 4, [-1, 0, 1])
    assert got.dose is None
    assert directions.layer_scores(pair, "wait", sizes, 1.0) is None
    assert directions.milestone(pair, pair.folder("base"), Target("wait", 0), sizes, 1.0, 4) is None


def test_a_milestone_and_the_layers_are_measured_where_events_are(inside):
    pair = pair_of("countdown")
    (end, folder), = pair.way("base")
    assert end == params.load("smoke")["pretrain"]["tokens"]
    found = directions.milestone(pair, folder, Target("wait", 1), Sizes(16, 12, 8), 0.5, 4)
    scores, y, _ = found.scored
    assert len(scores) == len(y) and found.means.n_up.sum() == y.sum() and found.length > 0
    assert found.dose.shape == (3, 4, len(COUNTS))
    assert len(directions.layer_scores(pair, "wait", Sizes(16, 12, 8), 0.5)) == 2


def test_other_vectors_are_steered_as_given(inside):
    vectors = {"a": np.zeros(32), "b": np.ones(32)}
    got = directions.steer(pair_of("chain"), "base", Target("check", 1, "all"), vectors,
                           [-1, 0, 1], 5, 6)
    assert got["a"].shape == (3, 5, len(COUNTS))
    assert (got["a"] == got["a"][1]).all() and (got["b"][1] == got["a"][1]).all()


# --- the ceiling ------------------------------------------------------------------------------


def test_what_can_be_known_of_an_author_is_bayes_posterior():
    """Two texts in turns, by authors who do it with a chance of .2 or .8; one by a known author."""
    habits = [[0.2, 0.8], [0.3], [0.2, 0.8], [0.2, 0.8], [0.3]]
    found = reading.posterior(habits, np.array([0, 1, 0, 0, 1]), np.array([1, 0, 1, 0, 1]) == 1)
    after_one, after_two = (0.2**2 + 0.8**2) / 1, (0.2**3 + 0.8**3) / (0.2**2 + 0.8**2)
    assert found == pytest.approx([0.5, 0.3, after_one, after_two, 0.3])
    sure = reading.posterior([[0.0, 1.0]] * 3, np.zeros(3, int), np.array([True, False, True]))
    assert np.isfinite(sure).all() and sure[1] > 0.99  # what no habit explains raises no error
