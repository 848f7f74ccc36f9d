"""The post's sentences: renders post.md, a Jinja template in which no measured number is typed.

The post is written for what was found in the lab and on real weights, whatever profile the book is
built for. What it says of a result stands between

    {% call holds("02:base.trace_pass_at_k[k=64].low > 0.9") %} ... {% endcall %}

with rules as in claims.yml that have to hold in every family, or `judged(claim, verdict)` in their
place: a sentence that the facts no longer bear out fails the build by name. `percent`, `points`,
`times` and `number` write one fact without its interval; `numbers` lists all of them with it.
"""

import re
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jinja2
from PIL import Image

from locksmith import arms, errors, params, plain_yaml, quantities
from locksmith.book import claims, formats, report, site

PROFILE = "lab"  # whose results the post tells, where it does not say "open"
FAMILIES = {"countdown": "Countdown", "chain": "Chain", "sums": "Sums"}
NUMBERS = ("none", "one", "two", "three", "four", "five", "six")
WORDS = (900, 1300)  # of the post
FOUR = ("hybrid-steering", "base-already-samples", "one-problem", "vectors-before-rl")
DEVICES = ("figure", "found", "holds", "judged", "numbers", "page", "quoted", "tally")


class PostError(errors.BadInput):
    """The post cannot be written; the message names the sentence, the claim or the fact."""


