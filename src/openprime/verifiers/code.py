"""Code: does the Python program in a text pass its tests?

The policy learns against this judge, so every program is hostile. It runs in a sandbox, which gets the
inputs alone; what comes back is data, compared with the expected outputs here.
"""

import cmath
import dataclasses
import math
import random
import re
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from openprime.types import Prompt, Verdict
from openprime.verifiers.cases import (
    FUNCTIONS,
    NUMBERS,
    TOLERANCE,
    Check,
    Tests,
    int_key,
    is_text,
    measure,
    read_tests,
    unpack_tests,
)
from openprime.verifiers.sandbox import Limits, Ran, Sandbox

LONGEST = 100_000
"""Characters of a program that is run."""
WIDEST = 10_000
"""Elements of a result that an assert wraps in set, sorted, ...: hashes can be made to collide."""

LANGUAGES = ("", "python", "python3", "py")
FENCE = re.compile(  # no quantifier gives back: linear
    r"(?P<indent>[ \t]*+)(?P<prose>[^`]*+)(?P<ticks>`{3,}+)[ \t]*+(?P<language>[^\s`]*+)(?P<rest>[^`]*+)"
)
CALL = """
def _judged(given, named):
    try:
        function = Solution().{name}
    except Exception:
        function = {name}
    return {convert}(function(*given, **named))
"""
"""Put behind a program, to call with arguments by name, or for a truth value alone: a re.Match cannot travel."""
DECIMAL = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class CodeOptions:
    """Limits and score of programs."""

    score: Literal["share", "all"] = "share"
    """Outcome: the share of passed cases, as in the published recipe, or 1 for all of them and else 0."""
    max_cases: int = 0
    """Cases that are run, drawn once for each prompt; 0: all."""
    limits: Limits = field(default_factory=Limits)
    """Of time, memory and output."""


def verify_code(
    prompt: Prompt,
    responses: Sequence[str],
    sandbox: Sandbox,
    options: CodeOptions,
    seed: int = 0,
    read: Callable[..., Tests] = read_tests,
) -> list[Verdict]:
    """Judge each response: the last fenced program in it, run on the prompt's tests, packed or in its row.

    right: all cases passed; partial: some did (score: share). Else, outcome 0: no_answer; rejected (too
    long, or no text); timeout where any case ran out of its own time or that of all; crash where the
    first case that failed died of an error; wrong. The same program is run once. Tests that cannot be
    read, by `read`: no_verdict.
    """
    try:
        tests = unpack_tests(prompt.tests) if prompt.tests else read(prompt.columns, prompt.answer)
    except ValueError:
        return [Verdict(None, "no_verdict")] * len(responses)
    chosen = list(range(len(tests.inputs)))
    if 0 < options.max_cases < len(chosen):
        chosen = sorted(_random(prompt.id, seed).sample(chosen, options.max_cases))
    largest = max(measure(tests.outputs[i], math.inf) for i in chosen)
    room = max(options.limits.output_bytes, 4 * int(largest))  # what is expected must fit
    options = dataclasses.replace(options, limits=dataclasses.replace(options.limits, output_bytes=room))
    verdicts: dict[str, Verdict] = {}
    programs = [(extract_program(response) or "").rstrip() for response in responses]
    for program in programs:
        if program not in verdicts:
            verdicts[program] = _judge(program, tests, chosen, sandbox, options)
    return [verdicts[program] for program in programs]


def _random(prompt_id: str, seed: int) -> random.Random:
    """The same in every process, as hash() is not."""
    return random.Random(zlib.crc32(f"{seed}:{prompt_id}".encode("utf-8", "replace")))


def _judge(program: str, tests: Tests, chosen: list[int], sandbox: Sandbox, options: CodeOptions) -> Verdict:
    if not program:
        return Verdict(0.0, "no_answer")
    if len(program) > LONGEST or "\0" in program or not is_text(program):
        return Verdict(0.0, "rejected")
    if tests.prompt and "from __future__" not in program:  # that must be a file's first statement
        program = f"{tests.prompt}\n{program}"
    name, cases = tests.fn_name, [tests.inputs[i] for i in chosen]
    truth = tests.checks and all(check == Check("truth") for check in tests.checks)
    if truth or tests.keywords:
        program = f"{program}\n{CALL.format(name=name, convert='bool' if truth else '')}"
        named = tests.keywords or [{}] * len(tests.inputs)
        name, cases = "_judged", [[tests.inputs[i], named[i]] for i in chosen]
    start = time.perf_counter()
    runs = sandbox.run(f"{program}\n", cases, name, options.limits)
    passed = [_passed(ran, tests, i) for ran, i in zip(runs, chosen, strict=True)]
    seconds = time.perf_counter() - start
    if all(passed):
        return Verdict(1.0, "right", seconds)
    if any(passed) and options.score == "share":
        return Verdict(sum(passed) / len(passed), "partial", seconds)
    if any(ran.status in ("timeout", "not_run") for ran in runs):
        return Verdict(0.0, "timeout", seconds)
    first = runs[passed.index(False)]
    return Verdict(0.0, "crash" if first.status == "error" else "wrong", seconds)


