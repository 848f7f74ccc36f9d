import base64
import re

import matplotlib.pyplot as plt
import pytest
from locksmith import arms, results
from locksmith.book import plots, report
from locksmith.errors import BadInput


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def record():
    made = results.Recorder("smoke", "02", seeds=[0, 1], n_problems=20)
    for i, family in enumerate(("countdown", "chain")):
        for k in (1, 4, 16):
            for arm, level in (("base", 0.1), ("thinking", 0.5), ("guess", 0.01)):
                value = level + 0.1 * i + 0.02 * k
                ends = max(0.0, value - 0.05), value + 0.05
                made.fact(family, arm, "pass_at_k", (value, *ends), k=k)
        made.fact(family, "hybrid", "gap_recovered", (0.6 + i, 0.5 + i, 0.7 + i))
        made.fact(family, "bias-only", "gap_recovered", (-0.3, -0.9, 0.1))
        for n in (1, 10):
            made.fact(family, "few-shot", "gap_recovered", (0.2, 0.1, 0.3), examples=n)
        made.fact(family, "hybrid", "gain_when", (0.4, 0.3, 0.5))
        made.fact(family, "hybrid", "gain_how", (0.1, 0.0, 0.2))
    return made


def test_a_table_is_markdown():
    assert report.table(["a", "b"], [[1, "x"]]).data.splitlines() == [
        "| a | b |", "| --- | --- |", "| 1 | x |"]


def test_a_grid_has_a_row_a_family_and_arm_and_leaves_out_what_was_not_measured():
    lines = report.grid(record(), ["chain"], ["base", "twin", "hybrid"],
                        {"solved": "pass_at_k[k=4]", "gap": "gap_recovered"}).data.splitlines()
    assert lines[0] == "| family | arm | solved | gap |"
    assert lines[2:] == ["| chain | base | 0.28 [0.23, 0.33] | – |",
                         "| chain | hybrid | – | 1.60 [1.50, 1.70] |"]


def test_published_figures_are_those_of_the_claim_that_speak_of_it():
    lines = report.published("one-problem", about=["random reward"]).data.splitlines()
    assert len(lines) == 3 and "+21.4" in lines[2] and lines[2].endswith("| verified |")
    assert len(report.published("one-problem").data.splitlines()) > 3


def test_the_glossary_says_what_each_arm_is_once():
    lines = report.glossary(["hybrid", "base", "hybrid"]).data.splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| base", "| hybrid"]
    assert arms.get("hybrid").says in lines[1]
    with pytest.raises(BadInput, match="hybird"):
        report.glossary(["hybird"])


def test_labels_name_the_conditions_that_tell_rows_apart():
    facts = report.labelled(record().frame("gap_recovered"))
    assert list(facts["label"])[:4] == ["hybrid", "bias only", "few-shot, examples 1",
                                        "few-shot, examples 10"]
    assert list(facts["role"])[:2] == ["method", "control"]
    assert "hybrid" in set(report.labelled(record().frame())["label"])
    curves = report.labelled(record().frame("pass_at_k"), ["k"])
    assert set(curves["label"]) == {"base", "thinking", "guess"}


def test_an_alt_text_holds_the_values_and_never_more_than_300_characters():
    told = report.alt("Share of the gap recovered", record().frame("gap_recovered"))
    assert told.startswith("Share of the gap recovered: countdown hybrid 0.60, bias only -0.30, ")
    assert "; chain hybrid 1.60" in told and len(told) <= 300
    long = report.alt("pass@k", record().frame("pass_at_k"))
    assert len(long) <= 300 and long.endswith("more in the table.")


def drawn_ends(ax):
    """(lowest, highest) of every line with two different ends, that is of the intervals."""
    return {tuple(round(float(x), 3) for x in line.get_xdata()) for line in ax.lines
            if len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]}


def test_a_forest_draws_each_interval_and_tells_roles_and_families_apart():
    facts = record().frame("gap_recovered")
    fig = report.forest(facts, "share of the gap", xlim=(-0.5, 1.4))
    ax, = fig.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == [
        "hybrid", "bias only", "few-shot, examples 1", "few-shot, examples 10"]
    assert drawn_ends(ax) == {(0.5, 0.7), (-0.5, 0.1), (0.1, 0.3), (1.4, 1.4)}  # 1.5 at the edge
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert {t.get_text() for t in fig.legends[0].get_texts()} == {
        "countdown", "chain", "method", "control"}
    points = {(round(float(line.get_xdata()[0]), 2), line.get_marker()): line
              for line in ax.lines if len(line.get_xdata()) == 1}
    green = plots.look("hybrid")["color"]
    assert points[0.6, "o"].get_markerfacecolor() == green
    assert points[1.4, "o"].get_markerfacecolor() == "white"
    assert 0.6 < points[1.4, "o"].get_ydata()[0] - points[0.6, "o"].get_ydata()[0] + 0.5 < 1
    assert points[-0.3, "s"].get_color() == plots.look("bias-only")["color"]


