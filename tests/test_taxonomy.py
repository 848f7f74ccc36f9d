"""Steps, their averages and their categories, against counts by hand and planted clusters."""

import pytest
import torch
from locksmith import activations, grammar, model, vocabulary
from locksmith.experiments import taxonomy

TRACE = ("<bos> find 9 * 3 ; 4 - 1 : let us see 9 * 3 = 27 check 27 yes try 4 - 1 = 3 so 27 3 "
         "<eos>").split()
TEXT = vocabulary.encode(TRACE)
START = TRACE.index(":") + 1


def clusters(n, centres=5, dims=32, noise=0.15, seed=0):
    """n unit vectors around random centres, and which one each belongs to."""
    draw = torch.Generator().manual_seed(seed)
    middle = torch.nn.functional.normalize(
        torch.randn(centres, dims, generator=torch.Generator().manual_seed(9)), dim=-1)
    kinds = torch.randint(centres, (n,), generator=draw)
    return middle[kinds] + noise * torch.randn(n, dims, generator=draw) / dims ** 0.5, kinds


def test_steps_are_those_of_the_grammar():
    found = taxonomy.steps([TEXT, TEXT[:-8]], [START, START])
    whole = [s for s in found if s.text == 0]
    assert [s.behaviour for s in whole] == ["try", "check", "try", "conclude"]
    for step, (behaviour, content) in zip(whole, grammar.steps(TRACE[START:]), strict=True):
        words = TRACE[step.start:step.end]
        assert step.behaviour == behaviour and words[len(words) - len(content):] == content
        assert len(words) - len(content) == grammar.opening_length(words, 0)
    assert [s.behaviour for s in found if s.text == 1] == ["try", "check", "try"]
    assert taxonomy.steps([vocabulary.encode("<bos> : 3 <eos> so 1".split())], [2]) == []
    taught = taxonomy.steps([vocabulary.encode("<bos> find 3 : try 3 from 3 so 3".split())], [4])
    assert [s.behaviour for s in taught] == ["try", grammar.TAUGHT["from"], "conclude"]


def test_averages_are_over_each_steps_own_tokens():
    net = model.build({"hidden": 16, "layers": 2, "heads": 2, "mlp": 24, "context": 64}, 0).eval()
    steps = taxonomy.steps([TEXT, TEXT[:-3]], [START, START])
    found = taxonomy.averages(net, [TEXT, TEXT[:-3]], steps, [1])[1]
    for row, step in zip(found, steps, strict=True):
        ids = [TEXT, TEXT[:-3]][step.text]
        wanted = activations.residuals(net, [ids], [1])[1][step.start:step.end].mean(0)
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
    steps = taxonomy.steps([TEXT], [START])
    table = taxonomy.by_opening([TEXT] * 3, [s._replace(text=i) for i in range(3) for s in steps],
                                [0, 1, 2, 1] * 2 + [1, 0, 2, 1], 3)
    assert {w: int(table[vocabulary.IDS[w]]) for w in ("let", "check", "try", "so")} == {
        "let": 0, "check": 1, "try": 2, "so": 1}
    assert (table >= 0).sum() == 4
