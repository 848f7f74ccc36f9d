"""Countdown against brute force: expressions evaluated by Python itself, traces read by regex."""

import random
import re
from itertools import permutations, product

import pytest
from locksmith import corpus, grammar, params
from locksmith.tasks import countdown

GENERATOR = {**params.load("lab")["families"]["countdown"], "persistence": [0.0, 0.3, 0.6, 0.95],
         "check": [0.3, 0.9], "backtrack": 1.0, "longest": 10_000}
OPENING = r"(?:so|thus|the answer|i would say)"
CHECK = r"(?:check|verify|is it good|test that)"


def value(a, first, b, second, c):
    """((a first b) second c) by Python's own arithmetic, None outside 0..99 at either step."""
    r = eval(f"{a} {first} {b}")
    s = eval(f"({r}) {second} {c}")
    return s if 0 <= r <= 99 and 0 <= s <= 99 else None


def brute(numbers):
    """All (expression, value) over the numbers, a + b and b + a (a * b and b * a) taken once."""
    out = set()
    for (a, b, c), first, second in product(permutations(numbers), "+-*", "+-*"):
        if value(a, first, b, second, c) is not None:
            if first != "-":
                a, b = max(a, b), min(a, b)
            out.add((a, first, b, second, c, value(a, first, b, second, c)))
    return out


@pytest.fixture(scope="module")
def problems():
    return countdown.problems("train", 300, 5, GENERATOR)


def documents(problems, seed=0, **changes):
    """(problem, trace, the same trace as text) of one author a problem."""
    rng = random.Random(seed)
    for problem in problems:
        generator = {**GENERATOR, **changes}
        words = countdown.document(rng, problem, corpus.author(rng, generator), generator)
        yield problem, words, " ".join(words)


@pytest.mark.parametrize("numbers", [(3, 7, 9), (1, 1, 20), (2, 2, 2), (5, 11, 20), (1, 2, 3)])
def test_expressions_are_all_and_none_twice(numbers):
    found = countdown.expressions(numbers)
    assert {(e[0], e[1], e[2], *e[4:]) for e in found} == brute(numbers)
    assert len(found) == len(brute(numbers))
    assert all(e[3] == eval(f"{e[0]} {e[1]} {e[2]}") for e in found)


def test_each_target_has_one_solution(problems):
    for problem in problems:
        values = [e[-1] for e in brute(problem.numbers)]
        assert [values.count(t) for t in problem.targets] == [1, 1]
        assert problem.targets[0] != problem.targets[1]


def test_an_answer_is_right_exactly_if_python_says_so(problems):
    for problem in problems[:10]:
        solutions = {t: next(e[:5] for e in brute(problem.numbers) if e[5] == t)
                     for t in problem.targets}
        n_right = 0
        pool = sorted({*problem.numbers, 4, 17})
        for a, b, c, first, second in product(pool, pool, pool, "+-*", "+-*"):
            uses = sorted((a, b, c)) == sorted(problem.numbers)
            right = uses and value(a, first, b, second, c) == problem.targets[0]
            answers = [(a, first, b, second, c), solutions[problem.targets[1]]]
            words = [str(w) for answer in answers for w in ("so", *answer)]
            assert countdown.grade(problem, [*words, "<eos>"]).correct == right
            n_right += right
        a, first, b, _, _ = solutions[problem.targets[0]]
        assert n_right == (2 if first != "-" and a != b else 1)  # b + a is as good as a + b


def test_anything_outside_the_grammar_is_wrong(problems):
    problem = problems[0]
    parts = [[str(w) for w in next(e[:5] for e in brute(problem.numbers) if e[5] == t)]
             for t in problem.targets]
    right = ["so", *parts[0], "the", "answer", *parts[1]]
    assert countdown.grade(problem, [*right, "<eos>"]).correct
    for words in ([], ["<eos>"], right, [*right, "next"], ["7", *right, "<eos>"],
                  [*right, "so", *parts[1], "<eos>"], [*right[:6], "<eos>"],
                  ["so", *parts[1], "so", *parts[0], "<eos>"], [*right, "=", "<eos>"]):
        grade = countdown.grade(problem, words)
        assert not grade.correct and not grade.trace


def test_authors_are_graded_as_a_reader_with_a_pencil_would(problems):
    outcomes = set()
    for problem, words, text in documents(problems):
        concluded = re.findall(rf"{OPENING} (\d+) (.) (\d+) (.) (\d+)", text)
        right = [value(*c) for c in concluded] == list(problem.targets)
        checked = re.findall(rf"= (\d+) {CHECK} \1 yes {OPENING}", text)
        grade = countdown.grade(problem, words)
        assert grade.correct == right
        assert grade.trace == (right and len(checked) == 2)
        assert grade.attempts == grade.valid_attempts == text.count("=") // 2
        assert grade.checks == grade.correct_checks == len(re.findall("yes|no( |$)", text))
        assert grade.backtracks == len(re.findall("wait|hmm|go back|not this way", text))
        outcomes.add((grade.correct, grade.trace))
    assert outcomes == {(False, False), (True, False), (True, True)}


