"""Answers drawn in parts, by different machines, that are together what one would have drawn.

The random number behind a token is a hash of (seed, key, sample, position), see `drawing`, and
the engine numbers a prompt's samples from 0. So that any answer can be asked for alone, `key_of`
finds the key whose sample 0 draws what another's sample s draws. A run of answers asked for like
that, from where one of the engine's batches begins, meets the same neighbours as in the whole, and
so even the rounding of its matrix products is the same.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import pad

from locksmith.engine import Rollouts
from locksmith.rollouts import Answers, by_problem

WORD = 2**64
GAMMA = 0x9E3779B97F4A7C15  # what `drawing` adds with every part of its hash
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # the factors of its finaliser, splitmix64


def key_of(seed: int, key: int, sample: int) -> int:
    """The key, in int64, whose sample 0 has the random numbers of a sample of `key`."""
    before = _scrambled(seed + GAMMA)
    found = _unscrambled(_scrambled(before + key + GAMMA) + sample) - before - GAMMA
    return (found + WORD // 2) % WORD - WORD // 2


def _scrambled(x):
    """splitmix64's finaliser, as in `drawing`, on whole numbers modulo WORD."""
    x %= WORD
    x = (x ^ x >> 30) * FIRST % WORD
    x = (x ^ x >> 27) * SECOND % WORD
    return x ^ x >> 31


def _unscrambled(x):
    """The number that `_scrambled` makes x of: its steps backwards."""
    x %= WORD
    x = (x ^ x >> 31 ^ x >> 62) * pow(SECOND, -1, WORD) % WORD
    x = (x ^ x >> 27 ^ x >> 54) * pow(FIRST, -1, WORD) % WORD
    return x ^ x >> 30 ^ x >> 60


def pooled(parts: Sequence[Answers], n: int) -> Answers:
    """n answers a problem from parts in their order, in which each answer has its problem to
    itself."""
    ids, texts, grades = ([row[0] for part in parts for row in getattr(part, name)]
                          for name in ("ids", "texts", "grades"))
    problems, prompts = ([x for part in parts for x in getattr(part, name)][::n]
                         for name in ("problems", "prompts"))
    drawn, longest = [part.rollouts for part in parts], max(map(len, ids))
    whole = {name: torch.cat([pad(getattr(x, name), (0, longest - x.tokens.shape[1]))
                              for x in drawn]) for name in ("tokens", "logprobs")}
    whole |= {name: torch.cat([getattr(x, name) for x in drawn]) for name in ("lengths", "stopped")}
    rows = torch.arange(len(ids))
    return Answers(parts[0].task, problems, prompts,
                   *(by_problem(x, n) for x in (ids, texts, grades)),
                   np.concatenate([part.stopped for part in parts]).reshape(-1, n),
                   Rollouts(**whole, prompt=rows // n, sample=rows % n))
