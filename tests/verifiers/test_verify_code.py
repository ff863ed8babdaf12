"""The judge of programs: extraction, comparison, tests as data, hostile programs, real references."""

import ast
import base64
import json
import math
import os
import pickle
import random
import runpy
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openprime.types import Prompt
from openprime.verifiers import cases, code
from openprime.verifiers.cases import Check, read_tests
from openprime.verifiers.code import (
    CodeOptions,
    extract_program,
    same_output,
    same_value,
    verify_code,
)
from openprime.verifiers.sandbox import Limits, Ran, Sandbox, SandboxError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT.parent / "shared" / "data"
ALL = CodeOptions(score="all", limits=Limits(seconds=2.0, total_seconds=6.0))
SHARE = CodeOptions(score="share", limits=ALL.limits)
needs_data = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="needs benchmark files in ../shared/data of the repository"
)


@pytest.fixture(scope="module")
def sandbox():
    try:
        box = Sandbox()
    except SandboxError as error:
        pytest.skip(f"no strict isolation here: {error}")
    yield box
    box.close()


class Canned:
    """In place of a sandbox: what it answers is set, what it was asked is kept."""

    def __init__(self, *runs):
        self.runs = list(runs)
        self.asked = []

    def run(self, program, cases, fn_name=None, limits=None):
        self.asked.append((program, cases, fn_name, limits))
        return self.runs[: len(cases)] if self.runs else [ran() for _ in cases]


def ran(value=None, output="", status="ok"):
    return Ran(status=status, output=output, value=value, error="", seconds=0.0)


def fenced(program):
    return f"So:\n```python\n{program}\n```\nDone."


def ask(row, answer=None, name="p"):
    return Prompt(name, (), "Write it.", answer, row)


def stdin_row(*pairs):
    return {"tests": {"inputs": [p[0] for p in pairs], "outputs": [p[1] for p in pairs], "fn_name": None}}


def judge(row, program, box, options=ALL):
    (verdict,) = verify_code(ask(row), [fenced(program)], box, options)
    assert verdict.outcome is not None
    assert (verdict.outcome == 1.0) == (verdict.reason == "right")
    assert (0 < verdict.outcome < 1) == (verdict.reason == "partial")
    return verdict.reason


# Extraction


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("", None),
        ("print(1)", None),
        ("use `x` and ``y``", None),
        ("```python\na\n```", "a"),
        ("```py\na\n```", "a"),
        ("```python3\na\n```", "a"),
        ("```Python\na\n```", "a"),
        ("```\na\n```", "a"),
        ("``` python \na\n```  ", "a"),
        ("```python title=x\na\n```", "a"),
        ("a\r\n```python\r\nb\r\n```\r\n", "b\r"),
        ("```python\na\n```\nor\n```python\nb\n```", "b"),
        ("```python\na\n```\nprints\n```\nb\n```", "a"),
        ("```\na\n```\nor\n```\nb\n```", "b"),
        ("```python\na\n```\nprints\n```text\nb\n```", "a"),
        ("```cpp\na\n```", None),
        ("```cpp\na\n```\n```python\nb", "b"),
        ("```python\na", "a"),
        ("```python\na\n```python\nb\n```", "b"),
        ("```python\na\n```\n```text\nb", "a"),
        ("```python\n```", ""),
        ("```", ""),
        ("```python", ""),
        ("So: ```python\na\n```", "a"),
        ("So ```python blocks\na\n```", ""),
        ("Use ```x``` here", None),
        ("````python\n```\na\n````", "```\na"),
        ("1. so\n   ```python\n   if a:\n       b\n   ```", "if a:\n    b"),
        ("\t```python\n\ta\n\t\tb\n\t```", "a\n\tb"),
        ('```python\n"""\n    ```\n    x\n    ```\n"""\n```', '"""\n    ```\n    x\n    ```\n"""'),
        ("```python\ns = '```'\n# ```\nt\n```", "s = '```'\n# ```\nt"),
    ],
)
def test_the_last_program_is_taken(text, program):
    assert extract_program(text) == program


@settings(deadline=None)
@given(st.text(alphabet="ab `\n\t#'", max_size=30), st.text(alphabet="ab`\n ", max_size=30))
def test_extraction_finds_what_a_fence_longer_than_any_in_it_holds(content, before):
    fence = "`" * 31
    assert extract_program(f"{before}\n{fence}\n{fence}\n{fence}python\n{content}\n{fence}") == content


@pytest.mark.parametrize(
    "text",
    [
        "```" * 20_000,
        "```\n" * 20_000,
        "```python\n" * 20_000,
        "```python " * 20_000,
        ("a" * 50 + "```python\n") * 20_000,
        "`" * 200_000,
        "`` " * 100_000,
        " " * 200_000 + "```" + " " * 200_000,
        "a" * 200_000 + "```" + "a" * 200_000 + "`",
        "```" + "python" * 100_000 + "`",
        ("\t" * 100 + "```\n") * 5_000,
    ],
)
def test_long_texts_are_read_in_time(text):
    start = time.perf_counter()
    extract_program(text)
    assert time.perf_counter() - start < 3


# Comparison of outputs


