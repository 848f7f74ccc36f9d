"""Hybrid decoding: the base writes, the thinking model reads along and says when and what.

Three questions, each a few lines on top of `engine.sample`:
1. who decides, who executes: `swap` takes the tokens of decisions (openings of steps, the end) from
   one model and everything between them from another, `Script` takes them from no model at all;
2. when to steer: a gate looks at every position and chooses a category of step, or none. Some ask
   the thinking model (`Oracle` and `Disagreement`, of Venhoff et al., arXiv 2510.07364, section 3),
   `Probe` asks only the base's own residual stream, the others are controls;
3. how much a vector gives away: `ceiling` puts the thinking model's own token in at exactly the
   steered positions, `rerank` lets it pick among the steered model's candidates.

An `Intervention` says all that is special about one arm, `run` lets arms answer. All draws at one
position use one uniform number (`Moment.u`), also those that a gate makes: where two models agree
on the distribution they agree on the token, and all arms of a seed are paired.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from locksmith import drawing, rollouts, steering
from locksmith.errors import BadInput
from locksmith.experiments import taxonomy
from locksmith.loading import Model, Pair
from locksmith.steering import Moment

# What a number that is derived from u is for: see _fresh.
STREAMS = ("candidate", "other category", "random category", "random position")


def draw(logits: Float[Tensor, "rows vocabulary"],
         u: Float[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """The tokens that a model with these logits draws at temperature 1 and u."""
    return drawing.draw(logits, u, 1.0, 1.0)[0]


def logit_push(net: PreTrainedModel, table: Int[Tensor, " vocabulary"],
               categories: int) -> Float[Tensor, "categories width"]:
    """Unit vectors: for each category of `table` the mean unembedding row of its tokens, zeros for
    one that no token opens. categories: their number.

    Added after the last block they raise the logits of these tokens and do nothing else: the
    control for a steering vector that is no more than its token.
    """
    rows = net.get_output_embeddings().weight.detach().float().cpu()
    sums = [rows[table == k].sum(0) for k in range(categories)]
    return F.normalize(torch.stack(sums), dim=-1)


# --- who decides, who executes --------------------------------------------------------------------

def swap(decisions: taxonomy.Decisions) -> Callable[[Tensor, Moment], Tensor]:
    """A logits processor for `engine.sample`: the guide model decides, the sampled one executes.

    p(token) = p_D(token) for the tokens of decisions; the rest of the mass, 1 - p_D(decision), is
    shared out as p_E(token | no decision). Where the next token is a decision whatever it is ("let"
    has been said, "us see" has not; a sentence has ended), the decider owns every token. With D = E
    this is the model's own distribution.
    """
    def process(logits, moment):
        decision = decisions.decision.to(logits.device)
        decides = moment.guides[0][0].float().log_softmax(-1)
        executes = logits.float().log_softmax(-1)
        left, right = (x.masked_fill(decision, -torch.inf).logsumexp(-1, keepdim=True)
                       for x in (decides, executes))
        theirs = decision | decisions.owns(moment)[:, None]
        return torch.where(theirs, decides, executes + (left - right))
    return process


class Script:
    """A logits processor for `engine.sample`: the task's script says which step opens or that the
    answer ends, the sampled model executes.

    Where openings tell the steps, one begins wherever the model draws a token of a decision;
    elsewhere a sentence does where the one before has ended, and in it the model draws none.
    problems: that of each row.
    """

    def __init__(self, model: Model, task: ModuleType, problems: Sequence):
        self.model, self.task, self.problems = model, task, problems
        self.decisions = taxonomy.decisions(model, task)
        self.left = {}  # row -> what is still to be put in of an opening

    def __call__(self, logits: Float[Tensor, "rows vocabulary"],
                 moment: Moment) -> Float[Tensor, "rows vocabulary"]:
        decision = self.decisions.decision.to(logits.device)
        if self.decisions.told:
            opens, logits = decision[draw(logits, moment.u)], logits.clone()
        else:
            opens, logits = self.decisions.owns(moment), logits.masked_fill(decision, -torch.inf)
        written = moment.positions[:, -1] + 1 - moment.prompt_lengths
        for i, row in enumerate(moment.rows.tolist()):
            if moment.done[i]:
                continue
            if opens[i] and not self.left.get(row):
                ids = moment.tokens[i, moment.tokens.shape[1] - int(written[i]):].tolist()
                opening = self.task.script(self.problems[row], self.model.decode(ids))
                self.left[row] = self.model.encode(opening)
            if self.left.get(row):
                logits[i] = -torch.inf
                logits[i, self.left[row].pop(0)] = 0
        return logits


# --- when to steer: choosers, Moment -> (R,) int64, a category or -1 ------------------------------
# n_guides: how many guide models a chooser needs, the thinking model first and then the unsteered
# base; layer: the block after which it looks at the thinking model's residual stream, or None.

class Oracle(NamedTuple):
    """The category that the thinking model's own draw opens, wherever it opens a step."""
    tell: taxonomy.Categoriser
    n_guides = 1

    @property
    def layer(self) -> int | None:
        return self.tell.layer

    def __call__(self, moment: Moment) -> Int[Tensor, " rows"]:
        logits, hidden = moment.guides[0]
        theirs = draw(logits, moment.u)
        category = self.tell.category(theirs, hidden)
        return torch.where(self.tell.opens(theirs, moment), category, -1)


