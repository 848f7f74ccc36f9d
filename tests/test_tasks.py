"""Every task keeps the interface of `tasks`: splits apart, the right answer right,
steps in place."""

import hashlib
import math
import random
import time

import pytest
from locksmith import errors, params, prose, rewards, tasks, words
from locksmith.tasks import chain, countdown, gsm8k, sums

LAB = params.load("smoke")["families"]
HERE = [name for name in tasks.names() if name != "gsm8k"]  # gsm8k needs a file


def some(name, split="test", n=12):
    task = tasks.load(name)
    return task, task.problems(split, n, 0, LAB.get(name) or task.GENERATOR)


@pytest.mark.parametrize("name", HERE)
def test_problems_are_a_function_of_their_arguments_and_splits_are_disjoint(name):
    task, problems = some(name)
    assert [p.key for p in problems] == [p.key for p in some(name)[1]]
    by_split = {split: {p.key for p in some(name, split, 30)[1]}
                for split in ("train", "validation", "test")}
    assert all(len(keys) == 30 for keys in by_split.values())
    assert len(set.union(*by_split.values())) == 90
    for problem in problems:
        assert task.question(problem) in task.prompt(problem)


@pytest.mark.parametrize("name", HERE)
def test_steps_lie_in_order_inside_the_text(name):
    task, problems = some(name)
    text = task.guess(problems[0], random.Random(0), problems)
    for steps in (task.steps(text), task.steps("")):
        edges = [edge for step in steps for edge in (step.start, step.end)]
        assert edges == sorted(edges) and all(0 <= edge <= len(text) for edge in edges)
        assert all(text[s.start:s.end].strip() == text[s.start:s.end] != "" for s in steps)


@pytest.mark.parametrize("name", [n for n in HERE if n not in LAB])
def test_in_words_the_right_answer_is_right_and_critiques_agree(name):
    task, problems = some(name)
    for problem in problems:
        said = f" {problem.working} The answer is {problem.answer}."
        wrong = f" The answer is {problem.answer}1."  # no answer has to be a number
        assert task.grade(problem, said).correct and not task.grade(problem, wrong).correct
        assert task.verdict(task.critique(problem, said)) == "right"
        assert task.verdict(task.critique(problem, wrong)) == "wrong"
        assert task.review(problem, said).endswith(f"{said.rstrip()}\nReview:")
        assert not task.strategy(problem, wrong)


@pytest.mark.parametrize("name", HERE)
def test_a_critique_can_be_turned_round_and_emptied(name):
    task, problems = some(name)
    drawn = set()
    for problem in problems:
        exact = task.critique(problem, task.guess(problem, random.Random(0), problems))
        turned = task.turned(exact)
        assert {task.verdict(exact), task.verdict(turned)} == {"right", "wrong"}
        assert task.turned(turned) == exact and len(turned.split()) == len(exact.split())
        empty = task.form(exact, random.Random(problem.key))
        assert len(empty.split()) == len(exact.split()) and empty[-1] == exact[-1]
        drawn.add(task.verdict(empty))
    assert drawn == {"right", "wrong"}


def test_unknown_task():
    with pytest.raises(errors.BadInput, match="task is 'chian'; allowed are .*chain.*sums"):
        tasks.load("chian")


# --- the lab's tasks as text ---------------------------------------------------------------------


def test_lab_texts_and_words_grade_alike():
    for task in (countdown, chain):
        problem = some(task.__name__.rpartition(".")[2])[1][0]
        guess = task.guess(problem, random.Random(1))
        assert task.grade(problem, guess) == task.grade(problem, guess.split())


def test_spans_of_a_trace_are_its_steps():
    text = "try 3 * 7 = 21 + 9 = 30 check 30 no go back 3 + 4 = 7 so 3 <eos>"
    assert [(text[s.start:s.end], s.kind) for s in countdown.steps(text)] == [
        ("try 3 * 7 = 21 + 9 = 30", "try"), ("check 30 no", "check"),
        ("go back 3 + 4 = 7", "wait"), ("so 3", "conclude")]
    assert countdown.steps("3 4 next try 3") == []  # another author's steps are not this one's


def test_an_answer_holds_the_bits_that_a_guess_lacks():
    made = params.load("lab")["families"]["countdown"]
    problem, = countdown.problems("test", 1, 0, made)
    rng, n = random.Random(0), 12_000
    right = sum(countdown.grade(problem, countdown.guess(problem, rng)).correct for _ in range(n))
    chance = 2 ** -countdown.answer_bits(problem)
    assert abs(right - n * chance) < 4 * math.sqrt(n * chance)
    two = chain.Problem(((9, (("*", 3),)), (45, (("-", 18),))))
    assert 2 ** chain.answer_bits(two) == pytest.approx(100 * 100)


