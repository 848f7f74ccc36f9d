"""Chapter 2's plumbing: drawing and grading every sample, in one process a core.

What is done with the samples stands in the chapter. Here is what would make its cells long: the
work of one process, and an interval for a median.

Every draw has a `stream` of its own. Two models that shared their random numbers would write the
same trace more often than chance, and the chapter counts matching traces.
"""

import math
import random
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from locksmith import corpus, decoding, engine, grammar, stats, vocabulary
from locksmith.lab import load, problems

STREAMS = {"base": 0, "thinking": 1, "again": 2, "matched": 3, "methods": 4, "entropy": 5}


@dataclass
class Samples:
    """P problems, n samples of each: correct, trace (P, n) bool; answers and behaviours, lists of
    P lists of n (hashable or None; a letter a step, such as "tcwcs"); rollouts, the engine's, on
    the CPU with uint8 tokens."""
    correct: np.ndarray
    trace: np.ndarray
    answers: list
    behaviours: list
    rollouts: engine.Rollouts

    def texts(self):
        """The samples as bytes, one a token: P lists of n."""
        rows = [bytes(ids) for ids in self.rollouts.ids()]
        n = self.correct.shape[1]
        return [rows[i:i + n] for i in range(0, len(rows), n)]


class Outcome(NamedTuple):
    """What a method chose: correct and trace (P,), shares of its chains; tokens (P,), generated for
    one answer; log, name -> (P,) of what the method reports about itself."""
    correct: np.ndarray
    trace: np.ndarray
    tokens: np.ndarray
    log: dict


def stream_seed(seed, stream):
    return 1000 * STREAMS[stream] + seed


def _grades(family, problems, continuations):
    task = corpus.FAMILIES[family]
    n = len(continuations) // len(problems)
    return [task.grade(problems[i // n], vocabulary.decode(ids)) for i, ids in enumerate(continuations)]


def _table(values, n):
    return [values[i:i + n] for i in range(0, len(values), n)]


# --- the work of one process ----------------------------------------------------------------------

def draw(profile, family, which, seed, n_problems, n, max_new_tokens, temperature=1.0,
         stream=None, only=None):
    """`Samples` of a lab model. only: indices of the problems to draw, all if None."""
    chosen = problems(profile, family, n_problems)
    only = list(range(n_problems)) if only is None else list(only)
    chosen = [chosen[i] for i in only]
    rollouts = engine.sample(
        load(profile, family, which, seed), [vocabulary.encode(p.prompt) for p in chosen], n,
        max_new_tokens=max_new_tokens, stop=vocabulary.STOP, temperature=temperature,
        seed=stream_seed(seed, stream or which), keys=only)
    rollouts = replace(rollouts, tokens=rollouts.tokens.cpu().to(torch.uint8),
                       lengths=rollouts.lengths.cpu(), logprobs=rollouts.logprobs.cpu(),
                       stopped=rollouts.stopped.cpu())
    grades = _grades(family, chosen, rollouts.ids())
    letters = ["".join((b or "?")[0] for b in g.behaviours) for g in grades]
    return Samples(np.array(_table([g.correct for g in grades], n)),
                   np.array(_table([g.trace for g in grades], n)),
                   _table([g.answer for g in grades], n), _table(letters, n), rollouts)


def guesses(profile, family, seed, n_problems, n, only=None):
    """The strategy-free control: correct and trace, (P, n) bool."""
    task, chosen = corpus.FAMILIES[family], problems(profile, family, n_problems)
    found = []
    for i in range(n_problems) if only is None else only:
        rng = random.Random(f"guess {seed} {chosen[i].key}")
        found.append([task.grade(chosen[i], task.guess(chosen[i], rng)) for _ in range(n)])
    return (np.array([[g.correct for g in row] for row in found]),
            np.array([[g.trace for g in row] for row in found]))


def matched_temperature(profile, family, seed, n_problems, max_new_tokens):
    """(temperature, entropy reached, the base's entropy): the temperature at which the thinking
    model is as undecided as the base at temperature 1, in nats a token."""
    prompts = [vocabulary.encode(p.prompt) for p in problems(profile, family, n_problems)]
    options = {"max_new_tokens": max_new_tokens, "stop": vocabulary.STOP,
               "seed": stream_seed(seed, "entropy")}
    base = decoding.mean_entropy(
        engine.sample(load(profile, family, "base", seed), prompts, 16, **options))
    thinking = load(profile, family, "thinking", seed)
    return *decoding.entropy_matched_temperature(thinking, prompts, base, high=3.0, **options), base


def apply(profile, family, seed, method, n_problems, max_new_tokens, chains=1, **options):
    """`Outcome` of a method of `decoding` on the base, for each of its selectors: name -> Outcome.

    chains: independent answers a problem, over which accuracy and tokens are averaged.
    """
    chosen = [p for p in problems(profile, family, n_problems) for _ in range(chains)]
    prompts = [vocabulary.encode(p.prompt) for p in chosen]
    net = load(profile, family, "base", seed, exact=True)
    if method == "cot_decoding":
        options["read_answer"] = lambda i, ids: read_answer(family, chosen[i], ids)
    elif method != "greedy":
        options["seed"] = stream_seed(seed, "methods")
    found = getattr(decoding, method)(net, prompts, max_new_tokens=max_new_tokens,
                                      stop=vocabulary.STOP, **options)
    found = {method: found} if isinstance(found, decoding.Chosen) else found
    return {name: outcome(family, chosen, one, chains) for name, one in found.items()}


def outcome(family, problems, chosen, chains=1):
    """`Outcome` of a `decoding.Chosen`, whose continuations are chain by chain of each problem."""
    grades = _grades(family, problems, chosen.continuations)
    return Outcome(*(np.mean(np.reshape(x, (-1, chains)), 1, dtype=float)
                     for x in ([g.correct for g in grades], [g.trace for g in grades],
                               chosen.tokens)), chosen.log)


def read_answer(family, problem, ids):
    """(canonical answer or None, indices in `ids` of the words that state it)."""
    words = [vocabulary.VOCABULARY[i] for i in ids]
    labels, places, concluding = grammar.labels(words), [], False
    for i, (word, label) in enumerate(zip(words, labels)):
        if label != "execute":
            concluding = label == "conclude"
        elif concluding and word not in ("<eos>", "next"):
            places.append(i)
    return corpus.FAMILIES[family].grade(problem, words).answer, places


def median_interval(values, resamples=2000, seed=0):
    """Median with its 95 % interval: values (seeds, problems, m), NaN where there is none.

    The same crossed bootstrap as in `stats`, which resamples means.
    """
    values = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        seeds = rng.integers(len(values), size=len(values))
        chosen = rng.integers(values.shape[1], size=values.shape[1])
        some = values[seeds][:, chosen]
        drawn.append(np.median(some[~np.isnan(some)]) if not np.isnan(some).all() else math.nan)
    tail = (1 - stats.LEVEL) / 2
    return stats.Interval(float(np.nanmedian(values)),
                          *map(float, np.nanquantile(drawn, [tail, 1 - tail])))
