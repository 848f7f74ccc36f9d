"""The post: no sentence outlives the facts it stood on; the folder it is taken from is whole."""

import html
import re
import shutil
from pathlib import Path

import pytest
import yaml
from locksmith import results, rules
from locksmith.book import claims, formats, plots, post, sentences, site
from locksmith.book.sentences import FOUR, PostError, Writer
from markdown_it import MarkdownIt
from PIL import Image
from test_claims import record, recorded, rows_where_all_holds

ROOT = Path(__file__).parents[1]
SOURCES = ("_config.yml", "_toc.yml", "post.md", "claims.yml", "arms.yml", "params.yaml",
           "_static/key.svg")
FIGURES = ("01_arms", "02_pass_at_k", "02_tokens", "05_cost")
ALT = "Two bars [0, 1]: the base model and the thinking model"


BESIDE = {  # what the post tells and no rule reads
    "00": {"thinking.valid_attempts": 0.95, "base.attempts": 1.0, "thinking.attempts": 6.0},
    "01": {f"{arm}.{quantity}": value for arm, value in (
        ("random-vectors", 0.0), ("bias-only", 0.0), ("reranking-alone", 0.0),
        ("random-positions", -0.1), ("base-decides-thinking-executes", 0.0))
        for quantity in ("gap_recovered", "steered_share")},
    "02": {"greedy.pass_at_k[k=1]": 0.0, "base.pass_at_k[k=1]": 0.2, "guess.pass_at_k[k=64]": 0.0,
           "base.trace_pass_at_k[k=1]": 0.1, "base.trace_pass_at_k[k=256]": 0.95,
           "thinking-traces.expected_base_samples": 1e9},
    "03": {f"{arm}.gap_recovered": 0.0 for arm in
           ("flipped-critiques", "shuffled-critiques", "format-only")}
    | {"thinking.gain_when": 0.4, "thinking.gain_how": 0.0},
    "04": {"base.probe_auroc": 0.9, "untrained.probe_auroc": 0.0,
           "base.cosine[against=thinking]": 0.9},
}


def rows_of_the_post():
    """Facts under which all rules hold, and those of BESIDE."""
    rows, one = rows_where_all_holds(), rows_where_all_holds()[0]
    rows += [{**one, "chapter": chapter, "family": family, "model": name.partition(".")[0],
              "quantity": name.partition(".")[2], "value": value, "low": value - 0.004,
              "high": value + 0.004} for chapter, facts in BESIDE.items()
             for name, value in facts.items() for family in ("countdown", "chain")]
    unique = {(r["chapter"], r["family"], r["model"], r["quantity"]): r for r in rows}
    return list(unique.values())


def all_rows():
    """Facts under which all rules hold but one: the base hardly writes the thinking traces."""
    return changed(rows_of_the_post(), "base", "trace_matches[against=thinking]", 0.1)


def changed(rows, model, quantity, value):
    ends = dict(value=value, low=value - 0.004, high=value + 0.004)
    return [{**r, **ends} if (r["model"], r["quantity"]) == (model, quantity) else r for r in rows]


def repository(root, rows, profile="lab", figures=FIGURES):
    """What the post is made from: these facts as a profile's results, and placeholder figures."""
    (root / "_static").mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        shutil.copy(ROOT / name, root / name)
    for chapter in {row["chapter"] for row in rows}:
        facts = [recorded(row) for row in rows if row["chapter"] == chapter]
        results.save(root / "results" / profile / f"{chapter}.json",
                     record(profile, chapter, facts, rules.standing(root / "claims.yml")))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        results.facts()
    for name in figures:
        fig, axes = plots.figure()
        axes.bar(["base", "thinking"], [0.2, 0.7])
        plots.save(fig, root / "results" / profile / "figures" / f"{name}.png", ALT)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return repository(tmp_path_factory.mktemp("repo"), all_rows())


@pytest.fixture
def draft(root, tmp_path):
    """A function that renders another template over the same facts."""
    copy = tmp_path / "draft"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("build"))

    def render(text):
        (copy / "post.md").write_text(text)
        return writer(copy).render()
    return render


def writer(root, profile="lab"):
    return Writer(profile, root, lambda page: f"/{page}", lambda path: path.name)


