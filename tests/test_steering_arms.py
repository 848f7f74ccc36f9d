"""The arms of chapter 1, what its experiment chooses and how it compares, by hand."""

import shutil
from dataclasses import fields, replace
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from locksmith import arms, errors, loading, parallel, params, quantities, stats
from locksmith.book import claims
from locksmith.experiments import hybrid, recovery, steering_arms, taxonomy, vectors
from locksmith.experiments.steering_arms import Fits, Setting
from repository import ROOT, smoke_lab

NB = nbformat.read(ROOT / "chapters/01_hybrid_steering.ipynb", as_version=4)


def rows(correct, steered=4, drawn=40, **columns):
    """Outcomes of one arm and seed, a row a problem with one answer each."""
    correct = np.array(correct, float)
    return pd.DataFrame({"problem": range(len(correct)), "answers": 1, "correct": correct,
                         "trace": correct, "truncated": 1 - correct, "tokens": drawn,
                         "drawn": drawn,
                         "steered": steered, "attempts": 4, "valid_attempts": 3, "backtracks": 2,
                         "bits": 1.5, "seed": 0, "task": "chain", "start": "base"} | columns)


# --- the arms -------------------------------------------------------------------------------------

class Lab:
    """As much of a `loading.Pair` as arms ask for: a base with one direction a word."""
    seed, of_the_lab = 0, True
    rules = SimpleNamespace(OPENINGS={"try": (("try",),), "wait": (("hmm", "so"),)})

    def load(self, role):
        net = SimpleNamespace(
            config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=8)),
            get_output_embeddings=lambda: SimpleNamespace(weight=torch.eye(8)))
        return SimpleNamespace(net=net, depth=3, encode=lambda text: [{"try": 4, "hmm": 5}[text]])


@pytest.fixture
def fits():
    """Made-up fits of three categories, in every body that a lab may have."""
    one = vectors.Fitted(torch.randn(8), torch.randn(3, 8), torch.randn(3, 8),
                         (torch.randn(4, 8), torch.randn(4)), (1.0, 0.5), 9.0)
    opening = torch.tensor([-1, 0, 1, 2, -1, -1, -1, -1])
    study = SimpleNamespace(n=3, opening=opening, tell=taxonomy.Openings(opening),
                            categories=[0, 2, 2], _replace=lambda tell: SimpleNamespace(tell=tell))
    bodies = {body: {1: one._replace(bias=torch.randn(8)), 2: one._replace(vectors=2 * one.vectors)}
              for body in ("base", "twin", "untrained", "unrelated", "base, true kinds",
                           "twin, true kinds")}
    others = {layer: (torch.randn(3, 8), torch.nn.Linear(8, 3), torch.randn(8)) for layer in (1, 2)}
    return Fits(Lab(), study, Setting(1, 2.0, 0.4), bodies, others, 0.1, [0.25, 0.0, 0.75],
                [1.0, 2.0], [0.3, 0.4])


def changed(fits, name):
    """The fields in which an arm differs from the hybrid at the chosen strength."""
    arm, on = (steering_arms.ARMS[x][0](fits) for x in (name, "hybrid"))

    def same(a, b):
        if torch.is_tensor(a) and torch.is_tensor(b):
            return torch.equal(a, b)
        if isinstance(a, tuple):
            return type(a) is type(b) and all(map(same, a, b))
        return a is b or (type(a) is type(b) and a == b)
    return arm, {f.name for f in fields(arm) if not same(getattr(arm, f.name), getattr(on, f.name))}


def test_where_every_block_is_tried_arms_keep_below_the_last_or_to_it(fits):
    names = ("hybrid-lower", "untrained-vectors-lower", "untrained-vectors-last")
    for name in names:  # of three blocks the last two are tried
        assert steering_arms.make(name, fits) is None and not steering_arms.settings(name, fits)
    every = fits._replace(bodies={body: {0: layers[2], **layers}
                                  for body, layers in fits.bodies.items()})
    tried = [{x.layer for x in steering_arms.settings(name, every)} for name in names]
    assert tried == [{0, 1}, {0, 1}, {2}]
    last = every._replace(setting=Setting(2, 1.0))
    one, other = (steering_arms.make(name, last) for name in ("untrained-vectors-last",
                                                              "untrained-vectors"))
    assert one.layer == 2 and torch.equal(one.vectors, other.vectors)
    every.pair.of_the_lab = False
    assert all(steering_arms.make(name, every) is None for name in names)


