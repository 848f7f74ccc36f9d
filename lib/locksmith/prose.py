"""Answers in words: sentences, equations, and the last number that a text gives as its answer.

A step of an answer in words is a sentence or an equation. Sentences end after . ! ? ; or a line
break, with decimals, initials and factorials protected, as Venhoff et al. do it (arXiv 2510.07364,
the authors' code); a sentence that holds several equations is cut after each of them. (They drop
sentences of fewer than three words. We keep equations, which often have no word at all.)
"""

import ast
import operator
import re
from fractions import Fraction
from typing import NamedTuple

from locksmith.tasks import Step

NUMBER = r"-?[$£€]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:\s?/\s?[0-9]+)?"
FEWEST_WORDS = 3  # of a sentence without an equation
_PLAIN = r"[$£€]?[0-9][0-9,]*(?:\.[0-9]+)?%?"
_SIDE = rf"\(*-?{_PLAIN}\)*(?: ?(?:[-+*/×÷x]) ?\(*-?{_PLAIN}\)*)+"
_EQUATION = re.compile(rf"({_SIDE}) ?= ?(-?{_PLAIN})(?![0-9.,]*[0-9])")
_END = re.compile(r"[.!?;](?=\s|$)|\n")
_PROTECTED = re.compile(r"(?<![A-Za-z])[A-Z]\.|[A-Za-z0-9]!(?=\s*[-+*/=])")
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
              ast.Div: operator.truediv}


class Equation(NamedTuple):
    """A written equation: text[start:end]; whether its two sides are equal."""
    start: int
    end: int
    holds: bool


def equations(text: str) -> list[Equation]:
    """The equations `calculation = number` in a text, in order; what is no arithmetic is none."""
    found = []
    for match in _EQUATION.finditer(text):
        value = _value(match[1])
        if value is not None:
            found.append(Equation(match.start(), match.end(), value == _number(match[2])))
    return found


def _number(text):
    return Fraction(re.sub(r"[,$£€%]", "", text))


def _value(text):
    """The exact value of a calculation, or None where it has none."""
    plain = re.sub(r"[,$£€%]", "", text).translate(str.maketrans("×÷x", "*/*"))
    try:
        tree = ast.parse(re.sub(r"\b0+(?=[0-9])", "", plain.strip()), mode="eval").body
    except SyntaxError:  # brackets that do not match
        return None
    return _evaluate(tree)


def _evaluate(node):
    if isinstance(node, ast.Constant):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp):
        inner = _evaluate(node.operand)
        return None if inner is None else -inner
    if not isinstance(node, ast.BinOp):
        return None
    left, right = _evaluate(node.left), _evaluate(node.right)
    if left is None or right is None or (isinstance(node.op, ast.Div) and right == 0):
        return None
    return _OPERATORS[type(node.op)](left, right)


def steps(text: str) -> list[Step]:
    """The steps of an answer: equations and sentences, without the spaces around them. Their kind
    is not known."""
    safe = _PROTECTED.sub(lambda match: "_" * len(match[0]), text)
    written = equations(text)
    cuts = {match.end() for match in _END.finditer(safe)}
    for one, after in zip(written, written[1:]):
        if not any(one.end <= cut <= after.start for cut in cuts):
            cuts.add(one.end + len(re.match(r"[,)\s]*", text[one.end:])[0]))
    edges, out = [0, *sorted(cuts - {0, len(text)}), len(text)], []
    for start, end in zip(edges, edges[1:]):
        piece = text[start:end]
        start += len(piece) - len(piece.lstrip())
        holds = any(start <= one.start and one.end <= end for one in written)
        if holds or len(piece.split()) >= FEWEST_WORDS:
            out.append(Step(start, start + len(piece.strip()), None))
    return out


def ends(token: str) -> bool:
    """Whether a text that stops with this token stops at the end of a sentence or line."""
    return token.endswith("\n") or token.rstrip(" ").endswith((".", "!", "?", ";"))


def first_line(text: str) -> str:
    """The line that a plain few-shot answer consists of."""
    return text.strip().split("\n")[0]
