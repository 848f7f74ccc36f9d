"""The dependencies of the DVC stages, worked out from what each stage runs.

    python -m locksmith.book.stages write    # the lists `deps` in dvc.yaml and open/dvc.yaml
    python -m locksmith.book.stages check    # names the stages with other lists than these

A stage depends on what changes its numbers or its page: the notebook, and every module of locksmith
that its code reaches (`reach`), imports inside functions included. Two stages also depend on every
record in results/: `facts` reads them all,
and `verdict` shows which were made under other claims.
Other entries (checkpoints, data, results of earlier chapters) are written by hand and stay.
"""

import argparse
import io
from pathlib import Path

import nbformat
from ruamel.yaml import YAML

from locksmith import errors, params, plain_yaml, reach, results

FILES = ("dvc.yaml", "open/dvc.yaml")
READS_ALL_RESULTS = ("facts", "verdict")


def modules(stage: dict, root: Path = Path(".")) -> list[str]:
    """What a stage runs: its notebook, if any, then the paths of the modules it reaches, sorted."""
    command = stage["cmd"].split()  # python -m <module> [run <notebook>] ...
    if command[2] == "locksmith.book.notebooks":
        first = command[4]
    else:
        first = f"lib/{command[2].replace('.', '/')}.py"
    return [first, *sorted(reach.modules(source(root / first), root) - {first})]


def source(path: Path) -> str:
    """The code of a module, or of a notebook's cells one below the other."""
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def records(root: Path = Path(".")) -> list[str]:
    """Every file that `results.facts` reads: those the stages write, then what else lies there.

    Profiles that train a lab of their own run through dvc.yaml, whose `${profile}` stands for them.
    Of stages that are frozen, and so run by `make lab` or `make open` alone, those that are there.
    """
    written, everything = [], plain_yaml.read(root / "params.yaml")
    for file in FILES:
        for stage in plain_yaml.read(root / file)["stages"].values():
            outs = [next(iter(out)) for out in stage["outs"] if isinstance(out, dict)]
            for value in stage.get("matrix", {"family": [""]})["family"]:
                some = [out.replace("${item.family}", value) for out in outs]
                if stage.get("frozen"):
                    some = [out for out in some if _there(out, everything["profile"], root)]
                written += some
    written = [out for out in written if out.endswith(".json")]
    own = [name for name in params.PROFILES if "pretrain" in everything.get(name, {})]
    stands = {out.replace("${profile}", name) for out in written for name in own}
    there = [path.relative_to(root).as_posix() for path in results.files(root / "results")]
    return written + [path for path in there if path not in stands]


def generated(file: str, root: Path = Path(".")) -> str:
    """The text of dvc.yaml or open/dvc.yaml with its `deps` as they should be,
    all else as it is."""
    layout = YAML()
    layout.indent(mapping=2, sequence=4, offset=2)
    layout.width = 200
    layout.preserve_quotes = True
    pipeline = layout.load((root / file).read_text(encoding="utf-8"))
    for name, stage in pipeline["stages"].items():
        read = records(root) if name in READS_ALL_RESULTS else []
        by_hand = [dep for dep in stage["deps"]
                   if not dep.endswith((".py", ".ipynb")) and not (read and _is_record(dep))]
        stage["deps"][:] = modules(stage, root) + by_hand + read
    text = io.StringIO()
    layout.dump(pipeline, text)
    return text.getvalue()


def changed(file: str, root: Path = Path(".")) -> list[str]:
    """Sentences about the stages of a file whose `deps` are not the generated ones."""
    stated, right = (plain_yaml.parse(text, file)["stages"] for text in
                     (plain_yaml.text(root / file), generated(file, root)))
    found = []
    for name in stated:
        now, then = stated[name]["deps"], right[name]["deps"]
        if now != then:
            found.append(f"{file}: {name} lacks {sorted(set(then) - set(now))}, "
                         f"has {sorted(set(now) - set(then))} too many.")
    return found


def _there(out, profile, root):
    return (root / out.replace("${profile}", profile)).exists()


def _is_record(path):
    return path.startswith("results/") and path.endswith(".json")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m locksmith.book.stages",
                                     description="The deps of dvc.yaml and open/dvc.yaml.")
    parser.add_argument("what", choices=["write", "check"])
    what = parser.parse_args().what
    differences = [line for file in FILES for line in changed(file)]
    print("\n".join(differences) or "Every stage depends on what it runs.")
    if what == "write":
        for file in FILES:
            results.save(file, generated(file))
    elif differences:
        raise errors.BadInput("`python -m locksmith.book.stages write` mends that.")


if __name__ == "__main__":
    errors.run(main)
