"""One problem: the arms of chapter 3, what each is trained on, and what each gains and costs.

A `OneProblemStudy` holds the single problems of every task with their solutions, and for every arm
one `tuning.Evaluation` a seed and single problem. An arm is an id of arms.yml and, where it is not
the chapter's, a learning rate.
"""

import copy
import functools
import itertools
import random
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from locksmith import loading, model, parallel, results, stats
from locksmith.arms import Treatment, treatment
from locksmith.errors import BadInput
from locksmith.experiments import critics, tuning
from locksmith.loading import Model, Pair

# Supervised arms for every single problem, and those for a few.
RIVALS = ("flipped-critiques", "shuffled-critiques", "working-alone", "verdict-alone",
          "format-only")
MAIN = ("critiques", *RIVALS, "sft-right")
# Texts among which a share of the targets are right answers to the same problem.
ANSWERS = 0.25
MIXED = {"critiques-and-answers": "critiques", "format-and-answers": "format-only"}
MORE = ("sft-wrong", *MIXED)
ARMS = (*MAIN, *MORE, "many-critiques")
LONGER = 4  # times as many steps as RL on many problems takes RL on one
READ = 1.25  # times the tokens of critiques, inputs included, are read in an arm at most
# Which are asked for verdicts on other problems: as many reviews cost more than the answers do.
JUDGES = ("base", "critiques", "flipped-critiques")
# (arm, what it is compared with, on the single problems that both had)
COMPARED = (*(("critiques", rival) for rival in RIVALS), ("many-critiques", "critiques"),
            tuple(MIXED))
# RL: options of `tuning.reinforced`; the first on single problems, the others on many.
RL = {"rl-one-problem": {}, "rl-same-budget": {}, "format-reward": {"reward": "format"},
      "random-reward": {"reward": "random"}}
# Those that `real_rl` trains on real weights, as its folders are called.
STAGED = {"rl-one-problem": "one-problem", "format-reward": "format", "random-reward": "random"}


class Singles(NamedTuple):
    """The single problems of a task, easiest first: solve rates, solutions (lists of
    `tuning.Solution`), and the tokens generated for those of one problem."""
    problems: list
    rates: list
    solutions: list
    generated: float


