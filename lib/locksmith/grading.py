"""Which value an answer in words states, exactly and in linear time: no model text is evaluated.

A text states its answer behind its last "answer is", "Answer:", "####" or in its last \\boxed{};
without one, its last line with a number does. What must stand there is one value, stated once:

- An answer that is denied ("is not 5"), taken back ("No." behind it), one of several ("5 or 6"), a
  range ("12-15"), a bound ("at least 5"), or a calculation ("9 * 2", "9^2", "half of 36") is none.
  Of an equation it is the last side that is no calculation: "9 * 2 = 18".
- All usual ways to write a value are read: every minus sign and dash of Unicode, decimal digits of
  any script, thousands separators, currencies, units, percentages, fractions, mixed numbers,
  scientific notation, LaTeX, "one hundred and five", "5 thousand". The decimal sign is a point.
  Circled digits and Roman numerals are not read.
- A rounded value is not the value, and a quotient such as 24/2 that is a whole number is a
  calculation.

A new question ("Q:" at the start of a line), the other speaker's turn and an end token end the
answer; a base model often goes on to one. Of a text that thinks first (</think>) it is what comes
behind.

All places are places in the text itself: signs are brought to one writing in place.
"""

import re
from bisect import bisect_left
from fractions import Fraction
from typing import NamedTuple

from locksmith.prose import VULGAR, one_writing

MOST_DIGITS = 1000  # of a number, and the largest power of ten: no gold has more


class Number(NamedTuple):
    """A number in a text: text[start:end]. value: exact, None where it is none by itself (5^2, at
    least 5); percent: it is written as one; denied: the text says that it is not the answer."""
    start: int
    end: int
    value: Fraction | None
    percent: bool
    denied: bool

    def says(self, gold: Fraction | None) -> bool:
        """Whether it is this value; a percentage is its number, or, where the gold is no whole
        number, as many hundredths."""
        return self.value is not None and gold is not None and (
            gold == self.value or self.percent and gold == self.value / 100
            and gold.denominator > 1)

    def same(self, other: "Number") -> bool:
        """Whether both are one value, perhaps in two writings: 0.25 and 25%."""
        return (self.value == other.value or self.says(other.value) or other.says(self.value))


# --- one writing ---------------------------------------------------------------------------------

_LATEX = {"times": "*", "cdot": "*", "div": "÷", "pm": "±", "mp": "±", "approx": "=", "neq": "≠",
          "ne": "≠", "leq": "<", "le": "<", "lt": "<", "geq": ">", "ge": ">", "gt": ">",
          "pmod": "mod", "bmod": "mod",
          **dict.fromkeys(("Rightarrow", "rightarrow", "implies", "to"), "="),
          **dict.fromkeys(("text", "textbf", "textit", "textrm", "mathrm", "mathbf", "mathit",
                           "boldsymbol", "underline", "mbox", "fbox", "left", "right", "quad",
                           "qquad", "displaystyle", "bf", "rm", "big", "Big", "degree",
                           "circ"), ""),
          "boxed": "####"}
_TIMES = str.maketrans("×·⋅", "***")
_SMALLER = [  # (pattern, what stands there instead, at the right end of the same place)
    (re.compile(r"\^\{?\\circ\}?"), lambda m: ""),
    (re.compile(r"\\[dtc]?frac *(?:\{ *(-?\d{1,40}) *\}|(\d)) *(?:\{ *(-?\d{1,40}) *\}|(\d))"),
     lambda m: f"{m[1] or m[2]}/{m[3] or m[4]}"),
    (re.compile(r"\\([A-Za-z]{1,20})"), lambda m: _LATEX.get(m[1], m[0])),
    (re.compile(r"\\([$%# ])"), lambda m: m[1]),
    (re.compile(r"\\[,;:!](?!\d)"), lambda m: ""),
    (re.compile(r"\\[()\[\]]|\\\\|&(?= *=)|\\(?:begin|end)\{\w{1,20}\*?\}"), lambda m: ""),
    (re.compile(r"<<[^<>\n]{0,60}>>|~~[^~\n]{0,60}~~"), lambda m: ""),
    (re.compile(r"<sup>"), lambda m: "^"),
    (re.compile(r"</?[a-z_|]{1,20}>"), lambda m: ""),
    (re.compile(r"(?<![\d)])\*{2,3}|\*{2,3}(?![\d(])|`+|__+|(?<![A-Za-z\d])_|_(?![A-Za-z\d{])"),
     lambda m: ""),
]


