"""Colab: each chapter's first code cell, and what it calls to make a bare runtime ready.

The repository's address stands in _config.yml alone. After changing it in a fork,
`python -m locksmith.book.colab` writes it into every chapter.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from locksmith import errors, params, plain_yaml

# The runtime's own torch, numpy and pandas stay: pyproject.toml asks for ranges, no constraints.
CELL = """\
# Makes a bare Colab runtime ready for this chapter; anywhere else it costs nothing.
import os
import subprocess
import sys
from pathlib import Path

if "google.colab" in sys.modules:
    url = os.environ.get("LOCKSMITH_REPO", "{address}")
    above = [Path.cwd(), *Path.cwd().parents]
    book = next((p for p in above if (p / "lib/locksmith").is_dir()), Path("book"))
    if not book.exists():
        if subprocess.call(["git", "-c", "core.askPass=true", "clone", "-qb", "{ref}", url, book]):
            sys.exit(f"No repository at {{url}}; name one that answers in LOCKSMITH_REPO.")
    os.chdir(book)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", ".{extras}"], check=True)
    sys.path.insert(0, os.path.abspath("lib"))
    from locksmith.book import colab
    colab.prepare("{chapter}")
elif os.path.basename(os.getcwd()) == "chapters":
    os.chdir("..")"""
PROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"


def cell(chapter: str, config: str | Path = "_config.yml") -> str:
    """Source of the first code cell of a chapter (its file name without .ipynb)."""
    repository = plain_yaml.read(config)["repository"]
    return CELL.format(address=repository["url"], ref=repository["branch"], chapter=chapter,
                       extras=extras(chapter, Path(config).parent))


def extras(chapter: str, root: Path = Path(".")) -> str:
    """The extras of pyproject.toml that a chapter or a module that it reaches imports from, as pip
    takes them: "[open]", or "" for none. Ray is imported only where somebody names a cluster."""
    from locksmith.book import stages

    stage = {"cmd": f"python -m locksmith.book.notebooks run chapters/{chapter}.ipynb"}
    code = "\n".join(stages.source(root / path) for path in stages.modules(stage, root))
    imported = set(re.findall(r"^ *(?:import|from) (\w+)", code, re.M))
    offered = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    names = {extra: {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in lines}
             for extra, lines in offered.items()}
    wanted = [extra for extra, packages in names.items()
              if packages & imported and extra != "scale"]
    return f"[{','.join(wanted)}]" if wanted else ""


def prepare(chapter: str) -> None:
    """Brings the checkpoints and data that a chapter reads from the DVC remote, no others."""
    targets = needs(chapter, "open/dvc.yaml" if profile(chapter) == "open" else "dvc.yaml")
    if targets:
        dvc = [sys.executable, "-m", "dvc", "pull", "-q", *targets]
        subprocess.run(dvc, check=True)


def needs(chapter: str, pipeline: str | Path = "dvc.yaml") -> list[str]:
    """Paths under checkpoints/ and data/ that a chapter's stage depends on, in the lab profile or,
    of open/dvc.yaml, of the real pair.

    Less the checkpoints on the way (*_steps), of controls and of chapter 7's ladders, which the
    remote does not hold.
    """
    stages = plain_yaml.read(pipeline)["stages"]
    trained = [out if isinstance(out, str) else next(iter(out))
               for out in stages.get("real-rl", {}).get("outs", ())]
    for stage in stages.values():
        deps = stage.get("deps", [])
        if f"chapters/{chapter}.ipynb" in deps:
            paths = [d.replace("${profile}", "lab") for d in (*deps, *trained)]
            return [p for p in paths
                    if p.startswith(("checkpoints/", "data/"))
                    and not p.endswith(("_steps", "_controls", "/ladders"))]
    raise errors.BadInput(f"{pipeline} has no stage for chapter {chapter!r}.")


def adapt(variables: dict, chapter: str) -> None:
    """On a Colab runtime, puts the values of the profile that it carries into a chapter's globals.

    variables: the notebook's globals(). Only the page's own profile is swapped: a reader who chose
    another keeps it; nor are anybody's terms accepted.
    """
    here = profile(chapter)
    if "google.colab" not in sys.modules or variables["profile"] != "lab" or here == "lab":
        return
    chosen = dict(params.load(here)["chapters"].get(params.chapter_key(chapter), {}))
    chosen.pop("accept_terms", None)
    variables.update(chosen, profile=here)
    found = "A GPU" if here == "open" else "No GPU"
    print(f"{found} here: profile {here}, {chosen}. The page was made with profile lab.")


def profile(chapter: str) -> str:
    """The profile that a Colab runtime carries of a chapter, by its number or file name: on a GPU
    "open", the real pair, or the page's own "lab" where that has no such chapter; else "colab"."""
    import torch

    if not torch.cuda.is_available():
        return "colab"
    known = params.load("open")["chapters"]
    return "open" if params.chapter_key(chapter.partition("_")[0]) in known else "lab"


def main() -> None:
    import nbformat

    for path in sorted(Path("chapters").glob("*.ipynb")):
        nb = nbformat.read(path, as_version=4)
        tagged = [c for c in nb.cells if "colab" in c.metadata.get("tags", [])]
        if len(tagged) != 1:
            raise errors.BadInput(f"{path} has {len(tagged)} cells tagged colab; allowed is one.")
        right = cell(path.stem)
        if tagged[0].source != right:
            tagged[0].source = right
            nbformat.write(nb, path)
            print(f"{path}: first cell written")


if __name__ == "__main__":
    errors.run(main)