def test_strategies_of_the_lab():
    problem = countdown.Problem((3, 7, 9), (30, 60))
    persistent = "try 3 * 7 = 21 + 9 = 30 check 30 yes so 3 * 7 + 9"
    assert countdown.strategy(problem, persistent)
    assert not countdown.strategy(problem, persistent.replace("yes", "no"))
    assert not countdown.strategy(problem, "try 3 * 7 = 21 + 9 = 30 so 3 * 7 + 9")
    searching = "try 3 + 7 = 10 + 9 = 19 check 19 no wait 3 + 9 = 12 + 7 = 19 check 19 no"
    assert countdown.strategy(problem, searching)  # cut off: nothing found, nothing given up
    assert not countdown.strategy(problem, f"{searching} <eos>")
    assert not countdown.strategy(problem, f"{persistent} <eos>")  # one of two targets
    assert not countdown.strategy(problem, "")
    two = chain.Problem(((9, (("*", 3), ("-", 8))), (45, (("-", 18),))))
    worked = "try 9 * 3 = 27 maybe 27 - 8 = 19 try 45 - 18 = 27 so 19 27"
    assert chain.strategy(two, worked) and not chain.strategy(two, worked.partition(" maybe")[0])


def test_going_on_is_told_from_finding():
    problem = countdown.Problem((3, 7, 9), (30, 60))
    miss, hit = "try 3 + 7 = 10 + 9 = 19 check 19 no", "wait 3 * 7 = 21 + 9 = 30 check 30 yes"
    again = miss.replace("try", "hmm")
    for text, right in (("", []), (miss, []), (f"{miss} <eos>", [False]), (hit, []),
                        (f"{miss} {hit} so 3 * 7 + 9", [True]),
                        (f"{miss} {again} so 3 + 7 + 9 {miss} {again}", [True, False, True]),
                        (f"{miss} so 3 + 7 + 9 next try 3", [False])):
        assert countdown.went_on(problem, text) == right, text
    two = chain.Problem(((9, (("*", 3), ("-", 8))), (45, (("-", 18),))))
    one = "try 9 * 3 = 99"  # a wrong step is a step
    for text, right in (("", []), ("so 19 27 <eos>", [False]), (one, [True]),
                        (f"{one} so 19 27", [True, False]), (f"{one} check 27 no <eos>",
                                                             [True, False]),
                        (f"{one} {one} {one} {one} so 1 2 <eos>", [True] * 3)):
        assert chain.went_on(two, text) == right, text


def test_lab_reviews_are_what_the_corpus_writes():
    problem = countdown.Problem((3, 7, 9), (30, 60))
    text = "try 3 * 7 = 21 + 9 = 30 so 3 * 7 + 9 <eos>"
    assert countdown.review(problem, text) == (
        "<bos> review make 30 and 60 from 3 7 9 : try 3 * 7 = 21 + 9 = 30 so 3 * 7 + 9 ;")
    assert countdown.verdict(countdown.critique(problem, text)) == "wrong"
    assert countdown.verdict("21 yes right <eos>") == "right"
    assert countdown.verdict("21 yes") is None


@pytest.mark.parametrize("said", ["²", "①", "9" * 5000, "٣", "１", "007", "-1", "1.0", "½", ""])
def test_words_that_are_no_number_of_the_lab_are_wrong_and_never_an_exception(said):
    two = chain.Problem(((9, (("*", 3), ("-", 8))), (45, (("-", 18),))))
    one = countdown.Problem((3, 7, 9), (30, 60))
    for text in (f"so {said} 27 <eos>", f"try {said} * 3 = 27 check 27 yes so 19 27",
                 f"try 9 * {said} = {said} so 3 * {said} + 9 so {said} * 3 - 9 <eos>",
                 f"check {said} yes so {said} so\n{said}\t<eos>"):
        for task, problem in ((chain, two), (countdown, one)):
            assert task.grade(problem, text).outcome == "wrong"
            assert task.verdict(task.critique(problem, text)) in ("right", "wrong")
            for start, end in task.stated(text):
                assert text[start:end].split()
    assert chain.grade(two, "so 19 27 <eos>").correct


