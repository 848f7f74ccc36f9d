"""The rendered book: built once from a small profile made here, then looked at page by page."""

import html
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
import yaml
from locksmith import errors, results, rules
from locksmith.book import about, claims, endurance, glossary, integrity, looks, plots, site
from nbclient import NotebookClient
from PIL import Image
from test_claims import record, recorded
from test_looks import looks_of
from test_post import POST, rows_of_the_post

ROOT = Path(__file__).parents[1]
FINDINGS = """
"02":
  claim: base-already-samples
  profile: lab
  figure: pass_at_k
  minutes: 20
  findings:
    - says: 'One sample solves {{ countdown.base["pass_at_k[k=1]"].value | percent }} of them.'
      holds: ["02:base.pass_at_k[k=1].high < 0.3"]
  real:
    - says: '{{ sums.base["pass_at_k[k=1]"].value | percent }} of the sums.'
      holds: ["02:base.pass_at_k[k=1].high < 0.2"]
"06": {claim: pretraining-acquires, profile: open, figure: axis, findings: []}
"""
SOURCES = ("_config.yml", "_toc.yml", "index.md", "references.bib", "claims.yml",
           "arms.yml", "params.yaml", "play.md", "bring.md", "torture.md", "results/torture.json",
           "speed.md",
           *(f"results/lab/bench_{name}.json" for name in ("engine", "train", "trl", "waiting")),
           "results/open/bench_open.json", "glossary.md", "terms.yml", "CITATION.cff")
ALT = "Bars for the base model and the thinking model"
MATHS = "Unbiased: $1 - \\binom{n-c}{k} / \\binom{n}{k}$.\n\n$$\n\\hat{p} = \\frac{c}{n}\n$$"


def code(source, tags=(), outputs=()):
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)}, outputs=list(outputs))


