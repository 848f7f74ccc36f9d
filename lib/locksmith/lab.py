"""The lab's models and problems by name, for chapters: which folder, which family, which seed.

    base       pre-trained from scratch
    thinking   the base after RL with an outcome reward
    twin       pre-trained on the same corpus without a single backtrack
    untrained  the base's architecture with the weights it started from
    distilled  the base, fine-tuned (LoRA) on the thinking model's successful traces
    taught     the base, fine-tuned (LoRA) on a stronger author's, with a behaviour it never read

Chapter 7's models have the names of their folders: ladders/exposure-0.01/rl, say.
"""

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from locksmith import corpus, device, errors, model, params, plain_yaml

FOLDERS = {"base": "base", "thinking": "rl", "twin": "twin", "distilled": "distilled/own",
           "taught": "distilled/taught"}
ADAPTERS = ("distilled", "taught")
MODELS = (*FOLDERS, "untrained")
LADDERS = "ladders/"  # what the names of chapter 7's models begin with


def config(profile: str) -> dict:
    """The parameters of the profile whose problems and checkpoints `profile` uses."""
    return params.load(params.load(profile)["checkpoints"])


def trained(which: str) -> bool:
    """Whether the lab has a checkpoint folder for models of a name."""
    return which in FOLDERS or which.startswith(LADDERS)


def folder(profile: str, family: str, which: str, seed: int) -> Path:
    """The checkpoint folder of a model that is `trained`."""
    own = Path("checkpoints") / config(profile)["profile"]
    place = which if which.startswith(LADDERS) else FOLDERS[which]
    return own / family / place / f"seed{seed}"


def steps(profile: str, family: str, which: str, seed: int) -> list[Path]:
    """Checkpoints on the way to `which` ("base" or "thinking"): folders, in order of training.

    Only the first seed keeps them, and only where they were made, for DVC does not push them: an
    empty list anywhere else.
    """
    final = folder(profile, family, which, seed)
    way = final.parent.with_name(f"{final.parent.name}_steps") / final.name
    return sorted(way.iterdir()) if way.is_dir() else []


def problems(profile: str, family: str, n: int, split: str = "test",
             depth: int | None = None) -> list:
    """The first n problems of a split, those that data/ holds; of "test" the first n from the
    profile's `first_test` on. depth: of chains at another depth, of which data/ holds none.
    BadInput if data/ holds others or fewer."""
    own = config(profile)
    task, first = corpus.FAMILIES[family], own["first_test"] if split == "test" else 0
    if depth is not None:
        return task.problems(split, first + n, 0, own["families"][family], depth)[first:]
    path = Path("data") / own["profile"] / f"{family}_{split}.jsonl"
    if not path.exists():
        raise errors.BadInput(f"{path} does not exist; `dvc pull` brings it.")
    kept = [_key(line, f"{path}, line {i}")
            for i, line in enumerate(plain_yaml.text(path).splitlines(), 1)]
    if first + n > len(kept):
        skipped = f" from the one at {first} on" if first else ""
        raise errors.BadInput(f"n_problems is {n}; allowed is at most {len(kept) - first}, all of "
                              f"{path}{skipped}.")
    found = task.problems(split, first + n, 0, own["families"][family])
    if [p.key for p in found] != kept[:first + n]:
        raise errors.BadInput(f"{path} holds other problems than the parameters make; python -m "
                              f"locksmith.corpus --profile {own['profile']} rewrites it.")
    return found[first:]


def _key(line, where):
    """The key of a problem, from its line in data/."""
    try:
        key = json.loads(line)["key"]
    except (ValueError, LookupError, TypeError, RecursionError):
        key = None
    if not isinstance(key, str):
        raise errors.BadInput(f"{where} is not a problem with its key; `dvc checkout --force data` "
                              "brings back the versioned ones.")
    return key


def load(profile: str, family: str, which: str, seed: int, exact: bool = False) -> PreTrainedModel:
    """A lab model in eval mode on the library's device; exact: in float32,
    for scores and ratios."""
    place, dtype = device.pick()
    dtype = torch.float32 if exact else dtype
    if which == "untrained":
        return model.build(config(profile)["model"], seed).to(place, dtype).eval()
    path = folder(profile, family, which, seed)
    _check_origin(path, profile, family, which, seed)
    if which in ADAPTERS:
        base = load(profile, family, "base", seed, exact=True)
        return model.adapted(base, path).to(place, dtype).eval()
    return model.load(path, dtype, place)


def _check_origin(path, profile, family, which, seed):
    """What the manifest says of where the model comes from, where it does, is what was asked for:
    a whole checkpoint in another one's place has sound files."""
    stated = model.manifest(path)
    right = {"family": family, "seed": seed}
    if which.startswith(LADDERS):
        right["name"] = which
    elif which in ("thinking", *ADAPTERS):
        base = folder(profile, family, "base", seed)
        right["base"] = model.checksum(base) if "base" in stated else None
    elif "base" in stated:
        right["base"] = "none"
    for key, value in right.items():
        if stated.get(key, value) != value:
            raise model.ModelError(f"checkpoint {path} is another model: its manifest says {key} "
                                   f"{stated[key]!r}, not {value!r}; `dvc checkout --force` brings "
                                   "back the versioned ones")
