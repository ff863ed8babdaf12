"""Tests of programs out of rows of every shape, asserts and packed pickles included, and what is refused."""

import base64
import dataclasses
import json
import math
import os
import pickle
import time
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openprime.verifiers import cases
from openprime.verifiers.cases import lacking, pack_tests, read_tests, unpack_tests
from openprime.verifiers.code import verify_code
from support.benchmark_files import needs_files, rows_of
from support.programs import (
    ALL,
    HELPERS,
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
)

# Tests from rows

CASES = {"inputs": ["1\n", "2\n"], "outputs": ["2\n", "3\n"], "fn_name": None}


PUBLIC = [{"input": i, "output": o, "testtype": "stdin"} for i, o in (("1\n", "2\n"), ("2\n", "3\n"))]


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
        ({"public_test_cases": json.dumps(PUBLIC)}, None),
    ],
)
def test_read_tests__every_shape_of_texts(row, answer):
    tests = read_tests(row, answer)
    assert [text.strip() for text in tests.inputs] == ["1", "2"]
    assert [text.strip() for text in tests.outputs] == ["2", "3"]
    assert (tests.fn_name, tests.exact, tests.prompt, tests.checks) == (None, False, "", ())
    lines = read_tests({"tests": {"inputs": [["2", "1 2\n", 3]], "outputs": [["a", "", "b"]]}}, None)
    assert (lines.inputs, lines.outputs) == (("2\n1 2\n3",), ("a\n\nb",))


def calls(inputs, outputs):
    return {"tests": {"fn_name": "f", "inputs": inputs, "outputs": outputs}}


@pytest.mark.parametrize(
    ("row", "inputs", "outputs", "single"),
    [
        (calls([[1, [2]], ["a"]], [3, {"a": 1}]), ([1, [2]], ["a"]), (3, {"a": 1}), False),
        (calls([[1], [2]], [[3], [4]]), ([1], [2]), ([3], [4]), True),
        (calls([[1], [2]], [[3], [4, 5]]), ([1], [2]), ([3], [4, 5]), False),
        (calls([[{"1": 2}]], [3]), ([{1: 2}],), (3,), False),
        (calls([[{"1": 2}, 1]], [3]), ([{"1": 2}, 1],), (3,), False),
        (calls(['[1]\n"a"'], ["true"]), ([[1], "a"],), (True,), False),
        *(
            (row, ([[1, 2], 3], [[], 4]), ([3], []), False)
            for row in (
                {"tests": LEETCODE, "fn_name": "f"},
                {"tests": LEETCODE, "metadata": '{"func_name": "f"}'},
                {"tests": [{**case, "metadata": {"func_name": "f"}} for case in LEETCODE]},
            )
        ),
    ],
)
def test_read_tests__every_shape_of_calls(row, inputs, outputs, single):
    tests = read_tests(row, None)
    assert (tests.inputs, tests.outputs, tests.fn_name, tests.single) == (inputs, outputs, "f", single)


DEEP = json.loads("[" * 60 + "]" * 60)


