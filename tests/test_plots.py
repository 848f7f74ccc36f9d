"""plots.py: same bytes for the same figure, alt text kept, looks that can be told apart."""

import struct
import zlib

import pytest
from locksmith.book import plots
from locksmith.errors import BadInput

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
    assert (width, height) == (6.4 * plots.DPI, 3.4 * plots.DPI)
    pixels = zlib.decompress(b"".join(body for kind, body in parts if kind == b"IDAT"))
    assert depth == 8 and colour == 6  # RGBA; the first pixel must be opaque white
    assert pixels[1:5] == b"\xff\xff\xff\xff"
    text = b"".join(body for kind, body in parts if kind in (b"tEXt", b"iTXt"))
    assert ALT.encode() in text and b"Matplotlib" not in text
    bundle, metadata = shown._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == ALT and metadata["image/png"]["width"] == 640
    assert "image/png" in bundle


def test_band_draws_value_and_interval(tmp_path):
    fig, axes = plots.figure()
    plots.band(axes, [1, 2], [0.3, 0.4], [0.1, 0.2], [0.5, 0.6], "low-temperature")
    assert axes.lines[0].get_ydata().tolist() == [0.3, 0.4]
    corners = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (corners.min(), corners.max()) == (0.1, 0.6)
    assert axes.lines[0].get_label() == "low temperature"
    plots.save(fig, tmp_path / "x.png", ALT)


def test_a_point_stands_upright_with_its_interval_and_the_marker_of_its_role(tmp_path):
    fig, axes = plots.figure()
    plots.point(axes, 2, (0.3, 0.1, 0.4), "random-vectors", label="random")
    interval, value = axes.lines
    assert interval.get_xdata().tolist() == [2, 2]
    assert interval.get_ydata().tolist() == [0.1, 0.4]
    assert value.get_marker() == "s" and value.get_label() == "random"
    plots.save(fig, tmp_path / "x.png", ALT)


def test_an_unknown_arm_has_no_look():
    with pytest.raises(BadInput, match="did you mean thinking"):
        plots.look("thinkng")


def test_a_figure_without_a_description_is_refused(tmp_path):
    fig, _ = plots.figure()
    with pytest.raises(ValueError, match="at least five words"):
        plots.save(fig, tmp_path / "x.png", "a plot")
    assert not (tmp_path / "x.png").exists()