def test_the_base_that_hardly_read_the_behaviour_is_steered_where_there_is_one(fits):
    names = ("one-percent-base", "one-percent-vectors")
    assert [steering_arms.make(name, fits) for name in names] == [None, None]
    rare = fits._replace(bodies=fits.bodies | {steering_arms.RARE: fits.bodies["twin"]})
    plain, steered = (steering_arms.make(name, rare) for name in names)
    assert plain.runs == steered.runs == steering_arms.RARE and plain.gate is None
    assert torch.equal(steered.vectors, fits.bodies["twin"][1].both)
    pair = loading.Pair("lab", "countdown", 3)
    assert pair.folder(steering_arms.RARE).as_posix().endswith(
        "countdown/ladders/exposure-0.01/base/seed3")


def test_an_arm_of_fewer_seeds_is_compared_on_those():
    rng = np.random.default_rng(0)

    def some(arm, rate, seeds, start):
        return pd.concat([rows(rng.random(60) < rate, seed=seed, arm=arm, start=start)
                          for seed in seeds])
    outcomes = pd.concat([some("base", 0.1, range(3), None), some("thinking", 0.8, range(3), None),
                          some("one-percent-base", 0.1, (0, 2), None),
                          some("one-percent-vectors", 0.4, (0, 2), "one-percent-base")])
    table = recovery.summary(outcomes).set_index(["arm", "quantity"])
    found = table.loc["one-percent-vectors", "gap_recovered"]
    kept = outcomes[outcomes["seed"] != 1]
    of = {arm: recovery.scores(x) for arm, x in kept.groupby("arm")}
    by_hand = stats.gap_recovered(of["one-percent-vectors"], of["one-percent-base"],
                                  of["thinking"])
    assert (found["value"], found["low"], found["high"]) == pytest.approx(by_hand)
    assert found["seeds"] == [0, 2] and table.loc["base", "pass_at_k"]["seeds"] == [0, 1, 2]


def test_bits_an_answer_stand_beside_those_that_it_holds():
    outcomes = pd.concat([rows([1, 0], steered, seed=seed, arm=arm, bits=bits)
                          for seed in (0, 1) for arm, steered, bits in (
                              ("hybrid", [4, 6], 1.5), ("base", 0, 0.0))])
    pair = SimpleNamespace(rules=SimpleNamespace(answer_bits=float), problems=lambda n: [7, 8])
    lab = SimpleNamespace(outcomes=outcomes, first=lambda task: (pair,), n_problems=2)
    found = recovery.Experiment.information(lab).set_index("arm")["value"]
    assert found.to_dict() == pytest.approx({"guess": 7.5, "hybrid": 1.5 * 5})
    pair.rules = SimpleNamespace()
    assert recovery.Experiment.information(lab).empty


def test_every_control_changes_what_its_row_says_and_nothing_else(fits):
    on, _ = changed(fits, "hybrid")
    assert (on.layer, on.runs, on.strength) == (1, "base", 2.0)
    assert isinstance(on.gate, hybrid.Disagreement) and torch.equal(on.vectors, fits.vectors)
    for name, wanted in {
            "bias-only": {"vectors"}, "bias-at-random": {"vectors", "gate"},
            "one-vector": {"vectors"}, "random-vectors": {"vectors"},
            "untrained-vectors": {"vectors"}, "unrelated-vectors": {"vectors"},
            "difference-of-means": {"vectors"}, "network": {"vectors", "coefficients"},
            "logit-push": {"vectors", "layer"}, "other-category": {"gate"}, "oracle": {"gate"},
            "random-positions": {"gate"}, "always-on": {"gate"}, "probe": {"gate"},
            "reranking": {"processor"}, "ceiling": {"vectors", "strength", "processor"},
            "reranking-alone": {"vectors", "strength", "processor"},
            "ceiling-oracle": {"gate", "vectors", "strength", "processor"},
            "true-kinds": {"gate", "vectors"}, "twin-vectors": {"runs", "vectors"},
            "twin-vectors-true-kinds": {"runs", "gate", "vectors"}}.items():
        assert changed(fits, name)[1] == wanted, name
    for name in ("ceiling", "reranking-alone"):  # nothing is added, at the hybrid's positions
        assert not changed(fits, name)[0].vectors.any()


