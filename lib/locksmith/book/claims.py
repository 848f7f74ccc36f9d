"""The claims of the post, and the verdicts that the measured facts give them.

claims.yml states each claim, the published figures with their version and status, and its parts:
comparisons between the interval ends of two facts, or of a fact and a number. This module loads and
checks that file, and judges every claim per profile and task family.

A part *holds* if the comparison holds as written, which is always at the unfavourable ends
(`a.low > b.high`); it is *refuted* if it fails even at the favourable ends, *undecided* in between,
and *missing* where a fact is not there. A part is of one of four kinds: `valid` (the measurement
could have shown the opposite), `core` (the effect), `because` (what the effect is due to) and
`literal` (what the strong wording adds). The first line that applies gives the verdict:

    valid            core             because         literal          verdict
    one does not     any              any             any              cannot tell
    all hold         one refuted      any             any              refuted
    all hold         one not holding  any             any              undecided
    all hold         all hold         one refuted     any              holds, but not because of ...
    all hold         all hold         one open        any              holds in part
    all hold         all hold         all hold        one does not     holds in part
    all hold         all hold         all hold        all hold         holds

`valid` comes before a refuted core: where nothing could have shown an effect, its absence says
nothing; nor can anything be told of a family for which no core part is asked. No other part can
rescue a refuted core, or keep it from being refuted. "Cannot tell" hangs on `valid` parts alone
where a core part is asked, so a better core never leads there; a better part of another kind
never makes a verdict worse (worst first: refuted, undecided, holds but not because,
holds in part, holds).

A part may be asked of some `families` only, where the others give it nothing to test, and a claim
may read other chapters in some profile (`chapters`), or say why it cannot be tested there
(`untested`). A result is read by a rule only if its run
knew that rule (`rules`): a part whose rule is younger than a run that it reads is *missing*. Rules
are matched by one regular expression; nothing in the file is ever evaluated as code.
"""

import copy
import functools
import itertools
import math
import operator
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from locksmith import arms, errors, params, plain_yaml, quantities, results, rules
from locksmith.book import formats

OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
WORDS = {"<": "below", "<=": "at most", ">": "above", ">=": "at least"}
OPPOSITE = {"<": ">=", ">=": "<", "<=": ">", ">": "<="}
KINDS = ("valid", "core", "because", "literal")
NOT_BECAUSE = "holds, but not because of …"
VERDICTS = ("holds", "holds in part", NOT_BECAUSE, "undecided", "cannot tell", "refuted",
            "not tested yet")
CHAPTERS = {*(name[2:] for name in params.SCHEMA["chapters"] if name[2:].isdigit()), "07"}
HISTORY = "https://github.com/crediting-the-locksmith/book/blob"
MARKS = {"holds": "✓", "refuted": "✗", "undecided": "?", "missing": "–"}

BOOK = {"edition": int, "before": dict, "needs": dict, "families": dict, "claims": list}
CLAIM = {"id": str, "title": str, "chapter": str, "claim": str, "published": list, "ours": str,
         "parts": list, "mind": str, "chapters": dict, "untested": dict}
OPTIONAL = {"chapters", "untested"}
FIGURE = dict.fromkeys(("figure", "source", "version", "where", "status"), str)
PART = {**dict.fromkeys(("id", "kind", "says", "rule", "cause", "rival"), str), "families": list}

NUMBER = r"\d{1,99}(?:\.\d+)?"
FACT = re.compile(
    rf"(?:(?P<factor>{NUMBER}) \* )?(?:(?P<chapter>\w+):)?(?P<model>[a-z0-9][a-z0-9-]*)"
    rf"\.(?P<quantity>[a-z]\w*(?:\[[^\]]*\])?)\.(?P<end>low|high)(?: (?P<plus>[+-] {NUMBER}))?"
)


class ClaimsError(errors.BadInput):
    """claims.yml says something that cannot be judged; the message names the claim and the part."""


# ------------------------------------------------------------------------------------------------
# Reading claims.yml


def load(path: str | Path = "claims.yml") -> dict:
    """Read and check the claims.

    Returns a dict: `edition` and the one `before` it, `needs` (profile -> {seeds, problems};
    "default" for profiles not named), `families` (profile -> those it is judged on) and `claims`, a
    list of dicts as in the file, where each part's `rule` is joined by its parsed form
    `parsed` = (left term, operator, right term) and its `digest`. Raises BadInput in one sentence.
    """
    known = Path(path).with_name("arms.yml")
    return copy.deepcopy(_checked(plain_yaml.text(path), path, plain_yaml.text(known)))


