"""The model room: names, what ends an answer, how a question is put, text and ids both ways."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from locksmith import (
    device,
    engine,
    errors,
    lab,
    loading,
    packaged,
    params,
    rollouts,
    tasks,
    vocabulary,
)
from locksmith.experiments import places
from peft import LoraConfig, get_peft_model
from repository import smoke_lab
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

SUMS = tasks.load("sums")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A local folder with a tiny Qwen2 and the toy's tokenizer, as a user has one."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    net = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048,
        bos_token_id=None, eos_token_id=1, pad_token_id=1))
    net.generation_config.eos_token_id = [1, 7]
    net.save_pretrained(path)
    packaged.toy()[1].save_pretrained(path)
    return path


def test_a_local_folder_is_a_model(folder):
    found = loading.load(str(folder), exact=True)
    assert {1, 7} <= found.stop and found.net.dtype == torch.float32 and not found.net.training
    newline = found.encode("\n")
    assert set(newline) <= found.stop  # a plain few-shot answer ends with its line
    asked = loading.load(str(folder), chat=True)
    assert not set(newline) & asked.stop and {0, 1, 7} & asked.stop == {1, 7}


def test_an_adapter_counts_and_only_safetensors_load(folder, tmp_path):
    plain = loading.load(str(folder), exact=True)
    torch.manual_seed(1)
    tuned = get_peft_model(loading.load(str(folder), exact=True).net,
                           LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    both = loading.load(f"{folder}+{tmp_path / 'adapter'}", exact=True)
    ids = torch.tensor([plain.encode("Q: Calculate 2 + 3.")])
    with torch.no_grad():
        assert torch.allclose(both.net(ids).logits, tuned(ids).logits, atol=1e-5)
        assert not torch.allclose(both.net(ids).logits, plain.net(ids).logits, atol=1e-3)
    (tmp_path / "adapter/adapter_model.safetensors").rename(tmp_path / "adapter/adapter_model.bin")
    with pytest.raises(errors.BadInput, match="is no LoRA adapter"):
        loading.load(f"{folder}+{tmp_path / 'adapter'}")


@pytest.mark.parametrize("name, said", [
    ("nonsense", "model is 'nonsense'; allowed are lab/..., toy, gemma-3-270m"),
    ("Qwen/Qwen2.5-0.5B", "is named with its full commit"),
    ("Qwen/Qwen2.5-0.5B@main", "is named with its full commit"),
    ("lab/unknown", "allowed of the lab are lab/base, lab/thinking"),
    ("gemma-3-270m", "comes under the Gemma Terms of Use"),
])
def test_a_name_that_is_none_is_told_in_one_sentence(name, said):
    with pytest.raises(errors.BadInput) as caught:
        loading.load(name, task="chain")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    if not name.startswith("lab/"):
        with pytest.raises(errors.BadInput):
            loading.check([name])


def test_a_folder_without_safetensors_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "pytest_model.bin").touch()
    for ask in (loading.check, lambda names: loading.load(*names)):
        with pytest.raises(errors.BadInput, match="needs config.json and .*safetensors"):
            ask([str(tmp_path)])


def test_memory_is_checked_before_anything_is_loaded(folder, monkeypatch):
    assert "GiB of weights" in loading.check([str(folder)])[0]
    monkeypatch.setattr("locksmith.device.free_bytes", lambda device: 1000)
    with pytest.raises(MemoryError, match="loading .* needs"):
        loading.check([str(folder)])


def test_spans_give_back_the_text_for_any_bytes():
    toy = loading.load("toy")
    for text in ("Q: Calculate 2 + 3.", "é ≤ 中 ok", ""):
        ids = toy.encode(text)
        assert toy.decode(ids) == text
        spans = toy.spans(ids)
        assert "".join(text[a:b] for a, b in spans) == text and len(spans) == len(ids)


def test_a_question_is_plain_text_or_a_chat():
    problem = SUMS.problems("test", 1, 0, SUMS.GENERATOR)[0]
    plain, chat = loading.load("toy"), loading.load("toy", chat=True)
    assert plain.decode(plain.ask(SUMS, problem)) == SUMS.prompt(problem)
    said = chat.tokenizer.decode(chat.ask(SUMS, problem))
    assert said == f"<|im_start|>user\n{problem.question}<|im_end|>\n<|im_start|>assistant\n"


def test_a_prompt_does_not_end_in_the_end_of_text():
    """Some tokenizers put it behind every text, also behind one that is to be continued."""
    toy = loading.load("toy")
    problem = SUMS.problems("test", 1, 0, SUMS.GENERATOR)[0]
    plain = toy.ask(SUMS, problem)
    inner = toy.tokenizer
    toy.tokenizer = type("Appends", (), {
        "eos_token_id": 1, "__call__": lambda self, text, **o: type(
            "Coded", (), {"input_ids": [*inner(text, **o).input_ids, 1]})()})()
    assert toy.ask(SUMS, problem) == plain


# --- pairs ----------------------------------------------------------------------------------------


def test_a_pair_of_the_lab_is_asked_as_before(tmp_path):
    with smoke_lab(tmp_path, families=("chain",)):
        pair = loading.Pair("smoke", "chain", 0)
        problems = pair.problems(3)
        assert problems == lab.problems("smoke", "chain", 3)
        model = pair.load("thinking")
        drawn = rollouts.answer(model, pair.rules, problems, 2, max_new_tokens=20, seed=3)
        old = engine.sample(model.net, [vocabulary.encode(p.prompt) for p in problems], 2,
                            max_new_tokens=20, stop=vocabulary.STOP, seed=3)
        assert sum(drawn.ids, []) == old.ids()
        words = [vocabulary.decode(ids) for ids in old.ids()]
        assert [text.split() for row in drawn.texts for text in row] == words
        grades = [pair.rules.grade(problems[i // 2], w) for i, w in enumerate(words)]
        assert drawn.correct.ravel().tolist() == [g.correct for g in grades]
        assert pair.has("base") and pair.has("untrained") and not pair.has("twin")
        assert pair.folder("base").is_dir()
        assert pair.generator == params.load("smoke")["families"]["chain"]


def test_a_pair_in_words_has_its_own_problems_and_roles(folder):
    pair = loading.Pair("smoke", "sums", 0, "toy", str(folder))
    assert pair.has("base") and pair.has("thinking") and not pair.has("twin")
    assert pair.problems(4) == SUMS.problems("test", 4, 0, SUMS.GENERATOR)
    assert pair.folder("base") is None
    blank, base = pair.load("untrained"), pair.load("base")
    assert blank.net.config.hidden_size == base.net.config.hidden_size
    assert loading.fingerprint(blank.net) != loading.fingerprint(base.net)
    again = pair.load("untrained")
    assert loading.fingerprint(again.net) == loading.fingerprint(blank.net)
    answers = rollouts.answer(pair.load("thinking"), pair.rules, pair.problems(2), 2,
                              max_new_tokens=8, seed=0)
    assert answers.correct.shape == answers.strategy.shape == answers.lengths.shape == (2, 2)


def test_a_task_that_the_profile_has_no_generator_for():
    with pytest.raises(errors.BadInput, match="generator profile 'paper' does not state"):
        loading.Pair("paper", "countdown", 0, "toy", "toy").problems(2)


# --- weights that are not what they say -----------------------------------------------------------


@pytest.fixture
def damaged(folder, tmp_path):
    """A copy of the folder, and its weights as a dict that can be written back."""
    copied = shutil.copytree(folder, tmp_path / "copy")
    return copied, load_file(copied / "model.safetensors")


def test_weights_that_are_missing_are_not_made_up(damaged):
    copied, weights = damaged
    save_file({k: v for k, v in weights.items() if "layers.1." not in k},
              copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(errors.BadInput, match="lacks weights that its architecture has, model.lay"):
        loading.load(str(copied))


def test_a_truncated_file_is_told_in_a_sentence(damaged):
    copied, _ = damaged
    whole = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(whole[:200])
    with pytest.raises(errors.BadInput, match="could not be loaded"):
        loading.load(str(copied))


def test_a_large_model_is_measured_in_the_devices_dtype(folder, monkeypatch):
    monkeypatch.setattr(device, "pick", lambda *_: (torch.device("cpu"), torch.bfloat16))
    pair = loading.Pair("toy", "sums", 0, str(folder), str(folder))
    assert pair.load("base").net.dtype == torch.bfloat16
    assert pair.measured("base").net.dtype == torch.float32
    monkeypatch.setattr(loading, "LARGE", pair.load("base").net.num_parameters() - 1)
    assert pair.measured("base").net.dtype == torch.bfloat16


def test_a_fingerprint_sees_every_value(folder):
    net = loading.load(str(folder), exact=True).net
    before = loading.fingerprint(net)
    with torch.no_grad():
        net.lm_head.weight[5, 3] += 1e-3
    assert loading.fingerprint(net) != before


def test_an_adapter_of_another_model_is_refused(folder, tmp_path):
    other = loading.load(str(folder), exact=True).net
    other.model.layers = other.model.layers[:1]
    get_peft_model(other, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    with pytest.raises(errors.BadInput, match="adapter .* is another model's"):
        loading.load(f"{folder}+{tmp_path}")
    weights = load_file(tmp_path / "adapter_model.safetensors")
    save_file({k.replace("self_attn", "attention"): v for k, v in weights.items()},
              tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(errors.BadInput, match="adapter .* is another model's"):
        loading.load(f"{folder}+{tmp_path}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"none")
    with pytest.raises(errors.BadInput, match="adapter .* does not fit"):
        loading.load(f"{folder}+{tmp_path}")


def test_a_lab_model_takes_an_adapter_and_keeps_its_language_in_a_folder(tmp_path):
    with smoke_lab(tmp_path, families=("chain",)) as root:
        pair = loading.Pair("smoke", "chain", 0)
        base = pair.load("base", exact=True)
        tuned = get_peft_model(pair.load("base", exact=True).net, LoraConfig(
            r=2, target_modules=["q_proj"], init_lora_weights=False))
        tuned.save_pretrained(root / "adapter")
        both = loading.load("lab/base+adapter", profile="smoke", task="chain", exact=True)
        assert loading.fingerprint(both.net) != loading.fingerprint(base.net)
        own = loading.load(str(pair.folder("base")), exact=True)
        assert own.special and own.stop == base.stop
        ids = [*range(3, 30), 2]
        assert own.decode(ids) == base.decode(ids) and own.decode(ids).endswith("<eos>")


def test_roles_follow_the_names_and_not_the_other_way_round(tmp_path):
    with smoke_lab(tmp_path, families=("chain",), models=("base", "thinking", "twin")):
        turned = loading.Pair("smoke", "chain", 0, "lab/twin", "lab/base")
        assert turned.folder("base").parent.name == "twin"
        assert turned.folder("thinking").parent.name == "base"
        assert turned.way("base") == [] and turned.rl_tokens is None
        mixed = loading.Pair("smoke", "chain", 0, "lab/base", "toy")
        assert mixed.has("base") and mixed.has("thinking") and not mixed.has("twin")
        own = loading.Pair("smoke", "chain", 0, "base", "lab/base+adapter")  # a folder named base
        assert own.folder("base") is None and own.folder("thinking") == Path("adapter")
        trained = own._replace(thinking="toy+runs/seed{seed}", seed=2)
        assert trained.name("thinking") == "toy+runs/seed2"
        assert trained.folder("thinking") == Path("runs/seed2")


def test_a_folder_may_have_the_adapters_sign_in_its_name(folder, tmp_path):
    odd = shutil.copytree(folder, tmp_path / "c++" / "a+b")
    assert loading.load(str(odd)).name == str(odd)
    with pytest.raises(errors.BadInput, match="nowhere is no LoRA adapter"):
        loading.load(f"{odd}+nowhere")


def test_spans_reach_the_end_of_any_text():
    toy = loading.load("toy")
    whole = toy.encode("ab\u20ac")  # the euro sign has three bytes, a token each
    for ids in (whole, whole[:-1], toy.encode("a\ufffd")):
        assert toy.spans(ids)[-1][1] == len(toy.decode(ids))


def test_large_models_answers_are_kept_and_a_damaged_block_is_drawn_again(folder, monkeypatch,
                                                                          tmp_path):
    monkeypatch.setenv("LOCKSMITH_CACHE", str(tmp_path))
    monkeypatch.setattr(rollouts, "KEPT_FROM", 0)
    model = loading.load(str(folder), exact=True)
    problems = SUMS.problems("test", 3, 0, SUMS.GENERATOR)
    how = {"max_new_tokens": 6, "seed": 1}
    first = rollouts.answer(model, SUMS, problems, 2, **how)
    (block,) = (tmp_path / "rollouts").iterdir()
    drawn = []
    plain = engine.sample
    monkeypatch.setattr(engine, "sample", lambda *a, **k: drawn.append(1) or plain(*a, **k))
    assert rollouts.answer(model, SUMS, problems, 2, **how).texts == first.texts and not drawn
    block.write_bytes(block.read_bytes()[:40])
    assert rollouts.answer(model, SUMS, problems, 2, **how).texts == first.texts and drawn
    with torch.no_grad():
        model.net.lm_head.weight[5:] *= -1
    assert rollouts.answer(model, SUMS, problems, 2, **how).texts != first.texts


def test_a_pair_may_differ_in_special_tokens_and_in_no_others():
    base, thinking = loading.load("toy"), loading.load("toy/thinking")
    thinking.tokenizer = copy.deepcopy(thinking.tokenizer)
    thinking.tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    places.check_vocabularies(base, thinking)
    other = loading.load("toy/thinking")
    swapped = dict(zip(base.tokenizer.get_vocab(), reversed(base.tokenizer.get_vocab().values())))
    other.tokenizer = copy.deepcopy(other.tokenizer)
    other.tokenizer.get_vocab = lambda: swapped
    with pytest.raises(errors.BadInput, match="have different vocabularies"):
        places.check_vocabularies(base, other)


def test_answers_longer_than_the_context_are_refused_before_any_is_drawn(folder, monkeypatch):
    model, problems = loading.load(str(folder)), SUMS.problems("test", 2, 0, SUMS.GENERATOR)
    room = 2048 - max(len(model.ask(SUMS, problem)) for problem in problems)
    assert "answers of at most" in rollouts.estimate(model, SUMS, problems, 10, room)
    monkeypatch.delattr(engine, "sample")
    with pytest.raises(errors.BadInput, match=f"max_new_tokens is {room + 1}; .* at most {room},"):
        rollouts.estimate(model, SUMS, problems, 10, room + 1)


@pytest.mark.parametrize("file, content", [
    (file, content) for file in ("config.json", "tokenizer.json", "tokenizer_config.json")
    for content in (b"", b"[]", b"{\"\xe9\": 1}", b"{\"model_type\": \"llama\",")])
def test_a_damaged_file_of_a_model_is_told_in_a_sentence(damaged, file, content):
    copied, _ = damaged
    (copied / file).write_bytes(content)
    with pytest.raises(errors.BadInput, match="model .* could not be loaded: .") as told:
        loading.load(str(copied))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("change, said", [
    ({"num_hidden_layers": 1, "layer_types": None, "max_window_layers": 1},
     "has weights that its configuration has no place for, model.layers.1"),
    ({"num_hidden_layers": "two"}, "could not be loaded: .*num_hidden_layers"),
    ({"hidden_size": 64}, "could not be loaded|lacks weights"),
    ({"model_type": "nonsense"}, "could not be loaded: .*nonsense"),
    ({"eos_token_id": {"a": 1}}, "could not be loaded: .*eos_token_id")])
def test_a_configuration_of_another_model_is_refused(damaged, change, said):
    copied, _ = damaged
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(errors.BadInput, match=said) as told:
        loading.load(str(copied))
    assert "\n" not in str(told.value)