def _plain(text: str) -> str:
    """The text in one writing, every place where it was."""
    text = one_writing(text).translate(_TIMES)
    for pattern, smaller in _SMALLER:
        text = pattern.sub(lambda m, put=smaller: put(m).rjust(len(m[0])), text)
    return text


# --- numbers -------------------------------------------------------------------------------------

_UNITS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
          "fifteen sixteen seventeen eighteen nineteen").split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORDS = {**{word: i for i, word in enumerate(_UNITS)},
          **{word: 10 * i for i, word in enumerate(_TENS, 2)}}
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
           "trillion": 10**12}
_BETWEEN = r"(?:[,'’_ ]|\{,\}|\\[,!]|,\\!)"  # thousands
_WHOLE = (rf"(?:\d{{1,3}}(?P<gap>{_BETWEEN})\d{{3}}(?:(?P=gap)\d{{3}})*+(?!\d)"
          r"|\d{1,2}(?:,\d\d){1,9},\d{3}(?!\d)|\d++)")
_HIGH = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
_TEN = r" *[*x] *10(?:\^ *\{?(?P<ten>[-+]?\d{1,6})\}?|(?P<high>[⁺⁻]?[⁰¹²³⁴-⁹]{1,6}))"
_NUMBER = re.compile(
    r"(?:(?<![\w^])|(?<=\bis))(?<!(?<!\.)\.)(?<!\^\{)"
    r"(?P<sign>[-+] {0,20}|(?:minus|negative|plus|positive) )?(?:[$£€¥₹] ?)?(?:"
    rf"(?P<half>(?:(?P<n>\d{{1,40}})(?: and)? {{0,20}})?(?P<vulgar>[{''.join(VULGAR)}]))"
    r"|(?P<mixed>(?P<m>\d{1,40})(?: and)? {1,20}(?P<mtop>\d{1,40}) ?/ ?(?P<mlow>\d{1,40}))"
    r"|(?P<ratio>(?P<top>\d{1,40}) ?/ ?(?P<below>-?\d{1,40}))"
    rf"|(?P<decimal>(?P<whole>{_WHOLE})(?P<point>\.\d++)?|(?P<only>(?<!\.)\.\d++))"
    rf"(?:e(?P<e>[-+]?\d{{1,6}})|{_TEN})?"
    rf"|(?P<word>(?:(?P<hundreds>{'|'.join(_UNITS[1:])})[- ]hundred(?: and)? )?"
    rf"(?:(?P<tens>{'|'.join(_TENS)})[- ](?P<ones>{'|'.join(_UNITS[1:10])})\b"
    rf"|(?P<single>{'|'.join(_WORDS)})\b))"
    r")(?![.,:/]?\d)"
    rf"(?P<scale>[- ](?:{'|'.join(_SCALES)})\b)?(?P<percent> ?%| per ?cent\b)?"
    r"|(?<![\w^])(?<!\^\{)\d[\d.,:/]*+", re.IGNORECASE)
# What makes another value, or none, of a number: behind it,
_BEHIND = re.compile(
    r" ?\^| ?\*\*| ?[<>≤≥≠] ?[a-z\d]|!(?= ?[-+*/÷^\d}$])| ?_ ?\{?\d|, ?\\infty| digits\b"
    r"|[⁺⁻⁰¹²³⁴-⁹√(\\]| \((?:mod|base)\b"
    r"|(?:st|nd|rd|th)\b|(?!(?-i:[gmlLshdCF°]))[^\W\d_](?![^\W\d_])"
    r"| ?\+(?! *(?:[-\d($£€¥₹]|\.\d))| squared| cubed|-?ish\b| ?[-+*÷] ?[xyzn]\b"
    r"| (?:and )?a (?:half|third|quarter|fifth)\b|(?: [a-z]{1,20}){0,2} (?:or|and)"
    r" (?:so|more|less|fewer|over|under|above|below|up|greater|higher|lower"
    r"|a half|a quarter|a third)\b"
    r"|(?: [a-z]{1,20}){0,2} at (?:least|most)\b"
    r"|[- ](?:half|halves|third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth"
    r"|thousandth)s?\b|,? (?:with |and )?(?:a )?(?:remainder|r ?\d)(?! (?:of )?0\b)", re.IGNORECASE)
