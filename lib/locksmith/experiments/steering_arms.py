"""The arms of chapter 1: a function each, from what a pair was fitted to a `hybrid.Intervention`.

A new arm, say a new control, is one function here and one entry of its name in arms.yml:

    @over_settings
    def doubled_bias(fits):
        "a stronger nudge is enough"
        return replace(hybrid(fits), vectors=0 * fits.vectors + 2 * fits.fitted.bias)

It is then on the page by itself: in the tables, the figures and the facts. Its id is the function's
name with hyphens, its docstring says what would follow if it did as well as the hybrid. It is tried
`over_settings`, all blocks and strengths, on validation problems, where the rule that chooses for
the hybrid (`recovery.pick`) chooses for it; or runs `once`, at the hybrid's own setting. An arm
that a pair has not got (a twin, the true kinds of steps) returns None and leaves the page.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F

from locksmith.experiments import hybrid as decoding
from locksmith.experiments import taxonomy, vectors
from locksmith.experiments.hybrid import Intervention
from locksmith.loading import Pair

# The base of chapter 7 that hardly ever read the behaviour, but knows its words: a role of a pair.
RARE = "ladders/exposure-0.01/base"


class Setting(NamedTuple):
    """Where and how an arm steers: block, strength, and of a probe its threshold."""
    layer: int
    strength: float
    threshold: float | None = None


class Fits(NamedTuple):
    """All that is known of a pair before its arms run.

    setting: the one to make an arm for. bodies: {body: {layer: vectors.Fitted}} of "base",
    "untrained", "unrelated" (untrained, with other first weights), "twin", RARE, and "base, true
    kinds", "twin, true kinds" where there are such; others: {layer: what `vectors.fit_others`
    gives}. rate, frequencies (K,): how often the hybrid steered on validation problems, and how
    often which category. strengths, thresholds: those that are tried.
    """
    pair: Pair
    study: vectors.TraceStudy
    setting: Setting
    bodies: dict
    others: dict
    rate: float
    frequencies: list
    strengths: list
    thresholds: list

    @property
    def fitted(self) -> vectors.Fitted:
        """What was fitted in the base at this layer."""
        return self.bodies["base"][self.setting.layer]

    @property
    def vectors(self) -> torch.Tensor:
        """(K, D): what the hybrid adds, bias included."""
        return self.fitted.both


# id -> (function, from Fits to the settings that are tried)
ARMS: dict[str, tuple[Callable, Callable]] = {}


def _register(tried):
    def register(function):
        ARMS[function.__name__.replace("_", "-")] = function, tried
        return function
    return register


once = _register(lambda fits: [])
over_settings = _register(lambda fits: [
    fits.setting._replace(layer=layer, strength=x)
    for layer in fits.bodies["base"] for x in fits.strengths])
over_lower = _register(lambda fits: [
    fits.setting._replace(layer=layer, strength=x)
    for layer in lower_and_last(fits)[0] for x in fits.strengths])
over_last = _register(lambda fits: [
    fits.setting._replace(layer=layer, strength=x)
    for layer in lower_and_last(fits)[1] for x in fits.strengths])
over_strengths = _register(lambda fits: [fits.setting._replace(strength=x)
                                         for x in fits.strengths])
over_thresholds = _register(lambda fits: [fits.setting._replace(threshold=x)
                                          for x in fits.thresholds])


def lower_and_last(fits: Fits) -> tuple[list[int], list[int]]:
    """The blocks that are tried but the last, and the last, where every block of a lab's model is:
    its untrained model has the embeddings that the base started from, and vectors after the last
    block meet nothing else. Two empty lists elsewhere."""
    tried = sorted(fits.bodies["base"])
    every = fits.pair.of_the_lab and tried == list(range(len(tried)))
    return (tried[:-1], tried[-1:]) if every else ([], [])


def make(name: str, fits: Fits) -> Intervention | None:
    """The arm of an id at the setting of `fits`; None where the pair has not got what it takes."""
    return ARMS[name][0](fits)


def settings(name: str, fits: Fits) -> list[Setting]:
    """What is tried of an arm on validation problems; [] where there is nothing to choose."""
    return ARMS[name][1](fits)


def meanings() -> dict:
    """Id -> what would follow if the arm did as well as the hybrid, of those that say so."""
    return {name: function.__doc__ for name, (function, _) in ARMS.items() if function.__doc__}


def same_norm(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Rows (K, D) with the directions of `rows` and the norms of `like`."""
    return F.normalize(rows, dim=-1) * like.norm(dim=-1, keepdim=True)


