r"""Mathematics: is the final answer in a text the reference answer?

The policy learns against this judge, so every answer is hostile input. Three stages: normalised
strings and exact arithmetic decide most pairs; a pre-screen refuses what would be slow to compute;
math-verify (LaTeX to SymPy) decides the rest. No stage hands text to `eval` or `parse_expr`:
math-verify is asked for LaTeX alone, which it reads with a grammar. Time is limited by the pool of
worker processes in which this runs.
"""

import dataclasses
import functools
import itertools
import logging
import math
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from openprime.types import Prompt, Verdict
from openprime.verifiers.exact import read_exact, same_relation

LONGEST = 200
"""Characters of an answer that math-verify may see."""
DEEPEST = 12
"""Nested brackets of an answer that math-verify may see."""
MOST_BOXES = 8
"""A response with more differing answers than this is wrong."""
COSTLY = r"!|\\[dt]?binom|\\choose|\\sum|\\prod|\\int|\\lim|\\Gamma"
"""A prediction may hold these only as often as the reference does."""
FUNCTION = r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc|log|ln|exp)h?"
"""A prediction may hold four more of these, or of subscripts, than the reference does."""
LARGEST = (100, 8, 1000)
"""Exponents at a letter, at functions and brackets, and elsewhere, beyond those of the reference."""

