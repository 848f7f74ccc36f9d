"""dvc.yaml as it is written: what a stage depends on, and what a command that trains refuses."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from locksmith import errors, params, pretrain, reach, results, rl
from locksmith.book import stages
from repository import ROOT, environment

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
OPEN = yaml.safe_load((ROOT / "open/dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize("file", stages.FILES)
def test_the_committed_dependencies_are_the_generated_ones(file):
    assert stages.changed(file, ROOT) == []
    assert (ROOT / file).read_text() == stages.generated(file, ROOT)


def test_readmes_slurm_array_runs_each_family_of_a_stage():
    """As Slurm would: the line with each number of its array, but for the training itself."""
    readme = (ROOT / "README.md").read_text()
    last, line = re.search(r"sbatch --array=0-(\d+) --wrap '(.*)'", readme).groups()
    stage = STAGES["pretrain"]
    said = [subprocess.run(["sh", "-c", line.replace("; python", "; echo python")], check=True,
                           env=environment(ROOT) | {"SLURM_ARRAY_TASK_ID": str(i)},
                           capture_output=True, text=True).stdout.strip()
            for i in range(int(last) + 1)]
    assert said == [stage["cmd"].replace("${profile}", "lab").replace("${item.family}", family)
                    for family in stage["matrix"]["family"]]


def loaded_by(lines, folder):
    """Paths of the modules that a fresh Python has loaded once it ran these imports."""
    show = ("import sys", "print(*(m.__file__ for n, m in sys.modules.items() if "
            "n.startswith('locksmith.') and not m.__file__.endswith('__init__.py')))")
    done = subprocess.run([sys.executable, "-c", "\n".join([*lines, *show])], cwd=folder,
                          check=True, env=environment(ROOT), capture_output=True, text=True)
    return {Path(path).relative_to(ROOT).as_posix() for path in done.stdout.split()}


@pytest.fixture(scope="module")
def plumbing(tmp_path_factory):
    found = loaded_by([f"import {path[4:-3].replace('/', '.')}" for path in reach.PLUMBING],
                      tmp_path_factory.mktemp("plumbing"))
    assert found >= reach.PLUMBING
    return found


@pytest.mark.parametrize("name", ["distill", "chapter-01", "chapter-06", "verdict"])
def test_what_python_loads_for_a_stage_is_among_its_dependencies(name, tmp_path, plumbing):
    """Python's own import as the judge. It sees no import inside a function, so a subset."""
    if name == "distill":
        lines = ["import locksmith.distill"]
    else:
        cells = nbformat.read(ROOT / STAGES[name]["deps"][0], as_version=4).cells
        tree = ast.parse("\n".join(c.source for c in cells if c.cell_type == "code"))
        lines = [ast.unparse(n) for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert loaded_by(lines, tmp_path) - plumbing <= set(STAGES[name]["deps"])


def test_an_import_inside_a_function_is_found(tmp_path):
    (tmp_path / "lib/locksmith/tasks").mkdir(parents=True)
    for name, source in {
        "train": "def go():\n    from locksmith.tasks import sums\n",
        "tasks/sums": "from locksmith.errors import BadInput\nfrom locksmith import tools\n",
        "tools": "import locksmith.tasks.chain, locksmith.train\n",
        "tasks/chain": "from locksmith.lists import find\n",
        "lists": "def find(name):\n    from locksmith import tasks\n",
        "tasks/gsm": "",
        "tasks/__init__": "",
        "errors": "from locksmith import unused\n",
        "unused": "",
    }.items():
        (tmp_path / f"lib/locksmith/{name}.py").write_text(source)
    found = stages.modules({"cmd": "python -m locksmith.train --profile lab"}, tmp_path)
    reached = ["lists", "tasks/__init__", "tasks/chain", "tasks/gsm", "tasks/sums", "tools"]
    assert found == [f"lib/locksmith/{name}.py" for name in ["train", *reached]]


def test_facts_and_verdict_depend_on_every_record():
    there = {path.relative_to(ROOT).as_posix() for path in results.files(ROOT / "results")}
    assert len(there) > 15
    for name in ("facts", "verdict"):
        deps = [dep.replace("${profile}", params.default(ROOT / "params.yaml"))
                for dep in STAGES[name]["deps"]]
        assert there <= set(deps) and len(deps) == len(set(deps))


def test_the_store_stays_small():
    """It travels with the repository, and every push stays in the history."""
    assert sum(f.stat().st_size for f in (ROOT / ".dvcstore").rglob("*") if f.is_file()) < 60e6


def test_real_weights_are_a_pipeline_of_their_own():
    assert all("--profile ${profile}" in s["cmd"] for n, s in STAGES.items() if n != "facts")
    assert all(s["wdir"] == ".." and s["frozen"] and "--profile open" in s["cmd"]
               for s in OPEN.values())


@pytest.mark.parametrize("module", [pretrain, rl])
def test_a_command_that_trains_names_what_it_does_not_know(module, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for profile, family in (("smok", "chain"), ("smoke", "chian")):
        monkeypatch.setattr(sys, "argv", ["train", "--profile", profile, "--family", family])
        with pytest.raises(SystemExit) as ended:
            errors.run(module.main)
        assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "error: Unknown profile 'smok'; params.yaml has smoke" in said
    assert "'chian'" in said and "countdown" in said


def test_records_of_open_weights_are_read_where_they_are_there(tmp_path):
    for name in (*stages.FILES, "params.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    before = stages.records(tmp_path)
    assert "results/${profile}/01.json" in before  # `dvc repro` makes it
    assert not any(path.startswith("results/open/") for path in before)
    (tmp_path / "results/open").mkdir(parents=True)
    (tmp_path / "results/open/03.json").touch()
    assert set(stages.records(tmp_path)) - set(before) == {"results/open/03.json"}