@pytest.mark.parametrize(
    ("output", "expected", "same"),
    [
        ("1\n", "1", True),
        ("1 \n2\t\n\n\n", "1\n2", True),
        ("1\r\n2\r\n", "1\n2\n", True),
        ("1  2", "1 2", True),
        (" 1", "1", True),
        ("", "", True),
        ("\n\n", "", True),
        ("", "1", False),
        ("1 2", "1\n2", False),
        ("1\n\n2", "1\n2", False),
        ("\n1", "1", False),
        ("12", "1 2", False),
        ("Yes", "YES", False),
        ("0.3333333", "0.33333333", True),
        ("0.33333", "0.333333333", False),
        ("1000000.5", "1000000.0", True),
        ("1000002", "1000000.0", False),
        ("1", "1.0", True),
        ("1.0", "1", False),
        ("1.0000001", "1", False),
        ("01", "1", False),
        ("+1", "1", False),
        ("100000001", "100000000", False),
        ("1e3", "1000.0", True),
        ("1000", "1e3", True),
        (".5", "0.5", True),
        ("5.", "5.0", True),
        ("0.0", "-0.0", True),
        ("nan", "nan", True),
        ("nan", "1.0", False),
        ("inf", "1e999", False),
        ("1e999", "1e998", False),
        ("1e999", "1e999", True),
        ("1_0.0", "10.0", False),
        ("１.0", "1.0", False),
        ("1.0x", "1.0", False),
        ("1.0.0", "1.0", False),
        ("0x1p0", "1.0", False),
        ("Case 1: 2.50 YES", "Case 1: 2.5 YES", True),
        ("Case 2: 2.50 YES", "Case 1: 2.5 YES", False),
        ("a\x0bb", "a\nb", False),
    ],
)
def test_outputs(output, expected, same):
    assert same_output(output, expected) is same


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


WORDS = st.sampled_from(
    [
        "1",
        "1.0",
        "1.5",
        "1.50",
        "1.500001",
        "1.50001",
        "-1.5",
        "15e-1",
        "+1.5",
        "a",
        "e5",
        ".",
        "1e5",
        "100000",
    ]
)


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS, st.sampled_from([" ", "  ", "\n", " \n", "\n\n"])), max_size=4))
def test_outputs_against_a_slow_version(rows):
    output = "".join(ours + space for ours, _, space in rows)
    expected = "".join(theirs + space for _, theirs, space in rows)
    assert same_output(output, expected) == slow_same_output(output, expected)
    assert same_output(output, output)


def test_long_outputs_are_compared_in_time():
    start = time.perf_counter()
    assert not same_output("1" * 1_000_000, "1.0")
    assert same_output("1.0 " * 200_000, "1.00 " * 200_000)
    assert not same_output("\n" * 1_000_000 + "x", "\n" * 999_999 + "x")
    assert not same_output("." * 1_000_000, "1" * 1_000_000 + ".0")
    assert not same_output("1e" + "9" * 390, "1.0")
    assert time.perf_counter() - start < 6


# Comparison of values

NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "expected", "exact", "json_"),
    [
        (1, 1, True, True),
        (2, 1, False, False),
        (True, 1, True, True),
        (1, True, True, True),
        (1.0, 1, True, True),
        (1.0000001, 1, False, False),
        (1.0000001, 1.0, True, True),
        (1.00001, 1.0, False, False),
        (1, 1.0, True, True),
        ("1", 1, False, False),
        (1, "1", False, False),
        ("a", "a", True, True),
        ("a", b"a", False, False),
        (None, None, True, True),
        (None, 0, False, False),
        (0, None, False, False),
        (False, None, False, False),
        (NAN, 1.0, False, False),
        (1.0, NAN, False, False),
        (NAN, NAN, True, True),
        (NAN, 1, False, False),
        (math.inf, math.inf, True, True),
        (math.inf, 1.0, False, False),
        (1e308, math.inf, False, False),
        (10**400, 1.0, False, False),
        (10**400, math.inf, False, False),
        (1j, 1j, True, True),
        (1j, 1.0, False, False),
        ([1, 2], [1, 2], True, True),
        ([1, 2], [2, 1], False, False),
        ([1], [1, 1], False, False),
        ((1, 2), [1, 2], False, True),
        ([(1, [2.0])], [[1, [2]]], False, True),
        ([1, 2], (1, 2), False, False),
        ({1, 2}, [1, 2], False, False),
        ({1, 2}, {2, 1}, True, True),
        (frozenset([1]), {1}, True, True),
        ({1}, {1, 2}, False, False),
        ({"a": 1}, {"a": 1}, True, True),
        ({"a": 1, "b": 2}, {"a": 1}, False, False),
        ({"b": 1}, {"a": 1}, False, False),
        ({"a": [1.0000001]}, {"a": [1.0]}, True, True),
        ({1: 2}, {"1": 2}, False, True),
        ({"1": 2}, {"1": 2}, True, True),
        ({1.5: 2}, {"1.5": 2}, False, False),
        ("abc", ["a", "b", "c"], False, False),
        ([], {}, False, False),
        ([], None, False, False),
    ],
)
def test_values(value, expected, exact, json_):
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
def test_without_floats_exact_values_are_compared_as_python_does(one, other):
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
def test_json_values_against_a_slow_version(value, other):
    expected = json.loads(json.dumps(other))
    if isinstance(other, dict | list | tuple) and '"1": ' in json.dumps(other) and "1" in str(value):
        return  # keys are tried above
    assert same_value(value, expected, False, Check()) == (normal(value, 4) == normal(expected, 4))
    assert same_value(other, expected, False, Check())


def test_the_cost_of_comparing_is_that_of_the_expected_value():
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


# Tests from rows

CASES = {"inputs": ["1\n", "2\n"], "outputs": ["2\n", "3\n"], "fn_name": None}
LEETCODE = [
    {"input": "[1, 2]\n3", "output": "[3]", "testtype": "functional"},
    {"input": "[]\n4\n", "output": "[]", "testtype": "functional"},
]


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"tests": CASES}, None),
        ({"tests": json.dumps(CASES)}, "print(int(input()) + 1)"),
        ({}, json.dumps(CASES)),
        ({}, json.dumps(json.dumps(CASES))),
        ({}, CASES),
        ({"input_output": json.dumps(CASES)}, None),
        ({"reward_model": {"ground_truth": json.dumps(CASES), "style": "rule"}}, None),
        ({"test_cases": {"input": CASES["inputs"], "output": CASES["outputs"]}}, None),
        ({"tests": {"inputs": [["1"], "2\n"], "outputs": [["2\n"], ["3", ""]]}}, None),
        (
            {
                "public_test_cases": json.dumps(
                    [
                        {"input": i, "output": o, "testtype": "stdin"}
                        for i, o in [("1\n", "2\n"), ("2\n", "3\n")]
                    ]
                )
            },
            None,
        ),
    ],
)
def test_every_shape_of_texts_is_read(row, answer):
    tests = read_tests(row, answer)
    assert [text.strip() for text in tests.inputs] == ["1", "2"]
    assert [text.strip() for text in tests.outputs] == ["2", "3"]
    assert (tests.fn_name, tests.exact, tests.prompt, tests.checks) == (None, False, "", ())


