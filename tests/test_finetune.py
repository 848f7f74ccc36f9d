"""Fine-tuning by the Trainer: equal token budgets, the loss of the targets,
the steps of a plain loop."""

import random

import pytest
import torch
from locksmith import finetune, model, params, vocabulary
from locksmith.errors import BadInput

PAIRS = [([1, 7, 9, 3], [4, 5, 6]), ([1, 8], [9, 9, 9, 9, 2]), ([1, 4, 4], [5, 2])]


def net():
    return model.build(params.load("smoke")["model"], 0)


@pytest.fixture
def exact(monkeypatch):
    """No rounding: what is multiplied in bfloat16 where the hardware does is in float32 here."""
    monkeypatch.setattr(torch, "bfloat16", torch.float32)


def test_every_arm_trains_on_the_same_number_of_target_tokens():
    rng = random.Random(0)
    for length in (3, 17, 40):
        pairs = [([1] * rng.randint(1, 9), [5] * rng.randint(1, length)) for _ in range(7)]
        steps = finetune.pack(pairs, 4, 50, 0, micro_tokens=64)
        assert [sum((targets != finetune.IGNORED).sum().item() for _, targets in step)
                for step in steps] == [50] * 4
        assert all(ids.numel() <= 64 or len(ids) == 1 for step in steps for ids, _ in step)
        losses, read = finetune.fit(net(), pairs, 4, 50, 0.0, 0, micro_tokens=64)
        assert len(losses) == 4 and read > 200


def test_all_pairs_come_before_one_comes_again():
    pairs = [([1], [7 + i, 2]) for i in range(6)]
    steps = finetune.pack(pairs, 2, 12, 0)
    for step in steps:
        assert sorted(row[1].item() for ids, _ in step for row in ids) == list(range(7, 13))


def test_targets_are_the_targets_and_nothing_else():
    [[(ids, targets)]] = finetune.pack([([1, 8, 3], [9, 2])], 1, 2, 0)
    assert ids.tolist() == [[1, 8, 3, 9, 2]]
    assert targets.tolist() == [[finetune.IGNORED] * 3 + [9, 2]]


def test_the_loss_is_that_of_the_targets_alone(exact):
    """Against transformers' own forward."""
    trained, wanted = net(), 0.0
    losses, _ = finetune.fit(trained, PAIRS, 1, 10, 0.0, 0)
    for given, target in PAIRS:
        logp = trained(input_ids=torch.tensor([given + target])).logits[0].log_softmax(-1)
        wanted -= sum(logp[len(given) + i - 1, t].item() for i, t in enumerate(target))
    assert losses[0] == pytest.approx(wanted / 10, rel=1e-4)


def test_a_first_token_is_no_target(exact):
    """A document learned whole: the loss is transformers' own, which shifts the labels."""
    ids = torch.tensor([[1, 7, 9, 3], [1, 4, 4, 2]])
    trained = net()
    wanted = trained(input_ids=ids, labels=ids).loss.item()
    optimizer = torch.optim.AdamW(trained.parameters(), 0.0)
    assert finetune.train(trained, [[(ids, ids)]], optimizer, lambda step: 1.0) == [
        pytest.approx(wanted, rel=1e-5)]


@pytest.mark.parametrize("clip", [0, 0.1, 1.0])
def test_the_steps_are_those_of_a_plain_loop(exact, clip):
    """The Trainer against AdamW written out: micro-batches add up, the rate falls,
    clip as asked."""
    steps = finetune.pack(PAIRS, 5, 13, 0, micro_tokens=16)
    assert any(len(step) > 1 for step in steps)
    plain, trained, losses = net(), net(), []
    optimizer = torch.optim.AdamW(plain.parameters(), 0.01)
    for number, step in enumerate(steps):
        loss, share = 0.0, 0
        for ids, targets in step:
            for row, wanted in zip(ids, targets, strict=True):
                logp = model.logits(plain, row[None, :-1])[0].log_softmax(-1)
                at = (wanted[1:] != finetune.IGNORED).nonzero()[:, 0]
                loss, share = loss - logp[at, wanted[1:][at]].sum(), share + len(at)
        (loss / share).backward()
        losses.append(loss.item() / share)
        if clip:
            torch.nn.utils.clip_grad_norm_(plain.parameters(), clip)
        optimizer.param_groups[0]["lr"] = 0.01 / (number + 1)
        optimizer.step()
        optimizer.zero_grad()
    found = finetune.train(trained, steps, torch.optim.AdamW(trained.parameters(), 0.01),
                           lambda number: 1 / (number + 1), clip=clip)
    assert found == pytest.approx(losses, rel=1e-5) and not trained.training
    for a, b in zip(plain.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)


