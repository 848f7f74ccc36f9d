"""One pool for every job: the same results in other processes and in this one."""

import os
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import torch
from locksmith import device, errors, keeping, loading, model, parallel, params
from locksmith.experiments import sampling, skills
from repository import smoke_lab


@pytest.fixture(scope="module", autouse=True)
def lab(tmp_path_factory):
    with smoke_lab(tmp_path_factory.mktemp("lab"), families=()):
        yield


def threads():
    return torch.get_num_threads()


def test_processes_and_the_serial_pool_give_the_same_in_the_order_of_the_jobs(tmp_path):
    """Jobs of two kinds: one of numbers alone, one that loads a model and draws from it."""
    model.save(model.build(params.load("smoke")["model"], 0), tmp_path / "model")
    guesses = {seed: {"pair": loading.Pair("smoke", "chain", seed), "n_problems": 2, "n": 5}
               for seed in (3, 1, 2)}
    measure = {0: {"checkpoint": tmp_path / "model", "problems": 3, "samples": 2,
                   "pair": loading.Pair("smoke", "chain", 0), "max_new_tokens": 8,
                   "low_temperature": 0.3, "depths": [1]}}
    with parallel.workers("lab") as pool, parallel.workers("smoke") as serial:
        assert isinstance(serial, parallel.Serial) and not isinstance(pool, parallel.Serial)
        for function, jobs in ((sampling.guesses, guesses), (skills.measure, measure)):
            there, here = (parallel.run(each, function, jobs) for each in (pool, serial))
            assert list(there) == list(here) == list(jobs)
            np.testing.assert_equal(there, here)
        assert pool.submit(threads).result() == serial.submit(threads).result() == 1


@pytest.mark.parametrize("profile, free, n", [("open", 75, 6), ("open", 8, 1), ("open", 500, 16),
                                              ("paper", 75, 1)])
def test_processes_with_small_models_share_a_gpu(monkeypatch, profile, free, n):
    monkeypatch.setattr(device, "pick", lambda where: (torch.device("cuda"), torch.bfloat16))
    monkeypatch.setattr(device, "free_bytes", lambda place: free * 2**30)
    monkeypatch.setattr(device, "workers", lambda: 16)
    with parallel.workers(profile) as pool:
        assert pool._max_workers == n


def with_holes():
    """Bytes that this process still holds when all but the last of many arrays are freed."""
    before = psutil.Process().memory_info().rss
    np.ones(30 << 20, np.uint8)  # what is freed tells glibc how large the heap's pieces may be
    held = [np.ones(6 << 20, np.uint8) for _ in range(50)]
    held[:-1] = []
    return psutil.Process().memory_info().rss - before


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_a_worker_gives_freed_memory_back():
    with parallel.workers("lab") as pool:
        assert pool.submit(with_holes).result() < 30 << 20


def test_the_serial_pool_leaves_its_process_as_it_was():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        serial, mine = parallel.Serial(), [1]
        assert serial.submit(list.append, mine, 2).result() is None and mine == [1]  # a copy
        with pytest.raises(ZeroDivisionError):
            serial.submit(divmod, 1, 0)
        with pytest.raises((AttributeError, pickle.PicklingError)):
            serial.submit(lambda: None)  # no process could be sent it
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


TOLD = threading.Event()


def waits(name):
    if name == "fails":
        raise errors.BadInput("no")
    assert TOLD.wait(60)
    return name


def test_what_other_jobs_find_is_kept_when_one_fails(tmp_path, monkeypatch):
    """Three threads: one is taken, one meets the error, one runs on; the last job does not begin.
    (Whether the third does, in the place of the one that failed, is a matter of luck.)"""
    said = []
    monkeypatch.setenv("LOCKSMITH_CACHE", str(tmp_path))
    monkeypatch.setattr(parallel.tqdm, "write", lambda text, file: said.append(text) or TOLD.set())
    jobs = {name: {"name": name} for name in ("fails", "runs on", "third", "last")}
    with ThreadPoolExecutor(3) as pool:
        pool.profile = "smoke"
        pool.submit(TOLD.wait, 60)
        with pytest.raises(errors.BadInput, match="^waits of fails: no$"):
            parallel.run(pool, waits, jobs)
    kept = [name for name, job in jobs.items() if keeping.found(keeping.path("smoke", waits, job))]
    assert kept in (["runs on"], ["runs on", "third"])
    assert said == ["waits of fails: no; other jobs end first."]


@pytest.mark.parametrize("error, kind, said", [
    (errors.BadInput("no"), errors.BadInput, "job of 1: no"),
    (MemoryError(), MemoryError, "job of 1: less is free than it needs"),
    (OSError("no hub"), OSError, "job of 1: no hub"),
    (OSError(2, "gone", "a", None, "b"), FileNotFoundError, "a to b: gone (job of 1)"),
    (KeyError("k"), RuntimeError, "job of 1: KeyError: 'k'")])
def test_an_error_keeps_its_kind_and_names_the_job(error, kind, said):
    def job():
        """Has a name."""
    found = parallel.failed(error, job, 1)
    assert type(found) is kind
    assert (errors.refused(found) if kind is FileNotFoundError else str(found)) == said


def test_a_command_whose_worker_was_killed_says_so(capsys):
    with pytest.raises(SystemExit) as ended, parallel.workers("lab") as pool:
        errors.run(pool.submit(os._exit, 1).result)
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        "error: a worker process was killed, as the system does when memory runs out\n")
