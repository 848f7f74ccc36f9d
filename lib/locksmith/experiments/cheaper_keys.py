"""Cheaper keys: every way to a thinking model's gain on one axis, with what it costs.

A `Comparison` runs the test-time methods of `test_time` and the small trainings of `tuning` on the
same base and test problems, and takes in what other chapters measured. An arm is an id of arms.yml
under conditions, such as fine-tuning on 10 examples. What is best of several, a rate, an opening or
the cheap method as such, is chosen on validation problems.
"""

import functools
import itertools
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from locksmith import parallel, results, stats
from locksmith.arms import Treatment, treatment
from locksmith.experiments import test_time, tools, tuning
from locksmith.experiments.one_problem import late_gain, log10, parameters, rl_tokens

# What other chapters measured against the same base and thinking model.
OTHERS = {"01": ("hybrid", "probe"),
          "02": ("greedy", "low-temperature", "majority", "best-of-n", "best-of-n-per-token",
                 "cot-decoding", "power-sampling"),
          "03": ("critiques", "rl-one-problem", "rl-same-budget", "random-reward",
                 "format-reward")}


# Among which the cheap method is chosen, and the best of each class.
CLASSES = {"prompting and tools": ("prefix", "cognitive-tools"),
           "steering": ("vector-rl", "last-vector-rl"),
           "little training": ("sft-solved", "lora-rl", "rl-higher-rate")}
KEYS = sum(CLASSES.values(), ())
# (arm, what it is compared with, paired): the tools, and whether an adapter is worth its rate.
COMPARED = (("cognitive-tools", "dummy-tools"), ("cognitive-tools", "matched-vote"),
            ("lora-rl", "rl-higher-rate"))
