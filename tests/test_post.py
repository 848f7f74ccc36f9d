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
SOURCES = ("_config.yml", "_toc.yml", "claims.yml", "arms.yml", "params.yaml", "_static/key.svg")
FIGURE = "02_trace_pass_at_k.png"
ALT = "Two bars [0, 1]: the base model and the thinking model"
# A post of the least length, with one of everything.
POST = """# A title

First words on pre-training, RL, a rollout, a steering vector and pass@k.

{{ figure("02_trace_pass_at_k.png", "Shares.") }}

{% call holds("02:base.pass_at_k[k=1].high < 0.3") %}
One answer in {{ percent("02", "countdown", "base", "pass_at_k[k=1]") }} is right, says
{{ quoted("hybrid-steering", "91 % of the gap") }}, on {{ page("02", "a page") }}.
{% endcall %}

""" + "word " * 900 + "\n\n{{ found() }}\n\n{{ numbers() }}\n"
BESIDE = {"base.pass_at_k[k=1]": 0.2, "thinking.pass_at_k[k=1]": 0.6, "greedy.pass_at_k[k=1]": 0.0,
          "base.trace_pass_at_k[k=1]": 0.1, "base.trace_pass_at_k[k=64]": 0.95,
          "thinking.trace_pass_at_k[k=1]": 0.6}


def rows_of_the_post():
    """Facts under which all rules hold, and those of BESIDE in chapter 2."""
    rows, one = rows_where_all_holds(), rows_where_all_holds()[0]
    rows += [{**one, "chapter": "02", "family": family, "model": name.partition(".")[0],
              "quantity": name.partition(".")[2], "value": value, "low": value - 0.004,
              "high": value + 0.004} for name, value in BESIDE.items()
             for family in ("countdown", "chain")]
    return list({(r["chapter"], r["family"], r["model"], r["quantity"]): r for r in rows}.values())


def repository(root, rows, text=POST):
    """What a post is made from: these facts as the lab's results, and a placeholder figure."""
    (root / "_static").mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        shutil.copy(ROOT / name, root / name)
    (root / "post.md").write_text(text)
    for chapter in {row["chapter"] for row in rows}:
        facts = [recorded(row) for row in rows if row["chapter"] == chapter]
        results.save(root / "results" / "lab" / f"{chapter}.json",
                     record("lab", chapter, facts, rules.standing(root / "claims.yml")))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        results.facts()
    fig, axes = plots.figure()
    axes.bar(["base", "thinking"], [0.2, 0.7])
    plots.save(fig, root / "results" / "lab" / "figures" / FIGURE, ALT)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return repository(tmp_path_factory.mktemp("repo"), rows_of_the_post())


@pytest.fixture
def draft(root, tmp_path):
    """A function that renders another template over the same facts."""
    copy = tmp_path / "draft"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("build"))

    def render(text):
        (copy / "post.md").write_text(text)
        return writer(copy).render()
    return render


def writer(root):
    return Writer(root, lambda page: f"/{page}", lambda path: path.name)


def flat(text):
    return " ".join(text.split())


# ---- guards


def test_a_sentence_that_no_longer_holds_fails_the_build_by_name(draft, root):
    block = '{%% call holds("%s") %%}\nIt does worse.\n{%% endcall %%}'
    rule = "02:greedy.pass_at_k[k=1].high < 02:base.pass_at_k[k=1].low"
    assert draft(block % rule) == "It does worse.\n"
    other = "02:base.pass_at_k[k=1].high < 02:greedy.pass_at_k[k=1].low"
    with pytest.raises(PostError, match=re.escape(f"no longer holds: 'It does worse.' ({other})")):
        draft(block % other)
    with pytest.raises(PostError, match="no longer holds"):
        draft(block % f'{rule}", "{other}')
    with pytest.raises(claims.ClaimsError, match="unfavourable"):
        draft(block % "02:base.pass_at_k[k=1].high > 02:greedy.pass_at_k[k=1].low")
    one = writer(root)
    one.facts["lab"]["ch02"]["chain"]["greedy"]["pass_at_k[k=1]"]["high"] = 0.5
    assert not one.everywhere(rule)  # a single family differs


def test_a_sentence_on_a_verdict_stands_and_falls_with_it(draft):
    block = '{%% call judged("one-problem", "%s"%s) %%}\nSo it is.\n{%% endcall %%}'
    assert draft(block % ("holds", "")) == "So it is.\n"
    with pytest.raises(PostError, match="'So it is.' .claim one-problem is 'holds', not 'refuted'"):
        draft(block % ("refuted", ""))
    with pytest.raises(PostError, match="is 'not tested yet', not 'holds'"):
        draft(block % ("holds", ', profile="open"'))


