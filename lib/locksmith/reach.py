"""Which modules of this library some code reaches, and so which lines its results stand on."""

import ast
from pathlib import Path

from locksmith import errors

LIBRARY = "lib/locksmith"
# What checks, names, runs and writes: mending a message must not train a model again.
PLUMBING = {f"{LIBRARY}/{name}.py"
            for name in ("errors", "params", "plain_yaml", "results", "staging", "arms",
                         "quantities", "keeping", "reach", "book/notebooks", "book/colab")}


def imports(source: str, root: Path = Path(".")) -> set[str]:
    """Paths of the modules of locksmith that a source text imports, wherever in it.

    `from locksmith import tasks` reaches every module of the package, which may load any of them.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise errors.BadInput(f"Line {node.lineno} imports relatively; allowed is "
                                  "`locksmith.`.")
        if isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
    paths = {name.replace(".", "/") for name in names if name.startswith("locksmith.")}
    found = {f"lib/{path}.py" for path in paths if (root / f"lib/{path}.py").is_file()}
    packages = {path for path in paths if (root / "lib" / path).is_dir()
                and not any(other.startswith(f"{path}/") for other in paths)}
    for package in packages:
        found |= {f"lib/{package}/{file.name}" for file in (root / "lib" / package).glob("*.py")}
    return found


def modules(source: str, root: Path = Path(".")) -> set[str]:
    """Paths of all modules that a source text reaches, but for PLUMBING and what that imports."""
    seen, todo = set(), imports(source, root)
    while todo := todo - seen - PLUMBING:
        path = todo.pop()
        seen.add(path)
        todo |= imports((root / path).read_text(encoding="utf-8"), root)
    return seen