class Disagreement(NamedTuple):
    """The category of the thinking model's own draw, only where the unsteered base's own draw
    differs from it: in category where openings tell it, else in the token."""
    tell: taxonomy.Categoriser
    n_guides = 2

    @property
    def layer(self) -> int | None:
        return self.tell.layer

    def __call__(self, moment: Moment) -> Int[Tensor, " rows"]:
        (logits, hidden), (own, _) = moment.guides[:2]
        theirs, own = draw(logits, moment.u), draw(own, moment.u)
        category = self.tell.category(theirs, hidden)
        return torch.where(self.tell.differ(own, theirs, category), category, -1)


class Probe(NamedTuple):
    """Without a thinking model: multinomial logistic regression on the sampled model's own residual
    stream at the steering layer; weight (K + 1, D), intercept (K + 1,), the last class is "none".
    Steers the likeliest category where its probability is above `threshold`."""
    weight: torch.Tensor
    intercept: torch.Tensor
    threshold: float
    n_guides = 0
    layer = None

    def __call__(self, moment: Moment) -> Int[Tensor, " rows"]:
        hidden = moment.hidden[:, -1].float()
        p = F.linear(hidden, self.weight.to(hidden), self.intercept.to(hidden)).softmax(-1)
        p, k = p[:, :-1].max(-1)
        return torch.where(p > self.threshold, k, -1)


class OtherCategory(NamedTuple):
    """The control for "which": at the times of another chooser a category that it did not choose,
    all others alike. categories: their number, at least 2."""
    chooser: Disagreement
    categories: int

    @property
    def n_guides(self) -> int:
        return self.chooser.n_guides

    @property
    def layer(self) -> int | None:
        return self.chooser.layer

    def __call__(self, moment: Moment) -> Int[Tensor, " rows"]:
        k, u = self.chooser(moment), _fresh(moment.u, "other category")
        other = (k + 1 + (u * (self.categories - 1)).long()) % self.categories
        return torch.where(k >= 0, other, -1)


class RandomPositions(NamedTuple):
    """The control for "when": a share `rate` of all positions, by a hash of seed, problem, sample
    and position, with categories by their `frequencies` (K,)."""
    rate: float
    frequencies: list
    n_guides = 0
    layer = None

    def __call__(self, moment: Moment) -> Int[Tensor, " rows"]:
        cdf = torch.as_tensor(self.frequencies, dtype=torch.float64).cumsum(0)
        u = _fresh(moment.u, "random category") * cdf[-1].item()
        k = (u[:, None] >= cdf[:-1].to(u)).sum(-1)
        return torch.where(_fresh(moment.u, "random position") < self.rate, k, -1)


