"""Batched decoding of causal decoders, with steering and with exact log-probabilities.

What makes it quick where `generate` is slow on small models:
1. the KV cache is allocated once and written in place (no concatenation at every token);
2. n samples of a prompt share its prefill, and so do equal prompts that follow each other;
3. finished rows leave the batch at once: the last live rows move into their places;
4. the output head sees only the last position (Gemma's 262k-token head never sees a prompt);
5. Llama-shaped models of up to 1024 dimensions run with fused q/k/v and gate/up matrices and
   without module calls; other architectures run their own `forward` on the same cache;
6. guide models, which read along, take the same tokens at the same time, each with a cache of its
   own, so that a second opinion on every token costs one more forward pass and no re-reading.

Prompts of unequal length are padded on the left; positions count from a row's first real token.
All this is for models known to say with it what they say without (`architectures`). Where somebody
altered one, by a hook, a wrapper or another forward, each row's whole text is read anew at every
token, by the model's own forward: slow, and never something else.
Random numbers and drawing are `drawing`'s, the forward passes `cache`'s, what is added to the
residual stream `steering`'s. A rollout does not depend on its neighbours, on the batch size or on
the order of the work (but for the rounding of the matrix kernels, which may differ between batch
shapes by a last bit).
"""

import warnings
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from locksmith import architectures, cache, drawing
from locksmith.device import check_memory
from locksmith.errors import BadInput
from locksmith.steering import Control, Moment, Steer, Steering

__all__ = ["Control", "Moment", "Rollouts", "Steer", "sample", "score"]

# Looking whether rows are finished makes a GPU wait, so there it is not done at every token.
LOOK_EVERY = {"cpu": 1}
# Another number of rows needs another graph there, so rows are dropped once half of them are done.
DROP_AT = {"cpu": 1.0}


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

    def ids(self) -> list[list[int]]:
        """The continuations as lists of token ids, without padding."""
        return [row[:n] for row, n in zip(self.tokens.tolist(), self.lengths.tolist())]


# --- sampling -------------------------------------------------------------------------------------

class _Guide:
    """A model that reads along; after `layer` (None: nowhere) its residual stream is looked at."""

    def __init__(self, model, layer, *shape):
        self.hidden = None
        self.runner = cache.runner(model, *shape, [] if layer is None else [layer], self.look)

    def look(self, layer, hidden):
        self.hidden = hidden[:, -1]
        return hidden


