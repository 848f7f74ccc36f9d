"""The GPU script, rehearsed on the CPU: every part writes its file, and one that takes too long is
stopped with what it has."""

import json
import subprocess
import sys

import pytest
import torch
from repository import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu  # noqa: E402


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def read(out, part):
    return json.loads((out / "cpu" / f"{part}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("part", [name for name in gpu.PARTS if name != "tests"])
def test_a_part_runs_and_writes_its_file(part, out):
    content = gpu.run(part, "cpu", True, out)
    assert content == read(out, part)
    assert content["complete"] and content["tiny"] and content["card"] == "cpu"
    seconds = [value for fact in content["facts"] for name, value in fact.items()
               if name.endswith("_s") and isinstance(value, float)]
    assert seconds and min(seconds) > 0
    assert not [fact for fact in content["facts"] if any("error" in name for name in fact)]


def test_what_does_not_fit_is_said_and_the_rest_is_measured(out, monkeypatch):
    def too_large(*args, **how):
        raise MemoryError("sampling 4 rows needs 9.0 GiB")
    monkeypatch.setattr(gpu, "sampled", too_large)
    cells = [x for x in gpu.run("decode", "cpu", True, out)["facts"] if "shape" in x]
    assert [x["engine_error"] for x in cells] == ["sampling 4 rows needs 9.0 GiB"] * len(cells)
    assert all(x["generate_s"] > 0 for x in cells)


def test_the_floor_is_counted_from_the_shapes(out):
    part = gpu.Part("decode", "cpu", True, out)
    net = part.build("lab")
    weights = 4 * (4 * 128 * 128 + 3 * 128 * 384 + 2 * 128) + 128
    weights += 128 * net.config.vocab_size
    kept = 2 * 4 * 128 * 50 * 3
    assert gpu.floor(net, 3, 50, (1e9, 1e18)) == pytest.approx((weights + kept) * 2 / 1e9)
    assert gpu.floor(net, 3, 50, (1e18, 1e9)) == pytest.approx(2 * 3 * weights / 1e9)


def test_a_part_past_its_limit_is_stopped_and_the_others_go_on(tmp_path, monkeypatch):
    script = tmp_path / "part.py"
    script.write_text("import sys, time\ntime.sleep({'decode': 60}.get(sys.argv[1], 0))\n"
                      "sys.exit(sys.argv[1] == 'rl')\n", encoding="utf-8")
    monkeypatch.setattr(gpu, "__file__", str(script))
    assert gpu.run_all([], {name: 0.5 if name == "decode" else 30 for name in gpu.PARTS}) == [
        "decode", "rl"]


def test_all_of_it_takes_eight_minutes_at_most():
    assert list(gpu.LIMITS) == list(gpu.PARTS)
    assert sum(gpu.LIMITS.values()) <= 8 * 60


def test_the_shell_script_runs_the_tests_marked_gpu(out):
    done = subprocess.run(["sh", "benchmarks/gpu.sh", "tests", "--device", "cpu", "--tiny", "--out",
                           out], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fact, = read(out, "tests")["facts"]
    assert fact["test"] == "test_gpu_is_picked_and_its_memory_checked"
    assert fact["outcome"] == ("passed" if torch.cuda.is_available() else "skipped")