class Always(NamedTuple):
    """The same category at every position."""
    category: int
    n_guides = 0
    layer = None

    def __call__(self, moment: Moment) -> Int[Tensor, " rows"]:
        return torch.full_like(moment.rows, self.category)


def _fresh(u, stream, number=0):
    """Uniform numbers (R,) that are functions of u (R,), itself a hash of seed, problem, sample and
    position, and yet independent of it."""
    bits = u.view(torch.int64 if u.dtype == torch.float64 else torch.int32)
    return drawing.uniforms(bits, STREAMS.index(stream), number, 0).to(u)


class Gate:
    """The gate of a `Steer` with vectors (K, D): strengths at the last position from a chooser.

    coefficients: a module (R, D) -> (R, K) that sets the strengths of all vectors from the sampled
    model's own residual stream where the chooser fires (the paper's later version); else the chosen
    category has strength 1. All are multiplied by `strength`. `which` (R,) is the choice of this
    step, -1 = none, for a logits processor; `decisions` the rows, steps and choices of all steps.
    """

    def __init__(self, choose: Callable[[Moment], Tensor], categories: int, strength: float = 1.0,
                 coefficients: nn.Module | None = None):
        self.choose, self.categories, self.strength = choose, categories, strength
        self.coefficients, self.decisions = coefficients, []

    def __call__(self, moment: Moment) -> Float[Tensor, "rows new categories"]:
        self.which = self.choose(moment)
        step = moment.positions[:, -1] + 1 - moment.prompt_lengths
        self.decisions.append(torch.stack([moment.rows, step, self.which]))
        if self.coefficients is None:
            last = F.one_hot(self.which + 1, self.categories + 1)[:, 1:]
        else:
            last = self.coefficients.to(moment.hidden.device)(moment.hidden[:, -1].float())
            last = last * (self.which >= 0)[:, None]
        strengths = moment.hidden.new_zeros(*moment.positions.shape, self.categories)
        strengths[:, -1] = self.strength * last
        return strengths

    def table(self, like: Int[Tensor, "rows time"]) -> Int[Tensor, "rows time"]:
        """The choices, -1 = none, for rollouts of these tokens; none at strength 0."""
        out = torch.full_like(like, -1)
        if not self.strength:
            return out
        rows, steps, which = torch.cat(self.decisions, 1)
        inside = steps < like.shape[1]
        out[rows[inside], steps[inside]] = which[inside]
        return out


# --- what is drawn at steered positions -----------------------------------------------------------

def ceiling(gate: Gate) -> Callable[[Tensor, Moment], Tensor]:
    """A logits processor: where the gate fires, the thinking model's own token is put in, as no
    vector could."""
    def process(logits, moment):
        return torch.where((gate.which >= 0)[:, None], moment.guides[0][0], logits)
    return process


def rerank(gate: Gate, candidates: int = 4) -> Callable[[Tensor, Moment], Tensor]:
    """A logits processor: reranking. Where the gate fires, several tokens are drawn from the
    steered distribution, and the one that the thinking model holds likeliest is taken (the
    selection of the paper's first version: its logits enter the hybrid beside the vector)."""
    def process(logits, moment):
        on = (gate.which >= 0).nonzero()[:, 0]
        if not len(on):
            return logits
        mine, theirs, u = logits[on], moment.guides[0][0][on], moment.u[on]
        drawn = torch.stack([draw(mine, _fresh(u, "candidate", j)) for j in range(candidates)], 1)
        best = drawn.gather(1, theirs.gather(1, drawn).argmax(1, keepdim=True))
        return logits.index_copy(0, on, torch.full_like(mine, -torch.inf).scatter(1, best, 0.0))
    return process


# --- arms -----------------------------------------------------------------------------------------

SCRIPT = "script"  # who decides where no model does