class _Batch:
    """One batch on its way: the live rows, their tokens so far, and what happens in the residual
    stream. Live rows are the first of every per-row tensor; `live` holds their output rows.

    owner (R,): which of `prompts` each row continues; u (R, max_new): the uniform numbers behind
    its tokens; first_row: the place of the first among the n_rows of all batches.
    """

    def __init__(self, model, control, prompts, owner, u, first_row, n_rows):
        # Not the first parameter's dtype: packed weights are integers, what they yield is not.
        like = torch.empty(0, dtype=model.dtype, device=model.device)
        (n, max_new), width = u.shape, max(map(len, prompts))
        self.device, self.width, self.first_row = like.device, width, first_row
        self.owner = owner.to(self.device)
        self.u = (u.float() if self.device.type == "mps" else u).to(self.device)
        ids = torch.tensor([[0] * (width - len(x)) + x for x in prompts], device=self.device)
        self.ids = torch.cat([ids, ids.new_zeros(len(ids), max_new)], 1)
        self.pads = torch.tensor([width - len(x) for x in prompts], device=self.device)
        self.prompt_lengths = (width - self.pads)[self.owner]
        # Until the fan-out, a prompt's first sample stands for all of them.
        self.live = torch.searchsorted(owner, torch.arange(len(prompts))).to(self.device)
        self.done = torch.zeros(len(prompts), dtype=torch.bool, device=self.device)
        self.end, self.forwards, self.positions = 0, 0, -self.pads[:, None]
        rows = slice(first_row, first_row + n)
        self.steering = Steering(control.steer, rows, n_rows, width, max_new, like)
        size = model.config.get_text_config().hidden_size
        self.reads = {layer: like.new_zeros(n, max_new, size) for layer in control.read}
        self.touched = sorted({*self.steering.by_layer, *control.read})
        shape = n, width + max_new, bool(self.pads.any())
        self.runner = cache.runner(model, *shape, self.touched, self.touch)
        self.guides = [_Guide(guide, layer, *shape) for guide, layer in control.guides]
        self.runners = [self.runner, *(x.runner for x in self.guides)]

    def forward(self, new, t):
        """Logits (R, V) after the tokens `new` (R, q) at columns t to t + q; guides have read them
        before."""
        self.end, self.forwards = t + new.shape[1], self.forwards + 1
        self.positions = torch.arange(t, self.end, device=self.device) - self.pads[:, None]
        self.guide_outputs = [(x.runner(new, t, self.pads), x.hidden) for x in self.guides]
        return self.runner(new, t, self.pads)

    def moment(self, layer=None, hidden=None):
        return Moment(layer, self.live + self.first_row, self.ids[self.live_ids(), :self.end],
                      self.positions, hidden, self.width - self.pads,
                      self.u[self.live, self.end - self.width], self.guide_outputs, self.done)

    def touch(self, layer, hidden):
        """Steer and read the residual stream (R, q, D) after block `layer`."""
        hidden = self.steering.apply(layer, hidden, self)
        step = self.end - self.width
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
        self.steering.fan_out(source)
        for x in self.reads.values():
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

    def steered(self, lengths):
        """(R,) vectors added to each row, after a look whether they are those that were
        intended."""
        self.steering.check(self.prompt_lengths, lengths, self.forwards * len(self.touched))
        return self.steering.count


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
        every = LOOK_EVERY.get(batch.device.type, 16)
        share = DROP_AT.get(batch.device.type, 0.5)
        for step in range(max_new):
            if logits_processor is not None:
                logits = logits_processor(logits, batch.moment())
            token, logprob = drawing.draw(logits, batch.u[batch.live, step], temperature, top_p)
            tokens[batch.live, step] = token
            logprobs[batch.live, step] = logprob
            if batch.steering.by_layer or logits_processor is not None:
                batch.ids[batch.live, batch.width + step] = token
            batch.done = batch.done | is_stop[token]
            if step + 1 == max_new:
                break
            batch.token = token
            if step % every == 0 and batch.done.any():
                left = int((~batch.done).sum())
                if left <= share * len(batch.done):
                    batch.drop_done()
                if not left:
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
def sample(model: PreTrainedModel, prompts: Sequence[Sequence[int]], n: int = 1, *,
           max_new_tokens: int, stop: int | Set[int], temperature: float = 1.0, seed: int = 0,
           keys: Sequence[int] | None = None, batch_size: int = 384,
           control: Control | None = None) -> Rollouts:
    """Draw n rollouts from each of `prompts` (lists of token ids); returns `Rollouts`.

    stop: a token id or a set of them; a rollout ends with the first one (or at the cap alone, for
    an empty set). temperature 0 is greedy.
    keys: one integer a prompt that names it in the random numbers (default: its index), so that a
    problem keeps its rollouts whatever else is in the list. control: see `Control`.
    ValueError for prompts that do not fit the model's context, for an architecture that is not
    supported and for weights or logits that are not finite; MemoryError if the cache does not fit
    the memory.
    """
    stop = {stop} if isinstance(stop, int) else set(stop)
    prompts, control = [list(map(int, x)) for x in prompts], control or Control()
    _check(model, prompts, n, max_new_tokens, stop, temperature, keys, batch_size, control)
    rows = torch.arange(len(prompts) * n)
    prompt, number = rows // n, rows % n
    keys = prompt if keys is None else torch.tensor(keys, dtype=torch.int64)[prompt]
    own = any(s.rows is not None or s.gate is not None and not control.guides
              for s in control.steer)
    # Rows that are steered differently cannot share a prefill; else equal neighbours have one.
    new = torch.tensor([i > 0 and x != prompts[i - 1] for i, x in enumerate(prompts)])
    text = rows if own else new.cumsum(0)[prompt]
    training = {x: x.training for x in (model, *(guide for guide, _ in control.guides))}
    for x in training:
        x.eval()
    parts = []
    try:
        for part in rows.split(batch_size):
            owner = text[part] - text[part[0]]
            first = torch.searchsorted(owner, torch.arange(int(owner[-1]) + 1))
            needed = [prompts[p] for p in prompt[part[first]]]
            starts = torch.tensor([len(x) for x in prompts])[prompt[part]]
            u = drawing.uniforms(seed, keys[part, None], number[part, None],
                         starts[:, None] + torch.arange(max_new_tokens))
            batch = _Batch(model, control, needed, owner, u, int(part[0]), len(rows))
            tokens, logprobs, lengths, stopped = _decode(
                batch, max_new_tokens, stop, temperature, control.top_p, control.logits_processor)
            inside = torch.arange(max_new_tokens, device=tokens.device) < lengths[:, None]
            _check_finite(logprobs.masked_fill(~inside, 0), prompt[part], model.dtype)
            parts.append([tokens, lengths, logprobs * inside, stopped, batch.steered(lengths),
                          batch.steering.at & inside,
                          *(batch.reads[i] * inside[..., None] for i in control.read)])
    finally:
        for x, mode in training.items():
            x.train(mode)
    tokens, lengths, logprobs, stopped, steered, steered_at, *reads = map(torch.cat, zip(*parts))
    longest = int(lengths.max())
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    outside = torch.arange(longest, device=tokens.device) >= lengths[:, None]
    tokens = tokens[:, :longest].masked_fill(outside, min(stop, default=0) if pad is None else pad)
    return Rollouts(tokens, lengths, logprobs[:, :longest], stopped, prompt, number,
                    int(steered.sum()), steered_at[:, :longest] if control.steer else None,
                    {i: x[:, :longest] for i, x in zip(control.read, reads)})


