"""Training little: budgets by count, arms against the corpus' own documents, what stays as it was."""

import random

import numpy as np
import pytest
import torch
from locksmith import (
    corpus,
    device,
    engine,
    lab,
    model,
    params,
    rewards,
    rl,
    stats,
    vocabulary,
)
from locksmith.experiments import critics, tuning
from locksmith.tasks import chain, countdown
from repository import ROOT, smoke_lab

FAMILIES = {"countdown": countdown, "chain": chain}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with smoke_lab(tmp_path_factory.mktemp("lab")) as root:
        yield root


def generator(family):
    return params.load("smoke", ROOT / "params.yaml")["families"][family]


def reviews(family, n):
    """(problem, candidate's ids with <eos>, the review document) as the corpus writes them."""
    task, rng, out = FAMILIES[family], random.Random(0), []
    while len(out) < n:
        problem = task.sample(rng, "train", generator(family))
        words = task.document(rng, problem, corpus.author(rng, generator(family)), generator(family))
        if "next" not in words:
            document = ["<bos>", "review", *problem.prompt[1:], *words[:-1], ";",
                        *task.critique(problem, words[:-1]), "<eos>"]
            out.append((problem, vocabulary.encode(words), document))
    return out


# --- arms -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("family", FAMILIES)
def test_exact_critiques_are_the_corpus_review_documents(family):
    for problem, ids, document in reviews(family, 20):
        (given, wanted), = tuning.critique_pairs(family, problem, [(ids, True)], critics.exact,
                                                 random.Random(0))
        assert vocabulary.decode(given + wanted) == document
        assert vocabulary.decode(given)[-1] == ";"


@pytest.mark.parametrize("family", FAMILIES)
def test_critics(family):
    task, rng = FAMILIES[family], random.Random(0)
    noisy, verdicts = 0, set()
    for problem, ids, _ in reviews(family, 200):
        trace = vocabulary.decode(ids[:-1])
        exact = critics.exact(task, problem, trace, rng)
        turned = critics.flipped(task, problem, trace, rng)
        right = task.grade(problem, [*trace, "<eos>"]).correct
        assert exact[-1] == ("right" if right else "wrong") != turned[-1]
        assert [w for w in exact if w.isdigit()] == [w for w in turned if w.isdigit()]
        formal = critics.form(task, problem, trace, rng)
        assert len(formal) == len(exact)
        assert [w.isdigit() for w in formal] == [w.isdigit() for w in exact]
        verdicts.add(formal[-1])
        noisy += critics.noisy(task, problem, trace, rng) != exact
    assert verdicts == {"right", "wrong"}
    assert 40 <= noisy <= 80  # 0.3 of 200, three standard deviations


def test_shuffling_gives_every_input_anothers_target():
    pairs = [([i], [100 + i]) for i in range(30)]
    mixed = tuning.shuffle_targets(pairs, random.Random(0))
    assert [given for given, _ in mixed] == [given for given, _ in pairs]
    assert all(a != b for (_, a), (_, b) in zip(pairs, mixed, strict=True))
    assert sorted(b for _, b in mixed) == sorted(b for _, b in pairs)


def test_single_problems_are_spread_over_the_difficulty_range():
    rates = np.array([0, 0.5, 0.1, 0, 0.9, 0.3, 0.7])
    assert tuning.spread(rates, 3) == [4, 1, 2]
    assert tuning.spread(np.zeros(4), 2) == [0, 3]  # nothing solved: any


@pytest.mark.parametrize(("family", "words", "persistent"), [
    ("countdown", "try 1 + 2 = 3 + 3 = 6 check 6 yes so 1 + 2 + 3 maybe 1 + 2 = 3 * 3 = 9 check 9 "
                  "yes so 1 + 2 * 3 <eos>", True),
    ("countdown", "try 1 + 2 = 3 + 3 = 6 check 6 yes so 1 + 2 + 3 maybe 1 + 2 = 3 * 3 = 9 check 9 "
                  "no so 1 + 2 * 3 <eos>", False),
    ("countdown", "try 1 + 2 = 3 + 3 = 6 so 1 + 2 + 3 <eos>", False),
    ("chain", "try 1 + 2 = 3 try 3 + 3 = 6 try 4 - 1 = 3 so 6 3 <eos>", True),
    ("chain", "try 1 + 2 = 3 try 3 + 3 = 6 so 6 4 <eos>", False),
])
def test_persistence_by_hand(family, words, persistent):
    problem = (countdown.Problem((1, 2, 3), (6, 9)) if family == "countdown" else
               chain.Problem(((1, (("+", 2), ("+", 3))), (4, (("-", 1),)))))
    assert tuning.persists(family, problem, words.split()) == persistent


