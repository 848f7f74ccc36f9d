"""What steering recovers: the experiment of chapter 1, from fitting over choosing to comparing.

    study      traces, kinds of steps                          (`vectors.study`)
    fit_base   vectors in the base, at each layer              (`vectors.fit`)
    validate   the hybrid's layer and strength, by a rule      (`pick`)
    fit_controls
               the same in other bodies, and other ways
    validate_controls
               every other arm's setting, by the same rule
    run        every arm of `steering_arms` on test problems
    summary    intervals and shares of the gap recovered
    answers    paired differences of such shares               (QUESTIONS)

Outcomes are a tidy table, a row a problem: task, arm, seed, start (the unsteered model that the arm
is measured from, None for models themselves), bits, and the columns of `hybrid.Run.frame`.
"""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from locksmith import arms as names
from locksmith import parallel, quantities, stats
from locksmith.errors import BadInput
from locksmith.experiments import hybrid, places, steering_arms, vectors
from locksmith.experiments.steering_arms import Fits, Setting
from locksmith.loading import Model

MOST = 0.12  # the largest share of tokens that may be steered, the published one
# Bodies that are measured from an arm of another id than their role.
STARTS = {steering_arms.RARE: "one-percent-base"}
PARTNERS = ("distilled", "taught")  # models that may take the thinking model's part
TOGETHER = 12  # arms of a pair that answer side by side in one job


class Question(NamedTuple):
    """What the gap's share that one arm recovers minus another's tells. yes: what a difference
    above 0 says, no: what one below 0 does."""
    answer: str
    asks: str
    arm: str
    against: str
    yes: str
    no: str


QUESTIONS = [Question(*row) for row in (
    ("when", "Do the moments matter?", "bias-only", "bias-at-random",
     "one shared nudge needs the right moments", "random moments do better"),
    ("which", "Does the kind's own vector matter?", "hybrid", "bias-only",
     "there is something to choose among", "one shared nudge does better"),
    ("which", "Does it have to be the right kind?", "hybrid", "other-category",
     "the right kind is needed", "another kind's vector does better"),
    ("what", "Is a vector more than the next word?", "hybrid", "logit-push",
     "it does more than raise its words", "raising the words does better"),
    ("what", "Is it more than any fitted vector?", "hybrid", "unrelated-vectors",
     "it uses what the base learned", "an unrelated model's vectors do better"),
    ("what", "Below the last block, is it more than an untrained model's vector?", "hybrid-lower",
     "untrained-vectors-lower", "it uses what the base learned",
     "an untrained model's vectors do better"),
    ("what", "And than one at the last block, of embeddings alone?", "hybrid",
     "untrained-vectors-last", "it uses what the base learned",
     "an untrained model's vectors do better"),
    ("what", "Does its direction matter?", "hybrid", "random-vectors",
     "the direction matters", "random directions do better"),
    ("selection", "Is it more than picking among the base's words?", "hybrid", "reranking-alone",
     "vectors add to a choice", "a choice alone does better"),
    ("execution", "What does the base's execution lose?", "thinking",
     "thinking-decides-base-executes", "the base executes worse", "the base executes better"),
    ("no oracle", "What does the thinking model add beside a probe?", "hybrid", "probe",
     "it says more than the base knows", "the probe does better"),
    ("no oracle", "What does it add to a fixed script?", "thinking-decides-base-executes",
     "script-decides-base-executes", "its decisions are worth more than a script's",
     "the script does better"))]


def share(outcomes: pd.DataFrame) -> float:
    """Share of tokens that were chosen at a steered position."""
    return outcomes["steered"].sum() / outcomes["drawn"].sum()


def pick(tried: pd.DataFrame, by: list) -> dict:
    """The setting (a value of each column of `by`) with the highest accuracy among those that steer
    at most MOST of the tokens, or among all where none does; the first of equal ones."""
    grouped = tried.groupby(by, sort=False)
    table = grouped.agg(accuracy=("correct", "mean"), steered=("steered", "sum"),
                        drawn=("drawn", "sum")).reset_index()
    few = table[table["steered"] / table["drawn"] <= MOST]
    best = few if len(few) else table
    return best.loc[best["accuracy"].idxmax(), by].to_dict()


