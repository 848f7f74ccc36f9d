"""Hybrid decoding: the base writes, the thinking model reads along and says when and what.

Three questions, each a few lines on top of `engine.sample`:
1. who decides, who executes: `swap` takes the tokens of decisions (openings of steps, the end) from
   one model and everything between them from another;
2. when to steer: gates look at every step and choose a category of step, or none. Some ask the
   thinking model (the oracle of Venhoff et al., arXiv 2510.07364, section 3), `probe` asks only the
   base's own residual stream, the others are controls;
3. how much a vector gives away, by logits processors: `ceiling` puts the thinking model's own
   token in at exactly the steered positions, `rerank` lets it pick among the steered model's
   candidates.

All draws at one position use one uniform number (`Moment.u`), also those that a gate makes: where
two models agree on the distribution they agree on the token, and all arms of a seed are paired.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from locksmith import corpus, drawing, engine, grammar, lab, vocabulary
from locksmith.errors import BadInput

BEHAVIOURS = tuple(grammar.OPENINGS)
COUNTS = ("attempts", "valid_attempts", "checks", "correct_checks", "backtracks")

# What a number that is derived from u is for: see _fresh.
STREAMS = ("candidate", "other category", "random category", "random position")


def draw(logits, u):
    """The tokens (R,) that a model with these logits (R, V) draws at temperature 1 and u (R,)."""
    return drawing.draw(logits, u, 1.0, 1.0)[0]


def behaviour_table():
    """(V,) int64: the index in BEHAVIOURS that a word opens, -1 for a word that opens no step."""
    table = torch.full((len(vocabulary.VOCABULARY),), -1)
    for word, behaviour in grammar.BEHAVIOUR.items():
        table[vocabulary.IDS[word]] = BEHAVIOURS.index(behaviour)
    return table


def logit_push(model, table, categories):
    """(K, D) unit vectors: for each category of `table` (V,) the mean unembedding row of its words,
    zeros for one that no word opens. categories: their number K.

    Added after the last block they raise the logits of these words and do nothing else: the control
    for a steering vector that is no more than its token.
    """
    rows = model.get_output_embeddings().weight.detach().float()
    sums = [rows[table == k].sum(0) for k in range(categories)]
    return F.normalize(torch.stack(sums), dim=-1)


# --- who decides, who executes --------------------------------------------------------------------

def decision_tokens():
    """Two bool tables (V,): the tokens of decisions (all words of openings, `<eos>`, `next`), and
    those after which an opening is not yet complete. No word stands in two openings."""
    decision = torch.zeros(len(vocabulary.VOCABULARY), dtype=torch.bool)
    inside = torch.zeros_like(decision)
    decision[list(vocabulary.STOP)] = True
    for opening in sum(grammar.OPENINGS.values(), ()):
        decision[vocabulary.encode(opening)] = True
        inside[vocabulary.encode(opening[:-1])] = True
    return decision, inside


def swap(tables=None):
    """A logits processor for `engine.sample`: the guide model decides, the sampled one executes.

    p(token) = p_D(token) for the tokens of decisions; the rest of the mass, 1 - p_D(decision), is
    shared out as p_E(token | no decision). Inside an opening ("let" has been said, "us see" has
    not) the decider owns every token. With D = E this is the model's own distribution. tables: see
    `decision_tokens`.
    """
    decision, inside = tables or decision_tokens()

    def process(logits, moment):
        at = logits.device
        decides = moment.guides[0][0].float().log_softmax(-1)
        executes = logits.float().log_softmax(-1)
        left, right = (x.masked_fill(decision.to(at), -torch.inf).logsumexp(-1, keepdim=True)
                       for x in (decides, executes))
        theirs = decision.to(at) | inside.to(at)[moment.tokens[:, -1], None]
        return torch.where(theirs, decides, executes + (left - right))
    return process


# --- when to steer: choosers (Moment -> (R,) int64, a category or -1) -----------------------------
# `guides[0]` is the thinking model, `guides[1]` the unsteered base, where a chooser asks for it.

def oracle(table):
    """The category that the thinking model's own draw opens; table (V,) int64, -1 = opens none."""
    def choose(moment):
        return table.to(moment.u.device)[draw(moment.guides[0][0], moment.u)]
    return choose


def disagreement(table):
    """The oracle's, only where the unsteered base's own draw opens another category or none."""
    def choose(moment):
        theirs, own = (table.to(moment.u.device)[draw(logits, moment.u)]
                       for logits, _ in moment.guides[:2])
        return torch.where(theirs != own, theirs, -1)
    return choose


def divergence(encode, threshold):
    """Without labels: where the two next-token distributions differ by more than `threshold` in
    total variation, the category is the largest latent of encode(thinking residual (R, D)), (R, K).
    """
    def choose(moment):
        (theirs, hidden), (own, _) = moment.guides[:2]
        distance = (theirs.float().softmax(-1) - own.float().softmax(-1)).abs().sum(-1) / 2
        return torch.where(distance > threshold, encode(hidden.float()).argmax(-1), -1)
    return choose


