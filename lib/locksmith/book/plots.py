"""One look for every figure: style, one colour and line per model, a file with its alt text.

A figure says what was measured with unit on its axes, n and the interval in its title or legend.
Colours come from seaborn's colour-blind palette and differ in line style too, so that the figures
can be read in grey. Saved PNGs are opaque (they must stand on a dark page) and the same figure
gives the same bytes.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns
from IPython.display import Image

DPI = 200
PALETTE = sns.color_palette("colorblind")
GREY = (0.45, 0.45, 0.45)
# model -> (colour, line style); a model keeps both through the whole book.
LOOKS = {
    "base": (PALETTE[0], "-"),
    "thinking": (PALETTE[3], "-"),
    "guess": (GREY, ":"),
    "entropy-matched thinking": (PALETTE[1], "--"),
    "greedy": (PALETTE[7], "-"),
    "low_temperature": (PALETTE[9], "--"),
    "majority": (PALETTE[2], "-."),
    "best_of_n": (PALETTE[8], "--"),
    "cot_decoding": (PALETTE[4], "-."),
    "power_sampling": (PALETTE[1], "-"),
    "thinking traces": (PALETTE[3], "-"),
    "shuffled traces": (GREY, "--"),
    "corrupted traces": (PALETTE[5], ":"),
    "hybrid": (PALETTE[2], "-"),
    "oracle": (PALETTE[2], ":"),
    "probe": (PALETTE[9], "-"),
    "network": (PALETTE[9], "--"),
    "difference of means": (PALETTE[9], ":"),
    "ceiling": (PALETTE[3], "--"),
    "leak": (PALETTE[1], "-"),
    "leak alone": (PALETTE[1], ":"),
    "bias only": (PALETTE[4], "-"),
    "one vector": (PALETTE[4], "--"),
    "other category": (PALETTE[6], "-"),
    "random vectors": (GREY, "-"),
    "random positions": (GREY, "--"),
    "twin vectors": (PALETTE[5], "-"),
    "untrained vectors": (PALETTE[5], "--"),
    "unrelated vectors": (PALETTE[5], "-."),
    "true kinds": (PALETTE[2], "--"),
    "twin vectors, true kinds": (PALETTE[5], ":"),
    "logit push": (PALETTE[7], "-."),
    # Chapter 4: which model is read, whose vector steers.
    "twin": (PALETTE[2], "-"),
    "untrained": (GREY, "--"),
    "distilled": (PALETTE[1], "-"),
    "taught": (PALETTE[4], "-"),
    "base vector": (PALETTE[0], "-"),
    "thinking vector": (PALETTE[3], "--"),
    "own vector": (PALETTE[2], "-."),
    "base point vector": (PALETTE[9], "-"),
    "wrong behaviour": (PALETTE[8], "-."),
    "wrong point vector": (PALETTE[5], ":"),
    "noise": (GREY, ":"),
    "correctness": (PALETTE[0], "-"),
    "backtracking": (PALETTE[0], "-"),
    "uncertainty": (PALETTE[4], "-"),
    "error": (PALETTE[3], "--"),
    # Chapter 3: what was trained on.
    "critiques": (PALETTE[2], "-"),
    "flipped critiques": (PALETTE[4], "-"),
    "shuffled critiques": (PALETTE[4], "--"),
    "format only": (GREY, "-"),
    "noisy critiques": (PALETTE[4], ":"),
    "own critiques": (PALETTE[9], "-"),
    "many critiques": (PALETTE[2], "--"),
    "SFT right": (PALETTE[1], "-"),
    "SFT wrong": (PALETTE[1], ":"),
    "RL on one problem": (PALETTE[3], "--"),
    "RL, same budget": (PALETTE[3], "-."),
    "format reward": (PALETTE[5], "-"),
    "random reward": (PALETTE[5], "--"),
    "entropy alone": (PALETTE[5], ":"),
    "gain by when": (PALETTE[0], "-"),
    "gain by how": (PALETTE[1], "-"),
}


def look(model):
    """Keyword arguments (color, linestyle) for `model`; KeyError for one without a look."""
    if model not in LOOKS:
        raise KeyError(f"No look for model {model!r}; those that have one: {', '.join(LOOKS)}.")
    return dict(zip(("color", "linestyle"), LOOKS[model], strict=True))


def figure(columns=1, width=7.2, height=3.8, **options):
    """A styled figure of `columns` axes side by side, in inches; returns (figure, axes)."""
    sns.set_theme(style="whitegrid", palette="colorblind", rc={
        "figure.facecolor": "white", "axes.titlesize": 11, "axes.labelsize": 10,
        "axes.titlelocation": "left", "legend.frameon": False, "legend.fontsize": 9,
        "xtick.labelsize": 9, "ytick.labelsize": 9, "lines.linewidth": 1.8,
    })
    return plt.subplots(1, columns, figsize=(width, height), layout="constrained", **options)


def band(axes, x, value, low, high, model, label=None):
    """A curve with its interval as a band; x, value, low, high are sequences of one length."""
    axes.plot(x, value, label=label or model.replace("_", " "), **look(model))
    axes.fill_between(x, low, high, color=look(model)["color"], alpha=0.18, linewidth=0)


def save(fig, path, alt):
    """Write `fig` to `path` as PNG with its alt text inside, close it, and return it for display.

    The alt text (str, what a reader who cannot see the figure needs: axes, models, outcome) is kept
    in the file's Description and in the output's metadata, from which the book takes it.
    """
    if len(alt.split()) < 5:
        raise ValueError(f"alt must describe the figure in at least five words, it is {alt!r}.")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # Without matplotlib's own Software entry the bytes do not depend on its version number.
    fig.savefig(path, dpi=DPI, facecolor="white", metadata={"Software": None, "Description": alt})
    width = round(fig.get_figwidth() * 100)
    plt.close(fig)
    return Image(filename=str(path), width=width, alt=alt)
