"""The judge of programs: extraction, comparison, hostile programs, real references."""

import ast
import hashlib
import json
import math
import random
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openprime.config import DataConfig
from openprime.tasks import programs
from openprime.verifiers import code
from openprime.verifiers.cases import Check, read_tests
from openprime.verifiers.code import (
    CodeOptions,
    constant_answer,
    extract_program,
    same_output,
    same_value,
    verify_code,
)
from openprime.verifiers.sandbox import Limits, Sandbox, SandboxError
from support.benchmark_files import FOLDER, needs_files
from support.memory import COPIES, HONEST
from support.programs import (
    ALL,
    LEETCODE,
    READ,
    REFUSED,
    TAKE,
    TAKEN,
    Canned,
    ask,
    bench_row,
    fenced,
    judge,
    packed,
    ran,
    stdin_row,
)

ROOT = Path(__file__).parents[2]
SHARE = CodeOptions(score="share", limits=ALL.limits)
PATIENT = CodeOptions(score="all", limits=Limits(seconds=20.0, total_seconds=60.0))
"""For right programs that take long where the machine has other work."""


@pytest.fixture(scope="module")
def sandbox():
    try:
        box = Sandbox()
    except SandboxError as error:
        pytest.skip(f"no strict isolation here: {error}")
    yield box
    box.close()


# Extraction


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("", None), ("print(1)", None), ("use `x` and ``y``", None), ("```python\na\n```", "a"),
        ("```py\na\n```", "a"), ("```python3\na\n```", "a"), ("```Python\na\n```", "a"), ("```\na\n```", "a"),
        ("``` python \na\n```  ", "a"), ("```python title=x\na\n```", "a"),
        ("a\r\n```python\r\nb\r\n```\r\n", "b\r"), ("```python\na\n```\nor\n```python\nb\n```", "b"),
        ("```python\na\n```\nprints\n```\nb\n```", "a"), ("```\na\n```\nor\n```\nb\n```", "b"),
        ("```python\na\n```\nprints\n```text\nb\n```", "a"), ("```cpp\na\n```", None),
        ("```cpp\na\n```\n```python\nb", "b"), ("```python\na", "a"), ("```python\na\n```python\nb\n```", "b"),
        ("```python\na\n```\n```text\nb", "a"), ("```python\n```", ""), ("```", ""), ("```python", ""),
        ("So: ```python\na\n```", "a"), ("So ```python blocks\na\n```", ""), ("Use ```x``` here", None),
        ("````python\n```\na\n````", "```\na"),
        ("1. so\n   ```python\n   if a:\n       b\n   ```", "if a:\n    b"),
        ("\t```python\n\ta\n\t\tb\n\t```", "a\n\tb"),
        ('```python\n"""\n    ```\n    x\n    ```\n"""\n```', '"""\n    ```\n    x\n    ```\n"""'),
        ("```python\ns = '```'\n# ```\nt\n```", "s = '```'\n# ```\nt"),
        # fences of tildes, indented, on the line of the code, with more words
        ("~~~python\na\n~~~", "a"), ("~~~\na\n~~~\nb", "a"), ("~~~~py\n~~~\na\n~~~~", "~~~\na"),
        ("```python\n~~~\na\n```", "~~~\na"), ("~~~python\n```\na\n~~~", "```\na"), ("~~~cpp\na\n~~~", None),
        ("```python\na\n    ```", "a"), ("```python\na\n    ```\nSo:\n```text\nb\n```", "a"),
        ("```python\n    a\n        ```\nb", "    a"), ("```python\n'''\n    ```\n'''\n```", "'''\n    ```\n'''"),
        ("```python\na()```", "a()"), ("```python\na('#', \"x\")```\nb\n```\nc\n```", "a('#', \"x\")"),
        ("```python\na() ``` prints it.\nb", "a() "), ("So: ```python a(b)```", "a(b)"),
        ("So: ```python a(b)\nc\n```", "a(b)\nc"), ("```\npython\na\n```", "a"), ("```python-repl\na\n```", None),
        ("```python\na\n```\nor ```py b``` or", "b"), ("```python a()\nb\n```", "a()\nb"),
        ("```python import x\nb\n```", "import x\nb"), ("```python n, m = 1, 2\nb\n```", "n, m = 1, 2\nb"),
        ("```python file=a.py\nb\n```", "b"), ("```{python}\na\n```", "a"), ("```python3.11\na\n```", "a"),
        ("```Python:main.py\na\n```", "a"), ("```pycon\n>>> a\n```", None), ("```pypy3\na\n```", "a"),
        ("- ```python\n  if a:\n    b\n  ```", "if a:\n  b"), ("1) Code: ```py\n   a\n   ```", "a"),
    ],
)  # fmt: skip
def test_extract_program__the_last_one_is_taken(text, program):
    assert extract_program(text) == program


SOLVES = "class Solution:\n    def inc(self, n): return n + 1"
READER = "def solve(): print(int(input()) + 1)\nsolve()"


@pytest.mark.parametrize(
    ("blocks", "stdin", "called"),
    [
        ([SOLVES, "s = Solution()\nprint(s.inc(3))"], None, 0),
        (["def inc(n): return 0", "def inc(n): return n + 1", "print(inc(1))", "# done"], None, 1),
        (["inc = lambda n: n + 1", "print(inc(1))"], None, 0),
        (["async def inc(n): 0", "inc(1)"], None, 0),
        (["def other(n): return n", "print(other(1))"], None, 1),
        (["def increase(n): 0", "x.inc = 3"], None, 1),
        ([READER, "solve()  # 3 -> 4"], "3", 0),
        (["import sys\nprint(sys.stdin.read())", "print('4')"], "3", 0),
        ([READER, "import sys\nprint(sys.stdin.read())", "print(4)"], "3", 1),
        ([READER, "import io, sys\nsys.stdin = io.StringIO('3')\nsolve()"], "3", 0),
        ([READER, "print(solve(input='3'))"], "3", 0),
        ([READER, "print(4)"], "\n", 1),
        (["print(3)", "print(4)"], "3", 1),
    ],
)
def test_extract_program__the_block_that_the_tests_call_goes_before_an_example_behind_it(
    blocks, stdin, called
):
    call = {"tests": {"fn_name": "inc", "inputs": [[1]], "outputs": [2]}}
    canned = Canned(ran(2, "2"))
    response = "First:\n" + "\nthen:\n".join(f"```python\n{block}\n```" for block in blocks)
    verify_code(ask(stdin_row((stdin, "2")) if stdin else call), [response], canned, ALL)
    assert canned.asked[0][0] == blocks[called] + "\n"