@dataclass(frozen=True)
class Intervention:
    """How an arm answers.

    runs: role of the model whose tokens are drawn. decides: role of a model that decides while
    `runs` executes (`swap`), or SCRIPT. gate: a chooser; where it fires, its category's vector of
    `vectors` (K, D) is added after block `layer`, times `strength` and what `coefficients` says
    (see `Gate`). processor: what is drawn there instead of the steered model's own, `ceiling` or
    `rerank`. BadInput for what does not go together.
    """
    runs: str = "base"
    decides: str | None = None
    gate: Callable | None = None
    vectors: torch.Tensor | None = None
    layer: int | None = None
    strength: float = 1.0
    coefficients: nn.Module | None = None
    processor: Callable | None = None

    def __post_init__(self):
        if (self.gate is None) != (self.vectors is None) or (self.gate and self.layer is None):
            raise BadInput(f"gate is {self.gate!r} and layer {self.layer!r}; allowed is a gate "
                           "with vectors and a layer, or none of the three.")
        if self.processor and not self.gate or self.gate and self.decides:
            raise BadInput(f"gate is {self.gate!r}, decides {self.decides!r} and processor "
                           f"{self.processor!r}; allowed is a gate, with or without a processor, "
                           "or a model that decides, or none of them.")

    @property
    def asks(self) -> bool:
        """Whether its gate asks the thinking model."""
        return self.gate is not None and self.gate.n_guides > 0

    @property
    def n_guides(self) -> int:
        """How many of (thinking model, unsteered base) its gate and its processor look at."""
        return max(self.gate.n_guides, int(self.processor is not None))


@dataclass
class Run:
    """What one arm did with one pair: P problems, n answers to each.

    correct, trace (P, n) bool; tokens (P, n) int, generated; stopped (P, n) bool, ended by itself
    (else cut off at the cap); steered (P,), tokens that were chosen at a steered position; counts:
    attempts, valid_attempts, backtracks, (P, n) each, as the task's grader counts them; ids, which:
    P lists of n lists of int, the tokens, and the category steered at each (-1: none).

    bits: what the gate hands over per steered token: the entropy in bits of its decision at one
    token (not to steer, or which category), taken over all tokens of the run, divided by the share
    of tokens steered. An upper bound, since a part could be guessed from the text; 0 for a gate
    behind which no thinking model stands, and for a swap, which has no gate. The token that a
    ceiling or reranking hands over is not counted.
    """
    correct: np.ndarray
    trace: np.ndarray
    tokens: np.ndarray
    stopped: np.ndarray
    steered: np.ndarray
    counts: dict
    bits: float
    ids: list
    which: list

    @property
    def n_steered(self) -> int:
        """How often a vector was added."""
        return int(self.steered.sum())

    def frame(self) -> pd.DataFrame:
        """A row a problem: how many answers; means over them of correct, trace, truncated, tokens;
        sums of drawn (tokens), steered (tokens), and of each of `counts`."""
        return pd.DataFrame({
            "problem": range(len(self.correct)), "answers": self.correct.shape[1],
            "correct": self.correct.mean(1),
            "trace": self.trace.mean(1), "truncated": (~self.stopped).mean(1),
            "tokens": self.tokens.mean(1), "drawn": self.tokens.sum(1), "steered": self.steered,
            **{name: table.sum(1) for name, table in self.counts.items()}})


COUNTS = ("attempts", "valid_attempts", "backtracks")


def run(pair: Pair, arms: dict, n_problems: int, n: int, max_new_tokens: int,
        split: str = "test") -> dict:
    """Lets arms (name -> Intervention) answer the first problems of a split, n times each: name ->
    Run. The pair's seed is also that of the draws, which all arms share.

    Arms that steer one model go side by side, so that its prompts are read once for all of them.
    """
    problems, bodies, out = pair.problems(n_problems, split), {}, {}
    how = {"max_new_tokens": max_new_tokens, "seed": pair.seed}
    for name, arm in arms.items():
        if arm.gate:
            bodies.setdefault(arm.runs, {})[name] = arm
        else:
            out[name] = _unsteered(pair, arm, problems, n, how)
    for body, some in bodies.items():
        out |= _side_by_side(pair, body, some, problems, n, how)
    return {name: out[name] for name in arms}