class OneProblemStudy:
    """pairs: {(task, seed): Pair}; size and recipe: of every arm; capped: whether an arm
    whose steps would read more than READ times as many tokens as those of critiques takes fewer,
    which read as many; outcomes: (task, Treatment) -> {(seed, single problem):
    `tuning.Evaluation`}."""

    def __init__(self, pairs: dict, workers: Executor, size: tuning.Size, recipe: tuning.Recipe,
                 capped: bool = False):
        self.pairs, self.workers, self.size, self.recipe = pairs, workers, size, recipe
        self.capped = capped
        self.tasks = list(dict.fromkeys(task for task, _ in pairs))
        self.seeds = list(dict.fromkeys(seed for _, seed in pairs))
        self.single, self.others, self.held_out = {}, {}, {}
        self.tried, self.rates, self.outcomes = {}, {}, {}

    def run(self, function: Callable, jobs: dict) -> dict:
        return parallel.run(self.workers, function, jobs)

    def bases(self, task: str) -> list:
        """The pairs of a task, one a seed."""
        return [self.pairs[task, seed] for seed in self.seeds]

    # --- one problem and its solutions

    def choose(self, n: int, n_pool: int, samples: int, n_solutions: int) -> None:
        """n single problems of n_pool training problems, by how often the first base solves them,
        and up to n_solutions by the bases of all seeds."""
        first = self.seeds[0]
        rates = self.run(tuning.difficulty, {task: dict(
            pair=self.pairs[task, first], n_problems=n_pool, samples=samples,
            max_new_tokens=self.size.max_new_tokens) for task in self.tasks})
        chosen = {task: tuning.spread(rates[task], n) for task in self.tasks}
        problems = {task: [tuning.pool(self.pairs[task, first], n_pool)[i] for i in chosen[task]]
                    for task in self.tasks}
        written = self.solve(problems, n_solutions)
        for task in self.tasks:
            for problem, solutions in zip(problems[task], written[task][0]):
                self._check_ended(solutions, repr(problem.key))
        self.single = {task: Singles(problems[task], [float(rates[task][i]) for i in chosen[task]],
                                     *written[task]) for task in self.tasks}

    def solve(self, problems: dict, n: int, samples: int | None = None) -> dict:
        """`tuning.candidates` of each task's problems."""
        return self.run(tuning.candidates, {task: dict(
            pairs=self.bases(task), problems=problems[task], n=n, samples=samples,
            max_new_tokens=self.size.max_new_tokens) for task in self.tasks})

    def _check_ended(self, found, asked):
        if not found:
            raise BadInput(f"max_new_tokens is {self.size.max_new_tokens}, but the base ended none "
                           f"of its answers to {asked} within it; allowed is what leaves a "
                           "solution.")

    def few(self, n: int) -> list[int]:
        """n numbers of single problems, from the easiest to the hardest; one: the middle."""
        return tuning.even(len(self.single[self.tasks[0]].problems), n).tolist() if n else []

    # --- texts

    def gather(self, n_pool: int, n: int) -> None:
        """Critiques of one solution to each of n problems that come after the first n_pool."""
        problems = {task: tuning.pool(self.pairs[task, self.seeds[0]], n_pool + n)[n_pool:]
                    for task in self.tasks}
        self.others = self.reviews(problems, self.solve(problems, 2), lambda some: some[:1])
        for task in self.tasks:
            self._check_ended(self.others[task], f"{n} problems of {task}")

    def judge(self, n: int, samples: int) -> None:
        """Critiques of a solution to each of n validation problems, for arms to be judged by: right
        and wrong ones in turn, as far as so many samples have them."""
        problems = {task: self.pairs[task, self.seeds[0]].problems(n, "validation")
                    for task in self.tasks}
        written = self.solve(problems, samples, samples)
        for task in self.tasks:
            pair = self.pairs[task, self.seeds[0]]
            base = pair.load("base")
            self.held_out[task] = [
                review for i, (problem, some) in enumerate(zip(problems[task], written[task][0]))
                for review in judged(base, pair.rules, problem, some, right=i % 2 == 0)]

    def reviews(self, problems: dict, written: dict, choose: Callable) -> dict:
        """Exact critiques of chosen solutions to every task's problems, by task. written: as of
        `solve`; choose: a problem's solutions -> those to criticise."""
        return {task: [pair for problem, some in zip(problems[task], written[task][0]) for pair in
                       tuning.critique_pairs(self.pairs[task, self.seeds[0]].rules, problem,
                                             choose(some), critics.exact,
                                             random.Random(f"review {problem.key}"))]
                for task in self.tasks}

    def texts(self, task: str, arm: str, q: int) -> list:
        """What an arm is trained on for the single problem number q: [(text, continuation)]."""
        if arm == "many-critiques":
            return self.others[task]
        if arm in MIXED:
            return self._mixed(task, *(self.texts(task, name, q)
                                       for name in (MIXED[arm], "sft-right")))
        rules, single = self.pairs[task, self.seeds[0]].rules, self.single[task]
        problem, solutions = single.problems[q], single.solutions[q]

        def rng():
            return random.Random(f"{arm.replace('-', ' ')} {q}")
        if arm in ("sft-right", "sft-wrong"):
            return tuning.solution_pairs(rules, problem, solutions, arm == "sft-right")
        critic = critics.CRITICS.get(arm, critics.exact)
        written = tuning.critique_pairs(rules, problem, solutions, critic, rng())
        shuffled = arm == "shuffled-critiques"
        return tuning.foreign_targets(written, self.others[task], rng()) if shuffled else written

    def _mixed(self, task, texts, answers):
        """Texts with so many of the answers, in turn, that these have their share of the targets;
        [] where there is no answer."""
        if not answers:
            return []
        base = self.pairs[task, self.seeds[0]].load("base")
        least = lengths(base, texts)[:, 1].sum() * ANSWERS / (1 - ANSWERS)
        each = lengths(base, answers)[:, 1]
        whole, rest = divmod(least, each.sum())
        part = int(np.searchsorted(each.cumsum(), rest))
        return texts + answers * int(whole) + answers[:part]

    def steps(self, task: str, arm: str, q: int) -> int:
        """The steps of a supervised arm: the recipe's, which hold equal target tokens, or where it
        is `capped` as many as read what those of critiques do."""
        if not self.capped:
            return self.recipe.steps
        base = self.pairs[task, self.seeds[0]].load("base")
        given, targets, own_given, own_targets = (
            tokens for name in ("critiques", arm)
            for tokens in lengths(base, self.texts(task, name, q)).sum(0))
        read = (own_given / own_targets + 1) / (given / targets + 1)
        return max(1, round(self.recipe.steps / read)) if read > READ else self.recipe.steps

    # --- arms

    def choose_rates(self, names: Iterable[str], rates: list, n: int) -> None:
        """Each arm's learning rate: of `rates`, the one at which the first seed, trained on the
        middle single problem, is right on most of n validation problems; of equals the first. One
        rate alone is taken as it is."""
        seed, [q] = self.seeds[0], self.few(1)
        size = self.size._replace(n_problems=n, n=1, split="validation")
        texts = {(task, arm): self.texts(task, arm, q) for task in self.tasks for arm in names}
        steps = {key: self.steps(*key, q) for key, pairs in texts.items() if pairs}
        found = self.run(tuning.validated, {(*key, rate): dict(
            pair=self.pairs[key[0], seed], pairs=texts[key], size=size,
            recipe=self.recipe._replace(lr=rate, steps=n_steps))
            for key, n_steps in steps.items() if len(rates) > 1 for rate in rates})
        self.tried = {key: {rate: found[*key, rate] for rate in rates}
                      for key in dict.fromkeys(key[:2] for key in found)}
        self.rates = (dict.fromkeys(texts, rates[0]) if len(rates) == 1 else
                      {key: max(rates, key=right.get) for key, right in self.tried.items()})

    def train(self, names: Iterable[str], singles: Iterable[int]) -> None:
        """Supervised arms on single problems, at the rates chosen for them; an arm without texts,
        such as wrong solutions where there are none, is left out."""
        jobs = {}
        for task, arm, q in itertools.product(self.tasks, names, singles):
            if pairs := self.texts(task, arm, q):
                recipe = self.recipe._replace(lr=self.rates.get((task, arm), self.recipe.lr),
                                              steps=self.steps(task, arm, q))
                jobs |= {(task, arm, q, seed): dict(
                    pair=self.pairs[task, seed], pairs=pairs, size=self.size, recipe=recipe,
                    judged=self.held_out.get(task) if arm in JUDGES else None)
                    for seed in self.seeds}
        self.keep(self.run(tuning.tuned, jobs))

    def untouched(self, which: Iterable[str] = ("base", "thinking")) -> None:
        """The models as they are."""
        self.keep(self.run(tuning.untouched, {(task, name, 0, seed): dict(
            pair=pair, which=name, size=self.size,
            judged=self.held_out.get(task) if name in JUDGES else None)
            for name in which for (task, seed), pair in self.pairs.items()}))

    def reinforce(self, names: Iterable[str], recipe: dict, singles: Iterable[int]) -> None:
        """Arms of RL: on single problems, with as many rollouts a step as half of those on many and
        LONGER times as many steps, and on many. recipe: as `rl.learn` takes it."""
        one = recipe | {"problems": 1, "samples": recipe["samples"] * recipe["problems"] // 2,
                        "steps": recipe["steps"] * LONGER}
        jobs = {}
        for arm in names:
            for (task, seed), pair in self.pairs.items():
                alone = arm == "rl-one-problem"
                how = {"pair": pair, "size": self.size, "trains": self.recipe.trains, **RL[arm]}
                for q in singles if alone else [0]:
                    problems = ([self.single[task].problems[q]] * one["steps"] if alone else
                                tuning.pool(pair, recipe["steps"] * recipe["problems"]))
                    jobs[task, arm, q, seed] = how | {"recipe": one if alone else recipe,
                                                      "problems": problems}
        self.keep(self.run(tuning.reinforced, jobs))

    def read(self, names: Iterable[str], folder: str) -> None:
        """Arms of RL that were trained before, as adapters in a folder: <STAGED>/seed<seed>. Their
        single problem is the middle one of a pool of the same size."""
        self.keep(self.run(trained_before, {
            (task, arm, self.few(1)[0] * (arm == "rl-one-problem"), seed): dict(
                pair=pair, place=f"{folder}/{STAGED[arm]}/seed{seed}", size=self.size)
            for arm in names for (task, seed), pair in self.pairs.items()}))

    def keep(self, done: dict) -> None:
        """Outcomes by (task, arm id, single problem, seed)."""
        for (task, arm, q, seed), found in done.items():
            self.outcomes.setdefault((task, treatment(arm)), {})[seed, q] = found

    def resized(self, n: int) -> "OneProblemStudy":
        """The same single problems, texts and rates, for outcomes with n answers a test problem."""
        other = copy.copy(self)
        other.size, other.outcomes = self.size._replace(n=n), {}
        return other

    # --- what came of it

    def rows(self, task: str, arm: Treatment) -> list:
        """Outcomes of an arm: a list a seed of one `tuning.Evaluation` a single problem."""
        found = self.outcomes[task, arm]
        singles = sorted({q for _, q in found})
        return [[found[seed, q] for q in singles] for seed in self.seeds]

    def scores(self, task: str, arm: Treatment, what: str = "correct") -> np.ndarray:
        """(seeds, problems, single problems): means over a problem's samples."""
        return np.stack([np.stack([getattr(o, what).mean(1) for o in row], 1)
                         for row in self.rows(task, arm)])

    def level(self, task: str, arm: Treatment, what: str = "correct") -> stats.Interval:
        """Mean of a score over seeds, problems and single problems."""
        return stats.Interval(*map(np.mean, stats.mean_interval(self.scores(task, arm, what))))

    def recovered(self, task: str, arm: Treatment, q: int | None = None) -> stats.Interval | None:
        """Share of the gap between base and thinking model; q: by one of its single problems."""
        if arm.id in ("base", "thinking"):
            return None
        base, thinking = (self.scores(task, treatment(which))[..., 0]
                          for which in ("base", "thinking"))
        scores = self.scores(task, arm)
        return stats.gap_recovered(scores if q is None else scores[..., q:q + 1], base, thinking)

    def difference(self, task: str, arm: Treatment, other: Treatment) -> stats.Interval | None:
        """Share of the gap minus another arm's, over seeds, problems and single problems, paired;
        None where one was not measured."""
        if not {(task, arm), (task, other)} <= set(self.outcomes):
            return None
        base, thinking = (self.scores(task, treatment(which))[..., 0]
                          for which in ("base", "thinking"))
        return stats.gap_difference(self.scores(task, arm), self.scores(task, other), base,
                                    thinking)

    def judging(self, task: str, arm: Treatment) -> stats.Interval | None:
        """Share of right verdicts on held-out solutions, over seeds and problems; None where an arm
        was not asked."""
        said = [[o.log["verdicts"] for o in row if "verdicts" in o.log]
                for row in self.rows(task, arm)]
        return stats.Interval(*map(float, stats.mean_interval(np.mean(said, 1)))) if all(
            said) else None

    def constant(self, task: str) -> float:
        """Share of right verdicts of always giving the commoner one."""
        rules = self.pairs[task, self.seeds[0]].rules
        right = np.mean([rules.verdict(wanted) == "right" for _, wanted in self.held_out[task]])
        return float(max(right, 1 - right))

    def when_and_how(self, task: str, arm: Treatment) -> list[stats.Interval]:
        """The gain over the base in two parts, over seeds and single problems."""
        bases = self.rows(task, treatment("base"))
        parts = np.array([[stats.when_and_how((base[0].strategy, base[0].correct),
                                              (o.strategy, o.correct)) for o in row]
                          for base, row in zip(bases, self.rows(task, arm))])
        return [stats.interval(lambda m: m, parts[..., i]) for i in (0, 1)]

    def record(self, record: results.Recorder) -> None:
        """Facts of every arm, and in `extra` its accuracy by seed and single problem, and what each
        learning rate was worth."""
        for task, arm in self.outcomes:
            found = {"pass_at_k": self.level(task, arm),
                     "trace_pass_at_k": self.level(task, arm, "trace"),
                     "gap_recovered": self.recovered(task, arm),
                     "tokens_per_answer": self.mean(task, arm, "tokens")}
            if arm.id != "base":
                found["strategy_share"] = self.level(task, arm, "strategy")
                found["gain_when"], found["gain_how"] = self.when_and_how(task, arm)
            spent = self.operations(task, arm)
            found["log10_flops"] = None if spent is None else log10(spent)
            for quantity, value in found.items():
                k = {"k": 1} if quantity.endswith("at_k") else {}
                record.fact(task, arm.id, quantity, value, **k)
            if judging := self.judging(task, arm):
                asked, constant = {"n_problems": len(self.held_out[task])}, self.constant(task)
                record.fact(task, arm.id, "right_verdicts", judging, n_samples=1, **asked)
                record.fact(task, arm.id, "verdicts_over_constant",
                            [x - constant for x in judging], n_samples=1, **asked)
            record.extra[f"accuracy {task} {arm.label}"] = self.scores(task, arm).mean(1)
        for task, (arm, other) in itertools.product(self.tasks, COMPARED):
            record.fact(task, arm, "gap_difference",
                        self.difference(task, treatment(arm), treatment(other)), against=other)
        record.extra["rates"] = {f"{task} {arm}": right
                                 for (task, arm), right in self.tried.items()}

    def record_plateaus(self, record: results.Recorder) -> None:
        """Whether RL had come to its end: `late_gain` of every arm of RL, and of the RL behind the
        lab's thinking model."""
        for task, arm in self.outcomes:
            curves = [[o.log.get("curve") for o in row] for row in self.rows(task, arm)]
            if arm.id == "thinking":
                curves = [[pair.rl_curve] for pair in self.bases(task)]
            if all(curve for row in curves for curve in row):
                record.fact(task, arm.id, "late_gain", late_gain(curves), n_problems=None,
                            n_samples=None)

    def each(self, task: str, arm: Treatment) -> list[float]:
        """Share of the gap by each of an arm's single problems."""
        singles = range(self.scores(task, arm).shape[2])
        return [self.recovered(task, arm, q).value for q in singles]

    def best_and_worst(self, task: str, arm: Treatment) -> dict:
        """"best" and "worst" -> (number of the single problem, share of the gap)."""
        each = [self.recovered(task, arm, q) for q in range(len(self.single[task].problems))]
        order = sorted(range(len(each)), key=lambda q: each[q].value if each[q] else 0)
        return {"best": (order[-1], each[order[-1]]), "worst": (order[0], each[order[0]])}

    def not_below(self, task: str, arm: Treatment) -> list[str]:
        """Labels of the other arms whose interval reaches that of an arm."""
        found = self.recovered(task, arm)
        shares = {other: self.recovered(task, other) for family, other in self.outcomes
                  if family == task and other.id != arm.id}
        return [other.label for other, share in shares.items() if share and share.high >= found.low]

    def pass_curve(self, task: str, arm: Treatment, ks: list,
                   what: str = "correct") -> stats.Interval:
        """pass@k of an arm's first single problem: Interval of (len(ks),)."""
        return stats.pass_curve(np.stack([getattr(row[0], what) for row in self.rows(task, arm)]),
                                ks)

    def mean(self, task: str, arm: Treatment, name: str) -> float:
        """Mean of "tokens" or of a count over all answers of an arm."""
        return float(np.mean([o.tokens.mean() if name == "tokens" else o.counts[name].mean()
                              for row in self.rows(task, arm) for o in row]))

    def elsewhere(self, q: int, n_problems: int) -> dict:
        """(task, other task) -> (before, after): share of n_problems of another task that a base
        solves, and solves after critiques of the single problem number q."""
        others = dict(zip(self.tasks, self.tasks[::-1])) if len(self.tasks) > 1 else {}
        found = self.run(tuning.elsewhere, {(task, seed): dict(
            pair=pair, other=others[task], pairs=self.texts(task, "critiques", q),
            recipe=self.recipe, n_problems=n_problems)
            for (task, seed), pair in self.pairs.items() if task in others})
        return {(task, other): np.mean([found[task, seed] for seed in self.seeds], 0)
                for task, other in others.items() if task != other}

    def log(self, task: str, arm: Treatment, name: str) -> np.ndarray | None:
        """Mean of what the training says of itself, over seeds and single problems: "losses"
        (first, last), "text_loss"; None where it says nothing."""
        said = [o.log.get(name) for row in self.rows(task, arm) for o in row]
        if name == "losses":
            said = [(x[0], x[-1]) for x in said if x]
        said = [x for x in said if x is not None and None not in np.ravel(x).tolist()]
        return np.mean(said, 0) if said else None

    def operations(self, task: str, arm: Treatment) -> float | None:
        """Floating-point operations that an arm spent once, mean over seeds and single problems.

        Solutions are counted in full; None for a thinking model whose training is not known.
        """
        logs = [o.log for row in self.rows(task, arm) for o in row]
        size = parameters(self.pairs[task, self.seeds[0]])
        if arm.id == "thinking":
            tokens = self.pairs[task, self.seeds[0]].rl_tokens
            return tokens and tuning.operations(size, tokens, tokens)
        if "curve" in logs[0]:
            tokens = np.mean([rl_tokens(log) for log in logs])
            return tuning.operations(size, tokens, tokens)
        if "losses" in logs[0]:
            return tuning.operations(size, np.mean([x["read"] for x in logs]),
                                     self.single[task].generated)
        return 0.0


