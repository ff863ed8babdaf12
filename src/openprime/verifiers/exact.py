r"""Exact arithmetic on plain LaTeX: rational numbers, square roots, the imaginary unit, letters.

A value is a quotient of two sums, so equality is decided by multiplying out, never by rounding:
\frac{1}{\sqrt{3}} is \frac{\sqrt{3}}{3}, (x+1)^2 is x^2+2x+1, and 1.414214 is not \sqrt{2}. The work is
bounded by the number of terms and digits; what would exceed it, or is anything else, is not read.
"""

import functools
import itertools
import math
import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

MOST_TERMS = 40
"""Terms of a sum."""
MOST_BITS = 5000
"""Bits of a numerator or denominator."""
MOST_CHARACTERS = 400
"""Characters of a text."""
DEEPEST = 12
"""Nested brackets."""
LETTER = re.compile(
    r"[a-zA-Z]|\\(?:pi|infty|alpha|beta|gamma|delta|(?:var)?epsilon|theta|lambda|mu|rho|sigma|tau|(?:var)?phi|omega)"
)
REPEATING = r"\d*\.\d*\\overline\{\d+\}"
TOKEN = re.compile(rf" |{REPEATING}|\d+(?:\.\d*)?|\.\d+|\\[a-zA-Z]+|\\%|[a-zA-Z]|[-+*/^(){{}}]", re.ASCII)
RELATION = re.compile(r"(=|<|>|\\le(?![a-z])|\\ge(?![a-z])|\\ne(?![a-z]))")
COMMAS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d*)?(?:\\%)?", re.ASCII)

Terms = dict[tuple[int, tuple[tuple[str, int], ...]], Fraction]
"""A sum without zeros. Of each term: (the number under its root, its letters and their powers), its factor."""
UNIT = (1, ())
ONE: Terms = {UNIT: Fraction(1)}


class Unreadable(Exception):
    """Not plain arithmetic, or too much of it."""


@functools.lru_cache(maxsize=4096)
def read_exact(text: str) -> "Exact | None":
    r"""The value of a text that is all plain arithmetic; None for any other text.

    Read are numbers (decimal, repeating decimal, mixed, percent, 1,234), letters (`i` is the imaginary
    unit), + - * / \cdot \times \frac, whole powers, and square roots of rational numbers.
    """
    if len(text) > MOST_CHARACTERS:
        return None
    try:
        return _Reader(text.replace(",", "") if COMMAS.fullmatch(text) else text).all()
    except Unreadable:
        return None


def same_relation(one: str, two: str) -> bool | None:
    r"""True if two equations, inequalities, or chains of them as 1<x\le2, are multiples of each other.

    None where one is no relation, or the first has sides that are no plain arithmetic. An equation that says
    nothing, as 1=1, is the same as no other.
    """
    relations, others = _relation(one), _relation(two)
    if not relations or not RELATION.search(two):
        return None
    if not others or len(relations) != len(others):
        return False
    for (first, sign), (second, sign2) in zip(relations, others, strict=True):
        key = next(iter(first), UNIT)
        ratio = second.get(key, Fraction(0)) / first.get(key, Fraction(1))
        if sign != sign2 or not ratio or (ratio < 0 and sign in ("<", r"\le")):
            return False
        if {key: factor * ratio for key, factor in first.items()} != second:
            return False
    return True


def _relation(text: str) -> list[tuple[Terms, str]] | None:
    """Of a relation, left side minus right side and the sign between, with > turned round; else None."""
    first, *rest = RELATION.split(re.sub(r"\\([lgn]e)q(?![a-z])", r"\\\1", text))
    sides, signs = [read_exact(side) for side in (first, *rest[1::2])], rest[::2]
    if signs and all(sign in (">", r"\ge") for sign in signs):
        sides, signs = sides[::-1], ["<" if sign == ">" else r"\le" for sign in signs[::-1]]
    found: list[tuple[Terms, str]] = []
    try:
        for left, right, sign in zip(sides, sides[1:], signs, strict=False):
            if left is None or right is None:
                return None
            difference = left + -right
            if difference.bottom != ONE and sign != "=":
                return None  # whether the bottom is positive is not known
            found.append((difference.top, sign))
    except Unreadable:
        return None
    return found or None


@dataclass(frozen=True, slots=True, eq=False)
class Exact:
    """A quotient of sums. Arithmetic raises Unreadable where it would take long, and on division by zero."""

    top: Terms
    bottom: Terms

    @property
    def rational(self) -> Fraction | None:
        """The value, if it is a rational number."""
        if self.bottom != ONE or self.top.keys() - {UNIT}:
            return None
        return self.top.get(UNIT, Fraction(0))

    def same(self, other: "Exact") -> bool | None:
        """True if both are the same value; None where it would take long to tell."""
        try:
            return _times(self.top, other.bottom) == _times(other.top, self.bottom)
        except Unreadable:
            return None

    def __add__(self, other: "Exact") -> "Exact":
        if self.bottom == other.bottom:
            return Exact(_plus(self.top, other.top), self.bottom)
        top = _plus(_times(self.top, other.bottom), _times(other.top, self.bottom))
        return Exact(top, _times(self.bottom, other.bottom))

    def __neg__(self) -> "Exact":
        return Exact({key: -factor for key, factor in self.top.items()}, self.bottom)

    def __mul__(self, other: "Exact") -> "Exact":
        return Exact(_times(self.top, other.top), _times(self.bottom, other.bottom))

    def __truediv__(self, other: "Exact") -> "Exact":
        top, bottom = _times(self.top, other.bottom), _times(self.bottom, other.top)
        if not bottom:
            raise Unreadable
        if bottom.keys() == {UNIT}:
            return Exact({key: factor / bottom[UNIT] for key, factor in top.items()}, ONE)
        return Exact(top, bottom)

    def power(self, exponent: int) -> "Exact":
        """Raises Unreadable for 0^0 too."""
        if abs(exponent) > 1000 or not (self.top or exponent):
            raise Unreadable
        value, base = _number(1), self if exponent >= 0 else _number(1) / self
        for bit in f"{abs(exponent):b}":
            value *= value
            if bit == "1":
                value *= base
        return value

    def root(self) -> "Exact":
        """The square root of a rational number; raises Unreadable for anything else."""
        square = self.rational
        if square is None:
            raise Unreadable
        inside, outside = abs(square.numerator) * square.denominator, Fraction(1, square.denominator)
        if inside > 10**8:
            raise Unreadable
        for factor in range(2, math.isqrt(inside) + 1):
            while inside % (factor * factor) == 0:
                inside, outside = inside // (factor * factor), outside * factor
            if factor * factor > inside:
                break
        return Exact({(inside, (("i", 1),) if square < 0 else ()): outside} if square else {}, ONE)


