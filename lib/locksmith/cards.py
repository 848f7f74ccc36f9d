"""One model over the cards of the processes that `accelerate launch` started, one card a process.

Frozen weights are sharded over the processes (torch's FSDP2, after Zhao et al., arXiv 2304.11277,
section 3): each holds its part of every tensor, and a block is whole only while it computes. What
is trained, a LoRA adapter, stays whole everywhere; gradients are summed once a step, so that all
processes take the same step. Whatever runs a sharded model runs on all processes at the same time:
they sample the same rows, token for token the same on cards of one kind, and train on micro-batches
of their own (`turns`).

Without `accelerate launch` there is one process, and nothing here does anything.
"""

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

_alone = False


@contextmanager
def joined() -> Iterator[None]:
    """Inside, this process is one of those that `accelerate launch` started, if it did. Where one
    ends with an error the launcher ends all."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=not torch.cuda.is_available())
    yield
    if world() > 1:
        dist.destroy_process_group()


def world() -> int:
    """How many processes hold a model together."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world() > 1 else 0


def first(do: Callable[[], Any]) -> Any:
    """What do() returns, to all processes: the first one does it, alone, and the others wait. For
    what reads or writes files."""
    global _alone
    n, found = world(), [None]
    if rank() == 0:
        _alone, before = True, _alone
        try:
            found = [do()]
        finally:
            _alone = before
    if n > 1:
        dist.broadcast_object_list(found)
    return found[0]


# --- a model in parts -----------------------------------------------------------------------------

def shard(net: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Leaves each process its part of every frozen parameter of `net`, on its card; parameters that
    require gradients stay whole. `blocks`, then what else `net` has, are put together when they
    compute and taken apart again. All processes call it, with the same weights."""
    from torch.distributed.fsdp import fully_shard  # not in the oldest torch that one card needs

    gc.collect()  # an earlier sharded model is a circle of references
    place = PartialState().device
    trained = {p for p in net.parameters() if p.requires_grad}
    for p in trained:
        p.data = p.data.to(place)
    mesh = init_device_mesh(place.type, (world(),))
    for module in (*blocks, net):
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=trained)


def sharded(net: nn.Module) -> bool:
    """Whether a model has a parameter of which this process may hold a part."""
    return any(isinstance(p, DTensor) for p in net.parameters())


def local(x: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other tensor is itself."""
    return x.to_local() if isinstance(x, DTensor) else x


# --- a step in parts ------------------------------------------------------------------------------

def turns(parts: Sequence[Any]) -> list[tuple[Any, float]]:
    """[(part, weight)], those of a step's parts that are this process's: every world-th, with
    weight 1. All processes take equally many turns, as a sharded model asks: where others have one
    more, this one takes the last part with weight 0."""
    own = [(part, 1.0) for part in parts[rank()::world()]]
    missing = -(-len(parts) // world()) - len(own)
    return own + [(part, 0.0) for part in parts[-1:]] * missing


def total(value: float) -> float:
    """The sum of a number over the processes."""
    if world() == 1:
        return value
    summed = torch.tensor(value, dtype=torch.float64, device=PartialState().device)
    dist.all_reduce(summed)
    return summed.item()


def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Gives every process the sum of their gradients, in one exchange."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if world() == 1 or not grads:
        return
    summed = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(summed)
    for grad, part in zip(grads, summed.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))
