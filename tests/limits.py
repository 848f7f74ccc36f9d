"""Whether the chapters of a built book keep to what a reader gets through.

    python tests/limits.py [build/book]     a line a chapter, and a fault a line; fails with any

Code cells, tables and rows are counted as they stand open, the others are folded; screens, where
there is a Chromium, at 1280x900.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path

CELLS, TABLES, ROWS, SCREENS = 12, 3, 12, 15
ALT = 300  # characters
WIDTH, HEIGHT = 1280, 900  # pixels
NEVER_SHOWN = {"tag_colab", "tag_injected-parameters"}
SCRIPT = """<!doctype html><body><script>
(async () => {
  const heights = {};
  for (const url of %s) {
    const frame = document.createElement("iframe");
    frame.style = "width: %dpx; height: %dpx; border: 0";
    frame.src = url;
    document.body.append(frame);
    await new Promise(done => frame.onload = done);
    heights[url] = frame.contentDocument.querySelector(".bd-article").scrollHeight;
    frame.remove();
  }
  document.body.innerHTML = "<pre>" + JSON.stringify(heights) + "</pre>";
})();
</script>"""


class Page(HTMLParser):
    """What stands open on a page: code cells, and the rows of each table; and its alt texts."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.tables, self.alts, self.inside = 0, [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        classes = set((given.get("class") or "").split())
        folded = any(tag == "details" for tag, _ in self.inside)
        hidden = any(classes & NEVER_SHOWN for _, classes in self.inside)
        self.cells += "cell_input" in classes and not folded and not hidden
        if tag == "table" and not folded:
            self.tables.append(0)
        if tag == "tr" and not folded and any(tag == "tbody" for tag, _ in self.inside):
            self.tables[-1] += 1
        if tag == "img":
            self.alts.append(given.get("alt") or "")
        if tag in ("div", "details", "table", "tbody"):
            self.inside.append((tag, classes))

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1][0] == tag:
            self.inside.pop()


def faults(name: str, page: Page, screens: float | None) -> list[str]:
    """What of a page is over a limit, a sentence each."""
    found = [(f"{page.cells} code cells stand open", page.cells, CELLS),
             (f"{len(page.tables)} tables stand open", len(page.tables), TABLES),
             (f"an open table has {max(page.tables, default=0)} rows",
              max(page.tables, default=0), ROWS),
             (f"an alt text has {max(map(len, page.alts), default=0)} characters",
              max(map(len, page.alts), default=0), ALT),
             (f"it is {screens or 0:.1f} screens long", screens or 0, SCREENS)]
    return [f"{name}: {says}, allowed are {most}" for says, value, most in found if value > most]


def screens(paths: list[Path]) -> dict[Path, float]:
    """How many screens each page has; {} without a Chromium."""
    browser = shutil.which("chromium")
    if not browser:
        return {}
    urls = {path.resolve().as_uri(): path for path in paths}
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "limits.html"
        first.write_text(SCRIPT % (json.dumps(list(urls)), WIDTH, HEIGHT), encoding="utf-8")
        done = subprocess.run(
            [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom",
             "--allow-file-access-from-files", f"--user-data-dir={folder}/profile",
             "--virtual-time-budget=10000000", first.as_uri()],
            capture_output=True, text=True, check=True, timeout=600)
    heights = json.loads(re.search(r"<pre>(.*?)</pre>", done.stdout, re.S)[1])
    return {urls[url]: height / HEIGHT for url, height in heights.items()}


def main() -> int:
    book = Path(sys.argv[1] if len(sys.argv) > 1 else "build/book")
    paths, found = sorted(book.glob("chapters/*.html")), []
    if not paths:
        print(f"{book} holds no chapter; run `make book` first.", file=sys.stderr)
        return 1
    long = screens(paths)
    for path in paths:
        page = Page(path.read_text(encoding="utf-8"))
        print(f"{path.name}: {page.cells} code cells and {len(page.tables)} tables open"
              + (f", {long[path]:.1f} screens" if path in long else ""))
        found += faults(path.name, page, long.get(path))
    print("\n".join(found) or "every chapter keeps to the limits")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