@dataclass
class Experiment:
    """The experiment on pairs ((task, seed) -> Pair), with its jobs in a pool.

    layers, strengths, thresholds: what is tried. fit_steps: of Adam for a set of vectors.
    n_problems, n_samples: test problems and answers to each. studies, bodies (body -> layer ->
    Fitted), others (layer -> what `vectors.fit_others` gives): (task, seed) -> what was fitted.
    settings: (task, arm) -> Setting, of arms with a choice. tried: outcomes on validation problems,
    with the columns of Setting and `choice`, its number. outcomes: on test problems. runs: (task,
    arm, seed) -> hybrid.Run.
    """
    pool: Executor
    pairs: dict
    layers: list
    strengths: list
    thresholds: list
    fit_steps: int
    n_problems: int
    n_samples: int
    n_validation: int
    max_new_tokens: int
    studies: dict = field(default_factory=dict, init=False)
    bodies: dict = field(default_factory=dict, init=False)
    others: dict = field(default_factory=dict, init=False)
    settings: dict = field(default_factory=dict, init=False)
    seen: dict = field(default_factory=dict, init=False)
    tried: pd.DataFrame = field(default=None, init=False)
    outcomes: pd.DataFrame = field(default=None, init=False)
    runs: dict = field(default_factory=dict, init=False)

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for task, _ in self.pairs))

    def has(self, task: str, role: str) -> bool:
        """Whether every seed of a task has a model in a role."""
        return all(pair.has(role) for (other, _), pair in self.pairs.items() if other == task)

    def answers(self, n_traces: int) -> int:
        """About how many answers the whole experiment draws."""
        tried = len(self.layers) * len(self.strengths)
        return len(self.pairs) * (n_traces + len(steering_arms.ARMS) * (
            tried * self.n_validation + self.n_problems * self.n_samples))

    def check(self) -> None:
        """BadInput, before anything long runs, for an arm that arms.yml does not have, and a pair
        that cannot take part: two vocabularies, layers that are not there, blocks that cannot be
        run apart, prompts that leave no room."""
        for name in steering_arms.ARMS:
            names.get(name)
        for task in self.tasks:
            pair = next(pair for (other, _), pair in self.pairs.items() if other == task)
            base, thinking = pair.load("base"), pair.load("thinking")
            sizes = [m.net.config.get_text_config().vocab_size for m in (base, thinking)]
            depth, context = (min(getattr(m, name) for m in (base, thinking))
                              for name in ("depth", "context"))
            longest = max(len(base.ask(pair.rules, x)) for x in pair.problems(self.n_problems))
            if sizes[0] != sizes[1]:
                raise BadInput(f"thinking_model is {thinking.name}, which knows {sizes[1]} tokens; "
                               f"allowed beside {base.name} is a model that knows its {sizes[0]}.")
            places.check_vocabularies(base, thinking)
            if max(self.layers) >= depth:
                raise BadInput(f"layers is {self.layers}; allowed here are 0 to {depth - 1}.")
            if longest + self.max_new_tokens > context:
                raise BadInput(f"max_new_tokens is {self.max_new_tokens}; allowed is at most "
                               f"{context - longest}, since prompts of {task} take {longest} "
                               f"tokens and these models have room for {context}.")
            vectors.upper(base.net, 0)

    # --- what is fitted

    def study(self, n_traces: int, latents: list, autoencoder: str) -> None:
        """Finds the kinds of steps of each thinking model; latents: numbers that are tried."""
        self._study(dict.fromkeys(self.pairs, latents), n_traces, autoencoder)

    def _study(self, latents, n_traces, autoencoder):
        jobs = {key: dict(pair=pair, n_traces=n_traces, max_new_tokens=self.max_new_tokens,
                          sizes=latents[key], layers=self.layers, autoencoder=autoencoder)
                for key, pair in self.pairs.items()}
        done = parallel.run(self.pool, vectors.study, jobs)
        self.studies = {key: done[key] for key in jobs}

    def fit_base(self) -> None:
        """Vectors in the base, at every layer."""
        self._fit({(key, "base"): dict(layers=self.layers) for key in self.pairs})

    def fit_controls(self) -> None:
        """Vectors in other bodies and by other ways at every layer, and with true kinds, where the
        task knows them, at the hybrid's."""
        jobs = {}
        for key, pair in self.pairs.items():
            twin, layer = ["twin"] * self.has(key[0], "twin"), self.setting(key[0]).layer
            rare = [steering_arms.RARE] * pair.has(steering_arms.RARE)
            jobs |= {(key, body): dict(layers=self.layers)
                     for body in [*twin, *rare, "untrained", "unrelated"]}
            jobs |= {(key, f"{body}, true kinds"): dict(layers=[layer])
                     for body in ["base", *twin] if pair.rules.OPENINGS}
        self._fit(jobs)
        self.others = parallel.run(self.pool, vectors.fit_others, {
            key: dict(pair=pair, found=self.studies[key], layers=self.layers,
                      steps=self.fit_steps) for key, pair in self.pairs.items()})

    def _fit(self, jobs):
        """Fits in bodies: (pair's key, body) -> {layers}."""
        for (key, body), job in jobs.items():
            role, _, kinds = body.partition(", ")
            found = self.studies[key]
            job |= dict(pair=self.pairs[key], body=role, steps=self.fit_steps,
                        found=vectors.with_true_kinds(self.pairs[key], found) if kinds else found)
            if role == "unrelated":
                job |= dict(body="untrained", body_seed=1000 + self.pairs[key].seed)
        for (key, body), fitted in parallel.run(self.pool, vectors.fit, jobs).items():
            self.bodies.setdefault(key, {}).setdefault(body, {}).update(fitted)

    # --- what is chosen

    def setting(self, task: str, arm: str = "hybrid") -> Setting:
        """The setting of an arm; that of the hybrid where there is nothing to choose."""
        return self.settings.get((task, arm)) or self.settings[task, "hybrid"]

    def steers_too_much(self, task: str) -> bool:
        """Whether no setting of the hybrid kept to MOST of the tokens, so that `pick` chose among
        all."""
        here = self.tried[(self.tried["task"] == task) & (self.tried["arm"] == "hybrid")]
        layer, strength, _ = self.setting(task)
        return share(here[(here["layer"] == layer) & (here["strength"] == strength)]) > MOST

    def validate(self) -> None:
        """Chooses layer and strength of the hybrid, by `pick`."""
        self.settings |= {(task, "hybrid"): Setting(self.layers[0], self.strengths[0])
                          for task in self.tasks}
        self.tried, runs = self._validate(["hybrid"])
        for task, seed in self.pairs:
            self.seen[task, seed] = seen(runs[task, seed, ("hybrid", self.setting(task))],
                                         self.studies[task, seed].n)

    def validate_controls(self) -> None:
        """Chooses the settings of all other arms, by `pick`; models answer beside them."""
        rest = [name for name in steering_arms.ARMS if name != "hybrid"]
        self.tried = pd.concat([self.tried, self._validate(rest)[0]], ignore_index=True)

    def _validate(self, names):
        """(outcomes, runs) of all settings of some arms; the best ones become their settings."""
        arms, tried = {}, {}
        for key in self.pairs:
            fits = self.fits(key)
            for name in names:
                settings = steering_arms.settings(name, fits)
                if name in ("base", "thinking"):  # a share of the gap needs them
                    settings = [fits.setting]
                made = {x: steering_arms.make(name, fits._replace(setting=x)) for x in settings}
                arms |= {(*key, (name, x)): arm for x, arm in made.items() if arm is not None}
                tried[key[0], name] = settings
        runs = self._answer(arms, n_problems=self.n_validation, n=1, split="validation")
        table = pd.concat([self._table(arms[key], *key[:2], key[2][0], run).assign(
            choice=tried[key[0], key[2][0]].index(key[2][1]), **key[2][1]._asdict())
            for key, run in runs.items()], ignore_index=True)
        for (task, name), rows in table.groupby(["task", "arm"], sort=False):
            if name not in ("base", "thinking"):
                self.settings[task, name] = tried[task, name][int(pick(rows, ["choice"])["choice"])]
        return table.astype({"threshold": float}), runs

    # --- what is run

    def fits(self, key: tuple) -> Fits:
        """All that is known of a pair, for its arms, with the hybrid's setting."""
        return Fits(self.pairs[key], self.studies[key], self.setting(key[0]), self.bodies[key],
                    self.others.get(key, {}), *self.seen.get(key, (0.0, [])), self.strengths,
                    self.thresholds)

    def run(self, ids: list[str] | None = None) -> pd.DataFrame:
        """Lets every arm of `steering_arms`, or those of `ids`, answer the test problems, each at
        its setting."""
        arms = {}
        for key in self.pairs:
            fits = self.fits(key)
            made = {name: steering_arms.make(name, fits._replace(
                setting=self.setting(key[0], name))) for name in ids or steering_arms.ARMS}
            arms |= {(*key, name): arm for name, arm in made.items() if arm is not None}
        runs = self._answer(arms, n_problems=self.n_problems, n=self.n_samples)
        self.runs = {(task, name, seed): run for (task, seed, name), run in runs.items()}
        self.outcomes = pd.concat([self._table(arms[key], *key, run)
                                   for key, run in runs.items()], ignore_index=True)
        return self.outcomes

    def _table(self, arm, task, seed, name, run):
        start = arm.runs if arm.gate else "base" if arm.decides else None
        start = STARTS.get(start, start)
        return run.frame().assign(task=task, arm=name, seed=seed, start=start, bits=run.bits)

    def _answer(self, arms, **how):
        """(task, seed, anything) -> Run, in the order of `arms`."""
        how |= {"max_new_tokens": self.max_new_tokens}
        jobs = {}
        for key, pair in self.pairs.items():
            mine = [x for x in arms if x[:2] == key]
            for first in range(0, len(mine), TOGETHER):
                some = {x: arms[x] for x in mine[first:first + TOGETHER]}
                jobs[key, first] = dict(pair=pair, arms=some, **how)
        done = {}
        for runs in parallel.run(self.pool, hybrid.run, jobs).values():
            done |= runs
        return {key: done[key] for key in arms}

    def with_partner(self, role: str, n_traces: int, autoencoder: str) -> "Experiment":
        """The same experiment with another model in the thinking model's part, at the same setting:
        with its own traces, categories and vectors, and with the arms that are compared run."""
        pairs = {key: pair._replace(thinking=pair.name(role)) for key, pair in self.pairs.items()}
        other = replace(self, pairs=pairs)
        other.settings = self.settings
        other._study({key: [study.n] for key, study in self.studies.items()}, n_traces, autoencoder)
        other._fit({(key, "base"): dict(layers=[self.setting(key[0]).layer]) for key in pairs})
        other.run(["base", *partner_ids(role)])
        return other

    def information(self) -> pd.DataFrame:
        """Bits an answer: what each gate that asks the thinking model hands over (`hybrid.Run`),
        and as the arm "guess" what an answer holds. task, arm, quantity, value, low, high; of tasks
        that tell the latter."""
        out = []
        for task, here in self.outcomes.groupby("task", sort=False):
            pair = self.first(task)[0]
            if not hasattr(pair.rules, "answer_bits"):
                continue
            holds = np.mean([pair.rules.answer_bits(x) for x in pair.problems(self.n_problems)])
            out.append((task, "guess", "answer_bits", float(holds), None, None))
            for arm, rows in here[here["bits"] > 0].groupby("arm", sort=False):
                handed = rows.assign(handed=rows["bits"] * rows["steered"] / rows["answers"])
                value, low, high = map(float, stats.interval(lambda m: m, scores(handed, "handed")))
                out.append((task, arm, "gate_bits", value, max(0.0, low), high))
        return pd.DataFrame(out, columns=["task", "arm", "quantity", "value", "low", "high"])

    # --- what is looked at

    def first(self, task: str) -> tuple:
        """(Pair, TraceStudy, {layer: Fitted} in the base) of a task's first seed."""
        key = next(key for key in self.pairs if key[0] == task)
        return self.pairs[key], self.studies[key], self.bodies.get(key, {}).get("base")

    def categories(self) -> pd.DataFrame:
        """Of each pair: traces, steps, chosen layer and latents, agreement of two seeds, share of
        variance rebuilt, and whether the traces are successful ones."""
        out = []
        for (task, seed), s in self.studies.items():
            best = max(s.candidates, key=lambda row: row["agreement"])
            out.append(dict(task=task, seed=seed, traces=len(s.traces.texts),
                            steps=len(s.traces.steps), layer=s.layer, latents=s.n,
                            agreement=best["agreement"], rebuilt=best["rebuilt"],
                            successful=s.traces.successful))
        return pd.DataFrame(out)

    def category_scores(self) -> pd.DataFrame:
        """Of each task that knows its kinds of steps: method, seed, purity, normalised mutual
        information on held-out steps."""
        return pd.DataFrame([(task, method, seed, purity, information)
                             for (task, seed), s in self.studies.items()
                             for method, (purity, information) in s.scores.items()],
                            columns=["task", "method", "seed", "purity", "information"])

    def losses(self) -> pd.DataFrame:
        """Of each task and layer, means over seeds: nats a token of the bias on random spans and of
        the vectors on steps, and the vectors' norm as a share of the residual stream's."""
        rows = [dict(task=task, layer=layer, bias=x.losses[0], vectors=x.losses[1],
                     norm=float(x.both.norm(dim=1).mean()) / x.norm)
                for (task, _), bodies in self.bodies.items() for layer, x in bodies["base"].items()]
        return pd.DataFrame(rows).groupby(["task", "layer"], sort=False).mean().reset_index()

    def sizes(self) -> pd.DataFrame:
        """How much was fitted: task, arm, parameters, their share of the base's own."""
        out = []
        for task in self.tasks:
            pair, study, fitted = self.first(task)
            layer = self.setting(task).layer
            dims, (_, net, _) = len(fitted[layer].bias), self.others[task, pair.seed][layer]
            net = sum(p.numel() for p in net.parameters())
            vectors_, probe = (study.n + 1) * dims, (study.n + 1) * (dims + 1)
            own = pair.load("base").net.num_parameters()
            out += [dict(task=task, arm=arm, parameters=n, share=n / own) for arm, n in (
                ("hybrid", vectors_), ("bias-only", dims), ("one-vector", dims),
                ("network", study.n * dims + net), ("probe", vectors_ + probe))]
        return pd.DataFrame(out)

    def shown(self, task: str) -> tuple[str, list]:
        """A test problem that the base fails and hybrid and thinking model solve, if there is one:
        (its question, [(arm, whether right, its answer with steered tokens in brackets)])."""
        seed = next(seed for other, seed in self.pairs if other == task)
        pair = self.pairs[task, seed]
        runs = {name: self.runs[task, name, seed] for name in ("base", "hybrid", "thinking")}
        right = {name: run.correct[:, 0] for name, run in runs.items()}
        i = int((right["hybrid"] & right["thinking"] & ~right["base"]).argmax())
        model = pair.load("base")
        return pair.rules.question(pair.problems(self.n_problems)[i]), [
            (name, bool(right[name][i]), bracketed(model, run.ids[i][0], run.which[i][0]))
            for name, run in runs.items()]

    def misplaced(self) -> list[str]:
        """Runs that steered more or fewer positions than were meant: there should be none."""
        out = []
        for key, run in self.runs.items():
            meant = sum(k >= 0 for row in run.which for one in row for k in one)
            if run.n_steered != meant:
                out.append(f"{key}: {run.n_steered} positions steered, {meant} meant")
        return out


