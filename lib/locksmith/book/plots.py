"""One look for every figure: style, one colour and line per model, a file with its alt text.

A figure says what was measured with unit on its axes, n and the interval in its title or legend.
Colours come from seaborn's colour-blind palette and differ in line style too, as arms.yml says, so
that the figures can be read in grey. Saved PNGs are opaque (they must stand on a dark page) and
the same figure gives the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from locksmith import arms, quantities

DPI = 200
PALETTE = sns.color_palette("colorblind")
GREY = (0.45, 0.45, 0.45)
COLOURS = dict(zip(arms.COLOURS, [*PALETTE, GREY], strict=True))
PARTS = {"gain_when": PALETTE[0], "gain_how": PALETTE[1]}


def look(arm: str) -> dict:
    """Keyword arguments (color, linestyle) for an arm of arms.yml, which may have conditions.

    BadInput for an unknown one.
    """
    found = arms.get(quantities.split(arm)[0])
    return {"color": COLOURS[found.colour], "linestyle": found.line}


def figure(columns: int = 1, width: float = 7.2, height: float = 3.8, **options: object) -> tuple:
    """A styled figure of `columns` axes side by side, in inches; returns (figure, axes)."""
    sns.set_theme(style="whitegrid", palette="colorblind", rc={
        "figure.facecolor": "white", "axes.titlesize": 11, "axes.labelsize": 10,
        "axes.titlelocation": "left", "legend.frameon": False, "legend.fontsize": 9,
        "xtick.labelsize": 9, "ytick.labelsize": 9, "lines.linewidth": 1.8,
    })
    return plt.subplots(1, columns, figsize=(width, height), layout="constrained", **options)


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


def save(fig: Figure, path: str | Path, alt: str) -> Image:
    """Write `fig` to `path` as PNG with its alt text inside, close it, and return it for display.

    The alt text (str, what a reader who cannot see the figure needs: axes, models, outcome) is
    kept in the file's Description and in the output's metadata, from which the book takes it.
    """
    if len(alt.split()) < 5:
        raise ValueError(f"alt must describe the figure in at least five words, it is {alt!r}.")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # Without matplotlib's own Software entry the bytes do not depend on its version number.
    fig.savefig(path, dpi=DPI, facecolor="white", metadata={"Software": None, "Description": alt})
    width = round(fig.get_figwidth() * 100)
    plt.close(fig)
    return Image(filename=str(path), width=width, alt=alt)
