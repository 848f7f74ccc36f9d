"""A run's files: in place all together or not at all, whenever and however the run ends."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from locksmith import results, staging

OWN = ["results/lab/02.json", "results/lab/figures/02_*"]
OLD = {"results/lab/02.json": "old", "results/lab/figures/02_a.png": "old",
       "results/lab/figures/02_gone.png": "old", "results/lab/figures/00_b.png": "other",
       "results/lab/00.json": "other"}
NEW = {"results/lab/02.json": "new", "results/lab/figures/02_a.png": "new",
       "results/lab/figures/02_c.png": "new", "build/notebooks/lab/02_x.ipynb": "new"}
AFTER = {**{place: text for place, text in OLD.items() if text == "other"}, **NEW}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lay(OLD)


def lay(files, where=Path):
    for name, text in files.items():
        path = where(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def there(root="."):
    """{path: text} of all files, those on their way aside."""
    paths = [path for path in Path(root).rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_text() for path in paths
            if "staging" not in path.parts}


def run():
    with staging.whole("lab/02_x", OWN):
        lay(NEW, staging.path)


def test_the_new_take_their_places_together_and_the_old_go():
    with staging.whole("lab/02_x", OWN):
        assert staging.newest("results/lab/02.json").read_text() == "old"
        lay(NEW, staging.path)
        assert there() == OLD
        assert staging.newest("results/lab/02.json").read_text() == "new"
    assert there() == AFTER and staging.path("results/a") == Path("results/a")
    assert not [path for path in Path("build/staging").rglob("*") if path.is_file()]


@pytest.mark.parametrize("how", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", [Path, staging.path])
def test_a_run_that_fails_changes_nothing_even_where_it_wrote_in_place(how, where):
    lay({"build/notebooks/lab/02_x.ipynb": "old"})
    with pytest.raises(how), staging.whole("lab/02_x", OWN):
        lay({name: text for name, text in NEW.items() if name.startswith("results")}, where)
        Path("results/lab/figures/02_gone.png").unlink()
        raise how
    assert there() == OLD | {"build/notebooks/lab/02_x.ipynb": "old"}


def test_what_a_run_wrote_in_place_stays_and_what_it_did_not_goes():
    with staging.whole("lab/02_x", OWN):
        lay(dict.fromkeys(["results/lab/02.json", "results/lab/figures/02_a.png"], "old"))
    assert there() == {place: text for place, text in OLD.items() if "gone" not in place}


@pytest.mark.parametrize("by", ["the next run", "settle", "facts"])
@pytest.mark.parametrize("moment", range(9))
def test_killed_at_any_moment_of_the_move_it_is_finished_later(moment, by, monkeypatch):
    """A kill leaves on disk what an exception out of a file operation leaves."""
    calls = 0

    def killed(function):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls > moment:
                raise MemoryError
            return function(*arguments, **options)
        return call

    with monkeypatch.context() as patch:
        for kind, name in ((Path, "replace"), (Path, "unlink"), (staging.shutil, "rmtree"),
                           (Path, "rename")):
            patch.setattr(kind, name, killed(getattr(kind, name)))
        try:
            run()
        except MemoryError:
            pass
    if by == "settle":
        staging.settle()
    elif by == "facts":
        monkeypatch.setattr(results, "rows", lambda root: [])
        results.facts()
        Path("results/facts.csv").unlink()
    if by != "the next run":
        assert there() == (AFTER if moment else OLD)
    run()
    assert there() == AFTER
    assert not [path for path in Path("build/staging").rglob("*") if path.is_file()]


def test_places_on_another_disk_are_reached_too(monkeypatch):
    rename = Path.replace

    def replace(self, target):
        if "staging" in self.parts:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    run()
    assert there() == AFTER


def test_a_second_run_of_a_name_waits_for_the_first(capsys):
    order = []

    def second():
        code = ("from locksmith import staging\n"
                "with staging.whole('lab/02_x', []): staging.path('results/lab/02.json')"
                ".write_text('second')")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              check=True, env={k: v for k, v in os.environ.items()
                                               if k != staging.ASIDE})
        order.append(done.stderr)

    with staging.whole("lab/02_x", OWN):
        other = threading.Thread(target=second)
        other.start()
        other.join(3)
        assert not order and other.is_alive()
        lay(NEW, staging.path)
        staging.settle()  # leaves alone what is under way
    other.join()
    assert order == ["Another run of lab/02_x is under way; this one waits for it.\n"]
    assert there() == AFTER | {"results/lab/02.json": "second"}


def test_what_the_disk_does_not_take_leaves_no_half(monkeypatch):
    def full(path, content):
        path.open("wb").write(content[:1])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device: 'results/lab/02.json'"):
        staging.put("results/lab/02.json", b"new")
    assert there() == OLD
