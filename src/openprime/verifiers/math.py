r"""Mathematics: is the final answer in a text the reference answer?

The policy learns against this judge, so every answer is hostile input. Both answers are brought into one
spelling (`normal_form`) and compared by what they are (`compare`): expressions by their values (`expression`),
units, lists, relations, sets of reals (`regions`), words. What cannot be read here, such as sums and integrals,
math-verify reads (LaTeX to SymPy), behind a screen that refuses what would be slow. No stage hands text to `eval`
or `parse_expr`. Time is limited by the pool of worker processes in which this runs.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

from openprime.types import Prompt, Verdict
from openprime.verifiers.compare import BASED, NAME, SIGNS, WORDS, Comparison, Costly, read_list
from openprime.verifiers.expression import read, value_of
from openprime.verifiers.normal_form import BASES, NUMERALS, Unit, plain, quantity, split, squeeze, tidy
from openprime.verifiers.regions import region

LONGEST = 200
"""Characters of an answer that is compared."""
MOST_BOXES = 8
"""A response with more differing answers than this is wrong."""
HEAVY = re.compile(r"!|\\(?:binom|sum|prod|int|lim|Gamma)|\d{4,}|\^\{[^{}]*\^")
"""A prediction that math-verify sees holds no more of these than the reference does."""
LIGHT = re.compile(r"[\^_]|\\[a-z]+")
"""It may hold eight more of these."""

BRACE = re.compile(
    r"\\?\\(?:boxed|fbox)\s*\{|\\(?:boxed|fbox)[ \t]*([-+]?\d[\d.,/]*(?<![.,])|[A-J](?![a-zA-Z]))|\\.|[{}]",
    re.DOTALL,
)
BOXED = re.compile(r"\\(?:boxed|fbox)\s*")
LINE = re.compile(r"^[ \t]*####[ \t]*([^\s#][^\n]*)", re.MULTILINE)
OPTION = re.compile(
    r"(?:option|choice|answer)?:? ?\(?([A-J])(?:\) ?[.:]? |[.:] )"
    r"(?![,;]|\\l(?:and|or) |.*(?<![A-Za-z])[A-J] ?[).:])(.+)|(?:option|choice|answer):? ?\(?([A-J])\)?",
    re.IGNORECASE,
)
INTRODUCTION = re.compile(
    r"(?!.*\b(?:not|none|neither|never)\b)(?:\\text\{ ?)?"
    r"(?:(?:So|Thus|Hence|Then|Therefore)\b,?|[A-Za-z][A-Za-z ]+?(?: (?:is|are))?(?: ?:| (?:is|are) )) ?\}?,? ?(.+)"
)
QUALIFIER = re.compile(
    r"(?P<value>.*?[^,(\s{])[,(\s]*(?:\\text\{[ ,(]*)?(?P<words>\b(?:for|where|with|any|all|every|when)\b.*"
    r"(?:integer|number|real|natural|constant|arbitrary|\\in).*"
    r"|for (?:all |any |every )?(?:\\text\{)?\}? ?[a-z] ?(?:>|\\ge) ?\d+"
    r"|(?<=[,( ])[a-zA-Z](?:, ?[a-zA-Z])* ?\\in ?\\mathbb\{[ZNRQ]\}.*)"
)
KIND = re.compile(r"(?:non-?negative|positive|natural|integer|real|rational|even|odd|\\mathbb\{[A-Z]\})")
SAME_KIND: dict[str, str] = {
    **dict.fromkeys(["natural", r"\mathbb{N}"], "positive integer"),
    **{r"\mathbb{Z}": "integer", r"\mathbb{R}": "real", r"\mathbb{Q}": "rational"},
}
ONE = re.compile(
    r"\bhow (?:many|much)\b|\b(?:what is|find|compute|determine|evaluate|calculate) the (?!(?:\w+ )?(?:values|solutions"
    r"|roots|zeros|integers|numbers|set|pairs)\b)",
    re.IGNORECASE,
)
"""Questions that ask for one number."""
SEVERAL = re.compile(
    r"\b(?:commas?|list|values|solutions|roots|zeros|integers|numbers (?:that|which|such)|find all|respectively"
    r"|in order)\b",
    re.IGNORECASE,
)
"""Questions that ask for several numbers."""
BASE_NAMED = re.compile(rf"\bbase[ $\\{{-]*({BASES})|_ ?\{{?(\d+)|\b(binary|octal|hexadecimal)\b")
SHORT_SCIENTIFIC = re.compile(r"-?\d+e-\d")
"""2e-3 is .002 where the other answer has no e, else 2e minus 3."""
GROUPS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)")
SYMBOL = re.compile(r"\.\d| ?(?:[a-zA-Z{^!]|\\(?!cup|cap|land|lor|ran|\}))")

LETTERS, COMMAND = re.compile("[A-Za-z]{3,}"), re.compile(r"\\[A-Za-z]+")
MOST_WORDS = 4
"""In a reference that is a name; a sentence has more."""

Answers = Literal["auto", "boxed", "last_box", "hashes"]
r"""Place of the answers: `\boxed{...}` or `\fbox{...}`, of which all must be right, or only the last one (`last_box`);
the line `#### answer`; or whichever of boxes and lines comes last."""

importing: Callable[[], AbstractContextManager[None]] = nullcontext
"""Entered around the import of math-verify, which takes a second: a worker stops its clock meanwhile."""


class Asked(NamedTuple):
    """What the judge knows beside the two answers."""

    percent: bool = False
    """The question speaks of percents."""
    one_number: bool = False
    """The reference 1,234 is one number, not a list of two."""
    bases: frozenset[str] = frozenset()
    """The bases of numbers in the question."""
    rounded: bool = False
    """A decimal that rounds the reference is right."""


def verify_math(
    prompt: Prompt, responses: Sequence[str], answers: Answers = "auto", rounded: bool = False
) -> list[Verdict]:
    """Judge each response: right, wrong, no_answer, or rejected (not worth computing).

    The reference is the final answer in `prompt.answer`, or all of it. A percent sign is a unit where the
    question speaks of percents or the reference has one; elsewhere 7% is 0.07. The reference 1,234 is a number
    behind #### and where the question asks for one, else it may be a list. Of several differing answers in one
    response all must be right, unless the reference is a list or only the last counts (`last_box`). `rounded`
    accepts a decimal of six significant digits or more that rounds the reference. No reference to compare with,
    or an empty one: no_verdict.
    """
    answer = (prompt.answer or "").strip()
    reference = reference_of(answer)
    if not reference:
        return [Verdict(None, "no_verdict")] * len(responses)
    messages = prompt.messages
    question = messages if isinstance(messages, str) else "\n".join(m["content"] for m in messages)
    asked = Asked(
        percent="%" in question or "percent" in question.lower(),
        one_number="####" in answer
        or bool(ONE.search(question) or (question and not SEVERAL.search(question))),
        bases=frozenset(
            NUMERALS.get(name := "".join(one), name) for one in BASE_NAMED.findall(question.lower())
        ),
        rounded=rounded,
    )
    reasons = [_judge_response(reference, _answers(response, answers), asked) for response in responses]
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
    text = GROUPS.sub(lambda match: match[0].replace(",", ""), tidy(answer))
    sides, signs = split(text, {"=", r"\in"})
    if len(signs) == 1 and NAME.fullmatch(sides[0]):
        text = sides[1]
    ((number, factor), *more), _ = quantity(text)
    value = None if more else value_of(read(number), exact=True)
    return squeeze(number) if value is None else str(value * factor)


def reference_of(answer: str) -> str:
    """The reference in a row's answer: its final answer, or all of it; empty where there is nothing to compare with."""
    found = extract_answer(answer) or BOXED.sub("", answer.strip())
    return found if squeeze(tidy(found)).strip("{}") else ""


