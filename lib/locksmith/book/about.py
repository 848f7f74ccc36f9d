"""What a page says of itself to those who share it, and how the book is cited.

As a Sphinx extension it gives every page a description and the tags of Open Graph, from which
X, LinkedIn and others make a card, and offers the PDF where one was made (`locksmith.book.pdf`).
"""

import html
import re
from pathlib import Path
from typing import Any

from docutils import nodes

from locksmith import errors, plain_yaml

CARD, CARD_SIZE = "_static/card.png", (1200, 627)
PDF = "_static/crediting-the-locksmith.pdf"
ICON = "_static/key.svg"
REAL = "_on_real_weights"  # behind the name of a chapter: its page that profile open made
LENGTH = 200  # characters of a description at most; search engines show about 160
TAG = '<meta {kind}="{name}" content="{content}">'


def tags(title: str, description: str, kind: str = "article", url: str | None = None,
         card: tuple[str, str] | None = None) -> str:
    """Meta elements of a page. card: address and alternative text of a picture of CARD_SIZE."""
    named = {"description": description, "twitter:card": "summary_large_image" if card else
             "summary", "twitter:title": title, "twitter:description": description}
    graph = {"og:title": title, "og:description": description, "og:type": kind,
             "og:site_name": "Crediting the Locksmith"}
    if url:
        graph["og:url"] = url
    if card:
        named["twitter:image"], named["twitter:image:alt"] = card
        graph |= {"og:image": card[0], "og:image:alt": card[1],
                  "og:image:width": CARD_SIZE[0], "og:image:height": CARD_SIZE[1]}
    return "\n".join(TAG.format(kind=kind, name=name, content=html.escape(str(content)))
                     for kind, given in (("name", named), ("property", graph))
                     for name, content in given.items())


def shortened(text: str) -> str:
    """A text on one line, cut after a whole word at LENGTH characters."""
    text = " ".join(text.split())
    if len(text) <= LENGTH:
        return text
    return text[:LENGTH - 1].rsplit(" ", 1)[0].rstrip(",;:.") + " …"


def citation(root: str | Path = ".") -> str:
    """How to cite the book (Markdown), from CITATION.cff: a line, and an entry for BibTeX."""
    path = Path(root) / "CITATION.cff"
    given = plain_yaml.read(path)
    try:
        authors = [author["name"] for author in given["authors"]]
        title, version, url = given["title"], given["version"], given["repository-code"]
    except (TypeError, LookupError):
        raise errors.BadInput(f"{path} needs title, version, repository-code and authors, each "
                              "with a name.") from None
    names = " and ".join(f"{{{name}}}" for name in authors)
    return (f"{', '.join(authors)}. *{title}*. Version {version}. <{url}>\n\n"
            f"```bibtex\n@software{{locksmith,\n  author = {{{names}}},\n  title = {{{title}}},\n"
            f"  version = {{{version}}},\n  url = {{{url}}},\n}}\n```")


# ------------------------------------------------------------------------------------------------
# A Sphinx extension


def describe(app: Any, pagename: str, _template: str, context: dict, doctree: Any) -> None:
    """Sphinx calls this for every page: writes its tags, and offers the PDF."""
    title = html.unescape(re.sub("<[^>]+>", "", context.get("title") or app.config.html_title))
    home = app.config.book_address
    card = Path(app.srcdir, CARD).exists() and home
    description = _first_paragraph(doctree) or f"Part of the book {app.config.html_title}."
    told = tags(title, description, "website" if pagename == app.config.root_doc else "article",
                f"{home}{pagename}.html" if home else None,
                (home + CARD, app.config.book_card) if card else None)
    context["metatags"] = "\n".join([context.get("metatags", ""), told])  # none on an index
    if Path(app.srcdir, PDF).exists():
        _offer(pagename == app.config.root_doc, context)
    for group in context.get("header_buttons", ()):
        for button in group.get("buttons", ()):  # to the chapter's notebook, which made the page
            if "/blob/" in button.get("url", ""):
                button["url"] = button["url"].replace(f"{REAL}.ipynb", ".ipynb")


def _offer(first, context):
    """The PDF among each page's downloads, and under the title of the first page."""
    url = context["pathto"](PDF, 1)
    for group in context.get("header_buttons", ()):
        if group["label"] == "download-buttons":
            group["buttons"].append({
                "type": "link", "url": url, "text": "book.pdf", "icon": "fas fa-book",
                "tooltip": "Download the whole book", "label": "download-book-button"})
    if first:
        link = f'<p><a href="{url}">The whole book as one PDF</a></p>'
        context["body"] = context["body"].replace("</h1>", f"</h1>\n{link}", 1)


def _first_paragraph(doctree):
    """The first paragraph of a page that is prose of its own, without formulas, and no box, table
    or list."""
    for paragraph in doctree.findall(nodes.paragraph) if doctree else ():
        text = "" if any(paragraph.findall(nodes.math)) else paragraph.astext()
        if isinstance(paragraph.parent, (nodes.section, nodes.document)) and len(text) > 40:
            return shortened(text)
    return None


def setup(app: Any) -> dict:
    """Sphinx calls this when _config.yml names the module among its extensions."""
    app.add_config_value("book_address", "", "html")
    app.add_config_value("book_card", "", "html")
    app.connect("html-page-context", describe, priority=502)  # after the theme's buttons
    return {"parallel_read_safe": True, "parallel_write_safe": True}
