"""Models that somebody altered: the engine draws from what the model's own forward says, or
refuses in one sentence; it never draws from the model as it was before."""

import functools
import types

import peft
import pytest
import torch
from locksmith import activations, architectures, cache
from locksmith.engine import Control, Steer, sample, score
from locksmith.errors import BadInput
from test_engine import PROMPTS, STOP, D, gemma3, llama
from torch import nn
from transformers import AttentionInterface, LlamaForCausalLM
from transformers.models.llama import modeling_llama

SHIFT = torch.linspace(-1, 1, D)


def random_(module, part):
    """Fill the parameters whose name holds `part`, so that they count."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, x in module.named_parameters():
            if part in name:
                x.copy_(torch.randn(x.shape, generator=generator) * 0.3)


def lora(**how):
    return peft.LoraConfig(r=2, target_modules=how.pop("target_modules", ["q_proj", "down_proj"]),
                           task_type="CAUSAL_LM", **how)


def wrapped(config):
    def alter(model, patch):
        made = peft.get_peft_model(model, config()).eval()
        random_(made, "lora_B")
        random_(made, "prompt")
        random_(made, "ia3")
        return made
    return alter


def added_adapter(model, patch):
    model.add_adapter(lora())
    random_(model, "lora_B")


def merged(model, patch):
    return wrapped(lora)(model, patch).merge_and_unload()


def merged_in_place(model, patch):
    made = wrapped(lora)(model, patch)
    made.merge_adapter()
    return made


def two_adapters(model, patch):
    made = wrapped(lora)(model, patch)
    made.add_adapter("other", lora())
    random_(made, "other")
    made.set_adapter("other")
    return made


def shifted(module, args, out):
    return (out[0] + SHIFT, *out[1:]) if isinstance(out, tuple) else out + SHIFT


def shifted_input(module, args, kwargs):
    return (args[0] + SHIFT, *args[1:]), kwargs


def third_position(module, args, out):
    """Only where there is one, and at no other: a cache that is fed token by token has none."""
    out = out.clone()
    out[:, 2:3] += 3 * SHIFT
    return out


def mean_of_before(module, args, out):
    return out + out.cumsum(1) / torch.arange(1, out.shape[1] + 1)[:, None]


def first_row_only(module, args, out):
    return torch.cat([out[:1] + SHIFT, out[1:]])


def hooked(path, hook=shifted):
    return lambda model, patch: model.get_submodule(path).register_forward_hook(hook)


def before(path):
    return lambda model, patch: model.get_submodule(path).register_forward_pre_hook(
        shifted_input, with_kwargs=True)


def shifted_logits(module, args, out):
    out.logits = out.logits * 1.5
    return out


def hook_on_all(model, patch):
    def hook(module, args, out):
        return out * 1.5 if isinstance(module, nn.Linear) else None
    handle = nn.modules.module.register_module_forward_hook(hook)
    patch.undo_list.append(handle.remove)


class Loud(nn.Module):
    """Any module, its output made larger."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs) * 1.5


class LoudLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 1.5


