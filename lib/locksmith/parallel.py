"""Many jobs side by side: a chapter's work in one-thread processes, one a core."""

from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch
from tqdm import tqdm

from locksmith import device


def workers():
    """A pool of one-thread processes, one a core; on a GPU a single one."""
    n = device.workers() if device.pick()[0].type == "cpu" else 1
    return ProcessPoolExecutor(n, mp_context=get_context("spawn"),
                               initializer=torch.set_num_threads, initargs=(1,))


def run(pool, function, jobs):
    """name -> function(**options) for jobs, a dict name -> options, side by side in the pool."""
    waiting = {pool.submit(function, **options): name for name, options in jobs.items()}
    done = {waiting[job]: job.result()
            for job in tqdm(as_completed(waiting), total=len(jobs), desc=function.__name__)}
    return {name: done[name] for name in jobs}
