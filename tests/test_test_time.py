"""Test-time methods on models with random weights: shapes, counts and budgets."""

import numpy as np
import pytest
from locksmith import vocabulary
from locksmith.errors import BadInput
from locksmith.experiments import test_time
from locksmith.loading import Pair
from repository import smoke_lab

P, CAP = 5, 40
PAIRS = {"countdown": Pair("smoke", "countdown", 0), "chain": Pair("smoke", "chain", 0),
         "sums": Pair("smoke", "sums", 0, "toy", "toy/thinking")}
OPTIONS = {"base": {}, "prefix": {"words": "what about"}, "cognitive_tools": {},
           "dummy_tools": {}, "matched_vote": {"budget": 90}, "guess": {"budget": 90}}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with smoke_lab(tmp_path_factory.mktemp("lab"), models=("base",)):
        yield


def run(method, task="countdown", **options):
    return test_time.solve(PAIRS[task], method, P, CAP, split="validation",
                           **{**OPTIONS[method], **options})


def job(task, n=1, cap=CAP):
    pair = PAIRS[task]
    problems = [p for p in pair.problems(P) for _ in range(n)]
    return test_time.Job(pair, pair.load("base"), problems, n, cap, 7)


@pytest.mark.parametrize("task", PAIRS)
@pytest.mark.parametrize("method", list(test_time.METHODS))
def test_every_method_gives_one_finite_number_a_problem(home, method, task):
    found = run(method, task, n=2)
    for values in (found.correct, found.trace, found.tokens, *found.log.values()):
        assert values.shape == (P,) and np.isfinite(values).all()
    assert (found.tokens > 0).all() and set(OPTIONS) == set(test_time.METHODS)
    again = run(method, task, n=2)
    assert (again.tokens == found.tokens).all()  # a pure function of its arguments


@pytest.mark.parametrize("task", PAIRS)
def test_the_vote_never_spends_more_than_the_tools(home, task):
    spent = run("cognitive_tools", task).tokens
    for budget in (spent, 7):
        found = run("matched_vote", task, budget=budget)
        assert (found.tokens <= budget).all() and (found.log["rollouts"] >= 1).all()
    # and it uses what it has: another answer (of at most CAP tokens) would not have fitted
    assert (run("matched_vote", task, budget=spent).tokens > spent - CAP).all()


def test_the_vote_takes_the_commonest_answer_within_the_budget(home, monkeypatch):
    mine = job("chain")
    answers = ["so 1 2 <eos>", "so 3 4 <eos>", "so 3 4 <eos>", "so 1 2 <eos>", "so 1 2 <eos>"]
    monkeypatch.setattr(test_time.Job, "guesses", lambda self, problems: [
        vocabulary.encode(answers[i % 5].split()) for i in range(len(problems))])
    mine = mine._replace(problems=mine.problems[:1])
    for budget, voters, winner in ((12, 3, "3"), (20, 5, "1"), (3, 1, "1")):
        found = test_time.guess(mine, budget)
        assert found.log["rollouts"].tolist() == [voters] and found.tokens.tolist() == [
            min(budget, 4 * voters)]
        assert vocabulary.decode(found.continuations[0])[1] == winner


@pytest.mark.parametrize(("task", "words"), [("countdown", "go back"), ("sums", " Let me think")])
def test_prefix_words_are_in_the_answer_and_are_counted(home, task, words):
    mine = job(task)
    found = test_time.prefix(mine, words)
    assert all(mine.model.decode(c).startswith(words) for c in found.continuations)
    assert found.tokens.tolist() == [len(c) for c in found.continuations]
    assert max(found.tokens) <= CAP
    assert test_time.prefix(mine, "").continuations == test_time.base(mine).continuations


def test_a_prefix_may_open_with_the_first_number_of_its_question():
    mine = job("sums")
    found = test_time.prefix(mine, " {number} +")
    for problem, ids in zip(mine.problems, found.continuations, strict=True):
        assert mine.model.decode(ids).startswith(f" {problem.question.split()[1]} +")


@pytest.mark.parametrize("task", PAIRS)
def test_guesses_are_the_tasks_own(home, task):
    mine = job(task)
    found = test_time.guess(mine, 100)
    shortest = min(map(len, mine.guesses(mine.problems)))
    assert ((100 - 2 * shortest < found.tokens) & (found.tokens <= 100)).all()
    for problem, ids in zip(mine.problems, found.continuations, strict=True):
        assert mine.task.grade(problem, mine.model.decode(ids)).answer


@pytest.mark.parametrize("method, options, named", [
    ("vote", {}, "method"), ("prefix", {"words": "perhaps"}, "words"),
    ("prefix", {"words": " ".join(["wait"] * CAP)}, "words"),
    ("guess", {"budget": 0}, "budget"), ("cognitive_tools", {"tools": ("think",)}, "tools")])
def test_bad_input_is_named(home, method, options, named):
    with pytest.raises(BadInput, match=f"^{named} is .*allowed"):
        test_time.solve(PAIRS["chain"], method, P, CAP, **options)
