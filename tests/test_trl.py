"""Our RL step against TRL's GRPOTrainer: from one batch of rollouts, both make the same update.

TRL runs whole: rewards, advantages, loss, clipping of the gradient, optimiser. Its loss "dapo"
divides by all sampled tokens, as ours does; without the division by the standard deviation. With
SGD at rate 1 the change of the weights is the clipped gradient. Skipped where TRL is missing:
`pip install trl datasets` brings it.
"""

import random

import pytest
import torch
from locksmith import model, rl, vocabulary
from torch.nn.utils import parameters_to_vector

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

CONFIG = {"hidden": 32, "layers": 2, "heads": 2, "mlp": 64, "context": 64}
PROBLEMS, SAMPLES = 4, 6


def net(scale):
    made = model.build(CONFIG, 0)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(scale if p.ndim == 2 else 1)
    return made


def a_batch():
    """Prompts and rollouts of unequal length, prompt-major; the last group has no contrast."""
    rng = random.Random(0)
    prompts = [[vocabulary.BOS, *(rng.randrange(3, 140) for _ in range(rng.randint(2, 8)))]
               for _ in range(PROBLEMS)]
    prompts = [p for p in prompts for _ in range(SAMPLES)]
    rollouts = [[rng.randrange(3, 140) for _ in range(rng.randint(1, 20))] for _ in prompts]
    rewards = [rng.random() < 0.4 for _ in prompts[SAMPLES:]] + [True] * SAMPLES
    return prompts, rollouts, rewards


def ours(made):
    prompts, rollouts, rewards = a_batch()
    sequences = [p + r for p, r in zip(prompts, rollouts, strict=True)]
    optimizer = torch.optim.SGD(made.parameters(), lr=1.0)
    return rl.update(made, optimizer, sequences, [len(p) for p in prompts],
                     rl.advantages(rewards, SAMPLES), 150)[0]


def theirs(made, folder):
    prompts, rollouts, rewards = a_batch()
    args = trl.GRPOConfig(
        str(folder), max_steps=1, learning_rate=1.0, lr_scheduler_type="constant",
        per_device_train_batch_size=len(prompts), num_generations=SAMPLES,
        max_completion_length=20, loss_type="dapo", scale_rewards="none", beta=0.0,
        max_grad_norm=1.0, bf16=False, gradient_checkpointing=False, use_cpu=True,
        save_strategy="no", report_to="none", disable_tqdm=True, logging_steps=1)
    trainer = trl.GRPOTrainer(
        made, lambda **_: [float(r) for r in rewards], args,
        datasets.Dataset.from_dict({"prompt": ["<bos>"] * PROBLEMS}),
        processing_class=vocabulary.tokenizer(),
        optimizers=(torch.optim.SGD(made.parameters(), lr=1.0), None),
        rollout_func=lambda _, trainer: {"prompt_ids": prompts, "completion_ids": rollouts,
                                         "logprobs": None})
    trainer.train()
    assert trainer.state.global_step == 1
    return trainer.state.log_history[0]["grad_norm"]


def changes(scale, folder):
    """(our change of all weights, TRL's, our gradient norm, TRL's)."""
    mine, other = net(scale), net(scale)
    before = parameters_to_vector(mine.parameters()).detach().clone()
    norms = ours(mine), theirs(other, folder)
    return (*(parameters_to_vector(m.parameters()).detach() - before for m in (mine, other)),
            *norms)


@pytest.mark.parametrize("scale", [1, 20])  # gradient norms under and above the clip at 1
def test_one_update_is_trls(scale, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "bfloat16", torch.float32)
    mine, other, norm, other_norm = changes(scale, tmp_path)
    assert norm == pytest.approx(other_norm, rel=1e-4)
    assert (norm < 1) == (scale == 1)
    assert (mine - other).abs().max() < 1e-4 * other.abs().max()


def test_in_bf16_it_is_trls_but_for_rounding(tmp_path):
    mine, other, norm, other_norm = changes(1, tmp_path)
    assert norm == pytest.approx(other_norm, rel=0.01)
    assert torch.cosine_similarity(mine, other, dim=0) > 0.999
