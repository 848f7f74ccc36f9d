"""Chapter 4's facts: what a study records, and what it makes of what was read and steered."""

import numpy as np
import pytest
from locksmith import loading, parallel, quantities, results
from locksmith.experiments import categories, directions, latents, next_words, places, probes
from locksmith.experiments.latents import Dosed, LatentStudy
from locksmith.experiments.places import Sizes
from locksmith.experiments.reading import Form, ProbeSpec, Reading
from repository import smoke_lab

WINDOWS = [(0, 0), (1, 4)]


def study(*pairs, roles=("base", "thinking"), strengths=(-1.0, 0.0, 1.0)):
    """A study on toy pairs in words, or on those given."""
    made = LatentStudy(list(pairs) or [loading.Pair("toy", "sums", 0, "toy", "toy/thinking")],
                       Sizes(24, 6, 8), list(strengths), 2)
    made.roles = list(roles)
    return made


def means(up, down=(0, 0, 0)):
    """`Means` of one problem with these means."""
    return directions.Means(np.array([up], float), np.array([down], float), np.ones(1), np.ones(1))


def names(record):
    return {(fact["model"], quantities.name(fact["quantity"], fact)) for fact in record.facts}


@pytest.fixture
def record():
    return results.Recorder("toy", "04", seeds=[0], n_problems=2, n_samples=1)


def test_vectors_that_steer_are_of_one_length_and_none_without_the_main_ones():
    made = study()
    read = Reading(norms={("base", "work"): 7.0, ("thinking", "work"): 3.0})
    read.means = {Form("base", "work", "work"): means((1, 0, 0)),
                  Form("base", "work", "error"): means((0, 5, 0)),
                  Form("base", "work", "work", "point"): means((0, 0, 2))}
    made.readings = [read]
    assert made.arms("work", "base", "choice", 0) == {}  # the thinking model's is missing
    read.means[Form("thinking", "work", "work")] = means((0, 1, 0))
    found = made.arms("work", "base", "choice", 0)
    assert set(found) == {"base-vector", "thinking-vector", "base-point-vector", "wrong-behaviour",
                          "noise"}
    assert all(np.linalg.norm(v) == pytest.approx(7) for v in found.values())
    assert np.allclose(found["wrong-behaviour"], (0, 7, 0))
    everywhere = made.arms("work", "thinking", "all", 0)
    assert "wrong-behaviour" not in everywhere
    assert all(np.linalg.norm(v) == pytest.approx(3) for v in everywhere.values())


def test_a_base_without_a_successor_is_steered_by_its_own_vector_alone():
    made = study(roles=["base"])
    made.readings = [Reading(means={Form("base", "work", "work"): means((1, 0, 0))},
                             norms={("base", "work"): 1.0})]
    assert set(made.arms("work", "base", "all", 0)) == {"base-vector", "noise"}
    made.layers = {"work": 0}
    made.steer_early(parallel.workers("smoke"))  # would steer the thinking model
    made.categorise(parallel.workers("smoke"), 1)  # would read its steps
    assert made.early == {} and made.found == []


def test_the_most_alike_of_other_behaviours_counts():
    made = study()
    own = Form("base", "error", "error")
    made.readings = [Reading(means={
        own: means((1, 0, 0)), Form("thinking", "error", "error"): means((1, 0, 0)),
        Form("thinking", "error", "conclude"): means((0, 1, 0)),
        Form("thinking", "error", "step", "point"): means((1, 1, 0)),
        Form("thinking", "error", "conclude", source="traces"): means((1, 0, 0))})]
    assert made.cosine(own, None).value == pytest.approx(np.sqrt(0.5))
    assert made.cosine(own, own._replace(reader="thinking")).value == pytest.approx(1)
    assert made.cosine(own, own._replace(reader="twin")) is None


@pytest.mark.parametrize(("base", "other", "wanted"), [
    (0, 1, "reproduced"), (1, 1, "refuted: the base moves too"),
    (1, 0, "refuted: only the base moves"), (0, 0, "neither moves")])
def test_the_asymmetry_in_all_four_cases(base, other, wanted):
    made, rng = study(), np.random.default_rng(0)
    for role, slope in (("base", base), ("thinking", other)):
        for arm, moves in (("base-vector", slope), ("noise", 0)):
            rates = np.array([-1, 0, 1])[:, None] * 0.2 * moves + rng.normal(0.5, 0.01, (3, 40))
            table = np.zeros((1, 3, 40, len(directions.COUNTS)))
            table[0, :, :, latents.COLUMN["rate"]] = rates
            made.doses[Dosed("work", role, "choice", arm)] = table
    assert latents.asymmetry(made, "thinking", "choice") == wanted
    assert latents.asymmetry(made, "thinking", "all") is None