def test_curves_draw_value_and_band_of_each_arm_and_name_it_at_its_end():
    fig = report.curves(record().frame("pass_at_k"), "k", "samples k", "solved", log=4,
                        ylim=(0, 1))
    assert fig.get_supxlabel() == "samples k" and fig.get_supylabel() == "solved"
    top = fig.axes[0]
    lines = {tuple(line.get_color()): line for line in top.lines if len(line.get_xdata()) == 3}
    base = lines[plots.look("base")["color"]]
    assert base.get_ydata() == pytest.approx([0.12, 0.18, 0.42])
    corners = [band.get_paths()[0].vertices[:, 1] for band in top.collections]
    assert sorted(round(c.min(), 2) for c in corners) == [0, 0.07, 0.47]
    assert not fig.legends
    heights = {t.get_text(): t.xy[1] for t in top.texts}
    assert heights == pytest.approx({"base": 0.42, "thinking": 0.82, "guess": 0.33}, abs=0.06)


def test_labels_at_ends_do_not_touch_and_give_way_to_a_legend_where_something_else_is_told():
    fig, ax = plots.figure(height=3)
    for level in (0.5, 0.5, 0.51, 0.9):
        ax.plot([0, 1], [0, level], label=f"arm {level}")
    ax.set_ylim(0, 1)
    assert plots.label_ends(ax)
    heights = sorted(t.xy[1] for t in ax.texts)
    gaps = [b - a for a, b in zip(heights, heights[1:], strict=False)]
    assert min(gaps) * 3 * ax.get_position().height * 72 > 12
    assert sum(heights[:3]) / 3 == pytest.approx((0.5 + 0.5 + 0.51) / 3)
    ax.plot([0.5], [0.5], "o", label="a point")
    assert not plots.label_ends(ax)
    for _ in range(plots.MOST):
        ax.plot([0, 1], [0, 1], label="one more")
    assert not plots.label_ends(ax)


def test_what_is_shown_carries_caption_alt_text_and_source(tmp_path):
    facts = record().frame("gap_recovered")
    fig = report.forest(facts, "share of the gap")
    shown = report.show(fig, tmp_path / "a.png", "Share of the gap recovered", facts,
                        beside="Zero is the base.", told=facts[facts["model"] == "hybrid"])
    told = shown._repr_mimebundle_()[1]["image/png"]
    assert told["caption"] == ("Share of the gap recovered. Zero is the base. 20 problems, "
                               "2 seeds, 95 % intervals.")
    assert told["alt"] == ("Share of the gap recovered: countdown hybrid 0.60; chain hybrid 1.60.")
    rows = told["source"].splitlines()
    assert rows[0] == "family,model,quantity,examples,value,low,high,n_problems,seeds"
    assert len(rows) == 1 + len(facts) and rows[1].endswith("0.6,0.5,0.7,20,0 1")


def test_parts_draw_when_and_how():
    fig = report.parts(record().frame(), "change in accuracy")
    bars = sorted(round(bar.get_width(), 2) for bar in fig.axes[0].patches if bar.get_width())
    assert bars == [0.1, 0.4]


def test_decisions_of_traces_are_marked_by_name_where_they_are_known():
    words = "[try] 4 + 4 = 8 let us see <eos>".split()
    told = report.marked(words)
    assert re.sub(r"<span[^>]*>|</span>|</?code[^>]*>", "", told) == (
        "[try]<sub>try</sub> 4 + 4 = 8 let us see<sub>try</sub> &lt;eos&gt;")
    both = report.traces("sums", {"base: wrong": "so 1 < 2", "RL": "try 1"}, True).data
    assert both.count("<sub>") == 2 and both.index("base: wrong") < both.index("RL")
    assert "<sub>" not in report.traces("words", {"base": "so 1 < 2"}, False).data


def test_a_forest_may_name_its_rows_and_leaves_out_the_others():
    fig = report.forest(record().frame("gap_recovered"), "share",
                        names={"bias-only": "the moments", "hybrid": "and the category"})
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == [
        "the moments", "and the category"]


def test_what_stands_behind_a_figure():
    assert report.size_of(record().frame()) == "20 problems, 2 seeds, 95 % intervals"


def test_a_download_holds_the_text_itself():
    text = "task,method\nchain,LoRA RL – é\n"
    shown = report.download("05_methods.csv", text).data
    name, data = re.search(r'download="(.+)" href="data:text/csv;base64,([^"]+)"', shown).groups()
    assert name == "05_methods.csv" and base64.b64decode(data).decode() == text
