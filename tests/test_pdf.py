"""The book as a PDF: what does not fit on paper is refused, and pages offer what was printed.

Jupyter Book, which other tests run, is replaced by pages of a line.
"""

from types import SimpleNamespace

import pytest
from locksmith import errors
from locksmith.book import about, pdf, site


@pytest.fixture
def sources(tmp_path, monkeypatch, with_chromium):
    """A function that has the book's single page be some HTML."""
    asm = tmp_path / "build" / "asm"
    (asm / "_static").mkdir(parents=True)

    def of(body):
        def html(asm, book, builder="html"):
            book.mkdir(exist_ok=True)
            (book / "index.html").write_text(f"<!doctype html><body>{body}")
            (book / "_static").mkdir(exist_ok=True)
            for made in (asm / "_static").iterdir():
                (book / "_static" / made.name).write_bytes(made.read_bytes())
            return book / "index.html"
        monkeypatch.setattr(site, "assemble", lambda profile, root, out: asm)
        monkeypatch.setattr(site, "html", html)
        return tmp_path
    return of


def test_the_pages_hold_the_pdf_that_was_printed(sources):
    made = pdf.build("lab", sources("<p>All of it.</p>"))
    assert made.parts[-4:-2] == ("build", "book") and made.read_bytes().startswith(b"%PDF")


def test_what_is_wider_than_the_paper_is_named(sources):
    root = sources("<style>@media screen { p { width: 10px } } @media print { p { width: 999px } }"
                   "</style><p>Wide.</p>")
    with pytest.raises(errors.BadInput, match="1007 pixels wide in a window of 680: <p>Wide.</p>"):
        pdf.build("lab", root)
    assert not (root / "build" / "asm" / about.PDF).exists()


@pytest.mark.parametrize("made", [True, False])
def test_every_page_offers_the_pdf_and_the_first_one_under_its_title(made, tmp_path):
    (tmp_path / "_static").mkdir()
    if made:
        (tmp_path / about.PDF).touch()
    config = SimpleNamespace(html_title="Book", book_address="", book_card="", root_doc="index")
    app = SimpleNamespace(srcdir=tmp_path, config=config)
    for name, under_the_title in (("index", True), ("chapters/01", False)):
        buttons = [{"label": "download-buttons", "buttons": []}]
        context = {"title": "A page", "body": "<h1>Book</h1>\n<h1>Two</h1>",
                   "header_buttons": buttons, "pathto": lambda path, _: f"up/{path}"}
        about.describe(app, name, "", context, None)
        assert [x["url"] for x in buttons[0]["buttons"]] == [f"up/{about.PDF}"] * made
        link = f'\n<p><a href="up/{about.PDF}">The whole book as one PDF</a></p>'
        assert context["body"] == f"<h1>Book</h1>{link * (made and under_the_title)}\n<h1>Two</h1>"
