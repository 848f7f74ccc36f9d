"""Critics: functions (task, problem, trace, rng) -> words, a critique and its verdict.

A critique has the words of the corpus' review documents: the work done again, then `right` or
`wrong`. trace: a solution's words without `<eos>`; rng: a `random.Random`. A critic of your own
is one more function here and its name in CRITICS. What a model itself says is not among them: it
needs a batch of calls (`tuning.own_critiques`).
"""

from locksmith import vocabulary

WRONG_RATE = 0.3  # of the noisy critic
_OTHER = {"yes": "no", "no": "yes", "right": "wrong", "wrong": "right"}


def exact(task, problem, trace, rng):
    """The lab's checker."""
    return task.critique(problem, trace)


def flipped(task, problem, trace, rng):
    """The same work, every judgement turned round."""
    return [_OTHER.get(word, word) for word in task.critique(problem, trace)]


def noisy(task, problem, trace, rng):
    """Flipped in three cases out of ten, exact otherwise."""
    return (flipped if rng.random() < WRONG_RATE else exact)(task, problem, trace, rng)


def form(task, problem, trace, rng):
    """Format only: an exact critique with every number, operator and judgement drawn at random."""
    alike = [vocabulary.NUMBERS, vocabulary.OPERATORS, ("yes", "no"), ("right", "wrong")]
    return [rng.choice(next((kind for kind in alike if word in kind), (word,)))
            for word in task.critique(problem, trace)]


CRITICS = {"critiques": exact, "flipped critiques": flipped, "noisy critiques": noisy,
           "format only": form}
