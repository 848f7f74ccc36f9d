"""claims.py: rules judged against brute force, verdicts against every outcome there is."""

import functools
import itertools
import json
import random
import re
import shutil
from pathlib import Path

import pytest
import yaml
from locksmith import errors, quantities, results, rules
from locksmith.book import claims

ROOT = Path(__file__).parents[1]
INTERVALS = [(low, high) for low in range(4) for high in range(low, 4)]


def lookup_in(table):
    return lambda term: table[term["model"], term["quantity"]]


def part(rule, kind="core"):
    return {"id": "p", "kind": kind, "says": "s", "rule": rule, "parsed": claims.parse(rule, "02"),
            "digest": "0" * 12}


# ---- one part


@pytest.mark.parametrize("sign", ["<", "<=", ">", ">="])
@pytest.mark.parametrize("factor, plus", [(1, 0), (2, 0), (0.5, 0), (1, 1), (1, -1)])
def test_outcome_is_what_all_points_of_the_two_intervals_say(sign, factor, plus):
    left_end, right_end = ("low", "high") if ">" in sign else ("high", "low")
    change = f" {'+' if plus > 0 else '-'} {abs(plus)}" if plus else ""
    rule = f"a.x.{left_end} {sign} {factor} * b.y[k=4].{right_end}{change}"
    compare = {"<": lambda x, y: x < y, "<=": lambda x, y: x <= y,
               ">": lambda x, y: x > y, ">=": lambda x, y: x >= y}[sign]
    for a, b in itertools.product(INTERVALS, INTERVALS):
        points = [compare(x, factor * y + plus)
                  for x in range(a[0], a[1] + 1) for y in range(b[0], b[1] + 1)]
        expected = "holds" if all(points) else "undecided" if any(points) else "refuted"
        outcome, _ = claims.judge_part(part(rule), lookup_in({("a", "x"): a, ("b", "y[k=4]"): b}))
        assert outcome == expected, (rule, a, b)


def test_number_on_either_side_and_the_sentence_shows_the_intervals():
    table = lookup_in({("a", "x"): (0.2, 0.4)})
    assert claims.judge_part(part("a.x.high < 0.5"), table) == ("holds", "0.20 to 0.40, below 0.5")
    assert claims.judge_part(part("0.3 <= a.x.low"), table) == (
        "undecided", "the interval 0.20 to 0.40 straddles 0.3")
    assert claims.judge_part(part("a.x.low > 0.4"), table) == (
        "refuted", "0.20 to 0.40, at most 0.4")
    table = lookup_in({("a", "x"): (0.2, 0.4), ("b", "x"): (0.1, 0.1)})
    assert claims.judge_part(part("a.x.low > 4 * b.x.high"), table) == (
        "refuted", "0.20 to 0.40, at most 0.4")
    told = claims.judge_part(part("a.x.low > 3 * b.x.high"), table)[1]
    assert told == "0.20 to 0.40 overlaps 0.3"


def test_a_paired_difference_is_a_fact_like_any_other():
    rule = part("hybrid.gain[against=bias-only].low > 0")
    name = ("hybrid", "gain[against=bias-only]")
    for ends, outcome in ((0.01, 0.2), "holds"), ((-0.1, 0.2), "undecided"), ((-0.1, 0), "refuted"):
        assert claims.judge_part(rule, lookup_in({name: ends}))[0] == outcome


def test_parse_reads_every_piece_of_a_term():
    rule = "02:base.cell_x[against=thinking].low\n  >= 0.5 * b-c.pass_at_k[k=64].high - 0.05"
    left, sign, right = claims.parse(rule, "00")
    assert [left[key] for key in ("chapter", "model", "quantity")] == [
        "02", "base", "cell_x[against=thinking]"]
    assert (right["chapter"], right["model"], right["quantity"]) == ("00", "b-c", "pass_at_k[k=64]")
    assert (sign, right["factor"], right["plus"]) == (">=", 0.5, -0.05)
    assert (left["factor"], left["plus"]) == (1, 0)


@pytest.mark.parametrize("rule, said", [
    ("a.x.low", "must hold one of"),
    ("a.x.low > b.x.high > 0", "must hold one of"),
    ("a.x.low == 1", "must hold one of"),
    ("a.x.high > 1", "only .low is unfavourable"),
    ("a.x.high < b.x.high", "only .low is unfavourable"),
    ("a.x.value > 1", "neither a number nor"),
    ("a.x.low > -1 * b.x.high", "neither a number nor"),
    ("__import__('os').getcwd() > 1", "neither a number nor"),
    ("1 > 0.5", "at least one side must be a fact"),
])
def test_a_rule_of_another_form_is_refused_in_one_sentence(rule, said):
    with pytest.raises(claims.ClaimsError, match=re.escape(said)) as caught:
        claims.parse(rule, "02")
    assert "\n" not in str(caught.value)


