"""Chapter 6's plumbing: one problem in words, its critiques, and RL,
on open weights with an adapter.

The arms of `tuning` for a model that we did not train: answers and critiques are text, the model is
frozen but for a LoRA adapter, the trainers are `finetune.fit` and `rl.learn`. A question
stands behind SHOTS worked examples, as everywhere in `words`; a critique behind two examples of
reviews, one of a right answer and one of a wrong one, so that a model knows the form before any
training and the loss is on content. All critics are given the same inputs;
only what follows "Review:" differs.

Critics, the trainers' logits and the rollouts of RL are those of `critics` and `tuning`.
"""

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from locksmith import arms, engine, finetune, loading, model, prose, rewards, rl, stats, words
from locksmith.errors import BadInput
from locksmith.experiments import critics, tuning
from locksmith.loading import Model

SHOTS = 2
MICRO_TOKENS = 3072  # some 4 GiB with logits over 262k tokens
RANK = 8
ENGLISH = tuning.ENGLISH


# --- answers and what critics say of them --------------------------------------------------------

# Functions (problem, text, rng) -> critique.
exact, flipped, form = (functools.partial(critic, words)
                        for critic in (critics.exact, critics.flipped, critics.form))
CRITICS = {"critiques": exact, "flipped-critiques": flipped, "format-only": form}


def works_out(text: str) -> bool:
    """Whether an answer writes a calculation out with its result: the strategy that is told apart
    from being right ("when" and "how")."""
    return words.written_out(prose.first_line(text), 1)


def critiques(problem: words.WordProblem, answers: Sequence[str], critic: Callable,
              seed: int) -> list[tuple[str, str]]:
    """(text, critique) pairs of one critic on one problem's answers."""
    rng = random.Random(f"{seed} {problem.key}")
    return [(words.review(problem, text), critic(problem, text, rng)) for text in answers]


def continuations(arm: str, problem: words.WordProblem,
                  answers: list[str]) -> list[tuple[str, str]]:
    """(text, continuation) pairs of a fine-tuned arm, an id of arms.yml,
    on one problem's answers."""
    if arm == "sft-right":
        return [(words.prompt(problem, SHOTS), text + "\n") for text in answers
                if words.grade(problem, text).correct]
    seed = arms.get(arm).label
    written = critiques(problem, answers, CRITICS.get(arm, exact), seed)
    shuffled = arm == "shuffled-critiques"
    return tuning.shuffle_targets(written, random.Random(seed)) if shuffled else written