def test_spans_stand_where_the_words_stand():
    text = "  try 3 *\n7 = 21 + 9 = 30\tcheck  30 no  the  answer  3 * 7 + 9  <eos>"
    first = [text[s.start:s.end].split()[0] for s in countdown.steps(text)]
    assert first == ["try", "check", "the"]
    assert [text[a:b] for a, b in countdown.stated(text)] == ["3 * 7 + 9"]


# --- sums -----------------------------------------------------------------------------------------


def test_sums_are_right_by_python():
    for problem in some("sums", n=50)[1]:
        assert str(eval(problem.question.removeprefix("Calculate ").rstrip("."))) == problem.answer
        written = prose.equations(problem.working)
        assert len(written) == 3 and all(one.holds for one in written)
        assert sums.strategy(problem, problem.working)
        assert not sums.strategy(problem, problem.working.partition(". ")[0])


@pytest.mark.parametrize("task, changed, message", [
    (sums, {"terms": None}, "terms of the generator of sums is None; allowed is .* 2 to 50"),
    (sums, {"digits": 0}, "digits .* is 0; allowed is a whole number from 1 to 15"),
    (sums, {"digits": "2"}, "digits .* is '2'"), (sums, {"terms": True}, "terms .* is True"),
    (sums, {"direct": 5}, "direct .* is 5; allowed is a whole number from 0 to 4"),
    (sums, {"direct": 2, "worked": 3}, "worked .* is 3; allowed is a whole number from 0 to 2"),
    (sums, {"term": 4}, "the generator of sums names 'term'; allowed are terms, digits"),
    (chain, {"largest_start": None}, "largest_start of the generator of chain is None"),
    (chain, {"depth": 0}, "depth .* is 0"), (countdown, {"largest_number": 1}, "is 1;"),
    (countdown, {"expressions": 12}, "expressions .* is 12; allowed are two whole numbers"),
])
def test_a_generator_that_cannot_be_is_one_sentence(task, changed, message):
    name = tasks.name_of(task)
    with pytest.raises(errors.BadInput, match=message):
        task.problems("test", 3, 0, {**(LAB.get(name) or task.GENERATOR), **changed})


@pytest.mark.parametrize("direct, n_worked, terms", [(3, 1, 4), (0, 4, 3), (1, 1, 6), (2, 0, 2)])
def test_examples_of_sums_come_in_an_order_of_their_own(direct, n_worked, terms):
    orders, generator = set(), {"terms": terms, "digits": 1, "direct": direct, "worked": n_worked}
    for problem in sums.problems("test", 20, 0, generator):
        *shown, asked = sums.prompt(problem).split("Q: ")[1:]
        assert asked == f"{problem.question}\nA:" and asked.count(" ") == 2 * terms - 1
        worked = [" = " in example for example in shown]
        assert worked.count(True) == n_worked and worked.count(False) == direct
        for example, steps in zip(shown, worked):
            sum_, answer = example.rstrip(".\n").split(".\nA:")
            assert len(sum_.split()[1:]) == 2 * min(terms, 4) - 1  # each example has been cut too
            assert eval(sum_.removeprefix("Calculate ")) == int(answer.rpartition(" is ")[2])
            assert answer.count(" = ") == steps * (min(terms, 4) - 1)
        orders.add(tuple(worked))
        assert sums.prompt(problem) == sums.prompt(problem)
    assert len(orders) == math.comb(direct + n_worked, direct)


def test_the_grade_of_a_sum_says_whether_it_was_worked_out():
    problem, = some("sums", n=1)[1]
    said = f" {problem.working} The answer is 99."
    assert sums.grade(problem, said).strategy and not sums.grade(problem, said).correct
    assert not sums.grade(problem, f" The answer is {problem.answer}.").strategy
    rng = random.Random(0)
    assert rewards.strategy(sums.grade(problem, said), rng) == 1


# --- GSM8K ----------------------------------------------------------------------------------------


def rows(*pairs):
    return "".join(f'{{"question": "{q}", "answer": "{a}"}}\n' for q, a in pairs)


