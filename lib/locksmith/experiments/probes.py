"""Chapter 4's plumbing: is a behaviour a direction, is it the same direction, does it do anything?

1. texts       all models read the same ones: held-out documents by the corpus authors, and the
               thinking model's own traces
2. points      the places where a step may open; a *choice* is one at which the behaviour competes
               with another step after the same kind of token
3. probes      logistic regression on the residual stream, scored on problems it was not fitted on
4. vectors     differences of means, kept as sums a problem so that they can be resampled
5. steering    dose-response of the behaviour's rate, in one batch with common random numbers

A vector of `point` contrast is the mean over the points before a behaviour minus the mean over all
points of the trace (Venhoff et al., arXiv 2506.18167; Ward et al., arXiv 2507.12638, appendix A,
subtract the mean over all tokens). One of `choice` contrast compares the two outcomes of a choice.
"""

import random
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from locksmith import (
    activations,
    corpus,
    device,
    engine,
    grammar,
    lab,
    model,
    stats,
    vocabulary,
)
from locksmith.experiments import skills
from locksmith.tasks import chain, countdown

BEHAVIOURS = tuple(grammar.OPENINGS)  # try, check, wait, conclude
CHOICES = ("wait", "check")  # the two that the chapter asks about
FOLDS = 5
ENOUGH = 20  # events of either outcome, below which nothing is fitted
_TABLE = {name: torch.tensor([word in words for word in vocabulary.VOCABULARY]) for name, words in {
    "number": vocabulary.NUMBERS, "operator": vocabulary.OPERATORS, "equals": ("=",), "no": ("no",),
    "before": ("yes", "no", ":", "next"),
    "concluding": [opening[-1] for opening in grammar.OPENINGS["conclude"]]}.items()}


# --- texts and points -----------------------------------------------------------------------------

@dataclass(frozen=True)
class Text:
    """ids: prompt and trace, one token a word; start: length of the prompt; problem: its index;
    habits: of a corpus document, its hidden author's chance to do each of CHOICES."""
    ids: list
    start: int
    problem: int
    habits: dict | None = None


def documents(profile, family, n_problems, each, split="validation"):
    """Corpus documents on held-out problems, `each` a problem by as many hidden authors."""
    generator = lab.config(profile)["families"][family]
    task, out = corpus.FAMILIES[family], []
    for i, problem in enumerate(lab.problems(profile, family, n_problems, split)):
        for j in range(each):
            rng = random.Random(f"probe {family} {problem.key} {j}")
            author = corpus.author(rng, generator)
            words = task.document(rng, problem, author, generator)
            out.append(Text(vocabulary.encode([*problem.prompt, *words]), len(problem.prompt), i,
                            {"wait": author.persistence, "check": author.check}))
    return out


