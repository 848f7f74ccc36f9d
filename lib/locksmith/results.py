"""results/: what every number of the book is read from, small JSON files kept in git.

    results/<profile>/<chapter>.json         facts, what they came from, curves, counts ("extra")
    results/<profile>/train/<family>_*.json  the same for a trained model
    results/facts.csv                        every fact of every file, one row each
    results/metrics/*.yaml                   headline numbers, for `dvc metrics show` and `diff`

A fact is about a family of problems, a model or arm (an id of arms.yml) and a quantity, under the
conditions of `locksmith.quantities`. No file holds a time, a host or an absolute path: the same
run writes the same bytes.
"""

import argparse
import csv
import functools
import hashlib
import importlib.metadata
import io
import itertools
import json
import math
import platform
import re
from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path

import pandas as pd
import yaml

from locksmith import arms, errors, params, plain_yaml, quantities, rules, staging, stats

ROOT = Path("results")
FACT = ("family", "model", "quantity", "value", "low", "high", "n_problems", "n_samples", "seeds")
COLUMNS = (*FACT[:3], *quantities.CONDITIONS, *FACT[3:])
HEAD = ("profile", "chapter", *COLUMNS, "source")  # of facts.csv, less unused conditions
RECORD = {"profile": str, "chapter": str, "provenance": dict, "facts": list, "extra": dict}
PROVENANCE = {"parameters": dict, "seeds": list, "rules": list, "checkpoints": dict,
              "versions": dict}
PACKAGES = ("torch", "transformers", "numpy", "scipy")
SIZE = ("n_problems", "n_samples", "seeds")
ARMS = ("on", "against")  # conditions that name an arm
# What `dvc metrics show` tells, a row each: chapter, arm and a fact's name as in claims.yml.
HEADLINES = (
    ("00", "base", "valid_attempts"), ("00", "thinking", "valid_attempts"),
    ("00", "base", "attempts"), ("00", "thinking", "attempts"),
    ("01", "hybrid", "gap_recovered"), ("01", "hybrid", "steered_share"),
    ("01", "bias-only", "gap_recovered"), ("01", "random-vectors", "gap_recovered"),
    ("01", "thinking-decides-base-executes", "gap_recovered"),
    ("02", "base", "pass_at_k[k=1]"), ("02", "thinking", "pass_at_k[k=1]"),
    ("02", "base", "pass_at_k[k=256]"), ("02", "power-sampling", "gap_recovered"),
    ("03", "critiques", "gap_recovered"), ("03", "format-only", "gap_recovered"),
    ("04", "base", "probe_auroc"), ("04", "untrained", "probe_auroc"),
    ("04", "base", "cosine[against=thinking]"),
    ("05", "vector-rl", "gap_recovered"), ("05", "cognitive-tools", "gap_recovered"),
)