def probe(weight, intercept, threshold):
    """Without an oracle: multinomial logistic regression on the sampled model's own residual stream
    at the steering layer; weight (K + 1, D), intercept (K + 1,), the last class is "none". Steers
    the likeliest category where its probability is above `threshold`."""
    def choose(moment):
        hidden = moment.hidden[:, -1].float()
        p = F.linear(hidden, weight.to(hidden), intercept.to(hidden)).softmax(-1)
        p, k = p[:, :-1].max(-1)
        return torch.where(p > threshold, k, -1)
    return choose


def other_category(choose, categories):
    """The control for "which": at the times of another chooser a category that it did not choose,
    all others alike."""
    def chosen(moment):
        k, u = choose(moment), _fresh(moment.u, "other category")
        other = (k + 1 + (u * (categories - 1)).long()) % categories
        return torch.where(k >= 0, other, -1)
    return chosen


def random_positions(rate, frequencies):
    """The control for "when": a share `rate` of all positions, by a hash of seed, problem, sample
    and position, with categories by their `frequencies` (K,)."""
    cdf = torch.as_tensor(frequencies, dtype=torch.float64).cumsum(0)

    def choose(moment):
        u = _fresh(moment.u, "random category") * cdf[-1].item()
        k = (u[:, None] >= cdf[:-1].to(u)).sum(-1)
        return torch.where(_fresh(moment.u, "random position") < rate, k, -1)
    return choose


def always(category):
    """The same category at every position."""
    return lambda moment: torch.full_like(moment.rows, category)


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

    def __init__(self, choose, categories, strength=1.0, coefficients=None):
        self.choose, self.categories, self.strength = choose, categories, strength
        self.coefficients, self.decisions = coefficients, []

    def __call__(self, moment):
        self.which = self.choose(moment)
        step = moment.positions[:, -1] + 1 - moment.prompt_lengths
        self.decisions.append(torch.stack([moment.rows, step, self.which]))
        if self.coefficients is None:
            last = F.one_hot(self.which + 1, self.categories + 1)[:, 1:]
        else:
            last = self.coefficients(moment.hidden[:, -1].float()) * (self.which >= 0)[:, None]
        strengths = moment.hidden.new_zeros(*moment.positions.shape, self.categories)
        strengths[:, -1] = self.strength * last
        return strengths

    def table(self, like):
        """The choices (R, T) int64, -1 = none, for rollouts of tokens (R, T)."""
        out = torch.full_like(like, -1)
        rows, steps, which = torch.cat(self.decisions, 1)
        inside = steps < like.shape[1]
        out[rows[inside], steps[inside]] = which[inside]
        return out


def chooser(gate, categories, options):
    """The chooser of a name with its options, and how many guide models it needs.

    oracle(table), disagreement(table), divergence(encode, threshold), other category(table),
    probe(weight, intercept, threshold), random positions(rate, frequencies: all alike),
    always(category). BadInput for another name, TypeError for other options.
    """
    alike = [1.0] * categories
    makers = {"oracle": (oracle, 1), "disagreement": (disagreement, 2),
              "divergence": (divergence, 2), "probe": (probe, 0), "always": (always, 0),
              "other category": (lambda table: other_category(disagreement(table), categories), 2),
              "random positions": (lambda rate, frequencies=alike: random_positions(
                  rate, frequencies), 0)}
    if gate not in makers:
        raise BadInput(f"gate is {gate!r}; allowed are {', '.join(makers)}.")
    make, n_guides = makers[gate]
    return make(**options), n_guides


# --- what is drawn at steered positions -----------------------------------------------------------

def ceiling(gate):
    """A logits processor: where the gate fires, the thinking model's own token is put in, as no vector
    could."""
    def process(logits, moment):
        return torch.where((gate.which >= 0)[:, None], moment.guides[0][0], logits)
    return process


def rerank(gate, candidates):
    """A logits processor: reranking. Where the gate fires, several tokens are drawn from the steered
    distribution, and the one that the thinking model holds likeliest is taken (the selection of the
    paper's first version, which lets its logits into the hybrid beside the vector)."""
    def process(logits, moment):
        on = (gate.which >= 0).nonzero()[:, 0]
        if not len(on):
            return logits
        mine, theirs, u = logits[on], moment.guides[0][0][on], moment.u[on]
        drawn = torch.stack([draw(mine, _fresh(u, "candidate", j)) for j in range(candidates)], 1)
        best = drawn.gather(1, theirs.gather(1, drawn).argmax(1, keepdim=True))
        return logits.index_copy(0, on, torch.full_like(mine, -torch.inf).scatter(1, best, 0.0))
    return process


# --- the work of one process ----------------------------------------------------------------------

