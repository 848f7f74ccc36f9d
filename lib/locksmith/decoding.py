"""What sampling alone gets out of a model, with the tokens that it costs.

Every method returns `Chosen`: one continuation a problem, and the number of tokens generated for
it, because methods are only comparable at equal generated tokens. Tokens that are merely scored
are not counted; they cost one parallel pass, not one pass a token.

  greedy, low_temperature   one rollout
  majority                  the commonest answer among rollouts (arXiv 2203.11171)
  best_by_likelihood        the likeliest rollout, by sum or by mean over its tokens
  cot_decoding              branch one token, then greedy (arXiv 2402.10200, section 2.2)
  power_sampling            Metropolis-Hastings on p(x)^alpha (arXiv 2510.14901, algorithm 1)

Left out: CoT-decoding's "So the answer is" continuation, since here the caller says where the
answer stands; power sampling's early exit at the first end of text, since it is not exact.
`entropy_matched_temperature` is the control of arXiv 2504.13837, section 4.5.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence, Set
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedModel

from locksmith import architectures, cache
from locksmith.engine import Rollouts, sample, score


class Chosen(NamedTuple):
    """One continuation a problem.

    continuations: P lists of token ids, the stop token included where there is one.
    tokens: (P,) int64, tokens generated for each problem, those thrown away included.
    log: what the method has to report about itself, arrays (P,).
    """

    continuations: list[list[int]]
    tokens: np.ndarray
    log: dict[str, np.ndarray]


def _ids(rollouts, row):
    return rollouts.tokens[row, : int(rollouts.lengths[row])].tolist()


def _one_each(rollouts):
    return Chosen(rollouts.ids(), rollouts.lengths.cpu().numpy(), {})


def greedy(model: PreTrainedModel, prompts: Sequence[list[int]], *, max_new_tokens: int,
           stop: int | Set[int], batch_size: int = 384) -> Chosen:
    """The likeliest token at every step. prompts: P lists of token ids."""
    return _one_each(
        sample(model, prompts, max_new_tokens=max_new_tokens, stop=stop, temperature=0.0,
               batch_size=batch_size)
    )


def low_temperature(model: PreTrainedModel, prompts: Sequence[list[int]], temperature: float, *,
                    max_new_tokens: int, stop: int | Set[int], seed: int = 0,
                    keys: Sequence[int] | None = None, batch_size: int = 384) -> Chosen:
    """One rollout a problem at a temperature, the plain rival of power sampling at 1/alpha."""
    return _one_each(
        sample(model, prompts, max_new_tokens=max_new_tokens, stop=stop, temperature=temperature,
               seed=seed, keys=keys, batch_size=batch_size)
    )


# ---- choosing among rollouts ----


def _rows_by_prompt(rollouts, rows):
    """The rows of each prompt in sample order; every prompt must have one."""
    prompt = rollouts.prompt.tolist()
    groups = [[] for _ in range(max(prompt) + 1)]
    for row in range(len(prompt)) if rows is None else rows:
        groups[prompt[row]].append(int(row))
    if not all(groups):
        raise ValueError(f"rows leaves prompt {groups.index([])} without a rollout")
    return groups


def within_budget(rollouts: Rollouts, tokens: int | Sequence[int] | np.ndarray) -> list[int]:
    """Rows (list of int) of the first rollouts of each prompt that fit into a number of tokens.

    tokens: one number, or one for each prompt. A prompt always keeps its first rollout.
    """
    groups = _rows_by_prompt(rollouts, None)
    budget = np.broadcast_to(np.asarray(tokens), (len(groups),))
    rows = []
    for group, allowed in zip(groups, budget, strict=True):
        spent = np.cumsum([int(rollouts.lengths[r]) for r in group])
        rows += group[: max(1, int((spent <= allowed).sum()))]
    return rows


def _choose(rollouts, groups, best):
    tokens = np.array([sum(int(rollouts.lengths[r]) for r in group) for group in groups])
    used = np.array([len(group) for group in groups])
    return Chosen([_ids(rollouts, r) for r in best], tokens, {"rollouts": used})


def majority(rollouts: Rollouts, answers: Sequence[Hashable],
             rows: Sequence[int] | None = None) -> Chosen:
    """The first rollout with the commonest answer of its prompt.

    answers: one hashable canonical answer a rollout, None for no answer, which has no vote.
    Ties go to the answer seen first. rows: the rollouts that take part, all if None.
    """
    groups = _rows_by_prompt(rollouts, rows)
    best = []
    for group in groups:
        votes = Counter(answers[r] for r in group if answers[r] is not None)
        # most_common keeps the order of first sight among equals
        winner = votes.most_common(1)[0][0] if votes else None
        best.append(next(r for r in group if answers[r] == winner))
    return _choose(rollouts, groups, best)


def best_by_likelihood(rollouts: Rollouts, per_token: bool = False,
                       rows: Sequence[int] | None = None) -> Chosen:
    """The rollout with the largest log-probability, summed or averaged over its tokens.

    rollouts: sampled at temperature 1, so that their log-probs are the model's own. A rollout that
    was cut before it stopped has the probability of a mere beginning, so it is taken only where
    none of the prompt's rollouts stopped.
    """
    groups = _rows_by_prompt(rollouts, rows)
    inside = torch.arange(rollouts.tokens.shape[1]) < rollouts.lengths.cpu()[:, None]
    value = torch.where(inside, rollouts.logprobs.cpu().double(), 0.0).sum(1)
    if per_token:
        value = value / rollouts.lengths.cpu()
    rank = list(zip(rollouts.stopped.tolist(), value.tolist(), strict=True))
    best = [max(group, key=rank.__getitem__) for group in groups]
    return _choose(rollouts, groups, best)


# ---- CoT-decoding ----


@torch.inference_mode()
def _top(model, sequences, positions, k, batch_size):
    """Top-k probabilities and tokens for given positions, by plain forward passes.

    positions: for each sequence the indices of the tokens to be predicted, len(sequence) being the
    one that comes next. Returns for each sequence (probabilities, tokens), both (positions, k).
    Padding on the right needs no mask: a causal model does not look there.
    """
    tops, vocabulary = [], model.config.get_text_config().vocab_size
    # A large vocabulary allows only few rows: at most 512 MiB for one float32 copy of the logits.
    most = max(2**27 // (vocabulary * max(map(len, sequences), default=1)), 1)
    # An altered model, which may not look back only, reads each text alone.
    batch_size = 1 if architectures.altered(model) else min(batch_size, most)
    for at in range(0, len(sequences), batch_size):
        chunk = sequences[at : at + batch_size]
        ids = torch.zeros(len(chunk), max(map(len, chunk)), dtype=torch.long)
        for i, sequence in enumerate(chunk):
            ids[i, : len(sequence)] = torch.tensor(sequence)
        logits = cache.own_logits(model, ids.to(model.device))
        for i, places in enumerate(positions[at : at + batch_size]):
            top = logits[i, [p - 1 for p in places]].float().softmax(-1).topk(k, dim=-1)
            tops.append((top.values.cpu(), top.indices.cpu()))
    return tops


def first_uncertain(model: PreTrainedModel, prompts: Sequence[list[int]],
                    continuations: Sequence[list[int]], below: float = 0.9,
                    batch_size: int = 384) -> list[int]:
    """Index of the first token of each continuation to which the model gave less than `below`.

    Where a model's first token is mere format, this is the place to branch; len(continuation)
    where no token is uncertain.
    """
    indices = []
    for logprobs in score(model, prompts, continuations, batch_size=batch_size):
        uncertain = (logprobs < np.log(below)).nonzero().flatten().tolist()
        indices.append(uncertain[0] if uncertain else len(logprobs))
    return indices


def cot_decoding(model: PreTrainedModel, prompts: Sequence[list[int]],
                 read_answer: Callable[[int, list[int]], tuple[Hashable, list[int]]], *,
                 max_new_tokens: int, stop: int | Set[int], k: int = 10,
                 forced: Sequence[list[int]] | None = None,
                 correct: Callable[[int, list[int]], bool] | None = None, seed: int = 0,
                 batch_size: int = 384) -> dict[str, Chosen]:
    """Branch one position into its k likeliest tokens, continue each greedily, choose one path.

    read_answer(i, ids) -> (answer, positions): the canonical answer of problem i's continuation
    ids (None if there is none) and the indices of its tokens in ids. Delta is the mean of
    p(top 1) - p(top 2) over these tokens.
    forced: for each problem the tokens of the continuation before the branch (none by default:
    the paper branches the first token). They count as generated once; paths share them.
    correct(i, ids) -> bool: adds the selector "oracle".

    Returns a dict of Chosen, all with the tokens of all paths: "delta" (largest Delta),
    "delta_sum" (answer with the largest sum of Delta, then its best path), and the controls
    "longest", "random", "oracle". log: "delta" of the chosen path, -inf without an answer.
    """
    forced = [[] for _ in prompts] if forced is None else forced
    problem = [i for i in range(len(prompts)) for _ in range(k)]
    paths = _branched(model, prompts, forced, k, max_new_tokens, stop, batch_size)
    read = [read_answer(i, ids) for i, ids in zip(problem, paths, strict=True)]
    delta = _delta(model, [prompts[i] for i in problem], paths, read, batch_size)
    groups = [range(i * k, (i + 1) * k) for i in range(len(prompts))]
    best = {"delta": [max(group, key=delta.__getitem__) for group in groups],
            "delta_sum": [_best_by_sum(group, [answer for answer, _ in read], delta)
                          for group in groups],
            "longest": [max(group, key=lambda j: len(paths[j])) for group in groups],
            "random": [group[int(np.random.default_rng([seed, i]).integers(k))]
                       for i, group in enumerate(groups)]}
    if correct is not None:
        best["oracle"] = [next((j for j in group if correct(i, paths[j])), group[0])
                          for i, group in enumerate(groups)]
    tokens = np.array([len(before) + sum(len(paths[j]) - len(before) for j in group)
                       for before, group in zip(forced, groups, strict=True)])
    return {name: Chosen([paths[j] for j in rows], tokens, {"delta": delta[rows]})
            for name, rows in best.items()}


def _branched(model, prompts, forced, k, max_new_tokens, stop, batch_size):
    """The paths of CoT-decoding, k a prompt, in its order: lists of ids, `forced` first."""
    stops = {stop} if isinstance(stop, int) else set(stop)
    starts = [list(p) + list(f) for p, f in zip(prompts, forced, strict=True)]
    branches = _top(model, starts, [[len(s)] for s in starts], k, batch_size)
    problem = [i for i in range(len(prompts)) for _ in range(k)]
    paths = [list(forced[i]) + [t] for i, (_, top) in enumerate(branches) for t in top[0].tolist()]

    room = [0 if p[-1] in stops else max_new_tokens - len(p) for p in paths]
    open_paths = [j for j, r in enumerate(room) if r > 0]
    if open_paths:
        rest = sample(
            model, [list(prompts[problem[j]]) + paths[j] for j in open_paths], stop=stop,
            max_new_tokens=max(room[j] for j in open_paths), temperature=0.0, batch_size=batch_size,
        )
        for row, j in enumerate(open_paths):
            paths[j] += _ids(rest, row)[: room[j]]
    return paths


def _delta(model, prompts, paths, read, batch_size):
    """(N,) float64: mean of p(top 1) - p(top 2) over the tokens of each path's answer, -inf without
    one. read: (answer, positions) of each path."""
    delta = np.full(len(paths), -np.inf)
    answered = [j for j, (answer, places) in enumerate(read) if answer is not None and places]
    tops = _top(model, [list(prompts[j]) + paths[j] for j in answered],
                [[len(prompts[j]) + p for p in read[j][1]] for j in answered], 2, batch_size)
    for j, (top, _) in zip(answered, tops, strict=True):
        delta[j] = float((top[:, 0] - top[:, 1]).mean())
    return delta


def _best_by_sum(group, answers, delta):
    """Of a problem's paths the best with the answer whose Deltas have the largest sum."""
    totals = Counter()
    for j in group:
        if np.isfinite(delta[j]):
            totals[answers[j]] += delta[j]
    winner = totals.most_common(1)[0][0] if totals else None
    return max(group, key=lambda j: (answers[j] == winner and np.isfinite(delta[j]), delta[j]))


