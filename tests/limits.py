"""Whether the chapters of a built book keep to what a reader gets through.

    python tests/limits.py [build/book]     a line a chapter, and a fault a line; fails with any

Code cells, tables and rows are counted as they stand open, the others are folded; screens, where
there is a Chromium, at 1280x900. What code shows has a number, a caption and links; a figure's
caption tells the seeds, and how many series `plots.save` counted in it.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

from locksmith.book import chromium

CELLS, TABLES, ROWS, SERIES, SCREENS = 12, 3, 12, 8, 15
ALT = 300  # characters
WIDTH, HEIGHT = 1280, 900  # pixels
NEVER_SHOWN = {"tag_colab", "tag_injected-parameters"}
# A figure's series, and the number under which it or a table stands.
NUMBER = re.compile(r'(?:data-series="(\d+)">)?<b>((Figure|Table) [\w.]+)\.</b>')
SEEDS = re.compile(r"\b(?:one|\d+) seeds?\b")


class Page(HTMLParser):
    """What stands open on a page, code cells and the rows of each table; what its code shows,
    figures and tables; its alt texts; what has a number; and whether a box opens it."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.tables, self.alts, self.inside = 0, [], [], []
        self.shown, self.box = {"Figure": 0, "Table": 0}, False
        # (series or None, number, Figure or Table, its caption and links: what follows) of each.
        self.named = list(zip(*[iter(NUMBER.split(text)[1:])] * 4, strict=True))
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        classes = set((given.get("class") or "").split())
        around = {name for _, names in self.inside for name in names}
        folded = any(outer == "details" for outer, _ in self.inside)
        self.box |= "opening" in classes
        self.cells += "cell_input" in classes and not folded and not around & NEVER_SHOWN
        if tag == "table" and not folded:
            self.tables.append(0)
        if tag == "tr" and not folded and not any(outer == "thead" for outer, _ in self.inside):
            self.tables[-1] += 1
        if tag == "img":
            alt, file = given.get("alt") or "", Path(given.get("src") or "").name
            self.alts.append("" if file and file in alt else alt)
        if tag in ("img", "table") and "cell_output" in around:
            self.shown["Figure" if tag == "img" else "Table"] += 1
        if tag in ("div", "table", "thead") or tag == "details" and "open" not in given:
            self.inside.append((tag, classes))

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1][0] == tag:
            self.inside.pop()


def faults(name: str, page: Page, screens: float | None) -> list[str]:
    """What of a page is over a limit or missing, a sentence each."""
    alt = max(map(len, page.alts), default=0)
    counted = [(f"{page.cells} code cells stand open", page.cells, CELLS),
               (f"{len(page.tables)} tables stand open", len(page.tables), TABLES),
               (f"an open table has {max(page.tables, default=0)} rows",
                max(page.tables, default=0), ROWS),
               (f"an alt text has {alt} characters", alt, ALT),
               (f"it is {screens or 0:.1f} screens long", screens or 0, SCREENS),
               *((f"{what} has {series} series", int(series or 0), SERIES)
                 for series, what, _, _ in page.named)]
    found = [f"{says}, allowed are {most}" for says, value, most in counted if value > most]
    for kind, shown in page.shown.items():
        numbered = sum(kind == other for _, _, other, _ in page.named)
        if numbered < shown:
            found.append(f"of {shown} {kind.lower()}s {numbered} have a number and a caption")
    for _, what, kind, after in page.named:
        found += [f"{what} has no link {link!r}" for link in ("source", "code")
                  if f">{link}</a>" not in after]
        if kind == "Figure" and len(SEEDS.findall(after.partition("</p>")[0])) != 1:
            found.append(f"the caption of {what} does not say once how many seeds")
    found += ["an image has no alt text"] * ("" in page.alts)
    found += ["no box opens it"] * (name[0].isdigit() and not page.box)
    return [f"{name}: {says}" for says in found]


def screens(paths: list[Path]) -> dict[Path, float]:
    """How many screens each page has."""
    found = {}
    with chromium.opened(WIDTH, HEIGHT) as tab:
        for path in paths:
            tab.open(path)
            tall = tab.evaluate("document.querySelector('.bd-article').scrollHeight")
            found[path] = tall / HEIGHT
    return found


def main() -> int:
    book = Path(sys.argv[1] if len(sys.argv) > 1 else "build/book")
    paths, found = sorted(book.glob("chapters/*.html")), []
    if not paths:
        print(f"{book} holds no chapter; run `make book` first.", file=sys.stderr)
        return 1
    try:
        long = screens(paths)
    except chromium.NoBrowser as error:
        print(f"Screens are not counted. {error}", file=sys.stderr)
        long = {}
    for path in paths:
        page = Page(path.read_text(encoding="utf-8"))
        print(f"{path.name}: {page.cells} code cells and {len(page.tables)} tables open"
              + (f", {long[path]:.1f} screens" if path in long else ""))
        found += faults(path.name, page, long.get(path))
    print("\n".join(found) or "every chapter keeps to the limits")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
