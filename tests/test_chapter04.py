"""How likely chapter 4's words come next, on a tiny model, and its page."""

import numpy as np
import pytest
import torch
from locksmith import cache, loading
from locksmith.book import notebooks
from locksmith.experiments import next_words
from repository import ROOT

CHAPTER = ROOT / "chapters/04_latent_vectors.ipynb"


@pytest.fixture(scope="module")
def model():
    return loading.Pair("toy", "sums", 0, "toy", "toy/thinking").load("base", exact=True)


@pytest.mark.parametrize("where", ["choice", "all"])
def test_chances_are_those_of_plain_forwards_word_by_word(model, where):
    asked = next_words.Asked(model.encode("Q: 5 + 7?\nA: 5"), 12, model.encode(" +"), [9, 40, 41])
    layer, vectors = 0, np.stack([np.zeros(32), np.linspace(-3, 3, 32)])
    found = next_words.chances(model, asked, layer, vectors, where)

    def steered(module, args, output, vector, k):
        hidden = output[0] if isinstance(output, tuple) else output
        at = torch.zeros(hidden.shape[1])
        at[{"choice": slice(k - 1, k), "all": slice(11, None)}[where]] = 1
        hidden = hidden + at[:, None] * vector
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
    for vector, p in zip(torch.tensor(vectors, dtype=torch.float32), found, strict=True):
        wanted, ids = 1.0, list(asked.ids)
        hook = cache.blocks(model.net)[layer].register_forward_hook(
            lambda *given, vector=vector: steered(*given, vector, len(asked.ids)))
        with torch.no_grad():
            for following in ([asked.forced[0]], [asked.forced[1]], asked.last):
                logits = model.net(torch.tensor([ids])).logits[0, -1].double()
                wanted *= logits.softmax(-1)[following].sum().item()
                ids.append(following[0])
        hook.remove()
        assert p == pytest.approx(wanted, rel=1e-3)
    assert found[0] != pytest.approx(found[1], rel=0.01)
    assert next_words.chances(model, asked) == pytest.approx(found[:1], rel=1e-3)


@pytest.mark.parametrize("where", ["choice", "all"])
def test_each_vector_may_have_its_own_block(where):
    model = loading.Pair("toy", "sums", 0, "toy", "toy/thinking").load("base", exact=True)
    with torch.no_grad():  # random blocks do little
        for weight in model.net.model.layers[1].mlp.parameters():
            weight *= 20
    asked = next_words.Asked(model.encode("Q: 5 + 7?\nA: 5"), 12, model.encode(" +"), [9, 40, 41])
    vectors = np.stack([np.linspace(-3, 3, 32), np.linspace(2, -1, 32) ** 3])
    apart = [next_words.chances(model, asked, block, vectors, where) for block in (0, 1)]
    assert (np.abs(apart[0] / apart[1] - 1) > 0.05).all()
    mixed = next_words.chances(model, asked, [0, 1, 1, 0], vectors[[1, 1, 0, 0]], where)
    assert mixed == pytest.approx([apart[0][1], *apart[1][::-1], apart[0][0]], rel=1e-3)


def test_all_that_may_come_next_has_probability_one(model):
    everything = list(range(model.net.config.vocab_size))
    for start in (1, 3):  # the prompt may be one token alone
        asked = next_words.Asked(model.encode("Q: 5"), start, [], everything)
        for where in ("choice", "all"):
            found = next_words.chances(model, asked, 1, np.ones((2, 32)), where)
            assert found == pytest.approx([1, 1], abs=1e-5)


# --- the chapter itself ---------------------------------------------------------------------------

def test_the_chapter_is_clean_but_for_its_parameters():
    found = [x for x in notebooks.complaints(CHAPTER) if "has no parameters for" not in x]
    assert not found, found
