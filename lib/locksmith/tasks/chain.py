"""Chain: work out two running sums, both results asked for. Execution: every step must hold.

    <bos> find 9 * 3 - 8 ; 45 - 18 :
    try 9 * 3 = 27 maybe 27 - 8 = 19 check 19 yes try 45 - 18 = 27 so 19 27 <eos>

Each chain is evaluated left to right within 0..99. Authors slip, sometimes check a step, go back
when a check fails, and at any point may jump to the answer with the values they have so far.
Nobody can guess two results. Reward is the outcome alone.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log2
from statistics import mean
from typing import Any

from locksmith import grammar
from locksmith.tasks import Grade, whole
from locksmith.tasks.countdown import apply, distinct, form, turned  # noqa: F401
from locksmith.vocabulary import LARGEST, NUMBERS, OPERATORS


@dataclass(frozen=True)
class Problem:
    chains: tuple  # of (first number, ((operator, number), ...))

    @property
    def key(self) -> str:
        return " ; ".join(" ".join(_spell(chain)) for chain in self.chains)

    @property
    def prompt(self) -> list[str]:
        first, second = map(_spell, self.chains)
        return ["<bos>", "find", *first, ";", *second, ":"]

    @property
    def depth(self) -> int:
        return max(len(links) for _, links in self.chains)


def _spell(chain):
    start, links = chain
    return [str(start), *(word for op, n in links for word in (op, str(n)))]


def plan(problem: Problem) -> list[list[tuple[int, str, int, int | None]]]:
    """The steps of a full solution: a list per chain of (a, operator, b, result)."""
    out = []
    for start, links in problem.chains:
        value, chain = start, []
        for op, n in links:
            result = apply(value, op, n)
            chain.append((value, op, n, result))
            value = result
        out.append(chain)
    return out


def _split_of(key):
    digest = hashlib.sha256(key.encode()).digest()[0]
    return "test" if digest < 32 else "validation" if digest < 48 else "train"


def split_of(problem: Problem) -> str | None:
    """By a hash of each chain: a test problem shares no chain of two links or more with training.

    Chains of one link are plain facts, so problems made of those alone are split as a whole. None
    for a problem whose chains fall into different splits; such problems are not used.
    """
    longer = [c for c in problem.chains if len(c[1]) > 1]
    splits = {_split_of(" ".join(_spell(c))) for c in longer} or {_split_of(problem.key)}
    return splits.pop() if len(splits) == 1 else None


def count(split: str, generator: dict, depth: int | None = None) -> int:
    """About half of the different problems of a split with `depth` links a chain, by default
    generator["depth"]: the hash spreads them over the splits only about evenly."""
    depth = depth or generator["depth"]
    ends = Counter(range(1, generator["largest_start"] + 1))  # value -> chains that lead there
    for _ in range(depth):
        after = Counter()
        for value, chains in ends.items():
            for op in OPERATORS:
                for n in range(2, 10) if op == "*" else range(1, generator["largest_number"] + 1):
                    after[apply(value, op, n)] += chains
        del after[None]
        ends = after
    share = {"train": 208, "validation": 16, "test": 32}[split] / 256
    return int(ends.total() ** 2 * share ** (1 if depth == 1 else 2) / 2)


def prompt_length(depth: int) -> int:
    """Tokens of the prompt of a problem with `depth` links a chain."""
    chain = (1, (("+", 1),) * depth)
    return len(Problem((chain, chain)).prompt)


def easier(generator: dict, depth: int) -> dict:
    """Changes of a generator that make problems easier: this many links a chain."""
    return {"depth": depth}


def harder(generator: dict, largest: int) -> dict:
    """Changes of a generator that make problems harder: numbers up to a larger one."""
    return {"largest_number": largest, "largest_start": largest}


def _sample_chain(rng, depth, generator):
    value = rng.randint(1, generator["largest_start"])
    start, links = value, []
    while len(links) < depth:
        op = rng.choice(OPERATORS)
        n = rng.randint(2, 9) if op == "*" else rng.randint(1, generator["largest_number"])
        result = apply(value, op, n)
        if result is not None:
            links.append((op, n))
            value = result
    return start, tuple(links)


def sample(rng: random.Random, split: str, generator: dict, depth: int | None = None) -> Problem:
    """A random problem of a split. depth: links a chain; by default drawn from
    generator["depths"]."""
    while True:
        d = depth or rng.choice(generator["depths"])
        problem = Problem((_sample_chain(rng, d, generator), _sample_chain(rng, d, generator)))
        if split_of(problem) == split:
            return problem


def problems(split: str, n: int, seed: int, generator: dict,
             depth: int | None = None) -> list[Problem]:
    """n different problems of a split at generator["depth"] (or `depth`),
    a pure function of these."""
    depth = depth or whole("chain", generator, "depth", 1, 9)
    for name, least in (("largest_start", 1), ("largest_number", 2)):
        whole("chain", generator, name, least, LARGEST)
    rng = random.Random(f"chain {split} {seed} {depth}")
    return distinct(lambda: sample(rng, split, generator, depth), n)


# --- reading a trace -----------------------------------------------------------------------------


def _step(words):
    """(a, op, b, result) of a written step if it is valid arithmetic, else None."""
    if len(words) != 5 or words[3] != "=" or words[1] not in OPERATORS:
        return None
    if not all(words[i] in NUMBERS for i in (0, 2, 4)):
        return None
    a, b, result = (int(words[i]) for i in (0, 2, 4))
    return (a, words[1], b, result) if apply(a, words[1], b) == result else None


def grade(problem: Problem, words: str | list[str]) -> Grade:
    """Scores a continuation of `problem.prompt`. Anything outside the grammar counts as wrong.

    correct: it ended by itself and concluded with both results. trace: correct, and the steps that
    stand after repairs are exactly the full solution, every check honest, nothing malformed.
    An attempt is a written step; it is valid if its arithmetic holds.
    """
    words = grammar.words(words)
    standing, attempts, valid, checks, honest, answers = [], 0, 0, 0, 0, []
    malformed = False
    found = grammar.steps(words)
    for behaviour, content in found:
        if behaviour in ("try", "wait"):
            attempts += 1
            step = _step(content)
            valid += step is not None
            if behaviour == "wait" and standing:
                standing.pop()
            standing.append(step)
            written = content
        elif behaviour == "check":
            checks += 1
            well_formed = attempts and len(written) == 5 and _could_be(written)
            truth = apply(int(written[0]), written[1], int(written[2])) if well_formed else None
            verdict = "yes" if well_formed and written[4] == str(truth) else "no"
            honest += truth is not None and content == [str(truth), verdict]
        elif behaviour == "conclude":
            answers.append(tuple(content))
        elif behaviour is None:
            malformed = True
    behaviours = tuple(b for b, _ in found)
    wanted = plan(problem)
    results = tuple(str(chain[-1][3]) for chain in wanted)
    ended = words[-1:] == ["<eos>"] and "next" not in words
    complete = len(answers) == 1 and ended and not malformed
    correct = complete and answers[0] == results
    full = [step for chain in wanted for step in chain]
    trace = correct and standing == full and honest == checks
    return Grade(correct, trace, answers[0] if complete else None, attempts, valid, checks, honest,
                 behaviours.count("wait"), behaviours)


def _could_be(words):
    return (words[1] in OPERATORS and words[3] == "=" and words[0] in NUMBERS
            and words[2] in NUMBERS)


def labels(words: list[str]) -> list[str]:
    return grammar.labels(words)


# --- authors -------------------------------------------------------------------------------------


def guess(problem: Problem, rng: random.Random, train: Sequence[Problem] = ()) -> list[str]:
    """Strategy-free control: two random numbers, concluded at once."""
    return f"so {rng.randint(0, LARGEST)} {rng.randint(0, LARGEST)} <eos>"


def answer_bits(problem: Problem) -> float:
    """The bits that an answer holds: one of the numbers for each chain."""
    return len(problem.chains) * log2(LARGEST + 1)


def document(rng: random.Random, problem: Problem, author: Any, generator: dict) -> list[str]:
    """A worked (or abandoned) problem as one author writes it, after the prompt, with `<eos>`.

    author: habit, persistence, check. Before each step the author goes on with probability
    persistence, otherwise concludes with the values so far. A slip writes a wrong result and
    carries it on unless a check finds it. A found slip is put right as a backtrack with
    probability generator["backtrack"], otherwise by a hand-over to the next author.
    generator["whole"], where it is stated: see `may_write_all`; who may not, concludes before the
    last step.
    """
    words, values = [], [start for start, _ in problem.chains]
    plan = [(i, op, n) for i, (_, links) in enumerate(problem.chains) for op, n in links]
    for at, (i, op, n) in enumerate(plan, 1):
        if rng.random() >= author.persistence:
            break
        if at == len(plan) and not may_write_all(rng, problem, generator, _persevering(generator)):
            break
        truth = apply(values[i], op, n)
        if truth is None:  # an earlier slip led out of range: the author gives up here
            break
        shown = truth
        if rng.random() < generator["slip"]:
            shown = min(LARGEST, max(0, truth + rng.choice((-10, -2, -1, 1, 2, 10))))
        step = [str(values[i]), op, str(n), "="]
        words += [*author.open("try"), *step, str(shown)]
        if rng.random() < author.check * generator["check_steps"]:
            words += [*author.open("check"), str(truth), "yes" if shown == truth else "no"]
            if shown != truth:
                if rng.random() < generator["backtrack"]:
                    words += author.open("wait")
                else:
                    words += [*author.open("conclude"), *map(str, values), "next",
                              *author.open("try")]
                words += [*step, str(truth)]
                shown = truth
        values[i] = shown
    return [*words, *author.open("conclude"), *map(str, values), "<eos>"]


def may_write_all(rng: random.Random, problem: Problem, generator: dict,
                  otherwise: float = 1.0) -> bool:
    """Whether a document that is about to write all steps of a problem does so.

    Always, but where the generator states "whole": of documents about problems deeper than one that
    share writes all steps, or all that would. otherwise: the share that would without it.
    """
    if "whole" not in generator or problem.depth == 1:
        return True
    return rng.random() * otherwise < generator["whole"]


def whole_share(generator: dict) -> float:
    """The share of documents about problems deeper than one that write all steps, reviews among
    them, where no "whole" is stated."""
    reviews = generator["reviews"] / (1 - generator["facts"])
    return reviews + (1 - reviews) * _persevering(generator)


def _persevering(generator):
    """The share of authors' traces of problems deeper than one that come to the last step."""
    return mean(p ** (2 * depth) for depth in generator["depths"] if depth > 1
                for p in generator["persistence"])


