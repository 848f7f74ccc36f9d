"""The driver of Chromium, on a page of a few lines; skipped where there is none."""

import re
import zlib

import pytest
from locksmith.book import chromium

PAGE = """<!doctype html><meta charset="utf-8"><title>A page</title>
<input id="range" type="range" min="0" max="9" value="3"><input id="box" type="checkbox">
<button onclick="this.textContent = 'pressed'">press</button><h1 style="color: #123456">Köln</h1>
<script>document.title = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"
</script>"""


@pytest.fixture
def page(tmp_path, tab):
    path = tmp_path / "a page.html"
    path.write_text(PAGE, encoding="utf-8")
    tab.open(path)
    return path


def test_a_page_is_as_wide_and_as_dark_as_told(page, tab):
    assert tab.evaluate("[innerWidth, innerHeight, document.title]") == [390, 800, "light"]
    tab.theme("dark")
    tab.size(1280, 900)
    tab.open(page)
    assert tab.evaluate("[innerWidth, innerHeight, document.title]") == [1280, 900, "dark"]
    tab.theme("light")


def test_keys_do_what_a_readers_do(page, tab):
    tab.evaluate("document.getElementById('range').focus()")
    tab.press("ArrowRight")
    tab.press("Tab")
    tab.press(" ", " ")
    tab.press("Tab")
    tab.press("Enter", "\r")
    assert tab.evaluate("[range.value, box.checked, document.querySelector('button').textContent]"
                        ) == ["4", True, "pressed"]


def test_promises_are_waited_for_and_what_a_script_throws_is_raised(page, tab):
    slow = "new Promise(done => setTimeout(() => done(document.querySelector('h1').innerText), 50))"
    assert tab.evaluate(slow) == "Köln"
    with pytest.raises(RuntimeError, match="nothing is not defined"):
        tab.evaluate("nothing.at.all")
    with pytest.raises(RuntimeError, match=r"No\.such"):
        tab.call("No.such")


def test_a_page_that_is_not_there_is_named(tmp_path, tab):
    with pytest.raises(ValueError, match="could not open .*gone.html: net::ERR_FILE_NOT_FOUND"):
        tab.open(tmp_path / "gone.html")


def test_a_page_is_printed_in_its_colours(page, tab, tmp_path):
    tab.print(tmp_path / "a.pdf")
    data = (tmp_path / "a.pdf").read_bytes()
    drawn = b"".join(zlib.decompress(part) for part in re.findall(
        rb"/FlateDecode.*?stream\r?\n(.*?)\r?\nendstream", data, re.S))
    assert data.startswith(b"%PDF") and b"/Outlines" in data
    colours = re.findall(rb"([\d.]+) ([\d.]+) ([\d.]+) rg", drawn)
    assert (0x12, 0x34, 0x56) in {tuple(round(255 * float(x)) for x in rgb) for rgb in colours}


def test_a_browser_that_ends_is_no_silence(with_chromium, tmp_path):
    with pytest.raises(ValueError, match="has ended, or said nothing"):
        with chromium.opened() as tab:
            tab.process.kill()
            tab.open(tmp_path)


def test_a_machine_without_a_browser_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(chromium.NoBrowser, match="none of chromium, .*apt-get install chromium"):
        chromium.find()
