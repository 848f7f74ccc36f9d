"""Cognitive tools: one problem worked on by several separate calls of the same model.

Ebouky et al. (arXiv 2506.12115, section 3) give a model four tools, each a call of that model with
a prompt of its own: understand the question, recall what is related, examine the answer, backtrack.
A base has read no instructions, so here a tool is the beginning of a text that it knows:

    understand  the problem's own prompt            the first step alone, before any conclusion
    recall      a plain fact, `tasks.fact`          the arithmetic of the answer, known by heart
    examine     a critique, `tasks.review`          the model's own verdict on the answer
    backtrack   the answer without the step found wrong, and an opening to go on with

The paper's models choose their tools; a base cannot, so a fixed schedule does: understand, then for
some rounds draft, recall, examine, backtrack, until the verdict is "right". All tools work on one
answer, which stays a single continuation of the problem's prompt. A tool is a function (call,
works) that changes the `PartialAnswer`s to many problems; call makes a separate call of the model
for each, in one batch. A new one, for TOOLS and the schedule:

    def hurry(call, works):
        so = call.model.encode("so")
        for work, ids in zip(works, call(works, [work.prompt + so for work in works], 9)):
            work.ids = so + ids

Not in the paper: DUMMIES, the same calls without their content.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np

from locksmith import decoding, engine
from locksmith.errors import BadInput
from locksmith.loading import Model

REVIEW, PROSE = 64, 128  # tokens; no review that the lab's base has read, or in words, is longer
LARGEST = "-9999"  # no result of a plain fact is longer
_FACT = re.compile(r"(?<![\w.])(?=(-?\d+) ([-+*/]) (\d+) = (-?\d+)(?![\d.]*\d))")


@dataclass
class PartialAnswer:
    """One answer in the making. ids: token ids after the prompt; stop: ids that end it;
    verdict: "right", "wrong" or None, on the answer as it stands; flaw: the conclusion the review
    says no to, counted from 0 (-1: none is named, so the last); facts: (a, op, b) -> what was
    recalled; full: no room to go on. So far: tokens generated, forced ones included, calls,
    results replaced, verdicts "wrong"."""
    problem: object
    key: int
    prompt: list
    stop: frozenset
    ids: list = field(default_factory=list)
    verdict: str | None = None
    flaw: int = -1
    facts: dict = field(default_factory=dict)
    full: bool = False
    tokens: int = 0
    calls: int = 0
    replaced: int = 0
    wrong: int = 0

    @property
    def ended(self) -> bool:
        return bool(self.ids) and self.ids[-1] in self.stop

    def force(self, ids: Sequence[int]) -> None:
        self.ids = [*self.ids, *ids]
        self.tokens += len(ids)


@dataclass
class Call:
    """ask(prompts, rooms, stop, temperature, keys) -> the ids written; cap: longest answer."""
    ask: Callable
    model: Model
    task: ModuleType
    cap: int

    def __call__(self, works: list[PartialAnswer], prompts: list[list[int]],
                 most: int | Sequence[int], stop: Collection[int] = (),
                 temperature: float = 1.0) -> list[list[int]]:
        """Continuations (lists of ids, the stop included) of prompts[i], paid for by works[i].

        most: tokens at most, one number or one a prompt; the context may leave fewer. Where it
        leaves none, no call is made and nothing is written. stop:
        ids that end it beside the model's own.
        """
        rooms = [min(int(m), self.model.context - len(p))
                 for m, p in zip(np.broadcast_to(most, len(prompts)), prompts, strict=True)]
        found, keys = [[] for _ in prompts], []
        able = [i for i, room in enumerate(rooms) if room > 0]
        for i in able:  # no call of a work repeats the random numbers of another
            keys.append(1000 * works[i].key + works[i].calls)
            works[i].calls += 1
        written = able and self.ask([prompts[i] for i in able], [rooms[i] for i in able],
                                    {*self.model.stop, *stop}, temperature, keys)
        for i, ids in zip(able, written, strict=True):
            found[i] = ids
            works[i].tokens += len(ids)
        return found

    def opening(self, kind: str) -> list[int]:
        """Ids of the first opening of a kind of step; none where the task knows no kinds."""
        openings = self.task.OPENINGS
        return self.model.encode(" ".join(openings[kind][0])) if openings else []

    def openings(self) -> set[int]:
        """The ids that every step begins with, where the task knows them."""
        return {self.model.encode(" ".join(opening))[0]
                for openings in self.task.OPENINGS.values() for opening in openings}

    def cut(self, ids: list[int], place: int, behind: str = "") -> list[int]:
        """The ids of the first `place` characters of an answer and of a text behind them."""
        text, kept = self.model.decode(ids), sum(e <= place for _, e in self.model.spans(ids))
        while not text[:place].startswith(self.model.decode(ids[:kept])):
            kept -= 1  # the first bytes of a character that was cut off
        rest = text[len(self.model.decode(ids[:kept])):place] + behind
        return ids[:kept] + (self.model.encode(rest) if rest.strip() else [])


Tool = Callable[[Call, list[PartialAnswer]], None]


def asking(model: Model, seed: int) -> Callable:
    """`ask` for a `Call`: continuations by the model, prompts[i]'s of at most rooms[i] tokens."""
    def ask(prompts, rooms, stop, temperature, keys):
        found = [None] * len(prompts)
        # Rows are drawn with the largest room of their group; what exceeds a row's own is cut off.
        for group in decoding.fitting_groups([*map(len, prompts)], [-r for r in rooms], 0,
                                             model.context):
            drawn = engine.sample(
                model.net, [prompts[i] for i in group], max_new_tokens=rooms[group[0]], stop=stop,
                temperature=temperature, seed=seed, keys=[keys[i] for i in group])
            for i, row in zip(group, drawn.ids(), strict=True):
                found[i] = row[:rooms[i]]
        return found
    return ask


