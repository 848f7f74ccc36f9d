"""The judge of tests/torture.py, on commands whose fate is known; faults of the pipeline itself are
injected in test_pipeline.py."""

import os
import random

import pytest
import torture

TOOL = '''
import subprocess, sys, time
from pathlib import Path
how, a, b = sys.argv[1], Path("results/a.json"), Path("results/b.json")
whole = "[1]"
if how == "mends":
    a.write_text(whole)
if how == "slow":
    time.sleep(0.5)
    a.write_text(whole)
if how == "half":
    a.unlink()
    time.sleep(0.5)
    a.write_text(whole)
if how == "stays":
    subprocess.Popen(["sleep", "60"], start_new_session=True, stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL)
    time.sleep(0.5)
if how == "litters":
    part = Path("results/.a.json.tmp")
    part.touch()
    time.sleep(0.5)
if a.exists() and a.read_text() == whole:
    sys.exit()
if how == "eats":
    b.unlink()
if how in ("refuses", "eats"):
    sys.exit("error: results/a.json is not whole")
if how == "mumbles":
    sys.exit("error: something is wrong")
if how == "raises":
    raise ValueError("a.json")
'''


@pytest.fixture
def base(tmp_path):
    """An undisturbed book of two files and one tool."""
    base = tmp_path / "base"
    (base / "results").mkdir(parents=True)
    for name in ("a", "b"):
        (base / "results" / f"{name}.json").write_text("[1]")
    (base / "tool.py").write_text(TOOL)
    return base


def outcome(fault, base):
    row = torture.torture(fault, 0, base, torture.picture(base))
    room = base.parent / f"copy-{os.getpid()}"
    assert not room.exists() and torture.alive(room / "book") == []
    return row["outcome"], row["why"]


@pytest.mark.parametrize("how, found", [
    ("mends", ("survived", "the same bytes")), ("refuses", ("survived", "refused")),
    ("mumbles", ("untidy", "the cause is not named")), ("raises", ("untidy", "a traceback")),
    ("accepts", ("wrong", "accepted; differing: results/a.json")),
    ("eats", ("lost", "not the same bytes afterwards: results/b.json"))])
def test_corruption(how, found, base):
    fault = torture.Fault("corrupt", "results/a.json", "emptied", (f"python tool.py {how}",),
                          damage=lambda path: path.write_bytes(b""))
    before = torture.picture(base)
    assert outcome(fault, base) == found
    assert torture.picture(base) == before


@pytest.mark.parametrize("how, found, why", [
    ("slow", "survived", ""), ("half", "lost", "right after the kill: results/a.json"),
    ("stays", "untidy", "still running: sleep 60"), ("litters", "untidy", "a.json.tmp")])
def test_kills(how, found, why, base, monkeypatch):
    monkeypatch.setattr(torture, "GRACE", 0.3)
    monkeypatch.setattr(random, "uniform", lambda low, high: high * 0.6)
    fault = torture.Fault("kill", "group", "SIGKILL", (f"python tool.py {how}",))
    (base.parent / "lasts.json").write_text(f'{{"python tool.py {how}": 0.5}}')
    said = outcome(fault, base)
    assert said[0] == found and why in said[1]


def test_faults_are_drawn_by_the_seed_and_stand_once():
    every = [fault.name for fault in torture.drawn(list(torture.INJECT), 10_000, 0)]
    assert len(every) == len(set(every)) >= 600
    few = [fault.name for fault in torture.drawn(list(torture.INJECT), 20, 0)]
    assert few == every[:20]
    assert few != [fault.name for fault in torture.drawn(list(torture.INJECT), 20, 1)]


def test_no_folder_of_this_machine_is_told():
    said = "still running: /opt/venv/bin/python -m x '/tmp/a/c.json': results/lab/1.json, http://a/b"
    assert torture.anywhere(said) == \
        "still running: python -m x 'c.json': results/lab/1.json, http://a/b"
