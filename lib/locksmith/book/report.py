"""How chapters show facts: tables, published figures, the glossary of arms, figures.

Figures are drawn with seaborn from a tidy table of facts (`Recorder.frame`), whose intervals were
made where the facts were; seaborn computes none. Colours, lines and markers come from arms.yml.
"""

import base64
import html
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
from IPython.display import HTML, Image, Markdown
from matplotlib.figure import Figure

from locksmith import arms, grammar, quantities
from locksmith.book import claims, formats, plots
from locksmith.book.formats import interval as text  # of facts, in the chapters' cells

ALT = 300  # characters of an alt text at most
# A tint a kind of step, dark letters on it in either mode.
DECISIONS = {"try": "#cfe3f5", "check": "#d3efd3", "wait": "#f9d5c4", "conclude": "#e3d5f0"}
DASHES = {"-": "", "--": (4, 1.5), ":": (1, 1), "-.": (3, 1.25, 1.5, 1.25)}


# ---- text and tables


def table(head: Sequence, rows: Iterable[Sequence], caption: str = "") -> Markdown:
    """A Markdown table of anything that has a str; the page numbers one that has a caption."""
    lines = [head, ["---"] * len(head), *rows]
    return Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines),
                    metadata={"caption": caption} if caption else None)


def download(name: str, text: str) -> HTML:
    """A link under which a CSV text is downloaded as a file of that name; the page holds it."""
    data = base64.b64encode(text.encode()).decode()
    return HTML(f'<a download="{name}" href="data:text/csv;base64,{data}">{name}</a>')


def grid(record: Any, families: Iterable[str], names: Iterable[str], columns: dict[str, str],
         caption: str = "") -> Markdown:
    """A row a family and arm, a column (heading -> name of a fact) a quantity of a Recorder.

    Arms of which none was measured are left out.
    """
    rows = [[family, label(name),
             *(text(record.get(family, name, fact)) for fact in columns.values())]
            for family in families for name in names]
    rows = [row for row in rows if set(row[2:]) != {formats.MISSING}]
    return table(["family", "arm", *columns], rows, caption)


def published(*claim_ids: str, about: Sequence[str] = ("",)) -> Markdown:
    """The published figures of some claims, those that have one of the phrases `about`."""
    figures = [figure for claim in claims.load()["claims"] if claim["id"] in claim_ids
               for figure in claim["published"] if any(x in figure["figure"] for x in about)]
    columns = ("figure", "version", "where", "status")
    return table(["published figure", *columns[1:]],
                 [[figure[key] for key in columns] for figure in figures],
                 "What was published, and how sure we are of it")


def glossary(ids: Iterable[str]) -> Markdown:
    """What each of some arms is, in the order of arms.yml."""
    wanted, known = set(map(arms.get, ids)), arms.load().values()
    return table(["arm", "role", "what it is"],
                 [[arm.label, arm.role, arm.says] for arm in known if arm in wanted],
                 "The names on this page")


# ---- traces


def marked(words: Sequence[str]) -> str:
    """Words of a trace of the lab as HTML, the opening of each step marked by colour and name; a
    word may stand in brackets, as where a model was steered."""
    out, i, plain = [], 0, [word.strip("[]") for word in words]
    while i < len(words):
        n = grammar.opening_length(plain, i)
        text = html.escape(" ".join(words[i:i + max(n, 1)]))
        if n:
            behaviour = grammar.BEHAVIOUR[plain[i]]
            style = f"background:{DECISIONS[behaviour]};color:#111;padding:0 3px"
            text = f'<span style="{style}">{text}<sub>{behaviour}</sub></span>'
        out.append(text)
        i += max(n, 1)
    return f'<code style="white-space:normal">{" ".join(out)}</code>'


def traces(title: str, answers: dict[str, str], known: bool) -> HTML:
    """Answers (heading -> text) side by side, or on a phone one below the other; known: whether
    they are the lab's, so that decisions can be marked."""
    columns = [f'<div style="flex:1 1 230px"><b>{html.escape(name)}</b><br>'
               + (marked(text.split()) if known else html.escape(text)) + "</div>"
               for name, text in answers.items()]
    return HTML(f"<p><b>{html.escape(title)}</b></p>"
                f'<div style="display:flex;flex-wrap:wrap;gap:1rem">{"".join(columns)}</div>')


# ---- a table of facts


def label(name: str) -> str:
    """An arm for people: "few-shot[examples=2]" is "few-shot, examples 2"."""
    arm, conditions = quantities.split(name)
    return ", ".join([arms.get(arm).label, *map(_told, conditions, conditions.values())])


