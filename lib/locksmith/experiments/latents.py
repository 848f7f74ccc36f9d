"""Chapter 4: what is measured of a task with all seeds, and the facts that come of it.

A `LatentStudy` holds one task's pairs and, as the chapter goes on, what was read and how steering
went.
The functions below it record facts; a page shows them.
"""

from collections.abc import Hashable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from types import ModuleType
from typing import NamedTuple

import numpy as np

from locksmith import parallel, params, results, stats
from locksmith.experiments import categories, directions, probes, reading, uncertainty
from locksmith.experiments.directions import COUNTS, Target, noise, slope
from locksmith.experiments.places import (
    ANOTHER,
    IN_WORDS,
    Sizes,
    behaviours,
    documents,
    headline,
    places,
)
from locksmith.experiments.reading import AGAIN, STABLE, Form, ProbeSpec
from locksmith.loading import ROLES, Model, Pair
from locksmith.results import Recorder

COLUMN = {name: i for i, name in enumerate(COUNTS)}
COMPARED = ("base", "thinking")
WAYS = ("choice", "all")
PROBE_STRENGTH = 0.5  # at which layers, windows and checkpoints are steered
MEASURED = ("base-vector", "noise")  # arms of which more than the rate is told
ON_THE_WAY = ("probe_auroc", "cosine", "behaviour_rate", "behaviour_slope")


class Dosed(NamedTuple):
    """Which steering: towards a behaviour, of the model in a role, at "choice" places or "all", by
    an arm of arms.yml."""
    behaviour: str
    role: str
    where: str
    arm: str


