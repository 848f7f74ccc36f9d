"""What a model must be for its rollouts to be its own: known, plain, finite.

A cache is a shortcut, and left padding and batches are too. They give what the model's own forward
says of each text alone only if that forward looks back and nowhere else, at places that a cache
keeps. `EXACT` lists the architectures for which tests/test_architectures.py shows it, to 1e-4 in
float32, with left padding, with sliding windows shorter than a prompt and with scaled rotary
embeddings across their original length; `python tests/test_architectures.py` prints the table. All
others are refused. Of a known architecture anything may have been changed: `altered` finds code
that is not torch's, transformers' or LoRA's own. Such models are read without a cache, a text at a
time. A model over several cards (`cards`) is a plain one.
"""

import functools
import os
import sys
import sysconfig
from types import FunctionType, MethodType

import peft
import torch
import transformers
import typing_extensions
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules import module as torch_module
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from locksmith import cards
from locksmith.errors import BadInput

EXACT = frozenset({"GPT2LMHeadModel", "CTRLLMHeadModel"} | {name + "ForCausalLM" for name in """
    AXK1 Afmoe Apertus Arcee AriaText Beam BioGpt BitNet Bloom CodeGen Cohere Cohere2 Cohere2Moe Cwm
    DeepseekV2 DeepseekV3 DiffLlama Doge Ernie4_5 Ernie4_5_Moe Exaone4 ExaoneMoe Falcon FlexOlmo
    Flint GPTBigCode GPTJ GPTNeo GPTNeoX GPTNeoXJapanese Gemma Gemma2 Gemma3 Glm Glm4 Glm4Moe
    Glm4MoeLite GptOss Granite GraniteMoe GraniteMoeSWA GraniteMoeShared GraniteSWA HYV3 Helium
    HunYuanDenseV1 HunYuanMoEV1 HyperCLOVAX Jais2 JetMoe Kolibri1 Laguna Llama Llama4 Mellum
    MiMoV2Flash MiniCPM3 MiniMaxM2 Ministral Ministral3 Mistral Mixtral ModernBertDecoder Moshi Mpt
    NanoChat Nemotron OPT Olmo Olmo2 Olmo3 Olmoe Persimmon Phi Phi3 Phimoe Qwen2 Qwen2Moe Qwen3
    Qwen3Moe SeedOss SmolLM3 SolarOpen StableLm Starcoder2 VaultGemma XGLM Youtu
    """.split()})

# Modules of these packages act on each position by itself, but for attention over what was before.
PLAIN = ("torch.nn.modules.", "transformers.", "peft.tuners.lora.", "peft.tuners.tuners_utils",
         "peft.utils.other", "peft.peft_model")
SOURCES = (*(os.path.dirname(x.__file__) + os.sep for x in (torch, transformers, peft)),
           typing_extensions.__file__)  # its `deprecated` wraps functions of torch
# Hooks that hand out what passes by; the library's own are there while a model reads along with
# itself, or is read.
HARMLESS = "transformers.", "locksmith.cache", "locksmith.activations"
SHARDED = "torch.distributed.fsdp."  # where FSDP2's classes are, and those that it makes of others
PYTHON = sysconfig.get_path("stdlib") + os.sep


def text_config(model: PreTrainedModel) -> transformers.PretrainedConfig:
    """The configuration of the decoder. BadInput for an architecture that is not in `EXACT`."""
    bases = [x for x in type(unwrapped(model)).__mro__
             if x.__module__.startswith("transformers.models.")]
    if bases and bases[0].__name__ not in EXACT:
        raise BadInput(
            f"the model is a {bases[0].__name__}, for which a cache is not known to give what its "
            "own forward gives; supported are decoders that keep keys and values of every token in "
            "each layer, such as Gemma3, GPT2, Llama, Mistral, Phi3 and Qwen3 "
            f"({len(EXACT)} in all, in locksmith.architectures.EXACT)")
    config = getattr(model, "config", None)
    if not isinstance(config, transformers.PretrainedConfig):
        raise BadInput(f"the model is a {type(model).__name__}, which has no configuration of "
                       "transformers; allowed are transformers' decoders")
    return config.get_text_config()


def unwrapped(model: PreTrainedModel) -> PreTrainedModel:
    """The model inside a `PeftModel`; any other model is itself."""
    return model.get_base_model() if isinstance(model, peft.PeftModel) else model


def context(model: PreTrainedModel) -> int:
    """The most tokens of a text. BadInput where the configuration does not say it."""
    config = text_config(model)
    found = getattr(config, "max_position_embeddings", None)
    if not isinstance(found, int) or found < 1:
        raise BadInput(
            f"max_position_embeddings of the {type(unwrapped(model)).__name__} is {found!r}; "
            "allowed: a number of tokens, which may be set in model.config")
    return found