BRACE = re.compile(r"\\?\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
BOXED = re.compile(r"\\(?:boxed|fbox)\s*")
LINE = re.compile(r"^[ \t]*####[ \t]*([^\s#][^\n]*)", re.MULTILINE)
WIDE = str.maketrans(
    {0xFEE0 + i: i for i in range(0x21, 0x7F)} | {"−": "-", "–": "-", "π": r"\pi ", "∞": r"\infty "}
)
MATRIX = re.compile(r"\\begin\{[pb]?matrix\}(.*)\\end\{[pb]?matrix\}")
BASED = re.compile(r"([\dA-Z]+)_\{?(\d+)\}?", re.ASCII)
WORDS = re.compile(r"[A-Za-z]{3,}|(?=.* )(?=.*[A-Za-z]{3})[A-Za-z0-9][A-Za-z0-9 ,.'-]*")
NO_UNIT = re.compile(
    r"hundred|thousand|[mbtr]illion|dozen|\b(?:and|or|not|plus|minus|times|squared|cubed|pi|factorial)\b"
)
ORDER = re.compile(r"(<|>|\\[lg]e(?![a-pr-z])q?)")
MIRROR = {">": "<", r"\ge": r"\le"}
RELATION = re.compile(r"=|\\in(?![a-zA-Z])")
NAME = re.compile(
    rf"(^|, ?)(?:(?!\\not)[^-+*/^_()=<>!,\d]|_(?:\w|\{{\w+\}})|\(\w+(?:, ?\w+)*\))+(?:{RELATION.pattern})",
    re.ASCII,
)
OPEN, CLOSE = ("(", "[", "{", r"\{"), (")", "]", "}", r"\}")


def _without_unit(match: re.Match[str]) -> str:
    r"""Drop `\text{...}` at the end where a number stands before it and it may be the number's unit."""
    counted = re.search(r"\d|\\pi", match.string[: match.start()])
    return "" if counted and not NO_UNIT.search(match[1]) else match[0]


def _without_bare_unit(match: re.Match[str]) -> str:
    return match[0] if NO_UNIT.search(match[2]) else match[1]


def _without_degrees(match: re.Match[str]) -> str:
    """Drop the sign, but not in an answer with functions: their argument would change."""
    return match[0] if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", match.string) else ""


STYLE = r"\\(?:text|mathrm|mathbf|mathit|mbox)(?:bf|it|rm|normal|sf|tt)?\s*\{"
PERCENT = r"\\text\{\s*\\?%\s*\}|\s*\\text\{\s*per ?cent(?:age)?\s*\}|\s*\bper ?cent(?:age)?\b"
UNIT = r" ?\\text\{([a-zA-Z /.-]*(?:\^?\d)?)\}(?: ?\^ ?(?:\d|\{\d\}))?[ .]*$"
BARE_UNIT = r"(?a)\A([-+]?[\d,.]+) ((?:[a-zA-Z]{3,}|[ckm]m|kg|ft|hr)[a-zA-Z ]*(?:\^ ?(?:\d|\{\d\}))?[ .]*)\Z"
TIDYING: list[tuple[str, str | Callable[[re.Match[str]], str], str, str]] = [
    (r"\\\$|\$|(?<!\\)\\[\[\]()]|\\displaystyle(?![a-zA-Z])", "", r"\(\$5\)", "5"),
    (r"\\m?(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])", "", r"\left(1,2\right]", "(1,2]"),
    (r"(?<=\d)(?:,? ?\\!|\\,|\{,\}) ?(?=\d{3}(?!\d))", "", r"1,\!000\,000{,}000", "1000000000"),
    (r"(?<!\\)\\[,!;: ]|~|\\q?quad(?![a-zA-Z])", " ", r"(1,\,2)", "(1, 2)"),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", r"\dfrac{1}{2}", r"\frac{1}{2}"),
    (STYLE, r"\\text{", r"5\mathrm {cm}", r"5\text{cm}"),
    (r"(?<!\\)%", r"\\%", "5%", r"5\%"),
    (PERCENT, r"\\%", r"5 \text{ percent}", r"5\%"),
    (UNIT, _without_unit, r"12\pi \text{ cm}^3.", r"12\pi"),
    (r"\\text\{([^{}]*)\}", r"\1", r"\text{Evelyn}", "Evelyn"),
    (BARE_UNIT, _without_bare_unit, "18 dollars", "18"),
    (r"\s*(?:\^ ?(?:\\circ|\{ ?\\circ ?\})|°|\bdegrees?\b)", _without_degrees, r"90^{\circ}", "90"),
    (r",? (?:and|or) ", ", ", "-2 and 1", "-2, 1"),
    (r"\\frac ?(\d) ?(\d)", r"\\frac{\1}{\2}", r"\frac12", r"\frac{1}{2}"),
    (r"\\frac ?(\d) ?\{", r"\\frac{\1}{", r"\frac1{20}", r"\frac{1}{20}"),
    (r"\\frac ?(\{[^{}]*\}) ?(\d)", r"\\frac\1{\2}", r"\frac{270}7", r"\frac{270}{7}"),
    (r"\\sqrt ?(\d)", r"\\sqrt{\1}", r"\sqrt5", r"\sqrt{5}"),
]
"""Substitutions in their order: pattern, replacement, and an example, before and after."""


Answers = Literal["auto", "boxed", "hashes"]
r"""Place of the answer: in the last `\boxed{...}` or `\fbox{...}`, on the last line `#### answer`, or in
whichever of them comes later."""

importing: Callable[[], AbstractContextManager[None]] = nullcontext
"""Entered around the import of math-verify, which takes a second: a worker stops its clock meanwhile."""


def verify_math(prompt: Prompt, responses: Sequence[str], answers: Answers = "auto") -> list[Verdict]:
    """Judge each response: right, wrong, no_answer, or rejected (not worth computing).

    The reference is the final answer in `prompt.answer`, or all of it. A percent sign is a unit where
    the question speaks of percents or the reference has one; elsewhere 7% is 0.07. Of several differing
    answers in one response all must be right, unless the reference is a list. No reference to compare
    with, or an empty one: no_verdict.
    """
    answer = (prompt.answer or "").strip()
    reference = extract_answer(answer) or BOXED.sub("", answer)
    if not _squeeze(_tidy(reference)).strip("{}"):
        return [Verdict(None, "no_verdict")] * len(responses)
    messages = prompt.messages
    question = messages if isinstance(messages, str) else "\n".join(m["content"] for m in messages)
    percent = "%" in question or "percent" in question.lower()
    reasons = [_judge_response(reference, _answers(response, answers), percent) for response in responses]
    return [Verdict(float(reason == "right"), reason) for reason in reasons]


def warm_up() -> None:
    """Import math-verify, which takes a second, before a clock runs."""
    _math_verify()


def extract_answer(text: str, answers: Answers = "auto") -> str | None:
    """The final answer of a text.

    Empty and unclosed boxes do not count; of nested boxes the innermost does. None without an answer.
    """
    found = _answers(text, answers)
    return found[-1] if found else None


def canonical_answer(text: str, answers: Answers = "auto") -> str | None:
    """The final answer in a normal form, for voting: 0.50 and 1/2 are one answer. None without an answer."""
    answer = extract_answer(text, answers)
    if answer is None:
        return None
    if len(answer) > LONGEST:
        return answer
    normal = _squeeze(_unnamed(_tidy(answer)))
    value = read_exact(normal)
    return normal if value is None or value.rational is None else str(value.rational)


def _answers(text: str, answers: Answers) -> list[str]:
    """All answers of one kind, boxes or #### lines; by default of that which comes last in the text."""
    boxes: list[tuple[int, str]] = []
    opened: list[tuple[int, bool]] = []  # where the content of an open brace begins, and is it a box
    for match in BRACE.finditer(text):
        token = match[0]
        if token == "{" or len(token) > 2:
            opened.append((match.end(), token != "{"))
        elif token == "}" and opened:
            start, is_box = opened.pop()
            holds = boxes and boxes[-1][0] > start  # another box
            if is_box and not holds and (content := text[start : match.start()].strip()):
                boxes.append((start, content))
    lines = [(match.start(), match[1].strip()) for match in LINE.finditer(text)]
    if answers == "boxed":
        lines = []
    elif answers == "hashes":
        boxes = []
    later = max(boxes, lines, key=lambda found: found[-1][0] if found else -1)
    return [content for _, content in later]


def _judge_response(reference: str, answers: list[str], percent: bool) -> str:
    answers = list(dict.fromkeys(answers))
    if not answers:
        return "no_answer"
    longest = max(LONGEST, 2 * len(reference))
    if len(answers[-1]) > longest:
        return "rejected"
    if len(answers) > MOST_BOXES or any(len(answer) > longest for answer in answers):
        return "wrong"
    reasons = [_judge(reference, answer, percent) for answer in reversed(answers)]
    if (listed := _listed(reference)) and len(answers) > 1:
        if reasons[0] != "right":  # an element a box
            return _judge(reference, ", ".join(answers), percent)
        reasons = [
            "right"
            if any(_judge(part, answer, percent) == "right" for part in (reference, *listed))
            else "wrong"
            for answer in answers
        ]
    return next((reason for reason in reasons if reason != "right"), "right")


@functools.lru_cache(maxsize=4096)
def _judge(reference: str, prediction: str, percent: bool) -> str:
    """The reason for one pair."""
    gold, guess = _tidy(reference), _tidy(prediction)
    if (percent or r"\%" in gold) and _same(
        _squeeze(gold.replace(r"\%", "")), _squeeze(guess.replace(r"\%", ""))
    ):
        return "right"
    if bool(RELATION.search(gold)) != bool(RELATION.search(guess)):
        gold, guess = _unnamed(gold), _unnamed(guess)  # x=5 for 5 and 5 for x=5, but never x=5 for y=5
    elif gold.count("=") == guess.count("=") == 1:
        (name, side), (guess_name, guess_side) = gold.split("="), guess.split("=")
        if _squeeze(name) == _squeeze(guess_name):
            gold, guess = side, guess_side
    short_gold, short_guess = _squeeze(gold), _squeeze(guess)
    if (same := _same(short_gold, short_guess)) is not None:
        return "right" if same else "wrong"
    if _differ_in_form(short_gold, short_guess):
        return "wrong"
    if _too_costly(short_gold, short_guess):
        return "rejected"
    _, verify = _math_verify()
    return "right" if verify(list(_parse(gold)), list(_parse(guess))) else "wrong"


def _tidy(text: str) -> str:
    """One line of plain LaTeX: no dollars, units, styles, or words around the answer."""
    text = " ".join(text.translate(WIDE).split())
    for pattern, replacement, *_ in TIDYING:
        text = re.sub(pattern, replacement, text)
    return " ".join(text.split()).lstrip(" *").rstrip(" .*").removesuffix(r"\\").rstrip()


def _unnamed(tidy: str) -> str:
    r"""A tidy answer without the `x =` or `x \in` in front of it, or of the elements of a list."""
    return NAME.sub(r"\1", tidy).strip()


def _squeeze(text: str) -> str:
    """A tidy answer without spaces and needless braces: the form in which strings are compared."""
    if re.fullmatch(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d*)?", text, re.ASCII):
        text = text.replace(" ", "")
    text = re.sub(r"(?<=[a-zA-Z]) (?=[a-zA-Z0-9])|(?<=\d) (?=\d)", "\0", text)  # "\cot x", "June 20", "1 1"
    text = text.replace(" ", "").replace("\0", " ")
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    return re.sub(r"\(([A-Z])\)", r"\1", text) if len(text) == 3 else text


def _same(gold: str, guess: str) -> bool | None:
    """Compare two squeezed answers; None where strings and exact arithmetic cannot tell."""
    if gold == guess:
        return True
    if WORDS.fullmatch(gold):  # math-verify takes their letters for factors
        return gold.lower() == guess.lower()
    if re.fullmatch("[A-Za-z][a-z]", gold) and guess in (gold.lower(), gold.capitalize()):
        return True  # No
    based = BASED.fullmatch(gold), BASED.fullmatch(guess)
    if based[0] and based[1]:  # math-verify reads no base
        return based[0].groups() == based[1].groups()
    value, other = read_exact(gold), read_exact(guess)
    if value and other:
        return value.same(other)
    if (related := same_relation(gold, guess)) is not None:
        return related
    one, two = MATRIX.fullmatch(gold), MATRIX.fullmatch(guess)
    if one and two:
        rows, others = ([row.split("&") for row in m[1].removesuffix(r"\\").split(r"\\")] for m in (one, two))
        if [len(row) for row in rows] != [len(row) for row in others]:
            return False
        return _same_in_order(list(itertools.chain(*rows)), list(itertools.chain(*others)))
    if bool(ORDER.search(gold)) != bool(ORDER.search(guess)):
        gold, guess = _as_interval(gold), _as_interval(guess)
    parts, others = gold.split(r"\cup"), guess.split(r"\cup")
    if len(parts) == len(others) > 1:
        return _same_in_any_order(parts, others) or None  # they may overlap
    (kind, parts), (guess_kind, others) = _elements(gold), _elements(guess)
    if len(parts) != len(others) or len(parts) == 1:
        return None
    if {kind, guess_kind} <= {"", "{}"}:
        return _same_in_any_order(parts, others)
    return _same_in_order(parts, others) if guess_kind == kind or (kind, guess_kind) == ("()", "") else None


def _as_interval(text: str) -> str:
    r"""1<x\le2 as (1,2], x>3 as (3,\infty); anything else as it is."""
    parts = [part.strip() for part in ORDER.split(text.replace(r"\leq", r"\le").replace(r"\geq", r"\ge"))]
    sides, signs = parts[::2], parts[1::2]
    if signs and signs[0] in MIRROR:
        sides, signs = sides[::-1], [MIRROR.get(sign, "") for sign in signs[::-1]]
    if len(signs) == 1 and re.fullmatch("[a-zA-Z]", sides[0]):
        sides, signs = [r"-\infty", *sides], ["<", *signs]
    elif len(signs) == 1:
        sides, signs = [*sides, r"\infty"], [*signs, "<"]
    if len(signs) != 2 or not set(signs) <= {"<", r"\le"} or not re.fullmatch("[a-zA-Z]", sides[1]):
        return text
    return f"{'(' if signs[0] == '<' else '['}{sides[0]},{sides[2]}{')' if signs[1] == '<' else ']'}"


def _same_in_order(golds: list[str], guesses: list[str]) -> bool | None:
    found = {_same(*pair) for pair in zip(golds, guesses, strict=True)}
    return False if False in found else None if None in found else True


def _same_in_any_order(golds: list[str], guesses: list[str]) -> bool | None:
    left = list(guesses)
    for gold in golds:
        found = [_same(gold, guess) for guess in left]
        if True not in found:
            return None if None in found else False
        left.pop(found.index(True))
    return True


def _elements(text: str) -> tuple[str, list[str]]:
    r"""Of a squeezed answer: the kind of bracket around it all ('' without), and what it lists, \pm as two."""
    tokens = re.findall(r"\\[a-zA-Z]+|\\.|.", text)
    steps = [(token in OPEN) - (token in CLOSE) for token in tokens]
    depths = list(itertools.accumulate(steps))
    spans = tokens[:1] != ["{"] and steps[:1] == [1] and 0 not in depths[:-1] and depths[-1] == 0
    kind = (tokens[0] + tokens[-1]).replace("\\", "") if spans else ""
    listed = [""]
    for token, depth in zip(tokens[1:-1] if spans else tokens, depths[spans:], strict=False):
        if token == "," and depth == spans:
            listed.append("")
        else:
            listed[-1] += token
    if kind in ("", "{}"):
        signed = [[e.replace(r"\pm", sign) for sign in "+-"] if e.count(r"\pm") == 1 else [e] for e in listed]
        listed = list(itertools.chain(*signed))
    return kind, listed


def _listed(reference: str) -> list[str]:
    """The elements of a reference that is a list or a set."""
    text = _squeeze(_tidy(reference))
    kind, listed = _elements(text)
    return listed if read_exact(text) is None and len(listed) > 1 and kind in ("", "{}") else []


def _differ_in_form(gold: str, guess: str) -> bool:
    """Refuse pairs that math-verify takes for equal or is slow on: 8=7, 7,7, 7% or x for 7, a tuple for a set."""
    if "=" in guess and "=" not in gold:
        return True
    if (r"\%" in guess and r"\%" not in gold) or re.search(r"(?:^|[^_\d])\d+ \d", guess):
        return True
    letters, guess_letters = (
        set(re.findall("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", t))) for t in (gold, guess)
    )
    if read_exact(gold) and not letters and guess_letters - {"e", "i"}:
        return True
    if any(letter.swapcase() in letters | guess_letters for letter in letters | guess_letters):
        return True  # math-verify reads R as r
    (gold_kind, listed), (guess_kind, guess_listed) = _elements(gold), _elements(guess)
    if len(listed) != len(guess_listed) and not re.search(r"\\pm|\\mp|\\cup", gold + guess):
        return True
    if len(listed) == 1 or gold_kind == guess_kind:
        return False
    if gold_kind in ("", "{}"):
        return guess_kind not in ("", "{}")
    return (gold_kind, guess_kind) != ("()", "")


