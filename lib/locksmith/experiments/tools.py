"""Cognitive tools: one problem worked on by several separate calls of the same model.

Ebouky et al. (arXiv 2506.12115, section 3) give a model four tools, each a call of that model with
a prompt of its own: understand the question, recall what is related, examine the answer, backtrack.
The lab's base has read documents of three kinds, and a tool is the beginning of one of them:

    understand  solved  <bos> make ... : try        the first step alone, before any conclusion
    recall      facts   <bos> 3 * 7 =               the arithmetic of the trace, known by heart
    examine     review  <bos> review make ... ;     the model's own verdict on the trace
    backtrack           the trace without the conclusion found wrong, and an opening to go on with

The paper's models choose their tools; one of 0.9 M parameters cannot, so a fixed schedule does:
understand, then for some rounds draft, recall, examine, backtrack, until the verdict is "right".
All tools work on one trace, which stays a single continuation of the problem's prompt and is the
answer. A tool is a function (call, works) that changes the `Work` of many problems; call makes a
separate call of the model for each, in one batch. A new one, for TOOLS and the schedule:

    def hurry(call, works):
        for work, words in zip(works, call(works, [[*w.problem.prompt, "so"] for w in works], 9)):
            work.trace = ["so", *words]

Not in the paper: DUMMIES, the same calls without their content.
"""

from dataclasses import dataclass, field

import numpy as np

from locksmith import decoding, engine, grammar, vocabulary
from locksmith.errors import BadInput

END = tuple(vocabulary.decode(vocabulary.STOP))
REVIEW = 64  # words; no review that the base has read is longer
OPENING = {behaviour: list(openings[0]) for behaviour, openings in grammar.OPENINGS.items()}


@dataclass
class Work:
    """One answer in the making. trace: words after the prompt; verdict: "right", "wrong" or None,
    on the trace as it stands; flaw: the conclusion the review says no to, counted from 0 (-1: none
    is named, so the last); facts: (a, op, b) -> words recalled; full: no room to go on. So far:
    tokens generated, forced ones included, calls, results replaced, verdicts "wrong"."""
    problem: object
    key: int
    trace: list = field(default_factory=list)
    verdict: str | None = None
    flaw: int = -1
    facts: dict = field(default_factory=dict)
    full: bool = False
    tokens: int = 0
    calls: int = 0
    replaced: int = 0
    wrong: int = 0

    @property
    def ended(self):
        return bool(self.trace) and self.trace[-1] in END

    def force(self, words):
        self.trace = [*self.trace, *words]
        self.tokens += len(words)


@dataclass
class Call:
    """ask(prompts, rooms, stop, temperature, keys) -> the words written; cap: longest answer."""
    ask: object
    context: int
    cap: int

    def __call__(self, works, prompts, most, stop=END, temperature=1.0):
        """Continuations (lists of words, the stop included) of prompts[i], paid for by works[i].

        most: words at most, one number or one a prompt; the context may leave fewer. Where it
        leaves none, no call is made and nothing is written.
        """
        rooms = [min(int(m), self.context - len(p))
                 for m, p in zip(np.broadcast_to(most, len(prompts)), prompts, strict=True)]
        found, keys = [[] for _ in prompts], []
        able = [i for i, room in enumerate(rooms) if room > 0]
        for i in able:  # no call of a work repeats the random numbers of another
            keys.append(1000 * works[i].key + works[i].calls)
            works[i].calls += 1
        written = able and self.ask([prompts[i] for i in able], [rooms[i] for i in able], stop,
                                    temperature, keys)
        for i, words in zip(able, written, strict=True):
            found[i] = words
            works[i].tokens += len(words)
        return found


def asking(model, seed):
    """`ask` for a `Call`: continuations by the model, prompts[i]'s of at most rooms[i] words."""
    context = model.config.get_text_config().max_position_embeddings

    def ask(prompts, rooms, stop, temperature, keys):
        ids, found = [vocabulary.encode(p) for p in prompts], [None] * len(prompts)
        # Rows are drawn with the largest room of their group; what exceeds a row's own is cut off.
        for group in decoding.fitting_groups([*map(len, ids)], [-r for r in rooms], 0, context):
            drawn = engine.sample(
                model, [ids[i] for i in group], max_new_tokens=rooms[group[0]],
                stop=vocabulary.encode(stop), temperature=temperature, seed=seed,
                keys=[keys[i] for i in group])
            for i, row in zip(group, drawn.ids(), strict=True):
                found[i] = [vocabulary.VOCABULARY[t] for t in row[:rooms[i]]]
        return found
    return ask


# --- the tools ------------------------------------------------------------------------------------

