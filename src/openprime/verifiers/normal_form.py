r"""The final answer in one spelling, and taken apart.

`tidy` writes an answer as plain LaTeX on one line, in one spelling of many; `split`, `brackets` and `quantity` find
the parts of a tidy answer: the elements of a list, the sides of a relation, a number and its unit.
"""

import functools
import itertools
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from openprime.verifiers.expression import FUNCTIONS

# Spelling

# fmt: off
COMMANDS = {
    "": "left right big bigl bigr Big Bigl Bigr bigg biggl biggr Bigg Biggl Biggr mleft mright displaystyle textstyle",
    " ": "quad qquad thinspace medspace thickspace therefore implies Rightarrow limits",
    "|": "lvert rvert vert mid", "<": "lt", ">": "gt", ":": "colon", "'": "prime", r"^\circ ": "degree",
    r"\le ": "leq leqq leqslant", r"\ge ": "geq geqq geqslant", r"\ne ": "neq", r"\approx ": "simeq thickapprox",
    r"\land ": "wedge", r"\lor ": "vee", r"\setminus ": "smallsetminus backslash", r"\infty ": "infin infinity inf oo",
    r"\emptyset ": "varnothing oslash empty O", r"\dots ": "ldots cdots dotsc dotsb dotsm",
    r"\frac": "dfrac tfrac cfrac nicefrac sfrac xfrac", r"\binom": "dbinom tbinom",
    r"\text{£}": "pounds", r"\text{€}": "euro", r"\text{¥}": "yen",
    **{rf"\mathbb{{{letter}}}": letter for letter in "RZNQC"},
}
"""What is written instead of commands."""
SYNONYMS = {name: written for written, commands in COMMANDS.items() for name in commands.split()}
ASCII = {
    "<=": r"\le ", "=<": r"\le ", ">=": r"\ge ", "!=": r"\ne ", "<>": r"\ne ", "/=": r"\ne ", r"\not=": r"\ne ",
    r"\not =": r"\ne ", r"\not\in": r"\notin ", r"\not \in": r"\notin ", "{:}": ":", r"\mathbin{:}": ":", "==": "=",
    "...": r"\dots ", r"\{\}": r"\emptyset ", r"\{ \}": r"\emptyset ",
}
UNICODE = str.maketrans({
    "−": "-", "–": "-", "∗": "*", "÷": "/", "∕": "/", "⁄": "/", "、": ",", "。": ".", "′": "'", "’": "'", "√": " sqrt",
    "∛": " cbrt", "°": r"^\circ ", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "±": r"\pm ",
    "∓": r"\mp ", "∞": r"\infty ", "≈": r"\approx ", "≠": r"\ne ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ",
    "⩾": r"\ge ", "∅": r"\emptyset ", "∈": r"\in ", "∉": r"\notin ", "∪": r"\cup ", "∩": r"\cap ", "∖": r"\setminus ",
    "∨": r"\lor ", "∧": r"\land ", "⟨": r"\langle ", "⟩": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ",
    "⌈": r"\lceil ", "⌉": r"\rceil ",
})
# fmt: on
BLACKBOARD = {c: rf"\mathbb{{{letter}}}" for c, letter in zip("ℝℤℕℚℂ", "RZNQC", strict=True)}
COMPOSED = {"<fraction>": r"\frac{{{}}}{{{}}}", "<super>": "^{{{}}}", "<sub>": "_{{{}}}", "<circle>": "({})"}
"""How characters are written that Unicode composes of others."""
NUMERALS = {
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
}
NUMERALS |= {"ten": "10", "twelve": "12", "binary": "2", "octal": "8", "hexadecimal": "16"}
BASES = "|".join([r"\d+", *NUMERALS])
LANGUAGE = (
    "infinity|infty|inf|oo|pi|alpha|beta|gamma|delta|theta|lambda|mu|sigma|phi|omega|log|cdot|times|frac"
)
PLAIN_WORD = (
    r"\\text\{[^{}]*\}|\\[a-zA-Z]+|(?<![a-zA-Z])(?:(sqrt|cbrt)(?: ?(\d+(?:\.\d+)?|[a-zA-Z](?![a-zA-Z])))?"
    rf"|({LANGUAGE}|{'|'.join(sorted(FUNCTIONS, reverse=True))}))(?![a-zA-Z])"
)
COMMAND = r"(?<!(?<!\\)\\)\\([a-zA-Z]+)(?: (?![a-zA-Z]))?"
ROW_SPACE = r"\\\\ ?\[[-\d. ]+(?:pt|e[mx]|[cm]m)\]"
FONT = r"math(?:bf|it|sf|tt|normal)|boldsymbol|bm|emph"
STYLE = rf"\\(?:text|mathrm|[mh]box|operatorname\*?|{FONT})(?:bf|it|rm|normal|sf|tt)?\s*\{{"
BASIS_VECTOR = r"\\(?:hat|vec|mathbf|boldsymbol|bm)\s*\{\s*\\?([ijk])(?:math)?\s*\}"
WORDS_OVER_WORDS = r"\\frac ?\{ ?(\\text\{[^{}]*\}[^{}]*)\} ?\{ ?(\\text\{[^{}]*\}[^{}]*)\}"
CONNECTIVES = r"\\text\{([^{}]*(?:\b(?:and|or)\b|[,;])[^{}]*)\}"
PERCENT = r"\\text\{\s*\\%\s*\}|\s*\\text\{\s*per ?cent(?:age)?\s*\}|\s*\bper ?cent(?:age)?\b"
TWO_DOTS = r"(\d+\.\d*)\\dot ?\{?(\d)\}?(\d*)\\dot ?\{?(\d)\}?"
RECURRING = (
    r"(\d*\.\d*?)(?:\((\d+)\)(?!\w)|\\(?:bar|dot|overline) ?(?:\{(\d+)\}|(\d))(?!\d*\\dot)"
    r"|(\d\d+?)\5+\\dots ?|(\d)\6\6+\\dots ?)"
)
SCIENTIFIC = r"(?<![a-zA-Z\\_^.\d])(\d+\.\d+|\d+(?=E|e\+?\d|e-\d\d))[eE]([-+]?\d+)(?!\d|\.\d|[a-zA-Z(^_])"
MATRIX = r"\\(begin|end)\{(?:[pbB]?matrix|smallmatrix|array)\} ?(?:\{[lcr|]+\})?"
ROWS = r"(?:\\\{ ?)?\\begin\{(cases|aligned|gathered|matrix)\}(.*?)\\end\{\1\}(?! ?\\\})"
BASE = (
    rf"_ ?\{{? ?(?:\\text\{{ ?(?:base )?|\(|base )({BASES})[)}}]\}}?"
    rf"|[ (]*(?:\\text\{{[ (]*)?(?:in )?base[ }}-]*({BASES})[)}}]*$"
)
FRENCH = r"(?:(?<![\w}\]])|(?<=\\cup)|(?<=\\in))([\[\]])([^][()]+[,;][^][()]+)([\[\]])"


