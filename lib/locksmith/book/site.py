"""The rendered book: assembles pages, executed chapters and results, and runs Jupyter Book on them.

    python -m locksmith.book.site build [--profile lab]

Every page stands in the assembled folder (build/asm) at the path it has in the repository, as the
Colab button is made from that path. Executed chapters come from build/notebooks/<profile>/; the
book itself executes nothing. Numbers reach the prose as substitutions, from results/facts.csv:

    {{ "%.2f" | format(this.ch02.countdown.base["pass_at_k[k=1]"].value) }}      this profile
    {{ res.open.ch02.sums.base["pass_at_k[k=1]"].text }}                        value [low, high]

An undefined name is a warning, and any warning fails the build. The module is also a Sphinx
extension that writes maths as MathML, so that no page needs a script from elsewhere.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from latex2mathml.converter import convert
from pybtex.database import parse_string
from pybtex.exceptions import PybtexError

from locksmith import errors, params, plain_yaml, quantities, staging
from locksmith.book import (
    about,
    claims,
    endurance,
    formats,
    glossary,
    integrity,
    layout,
    opening,
    play,
    speed,
)

WAITING = """

```{note}
This chapter has not been run yet. Its rules are already on the [verdict page](verdict.ipynb).
Figures and numbers will appear below its cells.
```
"""
PAGES = ("_config.yml", "_toc.yml", "references.bib", "claims.yml", "arms.yml", "terms.yml",
         "CITATION.cff")


class BookError(errors.BadInput):
    """The book cannot be built; the message is one sentence for the reader."""


# ------------------------------------------------------------------------------------------------
# Assembling


def assemble(profile: str, root: str | Path = ".", out: str | Path = "build/asm") -> Path:
    """Lay out the book's sources for `profile` in the folder `out` (emptied first); returns it."""
    root, out = Path(root), Path(out)
    staging.settle(root)
    toc, settings = contents(root), plain_yaml.read(root / "_config.yml")
    files = [entry["file"] for entry in toc["chapters"] if entry["file"] != "post"]
    pages = [toc["root"], *(file for file in files if (root / f"{file}.md").exists())]
    chapters = [file for file in files if file not in pages]
    folder = f"build/notebooks/{profile}"
    missing = [c for c in chapters if not (root / folder / f"{Path(c).name}.ipynb").exists()]
    waiting = [c for c in missing if c in frozen(root)]
    if missing := [c for c in missing if c not in waiting]:
        raise BookError(f"{', '.join(missing)} of _toc.yml not executed for profile {profile!r} "
                        f"(no notebook in {root / folder}); run `dvc repro` first.")
    integrity.check(profile, root)
    notebooks = [unexecuted(root / f"{c}.ipynb") if c in waiting else
                 integrity.executed(f"{folder}/{Path(c).name}.ipynb", root) for c in chapters]
    real = on_real_weights(profile, root, chapters)
    home = address(root / "_config.yml")
    book, judged, shown = claims.judge(profile, root)
    _check_references(root, book)
    article = post(root)
    numbers = {**endurance.substitutions(root), **speed.substitutions(root)}
    boxes = openings(profile, root, settings, (book, judged, shown), real)
    words = {**glossary.substitutions(root), "how_to_cite": about.citation(root)}
    if not plain_yaml.text(root / f"{toc['root']}.md").strip():
        raise BookError(f"{root / toc['root']}.md is empty; `git checkout` brings it back.")
    _remove(out)
    out.mkdir(parents=True)
    for name in (*PAGES, *(f"{page}.md" for page in pages)):
        shutil.copy(root / name, out / name)
    shutil.copytree(root / "_static", out / "_static")
    # Scripts of one page; those in _static would come with every page.
    play.lay_out(profile, root, out / "extra" / play.SCRIPTS)
    settings.setdefault("sphinx", {}).setdefault("config", {})["html_extra_path"] = ["extra"]
    made = dict(zip(chapters, notebooks, strict=True))
    made |= {chapter + about.REAL: notebook for chapter, notebook in real.items()}
    for page, notebook in made.items():
        target = out / f"{page}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        more = ", on real weights" if page.endswith(about.REAL) else ""
        notebook = with_box(notebook, boxes.get(page, ""), more)
        notebook = with_claims(notebook, sections(book, judged, shown))
        laid(notebook, target, out)
    for entry in toc["chapters"]:
        if entry["file"] in real:
            entry["sections"] = [{"file": entry["file"] + about.REAL}]
    (out / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False), encoding="utf-8")
    (out / "post.md").write_text(article, encoding="utf-8")
    for file in [root / "results" / "facts.csv", *root.glob("results/*/figures/*.png")]:
        if file.exists():
            target = out / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    settings.setdefault("parse", {})["myst_substitutions"] = {
        **substitutions(profile, root), **numbers, **words}
    settings["sphinx"]["config"] |= {
        "book_address": home, "book_card": card(root, article, out / about.CARD)}
    (out / "_config.yml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return out


def frozen(root: Path) -> set[str]:
    """Chapters, as _toc.yml names them, whose stages are frozen: what they read takes hours to
    make, and their pages are there before anybody has run them."""
    path = root / "dvc.yaml"
    stages = plain_yaml.read(path)["stages"].values() if path.exists() else ()
    return {stage["cmd"].split()[4].removesuffix(".ipynb") for stage in stages
            if stage.get("frozen") and "locksmith.book.notebooks run" in stage["cmd"]}


def unexecuted(path: Path) -> dict:
    """A chapter as it stands in git, and says that it has not been run."""
    notebook = json.loads(plain_yaml.text(path))
    notebook["cells"][0]["source"] = "".join(notebook["cells"][0]["source"]).rstrip() + WAITING
    return notebook


def _remove(folder):
    if folder.exists():
        shutil.rmtree(folder)


def contents(root: Path) -> dict:
    """_toc.yml: its first page and its chapters, a list of mappings with `file`."""
    path = root / "_toc.yml"
    toc = plain_yaml.read(path)
    try:
        files = [toc["root"], *(entry["file"] for entry in toc["chapters"])]
    except (TypeError, LookupError):
        files = [None]
    if not all(isinstance(file, str) for file in files):
        raise BookError(f"{path} is no table of contents; needed are root, a page, and chapters, "
                        "each with its file.")
    return toc


def address(config: str | Path) -> str:
    """Where GitHub Pages serves the book, with a slash at its end; html.baseurl comes first."""
    settings = plain_yaml.read(config)
    try:
        known = settings.get("html", {}).get("baseurl")
        found = re.fullmatch(r"https://github\.com/([^/]+)/([^/]+)", settings["repository"]["url"])
    except (TypeError, LookupError, AttributeError):
        known = found = None
    if not isinstance(settings, dict) or not isinstance(settings.get("parse", {}), dict):
        raise BookError(f"{config}: the file and its `parse` have to be mappings.")
    if not known and not found:
        raise BookError(f"{config}: the book's address does not follow from repository.url; put "
                        "it into html.baseurl.")
    return (known or f"https://{found[1]}.github.io/{found[2]}").rstrip("/") + "/"


def _check_references(root, book):
    """references.bib can be read, and every source of a published figure is in it."""
    path = root / "references.bib"
    try:
        known = parse_string(plain_yaml.text(path), "bibtex").entries
    except PybtexError as error:
        raise BookError(f"{path}: {error}.") from None
    for i, claim in enumerate(book["claims"]):
        for j, figure in enumerate(claim["published"]):
            if figure["source"] not in known:
                text = plain_yaml.text(root / "claims.yml")
                line = plain_yaml.line(text, "claims", i, "published", j, "source")
                raise BookError(f"{root / 'claims.yml'}, line {line}: " + quantities.unknown(
                    f"{path.name}: source", figure["source"], known))


def post(root: Path) -> str:
    """The post as a page, its links and figures relative to the assembled folder."""
    from locksmith.book.sentences import Writer
    return Writer(root, lambda page: f"{page}.ipynb" if "/" in page else f"{page}.md",
                  lambda path: path.relative_to(root).as_posix()).render(whole=True)


def on_real_weights(profile: str, root: Path, chapters: list[str]) -> dict[str, dict]:
    """Chapter -> its notebook as profile open ran it, of the chapters that `profile` ran on models
    of its own."""
    found = {}
    for chapter in chapters * (profile != "open"):
        path = f"build/notebooks/open/{Path(chapter).name}.ipynb"
        record = root / "results" / profile / f"{opening.number(chapter)}.json"
        if record.exists() and (root / path).exists():
            found[chapter] = integrity.executed(path, root)
    return found


def openings(profile: str, root: Path, settings: dict, judged: tuple,
             real: Collection[str]) -> dict[str, str]:
    """Page of a chapter -> the box at its top. real: chapters that have a page on real weights."""
    from locksmith.book.sentences import Writer
    found, boxes, writer = opening.load(root), {}, Writer(root, str, str)
    for chapter in (entry["file"] for entry in contents(root)["chapters"]):
        entry = found.get(opening.number(chapter))
        if entry is None:
            continue
        beside = {"open": f"{Path(chapter).name}{about.REAL}.ipynb"} if chapter in real else {}
        boxes[chapter] = opening.box(opening.number(chapter), entry, judged, writer,
                                     opening.colab(settings, chapter), beside)
        if chapter in real:
            boxes[chapter + about.REAL] = opening.again(chapter, entry, judged, writer)
    return boxes


def card(root: Path, article: str, path: Path) -> str:
    """Draw the card of the post `article` (Markdown) as `path`; returns its alternative text."""
    from locksmith.book import post as page
    from locksmith.book.sentences import Writer, description
    page.card(Writer(root, str, str), page.headline(article), path)
    return description(path)


def laid(notebook: dict, target: Path, out: Path) -> None:
    """Write an executed notebook as the page `target` of the assembled folder `out`, with numbered
    figures and tables and the CSV files that they are drawn from."""
    number = opening.number(target.stem)
    if target.stem.endswith(about.REAL):
        number = f"R{int(number)}"  # Figure R1.2
    steps = "../" * (len(target.relative_to(out).parts) - 1)
    page = layout.Page(number, f"{steps}_static/facts/")
    notebook["cells"] = page.cells(notebook["cells"])
    page.write(out / "_static" / "facts")
    target.write_text(json.dumps(notebook, indent=1), encoding="utf-8")


def with_box(notebook: dict, box: str, more: str = "") -> dict:
    """Set a box (MyST), if it is not empty, right under a chapter's title, to which `more` is
    added.

    This is done when the book is built, so that a chapter need not run again for a verdict.
    """
    first = notebook["cells"][0]
    title, _, prose = "".join(first["source"]).partition("\n")
    first["source"] = "\n\n".join(filter(None, [title + more, box, prose.strip()]))
    return notebook


def sections(book: dict, judged: list[dict], profiles: dict[str, str]) -> list[str]:
    """Every claim whole under its own heading (Markdown), from what claims.judge gives."""
    return [f"## {claim['title']}\n\n{claims.section(claim, judged, profiles)}"
            for claim in book["claims"]]


def with_claims(notebook: dict, sections: list[str]) -> dict:
    """Set sections (Markdown) where a cell is tagged `claims`: headings that a cell prints are none
    that a page could be linked to."""
    cells = []
    for cell in notebook["cells"]:
        if "claims" in cell["metadata"].get("tags", []):
            cells += [{"cell_type": "markdown", "id": f"claim-{i}", "metadata": {},
                       "source": section}
                      for i, section in enumerate(sections)]
        else:
            cells.append(cell)
    notebook["cells"] = cells
    return notebook


def substitutions(profile: str, root: str | Path = ".") -> dict:
    """What pages may write between double braces: profile, this, res and verdict_table."""
    rows = claims.facts(Path(root) / "results" / "facts.csv")
    res = {}
    for row in rows:
        chapters = res.setdefault(row["profile"], {})
        families = chapters.setdefault(params.chapter_key(row["chapter"]), {})
        models = families.setdefault(row["family"], {})
        fact = {name: row[name] for name in ("value", "low", "high", "n_problems", "seeds")}
        fact["text"] = formats.interval([row[key] for key in ("value", "low", "high")])
        models.setdefault(row["model"], {})[row["quantity"]] = fact
    book, judged, shown = claims.judge(profile, root)
    return {"profile": profile, "this": res.get(profile, {}), "res": res,
            "verdict_table": claims.summary(book, judged, shown)}


# ------------------------------------------------------------------------------------------------
# Building


def build(profile: str, root: str | Path = ".") -> Path:
    """Build the HTML book and return the path of its first page; warnings are errors."""
    root = Path(root)
    return html(assemble(profile, root, root / "build" / "asm"), root / "build" / "book")


def html(asm: Path, book: Path, strict: bool = True, builder: str = "html") -> Path:
    """Run Jupyter Book on the assembled folder `asm` for the folder `book`, which it replaces;
    returns the path of its first page. BookError where that fails; strict: on any warning too.
    builder: "html", or "singlehtml" for all on one page."""
    site = book.with_name("site")
    _remove(site)
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build",
               str(asm), "--path-output", str(site), "-n", "--keep-going", "-q", *["-W"] * strict,
               "--builder", builder]
    done = subprocess.run(command, capture_output=True, text=True, check=False,
                          env={**os.environ, "NO_COLOR": "1"})
    made = site / "_build" / builder
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line or "ERROR" in line]
    if done.returncode or warnings and strict or not (made / "index.html").exists():
        said = warnings if warnings and strict else [done.stdout, done.stderr]
        raise BookError("Jupyter Book failed:\n" + "\n".join(said))
    _remove(book)
    shutil.move(made, book)
    (book / ".nojekyll").touch()  # GitHub Pages would drop _static otherwise
    return book / "index.html"


# ------------------------------------------------------------------------------------------------
# Maths without a script: a Sphinx extension


def mathml(latex: str, display: str) -> str:
    """LaTeX -> a <math> element. ValueError on LaTeX that the converter would pass through raw."""
    element = convert(latex, display=display)
    if "&</mi>" in element or "\\" in element:
        raise ValueError(f"MathML has no translation for all of {latex!r}; write it more simply.")
    return element


def _visit(display):
    def visit(translator, node):
        from docutils.nodes import SkipNode
        try:
            element = mathml(node.astext().strip(), display)
        except ValueError as error:
            from sphinx.util import logging
            logging.getLogger(__name__).warning(str(error), location=node)
            element = translator.encode(node.astext())
        if display == "block":
            element = f'<div class="math-display">{element}</div>\n'
        translator.body.append(element)
        raise SkipNode
    return visit


def setup(app: Any) -> dict:
    """Sphinx calls this when _config.yml names `locksmith.book.site` among its extensions."""
    app.add_html_math_renderer("mathml", (_visit("inline"), None), (_visit("block"), None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


# ------------------------------------------------------------------------------------------------


if __name__ == "__main__":
    errors.run(lambda: params.build_command("site", build))
