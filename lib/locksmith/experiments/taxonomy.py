"""What kinds of steps a thinking model takes, found without labels.

Venhoff et al. (arXiv 2510.07364) average the residual stream over each sentence of a thinking
model's traces, centre and normalise it, and fit a small top-k sparse autoencoder; a sentence's
category is its strongest latent. A step of the lab stands for the sentence.

How many latents there are, and at which layer they are read, is chosen by a criterion that needs no
label: two autoencoders are fitted from different seeds, and the candidate wins whose assignments of
held-out steps agree best, by adjusted mutual information (0 for chance). Categories that another
start would not find again are no categories. The share of variance that is rebuilt stands beside
it. (The paper has a language model judge the categories.) The lab knows what every step is; that
scores the outcome (purity, normalised mutual information) and chooses nothing.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.metrics import (
    adjusted_mutual_info_score,
    normalized_mutual_info_score,
)
from torch import nn

from locksmith import activations, grammar, vocabulary


class Step(NamedTuple):
    """A step of a text: its tokens are text[start:end]; behaviour is the true label."""
    text: int
    start: int
    end: int
    behaviour: str


def steps(texts, starts):
    """The `Step`s of texts (lists of token ids, prompt included) whose traces begin at `starts`.

    A step is an opening and its content, as in `grammar.steps`; tokens before the first opening
    belong to none, and neither does the end of text.
    """
    opens, out = grammar.BEHAVIOUR | grammar.TAUGHT, []
    for i, ids in enumerate(texts):
        words = [vocabulary.VOCABULARY[x] for x in ids]
        opened = [j for j in range(starts[i], len(words)) if words[j] in opens]
        over = [j for j in range(starts[i], len(words)) if words[j] in ("<eos>", "next")]
        last = min(over, default=len(words))
        for start, end in zip(opened, [*opened[1:], last], strict=False):
            if start < end:
                out.append(Step(i, start, min(end, last), opens[words[start]]))
    return out


def averages(model, texts, steps, layers):
    """Mean residual stream over each step's tokens: {layer: (steps, D) float32}."""
    places = [[] for _ in texts]
    for s in steps:
        places[s.text] += range(s.start, s.end)
    read = activations.residuals(model, texts, layers, places)
    owner = torch.tensor([i for i, s in enumerate(steps) for _ in range(s.start, s.end)])
    size = torch.bincount(owner)[:, None]
    return {layer: torch.zeros(len(steps), x.shape[1]).index_add_(0, owner, x) / size
            for layer, x in read.items()}


def normalise(x, mean):
    """Centred on `mean` (D,) and scaled to unit length."""
    return F.normalize(x - mean, dim=-1)


class Autoencoder(nn.Module):
    """Top-k sparse autoencoder: the decoder's rows have unit norm, the encoder starts as its
    transpose (the paper's code, k = 3)."""

    def __init__(self, dims, latents, k, seed):
        super().__init__()
        rows = torch.randn(latents, dims, generator=torch.Generator().manual_seed(seed))
        self.decoder = nn.Parameter(F.normalize(rows, dim=-1))
        self.encoder = nn.Parameter(self.decoder.detach().clone())
        self.inner = nn.Parameter(torch.zeros(latents))
        self.outer = nn.Parameter(torch.zeros(dims))
        self.k = min(k, latents)

    def encode(self, x):
        """Latents (N, K) before the top k are chosen; x (N, D) normalised."""
        return (x - self.outer) @ self.encoder.T + self.inner

    def forward(self, x):
        """x (N, D) rebuilt from its k strongest latents."""
        top = self.encode(x).topk(self.k, -1)
        sparse = torch.zeros(len(x), len(self.inner)).scatter(-1, top.indices, top.values.relu())
        return sparse @ F.normalize(self.decoder, dim=-1) + self.outer

    @torch.no_grad()
    def assign(self, x):
        """Category of each step, the strongest latent: (N,) int64."""
        return self.encode(x).argmax(-1)

    @torch.no_grad()
    def rebuilt(self, x):
        """Share of the variance of x that is rebuilt."""
        return 1 - float((self(x) - x).square().sum() / (x - x.mean(0)).square().sum())


def fit(x, latents, k=3, steps=300, lr=0.02, batch=128, seed=0):
    """An `Autoencoder` of x (N, D), by Adam on the squared error."""
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


def choose(fitted, held_out, sizes, k=3, steps=300):
    """Layer and number of latents by agreement between seeds: (table, best).

    fitted, held_out: {layer: (N, D)} step averages, not normalised. table: a dict a candidate with
    layer, latents, rebuilt, agreement; best: (layer, mean (D,), Autoencoder) of the highest.
    """
    table, found = [], []
    for layer, x in fitted.items():
        mean = x.mean(0)
        train, test = normalise(x, mean), normalise(held_out[layer], mean)
        for latents in sizes:
            one, other = (fit(train, latents, k, steps, seed=seed) for seed in (0, 1))
            agreement = adjusted_mutual_info_score(one.assign(test), other.assign(test))
            table.append({"layer": layer, "latents": latents, "rebuilt": one.rebuilt(test),
                          "agreement": float(agreement)})
            found.append((layer, mean, one))
    return table, found[max(range(len(table)), key=lambda i: table[i]["agreement"])]


def purity(categories, behaviours):
    """Share of steps whose behaviour is the commonest one of their category."""
    categories, behaviours = np.asarray(categories), np.asarray(behaviours)
    common = sum(np.unique(behaviours[categories == c], return_counts=True)[1].max()
                 for c in np.unique(categories))
    return common / len(categories)


def scores(categories, behaviours):
    """(purity, normalised mutual information) of an assignment against the true behaviours."""
    return (float(purity(categories, behaviours)),
            float(normalized_mutual_info_score(list(behaviours), list(categories))))


def kmeans(x, test, latents, seed=0):
    """Assignment of `test` (N, D) by k-means fitted on x: the plain baseline."""
    return KMeans(latents, n_init=4, random_state=seed).fit(x.numpy()).predict(test.numpy())


def by_opening(texts, steps, categories, latents):
    """(V,) int64: of each word that opens a step, the category most of its steps have; else -1.

    At run time a step's category must be known when its first word is chosen; this is how.
    """
    counts = torch.zeros(len(vocabulary.VOCABULARY), latents)
    for s, c in zip(steps, categories, strict=True):
        counts[texts[s.text][s.start], int(c)] += 1
    return torch.where(counts.sum(1) > 0, counts.argmax(1), -1)