def _plain_word(match: re.Match[str]) -> str:
    root, inside, word = match.groups()
    if root:
        return r"\sqrt" + "[3]" * (root == "cbrt") + (f"{{{inside}}}" if inside else "")
    if not word or (word == "sec" and match.string[match.end() : match.end() + 1] != "("):
        return match[0]  # seconds
    return SYNONYMS.get(word, rf"\{word} ")


def _connectives(match: re.Match[str]) -> str:
    r"""Take "and", "or" and commas out of \text{...}."""
    parts = re.split(r"[\s,;]*\b(and|or)\b[\s,;]*|\s*([,;])\s*", match[1])
    words = [rf"\text{{{word}}}" if word else "" for word in parts[::3]]
    marks = [rf"\l{word} " if word else mark for word, mark in zip(parts[1::3], parts[2::3], strict=True)]
    return words[0] + "".join(itertools.chain(*zip(marks, words[1:], strict=True)))


def _base(match: re.Match[str]) -> str:
    name = (match[1] or match[2]).lower()
    return f"_{{{NUMERALS.get(name, name)}}}"


def _rows(match: re.Match[str]) -> str:
    """The rows of cases, or of an array behind one brace, as a list."""
    if match[1] == "matrix" and not match[0].startswith(r"\{"):
        return match[0]
    rows = [row.strip(" ,;&").replace("&", " ") for row in match[2].split(r"\\")]
    return ", ".join(row for row in rows if row)