def labelled(facts: pd.DataFrame, apart: Sequence[str] = ()) -> pd.DataFrame:
    """`facts` with each arm's role and a label: its own, and what tells rows of a quantity apart.

    apart: conditions that the figure shows in another way.
    """
    varying = [key for key in quantities.CONDITIONS if key not in apart
               and (facts.groupby("quantity")[key].nunique(dropna=False) > 1).any()]
    labels = []
    for _, row in facts.iterrows():
        told = {key: row[key] for key in varying if not pd.isna(row[key])}
        labels.append(label(quantities.name(row["model"], quantities.typed("", told))))
    return facts.assign(label=labels, role=[arms.get(name).role for name in facts["model"]])


def _told(key, value):
    if key in ("on", "against"):
        return f"{key} {arms.get(value).label}"
    if isinstance(value, str):
        return value
    return f"{key.replace('_', ' ')} {quantities.plain(value)}"


def alt(what: str, facts: pd.DataFrame) -> str:
    """An alt text of at most 300 characters: `what`, then value after value as far as they fit."""
    facts, said, family = labelled(facts), what.rstrip(".") + ":", None
    for i, (_, row) in enumerate(facts.iterrows()):
        start = f"; {row['family']}" if family else f" {row['family']}"
        more = (f"{start} " if row["family"] != family else ", ") + (
            f"{row['label']} {formats.number(row['value'])}")
        rest = f"; {len(facts) - i} more in the table."
        if len(said) + len(more) + len(rest) > ALT:
            return said + rest
        said, family = said + more, row["family"]
    return said + "."


# ---- figures


def show(fig: Figure, path: Path, what: str, facts: pd.DataFrame, *, beside: str = "",
         told: pd.DataFrame | None = None) -> Image:
    """Save a figure with what its page says of it, and return it for display.

    what: what is seen, in a line, which begins the caption and the alt text; beside: how to read
    it, a sentence for the caption; facts: what it was drawn from, which the page gives to
    download; told: those whose values the alt text tells, by default all.
    """
    said = [what, beside.rstrip("."), f"{size_of(facts)}."]
    source = facts.assign(seeds=[" ".join(map(str, seeds)) for seeds in facts["seeds"]])
    return plots.save(fig, path, alt(what, facts if told is None else told),
                      caption=". ".join(filter(None, said)),
                      source=source.dropna(axis="columns", how="all").to_csv(index=False))


