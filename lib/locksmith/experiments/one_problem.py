"""One problem: the arms of chapter 3, what each is trained on, and what each gains and costs.

A `OneProblemStudy` holds the single problems of every task with their solutions, and for every arm
one `tuning.Evaluation` a seed and single problem. An arm is an id of arms.yml and, where it is not
the chapter's, a learning rate.
"""

import functools
import random
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
import pandas as pd

from locksmith import parallel, results, stats
from locksmith.arms import Treatment, treatment
from locksmith.errors import BadInput
from locksmith.experiments import critics, tuning
from locksmith.loading import Pair

# For every single problem; for a few; and RL on many problems: options of `tuning.reinforced`.
MAIN = ("critiques", "flipped-critiques", "shuffled-critiques", "format-only")
MORE = ("noisy-critiques", "sft-right", "sft-wrong")
SPURIOUS = {"rl-same-budget": {}, "format-reward": {"reward": "format"},
            "random-reward": {"reward": "random"},
            "entropy-alone": {"reward": "none", "bonus": 0.01}}


def treatment_of(fact: dict | pd.Series) -> Treatment:
    """The arm of a fact (a dict, or a row of its table)."""
    rate = fact.get("learning_rate")
    return treatment(fact["model"], learning_rate=None if rate is None or np.isnan(rate) else rate)


class Singles(NamedTuple):
    """The single problems of a task, easiest first: solve rates, solutions (lists of
    `tuning.Solution`), and the tokens generated for those of one problem."""
    problems: list
    rates: list
    solutions: list
    generated: float