def traces(net, problems, each, max_new_tokens, seed=0, steer=None):
    """A model's own traces: `each` a problem, problem-major. Returns (texts, rollouts)."""
    prompts = [vocabulary.encode(p.prompt) for p in problems]
    rollouts = engine.sample(net, prompts, each, max_new_tokens=max_new_tokens, stop=vocabulary.STOP,
                             seed=seed, steer=steer)
    return [Text([*prompts[i // each], *ids], len(prompts[i // each]), i // each)
            for i, ids in enumerate(rollouts.ids())], rollouts


def boundaries(family, ids):
    """Where a step may open next: ids (..., T) int64 -> (..., T) bool, read from the grammar alone.

    True at the end of the prompt, after a verdict, a finished attempt and (countdown) an answer.
    """
    def back(k):  # the token k places earlier, <pad> before the start
        return F.pad(ids, (k, 0))[..., :ids.shape[-1]]

    def kind(name, k):
        return _TABLE[name].to(ids.device)[back(k)]

    after = finished(family, ids) | kind("before", 0)
    if family == "countdown":
        after = after | (kind("number", 0) & kind("operator", 1) & kind("number", 2)
                         & kind("operator", 3) & kind("number", 4) & kind("concluding", 5))
    return after


def finished(family, ids):
    """Where an attempt ends with its result: ids (..., T) int64 -> (..., T) bool."""
    table = {name: t.to(ids.device) for name, t in _TABLE.items()}
    back = [F.pad(ids, (k, 0))[..., :ids.shape[-1]] for k in (1, 5)]
    end = table["number"][ids] & table["equals"][back[0]]
    # An attempt in countdown has two operations, `a op b = r op c = s`.
    return end & table["equals"][back[1]] if family == "countdown" else end


@dataclass
class Points:
    """N places of the texts whose next token opens a step: text, place, problem (N,) int; behaviour
    (N,) str, the step that opens; choice: behaviour -> (N,) bool, places where it is a choice."""
    text: np.ndarray
    place: np.ndarray
    problem: np.ndarray
    behaviour: np.ndarray
    choice: dict

    def positions(self, n_texts):
        """One list of places a text, as `activations.residuals` takes them."""
        out = [[] for _ in range(n_texts)]
        for t, p in zip(self.text, self.place, strict=True):
            out[t].append(int(p))
        return out


def points(family, texts):
    """The `Points` of texts, in their order.

    `wait` is a choice after a check that said no, against concluding; `check` after a finished
    attempt, against going on or concluding.
    """
    rows = []
    for i, text in enumerate(texts):
        ids = torch.tensor(text.ids)
        here = boundaries(family, ids)
        here[:text.start - 1] = False
        done, failed = finished(family, ids), _TABLE["no"][ids]
        for p in here[:-1].nonzero()[:, 0].tolist():
            opens = grammar.BEHAVIOUR.get(vocabulary.VOCABULARY[text.ids[p + 1]])
            if opens:
                rows.append((i, p, text.problem, opens, bool(failed[p]), bool(done[p])))
    columns = zip(*rows, strict=True) if rows else [[]] * 6
    text, place, problem, behaviour, failed, done = map(np.array, columns)
    return Points(text, place, problem, behaviour,
                  {"wait": failed.astype(bool), "check": done.astype(bool)})


# --- probes ---------------------------------------------------------------------------------------

def held_out(x, y, groups):
    """Log odds (N,) by a logistic regression on standardised x (N, D), each for a group not seen.

    y (N,) bool; groups (N,) int, one a problem.
    """
    scores = np.zeros(len(y))
    for fit, rest in GroupKFold(FOLDS).split(x, y, groups):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        scores[rest] = probe.fit(x[fit], y[fit]).decision_function(x[rest])
    return scores


def shuffled(y):
    """The labels in a random order: the control for what so many dimensions find by chance."""
    return np.random.default_rng(0).permutation(y)


def enough(y, groups):
    """Whether there are events enough of both outcomes, in problems enough for the folds."""
    y = np.asarray(y, bool)
    return (min(y.sum(), (~y).sum()) >= ENOUGH
            and min(len(set(groups[y])), len(set(groups[~y]))) >= FOLDS)


def auroc(scores, y, weights=None):
    """Chance that a random positive scores above a random negative, ties counting half.

    scores (N,), y (N,) bool; weights (B, N): one value for each of B weightings, (B,).
    NaN where a weighting has no positive or no negative.
    """
    y, one = np.asarray(y, bool), weights is None
    weights = np.ones((1, len(y))) if one else np.asarray(weights, float)
    _, rank = np.unique(scores, return_inverse=True)
    order = np.argsort(rank, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(rank[order]) > 0])
    ordered = weights[:, order]
    up, down = (np.add.reduceat(ordered * side[order], starts, axis=1) for side in (y, ~y))
    below = np.cumsum(down, 1) - down / 2
    with np.errstate(invalid="ignore"):
        value = (up * below).sum(1) / (up.sum(1) * down.sum(1))
    return float(value[0]) if one else value


def auroc_interval(by_seed, resamples=1000, seed=0):
    """Mean AUROC over seeds with its interval over seeds and problems.

    by_seed: one (scores, y, problems) a seed, arrays of one length each. The crossed bootstrap of
    `stats`: a resample draws seeds and, for all of them alike, problems.
    """
    n = 1 + max(int(p.max()) for _, _, p in by_seed)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n, np.full(n, 1 / n), resamples)
    each = np.stack([auroc(s, y, drawn[:, p]) for s, y, p in by_seed], 1)  # (B, seeds)
    share = rng.multinomial(len(by_seed), np.full(len(by_seed), 1 / len(by_seed)), resamples)
    means = (share * np.nan_to_num(each, nan=0.5)).sum(1) / len(by_seed)
    value = float(np.mean([auroc(s, y) for s, y, _ in by_seed]))
    tail = (1 - stats.LEVEL) / 2
    return stats.Interval(value, *map(float, np.quantile(means, [tail, 1 - tail])))


def calibration(scores, y, bins=10):
    """(expected calibration error, rows of (mean probability, share true, n)) of log odds.

    Bins hold equally many scores; the error is the mean distance between the two, weighted by n.
    """
    p, y = 1 / (1 + np.exp(-np.asarray(scores))), np.asarray(y, float)
    rows = [(p[i].mean(), y[i].mean(), len(i))
            for i in np.array_split(np.argsort(p, kind="stable"), bins) if len(i)]
    return float(sum(abs(a - b) * n for a, b, n in rows) / len(y)), rows


# --- vectors --------------------------------------------------------------------------------------

@dataclass
class Means:
    """Sums a problem of the residual stream over two sets of points, from which a vector comes.

    up, down: (P, D) float64 sums; n_up, n_down: (P,) counts.
    """
    up: np.ndarray
    down: np.ndarray
    n_up: np.ndarray
    n_down: np.ndarray

    def vector(self, weights=None):
        """Difference of means (D,), or (B, D) under weights (B, P) of the problems."""
        w = np.ones((1, len(self.up))) if weights is None else np.asarray(weights, float)
        out = (w @ self.up / np.maximum(w @ self.n_up, 1e-9)[:, None]
               - w @ self.down / np.maximum(w @ self.n_down, 1e-9)[:, None])
        return out[0] if weights is None else out


def means(x, up, down, problems, n_problems):
    """`Means` of x (N, D) over the points `up` against the points `down`, (N,) bool each."""
    def sums(chosen):
        total = np.zeros((n_problems, x.shape[1]))
        np.add.at(total, problems[chosen], x[chosen])
        return total, np.bincount(problems[chosen], minlength=n_problems)
    (a, n_a), (b, n_b) = sums(up), sums(down)
    return Means(a, b, n_a, n_b)


def cosine(a, b):
    """Cosine of the last axes."""
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def cosine_interval(pairs, resamples=1000, seed=0):
    """Cosine of two vectors with its interval over seeds and problems.

    pairs: one list a seed of (Means, Means); of several the largest cosine counts, each time.
    """
    n = len(pairs[0][0][0].up)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n, np.full(n, 1 / n), resamples)
    each = np.stack([np.max([cosine(a.vector(drawn), b.vector(drawn)) for a, b in few], 0)
                     for few in pairs], 1)
    share = rng.multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), resamples)
    value = np.mean([max(cosine(a.vector(), b.vector()) for a, b in few) for few in pairs])
    tail = (1 - stats.LEVEL) / 2
    found = np.nanquantile((share * each).sum(1) / len(pairs), [tail, 1 - tail])
    return stats.Interval(float(value), *map(float, found))


