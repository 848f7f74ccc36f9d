"""Each chapter's first cell, run as on a bare Colab: a stand-in google.colab, a local clone."""

import os
import re
import subprocess
import sys
import sysconfig
import types
from pathlib import Path

import nbformat
import pytest
import yaml
from locksmith import errors, params
from locksmith.book import colab
from repository import ROOT, copy

CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))


def first_cell(chapter):
    return next(c for c in nbformat.read(chapter, as_version=4).cells if c.cell_type == "code")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=[c.stem for c in CHAPTERS])
def test_address_is_the_configurations(chapter):
    config = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]
    cell = first_cell(chapter)
    assert {"colab", "hide-input"} <= set(cell.metadata.tags)
    assert f'"{config["url"]}"' in cell.source and f'"-qb", "{config["branch"]}"' in cell.source
    assert cell.source == colab.cell(chapter.stem, ROOT / "_config.yml")


def test_nothing_happens_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "call"):
        monkeypatch.setattr(subprocess, name, lambda *a, **k: pytest.fail("ran a command"))
    exec(first_cell(CHAPTERS[0]).source, {})
    assert Path.cwd() == tmp_path
    (tmp_path / "chapters").mkdir()
    monkeypatch.chdir(tmp_path / "chapters")
    exec(first_cell(CHAPTERS[0]).source, {})
    assert Path.cwd() == tmp_path  # local Jupyter starts in chapters/, papermill in the root


def test_a_forks_address_reaches_every_chapter(tmp_path, monkeypatch):
    book = copy(tmp_path)
    monkeypatch.chdir(book)
    config = (book / "_config.yml").read_text()
    old = yaml.safe_load(config)["repository"]["url"]
    (book / "_config.yml").write_text(config.replace(old, "https://example.org/fork"))
    colab.main()
    for chapter in (book / "chapters").glob("*.ipynb"):
        assert '"LOCKSMITH_REPO", "https://example.org/fork")' in first_cell(chapter).source
    once = [p.read_bytes() for p in sorted(book.glob("chapters/*.ipynb"))]
    colab.main()
    assert [p.read_bytes() for p in sorted(book.glob("chapters/*.ipynb"))] == once


def runs_of(cell, here, monkeypatch, answers=True):
    """Runs a cell as Colab would, in the folder `here`; returns the commands that it started.

    answers: whether there is a repository to clone.
    """
    started = []

    def run(command, **_):
        started.append([str(part) for part in command])
        if command[0] == "git" and answers:
            Path(command[-1], "lib/locksmith").mkdir(parents=True)
        return subprocess.CompletedProcess(command, 0 if answers else 128)

    with monkeypatch.context() as patch:
        patch.chdir(here)
        patch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
        patch.setattr(subprocess, "run", run)
        patch.setattr(subprocess, "call", lambda command: run(command).returncode)
        patch.setattr(colab, "prepare", lambda chapter: started.append(["prepare", chapter]))
        patch.setattr(sys, "path", list(sys.path))
        exec(cell.source, {})
        return started, Path.cwd()


def test_the_cell_may_be_run_any_number_of_times_from_anywhere(tmp_path, monkeypatch):
    book = tmp_path / "book"
    for chapter in CHAPTERS[:2]:  # of two chapters in one runtime
        for here in (tmp_path, book, book / "lib", book / "lib" / "locksmith", tmp_path):
            new = not book.exists()
            started, there = runs_of(first_cell(chapter), here, monkeypatch)
            assert there == book
            names = [command[0] for command in started]
            assert names == ["git"] * new + [sys.executable, "prepare"]
            assert started[-1] == ["prepare", chapter.stem]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["book", "lib", "locksmith"]


@pytest.mark.parametrize("chapter", CHAPTERS[:2], ids=lambda path: path.stem)
def test_an_address_that_answers_nowhere_is_named_in_one_sentence(chapter, tmp_path, monkeypatch):
    """The book's own is such a one: nothing is installed, and nobody is asked for a password."""
    url = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    with pytest.raises(SystemExit) as caught:
        runs_of(first_cell(chapter), tmp_path, monkeypatch, answers=False)
    assert str(caught.value).startswith(f"No repository at {url}; ")
    assert str(caught.value).endswith("in LOCKSMITH_REPO.") and list(tmp_path.iterdir()) == []


def test_git_does_not_wait_for_a_password(tmp_path):
    """The cell alone, without network: git's own message stands above the sentence."""
    script = ("import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')\n"
              + first_cell(CHAPTERS[0]).source)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True,
                          text=True, check=False, timeout=60, stdin=subprocess.DEVNULL,
                          env={**os.environ, "LOCKSMITH_REPO": str(tmp_path / "nowhere")})
    said = done.stderr.splitlines()
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert said[-1].startswith(f"No repository at {tmp_path / 'nowhere'}; ")