@functools.lru_cache(maxsize=2)  # a build asks a dozen times
def _checked(text, path, arms_text):
    book = plain_yaml.parse(text, path)
    if not isinstance(book, dict) or set(book) != set(BOOK):
        raise ClaimsError(f"{path} must hold {', '.join(BOOK)}, and nothing else.")
    _check_shape(book, BOOK, str(path))
    params.check_value(f"{path}: edition", book["edition"], "int 1..")
    params.check_value(f"{path}: before", book["before"], {"edition": "int 1..", "commit": "text"})
    if set(book["needs"].get("default") or {}) != {"seeds", "problems"}:
        raise ClaimsError(f"{path}: needs.default must name seeds and problems.")
    for profile, needs in book["needs"].items():
        if profile not in ("default", *params.PROFILES):
            raise ClaimsError(quantities.unknown(f"{path}: needs: profile", profile,
                                                 params.PROFILES))
        params.check_value(f"{path}: needs.{profile}", needs,
                           {"seeds": "int 1..", "problems": "int 1.."})
    for profile, named in book["families"].items():
        if profile not in params.PROFILES:
            raise ClaimsError(quantities.unknown(f"{path}: families: profile", profile,
                                                 params.PROFILES))
        _check_families(named, params.TASKS, f"{path}: families.{profile}")
    for i, claim in enumerate(book["claims"]):
        _check_claim(claim, book["families"], path,
                     lambda *steps, i=i: plain_yaml.line(text, "claims", i, *steps))
        for part in claim["parts"]:
            part["digest"] = rules.digest(book["needs"], claim["id"], part)
    ids = [claim["id"] for claim in book["claims"]]
    if len(set(ids)) < len(ids):
        raise ClaimsError(f"{path}: claim ids must differ, they are {', '.join(ids)}.")
    return book


def _check_shape(value, shape, where):
    """The entries of a mapping that `shape` names are of its types, and not empty (nobody may have
    published a figure)."""
    if not isinstance(value, dict):
        raise ClaimsError(f"{where} is {value!r:.60}; allowed is a mapping.")
    for key in shape.keys() & value.keys():
        if not isinstance(value[key], shape[key]) or not (value[key] or key == "published"):
            allowed = {str: "a text", list: "a list of one or more", dict: "a mapping",
                       int: "a whole number"}[shape[key]]
            raise ClaimsError(f"{where}: {key} is {value[key]!r:.60}; allowed is {allowed}.")


def _check_claim(claim, families, path, line):
    """families: of each profile; line(*steps): where in the file stands what the steps lead to,
    from the claim on."""
    where = f"{path}, line {line()}: claim"
    _check_shape(claim, CLAIM, where)
    where += f" {claim.get('id')!r}"
    if set(claim) - OPTIONAL != set(CLAIM) - OPTIONAL:
        odd = ", ".join(sorted(set(claim) - OPTIONAL ^ set(CLAIM) - OPTIONAL))
        raise ClaimsError(f"{where} has missing or unknown fields: {odd}.")
    _check_chapter(claim["chapter"], where)
    for profile, instead in claim.get("chapters", {}).items():
        if profile not in params.PROFILES:
            raise ClaimsError(quantities.unknown(f"{where}: profile", profile, params.PROFILES))
        for chapter in itertools.chain(*instead.items()):
            _check_chapter(chapter, where)
    for profile, reason in claim.get("untested", {}).items():
        params.check_value(f"{where}: untested.{profile}", reason, "text")
    for i, figure in enumerate(claim["published"]):
        of = f"{path}, line {line('published', i)}: claim {claim['id']!r}"
        _check_shape(figure, FIGURE, of)
        if set(figure) != set(FIGURE):
            raise ClaimsError(f"{of}: a published figure needs figure, source, version, where "
                              f"and status, it has {', '.join(sorted(figure))}.")
        if figure["status"] not in ("verified", "reported"):
            raise ClaimsError(f"{of}: status is {figure['status']!r}, it must be verified or "
                              "reported.")
    for i, part in enumerate(claim["parts"]):
        _check_part(part, claim, path, line("parts", i))
    for family in dict.fromkeys(itertools.chain(*families.values())):
        if not any(part["kind"] == "core" and family in part.get("families", [family])
                   for part in claim["parts"]):
            raise ClaimsError(f"{where} needs at least one core part that is asked of {family}.")
    ids = [part["id"] for part in claim["parts"]]
    if len(set(ids)) < len(ids):
        raise ClaimsError(f"{where}: part ids must differ, they are {', '.join(ids)}.")


