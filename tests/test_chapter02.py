"""Chapter 2's library: what is drawn and judged on tiny random models,
and what is done to traces."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from locksmith import decoding, engine, errors, grammar, lab, loading, params, tasks, vocabulary
from locksmith.experiments import sampling
from repository import ROOT, smoke_lab
from scipy.stats import t

N, NEW = 4, 12  # problems, tokens
PAIR = loading.Pair("smoke", "countdown", 0)
TOYS = loading.Pair("toy", "sums", 0, "toy", "toy/thinking")
COUNTDOWN, SUMS = tasks.load("countdown"), tasks.load("sums")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the smoke profile's problems and untrained models, where a chapter looks."""
    with smoke_lab(tmp_path_factory.mktemp("lab")) as root:
        yield root


@pytest.fixture(autouse=True)
def inside(home, monkeypatch):
    monkeypatch.chdir(home)


def draw(pair=PAIR, **options):
    return sampling.draw(pair, "base", N, 3, NEW, **options)


def test_problems_are_the_versioned_ones(home):
    kept = (home / "data/smoke/chain_test.jsonl").read_text().splitlines()
    assert [p.key for p in lab.problems("smoke", "chain", 5)] == [
        json.loads(line)["key"] for line in kept[:5]]
    with pytest.raises(errors.BadInput, match=f"n_problems is 999; allowed is at most {len(kept)}"):
        lab.problems("smoke", "chain", 999)


def test_problems_begin_where_the_profile_says(home):
    """Of the test split alone, for chapters and at other depths, and where data/ ends."""
    path, pair = home / "params.yaml", loading.Pair("smoke", "chain", 0)
    text = path.read_text()
    whole = {split: lab.problems("smoke", "chain", 16, split) for split in ("test", "validation")}
    path.write_text(text.replace("first_test: 0\n", "first_test: 8\n"))
    try:
        assert params.load("smoke")["first_test"] == 8
        for split, there in whole.items():
            first = 8 if split == "test" else 0
            assert pair.problems(5, split) == there[first:first + 5]
        assert lab.problems("smoke", "chain", 3, depth=4) == pair.rules.problems(
            "test", 11, 0, pair.generator, 4)[8:]
        with pytest.raises(errors.BadInput, match="n_problems is 9; .* at most 8, .* one at 8 on"):
            lab.problems("smoke", "chain", 9)
    finally:
        path.write_text(text)


def test_other_problems_in_data_are_noticed(home, monkeypatch):
    path = home / "data/smoke/chain_test.jsonl"
    whole = path.read_text()
    path.write_text("\n".join(whole.splitlines()[::-1]))
    with pytest.raises(errors.BadInput, match="holds other problems"):
        lab.problems("smoke", "chain", 5)
    path.write_text(whole)


# --- drawing and judging --------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [PAIR, TOYS], ids=lambda pair: pair.task)
def test_samples_are_the_engines_graded_one_by_one(pair):
    drawn, model, task, problems = draw(pair), pair.load("base"), pair.rules, pair.problems(N)
    plain = engine.sample(model.net, [model.ask(task, p) for p in problems], 3, max_new_tokens=NEW,
                          stop=model.stop, seed=0)
    assert drawn.correct.shape == drawn.trace.shape == (N, 3)
    for row, ids in enumerate(plain.ids()):
        p, s = divmod(row, 3)
        grade = task.grade(problems[p], model.decode(ids))
        assert drawn.ids[p][s] == ids and drawn.grades[p][s] == grade
        assert drawn.correct[p, s] == grade.correct
    assert drawn.rollouts.tokens.dtype == (torch.uint8 if pair is PAIR else torch.int16)
    assert drawn.rollouts.ids() == plain.ids()
    letters = sampling.behaviours(drawn)
    assert [len(x) for row in letters for x in row] == [
        len(g.behaviours) for row in drawn.grades for g in row]


def test_a_subset_of_problems_keeps_its_samples_and_streams_differ():
    whole, part = draw().ids, draw(only=[1, 3]).ids
    assert part == [whole[1], whole[3]]
    assert draw(stream="again").ids != whole


def test_no_two_streams_share_their_random_numbers(monkeypatch):
    seen = []
    real = engine.sample
    for module in (engine, decoding):
        monkeypatch.setattr(
            module, "sample", lambda *a, **k: seen.append(k["seed"]) or real(*a, **k))
    for options in ({"role": "base"}, {"role": "thinking"}, {"role": "base", "stream": "again"},
                    {"role": "thinking", "stream": "matched"}):
        sampling.draw(PAIR, n_problems=1, n=1, max_new_tokens=2, **options)
    sampling.apply(PAIR, "low_temperature", 1, 2, temperature=0.5)
    assert len(set(seen)) == len(seen) == 5


