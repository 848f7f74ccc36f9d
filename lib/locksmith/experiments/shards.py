"""Answers drawn in shards: the jobs of `sampling.draw`, for clusters with more cores or GPUs than a
chapter has tasks, seeds and models."""

from collections.abc import Sequence
from dataclasses import replace

from locksmith import rollouts, sharding
from locksmith.experiments import sampling
from locksmith.loading import Pair
from locksmith.rollouts import Answers

# Answers of a shard: whole batches of the engine, so that each answer has the neighbours that it
# has anyhow, and the same bits. (Of large models, whose answers `rollouts` keeps, blocks of 256 are
# drawn together, and without shards whole problems: with more than 256 answers to one, the last bit
# of a product may differ.)
SIZE = 8 * 384


def split(jobs: dict, size: int = SIZE) -> dict:
    """(name, rows in words) -> job of `draw`, from jobs of `sampling.draw`: `size` answers each."""
    parts = {}
    for name, job in jobs.items():
        asked = job["n_problems"] if job.get("only") is None else len(job["only"])
        for start in range(0, asked * job["n"], size):
            rows = range(start, min(start + size, asked * job["n"]))
            parts[name, f"answers {rows[0]} to {rows[-1]}"] = job | {"rows": rows}
    return parts


def draw(pair: Pair, role: str, n_problems: int, n: int, max_new_tokens: int, rows: range,
         temperature: float = 1.0, stream: str | None = None, only: Sequence | None = None,
         split: str = "test") -> Answers:
    """What `sampling.draw` finds, but of all answers, in the order of problems, only some `rows`;
    each has its problem to itself."""
    model, problems = pair.load(role), pair.problems(n_problems, split)
    only = range(n_problems) if only is None else [int(i) for i in only]
    seed = sampling.stream_seed(pair.seed, stream or role)
    drawn = [(only[row // n], row % n) for row in rows]
    answers = rollouts.answer(
        model, pair.rules, [problems[i] for i, _ in drawn], max_new_tokens=max_new_tokens,
        temperature=temperature, seed=seed,
        keys=[sharding.key_of(seed, i, sample) for i, sample in drawn])
    return replace(answers, rollouts=rollouts.compact(answers.rollouts))
