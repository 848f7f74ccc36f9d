"""Public signatures carry types, and all code passes the linter, notebooks included."""

import ast
import subprocess
import sys

import pytest
from repository import ROOT

LIBRARY = ROOT / "lib" / "locksmith"
MODULES = {".".join(p.relative_to(LIBRARY).with_suffix("").parts): p for p in LIBRARY.rglob("*.py")}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def public(body, owner=""):
    """(name, function) of the public functions of a module and the public methods of its
    classes."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public(node.body, f"{node.name}.")
        elif isinstance(node, FUNCTIONS):
            if not node.name.startswith("_") or owner and node.name in ("__init__", "__call__"):
                yield owner + node.name, node


def untyped(function):
    """Names of the parameters without annotation; "return" where the result has none."""
    a = function.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    names = [p.arg for p in every if p.annotation is None and p.arg not in ("self", "cls")]
    returns = function.returns or function.name == "__init__"
    return names if returns else [*names, "return"]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_public_signatures_carry_types(name):
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    bare = {what: missing for what, f in public(tree.body) if (missing := untyped(f))}
    assert not bare


def test_the_linter_is_content():
    folders = ("lib", "tests", "benchmarks", "chapters")
    done = subprocess.run([sys.executable, "-m", "ruff", "check", *folders], cwd=ROOT,
                          capture_output=True, text=True)
    assert not done.returncode, done.stdout
