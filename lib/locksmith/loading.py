"""The model room: one function loads any model, with its tokenizer and how it is asked.

A model is named once, by a text:

    lab/thinking                    a model of the lab: of a task and a seed (`lab.MODELS`)
    lab/ladders/exposure-0.1/rl     one of chapter 7's (`experiments.ladders.rungs` lists them)
    toy, toy/thinking               random weights over bytes, two of them, without a download
    gemma-3-270m                    weights that come in packages (`packaged.PACKAGED`)
    Qwen/Qwen2.5-0.5B@060db649...   a model of the hub, at a full commit
    path/to/folder                  a local folder, with safetensors
    <any of these>+path/to/adapter  the same, with the LoRA adapter of a folder added to its weights

A `Pair` is what chapters compare: a base and a thinking model on a task. Nothing outside this
module knows where a model came from.
"""

import copy
import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from locksmith import cache as kv
from locksmith import (
    cards,
    chats,
    device,
    grammar,
    lab,
    model,
    narrowing,
    packaged,
    results,
    tasks,
    vocabulary,
)
from locksmith.errors import BadInput

ADAPTER = "+"
LARGE = 50e6  # parameters
ROLES = lab.MODELS  # "base", "thinking" and what only a lab has
# Added tokens that end a turn in common families, by the letters of their names, beside the ids
# that a model's configurations state: those forget them in some, and base models have no template.
_TURN_ENDS = {"imend", "endofturn", "endofturntoken", "eotid", "eot", "eomid", "eom", "eos", "end",
              "endoftext", "endofmessage", "endofsentence", "endofutterance"}


