"""What a job found is taken again only where nothing that shaped it changed."""

import os
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from locksmith import errors, keeping, lab, loading, parallel
from locksmith.experiments import hybrid
from repository import ROOT

PAIR = loading.Pair("smoke", "chain", 0)


def total(numbers, done, pair=PAIR):
    """A job that says that it ran."""
    with open(done, "a") as file:
        file.write("x")
    return {"total": numbers["of"].sum(), "pair": pair}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A small repository of its own, whose jobs run in this process and are kept all the same."""
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    (tmp_path / "checkpoints/smoke").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCKSMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path


class Here(parallel.Executor):
    """Runs a job at once, and has a profile, without which nothing is kept."""
    profile = "smoke"

    def submit(self, function, /, *args, **options):
        return parallel.Serial().submit(function, *args, **options)


def runs(numbers=(1.0, 2.0), pair=PAIR, **how):
    """How often the job ran of itself in one call, its result checked."""
    done = Path("done")
    done.unlink(missing_ok=True)
    jobs = {"one": dict(numbers={"of": torch.tensor(numbers)}, done="done", pair=pair)}
    found = parallel.run(Here(), total, jobs, **how)
    assert found == {"one": {"total": sum(numbers), "pair": pair}}
    return len(done.read_text()) if done.exists() else 0


def test_a_job_runs_once_and_again_where_its_options_differ(folder):
    assert [runs(), runs(), runs((1.0, 3.0)), runs(), runs(pair=PAIR._replace(seed=1))] \
        == [1, 0, 1, 0, 1]


def test_nobody_else_can_put_pickles_there(folder):
    runs()
    assert (folder / "cache/jobs").stat().st_mode & 0o077 == 0
    (folder / "cache/jobs").chmod(0o770)
    with pytest.raises(errors.BadInput, match="may be written by others.*chmod 700"):
        runs()


def test_what_writes_files_always_runs(folder):
    assert [runs(writes=True), runs(writes=True)] == [1, 1]


def weights():
    Path("checkpoints/smoke/x").write_text("new weights")


def data():
    Path("data/smoke").mkdir(parents=True)
    Path("data/smoke/problems.jsonl").write_text("{}")


def record():
    Path("results/smoke/train").mkdir(parents=True)
    Path("results/smoke/train/rl.json").write_text("{}")


def parameter():
    path = Path("params.yaml")
    before, smoke, behind = path.read_text().partition("\nsmoke:\n")
    path.write_text(before + smoke + behind.replace("seeds: [0", "seeds: [7", 1))


@pytest.mark.parametrize("change", [weights, data, record, parameter])
def test_what_a_job_may_read_shapes_it(folder, change):
    assert [runs(), runs()] == [1, 0]
    change()
    assert [runs(), runs()] == [1, 0]


def test_a_chapters_parameters_reach_a_job_only_as_its_options(folder):
    runs()
    path = Path("params.yaml")
    changed = path.read_text().replace("n_problems: 100", "n_problems: 99")
    assert changed != path.read_text()
    path.write_text(changed)
    assert runs() == 0


def test_a_local_models_files_shape_a_job(folder):
    (folder / "mine").mkdir()
    (folder / "mine/model.safetensors").write_bytes(b"1")
    for name in ("mine", "toy+mine", "toy+mi{seed}"):
        pair = PAIR._replace(thinking=name)
        assert [runs(pair=pair), runs(pair=pair)] == [1, 0]
        (folder / "mine/model.safetensors").write_bytes(b"12" + name.encode())
        assert runs(pair=pair) == 1


def test_a_folder_that_is_called_like_a_profile_is_no_model(folder):
    """The lock file of folder open is written at each run of its pipeline."""
    (folder / "smoke").mkdir()
    runs()
    (folder / "smoke/dvc.lock").write_text("")
    assert runs() == 0


def test_other_code_is_another_file(folder, monkeypatch):
    """The job's own module, or one that it reaches."""
    library = folder / "copy"
    shutil.copytree(ROOT / "lib", library / "lib")
    monkeypatch.setattr(keeping, "__file__", str(library / "lib/locksmith/keeping.py"))
    job = {"numbers": 1}
    for changed, other in (("experiments/hybrid", True), ("engine", True), ("book/report", False)):
        keeping._code.cache_clear()
        before = keeping.path("smoke", hybrid.run, job)
        with open(library / f"lib/locksmith/{changed}.py", "a") as file:
            file.write("# another line\n")
        keeping._code.cache_clear()
        assert (keeping.path("smoke", hybrid.run, job) != before) == other
    keeping._code.cache_clear()


def test_what_nobody_asked_for_goes(folder):
    runs()
    file, = folder.glob("cache/jobs/*.pkl")
    old, young = file.with_name("old.pkl"), file.with_name("young.pkl")
    for other in (old, young):
        other.write_bytes(b"")
    os.utime(old, (0, time.time() - keeping.UNUSED - 60))
    os.utime(file, (0, time.time() - keeping.UNUSED - 60))
    assert runs() == 0  # asked for
    keeping.clear()
    assert file.is_file() and young.is_file() and not old.exists()


def test_chapter_sevens_models_shape_only_what_names_them(folder):
    assert keeping.LADDERS == lab.LADDERS
    others = PAIR, PAIR._replace(base="lab/ladders/exposure-0/base")
    before = [keeping.path("smoke", total, {"pair": pair}) for pair in others]
    place = folder / "checkpoints/smoke/chain/ladders/exposure-0"
    place.mkdir(parents=True)
    (place / "model.safetensors").write_text("")
    after = [keeping.path("smoke", total, {"pair": pair}) for pair in others]
    assert before[0] == after[0] and before[1] != after[1]


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_damaged_file_is_found_again(folder, damage):
    runs()
    file, = folder.glob("cache/jobs/*.pkl")
    file.write_bytes(file.read_bytes()[:-1] if damage is None else damage)
    assert [runs(), runs()] == [1, 0]


def test_tensors_are_told_by_what_they_hold_and_how(folder):
    """Against the same values elsewhere in memory, and against others of the same bytes."""
    whole = torch.arange(6, dtype=torch.float32)
    same = [whole.clone(), torch.stack([whole, whole], 1)[:, 0], whole.clone().requires_grad_()]
    other = [whole.reshape(2, 3), whole.view(torch.int32), whole.bfloat16(), whole + 1]
    names = Counter(keeping.path("smoke", total, {"numbers": [x]})
                    for x in [whole, *same, *other])
    assert sorted(names.values()) == [1, 1, 1, 1, 4]
    assert keeping.path("smoke", runs, {"numbers": [whole]}) not in names