# and before it.
_BEFORE = re.compile(
    r"(?:√|\bnon-|\\[a-z]+ *[\[{(]*|\}\{|[a-z]\(|[±^≤≥≦≧⩽⩾|]|(?<!\d)(?<!\d )-\(|[-+] ?[-+]"
    r"|(?<![-=])[<>]=?|\b(?:sqrt|log|ln|sin|cos|tan|exp|abs)|\bthan(?: or equal to)?|\bat least"
    r"|\bat most|(?<!add )(?<!adds )(?<!sum )\bup to"
    r"|\b(?:almost|nearly|over|under|above|below|beyond|within|from|until|till"
    r"|near|close to|exceed\w*|surpass\w*|no more|twice|double|triple|thrice|half|third|quarter"
    r"|root|square|cube|factorial|divisible by|step|line|page)"
    r"|(?<!total )(?<!sum )(?<!answer )(?<!value )(?<!amount )(?<!result )(?<!course )\bof"
    r"(?: (?:the|a|about|number))*) *[\"'({$]* *$", re.IGNORECASE)
_DENIED = re.compile(
    r"(?:(?:\bnot|n['’]t|\bnever|\bhardly|\bneither|\bnor|\bcannot|\bno|\bnobody|\bnone|\bnothing|≠"
    r"|\brather than|\binstead of|\bother than|\banything but|\ball but|\bexcept|\bwithout|\bunlike"
    r"|\bused to|\bnicht|\bpas|\bkeine?|\bdifferent|\bunequal|\bdiffers"
    r"|\bif|\bwhether|\bdepends)(?!\w)(?: +\w{1,20}){0,3}"
    r"|\b(?:no way|no chance|impossible|unlikely|doubt\w*|den(?:y|ies)|reject\w*)"
    r"(?: +\w{1,20}){0,6})[^\w,;]*$", re.IGNORECASE)
_RESUMED = re.compile(r"(?<!anything )(?<!all )\b(?:but|however)\b|[.!?;\n]|, ?(?:it|so|the)\b",
                      re.IGNORECASE)
_REFUSED = re.compile(
    r"(?: [a-z]{1,20}){0,2} ?(?:is|was|are|be|can|could|must|does)"
    r"(?:n['’]t\b|not\b| (?:\w{1,20} )?(?:not|wrong|incorrect|false|impossible|never|too)\b)"
    r"|,? ?\(?(?:(?:which|that|and that|but that) (?:is|was) )?(?:wrong|incorrect|false)\b",
    re.IGNORECASE)
_ASKED = re.compile(r"(?:^|[.!?\n]) *(?:is|was|could|can|might|would|will)\b[^.!?\n]*$",
                    re.IGNORECASE)
_OPERAND = re.compile(r"[\d)\]}%°½]$")
_COPULA = re.compile(r"\b(?:is|be|was|are|equals|to|of|get|gives|makes|answer|but|rather)$", re.I)
_NEAR = 80  # characters: what belongs to a number stands as near as this


