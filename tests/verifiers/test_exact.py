"""Exact arithmetic on LaTeX, against Python's own."""

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openprime.verifiers.exact import read_exact, same_relation

FRACTIONS = {
    "0.5": Fraction(1, 2),
    r"1\frac{2}{3}": Fraction(5, 3),
    r"50\%": Fraction(1, 2),
    "-2": Fraction(-2),
}
NUMBERS = st.integers(0, 99).map(lambda n: (str(n), Fraction(n))) | st.sampled_from(list(FRACTIONS.items()))
SIGNS = st.sampled_from(["+", "-", "*", r"\cdot ", r"\times ", "", "/", "^"])


def combined(parts):
    """An operation on two (text, value) as one; the value is None where there is none."""
    (one, left), sign, (two, right) = parts
    if sign == "/":
        value = None if left is None or not right else left / right
        return rf"\frac{{{one}}}{{{two}}}", value
    if sign == "^":
        power = len(two) % 5
        return f"({one})^{{{power}}}", None if left is None or not (left or power) else left**power
    if left is None or right is None:
        return f"({one}){sign}({two})", None
    return f"({one}){sign}({two})", {"+": left + right, "-": left - right}.get(sign, left * right)


@settings(deadline=None)
@given(st.recursive(NUMBERS, lambda inner: st.tuples(inner, SIGNS, inner).map(combined), max_leaves=12))
def test_read_exact__rational_arithmetic_is_pythons(case):
    text, expected = case
    value = read_exact(text)
    assert (value is None) if expected is None else (value is None or value.rational == expected)


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (r"\sqrt{8}", r"2\sqrt{2}", True), (r"\sqrt{2}\sqrt{3}", r"\sqrt{6}", True),
        (r"\sqrt{-4}", "2i", True), ("(2+i)(2-i)", "5", True), ("i^3", "-i", True),
        (r"\frac{1}{\sqrt{5}-2}", r"\sqrt{5}+2", True), (r"\frac{x^2-1}{x-1}", "x+1", True),
        ("(a+b)^3", "a^3+3a^2b+3ab^2+b^3", True), (r"2\pi r", r"2r\pi", True),
        (r"1,234.50", r"\frac{2469}{2}", True), (r"0.\overline{9}", "1", True),
        (r".12\overline{3}", r"\frac{111}{900}", True), ("x^{-1}", r"\frac{1}{x}", True),
        ("-x^2", "(-x)^2", False), (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5}", False),
        (r"\frac{1}{3}", "0.3333333333333333", False), (r"\pi", r"\frac{22}{7}", False), ("ab", "aB", False),
    ],
)  # fmt: skip
def test_same__compares_exactly(one, two, same):
    assert read_exact(one).same(read_exact(two)) is same


@pytest.mark.parametrize(
    "text",
    [
        "", "+", "x2", "1/2x", "1 2", "1.2.3", "2^10", "2^x", "x^{0.5}", "0^0", "1/0", r"\frac{1}{x-x}", "f!",
        "|x|", r"\sqrt{x}", r"\sqrt{\pi}", r"\sqrt[3]{8}", r"\sin x", "x_1", "(1", "1)", "{1", "1,2", "12,34",
        "٣", "1e5=", r"1\frac{1}{2}^2", "2^2^2", "--1", "(x+1)^{40}", "9^{9^9}", "9" * 999, "9^{1001}",
        "(" * 13 + "1" + ")" * 13,
    ],
)  # fmt: skip
def test_read_exact__anything_else_is_not_read(text):
    assert read_exact(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "(x+y+z+w)^{1000}", "(((9^{999})^{999})^{999})^{999}", "(1+i)" * 60 + "^{999}",
        r"(\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7})^{999}", r"\sqrt{99999989}" * 20,
        "(" + "+".join(f"x^{i}" for i in range(10)) + ")^{9}" * 30, r"\frac{x}{x+1}+" * 25 + "1",
        r"(\frac{1}{x+y}+\frac{1}{z+w})^{9}" * 8,
    ],
)  # fmt: skip
def test_read_exact__work_is_bounded(text):
    start = time.perf_counter()
    read_exact(text)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("x+y=1", "2-2x=2y", True), ("x<1", "-x>-1", True), ("x<1", r"x\le1", False), ("x<1", "x>1", False),
        (r"1\leq x<2", r"2>x\geq1", True), ("1=1", "2=2", False), ("x=1", "1=1", False),
        ("x=1", "x=1=1", False), ("x=1", r"x=\sin y", False), (r"x=\sin y", "x=1", None), ("x=1", "1", None),
        ("1", "x=1", None), (r"x<\frac{1}{y}", r"xy<1", None),
    ],
)  # fmt: skip
def test_same_relation__multiples_are_the_same(one, two, same):
    assert same_relation(one, two) is same
