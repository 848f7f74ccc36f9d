"""The training forward against transformers' own; checkpoints that are cut, changed or killed."""

import hashlib
import json

import pytest
import torch
from locksmith import model, vocabulary
from peft import LoraConfig, get_peft_model

CONFIG = {"hidden": 32, "layers": 2, "heads": 2, "mlp": 64, "context": 64}


def net(seed=0, scale=8):
    """A random model whose weights are large enough that attention is not flat."""
    made = model.build(CONFIG, seed)
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim == 2:
                p.mul_(scale)
    return made.eval()


def batch(B=3, T=20):
    draw = torch.Generator().manual_seed(0)
    return torch.randint(3, len(vocabulary.VOCABULARY), (B, T), generator=draw)


def test_the_training_forward_is_the_models_own_function(monkeypatch):
    """In fp32, where nothing is rounded away: logits and every gradient."""
    monkeypatch.setattr(torch, "bfloat16", torch.float32)
    ours, theirs, ids = net(), net(), batch()
    out, wanted = model.logits(ours, ids), theirs(input_ids=ids).logits
    assert out.std() > 0.5 and (out - wanted).abs().max() < 1e-4
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * weight).sum().backward()
    (wanted * weight).sum().backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() < 1e-4 * q.grad.abs().max(), name


def test_in_bf16_it_is_as_near_to_fp32_as_the_models_own_bf16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    ids, exact = batch(), net()
    wanted = exact(input_ids=ids).logits
    theirs = net().to(torch.bfloat16)(input_ids=ids).logits.float()
    ours = model.logits(net(), ids)
    assert ours.dtype == torch.bfloat16
    error = (theirs - wanted).abs().mean()
    assert 0 < (ours.float() - wanted).abs().mean() < 1.5 * error


def test_what_follows_a_token_does_not_reach_it():
    ids = batch()
    changed = ids.clone()
    changed[:, 12:] = vocabulary.PAD
    assert torch.equal(model.logits(net(), ids)[:, :12], model.logits(net(), changed)[:, :12])


def test_each_matrix_has_one_optimiser():
    made = net()
    muon, adam = model.optimizer(made, 0.02, 0.003)
    matrices, rest = ([p for g in o.param_groups for p in g["params"]] for o in (muon, adam))
    assert len(matrices) == 7 * CONFIG["layers"] and all(p.ndim == 2 for p in matrices)
    assert sorted(map(id, [*matrices, *rest])) == sorted(map(id, made.parameters()))


@pytest.mark.parametrize("fast", [False, True])
def test_muon_orthogonalises_in_the_precision_that_is_fast(monkeypatch, fast):
    """Against the singular value decomposition and torch's polynomial (Jordan 2024, Muon)."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(12, 8))
    weight.grad = torch.randn(12, 8)
    model.Muon([weight], lr=1.0, weight_decay=0.0).step()
    left, size, right = torch.linalg.svd(weight.grad.double(), full_matrices=False)
    size = size / size.norm()
    for _ in range(5):
        size = 3.4445 * size - 4.7750 * size**3 + 2.0315 * size**5
    wanted = -(12 / 8)**0.5 * (left * size) @ right
    error = (weight - wanted).abs().max().item()
    assert (1e-4 < error < 0.05) if fast else error < 1e-5


@pytest.fixture
def checkpoint(tmp_path):
    model.save(net(), tmp_path / "seed0", tokens=12)
    return tmp_path / "seed0"


def test_a_checkpoint_comes_back_as_it_was_in_bf16(checkpoint):
    loaded = model.load(checkpoint)
    for (name, p), q in zip(loaded.named_parameters(), net().parameters(), strict=True):
        assert p.dtype == torch.float32 and torch.equal(p, q.to(torch.bfloat16).float()), name
    assert model.load(checkpoint, torch.bfloat16).dtype == torch.bfloat16
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert manifest["tokens"] == 12
    assert model.checksum(checkpoint) == manifest["files"]["model.safetensors"]


def test_saving_again_writes_the_same_bytes(checkpoint, tmp_path):
    model.save(net(), tmp_path / "again", tokens=12)
    for path in checkpoint.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_changed_file_is_named_with_both_checksums(checkpoint, name):
    path = checkpoint / name
    wanted = json.loads((checkpoint / "manifest.json").read_text())["files"][name]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(model.ModelError) as caught:
        model.load(checkpoint)
    message = str(caught.value)
    assert str(path) in message and wanted in message
    assert hashlib.sha256(path.read_bytes()).hexdigest() in message
    assert "\n" not in message


def test_a_missing_file_or_checkpoint_is_named(checkpoint, tmp_path):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(model.ModelError, match="model.safetensors.*no such file"):
        model.load(checkpoint)
    with pytest.raises(model.ModelError, match="seed7 is missing.*dvc pull"):
        model.load(tmp_path / "seed7")


def test_a_save_that_dies_halfway_leaves_the_old_checkpoint_whole(checkpoint, monkeypatch):
    class Died(Exception):
        pass

    def die():
        raise Died

    before = model.checksum(checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr(vocabulary, "tokenizer", die)
        for folder in (checkpoint, checkpoint.with_name("new")):
            with pytest.raises(Died):
                model.save(net(seed=1), folder)
    assert model.checksum(checkpoint) == before and model.load(checkpoint) is not None
    with pytest.raises(model.ModelError):
        model.load(checkpoint.with_name("new"))
    model.save(net(seed=1), checkpoint)
    assert model.checksum(checkpoint) != before
    assert not list(checkpoint.parent.glob("seed0.*"))


@pytest.fixture
def adapter(tmp_path):
    """A LoRA adapter with weights that are not zero, saved, and the merged logits it stands for."""
    torch.manual_seed(0)
    wrapped = get_peft_model(net(), LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)
                p.copy_(p.to(torch.bfloat16))
            if "lora_A" in name:
                p.copy_(p.to(torch.bfloat16))
    wanted = wrapped(input_ids=batch()).logits.detach()
    model.save_adapter(wrapped, tmp_path / "adapter", kind="test")
    return tmp_path / "adapter", wanted


def test_an_adapter_comes_back_on_its_base(adapter):
    folder, wanted = adapter
    assert (net()(input_ids=batch()).logits - wanted).abs().max() > 0.1
    merged = model.adapted(net(), folder)
    assert (merged(input_ids=batch()).logits - wanted).abs().max() < 1e-3 * wanted.abs().max()
    assert json.loads((folder / "manifest.json").read_text())["kind"] == "test"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert "README.md" not in {p.name for p in folder.iterdir()}


def test_a_changed_adapter_is_named(adapter):
    weights = adapter[0] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(model.ModelError, match="adapter_model.safetensors is corrupted"):
        model.adapted(net(), adapter[0])
