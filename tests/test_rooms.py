"""The house keeps its order: arrows between rooms, private names, sizes of functions and cells."""

import ast
import re
import statistics
from pathlib import Path

import nbformat
import pytest
from locksmith import tasks
from repository import ROOT

LIBRARY = ROOT / "lib" / "locksmith"
MODULES = {".".join(p.relative_to(LIBRARY).with_suffix("").parts): p
           for p in LIBRARY.rglob("*.py") if p.stem != "__init__"}
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
LONGEST_CELL, MEDIAN_CELL = 20, 10
LONGEST_PARAMETERS = 25  # the cell that papermill fills, which no page shows
MOST_PARAMETERS, MOST_LINES = 10, 60
# The training stages make the lab's checkpoints; everybody else meets models through `loading`.
KNOW_THE_LAB = {"loading", "distill", "pretrain", "rl"}


def imported(tree):
    """(module below locksmith, name or None) of every import in a tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "locksmith":
            inside = ".".join(node.module.split(".")[1:])
            for alias in node.names:
                whole = f"{inside}.{alias.name}".strip(".")
                is_module = whole in MODULES or (LIBRARY / whole.replace(".", "/")).is_dir()
                yield (whole, None) if is_module else (inside, alias.name)


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def code(chapter):
    return [c for c in nbformat.read(chapter, as_version=4).cells if c.cell_type == "code"]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_arrows_go_one_way(name):
    room = name.split(".")[0] if "." in name else "core"
    for module, _ in imported(tree(MODULES[name])):
        inside = "." in module or module in ("experiments", "book")
        other = module.split(".")[0] if inside else "core"
        assert not (room in ("core", "tasks") and other in ("experiments", "book")), module
        assert not (room == "experiments" and other == "book"), module
        assert not (room == "book" and other == "experiments"), module
        if module == "lab":
            assert name in KNOW_THE_LAB, "models come through loading"


def test_no_two_classes_share_a_name():
    """But for the `Problem` of a task, which each task has for itself."""
    places = {}
    for name, path in MODULES.items():
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                own = node.name == "Problem" and name.startswith("tasks.")
                places.setdefault((node.name, name if own else ""), []).append(name)
    for package in LIBRARY.rglob("__init__.py"):
        for node in tree(package).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault((node.name, ""), []).append(package.parent.name)
    assert not {name: found for (name, _), found in places.items() if len(found) > 1}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_private_name_is_used_across_modules(name):
    parsed = tree(MODULES[name])
    modules = set()
    for module, what in imported(parsed):
        assert not (what or "").startswith("_"), f"{module}.{what}"
        modules.add(module.split(".")[-1])
    for node in ast.walk(parsed):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in modules:
                assert not re.match(r"_[a-z]", node.attr), f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_functions_are_short_and_ask_for_little(name):
    for node in ast.walk(tree(MODULES[name])):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            asked = [a for a in every if a.arg not in ("self", "cls")]
            assert len(asked) <= MOST_PARAMETERS, f"{node.name} has {len(asked)} parameters"
            length = node.end_lineno - node.lineno + 1
            assert length <= MOST_LINES, f"{node.name} has {length} lines"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.stem)
def test_cells_are_short_and_told(chapter):
    """Code that a reader sees comes in short cells with prose between them; the rest is folded."""
    open_cells, before = [], None
    for cell in nbformat.read(chapter, as_version=4).cells:
        tags = set(cell.metadata.get("tags", []))
        if cell.cell_type == "code" and "colab" not in tags:
            longest = LONGEST_PARAMETERS if "parameters" in tags else LONGEST_CELL
            assert len(cell.source.splitlines()) <= longest, cell.source.splitlines()[0]
        folded = tags & {"hide-input", "hide-cell", "remove-cell", "remove-input"}
        if cell.cell_type == "code" and not folded:
            open_cells.append(len(cell.source.splitlines()))
            assert before != "code", f"no prose before {cell.source.splitlines()[0]!r}"
            before = "code"
        elif cell.cell_type == "markdown":
            before = "prose"
    if open_cells:
        assert statistics.median(open_cells) <= MEDIAN_CELL


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.stem)
def test_chapters_know_models_by_role_and_tasks_by_name(chapter):
    source = "\n".join(c.source for c in code(chapter) if "colab" not in c.metadata.get("tags", []))
    for module, what in imported(ast.parse(source)):
        assert module != "lab" and not (what or "").startswith("_"), (module, what)
        assert not module.startswith("tasks."), f"{module} is one task among others"


def test_every_task_is_a_file_with_the_whole_interface():
    wanted = re.findall(r"^    ([a-z]+)\(", tasks.__doc__, re.M)
    assert {"problems", "prompt", "grade", "steps", "strategy", "critique"} <= set(wanted)
    for name in tasks.names():
        task = tasks.load(name)
        assert task.__doc__ and all(callable(getattr(task, what)) for what in wanted)
        assert isinstance(task.OPENINGS, dict) and Path(task.__file__).stem == name
