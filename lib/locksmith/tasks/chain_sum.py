"""Sums and differences of reasoning-gym: two to a few terms of one or more digits."""

from locksmith import words

GENERATOR = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
OPENINGS = {}


def problems(split: str, n: int, seed: int, generator: dict) -> list[words.WordProblem]:
    return words.problems(split, n, seed, {"chain_sum": generator})


def question(problem: words.WordProblem) -> str:
    return problem.question


prompt = words.prompt
grade, steps, stated, strategy = words.grade, words.steps, words.stated, words.works_out
guess = words.guess_answer
review, critique, verdict = words.review, words.critique, words.verdict
working, judgement = words.working, words.judgement
turned, form, fact_prompt = words.turned, words.form, words.fact_prompt
