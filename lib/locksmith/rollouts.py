"""Asking a model a task's problems: sampled, decoded, graded, and kept where that is worth it.

Every chapter's numbers come from here. What models of over KEPT_FROM parameters write is kept in
the cache folder, block by block, under a hash of all that shaped it (weights, adapters and their
scale, prompt and stop ids, code and versions): a run that was cut off goes on where it stopped, and
a repeated one only grades.
"""

import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from locksmith import architectures, cards, drawing, engine, steering, tasks
from locksmith import cache as kv
from locksmith.errors import BadInput
from locksmith.loading import Model, fingerprint
from locksmith.packaged import cache_dir

KEPT_FROM = 50e6
BLOCK = 256  # rollouts that are kept together
COUNTS = ("attempts", "valid_attempts", "checks", "correct_checks", "backtracks")


@dataclass
class Answers:
    """n answers to each of P problems of a task, by name. ids, texts: P lists of n (token ids,
    str); grades: P lists of n of what the task says of them; stopped (P, n) bool: ended by itself,
    not at the cap; prompts: P lists of token ids; rollouts: the engine's, prompt-major,
    on the CPU."""
    task: str
    problems: list
    prompts: list
    ids: list
    texts: list
    grades: list
    stopped: np.ndarray
    rollouts: engine.Rollouts = field(repr=False, default=None)

    def table(self, name: str) -> np.ndarray:
        """(P, n) of a field of the grades, such as "correct", "trace" or one of COUNTS."""
        return np.array([[getattr(grade, name) for grade in row] for row in self.grades])

    @property
    def correct(self) -> np.ndarray:
        return self.table("correct")

    @property
    def trace(self) -> np.ndarray:
        return self.table("trace")

    @property
    def lengths(self) -> np.ndarray:
        """(P, n) int: tokens generated, stop tokens included."""
        return np.array([[len(ids) for ids in row] for row in self.ids])

    @property
    def strategy(self) -> np.ndarray:
        """(P, n) bool: whether the answer takes the way that RL is said to deploy."""
        strategy = tasks.load(self.task).strategy
        return np.array([[strategy(problem, text) for text in row]
                         for problem, row in zip(self.problems, self.texts)])


def answer(model: Model, task: ModuleType, problems: list, n: int = 1, **how: object) -> Answers:
    """n sampled answers of a model to each problem, kept where it has over KEPT_FROM parameters;
    how: what `engine.sample` takes beside. BadInput as of `sampled`."""
    prompts = [model.ask(task, problem) for problem in problems]
    keep = model.net.num_parameters() >= KEPT_FROM
    return graded(model, task, problems, prompts, sampled(model, prompts, n, keep, **how), n)


def sampled(model: Model, prompts: list[list[int]], n: int, keep: bool,
            **how: object) -> engine.Rollouts:
    """`engine.sample` by a model, with its own stop where `how` has none.

    keep: in the cache folder, but for what a key cannot tell: steering, guide models, hooks, code
    of the user's own; and not over several cards, where all processes must sample or none.
    BadInput where there is no prompt or n is below 1.
    """
    if not prompts or isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise BadInput(f"n is {n!r} for {len(prompts)} problems; allowed is a whole number from 1 "
                       "on for at least one problem.")
    how = {"stop": model.stop, **how}
    if not keep or not set(how) <= _PLAIN or architectures.altered(model.net) \
            or cards.world() > 1:
        return engine.sample(model.net, prompts, n, **how)
    return _kept(model, prompts, int(n), how)


# What a kept rollout depends on beside the model; with anything else nothing is kept.
_PLAIN = {"stop", "max_new_tokens", "temperature", "seed", "keys", "batch_size"}