def test_extract_program__an_unmarked_block_that_defines_goes_before_a_marked_one_that_does_not():
    pattern = re.compile("def f")
    assert extract_program("```\ndef f(): 0\n```\n```python\nf()\n```", pattern) == "def f(): 0"
    assert extract_program("```\ndef f(): 0\n```\n```python\ndef f(): 1\n```", pattern) == "def f(): 1"


@settings(deadline=None)
@given(st.text(alphabet="ab `\n\t#'", max_size=30), st.text(alphabet="ab`\n ", max_size=30))
def test_extract_program__what_a_fence_longer_than_any_in_it_holds(content, before):
    fence = "`" * 31
    assert extract_program(f"{before}\n{fence}\n{fence}\n{fence}python\n{content}\n{fence}") == content


@pytest.mark.parametrize(
    "text",
    [
        "```" * 20_000, "```\n" * 20_000, "```python\n" * 20_000, "```python " * 20_000,
        ("a" * 50 + "```python\n") * 20_000, "`" * 200_000, "`` " * 100_000,
        " " * 200_000 + "```" + " " * 200_000, "a" * 200_000 + "```" + "a" * 200_000 + "`",
        "```" + "python" * 100_000 + "`", ("\t" * 100 + "```\n") * 5_000,
    ],
)  # fmt: skip
def test_extract_program__long_texts_are_read_in_time(text):
    start = time.perf_counter()
    extract_program(text)
    assert time.perf_counter() - start < 3


# Comparison of outputs


@pytest.mark.parametrize(
    ("output", "expected", "same"),
    [
        ("1 \n2\t\n\n\n", "1\n2", True), ("1\r\n2\r\n", "1\n2\n", True), ("1  2", "1 2", True),
        (" 1", "1", True), ("\n\n", "", True), ("1\n\n2", "1\n2", False), ("\n1", "1", False),
        ("Yes", "YES", True), ("no\nYES", "No\nyes", True), ("Yes", "NO", False), ("Yess", "YESS", False),
        ("TRUE", "true", False), ("0.3333333", "0.33333333", True), ("0.33333", "0.333333333", False),
        ("1000000.5", "1000000.0", True), ("1", "1.0", True), ("1.0000001", "1", False), ("01", "1", False),
        ("+1", "1", False), ("100000001", "100000000", False), ("1e3", "1000.0", True), ("1000", "1e3", True),
        (".5", "0.5", True), ("5.", "5.0", True), ("0.0", "-0.0", True), ("nan", "nan", True),
        ("nan", "1.0", False), ("inf", "1e999", False), ("1e999", "1e998", False), ("1e999", "1e999", True),
        ("1_0.0", "10.0", False), ("１.0", "1.0", False), ("1.0x", "1.0", False), ("1.0.0", "1.0", False),
        ("0x1p0", "1.0", False), ("Case 1: 2.50 YES", "Case 1: 2.5 YES", True),
        ("Case 2: 2.50 YES", "Case 1: 2.5 YES", False), ("a\x0bb", "a\nb", False),
        ("", "1", False), ("1 2", "1\n2", False), ("12", "1 2", False),
    ],
)  # fmt: skip
def test_same_output__by_hand(output, expected, same):
    assert same_output(output, expected) is same


LOOSE = {
    "tokens": [("1 2\n3", "1\n2 3", True), ("1 2", "1 2 3", False), ("12", "1 2", False)],
    "any_order": [("b\na", "a\nb", True), ("a\na\nb", "a\nb\nb", False), ("2 1", "1 2", False)],
    "tokens any_order": [("2 1", "1\n2", True), ("0.30000001 1", "1 0.3", True), ("1 1 2", "1 2 2", False)],
    "ignore_case": [("Alice 1", "ALICE 1", True), ("Bob", "ALICE", False)],
    "exact": [("Yes", "YES", False), ("0.50", "0.5", True), ("0.5000001", "0.5", False), ("1 \n", "1", True)],
    ("tolerance", 0.01): [
        ("100", "101", True),
        ("97", "100", False),
        ("3.001", "3", True),
        ("a", "3", False),
    ],
    ("tolerance", 0): [("0.5000001", "0.5", False), ("3.0", "3", True)],
}


@pytest.mark.parametrize(
    ("how", "output", "expected", "same"), [(how, *case) for how, found in LOOSE.items() for case in found]
)
def test_same_output__as_a_row_asks(how, output, expected, same):
    asked = dict([how]) if isinstance(how, tuple) else how
    row = {**stdin_row(("1", expected)), "comparison": asked}
    assert judge(row, "x", Canned(ran(output=output))) == ("right" if same else "wrong")