def _check_part(part, claim, path, line):
    where = f"{path}, line {line}: claim {claim['id']!r}"
    _check_shape(part, PART, where)
    fields = {"id", "kind", "says", "rule"}
    fields |= {"cause", "rival"} if part.get("kind") == "because" else set()
    if set(part) - {"families"} != fields or part["kind"] not in KINDS:
        raise ClaimsError(f"{where}: a part needs id, kind ({', '.join(KINDS)}), says and "
                          "rule, where because also cause and rival; it may have families; "
                          f"it is {part}.")
    where += f", part {part['id']}"
    _check_families(part.get("families", ["countdown"]), params.TASKS, where)
    try:
        part["parsed"] = parse(part["rule"], claim["chapter"])
    except ClaimsError as error:
        raise ClaimsError(f"{where}: {error}") from None
    for term in part["parsed"]:
        if isinstance(term, dict):
            _check_names(term, where, Path(path).with_name("arms.yml"))


def _check_families(families, known, where):
    for family in families:
        if not isinstance(family, str) or family not in known:
            raise ClaimsError(quantities.unknown(f"{where}: family", str(family), known))
    if len(set(families)) < len(families):
        raise ClaimsError(f"{where}: families must differ, they are {', '.join(families)}.")


def _check_names(term, where, known):
    """The fact that a rule reads is one that could be recorded; its conditions come in order."""
    try:
        quantity, conditions = quantities.parse(term["quantity"])
        quantities.complete(quantity, conditions)
        for name in (term["model"], *(conditions[key] for key in ("on", "against")
                                      if key in conditions)):
            arms.get(name, known)
        term["quantity"] = quantities.name(quantity, conditions)
    except errors.BadInput as error:
        raise ClaimsError(f"{where}: {error}") from None
    _check_chapter(term["chapter"], where)


def _check_chapter(chapter, where):
    if not isinstance(chapter, str) or chapter not in CHAPTERS:
        raise ClaimsError(f"{where}: chapter is {chapter!r}; allowed are "
                          f"{', '.join(sorted(CHAPTERS))}.")


def parse(rule: str, chapter: str) -> tuple[dict | float, str, dict | float]:
    """Parse one comparison, `left operator right`; a term without a chapter reads `chapter`.

    A term is a number or a dict (chapter, model, quantity, end, factor, plus) standing for
    factor * end of the fact + plus; quantity is a name of locksmith.quantities, "pass_at_k[k=4]".
    Raises ClaimsError if the rule is not of that form or takes the favourable end of an interval,
    which would let a wide interval pass.
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
                          "[factor *] [chapter:]arm.quantity[conditions].low|high "
                          "[+ or - number].")
    term = match.groupdict()
    return {**term, "chapter": term["chapter"] or chapter, "factor": float(term["factor"] or 1),
            "plus": float((term["plus"] or "0").replace(" ", ""))}


# ------------------------------------------------------------------------------------------------
# Reading results


def facts(path: str | Path = "results/facts.csv") -> list[dict]:
    """Rows of the facts table as dicts (none if there is no table yet).

    quantity is the fact's whole name, conditions and all; value, low and high are floats (low and
    high None without an interval), n_problems is an int and seeds the number of different seeds.
    """
    if not Path(path).exists():
        return []
    rows = results.read_table(path)
    for row in rows:
        given = {key: row[key] for key in quantities.CONDITIONS if key in row}
        row.update(quantity=quantities.name(row["quantity"], given),
                   n_problems=row["n_problems"] or 0, seeds=len(row["seeds"].split()))
    return rows


def known_rules(rows: list[dict], root: str | Path = ".") -> dict[tuple[str, str], set[str]]:
    """(profile, chapter) of `rows` -> digests of the rules that stood when that chapter was run, as
    results/<profile>/<chapter>.json says; none where there is no such file."""
    known, found = arms.load(Path(root) / "arms.yml"), {}
    for profile, chapter in {(row["profile"], row["chapter"]) for row in rows}:
        file = Path(root) / "results" / profile / f"{chapter}.json"
        made = results.load(file, profile, chapter, known)["provenance"] if file.exists() else {}
        found[profile, chapter] = set(made.get("rules", ()))
    return found


# ------------------------------------------------------------------------------------------------
# Judging


def judge_part(part: dict, lookup: Callable[[dict], tuple | str]) -> tuple[str, str]:
    """One part -> (outcome, the intervals in words); outcome is a key of MARKS.

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
        if not all(map(math.isfinite, found)):
            return "missing", f"{term['model']} {term['quantity']} was not measured properly"
        ends.append(tuple(term["factor"] * end + term["plus"] for end in found))
    if not isinstance(left, dict):  # in words the fact comes first
        ends, comparison = ends[::-1], comparison.translate(str.maketrans("<>", "><"))
    (left_low, left_high), (right_low, right_high) = ends
    compare = OPERATORS[comparison]
    if comparison in (">", ">="):
        as_written, favourable = (left_low, right_high), (left_high, right_low)
    else:
        as_written, favourable = (left_high, right_low), (left_low, right_high)
    alike = any(a != b and formats.number(a) == formats.number(b)
                for a in ends[0] for b in ends[1])
    ours, theirs = (_interval(*pair, 4 if alike else None) for pair in ends)
    if compare(*as_written):
        return "holds", f"{ours}, {WORDS[comparison]} {theirs}"
    if not compare(*favourable):
        return "refuted", f"{ours}, {WORDS[OPPOSITE[comparison]]} {theirs}"
    if isinstance(left, dict) and isinstance(right, dict):
        return "undecided", f"{ours} overlaps {theirs}"
    return "undecided", f"the interval {ours} straddles {theirs}"


