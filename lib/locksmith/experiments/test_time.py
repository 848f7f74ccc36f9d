"""Chapter 5's test-time methods: what the base reaches without any change of its weights.

    base             one plain sample
    prefix           the answer's first words are given: the control for a forced first token
    few_shot         solved documents rich in the behaviour stand before the problem
    cognitive_tools  separate calls of the same model (`tools`; arXiv 2506.12115)
    dummy_tools      the same schedule of calls without their content
    matched_vote     majority vote of independent answers, within the tokens that the tools spent
    guess            majority vote of random guesses, within the tokens of a thinking answer

Every method counts the tokens that it generates, forced ones included. `test_time` is the work of
one process.
"""

import random
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from locksmith import corpus, decoding, engine, lab, vocabulary
from locksmith.errors import BadInput
from locksmith.experiments import sampling, tools

SHOWN = {"countdown": "backtracks", "chain": "checks"}  # what a document rich in behaviour has


class Job(NamedTuple):
    """What every method gets. problems: each n times in a row; cap: words of the longest answer."""
    family: str
    generator: dict
    model: object
    problems: list
    n: int
    cap: int
    seed: int

    @property
    def task(self):
        return corpus.FAMILIES[self.family]

    @property
    def context(self):
        return self.model.config.get_text_config().max_position_embeddings

    @property
    def guess_length(self):
        return len(self.task.guess(self.problems[0], random.Random(0)))

    def sample(self, prompts, cap):
        """A `Chosen`: one plain sample from each prompt, of at most `cap` words."""
        return decoding.low_temperature(self.model, [*map(vocabulary.encode, prompts)], 1.0,
                                        max_new_tokens=cap, stop=vocabulary.STOP, seed=self.seed)


def base(job):
    return job.sample([p.prompt for p in job.problems], job.cap)


def prefix(job, words):
    """words: what every answer begins with."""
    if len(words) >= job.cap or not set(words) <= set(vocabulary.VOCABULARY):
        raise BadInput(f"words is {words!r}; allowed are fewer than {job.cap} of the lab's words.")
    found = job.sample([[*p.prompt, *words] for p in job.problems], job.cap - len(words))
    return found._replace(continuations=[vocabulary.encode(words) + c for c in found.continuations],
                          tokens=found.tokens + len(words))


def few_shot(job, shots):
    """shots: documents before each problem, other ones for every answer, half the context at most.

    log: the number of their tokens, "shown", and the "cap" on an answer that this leaves. The base
    has read every document on its own, so a second one in the same context is new to it.
    """
    if shots < 1:
        raise BadInput(f"shots is {shots}; allowed is at least 1.")
    rng = random.Random(f"shots {job.family} {job.seed}")
    before = [[word for _ in range(shots) for word in rich(job, rng, job.context // (2 * shots))]
              for _ in job.problems]
    prompts = [words + p.prompt for words, p in zip(before, job.problems, strict=True)]
    cap = min(job.cap, job.context - max(map(len, prompts)))
    return job.sample(prompts, cap)._replace(
        log={"shown": np.array([*map(len, before)]), "cap": np.full(len(prompts), cap)})


def rich(job, rng, room):
    """A pre-training document of at most `room` words, solved without an error left standing, in
    which the author goes back (Countdown) or checks (chain) at least once."""
    for _ in range(100_000):
        problem = job.task.sample(rng, "train", job.generator)
        words = job.task.document(rng, problem, corpus.author(rng, job.generator), job.generator)
        grade = job.task.grade(problem, words)
        words = [*problem.prompt, *words]
        if grade.trace and getattr(grade, SHOWN[job.family]) and len(words) <= room:
            return words
    raise BadInput(f"shots: hardly any rich document has at most {room} words; allowed are fewer.")


def cognitive_tools(job, dummy=False, **options):
    """options: tools and rounds, as in `tools.solve`. log: sums over an answer, as in `Work`."""
    works = tools.solve(tools.asking(job.model, job.seed), job.problems, context=job.context,
                        max_new_tokens=job.cap, dummy=dummy, **options)
    log = {name: np.array([getattr(w, name) for w in works])
           for name in ("calls", "replaced", "wrong")}
    return decoding.Chosen([vocabulary.encode(w.trace) for w in works],
                           np.array([w.tokens for w in works]), log)


def dummy_tools(job, **options):
    return cognitive_tools(job, dummy=True, **options)


def matched_vote(job, budget):
    """budget: tokens an answer, one number or one a problem."""
    def draw(problems):
        return engine.sample(job.model, [vocabulary.encode(p.prompt) for p in problems], seed=job.seed,
                             max_new_tokens=job.cap, stop=vocabulary.STOP)
    return _vote(job, budget, draw)


def guess(job, budget):
    """budget: tokens an answer, one number or one a problem."""
    rng = random.Random(f"guess {job.seed}")

    def draw(problems):
        ids = torch.tensor([vocabulary.encode(job.task.guess(p, rng)) for p in problems])
        lengths, rows = torch.full((len(ids),), ids.shape[1]), torch.arange(len(ids))
        return engine.Rollouts(ids, lengths, torch.zeros(ids.shape), lengths > 0, rows, rows)
    return _vote(job, budget, draw)


def _vote(job, budget, draw):
    """The majority among the first answers of each problem that fit into its budget, never more:
    where not even the first does, it is cut off there, which leaves no answer."""
    if np.min(budget) < 1:
        raise BadInput(f"budget is {np.min(budget)}; allowed is at least 1 token.")
    one_each = np.broadcast_to(np.asarray(budget), (len(job.problems) // job.n,)).astype(np.int64)
    budget = np.repeat(one_each, job.n)
    # No answer in the grammar is shorter than a guess, so these are enough to use up the budget.
    owner = np.repeat(np.arange(len(budget)), budget // job.guess_length + 1)
    problems = [job.problems[i] for i in owner]
    drawn = draw(problems)
    lengths = torch.minimum(drawn.lengths.cpu(), torch.from_numpy(budget[owner]))
    drawn = replace(drawn, prompt=torch.from_numpy(owner), lengths=lengths)
    answers = [job.task.grade(p, vocabulary.decode(ids)).answer
               for p, ids in zip(problems, drawn.ids(), strict=True)]
    return decoding.majority(drawn, answers, decoding.within_budget(drawn, budget))


METHODS = {f.__name__: f for f in (base, prefix, few_shot, cognitive_tools, dummy_tools,
                                   matched_vote, guess)}


def test_time(profile, family, seed, method, n_problems, max_new_tokens, split="test", n=1,
              **options):
    """`sampling.Outcome` of a method on the base: means over n answers for each of the P problems.

    options: what the method asks for beside the job, such as words, shots, tools or budget.
    """
    if method not in METHODS:
        raise BadInput(f"method is {method!r}; allowed are {', '.join(METHODS)}.")
    problems = [p for p in lab.problems(profile, family, n_problems, split) for _ in range(n)]
    # The stream of chapter 2's methods: a problem meets the same random numbers in all of them.
    job = Job(family, lab.config(profile)["families"][family],
              lab.load(profile, family, "base", seed), problems, n, max_new_tokens,
              sampling.stream_seed(seed, "methods"))
    found = METHODS[method](job, **options)
    found = sampling.outcome([job.task.grade(p, vocabulary.decode(ids)) for p, ids in
                              zip(problems, found.continuations)], found, n)
    return found._replace(log={name: np.reshape(values, (-1, n)).mean(1)
                               for name, values in found.log.items()})