# ---- one claim


TRUTH = """
valid     core      because   literal   verdict
fails     any       any       any       cannot tell
holds     refuted   any       any       refuted
holds     open      any       any       undecided
holds     holds     refuted   any       holds, but not because of …
holds     holds     open      any       holds in part
holds     holds     holds     fails     holds in part
holds     holds     holds     holds     holds
"""
RANK = {"refuted": 0, "undecided": 1, "cannot tell": 1, "holds, but not because of …": 2,
        "holds in part": 3, "holds": 4}
BETTER = {"refuted": ("undecided", "holds"), "undecided": ("holds",), "holds": (), "missing": ()}


def expected(kinds, outcomes):
    """The verdict of TRUTH: each kind's parts are summed up,
    then the table is read line by line."""
    def fits(kind, cell):
        found = {o for k, o in zip(kinds, outcomes, strict=True) if k == kind}
        return {"any": True, "refuted": "refuted" in found, "holds": found <= {"holds"},
                "fails": bool(found - {"holds"}),
                "open": bool(found & {"undecided", "missing"}) and "refuted" not in found}[cell]
    order = TRUTH.split("\n")[1].split()[:4]
    found = {line.split(maxsplit=4)[4] for line in TRUTH.strip().split("\n")[1:]
             if all(map(fits, order, line.split()))}
    assert len(found) == 1, (outcomes, found)  # the lines exclude one another and leave no gap
    return found.pop()


def judged_parts(kinds, outcomes):
    return [{"id": str(i), "kind": kind, "outcome": outcome}
            for i, (kind, outcome) in enumerate(zip(kinds, outcomes, strict=True))]


@pytest.mark.parametrize("kinds", [claims.KINDS, tuple(kind for kind in claims.KINDS for _ in "12"),
                                   ("core",), ("core", "core", "because", "because", "because")])
def test_every_combination_has_the_verdict_of_the_table(kinds):
    for outcomes in itertools.product(claims.MARKS, repeat=len(kinds)):
        word, deciding = claims.verdict(judged_parts(kinds, outcomes))
        assert word == expected(kinds, outcomes), outcomes
        assert bool(deciding) == (word != "holds")
        assert len({part["kind"] for part in deciding}) <= (2 if word == "holds in part" else 1)


def test_a_better_part_never_makes_a_verdict_worse():
    """Beside it: a better core never leads to cannot tell, and only valid parts lead out of it."""
    kinds = tuple(kind for kind in claims.KINDS for _ in "12")
    for outcomes in itertools.product(claims.MARKS, repeat=len(kinds)):
        before = claims.verdict(judged_parts(kinds, outcomes))[0]
        for i, kind in enumerate(kinds):
            for better in BETTER[outcomes[i]]:
                after = claims.verdict(judged_parts(
                    kinds, (*outcomes[:i], better, *outcomes[i + 1:])))[0]
                if kind == "valid":
                    assert before == "cannot tell"
                else:
                    assert RANK[before] <= RANK[after], (outcomes, i, better)
                    assert (before == "cannot tell") == (after == "cannot tell")


@pytest.mark.parametrize("kinds", [(), ("literal",), ("because",), ("valid", "literal")])
def test_without_a_core_part_nothing_can_be_told(kinds):
    for outcomes in itertools.product(claims.MARKS, repeat=len(kinds)):
        assert claims.verdict(judged_parts(kinds, outcomes))[0] == "cannot tell"


def rows_of(chapter, **ends):
    """A facts table of the lab, family f: arm -> (low, high) of the quantity x."""
    return [{"profile": "lab", "chapter": chapter, "family": "f", "model": name, "quantity": "x",
             "low": low, "high": high, "seeds": 3, "n_problems": 100}
            for name, (low, high) in ends.items()]


def verdict_of(parts, rows, families=("f",)):
    return claims.verdicts(one_claim(parts, families), rows, {}, profiles=["lab"])[0]


def one_claim(parts, families=("f",)):
    return {"needs": {"default": {"seeds": 3, "problems": 100}},
            "families": {"lab": list(families)},
            "before": {"edition": 1, "commit": "0" * 40},
            "claims": [{"id": "c", "chapter": "02", "parts": parts}]}


