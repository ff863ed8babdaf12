"""The spelling of an answer and its parts."""

import re
from fractions import Fraction

import pytest

from openprime.types import Prompt
from openprime.verifiers.math import verify_math
from openprime.verifiers.normal_form import SYNONYMS, TIDYING, brackets, quantity, read_unit, split, tidy


@pytest.mark.parametrize(("pattern", "replacement", "before", "after"), TIDYING)
def test_tidy__every_substitution_does_what_its_example_says(pattern, replacement, before, after):
    assert re.sub(pattern, replacement, before) == after != before
    for answer, prediction in ((after, before), (before, after)):
        (verdict,) = verify_math(Prompt("p", (), "", answer), [rf"\boxed{{{prediction}}}"])
        assert verdict.reason == "right"


@pytest.mark.parametrize(("name", "written"), SYNONYMS.items())
def test_tidy__synonyms_are_written_in_one_way(name, written):
    assert tidy(rf"1\{name} 2") == tidy(f"1{written}2") != tidy(r"1\unknown 2")


@pytest.mark.parametrize(
    "text", [r"\left(1,\,2\right]", "x²+½", "3.83e35 m", r"5\text{ cm and }6", "１，２", r"\$1,\!000"]
)
def test_tidy__a_tidy_text_stays_as_it_is(text):
    assert tidy(tidy(text)) == tidy(text)


@pytest.mark.parametrize(
    ("text", "separators", "parts"),
    [
        ("1,(2,3),{4,5}", {","}, ["1", "(2,3)", "{4,5}"]), (r"[1,2)\cup(3,4]", {r"\cup"}, ["[1,2)", "(3,4]"]),
        (r"\begin{matrix}1,2\end{matrix},3", {","}, [r"\begin{matrix}1,2\end{matrix}", "3"]), ("", {","}, [""]),
        (r"a\le b<c", {"<", r"\le"}, ["a", "b", "c"]),
        (r"\{1,2\},\langle 3,4\rangle", {","}, [r"\{1,2\}", r"\langle 3,4\rangle"]),
    ],
)  # fmt: skip
def test_split__only_outside_of_brackets(text, separators, parts):
    assert split(text, separators)[0] == parts


@pytest.mark.parametrize(
    ("text", "kind", "inside"),
    [
        ("(1,2]", "(]", "1,2"), (r"\{1\}", "{}", "1"), (r"\langle 1\rangle", "()", "1"), ("(1)(2)", "", "(1)(2)"),
        ("(1", "", "(1"), ("1", "", "1"), ("", "", ""),
    ],
)  # fmt: skip
def test_brackets__are_one_pair_around_all(text, kind, inside):
    assert brackets(text) == (kind, inside)


@pytest.mark.parametrize(
    ("text", "powers", "factor"),
    [
        ("km", {"m": 1}, 1000), (r"\text{ cm}^2", {"m": 2}, "0.0001"), ("平方厘米", {"m": 2}, "0.0001"),
        (r"\text{m}\cdot\text{s}^{-2}", {"m": 1, "s": -2}, 1), ("miles per hour", {"m": 1, "s": -1}, "0.44704"),
        ("mph", {"m": 1, "s": -1}, "0.44704"), ("square feet", {"m": 2}, "0.09290304"), ("meters squared", {"m": 2}, 1),
        ("kg m/s^2", {"kg": 1, "m": 1, "s": -2}, 1), ("cents", {"dollar": 1}, "0.01"),
    ],
)  # fmt: skip
def test_read_unit__dimensions_and_factors_are_those_of_the_si(text, powers, factor):
    unit = read_unit(text)
    assert (dict(unit.powers), unit.factor) == (powers, Fraction(factor))


@pytest.mark.parametrize(
    "text", ["not", "squared", "k", "x", "ab", "five", "8", "hundredths", "个半", "/", "plus 1"]
)
def test_read_unit__what_changes_a_number_is_no_unit(text):
    assert read_unit(text) is None


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("5 cm", [("5", 1)]), (r"12\pi\text{ m}", [(r"12\pi", 1)]), ("5m", [("5m", 1)]), ("5cm", [("5", 1)]),
        (r"63^\circ 45'", [("63", 1), ("45", Fraction(1, 60))]),
        ("5 million dollars", [("5", 10**6)]), ("1 000", [("1000", 1)]), (r"2\mathrm{i}", [(r"2\text{i}", 1)]),
        (r"\text{dollar}3", [("3", 1)]), ("x+1", [("x+1", 1)]), ("Maria", [("Maria", 1)]),
        ("1 hour and 30 minutes", [("1", 3600), ("30", 60)]), ("30 mph and 40 mph", [(r"30 mph \land 40", 1)]),
    ],
)  # fmt: skip
def test_quantity__is_a_number_and_its_unit(text, terms):
    assert quantity(tidy(text))[0] == terms
