"""What is true of the engine and of training on a CPU holds on a GPU (benchmarks/gpu.sh runs
this). Sums are float32 without TF32, or bf16 where a test says so."""

import copy
import warnings

import pytest
import torch
from locksmith import cache, drawing, engine, finetune, graphs, model, rl
from locksmith.engine import Control, Steer
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

pytestmark = [pytest.mark.gpu,
              pytest.mark.skipif(not torch.cuda.is_available(), reason="needs cuda")]
GPU, V, D, NEW = "cuda", 200, 128, 24
SIZE = dict(vocab_size=V, hidden_size=D, intermediate_size=192, num_hidden_layers=3,
            num_attention_heads=4, max_position_embeddings=128, pad_token_id=0, bos_token_id=1,
            eos_token_id=2, initializer_range=0.1)
PROMPTS = [[1, 5, 6, 7, 8], [1, 9], [1] + [3, 4] * 10, [1, 10, 11]]
MAKERS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **SIZE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=2, **SIZE)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(
        num_key_value_heads=1, head_dim=32, sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"], **SIZE)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(rotary_pct=0.25, **SIZE))}


@pytest.fixture(autouse=True)
def full_float32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def made(name, seed=0):
    torch.manual_seed(seed)
    return MAKERS[name]().to(GPU).eval()


@pytest.fixture(params=MAKERS)
def net(request):
    return made(request.param)


@torch.no_grad()
def plain(net, ids):
    """(T, V) float32, one text, no cache, no padding."""
    return net(input_ids=torch.tensor([ids], device=GPU), use_cache=False).logits[0].float()


def recorded(monkeypatch):
    """The logits of every step, as the sampler saw them."""
    seen, draw = [], drawing.draw
    monkeypatch.setattr(drawing, "draw",
                        lambda logits, *a: (seen.append(logits.float().clone()),
                                            draw(logits, *a))[1])
    return seen


def said(net, out):
    """The model's own logits (T, V) where each rollout of `out` was drawn."""
    for row, ids in enumerate(out.ids()):
        prompt = PROMPTS[out.prompt[row]]
        yield row, plain(net, prompt + ids)[len(prompt) - 1:-1]


def test_logits_equal_the_plain_forward(net, monkeypatch):
    seen = recorded(monkeypatch)
    out = engine.sample(net, PROMPTS, 3, max_new_tokens=NEW, stop=())
    got = torch.stack(seen, 1)
    for row, want in said(net, out):
        assert (got[row] - want).abs().max() < 1e-4 * max(1.0, float(want.abs().max()))


def test_the_pass_of_one_token_is_replayed(net, monkeypatch):
    """A `replay` that is not stopped was compared with the plain pass, see `graphs`."""
    done, replay = [], graphs.Replayed.replay
    monkeypatch.setattr(graphs.Replayed, "replay",
                        lambda *args: (done.append(1), replay(*args))[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.sample(net.bfloat16(), PROMPTS, 3, max_new_tokens=NEW, stop=())
    assert len(done) == NEW - 1


def test_bfloat16_is_as_near_to_float32_as_the_models_own_forward(net, monkeypatch):
    exact, net = copy.deepcopy(net), net.bfloat16()
    exact.load_state_dict(net.state_dict())
    seen = recorded(monkeypatch)
    out = engine.sample(net, PROMPTS, 3, max_new_tokens=NEW, stop=())
    got, ours, theirs = torch.stack(seen, 1), [], []
    own = dict(said(net, out))
    for row, want in said(exact, out):
        ours.append((got[row] - want).square().mean().sqrt() / want.std())
        theirs.append((own[row] - want).square().mean().sqrt() / want.std())
    assert 0 < sum(ours) < 1.5 * sum(theirs)
    assert max(ours) < 0.05


def test_a_rollout_does_not_depend_on_its_batch(net):
    how = dict(max_new_tokens=NEW, stop=set(range(30, 36)), seed=4)
    whole = engine.sample(net, PROMPTS, 6, **how)
    assert len(set(whole.lengths.tolist())) > 3, "rows must end at different times"
    for size in (5, 1):
        small = engine.sample(net, PROMPTS, 6, batch_size=size, **how)
        assert small.ids() == whole.ids()
        assert torch.allclose(small.logprobs, whole.logprobs, atol=1e-4)
    on_cpu = engine.sample(net.cpu(), PROMPTS, 6, **how)
    assert on_cpu.ids() == whole.ids()


@pytest.mark.parametrize("name", ["llama", "qwen2"])  # the short path and the models' own forward
def test_steering_adds_what_a_hook_adds(name, monkeypatch):
    net, vector = made(name), torch.randn(D, generator=torch.Generator().manual_seed(1)) / 4
    seen = recorded(monkeypatch)
    out = engine.sample(net, PROMPTS, 3, max_new_tokens=NEW, stop=(), control=Control(
        [Steer(1, vector)], read=[1]))
    got, added = torch.stack(seen, 1), vector.to(GPU)
    assert out.steered == sum(len(PROMPTS[p]) + NEW - 1 for p in out.prompt)
    kept, unsteered = {}, dict(said(net, out))

    def hook(module, args, output):
        hidden = (output[0] if isinstance(output, tuple) else output) + added
        kept["hidden"] = hidden[0]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    with cache.blocks(net)[1].register_forward_hook(hook):
        for row, want in said(net, out):
            assert (got[row] - want).abs().max() < 1e-4 * max(1.0, float(want.abs().max()))
            assert (got[row] - unsteered[row]).abs().max() > 1e-2
            first = len(PROMPTS[out.prompt[row]]) - 1
            assert torch.allclose(out.reads[1][row], kept["hidden"][first:-1], atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_guide_says_what_it_says_alone(name):
    net, guide, seen = made(name), made(name, seed=1), []

    def gate(moment):
        seen.append(moment.guides[0][0].float().clone())
        return moment.guides[0][0].argmax(-1)[:, None] % 2 == 0

    vector = torch.ones(D) / 4
    out = engine.sample(net, PROMPTS, 3, max_new_tokens=NEW, stop=(), seed=3, control=Control(
        [Steer(0, vector, gate=gate)], [guide]))
    got = torch.stack(seen, 1)
    for row, want in said(guide, out):
        assert (got[row] - want).abs().max() < 1e-4 * max(1.0, float(want.abs().max()))
    where = got.argmax(-1) % 2 == 0
    assert torch.equal(out.steered_at, where) and 0 < out.steered < where.numel()


@pytest.mark.parametrize("how", ["rl", "finetune"])
def test_a_lora_step_equals_the_cpus(how):
    def logits(net, ids):
        return net(input_ids=ids, use_cache=False).logits

    moved = {}
    for place in ("cpu", GPU):
        net = model.adapter(made("qwen2").to(place), 4, 0)
        torch.manual_seed(0)
        trained = {name: x for name, x in net.named_parameters() if x.requires_grad}
        with torch.no_grad():  # at their start B is 0, and A has no gradient
            for x in trained.values():
                x.copy_(torch.randn(x.shape) / 20)
        before = {name: x.detach().cpu().clone() for name, x in trained.items()}
        optimizer = torch.optim.SGD(trained.values(), 1.0)
        texts = [[*p, *range(20 + i, 40 + i)] for i, p in enumerate(PROMPTS)]
        if how == "rl":
            rl.update(net, optimizer, texts, list(map(len, PROMPTS)),
                      torch.tensor([1.0, -1.0, 0.5, 0.0]), 64, logits)
        else:
            pairs = [(text[:9], text[9:]) for text in texts]
            finetune.train(net, finetune.pack(pairs, 1, 40, 0, 64), optimizer, lambda step: 1.0,
                           logits)
        moved[place] = torch.cat([(x.detach().cpu() - before[name]).flatten()
                                  for name, x in trained.items()])
    assert moved["cpu"].norm() > 0.05
    assert (moved[GPU] - moved["cpu"]).norm() < 1e-4 * moved["cpu"].norm()


def test_what_does_not_fit_is_refused_before_it_allocates():
    net = made("llama")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.max_memory_allocated()
    with pytest.raises(MemoryError, match="GiB on cuda"):
        engine.sample(net, PROMPTS, 2**34, max_new_tokens=64, stop=(), batch_size=2**34)
    # A look whether the weights are finite takes some kilobytes.
    assert torch.cuda.max_memory_allocated() - before < 2**20