def test_a_family_of_which_no_core_part_is_asked_is_not_judged_by_the_rest():
    core = {**part("a.x.low > 0.2"), "families": ["g"]}
    found = verdict_of([core, {**part("a.x.low > 0.2", "literal"), "id": "q"}],
                       rows_of("02", a=(0.5, 0.6)))
    assert (found["verdict"], found["reason"]) == ("cannot tell", "no core part is tested here")


def test_what_was_not_measured_properly_refutes_nothing():
    for ends in ((float("nan"), 0.1), (0.0, float("nan")), (float("nan"), float("nan"))):
        found = verdict_of([part("a.x.low > 0.2")], rows_of("02", a=ends))
        assert found["verdict"] == "undecided"
        assert found["parts"][0]["numbers"] == "a x was not measured properly"


def test_a_claim_that_reads_other_chapters_alone_is_judged_by_those():
    parts = [part("00:a.x.low > 0.2"), {**part("05:b.x.low > 0.2"), "id": "q"}]
    rows = rows_of("00", a=(0.5, 0.6)) + rows_of("05", b=(0.0, 0.1))
    assert verdict_of(parts, rows)["verdict"] == "refuted"
    assert verdict_of(parts, rows_of("00", a=(0.5, 0.6)))["verdict"] == "undecided"
    assert verdict_of(parts, rows_of("02", a=(0.5, 0.6)))["reason"] == (
        "chapter 00 has no results for it; chapter 05 has no results for it")


def test_a_claim_says_where_it_cannot_be_tested_until_it_is():
    claim = next(c for c in book()["claims"] if "open" in c.get("untested", {}))
    one = {**book(), "claims": [claim]}
    (here, *_), (there, *_) = (
        claims.of(claims.verdicts(one, [], {}, ["lab", "open"]), claim["id"], profile)
        for profile in ("lab", "open"))
    assert there["verdict"] == here["verdict"] == "not tested yet"
    assert there["reason"] == claim["untested"]["open"] != here["reason"]
    term = next(t for p in claim["parts"] for t in p["parsed"] if isinstance(t, dict))
    row = {**rows_where_all_holds()[0], "profile": "open", "family": "sums",
           **{key: term[key] for key in ("chapter", "model", "quantity")}}
    measured = claims.verdicts(one, [row], {}, ["open"])[0]
    assert measured["reason"] != claim["untested"]["open"]



def test_improving_the_interval_of_a_refuted_core_never_ends_in_cannot_tell():
    """Random claims, whose parts may read the same facts as the core, on random intervals."""
    chance, seen = random.Random(0), set()
    names = ["a", "b", "c"]
    for _ in range(4000):
        parts = [{**part(f"{names[0]}.x.low >= {chance.choice([0.3, 0.5])}"), "id": "core",
                  "families": ["f"]}]
        for i, kind in enumerate(chance.choices(claims.KINDS, k=4)):
            one, other = chance.sample(names[kind == "valid":], 2)
            rule = chance.choice([f"{one}.x.high < {other}.x.low", f"{one}.x.low > 0.2"])
            parts.append({**part(rule, kind), "id": str(i), "cause": "it", "rival": "another"})
        ends = {name: sorted(chance.choices(range(11), k=2)) for name in names}

        def judge(ends, parts=parts):
            rows = [{"profile": "lab", "chapter": "02", "family": "f", "model": name,
                     "quantity": "x", "low": low / 10, "high": high / 10, "seeds": 3,
                     "n_problems": 100} for name, (low, high) in ends.items()]
            return claims.verdicts(one_claim(parts), rows, {})[0]["verdict"]
        if judge(ends) == "refuted":
            low, high = ends["a"]
            better = judge({**ends, "a": (low + chance.randint(0, 10), high + 10)})
            assert better != "cannot tell"
            seen.add(better)
    assert seen >= {"refuted", "undecided", "holds", "holds in part"}


@pytest.mark.parametrize("found, word", [
    (["holds", "holds"], "holds"),
    (["holds", "refuted"], "holds in part"),
    (["holds", "cannot tell"], "holds in part"),
    (["holds in part", "holds"], "holds in part"),
    (["holds, but not because of …", "holds"], "holds in part"),
    (["holds, but not because of …", "undecided"], "holds, but not because of …"),
    (["holds, but not because of …", "refuted"], "refuted"),
    (["refuted", "cannot tell"], "refuted"),
    (["undecided", "cannot tell"], "undecided"),
    (["not tested yet", "not tested yet"], "not tested yet"),
])
def test_a_claim_that_holds_in_one_family_is_an_anecdote(found, word):
    assert claims.overall(found) == word == claims.overall(found[::-1])