def test_the_cell_installs_what_its_chapter_imports(tmp_path, monkeypatch):
    """An import of a package of an extra, anywhere in what the chapter's stage depends on."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    packages = re.compile(r"^\s*(?:from|import) (?:gguf|math_verify|reasoning_gym)\b", re.M)
    asked = {}
    for name, stage in stages.items():
        chapter = ROOT / stage["deps"][0]
        if chapter in CHAPTERS:
            code = [(ROOT / dep).read_text() for dep in stage["deps"] if dep.endswith(".py")]
            started, _ = runs_of(first_cell(chapter), tmp_path, monkeypatch)
            asked[name] = next(c for c in started if "pip" in c)[-1]
            assert asked[name] == (".[open]" if packages.search("\n".join(code)) else "."), name
    assert asked["verdict"] == "."
    assert asked["chapter-06"] == asked["chapter-02"] == ".[open]"


def test_a_chapter_needs_what_its_stage_reads(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert colab.needs("verdict") == []
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for number, chapter in enumerate(CHAPTERS[:-1]):
        deps = [dep.split("/") for dep in stages[f"chapter-{number:02d}"]["deps"]
                if not dep.endswith(("base_steps", "rl_steps", "/ladders"))]
        wanted = [[folder, "lab", *rest] for folder, _, *rest in deps
                  if folder in ("checkpoints", "data")]
        assert colab.needs(chapter.stem) == ["/".join(parts) for parts in wanted], chapter
    assert "checkpoints/lab/chain/rl" in colab.needs("02_base_model_sampling")
    with pytest.raises(errors.BadInput, match="no stage for chapter '99_absent'"):
        colab.needs("99_absent")


def test_profile_follows_the_hardware(monkeypatch, capsys):
    import torch

    monkeypatch.chdir(ROOT)
    page = {"profile": "lab"}
    colab.adapt(page, "02")
    assert page == {"profile": "lab"}  # not on Colab
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu = {"profile": "lab", "accept_terms": False}
    colab.adapt(gpu, "00")
    assert gpu == {"profile": "lab", "accept_terms": False}  # the real pair has no chapter 0
    colab.adapt(gpu, "02")
    pair = params.load("open")["chapters"]["ch02"]
    assert gpu == {**pair, "profile": "open", "accept_terms": False}
    pulled = []
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", lambda command, check: pulled.extend(command[5:]))
        colab.prepare("02_base_model_sampling")
    assert pulled and all(path.startswith("checkpoints/open/") for path in pulled), pulled
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    mine = {"profile": "paper"}
    colab.adapt(mine, "02")
    assert mine == {"profile": "paper"}  # chosen by the reader
    colab.adapt(page, "02")
    few = params.load("colab")["chapters"]["ch02"]
    assert page == {k: x for k, x in few.items() if k != "accept_terms"} | {"profile": "colab"}
    assert "profile colab" in capsys.readouterr().out


def test_cell_makes_a_bare_runtime_ready(tmp_path):
    """A new environment with torch and the rest preinstalled, but not locksmith.

    One chapter: the cells of the others differ in its name alone, which the tests above look at.
    """
    chapter = ROOT / "chapters" / "02_base_model_sampling.ipynb"
    (tmp_path / "origin").mkdir()
    origin = copy(tmp_path / "origin")
    runtime, content = tmp_path / "runtime", tmp_path / "content"
    subprocess.run([sys.executable, "-m", "venv", runtime], check=True)
    python = runtime / "bin" / "python"
    site = next(runtime.glob("lib/python*/site-packages"))
    (site / "preinstalled.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    (site / "google").mkdir()
    (site / "google" / "colab.py").touch()
    content.mkdir()
    script = "\n".join(
        [
            "import google.colab, torch",
            "before = torch.__version__, torch.__file__",
            first_cell(chapter).source,
            "import importlib.metadata, locksmith",
            "from pathlib import Path",
            "assert (torch.__version__, torch.__file__) == before",
            "assert Path(locksmith.__file__).is_relative_to(Path.cwd()), locksmith.__file__",
            "assert Path.cwd().name == 'book'",
            "print(*sorted(str(p) for p in Path('checkpoints').glob('*/*/*')))",
        ]
    )
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [python, "-c", script],
        cwd=content,
        capture_output=True,
        text=True,
        env={**variables, "LOCKSMITH_REPO": str(origin)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    wanted = [
        n for n in colab.needs(chapter.stem, ROOT / "dvc.yaml") if n.startswith("checkpoints")
    ]
    assert done.stdout.split() == sorted(wanted)
    # Nothing that the runtime had was installed again.
    installed = {p.name.split("-")[0] for p in site.glob("*.dist-info")}
    assert installed == {"pip", "setuptools", "locksmith"} or installed == {"pip", "locksmith"}
