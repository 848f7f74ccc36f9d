"""plots.py: same bytes for the same figure, alt text kept, looks that can be told apart."""

import struct
import zlib

import pytest
from locksmith.book import plots

ALT = "Curve of pass@k against k for the base model"


def draw(path):
    fig, axes = plots.figure()
    plots.band(axes, [1, 2, 4], [0.1, 0.2, 0.4], [0.05, 0.1, 0.3], [0.2, 0.3, 0.5], "base")
    axes.set(xlabel="samples k", ylabel="pass@k (share of problems)")
    return plots.save(fig, path, ALT)


def chunks(data):
    """The (type, body) pairs of a PNG, read by hand."""
    at = 8
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at:at + 8])
        yield kind, data[at + 8:at + 8 + size]
        at += 12 + size


def test_png_is_repeatable_opaque_sized_and_carries_its_alt_text(tmp_path):
    shown = draw(tmp_path / "deep" / "a.png")
    draw(tmp_path / "b.png")
    data = (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "deep" / "a.png").read_bytes() == data
    parts = list(chunks(data))
    width, height, depth, colour = struct.unpack(">IIBB", parts[0][1][:10])
    assert (width, height) == (7.2 * plots.DPI, 3.8 * plots.DPI)
    pixels = zlib.decompress(b"".join(body for kind, body in parts if kind == b"IDAT"))
    assert depth == 8 and colour == 6  # RGBA; the first pixel must be opaque white
    assert pixels[1:5] == b"\xff\xff\xff\xff"
    text = b"".join(body for kind, body in parts if kind in (b"tEXt", b"iTXt"))
    assert ALT.encode() in text and b"Matplotlib" not in text
    bundle, metadata = shown._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == ALT and metadata["image/png"]["width"] == 720
    assert "image/png" in bundle


def test_band_draws_value_and_interval(tmp_path):
    fig, axes = plots.figure()
    plots.band(axes, [1, 2], [0.3, 0.4], [0.1, 0.2], [0.5, 0.6], "low_temperature")
    assert axes.lines[0].get_ydata().tolist() == [0.3, 0.4]
    corners = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (corners.min(), corners.max()) == (0.1, 0.6)
    assert axes.lines[0].get_label() == "low temperature"
    plots.save(fig, tmp_path / "x.png", ALT)


# What may stand in one figure, chapter by chapter.
TOGETHER = (
    {"base", "thinking", "guess", "entropy-matched thinking", "greedy", "low_temperature",
     "majority", "best_of_n", "cot_decoding", "power_sampling"},
    {"thinking traces", "shuffled traces", "corrupted traces"},
    {"hybrid", "oracle", "probe", "network", "difference of means", "ceiling", "leak", "leak alone",
     "bias only", "one vector", "other category", "random vectors", "random positions",
     "twin vectors", "untrained vectors", "unrelated vectors", "true kinds",
     "twin vectors, true kinds", "logit push"},
    {"base", "thinking", "twin", "untrained", "distilled", "taught", "guess"},
    {"base vector", "thinking vector", "own vector", "base point vector", "wrong behaviour",
     "wrong point vector", "noise"},
    {"correctness", "noise"},
    {"backtracking", "uncertainty", "error", "noise"},
    {"critiques", "flipped critiques", "shuffled critiques", "format only", "noisy critiques",
     "own critiques", "many critiques", "SFT right", "SFT wrong", "RL on one problem",
     "RL, same budget", "format reward", "random reward", "entropy alone"},
    {"base", "thinking", "critiques"},
    {"gain by when", "gain by how"},
)


def test_models_differ_in_colour_or_line_and_unknown_ones_are_named():
    # Two models of one figure may never look the same.
    assert set(plots.LOOKS) == set.union(*TOGETHER)
    for names in TOGETHER:
        looks = {(tuple(plots.LOOKS[name][0]), plots.LOOKS[name][1]) for name in names}
        assert len(looks) == len(names), names
    with pytest.raises(KeyError, match="thinkng"):
        plots.look("thinkng")


def test_a_figure_without_a_description_is_refused(tmp_path):
    fig, _ = plots.figure()
    with pytest.raises(ValueError, match="at least five words"):
        plots.save(fig, tmp_path / "x.png", "a plot")
    assert not (tmp_path / "x.png").exists()
