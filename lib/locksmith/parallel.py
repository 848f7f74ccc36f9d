"""Many jobs side by side: in one-thread processes, one a core,
or one after the other right here."""

import pickle
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch
from tqdm import tqdm

from locksmith import device


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


def workers(profile: str, where: str = "auto") -> Executor:
    """A pool of one-thread processes, one a core, or a single one if `where` is or picks a GPU.

    A job of these profiles takes less time than a process takes to import torch:
    it runs right here.
    """
    if profile in ("smoke", "toy"):
        return Serial()
    n = device.workers() if device.pick(where)[0].type == "cpu" else 1
    return ProcessPoolExecutor(n, mp_context=get_context("spawn"),
                               initializer=torch.set_num_threads, initargs=(1,))


def run(pool: Executor, function: Callable, jobs: dict) -> dict:
    """name -> function(**options) for jobs, a dict name -> options, in the pool."""
    waiting = {pool.submit(function, **options): name for name, options in jobs.items()}
    done = {waiting[job]: job.result()
            for job in tqdm(as_completed(waiting), total=len(jobs), desc=function.__name__)}
    return {name: done[name] for name in jobs}
