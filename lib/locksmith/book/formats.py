"""How the book writes numbers: whole per cent, two digits of a share, an interval alike.

Pages, tables, figures, the post and its card all write with these, so that a number looks alike
wherever it stands.
"""

import math
from collections.abc import Iterable, Sequence

MISSING = "–"


def places(values: Iterable[float]) -> int:
    """The places after the point that values side by side share: two digits of the largest, and
    two places for one between 0.1 and 10."""
    largest = max(map(abs, values), default=0)
    if not largest or 0.0995 <= largest < 9.995:
        return 2
    return max(0, 1 - math.floor(math.log10(largest * 1.005)))


def number(x: float, digits: int | None = None) -> str:
    """One number, thousands with commas; digits: places after the point, by default `places`."""
    if x and not 1e-4 <= abs(x) < 1e6:
        return f"{x:.1e}"
    digits = places([x]) if digits is None else digits
    return f"{round(float(x), digits) + 0.0:,.{digits}f}"  # no minus before a nought


def interval(ends: Sequence[float | None] | None) -> str:
    """Value, low and high: "0.60 [0.55, 0.65]"; the value alone without ends, a dash for None."""
    if ends is None:
        return MISSING
    digits = places(x for x in ends if x is not None)
    value, *rest = (MISSING if x is None else number(x, digits) for x in ends)
    return value if set(rest) <= {MISSING} else f"{value} [{', '.join(rest)}]"


def percent(share: float) -> str:
    """A share in whole per cent: "48 %"; "under 1 %" where that would be a nought and is none."""
    return "under 1 %" if 0 < share < 0.005 else f"{_whole(share)} %"


def percents(ends: Sequence[float | None] | None) -> str:
    """The same with its interval: "48 % [45, 51]"."""
    if ends is None or None in ends[1:]:
        return MISSING if ends is None else percent(ends[0])
    return f"{percent(ends[0])} [{', '.join(map(_whole, ends[1:]))}]"


def points(change: float) -> str:
    """A change of a share in whole points: "49 points", "one point"."""
    whole = _whole(change)
    return "one point" if whole == "1" else f"{whole} points"


def times(x: float) -> str:
    """A count in words' company: "3.9", "41", "12,000"."""
    return number(x, 1 if abs(x) < 9.95 else 0)


def _whole(share):
    return f"{round(100 * float(share)):,}"


def _unbroken(style):
    return lambda x: style(x).replace(" ", "\u00a0")


# For running text, where no line breaks within a number.
STYLES = {style.__name__: _unbroken(style) for style in (percent, points, times, number)}