def seen(run: hybrid.Run, n: int) -> tuple[float, list[float]]:
    """(share of tokens at which it steered, how often which of n categories)."""
    which = np.concatenate(sum(run.which, []))
    counts = np.bincount(which[which >= 0], minlength=n) + 1e-9
    return run.n_steered / run.tokens.sum(), (counts / counts.sum()).tolist()


def partner_ids(role: str) -> dict:
    """Arms of an experiment with a partner -> what they are called beside the others."""
    return {"thinking": role, "thinking-decides-base-executes": f"{role}-decides-base-executes",
            "hybrid": f"hybrid-with-{role}"}


def bracketed(model: Model, ids: list, which: list) -> str:
    """The text of token ids, those with a category (>= 0) in brackets."""
    text, out = model.decode(ids), ""
    for (start, end), category in zip(model.spans(ids), which, strict=True):
        piece = text[start:end]
        space = piece[:len(piece) - len(piece.lstrip())]
        out += f"{space}[{piece.strip()}]" if category >= 0 else piece
    return out


# --- what is compared -----------------------------------------------------------------------------

def scores(rows: pd.DataFrame, column: str = "correct") -> np.ndarray:
    """(seeds, problems) of the outcomes of one arm at one setting."""
    return rows.pivot(index="seed", columns="problem", values=column).to_numpy(float)


