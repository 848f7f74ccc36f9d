"""The page on speed shows what the benchmarks' records say, and what benchmarks/gpu.py wrote."""

import json
import re
import shutil
import sys

import pytest
from locksmith import errors
from locksmith.book import speed
from repository import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu  # noqa: E402
import waiting  # noqa: E402

CARD = "NVIDIA Example"


@pytest.fixture
def root(tmp_path):
    """What the page reads, without a GPU's records."""
    (tmp_path / "results" / "lab").mkdir(parents=True)
    records = (f"results/lab/bench_{x}.json" for x in ("engine", "train", "trl", "waiting"))
    (tmp_path / "results" / "open").mkdir()
    for name in ("arms.yml", "results/open/bench_open.json", *records):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def cells(table):
    """Rows of the Markdown tables in a text, but for heads and rules."""
    found = [[cell.strip() for cell in line.strip("|").split("|")]
             for line in table.splitlines() if line.startswith("|")]
    rules = [i for i, row in enumerate(found) if set(row[0]) in ({"-"}, {"-", ":"})]
    return [row for i, row in enumerate(found) if i not in rules and i + 1 not in rules]


def numbers(text):
    return [float(x) for x in re.findall(r"\d[\d,]*\.?\d*", text.replace(",", ""))]


def agree(shown, fact, scale=1):
    """Whether a cell shows value, low and high of a fact, rounded to two digits or more."""
    expected = [scale * fact[key] for key in ("value", "low", "high")]
    assert numbers(shown) == pytest.approx(expected, rel=0.05), (shown, fact)


def kept(root, name):
    facts = json.loads((root / f"results/lab/bench_{name}.json").read_text())["facts"]
    return {(f["family"], f["model"], f["quantity"], f.get("variant", "")): f for f in facts}


def changed(root, name, change):
    path = root / f"results/lab/bench_{name}.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


# ---- on a CPU


def test_writing_shows_the_record_of_the_engine(root):
    facts, shown = kept(root, "engine"), cells(speed.substitutions(root)["speed_engine"])
    order = [(dtype, variant) for dtype in ("float32", "bfloat16")
             for variant in ("", "fixed length", "batch1")]
    assert len(shown) == len(order)
    for (dtype, variant), row in zip(order, shown, strict=True):
        rate = facts["engine", dtype, "tokens_per_second", variant]
        assert row[0] == dtype and int(row[2]) == rate["n_samples"]
        agree(row[3], rate)
        agree(row[4], facts["engine", dtype, "speedup_vs_generate", variant])


def test_pre_training_shows_the_record_of_training(root):
    facts, shown = kept(root, "train"), cells(speed.substitutions(root)["speed_train"])
    quantities = ["tokens_per_second", "speedup_vs_autocast", "gemm_teraflops",
                  "share_of_gemm_peak", "shape_teraflops", "share_of_shape_peak"]
    for name, row in zip(quantities, shown, strict=True):
        for family, cell in zip(("countdown", "chain"), row[1:], strict=True):
            fact = facts[family, "base", name, ""]
            if name.startswith("share"):
                assert numbers(cell) == [round(100 * fact[x]) for x in ("value", "low", "high")]
            else:
                agree(cell, fact)


def test_a_step_of_rl_shows_the_record_beside_trl(root):
    facts, page = kept(root, "trl"), speed.substitutions(root)
    for way, row in zip(("trl-fp32", "trl-bf16", "trl-fp32-engine"), cells(page["speed_trl"]),
                        strict=True):
        agree(row[1], facts["rl", way, "tokens_per_second", ""])
        agree(row[2], facts["rl", way, "tokens_per_second", "ours"])
        agree(row[3], facts["rl", way, "speedup_vs_trl", ""])
    record = json.loads((root / "results/lab/bench_trl.json").read_text())
    assert page["speed"]["trl"] == record["extra"]["trl"]
    command = cells(page["speed_records"])[2][1]
    assert f"--steps {record['extra']['steps']}`" in command
    assert f"--problems {record['facts'][0]['n_problems']} " in command


@pytest.mark.parametrize("dtype, variant, low", [("float32", "", 8), ("bfloat16", "", 8),
                                                 ("float32", "fixed length", 2)])
def test_a_goal_is_judged_by_the_record(dtype, variant, low, root):
    def median(value):
        def change(record):
            fact, = [f for f in record["facts"] if f["model"] == dtype and
                     f["quantity"] == "speedup_vs_generate" and f.get("variant", "") == variant]
            fact["value"] = value
        changed(root, "engine", change)
        page = speed.substitutions(root)
        row, = [row for row in cells(page["speed_engine"])
                if row[0] == dtype and (row[1] == "equal length") == bool(variant) and
                row[1] != "one alone"]
        return row[-1], page["speed"]["goals"]
    ends = "equal length" if variant else "natural length"
    cell, said = median(low - 0.01)
    assert cell == f"{low}, not reached" and f"{dtype} at {ends}" in said
    cell, said = median(low)
    assert cell == f"{low}, reached" and f"{dtype} at {ends}" not in said


