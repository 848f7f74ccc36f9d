"""What is done to an executed chapter before it is a page: numbers, captions, folds, links."""

import csv

import nbformat
import pytest
from locksmith.book import layout, notebooks, plots, report
from repository import ROOT


def output(shown):
    bundle, metadata = shown._repr_mimebundle_(), {}
    if isinstance(bundle, tuple):
        bundle, metadata = bundle
    return {"output_type": "display_data", "data": bundle, "metadata": metadata}


def table(rows, caption="Who won"):
    shown = report.table(["name", "share"], [[f"`a{i}` [b](c.ipynb)", i] for i in range(rows)],
                         caption)
    data, metadata = shown._repr_markdown_() if caption else (shown._repr_markdown_(), {})
    return {"output_type": "display_data", "data": {"text/markdown": data},
            "metadata": {"text/markdown": metadata}}


def figure(tmp_path, name):
    fig, ax = plots.figure()
    ax.plot([0, 1], label="a line")
    return output(plots.save(fig, tmp_path / f"{name}.png", f"A line of the figure {name}",
                             f"The line {name} & more", "a,b\n1,2\n"))


def cell(*outputs, tags=()):
    return {"cell_type": "code", "id": "x", "source": "code", "metadata": {"tags": list(tags)},
            "outputs": list(outputs)}


def texts(cells):
    return ["".join(o["data"].get("text/markdown", "PNG")) for c in cells
            for o in c.get("outputs", [])]


def test_figures_and_tables_are_numbered_in_their_order(tmp_path):
    page = layout.Page("01", "../_static/facts/")
    made = page.cells([cell(table(2)), cell(figure(tmp_path, "one")), cell(table(3)),
                       cell(figure(tmp_path, "two"))])
    told = texts(made)
    assert "<b>Table 1.1.</b> Who won" in told[0] and "<b>Table 1.2.</b>" in told[3]
    assert told[1] == "PNG" and 'data-series="1"><b>Figure 1.1.</b> The line one &amp;' in told[2]
    assert '<a href="../_static/facts/figure_1_2.csv" download>source</a>' in told[5]
    anchors = [c["source"] for c in made if c["cell_type"] == "markdown"]
    assert anchors == [f'<div id="code-1-{i}"></div>' for i in range(4)]
    assert 'href="#code-1-3">code</a>' in told[5]


def test_sources_hold_the_facts_and_the_rows(tmp_path):
    page = layout.Page("01", "")
    page.cells([cell(figure(tmp_path, "one"), table(2))])
    page.write(tmp_path / "facts")
    assert (tmp_path / "facts" / "figure_1_1.csv").read_text() == "a,b\n1,2\n"
    with open(tmp_path / "facts" / "table_1_1.csv") as file:
        assert list(csv.reader(file)) == [["name", "share"], ["a0 b", "0"], ["a1 b", "1"]]


def test_a_table_without_rows_is_left_out_and_a_question_keeps_its_mark():
    page = layout.Page("01", "")
    assert not texts(page.cells([cell(table(0))]))
    told, = texts(page.cells([cell(table(2, "Did it take?"))]))
    assert "</b> Did it take? <span>" in told and "Table 1.1." in told


@pytest.mark.parametrize("rows, tags, folded", [
    (3, (), True), (3, [layout.KEY], False), (12, [layout.KEY], False), (13, [layout.KEY], True)])
def test_tables_are_folded_but_for_short_ones_that_their_cell_calls_key(rows, tags, folded):
    told, = texts(layout.Page("01", "").cells([cell(table(rows), tags=tags)]))
    assert ("<details" in told) == folded and f"| `a{rows - 1}` " in told
    assert (f"Show all {rows} rows" in told) == folded


def test_what_has_no_caption_stays_as_it_is():
    plain = cell(table(20, caption=""), {"output_type": "stream", "name": "stdout", "text": "hi"})
    assert layout.Page("02", "").cells([plain])[0]["outputs"] == plain["outputs"]


def test_each_figure_keeps_its_own_alt_text(tmp_path):
    made = layout.Page("02", "").cells([cell(figure(tmp_path, "one"), figure(tmp_path, "two"))])
    shown = [c for c in made if c["cell_type"] == "code"]
    assert [c["metadata"]["mystnb"]["image"]["alt"] for c in shown] == [
        "A line of the figure one", "A line of the figure two"]
    assert shown[1]["source"] and shown[1]["metadata"]["tags"] == ["remove-input"]


@pytest.mark.parametrize("chapter", sorted((ROOT / "chapters").glob("*.ipynb")),
                         ids=lambda path: notebooks.number(path))
def test_chapters_open_few_cells_and_tables(chapter):
    cells = nbformat.read(chapter, 4).cells
    tags = [set(c.metadata.get("tags", [])) for c in cells if c.cell_type == "code"]
    closed = {"hide-input", "remove-input", "remove-cell", "hide-cell"}
    assert sum(not own & closed for own in tags) <= 12
    assert sum(layout.KEY in own for own in tags) <= 3