def check_lengths(model: PreTrainedModel, shortest: int, longest: int) -> None:
    """BadInput if texts of these lengths are read with different rotary frequencies: "dynamic" and
    "longrope" scaling turn all positions another way once a text passes the original length, which
    no cache can undo. Texts that are all on one side are read alike (but "dynamic" has a frequency
    for each length)."""
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        for layer, name in (kind.items() if isinstance(kind, dict) else [(None, kind)]):
            if name not in ("dynamic", "longrope"):
                continue
            given = module.config.rope_parameters
            given = given if layer is None else given[layer]
            turn = (module.original_max_seq_len if name == "dynamic" else
                    given["original_max_position_embeddings"])
            if longest > turn and (name == "dynamic" or shortest <= turn):
                raise BadInput(
                    f"texts of {shortest} to {longest} tokens pass {turn}, the original length of "
                    f"the model's {name} rotary embedding, where the frequencies of all positions "
                    f"change; allowed: texts of at most {turn} tokens" +
                    (", or longer ones alone" if name == "longrope" else ""))


def check_finite(model: nn.Module) -> None:
    """BadInput that names the first weight with a NaN or an infinity. One pass over the weights,
    as much as a single token costs. Of a model over several cards each process looks at its
    part."""
    parts = ((name, cards.local(x)) for name, x in model.named_parameters())
    weights = [(name, x) for name, x in parts if x.is_floating_point()
               and x.dtype.itemsize > 1 and x.numel() and x.device.type != "meta"]
    with torch.no_grad():
        ends = [torch.stack(x.aminmax()).float() for _, x in weights]
    if ends and not torch.stack([x.to(ends[0].device) for x in ends]).isfinite().all():
        name, x = next(pair for pair, end in zip(weights, ends) if not end.isfinite().all())
        raise BadInput(f"weight {name} holds {int((~x.isfinite()).sum())} numbers that are not "
                       f"finite, of {x.numel()}")


# --- what was changed in a model -----------------------------------------------------------------

def altered(model: nn.Module) -> str:
    """The first thing found in a model that a cache cannot be trusted with, as in "a hook on
    model.layers.1"; empty for a plain model."""
    config = getattr(model, "config", None)
    kind = getattr(config, "_attn_implementation", None)
    if kind not in ("sdpa", "eager"):
        return f"attention {kind!r}, which is neither sdpa nor eager"
    if kind == "sdpa" and not _own(ALL_ATTENTION_FUNCTIONS["sdpa"]):
        return "another function for attention sdpa"
    for name in ("is_causal", "use_bidirectional_attention"):
        if getattr(config, name, name == "is_causal") not in (name == "is_causal", None):
            return f"{name} {getattr(config, name)!r}"
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "hooks on all modules"
    classes = {}
    for name, module in model.named_modules():
        name = name or "the model"
        classes.setdefault(type(module), name)
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            harmless = isinstance(hook, FunctionType) and hook.__module__.startswith(HARMLESS)
            if not harmless and not _gathers(hook):
                return f"a hook on {name}"
        if module.__dict__.get("_compiled_call_impl") is not None:
            return f"{name} compiled"
        if not getattr(module, "is_causal", True):
            return f"{name} that is not causal"
        for key, value in vars(module).items():
            if not isinstance(value, nn.Module) and callable(value) and not _own(value):
                return f"{key} replaced in {name}"
        if any(getattr(x, "alora_invocation_tokens", None)
               for x in (getattr(module, "peft_config", None) or {}).values()):
            return "an adapter that is switched on by tokens"
    in_parts = any(kind.__module__.startswith(SHARDED) for kind in classes)
    for name, x in model.named_parameters():
        kind = DTensor if in_parts and type(x) is DTensor else nn.Parameter
        if type(x) is not kind or type(cards.local(x.data)) is not Tensor:
            return f"{type(x).__name__} {name}"
    return _altered_code(classes)


def _altered_code(classes):
    """`altered` for the code of classes {class: name of a module that has it}."""
    for kind, name in classes.items():
        if kind.__module__.startswith(SHARDED):
            kind = kind.__mro__[2]  # what was sharded
        if not kind.__module__.startswith(PLAIN):
            return f"{name} of class {kind.__module__}.{kind.__qualname__}"
    places = {base for kind in classes for base in kind.__mro__[:-1]}
    places |= {sys.modules[x.__module__] for x in places
               if x.__module__.startswith("transformers.models.")}
    for place in places:
        for name, value in vars(place).items():
            if isinstance(value, FunctionType) and not _own(value):
                return f"{name} replaced in {place.__name__}"
    return ""


def _gathers(hook):
    """Whether a hook is FSDP2's own, which puts a module's weights together while it computes."""
    owner = getattr(hook, "__self__", None)
    return type(owner).__module__.startswith(SHARDED) and _own(hook)


def _own(function):
    """Whether a function's code, and that of all it wraps, stands in torch, transformers, peft or
    Python."""
    while isinstance(function, FunctionType | MethodType | functools.partial):
        if isinstance(function, functools.partial):
            function = function.func
            continue
        file = function.__code__.co_filename
        if not file.startswith(SOURCES) and (not file.startswith(PYTHON) or "-packages" in file):
            return False
        function = getattr(function, "__wrapped__", None)
    return function is None or str(getattr(function, "__module__", "")).startswith(
        ("torch.", "transformers.", "peft."))
