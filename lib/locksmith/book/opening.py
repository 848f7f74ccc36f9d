"""The box at the top of a chapter's page: claim, verdict, three findings, the figure, the price.

findings.yml says for each chapter what was found, in sentences whose numbers are read from the
facts. A sentence stands under a guard, a rule as in claims.yml that has to hold in every family;
one that the facts no longer bear out fails the build by name. All is put together when the book is
built, so that a chapter need not run again for a verdict.
"""

import json
import re
from pathlib import Path
from typing import Any

import jinja2

from locksmith import errors, params, plain_yaml, results
from locksmith.book import claims, formats

FILE = "findings.yml"
CHAPTER = {"claim": str, "profile": str, "figure": str, "findings": list}
FINDING = {"says": str, "holds": list}


class FindingsError(errors.BadInput):
    """findings.yml says what cannot be read or no longer holds; the message names the sentence."""


def load(root: Path) -> dict[str, dict]:
    """Chapter -> its entry of findings.yml: claim (an id of claims.yml), profile whose facts are
    meant, figure (its name in that profile's figures), findings and, where there are any,
    minutes that it took, and `real` findings, those on real weights. Raises FindingsError where
    that is not as described."""
    path = root / FILE
    found = plain_yaml.read(path)
    known = {claim["id"] for claim in claims.load(root / "claims.yml")["claims"]}
    if not isinstance(found, dict):
        raise FindingsError(f"{path} has to be a mapping of chapters.")
    for chapter, entry in found.items():
        where = f"{path}: chapter {chapter!r}"
        _check(entry, CHAPTER, {"minutes": int, "real": list}, where)
        if entry["claim"] not in known or entry["profile"] not in params.PROFILES:
            raise FindingsError(f"{where} names claim {entry['claim']!r} and profile "
                                f"{entry['profile']!r}; allowed are {', '.join(sorted(known))}, "
                                f"and {', '.join(params.PROFILES)}.")
        for finding in [*entry["findings"], *entry.get("real", [])]:
            _check(finding, FINDING, {}, where)
    return found


def _check(entry, needed, beside, where):
    types = needed | beside
    if not (isinstance(entry, dict) and set(needed) <= set(entry) <= set(types)
            and all(isinstance(value, types[key]) for key, value in entry.items())):
        raise FindingsError(f"{where} has {entry!r:.60}; needed are {', '.join(needed)}"
                            + "".join(f"; {name} may be there" for name in beside) + ".")


def box(chapter: str, entry: dict, judged: tuple, writer: Any, button: str,
        pages: dict[str, str]) -> str:
    """The box as MyST.

    chapter: "01"; entry: of `load`; judged: as claims.judge gives it; writer: a
    sentences.Writer; button: the address that opens the notebook in Colab; pages: {profile:
    where its own page of the chapter is}.
    """
    book, _, profiles = judged
    claim = _claim(entry, book)
    lines = ["````{admonition} What this chapter tests, and what was found", ":class: opening", "",
             claim["claim"].strip(), ""]
    for profile in profiles:
        lines += [_verdict(claim, profile, judged, pages.get(profile)), ""]
    if entry["profile"] in profiles:  # pages of another profile tell nothing of this one
        lines += [*(f"- {says}" for says in _findings(chapter, entry, writer)), "",
                  *_figure(chapter, entry, writer), "", _price(chapter, entry, writer), ""]
    lines += [f"**Run it again:** [in Colab]({button}), or with "
              f"`dvc repro -f -s chapter-{chapter}`. "
              f"[Rules and all numbers](verdict.ipynb#{claims.anchor(claim['title'])}).", "````"]
    return "\n".join(lines)