@pytest.mark.parametrize("pair", [PAIR, TOYS], ids=lambda pair: pair.task)
def test_guesses_are_their_own_and_repeat(pair):
    whole, part = sampling.guesses(pair, N, 40), sampling.guesses(pair, N, 40, only=[2])
    assert whole.correct.shape == whole.trace.shape == (N, 40)
    assert (part.correct[0] == whole.correct[2]).all() and not whole.trace.any()
    if pair is TOYS:  # an answer of a training problem, as often as it stands among them
        train = [p.answer for p in pair.problems(sampling.TRAIN * N, "train")]
        share = np.mean([train.count(p.answer) / len(train) for p in pair.problems(N)])
        assert abs(sampling.guesses(pair, N, 400).correct.mean() - share) < 0.03


def test_the_base_is_matched_at_its_own_temperature():
    found, reached, target = sampling.matched_temperature(PAIR, 2, NEW)
    model = PAIR.load("base")
    prompts = [model.ask(COUNTDOWN, p) for p in PAIR.problems(2)]
    plain = engine.sample(model.net, prompts, 16, max_new_tokens=NEW, stop=model.stop,
                          seed=sampling.stream_seed(0, "entropy"))
    assert target == decoding.mean_entropy(plain) and 0.5 <= found <= 3
    assert abs(reached - target) < 0.05
    assert sampling.matched_temperature(PAIR, 2, NEW, temperature=0.6)[2] < target


def test_methods_average_over_their_chains():
    pair = PAIR._replace(task="chain")
    for chains in (1, 3):
        outcome = sampling.apply(pair, "low_temperature", N, NEW, chains=chains,
                                 temperature=0.5)["low-temperature"]
        assert outcome.correct.shape == outcome.tokens.shape == (N,)
        assert np.allclose(outcome.tokens * chains % 1, 0) and outcome.tokens.max() <= NEW
    found = sampling.apply(pair, "cot_decoding", 2, NEW, k=3)
    assert set(found) == set(sampling.PATHS.values())
    assert found["cot-decoding"].tokens.max() <= 3 * NEW


def test_a_random_answer_is_the_mean_over_those_of_a_split():
    drawn = draw(split="validation", stream="methods", temperature=0.5)
    asked, outcome = PAIR.problems(N, "validation"), sampling.averaged(drawn)
    assert drawn.problems == asked and asked != PAIR.problems(N)
    assert outcome.tokens.tolist() == drawn.lengths.mean(1).tolist()
    for i, problem in enumerate(asked):
        grades = [COUNTDOWN.grade(problem, text) for text in drawn.texts[i]]
        assert outcome.correct[i] == np.mean([g.correct for g in grades])


def test_selectors_choose_among_what_was_drawn():
    drawn = draw(TOYS)
    for n in (1, 3):
        found = sampling.select(drawn, sampling.first(drawn, n))
        assert set(found) == {"majority", "best-of-n", "best-of-n-per-token"}
        for outcome in found.values():
            assert (outcome.tokens == drawn.lengths[:, :n].sum(1)).all()
    # Grades that are made up, so that it shows whose grade was taken.
    for i, row in enumerate(drawn.grades):
        row[:] = [SimpleNamespace(answer=a, correct=a == "2", trace=i > 1) for a in ("1", "2", "2")]
    found = sampling.select(drawn, sampling.first(drawn, 3))["majority"]
    assert found.correct.tolist() == [1] * N and found.trace.tolist() == [0, 0, 1, 1]
    assert not sampling.select(drawn, sampling.first(drawn, 1))["majority"].correct.any()


def test_answers_are_read_where_they_stand():
    model = PAIR.load("base")
    problem = COUNTDOWN.Problem((3, 7, 9), (30, 54))
    words = "try 3 * 7 = 21 + 9 = 30 so 3 * 7 + 9 the answer 7 + 3 * 9 <eos>".split()
    answer, places = sampling.read_answer(model, COUNTDOWN, problem, vocabulary.encode(words))
    assert [words[i] for i in places] == "3 * 7 + 9 7 + 3 * 9".split()
    assert answer == (("3", "*", "7", "+", "9"), ("7", "+", "3", "*", "9"))
    unfinished = vocabulary.encode(["try", "<pad>", "3"])
    assert sampling.read_answer(model, COUNTDOWN, problem, unfinished) == (None, [])

    toy = TOYS.load("base")
    ids = toy.encode(" 5 + 7 = 12. The answer is 12.\n")
    answer, places = sampling.read_answer(toy, SUMS, TOYS.problems(1)[0], ids)
    assert answer == "12" and toy.decode([ids[i] for i in places]).strip() == "12"
    assert min(places) > len(ids) / 2


# --- traces --------------------------------------------------------------------------------------

