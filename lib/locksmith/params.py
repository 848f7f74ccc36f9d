"""params.yaml: one mapping per profile, checked against one JSON Schema.

    profile: lab            # the profile that `dvc repro` runs
    lab: {seeds: [0, 1, 2], model: {...}, families: {...}, ..., chapters: {ch02: &ch02 {...}}}
    smoke: {..., chapters: {ch02: {<<: *ch02, n_samples: 8}}}      # what differs from lab

With merge keys resolved, a section is complete or left out: a profile that trains nothing has no
`pretrain`, and names in `checkpoints` the profile whose checkpoints it reads. `python -m
locksmith.params check` checks every profile. A new parameter is a line in SCHEMA and a line in the
profile lab; others state it where they differ. What parameters allow each other stands in `bounds`.
"""

import argparse
import copy
import functools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import jsonschema

from locksmith import bounds, plain_yaml, tasks
from locksmith.errors import BadInput, run

CHANGES = "LOCKSMITH_CHANGES"  # variable of the environment that `change` sets
TASKS = tuple(tasks.names())
PROFILES = ("smoke", "lab", "open", "colab", "toy", "paper")

# What is allowed, from which `schema` makes JSON Schema: "int 1.." (with bounds, both inclusive,
# either may be left out), "float 0..1", "bool", "text", "a|b" (one of these words); "list of ..."
# for a list of at least one such value, "set of ..." for one in which each stands once.
_GENERATOR = {
    "facts": "float 0..1",
    "reviews": "float 0..1",
    "persistence": "list of float 0..1",
    "check": "list of float 0..1",
    "backtrack": "float 0..1",
    "largest_number": "int 2..99",
}
_PAIR = {  # a base and a thinking model on some tasks, for `loading.pairs`
    "tasks": "set of " + "|".join(tasks.names()),
    "base_model": "text",
    "thinking_model": "text",
    "thinking_chat": "bool",
    "accept_terms": "bool",
    "tokens": "int 0..1048576",  # that both models are loaded with; 0 for all
}
_ONE_PROBLEM = {  # training on one problem, and the RL beside it
    "pool_problems": "int 2..10000",
    "pool_samples": "int 1..1000000",
    "n_candidates": "int 2..10000",
    "steps": "int 1..100000",
    "target_tokens": "int 1..1048576",
    "rl_steps": "int 1..100000",
    "rl_problems": "int 1..10000",
    "rl_samples": "int 2..1000000",
    "rl_lr": "float 1e-9..1",
}

_REAL = {  # a model that others pre-trained, its sums, and what it is trained with
    "model": "text",
    "sums": {
        "terms": "int 2..50",
        "digits": "int 1..15",
        "direct": "int 0..4",
        "worked": "int 0..4",
    },
    "arms": "set of correct|random|format|one-problem|sft-right|direct-0|direct-1|direct-2"
            "|direct-3|direct-4",
}