def _interval(low, high, digits):
    """Two digits, or so many places as tell what is compared; a number of a rule as it stands."""
    if low == high:
        return f"{low:,.12g}"
    return " to ".join(dict.fromkeys(formats.number(end, digits) for end in (low, high)))


def verdict(parts: list[dict]) -> tuple[str, list[dict]]:
    """A claim's verdict in one family, and the parts that decided it.

    parts: dicts with at least `kind` and `outcome`, those asked of the family. Without a core part
    among them nothing can be told.
    """
    failing = {kind: [p for p in parts if p["kind"] == kind and p["outcome"] != "holds"]
               for kind in KINDS}
    refuted = {kind: [p for p in failing[kind] if p["outcome"] == "refuted"] for kind in KINDS}
    if failing["valid"] or not any(p["kind"] == "core" for p in parts):
        return "cannot tell", failing["valid"]
    if refuted["core"]:
        return "refuted", refuted["core"]
    if failing["core"]:
        return "undecided", failing["core"]
    if refuted["because"]:
        return NOT_BECAUSE, refuted["because"]
    if failing["because"] or failing["literal"]:
        return "holds in part", failing["because"] + failing["literal"]
    return "holds", []


def _reason(parts):
    """Why a verdict is what it is, from the parts that decided it."""
    told = []
    for part in parts:
        says, numbers = " ".join(part["says"].split()), part["numbers"]
        if part["kind"] == "valid":
            told.append(f"it was not shown that “{says}” ({numbers})")
        elif part["kind"] == "because" and part["outcome"] == "refuted":
            told.append(f"{part['rival']} ({numbers})")
        elif part["kind"] == "because":
            told.append(f"it is open whether the cause is {part['cause']} ({numbers})")
        else:
            state = "fails" if part["outcome"] == "refuted" else "is open"
            told.append(f"“{says}” {state} ({numbers})")
    return "; ".join(told) or "every part holds"


def overall(found: Iterable[str]) -> str:
    """One verdict from those of the families; a claim that holds in one of them holds in part."""
    found = list(found)
    if len(set(found)) == 1:
        return found[0]
    if {"holds", "holds in part"} & set(found):
        return "holds in part"
    order = ("refuted", NOT_BECAUSE, "undecided", "cannot tell")
    return next(word for word in order if word in found)


def judge(profile: str, root: str | Path = ".") -> tuple[dict, list[dict], dict[str, str]]:
    """claims.yml applied to results/facts.csv, as a page built for `profile` shows it.

    Returns (book as of load(), verdicts as of verdicts(), profiles as of columns()).
    """
    book = load(Path(root) / "claims.yml")
    rows = facts(Path(root) / "results" / "facts.csv")
    profiles = columns(profile)
    return book, verdicts(book, rows, known_rules(rows, root), list(profiles)), profiles


