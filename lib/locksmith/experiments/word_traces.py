"""Chapter 4 on real weights: short traces in words with known behaviours, and what a model does.

    Question: What is 17 plus 9 plus 30?
    Answer: 17 plus 9 is 25. Wait, that gives 26, not 25. 26 plus 30 is 56. The answer is 56.

Wrong steps are followed by a backtrack, steps that carry by a hedge (half of them), others by the
next step. Every text begins with the same three worked examples, one of each kind. The *boundary*
is the full stop after the first step; a minimal pair is the same question with the right and with
a wrong result, one number apart.
"""

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from locksmith import activations, cache, engine, stats, steering
from locksmith.experiments import directions, probes
from locksmith.loading import Model, Pair
from locksmith.results import Recorder

OPENINGS = {
    "backtracking": tuple(f"{word}, that gives {{right}}, not {{wrong}}."
                          for word in ("Wait", "Hmm", "No")),
    "uncertainty": ("I am not sure about that.", "Maybe that is right.", "Perhaps that is right.")}
BEHAVIOURS = tuple(OPENINGS)
FAMILY = "word_traces"  # in facts
ARMS = (*BEHAVIOURS, "error", "noise")  # vectors; noise is the mean over NOISES directions
NOISES = 4
# What free samples are steered with: arm and strength.
FREE = (("unsteered", 0.0), *((arm, s) for s in (0.1, 0.25) for arm in (*BEHAVIOURS, "noise")))
SPAN = 8  # tokens of a behaviour's sentence that a span vector averages, and the one before


@dataclass(frozen=True)
class Sum:
    """A question with three numbers; wrong is the wrong result of its first step."""
    numbers: tuple
    wrong: int

    @property
    def right(self) -> int:
        return self.numbers[0] + self.numbers[1]

    @property
    def carries(self) -> bool:
        return self.numbers[0] % 10 + self.numbers[1] % 10 > 9

    @property
    def question(self) -> str:
        return "Question: What is {} plus {} plus {}?\nAnswer:".format(*self.numbers)

    def step(self, result: int) -> str:
        return " {} plus {} is {}.".format(*self.numbers[:2], result)

    def rest(self) -> str:
        total = self.right + self.numbers[2]
        return f" {self.right} plus {self.numbers[2]} is {total}. The answer is {total}."


def sums(n: int, seed: int | str) -> list[Sum]:
    """n different sums of two-digit numbers, every second one with a carry in its first step."""
    rng, found = random.Random(f"sums {seed}"), {}
    while len(found) < n:
        numbers = tuple(rng.randint(11, 89) for _ in range(3))
        one = Sum(numbers, sum(numbers[:2]) + rng.choice((-10, -2, -1, 1, 2, 10)))
        if one.carries == bool(len(found) % 2):
            found.setdefault(numbers, one)
    return list(found.values())


def trace(rng: random.Random, one: Sum, behaviour: str | None) -> tuple[str, str]:
    """(question and answer, the sentence that is the behaviour or "") for a behaviour or None."""
    sentence = ""
    if behaviour:
        sentence = rng.choice(OPENINGS[behaviour]).format(right=one.right, wrong=one.wrong)
    result = one.wrong if behaviour == "backtracking" else one.right
    said = one.step(result) + (f" {sentence}" if sentence else "")
    return one.question + said + one.rest(), sentence


def examples() -> str:
    """The worked examples at the start of every text, one a kind."""
    rng = random.Random("examples")
    kinds = ("backtracking", "uncertainty", None)
    return "".join(trace(rng, one, kind)[0] + "\n\n"
                   for one, kind in zip(sums(3, "examples"), kinds, strict=True))


def first_tokens(model: Model, behaviour: str) -> list[int]:
    """Ids of the tokens that open a behaviour's sentence after a full stop."""
    return sorted({model.encode(" " + o.split(",")[0].split()[0])[0]
                   for o in OPENINGS[behaviour]})


# --- reading --------------------------------------------------------------------------------------

def boundaries(
    model: Model, asked: Sequence[Sum],
) -> tuple[dict[int, Float[np.ndarray, "texts width"]], Bool[np.ndarray, " texts"],
           Bool[np.ndarray, " texts"], Int[np.ndarray, " texts"]]:
    """The residual stream at the boundary of every minimal pair.

    Returns ({layer: (2 n, D)} float32, wrong (2 n,) bool, carries (2 n,) bool, pair (2 n,) int).
    """
    texts = [model.begin(examples() + one.question + one.step(r))
             for one in asked for r in (one.right, one.wrong)]
    layers = list(range(-1, model.depth))
    streams = activations.residuals(model.net, texts, layers, [[len(t) - 1] for t in texts])
    n = len(asked)
    return ({layer: x.numpy() for layer, x in streams.items()}, np.tile([False, True], n),
            np.repeat([one.carries for one in asked], 2), np.repeat(np.arange(n), 2))