def test_every_number_of_the_post_stands_under_a_guard():
    text = (ROOT / "post.md").read_text()
    depth = 0
    numbers = "|".join(formats.STYLES)
    for tag in re.findall(r"\{% (call|endcall)|\{\{ (" + numbers + r")\(", text):
        depth += {"call": 1, "endcall": -1}.get(tag[0], 0)
        assert depth or not tag[1], tag
    assert depth == 0


@pytest.mark.parametrize("rule", sorted(set(re.findall(
    r'"(\d\d:[^"]+)"', (ROOT / "post.md").read_text()))))
def test_each_guard_of_the_post_can_stop_it(monkeypatch, rule):
    own = Writer.everywhere
    monkeypatch.setattr(Writer, "everywhere", lambda self, asked, profile="lab":
                        asked != rule and own(self, asked, profile))
    with pytest.raises(PostError, match=re.escape(f"({rule})")):
        writer(ROOT).render()


@pytest.mark.parametrize("template, said", [
    ("{{ this.ch02.countdown.nobody.x }}", "this"),
    ('{{ percent("02", "countdown", "nobody", "pass_at_k[k=1]") }}',
     "no rule there has the model 'nobody'"),
    ('{{ percent("02", "countdown", "base", "pass_at_k[k=3]") }}',
     "has the quantity 'pass_at_k[k=3]'"),
    ('{{ percent("02", "sums", "base", "pass_at_k[k=1]") }}', "for 'sums', which profile 'lab'"),
    ('{{ percent("70", "sums", "base", "pass_at_k[k=1]") }}', "of chapter 70; no fact"),
    ('{% call holds("02:base.pass_at_k[k=3].low > 0.5") %}x{% endcall %}',
     "has the quantity 'pass_at_k[k=3]'"),
    ('{% call judged("two-problems", "holds") %}x{% endcall %}', "two-problems"),
    ('{{ quoted("one-problem", "Qwen2.5") }}', "2 have it, exactly one must"),
    ('{{ quoted("one-problem", "sixty tasks") }}', "0 have it"),
    ('{{ page("09", "chapter 9") }}', "page '09'"),
    ('{{ figure("07_x.png", "x") }}', "07_x.png"),
    ("fine\n{{ unheard_of }}", "unheard_of"),
    ("fine\n{% if %}", "line 2"),
])
def test_an_unknown_name_fails_in_one_sentence(draft, template, said):
    with pytest.raises(PostError, match=re.escape(said)) as caught:
        draft(template)
    assert "\n" not in str(caught.value)


# ---- numbers


def test_no_measured_number_is_typed():
    """Neither between the braces nor outside; rules keep their thresholds, files their names."""
    names = r'"\d\d:[^"]*"|"\w+\.png"|\{\{ quoted\([^}]*\}\}|Qwen2.5-Coder-0.5B|arxiv.*?\)'
    text = re.sub(names, "", (ROOT / "post.md").read_text())
    assert not re.findall(r"\d[.,]\d|\d\s*(?:%|per ?cent|points)|\d+ of \d+", text)
    prose = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|^\d\. |R1\b", "", text, flags=re.S | re.M)
    assert set(re.findall(r"\d+", prose)) <= {"64"}  # how many samples, not what they gave


def test_numbers_of_the_text_stand_in_the_table_with_their_intervals(draft):
    text = draft('{{ percent("02", "countdown", "base", "pass_at_k[k=1]") }} and '
                 '{{ times("02", "chain", "thinking", "pass_at_k[k=1]") }}\n\n{{ numbers() }}')
    said, _, table = text.partition("\n\n")
    assert said == "20\u00a0% and 0.6"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[2][0] == "20\u00a0%" and rows[2][2] == "20 to 20" and rows[3][0] == "0.6"
    assert rows[2][1] == ("Countdown, base, k 1: share of problems with a right answer among k "
                          "samples")
    assert rows[3][2] == "0.60 to 0.60" and "[chapter 2](/chapters/02_" in rows[3][3]
    assert len(rows) == 4


def test_published_figures_say_which_are_checked(draft):
    verified = draft('{{ quoted("hybrid-steering", "91 % of the gap") }}')
    assert verified == "[91 % of the gap](https://arxiv.org/abs/2510.07364)"
    reported = draft('{{ quoted("hybrid-steering", "76 % of the gap") }}')
    assert reported == ("[76 % of the gap](https://arxiv.org/abs/2510.07364) "
                        "(reported by a third party, not checked)")


def test_the_table_of_claims_has_two_columns_and_every_verdict(draft):
    lines = draft("{{ found() }}").splitlines()
    listed = claims.load(ROOT / "claims.yml")["claims"]
    assert len(lines) == 2 + len(listed)
    for line, claim in zip(lines[2:], listed):
        claimed, found = line.strip("|").split(" | ")
        assert claimed.strip() == f"**{claim['title']}.** {flat(claim['claim'])}"
        assert found.startswith("In the lab: **holds**. ") and "<br>On real weights: **" in found