def test_controls_have_the_norms_and_times_that_they_should(fits):
    made = {name: function(fits) for name, (function, _) in steering_arms.ARMS.items()}
    base = fits.bodies["base"]
    for name in ("random-vectors", "untrained-vectors", "unrelated-vectors"):
        assert torch.allclose(made[name].vectors.norm(dim=1), base[1].both.norm(dim=1))
        assert not torch.allclose(made[name].vectors.mean(0), base[1].bias, atol=0.1)  # no bias
    push = made["logit-push"]
    assert torch.allclose(push.vectors.norm(dim=1), base[2].both.norm(dim=1)) and push.layer == 2
    assert push.vectors.argmax(1).tolist() == [1, 2, 3]  # along its own words' rows, after the last
    assert (made["bias-only"].vectors == base[1].bias).all()
    assert (made["bias-at-random"].vectors == base[1].bias).all()
    for name in ("random-positions", "bias-at-random"):
        assert made[name].gate == hybrid.RandomPositions(0.1, [0.25, 0.0, 0.75])
    assert made["always-on"].gate.category == 2  # the commonest
    assert made["true-kinds"].gate.tell.table.tolist() == [-1, -1, -1, -1, 0, 1, -1, -1]
    swapped = hybrid.Intervention(runs="twin", decides="thinking")
    assert made["thinking-decides-twin-executes"] == swapped


def test_a_control_is_tried_at_every_setting_that_the_hybrid_is(fits):
    grid = [Setting(layer, x, 0.4) for layer in (1, 2) for x in (1.0, 2.0)]
    once = {"ceiling", "ceiling-oracle", "reranking-alone", "oracle", "always-on", "true-kinds",
            "twin-vectors-true-kinds", "base", "thinking", "twin", "one-percent-base",
            "hybrid-lower", "untrained-vectors-lower", "untrained-vectors-last"}
    for name in steering_arms.ARMS:
        tried = steering_arms.settings(name, fits)
        if name == "probe":
            assert tried == [Setting(1, 2.0, 0.3), Setting(1, 2.0, 0.4)]
        elif name == "logit-push":  # after the last block, whichever is tried
            assert tried == grid[:2]
        else:
            assert tried == ([] if name in once or "-decides-" in name else grid), name
    made = steering_arms.make("bias-only", fits._replace(setting=grid[3]))
    assert (made.layer, made.strength) == (2, 2.0)
    assert (made.vectors == fits.bodies["base"][2].bias).all()
    assert steering_arms.make("probe", fits).gate.threshold == 0.4
    bare = fits._replace(bodies={k: v for k, v in fits.bodies.items() if k in ("base", "untrained",
                                                                              "unrelated")})
    lacking = {name for name in steering_arms.ARMS if steering_arms.make(name, bare) is None}
    assert lacking == {"twin", "twin-vectors", "true-kinds", "twin-vectors-true-kinds",
                       "thinking-decides-twin-executes", "script-decides-base-executes",
                       "one-percent-base", "one-percent-vectors", "hybrid-lower",
                       "untrained-vectors-lower", "untrained-vectors-last"}


def test_every_arm_is_in_arms_yml_and_every_control_says_what_it_would_mean(monkeypatch):
    monkeypatch.chdir(ROOT)
    roles = {name: arms.get(name).role for name in steering_arms.ARMS}
    models = ("base", "twin", "one-percent-base")
    steering = {name for name in roles if "-decides-" not in name and name not in models}
    meant = steering_arms.meanings()
    assert {name for name in steering if roles[name] == "control"} <= set(meant)
    assert {*meant} <= set(roles) and len(meant) > 12
    for role in recovery.PARTNERS:
        assert all(arms.get(name) for name in recovery.partner_ids(role).values())


def test_the_claim_finds_its_facts_here(monkeypatch):
    monkeypatch.chdir(ROOT)
    book = claims.load()
    claim = next(claim for claim in book["claims"] if claim["id"] == "hybrid-steering")
    read = [(term["model"], *quantities.parse(term["quantity"])) for part in claim["parts"]
            for term in part["parsed"] if isinstance(term, dict)]
    assert read and {model for model, *_ in read} <= set(steering_arms.ARMS)
    measured = {*recovery.measures(rows([1, 0])), "gap_recovered", "gap_difference"}
    assert {quantity for _, quantity, _ in read} <= measured
    asked = {(model, where["against"]) for model, quantity, where in read
             if quantity == "gap_difference"}
    assert asked and asked <= {(x.arm, x.against) for x in recovery.QUESTIONS}
    chapter = params.load("lab")["chapters"]["ch01"]
    assert chapter["n_problems"] >= book["needs"]["default"]["problems"]
    assert chapter["tasks"] == book["families"]["lab"]


