"""What steps in while a model samples: vectors that are added to its residual stream, with the
count of what was steered, models that read along, and what is done to the logits."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Moment:
    """What a gate or a logits processor sees of R live rows: rows (R,) int64 of the output; tokens
    (R, S) so far, padded on the left; positions (R, q) absolute, of the q tokens now in the model
    (negative: padding); hidden (R, q, D), their residual stream after `layer` (None for a logits
    processor); prompt_lengths (R,); u (R,), the uniform number behind the token to be drawn next;
    guides, for each guide model its next-token logits (R, V) and its residual stream (R, D) at the
    last position, after the layer it was asked for (None where for none); done (R,) bool: rows that
    have ended, as a GPU runs them on for a while."""
    layer: int | None
    rows: torch.Tensor
    tokens: torch.Tensor
    positions: torch.Tensor
    hidden: torch.Tensor | None
    prompt_lengths: torch.Tensor
    u: torch.Tensor
    guides: list
    done: torch.Tensor | None = None

    def part(self, mine: Bool[Tensor, " rows"]) -> "Moment":
        """The same moment for some of its rows alone."""
        kept = {name: value[mine] for name in (
            "rows", "tokens", "positions", "hidden", "prompt_lengths", "u", "done")
            if (value := getattr(self, name)) is not None}
        return replace(self, **kept, guides=[
            (logits[mine], None if hidden is None else hidden[mine])
            for logits, hidden in self.guides])


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


@dataclass(frozen=True)
class Control:
    """What shapes the draws of a model beside its own logits and a temperature, and what is read.

    steer: `Steer`s. guides: models of the same vocabulary that read along, or pairs (model, layer)
    to show their residual stream after that layer too; gates and `logits_processor` see what they
    would say. logits_processor: called at every token with the logits (R, V) and a `Moment`,
    returns the logits (R, V) to draw from. top_p: share of their mass that is kept, likeliest
    tokens first. read: layers whose residual stream is returned (after steering).
    """
    steer: Iterable[Steer] = ()
    guides: Iterable = ()
    logits_processor: Callable | None = None
    top_p: float = 1.0
    read: Iterable[int] = ()

    def __post_init__(self):
        guides = (x if isinstance(x, tuple) else (x, None) for x in self.guides)
        for name, value in (("steer", self.steer), ("guides", guides),
                            ("read", sorted(set(self.read)))):
            object.__setattr__(self, name, tuple(value))


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


class Steering:
    """The `Steer`s of one batch: adds the vectors and counts where, so that `check` can tell
    whether every intended addition happened once.

    rows: the batch's R output rows, a slice of all n_rows; width, max_new: columns of prompts and
    of what is drawn; like: a tensor of the model's dtype and device. at (R, max_new) bool: the
    token was chosen at a steered position; count (R,) int64: vectors added.
    """

    def __init__(self, steers: Sequence[Steer], rows: slice, n_rows: int, width: int, max_new: int,
                 like: Tensor):
        n, device = rows.stop - rows.start, like.device
        self.by_layer, self.width, self.touches = {}, width, 0
        for s in steers:
            self.by_layer.setdefault(s.layer, []).append(
                (s.gate, s.vector.to(like), _mask(s.positions, width + max_new, device),
                 _mask(s.rows, n_rows, device)[rows]))
        self.count = torch.zeros(n, dtype=torch.int64, device=device)
        self.gated = torch.zeros_like(self.count)  # that part of it that gates asked for
        self.at = torch.zeros(n, max_new, dtype=torch.bool, device=device)

    def apply(self, layer: int, hidden: Float[Tensor, "rows new width"],
              batch: Any) -> Float[Tensor, "rows new width"]:
        """The residual stream of the batch's live rows after block `layer`, steered."""
        self.touches += 1
        step = batch.end - self.width  # index of the token that is chosen from the last position
        for gate, vector, positions, rows in self.by_layer.get(layer, ()):
            on = (positions[batch.positions.clamp(min=0)] & (batch.positions >= 0)
                  & (rows[batch.live] & ~batch.done)[:, None])
            weight = on
            if gate is not None:
                if step < 0:
                    continue
                weight = gate(batch.moment(layer, hidden))
                weight = weight * (on if vector.dim() == 1 else on[..., None])
                on = weight != 0 if vector.dim() == 1 else (weight != 0).any(-1)
                self.gated[batch.live] += on.sum(1)
            if vector.dim() == 1:
                hidden = hidden + weight[..., None].to(hidden) * vector
            else:
                hidden = hidden + weight.to(hidden) @ vector
            self.count[batch.live] += on.sum(1)
            if step >= 0:
                self.at[batch.live, step] |= on[:, -1]
        return hidden

    def fan_out(self, source: Int[Tensor, " rows"]) -> None:
        """Row r goes on from what was counted for row source[r]."""
        for x in (self.count, self.gated, self.at):
            x.copy_(x[source])

    def check(self, prompt_lengths: Int[Tensor, " rows"], lengths: Int[Tensor, " rows"],
              touches: int) -> None:
        """RuntimeError unless the stream was touched so often, and steered at just the positions
        that follow from the lengths of prompts and rollouts."""
        if self.touches != touches:
            raise RuntimeError(f"the residual stream was touched {self.touches} times, not "
                               f"{touches}")
        # The last token of a rollout is never fed to the model, so it cannot be steered.
        last = prompt_lengths + lengths - 2
        intended = self.gated.clone()
        for gate, _, positions, rows in sum(self.by_layer.values(), []):
            if gate is None:
                intended += positions.long().cumsum(0)[last] * rows
        if not torch.equal(intended, self.count):
            raise RuntimeError(f"{int(self.count.sum())} positions were steered, not the intended "
                               f"{int(intended.sum())}")
