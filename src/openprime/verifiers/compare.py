r"""Two final answers compared by what they are: sets of reals, lists and tuples, relations, words, numbers."""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from openprime.verifiers.expression import MINUS, Node, at, names, quotient, read, same_value, value_of
from openprime.verifiers.normal_form import (
    MIRROR,
    SIGNS,
    Unit,
    bare,
    brackets,
    plain,
    quantity,
    split,
    squeeze,
)
from openprime.verifiers.regions import VARIABLE, named_set, region

BASED = re.compile(r"\(?(\d[\dA-F]*|[A-F]+\d[\dA-F]*|[A-F]+(?=\)?_\{1[1-6]))\)?_(?:\{(\d+)\}|(\d))", re.ASCII)
CLOCK = re.compile(r"(\d{1,2})(?: ?: ?(\d\d))? ?(?:([ap])\.? ?m\b\.?)?", re.IGNORECASE)
LABELS = re.compile(r"(?:\(\d\),?){2,}")
WORDS = re.compile(
    r"[A-Za-z]{3,}|[Nn]o|(?=.* )(?=.*[A-Za-z]{3})[A-Za-z0-9][A-Za-z0-9 ,.'-]*|[^\\]*[\u4e00-\u9fff][^\\]*"
)
SET = re.compile(
    r"\\(?:cup|cap|infty|le|ge|ne|in|emptyset|mathbb|setminus)(?![a-zA-Z])|[<>]|real|solution|empty|integer"
)
NAME = re.compile(
    r"(?!\\?[a-z]{2}$)(?!.*\b(?:no|not|never|except)\b)(?:(?!\\not)[^-+*/^_()=<>!,\d\[\]]|_(?:\w|\{[^{}]*\})"
    r"|\(\\?\w+(?:, ?\\?\w+)*\)|(?<=[A-Zfgh])\([^()]*\))+",
    re.ASCII,
)
r"""What stands before = and is not compared: x, AB, f(2), \angle A, (x,y); not xy, which may be a product."""
SEPARATORS = {",", ";", r"\land", r"\lor"}


class Costly(Exception):
    """The comparison would take long."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The elements of a list, its brackets ('' for none), and the names before = of the elements if all have one."""

    kind: str
    elements: list[str]
    names: list[str]

    @property
    def single(self) -> bool:
        """True for one element, without brackets or as the only one of a set."""
        return len(self.elements) == 1 and self.kind in ("", "{}")

    @property
    def letters(self) -> set[str]:
        """The names without their indices."""
        return {name.partition("_")[0] for name in self.names}

    @property
    def ordered(self) -> bool:
        """False if all names are one, or x_1, x_2: these are the elements of a set."""
        return len(set(self.names)) > 1 and not (len(self.letters) == 1 and self.names[0].endswith("_1"))

    @property
    def by_name(self) -> list[str]:
        """The elements in the order of their names; x comes before y."""
        return [element for _, element in sorted(zip(self.names, self.elements, strict=True))]