def test_a_list_of_lines_is_a_text():
    tests = read_tests({"tests": {"inputs": [["2", "1 2\n", 3]], "outputs": [["a", "", "b"]]}}, None)
    assert tests.inputs == ("2\n1 2\n3",)
    assert tests.outputs == ("a\n\nb",)


@pytest.mark.parametrize(
    ("row", "inputs", "outputs", "single"),
    [
        (
            {"tests": {"fn_name": "f", "inputs": [[1, [2]], ["a"]], "outputs": [3, {"a": 1}]}},
            ([1, [2]], ["a"]),
            (3, {"a": 1}),
            False,
        ),
        (
            {"tests": {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[3], [4]]}},
            ([1], [2]),
            ([3], [4]),
            True,
        ),
        (
            {"tests": {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[3], [4, 5]]}},
            ([1], [2]),
            ([3], [4, 5]),
            False,
        ),
        ({"tests": {"fn_name": "f", "inputs": [[{"1": 2}]], "outputs": [3]}}, ([{1: 2}],), (3,), False),
        (
            {"tests": {"fn_name": "f", "inputs": [[{"1": 2}, 1]], "outputs": [3]}},
            ([{"1": 2}, 1],),
            (3,),
            False,
        ),
        (
            {"tests": {"fn_name": "f", "inputs": ['[1]\n"a"'], "outputs": ["true"]}},
            ([[1], "a"],),
            (True,),
            False,
        ),
        ({"tests": LEETCODE, "fn_name": "f"}, ([[1, 2], 3], [[], 4]), ([3], []), False),
        ({"tests": LEETCODE, "metadata": '{"func_name": "f"}'}, ([[1, 2], 3], [[], 4]), ([3], []), False),
        (
            {"tests": [{**case, "metadata": {"func_name": "f"}} for case in LEETCODE]},
            ([[1, 2], 3], [[], 4]),
            ([3], []),
            False,
        ),
    ],
)
def test_every_shape_of_calls_is_read(row, inputs, outputs, single):
    tests = read_tests(row, None)
    assert (tests.inputs, tests.outputs, tests.fn_name, tests.single) == (inputs, outputs, "f", single)


def test_a_list_around_the_value_is_accepted_where_all_have_one():
    row = {"tests": {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[3], [4]]}}
    assert judge(row, "x", Canned(ran(3), ran(4))) == "right"
    assert judge(row, "x", Canned(ran([3]), ran((4,)))) == "right"
    assert judge(row, "x", Canned(ran(3), ran(5))) == "wrong"
    row = {"tests": {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[3], [4, 5]]}}
    assert judge(row, "x", Canned(ran(3), ran([4, 5]))) == "wrong"


DEEP = json.loads("[" * 60 + "]" * 60)


@pytest.mark.parametrize(
    ("row", "answer", "why"),
    [
        ({}, None, "no tests"),
        ({}, "", "no tests"),
        ({}, "42", "no tests"),
        ({"tests": {}}, None, "no tests"),
        ({"tests": "not json"}, None, "not JSON"),
        ({}, "{'inputs': []}", "not JSON"),
        ({}, "[" * 100_000, "not JSON"),
        ({}, '"text"', "not JSON"),
        ({"tests": [1, 2]}, None, "list"),
        ({"tests": {"inputs": [], "outputs": []}}, None, "without a case"),
        ({"tests": {"inputs": ["1"], "outputs": []}}, None, "same length"),
        ({"tests": {"inputs": "1", "outputs": "2"}}, None, "two lists"),
        ({"tests": {"outputs": ["2"]}}, None, "two lists"),
        ({"tests": {"inputs": [None], "outputs": ["2"]}}, None, "list of lines"),
        ({"tests": {"inputs": ["1"], "outputs": [2]}}, None, "list of lines"),
        ({"tests": {"inputs": ["\ud800"], "outputs": ["2"]}}, None, "text"),
        ({"tests": {"fn_name": "f", "inputs": [1], "outputs": [2]}}, None, "no list"),
        ({"tests": {"fn_name": "f", "inputs": ["x y"], "outputs": ["2"]}}, None, "not JSON"),
        ({"tests": {"fn_name": "f", "inputs": [[DEEP]], "outputs": [2]}}, None, "too deep"),
        ({"tests": {"fn_name": "f", "inputs": [["\ud800"]], "outputs": [2]}}, None, "surrogates"),
        ({"tests": {"fn_name": "f", "inputs": [[object()]], "outputs": [2]}}, None, "no plain value: object"),
        ({"tests": {"fn_name": "f()", "inputs": [[1]], "outputs": [2]}}, None, "no name"),
        ({"tests": {"fn_name": 3, "inputs": [[1]], "outputs": [2]}}, None, "no name"),
        ({"tests": LEETCODE}, None, "no name"),
        ({"test_list": ["assert f(1) == 1"], "entry_point": "f()"}, None, "no name"),
        ({"test_list": 3}, None, "no text"),
        ({"test": "def check(f):\n  pass", "entry_point": "f"}, None, "no assert"),
        ({"test": "def check(f):\n  assert f(1) == 1", "entry_point": "A.f"}, None, "no name"),
        ({"test": "def check(", "entry_point": "f"}, None, "do not parse"),
        ({"test": 3, "entry_point": "f"}, None, "do not parse"),
        ({"test_list": [None]}, None, "do not parse"),
        ({"tests": {"inputs": ["1"], "outputs": [" \n"]}}, None, "prints nothing"),
        ({"test": "(" * 10_000, "entry_point": "f"}, None, "do not parse"),
        ({"test_list": ["assert f(1) == 1", "assert g(1) == 1"]}, None, "under test"),
        ({"test_list": ["assert True"]}, None, "under test"),
        ({"test_list": ["x = 1"]}, None, "under test"),
    ],
)
def test_bad_rows_are_refused_with_the_reason(row, answer, why):
    with pytest.raises(ValueError, match=why):
        read_tests(row, answer)
    canned = Canned()
    verdicts = verify_code(ask(row, answer), [fenced("print(1)"), "nothing"], canned, ALL)
    assert [(v.outcome, v.reason) for v in verdicts] == [(None, "no_verdict")] * 2
    assert canned.asked == []


