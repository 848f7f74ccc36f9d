"""Training little: what one problem, a handful of solutions or a few vectors change in a base model.

Supervised arms are pairs (input, target) of token ids. All take the same number of steps and, to
the token, the same number of target tokens in the loss, and nothing is picked on labels:

    critiques           Wang et al. (arXiv 2506.03295, section 2): input = one problem and somebody's
                        solution, target = a critique; with the controls of `critics`
    shuffled critiques  the same critiques, each of another solution
    own critiques       the base's own words about the solutions
    SFT right, wrong    input = the problem, target = a solution that is right, wrong
    many critiques      exact critiques of solutions to as many problems as there are solutions

RL arms are `rl.learn` on one problem or many, with any of `rewards`. What is trained may also be one
vector a block (`Vectors`; Sinii et al., arXiv 2505.18706) or a LoRA adapter (`adapter`).
"""

import copy
import functools
import random
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from locksmith import (
    cache,
    corpus,
    device,
    engine,
    finetune,
    grammar,
    lab,
    model,
    pretrain,
    rewards,
    rl,
    stats,
    vocabulary,
)

COUNTS = ("attempts", "checks", "backtracks")


# --- one problem and its solutions ----------------------------------------------------------------

def pool(profile, family, n):
    """n training problems, the single ones among them. Countdown's training set is small enough that
    the lab's RL has met some of them too; no test problem is among them."""
    return corpus.FAMILIES[family].problems("train", n, 7000, lab.config(profile)["families"][family])


def difficulty(profile, family, seed, n_problems, samples, max_new_tokens):
    """Share of a base model's samples that solve each problem of `pool`: (n_problems,)."""
    problems = pool(profile, family, n_problems)
    found = _solutions(lab.load(profile, family, "base", seed), family, problems, samples,
                       max_new_tokens, seed=1)
    return np.array([[right for _, right in row] for row in found]).mean(1)


def spread(rates, n):
    """Indices of n problems across the difficulty range, easiest first: those at equal distances in
    the order by solve rate, among the ones that were solved at all (all, if too few were)."""
    solved = np.flatnonzero(rates > 0)
    chosen = solved if len(solved) >= n else np.arange(len(rates))
    ordered = chosen[np.argsort(-rates[chosen], kind="stable")]
    return ordered[np.linspace(0, len(ordered) - 1, n).round().astype(int)].tolist()


