"""The post's sentences: renders post.md, a Jinja template in which no measured number is typed.

Between braces the template may use what the book's pages may (`site.substitutions`) and the methods
in DEVICES. A sentence that the facts no longer bear out fails the build: `by_verdict` must have one
for every verdict, and `holds` guards the others.
"""

import re
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jinja2
from PIL import Image

from locksmith import arms, errors, params, plain_yaml
from locksmith.book import claims, formats, site

FAMILIES = {"countdown": "Countdown", "chain": "Chain"}
NUMBERS = ("none", "one", "two", "three", "four", "five", "six")
WORDS = (900, 1300)  # of the post
FOUR = ("hybrid-steering", "base-already-samples", "one-problem", "vectors-before-rl")
DEVICES = ("by_verdict", "everywhere", "figure", "holds", "ours", "page", "published", "tally",
           "word")


class PostError(errors.BadInput):
    """The post cannot be written; the message names the sentence, the claim or the fact."""


class Writer:
    """post.md for one profile; link(page in _toc.yml) and image(path) give their addresses."""

    def __init__(self, profile: str, root: str | Path, link: Callable[[str], str],
                 image: Callable[[Path], str]):
        self.root, self.link, self.image, self.profile = Path(root), link, image, profile
        self.figures = []  # paths of those shown so far
        self.names = site.substitutions(profile, root)
        self.rows = claims.facts(self.root / "results" / "facts.csv")
        book, self.verdicts, _ = claims.judge(profile, root)
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
        try:
            template = environment.from_string(plain_yaml.text(self.root / "post.md"))
            text = template.render(four=FOUR, **self.names, **devices)
        except jinja2.TemplateSyntaxError as error:
            raise PostError(f"post.md, line {error.lineno}: {error.message}") from error
        except jinja2.UndefinedError as error:
            raise PostError(f"post.md, line {_line(error)}, reads a name that no fact has: "
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

    # ---- verdicts

    def _judged(self, claim, profile=None):
        if claim not in self.claims:
            raise PostError(f"post.md names claim {claim!r}; there are {', '.join(self.claims)}.")
        return claims.of(self.verdicts, claim, profile or self.profile)

    def word(self, claim: str, profile: str | None = None) -> str:
        """A claim's verdict, one of claims.VERDICTS."""
        return claims.overall([row["verdict"] for row in self._judged(claim, profile)])

    def by_verdict(self, claim: str, sentences: dict[str, str]) -> str:
        """The sentence for the claim's verdict; `sentences` (dict) must have one for each."""
        word = self.word(claim)
        for verdict in (word, *claims.VERDICTS):
            if verdict not in sentences:
                raise PostError(f"post.md has no sentence for claim {claim!r} when it is "
                                f"{verdict!r}; needed are {', '.join(claims.VERDICTS)}.")
        return sentences[word]

    def holds(self, condition: object, sentence: str) -> str:
        """`sentence` where `condition` is true; otherwise PostError names it."""
        if not condition:
            sentence = " ".join(sentence.split())
            raise PostError(f"A sentence of post.md no longer holds: {sentence!r}")
        return sentence

    def everywhere(self, rule: str) -> bool:
        """Whether a rule as in claims.yml, "02:a.x.low > 02:b.x.high", holds in every family."""
        parsed = claims.parse(rule, "")
        families = {family for term in parsed if isinstance(term, dict)
                    for family in self.families(term["chapter"])}

        def outcome(family):
            def lookup(term):
                fact = self._fact(term["chapter"], family, term["model"], term["quantity"])
                return (fact["low"], fact["high"]) if fact else "not measured"
            return claims.judge_part({"parsed": parsed}, lookup)[0]
        return {outcome(family) for family in families} == {"holds"}

    def tally(self, *named: str) -> str:
        """How many of the claims have which verdict: "one “refuted”, three “not tested yet”"."""
        count = Counter(map(self.word, named))
        return ", ".join(f"{NUMBERS[count[v]]} “{v}”" for v in claims.VERDICTS if count[v])

    # ---- numbers

    def families(self, chapter: str) -> dict[str, dict]:
        """The families that a chapter has facts for, {name: {model: {quantity: fact}}}."""
        known = claims.CHAPTERS | {row["chapter"] for row in self.rows}
        if chapter not in known:
            raise PostError(f"post.md reads chapter {chapter!r}; there are "
                            f"{', '.join(sorted(known))}.")
        found = self.names["this"].get(params.chapter_key(chapter), {})
        return dict(sorted(found.items(), key=lambda item: [*FAMILIES, *found].index(item[0])))

    def _fact(self, chapter, family, model, quantity):
        """A fact or None; PostError if the model or the quantity is in no fact and no rule."""
        terms = [term for claim in self.claims.values() for part in claim["parts"]
                 for term in part["parsed"] if isinstance(term, dict)]
        for name, value in (("model", model), ("quantity", quantity)):
            if (chapter, value) not in {(row["chapter"], row[name]) for row in self.rows + terms}:
                raise PostError(f"post.md reads {model}.{quantity} of chapter {chapter}; no fact "
                                f"and no rule there has the {name} {value!r}.")
        return self.families(chapter).get(family, {}).get(model, {}).get(quantity)

    def ours(self, chapter: str, model: str, quantity: str, percent: bool = True) -> str:
        """A fact in each family, with intervals: "60 % [55, 65] and 68 % [64, 72]"."""
        told = []
        for family in self.families(chapter):
            fact = self._fact(chapter, family, model, quantity)
            text = fact["text"] if fact else "not measured"
            if fact and percent:
                text = formats.percents([fact[key] for key in ("value", "low", "high")])
            told.append(text)
        return " and ".join(told)

    def published(self, claim: str, phrase: str) -> str:
        """The published figure of the claim that has `phrase`, with version, place and status."""
        self._judged(claim)
        found = [f for f in self.claims[claim]["published"] if phrase in f["figure"]]
        if len(found) != 1:
            raise PostError(f"post.md wants the published figure of claim {claim!r} with "
                            f"{phrase!r}; {len(found)} have it, exactly one must.")
        figure = found[0]
        link = r"[\g<0>](https://arxiv.org/abs/\1)"
        source = re.sub(r"arXiv (\d{4}\.\d{5})", link, f"{figure['version']}; {figure['where']}")
        status = {"verified": "verified", "reported": "reported by a third party, not checked"}
        return f"{figure['figure'].strip()} (*{source}; {status[figure['status']]}*)."

    # ---- pages and figures

    def page(self, chapter: str, text: str) -> str:
        """`text`, linked to the page of "02", "verdict" or "index" where the contents have one."""
        if chapter in self.pages:
            return f"[{text}]({self.link(self.pages[chapter])})"
        if chapter not in {claim["chapter"] for claim in self.claims.values()}:
            known = ", ".join(self.pages)
            raise PostError(f"post.md links to page {chapter!r}; _toc.yml has {known}.")
        return text

    def figure(self, captions: dict[str, str]) -> str:
        """The first figure that exists, with its alt text; captions: dict file name -> caption."""
        folder = self.root / "results" / self.profile / "figures"
        path = next((folder / name for name in captions if (folder / name).exists()), None)
        if path is None:
            raise PostError(f"post.md shows one of {', '.join(captions)}; {folder} has none.")
        self.figures.append(path)
        alt = description(path).translate(str.maketrans("[]", "()"))  # brackets would end it
        return f"![{alt}]({self.image(path)})\n\n*{captions[path.name]}*"


def _line(error):
    """The line of the template at which an error came up, to which Jinja2 maps its code's lines;
    the first, if it came up before there was code."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if frame.filename == "<template>"), 1)


def words(markdown: str) -> int:
    """How many words a reader sees; neither link targets nor alt texts count."""
    text = re.sub(r"!\[[^]]*\]\([^)]*\)", "", markdown)
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
