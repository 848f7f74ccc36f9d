"""How pages show facts: tables, published figures, the glossary of arms, figures.

Figures are drawn with seaborn from a tidy table of facts (`Recorder.frame`), whose intervals were
made where the facts were; seaborn computes none. Colours, lines and markers come from arms.yml.
"""

import base64
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from locksmith import arms, quantities
from locksmith.book import claims, plots

ALT = 300  # characters of an alt text at most
DASHES = {"-": "", "--": (4, 1.5), ":": (1, 1), "-.": (3, 1.25, 1.5, 1.25)}


# ---- text and tables


def number(x: float, digits: int = 3) -> str:
    """To so many significant digits, thousands whole and with commas."""
    return f"{x:,.0f}" if 1000 <= abs(x) < 1e6 else f"{x:.{digits}g}"


def text(interval: Sequence[float | None] | None, digits: int = 3) -> str:
    """An interval for people: "0.6 [0.55, 0.65]", only the value without ends, a dash for None."""
    if interval is None:
        return "–"
    value, *ends = ("–" if x is None else number(float(x), digits) for x in interval)
    return value if ends == ["–", "–"] else f"{value} [{', '.join(ends)}]"


def table(head: Sequence, rows: Iterable[Sequence]) -> Markdown:
    """A Markdown table of anything that has a str."""
    lines = [head, ["---"] * len(head), *rows]
    return Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))


def download(name: str, text: str) -> HTML:
    """A link under which a CSV text is downloaded as a file of that name; the page holds it."""
    data = base64.b64encode(text.encode()).decode()
    return HTML(f'<a download="{name}" href="data:text/csv;base64,{data}">{name}</a>')


def grid(record: Any, families: Iterable[str], names: Iterable[str], columns: dict[str, str],
         digits: int = 3) -> Markdown:
    """A row a family and arm, a column (heading -> name of a fact) a quantity of a Recorder.

    Arms of which none was measured are left out.
    """
    rows = [[family, label(name),
             *(text(record.get(family, name, fact), digits) for fact in columns.values())]
            for family in families for name in names]
    return table(["family", "arm", *columns], [row for row in rows if set(row[2:]) != {"–"}])


def published(*claim_ids: str, about: Sequence[str] = ("",)) -> Markdown:
    """The published figures of some claims, those that have one of the phrases `about`."""
    figures = [figure for claim in claims.load()["claims"] if claim["id"] in claim_ids
               for figure in claim["published"] if any(x in figure["figure"] for x in about)]
    columns = ("figure", "version", "where", "status")
    return table(["published figure", *columns[1:]],
                 [[figure[key] for key in columns] for figure in figures])


def glossary(ids: Iterable[str]) -> Markdown:
    """What each of some arms is, in the order of arms.yml."""
    wanted, known = set(map(arms.get, ids)), arms.load().values()
    return table(["arm", "role", "what it is"],
                 [[arm.label, arm.role, arm.says] for arm in known if arm in wanted])


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
            f"{row['label']} {number(row['value'], 2)}")
        rest = f"; {len(facts) - i} more in the table."
        if len(said) + len(more) + len(rest) > ALT:
            return said + rest
        said, family = said + more, row["family"]
    return said + "."


# ---- figures


