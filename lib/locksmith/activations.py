"""What a decoder's residual stream holds while it reads given texts (teacher forcing).

    h = residuals(model, texts, layers=[1, 2], positions=[[5, 9], [7]])
    h[2]    (3, D): after block 2, position 5 and 9 of the first text, position 7 of the second

Texts are read in batches of like length, padded on the right: in a causal model nothing real looks
at padding. Only the asked positions are kept, so memory is that of the answer and of one batch.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from locksmith import architectures, cache
from locksmith.device import check_memory

BATCH_TOKENS = 8192


def chunks(sizes: Sequence[int], most: int) -> Iterator[range]:
    """Ranges of consecutive items whose sizes sum to at most `most`; none is empty."""
    first, total = 0, 0
    for i, size in enumerate(sizes):
        if i > first and total + size > most:
            yield range(first, i)
            first, total = i, 0
        total += size
    if len(sizes):
        yield range(first, len(sizes))


def residuals(model: PreTrainedModel, texts: Sequence[list[int]], layers: Sequence[int],
              positions: Sequence[list[int]] | None = None,
              batch_tokens: int = BATCH_TOKENS) -> dict[int, Float[Tensor, "positions width"]]:
    """The residual stream after given blocks by layer, float32 on the CPU.

    texts: non-empty lists of token ids. layers: block indices, 0 the first; -1 is the stream before
    the first block, the embeddings. positions: a list of indices a text (None: all). Rows
    are the positions of all texts, in their order. ValueError for a text that does not fit the
    model's context, a layer or a position that does not exist; MemoryError if the answer is too
    big.
    """
    depth = model.config.get_text_config().num_hidden_layers
    if not all(-1 <= layer < depth for layer in layers):
        raise ValueError(f"layers is {list(layers)}; allowed: from -1 (embeddings) to {depth - 1}")
    stream, hooks = {}, []
    listed = cache.blocks(model)

    def keep(layer):
        def hook(module, args, out):
            stream[layer] = out[0] if isinstance(out, tuple) else out
        return hook

    def keep_input(module, args, kwargs):
        stream[-1] = args[0] if args else kwargs["hidden_states"]
    try:
        for layer in set(layers):
            hooks.append(listed[layer].register_forward_hook(keep(layer)) if layer >= 0 else
                         listed[0].register_forward_pre_hook(keep_input, with_kwargs=True))
        size = model.config.get_text_config().hidden_size
        return _read(model, texts, positions, batch_tokens, len(set(layers)) * size,
                     lambda logits: {layer: stream[layer] for layer in layers}, last=1)
    finally:
        for hook in hooks:
            hook.remove()


def logits(model: PreTrainedModel, texts: Sequence[list[int]],
           positions: Sequence[list[int]] | None = None,
           batch_tokens: int = BATCH_TOKENS) -> Float[Tensor, "positions vocabulary"]:
    """The next-token logits at given positions, float32 on the CPU; arguments as above."""
    vocabulary = model.config.get_text_config().vocab_size
    batch_tokens = min(batch_tokens, 2**27 // vocabulary)  # at most 512 MiB of logits in float32
    return _read(model, texts, positions, batch_tokens, vocabulary,
                 lambda logits: {"logits": logits}, last=0)["logits"]


@torch.no_grad()
def _read(model, texts, positions, batch_tokens, width, take, last):
    """{name: (N, ...)} of what `take` makes of each batch's logits, at the asked positions."""
    positions = [range(len(ids)) for ids in texts] if positions is None else positions
    _check(model, texts, positions)
    counts = [len(p) for p in positions]
    check_memory(4 * sum(counts) * width, f"{sum(counts)} positions of {width} numbers",
                 torch.device("cpu"))
    starts = [0, *itertools.accumulate(counts)]
    order = sorted((i for i in range(len(texts)) if counts[i]), key=lambda i: len(texts[i]))
    alone = bool(architectures.altered(model))  # its own forward, of nothing but the text
    out, training = {}, model.training
    model.eval()
    try:
        while order:
            # The longest first: what follows fits the same number of tokens.
            rows = 1 if alone else max(1, batch_tokens // len(texts[order[-1]]))
            chosen = [order.pop() for _ in range(min(len(order), rows))]
            longest = len(texts[chosen[0]])
            ids = torch.tensor([[*texts[i], *[0] * (longest - len(texts[i]))] for i in chosen],
                               device=model.device)
            made = take(cache.own_logits(model, ids) if alone else
                        model(input_ids=ids, use_cache=False,
                              **cache.logits_to_keep(model, last)).logits)
            row = torch.tensor([r for r, i in enumerate(chosen) for _ in positions[i]])
            column = torch.tensor([p for i in chosen for p in positions[i]])
            target = torch.tensor([starts[i] + j for i in chosen for j in range(counts[i])])
            for name, x in made.items():
                at = x[row.to(x.device), column.to(x.device)].float().cpu()
                out.setdefault(name, torch.empty(sum(counts), *at.shape[1:]))[target] = at
    finally:
        model.train(training)
    return out


def _check(model, texts, positions):
    context = architectures.context(model)
    if len(positions) != len(texts):
        raise ValueError(f"positions has {len(positions)} lists for {len(texts)} texts; "
                         "allowed: one a text")
    if not any(map(len, positions)):
        raise ValueError("positions is empty; allowed: at least one position of one text")
    for i, (ids, at) in enumerate(zip(texts, positions, strict=True)):
        if not 0 < len(ids) <= context:
            raise ValueError(f"text {i} has {len(ids)} tokens; allowed: from 1 to the model's "
                             f"context of {context}")
        if not all(0 <= p < len(ids) for p in at):
            raise ValueError(f"positions[{i}] is {list(at)}; allowed: from 0 to {len(ids) - 1}")
    architectures.check_lengths(model, min(map(len, texts)), max(map(len, texts)))
    architectures.check_finite(model)
