"""What chapters 3 and 5 define in their cells, and what the claims ask of them."""

import ast
import random
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from locksmith import stats
from locksmith.book import plots
from locksmith.experiments import critics, tuning
from repository import ROOT


def sources(name):
    nb = nbformat.read(ROOT / f"chapters/{name}.ipynb", as_version=4)
    return [cell.source for cell in nb.cells if cell.cell_type == "code"]


THREE, FIVE = sources("03_one_problem"), sources("05_cheaper_keys")


def defined(code, **scope):
    """A namespace with the functions and literal constants of cells, and nothing run."""
    for source in code:
        for node in ast.parse(source).body:
            literal = isinstance(node, ast.Assign) and isinstance(
                node.value, ast.Constant | ast.List | ast.Tuple)
            if isinstance(node, ast.FunctionDef):
                exec(ast.unparse(node), scope)
            elif literal:
                try:
                    exec(ast.unparse(node), scope)
                except NameError:  # made of what runs before it
                    continue
    return scope


def outcome(correct, strategy):
    correct, strategy = np.asarray(correct, bool), np.asarray(strategy, bool)
    return SimpleNamespace(correct=correct, trace=correct, strategy=strategy)


@pytest.fixture
def chapter():
    """Chapter 3 with two seeds, two single problems and outcomes that are known."""
    rng = np.random.default_rng(0)

    def draw(rate):
        return outcome(rng.random((50, 4)) < rate, rng.random((50, 4)) < 0.5)
    base, thinking = ([[draw(rate)] for _ in range(2)] for rate in (0.1, 0.7))
    scope = defined(THREE, np=np, stats=stats, tuning=tuning, critics=critics, plots=plots,
                    outcomes={("chain", "base"): base, ("chain", "thinking"): thinking,
                              ("chain", "critiques"): [[b[0], t[0]] for b, t in zip(base, thinking)]})
    return scope


def test_a_problem_that_gains_all_and_one_that_gains_nothing_make_half(chapter):
    whole = chapter["recovered"]("chain", "critiques")
    assert whole.value == pytest.approx(0.5)
    assert chapter["recovered"]("chain", "critiques", slice(0, 1)).value == pytest.approx(0)
    assert chapter["recovered"]("chain", "critiques", slice(1, 2)).value == pytest.approx(1)
    assert whole.low < 0.2 and whole.high > 0.8  # two problems that differ: nothing is certain


def test_the_split_of_the_page_adds_up_to_the_gain(chapter):
    when, how = chapter["split"]("chain", "thinking")
    means = [np.mean([row[0].correct.mean() for row in chapter["outcomes"]["chain", which]])
             for which in ("base", "thinking")]
    assert when.value + how.value == pytest.approx(means[1] - means[0])


def test_arms_differ_in_what_they_say(chapter):
    """Of one problem's solutions every arm makes as many pairs, with targets of its own."""
    pairs = [([1, 2], [3, 4]), ([5], [6]), ([7], [8])]
    chapter |= {"single": {"chain": [None]}, "solutions": {"chain": [[]]},
                "rng_for": lambda *key: random.Random(str(key)),
                "tuning": SimpleNamespace(
                    critique_pairs=lambda family, p, rows, critic, rng: [
                        (a, [critic.__name__, *b]) for a, b in pairs],
                    shuffle_targets=tuning.shuffle_targets,
                    solution_pairs=lambda problems, rows, right: right)}
    exec(next(ast.unparse(n) for s in THREE for n in ast.parse(s).body
              if isinstance(n, ast.FunctionDef) and n.name == "pairs_of"), chapter)
    made = {arm: chapter["pairs_of"](arm, "chain", 0)
            for arm in (*chapter["MAIN"], "noisy critiques", "SFT right", "SFT wrong")}
    assert made["SFT right"] is True and made["SFT wrong"] is False
    assert [b[0] for _, b in made["flipped critiques"]] == ["flipped"] * 3
    assert [b[0] for _, b in made["format only"]] == ["form"] * 3
    shuffled, exact = made["shuffled critiques"], made["critiques"]
    assert [a for a, _ in shuffled] == [a for a, _ in exact]
    assert all(a != b for (_, a), (_, b) in zip(shuffled, exact))


def test_every_arm_that_is_drawn_has_a_look():
    shown = next(node.value for source in THREE for node in ast.parse(source).body
                 if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "SHOWN")
    names = [n.value for n in ast.walk(shown) if isinstance(n, ast.Constant)]
    assert len(names) >= 10
    for name in names:
        plots.look(name)
