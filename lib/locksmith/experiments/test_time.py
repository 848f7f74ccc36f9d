"""Test-time methods: what the base reaches without any change of its weights.

    base             one plain sample
    prefix           the answer's first words are given: the control for a forced first token
    cognitive_tools  separate calls of the same model (`tools`; arXiv 2506.12115)
    dummy_tools      the same schedule of calls without their content
    matched_vote     majority vote of independent answers, within the tokens that the tools spent
    guess            majority vote of random guesses, within the tokens of a thinking answer

Every method counts the tokens that it generates, forced ones included. `solve` is the work of one
process.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch

from locksmith import decoding, engine
from locksmith.errors import BadInput
from locksmith.experiments import sampling, tools
from locksmith.loading import Model, Pair

GUESSED = 64  # training problems whose answers may be guessed
NUMBER = "{number}"  # in a prefix


class Job(NamedTuple):
    """What every method gets. problems: each n times in a row; cap:
    tokens of the longest answer."""
    pair: Pair
    model: Model
    problems: list
    n: int
    cap: int
    seed: int

    @property
    def task(self) -> ModuleType:
        return self.pair.rules

    @property
    def prompts(self) -> list[list[int]]:
        return [self.model.ask(self.task, problem) for problem in self.problems]

    def sample(self, prompts: Sequence[list[int]], cap: int) -> decoding.Chosen:
        """A `Chosen`: one plain sample from each prompt (ids), of at most `cap` tokens."""
        return decoding.low_temperature(self.model.net, prompts, 1.0, max_new_tokens=cap,
                                        stop=self.model.stop, seed=self.seed)

    def guesses(self, problems: Sequence) -> list[list[int]]:
        """Ids of a guess at each problem, ended."""
        rng = random.Random(f"guess {self.seed}")
        train = self.task.problems("train", GUESSED, 0, self.pair.generator)
        texts = [self.task.guess(problem, rng, train) for problem in problems]
        return [self.model.encode(text + self.model.end) for text in texts]


def base(job: Job) -> decoding.Chosen:
    return job.sample(job.prompts, job.cap)


def prefix(job: Job, words: str) -> decoding.Chosen:
    """words: the text that every answer begins with; {number} in it is the question's first."""
    texts = [words.replace(NUMBER, re.search(r"\d+", job.task.question(problem))[0])
             if NUMBER in words else words for problem in job.problems]
    given = [job.model.encode(text) for text in texts]
    longest = max(map(len, given))
    if longest >= job.cap or [job.model.decode(ids) for ids in given] != texts:
        raise BadInput(f"words is {words!r}; allowed is a text of fewer than {job.cap} tokens of "
                       "the model's own.")
    found = job.sample([prompt + ids for prompt, ids in zip(job.prompts, given)],
                       job.cap - longest)
    return found._replace(continuations=[ids + c for ids, c in zip(given, found.continuations)],
                          tokens=found.tokens + np.array([*map(len, given)]))


def cognitive_tools(job: Job, dummy: bool = False, **options: object) -> decoding.Chosen:
    """options: tools and rounds, as in `tools.solve`. log: as in `PartialAnswer`."""
    works = tools.solve(tools.asking(job.model, job.seed), job.model, job.task, job.problems,
                        max_new_tokens=job.cap, dummy=dummy, **options)
    log = {name: np.array([getattr(w, name) for w in works])
           for name in ("calls", "replaced", "wrong")}
    return decoding.Chosen([w.ids for w in works], np.array([w.tokens for w in works]), log)


def dummy_tools(job: Job, **options: object) -> decoding.Chosen:
    return cognitive_tools(job, dummy=True, **options)


def matched_vote(job: Job, budget: int | Sequence[int] | np.ndarray) -> decoding.Chosen:
    """budget: tokens an answer, one number or one a problem."""
    def draw(problems):
        return engine.sample(job.model.net, [job.model.ask(job.task, p) for p in problems],
                             seed=job.seed, max_new_tokens=job.cap, stop=job.model.stop)
    return _vote(job, budget, draw)


def guess(job: Job, budget: int | Sequence[int] | np.ndarray) -> decoding.Chosen:
    """budget: tokens an answer, one number or one a problem."""
    def draw(problems):
        guesses = job.guesses(problems)
        lengths, rows = torch.tensor([*map(len, guesses)]), torch.arange(len(guesses))
        ids = torch.zeros(len(guesses), int(lengths.max()), dtype=torch.int64)
        for row, one in zip(ids, guesses):
            row[:len(one)] = torch.tensor(one)
        return engine.Rollouts(ids, lengths, torch.zeros(ids.shape), lengths > 0, rows, rows)
    return _vote(job, budget, draw)


def _vote(job, budget, draw):
    """The majority among the first answers of each problem that fit into its budget, never more:
    where not even the first does, it is cut off there, which leaves no answer. So many are drawn as
    would fit if all were as short as a guess."""
    if np.min(budget) < 1:
        raise BadInput(f"budget is {np.min(budget)}; allowed is at least 1 token.")
    one_each = np.broadcast_to(np.asarray(budget), (len(job.problems) // job.n,)).astype(np.int64)
    budget, shortest = np.repeat(one_each, job.n), min(map(len, job.guesses(job.problems)))
    owner = np.repeat(np.arange(len(budget)), budget // shortest + 1)
    problems = [job.problems[i] for i in owner]
    drawn = draw(problems)
    lengths = torch.minimum(drawn.lengths.cpu(), torch.from_numpy(budget[owner]))
    drawn = replace(drawn, prompt=torch.from_numpy(owner), lengths=lengths)
    answers = [job.task.grade(p, job.model.decode(ids)).answer
               for p, ids in zip(problems, drawn.ids(), strict=True)]
    return decoding.majority(drawn, answers, decoding.within_budget(drawn, budget))


METHODS = {f.__name__: f for f in (base, prefix, cognitive_tools, dummy_tools, matched_vote, guess)}


def solve(pair: Pair, method: str, n_problems: int, max_new_tokens: int, split: str = "test",
          n: int = 1, **options: object) -> sampling.MethodOutcome:
    """What a method on the base comes to, n answers for each of the first n_problems of a split.

    options: what the method asks for beside the job, such as words, tools or budget.
    """
    if method not in METHODS:
        raise BadInput(f"method is {method!r}; allowed are {', '.join(METHODS)}.")
    problems = [p for p in pair.problems(n_problems, split) for _ in range(n)]
    # The stream of chapter 2's methods: a problem meets the same random numbers in all of them.
    job = Job(pair, pair.load("base"), problems, n, max_new_tokens,
              sampling.stream_seed(pair.seed, "methods"))
    found = METHODS[method](job, **options)
    grades = [job.task.grade(problem, job.model.decode(ids))
              for problem, ids in zip(problems, found.continuations, strict=True)]
    log = {name: np.reshape(values, (-1, n)).mean(1) for name, values in found.log.items()}
    return sampling.outcome(grades, found._replace(log=log), n)
