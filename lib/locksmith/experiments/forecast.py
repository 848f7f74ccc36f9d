"""Pairs of open weights for the profile `paper`, with what their chapters take.

    python -m locksmith.experiments.forecast      # the table of bring.md

Commits are those that public code pins; whether they are the hub's present ones was not checked.
Memory and time are forecasts from sizes, not measurements: a chapter's first cells measure speed.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from locksmith import params
from locksmith.experiments import steering_arms

ROWS = 384  # answers that `engine.sample` draws side by side
PROMPT = 200  # tokens
LOGITS = 16 * 152_000 * ROWS / 1e9  # GB: four float32 copies over a vocabulary like Qwen's
SUSTAINED = 0.3  # share of a card's bandwidth and arithmetic that sampling keeps up
LAUNCH = 1e-3  # seconds that a block takes at a token, however small: its kernels start one by one
# GB, GB a second and TFLOP a second, from NVIDIA's data sheets; a T4 has no bf16: float32's rate.
CARDS = {"T4": (16, 320, 8.1), "A100": (80, 2039, 312), "H100": (80, 3350, 989)}
# Dollars for a card and hour: Amazon's p5 on demand, as costnimbus.com listed it in March 2026; it
# names others from 1.5 to 7.
DOLLARS = 3.9


@dataclass(frozen=True)
class Shape:
    """Billions of parameters, blocks, and bytes of bf16 keys and values that a token leaves."""
    billions: float
    blocks: int
    cache: int


_05B, _15B = Shape(0.49, 24, 4 * 24 * 2 * 64), Shape(1.54, 28, 4 * 28 * 2 * 128)
_7B, _8B = Shape(7.62, 28, 4 * 28 * 4 * 128), Shape(8.03, 32, 4 * 32 * 8 * 128)
# Llama 3's, arXiv 2407.21783, table 3, with keys and values of 8 heads of 128 dimensions.
SHAPE_70B = Shape(70.6, 80, 4 * 80 * 8 * 128)
PAIRS = (
    ("Qwen/Qwen2.5-0.5B@060db6499f32faf8b98477b0a26969ef7d8b9987",
     "Open-Reasoner-Zero/Open-Reasoner-Zero-0.5B", _05B),
    ("Qwen/Qwen2.5-1.5B@8faed761d45a263340a0528343f099c05c9a4323",
     "Open-Reasoner-Zero/Open-Reasoner-Zero-1.5B", _15B),
    ("Qwen/Qwen2.5-Math-1.5B@4a83ca6e4526a4f2da3aa259ec36c259f66b2ab2",
     "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B@ad9f0ae0864d7fbcd1cd905e3c6c5b069cc8b562", _15B),
    ("Qwen/Qwen2.5-7B@d149729398750b98c0af14eb82c78cfe92750796",
     "hkust-nlp/Qwen-2.5-7B-SimpleRL-Zoo@d630142f26acc8adf8051298cba8023232169d56", _7B),
    ("meta-llama/Llama-3.1-8B@d04e592bb4f6aa9cfee91e2e20afa771667e1d4b",
     "deepseek-ai/DeepSeek-R1-Distill-Llama-8B@6a6f4aa4197940add57724a7707d069478df56b1", _8B),
)


def answers(chapter: str, profile: dict) -> int:
    """About how many answers chapter "ch01" or "ch02" draws in all under a profile."""
    own = profile["chapters"][chapter]
    runs = len(profile["seeds"]) * len(own["tasks"])
    if chapter == "ch02":
        return 2 * runs * own["n_problems"] * own["n_samples"]
    tried = len(own["layers"]) * len(own["strengths"]) + len(own["thresholds"])
    arms = len(steering_arms.ARMS) * len(own["strengths"])
    return runs * (own["n_traces"] + tried * own["n_validation"]
                    + arms * own["n_problems"] * own["n_samples"])


def memory(shape: Shape, chapter: str, new_tokens: int) -> float:
    """GB: weights of one model in float32 or of two in bf16, and the keys and values of ROWS
    answers, in chapter 1 for both models."""
    caches = LOGITS + ROWS * (PROMPT + new_tokens) * shape.cache / 1e9
    return 4 * shape.billions + caches * (2 if chapter == "ch01" else 1)


def hours(shape: Shape, card: str, n_answers: int, new_tokens: int, cards: int = 1) -> float:
    """Hours for that many answers, each as long as allowed, ROWS side by side. A step reads the
    weights in bf16 and half of the full cache, and takes two FLOP a parameter and row; both are
    shared by all cards, and what these tell each other is not counted."""
    bandwidth, flops = (cards * rate for rate in CARDS[card][1:])
    read = 2 * shape.billions + ROWS * (PROMPT + new_tokens / 2) * shape.cache / 1e9
    step = max(read / (SUSTAINED * bandwidth),
               2 * shape.billions * ROWS / (SUSTAINED * flops * 1e3), LAUNCH * shape.blocks)
    return math.ceil(n_answers / ROWS) * new_tokens * step / 3600


class Need(NamedTuple):
    """gigabytes: of a model's weights in bf16 and the keys and values of ROWS answers; cards that
    hold them; hours on those; dollars for all."""
    gigabytes: float
    cards: int
    hours: float
    dollars: float


def need(shape: Shape = SHAPE_70B, problems: int = 500, samples: int = 1024,
         new_tokens: int = 1000, card: str = "H100", dollars: float = DOLLARS) -> Need:
    """What pass@k at scale needs, on paper: `samples` answers to each problem by one model, of as
    many tokens as profile `paper` allows at most.

    A model's copy is on one card or on 2, 4, 8, ... that split it, of which nine tenths are filled.
    This engine does not split one: where more than one card is needed, that is for another.
    dollars: for a card and an hour. More copies take as much time less, and as much money.
    """
    gigabytes = 2 * shape.billions + LOGITS + ROWS * (PROMPT + new_tokens) * shape.cache / 1e9
    cards = 2 ** max(math.ceil(math.log2(gigabytes / (0.9 * CARDS[card][0]))), 0)
    long = hours(shape, card, problems * samples, new_tokens, cards)
    return Need(gigabytes, cards, long, cards * long * dollars)


def table() -> str:
    """The table of bring.md, as Markdown."""
    profile = params.load("paper")
    lines = ["| base | thinking model | GB, ch. 2; 1 | " + " | ".join(
        f"hours on {card}" for card in CARDS) + " |", "|---|---|---|" + "---|" * len(CARDS)]
    for base, thinking, shape in PAIRS:
        tokens = {x: profile["chapters"][x]["max_new_tokens"] for x in ("ch02", "ch01")}
        need = {x: memory(shape, x, n) for x, n in tokens.items()}
        cells = ["; ".join(f"{x:.0f}" for x in need.values())]
        for card, (room, *_) in CARDS.items():
            cells.append("; ".join(
                f"{hours(shape, card, answers(x, profile), n):.0f}" if need[x] <= 0.9 * room
                else "too big" for x, n in tokens.items()))
        names = [f"`{x}`" if "@" in x else f"`{x}`, commit not known" for x in (base, thinking)]
        lines.append("| " + " | ".join([*names, *cells]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