@dataclass
class LatentStudy:
    """One task. pairs: one a seed; roles: the models there are; layers: behaviour -> block;
    readings and knowing ({role: `Knowing`}), one a seed; doses: Dosed -> (seeds, strengths,
    problems, COUNTS), in words of the first count alone; written: the same of all counts at the
    strengths `written_at`; early: Form -> doses at -, 0 and + PROBE_STRENGTH; way: (role, how far)
    -> Milestone.
    """
    pairs: list[Pair]
    sizes: Sizes
    strengths: list[float]
    n_problems: int  # test problems, on which is steered
    roles: list[str] = field(init=False)
    layers: dict[str, int] = field(default_factory=dict)
    layer_scores: dict = field(default_factory=dict)
    readings: list[reading.Reading] = field(default_factory=list)
    found: list[categories.Found | None] = field(default_factory=list)
    knowing: list[dict] = field(default_factory=list)
    doses: dict[Dosed, np.ndarray] = field(default_factory=dict)
    written: dict[Dosed, np.ndarray] = field(default_factory=dict)
    early: dict = field(default_factory=dict)
    way: dict = field(default_factory=dict)

    def __post_init__(self):
        self.roles = [role for role in ROLES if all(pair.has(role) for pair in self.pairs)]

    @property
    def task(self) -> str:
        return self.pairs[0].task

    @property
    def rules(self) -> ModuleType:
        return self.pairs[0].rules

    @property
    def headline(self) -> str:
        return headline(self.rules)

    @property
    def compared(self) -> list[str]:
        """The base and, where there is one, the thinking model."""
        return [role for role in COMPARED if role in self.roles]

    @property
    def missing(self) -> list[str]:
        """Roles without a model: their arms leave the page."""
        return [role for role in ROLES if role not in self.roles]

    @property
    def layer(self) -> int:
        """The headline's layer, where it has events enough for one."""
        return self.layers.get(self.headline, 0)

    @property
    def depth(self) -> int:
        """The number of blocks that were read."""
        return 1 + max(probe.layer for probe in self.readings[0].scores if probe.layer is not None)

    @property
    def written_at(self) -> list[float]:
        """The strengths at which whole answers are written. In words the rates are exact without
        them, and what is asked of answers is whether more of the behaviour helps."""
        return self.strengths if self.rules.OPENINGS else [s for s in self.strengths if s >= 0]

    @property
    def n_answers(self) -> int:
        """About how many answers the chapter samples by steering: five arms at each strength and
        both ways, in words two of each kind of direction."""
        arms = 5 * len(WAYS) if self.rules.OPENINGS else 2 * len(MEASURED)
        each = arms * len(self.written_at) * self.n_problems
        return len(self.pairs) * len(self.compared) * each

    def of(self, behaviour: str) -> dict:
        """The condition of facts about a behaviour: none for the headline."""
        return {} if behaviour == self.headline else {"behaviour": behaviour}

    # --- measuring --------------------------------------------------------------------------------

    def choose_layers(self, pool: Executor) -> None:
        """`directions.layer_scores` with the first seed, and the best block by them."""
        jobs = {b: {"pair": self.pairs[0], "behaviour": b, "sizes": self.sizes,
                    "strength": PROBE_STRENGTH} for b in behaviours(self.rules)}
        self.layer_scores = parallel.run(pool, directions.layer_scores, jobs)
        self.layers = {b: directions.best_layer(self.rules, scores)
                       for b, scores in self.layer_scores.items() if scores}

    def read(self, pool: Executor, windows: list[tuple]) -> None:
        jobs = {pair.seed: {"pair": pair, "roles": self.roles, "layers": self.layers,
                            "sizes": self.sizes, "windows": windows} for pair in self.pairs}
        self.readings = list(parallel.run(pool, reading.read, jobs).values())

    def categorise(self, pool: Executor, samples: int) -> None:
        """Categories of the thinking model's steps, where nothing is known of them."""
        if behaviours(self.rules) != IN_WORDS or "thinking" not in self.roles:
            return
        jobs = {pair.seed: {"pair": pair, "roles": self.roles, "layer": self.layer,
                            "sizes": self.sizes._replace(documents=samples)}
                for pair in self.pairs}
        self.found = list(parallel.run(pool, categories.find, jobs).values())

    def steer(self, pool: Executor) -> None:
        """Dose-response of the headline in all models and both ways, of the other behaviour in the
        pair at choices."""
        wanted = [(b, role, where) for b in self.layers for role in self.roles for where in WAYS
                  if role != "untrained"
                  and (b == self.headline or (role in COMPARED and where == "choice"))]
        wanted = [w for w in wanted if all(self.arms(*w, i) for i in range(len(self.pairs)))]
        jobs = {(b, role, where, i): {
            "pair": pair, "role": role, "target": Target(b, self.layers[b], where),
            "vectors": self.arms(b, role, where, i), "strengths": self.strengths}
            for b, role, where in wanted for i, pair in enumerate(self.pairs)}
        self.doses = self._dosed(pool, jobs)
        self.written = self.doses if self.rules.OPENINGS else self._dosed(pool, {
            key: job | {"strengths": self.written_at,
                        "vectors": {arm: job["vectors"][arm] for arm in MEASURED}}
            for key, job in jobs.items()
            if (key[0], key[2]) == (self.headline, "choice")}, written=True)

    def _dosed(self, pool, jobs, written=False):
        """Dosed -> the tables of all seeds, of jobs (behaviour, role, where, seed) -> options."""
        done, out = self._steered(pool, jobs, written), {}
        for which in dict.fromkeys(key[:3] for key in jobs):
            by_seed = [done[*which, i] for i in range(len(self.pairs))]
            out |= {Dosed(*which, arm): table for arm, table in _in_all(by_seed).items()}
        return out

    def _steered(self, pool, jobs, written=False):
        """What each job of steering gives: counts of whole answers, or in words, where those are
        not `written`, exact rates."""
        how = {"n_problems": self.n_problems}
        if written or self.rules.OPENINGS:
            run, how["max_new_tokens"] = directions.steer, self.sizes.max_new_tokens
        else:
            run = directions.steer_exactly
        return parallel.run(pool, run, {key: job | how for key, job in jobs.items()})

    def steer_early(self, pool: Executor) -> None:
        """The thinking model, steered at choices by the base's vectors from windows before the
        place and from stable places."""
        b, jobs = self.headline, {}
        for i, (pair, read) in enumerate(zip(self.pairs, self.readings)):
            if not {b, "thinking"} <= {*self.layers, *self.roles} or not self.arms(
                    b, "thinking", "choice", i):
                return
            vectors = {form: read.scaled(m.vector(), "thinking", b)
                       for form, m in read.means.items()
                       if (form.reader, form.at) == ("base", b)
                       and (form.window or form.kind == "stable")}
            if vectors:
                jobs[i] = {"pair": pair, "role": "thinking", "target": Target(b, self.layers[b]),
                           "vectors": vectors, "strengths": [-PROBE_STRENGTH, 0, PROBE_STRENGTH]}
        if len(jobs) == len(self.pairs):
            self.early = _in_all(list(self._steered(pool, jobs).values()))

    def ask(self, pool: Executor, samples: int) -> None:
        """Whether the base and the thinking model know that they are wrong; samples: own
        answers."""
        jobs = {(role, i): {"pair": pair, "role": role, "layer": self.layer,
                            "n_test": self.n_problems,
                            "sizes": self.sizes._replace(documents=samples),
                            "strengths": self.written_at}
                for role in self.compared for i, pair in enumerate(self.pairs)}
        done = parallel.run(pool, uncertainty.uncertainty, jobs)
        self.knowing = [{role: done[role, i] for role in self.compared}
                        for i in range(len(self.pairs))]

    def follow(self, pool: Executor, n_test: int) -> None:
        """The checkpoints on the way to the base and the thinking model, of the first seed."""
        if self.headline not in self.layers:
            return
        target = Target(self.headline, self.layers[self.headline])
        jobs = {(role, done): {"pair": self.pairs[0], "folder": folder, "target": target,
                               "sizes": self.sizes, "strength": PROBE_STRENGTH, "n_test": n_test}
                for role in self.compared for done, folder in self.pairs[0].way(role)}
        found = parallel.run(pool, directions.milestone, jobs)
        self.way = {key: milestone for key, milestone in found.items() if milestone}

    # --- what it comes to -------------------------------------------------------------------------

    def auroc(self, *which: Hashable, **more: Hashable) -> stats.Interval | None:
        """AUROC of a `ProbeSpec` over seeds and problems, None where a seed had too few events."""
        found = self.scored(ProbeSpec(*which, **more))
        return found and probes.auroc_interval(found)

    def scored(self, spec: ProbeSpec) -> list[probes.Scored] | None:
        """What a probe says at its places, one a seed; None where a seed had too few events."""
        found = [read.scores.get(spec) for read in self.readings]
        return None if None in found else found

    def cosine(self, first: Form, other: Form | None,
               halves: bool = False) -> stats.Interval | None:
        """Cosine of two vectors; other None: the most alike of all other behaviours' in the
        thinking model; halves: from halves of the problems that share none. None where one is
        missing."""
        found = []
        for read in self.readings:
            others = [other] if other else [form for form in read.means if _of_another(form, first)]
            if not others or any(form not in read.means for form in (first, *others)):
                return None
            pairs = [(read.means[first], read.means[form]) for form in others]
            found.append([(directions.halves(a)[0], directions.halves(c)[1]) for a, c in pairs]
                         if halves else pairs)
        return directions.cosine_interval(found)

    def corrected_cosine(self, first: Form, other: Form) -> stats.Interval | None:
        """Cosine of two vectors without the noise of few events; None where it cannot be told."""
        found = [(read.means.get(first), read.means.get(other)) for read in self.readings]
        return None if any(None in pair for pair in found) else directions.corrected_cosine(found)

    def slope(self, dosed: Dosed) -> stats.Interval:
        """Of the behaviour's rate against strength."""
        return stats.interval(lambda m: m, self._slopes(dosed))

    def slope_difference(self, dosed: Dosed, other: Dosed) -> stats.Interval:
        """The slope minus another's, paired by problem and random numbers."""
        return stats.difference(self._slopes(dosed), self._slopes(other))

    def _slopes(self, dosed):
        return slope(self.doses[dosed][..., COLUMN["rate"]], self.strengths)

    def change(self, dosed: Dosed, strength: float, column: str) -> stats.Interval:
        """A count of whole answers at a strength minus that without steering, paired."""
        table = self.written[dosed][..., COLUMN[column]]
        return stats.difference(table[:, self.written_at.index(strength)],
                                table[:, self.written_at.index(0)])

    def arms(self, b: str, role: str, where: str, i: int) -> dict[str, np.ndarray]:
        """The vectors that steer one model of a seed, by arm, all of one length; {} without the
        main ones. At every position the controls of other behaviours are left out."""
        read, pair = self.readings[i], role in COMPARED
        wanted = {"base-vector": ("base", b)}
        if pair and "thinking" in self.roles:
            wanted["thinking-vector"] = ("thinking", b)
        elif not pair:
            wanted["own-vector"] = (role, b)
        main = len(wanted)
        if pair and b == self.headline:
            wanted["base-point-vector"] = ("base", b, b, "point")
            if where == "choice":
                wanted["wrong-behaviour"] = ("base", b, ANOTHER[b])
                going_on = "try" if self.rules.OPENINGS else "step"
                wanted["wrong-point-vector"] = ("base", b, going_on, "point")
        found = {arm: read.vector(reader, b, *rest) for arm, (reader, _, *rest) in wanted.items()}
        if any(found[arm] is None for arm in list(wanted)[:main]):
            return {}
        found = {arm: vector for arm, vector in found.items() if vector is not None}
        found["noise"] = noise(found["base-vector"], self.pairs[i].seed)
        return {arm: read.scaled(vector, role, b) for arm, vector in found.items()}