def judged(base: Model, task: ModuleType, problem: Any, solutions: list, right: bool) -> list:
    """[(text, continuation)] of the exact critique of one solution, one that is right, or wrong, if
    there is such a one; [] where none leaves room for a verdict on it, which may be twice as long
    as the longest critique (`tuning.verdicts_right`)."""
    rng, room = random.Random(f"review {problem.key}"), base.context // 4
    pairs = tuning.critique_pairs(task, problem, solutions, critics.exact, rng)
    short = {one: pair for one, pair, (given, wanted) in zip(solutions, pairs, lengths(base, pairs))
             if given <= room and 2 * wanted <= base.context - room}
    return [short[one] for one in tuning.rather(right, list(short))]


def lengths(base: Model, pairs: list) -> Int[np.ndarray, "pairs 2"]:
    """Tokens of each text and of its continuation."""
    return np.array([(len(base.begin(given)), len(base.encode(wanted)))
                     for given, wanted in pairs]).reshape(-1, 2)


def late_gain(curves: list[list[list]]) -> stats.Interval | None:
    """Training accuracy in the last fifth of the steps minus that in the fifth before, over seeds
    and runs: curves of `rl.learn`, a list a seed of one a run. None for a single step."""
    fifth = min(max(1, len(curve) // 5) for row in curves for curve in row)
    found = np.array([[[point["accuracy"] for point in curve][-2 * fifth:] for curve in row]
                      for row in curves])
    if found.shape[-1] < 2 * fifth:
        return None
    rise = found[..., fifth:].mean(-1) - found[..., :fifth].mean(-1)
    return stats.Interval(*map(float, stats.interval(lambda m: m, rise)))


def trained_before(pair: Pair, place: str, size: tuning.Size) -> tuning.Evaluation:
    """`Evaluation` of a pair's base with the adapter of a folder that `real_rl` wrote; log: as of
    `tuning.reinforced`."""
    stated = model.manifest(place)
    other = pair._replace(thinking=f"{pair.base}{loading.ADAPTER}{place}", chat=False)
    found = tuning.untouched(other, "thinking", size)
    rollouts = stated["recipe"]["problems"] * stated["recipe"]["samples"]
    return found._replace(log=found.log | {"curve": stated["log"]["curve"], "rollouts": rollouts})


def rl_tokens(log: dict) -> float:
    """Tokens that a run of RL sampled, by its curve."""
    return log["rollouts"] * sum(point["tokens"] for point in log["curve"])


@functools.cache
def parameters(pair: Pair) -> int:
    """Weights of a pair's base."""
    return pair.load("base").net.num_parameters()


def log10(operations: float) -> float:
    """Power of ten of a number of operations; 0 for none."""
    return float(np.log10(max(operations, 1)))