def test_a_better_family_never_makes_the_overall_verdict_worse():
    for families in itertools.product(RANK, repeat=3):
        before = claims.overall(families)
        for better in (word for word in RANK if RANK[word] > RANK[families[0]]):
            after = claims.overall((better, *families[1:]))
            assert RANK[before] <= RANK[after], (families, better)
            assert before != "refuted" or after != "cannot tell" or better == "cannot tell"


# ---- the book's own claims


@functools.cache
def book():
    return claims.load(ROOT / "claims.yml")


def deciding(parsed, wanted):
    """Facts {(model, quantity): (low, high)} from a coarse grid that give the part this outcome."""
    names = {(t["model"], t["quantity"]) for t in (parsed[0], parsed[2]) if isinstance(t, dict)}
    for ends in itertools.product([(-1e6, -1e6), (0, 0), (0.5, 0.5), (1, 1), (1e6, 1e6)],
                                  repeat=len(names)):
        table = dict(zip(sorted(names), ends, strict=True))
        if claims.judge_part({"parsed": parsed}, lookup_in(table))[0] == wanted:
            return table
    return None


def rows_where_all_holds(seeds=3, n_problems=500):
    """A facts table in which every part of every claim of the lab holds."""
    values = {}

    def put(chapter, model, quantity, value):
        values[chapter, model, quantity] = value
    for claim in book()["claims"]:
        for p in claim["parts"]:
            for term in p["parsed"]:
                if isinstance(term, dict):
                    put(term["chapter"], term["model"], term["quantity"], 0.0)
    high = [("00", "thinking", "gain", 0.5), ("00", "base", "valid_attempts", 0.95),
            ("00", "thinking", "strategy_share", 0.9), ("00", "thinking", "gain_when", 0.4),
            ("00", "thinking", "kl[position=decision]", 2.0),
            ("01", "thinking-decides-base-executes", "gap_recovered", 0.9),
            ("01", "hybrid", "gap_recovered", 0.9), ("01", "hybrid", "steered_share", 0.1),
            ("01", "probe", "gap_recovered", 0.7), ("03", "sft-right", "gap_recovered", 0.4),
            ("03", "critiques", "gap_recovered", 0.9), ("05", "chosen-key", "gap_recovered", 0.8),
            ("03", "rl-one-problem", "gap_recovered", 0.7), ("02", "base", "trace_pass_at_k[k=64]",
                                                             0.95),
            ("02", "thinking", "trace_pass_at_k[k=1]", 0.6),
            ("02", "thinking", "trace_pass_at_k[k=64]", 0.96),
            ("02", "thinking-traces", "logprob_lead[against=base-traces]", 0.1),
            ("02", "shuffled-traces", "logprob_lead[against=thinking-traces]", -2.0),
            ("02", "corrupted-traces", "logprob_lead[against=thinking-traces]", -0.9),
            ("02", "base", "behaviour_sequence_matches[against=thinking]", 0.8),
            ("02", "base", "trace_matches[against=thinking]", 0.8),
            ("02", "power-sampling", "gap_recovered", 0.8),
            ("04", "base", "decodable_share", 0.8), ("04", "base-vector",
                                                    "behaviour_slope[on=thinking]", 0.4),
            ("04", "base", "cosine[against=thinking, variant=halves]", 0.9),
            ("05", "prefix", "gap_recovered", 0.6), ("05", "vector-rl", "gap_recovered", 0.9),
            ("05", "cognitive-tools", "gap_recovered", 0.7), ("05", "lora-rl", "gap_recovered",
                                                             0.7),
            ("05", "sft-solved", "gap_recovered[examples=10]", 0.7),
            ("07", "thinking", "gain", 0.5), ("07", "base", "valid_attempts[exposure=0]", 0.95),
            ("07", "base", "contrast_share[exposure=0]", 0.2),
            ("07", "thinking", "gain_share[exposure=0.1]", 0.8),
            ("07", "thinking", "gain_slope", 0.3), ("07", "harder-problems", "gain_share", 0.6),
            ("07", "thinking", "gain_when[pretraining=0.1]", 0.2),
            ("07", "edge-exposed-after-rl", "gain_lead[against=rl-at-edge, variant=edge]", 0.2)]
    paired = ("gap_difference", "auroc_difference", "slope_difference", "verdicts_over_constant")
    high += [(*key, 0.3) for key in values if key[2].startswith(paired)
             and key[1] not in ("thinking", "many-critiques")]
    high += [(claim["chapter"], "thinking", "pass_at_k[k=1]", 0.7) for claim in book()["claims"]
             if claim["chapter"] not in ("00", "04", "07")]
    high += [("01", "thinking", "gap_difference[against=thinking-decides-base-executes]", 0.1)]
    for chapter, model, quantity, value in high:
        assert (chapter, model, quantity) in values, (chapter, model, quantity)
        put(chapter, model, quantity, value)
    return [{"profile": "lab", "chapter": chapter, "family": family, "model": model,
             "quantity": quantity, "value": value, "low": value - 0.004, "high": value + 0.004,
             "n_problems": n_problems, "n_samples": 256, "seeds": seeds}
            for (chapter, model, quantity), value in values.items()
            for family in book()["families"]["lab"]]