TRACE = "try 9 * 3 = 27 maybe 27 - 8 = 19 check 19 yes try 45 - 18 = 27 so 19 27 <eos>"
WRITTEN = " 5 + 7 = 12. 12 - 3.5 = 8.5, 8.5 * 2 = 17. The answer is 17.\n"
TEXTS = [(COUNTDOWN, TRACE, 5), (SUMS, WRITTEN, 4)]


@pytest.mark.parametrize("task, text, steps", TEXTS, ids=("lab", "words"))
def test_shuffled_traces_keep_their_steps_and_change_their_order(task, text, steps):
    pieces = sorted(text[s.start:s.end] for s in task.steps(text))
    assert len(pieces) == steps
    seen = set()
    for seed in range(20):
        new = sampling.shuffled(task, text, random.Random(seed))
        assert new != text and new[-1] == text[-1] and sorted(new) == sorted(text)
        assert all(new.count(piece) == text.count(piece) for piece in pieces)
        seen.add(new)
    assert len(seen) > 5
    assert sampling.shuffled(COUNTDOWN, "so 1 2 <eos>", random.Random(0)) is None
    assert sampling.shuffled(SUMS, " 1 + 1 = 2.", random.Random(0)) is None


def test_shuffled_lab_traces_stay_in_the_grammar():
    for seed in range(20):
        new = sampling.shuffled(COUNTDOWN, TRACE, random.Random(seed)).split()
        assert sorted(map(str, grammar.steps(new))) == sorted(map(str,
                                                                  grammar.steps(TRACE.split())))
        assert new[-1] == "<eos>"


@pytest.mark.parametrize("text", (TRACE, WRITTEN), ids=("lab", "words"))
def test_corrupted_traces_differ_in_one_result(text):
    results, places = text.split("= "), set()
    for seed in range(60):
        new = sampling.corrupted(text, random.Random(seed)).split("= ")
        changed = [i for i, (a, b) in enumerate(zip(results, new, strict=True)) if a != b]
        assert len(changed) == 1 and changed[0] > 0
        number, rest = new[changed[0]].split(" ", 1)
        assert rest == results[changed[0]].split(" ", 1)[1] and 0 <= float(number.strip(".,")) <= 99
        places |= set(changed)
    assert len(places) == text.count("=")
    assert sampling.corrupted("so 1 2 <eos>", random.Random(0)) is None


def answers(task, rows, right):
    """What `successes` reads of answers."""
    return SimpleNamespace(task=tasks.name_of(task), texts=rows, trace=np.array(right))


def test_only_sound_traces_that_can_be_changed_are_scored():
    thinking = answers(SUMS, [[WRITTEN, WRITTEN, WRITTEN], [" The answer is 3.", WRITTEN, WRITTEN]],
                       [[1, 0, 1], [1, 1, 0]])
    base = answers(SUMS, [[WRITTEN], [WRITTEN]], [[0], [1]])
    found = sampling.variants(thinking, base, 1, seed=3)
    assert found["thinking-traces"] == [(0, WRITTEN), (1, WRITTEN)]
    assert found["base-traces"] == [(1, WRITTEN)]
    assert [i for i, _ in found["shuffled-traces"]] == [0, 1]
    assert all(text != WRITTEN for kind in ("shuffled-traces", "corrupted-traces")
               for _, text in found[kind])
    assert found == sampling.variants(thinking, base, 1, seed=3)


@pytest.mark.parametrize("pair, text", [(PAIR, TRACE), (TOYS, WRITTEN)], ids=("lab", "words"))
def test_likelihoods_are_the_bases_own(pair, text):
    found = sampling.likelihoods(pair, N, {"some": [(0, text), (2, text), (2, text)], "none": []},
                                 2)
    model = pair.load("base", exact=True)
    ids, prompt = model.encode(text), model.ask(pair.rules, pair.problems(N)[2])
    with torch.no_grad():
        logprobs = model.net(torch.tensor([prompt + ids])).logits.log_softmax(-1)[0]
    places = range(len(prompt) - 1, len(prompt) + len(ids) - 1)
    own = [logprobs[place, i].item() for place, i in zip(places, ids)]
    assert np.isclose(found["some"].total[2], sum(own), rtol=1e-4).all()
    assert np.isclose(found["some"].per_token[2, 1], np.mean(own), rtol=1e-4)
    best = np.mean([int(logprobs[place].argmax()) == i for place, i in zip(places, ids)])
    assert found["some"].likeliest[2, 0] == pytest.approx(best)
    assert np.isnan(found["some"].total[[0, 1], [1, 0]]).all()
    assert np.isnan(found["none"].total).all()
    assert len(found["some"].tokens) == 3 * len(ids) and not found["none"].tokens