# --- the tools ------------------------------------------------------------------------------------

def understand(call: Call, works: list[PartialAnswer]) -> None:
    """The first step is worked out by a call of its own, which has to open with an attempt."""
    opening, stop = call.opening("try"), call.openings()
    for work in works:
        work.force(opening)
    prompts = [work.prompt + work.ids for work in works]
    for work, ids in zip(works, call(works, prompts, call.cap - len(opening), stop), strict=True):
        work.ids = [*work.ids, *(i for i in ids if i not in call.model.stop | stop)]
        first = call.task.steps(call.model.decode(work.ids))[:1]
        if not call.task.OPENINGS and first:  # no token stops it there
            work.ids = call.cut(work.ids, first[0].end)


def draft(call: Call, works: list[PartialAnswer]) -> None:
    """Not a tool: answers go on to their end; one found wrong that no tool changed begins anew."""
    for work in works:
        if work.ended and work.verdict == "wrong":
            work.ids, work.verdict = [], None
    works = [w for w in works if not w.ended]
    prompts = [w.prompt + w.ids for w in works]
    most = [call.cap - len(w.ids) for w in works]
    for work, ids in zip(works, call(works, prompts, most), strict=True):
        work.ids = [*work.ids, *ids]
        work.full = not work.ended


def recall(call: Call, works: list[PartialAnswer]) -> None:
    """The result of each arithmetic step is asked for as a fact, once; the first that the answer
    has otherwise is replaced, and the answer goes on from there."""
    model, new = call.model, []
    texts = [model.decode(work.ids) for work in works]
    for work, text in zip(works, texts):
        new += [(work, fact) for fact in dict.fromkeys(fact for fact, _, _ in facts(text))
                if fact not in work.facts]
    prompts = [model.begin(call.task.fact_prompt(*fact)) for _, fact in new]
    written = call([w for w, _ in new], prompts, len(model.encode(LARGEST)), temperature=0)
    for (work, fact), ids in zip(new, written, strict=True):
        said = re.match(r"\s*(-?\d+)", model.decode(ids))
        work.facts[fact] = said and said[1]
    for work, text in zip(works, texts):
        for fact, start, result in facts(text):
            if work.facts[fact] not in (None, result):
                work.ids = call.cut(work.ids, start, work.facts[fact])
                work.replaced += 1
                break


def facts(text: str) -> list:
    """((a, op, b), place of the result, the result) of every arithmetic step in a text."""
    return [((m[1], m[2], m[3]), m.start(4), m[4]) for m in _FACT.finditer(text)]


