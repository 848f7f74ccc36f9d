"""Chapter 5's test-time methods on models with random weights: shapes, counts and budgets."""

import random

import numpy as np
import pytest
from locksmith import corpus, grammar, lab, vocabulary
from locksmith.errors import BadInput
from locksmith.experiments import test_time
from repository import smoke_lab

P, CAP = 5, 40
OPTIONS = {"base": {}, "prefix": {"words": ("what", "about")}, "few_shot": {"shots": 1},
           "cognitive_tools": {}, "dummy_tools": {}, "matched_vote": {"budget": 90},
           "guess": {"budget": 90}}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with smoke_lab(tmp_path_factory.mktemp("lab"), models=("base",)):
        yield


def run(method, family="countdown", seed=0, **options):
    return test_time.test_time("smoke", family, seed, method, P, CAP, split="validation",
                          **{**OPTIONS[method], **options})


def job(family, n=1, cap=CAP):
    problems = [p for p in lab.problems("smoke", family, P) for _ in range(n)]
    return test_time.Job(family, lab.config("smoke")["families"][family],
                    lab.load("smoke", family, "base", 0), problems, n, cap, 7)


@pytest.mark.parametrize("family", ["countdown", "chain"])
@pytest.mark.parametrize("method", list(test_time.METHODS))
def test_every_method_gives_one_finite_number_a_problem(home, method, family):
    found = run(method, family, n=2)
    for values in (found.correct, found.trace, found.tokens, *found.log.values()):
        assert values.shape == (P,) and np.isfinite(values).all()
    assert (found.tokens > 0).all() and set(OPTIONS) == set(test_time.METHODS)
    again = run(method, family, n=2)
    assert (again.tokens == found.tokens).all()  # a pure function of its arguments


@pytest.mark.parametrize("family", ["countdown", "chain"])
def test_the_vote_never_spends_more_than_the_tools(home, family):
    spent = run("cognitive_tools", family).tokens
    for budget in (spent, 7):
        found = run("matched_vote", family, budget=budget)
        assert (found.tokens <= budget).all() and (found.log["rollouts"] >= 1).all()
    # and it uses what it has: another answer (of at most CAP tokens) would not have fitted
    assert (run("matched_vote", family, budget=spent).tokens > spent - CAP).all()


def test_the_vote_takes_the_commonest_answer_within_the_budget(home, monkeypatch):
    mine = job("chain")
    answers = ["so 1 2 <eos>", "so 3 4 <eos>", "so 3 4 <eos>", "so 1 2 <eos>", "so 1 2 <eos>"]

    class Scripted:
        def guess(self, problem, rng, said=[]):  # noqa: B006 - counts the calls
            said.append(0)
            return answers[(len(said) - 2) % 5].split()  # the first asks for the length alone
        grade = staticmethod(corpus.FAMILIES["chain"].grade)
    monkeypatch.setattr(test_time.Job, "task", Scripted())
    mine = mine._replace(problems=mine.problems[:1])
    for budget, voters, winner in ((12, 3, "3"), (20, 5, "1"), (3, 1, "1")):
        Scripted.guess.__defaults__[0].clear()
        found = test_time.guess(mine, budget)
        assert found.log["rollouts"].tolist() == [voters] and found.tokens.tolist() == [
            min(budget, 4 * voters)]
        assert vocabulary.decode(found.continuations[0])[1] == winner


def test_prefix_words_are_in_the_answer_and_are_counted(home):
    mine = job("countdown")
    found = test_time.prefix(mine, ("go", "back"))
    assert all(vocabulary.decode(c[:2]) == ["go", "back"] for c in found.continuations)
    assert found.tokens.tolist() == [len(c) for c in found.continuations]
    assert max(found.tokens) <= CAP
    assert test_time.prefix(mine, ()).continuations == test_time.base(mine).continuations


@pytest.mark.parametrize("family", ["countdown", "chain"])
def test_few_shot_documents_are_rich_and_leave_room(home, family, monkeypatch):
    mine, seen = job(family, cap=1000), []
    monkeypatch.setattr(test_time.Job, "sample", lambda self, prompts, cap: seen.append(
        (prompts, cap)) or test_time.decoding.Chosen([], np.zeros(0), {}))
    found = test_time.few_shot(mine, 1)
    (prompts, cap), = seen
    assert max(map(len, prompts)) + cap == mine.context and cap == found.log["cap"][0]
    for prompt, problem, n in zip(prompts, mine.problems, found.log["shown"], strict=True):
        assert prompt[n:] == problem.prompt and n <= mine.context // 2
        document = prompt[:n]
        steps = [behaviour for behaviour, _ in grammar.steps(document[document.index(":") + 1:])]
        assert {"countdown": "wait", "chain": "check"}[family] in steps
        assert document[0] == "<bos>" and document[-1] == "<eos>" and document.count("<bos>") == 1
    assert len({" ".join(p[:n]) for p, n in zip(prompts, found.log["shown"], strict=True)}) == P


def test_guesses_are_the_familys_own(home):
    mine = job("countdown")
    found = test_time.guess(mine, 100)
    length = len(mine.task.guess(mine.problems[0], random.Random(1)))
    assert (found.tokens == 100 // length * length).all()
    for problem, ids in zip(mine.problems, found.continuations, strict=True):
        grade = mine.task.grade(problem, vocabulary.decode(ids))
        assert grade.answer and grade.valid_attempts == grade.attempts == 2


@pytest.mark.parametrize("method, options, named", [
    ("vote", {}, "method"), ("prefix", {"words": ("perhaps",)}, "words"),
    ("prefix", {"words": ("wait",) * CAP}, "words"), ("few_shot", {"shots": 0}, "shots"),
    ("guess", {"budget": 0}, "budget"), ("cognitive_tools", {"tools": ("think",)}, "tools")])
def test_bad_input_is_named(home, method, options, named):
    with pytest.raises(BadInput, match=f"^{named} is .*allowed"):
        test_time.test_time("smoke", "chain", 0, method, P, CAP, **options)
