"""Expressions in LaTeX: exact arithmetic against Python's own, and values compared to any precision."""

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openprime.verifiers.expression import read, same_value, value_of

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
def test_value_of__rational_arithmetic_is_pythons(case):
    text, expected = case
    value = value_of(read(text), exact=True)
    assert (value is None) if expected is None else (value is None or value == expected)


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (r"\sqrt{8}", r"2\sqrt{2}", True), (r"\sqrt{2}\sqrt{3}", r"\sqrt{6}", True),
        (r"\sqrt{-4}", "2i", True), ("(2+i)(2-i)", "5", True), ("i^3", "-i", True),
        (r"\frac{1}{\sqrt{5}-2}", r"\sqrt{5}+2", True), (r"\frac{x^2-1}{x-1}", "x+1", True),
        ("(a+b)^3", "a^3+3a^2b+3ab^2+b^3", True), (r"2\pi r", r"2r\pi", True),
        (r"0.\overline{9}", "1", True), (r".12\overline{3}", r"\frac{111}{900}", True),
        ("x^{-1}", r"\frac{1}{x}", True),
        ("-x^2", "(-x)^2", False), (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5}", False),
        (r"\frac{1}{3}", "0.3333333333333333", False), (r"\pi", r"\frac{22}{7}", False), ("ab", "aB", False),
    ],
)  # fmt: skip
def test_same_value__compares_exactly(one, two, same):
    assert same_value(read(one), read(two)) is same


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (r"\sin 2x", r"2\sin x\cos x", True), (r"\frac{\sqrt{a}}{\sqrt{b}}", r"\sqrt{\frac{a}{b}}", True),
        (r"\sqrt{x^2}", "|x|", True), (r"\sqrt{x^2}", "x", False), (r"\ln x^2", r"2\ln(-x)", False),
        (r"\ln x^2", r"2\ln x", True), (r"\frac{(2n)!}{n!n!}", r"\binom{2n}{n}", True), ("n!", "(n-1)!n", True),
        (r"\lfloor x\rfloor", "x", False), (r"\lfloor x\rfloor", r"\lceil x\rceil-1", False),
        (r"\lfloor\frac{n+1}{2}\rfloor", r"\lfloor\frac{n}{2}+\frac12\rfloor", True),
        (r"e^{i\pi}", "-1", True), (r"e^{i x}", r"\cos x+i\sin x", True), ("(-1)^n", "(-1)^{n+1}", False),
        (r"\sqrt{2}+10^{-1000}", r"\sqrt{2}", False), (r"\frac{1}{45!}", r"\frac{1}{46!}", False),
        (r"\sqrt{2}+\frac{1}{45!}", r"\sqrt{2}+\frac{46}{46!}", True), ("e^{-1000}+1", "1", False),
        (r"\cos 10^{-100}", "1", False), (r"1-\cos 10^{-100}", r"2(\sin\frac{10^{-100}}{2})^2", True),
        (r"e^{\pi\sqrt{163}}", "262537412640768744", False), (r"\sqrt[3]{-8}", "-2", True),
        (r"\frac{2^{3000}+1}{2^{3001}}", r"\frac{1}{2}", False), ("x^{2000}+y", "y+x^{2000}", True),
        (r"\pi", "3." + "1415926535897932384626433832795028841971693993751058209749445923078164", False),
        (r"\pi", "3.141592653589793115997963468544185161590576171875", False), (r"\log_2 8", "3", True),
        (r"\log 100", "2", True), (r"\sin 30^\circ", r"\frac12", True), (r"\arcsin\frac12", r"\frac{\pi}{6}", True),
        ("1/0", "5", False), ("5", r"\frac{0}{0}", False), (r"\frac{x}{x-x}", "x", False), ("x_1", "x_2", False),
        (r"\dot{x}_{0}", r"\dot{x}_0", True), ("f''", "f'", False), ("9^{99999}", "9^{99998}", None),
        (r"\sqrt{2}\cdot 9^{99999}", r"\sqrt{2}\cdot 9^{99998}", None), ("(10^6)!", "x", None),
    ],
)  # fmt: skip
def test_same_value__sees_the_smallest_term_and_where_both_are_real(one, two, same):
    assert same_value(read(one), read(two)) is same


@pytest.mark.parametrize(
    "text",
    [
        "", "+", "x2", "1/2x", "1 2", "1.2.3", "2^2^2", r"\sin x/2", "x!!", "(1", "1)", "{1", "1,2", "12,34", "٣",
        "1e5=", r"1\frac{1}{2}^2", "--1", "(" * 13 + "1" + ")" * 13, "1+" * 300 + "1", r"\int x", r"\max(1,2)",
        "|x", r"\text{ab}", r"\sqrt", r"\frac{1}", "x^", "x_", "^2", r"\sin_2 x", "x&y", "90^\\circ",
    ],
)  # fmt: skip
def test_read__anything_else_is_not_read(text):
    assert read(text) is None


@pytest.mark.parametrize(
    "text", ["0^0", "1/0", r"\frac{1}{x-x}", "9^{40001}", "3001!", "(-1)!", r"\sqrt{-1}", "x", "i"]
)
def test_value_of__nothing_without_a_real_value_or_beyond_the_bounds(text):
    assert value_of(read(text)) is None


@pytest.mark.parametrize(
    "text",
    [
        "(x+y+z+w)^{1000}", "(((9^{999})^{999})^{999})^{999}", "(1+i)" * 60 + "^{999}",
        r"(\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7})^{999}", r"\sqrt{99999989}" * 20, "9^{9^9}", "9^{9^{9^9}}",
        "(" + "+".join(f"x^{i}" for i in range(10)) + ")^{9}" * 30, r"\frac{x}{x+1}+" * 25 + "1",
        r"(\frac{1}{x+y}+\frac{1}{z+w})^{9}" * 8, r"e^{e^{e^{x}}}", r"\sin(10^{1000})" * 20, "x!" * 60, "3000!" * 40,
        r"\tan(x+2^{-900})" * 15, "9" * 390, r"\frac{1}{3^{2000}}+" * 20 + "x", r"\binom{3000}{1500}" * 20, "x^" * 100,
        r"\sinh(9^{99})", "-" * 200 + "1", "1/" * 150 + "2", "|" * 200,
    ],
)  # fmt: skip
def test_same_value__work_is_bounded(text):
    start = time.perf_counter()
    node = read(text)
    if node:
        same_value(node, read("x+1"))
        same_value(read(r"\sqrt{x}+\pi"), node)
        value_of(node)
    assert time.perf_counter() - start < 4
