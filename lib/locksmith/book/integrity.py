"""Whether what the book shows is what was measured, before a page is made of it.

    python -m locksmith.book.integrity     # after `dvc pull`: also names what the store lacks

An executed notebook carries its own SHA-256 and those of the results and figures that it was made
with. results/facts.csv has to be what the records give, and checkpoints and data what dvc.lock,
data.dvc and the records state: DVC itself checks neither the lists of a folder's files that a
store hands out nor a file of its cache that is damaged later.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat

from locksmith import arms, errors, params, plain_yaml, results, staging

STAMP = "locksmith"  # in a notebook's metadata
STATED = ("dvc.lock", "data.dvc")  # what says which checkpoints and data there are
# A cache that took a damaged list of a folder's files hands it out as if it were sound, and DVC's
# index, which .dvc/tmp names, remembers an empty one.
RENEW = ("`git checkout .dvcstore && rm -r .dvc/cache .dvc/tmp && dvc pull --force "
         "--allow-missing` brings what git has")


class IntegrityError(errors.BadInput):
    """A file is not what was made; the message names it and what brings it back."""


# ---- executed notebooks


def stamp(notebook: nbformat.NotebookNode, name: str, made_with: dict[str, str]) -> None:
    """Write into a notebook what `executed` checks.

    name: its path in the book; made_with: {path in the book: SHA-256} of `inputs` and `outputs`.
    """
    notebook["metadata"][STAMP] = {"path": name, "made_with": dict(sorted(made_with.items()))}
    as_in_its_file = json.loads(nbformat.writes(notebook))
    notebook["metadata"][STAMP]["sha256"] = _own(as_in_its_file)


def executed(name: str, root: Path) -> dict:
    """An executed notebook as its file holds it; IntegrityError where it, or what it was made with,
    is not what its run left."""
    path = root / name
    again = f"run the chapter again (`dvc repro`, or `notebooks run` for {Path(name).name})"
    text = plain_yaml.text(path)
    try:
        notebook = json.loads(text)
        stated = notebook["metadata"][STAMP]
        right = stated["path"] == name and stated["sha256"] == _own(notebook)
        made_with = dict(stated["made_with"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        where = f", line {error.lineno}," if isinstance(error, json.JSONDecodeError) else ""
        raise IntegrityError(f"{path}{where} is not a notebook that says what it was made with; "
                             f"{again}.") from None
    if not right:
        raise IntegrityError(f"{path} is not as its run left it; `dvc checkout --force` brings "
                             f"back the versioned one, or {again}.")
    for other, sha256 in made_with.items():
        if not (root / other).is_file():
            raise IntegrityError(f"{root / other} does not exist, with which {path} was made; "
                                 f"`git checkout` brings it back, or {again}.")
        if results.sha256(root / other) != sha256:
            raise IntegrityError(f"{root / other} is not the one with which {path} was made; "
                                 f"`git checkout` brings that back, or {again}.")
    return notebook


def _own(notebook):
    """SHA-256 of a notebook without this hash."""
    metadata = notebook["metadata"]
    bare = {key: value for key, value in metadata[STAMP].items() if key != "sha256"}
    whole = {**notebook, "metadata": {**metadata, STAMP: bare}}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def inputs(notebook: Path, profile: str) -> dict[str, str]:
    """SHA-256 of the records, and the claims, that a chapter's stage depends on, and of the figures
    of those records: what is there before it runs. (`check` looks after the data.)"""
    found = {}
    for file in ("dvc.yaml", "open/dvc.yaml"):
        try:
            stages = plain_yaml.read(file)["stages"].values() if Path(file).exists() else ()
            for stage in stages:
                command = stage["cmd"].replace("${profile}", profile).split()
                if command[3:] == ["run", notebook.as_posix(), "--profile", profile]:
                    found |= {dep.replace("${profile}", profile): None for dep in stage["deps"]}
        except (LookupError, TypeError, AttributeError):
            raise IntegrityError(f"{file} is not as DVC reads it; `git checkout {file}` brings "
                                 "that back.") from None
    records = [Path(dep) for dep in found if re.fullmatch(r"results/.*\.json", dep)]
    paths = [Path("claims.yml")] * ("claims.yml" in found) + records
    paths += [figure for path in records
              for figure in path.parent.glob(f"figures/{path.stem}_*.png")]
    return {path.as_posix(): results.sha256(path) for path in paths if path.is_file()}


def outputs() -> dict[str, str]:
    """SHA-256 of the records and figures that the run has written, of another profile's too."""
    return {place.as_posix(): results.sha256(staging.newest(place))
            for place in staging.written("results")}


# ---- what DVC keeps


