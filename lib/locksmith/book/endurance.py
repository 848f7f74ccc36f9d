"""What the page on kills, corruption and starvation shows: counts of results/torture.json.

`tests/torture.py` writes that file, a row a fault:

    {"kind": "kill", "group": "a chapter's kernel", "what": ..., "how": ..., "command": ...,
     "outcome": "survived", "why": ..., "code": 1, "said": ..., "seconds": 12.3}

and "first", what came of it before a mend, where it was injected again after one.
The page's counts are counted here from the rows; none is kept beside them.
"""

import json
from collections import Counter
from pathlib import Path

import jsonschema

from locksmith import errors, plain_yaml

FILE = Path("results/torture.json")
KINDS = {"kill": "kills", "corrupt": "corruption", "starve": "starvation"}
OUTCOMES = ("survived", "lost", "wrong", "untidy")
_TEXTS = {name: {"type": "string"} for name in ("group", "what", "how", "command", "why")}
_ROW = {"type": "object", "required": ["kind", "outcome", *_TEXTS],
        "properties": {"kind": {"enum": [*KINDS]}, "outcome": {"enum": [*OUTCOMES]}, **_TEXTS,
                       "first": {"type": "string"}}}
_SCHEMA = {"type": "object", "required": ["faults"],
           "properties": {"faults": {"type": "array", "minItems": 1, "items": _ROW}}}


def load(root: str | Path = ".") -> list[dict]:
    """The faults, a dict a row. BadInput where the file is missing or of another form."""
    path = Path(root) / FILE
    try:
        record = json.loads(plain_yaml.text(path))
        jsonschema.validate(record, _SCHEMA)
    except (ValueError, RecursionError, jsonschema.ValidationError) as error:
        said = getattr(error, "message", str(error))
        raise errors.BadInput(f"{path} is not what tests/torture.py writes: {said}.") from None
    return record["faults"]


def substitutions(root: str | Path = ".") -> dict:
    """What the page may write between double braces: `torture` (counts by outcome, in all, and of
    faults injected again), `torture_table`, `torture_missed` and `torture_mended` (Markdown)."""
    rows = load(root)
    again = [row for row in rows if "first" in row]
    counts = {"injected": len(rows), "again": len(again), **_counts(rows)}
    missed = [_line(row, f"{row['outcome']}: {row['why']}") for row in rows
              if row["outcome"] != "survived"]
    return {"torture": counts, "torture_table": table(rows),
            "torture_missed": "\n".join(missed) or "Nothing.",
            "torture_mended": "\n".join(_line(row, row["first"]) for row in again) or "Nothing."}


def _line(row, came):
    return f"- {row['what']}, {row['how']}, `{row['command']}`: {came}"


def table(rows: list[dict]) -> str:
    """A Markdown table: faults and outcomes of each kind, then of each group in it."""
    lines = ["| what was done | injected | " + " | ".join(OUTCOMES) + " |",
             "|---|" + "---:|" * (1 + len(OUTCOMES))]
    for kind, title in KINDS.items():
        of_kind = [row for row in rows if row["kind"] == kind]
        groups = sorted({row["group"] for row in of_kind})
        for name, some in [(f"**{title}**", of_kind),
                           *((group, [row for row in of_kind if row["group"] == group])
                             for group in groups)]:
            cells = [name, len(some), *_counts(some).values()]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _counts(rows):
    found = Counter(row["outcome"] for row in rows)
    return {outcome: found[outcome] for outcome in OUTCOMES}