@dataclass
class Arm:
    """P problems, n rollouts of each. correct, trace (P, n) bool; tokens (P, n) int, generated;
    stopped (P, n) bool, ended by itself (else cut off at the cap); steered (P,), share of the
    problem's tokens that were chosen at a steered position, n_steered their number;
    behaviours: behaviour -> (P, n) int, how many such steps; counts: the same for what the grader
    counts (COUNTS); ids, which: P lists of n lists of int,
    the tokens, and the category steered at each (-1: none).

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
    n_steered: int
    behaviours: dict
    counts: dict
    bits: float
    ids: list
    which: list


def run_arm(profile, family, seed, n_problems, n, max_new_tokens, *, runs="base",
            thinking="thinking", decides=None, gate=None, vectors=None, bias=None, layer=None,
            strength=1.0, coefficients=None, read=None, logits_processor=None, candidates=4,
            split="test", only=None, **options):
    """Samples one arm of the experiment and grades it: `Arm`.

    profile, family, seed, split: of the models and problems (`loading`); seed also of the draws, which
    all arms share. only: indices of the problems, all n_problems if None.
    runs: the model whose tokens are drawn. thinking: the guide where gate or logits processor ask for
    one. decides: a model that decides while `runs` executes (`swap`); not with a gate.
    gate: a name that `chooser` knows, with its options; steers `vectors` (K, D), each plus `bias`
    (D,), after block `layer`, times `strength` and what `coefficients` says (see `Gate`). read: the
    block after which the thinking model's residual stream is read ("divergence").
    logits_processor: "ceiling", "rerank" (with so many `candidates`) or None; BadInput for another.
    """
    problems = lab.problems(profile, family, n_problems, split)
    only = list(range(n_problems)) if only is None else list(only)
    problems = [problems[i] for i in only]
    how = {"max_new_tokens": max_new_tokens, "stop": vocabulary.STOP, "seed": seed, "keys": only}
    fired, model = None, lab.load(profile, family, runs, seed)
    if logits_processor not in (None, "ceiling", "rerank"):
        raise BadInput(f"logits_processor is {logits_processor!r}; allowed are ceiling, rerank and "
                       "None.")
    if (decides and (gate or logits_processor)) or (logits_processor and not gate):
        raise BadInput(f"gate is {gate!r}, decides {decides!r} and logits_processor "
                       f"{logits_processor!r}; allowed is a gate, with or without a logits processor, "
                       "or a model that decides, or none of them.")
    if decides is not None:
        how |= {"guides": [lab.load(profile, family, decides, seed)],
                "logits_processor": swap()}
    if gate is not None:
        vectors = vectors if bias is None else vectors + bias
        choose, n_guides = chooser(gate, len(vectors), options)
        fired = Gate(choose, len(vectors), strength, coefficients)
        guides = []
        if n_guides or logits_processor:
            guides = [(lab.load(profile, family, thinking, seed), read), model]
        how |= {"steer": [engine.Steer(layer, vectors, gate=fired)],
                "guides": guides[:max(n_guides, int(logits_processor is not None))],
                "logits_processor": {None: None, "ceiling": ceiling(fired),
                                     "rerank": rerank(fired, candidates)}[logits_processor]}
    out = engine.sample(model, [vocabulary.encode(p.prompt) for p in problems], n, **how)
    ids, shape = out.ids(), (len(problems), n)
    grades = [corpus.FAMILIES[family].grade(problems[i // n], vocabulary.decode(x))
              for i, x in enumerate(ids)]
    which, bits, steered = [[-1] * len(x) for x in ids], 0.0, np.zeros(len(ids))
    if fired:
        which = [row[:len(x)] for row, x in zip(fired.table(out.tokens).tolist(), ids, strict=True)]
        bits = handed_over(np.concatenate(which)) if n_guides else 0.0
        steered = out.steered_at.sum(1).cpu().numpy()
    opened = [[behaviour for behaviour, _ in grammar.steps(vocabulary.decode(x))] for x in ids]
    length = np.reshape(out.lengths.cpu().numpy(), shape)

    def table(values):
        return np.reshape(list(values), shape)
    return Arm(
        table(g.correct for g in grades), table(g.trace for g in grades), length,
        table(out.stopped.tolist()), table(steered).sum(1) / length.sum(1), out.steered,
        {b: table(steps.count(b) for steps in opened) for b in BEHAVIOURS},
        {name: table(getattr(g, name) for g in grades) for name in COUNTS}, bits,
        _by_problem(ids, n), _by_problem(which, n))


def handed_over(which):
    """Bits a steered token from the decisions (N,) at all tokens, -1 = not steered; see `Arm`."""
    _, counts = np.unique(which, return_counts=True)
    p, share = counts / len(which), (which >= 0).mean()
    return float(-(p * np.log2(p)).sum() / share) if share else 0.0


def _by_problem(rows, n):
    return [rows[i:i + n] for i in range(0, len(rows), n)]
