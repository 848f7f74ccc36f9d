"""What kinds of steps a thinking model takes, found without labels.

Venhoff et al. (arXiv 2510.07364) average the residual stream over each sentence of a thinking
model's traces, centre and normalise it, and fit a small top-k sparse autoencoder; a sentence's
category is its strongest latent. The task says what its steps are (`tasks`): sentences and
equations in words, and in the lab an opening with what follows it.

How many latents there are, and at which layer they are read, is chosen by a criterion that needs no
label: two autoencoders are fitted from different seeds, and the candidate wins whose assignments of
held-out steps agree best, by adjusted mutual information (0 for chance). Categories that another
start would not find again are no categories. The share of variance that is rebuilt stands beside
it. (The paper has a language model judge the categories.) Where a task knows what every step is,
that scores the outcome (purity, normalised mutual information) and chooses nothing.

While a model writes, a category must be known before its step is there. Where steps open with words
of a closed set, the opening tells it (`Openings`); elsewhere it is the strongest latent of the
thinking model's residual stream at that position (`Latents`, as in the authors' later code).
"""

from collections.abc import Callable, Hashable, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from sklearn.cluster import KMeans
from sklearn.metrics import (
    adjusted_mutual_info_score,
    normalized_mutual_info_score,
)
from torch import Tensor, nn

from locksmith import activations, prose
from locksmith.loading import Model
from locksmith.steering import Moment


class TokenStep(NamedTuple):
    """A step of a text: its tokens are text[start:end]; kind is the true label, None if unknown."""
    text: int
    start: int
    end: int
    kind: str | None


def steps(model: Model, task: ModuleType, texts: list, starts: list) -> list[TokenStep]:
    """`TokenStep`s of texts (lists of token ids, prompt included) whose answers begin at `starts`.

    A token belongs to the step in which its characters begin; a space before a step is part of it,
    also where it is a token of its own. Other tokens between the steps that a task sees belong to
    none.
    """
    out = []
    for i, (ids, first) in enumerate(zip(texts, starts, strict=True)):
        spans, at, text = model.spans(ids[first:]), 0, model.decode(ids[first:])
        for step in task.steps(text):
            while at < len(spans) and spans[at][1] <= step.start and (
                    spans[at][0] == spans[at][1] or text[spans[at][0]:step.start].strip()):
                at += 1
            begin = at
            # What adds no character, such as padding, goes with what stands before it.
            while at < len(spans) and (spans[at][0] < step.end or spans[at][0] == spans[at][1]):
                at += 1
            if begin < at:
                out.append(TokenStep(i, first + begin, first + at, step.kind))
    return out


