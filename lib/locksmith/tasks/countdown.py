"""Countdown: make two targets from the same three numbers. Search: finding is hard, checking easy.

    <bos> make 40 and 63 from 3 7 9 :
    try 3 * 7 = 21 + 9 = 30 check 30 no wait 7 * 9 = 63 - 3 = 60 check 60 no ... so 7 + 3 * 4
    maybe 3 * 7 = 21 ... thus 9 * 7 ... <eos>

Expressions are evaluated left to right, use every number once, and stay within 0..99 at each step.
Two targets make guessing hard: a random valid expression hits one of them about one time in
fifteen, both at once about one time in two hundred. Reward is the outcome alone.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement, islice, permutations
from math import comb, log2
from typing import Any

from locksmith import grammar
from locksmith.errors import BadInput
from locksmith.tasks import Grade, whole
from locksmith.vocabulary import LARGEST, NUMBERS, OPERATORS

PARTS = 2  # targets a problem
MISSES = 2  # at a target, at most, in the work that critiques do


@dataclass(frozen=True)
class Problem:
    numbers: tuple
    targets: tuple

    @property
    def key(self) -> str:
        return f"{' '.join(map(str, sorted(self.numbers)))} > {' '.join(map(str, self.targets))}"

    @property
    def prompt(self) -> list[str]:
        first, second = map(str, self.targets)
        return ["<bos>", "make", first, "and", second, "from", *map(str, self.numbers), ":"]


def apply(a: int, op: str, b: int) -> int | None:
    """a op b for op in + - *, or None where the result leaves 0..99."""
    value = a + b if op == "+" else a - b if op == "-" else a * b
    return value if 0 <= value <= LARGEST else None


@lru_cache(maxsize=100_000)
def expressions(numbers: tuple[int, ...]) -> tuple[tuple, ...]:
    """All valid expressions over a sorted tuple of numbers: tuples (a, op, b, r, op, c, s)."""
    out = []
    for a, b, c in sorted(set(permutations(numbers))):
        for first in OPERATORS:
            if first != "-" and a < b:  # a + b and b + a are one expression
                continue
            r = apply(a, first, b)
            for second in OPERATORS if r is not None else ():
                s = apply(r, second, c)
                if s is not None:
                    out.append((a, first, b, r, second, c, s))
    return tuple(out)


def _reached(numbers, generator):
    """Values that exactly one expression over the numbers has, or, where the generator states
    "solutions", at least so many; numbers and 0 left out."""
    times = Counter(e[-1] for e in expressions(numbers))
    wanted = generator.get("solutions")
    return {v for v, n in times.items()
            if (n == 1 if wanted is None else n >= wanted)} - set(numbers) - {0}


def easier(generator: dict, solutions: int) -> dict:
    """Changes of a generator that make problems easier: each target has at least so many solutions.
    Few do, so the number of expressions has three times the range."""
    least, most = generator["expressions"]
    return {"solutions": solutions, "expressions": [2 * least - most, 2 * most - least]}


def harder(generator: dict, fewest: int) -> dict:
    """Changes of a generator that make problems harder: from so many expressions on, in a range as
    wide as before."""
    least, most = generator["expressions"]
    return {"expressions": [fewest, fewest + most - least]}


def count(split: str, generator: dict, depth: int | None = None) -> int:
    """How many different problems of a split there are; with numbers above 25, from an even sample
    of 3,000 sets of numbers. depth: means nothing here."""
    largest, (least, most) = generator["largest_number"], generator["expressions"]
    sets = combinations_with_replacement(range(1, largest + 1), 3)
    every = 1 + comb(largest + 2, 3) // 3000
    reached = (len(_reached(numbers, generator)) for numbers in islice(sets, 0, None, every)
               if split_of(numbers) == split and least <= len(expressions(numbers)) <= most)
    return every * sum(n * (n - 1) for n in reached)


def prompt_length(depth: int | None = None) -> int:
    """Tokens of a prompt."""
    return len(Problem((1, 1, 1), (1, 1)).prompt)


def split_of(numbers: Sequence[int]) -> str:
    """"train", "validation" or "test", by a hash of the number set: no set is in two splits."""
    digest = hashlib.sha256(" ".join(map(str, sorted(numbers))).encode()).digest()[0]
    return "test" if digest < 32 else "validation" if digest < 48 else "train"


def sample(rng: random.Random, split: str, generator: dict) -> Problem:
    """A random problem of a split: three numbers and two targets, each with a single solution, or
    with at least generator["solutions"], where that is stated.

    generator["expressions"] bounds the number of valid expressions over the three numbers, [least,
    most]: the first bounds what guessing can reach, the second what an exhaustive search costs.
    """
    least, most = generator["expressions"]
    for _ in range(100_000):
        numbers = tuple(rng.randint(1, generator["largest_number"]) for _ in range(3))
        ordered = tuple(sorted(numbers))
        if split_of(ordered) != split or not least <= len(expressions(ordered)) <= most:
            continue
        reached = sorted(_reached(ordered, generator))
        if len(reached) >= PARTS:
            return Problem(numbers, tuple(rng.sample(reached, PARTS)))
    raise BadInput(f"expressions is {generator['expressions']}: no three numbers up to "
                   f"{generator['largest_number']} have so many in the {split} split.")


def problems(split: str, n: int, seed: int, generator: dict) -> list[Problem]:
    """n different problems of a split, a pure function of the arguments."""
    whole("countdown", generator, "largest_number", 2, LARGEST)
    bounds = generator.get("expressions")
    if not isinstance(bounds, (list, tuple)) or list(map(type, bounds)) != [int, int]:
        raise BadInput(f"expressions of the generator of countdown is {bounds!r}; allowed are two "
                       "whole numbers, the fewest and the most.")
    rng = random.Random(f"countdown {split} {seed}")
    return distinct(lambda: sample(rng, split, generator), n)


def distinct(draw: Callable[[], Any], n: int) -> list:
    """n problems with different keys from draw(). Raises BadInput where there are not so many."""
    found, drawn, last = {}, 0, 0
    while drawn < 100 * n and drawn - last < 1000 + 20 * len(found):
        problem, drawn = draw(), drawn + 1
        if problem.key not in found:
            found[problem.key], last = problem, drawn
        if len(found) == n:
            return list(found.values())
    raise BadInput(f"problems: {n} are asked for, but these settings give hardly {len(found)}.")


# --- reading a trace -----------------------------------------------------------------------------


def answer_value(words: list[str], problem: Problem) -> int | None:
    """Value of an answer such as `3 * 7 + 9`, or None unless it is valid for the problem."""
    if len(words) != 5 or not all(w in NUMBERS for w in words[::2]):
        return None
    a, b, c = map(int, words[::2])
    if sorted((a, b, c)) != sorted(problem.numbers) or not {words[1], words[3]} <= set(OPERATORS):
        return None
    r = apply(a, words[1], b)
    return None if r is None else apply(r, words[3], c)


def _attempt(words, problem):
    """Value of an attempt `3 * 7 = 21 + 9 = 30`, or None if any step of it is wrong."""
    if len(words) != 9 or words[3] != "=" or words[7] != "=":
        return None
    value = answer_value([*words[:3], words[5], words[6]], problem)
    if value is None or words[8] != str(value):
        return None
    return value if words[4] == str(apply(int(words[0]), words[1], int(words[2]))) else None


def grade(problem: Problem, words: str | list[str]) -> Grade:
    """Scores a continuation of `problem.prompt`. Anything outside the grammar counts as wrong.

    correct: it ended by itself and its conclusions hit the targets in order. trace: correct, every
    attempt valid, every check honest, and each conclusion restates an attempt just checked "yes".
    """
    words = grammar.words(words)
    answers, attempts, valid, checks, honest, concluded_well = [], 0, 0, 0, 0, 0
    last, verified, malformed = None, None, False
    found = grammar.steps(words)
    for behaviour, content in found:
        target = problem.targets[min(len(answers), PARTS - 1)]
        if behaviour in ("try", "wait"):
            attempts += 1
            last, verified = _attempt(content, problem), None
            valid += last is not None
            expression = [*content[:3], *content[5:7]] if last is not None else None
        elif behaviour == "check":
            checks += 1
            claim = content == [str(last), "yes" if last == target else "no"] and last is not None
            honest += claim
            verified = expression if claim and last == target else None
        elif behaviour == "conclude":
            answers.append((tuple(content), answer_value(content, problem) == target))
            concluded_well += verified is not None and verified == content
            last, verified = None, None
        elif behaviour is None:
            malformed = True
    behaviours = tuple(b for b, _ in found)
    ended = words[-1:] == ["<eos>"] and "next" not in words
    complete = len(answers) == PARTS and ended and not malformed
    correct = complete and all(hit for _, hit in answers)
    trace = correct and valid == attempts and honest == checks and concluded_well == PARTS
    return Grade(correct, trace, tuple(a for a, _ in answers) if complete else None, attempts,
                 valid, checks, honest, behaviours.count("wait"), behaviours)


def hits(problem: Problem, words: str | list[str]) -> list[bool]:
    """For each attempt of a trace, in order, whether it reaches the target that is open."""
    out, answered = [], 0
    for behaviour, content in grammar.steps(grammar.words(words)):
        if behaviour in ("try", "wait"):
            out.append(_attempt(content, problem) == problem.targets[min(answered, PARTS - 1)])
        answered += behaviour == "conclude"
    return out


def labels(words: list[str]) -> list[str]:
    return grammar.labels(words)


# --- authors -------------------------------------------------------------------------------------


def _spell(e):
    a, first, b, r, second, c, s = e
    return [str(a), first, str(b), "=", str(r), second, str(c), "=", str(s)]


def _answer(e):
    return [str(e[0]), e[1], str(e[2]), e[4], str(e[5])]


def guess(problem: Problem, rng: random.Random, train: Sequence[Problem] = ()) -> list[str]:
    """Strategy-free control: for each target a random valid expression, concluded at once."""
    words = []
    for _ in range(PARTS):
        e = rng.choice(expressions(tuple(sorted(problem.numbers))))
        words += ["try", *_spell(e), "so", *_answer(e)]
    return " ".join([*words, "<eos>"])


def answer_bits(problem: Problem) -> float:
    """The bits that an answer holds: a random valid expression hits its target so seldom."""
    return PARTS * log2(len(expressions(tuple(sorted(problem.numbers)))))


def _next_attempt(rng, pool, target, tried, insight):
    """With probability `insight` a solution; otherwise any first step, finished sensibly.

    The author finishes with the number and operator that come closest to the target. Nobody
    repeats an expression before all have been tried.
    """
    fresh = [e for e in pool if e not in tried] or list(pool)
    hits = [e for e in fresh if e[-1] == target]
    if hits and rng.random() < insight:
        return rng.choice(hits)
    start = rng.choice(fresh)[:4]
    return min((e for e in fresh if e[:4] == start), key=lambda e: abs(e[-1] - target))


def document(rng: random.Random, problem: Problem, author: Any, generator: dict) -> list[str]:
    """A solved (or given-up) problem as one author writes it, after the prompt, with `<eos>`.

    author: habit (function behaviour -> opening words), persistence, check. A go-on after a failed
    check is written as a backtrack with probability generator["backtrack"], otherwise as a
    hand-over: the author concludes, and the next author tries the same target. After
    generator["longest"] attempts nobody goes on.
    """
    pool = expressions(tuple(sorted(problem.numbers)))
    words, attempts = [], 0
    for target in problem.targets:
        tried, opening = set(), "try"
        while True:
            e = _next_attempt(rng, pool, target, tried, generator["insight"])
            tried.add(e)
            attempts += 1
            words += [*author.open(opening), *_spell(e)]
            again = False
            if rng.random() < author.check:
                words += [*author.open("check"), str(e[-1]), "yes" if e[-1] == target else "no"]
                again = e[-1] != target and rng.random() < author.persistence
            if not again or attempts >= generator["longest"]:
                words += [*author.open("conclude"), *_answer(e)]
                break
            opening = "wait"
            if rng.random() >= generator["backtrack"]:
                words += [*author.open("conclude"), *_answer(e), "next"]
                opening = "try"
    return [*words, "<eos>"]


def stronger(rng: random.Random, problem: Problem, author: Any, generator: dict) -> list[str]:
    """A solved problem as an author writes it who never gives up and measures every miss.

    After each failed check, before going back: `from 40 - 30 = 10`, how far off the attempt was. No
    pre-training document holds such a step. After seven misses at a target this author sees it.
    """
    pool, words = expressions(tuple(sorted(problem.numbers))), []
    for target in problem.targets:
        tried, opening = set(), "try"
        while True:
            e = _next_attempt(rng, pool, target, tried, 0.3 if len(tried) < 7 else 1.0)
            tried.add(e)
            hit = e[-1] == target
            words += [*author.open(opening), *_spell(e)]
            words += [*author.open("check"), str(e[-1]), "yes" if hit else "no"]
            if hit:
                words += [*author.open("conclude"), *_answer(e)]
                break
            high, low = max(target, e[-1]), min(target, e[-1])
            words += ["from", str(high), "-", str(low), "=", str(high - low)]
            opening = "wait"
    return [*words, "<eos>"]


def fact(rng: random.Random, generator: dict) -> list[str]:
    """One arithmetic step of the kind that traces need, e.g. 3 * 7 = 21."""
    while True:
        a, op = rng.randint(0, LARGEST), rng.choice(OPERATORS)
        if op == "*":
            a = rng.randint(1, 33)
        value = apply(a, op, b := rng.randint(1, generator["largest_number"]))
        if value is not None:
            return [str(a), op, str(b), "=", str(value)]


def judge(problem: Problem, words: str | list[str]) -> list[str]:
    """An honest review of a trace: each conclusion worked out again, then the verdict."""
    out, right, concluded = [], True, 0
    for content in (c for b, c in grammar.steps(grammar.words(words)) if b == "conclude"):
        if answer_value(content, problem) is None or concluded == PARTS:
            return [*out, "wrong"]
        a, first, b, second, c = content
        r = apply(int(a), first, int(b))
        s = apply(r, second, int(c))
        right &= s == problem.targets[concluded]
        out += _spell((a, first, b, r, second, c, s))
        out.append("yes" if s == problem.targets[concluded] else "no")
        concluded += 1
    return [*out, "right" if right and concluded == PARTS else "wrong"]


# --- the interface of every task (`tasks`): the same as text -------------------------------------

OPENINGS = grammar.OPENINGS
steps, stated = grammar.spans, grammar.stated


def question(problem: Problem) -> str:
    """The problem as the corpus writes it, without its first word `<bos>`."""
    return " ".join(problem.prompt[1:])


def prompt(problem: Problem) -> str:
    """The text that a model continues."""
    return " ".join(problem.prompt)


def strategy(problem: Problem, text: str) -> bool:
    """It gives up nowhere: it concludes only what a check just said "yes" to, and ends only behind
    its conclusions. A search that is cut off found nothing and yet has not given up."""
    words = grammar.words(text)
    found = grammar.steps(words)
    earned = [before for before, (b, _) in zip([("", []), *found], found) if b == "conclude"]
    honest = all(b == "check" and said[-1:] == ["yes"] for b, said in earned)
    return bool(found) and honest and (len(earned) == PARTS or not grammar.ended(words))


def went_on(problem: Problem, text: str) -> list[bool]:
    """For each check that said "no", in order, whether another attempt follows, found or not; of a
    check at which the text was cut off nothing is known."""
    words = grammar.words(text)
    found = grammar.steps(words)
    after = [b for b, _ in found[1:]] + ["end"] * grammar.ended(words)
    return [b in ("try", "wait") for (kind, said), b in zip(found, after)
            if kind == "check" and said[-1:] == ["no"]]


def script(problem: Problem, text: str) -> str:
    """The next opening by the script: a fixed cycle a target, which goes back once, whatever the
    checks say; then the end."""
    cycle = ("try", "check", "wait", "check", "so") * PARTS
    done = len(grammar.steps(grammar.words(text)))
    return cycle[done] if done < len(cycle) else "<eos>"


def review(problem: Problem, text: str) -> str:
    """A review document up to its critique; text: a finished answer."""
    words = [word for word in grammar.words(text) if word not in grammar.END]
    return " ".join(["<bos>", "review", *problem.prompt[1:], *words, ";"])


def critique(problem: Problem, text: str) -> str:
    """An honest critique of a finished answer, up to its `<eos>`: each of its attempts worked out
    again and whether it hits the target, as reviews of the corpus say it of conclusions, then the
    `working`, then the verdict."""
    said, concluded = [], 0
    for kind, step in grammar.steps(grammar.words(text)):
        concluded += kind == "conclude"
        expression = [*step[:3], *step[5:7]]
        value = answer_value(expression, problem) if kind in ("try", "wait") else None
        if value is not None:
            a, first, b, second, c = expression
            hit = value == problem.targets[min(concluded, PARTS - 1)]
            said += _spell((a, first, b, apply(int(a), first, int(b)), second, c, value))
            said.append("yes" if hit else "no")
    return " ".join([*said, *_searched(problem), *judge(problem, text)[-1:], "<eos>"])


def _searched(problem):
    """The words of an author who checks every attempt and goes back until both targets are hit,
    after MISSES at most; the same for the same problem."""
    rng, pool = random.Random(f"working {problem.key}"), expressions(tuple(sorted(problem.numbers)))
    words = []
    for target in problem.targets:
        tried, said, opening = set(), "no", "try"
        while said == "no":
            e = _next_attempt(rng, pool, target, tried, 1.0 if len(tried) == MISSES else 0.3)
            tried.add(e)
            said = "yes" if e[-1] == target else "no"
            words += [opening, *_spell(e), "check", str(e[-1]), said]
            opening = "wait"
        words += ["so", *_answer(e)]
    return words


def working(problem: Problem) -> str:
    """The work alone, as critiques do it: a search that ends with both targets."""
    return " ".join([*_searched(problem), "<eos>"])


def judgement(problem: Problem, text: str) -> str:
    """The verdict alone, as critiques end with it."""
    return " ".join([*judge(problem, text)[-1:], "<eos>"])


_OTHER = {"yes": "no", "no": "yes", "right": "wrong", "wrong": "right"}


def turned(critique: str) -> str:
    """A critique with every judgement turned round."""
    return " ".join(_OTHER.get(word, word) for word in critique.split())


def form(critique: str, rng: random.Random) -> str:
    """A critique with every number, operator and judgement drawn at random from its kind."""
    alike = [NUMBERS, OPERATORS, ("yes", "no"), ("right", "wrong")]
    words = critique.split()
    drawn = [rng.choice(next((kind for kind in alike if word in kind), (word,)))
             for word in words[:-1]]
    return " ".join([*drawn, *words[-1:]])


def fact_prompt(a: int, op: str, b: int) -> str:
    """A document of plain facts up to a result."""
    return f"<bos> {a} {op} {b} ="


def verdict(text: str) -> str | None:
    """"right" or "wrong", the last word of a critique, or None."""
    last = [word for word in grammar.words(text) if word != "<eos>"][-1:]
    return last[0] if last and last[0] in ("right", "wrong") else None