# What the figure shows; the rest is in the table of all methods.
SHOWN = (*map(treatment, ("prefix", "cognitive-tools", "dummy-tools", "matched-vote", "majority",
                          "power-sampling", "hybrid", "vector-rl", "lora-rl", "critiques",
                          "rl-one-problem")), treatment("sft-solved", examples=10))


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
    (task, Treatment) -> one dict a seed, what a method or a training says of itself; validation:
    (task, Treatment) -> (share right, tokens an answer) of the first seed; chosen: (task,
    Treatment) -> the Treatment that stands for it."""

    def __init__(self, pairs: dict, workers: Executor, size: tuning.Size):
        self.pairs, self.workers, self.size = pairs, workers, size
        self.tasks = list(dict.fromkeys(task for task, _ in pairs))
        self.seeds = list(dict.fromkeys(seed for _, seed in pairs))
        self.checked = size._replace(n=1, split="validation")
        self.scores, self.logs, self.tried, self.validation, self.chosen = {}, {}, {}, {}, {}

    def run(self, function: Callable, jobs: dict) -> dict:
        return parallel.run(self.workers, function, jobs)

    # --- at test time

    def methods(self, prefixes: list) -> dict:
        """Treatment -> (method of `test_time`, options): `try_out` runs those that a task has. The
        tools stand one by one for tasks whose steps have kinds."""
        found = {treatment("base"): ("base", {}),
                 treatment("cognitive-tools"): ("cognitive_tools", {}),
                 treatment("dummy-tools"): ("dummy_tools", {})}
        found |= {treatment("cognitive-tools", variant="+".join(some)): (
            "cognitive_tools", {"tools": list(some)})
            for some in (*((tool,) for tool in tools.TOOLS), ("examine", "backtrack"))}
        return found | {treatment("prefix", variant=words.strip()): ("prefix", {"words": words})
                        for words in prefixes}

    def try_out(self, methods: dict, n: int | None = None, budgets: dict | None = None) -> None:
        """Test-time methods on all pairs, and those that may be chosen on validation problems of
        the first seed. budgets: (task, Treatment, seed) -> tokens an answer, of a vote."""
        def job(task, name, seed, size):
            method, options = methods[name]
            budget = {"budget": budgets[task, name, seed]} if budgets else {}
            return dict(pair=self.pairs[task, seed], method=method, split=size.split, n=size.n,
                        n_problems=size.n_problems, max_new_tokens=size.max_new_tokens, **options,
                        **budget)
        known = [(task, name) for name in methods for task in self.tasks
                 if _has(self.pairs[task, self.seeds[0]].rules, name)]
        size, first = self.size._replace(n=n or self.size.n), self.seeds[0]
        done = self.run(test_time.solve, {
            (*key, seed): job(*key, seed, size) for key in known for seed in self.seeds})
        for task, name in known:
            found = [done[task, name, seed] for seed in self.seeds]
            self.scores[task, name] = Scores(*(np.stack(x) for x in zip(*(f[:3] for f in found))))
            self.logs[task, name] = [f.log for f in found]
        checked = self.run(test_time.solve, {key: job(*key, first, self.checked) for key in known
                                             if key[1].id in KEYS})
        self.validation |= {key: (float(found.correct.mean()), float(found.tokens.mean()))
                            for key, found in checked.items()}

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
        arm, first = treatment("thinking"), self.seeds[0]
        self.keep(self.run(tuning.untouched, {(task, arm, seed): dict(
            pair=pair, which="thinking", size=self.size)
                                              for (task, seed), pair in self.pairs.items()}))
        checked = self.run(tuning.untouched, {task: dict(
            pair=self.pairs[task, first], which="thinking", size=self.checked)
            for task in self.tasks})
        self.validation |= {(task, arm): (float(o.correct.mean()), float(o.tokens.mean()))
                            for task, o in checked.items()}

    def fine_tune(self, solved: list, n_pool: int, samples: int, recipe: tuning.Recipe,
                  lrs: list) -> None:
        """SFT on the first problems that the base solved itself among n_pool, as many as `solved`
        where there are so many."""
        self.tried = self.run(tuning.self_solved, {key: dict(
            pair=pair, n_problems=n_pool, samples=samples, max_new_tokens=self.size.max_new_tokens)
            for key, pair in self.pairs.items()})

        def job(pair, pairs):
            return lambda lr: dict(pair=pair, pairs=pairs, recipe=recipe._replace(lr=lr),
                                   size=self.size, chosen_on=self.checked)
        jobs = {(task, treatment("sft-solved", examples=m), seed): job(pair, sum(found[:m], []))
                for (task, seed), pair in self.pairs.items()
                for found in [self.tried[task, seed][0]] for m in solved if len(found) >= m}
        self.keep(self.at_best_rate(tuning.tuned, jobs, {"sft-solved": lrs}))

    def reinforce(self, recipe: dict, ways: dict, full: dict | None = None) -> None:
        """RL that trains little, on many problems. ways: arm id -> (learning rates, options of
        `tuning.reinforced`); full: arm id -> the recipe that follows, at the rate that is best with
        the small one, for an arm that needs more rollouts to come to its end."""
        def jobs(recipes):
            return {(task, treatment(name), seed): functools.partial(
                self._rl, pair, recipes[name], ways[name][1])
                for name in recipes for (task, seed), pair in self.pairs.items()}
        done = self.at_best_rate(tuning.reinforced, jobs(dict.fromkeys(ways, recipe)),
                                 {name: lrs for name, (lrs, _) in ways.items()}, jobs(full or {}))
        self.keep(done)
        for part in ("first token", "later tokens"):
            for task, name in dict.fromkeys(key[:2] for key, o in done.items() if part in o.log):
                key = task, treatment(name.id, position=part)
                logs = [done[task, name, seed].log for seed in self.seeds]
                self.scores[key] = Scores(np.stack([log[part].mean(1) for log in logs]), None, None)
                self.logs[key] = logs

    def _rl(self, pair, recipe, options, lr):
        """Arguments of `tuning.reinforced`."""
        return dict(pair=pair, problems=tuning.pool(pair, recipe["steps"] * recipe["problems"]),
                    recipe=recipe | {"lr": lr}, size=self.size, chosen_on=self.checked, **options)

    def at_best_rate(self, function: Callable, jobs: dict, rates: dict,
                     final: dict | None = None) -> dict:
        """Outcomes of trainings by (task, Treatment, seed), all seeds at the learning rate at which
        the first is right on most validation problems; of equals the first rate of the list.

        jobs: the same keys -> (learning rate -> arguments of the function); rates: arm id -> list;
        final: jobs in the place of those of the same keys, once the rate is chosen.
        """
        final = final or {}
        first = [key for key in jobs if key[2] == self.seeds[0]]
        tried = self.run(function, {(*key, lr): jobs[key](lr) for key in first
                                    for lr in rates[key[1].id]})
        best = {key[:2]: max(rates[key[1].id], key=lambda lr: tried[*key, lr].log["validation"][0])
                for key in first}
        rest = self.run(function, {
            key: final.get(key, job)(best.get(key[:2], rates[key[1].id][0]))
            for key, job in jobs.items() if key not in first or key in final})
        done = {key: tried[*key, best[key[:2]]] for key in first} | rest
        self.validation |= {key[:2]: done[key].log["validation"] for key in first}
        return done

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

    def choose(self, trained: float = 0.1, answer: float = 10) -> None:
        """What stands for several, by validation problems: `prefix` for all openings, `chosen-key`
        for all KEYS within a budget, training as a share of full RL's and answers no longer than so
        many times the thinking model's, and in the lab for each of CLASSES whatever it costs."""
        for task in self.tasks:
            full = self.operations(task, treatment("thinking")) or 0
            longest = answer * self.validation[task, treatment("thinking")][1]
            every = {name: right for (family, name), (right, tokens) in self.validation.items()
                     if family == task and name.id in KEYS
                     and len(self.scores[task, name].correct) == len(self.seeds)}
            right = [name for name in every if self.validation[task, name][1] <= longest
                     and self.operations(task, name) <= trained * full]
            wanted = [(treatment("prefix"), ("prefix",), right),
                      (treatment("chosen-key"), KEYS, right)]
            if self.pairs[task, self.seeds[0]].of_the_lab:
                wanted += [(treatment("chosen-key", variant=name), among, every)
                           for name, among in CLASSES.items()]
            for copy, among, names in wanted:
                if some := [name for name in names if name.id in among]:
                    best = max(some, key=every.get)
                    self.chosen[task, copy] = best
                    self.scores[task, copy] = self.scores[task, best]
                    self.logs[task, copy] = self.logs[task, best]

    def difference(self, task: str, name: Treatment, other: Treatment) -> stats.Interval | None:
        """Share of the gap minus another arm's, paired."""
        base, full = (self.scores[task, treatment(which)].correct for which in ("base", "thinking"))
        return stats.gap_difference(self.scores[task, name].correct,
                                    self.scores[task, other].correct, base, full)

    def mean(self, task: str, name: Treatment, what: str) -> float:
        """Mean of what a method says of itself, over seeds and problems."""
        return float(np.mean([log[what].mean() for log in self.logs[task, name]]))

    def operations(self, task: str, name: Treatment) -> float | None:
        """Operations that an arm spent once, mean over seeds; 0 for one that trains nothing; None
        for a thinking model whose training is not known."""
        first, size = self.pairs[task, self.seeds[0]], parameters(self.pairs[task, self.seeds[0]])
        if name.id == "thinking":
            return first.rl_tokens and tuning.operations(size, first.rl_tokens, first.rl_tokens)
        logs = self.logs[task, name]
        if "curve" in logs[0]:
            tokens = np.mean([rl_tokens(log) for log in logs])
            return tuning.operations(size, tokens, tokens)
        if "read" in logs[0]:
            return float(np.mean([tuning.operations(size, log["read"], self.tried[task, seed][1])
                                  for log, seed in zip(logs, self.seeds)]))
        return 0.0

    def record(self, record: results.Recorder) -> dict:
        """Facts of every arm; returns (task, Treatment) -> `Shown`."""
        shown = {}
        for (task, name), scores in self.scores.items():
            about, given = (task, name.id), name.given
            gap, spent = self.recovered(task, name), self.operations(task, name)
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
        for task, (arm, other) in itertools.product(self.tasks, COMPARED):
            if {(task, treatment(arm)), (task, treatment(other))} <= set(self.scores):
                record.fact(task, arm, "gap_difference",
                            self.difference(task, treatment(arm), treatment(other)), against=other)
        for (task, name), logs in self.logs.items():
            curves = [[log["curve"]] for log in logs if "curve" in log]
            if curves and name.whole and self.pairs[task, self.seeds[0]].of_the_lab:
                record.fact(task, name.id, "late_gain", late_gain(curves), **name.given,
                            n_problems=None, n_samples=None)
        record.extra["chosen"] = {f"{task} {arm.label}": name.label
                                  for (task, arm), name in self.chosen.items()}
        record.extra["validation"] = {f"{task} {name.label}": found
                                      for (task, name), found in self.validation.items()}
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
                full = self.operations(task, treatment("thinking"))
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
                  and (task, name) not in self.chosen
                  and point.tokens <= answer * longest * 1.05
                  and (point.operations or 0) <= trained * (full or 0)}
        if not within:
            return None
        name = max(within, key=lambda name: within[name].value)
        return name, within[name]


def table(shown: dict) -> str:
    """Every point as CSV: task, method, share of RL's gain and its interval, tokens an answer,
    operations spent once."""
    rows = [[task, name.label, *(point.gap or [None] * 3), point.tokens, point.operations]
            for (task, name), point in sorted(shown.items(), key=by_share)]
    return pd.DataFrame(rows, columns=[
        "task", "method", "share_of_gain", "low", "high", "tokens_per_answer",
        "operations"]).to_csv(index=False, lineterminator="\n")


def _has(task, name):
    """Whether a task has what a method asks for: kinds of steps, for tools one by one."""
    return bool(task.OPENINGS) or name.id != "cognitive-tools" or not name.conditions