@dataclass
class Model:
    """A causal decoder in eval mode, and what it takes to ask it something.

    stop: ids that end an answer. chat: it is asked through its chat template; otherwise a task's
    prompt is plain text, and an answer of a model that is not the lab's ends with its line.
    """
    name: str
    net: PreTrainedModel
    tokenizer: object
    stop: frozenset
    chat: bool = False
    special: bool = False  # texts show the tokenizer's special words, as the lab's tasks need

    @property
    def context(self) -> int:
        """The most tokens that prompt and answer have together."""
        found = getattr(self.net.config.get_text_config(), "max_position_embeddings", None)
        if found is None:
            raise BadInput(f"model {self.name} does not say how long a text it reads; allowed are "
                           "models with max_position_embeddings in their configuration.")
        return found

    @property
    def depth(self) -> int:
        """The number of decoder blocks."""
        return self.net.config.get_text_config().num_hidden_layers

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that stands behind another, with nothing put before or behind."""
        if _puts_space(self.tokenizer):
            line, both = (_own(self.tokenizer, x) for x in ("\n", f"\n{text}"))
            if both[:len(line)] == line:
                return both[len(line):]
        return _own(self.tokenizer, text)

    @property
    def end(self) -> str:
        """What is written behind an answer that is to end there, where texts show no end token."""
        return "" if self.special else "\n"

    @property
    def pad(self) -> int:
        """What rows are filled up with in training; 0 where the tokenizer has none for it."""
        return 0 if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id

    def begin(self, text: str) -> list[int]:
        """Token ids of a plain text that is to be continued, with what the tokenizer puts first and
        nothing of what it puts behind."""
        ids, own = self.tokenizer(text).input_ids, _own(self.tokenizer, text)
        ends = [end for end in range(len(own), len(ids) + 1) if ids[end - len(own):end] == own]
        if own and ends:
            return ids[:ends[-1]]
        while len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special words, or where those are shown without the lab's
        <pad>."""
        kept = [i for i in ids if i != vocabulary.PAD] if self.special else ids
        return self.tokenizer.decode(kept, skip_special_tokens=not self.special)

    def spans(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """For each id the characters [start, end) of `decode(ids)` that it adds. A token that
        completes no character adds none; the one that does adds it whole."""
        ends, longest = [], 0
        for i in range(len(ids)):
            text = self.decode(ids[:i + 1])
            longest = max(longest, len(text.rstrip("\ufffd")))
            ends.append(longest)
        if ends:
            ends[-1] = len(text)
        return list(zip([0, *ends[:-1]], ends))

    def ask(self, task: ModuleType, problem: Any) -> list[int]:
        """The prompt ids of a problem: the task's plain text, or its question in a chat. BadInput
        of a vocabulary that the tokenizer does not have, so that no answer could be right."""
        of_the_lab = hasattr(task, "document")
        if self.special != of_the_lab:
            needed = f"{task.prompt(problem)} {' '.join(grammar.END) if of_the_lab else ''}".split()
            had = self.decode(self.encode(" ".join(needed))).split()
            if had != needed:
                lost = next(a for a, b in itertools.zip_longest(needed, had) if a != b)
                raise BadInput(f"model {self.name} cannot write {lost!r} of task "
                               f"{tasks.name_of(task)}, so that no answer of it could be right; "
                               "allowed is a model whose tokenizer has the words of the task.")
        if self.chat:
            return self.converse([{"role": "user", "content": task.question(problem)}])
        return self.begin(task.prompt(problem))

    def converse(self, messages: Sequence[dict], tools: list[dict] | None = None) -> list[int]:
        """Token ids of a conversation ([{"role", "content"}]) in the chat template, with the
        model's turn opened; tools: JSON schemas for the template."""
        return _own(self.tokenizer, chats.text(self.tokenizer, messages, tools))


def _own(tokenizer, text):
    """Token ids of a text alone, without what marks a beginning or an end."""
    ids, marks = (tokenizer(x, add_special_tokens=False).input_ids for x in (text, ""))
    # Some tokenizers mark every text even so, as an empty one shows.
    behind = next(n for n in range(len(marks), -1, -1)
                  if ids[len(ids) - n:] == marks[len(marks) - n:])
    return ids[len(marks) - behind:len(ids) - behind]


@cache
def _puts_space(tokenizer):
    """Whether a tokenizer puts a space before every text, as many of SentencePiece's kind do."""
    return _own(tokenizer, "\na") != _own(tokenizer, "\n") + _own(tokenizer, "a")


class Pair(NamedTuple):
    """A base and a thinking model on a task, by name: small, so that it travels to other processes.

    seed: of a lab model's training, and of what is drawn; in a name it stands for "{seed}", as in
    the adapter of a run of RL. Roles are "base" and "thinking", and,
    where both are the lab's, its other models (`lab.MODELS`); "untrained" is the base's
    architecture with the weights it may have started from. tokens: how many of the base's tokens
    both are loaded with, chosen by `narrowing.choose`; 0 for all, as are models that have no more.
    """
    profile: str
    task: str
    seed: int
    base: str = "lab/base"
    thinking: str = "lab/thinking"
    chat: bool = False  # the thinking model is asked through its chat template
    accept_terms: bool = False
    tokens: int = 0

    @property
    def rules(self) -> ModuleType:
        """The module of the task."""
        return tasks.load(self.task)

    @property
    def generator(self) -> dict:
        """What the task's problems are made with: what the profile states of the task, in `real`
        for the base that it names there, else the task's own."""
        config = lab.config(self.profile)
        asked = [config.get("families", {})] + [
            one for one in config.get("real", {}).values()
            if isinstance(one, dict) and one.get("model") == self.base]
        stated = next((one[self.task] for one in asked if self.task in one), None)
        given = stated or getattr(self.rules, "GENERATOR", None)
        if given is None:
            raise BadInput(f"task is {self.task!r}, whose generator profile {self.profile!r} does "
                           "not state; allowed is a task that it states, or one that needs none.")
        return given

    def name(self, role: str) -> str:
        """The name of the model in a role."""
        if role in ("base", "thinking"):
            return getattr(self, role).replace("{seed}", str(self.seed))
        return f"lab/{role}" if self.of_the_lab else f"{self.base}#{role}"

    @property
    def of_the_lab(self) -> bool:
        return self.base.startswith("lab/") and self.thinking.startswith("lab/")

    def has(self, role: str) -> bool:
        """Whether there is a model in a role: a name was given, or the lab has its checkpoint."""
        if role == "untrained":
            return bool(self.base)
        if role in ("base", "thinking") and not self.name(role).startswith("lab/"):
            return bool(self.name(role))
        return self.folder(role) is not None and self.folder(role).is_dir()

    def load(self, role: str, exact: bool = False, seed: int | None = None) -> Model:
        """The model in a role; exact: in float32, for training. seed: of an untrained
        model's weights, where it is not the pair's own."""
        options = {"profile": self.profile, "task": self.task, "exact": exact,
                   "seed": self.seed if seed is None else seed, "accept_terms": self.accept_terms}
        if self.tokens:
            options["kept"] = self.kept()
        if role == "untrained" and not self.of_the_lab:
            return untrained(load(self.base, **options), options["seed"])
        return load(self.name(role), chat=self.chat and role == "thinking", **options)

    def measured(self, role: str) -> Model:
        """The model in a role, for what is measured without training: in float32, but for one of
        over LARGE parameters, which on a CPU is several times as fast in the device's dtype."""
        model = self.load(role)
        return model if model.net.num_parameters() > LARGE else self.load(role, exact=True)

    def kept(self) -> tuple[int, ...]:
        """The base's ids of the tokens that its models are loaded with; () for all."""
        return _kept(self._replace(base=self.name("base"), thinking="", chat=False, seed=0))

    def left_out(self, role: str = "base", n_problems: int = 32, n: int = 2,
                 max_new_tokens: int = 48) -> tuple[float, float]:
        """(mean, worst) probability that the model in a role, with all its tokens, gives to those
        that are not `kept`, at the tokens of n answers to each of some validation problems."""
        if not self.kept():
            return 0.0, 0.0
        whole = self._replace(tokens=0).load(role)
        prompts = [whole.ask(self.rules, p) for p in self.problems(n_problems, "validation")]
        mass = narrowing.left_out(whole, self.kept(), prompts, n, max_new_tokens)
        return float(mass.mean()), float(mass.max())

    def problems(self, n: int, split: str = "test", depth: int | None = None) -> list:
        """The first n problems of a split; depth: of the lab's chains, where not their own."""
        if self.of_the_lab:
            return lab.problems(self.profile, self.task, n, split, depth)
        return self.rules.problems(split, n, 0, self.generator)

    def way(self, role: str) -> list[tuple[int, Path]]:
        """Checkpoints on the way to "base" (after so many tokens) or "thinking" (after so many
        steps of RL), the last one included: (how far, folder), in order; [] for what the lab did
        not train. Only a first seed keeps more than the last."""
        if self.name(role) not in ("lab/base", "lab/thinking"):
            return []
        own = lab.config(self.profile)
        trained = self.name(role) == "lab/base"
        end = own["pretrain"]["tokens"] if trained else own["rl"]["steps"]
        which = self.name(role).removeprefix("lab/")
        steps = lab.steps(self.profile, self.task, which, self.seed)
        return [*((int(folder.name), folder) for folder in steps), (end, self.folder(role))]

    def load_checkpoint(self, folder: Path, exact: bool = False) -> Model:
        """The model of a folder of `way`."""
        place, dtype = device.pick()
        net = model.load(folder, torch.float32 if exact else dtype, place)
        return Model(str(folder), net, _lab_tokenizer(), frozenset(vocabulary.STOP), special=True)

    @property
    def rl_tokens(self) -> float | None:
        """Tokens that the RL behind the thinking model sampled, a seed; None where no record of it
        is here."""
        adapter = _parts(self.name("thinking"))[1]
        if adapter and Path(adapter, "manifest.json").is_file():
            stated = model.manifest(adapter)
            tokens = sum(point["tokens"] for point in stated.get("log", {}).get("curve", ()))
            return tokens * stated["recipe"]["problems"] * stated["recipe"]["samples"] or None
        if self.thinking != "lab/thinking":
            return None
        config = lab.config(self.profile)
        curve = results.read(config["profile"], f"train/{self.task}_rl")["extra"]["curve"]
        tokens = sum(point["tokens"] for point in curve) / len({point["seed"] for point in curve})
        return tokens * config["rl"]["problems"] * config["rl"]["samples"]

    @property
    def rl_curve(self) -> list[dict]:
        """The curve of the lab's RL behind the thinking model, of this seed; [] for any other."""
        if self.name("thinking") != "lab/thinking":
            return []
        whole = results.read(lab.config(self.profile)["profile"], f"train/{self.task}_rl")
        return [point for point in whole["extra"]["curve"] if point["seed"] == self.seed]

    def folder(self, role: str) -> Path | None:
        """The folder of a lab model, or of the adapter of any other, for the record; None for a
        model that has neither."""
        if adapter := _parts(self.name(role))[1]:
            return Path(adapter)
        which = self.name(role).removeprefix("lab/")
        if which == self.name(role) or not lab.trained(which):
            return None
        return lab.folder(self.profile, self.task, which, self.seed)


def pairs(profile: str, task_names: Sequence[str], seeds: Sequence[int],
          **names: object) -> dict[tuple[str, int], Pair]:
    """{(task, seed): Pair}; names: the fields of Pair from `base` on."""
    return {(task, seed): Pair(profile, task, seed, **names) for task in task_names
            for seed in seeds}


@lru_cache(maxsize=8)
def _kept(pair):
    """`Pair.kept`, once a process: the base is loaded for it."""
    return cards.first(lambda: _tokens(pair))


def _tokens(pair):
    base = pair._replace(tokens=0).load("base")
    if not 0 < pair.tokens < len(base.tokenizer):
        return ()
    problems = pair.rules.problems("train", narrowing.PROBLEMS, 0, pair.generator)
    return tuple(narrowing.choose(base, pair.rules, problems, pair.tokens, fingerprint(base.net)))


# --- loading --------------------------------------------------------------------------------------


def load(name: str, *, profile: str = "lab", task: str | None = None, seed: int = 0,
         exact: bool = False, chat: bool = False, accept_terms: bool = False,
         kept: Sequence[int] = ()) -> Model:
    """The model of a name, in eval mode on the library's device.

    profile, task, seed: of a lab model. exact: float32 instead of the device's own dtype. chat: ask
    it through its chat template. accept_terms: you accept the terms of weights that have some.
    kept: its ids of the only tokens that it is to have, in rising order; () for all.
    Over several cards a model is sharded (`cards`), or, if exact, on the CPU for who trains it.
    BadInput in one sentence for a name that is none, a revision that is not a commit, weights that
    are missing, damaged or not safetensors, a chat template that is not there.
    """
    plain, adapter = _parts(name)
    place, dtype = device.pick()
    if plain.startswith("lab/"):
        net, tokenizer = _bring_lab(plain, profile, task, seed, exact or bool(adapter))
    else:
        net, tokenizer = _bring(plain, accept_terms)
    if kept:
        net, tokenizer = narrowing.narrow(net, tokenizer, kept)
    if adapter:
        net = _adapted(net, adapter)
    if chat and not tokenizer.chat_template:
        raise BadInput(f"{name} is to be asked in a chat, but its tokenizer has no chat template; "
                       "allowed is a model that has one, or plain text.")
    several = cards.world() > 1
    net = net.to("cpu" if several else place, torch.float32 if exact else dtype).eval()
    if several and not exact:
        cards.shard(net.requires_grad_(False), kv.blocks(net))
    if tokenizer.get_vocab() == _lab_tokenizer().get_vocab():
        return Model(name, net, tokenizer, frozenset(vocabulary.STOP), special=True)
    stop = _ends(net, tokenizer) | (set() if chat else _line_ends(tokenizer))
    return Model(name, net, tokenizer, frozenset(stop), chat)


def check(names: Iterable[str], accept_terms: bool = False,
          seeds: Sequence[int] = (0,)) -> list[str]:
    """One line a model of what loading it would take, before anything runs, seeds: of names with
    "{seed}" in them; BadInput where it cannot be: an unknown name, a revision that is no commit,
    terms not accepted, too little memory.
    """
    lines = []
    for name in dict.fromkeys(name.replace("{seed}", str(s)) for name in names for s in seeds):
        plain, adapter = _parts(name)
        size = _size(plain, accept_terms)
        if size:
            device.check_memory(size, f"loading {plain}", device.pick()[0])
        if adapter:
            _check_adapter(adapter)
        known = {"lab": "a checkpoint of this repository", "toy": "random weights"}
        unknown = known.get(plain.partition("/")[0], "its size is known when it has been fetched")
        lines.append(f"{name}: " + (f"{size / 2**30:.1f} GiB of weights" if size else unknown))
    return lines


def untrained(trained: Model, seed: int) -> Model:
    """The same architecture with new weights, for controls."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 + seed)  # not the seed that a toy was made with
        net = AutoModelForCausalLM.from_config(trained.net.config)
    other = copy.copy(trained)
    other.net = net.to(trained.net.device, trained.net.dtype).eval()
    other.name = f"{trained.name}#untrained"
    return other


def fingerprint(net: PreTrainedModel) -> str:
    """16 hex digits that tell models apart: from config, every byte of every tensor, and every
    module's class and settings, such as an adapter's scale and whether it is active."""
    digest = hashlib.sha256(net.config.to_json_string().encode())
    digest.update(str(getattr(net.config, "_attn_implementation", None)).encode())
    for name, module in net.named_modules():
        settings = sorted((key, repr(x)) for key, x in vars(module).items()
                          if key != "training" and _plain(x))
        digest.update(f"{name} {type(module)} {settings}".encode())
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _plain(value):
    """Whether the text of a value says all of it."""
    if isinstance(value, dict):
        return all(map(_plain, (*value, *value.values())))
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _parts(name):
    """(model, adapter folder or "") of a name; a local folder may have the sign in its own."""
    if Path(name).is_dir() or ADAPTER not in name:
        return name, ""
    cuts = [i for i, sign in enumerate(name) if sign == ADAPTER]
    whole = [i for i in cuts if Path(name[:i]).is_dir()]
    cut = (whole or cuts)[0]
    return name[:cut], name[cut + 1:]


def _bring_lab(name, profile, task, seed, exact):
    """(net, tokenizer) of a lab model."""
    which = name.removeprefix("lab/")
    if which not in lab.MODELS and not lab.trained(which):
        raise BadInput(f"model is {name!r}; allowed of the lab are "
                       f"{', '.join(f'lab/{m}' for m in lab.MODELS)}.")
    return lab.load(profile, task, which, seed, exact), _lab_tokenizer()


def _adapted(net, folder):
    """`net` with the LoRA weights of a folder added in float32. BadInput where they are damaged or
    another model's: every weight of the adapter must have its place, and every place its weight."""
    _check_adapter(folder)
    try:
        wanted = set(load_file(Path(folder, "adapter_model.safetensors")))
        both = PeftModel.from_pretrained(net.float(), folder)
    except (RuntimeError, ValueError, SafetensorError) as error:
        said = str(error).splitlines()[0]
        raise BadInput(f"adapter {folder} does not fit the model: {said}") from error
    if wanted != set(get_peft_model_state_dict(both, save_embedding_layers=False)):
        raise BadInput(f"adapter {folder} is another model's: its weights and the places for them "
                       "differ; allowed is an adapter of this very architecture.")
    return both.merge_and_unload()


@lru_cache(maxsize=1)
def _lab_tokenizer():
    return vocabulary.tokenizer()


def _source(name, accept_terms=False):
    """(kind, what the loaders take): "toy", "packaged", "hub" or "folder". BadInput for none."""
    if name in ("toy", "toy/thinking"):
        return "toy", {}
    if not name:
        raise BadInput("a model has no name; base_model and thinking_model take one, such as "
                       "owner/name@commit or a folder.")
    if name in packaged.PACKAGED:
        known = packaged.PACKAGED[name]
        if known.terms and not accept_terms:
            raise BadInput(f"{name} comes under the {known.licence}: read them with "
                           f"packaged.terms({name!r}) and set accept_terms to true.")
        return "packaged", {}
    if Path(name).is_dir():
        return "folder", {}
    owner, _, revision = name.partition("@")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", owner) and not name.startswith("."):
        if not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise BadInput(f"model is {name!r}; a hub model is named with its full commit, as "
                           f"{owner}@ and 40 hex digits (python -m locksmith.loading commit "
                           f"{owner} shows the present one), and no local folder has this name.")
        return "hub", {"revision": revision}
    raise BadInput(f"model is {name!r}; allowed are lab/..., toy, {', '.join(packaged.PACKAGED)}, "
                   "a local folder, and hub models as owner/name@commit.")


def _check_adapter(folder):
    if not all(Path(folder, file).is_file() for file in
               ("adapter_config.json", "adapter_model.safetensors")):
        raise BadInput(f"{folder} is no LoRA adapter: it needs adapter_config.json and "
                       "adapter_model.safetensors.")


def _size(name, accept_terms):
    """Bytes that the weights of a model take, None where that is not known before it is fetched."""
    if name.startswith("lab/"):
        return None
    kind, _ = _source(name, accept_terms)
    if kind != "folder":
        return None
    files = list(Path(name).glob("*.safetensors"))
    if not (Path(name) / "config.json").is_file() or not files:
        raise BadInput(f"{name} is no model folder: it needs config.json and *.safetensors.")
    return sum(file.stat().st_size for file in files)


def _bring(name, accept_terms):
    """(net, tokenizer) of anything but a lab model, on the CPU."""
    kind, pinned = _source(name, accept_terms)
    if kind == "toy":
        return packaged.toy(seed=int(name != "toy"))
    if kind == "packaged":
        return packaged.load(name, accept_terms=accept_terms, device="cpu")
    if kind == "folder":
        _size(name, accept_terms)
    return packaged.whole(name, name.partition("@")[0] if kind == "hub" else name, **pinned)


def _ends(net, tokenizer):
    """Ids that end an answer by themselves: all that the configurations and the tokenizer state,
    added tokens with the name of a turn's end, and what the chat template writes behind one."""
    text = net.config.get_text_config()
    stated = [getattr(x, "eos_token_id", None)
              for x in (net.generation_config, net.config, text, tokenizer)]
    ends = {i for one in stated for i in (one if isinstance(one, (list, tuple)) else [one])}
    ends |= {i for token, i in tokenizer.get_added_vocab().items()
             if re.sub("[^a-z]", "", token.lower()) in _TURN_ENDS}
    ends |= chats.turn_end(tokenizer)
    return {i for i in ends if i is not None and 0 <= i < text.vocab_size}


def _line_ends(tokenizer):
    """Ids of all tokens with a line break in them, byte-fallback tokens included, and those that
    the tokenizer itself takes for one."""
    likely = {i for token, i in tokenizer.get_vocab().items()
              if "\n" in token or "Ċ" in token or token.upper() == "<0X0A>"}
    for text in ("\n", ".\n", "\n\n", "\r\n"):
        likely.update(tokenizer(text, add_special_tokens=False).input_ids)
    return {i for i in likely if "\n" in tokenizer.decode([i])}


def main(argv: list[str] | None = None) -> None:
    import argparse

    from huggingface_hub import HfApi

    parser = argparse.ArgumentParser(prog="python -m locksmith.loading",
                                     description="Shows the commit that a hub model stands at.")
    parser.add_argument("what", choices=["commit"])
    parser.add_argument("name", help="owner/name")
    name = parser.parse_args(argv).name
    try:
        print(f"{name}@{HfApi().model_info(name).sha}")
    except Exception as error:  # whatever keeps the hub from answering, in one sentence
        said = str(error).splitlines()[0]
        raise BadInput(f"the hub did not answer for {name}: {said}") from error


if __name__ == "__main__":
    from locksmith import errors

    errors.run(main)