def span_vectors(model: Model, asked: Sequence[Sum], layer: int,
                 seed: int = 0) -> dict[str, Float[np.ndarray, " width"]]:
    """behaviour -> (D,): mean over a behaviour's first tokens, from the one before its sentence on,
    minus the mean over all tokens of the traces (Venhoff et al., arXiv 2506.18167)."""
    rng, start = random.Random(f"spans {seed}"), examples()
    texts, places, spans = [], [], []
    for i, one in enumerate(asked):
        behaviour = (*BEHAVIOURS, None)[i % 3]
        text, sentence = trace(rng, one, behaviour)
        texts.append(model.begin(start + text))
        coded = model.tokenizer(start + text, return_offsets_mapping=True)
        ends = [b for _, b in coded["offset_mapping"]][:len(texts[-1])]
        first = next(k for k, end in enumerate(ends) if end > len(start))
        places.append(list(range(first, len(ends))))
        at = len(start) + text.index(sentence) if sentence else None
        k = next(k for k, end in enumerate(ends) if end > at) if sentence else first
        spans.append((behaviour, range(k - 1 - first, k + SPAN - first)))
    stream = activations.residuals(model.net, texts, [layer], places)[layer]
    parts = stream.split([len(p) for p in places])
    out = {}
    for behaviour in BEHAVIOURS:
        rows = [part[[k for k in span if k < len(part)]]
                for part, (b, span) in zip(parts, spans, strict=True) if b == behaviour]
        out[behaviour] = (torch.cat(rows).mean(0) - stream.mean(0)).numpy()
    return out


# --- steering -------------------------------------------------------------------------------------

