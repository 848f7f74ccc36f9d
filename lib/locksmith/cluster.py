"""Jobs on many machines: the pool of `parallel` over a Ray cluster.

Ray starts a job again on another machine where its own went away. Jobs write nothing that others
read but files of the repository, so every machine needs the same repository with the same
checkpoints under the same path (a shared folder) and the same Python environment.
"""

import os
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool

import torch

from locksmith.errors import BadInput


class Ray(Executor):
    """One job a core of a cluster, or one a GPU where it has some and `gpu` allows them.

    address: as `ray.init` takes it: "ray://head:10001" from outside, "head:6379" or "auto" on a
    machine of the cluster. BadInput where Ray is not installed or does not answer there.
    A job whose process is killed four times ends in BrokenProcessPool, as with `parallel`'s own.
    """

    def __init__(self, address: str, gpu: bool = True):
        try:
            import ray
        except ImportError:
            raise BadInput(f"LOCKSMITH_EXECUTOR is {address!r}, but Ray is not installed; allowed "
                           "is none, or `pip install -e .[scale]` first.") from None
        try:
            if not ray.is_initialized():
                ray.init(address, log_to_driver=False, logging_level="error",
                         runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}})
        except (ConnectionError, ValueError) as error:
            said = str(error).splitlines()[0]
            raise BadInput(f"LOCKSMITH_EXECUTOR is {address!r}, where no Ray cluster answers "
                           f"({said}); allowed is one's address, such as ray://head:10001."
                           ) from error
        gpus = int(gpu and ray.cluster_resources().get("GPU", 0) > 0)
        self.ray, self.job = ray, ray.remote(num_cpus=1, num_gpus=gpus)(_here)

    def submit(self, function: Callable, /, *args: object, **options: object) -> Future:
        done = Future()
        self.job.remote(os.getcwd(), function, args, options).future().add_done_callback(
            lambda ended: self._settle(done, ended))
        return done

    def _settle(self, done, ended):
        """Hands over what a job found or raised, as a pool of processes would."""
        error = ended.exception()
        if error is None:
            done.set_result(ended.result())
        elif isinstance(error, self.ray.exceptions.RayTaskError):
            done.set_exception(error.cause)
        else:  # its process, or the machine, was lost again and again
            done.set_exception(BrokenProcessPool(str(error)))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leaves the cluster; jobs that still run are ended."""
        self.ray.shutdown()


def _here(folder, function, args, options):
    """A job on the machine that Ray chose."""
    os.chdir(folder)
    torch.set_num_threads(1)
    return function(*args, **options)
