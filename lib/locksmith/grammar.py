"""The grammar of the lab's traces: behaviours, their openings, and how a trace splits into steps.

Every behaviour (try, check, wait, conclude) has four openings of one to three words: it is a
category and not a token. The first word of an opening occurs nowhere else, which makes the split of
a trace into steps unambiguous.
"""

import re

from locksmith.tasks import Step

OPENINGS = {
    "try": (("try",), ("maybe",), ("let", "us", "see"), ("what", "about")),
    "check": (("check",), ("verify",), ("is", "it", "good"), ("test", "that")),
    "wait": (("wait",), ("hmm",), ("go", "back"), ("not", "this", "way")),
    "conclude": (("so",), ("thus",), ("the", "answer"), ("i", "would", "say")),
}
BEHAVIOUR = {opening[0]: behaviour for behaviour, openings in OPENINGS.items()
             for opening in openings}
# Behaviours that no pre-training document holds, written with words of the other family's or the
# own prompt: only the traces that teach a distilled model have them.
TAUGHT = {"from": "measure", "find": "inverse"}
END = ("<eos>", "next")  # a trace of one author ends with the document or where the next takes over
_LENGTH = {opening[0]: len(opening) for openings in OPENINGS.values() for opening in openings}


def opening_length(words: list[str], i: int) -> int:
    """Number of words of the opening that starts at `i`, 0 if none does."""
    return _LENGTH.get(words[i], 0)


def steps(words: list[str]) -> list[tuple[str | None, list[str]]]:
    """Splits a trace into (behaviour, content) pairs; content are the words after the opening.

    Words before the first opening become a step of behaviour None: a trace that is not in the
    grammar is kept, not repaired. Reading stops at `<eos>` or `next`.
    """
    out, i = [], 0
    while i < len(words) and words[i] not in END:
        behaviour = BEHAVIOUR.get(words[i]) or TAUGHT.get(words[i])
        if behaviour:
            out.append((behaviour, []))
            i += _LENGTH.get(words[i], 1)
        else:
            if not out:
                out.append((None, []))
            out[-1][1].append(words[i])
            i += 1
    return out


def ended(words: list[str]) -> bool:
    """Whether the author of a trace ended it, rather than being cut off."""
    return any(word in END for word in words)


def labels(words: list[str]) -> list[str]:
    """Per word: the behaviour if it belongs to an opening (a decision), otherwise "execute"."""
    out = ["execute"] * len(words)
    for i, word in enumerate(words):
        for j in range(i, min(i + _LENGTH.get(word, 0), len(words))):
            out[j] = BEHAVIOUR[word]
    return out


# --- the same for text: words with single spaces between them ------------------------------------


def words(text: str | list[str]) -> list[str]:
    """The words of a text (str); a list of words passes through."""
    return text.split() if isinstance(text, str) else list(text)


def spans(text: str | list[str]) -> list[Step]:
    """The steps of a text as `tasks.Step`s: an opening and what follows it, up to the next opening
    or the end of the author's trace. Words before the first opening belong to no step."""
    text = text if isinstance(text, str) else " ".join(text)
    opens = BEHAVIOUR | TAUGHT
    opened, last = [], 0
    for word in re.finditer(r"\S+", text):
        if word[0] in END:
            break
        if word[0] in opens:
            opened.append((word.start(), last, opens[word[0]]))
        last = word.end()
    ends = [end for _, end, _ in opened[1:]] + [last]
    return [Step(start, end, kind) for (start, _, kind), end in zip(opened, ends)]


def stated(text: str) -> list[tuple[int, int]]:
    """Where conclusions state their answers: what follows their openings."""
    out = []
    for step in spans(text):
        found = list(re.finditer(r"\S+", text[step.start:step.end]))
        opening = _LENGTH.get(found[0][0], 1)
        if step.kind == "conclude" and opening < len(found):
            out.append((step.start + found[opening].start(), step.end))
    return out
