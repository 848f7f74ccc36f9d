"""Pre-training's step on one thread against transformers' own forward and the machine's peak.

One micro-batch of each family's corpus, of median width: forward and backward, plus its share of
the optimisers' step. The two forwards and the two peaks take turns; value is the median of the
repeats, low and high their extremes. Seconds are CPU seconds of the one thread, which other work on
the machine disturbs least.
    tokens_per_second    real tokens a second (no padding) in `pretrain.loss`, backward, optimiser
    speedup_vs_autocast  the same step with the model's own forward under bf16 autocast, in time
    share_of_gemm_peak   of the bf16 matrix multiply of 2048 x 2048 x 2048
    share_of_shape_peak  of bf16 multiplies in the lab's own shape, (2048 x 128) by (128 x 384)
A token costs 6 x parameters + 12 x layers x length x width floating-point operations (forward and
backward; attention counted in full, though half of it is masked; padding counts for nothing).
`extra` holds where the time goes, by kernel. Writes results/<profile>/bench_train.json.
"""

import argparse
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from locksmith import corpus, model, params, pretrain, results, vocabulary
from torch.profiler import ProfilerActivity, profile


def seconds(job, times=1):
    start = time.process_time()
    for _ in range(times):
        job()
    return (time.process_time() - start) / times


def plain_loss(net, ids):
    """`pretrain.loss` through transformers' forward under autocast."""
    targets = ids[:, 1:].masked_fill(ids[:, 1:] == vocabulary.PAD, -100)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(input_ids=ids[:, :-1], use_cache=False).logits
        return F.cross_entropy(out.flatten(0, 1), targets.flatten(), ignore_index=-100)


def kernels(job, most=5):
    """The kernels that take most of the CPU time: name -> share."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        seconds(job, 10)
    table = {e.key: e.self_cpu_time_total for e in record.key_averages()}
    total = sum(table.values())
    return {k: table[k] / total for k in sorted(table, key=table.get, reverse=True)[:most]}


def measure(config, net, batch, repeats):
    """Quantity -> values, one a repeat, and where the time goes."""
    recipe, shape = config["pretrain"], config["model"]
    optimizers = model.optimizer(net, recipe["muon_lr"], recipe["adam_lr"], recipe["weight_decay"])
    n_tokens = int((batch[:, 1:] != vocabulary.PAD).sum())
    flops = n_tokens * (6 * sum(p.numel() for p in net.parameters())
                        + 12 * shape["layers"] * (batch.shape[1] - 1) * shape["hidden"])
    square = torch.randn(2048, 2048, dtype=torch.bfloat16)
    tall = torch.randn(2048, shape["hidden"], dtype=torch.bfloat16)
    wide = torch.randn(shape["hidden"], 3 * shape["hidden"], dtype=torch.bfloat16)
    values = {}
    for repeat in range(repeats + 1):
        ours = seconds(lambda: pretrain.loss(net, batch).backward(), 4)
        theirs = seconds(lambda: plain_loss(net, batch).backward(), 4)
        update = seconds(lambda: [o.step() for o in optimizers]) / recipe["micro_batches"]
        peak = 2 * 2048**3 / seconds(lambda: square @ square, 4)
        shape_peak = 2 * tall.numel() * wide.shape[1] / seconds(lambda: tall @ wide, 200)
        if repeat == 0:
            continue  # warm-up
        for quantity, value in (("tokens_per_second", n_tokens / (ours + update)),
                                ("speedup_vs_autocast", (theirs + update) / (ours + update)),
                                ("share_of_gemm_peak", flops / (ours + update) / peak),
                                ("share_of_shape_peak", flops / (ours + update) / shape_peak),
                                ("gemm_teraflops", peak / 1e12),
                                ("shape_teraflops", shape_peak / 1e12)):
            values.setdefault(quantity, []).append(value)
    return values, {"batch": list(batch.shape), "optimizers": update / (ours + update),
                    "kernels": kernels(lambda: pretrain.loss(net, batch).backward())}


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--profile", default="lab")
    args.add_argument("--repeats", type=int, default=5)
    args = args.parse_args()
    torch.set_num_threads(1)
    config = params.load(args.profile)
    net = model.build(config["model"], 0).train()
    record, shares = results.Recorder(args.profile, "bench_train", seeds=[0]), {}
    for family, task in corpus.FAMILIES.items():
        ids, _ = corpus.write(task, config["families"][family], 50_000, 0)
        work = pretrain.batches(ids, config["pretrain"]["micro_tokens"], np.random.default_rng(0))
        work.sort(key=lambda b: b.shape[1])
        batch = torch.from_numpy(work[len(work) // 2].astype(np.int64))
        measured, shares[family] = measure(config, net, batch, args.repeats)
        for quantity, values in measured.items():
            found = record.fact(family, "base", quantity,
                                (statistics.median(values), min(values), max(values)))
            print("{:10} {:20} {:10.3f} ({:.3f} to {:.3f})".format(family, quantity, *found),
                  flush=True)
        print(shares[family], flush=True)
    record.extra["time"] = shares
    print(record.write())


if __name__ == "__main__":
    main()
