"""Steps, their averages and their categories, against counts by hand and planted clusters."""

import pytest
import torch
from locksmith import activations, grammar, loading, model, tasks, vocabulary
from locksmith.experiments import taxonomy

LAB = {"hidden": 16, "layers": 2, "heads": 2, "mlp": 24, "context": 64}
CHAIN, SUMS = tasks.load("chain"), tasks.load("sums")

TRACE = ("<bos> find 9 * 3 ; 4 - 1 : let us see 9 * 3 = 27 check 27 yes try 4 - 1 = 3 so 27 3 "
         "<eos>").split()
TEXT = vocabulary.encode(TRACE)
START = TRACE.index(":") + 1


def lab_model():
    """A tiny model of the lab's vocabulary, as `loading` gives one."""
    return loading.Model("lab/base", model.build(LAB, 0).eval(), vocabulary.tokenizer(),
                         frozenset(vocabulary.STOP), special=True)


def clusters(n, centres=5, dims=32, noise=0.15, seed=0):
    """n unit vectors around random centres, and which one each belongs to."""
    draw = torch.Generator().manual_seed(seed)
    middle = torch.nn.functional.normalize(
        torch.randn(centres, dims, generator=torch.Generator().manual_seed(9)), dim=-1)
    kinds = torch.randint(centres, (n,), generator=draw)
    return middle[kinds] + noise * torch.randn(n, dims, generator=draw) / dims ** 0.5, kinds


def test_steps_are_those_of_the_grammar():
    lab = lab_model()
    found = taxonomy.steps(lab, CHAIN, [TEXT, TEXT[:-8]], [START, START])
    whole = [s for s in found if s.text == 0]
    assert [s.kind for s in whole] == ["try", "check", "try", "conclude"]
    for step, (behaviour, content) in zip(whole, grammar.steps(TRACE[START:]), strict=True):
        words = TRACE[step.start:step.end]
        assert step.kind == behaviour and words[len(words) - len(content):] == content
        assert len(words) - len(content) == grammar.opening_length(words, 0)
    assert [s.kind for s in found if s.text == 1] == ["try", "check", "try"]

    def kinds(text, start):
        ids = vocabulary.encode(text.split())
        return [s.kind for s in taxonomy.steps(lab, CHAIN, [ids], [start])]
    assert kinds("<bos> : 3 <eos> so 1", 2) == []
    assert kinds("<bos> find 3 : try 3 from 3 so 3", 4) == ["try", "measure", "conclude"]


def test_padding_inside_a_text_belongs_to_the_step_before_it():
    lab, words = lab_model(), "<bos> : <pad> try 3 <pad> 4 <pad> so 3 <pad> <eos>".split()
    found = taxonomy.steps(lab, CHAIN, [vocabulary.encode(words)], [2])
    assert [(s.start, s.end, s.kind) for s in found] == [(3, 8, "try"), (8, 11, "conclude")]


@pytest.mark.parametrize("text", [
    " 5 + 7 = 12. 12 - 3 = 9. The answer is 9.",
    " It costs £1.50 each, so 3 * 1.5 = 4.5! Done, I am sure.\n",
    " First we add them: 2 + 2 = 4, 4 + 1 = 5. Well."])
def test_steps_in_words_are_the_tasks_own_stretches_of_text(text):
    """Bytes are tokens here, so that the tokens of a step spell it and the space before it."""
    toy = loading.load("toy")
    prompt = toy.encode("Q: What?\nA:")
    found = taxonomy.steps(toy, SUMS, [prompt + toy.encode(text)], [len(prompt)])
    spelt = [toy.decode((prompt + toy.encode(text))[s.start:s.end]) for s in found]
    wanted = [text[len(text[:s.start].rstrip()):s.end] for s in SUMS.steps(text)]
    assert len(wanted) > 1 and spelt == wanted and {s.kind for s in found} == {None}
    assert all(a.end <= b.start for a, b in zip(found, found[1:]))


def test_averages_are_over_each_steps_own_tokens():
    lab, texts = lab_model(), [TEXT, TEXT[:-3]]
    steps = taxonomy.steps(lab, CHAIN, texts, [START, START])
    for most in (2**28, 1):  # all texts at once, and each alone
        found = taxonomy.averages(lab, texts, steps, [0, 1], most)[1]
        for row, step in zip(found, steps, strict=True):
            ids = texts[step.text]
            wanted = activations.residuals(lab.net, [ids], [1])[1][step.start:step.end].mean(0)
            assert torch.allclose(row, wanted, atol=1e-5)


def test_the_autoencoder_starts_tied_and_finds_planted_clusters():
    fresh = taxonomy.Autoencoder(32, 7, 3, seed=0)
    assert torch.equal(fresh.encoder, fresh.decoder)
    assert torch.allclose(fresh.decoder.norm(dim=1), torch.ones(7))
    x, _ = clusters(1500)
    y, kinds = clusters(600, seed=1)
    mean = x.mean(0)
    x, y = taxonomy.normalise(x, mean), taxonomy.normalise(y, mean)
    assert torch.allclose(y.norm(dim=1), torch.ones(600))
    net = taxonomy.fit(x, 8)
    assert net.rebuilt(y) > 0.8 and net.rebuilt(y) > fresh.rebuilt(y) + 0.3
    purity, information = taxonomy.scores(net.assign(y), kinds.tolist())
    assert purity > 0.95 and information > 0.8
    assert taxonomy.scores(taxonomy.kmeans(x, y, 8), kinds.tolist())[0] > 0.95


