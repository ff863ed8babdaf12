"""Code: does the Python program in a text pass its tests?

The policy learns against this judge, so every program is hostile. It runs in a sandbox, which gets the
inputs alone; what comes back is data, compared with the expected outputs here.
"""

import cmath
import dataclasses
import math
import random
import re
import textwrap
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from openprime.types import Prompt, Verdict
from openprime.verifiers.cases import (
    EQUAL,
    FUNCTIONS,
    NUMBERS,
    Check,
    Tests,
    int_key,
    is_text,
    lacking,
    measure,
    read_tests,
    unpack_tests,
)
from openprime.verifiers.sandbox import Limits, Ran, Sandbox

LONGEST = 100_000
"""Characters of a program that is run."""
UNSORTED = 500
"""Lines or items that are matched one by one where their order is free and sorting does not match them."""
WIDEST = 10_000
"""Elements of a result that an assert wraps in set, sorted, ...: hashes can be made to collide."""

FENCE = re.compile(  # no quantifier gives back: linear
    r"(?P<indent>[ \t]*+)(?P<prose>[^`]*+)(?P<ticks>`{3,}+)[ \t]*+(?P<language>[^\s`]*+)(?P<rest>[^`]*+)"
)
TILDES = re.compile(
    r"(?P<indent>[ \t]*+)(?P<prose>)(?P<ticks>~{3,}+)[ \t]*+(?P<language>[^\s~]*+)(?P<rest>[^~]*+)"
)
PYTHON = re.compile(r"[{.]*+(?:python|pypy|py)[\d.]*+(?![\w-])")
"""How the word behind a fence begins that marks Python, in small letters."""
ONE_LINE = re.compile(r"[^`]*+```[ \t]*+(?:python3?|py)[ \t]++([^`]++)```[^`]*+", re.IGNORECASE)
BEHIND = re.compile(
    r"[ \t]++(?:(?:import|from|def|class|for|while|if|with|try)\b|#|@|\w++\(|\w++(?:, ?\w++)*+ = )"
)
"""Code that begins on the line of the fence: not `title=x`."""
STRING = re.compile("'[^']*+'|\"[^\"]*+\"")
READS = re.compile(
    r"\A(?![\s\S]*\bStringIO\([\"'fr])[\s\S]*(?:\binput\b(?! *=)|\bstdin\b|\bopen\(0|\bread\(0|\bfileinput\b)"
)
"""What a program that reads its input has in it, and not a text in the place of its input."""
CALL = """
def _judged(given, named):
    try:
        function = Solution().{name}
    except Exception:
        function = {name}
    return {convert}(function(*given, **named))
"""
"""Put behind a program, to call with arguments by name, or for a truth value alone: a re.Match cannot travel."""
CHECKER = """
def _checked(given, wanted, found):
    import builtins, io, sys
    names = ("input.txt", "expected.txt", "output.txt")
    texts = dict(zip(names, (given, wanted, found)))
    def file(name, *rest, **more):
        return io.StringIO(texts[str(name)]) if str(name) in texts else open(name, *rest, **more)
    io.open = file
    space = {"__name__": "__main__", "__builtins__": builtins, "open": file}
    sys.argv, sys.stdout = ["checker.py", *names], io.StringIO()
    try:
        exec(compile(SOURCE, "checker.py", "exec"), space)
    except SystemExit:
        pass
    said = sys.stdout.getvalue().split()[-1:]
    if not said and "check" in space:
        return space["check"](given, wanted, found) in (True, 1, 100)
    return said and said[0].lower() in ("true", "1", "1.0", "100", "100.0")
"""
"""Runs a row's checker: a program whose arguments name three files, of input, expected output and output, and that
prints 1 or 0 (or 100 or 0); or one that defines check(input, expected, output)."""
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
    """Judge each response: a fenced program in it, run on the prompt's tests, packed or in its row.

    right: all cases passed; partial: some did (score: share). Else, outcome 0: no_answer; rejected (too
    long, or no text); timeout where any case ran out of its own time or that of all; crash where the
    first case that failed died of an error; wrong. The same program is run once. Tests that cannot be
    read, by `read`, or that import what the sandbox lacks: no_verdict, with a note.
    """
    try:
        tests = unpack_tests(prompt.tests) if prompt.tests else read(prompt.columns, prompt.answer)
        fault = lacking(tests, sandbox.packages)
    except ValueError as error:
        tests, fault = Tests((), (), None), str(error)
    if fault:
        return [Verdict(None, "no_verdict", note=fault)] * len(responses)
    chosen = list(range(len(tests.inputs)))
    if 0 < options.max_cases < len(chosen):
        chosen = sorted(_random(prompt.id, seed).sample(chosen, options.max_cases))
    largest = max(measure(tests.outputs[i], math.inf) for i in chosen)
    room = max(options.limits.output_bytes, 4 * int(largest))  # what is expected must fit
    options = dataclasses.replace(options, limits=dataclasses.replace(options.limits, output_bytes=room))
    verdicts: dict[str, Verdict] = {}
    wanted = _wanted(tests)
    programs = [(extract_program(response, wanted) or "").rstrip() for response in responses]
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
    truth = tests.checks and all(check.is_truth for check in tests.checks)
    if truth or tests.keywords:
        program = f"{program}\n{CALL.format(name=name, convert='bool' if truth else '')}"
        named = tests.keywords or [{}] * len(tests.inputs)
        name, cases = "_judged", [[tests.inputs[i], named[i]] for i in chosen]
    start = time.perf_counter()
    runs = sandbox.run(f"{program}\n", cases, name, options.limits)
    passed = _passed(runs, tests, chosen, sandbox, options)
    if passed[0]:  # does what fails behind it fail alone, too, where no case before has left anything behind?
        for i in [i for i, ran in enumerate(runs) if not passed[i] and ran.status in ("ok", "error")]:
            left = start + 2 * options.limits.total_seconds - time.perf_counter()
            if left <= 0:
                break
            limits = dataclasses.replace(options.limits, total_seconds=left)
            before, alone = runs[i], sandbox.run(f"{program}\n", cases[i : i + 1], name, limits)
            runs[i], passed[i] = alone[0], _passed(alone, tests, chosen[i : i + 1], sandbox, options)[0]
            if dataclasses.replace(runs[i], seconds=before.seconds) == before:
                break  # so do the others
    seconds = time.perf_counter() - start
    if all(passed):
        return Verdict(1.0, "right", seconds)
    if any(passed) and options.score == "share":
        return Verdict(sum(passed) / len(passed), "partial", seconds)
    if any(ran.status in ("timeout", "not_run") for ran in runs):
        return Verdict(0.0, "timeout", seconds)
    first = runs[passed.index(False)]
    return Verdict(0.0, "crash" if first.status == "error" else "wrong", seconds)