def pairs(lm: Model,
          written: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """(input, target) token ids of (text, continuation) pairs, for `finetune.fit`."""
    return [(lm.begin(given), lm.encode(wanted)) for given, wanted in written]


def single(name: str, problems: Sequence[words.WordProblem], samples: int, n: int,
           max_new_tokens: int,
           accept_terms: bool = False) -> tuple[int, np.ndarray, list[str], int]:
    """One problem to train on: the middle one, by solve rate,
    of those that the model of a name (`loading.load`) solves at all.

    Returns (its index, solve rates (P,), up to n different answers to it with a number in them,
    tokens generated for both), all at temperature 1. BadInput where there are not two answers."""
    lm = loading.load(name, accept_terms=accept_terms)
    options = dict(shots=SHOTS, temperature=1.0, max_new_tokens=max_new_tokens)
    drawn = words.sample_words(lm, problems, samples, seed=1, **options)
    chosen = tuning.spread(drawn.correct.mean(1), 3)[1]
    again = words.sample_words(lm, [problems[chosen]], 4 * n, seed=2, **options)
    lines = dict.fromkeys(" " + text.strip().split("\n")[0] for text in again.texts[0])
    answers = [line for line in lines if words.extract(line)][:n]
    if len(answers) < 2:
        raise BadInput(f"n_candidates is {n}, but the model gave only {len(answers)} different "
                       f"answers with a number to {problems[chosen].question!r}; allowed is a "
                       "model that gives 2.")
    return chosen, drawn.correct.mean(1), answers, drawn.tokens + again.tokens


def told(problem: words.WordProblem, index: int, rates: Sequence[float], answers: Sequence[str],
         spent: int) -> dict:
    """What a page tells of the problem that `single` chose,
    and what critics say of one wrong answer."""
    right = [words.grade(problem, text).correct for text in answers]
    example = answers[right.index(False) if False in right else 0]
    return {"question": problem.question, "rates": rates, "chosen": rates[index],
            "answers": answers, "right": right, "spent": spent, "example": example,
            "critiques": {name: critic(problem, example, random.Random(0))
                          for name, critic in CRITICS.items()}}


def judged(problems: Sequence[words.WordProblem],
           rng: random.Random) -> list[tuple[words.WordProblem, str]]:
    """(problem, answer) pairs to review: each problem with its right answer and with a wrong one,
    which differ in nothing else, so that always saying the same is right half of the time."""
    pairs = []
    for problem in problems:
        off = rng.choice((-10, -2, -1, 1, 2, 10))
        for said in (problem.answer, str(int(problem.answer) + off)):
            work = f"{words.calculation(problem)} = {said}"
            pairs.append((problem, f" {work}. The answer is {said}."))
    return pairs


# --- training ------------------------------------------------------------------------------------

def logits_from(inputs: Sequence[list[int]]) -> Callable:
    """`logits` for a trainer whose shortest input is that of `inputs` (lists of token ids)."""
    return functools.partial(tuning.shared_prefix_logits, start=min(map(len, inputs)) - 1)


class WordEvaluation(NamedTuple):
    """P problems, n answers each at temperature 1: correct, works (`works_out`) (P, n) bool; low,
    correct (P, n) at the low temperature; tokens an answer; verdicts: share of right verdicts on
    other problems' answers; english: loss in nats a token on text that nobody was trained on; log:
    what the training says of itself."""
    correct: np.ndarray
    works: np.ndarray
    low: np.ndarray
    tokens: float
    verdicts: float
    english: float
    log: dict


def outcome(lm: Model, problems: Sequence[words.WordProblem], n: int, max_new_tokens: int,
            low_temperature: float, seed: int, judged: Sequence[tuple[words.WordProblem, str]],
            log: dict | None = None) -> WordEvaluation:
    """`WordEvaluation` of a model on problems. judged: (problem, answer) pairs for it to review,
    greedily."""
    drawn, low = (words.sample_words(lm, problems, n, shots=SHOTS, temperature=temperature,
                                     max_new_tokens=max_new_tokens, seed=seed)
                  for temperature in (1.0, low_temperature))
    prompts = [lm.begin(words.review(*pair)) for pair in judged]
    reviews = engine.sample(lm.net, prompts, max_new_tokens=max_new_tokens, temperature=0.0,
                            stop=lm.stop)
    said = [words.verdict(lm.decode(ids)) for ids in reviews.ids()]
    true = ["right" if words.grade(*pair).correct else "wrong" for pair in judged]
    agree = float(np.mean([a == b for a, b in zip(said, true, strict=True)]))
    return WordEvaluation(drawn.correct, np.array([[works_out(text) for text in row]
                                                   for row in drawn.texts]),
                          low.correct, drawn.tokens / drawn.correct.size, agree,
                          tuning.text_loss(lm, tuning.english()), log or {})


def gain_parts(o: WordEvaluation, base: WordEvaluation) -> list[stats.Interval]:
    """(when, how) of a gain over the base, as `stats.when_and_how`,
    with intervals over problems."""
    def parts(times):
        return np.array([stats.when_and_how(*([x.repeat(n, 0) for x in (side.works, side.correct)]
                                              for side in (base, o))) for n in times])
    both = stats.bootstrap(parts, len(o.correct), resamples=1000)
    return [stats.Interval(*part) for part in zip(*both, strict=True)]


# --- the work of one process ---------------------------------------------------------------------

def arm(name: str, seed: int, test: dict, supervise: dict | None = None,
        reinforce: dict | None = None, accept_terms: bool = False) -> WordEvaluation:
    """`WordEvaluation` of the model of a name (`loading.load`) as it is, or after training a fresh
    adapter in one of two ways.

    test: arguments of `outcome`; supervise: of `supervised`, or reinforce: of `reinforced`."""
    lm = loading.load(name, accept_terms=accept_terms)
    if not (supervise or reinforce):
        return outcome(lm, **test)
    trained = replace(lm, net=model.adapter(lm.net, RANK, seed))
    log = (supervised(trained, seed, **supervise) if supervise else
           reinforced(trained, seed, **reinforce))
    return outcome(replace(lm, net=trained.net.merge_and_unload()), log=log, **test)


def supervised(trained: Model, seed: int, written: Sequence[tuple[str, str]], steps: int,
               target_tokens: int, lr: float) -> dict:
    """`finetune.fit` of a model's adapter on (text, continuation) pairs; returns losses and tokens
    read."""
    data = pairs(trained, written)
    losses, read = finetune.fit(trained.net, data, steps, target_tokens, lr, seed,
                                logits_from([given for given, _ in data]), MICRO_TOKENS,
                                trained.pad)
    return {"losses": losses, "read": read}


class Answer(NamedTuple):
    """What `rl.learn` is told of a rollout; correct and works are measured."""
    correct: bool
    works: bool
    text: str = ""


def _works(grade, rng):
    """1 for an answer that writes a calculation out, right or wrong."""
    return float(grade.works)


REWARDS = {"correct": rewards.correct, "format": _works}


# Questions behind SHOTS examples, as `rollouts.answer` takes a task.
TASK = SimpleNamespace(
    __name__="words", prompt=lambda problem: words.prompt(problem, SHOTS),
    grade=lambda problem, text: Answer(words.grade(problem, text).correct, works_out(text), text))


def reinforced(trained: Model, seed: int, problems: Sequence[words.WordProblem], recipe: dict,
               reward: str = "correct") -> dict:
    """`rl.learn` of a model's adapter on problems, with one of REWARDS; returns its curve."""
    def ask():
        return replace(trained, net=model.merged(trained.net).eval()), []

    inputs = [trained.begin(TASK.prompt(problem)) for problem in problems]
    update = functools.partial(rl.update, logits=logits_from(inputs), pad_token_id=trained.pad)
    return {"curve": rl.learn(
        trained.net.train(), problems, recipe | {"micro_tokens": MICRO_TOKENS}, seed,
        tuning.rollout_fn(ask, TASK, recipe), REWARDS[reward], update,
        label=f"RL, {reward} reward", measured=Answer._fields[:2])}
