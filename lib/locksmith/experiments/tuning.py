"""Training little: what one problem, a handful of solutions or a few vectors change in a base
model.

Supervised arms are pairs (text to continue, continuation). All take the same number of steps and,
to the token, the same number of target tokens in the loss, and nothing is picked on labels:

    critiques           Wang et al. (arXiv 2506.03295, section 2): input = one problem and
                        somebody's solution, target = a critique; with the controls of `critics`
    shuffled critiques  as many critiques, each of a solution of another problem
    own critiques       the base's own words about the solutions
    SFT right, wrong    input = the problem, target = a solution that is right, wrong
    many critiques      exact critiques of solutions to as many problems as there are solutions

RL arms are `rl.learn` on one problem or many, with any of `rewards`. What is trained (TRAINS) are
all weights, a LoRA adapter, or one vector a block (Sinii et al., arXiv 2505.18706).
"""

import functools
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedModel

from locksmith import (
    architectures,
    cache,
    cards,
    corpus,
    device,
    engine,
    finetune,
    model,
    rewards,
    rl,
    rollouts,
    words,
)
from locksmith.loading import Model, Pair

COUNTS = ("attempts", "checks", "backtracks")
FEW_WORDS = 256  # a vocabulary so small that logits of all positions cost nothing
LEAN_TOKENS = 1024  # a micro-batch for larger ones: 4 GiB for a model of half a billion weights
ENGLISH = 24  # questions


# --- one problem and its solutions ----------------------------------------------------------------

class Solution(NamedTuple):
    """A finished answer as a continuation of its problem's prompt, end included; its grade."""
    text: str
    correct: bool


def pool(pair: Pair, n: int) -> list:
    """n training problems, the single ones among them. Countdown's training set is small enough
    that the lab's RL has met some of them too; no test problem is among them."""
    return pair.rules.problems("train", n, 7000, pair.generator)


def difficulty(pair: Pair, n_problems: int, samples: int, max_new_tokens: int) -> np.ndarray:
    """Share of the base's samples that solve each problem of `pool`: (n_problems,)."""
    answers = rollouts.answer(pair.load("base"), pair.rules, pool(pair, n_problems), samples,
                              max_new_tokens=max_new_tokens, seed=1)
    return answers.correct.mean(1)


def spread(rates: np.ndarray, n: int) -> list[int]:
    """Indices of n problems across the difficulty range, easiest first: those at equal distances in
    the order by solve rate, among the ones that were solved at all (all, if too few were)."""
    solved = np.flatnonzero(rates > 0)
    chosen = solved if len(solved) >= n else np.arange(len(rates))
    ordered = chosen[np.argsort(-rates[chosen], kind="stable")]
    return ordered[even(len(ordered), n)].tolist()


def even(size: int, n: int) -> np.ndarray:
    """n places at equal distances from the first to the last of `size`; one alone: the middle."""
    places = np.linspace(0, size - 1, n) if n > 1 else np.array([(size - 1) / 2])
    return places.round().astype(int)


def candidates(pairs: list[Pair], problems: list, n: int, max_new_tokens: int,
               samples: int | None = None) -> tuple[list[list[Solution]], float]:
    """Up to n different finished solutions of each problem, by the different bases of some pairs in
    turn: P lists of Solution, and the tokens generated a problem. A thinking model writes none.

    samples: answers drawn of each problem, four times n by default."""
    # many seeds may have one base
    bases = {pair.folder("base") or pair.base: pair for pair in pairs}
    tables, generated, each = [], 0, samples or 4 * n // len(bases) + 1
    for pair in bases.values():
        base = pair.load("base")
        drawn = rollouts.answer(base, pair.rules, problems, each,
                                max_new_tokens=max_new_tokens, seed=2)
        generated += drawn.lengths.sum()
        tables.append([[Solution(_ended(base, text), bool(right)) if done else None
                        for text, right, done in zip(*rows)]
                       for rows in zip(drawn.texts, drawn.correct, drawn.stopped)])
    chosen = []
    for rows in zip(*tables, strict=True):
        mixed = dict.fromkeys(one for turn in zip(*rows, strict=True) for one in turn if one)
        chosen.append(list(mixed)[:n])
    return chosen, generated / len(problems)


def _ended(model, text):
    """A finished text, with its end written out."""
    return text if text.endswith(model.end) else text + model.end


# --- what is trained on ---------------------------------------------------------------------------