class Comparison:
    """Compares tidy answers. `fallback` judges two expressions of which one cannot be read here."""

    def __init__(self, fallback: Callable[[str, str], bool], rounded: bool = False) -> None:
        self.fallback = fallback
        self.rounded = rounded

    def same(self, gold: str, guess: str) -> bool:
        """True if two answers are the same. Raises Costly where it would take long to tell."""
        gold, guess = bare(gold), bare(guess)
        (value, named), (value2, named2) = _unnamed(gold), _unnamed(guess)
        if named != named2:
            gold, guess = bare(value), bare(value2)  # x=5 for 5 and 5 for x=5, but never x=5 for y=5
        if squeeze(gold) == squeeze(guess):
            return True
        for compare in (self.literals, self.sets, self.lists, self.relations, self.words):
            if (found := compare(gold, guess)) is not None:
                return found
        return self.numbers(gold, guess)

    def close(self, one: str, two: str) -> bool:
        """True if two numbers differ by less than a hundredth: one may be called an approximation of the other."""
        value, other = (value_of(_total(quantity(split(text, {"="})[0][-1])[0])) for text in (one, two))
        return value is not None and other is not None and abs(value - other) <= abs(value) / 100

    def literals(self, gold: str, guess: str) -> bool | None:
        """Numbers in a base, labels as (1)(3), times of day, ratios."""
        one, two = squeeze(gold), squeeze(guess)
        based, based2 = BASED.fullmatch(one), BASED.fullmatch(two)
        if based:
            return based.groups() == based2.groups() if based2 else based[1] == two
        if LABELS.fullmatch(one):
            return not two.isdigit() and re.sub("[(),]", "", one) == re.sub("[(),]", "", two)
        time, time2 = CLOCK.fullmatch(plain(gold)), CLOCK.fullmatch(plain(guess))
        if time and time2 and (time[3] or time2[3]):
            as_written = time.group(1, 2) == time2.group(1, 2) and not (time[3] and time2[3])
            return as_written or _minute(time) == _minute(time2)
        parts, others = split(gold, {":"})[0], split(guess, {":"})[0]
        if len(parts) == len(others) > 1:
            trees, trees2 = ([tree for part in each if (tree := read(part))] for each in (parts, others))
            if len(trees) == len(trees2) == len(parts):
                pairs = zip(trees, trees2, strict=True)
                return all(same_value(("/", a, trees[0]), ("/", b, trees2[0])) for a, b in pairs)
        return None

    def sets(self, gold: str, guess: str) -> bool | None:
        """Intervals, inequalities and other sets of reals; None where neither is surely one, or one is none."""
        if not SET.search(gold) and not SET.search(guess):
            return None
        if named_set(gold) == named_set(guess):
            return True
        one, two = region(gold), region(guess)
        if not one or not two:
            return None
        if (one[0] and two[0] and one[0] != two[0]) or len(one[1]) != len(two[1]):
            return False
        pairs = zip(itertools.chain(*one[1]), itertools.chain(*two[1]), strict=True)
        return all(
            a[1] == b[1] and (a[2] == b[2] if "" in (a[2], b[2]) else self.same(a[2], b[2])) for a, b in pairs
        )

    def lists(self, gold: str, guess: str) -> bool | None:
        """Lists, sets, tuples, vectors and matrices; None where neither is one."""
        one, two = read_list(gold), read_list(guess)
        if any(each.single and each.kind == "{}" for each in (one, two)):
            pairs = ((one, gold), (two, guess))
            inner, inner2 = (each.elements[0] if each.single else text for each, text in pairs)
            return r"\emptyset" not in (inner, inner2) and self.same(inner, inner2)
        if one.single and two.single:
            return None
        if len(one.elements) != len(two.elements):
            return False
        if one.names and two.names:
            if sorted(one.names) == sorted(two.names) and len(set(one.names)) > 1:
                return self.in_order(one.by_name, two.by_name)
            of_one_kind = not one.ordered and not two.ordered and one.letters == two.letters
            return of_one_kind and self.in_any_order(one, two)
        named, other = (one, two) if one.names else (two, one)
        if named.ordered and other.kind == "()":
            values = named.elements if named.kind == "()" else named.by_name
            return self.in_order(*((values, two.elements) if named is one else (one.elements, values)))
        if named.ordered and (named is one or other.kind):
            return not other.kind and self.in_order(one.elements, two.elements)
        kinds = {one.kind, two.kind}
        if kinds <= {"", "{}"}:
            return self.in_any_order(one, two)
        alike = len(kinds) == 1 or kinds in ({"()", "column"}, {"()", "row"})
        if alike or ((one.kind, two.kind) == ("()", "") and not _may_be_interval(one.elements)):
            return self.in_order(one.elements, two.elements)
        return False

    def in_order(self, golds: list[str], guesses: list[str]) -> bool:
        """Compare element by element."""
        return all(itertools.starmap(self.same, zip(golds, guesses, strict=True)))

    def in_any_order(self, one: Listing, two: Listing) -> bool:
        """Find another guess for each element."""
        left = list(two.elements)
        for gold in one.elements:
            found = next((guess for guess in left if self.same(gold, guess)), None)
            if found is None:
                return False
            left.remove(found)
        return True

    def relations(self, gold: str, guess: str) -> bool | None:
        """Equations, inequalities, and values with a name or a calculation before them; None without a sign."""
        (sides, signs), (others, signs2) = split(gold, SIGNS), split(guess, SIGNS)
        if not signs and not signs2:
            return None
        signs, signs2 = (["=" if sign == r"\approx" else sign for sign in each] for each in (signs, signs2))
        if not signs:
            return bool(values := _values(others, signs2)) and all(self.same(gold, value) for value in values)
        if not signs2:
            return any(self.same(value, guess) for value in _values(sides, signs))
        values = (
            _values(others, signs2)
            if squeeze(sides[0]) == squeeze(others[0]) and signs[0] == signs2[0]
            else []
        )
        if values and any(all(self.same(one, value) for value in values) for one in _values(sides, signs)):
            return True
        if (found := _same_relation((sides, signs), (others, signs2))) is not None:
            return found
        return signs == signs2 and self.in_order(sides, others)

    def words(self, gold: str, guess: str) -> bool | None:
        """Words, by their letters; None where the first are none."""
        if not WORDS.fullmatch(plain(gold)) or quantity(gold, True)[1] != Unit():
            return None
        one, two = (re.sub(r"^(?:the|an?) |[.']", "", plain(text).lower()) for text in (gold, guess))
        return one.replace("-", " ") == two.replace("-", " ")

    def numbers(self, gold: str, guess: str) -> bool:
        """Expressions and their units."""
        whole, whole2 = read(gold), read(guess)
        if whole and whole2 and names(whole) and same_value(whole, whole2):
            return True  # 2m, whether m is a letter or a unit
        (terms, unit), (terms2, unit2) = quantity(gold, True), quantity(guess)
        ratio = unit.ratio(unit2)
        if ratio is None:
            return False
        one, two = _total(terms), _total([(text, factor * ratio) for text, factor in terms2])
        if one and two:
            if not names(one) and names(two):
                return False
            if self.rounded and rounds(terms2[0][0], one):
                return True
            found = same_value(one, two)
            if found is None:
                raise Costly
            return found
        if len(terms) == len(terms2) == 1 and terms[0][1] == terms2[0][1] * ratio:
            return self.fallback(terms[0][0], terms2[0][0])
        return False