def _in_body(fits, body, study=None):
    """The hybrid of a body: its vectors and bias, where thinking model and body disagree."""
    if body not in fits.bodies:
        return None
    return Intervention(runs=body.partition(",")[0],
                        gate=decoding.Disagreement((study or fits.study).tell),
                        vectors=fits.bodies[body][fits.setting.layer].both,
                        layer=fits.setting.layer, strength=fits.setting.strength)


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
def one_percent_base(fits: Fits) -> Intervention | None:
    return Intervention(runs=RARE) if RARE in fits.bodies else None


@once
def thinking_decides_base_executes(fits: Fits) -> Intervention:
    return Intervention(decides="thinking")


@once
def script_decides_base_executes(fits: Fits) -> Intervention | None:
    there = hasattr(fits.pair.rules, "script")
    return Intervention(decides=decoding.SCRIPT) if there else None


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

@over_settings
def hybrid(fits: Fits) -> Intervention | None:
    return _in_body(fits, "base")


@over_lower
def hybrid_lower(fits: Fits) -> Intervention | None:
    return hybrid(fits) if lower_and_last(fits)[0] else None


@over_thresholds
def probe(fits: Fits) -> Intervention:
    weight, intercept = fits.fitted.probe
    return replace(hybrid(fits), gate=decoding.Probe(weight, intercept, fits.setting.threshold))


@over_settings
def network(fits: Fits) -> Intervention:
    rows, coefficients, _ = fits.others[fits.setting.layer]
    return replace(hybrid(fits), vectors=rows, coefficients=coefficients)


@over_settings
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

@over_settings
def bias_only(fits: Fits) -> Intervention:
    """being nudged is enough"""
    return replace(hybrid(fits), vectors=torch.zeros_like(fits.vectors) + fits.fitted.bias)


@over_settings
def bias_at_random(fits: Fits) -> Intervention:
    """being nudged is enough, whenever it comes"""
    return replace(bias_only(fits), gate=random_positions(fits).gate)


@over_settings
def one_vector(fits: Fits) -> Intervention:
    """there is nothing to choose among"""
    *_, one = fits.others[fits.setting.layer]
    return replace(hybrid(fits), vectors=torch.zeros_like(fits.vectors) + one)


@over_settings
def other_category(fits: Fits) -> Intervention:
    """*which* does not matter"""
    return replace(hybrid(fits), gate=decoding.OtherCategory(hybrid(fits).gate, fits.study.n))


@over_settings
def random_vectors(fits: Fits) -> Intervention:
    """the directions do not matter"""
    return replace(hybrid(fits), vectors=vectors.random_like(fits.vectors, fits.pair.seed))


@over_settings
def random_positions(fits: Fits) -> Intervention:
    """*when* does not matter"""
    return replace(hybrid(fits), gate=decoding.RandomPositions(fits.rate, fits.frequencies))


@once
def always_on(fits: Fits) -> Intervention:
    """there is no need of a gate"""
    commonest = max(range(fits.study.n), key=fits.study.categories.count)
    return replace(hybrid(fits), gate=decoding.Always(commonest))


@over_settings
def twin_vectors(fits: Fits) -> Intervention | None:
    """fitting teaches"""
    return _in_body(fits, "twin")


@over_settings
def one_percent_vectors(fits: Fits) -> Intervention | None:
    """fitting teaches a model that knows the words"""
    return _in_body(fits, RARE)


@once
def twin_vectors_true_kinds(fits: Fits) -> Intervention | None:
    """fitting teaches, even where a backtrack's vector is not also a new attempt's"""
    return _with_kinds(fits, "twin")


@over_settings
def untrained_vectors(fits: Fits) -> Intervention:
    """the words' first embeddings are enough"""
    there = fits.bodies["untrained"][fits.setting.layer].both
    return replace(hybrid(fits), vectors=same_norm(there, fits.vectors))


@over_lower
def untrained_vectors_lower(fits: Fits) -> Intervention | None:
    """the words' first embeddings are enough below the last block"""
    return untrained_vectors(fits) if lower_and_last(fits)[0] else None


@over_last
def untrained_vectors_last(fits: Fits) -> Intervention | None:
    """the words' first embeddings are enough at the last block"""
    return untrained_vectors(fits) if lower_and_last(fits)[1] else None


@over_settings
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


@over_settings
def reranking(fits: Fits) -> Intervention:
    """its likelihood does the work"""
    return replace(hybrid(fits), processor=decoding.rerank)


@once
def reranking_alone(fits: Fits) -> Intervention:
    """nothing needs to be steered"""
    return replace(_nothing_added(fits), processor=decoding.rerank)
