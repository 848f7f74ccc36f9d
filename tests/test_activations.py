"""The residual stream of given texts, against transformers' own output_hidden_states."""

import pytest
import torch
from locksmith import activations, model
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel

TINY = {"hidden": 32, "layers": 3, "heads": 2, "mlp": 48, "context": 64}
TEXTS = [[3, 5, 8, 13, 21], [4], [7, 9, 7, 9, 7, 9, 7, 9, 2], [1, 2, 3]]
PLACES = [[4, 0], [0], [8, 3, 3], []]


def decoders():
    torch.manual_seed(0)
    small = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return {"llama": model.build(TINY, 0).eval(),
            "gpt2": GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=3, n_head=2, n_positions=64,
                                               **small)).eval(),
            "gemma3": Gemma3ForCausalLM(Gemma3TextConfig(
                hidden_size=32, num_hidden_layers=3, num_attention_heads=2, head_dim=16,
                num_key_value_heads=1, intermediate_size=48, max_position_embeddings=64,
                sliding_window=4, **small)).eval()}


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_the_stream_is_what_transformers_returns(name):
    net = decoders()[name]
    found = activations.residuals(net, TEXTS, [-1, 0, 1], PLACES, batch_tokens=12)
    scores = activations.logits(net, TEXTS, PLACES, batch_tokens=12)
    row = 0
    for ids, places in zip(TEXTS, PLACES, strict=True):
        with torch.no_grad():
            out = net(torch.tensor([ids]), output_hidden_states=True)
        for p in places:
            for layer in (-1, 0, 1):
                assert torch.allclose(found[layer][row], out.hidden_states[layer + 1][0, p],
                                      atol=1e-5)
            assert torch.allclose(scores[row], out.logits[0, p], atol=1e-5)
            row += 1
    assert row == len(scores) == len(found[0]) and found[0].dtype == torch.float32


def test_without_positions_every_token_is_read_and_no_hook_stays():
    net = decoders()["llama"]
    found = activations.residuals(net, TEXTS, [2])[2]
    assert found.shape == (sum(map(len, TEXTS)), 32)
    wanted = activations.residuals(net, TEXTS[2:3], [2], [[8]])[2][0]
    assert torch.allclose(found[5 + 1 + 8], wanted, atol=1e-5)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("change, says", [
    ({"layers": [3]}, "layers is"), ({"positions": [[5], [], [], []]}, r"positions\[0\] is"),
    ({"positions": [[0]]}, "one a text"), ({"positions": [[], [], [], []]}, "at least one"),
    ({"texts": [[1] * 65], "positions": None}, "text 0 has 65 tokens")])
def test_bad_input_is_named(change, says):
    given = {"texts": TEXTS, "layers": [0], "positions": PLACES, **change}
    with pytest.raises(ValueError, match=says):
        activations.residuals(decoders()["llama"], **given)