def _same_relation(*relations: tuple[list[str], list[str]]) -> bool | None:
    """True if two equations, inequalities, or chains of them are multiples of each other; None if one is not read.

    An equation that says nothing, as 1=1, is the same as no other.
    """
    differences: list[list[tuple[str, Node]]] = []
    for sides, signs in relations:
        if all(sign in (">", r"\ge") for sign in signs):
            sides, signs = sides[::-1], [MIRROR[sign] for sign in signs[::-1]]
        trees = [tree for side in sides if (tree := read(side))]
        if len(trees) < len(sides):
            return None
        pairs = zip(signs, trees, trees[1:], strict=False)
        differences.append([(sign, ("+", left, ("*", MINUS, right))) for sign, left, right in pairs])
    if [sign for sign, _ in differences[0]] != [sign for sign, _ in differences[1]]:
        return False
    found = [_multiples(sign, one, two) for (sign, one), (_, two) in zip(*differences, strict=True)]
    return False if False in found else None if None in found else True


def _multiples(sign: str, one: Node, two: Node) -> bool | None:
    r"""True if a difference is another times a number, which is positive for < and \le. Of equations the numerators."""
    if sign in ("=", r"\ne"):
        one, two = quotient(one)[0], quotient(two)[0]
    letters = sorted(names(one) | names(two))
    point = {letter: Fraction(i + 3, 7) for i, letter in enumerate(letters)}
    value, value2 = at(one, point), at(two, point)
    number, number2 = value_of(value), value_of(value2)
    if letters and (number is None or number2 is None):
        return None
    if not number or not number2 or (number * number2 < 0 and sign in ("<", r"\le")):
        return False
    return same_value(("*", one, value2), ("*", two, value))


def _unnamed(text: str) -> tuple[str, bool]:
    r"""A text without the `x =` or `x \in` before it, and whether it has any sign of a relation."""
    sides, signs = split(text, SIGNS)
    is_named = len(signs) == 1 and signs[0] in ("=", r"\in") and NAME.fullmatch(sides[0])
    return (sides[1] if is_named else text), bool(signs)


def _minute(time: re.Match[str]) -> int:
    """Of the day."""
    hour = int(time[1]) % 12 + 12 * (time[3] in "pP") if time[3] else int(time[1])
    return 60 * hour + int(time[2] or 0)


