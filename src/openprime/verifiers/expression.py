r"""Plain LaTeX read as a tree, and trees compared by their values.

A tree is a tuple: ("n", a Fraction), ("x", a name), or an operation and its operands: + * / ^, root, fact, binom,
abs, floor, ceil, and the names in FUNCTIONS. Two trees are equal if their values are at several points (Schwartz
1980, Zippel 1979): exactly where they are rational, else to a relative precision that grows with the largest and
the smallest number met on the way. So tiny terms are seen, and 1.414214 is not \sqrt{2}.
"""

import functools
import math
import random
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

Node = tuple[Any, ...]

MOST_CHARACTERS = 400
"""Characters of a text."""
DEEPEST = 12
"""Nested brackets."""
MOST_BITS = 40_000
"""Bits of the numerator or denominator of a fraction."""
LARGEST = 5000
"""Bits before or behind the point of other numbers, and of all fractions among them."""
LARGEST_FACTORIAL = 3000
FUNCTIONS = frozenset(
    f"{arc}{name}{h}"
    for arc in ("", "arc")
    for name in ("sin", "cos", "tan", "cot", "sec", "csc")
    for h in ("", "h")
) | {"ln", "exp"}
ALIASES = {"log": "ln", "lg": "ln", "tg": "tan", "ctg": "cot", "arctg": "arctan"}
GREEK = (
    "alpha|beta|(?:var)?gamma|delta|(?:var)?epsilon|zeta|eta|(?:var)?theta|iota|kappa|lambda|mu|nu|xi|pi|rho"
    "|sigma|tau|upsilon|(?:var)?phi|chi|psi|omega|ell|hbar|infty"
)
LETTER = re.compile(rf"[a-zA-Z]|\\(?i:{GREEK})|\\text\{{ ?[a-zA-Z]\}}")
ACCENT = re.compile(r"\\(?:vec|hat|bar|d?dot|tilde|overline|mathbb|mathcal)")
RECURRING = r"\d*\.\d*\\overline\{\d+\}"
TOKEN = re.compile(
    rf" +|{RECURRING}|\d+(?:\.\d*)?|\.\d+|\\text\{{ ?[a-zA-Z]\}}|\\[a-zA-Z]+|\\%|[a-zA-Z]|[-+*/^_(){{}}\[\]|!']",
    re.ASCII,
)
NUMBER = re.compile(r"\.?\d|\.\\")
MIXED = re.compile(r"\\frac(?:\d\d|\d\{\d+\}|\{\d+\}\d|\{\d+\}\{\d+\})")
CLOSING = {"(": ")", "{": "}", "[": "]", "|": "|", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
AROUND = {"|": "abs", r"\lfloor": "floor", r"\lceil": "ceil"}
TIMES = ("*", r"\cdot", r"\times")
OVER = ("/", r"\div")
STEPS: dict[str, Any] = {"abs": abs, "floor": math.floor, "ceil": math.ceil}
ONE, MINUS, TWO = (("n", Fraction(number)) for number in (1, -1, 2))


class Unreadable(Exception):
    """Not plain arithmetic, or too much of it."""


@functools.lru_cache(maxsize=4096)
def read(text: str) -> Node | None:
    """The tree of a text; None for one that is no plain expression, or has more than one meaning (1/2x)."""
    try:
        return _Reader(text).all() if len(text) <= MOST_CHARACTERS else None
    except Unreadable:
        return None


def names(node: Node) -> set[str]:
    r"""The names in a tree that stand for any number; \pi, e and i do not."""
    if node[0] in ("n", "x"):
        return {node[1]} - {r"\pi", "e", "i"} if node[0] == "x" else set()
    return set().union(*map(names, node[1:]))


class _Reader:
    """Reads one text from left to right; every method raises Unreadable where its part is not there."""

    def __init__(self, text: str) -> None:
        tokens = TOKEN.findall(text)
        if "".join(tokens) != text:
            raise Unreadable
        self.tokens = [token for token in reversed(tokens) if token[0] != " "]
        self.last = ""
        self.open: list[str] = []  # what closes the brackets that are open
        self.in_function = False

    @property
    def next(self) -> str:
        """The token that comes next, or nothing."""
        return self.tokens[-1] if self.tokens else ""

    def take(self, *wanted: str) -> str:
        if not self.tokens or (wanted and self.next not in wanted):
            raise Unreadable
        self.last = self.tokens.pop()
        return self.last

    def all(self) -> Node:
        value = self.inside()
        if self.tokens:
            raise Unreadable
        return value

    def inside(self) -> Node:
        r"""A sum, or two with \over or \choose between them."""
        value = self.sum()
        if self.next in (r"\choose", r"\over"):
            return ("/" if self.take() == r"\over" else "binom", value, self.sum())
        return value

    def sum(self) -> Node:
        terms: list[Node] = []
        while not terms or self.next in ("+", "-"):
            sign = self.take() if self.next in ("+", "-") else "+"
            term = self.product()
            terms.append(term if sign == "+" else ("*", MINUS, term))
        return _joined("+", terms)

    @property
    def ended(self) -> bool:
        """Does no factor come next?"""
        ends = ("", "+", "-", ")", "}", "]", r"\rfloor", r"\rceil", r"\choose", r"\over")
        return self.next in ends or (self.next == "|" and "|" in self.open)

    def product(self) -> Node:
        factors, divided = [self.power()], False
        while not self.ended:
            if self.next in OVER:
                self.take()
                factors, divided = [("/", _joined("*", factors), self.power())], True
                continue
            if self.next in TIMES:
                self.take()
            elif divided or (NUMBER.match(self.next) and self.last != "!"):
                raise Unreadable  # 1/2x may be x/2 or 1/(2x), x2 may be anything
            factors.append(self.power())
        return _joined("*", factors)

    def power(self) -> Node:
        value = self.factor()
        if self.next == "!":
            self.take()
            value = ("fact", value)
        if self.next == "^":
            self.take()
            exponent = self.exponent()
            degrees = ("/", ("x", r"\pi"), ("n", Fraction(180)))
            value = ("*", value, degrees) if exponent is None else ("^", value, exponent)
        if self.next in ("^", "!"):
            raise Unreadable
        if self.next == r"\%":
            self.take()
            value = ("/", value, ("n", Fraction(100)))
        return value

    def exponent(self) -> Node | None:
        """What stands behind ^; None for a degree sign, which is read inside functions alone."""
        if self.next == r"\circ" and self.in_function:
            self.take()
            return None
        if self.next == "-":
            self.take()
            return ("*", MINUS, self.factor())
        return self.factor()

    def group(self) -> Node:
        """What is in brackets or bars."""
        opening = self.take(*CLOSING)
        self.open.append(CLOSING[opening])
        if len(self.open) > DEEPEST:
            raise Unreadable
        value = self.inside()
        self.take(self.open.pop())
        return (AROUND[opening], value) if opening in AROUND else value

    def argument(self) -> Node:
        """As TeX reads it: a group, or one digit, letter or command."""
        if self.next.isdigit() and len(self.next) > 1:
            self.tokens[-1:] = [self.next[1:], self.next[0]]
        return self.factor()

    def raw(self) -> str:
        """A group or a token, as text."""
        text, depth = "", 0
        while not text or depth > 0:
            token = self.take()
            depth += (token == "{") - (token == "}")
            text += token
        return text.strip("{}")

    def factor(self) -> Node:
        token = self.next
        if token in CLOSING:
            return self.group()
        self.take()
        if LETTER.fullmatch(token) or ACCENT.fullmatch(token):
            return self.name(token)
        if token in (r"\frac", r"\binom"):
            return ("/" if token == r"\frac" else "binom", self.argument(), self.argument())
        if token == r"\sqrt":
            index = self.group() if self.next == "[" else TWO
            return ("root", self.argument(), index)
        if token[1:] in FUNCTIONS or token[1:] in ALIASES:
            return self.function(token[1:])
        if not NUMBER.match(token):
            raise Unreadable
        number = ("n", _decimal(token))
        if token.isdigit() and MIXED.match("".join(self.tokens[:-9:-1])):
            number = ("+", number, self.factor())
            if self.next == "^":
                raise Unreadable
        return number

    def name(self, token: str) -> Node:
        r"""A letter with its accents, index and primes: \dot{x}_{0}, f''."""
        name = token[-2] if token.endswith("}") else token
        if ACCENT.fullmatch(token):
            name += "{" + self.raw() + "}"
        if self.next == "_":
            self.take()
            name += "_" + self.raw()
        while self.next == "'":
            name += self.take()
        return ("x", name)

    def function(self, name: str) -> Node:
        r"""A function of brackets, or of the product behind it: \sin^2 2x. \log alone has the base 10."""
        base = ("n", Fraction(10)) if name in ("lg", "log") else None
        power = None
        while self.next in ("^", "_"):
            if self.take() == "^":
                power = self.exponent()
            elif name == "log":
                base = self.argument()
            else:
                raise Unreadable
        name = ALIASES.get(name, name)
        if power == ("*", MINUS, ONE) and name in FUNCTIONS and not name.startswith("arc"):
            name, power = f"arc{name}", None
        outer, self.in_function = self.in_function, True
        if self.next in CLOSING:
            value = self.group()
        else:
            factors = [self.power()]
            while (
                not self.ended
                and self.next not in ("(", "[", *TIMES)
                and self.next[1:] not in FUNCTIONS | ALIASES.keys()
            ):
                if self.next in OVER or NUMBER.match(self.next):
                    raise Unreadable  # \sin x/2
                factors.append(self.power())
            value = _joined("*", factors)
        self.in_function = outer
        node = ("^", ("x", "e"), value) if name == "exp" else (name, value)
        node = ("/", node, ("ln", base)) if base else node
        return ("^", node, power) if power else node


def _joined(sign: str, parts: list[Node]) -> Node:
    return (sign, *parts) if len(parts) > 1 else parts[0]


def _decimal(token: str) -> Fraction:
    digits, _, recurring = token.removesuffix("}").partition(r"\overline{")
    value = Fraction(f"0{digits}".removesuffix("."))
    if recurring:
        places = len(digits.partition(".")[2])
        value += Fraction(int(recurring), 10**places * (10 ** len(recurring) - 1))
    return value


def same_value(one: Node, two: Node) -> bool | None:
    """True if two trees have one value wherever both are real; None where that would take long to tell.

    Letters are tried at numbers of several sizes and both signs; at positive ones both trees must be real or none.
    Where they are real at few of these points (as with i), their complex values at positive ones count. Nothing
    equals a tree without a value, as 1/0.
    """
    if _sorted(one) == _sorted(two):
        return True
    letters = sorted(names(one) | names(two))
    found: list[tuple[bool, bool, bool]] = []
    costly = False
    for positive, point in _points(letters, repr(one), _has_steps(one) or _has_steps(two)):
        try:
            numbers, (left, right), (real, real2) = _evaluate((one, two), point)
        except ZeroDivisionError:
            continue
        except Unreadable:
            costly = True
            continue
        same = left == right
        if not isinstance(left, Fraction):
            same = bool(abs(left - right) <= max(abs(left), abs(right)) * numbers.tiny)
        if not same and ((real and real2) or (positive and real != real2)):
            return False
        found.append((real and real2, positive, same))
    needed = 2 if letters else 1
    if sum(real for real, *_ in found) >= needed:
        return True
    at_positive = [same for _, positive, same in found if positive]
    if len(at_positive) >= needed:
        return all(at_positive)
    return None if costly else False


def value_of(node: Node | None, exact: bool = False) -> Fraction | None:
    """The real value of a tree, rounded to 60 digits if it is no fraction (or none if `exact`); None without one."""
    try:
        numbers, (value,), (real,) = _evaluate((node or (),), {})
    except (Unreadable, ZeroDivisionError):
        return None
    if isinstance(value, Fraction):
        return value
    return Fraction(numbers.mp.nstr(value.real, 60)) if real and not exact else None


def at(node: Node, point: dict[str, Fraction]) -> Node:
    """A tree with numbers for some of its names."""
    if node[0] in ("n", "x"):
        return ("n", point[node[1]]) if node[1] in point else node
    return (node[0], *(at(part, point) for part in node[1:]))


def quotient(node: Node) -> tuple[Node, Node]:
    """The numerator and the denominator of a sum of quotients, not in lowest terms."""
    if node[0] not in ("+", "*", "/"):
        return node, ONE
    (top, bottom), *rest = map(quotient, node[1:])
    for top2, bottom2 in rest:
        if node[0] == "+":
            top = ("+", ("*", top, bottom2), ("*", top2, bottom))
        else:
            top = ("*", top, top2 if node[0] == "*" else bottom2)
        bottom = ("*", bottom, top2 if node[0] == "/" else bottom2)
    return top, bottom


def _sorted(node: Node) -> Node:
    """A tree whose sums and products have one order."""
    if node[0] in ("n", "x"):
        return node
    parts = [_sorted(part) for part in node[1:]]
    if node[0] in ("+", "*"):
        parts = sorted(
            (each for part in parts for each in (part[1:] if part[0] == node[0] else (part,))), key=repr
        )
    return (node[0], *parts)


def _has_steps(node: Node) -> bool:
    return node[0] in ("floor", "ceil") or (node[0] not in ("n", "x") and any(map(_has_steps, node[1:])))


def _points(letters: list[str], seed: str, steps: bool) -> Iterator[tuple[bool, dict[str, Fraction]]]:
    """(are all numbers positive, a number for each letter): small and larger ones; with one letter negative; and whole
    ones for functions with steps. They depend on the first tree, the reference, which a policy does not know."""
    negative = 2 * min(max(2, len(letters)), 6)
    ranges = [(0.5, 2)] * 3 + [(2, 12), (10, 60)] + [(0.5, 3)] * negative + [(1, 40)] * (16 * steps)
    for i, (low, high) in enumerate(ranges if letters else ranges[:1]):
        draw = random.Random(f"{seed}{i}")
        scale = 1 if low == 1 else 1 << 16
        point = {letter: Fraction(round(draw.uniform(low, high) * scale), scale) for letter in letters}
        is_negative = i >= 5 and low != 1
        if is_negative:
            point[letters[i % len(letters)]] *= -1 if i % 2 else -20
        yield not is_negative, point


def _evaluate(
    nodes: tuple[Node, ...], point: dict[str, Fraction]
) -> tuple["_Numbers", list[Any], list[bool]]:
    """Values of trees, all fractions or none, with a precision that sees the smallest number in them; and of each
    tree, whether all is real in it."""
    precision = 200
    while True:
        numbers = _Numbers(precision, point)
        values, reals = [], []
        for node in nodes:
            numbers.real = True
            values.append(numbers.value(node))
            reals.append(numbers.real)
        if not all(isinstance(value, Fraction) for value in values):
            values = [numbers.number(value) for value in values]
        needed = 200 + 4 * numbers.size + 2 * numbers.digits
        if needed <= precision:
            return numbers, values, reals
        precision = needed


@functools.cache
def _mpmath() -> Any:
    import mpmath

    return mpmath.MPContext()


class _Numbers:
    """Evaluates trees at a point: in fractions as far as they go, with `precision` bits beyond.

    Raises ZeroDivisionError where there is no value, and Unreadable where it would take long.
    """

    def __init__(self, precision: int, point: dict[str, Fraction]) -> None:
        self.precision = precision
        self.point = point
        self.size = self.digits = 0  # bits of the largest or smallest number, and of all fractions among them
        self.real = True

    @functools.cached_property
    def mp(self) -> Any:
        """mpmath, which is imported when the first number is no fraction."""
        context = _mpmath()
        context.prec = self.precision
        return context

    @property
    def tiny(self) -> Any:
        """What is as good as zero beside 1."""
        return self.mp.mpf(2) ** -(self.precision // 2)

    def value(self, node: Node) -> Any:
        """The value of a tree: a Fraction, or a number of mpmath."""
        kind, *parts = node or ("",)
        if kind == "n" or (kind == "x" and parts[0] in self.point):
            return parts[0] if kind == "n" else self.point[parts[0]]
        if not parts or (kind == "x" and parts[0] not in (r"\pi", "e", "i")):
            raise Unreadable
        if kind == "x":
            return self.checked(+{r"\pi": self.mp.pi, "e": self.mp.e, "i": self.mp.j}[parts[0]])
        values = [self.value(part) for part in parts]
        if (
            all(isinstance(value, Fraction) for value in values)
            and (exact := _exact(kind, *values)) is not None
        ):
            return exact
        return self.checked(self.inexact(kind, *map(self.number, values)))

    def checked(self, value: Any) -> Any:
        """A number that is neither too large nor too small."""
        if value:
            self.size = max(self.size, abs(self.mp.mag(value)))
            self.real = self.real and not value.imag
        if max(self.size, self.digits) > LARGEST:
            raise Unreadable
        return value

    def number(self, value: Any) -> Any:
        """A number of mpmath."""
        if not isinstance(value, Fraction):
            return value
        self.digits += value.numerator.bit_length() + value.denominator.bit_length()
        return self.checked(self.mp.mpf(value.numerator) / value.denominator)

    def inexact(self, kind: str, first: Any, *rest: Any) -> Any:
        """An operation on numbers of mpmath. Sums and functions that are zero but for rounding are zero."""
        second = rest[0] if rest else self.mp.one
        if kind == "+":
            total = sum(rest, first)
            return total if abs(total) > max(map(abs, (first, *rest))) * self.tiny else self.mp.zero
        if kind == "*":
            return math.prod(rest, start=first)
        if kind == "/":
            return first / second
        if kind == "^":
            return self.power(first, second)
        if kind == "root":
            odd_of_negative = not first.imag and first.real < 0 and not second.imag and second % 2 == 1
            return -self.power(-first, 1 / second) if odd_of_negative else self.power(first, 1 / second)
        if kind == "fact":
            return self.factorial(first)
        if kind == "binom":
            return self.factorial(first) / (self.factorial(second) * self.factorial(first - second))
        if kind == "abs":
            return abs(first)
        if (first.imag and kind in STEPS) or (kind == "ln" and not first):
            raise ZeroDivisionError
        if kind in STEPS:
            whole = self.mp.nint(first)
            return (
                whole
                if abs(first - whole) <= self.tiny * max(abs(first), 1)
                else getattr(self.mp, kind)(first)
            )
        if kind[-1] == "h" and abs(first) > 2 * LARGEST:
            raise Unreadable
        value = getattr(self.mp, kind.replace("arc", "a"))(first)
        return value if abs(value) > self.tiny * min(abs(first), 1) else self.mp.zero

    def power(self, base: Any, exponent: Any) -> Any:
        if not base and (not exponent or exponent.imag or exponent < 0):
            raise ZeroDivisionError
        if base and abs(exponent) * (abs(self.mp.mag(base)) + 1) > 4 * LARGEST:
            raise Unreadable
        return base**exponent if base else base

    def factorial(self, value: Any) -> Any:
        if self.mp.prec > 1200 or abs(value) > 1000:
            raise Unreadable
        return self.mp.gamma(value + 1)


def _exact(kind: str, first: Fraction, *rest: Fraction) -> Fraction | None:
    """An operation on fractions; None where the result is none. Raises Unreadable where it has too many bits."""
    second = rest[0] if rest else Fraction(0)
    value = None
    if sum(map(_bits, (first, *rest))) > 2 * MOST_BITS:
        raise Unreadable
    if kind == "+":
        value = sum(rest, first)
    elif kind == "*":
        value = math.prod(rest, start=first)
    elif kind == "/":
        value = first / second
    elif kind in STEPS:
        value = Fraction(STEPS[kind](first))
    elif (
        kind == "^"
        and second.denominator == 1
        and _bits(first) * abs(second) <= MOST_BITS
        and (first or second > 0)
    ):
        value = first ** int(second)
    elif kind in ("fact", "binom") and first.denominator == second.denominator == 1:
        if not 0 <= second <= first <= LARGEST_FACTORIAL:
            raise ZeroDivisionError if kind == "fact" and first < 0 else Unreadable
        value = Fraction(math.comb(int(first), int(second)) if rest else math.factorial(int(first)))
    if value is not None and _bits(value) > MOST_BITS:
        raise Unreadable
    return value


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())