def _in_all(by_seed):
    """{name: the tables of all seeds, stacked} of the names that every seed has."""
    return {name: np.stack([tables[name] for tables in by_seed]) for name in by_seed[0]
            if all(name in tables for tables in by_seed)}


def _of_another(form, first):
    """Whether a vector is the thinking model's of another behaviour, at the same layer."""
    return (form.reader == "thinking" and form.at == first.at and form.behaviour != first.behaviour
            and form.kind != "stable" and form.source == "documents" and form.window is None)


# --- what a page tells before ---------------------------------------------------------------------

def used(study: LatentStudy) -> list[list[str]]:
    """Rows of (task, behaviour, share of the corpus' steps, uses a problem by base and thinking
    model), as earlier stages recorded them; [] where no corpus is known."""
    own, rows = params.load(study.pairs[0].profile)["checkpoints"], []
    corpus, lab = earlier(own, f"train/{study.task}_base"), earlier(own, "00")
    counted = [one["counts"] for one in corpus.extra.get("corpus", [])] if corpus else []
    for b, quantity in (("wait", "backtracks"), ("check", "checks")) if counted else ():
        n = [one.get(b, 0) / sum(one.get(kind, 0) for kind in study.rules.OPENINGS)
             for one in counted]
        uses = [lab and lab.get(study.task, role, quantity) for role in COMPARED]
        rows.append([study.task, b, f"{np.mean(n):.2%}",
                     *(f"{use.value:.2f}" if use else "–" for use in uses)])
    return rows


