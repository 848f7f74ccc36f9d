"""Where the work runs: one place decides device and dtype, and whether a job fits the memory."""

import math
import os
from pathlib import Path

import torch


def pick(device: str | torch.device = "auto",
         dtype: str | torch.dtype = "auto") -> tuple[torch.device, torch.dtype]:
    """(torch.device, torch.dtype) for the whole library.

    `device`: "auto" (cuda, else mps, else cpu) or a torch device name. `dtype`: "auto", a name
    such as "bfloat16", or a torch dtype; "auto" is bfloat16 on GPUs and CPUs that multiply it in
    hardware (Ampere and later; AMX or AVX512-BF16), else float32. ValueError if the device is not
    there or a name is unknown.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(),
             "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if there[name])
    kind = str(device).split(":")[0]
    if kind not in there:
        raise ValueError(f"device is {device!r}; allowed are auto, cuda, mps and cpu")
    if not there[kind]:
        raise ValueError(f"device is {device!r}, but this machine has no {kind} device")
    if dtype == "auto":
        fast = ((kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
                or (kind == "cpu" and torch.cpu._is_avx512_bf16_supported()))
        dtype = torch.bfloat16 if fast else torch.float32
    elif isinstance(dtype, str):
        name, dtype = dtype, getattr(torch, dtype, None)
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(
                f"dtype is {name!r}; allowed are auto, float32, bfloat16 and float16")
    return torch.device(device), dtype


def autocast(device: str | torch.device) -> torch.autocast:
    """Context in which matrices are multiplied in the dtype of `pick`: on a CPU that has bfloat16
    only in software, training in it takes ten times as long as in float32."""
    device, dtype = pick(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def free_bytes(device: str | torch.device = "cpu") -> int:
    """Bytes that a new job may take on `device` (int): free GPU memory, or available RAM within
    the limits of the containers around this process."""
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + reserved
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    available = _table(PROC / "meminfo").get("MemAvailable:")
    if available is None:  # not Linux: assume half of what is installed
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    else:
        free = available * 1024
    return max(min([free, *_free_in_groups()]), 0)


def check_memory(n_bytes: int, what: str, device: str | torch.device = "cpu") -> None:
    """MemoryError, before the job starts, if `n_bytes` for `what` do not fit on `device`."""
    free = free_bytes(device)
    if n_bytes > 0.9 * free:
        raise MemoryError(f"{what} needs {n_bytes / 2**30:.1f} GiB on {device}, but only "
                          f"{free / 2**30:.1f} GiB are free")


def workers() -> int:
    """Processes that train side by side (int): one a core that this process may use, each with one
    thread. A container's share of processor time counts as cores, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for group in _groups("cpu"):
        for quota, period in ((_number(group / "cpu.max"), _number(group / "cpu.max", 1)),
                              (_number(group / "cpu.cfs_quota_us"),
                               _number(group / "cpu.cfs_period_us"))):
            if quota and period and quota > 0:
                cores = min(cores, math.ceil(quota / period))
    return cores


# --- what Linux tells, and how it limits containers -----------------------------------------------

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def _groups(controller):
    """Folders of the control groups that this process is in, and of those around them, as far as
    they can be seen: of version 2, and of version 1's `controller` ("memory", "cpu").

    In a container the process's own group may be mounted at the top, under another name than
    /proc says; a folder that is not there limits nothing.
    """
    try:
        lines = (PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        lines = ["0::/", f"1:{controller}:/"]
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and controller not in controllers.split(","):
            continue
        for top in {GROUPS / controllers, GROUPS / (controller if controllers else "unified")}:
            own = top / path.lstrip("/")
            yield from (group for group in (own, *own.parents) if group.is_relative_to(top))


def _free_in_groups():
    """Bytes that each control group leaves under its limit. Files that were read stay in memory
    until something else needs the room, and are no use of it."""
    for group in _groups("memory"):
        stat = _table(group / "memory.stat")
        cached = sum(stat.get(f"total_{name}", stat.get(name, 0))  # total_ in version 1: all below
                     for name in ("inactive_file", "active_file", "slab_reclaimable"))
        for limit, usage in (("memory.max", "memory.current"), ("memory.high", "memory.current"),
                             ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, used = _number(group / limit), _number(group / usage)
            if most is not None and used is not None:
                yield most - max(used - cached, 0)


def _number(path, column=0):
    """A number of a file that holds one line; None if there is none, as in "max"."""
    try:
        return int(path.read_text().split()[column])
    except (OSError, ValueError, IndexError):
        return None


def _table(path):
    """{first word: number after it} of a file's lines; nothing if it is not there."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
