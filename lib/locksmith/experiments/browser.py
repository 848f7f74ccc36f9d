"""What the page "Turn the key yourself" runs in a browser: models, vectors and puzzles as files.

    python -m locksmith.experiments.browser --profile lab

Of Countdown's first seed, into build/play/<profile>/:

    base.bin, thinking.bin, twin.bin
        Weights, under 2 MB each: zlib's deflate of the high bytes of all numbers and then the low
        bytes of all. A number is a bfloat16, as in the checkpoints, so nothing is rounded. The
        tensors stand behind each other in the order of the header's `tensors`, rows first.
    header.json
        config, vocabulary, openings (kind of step -> its openings, as words); tensors, a list of
        [name, shape]; models, the names of the files; max_new_tokens; puzzles, a list of {numbers,
        targets}, chapter 1's test problems; vectors: after which block (`layer`) they are added,
        the strength at which they did best, `rate` and `frequencies` of `RandomPositions`, and
        `of`: a model's vectors (kinds, hidden), base64 of float32, by its name.

The vectors are chapter 1's simplest, differences of means, of the task's own kinds of steps: for
each kind the mean residual stream where the thinking model's traces open it, less the mean where
they open any. Block and strength are those that solve most validation problems in the base.
"""

import argparse
import base64
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LlamaForCausalLM

from locksmith import activations, errors, params, staging, vocabulary
from locksmith.experiments import hybrid, taxonomy, vectors
from locksmith.loading import Pair

MODELS = ("base", "thinking", "twin")
WRITERS = ("base", "twin")  # those that vectors are added to
FOLDER = Path("build/play")
TENSORS = {"before": "input_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj",
           "v": "self_attn.v_proj", "out": "self_attn.o_proj",
           "after": "post_attention_layernorm", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
           "down": "mlp.down_proj"}


def tensors(net: LlamaForCausalLM) -> dict[str, Tensor]:
    """The weights by the names that the files give them, in their order."""
    layers = {f"{i}.{short}": layer.get_submodule(name).weight
              for i, layer in enumerate(net.model.layers) for short, name in TENSORS.items()}
    return {"table": net.model.embed_tokens.weight, **layers, "norm": net.model.norm.weight}


def packed(net: LlamaForCausalLM) -> bytes:
    """The file of a model, see the module's docstring."""
    numbers = torch.cat([t.detach().flatten() for t in tensors(net).values()]).to(torch.bfloat16)
    low, high = numbers.view(torch.uint8).view(-1, 2).T
    return zlib.compress(torch.cat([high, low]).numpy().tobytes(), 9)


def header(pair: Pair, chapter: dict) -> dict:
    """The content of header.json; chapter: chapter 1's parameters."""
    net = pair.load("base").net
    config = net.config
    return {
        "config": {"hidden": config.hidden_size, "layers": config.num_hidden_layers,
                   "heads": config.num_attention_heads, "mlp": config.intermediate_size,
                   "context": config.max_position_embeddings, "epsilon": config.rms_norm_eps,
                   "theta": config.rope_parameters["rope_theta"]},
        "vocabulary": vocabulary.VOCABULARY, "openings": pair.rules.OPENINGS,
        "tensors": [[name, list(t.shape)] for name, t in tensors(net).items()],
        "models": MODELS, "max_new_tokens": chapter["max_new_tokens"],
        "puzzles": [{"numbers": p.numbers, "targets": p.targets}
                    for p in pair.problems(chapter["n_problems"])],
        "vectors": steering(pair, chapter)}


def steering(pair: Pair, chapter: dict) -> dict:
    """The header's `vectors`."""
    kinds, length = list(pair.rules.OPENINGS), chapter["max_new_tokens"]
    found = vectors.traces(pair, chapter["n_traces"], length)
    found = found._replace(steps=[step for step in found.steps if step.kind in kinds])
    categories = [kinds.index(step.kind) for step in found.steps]

    def means(role: str, layer: int) -> Float[Tensor, "kinds width"]:
        net = pair.load(role, exact=True).net
        stream = activations.residuals(net, found.texts, [layer])[layer]
        return vectors.means(stream, found, categories, len(kinds))
    tell = taxonomy.Openings(taxonomy.by_kind(pair.load("base"), pair.rules))
    arms = {(layer, strength): hybrid.Intervention(gate=hybrid.Disagreement(tell), vectors=rows,
                                                   layer=layer, strength=strength)
            for layer in chapter["layers"] for rows in [means("base", layer)]
            for strength in chapter["strengths"]}
    runs = hybrid.run(pair, arms, chapter["n_validation"], 1, length, "validation")
    layer, strength = best = max(arms, key=lambda arm: runs[arm].correct.mean())
    which = np.concatenate([ids for rows in runs[best].which for ids in rows])
    return {"layer": layer, "strength": strength, "rate": float((which >= 0).mean()),
            "frequencies": np.bincount(which[which >= 0], minlength=len(kinds)).tolist(),
            "of": {role: base64.b64encode(means(role, layer).numpy().tobytes()).decode()
                   for role in WRITERS}}


def export(pair: Pair, chapter: dict, folder: Path) -> None:
    """Writes the files of a pair into `folder`, whole or not at all; chapter: chapter 1's
    parameters."""
    files = {f"{name}.bin": packed(pair.load(name, exact=True).net) for name in MODELS}
    files["header.json"] = json.dumps(header(pair, chapter), indent=1).encode() + b"\n"
    half = folder.with_name(f"{folder.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    for name, content in files.items():
        (half / name).write_bytes(content)
    shutil.rmtree(folder, ignore_errors=True)
    half.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="The files of the page that runs the models.")
    parser.add_argument("--profile", required=True)
    config = params.load(parser.parse_args().profile)
    profile = config["profile"]
    pair = Pair(profile, "countdown", config["seeds"][0])
    with staging.alone(f"{profile}/play"):
        export(pair, config["chapters"]["ch01"], FOLDER / profile)


if __name__ == "__main__":
    errors.run(main)