ANYTHING = st.recursive(
    st.sampled_from(
        [None, True, 0, 1.5, "", "1", "f", "[1]\n2", '{"inputs": ["1"], "outputs": ["2"]}', "assert f(1)"]
    ),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["inputs", "outputs", "fn_name", "input", "output"]), inner, max_size=3
        )
        | st.builds(lambda i, o, n: {"inputs": [i], "outputs": [o], "fn_name": n}, inner, inner, inner)
        | st.builds(lambda i, o, t: [{"input": i, "output": o, "testtype": t}], inner, inner, inner)
    ),
    max_leaves=6,
)
COLUMNS = "test entry_point prompt test_list test_setup_code tests input_output reward_model fn_name metadata"


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(st.sampled_from(COLUMNS.split()), ANYTHING, max_size=4), ANYTHING)
def test_a_row_has_tests_or_is_refused(row, answer):
    try:
        tests = read_tests(row, answer)
    except ValueError:
        return
    assert len(tests.inputs) == len(tests.outputs) > 0
    assert tests.fn_name is None or tests.fn_name.isidentifier()
    assert all(isinstance(case, str if tests.fn_name is None else list) for case in tests.inputs)
    verdicts = verify_code(ask(row, answer), [fenced("x")], Canned(), ALL)
    assert verdicts[0].outcome is not None


# Asserts to data

ASSERTS = [
    ("assert f(1, 'a') == 2", [1, "a"], 2, "right", 3),
    ("assert 2 == f(1)", [1], 2, "right", 3),
    ("assert f(1) == 2, 'message'", [1], 2, "right", 3),
    ("assert (f(1)) == (2)", [1], 2, "right", 3),
    ("assert f(1) != 2", [1], 3, "right", 2),
    ("assert f(1) is True", [1], True, "right", 1),
    ("assert f(1) is None", [1], None, "right", False),
    ("assert f(1) is not None", [1], 0, "right", None),
    ("assert f(1) == True", [1], 1, "right", 0),
    ("assert f(1)", [1], [0], "right", []),
    ("assert not f(1)", [1], "", "right", "x"),
    ("assert not (f(1))", [1], None, "right", 1),
    ("assert abs(f(1) - 0.5) < 0.1", [1], 0.55, "right", 0.65),
    ("assert abs(0.5 - f(1)) <= 1e-3", [1], 0.5005, "right", 0.502),
    ("assert abs(f(1) - 2) < 1e-6", [1], 2.0000001, "right", 2.00001),
    ("import math\nassert math.fabs(f(1) - 2.0) < 1e-6", [1], 2, "right", "2"),
    ("assert math.isclose(f(1), 100.0, rel_tol=0.01)", [1], 100.5, "right", 102.0),
    ("assert math.isclose(100.0, f(1))", [1], 100.0 + 1e-8, "right", 100.0001),
    ("assert isclose(f(1), 0, abs_tol=0.1)", [1], 0.05, "right", 0.2),
    ("assert tuple(f(1)) == tuple([1, 2])", [1], [1, 2], "right", [2, 1]),
    ("assert set(f([1])) == set((4, 5))", [[1]], (5, 4, 4), "right", (4,)),
    ("assert sorted(f(1)) == [1, 2]", [1], (2, 1), "right", (2,)),
    ("assert sorted(set(f(1))) == [1, 2]", [1], [2, 1, 2], "right", 5),
    ("assert list(f(1)) == [1]", [1], (1,), "right", None),
    ("assert len(f(1)) == 2", [1], "ab", "right", 2),
    ("assert round(f(1), 1) == 0.3", [1], 0.31, "right", 0.36),
    ("assert abs(f(1)) == 3", [1], -3, "right", "x"),
    ("assert f('x' * 3, [0] * 2, -1, +1) == 2 ** 10", ["xxx", [0, 0], -1, 1], 1024, "right", 1023),
    ("assert f((1,), {1}, {'a': [None]}, b'')", [(1,), {1}, {"a": [None]}, b""], True, "right", None),
    ("assert f() == (3 + 5, 3 * 5)", [], (8, 15), "right", [8, 15]),
    ("assert f() == 2.0 / 3.0", [], 2 / 3, "right", 0.66),
    ("assert f(7 // 2, 7 % 4, 1 - 2, not 1) == math.pi", [3, 3, -1, False], math.pi, "right", 3.14),
    ("assert f(float('inf')) == -math.inf", [math.inf], -math.inf, "right", math.inf),
    ("assert f(1j, complex(1, 2)) == 1 + 2j", [1j, 1 + 2j], 1 + 2j, "right", 1),
    ("x = [1, 2]\ny = x * 2\nassert f(x) == y", [[1, 2]], [1, 2, 1, 2], "right", [1]),
    ("assert True\nassert f(1) == 2", [1], 2, "right", 3),
]  # fmt: skip


