"""A model over few tokens: the rows of its embedding and head that a task's texts need.

Qwen2.5's 151,936 tokens are more than a quarter of the weights of its smallest model, Gemma 3's
262,144 are six tenths of its. On sums almost all of them have no probability to speak of, and cost
time and memory at every token. `narrow` keeps K rows and makes the tokenizer one of K tokens, so
that whoever holds the two sees a plain model with a small vocabulary. What is left out of its
probability is measured by `left_out`, not assumed.

Only BPE tokenizers are narrowed, those over bytes and those that fall back on bytes: with the
bytes of UTF-8 kept, any text stays a text. A token is kept with all that its merges make on the
way to it, so that a text whose tokens are all kept is encoded as before; another token is spelled
in the pieces that are kept.
"""

import hashlib
import json
import random
import string
from collections.abc import Iterable, Sequence
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import filelock
import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from locksmith import chats, engine, packaged, staging, tasks
from locksmith.errors import BadInput

if TYPE_CHECKING:
    from locksmith.loading import Model

PROBLEMS = 16  # training problems whose texts and answers choose the tokens
ANSWER_TOKENS = 48
BARE = 4  # answers to each bare question: the more freely it speaks, the more tokens it needs
# Bytes of UTF-8; the others never stand in a text.
_BYTES = [b for b in range(256) if b not in (0xC0, 0xC1) and b < 0xF5]
_NAMED = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id",
          "decoder_start_token_id")


# --- a smaller model ------------------------------------------------------------------------------

def narrow(net: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
           kept: Sequence[int]) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """`net`, changed in place to the tokens `kept` (K ids in rising order; the i-th becomes the id
    i), and its tokenizer over them. BadInput for a tokenizer that cannot be narrowed, as of
    `check`, and for ids that the model does not have."""
    check(tokenizer)
    embedding, head = net.get_input_embeddings(), net.get_output_embeddings()
    if not 0 <= kept[0] <= kept[-1] < min(embedding.weight.shape[0], len(tokenizer)):
        raise BadInput(f"kept ids are from {kept[0]} to {kept[-1]}; allowed are those of a "
                       f"vocabulary of {min(embedding.weight.shape[0], len(tokenizer))}.")
    new, tied = {old: i for i, old in enumerate(kept)}, head.weight is embedding.weight
    embedding.weight = _rows(embedding.weight, kept)
    head.weight = embedding.weight if tied else _rows(head.weight, kept)
    if head.bias is not None:
        head.bias = _rows(head.bias, kept)
    embedding.num_embeddings = head.out_features = len(kept)
    embedding.padding_idx = new.get(embedding.padding_idx)
    for config in {id(x): x for x in (net.config, net.config.get_text_config(),
                                      net.generation_config)}.values():
        for name in _NAMED:
            if (old := getattr(config, name, None)) is not None:
                setattr(config, name, [new[i] for i in old if i in new]
                        if isinstance(old, list) else new.get(old))
    for holder in (net.config, net.config.get_text_config(), net, net.base_model):
        if hasattr(holder, "vocab_size"):
            holder.vocab_size = len(kept)
    return net, _narrowed(tokenizer, new)


def _rows(weight, kept):
    return nn.Parameter(weight.detach()[list(kept)], weight.requires_grad)


def check(tokenizer: PreTrainedTokenizerBase) -> None:
    """BadInput for a tokenizer that is not BPE over bytes, or with bytes to fall back on."""
    written = _written(tokenizer)
    bpe = written["model"]
    if (bpe["type"] != "BPE" or bpe["continuing_subword_prefix"] or bpe["end_of_word_suffix"]
            or not set(_bytes(bpe)) <= set(bpe["vocab"])):
        raise BadInput(f"tokens is above 0 for a tokenizer of kind {bpe['type']}; allowed with "
                       "others than BPE tokenizers that have all bytes is 0, for all tokens.")


def _written(tokenizer):
    """A tokenizer as its JSON says it."""
    return json.loads(tokenizer.backend_tokenizer.to_str())


def _bytes(bpe):
    """The tokens of single bytes."""
    if bpe["byte_fallback"]:
        return [f"<0x{b:02X}>" for b in _BYTES]
    written = bytes_to_unicode()
    return [written[b] for b in _BYTES]


def _narrowed(tokenizer, new):
    """The tokenizer with the ids `new` (old -> new) alone."""
    written = _written(tokenizer)
    bpe = written["model"]
    bpe["vocab"] = vocab = {token: new[i] for token, i in bpe["vocab"].items() if i in new}
    bpe["merges"] = [pair for pair in bpe["merges"] if {*pair, "".join(pair)} <= vocab.keys()]
    written["added_tokens"] = [x | {"id": new[x["id"]]} for x in written["added_tokens"]
                               if x["id"] in new]
    for one in ((written["post_processor"] or {}).get("special_tokens") or {}).values():
        one["ids"] = [new[i] for i in one["ids"]]
    own = {name: token for name, token in tokenizer.special_tokens_map.items()
           if isinstance(token, str) and tokenizer.convert_tokens_to_ids(token) in new}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(written)),
                                   chat_template=tokenizer.chat_template, **own)


# --- which tokens ---------------------------------------------------------------------------------

def choose(model: "Model", task: ModuleType, problems: Sequence, tokens: int,
           key: str) -> list[int]:
    """`tokens` ids of a model that is not narrowed, in rising order: special tokens, turns' ends,
    bytes, plain characters, all tokens of the task's texts about `problems` (never test problems),
    then the likeliest under the model at the tokens of its own answers and critiques, each with
    what its merges need.

    Kept in the cache folder under the weights' hash `key` and that of this code. BadInput where
    `tokens` are too few.
    """
    mark = [key, tasks.name_of(task), tokens, [p.key for p in problems], ANSWER_TOKENS,
            str(model.net.dtype), model.chat, packaged.sha256(__file__)]
    place = packaged.cache_dir() / "tokens" / (
        hashlib.sha256(json.dumps(mark).encode()).hexdigest()[:32] + ".json")
    place.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(place.with_suffix(".lock")):
        if not place.is_file():
            staging.put(place, json.dumps(_chosen(model, task, problems, tokens)).encode())
        return json.loads(place.read_text())


