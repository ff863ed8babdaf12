"""Rows with tests, responses with a program, and a sandbox whose answers are set."""

import base64
import json
import pickle
import zlib

from openprime.types import Prompt
from openprime.verifiers.code import CodeOptions, verify_code
from openprime.verifiers.sandbox import Limits, Ran

ALL = CodeOptions(score="all", limits=Limits(seconds=2.0, total_seconds=6.0))


class Canned:
    """In place of a sandbox: what it answers is set, what it was asked is kept."""

    def __init__(self, *runs):
        self.runs = list(runs)
        self.asked = []
        self.packages = ()

    def run(self, program, cases, fn_name=None, limits=None):
        self.asked.append((program, cases, fn_name, limits))
        all_cases = self.asked[0][1]
        if len(cases) < len(all_cases):  # some of them alone
            return [self.runs[all_cases.index(case)] for case in cases]
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
    """The reason of the verdict on a program, which its outcome must agree with."""
    (verdict,) = verify_code(ask(row), [fenced(program)], box, options)
    assert verdict.outcome is not None
    assert (verdict.outcome == 1.0) == (verdict.reason == "right")
    assert (0 < verdict.outcome < 1) == (verdict.reason == "partial")
    return verdict.reason


LEETCODE = [
    {"input": "[1, 2]\n3", "output": "[3]", "testtype": "functional"},
    {"input": "[]\n4\n", "output": "[]", "testtype": "functional"},
]
"""Two cases of a function in the shape of LeetCode's and LiveCodeBench's sets."""
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
"""A row of LeetCode's set."""
TAKEN = {
    **{name: value for name, value in TAKE.items() if name != "test"},
    "input_output": [{"input": "a = 5, b = 3", "output": "2"}, {"input": "a = 1, b = 1", "output": "0"}],
}
"""The same with cases by name."""


def packed(text, protocol=4):
    """As LiveCodeBench packs its private cases."""
    return base64.b64encode(zlib.compress(pickle.dumps(text, protocol))).decode()


def bench_row(public, private, name=None):
    """A row of LiveCodeBench."""
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
"""Two cases on stdin in LiveCodeBench's shape."""
REFUSED = {
    "HumanEval": {"HumanEval/32", "HumanEval/38", "HumanEval/50"},  # asserts in loops over random inputs
    "MBPP": {596},  # sys.getsizeof
}
"""Tasks whose tests are no data."""
