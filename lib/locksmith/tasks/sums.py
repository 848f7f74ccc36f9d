"""Sums: single digits added and subtracted. Execution is easy; writing it out is the choice.

    Q: Calculate 5 + 7 - 3 + 9.
    A: 5 + 7 = 12. 12 - 3 = 9. 9 + 9 = 18. The answer is 18.

Some of up to four examples give the answer at once and the others work it out, in an order that is
drawn anew for every problem: which way to take is left to the model, and a pattern of turns cannot
be continued. Nothing rewards either way.
"""

import random
import re
from dataclasses import replace

from locksmith import words
from locksmith.errors import BadInput
from locksmith.tasks import Grade, whole

# Numbers in a sum, digits of the largest; examples without and with their steps in a prompt.
GENERATOR = {"terms": 4, "digits": 1, "direct": 3, "worked": 1}
OPENINGS = {}
_EXAMPLES = ("6 + 2 - 5 + 3", "8 - 4 + 7 - 2", "9 + 3 - 6 + 8", "4 + 9 + 1 - 7")


def problems(split: str, n: int, seed: int, generator: dict) -> list[words.WordProblem]:
    """n different sums of generator["terms"] numbers of up to generator["digits"] digits, each with
    generator["direct"] and ["worked"] examples, which have as many terms as the sum, or four.
    BadInput for a generator that states anything else, or too little."""
    if unknown := set(generator) - set(GENERATOR):
        raise BadInput(f"the generator of sums names {', '.join(map(repr, sorted(unknown)))}; "
                       f"allowed are {', '.join(GENERATOR)}.")
    n_terms = whole("sums", generator, "terms", 2, 50)
    largest = 10 ** whole("sums", generator, "digits", 1, 15) - 1
    direct = whole("sums", generator, "direct", 0, len(_EXAMPLES))
    n_worked = whole("sums", generator, "worked", 0, len(_EXAMPLES) - direct)
    shown = [" ".join(text.split()[:2 * n_terms - 1]) for text in _EXAMPLES]
    rng = random.Random(f"sums {split} {seed}")

    def draw():
        terms = [rng.randint(1, largest) for _ in range(n_terms)]
        signs = [rng.choice("+-") for _ in terms[1:]]
        return _problem(" ".join([str(terms[0]),
                                  *(f"{s} {t}" for s, t in zip(signs, terms[1:]))]))
    found = words.distinct(draw, n, split, {_problem(text).key for text in shown})
    return [replace(one, examples=_examples(one.key, shown, direct, n_worked)) for one in found]


def _problem(text):
    return words.WordProblem("sums", f"Calculate {text}.", str(_running(text)[-1]), _work(text))


def _examples(key, shown, direct, n_worked):
    """(question, working or "", answer) of a problem's examples, in an order of its own."""
    rng = random.Random(f"examples {key}")
    worked = set(rng.sample(range(direct + n_worked), n_worked))
    sums = [_problem(text) for text in rng.sample(shown, len(shown))[:direct + n_worked]]
    return tuple((one.question, one.working if i in worked else "", one.answer)
                 for i, one in enumerate(sums))


def question(problem: words.WordProblem) -> str:
    return problem.question


def prompt(problem: words.WordProblem) -> str:
    """The problem's examples, then its question."""
    return words.few_shot(problem.examples, problem.question)


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


def script(problem: words.WordProblem, text: str) -> str:
    """The next opening by the script: the first term, then the last number written, until there are
    as many steps as the sum has signs; then the conclusion, and the end of the line."""
    calculation = problem.question.removesuffix(".").split()[1:]
    signs, done = len(calculation) // 2, len(words.steps(text))
    written = re.findall(r"-?[0-9]+", text)
    if done < signs:
        return f" {written[-1] if written else calculation[0]}"
    return " The" if done == signs else "\n"


def grade(problem: words.WordProblem, text: str) -> Grade:
    """`words.grade`, which also says whether every step was written out."""
    return replace(words.grade(problem, text), strategy=strategy(problem, text))


steps, stated, guess = words.steps, words.stated, words.guess_answer
review, critique, verdict = words.review, words.critique, words.verdict
working, judgement = words.working, words.judgement
turned, form, fact_prompt = words.turned, words.form, words.fact_prompt