def _check(model, prompts, n, max_new_tokens, stop, temperature, keys, batch, control):
    """One clear sentence for each kind of bad input."""
    steer, read, top_p = control.steer, control.read, control.top_p
    text, *others = map(architectures.text_config, (model, *(x for x, _ in control.guides)))
    context, *contexts = map(architectures.context, (model, *(x for x, _ in control.guides)))
    depth = text.num_hidden_layers
    for name, value, ok, allowed in (
            ("prompts", prompts, len(prompts) and all(
                x and 0 <= min(x) and max(x) < text.vocab_size for x in prompts),
             f"a list of non-empty lists of ids from 0 to {text.vocab_size - 1}"),
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
            ("steer", [s.vector.tolist() for s in steer],
             all(s.vector.isfinite().all() for s in steer), "vectors of finite numbers"),
            ("guides", [(o.vocab_size, c) for o, c in zip(others, contexts)],
             all(o.vocab_size == text.vocab_size and c >= context
                 for o, c in zip(others, contexts)),
             f"a vocabulary of {text.vocab_size} and a context of at least {context} tokens"),
            ("guides", [layer for _, layer in control.guides],
             all(layer is None or 0 <= layer < o.num_hidden_layers
                 for o, (_, layer) in zip(others, control.guides, strict=True)),
             "layers of each model, or None")):
        if not ok:
            raise ValueError(f"{name} is {value!r}; allowed: {allowed}")
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    if len(prompts[longest]) + max_new_tokens > context:
        raise ValueError(
            f"prompt {longest} has {len(prompts[longest])} tokens and max_new_tokens is "
            f"{max_new_tokens}, together more than the model's context of {context}")
    columns = len(prompts[longest]) + max_new_tokens
    for x, touched in ((model, steer or read), *((g, at is not None) for g, at in control.guides)):
        _check_model(x, min(map(len, prompts)), columns, touched)
    # The cache, four float32 copies of a step's logits, on a GPU also copies of the weights.
    batch = min(batch, len(prompts) * n)
    item = model.dtype.itemsize
    n_bytes = sum(map(cache.Fused.copies, {model, *(guide for guide, _ in control.guides)}))
    for c in (text, *others):
        heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
        size = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        n_bytes += batch * (2 * c.num_hidden_layers * heads * size * columns * item
                            + 16 * text.vocab_size)
    n_bytes += len(read) * len(prompts) * n * max_new_tokens * text.hidden_size * item
    check_memory(n_bytes, f"sampling {batch} rows of up to {columns} tokens", model.device)


def _check_model(model, shortest, longest, touched):
    """BadInput if what the engine would draw is not known to be the model's own; touched: whether
    its residual stream is steered or read."""
    # Prompts may be read without their last token first.
    architectures.check_lengths(model, max(shortest - 1, 1), longest)
    architectures.check_finite(model)
    why = architectures.altered(model)
    if why and touched:
        raise BadInput(f"the {type(model).__name__} has {why}, so its residual stream cannot be "
                       "steered or read as it samples; allowed: models as transformers makes them")
    if why:
        warnings.warn(f"the {type(model).__name__} has {why}: every token reads its whole text "
                      "anew, without a cache, which is slow", stacklevel=4)


