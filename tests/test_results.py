"""results/: whole files, refused NaN, provenance that can be recomputed, one tidy table."""

import csv
import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from locksmith import errors, params, quantities, results, rules

ROOT = Path(__file__).resolve().parents[1]
FACT = {
    "family": "chain",
    "model": "base",
    "quantity": "valid_attempts",
    "value": 0.25,
    "low": 0.2,
    "high": 0.3,
    "n_problems": 10,
    "n_samples": 4,
    "seeds": [0, 1],
}


@pytest.fixture
def book(tmp_path, monkeypatch):
    """An empty book: parameters and claims, no results."""
    for name in ("params.yaml", "claims.yml", "arms.yml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_written_is_read(book):
    extra = {"curve": [{"k": 1, "value": np.float32(0.5)}], "counts": np.arange(3)}
    path = results.write("smoke", "02", [{**FACT, "value": np.float64(0.25)}], extra=extra)
    record = results.read("smoke", "02")
    assert path == Path("results/smoke/02.json")
    assert record["facts"] == [FACT]
    assert record["extra"] == {"curve": [{"k": 1, "value": 0.5}], "counts": [0, 1, 2]}


def test_provenance_is_what_it_says(book):
    weights = book / "checkpoints/smoke/chain/base/seed0/model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    folder = weights.parent.relative_to(book)
    results.write("smoke", "02", [FACT], checkpoints=[folder])
    made = results.read("smoke", "02")["provenance"]
    assert made["rules"] == rules.standing(ROOT / "claims.yml") and len(made["rules"]) > 50
    assert made["checkpoints"] == {str(folder): hashlib.sha256(b"weights").hexdigest()}
    assert made["parameters"]["rl"] == params.load("smoke")["rl"]
    assert made["parameters"]["chapter"] == params.load("smoke")["chapters"]["ch02"]
    assert made["seeds"] == params.load("smoke")["seeds"]
    assert set(made["versions"]) == {"python", "torch", "transformers", "numpy", "scipy"}


def test_a_diff_shows_a_fact_a_line(book):
    facts = [{**FACT, "quantity": "pass_at_k", "k": k} for k in (1, 2, 4)]
    extra = {
        "nested": [{"name": "x" * 150, "rows": [[1, 2], [3, 4]]}] * 2,
        "empty": {},
        "text": "a,b",
    }
    text = results.write("smoke", "02", facts, extra=extra).read_text(encoding="utf-8")
    assert json.loads(text)["extra"] == extra
    assert sum('"quantity"' in line for line in text.splitlines()) == 3


def test_same_run_same_bytes_and_nothing_of_the_machine(book):
    first = results.write("smoke", "02", [FACT], extra={"b": 1, "a": 2}).read_bytes()
    assert results.write("smoke", "02", [FACT], extra={"b": 1, "a": 2}).read_bytes() == first
    assert str(book) not in first.decode()


def test_missing_weights_are_named(book):
    (book / "empty").mkdir()
    with pytest.raises(errors.BadInput, match="empty has no model.safetensors"):
        results.write("smoke", "02", [FACT], checkpoints=["empty"])
    assert not (book / "results/smoke/02.json").exists()


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"value": math.nan}, "chain / base / valid_attempts: value is nan"),
        ({"high": np.inf}, "high is .*inf"),
        ({"value": None}, "value is None"),
        ({"value": "0.3"}, "value is '0.3'"),
        ({"low": 0.5, "high": 0.25}, "low is 0.5 and high 0.25; allowed are the two ends"),
        ({"low": None, "high": 0.25}, "low is None and high 0.25; .* None for both"),
        ({"colour": "red"}, "Condition 'colour' is unknown"),
        ({"model": "-"}, "allowed is an id of arms.yml"),
        ({"quantity": "pass_at_n"}, "'pass_at_n' is unknown; did you mean pass_at_k"),
    ],
)
def test_bad_facts_are_refused_and_the_old_file_stays(book, change, sentence):
    old = results.write("smoke", "02", [FACT]).read_bytes()
    with pytest.raises(errors.BadInput, match=sentence):
        results.write("smoke", "02", [{**FACT, **change}])
    assert (book / "results/smoke/02.json").read_bytes() == old
    assert [p.name for p in (book / "results/smoke").iterdir()] == ["02.json"]


def test_a_mean_lies_in_its_interval_and_a_cosine_need_not(book):
    outside = {"value": 0.99, "low": 0.96, "high": 0.98}
    results.write("smoke", "02", [{**FACT, **outside, "quantity": "cosine"}])
    with pytest.raises(errors.BadInput, match="value is 0.99, outside its interval"):
        results.write("smoke", "02", [{**FACT, **outside, "quantity": "pass_at_k", "k": 1}])