def panels(names: Sequence, draw: Callable, xlabel: str = "", ylabel: str = "", *,
           height: float = 2.9, columns: int | None = None, sharex: bool = True,
           sharey: bool = True, ylim: tuple[float, float] | None = None) -> Figure:
    """A panel a name, each drawn by draw(axes, name), one below the other, or from three on two
    side by side; labels stand at the ends of curves where they fit, else in one legend.

    height: of a panel.
    """
    columns = columns or (1 if len(names) < 3 else 2)
    lines = -(-len(names) // columns)
    fig, axes = plots.figure(columns, height=0.5 + height * lines, rows=lines, squeeze=False,
                             sharex=sharex, sharey=sharey)
    for ax, name in zip(axes.flat, names, strict=False):
        draw(ax, name)
        ax.set(title=str(name).replace("_", " "), xlabel="", ylabel="")
        if ylim:
            ax.set_ylim(ylim)
        if ax.get_legend():
            ax.get_legend().remove()
    for ax in axes.flat[len(names):]:
        ax.remove()
    fig.supylabel(ylabel, fontsize=11)
    fig.supxlabel(xlabel, fontsize=11)
    drawn = list(axes.flat[:len(names)])
    if columns > 1 or not all(list(map(plots.label_ends, drawn))):
        keys = {label: handle for ax in drawn
                for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        if keys:
            fig.legend(keys.values(), keys, loc="outside upper left", ncols=min(len(keys), 3))
    return fig


def curves(facts: pd.DataFrame, x: str, xlabel: str, ylabel: str, *, log: int | None = None,
           panel: str = "family", **size: Any) -> Figure:
    """Value against the condition `x`, a line an arm with its interval as a band.

    panel: column of `facts` whose values have a panel each. log: base of the axis' logarithm, or
    None for a linear axis.
    """
    facts = labelled(facts, [x])
    looks = facts.drop_duplicates("label").set_index("label")["model"].map(arms.get)

    def draw(ax, name):
        rows = facts[facts[panel] == name]
        order = [label for label in looks.index if label in set(rows["label"])]
        sns.lineplot(rows, x=x, y="value", hue="label", style="label", errorbar=None, ax=ax,
                     hue_order=order, style_order=order,
                     palette={label: plots.COLOURS[arm.colour] for label, arm in looks.items()},
                     dashes={label: DASHES[arm.line] for label, arm in looks.items()},
                     legend=False)
        for line, label in zip(ax.lines, order, strict=True):
            line.set_label(label)
        for label, line in rows.groupby("label", sort=False):
            ax.fill_between(line[x], line["low"], line["high"], alpha=0.18, linewidth=0,
                            color=plots.COLOURS[looks[label].colour])
        if log:
            ax.set_xscale("log", base=log)
            ax.xaxis.set_major_formatter("{x:.0f}")

    return panels(list(facts[panel].unique()), draw, xlabel, ylabel, **size)


def forest(facts: pd.DataFrame, xlabel: str, *, lines: Sequence[float] = (0, 1),
           xlim: tuple[float, float] | None = None,
           names: dict[str, str] | None = None) -> Figure:
    """Arms down the side in the order of `facts`: value and interval of each, families apart.

    The marker tells the role; it is filled for the first family and hollow for the next. lines:
    values to mark by a line. xlim: what lies beyond stands at the edge. names: what arms are
    called here, where that is not their label; those that are not named are left out.
    """
    facts = labelled(facts)
    if names:
        facts = facts.assign(label=facts["model"].map(names)).dropna(subset="label")
        facts = facts.sort_values("model", key=lambda ids: ids.map(list(names).index),
                                  kind="stable")
    rows, families = list(facts["label"].unique()), list(facts["family"].unique())
    ends = facts[["value", "low", "high"]].astype(float)
    ends = ends.fillna({"low": ends["value"], "high": ends["value"]})
    facts[["value", "low", "high"]] = ends.clip(*xlim) if xlim else ends
    fig, ax = plots.figure(height=1.3 + (0.16 + 0.16 * len(families)) * len(rows))
    for line in lines:
        ax.axvline(line, color="0.25", linewidth=1, zorder=0)
    shift = 0.62 / len(families)
    for row in facts.itertuples():
        i, colour = families.index(row.family), plots.look(row.model)["color"]
        y = rows.index(row.label) + (i - (len(families) - 1) / 2) * shift
        ax.plot([row.low, row.high], [y, y], color=colour, zorder=1)
        ax.plot(row.value, y, arms.get(row.model).marker, color=colour, markersize=6,
                markerfacecolor=_filled(i, colour), zorder=2)
    # One column of handles a question: which family, which role.
    keys = {family.replace("_", " "): ("o", _filled(i, plots.GREY))
            for i, family in enumerate(families) if len(families) > 1}
    keys |= {arm.role: (arm.marker, plots.GREY) for arm in map(arms.get, facts["model"])}
    for label, (marker, filled) in keys.items():
        ax.plot([], [], marker, color=plots.GREY, markerfacecolor=filled, label=label)
    ax.set_yticks(range(len(rows)), [textwrap.fill(row, 30) for row in rows])
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel=xlabel)
    ax.grid(axis="y", visible=False)
    fig.legend(loc="outside upper left", ncols=min(len(keys), 4), handletextpad=0.1)
    return fig


def _filled(i, colour):
    """How the marker of family number i is filled."""
    return (colour, "white", "0.85")[i % 3]


def parts(facts: pd.DataFrame, xlabel: str, **size: Any) -> Figure:
    """Bars of `gain_when` and `gain_how`: arms down the side, a panel a family."""
    facts = labelled(facts[facts["quantity"].isin(plots.PARTS)])
    facts = facts.assign(part=facts["quantity"].str.replace("gain_", "by "))
    palette = {part.replace("gain_", "by "): colour for part, colour in plots.PARTS.items()}
    rows, bars = list(facts["label"].unique()), list(palette)

    def draw(ax, family):
        here = facts[facts["family"] == family]
        sns.barplot(here, x="value", y="label", hue="part", order=rows, hue_order=bars,
                    palette=palette, saturation=1, errorbar=None, ax=ax)
        for _, row in here.iterrows():
            y = rows.index(row["label"]) + 0.4 * bars.index(row["part"]) - 0.2
            ax.plot([row["low"], row["high"]], [y, y], color="0.3", linewidth=1)
        ax.axvline(0, color="0.7", linewidth=0.8)

    return panels(list(facts["family"].unique()), draw, xlabel,
                  **{"height": 0.6 + 0.34 * len(rows)} | size)


def seeded(seeds: Sequence[int]) -> str:
    """How many seeds, for a caption: "3 seeds", "one seed"."""
    return f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"


def size_of(facts: pd.DataFrame) -> str:
    """How much stands behind a figure: "300 problems, 3 seeds, 95 % intervals"."""
    problems = facts["n_problems"].dropna()
    told = [f"{int(problems.max())} problems"] if len(problems) else []
    return ", ".join([*told, seeded(max(facts["seeds"], key=len, default=())), "95 % intervals"])