@pytest.mark.parametrize(
    ("row", "answer", "why"),
    [
        ({}, None, "no tests"), ({}, "", "no tests"), ({}, "42", "no tests"), ({"tests": {}}, None, "no tests"),
        ({"tests": "not json"}, None, "not JSON"), ({}, "{'inputs': []}", "not JSON"),
        ({}, "[" * 100_000, "not JSON"), ({}, '"text"', "not JSON"), ({"tests": [1, 2]}, None, "list"),
        ({"tests": {"inputs": [], "outputs": []}}, None, "without a case"),
        ({"tests": {"inputs": ["1"], "outputs": []}}, None, "same length"),
        ({"tests": {"inputs": "1", "outputs": "2"}}, None, "two lists"),
        ({"tests": {"outputs": ["2"]}}, None, "two lists"),
        ({"tests": {"inputs": [None], "outputs": ["2"]}}, None, "list of lines"),
        ({"tests": {"inputs": ["1"], "outputs": [2]}}, None, "list of lines"),
        ({"tests": {"inputs": ["\ud800"], "outputs": ["2"]}}, None, "text"), (calls([1], [2]), None, "no list"),
        (calls(["x y"], ["2"]), None, "not JSON"), (calls([[DEEP]], [2]), None, "too deep"),
        (calls([["\ud800"]], [2]), None, "surrogates"),
        (calls([[object()]], [2]), None, "no plain value: object"),
        ({"tests": {"fn_name": "f()", "inputs": [[1]], "outputs": [2]}}, None, "no name"),
        ({"tests": {"fn_name": 3, "inputs": [[1]], "outputs": [2]}}, None, "no name"),
        ({"tests": LEETCODE}, None, "no name"),
        ({"test_list": ["assert f(1) == 1"], "entry_point": "f()"}, None, "no name"),
        ({"test_list": 3}, None, "no text"),
        ({"test": "def check(f):\n  pass", "entry_point": "f"}, None, "no assert"),
        ({"test": "def check(f):\n  assert f(1) == 1", "entry_point": "A.f"}, None, "no name"),
        ({"test": "def check(", "entry_point": "f"}, None, "do not parse"),
        ({"test": 3, "entry_point": "f"}, None, "do not parse"), ({"test_list": [None]}, None, "do not parse"),
        ({"tests": {"inputs": ["1"], "outputs": [" \n"]}}, None, "prints nothing"),
        ({"test": "(" * 10_000, "entry_point": "f"}, None, "do not parse"),
        ({"test_list": ["assert f(1) == 1", "assert g(1) == 1"]}, None, "under test"),
        ({"test_list": ["assert True"]}, None, "under test"), ({"test_list": ["x = 1"]}, None, "under test"),
    ],
)  # fmt: skip
def test_read_tests__bad_rows_are_refused_with_the_reason(row, answer, why):
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
def test_read_tests__a_row_has_tests_or_is_refused(row, answer):
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
def test_read_tests__asserts_convert(source, arguments, right, reason, wrong):
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
        "assert f(1) == f(1)", "assert f(1) == g(1)", "assert f(f(1)) == 1", "assert f(x) == 1",
        "assert f(x=g()) == 1", "assert f(x=1, **{'x': 1}) == 1", "assert f(*1) == 1",
        "assert f(**{1: 1}) == 1",
        "assert f(**1) == 1", "assert f(*g()) == 1", "assert f(*[1])(2) == 1",
        "assert f([*[1]]) == 1", "assert f({**{1: 2}}) == 1", "assert f(...) == 1",
        "assert f(1).x == 1", "assert f(1)[0] == 1", "assert f(1) < 2", "assert 0 < f(1) < 2",
        "assert f(1) in (1, 2)", "assert f(1) == 1 and f(2) == 2", "assert f(1) + 1 == 2",
        "assert f(lambda: 1) == 1", "assert f([x for x in (1, 2)]) == 1", "assert f(open('x')) == 1",
        "assert f(__import__('os')) == 1", "assert f(().__class__) == 1", "assert f(math.sqrt(2)) == 1",
        "assert f(eval('1')) == 1", "assert f('%d' % 1) == 1", "assert f('%999999999d' % 1) == 1",
        "assert f(9 ** 9 ** 9) == 1", "assert f('a' * 10 ** 9) == 1", "assert f([[0] * 9999] * 9999) == 1",
        "assert f(10 ** 9 * 'a') == 1", "x = 'a' * 999999\ny = [x, x, x]\nassert f(y) == 1",
        "assert f(1 / 0) == 1", "assert f(1.0 ** 'a') == 1", "assert f({[]: 1}) == 1",
        "assert f(10.0 ** 999) == 1", "assert f(range(3)) == 1", "assert abs(f(1) - [1]) < 1",
        "assert math.isclose(f(1), 'a')", "assert sorted(f(1), reverse=True) == [1]",
        "for i in range(3):\n    assert f(i) == i", "if True:\n    assert f(1) == 1",
        "x = 1\nx += 1\nassert f(x) == 1", "x = 1\nx = g()\nassert f(x) == 1",
        "x = [1]\nx.append(2)\nassert f(x) == 1", "assert f(" + "-" * 3000 + "1) == 1",
    ],
)  # fmt: skip
def test_read_tests__asserts_that_are_no_data_are_refused(source):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"convert|parse"):
        read_tests({"test": source, "entry_point": "f"}, None)
    assert time.perf_counter() - start < 3