SCHEMA = {
    "checkpoints": "|".join(PROFILES),
    "seeds": "set of int 0..",
    "problems": {"train": "int 1..", "validation": "int 1..", "test": "int 1.."},
    "first_test": "int 0..",
    "model": {
        "hidden": "int 8..16384",
        "layers": "int 1..256",
        "heads": "int 1..256",
        "mlp": "int 8..65536",
        "context": "int 32..131072",
    },
    "families": {
        "countdown": {
            **_GENERATOR,
            "expressions": "list of int 1..1000",
            "insight": "float 0..1",
            "longest": "int 1..1000",
        },
        "chain": {
            **_GENERATOR,
            "largest_start": "int 1..99",
            "depths": "list of int 1..9",
            "depth": "int 1..9",
            "slip": "float 0..1",
            "check_steps": "float 0..1",
        },
    },
    "twin": {"backtrack": "float 0..1"},
    "pretrain": {
        "tokens": "int 1..1000000000",
        "micro_tokens": "int 32..1048576",
        "micro_batches": "int 1..10000",
        "muon_lr": "float 1e-9..1",
        "adam_lr": "float 1e-9..1",
        "weight_decay": "float 0..1",
        "checkpoints": "int 1..",
    },
    "rl": {
        "steps": "int 1..",
        "problems": "int 1..",
        "samples": "int 2..",
        "lr": "float 1e-9..1",
        "max_new_tokens": "int 1..131072",
        "micro_tokens": "int 32..1048576",
        "checkpoints": "set of int 1..",
    },
    "ladders": {
        "seeds": "set of int 0..",
        "exposures": "set of float 0..1",
        "skills": "set of float 0..1",
        "easier": {"countdown": "list of int 1..99", "chain": "list of int 1..99"},
        "harder": {"countdown": "list of int 1..99", "chain": "list of int 1..99"},
        "start_problems": "int 1..10000",
        "start_samples": "int 1..1000000",
        "most_drawn": "int 1..1000",
        "plateau": "int 1..1000",
        "edge_share": "float 0.001..0.5",
        "taught_passes": "int 1..1000",
        "taught_lrs": "set of float 1e-9..1",
    },
    "distill": {
        "problems": "int 1..",
        "rank": "int 1..",
        "lr": "float 1e-9..1",
        "epochs": "int 1..1000",
        "evaluations": "int 1..",
        "validation": "int 1..",
    },
    "real": {
        "present": _REAL,
        "absent": _REAL,
        "accept_terms": "bool",
        "tokens": "int 0..1048576",
        "steps": "int 1..100000",
        "problems": "int 1..10000",
        "samples": "int 2..1000000",
        "lr": "float 1e-9..1",
        "rank": "int 1..4096",
        "max_new_tokens": "int 1..131072",
        "target_tokens": "int 1..1048576",
        "pool_problems": "int 2..10000",
        "pool_samples": "int 1..1000000",
    },
    "chapters": {
        "ch00": {
            "problems": "int 1..10000",
            "samples": "int 1..1000000",
            "low_temperature": "float 0.01..1",
            "depths": "set of int 1..9",
        },
        "ch01": {
            "n_problems": "int 2..10000",
            "n_samples": "int 1..1000000",
            "n_validation": "int 2..10000",
            "n_traces": "int 2..10000",
            "latents": "set of int 2..4096",
            "autoencoder": "quick|published",
            "layers": "set of int 0..1000",
            "strengths": "set of float 0..100",
            "thresholds": "set of float 0..1",
            "fit_steps": "int 1..100000",
            "max_new_tokens": "int 1..131072",
            **_PAIR,
        },
        "ch02": {
            **_PAIR,
            "temperature": "float 0.01..100",
            "n_problems": "int 2..10000",
            "n_samples": "int 2..1000000",
            "max_new_tokens": "int 1..131072",
            "resample_samples": "int 1..1000000",
            "matched_samples": "int 1..1000000",
            "entropy_problems": "int 1..10000",
            "traces_per_problem": "int 1..10000",
            "n_validation": "int 1..10000",
            "temperatures": "set of float 0.01..100",
            "power_alpha": "float 1..100",
            "power_block": "int 1..131072",
            "power_steps": "int 1..1000",
            "power_chains": "int 1..1000",
        },
        "ch03": {
            "tasks": "set of " + "|".join(tasks.names()),
            "n_problems": "int 2..10000",
            "n_samples": "int 1..1000000",
            "seed_problems": "int 1..10000",
            "few_problems": "int 0..10000",
            **_ONE_PROBLEM,
            "lrs": "set of float 1e-9..1",
            "adapters": "text",
            "curve_samples": "int 1..1000000",
            "max_new_tokens": "int 1..131072",
            "trains": "weights|adapter",
            **_PAIR,
        },
        "ch04": {
            "n_problems": "int 2..10000",
            "read_problems": "int 5..10000",
            "documents": "int 1..1000",
            "own_samples": "int 1..1000000",
            "step_problems": "int 2..10000",
            "strengths": "set of float -4..4",
            "max_new_tokens": "int 1..131072",
            **_PAIR,
        },
        "ch05": {
            "tasks": "set of " + "|".join(tasks.names()),
            "n_problems": "int 2..10000",
            "n_samples": "int 1..1000000",
            "rl_steps": "int 1..100000",
            "rl_problems": "int 1..10000",
            "rl_samples": "int 2..1000000",
            "rl_lrs": "set of float 1e-9..1",
            "vector_lrs": "set of float 1e-9..10",
            "adapter_lrs": "set of float 1e-9..1",
            "pool_problems": "int 1..10000",
            "pool_samples": "int 1..1000000",
            "prefixes": "set of text",
            "solved": "set of int 1..100000",
            "steps": "int 1..100000",
            "target_tokens": "int 1..1048576",
            "lrs": "set of float 1e-9..1",
            "max_new_tokens": "int 1..131072",
            "trains": "weights|adapter",
            **_PAIR,
        },
        "ch06": {
            "measure": "bool",
            "n_problems": "int 2..10000",
            "n_samples": "int 1..1000000",
            "max_new_tokens": "int 1..131072",
            "look_problems": "int 1..10000",
            "look_samples": "int 1..1000000",
            "more_terms": "set of int 2..50",
            "more_tokens": "int 1..131072",
            "word_problems": "int 0..10000",
            "gsm8k_problems": "int 0..1319",
            "word_tokens": "int 1..131072",
            "tool_problems": "int 2..10000",
            "tool_tokens": "int 1..131072",
            "rounds": "int 1..100",
        },
        "ch07": {
            "measure": "bool",
            "n_problems": "int 2..10000",
            "n_samples": "int 1..1000000",
            "base_samples": "int 1..1000000",
            "depth_problems": "int 2..10000",
            "edge_samples": "int 1..1000000",
        },
        "verdict": {},
    },
}