@pytest.mark.parametrize(("source", "arguments", "right", "reason", "wrong"), ASSERTS)
def test_asserts_convert(source, arguments, right, reason, wrong):
    inside = source.replace(" f(", " candidate(").replace("(f(", "(candidate(").replace("\n", "\n    ")
    for row in (
        {"test_list": [source]},
        {"test": source, "entry_point": "f"},
        {"test": f"M = {{}}\n\ndef check(candidate):\n    {inside}\n", "entry_point": "f"},
    ):
        tests = read_tests(row, None)
        assert tests.inputs == (arguments,)
        assert tests.fn_name == "f"
        assert tests.exact
        assert judge(row, "x", Canned(ran(right))) == reason
        assert judge(row, "x", Canned(ran(wrong))) == "wrong"


@pytest.mark.parametrize(
    "source",
    [
        "assert f(1) == f(1)",
        "assert f(1) == g(1)",
        "assert f(f(1)) == 1",
        "assert f(x) == 1",
        "assert f(x=g()) == 1",
        "assert f(x=1, **{'y': 1}) == 1",
        "assert f(*[1]) == 1",
        "assert f(**{'x': 1}) == 1",
        "assert f([*[1]]) == 1",
        "assert f({**{1: 2}}) == 1",
        "assert f(...) == 1",
        "assert f(1).x == 1",
        "assert f(1)[0] == 1",
        "assert f(1) < 2",
        "assert 0 < f(1) < 2",
        "assert f(1) in (1, 2)",
        "assert f(1) == 1 and f(2) == 2",
        "assert f(1) + 1 == 2",
        "assert f(lambda: 1) == 1",
        "assert f([x for x in (1, 2)]) == 1",
        "assert f(open('x')) == 1",
        "assert f(__import__('os')) == 1",
        "assert f(().__class__) == 1",
        "assert f(math.sqrt(2)) == 1",
        "assert f(eval('1')) == 1",
        "assert f('%d' % 1) == 1",
        "assert f('%999999999d' % 1) == 1",
        "assert f(9 ** 9 ** 9) == 1",
        "assert f('a' * 10 ** 9) == 1",
        "assert f([[0] * 9999] * 9999) == 1",
        "assert f(10 ** 9 * 'a') == 1",
        "x = 'a' * 999999\ny = [x, x, x]\nassert f(y) == 1",
        "assert f(1 / 0) == 1",
        "assert f(1.0 ** 'a') == 1",
        "assert f({[]: 1}) == 1",
        "assert f(10.0 ** 999) == 1",
        "assert f(range(3)) == 1",
        "assert abs(f(1) - [1]) < 1",
        "assert math.isclose(f(1), 'a')",
        "assert sorted(f(1), reverse=True) == [1]",
        "for i in range(3):\n    assert f(i) == i",
        "if True:\n    assert f(1) == 1",
        "x = 1\nx += 1\nassert f(x) == 1",
        "x = 1\nx = g()\nassert f(x) == 1",
        "x = [1]\nx.append(2)\nassert f(x) == 1",
        "assert f(" + "-" * 3000 + "1) == 1",
    ],
)
def test_what_is_no_data_is_refused(source):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"convert|parse"):
        read_tests({"test": source, "entry_point": "f"}, None)
    assert time.perf_counter() - start < 3


def test_no_code_of_a_row_is_run(tmp_path):
    mark = tmp_path / "mark"
    call = f"open({str(mark)!r}, 'w')"
    for source in (
        call,
        f"x = {call}",
        f"assert f(1) == {call}",
        f"assert f({call}) == 1",
        f"def g(x={call}): 0",
    ):
        with pytest.raises(ValueError):
            read_tests({"test": f"{source}\nassert f() == {call}", "entry_point": "f"}, None)
        with pytest.raises(ValueError):
            read_tests({"test_list": [f"assert f() == {call}"], "test_setup_code": source}, None)
    assert not mark.exists()


def test_a_row_is_kept_where_half_of_its_asserts_convert():
    good, bad = "assert f(1) == 1", "assert f(1) == g(1)"
    assert len(read_tests({"test": f"{good}\n{bad}", "entry_point": "f"}, None).inputs) == 1
    with pytest.raises(ValueError, match="2 of 3"):
        read_tests({"test": f"{good}\n{bad}\n{bad}", "entry_point": "f"}, None)


def test_a_function_may_have_the_name_of_a_builtin_or_of_math():
    row = {"test_list": ["assert sum(10, 15) == 6", "assert sum(1, 2) == 1"]}
    assert read_tests(row, None).fn_name == "sum"
    assert read_tests({"test": "assert sorted([2]) == [2]", "entry_point": "sorted"}, None).inputs == ([[2]],)


def test_imports_and_signatures_are_put_before_the_program():
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


# Reasons and scores


def test_reasons_and_scores():
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


def test_what_is_not_run():
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


def test_the_same_program_is_run_once():
    canned = Canned(ran(output="2"))
    responses = [fenced("a"), "Other words.\n```py\na\n\n```", fenced("b"), fenced("a"), "none"]
    verdicts = verify_code(ask(stdin_row(("1", "2"))), responses, canned, ALL)
    assert [v.reason for v in verdicts] == ["right"] * 4 + ["no_answer"]
    assert [program for program, *_ in canned.asked] == ["a\n", "b\n"]
    assert verdicts[0] == verdicts[1] == verdicts[3]


def test_the_sandbox_gets_the_inputs_alone_and_room_for_the_expected_output():
    canned = Canned(ran(output="x"))
    judge(stdin_row(("1", "y" * 3_000_000)), "a", canned)
    program, cases, fn_name, limits = canned.asked[0]
    assert (program, cases, fn_name) == ("a\n", ["1"], None)
    assert limits.output_bytes > 3_000_000
    assert limits.seconds == ALL.limits.seconds
    judge({"tests": {"fn_name": "f", "inputs": [[1]], "outputs": [[0] * 300_000]}}, "a", canned)
    assert canned.asked[1][3].output_bytes > 1_100_000


def test_cases_are_drawn_once_for_a_prompt_and_the_same_everywhere():
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


def test_options_are_those_of_the_published_recipe():
    options = CodeOptions()
    assert (options.score, options.max_cases, options.limits) == ("share", 0, Limits())