def test_missing_keys_duplicates_and_nan_in_extra_are_refused(book):
    with pytest.raises(errors.BadInput, match="lacks seeds"):
        results.write("smoke", "02", [{k: v for k, v in FACT.items() if k != "seeds"}])
    with pytest.raises(errors.BadInput, match="chain / base / valid_attempts stands twice"):
        results.write("smoke", "02", [FACT, {**FACT, "value": 0.3}])
    with pytest.raises(errors.BadInput, match="NaN or infinity in `extra`"):
        results.write("smoke", "02", [FACT], extra={"curve": [0.1, math.nan]})
    assert not list(book.glob("results/**/*.*"))


def test_a_file_that_is_not_whole_is_named(book):
    with pytest.raises(errors.BadInput, match="results/smoke/02.json does not exist"):
        results.read("smoke", "02")
    path = results.write("smoke", "02", [FACT])
    path.write_text(path.read_text()[:100])
    with pytest.raises(errors.BadInput, match="02.json is not whole .* delete it and run"):
        results.read("smoke", "02")
    with pytest.raises(errors.BadInput, match="02.json is not whole"):
        results.facts()
    path.write_text("{}")
    with pytest.raises(errors.BadInput, match="02.json lacks"):
        results.read("smoke", "02")


def test_a_write_that_dies_leaves_the_old_file(book, monkeypatch):
    old = results.write("smoke", "02", [FACT]).read_bytes()

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        results.write("smoke", "02", [{**FACT, "value": 0.3}])
    assert (book / "results/smoke/02.json").read_bytes() == old
    assert [p.name for p in (book / "results/smoke").iterdir()] == ["02.json"]


def test_a_record_that_is_gone_is_named_before_its_facts_are_dropped(book):
    results.write("smoke", "03", [FACT])
    gone = results.write("smoke", "02", [FACT])
    results.facts()
    results.check_table()
    gone.unlink()
    with pytest.raises(errors.BadInput, match="line 2, comes from results/smoke/02.json, which is "
                                              "not there; `git checkout` brings it back"):
        results.check_table()


def test_facts_table(book):
    results.write(
        "smoke", "02", [FACT, {**FACT, "quantity": "backtracks", "low": None, "high": None}]
    )
    many = [{**FACT, "quantity": "pass_at_k", "k": k} for k in (16, 2)]
    third = {**FACT, "model": "thinking", "value": 1 / 3, "high": 0.4}
    results.write("smoke", "00", [third, *many])
    results.write("smoke", "train/chain_base", [])
    rows = results.facts()
    with open("results/facts.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == [
        "profile", "chapter", "family", "model", "quantity", "k",  # no other condition is used
        "value", "low", "high", "n_problems", "n_samples", "seeds", "source",
    ]
    assert [(r["chapter"], r["model"], r["quantity"], r["k"]) for r in table] == [
        ("00", "base", "pass_at_k", "2"),
        ("00", "base", "pass_at_k", "16"),
        ("00", "thinking", "valid_attempts", ""),
        ("02", "base", "backtracks", ""),
        ("02", "base", "valid_attempts", ""),
    ]
    assert float(table[2]["value"]) == 1 / 3 == rows[2]["value"]
    assert table[3]["low"] == "" and table[4]["seeds"] == "0 1"
    assert table[0]["source"] == "results/smoke/00.json"
    headline = Path("results/metrics/00 thinking valid_attempts.yaml")
    assert yaml.safe_load(headline.read_text()) == {"smoke": {"chain": 0.333}}
    assert list(headline.parent.iterdir()) == [headline]
    before = Path("results/facts.csv").read_bytes()
    results.facts()
    assert Path("results/facts.csv").read_bytes() == before


def test_every_headline_is_a_fact_of_the_book():
    """Printed as a table by `dvc metrics show`, which a person can take in."""
    folder = results.ROOT / "metrics"
    files = sorted((Path(__file__).parents[1] / folder).glob("*.yaml"))
    assert [path.stem for path in files] == sorted(" ".join(name) for name in results.HEADLINES)
    for path in files:
        assert set(yaml.safe_load(path.read_text())["lab"]) == {"countdown", "chain"}


def test_dvc_shows_the_headlines_in_lines_of_120_characters():
    """A path, and a column a family, as `dvc metrics show` sets them: four blanks between."""
    families = {f"lab.{family}" for family in params.load("lab")["families"]}
    families |= {f"open.{task}" for values in params.load("open")["chapters"].values()
                 for task in values.get("tasks", ())}
    longest = max(len((results.ROOT / "metrics" / f"{' '.join(name)}.yaml").as_posix())
                  for name in results.HEADLINES)
    assert longest + sum(4 + max(len(name), 6) for name in families) <= 120


def test_the_committed_table_is_that_of_the_committed_results(tmp_path, monkeypatch):
    committed = ROOT / "results/facts.csv"
    if not committed.exists():
        pytest.skip("no results yet")
    shutil.copytree(ROOT / "results", tmp_path / "results")
    shutil.copy(ROOT / "arms.yml", tmp_path)
    monkeypatch.chdir(tmp_path)
    results.facts()
    assert (tmp_path / "results/facts.csv").read_text() == committed.read_text()