# --- training -------------------------------------------------------------------------------------

def small(**recipe):
    return {"steps": 3, "problems": 2, "samples": 4, "lr": 0.01, "max_new_tokens": 24,
            "micro_tokens": 512} | recipe


def weights(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def test_a_reward_without_contrast_changes_nothing(home):
    problems = tuning.pool("smoke", "chain", 6)
    net, steer, curve = tuning.reinforce("smoke", "chain", 0, problems, small(), reward="none")
    before = weights(lab.load("smoke", "chain", "base", 0))
    assert steer is None and len(curve) == 3
    assert all(torch.equal(before[name], value) for name, value in weights(net).items())
    net, _, _ = tuning.reinforce("smoke", "chain", 0, problems, small(), reward="random")
    assert any(not torch.equal(before[name], value) for name, value in weights(net).items())


def test_vector_rl_leaves_every_weight_as_it_was(home):
    problems = tuning.pool("smoke", "chain", 6)
    net, steer, _ = tuning.reinforce("smoke", "chain", 0, problems, small(lr=0.3), reward="random",
                                     trains="vectors", layers=[0, 1])
    before = weights(lab.load("smoke", "chain", "base", 0))
    assert all(torch.equal(before[name], value) for name, value in weights(net).items())
    assert [s.layer for s in steer] == [0, 1] and all(s.vector.norm() > 0 for s in steer)


def test_an_adapter_changes_what_is_sampled(home):
    net, steer, _ = tuning.reinforce("smoke", "chain", 0, tuning.pool("smoke", "chain", 6),
                                     small(lr=0.05), reward="random", trains="adapter", rank=2)
    before = weights(lab.load("smoke", "chain", "base", 0))
    changed = {name for name, value in weights(net).items() if not torch.equal(before[name], value)}
    assert steer is None and changed and not any("embed" in name for name in changed)


def test_vectors_in_training_are_those_in_sampling(home):
    net = lab.load("smoke", "chain", "base", 0, exact=True)
    vectors = tuning.Vectors(net, [0, 1])
    assert [name for name, _ in vectors.named_parameters()] == ["table"]
    with torch.no_grad():
        vectors.table.normal_(generator=torch.manual_seed(0))
    prompt = [1, 7, 9, 3, 40]
    out = engine.sample(net, [prompt], 6, max_new_tokens=8, stop=(), seed=1,
                        steer=vectors.steers(net.lm_head.weight))
    ids = torch.tensor([prompt + row for row in out.ids()])
    with torch.autocast("cpu", enabled=False):
        logp = vectors.logits(ids).float().log_softmax(-1)[:, len(prompt) - 1:-1]
    told = logp.gather(-1, ids[:, len(prompt):, None])[..., 0]
    assert torch.allclose(told, out.logprobs, atol=0.1)
    with torch.no_grad():
        vectors.table.zero_()
    with device.autocast("cpu"):
        plain = net(input_ids=ids, use_cache=False).logits
    assert torch.equal(vectors.logits(ids), plain)  # a vector of zeros changes no bit


def test_an_entropy_bonus_raises_entropy(home):
    net = model.build(params.load("smoke")["model"], 0)
    with torch.no_grad():
        net.model.embed_tokens.weight.mul_(20)
    optimizer = torch.optim.AdamW(net.parameters(), 0.003)
    batch = [[1, 5, 9, 30, 31, 2]] * 4, [2] * 4, torch.zeros(4)
    found = [rl.update(net, optimizer, *batch, 512, bonus=1.0)[1] for _ in range(10)]
    assert found[-1] > found[0] + 0.1


def test_rewards_by_hand():
    task, problem = countdown, countdown.Problem((1, 2, 3), (6, 9))
    right = "try 1 + 2 = 3 + 3 = 6 so 1 + 2 + 3 try 1 + 2 = 3 * 3 = 9 so 1 + 2 * 3 <eos>".split()
    wrong = "try 1 + 2 = 3 + 3 = 6 so 1 + 2 + 3 try 1 + 2 = 3 * 3 = 9 so 1 + 2 + 3 <eos>".split()
    cut = right[:-1]
    table = {name: [f(task.grade(problem, w), random.Random(0)) for w in (right, wrong, cut)]
             for name, f in rewards.REWARDS.items() if name != "random"}
    assert table == {"correct": [1, 0, 0], "format": [1, 1, 0], "none": [0, 0, 0]}
    rng = random.Random(0)
    drawn = [rewards.coin(task.grade(problem, wrong), rng) for _ in range(1000)]
    assert set(drawn) == {0.0, 1.0} and abs(np.mean(drawn) - 0.5) < 0.05


# --- what came of it ------------------------------------------------------------------------------

def toy(share, rates, n=100):
    """(strategy, correct) of n rollouts, as an enumerable policy deals them out exactly."""
    strategy = np.arange(n) < share * n
    correct = np.zeros(n, bool)
    for side, rate in zip((True, False), rates, strict=True):
        where = np.flatnonzero(strategy == side)
        correct[where[:round(rate * len(where))]] = True
    return strategy, correct


def test_the_split_adds_up_and_knows_pure_cases():
    before, after = toy(0.2, (0.5, 0.1)), toy(0.6, (0.8, 0.3))
    when, how = tuning.gain_split(before, after)
    assert when + how == pytest.approx(after[1].mean() - before[1].mean(), abs=1e-12)
    assert when == pytest.approx(0.4 * (0.65 - 0.2), abs=1e-9)
    assert how == pytest.approx(0.4 * 0.3 + 0.6 * 0.2, abs=1e-9)
    assert tuning.gain_split(before, toy(0.6, (0.5, 0.1)))[1] == pytest.approx(0)  # when alone
    assert tuning.gain_split(before, toy(0.2, (0.9, 0.5)))[0] == pytest.approx(0)  # how alone
    never = toy(0.0, (0.0, 0.1))  # a strategy that did not occur before
    when, how = tuning.gain_split(never, after)
    assert when + how == pytest.approx(after[1].mean() - 0.1, abs=1e-12)


def test_gap_recovered_over_single_problems():
    rng = np.random.default_rng(0)
    base, thinking = rng.random((3, 80)) < 0.1, rng.random((3, 80)) < 0.7
    one = rng.random((3, 80, 1)) < 0.4
    found, plain = (tuning.gap_recovered(one, base, thinking),
                    stats.gap_recovered(one[..., 0], base, thinking))
    assert found == pytest.approx(plain)
    several = np.stack([base, thinking] * 4, 2).astype(float)  # half of them gain all, half nothing
    wide = tuning.gap_recovered(several, base, thinking)
    assert wide.value == pytest.approx(0.5) and wide.low < 0.3 and wide.high > 0.7
    assert tuning.gap_recovered(several, base, base) is None


def test_jobs_on_random_models(home):
    size = dict(n_problems=4, n=2, max_new_tokens=24)
    problems = tuning.pool("smoke", "chain", 3)
    rows, written = tuning.candidates("smoke", "chain", [0], problems, 5, 24)
    assert len(rows) == 3 and all(len(row) <= 5 for row in rows) and written > 0
    assert all(len({tuple(ids) for ids, _ in row}) == len(row) for row in rows)
    pairs = [([1, 7], [9, 11, 2])]
    found = tuning.tuned("smoke", "chain", 0, pairs, 2, 6, 0.001, **size, judged=pairs)
    assert found.correct.shape == found.strategy.shape == (4, 2)
    assert found.log["document_loss"] > 0 and len(found.log["verdicts"]) == 2
    apart = tuning.reinforced("smoke", "chain", 0, problems * 2, small(), **size, trains="vectors",
                              layers=[1], apart=True)
    assert apart.log["first token"].shape == apart.log["later tokens"].shape == (4, 2)
    assert tuning.untouched("smoke", "chain", "thinking", 0, **size).tokens.shape == (4, 2)