def test_tokens_are_labelled_by_the_step_that_they_open():
    model = PAIR.load("base")
    words = "what about 9 * 3 = 27 is it good 27 yes so 27 <eos>"
    labels = sampling.labels(model, COUNTDOWN, words, model.encode(words))
    assert labels == grammar.labels(words.split())

    toy = TOYS.load("base")
    ids = toy.encode(WRITTEN)
    labels = sampling.labels(toy, SUMS, WRITTEN, ids)
    opened = [toy.decode([i]) for i, label in zip(ids, labels) if label == "step opening"]
    assert set(labels) == {"step opening", "execute"}
    assert "".join(opened) == " 5 12 8.5 The"  # bytes: the first words, with the space before each


def test_matches_are_what_drawing_k_base_samples_would_find():
    base, ks = ["a", "a", "b", "c", "d"], np.array([1, 2, 4])
    found = sampling.found_among([["a", "d", "x"]], [base], ks)[0]
    rng = random.Random(0)
    for k, estimate in zip(ks, found):
        drawn = [np.mean([x in rng.sample(base, k) for x in ("a", "d", "x")]) for _ in range(4000)]
        assert abs(np.mean(drawn) - estimate) < 0.02
    itself = sampling.found_among([base], [base], ks, itself=True)[0]
    assert itself[0] == pytest.approx(2 / 5 * 1 / 4)  # only "a" has another, one among four
    assert itself[-1] == pytest.approx(2 / 5)


def test_another_problems_samples_match_by_form_alone():
    found = sampling.matches([["a"], ["b"]], [["a", "x"], ["a", "y"]], np.array([1, 2]))
    assert found["base", "thinking"].tolist() == [[0.5, 1], [0, 0]]
    assert found["other-problem", "thinking"].tolist() == [[0.5, 1], [0, 0]]
    assert not found["base", "base"].any()


# --- means of what is not everywhere --------------------------------------------------------------


def test_means_over_missing_traces_leave_them_out():
    values = np.array([[[1.0, np.nan], [2.0, 6.0], [np.nan, np.nan]]])
    found = sampling.mean_of_some(values)
    # Sums less three a trace are -2, 2 and 0: a variance of 4, over three problems.
    half = t.ppf(0.975, 2) * np.sqrt(4 / 3)
    assert found == pytest.approx((3, 3 - half, 3 + half))


def test_a_lead_is_paired_by_problem_and_seed():
    nan = np.nan
    mine = np.array([[[1.0, nan], [2.0, 6.0], [nan, nan], [5.0, 5.0]]])
    other = np.array([[[0.0, 2.0], [1.0, nan], [3.0, 3.0], [nan, nan]]])
    found = sampling.lead(mine, other)
    assert found[..., 0].tolist()[0][:2] == [0, 3] and np.isnan(found[0, 2:]).all()
    assert sampling.mean_of_some(found).value == pytest.approx(1.5)


def test_the_hardest_are_chosen_and_judged_on_different_samples():
    rng = np.random.default_rng(0)
    correct = rng.random((2, 8, 10)) < np.linspace(0.05, 0.95, 8)[:, None]
    chosen, solved = sampling.hardest(correct)
    for seed in range(2):
        by_hand = sorted(range(8), key=lambda i: (correct[seed, i, :5].sum(), i))[:4]
        assert np.flatnonzero(chosen[seed]).tolist() == sorted(by_hand)
        assert solved[seed].tolist() == [correct[seed, i, 5:].any() for i in range(8)]
    changed = correct.copy()
    changed[..., 5:] = ~changed[..., 5:]
    assert (sampling.hardest(changed)[0] == chosen).all()


def test_what_was_drawn_again_finds_its_problems():
    found = {5: ([0, 3], SimpleNamespace(correct=np.array([[False, True], [False, False]])))}
    assert sampling.solved_again((2, 4), [1, 5], found).tolist() == [
        [False] * 4, [True, False, False, False]]


def test_one_base_for_all_seeds_is_asked_once():
    lab_pairs = loading.pairs("lab", ["countdown", "chain"], [0, 1])
    assert all(sampling.first_asked(lab_pairs, "base")[key] == key for key in lab_pairs)
    one = loading.pairs("toy", ["sums"], [0, 1, 2], base="toy",
                        thinking="toy+checkpoints/seed{seed}")
    assert set(sampling.first_asked(one, "base").values()) == {("sums", 0)}
    assert all(sampling.first_asked(one, "thinking")[key] == key for key in one)


def test_the_lab_profile_serves_the_claims():
    """Enough problems, samples and seeds for what claims.yml reads from this chapter."""
    profile = yaml.safe_load((ROOT / "params.yaml").read_text())["lab"]
    needs = yaml.safe_load((ROOT / "claims.yml").read_text())["needs"]["default"]
    chosen = profile["chapters"]["ch02"]
    assert chosen["n_problems"] >= needs["problems"] and len(profile["seeds"]) >= needs["seeds"]
    assert chosen["n_samples"] >= 256 and set(chosen["tasks"]) == set(profile["families"])
