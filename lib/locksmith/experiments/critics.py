"""Critics: functions (task, problem, text, rng) -> str, a critique of an answer and its verdict.

What a critique looks like is the task's (`tasks`): each step of the answer with what it gives, the
work done again, a verdict. Where steps open with words of a closed set, each critique has its own,
as teachers differ in theirs. rng: a `random.Random`. A critic of your own is one more function here
and its name in CRITICS, an arm of arms.yml.
"""

import random
from types import ModuleType
from typing import Any


def exact(task: ModuleType, problem: Any, text: str, rng: random.Random) -> str:
    """A program that judges every step and does the work again."""
    return reworded(task, task.critique(problem, text), rng)


def flipped(task: ModuleType, problem: Any, text: str, rng: random.Random) -> str:
    """The same work, every judgement turned round."""
    return task.turned(exact(task, problem, text, rng))


def form(task: ModuleType, problem: Any, text: str, rng: random.Random) -> str:
    """Format only: an exact critique with its numbers and judgements drawn at random."""
    return task.form(exact(task, problem, text, rng), rng)


def working(task: ModuleType, problem: Any, text: str, rng: random.Random) -> str:
    """The work alone, which does not depend on the answer."""
    return reworded(task, task.working(problem), rng)


def judgement(task: ModuleType, problem: Any, text: str, rng: random.Random) -> str:
    """The verdict alone."""
    return task.judgement(problem, text)


def reworded(task: ModuleType, text: str, rng: random.Random) -> str:
    """A text with each opening of a kind's first wording in one of the kind's wordings."""
    wordings = {" ".join(some[0]): some for some in task.OPENINGS.values()}
    if not wordings:
        return text
    return " ".join(word for one in text.split()
                    for word in (rng.choice(wordings[one]) if one in wordings else (one,)))


CRITICS = {"critiques": exact, "flipped-critiques": flipped, "working-alone": working,
           "verdict-alone": judgement, "format-only": form}
