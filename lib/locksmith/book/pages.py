"""Pages of single chapters, for a pair that is not the book's own.

    python -m locksmith.book.pages build --profile paper

The chapters that were executed under a profile, as they are, without the post, which is about the
book's own models. The verdict page is among them where it was executed too: it judges every claim
by this profile's facts.
"""

import re
import shutil
from pathlib import Path

import yaml

from locksmith import errors, params, plain_yaml, results
from locksmith.book import claims, integrity, notebooks, site

FIRST = """# Chapters for a pair of models

These chapters of the book were run with the profile `{profile}`. {verdicts}

| chapter | base model | thinking model |
|---|---|---|
{rows}

```{{bibliography}}
```
"""
VERDICT = "verdict.ipynb"
OWN = ("The verdicts on the claims are left out, since they are about the book's own models.",
       f"The [verdict page]({VERDICT}) judges every claim by what they measured.")
LINK = re.compile(r"\[([^\]]*)\]\(([\w.-]+\.ipynb)[^)]*\)")


def build(profile: str) -> Path:
    """Build HTML pages of the chapters that were executed under a profile; returns the path of the
    first page, which names the models. BookError where there is none, IntegrityError where one is
    not what its run left."""
    folder = Path("build/notebooks", profile)
    names = sorted(path.name for path in folder.glob("*.ipynb"))
    if not names:
        raise site.BookError(f"no chapter was executed for profile {profile!r} (no notebook in "
                             f"{folder}); run `python -m locksmith.book.notebooks run` first.")
    pages = {name: integrity.executed((folder / name).as_posix(), Path()) for name in names}
    out = Path("build/pages_asm")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    shutil.copytree("_static", out / "_static")
    if VERDICT in pages:
        pages[VERDICT] = site.with_claims(pages[VERDICT], site.sections(*claims.judge(profile)))
    for name, page in pages.items():
        site.laid(_unlinked(page, names), out / name, out)
    rows = "\n".join(f"| []({name}) | {_models(profile, name)} |"
                     for name in names if name != VERDICT)
    first = FIRST.format(profile=profile, rows=rows, verdicts=OWN[VERDICT in pages])
    (out / "index.md").write_text(first, encoding="utf-8")
    shutil.copy("references.bib", out)
    settings = plain_yaml.read("_config.yml") | {"launch_buttons": {}}
    toc = {"format": "jb-book", "root": "index", "chapters": [{"file": name} for name in names]}
    for file, content in (("_config.yml", settings), ("_toc.yml", toc)):
        (out / file).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    # A model may have written bytes that Jupyter Book warns of: no fault of these pages.
    return site.html(out, Path("build/pages", profile), strict=False)


def _models(profile, name):
    """The names of a chapter's base and thinking model, as cells of a table."""
    record = results.read(profile, notebooks.number(name))
    given = record["provenance"]["parameters"]["chapter"]
    return " | ".join(f"`{given[x]}`" if given.get(x) else "none"
                      for x in ("base_model", "thinking_model"))


def _unlinked(page, names):
    """A notebook whose links to chapters that are not among `names` are plain text."""
    for cell in page["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = LINK.sub(lambda m: m[0] if m[2] in names else m[1],
                                      "".join(cell["source"]))
    return page


if __name__ == "__main__":
    errors.run(lambda: params.build_command("pages", build))
