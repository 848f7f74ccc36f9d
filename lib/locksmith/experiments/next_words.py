"""How likely a text goes on in given words, exactly, while a vector is added: nothing is sampled.

    P(the answer opens with " 5 + 7 =") = P(" ") P("5" | " ") P(" +" | " 5") ...

The text before is read once for all vectors, so that an arm costs a few tokens a problem.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from locksmith import cache
from locksmith.loading import Model


class Asked(NamedTuple):
    """ids: the text so far; start: tokens of it that are the prompt; forced: tokens that follow for
    sure; last: those of which one comes then."""
    ids: list[int]
    start: int
    forced: list[int]
    last: list[int]


@torch.no_grad()
def chances(model: Model, asked: Asked, layer: int | Sequence[int] = 0,
            vectors: Float[np.ndarray, "arms width"] | None = None,
            where: str = "choice") -> Float[np.ndarray, " arms"]:
    """P that the text goes on with `forced` and one of `last`, for each vector, float64; without
    vectors, one number of the model as it is.

    where: vectors are added after block `layer` (one for all, or one each) at the last token of the
    text ("choice"), or from the prompt's last token on ("all").
    """
    net, first = model.net, (asked.start if where == "all" else len(asked.ids)) - 1
    add = (torch.zeros(1, 1) if vectors is None else torch.as_tensor(np.asarray(vectors))).to(
        net.device, net.dtype)
    rest = [*asked.ids[first:], *asked.forced]
    layers = np.broadcast_to(layer, len(add))

    def steered(module, args, output, here):
        hidden = output[0] if isinstance(output, tuple) else output
        on = hidden.new_zeros(hidden.shape[:2])
        on[layers == here, :None if where == "all" else 1] = 1
        hidden = hidden + on[..., None] * add[:, None]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    past = net(torch.tensor([asked.ids[:first]], device=net.device),
               use_cache=True).past_key_values if first else None
    if past is not None:
        past.batch_repeat_interleave(len(add))
    hooks = [cache.blocks(net)[i].register_forward_hook(partial(steered, here=i))
             for i in set(layers.tolist())]
    try:
        logits = net(torch.tensor([rest] * len(add), device=net.device), past_key_values=past,
                     use_cache=True, **cache.logits_to_keep(net, 1 + len(asked.forced))).logits
    finally:
        for hook in hooks:
            hook.remove()
    p = logits[:, -1 - len(asked.forced):].float().softmax(-1).double()
    sure = [p[:, k, token] for k, token in enumerate(asked.forced)]
    return torch.stack([*sure, p[:, -1, asked.last].sum(-1)]).prod(0).cpu().numpy()