def _solutions(net, family, problems, n, max_new_tokens, seed):
    """n continuations of each problem with their grade: P lists of n (ids, correct)."""
    task, prompts = corpus.FAMILIES[family], [vocabulary.encode(p.prompt) for p in problems]
    out = engine.sample(net, prompts, n, max_new_tokens=max_new_tokens, stop=vocabulary.STOP,
                        seed=seed).ids()
    graded = [(ids, task.grade(problems[i // n], vocabulary.decode(ids)).correct)
              for i, ids in enumerate(out)]
    return [graded[i:i + n] for i in range(0, len(graded), n)]


def candidates(profile, family, seeds, problems, n, max_new_tokens):
    """Up to n different finished solutions of each problem, by the base models of all seeds in turn:
    P lists of (ids, correct), and the tokens generated a problem. The thinking model writes none."""
    by_model = [_solutions(lab.load(profile, family, "base", s), family, problems,
                           4 * n // len(seeds) + 1, max_new_tokens, seed=2) for s in seeds]
    out, written = [], 0
    for rows in zip(*by_model, strict=True):
        mixed = [one for turn in zip(*rows, strict=True) for one in turn]
        written += sum(len(ids) for ids, _ in mixed)
        finished = {tuple(ids): right for ids, right in mixed if ids[-1] in vocabulary.STOP}
        out.append([(list(ids), right) for ids, right in finished.items()][:n])
    return out, written / len(problems)


# --- what is trained on ---------------------------------------------------------------------------

def _reviewed(problem, ids):
    """Words of a review document up to its critique."""
    return ["<bos>", "review", *problem.prompt[1:], *vocabulary.decode(ids[:-1]), ";"]


def critique_pairs(family, problem, solutions, critic, rng):
    """(input, target) of critiques of solutions (list of (ids, correct)) by a critic of `critics`."""
    task = corpus.FAMILIES[family]
    return [(vocabulary.encode(_reviewed(problem, ids)), vocabulary.encode(
        [*critic(task, problem, vocabulary.decode(ids[:-1]), rng), "<eos>"])) for ids, _ in solutions]


def own_critiques(profile, family, seed, pairs, max_new_tokens):
    """The pairs with what the base itself says in the targets' place, one sample each; those that
    come to no end within the cap are left out."""
    out = engine.sample(lab.load(profile, family, "base", seed), [given for given, _ in pairs],
                        max_new_tokens=max_new_tokens, stop=vocabulary.EOS, seed=3)
    return [(given, ids) for (given, _), ids, ended in
            zip(pairs, out.ids(), out.stopped.tolist(), strict=True) if ended]


def shuffle_targets(pairs, rng):
    """Every input with the target of another: a random cycle through all pairs."""
    order = list(range(len(pairs)))
    rng.shuffle(order)
    other = dict(zip(order, order[1:] + order[:1], strict=True))
    return [(given, pairs[other[i]][1]) for i, (given, _) in enumerate(pairs)]


def solution_pairs(problems, solutions, right):
    """(prompt, solution) of the solutions whose grade is `right`; problems and solutions in step."""
    return [(vocabulary.encode(p.prompt), ids) for p, rows in zip(problems, solutions, strict=True)
            for ids, correct in rows if correct == right]


def verdicts_right(net, pairs, max_new_tokens):
    """Share of critiques (greedy) that end in the target's verdict: can the model judge?"""
    out = engine.sample(net, [given for given, _ in pairs], max_new_tokens=max_new_tokens,
                        stop=vocabulary.EOS, temperature=0.0).ids()
    return float(np.mean([ids[-2:] == wanted[-2:] for ids, (_, wanted) in zip(out, pairs)]))


# --- training -------------------------------------------------------------------------------------

class Vectors(nn.Module):
    """One vector a block, added to the residual stream after it at every position; the model's own
    weights are no parameters of this module and stay as they are. layers: the blocks."""

    def __init__(self, net, layers):
        super().__init__()
        self.layers, self.frozen = list(layers), [net.requires_grad_(False)]
        self.table = nn.Parameter(torch.zeros(len(self.layers), net.config.hidden_size, device=net.device))

    def logits(self, ids):
        """ids (B, T) -> logits (B, T, V), with gradients for the vectors."""
        blocks = cache.blocks(self.frozen[0])
        hooks = [blocks[i].register_forward_hook(lambda m, a, out, v=v: _added(out, v))
                 for i, v in zip(self.layers, self.table)]
        try:
            with device.autocast(ids.device):
                return self.frozen[0](input_ids=ids, use_cache=False).logits
        finally:
            for hook in hooks:
                hook.remove()

    def steers(self, like):
        """The vectors for `engine.sample`, of the dtype of the tensor `like`."""
        return [engine.Steer(i, v.detach().to(like)) for i, v in zip(self.layers, self.table)]


def _added(out, vector):
    """A block's output (a tensor, or a tuple that starts with one) plus a vector."""
    if isinstance(out, tuple):
        return (out[0] + vector.to(out[0]), *out[1:])
    return out + vector.to(out)


def reinforce(profile, family, seed, problems, recipe, trains="weights", reward="correct", bonus=0.0,
              layers=None, rank=16):
    """RL from a base model on `problems`: (model to sample from, its `Steer`s, curve).

    trains: "weights" (all), "vectors" (one after each of `layers`), "adapter" (LoRA of a rank).
    """
    net = lab.load(profile, family, "base", seed, exact=True)
    sampler, task = lab.load(profile, family, "base", seed), corpus.FAMILIES[family]
    steer, options = None, {"bonus": bonus}
    if trains == "vectors":
        trained = Vectors(net, layers)
        options["logits"] = lambda vectors, ids: vectors.logits(ids)
    elif trains == "adapter":
        trained = model.adapter(net, rank, seed)
        options["logits"] = finetune.own_logits
    else:
        trained = net.train()

    def sync():
        nonlocal steer
        if trains == "vectors":
            steer = trained.steers(sampler.lm_head.weight)
        else:
            whole = trained if trains == "weights" else model.merged(trained)
            sampler.load_state_dict(whole.state_dict())
        return sampler, steer

    def rollout_fn(batch, seed):
        now, steer = sync()
        return rl.rollout(now, task, batch, recipe["samples"], recipe["max_new_tokens"], seed, steer)

    curve = rl.learn(trained, problems, recipe, seed, rollout_fn, rewards.REWARDS[reward],
                     functools.partial(rl.update, **options),
                     label=f"{trains}, {reward} reward, {family} seed {seed}")
    return *sync(), curve


# --- what came of it ------------------------------------------------------------------------------

class Outcome(NamedTuple):
    """P problems, n samples each: correct, trace, strategy (P, n) bool; tokens (P, n) int; counts,
    name in COUNTS -> (P, n); log, what the training says of itself (losses, tokens read, ...)."""
    correct: np.ndarray
    trace: np.ndarray
    strategy: np.ndarray
    tokens: np.ndarray
    counts: dict
    log: dict


def persists(family, problem, words):
    """The strategy that the author of a trace chose, apart from whether it worked.

    countdown: gives up nowhere, that is concludes only what a check just said "yes" to. chain: works
    out every link before concluding, that is writes as many steps as the problem has.
    """
    steps = grammar.steps(words)
    if family == "chain":
        done = sum(behaviour == "try" for behaviour, _ in steps)
        return done >= sum(len(links) for _, links in problem.chains)
    earned = [before for before, (b, _) in zip([("", []), *steps], steps) if b == "conclude"]
    return bool(earned) and all(b == "check" and said[-1:] == ["yes"] for b, said in earned)


def outcome(net, family, problems, n, max_new_tokens, seed, steer=None, log=None):
    """`Outcome` of n samples a problem at temperature 1."""
    task = corpus.FAMILIES[family]
    out = engine.sample(net, [vocabulary.encode(p.prompt) for p in problems], n, seed=seed, steer=steer,
                        max_new_tokens=max_new_tokens, stop=vocabulary.STOP).ids()
    words = [vocabulary.decode(ids) for ids in out]
    grades = [task.grade(problems[i // n], w) for i, w in enumerate(words)]

    def table(values):
        return np.reshape(list(values), (len(problems), n))
    return Outcome(table(g.correct for g in grades), table(g.trace for g in grades),
                   table(persists(family, problems[i // n], w) for i, w in enumerate(words)),
                   table(map(len, words)),
                   {name: table(getattr(g, name) for g in grades) for name in COUNTS}, log or {})


def document_loss(net, family, generator, n=200):
    """Mean loss in nats a token on n corpus documents that no model was trained on, of all kinds: what
    fine-tuning makes a model forget."""
    rng = random.Random("held out")
    written = [corpus.document(rng, corpus.FAMILIES[family], generator)[0] for _ in range(n)]
    ids = np.concatenate([np.array(vocabulary.encode(words), dtype=np.uint8) for words in written])
    batches = [torch.from_numpy(batch.astype(np.int64)).to(net.device) for batch in
               pretrain.batches(ids, finetune.MICRO_TOKENS, np.random.default_rng(0))]
    with torch.no_grad():
        found = [(float(pretrain.loss(net, batch)), int((batch[:, 1:] != vocabulary.PAD).sum()))
                 for batch in batches]
    loss, size = np.array(found).T
    return float((loss * size).sum() / size.sum())


# --- the work of one process ----------------------------------------------------------------------

def untouched(profile, family, which, seed, n_problems, n, max_new_tokens):
    """`Outcome` of a lab model as it is, on test problems."""
    net = lab.load(profile, family, which, seed)
    log = {"document_loss": document_loss(net.float(), family,
                                          lab.config(profile)["families"][family])}
    return outcome(lab.load(profile, family, which, seed), family,
                   lab.problems(profile, family, n_problems), n, max_new_tokens, seed, log=log)


def tuned(profile, family, seed, pairs, steps, target_tokens, lr, n_problems, n, max_new_tokens,
          judged=None, judge_tokens=64):
    """`Outcome` of a base model after `finetune.fit` on pairs; log: losses, tokens read, document_loss, and
    verdicts, the shares of right verdicts on the pairs `judged`, before and after."""
    net = lab.load(profile, family, "base", seed, exact=True)
    before = verdicts_right(net, judged, judge_tokens) if judged else None
    losses, read = finetune.fit(net, pairs, steps, target_tokens, lr, seed)
    after = verdicts_right(net, judged, judge_tokens) if judged else None
    log = {"losses": losses, "read": read, "verdicts": (before, after),
           "document_loss": document_loss(net, family, lab.config(profile)["families"][family])}
    return outcome(net.to(device.pick()[1]), family, lab.problems(profile, family, n_problems), n,
                   max_new_tokens, seed, log=log)


def reinforced(profile, family, seed, problems, recipe, n_problems, n, max_new_tokens, apart=False,
               **options):
    """`Outcome` of a base model after `reinforce`; log: its curve and document_loss, the latter not
    for vectors. apart: also correct (P, n) with the vectors at the "first token" of an answer alone,
    and at the "later tokens" alone."""
    net, steer, curve = reinforce(profile, family, seed, problems, recipe, **options)
    log = {"curve": curve}
    for part in ("first token", "later tokens") if apart else ():
        gate = _first if part == "first token" else _later
        log[part] = outcome(net, family, lab.problems(profile, family, n_problems), n, max_new_tokens,
                            seed, [replace(s, gate=gate) for s in steer]).correct
    if not steer:
        whole = copy.deepcopy(net).float()
        log["document_loss"] = document_loss(whole, family,
                                             lab.config(profile)["families"][family])
    return outcome(net, family, lab.problems(profile, family, n_problems), n, max_new_tokens, seed,
                   steer, log)


def _first(moment):
    """A gate that is open at the position whose next token is an answer's first."""
    return moment.positions == moment.prompt_lengths[:, None] - 1


def _later(moment):
    return ~_first(moment)


def self_solved(profile, family, seed, n_problems, samples, max_new_tokens):
    """(what a base model solves of `pool` when it tries each problem so often, tokens generated): for
    each problem solved the list of (prompt, solution) pairs, different solutions only."""
    problems = pool(profile, family, n_problems)
    rows = _solutions(lab.load(profile, family, "base", seed), family, problems, samples,
                      max_new_tokens, seed=4)
    right = [list({tuple(ids): (ids, True) for ids, correct in row if correct}.values()) for row in rows]
    return ([solution_pairs([p], [some], True) for p, some in zip(problems, right) if some],
            sum(len(ids) for row in rows for ids, _ in row))


def elsewhere(profile, family, other, seed, pairs, steps, target_tokens, lr, n_problems):
    """(before, after): share of another family's problems that a base model solves, and solves after
    `finetune.fit` on pairs of its own family."""
    net, found = lab.load(profile, family, "base", seed, exact=True), []
    for train in (False, True):
        if train:
            finetune.fit(net, pairs, steps, target_tokens, lr, seed)
        asked = lab.problems(profile, other, n_problems)
        found.append(float(outcome(net, other, asked, 1, 64, seed).correct.mean()))
    return tuple(found)


def gain_split(before, after):
    """A gain in accuracy as (when, how), which add up to it exactly, for two (strategy, correct)
    pairs of arrays of one shape.

    when: the strategies' shares changed; how: they work better or worse. Each change is weighted by
    the mean of the other factor before and after, so that neither comes first.
    """
    def factors(strategy, correct):
        strategy, correct = np.asarray(strategy, bool), np.asarray(correct, float)
        share = strategy.mean()
        each = [correct[s].mean() if s.any() else None for s in (strategy, ~strategy)]
        return np.array([share, 1 - share]), each
    (p, c), (q, d) = factors(*before), factors(*after)
    # A strategy that one side never used has no success rate there: the other side's stands in.
    c, d = ([x if x is not None else y if y is not None else 0.0 for x, y in zip(a, b)]
            for a, b in ((c, d), (d, c)))
    c, d = np.array(c), np.array(d)
    return float(((q - p) * (c + d) / 2).sum()), float(((p + q) / 2 * (d - c)).sum())


def gap_recovered(x, base, thinking, resamples=2000, seed=0):
    """Share of the gap that x recovers, with its interval over seeds, test problems *and* the single
    problems that were trained on, all crossed: x (seeds, problems, Q); base, thinking (seeds,
    problems). None where there is no gap, as in `stats.gap_recovered`."""
    tail, q = (1 - stats.LEVEL) / 2, x.shape[2]
    got, low, high = stats.resampled_means(x, base, thinking, resamples=resamples, seed=seed)
    share = np.random.default_rng(seed + 1).multinomial(q, np.full(q, 1 / q), resamples) / q
    got, gap = (got * share).sum(1), high - low
    if np.quantile(gap, tail) <= 0:
        return None
    value = (np.mean(x) - np.mean(base)) / (np.mean(thinking) - np.mean(base))
    part = (got - low)[gap > 0] / gap[gap > 0]
    return stats.Interval(float(value), *map(float, np.quantile(part, [tail, 1 - tail])))
