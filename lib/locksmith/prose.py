"""Answers in words: sentences, equations, and the last number that a text gives as its answer.

A step of an answer in words is a sentence or an equation. Sentences end after . ! ? ; or a line
break, with decimals, initials and factorials protected, as Venhoff et al. do it (arXiv 2510.07364,
the authors' code); a sentence that holds several equations is cut after each of them. (They drop
sentences of fewer than three words. We keep equations, which often have no word at all.)
"""

import ast
import functools
import operator
import re
import unicodedata
from bisect import bisect_left
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from locksmith.tasks import Step

NUMBER = r"-?[$£€]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:\s?/\s?[0-9]+)?"
FEWEST_WORDS = 3  # of a sentence without an equation
# Calculations. Every repetition is bounded, so that no text takes more than linear time, and a side
# gives nothing back, (?>...): what goes on in a way that is not read (2^3, 1e3) is none, not cut.
_SIGN = "[-+*/×÷x·⋅]"
_PLAIN = (r"[$£€]{0,2}(?:[0-9]{1,40}(?:,[0-9]{3}){0,9}(?:\.[0-9]{1,40})?|\.[0-9]{1,40})"
          r"(?![0-9]|[.,][0-9])%?")
_SIDE = (rf"(?>\({{0,9}}-?{_PLAIN}\){{0,9}}"
         rf"(?: ?{_SIGN} ?\({{0,9}}-?{_PLAIN}\){{0,9}}){{0,60}})")
# What stands before is not part of the calculation: no factor or term that is not read (`2(3 + 4)`,
# `√9 + 1`, `20 boxes * 3`), though it may be the mark of a list or of emphasis (`- 3 + 4 = 7`).
_BEFORE = (r"(?<![\w.^√$£€)\]}%!/×÷+·⋅])(?<![/×÷+^·⋅] )(?<![\w)\]}%!][-*])(?<![\w)\]}%!] [-*x] )"
           r"(?<![\w)]\*\*)(?<!\*\* )(?<!\\times )(?<!\\cdot )(?<!\\div )(?<![0-9]:)")
_AFTER = (r"(?![(^√]| \^|e[-+0-9]|:[0-9]| ?[*/×÷+·⋅]{1,2} ?[\w(√\\]"
          r"| ?\\(?:times|cdot|div|frac|sqrt))")
_EQUATIONS = re.compile(rf"{_BEFORE}{_SIDE}(?: ?= ?{_SIDE})+{_AFTER}")
_BETWEEN = re.compile("[^= ](?:[^=]*[^= ])?")
_CALCULATION = re.compile(rf"[0-9%]\)* ?{_SIGN}")
_FIRST = re.compile(rf"-?{_PLAIN}")
_FRACTION = re.compile(r"-?[0-9]+/[0-9]+")
_DATE = re.compile(r"[0-9]{1,2}/[0-9]{1,2}/[0-9]{4}")
_CUT = re.compile(r"[,)\s]*")
_ONE_WRITING = str.maketrans("×÷x·⋅", "*/***")
# Signs that stand for one of ASCII. An em dash is no minus.
_SIGNS = str.maketrans({
    **dict.fromkeys("‐‑‒–−⁃﹣－➖˗", "-"), **dict.fromkeys("＋﹢➕", "+"),
    **dict.fromkeys("⁄∕／", "/"),
    **dict.fromkeys("✕✖∗∙＊", "×"), **dict.fromkeys("％٪﹪", "%"), **dict.fromkeys("，٬", ","),
    **dict.fromkeys("．٫", "."), "＝": "=", "＄": "$", "（": "(", "）": ")", "：": ":",
    **dict.fromkeys("\u00a0\u2007\u2009\u202f\u200b\u200e\u200f\u2060\u3000\ufeff\t", " ")})
VULGAR = {chr(i): Fraction(unicodedata.normalize("NFKC", chr(i)).replace("⁄", "/"))
          for i in (*range(0xBC, 0xBF), *range(0x2150, 0x215F), 0x2189)}  # ½ and the like
_END = re.compile(r"[.!?;](?=\s|$)|\n")
_PROTECTED = re.compile(r"(?<![A-Za-z])[A-Z]\.|[A-Za-z0-9]!(?=\s*[-+*/=])")
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
              ast.Div: operator.truediv}


class Equation(NamedTuple):
    """A written equation: text[start:end]; whether its two sides are equal."""
    start: int
    end: int
    holds: bool


def one_writing(text: str) -> str:
    """The text with decimal digits, minus signs and other signs in their ASCII writing; each
    stays in its place."""
    text = text.translate(_SIGNS)
    return text if text.isascii() else "".join(
        str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)