def _too_costly(gold: str, guess: str) -> bool:
    """Refuse a squeezed prediction unseen, by an estimate of its cost."""
    if len(guess) > LONGEST or re.search(r"\d{50}", guess):
        return True
    depth = deepest = 0
    for character in guess:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > DEEPEST or len(re.findall(COSTLY, guess)) > len(re.findall(COSTLY, gold)):
        return True
    if len(re.findall(rf"{FUNCTION}|_", guess)) > 4 + len(re.findall(rf"{FUNCTION}|_", gold)):
        return True
    (allowed, *most), (towers, *sizes) = _powers(gold), _powers(guess)
    return not towers <= allowed or any(map(lambda n, m, limit: n > max(m, limit), sizes, most, LARGEST))


def _powers(text: str) -> tuple[set[str], int, int, int]:
    """Of a squeezed answer: the exponents with a power in them; of all numbers in the other exponents, the
    largest at a letter, the product at functions and at brackets with letters, the product at the rest."""
    towers, letter, sums, rest = set[str](), 1, 1, 1
    for match in re.finditer(r"\^", text):
        start = end = match.end()
        depth = 0
        while end < len(text):
            depth += (text[end] in "({[") - (text[end] in ")}]")
            end += 1
            if depth <= 0 and (end == len(text) or text[start] in "({[" or not text[end].isalnum()):
                break
        exponent, base = text[start:end], text[: match.start()]
        if "^" in exponent or text[end : end + 1] == "^":
            towers.add(text[start : end + 5])
        product = math.prod(max(int(n), 1) for n in re.findall(r"\d{1,50}", exponent))
        if re.search(rf"{FUNCTION}$|[a-zA-Z].*[)}}\]]$", base):
            sums *= product
        elif base[-1:].isalpha():
            letter = max(letter, product)
        else:
            rest *= product
    return towers, letter, sums, rest


@functools.cache
def _math_verify() -> tuple[Callable[..., list[Any]], Callable[..., bool]]:
    """parse and verify of math-verify, which takes a second to import.

    Their own timeouts are off: they end as "not equal" without saying why. So are its units, which take
    5m and 5g for 5. It sees no decimals, which it would round to 6 places.
    """
    with importing():
        from math_verify import LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timeouts are off
    style = dataclasses.replace(LatexExtractionConfig().normalization_config, units=False, boxed="none")
    targets = [LatexExtractionConfig(normalization_config=style)]
    return (
        functools.partial(parse, extraction_config=targets, parsing_timeout=None),  # pyright: ignore[reportArgumentType]
        functools.partial(verify, timeout_seconds=None, numeric_precision=50),
    )


@functools.lru_cache(maxsize=256)
def _parse(tidy: str) -> tuple[Any, ...]:
    parse, _ = _math_verify()
    exact = re.sub(r"(\d*)\.(\d+)", lambda m: rf"\frac{{{m[1]}{m[2]}}}{{{10 ** len(m[2])}}}", tidy)
    return tuple(parse(f"${exact}$"))
