"""A run's files aside until all of them are there, then in their places together.

    build/staging/<name>.<random>/   what a run has written so far, under the paths of the places
    build/staging/<name>.whole/      a whole run's files, on the way to their places

Renaming the first to the second is the moment from which the new files count. A run that ends
before it, in whatever way, has changed nothing; `settle` finishes one that is killed after it.
"""

import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

STAGING = Path("build/staging")
ASIDE = "LOCKSMITH_STAGING"  # variable of the environment: the folder that takes a run's files


def cache_dir() -> Path:
    """The folder for everything fetched or sampled that does not belong into the repository."""
    return Path(os.environ.get("LOCKSMITH_CACHE") or "~/.cache/locksmith").expanduser()


def path(place: str | Path) -> Path:
    """Where to write what shall stand at `place`: aside within a run, its folder made."""
    if ASIDE not in os.environ:
        return Path(place)
    aside = Path(os.environ[ASIDE], place)
    aside.parent.mkdir(parents=True, exist_ok=True)
    return aside


def put(place: str | Path, content: bytes) -> None:
    """Writes a file whole or not at all: a temporary file beside it, then a rename.

    Raises OSError, which names the file, where the system does not let it.
    """
    place = Path(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    half = place.with_name(f".{place.name}.tmp")
    try:
        half.write_bytes(content)
        half.replace(place)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(place)) from None
    finally:
        half.unlink(missing_ok=True)


def written(folder: str | Path) -> list[Path]:
    """The places in a folder of what the run has written, in order; none outside of a run."""
    aside = Path(os.environ[ASIDE]) if ASIDE in os.environ else None
    files = sorted((aside / folder).rglob("*")) if aside else []
    return [file.relative_to(aside) for file in files if file.is_file()]


def newest(place: str | Path) -> Path:
    """Where to read what stands at `place`: aside, if the run has written it."""
    aside = Path(os.environ.get(ASIDE, ""), place)
    return aside if aside.exists() else Path(place)


@contextmanager
def whole(name: str, own: Iterable[str]) -> Iterator[None]:
    """Inside, `path` leads aside, in this process and those that it starts; at the end the files
    move to their places.

    name: of the run, as in "lab/02_base_model_sampling"; a second run of a name waits for the
        first. own: patterns of the files that belong to it: those that it has not written again
        go. If the body raises, they are as they were, also where it wrote in place.
    """
    parent = (STAGING / name).parent
    with alone(name):
        _finish(STAGING / f"{name}.whole")
        for left in parent.glob(f"{Path(name).name}.*/"):
            shutil.rmtree(left, ignore_errors=True)  # a killed run's kernel may still write there
        before = {file: (_written(file), file.read_bytes()) for file in _files(own)}
        folder = Path(tempfile.mkdtemp(prefix=f"{Path(name).name}.", dir=parent))
        os.environ[ASIDE] = str(folder / "files")
        try:
            yield
            old = [file.as_posix() for file, (written, _) in before.items()
                   if not (folder / "files" / file).exists() and _written(file) == written]
            (folder / "old.json").write_text(json.dumps(old), encoding="utf-8")
            folder.rename(STAGING / f"{name}.whole")
        except BaseException:
            for file in set(_files(own)) - set(before):
                file.unlink()
            for file, (written, content) in before.items():
                if _written(file) != written:
                    put(file, content)
            raise
        finally:
            del os.environ[ASIDE]
            shutil.rmtree(folder, ignore_errors=True)
        _finish(STAGING / f"{name}.whole")


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Inside, no other process runs what has this name; if one does, this waits for its end.

    A lock is its process's, and gone with it, however that ends.
    """
    path = STAGING / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"Another run of {name} is under way; this one waits for it.", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # who waits for this file sees that, and makes a new one
        lock.release()


def settle(root: str | Path = ".") -> None:
    """Finishes what a run that was killed while its files moved has left, if no other process is
    at it."""
    for folder in (Path(root) / STAGING).glob("*/*.whole/"):
        try:
            with filelock.FileLock(folder.with_suffix(".lock"), timeout=0):
                _finish(folder, Path(root))
                folder.with_suffix(".lock").unlink()
        except filelock.Timeout:
            pass  # a run of that name is at it


def _finish(folder, root=Path()):
    """Moves files to their places and removes old ones; where it was killed, it can be repeated."""
    if not folder.exists():
        return
    files = folder / "files"
    for file in sorted(files.rglob("*")):
        if file.is_file():
            place = root / file.relative_to(files)
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                file.replace(place)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                put(place, file.read_bytes())  # build/ is on another disk
    if (folder / "old.json").exists():
        for place in json.loads((folder / "old.json").read_text(encoding="utf-8")):
            (root / place).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _written(file):
    """When a file was last written, in nanoseconds; None if it is not there."""
    return file.stat().st_mtime_ns if file.exists() else None


def _files(patterns):
    return [file for pattern in patterns for file in Path().glob(pattern) if file.is_file()]