# ---- power sampling ----


def log_acceptance(log_z: Float[np.ndarray, " old"], new_log_z: Float[np.ndarray, " new"],
                   cut: int) -> float:
    """Log Metropolis-Hastings ratio for replacing the tokens from `cut` on (not yet capped at 0).

    log_z, new_log_z: per-token alpha log p - log q of the old and the new sequence, whole, 1-D.

    Why it is exact. At horizon H (the end of the block) the states are the sequences that end in a
    stop token after at most H tokens and those of exactly H tokens without one. Their p, the
    product of their token probabilities, the stop token's included, sums to 1; the target is
    pi(x) = p(x)^alpha / Z. From x of length L a cut t is uniform on 0..L-1, so has probability 1/L,
    and the suffix is drawn from q, the model at temperature 1/alpha, until it stops or reaches H:
    always a state again, of a length L' > t, so that the same cut leads back, with probability
    1/L'. Moves with different t are balanced one by one (the cut is part of the move, so different
    cuts that could lead to the same x' need not be summed):

        pi(x) 1/L q(x'[t:] | x[:t]) A(x, x') = pi(x') 1/L' q(x[t:] | x[:t]) A(x', x)

    holds for A = min(1, r), with

        r = L/L' * prod_{i>=t} [p(x'_i)^alpha / q(x'_i)] / prod_{i>=t} [p(x_i)^alpha / q(x_i)],

    products over each sequence's own length; the common prefix cancels. Any state is reached from
    any other through t = 0. So pi at the last horizon is left invariant and is the limit for many
    steps; earlier blocks only supply a good start. Chains that have stopped keep moving in later
    blocks, since a longer rival may be the better one; stopping them, comparing over the shorter
    length only, or leaving out L/L' would each change the target.
    """
    change = float(np.sum(new_log_z[cut:]) - np.sum(log_z[cut:]))
    return change + np.log(len(log_z)) - np.log(len(new_log_z))