def placeholder(title, figure):
    """An executed chapter: prose, maths, a hidden cell, a number and a figure with alt text."""
    bundle, metadata = figure._repr_mimebundle_()
    shown = nbformat.v4.new_output("display_data", bundle, metadata=metadata)
    printed = nbformat.v4.new_output("stream", text="solved 3 of 4\n")
    cells = [nbformat.v4.new_markdown_cell(f"# {title}\n\n{MATHS}"),
             code("secret_setting = 17", ["injected-parameters"]),
             code("print('solved 3 of 4')", outputs=[printed]),
             code("plots.save(fig, path, alt)", outputs=[shown])]
    return nbformat.v4.new_notebook(cells=cells, metadata={
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"}})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return repository(tmp_path_factory.mktemp("repo"))


def keep(notebook, name, root, *made_with, profile="lab"):
    """Keeps an executed chapter of a profile, as its run does."""
    path = f"build/notebooks/{profile}/{name}.ipynb"
    integrity.stamp(notebook, path, {file: results.sha256(root / file)
                                     for file in made_with})
    nbformat.write(notebook, root / path)


def repository(root):
    """A repository with facts, and executed chapters for the profile lab."""
    for profile in ("lab", "open"):
        (root / "results" / profile).mkdir(parents=True)
    for name in SOURCES:
        shutil.copy(ROOT / name, root / name)
    for name in ("_static", "play"):
        shutil.copytree(ROOT / name, root / name)
    (root / "findings.yml").write_text(FINDINGS)
    (root / "post.md").write_text(POST.replace("02_trace_pass_at_k", "02_pass_at_k"))
    by_chapter = {}
    for row in rows_of_the_post():
        by_chapter.setdefault(row["chapter"], []).append(row)
    current = rules.standing(root / "claims.yml")
    for chapter in ("00", "02"):
        facts = list(map(recorded, by_chapter[chapter]))
        results.save(root / "results" / "lab" / f"{chapter}.json",
                     record("lab", chapter, facts, current))
    solved = {"family": "sums", "model": "base", "quantity": "pass_at_k[k=1]", "value": 0.13,
              "low": 0.1, "high": 0.16, "n_problems": 100, "n_samples": 64, "seeds": 3}
    given = json.loads(record("open", "02", [recorded(solved)], current))
    given["provenance"]["parameters"] = {"chapter": {"base_model": "another's/model"}}
    results.save(root / "results" / "open" / "02.json", json.dumps(given))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        results.facts()
    for name, height in (("02_pass_at_k", 0.7), ("02_tokens", 0.9)):
        fig, axes = plots.figure()
        axes.bar(["base", "thinking"], [0.2, height])
        figure = plots.save(fig, root / "results" / "lab" / "figures" / f"{name}.png", ALT)
    for profile in ("lab", "open"):
        (root / "build" / "notebooks" / profile).mkdir(parents=True)
    for chapter in ("02_base_model_sampling", "06_real_weights"):
        keep(placeholder(f"Real {chapter[:2]}", figure), chapter, root, profile="open")
    listed = yaml.safe_load((ROOT / "_toc.yml").read_text())["chapters"]
    for name in (Path(entry["file"]).name for entry in listed if "chapters/" in entry["file"]):
        own = [file.relative_to(root).as_posix() for file in sorted(root.glob("results/lab/**/*"))
               if file.name.startswith(name[:2]) and file.is_file()]
        keep(placeholder(f"Placeholder {name[:2]}", figure), name, root, *own)
    verdict = nbformat.read(ROOT / "chapters" / "verdict.ipynb", 4)
    NotebookClient(verdict, resources={"metadata": {"path": root}}).execute()
    keep(verdict, "verdict", root, "results/facts.csv", "claims.yml")
    return root


@pytest.fixture(scope="module")
def pages(root):
    """{path below build/book: text} of every page, after one build without warnings."""
    index = site.build("lab", root)
    assert index == root / "build" / "book" / "index.html" and index.exists()
    files = index.parent.rglob("*.html")
    return {file.relative_to(index.parent).as_posix(): file.read_text() for file in files}


def chapter(pages):
    return pages["chapters/02_base_model_sampling.html"]


def test_colab_and_download_buttons(pages, root):
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    owner = config["repository"]["url"].removeprefix("https://github.com/")
    for name in ("00_the_lab", "02_base_model_sampling", "verdict"):
        page = pages[f"chapters/{name}.html"]
        assert (f"https://colab.research.google.com/github/{owner}/blob/main/chapters/{name}.ipynb"
                in page)
        assert f'href="../_sources/chapters/{name}.ipynb"' in page
        assert (root / "build" / "book" / "_sources" / "chapters" / f"{name}.ipynb").exists()
    assert config["repository"]["url"] in pages["index.html"]


def test_a_chapter_that_ran_on_real_weights_too_has_a_page_of_each(pages):
    """But for one that shows the same on either: the lab has no record of chapter 6 of its own."""
    name = f"02_base_model_sampling{about.REAL}"
    assert [page for page in pages if about.REAL in page] == [f"chapters/{name}.html"]
    own, real = chapter(pages), pages[f"chapters/{name}.html"]
    assert f'href="{name}.html"' in own and 'href="02_base_model_sampling.html"' in real
    assert "Real 02, on real weights" in real and "Placeholder 02" in own
    box = real[real.index("on weights that others trained"):]
    assert "another’s/model" in box.replace("'", "’") and "On real weights: not tested yet" in box
    assert "13\u00a0% of the sums." in box and "13\u00a0% of the sums." not in own
    assert "blob/main/chapters/02_base_model_sampling.ipynb" in real  # no notebook is called {name}
    assert f"blob/main/chapters/{name}" not in real and f"_sources/chapters/{name}.ipynb" in real


def test_address_stands_in_one_place():
    for name in ("index.md", "claims.yml", "_toc.yml", "references.bib"):
        assert "crediting-the-locksmith" not in (ROOT / name).read_text()


def test_no_page_asks_another_host_for_anything(pages):
    loads = re.compile(r"<(?:script|img|iframe|source|embed)\b[^>]*\bsrc=[\"']?(?:https?:)?//"
                       r"|<link\b[^>]*href=[\"']?(?:https?:)?//", re.I)
    for name, text in pages.items():
        assert not loads.findall(text), name
        assert not re.search(r"unpkg|jsdelivr|cdnjs|googleapis|plausible|thebe@", text), name


def test_no_script_or_style_of_the_book_names_another_host(root, pages):
    static = root / "build" / "book" / "_static"
    for file in static.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", file.read_text()), file
    assert not list(static.rglob("*thebe*"))


def test_maths_is_on_the_page_without_a_script(pages):
    text = chapter(pages)
    assert text.count("<math ") == 2 and "<mfrac" in text and 'display="block"' in text
    assert not re.search(r"<script[^>]*mathjax", text, re.I) and r"\binom" not in text


@pytest.mark.parametrize("latex", [r"\begin{aligned} a &= b \\ c &= d \end{aligned}"])
def test_maths_that_has_no_translation_is_refused(latex):
    with pytest.raises(ValueError, match="more simply"):
        site.mathml(latex, "block")


def test_figure_has_its_alt_text_and_set_up_cells_are_hidden(pages, root):
    assert f'alt="{ALT}"' in chapter(pages)
    css = (root / "build" / "book" / "_static" / "book.css").read_text()
    for tag in ("injected-parameters", "colab"):
        assert re.search(rf"\.cell\.tag_{tag}\b[^{{]*\{{\s*display: none", css)
    assert "tag_injected-parameters" in chapter(pages) and "book.css" in chapter(pages)


def test_index_shows_the_computed_verdicts_and_links_to_each(pages):
    text = pages["index.html"]
    verdict = pages["chapters/verdict.html"]
    anchors = re.findall(r'href="chapters/verdict.html#([^"]+)"', text)
    assert len(anchors) == len(claims.load(ROOT / "claims.yml")["claims"])
    for anchor in anchors:
        assert f'id="{anchor}"' in verdict
    assert "<strong>holds</strong>. Every part holds" in text and "not tested yet" in text
    assert "(stale)" not in text


def test_verdict_page_shows_every_claim_with_numbers_and_status(pages):
    text = pages["chapters/verdict.html"]
    assert "0.95, at least 0.60" in text
    assert "reported by a third party, not checked" in text
    assert "<strong>In the lab: holds.</strong> Every part holds." in text
    for claim in claims.load(ROOT / "claims.yml")["claims"]:
        assert f"<h2>{claim['title']}<a" in text.replace("’", "'")


def test_chapters_open_with_claim_verdict_findings_figure_and_price(pages):
    boxed = {name for name, text in pages.items() if "What this chapter tests" in text}
    assert boxed == {f"chapters/{x}.html" for x in ("02_base_model_sampling", "06_real_weights")}
    text = chapter(pages)
    text = text[text.index("<body"):]  # the head describes the page in its own words
    assert text.index("<h1>") < text.index("What this chapter tests") < text.index("Unbiased")
    box = text[text.index("What this chapter tests"):text.index("Unbiased")]
    assert "<strong>In the lab: holds.</strong>" in box
    assert box.count("<li>") == 1 and "One sample solves 20\u00a0% of them." in box
    assert f'alt="{ALT}" src="../_images/02_pass_at_k.png"' in box
    assert "20 minutes on two cores" in box
    assert "github/crediting-the-locksmith/book/blob/main/chapters/02_base_model_sampl" in box
    assert "dvc repro -f -s chapter-02" in re.sub("<[^>]+>", "", box)
    assert 'href="verdict.html#base-models-already-produce' in box


def test_a_finding_that_no_longer_holds_fails_the_build_by_name(root, tmp_path):
    copy = tmp_path / "repo"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("book", "asm", "site"))
    for old, new, sentence in (("high < 0.3", "high < 0.1", "no longer holds: 'One sample solves"),
                               ('["pass_at_k[k=1]"]', '["pass_at_k[k=3]"]', "cannot be told"),
                               ("base-already-samples", "base-samples", "names claim 'base-sampl")):
        (copy / "findings.yml").write_text(FINDINGS.replace(old, new))
        with pytest.raises(errors.BadInput, match=sentence):
            site.assemble("lab", copy, tmp_path / "asm")
        assert not (tmp_path / "asm").exists()


def test_post_is_the_first_page_and_links_into_the_book(pages, root):
    text = pages["post.html"]
    assert re.search(r"<h1>(.*?)<", text)[1] == "A title"
    index = pages["index.html"]
    assert index.index('href="post.html"') < index.index('href="chapters/00_the_lab.html"')
    assert 'href="chapters/02_base_model_sampling.html"><span' in text  # not in the contents
    shown = re.findall(rf'<img alt="{ALT}" src="([^"]+)"', text)
    assert len(shown) == 1 and (root / "build" / "book" / shown[0]).exists()
    assert "One answer in 20\u00a0% is right" in text and "**" not in text and "{{" not in text
    assert text.count("<table") == 2


def test_downloads_are_there(root, pages):
    found = {p.name for p in (root / "build" / "book" / "_downloads").rglob("*") if p.is_file()}
    assert {"facts.csv", "claims.yml"} <= found


def test_numbers_reach_the_prose_and_an_unknown_one_fails_the_build(root, tmp_path):
    copy = tmp_path / "repo"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("book", "asm", "site"))
    known = '{{ "%.2f" | format(this.ch02.countdown.base["pass_at_k[k=1]"].value) }} of'
    unknown = "{{ this.ch02.chain.nobody.x }}"
    (copy / "index.md").write_text(f"# Title\n\nSolved {known} {unknown}\n")
    with pytest.raises(site.BookError, match="nobody"):
        site.build("lab", copy)
    (copy / "index.md").write_text(
        f'# Title\n\nSolved {known} {{{{ res.lab.ch02.chain.base["pass_at_k[k=1]"].text }}}}.\n')
    text = site.build("lab", copy).read_text()
    assert "Solved 0.20 of 0.20 [0.20, 0.20]." in text


