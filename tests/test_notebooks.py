"""Chapters as git has them; their runner: strict parameters, same bytes, nothing half-written."""

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml
from locksmith import errors, params, results
from locksmith.book import notebooks
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
OUTPUT = Path("build/notebooks/smoke/02_toy.ipynb")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A book of one toy chapter; returns a function that writes it and its parameters."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(params.SCHEMA["chapters"], "ch02", {"n": "int 1..", "share": "float 0..1"})
    (tmp_path / "chapters").mkdir()

    def write(*code, values=None, cell='profile = "lab"\nn = 3\nshare = 0.5'):
        values = {"n": 4, "share": 1} if values is None else values
        entry = {"seeds": [0], "chapters": {"ch02": values}}
        Path("params.yaml").write_text(yaml.safe_dump({"profile": "smoke", "smoke": entry}))
        cells = [
            new_markdown_cell("# Toy"),
            new_code_cell(cell, metadata={"tags": ["parameters"]}),
            *map(new_code_cell, code),
        ]
        nb = new_notebook(cells=cells)
        nb.metadata["kernelspec"] = {
            "name": "python3",
            "display_name": "Python 3",
            "language": "python",
        }
        nbformat.write(nb, "chapters/02_toy.ipynb")
        return Path("chapters/02_toy.ipynb")

    return write


WRITES = (
    "from pathlib import Path\nPath('results/smoke/figures').mkdir(parents=True, exist_ok=True)\n"
    "Path('results/smoke/02.json').write_text('{}')\n"
    "Path('results/smoke/figures/02_a.png').write_text('x')\n"
    "Path('results/smoke/figures/00_b.png').write_text('x');"
)


def test_run_gives_the_profiles_values_and_the_same_bytes_again(toy):
    chapter = toy("import warnings; warnings.warn('mind the gap')\nprint(profile, n, share)")
    source = chapter.read_bytes()
    assert notebooks.run(chapter, "smoke") == OUTPUT
    first = OUTPUT.read_bytes()
    nb = nbformat.read(OUTPUT, as_version=4)
    assert "".join(o.text for o in nb.cells[-1].outputs) == "smoke 4 1\n"
    injected = [c for c in nb.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert len(injected) == 1 and "remove-cell" in injected[0].metadata["tags"]
    notebooks.run(chapter, "smoke")
    assert OUTPUT.read_bytes() == first
    assert chapter.read_bytes() == source
    assert str(Path.cwd()) not in first.decode() and "UserWarning" not in first.decode()
    assert [p.name for p in OUTPUT.parent.iterdir()] == [OUTPUT.name]


def test_output_in_pieces_is_one_output(toy):
    """The kernel sends stdout in pieces by the clock; a page must not depend on that."""
    chapter = toy(
        "import sys, time\nfor i in range(3):\n    print(i, flush=True)\n    time.sleep(0.3)\n"
        "    print('noise', file=sys.stderr, flush=True)\ndisplay(1)\nprint('end')"
    )
    notebooks.run(chapter, "smoke")
    outputs = nbformat.read(OUTPUT, as_version=4).cells[-1].outputs
    assert [o.output_type for o in outputs] == ["stream", "display_data", "stream"]
    assert outputs[0].text == "0\n1\n2\n" and outputs[2].text == "end\n"


STAGED = (
    "from locksmith import staging\n"
    "for name in ('02.json', 'figures/02_a.png', 'figures/02_c.png'):\n"
    "    staging.path(f'results/smoke/{name}').write_text('new')\n"
)
OLD = {"results/smoke/02.json": b"old", "results/smoke/figures/02_a.png": b"old",
       "results/smoke/figures/02_b.png": b"old", "results/smoke/figures/00_b.png": b"x",
       OUTPUT.as_posix(): b"old"}


def lay_old():
    for name, content in OLD.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)


def files():
    """{path: bytes} of what runs have made so far."""
    return {p.as_posix(): p.read_bytes()
            for p in [*Path("build").rglob("*"), *Path("results").rglob("*")] if p.is_file()}


@pytest.mark.parametrize("writes, ends, sentence", [
    (WRITES, "raise KeyError('no such\\nmodel')", "failed in cell 4: KeyError: .no such"),
    (STAGED, "raise KeyError('no such\\nmodel')", "failed in cell 4: KeyError: .no such"),
    (STAGED, "import sys\nsys.exit(0)", "ended early: cell 4 exits"),
    (STAGED, "raise SystemExit", "ended early: cell 4 exits"),
    (STAGED, "exit()", "ended early: cell 4 leaves the kernel"),
    (STAGED, "get_ipython().ask_exit()", "ended early: cell 4 leaves the kernel"),
    (STAGED, "import os; os._exit(0)", "failed in cell 4: its kernel died"),
    (WRITES, "import os; os.kill(os.getpid(), 9)", "failed in cell 4: its kernel died"),
])
def test_a_run_that_ends_early_leaves_what_was_there(toy, writes, ends, sentence):
    lay_old()
    with pytest.raises(notebooks.ChapterFailed, match=f"02_toy.ipynb {sentence}") as raised:
        notebooks.run(toy(writes, ends), "smoke")
    assert "\n" not in str(raised.value)
    assert files() == OLD


