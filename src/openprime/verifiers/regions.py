r"""Sets of real numbers as unions of intervals, out of any of their spellings."""

import functools
import itertools
import math
import re
from collections.abc import Callable
from fractions import Fraction

from openprime.verifiers.expression import GREEK, read, value_of
from openprime.verifiers.normal_form import MIRROR, SIGNS, bare, brackets, plain, split

Cut = tuple[Fraction | float | None, int, str]
"""A place on the line: a number (None if it is not known), before (0) or after (1) it, and its text."""
Region = list[tuple[Cut, Cut]]
"""A union of disjoint intervals in their order, each from a cut to a cut."""
START, STOP, ZERO = (-math.inf, 1, ""), (math.inf, 0, ""), (Fraction(0), 0, "0")
LINES: dict[str, Region] = {
    r"\emptyset": [],
    r"\mathbb{R}": [(START, STOP)],
    r"\mathbb{R}^-": [(START, ZERO)],
    r"\mathbb{R}_{\ge 0}": [(ZERO, STOP)],
    **{name: [((Fraction(0), 1, "0"), STOP)] for name in (r"\mathbb{R}^+", r"\mathbb{R}_{>0}")},
}
VARIABLE = re.compile(
    rf"(?!(?:e|i|\\pi|\\infty)$)(\|)?(?:[a-zA-Z]|\\(?:{GREEK}))(?:_\w|_\{{\w+\}})?'?(?: ?\([a-z]\))?(?(1)\|)"
)
SIGN_OR_INFINITY = re.compile(r"[<>=]|\\(?:le|ge|ne|infty)(?![a-zA-Z])")
NUMBER_SET = re.compile(
    r"(?:(?:for|the|set|of|all|any|every|each) )*(?:(positive|negative|non-?zero) )?(real|integer|rational|complex)s?"
    r"(?: numbers?)?(?: [a-z])?(?: (?:except|excluding|other than|but)(?: for)?(?: [a-z] ?=)? ?(.+))?"
)
NOTHING = re.compile(
    r"(?:there (?:is|are) )?no (?:real )?(?:solutions?|roots?)(?: exists?)?|(?:the )?empty set|\\emptyset"
)


def named_set(text: str) -> str:
    r"""\mathbb{R} for "all real numbers", \emptyset for "no solution"; other texts as they are."""
    words = plain(text)
    if NOTHING.fullmatch(words.lower()):
        return r"\emptyset"
    match = NUMBER_SET.fullmatch(words.lower())
    if not match:
        return re.sub(r"(?<=\\mathbb\{R\}) ?- ?(?=\\\{)", r"\\setminus ", text)
    sign, kind, removed = match.groups("")
    found = rf"\mathbb{{{'Z' if kind == 'integer' else kind[0].upper()}}}" + {
        "pos": "^+",
        "neg": "^-",
        "non": r"\setminus \{0\}",
    }.get(sign[:3], "")
    points = words[match.start(3) :].replace(r"\land", ",")
    return rf"{found}\setminus \{{{points}\}}" if removed else found


def region(text: str) -> tuple[str, Region] | None:
    r"""The variable ('' if none is named) and the set of an interval, a union, \mathbb{R}\setminus\{0\}, inequalities
    (x<2 or x>3), \{x \mid x>2\}; None for any other text."""
    text = re.sub(r"(?<![\w}])\\pm ?((?:[^,{}\\]|\\[a-z]+|\{[^{}]*\})+)", r"\1,-\1", named_set(bare(text)))
    if text in LINES:
        return "", LINES[text]
    for signs, combine in OPERATIONS:
        parts, found = split(text, signs)
        if found:
            is_list = "," in found and not SIGN_OR_INFINITY.search(parts[0])
            return None if is_list else _combined(parts, combine)
    kind, inside = brackets(text)
    parts, _ = split(inside, {","})
    if kind == "{}":
        (variable, *conditions), _ = split(inside, {"|", ":"})
        if conditions:
            is_real = re.fullmatch(rf"{VARIABLE.pattern}(?: ?\\in ?\\mathbb\{{R\}})?", variable)
            return region("|".join(conditions)) if is_real else None
        points: list[Region] = [[_cuts(part)] for part in parts]
        return ("", functools.reduce(_union, points)) if all(map(_known, points)) else None
    if kind in ("()", "[]", "(]", "[)") and len(parts) == 2:
        low, high = _cuts(parts[0])[kind[0] == "("], _cuts(parts[1])[kind[1] == "]"]
        return ("", [(low, high)]) if _ordered(low, high) else None
    return _condition(text)