def test_a_sound_trace_with_one_word_changed_is_no_longer_sound(problems):
    sound = [(p, w) for p, w, _ in documents(problems, insight=0.6, check=[1.0], persistence=[1.0])
             if countdown.grade(p, w).trace][:8]
    assert len(sound) == 8
    for problem, words in sound:
        for i, word in enumerate(words):
            if word.isdigit():
                changed = str((int(word) + 1) % 100)
            else:
                changed = {"yes": "no", "no": "yes", "<eos>": "="}.get(word)
            if changed:
                assert not countdown.grade(problem, [*words[:i], changed, *words[i + 1:]]).trace


def test_guessing_hits_as_often_as_exact_enumeration_says(problems):
    rng, n = random.Random(0), 60
    exact, hits = [], 0
    for problem in problems:
        values = [e[-1] for e in brute(problem.numbers)]
        first, second = (values.count(t) / len(values) for t in problem.targets)
        exact += [first * second] * n
        for _ in range(n):
            grade = countdown.grade(problem, countdown.guess(problem, rng))
            hits += grade.correct
            assert grade.attempts == grade.valid_attempts == 2 and not grade.trace
    spread = sum(p * (1 - p) for p in exact) ** 0.5
    assert sum(exact) > 20 and abs(hits - sum(exact)) < 4 * spread


def test_problems_are_a_pure_function_and_no_number_set_is_in_two_splits():
    sets = {}
    for split in ("train", "validation", "test"):
        found = countdown.problems(split, 200, 0, GENERATOR)
        assert found == countdown.problems(split, 200, 0, GENERATOR)
        assert found[:50] == countdown.problems(split, 50, 0, GENERATOR)
        assert found != countdown.problems(split, 200, 1, GENERATOR)
        assert len({p.key for p in found}) == 200
        sets[split] = {tuple(sorted(p.numbers)) for p in found}
    assert not sets["train"] & sets["test"] and not sets["validation"] & sets["test"]
    assert not sets["train"] & sets["validation"]


def test_the_twin_lacks_backtracking_and_nothing_else():
    problems = countdown.problems("train", 1500, 9, GENERATOR)
    counts = {}
    for backtrack in (0.0, 1.0):
        texts = [text for _, _, text in documents(problems, backtrack, backtrack=backtrack)]
        counts[backtrack] = [(text.count("=") // 2, text.split().count("no")) for text in texts]
        waits = sum(len(re.findall("wait|hmm|go back|not this way", text)) for text in texts)
        assert (waits == 0) == (backtrack == 0.0)
        assert any("next" in text for text in texts) == (backtrack == 0.0)
    for which in (0, 1):  # attempts, failed checks a document
        mean, spread = {}, 0
        for backtrack, rows in counts.items():
            column = [row[which] for row in rows]
            mean[backtrack] = sum(column) / len(column)
            spread += sum((x - mean[backtrack]) ** 2 for x in column) / len(column) ** 2
        assert abs(mean[0.0] - mean[1.0]) < 4 * spread**0.5


def test_facts_hold_and_critiques_are_honest(problems):
    rng = random.Random(2)
    for _ in range(300):
        a, op, b, _, result = countdown.fact(rng, GENERATOR)
        assert eval(f"{a} {op} {b}") == int(result)
    verdicts = set()
    for problem, words, text in documents(problems, insight=0.5):
        concluded = re.findall(rf"{OPENING} (\d+) (.) (\d+) (.) (\d+)", text)
        right = [value(*c) for c in concluded] == list(problem.targets)
        critique = countdown.judge(problem, words[:-1])
        assert critique[-1] == ("right" if right else "wrong")
        assert [critique[i] == "yes" for i in (9, 19)] == \
            [value(*c) == t for c, t in zip(concluded, problem.targets, strict=True)]
        verdicts.add(right)
    assert verdicts == {True, False}


def test_labels_mark_openings_alone(problems):
    for _, words, _ in documents(problems[:50]):
        labels = countdown.labels(words)
        openings = {b: {" ".join(o) for o in found} for b, found in grammar.OPENINGS.items()}
        runs = re.finditer(r"[a-z ]*[a-z]", " ".join(w if x != "execute" else "|"
                                                     for w, x in zip(words, labels, strict=True)))
        assert all(run.group().strip() in set.union(*openings.values()) for run in runs)
        assert all(w.isdigit() or w in "+-*=" or w in ("yes", "no", "<eos>")
                   for w, x in zip(words, labels, strict=True) if x == "execute")