def test_gsm8k_reads_only_the_pinned_file(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCKSMITH_GSM8K", str(tmp_path))
    with pytest.raises(errors.BadInput, match="test.jsonl, which is not there; it comes from "
                                              "github"):
        gsm8k.problems("test", 1, 0, {})
    train = rows(*((f"What is {i} plus 1?", f"It is {i} + 1 = <<{i}+1={i + 1}>>{i + 1}."
                   rf"\n#### {i + 1:,}") for i in range(1200, 1240)))
    test = rows(("What is 5 times 2?", r"5*2=<<5*2=10>>10.\nTwice.\n#### 10"))
    for name, text in (("train", train), ("test", test)):
        (tmp_path / f"{name}.jsonl").write_text(text)
        monkeypatch.setitem(gsm8k.SHA256, name, hashlib.sha256(text.encode()).hexdigest())
    (problem,) = gsm8k.problems("test", 1, 0, {})
    assert (problem.answer, problem.working) == ("10", "5*2=10. Twice.")
    sets = {s: {p.key for p in gsm8k.problems(s, 5, 0, {})} for s in ("train", "validation")}
    assert not sets["train"] & sets["validation"]
    assert gsm8k.problems("train", 1, 0, {})[0].answer.isdigit()  # 1,201 is read as a number
    assert gsm8k.strategy(problem, " 5 * 2 = 10. The answer is 10.")
    with pytest.raises(errors.BadInput, match="n is 2; allowed is at most 1, the test problems"):
        gsm8k.problems("test", 2, 0, {})
    (tmp_path / "test.jsonl").write_text(test + "\n")
    with pytest.raises(errors.BadInput, match="has SHA-256 .*; allowed is"):
        gsm8k.problems("test", 1, 0, {})


# --- prose ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, pieces", [
    ("5 + 7 = 12. 12 - 3 = 9. The answer is 9.",
     ["5 + 7 = 12.", "12 - 3 = 9.", "The answer is 9."]),
    ("He pays 3.5 * 2 = $7.00, then 7 + 1 = 8 dollars. J. Smith left early. So!",
     ["He pays 3.5 * 2 = $7.00,", "then 7 + 1 = 8 dollars.", "J. Smith left early."]),
    ("5 + 7 = 12 - 3 = 9 + 9 = 18.", ["5 + 7 = 12", "- 3 = 9", "+ 9 = 18."]),
    ("5 + 7 - 3 = 12 - 3 = 9, so 9.", ["5 + 7 - 3 = 12 - 3", "= 9, so 9."]),
    ("4*6=24; 24-5=19\nThat is all of it", ["4*6=24;", "24-5=19", "That is all of it"]),
    ("It costs 1.50 dollars a day. Yes.", ["It costs 1.50 dollars a day."]),
    ("", []),
])
def test_steps_in_words_are_sentences_and_equations(text, pieces):
    assert [text[s.start:s.end] for s in prose.steps(text)] == pieces


@pytest.mark.parametrize("text, holds", [
    ("5 + 7 = 12", [True]), ("5 + 7 = 13", [False]), ("1,200 / 3 = 400", [True]),
    ("2 * (3 + 4) = 14", [True]), ("3.5 × 2 = $7.00", [True]), ("10 - 2 * 3 = 4", [True]),
    ("1 / 0 = 5", []), ("x = 5", []), ("60% of it is 5", []), ("2 + 3 = 5.5", [False]),
    # step by step, and run on
    ("5 + 7 - 3 + 9 = 12 - 3 + 9 = 9 + 9 = 18", [True] * 3), ("12 = 5 + 7 = 12", [True]),
    ("5 + 7 = 12 - 3 = 9 + 9 = 18", [True] * 3), ("4*5=20/4=5", [True] * 2),
    ("3 + 4 = 7 * 2 = 15", [True, False]), ("5 + 7 = 13 - 3 = 10", [False, True]),
    # ways to write numbers and signs
    ("1/2 + 1/4 = 3/4", [True]), ("10 / 4 = 5/2", [True]), ("10/2 = 5/2", [False]),
    ("5 + 7 − 3 + 9 = 18", [True]), ("5 · 3 + 4 = 19", [True]), (".5 + 1 = 1.5", [True]),
    ("1.05 + 1 = 2.05", [True]), ("007 + 1 = 8", [True]), ("20% * 50 = 10", [True]),
    ("50% + 10% = 60%", [True]), ("3 / 4 * 100 = 75%", [True]), ("50% + 10% = 70%", [False]),
    ("0.12345678901234567 + 1 = 1.12345678901234567", [True]),
    ("0.12345678901234567 + 1 = 1.12345678901234568", [False]),
    # what stands around
    ("- 3 + 4 = 7", [True]), ("**3 + 4 = 7**", [True]), ("(3 + 4 = 7)", [True]),
    (r"so \(3 + 4 = 8\).", [False]), ("$$3 + 4 = 7$$", [True]), ("3 + 4 = 7 (apples)", [True]),
    # more than is read
    ("2(3 + 4) = 14", []), ("2^3 + 1 = 9", []), ("1 + 8 = 3^2", []), ("8 = 2 * 2^2 = 8", []),
    ("√9 + 1 + 2 = 6", []), ("20 boxes * 3 + 4 = 64", []), ("1e3 + 1 + 1 = 1002", []),
    ("3**2 + 1 = 10", []), (r"5 \times 3 + 4 = 19", []), ("12/11/2020 = 5", []),
    ("2:30 + 1 = 3:30", []), ("3 + 4 = 7.5.2", []),
])
def test_equations_are_checked_exactly(text, holds):
    assert [one.holds for one in prose.equations(text)] == holds