def again(chapter: str, entry: dict, judged: tuple, writer: Any) -> str:
    """The box (MyST) of a chapter's page on real weights, which lies beside the chapter's own.

    chapter: as _toc.yml names it; entry, judged, writer: as in `box`.
    """
    claim, record = _claim(entry, judged[0]), f"results/open/{number(chapter)}.json"
    given = json.loads(plain_yaml.text(writer.root / record))["provenance"]["parameters"]["chapter"]
    told = {"profile": "open", "findings": entry.get("real", [])}
    return "\n".join([
        "````{admonition} The same notebook, on weights that others trained", ":class: opening", "",
        f"This is [the chapter]({Path(chapter).name}.ipynb) once more, run on "
        f"`{given['base_model']}`, here called the base although its makers tuned it to follow "
        "instructions, and on what [RL made of it](06_real_weights.ipynb). Arms, controls and "
        "rules are the lab's.", "", _verdict(claim, "open", judged), "",
        *(f"- {says}" for says in _findings(number(chapter), told, writer)), "",
        "**Again:** `make open ACCEPT_TERMS=1` (hours). "
        f"[Rules and all numbers](verdict.ipynb#{claims.anchor(claim['title'])}).", "````"])


def number(chapter: str) -> str:
    """A chapter's number, of its file: "chapters/01_hybrid_steering" -> "01"."""
    return Path(chapter).name.split("_")[0]


def _claim(entry, book):
    return next(claim for claim in book["claims"] if claim["id"] == entry["claim"])


def _verdict(claim, profile, judged, page=None):
    """A claim's verdict in one profile, in one paragraph that leads to the profile's own page."""
    _, verdicts, profiles = judged
    word, reason = claims.answer(claims.of(verdicts, claim["id"], profile))
    heading = f"[{profiles[profile]}]({page})" if page else profiles[profile]
    return f"**{heading}: {word}.** {reason[:1].upper()}{reason[1:]}."


def _findings(chapter, entry, writer):
    """The sentences, with their numbers; none where the profile has not run the chapter."""
    facts = writer.facts.get(entry["profile"], {}).get(params.chapter_key(chapter))
    if facts is None:
        return []
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    environment.filters |= formats.STYLES
    told = []
    for finding in entry["findings"]:
        says = " ".join(finding["says"].split())
        try:
            failing = [rule for rule in finding["holds"]
                       if not writer.everywhere(rule, entry["profile"])]
            told.append(environment.from_string(says).render(facts))
        except (jinja2.TemplateError, TypeError, errors.BadInput) as error:
            raise FindingsError(f"{FILE}, chapter {chapter}: {says!r} cannot be told: {error}"
                                ) from error
        if failing:
            raise FindingsError(f"A sentence of {FILE}, chapter {chapter}, no longer holds: "
                                f"{says!r} ({failing[0]}).")
    return told


def _figure(chapter, entry, writer):
    path = Path("results", entry["profile"], "figures", f"{chapter}_{entry['figure']}.png")
    if not (writer.root / path).exists():
        return []
    from locksmith.book.sentences import description
    alt = description(writer.root / path).translate(str.maketrans("[]", "()"))
    return [f"![{alt}](/{path.as_posix()})"]


def _price(chapter, entry, writer):
    """What it took: minutes, models and seeds, as the record has them."""
    path = writer.root / "results" / entry["profile"] / f"{chapter}.json"
    if not path.exists():
        return ""
    record = results.load(path, entry["profile"], chapter, writer.arms)
    given, seeds = record["provenance"]["parameters"], len(record["provenance"]["seeds"])
    told = [f"{entry['minutes']} minutes on two cores"] if "minutes" in entry else []
    if "model" in given:
        told.append(f"language models of {given['model']['layers']} layers and width "
                    f"{given['model']['hidden']}, trained from scratch")
    elif "base_model" in given.get("chapter", {}):
        told.append(given["chapter"]["base_model"])
    return f"**What it took:** {'; '.join([*told, f'{seeds} seed' + 's' * (seeds > 1)])}."


def colab(settings: dict, page: str) -> str:
    """The address that opens a page's notebook in Colab; settings: of _config.yml."""
    repository = settings["repository"]
    owner = re.sub(r"^https://github\.com/", "", repository["url"]).rstrip("/")
    host = settings["launch_buttons"]["colab_url"]
    return f"{host}/github/{owner}/blob/{repository['branch']}/{page}.ipynb"
