"""The pipeline as a DVC user meets it: profile smoke through every stage into a rendered book."""

import json
import os
import re
import signal
import subprocess
import time
from contextlib import chdir
from pathlib import Path

import pytest
import torture
from dvc.repo import Repo
from locksmith.book import claims
from repository import copy, environment, git

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
        with chdir(self.folder), Repo() as repo:
            return repo.status(["dvc.yaml", "data.dvc"])

    def restore(self):
        """Back to the last commit and its outputs (DVC stages what it writes, so from HEAD)."""
        git(self.folder, "checkout", "-q", "HEAD", "--", ".")
        self.run("dvc", "checkout", "-q", "--force", "dvc.yaml")


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    book = Book(copy(tmp_path_factory.mktemp("book")))
    book.edit("params.yaml", "profile: lab", "profile: smoke")
    book.edit("dvc.yaml", "    frozen: true\n", "")  # as `make lab` does
    book.run("python", "-m", "locksmith.book.stages", "write")
    (book.folder / "data").mkdir()
    book.log = book.run("dvc", "repro")
    book.page = book.run("python", "-m", "locksmith.book.site", "build").strip().splitlines()[-1]
    git(book.folder, "add", "-A")
    git(book.folder, "commit", "-q", "-m", "smoke")
    return book


def test_every_stage_runs_into_a_rendered_book(book):
    for stage in (
        "data",
        "pretrain@countdown",
        "pretrain@chain",
        "twin@countdown",
        "distill@countdown",
        "distill@chain",
        "rl@countdown",
        "rl@chain",
        "ladders@countdown",
        "ladders@chain",
        "chapter-00",
        "chapter-01",
        "chapter-02",
        "chapter-03",
        "chapter-04",
        "chapter-05",
        "chapter-06",
        "chapter-07",
        "play",
        "facts",
        "verdict",
    ):
        assert f"Running stage '{stage}'" in book.log
    page = Path(book.page)
    assert page.name == "index.html" and page.is_file()
    for chapter in (book.folder / "chapters").glob("*.ipynb"):
        assert (page.parent / "chapters" / f"{chapter.stem}.html").is_file()
    assert (page.parent / "post.html").is_file()
    for name in ("base", "thinking", "twin"):
        assert f'locksmithWeights.{name} = "' in (page.parent / f"play/{name}.js").read_text()
    post = Path(book.run("python", "-m", "locksmith.book.post", "build").strip().splitlines()[-1])
    assert {"post.md", "post.html", "card.png"} <= {path.name for path in post.iterdir()}
    table = (book.folder / "results/facts.csv").read_text().splitlines()
    chapters = {row.split(",")[1] for row in table if row.startswith("smoke,")}
    assert chapters >= {"00", "01", "02", "03", "04", "05", "07"}


def test_the_chapters_write_every_fact_that_a_rule_names(book):
    """Of the arm and chapter it names, at k = 1. A model that solves nothing leaves no gap, so that
    accuracies, an arm's and a rival's, stand for shares of it, no trace to score under another
    model, and nothing right to be fine-tuned on. The ladders of this profile have fewer rungs."""
    rows = claims.facts(book.folder / "results/facts.csv")
    there = {(r["chapter"], r["model"], r["quantity"]) for r in rows if r["profile"] == "smoke"}
    parts = [p for claim in claims.load(book.folder / "claims.yml")["claims"]
             for p in claim["parts"]]
    named = {(t["chapter"], t["model"], re.sub(r"k=\d+", "k=1", t["quantity"]))
             for part in parts for t in part["parsed"] if isinstance(t, dict)}
    rivals = {(chapter, against[1], "gap_recovered") for chapter, _, quantity in named
              if (against := re.match(r"gap_difference\[against=([a-z-]+)", quantity))}
    named = {(chapter, arm, "pass_at_k[k=1]" if quantity.startswith("gap_") else
              re.sub(r"(trace_)?gain_(share|slope)(\[(.*)\])?$",
                     lambda m: f"pass_at_k[k=1{', ' * bool(m[4])}{m[4] or ''}]", quantity))
             for chapter, arm, quantity in named | rivals
             if not arm.endswith("-traces") and not arm.startswith("sft-")}
    fewer = {name for name in named if re.search("exposure=0.001|pretraining=0.1", name[2])}
    assert len(named) > 30 and named - fewer <= there


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
    assert changed("lib/locksmith/experiments/taxonomy.py") == {"chapter-01", "chapter-04", "play"}
    assert changed("claims.yml") == {"verdict"}
    assert changed("lib/locksmith/rl.py") == {
        "rl@countdown", "rl@chain", "ladders@countdown", "ladders@chain",
        "chapter-03", "chapter-05", "chapter-06", "chapter-07"}


