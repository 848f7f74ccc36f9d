"""findings.yml as it stands: three sentences a chapter, a number and a guard each."""

import re

from locksmith.book import claims, opening
from repository import ROOT

FOUND = opening.load(ROOT)


def test_every_chapter_has_its_box_and_its_claim():
    chapters = {path.name[:2] for path in (ROOT / "chapters").glob("0*.ipynb")}
    assert set(FOUND) == chapters
    own = {}
    for claim in claims.load(ROOT / "claims.yml")["claims"]:
        own.setdefault(claim["chapter"], set()).add(claim["id"])
    assert all(FOUND[chapter]["claim"] in ids for chapter, ids in own.items())


def test_a_chapter_tells_three_findings_with_one_number_each_or_none_yet():
    for chapter, entry in FOUND.items():
        assert len(entry["findings"]) in (0, 3), chapter
        for finding in entry["findings"]:
            read, *more = re.findall(r"\{\{.*?\}\}", finding["says"], re.S)
            assert not more and re.search(r"\| (percent|points|times|number) \}\}", read)
            typed = re.sub(r"\{\{.*?\}\}", "", finding["says"], flags=re.S)
            assert not re.search(r"\d[.,]\d|\d\s*(?:%|per ?cent|points)", typed)
            assert finding["holds"]
            for rule in finding["holds"]:
                claims.parse(rule, chapter)


def test_minutes_are_those_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    told = dict(re.findall(r"\| `chapter-(\d\d)` \|.*\| (\d+) \|\n", readme))
    assert all(str(entry["minutes"]) == told[chapter] for chapter, entry in FOUND.items()
               if "minutes" in entry)
