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