def load(profile: str | None = None, path: str | Path = "params.yaml") -> dict:
    """The checked parameters of a profile (dict; default: the profile named in the file).

    Adds "profile", and "checkpoints" (= profile) where the file names none.
    Raises BadInput for an unknown profile, an unknown or missing name, a wrong type or range, and
    for values that `bounds` does not allow together.
    """
    everything = _read(path)
    profile = profile or everything["profile"]
    if profile not in PROFILES or profile not in everything:
        known = ", ".join(p for p in PROFILES if p in everything)
        raise BadInput(f"Unknown profile {profile!r}; {path} has {known}.")
    values = _checked(profile, plain_yaml.text(path), path, os.environ.get(CHANGES))
    return {"profile": profile, "checkpoints": profile, **copy.deepcopy(values)}


def change(profile: str, chapter: str, changes: dict) -> None:
    """Let `load` give other values than the file has, in this process and those that it starts.

    chapter: as chapter_key names it; changes: {parameter of the chapter, or "seeds": value}.
    """
    own = {name: value for name, value in changes.items() if name != "seeds"}
    top = {"seeds": changes["seeds"]} if "seeds" in changes else {}
    os.environ[CHANGES] = json.dumps([profile, chapter, top, own])


@functools.cache
def _checked(profile, text, path, changes):
    allowed = schema(SCHEMA, incomplete=("families", "chapters"))
    everything = _parsed(text, path)
    _check(profile, everything[profile], allowed)
    values = _changed(profile, everything[profile], changes)
    _check(profile, values, allowed)
    source = values.get("checkpoints", profile)
    lab = values if source == profile else everything.get(source)
    if not isinstance(lab, dict) or "pretrain" not in lab:
        lab = None
    elif source != profile:  # one that trains models and yet names others' is none to read from
        lab = None if "checkpoints" in lab else _checked(source, text, path, changes)
    bounds.check(profile, values, lab)
    return values


def _changed(profile, values, changes):
    chapters = values.get("chapters", {})
    try:
        named, chapter, top, own = json.loads(changes) if changes else ("", "", {}, {})
        chapters = {**chapters, chapter: {**chapters.get(chapter, {}), **own}}
        changed = {**values, **top, "chapters": chapters}
    except (ValueError, TypeError, RecursionError):
        raise BadInput(f"{CHANGES}, a variable of the environment, is {changes[:60]!r}; allowed is "
                       "what `notebooks run --set` makes of its values: unset it.") from None
    return changed if named == profile else values


def default(path: str | Path = "params.yaml") -> str:
    """The profile named in params.yaml, which `dvc repro` runs."""
    return _read(path)["profile"]


def chapter_key(chapter: str) -> str:
    """The name of a chapter's parameters in params.yaml: "02" -> "ch02", "verdict" -> "verdict".

    DVC's -S takes no name that starts with a digit.
    """
    return f"ch{chapter}" if chapter[:1].isdigit() else chapter


def check_value(name: str, value: object, rule: dict | str) -> None:
    """Raises BadInput unless `value` obeys `rule`: a line of SCHEMA ("list of float 0..1"), or a
    mapping of names to such lines."""
    _check(name, value, schema(rule))