def examine(call: Call, works: list[PartialAnswer]) -> None:
    """The likeliest critique of each ended answer, and the verdict in it."""
    model, works = call.model, [w for w in works if w.ended]
    prompts = [model.begin(call.task.review(w.problem, model.decode(w.ids))) for w in works]
    most = REVIEW if call.task.OPENINGS else PROSE
    for work, ids in zip(works, call(works, prompts, most, temperature=0), strict=True):
        text = model.decode(ids)
        said = re.findall(r"\b(?:yes|no)\b", text)
        work.verdict = call.task.verdict(text)
        work.flaw = said.index("no") if "no" in said else -1
        work.wrong += work.verdict == "wrong"
        work.full = work.verdict is None  # no room for a verdict: the answer stays as it is


def backtrack(call: Call, works: list[PartialAnswer]) -> None:
    """Cuts an answer off before the conclusion found wrong; without an examiner, before its last.

    It goes on with a backtrack after a failed check. Elsewhere, where no author goes back (the
    chain's `wait` takes back a step, and a step too few needs one more), with an attempt. Where
    steps have no kinds, the last but one is cut off too:
    the step before the conclusion is to be made again.
    """
    for work in works:
        if work.ended and work.verdict != "right" and not work.full:
            text = call.model.decode(work.ids)
            steps = call.task.steps(text)
            places = ([s.start for s in steps if s.kind == "conclude"] if call.task.OPENINGS else
                      [s.start for s in steps[-2:-1]]) or [0]
            place = places[min(work.flaw, len(places) - 1)]
            work.ids, work.verdict = call.cut(work.ids, place), None
            failed = call.model.decode(work.ids).split()[-1:] == ["no"]
            work.force(call.opening("wait" if failed else "try"))


# --- calls without content ------------------------------------------------------------------------

def wasted(tool: Tool) -> Tool:
    """The same calls, but the answers stay as they were."""
    def dummy(call, works):
        before = [w.ids for w in works]
        tool(call, works)
        for work, ids in zip(works, before, strict=True):
            work.ids = ids
    return dummy


def swapped(call: Call, works: list[PartialAnswer]) -> None:
    """The same reviews, but each work gets the verdict on another: only their rate is kept."""
    examine(call, works)
    works = [w for w in works if w.ended and w.verdict]
    found = [(w.verdict, w.flaw) for w in works]
    for i, work in enumerate(works):  # half a list away, so that it is on another problem
        work.verdict, work.flaw = found[(i + len(works) // 2) % len(works)]


TOOLS = {"understand": understand, "recall": recall, "examine": examine, "backtrack": backtrack}
DUMMIES = {"understand": wasted(understand), "recall": wasted(recall), "examine": swapped,
           "backtrack": backtrack}
DRAFTING, JUDGING = ("draft", "recall", "draft"), ("examine", "backtrack")


def solve(ask: Callable, model: Model, task: ModuleType, problems: list, *, max_new_tokens: int,
          tools: Collection[str] = tuple(TOOLS), rounds: int = 3,
          dummy: bool = False) -> list[PartialAnswer]:
    """Works on problems by the fixed schedule.

    tools: names of those in use; without any, a plain draft. A round is DRAFTING and JUDGING; in
    the last, nothing would follow from a verdict. dummy: calls without content.
    """
    for name, value, ok, allowed in (
            ("tools", tools, set(tools) <= set(TOOLS), "some of " + ", ".join(TOOLS)),
            ("rounds", rounds, rounds >= 1, "at least 1")):
        if not ok:
            raise BadInput(f"{name} is {value!r}; allowed: {allowed}.")
    chest = {"draft": draft, **{name: (DUMMIES if dummy else TOOLS)[name] for name in tools}}
    call = Call(ask, model, task, max_new_tokens)
    works = going = [PartialAnswer(problem, key, model.ask(task, problem), model.stop)
                     for key, problem in enumerate(problems)]
    if "understand" in chest:
        chest["understand"](call, works)
    for step in range(rounds):
        for name in DRAFTING + JUDGING if step < rounds - 1 else DRAFTING:
            if name in chest:
                chest[name](call, going)
        going = [w for w in going if not w.full and (not w.ended or w.verdict == "wrong")]
    return works