def halves(m, seed=0):
    """Two `Means` from random halves of the problems: how alike vectors of one kind can be."""
    first = np.random.default_rng(seed).permutation(len(m.up)) % 2 == 0
    return tuple(Means(m.up * k[:, None], m.down * k[:, None], m.n_up * k, m.n_down * k)
                 for k in (first, ~first))


def noise(vector, seed):
    """A random direction with the norm of `vector` (D,)."""
    out = np.random.default_rng(seed).normal(size=len(vector))
    return out * np.linalg.norm(vector) / np.linalg.norm(out)


# --- steering -------------------------------------------------------------------------------------

def gate(family, behaviour, where, strengths):
    """A gate of `engine.Steer`: strengths (R,) for output rows, at the places `where` names.

    where: "all" from the end of the prompt on (the published way), or "choice", the places where
    the behaviour is a choice, read from the tokens so far.
    """
    def weigh(moment):
        q = moment.positions.shape[1]
        on = moment.positions >= moment.prompt_lengths[:, None] - 1
        if where == "choice":
            ids = moment.tokens
            at = finished(family, ids) if behaviour == "check" else _TABLE["no"].to(ids.device)[ids]
            on = on & at[:, -q:]
        return on * strengths[moment.rows][:, None]
    return weigh


COUNTS = ("rate", "opened", "correct", "tokens", "repeated", "truncated")


def counts(task, problem, ids, behaviour, stopped):
    """One trace in COUNTS: rate, openings of the behaviour among all; opened, their number;
    repeated, share of attempts that stood there before."""
    words = vocabulary.decode(ids)
    grade = task.grade(problem, words)
    opened = grade.behaviours.count(behaviour)
    tried = [tuple(c) for b, c in grammar.steps(words) if b in ("try", "wait")]
    return (opened / max(len(grade.behaviours), 1), opened, grade.correct, len(ids),
            1 - len(set(tried)) / len(tried) if tried else 0, not stopped)


