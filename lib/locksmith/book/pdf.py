"""The book as one PDF, printed by a Chromium of this machine, and the pages that offer it.

    python -m locksmith.book.pdf build [--profile lab]

Jupyter Book's single page is printed; the style for paper stands in _static/book.css. The pages
are built after it; those that `locksmith.book.site` builds later offer no PDF of an older book.
"""

from pathlib import Path

from locksmith import errors, params
from locksmith.book import about, chromium, looks, site

PAPER = (680, 986)  # pixels of A4 between the margins of _static/book.css


def build(profile: str, root: str | Path = ".") -> Path:
    """Build the PDF and the HTML pages with it; returns the path of the PDF.

    chromium.NoBrowser where nothing can print, before anything is built. errors.BadInput with what
    is wider than the paper, for which all else would be printed smaller.
    """
    chromium.find()
    root = Path(root)
    asm = site.assemble(profile, root, root / "build" / "asm")
    page = site.html(asm, root / "build" / "one_page", builder="singlehtml")
    with chromium.opened(*PAPER) as tab:
        tab.call("Emulation.setEmulatedMedia", media="print")
        tab.open(page)
        tab.evaluate(looks.SCRIPT.read_text(encoding="utf-8"))
        if wide := tab.evaluate("wide()"):
            raise errors.BadInput("The book does not fit on its paper:\n" + "\n".join(
                f"{fault['says']}: {fault['html'][:120]}" for fault in wide))
        tab.print(asm / about.PDF)
    return site.html(asm, root / "build" / "book").parent / about.PDF


if __name__ == "__main__":
    errors.run(lambda: params.build_command("pdf", build))