def test_only_what_is_trained_moves_and_looks_come_after_each_step(exact):
    adapted, seen = model.adapter(net(), 4, 0), []
    before = {name: p.clone() for name, p in adapted.named_parameters()}
    finetune.train(adapted, finetune.pack(PAIRS, 3, 10, 0), torch.optim.AdamW(
        [p for p in adapted.parameters() if p.requires_grad], 0.01), lambda number: 1.0,
        finetune.own_logits, look=lambda step, bar: seen.append(step))
    moved = {name for name, p in adapted.named_parameters() if not torch.equal(p, before[name])}
    assert seen == [1, 2, 3] and moved and all("lora_" in name for name in moved)


def test_fitting_learns_the_targets():
    losses, _ = finetune.fit(net(), [([1, 7], [9, 11, 2])], 30, 12, 0.01, 0)
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("pairs", [
    [([0, 5, 0], [6, 0, 7, 8])], [([0], [0, 0, 0, 0, 0, 0])], [([1, 0], [0]), ([0, 0, 3], [4])]])
@pytest.mark.parametrize("filler", [0, 4, 140])
def test_padding_is_told_by_length_and_never_by_its_id(pairs, filler):
    """Seven tokens are read, whatever ids they have and whatever shorter rows are filled with."""
    wanted = sum(len(target) for _, target in pairs)
    losses, read = finetune.fit(net(), pairs, 1, wanted, 0.0, 0, pad_token_id=filler)
    assert read == 7
    assert losses == finetune.fit(net(), pairs, 1, wanted, 0.0, 0, pad_token_id=9)[0]


@pytest.mark.parametrize("pairs, steps, targets, said", [
    ([([1], [2])], 0, 1, "steps is 0"), ([([1], [2])], 1, 0, "target_tokens is 0"),
    ([([1], [2])], 1, -3, "target_tokens is -3"),  # was an endless loop
    ([([1], [2, finetune.IGNORED])], 1, 2, "pairs hold the token id -100"),
    ([([-1], [2])], 1, 1, "pairs hold the token id -1")])
def test_what_cannot_be_packed_is_told_in_a_sentence(pairs, steps, targets, said):
    with pytest.raises(BadInput, match=said):
        finetune.pack(pairs, steps, targets, 0)


def test_targets_that_are_not_there_are_refused_and_not_waited_for():
    for pairs in ([], [([1, 7], [])]):
        with pytest.raises(BadInput, match="pairs hold no target"):
            finetune.fit(net(), pairs, 1, 4, 0.1, 0)
    assert finetune.fit(net(), [([1], []), ([1, 7], [9, 3])], 1, 2, 0.1, 0)[1] == 4
    with pytest.raises(BadInput, match="step 0 has no target but rows' first tokens"):
        finetune.fit(net(), [([], [9])], 1, 2, 0.1, 0)


def test_a_loss_that_is_not_finite_takes_no_step():
    trained = net()
    with torch.no_grad():
        trained.model.norm.weight[3] = float("nan")
    before = [p.clone() for p in trained.parameters()]
    with pytest.raises(BadInput, match="the loss of step 0 is nan, so this step is not taken"):
        finetune.fit(trained, PAIRS, 2, 10, 0.1, 0)
    for a, b in zip(trained.parameters(), before, strict=True):
        assert torch.equal(a.nan_to_num(7), b.nan_to_num(7))


def test_padding_is_not_counted_as_read():
    _, read = finetune.fit(net(), PAIRS, 1, 10, 0.0, 0)
    assert read == sum(len(a) + len(b) for a, b in PAIRS)
    assert vocabulary.PAD not in {i for a, b in PAIRS for i in a + b}