GUESSES = ("0", "1", "-1", "YES", "NO", "True", "False", "")
VALUES = (0, 1, -1, True, False, None, "", [])


def constant_answer(tests: Tests) -> str:
    """A statement that passes all cases without a look at the input, or nothing.

    It prints or returns what the first of several cases expects, or something that is often right: one case alone
    is passed by its own answer, which nobody knows.
    """
    text = tests.fn_name is None
    values = [*tests.outputs[: len(tests.outputs) > 1], *(GUESSES if text else VALUES)]
    for value in values if not tests.checker else ():
        ran = Ran("ok", output=value) if text else Ran("ok", value=value)
        if all(_same(ran, tests, i) for i in range(len(tests.inputs))):
            try:
                return f"print({value.rstrip()!r:.40})" if text else f"return {value!r:.40}"
            except ValueError:  # too many digits
                return "return one integer"
    return ""


# The program


def _wanted(tests: Tests) -> re.Pattern[str] | None:
    """What the program has in it, and an example of its use has not: the function, or that input is read."""
    if tests.fn_name:
        name = re.escape(tests.fn_name)
        return re.compile(rf"^[ \t]*+(?:async[ \t]++)?def[ \t]++{name}\b|^{name}[ \t]*+=", re.MULTILINE)
    return READS if any(text.strip() for text in tests.inputs) else None


