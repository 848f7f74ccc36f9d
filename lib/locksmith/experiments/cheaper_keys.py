"""Cheaper keys: every way to a thinking model's gain on one axis, with what it costs.

A `Comparison` runs the test-time methods of `test_time` and the small trainings of `tuning` on the
same base and test problems, and takes in what other chapters measured. An arm is an id of arms.yml
under conditions, such as few-shot with 2 examples.
"""

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from locksmith import parallel, results, stats
from locksmith.arms import Treatment, treatment
from locksmith.experiments import test_time, tools, tuning
from locksmith.experiments.one_problem import log10, parameters

# What other chapters measured against the same base and thinking model.
OTHERS = {"01": ("hybrid", "probe"),
          "02": ("greedy", "low-temperature", "majority", "best-of-n", "best-of-n-per-token",
                 "cot-decoding", "power-sampling"),
          "03": ("critiques", "rl-one-problem", "rl-same-budget", "random-reward", "format-reward",
                 "entropy-alone")}


def by_share(item: tuple) -> tuple:
    """Sorts ((task, Treatment), `Shown`) by task and share."""
    (task, _), point = item
    return task, point.gap.value if point.gap else 0


class Scores(NamedTuple):
    """correct, trace, tokens: (seeds, problems) means over answers; trace and tokens None where
    they were not measured."""
    correct: np.ndarray
    trace: np.ndarray | None
    tokens: np.ndarray | None


class Shown(NamedTuple):
    """A point of the figure: share of the gap or None, tokens an answer or None, operations spent
    once or None where nothing was trained."""
    gap: stats.Interval | None
    tokens: float | None
    operations: float | None


