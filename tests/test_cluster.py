"""Jobs on a Ray cluster of two machines, on this one: the same results, also where one is lost."""

import os
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import ray
import torch
from locksmith import cluster, device, errors, keeping, loading, model, parallel, params
from locksmith.experiments import sampling
from ray.cluster_utils import Cluster
from repository import smoke_lab

QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300,
         "health_check_failure_threshold": 3, "worker_niceness": 0}


@pytest.fixture(scope="module")
def machines():
    """A head and a second machine, of one core each."""
    found = Cluster(initialize_head=True, head_node_args={
        "num_cpus": 1, "include_dashboard": False, "_system_config": QUICK})
    lost = found.add_node(num_cpus=1)
    yield found, lost
    ray.shutdown()
    found.shutdown()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "no.such.machine:6379",
                                     "banana"])
def test_an_address_where_nobody_answers(address):
    with pytest.raises(errors.BadInput, match=f"^LOCKSMITH_EXECUTOR is '{address}', where no Ray"):
        cluster.Ray(address, parallel._ready)


@pytest.fixture(scope="module")
def pool(machines):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCKSMITH_EXECUTOR", machines[0].address)
        with parallel.workers("smoke") as found:
            yield found


def draw(place, lost, **job):
    """Some rows; on the machine that is to be lost this never ends."""
    node = ray.get_runtime_context().get_node_id()
    Path(place, node).touch()
    if node == lost:
        time.sleep(600)
    return sampling.draw_rows(**job)


def shards(place, lost, **job):
    return {name: part | {"place": place, "lost": lost}
            for name, part in sampling.in_shards(4, **job).items()}


def whole(**job):
    """What runs on a cluster in the parts above."""
    raise AssertionError


whole.in_parts = parallel.InParts(
    shards, draw, lambda parts, place, lost, **job: sampling.draw.in_parts.join(parts, **job))


def test_a_run_ends_with_the_same_answers_when_a_machine_is_lost(tmp_path, machines, pool):
    """The answers of one model in three shards; the machine goes once it has one of them."""
    cluster, lost = machines
    started = tmp_path / "started"
    started.mkdir()

    def lose():
        while not (started / lost.node_id).exists():
            time.sleep(0.05)
        cluster.remove_node(lost, allow_graceful=False)

    with smoke_lab(tmp_path, families=()):
        model.save(model.build(params.load("smoke")["model"], 0),
                   Path("checkpoints/smoke/chain/base/seed0"))
        job = {"pair": loading.Pair("smoke", "chain", 0), "role": "base", "n_problems": 3, "n": 4,
               "max_new_tokens": 12}
        alone = sampling.draw(**job)
        loser = threading.Thread(target=lose, daemon=True)
        loser.start()
        there, = parallel.run(pool, whole, {("chain", 0): job | {
            "place": started, "lost": lost.node_id}}, writes=True).values()
        loser.join(10)
    assert not loser.is_alive() and len(list(started.iterdir())) == 2
    assert (there.ids, there.texts, there.grades) == (alone.ids, alone.texts, alone.grades)
    assert there.rollouts.tokens.equal(alone.rollouts.tokens)
    torch.testing.assert_close(there.rollouts.logprobs, alone.rollouts.logprobs)


def divide(by):
    if by < 0:
        raise errors.BadInput(f"by is {by}")
    return 1 / by


def test_a_job_that_fails_is_named(pool):
    jobs = {("chain", "hybrid", 3): {"by": -1}}
    with pytest.raises(errors.BadInput, match="^divide of chain hybrid 3: by is -1$"):
        parallel.run(pool, divide, jobs, writes=True)
    assert parallel._words((("chain", 0), "answers 0 to 3")) == "chain 0 answers 0 to 3"
    with pytest.raises(RuntimeError, match="^divide of 7: ZeroDivisionError: division by zero$"):
        parallel.run(pool, divide, {7: {"by": 0}}, writes=True)


def told(name):
    return os.environ.get(name), torch.get_num_threads()


def test_a_job_is_told_what_its_driver_is_told(pool, monkeypatch):
    for value in ("a", None):
        monkeypatch.setenv("LOCKSMITH_X", value) if value else monkeypatch.delenv("LOCKSMITH_X")
        found = parallel.run(pool, told, {0: {"name": "LOCKSMITH_X"}}, writes=True)
        assert found == {0: (value, 1)}


def test_what_a_job_found_is_kept_here(pool):
    job = {1: {"by": 4}}
    assert parallel.run(pool, divide, job) == {1: 0.25}
    assert keeping.read(keeping.path("smoke", divide, job[1])) == 0.25
    assert pool.place == str(device.pick())
    elsewhere = keeping.path("smoke", divide, job[1], "a GPU")
    assert elsewhere != keeping.path("smoke", divide, job[1])


def test_a_job_on_another_kind_of_device_is_refused(pool, monkeypatch):
    monkeypatch.setattr(pool, "place", "a GPU")
    with pytest.raises(errors.BadInput, match="ran on .*cpu.*, where others run on a GPU"):
        parallel.run(pool, divide, {1: {"by": 4}}, writes=True)


def test_a_pool_that_ended_takes_no_jobs_and_leaves_the_other_alone(machines, pool):
    other = parallel.workers("smoke")
    with pytest.raises(errors.BadInput, match="but this process has a pool at"):
        cluster.Ray("elsewhere:1", parallel._ready)
    job = pool.submit(divide, 2)
    other.shutdown()
    assert job.result(60) == 0.5
    with pytest.raises(RuntimeError, match="after shutdown"):
        other.submit(divide, 2)


def test_a_job_whose_process_is_killed_again_and_again_says_so(pool):
    with pytest.raises(BrokenProcessPool, match="^a process that ran _exit of 0, or a job beside"):
        parallel.run(pool, os._exit, {0: {"status": 1}}, writes=True)