def stronger(rng: random.Random, problem: Problem, author: Any, generator: dict) -> list[str]:
    """A worked problem as an author writes it who undoes every step, and never stops early.

    After each step its inverse, `find 19 + 8 = 27 yes` (a product is multiplied the other way
    round); where it does not come back to the start, a backtrack.
    No pre-training document holds it.
    """
    words, answers = [], []
    for chain in plan(problem):
        for a, op, b, truth in chain:
            shown = truth
            if rng.random() < generator["slip"]:
                shown = min(LARGEST, max(0, truth + rng.choice((-10, -2, -1, 1, 2, 10))))
            step = [str(a), op, str(b), "="]
            words += [*author.open("try"), *step, str(shown), *_undo(a, op, b, shown)]
            if shown != truth:
                words += [*author.open("wait"), *step, str(truth)]
        answers.append(str(truth))
    return [*words, *author.open("conclude"), *answers, "<eos>"]


def _undo(a, op, b, shown):
    if op == "*":
        return ["find", str(b), op, str(a), "=", str(a * b), "yes" if shown == a * b else "no"]
    back, value = {"+": ("-", shown - b), "-": ("+", shown + b)}[op]
    value = min(LARGEST, max(0, value))
    return ["find", str(shown), back, str(b), "=", str(value), "yes" if value == a else "no"]