def numbers(plain: str) -> list[Number]:
    """The numbers of a text in one writing, in order."""
    found, last = [], 0
    for match in _NUMBER.finditer(plain):
        start, signed = match.start(), match["sign"]
        if signed and signed[0] in "+-" and not _is_sign(plain[max(0, start - _NEAR):start],
                                                         signed):
            start, signed = match.start() + len(signed), None
        before = plain[max(last, start - _NEAR):start]
        value = _value(match, signed)
        behind = plain[match.end():match.end() + _NEAR]
        resumed = max((m.end() for m in _RESUMED.finditer(before)), default=0)
        denied = bool(_DENIED.search(before[resumed:]) or _REFUSED.match(behind) or
                      behind[:1] == "?" and _ASKED.search(plain[max(0, start - _NEAR):start]))
        if (_BEHIND.match(behind) or _BEFORE.search(before)
                or match["word"] and behind.startswith(" of ")):
            value = None
        if found and found[-1].denied and re.search(r"^[^.!?\n]*\b(?:or|nor|and)\W*$", before):
            denied = True
        found.append(Number(start, match.end(), value, bool(match["percent"]), denied))
        last = match.end()
    return found


def _is_sign(before, signed):
    """Whether + or - belongs to the number behind it, rather than to what stands before."""
    rest = before.rstrip(" ")
    if (_OPERAND.search(rest) or rest.endswith(("-", "+", "±"))
            or before == rest and rest[-1:].isalpha()):
        return False
    return not (signed.endswith(" ") and rest[-1:].isalpha()) or bool(_COPULA.search(rest))


def _value(match, signed):
    """The exact value of a match of _NUMBER, or None where it has none."""
    given, value = match.groupdict(), None
    if given["vulgar"]:
        value = VULGAR[given["vulgar"]] + int(given["n"] or 0)
    elif given["mixed"]:
        top, below = int(given["mtop"]), int(given["mlow"])
        value = int(given["m"]) + Fraction(top, below) if top < below else None
    elif given["ratio"]:
        top, below = int(given["top"]), int(given["below"])
        value = Fraction(top, below) if below and top % below else None
    elif given["decimal"]:
        digits = re.sub(r"[^0-9]", "", given["whole"] or "0") + (given["point"] or
                                                                  given["only"] or "")
        high = given["high"] and given["high"].translate(_HIGH)
        power = int(given["e"] or given["ten"] or high or 0)
        if max(len(digits), abs(power)) <= MOST_DIGITS:
            value = Fraction(digits) * Fraction(10) ** power
    elif given["word"]:
        value = Fraction(sum(n * _WORDS[word.lower()] for n, word in (
            (100, given["hundreds"]), (1, given["tens"]), (1, given["ones"]),
            (1, given["single"])) if word))
    if given["scale"] and value is not None:
        value *= _SCALES[given["scale"][1:].lower()]
    negative = signed and signed[0].lower() in "-mn"
    return -value if negative and value is not None else value


# --- how two numbers hang together ---------------------------------------------------------------

_AROUND = r"[ )}\]$%\"'°]*+"
_SOME = rf"{_AROUND}(?:[a-z/²³]++{_AROUND}){{0,3}}"
_EQUAL = re.compile(rf"{_AROUND}\.? ?"
                    r"(?!(?:because|since|if|as|for|so|when|where|with|and|or|but)\b)"
                    rf"(?:[a-z]++{_AROUND}){{0,2}}(?:[ (]*=[ *]*)+[ ($\"'{{\[]*$", re.IGNORECASE)
_MAKES = re.compile(rf"{_AROUND}(?:(?:,? ?(?:which|that|and that|this) )?"
                    r"(?:is|are|equals|makes|gives|is equal to)"
                    r"|,? ?(?:i\.e\.|that is|so|thus|hence)),?:? *[($]*$", re.IGNORECASE)
_FILL = (r"(?:(?:maybe|even|perhaps|possibly|about|a|the|either|sometimes|is it|it is|it's"
         r"|i think|[a-z] ?=)[ ($]*)*")
_OPERATOR = re.compile(
    rf"{_SOME}(?:[-+*÷^/]|\*\*|\)\(|\b(?:x|times|plus|minus|over|mod|modulo|with|at|by"
    r"|(?<!result )(?<!total )(?<!sum )(?<!value )(?<!answer )(?<!product )(?<!difference )of"
    r"|multiplied by|divided by|added to|subtracted from|(?:more|less|fewer|greater) than"
    r"|to the power of)\b)[ ($\"'{\[#]*$", re.IGNORECASE)
