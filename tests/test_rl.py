"""Pre-training and RL: gradients against explicit sums, batches against a recount, known optima."""

import math
import random

import numpy as np
import pytest
import torch
from locksmith import corpus, distill, model, params, pretrain, rl, vocabulary
from locksmith.errors import BadInput
from locksmith.tasks import countdown

CONFIG = {"hidden": 32, "layers": 2, "heads": 2, "mlp": 64, "context": 64}


def net(seed=0, scale=4):
    made = model.build(CONFIG, seed)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(scale if p.ndim == 2 else 1)
    return made


@pytest.fixture
def fp32(monkeypatch):
    """The training forward without rounding, so that gradients can be compared."""
    monkeypatch.setattr(torch, "bfloat16", torch.float32)


class Recorder:
    """An optimiser that keeps the gradients it was given and changes nothing."""

    def __init__(self, made):
        self.parameters = list(made.parameters())

    def step(self):
        self.gradients = [p.grad.clone() for p in self.parameters]

    def zero_grad(self):
        for p in self.parameters:
            p.grad = None


def gradients(sequences, lengths, advantage, micro_tokens=10_000):
    """(gradients, norm, entropy) of one `rl.update`."""
    made = net()
    recorder = Recorder(made)
    norm, entropy = rl.update(made, recorder, sequences, lengths, advantage, micro_tokens)
    return recorder.gradients, norm, entropy


def explicit(sequences, lengths, advantage):
    """The same by one loop over sequences and tokens through transformers' own forward."""
    made = net()
    total, entropy, counted = 0.0, 0.0, 0
    for ids, n, gain in zip(sequences, lengths, advantage.tolist(), strict=True):
        logp = made(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for t in range(n, len(ids)):
            total = total - gain * logp[t - 1, ids[t]]
            if gain:
                entropy -= (logp[t - 1].exp() * logp[t - 1]).sum().item()
                counted += 1
    (total / sum(len(s) - n for s, n in zip(sequences, lengths, strict=True))).backward()
    found = [p.grad for p in made.parameters()]
    norm = math.sqrt(sum(float((g**2).sum()) for g in found))
    return [g * min(1, 1 / (norm + 1e-6)) for g in found], norm, entropy / counted


def a_batch():
    rng = random.Random(0)
    lengths = [rng.randint(2, 6) for _ in range(12)]
    sequences = [[rng.randrange(3, 140) for _ in range(n + rng.randint(1, 15))] for n in lengths]
    advantage = torch.tensor([rng.choice((-0.5, 0.0, 0.25, 0.75)) for _ in lengths])
    assert 0 in advantage.tolist()
    return sequences, lengths, advantage


def worst(found, wanted):
    """Largest difference of two lists of gradients, relative to the largest entry of all."""
    scale = max(float(g.abs().max()) for g in wanted)
    return max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True)) / scale


# --- RL -----------------------------------------------------------------------------------------


def test_an_update_is_reinforce_written_out(fp32):
    found, norm, entropy = gradients(*a_batch())
    wanted, wanted_norm, wanted_entropy = explicit(*a_batch())
    assert worst(found, wanted) < 1e-4
    assert norm == pytest.approx(wanted_norm, rel=1e-4)
    assert entropy == pytest.approx(wanted_entropy, rel=0.02)


def test_over_all_arms_it_is_the_gradient_of_the_expected_reward(fp32):
    """Each first token once, weighted by its probability: minus the gradient of E[reward]."""
    V = len(vocabulary.VOCABULARY)
    reward = torch.rand(V, generator=torch.Generator().manual_seed(0))
    made = net()
    p = made(input_ids=torch.tensor([[vocabulary.BOS]])).logits[0, 0].softmax(-1)
    expected = (p * reward).sum()
    expected.backward()
    wanted = [-q.grad for q in made.parameters()]
    p = p.detach()
    advantage = V * p * (reward - expected.detach())
    found, norm, _ = gradients([[vocabulary.BOS, a] for a in range(V)], [1] * V, advantage)
    norm_wanted = math.sqrt(sum(float((g**2).sum()) for g in wanted))
    assert norm == pytest.approx(norm_wanted, rel=1e-3)
    assert worst(found, [g * min(1, 1 / norm_wanted) for g in wanted]) < 1e-3


def test_micro_batches_do_not_change_the_gradient(fp32):
    whole, norm, entropy = gradients(*a_batch())
    for micro_tokens in (1, 30, 64):
        parts, norm_of_parts, entropy_of_parts = gradients(*a_batch(), micro_tokens=micro_tokens)
        assert worst(parts, whole) < 1e-4
        assert norm_of_parts == pytest.approx(norm, rel=1e-4)
        assert entropy_of_parts == pytest.approx(entropy, rel=1e-4)


def test_in_bf16_micro_batches_change_it_by_rounding_alone():
    whole, _, _ = gradients(*a_batch())
    parts, _, _ = gradients(*a_batch(), micro_tokens=30)
    assert worst(parts, whole) < 0.05