def critique_pairs(task: ModuleType, problem: Any, solutions: list[Solution], critic: Callable,
                   rng: random.Random) -> list:
    """Critiques of a problem's solutions by a critic of `critics`: [(text, continuation)]."""
    return [(task.review(problem, one.text), critic(task, problem, one.text, rng))
            for one in solutions]


def _continue(model, pairs, max_new_tokens, **how):
    """`Rollouts` of a model on the inputs of pairs, one each."""
    return engine.sample(model.net, [model.begin(given) for given, _ in pairs], stop=model.stop,
                         max_new_tokens=max_new_tokens, **how)


def shuffle_targets(pairs: list, rng: random.Random) -> list:
    """Every input with the target of another: a random cycle through all pairs."""
    order = list(range(len(pairs)))
    rng.shuffle(order)
    other = dict(zip(order, order[1:] + order[:1], strict=True))
    return [(given, pairs[other[i]][1]) for i, (given, _) in enumerate(pairs)]


def foreign_targets(pairs: list, others: list, rng: random.Random) -> list:
    """Every input with the target of one of `others`, all of which are used before one again."""
    order = rng.sample(others, len(others))
    return [(given, order[i % len(order)][1]) for i, (given, _) in enumerate(pairs)]


def solution_pairs(task: ModuleType, problem: Any, solutions: list[Solution], right: bool) -> list:
    """(prompt, solution) of those solutions of a problem whose grade is `right`."""
    return [(task.prompt(problem), one.text) for one in solutions if one.correct == right]


def rather(right: bool, solutions: list[Solution]) -> list[Solution]:
    """The first that is right, or wrong, as asked, or else the first; [] of none. Where half are
    asked for each way, no constant verdict is nearly always true."""
    return sorted(solutions, key=lambda one: one.correct != right)[:1]


def verdicts_right(model: Model, task: ModuleType, pairs: list) -> np.ndarray:
    """Which critiques (greedy, of at most twice the longest target) end in the target's verdict:
    (n,) bool. Can the model judge?"""
    longest = max(len(model.encode(wanted)) for _, wanted in pairs)
    out = _continue(model, pairs, 2 * longest, temperature=0.0)
    said = [task.verdict(model.decode(ids)) if done else None
            for ids, done in zip(out.ids(), out.stopped.tolist())]
    return np.array([a == task.verdict(wanted) for a, (_, wanted) in zip(said, pairs)])


# --- what is trained ------------------------------------------------------------------------------

class Trained(NamedTuple):
    """A base with a part of it in training. net: the module whose parameters that require gradients
    are trained; ask: () -> (`Model` as it stands, its `Steer`s); through: (net, ids (B, T)) -> the
    logits (B, T, V), by the small model's fastest forward."""
    net: nn.Module
    ask: Callable
    through: Callable

    def logits(self, inputs: list) -> Callable:
        """What a trainer calls for logits, `inputs` (lists of ids) being what its rows begin with.
        The one place that decides by the vocabulary's size."""
        if self._few_words:
            return self.through
        start = min(map(len, inputs)) - 1

        def lean(net, ids):
            with device.autocast(ids.device):
                if self.reads_once:
                    return shared_prefix_logits(net, ids, start)
                return net(input_ids=ids, use_cache=False,
                           logits_to_keep=ids.shape[1] - start).logits
        return lean

    @property
    def reads_once(self) -> bool:
        """Whether what rows begin with is read once. Gradients of its keys and values reach a block
        past its output, where no sharded model puts the block's weights together for them."""
        return not self._few_words and cards.world() == 1

    @property
    def micro_tokens(self) -> int:
        """Ids of a micro-batch."""
        return finetune.MICRO_TOKENS if self._few_words else LEAN_TOKENS

    @property
    def _few_words(self):
        return self.net.config.get_text_config().vocab_size <= FEW_WORDS


def shared_prefix_logits(net: PreTrainedModel, ids: Int[Tensor, "rows time"],
                         start: int) -> Float[Tensor, "rows last vocabulary"]:
    """Logits (B, T - start, V) of the positions from `start` on. What rows have in common up to
    there, a prompt's worked examples and most of its question, is read once for all of them; a head
    of 262k tokens sees none of it."""
    cache = DynamicCache(config=net.config)
    if start:
        beginnings, owner = ids[:, :start].unique(dim=0, return_inverse=True)
        net(input_ids=beginnings, past_key_values=cache, logits_to_keep=1)
        cache.batch_select_indices(owner)
    return net(input_ids=ids[:, start:], past_key_values=cache,
               logits_to_keep=ids.shape[1] - start).logits