def is_readable(reference: str) -> bool:
    """Can a response's answer be compared with this reference by more than its letters?

    True for expressions, lists, sets, relations and numbers in a base that are read here or by math-verify, for an
    option's letter, and for up to MOST_WORDS words. False for what is empty, too long, or prose.
    """
    text, _ = _unqualified(_introduced(tidy(reference))[-1])
    if not squeeze(text).strip("{}") or len(text) > LONGEST:
        return False
    try:
        if option(text)[0] or BASED.fullmatch(squeeze(text)) or region(text):
            return True
        parts = [one for side in split(text, SIGNS)[0] for one in read_list(side).elements]
        if any(len(LETTERS.findall(COMMAND.sub(" ", part))) > MOST_WORDS for part in parts):
            return False  # read as a product of its letters
        if all(
            read(part) or quantity(part, True)[1] != Unit() or WORDS.fullmatch(plain(part)) for part in parts
        ):
            return True
        return not (HEAVY.search(text) or LETTERS.search(COMMAND.sub("", text))) and _parse(text) is not None
    except (Costly, RecursionError):
        return False


def _answers(text: str, answers: Answers) -> list[str]:
    """All answers of one kind, boxes or #### lines; by default of that which comes last in the text."""
    boxes: list[tuple[int, str]] = []
    opened: list[tuple[int, bool]] = []  # where the content of an open brace begins, and is it a box
    for match in BRACE.finditer(text):
        token = match[0]
        if match[1]:  # \boxed 5
            boxes.append((match.start(1), match[1]))
        elif token == "{" or len(token) > 2:
            opened.append((match.end(), token != "{"))
        elif token == "}" and opened:
            start, is_box = opened.pop()
            holds = boxes and boxes[-1][0] > start  # another box
            if is_box and not holds and (content := text[start : match.start()].strip()):
                boxes.append((start, content))
    lines = [(match.start(), match[1].strip()) for match in LINE.finditer(text)]
    if answers in ("boxed", "last_box"):
        lines = []
    elif answers == "hashes":
        boxes = []
    later = max(boxes, lines, key=lambda found: found[-1][0] if found else -1)
    return [content for _, content in (later[-1:] if answers == "last_box" else later)]


