"""One look for every figure: style, one colour and line per model, a file with its alt text.

A figure says what was measured with unit on its axes; how many problems and seeds stand behind it
says its caption. Colours come from seaborn's colour-blind palette and differ in line style too, as
arms.yml says, so that the figures can be read in grey. A figure is narrow and its letters large, as
a phone shows it at half its size. Saved PNGs are opaque (they must stand on a dark page) and the
same figure gives the same bytes.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from locksmith import arms, quantities

DPI = 200
PALETTE = sns.color_palette("colorblind")
GREY = (0.45, 0.45, 0.45)
COLOURS = dict(zip(arms.COLOURS, [*PALETTE, GREY], strict=True))
PARTS = {"gain_when": "#4b2e83", "gain_how": "#a78bd0"}  # no arm's: they are parts of a gain
WIDTH = 6.4  # inches: what fits beside the contents of a page
MOST = 8  # series of a panel that can be told apart


def look(arm: str) -> dict:
    """Keyword arguments (color, linestyle) for an arm of arms.yml, which may have conditions.

    BadInput for an unknown one.
    """
    found = arms.get(quantities.split(arm)[0])
    return {"color": COLOURS[found.colour], "linestyle": found.line}


def figure(columns: int = 1, width: float = WIDTH, height: float = 3.4, rows: int = 1,
           **options: object) -> tuple:
    """A styled figure of `rows` times `columns` axes, in inches; returns (figure, axes)."""
    sns.set_theme(style="whitegrid", palette="colorblind", rc={
        "figure.facecolor": "white", "axes.titlesize": 12, "axes.labelsize": 11,
        "axes.titlelocation": "left", "legend.frameon": False, "legend.fontsize": 11,
        "xtick.labelsize": 11, "ytick.labelsize": 11, "lines.linewidth": 1.8,
    })
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **options)


def log_scale(axes: Axes, form: str = "{x:,.0f}", at: Sequence[int] = (1, 2, 5)) -> None:
    """A logarithmic x axis with numbers at so many times a power of ten, told as `form` says."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=at, numticks=8))
    axes.xaxis.set_major_formatter(form)
    axes.minorticks_off()


def label_ends(axes: Axes) -> bool:
    """Write each curve's label at its right end, in its colour; False where they do not fit or
    something else than curves has a label, which a legend must tell then."""
    handles, labels = axes.get_legend_handles_labels()
    if not 0 < len(labels) <= MOST or not all(map(_is_curve, handles)):
        return False
    ends = [_points(handle)[-1] for handle in handles]
    label_beside(axes, ends, labels, [handle.get_color() for handle in handles])
    return True


def label_beside(axes: Axes, points: Sequence[Sequence[float]], labels: Sequence[str],
                 colours: Sequence, leaders: bool = False) -> None:
    """Write labels at the right of the axes, each at the height of its point (x, y) or as near as
    the others allow; leaders: with a thin line from the point."""
    axes.get_ylim()  # has the limits follow what was drawn
    heights = [axes.transLimits.transform(axes.transScale.transform(p))[1] for p in points]
    size = axes.figure.get_size_inches()[1] * axes.get_position().height * 72
    for y, i in zip(_apart(sorted(heights), 12.5 / size), np.argsort(heights, kind="stable"),
                    strict=True):
        how = dict(va="center", fontsize=10, annotation_clip=False, linespacing=0.9,
                   color=[0.75 * x for x in to_rgb(colours[i])])
        if leaders:
            axes.annotate(labels[i], points[i], (1.03, y), textcoords="axes fraction", **how,
                          arrowprops=dict(arrowstyle="-", color="0.7", lw=0.7, shrinkA=0))
        else:
            axes.annotate(textwrap.fill(labels[i], 26), (1.015, y), xycoords="axes fraction", **how)


def _is_curve(handle):
    """Whether a label belongs to a line that is drawn, and not to markers or to a legend."""
    return (isinstance(handle, Line2D) and handle.get_linestyle() != "None"
            and len(_points(handle)) > 1)


def _points(line):
    """The points of a line that are there."""
    points = np.column_stack([np.asarray(x, float) for x in line.get_data(orig=False)])
    return points[np.isfinite(points).all(1)]


def _apart(heights, gap):
    """Sorted heights, moved as little as keeps them `gap` from each other: neighbours that would
    touch stand around their mean."""
    groups = []
    for y in heights:
        groups.append([y])
        while len(groups) > 1 and (_bottom(groups[-1], gap)
                                   < _bottom(groups[-2], gap) + gap * len(groups[-2])):
            last = groups.pop()
            groups[-1] += last
    return [_bottom(group, gap) + gap * i for group in groups for i in range(len(group))]


def _bottom(group, gap):
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def band(axes: Axes, x: Sequence[float], value: Sequence[float], low: Sequence[float],
         high: Sequence[float], model: str, label: str | None = None) -> None:
    """A curve with its interval as a band; x, value, low, high are sequences of one length."""
    axes.plot(x, value, label=label or arms.get(model).label, **look(model))
    axes.fill_between(x, low, high, color=look(model)["color"], alpha=0.18, linewidth=0)


def point(axes: Axes, x: float, interval: Sequence[float], arm: str,
          label: str | None = None) -> None:
    """A value with its interval, upright at x, in the arm's colour and with its role's marker."""
    value, low, high = interval
    color = look(arm)["color"]
    axes.plot([x, x], [low, high], color=color)
    axes.plot(x, value, arms.get(arm).marker, markersize=6, color=color, label=label)


def save(fig: Figure, path: str | Path, alt: str, caption: str = "", source: str = "") -> Image:
    """Write `fig` to `path` as PNG with its alt text inside, close it, and return it for display.

    The alt text (str, what a reader who cannot see the figure needs: axes, models, outcome) is
    kept in the file's Description and in the output's metadata, from which the book takes it, as
    it does the caption (text), the source (CSV text of what the figure shows) and the series, how
    many labels the panel with the most of them has.
    """
    if len(alt.split()) < 5:
        raise ValueError(f"alt must describe the figure in at least five words, it is {alt!r}.")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # Without matplotlib's own Software entry the bytes do not depend on its version number.
    fig.savefig(path, dpi=DPI, facecolor="white", metadata={"Software": None, "Description": alt})
    width = round(fig.get_figwidth() * 100)
    plt.close(fig)
    series = max((len(set(ax.get_legend_handles_labels()[1])) for ax in fig.axes), default=0)
    told = {"caption": caption, "source": source, "series": series}
    return Image(filename=str(path), width=width, alt=alt,
                 metadata={key: value for key, value in told.items() if value})
