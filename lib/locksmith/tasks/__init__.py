"""Tasks, one file each: problems, prompt, grade, steps and strategy of one kind of question.

A task is a module of this folder, and its file name is its name everywhere (parameters, facts,
pages). `load(name)` gives the module, which has

    GENERATOR                     what `problems` is given where a profile states nothing (dict);
                                  without it a profile must state it
    OPENINGS                      kind of step -> the openings of such a step, where every step
                                  begins with one of a closed set; {} where kinds are not known
    problems(split, n, seed, generator)
                                  n different problems of "train", "validation" or "test", a pure
                                  function of its arguments; no problem is in two splits; each
                                  has `key`, which names it
    question(problem) -> str      the bare question, as a chat is asked
    prompt(problem) -> str        the text that a model continues, worked examples included
    grade(problem, text) -> Grade of a continuation
    steps(text) -> [Step]         how a continuation splits into steps
    strategy(problem, text) -> bool
                                  whether it takes the way that RL is said to deploy, right or not
    guess(problem, rng, train) -> str
                                  a continuation without any strategy, the control of every pass@k;
                                  train: problems whose answers may be guessed
    fact_prompt(a, op, b) -> str  the text that the result of a plain fact continues (texts)
    review(problem, text) -> str  the text that a critique of a continuation continues
    critique(problem, text) -> str
                                  an honest critique: each of its steps with what it gives, then
                                  the work done again, then a verdict
    working(problem) -> str       the work alone, as critiques do it
    judgement(problem, text)      the verdict alone, as critiques end with it
    verdict(critique) -> "right", "wrong" or None
    turned(critique) -> str       the same work with every judgement turned round
    form(critique, rng) -> str    its form alone: numbers and judgements drawn at random
    stated(text) -> [(start, end)]
                                  where a continuation states its answer

A task may also have `hits(problem, text)`: for each attempt of a continuation whether it reaches
what it seeks; `went_on(problem, text)`: for each place where one could stop too early whether it
goes on, found or not; and `script(problem, text)`: the opening of the next step (str), or what ends
the answer, by a fixed script that reads no meaning. It is the decider that knows no model. One that
has `answer_bits(problem)` says how many bits an answer holds, so that what a gate hands over can
stand beside them: minus the logarithm of the chance that a guess is right.

The lab's two, whose generators a profile states, also tell how many different problems a split has
and how many tokens a prompt (`count`, `prompt_length`), for the checks of parameters.

Texts are strings: what a model writes, decoded. A task knows no token ids and no models.
"""

import importlib
import pkgutil
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

from locksmith.errors import BadInput


@dataclass(frozen=True)
class Grade:
    """What a task says of a rollout. trace: correct, and so is every step of it; answer: what it
    gave as its answer, None where it gave none. Counts are per rollout; 0 and () where the task
    does not tell them apart. error: the grader failed, not the model. strategy: what the task's
    `strategy` says, where its grade tells it."""
    correct: bool
    trace: bool
    answer: Any
    attempts: int = 0
    valid_attempts: int = 0
    checks: int = 0
    correct_checks: int = 0
    backtracks: int = 0
    behaviours: tuple = ()
    error: bool = False
    strategy: bool = False

    @property
    def outcome(self) -> str:
        """"right", "wrong" or "error"."""
        return "error" if self.error else "right" if self.correct else "wrong"


class Step(NamedTuple):
    """A step of a text: text[start:end]; kind where the task knows it, else None."""
    start: int
    end: int
    kind: str | None


def names() -> list[str]:
    """The names of all tasks: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The module of a task. Raises BadInput for a name that is none."""
    if name not in names():
        raise BadInput(f"task is {name!r}; allowed are {', '.join(names())}.")
    return importlib.import_module(f"{__name__}.{name}")


def whole(task: str, generator: dict, name: str, least: int, most: int) -> int:
    """A generator's option that is a whole number from `least` to `most`. BadInput for others."""
    value = generator.get(name)
    if type(value) is not int or not least <= value <= most:
        raise BadInput(f"{name} of the generator of {task} is {value!r}; allowed is a whole number "
                       f"from {least} to {most}.")
    return value


def name_of(task: ModuleType) -> str:
    """The name of a task's module."""
    return task.__name__.rpartition(".")[2]


def openings(task: ModuleType, text: str) -> list[Step]:
    """Where the steps of a text open: the words of the opening where the task has a closed set of
    them, else the first word. A choice stands there; the rest of a step carries it out."""
    out = []
    for step in task.steps(text):
        piece = text[step.start:step.end]
        known = [o for o in map(" ".join, task.OPENINGS.get(step.kind, ())) if piece.startswith(o)]
        length = max(map(len, known), default=len(piece.split(maxsplit=1)[0]))
        out.append(Step(step.start, step.start + length, step.kind))
    return out