class OneProblemStudy:
    """pairs: {(task, seed): Pair}; size and recipe: of every arm; outcomes: (task, Treatment) ->
    {(seed, single problem): `tuning.Evaluation`}."""

    def __init__(self, pairs: dict, workers: Executor, size: tuning.Size, recipe: tuning.Recipe):
        self.pairs, self.workers, self.size, self.recipe = pairs, workers, size, recipe
        self.tasks = list(dict.fromkeys(task for task, _ in pairs))
        self.seeds = list(dict.fromkeys(seed for _, seed in pairs))
        self.single, self.held_out, self.outcomes = {}, {}, {}

    def run(self, function: Callable, jobs: dict) -> dict:
        return parallel.run(self.workers, function, jobs)

    def bases(self, task: str) -> list:
        """The pairs of a task, one a seed."""
        return [self.pairs[task, seed] for seed in self.seeds]

    # --- one problem and its solutions

    def choose(self, n: int, n_pool: int, samples: int, n_solutions: int) -> None:
        """n single problems of n_pool training problems, by how often the first base solves them,
        and up to n_solutions by the bases of all seeds."""
        longest, first = self.size.max_new_tokens, self.seeds[0]
        rates = self.run(tuning.difficulty, {task: dict(
            pair=self.pairs[task, first], n_problems=n_pool, samples=samples,
            max_new_tokens=longest)
            for task in self.tasks})
        chosen = {task: tuning.spread(rates[task], n) for task in self.tasks}
        problems = {task: [tuning.pool(self.pairs[task, first], n_pool)[i] for i in chosen[task]]
                    for task in self.tasks}
        written = self.solve(problems, n_solutions)
        for task in self.tasks:
            for problem, solutions in zip(problems[task], written[task][0]):
                if not solutions:
                    raise BadInput(f"max_new_tokens is {longest}, but the base ended none of its "
                                   f"answers to {problem.key!r} within it; allowed is what leaves "
                                   "a solution.")
        self.single = {task: Singles(problems[task], [float(rates[task][i]) for i in chosen[task]],
                                     *written[task]) for task in self.tasks}

    def solve(self, problems: dict, n: int) -> dict:
        """`tuning.candidates` of each task's problems."""
        return self.run(tuning.candidates, {task: dict(
            pairs=self.bases(task), problems=problems[task], n=n,
            max_new_tokens=self.size.max_new_tokens) for task in self.tasks})

    def few(self, n: int) -> list[int]:
        """n numbers of single problems, from the easiest to the hardest."""
        last = len(self.single[self.tasks[0]].problems) - 1
        return np.linspace(0, last, n).round().astype(int).tolist()

    # --- arms

    def texts(self, task: str, arm: str, q: int) -> list:
        """What an arm is trained on for the single problem number q: [(text, continuation)]."""
        rules, single = self.pairs[task, self.seeds[0]].rules, self.single[task]
        problem, solutions = single.problems[q], single.solutions[q]

        def rng():
            return random.Random(f"{arm.replace('-', ' ')} {q}")
        if arm in critics.CRITICS:
            return tuning.critique_pairs(rules, problem, solutions, critics.CRITICS[arm], rng())
        if arm in ("sft-right", "sft-wrong"):
            return tuning.solution_pairs(rules, problem, solutions, arm == "sft-right")
        exact = tuning.critique_pairs(rules, problem, solutions, critics.exact, rng())
        return tuning.shuffle_targets(exact, rng()) if arm == "shuffled-critiques" else exact

    def judge(self, n: int) -> None:
        """Critiques of two solutions to each of n validation problems, for arms to be judged by."""
        problems = {task: self.pairs[task, self.seeds[0]].problems(n, "validation")
                    for task in self.tasks}
        self.held_out = self.reviews(problems, 2)

    def reviews(self, problems: dict, each: int) -> dict:
        """Exact critiques of the first `each` solutions of every task's problems, by task."""
        written = self.solve(problems, 2)
        return {task: [pair for problem, some in zip(problems[task], written[task][0]) for pair in
                       tuning.critique_pairs(self.pairs[task, self.seeds[0]].rules, problem,
                                             some[:each], critics.exact, None)]
                for task in self.tasks}

    def train(self, names: Iterable[str], singles: Iterable[int], lr: float | None = None) -> None:
        """Supervised arms on single problems, at a learning rate of their own or the chapter's."""
        texts = {(task, arm, q): self.texts(task, arm, q)
                 for task in self.tasks for arm in names for q in singles}
        self.supervise({(*key, seed): pairs for key, pairs in texts.items()
                        for seed in self.seeds}, lr)

    def train_own(self, singles: Iterable[int]) -> None:
        """Critiques by the base itself, or exact ones for a base none of whose own came to an
        end."""
        asked = {(task, q, seed): self.texts(task, "critiques", q)
                 for task in self.tasks for q in singles for seed in self.seeds}
        own = self.run(tuning.own_critiques, {(task, q, seed): dict(
            pair=self.pairs[task, seed], pairs=pairs, max_new_tokens=self.size.max_new_tokens // 4)
            for (task, q, seed), pairs in asked.items()})
        self.supervise({(task, "own-critiques", q, seed): pairs or asked[task, q, seed]
                        for (task, q, seed), pairs in own.items()})

    def train_many(self, n_pool: int, n: int) -> None:
        """Critiques of one solution to each of n problems that come after the first n_pool."""
        problems = {task: tuning.pool(self.pairs[task, self.seeds[0]], n_pool + n)[n_pool:]
                    for task in self.tasks}
        many = self.reviews(problems, 1)
        self.supervise({(task, "many-critiques", 0, seed): many[task]
                        for task in self.tasks for seed in self.seeds})

    def supervise(self, texts: dict, lr: float | None = None) -> None:
        """Train on {(task, arm id, single problem, seed): [(text, continuation)]}; what is empty is
        left out."""
        recipe = self.recipe if lr is None else self.recipe._replace(lr=lr)
        self.keep(lr, self.run(tuning.tuned, {key: dict(
            pair=self.pairs[key[0], key[3]], pairs=pairs, recipe=recipe, size=self.size,
            judged=self.held_out.get(key[0])) for key, pairs in texts.items() if pairs}))

    def untouched(self, which: Iterable[str] = ("base", "thinking")) -> None:
        """The models as they are."""
        self.keep(None, self.run(tuning.untouched, {(task, name, 0, seed): dict(
            pair=pair, which=name, size=self.size)
            for name in which for (task, seed), pair in self.pairs.items()}))

    def reinforce(self, recipe: dict, singles: Iterable[int]) -> None:
        """RL: on single problems, with as many rollouts a step as half of those on many, and the
        arms of SPURIOUS on many. recipe: as `rl.learn` takes it."""
        one = recipe | {"problems": 1, "samples": recipe["samples"] * recipe["problems"] // 2}
        jobs = {(task, "rl-one-problem", q, seed): dict(
            pair=pair, recipe=one, problems=[self.single[task].problems[q]] * recipe["steps"])
            for (task, seed), pair in self.pairs.items() for q in singles}
        jobs |= {(task, arm, 0, seed): dict(
            pair=pair, recipe=recipe, problems=tuning.pool(pair,
                                                           recipe["steps"] * recipe["problems"]),
            **options) for (task, seed), pair in self.pairs.items()
                 for arm, options in SPURIOUS.items()}
        self.keep(None, self.run(tuning.reinforced, {
            key: dict(job, size=self.size, trains=self.recipe.trains)
            for key, job in jobs.items()}))

    def keep(self, lr: float | None, done: dict) -> None:
        """Outcomes by (task, arm id, single problem, seed)."""
        for (task, arm, q, seed), found in done.items():
            self.outcomes.setdefault((task, treatment(arm, learning_rate=lr)), {})[seed, q] = found

    def resized(self, n: int) -> "OneProblemStudy":
        """The same single problems, for outcomes with n answers a test problem."""
        other = OneProblemStudy(self.pairs, self.workers, self.size._replace(n=n), self.recipe)
        other.single = self.single
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

    def when_and_how(self, task: str, arm: Treatment) -> list[stats.Interval]:
        """The gain over the base in two parts, over seeds and single problems."""
        bases = self.rows(task, treatment("base"))
        parts = np.array([[stats.when_and_how((base[0].strategy, base[0].correct),
                                              (o.strategy, o.correct)) for o in row]
                          for base, row in zip(bases, self.rows(task, arm))])
        return [stats.interval(lambda m: m, parts[..., i]) for i in (0, 1)]

    def record(self, record: results.Recorder, rollouts: dict) -> None:
        """Facts of every arm, and in `extra` its accuracy by seed and single problem. rollouts: as
        in `operations`."""
        for task, arm in self.outcomes:
            found = {"pass_at_k": self.level(task, arm),
                     "trace_pass_at_k": self.level(task, arm, "trace"),
                     "gap_recovered": self.recovered(task, arm),
                     "tokens_per_answer": self.mean(task, arm, "tokens")}
            if arm.id != "base":
                found["strategy_share"] = self.level(task, arm, "strategy")
                found["gain_when"], found["gain_how"] = self.when_and_how(task, arm)
            spent = self.operations(task, arm, rollouts)
            found["log10_flops"] = None if spent is None else log10(spent)
            for quantity, value in found.items():
                k = {"k": 1} if quantity.endswith("at_k") else {}
                record.fact(task, arm.id, quantity, value, **k, **arm.given)
            record.extra[f"accuracy {task} {arm.label}"] = self.scores(task, arm).mean(1)

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
        (first, last), "verdicts" (before, after), "text_loss"; None where it says nothing."""
        said = [o.log.get(name) for row in self.rows(task, arm) for o in row]
        if name == "losses":
            said = [(x[0], x[-1]) for x in said if x]
        said = [x for x in said if x is not None and None not in np.ravel(x).tolist()]
        return np.mean(said, 0) if said else None

    def operations(self, task: str, arm: Treatment, rollouts: dict) -> float | None:
        """Floating-point operations that an arm spent once, mean over seeds and single problems.

        rollouts: arm id -> rollouts a step, for RL. Solutions are counted in full; None for a
        thinking model whose training is not known.
        """
        logs = [o.log for row in self.rows(task, arm) for o in row]
        size = parameters(self.pairs[task, self.seeds[0]])
        if arm.id == "thinking":
            tokens = self.pairs[task, self.seeds[0]].rl_tokens
            return tokens and tuning.operations(size, tokens, tokens)
        if "curve" in logs[0]:
            tokens = rollouts[arm.id] * np.mean([sum(p["tokens"] for p in x["curve"])
                                                 for x in logs])
            return tuning.operations(size, tokens, tokens)
        if "losses" in logs[0]:
            return tuning.operations(size, np.mean([x["read"] for x in logs]),
                                     self.single[task].generated)
        return 0.0


@functools.cache
def parameters(pair: Pair) -> int:
    """Weights of a pair's base."""
    return pair.load("base").net.num_parameters()


def log10(operations: float) -> float:
    """Power of ten of a number of operations; 0 for none."""
    return float(np.log10(max(operations, 1)))