def _kept(model, prompts, n, how):
    """Rollouts in blocks of prompts, each from the cache folder or sampled and put there."""
    folder, place = cache_dir() / "rollouts", str(model.net.device.type)
    folder.mkdir(parents=True, exist_ok=True)
    stop, keys = how.pop("stop"), how.pop("keys", None)
    stop = sorted({stop} if isinstance(stop, int) else map(int, stop))
    keys = list(range(len(prompts)) if keys is None else map(int, keys))
    if len(keys) != len(prompts):
        raise BadInput(f"keys are {len(keys)} for {len(prompts)} problems; allowed: one each.")
    mark = [fingerprint(model.net), _versions(), place, torch.is_autocast_enabled(place)]
    size, parts = max(1, how.get("batch_size", BLOCK) // n), []
    for start in tqdm(range(0, len(prompts), size), desc=f"sampling, {size * n} answers a block"):
        some = slice(start, start + size)
        settings = [mark, prompts[some], n, stop, keys[some],
                    sorted((name, str(x)) for name, x in how.items())]
        name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
        path = folder / f"{name}.safetensors"
        part = _block(path)
        if part is None:
            drawn = engine.sample(model.net, prompts[some], n, stop=set(stop), keys=keys[some],
                                  **how)
            part = {name: getattr(drawn, name).cpu().contiguous() for name in _FIELDS}
            half = path.with_suffix(f".{os.getpid()}.tmp")
            save_file(part, half, metadata={"sha256": _digest(part)})
            half.replace(path)
        parts.append(part)
    return _joined(parts, n)


_FIELDS = ("tokens", "lengths", "logprobs", "stopped")


@cache
def _versions():
    """What samples: the libraries, and a hash of our own code for it."""
    code = b"".join(Path(x.__file__).read_bytes()
                    for x in (engine, kv, architectures, drawing, steering))
    return [*map(importlib.metadata.version, ("torch", "transformers", "peft")),
            hashlib.sha256(code).hexdigest()]


def _block(path):
    """A block of the cache, or None where it is not there or damaged: it is sampled again."""
    try:
        with safe_open(path, "pt") as file:
            part = {name: file.get_tensor(name) for name in _FIELDS}
            return part if (file.metadata() or {}).get("sha256") == _digest(part) else None
    except (FileNotFoundError, SafetensorError):
        return None


def _digest(part):
    """Hex SHA-256 of the tensors of a block."""
    return hashlib.sha256(b"".join(part[name].numpy().tobytes() for name in _FIELDS)).hexdigest()


def _joined(parts, n):
    longest = max(part["tokens"].shape[1] for part in parts)
    whole = {name: torch.cat([part[name] if part[name].dim() == 1 else torch.nn.functional.pad(
        part[name], (0, longest - part[name].shape[1])) for part in parts]) for name in _FIELDS}
    rows = torch.arange(len(whole["lengths"]))
    return engine.Rollouts(**whole, prompt=rows // n, sample=rows % n)


def graded(model: Model, task: ModuleType, problems: list, prompts: list, drawn: engine.Rollouts,
           n: int = 1) -> Answers:
    """`Answers` of rollouts that were drawn elsewhere, n a problem in their order."""
    ids = drawn.ids()
    texts = [model.decode(one) for one in ids]
    grades = [task.grade(problems[i // n], text) for i, text in enumerate(texts)]
    ids, texts, grades = (by_problem(rows, n) for rows in (ids, texts, grades))
    return Answers(tasks.name_of(task), problems, prompts, ids, texts, grades,
                   drawn.stopped.cpu().numpy().reshape(len(problems), n), drawn)


def compact(drawn: engine.Rollouts) -> engine.Rollouts:
    """The same rollouts on the CPU with the smallest integers that hold their tokens, and nothing
    of what was read beside: for other processes."""
    largest = int(drawn.tokens.max())
    small = next(t for t in (torch.uint8, torch.int16, torch.int32)
                 if largest <= torch.iinfo(t).max)
    kept = {name: getattr(drawn, name).cpu() for name in (*_FIELDS, "prompt", "sample")}
    return engine.Rollouts(**kept | {"tokens": kept["tokens"].to(small)})


def estimate(model: Model, task: ModuleType, problems: list, answers: int, max_new_tokens: int,
             workers: int = 1) -> str:
    """One line: how long `answers` answers take at most, by a short warm-up with some problems, and
    the memory that the model's weights take in float32."""
    prompts = [model.ask(task, problem) for problem in problems]
    room = model.context - max(map(len, prompts))
    if max_new_tokens > room:
        raise BadInput(f"max_new_tokens is {max_new_tokens}; allowed is at most {max(room, 0)}, as "
                       f"{model.name} reads {model.context} tokens, prompt included.")
    began, few = time.perf_counter(), min(max_new_tokens, 32)
    drawn = engine.sample(model.net, prompts, 8, stop=model.stop, max_new_tokens=few)
    speed = int(drawn.lengths.sum()) / (time.perf_counter() - began) * workers
    minutes, size = answers * max_new_tokens / speed / 60, 4 * model.net.num_parameters() / 2**30
    return (f"{answers:,} answers of at most {max_new_tokens} tokens, at {speed:,.0f} tokens a "
            f"second: up to {minutes:,.0f} minutes; {size:.2g} GiB of weights in float32.")


def by_problem(rows: Sequence, n: int) -> list[list]:
    """A flat list, n a problem, as a list of lists of n."""
    return [rows[i:i + n] for i in range(0, len(rows), n)]
