"""The claims of the post, and the verdicts that the measured facts give them.

claims.yml states each claim, the published figures with their version and status, and its parts: a
`control`, `core` or `strong` comparison between interval ends of two facts. This module loads and
checks that file, and judges every claim per profile and task family:

1. A part *holds* if the comparison holds as written, which is always at the unfavourable ends
   (`a.low > b.high`); it is *refuted* if it fails even at the favourable ends; else *undecided*.
2. A control that does not hold makes the claim "not testable here", whatever the other parts say.
3. Otherwise a refuted core part makes it "not supported", an undecided one "not testable here", and
   with every core part holding it is "supported" or, where a strong part does not hold, "partly".

A part may be asked of some `families` only, where the others give it nothing to test.

Rules are matched by one regular expression; nothing in the file is ever evaluated as code.
"""

import csv
import hashlib
import json
import operator
import re
from pathlib import Path

import yaml

from locksmith import errors

OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
KINDS = ("control", "core", "strong")
VERDICTS = ("supported", "partly", "not supported", "not testable here", "not tested yet")
MARKS = {"holds": "✓", "refuted": "✗", "undecided": "?", "missing": "–"}

NUMBER = r"\d+(?:\.\d+)?"
FACT = re.compile(
    rf"(?:(?P<factor>{NUMBER}) \* )?(?:(?P<chapter>\w+):)?(?P<model>[A-Za-z][\w -]*)"
    rf"\.(?P<quantity>[a-z][a-z_]*(?:@\d+)?)\.(?P<end>low|high)(?: (?P<plus>[+-] {NUMBER}))?"
)


class ClaimsError(errors.BadInput):
    """claims.yml says something that cannot be judged; the message names the claim and the part."""


# ------------------------------------------------------------------------------------------------
# Reading claims.yml


def load(path="claims.yml"):
    """Read and check the claims.

    Returns a dict: `needs` (profile -> {seeds, problems}; "default" for profiles not named) and
    `claims`, a list of dicts as in the file, where each part's `rule` is joined by its parsed form
    `parsed` = (left term, operator, right term). Raises ClaimsError in one sentence.
    """
    try:
        book = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ClaimsError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(book, dict) or set(book) != {"needs", "claims"}:
        raise ClaimsError(f"{path} must hold exactly two entries, needs and claims.")
    if set(book["needs"].get("default", {})) != {"seeds", "problems"}:
        raise ClaimsError(f"{path}: needs.default must name seeds and problems.")
    ids = [claim.get("id") for claim in book["claims"]]
    for claim in book["claims"]:
        _check_claim(claim, path)
    if len(set(ids)) < len(ids):
        raise ClaimsError(f"{path}: claim ids must differ, they are {', '.join(ids)}.")
    return book


def _check_claim(claim, path):
    where = f"{path}: claim {claim.get('id')!r}"
    fields = {"id", "title", "chapter", "claim", "published", "ours", "families", "parts", "mind"}
    if set(claim) != fields:
        odd = ", ".join(sorted(set(claim) ^ fields))
        raise ClaimsError(f"{where} has missing or unknown fields: {odd}.")
    for figure in claim["published"]:
        if set(figure) != {"figure", "source", "version", "where", "status"}:
            raise ClaimsError(f"{where}: a published figure needs figure, source, version, where "
                              f"and status, it has {', '.join(sorted(figure))}.")
        if figure["status"] not in ("verified", "reported"):
            raise ClaimsError(f"{where}: status is {figure['status']!r}, it must be verified or "
                              "reported.")
    for part in claim["parts"]:
        fields = {"id", "kind", "says", "rule"}
        if set(part) - {"families"} != fields or part["kind"] not in KINDS:
            raise ClaimsError(f"{where}: a part needs id, kind ({', '.join(KINDS)}), says and "
                              f"rule, and may have families, it is {part}.")
        if not set(part.get("families", claim["families"])) <= set(claim["families"]):
            raise ClaimsError(f"{where}: part {part['id']} is asked of {part['families']}, the "
                              f"claim of {claim['families']}.")
        part["parsed"] = parse(part["rule"], claim["chapter"])
    if not {"control", "core"} <= {part["kind"] for part in claim["parts"]}:
        raise ClaimsError(f"{where} needs at least one control and one core part.")


