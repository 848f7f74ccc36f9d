"""The book as one PDF, printed by a Chromium of this machine, and the pages that offer it.

    python -m locksmith.book.pdf build [--profile lab]

Jupyter Book's single page is printed; the style for paper stands in _static/book.css. The pages
are built after it; those that `locksmith.book.site` builds later offer no PDF of an older book.
"""

from pathlib import Path

from locksmith import errors, params
from locksmith.book import about, browser, site


def build(profile: str, root: str | Path = ".") -> Path:
    """Build the PDF and the HTML pages with it; returns the path of the PDF.

    browser.NoBrowser where nothing can print, before anything is built.
    """
    browser.find()
    root = Path(root)
    asm = site.assemble(profile, root, root / "build" / "asm")
    page = site.html(asm, root / "build" / "one_page", builder="singlehtml")
    browser.run(page, "--no-pdf-header-footer", f"--print-to-pdf={(asm / about.PDF).resolve()}")
    return site.html(asm, root / "build" / "book").parent / about.PDF


if __name__ == "__main__":
    errors.run(lambda: params.build_command("pdf", build))