def averages(model: Model, texts: list, steps: list, layers: Sequence[int],
             most: int = 2**28) -> dict:
    """Mean residual stream over each step's tokens: {layer: (steps, D) float32}.

    steps: in the order of their texts. most: numbers that are read before they are averaged.
    """
    size = model.net.config.get_text_config().hidden_size
    parts = []
    for part in activations.chunks([len(ids) for ids in texts], most // (size * len(layers))):
        here = [s for s in steps if s.text in part]
        places = [[] for _ in part]
        for s in here:
            places[s.text - part.start] += range(s.start, s.end)
        if here:
            read = activations.residuals(model.net, [texts[i] for i in part], layers, places)
            owner = torch.tensor([i for i, s in enumerate(here) for _ in range(s.start, s.end)])
            count = torch.bincount(owner)[:, None]
            parts.append({layer: torch.zeros(len(here), size).index_add_(0, owner, x) / count
                          for layer, x in read.items()})
    return {layer: torch.cat([part[layer] for part in parts]) for layer in layers}


def normalise(x: Float[Tensor, "steps width"],
              mean: Float[Tensor, " width"]) -> Float[Tensor, "steps width"]:
    """Centred on `mean` and scaled to unit length."""
    return F.normalize(x - mean, dim=-1)


class Autoencoder(nn.Module):
    """Top-k sparse autoencoder: the decoder's rows have unit norm, the encoder starts as its
    transpose (the paper's code, k = 3)."""

    def __init__(self, dims: int, latents: int, k: int, seed: int):
        super().__init__()
        rows = torch.randn(latents, dims, generator=torch.Generator().manual_seed(seed))
        self.decoder = nn.Parameter(F.normalize(rows, dim=-1))
        self.encoder = nn.Parameter(self.decoder.detach().clone())
        self.inner = nn.Parameter(torch.zeros(latents))
        self.outer = nn.Parameter(torch.zeros(dims))
        self.k = min(k, latents)

    def encode(self, x: Float[Tensor, "steps width"]) -> Float[Tensor, "steps latents"]:
        """Latents before the top k are chosen; x normalised."""
        return (x - self.outer) @ self.encoder.T + self.inner

    def forward(self, x: Float[Tensor, "steps width"]) -> Float[Tensor, "steps width"]:
        """x rebuilt from its k strongest latents."""
        top = self.encode(x).topk(self.k, -1)
        sparse = torch.zeros(len(x), len(self.inner)).scatter(-1, top.indices, top.values.relu())
        return sparse @ F.normalize(self.decoder, dim=-1) + self.outer

    @torch.no_grad()
    def assign(self, x: Float[Tensor, "steps width"]) -> Int[Tensor, " steps"]:
        """Category of each step, the strongest latent."""
        return self.encode(x).argmax(-1)

    @torch.no_grad()
    def rebuilt(self, x: Float[Tensor, "steps width"]) -> float | None:
        """Share of the variance of x that is rebuilt; None where x has none, as a lone step."""
        variance = (x - x.mean(0)).square().sum()
        return 1 - float((self(x) - x).square().sum() / variance) if variance > 0 else None


def fit(x: Float[Tensor, "steps width"], latents: int, k: int = 3, steps: int = 300,
        lr: float = 0.02, batch: int = 128, seed: int = 0) -> Autoencoder:
    """An `Autoencoder` of x, by a few hundred steps of Adam on the squared error: quick."""
    net = Autoencoder(x.shape[1], latents, k, seed)
    draw = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(net.parameters(), lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        rows = x[torch.randint(len(x), (batch,), generator=draw)]
        loss = (net(rows) - rows).square().sum(-1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        decay.step()
    return net.eval()


def fit_published(x: Float[Tensor, "steps width"], latents: int, k: int = 3, epochs: int = 300,
                  patience: int = 10, batch: int = 512, seed: int = 0) -> Autoencoder:
    """An `Autoencoder` of x, trained as in the authors' code: Adam at 2e-4 / sqrt(K /
    16384), the loss in shares of a batch's variance, until `patience` epochs did not lower it."""
    net = Autoencoder(x.shape[1], latents, k, seed)
    draw = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(net.parameters(), 2e-4 / (latents / 16384) ** 0.5)
    lowest, since = torch.inf, 0
    for _ in range(epochs):
        losses = []
        for rows in x[torch.randperm(len(x), generator=draw)].split(batch):
            if len(rows) > 1:  # a single row has no variance
                spread = (rows - rows.mean(0)).square().sum()
                loss = (net(rows) - rows).square().sum() / spread
                adam.zero_grad()
                loss.backward()
                adam.step()
                losses.append(float(loss.detach()))
        since = 0 if np.mean(losses) < lowest else since + 1
        lowest = min(lowest, np.mean(losses))
        if since == patience:
            break
    return net.eval()


AUTOENCODERS = {"quick": fit, "published": fit_published}


def choose(
    fitted: dict, held_out: dict, sizes: list, train: Callable[..., Autoencoder] = fit,
) -> tuple[list[dict], tuple[int, Tensor, Autoencoder]]:
    """Layer and number of latents by agreement between seeds: (table, best).

    fitted, held_out: {layer: (N, D)} step averages, not normalised. train: one of AUTOENCODERS.
    table: a dict a candidate with layer, latents, rebuilt, agreement; best: (layer, mean (D,),
    Autoencoder) of the highest.
    """
    table, found = [], []
    for layer, x in fitted.items():
        mean = x.mean(0)
        own, test = normalise(x, mean), normalise(held_out[layer], mean)
        for latents in sizes:
            one, other = (train(own, latents, seed=seed) for seed in (0, 1))
            agreement = adjusted_mutual_info_score(one.assign(test), other.assign(test))
            table.append({"layer": layer, "latents": latents, "rebuilt": one.rebuilt(test),
                          "agreement": float(agreement)})
            found.append((layer, mean, one))
    return table, found[max(range(len(table)), key=lambda i: table[i]["agreement"])]


def purity(categories: Sequence[int], kinds: Sequence[Hashable]) -> float:
    """Share of steps whose kind is the commonest one of their category."""
    categories, kinds = np.asarray(categories), np.asarray(kinds)
    common = sum(np.unique(kinds[categories == c], return_counts=True)[1].max()
                 for c in np.unique(categories))
    return common / len(categories)


def scores(categories: Sequence[int], kinds: Sequence[Hashable]) -> tuple[float, float]:
    """(purity, normalised mutual information) of an assignment against the true kinds."""
    return (float(purity(categories, kinds)),
            float(normalized_mutual_info_score(list(kinds), list(categories))))


def kmeans(x: Float[Tensor, "steps width"], test: Float[Tensor, "tested width"], latents: int,
           seed: int = 0) -> Int[np.ndarray, " tested"]:
    """Assignment of `test` by k-means fitted on x: the plain baseline."""
    return KMeans(latents, n_init=4, random_state=seed).fit(x.numpy()).predict(test.numpy())


# --- while a model writes -------------------------------------------------------------------------

def by_opening(texts: Sequence[list[int]], steps: Sequence[TokenStep], categories: Sequence[int],
               latents: int, size: int) -> Int[Tensor, " vocabulary"]:
    """Of each token that begins a step the category most of its steps have; else -1.

    size: of the vocabulary.
    """
    counts = torch.zeros(size, latents)
    for s, c in zip(steps, categories, strict=True):
        counts[texts[s.text][s.start], int(c)] += 1
    return torch.where(counts.sum(1) > 0, counts.argmax(1), -1)


def by_kind(model: Model, task: ModuleType) -> torch.Tensor:
    """(V,) int64: the index in task.OPENINGS of the kind that a token opens, -1 for one that opens
    none."""
    table = torch.full((model.net.config.get_text_config().vocab_size,), -1)
    for k, openings in enumerate(task.OPENINGS.values()):
        for words in openings:
            table[model.encode(words[0])] = k
    return table


class Decisions(NamedTuple):
    """Which tokens decide what comes next, where one model decides and another executes.

    told: steps begin with openings of a closed set, which stand nowhere else. decision (V,) bool:
    tokens that are decisions wherever they stand, the openings' and those that end an answer.
    owned (V,) bool: tokens after which the next one is a decision: inside an opening, or, where
    openings are not told, at the end of a sentence or line. (Whether a point ends a sentence or
    begins decimals shows one token later.)
    """
    told: bool
    decision: torch.Tensor
    owned: torch.Tensor

    def owns(self, moment: Moment) -> Bool[Tensor, " rows"]:
        """Whether the next token is a decision whatever it is; see `engine.Moment`."""
        owned = self.owned.to(moment.tokens.device)[moment.tokens[:, -1]]
        first = moment.positions[:, -1] + 1 == moment.prompt_lengths
        return owned | first if not self.told else owned


def decisions(model: Model, task: ModuleType) -> Decisions:
    """The `Decisions` of a task in a model's tokens; only here it is asked whether openings
    tell."""
    told, size = bool(task.OPENINGS), model.net.config.get_text_config().vocab_size
    decision, owned = torch.zeros(2, size, dtype=torch.bool)
    decision[sorted(model.stop)] = True
    for words in sum(task.OPENINGS.values(), ()):
        opening = model.encode(" ".join(words))
        decision[opening] = True
        owned[opening[:-1]] = True
    if not told:
        owned[:] = torch.tensor([prose.ends(model.tokenizer.decode([i])) for i in range(size)])
    return Decisions(told, decision, owned)


class Openings(NamedTuple):
    """Categories told by the token that begins a step: table (V,) int64, -1 for one that begins
    none (`by_opening`, `by_kind`)."""
    table: torch.Tensor
    layer = None  # no residual stream is read

    def category(self, token: Int[Tensor, " rows"], hidden: Tensor | None) -> Int[Tensor, " rows"]:
        """The category of the tokens' step, -1 where they begin none."""
        return self.table.to(token.device)[token]

    def opens(self, token: Int[Tensor, " rows"], moment: Moment) -> Bool[Tensor, " rows"]:
        """Whether the token begins a step."""
        return self.category(token, None) >= 0

    def differ(self, own: Int[Tensor, " rows"], theirs: Int[Tensor, " rows"],
               category: Int[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        """Whether the token `own` is of another category, or of none."""
        return self.category(own, None) != category


class Latents(nn.Module):
    """Categories told by the thinking model's residual stream after `layer`, centred and scaled as
    the step averages were: the strongest latent. decisions: of the task, see `Decisions`."""

    def __init__(self, mean: Float[Tensor, " width"], autoencoder: Autoencoder, layer: int,
                 decisions: Decisions):
        super().__init__()
        self.mean, self.autoencoder = mean, autoencoder.requires_grad_(False)
        self.layer, self.decisions = layer, decisions

    def category(self, token: Int[Tensor, " rows"],
                 hidden: Float[Tensor, "rows width"]) -> Int[Tensor, " rows"]:
        """The category of residual streams."""
        hidden = hidden.float().to(self.mean.device)
        return self.autoencoder.assign(normalise(hidden, self.mean)).to(token.device)

    def opens(self, token: Int[Tensor, " rows"], moment: Moment) -> Bool[Tensor, " rows"]:
        """Whether the token begins a sentence, a line, or the answer."""
        return self.decisions.owns(moment)

    def differ(self, own: Int[Tensor, " rows"], theirs: Int[Tensor, " rows"],
               category: Int[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        """Whether the tokens are not the same."""
        return own != theirs


Categoriser = Openings | Latents