def parse(rule, chapter):
    """Parse one comparison, `left operator right`; a term without a chapter reads `chapter`.

    A term is a number or a dict (chapter, model, quantity, end, factor, plus) standing for
    factor * end of the fact + plus. Raises ClaimsError if the rule is not of that form or takes the
    favourable end of an interval, which would let a wide interval pass.
    """
    sides = re.split(r" (<=|>=|<|>) ", " ".join(str(rule).split()))
    if len(sides) != 3:
        raise ClaimsError(f"Rule {rule!r} must hold one of < <= > >= between two terms.")
    left, comparison, right = sides
    terms = [_term(text, rule, chapter) for text in (left, right)]
    unfavourable = ("low", "high") if comparison in (">", ">=") else ("high", "low")
    for term, end in zip(terms, unfavourable, strict=True):
        if isinstance(term, dict) and term["end"] != end:
            raise ClaimsError(f"Rule {rule!r} takes .{term['end']} of {term['model']}."
                              f"{term['quantity']}; on that side only .{end} is unfavourable.")
    if not any(isinstance(term, dict) for term in terms):
        raise ClaimsError(f"Rule {rule!r} compares two numbers; at least one side must be a fact.")
    return terms[0], comparison, terms[1]


def _term(text, rule, chapter):
    if re.fullmatch(NUMBER, text):
        return float(text)
    match = FACT.fullmatch(text)
    if match is None:
        raise ClaimsError(f"Rule {rule!r}: {text!r} is neither a number nor "
                          "[factor *] [chapter:]model.quantity.low|high [+ or - number].")
    term = match.groupdict()
    return {**term, "chapter": term["chapter"] or chapter, "factor": float(term["factor"] or 1),
            "plus": float((term["plus"] or "0").replace(" ", ""))}


