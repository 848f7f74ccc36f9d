"""The lab's language: 148 words, one token each.

A trace is a list of words, so a model's output can be read, graded and labelled without any
detokenisation rule (`grammar` says how it splits into steps).
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from locksmith.grammar import END, OPENINGS

SPECIAL = ("<pad>", "<bos>", "<eos>")
LARGEST = 99
NUMBERS = tuple(str(i) for i in range(LARGEST + 1))
OPERATORS = ("+", "-", "*")
STRUCTURE = ("=", ":", ";", ".", "and", "make", "from", "find", "yes", "no",
             "next", "review", "right", "wrong")
VOCABULARY = (*SPECIAL, *NUMBERS, *OPERATORS, *STRUCTURE,
              *(word for openings in OPENINGS.values() for opening in openings for word in opening))
IDS = {word: i for i, word in enumerate(VOCABULARY)}
PAD, BOS, EOS = (IDS[word] for word in SPECIAL)
STOP = tuple(IDS[word] for word in END)

assert len(IDS) == len(VOCABULARY), "a word may stand in the vocabulary once only"


def encode(words: Iterable[str]) -> list[int]:
    """Token ids (list of int) of a list of words. Raises KeyError on a word outside the lab."""
    return [IDS[word] for word in words]


def decode(ids: Iterable[int]) -> list[str]:
    """Words (list of str) of token ids; padding is left out."""
    return [VOCABULARY[i] for i in ids if i != PAD]


def tokenizer() -> PreTrainedTokenizerFast:
    """The same vocabulary as a `PreTrainedTokenizerFast`, for `AutoTokenizer` users."""
    core = Tokenizer(models.WordLevel(dict(IDS), unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<bos>",
                                   eos_token="<eos>", clean_up_tokenization_spaces=False)