def all_weights(pair: Pair) -> Trained:
    """A base all of whose weights are trained, in float32."""
    base, sampled = pair.load("base", exact=True), pair.load("base")

    def ask():
        sampled.net.load_state_dict(base.net.state_dict())
        return sampled, []
    fast = isinstance(base.net, LlamaForCausalLM) and base.net.config.tie_word_embeddings
    return Trained(base.net.train(), ask, model.logits if fast else finetune.own_logits)


def adapter(pair: Pair, rank: int = 16) -> Trained:
    """A base whose LoRA adapter of a rank is trained. Over several cards, which have no room for a
    second base with the adapter added, it is asked with the adapter beside its weights."""
    base = pair.load("base", exact=True)
    net = model.adapter(base.net, rank, pair.seed)
    if cards.world() > 1:
        model.round_frozen(net, device.pick()[1])
        cards.shard(architectures.unwrapped(net), cache.blocks(net))
        return Trained(net, lambda: (replace(base, net=net), []), finetune.own_logits)
    sampled = pair.load("base")
    whole = model.round_frozen(net, sampled.net.dtype)

    def ask():
        model.merge_into(sampled.net, net, whole)
        return sampled, []
    return Trained(net, ask, finetune.own_logits)


def vectors(pair: Pair, layers: list | None = None) -> Trained:
    """A base with one trained vector after each of some blocks (all, if None)."""
    base, sampled = pair.load("base", exact=True), pair.load("base")
    table = Vectors(base.net, range(base.depth) if layers is None else layers)
    return Trained(table, lambda: (sampled, table.steers(next(sampled.net.parameters()))),
                   finetune.own_logits)


TRAINS = {"weights": all_weights, "adapter": adapter, "vectors": vectors}


class Vectors(nn.Module):
    """One vector a block, added to the residual stream after it at every position; the model's own
    weights are no parameters of this module and stay as they are. layers: the blocks."""

    def __init__(self, net: PreTrainedModel, layers: Sequence[int]):
        super().__init__()
        self.layers, self.frozen = list(layers), [net.requires_grad_(False)]
        self.config = net.config
        self.table = nn.Parameter(torch.zeros(len(self.layers), net.config.hidden_size,
                                              device=net.device))

    def forward(self, **inputs: object) -> Any:
        """The model's own forward with the vectors added, with gradients for them."""
        blocks = cache.blocks(self.frozen[0])
        hooks = [blocks[i].register_forward_hook(lambda m, a, out, v=v: _added(out, v))
                 for i, v in zip(self.layers, self.table)]
        try:
            return self.frozen[0](**inputs)
        finally:
            for hook in hooks:
                hook.remove()

    def steers(self, like: Tensor) -> list[engine.Steer]:
        """The vectors for `engine.sample`, of the dtype of the tensor `like`."""
        return [engine.Steer(i, v.detach().to(like)) for i, v in zip(self.layers, self.table)]


def _added(out, vector):
    """A block's output (a tensor, or a tuple that starts with one) plus a vector."""
    if isinstance(out, tuple):
        return (out[0] + vector.to(out[0]), *out[1:])
    return out + vector.to(out)


# --- training -------------------------------------------------------------------------------------

class Recipe(NamedTuple):
    """Of supervised training: steps, target tokens a step, learning rate, what is trained."""
    steps: int
    target_tokens: int
    lr: float
    trains: str = "weights"


def supervise(trained: Trained, model: Model, pairs: list, recipe: Recipe, seed: int) -> dict:
    """`finetune.fit` on pairs of texts, of which those that outgrow the model's context are left
    out; returns losses and the number of tokens read."""
    ids = [(model.begin(given), model.encode(wanted)) for given, wanted in pairs]
    ids = [pair for pair in ids if sum(map(len, pair)) <= model.context]
    losses, read = finetune.fit(trained.net, ids, recipe.steps, recipe.target_tokens, recipe.lr,
                                seed, trained.logits([given for given, _ in ids]),
                                trained.micro_tokens, model.pad)
    return {"losses": losses, "read": read}