def recorded(row):
    """A row of claims.facts as results.write keeps it, its ends within what the quantity can be."""
    quantity, conditions = quantities.parse(row["quantity"])
    least, most = quantities.QUANTITIES[quantity][0]
    ends = {key: min(max(row[key], least), most) for key in ("value", "low", "high")}
    return {key: row[key] for key in results.FACT} | conditions | ends | {
        "quantity": quantity, "seeds": list(range(row["seeds"]))}


def record(profile, chapter, facts, rules):
    """The text of a file of results/, as results.write makes it."""
    made_from = {"parameters": {}, "seeds": [0], "rules": rules, "checkpoints": {}, "versions": {}}
    return json.dumps({"profile": profile, "chapter": chapter, "provenance": made_from,
                       "facts": facts, "extra": {}})


def test_every_rule_can_hold_and_can_be_refuted():
    for claim in book()["claims"]:
        for p in claim["parts"]:
            for wanted in ("holds", "refuted"):
                assert deciding(p["parsed"], wanted), (claim["id"], p["id"], wanted)


def test_all_parts_holding_is_a_claim_that_holds_and_one_broken_part_shows_in_its_verdict():
    rows = rows_where_all_holds()
    judged = claims.verdicts(book(), rows, {})
    assert {r["verdict"] for r in judged} == {"holds"}
    for claim in book()["claims"]:
        for p in claim["parts"]:
            bad = deciding(p["parsed"], "refuted")
            chapters = {(t["model"], t["quantity"]): t["chapter"] for t in p["parsed"]
                        if isinstance(t, dict)}
            broken = [{**r, **dict(zip(("low", "high"), bad[name], strict=True))}
                      if (name := (r["model"], r["quantity"])) in bad
                      and chapters[name] == r["chapter"] else r for r in rows]
            found = {r["verdict"] for r in claims.verdicts(book(), broken, {})
                     if r["claim"] == claim["id"]}
            lab = set(book()["families"]["lab"])
            assert ("holds" in found) == bool(lab - set(p.get("families", lab))), p["id"]
            if "families" not in p and p["kind"] in ("valid", "core"):
                # A fact may serve two parts: what breaks a core part may break a valid one too.
                wanted = {"valid": {"cannot tell"}, "core": {"refuted", "cannot tell"}}[p["kind"]]
                assert found <= wanted, (claim["id"], p["id"])


def test_a_part_asked_of_one_family_counts_there_alone():
    rows = rows_where_all_holds()
    claim = next(c for c in book()["claims"] if c["id"] == "hybrid-steering")
    broken = [{**r, "low": 0.9, "high": 1.0} if r["model"] == "twin-vectors" else r for r in rows]
    words = {r["family"]: r["verdict"] for r in claims.verdicts({**book(), "claims": [claim]},
                                                                broken, {})}
    assert words == {"countdown": claims.NOT_BECAUSE, "chain": "holds"}
    judged = claims.verdicts({**book(), "claims": [claim]}, rows, {})
    assert "not tested here" in claims.section(claim, judged, {"lab": "In the lab"})


def test_missing_facts_few_seeds_and_few_problems_support_nothing():
    rows = rows_where_all_holds()
    for claim in book()["claims"]:
        reads = {(t["chapter"], t["model"], t["quantity"])
                 for p in claim["parts"] for t in p["parsed"] if isinstance(t, dict)
                 and "chain" in p.get("families", ["chain"])}
        for fact in reads:
            fewer = [r for r in rows if r["family"] != "chain"
                     or (r["chapter"], r["model"], r["quantity"]) != fact]
            judged = claims.verdicts({**book(), "claims": [claim]}, fewer, {})
            words = {row["family"]: row["verdict"] for row in judged}
            assert words["countdown"] == "holds" != words["chain"], fact
            assert " ".join(fact[1:]) in " ".join(p["numbers"] for p in judged[-1]["parts"])
    for few in (rows_where_all_holds(seeds=2), rows_where_all_holds(n_problems=79)):
        judged = claims.verdicts(book(), few, {})
        assert {r["verdict"] for r in judged} == {"cannot tell"}
        assert "are needed" in judged[0]["parts"][0]["numbers"]


