"""GSM8K: grade-school problems in words (Cobbe et al. 2021, arXiv 2110.14168; MIT licence).

The book ships none of it. Put train.jsonl and test.jsonl of openai/grade-school-math at commit
3101c7d5072418e28b9008a6636bde82a006892c (folder grade_school_math/data) into the folder that
LOCKSMITH_GSM8K names, by default gsm8k/ in the cache folder; their checksums are verified. Test
problems are those of test.jsonl; train.jsonl is split into train and validation by a hash.
"""

import json
import os
import random
import re
from functools import lru_cache
from pathlib import Path

from locksmith import words
from locksmith.errors import BadInput
from locksmith.packaged import cache_dir, sha256

GENERATOR = {}
OPENINGS = {}
SHA256 = {"train": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
          "test": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"}
SOURCE = ("github.com/openai/grade-school-math at 3101c7d5072418e28b9008a6636bde82a006892c, "
          "grade_school_math/data")


def folder() -> Path:
    """Where its two files are looked for."""
    return Path(os.environ.get("LOCKSMITH_GSM8K") or cache_dir() / "gsm8k")


def _read(path):
    """Problems of a file, in its order. BadInput for one that is missing or has another
    checksum."""
    if not path.is_file():
        raise BadInput(f"gsm8k needs {path}, which is not there; it comes from {SOURCE} (MIT), and "
                       "LOCKSMITH_GSM8K may name another folder.")
    if sha256(path) != SHA256[path.stem]:
        raise BadInput(f"{path} has SHA-256 {sha256(path)}; allowed is {SHA256[path.stem]}, the "
                       f"file of {SOURCE}.")
    return list(_parsed(path, SHA256[path.stem]))


@lru_cache(maxsize=4)
def _parsed(path, checksum):
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        solution, _, answer = row["answer"].partition("\n#### ")
        working = " ".join(re.sub(r"<<[^>]*>>", "", solution).split())
        problem = words.WordProblem("gsm8k", row["question"].strip(), answer.replace(",", ""),
                                    working)
        found.setdefault(problem.key, problem)
    return tuple(found.values())


def problems(split: str, n: int, seed: int, generator: dict) -> list[words.WordProblem]:
    """n problems of a split, in an order drawn from the seed."""
    if split not in words.SPLITS:
        raise BadInput(f"split is {split!r}; allowed are {', '.join(words.SPLITS)}.")
    tested = {p.key for p in _read(folder() / "test.jsonl")}
    if split == "test":
        found = _read(folder() / "test.jsonl")
    else:  # of words' three parts by hash, the last fifth validates
        found = [p for p in _read(folder() / "train.jsonl") if p.key not in tested
                 and (words.split_of(p.question) == "validation") == (split == "validation")]
    random.Random(f"gsm8k {split} {seed}").shuffle(found)
    if n > len(found):
        raise BadInput(f"n is {n}; allowed is at most {len(found)}, the {split} problems of gsm8k.")
    return found[:n]


def question(problem: words.WordProblem) -> str:
    return problem.question


def strategy(problem: words.WordProblem, text: str) -> bool:
    """Written out: as many equations as the reference solution has."""
    return words.written_out(text, max(1, len(words.prose.equations(problem.working))))


prompt = words.prompt
grade, steps, stated, guess = words.grade, words.steps, words.stated, words.guess_answer
review, critique, verdict = words.review, words.critique, words.verdict
working, judgement = words.working, words.judgement
turned, form, fact_prompt = words.turned, words.form, words.fact_prompt
