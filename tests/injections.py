"""Damage to the files of a book, one fault a row: what people, disks and half-done merges do.

`INJECTIONS` lists (kind, name, damage). `damage(path)` spoils one file in place, or deletes it; the
file is one that the book of a profile is made from, and `FILES[kind]` says which, relative to the
book's root:

    for kind, name, damage in INJECTIONS:
        root = a copy of a book whose chapters were run under `profile`
        damage(root / FILES[kind].format(profile=profile))
        site.assemble(profile, root)     # has to raise BadInput that names the file

Every one must end in one sentence. None may change a number on a page in silence.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

FILES = {
    "record": "results/{profile}/02.json",
    "training record": "results/{profile}/train/countdown_rl.json",
    "facts": "results/facts.csv",
    "claims": "claims.yml",
    "arms": "arms.yml",
    "post": "post.md",
    "references": "references.bib",
    "contents": "_toc.yml",
    "settings": "_config.yml",
    "first page": "index.md",
    "notebook": "build/notebooks/{profile}/02_base_model_sampling.ipynb",
    "figure": "results/{profile}/figures/02_pass_at_k.png",
    "manifest": "checkpoints/{profile}/countdown/base/seed0/manifest.json",
    "weights": "checkpoints/{profile}/countdown/base/seed0/model.safetensors",
    "data": "data/{profile}/countdown_test.jsonl",
}


# ---- any file


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:len(content) // 2])


def latin_1(path: Path) -> None:
    """As an editor of another encoding saves it: an umlaut of one byte in the middle."""
    content = path.read_bytes()
    middle = content.index(b" ", len(content) // 2) if b" " in content else len(content) // 2
    path.write_bytes(content[:middle] + "ä".encode("latin-1") + content[middle:])


def utf_16(path: Path) -> None:
    path.write_bytes(path.read_text(encoding="utf-8").encode("utf-16"))


def null_bytes(path: Path) -> None:
    """What a file system leaves after a power cut: the right length, zeros at the end."""
    content = path.read_bytes()
    path.write_bytes(content[:-20] + bytes(20))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def gone(path: Path) -> None:
    path.unlink()


def text(content: str) -> Callable[[Path], None]:
    """Another content."""
    return lambda path: path.write_text(content, encoding="utf-8")


def swap(old: str, new: str, count: int = 1) -> Callable[[Path], None]:
    """The first match of a pattern replaced."""
    def damage(path):
        changed, n = re.subn(old, new, path.read_text(encoding="utf-8"), count=count,
                             flags=re.MULTILINE)
        assert n, f"{old} is not in {path}"
        path.write_text(changed, encoding="utf-8")
    return damage


def bit(path: Path) -> None:
    """One bit in the middle flipped."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def neighbour(path: Path) -> None:
    """Another file of the same kind in its place."""
    other = next(p for p in sorted(path.parent.iterdir())
                 if p.suffix == path.suffix and p.read_bytes() != path.read_bytes())
    shutil.copyfile(other, path)


ANY = {"cut": cut, "empty": empty, "gone": gone}
TEXT = {**ANY, "latin-1": latin_1, "utf-16": utf_16, "null bytes": null_bytes}


UNCUT = {name: damage for name, damage in TEXT.items() if name != "cut"}  # half is a whole one too


# ---- records: results/<profile>/*.json