def earlier(profile: str, chapter: str) -> Recorder | None:
    """What an earlier run recorded, None where there was none."""
    there = (results.ROOT / profile / f"{chapter}.json").exists()
    return Recorder.reopen(profile, chapter) if there else None


def example(study: LatentStudy, model: Model) -> str:
    """The shortest document that holds the headline behaviour, its choices marked `>>` and the
    other places `·`."""
    texts = documents(study.pairs[0], model, min(8, study.sizes.n_problems), study.sizes.documents)
    with_it = {}
    for text in texts:
        found = places(study.rules, model, [text])
        if study.headline in found.opens:
            with_it[len(text.ids), tuple(text.ids)] = text, found
    if not with_it:
        return f"no document holds a {study.headline}"
    text, found = with_it[min(with_it)]
    marks = dict(zip(found.place.tolist(), np.where(found.choice[study.headline], " >>", " ·")))
    edges = [-1, *sorted({*marks, len(text.ids) - 1})]
    return "".join(model.decode(text.ids[a + 1:z + 1]) + marks.get(z, "") + " " * (z in marks)
                   for a, z in zip(edges, edges[1:]))


def opened(study: LatentStudy, source: str, behaviour: str) -> str:
    """What opens at the places of a choice, of the first seed, as text."""
    counts = study.readings[0].counts[source, behaviour]
    return ", ".join(f"{k} {v}" for k, v in counts.items() if k != "of all") or "none"