def test_a_clone_pulls_and_has_nothing_to_do(book, tmp_path):
    book.run("dvc", "push", "-q")
    git(book.folder, "add", "-f", ".dvcstore")
    git(book.folder, "commit", "-q", "-m", "store")
    git(tmp_path, "clone", "-q", str(book.folder), "clone")
    clone = Book(tmp_path / "clone")
    clone.run("dvc", "pull", "-q", "--allow-missing", "dvc.yaml", "data.dvc")
    on_the_way = "checkpoints/smoke/*/*_steps"
    assert len(list(book.folder.glob(on_the_way))) == 4 and not list(clone.folder.glob(on_the_way))
    assert set(clone.status()) == {f"{stage}@{family}" for stage in ("pretrain", "rl", "ladders")
                                   for family in ("countdown", "chain")} | {
                                       "chapter-04", "chapter-07"}
    assert "Running stage" not in clone.run("dvc", "repro", "--allow-missing")
    page = clone.run("python", "-m", "locksmith.book.site", "build").strip().splitlines()[-1]
    assert (Path(page).parent / "chapters/04_latent_vectors.html").is_file()
    assert git(clone.folder, "status", "--porcelain") == ""


def test_a_killed_stage_is_taken_up_again_and_rerunning_gives_the_same_bytes(book):
    """kill -9 while RL runs: the finished stages stay, the next repro goes on from there."""
    lock = (book.folder / "dvc.lock").read_bytes()
    log = book.folder / "build" / "killed.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            ["dvc", "repro", "-f", "-s", "rl@chain"],
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
    assert not (book.folder / "checkpoints/smoke/chain/rl/seed0/model.safetensors").exists()
    again = book.run("dvc", "repro", "--no-run-cache", "rl@chain")
    assert "Running stage 'rl@chain'" in again and "Running stage 'pretrain@chain'" not in again
    book.run("dvc", "repro", "-f", "-s", "pretrain@chain", "distill@chain", "chapter-02")
    assert (book.folder / "dvc.lock").read_bytes() == lock
    assert git(book.folder, "status", "--porcelain") == ""


def test_it_survives_a_handful_of_faults(book):
    """tests/torture.py injects hundreds; these are quick ones of each kind."""
    whole = torture.picture(book.folder)
    names = {"kill / group / SIGKILL / python -m locksmith.results facts / 0",
             "corrupt / results/smoke/02.json / cut / python -m locksmith.book.site build / 0",
             "corrupt / results/facts.csv / digit / python -m locksmith.book.site build / 1",
             "starve / files of 4 KB / short of it / python -m locksmith.results facts / 0"}
    faults = [fault for fault in torture.drawn(list(torture.INJECT), 10_000, 0)
              if fault.name in names]
    rows = [torture.torture(fault, 0, book.folder, whole) for fault in faults]
    assert len(rows) == 4 and {row["outcome"] for row in rows} == {"survived"}, rows


# --- bad input, as the command line meets it --------------------------------------------------


def test_a_misspelt_parameter_stops_the_pipeline_before_a_stage_changes(book):
    try:
        book.edit("params.yaml", "*rl, steps: 2,", "*rl, stepz: 2,")
        said = book.run("dvc", "repro", code=255)
        assert "smoke.rl has an unknown parameter 'stepz'; allowed are steps" in said
        assert "Traceback" not in said
    finally:
        book.restore()  # DVC removes a stage's outputs before it runs the stage


def test_a_damaged_checkpoint_is_named_and_leaves_the_last_results(book):
    """What else can be wrong with one is for test_model.py."""
    chapter = "chapters/02_base_model_sampling.ipynb"
    weights = book.folder / "checkpoints/smoke/chain/rl/seed0/model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()  # DVC may have linked it to its cache
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    figures = book.folder.glob("results/smoke/figures/02_*")
    made = {path: path.read_bytes() for path in [
        *figures, book.folder / "results/smoke/02.json",
        book.folder / "build/notebooks/smoke/02_base_model_sampling.ipynb"]}
    assert len(made) > 4
    try:
        for command, code in (
            (["python", "-m", "locksmith.book.notebooks", "run", chapter, "--profile", "smoke"], 1),
            (["dvc", "repro", "-s", "-f", "chapter-02"], 255),
        ):
            said = book.run(*command, code=code)
            last = [line for line in said.splitlines() if line.startswith("error: ")][-1]
            assert "model.safetensors" in last and "Traceback" not in said
            assert {path: path.read_bytes() for path in made} == made
    finally:
        book.restore()
    assert book.status() == {}
