"""Asking a model a task's problems: sampled, decoded, graded, and kept where that is worth it.

Every chapter's numbers come from here. Answers of models that are not trained in this repository
are kept in the cache folder, block by block, under a hash of all that shaped them: a run that was
cut off goes on where it stopped.
"""

from dataclasses import dataclass, field
from types import ModuleType

import numpy as np

from locksmith import engine
from locksmith.loading import Model

COUNTS = ("attempts", "valid_attempts", "checks", "honest_checks", "backtracks")


@dataclass
class Answers:
    """n answers to each of P problems. ids, texts: P lists of n (token ids, str); grades: P lists of
    n of what the task says of them; stopped (P, n) bool: ended by itself, not at the cap; prompts:
    P lists of token ids; rollouts: the engine's, prompt-major."""
    task: ModuleType
    problems: list
    prompts: list
    ids: list
    texts: list
    grades: list
    stopped: np.ndarray
    rollouts: engine.Rollouts = field(repr=False, default=None)

    def table(self, name: str) -> np.ndarray:
        """(P, n) of a field of the grades, such as "correct", "trace" or one of COUNTS."""
        return np.array([[getattr(grade, name) for grade in row] for row in self.grades])

    @property
    def correct(self) -> np.ndarray:
        return self.table("correct")

    @property
    def trace(self) -> np.ndarray:
        return self.table("trace")

    @property
    def lengths(self) -> np.ndarray:
        """(P, n) int: tokens generated, stop tokens included."""
        return np.array([[len(ids) for ids in row] for row in self.ids])

    @property
    def strategy(self) -> np.ndarray:
        """(P, n) bool: whether the answer takes the way that RL is said to deploy."""
        return np.array([[self.task.strategy(problem, text) for text in row]
                         for problem, row in zip(self.problems, self.texts)])


def answer(model: Model, task: ModuleType, problems: list, n: int = 1, **how) -> Answers:
    """n sampled answers of a model to each problem; how: what `engine.sample` takes beside."""
    prompts = [model.ask(task, problem) for problem in problems]
    drawn = engine.sample(model.net, prompts, n, stop=model.stop, **how)
    return graded(model, task, problems, prompts, drawn, n)


def graded(model: Model, task: ModuleType, problems: list, prompts: list, drawn: engine.Rollouts,
           n: int = 1) -> Answers:
    """`Answers` of rollouts that were drawn elsewhere, n a problem in their order."""
    ids = drawn.ids()
    texts = [model.decode(one) for one in ids]
    grades = [task.grade(problems[i // n], text) for i, text in enumerate(texts)]
    ids, texts, grades = (by_problem(rows, n) for rows in (ids, texts, grades))
    return Answers(task, problems, prompts, ids, texts, grades,
                   drawn.stopped.cpu().numpy().reshape(len(problems), n), drawn)


def by_problem(rows, n: int) -> list:
    """A flat list, n a problem, as a list of lists of n."""
    return [rows[i:i + n] for i in range(0, len(rows), n)]
