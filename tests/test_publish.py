"""Publishing: `make publish` against a bare repository, and a workflow that runs no notebook."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from repository import ROOT, environment, git

WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/pages.yml").read_text())
RUNS_A_NOTEBOOK = re.compile(
    r"papermill|nbconvert|nbclient|execute|locksmith\.notebooks|dvc (?:repro|exp)")


def dry_run(folder, *words):
    """The commands that `make` would run there, with nothing installed yet."""
    # No other variables: a make around the tests, or a REMOTE in the shell,
    # would change what is said.
    return subprocess.run(["make", "-n", *words], cwd=folder, env={"PATH": os.environ["PATH"]},
                          check=True, capture_output=True, text=True).stdout


@pytest.fixture
def makefile(tmp_path):
    """A folder with what the Makefile reads."""
    folder = tmp_path / "make"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_publish_pushes_the_book_as_it_stands_and_nothing_else(tmp_path, makefile):
    """ghp-import as `make publish` calls it, twice; the remote is called mirror."""
    *checked, push = dry_run(makefile, "publish", "REMOTE=mirror").splitlines()[-3:]
    assert checked == ["python -m locksmith.book.pdf build", "python -m locksmith.book.looks"]
    git(tmp_path, "init", "-q", "--bare", "mirror.git")
    work = tmp_path / "work"
    book = work / "build" / "book"
    (book / "_static").mkdir(parents=True)
    (book / "index.html").write_text("first")
    (book / "old.html").write_text("gone next time")
    (book / "_static" / "book.css").write_text("css")
    (work / "README.md").write_text("not a page")
    (work / ".gitignore").write_text("/build/\n")
    git(work, "init", "-q", "-b", "main")
    for name, value in (("user.name", "test"), ("user.email", "test@example.org")):
        git(work, "config", name, value)
    git(work, "remote", "add", "mirror", str(tmp_path / "mirror.git"))
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", "sources")

    def published():
        subprocess.run(shlex.split(push), cwd=work, env=environment(ROOT), check=True,
                       capture_output=True, text=True)
        names = git(tmp_path / "mirror.git", "ls-tree", "-r", "--name-only", "gh-pages")
        return names.splitlines(), git(tmp_path / "mirror.git", "show", "gh-pages:index.html")
    assert published() == ([".nojekyll", "_static/book.css", "index.html", "old.html"], "first")
    (book / "old.html").unlink()
    (book / "index.html").write_text("second")
    assert published() == ([".nojekyll", "_static/book.css", "index.html"], "second")
    assert git(work, "status", "--porcelain") == ""
    assert git(tmp_path / "mirror.git", "branch").split() == ["gh-pages"]


def test_publish_goes_to_origin_unless_told_and_runs_no_chapter(makefile):
    said = dry_run(makefile, "publish")
    assert said.splitlines()[-1] == "ghp-import -n -p -f -r origin build/book"
    assert not RUNS_A_NOTEBOOK.search(said)
    assert RUNS_A_NOTEBOOK.search(dry_run(makefile, "book"))  # what the pattern is there to find


def test_workflow_pulls_builds_and_uploads_without_running_a_notebook(makefile):
    (job,) = WORKFLOW["jobs"].values()
    runs = [step["run"] for step in job["steps"] if "run" in step]
    commands = "\n".join(runs) + "".join(dry_run(makefile, *shlex.split(run)[1:])
                                         for run in runs if run.startswith("make "))
    assert not RUNS_A_NOTEBOOK.search(commands)
    assert "-c constraints.txt" in commands
    steps = [step.get("run") or step["uses"].partition("@")[0] for step in job["steps"]]
    order = ["actions/checkout", "make .venv/.installed", ".venv/bin/dvc pull -q --allow-missing",
             "make pdf", "make looks", "actions/upload-pages-artifact", "actions/deploy-pages"]
    assert [step for step in steps if step in order] == order
    upload = next(s for s in job["steps"] if "upload-pages" in s.get("uses", ""))
    assert upload["with"]["path"] == "build/book"
    assert WORKFLOW["permissions"] == {"contents": "read", "pages": "write", "id-token": "write"}


def test_actions_are_pinned():
    for file in Path(ROOT, ".github/workflows").glob("*.yml"):
        for used in re.findall(r"uses: (\S+)", file.read_text()):
            assert re.fullmatch(r"actions/[\w-]+@(?:v\d+|[0-9a-f]{40})", used), used


def test_executed_chapters_are_outputs_that_a_pull_brings():
    """Every notebook that the book's contents list, under the profile that the pipeline runs."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    outs = [out for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
            for entry in stage["outs"] for out in ([entry] if isinstance(entry, str) else entry)]
    for entry in toc["chapters"]:
        if entry["file"].startswith("chapters/"):
            assert f"build/notebooks/${{profile}}/{Path(entry['file']).name}.ipynb" in outs
