"""Fine-tuning by `transformers.Trainer` and by `tuning.fit`, on the same critiques, in one run.

A lab-sized model with random weights on critiques of one problem's solutions, as many pairs a step as
hold about 512 target tokens, losses on targets alone. The Trainer pads its batches, runs the model's own
forward and is measured in two precisions:
    bf16   weights in fp32 under bf16 autocast, as precise as ours
    fp32   all in fp32: on a processor that does not multiply bf16 in hardware the quicker of the two
Seconds are CPU seconds of the one thread; a step's tokens are those read, inputs included.
`speedup_vs_trainer` compares tokens a second: median of the rounds but for the first, low and high their
extremes. Writes results/<profile>/bench_sft.json.
"""

import argparse
import random
import statistics
import tempfile
import time

import torch
from locksmith import corpus, critics, model, params, results, tokens, tuning
from transformers import Trainer, TrainerCallback, TrainingArguments

TARGET_TOKENS, LR = 512, 2e-4


class Clock(TrainerCallback):
    """CPU seconds of each step."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *_, **__):
        self.start = time.process_time()

    def on_step_end(self, *_, **__):
        self.seconds.append(time.process_time() - self.start)


def collate(rows):
    """Right-padded ids; -100 where no target stands."""
    longest = max(len(a) + len(b) for a, b in rows)
    pad = [longest - len(a) - len(b) for a, b in rows]
    return {"input_ids": torch.tensor([a + b + [tokens.PAD] * n for (a, b), n in zip(rows, pad)]),
            "attention_mask": torch.tensor([[1] * (longest - n) + [0] * n for n in pad]),
            "labels": torch.tensor([[-100] * len(a) + b + [-100] * n for (a, b), n in zip(rows, pad)])}


def trainer(config, pairs, a_step, steps, bf16):
    """Tokens read a CPU second of each step."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(model.build(config["model"], 0), TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=a_step, learning_rate=LR,
            bf16=bf16, use_cpu=True, save_strategy="no", report_to="none", disable_tqdm=True,
            logging_strategy="no", remove_unused_columns=False, dataloader_drop_last=True),
            train_dataset=pairs, data_collator=collate, callbacks=[clock]).train()
    read = a_step * sum(len(a) + len(b) for a, b in pairs) / len(pairs)
    return [read / s for s in clock.seconds]


def ours(config, pairs, steps):
    """Tokens read a CPU second of `tuning.fit`."""
    net = model.build(config["model"], 0)
    start = time.process_time()
    _, read = tuning.fit(net, pairs, steps, TARGET_TOKENS, LR, 0)
    return read / (time.process_time() - start)


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--profile", default="lab")
    args.add_argument("--family", default="chain", choices=corpus.FAMILIES)
    args.add_argument("--rounds", type=int, default=6)
    args = args.parse_args()
    torch.set_num_threads(1)
    config, task, rng = params.load(args.profile), corpus.FAMILIES[args.family], random.Random(0)
    problem = task.problems("train", 1, 0, config["families"][args.family])[0]
    solutions = [(tokens.encode([*task.guess(problem, rng)]), False) for _ in range(120)]
    pairs = tuning.critique_pairs(args.family, problem, solutions, critics.exact, rng)
    a_step = round(TARGET_TOKENS * len(pairs) / sum(len(b) for _, b in pairs))
    facts = []
    speeds = {"ours": [ours(config, pairs, 2) for _ in range(args.rounds)]}
    speeds |= {way: trainer(config, pairs, a_step, args.rounds, way == "bf16") for way in ("bf16", "fp32")}
    for way in ("bf16", "fp32"):
        ratio = [a / b for a, b in zip(speeds["ours"][1:], speeds[way][1:], strict=True)]
        for quantity, values in (("tokens_per_second", speeds[way][1:]),
                                 ("tokens_per_second_ours", speeds["ours"][1:]),
                                 ("speedup_vs_trainer", ratio)):
            facts.append(dict(family="sft", model=f"trainer_{way}", quantity=quantity,
                              value=statistics.median(values), low=min(values), high=max(values),
                              n_problems=1, n_samples=len(pairs), seeds=[0]))
            print(f"{facts[-1]['model']:16} {quantity:24} {facts[-1]['value']:8.2f} "
                  f"({min(values):.2f} to {max(values):.2f})", flush=True)
    print(results.write(args.profile, "bench_sft", facts, extra={
        "pairs a step": a_step, "bf16 in hardware": torch.cpu._is_avx512_bf16_supported()}))


if __name__ == "__main__":
    main()
