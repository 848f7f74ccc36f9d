"""Critics: functions (task, problem, text, rng) -> str, a critique of an answer and its verdict.

What a critique looks like is the task's (`tasks`): each step of the answer with what it gives, the
work done again, a verdict. rng: a `random.Random`. A critic of your own is one more function here
and its name in CRITICS, an arm of arms.yml. What a model itself says is not among them: it needs a
batch of calls (`tuning.own_critiques`).
"""

import random
from types import ModuleType
from typing import Any

WRONG_RATE = 0.3  # of the noisy critic


def exact(task: ModuleType, problem: Any, text: str, rng: random.Random) -> str:
    """A program that judges every step and does the work again."""
    return task.critique(problem, text)


def flipped(task: ModuleType, problem: Any, text: str, rng: random.Random) -> str:
    """The same work, every judgement turned round."""
    return task.turned(task.critique(problem, text))


def noisy(task: ModuleType, problem: Any, text: str, rng: random.Random) -> str:
    """Flipped in three cases out of ten, exact otherwise."""
    return (flipped if rng.random() < WRONG_RATE else exact)(task, problem, text, rng)


def form(task: ModuleType, problem: Any, text: str, rng: random.Random) -> str:
    """Format only: an exact critique with its numbers and judgements drawn at random."""
    return task.form(task.critique(problem, text), rng)


def working(task: ModuleType, problem: Any, text: str, rng: random.Random) -> str:
    """The work alone, which does not depend on the answer."""
    return task.working(problem)


def judgement(task: ModuleType, problem: Any, text: str, rng: random.Random) -> str:
    """The verdict alone."""
    return task.judgement(problem, text)


CRITICS = {"critiques": exact, "flipped-critiques": flipped, "working-alone": working,
           "verdict-alone": judgement, "noisy-critiques": noisy, "format-only": form}