def extract_program(response: str, wanted: re.Pattern[str] | None = None) -> str | None:
    """The last fenced block marked as Python, else the last one without a mark; None without one.

    Where a block has what is `wanted`, the last that has. An unmarked block after a marked one is its output,
    or prose; blocks in other languages are left out. The last fence may be unclosed. Fences, of backticks or
    tildes, are lines of their own, save that words may stand before an opening one that names Python, code
    behind it, and code before a closing one.
    """
    marked: list[str] = []
    others: list[str] = []
    for block in _blocks(response):
        if block.language == "" or PYTHON.match(block.language):
            (marked if block.language else others).append(block.text)
    for kind in (marked, others):
        if wanted and (having := [text for text in kind if wanted.search(text)]):
            return having[-1]
    return (marked or others or [None])[-1]


class _Block:
    """A fenced block, line by line."""

    def __init__(self, language: str, ticks: str, indent: int, listed: bool) -> None:
        self.language = language.lower()
        self.ticks, self.indent = ticks, indent
        self.listed = listed
        """Words stand before the fence, such as a list's number: the lines may be indented as they are."""
        self.lines: list[str] = []
        self.quotes = 0
        """Triple quotes so far: in a string a fence may be text."""

    @property
    def text(self) -> str:
        """The program."""
        first = bool(self.lines) and not self.language and PYTHON.fullmatch(self.lines[0].strip().lower())
        text = "\n".join(self.lines[1:] if first else self.lines)
        return textwrap.dedent(text) if self.listed else text

    def add(self, line: str) -> None:
        """One more line."""
        self.quotes += line.count('"""') + line.count("'''")
        self.lines.append(line[min(self.indent, len(line) - len(line.lstrip(" \t"))) :])

    def closes(self, fence: re.Match[str]) -> bool:
        """True for a fence that ends this block, or begins another where this one was never ended."""
        in_string = self.quotes % 2 == 1
        if not fence["ticks"].startswith(self.ticks):
            return False
        if fence["prose"]:
            return not in_string and _is_code(fence["prose"])
        return len(fence["indent"]) <= self.indent + 3 or not (in_string or fence["language"])


def _blocks(response: str) -> Iterator[_Block]:
    """The fenced blocks of a text."""
    block: _Block | None = None
    for line in response.split("\n"):
        fence = None
        if "```" in line or "~~~" in line:
            fence = (TILDES if line.lstrip(" \t").startswith("~") else FENCE).fullmatch(line)
        if block is None:
            if "```" in line and (inline := ONE_LINE.fullmatch(line)):
                block = _Block("python", "", 0, False)
                block.add(inline[1].strip())
                yield block
                block = None
            elif fence and _opens(fence):
                block = _Block(fence["language"], fence["ticks"], len(fence["indent"]), bool(fence["prose"]))
                if BEHIND.match(fence["rest"]):
                    block.add(fence["rest"].lstrip())
        elif fence and block.closes(fence):
            if fence["prose"]:
                block.add(line[: fence.start("ticks")])
            yield block
            block = None
            if fence["language"] and not fence["prose"]:
                block = _Block(fence["language"], fence["ticks"], len(fence["indent"]), False)
        else:
            block.add(line)
    if block:
        yield block


def _opens(fence: re.Match[str]) -> bool:
    rest = fence["rest"]
    named = PYTHON.match(fence["language"].lower()) and (not rest.strip() or BEHIND.match(rest))
    return not fence["prose"] or bool(named)


def _is_code(text: str) -> bool:
    """True where a text ends in no comment and no string: there Python has no backticks, so they are a fence."""
    return not re.search("[#'\"]", STRING.sub("", text))


# Comparison


