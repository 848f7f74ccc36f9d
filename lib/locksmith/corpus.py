"""The pre-training corpus: solved problems, plain facts and reviews,
with a setting for every behaviour.

Three kinds of document, all from known authors, so what the base model has seen is known exactly:
    solved   a problem as one hidden author writes it: persistence after a failed check, share of
             attempts checked and preferred openings belong to the author, no token tells which
    facts    single arithmetic steps, so that skill is learned apart from search
    review   a problem with somebody's trace, an honest check of it, and a verdict
Only problems of the "train" split are written. `run` writes the problem sets to data/.
"""

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import UInt8

from locksmith import errors, grammar, params, results, vocabulary
from locksmith.tasks import chain, countdown

FAMILIES = {"countdown": countdown, "chain": chain}
FACTS_A_DOCUMENT = 16


@dataclass(frozen=True)
class Author:
    rng: random.Random
    persistence: float  # probability of going on, at every such decision
    check: float  # share of attempts this author checks
    habit: dict  # behaviour -> index of the preferred opening

    def open(self, behaviour: str) -> tuple[str, ...]:
        """Opening words of a behaviour: the author's own seven times in ten, else any."""
        openings = grammar.OPENINGS[behaviour]
        preferred = self.rng.random() < 0.7
        return openings[self.habit[behaviour]] if preferred else self.rng.choice(openings)


def author(rng: random.Random, generator: dict) -> Author:
    """Draws a hidden author."""
    return Author(rng, rng.choice(generator["persistence"]), rng.choice(generator["check"]),
                  {b: rng.randrange(len(o)) for b, o in grammar.OPENINGS.items()})


def document(rng: random.Random, task: ModuleType, generator: dict) -> tuple[list[str], str]:
    """One document (list of words from <bos> to <eos>) and its kind."""
    draw = rng.random()
    if draw < generator["facts"]:
        facts = [word for _ in range(FACTS_A_DOCUMENT)
                 for word in (*task.fact(rng, generator), ".")]
        return ["<bos>", *facts, "<eos>"], "facts"
    problem = task.sample(rng, "train", generator)
    trace = task.document(rng, problem, author(rng, generator), generator)
    reviewed = draw < generator["facts"] + generator["reviews"]
    if reviewed and ("whole" not in generator or task.may_write_all(rng, problem, generator)):
        candidate = trace[:-1]
        if "next" in candidate:  # a review is of one author's work
            candidate = candidate[:candidate.index("next")]
        return ["<bos>", "review", *problem.prompt[1:], *candidate, ";",
                *task.judge(problem, candidate), "<eos>"], "review"
    return [*problem.prompt, *trace], "solved"


def write(task: ModuleType, generator: dict, n_tokens: int,
          seed: int) -> tuple[UInt8[np.ndarray, " tokens"], dict[str, int]]:
    """A corpus of at least n_tokens tokens: ids of whole documents, end to end.

    Also returns counts: documents by kind and steps by behaviour.
    """
    # The seed keeps the name that the modules had when the versioned checkpoints were trained.
    rng = random.Random(f"corpus locksmith.{task.__name__.rpartition('.')[2]} {seed}")
    out, size, counts = [], 0, {}
    while size < n_tokens:
        words, kind = document(rng, task, generator)
        out.append(np.array(vocabulary.encode(words), dtype=np.uint8))
        size += len(words)
        for name in (kind, *(grammar.BEHAVIOUR[w] for w in words if w in grammar.BEHAVIOUR)):
            counts[name] = counts.get(name, 0) + 1
    return np.concatenate(out), counts


def run(profile: str) -> None:
    """Writes the problem sets of a profile to data/<profile>/<family>_<split>.jsonl.

    results/<profile>/data.sha256 says which, as `sha256sum -c` reads it: `data` as a whole belongs
    to data.dvc, so the stage that writes it needs something else to show for it.
    """
    config = params.load(profile)
    folder = Path("data") / profile
    folder.mkdir(parents=True, exist_ok=True)
    for family, generator in config["families"].items():
        task = FAMILIES[family]
        seen = {}
        for split, n in config["problems"].items():
            found = task.problems(split, n, 0, generator)
            for problem in found:
                other = seen.setdefault(problem.key, split)
                assert other == split, f"{problem.key} is in two splits"
            lines = (json.dumps({"key": p.key, "prompt": " ".join(p.prompt)}) for p in found)
            (folder / f"{family}_{split}.jsonl").write_text("\n".join(lines) + "\n")
    sums = [f"{results.sha256(path)}  {path.as_posix()}\n" for path in sorted(folder.iterdir())]
    results.save(Path("results") / profile / "data.sha256", "".join(sums))


def main() -> None:
    parser = argparse.ArgumentParser(description=run.__doc__)
    parser.add_argument("--profile", required=True)
    run(parser.parse_args().profile)


if __name__ == "__main__":
    errors.run(main)
