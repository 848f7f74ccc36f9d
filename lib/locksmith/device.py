"""Where the work runs: one place decides device and dtype, and whether a job fits the memory."""

import os

import torch


def pick(device: str | torch.device = "auto",
         dtype: str | torch.dtype = "auto") -> tuple[torch.device, torch.dtype]:
    """(torch.device, torch.dtype) for the whole library.

    `device`: "auto" (cuda, else mps, else cpu) or a torch device name. `dtype`: "auto", a name
    such as "bfloat16", or a torch dtype; "auto" is bfloat16 on cuda and on CPUs that multiply it
    in hardware (AMX or AVX512-BF16), else float32. ValueError if the device is not there or a
    name is unknown.
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
        fast = kind == "cuda" or (kind == "cpu" and torch.cpu._is_avx512_bf16_supported())
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
    the container's own limit."""
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + reserved
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    try:
        with open("/proc/meminfo") as lines:
            table = dict(line.split(":") for line in lines)
        free = int(table["MemAvailable"].split()[0]) * 1024
    except (FileNotFoundError, KeyError):  # not Linux: assume half of what is installed
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        with open("/sys/fs/cgroup/memory.max") as limit, \
                open("/sys/fs/cgroup/memory.current") as used:
            limit = limit.read().strip()
            if limit != "max":
                free = min(free, int(limit) - int(used.read()))
    except FileNotFoundError:
        pass  # no container limit
    return max(free, 0)


def check_memory(n_bytes: int, what: str, device: str | torch.device = "cpu") -> None:
    """MemoryError, before the job starts, if `n_bytes` for `what` do not fit on `device`."""
    free = free_bytes(device)
    if n_bytes > 0.9 * free:
        raise MemoryError(f"{what} needs {n_bytes / 2**30:.1f} GiB on {device}, but only "
                          f"{free / 2**30:.1f} GiB are free")


def workers() -> int:
    """Processes that train side by side (int): one a core, each with one thread."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