def test_advantages_are_rewards_less_their_groups_mean():
    rewards = np.random.default_rng(0).integers(0, 2, 40).tolist()
    found = rl.advantages(rewards, 8).tolist()
    for i in range(0, 40, 8):
        group = rewards[i:i + 8]
        assert found[i:i + 8] == pytest.approx([r - sum(group) / 8 for r in group], abs=1e-6)
    assert rl.advantages([True] * 8, 8).tolist() == [0.0] * 8


def test_the_better_of_two_arms_is_learned():
    """Arms that pay 1 with chance 0.3 and 0.7: the only optimum is always to take the second."""
    made, arms = net(scale=1), [vocabulary.IDS["try"], vocabulary.IDS["so"]]
    pays = np.zeros(len(vocabulary.VOCABULARY))
    pays[arms] = 0.3, 0.7

    def policy():
        return made(input_ids=torch.tensor([[vocabulary.BOS]])).logits[0, 0].softmax(-1)

    optimizer = torch.optim.AdamW(made.parameters(), lr=0.01, weight_decay=0.0)
    for _ in range(40):  # a start that takes both arms about equally often
        optimizer.zero_grad()
        (-policy()[arms].log().sum()).backward()
        optimizer.step()
    assert policy()[arms].tolist() == pytest.approx([0.5, 0.5], abs=0.1)
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.003, weight_decay=0.0)
    rng = np.random.default_rng(0)
    for _ in range(80):
        p = policy().detach().double().numpy()
        taken = rng.choice(len(p), 32, p=p / p.sum())
        rewards = (rng.random(32) < pays[taken]).tolist()
        sequences = [[vocabulary.BOS, int(arm)] for arm in taken]
        rl.update(made, optimizer, sequences, [1] * 32, rl.advantages(rewards, 32), 10_000)
    assert policy()[arms[1]] > 0.95


def test_no_contrast_no_change():
    made = net()
    before = [p.clone() for p in made.parameters()]
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2, weight_decay=0.0)
    sequences, lengths, _ = a_batch()
    norm, _ = rl.update(made, optimizer, sequences, lengths, torch.zeros(len(lengths)), 1000)
    assert norm == 0
    assert all(torch.equal(p, q) for p, q in zip(made.parameters(), before, strict=True))


