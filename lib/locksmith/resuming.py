"""Training that a kill does not undo: whole runs are kept, others go on from their last step."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from locksmith import errors, model, rl, staging

EVERY = 180.0  # seconds between two states of a run on disk


def code(modules: Iterable[ModuleType]) -> str:
    """Hex SHA-256 of the sources of some modules."""
    return hashlib.sha256(b"".join(Path(module.__file__).read_bytes()
                                   for module in modules)).hexdigest()


def kept(place: Path, made: dict) -> dict | None:
    """The log of a run that is there, whole and made as stated; None where there is none."""
    try:
        stated = model.manifest(place)
        model.verify(place)
    except model.ModelError:
        return None
    return stated["log"] if all(stated.get(key) == made[key] for key in made) else None


class Progress:
    """What an unfinished run has so far, in a safetensors file.

    made: what the run is made with, as JSON can hold it. state: what the file holds where it is of
    a run that is made so, else {}: tensors, numbers, texts, and lists and dicts of these; tuples
    come back as lists. BadInput for a damaged file.
    """

    def __init__(self, path: Path, made: dict):
        self.path, self.made, self.state = path, made, {}
        self.written = time.monotonic()
        if path.is_file():
            try:
                with safe_open(path, "pt") as file:
                    there = json.loads(file.metadata()["run"])
                    if there["made"] == made:
                        self.state = _unpacked(there["state"], file.get_tensor)
            except (SafetensorError, TypeError, LookupError, ValueError) as error:
                raise errors.BadInput(f"{path} is no state of a run that was cut off ({error}); "
                                      "remove it, and the run begins anew.") from None

    def keep(self, state: Callable[[], dict]) -> None:
        """Writes state(), if it is time to."""
        if time.monotonic() - self.written < EVERY:
            return
        tensors = {}
        run = {"made": self.made, "state": _packed(state(), tensors)}
        staging.put(self.path, save(tensors, {"run": json.dumps(run)}))
        self.written = time.monotonic()

    def end(self) -> None:
        """Removes the file: the run is whole."""
        self.path.unlink(missing_ok=True)


def _packed(value, tensors):
    """A value as JSON can hold it; its tensors go into `tensors`, by the names that stand there."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()  # tied weights are one
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _packed(one, tensors)] for key, one in value.items()]}
    return [_packed(one, tensors) for one in value] if isinstance(value, (list, tuple)) else value


def _unpacked(value, tensor):
    """What `_packed` was given; tensor: name -> tensor."""
    if isinstance(value, list):
        return [_unpacked(one, tensor) for one in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensor(value["tensor"])
    return {key: _unpacked(one, tensor) for key, one in value["dict"]}


def learn(net: nn.Module, pool: Sequence, recipe: dict, seed: int, rollout_fn: Callable,
          progress: Progress, label: str = "RL") -> list[dict]:
    """`rl.learn` by the outcome reward, that goes on where an earlier run of it was killed.

    The steps that were taken are played back to it: what their rollouts and updates returned; after
    the last of them weights and optimiser stand as they did then. The same weights come out as of a
    run that nobody killed. The curve's points also have "contrast", how many groups held right and
    wrong answers.
    """
    steps = progress.state.get("steps", [])  # of dicts: what was drawn and how the update went
    played = len(steps)
    turn = 0

    def rollout(problems, draw):
        if turn < played:
            return _played(steps[turn]["drawn"])
        drawn = rollout_fn(problems, draw)
        steps.append({"drawn": _noted(*drawn)})
        return drawn

    def update(net, optimizer, *batch):
        nonlocal turn
        step, turn = steps[turn], turn + 1
        if turn > played:
            step["update"] = rl.update(net, optimizer, *batch)
            progress.keep(lambda: {"steps": steps, "net": net.state_dict(),
                                   "optimizer": optimizer.state_dict()})
        elif turn == played:
            net.load_state_dict(progress.state["net"])
            optimizer.load_state_dict(progress.state["optimizer"])
        return step["update"]

    curve = rl.learn(net, pool, recipe, seed, rollout, update_fn=update, label=label)
    right = rl.MEASURED.index("correct")
    for point, step in zip(curve, steps, strict=True):
        groups = torch.tensor([grade[right] for grade in step["drawn"]["grades"]])
        groups = groups.view(-1, recipe["samples"])
        point["contrast"] = int((groups.any(1) & ~groups.all(1)).sum())
    return curve


def _noted(sequences, prompt_lengths, grades):
    """What `rl.learn` looks at in rollouts but for their tokens."""
    return {"lengths": [len(ids) for ids in sequences], "prompts": list(prompt_lengths),
            "grades": [[getattr(grade, name) for name in rl.MEASURED] for grade in grades]}


def _played(noted):
    """Rollouts again, with placeholders for tokens."""
    grades = [SimpleNamespace(**dict(zip(rl.MEASURED, values))) for values in noted["grades"]]
    return [range(n) for n in noted["lengths"]], noted["prompts"], grades