def schema(rule: dict | str, incomplete: tuple[str, ...] | None = None) -> dict:
    """A rule, or a mapping of rules, as JSON Schema; `description` says in words what is allowed.

    incomplete: names of sections that may be left out one by one, as the outermost may; None for a
        mapping that is complete.
    """
    if isinstance(rule, dict):
        sections = {key: schema(entry, () if key in (incomplete or ()) else None)
                    for key, entry in rule.items()}
        return {"type": "object", "additionalProperties": False, "properties": sections,
                "required": list(rule) if incomplete is None else [],
                "description": f"a mapping with {', '.join(rule)}"}
    several = next((word for word in ("list", "set") if rule.startswith(f"{word} of ")), None)
    kind, _, bounds = rule.removeprefix(f"{several} of ").partition(" ")
    low, _, high = bounds.partition("..")
    limits = " and ".join([f"at least {low}"] * bool(low) + [f"at most {high}"] * bool(high))
    types = {"int": "integer", "float": "number", "bool": "boolean", "text": "string"}
    one = {"type": types[kind]} if kind in types else {"enum": kind.split("|")}
    one |= {"minimum": float(low)} if low else {}
    one |= {"maximum": float(high)} if high else {}
    one["description"] = f"{kind.replace('|', ' or ')} {limits}".rstrip()
    if several is None:
        return one
    words = one["description"].replace(f" {limits}", f", each {limits}") if limits else f"{kind}"
    return {"type": "array", "items": one, "minItems": 1, "maxItems": 100,
            "uniqueItems": several == "set", "description": f"a list of {words}, at least one"
                           + ", none of them twice" * (several == "set")}


# JSON takes 2.0 for an integer, and Python NaN and infinity for numbers;
# a parameter may be neither.
_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many({
        "integer": lambda _, value: type(value) is int,
        "number": lambda _, value: type(value) in (int, float) and -math.inf < value < math.inf,
    }),
)


def _check(name, value, allowed):
    """Raises BadInput with one sentence about the first thing in `value` that is not allowed."""
    error = next(_Validator(allowed).iter_errors(value), None)
    if error is None:
        return
    for step in error.absolute_path:
        name += f"[{step}]" if isinstance(step, int) else f".{step}"
    found, rule = error.instance, error.schema
    if error.validator == "additionalProperties":
        unknown = next(key for key in found if key not in rule["properties"])
        known = ", ".join(rule["properties"]) or "none"
        raise BadInput(f"{name} has an unknown parameter {unknown!r}; allowed are {known}.")
    if error.validator == "required":
        missing = ", ".join(key for key in rule["required"] if key not in found)
        raise BadInput(f"{name} lacks {missing}.")
    if error.validator == "maxItems":
        raise BadInput(f"{name} has {len(found)} values; allowed are at most {rule['maxItems']}.")
    raise BadInput(f"{name} is {found!r:.200}; allowed is {rule['description']}.")


def build_command(module: str, build: Callable[[str], Path]) -> None:
    """The command line `python -m locksmith.book.<module> build [--profile ...]`, which prints the
    path that build(profile) returns."""
    parser = argparse.ArgumentParser(prog=f"python -m locksmith.book.{module}",
                                     description=build.__doc__.splitlines()[0])
    parser.add_argument("command", choices=["build"])
    parser.add_argument("--profile", help="default: the one named in params.yaml")
    print(build(load(parser.parse_args().profile)["profile"]).resolve())


@functools.cache
def _parsed(text, path):
    """YAML read once a text, as `_checked` checks it: a chapter's jobs ask a thousand times."""
    return plain_yaml.parse(text, path)


def _read(path):
    everything = _parsed(plain_yaml.text(path), path)
    if not isinstance(everything, dict) or "profile" not in everything:
        raise BadInput(f"{path} has no `profile`, the name of the profile to run.")
    for name in everything:
        if name != "profile" and name not in PROFILES:
            raise BadInput(
                f"{path} has an unknown entry {name!r}; allowed are profile, {', '.join(PROFILES)}."
            )
    return everything


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m locksmith.params", description="Checks params.yaml."
    )
    parser.add_argument("what", choices=["check"])
    parser.parse_args()
    everything = _read("params.yaml")
    if load()["profile"] == "open":
        raise BadInput("profile is 'open', which `make open` runs; `dvc repro` runs the others.")
    for profile in PROFILES:
        if profile in everything:
            load(profile)
    print(f"params.yaml is valid; profile: {everything['profile']}")


if __name__ == "__main__":
    run(main)
