"""One model over two processes: the training of one process, half of its weights in each.

As a script, which `accelerate launch` starts twice, this file is what the processes do.
"""

import gc
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from locksmith import (
    architectures,
    cache,
    cards,
    engine,
    errors,
    finetune,
    model,
    packaged,
    rl,
)
from locksmith.experiments import real_rl, tuning
from repository import ROOT
from safetensors.torch import load_file
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

# The same float32 numbers summed in another order. A micro-batch that is left out, or counted
# twice, changes losses by 3e-4 of them and more.
CLOSE = {"rel": 2e-5, "abs": 2e-6}
BF16 = 2**-7  # between neighbours of an adapter's file, relative
RECIPE = {"steps": 3, "problems": 3, "samples": 4, "lr": 0.01, "rank": 2, "max_new_tokens": 16}


# --- what both do ---------------------------------------------------------------------------------

def pair():
    return real_rl.pair("toy", "present", 0)._replace(tokens=0)


def trained_weights(net):
    return {name: p.detach().clone() for name, p in net.named_parameters() if p.requires_grad}


def fine_tune():
    """LoRA on texts of unequal length, in an odd number of micro-batches: (losses, weights)."""
    trained = tuning.adapter(pair(), 2)
    texts = [(list(range(2, 8 + i)), list(range(60, 60 + 5 * i))) for i in range(1, 6)]
    assert {len(step) for step in finetune.pack(texts, 4, 40, 0, 40)} & {3, 5}
    losses, _ = finetune.fit(trained.net, texts, 4, 40, 0.01, 0, finetune.own_logits, 40)
    return losses, trained_weights(trained.net)


def reinforce(micro_tokens):
    """RL by a reward that is random: (curve, each step's sequences, weights)."""
    trained, drawn, update = tuning.adapter(pair(), 2), [], rl.update
    problems = pair().rules.problems("train", 9, 1, pair().generator)

    def noted(net, optimizer, sequences, *rest, **options):
        drawn.append([list(ids) for ids in sequences])
        return update(net, optimizer, sequences, *rest, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl, "update", noted)
        patch.setattr(tuning, "LEAN_TOKENS", micro_tokens)
        curve = tuning.reinforce(trained, pair(), problems, RECIPE, "random")
    return curve, drawn, trained_weights(trained.net)


# --- what each of two processes does --------------------------------------------------------------

def held():
    """Bytes of a base's weights that this process holds after it was sampled, all tensors counted;
    how it was sampled."""
    net = tuning.adapter(pair(), 2).ask()[0].net
    drawn = engine.sample(net, [[5, 6, 7], [8]], 2, max_new_tokens=4, stop=1)
    gc.collect()
    trained = {p.data_ptr() for p in net.parameters() if p.requires_grad}
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
                for x in gc.get_objects() if issubclass(type(x), torch.Tensor)
                and type(x) is not cards.DTensor and x.is_floating_point()}
    return {"bytes": sum(n for place, n in storages.items() if place not in trained),
            "whole": sum(p.nbytes for p in net.parameters() if not p.requires_grad),
            "runner": type(cache.runner(net, 2, 8, False, (), None)).__name__, "ids": drawn.ids()}


class Block(LlamaDecoderLayer):
    """Somebody's own."""


def told():
    """What is said of sharded models that somebody altered, and of a weight that is no number."""
    net = pair().load("base").net
    said = [architectures.altered(net)]
    hook = net.model.layers[1].register_forward_hook(lambda *a: None)
    said.append(architectures.altered(net))
    hook.remove()
    type(net).forward = lambda self, **k: None
    said.append(architectures.altered(net))
    del type(net).forward
    other = packaged.toy()[0].requires_grad_(False)
    other.model.layers[1].__class__ = Block
    cards.shard(other, cache.blocks(other))
    said.append(architectures.altered(other))
    cards.local(net.model.norm.weight).fill_(float("nan"))
    with pytest.raises(errors.BadInput) as found:
        architectures.check_finite(net)
    return [*said, str(found.value)]


def train_and_tell():
    with cards.joined():
        found = {"held": held(), "told": told(), "fine-tuned": fine_tune(),
                 "reinforced": reinforce(100), "world": cards.world(),
                 "turns": [cards.turns(range(n)) for n in range(4)]}
        torch.save(found, f"found{cards.rank()}")
        sys.argv = ["real_rl", "--profile", "toy"]
        real_rl.main()


def fail():
    """The second process ends while the first waits for its parts of the weights."""
    with cards.joined():
        net = pair().load("base").net
        if cards.rank() == 1:
            raise errors.BadInput("part is 1; allowed is 0.")
        engine.sample(net, [[5, 6, 7]], max_new_tokens=4, stop=1)


# --- tests ----------------------------------------------------------------------------------------

