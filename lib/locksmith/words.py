"""Arithmetic problems in words for models that we did not train: make, ask, grade, guess, sample.

Problems come from reasoning-gym's generators `basic_arithmetic`, `chain_sum` and `gsm_symbolic`.
Only the generators are used, because
- its item i of seed s is drawn from seed s + i, so neighbouring seeds share almost all questions:
  here a hash of the canonical question says which split it belongs to, and none is drawn twice;
- its golds divide without rest, leave out the order of operations, or cut a result to a whole
  number: here every gold is worked out again from the question, exactly; a problem of gsm_symbolic
  is not drawn where its own working writes an equation that does not hold;
- its graders pay for wrong answers and evaluate model text without a limit: here `grading` reads
  which value an answer states. The outcomes right, wrong and error (the grader failed) are kept
  apart.

Base models are asked in the form "Q: ... A: ...", after a few fixed examples written for this
book, which are in no split; an instruction-tuned model gets the very same text. The 92 templates
of gsm_symbolic appear in every split, with other numbers and names: a split keeps questions
apart, not kinds of question.

Speed, Gemma-3-270m in bfloat16, 64 rollouts of 16 tokens from one prompt of 152, one thread, both
in one run on a 2-core machine with ten other processes: `generate` 25 tokens a CPU second, the
engine 96 (on the clock 3.5 and 9.6). The engine reads the prompt once for all its samples, shows
the 262k-token head only last positions, and draws from a few rows of logits at a time, so that
they stay in the processor's cache.
"""

import hashlib
import random
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from locksmith import grading, prose
from locksmith.errors import BadInput
from locksmith.tasks import Grade

if TYPE_CHECKING:
    from locksmith.loading import Model

SPLITS = ("train", "validation", "test")
TASKS = ("basic_arithmetic", "chain_sum", "gsm_symbolic")


@dataclass(frozen=True)
class WordProblem:
    """One question: `key` is its canonical form, `answer` the right answer as text."""
    task: str
    question: str
    answer: str
    working: str = ""  # the right steps in words, where the task has them
    # (question, working or "", answer) of the examples before it, where they are drawn for each
    examples: tuple = ()

    @property
    def key(self) -> str:
        return canonical(self.question)


# --- problems -------------------------------------------------------------------------------------

def canonical(question: str) -> str:
    """The question in lower case with single spaces, and none around operators."""
    text = re.sub(r"\s+", " ", question.strip().lower())
    return re.sub(r" ?([-+*/=()]) ?", r"\1", text)


def split_of(question: str) -> str:
    """The split of a question, from a hash of its canonical form: 60, 20 and 20 % of them."""
    part = int(hashlib.sha256(canonical(question).encode()).hexdigest(), 16) % 5
    return SPLITS[max(part - 2, 0)]


# What follows every gsm_symbolic question; the examples in the prompt say it better.
_INSTRUCTION = " Give the result as your final answer. Do not include units."


