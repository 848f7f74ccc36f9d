"""Few tokens: the model and the texts are the same wherever the tokens are kept."""

import json

import numpy as np
import pytest
import torch
from locksmith import engine, errors, loading, model, narrowing, packaged, tasks
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SUMS = tasks.load("sums")
PROBLEMS = SUMS.problems("train", 4, 0, SUMS.GENERATOR)
STRANGE = "héllo wörld — 中文 \U0001F600 quintessentially\tx += 17;\n"
TEXTS = [SUMS.prompt(PROBLEMS[0]), SUMS.review(PROBLEMS[0], " 3 + 4 = 7. The answer is 7."),
         STRANGE]


def bpe(fallback):
    """A BPE tokenizer of 800 tokens: over bytes as Qwen's, or with bytes to fall back on and a
    begin token as Gemma's."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    if fallback:
        special += [f"<0x{b:02X}>" for b in range(256)]
        core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        core.normalizer = normalizers.Replace(" ", "▁")
        core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                          decoders.Fuse()])
        alphabet = []
    else:
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = [SUMS.prompt(p) + SUMS.critique(p, " 1 + 1 = 2.") for p in PROBLEMS]
    texts += [json.dumps(packaged.__doc__), narrowing.__doc__, engine.__doc__]
    core.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=800, special_tokens=special, initial_alphabet=alphabet, show_progress=False))
    if fallback:  # bytes are no special tokens but plain ones
        written = json.loads(core.to_str())
        written["added_tokens"] = written["added_tokens"][:4]
        core = Tokenizer.from_str(json.dumps(written))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>",
                                   bos_token="<bos>", unk_token="<unk>")


SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048,
         "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


@pytest.fixture(scope="module", params=["qwen2", "gemma3"])
def folder(request, tmp_path_factory):
    """A tiny model in a folder: an untied Qwen2 over bytes, a tied Gemma 3 with byte fallback."""
    path = tmp_path_factory.mktemp("models") / request.param
    tokenizer = bpe(request.param == "gemma3")
    torch.manual_seed(0)
    if request.param == "qwen2":
        net = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), tie_word_embeddings=False,
                                           **SHAPE))
    else:
        net = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=len(tokenizer), head_dim=16, **SHAPE))
    net.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCKSMITH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def both(folder, tokens=600):
    """(the pair, its whole base, its narrowed one, the ids kept), in float32."""
    pair = loading.Pair("smoke", "sums", 0, str(folder), "", tokens=tokens)
    return pair, pair._replace(tokens=0).load("base", True), pair.load("base", True), pair.kept()


def test_logits_are_the_models_own_at_the_kept_ids(folder):
    _, whole, few, kept = both(folder)
    assert len(kept) == 600 < len(whole.tokenizer)
    assert few.net.config.vocab_size == len(few.tokenizer) == 600
    ids = few.begin(TEXTS[0])
    with torch.no_grad():
        found = few.net(torch.tensor([ids])).logits
        wanted = whole.net(torch.tensor([[kept[i] for i in ids]])).logits[..., list(kept)]
    assert torch.equal(found, wanted)


def test_texts_of_the_task_are_encoded_as_before_and_any_text_round_trips(folder):
    _, whole, few, kept = both(folder)
    for text in TEXTS[:2]:
        assert [kept[i] for i in few.begin(text)] == whole.begin(text)
    for text in TEXTS:
        assert few.decode(few.begin(text)) == text and few.decode(few.encode(text)) == text
    assert len(few.encode(STRANGE)) >= len(whole.encode(STRANGE))
    assert {kept[i] for i in few.stop} == set(whole.stop) & set(kept)
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        ours, theirs = (getattr(x.net.config, name) for x in (few, whole))
        assert kept[ours] == theirs and getattr(few.tokenizer, name) == ours


def test_sampling_is_that_of_the_whole_model_with_the_other_ids_masked(folder):
    _, whole, few, kept = both(folder)
    prompts = [few.ask(SUMS, problem) for problem in PROBLEMS]
    outside = torch.ones(len(whole.tokenizer), dtype=torch.bool)
    outside[list(kept)] = False
    found = engine.sample(few.net, prompts, 4, max_new_tokens=12, stop=few.stop, seed=3)
    masked = engine.Control(logits_processor=lambda x, _: x.masked_fill(outside, -torch.inf))
    wanted = engine.sample(whole.net, [[kept[i] for i in ids] for ids in prompts], 4,
                           max_new_tokens=12, stop={kept[i] for i in few.stop}, seed=3,
                           control=masked)
    assert [[kept[i] for i in ids] for ids in found.ids()] == wanted.ids()
    assert torch.allclose(found.logprobs, wanted.logprobs, atol=1e-5)


@pytest.mark.parametrize("where", ["few", "whole"])
def test_an_adapter_of_the_one_is_one_of_the_other(folder, tmp_path, where):
    _, whole, few, kept = both(folder)
    ids = torch.tensor([few.begin(TEXTS[0])])
    with torch.no_grad():
        before = few.net(ids).logits
    net = model.adapter({"few": few, "whole": whole}[where].net, 2, 0)
    for name, weight in net.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_adapter(net, tmp_path / "adapter")
    tuned = [loading.load(f"{folder}+{tmp_path / 'adapter'}", exact=True, kept=which).net
             for which in (kept, ())]
    with torch.no_grad():
        found, wanted = tuned[0](ids).logits, tuned[1](torch.tensor(kept)[ids]).logits
    assert torch.equal(found, wanted[..., list(kept)])
    assert not torch.allclose(found, before, atol=1e-3)


def test_what_is_left_out_is_measured_under_the_whole_model(folder):
    pair, whole, _, kept = both(folder)
    mean, worst = pair.left_out(n_problems=2, n=2, max_new_tokens=8)
    prompts = [whole.ask(SUMS, p) for p in pair.problems(2, "validation")]
    drawn = engine.sample(whole.net, prompts, 2, stop=whole.stop, max_new_tokens=8)
    masses = []
    for prompt, ids in zip(np.repeat(np.array(prompts, dtype=object), 2), drawn.ids()):
        with torch.no_grad():
            p = whole.net(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1:-1].softmax(-1)
        masses += (1 - p[:, list(kept)].sum(-1)).tolist()
    assert mean == pytest.approx(np.mean(masses), abs=1e-3)
    assert worst == pytest.approx(max(masses), abs=1e-2) and 0 < mean < worst < 1
    assert pair._replace(tokens=0).left_out() == (0.0, 0.0)


def test_both_models_of_a_pair_have_the_same_tokens_chosen_once(folder, monkeypatch):
    pair = loading.Pair("smoke", "sums", 0, str(folder), str(folder), tokens=590)
    kept, base = pair.kept(), pair.load("base")
    monkeypatch.setattr(narrowing, "_chosen", lambda *_: pytest.fail("chosen again"))
    loading._kept.cache_clear()
    assert pair._replace(seed=1).kept() == kept == tuple(sorted(kept))
    assert pair.load("thinking").tokenizer.get_vocab() == base.tokenizer.get_vocab()
    assert pair.load("untrained").net.config.vocab_size == 590


def test_too_few_tokens_and_other_tokenizers_are_refused_in_one_sentence(folder):
    pair = loading.Pair("smoke", "sums", 0, str(folder), "", tokens=100)
    with pytest.raises(errors.BadInput, match="tokens is 100 .* 0 for all, or from [0-9]+,"):
        pair.load("base")
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
    with pytest.raises(errors.BadInput, match="of kind WordLevel; allowed"):
        narrowing.check(words)


def test_the_toy_loses_the_bytes_of_no_text():
    pair = loading.Pair("toy", "sums", 0, "toy", "toy/thinking", tokens=245)
    few = pair.load("thinking")
    assert len(few.tokenizer) == few.net.config.vocab_size == 245
    assert few.decode(few.encode(STRANGE)) == STRANGE
    assert pair._replace(tokens=258).kept() == ()


def test_rows_that_run_on_past_their_end_are_not_counted(monkeypatch):
    """A GPU looks only now and then whether a row has ended."""
    model, prompts = loading.load("toy", exact=True), [[5, 6, 7], [8, 9, 10]]
    asked = model, range(200), prompts, 8, 48
    at_once = narrowing.left_out(*asked)
    monkeypatch.setitem(engine.LOOK_EVERY, "cpu", 16)
    monkeypatch.setitem(engine.DROP_AT, "cpu", 0.5)
    later = narrowing.left_out(*asked)
    assert len(later) == len(at_once) < 16 * 48
    assert torch.allclose(later.sort().values, at_once.sort().values, atol=1e-5)


def test_a_tokenizer_may_have_more_tokens_than_the_model():
    """As transformers' Qwen2 tokenizer has, which adds an end that a small model may not know."""
    toy = loading.load("toy")
    toy.tokenizer.add_special_tokens({"unk_token": "<|endoftext|>"})
    assert len(toy.tokenizer) == toy.net.config.vocab_size + 1
    problems = tasks.load("sums").problems("train", 2, 0, tasks.load("sums").GENERATOR)
    kept = narrowing.choose(toy, tasks.load("sums"), problems, 257, "more tokens")
    assert max(kept) < toy.net.config.vocab_size
    net, _ = narrowing.narrow(toy.net, toy.tokenizer, kept)
    assert net.config.vocab_size == len(kept) <= 257