def test_read_tests__no_code_of_a_row_is_run(tmp_path):
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


def test_read_tests__a_row_is_kept_where_half_of_its_asserts_convert():
    good, bad = "assert f(1) == 1", "assert f(1) == g(1)"
    assert len(read_tests({"test": f"{good}\n{bad}", "entry_point": "f"}, None).inputs) == 1
    with pytest.raises(ValueError, match="2 of 3"):
        read_tests({"test": f"{good}\n{bad}\n{bad}", "entry_point": "f"}, None)


def test_read_tests__a_function_may_have_the_name_of_a_builtin():
    row = {"test_list": ["assert sum(10, 15) == 6", "assert sum(1, 2) == 1"]}
    assert read_tests(row, None).fn_name == "sum"
    assert read_tests({"test": "assert sorted([2]) == [2]", "entry_point": "sorted"}, None).inputs == ([[2]],)


# LeetCode's rows


@pytest.mark.parametrize("entry", ["f", "Solution().f"])
@pytest.mark.parametrize(
    ("prompt", "put"),
    [
        (HELPERS, True), ("import math\n", True), ('"""Helpers."""\nclass Node: pass\nlimit: int = 3', True),
        ("def f(x):\n    'Same.'\n", True), ("def g(x): return x", True), ("Write f, please.", False),
        ("Sort", False), ("'Write f.'", False), ("x = y", False), ("", False), ("import math\nprint(3)", False),
        ("import math\nn = 3\nwhile n: pass", False), ("Import math, then:\nimport math\n", False),
        ("class Solution:\n    def f(self, x):\n        ", False), ("import math\0", False),
        ("(" * 10_000, False), ([{"role": "user", "content": "import math"}], False), (None, False),
    ],
)  # fmt: skip
def test_read_tests__a_prompt_goes_before_the_program_where_it_is_code(entry, prompt, put):
    row = {"test": "assert f(1) == 1", "entry_point": entry, "prompt": prompt}
    assert read_tests(row, None).prompt == (prompt if put else "")


def test_read_tests__asserts_with_helpers_are_refused_or_left_out():
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
def test_read_tests__cases_by_name_that_are_no_values_are_refused(case, why):
    with pytest.raises(ValueError, match=why):
        read_tests({**TAKEN, "input_output": [case]}, None)


def test_read_tests__cases_with_an_entry_point_may_be_texts_or_values():
    row = {"entry_point": "main", "test_cases": [{"input": "3\n", "output": "4"}]}
    assert read_tests(row, None).fn_name is None
    row = {"entry_point": "main", "test_cases": [{"input": "a == 3", "output": "4"}]}
    assert read_tests(row, None).fn_name is None
    row = {"entry_point": "f", "test_cases": [{"input": " a1 = [1],\n b = {'x': 2}", "output": "1, 2"}]}
    tests = read_tests(row, None)
    assert (tests.keywords, tests.outputs) == (({"a1": [1], "b": {"x": 2}},), ((1, 2),))
    row = bench_row(LEETCODE, packed(json.dumps(LEETCODE)))
    with pytest.raises(ValueError, match="no name of a function"):
        read_tests(row, None)
    assert read_tests({**row, "entry_point": "Solution().over"}, None).fn_name == "over"


# Rows of other sets

CHECKED = "def check(candidate):\n    assert candidate(n = 1) == 2\n\n\ncheck(Solution().f)"
GIVEN = 'my_solution = Solution()\n\ntest_input = { "n": 1 }\nassert my_solution.f(**test_input) == 2\n'
INSERTED = (
    "\nfrom typing import *\n\n#<INSERT>\n\nmy_solution = Solution()\n\nassert my_solution.f(*[1]) == 2\n"
)