class LoudLlama(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 1.5
        return out


class Wrapper(nn.Module):
    """Not a transformers model at all, but for its configuration."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, inner.config
        self.device, self.dtype = inner.device, inner.dtype

    def forward(self, input_ids):
        out = self.inner(input_ids=input_ids)
        out.logits = out.logits * 1.5
        return out


def loud(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs) * 1.5
    return wrapper


def replaced(path, make):
    def alter(model, patch):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, make(model.get_submodule(path)))
    return alter


def copied(kind):
    def make(linear):
        made = kind(linear.in_features, linear.out_features, bias=False)
        made.load_state_dict(linear.state_dict())
        return made
    return make


def with_bias(linear):
    made = nn.Linear(linear.in_features, linear.out_features)
    nn.init.normal_(made.bias)
    made.weight = linear.weight
    return made


def forward_of(path):
    def alter(model, patch):
        module = model.get_submodule(path)
        module.forward = loud(module.forward)
    return alter


def partial_forward(model, patch):
    module = model.model.layers[1].mlp
    module.forward = functools.partial(lambda self, x: 2 * type(self).forward(self, x), module)


def bound_forward(model, patch):
    module = model.model.layers[1].mlp
    module.forward = types.MethodType(lambda self, x: 2 * type(self).forward(self, x), module)


def class_forward(model, patch):
    kind = type(model.model.norm)
    patch.setattr(kind, "forward", loud(kind.forward))


def class_method(model, patch):
    kind = nn.Linear
    patch.setattr(kind, "forward", loud(kind.forward))


def rotation(model, patch):
    plain = modeling_llama.apply_rotary_pos_emb
    patch.setattr(modeling_llama, "apply_rotary_pos_emb",
                  lambda q, k, *how, **more: plain(q, k * 1.5, *how, **more))


def attention(model, patch):
    plain = modeling_llama.ALL_ATTENTION_FUNCTIONS["sdpa"]

    def other(module, q, *how, **more):
        return plain(module, q * 1.5, *how, **more)
    AttentionInterface.register("loud", other)
    model.config._attn_implementation = "loud"


def doubled_parameter(model, patch):
    class Double(nn.Module):
        def forward(self, x):
            return 2 * x
    nn.utils.parametrize.register_parametrization(model.model.layers[0].mlp.up_proj, "weight",
                                                  Double())


def weight_norm(model, patch):
    linear = model.model.layers[0].mlp.up_proj
    nn.utils.parametrizations.weight_norm(linear)
    with torch.no_grad():
        linear.parametrizations.weight.original0 *= 2


def spectral_norm(model, patch):
    nn.utils.spectral_norm(model.model.layers[0].mlp.up_proj)


def compiled(model, patch):
    """As `torch.compile` leaves a part, without the seconds that it takes."""
    norm = model.model.norm
    norm._compiled_call_impl = loud(norm._call_impl)


def fewer_layers(model, patch):
    model.config.num_hidden_layers = 2


def attribute(path, name, value):
    return lambda model, patch: setattr(model.get_submodule(path), name, value)


def wrapper(kind):
    def alter(model, patch):
        if kind is Wrapper:
            return Wrapper(model)
        made = kind(model.config)
        made.load_state_dict(model.state_dict())
        return made.eval()
    return alter


BLOCK = "model.layers.1"
ALTERED = {
    # adapters: by their own forward on the cache, but for those that put tokens before the text
    "add_adapter": added_adapter, "lora": wrapped(lora), "two adapters": two_adapters,
    "dora": wrapped(lambda: lora(use_dora=True)), "rslora": wrapped(lambda: lora(use_rslora=True)),
    "lora on the embedding": wrapped(lambda: lora(target_modules=["embed_tokens", "v_proj"])),
    "lora, merged": merged, "lora, merged in place": merged_in_place,
    "ia3": wrapped(lambda: peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"])),
    "prompt tuning": wrapped(lambda: peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3)),
    # hooks
    "hook on a block": hooked(BLOCK), "hook on attention": hooked(BLOCK + ".self_attn"),
    "hook on a norm": hooked("model.norm"), "hook on the embedding": hooked("model.embed_tokens"),
    "hook on an mlp": hooked(BLOCK + ".mlp"), "hook on the model": hooked("", shifted_logits),
    "hook on the head": hooked("lm_head", lambda m, a, out: out * 1.5),
    "hook before a block": before(BLOCK), "hook before an mlp": before(BLOCK + ".mlp"),
    "hook on all modules": hook_on_all, "hook at a position": hooked(BLOCK, third_position),
    "hook over positions": hooked(BLOCK, mean_of_before),
    "hook on the first row": hooked(BLOCK, first_row_only),
    # code
    "subclass": wrapper(LoudLlama), "wrapper": wrapper(Wrapper),
    "forward of the model's part": forward_of("model.norm"),
    "forward of a linear map": forward_of(BLOCK + ".mlp.up_proj"),
    "forward as a partial": partial_forward, "forward as a method": bound_forward,
    "forward of a class": class_forward, "forward of torch's class": class_method,
    "a function of the module": rotation, "another attention": attention,
    "compiled": compiled,
    # parts
    "linear subclass": replaced(BLOCK + ".self_attn.q_proj", copied(LoudLinear)),
    "wrapped part": replaced(BLOCK + ".mlp", Loud), "wrapped head": replaced("lm_head", Loud),
    "bias": replaced(BLOCK + ".self_attn.k_proj", with_bias),
    "bias of the head": replaced("lm_head", with_bias),
    "layer norm": replaced("model.norm", lambda x: nn.LayerNorm(D, bias=False)),
    "another activation": replaced(BLOCK + ".mlp.act_fn", lambda x: nn.Tanh()),
    "another epsilon": attribute("model.norm", "variance_epsilon", 1.0),
    "another scale": attribute(BLOCK + ".self_attn", "scaling", 0.1),
    "norms of embeddings": attribute("model.embed_tokens", "max_norm", 0.5),
    "parametrization": doubled_parameter, "weight norm": weight_norm,
    "spectral norm": spectral_norm,
    "fewer layers": fewer_layers}


@pytest.fixture
def patch(monkeypatch):
    monkeypatch.undo_list = []
    yield monkeypatch
    for undo in monkeypatch.undo_list:
        undo()


def made(name, patch, build=llama):
    torch.manual_seed(0)
    model = build().eval()
    other = ALTERED[name](model, patch)
    return other if isinstance(other, nn.Module) else model


@torch.no_grad()
def own(model, ids):
    """(T, V) log-probabilities of one text by the model's own forward."""
    out = cache.own_logits(model, torch.tensor([ids]))[0].float().log_softmax(-1)
    return out[-len(ids):]


def check_rollouts(model, prompts=PROMPTS, n=2):
    """The log-probabilities of first tokens, after a look whether all that is drawn and scored has
    those of the model's own forward of each text as it grows."""
    out = sample(model, prompts, n, max_new_tokens=6, stop=STOP, seed=3)
    again = score(model, [prompts[i] for i in out.prompt], out.ids())
    first = []
    for at, ids, drawn, scored in zip(out.prompt, out.ids(), out.logprobs, again):
        said = [own(model, prompts[at] + ids[:i])[-1] for i in range(len(ids))]
        want = torch.stack([x[i] for x, i in zip(said, ids)])
        assert torch.allclose(drawn[:len(ids)], want, atol=1e-4)
        assert torch.allclose(scored, want, atol=1e-4)
        first.append(said[0])
    return torch.stack(first)


@pytest.mark.filterwarnings("ignore:.*every token reads")
@pytest.mark.parametrize("name", ALTERED)
def test_rollouts_are_those_of_the_altered_model(name, patch):
    torch.manual_seed(0)
    plain = check_rollouts(llama().eval())
    moved = (check_rollouts(made(name, patch)) - plain).abs().max()
    assert moved > 0.01, "the alteration changes nothing"


@pytest.mark.filterwarnings("ignore:.*every token reads")
@pytest.mark.parametrize("name", ["add_adapter", "dora", "hook on a block", "hook at a position",
                                  "forward of a linear map", "wrapped part", "prompt tuning"])
def test_so_are_those_of_another_architecture(name, patch):
    check_rollouts(made(name, patch, gemma3))


@pytest.mark.parametrize("name", ["add_adapter", "lora", "two adapters", "dora",
                                  "lora on the embedding", "lora, merged", "bias", "layer norm",
                                  "another activation", "fewer layers"])
def test_what_acts_on_each_token_alone_keeps_its_cache(name, patch):
    assert not architectures.altered(made(name, patch))


def test_a_disabled_adapter_does_not_count_and_an_enabled_one_does_again(patch):
    torch.manual_seed(0)
    plain = check_rollouts(llama().eval())
    model = made("lora", patch)
    with model.disable_adapter():
        assert torch.allclose(check_rollouts(model), plain, atol=1e-5)
    assert not torch.allclose(check_rollouts(model), plain, atol=1e-2)
    model = made("add_adapter", patch)
    model.disable_adapters()
    assert torch.allclose(check_rollouts(model), plain, atol=1e-5)


def test_a_hook_that_is_gone_leaves_the_quick_path():
    model = llama().eval()
    handle = hooked(BLOCK)(model, None)
    assert architectures.altered(model) == "a hook on model.layers.1"
    with pytest.warns(UserWarning, match="a hook on model.layers.1: every token reads its whole"):
        sample(model, PROMPTS, max_new_tokens=1, stop=())
    handle.remove()
    assert not architectures.altered(model) and cache.Fused.fits(model)


def last_position(module, args, out):
    out = out.clone()
    out[:, -1] += 3 * SHIFT
    return out


def mean_of_all(module, args, out):
    return out + 3 * out.mean(1, keepdim=True)


def both_ways_by_config(model, patch):
    model.config.is_causal = False


def both_ways(model, patch):
    for block in model.model.layers:
        block.self_attn.is_causal = False


@pytest.mark.filterwarnings("ignore:.*every token reads")
@pytest.mark.parametrize("alter", [
    hooked(BLOCK, last_position), hooked(BLOCK, mean_of_all), both_ways, both_ways_by_config],
    ids=["last", "mean", "attention", "config"])
def test_a_forward_that_looks_ahead_is_refused(alter):
    torch.manual_seed(0)
    model = llama().eval()
    alter(model, None)
    for act in (lambda: sample(model, PROMPTS, max_new_tokens=5, stop=()),
                lambda: score(model, PROMPTS, [[3, 4, 5]] * 4)):
        with pytest.raises(BadInput, match="something else of a token once others follow it"):
            act()


@pytest.mark.parametrize("control", [Control([Steer(1, SHIFT)]), Control(read=[0])])
def test_steering_or_reading_an_altered_model_is_refused(control, patch):
    model = made("hook on a block", patch)
    with pytest.raises(BadInput, match="a hook on model.layers.1, so its residual stream cannot"):
        sample(model, PROMPTS, max_new_tokens=3, stop=(), control=control)


@pytest.mark.filterwarnings("ignore:.*every token reads")
def test_guides_and_processors_go_with_an_altered_model(patch):
    """A guide that was altered says of each row what its own forward says."""
    model, guide = llama().eval(), made("hook at a position", patch)
    seen = []

    def by_guide(logits, moment):
        seen.append([x.clone() for x in (moment.guides[0][0], moment.rows)])
        return moment.guides[0][0]
    out = sample(model, PROMPTS, 2, max_new_tokens=5, stop=STOP,
                 control=Control(guides=[guide], logits_processor=by_guide))
    for step, (logits, rows) in enumerate(seen):
        for row, said in zip(rows.tolist(), logits):
            text = PROMPTS[out.prompt[row]] + out.ids()[row][:step]
            if step < out.lengths[row]:
                assert torch.allclose(said.log_softmax(-1), own(guide, text)[-1], atol=1e-4)


def test_a_layer_that_stands_twice_is_exact_or_refused():
    torch.manual_seed(0)
    for build in (llama, gemma3):
        model = build().eval()
        model.model.layers[2] = model.model.layers[0]
        if build is llama:
            check_rollouts(model)
        else:
            with pytest.raises(BadInput, match="layer of the model does not write each token"):
                sample(model, PROMPTS, max_new_tokens=3, stop=())


def test_no_model_of_transformers_is_refused():
    with pytest.raises(BadInput, match="a Linear, which has no configuration"):
        sample(nn.Linear(2, 2), PROMPTS, max_new_tokens=3, stop=())


def test_a_wrapped_model_shows_its_head_the_last_position_only(patch):
    model = made("lora", patch)
    assert cache.logits_to_keep(model, 1) == {"logits_to_keep": 1}
    shapes = []
    model.get_base_model().lm_head.register_forward_pre_hook(
        lambda module, args: shapes.append(args[0].shape))
    run = cache.Generic(model, 2, 24, False, [], None)
    run(torch.ones(2, 20, dtype=torch.int64), 0, torch.zeros(2, dtype=torch.int64))
    assert shapes == [(2, 1, D)]


# --- numbers that are not finite -----------------------------------------------------------------

BAD = {"model.embed_tokens.weight": (7, 3), "lm_head.weight": (0, 0), "model.norm.weight": (5,),
       "model.layers.2.mlp.down_proj.weight": (1, 1),
       "model.layers.0.self_attn.q_proj.weight": (30, 30)}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("build, dtype", [(llama, torch.float32), (gemma3, torch.bfloat16)])
def test_a_weight_that_is_not_finite_is_named(build, dtype, name, value):
    model = build().eval().to(dtype)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # untied
    model.get_parameter(name).data[BAD[name]] = value
    how = dict(max_new_tokens=3, stop=())
    for act in (lambda: sample(model, PROMPTS, **how),
                lambda: sample(model, PROMPTS, temperature=0, **how),
                lambda: sample(llama(), PROMPTS, control=Control(guides=[model]), **how),
                lambda: score(model, PROMPTS, [[3]] * 4),
                lambda: activations.residuals(model, PROMPTS, [0])):
        with pytest.raises(BadInput, match=f"weight {name} holds 1 numbers that are not finite"):
            act()


def test_the_adapters_weight_is_named_too(patch):
    model = made("lora", patch)
    part = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    part.lora_B["default"].weight.data[0] = torch.nan
    with pytest.raises(BadInput, match="q_proj.lora_B.default.weight holds 2 numbers"):
        sample(model, PROMPTS, max_new_tokens=3, stop=())


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_an_error(value, temperature):
    """From finite weights too: an overflow, or a logits processor."""
    def at_the_third(logits, moment):
        if moment.tokens.shape[1] - max(map(len, PROMPTS)) == 2:
            logits[moment.rows == 1, 4] = value
        return logits
    with pytest.raises(BadInput, match="logits of prompt 1 are not finite after 2 new tokens"):
        sample(llama().eval(), PROMPTS, max_new_tokens=5, stop=(), temperature=temperature,
               control=Control(logits_processor=at_the_third))
    model = llama().eval()
    model.model.norm.weight.data[:] = 3e38
    for act in (lambda: sample(model, PROMPTS, max_new_tokens=3, stop=(), temperature=temperature),
                lambda: score(model, PROMPTS, [[3]] * 4)):
        with pytest.raises(BadInput, match=r"logits of prompt \d .*not finite"):
            act()


def test_banned_tokens_are_no_error():
    out = sample(llama().eval(), PROMPTS, max_new_tokens=5, stop=(), control=Control(
        logits_processor=lambda logits, m: logits.masked_fill(torch.arange(40) % 2 == 1,
                                                              -torch.inf)))
    assert (out.tokens % 2 == 0).all()
