"""How an executed chapter becomes a page that can be read: numbers, captions, folds, sources.

A figure or table whose cell gave it a caption is numbered ("Figure 1.2") and has two links:
*source* downloads what it was drawn from as CSV, *code* leads to its cell. Tables are folded, but
for those of cells tagged `key-table` that have at most ROWS rows; what is folded is on the page all
the same, and in print. Nothing here changes a notebook's file.
"""

import csv
import html
import io
import re
from pathlib import Path

KEY, ROWS = "key-table", 12  # the tag of a table that stands open, and how many rows it may have
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
MARKS = str.maketrans("", "", "`*_")


class Page:
    """One chapter on its way to a page.

    number: the chapter's, with which those of its figures and tables begin; files: {name: CSV text}
    of the sources, to be written where `prefix` leads from the page.
    """

    def __init__(self, number: str, prefix: str):
        self.number, self.prefix = str(int(number)) if number.isdigit() else number, prefix
        self.files, self.counts = {}, {"Figure": 0, "Table": 0}

    def cells(self, cells: list[dict]) -> list[dict]:
        """The cells with alt texts, captions, folds and links."""
        return [made for i, cell in enumerate(cells) for made in self._cell(cell, i)]

    def _cell(self, cell, i):
        outputs = cell.get("outputs")
        if not outputs:
            return [cell]
        tags, anchor = cell["metadata"].get("tags", []), f"code-{self.number}-{i}"
        pieces, before = [[]], sum(self.counts.values())
        for output in outputs:
            image = output.get("metadata", {}).get("image/png", {})
            if "alt" in image and any("alt" in _image(one) for one in pieces[-1]):
                pieces.append([])  # MyST-NB has one alt text a cell
            pieces[-1] += self._output(output, anchor, KEY in tags)
        # A cell without source would be left out by MyST-NB, with all that it shows.
        made = [cell] + [{**cell, "id": f"{cell.get('id', anchor)}-{k}", "source": "# as above",
                          "metadata": {"tags": ["remove-input"]}} for k in range(1, len(pieces))]
        for one, some in zip(made, pieces, strict=True):
            alts = [_image(output)["alt"] for output in some if "alt" in _image(output)]
            one["metadata"] = {**one["metadata"],
                               **({"mystnb": {"image": {"alt": alts[0]}}} if alts else {})}
            one["outputs"] = some
        if sum(self.counts.values()) > before:
            made.insert(0, {"cell_type": "markdown", "id": anchor, "metadata": {},
                            "source": f'<div id="{anchor}"></div>'})
        return made

    def _output(self, output, anchor, key):
        """An output with what its caption adds."""
        data = output.get("data", {})
        if caption := _image(output).get("caption"):
            name, links = self._numbered("Figure", _image(output).get("source", ""), anchor)
            series = _image(output).get("series", 0)
            return [output, _markdown(f'<p class="caption" data-series="{series}"><b>{name}.</b> '
                                      f"{html.escape(caption, quote=False)} {links}</p>")]
        text = "".join(data.get("text/markdown", ""))
        caption = output.get("metadata", {}).get("text/markdown", {}).get("caption")
        rows = table_rows(text)
        if not caption or not rows:
            return [output]
        if len(rows) == 1:  # a head alone tells nothing
            return []
        name, links = self._numbered("Table", _csv(rows), anchor)
        told = f"<b>{name}.</b> {html.escape(caption, quote=False)}"
        end = "" if caption.endswith(("?", "!", ".")) else "."
        many = len(rows) - 1
        if key and many <= ROWS:
            return [_markdown(f'<p class="caption">{told} {links}</p>\n\n{text}')]
        shown = "the row" if many == 1 else f"all {many} rows"
        return [_markdown(f'<details class="fold"><summary>{told}{end} <span>Show {shown}</span>'
                          f"</summary>\n\n{text}\n\n<p class=\"caption\">{links}</p></details>")]

    def _numbered(self, what, source, anchor):
        """Its number, and its links as HTML."""
        self.counts[what] += 1
        name, links = f"{what} {self.number}.{self.counts[what]}", []
        if source:
            file = name.lower().replace(" ", "_").replace(".", "_") + ".csv"
            self.files[file] = source
            links.append(f'<a href="{self.prefix}{file}" download>source</a>')
        links.append(f'<a href="#{anchor}">code</a>')
        return name, " · ".join(links)

    def write(self, folder: Path) -> None:
        """Write the sources into `folder`, which need not be there."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.files.items():
            (folder / name).write_text(text, encoding="utf-8")


def table_rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table that is the whole of a text, its head first; [] for others."""
    lines = text.strip().splitlines()
    if len(lines) < 2 or not all(line.startswith("|") for line in lines):
        return []
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines]
    return [rows[0], *rows[2:]]


def _csv(rows):
    """Rows of Markdown as CSV: links are their text, nothing is marked up."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [LINK.sub(r"\1", cell).translate(MARKS) for cell in row] for row in rows)
    return text.getvalue()


def _image(output):
    return output.get("metadata", {}).get("image/png", {})


def _markdown(text):
    return {"output_type": "display_data", "metadata": {}, "data": {"text/markdown": text}}
