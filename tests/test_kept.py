"""What is kept of large models' answers: never other weights', adapters', prompts' or code's."""

import contextlib
from dataclasses import replace

import pytest
import torch
from locksmith import architectures, engine, loading, packaged, rollouts, tasks, words
from locksmith.errors import BadInput
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

SUMS = tasks.load("sums")
PROBLEMS = SUMS.problems("test", 3, 0, SUMS.GENERATOR)
HOW = {"max_new_tokens": 6, "seed": 1}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The cache's folder, in which even a toy's answers are kept."""
    monkeypatch.setenv("LOCKSMITH_CACHE", str(tmp_path))
    monkeypatch.setattr(rollouts, "KEPT_FROM", 0)
    return tmp_path / "rollouts"


@pytest.fixture
def toy():
    """Chooses its tokens by its state: as drawn, the toy's head prefers none."""
    model = loading.load("toy", exact=True)
    with torch.no_grad():
        model.net.lm_head.weight.mul_(30)
    return model


@pytest.fixture
def sampled(monkeypatch):
    """What the engine was asked, a list of prompts a call."""
    calls, plain = [], engine.sample
    monkeypatch.setattr(engine, "sample", lambda net, prompts, *a, **k: (
        calls.append(prompts), plain(net, prompts, *a, **k))[1])
    return calls


def adapted(model, scale=8):
    net = get_peft_model(model.net, LoraConfig(
        r=2, lora_alpha=scale, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    return replace(model, net=net.eval())


def asked(model, **how):
    """Texts by both ways to ask, which must be kept alike."""
    drawn = rollouts.answer(model, SUMS, PROBLEMS, 2, **{**HOW, **how}).texts
    said = words.sample_words(model, PROBLEMS, 2, shots=1, **{**HOW, "temperature": 1.0, **how})
    return drawn, said.texts


def test_an_adapter_its_scale_and_whether_it_is_on_are_told_apart(toy, kept, sampled):
    """Each state samples for itself and then finds its own answers again, in any order."""
    plain = asked(toy)
    model = adapted(toy)
    states = {"on": contextlib.nullcontext, "off": model.net.disable_adapter}
    layer = model.net.base_model.model.model.layers[0].self_attn.q_proj
    found = {}
    for name, state in states.items():
        with state():
            found[name] = asked(model)
    layer.scaling["default"] *= 3
    found["stronger"] = asked(model)
    layer.scaling["default"] /= 3
    assert found["off"] == plain and found["on"] != plain and found["stronger"] != found["on"]
    fresh = len(sampled)
    assert fresh == 2 * 4  # the plain model is not the one with its adapter off, to be safe
    for name, state in states.items():
        with state():
            assert asked(model) == found[name]
    assert len(sampled) == fresh


def test_two_adapters_of_one_model_are_told_apart(toy, kept, sampled):
    model = adapted(toy)
    model.net.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj", "up_proj"],
                                              init_lora_weights=False))
    model.net.set_adapter("default")
    first = asked(model)
    model.net.set_adapter("other")
    assert asked(model) != first and len(sampled) == 4
    model.net.set_adapter("default")
    assert asked(model) == first and len(sampled) == 4
    model.net.merge_adapter()
    asked(model)
    assert len(sampled) == 6


def test_transformers_own_adapters_are_told_apart(toy, kept, sampled):
    toy.net.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    on = loading.fingerprint(toy.net)
    toy.net.disable_adapters()
    off = loading.fingerprint(toy.net)
    toy.net.enable_adapters()
    assert on != off and loading.fingerprint(toy.net) == on


class Own(torch.nn.Linear):
    """A layer of somebody's own code, which no key can hold."""

    def forward(self, x):
        return 2 * super().forward(x)


def global_hook(net):
    return torch.nn.modules.module.register_module_forward_hook(lambda m, a, out: out)


def patched(net):
    mlp = net.model.layers[0].mlp
    mlp.forward = lambda x: x
    return contextlib.closing(type("", (), {"close": lambda self: delattr(mlp, "forward")})())


def replaced(net):
    head = net.lm_head
    net.lm_head = Own(head.in_features, head.out_features, bias=False)
    net.lm_head.weight = head.weight


@pytest.mark.parametrize("change", [
    lambda net: net.model.layers[0].register_forward_hook(lambda m, a, out: out),
    lambda net: net.model.layers[1].mlp.register_forward_pre_hook(lambda m, a: None),
    lambda net: net.register_forward_hook(lambda m, a, out: out),
    global_hook, patched, replaced])
def test_nothing_is_kept_of_what_no_key_can_tell(toy, kept, sampled, change):
    assert not architectures.altered(toy.net)
    with change(toy.net) or contextlib.nullcontext():
        assert architectures.altered(toy.net)
        asked(toy)
        asked(toy)
    assert len(sampled) == 4 and (not kept.exists() or not list(kept.iterdir()))