def test_a_chapter_that_was_not_executed_is_named_in_one_sentence(root, tmp_path):
    with pytest.raises(site.BookError) as caught:
        site.assemble("smoke", root, tmp_path / "asm")
    message = str(caught.value)
    assert "chapters/00_the_lab" in message and "smoke" in message and "\n" not in message
    assert not (tmp_path / "asm").exists()


def test_a_chapter_whose_stage_is_frozen_has_its_page_before_it_is_run(root, tmp_path):
    copy, name = tmp_path / "repo", "chapters/07_keys_never_cut.ipynb"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("book", "asm", "site"))
    (copy / "build/notebooks/lab/07_keys_never_cut.ipynb").unlink()
    with pytest.raises(site.BookError, match="07_keys_never_cut of _toc.yml not executed"):
        site.assemble("lab", copy, tmp_path / "asm")
    (copy / "chapters").mkdir()
    for file in (name, "dvc.yaml"):
        shutil.copy(ROOT / file, copy / file)
    cells = json.loads((site.assemble("lab", copy, tmp_path / "asm") / name).read_text())["cells"]
    assert "This chapter has not been run yet." in cells[0]["source"]
    assert len(cells) == len(nbformat.read(ROOT / name, 4).cells)
    (copy / "build/notebooks/lab/02_base_model_sampling.ipynb").unlink()  # whose stage is not
    with pytest.raises(site.BookError, match="02_base_model_sampling of _toc.yml not executed"):
        site.assemble("lab", copy, tmp_path / "asm")