def flat(text):
    return " ".join(text.split())


# ---- what it says


def test_every_verdict_has_a_sentence_and_any_of_them_keeps_the_length(root, monkeypatch):
    """Each claim's verdicts, then the shortest and longest post that they make together."""
    listed = [claim["id"] for claim in claims.load(root / "claims.yml")["claims"]]
    assert set(FOUR) < set(listed)
    words = {}
    monkeypatch.setattr(Writer, "word", lambda self, claim, profile=None: words[claim])

    def length(claim=None, word=None):
        words.update(dict.fromkeys(listed, "not tested yet") | ({claim: word} if claim else {}))
        return sentences.words(writer(root).render())
    none = length()
    changes = [[length(claim, word) - none for word in claims.VERDICTS] for claim in listed]
    shortest, longest = (none + sum(map(end, changes)) for end in (min, max))
    assert sentences.WORDS[0] <= shortest and longest <= sentences.WORDS[1], (shortest, longest)


def test_a_verdict_that_changes_changes_its_sentence(root, tmp_path):
    assert "**It holds.** The controls stay low, and few steered" in flat(writer(root).render())
    cases = [("hybrid", "gap_recovered", 0.6, "**It holds in part.** In at least one kind the "
                                              "hybrid"),
             ("hybrid", "gap_recovered", 0.3, "the hybrid recovers less than half of the gap"),
             ("hybrid", "gap_difference[against=bias-only]", 0.02, "for the reason given.** Somet")]
    for i, (model, quantity, value, sentence) in enumerate(cases):
        copy = repository(tmp_path / str(i), changed(all_rows(), model, quantity, value))
        text = flat(writer(copy).render())
        assert sentence in text
        if quantity == "gap_recovered":
            assert f"{100 * value:.0f} % [{100 * value:.0f}, " in text
        assert "few steered tokens recover most" not in text


def test_a_sentence_that_no_longer_holds_fails_the_build_by_name(tmp_path):
    copy = repository(tmp_path / "repo", changed(all_rows(), "greedy", "pass_at_k[k=1]", 0.3))
    with pytest.raises(PostError, match="taking the likeliest word each time does worse than draw"):
        post.build("lab", copy)
    assert not list((copy / "build").glob("*post*"))


def test_holds_and_everywhere_see_one_family_that_differs(draft, root):
    rule = "02:greedy.pass_at_k[k=1].high < 02:base.pass_at_k[k=1].low"
    said = '{{ holds(everywhere("%s"), "It does worse.") }}'
    assert draft(said % rule) == "It does worse."
    with pytest.raises(PostError, match="no longer holds: 'It does worse.'"):
        draft(said % "02:base.pass_at_k[k=1].high < 02:greedy.pass_at_k[k=1].low")
    with pytest.raises(claims.ClaimsError, match="unfavourable"):
        draft(said % "02:base.pass_at_k[k=1].high > 02:greedy.pass_at_k[k=1].low")
    one = writer(root)
    one.names["this"]["ch02"]["chain"]["greedy"]["pass_at_k[k=1]"]["high"] = 0.5
    assert not one.everywhere(rule)


@pytest.mark.parametrize("missing", claims.VERDICTS)
def test_a_verdict_without_a_sentence_is_named_with_its_claim(draft, missing):
    sentences = {word: f"It is {word}." for word in claims.VERDICTS if word != missing}
    with pytest.raises(PostError, match=f"'one-problem' when it is '{missing}'"):
        draft(f'{{{{ by_verdict("one-problem", {sentences}) }}}}')


@pytest.mark.parametrize("template, said", [
    ("{{ this.ch02.countdown.nobody.x }}", "nobody"),
    ("{{ res.lab.ch70 }}", "ch70"),
    ('{{ ours("02", "nobody", "pass_at_k[k=1]") }}', "no rule there has the model 'nobody'"),
    ('{{ ours("02", "base", "pass_at_k[k=3]") }}', "has the quantity 'pass_at_k[k=3]'"),
    ('{{ everywhere("02:base.pass_at_k[k=3].low > 0.5") }}', "has the quantity 'pass_at_k[k=3]'"),
    ('{{ word("two-problems") }}', "two-problems"),
    ('{{ published("one-problem", "Qwen2.5") }}', "2 have it, exactly one must"),
    ('{{ published("one-problem", "sixty tasks") }}', "0 have it"),
    ('{{ page("09", "chapter 9") }}', "page '09'"),
    ('{{ figure({"07_x.png": "x"}) }}', "07_x.png"),
    ("fine\n{{ unheard_of }}", "unheard_of"),
    ("fine\n{% if %}", "line 2"),
])
def test_an_unknown_name_fails_in_one_sentence(draft, template, said):
    with pytest.raises(PostError, match=re.escape(said)) as caught:
        draft(template)
    assert "\n" not in str(caught.value)