# fmt: off
TIDYING: list[tuple[str, str | Callable[[re.Match[str]], str], str, str]] = [
    (r"\\(left|right)\.", "", r"\left.5", "5"),
    (COMMAND, lambda m: SYNONYMS.get(m[1], m[0]), r"\left(1,2\right]", "(1,2]"),
    (r"(?<!\\)\$|(?<!\\)\\[\[\]()]", "", r"\(5\)", "5"),
    (r"(?<=\d)(?:,? ?\\!|\\,|\{,\}) ?(?=\d{3}(?!\d))", "", r"1,\!000\,000{,}000", "1000000000"),
    (r"(?<=\d)\{,\}(?=\d)", ".", "3{,}25", "3.25"),
    (r"(?<!\\)\\[,!;:> ]|~", " ", r"(1,\,2)", "(1, 2)"),
    (ROW_SPACE, r"\\\\", r"\begin{matrix}1\\[2pt]2\end{matrix}", r"\begin{matrix}1\\2\end{matrix}"),
    (BASIS_VECTOR, r" \\hat{\1}", r"2\mathbf{i}", r"2 \hat{i}"),
    (rf"\\(?:{FONT}|text(?:bf|it))\s*\{{\s*([a-zA-Z])\s*\}}", r" \1", r"2\mathbf{a}", "2 a"),
    (STYLE, r"\\text{", r"5\mathrm {cm}", r"5\text{cm}"),
    (r"(\\text\{[^{}]*\})|([€£¥₹¢])", lambda m: m[1] or rf"\text{{{m[2]}}}", "€5", r"\text{€}5"),
    (r"\{\\(?:bf|it|rm|sf) ([^{}]*)\}", r"\\text{\1}", r"{\bf odd}", r"\text{odd}"),
    (r"\\text\{ ?((?:arc)?(?:sin|cos|tan|cot|c?tg)h?|ln|log|exp) ?\}", r"\\\1 ", r"\text{arctan}5", r"\arctan 5"),
    (CONNECTIVES, _connectives, r"\text{B and C}", r"\text{B}\land \text{C}"),
    (r"(?<![a-zA-Z\\])(and|or)(?![a-zA-Z])", r"\\l\1", "-2 or 1", r"-2 \lor 1"),
    (r"[,;] ?(?=\\l(?:and|or)(?![a-zA-Z]))", "", r"2, \land 3", r"2\land 3"),
    (r"(?:\\text\{ ?\(\}|\() ?(\\lor .+)\)$", r"\1", r"0.5 (\lor 1/2)", r"0.5 \lor 1/2"),
    (WORDS_OVER_WORDS, r"\1/\2", r"5 \frac{\text{m}}{\text{s}}", r"5 \text{m}/\text{s}"),
    (r"(\\text\{[^{}]*\^ ?)\{(-?\d)\}", r"\1\2", r"5\text{ m s^{-1}}", r"5\text{ m s^-1}"),
    (r"(?<!\\)%", r"\\%", "5%", r"5\%"),
    (PERCENT, r"\\%", r"5 \text{ percent}", r"5\%"),
    ("|".join(map(re.escape, ASCII)), lambda m: ASCII[m[0]], "x<=2", r"x\le 2"),
    (r"\\mathbb ([RZNQC])", r"\\mathbb{\1}", r"\mathbb R", r"\mathbb{R}"),
    (r"\^ ?\{ ?\\circ ?\}|\^ ?\\circ(?! )", r"^\\circ ", r"90^{\circ}", r"90^\circ "),
    (r"\^ ?(?:\{ ?(['\s]+)\}|')", lambda m: m[1] or "'", "y^{'}", "y'"),
    (TWO_DOTS, r"\1\\overline{\2\3\4}", r"0.\dot{1}2\dot{3}", r"0.\overline{123}"),
    (RECURRING, lambda m: rf"{m[1]}\overline{{{''.join(filter(None, m.groups()[1:]))}}}", "0.(36)", r"0.\overline{36}"),
    (SCIENTIFIC, r"\1\\cdot 10^{\2}", "3.83e35", r"3.83\cdot 10^{35}"),
    (r"(?<=\d) ?[xX] ?(?=10 ?(?:\^|\*\*))", r"\\cdot ", "2 x 10^3", r"2\cdot 10^3"),
    (r"(?<=\w)\*\*(?=[\w({-])", "^", "x**2", "x^2"),
    (PLAIN_WORD, _plain_word, "2sqrt3", r"2\sqrt{3}"),
    (r"(?<![\d.,/^{}_])(\d+) (\d+) ?/ ?(\d+)(?![\d/])", r"\1\\frac{\2}{\3}", "1 1/2", r"1\frac{1}{2}"),
    (r"\\sqrt ?(\d)", r"\\sqrt{\1}", r"\sqrt5", r"\sqrt{5}"),
    (r"\\frac ?(\d) ?(\d)", r"\\frac{\1}{\2}", r"\frac12", r"\frac{1}{2}"),
    (MATRIX, r"\\\1{matrix}", r"\begin{array}{c}5\end{array}", r"\begin{matrix}5\end{matrix}"),
    (ROWS, _rows, r"\begin{cases}x=1\\y=2\end{cases}", "x=1, y=2"),
    (BASE, _base, r"4210_\text{five}", "4210_{5}"),
    (FRENCH, lambda m: "[("[m[1] == "]"] + m[2] + "])"[m[3] == "["], "]1,2[", "(1,2)"),
    (r"\\\$ ?", r"\\text{dollar}", r"\$5", r"\text{dollar}5"),
]
"""Substitutions in their order: pattern, replacement, and an example, before and after."""
# fmt: on
COMPILED = [(re.compile(pattern), replacement) for pattern, replacement, *_ in TIDYING]


