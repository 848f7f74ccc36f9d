"""The lab's model: a small `LlamaForCausalLM`, its fast training forward, and checkpoints on disk.

A checkpoint is a folder that `AutoModelForCausalLM` and `AutoTokenizer` load like any hub model,
plus manifest.json with the SHA-256 of its files, which `load` verifies.
"""

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from locksmith import device, errors, plain_yaml, vocabulary


class ModelError(errors.BadInput):
    """A checkpoint is missing or not what its manifest says."""


def build(config: dict, seed: int) -> LlamaForCausalLM:
    """A new model in fp32. config: hidden, layers, heads, mlp, context (tokens)."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(vocabulary.VOCABULARY), hidden_size=config["hidden"],
        intermediate_size=config["mlp"], num_hidden_layers=config["layers"],
        num_attention_heads=config["heads"], num_key_value_heads=config["heads"],
        max_position_embeddings=config["context"], tie_word_embeddings=True,
        pad_token_id=vocabulary.PAD, bos_token_id=vocabulary.BOS, eos_token_id=vocabulary.EOS))


def logits(model: LlamaForCausalLM,
           ids: Int[Tensor, "rows time"]) -> Float[Tensor, "rows time vocabulary"]:
    """Training forward of a Llama: ids right-padded -> logits in the dtype of `device.pick`,
    bf16 where the hardware multiplies it.

    The same function as the model's own forward under bf16 (a test says how close), with q, k, v
    and gate, up fused and attention written out: 1.2 to 1.9 times the tokens a second on one core,
    because at these sizes the backward of the fused CPU attention dominates. Weights are fp32 and
    cast once a call, so the optimiser needs no master copies.
    """
    config, dtype = model.config, device.pick(ids.device)[1]
    B, T = ids.shape
    H = config.num_attention_heads
    D = config.hidden_size // H
    cos, sin = model.model.rotary_emb(torch.empty(0, dtype=dtype, device=ids.device),
                                      torch.arange(T, device=ids.device)[None])
    cos, sin = cos[0, :, None, None], sin[0, :, None, None].clone()
    sin[..., :D // 2] *= -1  # rotate_half as a roll and a sign
    causal = torch.full((T, T), float("-inf"), dtype=dtype, device=ids.device).triu(1)

    def weight(*modules):
        return torch.cat([m.weight for m in modules]).to(dtype)

    def norm(x, module):
        return F.rms_norm(x, (x.shape[-1],), module.weight.to(dtype), config.rms_norm_eps)

    table = model.model.embed_tokens.weight.to(dtype)
    x = F.embedding(ids, table)
    for layer in model.model.layers:
        a, mlp = layer.self_attn, layer.mlp
        qkv = F.linear(norm(x, layer.input_layernorm), weight(a.q_proj, a.k_proj, a.v_proj))
        qkv = qkv.view(B, T, 3, H, D)
        qk, v = qkv[:, :, :2], qkv[:, :, 2]
        qk = qk * cos + torch.roll(qk, D // 2, -1) * sin
        q, k, v = (t.transpose(1, 2).reshape(B * H, T, D) for t in (qk[:, :, 0], qk[:, :, 1], v))
        scores = torch.baddbmm(causal, q, (k * D**-0.5).transpose(1, 2))
        mixed = (torch.softmax(scores, -1) @ v).view(B, H, T, D).transpose(1, 2)
        x = x + F.linear(mixed.reshape(B, T, H * D), weight(a.o_proj))
        gate, up = F.linear(norm(x, layer.post_attention_layernorm),
                            weight(mlp.gate_proj, mlp.up_proj)).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, weight(mlp.down_proj))
    return F.linear(norm(x, model.model.norm), table)


class _Unrounded(TorchFunctionMode):
    """Within it, `bfloat16()` copies a tensor and leaves it as precise as it is."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return args[0].clone() if func is Tensor.bfloat16 else func(*args, **(kwargs or {}))


class Muon(torch.optim.Muon):
    """torch's, which orthogonalises in bf16. A CPU that does not multiply that in hardware is ten
    times as fast in float32, and the lab's step spent two fifths of its time there."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        place = self.param_groups[0]["params"][0].device
        with nullcontext() if device.pick(place)[1] == torch.bfloat16 else _Unrounded():
            return super().step(closure)


def optimizer(model: nn.Module, muon_lr: float, adam_lr: float,
              weight_decay: float = 0.0) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the hidden matrices, AdamW for embeddings and norms: a pair of optimisers."""
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return (Muon(hidden, lr=muon_lr, weight_decay=weight_decay, momentum=0.95),
            torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0))


# --- adapters ------------------------------------------------------------------------------------


def adapter(net: PreTrainedModel, rank: int, seed: int) -> PeftModel:
    """`net` with a LoRA adapter on every linear map but the head, which alone is trained (Hu et al.
    2021, arXiv 2106.09685); it starts as no change."""
    torch.manual_seed(seed)
    return get_peft_model(net, LoraConfig(r=rank, lora_alpha=2 * rank, task_type="CAUSAL_LM",
                                          target_modules="all-linear"))


