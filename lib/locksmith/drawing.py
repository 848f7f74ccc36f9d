"""Random numbers of rollouts, and the tokens that they draw.

The uniform number behind every token is a hash of (seed, key, sample, position), so a rollout does
not depend on its neighbours, on the batch size or on the order of the work.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor


def _scramble(x):
    """The splitmix64 finaliser on int64 tensors (multiplication wraps, shifts made logical)."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def uniforms(seed: int | Int64[Tensor, "..."], keys: int | Int64[Tensor, "..."],
             samples: int | Int64[Tensor, "..."],
             positions: int | Int64[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """float64 in (0, 1), a pure function of four broadcastable int64 tensors (or ints)."""
    x = torch.zeros((), dtype=torch.int64)
    for part in (seed, keys, samples, positions):
        x = _scramble(x + torch.as_tensor(part, dtype=torch.int64) - 0x61C8864680B583EB)
    return (((x >> 11) & 0x1FFFFFFFFFFFFF).double() + 0.5) * 2.0**-53


def draw(logits: Float[Tensor, "rows vocabulary"], u: Float64[Tensor, " rows"], temperature: float,
         top_p: float) -> tuple[Int64[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Tokens and their log-probabilities, by inverse CDF at u; at temperature 0 the likeliest
    tokens and 0. What is not finite in a row's logits makes its log-probability NaN."""
    if temperature == 0:
        token = logits.argmax(-1)
        best = logits.gather(-1, token[:, None])[:, 0].float()
        return token, best - best
    # On a CPU as many rows at a time as stay in its cache: Gemma's V is 262,144.
    rows = max(2**20 // logits.shape[1], 1) if logits.device.type == "cpu" else max(len(logits), 1)
    parts = zip(logits.split(rows), u.split(rows), strict=True)
    drawn = [_inverse_cdf(*part, temperature, top_p) for part in parts]
    return tuple(map(torch.cat, zip(*drawn, strict=True)))


def _inverse_cdf(logits, u, temperature, top_p):
    """What `draw` returns, for the rows of one chunk and a temperature above 0."""
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