def verdicts(book: dict, rows: list[dict], known: dict[tuple[str, str], set[str]],
             profiles: list[str] | None = None) -> list[dict]:
    """Judge every claim.

    book: from load(); rows: from facts(); known: from known_rules(); profiles: those to judge, by
    default all in `rows`. Returns a list of dicts, one a claim, profile and family: claim, profile,
    chapter (whose facts are meant where a rule names none), family, verdict, reason, causes (those
    that failed, of NOT_BECAUSE), old (chapters that were run before a rule that reads them) and
    parts, a list of dicts as in the file with outcome (None where the part is not asked of the
    family), numbers and `decides` (bool).
    """
    table = {(r["profile"], r["chapter"], r["family"], r["model"], r["quantity"]): r for r in rows}
    return [_judge(claim, profile, family, table, known, book)
            for claim in book["claims"]
            for profile in profiles or sorted({row["profile"] for row in rows})
            for family in _families(claim, profile, rows, book["families"])]


def _families(claim, profile, rows, stated):
    """Those stated for the profile must all be there; other profiles bring families of their own,
    or are asked for the lab's."""
    if profile in stated:
        return stated[profile]
    chapters, lab = _chapters(claim, profile), stated.get("lab", [])
    here = [r for r in rows if r["profile"] == profile and r["chapter"] in chapters]
    read = {(term["model"], term["quantity"]) for term in _terms(claim)}
    named = {r["family"] for r in here}
    if not named or named & set(lab):
        return lab
    return sorted({r["family"] for r in here if (r["model"], r["quantity"]) in read} or named)


def _terms(claim):
    return [term for part in claim["parts"] for term in part["parsed"] if isinstance(term, dict)]


def read_in(claim: dict, profile: str, named: str) -> str:
    """The chapter that is read in a profile where a claim names one."""
    return claim.get("chapters", {}).get(profile, {}).get(named, named)


def _chapters(claim, profile):
    """The chapters whose facts make a claim one that is tested: its own, or where no rule reads
    that, all that it reads."""
    read = {read_in(claim, profile, term["chapter"]) for term in _terms(claim)}
    own = read_in(claim, profile, claim["chapter"])
    return {own} if own in read else read


def _judge(claim, profile, family, table, known, book):
    needs = book["needs"].get(profile, book["needs"]["default"])
    parts, old, found, decisive = [], set(), set(), _chapters(claim, profile)
    for part in claim["parts"]:
        def lookup(term, part=part):
            chapter = read_in(claim, profile, term["chapter"])
            fact = f"{term['model']} {term['quantity']}"
            row = table.get((profile, chapter, family, term["model"], term["quantity"]))
            if part["digest"] not in known.get((profile, chapter), {part["digest"]}):
                old.add(chapter)
                return f"chapter {chapter} was run before this rule was written"
            if row is None:
                return f"chapter {chapter} has no {fact}"
            found.add(chapter)
            if row["low"] is None or row["high"] is None:
                return f"{fact} has no interval"
            for name, of in (("seeds", "seeds"), ("problems", "n_problems")):
                if row[of] < needs[name]:
                    counted = f"1 {name[:-1]}" if row[of] == 1 else f"{row[of]} {name}"
                    return f"{fact} has {counted}, {needs[name]} are needed"
            return row["low"], row["high"]

        outcome, numbers = None, "not tested here"
        if family in part.get("families", [family]):
            outcome, numbers = judge_part(part, lookup)
        parts.append({**part, "outcome": outcome, "numbers": numbers})
    word, deciding = verdict([part for part in parts if part["outcome"]])
    reason = _reason(deciding) if deciding or word == "holds" else "no core part is tested here"
    if not found & decisive:
        rules_here = {part["digest"] for other in book["claims"] for part in other["parts"]}
        met = any(rules_here & known.get((profile, name), set()) for name in old)
        word, deciding = "not tested yet", []
        reason = claim.get("untested", {}).get(profile) or _untested(
            decisive, old, None if met else book["before"])
    for part in parts:
        part["decides"] = part["id"] in {p["id"] for p in deciding}
    return {"claim": claim["id"], "profile": profile, "family": family, "verdict": word,
            "chapter": read_in(claim, profile, claim["chapter"]), "reason": reason, "parts": parts,
            "causes": [p["cause"] for p in deciding] if word == NOT_BECAUSE else [],
            "old": sorted(old)}


