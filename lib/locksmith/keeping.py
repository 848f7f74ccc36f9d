"""What a job found is kept, so that a run that was cut off, or whose figures changed, does not
find it again.

A job's result lies in the cache folder, under a hash of all that shaped it: the function and its
options, every line that its module reaches (`reach`), the versions of what that stands on, the
profile's parameters but for its chapters', and the models, problems and training records of the
profile. Results are pickles, which can run what they hold: like the library itself the folder must
be nobody else's to write. It can be removed at any time.
"""

import hashlib
import importlib.metadata
import io
import json
import os
import pickle
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from locksmith import device, params, reach
from locksmith.errors import BadInput
from locksmith.staging import cache_dir

LADDERS = "ladders/"  # in the names of chapter 7's models and in their folders, see `lab`
PACKAGES = ("torch", "transformers", "peft", "numpy", "scipy", "pandas", "scikit-learn")
UNUSED = 30 * 86400  # seconds; what nobody asked for so long is removed


def path(profile: str, function: Callable, options: dict, place: str | None = None) -> Path:
    """The file in the cache folder of what a function finds with options, by code, parameters and
    files as they are now. place: `device.pick()` of the process that runs it, as text, where that
    is not this machine's. BadInput where others may put files into that folder."""
    folder = cache_dir() / "jobs"
    if os.name == "posix" and folder.exists() and folder.stat().st_mode & 0o022:
        raise BadInput(f"{folder} may be written by others, and what is kept there can run code; "
                       f"allowed is a folder of your own: `chmod 700 {folder}` if you trust what "
                       "it holds, or remove it.")
    told = io.BytesIO()
    _Told(told, pickle.HIGHEST_PROTOCOL).dump([options, _local(options)])
    content = told.getvalue()
    shaped = [function.__module__, function.__qualname__, _sha256(content),
              _code(function.__module__), place or str(device.pick())]
    for name in sorted({profile, params.load(profile)["checkpoints"]}):
        own = params.load(name)
        shaped += [{key: value for key, value in own.items() if key != "chapters"},
                   _files(Path("checkpoints", name), LADDERS.encode() in content),
                   _files(Path("data", name)), _files(Path("results", name, "train"))]
    whole = _sha256(json.dumps(shaped, default=str).encode())
    return folder / f"{whole[:32]}.pkl"


def keep(file: Path, what: object) -> None:
    """Puts what a job found into its file."""
    content = pickle.dumps(what, pickle.HIGHEST_PROTOCOL)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # pickles, see above
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
    os.utime(file)  # it is used
    return True


def read(file: Path) -> object:
    """What a job found."""
    return pickle.loads(file.read_bytes()[32:])


def clear() -> None:
    """Removes what nobody asked for in UNUSED seconds."""
    for file in (cache_dir() / "jobs").glob("*"):
        if time.time() - file.stat().st_mtime > UNUSED:
            file.unlink(missing_ok=True)


class _Told(pickle.Pickler):
    """What pickle says of a value, with tensors told by what they hold: torch's own pickles hold
    addresses."""

    def reducer_override(self, value: object) -> object:
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        plain = value.detach().cpu().contiguous()
        return torch.Tensor, (str(value.dtype), tuple(value.shape), str(value.device),
                              plain.reshape(-1).view(torch.uint8).numpy().tobytes())


@cache
def _code(module):
    """What computes: a hash of a module and of all that it reaches, and versions."""
    library = Path(__file__).parents[2]
    first = library / "lib" / f"{module.replace('.', '/')}.py"
    own = first.read_text(encoding="utf-8") if first.is_file() else ""  # a user's, or a test's
    reached = sorted(reach.modules(own, library))
    return [_sha256(own.encode()), *(_sha256((library / x).read_bytes()) for x in reached),
            *map(importlib.metadata.version, PACKAGES)]


def _files(top, ladders=True):
    """Path and hash of the files below a folder. ladders: chapter 7's models among them, which
    other chapters do not read."""
    return [(str(file), _sha256(file.read_bytes())) for file in sorted(top.rglob("*"))
            if file.is_file() and (ladders or LADDERS not in file.as_posix())]


def _local(options):
    """Names, sizes and times of the files of the folders that a job's models are named by, alone
    or in a `loading.Pair`; the repository's own are told by their content already."""
    names = [name for value in options.values()
             for name in (value if isinstance(value, tuple) else [value]) if isinstance(name, str)]
    tops = [top for name in names for part in name.split("+") if 0 < len(part) < 1000
            for top in _folders(part)
            if top.parts[:1] != ("checkpoints",) and any(top.glob("*.safetensors"))]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns)
            for top in tops for file in sorted(top.rglob("*")) if file.is_file()]


def _folders(name):
    """The folders of a name in which {seed} may stand for a number."""
    before, seeded, behind = name.partition("{seed}")
    return (sorted(Path(before).parent.glob(f"{Path(before).name}*{behind}")) if seeded
            else [Path(name)] if Path(name).is_dir() else [])


def _sha256(content):
    return hashlib.sha256(content).hexdigest()
