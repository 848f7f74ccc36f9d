"""One set of pins: constraints.txt, pyproject.toml and environment.yml may not drift apart."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from repository import copy, git

ROOT = Path(__file__).resolve().parents[1]
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M
    )
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WANTED = [
    Requirement(line)
    for line in [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]
]


def test_every_requirement_is_pinned_within_its_range():
    assert len(WANTED) > 20
    for wanted in WANTED:
        pin = PINS[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(pin), f"{wanted} against {wanted.name}=={pin}"


def test_what_requirements_require_is_pinned_too():
    """Walks the installed packages' own requirements: a new transitive package needs a pin."""
    todo = [(canonicalize_name(r.name), r.extras) for r in WANTED]
    seen = set()
    while todo:
        name, extras = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            assert name in PINS  # an extra that is not installed here
            continue
        for needed in map(Requirement, lines):
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in (extras or {""})):
                todo.append((canonicalize_name(needed.name), needed.extras))
    # Left open on purpose: build tools, and the CUDA packages of torch's GPU builds.
    unpinned = {n for n in seen - set(PINS) if not n.startswith(("nvidia-", "cuda-", "triton"))}
    assert unpinned <= {"setuptools", "pip", "wheel"}


def test_installed_versions_are_the_pins():
    for wanted in WANTED:
        name = canonicalize_name(wanted.name)
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            assert wanted.name in " ".join(PROJECT["optional-dependencies"]["open"])
            continue
        assert installed.split("+")[0] == PINS[name], name


def test_constraints_name_no_build_and_no_index():
    text = (ROOT / "constraints.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert len(lines) == len(PINS)


def test_conda_installs_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert pip == ["-c constraints.txt", "-e .[dev,open,scale]"]
    assert set(PROJECT["optional-dependencies"]) == {"dev", "open", "scale"}
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    # conda brings Python and tools alone: a package from there would escape the pins.
    assert {re.split("[=<>]", d)[0] for d in conda} == {"python", "pip", "make", "git"}
    python = next(d for d in conda if d.startswith("python")).split("=")[-1]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python)


def test_colab_keeps_its_torch():
    """What Colab brings stays: chapters ask for ranges, none with an upper bound on these."""
    for line in map(Requirement, PROJECT["dependencies"]):
        if line.name in ("torch", "numpy", "pandas"):
            assert {s.operator for s in line.specifier} == {">="}


def test_a_clone_that_converts_line_ends_has_the_same_bytes(tmp_path):
    """DVC's hashes of code, notebooks and parameters hang on them: it would train anew."""
    (tmp_path / "book").mkdir()
    book, there = copy(tmp_path / "book"), tmp_path / "clone"
    git(tmp_path, "clone", "-q", "-c", "core.autocrlf=true", str(book), str(there))
    names = git(book, "ls-files", "-z").split("\0")[:-1]
    assert {".gitattributes", "params.yaml", "chapters/00_the_lab.ipynb"} < set(names)
    assert [n for n in names if (book / n).read_bytes() != (there / n).read_bytes()] == []
    git(there, "add", "--renormalize", ".")
    assert git(there, "status", "--porcelain") == ""