def test_a_chapter_without_results_is_not_tested_yet():
    rows = [r for r in rows_where_all_holds() if r["chapter"] in ("00", "02")]
    words = {(r["claim"], r["verdict"]) for r in claims.verdicts(book(), rows, {})}
    assert ("base-already-samples", "holds") in words
    assert ("pretraining-acquires", "undecided") in words  # chapter 1 has not been run
    assert {("hybrid-steering", "not tested yet"), ("one-problem", "not tested yet"),
            ("vectors-before-rl", "not tested yet"), ("cheaper-keys", "not tested yet")} <= words
    assert claims.verdicts(book(), [], {}) == []


def test_families_of_their_own_are_judged_but_not_for_want_of_the_labs():
    rows = [{**r, "profile": "paper", "family": "gsm"} for r in rows_where_all_holds()
            if r["family"] == "chain" and r["model"] in ("base", "guess")]
    judged = [r for r in claims.verdicts(book(), rows, {}) if r["claim"] == "base-already-samples"]
    assert [(r["family"], r["verdict"]) for r in judged] == [("gsm", "cannot tell")]
    assert "chapter 02 has no thinking pass_at_k[k=1]" in judged[0]["reason"]


def test_a_claim_reads_another_chapter_where_it_is_measured_there():
    """On real weights chapter 6 measures what chapter 0 measures in the lab, on one of its
    families."""
    def row(family, model, quantity, value):
        return {"profile": "open", "chapter": "06", "family": family, "model": model,
                "quantity": quantity, "value": value, "low": value - 0.1, "high": value + 0.1,
                "seeds": 3, "n_problems": 100}
    rows = [row("sums", "base", "valid_attempts", 0.5), row("sums", "thinking", "gain", 0.4),
            row("sums", "random-reward", "gap_recovered", 0.9),
            row("sums_gemma", "base", "valid_attempts", 0.2)]
    judged = claims.verdicts(book(), rows, {}, profiles=["lab", "open"])
    found = claims.of(judged, "pretraining-acquires", "open")
    assert [(r["family"], r["chapter"]) for r in found] == [("sums", "06")]
    outcomes = {p["id"]: (p["outcome"], p["numbers"]) for p in found[0]["parts"]}
    assert outcomes["gap"][0] == "holds" and outcomes["skill-before"][0] == "refuted"
    assert outcomes["reward"] == ("refuted", "0.80 to 1.00, at least 0.5")
    assert outcomes["what-was-there"][1] == "chapter 06 has no absent-after-rl gap_recovered"
    told = [claims.answer(claims.of(judged, "pretraining-acquires", profile))[0]
            for profile in ("lab", "open")]
    assert told == ["not tested yet", "cannot tell"]


def test_a_rule_that_is_younger_than_a_run_is_not_judged_by_it(tmp_path):
    """Edition 1's results know no rule of edition 2; one changed number makes one rule younger."""
    for name in ("claims.yml", "arms.yml"):
        shutil.copy(ROOT / name, tmp_path)
    rows = [r for r in rows_where_all_holds() if r["chapter"] in ("02", "04", "05")]
    (tmp_path / "results/lab").mkdir(parents=True)
    for chapter, made_under in (("02", rules.standing(ROOT / "claims.yml")), ("04", [])):
        (tmp_path / f"results/lab/{chapter}.json").write_text(
            record("lab", chapter, [], made_under))

    def words():
        known = claims.known_rules(rows, tmp_path)
        judged = claims.verdicts(claims.load(tmp_path / "claims.yml"), rows, known)
        return {r["claim"]: r for r in judged if r["family"] == "chain"}
    found = words()
    assert found["base-already-samples"]["verdict"] == "holds"
    for claim, old in (("vectors-before-rl", ["04"]), ("cheaper-keys", ["05"])):  # 05: no file
        assert found[claim]["verdict"] in ("not tested yet", "cannot tell")
        assert found[claim]["old"] == old
    assert found["vectors-before-rl"]["reason"].startswith(
        "chapter 04 was run before these rules were written, under those of [edition 1](https://")
    text = (tmp_path / "claims.yml").read_text()
    said = "64 guesses contain a sound trace"
    assert text.count(said) == 1
    (tmp_path / "claims.yml").write_text(text.replace(  # words alone may change
        said, "64 guesses hold a sound trace"))
    assert words()["base-already-samples"]["verdict"] == "holds"
    rule = "guess.trace_pass_at_k[k=64].high < 0.05"
    assert text.count(rule) == 1
    (tmp_path / "claims.yml").write_text(text.replace(rule, rule.replace("0.05", "0.5")))
    after = words()["base-already-samples"]
    assert after["verdict"] == "holds in part" and after["old"] == ["02"]
    assert {p["numbers"] for p in after["parts"] if p["outcome"] == "missing"} == {
        "chapter 02 was run before this rule was written"}
    # A claim that came later, beside rules that the run knew.
    (tmp_path / "claims.yml").write_text(text.replace("id: base-already-samples", "id: later"))
    assert (words()["later"]["verdict"], words()["later"]["reason"]) == (
        "not tested yet", "chapter 02 was run before these rules were written")