@pytest.mark.parametrize(
    ("row", "inputs", "keywords", "name"),
    [
        ({"tests": {"functional": CHECKED}}, ([],), ({"n": 1},), "f"),
        ({"tests": json.dumps({"functional": CHECKED})}, ([],), ({"n": 1},), "f"),
        ({"functional": CHECKED, "starter_code": ""}, ([],), ({"n": 1},), "f"),
        ({"test": GIVEN, "prompt_sft": "Add."}, ([],), ({"n": 1},), "f"),
        ({"test": INSERTED}, ([1],), ({},), "f"),
        ({"test": "assert Solution().f(1) == 2"}, ([1],), ({},), "f"),
        ({"test": "def check(c):\n    assert c(1) == 2\ncheck(f)"}, ([1],), (), "f"),
        ({"test": "def check(c):\n s = Solution()\n assert s.f(1) == 2", "entry_point": "f"}, ([1],), ({},), "f"),
        ({"test_list": ["assert f(0, *[1, 2], **{'a': 3}, b=4) == 2"]}, ([0, 1, 2],), ({"a": 3, "b": 4},), "f"),
        ({"tests": [{"type": "function_call", "fn_name": "f", "input": [1], "output": 2}]}, ([1],), (), "f"),
        ({"tests": {"test_cases": [{"type": "stdin_stdout", "input": "1", "output": "2"}]}}, ("1",), (), None),
        ({"official_tests": [{"input": "1\n", "output": "2\n"}], "input_mode": "stdio"}, ("1\n",), (), None),
        (
            {
                "public_tests": {"input": ["1\n"], "output": ["2\n"]},
                "private_tests": {"input": [], "output": []},
                "generated_tests": {"input": ["3\n"], "output": ["2\n"]},
                "input_file": "",
            },
            ("1\n", "3\n"), (), None,
        ),
        ({"public_tests": json.dumps({"input": ["1"], "output": ["2"]})}, ("1",), (), None),
    ],
)  # fmt: skip
def test_read_tests__rows_of_public_sets(row, inputs, keywords, name):
    """DeepCoder's (functional, PrimeIntellect), PRIME's leetcode-test, open-r1/codeforces, CodeContests."""
    tests = read_tests(row, None)
    assert (tests.inputs, tests.keywords, tests.fn_name) == (inputs, keywords, name)
    assert [str(output).strip() for output in tests.outputs] == ["2"] * len(inputs)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"official_tests": [{"input": "1", "output": "2"}], "input_mode": "file"}, "read a file"),
        ({"public_tests": {"input": ["1"], "output": ["2"]}, "input_file": "input.txt"}, "read a file"),
        (
            {"official_tests": [{"input": "1", "output": "2"}], "interaction_format": "Ask."},
            "talk with another",
        ),
        ({"public_tests": {"input": [], "output": []}}, "no tests"),
        ({"public_tests": {"input": ["1", "2"], "output": ["2"]}}, "same length"),
        ({"tests": CASES, "checker": "#include <testlib.h>\nint main() {}"}, "checker is no Python"),
        (
            {"tests": CASES, "comparison": "fuzzy"},
            "'fuzzy' is none of exact, tokens, any_order, ignore_case, tolerance",
        ),
        ({"tests": CASES, "comparison": {"tolerance": True}}, "'tolerance' is none of"),
        ({"tests": CASES, "comparison": {"tolerance": -1}}, "'tolerance' is none of"),
        ({"tests": CASES, "comparison": 3}, "'3' is none of"),
    ],
)
def test_read_tests__rows_that_no_program_on_stdin_can_answer_are_refused(row, why):
    with pytest.raises(ValueError, match=why):
        read_tests(row, None)


@pytest.mark.parametrize(
    ("asked", "fields"),
    [
        ("tokens", {"tokens": True}),
        ("tokens, any_order", {"tokens": True, "any_order": True}),
        (["ignore_case"], {"ignore_case": True}),
        ('["ignore_case"]', {"ignore_case": True}),
        ({"tolerance": 1e-3, "tokens": False}, {"relative": 1e-3, "absolute": 1e-3, "integers": True}),
        ("exact", {"relative": 0.0, "absolute": 0.0, "yes_no": False}),
    ],
)
def test_read_tests__a_row_may_say_how_to_compare(asked, fields):
    check = cases.Check(**fields)
    assert read_tests({"tests": CASES, "comparison": asked}, None).checks == (check, check)
    assert read_tests({"tests": {**CASES, "comparison": asked}}, None).checks == (check, check)
    row = {"test_list": ["assert not f(1)"], "comparison": asked}
    assert read_tests(row, None).checks == (dataclasses.replace(check, kind="truth"),)