def _judge_response(reference: str, answers: list[str], asked: Asked) -> str:
    answers = list(dict.fromkeys(answers))
    if not answers:
        return "no_answer"
    longest = max(LONGEST, 2 * len(reference))
    if len(answers[-1]) > longest:
        return "rejected"
    if len(answers) > MOST_BOXES or any(len(answer) > longest for answer in answers):
        return "wrong"
    reasons = [_judge(reference, answer, asked) for answer in reversed(answers)]
    if len(answers) > 1 and (listed := _listed(reference)):
        if reasons[0] != "right":  # an element a box
            return _judge(reference, ", ".join(answers), asked)
        reasons = [
            "right"
            if any(_judge(part, answer, asked) == "right" for part in (reference, *listed))
            else "wrong"
            for answer in answers
        ]
    return next((reason for reason in reasons if reason != "right"), "right")


def _listed(reference: str) -> list[str]:
    """The elements of a reference that is a list or a set."""
    found = read_list(tidy(reference))
    return found.elements if len(found.elements) > 1 and found.kind in ("", "{}") else []


@functools.lru_cache(maxsize=4096)
def _judge(reference: str, prediction: str, asked: Asked) -> str:
    """The reason for one pair."""
    if SHORT_SCIENTIFIC.fullmatch(prediction) and "e" not in reference:
        prediction = prediction.replace("e", "E")
    if SHORT_SCIENTIFIC.fullmatch(reference) and "e" not in prediction:
        reference = reference.replace("e", "E")
    gold = _without_groups(tidy(_one_text(reference)), not asked.one_number)
    guess = _without_groups(tidy(prediction), "," in gold)
    based = BASED.fullmatch(squeeze(guess))
    if based and (based[2] or based[3]) in asked.bases and not BASED.fullmatch(squeeze(gold)):
        guess = based[1]
    comparison = Comparison(_math_verify_says, asked.rounded)
    try:
        for one, other in _readings(gold, guess, comparison):
            if comparison.same(one, other):
                return "right"
            one_number, other_number = one.replace(r"\%", ""), other.replace(r"\%", "")
            if (asked.percent or one_number != one) and comparison.same(one_number, other_number):
                return "right"
    except (Costly, RecursionError):
        return "rejected"
    return "wrong"


def _one_text(reference: str) -> str:
    """A list in JSON as a list with commas."""
    if not re.match(r"\[\s*\"", reference):
        return reference
    with contextlib.suppress(ValueError):
        return ", ".join(map(str, json.loads(reference)))
    return reference


def _without_groups(text: str, may_be_list: bool) -> str:
    """A text without the commas of thousands: where zeros or a symbol follow, or where no list is possible."""

    def ungrouped(match: re.Match[str]) -> str:
        before, after = text[: match.start()], text[match.end() :]
        sure = (
            ",0" in match[0]
            or ", " in text
            or re.search(r"(?<!\\)\{$|dollar\}$", before)
            or SYMBOL.match(after)
        )
        is_number = sure or not (may_be_list or before.endswith(("(", "[", r"\{")))
        return match[0].replace(",", "") if is_number else match[0]

    return GROUPS.sub(ungrouped, text)


