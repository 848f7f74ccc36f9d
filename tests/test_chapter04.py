"""Chapter 4's sums in words on tiny models, and its page."""

import random

import numpy as np
import pytest
import torch
from locksmith import cache, engine, loading
from locksmith.book import notebooks
from locksmith.experiments import word_traces
from repository import ROOT
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAPTER = ROOT / "chapters/04_latent_vectors.ipynb"


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte: every character of a trace can be found again."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={x: i for i, x in enumerate(["<pad>", "<eos>", *letters])},
                                merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="module")
def net(tokenizer):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=1024, pad_token_id=0,
        eos_token_id=1, initializer_range=0.2)).eval()


@pytest.fixture(scope="module")
def model(net, tokenizer):
    return loading.Model("tiny", net, tokenizer, frozenset({1}))


def test_sums_differ_and_half_of_them_carry():
    asked = word_traces.sums(50, 0)
    assert len({one.numbers for one in asked}) == 50 and asked == word_traces.sums(50, 0)
    assert sum(one.carries for one in asked) == 25
    for one in asked:
        a, b, _ = one.numbers
        assert one.right == a + b != one.wrong and one.carries == ((a % 10) + (b % 10) >= 10)


def test_traces_say_what_their_label_says():
    one, rng = word_traces.Sum((17, 9, 30), 25), random.Random(0)
    text, sentence = word_traces.trace(rng, one, "backtracking")
    assert "17 plus 9 is 25." in text and sentence in text and "26, not 25" in sentence
    plain, nothing = word_traces.trace(rng, one, None)
    assert nothing == "" and "not" not in plain and plain.endswith("The answer is 56.")
    assert {word_traces.trace(rng, one, "uncertainty")[1] for _ in range(50)} == set(
        word_traces.OPENINGS["uncertainty"])


def test_a_minimal_pair_ends_alike_and_differs_in_the_result(model):
    asked = word_traces.sums(6, 1)
    streams, wrong, carries, pair = word_traces.boundaries(model, asked)
    assert set(streams) == {-1, 0, 1} and streams[0].shape == (12, 16)
    assert wrong.tolist() == [False, True] * 6 and pair.tolist() == np.repeat(range(6), 2).tolist()
    assert carries[::2].tolist() == [one.carries for one in asked]
    # All end in the same full stop, so the embeddings are all the same and the rest is not.
    assert np.ptp(streams[-1], axis=0).max() == 0 and np.ptp(streams[1], axis=0).max() > 0


def test_span_vectors_find_their_sentences(tokenizer):
    """A model whose embedding marks the letters of one behaviour's openings alone."""
    torch.manual_seed(0)
    marked = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=1024, pad_token_id=0)).eval()
    with torch.no_grad():
        block = marked.model.layers[0]
        for module in (marked.model.embed_tokens, block.mlp.down_proj, block.self_attn.o_proj):
            module.weight.zero_()
        for letter in "I":  # of "I am not sure about that."
            marked.model.embed_tokens.weight[tokenizer.encode(letter)[0], 0] = 1.0
    asked = word_traces.sums(60, 2)
    found = word_traces.span_vectors(
        loading.Model("marked", marked, tokenizer, frozenset({1})), asked, 0)
    assert found["uncertainty"][0] > 0.01 > found["backtracking"][0]
    assert np.abs(found["uncertainty"][1:]).max() == 0


def test_probabilities_at_the_boundary_are_those_of_a_plain_forward(model):
    asked, layer = word_traces.sums(3, 3), 0
    vectors = [np.zeros(16), np.random.default_rng(0).normal(size=16)]
    found = word_traces.opening_probabilities(model, asked, layer, vectors)
    for i, one in enumerate(asked):
        for j, result in enumerate((one.right, one.wrong)):
            ids = torch.tensor([model.encode(word_traces.examples() + one.question
                                             + one.step(result))])
            for k, vector in enumerate(vectors):
                def add(module, args, out, vector=vector):
                    hidden = (out[0] if isinstance(out, tuple) else out).clone()
                    hidden[:, -1] += torch.tensor(vector, dtype=hidden.dtype)
                    return (hidden, *out[1:]) if isinstance(out, tuple) else hidden
                hook = cache.blocks(model.net)[layer].register_forward_hook(add)
                with torch.no_grad():
                    p = model.net(ids).logits[0, -1].softmax(-1)
                hook.remove()
                for b in word_traces.BEHAVIOURS:
                    first = word_traces.first_tokens(model, b)
                    assert found[b][j, i, k] == pytest.approx(float(p[first].sum()), abs=1e-5)


def test_free_rates_count_sentences(model, monkeypatch):
    asked = word_traces.sums(2, 4)
    said = [" Wait, that gives 3, not 4. 3 plus 4 is 7.", " 3 plus 4 is 7. Maybe that is right."]

    class Drawn:
        def ids(self):
            return [model.encode(t) for t in said * 2]
    monkeypatch.setattr(engine, "sample", lambda *a, **k: Drawn())
    rates, texts = word_traces.free_rates(model, asked, 0, [np.zeros(16)] * 2, 8)
    assert rates["backtracking"].tolist() == [[0.5, 0.0]] * 2
    assert rates["uncertainty"].tolist() == [[0.0, 0.5]] * 2 and texts[1] == said


def test_free_samples_run_on_a_tiny_model(model):
    asked = word_traces.sums(2, 5)
    rates, texts = word_traces.free_rates(model, asked, 1, [np.zeros(16), np.ones(16)], 6)
    assert [len(row) for row in texts] == [2, 2] and rates["uncertainty"].shape == (2, 2)


# --- the chapter itself ---------------------------------------------------------------------------

def test_the_chapter_is_clean_but_for_its_parameters():
    found = [x for x in notebooks.complaints(CHAPTER) if "has no parameters for" not in x]
    assert not found, found