@pytest.mark.parametrize(
    ("row", "imports"),
    [
        ({"test_list": ["assert f(1)"], "test_imports": ["import math", "from scipy.stats import norm"]}, ("scipy",)),
        ({"test": "import numpy as np, os\nassert f(1) == 2", "entry_point": "f"}, ("numpy",)),
        ({"test": "def check(f):\n import a.b\n assert f(1)", "entry_point": "f", "prompt": "import c\n"}, ("c", "a")),
        ({"test": "from . import x\nassert f(1) == 2", "entry_point": "f"}, ()),
        ({"tests": CASES}, ()),
    ],
)  # fmt: skip
def test_lacking__names_what_the_tests_import_and_programs_cannot(row, imports):
    tests = read_tests(row, None)
    assert tests.imports == imports
    assert lacking(tests, imports) == ""
    if imports:
        assert lacking(tests, ["other"]).startswith(
            f"its tests import {', '.join(imports)}, which programs cannot: "
        )
        (verdict,) = verify_code(ask(row), [fenced("print(1)")], Canned(), ALL)
        assert (verdict.outcome, verdict.reason) == (None, "no_verdict")
        assert imports[0] in verdict.note


# LiveCodeBench's rows


def test_read_tests__public_or_private_cases_may_be_missing():
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
def test_read_tests__no_code_of_a_pickle_is_run(tmp_path, protocol):
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
def test_read_tests__what_would_fill_the_memory_is_refused(monkeypatch, data, why):
    monkeypatch.setattr(cases, "UNPACKED", 1_000_000)
    row = bench_row(READ, base64.b64encode(zlib.compress(data)).decode())
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=why):
            read_tests(row, None)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    monkeypatch.setattr(cases, "UNPACKED", len(pickle.dumps(json.dumps(READ))))  # just large enough
    assert len(read_tests(bench_row([], packed(json.dumps(READ))), None).inputs) == 2


@pytest.mark.parametrize(
    ("private", "why"),
    [
        ("no base64!", "private_test_cases: no JSON, nor base64"),
        ("ab", "private_test_cases: no JSON, nor base64"), ("!" + packed(json.dumps(READ)), "Only base64"),
        ("\ud800", "private_test_cases: no JSON, nor base64"), (base64.b64encode(b"plain").decode(), "header"),
        (packed(json.dumps(READ))[:40], "cut off"),
        (base64.b64encode(zlib.compress(b"")).decode(), "pickle exhausted"),
        (base64.b64encode(zlib.compress(b"[]")).decode(), "opcode|exhausted"),
        (base64.b64encode(zlib.compress(b"\x80\x04N")).decode(), "exhausted"),
        (base64.b64encode(zlib.compress(b"\x80\x04.")).decode(), "underflow|empty"),
        (base64.b64encode(zlib.compress(b"\x80\x04h\x07.")).decode(), "Memo"), (packed(READ), "a pickled list"),
        (packed(b"[]"), "asks for|bytes"), (packed("no json"), "private_test_cases.*not JSON"),
        (packed("[" * 100_000), "not JSON"), (packed('{"input": "1"}'), "private_test_cases: a dict"),
        (packed("3"), "private_test_cases: a int"), (packed("[3]"), "not inputs and outputs"),
        ({"input": "1"}, "private_test_cases: a dict"), (b"[]", "private_test_cases: a bytes"),
        ("[", "not JSON"),
    ],
)  # fmt: skip
def test_read_tests__private_cases_that_cannot_be_read(private, why):
    with pytest.raises(ValueError, match=why):
        read_tests(bench_row(READ, private), None)


@needs_files
@pytest.mark.parametrize(("name", "file"), [("HumanEval", "humaneval.jsonl"), ("MBPP", "mbpp.jsonl")])
def test_read_tests__every_row_of_the_sets_converts_but_the_known_ones(name, file):
    refused = set()
    for row in rows_of(file):
        try:
            tests = read_tests(row, None)
        except ValueError:
            refused.add(row["task_id"])
            continue
        assert len(tests.inputs) == len(tests.outputs) == len(tests.checks) >= 1
        assert tests.fn_name == row.get("entry_point", tests.fn_name)
        assert tests.fn_name in row.get("code", row["prompt"])
        assert unpack_tests(pack_tests(tests)) == tests
    assert refused == REFUSED[name]