def problems(split: str, n: int, seed: int, generator: dict[str, dict]) -> list[WordProblem]:
    """n different problems of a split, the same ones for the same seed.

    generator: task -> options of its reasoning-gym generator, e.g. {"basic_arithmetic":
    {"max_terms": 3}}; several tasks take turns. ValueError for an unknown split, task or option,
    or if the generator has fewer than n different questions.
    """
    import reasoning_gym

    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; allowed are {', '.join(SPLITS)}")
    if not generator or not set(generator) <= set(TASKS):
        raise ValueError(f"generator names the tasks {', '.join(generator) or '(none)'}; "
                         f"allowed are {', '.join(TASKS)}")
    found, size = {}, 50 * n + 1000
    for turn, (task, options) in enumerate(generator.items()):
        wanted = (n - turn + len(generator) - 1) // len(generator)
        try:
            items = reasoning_gym.create_dataset(task, seed=seed, size=size, **options)
            items[0]  # some options fail only here
        except (TypeError, ValueError, IndexError, AssertionError) as error:
            raise ValueError(f"generator of {task} is {options}: {error}") from error
        mine = {}
        for i in range(size):
            if len(mine) == wanted:
                break
            item = items[i]
            problem = WordProblem(task, item["question"].removesuffix(_INSTRUCTION).strip(),
                                  _gold(task, item))
            if (problem.answer and split_of(problem.question) == split
                    and problem.key not in _SHOWN):
                mine.setdefault(problem.key, problem)
        else:
            raise ValueError(f"n is {n}, but {task} with {options} has only {len(mine)} "
                             f"different {split} questions among {size}")
        found[task] = list(mine.values())
    return [found[task][i // len(generator)] for i, task in zip(range(n), list(generator) * n)]


def _gold(task, item):
    """The right answer of a generated problem, or "" where it has none that can be trusted: a
    division by zero, working that does not hold."""
    about = item["metadata"]
    if task == "gsm_symbolic":
        sound = all(one.holds for one in prose.equations(about["answer_cot"]))
        return item["answer"] if sound else ""
    value = prose.value(about["expression"])
    return "" if value is None else prose.written(value)


# --- prompts --------------------------------------------------------------------------------------

_SHOTS = {
    "arithmetic": [
        ("Calculate 6 + 8.", "6 + 8 = 14.", "14"),
        ("Calculate 7 * 4.", "7 * 4 = 28.", "28"),
        ("State the final answer to the following arithmetic problem: 31 - 12 =",
         "31 - 12 = 19.", "19"),
        ("Calculate 53 + 29.", "53 + 29 = 82.", "82"),
    ],
    "words": [
        ("Ben has 4 boxes with 6 pens in each. He gives 5 pens away. How many pens are left?",
         "4 * 6 = 24. 24 - 5 = 19.", "19"),
        ("A film starts 15 minutes late and takes 90 minutes. How many minutes pass until its end?",
         "15 + 90 = 105.", "105"),
        ("Three friends share the price of a 42 dollar meal and each adds a 2 dollar tip. "
         "How many dollars does each of them pay?", "42 / 3 = 14. 14 + 2 = 16.", "16"),
        ("Lena reads 12 pages a day. How many pages does she read in 3 weeks?",
         "3 * 7 = 21. 21 * 12 = 252.", "252"),
    ],
}
_SHOWN = {canonical(question) for shots in _SHOTS.values() for question, _, _ in shots}


def prompt(problem: WordProblem, shots: int = 4, steps: bool = True) -> str:
    """The text to continue. shots: how many examples, 0 to 4; steps: whether they show the working
    or only the answer (the answer-only control)."""
    examples = _SHOTS["words" if problem.task.startswith("gsm") else "arithmetic"]
    if not 0 <= shots <= len(examples):
        raise ValueError(f"shots is {shots}; allowed are 0 to {len(examples)}")
    text = ""
    for question, working, answer in examples[:shots]:
        text += f"Q: {question}\nA: {working + ' ' if steps else ''}The answer is {answer}.\n"
    return f"{text}Q: {problem.question}\nA:"


# --- grading --------------------------------------------------------------------------------------

def extract(text: str) -> str | None:
    """The answer in a continuation, as written: what stands behind its last "answer is", without
    the calculation before an "=", else its last number, else None."""
    return next((text[start:end] for start, end in stated(text)), None)


def stated(text: str) -> list[tuple[int, int]]:
    """Where the answer that `extract` finds stands in a continuation: its place, or none."""
    found = grading.statement(text)
    if found is None:
        return []
    said = text[found.start:found.end]
    start = found.start + said.rfind("=") + 1
    start += len(text[start:found.end]) - len(text[start:found.end].lstrip())
    end = start + len(text[start:found.end].rstrip()[:100])
    return [(start, end)] if start < end else []


def grade(problem: WordProblem, text: str) -> Grade:
    """Grade a continuation (text after the prompt). No answer at all is wrong, not an error; an
    error is a gold that is no number, which needs a grader of its own.

    answer: the value that it states, where it is one, so written that equal ones are equal.
    Attempts are the equations written, valid ones those that hold; the trace is right with at least
    one equation, all of which hold. Checks and backtracks are not told apart in words.
    """
    written, found = prose.equations(text), grading.statement(text)
    counts = {"attempts": len(written), "valid_attempts": sum(one.holds for one in written)}
    sound = 0 < counts["attempts"] == counts["valid_attempts"]
    said, gold = extract(text), grading.exact(problem.answer)
    right = False
    if found and found.number and found.number.value is not None:
        right = found.number.says(gold) and not _repeats(problem, said)
        said = prose.written(found.number.value)
    return Grade(right, right and sound, said, **counts, error=gold is None)


def _repeats(problem, said):
    """Whether an answer is the question's quotient again, not in lowest terms: 26 / 10."""
    asked = calculation(problem)
    return bool(asked and said) and canonical(said) == canonical(asked) and "/" in asked and (
        canonical(asked) != str(prose.value(asked)))


# --- what tasks in words share (`tasks`) ---------------------------------------------------------

steps = prose.steps
_CALCULATION = re.compile(r"[-(\d][-+*/(). \d]*[\d)]")
_OPERATOR = r"(?<=[\d)]) ?[-+*/]"
_VERDICT = r"(?<=: )(?:right|wrong)(?=[.,])|(?:right|wrong)(?=\.\n$)"  # on a step, on the answer
_REVIEWS = (
    "Q: Calculate 6 + 8 - 3.\nA: 6 + 8 = 14. 14 - 3 = 11. The answer is 11.\n"
    "Review: 6 + 8 = 14: right. 14 - 3 = 11: right. 6 + 8 = 14. 14 - 3 = 11, so the answer 11 is "
    "right.\n"
    "Q: Calculate 7 * 4.\nA: 7 * 4 = 27. The answer is 27.\n"
    "Review: 7 * 4 = 27: wrong, it is 28. 7 * 4 = 28, so the answer 27 is wrong.\n"
    "Q: Calculate 5 + 9 - 2.\nA: The answer is 12.\n"
    "Review: 5 + 9 = 14. 14 - 2 = 12, so the answer 12 is right.\n")


def few_shot(examples: Sequence[tuple[str, str, str]], question: str) -> str:
    """The text to continue: worked examples (question, working or "", answer),
    then the question."""
    shown = "".join(f"Q: {asked}\nA: {working + ' ' if working else ''}The answer is {answer}.\n"
                    for asked, working, answer in examples)
    return f"{shown}Q: {question}\nA:"


def distinct(draw: Callable[[], WordProblem], n: int, split: str,
             shown: Collection[str] = ()) -> list[WordProblem]:
    """n different problems of a split from draw(), none of the canonical questions `shown`.
    BadInput where there are not so many."""
    if split not in SPLITS:
        raise BadInput(f"split is {split!r}; allowed are {', '.join(SPLITS)}.")
    found, drawn, last = {}, 0, 0
    while drawn < 1000 + 200 * n and drawn - last < 1000 + 100 * len(found):
        problem, drawn = draw(), drawn + 1
        if (problem.key not in shown and problem.key not in found
                and split_of(problem.question) == split):
            found[problem.key], last = problem, drawn
        if len(found) == n:
            return list(found.values())
    raise BadInput(f"n is {n}; allowed is at most about {len(found)}, the different {split} "
                   "problems that this generator gives.")


def written_out(text: str, n: int) -> bool:
    """Whether an answer writes at least n equations, right or wrong."""
    return len(prose.equations(text)) >= n


def calculation(problem: WordProblem) -> str | None:
    """The calculation that a question asks for, or None where it asks for none: one with an
    operator, whose value is the right answer."""
    gold = grading.exact(problem.answer)
    return next((text for text in _CALCULATION.findall(problem.question)
                 if re.search(_OPERATOR, text) and prose.value(text) == gold), None)


def works_out(problem: WordProblem, text: str) -> bool:
    """The strategy: at least one equation, and as many as the question's calculation has
    operators."""
    asked = calculation(problem)
    return written_out(text, len(re.findall(_OPERATOR, asked)) if asked else 1)


def guess_answer(problem: WordProblem, rng: random.Random, train: Sequence[WordProblem]) -> str:
    """The control that never reads the question: the answer of a random train problem."""
    return f" The answer is {rng.choice([p.answer for p in train])}."


def fact_prompt(a: int, op: str, b: int) -> str:
    """The text that a plain fact's result continues, after two examples."""
    examples = [("Calculate 6 + 8.", "6 + 8 = 14.", "14"),
                ("Calculate 7 * 4.", "7 * 4 = 28.", "28")]
    return f"{few_shot(examples, f'Calculate {a} {op} {b}.')} {a} {op} {b} ="


def review(problem: WordProblem, text: str) -> str:
    """The text that a critique of an answer continues, after two worked reviews."""
    return f"{_REVIEWS}Q: {problem.question}\nA:{text.rstrip()}\nReview:"


def critique(problem: WordProblem, text: str) -> str:
    """What a program says of an answer: each of its equations with what it gives, then the work
    done again, and whether the answer agrees with it."""
    said, right = extract(text) or "(none)", grade(problem, text).correct
    judged = "".join(f" {_judged(text[one.start:one.end], one.holds)}"
                     for one in prose.equations(text))
    return (f"{judged} {_work(problem)}, so the answer {said} is "
            f"{'right' if right else 'wrong'}.\n")


def _judged(equation, holds):
    if holds:
        return f"{equation}: right."
    value = prose.value(equation.partition("=")[0])
    return f"{equation}: wrong{'' if value is None else f', it is {prose.written(value)}'}."


def _work(problem):
    asked = calculation(problem)
    work = problem.working or (f"{asked} = {problem.answer}" if asked
                               else f"It is {problem.answer}")
    return work.rstrip(".")


def working(problem: WordProblem) -> str:
    """The work alone, as critiques do it."""
    return f" {_work(problem)}.\n"


def judgement(problem: WordProblem, text: str) -> str:
    """The verdict alone, as critiques end with it."""
    right = grade(problem, text).correct
    return f" The answer {extract(text) or '(none)'} is {'right' if right else 'wrong'}.\n"


def turned(critique: str) -> str:
    """A critique with every judgement turned round."""
    other = {"right": "wrong", "wrong": "right"}
    return re.sub(_VERDICT, lambda match: other[match[0]], critique)


def form(critique: str, rng: random.Random) -> str:
    """A critique with every digit and judgement drawn at random."""
    drawn = re.sub(r"\d", lambda _: str(rng.randrange(10)), critique)
    return re.sub(_VERDICT, lambda _: rng.choice(("right", "wrong")), drawn)


def verdict(text: str) -> str | None:
    """"right", "wrong" or None: the last word of a critique's first line, strictly."""
    found = re.search(r"is (right|wrong)\.$", prose.first_line(text))
    return found[1] if found else None


# --- sampling -------------------------------------------------------------------------------------

@dataclass
class WordSamples:
    """P problems, n samples of each: correct (P, n) bool; outcomes (P, n) of "right", "wrong" and
    "error"; answers and texts, lists of P lists of n (answer None where there was none); tokens:
    how many were generated, stop tokens included."""
    correct: np.ndarray
    outcomes: np.ndarray
    answers: list
    texts: list
    tokens: int


def sample_words(model: "Model", problems: Sequence[WordProblem], n: int, *,
                 shots: int = 4, steps: bool = True, temperature: float = 0.6,
                 max_new_tokens: int = 64, seed: int = 0, batch_size: int = 256) -> WordSamples:
    """Sample n answers to every problem and grade them; returns `WordSamples`.

    The problems are taken in blocks of about `batch_size` rollouts, which `rollouts` keeps: a run
    that was cut off goes on where it stopped, and a repeated one only grades.
    """
    # Imported here: the grading process reads this module too and needs no torch.
    from locksmith.rollouts import by_problem, sampled

    drawn = sampled(
        model, [model.begin(prompt(p, shots, steps)) for p in problems], n, keep=True,
        max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, batch_size=batch_size,
        keys=[int(hashlib.sha256(p.key.encode()).hexdigest()[:15], 16) for p in problems])
    texts = by_problem([model.decode(ids) for ids in drawn.ids()], n)
    grades = [[grade(p, text) for text in row] for p, row in zip(problems, texts)]
    outcomes = np.array([[g.outcome for g in row] for row in grades])
    return WordSamples(outcomes == "right", outcomes, [[g.answer for g in row] for row in grades],
                       texts, int(drawn.lengths.sum()))
