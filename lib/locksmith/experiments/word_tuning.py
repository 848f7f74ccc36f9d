"""Chapter 6's plumbing: one problem in words, its critiques, and RL, on open weights with an adapter.

The arms of `tuning` for a model that we did not train: answers and critiques are text, the model is
frozen but for a LoRA adapter, the trainers are `finetune.fit` and `rl.learn`. A question
stands behind SHOTS worked examples, as everywhere in `words`; a critique behind two examples of
reviews, one of a right answer and one of a wrong one, so that a model knows the form before any training
and the loss is on content. All critics are given the same inputs; only what follows "Review:" differs.

A critic is a function (problem, text, rng) -> text, as in `critics`: the sum worked out again, and
a verdict on the answer that the text gives.
"""

import functools
import random
import re
from typing import NamedTuple

import numpy as np
import torch
from transformers import DynamicCache

from locksmith import arms, engine, finetune, model, packaged, rewards, rl, stats, words
from locksmith.errors import BadInput
from locksmith.experiments import tuning

SHOTS = 2
MICRO_TOKENS = 3072  # some 4 GiB with logits over 262k tokens
RANK = 8
ENGLISH = 24  # questions
_SUM = r"\d+ ?[-+*] ?\d+"
_REVIEWED = (
    "Q: Calculate 6 + 8.\nA: 6 + 8 = 14. The answer is 14.\n"
    "Review: 6 + 8 = 14, so the answer 14 is right.\n"
    "Q: Calculate 7 * 4.\nA: 7 * 4 = 27. The answer is 27.\n"
    "Review: 7 * 4 = 28, so the answer 27 is wrong.\n")


# --- answers and what critics say of them -----------------------------------------------------------

def works_out(text):
    """Whether an answer's first line writes a calculation out with its result: the strategy that is
    told apart from being right ("when" and "how")."""
    return re.search(rf"{_SUM} ?= ?-?\d", text.strip().split("\n")[0]) is not None


def _calculation(problem):
    return re.search(_SUM, problem.question)[0]


def exact(problem, text, rng):
    """The sum worked out by a program, and whether the answer agrees with it."""
    verdict = "right" if words.grade(problem, text).correct else "wrong"
    said = words.extract(text) or "(none)"
    return f" {_calculation(problem)} = {problem.answer}, so the answer {said} is {verdict}.\n"


def flipped(problem, text, rng):
    """The same work, the verdict turned round."""
    other = {"right": "wrong", "wrong": "right"}
    return re.sub(r"(right|wrong)\.\n$", lambda m: f"{other[m[1]]}.\n", exact(problem, text, rng))


def form(problem, text, rng):
    """Format only: every digit of an exact critique and its verdict drawn at random."""
    drawn = re.sub(r"\d", lambda m: str(rng.randrange(10)), exact(problem, text, rng))
    return re.sub(r"(right|wrong)\.\n$", f"{rng.choice(('right', 'wrong'))}.\n", drawn)


CRITICS = {"critiques": exact, "flipped-critiques": flipped, "format-only": form}


def verdict(text):
    """"right", "wrong" or None: the last word of a review's first line, strictly."""
    found = re.search(r"is (right|wrong)\.$", text.strip().split("\n")[0])
    return found[1] if found else None


def reviewed(problem, text):
    """The text that a critique continues."""
    return f"{_REVIEWED}Q: {problem.question}\nA:{text}\nReview:"


def critiques(problem, answers, critic, seed):
    """(text, critique) pairs of one critic on one problem's answers."""
    rng = random.Random(f"{seed} {problem.key}")
    return [(reviewed(problem, text), critic(problem, text, rng)) for text in answers]


def continuations(arm: str, problem: words.Problem, answers: list[str]) -> list[tuple[str, str]]:
    """(text, continuation) pairs of a fine-tuned arm, an id of arms.yml, on one problem's answers."""
    if arm == "sft-right":
        return [(words.prompt(problem, SHOTS), text + "\n") for text in answers
                if words.grade(problem, text).correct]
    seed = arms.get(arm).label
    written = critiques(problem, answers, CRITICS.get(arm, exact), seed)
    return tuning.shuffle_targets(written, random.Random(seed)) if arm == "shuffled-critiques" else written


def pairs(tokenizer, written):
    """(input, target) token ids of (text, continuation) pairs, for `finetune.fit`."""
    return [(tokenizer(given).input_ids, tokenizer(wanted, add_special_tokens=False).input_ids)
            for given, wanted in written]