@pytest.mark.parametrize(
    ("how", "value", "expected", "same"),
    [
        ("any_order", [[2, 3], [1]], [[1], [2, 3]], True), ("any_order", [[3, 2], [1]], [[1], [2, 3]], False),
        ("any_order", (2, 1), [1, 2], True), ("any_order", [1, 1, 2], [1, 2, 2], False), ("any_order", 1, [1], False),
        ("any_order", [0.5, 0.25000001], [0.25, 0.5], True), ("any_order", [1, 2, 3], [1, 2], False),
        ("any_order", [{"b": 1, "a": 2}, 0], [0, {"a": 2, "b": 1}], True), ("ignore_case", [1], ["a"], False),
        ("ignore_case", ["Ab", 1], ["aB", 1], True),
        ({"tolerance": 0.01}, [100], [101], True), ({"tolerance": 0.01}, [True], [False], False),
        ({"tolerance": 0.01}, 10**400, 1, False), ("exact", 0.5000001, 0.5, False),
    ],
)  # fmt: skip
def test_same_value__as_a_row_asks(how, value, expected, same):
    row = {"tests": {"fn_name": "f", "inputs": [[1], [2]], "outputs": [expected, 7], "comparison": how}}
    assert judge(row, "x", Canned(ran(value), ran(7))) == ("right" if same else "wrong")


def slow_same_output(output, expected):
    """By another way: exact fractions, one character at a time."""
    from fractions import Fraction

    def rows(text):
        found = [row.split() for row in text.split("\n")]
        while found and not found[-1]:
            found.pop()
        return found

    def number(word):
        try:
            if set(word) - set("0123456789+-.eE"):
                return None
            return Fraction(word)
        except ValueError:
            return None

    def word_same(ours, theirs):
        if ours == theirs:
            return True
        if not set(theirs) & set(".eE") or number(ours) is None or number(theirs) is None:
            return False
        one, other = number(ours), number(theirs)
        gap = abs(one - other)
        return gap <= Fraction(1, 10**6) * max(1, abs(one), abs(other))

    ours, theirs = rows(output), rows(expected)
    return len(ours) == len(theirs) and all(
        len(a) == len(b) and all(map(word_same, a, b)) for a, b in zip(ours, theirs, strict=True)
    )


WORDS = st.sampled_from("1 1.0 1.5 1.50 1.500001 1.50001 -1.5 15e-1 +1.5 a e5 . 1e5 100000".split())  # noqa: SIM905


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS, st.sampled_from([" ", "  ", "\n", " \n", "\n\n"])), max_size=4))
def test_same_output__against_a_slow_version(rows):
    output = "".join(ours + space for ours, _, space in rows)
    expected = "".join(theirs + space for _, theirs, space in rows)
    assert same_output(output, expected) == slow_same_output(output, expected)
    assert same_output(output, output)


def test_same_output__long_ones_are_compared_in_time():
    start = time.perf_counter()
    assert not same_output("1" * 1_000_000, "1.0")
    assert same_output("1.0 " * 200_000, "1.00 " * 200_000)
    assert not same_output("\n" * 1_000_000 + "x", "\n" * 999_999 + "x")
    assert not same_output("." * 1_000_000, "1" * 1_000_000 + ".0")
    assert not same_output("1e" + "9" * 390, "1.0")
    free = Check(tokens=True, any_order=True, integers=True)
    assert same_output("1 2 " * 100_000, "2 1 " * 100_000, free)
    assert not same_output("1 2 " * 100_000, "2 3 " * 100_000, free)
    assert time.perf_counter() - start < 6


# Comparison of values

NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "expected", "exact", "json_"),
    [
        (True, 1, True, True), (1, True, True, True), (1.0, 1, True, True), (1.0000001, 1, False, False),
        (1.0000001, 1.0, True, True), (1.00001, 1.0, False, False), (1, 1.0, True, True),
        ("1", 1, False, False), (1, "1", False, False), (NAN, 1.0, False, False), (1.0, NAN, False, False),
        (NAN, NAN, True, True), (NAN, 1, False, False), (math.inf, math.inf, True, True),
        (math.inf, 1.0, False, False), (1e308, math.inf, False, False), (10**400, 1.0, False, False),
        (10**400, math.inf, False, False), (1j, 1j, True, True), (1j, 1.0, False, False),
        ((1, 2), [1, 2], False, True), ([(1, [2.0])], [[1, [2]]], False, True), ([1, 2], (1, 2), False, False),
        ({1, 2}, [1, 2], False, False), ({1, 2}, {2, 1}, True, True), (frozenset([1]), {1}, True, True),
        ({1}, {1, 2}, False, False), ({"a": [1.0000001]}, {"a": [1.0]}, True, True),
        ({1: 2}, {"1": 2}, False, True), ({"1": 2}, {"1": 2}, True, True), ({1.5: 2}, {"1.5": 2}, False, False),
        ("abc", ["a", "b", "c"], False, False),
    ],
)  # fmt: skip
def test_same_value__by_hand(value, expected, exact, json_):
    assert same_value(value, expected, True, Check()) is exact
    assert same_value(value, expected, False, Check()) is json_


def plain(leaves):
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(st.sampled_from(["a", "b", 1, 2]), inner, max_size=3)
        ),
        max_leaves=8,
    )


EXACT = plain(
    st.sampled_from([0, 1, 2, True, False, None, "a", "", b"a", 10**30]) | st.frozensets(st.integers(0, 2))
)


@settings(deadline=None)
@given(EXACT, EXACT)
def test_same_value__without_floats_exact_values_are_compared_as_python_does(one, other):
    assert same_value(one, other, True, Check()) == (one == other)
    assert same_value(one, one, True, Check())
    assert same_value(one, one, False, Check())


JSON = plain(st.sampled_from([0, 1, True, None, "a", "1", 0.5, 0.5000001, 0.6, 1.0]))