def dose(net, family, problems, layer, vectors, strengths, behaviour, where, max_new_tokens,
         seed=0):
    """Dose-response in one batch: name -> (strengths, problems, len(COUNTS)) float64.

    vectors: name -> (D,), already of the length that strength 1 means. All arms and strengths of a
    problem share their random numbers, and strength 0 is sampled once for all.
    """
    prompts = [vocabulary.encode(p.prompt) for p in problems]
    arms = [(name, s) for name in vectors for s in strengths if s] + [(None, 0)]
    steer = []
    for name, vector in vectors.items():
        weight = torch.tensor([s if name == arm else 0.0 for arm, s in arms for _ in problems])
        mine = weight != 0
        steer.append(engine.Steer(layer, torch.as_tensor(vector, dtype=torch.float32), rows=mine,
                                  gate=gate(family, behaviour, where, weight.to(net.device))))
    out = engine.sample(net, prompts * len(arms), max_new_tokens=max_new_tokens, stop=vocabulary.STOP,
                        seed=seed, keys=list(range(len(prompts))) * len(arms), steer=steer)
    task, stopped = corpus.FAMILIES[family], out.stopped.tolist()
    table = np.array([counts(task, problems[i % len(problems)], ids, behaviour, stopped[i])
                      for i, ids in enumerate(out.ids())], float)
    table = dict(zip(arms, table.reshape(len(arms), len(problems), -1), strict=True))
    return {name: np.stack([table[name, s] if s else table[None, 0] for s in strengths])
            for name in vectors}


def slope(values, strengths):
    """Least-squares slope against strength: values (..., S, P) -> (..., P)."""
    s = np.asarray(strengths, float) - np.mean(strengths)
    return np.tensordot(np.moveaxis(values, -2, -1), s / (s**2).sum(), axes=1)


# --- the work of one process ----------------------------------------------------------------------

def sides(found, behaviour, kind):
    """(up, down), (N,) bool masks over `Points`, of a contrast: "choice" sets the behaviour against
    what else was done at its places, "point" against all points. Going on (`try`) is a choice
    where `check` is one."""
    mine = found.behaviour == behaviour
    if kind == "point":
        return mine, np.ones_like(mine)
    here = found.choice["check" if behaviour == "try" else behaviour]
    return mine & here, ~mine & here


def unit(x, found, behaviour):
    """What strength 1 means: the mean norm of the residual stream x (N, D) where the behaviour is a
    choice. (Elsewhere it can be many times longer, at the end of the prompt above all.)"""
    here = found.choice[behaviour]
    return float(np.linalg.norm(x[here] if here.any() else x, axis=1).mean())


def contrasts():
    """All (kind, behaviour) that a vector can be made of."""
    return [("choice", b) for b in (*CHOICES, "try")] + [("point", b) for b in BEHAVIOURS]


def own_forecasts(net, texts, found):
    """behaviour -> the model's own probability (N,) that it opens next, at each of the points."""
    logits = activations.logits(net, [t.ids for t in texts], found.positions(len(texts)))
    first = {b: [vocabulary.IDS[opening[0]] for opening in grammar.OPENINGS[b]] for b in CHOICES}
    return {b: logits.softmax(-1)[:, ids].sum(-1).double().numpy() for b, ids in first.items()}