def reinforce(trained: Trained, pair: Pair, problems: list, recipe: dict, reward: str = "correct",
              bonus: float = 0.0, measured: Sequence[str] = rl.MEASURED) -> list:
    """RL on `problems`, with one of `rewards` and a bonus on the entropy; returns the curve.

    recipe: steps, problems, samples, lr and max_new_tokens, as `rl.learn` takes them, like
    `measured`.
    """
    model, _ = trained.ask()
    inputs = [model.ask(pair.rules, problem) for problem in problems]
    update = functools.partial(rl.update, logits=trained.logits(inputs), bonus=bonus,
                               pad_token_id=model.pad, by_prompt=trained.reads_once)
    return rl.learn(trained.net, problems, recipe | {"micro_tokens": trained.micro_tokens},
                    pair.seed,
                    rollout_fn(trained.ask, pair.rules, recipe), rewards.REWARDS[reward], update,
                    label=f"{reward} reward, {pair.task} seed {pair.seed}", measured=measured)


def rollout_fn(ask: Callable, task: ModuleType, recipe: dict) -> Callable:
    """What `rl.learn` takes for rollouts: answers of ask() -> (`Model` as it stands,
    its steers)."""
    def rollout(problems, seed):
        model, steer = ask()
        # A sharded model's weights are of two dtypes, as for training.
        with device.autocast(model.net.device) if cards.world() > 1 else nullcontext():
            drawn = rollouts.answer(model, task, problems, recipe["samples"], seed=seed,
                                    max_new_tokens=recipe["max_new_tokens"],
                                    control=engine.Control(steer))
        sequences = [prompt + ids for prompt, row in zip(drawn.prompts, drawn.ids) for ids in row]
        lengths = [len(prompt) for prompt in drawn.prompts for _ in range(recipe["samples"])]
        return sequences, lengths, [grade for row in drawn.grades for grade in row]
    return rollout


# --- what came of it ------------------------------------------------------------------------------

class Size(NamedTuple):
    """How an outcome is measured: problems of a split, answers to each, tokens of the longest."""
    n_problems: int
    n: int
    max_new_tokens: int
    split: str = "test"


class Evaluation(NamedTuple):
    """P problems, n samples each: correct, trace, strategy (P, n) bool; tokens (P, n) int; counts,
    name in COUNTS -> (P, n); log, what the training says of itself (losses, tokens read, ...)."""
    correct: np.ndarray
    trace: np.ndarray
    strategy: np.ndarray
    tokens: np.ndarray
    counts: dict
    log: dict


def outcome(model: Model, pair: Pair, size: Size, steer: Sequence = (),
            log: dict | None = None) -> Evaluation:
    """`Evaluation` of answers at temperature 1 to the first problems of a pair's task."""
    drawn = rollouts.answer(model, pair.rules, pair.problems(size.n_problems, size.split), size.n,
                            seed=pair.seed,
                            control=engine.Control(steer), max_new_tokens=size.max_new_tokens)
    return Evaluation(drawn.correct, drawn.trace, drawn.strategy, drawn.lengths,
                      {name: drawn.table(name) for name in COUNTS}, log or {})


def english() -> list[str]:
    """The questions of ENGLISH word problems, as plain text."""
    return [p.question for p in words.problems("validation", ENGLISH, 7, {"gsm_symbolic": {}})]


def held_out(pair: Pair, n: int = 200) -> list[str]:
    """Texts that nobody was trained on, of the kind that a base has read: documents of the lab's
    corpus, or English."""
    if not hasattr(pair.rules, "document"):
        return english()
    rng, generator = random.Random("held out"), pair.generator
    return [" ".join(corpus.document(rng, pair.rules, generator)[0]) for _ in range(n)]


