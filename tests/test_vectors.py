"""Steering vectors against models whose answer is known by construction."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from locksmith import activations, errors, grammar, loading, model, vocabulary
from locksmith.experiments import taxonomy, vectors
from locksmith.experiments.vectors import Mark, Traces
from repository import smoke_lab
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

DIMS, WORDS, A, B = 24, 60, 1, 2


@pytest.fixture(scope="module")
def built():
    """Two layers that pass the stream on, and the direction that decides: A on it, B against it."""
    torch.manual_seed(0)
    net = LlamaForCausalLM(LlamaConfig(
        vocab_size=WORDS, hidden_size=DIMS, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32, tie_word_embeddings=False)).eval()
    direction = F.normalize(torch.randn(DIMS), dim=0)
    with torch.no_grad():
        for block in net.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        net.model.embed_tokens.weight.copy_(torch.randn(WORDS, DIMS))
        net.lm_head.weight.zero_()
        net.lm_head.weight[A], net.lm_head.weight[B] = direction, -direction
    return net, direction


def two_kinds(n=80):
    """Texts of two random words and then A (category 0) or B (category 1)."""
    words = torch.randint(3, WORDS, (n, 2), generator=torch.Generator().manual_seed(1)).tolist()
    texts = [[*w, (A, B)[i % 2]] for i, w in enumerate(words)]
    return (Traces(texts, [2] * n, [], True),
            [Mark(i, 1, 3, i % 2) for i in range(n)])


def test_the_optimised_vector_is_the_direction_that_decides(built):
    net, direction = built
    traces, marks = two_kinds()
    stream = activations.residuals(net, traces.texts, [0])[0]
    found, loss = vectors.optimised(net, traces, marks, 2, 0, stream=stream, steps=100)
    cosines = F.cosine_similarity(found, direction[None])
    assert cosines[0] > 0.95 and cosines[1] < -0.95
    unsteered = activations.logits(net, traces.texts, [[1]] * 80).log_softmax(-1)
    assert loss < -unsteered[range(80), [A, B] * 40].mean() - 2
    mixed = [m._replace(category=m.text // 2 % 2) for m in marks]  # categories that decide nothing
    blind, worse = vectors.optimised(net, traces, mixed, 2, 0, stream=stream, steps=100)
    assert F.cosine_similarity(blind, direction[None]).abs().max() < 0.8 and worse > loss + 0.3


def test_a_frozen_bias_is_counted_in_and_left_alone(built):
    net, direction = built
    traces, marks = two_kinds()
    stream = activations.residuals(net, traces.texts, [1])[1]
    bias = 5 * direction
    found, _ = vectors.optimised(net, traces, marks, 2, 1, stream=stream, bias=bias, steps=100)
    assert (found[1] + bias) @ direction < -1 and torch.equal(bias, 5 * direction)
    assert all(p.requires_grad for p in net.parameters())  # the body itself is not touched


def test_the_network_chooses_by_the_residual_alone(built):
    net, direction = built
    sign = torch.randn(DIMS, generator=torch.Generator().manual_seed(3))
    traces, _ = two_kinds(200)
    rows = net.model.embed_tokens.weight.detach()
    texts = [[a, b, A if rows[b] @ sign > 0 else B] for a, b, _ in traces.texts]
    traces = traces._replace(texts=texts)
    stream = activations.residuals(net, texts, [0])[0]
    marks = [Mark(i, 1, 3, 0) for i in range(200)]
    found, coefficients = vectors.network(net, traces, marks, 2, 0, stream=stream, steps=150)
    hidden = stream.view(200, 3, DIMS)[:, 1]
    with torch.no_grad():
        steered = net.lm_head(net.model.norm(hidden + coefficients(hidden) @ found)).argmax(-1)
    right = (steered == torch.tensor([t[2] for t in texts])).float().mean()
    assert (coefficients(hidden) > 0).all() and right > 0.9


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_blocks_above_are_the_whole_model(layer):
    net = model.build({"hidden": 32, "layers": 3, "heads": 2, "mlp": 48, "context": 64}, 0).eval()
    ids = torch.randint(3, 99, (2, 9))
    with torch.no_grad():
        whole = net(ids, output_hidden_states=True)
        stream = activations.residuals(net, ids.tolist(), [layer])[layer].view(2, 9, -1)
        top = vectors.upper(net, layer)(inputs_embeds=stream, use_cache=False).logits
    assert torch.allclose(top, whole.logits, atol=1e-5)
    assert len(net.model.layers) == 3


def test_difference_of_means_by_hand():
    texts = [[5, 6, 7, 8], [9, 10, 11]]
    steps = [taxonomy.TokenStep(0, 1, 2, "try"), taxonomy.TokenStep(0, 3, 4, "wait"),
             taxonomy.TokenStep(1, 2, 3, "try")]
    stream = torch.arange(7.0)[:, None]
    found = vectors.means(stream, Traces(texts, [1, 1], steps, True), [0, 1, 0], 3)
    assert found[:, 0].tolist() == pytest.approx([(0 + 5) / 2 - 7 / 3, 2 - 7 / 3, 0])


def test_disagreement_is_where_the_body_draws_another_category(built):
    net, direction = built
    table = torch.full((WORDS,), -1)
    table[A], table[B] = 0, 1
    openings = taxonomy.Openings(table)
    with torch.no_grad():
        always_a = LlamaForCausalLM(net.config).eval()
        always_a.model.embed_tokens.weight.copy_(direction.repeat(WORDS, 1))
        always_a.lm_head.weight[A], always_a.lm_head.weight[B] = 20 * direction, -20 * direction
    traces, marks = two_kinds()
    for most in (2**28, 1):  # all texts at once, and each alone
        found = vectors.disagreeing(always_a, traces, marks, openings, most=most)
        assert found == [m for m in marks if m.category == 1]
    # Where no opening tells, another token is a disagreement, and the category is not asked.
    latents = taxonomy.Latents(None, torch.nn.Identity(), 0, None)
    moved = [m._replace(category=5) for m in marks]
    assert vectors.disagreeing(always_a, traces, moved, latents) == [
        m for m in moved if traces.texts[m.text][2] == B]


def test_the_probe_finds_what_is_linear_and_leaves_out_what_it_never_saw():
    rng = np.random.default_rng(0)
    stream = torch.from_numpy(rng.normal(size=(3000, 8))).float()
    texts, starts = [[3] * 30] * 100, [1] * 100
    kinds = torch.where(stream[:, 0] > 1, 0, torch.where(stream[:, 1] > 1, 2, 3))
    marks = [Mark(i // 30, i % 30, i % 30 + 2, int(k)) for i, k in enumerate(kinds)
             if k < 3 and i % 30 < 29]
    weight, intercept = vectors.probe(stream, Traces(texts, starts, [], True), marks, 3)
    assert weight.shape == (4, 8)
    guessed = (stream @ weight.T + intercept).argmax(-1)
    assert (guessed == kinds).float().mean() > 0.93 and not (guessed == 1).any()
    weight, intercept = vectors.probe(stream, Traces(texts, starts, [], True), [], 3)
    assert ((stream @ weight.T + intercept).argmax(-1) == 3).all()


def test_random_vectors_keep_the_norm_and_not_the_direction():
    given = torch.randn(4, 400) * torch.tensor([1.0, 5, 9, 0])[:, None]
    drawn = vectors.random_like(given, 0)
    assert torch.allclose(drawn.norm(dim=1), given.norm(dim=1), rtol=1e-5)
    assert F.cosine_similarity(drawn, given)[:3].abs().max() < 0.2
    assert not torch.equal(drawn, vectors.random_like(given, 1))


def test_a_decoder_of_another_shape_is_one_sentence():
    net = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=9, hidden_size=8, intermediate_size=8,
                                           num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(errors.BadInput, match="GPTNeoXForCausalLM, which has no model.layers"):
        vectors.upper(net, 0)


# --- on a smoke-sized lab, and on a toy pair in words ---------------------------------------------

PAIR = loading.Pair("smoke", "chain", 0)


@pytest.fixture(scope="module")
def lab_folder(tmp_path_factory):
    with smoke_lab(tmp_path_factory.mktemp("lab"), ["chain"], ["base", "thinking", "twin"]) as root:
        yield root


@pytest.fixture
def found(lab_folder, monkeypatch):
    monkeypatch.chdir(lab_folder)
    return vectors.study(PAIR, 24, 32, [3], [0, 1])


@pytest.fixture
def in_words():
    """(Pair, TraceStudy) of two models with random weights over bytes."""
    pair = loading.Pair("toy", "sums", 0, base="toy", thinking="toy/thinking")
    return pair, vectors.study(pair, 12, 64, [3], [0, 1], "published")


def test_a_study_of_a_model_that_solves_nothing_keeps_all_its_traces(found):
    traces = found.traces
    assert not traces.successful and len(traces.texts) == 24
    assert len(found.categories) == len(traces.steps) and found.n == 3
    for step in traces.steps:
        word = vocabulary.VOCABULARY[traces.texts[step.text][step.start]]
        known = grammar.BEHAVIOUR | grammar.TAUGHT
        assert known[word] == step.kind and step.start >= traces.starts[step.text]
        assert found.opening[vocabulary.IDS[word]] in range(3)
    part = traces.part(5, 9)
    assert len(part.texts) == 4 and {s.text for s in part.steps} <= set(range(4))
    assert [traces.texts[s.text + 5][s.start:s.end] for s in part.steps] == [
        part.texts[s.text][s.start:s.end] for s in part.steps]
    assert torch.equal(found.tell.table, found.opening) and set(found.scores) == {
        "autoencoder", "k-means", "random, same sizes"}
    assert found.places == vectors.marks(traces.steps, found.categories)


def test_a_study_in_words_asks_the_thinking_models_stream_at_every_token(in_words):
    pair, found = in_words
    traces, model = found.traces, pair.load("thinking", exact=True)
    assert found.scores == {} and {s.kind for s in traces.steps} == {None}
    assert len(found.places) == sum(len(x) - s for x, s in zip(traces.texts, traces.starts))
    for mark in found.places[::17]:
        ids = traces.texts[mark.text]
        stream = model.net(torch.tensor([ids[:mark.position + 1]]), output_hidden_states=True)
        if found.layer == 0:  # the last entry is after the final norm
            hidden = stream.hidden_states[1][0, -1:]
            assert int(found.tell.category(torch.zeros(1), hidden)[0]) == mark.category
        assert traces.starts[mark.text] - 1 <= mark.position < len(ids) - 1


def test_no_step_in_any_trace_is_one_sentence():
    pair = loading.Pair("toy", "sums", 0, base="toy", thinking="toy/thinking")
    said = "n_traces is 2 and max_new_tokens 1: .* no step of sums"
    with pytest.raises(errors.BadInput, match=said):
        vectors.study(pair, 2, 1, [3], [0])


def test_the_true_kinds_replace_the_categories_and_nothing_else(found):
    steps = [taxonomy.TokenStep(0, 3, 5, "wait"), taxonomy.TokenStep(0, 5, 7, "measure"),
             taxonomy.TokenStep(1, 2, 4, "try")]
    study = found._replace(traces=Traces([[0] * 9] * 2, [1, 1], steps, True), categories=[7, 7, 1])
    labelled = vectors.with_true_kinds(PAIR, study)
    assert [list(grammar.OPENINGS)[k] for k in labelled.categories] == ["wait", "try"]
    assert labelled.traces.steps == [steps[0], steps[2]] and labelled.n == 4
    assert labelled.layer == found.layer and [m.position for m in labelled.places] == [2, 1]
    assert torch.equal(labelled.tell.table, labelled.opening)


def test_random_spans_are_as_long_as_the_steps_and_lie_in_their_traces(found):
    spans = vectors.random_spans(found.traces)
    assert len(spans) == len(found.traces.steps)
    for span, step in zip(spans, found.traces.steps, strict=True):
        ids = found.traces.texts[span.text]
        assert found.traces.starts[step.text] - 1 <= span.position < len(ids) - 1
        assert span.end == min(span.position + 1 + step.end - step.start, len(ids))


def test_everything_is_fitted_in_every_body(found):
    for body in ("base", "twin", "untrained"):
        fitted = vectors.fit(PAIR, body, found, [0, 1], 3)
        assert set(fitted) == {0, 1}
        for one in fitted.values():
            assert one.vectors.shape == one.means.shape == (3, one.bias.shape[0])
            assert one.probe[0].shape == (4, one.bias.shape[0]) and np.isfinite(one.losses).all()
    own, other = (vectors.fit(PAIR, "untrained", found, [1], 3, body_seed=x)[1] for x in (None, 9))
    assert torch.equal(own.vectors, fitted[1].vectors)
    assert not torch.equal(own.vectors, other.vectors)
    others = vectors.fit_others(PAIR, found, [0, 1], 3)
    rows, coefficients, one = others[1]
    assert [*others] == [0, 1] and not torch.equal(one, others[0][2])
    assert coefficients(rows).shape == (3, 3) and one.shape == rows[0].shape


def test_everything_is_fitted_in_words_too(in_words):
    pair, found = in_words
    for body in ("base", "untrained"):
        one = vectors.fit(pair, body, found, [1], 3)[1]
        assert one.both.shape == (3, 32) and np.isfinite(one.losses).all() and one.vectors.any()
    rows, coefficients, one = vectors.fit_others(pair, found, [1], 3)[1]
    assert coefficients(rows).shape == (3, 3) and one.shape == rows[0].shape
