"""The engine over the architectures of transformers: each is exact, or refused in one sentence.

Tiny random models of every `AutoModelForCausalLM` whose configuration can be made small, against
their own forward without cache, padding or batch: tied and untied heads, sliding windows shorter
than the prompts, scaled rotary embeddings across their original length, prompts of very different
length in one batch, rows that end early. `python tests/test_architectures.py [name ...]` prints
what each architecture does, those too that `architectures.EXACT` leaves out.
"""

import sys
import warnings
from unittest import mock

import pytest
import torch
from locksmith import activations, architectures, engine
from locksmith.errors import BadInput
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    logging,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

# Whatever of this a configuration knows is set. Weights are large, so that mistakes show.
SMALL = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim",
                     "word_embed_proj_dim", "expert_hidden_size"], 32),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "num_experts",
                     "decoder_attention_heads", "encoder_attention_heads", "num_local_experts",
                     "n_routed_experts", "moe_num_experts", "num_moe_experts"], 4),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "dff", "d_ff", "n_inner", "decoder_ffn_dim",
                     "encoder_ffn_dim", "intermediate_size_mlp"], 48),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers",
                     "encoder_layers", "num_decoder_layers"], 2),
    **dict.fromkeys(["initializer_range", "init_std", "std"], 0.3),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_seq_len"], 64),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size",
                     "moe_shared_expert_intermediate_size"], 16),
    **dict.fromkeys(["sliding_window", "local_attention", "attention_chunk_size", "window_size",
                     "attention_window", "attention_window_size", "keep_window_size"], 5),
    **dict.fromkeys(["num_experts_per_tok", "num_key_value_heads", "moe_k"], 2),
    "vocab_size": 48, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "rotary_dim": 4, "n_group": 1, "topk_group": 1, "use_sliding_window": True,
    "max_window_layers": 1, "logit_scale": 1.0, "floor_scale": 4, "kv_channels": 8,
    "is_decoder": True}
LATENT = {"num_key_value_heads": 4, "head_dim": 4}  # attention over latent keys and values
MORE = {"gpt_neo": {"attention_types": [[["global", "local"], 1]]},
        **dict.fromkeys(["deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu",
                         "axk1"], LATENT)}
