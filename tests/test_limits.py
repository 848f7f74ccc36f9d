"""The limits of a chapter's page are counted as a reader meets them."""

import limits
import pytest

CELL = ('<div class="cell {tag} docutils container">{open}<div class="cell_input">x</div>{close}'
        "</div>")
SHOWN = CELL.format(tag="", open="", close="")
HIDDEN = CELL.format(tag="tag_hide-input", open='<details class="hide"><summary>+</summary>',
                     close="</details>")
COLAB = CELL.format(tag="tag_colab", open="", close="")


def table(rows):
    return ("<div><table><thead><tr><th>a</th></tr></thead><tbody>"
            + "<tr><td>1</td></tr>" * rows + "</tbody></table></div>")


def test_what_is_folded_or_never_shown_is_not_counted():
    page = limits.Page(f"<main>{SHOWN}{HIDDEN}{COLAB}{SHOWN}{table(3)}"
                       f"<details><summary>all</summary>{table(40)}</details>{table(5)}"
                       '<img alt="four"><br></main>')
    assert (page.cells, page.tables, page.alts) == (2, [3, 5], ["four"])
    assert not limits.faults("a.html", page, 14.9)


@pytest.mark.parametrize("body, screens, said", [
    (SHOWN * 13, None, "13 code cells stand open, allowed are 12"),
    (table(1) * 4, None, "4 tables stand open, allowed are 3"),
    (table(13), None, "an open table has 13 rows, allowed are 12"),
    (f'<img alt="{"x" * 301}">', None, "an alt text has 301 characters, allowed are 300"),
    ("", 15.2, "it is 15.2 screens long, allowed are 15")])
def test_each_limit_is_told_with_what_was_found(body, screens, said):
    assert limits.faults("a.html", limits.Page(body), screens) == [f"a.html: {said}"]