def check(profile: str, root: Path = Path(), whole: bool = False) -> None:
    """Raises IntegrityError, naming the file, unless the table of facts, the data and the
    checkpoints that a profile's book stands on are what records, dvc.lock and data.dvc state.

    What is not there is no fault, unless `whole`: a book is built without checkpoints too.
    """
    results.check_table(root / "results")
    own = params.load(profile, root / "params.yaml")["checkpoints"]
    _check_data(own, root)  # these two name the file, DVC's hash only its folder
    _check_checkpoints(profile, root)
    lacking = next((file for file in STATED if not (root / file).exists()), None)
    if whole and lacking:
        raise IntegrityError(f"{root / lacking} is missing; `git checkout {lacking}` brings that "
                             "back.")
    for file, path, md5 in _outs(root, own):
        if not (root / path).exists():
            if whole:
                raise IntegrityError(f"{root / path} is missing: the store has no sound copy of "
                                     f"what {file} states; {RENEW}, else `dvc repro` makes it "
                                     "again.")
        elif _md5(root / path) != md5:
            raise IntegrityError(f"{root / path} is not what {file} states; `dvc checkout --force "
                                 f"{path}` brings that back, `dvc commit` keeps this one; where "
                                 f"DVC's cache is damaged too, {RENEW}.")


def _outs(root, profile) -> Iterator[tuple[str, str, str]]:
    """(file that states it, path, md5) of a profile's checkpoints and of the data, but those that
    the store does not get."""
    kept = ("data", f"checkpoints/{profile}/")
    for file in STATED:
        if not (root / file).exists():
            continue
        content = plain_yaml.read(root / file)
        try:
            stages = content["stages"].values() if file == "dvc.lock" else [content]
            outs = [(file, out["path"], out["md5"]) for stage in stages
                    for out in stage.get("outs", [])]
            yield from (out for out in outs if out[1].startswith(kept)
                        and not out[1].endswith("_steps"))
        except (LookupError, TypeError, AttributeError):
            raise IntegrityError(f"{root / file} is not as DVC writes it; `git checkout {file}` "
                                 "brings that back.") from None


def _md5(path):
    """The hash that DVC gives a file, or a folder: that of the list of its files."""
    if path.is_file():
        return hashlib.md5(path.read_bytes()).hexdigest()
    files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*")
                   if file.is_file())
    listed = [{"md5": _md5(file), "relpath": name} for name, file in files]
    return hashlib.md5(json.dumps(listed).encode()).hexdigest() + ".dir"


def _check_data(profile, root):
    """results/<profile>/data.sha256, in git, against the problems that are there."""
    sums = root / "results" / profile / "data.sha256"
    if not sums.exists():
        if (root / "data" / profile).exists():
            raise IntegrityError(f"{sums} does not exist, which states what data/{profile} holds; "
                                 f"`git checkout {sums}` brings that back.")
        return
    for number, line in enumerate(plain_yaml.text(sums).splitlines(), 1):
        stated = re.fullmatch(rf"([0-9a-f]{{64}})  (data/{profile}/\w+\.jsonl)", line)
        if stated is None:
            raise IntegrityError(f"{sums}, line {number} is not a SHA-256 and a file of "
                                 f"data/{profile}; `git checkout {sums}` brings that back.")
        path = root / stated[2]
        if path.parent.exists() and (not path.exists() or results.sha256(path) != stated[1]):
            raise IntegrityError(f"{path} is not what {sums}, line {number} states; `dvc checkout "
                                 "--force data` brings that back.")


def _check_checkpoints(profile, root):
    """The weights that are there against those that the profile's records were made with."""
    known, folder = arms.load(root / "arms.yml"), root / "results" / profile
    hashes = {}
    for path in (*folder.glob("*.json"), *folder.glob("train/*.json")):
        chapter = path.relative_to(folder).with_suffix("").as_posix()
        made_from = results.load(path, profile, chapter, known)["provenance"]["checkpoints"]
        for name, sha256 in made_from.items():
            weights = next(iter(sorted((root / name).glob("*model.safetensors"))), None)
            if weights and weights not in hashes:
                hashes[weights] = results.sha256(weights)
            if weights and hashes[weights] != sha256:
                raise IntegrityError(f"{weights} is not the model that {path} was made with; "
                                     "`dvc checkout --force` brings that back, `dvc repro` runs "
                                     "the chapter again.")


def main() -> None:
    argparse.ArgumentParser(prog="python -m locksmith.book.integrity",
                            description=check.__doc__.splitlines()[0]).parse_args()
    check(params.default(), whole=True)
    print("Facts, data and checkpoints are as stated.")


if __name__ == "__main__":
    errors.run(main)
