"""What models hold while they read the same texts: one job a task and seed.

Every model reads all texts; its residual stream is kept at all places; probes are fitted, and the
sums for difference-of-means vectors are kept problem by problem. What a probe has to be compared
with: the same on an untrained model, on the embeddings alone, on shuffled labels, the model's own
forecast of the next token, and what can be known of the chance with which the outcome was drawn:
of a hidden author in the lab, from the text so far; of the base itself where it is read what that
does next.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from locksmith import activations
from locksmith.experiments.directions import Means, means, unit
from locksmith.experiments.places import (
    Places,
    Sizes,
    Text,
    behaviours,
    contrasts,
    documents,
    headline,
    opening_ids,
    places,
    traces,
)
from locksmith.experiments.probes import ENOUGH, Scored, enough, score, score_shuffled
from locksmith.loading import Model, Pair

AGAIN, STABLE = 10, 8  # continuations from a place, and how many of them make it a stable one


class ProbeSpec(NamedTuple):
    """Which probe: of a behaviour at its places, by a reader (a role, or "author") at a layer (-1
    the embeddings, None where no layer is read). variant: "", "shuffled" labels, "forecast" (the
    model's own) or "author"; window: (first, last) tokens before the place, whose mean is read."""
    behaviour: str
    reader: str
    layer: int | None
    source: str = "documents"
    kind: str = "choice"
    variant: str = ""
    window: tuple | None = None


class Form(NamedTuple):
    """Which vector: of a behaviour, from a reader's stream at the layer of `at`, a behaviour that
    the chapter asks about. kind: "choice", "point", or "stable", the choices that bring it
    back."""
    reader: str
    at: str
    behaviour: str
    kind: str = "choice"
    source: str = "documents"
    window: tuple | None = None


@dataclass
class Reading:
    """What was read with one seed.

    counts: (source, behaviour) -> {what opens: number} at the places of the choice, and "of all";
    scores: ProbeSpec -> Scored; means: Form -> Means; norms: (reader, behaviour) -> mean norm of
    the stream at the choice's places; stable: (source, behaviour, reader) -> (n,) how often of
    AGAIN the behaviour came back.
    """
    counts: dict = field(default_factory=dict)
    scores: dict[ProbeSpec, Scored] = field(default_factory=dict)
    means: dict[Form, Means] = field(default_factory=dict)
    norms: dict = field(default_factory=dict)
    stable: dict = field(default_factory=dict)

    def vector(self, reader: str, at: str, behaviour: str | None = None, kind: str = "choice",
               **which: Hashable) -> np.ndarray | None:
        """The difference of means (D,) of a `Form`, None where there were too few events."""
        found = self.means.get(Form(reader, at, behaviour or at, kind, **which))
        return None if found is None else found.vector()

    def scaled(self, vector: np.ndarray, reader: str, at: str) -> np.ndarray:
        """A vector with the length that strength 1 means in a model."""
        return vector * self.norms[reader, at] / np.linalg.norm(vector)


def read(pair: Pair, roles: list[str], layers: dict[str, int], sizes: Sizes,
         windows: list[tuple]) -> Reading:
    """What the models in `roles` hold while they read documents and the thinking model's traces.

    layers: behaviour -> block at which its vectors are taken. windows: (first, last) offsets
    before the place, (0, 0) the place itself.
    """
    task, out = pair.rules, Reading()
    models = {role: pair.measured(role) for role in roles}
    writer = models.get("thinking", models["base"])
    problems = pair.problems(sizes.n_problems, "validation")
    sources = {"documents": documents(pair, models["base"], sizes.n_problems, sizes.documents),
               "traces": traces(writer, task, problems, 1, max_new_tokens=sizes.max_new_tokens,
                                seed=pair.seed)[0]}
    for source, texts in sources.items():
        found = places(task, writer, texts)
        out.counts |= {(source, b): count(found, b) for b in behaviours(task)}
        if not len(found.place):
            continue
        for role, model in models.items():
            streams = stream(model, texts, found)
            out.scores |= probe(source, role, task, found, streams, layers)
            out.means |= forms(source, role, task, found, streams, layers, sizes.n_problems)
            if source == "documents":
                out.norms |= {(role, b): unit(streams[at], found, b) for b, at in layers.items()}
        compared = {role: models[role] for role in ("base", "thinking") if role in models}
        forecasts = {role: forecast(model, task, texts, found) for role, model in compared.items()
                     if task.OPENINGS or role == "base"}
        out.scores |= references(source, task, forecasts, texts, found)
        for b, layer in layers.items():
            if task.OPENINGS:
                back = came_back(forecasts, found, b, pair.seed)
                out.stable |= {(source, b, role): times for role, times in back.items()}
            for role, model in compared.items() if source == "documents" else ():
                if (source, b, role) in out.stable:
                    here = stream(model, texts, found, [layer])[layer]
                    out.means |= stable_form(role, here, found, b, back[role], sizes.n_problems)
                if b != headline(task) or b == "work":  # before an answer stands the question
                    continue
                scores, vectors = before(model, texts, found, b, layer, windows, sizes.n_problems)
                out.scores |= {ProbeSpec(b, role, layer, window=w): s for w, s in scores.items()}
                out.means |= {Form(role, b, b, window=w): m for w, m in vectors.items()}
    return out


def count(found: Places, behaviour: str) -> dict:
    """{what opens: number} at the places of a choice, and "of all", how often the behaviour
    opens."""
    names, n = np.unique(found.opens[found.choice[behaviour]], return_counts=True)
    return {**dict(zip(names.tolist(), n.tolist(), strict=True)),
            "of all": int((found.opens == behaviour).sum())}


def stream(model: Model, texts: list[Text], found: Places,
           layers: Sequence[int] | None = None) -> dict[int, np.ndarray]:
    """{layer: (N, D)} at all places; by default at all blocks and the embeddings (-1)."""
    read = activations.residuals(model.net, [t.ids for t in texts],
                                 list(range(-1, model.depth)) if layers is None else layers,
                                 found.positions(len(texts)))
    return {layer: x.numpy() for layer, x in read.items()}


def probe(source: str, role: str, task: ModuleType, found: Places, streams: dict,
          layers: dict) -> dict:
    """ProbeSpec -> Scored of every behaviour: its choice at every layer and with shuffled labels at
    the behaviour's; the easier question, whether it opens at any place, at the latter and the
    embeddings."""
    out = {}
    for b in behaviours(task):
        rows, y, groups = found.chosen(b)
        if enough(y, groups):
            for layer, x in streams.items():
                out[ProbeSpec(b, role, layer, source)] = score(x[rows], y, groups)
            if b in layers:
                out[ProbeSpec(b, role, layers[b], source, variant="shuffled")] = score_shuffled(
                    streams[layers[b]][rows], y, groups)
        rows, y, groups = found.chosen(b, "point")
        if enough(y, groups):
            for layer in [-1, *([layers[b]] if b in layers else [])]:
                out[ProbeSpec(b, role, layer, source, "point")] = score(
                    streams[layer][rows], y, groups)
    return out


def forms(source: str, role: str, task: ModuleType, found: Places, streams: dict, layers: dict,
          n_problems: int) -> dict:
    """Form -> Means of every contrast with enough events, at the layer of every behaviour."""
    out = {}
    for at, layer in layers.items():
        for kind, b in contrasts(task):
            up, down = found.sides(b, kind)
            if up.sum() >= ENOUGH and down.sum() >= ENOUGH:
                out[Form(role, at, b, kind, source)] = means(
                    streams[layer], up, down, found.problem, n_problems)
    return out


def forecast(model: Model, task: ModuleType, texts: list[Text],
             found: Places) -> dict[str, np.ndarray]:
    """behaviour -> the model's own probability (N,) that it opens next, at each of the places; NaN
    where it is none or its words are more than one."""
    asked = [b for b in behaviours(task) if b != "work"]
    rows = found.opens != "" if task.OPENINGS else np.any([found.choice[b] for b in asked], 0)
    out = {b: np.full(len(rows), np.nan) for b in asked}
    if rows.any():
        p = activations.logits(model.net, [t.ids for t in texts],
                               found.positions(len(texts), rows)).softmax(-1)
        for b in asked:
            out[b][rows] = p[:, opening_ids(model, task, b)].sum(-1).double().numpy()
    return out


def references(source: str, task: ModuleType, forecasts: dict, texts: list[Text],
               found: Places) -> dict:
    """What no probe needs to beat: the models' own forecasts, and what can be known of the author's
    habit."""
    out = {}
    for b in behaviours(task):
        rows, y, groups = found.chosen(b)
        if not enough(y, groups):
            continue
        for role, own in forecasts.items():
            if b in own:
                out[ProbeSpec(b, role, None, source, variant="forecast")] = Scored(
                    own[b][rows], y, groups)
        if all(b in texts[t].habits for t in found.text[rows]):
            known = posterior([texts[t].habits[b] for t in found.text[rows]], found.text[rows], y)
            out[ProbeSpec(b, "author", None, source, variant="author")] = Scored(known, y, groups)
    return out


def posterior(habits: Sequence[Sequence[float]], text: Int[np.ndarray, " places"],
              y: Bool[np.ndarray, " places"]) -> Float[np.ndarray, " places"]:
    """The chance of a behaviour at each of its places, in the order of reading, for somebody who
    knows what habits there are (each equally likely, those of the place's text) and what happened
    at the text's earlier places: the mean of Bayes' posterior."""
    weights, known = {}, []
    for own, t, happened in zip(habits, text, y, strict=True):
        chance = np.clip(own, 1e-3, 1 - 1e-3)
        weight = weights.get(t, np.ones(len(chance)))
        known.append(chance @ weight / weight.sum())
        weights[t] = weight * (chance if happened else 1 - chance)
    return np.array(known)


def came_back(forecasts: dict, found: Places, behaviour: str, seed: int) -> dict[str, np.ndarray]:
    """role -> (n,) how often of AGAIN the behaviour came back when the model wrote on from each
    place at which it had opened (Zhuang, arXiv 2604.02113); {} where there are too few.

    The next token alone decides, so a count is drawn from its probability.
    """
    up, down = found.sides(behaviour)
    if up.sum() < ENOUGH or down.sum() < ENOUGH:
        return {}
    rng = np.random.default_rng(seed)
    return {role: rng.binomial(AGAIN, own[behaviour][up].clip(0, 1))
            for role, own in forecasts.items()}


def stable_form(role: str, x: np.ndarray, found: Places, behaviour: str, back: np.ndarray,
                n_problems: int) -> dict:
    """The vector of the places from which the behaviour came back STABLE times, if they are
    enough."""
    up, down = found.sides(behaviour)
    stable = np.zeros_like(up)
    stable[np.flatnonzero(up)[back >= STABLE]] = True
    if stable.sum() < ENOUGH:
        return {}
    return {Form(role, behaviour, behaviour, "stable"): means(x, stable, down, found.problem,
                                                              n_problems)}


def before(model: Model, texts: list[Text], found: Places, behaviour: str, layer: int,
           windows: list[tuple], n_problems: int) -> tuple[dict, dict]:
    """({window: Scored}, {window: Means}) of the mean stream in windows of tokens before the
    place."""
    longest = max(last for _, last in windows)
    chosen, _, _ = found.chosen(behaviour)
    chosen &= found.place >= longest
    y, groups = found.sides(behaviour)[0][chosen], found.problem[chosen]
    if not enough(y, groups):
        return {}, {}
    positions = [[] for _ in texts]
    for i in np.flatnonzero(chosen):
        positions[found.text[i]] += range(found.place[i] - longest, found.place[i] + 1)
    x = activations.residuals(model.net, [t.ids for t in texts], [layer], positions)[layer].numpy()
    x = x.reshape(len(y), longest + 1, -1)[:, ::-1]  # x[:, k] is k places before
    parts = {(first, last): x[:, first:last + 1].mean(1) for first, last in windows}
    return ({w: score(part, y, groups) for w, part in parts.items()},
            {w: means(part, y, ~y, groups, n_problems) for w, part in parts.items()})
