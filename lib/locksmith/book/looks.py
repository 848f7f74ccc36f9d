"""What nobody should see on the book's pages: broken links, faint text, pages that overflow.

    python -m locksmith.book.looks        # every page of build/book, in light and in dark

axe-core judges contrast (4.5:1, of large letters too, for which WCAG 2.1 1.4.3 asks 3:1) and the
texts of pictures and links, in a Chromium of this machine. Folded parts are unfolded first.
"""

import itertools
from collections.abc import Iterable
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from urllib.parse import unquote, urlsplit

from locksmith import errors
from locksmith.book import chromium

DESK, PHONE = (1280, 900), (390, 844)  # pixels
THEMES = ("light", "dark")
SCRIPT = Path(__file__).with_name("looks.js")
PLACES = ("href", "src", "data-target")


class _Page(HTMLParser):
    """The ids of a page, and the addresses that it names."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        self.links += [given[key] for key in PLACES if given.get(key)]


def links(book: Path) -> list[str]:
    """Links between the pages and files of a folder that lead nowhere: "page: link", in order."""
    pages = {path.resolve(): _Page(path.read_text(encoding="utf-8"))
             for path in sorted(book.rglob("*.html")) if "_static" not in path.parts}
    broken = []
    for path, page in pages.items():
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = target.is_file() and (target not in pages or not parts.fragment or
                                          unquote(parts.fragment) in pages[target].ids)
            if not there:
                broken.append(f"{path.relative_to(book.resolve())}: {link} leads nowhere")
    return broken


def faults(pages: Iterable[Path], book: Path) -> list[str]:
    """What is wrong with the looks of some pages of the folder `book`: "page, theme: what".

    chromium.NoBrowser or errors.BadInput where Chromium or axe-core is missing.
    """
    try:
        axe = (resources.files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")
    except ModuleNotFoundError:
        raise errors.BadInput("axe-core is not installed; `pip install axe-core-python` "
                              "brings it.") from None
    script, told = axe + SCRIPT.read_text(encoding="utf-8"), []
    with chromium.opened() as tab:
        for page, theme in itertools.product(pages, THEMES):
            tab.theme(theme)
            tab.size(*DESK)
            tab.open(page)
            tab.evaluate(script)
            found = tab.evaluate("faults()")
            tab.size(*PHONE)
            told += [f"{page.relative_to(book).as_posix()}, {theme}: {fault['says']}: "
                     f"{fault['html'][:120]}" for fault in found + tab.evaluate("wide()")]
    return told


def check(book: Path = Path("build/book")) -> None:
    """Raise BadInput with every fault of every page of a built book."""
    pages = [path for path in sorted(book.rglob("*.html")) if "_static" not in path.parts]
    if not pages:
        raise errors.BadInput(f"{book} holds no page; run `make book` first.")
    if found := [*links(book), *faults(pages, book)]:
        raise errors.BadInput(f"{len(found)} faults on the pages:\n" + "\n".join(found))
    print(f"{len(pages)} pages in light and dark: links, contrast and width are right")


if __name__ == "__main__":
    errors.run(check)