# Rotary embeddings whose original length lies inside each text.
TURN = 8
ROPES = {"linear": {"factor": 4.0}, "dynamic": {"factor": 4.0},
         "yarn": {"factor": 4.0, "original_max_position_embeddings": TURN},
         "llama3": {"factor": 4.0, "original_max_position_embeddings": TURN,
                    "low_freq_factor": 1.0, "high_freq_factor": 4.0},
         "longrope": {"factor": 4.0, "original_max_position_embeddings": TURN,
                      "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0]}}
# What a model is tried with: its configuration's own layers, then layers with a window between
# others; and what some architectures have beside.
WINDOWS = {"num_hidden_layers": 3,
           "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
TRIED = [{"tie_word_embeddings": True, "rope": "linear"},
         {"tie_word_embeddings": False, "rope": "yarn", **WINDOWS},
         {"tie_word_embeddings": True, "rope": "llama3", "attention": "eager"}]
BESIDE = {"falcon": [{"alibi": True}, {"new_decoder_architecture": True}],
          "gpt_bigcode": [{"multi_query": False}], "stablelm": [{"use_parallel_residual": True}],
          "gpt_neox": [{"use_parallel_residual": False}], "gpt2": [{"attention": "eager"}],
          "opt": [{"do_layer_norm_before": False}], "qwen2_moe": [{"decoder_sparse_step": 2}],
          "ministral3": [{"rope": "yarn", "beta": {"llama_4_scaling_beta": 0.5}}]}
PROMPTS = [[1, *range(5, 21)], [1, 9], [1, 3, 4, 3, 4, 3, 4, 3, 4], [1, 10, 11]]
BOUND = 1e-4


class NotBuilt(Exception):
    """A tiny model of the architecture cannot be made."""


def tiny(name, rope=None, attention=None, beta=None, **changes):
    """A random model of under 20 million numbers. rope: one of ROPES, where the configuration takes
    it; beta: more of its parameters; changes: of the text configuration."""
    try:
        whole = CONFIG_MAPPING[name]()
        text = whole.get_text_config()
        for part in [whole] if text is whole else [whole, text]:
            known = part.to_dict().keys()
            given = {k: v for k, v in {**SMALL, **MORE.get(name, {}), **changes}.items()
                     if k in known}
            if rope and getattr(part, "rope_parameters", None):
                given["rope_parameters"] = _scaled(part.rope_parameters, rope, beta or {})
            new = type(part)(**given)
            if part is whole:
                made = new
            else:
                setattr(made, next(k for k, v in vars(whole).items() if v is part), new)
        with torch.device("meta"):
            count = sum(x.numel() for x in AutoModelForCausalLM.from_config(made).parameters())
        if count > 2e7:
            raise ValueError(f"{count / 1e6:.0f} million numbers")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(made, attn_implementation=attention).eval()
        model(input_ids=torch.tensor([[1, 5, 6]]), use_cache=False)
    except Exception as error:  # transformers raises what it likes
        if rope:
            return tiny(name, None, attention, **changes)
        if "layer_types" in changes:
            return tiny(name, None, attention,
                        **{k: v for k, v in changes.items() if k not in WINDOWS})
        raise NotBuilt(f"{type(error).__name__}: {error}".split("\n")[0][:90]) from error
    config = model.config.get_text_config()
    if getattr(config, "max_position_embeddings", None) is None:
        config.max_position_embeddings = 64
    return model


def _scaled(own, kind, beta):
    how = {"rope_type": kind, "rope_theta": 100.0, **ROPES[kind], **beta}
    return {k: how for k in own} if any(isinstance(x, dict) for x in own.values()) else how


@torch.no_grad()
def worst(model, prompts=PROMPTS, n=2, new=10):
    """The largest difference of a log-probability from the model's own forward of each row alone,
    the whole text and its first half: that of `sample` and that of `score`."""
    out = engine.sample(model, prompts, n, max_new_tokens=new, stop=set(range(20, 28)), seed=3)
    again = engine.score(model, [prompts[i] for i in out.prompt], out.ids())
    gap = 0.0
    for at, ids, *both in zip(out.prompt, out.ids(), out.logprobs, again):
        prompt = prompts[at]
        text = torch.tensor([prompt + ids])
        own = model(input_ids=text, use_cache=False).logits[0].float().log_softmax(-1)
        said = own[len(prompt) - 1:-1][range(len(ids)), ids]
        gap = max(gap, *((x[:len(ids)] - said).abs().max().item() for x in both))
        k = len(ids) // 2
        alone = model(input_ids=text[:, :len(prompt) + k], use_cache=False).logits[0, -1]
        gap = max(gap, (alone.float().log_softmax(-1)[ids[k]] - said[k]).abs().item())
    return gap


def tried(name):
    """The tiny models of an architecture, with what was changed in each."""
    return [(how, tiny(name, **how)) for how in (*TRIED, *BESIDE.get(name, ()))]


# One name a class.
SUPPORTED = {kind: name for name, kind in NAMES.items() if kind in architectures.EXACT}.values()


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_supported_architecture_is_exact(name):
    """Log-probabilities of `sample` and of `score` within 1e-4 in float32, by the cache."""
    for how, model in tried(name):
        assert not architectures.altered(model) and worst(model) < BOUND, how


def test_every_supported_architecture_is_tried():
    assert {NAMES[name] for name in SUPPORTED} == architectures.EXACT


@pytest.mark.parametrize("name", [
    "bart", "bert", "bigbird_pegasus", "camembert", "cpmant", "deepseek_v4", "falcon_mamba",
    "gemma4_unified_text", "hrm_text", "inkling_text", "jamba", "lfm2", "mamba", "marian",
    "minimax", "mvp", "nemotron_h", "olmo_hybrid", "openai-gpt", "pegasus", "prophetnet",
    "qwen3_5_text", "qwen3_next", "recurrent_gemma", "roberta", "rwkv", "trocr", "whisper", "xlm",
    "xlnet", "xlstm"])
def test_another_architecture_is_refused_by_name(name):
    try:
        model = tiny(name)
    except NotBuilt:  # its own forward without cache fails, its class is the same
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name]())
    with pytest.raises(BadInput, match=f"a {NAMES[name]}, .* supported are decoders .* Llama"):
        engine.sample(model, PROMPTS, max_new_tokens=4, stop=())


def test_an_encoder_decoder_is_refused_by_name():
    model = T5ForConditionalGeneration(T5Config(
        vocab_size=48, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2))
    with pytest.raises(BadInput, match="a T5ForConditionalGeneration, "):
        engine.sample(model, PROMPTS, max_new_tokens=4, stop=())


@pytest.mark.parametrize("rope", ["linear", "yarn", "llama3"])
@pytest.mark.parametrize(
    "name", ["llama", "gemma3_text", "gpt_neox", "olmo2", "qwen3", "deepseek_v3"])
def test_scaled_rotary_embeddings_are_exact_across_their_original_length(name, rope):
    model = tiny(name, rope=rope)
    assert rope in str(model.config.rope_parameters) and worst(model) < BOUND


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3"])
def test_longrope_is_exact_on_either_side_of_its_original_length_and_refused_across(name):
    model = tiny(name, rope="longrope")
    assert worst(model, [[1, 5, 6], [1]], new=5) < BOUND
    assert worst(model, [list(range(1, 15)), list(range(1, 11))]) < BOUND
    for prompts in (PROMPTS, [list(range(1, 6))], [list(range(1, 9))]):
        with pytest.raises(BadInput, match=f"pass {TURN}, the original length .* longrope"):
            engine.sample(model, prompts, max_new_tokens=10, stop=())
    with pytest.raises(BadInput, match="longrope"):
        engine.score(model, [[1, 5]], [list(range(1, 10))])
    with pytest.raises(BadInput, match="longrope"):
        activations.residuals(model, PROMPTS, [0])


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_dynamic_scaling_is_exact_up_to_its_original_length_and_refused_beyond(name):
    model = tiny(name, rope="dynamic")
    assert worst(model) < BOUND
    model.config.max_position_embeddings = 200  # the embedding itself goes on at 64
    with pytest.raises(BadInput, match="pass 64, the original length .* dynamic"):
        engine.sample(model, PROMPTS, max_new_tokens=48, stop=())


def test_a_context_that_is_not_stated_is_asked_for():
    model = tiny("bloom")
    for missing in (None, -1):
        model.config.max_position_embeddings = missing
        for act in (lambda: engine.sample(model, PROMPTS, max_new_tokens=4, stop=()),
                    lambda: engine.score(model, [[1]], [[2]]),
                    lambda: activations.residuals(model, [[1]], [0])):
            with pytest.raises(BadInput, match=f"max_position_embeddings of the Bloom.* {missing}"):
                act()


# Exact in these tests, and refused all the same.
LEFT_OUT = {
    **dict.fromkeys(["bert", "bert-generation", "big_bird", "electra", "ernie", "megatron-bert",
                     "rembert", "roc_bert", "roformer"], "an encoder, looks ahead by default"),
    **dict.fromkeys(["bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart",
                     "pegasus", "plbart", "whisper"],
                    "part of an encoder-decoder, and with a cache it is not"),
    **dict.fromkeys(["emu3", "fuyu", "mllama"], "it reads images too"),
    "lfm2": "its own layers are convolutions, those of a tiny one are not",
    "minimax_m3_vl_text": "it selects blocks of 128 tokens, more than a tiny text has"}


def said(name):
    """What the engine does with an architecture, in words; those too that it does not support."""
    kind, everything = NAMES[name], mock.MagicMock()
    everything.__contains__.return_value = True
    found = []
    with mock.patch.object(architectures, "EXACT", everything):
        try:
            for _, model in tried(name):
                found.append(worst(model))
        except NotBuilt as error:
            return f"refused  not tried: {error}"
        except Exception as error:
            return f"refused  else {type(error).__name__}: {error}".split("\n")[0][:110]
    differs = f"{max(found):.0e} from its own forward in {len(found)} models"
    if kind in architectures.EXACT:
        return f"exact    {differs}"
    return f"refused  {differs}" + (f"; {LEFT_OUT[name]}" if max(found) < BOUND else "")


if __name__ == "__main__":
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    for each in sys.argv[1:] or NAMES:
        print(f"{each:25} {NAMES[each]:36} {said(each)}", flush=True)