def normal(value, digits):
    """By another way: one text for all values that JSON cannot tell apart."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(normal(v, digits) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{k}:{normal(v, digits)}" for k, v in value.items())) + "}"
    if isinstance(value, bool | int | float):
        return f"{float(value):.{digits}f}"
    return repr(value)


@settings(deadline=None)
@given(JSON, JSON)
def test_same_value__of_json_against_a_slow_version(value, other):
    expected = json.loads(json.dumps(other))
    if isinstance(other, dict | list | tuple) and '"1": ' in json.dumps(other) and "1" in str(value):
        return  # keys are tried above
    assert same_value(value, expected, False, Check()) == (normal(value, 4) == normal(expected, 4))
    assert same_value(other, expected, False, Check())


def test_same_value__costs_what_the_expected_value_does():
    start = time.perf_counter()
    assert not same_value([1] * 1_000_000, [1], True, Check())
    assert not same_value([[[1] * 1_000_000]], [[1]], True, Check())
    assert not same_value({i * (2**61 - 1) for i in range(5000)}, {1}, True, Check())
    assert not same_value(10**1_000_000, 1.0, True, Check())
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert not same_value(deep, [[[1]]], True, Check())
    assert time.perf_counter() - start < 6
    while deep:  # else freeing it would recurse
        deep = deep[0]


# Verdicts


def test_verify_code__reasons_and_scores():
    row = stdin_row(("1", "2"), ("2", "3"), ("3", "4"), ("4", "5"))
    good, bad = [ran(output=f"{i}\n") for i in (2, 3, 4, 5)], ran(output="0")
    crash, late, left = ran(status="error"), ran(status="timeout"), ran(status="not_run")
    for runs, all_, share in [
        (good, (1.0, "right"), (1.0, "right")),
        ([*good[:3], bad], (0.0, "wrong"), (0.75, "partial")),
        ([bad, *good[1:]], (0.0, "wrong"), (0.75, "partial")),
        ([*good[:2], late, left], (0.0, "timeout"), (0.5, "partial")),
        ([*good[:2], crash, bad], (0.0, "crash"), (0.5, "partial")),
        ([bad] * 4, (0.0, "wrong"), (0.0, "wrong")),
        ([bad, crash, crash, crash], (0.0, "wrong"), (0.0, "wrong")),
        ([crash, bad, bad, bad], (0.0, "crash"), (0.0, "crash")),
        ([bad, bad, late, left], (0.0, "timeout"), (0.0, "timeout")),
        ([crash, late, late, late], (0.0, "timeout"), (0.0, "timeout")),
    ]:
        for options, expected in ((ALL, all_), (SHARE, share)):
            (verdict,) = verify_code(ask(row), [fenced("x")], Canned(*runs), options)
            assert (verdict.outcome, verdict.reason) == expected


def test_verify_code__what_is_not_run():
    row = stdin_row(("1", "2"))
    canned = Canned(ran(output="2"))
    long = "#" * code.LONGEST
    responses = [
        "no program",
        fenced(""),
        fenced("  \n\t"),
        fenced(long + "#"),
        fenced("a\0"),
        fenced("'\ud800'"),
    ]
    verdicts = verify_code(ask(row), responses, canned, ALL)
    assert [v.reason for v in verdicts] == ["no_answer"] * 3 + ["rejected"] * 3
    assert {v.outcome for v in verdicts} == {0.0}
    assert canned.asked == []
    assert judge(row, long, canned) == "right"
    assert verify_code(ask(row), [], canned, ALL) == []


def test_verify_code__the_same_program_is_run_once():
    canned = Canned(ran(output="2"))
    responses = [fenced("a"), "Other words.\n```py\na\n\n```", fenced("b"), fenced("a"), "none"]
    verdicts = verify_code(ask(stdin_row(("1", "2"))), responses, canned, ALL)
    assert [v.reason for v in verdicts] == ["right"] * 4 + ["no_answer"]
    assert [program for program, *_ in canned.asked] == ["a\n", "b\n"]
    assert verdicts[0] == verdicts[1] == verdicts[3]


def test_verify_code__the_sandbox_gets_the_inputs_and_room_for_the_expected_output():
    canned = Canned(ran(output="x"))
    judge(stdin_row(("1", "y" * 3_000_000)), "a", canned)
    program, cases, fn_name, limits = canned.asked[0]
    assert (program, cases, fn_name) == ("a\n", ["1"], None)
    assert limits.output_bytes > 3_000_000
    assert limits.seconds == ALL.limits.seconds
    judge({"tests": {"fn_name": "f", "inputs": [[1]], "outputs": [[0] * 300_000]}}, "a", canned)
    assert canned.asked[1][3].output_bytes > 1_100_000


def test_verify_code__cases_are_drawn_once_for_a_prompt_and_the_same_everywhere():
    row = stdin_row(*((f"{i}", f"{i}") for i in range(100)))
    options = CodeOptions(max_cases=5)

    def drawn(name, seed=0):
        canned = Canned()
        verify_code(ask(row, name=name), [fenced("a"), fenced("b")], canned, options, seed)
        (_, one, *_), (_, other, *_) = canned.asked
        assert one == other
        assert len(one) == 5
        assert [int(i) for i in one] == sorted({int(i) for i in one})
        return one

    assert drawn("p") == drawn("p")
    assert drawn("p") != drawn("q")
    assert drawn("p") != drawn("p", seed=1)
    source = (
        "from openprime.verifiers.code import _random; print(sorted(_random('p', 0).sample(range(100), 5)))"
    )
    for hash_seed in ("1", "2"):
        environment = {"PYTHONPATH": str(ROOT / "src"), "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", source], capture_output=True, text=True, env=environment, check=True
        )
        assert done.stdout.split() == str([int(i) for i in drawn("p")]).split()
    canned = Canned(*(ran(output=f"{i}") for i in range(100)))
    assert judge(row, "a", canned, CodeOptions(max_cases=100)) == "right"


def test_code_options__are_those_of_the_published_recipe():
    options = CodeOptions()
    assert (options.score, options.max_cases, options.limits) == ("share", 0, Limits())


def test_verify_code__imports_no_torch():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, openprime.verifiers.code; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT / "src")},
        check=True,
    )
    assert done.stdout == "False\n"


def test_verify_code__a_list_around_the_value_is_accepted_where_all_have_one():
    row = {"tests": {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[3], [4]]}}
    assert judge(row, "x", Canned(ran(3), ran(4))) == "right"
    assert judge(row, "x", Canned(ran([3]), ran((4,)))) == "right"
    assert judge(row, "x", Canned(ran(3), ran(5))) == "wrong"
    row = {"tests": {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[3], [4, 5]]}}
    assert judge(row, "x", Canned(ran(3), ran([4, 5]))) == "wrong"


def test_verify_code__imports_and_signatures_are_put_before_the_program():
    row = {
        "test_list": ["assert f(1) == 1"],
        "test_imports": ["import math", "import re"],
        "test_setup_code": "",
    }
    canned = Canned(ran(1))
    human = {"test": row["test_list"][0], "entry_point": "f", "prompt": "def f(x):\n    'Same.'\n"}
    assert read_tests(human, None).prompt == human["prompt"]
    assert read_tests({**human, "prompt": "Write:\ndef f(x):\n    'Same.'\n"}, None).prompt == ""
    assert read_tests({**human, "prompt": [{"role": "user", "content": "f"}]}, None).prompt == ""
    assert read_tests({**human, "entry_point": "Solution().f"}, None).fn_name == "f"
    assert judge(row, "def f(x): return x", canned) == "right"
    assert canned.asked[0][:3] == ("import math\nimport re\ndef f(x): return x\n", [[1]], "f")
    assert judge(row, "from __future__ import annotations", canned) == "right"
    assert canned.asked[1][0] == "from __future__ import annotations\n"


# Hostile programs, in the sandbox

ADD = stdin_row(("1 2\n", "3\n"), ("4 5\n", "9\n"))
CALL = {"tests": {"fn_name": "add", "inputs": [[1, 2], [4, 5]], "outputs": [3, 9]}}


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print(sum(map(int, input().split())))", "right"),
        ("import sys\nprint(sum(map(int, sys.stdin.read().split())))\nsys.exit(0)", "right"),
        ("a, b = map(int, input().split())\nprint(a - b)", "wrong"),
        ("print(3)", "wrong"),
        ("import os\nos._exit(0)", "crash"),
        ("import sys\nsys.exit(0)", "wrong"),
        ("1 / 0", "crash"),
        ("def f(:", "crash"),
        ("while True: pass", "timeout"),
        ("import time\ntime.sleep(60)", "timeout"),
        ("import os\nos.write(1, b'3')\nos.write(2, b'3')\nos._exit(0)", "wrong"),
    ],
)
def test_verify_code__programs_on_stdin(sandbox, program, reason):
    found = judge(ADD, program, sandbox)
    assert found == reason or (reason != "right" and found in ("wrong", "crash") and "os." in program)


FORGED = """
import json, os, sys
line = json.dumps({"status": "ok", "value": 3, "output": "3", "cases": [{"status": "ok", "value": 3}] * 2})
for fd in range(3, 64):
    try:
        os.write(fd, (line + "\\n").encode() * 2)
    except OSError:
        pass