# --- facts ----------------------------------------------------------------------------------------

def record_probes(rec: Recorder, study: LatentStudy) -> None:
    """Every model at the behaviour's layer, and what it has to be compared with."""
    for b, at in study.layers.items():
        def keep(arm, probe, b=b, **conditions):
            rec.fact(study.task, arm, "probe_auroc", study.auroc(*probe), **conditions,
                     **study.of(b), n_problems=study.sizes.n_problems,
                     n_samples=study.sizes.documents)
        for role in study.roles:
            keep(role, ProbeSpec(b, role, at))
        keep("embeddings", ProbeSpec(b, "base", -1), on="base")
        keep("shuffled-labels", ProbeSpec(b, "base", at, variant="shuffled"), on="base")
        keep("own-forecast", ProbeSpec(b, "base", None, variant="forecast"), on="base")
        keep("author", ProbeSpec(b, "author", None, variant="author"))
        _record_against(rec, study, b)
        for role in ("base", "untrained"):
            keep(role, ProbeSpec(b, role, at, kind="point"), variant="point")
            keep(role, ProbeSpec(b, role, at, source="traces"), variant="traces")
        keep("embeddings", ProbeSpec(b, "base", -1, kind="point"), on="base", variant="point")


def _record_against(rec, study, b):
    """The base's probe beside those that read the same places: other models', and the habit."""
    own = ProbeSpec(b, "base", study.layers[b])
    of = {**study.of(b), "n_problems": study.sizes.n_problems,
          "n_samples": study.sizes.documents}
    mine = study.scored(own)
    for role in study.roles:
        other = study.scored(own._replace(reader=role))
        if role != "base" and mine and other:
            rec.fact(study.task, "base", "auroc_difference", probes.difference(mine, other),
                     against=role, **of)
    ceiling = study.scored(ProbeSpec(b, "author", None, variant="author"))
    if mine and ceiling:
        rec.fact(study.task, "base", "decodable_share", probes.decodable_share(mine, ceiling), **of)


def record_categories(rec: Recorder, study: LatentStudy, samples: int) -> list[list]:
    """Probes for the commonest category and the cosine of the base's direction with the thinking
    model's. Returns rows (task, seed, share of the steps, agreement of two fits, an example)."""
    if not study.found or None in study.found:
        return []
    of = {"behaviour": "category", "n_problems": study.sizes.n_problems, "n_samples": samples}
    arms = {"embeddings": "embeddings", "shuffled": "shuffled-labels"}
    for reader in study.found[0].scores:
        rec.fact(study.task, arms.get(reader, reader), "probe_auroc",
                 probes.auroc_interval([found.scores[reader] for found in study.found]), **of,
                 **({"on": "base"} if reader in arms else {}))
    pairs = [[(found.means["base"], found.means["thinking"])] for found in study.found]
    rec.fact(study.task, "base", "cosine", directions.cosine_interval(pairs), against="thinking",
             **of)
    return [[study.task, pair.seed, f"{found.share:.2f}", f"{found.agreement:.2f}", found.example]
            for pair, found in zip(study.pairs, study.found)]