def test_no_torch_is_imported():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, openprime.verifiers.code; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT / "src")},
        check=True,
    )
    assert done.stdout == "False\n"


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
def test_programs_on_stdin(sandbox, program, reason):
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


def test_the_expected_value_is_nowhere_in_the_child(sandbox):
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
def test_programs_called(sandbox, program, right):
    if right is None:
        assert judge(CALL, program, sandbox) == "no_answer"
        return
    found = judge(CALL, program, sandbox)
    assert (found == "right") is right
    if not right:
        assert judge(CALL, program, sandbox, SHARE) != "right"


def test_large_results_come_back(sandbox):
    patient = CodeOptions(limits=Limits(seconds=30.0, total_seconds=30.0))
    row = stdin_row(("3000000", "é" * 3_000_000))
    assert judge(row, "print('é' * int(input()))", sandbox, patient) == "right"
    row = {"tests": {"fn_name": "f", "inputs": [[1_100_000]], "outputs": [[7] * 1_100_000]}}
    assert judge(row, "def f(n): return [7] * n", sandbox, patient) == "right"


def test_a_hostile_program_does_not_harm_the_next(sandbox):
    good = fenced("def add(a, b): return a + b")
    bad = [fenced(text) for text in (FORGED, LIAR, FRAMES, "import os\nos._exit(0)", "x = 'a' * 10**10")]
    verdicts = verify_code(
        ask(CALL), [good, bad[0], bad[1], bad[2], bad[3], bad[4], good + " "], sandbox, ALL
    )
    assert [v.reason == "right" for v in verdicts] == [True] + [False] * 5 + [True]


def test_shapes_of_rows_in_the_sandbox(sandbox):
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


def test_a_value_that_cannot_travel_is_true_or_not(sandbox):
    row = {"test_list": ["assert f('a')", "assert not f('b')"]}
    assert judge(row, "import re\ndef f(text): return re.match('a', text)", sandbox) == "right"
    assert judge(row, "def f(text): return [text] if text == 'a' else []", sandbox) == "right"
    assert judge(row, "def f(text): return text != 'b' and f", sandbox) == "right"
    assert judge(row, "def f(text): return 3 if text == 'a' else 2 * f('a') - 6", sandbox) == "right"
    assert judge(row, "import re\ndef f(text): return re.match('b', text)", sandbox) == "wrong"


# LeetCode's rows

HELPERS = """import math
from typing import *
from itertools import *

inf = float('inf')

class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next

def list_node(values):
    return ListNode(values[0], list_node(values[1:])) if values else None
"""
TAKE = {
    "prompt": HELPERS,
    "query": "Take b from a.",
    "starter_code": "class Solution:\n    def take(self, a: int, b: int) -> int:\n        ",
    "entry_point": "Solution().take",
    "test": "def check(candidate):\n    assert candidate(a = 5, b = 3) == 2\n    assert candidate(b=1,a=1) == 0\n",
}
TAKEN = {
    **{name: value for name, value in TAKE.items() if name != "test"},
    "input_output": [{"input": "a = 5, b = 3", "output": "2"}, {"input": "a = 1, b = 1", "output": "0"}],
}


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
def test_arguments_by_name_reach_the_function_by_name(sandbox, row, program, reason):
    assert judge(row, program, sandbox) == reason


def test_some_arguments_may_have_names_and_drawn_cases_keep_theirs(sandbox):
    row = {"test_list": ["assert f(5, b=3) == 2", "assert f(1, b=1) == 0", "assert f(4, 1) == 3"]}
    tests = read_tests(row, None)
    assert (tests.inputs, tests.keywords) == (([5], [1], [4, 1]), ({"b": 3}, {"b": 1}, {}))
    assert judge(row, "def f(a, b): return a - b", sandbox) == "right"
    assert judge(row, "def f(b, a): return a - b", sandbox) == "crash"
    row = {"test_list": [f"assert f(x={i}) == {i}" for i in range(50)]}
    drawn = CodeOptions(max_cases=5, limits=ALL.limits)
    assert judge(row, "def f(x): return x", sandbox, drawn) == "right"
    assert judge(row, "def f(x): return x + 1", sandbox, drawn) == "wrong"


def test_a_method_may_be_true_or_not(sandbox):
    row = {**TAKE, "test": "def check(f):\n    assert f(a = 5, b = 3)\n    assert not f(a = 1, b = 1)"}
    program = "class Solution:\n    def take(self, a, b): return (lambda: 1) if a > b else None"
    assert judge(row, program, sandbox) == "right"
    assert judge(row, program.replace(">", "<"), sandbox) == "wrong"
    row["test"] = row["test"].replace("a = ", "").replace("b = ", "")
    assert judge(row, program, sandbox) == "right"


def test_helpers_in_the_prompt_are_there(sandbox):
    chain = "    node = list_node([a, b])\n        return min(node.val - node.next.val, inf)"
    program = f"class Solution:\n    def take(self, a: int, b: int):\n    {chain}"
    assert judge(TAKE, program, sandbox) == "right"
    assert judge(TAKEN, program, sandbox) == "right"
    assert judge({**TAKE, "prompt": "Take b from a."}, program, sandbox) == "crash"
    assert judge({**TAKE, "prompt": "Take b from a."}, "def take(a, b): return a - b", sandbox) == "right"


@pytest.mark.parametrize("entry", ["f", "Solution().f"])
@pytest.mark.parametrize(
    ("prompt", "put"),
    [
        (HELPERS, True),
        ("import math\n", True),
        ('"""Helpers."""\nclass Node: pass\nlimit: int = 3', True),
        ("def f(x):\n    'Same.'\n", True),
        ("def g(x): return x", True),
        ("Write f, please.", False),
        ("Sort", False),
        ("'Write f.'", False),
        ("x = y", False),
        ("", False),
        ("import math\nprint(3)", False),
        ("import math\nn = 3\nwhile n: pass", False),
        ("Import math, then:\nimport math\n", False),
        ("class Solution:\n    def f(self, x):\n        ", False),
        ("import math\0", False),
        ("(" * 10_000, False),
        ([{"role": "user", "content": "import math"}], False),
        (None, False),
    ],
)
def test_a_prompt_is_put_before_the_program_where_it_is_code(entry, prompt, put):
    row = {"test": "assert f(1) == 1", "entry_point": entry, "prompt": prompt}
    assert read_tests(row, None).prompt == (prompt if put else "")


