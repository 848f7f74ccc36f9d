import pytest
import torch
from locksmith import device


def test_pick_names_device_and_dtype():
    where, dtype = device.pick()
    assert torch.ones(2, device=where, dtype=dtype).sum() == 2
    assert device.pick("cpu", "float32") == (torch.device("cpu"), torch.float32)
    assert device.pick("cpu", torch.bfloat16)[1] == torch.bfloat16


@pytest.mark.parametrize("bad", [("tpu", "auto"), ("cpu", "int8"), ("cpu", "nonsense")])
def test_pick_refuses_in_a_sentence(bad):
    with pytest.raises(ValueError, match="allowed are"):
        device.pick(*bad)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a cuda device")
def test_missing_device_is_named():
    with pytest.raises(ValueError, match="no cuda device"):
        device.pick("cuda")


def test_memory_check():
    free = device.free_bytes()
    assert free > 2**20
    device.check_memory(1000, "a small job")
    with pytest.raises(MemoryError, match=r"a large job needs .* GiB on cpu, but only .* GiB"):
        device.check_memory(2 * free, "a large job")


GIB = 2**30
FULL = 69 * GIB // 10, 65 * GIB // 10  # used, and of that page cache
MEMINFO = "MemTotal: 16777216 kB\nMemFree: 1048576 kB\nMemAvailable: 8388608 kB\n"  # 16, 1, 8 GiB


@pytest.fixture
def linux(tmp_path, monkeypatch):
    """A function that lays out the files of /proc and /sys/fs/cgroup that Linux would show."""
    def lay(files):
        for name, text in {"proc/meminfo": MEMINFO, **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr(device, "PROC", tmp_path / "proc")
    monkeypatch.setattr(device, "GROUPS", tmp_path / "cgroup")
    return lay


def memory(folder, limit, used, cache, version=2):
    """A group's files: its limit, what it uses (cache included), and file cache it could drop."""
    if version == 2:
        return {f"{folder}/memory.max": limit, f"{folder}/memory.current": used,
                f"{folder}/memory.stat": f"anon {used - cache}\nfile {cache}\nshmem 0\n"
                                         f"inactive_file {cache}\nactive_file 0"}
    return {f"{folder}/memory.limit_in_bytes": limit, f"{folder}/memory.usage_in_bytes": used,
            f"{folder}/memory.stat": f"cache 0\ninactive_file 0\ntotal_cache {cache}\n"
                                     f"total_inactive_file {cache}\ntotal_active_file 0"}


UNLIMITED = 9223372036854771712  # what version 1 says for none


@pytest.mark.parametrize("files, free", [
    ({}, 8),  # no groups at all: MemAvailable
    ({"proc/self/cgroup": "0::/", **memory("cgroup", "max", GIB, 0)}, 8),
    # The page cache of a container is no use of its memory.
    ({"proc/self/cgroup": "0::/", **memory("cgroup", 7 * GIB, *FULL)}, 6.6),
    (memory("cgroup", 7 * GIB, *FULL), 6.6),  # /proc/self/cgroup hidden
    ({"proc/self/cgroup": "0::/", "cgroup/memory.max": 4 * GIB, "cgroup/memory.current": 4 * GIB,
      "cgroup/memory.stat": f"inactive_file {GIB}\nactive_file {GIB}\nslab_reclaimable {GIB}"}, 3),
    # The limit of the process's own group, or of one around it; the machine's, if that is less.
    ({"proc/self/cgroup": "0::/a/b", **memory("cgroup/a/b", 3 * GIB, GIB, 0),
      **memory("cgroup/a", "max", GIB, 0)}, 2),
    ({"proc/self/cgroup": "0::/a/b", **memory("cgroup/a/b", "max", GIB, 0),
      **memory("cgroup/a", 6 * GIB, 5 * GIB, GIB)}, 2),
    ({"proc/self/cgroup": "0::/a", **memory("cgroup/a", 64 * GIB, GIB, 0)}, 8),
    ({"proc/self/cgroup": "0::/a", **memory("cgroup/b", GIB, GIB, 0)}, 8),  # another's
    ({"proc/self/cgroup": "0::/a", **memory("cgroup/a", "max", GIB, 0),
      "cgroup/a/memory.high": 2 * GIB}, 1),
    ({"proc/self/cgroup": "0::/", **memory("cgroup", GIB, 2 * GIB, 0)}, 0),  # lowered while in use
    # Version 1; in a container the group that /proc names is mounted at the top.
    ({"proc/self/cgroup": "4:memory:/docker/7f\n1:cpu:/",
      **memory("cgroup/memory", 7 * GIB, 6 * GIB, 5 * GIB, 1)}, 6),
    ({"proc/self/cgroup": "4:memory:/a/b\n0::/",
      **memory("cgroup/memory/a/b", UNLIMITED, GIB, 0, 1),
      **memory("cgroup/memory/a", 4 * GIB, 3 * GIB, 2 * GIB, 1),
      **memory("cgroup/memory", UNLIMITED, GIB, 0, 1)}, 3),
])
def test_free_memory_is_what_the_tightest_group_leaves_without_its_page_cache(linux, files, free):
    linux(files)
    assert device.free_bytes() == pytest.approx(free * GIB, rel=1e-6)


@pytest.mark.parametrize("files, cores", [
    ({}, 8),
    ({"proc/self/cgroup": "0::/", "cgroup/cpu.max": "max 100000"}, 8),
    ({"proc/self/cgroup": "0::/", "cgroup/cpu.max": "200000 100000"}, 2),
    ({"proc/self/cgroup": "0::/a/b", "cgroup/a/b/cpu.max": "max 100000",
      "cgroup/a/cpu.max": "150000 50000"}, 3),
    ({"proc/self/cgroup": "0::/", "cgroup/cpu.max": "150000 100000"}, 2),
    ({"proc/self/cgroup": "0::/", "cgroup/cpu.max": "20000 100000"}, 1),
    ({"proc/self/cgroup": "0::/", "cgroup/cpu.max": "6400000 100000"}, 8),
    ({"proc/self/cgroup": "3:cpu,cpuacct:/x\n4:memory:/x", "cgroup/cpu,cpuacct/x/cpu.cfs_quota_us":
      "400000", "cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000"}, 4),
    ({"proc/self/cgroup": "3:cpu,cpuacct:/docker/7f", "cgroup/cpu/cpu.cfs_quota_us": "300000",
      "cgroup/cpu/cpu.cfs_period_us": "100000"}, 3),
    ({"proc/self/cgroup": "3:cpu:/", "cgroup/cpu/cpu.cfs_quota_us": "-1",
      "cgroup/cpu/cpu.cfs_period_us": "100000"}, 8),
])
def test_workers_are_as_many_as_the_cores_that_a_container_may_use(
        linux, files, cores, monkeypatch):
    linux(files)
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda process: set(range(8)),
                        raising=False)
    assert device.workers() == cores


@pytest.mark.parametrize(("in_hardware", "expected"),
                         [(True, torch.bfloat16), (False, torch.float32)])
def test_products_are_in_bfloat16_only_where_hardware_has_it(monkeypatch, in_hardware, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: in_hardware)
    with device.autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs cuda")
def test_gpu_is_picked_and_its_memory_checked():
    where, dtype = device.pick()
    assert where.type == "cuda" and dtype == torch.bfloat16
    with pytest.raises(MemoryError, match="GiB on cuda"):
        device.check_memory(2**50, "a large job", where)
