"""The limits of a chapter's page are counted as a reader meets them."""

import limits
import pytest
from locksmith.book import chromium

CELL = ('<div class="cell {tag} docutils container">{open}<div class="cell_input">x</div>{close}'
        "</div>")
SHOWN = CELL.format(tag="", open="", close="")
HIDDEN = CELL.format(tag="tag_hide-input", open='<details class="hide"><summary>+</summary>',
                     close="</details>")
COLAB = CELL.format(tag="tag_colab", open="", close="")


ALT = "A line that rises"
LINKS = '<a href="x.csv" download>source</a> · <a href="#code-1-1">code</a>'
FIGURE = '<p class="caption" data-series="{n}"><b>Figure 1.1.</b> A line. {said} {links}</p>'


def table(rows):
    return ("<div><table><thead><tr><th>a</th></tr></thead><tbody>"
            + "<tr><td>1</td></tr>" * rows + "</tbody></table></div>")


def output(shown, caption=""):
    return f'<div class="cell_output docutils container">{shown}{caption}</div>'


def figure(n=8, said="300 problems, 3 seeds, 95 % intervals.", links=LINKS):
    return output(f'<img alt="{ALT}" src="../_images/a.png">',
                  FIGURE.format(n=n, said=said, links=links))


def test_what_is_folded_or_never_shown_is_not_counted():
    page = limits.Page(f"<main>{SHOWN}{HIDDEN}{COLAB}{SHOWN}{table(3)}"
                       f"<details><summary>all</summary>{table(40)}</details>{table(5)}"
                       f'<details open>{table(2)}</details><img alt="four"><br></main>')
    assert (page.cells, page.tables, page.alts) == (2, [3, 5, 2], ["four"])
    assert not limits.faults("a.html", page, 14.9)


def test_a_page_within_every_limit_has_no_fault():
    told = f"<b>Table 1.1.</b> Who won. <span>Show all 40 rows</span></summary>{table(40)}"
    folded = output(f'<details class="fold"><summary>{told}<p class="caption">{LINKS}</p>'
                    "</details>")
    page = limits.Page('<div class="opening admonition"></div>' + SHOWN * 12 + figure() + folded)
    assert page.shown == {"Figure": 1, "Table": 1} and len(page.named) == 2
    assert not limits.faults("01_a.html", page, 15)


@pytest.mark.parametrize("body, screens, said", [
    (SHOWN * 13, None, "13 code cells stand open, allowed are 12"),
    (table(1) * 4, None, "4 tables stand open, allowed are 3"),
    (table(13), None, "an open table has 13 rows, allowed are 12"),
    (f'<img alt="{"x" * 301}">', None, "an alt text has 301 characters, allowed are 300"),
    ('<img alt="../_images/a.png" src="../_images/a.png">', None, "an image has no alt text"),
    ('<img src="a.png">', None, "an image has no alt text"),
    ("", 15.2, "it is 15.2 screens long, allowed are 15"),
    (figure() + figure(n=9), None, "Figure 1.1 has 9 series, allowed are 8"),
    (figure() + output(f'<img alt="{ALT}">'), None,
     "of 2 figures 1 have a number and a caption"),
    (output(table(2)), None, "of 1 tables 0 have a number and a caption"),
    (figure(links='<a href="#code-1-1">code</a>'), None, "Figure 1.1 has no link 'source'"),
    (figure(links='<a href="x.csv">source</a>') + output(table(2), "<b>Table 1.1.</b>" + LINKS),
     None, "Figure 1.1 has no link 'code'"),
    (figure(said="A line a seed."), None,
     "the caption of Figure 1.1 does not say once how many seeds")])
def test_each_limit_is_told_with_what_was_found(body, screens, said):
    assert limits.faults("a.html", limits.Page(body), screens) == [f"a.html: {said}"]


def test_a_chapter_opens_with_a_box():
    assert limits.faults("01_a.html", limits.Page(SHOWN), None) == ["01_a.html: no box opens it"]


def test_screens_are_those_of_the_article(tmp_path):
    page = tmp_path / "a.html"
    page.write_text('<body style="margin: 0"><p style="height: 900px"></p>'
                    '<article class="bd-article" style="height: 4050px"></article>')
    try:
        assert limits.screens([page]) == {page: 4.5}
    except chromium.NoBrowser as error:
        pytest.skip(str(error))