def _chosen(model, task, problems, tokens):
    """`choose`, where it was not done before."""
    check(model.tokenizer)
    kin, needed = _Kin(model.tokenizer), set(model.tokenizer.all_special_ids)
    rows = model.net.get_input_embeddings().weight.shape[0]  # a tokenizer may have more tokens
    size = sum(i < rows for i in kin.names)
    needed |= {i for x in (model.net.config, model.net.generation_config) for name in _NAMED
               for i in _listed(getattr(x, name, None)) if i in kin.names}
    needed |= chats.turn_end(model.tokenizer)
    likely, texts = _likely(model, task, problems)
    for text in (*texts, *string.printable):
        needed.update(model.tokenizer(text).input_ids)
    needed |= {kin.vocab[name] for name in _bytes(kin.bpe)}
    kept = {i for i in set().union(*map(kin.of, needed)) if i < rows}
    if len(kept) > tokens:
        raise BadInput(f"tokens is {tokens} for {model.name} on {tasks.name_of(task)}; allowed is "
                       f"0 for all, or from {len(kept)}, which its texts need.")
    for i in likely.argsort(descending=True, stable=True).tolist():
        if i in kin.names and len(kept | kin.of(i)) <= tokens:
            kept |= kin.of(i)
        if len(kept) == min(tokens, size):
            break
    return sorted(kept)


def _listed(value):
    return value if isinstance(value, list) else [] if value is None else [value]


class _Kin:
    """Tokens and what their merges need: names, id -> token; vocab, token -> id."""

    def __init__(self, tokenizer):
        self.bpe, self.vocab = _written(tokenizer)["model"], tokenizer.get_vocab()
        self.names = {i: token for token, i in self.vocab.items()}
        self.ranks = {tuple(pair): rank for rank, pair in enumerate(self.bpe["merges"])}
        self.of = cache(self.of)

    def of(self, i: int) -> set[int]:
        """An id and those of all that its token is made of on the way to it."""
        parts = list(self.names[i])
        if not set(parts) <= self.vocab.keys():  # an added token, or a byte's name
            return {i}
        found = {i, *(self.vocab[x] for x in parts)}
        while True:
            rank, at = min(((self.ranks[pair], at) for at, pair in enumerate(zip(parts, parts[1:]))
                            if pair in self.ranks), default=(None, 0))
            if rank is None:
                return found
            parts[at:at + 2] = [parts[at] + parts[at + 1]]
            found.add(self.vocab[parts[at]])


def _likely(model, task, problems):
    """((V,) float64: mean probability of each id where the model answers, criticises and, asked the
    bare question, says what it likes; the task's texts about the problems)."""
    rng, found, chat = random.Random("texts"), _Mean(), bool(model.tokenizer.chat_template)
    texts = [word for openings in task.OPENINGS.values() for words in openings for word in words]
    texts += [task.fact_prompt(a, op, b) for a in range(10) for op in "+-*" for b in range(10)]
    answers = _sampled(model, [model.ask(task, problem) for problem in problems], found)
    reviews, bare = [], []
    for problem, ids in zip(problems, answers):
        answer, question = model.decode(ids), task.question(problem)
        turns = [{"role": "user", "content": question}]
        texts += [task.prompt(problem), chats.text(model.tokenizer, turns) if chat else question]
        guess = task.guess(problem, rng, problems)
        critique = task.critique(problem, guess)
        texts += [task.review(problem, guess) + critique, task.turned(critique),
                  task.form(critique, rng)]
        reviews.append(model.begin(task.review(problem, answer)))
        bare.append(model.converse(turns) if chat else model.begin(question))
    _sampled(model, reviews, found)
    _sampled(model, bare, found, BARE)
    return found.total / found.rows, texts


class _Mean:
    """A logits processor that adds up the probabilities that it sees: total (V,) float64, rows."""
    total, rows = 0.0, 0

    def __call__(self, logits: Float[Tensor, "rows vocabulary"],
                 moment: Any) -> Float[Tensor, "rows vocabulary"]:
        alive = logits[~moment.done]
        self.total = self.total + alive.float().softmax(-1).sum(0).double().cpu()
        self.rows += len(alive)
        return logits


def _sampled(model, prompts, processor, n=1, max_new_tokens=ANSWER_TOKENS):
    """Continuations of prompts while a processor looks on."""
    return engine.sample(model.net, prompts, n, stop=model.stop, max_new_tokens=max_new_tokens,
                         control=engine.Control(logits_processor=processor)).ids()


# --- what is left out -----------------------------------------------------------------------------

def left_out(model: "Model", kept: Iterable[int], prompts: list[list[int]], n: int,
             max_new_tokens: int) -> Float[Tensor, " positions"]:
    """The probability that a model that is not narrowed gives to ids other than `kept`, at every
    token of n answers of its own to each prompt."""
    outside = torch.ones(model.net.config.get_text_config().vocab_size, dtype=torch.bool)
    outside[list(kept)] = False
    masses = []

    def look(logits: Float[Tensor, "rows vocabulary"], moment: Any) -> Tensor:
        p = logits[~moment.done].float().softmax(-1)
        masses.append(p[:, outside.to(logits.device)].sum(-1).cpu())
        return logits
    _sampled(model, prompts, look, n, max_new_tokens)
    return torch.cat(masses)