@functools.lru_cache(maxsize=4096)
def tidy(text: str) -> str:
    """One line of plain LaTeX in one spelling, without dollars, spacing, and punctuation around it."""
    if text.isascii() and text.isdigit():
        return text
    text = " ".join((text if text.isascii() else _ascii(text)).split()).strip(" *")
    for pattern, replacement in COMPILED:
        text = pattern.sub(replacement, text)
    return " ".join(text.split()).lstrip(" *=:").rstrip(" .*,;:").removesuffix(r"\\").rstrip()


def _ascii(text: str) -> str:
    """Superscripts, fractions, letters of other fonts and Greek ones as LaTeX; full-width characters as narrow ones."""
    written = ""
    for tag, group in itertools.groupby(text, lambda c: unicodedata.decomposition(c).split(" ")[0]):
        one_by_one = tag in ("<fraction>", "<circle>", "<font>")
        for characters in group if one_by_one else ["".join(group)]:
            parts = unicodedata.normalize("NFKC", characters).split("⁄" if tag == "<fraction>" else "\0")
            written += BLACKBOARD.get(characters) or COMPOSED.get(tag, "{}").format(*parts)
    return re.sub("[Α-Ωα-ω]", _greek, written.translate(UNICODE))


def _greek(match: re.Match[str]) -> str:
    _, size, *_, name = unicodedata.name(match[0]).replace("LAMDA", "LAMBDA").split()
    return rf"\{name.lower() if size == 'SMALL' else name.capitalize()} "


def plain(text: str) -> str:
    r"""A tidy answer with what \text{...} holds in its place."""
    return " ".join(re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).split())


def squeeze(text: str) -> str:
    """A tidy answer without spaces and needless braces: the form in which strings are compared."""
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    if re.fullmatch(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d*)?", text, re.ASCII):
        text = text.replace(" ", "")
    text = re.sub(r"(?<=[a-zA-Z]) (?=[a-zA-Z0-9])|(?<=\d) (?=\d)", "\0", text)  # "\cot x", "June 20", "1 1"
    text = text.replace(" ", "").replace("\0", " ")
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    return re.sub(r"\(([A-Z])\)", r"\1", text) if len(text) == 3 else text


