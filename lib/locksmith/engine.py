"""Batched decoding of any causal decoder, with steering and with exact log-probabilities.

What makes it quick where `generate` is slow on small models:
1. the KV cache is allocated once and written in place (no concatenation at every token);
2. n samples of a prompt share its prefill;
3. finished rows leave the batch at once: the last live rows move into their places;
4. the output head sees only the last position (Gemma's 262k-token head never sees a prompt);
5. Llama-shaped models of up to 1024 dimensions run with fused q/k/v and gate/up matrices and
   without module calls; every other architecture runs its own `forward` on the same cache;
6. guide models, which read along (`guides`), take the same tokens at the same time, each with a cache of
   its own, so that a second opinion on every token costs one more forward pass and no re-reading.

Prompts of unequal length are padded on the left; positions count from a row's first real token.
The uniform number behind every token is a hash of (seed, key, sample, position), so a rollout does
not depend on its neighbours, on the batch size or on the order of the work (but for the rounding
of the matrix kernels, which may differ between batch shapes by a last bit).
"""

import inspect
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM
from transformers.cache_utils import Cache, CacheLayerMixin

from locksmith.device import check_memory

# Looking whether rows are finished makes a GPU wait, so there it is not done at every token.
LOOK_EVERY = {"cpu": 1}


@dataclass
class Rollouts:
    """R = prompts x n rollouts, prompt-major, padded on the right to T = the longest.

    tokens (R, T) int64; lengths (R,) int64, the stop token included; logprobs (R, T) float32 under
    the distribution actually sampled from (after temperature and top-p; 0 for greedy), 0 in the
    padding; stopped (R,) bool: ended with a stop token, not at the cap; prompt, sample (R,) int64;
    steered: how many vectors were added, counted over rows, positions and `Steer`s; steered_at
    (R, T) bool: the token was chosen at a steered position; reads: layer -> (R, T, D), the residual
    stream after that layer at the position where the token was chosen.
    """
    tokens: torch.Tensor
    lengths: torch.Tensor
    logprobs: torch.Tensor
    stopped: torch.Tensor
    prompt: torch.Tensor
    sample: torch.Tensor
    steered: int = 0
    steered_at: torch.Tensor | None = None
    reads: dict = field(default_factory=dict)

    def ids(self):
        """The continuations as lists of token ids, without padding."""
        return [row[:n] for row, n in zip(self.tokens.tolist(), self.lengths.tolist())]


@dataclass(frozen=True)
class Moment:
    """What a gate or a logits processor sees of R live rows: rows (R,) int64 of the output; tokens
    (R, S) so far, padded on the left; positions (R, q) absolute, of the q tokens now in the model (negative:
    padding); hidden (R, q, D), their residual stream after `layer` (None for a logits processor);
    prompt_lengths (R,); u (R,), the uniform number behind the token to be drawn next; guides, for
    each guide model its next-token logits (R, V) and its residual stream (R, D) at the
    last position, after the layer it was asked for (None where for none)."""
    layer: int | None
    rows: torch.Tensor
    tokens: torch.Tensor
    positions: torch.Tensor
    hidden: torch.Tensor | None
    prompt_lengths: torch.Tensor
    u: torch.Tensor
    guides: list


@dataclass(frozen=True)
class Steer:
    """Add `vector` (D,) to the residual stream after block `layer` (0 = the first).

    positions: absolute token positions (an iterable of ints; None = all). rows: output rows (ints
    or a bool mask over all R; None = all). gate: called with a `Moment` at the prefill and at every
    step, returns (R, q) strengths, bool or float, that multiply the vector; 0 = not steered. Where
    models read along, gates are first called at the last token of the prompt (q is always 1).
    vector may be K vectors (K, D): then there is a gate, which returns (R, q, K), a strength each.
    """
    layer: int
    vector: torch.Tensor
    positions: object = None
    rows: object = None
    gate: object = None


# --- random numbers -------------------------------------------------------------------------------