def _check_finite(logprobs, prompt, dtype):
    """BadInput if the model (its weights are finite), or a logits processor, said NaN or inf."""
    bad = (~logprobs.isfinite()).nonzero().tolist()
    if bad:
        row, step = bad[0]
        raise BadInput(f"the logits of prompt {int(prompt[row])} are not finite after {step} new "
                       f"tokens, though the model's weights are ({dtype})")


# --- scoring --------------------------------------------------------------------------------------

@torch.no_grad()
def score(model: PreTrainedModel, prompts: Sequence[Sequence[int]],
          continuations: Sequence[Sequence[int]], temperature: float = 1.0, batch_size: int = 64,
          ranks: bool = False) -> list[Tensor] | tuple[list[Tensor], list[Tensor]]:
    """Log-probabilities of given continuations, token by token, at a temperature.

    prompts, continuations: equally many lists of token ids. Returns a list of float32 tensors, one
    a continuation, of its length; with `ranks` a second list of int64 tensors beside it: how many
    tokens the model held likelier. ValueError for what does not fit the model's context.
    """
    texts = _texts(model, prompts, continuations, temperature)
    # A large vocabulary allows only few rows: at most 512 MiB for one float32 copy of the logits.
    size = 4 * model.config.get_text_config().vocab_size * max(map(len, texts), default=1)
    alone = bool(architectures.altered(model))
    rows = 1 if alone else min(batch_size, max(2**29 // size, 1))
    training = model.training
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = [None] * len(texts)
    model.eval()
    try:
        for start in range(0, len(order), rows):
            chosen = order[start:start + rows]
            # Padding on the right needs no mask in a causal model: nothing real looks at it.
            width = len(texts[chosen[-1]])
            ids = torch.tensor([texts[i] + [0] * (width - len(texts[i])) for i in chosen],
                               device=model.device)
            first = min(len(prompts[i]) for i in chosen) - 1
            if alone:
                logits = cache.own_logits(model, ids)
                part = cache.own_logits(model, ids[:, :first + 1])
                cache.check_causal(model, part[:, -1], logits[:, first - width])
            else:
                logits = model(input_ids=ids, use_cache=False,
                               **cache.logits_to_keep(model, width - first)).logits
            logits = logits[:, first - width:-1].float() / temperature
            target = ids[:, first + 1:, None]
            at = logits.gather(-1, target)
            logprobs = (at - logits.logsumexp(-1, keepdim=True))[..., 0]
            rank = (logits > at).sum(-1) if ranks else logprobs
            for row, i in enumerate(chosen):
                span = slice(len(prompts[i]) - 1 - first, len(texts[i]) - 1 - first)
                out[i] = logprobs[row, span].clone(), rank[row, span].clone()
                if out[i][0].isnan().any():
                    raise BadInput(f"the logits of prompt {i} and its continuation are not finite, "
                                   f"though the model's weights are ({model.dtype})")
    finally:
        model.train(training)
    logprobs, rank = map(list, zip(*out)) if out else ([], [])
    return (logprobs, rank) if ranks else logprobs


def _texts(model, prompts, continuations, temperature):
    """Prompts with their continuations; one clear sentence for each kind of bad input."""
    context, vocabulary = architectures.context(model), model.config.get_text_config().vocab_size
    if len(prompts) != len(continuations) or not all(map(len, prompts)):
        raise ValueError(f"prompts are {len(prompts)} and continuations {len(continuations)}; "
                         "allowed: as many of each, no prompt empty")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature!r}; allowed: above 0")
    texts = [[*a, *b] for a, b in zip(prompts, continuations)]
    for i, ids in enumerate(texts):
        if len(ids) > context:
            raise ValueError(f"prompt {i} and its continuation have {len(ids)} tokens, more than "
                             f"the model's context of {context}")
        if not 0 <= min(ids) <= max(ids) < vocabulary:
            raise ValueError(f"prompt {i} and its continuation have token ids from {min(ids)} to "
                             f"{max(ids)}; allowed: from 0 to {vocabulary - 1}")
    if texts:
        architectures.check_lengths(model, min(map(len, prompts)), max(map(len, texts)))
        architectures.check_finite(model)
    return texts
