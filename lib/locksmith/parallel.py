"""Many jobs side by side: in one-thread processes, one a core, on the machines of a cluster, or
one after the other right here."""

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
from typing import NamedTuple

import torch
from tqdm import tqdm

from locksmith import cluster, device, keeping
from locksmith.errors import BadInput

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

    Where the environment's LOCKSMITH_EXECUTOR has the address of a Ray cluster, the jobs run there.
    Otherwise those of profiles smoke and toy run right here: one takes less time than a process
    takes to import torch.
    """
    if address := os.environ.get("LOCKSMITH_EXECUTOR"):
        pool = cluster.Ray(address, _ready, gpu=where != "cpu", fresh=fresh)
    elif profile in ("smoke", "toy"):
        return Serial()
    else:
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
    _ready()
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))  # without the traceback of an idle worker
    parent = parent_process().sentinel
    if sys.platform == "linux":  # a signal ends it even where a long call lets no thread run
        fcntl.fcntl(parent, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(parent, fcntl.F_SETFL, fcntl.fcntl(parent, fcntl.F_GETFL) | os.O_ASYNC)
    if connection.wait([parent], 0):  # gone while torch was imported
        os._exit(1)
    threading.Thread(target=lambda: connection.wait([parent]) and os._exit(1), daemon=True).start()


def _ready():
    """Readies a process for a job."""
    torch.set_num_threads(1)
    _map_large_tensors()


def _map_large_tensors():
    """Lets the C library give large tensors back to the system when they are freed. Where many
    sizes come and go, its heap fills with holes: an RL run on half a billion weights grew from
    9 to 13 GB in 20 steps, and with this stays under 6."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, 4 << 20)


class InParts(NamedTuple):
    """How the jobs of a function spread further, as its attribute `in_parts`: split(**options) ->
    {what a part is called: its options}; part(**its options); join(parts, **options) -> what the
    whole job would have found."""
    split: Callable
    part: Callable
    join: Callable


def run(pool: Executor, function: Callable, jobs: dict, writes: bool = False) -> dict:
    """name -> function(**options) for jobs, a dict name -> options, in the pool.

    On a cluster the jobs of a function with `in_parts` run in parts: it may have more cores or
    GPUs than a chapter has tasks, seeds and models.
    What the jobs of a pool with a profile find is kept (`keeping`), each as soon as it is there.
    writes: they write files, so that what they return is not all they do, and nothing is kept.

    A job's error names the job (see `failed`), but for `Serial`'s; BrokenProcessPool if a process
    was killed. It is told at once and raised when the jobs that run have ended, so that what they
    find is kept; of the others those do not begin that wait on this machine.
    """
    if isinstance(pool, cluster.Ray) and hasattr(function, "in_parts"):
        return _in_parts(pool, function.in_parts, jobs, writes)
    files, done, waiting, errors = {}, {}, {}, []
    if hasattr(pool, "profile") and not writes:
        files = {name: keeping.path(pool.profile, function, options, getattr(pool, "place", None))
                 for name, options in jobs.items()}
    for name, options in jobs.items():
        if name in files and keeping.found(files[name]):
            done[name] = keeping.read(files[name])
        else:
            waiting[pool.submit(function, **options)] = name
    for job in tqdm(as_completed(waiting), total=len(jobs), initial=len(done),
                    desc=function.__name__):
        name = waiting[job]
        if job.cancelled():
            continue
        if error := job.exception():
            errors.append((failed(error, function, name), error))
            if len(errors) == 1:
                [other.cancel() for other in waiting]
                if not all(other.done() for other in waiting):
                    tqdm.write(f"{errors[0][0]}; other jobs end first.", file=sys.stderr)
            continue
        done[name] = job.result()
        if name in files:
            keeping.keep(files[name], done[name])
    for told, error in errors:
        raise told from error
    return {name: done[name] for name in jobs}


def _in_parts(pool, how, jobs, writes):
    """`run`, with every job in its parts."""
    parts = {(name, part): options for name, job in jobs.items()
             for part, options in how.split(**job).items()}
    found = run(pool, how.part, parts, writes)
    return {name: how.join([one for (of, _), one in found.items() if of == name], **job)
            for name, job in jobs.items()}


def failed(error: BaseException, function: Callable, name: object) -> BaseException:
    """A job's error as it is told: "measure of present correct 2: ...". Of the kind that it was
    where `errors.run` treats that kind in a way of its own, else a RuntimeError."""
    where = f"{function.__name__} of {_words(name)}"
    if isinstance(error, BrokenProcessPool):
        said = "" if "process pool" in str(error) else f" ({' '.join(str(error).split())[:200]})"
        return BrokenProcessPool(f"a process that ran {where}, or a job beside it, was killed, as "
                                 f"the system does when memory runs out{said}")
    if isinstance(error, BadInput):
        return BadInput(f"{where}: {error}")
    if isinstance(error, MemoryError):
        return MemoryError(f"{where}: {str(error) or 'less is free than it needs'}")
    if isinstance(error, OSError) and error.errno:  # the kind goes by the number
        return OSError(error.errno, f"{error.strerror} ({where})", error.filename, None,
                       error.filename2)
    if isinstance(error, OSError):
        return OSError(f"{where}: {error}")
    return RuntimeError(f"{where}: {type(error).__name__}: {error}")


def _words(name):
    """A job's name as people read it: "chain 3 answers 0 to 3071"."""
    return " ".join(map(_words, name)) if isinstance(name, tuple) else str(name)