def fitting_groups(lengths: Sequence[int], cuts: Sequence[int], horizon: int,
                   context: int) -> list[list[int]]:
    """Splits chains into batches in which nobody's overshoot leaves the model's context.

    One batch as a rule; where the horizon fills the context, chains with about the same cut.
    """
    groups = []
    for j in sorted(range(len(cuts)), key=lambda j: (cuts[j], lengths[j])):
        if groups and lengths[j] + horizon - cuts[groups[-1][0]] <= context:
            groups[-1].append(j)
        else:
            groups.append([j])
    return groups


def power_sampling(model: PreTrainedModel, prompts: Sequence[list[int]], *, alpha: float,
                   max_new_tokens: int, block: int, steps: int, stop: int | Set[int],
                   seed: int = 0, keys: Sequence[int] | None = None,
                   batch_size: int = 384) -> Chosen:
    """One sample a problem from p(x)^alpha over whole sequences (arXiv 2510.14901).

    Prompts may repeat, with different keys, for several chains. For each block the sequences that
    have not stopped are extended by up to `block` tokens at temperature 1/alpha, then every chain
    makes `steps` moves: draw a cut t, resample everything from t on at temperature 1/alpha, accept
    or keep. steps=0 is sampling at temperature 1/alpha. All chains move in one batch, and a chain's
    course depends on its own key only. `log_acceptance` says why it is exact.

    Sampling overshoots the horizon where another chain in the batch has more room; the surplus is
    cut off, which leaves the distribution of what stays as it is, and not counted.

    Returns Chosen; log: "acceptance" (share of moves accepted, NaN for steps=0), "moved" (share of
    moves that were accepted and changed the sequence).
    """
    if alpha <= 0:
        raise ValueError(f"alpha is {alpha}, but must be above 0")
    if min(block, max_new_tokens) < 1 or steps < 0:
        raise ValueError(
            f"block is {block}, max_new_tokens {max_new_tokens}, steps {steps}, "
            "but the first two must be at least 1 and steps at least 0"
        )
    stops = {stop} if isinstance(stop, int) else set(stop)
    keys = list(range(len(prompts))) if keys is None else list(keys)
    horizons = [min(h, max_new_tokens) for h in range(block, max_new_tokens + block, block)]
    uniform = np.stack(
        [np.random.default_rng([seed, key]).random((len(horizons) * steps, 2)) for key in keys]
    )
    chains = _Chains(model, prompts, alpha, seed, keys, {"stop": stops, "batch_size": batch_size})
    accepted, moved = np.zeros(len(prompts)), np.zeros(len(prompts))
    everyone = list(range(len(prompts)))
    for n_block, horizon in enumerate(horizons):
        growing = [c for c in everyone if not chains.ids[c] or chains.ids[c][-1] not in stops]
        if growing:
            cuts = [len(chains.ids[c]) for c in growing]
            chains.take(growing, chains.propose(growing, cuts, horizon))
        for step in range(n_block * steps, (n_block + 1) * steps):
            cuts = [int(uniform[c, step, 0] * len(chains.ids[c])) for c in everyone]
            proposals = chains.propose(everyone, cuts, horizon)
            taken = [c for c, (_, log_z) in enumerate(proposals) if np.log(uniform[c, step, 1])
                     < log_acceptance(chains.log_z[c], log_z, cuts[c])]
            accepted[taken] += 1
            moved[taken] += [proposals[c][0] != chains.ids[c] for c in taken]
            chains.take(taken, [proposals[c] for c in taken])
    n_moves = len(horizons) * steps or np.nan
    return Chosen(chains.ids, chains.tokens,
                  {"acceptance": accepted / n_moves, "moved": moved / n_moves})


