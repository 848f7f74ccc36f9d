"""arms.yml: what models and arms are called, what they are for, and how figures show them."""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from locksmith import errors, plain_yaml, quantities

ID = r"[a-z0-9]+(-[a-z0-9]+)*"
COLOURS = ("blue", "orange", "green", "red", "purple", "brown", "pink", "silver", "yellow", "cyan",
           "grey")  # seaborn's colour-blind palette in its order, and a darker grey
LINES = {"solid": "-", "dashed": "--", "dotted": ":", "dashdot": "-."}


class Arm(NamedTuple):
    """One entry of arms.yml; `line` and `marker` as Matplotlib writes them."""

    id: str
    label: str
    role: str
    colour: str
    line: str
    marker: str
    says: str


class Treatment(NamedTuple):
    """An arm's id, and the conditions under which it was measured, as (name, value) pairs."""

    id: str
    conditions: tuple = ()

    @property
    def given(self) -> dict:
        """The conditions of its facts."""
        return dict(self.conditions)

    @property
    def whole(self) -> bool:
        """Whether it is applied at all positions of an answer."""
        return "position" not in self.given

    @property
    def label(self) -> str:
        """How tables name it; a bare rate would not tell what it is."""
        told = ("rate " * (name == "learning_rate") + quantities.plain(value)
                for name, value in self.conditions)
        return ", ".join([get(self.id).label, *told])


def treatment(arm: str, **conditions: object) -> Treatment:
    """few-shot with 2 examples: treatment("few-shot", examples=2). None: no such condition."""
    return Treatment(arm, tuple((k, v) for k, v in conditions.items() if v is not None))


def load(path: str | Path = "arms.yml") -> dict[str, Arm]:
    """Every arm by its id, in the file's order. BadInput where an entry cannot be used."""
    return _parsed(plain_yaml.text(path), path)


@cache  # as every fact looks its arm up
def _parsed(text, path):
    book = plain_yaml.parse(text, path)
    if not (isinstance(book, dict) and set(book) == {"roles", "arms"}
            and all(isinstance(entries, dict) and entries for entries in book.values())):
        raise errors.BadInput(f"{path} must hold roles and arms, both mappings of names, and "
                              "nothing beside them.")
    for name, entry in book["roles"].items():
        _check_texts(entry, ("marker", "says"),
                     f"{path}, line {plain_yaml.line(text, 'roles', name)}: role {name!r}")
    return {name: _arm(name, entry, book["roles"],
                       f"{path}, line {plain_yaml.line(text, 'arms', name)}: arm {name!r}")
            for name, entry in book["arms"].items()}


def _check_texts(entry, needed, where):
    """An entry is a mapping with `needed`, and label perhaps, each of them a text."""
    if not isinstance(entry, dict) or not set(needed) <= set(entry) <= {*needed, "label"}:
        has = ", ".join(entry) if isinstance(entry, dict) else f"{entry!r:.60}"
        raise errors.BadInput(f"{where} has {has}; needed are {', '.join(needed[:-1])} and "
                              f"{needed[-1]}; an arm may have a label.")
    for key, value in entry.items():
        if not isinstance(value, str) or not value.strip():
            raise errors.BadInput(f"{where}: {key} is {value!r:.60}; allowed is a text.")


def get(name: str, path: str | Path = "arms.yml") -> Arm:
    """One arm; BadInput names those whose ids are nearest to an unknown one."""
    return find(name, load(path))


def find(name: str, known: dict[str, Arm]) -> Arm:
    """The same, among arms that `load` gave."""
    if name not in known:
        raise errors.BadInput(quantities.unknown("arms.yml: arm", name, known))
    return known[name]


def _arm(name, entry, roles, where):
    if not re.fullmatch(ID, name):
        raise errors.BadInput(f"{where}: an id is made of lower-case letters, digits and hyphens.")
    _check_texts(entry, ("role", "look", "says"), where)
    if entry["role"] not in roles:
        raise errors.BadInput(quantities.unknown(f"{where}: role", entry["role"], roles))
    colour, _, line = entry["look"].partition(" ")
    if colour not in COLOURS or (line or "solid") not in LINES:
        raise errors.BadInput(f"{where}: look is {entry['look']!r}; allowed is one of "
                              f"{', '.join(COLOURS)}, and {', '.join(LINES)} after it.")
    return Arm(name, entry.get("label", name.replace("-", " ")), entry["role"], colour,
               LINES[line or "solid"], roles[entry["role"]]["marker"], entry["says"].strip())