# ---- the folder


@pytest.fixture(scope="module")
def folder(root):
    return post.build(root)


def images(markdown):
    tokens = [child for token in MarkdownIt().parse(markdown) for child in token.children or []]
    return {token.attrs["src"]: token.content for token in tokens if token.type == "image"}


def test_folder_is_self_contained_and_pictures_have_alt_texts(folder, root):
    text, page = ((folder / f"post.{kind}").read_text() for kind in ("md", "html"))
    shown = images(text)
    assert list(shown) == [FIGURE]
    assert {path.name for path in folder.iterdir()} == {*shown, "post.md", "post.html", "card.png"}
    for name in shown:
        assert (folder / name).read_bytes() == (root / f"results/lab/figures/{name}").read_bytes()
        assert Image.open(folder / name).size == (1280, 680)  # twice the column of the page
    found = dict(re.findall(r'<img src="([^"]+)" alt="([^"]+)"', page))
    assert set(found) == {*shown, "card.png"}
    assert found[FIGURE] == ALT.replace("[0, 1]", "(0, 1)")
    assert not re.search(r"<(?:script|link(?! rel=.icon. href=.data:)|iframe)|url\(|@import", page)
    assert page.count("<table>") == 2


def test_title_is_the_same_everywhere(folder):
    title = (folder / "post.md").read_text().splitlines()[0].removeprefix("# ")
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
    assert told["description"] == POST.splitlines()[2]


def test_card_has_the_size_of_a_share_and_the_numbers_of_the_facts(folder):
    card = Image.open(folder / "card.png")
    assert card.size == (1200, 627) and len(card.getcolors(1 << 20)) > 10
    alt = card.info["Description"]
    assert ("Countdown, before RL, one answer: 10 %; Countdown, before RL, one of 64 answers: "
            "95 %") in alt
    assert "Chain, after RL, one answer: 60 %" in alt
    assert "four “holds”" in alt and len(FOUR) == 4


def test_the_card_of_the_book_shows_what_its_text_says():
    told = writer(ROOT)
    text = flat(told.render())
    for model, k in (("base", 1), ("thinking", 1), ("base", post.MANY)):
        assert ("lab", "02", "countdown", model, f"trace_pass_at_k[k={k}]") in told.told
    assert f"from *before* RL try {post.MANY} times" in text


def test_links_into_the_book_are_pages_of_its_contents(folder):
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    pages = {toc["root"], *(entry["file"] for entry in toc["chapters"])}
    home = site.address(ROOT / "_config.yml")
    assert home == "https://crediting-the-locksmith.github.io/book/"
    links = re.findall(r'<a href="([^"]+)"', (folder / "post.html").read_text())
    ours = [link.removeprefix(home) for link in links if link.startswith(home)]
    assert {link.removesuffix(".html") for link in ours} <= pages and ours
    others = {link for link in links if not link.startswith(home)}
    assert any(link.startswith("https://arxiv.org/abs/") for link in others)


def test_address_may_be_given_and_must_be_known(tmp_path):
    config = tmp_path / "_config.yml"
    config.write_text("repository: {url: https://example.org/x}\nhtml: {baseurl: https://a.b/c/}")
    assert site.address(config) == "https://a.b/c/"
    config.write_text("repository: {url: https://example.org/x}")
    with pytest.raises(site.BookError, match="html.baseurl"):
        site.address(config)


def test_rerunning_gives_the_same_bytes_and_a_failure_leaves_them(folder, root, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    post.build(root)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(sentences, "WORDS", (1, 5))
    length = sentences.words(before["post.md"].decode())
    with pytest.raises(PostError, match=f"makes {length} words"):
        post.build(root)
    monkeypatch.undo()
    monkeypatch.setattr(post, "card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        post.build(root)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [path.name for path in (root / "build").iterdir()] == ["post"]


def test_words_are_those_a_reader_sees():
    text = ("# A title\n\n![alt (x) text](a.png)\n\nSee [the *book*](https://a.b/c-d), "
            "9.5 % [1, 2].\n\n| a | table |\n|---|---|\n| of | words |\n")
    assert sentences.words(text) == 8


def test_the_repositorys_own_post_builds(tmp_path):
    shutil.copytree(ROOT / "results", tmp_path / "results")
    (tmp_path / "_static").mkdir()
    for name in (*SOURCES, "post.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    assert (post.build(tmp_path) / "post.html").exists()


# ---- the page of the book


def test_page_links_and_figures_are_relative_to_the_book():
    text = site.post(ROOT)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith("https://"):
            assert (ROOT / target).exists(), target
    assert list(images(text)) == [f"results/lab/figures/{FIGURE}"]
    first = yaml.safe_load((ROOT / "_toc.yml").read_text())["chapters"][0]
    assert first == {"file": "post"}