def test_no_measured_number_is_typed():
    """Neither between the braces nor outside; rules keep their thresholds, files their names."""
    text = re.sub(r'everywhere\("[^"]*"\)|"\w+\.png"', "", (ROOT / "post.md").read_text())
    assert not re.findall(r"\d[.,]\d|\d\s*(?:%|per ?cent|points)|\d+ of \d+", text)
    prose = re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", text, flags=re.S)
    assert set(re.findall(r"\d+", prose)) <= {"256", "64"}  # how many samples, not what they gave


def test_every_measured_number_of_the_text_is_a_fact(root):
    text = writer(root).render()
    rows = claims.facts(root / "results" / "facts.csv")
    shown = re.findall(r"(?:under )?[\d.-]+(?: %)? \[[\d.-]+, [\d.-]+\]", text)
    assert len(shown) > 40
    ends = [[row[end] for end in ("value", "low", "high")] for row in rows]
    assert set(shown) <= {told for one in ends
                          for told in (formats.percents(one), formats.interval(one))}


def test_published_figures_say_which_are_checked(draft):
    for claim in claims.load(ROOT / "claims.yml")["claims"]:
        for figure in claim["published"]:
            line = draft(f'{{{{ published("{claim["id"]}", {figure["figure"][:45]!r}) }}}}')
            plain = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", line)
            assert plain.startswith(figure["figure"].strip())
            assert f"(*{figure['version']}; {figure['where']}; " in plain
            assert ("; verified*)" in line) == (figure["status"] == "verified")
            assert ("reported by a third party, not checked" in line) != ("verified" in line)


def test_what_was_not_run_or_means_nothing_still_makes_a_post(tmp_path):
    """Two chapters run, by one seed on few problems, and with no gap to recover a share of."""
    rows = [{**r, "n_problems": 4, "seeds": 1, "profile": "smoke"} for r in all_rows()
            if r["chapter"] in ("01", "02") and r["quantity"] != "gap_recovered"]
    copy = repository(tmp_path / "repo", rows, "smoke", ("02_pass_at_k", "02_tokens"))
    text = (post.build("smoke", copy) / "post.md").read_text()
    assert "of the gap, with 10 % [10, 10] and 10 % [10, 10] of the tokens" in flat(text)
    assert "hybrid recovers not measured and not measured" in flat(text)
    assert text.count("**Not run yet.**") == 3 and text.count("**Cannot tell.**") == 2


# ---- the folder


@pytest.fixture(scope="module")
def folder(root):
    return post.build("lab", root)


def images(markdown):
    tokens = [child for token in MarkdownIt().parse(markdown) for child in token.children or []]
    return {token.attrs["src"]: token.content for token in tokens if token.type == "image"}


def test_folder_is_self_contained_and_pictures_have_alt_texts(folder, root):
    text, page = ((folder / f"post.{kind}").read_text() for kind in ("md", "html"))
    shown = images(text)
    assert list(shown) == ["01_arms.png", "05_cost.png"]
    assert {path.name for path in folder.iterdir()} == {*shown, "post.md", "post.html", "card.png"}
    for name in shown:
        assert (folder / name).read_bytes() == (root / f"results/lab/figures/{name}").read_bytes()
        assert Image.open(folder / name).size == (1280, 680)  # twice the column of the page
    found = dict(re.findall(r'<img src="([^"]+)" alt="([^"]+)"', page))
    assert set(found) == {*shown, "card.png"}
    assert found["05_cost.png"] == ALT.replace("[0, 1]", "(0, 1)")
    assert not re.search(r"<(?:script|link(?! rel=.icon. href=.data:)|iframe)|url\(|@import", page)