class Writer:
    """post.md; link(page in _toc.yml) and image(path) give their addresses."""

    def __init__(self, root: str | Path, link: Callable[[str], str], image: Callable[[Path], str]):
        self.root, self.link, self.image = Path(root), link, image
        self.figures = []  # paths of those shown so far
        self.told = {}  # (profile, chapter, family, model, quantity) -> (as told, the fact)
        self.facts = site.substitutions(PROFILE, root)["res"]
        self.rows = claims.facts(self.root / "results" / "facts.csv")
        book, self.verdicts, self.profiles = claims.judge(PROFILE, root)
        self.arms = arms.load(self.root / "arms.yml")
        self.claims = {claim["id"]: claim for claim in book["claims"]}
        toc = site.contents(self.root)
        files = [toc["root"], *(entry["file"] for entry in toc["chapters"])]
        self.pages = {Path(file).name.split("_")[0]: file for file in files}

    def render(self, whole: bool = False) -> str:
        """The post as Markdown; whole: PostError unless it has a number of words in WORDS."""
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True,
                                         lstrip_blocks=True, keep_trailing_newline=True)
        devices = {name: getattr(self, name) for name in DEVICES}
        devices |= {name: partial(self._tell, name) for name in formats.STYLES}
        try:
            template = environment.from_string(plain_yaml.text(self.root / "post.md"))
            text = template.render(devices)
        except jinja2.TemplateSyntaxError as error:
            raise PostError(f"post.md, line {error.lineno}: {error.message}") from error
        except jinja2.UndefinedError as error:
            raise PostError(f"post.md, line {_line(error)}, reads a name that there is not: "
                            f"{error}.") from error
        except errors.BadInput:
            raise
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError,
                MemoryError) as error:  # what the template's own expressions may raise
            said = str(error) or type(error).__name__
            raise PostError(f"post.md, line {_line(error)}: {said}.") from error
        if whole and not WORDS[0] <= words(text) <= WORDS[1]:
            raise PostError(f"post.md makes {words(text)} words; allowed are {WORDS[0]} to "
                            f"{WORDS[1]}.")
        return text

    # ---- guards

    def holds(self, *rules: str, profile: str = PROFILE, caller: Callable[[], str]) -> str:
        """What stands in the block, where every rule holds in every family; PostError otherwise."""
        said = caller()
        for rule in rules:
            if not self.everywhere(rule, profile):
                raise PostError(f"A sentence of post.md no longer holds: {_flat(said)!r} ({rule}).")
        return said

    def judged(self, claim: str, verdict: str, profile: str = PROFILE, *,
               caller: Callable[[], str]) -> str:
        """The same, where a claim has a verdict of claims.VERDICTS."""
        said, found = caller(), self.word(claim, profile)
        if found != verdict:
            raise PostError(f"A sentence of post.md no longer holds: {_flat(said)!r} (claim "
                            f"{claim} is {found!r}, not {verdict!r}).")
        return said

    def everywhere(self, rule: str, profile: str = PROFILE) -> bool:
        """Whether a rule as in claims.yml, "02:a.x.low > 02:b.x.high", holds in every family."""
        parsed = claims.parse(rule, "")
        families = {family for term in parsed if isinstance(term, dict)
                    for family in self.families(term["chapter"], profile)}

        def outcome(family):
            def lookup(term):
                fact = self._fact(profile, term["chapter"], family, term["model"],
                                  term["quantity"])
                return (fact["low"], fact["high"]) if fact else "not measured"
            return claims.judge_part({"parsed": parsed}, lookup)[0]
        return {outcome(family) for family in families} == {"holds"}

    # ---- verdicts

    def _rows(self, claim, profile):
        if claim not in self.claims:
            raise PostError(f"post.md names claim {claim!r}; there are {', '.join(self.claims)}.")
        return claims.of(self.verdicts, claim, profile)

    def word(self, claim: str, profile: str = PROFILE) -> str:
        """A claim's verdict, one of claims.VERDICTS."""
        return claims.overall([row["verdict"] for row in self._rows(claim, profile)])

    def tally(self, *named: str) -> str:
        """How many of the claims have which verdict: "one “refuted”, three “not tested yet”"."""
        count = Counter(map(self.word, named))
        return ", ".join(f"{NUMBERS[count[v]]} “{v}”" for v in claims.VERDICTS if count[v])

    def found(self) -> str:
        """Two columns: what was claimed, and what was found, with the reason."""
        lines = ["| What was claimed | What we found |", "|---|---|"]
        for claim in self.claims.values():
            cells = []
            for profile, heading in self.profiles.items():
                word, reason = claims.answer(self._rows(claim["id"], profile))
                reason = f" {reason[:1].upper()}{reason[1:]}." * (word != "not tested yet")
                cells.append(f"{heading}: **{word}**.{reason}")
            lines.append(f"| **{claim['title']}.** {_flat(claim['claim'])} | "
                         f"{'<br>'.join(cells)} |")
        return "\n".join(lines)

    # ---- numbers

    def families(self, chapter: str, profile: str = PROFILE) -> dict[str, dict]:
        """The families that a chapter has facts for, {name: {model: {quantity: fact}}}."""
        known = claims.CHAPTERS | {row["chapter"] for row in self.rows}
        if chapter not in known:
            raise PostError(f"post.md reads chapter {chapter!r}; there are "
                            f"{', '.join(sorted(known))}.")
        found = self.facts.get(profile, {}).get(params.chapter_key(chapter), {})
        return dict(sorted(found.items(), key=lambda item: [*FAMILIES, *found].index(item[0])))

    def _fact(self, profile, chapter, family, model, quantity):
        """A fact or None; PostError if the model or the quantity is in no fact and no rule."""
        terms = [term for claim in self.claims.values() for part in claim["parts"]
                 for term in part["parsed"] if isinstance(term, dict)]
        for name, value in (("model", model), ("quantity", quantity)):
            if (chapter, value) not in {(row["chapter"], row[name]) for row in self.rows + terms}:
                raise PostError(f"post.md reads {model}.{quantity} of chapter {chapter}; no fact "
                                f"and no rule there has the {name} {value!r}.")
        return self.families(chapter, profile).get(family, {}).get(model, {}).get(quantity)

    def _tell(self, style, chapter, family, model, quantity, profile=PROFILE):
        """One fact as a number of the text."""
        fact = self._fact(profile, chapter, family, model, quantity)
        if fact is None:
            raise PostError(f"post.md tells {model}.{quantity} of chapter {chapter} for "
                            f"{family!r}, which profile {profile!r} has not measured.")
        told = formats.STYLES[style](fact["value"])
        self.told[profile, chapter, family, model, quantity] = told, style, fact
        return told

    def numbers(self) -> str:
        """A table of all numbers told so far: what each is, its interval, problems and seeds."""
        lines = ["| In the text | What it is | 95 % interval | From |", "|---|---|---|---|"]
        for (_, chapter, family, model, quantity), (said, style, fact) in self.told.items():
            name, given = quantities.parse(quantity)
            arm = report.label(quantities.name(model, given))
            what = f"{FAMILIES.get(family, family)}, {arm}: {quantities.QUANTITIES[name][1]}"
            ends = [fact[key] for key in ("value", "low", "high")]
            write = formats.percents if style in ("percent", "points") else formats.interval
            ends = write(ends).partition("[")[2].removesuffix("]").replace(", ", " to ")
            where = self.page(chapter, f"chapter {int(chapter)}")
            size = f"{fact['n_problems']} problems, {fact['seeds']} seeds"
            lines.append(f"| {said} | {what} | {ends or formats.MISSING} | {where}, {size} |")
        return "\n".join(lines)

    def quoted(self, claim: str, words: str, text: str = "") -> str:
        """Words of one figure published for a claim, or `text` in their place, with a link to the
        paper; those that a third party reports say so."""
        self._rows(claim, PROFILE)
        published = self.claims[claim]["published"]
        found = [one for one in published if words.lower() in _flat(one["figure"]).lower()]
        if len(found) != 1:
            raise PostError(f"post.md quotes {words!r} from the figures published for {claim!r}; "
                            f"{len(found)} have it, exactly one must.")
        paper = re.search(r"arXiv (\d{4}\.\d{5})", found[0]["version"])
        said = f"[{text or words}](https://arxiv.org/abs/{paper[1]})" if paper else text or words
        reported = " (reported by a third party, not checked)"
        return said + reported * (found[0]["status"] == "reported")

    # ---- pages and figures

    def page(self, chapter: str, text: str) -> str:
        """`text`, linked to the page of "02", "verdict" or "index" where the contents have one."""
        if chapter in self.pages:
            return f"[{text}]({self.link(self.pages[chapter])})"
        if chapter not in {claim["chapter"] for claim in self.claims.values()}:
            known = ", ".join(self.pages)
            raise PostError(f"post.md links to page {chapter!r}; _toc.yml has {known}.")
        return text

    def figure(self, name: str, caption: str) -> str:
        """A figure of the lab's, with its alt text."""
        path = self.root / "results" / PROFILE / "figures" / name
        if not path.exists():
            raise PostError(f"post.md shows {name}; {path.parent} has none.")
        self.figures.append(path)
        alt = description(path).translate(str.maketrans("[]", "()"))  # brackets would end it
        return f"![{alt}]({self.image(path)})\n\n*{caption}*"


def _flat(text):
    return " ".join(text.split())


def _line(error):
    """The line of the template at which an error came up, to which Jinja2 maps its code's lines;
    the first, if it came up before there was code."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if frame.filename == "<template>"), 1)


def words(markdown: str) -> int:
    """How many words a reader sees in the text; link targets, alt texts and tables are none."""
    text = re.sub(r"!\[[^]]*\]\([^)]*\)|^\|.*$", "", markdown, flags=re.M)
    return len(re.findall(r"\w\S*", re.sub(r"\]\([^)]*\)", "]", text)))


def description(path: str | Path) -> str:
    """The alt text that plots.save wrote into a PNG; PostError if there is none."""
    try:
        with Image.open(path) as image:
            image.load()
            alt = image.info.get("Description", "").strip()
    except (OSError, SyntaxError) as error:  # as Pillow says it
        raise PostError(f"{path} is no whole PNG: {error}.") from None
    if not alt:
        raise PostError(f"{path} has no alt text; plots.save writes one.")
    return alt
