"""Three ways to run a decoder over rows of texts that grow token by token.

`runner` picks the quickest that gives what the model's own forward gives of each text alone:
`Fused` for plain Llamas of up to 1024 dimensions, with fused q/k/v and gate/up matrices and without
module calls; `Generic` for the other architectures of `architectures.EXACT`, by their own
`forward`; both write keys and values (R, heads, T, head_dim) a layer in place, into a cache that is
allocated once. `Whole` is for models that somebody altered: no cache, no padding, no batch.

All take `new` tokens (R, q) at columns [t, t + q). `pads` (R,) columns at the left of a row are
padding. `touch(layer, hidden)` is called after each block in `touched` and returns the residual
stream to go on with (by `Fused` and `Generic`).

On a GPU the first two are replayed from graphs (`graphs`), through `one`, which takes one token a
row at a column t (1,) that stands in a tensor, and attends to the first `end` columns with a mask.
"""

import inspect
from collections.abc import Callable, Collection
from types import ModuleType

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen2 import modeling_qwen2 as qwen2

from locksmith import architectures, cards, device, graphs
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
    kind = Fused if Fused.fits(model) else Generic
    if model.device.type != "cuda" or cards.sharded(model):  # no graph holds what cards exchange
        return kind(model, *how)
    n_rows, n_columns, *rest = how
    n_columns += -n_columns % 64  # kernels for masked attention want even widths
    return graphs.Replayed(kind(model, n_rows, n_columns, *rest), n_columns)


def room(like: Tensor, *shape: int) -> Tensor:
    """Memory for keys or values. On a GPU `one` reads columns that nobody has written, and gives
    them the weight 0, which a NaN that lies there would survive."""
    return like.new_zeros(shape) if like.is_cuda else like.new_empty(shape)


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


def parts_of(family: ModuleType, name: str) -> set[type]:
    """The classes that a plain model of a family of transformers is made of."""
    return {nn.Linear, nn.Embedding, nn.ModuleList, type(ACT2FN["silu"]),
            *(getattr(family, name + part) for part in (
                "ForCausalLM", "Model", "DecoderLayer", "Attention", "MLP", "RMSNorm",
                "RotaryEmbedding"))}


PARTS = {LlamaForCausalLM: parts_of(llama, "Llama"),
         qwen2.Qwen2ForCausalLM: parts_of(qwen2, "Qwen2")}


QKV = ("q_proj", "k_proj", "v_proj")