def _unsteered(pair, arm, problems, n, how):
    """The Run of a model alone, or of one that executes what another, or the script, decides."""
    model = pair.load(arm.runs)
    if arm.decides == SCRIPT:
        rows = [problem for problem in problems for _ in range(n)]
        how = how | {"control": steering.Control(
            logits_processor=Script(model, pair.rules, rows))}
    elif arm.decides:
        how = how | {"control": steering.Control(
            guides=[pair.load(arm.decides).net],
            logits_processor=swap(taxonomy.decisions(model, pair.rules)))}
    return _result(rollouts.answer(model, pair.rules, problems, n, **how))


def _side_by_side(pair, body, arms, problems, n, how):
    """name -> Run of arms that steer one model, as `run`. They take turns within each problem."""
    model, some = pair.load(body), [*arms.values()]
    gates = [Gate(arm.gate, len(arm.vectors), arm.strength, arm.coefficients) for arm in some]
    # All gates that look at the thinking model's stream look at it after one block.
    layer = next((arm.gate.layer for arm in some if arm.gate.layer is not None), None)
    n_guides = max(arm.n_guides for arm in some)
    guides = [(pair.load("thinking").net, layer), model.net][:n_guides] if n_guides else []

    def among(i):
        def mine(moment):
            return moment.rows // n % len(some) == i

        def gate(moment):
            strengths = moment.hidden.new_zeros(*moment.positions.shape, gates[i].categories)
            if (here := mine(moment)).any():
                strengths[here] = gates[i](moment.part(here))
            return strengths

        def process(logits, moment):
            if (here := mine(moment)).any():
                logits[here] = some[i].processor(gates[i])(logits[here], moment.part(here))
            return logits
        return gate, process
    own = [among(i) for i in range(len(some))]

    def process(logits, moment):
        logits = logits.clone()
        for arm, (_, change) in zip(some, own):
            logits = change(logits, moment) if arm.processor else logits
        return logits
    answers = rollouts.answer(
        model, pair.rules, [problem for problem in problems for _ in some], n,
        keys=[i for i in range(len(problems)) for _ in some], **how,
        control=steering.Control(
            [steering.Steer(arm.layer, arm.vectors, gate=gate)
             for arm, (gate, _) in zip(some, own)], guides,
            process if any(arm.processor for arm in some) else None))
    return {name: _result(answers, i, len(some), gates[i], arm.asks)
            for i, (name, arm) in enumerate(arms.items())}


def _result(answers, i=0, of=1, gate=None, asks=False):
    """The Run of the i-th `of` arms that took turns; asks: its gate asked the thinking model."""
    mine = slice(i, None, of)
    ids, lengths = answers.ids[mine], answers.lengths[mine]
    which = [[-1] * len(one) for row in ids for one in row]
    steered = np.zeros(len(ids))
    if gate:
        tokens, n = answers.rollouts.tokens, lengths.shape[1]
        rows = torch.arange(len(tokens)).view(-1, of, n)[:, i].reshape(-1)
        fired = gate.table(tokens)[rows].tolist()
        which = [row[:len(one)] for row, one in zip(fired, which, strict=True)]
        at = answers.rollouts.steered_at[rows].sum(1).cpu().numpy()
        steered = at.reshape(lengths.shape).sum(1)
    return Run(answers.correct[mine], answers.trace[mine], lengths, answers.stopped[mine], steered,
               {name: answers.table(name)[mine] for name in COUNTS},
               handed_over(np.concatenate(which)) if asks else 0.0,
               ids, rollouts.by_problem(which, lengths.shape[1]))


def handed_over(which: Int[np.ndarray, " tokens"]) -> float:
    """Bits a steered token from the decisions at all tokens, -1 = not steered; see `Run`."""
    _, counts = np.unique(which, return_counts=True)
    p, share = counts / len(which), (which >= 0).mean()
    return float(-(p * np.log2(p)).sum() / share) if share else 0.0