def _scramble(x):
    """The splitmix64 finaliser on int64 tensors (multiplication wraps, shifts made logical)."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def uniforms(seed, keys, samples, positions):
    """float64 in (0, 1), a pure function of four broadcastable int64 tensors (or ints)."""
    x = torch.zeros((), dtype=torch.int64)
    for part in (seed, keys, samples, positions):
        x = _scramble(x + torch.as_tensor(part, dtype=torch.int64) - 0x61C8864680B583EB)
    return (((x >> 11) & 0x1FFFFFFFFFFFFF).double() + 0.5) * 2.0**-53


def _draw(logits, u, temperature, top_p):
    """Tokens (R,) and their log-probabilities (R,) from logits (R, V) by inverse CDF at u (R,)."""
    if temperature == 0:
        token = logits.argmax(-1)
        return token, torch.zeros(len(token), device=logits.device)
    # On a CPU as many rows at a time as stay in its cache: Gemma's V is 262,144.
    rows = max(2**20 // logits.shape[1], 1) if logits.device.type == "cpu" else max(len(logits), 1)
    parts = zip(logits.split(rows), u.split(rows), strict=True)
    drawn = [_inverse_cdf(*part, temperature, top_p) for part in parts]
    return tuple(map(torch.cat, zip(*drawn, strict=True)))


def _inverse_cdf(logits, u, temperature, top_p):
    """What `_draw` returns, for the rows of one chunk and a temperature above 0."""
    scaled = logits.float() / temperature
    if top_p < 1:
        ordered, order = scaled.sort(-1, descending=True)
        p = ordered.softmax(-1)
        ordered = ordered.masked_fill(p.cumsum(-1) - p >= top_p, -torch.inf)
        scaled = torch.full_like(scaled, -torch.inf).scatter(-1, order, ordered)
    logsum = scaled.logsumexp(-1, keepdim=True)
    # In two levels, blocks of 512 tokens and then inside one, so that a large vocabulary is read
    # once and no cumulative sum is long enough to lose precision.
    p = scaled.sub_(logsum).exp_()
    size = min(512, p.shape[-1])
    p = F.pad(p, (0, -p.shape[-1] % size)).view(len(p), -1, size)
    wide = torch.float32 if p.device.type == "mps" else torch.float64
    # A sum of 512 is good enough in float32, a lone block's total is met by `cdf` in double.
    block_cdf = p.sum(-1, dtype=wide if p.shape[1] == 1 else None).cumsum(-1, dtype=wide)
    target = u.to(wide)[:, None] * block_cdf[:, -1:]
    block = (block_cdf <= target).sum(-1).clamp(max=p.shape[1] - 1)
    row = torch.arange(len(p), device=p.device)
    inside = p[row, block]
    cdf = inside.cumsum(-1, dtype=wide)
    target = target[:, 0] - block_cdf[row, block] + cdf[:, -1]
    # Rounding must not select a token of probability 0 at the end of a block.
    last = inside.shape[-1] - 1 - (inside > 0).flip(-1).int().argmax(-1)
    token = torch.minimum((cdf <= target[:, None]).sum(-1), last) + block * size
    return token, (logits.gather(-1, token[:, None]).float() / temperature - logsum)[:, 0]


# --- two ways to run a model on a preallocated cache ----------------------------------------------
# Both hold keys and values (R, heads, T, head_dim) a layer and take `new` tokens (R, q) at columns
# [t, t + q). `pads` (R,) columns at the left of a row are padding. `touch(layer, hidden)` is called
# after each block in `touched` and returns the residual stream to go on with.

class _Runner:
    def repeat(self, owner, t):
        """Give row r the first t columns of row owner[r]: the samples of a shared prefill."""
        for pair in self.pairs():
            for x in pair:
                x[:len(owner), :, :t] = x[owner, :, :t]

    def move(self, src, dst, t):
        """Move the rows `src` into the places `dst` of finished rows."""
        for pair in self.pairs():
            for x in pair:
                x[dst, :, :t] = x[src, :, :t]


class _Fused(_Runner):
    """A `LlamaForCausalLM` in few calls: fused projections, residual additions in the matmul."""

    def __init__(self, model, n_rows, n_columns, padded, touched, touch):
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
        cos, sin = body.rotary_emb(self.embed, torch.arange(n_columns, device=self.embed.device))
        # The rotation's minus sign stands in the table, once, and not in every layer of every step.
        sign = torch.arange(self.d, device=sin.device) < self.d // 2
        self.rope = cos, torch.where(sign, -sin, sin)

    @staticmethod
    def fits(model):
        c = model.config
        return (type(model) is LlamaForCausalLM and c.hidden_size <= 1024
                and c.hidden_act == "silu" and not c.attention_bias and not c.mlp_bias
                and c._attn_implementation == "sdpa"
                and model.model.rotary_emb.rope_type in ("default", "linear", "llama3")
                and all(p.is_floating_point() for p in model.parameters()))

    def pairs(self):
        return self.cache

    def close(self):
        self.touch = None  # a circle of references would keep the cache in memory

    def __call__(self, new, t, pads):
        """Logits (R, V) of the last of the new tokens."""
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


class _InPlace(CacheLayerMixin):
    """One layer of a preallocated cache for transformers' own forward functions. It keeps every
    column, so sliding windows are left to the model's mask."""
    is_sliding = False

    def __init__(self, n_rows, n_columns):
        super().__init__()
        self.n_rows, self.n_columns, self.t = n_rows, n_columns, 0

    def lazy_initialization(self, keys, values):
        self.keys, self.values = (
            x.new_empty(self.n_rows, x.shape[1], self.n_columns, x.shape[3])
            for x in (keys, values))
        self.is_initialized = True

    def update(self, keys, values, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        rows, end = len(keys), self.t + keys.shape[2]
        self.keys[:rows, :, self.t:end] = keys
        self.values[:rows, :, self.t:end] = values
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    def get_mask_sizes(self, query_length):
        return self.t + query_length, 0

    def get_seq_length(self):
        return self.t

    def get_max_length(self):
        return self.n_columns


def blocks(model):
    """The decoder blocks of any transformers decoder: the module list of the config's depth."""
    depth = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth:
            return module
    raise ValueError(f"no list of {depth} decoder blocks found in {type(model).__name__}")


class _Generic(_Runner):
    """Any decoder, through its own forward; steering and reading by hooks on its blocks."""

    def __init__(self, model, n_rows, n_columns, padded, touched, touch):
        self.model, self.padded, self.running = model, padded, False
        self.cache = Cache(layer_class_to_replicate=lambda: _InPlace(n_rows, n_columns))
        self.keep = _keep(model, 1)

        def hook(layer):
            def apply(module, args, out):
                if not self.running:  # the same model also reads along, with a runner of its own
                    return out
                if isinstance(out, tuple):
                    return (touch(layer, out[0]), *out[1:])
                return touch(layer, out)
            return apply
        self.hooks = [blocks(model)[i].register_forward_hook(hook(i)) for i in touched]

    def __call__(self, new, t, pads):
        """Logits (R, V) of the last of the new tokens."""
        for layer in self.cache.layers:
            layer.t = t
        columns = torch.arange(t + new.shape[1], device=new.device)
        mask = (columns >= pads[:, None]).long() if self.padded else None
        at = (columns[t:] - pads[:, None]).clamp(min=0)
        self.running = True
        out = self.model(input_ids=new, attention_mask=mask, position_ids=at,
                         past_key_values=self.cache, use_cache=True, **self.keep)
        self.running = False
        return out.logits[:, -1]

    def pairs(self):
        return [(x.keys, x.values) for x in self.cache.layers]

    def close(self):
        for hook in self.hooks:
            hook.remove()


def _keep(model, last):
    """The argument that keeps the output head off all but the last positions, if there is one."""
    named = inspect.signature(model.forward).parameters
    return {"logits_to_keep": last} if "logits_to_keep" in named else {}


def _runner(model, *how):
    return (_Fused if _Fused.fits(model) else _Generic)(model, *how)


class _Guide:
    """A model that reads along; after `layer` (None: nowhere) its residual stream is looked at."""

    def __init__(self, model, layer, *shape):
        self.hidden = None
        self.runner = _runner(model, *shape, [] if layer is None else [layer], self.look)

    def look(self, layer, hidden):
        self.hidden = hidden[:, -1]
        return hidden


# --- sampling -------------------------------------------------------------------------------------

def _mask(chosen, size, device):
    """A bool table (size,) of the chosen indices; a bool mask passes through; None chooses all."""
    if chosen is None:
        return torch.ones(size, dtype=torch.bool, device=device)
    chosen = torch.as_tensor(chosen if torch.is_tensor(chosen) else list(chosen), device=device)
    if chosen.dtype == torch.bool:
        return chosen
    table = torch.zeros(size, dtype=torch.bool, device=device)
    table[chosen[chosen < size].long()] = True
    return table


class _Batch:
    """One batch on its way: the live rows, their tokens so far, and what happens in the residual
    stream. Live rows are the first of every per-row tensor; `live` holds their output rows."""

    def __init__(self, prompts, owner, first_row, n_rows, max_new, steer, read, model, guides, u):
        # Not the first parameter's dtype: packed weights are integers, what they yield is not.
        p, size = (torch.empty(0, dtype=model.dtype, device=model.device),
                   model.config.get_text_config().hidden_size)
        self.device, self.first_row = p.device, first_row
        n, width = len(owner), max(map(len, prompts))
        self.width, self.owner = width, owner.to(p.device)
        self.u = (u.float() if p.device.type == "mps" else u).to(p.device)
        ids = torch.tensor([[0] * (width - len(x)) + x for x in prompts], device=p.device)
        self.ids = torch.cat([ids, ids.new_zeros(len(ids), max_new)], 1)
        self.pads = torch.tensor([width - len(x) for x in prompts], device=p.device)
        self.prompt_lengths = (width - self.pads)[self.owner]
        # Until the fan-out, a prompt's first sample stands for all of them.
        self.live = torch.searchsorted(owner, torch.arange(len(prompts))).to(p.device)
        self.done = torch.zeros(len(prompts), dtype=torch.bool, device=p.device)
        self.end, self.positions = 0, -self.pads[:, None]
        self.steers = {}
        for s in steer:
            self.steers.setdefault(s.layer, []).append(
                (s, s.vector.to(p), _mask(s.positions, width + max_new, p.device),
                 _mask(s.rows, n_rows, p.device)[first_row:first_row + n]))
        self.touched = sorted({*self.steers, *read})
        self.fired = self.forwards = 0
        self.count = torch.zeros(n, dtype=torch.int64, device=p.device)
        self.gated = torch.zeros_like(self.count)
        self.steered_at = torch.zeros(n, max_new, dtype=torch.bool, device=p.device)
        self.reads = {i: p.new_zeros(n, max_new, size) for i in read}
        shape = n, width + max_new, bool(self.pads.any())
        self.runner = _runner(model, *shape, self.touched, self.touch)
        self.guides = [_Guide(other, layer, *shape) for other, layer in guides]
        self.runners = [self.runner, *(x.runner for x in self.guides)]

    def forward(self, new, t):
        """Logits (R, V) after the tokens `new` (R, q) at columns t to t + q; who reads along has
        read them before."""
        self.t, self.end, self.forwards = t, t + new.shape[1], self.forwards + 1
        columns = torch.arange(t, self.end, device=self.device)
        self.positions = columns - self.pads[:, None]
        self.guide_outputs = [(x.runner(new, t, self.pads), x.hidden) for x in self.guides]
        return self.runner(new, t, self.pads)

    def moment(self, layer=None, hidden=None):
        return Moment(layer, self.live + self.first_row, self.ids[self.live_ids(), :self.end],
                      self.positions, hidden, self.width - self.pads,
                      self.u[self.live, self.end - self.width], self.guide_outputs)

    def touch(self, layer, hidden):
        """Steer and read the residual stream (R, q, D) after block `layer`."""
        self.fired += 1
        step = self.end - self.width  # index of the token that is chosen from the last position
        for s, vector, positions, rows in self.steers.get(layer, ()):
            on = (positions[self.positions.clamp(min=0)] & (self.positions >= 0)
                  & (rows[self.live] & ~self.done)[:, None])
            weight = on
            if s.gate is not None:
                if step < 0:
                    continue
                weight = s.gate(self.moment(layer, hidden))
                weight = weight * (on if vector.dim() == 1 else on[..., None])
                on = weight != 0 if vector.dim() == 1 else (weight != 0).any(-1)
                self.gated[self.live] += on.sum(1)
            if vector.dim() == 1:
                hidden = hidden + weight[..., None].to(hidden) * vector
            else:
                hidden = hidden + weight.to(hidden) @ vector
            self.count[self.live] += on.sum(1)
            if step >= 0:
                self.steered_at[self.live, step] |= on[:, -1]
        if layer in self.reads and step >= 0:
            self.reads[layer][self.live, step] = hidden[:, -1]
        return hidden

    def live_ids(self):
        """Rows of `ids` that belong to the live rows: before the fan-out there is one a prompt."""
        return slice(None) if len(self.ids) == len(self.live) else self.live

    def fan_out(self):
        """From one row a prompt to all its samples."""
        if len(self.ids) == len(self.owner):
            return
        for runner in self.runners if self.end else ():  # prompts of one token have no past
            runner.repeat(self.owner, self.end)
        source = self.live[self.owner]
        self.ids, self.pads, self.done, self.positions = (
            x[self.owner] for x in (self.ids, self.pads, self.done, self.positions))
        for x in (self.count, self.gated, self.steered_at, *self.reads.values()):
            x.copy_(x[source])
        self.live = torch.arange(len(self.owner), device=self.device)

    def drop_done(self):
        """Let the last live rows take the places of the finished ones; how many rows are left."""
        n = int((~self.done).sum())
        holes = self.done[:n].nonzero()[:, 0]
        movers = (~self.done[n:]).nonzero()[:, 0] + n
        for runner in self.runners:
            runner.move(movers, holes, self.end)
        for name in ("live", "pads", "done", "token"):
            x = getattr(self, name)
            x[holes] = x[movers]
            setattr(self, name, x[:n])
        return n

    def check_steered(self, lengths):
        """Every intended addition happened once: counted in the stream, and from the lengths."""
        if self.fired != self.forwards * len(self.touched):
            raise RuntimeError(f"the residual stream was touched {self.fired} times, not "
                               f"{self.forwards * len(self.touched)}")
        # The last token of a rollout is never fed to the model, so it cannot be steered.
        last = self.prompt_lengths + lengths - 2
        intended = self.gated.clone()
        for s, _, positions, rows in sum(self.steers.values(), []):
            if s.gate is None:
                intended += positions.long().cumsum(0)[last] * rows
        if not torch.equal(intended, self.count):
            raise RuntimeError(f"{int(self.count.sum())} positions were steered, not the intended "
                               f"{int(intended.sum())}")
        return self.count


def _decode(batch, max_new, stop, temperature, top_p, logits_processor):
    """Run one batch to its end: tokens and logprobs (R, max_new), lengths and stopped (R,)."""
    n, shared = len(batch.owner), len(batch.ids) < len(batch.owner)
    try:
        if batch.guides:
            # A gate may tell a prompt's samples apart at its last token, so they part before it.
            if batch.width > 1:
                batch.forward(batch.ids[:, :batch.width - 1], 0)
            batch.fan_out()
            logits = batch.forward(batch.ids[:, batch.width - 1:batch.width], batch.width - 1)
        else:
            logits = batch.forward(batch.ids[:, :batch.width], 0)
            if shared:
                logits = logits[batch.owner]
            batch.fan_out()
        is_stop = torch.zeros(logits.shape[1], dtype=torch.bool, device=batch.device)
        is_stop[sorted(stop)] = True
        tokens = batch.ids.new_zeros(n, max_new)
        logprobs = torch.zeros(n, max_new, device=batch.device)
        every = LOOK_EVERY.get(batch.device.type, 8)
        for step in range(max_new):
            if logits_processor is not None:
                logits = logits_processor(logits, batch.moment())
            token, logprob = _draw(logits, batch.u[batch.live, step], temperature, top_p)
            tokens[batch.live, step] = token
            logprobs[batch.live, step] = logprob
            if batch.steers or logits_processor is not None:
                batch.ids[batch.live, batch.width + step] = token
            batch.done = batch.done | is_stop[token]
            if step + 1 == max_new:
                break
            batch.token = token
            if step % every == 0 and batch.done.any() and not batch.drop_done():
                break
            logits = batch.forward(batch.token[:, None], batch.width + step)
    finally:
        for runner in batch.runners:
            runner.close()
    # Rows may have run past their stop; what was never drawn lies behind one, or is none.
    hit = is_stop[tokens] & (torch.arange(max_new, device=batch.device) <= step)
    stopped = hit.any(1)
    return tokens, logprobs, torch.where(stopped, hit.int().argmax(1) + 1, max_new), stopped


@torch.no_grad()
def sample(model, prompts, n=1, *, max_new_tokens, stop, temperature=1.0, top_p=1.0, seed=0,
           keys=None, batch_size=384, steer=None, read=None, guides=None, logits_processor=None):
    """Draw n rollouts from each of `prompts` (lists of token ids); returns `Rollouts`.

    stop: a token id or a set of them; a rollout ends with the first one (or at the cap alone, for
    an empty set). temperature 0 is greedy.
    keys: one integer a prompt that names it in the random numbers (default: its index), so that a
    problem keeps its rollouts whatever else is in the list. steer: a list of `Steer`. read: layers
    whose residual stream is returned (after steering).
    guides: models of the same vocabulary that read along, or pairs (model, layer) to show their
    residual stream after that layer too; gates and `logits_processor` see what they would say.
    logits_processor: called at every token with the logits (R, V) and a `Moment`, returns the logits
    (R, V) to draw from.
    ValueError for prompts that do not fit the model's context, MemoryError if the cache does not
    fit the memory.
    """
    stop = {stop} if isinstance(stop, int) else set(stop)
    steer, read = list(steer or ()), sorted(set(read or ()))
    guides = [x if isinstance(x, tuple) else (x, None) for x in guides or ()]
    prompts = [list(map(int, x)) for x in prompts]
    _check(model, prompts, n, max_new_tokens, stop, temperature, top_p, keys, steer, read,
           batch_size, guides)
    rows = torch.arange(len(prompts) * n)
    prompt, number = rows // n, rows % n
    keys = prompt if keys is None else torch.tensor(keys, dtype=torch.int64)[prompt]
    own = any(s.rows is not None or s.gate is not None and not guides for s in steer)
    training = {x: x.training for x in (model, *(other for other, _ in guides))}
    for x in training:
        x.eval()
    parts = []
    try:
        for part in rows.split(batch_size):
            # Rows that are steered differently cannot share the prefill of their prompt.
            owner = torch.arange(len(part)) if own else prompt[part] - prompt[part[0]]
            needed = [prompts[p] for p in (prompt[part] if own else prompt[part].unique())]
            starts = torch.tensor([len(x) for x in prompts])[prompt[part]]
            u = uniforms(seed, keys[part, None], number[part, None],
                         starts[:, None] + torch.arange(max_new_tokens))
            batch = _Batch(needed, owner, int(part[0]), len(rows), max_new_tokens, steer, read,
                           model, guides, u)
            tokens, logprobs, lengths, stopped = _decode(
                batch, max_new_tokens, stop, temperature, top_p, logits_processor)
            inside = torch.arange(max_new_tokens, device=tokens.device) < lengths[:, None]
            parts.append([tokens, lengths, logprobs * inside, stopped, batch.check_steered(lengths),
                          batch.steered_at & inside,
                          *(batch.reads[i] * inside[..., None] for i in read)])
    finally:
        for x, mode in training.items():
            x.train(mode)
    tokens, lengths, logprobs, stopped, steered, steered_at, *reads = map(torch.cat, zip(*parts))
    longest = int(lengths.max())
    pad = model.config.get_text_config().pad_token_id
    outside = torch.arange(longest, device=tokens.device) >= lengths[:, None]
    tokens = tokens[:, :longest].masked_fill(outside, min(stop, default=0) if pad is None else pad)
    return Rollouts(tokens, lengths, logprobs[:, :longest], stopped, prompt, number,
                    int(steered.sum()), steered_at[:, :longest] if steer else None,
                    {i: x[:, :longest] for i, x in zip(read, reads)})


def _check(model, prompts, n, max_new_tokens, stop, temperature, top_p, keys, steer, read, batch,
           guides):
    """One clear sentence for each kind of bad input."""
    text = model.config.get_text_config()
    others = [other.config.get_text_config() for other, _ in guides]
    context, depth = text.max_position_embeddings, text.num_hidden_layers
    for name, value, ok, allowed in (
            ("prompts", prompts, len(prompts) and all(prompts), "a list of non-empty lists of ids"),
            ("n", n, n >= 1, "at least 1"),
            ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1"),
            ("stop", stop, all(0 <= x < text.vocab_size for x in stop),
             f"token ids from 0 to {text.vocab_size - 1}"),
            ("temperature", temperature, temperature >= 0, "0 (greedy) or more"),
            ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
            ("keys", keys, keys is None or len(keys) == len(prompts), "one integer a prompt"),
            ("batch_size", batch, batch >= 1, "at least 1"),
            ("read", read, all(0 <= i < depth for i in read), f"layers from 0 to {depth - 1}"),
            ("steer", [s.layer for s in steer], all(0 <= s.layer < depth for s in steer),
             f"layers from 0 to {depth - 1}"),
            ("steer", [tuple(s.vector.shape) for s in steer],
             all(s.vector.shape[-1:] == (text.hidden_size,) and s.vector.dim() <= 1 + bool(s.gate)
                 for s in steer),
             f"vectors of shape ({text.hidden_size},), with a gate also (K, {text.hidden_size})"),
            ("guides", [(o.vocab_size, o.max_position_embeddings) for o in others],
             all(o.vocab_size == text.vocab_size and o.max_position_embeddings >= context
                 for o in others),
             f"a vocabulary of {text.vocab_size} and a context of at least {context} tokens"),
            ("guides", [layer for _, layer in guides],
             all(layer is None or 0 <= layer < o.num_hidden_layers
                 for o, (_, layer) in zip(others, guides, strict=True)),
             "layers of each model, or None")):
        if not ok:
            raise ValueError(f"{name} is {value!r}; allowed: {allowed}")
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    if len(prompts[longest]) + max_new_tokens > context:
        raise ValueError(
            f"prompt {longest} has {len(prompts[longest])} tokens and max_new_tokens is "
            f"{max_new_tokens}, together more than the model's context of {context}")
    # The cache, and four float32 copies of a step's logits.
    batch = min(batch, len(prompts) * n)
    columns = len(prompts[longest]) + max_new_tokens
    item, n_bytes = model.dtype.itemsize, 0
    for c in (text, *others):
        heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
        size = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        n_bytes += batch * (2 * c.num_hidden_layers * heads * size * columns * item
                            + 16 * text.vocab_size)
    n_bytes += len(read) * len(prompts) * n * max_new_tokens * text.hidden_size * item
    check_memory(n_bytes, f"sampling {batch} rows of up to {columns} tokens", model.device)


# --- scoring --------------------------------------------------------------------------------------

@torch.no_grad()
def score(model, prompts, continuations, temperature=1.0, batch_size=64, ranks=False):
    """Log-probabilities of given continuations, token by token, at a temperature (top-p 1).

    prompts, continuations: equally many lists of token ids. Returns a list of float32 tensors, one
    a continuation, of its length; with `ranks` a second list of int64 tensors beside it: how many
    tokens the model held likelier. ValueError for what does not fit the model's context.
    """
    text = model.config.get_text_config()
    if len(prompts) != len(continuations) or not all(map(len, prompts)):
        raise ValueError(f"prompts are {len(prompts)} and continuations {len(continuations)}; "
                         "allowed: as many of each, no prompt empty")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature!r}; allowed: above 0")
    texts = [[*a, *b] for a, b in zip(prompts, continuations)]
    for i, ids in enumerate(texts):
        if len(ids) > text.max_position_embeddings:
            raise ValueError(f"prompt {i} and its continuation have {len(ids)} tokens, more than "
                             f"the model's context of {text.max_position_embeddings}")
    # A large vocabulary allows only few rows: at most 512 MiB for one float32 copy of the logits.
    most = max(2**29 // (4 * text.vocab_size * max(map(len, texts))), 1)
    device, training = model.device, model.training
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = [None] * len(texts)
    model.eval()
    try:
        for start in range(0, len(order), min(batch_size, most)):
            chosen = order[start:start + min(batch_size, most)]
            # Padding on the right needs no mask in a causal model: nothing real looks at it.
            width = len(texts[chosen[-1]])
            ids = torch.tensor([texts[i] + [0] * (width - len(texts[i])) for i in chosen],
                               device=device)
            first = min(len(prompts[i]) for i in chosen) - 1
            logits = model(input_ids=ids, use_cache=False, **_keep(model, width - first)).logits
            logits = logits[:, first - width:-1].float() / temperature
            target = ids[:, first + 1:, None]
            at = logits.gather(-1, target)
            logprobs = (at - logits.logsumexp(-1, keepdim=True))[..., 0]
            rank = (logits > at).sum(-1) if ranks else logprobs
            for row, i in enumerate(chosen):
                span = slice(len(prompts[i]) - 1 - first, len(texts[i]) - 1 - first)
                out[i] = logprobs[row, span].clone(), rank[row, span].clone()
    finally:
        model.train(training)
    logprobs, rank = map(list, zip(*out)) if out else ([], [])
    return (logprobs, rank) if ranks else logprobs
