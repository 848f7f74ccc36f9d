"""Grade-school problems in words of reasoning-gym, after the templates of GSM-Symbolic."""

from locksmith import words

GENERATOR = {}
OPENINGS = {}


def problems(split: str, n: int, seed: int, generator: dict) -> list[words.WordProblem]:
    return words.problems(split, n, seed, {"gsm_symbolic": generator})


def question(problem: words.WordProblem) -> str:
    return problem.question


prompt = words.prompt
grade, steps, stated, strategy = words.grade, words.steps, words.stated, words.works_out
guess = words.guess_answer
review, critique, verdict = words.review, words.critique, words.verdict
working, judgement = words.working, words.judgement
turned, form, fact_prompt = words.turned, words.form, words.fact_prompt