def _readings(gold: str, guess: str, comparison: Comparison) -> Iterator[tuple[str, str]]:
    """The pairs of which one must be the same: a reference may hold several forms, an option its letter and text."""
    (letter, gold), (letter2, guess) = option(gold), option(guess)
    if letter and letter2 and not (gold and guess and letter == letter2):
        if letter == letter2:
            yield letter, letter2
        return
    guess, kinds = _unqualified(_introduced(guess or letter2)[-1])
    value, *approximations = split(guess, {r"\approx"})[0]
    if approximations and not value:
        guess = approximations[0]
    elif approximations and not NAME.fullmatch(value):
        if not all(comparison.close(value, approximation) for approximation in approximations):
            return
        guess = value
    for form in _introduced(gold or letter):
        form, kinds2 = _unqualified(form)
        if kinds and kinds2 and kinds != kinds2:
            continue
        yield form, guess
        parts, signs = split(form, {r"\approx"})
        yield from ((part, guess) for part in parts if signs and part and not NAME.fullmatch(part))
        listed = read_list(form)
        for first, *others in (split(form, {":"})[0], [""] if listed.kind else listed.elements):
            spellings = {squeeze(other) for other in (first, *others)}
            if (
                others
                and len(spellings) > len(others)
                and all(comparison.same(first, other) for other in others)
            ):
                yield first, guess


def option(text: str) -> tuple[str, str]:
    """The letter and the text of an option of a multiple choice; one of them may be empty. `text` is tidy."""
    match = OPTION.fullmatch(plain(text))
    if match:
        return (match[1] or match[3]).upper(), match[2] or ""
    letter = squeeze(text)
    return (letter, "") if re.fullmatch("[A-J]", letter) else ("", text)


def _introduced(text: str) -> list[str]:
    """A text, and what stands behind its introduction (The solution is: ...)."""
    match = INTRODUCTION.fullmatch(text)
    rest = match[1] if match else ""
    return [text, rest.removesuffix("}") if rest.count("}") > rest.count("{") else rest] if match else [text]


def _unqualified(text: str) -> tuple[str, set[str]]:
    """A text without what follows it about its letters (for any integer n), and the kinds of number named there."""
    match = QUALIFIER.fullmatch(text)
    if not match or re.fullmatch("[A-Za-z ]{3,}", match["value"].removeprefix(r"\text{")):
        return text, set()  # the set of all real numbers
    kinds = " ".join(SAME_KIND.get(kind, kind) for kind in map(str, KIND.findall(match["words"])))
    return match["value"], set(kinds.split())


def _math_verify_says(gold: str, guess: str) -> bool:
    """Are two expressions one to SymPy, of which the first can be read by math-verify alone? Raises Costly."""
    if read(gold) or re.search(r"\\text|\\%|(?<![\\a-zA-Z])[a-zA-Z]{3}", gold + guess):
        return False
    letters = set(re.findall("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", gold + guess)))
    if any(letter.swapcase() in letters for letter in letters):
        return False  # math-verify reads R as r
    heavy = HEAVY.findall(guess)
    too_many = len(LIGHT.findall(guess)) > 8 + len(LIGHT.findall(gold))
    if len(guess) > LONGEST or too_many or any(heavy.count(sign) > gold.count(sign) for sign in heavy):
        raise Costly
    simplify, _ = _math_verify()
    one, two = _parse(gold), _parse(guess)
    with contextlib.suppress(Exception):  # whatever SymPy raises
        return one is not None and two is not None and (one == two or simplify(one - two) == 0)
    return False


@functools.cache
def _math_verify() -> tuple[Callable[[Any], Any], Callable[[str], list[Any]]]:
    """SymPy's simplify, and math-verify's parse, which take a second to import.

    Its own timeout is off: it ends as "nothing parsed". So are its units, which take 5m and 5g for 5.
    """
    with importing():
        from math_verify import LatexExtractionConfig, parse
        from sympy import simplify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timeout is off
    style = dataclasses.replace(LatexExtractionConfig().normalization_config, units=False, boxed="none")
    targets = [LatexExtractionConfig(normalization_config=style)]
    return simplify, functools.partial(parse, extraction_config=targets, parsing_timeout=None)  # pyright: ignore[reportArgumentType]


@functools.lru_cache(maxsize=256)
def _parse(text: str) -> Any:
    """What math-verify reads; None for nothing. It sees no decimals, which it would round to 6 places."""
    _, parse = _math_verify()
    exact = re.sub(r"(\d*)\.(\d+)", lambda m: rf"\frac{{{m[1]}{m[2]}}}{{{10 ** len(m[2])}}}", text)
    found = parse(f"${exact}$")
    return found[0] if found and not isinstance(found[0], str) else None