def launch(folder, what):
    """Two processes of this file in a folder: (exit code, what they said)."""
    for name in ("arms.yml", "claims.yml"):
        shutil.copy(ROOT / name, folder)
    arms = "arms: [correct, random, format, one-problem, direct-2]"
    settings = (ROOT / "params.yaml").read_text()
    assert arms in settings
    (folder / "params.yaml").write_text(settings.replace(arms, "arms: [random]"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # --multi_gpu starts so many processes where no GPU is, too; --cpu would start one.
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
         "--main_process_port", str(port), __file__, what], cwd=folder, capture_output=True,
        text=True, timeout=300, env=os.environ | {
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "lib"), str(ROOT / "tests")])})
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(folder, what each of two processes found)."""
    folder = tmp_path_factory.mktemp("two")
    code, said = launch(folder, "train")
    assert code == 0, said[-3000:]
    return folder, [torch.load(folder / f"found{rank}") for rank in range(2)]


def same(found, wanted):
    assert found.keys() == wanted.keys() and wanted
    for name, x in wanted.items():
        torch.testing.assert_close(found[name], x, rtol=CLOSE["rel"], atol=CLOSE["abs"])
    assert max(float(x.abs().max()) for name, x in wanted.items() if "lora_B" in name) > 0.005


def test_each_process_holds_half_of_the_base_and_samples_with_its_cache(two):
    for found in two[1]:
        own = found["held"]
        assert found["world"] == 2 and own["runner"] == "Generic"
        assert own["bytes"] == pytest.approx(own["whole"] / 2, rel=0.01)
        base = pair().load("base")
        assert own["whole"] == sum(p.nbytes for p in base.net.parameters())
        assert own["ids"] == engine.sample(base.net, [[5, 6, 7], [8]], 2, max_new_tokens=4,
                                           stop=1).ids()


def test_fine_tuning_by_two_is_that_by_one(two):
    losses, weights = fine_tune()
    for found in two[1]:
        assert found["fine-tuned"][0] == pytest.approx(losses, **CLOSE)
        same(found["fine-tuned"][1], weights)


def test_rl_by_two_is_that_by_one(two):
    """In smaller micro-batches, too, which read each prompt with each answer."""
    curve, drawn, weights = reinforce(tuning.LEAN_TOKENS)
    assert all(point["grad_norm"] > 0.01 for point in curve)
    for found in two[1]:
        assert found["reinforced"][1] == drawn
        for point, wanted in zip(found["reinforced"][0], curve, strict=True):
            assert point == pytest.approx(wanted, **CLOSE)
        same(found["reinforced"][2], weights)


def test_the_stage_by_two_writes_what_the_stage_by_one_does_and_each_keeps_the_others_runs(
        two, tmp_path, monkeypatch):
    folder = two[0]
    for name in ("params.yaml", "arms.yml", "claims.yml"):
        shutil.copy(folder / name, tmp_path)
    files = {}
    for place in (tmp_path, folder):
        monkeypatch.chdir(place)
        before = {p: p.stat().st_mtime_ns for p in place.rglob("checkpoints/**/*.safetensors")}
        real_rl.run("toy")
        files[place] = sorted(place.rglob("checkpoints/**/*.safetensors"))
        assert len(files[place]) == 2
        assert all(p.stat().st_mtime_ns == before[p] for p in before) and (place == folder) == bool(
            before)
    assert not list(folder.rglob("*.half")) and not list(folder.rglob("*.lock"))
    for ours, theirs in zip(files[tmp_path], files[folder], strict=True):
        a, b = load_file(ours), load_file(theirs)
        for name, x in a.items():
            torch.testing.assert_close(b[name].float(), x.float(), rtol=BF16, atol=1e-5)
        a, b = (model.manifest(p.parent) for p in (ours, theirs))
        for point, wanted in zip(b.pop("log")["curve"], a.pop("log")["curve"], strict=True):
            assert point == pytest.approx(wanted, **CLOSE)
        assert a.pop("files").keys() == b.pop("files").keys() and a == b


def test_a_sharded_model_is_plain_until_somebody_alters_it(two):
    for found in two[1]:
        plain, hook, forward, block, number = found["told"]
        assert plain == "" and hook == "a hook on model.layers.1"
        assert forward == "forward replaced in FSDPLlamaForCausalLM"
        assert block.startswith("model.layers.1 of class") and block.endswith("Block")
        assert number == "weight model.norm.weight holds 16 numbers that are not finite, of 16"


def test_processes_take_equally_many_turns(two):
    zero, one = (found["turns"] for found in two[1])
    assert zero == [[], [(0, 1.0)], [(0, 1.0)], [(0, 1.0), (2, 1.0)]]
    assert one == [[], [(0, 0.0)], [(1, 1.0)], [(1, 1.0), (2, 0.0)]]
    assert cards.turns("ab") == [("a", 1.0), ("b", 1.0)] and cards.total(0.1) == 0.1


def test_a_process_that_fails_ends_the_run_with_its_sentence(tmp_path):
    code, said = launch(tmp_path, "fail")
    assert code and said.count("error: part is 1; allowed is 0.\n") == 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    errors.run({"train": train_and_tell, "fail": fail}[sys.argv[1]])