def read(profile, family, seed, models, layers, n_problems, each, max_new_tokens, windows):
    """What `models` hold while they read the same texts, for one seed.

    layers: behaviour -> block at which vectors are taken. windows: (first, last) offsets before the
    point, (0, 0) the point itself. Returns a dict of
        counts   (source, behaviour) -> {step that opens: number}, at the places of the choice
        scores   (source, behaviour, kind, model, layer) -> (scores, y, problems); layer -1 is the
                 embeddings; besides the layers there are "shuffled", "own forecast", "author" and
                 (window) for the offsets
        means    (source, model, behaviour) -> {(kind, behaviour): Means} at the behaviour's layer;
                 of base and thinking model also {("window", w): ...} and {("stable", model): ...}
        norms    (model, behaviour) -> mean norm of the residual stream at the choice's places
        stable   (source, behaviour, model) -> (N,) how often of 10 the behaviour came back
    """
    problems = lab.problems(profile, family, n_problems, "validation")
    nets = {which: lab.load(profile, family, which, seed, exact=True) for which in models}
    sources = {"documents": documents(profile, family, n_problems, each),
               "traces": traces(nets["thinking"], problems, 1, max_new_tokens, seed)[0]}
    out = {name: {} for name in ("counts", "scores", "means", "norms", "stable")}
    for source, texts in sources.items():
        found = points(family, texts)
        for b in CHOICES:
            names, n = np.unique(found.behaviour[found.choice[b]], return_counts=True)
            out["counts"][source, b] = dict(zip(names.tolist(), n.tolist(), strict=True))
            out["counts"][source, b]["of all"] = int((found.behaviour == b).sum())
        for which, net in nets.items():
            depth = net.config.num_hidden_layers
            streams = activations.residuals(net, [t.ids for t in texts], list(range(-1, depth)),
                                            found.positions(len(texts)))
            streams = {layer: x.numpy() for layer, x in streams.items()}
            _probe(out["scores"], source, which, found, streams, layers)
            for b, layer in layers.items():
                x, forms = streams[layer], {}
                for kind, other in contrasts():
                    up, down = sides(found, other, kind)
                    if up.sum() >= ENOUGH and down.sum() >= ENOUGH:
                        forms[kind, other] = means(x, up, down, found.problem, n_problems)
                out["means"][source, which, b] = forms
                if source == "documents":
                    out["norms"][which, b] = unit(x, found, b)
        forecasts = {which: own_forecasts(nets[which], texts, found)
                     for which in ("base", "thinking")}
        _references(out["scores"], source, forecasts, texts, found)
        for b, layer in layers.items():
            _stability(out, source, nets, forecasts, texts, found, b, layer, n_problems, seed)
            if source == "documents":
                for which in ("base", "thinking"):
                    _offsets(out, which, nets[which], texts, found, b, layer, n_problems, windows)
    return out


def _probe(scores, source, which, found, streams, layers):
    for b in CHOICES:
        for kind in ("choice", "point"):
            up, down = sides(found, b, kind)
            y, groups = up[up | down], found.problem[up | down]
            if not enough(y, groups):
                continue
            # The easy question is asked of the embeddings and of the behaviour's layer alone.
            asked = streams if kind == "choice" else [-1, *([layers[b]] if b in layers else [])]
            for layer in asked:
                part = streams[layer][up | down]
                scores[source, b, kind, which, layer] = held_out(part, y, groups), y, groups
            if b in layers and kind == "choice":
                x, z = streams[layers[b]][up | down], shuffled(y)
                scores[source, b, kind, which, "shuffled"] = held_out(x, z, groups), z, groups


def _references(scores, source, forecasts, texts, found):
    """What no probe needs to beat: the model's own forecast, and the author's hidden habit."""
    for b in CHOICES:
        up, down = sides(found, b, "choice")
        chosen = up | down
        if not enough(up[chosen], found.problem[chosen]):
            continue
        y, groups = up[chosen], found.problem[chosen]
        for which, forecast in forecasts.items():
            scores[source, b, "choice", which, "own forecast"] = forecast[b][chosen], y, groups
        if texts[0].habits:
            habit = np.array([texts[t].habits[b] for t in found.text[chosen]])
            scores[source, b, "choice", "author", "author"] = habit, y, groups


def _stability(out, source, nets, forecasts, texts, found, b, layer, n_problems, seed):
    """Writes on 10 times from each place at which the behaviour opened (Zhuang, arXiv 2604.02113):
    how often it comes back, and the vector of those places where it does 8 times.

    The next token alone decides, so a count of 10 is drawn from its probability.
    """
    up, down = sides(found, b, "choice")
    if up.sum() < ENOUGH or down.sum() < ENOUGH:
        return
    rng = np.random.default_rng(seed)
    for which, forecast in forecasts.items():
        back = rng.binomial(10, forecast[b][up].clip(0, 1))
        out["stable"][source, b, which] = back
        stable = np.zeros_like(up)
        stable[np.flatnonzero(up)[back >= 8]] = True
        if source == "documents" and stable.sum() >= ENOUGH:
            x = activations.residuals(nets[which], [t.ids for t in texts], [layer],
                                      found.positions(len(texts)))[layer].numpy()
            out["means"][source, which, b]["stable", which] = means(
                x, stable, down, found.problem, n_problems)


