"""The arms of chapter 1: a function each, from what a pair was fitted to a `hybrid.Intervention`.

A new arm, say a new control, is one function here and one entry of its name in arms.yml:

    @over_strengths
    def doubled_bias(fits):
        "a stronger nudge is enough"
        return replace(hybrid(fits), vectors=0 * fits.vectors + 2 * fits.fitted.bias)

It is then on the page by itself: in the tables, the figures and the facts. Its id is the function's
name with hyphens, its docstring says what would follow if it did as well as the hybrid. It is run
`over_strengths`, and counts at the one that serves it best on the test problems, which favours
controls; or `once`, at the strength that validation chose for the hybrid. An arm that a pair has
not got (a twin, the true kinds of steps) returns None and leaves the page.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from locksmith.experiments import hybrid as decoding
from locksmith.experiments import taxonomy, vectors
from locksmith.experiments.hybrid import Intervention
from locksmith.loading import Pair


class Setting(NamedTuple):
    """What validation chose for a task: block and strength of the hybrid, the probe's threshold."""
    layer: int
    strength: float
    threshold: float


class Fits(NamedTuple):
    """All that is known of a pair before its arms run.

    bodies: {body: {layer: vectors.Fitted}} of "base", "untrained", "unrelated" (untrained, with
    other first weights), "twin", and "base, true kinds", "twin, true kinds" where there are such;
    network, coefficients, one: of `vectors.fit_others`. rate, frequencies (K,): how often the
    hybrid steered on validation problems, and how often which category. strengths, thresholds:
    those that are tried.
    """
    pair: Pair
    study: vectors.TraceStudy
    setting: Setting
    bodies: dict
    network: torch.Tensor
    coefficients: nn.Module
    one: torch.Tensor
    rate: float
    frequencies: list
    strengths: list
    thresholds: list

    @property
    def fitted(self) -> vectors.Fitted:
        """What was fitted in the base at the chosen layer."""
        return self.bodies["base"][self.setting.layer]

    @property
    def vectors(self) -> torch.Tensor:
        """(K, D): what the hybrid adds, bias included."""
        return self.fitted.both


# id -> (function, how its settings vary)
ARMS: dict[str, tuple[Callable, Callable]] = {}


def _register(vary):
    def register(function):
        ARMS[function.__name__.replace("_", "-")] = function, vary
        return function
    return register


once = _register(lambda arm, fits: {None: arm})
over_strengths = _register(lambda arm, fits: {x: replace(arm, strength=x) for x in fits.strengths})
over_thresholds = _register(lambda arm, fits: {
    x: replace(arm, gate=arm.gate._replace(threshold=x)) for x in fits.thresholds})


def settings(name: str, fits: Fits) -> dict:
    """{strength, threshold or None: Intervention} of an id, {} where the pair has not got what it
    takes."""
    function, vary = ARMS[name]
    arm = function(fits)
    return {} if arm is None else vary(arm, fits)


def meanings() -> dict:
    """Id -> what would follow if the arm did as well as the hybrid, of those that say so."""
    return {name: function.__doc__ for name, (function, _) in ARMS.items() if function.__doc__}


def steered(pair: Pair, study: vectors.TraceStudy, fitted: dict, layer: int, strength: float,
            body: str = "base") -> Intervention:
    """The hybrid of a body: its vectors and bias, where thinking model and body disagree."""
    return Intervention(runs=body, gate=decoding.Disagreement(study.tell),
                        vectors=fitted[layer].both, layer=layer, strength=strength)