def test_steering_is_not_kept(toy, kept, sampled):
    for _ in range(2):
        rollouts.answer(toy, SUMS, PROBLEMS, 2, **HOW, control=engine.Control())
    assert len(sampled) == 2


@pytest.mark.parametrize("change", [
    {"stop": {5}}, {"seed": 2}, {"temperature": 0.5}, {"max_new_tokens": 7}, {"keys": [4, 5, 6]}])
def test_whatever_shapes_a_text_is_in_its_key(toy, kept, sampled, change):
    prompts = [toy.ask(SUMS, problem) for problem in PROBLEMS]
    for how in (HOW, {**HOW, **change}, HOW, {**HOW, **change}):
        rollouts.sampled(toy, prompts, 2, True, **how)
    assert len(sampled) == 2
    rollouts.sampled(toy, [[*ids, 9] for ids in prompts], 2, True, **HOW)
    rollouts.sampled(replace(toy, net=toy.net.to(torch.bfloat16)), prompts, 2, True, **HOW)
    assert len(sampled) == 4


def test_the_prompts_tokens_are_in_the_key_and_not_its_text_alone(toy, kept, sampled):
    """The same questions through another tokenizer or template are other prompts."""
    plain = asked(toy)
    chat = replace(toy, chat=True)
    assert rollouts.answer(chat, SUMS, PROBLEMS, 2, **HOW).texts != plain[0]
    chat.tokenizer.chat_template = chat.tokenizer.chat_template.replace("user", "asks", 1) + "Sum:"
    before = len(sampled)
    rollouts.answer(chat, SUMS, PROBLEMS, 2, **HOW)
    assert len(sampled) == before + 1


def test_other_code_or_versions_find_nothing(toy, kept, sampled, monkeypatch):
    for version in ("a", "a", "b"):
        monkeypatch.setattr(rollouts, "_versions", lambda version=version: [version])
        rollouts.answer(toy, SUMS, PROBLEMS, 2, **HOW)
    assert len(sampled) == 2


def test_a_block_with_one_wrong_bit_is_sampled_again(toy, kept, sampled):
    first = rollouts.answer(toy, SUMS, PROBLEMS, 2, **HOW)
    (block,) = kept.iterdir()
    whole = block.read_bytes()
    for damage in (whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:], whole[:100], b"", b"{}" * 99):
        block.write_bytes(damage)
        again = rollouts.answer(toy, SUMS, PROBLEMS, 2, **HOW)
        assert again.ids == first.ids and torch.equal(again.rollouts.logprobs,
                                                      first.rollouts.logprobs)
        assert block.read_bytes() == whole
    assert len(sampled) == 5
    with safe_open(block, "pt") as file:
        told = file.metadata()
    tensors = load_file(block)
    save_file({**tensors, "tokens": tensors["tokens"] + 1}, block, metadata=told)
    assert rollouts.answer(toy, SUMS, PROBLEMS, 2, **HOW).ids == first.ids


@pytest.mark.parametrize("n", [0, -1, 1.5, True, None])
def test_a_count_that_is_none_is_told_in_a_sentence(toy, kept, n):
    for keep in (True, False):
        with pytest.raises(BadInput, match="n is .* for 1 problems; allowed is a whole number"):
            rollouts.sampled(toy, [[5]], n, keep, **HOW)


def test_no_problems_are_told_in_a_sentence(toy, kept):
    for ask in (lambda: rollouts.answer(toy, SUMS, [], 2, **HOW),
                lambda: words.sample_words(toy, [], 2)):
        with pytest.raises(BadInput, match="for 0 problems; allowed is .* at least one problem"):
            ask()
    with pytest.raises(BadInput, match="keys are 1 for 3 problems"):
        rollouts.answer(toy, SUMS, PROBLEMS, 2, **HOW, keys=[1])


def test_one_stop_is_a_set_of_one(toy, kept, monkeypatch):
    kept_one = rollouts.answer(toy, SUMS, PROBLEMS, 2, **HOW, stop=200)
    assert kept_one.ids == rollouts.answer(toy, SUMS, PROBLEMS, 2, **HOW, stop={200}).ids
    monkeypatch.setattr(rollouts, "KEPT_FROM", 1e9)
    assert kept_one.ids == rollouts.answer(toy, SUMS, PROBLEMS, 2, **HOW, stop=200).ids


def test_a_fingerprint_is_the_same_after_sampling_and_loading(toy):
    before = loading.fingerprint(toy.net)
    rollouts.answer(toy, SUMS, PROBLEMS, **HOW)
    assert loading.fingerprint(toy.net) == before
    assert loading.fingerprint(packaged.toy()[0]) == loading.fingerprint(packaged.toy()[0])