# Parts

PIECE = re.compile(r"\\(?:begin|end)\{\w+\}|\\[a-zA-Z]+|\\.|.", re.DOTALL)
OPEN = frozenset(["(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil", r"\begin{matrix}"])
CLOSE = frozenset([")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil", r"\end{matrix}"])
KINDS = {bracket: bracket[-1] for bracket in ("(", ")", "[", "]", "{", "}", r"\{", r"\}")}
KINDS |= {r"\langle": "(", r"\rangle": ")", r"\begin{matrix}": "matrix", r"\end{matrix}": ""}
MIRROR = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne", "=": "="}
SIGNS = frozenset([*MIRROR, r"\approx", r"\in", r"\notin"])


def split(text: str, separators: frozenset[str] | set[str]) -> tuple[list[str], list[str]]:
    """The parts of a text between separators outside of brackets, and these separators."""
    parts, found, depth = [""], list[str](), 0
    for piece in PIECE.findall(text):
        depth += (piece in OPEN) - (piece in CLOSE)
        if depth == 0 and piece in separators:
            found.append(piece)
            parts.append("")
        else:
            parts[-1] += piece
    return [part.strip() for part in parts], found


def brackets(text: str) -> tuple[str, str]:
    r"""The brackets around a whole text ('' without; `(]` is half open, \langle is round), and what is in them."""
    pieces = PIECE.findall(text)
    depths = list(itertools.accumulate((piece in OPEN) - (piece in CLOSE) for piece in pieces))
    if depths[:1] != [1] or depths[-1] != 0 or 0 in depths[:-1] or pieces[0] not in KINDS:
        return "", text
    return KINDS[pieces[0]] + KINDS[pieces[-1]], "".join(pieces[1:-1]).strip()


def bare(text: str) -> str:
    """A text without needless braces around all of it; {1,2} is a set."""
    while text.startswith("{") and (found := brackets(text))[0] == "{}":
        text = found[1]
        if len(split(text, {",", ";"})[0]) > 1:
            return rf"\{{{text}\}}"
    return text


# Units