def single(weights, problems, samples, n, max_new_tokens):
    """One problem to train on: the middle one, by solve rate, of those that the model solves at all.

    Returns (its index, solve rates (P,), up to n different answers to it with a number in them, tokens
    generated for both), all at temperature 1. BadInput where there are not two answers."""
    net, tokenizer = packaged.load(*weights)
    options = dict(shots=SHOTS, temperature=1.0, max_new_tokens=max_new_tokens)
    drawn = words.sample_words(net, tokenizer, problems, samples, seed=1, **options)
    chosen = tuning.spread(drawn.correct.mean(1), 3)[1]
    again = words.sample_words(net, tokenizer, [problems[chosen]], 4 * n, seed=2, **options)
    lines = dict.fromkeys(" " + text.strip().split("\n")[0] for text in again.texts[0])
    answers = [line for line in lines if words.extract(line)][:n]
    if len(answers) < 2:
        raise BadInput(f"n_candidates is {n}, but the model gave only {len(answers)} different answers with "
                       f"a number to {problems[chosen].question!r}; allowed is a model that gives 2.")
    return chosen, drawn.correct.mean(1), answers, drawn.tokens + again.tokens


def told(problem, index, rates, answers, spent):
    """What a page tells of the problem that `single` chose, and what critics say of one wrong answer."""
    right = [words.grade(problem, text).correct for text in answers]
    example = answers[right.index(False) if False in right else 0]
    return {"question": problem.question, "rates": rates, "chosen": rates[index], "answers": answers,
            "right": right, "spent": spent, "example": example,
            "critiques": {name: critic(problem, example, random.Random(0))
                          for name, critic in CRITICS.items()}}


def judged(problems, rng):
    """(problem, answer) pairs to review: each problem with its right answer and with a wrong one, which
    differ in nothing else, so that always saying the same is right half of the time."""
    found = []
    for problem in problems:
        off = rng.choice((-10, -2, -1, 1, 2, 10))
        for said in (problem.answer, str(int(problem.answer) + off)):
            found.append((problem, f" {_calculation(problem)} = {said}. The answer is {said}."))
    return found


# --- training ---------------------------------------------------------------------------------------