def test_scripts_of_a_page_come_with_it_alone(pages, root):
    """The models' weights are scripts."""
    for name in ("engine.js", "page.js", "made.js", "page.css"):
        assert (root / "build/book/play" / name).is_file()
        assert [page for page, text in pages.items() if f"play/{name}" in text] == ["play.html"]
    made = (root / "build/book/play/made.js").read_text()
    assert made.startswith('const locksmithMade = {"header": null, ')


def test_chapters_of_the_contents_are_notebooks_of_the_repository():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    first, *chapters, played, bring, torture, speed, last = [
        entry["file"] for entry in toc["chapters"]]
    listed = {Path(chapter).name for chapter in chapters}
    assert (first, played, bring, torture, speed, last) == (
        "post", "play", "bring", "torture", "speed", "glossary")
    assert {path.stem for path in (ROOT / "chapters").glob("*.ipynb")} == listed


def test_what_the_pipeline_survives_is_counted_from_its_file(pages, root):
    text = pages["torture.html"]
    rows = json.loads((root / "results" / "torture.json").read_text())["faults"]
    assert f"{len(rows)} faults were injected" in text and "{{" not in text
    survived = sum(row["outcome"] == "survived" for row in rows)
    assert re.search(rf"<strong>survived</strong></p></td>\s*<td[^>]*><p>{survived}</p>", text)
    for group in {row["group"] for row in rows}:
        assert f"<p>{group}</p>" in text.replace("’", "'")