UNITS = {
    "m": "1 m meter metre 米 1000 km kilometer kilometre 千米 公里 1/10 dm 1/100 cm centimeter centimetre 厘米 1/1000"
    " mm millimeter millimetre 毫米 127/5000 inch inche in 381/1250 foot feet ft 1143/1250 yard yd 201168/125 mile mi",
    "kg": "1 kg kilogram 公斤 千克 1/1000 g gram 克 1/1000000 mg milligram 1000 ton tonne 吨",
    "lb": "1 lb pound 1/16 oz ounce",
    "s": "1 s sec second 秒 60 min minute 分钟 3600 h hr hour 小时 86400 day 天 604800 week wk 周 1/1000 ms",
    "month": "1 month mo 个月 12 year yr 年",
    "L": "1 L l liter litre 升 1/1000 mL ml milliliter millilitre 毫升",
    "gallon": "1 gallon gal 1/4 quart qt 1/8 pint pt 1/16 cup",
    "dollar": "1 dollar USD buck 美元 1/100 cent ¢ 美分",
    **{
        "euro": "1 euro EUR €",
        "sterling": "1 £ GBP",
        "yuan": "1 yuan RMB CNY ¥ 元 人民币",
        "rupee": "1 rupee Rs INR ₹",
    },
    **{"degree": r"1 degree deg ^\circ 度 1/60 ' arcminute 1/3600 '' arcsecond", "radian": "1 radian rad"},
    **{"J": "1 J joule 1000 kJ 523/125 cal calorie 4184 kcal", "W": "1 W watt 1000 kW", "N": "1 N newton"},
    **{
        "V": "1 V volt",
        "A": "1 A amp ampere",
        "Hz": "1 Hz hertz 1000 kHz 1000000 MHz",
        "Pa": "1 Pa pascal 1000 kPa",
    },
    **{"mol": "1 mol mole", "K": "1 K kelvin", "unit": "1 unit"},
    "": "100 hundred 1000 thousand 千 10000 万 100000 lakh 1000000 million 百万 10000000 crore 千万 100000000 亿"
    " 1000000000 billion 1000000000000 trillion 12 dozen",
}
"""Of each dimension: factors, each before its names. Numerals have none."""
NO_UNIT = re.compile(
    "(?:not|plus|minus|times|divided|over|multiplied|negative|point|squared|cubed|pi|factorial|mil|half|halve|third|fourth"
    "|fifth|sixth|eighth|tenth|hundredth|thousandth|millionth|zero|one|two|three|four|five|six|seven|eight|nine|ten)s?"
    "|.*[半十百千万亿零一二三四五六七八九两分点又负].*"
)
FILLER = re.compile("a|the|in|on|of|to|at|by|is")
TEMPERATURES = {"c": "c", "celsius": "c", "f": "f", "fahrenheit": "f"}
AREAS = {"square": 2, "sq": 2, "平方": 2, "cubic": 3, "cu": 3, "立方": 3}
CURRENCY = r"(?:US|USD|Rs\.? )?(?:\\text\{ ?(?:dollar|USD|Rs\.?|[€£¥₹]) ?\})? ?"
POWER = r"(?: ?\^ ?(?:\{ ?-?\d ?\}|-?\d))?"
UNIT_PIECES = (
    rf"\\text\{{(?:[^{{}}]{{2,}}|[^{{}}a-zA-Z])\}}{POWER}|(?<=[ /])\\text\{{[a-zA-Z]\}}{POWER}"
    rf"|\\text\{{[a-zA-Z]\}}(?= ?[\^/]){POWER}|(?<=[ /])(?:[a-zA-Z]{{2,}}\.?|a (?=[a-z])|(?<=/)[a-zA-Z]){POWER}"
    r"|\^\\circ|[\u4e00-\u9fff]+|/|\\cdot(?= ?\\text)"
)
REFERENCE_UNIT = rf"(?! ?(?:/|\\cdot))(?: ?(?:{UNIT_PIECES}|\\text\{{[msghL]\}}))+"
ANSWER_UNIT = (
    rf"(?! ?(?:/|\\cdot))(?: ?(?:{UNIT_PIECES}|(?<=\d)(?:[ckm]m|kg|ft|hr|min|mph|k?Hz)(?![a-zA-Z])))+"
)
QUANTITY = {
    is_reference: re.compile(rf"(-?)({CURRENCY})(.+?)({unit})?", re.DOTALL)
    for is_reference, unit in ((True, REFERENCE_UNIT), (False, ANSWER_UNIT))
}
"""Letters behind a number are a unit behind a space. 5\\mathrm{m} is one in a reference, 5cm in an answer."""
PART = rf"(\d+(?:\.\d+)?)({ANSWER_UNIT}|''?) ?(?:\\land )?"
WORD = re.compile(
    rf"([a-zA-Z](?:[a-zA-Z.]*[a-zA-Z])?|平方|立方|[百千]?万|亿|[\u4e00-\u9fff]+|\^\\circ|''?|[€£¥₹¢/])\.?({POWER})"
)


def _known_units() -> dict[str, tuple[str, Fraction]]:
    found, factor = dict[str, tuple[str, Fraction]](), Fraction(1)
    for dimension, line in UNITS.items():
        for word in line.split():
            if word[0].isdigit():
                factor = Fraction(word)
            else:
                found[word] = (dimension, factor)
    return found


KNOWN = _known_units()


@dataclass(frozen=True, slots=True)
class Unit:
    """The powers of dimensions, the factor of this unit, a numeral (million), and words that are no known unit."""

    powers: tuple[tuple[str, int], ...] = ()
    factor: Fraction = Fraction(1)
    scale: Fraction = Fraction(1)
    words: frozenset[str] = frozenset()

    def ratio(self, other: "Unit") -> Fraction | None:
        """What a number in the other unit is multiplied by; None if they differ. No unit differs from none."""
        if not (self.powers or self.words) or not (other.powers or other.words):
            return Fraction(1)
        if self.powers != other.powers or not (self.words <= other.words or other.words <= self.words):
            return None
        return other.factor / self.factor