def equations(text: str) -> list[Equation]:
    """The equations in a text whose left side is a calculation, in order; what is no arithmetic is
    none.

    `a = b = c` is two equations, of which the second starts where the first ends. A run-on such as
    5 + 7 = 12 - 3 = 9 says 5 + 7 = 12 and 12 - 3 = 9, as people write it.
    """
    found, text = [], one_writing(text)
    for match in _EQUATIONS.finditer(text):
        sides, free = _sides(match), 0
        for i, ((start, end), (other, stop)) in enumerate(zip(sides, sides[1:])):
            left, right = text[start:end], text[other:stop]
            holds, first = _equal(left, right), _FIRST.match(right)
            alone = i + 2 == len(sides) and _FRACTION.fullmatch(right)
            if not holds and first and not alone and _equal(left, first[0]):
                holds, stop = True, other + first.end()
            if holds is not None and _CALCULATION.search(left):
                found.append(Equation(max(start, free), stop, holds))
                free = stop + (text[stop:stop + 1] == " ")
    return found


def _sides(match):
    """(start, end) of the sides of a match of _EQUATIONS, without brackets around it all."""
    sides = [list(side.span()) for side in _BETWEEN.finditer(match.string, *match.span())]
    first, last = (match.string[start:end] for start, end in (sides[0], sides[-1]))
    outer = max(0, first.count("(") - first.count(")"))
    sides[0][0] += outer * first.startswith("(" * outer)
    outer = max(0, last.count(")") - last.count("("))
    sides[-1][1] -= outer * last.endswith(")" * outer)
    return sides


def _equal(left, right):
    """Whether two sides are equal, or None where one has no value. A percentage is read as its
    number too: 20% * 50 = 10, 3 / 4 * 100 = 75%."""
    readings = ("/100", "") if "%" in left + right else ("/100",)
    values = [(value(left, percent), value(right, percent)) for percent in readings]
    if _DATE.search(left + " " + right) or None in values[0]:
        return None
    return any(one == other for one, other in values)


@functools.lru_cache(maxsize=4096)  # answers repeat their own steps, and each other's
def value(text: str, percent: str = "/100") -> Fraction | None:
    """The exact value of a calculation with + - * / and brackets, or None where it has none.
    percent: what stands for a percent sign."""
    plain = re.sub(r"[,$£€]", "", text).translate(_ONE_WRITING)
    plain = re.sub(r"(?<![0-9.])0+(?=[0-9])", "", plain)
    plain = re.sub(r"([0-9.]+)%", rf"(\1{percent})", plain)
    try:
        return _evaluate(ast.parse(plain.strip(), mode="eval").body, plain.strip())
    except (SyntaxError, RecursionError, MemoryError):  # brackets that do not match, or too many
        return None


def written(value: Fraction) -> str:
    """A value as a whole number or a finite decimal where it is one, else as a fraction."""
    below = value.denominator
    places = next((p for p in range(below.bit_length()) if 10**p % below == 0), None)
    if places is None:
        return str(value)
    return format(Decimal(f"{value.numerator * 10**places // below}E-{places}"), "f")


def _evaluate(node, source):
    if isinstance(node, ast.Constant):  # as it is written: no float
        return Fraction(source[node.col_offset:node.end_col_offset])
    if isinstance(node, ast.UnaryOp):
        inner = _evaluate(node.operand, source)
        return -inner if inner is not None and isinstance(node.op, ast.USub) else inner
    if not isinstance(node, ast.BinOp) or type(node.op) not in _OPERATORS:
        return None
    left, right = _evaluate(node.left, source), _evaluate(node.right, source)
    if left is None or right is None or (isinstance(node.op, ast.Div) and right == 0):
        return None
    return _OPERATORS[type(node.op)](left, right)


def steps(text: str) -> list[Step]:
    """The steps of an answer: equations and sentences, without the spaces around them. Their kind
    is not known."""
    safe = _PROTECTED.sub(lambda match: "_" * len(match[0]), text)
    written = equations(text)
    ends = [match.end() for match in _END.finditer(safe)]
    cuts = set(ends)
    for one, after in zip(written, written[1:]):
        i = bisect_left(ends, one.end)
        if i == len(ends) or ends[i] > after.start:
            cuts.add(_CUT.match(text, one.end).end())
    edges, out = [0, *sorted(cuts - {0, len(text)}), len(text)], []
    starts = [one.start for one in written]
    for start, end in zip(edges, edges[1:]):
        piece = text[start:end]
        start += len(piece) - len(piece.lstrip())
        i = bisect_left(starts, start)
        holds = i < len(written) and written[i].end <= end
        if holds or len(piece.split()) >= FEWEST_WORDS:
            out.append(Step(start, start + len(piece.strip()), None))
    return out


def ends(token: str) -> bool:
    """Whether a text that stops with this token stops at the end of a sentence or line."""
    return token.endswith("\n") or token.rstrip(" ").endswith((".", "!", "?", ";"))


def first_line(text: str) -> str:
    """The line that a plain few-shot answer consists of."""
    return text.strip().split("\n")[0]