def test_a_whole_run_takes_the_place_of_the_last_one(toy):
    lay_old()
    notebooks.run(toy(STAGED), "smoke")
    after = files()
    assert set(after) == {*OLD, "results/smoke/figures/02_c.png"} - {
        "results/smoke/figures/02_b.png"}
    assert after["results/smoke/02.json"] == after["results/smoke/figures/02_a.png"] == b"new"
    assert after[OUTPUT.as_posix()] != b"old"


@pytest.mark.parametrize(
    "values, cell, sentence",
    [
        ({"n": 4, "share": 1, "m": 2}, None, "unknown parameter 'm'"),
        ({"n": "4", "share": 1}, None, "smoke.chapters.ch02.n is '4'; allowed is int at least 1"),
        ({"n": 0, "share": 1}, None, "smoke.chapters.ch02.n is 0"),
        ({"n": 4, "share": 1.5}, None, "share is 1.5"),
        ({"n": 4}, None, "lacks share"),
        (
            {"n": 4, "share": 1},
            'profile = "lab"\nshare = 0.5',
            "has no parameter 'n'; it has profile, share",
        ),
        (
            {"n": 4, "share": 1},
            'profile = "lab"\nn = "3"\nshare = 0.5',
            "n of .* is 4; .* type str",
        ),
        ({"n": 4, "share": 1}, "import os\nn = 3", "may hold nothing but"),
    ],
)
def test_wrong_parameters_stop_before_a_cell_runs(toy, values, cell, sentence):
    chapter = toy(WRITES, values=values, **({"cell": cell} if cell else {}))
    with pytest.raises(errors.BadInput, match=sentence) as raised:
        notebooks.run(chapter, "smoke")
    assert "\n" not in str(raised.value)
    assert not Path("build").exists() and not Path("results").exists()


def test_command_line_says_it_in_one_sentence(toy):
    toy("1 / 0", values={})

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "locksmith.book.notebooks", "run", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )

    done = run("chapters/02_toy.ipynb", "--profile", "smok")
    assert (done.returncode, done.stderr) == (
        2,
        "error: Unknown profile 'smok'; params.yaml has smoke.\n",
    )
    done = run("chapters/03_absent.ipynb", "--profile", "smoke")
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: chapters/03_absent.ipynb cannot be read (No such file or directory).\n"
    )
    params_file = Path("params.yaml")
    params_file.write_text(params_file.read_text().replace("ch02", "verdict"))
    Path("chapters/verdict.ipynb").write_bytes(Path("chapters/02_toy.ipynb").read_bytes())
    Path("build").touch()  # where no folder can be made
    done = run("chapters/verdict.ipynb", "--profile", "smoke")
    assert (done.returncode, done.stderr) == (
        1, "error: [Errno 20] Not a directory: 'build/staging/smoke'\n")
    Path("chapters/02_toy.ipynb").write_text('{"cells": [')
    done = run("chapters/02_toy.ipynb", "--profile", "smoke")
    assert (done.returncode, done.stderr) == (
        2,
        "error: chapters/02_toy.ipynb is not a notebook.\n",
    )


SAYS = """
import os
import time
from pathlib import Path
def says(*processes):
    Path("started.new").write_text(" ".join(map(str, [os.getpid(), *processes])))
    Path("started.new").rename("started")
"""
SLEEPS = SAYS + "says()\ntime.sleep(600)"
IN_A_POOL = SAYS + """
from multiprocessing.connection import wait
from locksmith import parallel
pool = parallel.workers("lab")
pool.submit(os.getpid).result()
says(*pool._processes)
"""
WAITS = IN_A_POOL + (
    'parallel.run(pool, wait, {0: {"object_list": [], "timeout": 600}}, writes=True)')
COMPUTES = IN_A_POOL + "pool.submit(sum, range(10**12))\nsum(range(10**12))"  # no thread may run