@pytest.mark.parametrize("variant, place, goal", [("ours", 1, 1), ("nothing to do", 2, 4),
                                                  ("build", 3, 15)])
def test_a_wait_is_shown_and_judged(variant, place, goal, root):
    def median(seconds):
        def change(record):
            fact, = [f for f in record["facts"] if f.get("variant") == variant]
            fact.update(value=seconds, low=seconds - 0.1, high=seconds + 0.1)
        changed(root, "waiting", change)
        row = cells(speed.substitutions(root)["speed_waiting"])[place]
        assert numbers(row[1]) == pytest.approx([seconds, seconds - 0.1, seconds + 0.1], rel=0.05)
        return row[2]
    assert median(goal - 0.01) == f"{goal}, reached"
    assert median(goal) == f"{goal}, not reached"


def test_a_librarys_own_share_of_its_import_is_counted():
    told = ("import time: self [us] | cumulative | imported package\n"
            "import time:      2000 |       5000 |   locksmith.engine\n"
            "import time:    900000 |     900000 |     torch.nn\n"
            "import time:      3000 |     905000 | locksmith\n"
            "import time:      7000 |       7000 | locksmiths.other\n")
    assert waiting.own(told) == pytest.approx(0.005)
    assert {"locksmith.engine", "locksmith.book.site"} <= set(waiting.modules())


def test_an_older_record_says_so_until_it_is_measured_again(root):
    for name, word in (("engine", "writing"), ("train", "pre-training"), ("trl", "a step of RL")):
        assert word in speed.substitutions(root)["speed"]["age"]
        changed(root, name, lambda record: record["provenance"].update(rules=["0123456789ab"]))
        assert word not in speed.substitutions(root)["speed"]["age"]
    assert speed.substitutions(root)["speed"]["age"] == ""


@pytest.mark.parametrize("name", ["engine", "train", "trl", "waiting"])
@pytest.mark.parametrize("damage", ["", "{", "[" * 100_000, '{"facts": []}', None])
def test_a_record_that_cannot_be_used_is_named(name, damage, root):
    path = root / f"results/lab/bench_{name}.json"
    path.unlink() if damage is None else path.write_text(damage)
    with pytest.raises(errors.BadInput, match=f"^[^\n]*bench_{name}.json [^\n]*$"):
        speed.substitutions(root)


def test_a_fact_that_is_not_there_is_named(root):
    changed(root, "engine", lambda record: record["facts"].pop(4))
    with pytest.raises(errors.BadInput, match=r"bench_engine.json lacks the fact engine / float32 "
                                              r"/ speedup_vs_generate\[variant=batch1\]"):
        speed.substitutions(root)
    shutil.copy(ROOT / "results/lab/bench_engine.json", root / "results/lab")
    changed(root, "trl", lambda record: record["extra"].pop("steps"))
    with pytest.raises(errors.BadInput, match="bench_trl.json: steps is None"):
        speed.substitutions(root)


# ---- on a GPU


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """What benchmarks/gpu.py writes in its tiny form on the CPU: the folder of the card."""
    out = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("decode", "compiled", "steering", "rl", "train"):
            if name == "compiled":
                patch.setattr(gpu, "generated", full)
            gpu.run(name, "cpu", True, out)
    part = gpu.Part("tests", "cpu", True, out)
    for test, outcome in (("test_a", "passed"), ("test_b", "failure"), ("test_c", "passed")):
        part.fact(test=test, outcome=outcome, s=0.5, said="")
    return out / "cpu"


def full(*args, **how):
    raise MemoryError("the cache needs 900 GiB")


@pytest.fixture
def card(rehearsed, root):
    """The same as though a GPU had written it, in its folder under results/gpu."""
    folder = root / "results" / "gpu" / "nvidia-example"
    shutil.copytree(rehearsed, folder)
    for path in folder.iterdir():
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"card": CARD, "tiny": False}))
    return folder


def facts_of(card, part):
    return json.loads((card / f"{part}.json").read_text())["facts"]


def test_without_a_record_the_page_says_so_and_names_the_command(root):
    said = speed.substitutions(root)["speed_gpu"]
    assert "Not yet measured on a GPU" in said and "sh benchmarks/gpu.sh" in said


def test_a_rehearsal_is_no_measurement(rehearsed, root):
    shutil.copytree(rehearsed, root / "results" / "gpu" / "cpu")
    assert "Not yet measured on a GPU" in speed.substitutions(root)["speed_gpu"]