_CHOICE = re.compile(
    rf"(?:{_AROUND}(?:(?!(?:is|are|was|were|has|have|had)\b)[a-z]++{_AROUND}){{0,3}},"
    rf"|{_SOME}(?:[&|~±…;]|\.\.+|[-–—]|[.?!] *(?:or|maybe|perhaps|possibly|alternatively)\b"
    r"|[,;]? ?\(?\b(?:and/or|or|and"
    r"|(?<!equal )(?<!add up )(?<!adds up )(?<!sum up )(?<!out )(?<!comes )(?<!amounts )to"
    r"|through|until|versus|vs\.?|maybe|perhaps|possibly)\b))"
    rf"[ ($\"'*{{\[#]*{_FILL}[-–— ]*$", re.IGNORECASE)
_RESTATED = re.compile(rf"{_AROUND},? ?\(?or[ ($\"'*{{]*$", re.IGNORECASE)
_COMPOUND = re.compile(r" ?(?:hours?|hrs?|h|minutes?|mins?|days?|weeks?|months?|years?|feet|ft|"
                       r"yards?|pounds?|dollars?|euros?|km|m|kg|meters?) ?$", re.IGNORECASE)
_END = re.compile(r"[.!?](?=\s|$)|(?<!:)\n")


def _link(before, number, between):
    """How a number hangs together with the one before it: "=", "calculation", "choice", "again"
    (5, 5) or None."""
    if before.denied or number.denied or len(between) > _NEAR:
        return None
    if re.fullmatch(" *[,;]? *", between):
        return "again" if before.same(number) and between.strip() else "choice"
    if before.same(number) and _RESTATED.match(between):
        return "again"
    if _EQUAL.match(between):
        return "="
    if _OPERATOR.match(between) and not _END.search(between):
        return "calculation"
    return "choice" if _CHOICE.match(between) or _COMPOUND.match(between) else None


def _chosen(plain, found, i):
    """The number that the equation, calculation or choice around found[i] comes down to, or None.
    """
    pairs = [(one, other, plain[one.end:other.start]) for one, other in zip(found, found[1:])]
    first = i
    while first and _link(*pairs[first - 1]):
        first -= 1
    sides = [[found[first]]]
    for before, number, between in pairs[first:]:
        link = _link(before, number, between)
        if link is None and len(sides[-1]) > 1 and _MAKES.match(between):
            link = "="
        if link is None:
            break
        if link == "=":
            sides.append([number])
        elif link != "again":
            sides[-1].append(number)
    return next((side[0] for side in reversed(sides) if len(side) == 1), None)


# --- where an answer is stated -------------------------------------------------------------------

_QUESTION = re.compile(
    r"\n[ *#]*(?:(?:Q|Question|Problem|Exercise)\b *\d* *[.:*]"
    r"|(?:Question|Problem|Exercise) \d+ *\n|(?:Human|User|Instructions?) *\**:"
    r"|(?:user|human) *\n)|[.!?] +(?:Q|Question|Human|User):"
    r"|<\|(?:endoftext|im_end|eot_id|end|user)\|>|<end_of_turn>|</s>")
_THOUGHT = re.compile(r"</(?:think|thinking|thought|thoughts|reasoning)>(?=.*\w)", re.DOTALL)
_CUE = re.compile(
    r"\b(?:answer|ans|result)\b(?:[^\n.!?=:]{0,60}?)\b(?:is|was|are|were|be|equals|becomes)"
    r"(?:n['’]?t)?\b|\b(?:answer|ans)\b[*_ ]*[:=]|####", re.IGNORECASE)
_SKIPPED = re.compile(r"[ :*\n]*")
_OPEN = re.compile(  # an answer that is only supposed, or doubted
    r"(?:\b(?:if|suppose|supposing|assume|assuming|unless|whether|not|never|doubt|deny"
    r"|false|untrue|wrong|incorrect|unlikely|impossible|nobody|no one|some (?:people|students)"
    r"|(?:might|could|may) (?:think|say|guess|believe))\b|n['’]t\b)"
    r"(?:(?!\bbut\b)[^.!?\n,;:]){0,60}$", re.IGNORECASE)