def _offsets(out, which, net, texts, found, b, layer, n_problems, windows):
    """Probe and vector of the mean residual stream in windows before the point."""
    longest = max(last for _, last in windows)
    up, down = sides(found, b, "choice")
    chosen = (up | down) & (found.place >= longest)
    y, groups = up[chosen], found.problem[chosen]
    if not enough(y, groups):
        return
    places = [[] for _ in texts]
    for i in np.flatnonzero(chosen):
        places[found.text[i]] += range(found.place[i] - longest, found.place[i] + 1)
    x = activations.residuals(net, [t.ids for t in texts], [layer], places)[layer].numpy()
    x = x.reshape(len(y), longest + 1, -1)[:, ::-1]  # x[:, k] is k places before the point
    for first, last in windows:
        part = x[:, first:last + 1].mean(1)
        key = "documents", b, "choice", which, (first, last)
        out["scores"][key] = held_out(part, y, groups), y, groups
        out["means"]["documents", which, b]["window", (first, last)] = means(
            part, y, ~y, groups, n_problems)


def layer_effects(profile, family, seed, behaviour, n_problems, each, max_new_tokens, strength):
    """Slope of the behaviour's rate in the base at each block, by its own choice vector, on
    validation problems: what the layer is chosen by. None where there are too few events."""
    net = lab.load(profile, family, "base", seed)
    texts = documents(profile, family, n_problems, each)
    found = points(family, texts)
    up, down = sides(found, behaviour, "choice")
    if not enough(up[up | down], found.problem[up | down]):
        return None
    layers = list(range(net.config.num_hidden_layers))
    streams = activations.residuals(net, [t.ids for t in texts], layers,
                                    found.positions(len(texts)))
    problems = lab.problems(profile, family, n_problems, "validation")[:50]
    strengths, out = (-strength, 0, strength), []
    for layer in layers:
        x = streams[layer].numpy()
        vector = x[up].mean(0) - x[down].mean(0)
        vector *= unit(x, found, behaviour) / np.linalg.norm(vector)
        table = dose(net, family, problems, layer, {"base vector": vector}, strengths, behaviour,
                     "choice", max_new_tokens, seed)["base vector"]
        out.append(float(slope(table[..., 0], strengths).mean()))
    return out


def steer(profile, family, seed, which, layer, vectors, strengths, behaviour, where, n_problems,
          max_new_tokens):
    """`dose` of a lab model on test problems."""
    return dose(lab.load(profile, family, which, seed), family,
                lab.problems(profile, family, n_problems), layer, vectors, strengths, behaviour,
                where, max_new_tokens, seed)


# --- does it know that it is wrong? ---------------------------------------------------------------

MOMENTS = ("prompt", "first attempt", "last attempt", "answer", "answer, unchecked")


def answers(family, problem, ids, start):
    """The answers of a trace: a list of (right, {moment: place}), from prompt and trace `ids`.

    "answer" is the last word of the conclusion's opening, before anything of the answer stands
    there; an answer is unchecked if no verdict stands right before that opening.
    """
    words = [vocabulary.VOCABULARY[i] for i in ids]
    done = finished(family, torch.tensor(ids)).tolist()
    out, attempts, i = [], [], start
    while i < len(words) and words[i] not in ("<eos>", "next"):
        length = grammar.opening_length(words, i)
        if length and grammar.BEHAVIOUR[words[i]] == "conclude" and i + length < len(words):
            places = {"prompt": start - 1, "answer": i + length - 1}
            if attempts:
                places |= {"first attempt": attempts[0], "last attempt": attempts[-1]}
            if words[i - 1] not in ("yes", "no"):
                places["answer, unchecked"] = places["answer"]
            out.append((_right(family, problem, words[i + length:], len(out)), places))
            attempts = []
        elif done[i]:
            attempts.append(i)
        i += max(length, 1)
    return out


def _right(family, problem, words, number):
    """Whether the answer that `words` begin with is right, as the `number`-th of its trace."""
    if family == "chain":
        return number == 0 and words[:2] == [str(links[-1][3]) for links in chain.plan(problem)]
    return (number < len(problem.targets)
            and countdown.answer_value(words[:5], problem) == problem.targets[number])