def read_list(text: str) -> Listing:
    """The elements of a list; of another text itself, as the only one."""
    sides, signs = split(text, {"=", r"\in"})
    if signs == [r"\in"] and NAME.fullmatch(sides[0]):
        return read_list(sides[1])
    if signs == ["="] and (found := [brackets(side) for side in sides])[0][0] == found[1][0] == "()":
        parts, values = (split(inside, {","})[0] for _, inside in found)
        if len(parts) == len(values) > 1:
            return Listing("()", values, [squeeze(part) for part in parts])
    if point := re.fullmatch(r"[A-Z]'? ?(\(.*,.*\))", text):
        return read_list(point[1])
    transposed = re.fullmatch(r"(.*(?:[)\]]|\\end\{matrix\})) ?\^ ?\{?(?:T|\\top)\}?", text)
    kind, inside = brackets(transposed[1] if transposed else text)
    if kind == "matrix":
        rows = [split(row, {"&"})[0] for row in split(inside.removesuffix(r"\\"), {r"\\"})[0]]
        rows = list(map(list, zip(*rows, strict=False))) if transposed else rows
        shape = {(1, 1): "", (len(rows), 1): "column", (1, len(rows[0])): "row"}.get(
            (len(rows), len(rows[0]))
        )
        shape = str([len(row) for row in rows]) if shape is None else shape
        return Listing(shape, list(itertools.chain(*rows)), [])
    if len(quantity(text)[0]) > 1:
        return Listing("", [text], [])
    if kind not in ("()", "[]", "{}", "(]", "[)"):
        kind, inside = "", text
    if kind in ("()", "[]") and (inside.startswith(r"\begin{matrix}") or transposed):
        return Listing("column", split(inside, {","})[0], []) if transposed else read_list(inside)
    groups, found = split(inside, {";"})
    if not found:
        groups, found = split(inside, {r"\lor"})
        found = found if all(group.count("=") > 1 for group in groups) else []
    if found:
        elements = [f"({group})" if len(split(group, SEPARATORS)[0]) > 1 else group for group in groups]
    else:
        elements = [part for part in split(inside, SEPARATORS)[0] if part]
    if kind == "()" and len(elements) == 1:
        return read_list(inside)
    if kind in ("", "{}"):
        elements = [one for element in elements for one in _both_signs(element)]
    sides = [split(element, {"="}) for element in elements]
    if len(elements) > 1 and all(len(signs) == 1 and NAME.fullmatch(parts[0]) for parts, signs in sides):
        return Listing(
            kind.replace("[]", ""),
            [parts[1] for parts, _ in sides],
            [squeeze(parts[0]) for parts, _ in sides],
        )
    return Listing(kind, elements or [text], [])


def _both_signs(text: str) -> list[str]:
    if not re.search(r"\\[pm][mp](?![a-zA-Z])", text):
        return [text]
    return [text.replace(r"\pm", a).replace(r"\mp", b) for a, b in ("+-", "-+")]


def _may_be_interval(elements: list[str]) -> bool:
    if len(elements) != 2:
        return False
    low, high = (value_of(read(element)) for element in elements)
    return low is None or high is None or low < high


def _values(sides: list[str], signs: list[str]) -> list[str]:
    r"""What stands behind a name (x = 3+5 = 8, x \in S), or all of a calculation (3+5 = 8); [] of other relations."""
    if set(signs) == {r"\in"} and NAME.fullmatch(sides[0]):
        return sides[1:]
    if set(signs) != {"="} or len({squeeze(side) for side in sides}) < len(sides):
        return []
    if VARIABLE.fullmatch(sides[-1]) and not VARIABLE.fullmatch(sides[0]) and len(sides) == 2:
        sides = sides[::-1]  # 5=x
    if NAME.fullmatch(sides[0]):
        return sides[1:]
    first, *rest = map(read, sides)
    return sides if all(first and tree and same_value(first, tree) for tree in rest) else []


def _total(terms: list[tuple[str, Fraction]]) -> Node | None:
    """A sum of numbers with a factor each."""
    trees = [(tree, factor) for text, factor in terms if (tree := read(text))]
    nodes = [tree if factor == 1 else ("*", ("n", factor), tree) for tree, factor in trees]
    if len(nodes) < len(terms):
        return None
    return ("+", *nodes) if len(nodes) > 1 else nodes[0]


def rounds(text: str, gold: Node) -> bool:
    """True if a decimal with six significant digits or more is a number rounded to its digits."""
    digits = text.lstrip("-").replace(".", "", 1).lstrip("0")
    value, places = value_of(gold), len(text.partition(".")[2])
    if not digits.isdigit() or len(digits) < 6 or not places or value is None:
        return False
    return abs(value * 10**places - int(text.replace(".", "", 1))) <= 0.5
