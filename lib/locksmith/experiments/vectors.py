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
each under the vectors of the earlier ones, which is how they act at run time. The traces are read
behind the prompt that the base is given, also by a thinking model that wrote them in a chat.

It is quick because the residual stream below the vectors never changes: it is read once and only
the blocks above are run again (`upper`).
"""

import copy
import random
from collections.abc import Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from transformers import PreTrainedModel

from locksmith import activations, rollouts
from locksmith.errors import BadInput
from locksmith.experiments import taxonomy
from locksmith.loading import Pair

BATCH_TOKENS = 1024
TRACE_TOKENS = 1000  # of a trace at most, as in the authors' code


class Traces(NamedTuple):
    """texts (lists of token ids, prompt included), starts (index of each trace's first token),
    steps (`taxonomy.TokenStep`s), successful (bool: the successful ones, not merely all)."""
    texts: list
    starts: list
    steps: list
    successful: bool

    def part(self, first: int, last: int) -> "Traces":
        """The traces from `first` to before `last`, steps renumbered."""
        chosen = [s._replace(text=s.text - first) for s in self.steps if first <= s.text < last]
        return Traces(self.texts[first:last], self.starts[first:last], chosen, self.successful)


def traces(pair: Pair, n: int, max_new_tokens: int) -> Traces:
    """One trace of the thinking model a training problem, the correct ones; all of them where none
    is correct, or the correct ones hold no step. BadInput where all hold none."""
    thinking, base = pair.load("thinking"), pair.load("base")
    problems = pair.problems(n, "train")
    drawn = rollouts.answer(thinking, pair.rules, problems, seed=pair.seed,
                            max_new_tokens=min(max_new_tokens, TRACE_TOKENS))
    right = drawn.correct[:, 0].nonzero()[0].tolist()
    for kept in (right, range(n)):
        prompts = [base.ask(pair.rules, problems[i]) for i in kept]
        texts = [prompt + drawn.ids[i][0] for prompt, i in zip(prompts, kept)]
        starts = [len(prompt) for prompt in prompts]
        if steps := taxonomy.steps(thinking, pair.rules, texts, starts):
            return Traces(texts, starts, steps, kept is right)
    raise BadInput(f"n_traces is {n} and max_new_tokens {max_new_tokens}: in so few and short "
                   f"traces {thinking.name} wrote no step of {pair.task}; allowed are more.")


# --- the frozen body above a block ----------------------------------------------------------------

def upper(model: PreTrainedModel, layer: int) -> PreTrainedModel:
    """The model above block `layer`: called with inputs_embeds = the residual stream after it.

    It shares the model's weights. BadInput for decoders whose blocks do not stand in
    `model.model.layers` (those of Llama, Qwen, Mistral and Gemma 3 do).
    """
    if not hasattr(getattr(model, "model", None), "layers"):
        raise BadInput(f"model is a {type(model).__name__}, which has no model.layers; allowed for "
                       "fitting vectors are decoders that have, such as Llama, Qwen and Gemma 3.")

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


def marks(steps: Sequence[taxonomy.TokenStep], categories: Sequence[int]) -> list[Mark]:
    """A `Mark` for each step: vector at its decision position, loss over the step."""
    return [Mark(s.text, s.start - 1, s.end, int(c))
            for s, c in zip(steps, categories, strict=True)]


class _MarkedBatch(NamedTuple):
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
        out.append(_MarkedBatch(hidden, at, *torch.tensor(loss).T))
    return out


def _train(body, layer, batches, parameters, added, steps, seed):
    """Adam, cosine decay, on the cross-entropy; added(batch) -> (B, T, D) to put on the stream.

    parameters: {tensor: learning rate}; no other tensor gets a gradient.
    """
    top, order = upper(body, layer), torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam([{"params": [p], "lr": lr} for p, lr in parameters.items()])
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    losses, queue = [], []
    with _frozen(body):
        for _ in range(steps):
            queue = queue or torch.randperm(len(batches), generator=order).tolist()
            batch = batches[queue.pop()]
            stream = (batch.hidden + added(batch)).to(body.device, body.dtype)
            logits = top(inputs_embeds=stream, use_cache=False).logits[batch.row, batch.column]
            loss = F.cross_entropy(logits.float(), batch.target.to(body.device))
            gradients = torch.autograd.grad(loss, [*parameters])
            for p, gradient in zip(parameters, gradients, strict=True):
                p.grad = gradient
            adam.step()
            decay.step()
            losses.append(float(loss.detach()))
    return losses


@contextmanager
def _frozen(body):
    """Inside, no weight of the body wants a gradient, so that none is kept for it."""
    wanted = [p for p in body.parameters() if p.requires_grad]
    body.requires_grad_(False)
    try:
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)


# --- three kinds of vectors -----------------------------------------------------------------------

def means(stream: Float[Tensor, "tokens width"], traces: Traces, categories: Sequence[int],
          n: int) -> Float[Tensor, "n width"]:
    """Difference of means; stream: the body's residual at all tokens of all texts."""
    first = np.cumsum([0, *map(len, traces.texts)])
    at = stream[[int(first[s.text]) + s.start - 1 for s in traces.steps]]
    kinds = torch.as_tensor(categories)
    return torch.stack([at[kinds == c].mean(0) - at.mean(0) if (kinds == c).any()
                        else torch.zeros(at.shape[1]) for c in range(n)])


def _unit(stream):
    """Root mean square of a residual stream's coordinates: the length unit of what is learnt, so
    that one learning rate serves every model and layer."""
    return float(stream.square().mean().sqrt())


def optimised(body: PreTrainedModel, traces: Traces, marks: Sequence[Mark], n: int, layer: int, *,
              stream: Float[Tensor, "tokens width"], bias: Float[Tensor, " width"] | None = None,
              steps: int = 60, lr: float = 0.3,
              seed: int = 0) -> tuple[Float[Tensor, "n width"], float]:
    """(vectors, loss) of the paper's first version, see the module's docstring.

    marks: where the vectors of which of the n categories stand. bias: frozen, added to each of
    them; to fit it, give `random_spans` as marks and n = 1. stream: the body's residual after
    `layer` at all tokens of traces.texts. lr: in units of the stream's root mean square. loss: in
    nats a token, mean of the last third of the steps.
    """
    dims = stream.shape[1]
    bias = torch.zeros(dims) if bias is None else bias
    vectors, zero = torch.zeros(n, dims, requires_grad=True), torch.zeros(1, dims)
    losses = _train(body, layer, _batches(traces.texts, marks, stream),
                    {vectors: lr * _unit(stream)},
                    lambda b: torch.cat([zero, vectors + bias])[b.at], steps, seed)
    return vectors.detach(), float(np.mean(losses[-(len(losses) // 3 + 1):]))


def random_spans(traces: Traces, seed: int = 0) -> list[Mark]:
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

    def __init__(self, dims: int, n: int, hidden: int, unit: float, seed: int = 0):
        super().__init__()
        self.unit = unit
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.inner, self.outer = nn.Linear(dims, hidden), nn.Linear(hidden, n)

    def forward(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows n"]:
        return F.softplus(self.outer(F.gelu(self.inner(x / self.unit))))


def network(body: PreTrainedModel, traces: Traces, marks: Sequence[Mark], n: int, layer: int, *,
            stream: Float[Tensor, "tokens width"], hidden: int = 64, steps: int = 120,
            lr: float = 0.3, seed: int = 0) -> tuple[Float[Tensor, "n width"], Coefficients]:
    """(vectors, Coefficients): the later version; the vectors' categories are its own.

    marks: the positions where the models disagree; their categories are ignored, and the loss is on
    the next token alone. The vectors learn at lr, the network at a tenth of it, as in the paper.
    """
    dims, unit = stream.shape[1], _unit(stream)
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


def random_like(vectors: Float[Tensor, "n width"], seed: int) -> Float[Tensor, "n width"]:
    """Random directions with the same norms."""
    drawn = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(seed))
    return F.normalize(drawn, dim=-1) * vectors.norm(dim=-1, keepdim=True)


# --- where the models disagree, and a gate that needs only the base -------------------------------

def disagreeing(body: PreTrainedModel, traces: Traces, marks: Sequence[Mark],
                tell: taxonomy.Categoriser, seed: int = 0, most: int = 2**28) -> list[Mark]:
    """Those marks at which a token drawn from the body differs from the thinking model's.

    The paper compares the two models' greedy tokens; here answers are drawn, so draws are compared.
    tell: the `taxonomy.Categoriser`, which says what differs. most: logits that are read at once.
    """
    places = [[] for _ in traces.texts]
    for m in marks:
        places[m.text].append(m.position)
    sizes = [body.config.get_text_config().vocab_size * len(some) for some in places]
    draw, own = torch.Generator().manual_seed(seed), {}
    for part in activations.chunks(sizes, most):
        at = [(i, place) for i in part for place in places[i]]
        if at:
            p = activations.logits(body, [traces.texts[i] for i in part],
                                   [places[i] for i in part]).softmax(-1)
            own |= dict(zip(at, torch.multinomial(p, 1, generator=draw)[:, 0]))
    return [m for m in marks if tell.differ(
        own[m.text, m.position], torch.tensor(traces.texts[m.text][m.position + 1]), m.category)]


def probe(stream: Float[Tensor, "tokens width"], traces: Traces, marks: Sequence[Mark],
          n: int) -> tuple[Float[Tensor, "classes width"], Float[Tensor, " classes"]]:
    """(weight, intercept): multinomial logistic regression on the body's
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

class TraceStudy(NamedTuple):
    """What is known of a thinking model before any vector is fitted: its traces and their taxonomy.

    categories (list of int) of traces.steps, n of them; opening (V,), the category of most steps
    that a token begins, else -1; candidates, rows of `taxonomy.choose`; layer, the chosen one;
    scores, name -> (purity, normalised mutual information) on held-out steps, {} where the task
    does not know their kinds; tell, how a category is known while a model writes; places, a `Mark`
    wherever a gate may ask: at the steps' openings, or at every token where openings are not told.
    """
    traces: Traces
    categories: list
    n: int
    opening: torch.Tensor
    candidates: list
    layer: int
    scores: dict
    tell: taxonomy.Categoriser
    places: list


def study(pair: Pair, n_traces: int, max_new_tokens: int, sizes: list, layers: list,
          autoencoder: str = "quick") -> TraceStudy:
    """Draws traces on training problems, a third of them held out, and finds the categories.

    sizes: numbers of latents, layers: blocks, among which `taxonomy.choose` chooses. autoencoder: a
    name of `taxonomy.AUTOENCODERS`.
    """
    found = traces(pair, n_traces, max_new_tokens)
    model, base = pair.load("thinking"), pair.load("base")
    cut = max(1, 2 * len(found.texts) // 3)
    fitted, held_out = found.part(0, cut), found.part(cut, len(found.texts))
    fitted = fitted if fitted.steps else found
    held_out = held_out if len(held_out.steps) > 1 else fitted  # the few traces of a smoke run
    averages, others = (taxonomy.averages(model, t.texts, t.steps, layers)
                        for t in (fitted, held_out))
    candidates, (layer, mean, net) = taxonomy.choose(averages, others, sizes,
                                                     taxonomy.AUTOENCODERS[autoencoder])
    n = len(net.inner)
    x, y = (taxonomy.normalise(a[layer], mean) for a in (averages, others))
    everything = taxonomy.averages(model, found.texts, found.steps, [layer])[layer]
    categories = net.assign(taxonomy.normalise(everything, mean)).tolist()
    size = model.net.config.get_text_config().vocab_size
    opening = taxonomy.by_opening(found.texts, found.steps, categories, n, size)
    where = taxonomy.decisions(base, pair.rules)
    tell = (taxonomy.Openings(opening) if where.told else
            taxonomy.Latents(mean, net, layer, where))
    return TraceStudy(found, categories, n, opening, candidates, layer,
                      _scores(held_out.steps, net, x, y, pair.seed), tell,
                      _places(model, found, categories, tell))


def _scores(steps, net, x, y, seed):
    """Scores of the autoencoder's assignment of held-out y, and of two baselines fitted on x."""
    truth, guessed = [s.kind for s in steps], net.assign(y)
    if None in truth:
        return {}
    shuffled = guessed[torch.randperm(len(guessed), generator=torch.Generator().manual_seed(seed))]
    return {"autoencoder": taxonomy.scores(guessed, truth),
            "k-means": taxonomy.scores(taxonomy.kmeans(x, y, len(net.inner), seed), truth),
            "random, same sizes": taxonomy.scores(shuffled, truth)}


def _places(model, found, categories, tell):
    """The `Mark`s of a study, see there; the loss of one is on its next token."""
    if tell.layer is None:
        return marks(found.steps, categories)
    inside = [range(start - 1, len(ids) - 1) for ids, start in zip(found.texts, found.starts)]
    hidden = activations.residuals(model.net, found.texts, [tell.layer], inside)[tell.layer]
    kinds = iter(tell.category(torch.zeros(()), hidden).tolist())
    return [Mark(i, p, p + 2, next(kinds)) for i, some in enumerate(inside) for p in some]


def with_true_kinds(pair: Pair, found: TraceStudy) -> TraceStudy:
    """A study with the task's own kinds of steps in the place of its categories."""
    kinds, table = list(pair.rules.OPENINGS), taxonomy.by_kind(pair.load("base"), pair.rules)
    steps = [step for step in found.traces.steps if step.kind in kinds]
    categories = [kinds.index(step.kind) for step in steps]
    return found._replace(traces=found.traces._replace(steps=steps), n=len(kinds), opening=table,
                          categories=categories, tell=taxonomy.Openings(table),
                          places=marks(steps, categories))


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

    @property
    def both(self) -> torch.Tensor:
        """(n, D): what is added to the stream, bias and vectors."""
        return self.vectors + self.bias


def fit(pair: Pair, body: str, found: TraceStudy, layers: list, steps: int,
        body_seed: int | None = None) -> dict:
    """{layer: Fitted} in the model of a role; found: whose traces and categories are used.

    body_seed: of the body's weights, where they are not those of the pair's seed (an untrained
    model of that seed shares its first weights with a lab's base, its words' embeddings included).
    """
    net = pair.load(body, seed=body_seed).net
    at = marks(found.traces.steps, found.categories)
    differ = disagreeing(net, found.traces, found.places, found.tell, pair.seed)
    out = {}
    for layer in layers:  # one at a time: all streams of long traces would not fit the memory
        stream = activations.residuals(net, found.traces.texts, [layer])[layer]
        how = {"layer": layer, "stream": stream, "steps": steps, "seed": pair.seed}
        bias, start = optimised(net, found.traces, random_spans(found.traces, pair.seed), 1, **how)
        vectors, end = optimised(net, found.traces, at, found.n, bias=bias[0], **how)
        out[layer] = Fitted(
            bias[0], vectors, means(stream, found.traces, found.categories, found.n),
            probe(stream, found.traces, differ, found.n), (start, end),
            float(stream.norm(dim=1).mean()))
    return out


def fit_others(pair: Pair, found: TraceStudy, layers: list, steps: int) -> dict:
    """In the base: {layer: (`network`'s vectors (n, D) and Coefficients, one vector (D,) for all
    steps)}."""
    net = pair.load("base").net
    at = marks(found.traces.steps, found.categories)
    differ = disagreeing(net, found.traces, found.places, found.tell, pair.seed) or at
    out = {}
    for layer in layers:
        how = {"layer": layer, "steps": steps, "seed": pair.seed,
               "stream": activations.residuals(net, found.traces.texts, [layer])[layer]}
        one, _ = optimised(net, found.traces, [m._replace(category=0) for m in at], 1, **how)
        out[layer] = *network(net, found.traces, differ, found.n, **how), one[0]
    return out
