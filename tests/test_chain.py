"""Chain against brute force: chains evaluated by Python itself, traces read by regex."""

import random
import re

import pytest
from locksmith import corpus, params
from locksmith.tasks import chain

GENERATOR = {**params.load("lab")["families"]["chain"], "persistence": [0.3, 0.8, 1.0],
         "check": [0.3, 1.0], "backtrack": 1.0, "slip": 0.1, "check_steps": 0.5}
STEP = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")


def running(text):
    """All values along `9 * 3 - 8`, from left to right, by Python's own arithmetic."""
    words, values = text.split(), []
    for i in range(1, len(words), 2):
        values.append(eval(f"({values[-1] if values else words[0]}) {words[i]} {words[i + 1]}"))
    return values


def results(problem):
    """The two results, from the prompt as text."""
    first, second = " ".join(problem.prompt[2:-1]).split(" ; ")
    return running(first)[-1], running(second)[-1]


@pytest.fixture(scope="module")
def problems():
    return chain.problems("train", 300, 5, GENERATOR, 3)


def documents(problems, seed=0, **changes):
    rng = random.Random(seed)
    generator = {**GENERATOR, **changes}
    for problem in problems:
        words = chain.document(rng, problem, corpus.author(rng, generator), generator)
        yield problem, words, " ".join(words)


def test_plans_are_what_python_works_out_and_stay_in_range(problems):
    for problem in problems:
        written = " ".join(problem.prompt[2:-1]).split(" ; ")
        for text, steps in zip(written, chain.plan(problem), strict=True):
            assert [step[3] for step in steps] == running(text)
            assert all(0 <= value <= 99 for value in running(text))
        assert problem.depth == 3


def test_of_all_ten_thousand_answers_one_is_right(problems):
    for problem in problems[:2]:
        right = [(a, b) for a in range(100) for b in range(100)
                 if chain.grade(problem, ["so", str(a), str(b), "<eos>"]).correct]
        assert right == [results(problem)]


def test_guesses_are_answers_drawn_evenly(problems):
    rng, n = random.Random(0), 20_000
    drawn = [chain.guess(problems[0], rng) for _ in range(n)]
    grades = [chain.grade(problems[0], words) for words in drawn[:100]]
    assert all(g.answer is not None and g.attempts == 0 and not g.trace for g in grades)
    for place in (1, 2):
        counts = [0] * 100
        for words in drawn:
            counts[int(words.split()[place])] += 1
        assert sum((c - n / 100) ** 2 / (n / 100) for c in counts) < 99 + 4 * (2 * 99) ** 0.5


def test_anything_outside_the_grammar_is_wrong(problems):
    problem = problems[0]
    a, b = map(str, results(problem))
    assert chain.grade(problem, ["so", a, b, "<eos>"]).correct
    for words in ([], ["<eos>"], ["so", a, b], ["so", a, b, "next"], ["4", "so", a, b, "<eos>"],
                  ["so", a, "<eos>"], ["so", a, b, b, "<eos>"],
                  ["so", a, b, "so", a, b, "<eos>"], ["so", str((int(a) + 1) % 100), b, "<eos>"]):
        grade = chain.grade(problem, words)
        assert not grade.correct and not grade.trace


def test_authors_are_graded_as_a_reader_with_a_pencil_would(problems):
    outcomes = set()
    for problem, words, text in documents(problems):
        grade = chain.grade(problem, words)
        steps = STEP.findall(text)
        assert grade.attempts == len(steps)
        assert grade.valid_attempts == sum(eval(f"{a} {op} {b}") == int(r) for a, op, b, r in steps)
        assert grade.checks == grade.correct_checks == len(re.findall(r"\d+ (?:yes|no)\b", text))
        assert grade.backtracks == len(re.findall("wait|hmm|go back|not this way", text))
        concluded = tuple(map(int, text.split()[-3:-1]))
        assert grade.correct == (concluded == results(problem))
        wrong = re.findall(r"(\d+ . \d+) = \d+ (?:check|verify|is it good|test that) \d+ no", text)
        standing = [s for s in steps if eval("{} {} {}".format(*s[:3])) == int(s[3])]
        sound = grade.correct and len(standing) == 6 and len(steps) == 6 + len(wrong)
        assert grade.trace == sound
        outcomes.add((grade.correct, grade.trace))
    assert {(False, False), (True, True)} <= outcomes


