"""The check of the pages' looks, on pages made with one fault each.

What needs a browser or axe-core is skipped where there is none.
"""

import re

import pytest
from locksmith import errors
from locksmith.book import chromium, looks

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>A page</title>
<meta name="viewport" content="width=device-width"><style>
@media (prefers-color-scheme: dark) {{
html {{ background: #111; color: #eee }} a {{ color: #9cf }} }}
{style}</style>
<main>{body}</main>"""


def looks_of(pages, book):
    """What `looks.faults` finds, or a skip that names what is missing."""
    try:
        chromium.find()
        return looks.faults(pages, book)
    except errors.BadInput as error:
        if isinstance(error, chromium.NoBrowser) or "is not installed" in str(error):
            pytest.skip(str(error))
        raise


def write(folder, name, body, style=""):
    path = folder / name
    path.write_text(PAGE.format(body=body, style=style), encoding="utf-8")
    return path


def test_links_that_lead_nowhere_are_named(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a picture.png").touch()
    write(tmp_path, "index.html", '<a href="sub/other.html#there">x</a> <a href="#top">y</a>'
          '<img src="a%20picture.png?v=1"><a href="https://example.org/nowhere">z</a><p id="top">')
    write(tmp_path / "sub", "other.html", '<a href="../index.html#bottom">x</a><p id="there">'
          '<a href="gone.html">y</a><script src="/gone.js"></script><a href="../sub/">z</a>')
    assert looks.links(tmp_path) == [f"sub/other.html: {link} leads nowhere" for link in
                                     ("../index.html#bottom", "gone.html", "/gone.js", "../sub/")]


def test_faults_are_found_in_the_theme_in_which_they_are(tmp_path):
    pages = [
        write(tmp_path, "good.html", "<p>Black on white, or white on black.</p>"),
        write(tmp_path, "faint.html", "<p>Too faint.</p>", "p { color: #888 }"),
        write(tmp_path, "large.html", "<h1>Too faint.</h1>", "h1 { color: #888 }"),
        write(tmp_path, "dark.html", '<p>So <a href="x">faint</a>.</p>', "a { color: #00c }"),
        write(tmp_path, "gone.html", "<p>White on white.</p>", "p { color: #fff }"),
        write(tmp_path, "picture.html", "<p>On what?</p>",
              "p { background-image: linear-gradient(#fff, #000); color: #777 }"),
        write(tmp_path, "broken.html", "<p><code>On one <b>and on another line of</b> all</code>",
              "p { width: 60px } code { background: #fff; color: #000 } "
              "b { padding: 0 9px; background: #ddd; color: #999 }"),
        write(tmp_path, "whole.html", "<p><code>On one <b>and on another line of</b> all</code>",
              "p { width: 60px } code { background: #fff; color: #000 } "
              "b { padding: 0 9px; background: #ddd; color: #111 }"),
        write(tmp_path, "folded.html", "<details><summary>More</summary><p>Faint.</p></details>",
              "details p { color: #888; background: #fff }"),
        write(tmp_path, "wide.html", "<div><p>Wide.</p></div>", "p { width: 500px }"),
        write(tmp_path, "scrolls.html", "<div><p>Wide.</p></div>",
              "div { overflow: auto } p { width: 500px }"),
        write(tmp_path, "mute.html", '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">'),
    ]
    found = looks_of(pages, tmp_path)
    where = [re.match(r"(\w+)\.html, (\w+): (.*)", fault).groups() for fault in found]
    assert [(page, theme) for page, theme, _ in where] == [
        ("faint", "light"), ("large", "light"), ("dark", "dark"), ("gone", "light"),
        ("picture", "light"), ("picture", "dark"), ("broken", "light"), ("broken", "dark"),
        ("folded", "light"), ("folded", "dark"), ("wide", "light"), ("wide", "dark"),
        ("mute", "light"), ("mute", "dark")]
    says = {page: text for page, _, text in where}
    assert "contrast of 3.54" in says["faint"] and "Too faint" in says["faint"]
    assert "500" not in says["faint"] and "pixels wide in a window of 390" in says["wide"]
    assert "<p>Wide.</p>" in says["wide"]
    with pytest.raises(errors.BadInput, match="15 faults on the pages:\ndark.html: x leads"):
        looks.check(tmp_path)


def test_a_folder_without_pages_is_named(tmp_path):
    with pytest.raises(errors.BadInput, match="holds no page; run `make book`"):
        looks.check(tmp_path)