def test_title_is_the_same_everywhere(folder):
    title = (folder / "post.md").read_text().splitlines()[0].removeprefix("# ")
    assert title == "We've been crediting the locksmith for the key"
    page = (folder / "post.html").read_text()
    assert f"<title>{title}</title>" in page and f"<h1>{title}</h1>" in page
    assert Image.open(folder / "card.png").info["Description"].startswith(title)


def test_whoever_shares_the_post_sees_its_card(folder):
    page = (folder / "post.html").read_text()
    told = dict(re.findall(r'<meta (?:name|property)="([^"]+)" content="([^"]+)">', page))
    home = site.address(ROOT / "_config.yml")
    assert told["og:image"] == told["twitter:image"] == f"{home}_static/card.png"
    card = Image.open(folder / "card.png")
    assert html.unescape(told["og:image:alt"]) == card.info["Description"]
    assert told["twitter:card"] == "summary_large_image" and told["og:url"] == f"{home}post.html"
    first = (folder / "post.md").read_text().split("\n\n")[1]
    assert " ".join(first.split()).startswith(told["description"].removesuffix(" …")[:60])


def test_card_has_the_size_of_a_share_and_the_numbers_of_the_facts(folder):
    card = Image.open(folder / "card.png")
    assert card.size == (1200, 627) and len(card.getcolors(1 << 20)) > 10
    alt = card.info["Description"]
    assert "Countdown, base, one sample: 10 %; Countdown, base, 256 samples: 95 %" in alt
    assert "Chain, after RL, one sample: 60 %" in alt
    assert "three “holds”, one “holds in part”" in alt


def test_links_into_the_book_are_pages_of_its_contents(folder):
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    pages = {toc["root"], *(entry["file"] for entry in toc["chapters"])}
    home = site.address(ROOT / "_config.yml")
    assert home == "https://crediting-the-locksmith.github.io/book/"
    links = re.findall(r'<a href="([^"]+)"', (folder / "post.html").read_text())
    ours = [link.removeprefix(home) for link in links if link.startswith(home)]
    assert {link.removesuffix(".html") for link in ours} <= pages and len(ours) >= 5
    others = [link for link in links if not link.startswith(home)]
    assert others and all(link.startswith("https://arxiv.org/abs/") for link in others)


def test_address_may_be_given_and_must_be_known(tmp_path):
    config = tmp_path / "_config.yml"
    config.write_text("repository: {url: https://example.org/x}\nhtml: {baseurl: https://a.b/c/}")
    assert site.address(config) == "https://a.b/c/"
    config.write_text("repository: {url: https://example.org/x}")
    with pytest.raises(site.BookError, match="html.baseurl"):
        site.address(config)


def test_rerunning_gives_the_same_bytes_and_a_failure_leaves_them(folder, root, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    post.build("lab", root)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(sentences, "WORDS", (1, 5))
    length = sentences.words(before["post.md"].decode())
    with pytest.raises(PostError, match=f"makes {length} words"):
        post.build("lab", root)
    monkeypatch.undo()
    monkeypatch.setattr(post, "card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        post.build("lab", root)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [path.name for path in (root / "build").iterdir()] == ["post"]


def test_words_are_those_a_reader_sees():
    text = "# A title\n\n![alt (x) text](a.png)\n\nSee [the *book*](https://a.b/c-d), 9.5 % [1, 2]."
    assert sentences.words(text) == 8


def test_the_repositorys_own_post_builds(tmp_path):
    shutil.copytree(ROOT / "results", tmp_path / "results")
    (tmp_path / "_static").mkdir()
    for name in SOURCES:
        shutil.copy(ROOT / name, tmp_path / name)
    assert (post.build("lab", tmp_path) / "post.html").exists()


# ---- the page of the book


def test_page_links_and_figures_are_relative_to_the_book(root):
    text = site.post("lab", root)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith("https://arxiv.org/"):
            source = root if target.startswith("results/") else ROOT
            assert (source / target).exists(), target
    assert list(images(text)) == ["results/lab/figures/01_arms.png",
                                  "results/lab/figures/05_cost.png"]
    first = yaml.safe_load((ROOT / "_toc.yml").read_text())["chapters"][0]
    assert first == {"file": "post"}
