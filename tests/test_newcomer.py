"""bring.md, followed to the letter in a copy of the repository: files as its blocks show them, then
its commands. What was added is then seen on its page."""

import html
import inspect
import random
import re
import shlex
import sys

import nbformat
import pytest
from locksmith import params, rewards, tasks
from locksmith.book import notebooks
from locksmith.experiments import critics
from markdown_it import MarkdownIt
from repository import ROOT, copy, git
from test_pipeline import Book

INTO = re.compile(r"(?:into|at the end\s+of) `([^`]+)`:$")  # what a block of a file stands behind


def recipes():
    """{heading: its blocks, each (language, content, the file that it goes to or None)}."""
    found, tokens = {}, MarkdownIt().parse((ROOT / "bring.md").read_text())
    heading, text = "", ""
    for before, token in zip(tokens, tokens[1:]):
        if before.type == "heading_open":
            heading = token.content
        elif token.type == "inline":
            text = token.content
        elif token.type == "fence":
            goes = INTO.search(text)
            found.setdefault(heading, []).append((token.info, token.content, goes and goes[1]))
    return found


RECIPES = recipes()
PAIR, *OWN = (RECIPES[f"Your own {what}"]
              for what in ("pair of models", "task", "control", "claim"))


def commands(blocks):
    """The commands of a recipe, one a line."""
    return [line for language, content, _ in blocks if language == "sh"
            for line in content.replace("\\\n", "").splitlines()]


def once(lines):
    """Each command once, at its last place, and in its longest form: recipes run a chapter for
    what they add, and here all is added before."""
    longest = [max((other for other in lines if other.startswith(line)), key=len)
               for line in lines]
    return [line for i, line in enumerate(longest) if line not in longest[i + 1:]]


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The copy, after all recipes but the first, in their order; `said`: by each command."""
    book = Book(copy(tmp_path_factory.mktemp("newcomer")))
    for language, content, name in sum(OWN, []):
        if language != "sh" and name:
            path = book.folder / name
            before = f"{path.read_text().rstrip()}\n\n\n" if path.exists() else ""
            path.write_text(before + content)
    installed = tmp_path_factory.mktemp("venv")  # as `make book` leaves it
    (installed / "bin").mkdir()
    python = installed / "bin/python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (installed / ".installed").touch()
    nobody = {f"GIT_{who}_{what}": "test@example.org" for who in ("AUTHOR", "COMMITTER")
              for what in ("NAME", "EMAIL")}
    book.variables |= nobody | {"VENV": str(installed)}
    *run, takes_out = once(sum(map(commands, OWN), []))
    book.said = {line: book.run("bash", "-ec", line) for line in run}
    book.takes_out = takes_out
    return book


def page(book, chapter):
    """What the cells of an executed chapter gave, as text."""
    file = next((book.folder / "build/notebooks/toy").glob(f"{chapter}*.ipynb"))
    return "\n".join(output.get("text") or "".join(output.get("data", {}).values())
                     for cell in nbformat.read(file, as_version=4).cells
                     for output in cell.get("outputs", []))


def text_of(page):
    return html.unescape(re.sub(r"<[^>]+>", "", page))


def test_a_task_is_well_formed_and_seen_in_the_chapter(book):
    """Four tests of its own, three of its file's order, and that of the interface."""
    said, = (said for line, said in book.said.items() if "pytest" in line)
    assert re.search(r"\b8 passed", said)
    chapter = page(book, "01")
    assert "Calculate" in chapter and "products" in chapter


def test_an_arm_is_seen_in_the_chapter(book):
    chapter = page(book, "01")
    assert "doubled bias" in chapter and "The shared vector at twice its length" in chapter
    assert "a stronger nudge is enough" in chapter


def test_a_claim_is_judged_on_the_verdict_page(book):
    built = book.folder / "build/pages/toy"
    first, verdicts = ((built / name).read_text() for name in ("index.html", "verdict.html"))
    assert 'href="verdict.html"' in first and first.count("<td><p><code") == 2  # both models
    row, = re.findall(r"<tr[^>]*>(?:(?!</tr>).)*#vectors-need-no-fitting.*?</tr>", verdicts, re.S)
    assert "<strong>cannot tell</strong>" in row
    assert "thinking pass_at_k[k=1] has 1 seed, 3 are needed" in text_of(row)
    assert 'id="vectors-need-no-fitting"' in verdicts
    assert "difference-of-means.gap_recovered.low > 0.5" in text_of(verdicts)


def test_the_rehearsal_leaves_no_number_behind(book):
    assert "toy," in (book.folder / "results/facts.csv").read_text()
    book.run("bash", "-ec", book.takes_out)
    assert git(book.folder, "status", "--porcelain", "results") == ""


# --- what needs no copy -----------------------------------------------------------------------


def test_the_command_for_one_chapter_of_a_pair_is_one_that_it_takes(monkeypatch):
    line, = (line for line in commands(PAIR) if "notebooks run" in line)
    words = shlex.split(line)
    chapter, profile = words[4], words[words.index("--profile") + 1]
    given = notebooks.changes(words[words.index("--set") + 1:])
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv(params.CHANGES, "")  # which `change` sets
    params.change(profile, params.chapter_key(notebooks.number(chapter)), given)
    taken = {**notebooks.parameters(chapter, profile), "seeds": params.load(profile)["seeds"]}
    assert taken == taken | given and "base_model" in given


def test_the_functions_of_other_chapters_do_what_they_say():
    block, = (text for language, text, name in OWN[1] if language == "python" and not name)
    exec(block, given := {})
    short, noisy = given["short"], given["noisy"]
    for ours, theirs in ((short, rewards.correct), (noisy, critics.exact)):
        assert list(inspect.signature(ours).parameters) == list(
            inspect.signature(theirs).parameters)
    assert [short(tasks.Grade(right, right, "1", attempts=n), None)
            for right, n in ((True, 4), (True, 5), (False, 4))] == [1, 0, 0]
    task, rng = tasks.load("sums"), random.Random(0)
    problem, = task.problems("test", 1, 0, task.GENERATOR)
    said = [noisy(task, problem, f" The answer is {problem.answer}.", rng) for _ in range(20)]
    assert {task.verdict(one) for one in said} == {"right", "wrong"}