def text_loss(model: Model, texts: list[str]) -> float:
    """Mean loss in nats a token on texts: what training makes a model forget."""
    total, size = 0.0, 0
    for text in texts:
        ids = torch.tensor([model.begin(text)], device=model.net.device)
        with torch.no_grad():
            logp = model.net(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        total -= logp.gather(-1, ids[0, 1:, None]).sum().item()
        size += ids.shape[1] - 1
    return total / size


# --- the work of one process ----------------------------------------------------------------------

def untouched(pair: Pair, which: str, size: Size, judged: list | None = None) -> Evaluation:
    """`Evaluation` of a model of a pair as it is; log: text_loss and verdicts, as of `tuned`."""
    model = pair.load(which)
    return outcome(model, pair, size, log=said_of(model, pair, judged))


def said_of(model: Model, pair: Pair, judged: list | None) -> dict:
    """What a model makes of other texts: text_loss, and verdicts (n,) bool where pairs are
    `judged`."""
    verdicts = {"verdicts": verdicts_right(model, pair.rules, judged)} if judged else {}
    return {"text_loss": text_loss(model, held_out(pair)), **verdicts}


def tuned(pair: Pair, pairs: list, recipe: Recipe, size: Size, judged: list | None = None,
          chosen_on: Size | None = None) -> Evaluation:
    """`Evaluation` of the base after `supervise`; log: losses, tokens read, text_loss, verdicts on
    the pairs `judged`, and "validation" where a size is `chosen_on`: (share right, tokens)."""
    trained = TRAINS[recipe.trains](pair)
    log = supervise(trained, trained.ask()[0], pairs, recipe, pair.seed)
    model, _ = trained.ask()
    log |= said_of(model, pair, judged)
    if chosen_on:
        log["validation"] = _right_and_long(outcome(model, pair, chosen_on))
    return outcome(model, pair, size, log=log)


def _right_and_long(found):
    return float(found.correct.mean()), float(found.tokens.mean())


def validated(pair: Pair, pairs: list, recipe: Recipe, size: Size) -> float:
    """Share right, by a size of the validation split, of the base after `supervise`."""
    trained = TRAINS[recipe.trains](pair)
    supervise(trained, trained.ask()[0], pairs, recipe, pair.seed)
    return float(outcome(trained.ask()[0], pair, size).correct.mean())


def reinforced(pair: Pair, problems: list, recipe: dict, size: Size, trains: str = "weights",
               apart: bool = False, layers: list | None = None, chosen_on: Size | None = None,
               **options: object) -> Evaluation:
    """`Evaluation` of the base after `reinforce` (reward, bonus); log: its curve, its rollouts a
    step, "validation" as of `tuned`, and text_loss, the latter not for vectors. apart: also correct
    (P, n) with the vectors at the "first token" of an answer alone, and at the "later tokens"
    alone."""
    trained = TRAINS[trains](pair, **({"layers": layers} if trains == "vectors" else {}))
    log = {"curve": reinforce(trained, pair, problems, recipe, **options),
           "rollouts": recipe["problems"] * recipe["samples"]}
    model, steer = trained.ask()
    for part in ("first token", "later tokens") if apart else ():
        gate = _first if part == "first token" else _later
        log[part] = outcome(model, pair, size, [replace(s, gate=gate) for s in steer]).correct
    if chosen_on:
        log["validation"] = _right_and_long(outcome(model, pair, chosen_on, steer))
    if not steer:
        log["text_loss"] = text_loss(model, held_out(pair))
    return outcome(model, pair, size, steer, log)


def _first(moment):
    """A gate that is open at the position whose next token is an answer's first."""
    return moment.positions == moment.prompt_lengths[:, None] - 1


def _later(moment):
    return ~_first(moment)


def self_solved(pair: Pair, n_problems: int, samples: int,
                max_new_tokens: int) -> tuple[list[list[tuple[str, str]]], int]:
    """(what the base solves of `pool` when it tries each problem so often, tokens generated): for
    each problem solved the list of (prompt, solution) pairs, different solutions only."""
    base = pair.load("base")
    drawn = rollouts.answer(base, pair.rules, pool(pair, n_problems), samples,
                            max_new_tokens=max_new_tokens, seed=4)
    pairs = []
    for problem, texts, right in zip(drawn.problems, drawn.texts, drawn.correct):
        solved = dict.fromkeys(_ended(base, text) for text, ok in zip(texts, right) if ok)
        if solved:
            pairs.append([(pair.rules.prompt(problem), text) for text in solved])
    return pairs, int(drawn.lengths.sum())


def elsewhere(pair: Pair, other: str, pairs: list, recipe: Recipe, n_problems: int) -> tuple:
    """(before, after): share of another task's problems that the base solves, and solves after
    `supervise` on pairs of its own task."""
    trained, abroad = TRAINS[recipe.trains](pair), pair._replace(task=other)
    asked, shares = abroad.problems(n_problems), []
    for train in (False, True):
        model, _ = trained.ask()
        if train:
            supervise(trained, model, pairs, recipe, pair.seed)
            model, _ = trained.ask()
        answers = rollouts.answer(model, abroad.rules, asked, max_new_tokens=64, seed=pair.seed)
        shares.append(float(answers.correct.mean()))
    return tuple(shares)


def operations(parameters: int, trained: float = 0, sampled: float = 0) -> float:
    """Floating-point operations of tokens that were trained on and sampled: 6 and 2 a parameter and
    token (Kaplan et al., arXiv 2001.08361, section 2.1)."""
    return parameters * (6 * trained + 2 * sampled)