def test_rollouts_are_graded_under_their_own_problem():
    problems = countdown.problems("train", 3, 0, params.load("smoke")["families"]["countdown"])
    sequences, lengths, grades = rl.rollout(net(), countdown, problems, 4, 20, seed=0)
    again, _, _ = rl.rollout(net(), countdown, problems, 4, 20, seed=0)
    assert sequences == again and len(sequences) == 12
    for i, (ids, n, grade) in enumerate(zip(sequences, lengths, grades, strict=True)):
        prompt = vocabulary.encode(problems[i // 4].prompt)
        assert n == len(prompt) and ids[:n] == prompt and n < len(ids) <= n + 20
        assert grade == countdown.grade(problems[i // 4], vocabulary.decode(ids[n:]))
        assert not set(ids[n:-1]) & set(vocabulary.STOP)


# --- pre-training ---------------------------------------------------------------------------------


def test_batches_hold_every_document_once_and_little_padding():
    generator = params.load("lab")["families"]["chain"]
    ids, _ = corpus.write(corpus.FAMILIES["chain"], generator, 40_000, 0)
    bos = bytes([vocabulary.BOS])
    documents = sorted(bos + d for d in ids.tobytes().split(bos)[1:])
    batches = pretrain.batches(ids, 1024, np.random.default_rng(0))
    rows = [row.tobytes().rstrip(bytes([vocabulary.PAD])) for b in batches for row in b]
    assert sorted(rows) == documents
    assert all(b.size <= 1024 or len(b) == 1 for b in batches)
    assert len(ids) > 0.9 * sum(b.size for b in batches)
    widths = [b.shape[1] for b in batches]
    assert widths != sorted(widths)


def test_padding_has_no_loss():
    made = net(scale=1)
    ids = torch.randint(3, 140, (4, 24), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([ids, torch.full((4, 16), vocabulary.PAD)], 1)
    plain = pretrain.loss(made, ids).item()
    assert pretrain.loss(made, padded).item() == pytest.approx(plain, rel=1e-2)
    exact = torch.nn.functional.cross_entropy(made(input_ids=ids).logits[:, :-1].flatten(0, 1),
                                              ids[:, 1:].flatten())
    assert plain == pytest.approx(exact.item(), rel=1e-2)


def test_short_rows_count_by_their_tokens(fp32):
    made, rng = net(scale=1), random.Random(0)
    rows = [[rng.randrange(3, 140) for _ in range(n)] for n in (5, 9, 20)]
    ids = torch.tensor([row + [vocabulary.PAD] * (20 - len(row)) for row in rows])
    losses = [(pretrain.loss(made, torch.tensor([row])).item(), len(row) - 1) for row in rows]
    mean = sum(x * n for x, n in losses) / sum(n for _, n in losses)
    assert pretrain.loss(made, ids).item() == pytest.approx(mean, rel=1e-5)


def test_the_schedule_warms_up_holds_and_ends_at_zero():
    assert pretrain.schedule(0.01) == pytest.approx(0.5)
    assert pretrain.schedule(0.3) == 1.0
    assert pretrain.schedule(0.8) == pytest.approx(0.5)
    assert pretrain.schedule(1.0) == 0.0


def test_the_rl_schedule_warms_up_holds_and_cools_down():
    rates = [rl.schedule(step, 60) for step in range(60)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert set(rates[10:25]) == {1.0}
    # 0.6 of 60 steps down to (but not at) zero: 36/36, 35/36, ..., 1/36
    assert rates[24:] == pytest.approx([(36 - i) / 36 for i in range(36)])


def test_training_is_repeatable_to_the_bit(tmp_path):
    """One base model and RL on it, twice: the same curves and bytes."""
    torch.set_num_threads(1)
    found = []
    for run in ("a", "b"):
        base, tuned = tmp_path / run / "base", tmp_path / run / "rl"
        record = pretrain.train("smoke", "countdown", "base", 0, base)
        curve = rl.train("smoke", "countdown", 0, base, tuned)
        weights = [p.read_bytes() for p in sorted((tmp_path / run).rglob("model.safetensors"))]
        found.append((record, curve, weights))
    assert found[0] == found[1]
    losses = [point["loss"] for point in found[0][0]["curve"]]
    assert losses[-1] < losses[0]


# --- numbers that are none ------------------------------------------------------------------------


@pytest.mark.parametrize("value", [
    math.nan, math.inf, -math.inf, None, "1", "nan", 1e30, 1j, [1.0], np.float32("nan"),
    np.array([0.5, 1]), torch.tensor(math.nan), torch.ones(2),
    torch.tensor(1j), 10**400])
@pytest.mark.parametrize("at", [0, 2])
def test_a_reward_that_is_no_finite_number_is_named_and_changes_nothing(value, at):
    """The step before it is taken, that of the reward is not: against a run that ended there."""
    asked = []

    def odd(grade, rng):
        asked.append(grade)
        return value if len(asked) == 8 * at + 6 else float(len(asked) % 3)
    nets = [net(), net()]
    recipe = {"steps": 3, "problems": 2, "samples": 4, "lr": 0.01, "micro_tokens": 100}
    grades = [countdown.grade(countdown.Problem((3, 7, 9), (30, 60)), "<eos>")] * 8

    def rollout_fn(problems, seed):
        rng = random.Random(seed)
        return [[1, *(rng.randrange(3, 140) for _ in range(5))] for _ in range(8)], [1] * 8, grades

    def stop(step):
        if step == at:
            raise KeyboardInterrupt
    said = f"reward odd is .* at step {at} for answer 1 to problem 1 of its batch, Grade.*; allowed"
    with pytest.raises(BadInput, match=said) as told:
        rl.learn(nets[0], range(99), recipe, 0, rollout_fn, odd)
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        rl.learn(nets[1], range(99), recipe, 0, rollout_fn, odd, before=stop)
    assert "\n" not in str(told.value)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_rewards_of_any_kind_of_number_count_alike():
    rewards = iter([True, 1, 1.0, np.float32(1), np.int64(1), np.bool_(True), torch.tensor(1.0),
                    torch.tensor([1]), 10**8])
    found = rl.rewarded(lambda grade, rng: next(rewards), [None] * 9, 3, 0, random.Random(0))
    assert found == [1.0] * 8 + [1e8] and {type(x) for x in found} == {float}


def test_a_gradient_that_is_not_finite_takes_no_step():
    made = net()
    with torch.no_grad():
        made.model.norm.weight[3] = float("inf")
    before = [p.clone() for p in made.parameters()]
    optimizer = torch.optim.AdamW(made.parameters(), 0.1)
    with pytest.raises(BadInput, match="the gradient's norm is nan, so this step is not taken"):
        rl.update(made, optimizer, *a_batch(), 10_000)
    for a, b in zip(made.parameters(), before, strict=True):
        assert torch.equal(a, b)


def test_a_pad_within_a_text_is_a_token_of_it(fp32):
    """The rows of a batch are filled up behind their ends; the same id within counts."""
    made = net(scale=1)
    ids = torch.randint(3, 140, (3, 12), generator=torch.Generator().manual_seed(0))
    ids[0, 5] = ids[1, 1] = vocabulary.PAD
    filled = torch.cat([ids, torch.full((3, 5), vocabulary.PAD)], 1)
    exact = torch.nn.functional.cross_entropy(made(input_ids=ids).logits[:, :-1].flatten(0, 1),
                                              ids[:, 1:].flatten())
    assert pretrain.loss(made, filled).item() == pytest.approx(exact.item(), rel=1e-4)
    assert pretrain.padding(filled).sum(1).tolist() == [5, 5, 5]
    [batch] = pretrain.batches(np.array([1, 5, 0, 7, 2, 1, 9, 2], np.uint8), 99,
                               np.random.default_rng(0))
    _, targets = distill._whole(batch)
    assert sorted((targets != -100).sum(1).tolist()) == [3, 5]
