"""Many jobs side by side: in one-thread processes, one a core,
or one after the other right here."""

import ctypes
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process

import torch
from tqdm import tqdm

from locksmith import device, keeping

if sys.platform == "linux":
    import fcntl

M_MMAP_THRESHOLD = -3  # of mallopt
GPU_SHARE = 12 * 2**30  # bytes: a model of 0.5 B parameters in float32 and bf16, and its training


class Serial(Executor):
    """Runs a job when it is submitted, in this process and in one thread;
    its error is raised there.

    As in a process, a job gets copies and gives one back: what does not pickle fails here as well.
    """

    def submit(self, function: Callable, /, *args: object, **options: object) -> Future:
        function, args, options = pickle.loads(pickle.dumps((function, args, options)))
        done, threads = Future(), torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            done.set_result(pickle.loads(pickle.dumps(function(*args, **options))))
        finally:
            torch.set_num_threads(threads)
        return done


def workers(profile: str, where: str = "auto", fresh: bool = False) -> Executor:
    """A pool of one-thread processes, one a core. On a GPU, if `where` is or picks one, a single
    process; under profile open, whose models are small, as many as find GPU_SHARE free.
    fresh: each job gets a process of its own, so that what a large one took is free again.

    A job of these profiles takes less time than a process takes to import torch:
    it runs right here.
    """
    if profile in ("smoke", "toy"):
        return Serial()
    n, place = device.workers(), device.pick(where)[0]
    if place.type != "cpu":
        n = max(min(n, device.free_bytes(place) // GPU_SHARE), 1) if profile == "open" else 1
    pool = ProcessPoolExecutor(n, mp_context=get_context("spawn"), initializer=_start,
                               max_tasks_per_child=1 if fresh else None)
    pool.profile = profile  # so that what its jobs find is kept
    keeping.clear()
    return pool


def _start():
    """Readies a worker. It waits for jobs on a pipe that its siblings hold open too, so it would
    not notice that the process that makes the jobs was killed; another pipe, its parent's alone,
    closes then."""
    torch.set_num_threads(1)
    _map_large_tensors()
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))  # without the traceback of an idle worker
    parent = parent_process().sentinel
    if sys.platform == "linux":  # a signal ends it even where a long call lets no thread run
        fcntl.fcntl(parent, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(parent, fcntl.F_SETFL, fcntl.fcntl(parent, fcntl.F_GETFL) | os.O_ASYNC)
    if connection.wait([parent], 0):  # gone while torch was imported
        os._exit(1)
    threading.Thread(target=lambda: connection.wait([parent]) and os._exit(1), daemon=True).start()


def _map_large_tensors():
    """Lets the C library give large tensors back to the system when they are freed. Where many
    sizes come and go, its heap fills with holes: an RL run on half a billion weights grew from
    9 to 13 GB in 20 steps, and with this stays under 6."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, 4 << 20)


def run(pool: Executor, function: Callable, jobs: dict, writes: bool = False) -> dict:
    """name -> function(**options) for jobs, a dict name -> options, in the pool.

    What the jobs of a pool with a profile find is kept (`keeping`), each as soon as it is there.
    writes: they write files, so that what they return is not all they do, and nothing is kept.

    BrokenProcessPool if one of its processes was killed.
    """
    files = {}
    if hasattr(pool, "profile") and not writes:
        files = {name: keeping.path(pool.profile, function, options)
                 for name, options in jobs.items()}
    done, waiting = {}, {}
    for name, options in jobs.items():
        if name not in files:
            waiting[pool.submit(function, **options)] = name
        elif not keeping.found(files[name]):
            waiting[pool.submit(keeping.find, files[name], function, options)] = name
    try:
        for job in tqdm(as_completed(waiting), total=len(jobs), initial=len(jobs) - len(waiting),
                        desc=function.__name__):
            done[waiting[job]] = job.result()
    except BrokenProcessPool:
        raise BrokenProcessPool(f"a process that ran {function.__name__} was killed, as the system "
                                "does when memory runs out") from None
    return {name: keeping.read(files[name]) if name in files else done[name] for name in jobs}