@pytest.mark.parametrize("cell, whom, number, code, sentence", [
    (COMPUTES, 0, signal.SIGKILL, -signal.SIGKILL, ""),
    (SLEEPS, 0, signal.SIGTERM, 128 + signal.SIGTERM, "error: ended by SIGTERM"),
    (SLEEPS, 0, signal.SIGINT, 130, "error: ended by SIGINT"),
    (WAITS, -1, signal.SIGKILL, 1, "error: chapters/verdict.ipynb failed in cell 3: "
     "BrokenProcessPool: a process that ran wait of 0, or a job beside it, was killed, as the "
     "system does when memory runs out"),
], ids=["killed", "terminated", "interrupted", "worker killed"])
def test_no_process_outlives_a_run_and_what_was_there_stays(
        toy, cell, whom, number, code, sentence):
    lay_old()
    chapter = toy(STAGED + cell, values={}, cell='profile = "lab"')
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("ch02", "verdict"))
    run = psutil.Popen(
        [sys.executable, "-m", "locksmith.book.notebooks", "run",
         str(chapter.rename("chapters/verdict.ipynb")), "--profile", "smoke"],
        stderr=subprocess.PIPE, text=True,
    )
    while not Path("started").exists() and run.poll() is None:
        time.sleep(0.05)
    group = [run, *map(psutil.Process, map(int, Path("started").read_text().split()))]
    try:
        group[whom].send_signal(number)
        assert run.wait(20) == code
        assert not psutil.wait_procs(group[1:], timeout=10)[1]
    finally:
        for process in group:
            if process.is_running():
                process.kill()
    said = run.stderr.read().splitlines()
    assert [x for x in said if x.startswith(("error", "Traceback"))] == [sentence] * bool(sentence)
    aside = {name for name in files() if name.startswith("build/staging")}
    assert {name: text for name, text in files().items() if name not in aside} == OLD
    assert not aside or not sentence  # a killed run's half goes when the next one starts


def test_a_kernel_that_dies_at_its_start_is_a_sentence(toy, monkeypatch):
    startup = Path("ipython/profile_default/startup")
    startup.mkdir(parents=True)
    (startup / "00.py").write_text("import os; os._exit(1)")
    monkeypatch.setenv("IPYTHONDIR", str(Path("ipython").resolve()))
    with pytest.raises(notebooks.ChapterFailed, match="failed before its first cell: Kernel died"):
        notebooks.run(toy("print(1)"), "smoke")
    assert not OUTPUT.exists()


def test_a_shell_with_too_little_memory_is_refused_before_a_kernel_starts(toy):
    toy("print(1)", values={}, cell='profile = "lab"').rename("chapters/verdict.ipynb")
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("ch02", "verdict"))
    done = subprocess.run(
        [sys.executable, "-m", "locksmith.book.notebooks", "run", "chapters/verdict.ipynb",
         "--profile", "smoke"], capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)))
    assert (done.returncode, done.stderr) == (
        2, "error: This shell allows a process 1.0 GiB of memory (ulimit -v); allowed for a "
        "chapter is 3 GiB or more.\n")
    assert not Path("build").exists() and not Path("results").exists()


@pytest.mark.parametrize("chapter", CHAPTERS, ids=[c.stem for c in CHAPTERS])
def test_chapters_stand_clean(chapter, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert notebooks.complaints(chapter.relative_to(ROOT)) == []


def test_complaints_find_what_is_wrong(toy, monkeypatch):
    chapter = toy("\n".join(["x = 1"] * 26))
    Path("_config.yml").write_text("repository: {url: https://example.org/book, branch: main}")
    nb = nbformat.read(chapter, as_version=4)
    nb.cells[1].execution_count = 1
    nbformat.write(nb, chapter)
    values = yaml.safe_load(Path("params.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump({**values, "lab": values["smoke"]}))
    found = " ".join(notebooks.complaints(chapter))
    for sentence in (
        "cell 1 carries outputs",
        f"cell 2 has more than {notebooks.LONGEST_CELL} lines",
        "first code cell is not Colab's",
        "n defaults to 3, the page was made with 4",
    ):
        assert sentence in found


def test_set_changes_a_parameter_for_this_run_and_its_record(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv(params.CHANGES, raising=False)
    before = params.load("smoke")
    given = notebooks.changes(["n_problems=3", "seeds=[5]"])
    assert given == {"n_problems": 3, "seeds": [5]}
    monkeypatch.setenv(params.CHANGES, "")
    params.change("smoke", "ch02", given)
    assert notebooks.parameters("chapters/02_base_model_sampling.ipynb", "smoke")["n_problems"] == 3
    assert params.load("smoke")["seeds"] == [5]
    assert results.provenance("smoke", "02")["parameters"]["chapter"]["n_problems"] == 3
    assert params.load("lab")["seeds"] != [5]
    params.change("smoke", "ch02", {"n_problms": 3})
    with pytest.raises(errors.BadInput, match="ch02 has an unknown parameter 'n_problms'"):
        params.load("smoke")
    monkeypatch.delenv(params.CHANGES)
    assert params.load("smoke") == before
    for wrong in ("tasks", "3=4", "tasks=[sums"):
        with pytest.raises(errors.BadInput, match="--set is .*; allowed is name=value"):
            notebooks.changes([wrong])
    assert notebooks.changes(["n=1", "n=2"]) == {"n": 2}
    assert capsys.readouterr().err == "--set gives n more than once; the last counts.\n"
    with pytest.raises(errors.BadInput, match="--set is 'lr=010'.*its value, line 1 has `010`"):
        notebooks.changes(["lr=010"])
    assert notebooks.changes(["lr=2e-5"]) == {"lr": 2e-5}
