"""What a seeded stream of the lab's authors writes: examples, and how much of each habit."""

import random

import numpy as np

from locksmith import corpus, grammar

# Options of the generator of documents, as params.yaml sets them a family.
OPTIONS = {
    "facts": "share of documents that are facts",
    "reviews": "share of documents that are reviews",
    "persistence": "chance of going on, one value an author",
    "check": "share of attempts checked, one value an author",
    "backtrack": "share of go-ons written as a backtrack, the rest by another author",
    "largest_number": "largest number in a problem",
    "expressions": "least and most valid expressions over the three numbers",
    "insight": "chance that an attempt is a solution at once",
    "longest": "attempts after which nobody goes on",
    "largest_start": "largest first number of a chain",
    "depths": "steps a chain, in pre-training",
    "depth": "steps a chain, in RL and in the tests",
    "slip": "chance of a wrong result in a step",
    "check_steps": "factor on the share of steps checked",
}


def written(family: str, generator: dict, n: int, seed: int) -> list[tuple[list[str], str]]:
    """(words, kind) of the first n documents of a stream; kind as `corpus.document` names it."""
    rng, task = random.Random(seed), corpus.FAMILIES[family]
    return [corpus.document(rng, task, generator) for _ in range(n)]


def examples(family: str, generator: dict, n: int = 2000) -> dict[str, list[str]]:
    """Kind -> its first document; solved ones that go back are told from those that do not."""
    found = {}
    for words, kind in written(family, generator, n, 0):
        if kind == "solved":
            back = "wait" in (behaviour for behaviour, _ in grammar.steps(words))
            kind = "solved, going back" if back else "solved, straight on"
        found.setdefault(kind, words)
    return found


def decision_share(family: str, generator: dict, n: int = 1000) -> float:
    """Share of tokens in solved documents that open a behaviour."""
    labels = [label for words, kind in written(family, generator, n, 1) if kind == "solved"
              for label in grammar.labels(words)]
    return sum(label != "execute" for label in labels) / len(labels)


def habits(family: str, generator: dict, n: int = 4000) -> dict[str, float]:
    """Quantity -> mean over the solved documents among n; `words_95` is their 95 % quantile."""
    solved = [words for words, kind in written(family, generator, n, 2) if kind == "solved"]
    opens = [[grammar.BEHAVIOUR.get(word) for word in words] for words in solved]
    attempts = np.array([x.count("try") + x.count("wait") for x in opens])
    length = [len(words) for words in solved]
    return {"attempts": attempts.mean(), "several_attempts": (attempts > 1).mean(),
            "failed_checks": np.mean([words.count("no") for words in solved]),
            "backtracks": np.mean([x.count("wait") for x in opens]),
            "hand_overs": np.mean([words.count("next") for words in solved]),
            "words_per_document": np.mean(length), "words_95": np.quantile(length, 0.95)}
