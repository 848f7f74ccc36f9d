"""Steering vectors, one a category of steps, fitted in a frozen model on a thinking model's traces.

Three kinds, all used the same way: added to the residual stream after one block, at the position
whose next token opens a step (the decision position).

    means       mean residual at a category's decision positions minus that at all of them
    optimised   first version of Venhoff et al. (arXiv 2510.07364 v1): a shared bias on random
                spans, then one vector a category on top of the frozen bias, by cross-entropy on
                the thinking model's step given all before it
    network     their later version: vectors, and a small network that sets their strengths from the
                body's own residual, by cross-entropy on the thinking model's token where the two
                models disagree

Where this departs from the paper: it adds the vector all over the step, here only the decision
position gets it, so that few tokens are steered; and all steps of a trace are trained in one pass,
each under the vectors of the earlier ones, which is how they act at run time.

It is quick because the residual stream below the vectors never changes: it is read once and only
the blocks above are run again (`upper`).
"""

import copy
import random
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn

from locksmith import activations, corpus, engine, lab, vocabulary
from locksmith.experiments import taxonomy

BATCH_TOKENS = 1024


class Traces(NamedTuple):
    """texts (lists of token ids, prompt included), starts (index of each trace's first token),
    steps (`taxonomy.Step`s), successful (bool: the successful ones, not merely all)."""
    texts: list
    starts: list
    steps: list
    successful: bool

    def part(self, first, last):
        """The traces from `first` to before `last`, steps renumbered."""
        chosen = [s._replace(text=s.text - first) for s in self.steps if first <= s.text < last]
        return Traces(self.texts[first:last], self.starts[first:last], chosen, self.successful)


def traces(model, task, problems, max_new_tokens, seed=0):
    """One trace a problem, the correct ones; all of them where none is correct."""
    prompts = [vocabulary.encode(p.prompt) for p in problems]
    drawn = engine.sample(model, prompts, max_new_tokens=max_new_tokens, stop=vocabulary.STOP,
                          seed=seed).ids()
    right = [i for i, p in enumerate(problems) if task.grade(p, vocabulary.decode(drawn[i])).correct]
    kept = right or range(len(problems))
    texts, starts = [prompts[i] + drawn[i] for i in kept], [len(prompts[i]) for i in kept]
    return Traces(texts, starts, taxonomy.steps(texts, starts), bool(right))


# --- the frozen body above a block ----------------------------------------------------------------

def upper(model, layer):
    """The model above block `layer`: called with inputs_embeds = the residual stream after it.

    It shares the model's weights. For decoders whose blocks stand in `model.model.layers`.
    """
    def shallow(module):
        other = copy.copy(module)
        other._modules = dict(module._modules)
        return other
    top = shallow(model)
    top.model = shallow(model.model)
    top.model.layers = nn.ModuleList(list(model.model.layers)[layer + 1:])
    return top


class Mark(NamedTuple):
    """One vector to place: in `text`, at `position`; the loss is over text[position + 1:end]."""
    text: int
    position: int
    end: int
    category: int


def marks(steps, categories):
    """A `Mark` for each step: vector at its decision position, loss over the step."""
    return [Mark(s.text, s.start - 1, s.end, int(c))
            for s, c in zip(steps, categories, strict=True)]


class _Batch(NamedTuple):
    """hidden (B, T, D) below the vectors; at (B, T) int64 row of the vector table, 0 = none;
    row, column (M,) of the predicting positions in the loss, target (M,) their next tokens."""
    hidden: torch.Tensor
    at: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    target: torch.Tensor


