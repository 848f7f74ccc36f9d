"""What a job found is kept, so that a run that was cut off, or whose figures changed, does not
find it again.

A job's result lies in the cache folder, under a hash of all that shaped it: the function and its
options, every line of this library but for the book's, the versions of what it stands on, the
parameters but for the chapters', and the repository's models, data and training records. The
results are pickles, which run what they hold: like the library itself the folder must be nobody
else's to write. It can be removed at any time.
"""

import hashlib
import importlib.metadata
import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from locksmith import device, loading, plain_yaml
from locksmith.packaged import cache_dir

PACKAGES = ("torch", "transformers", "peft", "numpy", "scipy", "pandas", "scikit-learn")
UNUSED = 14 * 86400  # seconds; results of other code that nobody asked for so long are removed


def folder() -> Path:
    """Where results lie that are made by the code, parameters and files as they are now."""
    trees = ("checkpoints", "data", "results/*/train")
    files = [path for tree in trees for top in sorted(Path().glob(tree))
             for path in sorted(top.rglob("*")) if path.is_file()]
    shaped = [_code(), [(str(path), _sha256(path.read_bytes())) for path in files],
              {name: {key: value for key, value in own.items() if key != "chapters"}
               for name, own in plain_yaml.read("params.yaml").items() if isinstance(own, dict)},
              str(device.pick())]
    place = cache_dir() / "jobs" / _sha256(json.dumps(shaped, default=str).encode())[:32]
    if not place.is_dir():
        for other in (cache_dir() / "jobs").glob("*"):
            if time.time() - other.stat().st_mtime > UNUSED:
                shutil.rmtree(other, ignore_errors=True)
        place.mkdir(parents=True, exist_ok=True)
    os.utime(place)
    return place


def path(place: Path, function: Callable, options: dict) -> Path:
    """The file in a `folder` of what a function finds with options."""
    told = _Told()
    told.dump([function.__module__, function.__qualname__, options, _local(options)])
    return place / f"{told.digest.hexdigest()[:32]}.pkl"


def find(file: Path, function: Callable, options: dict) -> None:
    """Runs a job and puts what it found into a file."""
    content = pickle.dumps(function(**options), pickle.HIGHEST_PROTOCOL)
    half = file.with_suffix(f".{os.getpid()}.tmp")
    half.write_bytes(hashlib.sha256(content).digest() + content)
    half.replace(file)


def found(file: Path) -> bool:
    """Whether a job's file is there and whole; one that is damaged is removed."""
    if not file.is_file():
        return False
    whole = file.read_bytes()
    if hashlib.sha256(whole[32:]).digest() != whole[:32]:
        file.unlink()
        return False
    return True


def read(file: Path) -> object:
    """What a job found."""
    return pickle.loads(file.read_bytes()[32:])


class _Told(pickle.Pickler):
    """The hash of what pickle says of a value, with tensors told by what they hold: torch's own
    pickles hold addresses."""

    def __init__(self):
        self.digest = hashlib.sha256()
        super().__init__(self, pickle.HIGHEST_PROTOCOL)

    def write(self, content: bytes) -> None:
        self.digest.update(content)

    def reducer_override(self, value: object) -> object:
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        plain = value.detach().cpu().contiguous()
        return torch.Tensor, (str(value.dtype), tuple(value.shape), str(value.device),
                              plain.reshape(-1).view(torch.uint8).numpy().tobytes())


@cache
def _code():
    """What computes: a hash of the library without the book's room, and versions."""
    here = Path(__file__).parent
    sources = sorted(x for x in here.rglob("*.py") if here / "book" not in x.parents)
    return [_sha256(b"".join(x.read_bytes() for x in sources)),
            *map(importlib.metadata.version, PACKAGES)]


def _local(options):
    """Names, sizes and times of the files of the folders that a job's models are named by."""
    names = [name for value in options.values()
             for name in (value if isinstance(value, loading.Pair) else [value])
             if isinstance(name, str)]
    tops = [top for name in names for part in name.split(loading.ADAPTER) if 0 < len(part) < 1000
            for top in _folders(part)]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns)
            for top in tops for file in sorted(top.rglob("*")) if file.is_file()]


def _folders(name):
    """The folders of a name in which {seed} may stand for a number."""
    before, seeded, behind = name.partition("{seed}")
    return (sorted(Path(before).parent.glob(f"{Path(before).name}*{behind}")) if seeded
            else [Path(name)] if Path(name).is_dir() else [])


def _sha256(content):
    return hashlib.sha256(content).hexdigest()
