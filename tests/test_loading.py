"""The model room: names, what ends an answer, how a question is put, text and ids both ways."""

import json

import pytest
import torch
from locksmith import engine, errors, lab, loading, packaged, params, rollouts, tasks, vocabulary
from peft import LoraConfig, get_peft_model
from repository import smoke_lab
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