def edited(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """A JSON file with `change(content)` made to it, written as Python writes JSON."""
    def damage(path):
        record = json.loads(path.read_text(encoding="utf-8"))
        change(record)
        path.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return damage


def fact(**change: object) -> Callable[[Path], None]:
    """The first pass@k with other entries."""
    return edited(lambda record: next(
        f for f in record["facts"] if f["quantity"] == "pass_at_k").update(change))


def lacking(*names: str) -> Callable[[Path], None]:
    """The first fact without some keys."""
    return edited(lambda record: [record["facts"][0].pop(name) for name in names])


NAN, INFINITY = float("nan"), float("inf")
RECORD = {
    **TEXT,
    "a list": text("[]\n"), "a number": text("3\n"), "null": text("null\n"),
    "nested too deep": text("[" * 100_000),
    "a key twice": swap('"chapter":', '"chapter": "07", "chapter":'),
    "share of 99": fact(value=99),
    "share of 99 with its interval": fact(value=99, low=98, high=100),
    "share below 0": fact(value=-0.25, low=-0.5, high=0.5), "NaN": fact(value=NAN),
    "infinity": fact(value=INFINITY), "minus infinity as low": fact(low=-INFINITY),
    "a value of 400 digits": swap(r'("quantity": "pass_at_k".*?"value": )[-\d.e]+', r"\g<1>1e400"),
    "text as value": fact(value="0.25"), "true as value": fact(value=True),
    "nothing as value": fact(value=None), "a list as value": fact(value=[0.25]),
    "low above high": fact(value=0.3, low=0.5, high=0.1),
    "value outside its interval": fact(value=0.9, low=0.1, high=0.2),
    "low without high": fact(high=None), "text as low": fact(low="0"),
    "negative n": fact(n_problems=-300), "n of 0": fact(n_samples=0),
    "n with a fraction": fact(n_problems=2.5), "text as n": fact(n_problems="300"),
    "no seeds": fact(seeds=[]), "a seed twice": fact(seeds=[0, 0, 1]),
    "seeds as text": fact(seeds="0 1 2"), "a negative seed": fact(seeds=[-1]),
    "k of 0": fact(k=0), "k as text": fact(k="1"), "k with a fraction": fact(k=1.5),
    "no k": edited(lambda r: next(f for f in r["facts"] if "k" in f).pop("k")),
    "a temperature below 0": fact(temperature=-1.0), "temperature NaN": fact(temperature=NAN),
    "an unknown condition": fact(colour="red"), "an unknown arm": fact(model="bsae"),
    "an unknown arm to compare with": fact(against="thnking"),
    "a number as arm": fact(model=3), "nothing as arm": fact(model=None),
    "an unknown quantity": fact(quantity="pass_at_n"), "a list as quantity": fact(quantity=[]),
    "a family that is no name": fact(family="Countdown, chain"), "no family": fact(family=""),
    "a fact twice": edited(lambda r: r["facts"].append(r["facts"][0])),
    "a fact twice with other values": edited(
        lambda r: r["facts"].append({**r["facts"][0], "value": 0.0, "low": 0.0, "high": 0.0})),
    "a fact that is a list": edited(lambda r: r["facts"].append([])),
    "a fact gone": edited(lambda r: r["facts"].pop()),
    "all facts gone": edited(lambda r: r.update(facts=[])),
    "facts as a mapping": edited(lambda r: r.update(facts={})),
    "no facts": edited(lambda r: r.pop("facts")),
    "no provenance": edited(lambda r: r.pop("provenance")),
    "provenance of another shape": edited(lambda r: r.update(provenance="lost")),
    "no seeds in the provenance": edited(lambda r: r["provenance"].pop("seeds")),
    "rules that are no list": edited(lambda r: r["provenance"].update(rules=7)),
    "an entry too many": edited(lambda r: r.update(notes="by hand")),
    "another profile's name": edited(lambda r: r.update(profile="paper")),
    "another chapter's name": edited(lambda r: r.update(chapter="05")),
    "another chapter's content": neighbour,
    **{f"a fact without {name}": lacking(name) for name in
       ("family", "model", "quantity", "value", "low", "n_problems", "seeds")},
    "one digit of a value": edited(lambda r: r["facts"][0].update(value=r["facts"][0]["low"])),
}
TRAINING = {**TEXT, "a list": text("[]\n"), "no facts": edited(lambda r: r.pop("facts")),
            "another model's content": neighbour,
            "another curve": edited(lambda r: r["extra"].update(curve=[]))}


# ---- results/facts.csv


def lines(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    """A text file with `change(lines)` made to it."""
    def damage(path):
        old = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(change(old)), encoding="utf-8")
    return damage


def column(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    """`change` made to what stands in a column of every row where anything stands."""
    def of(old):
        i = old[0].rstrip("\n").split(",").index(name)
        rows = [line.rstrip("\n").split(",") for line in old[1:]]
        return [old[0], *(",".join([*row[:i], change(row[i]) if row[i] else "", *row[i + 1:]])
                          + "\n" for row in rows)]
    return lines(of)


FACTS = {
    **TEXT,
    "emptied but for its head": lines(lambda old: old[:1]), "no head": lines(lambda old: old[1:]),
    "values times ten": column("value", lambda x: str(10 * float(x))),
    "every n doubled": column("n_problems", lambda x: str(2 * int(x))),
    "text as value": column("value", lambda x: "high"), "NaN": column("value", lambda x: "nan"),
    "infinity": column("high", lambda x: "inf"), "k with a fraction": column("k", lambda x: "1.5"),
    "all rows twice": lines(lambda old: [*old, *old[1:]]),
    "one row twice": lines(lambda old: [*old, old[1]]),
    "a row gone": lines(lambda old: [*old[:3], *old[4:]]),
    "two rows in another order": lines(lambda old: [old[0], old[2], old[1], *old[3:]]),
    "a quote left open": lines(lambda old: [*old[:3], '"' + old[3], *old[4:]]),
    "a column more in one row": lines(lambda old: [*old[:2], "x," + old[2], *old[3:]]),
    "a column less in one row": lines(lambda old: [*old[:2], old[2].partition(",")[2], *old[3:]]),
    "semicolons": lines(lambda old: [line.replace(",", ";") for line in old]),
    "a column renamed": lines(lambda old: [old[0].replace("low", "lower"), *old[1:]]),
    "another arm": column("model", lambda x: "bsae"), "JSON": text("{}\n"),
    "a source that is none": column("source", lambda x: "results/lab/99.json"),
    "a merge's marks": lines(lambda old: ["<<<<<<< HEAD\n", *old, "=======\n"]),
}


# ---- claims.yml, arms.yml


def rule(new: str) -> Callable[[Path], None]:
    """Another rule in the first part."""
    return swap(r"rule: .*", f"rule: {new}")


CLAIMS = {
    **TEXT,
    "a list": text("[]\n"), "a number": text("3\n"), "no claims": text("claims: []\n"),
    "an empty list of claims": swap(r"^claims:[\s\S]*", "claims: []\n"),
    "claims as text": swap(r"^claims:[\s\S]*", "claims: none\n"),
    "a claim that is text": swap(r"^claims:\n", "claims:\n  - none\n"),
    "needs as a list": swap(r"^needs:\n(  .*\n)+", "needs: [3, 100]\n"),
    "needs as text": swap(r"seeds: 3", "seeds: three"),
    "a rule with an unknown quantity": rule('"02:base.pass_at_n[k=1].low > 0"'),
    "a rule with an unknown model": rule('"02:bsae.pass_at_k[k=1].low > 0"'),
    "a rule without k": rule('"02:base.pass_at_k.low > 0"'),
    "a rule with an unknown condition": rule('"02:base.pass_at_k[k=1, q=2].low > 0"'),
    "a rule on an unknown chapter": rule('"99:base.pass_at_k[k=1].low > 0"'),
    "a rule on another arm's fact": rule('"02:untrained.vector_length.low > 0"'),
    "a rule that is empty": rule('""'), "a rule that is nothing": rule(""),
    "a rule that is a number": rule("7"), "a rule that is a list": rule("[1, 2]"),
    "a rule at the favourable end": rule('"02:base.pass_at_k[k=1].high > 0"'),
    "an unknown kind": swap(r"kind: valid", "kind: vlaid"),
    "an unknown status": swap(r"status: verified", "status: seen"),
    "an unknown source": swap(r"source: \w+", "source: nobody1999"),
    "no source": swap(r"source: \w+", "source:"),
    "an unknown family": swap(r"families: \[countdown, chain\]", "families: [countdown, chian]"),
    "no family": swap(r"families: \[countdown, chain\]", "families: []"),
    "families as nothing": swap(r"families: \[countdown, chain\]", "families:"),
    "families as text": swap(r"families: \[countdown, chain\]", "families: countdown"),
    "no part": swap(r"    parts:\n", "    parts: []\n    rest:\n"),
    "parts as nothing": swap(r"    parts:\n(      .*\n|        .*\n)+", "    parts:\n"),
    "no title": swap(r"    title: .*\n", ""),
    "a title that is nothing": swap(r"title: .*", "title:"),
    "a title that is a number": swap(r"title: .*", "title: 7"),
    "an id twice": swap(r"(  - id: (.*)\n    title: )", r"\1"
                        "again\n    chapter: '00'\n  - id: \\2\n    title: "),
    "a part's id twice": swap(r"      - id: not-greedy", "      - id: gap"),
    "a key twice": swap(r"(    title: .*\n)", r"\1\1"), "a tab": swap(r"^claims:\n", "claims:\n\t"),
    "a bound of another size": swap(r"> 3 \*", "> 1 *"),
    "an anchor that is none": swap(r"title: .*", "title: *nobody"),
}
ARMS = {
    **TEXT,
    "a list": text("[]\n"), "no arms": text("roles: {}\n"),
    "arms as text": text("arms: x\nroles: {}"),
    "no roles": swap(r"^roles:\n(  .*\n)+", ""), "roles as text": swap(r"^roles:\n(  .*\n)+",
                                                                      "roles: none\n"),
    "an unknown role": swap(r"role: bound, look: blue", "role: buond, look: blue"),
    "an unknown colour": swap(r"look: blue", "look: bleu"), "a look that is a number": swap(
        r"look: blue", "look: 7"),
    "an arm that is text": swap(r"^  base: \{[\s\S]*?\}\n", "  base: the base model\n"),
    "an arm gone": swap(r"^  base: \{[\s\S]*?\}\n", ""), "an arm twice": swap(
        r"^(  base: \{[\s\S]*?\}\n)", r"\1\1"),
    "a role without a marker": swap(r"marker: D, ", ""), "nothing as says": swap(
        r'says: "The model after pre-training.*"', "says:"),
    "an unknown entry": swap(r"role: bound, look: blue", "role: bound, colour: x, look: blue"),
}


# ---- pages


POST = {
    **TEXT,
    "a brace left open": swap(r"\}\}", "", 1), "a name that is none": swap(r"page\(", "pgae("),
    "a claim that is none": text('# A\n\n{{ word("nobody") }}\n'),
    "a chapter that is none": text('# A\n\n{{ page("77", "x") }}\n'),
    "a sum of text and a number": text('# A\n\n{{ "a" + 1 }}\n'),
    "a division by zero": text("# A\n\n{{ 1 / 0 }}\n"), "a filter that is none": text(
        "# A\n\n{{ 1 | nothing }}\n"),
    "an argument that is none": text("# A\n\n{{ word() }}\n"),
    "a macro that calls itself": text(
        "# A\n\n{% macro f() %}{{ f() }}{% endmacro %}\n{{ f() }}\n"),
    "a number too long to print": text("# A\n\n{{ 10**5000 }}\n"),
    "more than memory holds": text('# A\n\n{{ ("a" * 10**15) | length }}\n'),
    "a mapping changed as it is read": swap(
        "^# ", "{% for k in this %}{% set _ = this.update({k ~ 'x': 1}) %}{% endfor %}\n# "),
    "figures of a chapter that is none": swap(
        "^# ", '{{ ours("99", "base", "pass_at_k[k=1]") }}\n# '),
    "a fact of another form": text('# A\n\n{{ ours("02", "base", "pass_at_k[k=") }}\n'),
}
REFERENCES = {**TEXT,
              "a brace left open": swap(r"\},?\n\}", "\n", 1), "JSON": text("{}\n"),
              "an entry twice": lambda path: path.write_text(2 * path.read_text(encoding="utf-8"),
                                                             encoding="utf-8")}
CONTENTS = {**TEXT, "a list": text("[]\n"), "no chapters": text("format: jb-book\nroot: index\n"),
            "a chapter that is none": swap(r"file: chapters/02\w+", "file: chapters/02_nothing"),
            "chapters as text": text("format: jb-book\nroot: index\nchapters: all\n"),
            "a chapter without a file": swap(r"file: chapters/02", "url: chapters/02")}
SETTINGS = {**UNCUT, "a list": text("[]\n"), "a number": text("3\n"),
            "parse as a list": swap(r"\A", "parse: [1]\n"),
            "no repository": swap(r"^repository:\n(  .*\n)+", "")}




# ---- executed notebooks and figures


def digit(path: Path) -> None:
    """The first digit of a printed result is another one."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            shown = "".join(output.get("text", output.get("data", {}).get("text/plain", "")))
            if found := re.search(r"\d", shown):
                new = shown[:found.start()] + str((int(found[0]) + 1) % 10) + shown[found.end():]
                (output if "text" in output else output["data"])[
                    "text" if "text" in output else "text/plain"] = new
                path.write_text(json.dumps(notebook, indent=1), encoding="utf-8")
                return
    raise AssertionError(f"{path} prints no digit")


NOTEBOOK = {
    **TEXT, "a digit of an output": digit, "another chapter": neighbour, "a list": text("[]\n"),
    "an empty notebook": text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'),
    "no cells": edited(lambda nb: nb.pop("cells")),
    "cells as text": edited(lambda nb: nb.update(cells="none")),
    "a cell that is text": edited(lambda nb: nb["cells"].insert(0, "text")),
    "a cell gone": edited(lambda nb: nb["cells"].pop()),
    "its outputs stripped": edited(lambda nb: [cell.update(outputs=[]) for cell in nb["cells"]
                                               if cell["cell_type"] == "code"]),
    "its metadata stripped": edited(lambda nb: nb.update(metadata={})),
    "prose changed": edited(lambda nb: nb["cells"][0].update(source="# Another title")),
}
FIGURE = {**ANY, "a bit": bit, "another figure": neighbour, "text": text("a figure\n")}


# ---- checkpoints and data


def manifest(change: Callable[[dict], object]) -> Callable[[Path], None]:
    return edited(lambda content: change(content["files"]))


MANIFEST = {
    **TEXT, "a list": text("[]\n"), "no files": edited(lambda m: m.pop("files")),
    "an empty list of files": edited(lambda m: m.update(files={})),
    "files as a list": edited(lambda m: m.update(files=["model.safetensors"])),
    "files as nothing": edited(lambda m: m.update(files=None)),
    "a file it misses": manifest(lambda files: files.pop("config.json")),
    "the weights missed": manifest(lambda files: files.pop("model.safetensors")),
    "a file that is not there": manifest(lambda files: files.update({"more.json": "0" * 64})),
    "a file outside the folder": manifest(lambda files: files.update(
        {"../seed0/config.json": files["config.json"]})),
    "an absolute path": manifest(lambda files: files.update({"/etc/hostname": "0" * 64})),
    "a hash that is a number": manifest(lambda files: files.update({"config.json": 7})),
    "a hash of another length": manifest(lambda files: files.update({"config.json": "ab"})),
    "a hash that is nothing": manifest(lambda files: files.update({"config.json": None})),
    "a digit of a hash": manifest(lambda files: files.update(
        {"config.json": "".join("1" if c == "0" else "0" for c in files["config.json"])})),
}
WEIGHTS = {**ANY, "a bit": bit, "null bytes": null_bytes, "text": text("weights\n")}
DATA = {**TEXT, "a bit": bit, "a list a line": text("[]\n"), "a number a line": text("7\n"),
        "no key": swap('"key": ', '"name": '),
        "a number as key": swap('"key": "[^"]*"', '"key": 7'),
        "a line gone": lines(lambda old: old[1:]),
        "a line twice": lines(lambda old: [old[0], *old]),
        "another split": neighbour, "two lines in another order": lines(
            lambda old: [old[1], old[0], *old[2:]])}

BY_KIND = {"record": RECORD, "training record": TRAINING, "facts": FACTS, "claims": CLAIMS,
           "arms": ARMS, "post": POST, "references": REFERENCES, "contents": CONTENTS,
           "settings": SETTINGS, "first page": UNCUT, "notebook": NOTEBOOK, "figure": FIGURE,
           "manifest": MANIFEST, "weights": WEIGHTS, "data": DATA}
INJECTIONS = [(kind, name, damage) for kind, damages in BY_KIND.items()
              for name, damage in damages.items()]
