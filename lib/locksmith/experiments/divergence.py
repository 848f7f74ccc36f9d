"""How far RL moved a model, where a step is chosen and where it is carried out.

At every token of the thinking model's own answers: KL(thinking || base) of the next token's
distributions, in nats, over the whole vocabulary and not only of the token that was drawn, and the
thinking model's entropy minus the base's.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from locksmith import activations, rollouts, tasks
from locksmith.errors import BadInput
from locksmith.experiments import sampling
from locksmith.loading import Model, Pair
from locksmith.rollouts import Answers

POSITIONS = ("decision", "execution")
MOST_LOGITS = 2**25  # of one model held at once


class Divergence(NamedTuple):
    """Of P problems, each (P,), summed over tokens: nats of the KL; entropy, its change in nats;
    tokens, how many there are."""
    nats: np.ndarray
    entropy: np.ndarray
    tokens: np.ndarray


def of_answers(pair: Pair, n_problems: int, n: int, max_new_tokens: int) -> dict[str, Divergence]:
    """`kl` at n answers of the thinking model to each of the first test problems, drawn at
    temperature 1 with the random numbers of the pair's seed."""
    return kl(pair, rollouts.answer(pair.load("thinking"), pair.rules, pair.problems(n_problems), n,
                                    max_new_tokens=max_new_tokens, seed=pair.seed))


def kl(pair: Pair, answers: Answers) -> dict[str, Divergence]:
    """Position -> `Divergence` at the tokens of the thinking model's answers, sampled at any
    temperature: "decision" at those that open a step or end the answer, "execution" elsewhere.

    Both models read the answers in float32, each behind its own prompt. BadInput where their
    tokenizers differ.
    """
    base, thinking = (pair.load(role, exact=True) for role in ("base", "thinking"))
    if base.tokenizer.get_vocab() != thinking.tokenizer.get_vocab():
        raise BadInput(f"thinking_model is {pair.name('thinking')!r}, whose tokenizer is not that "
                       f"of {pair.name('base')}; allowed for a divergence is one that shares it.")
    rows = [(i, ids) for i, row in enumerate(answers.ids) for ids in row]
    owner = np.repeat([i for i, _ in rows], [len(ids) for _, ids in rows])
    nats, entropy = np.concatenate(list(_nats([base, thinking], pair, answers, rows)), 1)
    decision = np.concatenate([_decides(thinking, answers, i, s)
                               for i, row in enumerate(answers.ids) for s in range(len(row))])
    size = len(answers.problems)
    return {position: Divergence(*(np.bincount(owner[some], x[some], size)
                                   for x in (nats, entropy)),
                                 np.bincount(owner[some], minlength=size))
            for position, some in zip(POSITIONS, (decision, ~decision))}


def _decides(model: Model, answers, i, s):
    """(tokens,) bool of an answer: with the token a step opens, or the answer ends. The later
    tokens of an opening follow from its first."""
    ids, task = answers.ids[i][s], tasks.load(answers.task)
    decides = np.array(sampling.opens(model, task, answers.texts[i][s], ids))
    decides[-1] |= bool(answers.stopped[i, s])
    return decides


def _nats(models, pair, answers, rows):
    """KL and the change of entropy at every token of rows [(problem, ids)], (2, tokens) float64 a
    chunk of rows."""
    prompts = {i: [model.ask(pair.rules, answers.problems[i]) for model in models]
               for i in {i for i, _ in rows}}
    width = min(model.net.config.get_text_config().vocab_size for model in models)
    for some in activations.chunks([len(ids) * width for _, ids in rows], MOST_LOGITS):
        chosen = [rows[j] for j in some]
        base, thinking = (_logits(model, [prompts[i][which] for i, _ in chosen],
                                  [ids for _, ids in chosen])
                          for which, model in enumerate(models))
        base, thinking = base[:, :width], thinking[:, :width]  # beyond it: padding
        yield np.stack([divergence(thinking, base).numpy(),
                        (entropy(thinking) - entropy(base)).numpy()])


def _logits(model, prompts, continuations):
    """Logits from which each token of continuations was drawn, (tokens, vocabulary)."""
    places = [range(len(a) - 1, len(a) + len(b) - 1) for a, b in zip(prompts, continuations)]
    return activations.logits(model.net, [[*a, *b] for a, b in zip(prompts, continuations)],
                              places)


def entropy(logits: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, " rows"]:
    """In nats, of next-token distributions given by logits; float64."""
    p = logits.double().log_softmax(-1)
    return -(p.exp() * p).sum(-1)


def divergence(p: Float[Tensor, "rows vocabulary"],
               q: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, " rows"]:
    """KL(p || q) in nats of two next-token distributions given by logits; float64."""
    p, q = (x.double().log_softmax(-1) for x in (p, q))
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)  # rounding may leave it below