print(line)
sys.stderr.write(line)
os._exit(0)
"""
LIAR = """
class Liar(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = int.__hash__
def add(a, b): return Liar(0)
"""
FRAMES = """
import gc, sys
def walk(seen, values):
    for value in values:
        if isinstance(value, int) and 7 * 10**12 < value < 8 * 10**12:
            yield value
        elif id(value) not in seen and isinstance(value, (dict, list, tuple)):
            seen.add(id(value))
            yield from walk(seen, value.values() if isinstance(value, dict) else list(value))
def add(a, b):
    frame, places = sys._getframe(), [gc.get_objects()]
    while frame:
        places += [frame.f_locals, frame.f_globals]
        frame = frame.f_back
    found = sorted(set(walk(set(), places)))
    return found[0] if found else 0
"""


def test_verify_code__the_expected_value_is_nowhere_in_the_child(sandbox):
    row = {"tests": {"fn_name": "add", "inputs": [[1, 2], [4, 5]], "outputs": [7391846520573] * 2}}
    assert judge(row, FRAMES, sandbox) == "wrong"
    row["tests"]["inputs"] = [[1, 7391846520573]] * 2
    assert judge(row, FRAMES, sandbox) == "right"  # it does find what is there


@pytest.mark.parametrize(
    ("program", "right"),
    [
        ("def add(a, b): return a + b", True),
        ("class Solution:\n    def add(self, a, b): return a + b", True),
        ("def add(a, b): return float(a + b)", True),
        ("def add(a, b): return str(a + b)", False),
        ("add = 3", False),
        ("", None),
        ("def sub(a, b): return a - b", False),
        (LIAR, False),
        (FRAMES, False),
        ("def add(a, b): return add.__globals__['expected']", False),
        (FORGED, False),
        (f"def add(a, b):\n    {FORGED.replace(chr(10), chr(10) + '    ')}", False),
        ("import os\ndef add(a, b): os._exit(0)", False),
        ("import sys\ndef add(a, b): sys.exit(0)", False),
        ("import builtins\nbuiltins.__eq__ = lambda *_: True\ndef add(a, b): raise SystemExit(0)", False),
        ("def add(a, b): return [add]", False),
        ("def add(a, b):\n    x = []\n    x.append(x)\n    return x", False),
        ("def add(a, b): return 10 ** 100_000", False),
        ("def add(a, b):\n    while True: pass", False),
        ("def add(a, b): raise KeyboardInterrupt", False),
        ("def add(a, b): return add(a, b)", False),
    ],
)
def test_verify_code__programs_called(sandbox, program, right):
    if right is None:
        assert judge(CALL, program, sandbox) == "no_answer"
        return
    found = judge(CALL, program, sandbox)
    assert (found == "right") is right
    if not right:
        assert judge(CALL, program, sandbox, SHARE) != "right"


def test_verify_code__large_results_come_back(sandbox):
    patient = CodeOptions(limits=Limits(seconds=30.0, total_seconds=30.0))
    row = stdin_row(("3000000", "é" * 3_000_000))
    assert judge(row, "print('é' * int(input()))", sandbox, patient) == "right"
    row = {"tests": {"fn_name": "f", "inputs": [[1_100_000]], "outputs": [[7] * 1_100_000]}}
    assert judge(row, "def f(n): return [7] * n", sandbox, patient) == "right"


def test_verify_code__a_hostile_program_does_not_harm_the_next(sandbox):
    good = fenced("def add(a, b): return a + b")
    bad = [fenced(text) for text in (FORGED, LIAR, FRAMES, "import os\nos._exit(0)", "x = 'a' * 10**10")]
    verdicts = verify_code(
        ask(CALL), [good, bad[0], bad[1], bad[2], bad[3], bad[4], good + " "], sandbox, ALL
    )
    assert [v.reason == "right" for v in verdicts] == [True] + [False] * 5 + [True]


def test_verify_code__of_eight_responses_that_share_one_solution_only_its_author_earns(sandbox):
    """Seven look for the program and its output in frames, objects and memory of their process."""
    row = stdin_row(("word\n", f"the answer: {hashlib.sha256(b'word').hexdigest()[:16]}"))
    patient = CodeOptions(limits=Limits(seconds=30.0, total_seconds=30.0))
    verdicts = verify_code(ask(row), [fenced(text) for text in (HONEST, *COPIES)], sandbox, patient)
    assert [v.reason for v in verdicts] == ["right"] + ["wrong"] * 7


def test_verify_code__shapes_of_rows_in_the_sandbox(sandbox):
    human = {
        "prompt": 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """ Sum it.\n    """\n',
        "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
        "entry_point": "total",
    }
    assert judge(human, "    return sum(xs)", sandbox) == "right"
    assert judge(human, "def total(xs: List[int]) -> int:\n    return sum(xs)", sandbox) == "right"
    assert judge(human, "def other(xs): return sum(xs)", sandbox) == "wrong"
    both = "from __future__ import annotations\ndef total(xs: List[int]): return sum(xs)"
    assert judge(human, both, sandbox) == "right"
    leet = {"tests": LEETCODE, "fn_name": "over"}
    program = "class Solution:\n    def over(self, xs, n): return tuple(x for x in [sum(xs)] if x == n)"
    assert judge(leet, program, sandbox) == "right"
    assert judge(leet, program.replace("==", "!="), sandbox) == "wrong"


def test_verify_code__a_value_that_cannot_travel_is_true_or_not(sandbox):
    row = {"test_list": ["assert f('a')", "assert not f('b')"]}
    assert judge(row, "import re\ndef f(text): return re.match('a', text)", sandbox) == "right"
    assert judge(row, "def f(text): return [text] if text == 'a' else []", sandbox) == "right"
    assert judge(row, "def f(text): return text != 'b' and f", sandbox) == "right"
    assert judge(row, "def f(text): return 3 if text == 'a' else 2 * f('a') - 6", sandbox) == "right"
    assert judge(row, "import re\ndef f(text): return re.match('b', text)", sandbox) == "wrong"


# Constants


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        (stdin_row(("1", "7"), ("2", "7 \n")), "print('7')"), (stdin_row(("1", "0")), "print('0')"),
        (stdin_row(("1", "17")), ""), (stdin_row(("1", "7"), ("2", "8")), ""),
        (stdin_row(("1", "YES"), ("2", "Yes")), "print('YES')"),
        (stdin_row(("1", "1.0"), ("2", "1.00")), "print('1.0')"), ({"test_list": ["assert f(1) == 3"]}, ""),
        ({**stdin_row(("1", "7"), ("2", "7")), "checker": "print(1)"}, ""),
        ({"test_list": ["assert f(1) == 3", "assert f(2) == 3"]}, "return 3"),
        ({"test_list": ["assert f(1)", "assert f(2)"]}, "return True"),
        ({"test_list": ["assert f(1)", "assert not f(2)"]}, ""), ({"test_list": ["assert not f(2)"]}, "return 0"),
        ({"test_list": ["assert f(1) is None", "assert f(2) == 3"]}, ""),
        ({"test_list": ["assert sorted(f(1)) == []"]}, "return ''"),
        ({"test_list": ["assert f(1) != 3", "assert f(2) != 4"]}, "return 0"),
        ({"tests": {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[[1]], [[1]]]}}, "return [[1]]"),
    ],
)  # fmt: skip
def test_constant_answer__passes_without_a_look_at_the_input(row, answer):
    assert constant_answer(read_tests(row, None)) == answer


def test_task_programs__rows_that_a_constant_solves_are_found():
    """Rows of the task stay as they are; admission leaves these out."""
    rows = programs.rows(DataConfig(source="task:programs", horizon=4, limit=200))
    tests = [read_tests({}, row["answer"]) for row in rows]
    constant = [constant_answer(found) != "" for found in tests]
    assert constant == [len(set(found.outputs)) == 1 for found in tests]
    assert 0.2 < sum(constant) / len(rows) < 0.35


# Several right outputs

PAIRS = """
import sys
def main():
    n = int(open(sys.argv[1]).read())
    with open(sys.argv[3]) as file: a, b = map(int, file.read().split())
    print(int(a + b == n and min(a, b) > 0 and open(sys.argv[2]).readline() != ""))
if __name__ == "__main__":
    main()
"""
"""Is the output a pair of positive numbers with the sum that the input is?"""
FUNCTION = "def check(given, expected, output): return sum(map(int, output.split())) == int(given)"


@pytest.mark.parametrize("place", ["checker", "generated_checker"])
@pytest.mark.parametrize("checker", [PAIRS, FUNCTION])
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("n = int(input())\nprint(1, n - 1)", "right"),
        ("n = int(input())\nprint(n // 2, n - n // 2)", "right"),
        ("n = int(input())\nprint(n, 1)", "wrong"),
        ("print('a b')", "wrong"),
        ("n = int(input())\nprint(1, n - 1 - (n > 5))", "partial"),
        ("print(1)\nsys.exit(1)", "crash"),
        ("print('1')\nopen('output.txt')", "crash"),
    ],
)
def test_verify_code__a_checker_decides_among_several_right_outputs(sandbox, place, checker, program, reason):
    row = {**stdin_row(("5\n", "1 4\n"), ("9\n", "1 8\n")), place: checker}
    assert judge(row, program, sandbox, SHARE) == reason


@pytest.mark.parametrize(
    ("checker", "reason"),
    [
        ("print(100)", "right"), ("print('ok')\nprint(1.0)", "right"), ("import sys\nprint(1)\nsys.exit(0)", "right"),
        ("print(0)", "wrong"), ("print(0.5)", "wrong"), ("print(50)", "wrong"), ("", "right"), ("pass", "wrong"),
        ("1 / 0", "wrong"), ("while True: pass", "wrong"), ("def check(g, e, o): return o == e == [3, g[0]]", "right"),
        ("def check(g, e, o): return 'yes'", "wrong"), ("import os\nprint(1)\nos._exit(0)", "wrong"),
    ],
)  # fmt: skip
def test_verify_code__what_a_checker_may_say(sandbox, checker, reason):
    row = {"tests": {"fn_name": "f", "inputs": [[1]], "outputs": [[3, 1]], "checker": checker}}
    assert (
        judge(row, "def f(n): return (3, n)" if not checker else "def f(n): return [3, n]", sandbox) == reason
    )


# Cases of one program

WAITS = """
import sys, threading, time
print(int(input()) + 1, flush=True)
main = sys.modules["__main__"]
def late():
    while sys.modules["__main__"] is main: pass
    time.sleep(0.001)
    print("late", flush=True)
threading.Thread(target=late, daemon=True).start()
"""
DIES = """
import os
print(int(input()) + 1, flush=True)
if "n" in os.environ: os._exit(3)
os.environ["n"] = "1"
"""
PRINTS = "import builtins\nold = builtins.print\nbuiltins.print = lambda *a: old(*a)\n"
BEHIND = {
    "stdin opened again": "import sys\nsys.stdin = open(0)\nprint(int(input()) + 1)",
    "input replaced": "import sys, builtins\nbuiltins.input = sys.stdin.readline\nprint(int(input()) + 1)",
    "print replaced": f"{PRINTS}print(int(input()) + 1)",
    "descriptors closed": "import os\nos.write(1, b'%d' % (int(input()) + 1))\nfor n in (0, 1, 2): os.close(n)",
    "digits": "import sys\nprint(int(input()) + 1 + 0 * len(str(10**5000)))\nsys.set_int_max_str_digits(1000)",
    "precision": "import decimal\nprint(int(decimal.Decimal(input()) + 1))\ndecimal.getcontext().prec = 1",
    "module": "import math\nprint(math.gcd(int(input()), 0) + 1)\nmath.gcd = None",
    "imports": "import wave, sys\nprint(int(input()) + 1)\nsys.meta_path.clear(); sys.modules.clear()",
    "timer": (
        "import signal, time\ntime.sleep(0.1)\nprint(int(input()) + 1)\nsignal.setitimer(signal.ITIMER_REAL, 0.05)"
    ),
    "thread": WAITS,
    "memory": "import sys\nsys.kept = bytearray(600 << 20)\nprint(int(input()) + 1)",
    "exit": DIES,
}
"""Right programs that leave something behind which the next case in their process would meet."""


@pytest.mark.parametrize("name", BEHIND)
def test_verify_code__what_a_case_leaves_behind_fails_no_other(sandbox, name):
    row = stdin_row(*((f"{n}\n", f"{n + 1}\n") for n in (12, 34, 56, 78)))
    assert judge(row, BEHIND[name], sandbox, PATIENT) == "right"


def test_verify_code__a_program_that_fails_alone_too_is_asked_once_more_only():
    row = stdin_row(*((f"{n}", f"{n}") for n in range(5)))
    canned = Canned(*(ran(output=output) for output in "0b2dd"))
    assert judge(row, "x", canned, SHARE) == "partial"
    assert [cases for _, cases, *_ in canned.asked] == [["0", "1", "2", "3", "4"], ["1"]]


def test_verify_code__numbers_of_any_length_are_printed_and_read(sandbox):
    long = 10**20_000
    row = stdin_row((f"{'9' * 20_000}\n", "1" + "0" * 20_000))
    assert judge(row, "print(int(input()) + 1)", sandbox) == "right"
    row = {"tests": {"fn_name": "f", "inputs": [[20_000]], "outputs": [long]}}
    assert judge(row, "def f(n): return int(str(10 ** n))", sandbox) == "right"


# LeetCode's rows


@pytest.mark.parametrize("row", [TAKE, TAKEN, {**TAKEN, "input_output": json.dumps(TAKEN["input_output"])}])
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("class Solution:\n    def take(self, a: int, b: int) -> int:\n        return a - b", "right"),
        ("class Solution:\n    def take(self, b, a):\n        return a - b", "right"),
        ("def take(b, a): return a - b", "right"),
        ("dir, bool, globals = [], [], []\ndef take(a, b): return a - b", "right"),
        ("class Solution:\n    def take(self, b, a):\n        return b - a", "wrong"),
        ("class Solution:\n    def take(self, a, b):\n        return b - a", "wrong"),
        ("class Solution:\n    def take(self, x, y):\n        return x - y", "crash"),
        ("class Solution:\n    def other(self, a, b):\n        return a - b", "crash"),
    ],
)
def test_verify_code__arguments_by_name_reach_the_function_by_name(sandbox, row, program, reason):
    assert judge(row, program, sandbox) == reason


def test_verify_code__drawn_cases_keep_their_arguments_by_name(sandbox):
    row = {"test_list": ["assert f(5, b=3) == 2", "assert f(1, b=1) == 0", "assert f(4, 1) == 3"]}
    tests = read_tests(row, None)
    assert (tests.inputs, tests.keywords) == (([5], [1], [4, 1]), ({"b": 3}, {"b": 1}, {}))
    assert judge(row, "def f(a, b): return a - b", sandbox) == "right"
    assert judge(row, "def f(b, a): return a - b", sandbox) == "crash"
    row = {"test_list": [f"assert f(x={i}) == {i}" for i in range(50)]}
    drawn = CodeOptions(max_cases=5, limits=ALL.limits)
    assert judge(row, "def f(x): return x", sandbox, drawn) == "right"
    assert judge(row, "def f(x): return x + 1", sandbox, drawn) == "wrong"


def test_verify_code__a_method_may_be_true_or_not(sandbox):
    row = {**TAKE, "test": "def check(f):\n    assert f(a = 5, b = 3)\n    assert not f(a = 1, b = 1)"}
    program = "class Solution:\n    def take(self, a, b): return (lambda: 1) if a > b else None"
    assert judge(row, program, sandbox) == "right"
    assert judge(row, program.replace(">", "<"), sandbox) == "wrong"
    row["test"] = row["test"].replace("a = ", "").replace("b = ", "")
    assert judge(row, program, sandbox) == "right"


def test_verify_code__helpers_in_the_prompt_are_there(sandbox):
    chain = "    node = list_node([a, b])\n        return min(node.val - node.next.val, inf)"
    program = f"class Solution:\n    def take(self, a: int, b: int):\n    {chain}"
    assert judge(TAKE, program, sandbox) == "right"
    assert judge(TAKEN, program, sandbox) == "right"
    assert judge({**TAKE, "prompt": "Take b from a."}, program, sandbox) == "crash"
    assert judge({**TAKE, "prompt": "Take b from a."}, "def take(a, b): return a - b", sandbox) == "right"


def test_verify_code__a_method_goes_before_what_the_prompt_imports(sandbox):
    row = {
        "prompt": "from math import *\n",
        "entry_point": "Solution().gcd",
        "test": "def check(candidate):\n    assert candidate(4, 6) == 2\n",
    }
    program = "class Solution:\n    def gcd(self, a, b): return gcd(a, b)"
    assert judge(row, program, sandbox) == "right"
    assert judge(row, program.replace("gcd(a", "a + gcd(a"), sandbox) == "wrong"


@pytest.mark.parametrize(
    "pack", [json.dumps, list, *(lambda cases, p=p: packed(json.dumps(cases), p) for p in range(6))]
)
def test_verify_code__public_and_private_cases_are_the_tests(sandbox, pack):
    row = bench_row(READ[:1], pack(READ[1:]))
    assert (
        read_tests(row, None).inputs == read_tests(row, row["public_test_cases"]).inputs == ("1 2\n", "4 5")
    )
    assert judge(row, "print(sum(map(int, input().split())))", sandbox) == "right"
    assert judge(row, "print(3)", sandbox) == "wrong"
    assert judge(row, "print(9)", sandbox) == "wrong"
    row = bench_row(LEETCODE[:1], pack(LEETCODE[1:]), "over")
    program = "class Solution:\n    def over(self, xs: List[int], n: int): return [sum(xs)] if xs else []"
    assert judge(row, program, sandbox) == "right"
    assert judge(row, "def over(n, xs): return [sum(xs)] if xs else []", sandbox) == "crash"
    assert judge(row, "def over(xs, n): return [3]", sandbox) == "wrong"
    assert judge(row, "def over(xs, n): return []", sandbox) == "wrong"


# Real tasks


@pytest.fixture(scope="module")
def bench():
    """The benchmark script, which has the mutations."""
    return runpy.run_path(str(ROOT / "benchmarks" / "code_verifier.py"))


def test_mutants__change_one_place(bench):
    program = 'def f(x: int = 1) -> int:\n    """Doc 1."""\n    y = x + 1\n    return y if y > 2 else -3\n'
    found = list(bench["mutants"](program))
    assert len(found) == len(set(found)) >= 10
    for mutant in found:
        ast.parse(mutant)
        assert mutant != ast.unparse(ast.parse(program))
        assert '"""Doc 1."""' in mutant
    assert all(mutant.startswith("def f(x: int") for mutant in found)


def trial(bench, box, name, rows, count):
    """(mutants, rejected mutants); every reference must be right but for the refused rows."""
    total = rejected = 0
    for row in rows:
        if row["task_id"] in REFUSED[name]:
            with pytest.raises(ValueError, match="do not convert"):
                read_tests(row, None)
            continue
        program, after = bench["reference"](row)
        changed = sorted(set(bench["mutants"](program, after)))
        drawn = random.Random(str(row["task_id"])).sample(changed, min(count, len(changed)))
        first, *others = bench["judge"](row, program, drawn, box)
        assert first == "right", row["task_id"]
        total, rejected = total + len(others), rejected + sum(reason != "right" for reason in others)
    return total, rejected


@needs_files
@pytest.mark.filterwarnings("ignore:invalid escape")
@pytest.mark.parametrize("sample", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["HumanEval", "MBPP"])
def test_verify_code__references_are_right_and_mutants_are_rejected(bench, sandbox, name, sample):
    rows = bench["read"](FOLDER)[name]
    if sample:
        rows = [
            row for row in rows[:: 4 if name == "HumanEval" else 8] if row["task_id"] not in REFUSED[name]
        ]
    total, rejected = trial(bench, sandbox, name, rows, 1 if sample else 4)
    assert total > (34 if sample else 3 * len(rows))
    assert rejected >= (0.8 if sample else 0.85) * total, (total, rejected)
