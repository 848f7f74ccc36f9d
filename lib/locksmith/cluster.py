"""Jobs on many machines: the pool of `parallel` over a Ray cluster.

Ray starts a job again on another machine where its own went away. Jobs write nothing that others
read but files of the repository, so every machine needs the same repository with the same
checkpoints under the same path (a shared folder), the same Python environment, and processors or
GPUs of one kind.
"""

import os
import socket
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool

from locksmith import device
from locksmith.errors import BadInput

OWN = "LOCKSMITH_"  # names of what the environment tells this library


class Ray(Executor):
    """One job a core of a cluster, or one a GPU where it has some and `gpu` allows them.

    address: as `ray.init` takes it: "head:6379", "auto" on a machine of the cluster, or
    "ray://head:10001" from outside. ready: called before each job. fresh: each job gets a process
    of its own. place: `device.pick()` of the cluster's processes, as text. BadInput where Ray is
    not installed or does not answer there, and for a job that ran on another kind of device. A job
    whose process is lost four times ends in BrokenProcessPool, as with `parallel`'s own.
    """

    pools, joined = 0, None  # of this process: how many are open, and the address of the cluster

    def __init__(self, address: str, ready: Callable[[], object], gpu: bool = True,
                 fresh: bool = False):
        try:
            import ray
        except ImportError:
            raise BadInput(f"LOCKSMITH_EXECUTOR is {address!r}, but Ray is not installed; allowed "
                           "is to leave it out, or to run `pip install -e '.[scale]'` first."
                           ) from None
        if Ray.pools and address != Ray.joined:
            raise BadInput(f"LOCKSMITH_EXECUTOR is {address!r}, but this process has a pool at "
                           f"{Ray.joined!r}; allowed is one cluster at a time.")
        try:
            host, _, port = address.removeprefix("ray://").rpartition(":")
            if port.isdigit():  # Ray itself would try for minutes
                socket.create_connection((host, int(port)), 5).close()
            ray.init(address, log_to_driver=False, logging_level="error", ignore_reinit_error=True,
                     runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}})
        except (OSError, RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())[:200]
            raise BadInput(f"LOCKSMITH_EXECUTOR is {address!r}, where no Ray cluster answers "
                           f"({said}); allowed is one's address, such as head:6379, or auto."
                           ) from error
        Ray.pools, Ray.joined = Ray.pools + 1, address
        gpus = int(gpu and ray.cluster_resources().get("GPU", 0) > 0)
        self.ray, self.ready, self.refs, self.place = ray, ready, set(), None
        self.raised, kinds = ray.exceptions.RayTaskError, ray.exceptions
        self.lost = (kinds.WorkerCrashedError, kinds.NodeDiedError, kinds.OutOfMemoryError,
                     kinds.ObjectLostError)
        self.job = ray.remote(num_cpus=1, num_gpus=gpus, max_calls=int(fresh))(_here)
        self.place = str(self.submit(device.pick).result())

    def submit(self, function: Callable, /, *args: object, **options: object) -> Future:
        if self.ray is None:
            raise RuntimeError("cannot schedule new futures after shutdown")
        done = Future()
        done.set_running_or_notify_cancel()
        given = {name: value for name, value in os.environ.items()
                 if name.startswith((OWN, "HF_")) and name != "LOCKSMITH_EXECUTOR"}
        ref = self.job.remote(os.getcwd(), given, self.ready, function, args, options)
        self.refs.add(ref)
        ref.future().add_done_callback(lambda ended: self._settle(done, ref, ended))
        return done

    def _settle(self, done, ref, ended):
        """Hands over what a job found or raised, as a pool of processes would."""
        self.refs.discard(ref)
        try:
            place, found = ended.result()
            if self.place not in (None, place):
                raise BadInput(f"a job ran on {place}, where others run on {self.place}; allowed "
                               "is a cluster of one kind.")
            done.set_result(found)
        except self.raised as error:
            done.set_exception(error.cause)
        except self.lost as error:
            done.set_exception(BrokenProcessPool(str(error)))
        except BaseException as error:  # whatever it is, who waits for the job has to learn it
            done.set_exception(error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends this pool; jobs that still run are ended. The last pool leaves the cluster."""
        if self.ray is None:
            return
        for ref in list(self.refs):
            self.ray.cancel(ref)
        Ray.pools -= 1
        if not Ray.pools:
            self.ray.shutdown()
        self.ray = None


def _here(folder, given, ready, function, args, options):
    """A job on the machine that Ray chose: (its device, what it found)."""
    os.chdir(folder)
    for name in [name for name in os.environ if name.startswith(OWN) and name not in given]:
        del os.environ[name]
    os.environ.update(given)
    ready()
    return str(device.pick()), function(*args, **options)