def test_the_published_training_finds_planted_clusters_too():
    (x, _), (y, kinds) = clusters(1500), clusters(600, seed=1)
    mean = x.mean(0)
    net = taxonomy.fit_published(taxonomy.normalise(x, mean), 8)
    assert net.rebuilt(taxonomy.normalise(y, mean)) > 0.8
    assert taxonomy.scores(net.assign(taxonomy.normalise(y, mean)), kinds.tolist())[0] > 0.95


def test_no_more_than_k_latents_rebuild_a_step():
    x, _ = clusters(50)
    net = taxonomy.fit(x, 6, k=2, steps=20)
    basis = torch.nn.functional.normalize(net.decoder, dim=-1)
    weights = torch.linalg.lstsq(basis.T, (net(x) - net.outer).T).solution.T
    assert ((weights.abs() > 1e-4).sum(1) <= 2).all()


def test_the_layer_with_structure_is_chosen_over_noise():
    noise = [torch.randn(n, 32, generator=torch.Generator().manual_seed(n)) for n in (900, 400)]
    fitted = {0: noise[0], 1: clusters(900)[0]}
    held_out = {0: noise[1], 1: clusters(400, seed=2)[0]}
    table, (layer, mean, net) = taxonomy.choose(fitted, held_out, [6])
    assert layer == 1 and len(net.inner) == 6 and torch.equal(mean, fitted[1].mean(0))
    agreement = {row["layer"]: row["agreement"] for row in table}
    assert agreement[1] > 0.8 and agreement[0] < 0.3


def test_purity_by_hand():
    categories, behaviours = [0, 0, 0, 1, 1], ["try", "try", "wait", "wait", "wait"]
    assert taxonomy.scores(categories, behaviours)[0] == pytest.approx(4 / 5)
    assert taxonomy.scores([0, 0, 1, 1], ["try", "try", "wait", "wait"]) == (1, pytest.approx(1))
    assert taxonomy.scores([0, 1, 0, 1], ["try", "try", "wait", "wait"])[1] == pytest.approx(0)


def test_a_words_category_is_that_of_most_of_its_steps():
    steps = taxonomy.steps(lab_model(), CHAIN, [TEXT], [START])
    table = taxonomy.by_opening([TEXT] * 3, [s._replace(text=i) for i in range(3) for s in steps],
                                [0, 1, 2, 1] * 2 + [1, 0, 2, 1], 3, len(vocabulary.VOCABULARY))
    assert {w: int(table[vocabulary.IDS[w]]) for w in ("let", "check", "try", "so")} == {
        "let": 0, "check": 1, "try": 2, "so": 1}
    assert (table >= 0).sum() == 4


def test_kinds_are_told_by_first_words():
    table, kinds = taxonomy.by_kind(lab_model(), CHAIN), list(grammar.OPENINGS)
    told = {word: kinds[k] for word, k in zip(vocabulary.VOCABULARY, table.tolist()) if k >= 0}
    assert told == grammar.BEHAVIOUR


# --- which tokens are decisions -------------------------------------------------------------------

class At:
    """As much of an `engine.Moment` as decisions look at: texts after prompts of a length."""

    def __init__(self, texts, prompt_length):
        self.tokens = torch.tensor(texts)
        self.prompt_lengths = torch.full((len(texts),), prompt_length)
        self.positions = torch.full((len(texts), 1), self.tokens.shape[1] - 1)


def words_of(table):
    return {w for w, on in zip(vocabulary.VOCABULARY, table.tolist(), strict=True) if on}


def test_the_labs_decision_tokens():
    found = taxonomy.decisions(lab_model(), CHAIN)
    openings = sum(grammar.OPENINGS.values(), ())
    assert words_of(found.decision) == {"<eos>", "next", *sum(openings, ())}
    assert {"let", "us", "what", "i", "would"} <= words_of(found.owned)
    assert not {"see", "about", "say", "try", "<eos>", "27"} & words_of(found.owned)
    assert found.told
    texts = [vocabulary.encode(words.split()) for words in ("<bos> let", "<bos> see", "<bos> :")]
    assert found.owns(At(texts, 2)).tolist() == [True, False, False]


def test_in_words_the_first_token_of_answer_sentence_and_line_is_a_decision():
    toy = loading.load("toy")
    found = taxonomy.decisions(toy, SUMS)
    assert not found.told and set(found.decision.nonzero()[:, 0].tolist()) == set(toy.stop)
    closing = {toy.decode([i]) for i in found.owned.nonzero()[:, 0].tolist()}
    assert closing == {".", "!", "?", ";", "\n"}
    texts = [toy.encode(text) for text in ("A: 3.", "A: 3 ", "A: x;")]
    assert found.owns(At(texts, 2)).tolist() == [True, False, True]
    assert found.owns(At(texts, 5)).tolist() == [True, True, True]  # nothing is written yet


def test_latents_tell_by_direction_alone():
    x, kinds = clusters(900)
    mean = x.mean(0)
    net = taxonomy.fit(taxonomy.normalise(x, mean), 5)
    tell = taxonomy.Latents(mean, net, 1, None)
    wanted = net.assign(taxonomy.normalise(x, mean))
    assert torch.equal(tell.category(kinds, x), wanted)
    assert torch.equal(tell.category(kinds, mean + 7 * (x - mean)), wanted)
    own, theirs = torch.tensor([1, 2]), torch.tensor([1, 3])
    assert tell.differ(own, theirs, wanted[:2]).tolist() == [False, True]