def same_norm(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Rows (K, D) with the directions of `rows` and the norms of `like`."""
    return F.normalize(rows, dim=-1) * like.norm(dim=-1, keepdim=True)


def _in_body(fits, body, study=None):
    found = fits.bodies.get(body)
    return found and steered(fits.pair, study or fits.study, found, fits.setting.layer,
                             fits.setting.strength, body.partition(",")[0])


# --- models, and who decides ----------------------------------------------------------------------

@once
def base(fits: Fits) -> Intervention:
    return Intervention()


@once
def thinking(fits: Fits) -> Intervention:
    return Intervention(runs="thinking")


@once
def twin(fits: Fits) -> Intervention | None:
    return Intervention(runs="twin") if "twin" in fits.bodies else None


@once
def thinking_decides_base_executes(fits: Fits) -> Intervention:
    return Intervention(decides="thinking")


@once
def base_decides_thinking_executes(fits: Fits) -> Intervention:
    return Intervention(runs="thinking", decides="base")


@once
def thinking_decides_twin_executes(fits: Fits) -> Intervention | None:
    return Intervention(runs="twin", decides="thinking") if "twin" in fits.bodies else None


@once
def thinking_decides_untrained_executes(fits: Fits) -> Intervention:
    return Intervention(runs="untrained", decides="thinking")


# --- the hybrid, and other ways to its vectors and times ------------------------------------------

@over_strengths
def hybrid(fits: Fits) -> Intervention | None:
    return _in_body(fits, "base")


@over_thresholds
def probe(fits: Fits) -> Intervention:
    weight, intercept = fits.fitted.probe
    return replace(hybrid(fits), gate=decoding.Probe(weight, intercept, fits.setting.threshold))


@over_strengths
def network(fits: Fits) -> Intervention:
    return replace(hybrid(fits), vectors=fits.network, coefficients=fits.coefficients)


@over_strengths
def difference_of_means(fits: Fits) -> Intervention:
    return replace(hybrid(fits), vectors=fits.fitted.means)


@once
def true_kinds(fits: Fits) -> Intervention | None:
    """(what the taxonomy loses)"""
    return _with_kinds(fits, "base")


@once
def oracle(fits: Fits) -> Intervention:
    return replace(hybrid(fits), gate=decoding.Oracle(fits.study.tell))


def _with_kinds(fits, body):
    table = taxonomy.Openings(taxonomy.by_kind(fits.pair.load("base"), fits.pair.rules))
    return _in_body(fits, f"{body}, true kinds", fits.study._replace(tell=table))


# --- ceilings: the thinking model's own token -----------------------------------------------------

@once
def ceiling(fits: Fits) -> Intervention:
    """(it should: this is what the gate's times are worth)"""
    return replace(_nothing_added(fits), processor=decoding.ceiling)


@once
def ceiling_oracle(fits: Fits) -> Intervention:
    return replace(ceiling(fits), gate=decoding.Oracle(fits.study.tell))


def _nothing_added(fits):
    return replace(hybrid(fits), vectors=torch.zeros_like(fits.vectors), strength=1.0)


# --- controls -------------------------------------------------------------------------------------

@over_strengths
def bias_only(fits: Fits) -> Intervention:
    """being nudged is enough"""
    return replace(hybrid(fits), vectors=torch.zeros_like(fits.vectors) + fits.fitted.bias)


@over_strengths
def one_vector(fits: Fits) -> Intervention:
    """there is nothing to choose among"""
    return replace(hybrid(fits), vectors=torch.zeros_like(fits.vectors) + fits.one)


@over_strengths
def other_category(fits: Fits) -> Intervention:
    """*which* does not matter"""
    return replace(hybrid(fits), gate=decoding.OtherCategory(hybrid(fits).gate, fits.study.n))


@over_strengths
def random_vectors(fits: Fits) -> Intervention:
    """the directions do not matter"""
    return replace(hybrid(fits), vectors=vectors.random_like(fits.vectors, fits.pair.seed))


@over_strengths
def random_positions(fits: Fits) -> Intervention:
    """*when* does not matter"""
    return replace(hybrid(fits), gate=decoding.RandomPositions(fits.rate, fits.frequencies))


@once
def always_on(fits: Fits) -> Intervention:
    """there is no need of a gate"""
    commonest = max(range(fits.study.n), key=fits.study.categories.count)
    return replace(hybrid(fits), gate=decoding.Always(commonest))


@over_strengths
def twin_vectors(fits: Fits) -> Intervention | None:
    """fitting teaches"""
    return _in_body(fits, "twin")


@once
def twin_vectors_true_kinds(fits: Fits) -> Intervention | None:
    """fitting teaches, even where a backtrack's vector is not also a new attempt's"""
    return _with_kinds(fits, "twin")


@over_strengths
def untrained_vectors(fits: Fits) -> Intervention:
    """the words' first embeddings are enough"""
    there = fits.bodies["untrained"][fits.setting.layer].both
    return replace(hybrid(fits), vectors=same_norm(there, fits.vectors))


@over_strengths
def unrelated_vectors(fits: Fits) -> Intervention:
    """any fitted vector will do"""
    there = fits.bodies["unrelated"][fits.setting.layer].both
    return replace(hybrid(fits), vectors=same_norm(there, fits.vectors))


@over_strengths
def logit_push(fits: Fits) -> Intervention:
    """the vector is its token"""
    model, fitted = fits.pair.load("base"), fits.bodies["base"]
    push = decoding.logit_push(model.net, fits.study.opening, fits.study.n)
    return replace(hybrid(fits), layer=model.depth - 1,
                   vectors=same_norm(push, fitted[max(fitted)].both))


@over_strengths
def reranking(fits: Fits) -> Intervention:
    """its likelihood does the work"""
    return replace(hybrid(fits), processor=decoding.rerank)


@once
def reranking_alone(fits: Fits) -> Intervention:
    """nothing needs to be steered"""
    return replace(_nothing_added(fits), processor=decoding.rerank)