@pytest.mark.parametrize("content", ["", "[]", '{"faults": []}', "[" * 100_000, '{"faults": [{}]}',
                                     '{"faults": [{"kind": "kill", "outcome": "fine"}]}'])
def test_a_torture_file_of_another_form_is_named(content, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / endurance.FILE).write_text(content)
    with pytest.raises(errors.BadInput, match="results/torture.json is not what"):
        endurance.load(tmp_path)


def test_the_page_on_speed_has_its_tables(pages, root):
    text = pages["speed.html"]
    assert text.count("<table") == 6 and "{{" not in text and "{% " not in text
    facts = json.loads((root / "results/lab/bench_engine.json").read_text())["facts"]
    for fact in facts:
        if fact["quantity"] == "tokens_per_second":
            assert f"<p>{fact['value']:,.0f} [{fact['low']:,.0f}, {fact['high']:,.0f}]</p>" in text
    assert "Not yet measured on a GPU" in text
    assert "sh benchmarks/gpu.sh" in re.sub("<.*?>", "", text)


# ---- what a page says of itself, and what explains its words


def test_whoever_shares_a_page_sees_what_it_is(pages, root):
    home = site.address(ROOT / "_config.yml")
    card = Image.open(root / "build" / "book" / about.CARD)
    assert card.size == about.CARD_SIZE
    described, own = set(), {x: text for x, text in pages.items() if not x.startswith("_static")}
    for name, text in own.items():
        told = dict(re.findall(r'<meta (?:name|property)="([^"]+)" content="([^"]*)">', text))
        assert told["og:image"] == home + about.CARD and told["og:url"] == home + name, name
        assert html.unescape(told["og:image:alt"]) == card.info["Description"]
        assert told["twitter:card"] == "summary_large_image" and told["og:title"], name
        assert 40 < len(html.unescape(told["description"])) <= about.LENGTH, name
        described.add(told["description"])
        icon = re.search(r'<link rel="icon" href="([^"]+)"', text)[1]
        assert (root / "build" / "book" / name).parent.joinpath(icon).is_file()
    assert len(described) > 2


def test_a_term_is_explained_where_a_page_first_uses_it(pages):
    terms, of_arms = glossary.load(ROOT)
    anchors = set(re.findall(r'id="(term-[^"]+)"', pages["glossary.html"]))
    assert len(anchors) == len(terms) + len(of_arms)
    says = {term.says for term in [*terms, *of_arms]}
    for name in ("index.html", "post.html", "torture.html"):
        found = re.findall(r'<a class="tip term" href="glossary.html#([^"]+)" aria-describedby="'
                           r'([^"]+)">[^<]+</a><span class="says" role="tooltip" id="([^"]+)">'
                           r'([^<]+)</span>', pages[name])
        assert len(found) > 3 and all(at in anchors and one == other
                                      for at, one, other, _ in found), name
        shown = [html.unescape(told) for *_, told in found]
        assert len(shown) == len(set(shown)) and set(shown) <= says
        assert not re.search(r"<h\d>[^\n]*class=\"tip term", pages[name])
    assert "tip term" not in pages["glossary.html"]


def test_a_citation_shows_its_reference(pages):
    found = re.findall(r'<a class="tip" href="#[^"]+" [^>]+>Yue.*?</a><span [^>]+>([^<]+)<',
                       pages["index.html"])
    assert found and "Does reinforcement learning really incentivize" in found[0]


def test_the_first_page_says_how_to_cite(pages):
    given = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    text = re.sub(r"<[^>]+>", "", pages["index.html"])
    assert f"version = {{{given['version']}}}" in text and "@software{" in text
    assert f"{given['authors'][0]['name']}. {given['title']}. Version {given['version']}." in text


def test_no_link_is_broken_and_every_text_is_seen(pages, root):
    book = root / "build" / "book"
    assert looks.links(book) == []
    some = ["index.html", "glossary.html", "chapters/02_base_model_sampling.html"]
    assert looks_of([book / name for name in some], book) == []