# The program


def extract_program(response: str) -> str | None:
    """The last fenced block marked python, python3 or py, else the last one without a mark; None without one.

    An unmarked block after a marked one is its output, or prose; blocks in other languages are left out.
    The last fence may be unclosed. Fences are lines of their own, save that words may stand before an
    opening one that names Python.
    """
    programs: dict[bool, str] = {}  # marked or not -> the last one
    block: list[str] | None = None
    ticks, indent, language = "", 0, ""
    for line in response.split("\n"):
        fence = FENCE.fullmatch(line) if "```" in line else None
        if block is None:
            if fence and _opens(fence):
                block, ticks, indent = [], fence["ticks"], len(fence["indent"])
                language = fence["language"].lower()
            continue
        deeper = fence is not None and (fence["prose"] != "" or len(fence["indent"]) > indent + 3)
        if fence is None or deeper or len(fence["ticks"]) < len(ticks):
            block.append(line[min(indent, len(line) - len(line.lstrip(" \t"))) :])
            continue
        if language in LANGUAGES:
            programs[language != ""] = "\n".join(block)
        block = None
        if fence["language"]:  # the block before was never closed
            block, ticks, indent = [], fence["ticks"], len(fence["indent"])
            language = fence["language"].lower()
    if block is not None and language in LANGUAGES:
        programs[language != ""] = "\n".join(block)
    return programs.get(True, programs.get(False))


def _opens(fence: re.Match[str]) -> bool:
    named = fence["language"].lower() in LANGUAGES[1:] and not fence["rest"].strip()
    return not fence["prose"] or named


# Comparison


def _passed(ran: Ran, tests: Tests, case: int) -> bool:
    """True where the result of one case is the expected one."""
    if ran.status != "ok":
        return False
    expected = tests.outputs[case]
    if tests.fn_name is None:
        return same_output(ran.output, expected)
    check = tests.checks[case] if tests.checks else Check()
    value = ran.value
    try:
        for name, further in check.wrappers:
            if type(value) not in NUMBERS and value is not None and len(value) > WIDEST:
                return False
            value = FUNCTIONS[name](value, *further)
    except (TypeError, ValueError, ArithmeticError, RecursionError):
        return False
    if check.kind == "truth":
        return bool(value) is expected
    if check.kind in ("is", "is_not"):
        return (type(value) is type(expected) and value == expected) is (check.kind == "is")
    same = same_value(value, expected, tests.exact, check)
    if tests.single and not same:
        same = same_value(value, expected[0], tests.exact, check)
    return same is (check.kind == "equal")


def same_output(output: str, expected: str) -> bool:
    """True where two texts are the same line by line, but for white space between and behind the words.

    Empty lines at the end do not count. Where the expected word is a decimal number, with a point or an
    exponent, a number near it will do. Integers are compared as text.
    """
    ours, theirs = _lines(output), _lines(expected)
    if len(ours) != len(theirs):
        return False
    for line, wanted in zip(ours, theirs, strict=True):
        if line != wanted:
            words, wanted_words = line.split(), wanted.split()
            if len(words) != len(wanted_words) or not all(map(_same_word, words, wanted_words)):
                return False
    return True


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _same_word(word: str, wanted: str) -> bool:
    if word == wanted:
        return True
    if wanted.isdigit() or max(len(word), len(wanted)) > 400:
        return False
    if not (DECIMAL.fullmatch(wanted) and re.search("[.eE]", wanted) and DECIMAL.fullmatch(word)):
        return False
    number, reference = float(word), float(wanted)
    return math.isfinite(reference) and math.isclose(number, reference, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def same_value(value: Any, expected: Any, exact: bool, check: Check) -> bool:
    """True where a plain value is the expected one; takes time in proportion to the expected one.

    Python's == on exact types, with a tolerance where a float is expected; NaN is NaN. Unless `exact`, a
    tuple will do for a list, and the key 1 for the key "1": JSON has no others.
    """
    kind = type(expected)
    if kind in (list, tuple):
        alike = type(value) is kind or (not exact and type(value) is tuple)
        return (
            alike
            and len(value) == len(expected)
            and all(same_value(v, e, exact, check) for v, e in zip(value, expected, strict=True))
        )
    if kind is dict:
        if type(value) is not dict or len(value) != len(expected):
            return False
        for key, wanted in expected.items():
            if key not in value and not exact:
                key = int_key(key)
            if key not in value or not same_value(value[key], wanted, exact, check):
                return False
        return True
    if kind in (set, frozenset):
        return type(value) in (set, frozenset) and len(value) == len(expected) and value == expected
    if kind not in NUMBERS:
        return type(value) is kind and value == expected
    if type(value) not in NUMBERS:
        return False
    if expected != expected:
        return value != value
    if kind in (bool, int):
        return value == expected
    try:
        return cmath.isclose(value, expected, rel_tol=check.relative, abs_tol=check.absolute)
    except OverflowError:  # an int beyond all floats
        return False