class Recorder:
    """The facts of one chapter as they are measured, and in `extra` what else its page keeps.

    seeds (list of int), n_problems, n_samples: what stands behind a fact that does not say.
    """

    def __init__(self, profile: str, chapter: str, *, seeds: Iterable[int],
                 n_problems: int | None = None, n_samples: int | None = None):
        self.profile, self.chapter = profile, chapter
        self.size = {"n_problems": n_problems, "n_samples": n_samples, "seeds": list(seeds)}
        self.facts, self.extra = [], {}

    @classmethod
    def reopen(cls, profile: str, chapter: str) -> "Recorder":
        """What an earlier run wrote, to be shown."""
        written = read(profile, chapter)
        record = cls(profile, chapter, seeds=written["provenance"]["seeds"])
        record.facts, record.extra = written["facts"], written["extra"]
        return record

    def fact(self, family: str, arm: str, quantity: str,
             interval: Sequence[float | None] | float | None,
             **given: object) -> stats.Interval | None:
        """Keep a fact, and return its stats.Interval for display.

        arm, quantity: an id, or a name such as "few-shot[examples=2]", "pass_at_k[k=4]".
        interval: value, low and high, cut at what the quantity can be; a number, which has no
            interval; or None, where there is nothing to tell: then nothing is kept and None is
            returned.
        given: conditions of locksmith.quantities, and any of SIZE that is not the chapter's.
        Raises BadInput for an arm, a quantity or a condition that is not in the vocabulary, and for
        an end that is no number.
        """
        if interval is None:
            return None
        ends = tuple(interval) if hasattr(interval, "__len__") else (interval, None, None)
        ends = [x.item() if hasattr(x, "item") else x for x in ends]  # of NumPy
        for x in ends:
            if x is not None and (isinstance(x, bool) or not isinstance(x, Real)):
                raise errors.BadInput(f"Fact {family} / {arm} / {quantity}: {x!r} is no number; "
                                      "allowed are value, low and high, or one number.")
        ends = [None if x is None else float(x) for x in ends]
        size = {key: given.pop(key, self.size[key]) for key in SIZE}
        arm, quantity, given = _named(arm, quantity, given)
        ends[1:] = quantities.cut(quantity, *ends[1:])
        for name in (arm, *(given[key] for key in ARMS if key in given)):
            arms.get(name)
        quantities.complete(quantity, given)
        fact = {"family": family, "model": arm, "quantity": quantity, **given,
                **dict(zip(("value", "low", "high"), ends, strict=True)), **_plain(size)}
        check(fact)
        self.facts.append(fact)
        return stats.Interval(*ends)

    def get(self, family: str, arm: str, quantity: str,
            **conditions: object) -> stats.Interval | None:
        """The Interval of a fact under exactly these conditions, or None."""
        arm, quantity, conditions = _named(arm, quantity, conditions)
        wanted = (family, arm, quantities.name(quantity, conditions))
        for fact in self.facts:
            if (fact["family"], fact["model"], quantities.name(fact["quantity"], fact)) == wanted:
                return stats.Interval(fact["value"], fact["low"], fact["high"])
        return None

    def frame(self, quantity: str | None = None) -> pd.DataFrame:
        """The facts, or those of one quantity, a row each: the columns of `frame`."""
        return frame([fact for fact in self.facts if quantity in (None, fact["quantity"])])

    def figure(self, name: str) -> Path:
        """Where to write a figure of the chapter."""
        return staging.path(ROOT / self.profile / "figures" / f"{self.chapter}_{name}.png")

    def write(self, checkpoints: Iterable[str | Path] = ()) -> Path:
        """`write` with everything that was kept."""
        return write(self.profile, self.chapter, self.facts, extra=self.extra,
                     checkpoints=checkpoints)


def _named(arm, quantity, given):
    """The two ids, and all conditions: those named with either and those given beside them."""
    arm, of_arm = quantities.split(arm)
    quantity, of_quantity = quantities.parse(quantity)
    return arm, quantity, of_arm | of_quantity | quantities.check(quantity, given)


def frame(facts: Iterable[dict]) -> pd.DataFrame:
    """Facts as a tidy table: family, model, quantity, every condition (NaN or None where it has
    none), value, low, high, n_problems, n_samples, seeds."""
    return pd.DataFrame(list(facts), columns=COLUMNS)


def write(profile: str, chapter: str, facts: Iterable[dict], *, extra: dict | None = None,
          checkpoints: Iterable[str | Path] = ()) -> Path:
    """Writes results/<profile>/<chapter>.json, whole or not at all, and returns its path.

    facts: dicts with the keys of FACT and those conditions that they have; value a finite number,
        low and high its interval or both None, n_problems and n_samples counts or None, seeds a
        list of int. A (family, model, quantity) stands once under the same conditions.
    extra: anything JSON can hold: curves, tables, counts.
    checkpoints: model folders the numbers came from; their weights' SHA-256 are recorded.
    Raises BadInput for a fact that is not as above, or NaN or infinity anywhere.
    """
    facts = _plain(list(facts))
    _check_facts(facts, None, lambda i: f"Chapter {chapter}: ")
    record = {
        "profile": profile,
        "chapter": chapter,
        "provenance": provenance(profile, chapter, checkpoints),
        "facts": [{key: fact[key] for key in COLUMNS if key in fact} for fact in facts],
        "extra": _plain(extra or {}),
    }
    path = ROOT / profile / f"{chapter}.json"
    try:
        text = _layout(record)
    except ValueError:
        raise errors.BadInput(f"{path} would hold NaN or infinity in `extra`.") from None
    save(staging.path(path), text + "\n")
    return path


def read(profile: str, chapter: str) -> dict:
    """The record `write` made. Raises BadInput where the file is missing or not what it writes."""
    path = staging.newest(ROOT / profile / f"{chapter}.json")
    return load(path, profile, chapter, arms.load())