def _passed(
    runs: list[Ran], tests: Tests, chosen: Sequence[int], sandbox: Sandbox, options: CodeOptions
) -> list[bool]:
    """For each result, True where it is a right one: as the tests' checker says, or the expected one."""
    if not tests.checker:
        return [_same(ran, tests, i) for ran, i in zip(runs, chosen, strict=True)]
    ok = [j for j, ran in enumerate(runs) if ran.status == "ok"]
    text = tests.fn_name is None
    asked = [
        [tests.inputs[chosen[j]], tests.outputs[chosen[j]], runs[j].output if text else runs[j].value]
        for j in ok
    ]
    program = f"SOURCE = {tests.checker!r}\n{CHECKER}"
    said = dict(zip(ok, sandbox.run(program, asked, "_checked", options.limits), strict=True))
    return [j in said and said[j].value is True for j in range(len(runs))]


def _same(ran: Ran, tests: Tests, case: int) -> bool:
    """True where the result of one case is the expected one."""
    if ran.status != "ok":
        return False
    expected = tests.outputs[case]
    check = tests.checks[case] if tests.checks else EQUAL
    if tests.fn_name is None:
        return same_output(ran.output, expected, check)
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
    same = _same_whole(value, expected, tests.exact, check)
    if tests.single and not same:
        same = _same_whole(value, expected[0], tests.exact, check)
    return same is (check.kind == "equal")


def _same_whole(value: Any, expected: Any, exact: bool, check: Check) -> bool:
    if check.any_order and type(expected) in (list, tuple) and type(value) in (list, tuple):
        return _in_any_order(value, expected, lambda one, other: same_value(one, other, exact, check))
    return same_value(value, expected, exact, check)


def _in_any_order(ours: Sequence[Any], theirs: Sequence[Any], same: Callable[[Any, Any], bool]) -> bool:
    """True where each of theirs has one of ours that is the same: sorted, or found one by one where few do not sort."""
    if len(ours) != len(theirs):
        return False
    if all(map(same, sorted(ours, key=repr), sorted(theirs, key=repr))):
        return True
    left = list(ours)
    for wanted in theirs if len(theirs) <= UNSORTED else ():
        found = next((i for i, one in enumerate(left) if same(one, wanted)), None)
        if found is None:
            return False
        del left[found]
    return not left


def same_output(output: str, expected: str, check: Check = EQUAL) -> bool:
    """True where two texts are the same line by line, but for white space between and behind the words.

    Empty lines at the end do not count. YES is Yes. Where the expected word is a decimal number, with a point
    or an exponent, a number near it will do. Integers are compared as text. `check` may ask for less or more.
    """
    if check.ignore_case:
        output, expected = output.casefold(), expected.casefold()
    ours, theirs = (text.split() if check.tokens else _lines(text) for text in (output, expected))
    if len(ours) != len(theirs):
        return False
    if check.any_order:
        return _in_any_order(ours, theirs, lambda line, wanted: _same_line(line, wanted, check))
    return all(
        line == wanted or _same_line(line, wanted, check) for line, wanted in zip(ours, theirs, strict=True)
    )


def _same_line(line: str, wanted: str, check: Check) -> bool:
    words, wanted_words = line.split(), wanted.split()
    return len(words) == len(wanted_words) and all(
        _same_word(word, other, check) for word, other in zip(words, wanted_words, strict=True)
    )


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _same_word(word: str, wanted: str, check: Check) -> bool:
    if word == wanted:
        return True
    if check.yes_no and len(wanted) < 4 and (low := wanted.lower()) in ("yes", "no"):
        return word.lower() == low
    if max(len(word), len(wanted)) > 400 or not (check.integers or re.search("[.eE]", wanted)):
        return False
    if not (DECIMAL.fullmatch(wanted) and DECIMAL.fullmatch(word)):
        return False
    number, reference = float(word), float(wanted)
    return math.isfinite(reference) and math.isclose(
        number, reference, rel_tol=check.relative, abs_tol=check.absolute
    )


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
    if kind is str and check.ignore_case:
        return type(value) is str and value.casefold() == expected.casefold()
    if kind not in NUMBERS:
        return type(value) is kind and value == expected
    if type(value) not in NUMBERS:
        return False
    if expected != expected:
        return value != value
    if kind is bool or (kind is int and not check.integers):
        return value == expected
    try:
        return cmath.isclose(value, expected, rel_tol=check.relative, abs_tol=check.absolute)
    except OverflowError:  # an int beyond all floats
        return False
