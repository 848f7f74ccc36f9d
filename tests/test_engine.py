"""The engine against plain forward passes, against `generate` and against exact distributions."""

import pytest
import torch
from locksmith import cache, drawing, engine, steering
from locksmith.engine import Control, Steer, sample, score
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

V, D, STOP = 40, 32, 2
SIZE = dict(vocab_size=V, hidden_size=D, intermediate_size=48, num_hidden_layers=3,
            num_attention_heads=4, max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
            eos_token_id=STOP, initializer_range=0.3)
PROMPTS = [[1, 5, 6, 7, 8], [1, 9], [1, 3, 4, 3, 4, 3, 4, 3, 4, 3, 4], [1, 10, 11]]


def llama():
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **SIZE))


def qwen2():
    return Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=2, **SIZE))


def gemma3():
    return Gemma3ForCausalLM(Gemma3TextConfig(
        num_key_value_heads=1, head_dim=8, sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"], **SIZE))


def gpt_neox():
    return GPTNeoXForCausalLM(GPTNeoXConfig(rotary_pct=0.25, **SIZE))


@pytest.fixture(params=[llama, qwen2, gemma3, gpt_neox], ids=lambda f: f.__name__)
def model(request):
    torch.manual_seed(0)
    return request.param().eval()


@pytest.fixture
def lab():
    torch.manual_seed(0)
    return llama().eval()


@torch.no_grad()
def plain_logits(model, ids):
    """(T, V) float32, one sequence, no cache, no padding."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def recorded(monkeypatch):
    """The logits of every step, as the sampler saw them."""
    seen, draw = [], drawing.draw
    monkeypatch.setattr(
        drawing, "draw", lambda logits, *a: (seen.append(logits), draw(logits, *a))[1])
    return seen


@pytest.mark.parametrize("prompts", [PROMPTS, [[1, 5, 6], [1, 7, 8]]], ids=["unequal", "equal"])
def test_logits_equal_the_plain_forward(model, prompts, monkeypatch):
    seen = recorded(monkeypatch)
    out = sample(model, prompts, 2, max_new_tokens=16, stop=())
    got = torch.stack(seen, 1)  # (R, T, V)
    for row, ids in enumerate(out.ids()):
        prompt = prompts[out.prompt[row]]
        want = plain_logits(model, prompt + ids)[len(prompt) - 1:-1]
        assert (got[row] - want).abs().max() < 1e-4


def test_llama_takes_the_short_path_and_both_paths_agree(lab, monkeypatch):
    assert cache.Fused.fits(lab)
    seen = recorded(monkeypatch)
    a = sample(lab, PROMPTS, 2, max_new_tokens=16, stop=())
    monkeypatch.setattr(cache.Fused, "fits", lambda model: False)
    b = sample(lab, PROMPTS, 2, max_new_tokens=16, stop=())
    assert torch.equal(a.tokens, b.tokens)
    assert (torch.stack(seen[:16]) - torch.stack(seen[16:])).abs().max() < 1e-4


def test_same_rollouts_alone_in_small_batches_and_with_late_checks(model, monkeypatch):
    keys = [11, 7, 5, 3]
    how = dict(max_new_tokens=16, stop=set(range(30, 36)), seed=4)
    whole = sample(model, PROMPTS, 6, keys=keys, **how)
    assert 3 < len(set(whole.lengths.tolist())), "rows must end at different times"
    for small in (sample(model, PROMPTS, 6, keys=keys, batch_size=5, **how),
                  sample(model, PROMPTS, 6, keys=keys, batch_size=1, **how)):
        assert small.ids() == whole.ids()
        assert torch.equal(small.stopped, whole.stopped)
    alone = sum((sample(model, [p], 6, keys=[k], **how).ids() for p, k in zip(PROMPTS, keys)), [])
    assert alone == whole.ids()
    fewer = sample(model, PROMPTS[::-1], 2, keys=keys[::-1], **how)
    assert fewer.ids()[:2] == whole.ids()[18:20]
    monkeypatch.setattr(engine, "LOOK_EVERY", {"cpu": 8})
    late = sample(model, PROMPTS, 6, keys=keys, **how)
    assert late.ids() == whole.ids()
    assert torch.allclose(late.logprobs, whole.logprobs, atol=1e-5)


def test_ends_and_padding(lab):
    out = sample(lab, PROMPTS, 8, max_new_tokens=20, stop={STOP, 30}, seed=1)
    assert out.stopped.any() and not out.stopped.all()
    for row, ids in enumerate(out.ids()):
        ended = [i for i, t in enumerate(ids) if t in (STOP, 30)]
        assert ended == ([len(ids) - 1] if out.stopped[row] else [])
        assert out.stopped[row] or len(ids) == 20
        assert (out.tokens[row, len(ids):] == 0).all() and (out.logprobs[row, len(ids):] == 0).all()
    assert out.prompt.tolist() == sum(([i] * 8 for i in range(4)), [])
    assert out.sample.tolist() == list(range(8)) * 4


def test_score_is_the_gathered_log_softmax(model):
    tails = [[4, 5, 6], [7], [8, 9, 10, 11, 12], []]
    logprobs, ranks = score(model, PROMPTS, tails, temperature=0.7, batch_size=3, ranks=True)
    for prompt, tail, got, rank in zip(PROMPTS, tails, logprobs, ranks):
        want = (plain_logits(model, prompt + tail) / 0.7).log_softmax(-1)[len(prompt) - 1:-1]
        picked = want[range(len(tail)), tail]
        assert got.dtype == torch.float32 and got.shape == (len(tail),)
        assert torch.allclose(got, picked, atol=1e-4)
        order = want.argsort(-1, descending=True)
        assert rank.tolist() == [order[i].tolist().index(t) for i, t in enumerate(tail)]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_logprobs_equal_score(model, temperature):
    out = sample(model, PROMPTS, 5, max_new_tokens=20, stop=STOP, temperature=temperature, seed=2)
    again = score(model, [PROMPTS[i] for i in out.prompt], out.ids(), temperature=temperature)
    for got, want in zip(out.logprobs, again):
        assert torch.allclose(got[:len(want)], want, atol=1e-4)


def test_bfloat16_stays_near_float32(model):
    model.bfloat16()
    out = sample(model, PROMPTS, 4, max_new_tokens=12, stop=STOP)
    again = score(model.float(), [PROMPTS[i] for i in out.prompt], out.ids())
    gap = torch.cat([a[:len(b)] - b for a, b in zip(out.logprobs, again)]).abs()
    assert gap.mean() < 0.1


def test_greedy_equals_generate(model):
    out = sample(model, PROMPTS, max_new_tokens=16, stop=STOP, temperature=0)
    for prompt, ids in zip(PROMPTS, out.ids()):
        want = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=16)
        assert ids == want[0, len(prompt):].tolist()


def exact(logits, temperature, top_p):
    """The sampler's distribution by its definition, token by token."""
    p = (logits.double() / temperature).softmax(-1)
    kept, mass = torch.zeros_like(p), 0.0
    for i in p.argsort(descending=True).tolist():
        if mass >= top_p:
            break
        kept[i], mass = p[i], mass + p[i].item()
    return kept / kept.sum()


@pytest.mark.parametrize("vocabulary", [7, 1500])
@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.5, 1.0), (1.3, 0.8)])
def test_draws_follow_the_exact_distribution(vocabulary, temperature, top_p):
    """An even grid of u must give each token its probability to within two grid steps."""
    logits = 2 * torch.randn(vocabulary, generator=torch.Generator().manual_seed(1))
    want, n = exact(logits, temperature, top_p), 5000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    token, logprob = drawing.draw(logits.expand(n, -1), u, temperature, top_p)
    share = torch.bincount(token, minlength=vocabulary).double() / n
    assert (share - want).abs().max() < 2 / n
    assert torch.allclose(logprob.double(), want[token].log(), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_large_vocabulary_is_drawn_row_by_row_from_its_own_cdf(dtype, temperature):
    """More rows than one chunk takes, each with logits of its own: at the middle of a token's
    interval of the float64 CDF that token must come out, at borders of blocks and chunks too."""
    size, n = 5000, 500
    chunk, generator = 2**20 // size, torch.Generator().manual_seed(8)
    assert n > 2 * chunk and n % chunk, "two full chunks and a part of one"
    logits = torch.randn(n, size, generator=generator).to(dtype)
    wanted = torch.randint(size, (n,), generator=generator)
    wanted[chunk - 4:chunk + 4] = torch.tensor([0, 511, 512, 1023, 4607, 4608, 4998, 4999])
    logits[torch.arange(n), wanted] = 3  # an interval wide enough for float32
    before = logits.clone()
    p = (logits.double() / temperature).softmax(-1)
    at = p.gather(-1, wanted[:, None])
    u = (p.cumsum(-1).gather(-1, wanted[:, None]) - at / 2)[:, 0]
    token, logprob = drawing.draw(logits, u, temperature, 1.0)
    assert torch.equal(token, wanted)
    assert torch.allclose(logprob.double(), at[:, 0].log(), atol=1e-5)
    assert torch.equal(logits, before), "the caller's logits were written to"


def test_first_tokens_pass_a_chi_square_test(lab):
    from scipy.stats import chisquare
    out = sample(lab, [PROMPTS[0]], 4000, max_new_tokens=1, stop=(), temperature=1.5,
                 control=Control(top_p=0.9))
    want = exact(plain_logits(lab, PROMPTS[0])[-1], 1.5, 0.9)
    count = torch.bincount(out.tokens[:, 0], minlength=V)
    assert count[want == 0].sum() == 0
    assert chisquare(count[want > 0], 4000 * want[want > 0]).pvalue > 0.001


def test_uniforms_are_splitmix64_and_independent():
    def mix(x):  # the published finaliser, on Python integers
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31
    x = 0
    for part in (5, 3, 2, 9):
        x = mix((x + part + 0x9E3779B97F4A7C15) % 2**64)
    assert drawing.uniforms(5, 3, 2, 9).item() == ((x >> 11) + 0.5) / 2**53
    key, number, place = torch.arange(20), torch.arange(20), torch.arange(50)
    u = drawing.uniforms(0, key[:, None, None], number[:, None], place)
    assert u.min() > 0 and u.max() < 1 and len(u.unique()) == u.numel()
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.005
    for axis in range(3):
        a, b = u.narrow(axis, 0, u.shape[axis] - 1), u.narrow(axis, 1, u.shape[axis] - 1)
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.03


# --- steering and reading -------------------------------------------------------------------------

@torch.no_grad()
def plain_steered(model, ids, steers):
    """Residual stream after each block (layers, T, D) and logits (T, V) of one sequence without
    cache; steers: list of (layer, position, vector)."""
    after = {}

    def hook(layer):
        def apply(module, args, out):
            hidden = (out[0] if isinstance(out, tuple) else out).clone()
            for i, position, vector in steers:
                if i == layer and position < len(ids):
                    hidden[0, position] += vector
            after[layer] = hidden[0]
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden
        return apply
    hooks = [b.register_forward_hook(hook(i)) for i, b in enumerate(cache.blocks(model))]
    logits = plain_logits(model, ids)
    for h in hooks:
        h.remove()
    return torch.stack([after[i] for i in range(len(hooks))]), logits


@pytest.mark.parametrize("look_every", [1, 8])
def test_steering_and_reading_equal_a_plain_forward_with_the_same_additions(
        model, look_every, monkeypatch):
    """Unequal prompts, cache in use, rows that end early: the streams, the log-probabilities and
    the counts are those of a cache-free forward with vectors added by hand."""
    monkeypatch.setattr(engine, "LOOK_EVERY", {"cpu": look_every})
    one, two = torch.randn(2, D, generator=torch.Generator().manual_seed(3))
    chosen, places = [0, 3, 4, 9, 10, 14], [1, 2, 6, 7, 13]
    steer = [Steer(1, one, positions=places, rows=chosen), Steer(2, two, positions=range(8, 40))]
    out = sample(model, PROMPTS, 4, max_new_tokens=20, stop={STOP, 30, 31}, seed=5,
                 control=Control(steer, read=[0, 1, 2]))
    assert len(set(out.lengths.tolist())) > 3
    total = 0
    for row, ids in enumerate(out.ids()):
        prompt = PROMPTS[out.prompt[row]]
        fed = prompt + ids[:-1]  # the last token is chosen but never fed
        adds = [(2, p, two) for p in range(8, 40)]
        adds += [(1, p, one) for p in places] if row in chosen else []
        total += sum(p < len(fed) for _, p, _ in adds)
        streams, logits = plain_steered(model, fed, adds)
        start = len(prompt) - 1
        for layer in range(3):
            got = out.reads[layer][row, :len(ids)]
            assert torch.allclose(got, streams[layer, start:], atol=1e-4)
        logprobs = logits.log_softmax(-1)[start:][range(len(ids)), ids]
        assert torch.allclose(out.logprobs[row, :len(ids)], logprobs, atol=1e-4)
        at = {p for _, p, _ in adds}
        assert out.steered_at[row, :len(ids)].tolist() == [p in at for p in range(start, len(fed))]
    assert out.steered == total


def test_the_stream_before_is_unchanged_and_after_is_original_plus_vector(model):
    vector = torch.randn(D, generator=torch.Generator().manual_seed(4))
    where = [7, 9]
    plain = sample(model, PROMPTS, 2, max_new_tokens=9, stop=(), temperature=0,
                   control=Control(read=[1, 2]))
    # The greedy tokens are forced by feeding them as prompts, so that only the stream can differ.
    texts = [PROMPTS[i] + ids for i, ids in zip(plain.prompt, plain.ids())]
    for end in range(7, 11):
        cut = [t[:end + 1] for t in texts]
        a, b = (sample(model, cut, max_new_tokens=1, stop=(), control=Control(steer, read=[0, 1]))
                for steer in ((), [Steer(1, vector, positions=where)]))
        assert torch.equal(a.reads[0], b.reads[0])
        expected = a.reads[1] + vector if end in where else a.reads[1]
        assert torch.equal(b.reads[1], expected)
        assert b.steered == len(texts) * sum(p <= end for p in where)


def test_a_gate_sees_tokens_rows_and_stream_and_its_choices_are_counted(model):
    vector = torch.randn(D, generator=torch.Generator().manual_seed(5))
    how = dict(max_new_tokens=18, stop={STOP, 30}, seed=6)
    seen = []

    def after_even(moment):
        """Generated even tokens, and twice the strength for odd rows."""
        new = moment.tokens[:, -moment.positions.shape[1]:]
        for row, ids in zip(moment.rows.tolist(), moment.tokens.tolist()):
            seen.append((row, ids))
        assert moment.hidden.shape == (*moment.positions.shape, D)
        generated = moment.positions >= moment.prompt_lengths[:, None]
        return ((new % 2 == 0) & generated) * (1.0 + moment.rows % 2)[:, None]

    out = sample(model, PROMPTS, 4, control=Control([Steer(1, vector, gate=after_even)]), **how)
    texts = [PROMPTS[i] + ids for i, ids in zip(out.prompt, out.ids())]
    for row, ids in seen:  # what the gate saw is the row's own past, padded on the left
        padding = len(ids) - len(ids := [t for t in ids if t != 0])
        assert padding >= 0 and [t for t in texts[row] if t != 0][:len(ids)] == ids
    total = 0
    for row, text in enumerate(texts):
        start = len(PROMPTS[out.prompt[row]])
        adds = [(1, p, vector * (1 + row % 2)) for p in range(start, len(text) - 1)
                if text[p] % 2 == 0]
        total += len(adds)
        _, logits = plain_steered(model, text[:-1], adds)
        want = logits.log_softmax(-1)[start - 1:][range(len(text) - start), text[start:]]
        assert torch.allclose(out.logprobs[row, :len(want)], want, atol=1e-4)
    assert out.steered == total > 0


def test_a_miscount_is_an_error(lab, monkeypatch):
    """Hooks that fire once too seldom, as in a library that looks only at the prompt."""
    touch = steering.Steering.apply
    steer = [Steer(1, torch.ones(D), positions=range(4, 12))]
    monkeypatch.setattr(steering.Steering, "apply",
                        lambda self, layer, hidden, batch: hidden if hidden.shape[1] == 1
                        else touch(self, layer, hidden, batch))
    with pytest.raises(RuntimeError, match="touched"):
        sample(lab, PROMPTS, max_new_tokens=8, stop=(), control=Control(steer))


def test_hooks_are_gone_afterwards_and_training_mode_comes_back(model):
    before = plain_logits(model, PROMPTS[0])
    model.train()
    sample(model, PROMPTS, max_new_tokens=3, stop=STOP,
           control=Control([Steer(0, torch.ones(D))], read=[1]))
    assert model.training
    assert torch.equal(plain_logits(model.eval(), PROMPTS[0]), before)


# --- bad input ------------------------------------------------------------------------------------

@pytest.mark.parametrize("change, sentence", [
    (dict(prompts=[[1] * 60]), "prompt 0 has 60 tokens .* context of 64"),
    (dict(prompts=[]), "prompts is"), (dict(prompts=[[]]), "prompts is"),
    (dict(prompts=[[1], [V]]), "prompts is .* ids from 0 to 39"), (dict(prompts=[[-1]]), "prompts"),
    (dict(n=0), "n is 0"), (dict(max_new_tokens=0), "max_new_tokens is 0"),
    (dict(stop=V), "stop is"), (dict(temperature=-1), "temperature is -1"),
    (dict(keys=[1]), "keys is"), (dict(batch_size=0), "batch_size is 0"),
    *((dict(control=Control(**how)), sentence) for how, sentence in (
        (dict(top_p=0), "top_p is 0"), (dict(read=[3]), "read is"),
        (dict(steer=[Steer(3, torch.ones(D))]), "steer is"),
        (dict(steer=[Steer(0, torch.ones(D + 1))]), "steer is"),
        (dict(steer=[Steer(0, torch.ones(2, D))]), "steer is"),
        (dict(steer=[Steer(0, torch.full((D,), torch.nan))]), "steer is .*finite"),
        (dict(guides=[(llama(), 3)]), "guides is"),
        (dict(guides=[LlamaForCausalLM(LlamaConfig(**SIZE | dict(vocab_size=V + 1)))]),
         "guides is"),
        (dict(guides=[LlamaForCausalLM(LlamaConfig(**SIZE | dict(max_position_embeddings=63)))]),
         "a context of at least 64")))])
def test_bad_input_is_one_sentence(lab, change, sentence):
    how = dict(prompts=PROMPTS, max_new_tokens=8, stop=STOP) | change
    with pytest.raises(ValueError, match=sentence):
        sample(lab, **how)


def test_score_refuses_what_does_not_fit(lab):
    with pytest.raises(ValueError, match="prompt 0 and its continuation have 70 tokens"):
        score(lab, [[1] * 30], [[3] * 40])
    with pytest.raises(ValueError, match="token ids from 1 to 40; allowed: from 0 to 39"):
        score(lab, [[1]], [[V]])
    with pytest.raises(ValueError, match="as many of each"):
        score(lab, PROMPTS, [[3]])


def test_memory_is_checked_before_the_start(lab, monkeypatch):
    monkeypatch.setattr("locksmith.device.free_bytes", lambda device: 1000)
    with pytest.raises(MemoryError, match="sampling 8 rows of up to 19 tokens needs"):
        sample(lab, PROMPTS, 2, max_new_tokens=8, stop=STOP)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs cuda")
def test_gpu_equals_cpu(model):
    how = dict(max_new_tokens=20, stop={STOP, 30}, seed=7)
    cpu = sample(model, PROMPTS, 8, **how)
    gpu = sample(model.cuda(), PROMPTS, 8, **how)
    same = sum(a == b for a, b in zip(cpu.ids(), gpu.ids()))
    assert same >= 0.9 * len(cpu.ids())
    again = score(model, [PROMPTS[i] for i in gpu.prompt], gpu.ids())
    for got, want in zip(gpu.logprobs, again):
        assert torch.allclose(got[:len(want)], want, atol=1e-3)


def test_equal_neighbours_are_read_once_and_draw_as_they_would_alone(monkeypatch):
    """Prompts that follow each other and are equal share a prefill; each has its own numbers."""
    model, read, batch = llama(), [], engine._Batch

    def counted(model, control, prompts, *rest):
        read.append(len(prompts))
        return batch(model, control, prompts, *rest)
    monkeypatch.setattr(engine, "_Batch", counted)
    prompts = [[1, 4, 5], [1, 4, 5], [1, 4], [1, 4, 5]]
    how = dict(max_new_tokens=12, stop={2, 9}, seed=3)
    together = sample(model, prompts, 2, keys=[5, 6, 7, 8], **how).ids()
    alone = [sample(model, [prompt], 2, keys=[key], **how).ids()
             for prompt, key in zip(prompts, [5, 6, 7, 8])]
    assert together == sum(alone, []) and read == [3, 1, 1, 1, 1]
    assert together[:2] != together[2:4]
