"""Three ways to run a decoder over rows of texts that grow token by token.

`runner` picks the quickest that gives what the model's own forward gives of each text alone:
`Fused` for plain Llamas of up to 1024 dimensions, with fused q/k/v and gate/up matrices and without
module calls; `Generic` for the other architectures of `architectures.EXACT`, by their own
`forward`; both write keys and values (R, heads, T, head_dim) a layer in place, into a cache that is
allocated once. `Whole` is for models that somebody altered: no cache, no padding, no batch.

All take `new` tokens (R, q) at columns [t, t + q). `pads` (R,) columns at the left of a row are
padding. `touch(layer, hidden)` is called after each block in `touched` and returns the residual
stream to go on with (by `Fused` and `Generic`).
"""

import inspect
from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.models.llama import modeling_llama as llama

from locksmith import architectures
from locksmith.errors import BadInput


def blocks(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The decoder blocks of any transformers decoder: the module list of the config's depth."""
    depth = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth:
            return module
    raise ValueError(f"no list of {depth} decoder blocks found in {type(model).__name__}")


def logits_to_keep(model: PreTrainedModel, last: int) -> dict[str, int]:
    """The argument that keeps the output head off all but the last positions, if there is one."""
    named = inspect.signature(architectures.unwrapped(model).forward).parameters
    return {"logits_to_keep": last} if "logits_to_keep" in named else {}


def runner(model: PreTrainedModel, *how: object) -> "Runner":
    """The quickest of the three that fits; how: (n_rows, n_columns, padded, touched, touch)."""
    if architectures.altered(model):
        return Whole(model, *how)
    return (Fused if Fused.fits(model) else Generic)(model, *how)


class Runner:
    def repeat(self, owner: Int[Tensor, " rows"], t: int) -> None:
        """Give row r the first t columns of row owner[r]: the samples of a shared prefill."""
        for pair in self.pairs():
            for x in pair:
                x[:len(owner), :, :t] = x[owner, :, :t]

    def move(self, src: Int[Tensor, " rows"], dst: Int[Tensor, " rows"], t: int) -> None:
        """Move the rows `src` into the places `dst` of finished rows."""
        for pair in self.pairs():
            for x in pair:
                x[dst, :, :t] = x[src, :, :t]


PARTS = {LlamaForCausalLM, llama.LlamaModel, llama.LlamaDecoderLayer, llama.LlamaAttention,
         llama.LlamaMLP, llama.LlamaRMSNorm, llama.LlamaRotaryEmbedding, type(ACT2FN["silu"]),
         nn.Linear, nn.Embedding, nn.ModuleList}


class Fused(Runner):
    """A `LlamaForCausalLM` in few calls: fused projections, residual additions in the matmul."""

    def __init__(self, model: LlamaForCausalLM, n_rows: int, n_columns: int, padded: bool,
                 touched: Collection[int], touch: Callable[[int, Tensor], Tensor]):
        c, body = model.config, model.model
        self.padded, self.touched, self.touch = padded, touched, touch
        self.eps = c.rms_norm_eps
        self.d = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        self.heads, self.kv_heads = c.num_attention_heads, c.num_key_value_heads
        self.embed, self.norm, self.head = (
            body.embed_tokens.weight, body.norm.weight, model.lm_head.weight)
        self.layers = [(
            b.input_layernorm.weight,
            torch.cat([m.weight for m in (b.self_attn.q_proj, b.self_attn.k_proj,
                                          b.self_attn.v_proj)]),
            b.self_attn.o_proj.weight.t(), b.post_attention_layernorm.weight,
            torch.cat([b.mlp.gate_proj.weight, b.mlp.up_proj.weight]),
            b.mlp.down_proj.weight.t()) for b in body.layers]
        shape = (n_rows, self.kv_heads, n_columns, self.d)
        self.cache = [(self.embed.new_empty(shape), self.embed.new_empty(shape))
                      for _ in self.layers]
        places = torch.arange(n_columns, device=self.embed.device)
        cos, sin = (x[0] for x in body.rotary_emb(self.embed, places[None]))
        # The rotation's minus sign stands in the table, once, and not in every layer of every step.
        sign = torch.arange(self.d, device=sin.device) < self.d // 2
        self.rope = cos, torch.where(sign, -sin, sin)

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether a model that nobody altered is, part by part, what is computed here."""
        if type(model) is not LlamaForCausalLM:
            return False
        c, parts = model.config, list(model.modules())

        def all_of(kind, ok):
            return all(ok(x) for x in parts if type(x) is kind)
        return (c.hidden_size <= 1024 and c._attn_implementation == "sdpa"
                and {type(x) for x in parts} <= PARTS
                and len(model.model.layers) == c.num_hidden_layers
                and model.model.rotary_emb.rope_type in ("default", "linear", "llama3")
                and all_of(nn.Linear, lambda x: x.bias is None)
                and all_of(nn.Embedding, lambda x: x.max_norm is None)
                and all_of(llama.LlamaRMSNorm, lambda x: x.variance_epsilon == c.rms_norm_eps)
                and all_of(llama.LlamaAttention, lambda x: x.scaling == x.head_dim ** -0.5)
                and all(x.is_floating_point() for x in model.parameters()))

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        return self.cache

    def close(self) -> None:
        self.touch = None  # a circle of references would keep the cache in memory

    def __call__(self, new: Int[Tensor, "rows new"], t: int,
                 pads: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Logits of the last of the new tokens."""
        rows, q = new.shape
        end, columns = t + q, torch.arange(t + q, device=new.device)
        at = (columns[t:] - pads[:, None]).clamp(min=0)
        bias, causal = None, q > 1
        if self.padded:
            ok = (columns >= pads[:, None])[:, None, None] & (columns <= columns[t:, None])
            ok |= columns == columns[t:, None]  # padding sees itself: no empty softmax
            bias = torch.zeros_like(ok, dtype=self.embed.dtype).masked_fill_(~ok, -torch.inf)
            causal = False
        cos, sin = (table[at][:, :, None] for table in self.rope)
        n_rot, dims = self.heads + self.kv_heads, self.embed.shape[1]
        h = self.embed[new].view(-1, dims)
        for i, (g1, w_qkv, w_o, g2, w_up, w_down) in enumerate(self.layers):
            x = F.linear(F.rms_norm(h, (dims,), g1, self.eps), w_qkv).view(rows, q, -1, self.d)
            a = x[:, :, :n_rot]
            left, right = a.chunk(2, -1)
            a = a * cos + torch.cat([right, left], -1) * sin
            keys, values = self.cache[i]
            keys[:rows, :, t:end] = a[:, :, self.heads:].transpose(1, 2)
            values[:rows, :, t:end] = x[:, :, n_rot:].transpose(1, 2)
            y = F.scaled_dot_product_attention(
                a[:, :, :self.heads].transpose(1, 2), keys[:rows, :, :end], values[:rows, :, :end],
                attn_mask=bias, is_causal=causal, enable_gqa=self.heads != self.kv_heads)
            h = torch.addmm(h, y.transpose(1, 2).reshape(rows * q, -1), w_o)
            gate, up = F.linear(F.rms_norm(h, (dims,), g2, self.eps), w_up).chunk(2, -1)
            h = torch.addmm(h, F.silu(gate) * up, w_down)
            if i in self.touched:
                h = self.touch(i, h.view(rows, q, -1)).view(-1, dims)
        h = h.view(rows, q, -1)[:, -1]
        return F.linear(F.rms_norm(h, (dims,), self.norm, self.eps), self.head)


NOT_ITS_OWN = ("a layer of the model does not write each token's keys and values once to a cache "
               "of its own; allowed: models in which each does")


class InPlace(CacheLayerMixin):
    """One layer of a preallocated cache for transformers' own forward functions. It keeps every
    column, so sliding windows are left to the model's mask."""
    is_sliding = False

    def __init__(self, n_rows: int, n_columns: int):
        super().__init__()
        self.n_rows, self.n_columns, self.t, self.end = n_rows, n_columns, 0, 0

    def lazy_initialization(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = (
            x.new_empty(self.n_rows, x.shape[1], self.n_columns, x.shape[3])
            for x in (keys, values))
        self.is_initialized = True

    def update(self, keys: Tensor, values: Tensor, *args: object,
               **kwargs: object) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        rows, end = len(keys), self.t + keys.shape[2]
        if self.end == end:
            raise BadInput(NOT_ITS_OWN)
        self.keys[:rows, :, self.t:end] = keys
        self.values[:rows, :, self.t:end] = values
        self.end = end
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.t + query_length, 0

    def get_seq_length(self) -> int:
        return self.t

    def get_max_length(self) -> int:
        return self.n_columns


class Generic(Runner):
    """Any decoder, through its own forward; steering and reading by hooks on its blocks."""

    def __init__(self, model: PreTrainedModel, n_rows: int, n_columns: int, padded: bool,
                 touched: Collection[int], touch: Callable[[int, Tensor], Tensor]):
        self.model, self.padded, self.running = model, padded, False
        self.cache = Cache(layer_class_to_replicate=lambda: InPlace(n_rows, n_columns))
        self.keep = logits_to_keep(model, 1)

        def hook(layer):
            def apply(module, args, out):
                if not self.running:  # the same model also reads along, with a runner of its own
                    return out
                if isinstance(out, tuple):
                    return (touch(layer, out[0]), *out[1:])
                return touch(layer, out)
            return apply
        self.hooks = [blocks(model)[i].register_forward_hook(hook(i)) for i in touched]

    def __call__(self, new: Int[Tensor, "rows new"], t: int,
                 pads: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Logits of the last of the new tokens."""
        for layer in self.cache.layers:
            layer.t = t
        columns = torch.arange(t + new.shape[1], device=new.device)
        mask = (columns >= pads[:, None]).long() if self.padded else None
        at = (columns[t:] - pads[:, None]).clamp(min=0)
        self.running = True
        out = self.model(input_ids=new, attention_mask=mask, position_ids=at,
                         past_key_values=self.cache, use_cache=True, **self.keep)
        self.running = False
        if {layer.end for layer in self.cache.layers} != {t + new.shape[1]}:
            raise BadInput(NOT_ITS_OWN)
        return out.logits[:, -1]

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        return [(x.keys, x.values) for x in self.cache.layers]

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()


class Whole(Runner):
    """A model that somebody altered, by its own forward over each row's whole text, alone, at every
    token: no cache, no padding, nothing left out."""

    def __init__(self, model: PreTrainedModel, n_rows: int, n_columns: int, padded: bool,
                 touched: Collection[int], touch: Callable[[int, Tensor], Tensor]):
        self.model = model
        self.ids = torch.zeros(n_rows, n_columns, dtype=torch.int64, device=model.device)
        self.logits = None

    def __call__(self, new: Int[Tensor, "rows new"], t: int,
                 pads: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Logits of the last of the new tokens."""
        end, before = t + new.shape[1], self.logits
        self.ids[:len(new), t:end] = new
        rows = []
        for row, pad in enumerate(pads.tolist()):
            # All of a row may still be padding; what is said of it is never looked at.
            said = own_logits(self.model, self.ids[row:row + 1, min(pad, end - 1):end])[0]
            if len(said) > 1 and t > pad and new.shape[1] == 1:
                check_causal(self.model, before[row], said[-2])
            rows.append(said[-1])
        self.logits = torch.stack(rows)
        return self.logits

    def pairs(self) -> list[tuple[Tensor]]:
        return [(self.ids[:, None],)]

    def repeat(self, owner: Int[Tensor, " rows"], t: int) -> None:
        super().repeat(owner, t)
        self.logits = self.logits[owner]

    def move(self, src: Int[Tensor, " rows"], dst: Int[Tensor, " rows"], t: int) -> None:
        super().move(src, dst, t)
        self.logits[dst] = self.logits[src]

    def close(self) -> None:
        self.logits = None


def own_logits(model: PreTrainedModel,
               ids: Int[Tensor, "rows time"]) -> Float[Tensor, "rows time vocabulary"]:
    """What the model's own forward says, without a cache."""
    named = inspect.signature(model.forward).parameters.values()
    free = any(x.name == "use_cache" or x.kind is x.VAR_KEYWORD for x in named)
    return model(input_ids=ids, **({"use_cache": False} if free else {})).logits


def check_causal(model: PreTrainedModel, alone: Float[Tensor, "..."],
                 followed: Float[Tensor, "..."]) -> None:
    """BadInput unless the logits of a position are the same where tokens follow it, but for
    rounding: what is drawn from them would not be what is scored."""
    room = 1e-3 if alone.dtype == torch.float32 else 0.1
    if (alone - followed).abs().max() > room * max(1.0, float(alone.abs().max())):
        raise BadInput(
            f"the {type(model).__name__}, with {architectures.altered(model)}, says something else "
            "of a token once others follow it; allowed: models that look back only")
