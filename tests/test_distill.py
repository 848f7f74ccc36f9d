"""Distillation: what is learned, which look is kept; the lab's models by name."""

import numpy as np
import pytest
import torch
from locksmith import corpus, distill, lab, model, params, vocabulary
from repository import smoke_lab

BASE = "checkpoints/smoke/chain"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The smoke profile's problems and models (random weights), where the library looks."""
    with smoke_lab(tmp_path_factory.mktemp("lab"), ["chain"], ["base", "thinking", "twin"]) as root:
        yield root


@pytest.fixture(autouse=True)
def inside(home, monkeypatch):
    monkeypatch.chdir(home)


def loss(net, texts):
    """Mean cross-entropy in nats a token, text by text."""
    total, n = 0.0, 0
    for ids in texts:
        with torch.no_grad():
            logits = net(input_ids=torch.tensor([ids[:-1]])).logits
        total += torch.nn.functional.cross_entropy(logits[0],
                                                   torch.tensor(ids[1:])).item() * len(ids)
        n += len(ids)
    return total / n


def test_traces_are_of_training_problems_and_taught_ones_are_right():
    task = corpus.FAMILIES["chain"]
    problems = task.problems("train", 8, 1000, params.load("smoke")["families"]["chain"])
    texts = distill.traces("smoke", "chain", "taught", 0)
    assert len(texts) == 8
    for problem, ids in zip(problems, texts, strict=True):
        n = len(problem.prompt)
        assert vocabulary.decode(ids[:n]) == problem.prompt
        assert task.grade(problem, vocabulary.decode(ids[n:])).correct


def test_it_learns_its_traces_and_keeps_the_evaluation_nearest_to_the_goal(monkeypatch):
    accuracies = iter([0.5, 0.1, 0.4, 0.9])  # the thinking model's, then three evaluations
    config = params.load("smoke")
    config["distill"] = {"problems": 8, "rank": 4, "lr": 0.01, "epochs": 60, "evaluations": 3,
                         "validation": 4}
    monkeypatch.setattr(params, "load", lambda profile=None: config)
    monkeypatch.setattr(distill, "accuracy", lambda *a: next(accuracies))
    record = distill.train("smoke", "chain", "taught", 0)
    assert (record["goal"], record["reached"]) == (0.5, 0.4)
    assert record["step"] == record["curve"][1]["step"] and len(record["curve"]) == 3
    texts = distill.traces("smoke", "chain", "taught", 0)
    base, taught = (lab.load("smoke", "chain", which, 0, exact=True)
                    for which in ("base", "taught"))
    assert loss(taught, texts) < loss(base, texts) - 0.1  # embeddings stay random


def test_models_by_name():
    config = params.load("smoke")["model"]
    untrained = lab.load("smoke", "chain", "untrained", 3, exact=True)
    built = model.build(config, 3)
    assert all(torch.equal(a, b) for a, b in zip(untrained.parameters(), built.parameters(),
                                                 strict=True))
    ids = torch.tensor([[1, 5, 9]])
    found = {which: lab.load("smoke", "chain", which, 0, exact=True)(input_ids=ids).logits
             for which in ("base", "thinking", "twin")}
    assert not np.allclose(found["base"].detach(), found["twin"].detach())
    assert lab.steps("smoke", "chain", "base", 0) == []
    with pytest.raises(model.ModelError, match="seed7 is missing"):
        lab.load("smoke", "chain", "base", 7)
