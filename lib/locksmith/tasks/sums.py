"""Sums: four single digits added and subtracted. Execution is easy; writing it out is the choice.

    Q: Calculate 5 + 7 - 3 + 9.
    A: 5 + 7 = 12. 12 - 3 = 9. 9 + 9 = 18. The answer is 18.

Three of four worked examples give the answer at once and one works it out, in an order that is
drawn anew for every problem: which way to take is left to the model, and a pattern of turns cannot
be continued. Nothing rewards either way.
"""

import random

from locksmith import words
from locksmith.errors import BadInput
from locksmith.tasks import whole

GENERATOR = {"terms": 4, "digits": 1}
OPENINGS = {}
DIRECT, WORKED = 3, 1  # worked examples of either kind in a prompt
_EXAMPLES = ("6 + 2 - 5 + 3", "8 - 4 + 7 - 2", "9 + 3 - 6 + 8", "4 + 9 + 1 - 7")
_SHOWN = {words.canonical(f"Calculate {sum_}.") for sum_ in _EXAMPLES}


def problems(split: str, n: int, seed: int, generator: dict) -> list[words.WordProblem]:
    """n different sums of generator["terms"] numbers of up to generator["digits"] digits. BadInput
    for a generator that states anything else, or too little."""
    if unknown := set(generator) - set(GENERATOR):
        raise BadInput(f"the generator of sums names {', '.join(map(repr, sorted(unknown)))}; "
                       f"allowed are {', '.join(GENERATOR)}.")
    n_terms = whole("sums", generator, "terms", 2, 50)
    largest = 10 ** whole("sums", generator, "digits", 1, 15) - 1
    rng = random.Random(f"sums {split} {seed}")

    def draw():
        terms = [rng.randint(1, largest) for _ in range(n_terms)]
        signs = [rng.choice("+-") for _ in terms[1:]]
        text = " ".join([str(terms[0]), *(f"{s} {t}" for s, t in zip(signs, terms[1:]))])
        return words.WordProblem("sums", f"Calculate {text}.", str(_running(text)[-1]), _work(text))
    return words.distinct(draw, n, split, _SHOWN)


def question(problem: words.WordProblem) -> str:
    return problem.question


def prompt(problem: words.WordProblem) -> str:
    """Four examples, DIRECT of them without and WORKED with their steps, then the question."""
    rng = random.Random(f"examples {problem.key}")
    worked = set(rng.sample(range(DIRECT + WORKED), WORKED))
    sums = rng.sample(_EXAMPLES, len(_EXAMPLES))
    return words.few_shot([(f"Calculate {s}.", _work(s) if i in worked else "",
                            str(_running(s)[-1]))
                           for i, s in enumerate(sums)], problem.question)


def _running(text):
    """The values after each term of a sum, from the first term on."""
    first, *rest = text.split()
    values = [int(first)]
    for sign, term in zip(rest[::2], rest[1::2]):
        values.append(values[-1] + (int(term) if sign == "+" else -int(term)))
    return values


def _work(text):
    """The steps of a sum: `5 + 7 = 12. 12 - 3 = 9.`"""
    rest, values = text.split()[1:], _running(text)
    return " ".join(f"{before} {sign} {term} = {after}." for before, sign, term, after in
                    zip(values, rest[::2], rest[1::2], values[1:]))


def strategy(problem: words.WordProblem, text: str) -> bool:
    """Written out: as many equations as the sum has signs."""
    return words.written_out(text, len(problem.question.split()[2::2]))


grade, steps, stated, guess = words.grade, words.steps, words.stated, words.guess_answer
review, critique, verdict = words.review, words.critique, words.verdict
turned, form, fact_prompt = words.turned, words.form, words.fact_prompt