# --- what is chosen and compared ------------------------------------------------------------------

def test_the_rule_takes_the_best_setting_that_steers_few_enough():
    good, fair, bad = [1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]
    tried = pd.concat([rows(good, 20, strength=0.5), rows(fair, 4, strength=1.0),
                       rows(bad, 0, strength=2.0)])
    assert recovery.pick(tried, ["strength"]) == {"strength": 1.0}
    assert recovery.pick(tried[tried["strength"] == 0.5], ["strength"]) == {"strength": 0.5}
    assert recovery.share(pd.concat([rows(good, 20), rows(good, 4)])) == pytest.approx(0.3)


@pytest.fixture
def outcomes():
    """Three seeds, 200 problems: a base at 0.2, a thinking model at 0.8, a hybrid in the middle, a
    control that is the same, and one that is the base."""
    rng, parts = np.random.default_rng(0), []
    for seed in range(3):
        low, high = rng.random(200) < 0.2, rng.random(200) < 0.8
        half = np.where(np.arange(200) % 2, low, high)
        for arm, start, correct in (
                ("base", None, low), ("thinking", None, high), ("hybrid", "base", half),
                ("bias-only", "base", half), ("bias-at-random", "base", low),
                ("twin-vectors", "twin", low), ("twin", None, low)):
            parts.append(rows(correct, arm=arm, start=start, seed=seed))
    return pd.concat(parts, ignore_index=True)


def test_recovery_by_hand(outcomes):
    table = recovery.summary(outcomes)
    mean = outcomes.groupby("arm")["correct"].mean()
    gap = table[table["quantity"] == "gap_recovered"].set_index("arm")
    wanted = (mean["hybrid"] - mean["base"]) / (mean["thinking"] - mean["base"])
    assert gap.loc["hybrid", "value"] == pytest.approx(wanted)
    assert gap.loc["hybrid", "low"] < 0.5 < gap.loc["hybrid", "high"]
    assert not {"base", "thinking"} & set(gap.index)
    same = outcomes[outcomes["arm"].isin(["base", "hybrid"])]
    flat = pd.concat([same, same[same["arm"] == "base"].assign(arm="thinking")])
    assert "gap_recovered" not in set(recovery.summary(flat)["quantity"])  # no gap, no share of it
    assert recovery.differences(flat).empty