def sha256(path="claims.yml"):
    """The hash under which a result is made; another one later marks the result stale."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# ------------------------------------------------------------------------------------------------
# Reading results


def facts(path="results/facts.csv"):
    """Rows of the facts table as dicts (none if there is no table yet).

    value, low and high are floats (low and high None without an interval), n_problems is an int and
    seeds the number of seeds.
    """
    if not Path(path).exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.update({k: float(row[k]) if row[k] else None for k in ("value", "low", "high")})
        row.update(n_problems=int(row["n_problems"] or 0), seeds=len(row["seeds"].split()))
    return rows


def stale(rows, root=".", current=None):
    """The (profile, chapter) pairs among `rows` whose results were made under other claims.

    Reads the hash from results/<profile>/<chapter>.json; a result without one counts as stale.
    """
    current = current or sha256(Path(root) / "claims.yml")
    made = {}
    for profile, chapter in {(row["profile"], row["chapter"]) for row in rows}:
        file = Path(root) / "results" / profile / f"{chapter}.json"
        if file.exists():
            made[profile, chapter] = json.loads(file.read_text(encoding="utf-8")).get(
                "provenance", {}).get("claims_sha256")
        else:
            made[profile, chapter] = None
    return {pair for pair, hash_then in made.items() if hash_then != current}


# ------------------------------------------------------------------------------------------------
# Judging


def judge_part(part, lookup):
    """One part -> (outcome, sentence with the numbers); outcome is a key of MARKS.

    `lookup(term)` gives a fact's (low, high), or a sentence (str) saying why it cannot be used.
    """
    left, comparison, right = part["parsed"]
    ends = []
    for term in (left, right):
        if not isinstance(term, dict):
            ends.append((term, term))
            continue
        found = lookup(term)
        if isinstance(found, str):
            return "missing", found
        ends.append(tuple(term["factor"] * end + term["plus"] for end in found))
    (left_low, left_high), (right_low, right_high) = ends
    compare = OPERATORS[comparison]
    if comparison in (">", ">="):
        as_written, favourable = (left_low, right_high), (left_high, right_low)
    else:
        as_written, favourable = (left_high, right_low), (left_low, right_high)
    numbers = f"{as_written[0]:.4g} {comparison} {as_written[1]:.4g}"
    at_best = f"{favourable[0]:.4g} {comparison} {favourable[1]:.4g}"
    if compare(*as_written):
        return "holds", numbers
    if compare(*favourable):
        return "undecided", f"not {numbers}, but {at_best}"
    return "refuted", f"not {numbers}, nor {at_best}"


def verdict(outcomes):
    """A claim's verdict in one family and its reason, from its parts' (kind, outcome) pairs."""
    of = {kind: [outcome for k, outcome in outcomes if k == kind] for kind in KINDS}
    if any(outcome != "holds" for outcome in of["control"]):
        return "not testable here", "a control does not hold"
    if "refuted" in of["core"]:
        return "not supported", "a core part is refuted"
    if "missing" in of["core"]:
        return "not testable here", "a core part was not measured"
    if "undecided" in of["core"]:
        return "not testable here", "the intervals cannot decide a core part"
    if all(outcome == "holds" for outcome in of["strong"]):
        return "supported", "every part holds"
    return "partly", "the weak reading holds, the strong one does not"


def overall(verdicts_by_family):
    """One verdict for a profile: what holds in one family only is "partly", never "supported"."""
    found = list(verdicts_by_family)
    if all(v == found[0] for v in found):
        return found[0]
    if "supported" in found or "partly" in found:
        return "partly"
    return next(v for v in VERDICTS[2:] if v in found)


def verdicts(book, rows, stale_pairs=(), profiles=None):
    """Judge every claim.

    book: from load(); rows: from facts(); stale_pairs: from stale(); profiles: those to judge, by
    default all in `rows`. Returns a list of dicts, one a claim, profile and family: claim, profile,
    family, verdict, reason, stale (chapters) and parts, a list of dicts (id, kind, says, rule,
    outcome or None where the part is not asked of the family, numbers).
    """
    table = {(r["profile"], r["chapter"], r["family"], r["model"], r["quantity"]): r for r in rows}
    chapters = {(r["profile"], r["chapter"]) for r in rows}
    profiles = profiles or sorted({row["profile"] for row in rows})
    judged = []
    for claim in book["claims"]:
        for profile in profiles:
            tested = (profile, claim["chapter"]) in chapters
            named = {r["family"] for r in rows
                     if (r["profile"], r["chapter"]) == (profile, claim["chapter"])}
            # The lab's families must all be there; other profiles bring families of their own.
            families = claim["families"] if not named or named & set(claim["families"]) else named
            needs = book["needs"].get(profile, book["needs"]["default"])
            for family in sorted(families, key=[*claim["families"], *sorted(named)].index):
                judged.append(_judge(claim, profile, family, table, chapters, needs, tested,
                                     stale_pairs))
    return judged


def _judge(claim, profile, family, table, chapters, needs, tested, stale_pairs):
    def lookup(term):
        chapter = term["chapter"]
        if (profile, chapter) not in chapters:
            return f"no results for chapter {chapter}"
        row = table.get((profile, chapter, family, term["model"], term["quantity"]))
        if row is None:
            return f"{term['model']} {term['quantity']} was not measured"
        if row["low"] is None or row["high"] is None:
            return f"{term['model']} {term['quantity']} has no interval"
        for name, key in (("seeds", "seeds"), ("problems", "n_problems")):
            if row[key] < needs[name]:
                return f"{row[key]} {name}, {needs[name]} are needed"
        return row["low"], row["high"]

    parts = []
    for part in claim["parts"]:
        if family in part.get("families", [family]):
            outcome, numbers = judge_part(part, lookup)
        else:
            outcome, numbers = None, "not asked here"
        parts.append({"id": part["id"], "kind": part["kind"], "says": part["says"],
                      "rule": " ".join(part["rule"].split()), "outcome": outcome,
                      "numbers": numbers})
    word, reason = verdict([(part["kind"], part["outcome"]) for part in parts
                            if part["outcome"]])
    if not tested:
        word, reason = "not tested yet", f"no results for chapter {claim['chapter']}"
    read = {term["chapter"] for part in claim["parts"] for term in part["parsed"]
            if isinstance(term, dict)}
    return {"claim": claim["id"], "profile": profile, "family": family, "verdict": word,
            "reason": reason, "parts": parts,
            "stale": sorted(c for c in read if (profile, c) in stale_pairs)}


# ------------------------------------------------------------------------------------------------
# Markdown for the pages


def columns(profile):
    """The profiles that a page built for `profile` shows, with their headings."""
    headings = {"lab": "In the lab", "open": "On real weights"}
    return {p: headings.get(p, f"Profile {p}") for p in dict.fromkeys((profile, "open"))}


def summary(book, judged, profiles, link="chapters/verdict.ipynb"):
    """A Markdown table, a claim a line and a profile a column (profiles: name -> heading)."""
    heads = ["Claim", *profiles.values()]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for claim in book["claims"]:
        cells = []
        for profile in profiles:
            rows = [r for r in judged if (r["claim"], r["profile"]) == (claim["id"], profile)]
            word = overall([r["verdict"] for r in rows]) if rows else "not tested yet"
            old = " (stale)" if any(r["stale"] for r in rows) else ""
            cells.append(f"**{word}**{old}" if word != "not tested yet" else word)
        lines.append(f"| [{claim['title']}]({link}#{anchor(claim['title'])}) | "
                     + " | ".join(cells) + " |")
    return "\n".join(lines)


def anchor(title):
    """The anchor that MyST gives a heading: lower case, hyphens, no other punctuation."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def section(claim, judged, profiles):
    """Markdown that shows one claim whole: claim, published figures, every part and its numbers."""
    lines = [claim["claim"].strip(), "", "**Published**", ""]
    for figure in claim["published"]:
        link = r"[\g<0>](https://arxiv.org/abs/\1)"
        source = re.sub(r"arXiv (\d{4}\.\d{5})", link, f"{figure['version']}; {figure['where']}")
        if figure["status"] == "reported":
            source += ", *reported by a third party, not checked*"
        lines.append(f"- {figure['figure'].strip()} ({source}).")
    lines += ["", f"**Measured here.** {claim['ours'].strip()}", ""]
    for profile, heading in profiles.items():
        rows = [r for r in judged if (r["claim"], r["profile"]) == (claim["id"], profile)]
        rows = [row for row in rows if row["verdict"] != "not tested yet"]
        if not rows:
            lines += [f"**{heading}: not tested yet** (chapter {claim['chapter']} has no results "
                      "there).", ""]
            continue
        each = "; ".join(f"{row['family']}: {row['verdict']}, {row['reason']}" for row in rows)
        lines += [f"**{heading}: {overall([row['verdict'] for row in rows])}** ({each}).", ""]
        old = sorted({chapter for row in rows for chapter in row["stale"]})
        if old:
            lines += [f"**Stale:** chapter {', '.join(old)} was run under another claims.yml.", ""]
        lines += [*_parts_table(claim, rows), ""]
    lines += [f"**What would change our mind.** {claim['mind'].strip()}"]
    return "\n".join(lines)


def _parts_table(claim, rows):
    lines = ["| Part | " + "".join(f"{row['family']} | " for row in rows),
             "|---" * (1 + len(rows)) + "|"]
    for i, part in enumerate(claim["parts"]):
        cells = [f"{MARKS.get(r['parts'][i]['outcome'], '')} {r['parts'][i]['numbers']}" for r in rows]
        rule = " ".join(part["rule"].split())
        lines.append(f"| *{part['kind']}:* {part['says'].strip()} `{rule}` | "
                     + "".join(f"{cell} | " for cell in cells))
    return lines
