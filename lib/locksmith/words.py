"""Arithmetic problems in words for models that we did not train: make, ask, grade, guess, sample.

Problems come from reasoning-gym's generators `basic_arithmetic`, `chain_sum` and `gsm_symbolic`.
Only the generators are used, because
- its item i of seed s is drawn from seed s + i, so neighbouring seeds share almost all questions:
  here a hash of the canonical question says which split it belongs to, and none is drawn twice;
- its graders pay for wrong answers and evaluate model text without a limit: here math-verify
  decides, in a process of its own, which is ended when an answer takes it too long.

An answer must be a value: "34 * 17 + 23" is not accepted as the result of 34 * 17 + 23, which
math-verify alone would. The outcomes right, wrong and error (the grader failed) are kept apart.

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

import atexit
import hashlib
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from locksmith import prose
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
        except (TypeError, AssertionError) as error:
            raise ValueError(f"generator of {task} is {options}: {error}") from error
        mine = {}
        for i in range(size):
            if len(mine) == wanted:
                break
            item = items[i]
            problem = WordProblem(task, item["question"].removesuffix(_INSTRUCTION).strip(),
                                  item["answer"])
            if split_of(problem.question) == split and problem.key not in _SHOWN:
                mine.setdefault(problem.key, problem)
        else:
            raise ValueError(f"n is {n}, but {task} with {options} has only {len(mine)} "
                             f"different {split} questions among {size}")
        found[task] = list(mine.values())
    return [found[task][i // len(generator)] for i, task in zip(range(n), list(generator) * n)]


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
    """The answer in a continuation, as written: what follows the last "answer is" of the first
    line, else the last number of that line, else None."""
    line = text.strip().split("\n")[0]
    said = re.findall(r"answer is:?\s*(.*?)(?:\.\s|\.?$|(?=[Tt]he answer))", line)
    if said:
        return said[-1].split("=")[-1].strip()[:100] or None
    numbers = re.findall(prose.NUMBER, line)
    return numbers[-1] if numbers else None


def stated(text: str) -> list[tuple[int, int]]:
    """Where the answer that `extract` finds stands in a continuation: its last place, or none."""
    said, line = extract(text), prose.first_line(text)
    start = -1 if said is None else text.find(line) + line.rfind(said)
    return [] if said is None else [(start, start + len(said))]


def _is_value(text, quotients):
    """Whether `text` states one value, not a calculation: no operator between two numbers. A
    quotient passes where `quotients` says so."""
    operators = r"[-+*^×·÷]" if quotients else r"[-+*^×·÷/]"
    return not re.search(rf"[0-9)\]}}]\s*{operators}+\s*[-(0-9]", text)


def serve_verdicts() -> None:
    """The grading process: lines of JSON [gold, answer, seconds] in; outcomes out."""
    import resource
    import signal

    from math_verify import parse, verify

    def compare(gold, answer):
        # math-verify's own limits count the seconds on the wall: on a busy machine right answers
        # would run into them.
        gold, answer = (parse(x, parsing_timeout=None, raise_on_error=True) for x in (gold, answer))
        return verify(gold, answer, timeout_seconds=None, raise_on_error=True)

    compare("1.2", "3")  # has sympy import what it imports late
    # An answer such as 9**9**9 may ask for more memory than there is.
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    for line in sys.stdin:
        gold, answer, seconds = json.loads(line)
        # Past that much processor time the system ends the process, even inside one huge power.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            outcome = "right" if compare(gold, answer) else "wrong"
        except Exception:  # whatever math-verify or sympy raises is the grader's failure
            outcome = "error"
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(outcome, flush=True)


_worker = None


def _stop_worker():
    global _worker
    if _worker is not None:
        _worker.kill()
        _worker.communicate()
        _worker = None


atexit.register(_stop_worker)


@cache
def verified(gold: str, answer: str, seconds: float = 2.0) -> str:
    """Whether math-verify finds the text `answer` equal to the text `gold`: "right", "wrong", or
    "error" if it fails or takes more than `seconds` of processor time (waiting does not count)."""
    global _worker
    if _worker is None:
        code = (f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); "
                "from locksmith.words import serve_verdicts; serve_verdicts()")
        _worker = subprocess.Popen([sys.executable, "-c", code], text=True, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        _worker.stdin.write(json.dumps([gold, answer, seconds]) + "\n")
        _worker.stdin.flush()
        outcome = _worker.stdout.readline().strip()
    except BrokenPipeError:
        outcome = ""
    if not outcome:  # the process was ended, by its limits or from outside
        _stop_worker()
        return "error"
    return outcome


def grade(problem: WordProblem, text: str) -> Grade:
    """Grade a continuation (text after the prompt). No answer at all is wrong, not an error.

    Attempts are the equations written, valid ones those that hold; the trace is right with at least
    one equation, all of which hold. Checks and backtracks are not told apart in words.
    """
    answer, written = extract(text), prose.equations(text)
    counts = {"attempts": len(written), "valid_attempts": sum(one.holds for one in written)}
    if answer is None:
        return Grade(False, False, None, **counts)
    whole = re.fullmatch(r"-?\d+", problem.answer) is not None
    if not re.search("[0-9]", answer) or not _is_value(answer, quotients=not whole):
        return Grade(False, False, answer, **counts)
    number = re.search(prose.NUMBER, answer)
    value = re.sub("[,$£€ ]", "", number[0]) if number else answer
    verdict = verified(problem.answer, answer)
    sound = 0 < counts["attempts"] == counts["valid_attempts"]
    return Grade(verdict == "right", verdict == "right" and sound, value, **counts,
                 error=verdict == "error")


# --- what tasks in words share (`tasks`) ---------------------------------------------------------

steps = prose.steps
_CALCULATION = re.compile(r"-?\d+(?: ?[-+*/] ?\d+)+")
_VERDICT = r"(?:right|wrong)(?=\.\n$)"
_REVIEWS = (
    "Q: Calculate 6 + 8.\nA: 6 + 8 = 14. The answer is 14.\n"
    "Review: 6 + 8 = 14, so the answer 14 is right.\n"
    "Q: Calculate 7 * 4.\nA: 7 * 4 = 27. The answer is 27.\n"
    "Review: 7 * 4 = 28, so the answer 27 is wrong.\n")


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
    """The calculation that a question asks for, or None where it asks for none."""
    found = _CALCULATION.search(problem.question)
    return found and found[0]


def works_out(problem: WordProblem, text: str) -> bool:
    """The strategy: at least one equation, and as many as the question's calculation has
    operators."""
    asked = calculation(problem)
    return written_out(text, len(re.findall(r"[-+*/]", asked)) if asked else 1)


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
    """The work done again by a program, and whether the answer agrees with it."""
    said, right = extract(text) or "(none)", grade(problem, text).correct
    asked = calculation(problem)
    work = problem.working or (f"{asked} = {problem.answer}" if asked
                               else f"It is {problem.answer}")
    return f" {work.rstrip('.')}, so the answer {said} is {'right' if right else 'wrong'}.\n"


def turned(critique: str) -> str:
    """A critique with its verdict turned round."""
    other = {"right": "wrong", "wrong": "right"}
    return re.sub(_VERDICT, lambda match: other[match[0]], critique)


def form(critique: str, rng: random.Random) -> str:
    """A critique with every digit and its verdict drawn at random."""
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