def uncertainty(profile, family, seed, which, layer, n_problems, each, n_test, strengths,
                max_new_tokens):
    """Whether a model knows that it is wrong, and whether steering along that corrects anything.

    The model's own traces of validation problems, read by itself and by an untrained model.
    Returns a dict: scores (moment, reader, layer or "shuffled") -> (scores, y, problems), y = the
    answer that follows is right (moment "step": the step just written is valid); dose, that of
    `steer` on test problems along right minus wrong, everywhere, against noise.
    """
    problems = lab.problems(profile, family, n_problems, "validation")
    net = lab.load(profile, family, which, seed, exact=True)
    texts, _ = traces(net, problems, each, max_new_tokens, seed)
    rows = []  # (moment, text, place, label, problem)
    for i, text in enumerate(texts):
        problem = problems[text.problem]
        for right, places in answers(family, problem, text.ids, text.start):
            rows += [(m, i, p, right, text.problem) for m, p in places.items()]
        ends = (finished(family, torch.tensor(text.ids)).nonzero()[:, 0]).tolist()
        valid = skills.valid_attempts(corpus.FAMILIES[family], problem,
                                      vocabulary.decode(text.ids[text.start:]))
        if len(ends) == len(valid):  # a trace outside the grammar does not say which is which
            rows += [("step", i, p, v, text.problem)
                     for p, v in zip(ends, valid, strict=True)]
    if not rows:
        return {"scores": {}, "dose": None}
    moment, text, place, label, group = map(np.array, zip(*rows, strict=True))
    order = np.argsort(text, kind="stable")
    moment, text, place, label, group = (x[order] for x in (moment, text, place, label, group))
    places = [place[text == i].tolist() for i in range(len(texts))]
    scores, direction = {}, None
    for reader in (which, "untrained"):
        own = net if reader == which else lab.load(profile, family, reader, seed, exact=True)
        layers = list(range(-1, net.config.num_hidden_layers))
        streams = activations.residuals(own, [t.ids for t in texts], layers, places)
        for m in (*MOMENTS, "step"):
            at = moment == m
            if not enough(label[at], group[at]):
                continue
            y, g = label[at].astype(bool), group[at]
            for one, x in streams.items():
                scores[m, reader, one] = held_out(x[at].numpy(), y, g), y, g
            x = streams[layer][at].numpy()
            if reader == which:
                scores[m, reader, "shuffled"] = held_out(x, shuffled(y), g), shuffled(y), g
            if reader == which and m == "answer":
                direction = x[y].mean(0) - x[~y].mean(0)
                length = float(np.linalg.norm(x, axis=1).mean())
    if direction is None:
        return {"scores": scores, "dose": None}
    direction *= length / np.linalg.norm(direction)
    vectors = {"correctness": direction, "noise": noise(direction, seed)}
    return {"scores": scores,
            "dose": steer(profile, family, seed, which, layer, vectors, strengths, "check", "all",
                          n_test, max_new_tokens)}


# --- when the key was cut -------------------------------------------------------------------------

def milestone(profile, family, folder, behaviour, layer, n_problems, each, n_test, strength,
              max_new_tokens):
    """The probe, the vector and its effect in one checkpoint on the way (a folder of `lab.steps`).

    Returns (scores, y, problems), `Means`, the vector's length as a share of the residual stream's,
    and `dose` at 0 and +-strength along the checkpoint's own vector, at choices; None where the
    documents hold too few events.
    """
    net = model.load(folder, *reversed(device.pick()))
    texts = documents(profile, family, n_problems, each)
    found = points(family, texts)
    up, down = sides(found, behaviour, "choice")
    chosen = up | down
    if not enough(up[chosen], found.problem[chosen]):
        return None
    x = activations.residuals(net.float(), [t.ids for t in texts], [layer],
                              found.positions(len(texts)))[layer].numpy()
    y, groups = up[chosen], found.problem[chosen]
    form = means(x, up, down, found.problem, n_problems)
    vector, size = form.vector(), unit(x, found, behaviour)
    length = float(np.linalg.norm(vector))
    net = model.load(folder, *reversed(device.pick()))
    table = dose(net, family, lab.problems(profile, family, n_test), layer,
                 {"own": vector * size / length}, (-strength, 0, strength), behaviour, "choice",
                 max_new_tokens)["own"]
    return (held_out(x[chosen], y, groups), y, groups), form, length / size, table