def test_a_card_stands_beside_the_cpu(card, root):
    said = speed.substitutions(root)["speed_gpu"]
    assert "Not yet" not in said and said.startswith(f"**{CARD}**") and said.count(CARD) == 1
    lab, = [f for f in facts_of(card, "decode") if f.get("shape") == "lab"]
    row = next(row for row in cells(said) if row[:2] == ["lab", str(lab["batch"])])
    agree(row[3], kept(root, "engine")["engine", "bfloat16", "tokens_per_second", "fixed length"])
    for i, key in ((2, "engine_tokens_per_s"), (4, "generate_tokens_per_s"), (5, "speedup")):
        assert numbers(row[i]) == pytest.approx([lab[key]], rel=0.05)
    qwen, = [f for f in facts_of(card, "decode") if f.get("shape") == "qwen2.5-7b"]
    row = next(row for row in cells(said) if row[0] == "qwen2.5-7b")
    assert row[3] == "–" and numbers(row[2]) == pytest.approx([qwen["engine_tokens_per_s"]],
                                                               rel=0.05)
    for fact in facts_of(card, "train"):
        row = next(row for row in cells(said) if row[:2] == [f"{fact['tokens_a_step']:,}",
                                                             str(fact["seeds"])])
        assert numbers(row[2]) == pytest.approx([fact["tokens_per_s"]], rel=0.05)
        agree(row[3], kept(root, "train")["countdown", "base", "tokens_per_second", ""])


def test_the_other_parts_of_a_card_are_shown(card, root):
    said = speed.substitutions(root)["speed_gpu"]
    assert "2 passed, 1 failure; not passed: `test_b`" in said
    steering, = facts_of(card, "steering")
    for key, ends in (("steered_over_base", "steered"), ("hybrid_over_sum", "hybrid")):
        shown = [row[2 if ends == "steered" else 3] for row in cells(said)
                 if row[:2] == ["lab", str(steering["batch"])] and len(row) == 4]
        assert numbers(shown[0]) == pytest.approx(
            [steering[key], steering[f"{ends}_low"], steering[f"{ends}_high"]], rel=0.05)
    rows = [row for row in cells(said) if row[0] == "qwen2.5-1.5b"]
    assert [row[1] for row in rows] == ["first", "second", "third"]
    for row, fact in zip(rows, facts_of(card, "rl"), strict=True):
        assert numbers(" ".join(row[4:7])) == pytest.approx(
            [fact["merge_s"], fact["sampling_s"], fact["update_s"]], rel=0.05)


def test_what_did_not_fit_and_what_was_stopped_are_said(card, root):
    said = speed.substitutions(root)["speed_gpu"]
    _, compiled = said.split("compiled*")
    row = next(row for row in cells(compiled) if row[0] == "lab")
    assert row[4] == "does not fit" and row[5] == "–" and numbers(row[2])
    content = json.loads((card / "compiled.json").read_text())
    for fact in content["facts"]:
        if "generate_error" in fact:
            fact["engine_error"] = "sampling needs 900 GiB"
            for key in [key for key in fact if key.startswith("engine_") and key[-5:] != "error"]:
                del fact[key]
    (card / "compiled.json").write_text(json.dumps(content))
    _, compiled = speed.substitutions(root)["speed_gpu"].split("compiled*")
    row = next(row for row in cells(compiled) if row[0] == "lab")
    assert [row[2], *row[4:]] == ["does not fit", "does not fit", "–", "–", "–"]
    assert said.count("It was stopped before its end.") == 1  # the tests: no part ended them
    content = json.loads((card / "rl.json").read_text())
    (card / "rl.json").write_text(json.dumps(content | {"complete": False}))
    assert speed.substitutions(root)["speed_gpu"].count("It was stopped before its end.") == 2


def replaced(content, **changes):
    return json.dumps(json.loads(content) | changes)


@pytest.mark.parametrize("damage", [
    lambda text: "", lambda text: text[:-40], lambda text: "[]", lambda text: "[" * 100_000,
    lambda text: replaced(text, part="speed"), lambda text: replaced(text, card=None),
    lambda text: replaced(text, facts=[{"batch": 1}]),
    lambda text: replaced(text, facts=[{"shape": "lab", "batch": "many"}]),
    lambda text: replaced(text, facts=[{"shape": "lab", "batch": float("nan")}]),
    lambda text: replaced(text, facts=[{"copy_gb_s": 1.0}])])
def test_a_file_of_a_gpu_of_another_form_is_named(damage, card, root):
    path = card / "decode.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(errors.BadInput, match=r"^[^\n]*decode.json is not what benchmarks/gpu.py "
                                              r"writes: [^\n]+\.$"):
        speed.substitutions(root)