def record_cosines(rec: Recorder, study: LatentStudy) -> None:
    """The base's vector beside other models', other behaviours' and random ones."""
    for b in study.layers:
        def keep(arm, interval, b=b, **conditions):
            rec.fact(study.task, arm, "cosine", interval, **conditions, **study.of(b),
                     n_problems=study.sizes.n_problems, n_samples=study.sizes.documents)
        own, point = Form("base", b, b), Form("base", b, b, "point")
        for role in study.roles:
            if role != "base":
                keep("base", study.cosine(own, own._replace(reader=role)), against=role)
                keep("base", study.cosine(point, point._replace(reader=role)), against=role,
                     variant="point")
        if "thinking" in study.roles:
            keep("base", study.cosine(own, own._replace(reader="thinking"), halves=True),
                 against="thinking", variant="halves")
            keep("other-behaviours", study.cosine(own, None))
            rec.fact(study.task, "base", "corrected_cosine",
                     study.corrected_cosine(own, own._replace(reader="thinking")),
                     against="thinking", **study.of(b), n_problems=study.sizes.n_problems,
                     n_samples=study.sizes.documents)
        keep("base", study.cosine(own, own, halves=True), against="base", variant="halves")
        vectors = [read.vector("base", b) for read in study.readings]
        if all(vector is not None for vector in vectors):
            drawn = [abs(directions.cosine(vectors[0], noise(vectors[0], i))) for i in range(1000)]
            rec.fact(study.task, "random-directions", "cosine",
                     (np.mean(drawn), *stats.ends(drawn)), **study.of(b),
                     n_problems=None)
            rec.extra[f"length {study.task} {b}"] = [
                np.linalg.norm(vector) / read.norms["base", b]
                for vector, read in zip(vectors, study.readings)]


def record_doses(rec: Recorder, study: LatentStudy) -> None:
    """Slopes against strength; what it costs or gains in accuracy and tokens, at choices."""
    for dosed in study.doses:
        where = {"position": "everywhere"} if dosed.where == "all" else {}
        of = {"on": dosed.role, **study.of(dosed.behaviour), **where}
        rec.fact(study.task, dosed.arm, "behaviour_slope", study.slope(dosed), **of)
        for against in ("noise", "wrong-behaviour") if dosed.arm == "base-vector" else ():
            other = dosed._replace(arm=against)
            if other in study.doses:
                rec.fact(study.task, dosed.arm, "slope_difference",
                         study.slope_difference(dosed, other), against=against, **of)
        if dosed.behaviour == study.headline and not where and dosed.arm in MEASURED:
            for s in study.written_at:
                for column, quantity in (("correct", "accuracy_change"),
                                         ("tokens", "tokens_change")) if s > 0 else ():
                    rec.fact(study.task, dosed.arm, quantity, study.change(dosed, s, column),
                             on=dosed.role, strength=s)


def asymmetry(study: LatentStudy, role: str, where: str) -> str | None:
    """The published asymmetry, that the base's vector moves its successor and leaves the base
    unmoved: what became of it. A model is moved if its slope and the paired difference to noise
    are above 0."""
    def moved(which):
        key = Dosed(study.headline, which, where, "base-vector")
        if key not in study.doses:
            return None
        against = study.slope_difference(key, key._replace(arm="noise"))
        return bool(study.slope(key).low > 0 and against.low > 0)

    base, successor = moved("base"), moved(role)
    if None in (base, successor):
        return None
    if successor:
        return "refuted: the base moves too" if base else "reproduced"
    return "refuted: only the base moves" if base else "neither moves"


def record_timing(rec: Recorder, study: LatentStudy, windows: list[tuple]) -> None:
    """Probes and vectors from windows of tokens before the place, for the headline."""
    b = study.headline
    for window in windows if b in study.layers else ():
        position = f"{'-'.join(map(str, dict.fromkeys(window)))} tokens before"
        for role in study.compared:
            rec.fact(study.task, role, "probe_auroc",
                     study.auroc(b, role, study.layers[b], window=window), position=position,
                     n_problems=study.sizes.n_problems, n_samples=study.sizes.documents)
        form = Form("base", b, b, window=window)
        if form in study.early:
            rec.fact(study.task, "base-vector", "behaviour_slope", early_slope(study, form),
                     on="thinking", position=position)


def early_slope(study: LatentStudy, form: Form) -> stats.Interval:
    return stats.interval(lambda m: m, slope(study.early[form][..., COLUMN["rate"]],
                                             [-PROBE_STRENGTH, 0, PROBE_STRENGTH]))