def measures(rows: pd.DataFrame) -> dict:
    """Quantity -> stats.Interval of the outcomes of one arm at one setting."""
    steered, drawn = scores(rows, "steered"), scores(rows, "drawn")
    return {"pass_at_k": stats.mean_interval(scores(rows)),
            "trace_pass_at_k": stats.mean_interval(scores(rows, "trace")),
            "steered_share": stats.share(steered, drawn),
            "truncated": stats.mean_interval(scores(rows, "truncated")),
            "tokens_per_answer": stats.interval(lambda m: m, scores(rows, "tokens"))}


def conditions(quantity: str) -> dict:
    """What a measured quantity is measured at: accuracies are of one sample."""
    return {"k": 1} if quantity in quantities.NEEDS else {}


def summary(outcomes: pd.DataFrame) -> pd.DataFrame:
    """A row a task, arm and quantity: value, low, high, and the seeds that the arm ran on.

    Beside `measures` there is gap_recovered, (arm - start) / (thinking - start) in accuracy, paired
    over problems and seeds; no row where there is no clear gap.
    """
    out = []
    for task, here in outcomes.groupby("task", sort=False):
        of = {arm: rows for arm, rows in here.groupby("arm", sort=False)}
        for arm, rows in of.items():
            found, start = measures(rows), rows["start"].iloc[0]
            seeds = sorted(rows["seed"].unique().tolist())
            if start is not None:
                found["gap_recovered"] = stats.gap_recovered(scores(rows), *(
                    scores(of[x][of[x]["seed"].isin(seeds)]) for x in (start, "thinking")))
            out += [dict(task=task, arm=arm, quantity=quantity, value=float(x.value),
                         low=float(x.low), high=float(x.high), seeds=seeds)
                    for quantity, x in found.items() if x is not None]
    return pd.DataFrame(out)