class _Chains:
    """The chains of `power_sampling`, one a prompt: ids, the sequence where each stands; log_z,
    alpha log p - log q of its tokens; tokens (P,), how many were generated for it so far."""

    def __init__(self, model, prompts, alpha, seed, keys, how):
        self.model, self.prompts, self.alpha, self.how = model, prompts, alpha, how
        self.seed, self.keys, self.calls = seed, keys, 0
        self.ids, self.log_z = [[] for _ in prompts], [np.zeros(0) for _ in prompts]
        self.tokens = np.zeros(len(prompts), dtype=np.int64)

    def propose(self, chains, cuts, horizon):
        """(ids, log_z) for each of some chains: its first cuts[j] tokens kept,
        the rest drawn anew."""
        self.calls += 1  # every call draws from a stream of its own
        seed = int(np.random.SeedSequence([self.seed, self.calls]).generate_state(1)[0])
        starts = [[*self.prompts[c], *self.ids[c][:cut]]
                  for c, cut in zip(chains, cuts, strict=True)]
        context = architectures.context(self.model)
        proposals = [None] * len(chains)
        for group in fitting_groups(list(map(len, starts)), cuts, horizon, context):
            mine = [starts[j] for j in group]
            rollouts = sample(
                self.model, mine, max_new_tokens=horizon - min(cuts[j] for j in group),
                temperature=1 / self.alpha, seed=seed, keys=[self.keys[chains[j]] for j in group],
                **self.how)
            suffixes = [ids[:horizon - cuts[j]] for j, ids in zip(group, rollouts.ids(),
                                                                  strict=True)]
            log_p = score(self.model, mine, suffixes, batch_size=self.how["batch_size"])
            log_q = rollouts.logprobs.cpu().numpy().astype(np.float64)
            for row, (j, suffix) in enumerate(zip(group, suffixes, strict=True)):
                c, cut = chains[j], cuts[j]
                self.tokens[c] += len(suffix)
                new = self.alpha * log_p[row].double().cpu().numpy() - log_q[row, :len(suffix)]
                proposals[j] = (self.ids[c][:cut] + suffix,
                                np.concatenate([self.log_z[c][:cut], new]))
        return proposals

    def take(self, chains, proposals):
        """Move some chains to what was proposed for them."""
        for c, (ids, log_z) in zip(chains, proposals, strict=True):
            self.ids[c], self.log_z[c] = ids, log_z


