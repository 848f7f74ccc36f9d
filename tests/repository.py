"""A copy of this repository as a clone would be, for tests that run the pipeline or clone it."""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from locksmith import corpus, lab, model, params

ROOT = Path(__file__).resolve().parents[1]


def copy(target):
    """Copies what git tracks (and would track) into target and commits it there on branch main."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "copy"]):
        git(target, *command)
    return target


def git(folder, *command):
    """Runs git there as a nobody, so that no configuration of the machine is needed."""
    nobody = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.run(
        ["git", *nobody, *command], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


def environment(folder):
    """Variables under which `python` and `dvc` are those of this run, locksmith the copy's."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(folder / "lib"),
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
    }


@contextmanager
def smoke_lab(root, families=("countdown", "chain"), models=("base", "thinking")):
    """Inside: `root` is the working folder, with the smoke profile's problems, and models with
    random weights where `loading` looks for seed 0. Which of `models` a model is,
    is its weights' seed.
    """
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        corpus.run("smoke")
        for family in families:
            for i, which in enumerate(models):
                net = model.build(params.load("smoke")["model"], i)
                model.save(net, lab.folder("smoke", family, which, 0))
        yield root