def record_stability(rec: Recorder, study: LatentStudy) -> None:
    """The share of places that bring the behaviour back, and the vector of those that do."""
    for source in ("documents", "traces"):
        for b in study.layers:
            for role in study.compared:
                back = [read.stable.get((source, b, role)) for read in study.readings]
                if any(times is None for times in back):
                    continue
                times = np.concatenate(back)
                rec.fact(study.task, role, "stable_share",
                         stats.wilson((times >= STABLE).sum(), len(times)), variant=source,
                         **study.of(b), n_problems=None, n_samples=AGAIN)
                rec.extra[f"came back {study.task} {source} {b} {role}"] = np.bincount(
                    times, minlength=AGAIN + 1)
    form = Form("base", study.headline, study.headline, "stable")
    if form in study.early:
        rec.fact(study.task, "stable-vector", "behaviour_slope", early_slope(study, form),
                 on="thinking", variant="documents")


def knows(study: LatentStudy, role: str, *which: Hashable) -> list[probes.Scored] | None:
    """One `Scored` a seed of `uncertainty.Knowing`, None where a seed had too few answers."""
    found = [know[role].scores.get(which) for know in study.knowing]
    return None if None in found else found


def record_uncertainty(rec: Recorder, study: LatentStudy, samples: int) -> None:
    """Whether a right answer can be read, how well the probe is calibrated, and what steering
    does."""
    layer = study.layer
    size = {"n_problems": study.sizes.n_problems, "n_samples": samples}
    for role in study.compared:
        for moment in uncertainty.MOMENTS:
            found = knows(study, role, moment, "own", layer)
            if found is None:
                continue
            rec.fact(study.task, role, "correctness_auroc", probes.auroc_interval(found),
                     position=moment, **size)
            error = np.mean([uncertainty.calibration(s.scores, s.labels)[0] for s in found])
            rec.fact(study.task, role, "calibration_error", error, position=moment, **size)
            for arm, reader in (("untrained", "untrained"), ("shuffled-labels", "shuffled")):
                control = knows(study, role, moment, reader, layer)
                rec.fact(study.task, arm, "correctness_auroc", control and
                         probes.auroc_interval(control), position=moment, on=role, **size)
        forms = [know[role].means for know in study.knowing]
        if all(forms):
            rec.fact(study.task, "base", "cosine", directions.cosine_interval(
                [[(form["base"], form["thinking"])] for form in forms]), against="thinking",
                behaviour="right answer", **size)
        doses = [know[role].dose for know in study.knowing]
        for name in uncertainty.ARMS if None not in doses else ():
            right = np.stack([dose[name][..., COLUMN["correct"]] for dose in doses])
            zero = right[:, study.written_at.index(0)]
            for i, s in enumerate(study.written_at):
                if s:
                    rec.fact(study.task, f"{name}-direction", "accuracy_change",
                             stats.difference(right[:, i], zero), on=role, strength=s)


def record_way(rec: Recorder, study: LatentStudy, n_test: int) -> None:
    """Each checkpoint on the way: probe, vector, behaviour and what its own vector does."""
    final = max((key for key in study.way if key[0] == "base"), default=None)
    size = {"n_problems": n_test, "n_samples": 1, "seeds": [study.pairs[0].seed]}
    for (role, done), found in study.way.items():
        def keep(arm, quantity, value, done=done, **conditions):
            rec.fact(study.task, arm, quantity, value, step=done, **conditions, **size)
        rates = found.dose[..., COLUMN["rate"]]
        keep(role, "probe_auroc", probes.auroc_interval([found.scored]))
        keep(role, "vector_length", found.length)
        keep(role, "behaviour_rate", stats.mean_interval(rates[None, 1]))
        keep("own-vector", "behaviour_slope", stats.interval(lambda m: m, slope(
            rates[None], [-PROBE_STRENGTH, 0, PROBE_STRENGTH])), on=role)
        if final:
            pairs = [[(found.means, study.way[final].means)]]
            keep(role, "cosine", directions.cosine_interval(pairs), against="base")