def panels(names: Sequence, draw: Callable, xlabel: str = "", ylabel: str = "", *,
           height: float = 3.8, width: float = 9.6, sharex: bool = True,
           sharey: bool = True) -> Figure:
    """A panel a name side by side, each drawn by draw(axes, name); one label and legend below."""
    fig, axes = plots.figure(len(names), width, height, squeeze=False, sharex=sharex,
                             sharey=sharey)
    for ax, name in zip(axes[0], names, strict=True):
        draw(ax, name)
        ax.set(title=str(name).replace("_", " "), xlabel="", ylabel="")
        if ax.get_legend():
            ax.get_legend().remove()
    axes[0][0].set_ylabel(ylabel)
    keys = {label: handle for ax in axes[0]
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if keys:
        legend = fig.legend(keys.values(), keys, loc="outside lower center",
                            ncols=min(len(keys), 4),
                            title=xlabel, title_fontsize=10)  # under each panel it would overlap
        legend.get_title().set_multialignment("center")
    else:
        fig.supxlabel(xlabel, fontsize=10)
    return fig


def curves(facts: pd.DataFrame, x: str, xlabel: str, ylabel: str, *, log: int | None = None,
           panel: str = "family", **size: float) -> Figure:
    """Value against the condition `x`, a line an arm with its interval as a band.

    panel: column of `facts` whose values have a panel each. log: base of the axis' logarithm, or
    None for a linear axis.
    """
    facts = labelled(facts, [x])
    looks = facts.drop_duplicates("label").set_index("label")["model"].map(arms.get)
    order = list(looks.index)

    def draw(ax, name):
        rows = facts[facts[panel] == name]
        sns.lineplot(rows, x=x, y="value", hue="label", style="label", errorbar=None, ax=ax,
                     hue_order=order, style_order=order,
                     palette={label: plots.COLOURS[arm.colour] for label, arm in looks.items()},
                     dashes={label: DASHES[arm.line] for label, arm in looks.items()})
        for label, line in rows.groupby("label", sort=False):
            ax.fill_between(line[x], line["low"], line["high"], alpha=0.18, linewidth=0,
                            color=plots.COLOURS[looks[label].colour])
        if log:
            ax.set_xscale("log", base=log)
            ax.xaxis.set_major_formatter("{x:.0f}")

    return panels(list(facts[panel].unique()), draw, xlabel, ylabel, **size)


def forest(facts: pd.DataFrame, xlabel: str, *, lines: Sequence[float] = (0, 1),
           xlim: tuple[float, float] | None = None, **size: float) -> Figure:
    """Arms down the side in the order of `facts`, a panel a family: value and interval of each.

    The marker tells the role. lines: values to mark by a line. xlim: what lies beyond stands at
    the edge.
    """
    facts = labelled(facts)
    rows = list(facts["label"].unique())
    facts = facts.assign(row=facts["label"].map(rows.index))
    ends = facts[["value", "low", "high"]].astype(float)
    ends = ends.fillna({"low": ends["value"], "high": ends["value"]})
    facts[["value", "low", "high"]] = ends.clip(*xlim) if xlim else ends
    markers = {arm.role: arm.marker for arm in arms.load().values()}

    def draw(ax, family):
        here = facts[facts["family"] == family]
        for line in lines:
            ax.axvline(line, color="0.7", linewidth=0.8, zorder=0)
        for _, row in here.iterrows():
            ax.plot([row["low"], row["high"]], [row["row"]] * 2, zorder=1,
                    color=plots.look(row["model"])["color"])
        for role, some in here.groupby("role"):
            sns.scatterplot(some, x="value", y="row", hue="model", marker=markers[role], s=45,
                            ax=ax, legend=False,
                            palette={m: plots.look(m)["color"] for m in some["model"]})
            ax.plot([], [], markers[role], color=plots.GREY, label=role)
        ax.set_yticks(range(len(rows)), [textwrap.shorten(row, 45) for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)

    return panels(list(facts["family"].unique()), draw, xlabel,
                  **{"height": 1.4 + 0.24 * len(rows)} | size)


def parts(facts: pd.DataFrame, xlabel: str, **size: float) -> Figure:
    """Bars of `gain_when` and `gain_how` side by side: arms down the side, a panel a family."""
    facts = labelled(facts[facts["quantity"].isin(plots.PARTS)])
    facts = facts.assign(part=facts["quantity"].str.replace("_", " "))
    palette = {part.replace("_", " "): colour for part, colour in plots.PARTS.items()}
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
                  **{"height": 1.4 + 0.3 * len(rows)} | size)


def size_of(facts: pd.DataFrame) -> str:
    """How much stands behind a figure: "300 problems, 3 seeds, 95 % intervals"."""
    problems = facts["n_problems"].dropna()
    seeds = max(map(len, facts["seeds"]))
    told = [f"{int(problems.max())} problems"] if len(problems) else []
    told.append(f"{seeds} seeds" if seeds > 1 else "one seed")
    return ", ".join([*told, "95 % intervals"])
