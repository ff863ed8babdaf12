"""Sets of real numbers, against membership by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openprime.verifiers.regions import named_set, region

POINTS = [i / 2 for i in range(-13, 14)]
END = st.integers(-5, 5)


def interval(low, high, closed, closed_too):
    """An interval's text and who is in it."""
    text = f"{'(['[closed]}{low},{high}{')]'[closed_too]}"
    return text, lambda x: (low <= x if closed else low < x) and (x <= high if closed_too else x < high)


def inequality(end, sign):
    """A relation's text and who satisfies it."""
    tests = {
        "<": lambda x: x < end, r"\le ": lambda x: x <= end, ">": lambda x: x > end, r"\ge ": lambda x: x >= end,
        r"\ne ": lambda x: x != end,
    }  # fmt: skip
    return f"x{sign}{end}", tests[sign]


INTERVALS = (
    st.tuples(END, END, st.booleans(), st.booleans())
    .filter(lambda a: a[0] < a[1])
    .map(lambda a: interval(*a))
)
INEQUALITIES = st.tuples(END, st.sampled_from(["<", r"\le ", ">", r"\ge ", r"\ne "])).map(
    lambda a: inequality(*a)
)


def is_in(found, x):
    """Is x in a region?"""
    return any(low[:2] <= (x, 0) and (x, 1) <= high[:2] for low, high in found)


@settings(max_examples=200)
@given(st.lists(INTERVALS, min_size=1, max_size=3), st.sampled_from([r"\cup", r"\cap", r"\setminus "]))
def test_region__operations_on_intervals_are_those_on_their_members(parts, sign):
    _, found = region(sign.join(text for text, _ in parts))
    for x in POINTS:
        (first, *rest) = [test(x) for _, test in parts]
        expected = {r"\cup": first or any(rest), r"\cap": first and all(rest)}.get(
            sign, first and not any(rest)
        )
        assert is_in(found, x) == expected


@settings(max_examples=200)
@given(st.lists(INEQUALITIES, min_size=1, max_size=3), st.sampled_from([r"\lor ", r"\land "]))
def test_region__inequalities_with_and_and_or_are_those_of_their_members(parts, sign):
    variable, found = region(sign.join(text for text, _ in parts))
    assert variable == "x"
    for x in POINTS:
        members = [test(x) for _, test in parts]
        assert is_in(found, x) == (any(members) if sign == r"\lor " else all(members))


@settings(max_examples=100)
@given(INEQUALITIES)
def test_region__of_an_absolute_value_has_both_signs(part):
    text, test = part
    found = region(text.replace("x", "|x|", 1))
    for x in POINTS:
        assert found is None or is_in(found[1], x) == test(abs(x))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (r"\text{all real numbers}", r"\mathbb{R}"), ("the set of all integers", r"\mathbb{Z}"),
        ("No solution", r"\emptyset"),
        ("there are no real roots", r"\emptyset"), ("all positive real numbers", r"\mathbb{R}^+"), ("seven", "seven"),
        ("all reals except 2", r"\mathbb{R}\setminus \{2\}"),
    ],
)  # fmt: skip
def test_named_set__words_for_a_set(text, name):
    assert named_set(text) == name


@pytest.mark.parametrize(
    "text",
    ["5", "(2,1)", "1,2", r"x<y", "x<3,y>2", r"\{x\in\mathbb{Z}| x>2\}", "x=x", r"[-\infty,3]", "", "a<x>b"],
)
def test_region__other_texts_are_none(text):
    assert region(text) is None
