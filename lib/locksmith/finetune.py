"""Supervised fine-tuning of what a model trains, by transformers' Trainer.

A Trainer counts a batch in rows, and the book compares arms at equal numbers of *target tokens*. So
an item of its dataset is a whole step here: micro-batches (ids, targets), both (B, T) int64, of
different shapes; ids right-padded, targets the ids that are to be learned, IGNORED elsewhere. The
loss of a step is the mean over all its targets but a row's first token, which nothing predicts.
"""

import random
import tempfile
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from locksmith import cards, device, model, vocabulary
from locksmith.errors import BadInput, finite

IGNORED = -100
MICRO_TOKENS = 4096


def own_logits(net: nn.Module,
               ids: Int[Tensor, "rows time"]) -> Float[Tensor, "rows time vocabulary"]:
    """Logits by a model's own forward, for one with an adapter in it."""
    with device.autocast(ids.device):
        return net(input_ids=ids, use_cache=False).logits


def pack(pairs: Sequence[tuple[list[int], list[int]]], steps: int, target_tokens: int, seed: int,
         micro_tokens: int = MICRO_TOKENS,
         pad_token_id: int = vocabulary.PAD) -> list[list[tuple[Tensor, Tensor]]]:
    """Steps of exactly `target_tokens` targets from (input, target) pairs of token ids, in a random
    order that starts again when all were seen; a step's last target may be cut, and a micro-batch
    holds at most `micro_tokens` ids, padding included, or one pair. Pairs without a target are left
    out; BadInput where no other is there, for no steps or no targets a step, and for ids below 0,
    of which IGNORED would not be learned."""
    if min(steps, target_tokens) < 1:
        raise BadInput(f"steps is {steps} and target_tokens is {target_tokens}; allowed: from 1.")
    lowest = min((i for pair in pairs for part in pair for i in part), default=0)
    if lowest < 0:
        raise BadInput(f"pairs hold the token id {lowest}; allowed are ids from 0 on.")
    pairs = [pair for pair in pairs if len(pair[1])]
    if not pairs:
        raise BadInput("pairs hold no target; allowed is at least one pair with a target.")
    rng, queue, packed = random.Random(seed), [], []
    for _ in range(steps):
        batch, left = [], target_tokens
        while left:
            if not queue:
                queue = list(pairs)
                rng.shuffle(queue)
            given, wanted = queue.pop()
            batch.append((given, wanted[:left]))
            left -= len(batch[-1][1])
        batch.sort(key=lambda pair: sum(map(len, pair)))
        packed.append([])
        while batch:
            longest = sum(map(len, batch[-1]))
            micro = batch[-max(1, micro_tokens // longest):]
            del batch[-len(micro):]
            packed[-1].append(_padded(micro, longest, pad_token_id))
    return packed


def _padded(micro, longest, pad_token_id):
    """(ids, targets), both (B, longest), of (input, target) pairs."""
    ids = torch.full((len(micro), longest), pad_token_id)
    targets = torch.full((len(micro), longest), IGNORED)
    for row, (a, b) in enumerate(micro):
        ids[row, :len(a) + len(b)] = torch.tensor(a + b)
        targets[row, len(a):len(a) + len(b)] = torch.tensor(b)
    return ids, targets


class _Steps(Trainer):
    """A Trainer whose batches are the steps of its dataset, in their order."""

    def __init__(self, *args, logits, **options):
        super().__init__(*args, **options)
        self.logits, self.losses = logits, []

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        if cards.world() > 1:  # no wrapper that adds up gradients after each micro-batch
            self.accelerator.prepare_model = lambda net, *args, **options: net

    def _move_model_to_device(self, model, device):
        """Nothing: it is there, and a sharded one must not be moved."""

    def get_train_dataloader(self):
        return DataLoader(self.train_dataset, batch_size=None)

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        inputs, loss = self._prepare_inputs(inputs), 0.0
        share = sum(int((targets[:, 1:] != IGNORED).sum()) for _, targets in inputs)
        if not share:
            raise BadInput(f"step {self.state.global_step} has no target but rows' first tokens, "
                           "which nothing predicts; allowed are targets behind an input.")
        for (ids, targets), weight in cards.turns(inputs):
            out = self.logits(model, ids[:, :-1]).float()
            part = F.cross_entropy(out.flatten(0, 1), targets[:, -out.shape[1]:].flatten(),
                                   ignore_index=IGNORED, reduction="sum") / share * weight
            self.accelerator.backward(part)
            loss += part.item()
        loss = cards.total(loss)
        cards.add_gradients(model.parameters())
        finite(loss, f"the loss of step {self.state.global_step}")
        self.losses.append(loss)
        return torch.tensor(loss, device=self.args.device)  # where Trainer adds it up


class _After(TrainerCallback):
    """Moves the progress bar and calls `look` after each step."""

    def __init__(self, bar, look):
        self.bar, self.look = bar, look

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()
        if self.look:
            self.look(state.global_step, self.bar)


def train(net: nn.Module, steps: Sequence[list[tuple[Tensor, Tensor]]],
          optimizer: torch.optim.Optimizer, rate: Callable[[int], float],
          logits: Callable[[nn.Module, Tensor], Tensor] = model.logits, clip: float = 1.0,
          label: str | None = None,
          look: Callable[[int, tqdm], object] | None = None) -> list[float]:
    """Trains `net` in place on `steps` (see above), in order, and leaves it in eval mode.

    optimizer: over what is trained; rate: step number from 0 -> factor on its learning rate.
    logits: as in `rl.update`. clip: largest norm of a gradient; 0 for none. label: of a progress
    bar. look(steps taken, bar): called after each step. Returns the losses, one a
    step, in nats a target.
    """
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    with tempfile.TemporaryDirectory() as folder, \
            tqdm(total=len(steps), desc=label, mininterval=5, disable=not label) as bar:
        arguments = TrainingArguments(
            folder, max_steps=len(steps), max_grad_norm=clip, save_strategy="no",
            logging_strategy="no", report_to="none", disable_tqdm=True, label_names=["targets"],
            use_cpu=next(net.parameters()).device.type == "cpu")
        trainer = _Steps(net, arguments, train_dataset=steps, optimizers=(optimizer, schedule),
                         callbacks=[_After(bar, look)], logits=logits)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    net.eval()
    return trainer.losses


def fit(net: nn.Module, pairs: Sequence[tuple[list[int], list[int]]], steps: int,
        target_tokens: int, lr: float, seed: int,
        logits: Callable[[nn.Module, Tensor], Tensor] = model.logits,
        micro_tokens: int = MICRO_TOKENS,
        pad_token_id: int = vocabulary.PAD) -> tuple[list[float], int]:
    """`train` on `pack` by AdamW at a linearly falling rate: (losses, tokens read with
    the inputs, but without padding)."""
    packed = pack(pairs, steps, target_tokens, seed, micro_tokens, pad_token_id)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr,
                                  betas=(0.9, 0.95), weight_decay=0.0)
    losses = train(net, packed, optimizer, lambda step: 1 - step / steps, logits)
    # A row ends with its last target, whatever ids are in it.
    return losses, sum(int((targets != IGNORED).flip(1).cumsum(1).bool().sum())
                       for step in packed for _, targets in step)