def test_a_method_goes_before_what_the_prompt_imports(sandbox):
    row = {
        "prompt": "from math import *\n",
        "entry_point": "Solution().gcd",
        "test": "def check(candidate):\n    assert candidate(4, 6) == 2\n",
    }
    program = "class Solution:\n    def gcd(self, a, b): return gcd(a, b)"
    assert judge(row, program, sandbox) == "right"
    assert judge(row, program.replace("gcd(a", "a + gcd(a"), sandbox) == "wrong"


def test_cases_with_helpers_are_refused_or_left_out():
    one = "    assert is_same_list(candidate(head = list_node([1, 2])), list_node([1]))\n"
    other = "    assert candidate(head = list_node([1])) == None\n"
    row = {**TAKE, "test": f"def check(candidate):\n{one}{other}"}
    with pytest.raises(
        ValueError, match="2 of 2 tests do not convert: no comparison of the function's value"
    ):
        read_tests(row, None)
    assert verify_code(ask(row), [fenced("x")], Canned(), ALL)[0].reason == "no_verdict"
    assert len(read_tests({**TAKE, "test": TAKE["test"] + one + other}, None).inputs) == 2


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ({"input": "a = 1, b = 2"}, "without an output"),
        ({"input": "a = 1, b = 2", "output": " "}, "without an output"),
        ({"input": "a = 1, b = 2", "output": 3}, "without an output"),
        ({"input": "a = 1, b =", "output": "3"}, "do not parse"),
        ({"input": "a = 1, b = open('x')", "output": "3"}, "1 of 1 tests do not convert: no constant"),
        ({"input": "a = 1, b = 2", "output": "open('x')"}, "1 of 1 tests do not convert: no constant"),
        ({"input": "a = 1, b = 2", "output": "1) == (1"}, "1 of 1 tests do not convert"),
    ],
)
def test_cases_by_name_that_are_no_values_are_refused(case, why):
    with pytest.raises(ValueError, match=why):
        read_tests({**TAKEN, "input_output": [case]}, None)


def test_cases_with_an_entry_point_may_be_texts_or_two_values():
    row = {"entry_point": "main", "test_cases": [{"input": "3\n", "output": "4"}]}
    assert read_tests(row, None).fn_name is None
    row = {"entry_point": "main", "test_cases": [{"input": "a == 3", "output": "4"}]}
    assert read_tests(row, None).fn_name is None
    row = {"entry_point": "f", "test_cases": [{"input": " a1 = [1],\n b = {'x': 2}", "output": "1, 2"}]}
    tests = read_tests(row, None)
    assert (tests.keywords, tests.outputs) == (({"a1": [1], "b": {"x": 2}},), ((1, 2),))


# LiveCodeBench's rows


def packed(text, protocol=4):
    """As in its repository."""
    return base64.b64encode(zlib.compress(pickle.dumps(text, protocol))).decode()


def bench_row(public, private, name=None):
    return {
        "question_content": "Add them.",
        "starter_code": "",
        "public_test_cases": json.dumps(public),
        "private_test_cases": private,
        "metadata": json.dumps({"func_name": name} if name else {}),
    }


READ = [
    {"input": "1 2\n", "output": "3", "testtype": "stdin"},
    {"input": "4 5", "output": "9\n", "testtype": "stdin"},
]
CALLED = [
    {"input": "[1, 2]\n3", "output": "[3]", "testtype": "functional"},
    {"input": "[]\n4", "output": "[]", "testtype": "functional"},
]


@pytest.mark.parametrize(
    "pack", [json.dumps, list, *(lambda cases, p=p: packed(json.dumps(cases), p) for p in range(6))]
)
def test_public_and_private_cases_are_the_tests(sandbox, pack):
    row = bench_row(READ[:1], pack(READ[1:]))
    assert (
        read_tests(row, None).inputs == read_tests(row, row["public_test_cases"]).inputs == ("1 2\n", "4 5")
    )
    assert judge(row, "print(sum(map(int, input().split())))", sandbox) == "right"
    assert judge(row, "print(3)", sandbox) == "wrong"
    assert judge(row, "print(9)", sandbox) == "wrong"
    row = bench_row(CALLED[:1], pack(CALLED[1:]), "over")
    program = "class Solution:\n    def over(self, xs: List[int], n: int): return [sum(xs)] if xs else []"
    assert judge(row, program, sandbox) == "right"
    assert judge(row, "def over(n, xs): return [sum(xs)] if xs else []", sandbox) == "crash"
    assert judge(row, "def over(xs, n): return [3]", sandbox) == "wrong"
    assert judge(row, "def over(xs, n): return []", sandbox) == "wrong"


def test_public_or_private_cases_may_be_missing():
    both = read_tests(bench_row(READ, "[]"), None)
    assert both == read_tests(bench_row([], packed(json.dumps(READ))), None)
    assert both == read_tests({"private_test_cases": json.dumps(READ)}, None)
    assert both == read_tests(bench_row(READ, ""), None)
    assert len(both.inputs) == 2