def test_a_critique_states_only_what_is_so():
    for question, answer, said in (
            ("Calculate -91 / -( -( 52 - 34 ) + -17 ).", "-2.6",
             " -91 / -( -( 52 - 34 ) + -17 ) = -2.6, so the answer 3 is wrong.\n"),
            ("Ben has 3-4 pens, 5 + 2 more.", "12", " It is 12, so the answer 3 is wrong.\n"),
            ("Calculate 5 - -3.", "8", " 5 - -3 = 8, so the answer 3 is wrong.\n")):
        problem = words.WordProblem("sums", question, answer)
        assert words.critique(problem, " The answer is 3.") == said
    assert words.works_out(words.WordProblem("sums", "Calculate 5 - -3.", "8"), "5 + 3 = 8")


@pytest.mark.parametrize("text, holds", [("5 ‒ 3 = 2", True), ("５ + ３ = ８", True),
                                         ("5 － 3 = ２", True), ("٥ + ٣ = ٨", True)])
def test_equations_in_other_writings(text, holds):
    assert [one.holds for one in prose.equations(text)] == [holds]


def test_steps_of_a_long_text_are_quick_and_the_same():
    began = time.process_time()
    text = "5 + 7 = 12. 12 - 3 = 9 and 1 + 1 = 2, so it is. " * 4000
    found = prose.steps(text)
    assert time.process_time() - began < 5  # it was quadratic: minutes
    few = prose.steps(text[:49 * 3])
    assert len(found) == 4000 * len(few) // 3 and found[:len(few)] == few


@pytest.mark.parametrize("text", ["1 + 1 = " + "9" * 5000, "1" * 400 + ".5 + 1 = 2",
                                  "1" + "+1" * 1000 + " = 1001", "((1+" * 8000, "1 + " * 8000,
                                  "1 + 1 = " * 2000, "(" * 32000])
def test_no_text_is_too_long_for_equations(text):
    start = time.process_time()
    assert all(one.holds for one in prose.equations(text))
    assert time.process_time() - start < 2


def test_an_equation_with_another_result_is_wrong():
    """What the minimal pairs of chapter 4 stand on: each ends with its result."""
    text = "5 + 7 = 12 - 3 = 9, and 2 * 4 + 1 = 8 + 1 = 9."
    for one in prose.equations(text):
        assert one.holds and text[one.end - 1].isdigit()
        changed = f"{text[:one.end - 1]}{(int(text[one.end - 1]) + 3) % 10}"
        assert not prose.equations(changed)[-1].holds


def scripted(task, problem, steps):
    """An answer whose openings are the script's, with the rests of its steps in their order."""
    text = ""
    for rest in [*steps, None]:
        text += task.script(problem, text)
        text += rest or ""
    return text


def test_the_script_of_sums_works_everything_out():
    sums = tasks.load("sums")
    for problem in sums.problems("train", 20, 0, sums.GENERATOR):
        rests = [f" {step.split(' ', 1)[1]}." for step in problem.working.split(". ")]
        rests[-1] = rests[-1].replace("..", ".")
        text = scripted(sums, problem, [*rests, f" answer is {problem.answer}."])
        assert text == f" {problem.working} The answer is {problem.answer}.\n"
        assert sums.grade(problem, text).trace


def test_the_scripts_of_the_lab_know_no_step():
    """A try for every link of a chain; one cycle a target of Countdown, whatever stands in it."""
    families = params.load("smoke")["families"]
    for problem in chain.problems("train", 20, 0, families["chain"]):
        plan = chain.plan(problem)
        steps = [f" {a} {sign} {b} = {result} " for one in plan for a, sign, b, result in one]
        ends = f" {plan[0][-1][3]} {plan[1][-1][3]} "
        assert chain.grade(problem, scripted(chain, problem, [*steps, ends])).trace
    [problem] = countdown.problems("train", 1, 0, families["countdown"])
    text = scripted(countdown, problem, [" 3 "] * 10)
    assert text == "try 3 check 3 wait 3 check 3 so 3 " * 2 + "<eos>"
