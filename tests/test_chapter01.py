"""What chapter 1's cells define: the rule of choice, the arms, and what the claims ask of it."""

import ast
import re
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from locksmith import renamed, stats
from locksmith.book import claims, plots
from locksmith.experiments import hybrid, vectors
from locksmith.experiments.taxonomy import Step
from repository import ROOT

NB = nbformat.read(ROOT / "chapters/01_hybrid_steering.ipynb", as_version=4)
CODE = [cell.source for cell in NB.cells if cell.cell_type == "code"]
TEXT = "\n".join(cell.source for cell in NB.cells if cell.cell_type == "markdown")


@pytest.fixture
def chapter():
    """A namespace with the chapter's functions and its literal constants, and nothing run."""
    scope = {"np": np, "stats": stats, "torch": torch, "F": F, "hybrid": hybrid, "plots": plots,
             "vectors": vectors, "lab": SimpleNamespace(load=lambda *a: None), "re": re}
    for source in CODE:
        for node in ast.parse(source).body:
            literal = isinstance(node, ast.Assign) and isinstance(
                node.value, ast.Constant | ast.List | ast.Tuple | ast.Dict)
            if isinstance(node, ast.FunctionDef) or literal:
                try:
                    exec(ast.unparse(node), scope)
                except NameError:
                    assert literal  # a table made of what runs before it
    return scope


def arm(correct, steered=0.1, tokens=40):
    """An arm of one sample a problem."""
    correct = np.array(correct, bool)[:, None]
    length = np.full(correct.shape, tokens)
    return SimpleNamespace(correct=correct, trace=correct, stopped=~correct, tokens=length,
                           steered=np.full(len(correct), steered), which=[[[-1, 2, 0, 2]]],
                           n_steered=int(steered * length.sum()))


def test_the_rule_takes_the_best_setting_that_steers_few_enough(chapter):
    good, fair, bad = [1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]
    settings = {"greedy": [arm(good, 0.5)], "sparse": [arm(fair, 0.1)], "idle": [arm(bad, 0.0)]}
    assert chapter["pick"](settings) == "sparse"
    assert chapter["pick"]({"greedy": settings["greedy"]}) == "greedy"  # nothing else is there
    assert chapter["share"]([arm(good, 0.5), arm(good, 0.1)]) == pytest.approx(0.3)


def test_recovery_and_share_by_hand(chapter):
    rng = np.random.default_rng(0)
    low, high = rng.random((3, 200)) < 0.2, rng.random((3, 200)) < 0.8
    half = np.where(np.arange(200) % 2, low, high)
    chapter["arms"] = {("chain", name, None): [arm(row) for row in table]
                       for name, table in (("base", low), ("thinking", high))}
    found = chapter["recovered"]("chain", [arm(row) for row in half])
    assert found.low < 0.5 < found.high and found.value == pytest.approx(
        (half.mean() - low.mean()) / (high.mean() - low.mean()))
    chapter["arms"]["chain", "thinking", None] = chapter["arms"]["chain", "base", None]
    assert chapter["recovered"]("chain", [arm(row) for row in half]) is None
    # a long trace counts for its tokens: 10 of 40 and 0 of 120 are 10 of 160
    mixed = arm([1, 1], 0.0)
    mixed.tokens, mixed.steered = np.array([[40], [120]]), np.array([0.25, 0.0])
    assert chapter["steered_share"]([mixed]).value == pytest.approx(10 / 160)


def test_the_true_kinds_replace_the_categories_and_nothing_else(chapter):
    steps = [Step(0, 3, 5, "wait"), Step(0, 5, 7, "measure"), Step(1, 2, 4, "try")]
    traces = vectors.Traces([[0] * 9] * 2, [1, 1], steps, True)
    study = vectors.Study(traces, [7, 7, 1], 8, None, [], 2, {}, None)
    found = chapter["labelled"](study)
    assert [hybrid.BEHAVIOURS[k] for k in found.categories] == ["wait", "try"]
    assert found.traces.steps == [steps[0], steps[2]] and found.n == 4 and found.layer == 2
    assert torch.equal(found.opening, hybrid.behaviour_table())


def everything(chapter):
    """The chapter's arms for made-up fits of three categories."""
    one = vectors.Fitted(torch.randn(8), torch.randn(3, 8), torch.randn(3, 8),
                         (torch.randn(4, 8), torch.randn(4)), (1.0, 0.5), 9.0)
    key = ("chain", 0)
    study = SimpleNamespace(n=3, opening=torch.tensor([0, 1, 2]), categories=[0, 2, 2])
    chapter.update(
        seeds=[0], layers=[1, 2], strengths=[1.0, 2.0], thresholds=[0.3],
        bodies={"chain": ["base", "twin", "untrained"]},
        chosen={"chain": (1, 2.0)}, studies={key: study}, commonest={key: 2},
        fitted={("chain", body, 0): {1: one, 2: one._replace(vectors=2 * one.vectors)}
                for body in ("base", "twin", "untrained", "unrelated", "base, true kinds",
                             "twin, true kinds")},
        others={key: (torch.randn(3, 8), torch.nn.Linear(8, 3), torch.randn(8))},
        tried={"chain": {(1, 2.0): [arm([1])]}},
        hybrid=SimpleNamespace(logit_push=lambda net, table, n: torch.eye(n, 8),
                               behaviour_table=hybrid.behaviour_table))
    return {name: curve[1.0] for name, curve in chapter["curves"]("chain", 0).items()} | chapter[
        "single"]("chain", 0), one