# ---- entropy ----


def mean_entropy(rollouts: Rollouts) -> float:
    """Mean entropy in nats of the next-token distribution over all sampled tokens.

    Estimated by the mean of -log q of what was drawn: each term's expectation, given what precedes
    it, is the entropy of the distribution that it was drawn from.
    """
    lengths = rollouts.lengths.cpu()
    inside = torch.arange(rollouts.tokens.shape[1]) < lengths[:, None]
    return -float(rollouts.logprobs.cpu().double()[inside].sum() / lengths.sum())


def entropy_matched_temperature(model: PreTrainedModel, prompts: Sequence[list[int]],
                                target_entropy: float, *, low: float = 0.5, high: float = 4.0,
                                n: int = 4, iterations: int = 8, tolerance: float = 0.005,
                                **how: object) -> tuple[float, float]:
    """Temperature at which the model's own rollouts have a given mean entropy, by bisection.

    target_entropy: nats a token, such as `mean_entropy` of the base's rollouts at temperature 1.
    n: rollouts a prompt; how: what `engine.sample` takes beside. Every temperature is tried with
    the same seed, so that noise hardly hides the trend.
    Returns (temperature, entropy reached). Raises ValueError where [low, high] does not hold it.
    """

    def entropy(temperature):
        return mean_entropy(sample(model, prompts, n, temperature=temperature, **how))

    bounds = entropy(low), entropy(high)
    if not bounds[0] <= target_entropy <= bounds[1]:
        raise ValueError(
            f"target_entropy is {target_entropy:.3f}, but temperatures {low} to {high} give "
            f"{bounds[0]:.3f} to {bounds[1]:.3f} nats a token"
        )
    for _ in range(iterations):
        middle = (low + high) / 2
        reached = entropy(middle)
        if abs(reached - target_entropy) < tolerance:
            break
        low, high = (middle, high) if reached < target_entropy else (low, middle)
    return middle, reached