def differences(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Shares of the gap compared in pairs, on the same problems and seeds: task, arm, against,
    value, low, high, of QUESTIONS and of the hybrid against every other control that starts from
    the base. No row of a task without a clear gap, or of an arm that was not run."""
    out = []
    for task, here in outcomes.groupby("task", sort=False):
        start = here.groupby("arm", sort=False)["start"].first()
        of = {name: scores(rows) for name, rows in here.groupby("arm", sort=False)}
        asked = [(x.arm, x.against) for x in QUESTIONS]
        asked += [("hybrid", name) for name in of
                  if names.get(name).role == "control" and start[name] == "base"]
        for arm, against in dict.fromkeys(asked):
            found = {arm, against} <= set(of) and stats.gap_difference(
                of[arm], of[against], of["base"], of["thinking"])
            if found:
                value, low, high = map(float, found)
                out.append(dict(task=task, arm=arm, against=against, value=value, low=low,
                                high=high))
    return pd.DataFrame(out, columns=["task", "arm", "against", "value", "low", "high"])


def answers(compared: pd.DataFrame) -> pd.DataFrame:
    """`differences` of QUESTIONS, with the question's fields and what the interval `says`."""
    asked = pd.DataFrame(QUESTIONS)
    table = asked.merge(compared, on=["arm", "against"])
    says = [row.yes if row.low > 0 else row.no if row.high < 0 else "these data do not tell"
            for row in table.itertuples()]
    order = {task: i for i, task in enumerate(compared["task"].unique())}
    return table.assign(says=says).sort_values("task", key=lambda x: x.map(order), kind="stable")


def curve(tried: pd.DataFrame, setting: Callable[[str, str], Setting]) -> pd.DataFrame:
    """Validation outcomes of every arm over its strengths or thresholds, at the layer that was
    chosen for it: task, arm, `share` of the tokens steered, accuracy, and `recovered`, the share of
    the gap between the models' accuracies. setting: (task, arm) -> the chosen one."""
    out = []
    for task, here in tried.groupby("task", sort=False):
        low, high = (here[here["arm"] == arm]["correct"].mean() for arm in ("base", "thinking"))
        for (arm, layer, _), rows in here.groupby(["arm", "layer", "choice"], sort=False):
            if layer == setting(task, arm).layer and rows["steered"].any():
                accuracy = rows["correct"].mean()
                recovered = (accuracy - low) / (high - low) if high > low else np.nan
                out.append(dict(task=task, arm=arm, share=share(rows), accuracy=accuracy,
                                recovered=recovered))
    return pd.DataFrame(out, columns=["task", "arm", "share", "accuracy", "recovered"])


def steps_taken(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Of each task and arm: bits handed over a steered token, share of attempts that are valid,
    backtracks a problem and answer."""
    out = []
    for (task, arm), rows in outcomes.groupby(["task", "arm"], sort=False):
        out.append(dict(
            task=task, arm=arm, bits=rows.groupby("seed", sort=False)["bits"].first().mean(),
            valid=rows["valid_attempts"].sum() / max(rows["attempts"].sum(), 1),
            backtracks=rows["backtracks"].sum() / rows["answers"].sum()))
    return pd.DataFrame(out)


def staircase(outcomes: pd.DataFrame, ids: list[str]) -> pd.DataFrame:
    """Accuracy gained or lost from each arm of `ids` to the next: task, arm, value, low, high."""
    out = []
    for task, here in outcomes.groupby("task", sort=False):
        of = {name: scores(rows) for name, rows in here.groupby("arm", sort=False)}
        there = [name for name in ids if name in of]
        for above, name in zip(there, there[1:]):
            value, low, high = map(float, stats.difference(of[name], of[above]))
            out.append(dict(task=task, arm=name, value=value, low=low, high=high))
    return pd.DataFrame(out)