def test_every_control_changes_what_its_row_says_and_nothing_else(chapter):
    arms, one = everything(chapter)
    on = arms["hybrid"]
    assert (on["layer"], on["gate"], on["runs"], on["strength"]) == (1, "disagreement", "base", 1.0)

    def same(a, b):
        return torch.equal(a, b) if torch.is_tensor(a) and torch.is_tensor(b) else a is b or (
            not torch.is_tensor(a) and not torch.is_tensor(b) and a == b)

    def changed(name):
        return {k for k in on.keys() | arms[name] if not same(on.get(k), arms[name].get(k))}
    assert changed("bias only") == {"vectors"} and not arms["bias only"]["vectors"].any()
    assert changed("one vector") == {"vectors", "bias"}
    assert changed("other category") == {"gate"}
    # the chosen strength; the same made-up vectors stand in for those of the true kinds
    assert changed("true kinds") == {"table", "strength"}
    assert changed("oracle") == {"gate", "strength"} and arms["oracle"]["strength"] == 2.0
    assert arms["twin vectors, true kinds"]["runs"] == "twin"
    assert changed("leak") == {"logits_processor"} and changed("random vectors") == {"vectors", "bias"}
    assert changed("random positions") == {"gate", "table", "rate", "frequencies"}
    for name, layer in (("random vectors", 1), ("untrained vectors", 1), ("unrelated vectors", 1),
                        ("logit push", 2)):
        fit = chapter["fitted"]["chain", "base", 0][layer]
        norms = (fit.vectors + fit.bias).norm(dim=1)
        assert torch.allclose(arms[name]["vectors"].norm(dim=1), norms)
        assert arms[name]["layer"] == layer and arms[name]["bias"] is None
    assert arms["twin vectors"]["runs"] == "twin" and arms["untrained vectors"]["runs"] == "base"
    for name in ("ceiling", "leak alone"):  # nothing is added, and the positions are the hybrid's
        assert not arms[name]["vectors"].any() and arms[name]["gate"] == "disagreement"
    assert arms["random positions"]["rate"] == pytest.approx(0.1)
    assert np.allclose(arms["random positions"]["frequencies"], [1 / 3, 0, 2 / 3], atol=1e-6)
    assert arms["always on"]["category"] == 2


def test_every_row_of_the_controls_is_an_arm_and_has_a_look(chapter):
    arms, _ = everything(chapter)
    table = TEXT.split("| control | what is changed |")[1].split("\n\n")[0]
    named = re.findall(r"^\| ([a-z ]+?) \|", table, re.M)
    assert len(named) > 10 and set(named) <= set(arms)
    assert set(chapter["SHOWN"]) - {"probe"} <= set(arms)
    assert all(plots.look(name) for name in [*chapter["SHOWN"], *chapter["curves"]("chain", 0)])
    assert set(chapter["STEPS"]) - {"probe"} <= set(arms)


def the_claim():
    book = claims.load(ROOT / "claims.yml")
    return next(claim for claim in book["claims"] if claim["id"] == "hybrid-steering")


def test_the_claim_finds_its_facts_here(chapter):
    arms, _ = everything(chapter)
    claim = the_claim()
    read = {(term["model"], term["quantity"]) for part in claim["parts"]
            for term in part["parsed"] if isinstance(term, dict)}
    assert {model for model, _ in read} <= {renamed.renamed(name, "", None)[0] for name in arms}
    measured = next(source for source in CODE if "def measured(" in source)
    assert all(f'"{quantity}"' in measured for _, quantity in read)
    lines = ast.parse(CODE[1]).body
    defaults = {line.targets[0].id: ast.literal_eval(line.value) for line in lines}
    needs = yaml.safe_load((ROOT / "claims.yml").read_text())["needs"]["default"]
    assert defaults["n_problems"] >= needs["problems"]
    assert defaults["families"] == claim["families"]


def test_the_published_point_is_read_from_the_claims():
    claim = the_claim()
    scope = {"re": re, "published": claim["published"]}
    line = next(node for source in CODE for node in ast.parse(source).body
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "(percent, at)")
    exec(ast.unparse(line), scope)
    figure = claim["published"][0]["figure"]
    assert f"{scope['percent']} % of the gap" in figure
    assert f"{scope['at']} % of the tokens" in figure
    assert claim["published"][0]["status"] == "verified"