@torch.no_grad()
def opening_probabilities(
    model: Model, asked: Sequence[Sum], layer: int, vectors: Sequence[np.ndarray],
) -> dict[str, Float[np.ndarray, "results sums arms"]]:
    """P that a behaviour opens at the boundary, steered there alone.

    vectors (A, D). Returns behaviour -> (2, len(asked), A): after the right and the wrong result.
    """
    net = model.net
    vectors = torch.as_tensor(np.array(vectors), dtype=net.dtype, device=net.device)
    first = {b: first_tokens(model, b) for b in BEHAVIOURS}
    out = {b: np.zeros((2, len(asked), len(vectors))) for b in BEHAVIOURS}

    def add(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden + vectors[:, None]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def tensor(ids, rows=1):
        return torch.tensor([ids], device=net.device).repeat(rows, 1)
    start = model.begin(examples())
    shared = net(tensor(start), use_cache=True).past_key_values
    for i, one in enumerate(asked):
        for j, result in enumerate((one.right, one.wrong)):
            ids = model.encode(one.question + one.step(result))
            past = net(tensor(ids[:-1]), past_key_values=copy.deepcopy(shared)).past_key_values
            past.batch_repeat_interleave(len(vectors))
            hook = cache.blocks(net)[layer].register_forward_hook(add)
            try:
                logits = net(tensor(ids[-1:], len(vectors)), past_key_values=past).logits[:, -1]
            finally:
                hook.remove()
            p = logits.float().softmax(-1)
            for b in BEHAVIOURS:
                out[b][j, i] = p[:, first[b]].sum(-1).cpu().numpy()
    return out


def free_rates(model: Model, asked: Sequence[Sum], layer: int, vectors: Sequence[np.ndarray],
               max_new_tokens: int,
               seed: int = 0) -> tuple[dict[str, Float[np.ndarray, "arms sums"]], list[list[str]]]:
    """How often sentences of free samples open with a behaviour, steered at every new position.

    vectors (A, D). Returns behaviour -> (A, len(asked)), and the texts (A lists).
    """
    prompts = [model.begin(examples() + one.question) for one in asked]
    n, which = len(prompts), torch.arange(len(vectors)).repeat_interleave(len(prompts))

    def from_here_on(moment):
        return (moment.positions >= moment.prompt_lengths[:, None] - 1).float()
    steer = [steering.Steer(layer, torch.tensor(v, dtype=torch.float32), rows=which == a,
                          gate=from_here_on) for a, v in enumerate(vectors)]
    drawn = engine.sample(model.net, prompts * len(vectors), max_new_tokens=max_new_tokens,
                          stop=model.stop, seed=seed, keys=list(range(n)) * len(vectors),
                          control=steering.Control(steer), batch_size=64)
    texts = [model.decode(ids) for ids in drawn.ids()]
    openings = {b: tuple(o.split(",")[0].split()[0] for o in OPENINGS[b]) for b in BEHAVIOURS}
    out = {b: np.zeros(len(texts)) for b in BEHAVIOURS}
    for i, text in enumerate(texts):
        sentences = [s.strip() for s in text.strip().split(".") if s.strip()]
        for b in BEHAVIOURS:
            out[b][i] = np.mean([s.split()[0].strip(",") in openings[b] for s in sentences] or [0])
    return {b: x.reshape(len(vectors), n) for b, x in out.items()}, [
        texts[i:i + n] for i in range(0, len(texts), n)]


# --- the whole of it ------------------------------------------------------------------------------

def arm(name: str) -> str:
    """A vector's id in arms.yml."""
    return f"{name}-vector" if name in (*BEHAVIOURS, "error") else name


def record_reading(rec: Recorder, pair: Pair, reading: list[Sum]) -> tuple[dict, int]:
    """Probes at the boundary of minimal pairs: does a model hold that the step is wrong, or that it
    carries? Returns ({role: `boundaries`}, the block at which vectors are taken): of the middle
    third (earlier ones hold words, later ones the output) where the base's error is read best."""
    streams = {}
    for role in ("base", "thinking", "untrained"):
        if pair.has(role):
            model = pair.load(role)
            streams[role] = boundaries(model, reading)
    depth = max(streams["base"][0]) + 1
    third = max((depth + 1) // 3, 1)
    middle = range(third - 1, max(2 * third - 1, third))
    best = max(middle, key=lambda block: auroc(streams["base"], block, "error").value)
    for role, held in streams.items():
        for what in ("error", "carry"):
            of = {"behaviour": what, "n_problems": len(reading)}
            rec.fact(FAMILY, role, "probe_auroc", auroc(held, best, what), **of)
            rec.fact(FAMILY, "embeddings", "probe_auroc", auroc(held, -1, what), on=role, **of)
            rec.fact(FAMILY, "shuffled-labels", "probe_auroc", auroc(held, best, what, True),
                     on=role, **of)
    return streams, best


def auroc(held: tuple, layer: int, what: str, shuffle: bool = False) -> stats.Interval:
    """AUROC of a probe for "error", over both results of each sum, or "carry",
    over the right ones."""
    streams, wrong, carries, pair = held
    rows = np.ones(len(wrong), bool) if what == "error" else ~wrong
    y = (wrong if what == "error" else carries)[rows]
    score = probes.score_shuffled if shuffle else probes.score
    return probes.auroc_interval([score(streams[layer][rows], y, pair[rows])])


def vectors_of(model: Model, held: tuple, reading: list[Sum], layer: int) -> dict[str, np.ndarray]:
    """(D,) by name, all as long as the residual stream at the boundary: `span_vectors`, error minus
    right of minimal pairs, and NOISES random ones."""
    streams, wrong, _, _ = held
    x = streams[layer]
    found = span_vectors(model, reading, layer)
    found["error"] = x[wrong].mean(0) - x[~wrong].mean(0)
    found |= {f"noise {i}": directions.noise(found["error"], i) for i in range(NOISES)}
    length = np.linalg.norm(x, axis=1).mean()
    return {name: vector * length / np.linalg.norm(vector) for name, vector in found.items()}


def record_steering(rec: Recorder, pair: Pair, streams: dict, layer: int, asked: tuple,
                    strengths: Sequence[float], max_new_tokens: int) -> dict:
    """The base's vectors steer the base and, where there is one, its successor: at the boundary,
    and in free samples. asked: (sums that vectors come from, others that are steered). Returns
    (role, behaviour, arm) -> (strengths, sums), the probability that the behaviour opens."""
    reading, steering = asked
    models = {role: pair.load(role) for role in ("base", "thinking") if role in streams}
    vectors = {role: vectors_of(models[role], streams[role], reading, layer) for role in models}
    base, out = vectors["base"], {}
    for role, model in models.items():
        opened = opening_probabilities(model, steering, layer,
                                       [s * v for v in base.values() for s in strengths])
        for b, p in opened.items():  # (right or wrong, sums, vectors * strengths)
            p = p.reshape(2, len(steering), -1, len(strengths))
            p = np.concatenate([p[:, :, :3], p[:, :, 3:].mean(2, keepdims=True)], 2)
            for i, name in enumerate(ARMS):
                out[role, b, name] = rate = p[:, :, i].mean(0).T
                rec.fact(FAMILY, arm(name), "behaviour_slope", stats.interval(
                    lambda m: m, directions.slope(rate[None], strengths)), on=role, behaviour=b)
            right, wrong = p[:, :, 0, list(strengths).index(0)]
            rec.fact(FAMILY, role, "change_after_error", stats.difference(wrong[None], right[None]),
                     behaviour=b)
        _record_free(rec, role, model, steering, layer, base, max_new_tokens)
    for name in ARMS[:3] if "thinking" in vectors else ():
        alike = directions.cosine(base[name], vectors["thinking"][name])
        rec.fact(FAMILY, arm(name), "cosine", alike, on="base", against="thinking")
    return out


def _record_free(rec, role, model, steering, layer, base, max_new_tokens):
    named = base | {"noise": base["noise 0"], "unsteered": 0 * base["error"]}
    rates, texts = free_rates(model, steering, layer, [s * named[name] for name, s in FREE],
                              max_new_tokens)
    for b, rate in rates.items():
        for i, (name, s) in enumerate(FREE):
            rec.fact(FAMILY, arm(name), "free_rate", stats.mean_interval(rate[i][None]), on=role,
                     behaviour=b, strength=s)
    rec.extra[f"samples {role}"] = [" ".join(row[0].split()) for row in texts]