def _number(value: int | Fraction) -> Exact:
    return Exact({UNIT: Fraction(value)} if value else {}, ONE)


def _plus(left: Terms, right: Terms) -> Terms:
    total = dict(left)
    for key, factor in right.items():
        total[key] = total.get(key, 0) + factor
    return _checked(total)


def _times(left: Terms, right: Terms) -> Terms:
    if left is ONE or right is ONE:
        return right if left is ONE else left
    product: Terms = {}
    for (one, factor), (two, factor2) in itertools.product(left.items(), right.items()):
        (root, powers), (root2, powers2) = one, two
        shared = math.gcd(root, root2)
        factor = factor * factor2 * shared
        letters = Counter(dict(powers))
        letters.update(dict(powers2))
        if letters["i"] == 2:
            factor = -factor
            del letters["i"]
        key = (root * root2 // shared**2, tuple(sorted(letters.items())))
        product[key] = product.get(key, 0) + factor
    return _checked(product)


def _checked(terms: Terms) -> Terms:
    terms = {key: factor for key, factor in terms.items() if factor}
    if len(terms) > MOST_TERMS:
        raise Unreadable
    if any(max(abs(f.numerator), f.denominator).bit_length() > MOST_BITS for f in terms.values()):
        raise Unreadable
    return terms


class _Reader:
    """Reads one text from left to right; every method raises Unreadable where its part is not there."""

    def __init__(self, text: str) -> None:
        tokens = TOKEN.findall(text)
        if "".join(tokens) != text:
            raise Unreadable
        self.tokens = [token for token in reversed(tokens) if token != " "]
        self.depth = 0

    @property
    def next(self) -> str:
        """The token that comes next, or nothing."""
        return self.tokens[-1] if self.tokens else ""

    def take(self, wanted: str = "") -> str:
        if not self.tokens or (wanted and self.next != wanted):
            raise Unreadable
        return self.tokens.pop()

    def all(self) -> Exact:
        value = self.sum()
        if self.tokens:
            raise Unreadable
        return value

    def sum(self) -> Exact:
        total = _number(0)
        while True:
            sign = self.take() if self.next in ("+", "-") else ""
            term = self.product()
            total += -term if sign == "-" else term
            if self.next not in ("+", "-"):
                return total

    def product(self) -> Exact:
        value, divided = self.power(), False
        while self.next not in ("", "+", "-", ")", "}"):
            if self.next == "/":
                self.take()
                value, divided = value / self.power(), True
            elif self.next in ("*", r"\cdot", r"\times"):
                self.take()
                value *= self.power()
            elif divided or self.next[0] in ".0123456789":
                raise Unreadable  # 1/2x may be x/2 or 1/(2x), x2 may be anything
            else:
                value *= self.power()
        return value

    def power(self) -> Exact:
        value = self.factor()
        if self.next == "^":
            self.take()
            if self.next == "{":
                exponent = self.group("{", "}").rational
            else:
                exponent = Fraction(self.take()) if len(self.next) == 1 and self.next.isdigit() else None
            if exponent is None or exponent.denominator > 1 or self.next == "^":
                raise Unreadable
            value = value.power(int(exponent))
        if self.next == r"\%":
            self.take()
            value *= _number(Fraction(1, 100))
        return value

    def group(self, opening: str, closing: str) -> Exact:
        self.take(opening)
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable
        value = self.sum()
        self.take(closing)
        self.depth -= 1
        return value

    def factor(self) -> Exact:
        if self.next in ("(", "{"):
            return self.group(self.next, {"(": ")", "{": "}"}[self.next])
        token = self.take()
        if token == r"\frac":
            return self.group("{", "}") / self.group("{", "}")
        if token == r"\sqrt":
            return self.group("{", "}").root()
        if LETTER.fullmatch(token):
            return Exact({(1, ((token, 1),)): Fraction(1)}, ONE)
        if token[0] not in ".0123456789":
            raise Unreadable
        digits, _, repeating = token.removesuffix("}").partition(r"\overline{")
        value = Fraction(f"0{digits}".removesuffix("."))
        if repeating:
            places = len(digits.partition(".")[2])
            value += Fraction(int(repeating), 10**places * (10 ** len(repeating) - 1))
        number = _number(value)
        following = "".join(self.tokens[:-9:-1])
        if not token.isdigit() or not re.match(r"\\frac\{\d+\}\{\d+\}", following):
            return number
        number += self.factor()  # a mixed number
        if self.next == "^":
            raise Unreadable
        return number
