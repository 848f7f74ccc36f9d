"""YAML 1.2 as DVC reads it, held to what every reader takes for the same.

Refused is what two readers understand differently (`010`, `1:30`, `yes`) and what hides a value: a
key that stands twice, a tag, an alias of itself. Errors name the file and the line.
"""

import functools
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    ScalarEvent,
)
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.resolver import implicit_resolvers

from locksmith.errors import BadInput

DEEPEST, MOST = 40, 100_000  # levels of mappings and lists; values, those of an alias counted again

# What one version of YAML or the other takes for a truth value, a number or a date, and what both
# take for the same one (no reader obeys 1.1 on y and n). Exponents alone may differ: DVC writes
# 2e-05, which is text to YAML 1.1.
_SPECIAL = [pattern for _, tag, pattern, _ in implicit_resolvers
            if tag.rpartition(":")[2] in ("bool", "int", "float", "timestamp")]
_SAME = re.compile(r"[yYnN]|[Tt]rue|TRUE|[Ff]alse|FALSE|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
                   r"|[-+]?((0|[1-9][0-9]{0,299})(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


def read(path: str | Path) -> Any:
    """What a file holds: dicts with texts as keys, lists, texts, numbers, truth values and None.

    Raises BadInput in one sentence for a file that `text` or `parse` refuses.
    """
    return parse(text(path), path)


def text(path: str | Path) -> str:
    """A file's text. Raises BadInput where it cannot be read, is not UTF-8 or has a null byte."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read ({error.strerror}); run from the book's root."
        ) from None
    try:
        found = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{path} is not UTF-8 at line {line}.") from None
    if "\0" in found:
        line = found.count("\n", 0, found.index("\0")) + 1
        raise BadInput(f"{path} is no text: it has a null byte at line {line}.")
    return found


def parse(source: str, name: str | Path) -> Any:
    """What a text holds, as `read` gives it; name: what errors call it, such as its file.

    Raises BadInput in one sentence for what is no YAML or understood in two ways.
    """
    try:
        _check_events(source, name)
        value = YAML(typ="safe", pure=True).load(source)
    except MarkedYAMLError as error:
        line = (error.problem_mark or error.context_mark).line + 1
        problem = (error.problem or error.context).partition(" with value")[0]
        raise BadInput(f"{name} is not valid YAML at line {line}: {problem}.") from None
    except ReaderError as error:
        line = source.count("\n", 0, error.position) + 1
        raise BadInput(f"{name} is not valid YAML at line {line}: it has the character "
                       f"{chr(error.character)!r}.") from None
    _check_values(value, name)
    return value


def line(source: str, *steps: str | int) -> int:
    """The line of a YAML or JSON text on which stands what the steps, keys of mappings and places
    in lists, lead to; that of the last step that is there."""
    node = _composed(source)
    for step in steps:
        inner = node.value if isinstance(node.value, list) else []
        if isinstance(step, int):
            found = inner[step:step + 1]
        else:
            found = [pair[1] for pair in inner if isinstance(pair, tuple)
                     and pair[0].value == step]
        if not found:
            break
        node = found[0]
    return node.start_mark.line + 1


@functools.lru_cache(maxsize=1)
def _composed(source):
    return YAML(typ="safe", pure=True).compose(source)


def _check_events(source, name):
    """Refuses what the loader would read in silence, or not survive."""
    open_anchors, anchors = [], set()  # those around an event (None: without one), all so far
    for event in YAML(typ="safe", pure=True).parse(source):
        found = None
        if isinstance(event, ScalarEvent) and event.implicit[0]:
            value = event.value
            if any(p.match(value) for p in _SPECIAL) and not _SAME.fullmatch(value):
                found = (f"`{value[:40]}`, which readers of YAML take for different values; write "
                         "a plain decimal number, true or false, or put it in quotes")
        elif isinstance(event, CollectionStartEvent):
            open_anchors.append(event.anchor)
            if len(open_anchors) > DEEPEST:
                found = f"more than {DEEPEST} levels of mappings and lists"
        elif isinstance(event, CollectionEndEvent):
            open_anchors.pop()
        elif isinstance(event, AliasEvent) and event.anchor in open_anchors:
            found = f"the alias *{event.anchor} inside what it stands for"
        elif isinstance(event, DocumentStartEvent) and event.version:
            found = "a %YAML directive; leave it out"
        if getattr(event, "tag", None):
            found = f"the tag {event.tag}; leave it out"
        anchor = None if isinstance(event, AliasEvent) else getattr(event, "anchor", None)
        if anchor in anchors:
            found = f"the anchor &{anchor} for a second time"
        anchors |= {anchor} - {None}
        if found:
            raise BadInput(f"{name}, line {event.start_mark.line + 1} has {found}.")


def _check_values(value, name):
    """Refuses keys that are no text, and what aliases make too deep or too large."""
    left, met = [(value, 0)], 0
    while left:
        value, depth = left.pop()
        met += 1
        if depth > DEEPEST or met > MOST:
            raise BadInput(f"{name} is too large: its aliases stand for more than {DEEPEST} levels "
                           f"or {MOST} values.")
        if isinstance(value, dict):
            odd = [key for key in value if not isinstance(key, str)]
            if odd:
                raise BadInput(f"{name} has the key {odd[0]!r}; allowed is text.")
            left += [(entry, depth + 1) for entry in value.values()]
        elif isinstance(value, list):
            left += [(entry, depth + 1) for entry in value]
