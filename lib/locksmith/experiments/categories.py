"""Kinds of steps found without labels, read in the base: chapter 4 where a task knows no kinds.

The thinking model's steps are put into categories as in chapter 1 (`taxonomy`). Each category is
then a label of places like any other: is it in the base, one token before the step, that the
thinking model is about to open a step of this category, and is it the same direction there?
"""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import adjusted_mutual_info_score

from locksmith import activations
from locksmith.experiments import taxonomy
from locksmith.experiments.directions import Means, means
from locksmith.experiments.places import Sizes, Text, traces
from locksmith.experiments.probes import ENOUGH, Scored, enough, score, score_shuffled
from locksmith.loading import Model, Pair

LATENTS = 6  # categories at most


class Found(NamedTuple):
    """The commonest category of a seed. scores: reader (a role, "embeddings", "shuffled") ->
    Scored; means: role -> Means; share: of steps in it; agreement: of two fits, adjusted mutual
    information; example: a step in it."""
    scores: dict[str, Scored]
    means: dict[str, Means]
    share: float
    agreement: float
    example: str


def find(pair: Pair, roles: list[str], layer: int, sizes: Sizes) -> Found | None:
    """Categories of the thinking model's steps, at a layer, and what `roles` hold before steps of
    the commonest one. sizes.documents: answers a problem. None where there are too few steps."""
    writer, task = pair.measured("thinking"), pair.rules
    texts, _ = traces(writer, task, pair.problems(sizes.n_problems, "validation"), sizes.documents,
                      max_new_tokens=sizes.max_new_tokens, seed=pair.seed)
    steps = taxonomy.steps(writer, task, [t.ids for t in texts], [t.start for t in texts])
    if len(steps) < 2 * ENOUGH:
        return None
    assigned, agreement = assign(writer, texts, steps, layer)
    mine = assigned == np.bincount(assigned).argmax()
    groups = np.array([texts[s.text].problem for s in steps])
    if not enough(mine, groups):
        return None
    scores, forms = {}, {}
    for role in roles:
        streams = before(pair.measured(role), texts, steps, [-1, layer])
        scores[role] = score(streams[layer], mine, groups)
        forms[role] = means(streams[layer], mine, ~mine, groups, sizes.n_problems)
        if role == "base":
            scores["embeddings"] = score(streams[-1], mine, groups)
            scores["shuffled"] = score_shuffled(streams[layer], mine, groups)
    one = steps[int(np.flatnonzero(mine)[0])]
    example = writer.decode(texts[one.text].ids[one.start:one.end]).strip()
    return Found(scores, forms, float(mine.mean()), agreement, example)


def assign(model: Model, texts: list[Text], steps: list, layer: int) -> tuple[np.ndarray, float]:
    """((N,) int, the category of each step; how far the fits of two seeds agree)."""
    x = taxonomy.averages(model, [t.ids for t in texts], steps, [layer])[layer]
    x = taxonomy.normalise(x, x.mean(0))
    one, other = (taxonomy.fit(x, LATENTS, seed=seed).assign(x).numpy() for seed in (0, 1))
    return one, float(adjusted_mutual_info_score(one, other))


def before(model: Model, texts: list[Text], steps: list,
           layers: list[int]) -> dict[int, np.ndarray]:
    """{layer: (N, D)} at the token before each step."""
    positions = [[] for _ in texts]
    for step in steps:
        positions[step.text].append(step.start - 1)
    read = activations.residuals(model.net, [t.ids for t in texts], layers, positions)
    return {layer: x.numpy() for layer, x in read.items()}