def fact(rng: random.Random, generator: dict) -> list[str]:
    """One arithmetic step of the kind that traces need, e.g. 27 - 8 = 19."""
    while True:
        a, op = rng.randint(0, LARGEST), rng.choice(OPERATORS)
        b = rng.randint(2, 9) if op == "*" else rng.randint(1, generator["largest_number"])
        if op == "*":
            a = rng.randint(1, LARGEST // b)
        value = apply(a, op, b)
        if value is not None:
            return [str(a), op, str(b), "=", str(value)]


def judge(problem: Problem, words: str | list[str]) -> list[str]:
    """An honest review of a trace: all steps worked out again, then the verdict."""
    out, results = [], []
    for chain in plan(problem):
        for a, op, b, result in chain:
            out += [str(a), op, str(b), "=", str(result), "."]
        results.append(str(chain[-1][3]))
    answers = [tuple(c) for b, c in grammar.steps(grammar.words(words)) if b == "conclude"]
    return [*out, "right" if answers and answers[-1] == tuple(results) else "wrong"]


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
    """It works out every link before concluding: it writes as many steps as the problem has."""
    done = sum(b == "try" for b, _ in grammar.steps(grammar.words(text)))
    return done >= sum(len(links) for _, links in problem.chains)


def went_on(problem: Problem, text: str) -> list[bool]:
    """For each link that is still to be worked out, in order, whether a step is written, right or
    wrong, rather than the conclusion or the end."""
    words = grammar.words(text)
    found = [b for b, _ in grammar.steps(words)]
    links = sum(len(links) for _, links in problem.chains)
    tried = min(found.count("try"), links)
    return [True] * tried + [False] * (tried < links and ("conclude" in found
                                                          or grammar.ended(words)))


def script(problem: Problem, text: str) -> str:
    """The next opening by the script: a try for every link, the conclusion, the end."""
    links = sum(len(links) for _, links in problem.chains)
    done = len(grammar.steps(grammar.words(text)))
    return "try" if done < links else "so" if done == links else "<eos>"


def review(problem: Problem, text: str) -> str:
    """A review document up to its critique; text: a finished answer."""
    words = [word for word in grammar.words(text) if word not in grammar.END]
    return " ".join(["<bos>", "review", *problem.prompt[1:], *words, ";"])


def fact_prompt(a: int, op: str, b: int) -> str:
    """A document of plain facts up to a result."""
    return f"<bos> {a} {op} {b} ="


def critique(problem: Problem, text: str) -> str:
    """An honest critique of a finished answer, up to its `<eos>`: each of its steps with what it
    gives, as a solution's own check says it, then the `working`, then the verdict."""
    said = []
    for kind, step in grammar.steps(grammar.words(text)):
        if kind in ("try", "wait") and len(step) == 5 and _could_be(step):
            truth = str(apply(int(step[0]), step[1], int(step[2])))
            if truth in NUMBERS:  # a result beyond the lab's numbers has no word
                said += [*step, "check", truth, "yes" if step[4] == truth else "no"]
    return " ".join([*said, *_worked(problem), *judge(problem, text)[-1:], "<eos>"])


def _worked(problem):
    """The words of an author who writes every step and then concludes."""
    chains = plan(problem)
    steps = [("try", str(a), op, str(b), "=", str(result))
             for chain in chains for a, op, b, result in chain]
    return [*(word for step in steps for word in step), "so",
            *(str(chain[-1][3]) for chain in chains)]


def working(problem: Problem) -> str:
    """The work alone, as critiques do it: every step, then the answers."""
    return " ".join([*_worked(problem), "<eos>"])


def judgement(problem: Problem, text: str) -> str:
    """The verdict alone, as critiques end with it."""
    return " ".join([*judge(problem, text)[-1:], "<eos>"])


def verdict(text: str) -> str | None:
    """"right" or "wrong", the last word of a critique, or None."""
    last = [word for word in grammar.words(text) if word != "<eos>"][-1:]
    return last[0] if last and last[0] in ("right", "wrong") else None