def _combined(parts: list[str], combine: Callable[[Region, Region], Region]) -> tuple[str, Region] | None:
    if r"\ne" in parts[0]:  # x\ne 0,1
        start = parts[0].split(r"\ne")[0]
        parts = [part if r"\ne" in part or region(part) else rf"{start}\ne {part}" for part in parts]
    sets = [one for part in parts if (one := region(part)) and _known(one[1])]
    variables = {variable for variable, _ in sets if variable}
    if len(sets) < len(parts) or len(variables) > 1:
        return None
    return "".join(variables), functools.reduce(combine, (one for _, one in sets))


def _cuts(text: str) -> tuple[Cut, Cut]:
    """Before and after a number."""
    text = text.replace(" ", "")
    if text.lstrip("+-") == r"\infty":
        number, text = -math.inf if text[0] == "-" else math.inf, ""
    else:
        number = value_of(read(text))
    return (number, 0, text), (number, 1, text)


def _known(one: Region) -> bool:
    return all(cut[0] is not None for pair in one for cut in pair)


def _ordered(low: Cut, high: Cut) -> bool:
    """Is there an interval from one cut to the other?"""
    if low[0] is None or high[0] is None:
        return math.inf not in (low[0], -(high[0] or 0))
    return START[:2] <= low[:2] < high[:2] <= STOP[:2]


def _condition(text: str) -> tuple[str, Region] | None:
    """One relation, or two of a chain, between numbers and a variable or its absolute value."""
    sides, signs = split(text, SIGNS)
    if len(sides) == 2 and not VARIABLE.fullmatch(sides[0]) and signs[0] in MIRROR:
        sides, signs = sides[::-1], [MIRROR[signs[0]]]
    if len(sides) == 3 and set(signs) <= MIRROR.keys():
        sides, signs = [sides[1], sides[0], sides[2]], [MIRROR[signs[0]], signs[1]]
    variable, *numbers = sides
    if not signs or not VARIABLE.fullmatch(variable) or (len(signs) == 1 and VARIABLE.fullmatch(numbers[0])):
        return None
    if signs == [r"\in"]:
        found = region(numbers[0])
        return found and (variable, found[1])
    cuts = {sign: _cuts(number) for sign, number in zip(signs, numbers, strict=True)}
    low = [cuts[sign][sign == ">"] for sign in (">", r"\ge") if sign in cuts]
    high = [cuts[sign][sign == r"\le"] for sign in ("<", r"\le") if sign in cuts]
    if max(len(low), len(high)) == 1 and len(low) + len(high) == len(signs):
        one: Region = [(low[0] if low else START, high[0] if high else STOP)]
        if not _ordered(*one[0]):
            return None
    elif signs in (["="], [r"\ne"]):
        one = [cuts[signs[0]]]
    else:
        return None
    if not _known(one):
        return None if variable[0] == "|" or signs == [r"\ne"] else (variable, one)
    one = _complement(one) if signs == [r"\ne"] else one
    if variable[0] == "|":
        one = _common(one, [(ZERO, STOP)])
        one = _union([(_minus(high), _minus(low)) for low, high in one], one)
    return variable.strip("|"), one


def _minus(cut: Cut) -> Cut:
    return -(cut[0] or 0), 1 - cut[1], cut[2] and f"-({cut[2]})"


def _union(one: Region, two: Region) -> Region:
    merged: Region = []
    for low, high in sorted([*one, *two], key=lambda pair: pair[0][:2]):
        if merged and low[:2] <= merged[-1][1][:2]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high, key=lambda cut: cut[:2]))
        else:
            merged.append((low, high))
    return merged


def _complement(one: Region) -> Region:
    cuts = [START, *itertools.chain(*one), STOP]
    return [(low, high) for low, high in zip(cuts[::2], cuts[1::2], strict=True) if low[:2] < high[:2]]


def _common(one: Region, two: Region) -> Region:
    return _complement(_union(_complement(one), _complement(two)))


OPERATIONS: list[tuple[set[str], Callable[[Region, Region], Region]]] = [
    ({r"\lor"}, _union),
    ({r"\land"}, _common),
    ({","}, lambda one, two: _common(one, two) or _union(one, two)),
    ({r"\cup"}, _union),
    ({r"\cap"}, _common),
    ({r"\setminus"}, lambda one, two: _common(one, _complement(two))),
]
"""Operations on sets, from the one that binds least."""
