"""Answers drawn in parts are those drawn at once: the same random numbers, tokens, bits, pass@k."""

import random

import numpy as np
import pytest
import torch
from locksmith import drawing, errors, loading, parallel, sharding, stats
from locksmith.experiments import sampling
from repository import smoke_lab

JOB = {"pair": loading.Pair("smoke", "chain", 0), "role": "base", "n_problems": 5, "n": 100,
       "max_new_tokens": 12}


@pytest.fixture(scope="module", autouse=True)
def lab(tmp_path_factory):
    with smoke_lab(tmp_path_factory.mktemp("lab"), families=("chain",)):
        yield


def test_a_key_has_the_random_numbers_of_anothers_sample():
    rng, positions = random.Random(0), torch.arange(5)
    for seed in (0, -3, 5001, rng.randrange(-2**62, 2**62)):
        for of in (0, 7, -1, rng.randrange(-2**63, 2**63)):
            for sample in (0, 1, 1023, rng.randrange(2**40)):
                found = sharding.key_of(seed, of, sample)
                for more in (0, 3):
                    assert torch.equal(drawing.uniforms(seed, found, more, positions),
                                       drawing.uniforms(seed, of, sample + more, positions))


def shared(size, **changes):
    """(answers to a job at once, in shards of a size)."""
    job = JOB | changes
    how = sampling.draw.in_parts
    parts = parallel.run(parallel.Serial(), how.part, how.split(size, **job))
    return sampling.draw(**job), how.join(list(parts.values()), **job)


@pytest.mark.parametrize("size, changes", [
    (384, {}), (384, {"only": [4, 1, 3], "n": 150, "stream": "again"}),
    (7, {"n": 5, "n_problems": 4}), (3, {"n": 1, "temperature": 0.0})])
def test_shards_are_the_whole(size, changes):
    """Shards of whole batches to the bit; small ones, whose products may be rounded otherwise, in
    everything that is counted."""
    whole, parts = shared(size, **changes)
    assert (whole.task, whole.problems, whole.prompts, whole.ids, whole.texts, whole.grades) == (
        parts.task, parts.problems, parts.prompts, parts.ids, parts.texts, parts.grades)
    np.testing.assert_array_equal(whole.stopped, parts.stopped)
    for name in ("lengths", "stopped", "prompt", "sample"):
        assert torch.equal(getattr(whole.rollouts, name), getattr(parts.rollouts, name))
    assert whole.rollouts.ids() == parts.rollouts.ids()
    same = torch.equal if size == 384 else torch.allclose
    assert same(whole.rollouts.logprobs, parts.rollouts.logprobs)
    ks = np.array([1, 2, 4, 64])
    for of in ("correct", "trace"):
        a, b = (stats.pass_at_k(x.lengths.shape[1], getattr(x, of).sum(1)[:, None],
                                np.minimum(ks, x.lengths.shape[1])) for x in (whole, parts))
        assert (a == b).all()


def test_shards_are_whole_batches_of_the_engine():
    assert sampling.SHARD % 384 == sampling.SHARD % 256 == 0


@pytest.mark.parametrize("change", [{"n": 0}, {"only": []}])
def test_no_answers_are_refused_in_shards_too(change):
    job = JOB | change
    with pytest.raises(errors.BadInput, match="for 0 problems; allowed is"):
        parallel.run(parallel.Serial(), sampling.draw_rows, sampling.in_shards(**job))


def test_each_answer_is_in_one_shard_and_its_name_says_which():
    for job, parts in ((JOB, {"answers 0 to 399": range(400),
                              "answers 400 to 499": range(400, 500)}),
                       (JOB | {"only": [2], "n": 7}, {"answers 0 to 6": range(7)})):
        found = sampling.in_shards(400, **job)
        assert {name: part["rows"] for name, part in found.items()} == parts
