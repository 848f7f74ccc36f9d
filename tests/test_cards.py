"""One model over two processes: the training of one process, half of its weights in each.

As a script, under `accelerate launch`, this file is one of the processes.
"""

import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from locksmith import architectures, cache, cards, engine, errors, finetune, params, results, rl
from locksmith.experiments import real_rl, tuning
from repository import ROOT
from safetensors.torch import load_file

# Sums of the same float32 numbers in another order, and a step of Adam on each: 3e-5 of a loss or a
# weight. A wrong weight of one micro-batch shows from 1e-2 on.
CLOSE = {"rtol": 3e-5, "atol": 3e-5}
RECIPE = {"steps": 3, "problems": 3, "samples": 4, "lr": 0.01, "rank": 2, "max_new_tokens": 16}


def pair(tokens=0):
    return real_rl.pair("toy", "present", 0)._replace(tokens=tokens)


def trained_weights(net):
    return {name: p.detach().clone() for name, p in net.named_parameters() if p.requires_grad}


def fine_tune():
    """LoRA on texts of unequal length, in three micro-batches a step: (losses, weights)."""
    trained = tuning.adapter(pair(), 2)
    texts = [(list(range(2, 8 + i)), list(range(60, 60 + 5 * i))) for i in range(1, 6)]
    losses, _ = finetune.fit(trained.net, texts, 4, 40, 0.01, 0, finetune.own_logits, 40)
    return losses, trained_weights(trained.net)


def reinforce(small_micros):
    """RL by a reward that is random: (curve, sampled tokens of each step, weights)."""
    trained, drawn = tuning.adapter(pair(), 2), []
    problems = pair().rules.problems("train", 9, 1, pair().generator)
    update = rl.update

    def noted(net, optimizer, sequences, *rest, **options):
        drawn.append([list(ids) for ids in sequences])
        return update(net, optimizer, sequences, *rest, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl, "update", noted)
        patch.setattr(tuning, "LEAN_TOKENS", small_micros)
        curve = tuning.reinforce(trained, pair(), problems, RECIPE, "random")
    return curve, drawn, trained_weights(trained.net)


def held():
    """What this process holds of a sharded base that has just computed, and how it is sampled."""
    trained = tuning.adapter(pair(), 2)
    net = trained.ask()[0].net
    out = engine.sample(net, [[5, 6, 7], [8]], 2, max_new_tokens=4, stop=1)
    frozen = [p for p in net.parameters() if not p.requires_grad]
    del trained
    gc.collect()
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
                for x in gc.get_objects() if type(x) is torch.Tensor and x.is_floating_point()}
    kind = type(cache.runner(net, 2, 8, False, (), None)).__name__
    return {"bytes": sum(cards.local(p).nbytes for p in frozen),
            "whole": sum(p.nbytes for p in frozen), "in memory": sum(storages.values()),
            "altered": architectures.altered(net), "runner": kind, "ids": out.ids(),
            "state": {type(p).__name__ for p in frozen}}


def nan_is_found():
    net = pair().load("base").net
    with torch.no_grad():
        cards.local(net.model.norm.weight).fill_(float("nan"))
    try:
        architectures.check_finite(net)
    except errors.BadInput as error:
        return str(error)


def main():
    torch.set_num_threads(1)
    if sys.argv[1] == "fail":
        return fail()
    with cards.joined():
        found = {"rank": cards.rank(), "world": cards.world(), "held": held(),
                 "nan": nan_is_found(),
                 "fine-tuned": fine_tune(), "reinforced": reinforce(100),
                 "turns": [cards.turns(range(n)) for n in range(5)]}
        torch.save(found, f"found{cards.rank()}")
        real_rl.run("toy")
        before = os.stat("results/toy/train/real_rl.json").st_mtime_ns
        real_rl.run("toy")
        assert cards.first(lambda: before) and cards.total(2.0) == 4.0


def fail():
    """The second process fails while the first waits for its part of a block."""
    with cards.joined():
        net = pair().load("base").net
        if cards.rank() == 1:
            raise errors.BadInput("part is 1; allowed is 0.")
        engine.sample(net, [[5, 6, 7]], max_new_tokens=4, stop=1)


def launch(folder, *arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # --multi_gpu starts processes where no GPU is, too; --cpu would start a single one.
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
         "--main_process_port", str(port), __file__, *arguments], cwd=folder, text=True,
        capture_output=True, timeout=170,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "lib"), str(ROOT / "tests")])})


if __name__ == "__main__":
    errors.run(main)
