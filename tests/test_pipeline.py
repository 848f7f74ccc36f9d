"""The pipeline as a DVC user meets it: profile smoke through every stage into a rendered book."""

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from locksmith import params, results
from locksmith.book import stages
from repository import ROOT, copy, environment, git

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
OPEN = yaml.safe_load((ROOT / "open/dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize("file", stages.FILES)
def test_the_committed_dependencies_are_the_generated_ones(file):
    assert stages.changed(file, ROOT) == []
    assert (ROOT / file).read_text() == stages.generated(file, ROOT)


def loaded_by(lines, folder):
    """Paths of the modules that a fresh Python has loaded once it ran these imports."""
    show = ("import sys", "print(*(m.__file__ for n, m in sys.modules.items() if "
            "n.startswith('locksmith.') and not m.__file__.endswith('__init__.py')))")
    done = subprocess.run([sys.executable, "-c", "\n".join([*lines, *show])], cwd=folder, check=True,
                          env=environment(ROOT), capture_output=True, text=True)
    return {Path(path).relative_to(ROOT).as_posix() for path in done.stdout.split()}


@pytest.mark.parametrize("name", ["distill", "chapter-01", "chapter-06", "verdict"])
def test_what_python_loads_for_a_stage_is_among_its_dependencies(name, tmp_path):
    """Python's own import as the judge. It sees no import inside a function, so a subset."""
    if name == "distill":
        lines = ["import locksmith.distill"]
    else:
        cells = nbformat.read(ROOT / STAGES[name]["deps"][0], as_version=4).cells
        tree = ast.parse("\n".join(c.source for c in cells if c.cell_type == "code"))
        lines = [ast.unparse(n) for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    plumbing = loaded_by([f"import {path[4:-3].replace('/', '.')}" for path in stages.PLUMBING], tmp_path)
    assert plumbing >= stages.PLUMBING
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
    assert all(s["wdir"] == ".." and s["frozen"] and "--profile open" in s["cmd"] for s in OPEN.values())


# --- the smoke profile, end to end ------------------------------------------------------------


class Book:
    """A copy of the repository whose profile is smoke."""

    def __init__(self, folder):
        self.folder = folder
        self.variables = environment(folder)

    def run(self, *command, code=0):
        """Runs a command in the copy; returns stdout and stderr together."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.variables,
            text=True,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert code is None or done.returncode == code, done.stdout[-4000:]
        return done.stdout

    def edit(self, name, old, new):
        path = self.folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def json(self, *command):
        """What a command prints as JSON, its warnings aside."""
        return json.loads(
            subprocess.run(
                [*command, "--json"],
                cwd=self.folder,
                env=self.variables,
                check=True,
                capture_output=True,
            ).stdout
        )

    def status(self):
        """What `dvc status` reports as changed: {stage: ...}."""
        return self.json("dvc", "status", "dvc.yaml", "data.dvc")

    def restore(self):
        """Back to the last commit and its outputs (DVC stages what it writes, so from HEAD)."""
        git(self.folder, "checkout", "-q", "HEAD", "--", ".")
        self.run("dvc", "checkout", "-q", "--force", "dvc.yaml")


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    book = Book(copy(tmp_path_factory.mktemp("book")))
    book.edit("params.yaml", "profile: lab", "profile: smoke")
    book.run("python", "-m", "locksmith.corpus", "--profile", "smoke")
    book.run("dvc", "add", "-q", "data")
    book.log = book.run("dvc", "repro")
    book.page = book.run("python", "-m", "locksmith.book.site", "build").strip().splitlines()[-1]
    git(book.folder, "add", "-A")
    git(book.folder, "commit", "-q", "-m", "smoke")
    return book


def test_every_stage_runs_into_a_rendered_book(book):
    for stage in (
        "pretrain@countdown",
        "pretrain@chain",
        "twin@countdown",
        "distill@countdown",
        "distill@chain",
        "rl@countdown",
        "rl@chain",
        "chapter-00",
        "chapter-01",
        "chapter-02",
        "chapter-03",
        "chapter-04",
        "chapter-05",
        "chapter-06",
        "facts",
        "verdict",
    ):
        assert f"Running stage '{stage}'" in book.log
    page = Path(book.page)
    assert page.name == "index.html" and page.is_file()
    for chapter in (book.folder / "chapters").glob("*.ipynb"):
        assert (page.parent / "chapters" / f"{chapter.stem}.html").is_file()
    assert (page.parent / "post.html").is_file()
    post = Path(book.run("python", "-m", "locksmith.book.post", "build").strip().splitlines()[-1])
    assert {"post.md", "post.html", "card.png"} <= {path.name for path in post.iterdir()}
    table = (book.folder / "results/facts.csv").read_text().splitlines()
    chapters = {row.split(",")[1] for row in table if row.startswith("smoke,")}
    assert chapters >= {"00", "01", "02", "03", "04", "05"}


def test_nothing_is_left_to_do(book):
    assert book.status() == {}
    assert "Running stage" not in book.run("dvc", "repro")


def test_metrics_plots_and_params_show(book):
    metrics = book.json("dvc", "metrics", "show")[""]["data"]
    row = metrics["results/metrics/02 base pass_at_k[k=1].yaml"]["data"]
    assert set(row["smoke"]) == {"countdown", "chain"} and len(metrics) <= 20
    plots = book.json("dvc", "plots", "show")["data"]
    assert {"Pre-training loss", "Accuracy in RL"} <= set(plots)
    assert any(name.endswith(".png") for name in plots)
    book.edit("params.yaml", "*rl, steps: 2,", "*rl, steps: 3,")
    difference = book.json("dvc", "params", "diff")
    book.edit("params.yaml", "*rl, steps: 3,", "*rl, steps: 2,")
    assert difference["params.yaml"]["smoke.rl.steps"] == {"old": 2, "new": 3, "diff": 1}


def test_rerunning_gives_the_same_bytes(book):
    lock = (book.folder / "dvc.lock").read_bytes()
    stages = ("pretrain@chain", "rl@chain", "twin@countdown", "distill@chain", "chapter-00",
              "chapter-02")
    book.run("dvc", "repro", "-f", "-s", *stages)
    assert (book.folder / "dvc.lock").read_bytes() == lock
    assert git(book.folder, "status", "--porcelain") == ""


def test_only_what_depends_on_a_change_reruns(book):
    def changed(name):
        path = book.folder / name
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        stages = set(book.status())
        path.write_bytes(before)
        return stages

    assert changed("lib/locksmith/book/site.py") == set()
    assert changed("lib/locksmith/book/notebooks.py") == set()
    assert changed("lib/locksmith/experiments/taxonomy.py") == {"chapter-01"}
    assert changed("claims.yml") == {"verdict"}
    assert changed("lib/locksmith/rl.py") == {
        "rl@countdown", "rl@chain", "chapter-03", "chapter-05", "chapter-06"}


def test_a_clone_pulls_and_has_nothing_to_do(book, tmp_path):
    book.run("dvc", "push", "-q")
    git(book.folder, "add", "-f", ".dvcstore")
    git(book.folder, "commit", "-q", "-m", "store")
    git(tmp_path, "clone", "-q", str(book.folder), "clone")
    clone = Book(tmp_path / "clone")
    clone.run("dvc", "pull", "-q", "dvc.yaml", "data.dvc")
    assert clone.status() == {}
    assert "Running stage" not in clone.run("dvc", "repro")
    assert git(clone.folder, "status", "--porcelain") == ""


def test_a_killed_stage_is_taken_up_again(book):
    """kill -9 while RL runs: the finished stages stay, the next repro goes on from there."""
    try:
        book.edit("params.yaml", "*rl, steps: 2,", "*rl, steps: 3,")
        log = book.folder / "build" / "killed.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                ["dvc", "repro", "rl@chain"],
                cwd=book.folder,
                stdout=out,
                env=book.variables,
                stderr=out,
                start_new_session=True,
            )
            for _ in range(1200):
                if "Running stage 'rl@chain'" in log.read_text() or process.poll() is not None:
                    break
                time.sleep(0.05)
            time.sleep(1)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert "Running stage 'rl@chain'" in log.read_text()
        assert not list(book.folder.glob("results/**/.*.tmp"))
        again = book.run("dvc", "repro", "rl@chain")
        assert "Running stage 'rl@chain'" in again and "Running stage 'pretrain@chain'" not in again
        assert (book.folder / "checkpoints/smoke/chain/rl/seed0/model.safetensors").is_file()
    finally:
        book.restore()


# --- bad input, as the command line meets it --------------------------------------------------


def test_unknown_profile(book):
    for module in ("pretrain", "rl"):
        said = book.run(
            "python", "-m", f"locksmith.{module}", "--profile", "smok", "--family", "chain", code=2
        )
        assert said.splitlines()[-1].startswith(
            "error: Unknown profile 'smok'; params.yaml has smoke"
        )
    said = book.run(
        "python", "-m", "locksmith.pretrain", "--profile", "smoke", "--family", "chian", code=2
    )
    assert "chian" in said and "countdown" in said and "Traceback" not in said


def test_a_misspelt_parameter_stops_the_pipeline_before_a_stage_changes(book):
    try:
        book.edit("params.yaml", "*rl, steps: 2,", "*rl, stepz: 2,")
        said = book.run("dvc", "repro", code=255)
        assert "smoke.rl has an unknown parameter 'stepz'; allowed are steps" in said
        assert "Traceback" not in said
    finally:
        book.restore()


@pytest.mark.parametrize("damage", ["corrupt", "missing"])
def test_a_damaged_checkpoint_is_named(book, damage):
    chapter = "chapters/02_base_model_sampling.ipynb"
    weights = book.folder / "checkpoints/smoke/chain/rl/seed0/model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()  # DVC may have linked it to its cache
    if damage == "corrupt":
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        said = book.run(
            "python", "-m", "locksmith.book.notebooks", "run", chapter, "--profile", "smoke", code=1
        )
        last = said.strip().splitlines()[-1]
        assert last.startswith("error: ") and "model.safetensors" in last
        assert not (book.folder / "results/smoke/02.json").exists()
        assert not (book.folder / "build/notebooks/smoke/02_base_model_sampling.ipynb").exists()
    finally:
        book.restore()
    assert book.status() == {}