class Hostile:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(6))
def test_no_code_of_a_pickle_is_run(tmp_path, protocol):
    mark = tmp_path / "mark"
    for hostile in (Hostile(mark), [json.dumps(READ), Hostile(mark)]):
        pickle.loads(pickle.dumps(hostile, protocol))
        mark.rmdir()  # it does what it says
        row = bench_row(READ, packed(hostile, protocol))
        with pytest.raises(ValueError, match=r"private_test_cases: .*asks for posix\.mkdir"):
            read_tests(row, None)
        assert verify_code(ask(row), [fenced("print(3)")], Canned(), ALL)[0].reason == "no_verdict"
        assert not mark.exists()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (bytes(100_000_000), "more than 1000000 bytes"),
        (pickle.dumps("1" * 1_000_000), "more than 1000000 bytes"),
        (b"\x80\x04" + b"]" * 900_000 + b".", "more than a text"),
        (b"\x80\x04\x8c\x01ar\x00\x00\x40\x00.", "more than a text"),
        (b"Va\np4000000\n.", "more than a text"),
        (b"\x80\x04\x8d\x00\x00\x00\x00\x10\x00\x00\x00a.", "but only"),
        (b"\x80\x05\x96\x00\x00\x00\x00\x10\x00\x00\x00a.", "but only"),
    ],
)
def test_what_would_fill_the_memory_is_refused(monkeypatch, data, why):
    monkeypatch.setattr(cases, "UNPACKED", 1_000_000)
    row = bench_row(READ, base64.b64encode(zlib.compress(data)).decode())
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=why):
            read_tests(row, None)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_large_tests_are_within_the_bound(monkeypatch):
    text = json.dumps(READ)
    monkeypatch.setattr(cases, "UNPACKED", len(pickle.dumps(text)))
    assert len(read_tests(bench_row([], packed(text)), None).inputs) == 2


@pytest.mark.parametrize(
    ("private", "why"),
    [
        ("no base64!", "private_test_cases: no JSON, nor base64"),
        ("ab", "private_test_cases: no JSON, nor base64"),
        ("!" + packed(json.dumps(READ)), "Only base64"),
        ("\ud800", "private_test_cases: no JSON, nor base64"),
        (base64.b64encode(b"plain").decode(), "header"),
        (packed(json.dumps(READ))[:40], "cut off"),
        (base64.b64encode(zlib.compress(b"")).decode(), "pickle exhausted"),
        (base64.b64encode(zlib.compress(b"[]")).decode(), "opcode|exhausted"),
        (base64.b64encode(zlib.compress(b"\x80\x04N")).decode(), "exhausted"),
        (base64.b64encode(zlib.compress(b"\x80\x04.")).decode(), "underflow|empty"),
        (base64.b64encode(zlib.compress(b"\x80\x04h\x07.")).decode(), "Memo"),
        (packed(READ), "a pickled list"),
        (packed(b"[]"), "asks for|bytes"),
        (packed("no json"), "private_test_cases.*not JSON"),
        (packed("[" * 100_000), "not JSON"),
        (packed('{"input": "1"}'), "private_test_cases: a dict"),
        (packed("3"), "private_test_cases: a int"),
        (packed("[3]"), "not inputs and outputs"),
        ({"input": "1"}, "private_test_cases: a dict"),
        (b"[]", "private_test_cases: a bytes"),
        ("[", "not JSON"),
    ],
)
def test_private_cases_that_cannot_be_read(private, why):
    with pytest.raises(ValueError, match=why):
        read_tests(bench_row(READ, private), None)


def test_cases_of_a_function_without_a_name_are_refused():
    row = bench_row(CALLED, packed(json.dumps(CALLED)))
    with pytest.raises(ValueError, match="no name of a function"):
        read_tests(row, None)
    assert read_tests({**row, "entry_point": "Solution().over"}, None).fn_name == "over"


# Real tasks


@pytest.fixture(scope="module")
def bench():
    """The benchmark script, which has the mutations."""
    return runpy.run_path(str(ROOT / "benchmarks" / "code_verifier.py"))


def test_mutations_change_one_place(bench):
    program = 'def f(x: int = 1) -> int:\n    """Doc 1."""\n    y = x + 1\n    return y if y > 2 else -3\n'
    found = list(bench["mutants"](program))
    assert len(found) == len(set(found)) >= 10
    for mutant in found:
        ast.parse(mutant)
        assert mutant != ast.unparse(ast.parse(program))
        assert '"""Doc 1."""' in mutant
    assert all(mutant.startswith("def f(x: int") for mutant in found)


REFUSED = {
    "HumanEval": {"HumanEval/32", "HumanEval/38", "HumanEval/50"},  # asserts in loops over random inputs
    "MBPP": {596},  # sys.getsizeof
}


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


@needs_data
@pytest.mark.filterwarnings("ignore:invalid escape")
@pytest.mark.parametrize("name", ["HumanEval", "MBPP"])
def test_references_are_right_and_mutants_are_not_in_a_sample(bench, sandbox, name):
    rows = bench["read"](FOLDER)[name]
    sample = [row for row in rows[:: 4 if name == "HumanEval" else 8] if row["task_id"] not in REFUSED[name]]
    total, rejected = trial(bench, sandbox, name, sample, 1)
    assert total >= 35
    assert rejected >= 0.8 * total  # a small sample


@needs_data
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid escape")
@pytest.mark.parametrize("name", ["HumanEval", "MBPP"])
def test_every_reference_is_right_and_mutants_are_rejected(bench, sandbox, name):
    rows = bench["read"](FOLDER)[name]
    total, rejected = trial(bench, sandbox, name, rows, 4)
    assert total > 3 * len(rows)
    assert rejected >= 0.85 * total, (total, rejected)


@needs_data
@pytest.mark.parametrize("name", ["HumanEval", "MBPP"])
def test_every_row_converts_but_the_known_ones(bench, name):
    refused = set()
    for row in bench["read"](FOLDER)[name]:
        try:
            tests = read_tests(row, None)
        except ValueError:
            refused.add(row["task_id"])
            continue
        assert len(tests.inputs) == len(tests.outputs) == len(tests.checks) >= 1
        assert tests.fn_name == row.get("entry_point", tests.fn_name)
        assert tests.fn_name in bench["reference"](row)[0]
    assert refused == REFUSED[name]