class Fused(Runner):
    """A Llama or a Qwen2 in few calls: fused projections, residual additions in the matmul."""

    def __init__(self, model: LlamaForCausalLM | qwen2.Qwen2ForCausalLM, n_rows: int,
                 n_columns: int, padded: bool, touched: Collection[int],
                 touch: Callable[[int, Tensor], Tensor]):
        c, body = model.config, model.model
        self.padded, self.touched, self.touch = padded, touched, touch
        self.eps = c.rms_norm_eps
        self.d = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        self.heads, self.kv_heads = c.num_attention_heads, c.num_key_value_heads
        self.embed, self.norm, self.head = (
            body.embed_tokens.weight, body.norm.weight, model.lm_head.weight)

        def qkv(block):
            return [getattr(block.self_attn, name) for name in QKV]
        self.layers = [(
            b.input_layernorm.weight, torch.cat([m.weight for m in qkv(b)]),
            torch.cat([m.bias for m in qkv(b)]) if qkv(b)[0].bias is not None else None,
            b.self_attn.o_proj.weight.t(), b.post_attention_layernorm.weight,
            torch.cat([b.mlp.gate_proj.weight, b.mlp.up_proj.weight]),
            b.mlp.down_proj.weight.t()) for b in body.layers]
        shape = (n_rows, self.kv_heads, n_columns, self.d)
        self.cache = [(room(self.embed, *shape), room(self.embed, *shape)) for _ in self.layers]
        places = torch.arange(n_columns, device=self.embed.device)
        cos, sin = (x[0] for x in body.rotary_emb(self.embed, places[None]))
        # The rotation's minus sign stands in the table, once, and not in every layer of every step.
        sign = torch.arange(self.d, device=sin.device) < self.d // 2
        self.rope = cos, torch.where(sign, -sin, sin)

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether a model that nobody altered is, part by part, what is computed here, and it pays:
        on a CPU for small Llamas, on a GPU wherever the fused copies of its matrices fit."""
        on_gpu, known = model.device.type == "cuda", PARTS.get(type(model))
        if known is None or not on_gpu and type(model) is not LlamaForCausalLM:
            return False
        c, parts = model.config, list(model.modules())
        size = sum(x.nbytes for x in model.parameters())

        def all_of(kind, ok):
            return all(ok(x) for x in parts if type(x).__name__.endswith(kind))
        with_bias = QKV if type(model) is qwen2.Qwen2ForCausalLM else ()
        return ((c.hidden_size <= 1024 or on_gpu and device.free_bytes(model.device) > 2 * size)
                and c._attn_implementation == "sdpa" and {type(x) for x in parts} <= known
                and "sliding_attention" not in (getattr(c, "layer_types", None) or ())
                and len(model.model.layers) == c.num_hidden_layers
                and model.model.rotary_emb.rope_type in ("default", "linear", "llama3")
                and all((x.bias is not None) == (name.rpartition(".")[2] in with_bias)
                        for name, x in model.named_modules() if type(x) is nn.Linear)
                and all_of("Embedding", lambda x: getattr(x, "max_norm", None) is None)
                and all_of("RMSNorm", lambda x: x.variance_epsilon == c.rms_norm_eps)
                and all_of("Attention", lambda x: x.scaling == x.head_dim ** -0.5)
                and all(x.is_floating_point() for x in model.parameters()))

    @staticmethod
    def copies(model: PreTrainedModel) -> int:
        """Bytes that are set aside on a GPU for the fused matrices of a model, at most."""
        on_gpu = model.device.type == "cuda" and not architectures.altered(model)
        return sum(x.nbytes for x in model.parameters()) if on_gpu and Fused.fits(model) else 0

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
        return self._logits(new, slice(t, end), end, at, bias, causal)

    def one(self, new: Int[Tensor, "rows 1"], t: Int[Tensor, " 1"], pads: Int[Tensor, " rows"],
            end: int) -> Float[Tensor, "rows vocabulary"]:
        """Logits of one new token a row, see above."""
        columns = torch.arange(end, device=new.device)
        ok = (columns >= pads[:, None]) & (columns <= t) | (columns == t)
        bias = torch.zeros_like(ok, dtype=self.embed.dtype).masked_fill_(~ok, -torch.inf)
        at = (t - pads[:, None]).clamp(min=0)
        return self._logits(new, t, end, at, bias[:, None, None], False, grouped=True)

    def _logits(self, new, where, end, at, bias, causal, grouped=False):
        """Logits of the last of the new tokens, which go to the columns `where` of the cache.
        grouped: the query heads of one token that share keys pass for so many tokens, so that a
        mask need not keep the kernels for shared keys away."""
        rows, q = new.shape
        cos, sin = (table[at][:, :, None] for table in self.rope)
        n_rot, dims = self.heads + self.kv_heads, self.embed.shape[1]
        h = self.embed[new].view(-1, dims)
        for i, (g1, w_qkv, b_qkv, w_o, g2, w_up, w_down) in enumerate(self.layers):
            x = F.linear(F.rms_norm(h, (dims,), g1, self.eps), w_qkv, b_qkv)
            x = x.view(rows, q, -1, self.d)
            a = x[:, :, :n_rot]
            left, right = a.chunk(2, -1)
            a = a * cos + torch.cat([right, left], -1) * sin
            keys, values = self.cache[i]
            keys[:rows, :, where] = a[:, :, self.heads:].transpose(1, 2)
            values[:rows, :, where] = x[:, :, n_rot:].transpose(1, 2)
            query = a[:, :, :self.heads].transpose(1, 2)
            if grouped:
                query = query.reshape(rows, self.kv_heads, -1, self.d)
            y = F.scaled_dot_product_attention(
                query, keys[:rows, :, :end], values[:rows, :, :end], attn_mask=bias,
                is_causal=causal, enable_gqa=not grouped and self.heads != self.kv_heads)
            if grouped:
                y = y.reshape(rows, self.heads, 1, self.d)
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
            room(x, self.n_rows, x.shape[1], self.n_columns, x.shape[3]) for x in (keys, values))
        self.is_initialized = True

    def update(self, keys: Tensor, values: Tensor, *args: object,
               **kwargs: object) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        rows = len(keys)
        if self.is_compileable:
            self.keys[:rows, :, self.t] = keys
            self.values[:rows, :, self.t] = values
            return self.keys[:rows, :, :self.end], self.values[:rows, :, :self.end]
        end = self.t + keys.shape[2]
        if self.end == end:
            raise BadInput(NOT_ITS_OWN)
        self.keys[:rows, :, self.t:end] = keys
        self.values[:rows, :, self.t:end] = values
        self.end = end
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    @property
    def is_compileable(self) -> bool:
        """Whether the place stands in a tensor: transformers' masks then cover all columns up to
        `end`, and none is left out."""
        return torch.is_tensor(self.t)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (self.end if self.is_compileable else self.t + query_length), 0

    def get_seq_length(self) -> int | Tensor:
        return self.t

    def get_max_length(self) -> int:
        return self.n_columns


class Generic(Runner):
    """Any decoder, through its own forward; steering and reading by hooks on its blocks."""

    def __init__(self, model: PreTrainedModel, n_rows: int, n_columns: int, padded: bool,
                 touched: Collection[int], touch: Callable[[int, Tensor], Tensor]):
        self.model, self.padded, self.touch, self.running = model, padded, touch, False
        self.cache = Cache(layer_class_to_replicate=lambda: InPlace(n_rows, n_columns))
        self.keep = logits_to_keep(model, 1)

        def hook(layer):
            def apply(module, args, out):
                if not self.running:  # the same model also reads along, with a runner of its own
                    return out
                if isinstance(out, tuple):
                    return (self.touch(layer, out[0]), *out[1:])
                return self.touch(layer, out)
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
        out = self._forward(new, mask, at)
        if {layer.end for layer in self.cache.layers} != {t + new.shape[1]}:
            raise BadInput(NOT_ITS_OWN)
        return out

    def one(self, new: Int[Tensor, "rows 1"], t: Int[Tensor, " 1"], pads: Int[Tensor, " rows"],
            end: int) -> Float[Tensor, "rows vocabulary"]:
        """Logits of one new token a row, see above."""
        for layer in self.cache.layers:
            layer.t, layer.end = t, end
        columns = torch.arange(end, device=new.device)
        mask = (columns >= pads[:, None]).long() if self.padded else None
        try:
            return self._forward(new, mask, (t - pads[:, None]).clamp(min=0))
        finally:
            for layer in self.cache.layers:
                layer.t, layer.end = 0, 0

    def _forward(self, new, mask, at):
        """Logits of the last of the new tokens, with touches on the way."""
        self.running = True
        try:
            return self.model(input_ids=new, attention_mask=mask, position_ids=at,
                              past_key_values=self.cache, use_cache=True,
                              **self.keep).logits[:, -1]
        finally:
            self.running = False

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        return [(x.keys, x.values) for x in self.cache.layers]

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.touch = None  # see `Fused.close`


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