def understand(call, works):
    """The first step is worked out by a call of its own, which has to open with an attempt."""
    for work in works:
        work.force(OPENING["try"])
    stop = (*END, *grammar.BEHAVIOUR)
    prompts, most = [[*w.problem.prompt, *w.trace] for w in works], call.cap - len(OPENING["try"])
    for work, words in zip(works, call(works, prompts, most, stop), strict=True):
        work.trace = [*work.trace, *(word for word in words if word not in stop)]


def draft(call, works):
    """Not a tool: traces go on to their end; one found wrong that no tool changed begins anew."""
    for work in works:
        if work.ended and work.verdict == "wrong":
            work.trace, work.verdict = [], None
    works = [w for w in works if not w.ended]
    prompts = [[*w.problem.prompt, *w.trace] for w in works]
    most = [call.cap - len(w.trace) for w in works]
    for work, words in zip(works, call(works, prompts, most), strict=True):
        work.trace = [*work.trace, *words]
        work.full = not work.ended


def recall(call, works):
    """The result of each arithmetic step is asked for as a fact, once; the first that the trace has
    otherwise is replaced, and the trace goes on from there."""
    new = [(w, fact) for w in works for fact in dict.fromkeys(fact for _, fact in _facts(w.trace))
           if fact not in w.facts]
    prompts = [["<bos>", *fact, "="] for _, fact in new]
    written = call([w for w, _ in new], prompts, 1, temperature=0)
    for (work, fact), words in zip(new, written, strict=True):
        work.facts[fact] = words
    for work in works:
        for i, fact in _facts(work.trace):
            known = work.facts[fact]
            if known != [work.trace[i]] and "".join(known).isdigit():
                work.trace, work.replaced = work.trace[:i] + known, work.replaced + 1
                break


def _facts(trace):
    """(index of the result, (a, op, b)) of every arithmetic step in a trace."""
    return [(i + 1, tuple(trace[i - 3:i])) for i in range(3, len(trace) - 1)
            if trace[i] == "=" and trace[i - 2] in vocabulary.OPERATORS]


def examine(call, works):
    """The likeliest review of each ended trace, and the verdict in it."""
    works = [w for w in works if w.ended]
    prompts = [["<bos>", "review", *w.problem.prompt[1:], *w.trace[:-1], ";"] for w in works]
    for work, words in zip(works, call(works, prompts, REVIEW, temperature=0), strict=True):
        said = [word for word in words if word in ("yes", "no")]
        work.verdict = next((word for word in words if word in ("right", "wrong")), None)
        work.flaw = said.index("no") if "no" in said else -1
        work.wrong += work.verdict == "wrong"
        work.full = work.verdict is None  # no room for a verdict: the answer stays as it is


def backtrack(call, works):
    """Cuts a trace off before the conclusion found wrong; without an examiner, before its last.

    It goes on with a backtrack after a failed check. Elsewhere, where no author goes back (the
    chain's `wait` takes back a step, and a step too few needs one more), with an attempt.
    """
    for work in works:
        if work.ended and work.verdict != "right" and not work.full:
            places = [i for i, word in enumerate(work.trace)
                      if grammar.BEHAVIOUR.get(word) == "conclude"] or [0]
            at = places[min(work.flaw, len(places) - 1)]
            work.trace, work.verdict = work.trace[:at], None
            work.force(OPENING["wait" if work.trace[-1:] == ["no"] else "try"])


# --- calls without content ------------------------------------------------------------------------

def wasted(tool):
    """The same calls, but the traces stay as they were."""
    def dummy(call, works):
        before = [w.trace for w in works]
        tool(call, works)
        for work, trace in zip(works, before, strict=True):
            work.trace = trace
    return dummy


def swapped(call, works):
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


def solve(ask, problems, *, context, max_new_tokens, tools=tuple(TOOLS), rounds=3, dummy=False):
    """Works on problems by the fixed schedule; returns a list of `Work`.

    tools: names of those in use; without any, a plain draft. A round is DRAFTING and JUDGING; in
    the last, nothing would follow from a verdict. dummy: calls without content.
    """
    for name, value, ok, allowed in (
            ("tools", tools, set(tools) <= set(TOOLS), "some of " + ", ".join(TOOLS)),
            ("rounds", rounds, rounds >= 1, "at least 1")):
        if not ok:
            raise BadInput(f"{name} is {value!r}; allowed: {allowed}.")
    chest = {"draft": draft, **{name: (DUMMIES if dummy else TOOLS)[name] for name in tools}}
    call = Call(ask, context, max_new_tokens)
    works = going = [Work(problem, key) for key, problem in enumerate(problems)]
    if "understand" in chest:
        chest["understand"](call, works)
    for step in range(rounds):
        for name in DRAFTING + JUDGING if step < rounds - 1 else DRAFTING:
            if name in chest:
                chest[name](call, going)
        going = [w for w in going if not w.full and (not w.ended or w.verdict == "wrong")]
    return works