def recorder():
    record = results.Recorder("smoke", "02", seeds=[0, 1], n_problems=20, n_samples=4)
    shown = record.fact("chain", "base", "pass_at_k", np.array([0.25, 0.2, 0.3]), k=4)
    assert shown == (0.25, 0.2, 0.3)
    record.fact("chain", "base", "pass_at_k", (0.5, 0.4, 0.6), k=16, n_samples=16)
    record.fact("chain", "base", "tokens_per_answer", 31.5, seeds=[0])
    record.fact("chain", "base", "cosine", (0.9, 0.8, 1.0), against="thinking")
    return record


def test_a_recorder_keeps_what_was_measured_under_which_conditions():
    record = recorder()
    assert record.fact("chain", "base", "gap_recovered", None) is None
    assert len(record.facts) == 4
    assert record.get("chain", "base", "pass_at_k", k=16) == (0.5, 0.4, 0.6)
    assert record.get("chain", "base", "pass_at_k[k=16]") == (0.5, 0.4, 0.6)
    assert record.get("chain", "base", "pass_at_k") is None
    record.fact("chain", "thinking", "pass_at_k[k=16]", 1)
    assert record.facts.pop()["k"] == 16
    record.fact("chain", "few-shot[examples=2]", "pass_at_k[k=1]", 0.5, temperature=0.3)
    assert record.get("chain", "few-shot", "pass_at_k", k=1, examples=2, temperature=0.3)
    assert record.get("chain", "few-shot[examples=2]", "pass_at_k[k=1]", temperature=0.3)
    assert record.facts.pop()["model"] == "few-shot"
    assert record.get("chain", "base", "tokens_per_answer") == (31.5, None, None)
    table = record.frame("pass_at_k")
    assert list(table["k"]) == [4, 16] and list(table["n_samples"]) == [4, 16]
    assert table["temperature"].isna().all() and list(table["n_problems"]) == [20, 20]
    assert record.facts[2]["seeds"] == [0] and record.facts[0]["seeds"] == [0, 1]
    assert record.figure("curve").as_posix() == "results/smoke/figures/02_curve.png"


@pytest.mark.parametrize("arm, quantity, given, said", [
    ("base", "pass_at_k", {}, "Quantity pass_at_k is given without k; allowed"),
    ("bsae", "pass_at_k", {"k": 1}, "arm 'bsae' is unknown; did you mean base"),
    ("base", "pass_at_n", {"k": 1}, "Quantity 'pass_at_n' is unknown"),
    ("base", "cosine", {"agianst": "thinking"}, "Condition 'agianst' .* did you mean against"),
    ("base", "cosine", {"against": "thnking"}, "arm 'thnking' is unknown"),
])
def test_a_recorder_refuses_what_is_not_in_the_vocabulary(arm, quantity, given, said):
    with pytest.raises(errors.BadInput, match=said):
        recorder().fact("chain", arm, quantity, 0.5, **given)


@pytest.mark.parametrize("quantity, given, said", [
    ("pass_at_k", {"k": 1.7}, "k is 1.7; allowed is a whole number"),
    ("pass_at_k", {"k": True}, "k is True"),
    ("pass_at_k", {"k": None}, "k is None"),
    ("pass_at_k", {"k": "four"}, "k is 'four'"),
    ("pass_at_k", {"k": np.float64(2.5)}, "k is .*2.5"),
    ("pass_at_k[k=1.7]", {}, "k is '1.7'"),
    ("valid_attempts", {"temperature": math.nan}, "temperature is nan; allowed is a number"),
    ("valid_attempts", {"temperature": True}, "temperature is True"),
    ("valid_attempts", {"temperature": "inf"}, "temperature is 'inf'"),
    ("valid_attempts", {"position": None}, "position is None; allowed is a word or more"),
    ("valid_attempts", {"step": [3]}, r"step is \[3\]"),
])
def test_a_condition_of_another_type_is_refused_and_not_rounded(quantity, given, said):
    record = results.Recorder("smoke", "02", seeds=[0])
    with pytest.raises(errors.BadInput, match=said):
        record.fact("chain", "base", quantity, 0.5, **given)
    assert record.facts == []


def test_conditions_of_their_type_are_kept():
    given = {"k": np.int64(4), "temperature": 1, "step": "12", "position": 3}
    assert quantities.check("pass_at_k", given) == {"k": 4, "temperature": 1.0, "step": 12,
                                                    "position": "3"}


@pytest.mark.parametrize("interval", [True, "0.5", (0.5, "0", 1), (0.5, True, 1), np.bool_(True)])
def test_an_end_that_is_no_number_is_refused(interval):
    record = results.Recorder("smoke", "02", seeds=[0])
    with pytest.raises(errors.BadInput, match="is no number; allowed are value, low and high"):
        record.fact("chain", "base", "valid_attempts", interval)