def _untested(chapters, old, before):
    """Why nothing of a claim could be judged; before: the edition under which its `old` chapters
    were run, None where they knew other rules of this one."""
    if old:
        ran = "chapter {} was" if len(old) == 1 else "chapters {} were"
        told = f"{ran.format(', '.join(sorted(old)))} run before these rules were written"
        if before is None:
            return told
        address = f"{HISTORY}/{before['commit']}/claims.yml"
        return f"{told}, under those of [edition {before['edition']}]({address})"
    return "; ".join(f"chapter {name} has no results for it" for name in sorted(chapters))


# ------------------------------------------------------------------------------------------------
# Markdown for the pages


def columns(profile: str) -> dict[str, str]:
    """The profiles that a page built for `profile` shows, with their headings."""
    headings = {"lab": "In the lab", "open": "On real weights"}
    return {p: headings.get(p, f"Profile {p}") for p in dict.fromkeys((profile, "open"))}


def of(judged: list[dict], claim_id: str, profile: str) -> list[dict]:
    """The rows of verdicts() of one claim in one profile, a family each."""
    return [row for row in judged if (row["claim"], row["profile"]) == (claim_id, profile)]


def answer(rows: list[dict]) -> tuple[str, str]:
    """One claim's rows in one profile -> (its verdict spelled out, why and where)."""
    word = overall([row["verdict"] for row in rows])
    causes = dict.fromkeys(cause for row in rows for cause in row["causes"])
    spelled = word.replace("…", " or ".join(causes))
    if len({row["reason"] for row in rows}) == 1:
        return spelled, rows[0]["reason"]
    told = [f"{row['family']}: " + (f"{row['verdict']}, " if row["verdict"] != word else "")
            + row["reason"] for row in rows]
    return spelled, ". ".join(told)


def summary(book: dict, judged: list[dict], profiles: dict[str, str],
            link: str = "chapters/verdict.ipynb") -> str:
    """A Markdown table, a claim a line and a profile a column (profiles: name -> heading)."""
    heads = ["Claim", *profiles.values()]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for claim in book["claims"]:
        cells = []
        for profile in profiles:
            rows = of(judged, claim["id"], profile)
            word, reason = answer(rows)
            cells.append(f"{word}: {reason}" if word == "not tested yet" else
                         f"**{word}**. {reason[:1].upper()}{reason[1:]}")
        lines.append(f"| [{claim['title']}]({link}#{anchor(claim['title'])}) | "
                     + " | ".join(cells) + " |")
    return "\n".join(lines)


def anchor(title: str) -> str:
    """The anchor that MyST gives a heading: lower case, hyphens, no other punctuation."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def section(claim: dict, judged: list[dict], profiles: dict[str, str]) -> str:
    """Markdown that shows one claim whole: claim, published figures, every part and its numbers."""
    lines = [claim["claim"].strip(), "", *["**Published**", ""] * bool(claim["published"])]
    for figure in claim["published"]:
        link = r"[\g<0>](https://arxiv.org/abs/\1)"
        source = re.sub(r"arXiv (\d{4}\.\d{5})", link, f"{figure['version']}; {figure['where']}")
        if figure["status"] == "reported":
            source += ", *reported by a third party, not checked*"
        lines.append(f"- {figure['figure'].strip()} ({source}).")
    lines += ["", f"**Measured here.** {claim['ours'].strip()}", ""]
    for profile, heading in profiles.items():
        rows = of(judged, claim["id"], profile)
        word, reason = answer(rows)
        lines += [f"**{heading}: {word}.** {reason[:1].upper()}{reason[1:]}.", ""]
        if word == "not tested yet":
            continue
        lines += [*_parts_table(claim, rows), ""]
    lines += [f"**What would change our mind.** {claim['mind'].strip()}"]
    return "\n".join(lines)


def _parts_table(claim, rows):
    many = len(claim["parts"])
    lines = [f'<details class="fold"><summary><span>Show all {many} parts, each with its numbers'
             "</span></summary>", "", "| Part | " + "".join(f"{row['family']} | " for row in rows),
             "|---" * (1 + len(rows)) + "|"]
    for i, part in enumerate(claim["parts"]):
        cells = [f"{MARKS.get(r['parts'][i]['outcome'], '')} {r['parts'][i]['numbers']}"
                 for r in rows]
        rule = " ".join(part["rule"].split())
        lines.append(f"| *{part['kind']}:* {part['says'].strip()} `{rule}` | "
                     + "".join(f"{cell} | " for cell in cells))
    return [*lines, "", "</details>"]
