"""README's layout names one room for a new task, a new steering control and a new claim.

Each is added there, in a copy of the repository, and is then seen on its page.
"""

import nbformat
import pytest
from repository import copy
from test_pipeline import Book

TASK = '''
"""Products: two single digits multiplied."""

import random

from locksmith import words

GENERATOR = {}
OPENINGS = {}


def problems(split, n, seed, generator):
    rng = random.Random(f"products {split} {seed}")

    def draw():
        a, b = rng.randint(2, 99), rng.randint(2, 99)
        work = f"{a} * {b} = {a * b}."
        return words.WordProblem("products", f"Calculate {a} * {b}.", str(a * b), work)
    return words.distinct(draw, n, split)


def question(problem):
    return problem.question


prompt = words.prompt
grade, steps, stated, strategy = words.grade, words.steps, words.stated, words.works_out
guess, review, critique, verdict = (
    words.guess_answer, words.review, words.critique, words.verdict)
turned, form, fact_prompt = words.turned, words.form, words.fact_prompt
'''
ARM = '''

@over_settings
def doubled_bias(fits):
    "a stronger nudge is enough"
    return replace(hybrid(fits), vectors=0 * fits.vectors + 2 * fits.fitted.bias)
'''
LABEL = '''
  doubled-bias: {role: control, look: brown, says: "Twice the bias and no vector of a category."}
'''
CLAIM = '''
  - id: bias-is-weak
    title: Doubling the bias does nothing
    chapter: "01"
    claim: Twice the bias is no better than the bias.
    published: []
    ours: Accuracy under twice the bias.
    parts:
      - id: low
        kind: core
        says: it stays low
        rule: doubled-bias.pass_at_k[k=1].high < 0.5
    mind: An accuracy above one half.
'''


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The copy, with the toy's chapter 1 and the verdict page executed in it."""
    book = Book(copy(tmp_path_factory.mktemp("newcomer")))
    (book.folder / "lib/locksmith/tasks/products.py").write_text(TASK.lstrip())
    for name, more in (("lib/locksmith/experiments/steering_arms.py", ARM), ("arms.yml", LABEL),
                       ("claims.yml", CLAIM)):
        path = book.folder / name
        path.write_text(path.read_text().rstrip("\n") + "\n" + more)
    run = "python", "-m", "locksmith.book.notebooks", "run"
    book.run(*run, "chapters/01_hybrid_steering.ipynb", "--profile", "toy", "--set",
             "tasks=[products]")
    book.run("python", "-m", "locksmith.results", "facts")
    book.run(*run, "chapters/verdict.ipynb", "--profile", "toy")
    return book


def page(book, chapter):
    """What the cells of an executed chapter gave, as text."""
    file = next((book.folder / "build/notebooks/toy").glob(f"{chapter}*.ipynb"))
    return "\n".join(output.get("text") or "".join(output.get("data", {}).values())
                     for cell in nbformat.read(file, as_version=4).cells
                     for output in cell.get("outputs", []))


def test_a_task_an_arm_and_a_claim_are_seen_where_they_belong(book):
    said = page(book, "01")
    assert "Calculate" in said and "products" in said
    assert "doubled bias" in said and "Twice the bias and no vector" in said
    assert "a stronger nudge is enough" in said
    verdicts = page(book, "verdict")
    assert "**Doubling the bias does nothing**" in verdicts
    assert "it stays low `doubled-bias.pass_at_k[k=1].high < 0.5`" in verdicts