class Comparison:
    """pairs: {(task, seed): Pair}; size: of every arm. scores: (task, Treatment) -> `Scores`; logs:
    (task, Treatment) -> one dict a seed, what a method or a training says of itself."""

    def __init__(self, pairs: dict, workers: Executor, size: tuning.Size):
        self.pairs, self.workers, self.size = pairs, workers, size
        self.tasks = list(dict.fromkeys(task for task, _ in pairs))
        self.seeds = list(dict.fromkeys(seed for _, seed in pairs))
        self.scores, self.logs, self.tried = {}, {}, {}

    def run(self, function: Callable, jobs: dict) -> dict:
        return parallel.run(self.workers, function, jobs)

    # --- at test time

    def methods(self, shots: list, prefixes: list) -> dict:
        """Treatment -> (method of `test_time`, options): `try_out` runs those that a task has."""
        found = {treatment("base"): ("base", {}),
                 treatment("cognitive-tools"): ("cognitive_tools", {}),
                 treatment("dummy-tools"): ("dummy_tools", {})}
        found |= {treatment("few-shot", examples=n): ("few_shot", {"shots": n}) for n in shots}
        found |= {treatment("cognitive-tools", variant="+".join(some)): (
            "cognitive_tools", {"tools": list(some)})
            for some in (*((tool,) for tool in tools.TOOLS), ("examine", "backtrack"))}
        return found | {treatment("prefix", variant=words.strip()): ("prefix", {"words": words})
                        for words in prefixes}

    def try_out(self, methods: dict, n: int | None = None, budgets: dict | None = None) -> None:
        """Test-time methods on all pairs. budgets: (task, Treatment, seed) -> tokens an answer,
        of a vote."""
        jobs = {(task, name, seed): dict(
            pair=pair, method=method, n=n or self.size.n, n_problems=self.size.n_problems,
            max_new_tokens=self.size.max_new_tokens, **options,
            **({"budget": budgets[task, name, seed]} if budgets else {}))
            for name, (method, options) in methods.items()
            for (task, seed), pair in self.pairs.items()
            if method != "few_shot" or hasattr(pair.rules, "document")}
        done = self.run(test_time.solve, jobs)
        for task, name in dict.fromkeys(key[:2] for key in done):
            found = [done[task, name, seed] for seed in self.seeds]
            self.scores[task, name] = Scores(*(np.stack(x) for x in zip(*(f[:3] for f in found))))
            self.logs[task, name] = [f.log for f in found]

    def vote(self) -> None:
        """The controls within a budget: a vote within the tools' tokens on each problem, and
        guesses within those of a thinking answer."""
        tool, vote, guess = map(treatment, ("cognitive-tools", "matched-vote", "guess"))
        spent = {(task, i): self.scores[task, tool].tokens[i]
                 for task in self.tasks for i in range(len(self.seeds))}
        self.try_out({vote: ("matched_vote", {})}, 1, {
            (task, vote, seed): np.maximum(spent[task, i].round(), 1)
            for task in self.tasks for i, seed in enumerate(self.seeds)})
        longest = {task: max(1, int(self.scores[task, treatment("thinking")].tokens.mean()))
                   for task in self.tasks}
        self.try_out({guess: ("guess", {})}, budgets={
            (task, guess, seed): longest[task] for task, seed in self.pairs})

    # --- training little

    def thinking(self) -> None:
        """The thinking model as it is."""
        self.keep(self.run(tuning.untouched, {(task, treatment("thinking"), seed): dict(
            pair=pair, which="thinking", size=self.size)
                                              for (task, seed), pair in self.pairs.items()}))

    def fine_tune(self, solved: list, n_pool: int, samples: int, recipe: tuning.Recipe) -> None:
        """SFT on the first problems that the base solved itself among n_pool,
        as many as `solved`."""
        self.tried = self.run(tuning.self_solved, {key: dict(
            pair=pair, n_problems=n_pool, samples=samples, max_new_tokens=self.size.max_new_tokens)
            for key, pair in self.pairs.items()})
        self.keep(self.run(tuning.tuned, {(task, treatment("sft-solved", examples=m), seed): dict(
            pair=pair, pairs=sum(self.tried[task, seed][0][:m], []), recipe=recipe, size=self.size)
            for (task, seed), pair in self.pairs.items() for m in solved
            if self.tried[task, seed][0]}))

    def reinforce(self, recipe: dict, ways: dict) -> None:
        """RL that trains little, on many problems. ways: arm id -> (learning rate, options of
        `tuning.reinforced`)."""
        done = self.run(tuning.reinforced, {(task, treatment(name), seed): dict(
            pair=pair, problems=tuning.pool(pair, recipe["steps"] * recipe["problems"]),
            recipe=recipe | {"lr": lr}, size=self.size, **options)
            for name, (lr, options) in ways.items() for (task, seed), pair in self.pairs.items()})
        self.keep(done)
        for part in ("first token", "later tokens"):
            for task, name in dict.fromkeys(key[:2] for key, o in done.items() if part in o.log):
                key = task, treatment(name.id, position=part)
                logs = [done[task, name, seed].log for seed in self.seeds]
                self.scores[key] = Scores(np.stack([log[part].mean(1) for log in logs]), None, None)
                self.logs[key] = logs

    def keep(self, done: dict) -> None:
        """Outcomes by (task, Treatment, seed); an arm that is not there for all seeds keeps those
        it has."""
        for task, name in dict.fromkeys(key[:2] for key in done):
            found = [done[task, name, seed] for seed in self.seeds if (task, name, seed) in done]
            self.scores[task, name] = Scores(*(np.stack([x.mean(1) for x in column])
                                               for column in zip(
                *((o.correct, o.trace, o.tokens) for o in found))))
            self.logs[task, name] = [o.log for o in found]

    # --- what came of it

    def recovered(self, task: str, name: Treatment) -> stats.Interval | None:
        """Share of the gap between base and thinking model; None where it has no meaning."""
        base, full = (self.scores[task, treatment(which)].correct for which in ("base", "thinking"))
        correct = self.scores[task, name].correct
        if name.id in ("base", "thinking") or len(correct) < len(self.seeds):
            return None
        return stats.gap_recovered(correct, base, full)

    def mean(self, task: str, name: Treatment, what: str) -> float:
        """Mean of what a method says of itself, over seeds and problems."""
        return float(np.mean([log[what].mean() for log in self.logs[task, name]]))

    def operations(self, task: str, name: Treatment, a_step: int) -> float | None:
        """Operations that an arm spent once, mean over seeds; 0 for one that trains nothing; None
        for a thinking model whose training is not known. a_step: rollouts of a step of RL."""
        first, size = self.pairs[task, self.seeds[0]], parameters(self.pairs[task, self.seeds[0]])
        if name.id == "thinking":
            return first.rl_tokens and tuning.operations(size, first.rl_tokens, first.rl_tokens)
        logs = self.logs[task, name]
        if "curve" in logs[0]:
            tokens = a_step * np.mean([sum(p["tokens"] for p in log["curve"]) for log in logs])
            return tuning.operations(size, tokens, tokens)
        if "read" in logs[0]:
            return float(np.mean([tuning.operations(size, log["read"], self.tried[task, seed][1])
                                  for log, seed in zip(logs, self.seeds)]))
        return 0.0

    def record(self, record: results.Recorder, a_step: int) -> dict:
        """Facts of every arm; returns (task, Treatment) -> `Shown`."""
        shown = {}
        for (task, name), scores in self.scores.items():
            about, given = (task, name.id), name.given
            gap, spent = self.recovered(task, name), self.operations(task, name, a_step)
            tokens = None if scores.tokens is None else float(scores.tokens.mean())
            record.fact(*about, "pass_at_k", stats.mean_interval(scores.correct), k=1, **given)
            record.fact(*about, "gap_recovered", gap, **given)
            record.fact(*about, "tokens_per_answer", tokens, **given)
            if scores.trace is not None:
                record.fact(*about, "trace_pass_at_k", stats.mean_interval(scores.trace), k=1,
                            **given)
            if spent is not None:
                record.fact(*about, "log10_flops", log10(spent), **given)
            shown[task, name] = Shown(gap, tokens, spent or None)
        return shown

    def of_other_chapters(self, profile: str) -> dict:
        """(task, Treatment) -> `Shown` of what other chapters measured. Steering stands at the cost
        of full RL: vectors, gate and probe are made with the thinking model."""
        shown = {}
        for chapter, names in OTHERS.items():
            if not Path(results.ROOT, profile, f"{chapter}.json").exists():
                continue
            known = results.Recorder.reopen(profile, chapter)
            for task in self.tasks:
                full = self.operations(task, treatment("thinking"), 0)
                for name in names:
                    gap, tokens, spent = (known.get(task, name, quantity) for quantity in (
                        "gap_recovered", "tokens_per_answer", "log10_flops"))
                    once = full if chapter == "01" else 10 ** spent.value if spent else None
                    if gap and tokens:
                        shown[task, treatment(name)] = Shown(gap, tokens.value, once)
        return shown

    def best(self, task: str, shown: dict, trained: float, answer: float) -> tuple | None:
        """(Treatment, share of the gap) of the best within a budget: training as a share of full
        RL's, answers no longer than `answer` times the thinking model's. None where nothing fits
        in."""
        full, longest = (shown[task, treatment("thinking")].operations,
                         shown[task, treatment("thinking")].tokens)
        within = {name: point.gap for (family, name), point in shown.items()
                  if family == task and point.gap and point.tokens
                  and point.tokens <= answer * longest * 1.05
                  and (point.operations or 0) <= trained * (full or 0)}
        if not within:
            return None
        name = max(within, key=lambda name: within[name].value)
        return name, within[name]