@functools.lru_cache(maxsize=1024)
def read_unit(text: str) -> Unit | None:
    """The unit that words, signs and powers are; None for words that are none, or change the number otherwise."""
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1", text.replace(r"\cdot", " "))
    text = re.sub(r"\bkm?ph\b", "km/h", re.sub(r"\bmph\b", "mile/h", text))
    matches = WORD.findall(text)
    if re.search(r"[^\s.,()-]", WORD.sub("", text)) or (
        text.strip() and not any(word != "/" for word, _ in matches)
    ):
        return None
    found, words = list[tuple[str, Fraction, int]](), set[str]()
    scale, sign, area = Fraction(1), 1, 1
    for i, (word, power) in enumerate(matches):
        name = word.replace(".", "")
        low = name.lower()
        stem = low.removesuffix("s")
        known = next(
            (KNOWN[form] for form in (name, low, stem, low.removesuffix("es")) if form in KNOWN), None
        )
        if len(name) == 1:
            known = KNOWN.get(name)
        if low in AREAS:
            area = AREAS[low]
            continue
        if low in ("per", "/"):
            sign = -1
        elif low in ("squared", "cubed") and found:
            found[-1] = (*found[-1][:2], found[-1][2] * (2 if low == "squared" else 3))
        elif low in TEMPERATURES:
            words.add(TEMPERATURES[low])
            found = [("degree", Fraction(1), 1)]
        elif known and not (low == "in" and i < len(matches) - 1):
            scale *= 1 if known[0] else known[1]
            found += [(*known, sign * area * int(re.sub(r"[^-\d]", "", power) or 1))] if known[0] else []
        elif not FILLER.fullmatch(low):
            letters = (
                name.isascii()
                and (len(name) <= 2 or not re.search("[aeiou]", low))
                and low not in ("am", "pm")
            )
            if letters or NO_UNIT.fullmatch(low):
                return None
            words.add(stem)
        area = 1
    powers, factor = dict[str, int](), Fraction(1)
    for dimension, one, exponent in found:
        powers[dimension] = powers.get(dimension, 0) + exponent
        factor *= one**exponent
    return Unit(tuple(sorted((d, p) for d, p in powers.items() if p)), factor, scale, frozenset(words))


@functools.lru_cache(maxsize=4096)
def quantity(text: str, is_reference: bool = False) -> tuple[list[tuple[str, Fraction]], Unit]:
    r"""The number of a tidy answer, as terms with a factor each (63^\circ 45' is 63 and 45/60), and its unit."""
    if re.fullmatch(rf"(?:{PART}){{2,}}", text):
        parts = [(value, read_unit(unit)) for value, unit in re.findall(PART, text)]
        known = [(value, unit) for value, unit in parts if unit and unit.powers]
        factors = [unit.factor for _, unit in known]
        if (
            len(known) == len(parts)
            and len({unit.powers for _, unit in known}) == 1
            and sorted(set(factors), reverse=True) == factors
        ):
            return [(value, unit.factor) for value, unit in known], Unit(known[0][1].powers)
    match = QUANTITY[is_reference].fullmatch(text)
    sign, currency, value, unit = match.groups("") if match else ("", "", text, "")
    found, money = read_unit(unit), read_unit(currency)
    if found and money and money.powers and money.powers != found.powers:
        found = read_unit(f"{currency} {unit}")
    in_function = "circ" in unit and re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", value)
    if not is_reference and unit.strip(" }") in (r"\text{K", r"\text{ K"):
        found = None  # kelvins, or thousands
    if not found or in_function or not (found.powers or re.search(r"\d|\\pi|\\infty", value)):
        return [(text, Fraction(1))], Unit()
    value = value.strip()
    if re.fullmatch(r"\d{1,3}(?: \d{3})+(?:\.\d*)?", value, re.ASCII):
        value = value.replace(" ", "")
    return [(sign + value, found.scale)], found