_BACK = re.compile(  # what takes an answer back, for good or only with another value behind it
    r"(?:^|[.!?;,\n—–…-])\s*(?:(?P<good>no\s*(?:[,.!;:—–]|$|(?=wait|sorry|it\b)))"
    r"|wait\b|oops\b|sorry\b|correction\b|scratch that\b|i mean\b|or rather\b|rather,|actually\b"
    r"|hold on\b|just kidding\b|my mistake\b|my bad\b|apologies\b|on second thoughts?\b"
    r"|strike that\b|edit\b|typo\b|i meant\b|make that\b)"
    r"|(?P<now>\b(?:(?:it|that|this)(?:['’]s| is| was| should be| must be)"
    r"|the (?:right|correct|true|actual) (?:one|value|number) is|but is now) )(?=[-+\d$£€¥₹])"
    r"|(?P<wrong>\b(?:that|this|it)(?:['’]s| is| was) (?:\w{1,12} )?(?:wrong|incorrect|a mistake"
    r"|not right|not correct)\b|\bi doubt (?:it|that)\b)", re.IGNORECASE)


class Statement(NamedTuple):
    """Where a text states its answer, text[start:end], and the number that it states, if it is
    one."""
    start: int
    end: int
    number: Number | None


def statement(text: str) -> Statement | None:
    """What a text states as its answer; None where it has none."""
    begin = max((thought.end() for thought in _THOUGHT.finditer(text)), default=0)
    question = _QUESTION.search(text, begin)
    plain = " " * begin + _plain(text[begin:question.start() if question else None])
    found = numbers(plain)
    for cue in reversed(list(_CUE.finditer(plain))):
        start = _SKIPPED.match(plain, cue.end()).end()
        ended = _END.search(plain, start)
        end = ended.start() if ended else len(plain)
        if not plain[start:end].strip(" *$}"):
            continue  # cut off
        if _OPEN.search(plain[max(0, cue.start() - _NEAR):cue.start()]):
            return Statement(start, end, None)
        i = _next(found, start, end)
        number = None if i is None else _chosen(plain, found, i)
        return _corrected(plain, found, Statement(start, end, number))
    return _last(plain, found)


def _next(found, start, end):
    """The first number that begins in [start, end) and is not denied, as an index, or None."""
    return next((i for i in range(bisect_left(found, (start,)), len(found))
                 if found[i].start < end and not found[i].denied), None)


def _last(plain, found):
    """The last number in digits that is not denied, of the last line with such numbers."""
    digits = [i for i, number in enumerate(found)
              if any(c.isnumeric() for c in plain[number.start:number.end])]
    if not digits and len(found) == 1 and (
            len(f"{plain[:found[0].start]} {plain[found[0].end:]}".split()) < 2):  # "minus five"
        digits = [0]
    if not digits:
        return None
    line = plain.rfind("\n", 0, found[digits[-1]].start)
    asserted = [i for i in digits if found[i].start > line and not found[i].denied]
    i = (asserted or digits)[-1]
    number = _chosen(plain, found, i) if asserted else None
    return _corrected(plain, found, Statement(found[i].start, found[i].end, number))


def _corrected(plain, found, said):
    """A statement, or what the text says behind it in its place."""
    for mark in reversed(list(_BACK.finditer(plain, said.number.end if said.number else said.end))):
        i = _next(found, mark.end() - 1, mark.end() + (1 if mark["now"] else _NEAR))
        number = None if i is None else _chosen(plain, found, i)
        if number or i is not None and not mark["now"]:
            return Statement(found[i].start, found[i].end, number)
        if mark["good"] or mark["wrong"]:
            return said._replace(number=None)
    return said


# --- golds ---------------------------------------------------------------------------------------


def exact(gold: str) -> Fraction | None:
    """The value of a whole number, a decimal or a fraction in ASCII; None for any other gold."""
    match = re.fullmatch(r"[-+]?\d{1,1000}(?:\.\d{1,1000}|/0*[1-9]\d{0,1000})?", gold.strip())
    return Fraction(match[0]) if match else None