def round_frozen(adapted: PeftModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """Rounds the frozen weights that an adapter is added to: once and for all what autocast to
    `dtype` does before each product, and keeps for each way back. Returns them as they were, by
    name, for `merge_into`."""
    whole = {}
    for name, module in adapted.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            weight = module.get_base_layer().weight
            whole[name] = weight.data
            weight.data = weight.data.to(dtype)
    return whole


@torch.no_grad()
def merge_into(plain: PreTrainedModel, adapted: PeftModel, whole: dict[str, Tensor]) -> None:
    """Gives `plain`, a copy of the model that `adapted` wraps, in any dtype, the weights of its
    linear maps with the adapter added: as `merged`, but without a copy a call. whole: the weights
    without it, by name."""
    places, wrapped = (dict(x.named_modules()) for x in (plain, adapted.get_base_model()))
    for name, weight in whole.items():
        delta = wrapped[name].get_delta_weight(adapted.active_adapter)
        places[name].weight.copy_(weight + delta)


def merged(adapted: PeftModel) -> PreTrainedModel:
    """A plain model with the adapter added to its weights; `adapted` stays as it is."""
    return copy.deepcopy(adapted).merge_and_unload()


# --- checkpoints ---------------------------------------------------------------------------------


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save(model: LlamaForCausalLM, folder: str | Path, **facts: object) -> None:
    """Writes a bf16 checkpoint (safetensors, config, tokenizer, manifest); whole or not at all.

    facts: what the checkpoint comes from, kept in the manifest.
    """
    rounded = LlamaForCausalLM(model.config).to(torch.bfloat16)
    rounded.load_state_dict(model.state_dict())
    _write(Path(folder), [rounded, vocabulary.tokenizer()], facts)


def save_adapter(model: PeftModel, folder: str | Path, **facts: object) -> None:
    """Writes the LoRA weights of a `peft` model in bf16, with a manifest; whole or not at all."""
    config = model.peft_config["default"]
    config.target_modules = sorted(config.target_modules)  # a set's order differs between processes
    # peft would add the embeddings of a model over few of its tokens.
    _write(Path(folder), [model.to(torch.bfloat16)], facts, save_embedding_layers=False)


def _write(folder, parts, facts, **how):
    half = folder.with_name(folder.name + ".half")
    shutil.rmtree(half, ignore_errors=True)
    for part in parts:
        part.save_pretrained(half, **how)
    (half / "README.md").unlink(missing_ok=True)  # peft's empty model card
    files = {p.name: _sha256(p) for p in sorted(half.iterdir())}
    (half / "manifest.json").write_text(json.dumps({"files": files, **facts}, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    half.rename(folder)


def checksum(folder: str | Path) -> str:
    """SHA-256 of a checkpoint's weights (or its adapter's), as its manifest states it."""
    files = manifest(folder)["files"]
    return files.get("model.safetensors") or files["adapter_model.safetensors"]


def manifest(folder: str | Path) -> dict:
    """A checkpoint's manifest: `files`, the SHA-256 of each by name, and what it comes from.

    Raises ModelError where it cannot be read, or misses a file of the folder.
    """
    folder = Path(folder)
    path = folder / "manifest.json"
    if not path.is_file():
        raise ModelError(f"checkpoint {folder} is missing or incomplete: it has no manifest.json; "
                         f"`dvc pull` brings it, `dvc repro` makes it")
    try:
        content = json.loads(plain_yaml.text(path))
        files = content["files"]
        stated = {name: sha256 for name, sha256 in files.items()
                  if re.fullmatch("[0-9a-f]{64}", sha256) and Path(name).name == name}
    except json.JSONDecodeError as error:
        raise ModelError(f"checkpoint file {path} is corrupted: it is not whole JSON, line "
                         f"{error.lineno}") from None
    except (LookupError, TypeError, AttributeError, RecursionError):
        files, stated = None, {}
    if not stated or stated != files:
        raise ModelError(f"checkpoint file {path} is corrupted: it does not list the SHA-256 of "
                         "the files beside it")
    there = {file.name for file in folder.iterdir() if not file.name.startswith(".")}
    if there - {path.name} - set(files):
        raise ModelError(f"checkpoint {folder} is corrupted: its manifest does not list "
                         f"{min(there - {path.name} - set(files))}")
    if not any(name.endswith("model.safetensors") for name in files):
        raise ModelError(f"checkpoint {folder} is corrupted: it has no model.safetensors")
    return content


def load(folder: str | Path, dtype: torch.dtype = torch.float32,
         device: str | torch.device = "cpu") -> PreTrainedModel:
    """A lab checkpoint in eval mode, after its files were checked against the manifest.

    Raises ModelError naming the first file that is missing or has another checksum.
    """
    verify(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    return model.to(device).eval()


def adapted(base: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """`base` with the LoRA weights of a folder merged into it. Raises ModelError as `load` does."""
    verify(folder)
    return PeftModel.from_pretrained(base, folder).merge_and_unload()


def verify(folder: str | Path) -> None:
    """Raises ModelError naming the first file that is missing or not what the manifest says."""
    folder = Path(folder)
    for name, wanted in manifest(folder)["files"].items():
        path = folder / name
        found = _sha256(path) if path.is_file() else "no such file"
        if found != wanted:
            raise ModelError(f"checkpoint file {path} is corrupted: SHA-256 is {found}, "
                             f"its manifest says {wanted}")