def test_slips_are_found_by_those_who_check_and_only_by_them(problems):
    slipped = 0
    for problem, words, _ in documents(problems, slip=1.0, persistence=[1.0], check=[1.0],
                                       check_steps=1.0):
        grade = chain.grade(problem, words)
        assert grade.correct and grade.trace
        assert grade.attempts - grade.valid_attempts == grade.backtracks
        slipped += grade.backtracks
    assert slipped > 5 * len(problems)  # of six steps a problem, all but a few at the range's end
    for problem, words, _ in documents(problems, slip=1.0, persistence=[1.0], check=[0.0]):
        grade = chain.grade(problem, words)
        assert grade.valid_attempts < grade.attempts and not grade.trace and grade.backtracks == 0


def test_a_sound_trace_with_one_word_changed_is_no_longer_sound(problems):
    careful = {"persistence": [1.0], "check": [1.0], "check_steps": 1.0}
    sound = [(p, w) for p, w, _ in documents(problems, **careful) if chain.grade(p, w).trace][:8]
    assert len(sound) == 8 and any("no" in words for _, words in sound)
    for problem, words in sound:
        for i, word in enumerate(words):
            if word.isdigit():
                changed = str((int(word) + 1) % 100)
            else:
                changed = {"yes": "no", "no": "yes", "<eos>": "="}.get(word)
            slip = words[i - 1] == "=" and eval(" ".join(words[i - 4:i - 1])) != int(word)
            if changed and not slip:  # a slip that was found may be any wrong number
                assert not chain.grade(problem, [*words[:i], changed, *words[i + 1:]]).trace


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_problems_are_a_pure_function_and_no_chain_is_in_two_splits(depth):
    seen = {}
    for split in ("train", "validation", "test"):
        found = chain.problems(split, 60, 0, GENERATOR, depth)
        assert found == chain.problems(split, 60, 0, GENERATOR, depth)
        assert found[:20] == chain.problems(split, 20, 0, GENERATOR, depth)
        assert len({p.key for p in found}) == 60
        keys = {p.key for p in found} if depth == 1 else \
            {text for p in found for text in p.key.split(" ; ")}
        assert all(seen.setdefault(key, split) == split for key in keys)
        assert {p.depth for p in found} == {depth}


def test_the_twin_lacks_backtracking_and_nothing_else(problems):
    counts = {}
    for backtrack in (0.0, 1.0):
        texts = [text for seed in (1, 2, 3, 4) for _, _, text in
                 documents(problems, seed + backtrack * 10, backtrack=backtrack)]
        counts[backtrack] = [(text.count("="), text.split().count("no")) for text in texts]
        waits = sum(len(re.findall("wait|hmm|go back|not this way", text)) for text in texts)
        assert (waits == 0) == (backtrack == 0.0)
        assert any("next" in text for text in texts) == (backtrack == 0.0)
    for which in (0, 1):  # steps, failed checks a document
        mean, spread = {}, 0
        for backtrack, rows in counts.items():
            column = [row[which] for row in rows]
            mean[backtrack] = sum(column) / len(column)
            spread += sum((x - mean[backtrack]) ** 2 for x in column) / len(column) ** 2
        assert mean[0.0] > 0 and abs(mean[0.0] - mean[1.0]) < 4 * spread**0.5


def test_facts_hold_and_critiques_are_honest(problems):
    rng = random.Random(2)
    for _ in range(300):
        a, op, b, _, result = chain.fact(rng, GENERATOR)
        assert eval(f"{a} {op} {b}") == int(result)
    verdicts = set()
    for problem, words, text in documents(problems):
        right = tuple(map(int, text.split()[-3:-1])) == results(problem)
        critique = chain.judge(problem, words[:-1])
        assert critique[-1] == ("right" if right else "wrong")
        worked = STEP.findall(" ".join(critique))
        assert len(worked) == 6 and all(eval(f"{a} {op} {b}") == int(r) for a, op, b, r in worked)
        verdicts.add(right)
    assert verdicts == {True, False}