def provenance(profile: str, chapter: str, checkpoints: Iterable[str | Path] = ()) -> dict:
    """What a number came from: parameters, the rules that stood, checkpoint hashes, versions."""
    values = params.load(profile)
    chapters = values.pop("chapters", {})
    values["chapter"] = chapters.get(params.chapter_key(chapter), {})
    return {
        "parameters": values,
        "seeds": values["seeds"],
        "rules": rules.standing(),
        "checkpoints": {
            Path(d).as_posix(): _weights_hash(Path(d)) for d in sorted(map(str, checkpoints))
        },
        "versions": {
            "python": ".".join(platform.python_version_tuple()[:2]),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def facts() -> list[dict]:
    """Rewrites results/facts.csv and results/metrics/ from every record; returns `rows`."""
    staging.settle()
    found = rows(ROOT)
    save(ROOT / "facts.csv", table(found))
    metrics = {ROOT / "metrics" / f"{name}.yaml": values
               for name, values in headlines(found).items()}
    for path, values in metrics.items():
        save(path, yaml.safe_dump(values))
    for old in set((ROOT / "metrics").glob("*.yaml")) - set(metrics):
        old.unlink()
    return found


def rows(root: Path = ROOT) -> list[dict]:
    """Every fact of every record, in the order of facts.csv.

    A row is a dict: profile, chapter, the keys of FACT (seeds joined by spaces), the conditions it
    has, source.
    """
    found, known = [], arms.load(root.parent / "arms.yml")
    for path in files(root):
        profile, chapter = path.relative_to(root).with_suffix("").as_posix().split("/", 1)
        record = load(path, profile, chapter, known)
        found += [{"profile": record["profile"], "chapter": record["chapter"], **fact,
                   "seeds": " ".join(map(str, fact["seeds"])),
                   "source": path.relative_to(root.parent).as_posix()}
                  for fact in record["facts"]]
    names = ("profile", "chapter", "family", "model", "quantity")
    return sorted(found, key=lambda row: [*(row[name] for name in names),
                                          *((key in row, row.get(key))
                                            for key in quantities.CONDITIONS)])


def table(rows: Iterable[dict], conditions: Iterable[str] = ()) -> str:
    """facts.csv of these rows: a column each for what every row has, and for each condition that
    one has or that is named, so that a new name in the vocabulary changes no table."""
    rows, text = list(rows), io.StringIO()
    used = set(conditions).union(*rows)
    head = [name for name in HEAD if name in used or name not in quantities.CONDITIONS]
    writer = csv.DictWriter(text, head, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_table(path: str | Path) -> list[dict]:
    """The rows of a facts.csv as `rows` gives them. Raises BadInput that names file and line."""
    known = Path(path).parent.parent / "arms.yml"
    return [dict(row) for row in _table(plain_yaml.text(path), path, plain_yaml.text(known))]


@functools.lru_cache(maxsize=2)  # a build asks a dozen times
def _table(text, path, arms_text):
    first, *lines = text.splitlines() or [""]
    head = first.split(",")
    if head != [name for name in HEAD if name in head or name not in quantities.CONDITIONS]:
        raise errors.BadInput(f"{path}, line 1: the columns are not those of a table of facts; "
                              "`make facts` writes it anew.")
    found, known = [], arms.load(Path(path).parent.parent / "arms.yml")
    for number, line in enumerate(lines, 2):
        try:
            found.append(_row(head, line, known))
        except (csv.Error, ValueError) as error:
            raise errors.BadInput(f"{path}, line {number}: {error}; `make facts` writes the "
                                  "table anew.") from None
    return found


def _row(head, line, known):
    [cells] = csv.reader([line], strict=True)
    row = {key: cell for key, cell in zip(head, cells, strict=True) if cell}
    for key in ("value", "low", "high"):
        row[key] = float(row[key]) if key in row else None
    for key in ("n_problems", "n_samples"):
        row[key] = int(row[key]) if key in row else None
    seeds = row.get("seeds", "")
    given = {key: row[key] for key in quantities.CONDITIONS if key in row}
    row |= quantities.check(row.get("quantity", ""), given)
    check({**{key: row[key] for key in COLUMNS if key in row},
           "seeds": [int(seed) for seed in seeds.split()]}, known)
    return {**row, "seeds": seeds}


def check_table(root: Path = ROOT) -> None:
    """Raises BadInput unless facts.csv is what the records give, and names the first line that is
    not."""
    path = root / "facts.csv"
    stated = plain_yaml.text(path).splitlines()
    head = "".join(stated[:1]).split(",")  # a record that is gone may have had a condition alone
    right = table(rows(root), head).splitlines()
    for number, (one, other) in enumerate(itertools.zip_longest(stated, right), 1):
        if one != other:
            stands, should = ((line or "").rpartition(",")[2] for line in (one, other))
            if stands.startswith("results/") and not (root.parent / stands).is_file():
                raise errors.BadInput(f"{path}, line {number}, comes from {stands}, which is not "
                                      "there; `git checkout` brings it back, `make facts` drops "
                                      "its lines.")
            source = stands if one and one not in right else should  # a line too many, or missing
            about = (f"what {source} says" if number > 1 else
                     "the columns of a table of facts")
            raise errors.BadInput(f"{path}, line {number}, is not {about}; `make facts` writes the "
                                  "table anew, `git checkout` brings back what was there.")


def headlines(rows: Iterable[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """{"02 base pass_at_k[k=1]": {profile: {family: value}}} of the facts in HEADLINES.

    A file each, because `dvc metrics show` prints a file as a row and its values as columns.
    """
    found = {}
    for row in rows:
        key = (row["chapter"], row["model"], quantities.name(row["quantity"], row))
        if key in HEADLINES:
            columns = found.setdefault(" ".join(key), {}).setdefault(row["profile"], {})
            columns[row["family"]] = round(row["value"], 3) + 0.0  # no -0.0
    return found


def files(root: Path = ROOT) -> list[Path]:
    """Paths of all records under results/, sorted."""
    return sorted([*root.glob("*/*.json"), *root.glob("*/train/*.json")])


def save(path: str | Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all, as `staging.put`."""
    staging.put(path, text.encode("utf-8"))


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _weights_hash(folder):
    weights = next(iter(sorted(folder.glob("*model.safetensors"))), folder / "model.safetensors")
    if not weights.exists():
        raise errors.BadInput(
            f"Checkpoint {folder} has no model.safetensors; `dvc pull` brings it."
        )
    return sha256(weights)


def load(path: Path, profile: str, chapter: str, known: dict[str, arms.Arm]) -> dict:
    """A file of results/, every part of which was checked; known: every arm, as of `arms.load`.

    Raises BadInput that names the file, the line of a fact, and what helps.
    """
    if not path.exists():
        raise errors.BadInput(f"{path} does not exist; `git checkout` brings back a versioned one, "
                              "`dvc repro` makes it.")
    text, again = plain_yaml.text(path), ("`git checkout` brings back a versioned one; else delete "
                                          "it and run `dvc repro`")
    try:
        record = json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise errors.BadInput(f"{path} is nested too deep; {again}.") from None
    except ValueError as error:
        raise errors.BadInput(f"{path} is not whole (not valid JSON: {error}); {again}.") from None
    _check_shape(record, RECORD, path, again)
    _check_shape(record["provenance"], PROVENANCE, f"{path}: provenance", again)
    if (record["profile"], record["chapter"]) != (profile, chapter):
        raise errors.BadInput(f"{path} is the record of chapter {record['chapter']!r} in profile "
                              f"{record['profile']!r}; {again}.")
    _check_facts(record["facts"], known,
                 lambda i: f"{path}, line {plain_yaml.line(text, 'facts', i)}: ")
    try:
        json.dumps([record["provenance"], record["extra"]], allow_nan=False)
    except ValueError:
        raise errors.BadInput(f"{path} holds NaN or infinity; {again}.") from None
    return record


def _once(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one mapping")
    return found


def _check_shape(value, shape, where, again):
    if not isinstance(value, dict):
        raise errors.BadInput(f"{where} is {_short(value)}; allowed is a mapping with "
                              f"{', '.join(shape)}; {again}.")
    lacking, odd = set(shape) - set(value), set(value) - set(shape)
    if lacking or odd:
        said = f"lacks {', '.join(sorted(lacking))}" if lacking else f"has an unknown {min(odd)!r}"
        raise errors.BadInput(f"{where} {said}; {again}.")
    for key, kind in shape.items():
        if not isinstance(value[key], kind):
            raise errors.BadInput(f"{where}: {key} is {_short(value[key])}; {again}.")


def _short(value):
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def _check_facts(facts, known, where):
    """Raises BadInput for the first fact that is none or stands twice, after where(its place)."""
    seen = set()
    for i, fact in enumerate(facts):
        try:
            check(fact, known)
            name = (fact["family"], fact["model"], quantities.name(fact["quantity"], fact))
            if name in seen:
                raise errors.BadInput(f"Fact {' / '.join(name)} stands twice.")
            seen.add(name)
        except errors.BadInput as error:
            raise errors.BadInput(f"{where(i)}{error}") from None


def check(fact: dict, known: dict[str, arms.Arm] | None = None) -> None:
    """Raises BadInput unless `fact` is one that `write` takes: names that are known, a value that
    its quantity can have, in its interval; known: every arm, by default those of arms.yml."""
    if not isinstance(fact, dict):
        raise errors.BadInput(f"A fact is {_short(fact)}; allowed is a mapping.")
    name = "Fact " + " / ".join(str(fact.get(key)) for key in ("family", "model", "quantity"))
    missing = set(FACT) - set(fact)
    if missing:
        raise errors.BadInput(f"{name} lacks {', '.join(sorted(missing))}.")
    for key, form, allowed in (("family", r"[a-z]\w*", "a family's name"),
                               ("model", arms.ID, "an id of arms.yml"),
                               ("quantity", r"\w+", "a quantity's name")):
        if not isinstance(fact[key], str) or not re.fullmatch(form, fact[key]):
            raise errors.BadInput(f"{name}: {key} is {_short(fact[key])}; allowed is {allowed}.")
    for key in ("value", "low", "high", "n_problems", "n_samples"):
        _check_number(name, key, fact[key])
    seeds = fact["seeds"]
    if not (isinstance(seeds, list) and seeds and len(set(map(str, seeds))) == len(seeds)
            and all(type(seed) is int and seed >= 0 for seed in seeds)):
        raise errors.BadInput(f"{name}: seeds is {_short(seeds)}; allowed is a list of whole "
                              "numbers, none of them twice.")
    try:
        given = quantities.check(fact["quantity"],
                                 {key: x for key, x in fact.items() if key not in FACT})
        if wrong := [key for key in given if given[key] != fact[key]]:
            raise errors.BadInput(f"condition {wrong[0]} is {fact[wrong[0]]!r}; allowed is "
                                  f"{given[wrong[0]]!r} and the like.")
        quantities.complete(fact["quantity"], given)
        quantities.within(fact["quantity"], *(fact[key] for key in ("value", "low", "high")))
        for arm in (fact["model"], *(given[key] for key in ARMS if key in given)):
            arms.find(arm, arms.load() if known is None else known)
    except errors.BadInput as error:
        raise errors.BadInput(f"{name}: {error}") from None


def _check_number(name, key, value):
    counts = key.startswith("n_")
    if value is None and key != "value":
        return
    if isinstance(value, bool) or not isinstance(value, int if counts else (int, float)) or (
            not math.isfinite(value) or counts and value < 1):
        allowed = "a whole number from 1" if counts else "a finite number"
        raise errors.BadInput(f"{name}: {key} is {_short(value)}; allowed is {allowed}.")


def _layout(value, indent="\n"):
    """JSON for diffs: what fits in 300 characters, or holds no further dict or list, is a line."""
    line = json.dumps(value, allow_nan=False, ensure_ascii=False)
    inner = value.values() if isinstance(value, dict) else value
    flat = not isinstance(value, (dict, list)) or not any(
        isinstance(v, (dict, list)) for v in inner
    )
    if len(line) <= 300 or flat:
        return line
    deeper = indent + " "
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_layout(entry, deeper)}" for key, entry in value.items()]
    else:
        items = [_layout(entry, deeper) for entry in value]
    return line[0] + deeper + f",{deeper}".join(items) + indent + line[-1]


def _plain(value):
    """NumPy scalars and arrays, tuples and mappings as plain Python values."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else value


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m locksmith.results", description=facts.__doc__)
    parser.add_argument("what", choices=["facts"])
    parser.parse_args()
    print(f"results/facts.csv: {len(facts())} rows")


if __name__ == "__main__":
    errors.run(main)
