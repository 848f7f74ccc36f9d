"""Rewards for `rl.learn`: small functions (grade, rng) -> float, one number a rollout.

grade: what the task says of the rollout (`tasks.Grade`); rng: a `random.Random` of this step.
A reward of your own is one more function here and its name in REWARDS. The spurious ones follow
Shao et al. (arXiv 2506.10947, section 2): format, and a coin that looks at nothing.
"""

import random
from typing import Any


def correct(grade: Any, rng: random.Random) -> float:
    """1 for right conclusions in a trace that ended by itself."""
    return float(grade.correct)


def form(grade: Any, rng: random.Random) -> float:
    """1 for a trace that ended by itself, well-formed and with an answer, right or wrong."""
    return float(grade.answer is not None)


def strategy(grade: Any, rng: random.Random) -> float:
    """1 for an answer that takes the strategy, such as writing out every step, right or wrong."""
    return float(grade.strategy)


def coin(grade: Any, rng: random.Random) -> float:
    """1 for half of all rollouts, whatever they say."""
    return float(rng.random() < 0.5)


def none(grade: Any, rng: random.Random) -> float:
    """0 for all: with it a bonus on entropy is on its own."""
    return 0.0


REWARDS = {"correct": correct, "format": form, "strategy": strategy, "random": coin, "none": none}