def test_no_result_of_the_book_is_judged_by_a_rule_that_it_did_not_know():
    rows = claims.facts(ROOT / "results" / "facts.csv")
    known = claims.known_rules(rows, ROOT)
    judged = claims.verdicts(book(), rows, known, ["lab", "open"])
    for row in judged:
        for p in row["parts"]:
            reads = {(row["profile"], claims.read_in(claim, row["profile"], t["chapter"]))
                     for claim in book()["claims"] if claim["id"] == row["claim"]
                     for t in p["parsed"] if isinstance(t, dict)}
            if any(p["digest"] not in known.get(where, {p["digest"]}) for where in reads):
                assert p["outcome"] in ("missing", None), (row["claim"], p["id"])


@pytest.mark.parametrize("change", [
    lambda b: b["claims"][0]["parts"][0].update(rule="thinking.gain.low > 0.2"),
    lambda b: b["claims"][0]["parts"][0].update(kind="core"),
    lambda b: b["claims"][0]["parts"][0].update(families=["chain"]),
    lambda b: b["claims"][0]["parts"][0].update(id="gain"),
])
def test_a_digest_changes_with_what_a_rule_says(change):
    content = yaml.safe_load((ROOT / "claims.yml").read_text())
    part = content["claims"][0]["parts"][0]
    before = rules.digest(content["needs"], "pretraining-acquires", part)
    assert before == rules.digest(content["needs"], "pretraining-acquires", {**part, "says": "x"})
    change(content)
    assert before != rules.digest(content["needs"], "pretraining-acquires", part)
    assert before != rules.digest({"default": {"seeds": 2, "problems": 100}},
                                  "pretraining-acquires", part)