def shared_prefix_logits(net, ids, start):
    """Logits (B, T - start, V) of the positions from `start` on. What all rows begin with, the worked
    examples and often the question, is read once; the head of 262k tokens sees none of it."""
    same = (ids == ids[:1]).all(0).long().cumprod(0).sum().item()
    shared, cache = min(same, start), DynamicCache(config=net.config)
    if shared:
        net(input_ids=ids[:1, :shared], past_key_values=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(len(ids))
    return net(input_ids=ids[:, shared:], past_key_values=cache,
               logits_to_keep=ids.shape[1] - start).logits


def pad_id(tokenizer):
    """What texts are padded with; a tokenizer without an id for it gets 0, since nothing looks there."""
    return 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def logits_from(inputs):
    """`logits` for a trainer whose shortest input is that of `inputs` (lists of token ids)."""
    return functools.partial(shared_prefix_logits, start=min(map(len, inputs)) - 1)


class Outcome(NamedTuple):
    """P problems, n answers each at temperature 1: correct, works (`works_out`) (P, n) bool; low, correct
    (P, n) at the low temperature; tokens an answer; verdicts: share of right verdicts on other problems'
    answers; english: loss in nats a token on text that nobody was trained on; log: what the training says
    of itself."""
    correct: np.ndarray
    works: np.ndarray
    low: np.ndarray
    tokens: float
    verdicts: float
    english: float
    log: dict


def outcome(net, tokenizer, problems, n, max_new_tokens, low_temperature, seed, judged, log=None):
    """`Outcome` of a model on problems. judged: (problem, answer) pairs for it to review, greedily."""
    drawn, low = (words.sample_words(net, tokenizer, problems, n, shots=SHOTS, temperature=temperature,
                                     max_new_tokens=max_new_tokens, seed=seed)
                  for temperature in (1.0, low_temperature))
    prompts = [tokenizer(reviewed(*pair)).input_ids for pair in judged]
    reviews = engine.sample(net, prompts, max_new_tokens=max_new_tokens, temperature=0.0,
                            stop=words.stop_ids(tokenizer))
    said = [verdict(text) for text in tokenizer.batch_decode(reviews.ids(), skip_special_tokens=True)]
    true = ["right" if words.grade(*pair).correct else "wrong" for pair in judged]
    agree = float(np.mean([a == b for a, b in zip(said, true, strict=True)]))
    return Outcome(drawn.correct, np.array([[works_out(text) for text in row] for row in drawn.texts]),
                   low.correct, drawn.tokens / drawn.correct.size, agree, english_loss(net, tokenizer),
                   log or {})


def english_loss(net, tokenizer):
    """Mean loss in nats a token on the questions of ENGLISH word problems, as plain text: what tuning on
    sums makes a model forget."""
    total, size = 0.0, 0
    for problem in words.problems("validation", ENGLISH, 7, {"gsm_symbolic": {}}):
        ids = tokenizer(problem.question, return_tensors="pt").input_ids.to(net.device)
        with torch.no_grad():
            logp = net(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        total -= logp.gather(-1, ids[0, 1:, None]).sum().item()
        size += ids.shape[1] - 1
    return total / size


def gain_parts(o: Outcome, base: Outcome) -> list[stats.Interval]:
    """(when, how) of a gain over the base, as `tuning.gain_split`, with intervals over problems."""
    def parts(d):
        return tuning.gain_split((base.works[d], base.correct[d]), (o.works[d], o.correct[d]))
    n = len(o.correct)
    drawn = np.array([parts(d) for d in np.random.default_rng(0).integers(n, size=(1000, n))])
    return [stats.Interval(value, *np.quantile(x, [0.025, 0.975]))
            for value, x in zip(parts(slice(None)), drawn.T, strict=True)]


# --- the work of one process ------------------------------------------------------------------------

def arm(weights, seed, test, supervise=None, reinforce=None):
    """`Outcome` of a model as it is, or after training a fresh adapter in one of two ways.

    weights: arguments of `packaged.load`; test: those of `outcome`; supervise: of `supervised`, or
    reinforce: of `reinforced`."""
    net, tokenizer = packaged.load(*weights)
    if not (supervise or reinforce):
        return outcome(net, tokenizer, **test)
    trained = model.adapter(net, RANK, seed)
    log = (supervised(trained, tokenizer, seed, **supervise) if supervise else
           reinforced(trained, tokenizer, seed, **reinforce))
    return outcome(trained.merge_and_unload(), tokenizer, log=log, **test)


def supervised(trained, tokenizer, seed, written, steps, target_tokens, lr):
    """`finetune.fit` on (text, continuation) pairs; returns losses and tokens read."""
    data = pairs(tokenizer, written)
    losses, read = finetune.fit(trained, data, steps, target_tokens, lr, seed,
                                logits_from([given for given, _ in data]), MICRO_TOKENS,
                                pad_id(tokenizer))
    return {"losses": losses, "read": read}


class Answer(NamedTuple):
    """What `rl.learn` is told of a rollout."""
    correct: bool
    works: bool


def _works(grade, rng):
    """1 for an answer that writes a calculation out, right or wrong."""
    return float(grade.works)


REWARDS = {"correct": rewards.correct, "format": _works}


def reinforced(trained, tokenizer, seed, problems, recipe, reward="correct"):
    """`rl.learn` on problems, with one of REWARDS; returns its curve."""
    prompts = {p.key: tokenizer(words.prompt(p, SHOTS)).input_ids for p in problems}
    stop = words.stop_ids(tokenizer)

    def rollout_fn(batch, seed):
        asked, samples = [prompts[p.key] for p in batch], recipe["samples"]
        out = engine.sample(model.merged(trained).eval(), asked, samples, stop=stop, seed=seed,
                            max_new_tokens=recipe["max_new_tokens"]).ids()
        texts = tokenizer.batch_decode(out, skip_special_tokens=True)
        owners = [i for i in range(len(batch)) for _ in range(samples)]
        grades = [Answer(words.grade(batch[i], text).correct, works_out(text))
                  for i, text in zip(owners, texts)]
        return [asked[i] + ids for i, ids in zip(owners, out)], [len(asked[i]) for i in owners], grades

    return {"curve": rl.learn(
        trained.train(), problems, recipe | {"micro_tokens": MICRO_TOKENS}, seed, rollout_fn,
        REWARDS[reward], functools.partial(rl.update, logits=logits_from(prompts.values()),
                                           pad_token_id=pad_id(tokenizer)),
        label=f"RL, {reward} reward", measured=Answer._fields)}