def _batches(texts, marks, stream, batch_tokens=BATCH_TOKENS):
    """Texts of like length together; stream (all tokens of all texts, D). Texts without a mark are
    left out."""
    of = {}
    for m in marks:
        of.setdefault(m.text, []).append(m)
    stream = stream.split([len(ids) for ids in texts])
    order, out = sorted(of, key=lambda i: -len(texts[i])), []
    while order:
        longest = len(texts[order[0]])
        n = max(1, batch_tokens // longest)
        chosen, order = order[:n], order[n:]
        hidden = torch.zeros(len(chosen), longest, stream[0].shape[1])
        at = torch.zeros(len(chosen), longest, dtype=torch.int64)
        loss = []
        for r, i in enumerate(chosen):
            hidden[r, :len(texts[i])] = stream[i]
            for m in of[i]:
                at[r, m.position] = m.category + 1
                loss += [(r, p, texts[i][p + 1]) for p in range(m.position, m.end - 1)]
        out.append(_Batch(hidden, at, *torch.tensor(loss).T))
    return out


def _train(body, layer, batches, parameters, added, steps, seed):
    """Adam, cosine decay, on the cross-entropy; added(batch) -> (B, T, D) to put on the stream.

    parameters: {tensor: learning rate}.
    """
    top, order = upper(body, layer), torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam([{"params": [p], "lr": lr} for p, lr in parameters.items()])
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    losses, queue = [], []
    for _ in range(steps):
        queue = queue or torch.randperm(len(batches), generator=order).tolist()
        batch = batches[queue.pop()]
        logits = top(inputs_embeds=batch.hidden + added(batch), use_cache=False).logits
        loss = F.cross_entropy(logits[batch.row, batch.column].float(), batch.target)
        # Only what is fitted gets a gradient; the body stays as it is.
        for p, gradient in zip(parameters, torch.autograd.grad(loss, [*parameters]), strict=True):
            p.grad = gradient
        adam.step()
        decay.step()
        losses.append(float(loss.detach()))
    return losses


def _frozen(body):
    return copy.deepcopy(body).float().requires_grad_(False).eval()


# --- three kinds of vectors -----------------------------------------------------------------------

def means(stream, traces, categories, n):
    """Difference of means, (n, D): stream (all tokens of all texts, D) is the body's residual."""
    first = np.cumsum([0, *map(len, traces.texts)])
    at = stream[[int(first[s.text]) + s.start - 1 for s in traces.steps]]
    kinds = torch.as_tensor(categories)
    return torch.stack([at[kinds == c].mean(0) - at.mean(0) if (kinds == c).any()
                        else torch.zeros(at.shape[1]) for c in range(n)])


def _unit(stream):
    """Root mean square of a residual stream's coordinates: the length unit of what is learnt, so
    that one learning rate serves every model and layer."""
    return float(stream.square().mean().sqrt())


def optimised(body, traces, marks, n, layer, *, stream, bias=None, steps=60, lr=0.3, seed=0):
    """(vectors (n, D), loss) of the paper's first version, see the module's docstring.

    marks: where the vectors of which of the n categories stand. bias (D,): frozen, added to each of
    them; to fit it, give `random_spans` as marks and n = 1. stream: the body's residual after
    `layer` at all tokens of traces.texts. lr: in units of the stream's root mean square. loss: in
    nats a token, mean of the last third of the steps.
    """
    dims = stream.shape[1]
    bias = torch.zeros(dims) if bias is None else bias
    vectors, zero = torch.zeros(n, dims, requires_grad=True), torch.zeros(1, dims)
    losses = _train(_frozen(body), layer, _batches(traces.texts, marks, stream),
                    {vectors: lr * _unit(stream)},
                    lambda b: torch.cat([zero, vectors + bias])[b.at], steps, seed)
    return vectors.detach(), float(np.mean(losses[-(len(losses) // 3 + 1):]))


def random_spans(traces, seed=0):
    """Marks as many and as long as the steps, anywhere in their traces: what the bias learns."""
    draw, out = random.Random(f"spans {seed}"), []
    for s in traces.steps:
        first, last = traces.starts[s.text] - 1, len(traces.texts[s.text]) - 1
        position = draw.randrange(first, last)
        out.append(Mark(s.text, position, min(position + 1 + s.end - s.start, last + 1), 0))
    return out


class Coefficients(nn.Module):
    """Strengths of n vectors, (R, D) -> (R, n) above 0: D -> hidden, GELU, n Softplus heads.

    unit: the residual stream is divided by it on the way in.
    """

    def __init__(self, dims, n, hidden, unit, seed=0):
        super().__init__()
        self.unit = unit
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.inner, self.outer = nn.Linear(dims, hidden), nn.Linear(hidden, n)

    def forward(self, x):
        return F.softplus(self.outer(F.gelu(self.inner(x / self.unit))))


def network(body, traces, marks, n, layer, *, stream, hidden=64, steps=120, lr=0.3, seed=0):
    """(vectors (n, D), Coefficients): the later version; the vectors' categories are its own.

    marks: the positions where the models disagree; their categories are ignored, and the loss is on
    the next token alone. The vectors learn at lr, the network at a tenth of it, as in the paper.
    """
    body, dims, unit = _frozen(body), stream.shape[1], _unit(stream)
    coefficients = Coefficients(dims, n, hidden, unit, seed)
    start = torch.randn(n, dims, generator=torch.Generator().manual_seed(seed))
    vectors = (0.1 * unit * start).requires_grad_()
    here = [m._replace(category=0, end=m.position + 2) for m in marks]

    def added(b):
        out = torch.zeros_like(b.hidden)
        on = b.at > 0
        out[on] = coefficients(b.hidden[on]) @ vectors
        return out
    rates = {vectors: lr * unit, **dict.fromkeys(coefficients.parameters(), lr / 10)}
    _train(body, layer, _batches(traces.texts, here, stream), rates, added, steps, seed)
    return vectors.detach(), coefficients.eval().requires_grad_(False)


def random_like(vectors, seed):
    """Random directions with the same norms, (n, D)."""
    drawn = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(seed))
    return F.normalize(drawn, dim=-1) * vectors.norm(dim=-1, keepdim=True)


# --- where the models disagree, and a gate that needs only the base -------------------------------

def disagreeing(body, traces, marks, table, seed=0):
    """Those marks at which a token drawn from the body opens no step of the mark's category.

    The paper compares the two models' greedy tokens; the lab decodes by drawing, so draws are
    compared. table: (V,) category of each word that opens a step, else -1 (`taxonomy.by_opening`).
    """
    places = [[] for _ in traces.texts]
    for m in marks:
        places[m.text].append(m.position)
    p = activations.logits(body, traces.texts, places).softmax(-1)
    drawn = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(seed))[:, 0]
    kinds = iter(table[drawn].tolist())
    opened = {(i, at): next(kinds) for i, some in enumerate(places) for at in some}
    return [m for m in marks if opened[m.text, m.position] != m.category]


def probe(stream, traces, marks, n):
    """(weight (n + 1, D), intercept (n + 1,)): multinomial logistic regression on the body's
    residual at every position of the traces; class = a mark's category, n = no mark here. With the
    marks of `disagreeing` it tells where the body alone would decide otherwise. A category without
    marks gets an intercept that never wins."""
    first = np.cumsum([0, *map(len, traces.texts)])
    labels = np.full(len(stream), n)
    inside = np.zeros(len(stream), bool)
    for i, start in enumerate(traces.starts):
        inside[first[i] + start - 1:first[i + 1] - 1] = True
    for m in marks:
        labels[first[m.text] + m.position] = m.category
    x, y = stream.numpy()[inside], labels[inside]
    weight, intercept = torch.zeros(n + 1, stream.shape[1]), torch.full((n + 1,), -1e4)
    seen = np.unique(y)
    if len(seen) < 2:
        intercept[int(seen[0])] = 0
        return weight, intercept
    middle, scale = x.mean(0), x.std(0) + 1e-6
    model = LogisticRegression(C=1.0, max_iter=1000).fit((x - middle) / scale, y)
    rows = model.coef_ / scale
    constant = model.intercept_ - rows @ middle
    if len(seen) == 2:  # scikit-learn keeps one row for two classes
        rows, constant = np.concatenate([0 * rows, rows]), np.array([0, constant[0]])
    weight[seen] = torch.from_numpy(rows).float()
    intercept[seen] = torch.from_numpy(constant).float()
    return weight, intercept


# --- the work of one process ----------------------------------------------------------------------

class Study(NamedTuple):
    """What is known of a thinking model before any vector is fitted: its traces and their taxonomy.

    categories (list of int) of traces.steps, n of them; opening (V,), the category that a word
    opens, else -1; candidates, rows of `taxonomy.choose`; layer, the chosen one; scores, name ->
    (purity, normalised mutual information) on held-out steps; encode, a module from the thinking
    model's residual stream (R, D) at `layer` to latents (R, n).
    """
    traces: Traces
    categories: list
    n: int
    opening: torch.Tensor
    candidates: list
    layer: int
    scores: dict
    encode: nn.Module


class Latents(nn.Module):
    """Latents (R, n) of residual streams (R, D), centred and scaled as the step averages were."""

    def __init__(self, mean, autoencoder):
        super().__init__()
        self.mean, self.autoencoder = mean, autoencoder.requires_grad_(False)

    def forward(self, x):
        return self.autoencoder.encode(taxonomy.normalise(x, self.mean))


def study(profile, family, seed, n_traces, max_new_tokens, sizes, thinking="thinking"):
    """Draws traces on training problems, a third of them held out, and finds the categories."""
    model = lab.load(profile, family, thinking, seed, exact=True)
    problems = lab.problems(profile, family, n_traces, "train")
    found = traces(model, corpus.FAMILIES[family], problems, max_new_tokens, seed)
    cut = max(1, 2 * len(found.texts) // 3)
    fitted, held_out = found.part(0, cut), found.part(cut, len(found.texts))
    held_out = held_out if held_out.steps else fitted  # a smoke run's single trace
    layers = range(model.config.num_hidden_layers)
    averages, others = (taxonomy.averages(model, t.texts, t.steps, layers)
                        for t in (fitted, held_out))
    candidates, (layer, mean, net) = taxonomy.choose(averages, others, sizes)
    n = len(net.inner)
    x, y = (taxonomy.normalise(a[layer], mean) for a in (averages, others))
    truth, guessed = [s.behaviour for s in held_out.steps], net.assign(y)
    shuffled = guessed[torch.randperm(len(guessed), generator=torch.Generator().manual_seed(seed))]
    scores = {"autoencoder": taxonomy.scores(guessed, truth),
              "k-means": taxonomy.scores(taxonomy.kmeans(x, y, n, seed), truth),
              "random, same sizes": taxonomy.scores(shuffled, truth)}
    everything = taxonomy.averages(model, found.texts, found.steps, [layer])[layer]
    categories = net.assign(taxonomy.normalise(everything, mean)).tolist()
    return Study(found, categories, n, taxonomy.by_opening(found.texts, found.steps, categories, n),
                 candidates, layer, scores, Latents(mean, net))


class Fitted(NamedTuple):
    """What was fitted in a body at a layer: vectors (n, D) on top of bias (D,), means (n, D), probe
    (weight, intercept), losses (of the bias, of the vectors) in nats a token, norm of
    the residual stream (mean)."""
    bias: torch.Tensor
    vectors: torch.Tensor
    means: torch.Tensor
    probe: tuple
    losses: tuple
    norm: float


def fit(profile, family, seed, body, found, layers, steps, body_seed=None):
    """{layer: Fitted} in a lab model; found: the `Study` whose traces and categories are used.

    body_seed: of the body's weights, where they are not those of `seed` (an untrained model of
    `seed` shares its first weights with the base, its words' embeddings among them).
    """
    model = lab.load(profile, family, body, seed if body_seed is None else body_seed, exact=True)
    at = marks(found.traces.steps, found.categories)
    differ = disagreeing(model, found.traces, at, found.opening, seed)
    streams = activations.residuals(model, found.traces.texts, layers)
    out = {}
    for layer in layers:
        how = {"layer": layer, "stream": streams[layer], "steps": steps, "seed": seed}
        bias, start = optimised(model, found.traces, random_spans(found.traces, seed), 1, **how)
        vectors, end = optimised(model, found.traces, at, found.n, bias=bias[0], **how)
        out[layer] = Fitted(
            bias[0], vectors, means(streams[layer], found.traces, found.categories, found.n),
            probe(streams[layer], found.traces, differ, found.n), (start, end),
            float(streams[layer].norm(dim=1).mean()))
    return out


def fit_others(profile, family, seed, found, layer, steps):
    """In the base: (`network`'s vectors (n, D) and Coefficients, one vector (D,) for all steps)."""
    model = lab.load(profile, family, "base", seed, exact=True)
    at = marks(found.traces.steps, found.categories)
    differ = disagreeing(model, found.traces, at, found.opening, seed) or at
    how = {"layer": layer, "steps": steps, "seed": seed,
           "stream": activations.residuals(model, found.traces.texts, [layer])[layer]}
    one, _ = optimised(model, found.traces, [m._replace(category=0) for m in at], 1, **how)
    return *network(model, found.traces, differ, found.n, **how), one[0]