def test_facts_reads_what_results_writes(tmp_path, monkeypatch):
    for name in ("arms.yml", "claims.yml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    fact = dict(family="chain", model="base", quantity="pass_at_k", k=4, n_samples=4)
    results.write("smoke", "02", [
        fact | dict(value=0.25, low=0.125, high=0.5, n_problems=16, seeds=[0, 1]),
        fact | dict(quantity="crossing_k", against="thinking", value=32, low=None, high=None,
                    n_problems=None, seeds=[0]),
    ])
    results.facts()
    crossing, first = claims.facts()
    assert (first["value"], first["low"], first["high"], first["n_problems"], first["seeds"]) == (
        0.25, 0.125, 0.5, 16, 2)
    assert (crossing["value"], crossing["low"], crossing["seeds"]) == (32.0, None, 1)
    # The rules that results record are those that verdicts ask for.
    assert claims.known_rules(claims.facts(), tmp_path) == {
        ("smoke", "02"): {p["digest"] for claim in book()["claims"] for p in claim["parts"]}}


def test_a_section_shows_every_figure_part_and_number():
    rows = [r for r in rows_where_all_holds() if r["chapter"] == "02"]
    judged = claims.verdicts(book(), rows, {})
    claim = next(c for c in book()["claims"] if c["id"] == "base-already-samples")
    text = " ".join(claims.section(claim, judged, {"lab": "In the lab"}).split())
    for p in claim["parts"]:
        assert p["says"] in text and " ".join(p["rule"].split()) in text
    for figure in claim["published"]:
        assert " ".join(figure["figure"].split()) in text and figure["where"] in text
    assert text.count("reported by a third party, not checked") == 1
    assert "**Published**" in text and "**Published**" not in claims.section(
        {**claim, "published": []}, judged, {"lab": "In the lab"})
    assert "**In the lab: holds.** Every part holds." in text
    assert "0.95, at least 0.60" in text
    assert "[arXiv 2504.13837](https://arxiv.org/abs/2504.13837)" in text


def test_published_sources_are_in_the_bibliography():
    entries = set(re.findall(r"^@\w+\{([^,]+),", (ROOT / "references.bib").read_text(), re.M))
    for claim in book()["claims"]:
        assert {figure["source"] for figure in claim["published"]} <= entries


@pytest.mark.parametrize("change, said", [
    (lambda b: b["claims"][0].pop("mind"), "missing or unknown fields: mind"),
    (lambda b: b["claims"][1]["parts"][0].update(kind="vital"), "kind"),
    (lambda b: b["claims"][1]["published"][0].update(status="sure"), "it must be verified or rep"),
    (lambda b: b["claims"][1]["published"][0].pop("version"), "needs figure, source, version"),
    (lambda b: b["claims"][1].update(id=b["claims"][0]["id"]), "ids must differ"),
    (lambda b: b["claims"][1].update(parts=b["claims"][1]["parts"][-1:]), "at least one core"),
    (lambda b: b["claims"][1]["parts"][4].pop("rival"), "where because also cause and rival"),
    (lambda b: b["claims"][1]["parts"][0].update(rival="x"), "where because also cause and rival"),
    (lambda b: b["claims"][1]["parts"][0].update(rule="hybird.gap_recovered.low > 0"),
     "arm 'hybird' is unknown; did you mean hybrid"),
    (lambda b: b["claims"][1]["parts"][0].update(rule="hybrid.gain[against=bais-only].low > 0"),
     "arm 'bais-only' is unknown; did you mean bias-only"),
    (lambda b: b["claims"][1]["parts"][0].update(rule="hybrid.gain[on=bais-only].low > 0"),
     "arm 'bais-only' is unknown; did you mean bias-only"),
    (lambda b: b["claims"][1]["parts"][0].update(rule="hybrid.pass_at_k.low > 0"),
     r"pass_at_k is given without k; allowed is pass_at_k\[k=1\]"),
    (lambda b: b["claims"][1]["parts"][0].update(rule="20:hybrid.gap_recovered.low > 0"),
     "chapter is '20'; allowed are 00, 01, 02, 03, 04, 05, 06, 07"),
    (lambda b: b["claims"][1].update(chapter="1"), "chapter is '1'; allowed are 00,"),
    (lambda b: b["claims"][1].update(chapters={"open": {"00": "60"}}), "chapter is '60'; allowed"),
    (lambda b: b["claims"][1].update(chapters={"oben": {"00": "06"}}), "'oben' is unknown"),
    (lambda b: b["claims"][1]["parts"][0].update(id="sparse"), "part ids must differ"),
    (lambda b: [p.update(families=["countdown"]) for p in b["claims"][1]["parts"]
                if p["kind"] == "core"], "at least one core part that is asked of chain"),
    (lambda b: b["claims"][1]["parts"][0].update(rule="hybrid.gap_recoverd.low > 0"),
     "'gap_recoverd' is unknown; did you mean gap_recovered"),
    (lambda b: b["families"].update(lab=["chain", "chain"]), "families must differ, they"),
    (lambda b: b["families"].update(open=["summs"]), "'summs' is unknown; did you mean sums"),
    (lambda b: b.update(edition="two"), "edition is 'two'; allowed is a whole number"),
    (lambda b: b["before"].pop("commit"), "before lacks commit"),
    (lambda b: b["claims"][1]["parts"][0].update(families=["chain", "chain"]), "families must dif"),
    (lambda b: b["needs"].update(labb=b["needs"]["default"]), "'labb' is unknown; did you mean"),
    (lambda b: b["claims"][1]["parts"][0].update(rule=f"hybrid.gap_recovered.low > {'9' * 400}"),
     "is neither a number nor"),
    (lambda b: b.pop("needs"), "must hold edition, before, needs, families, claims"),
    (lambda b: b.update(extra=1), "must hold edition, before, needs, families, claims"),
])
def test_a_broken_file_is_refused_in_one_sentence(tmp_path, change, said):
    content = yaml.safe_load((ROOT / "claims.yml").read_text())
    change(content)
    shutil.copy(ROOT / "arms.yml", tmp_path)
    file = tmp_path / "claims.yml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(errors.BadInput, match=said) as caught:
        claims.load(file)
    assert "\n" not in str(caught.value)