def test_shares_are_compared_in_pairs_on_the_same_problems_and_seeds(outcomes, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = recovery.differences(outcomes).set_index(["arm", "against"])
    # Questions whose arms were run, and the hybrid against controls that start from the base.
    assert [*found.index] == [("bias-only", "bias-at-random"), ("hybrid", "bias-only"),
                              ("hybrid", "bias-at-random")]
    ends = ["value", "low", "high"]
    assert found.loc[("hybrid", "bias-only"), ends].tolist() == [0, 0, 0]  # the same answers
    of = {arm: recovery.scores(some) for arm, some in outcomes.groupby("arm")}
    want = stats.gap_difference(of["hybrid"], of["bias-at-random"], of["base"], of["thinking"])
    assert found.loc[("hybrid", "bias-at-random"), ends].tolist() == pytest.approx([*want])
    told = recovery.answers(found.reset_index())
    assert told[["answer", "says"]].to_numpy().tolist() == [
        ["when", "one shared nudge needs the right moments"],
        ["which", "these data do not tell"]]
    stairs = recovery.staircase(outcomes, ["thinking", "nobody", "hybrid"])
    mean = outcomes.groupby("arm")["correct"].mean()
    assert stairs["arm"].tolist() == ["hybrid"] and stairs["value"][0] == pytest.approx(
        mean["hybrid"] - mean["thinking"])


def test_the_curve_is_that_of_the_chosen_layer_on_validation_problems():
    tried = pd.concat([rows(correct, steered, arm=arm, layer=layer, choice=choice)
                       for arm, layer, choice, correct, steered in (
                           ("base", 1, 0, [0, 0, 0, 1], 0), ("thinking", 1, 0, [1, 1, 1, 0], 0),
                           ("hybrid", 1, 0, [1, 1, 0, 0], 4), ("hybrid", 1, 1, [1, 1, 1, 0], 8),
                           ("hybrid", 2, 2, [1, 1, 1, 1], 9))])
    found = recovery.curve(tried, lambda task, arm: Setting(1, 2.0))
    assert found[["arm", "share", "accuracy", "recovered"]].to_numpy().tolist() == [
        ["hybrid", 0.1, 0.5, 0.5], ["hybrid", 0.2, 0.75, 1.0]]


def test_a_long_answer_counts_for_its_tokens(outcomes):
    table = rows([1, 1], steered=[10, 0], drawn=[40, 120], arm="hybrid")
    assert float(recovery.measures(table)["steered_share"].value) == pytest.approx(10 / 160)
    taken = recovery.steps_taken(table)
    assert taken[["bits", "valid", "backtracks"]].iloc[0].tolist() == [1.5, 0.75, 2.0]


def test_how_often_the_hybrid_was_seen_to_steer():
    run = SimpleNamespace(which=[[[-1, 2, 0, 2]], [[-1, -1, -1, 2]]], n_steered=4,
                          tokens=np.array([[4], [4]]))
    rate, frequencies = recovery.seen(run, 3)
    assert rate == 0.5 and np.allclose(frequencies, [0.25, 0, 0.75], atol=1e-6)


# --- the whole experiment, small -----------------------------------------------------------------

@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """The experiment on a lab of random models, whose thinking model differs from its base."""
    with smoke_lab(tmp_path_factory.mktemp("lab"), ["chain"], ["base", "thinking", "twin"]) as root:
        shutil.copy(ROOT / "arms.yml", root)
        found = recovery.Experiment(
            parallel.workers("smoke"), loading.pairs("smoke", ["chain"], [0]), [0, 1], [1.0, 3.0],
            [0.2], fit_steps=2, n_problems=3, n_samples=2, n_validation=2, max_new_tokens=24)
        found.check()
        found.study(8, [3], "quick")
        found.fit_base()
        found.validate()
        found.fit_controls()
        found.validate_controls()
        found.run()
        yield found


def test_every_arm_of_a_lab_answers_the_same_problems(experiment):
    here, tried = experiment.outcomes, experiment.tried
    absent = {"one-percent-base", "one-percent-vectors"}  # of chapter 7's ladders
    assert set(here["arm"]) == set(steering_arms.ARMS) - absent and not experiment.misplaced()
    assert (here.groupby("arm")["problem"].count() == 3).all()
    start = here.groupby("arm")["start"].first()
    assert start["twin-vectors"] == "twin" and start["hybrid"] == "base"
    assert start["thinking-decides-twin-executes"] == "base" and start["thinking"] is None
    rate, frequencies = experiment.seen["chain", 0]
    assert 0 <= rate < 1 and len(frequencies) == 3
    table = recovery.summary(here)
    assert table.groupby(["arm", "quantity"]).size().eq(1).all()
    assert (here[here["arm"].isin(["base", "thinking"])]["steered"] == 0).all()
    # Two layers by two strengths for the hybrid and for its controls; the rule chose for each.
    sizes = tried.groupby("arm")["choice"].nunique()
    assert sizes["hybrid"] == sizes["bias-only"] == sizes["unrelated-vectors"] == 4
    assert sizes["logit-push"] == 2 and sizes["probe"] == sizes["base"] == 1
    for arm, some in tried[~tried["arm"].isin(["base", "thinking"])].groupby("arm"):
        layer, strength, _ = experiment.setting("chain", arm)
        best = some[some["choice"] == recovery.pick(some, ["choice"])["choice"]]
        assert set(best["layer"]) == {layer} and set(best["strength"]) == {strength}
    assert experiment.setting("chain", "ceiling") == experiment.setting("chain", "hybrid")


def test_an_arm_answers_as_if_it_were_alone(experiment):
    """Side by side in one batch or not: the same tokens, steered at the same places."""
    pair, fits = experiment.pairs["chain", 0], experiment.fits(("chain", 0))
    for name, run in ((name, run) for (_, name, _), run in experiment.runs.items()):
        arm = steering_arms.make(name, fits._replace(setting=experiment.setting("chain", name)))
        alone = hybrid.run(pair, {name: arm}, 3, 2, 24)[name]
        assert alone.ids == run.ids and alone.which == run.which, name
        assert alone.n_steered == run.n_steered and alone.bits == run.bits


def test_a_trace_is_shown_with_its_steered_tokens_in_brackets(experiment):
    question, answers = experiment.shown("chain")
    assert question and [name for name, _, _ in answers] == ["base", "hybrid", "thinking"]
    for _, _, text in answers:
        plain = text.replace("[", "").replace("]", "")
        assert len(plain.split()) <= 24
    model = loading.load("toy")
    ids = model.encode("A bad cab.")
    which = [-1, 0, 0, -1, -1, -1, 2, -1, -1, -1]
    assert recovery.bracketed(model, ids, which) == "A [][b]ad [c]ab."
    assert recovery.bracketed(model, ids, [-1] * len(ids)) == "A bad cab."


def test_a_partner_takes_the_thinking_models_part(experiment):
    other = experiment.with_partner("twin", 8, "quick")
    plain = {arm: rows["tokens"].tolist() for arm, rows in other.outcomes.groupby("arm")}
    twin = experiment.outcomes[experiment.outcomes["arm"] == "twin"]["tokens"].tolist()
    assert plain["thinking"] == twin and plain["base"] != twin
    assert other.settings == experiment.settings and set(plain) == {
        "base", "thinking", "hybrid", "thinking-decides-base-executes"}
    assert not experiment.studies["chain", 0].traces.texts == other.studies["chain", 0].traces.texts


@pytest.mark.parametrize("change, sentence", [
    (dict(layers=[0, 5]), r"layers is \[0, 5\]; allowed here are 0 to 1."),
    (dict(max_new_tokens=4000), "max_new_tokens is 4000; allowed is at most"),
    (dict(pairs={("chain", 0): loading.Pair("smoke", "chain", 0, thinking="toy")}),
     "thinking_model is toy, which knows 258 tokens; allowed beside lab/base is")])
def test_a_pair_that_cannot_take_part_is_told_before_anything_runs(experiment, change, sentence):
    with pytest.raises(errors.BadInput, match=sentence):
        replace(experiment, **change).check()


def test_an_arm_without_an_entry_is_told_before_anything_runs(monkeypatch):
    nothing = recovery.Experiment(None, {}, [], [], [], 1, 1, 1, 1, 1)
    nothing.check()
    monkeypatch.setitem(steering_arms.ARMS, "bias-onyl", steering_arms.ARMS["bias-only"])
    with pytest.raises(errors.BadInput, match="arm 'bias-onyl' is unknown; did you mean bias-only"):
        nothing.check()


def test_as_many_tokens_with_other_meanings_are_another_vocabulary(experiment, monkeypatch):
    pair = experiment.pairs["chain", 0]
    models = {role: pair.load(role) for role in ("base", "thinking")}
    vocabulary = models["base"].tokenizer.get_vocab()
    swapped = dict(zip(vocabulary, [*vocabulary.values()][::-1], strict=True))
    other = replace(models["thinking"], tokenizer=SimpleNamespace(
        get_vocab=lambda: swapped, get_added_vocab=dict, all_special_tokens=[]))
    monkeypatch.setattr(loading.Pair, "load", lambda _, role: {**models, "thinking": other}[role])
    with pytest.raises(errors.BadInput, match="have different vocabularies; allowed in this"):
        experiment.check()


def test_at_strength_zero_nothing_is_steered_and_nothing_misplaced(experiment):
    still = replace(experiment)
    for name in ("studies", "bodies", "others", "seen"):
        setattr(still, name, getattr(experiment, name))
    still.settings = {key: setting._replace(strength=0.0)
                      for key, setting in experiment.settings.items()}
    found = still.run(["base", "hybrid", "random-vectors"]).set_index("arm")
    assert not still.misplaced() and (found["steered"] == 0).all()
    assert found.loc["hybrid", "tokens"].tolist() == found.loc["base", "tokens"].tolist()


# --- the page -------------------------------------------------------------------------------------

def test_the_page_names_no_arm_that_does_not_exist():
    code = "\n".join(cell.source for cell in NB.cells if cell.cell_type == "code")
    steps = code.split("STEPS = {")[1].split("}")[0]
    named = [part.split('"')[1] for part in steps.split(",") if ":" in part]
    assert len(named) == 6 and set(named) <= set(steering_arms.ARMS)
