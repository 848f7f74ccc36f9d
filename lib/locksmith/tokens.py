"""The lab's language: 148 words, one token each.

A trace is a list of words, so a model's output can be read, graded and labelled without any
detokenisation rule. Every behaviour (try, check, wait, conclude) has four openings of one to three
words: it is a category and not a token. The first word of an opening occurs nowhere else, which
makes the split of a trace into steps unambiguous.
"""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>")
LARGEST = 99
NUMBERS = tuple(str(i) for i in range(LARGEST + 1))
OPERATORS = ("+", "-", "*")
OPENINGS = {
    "try": (("try",), ("maybe",), ("let", "us", "see"), ("what", "about")),
    "check": (("check",), ("verify",), ("is", "it", "good"), ("test", "that")),
    "wait": (("wait",), ("hmm",), ("go", "back"), ("not", "this", "way")),
    "conclude": (("so",), ("thus",), ("the", "answer"), ("i", "would", "say")),
}
STRUCTURE = ("=", ":", ";", ".", "and", "make", "from", "find", "yes", "no",
             "next", "review", "right", "wrong")
VOCABULARY = (*SPECIAL, *NUMBERS, *OPERATORS, *STRUCTURE,
              *(word for openings in OPENINGS.values() for opening in openings for word in opening))
IDS = {word: i for i, word in enumerate(VOCABULARY)}
PAD, BOS, EOS = (IDS[word] for word in SPECIAL)
# A trace of one author ends with the document or where the next author takes over.
STOP = (EOS, IDS["next"])
BEHAVIOUR = {opening[0]: behaviour for behaviour, openings in OPENINGS.items() for opening in openings}
# Behaviours that no pre-training document holds, written with words of the other family's or the
# own prompt: only the traces that teach a distilled model have them.
TAUGHT = {"from": "measure", "find": "inverse"}
_LENGTH = {opening[0]: len(opening) for openings in OPENINGS.values() for opening in openings}

assert len(IDS) == len(VOCABULARY), "a word may stand in the vocabulary once only"


def encode(words):
    """Token ids (list of int) of a list of words. Raises KeyError on a word outside the lab."""
    return [IDS[word] for word in words]


def decode(ids):
    """Words (list of str) of token ids; padding is left out."""
    return [VOCABULARY[i] for i in ids if i != PAD]


def tokenizer():
    """The same vocabulary as a `PreTrainedTokenizerFast`, for `AutoTokenizer` users."""
    core = Tokenizer(models.WordLevel(dict(IDS), unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<bos>",
                                   eos_token="<eos>", clean_up_tokenization_spaces=False)


def opening_length(words, i):
    """Number of words of the opening that starts at `i`, 0 if none does."""
    return _LENGTH.get(words[i], 0)


def steps(words):
    """Splits a trace into (behaviour, content) pairs; content are the words after the opening.

    Words before the first opening become a step of behaviour None: a trace that is not in the
    grammar is kept, not repaired. Reading stops at `<eos>` or `next`.
    """
    out, i = [], 0
    while i < len(words) and words[i] not in ("<eos>", "next"):
        behaviour = BEHAVIOUR.get(words[i]) or TAUGHT.get(words[i])
        if behaviour:
            out.append((behaviour, []))
            i += _LENGTH.get(words[i], 1)
        else:
            if not out:
                out.append((None, []))
            out[-1][1].append(words[i])
            i += 1
    return out


def labels(words):
    """Per word: the behaviour if it belongs to an opening (a decision), otherwise "execute"."""
    out = ["execute"] * len(words)
    for i, word in enumerate(words):
        for j in range(i, min(i + _LENGTH.get(word, 0), len(words))):
            out[j] = BEHAVIOUR[word]
    return out