def test_a_pair_in_words_walks_the_whole_chapter(record, monkeypatch):
    chances = next_words.chances
    # Random weights hardly ever write an equation: their chance is brought between 0 and 1.
    monkeypatch.setattr(next_words, "chances", lambda *given: chances(*given) ** 0.02)
    made, pool = study(), parallel.workers("smoke")
    made.roles = ["base", "thinking", "untrained"]
    made.choose_layers(pool)
    made.read(pool, WINDOWS)
    made.steer(pool)
    made.steer_early(pool)
    made.ask(pool, 1)
    made.follow(pool, 2)
    latents.record_probes(record, made)
    latents.record_cosines(record, made)
    latents.record_doses(record, made)
    latents.record_timing(record, made, WINDOWS)
    latents.record_stability(record, made)
    latents.record_uncertainty(record, made, 1)
    latents.record_way(record, made, 2)
    found = names(record)
    for wanted in (("base", "probe_auroc"), ("untrained", "probe_auroc"),
                   ("embeddings", "probe_auroc[on=base]"), ("author", "probe_auroc"),
                   ("shuffled-labels", "probe_auroc[on=base]"),
                   ("base", "auroc_difference[against=untrained]"),
                   ("own-forecast", "probe_auroc[behaviour=error, on=base]"),
                   ("base", "cosine[against=thinking, variant=halves]"),
                   ("other-behaviours", "cosine"),
                   ("base-vector", "behaviour_slope[on=thinking]"),
                   ("base-vector", "behaviour_slope[behaviour=error, on=base]"),
                   ("base-vector", "behaviour_slope[position=everywhere, on=thinking]"),
                   ("base-vector", "slope_difference[against=noise, on=thinking]"),
                   ("base-vector", "slope_difference[against=wrong-behaviour, on=thinking]"),
                   ("base-vector", "accuracy_change[on=base, strength=1]")):
        assert wanted in found, wanted
    assert not any(word in quantity for _, quantity in found
                   for word in ("stable", "step=", "tokens before"))
    scored = made.readings[0].scores[ProbeSpec("work", "base", made.layers["work"])]
    wanted = pytest.approx(probes.auroc_interval([scored]))
    assert record.get("sums", "base", "probe_auroc") == wanted
    text = latents.example(made, made.pairs[0].load("base"))
    assert text.endswith("A: >> ")


def test_no_number_without_enough_events(record, monkeypatch, tmp_path):
    with smoke_lab(tmp_path):
        made = LatentStudy([loading.Pair("smoke", "chain", 0)], Sizes(6, 1, 8), [-1.0, 0.0, 1.0], 2)
        pool = parallel.workers("smoke")
        made.choose_layers(pool)
        assert made.roles == ["base", "thinking", "untrained"] and made.missing == [
            "twin", "distilled", "taught"]
        assert made.layers == {} and set(made.layer_scores.values()) == {None}
        made.read(pool, WINDOWS)
        made.steer(pool)
        made.steer_early(pool)
        made.ask(pool, 1)
        made.follow(pool, 2)
        latents.record_probes(record, made)
        latents.record_doses(record, made)
        latents.record_timing(record, made, WINDOWS)
        latents.record_uncertainty(record, made, 1)
        latents.record_way(record, made, 2)
        assert record.facts == [] and latents.used(made) == []
        assert latents.example(made, made.pairs[0].load("base")).startswith("no document holds a "
                                                                            "check")


# --- categories found without labels --------------------------------------------------------------

def test_categories_found_without_labels_are_read_before_their_steps(monkeypatch, record):
    """Steps of two kinds, each after a sign of its own: the categories are the kinds."""
    rng, made = np.random.default_rng(0), study()
    model = made.pairs[0].load("thinking", exact=True)
    asked = model.encode("Q: 1?\nA:")
    texts, kinds = [], []
    for i in range(24):
        kind = rng.random(6) < 0.4
        said = "".join(" zzzz zzzz zzzz zzzz zzzz." if k else " AAAA AAAA AAAA AAAA AAAA!"
                       for k in kind)
        kinds += kind.tolist()
        texts.append(places.Text([*asked, *model.encode(said)], len(asked), i))
    monkeypatch.setattr(categories, "traces", lambda *args, **how: (texts, None))
    found = categories.find(made.pairs[0], ["base", "thinking"], 0, made.sizes)
    mine = found.scores["base"].labels
    assert len(set(np.array(kinds)[mine])) == 1  # a category holds steps of one kind
    assert found.share == mine.mean() and found.agreement > 0.5
    assert set(found.scores) == {"base", "thinking", "embeddings", "shuffled"}
    made.found = [found]
    (row,) = latents.record_categories(record, made, 1)
    assert row[-1] in (" AAAA AAAA AAAA AAAA AAAA!".strip(), "zzzz zzzz zzzz zzzz zzzz.")
    assert {("base", "probe_auroc[behaviour=category]"),
            ("base", "cosine[behaviour=category, against=thinking]")} <= names(record)


def test_no_categories_where_there_are_too_few_steps(record):
    made = study(loading.Pair("toy", "basic_arithmetic", 0, "toy", "toy/thinking"))
    made.categorise(parallel.workers("smoke"), 1)
    assert made.found == [None] and latents.record_categories(record, made, 1) == []
