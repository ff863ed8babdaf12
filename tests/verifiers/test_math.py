"""The judge of mathematics: extraction, equal and unequal answers, hostile input, real references."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openprime.types import Prompt
from openprime.verifiers import math
from openprime.verifiers.math import canonical_answer, extract_answer, is_readable, reference_of, verify_math
from support.benchmark_files import needs_files, rows_of


def ask(answer, question="How much?"):
    return Prompt("p", (), question, answer)


def reason(answer, response, question="How much?"):
    """The reason for one response as it stands; the outcome must go with it."""
    (verdict,) = verify_math(ask(answer, question), [response])
    assert verdict.outcome == (1.0 if verdict.reason == "right" else 0.0)
    return verdict.reason


def boxed(answer, prediction, question="How much?"):
    return reason(answer, rf"So it is $\boxed{{{prediction}}}$.", question)


# Extraction


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("nothing here, not even 5", None), ("", None), (r"\boxed{5}", "5"),
        (r"\boxed{1} then \boxed{ 2 } end", "2"), (r"\fbox{7}", "7"), (r"\boxed {7}", "7"),
        (r"\\boxed{7}", "7"), (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"), (r"\boxed{\{1}", r"\{1"), (r"\boxed{\boxed{5}}", "5"),
        (r"\fbox{x is \boxed{3} now}", "3"), (r"\boxed{5} and \boxed{6", "5"), (r"\boxed{5 \boxed{6}", "6"),
        (r"} \boxed{5} }", "5"), (r"{ \boxed{5}", "5"), (r"\boxed{5} but \boxed{}", "5"), (r"\boxed{}", None),
        (r"boxed{5}", None), ("steps\n#### 18", "18"), ("#### 1\n#### 2\nbye", "2"),
        ("  ####  $18.50 \nmore", "$18.50"), ("see #### 18", None), ("##### 18", None), ("####", None),
        ("#### \n18", None), ("\\boxed{5}\n#### 6", "6"), ("#### 6\n\\boxed{5}", "5"),
        (r"#### \boxed{5}", "5"), (r"\boxed 5", "5"), (r"so \boxed -3.5.", "-3.5"), (r"\fbox7", "7"),
        (r"$\boxed C$", "C"), (r"use \boxed to give it", None), (r"\boxed Count", None),
    ],
)  # fmt: skip
def test_extract_answer__takes_the_last(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("response", "boxed_reason", "last_box_reason"),
    [
        (r"first \boxed{5}, no: \boxed{7}", "wrong", "right"), (r"\boxed{7} or \boxed{5}", "wrong", "wrong"),
        (r"\boxed{5}\boxed{6}\boxed{7} #### 8", "wrong", "right"), ("#### 7", "no_answer", "no_answer"),
        (r"\boxed{7}, again \boxed{7.0}", "right", "right"), (r"\boxed{7} \boxed{}", "right", "right"),
    ],
)  # fmt: skip
def test_verify_math__last_box_counts_the_last_one_alone(response, boxed_reason, last_box_reason):
    for answers, reason in (("boxed", boxed_reason), ("last_box", last_box_reason)):
        assert [v.reason for v in verify_math(ask("7"), [response], answers=answers)] == [reason]


@pytest.mark.parametrize(
    ("text", "boxed_one", "line"),
    [
        ("\\boxed{5}\n#### 6", "5", "6"), ("#### 6\n\\boxed{5}", "5", "6"), ("#### 6", None, "6"),
        (r"\boxed{5}", "5", None), (r"\boxed{5} \boxed{", "5", None), ("#### \\boxed{5}", "5", r"\boxed{5}"),
    ],
)  # fmt: skip
def test_extract_answer__from_the_configured_place(text, boxed_one, line):
    assert (extract_answer(text, "boxed"), extract_answer(text, "hashes")) == (boxed_one, line)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ("auto", ["wrong", "right", "right"]),
        ("boxed", ["right", "no_answer", "right"]),
        ("hashes", ["wrong", "right", "no_answer"]),
    ],
)
def test_verify_math__the_configured_place_is_for_responses_not_for_references(answers, expected):
    responses = ["\\boxed{5}\n#### 6", "#### 5", r"\boxed{5}"]
    assert [v.reason for v in verify_math(ask("so #\n#### 5"), responses, answers=answers)] == expected


BALANCED = st.recursive(
    st.text(alphabet="abc ", max_size=5),
    lambda inner: st.lists(inner | inner.map("{{{}}}".format), max_size=4).map("".join),
)


@given(BALANCED.filter(str.strip))
def test_extract_answer__finds_what_balanced_braces_hold(content):
    assert extract_answer(f"a \\boxed{{{content}}} b") == content.strip()


# Pairs of answers


RIGHT = [
    ("5", "5.0"), ("5", "05"), ("5", "+5"), ("5", "5."), ("5", "$5$"), ("5", r"\$5"), ("5", "x=5"),
    ("5", "x = 5"), ("5", r"\(5\)"), ("5", "**5**"), ("5", "５"), ("-5", "−5"), ("-1/2", r"\frac{-1}{2}"),
    ("-5", "-5.00"), ("1234", "1,234"), ("1234", r"1{,}234"), ("1234", r"1,\!234"), ("1234", r"1\,234"),
    ("1234", "1 234"), ("11,111,111,100", "11111111100"), ("1,200", "1200.00"), ("0.5", ".5"),
    ("0.5", r"\frac12"), ("0.5", "1/2"), (r"\frac{1}{2}", r"\dfrac{2}{4}"),
    (r"\frac{270}7", r"\frac{270}{7}"), (r"1\frac{4}{5}", "1.8"), (r"1\frac{4}{5}", "9/5"),
    ("18", "18 dollars"), ("18.90", r"\$18.9"), ("5", r"5\text{ cm}"), ("5", r"5\,\mathrm{cm}^2"),
    ("5", "5 cm"), (r"12\pi", r"12\pi\text{ m}^{3}"), ("90", r"90^\circ"), ("90", r"90^{\circ}"),
    ("90", "90 degrees"), ("20\\%", "20"), ("20\\%", "20%"), ("20\\%", "0.2"), ("20\\%", r"\frac15"),
    ("20\\%", r"20\text{ percent}"), ("Evelyn", r"\text{Evelyn}"), ("even", "Even"), ("(B)", "B"),
    ("B", r"\textbf{(B)}"), (r"\text{east}", "east"), ("(1,-2)", r"\left(1, -2\right)"), ("1,-2", "-2,1"),
    ("1,-2", r"-2 \text{ and } 1"), ("3,5,7", "7, 5, 3"), ("1,-2", "x=1, x=-2"), (r"\{1,2\}", "2, 1"),
    ("(15,-29)", "15,-29"), ("(3, 100)", r"(3,\,100)"), ("[-2,7]", r"x\in[-2,7]"), ("y=-2x", "-2x"),
    ("-2x", "y = -2x"), ("x=3", "3"), ("5", r"\angle ABC = 5"), ("2\\sqrt{5}", r"\sqrt{20}"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"), ("x^2+1", "1+x^{2}"), ("(a+5)(b+2)", "ab+2a+5b+10"),
    ("6+9i", "9i+6"), ("5x-7y+11z+4=0", "-5x+7y-11z-4=0"), (r"\frac{\pi}{2}", "π/2"),
    (r"(-\infty,2)\cup(3,\infty)", r"(3,\infty)\cup(-\infty,2)"),
    (r"1\pm\sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"),
    (r"\begin{pmatrix}-1/3\\2/3\end{pmatrix}", r"\begin{pmatrix} -\frac{1}{3} \\ \frac23 \end{pmatrix}"),
    ("4210_{5}", "4210_5"), ("1024", "2^{10}"), ("10!", "3628800"), (r"\binom{10}{3}", "120"),
    (r"\cot x", r"\cot  x"), (r"\frac{\sqrt{6}}{2}", r"\sqrt{1.5}"), (r"\frac{1}{1+\sqrt{2}}", r"\sqrt{2}-1"),
    (r"\frac{1+i}{2}", r"\frac{1}{1-i}"), (r"\frac{x+2}{x-3}", r"\frac{-x-2}{3-x}"),
    (r"12\frac{1}{2}", "25/2"), (r"4.2\times 10^{7}", "42,000,000"), (r"0.\overline{36}", "4/11"),
    (r"0.1\overline{6}", r"\frac16"), ("-2", r"\sqrt{2}\cdot(-\sqrt{2})"),
    (r"\begin{pmatrix}1/2&0\\0&1\end{pmatrix}", r"\begin{bmatrix}0.5&0\\0&1\end{bmatrix}"),
    (r"\frac{1\pm\sqrt{5}}{2}", r"\frac{1-\sqrt5}{2},\frac{1+\sqrt5}{2}"), (r"\pm 6", "6,-6"),
    ("(3,-4)", "(x,y)=(3,-4)"), ("xy=2", r"y=\frac{2}{x}"), ("x<3", "-x>-3"), (r"x\le 3", r"3\geq x"),
    (r"1<x\le 3", r"3\ge x>1"), ("(1,3]", r"1<x\le 3"), (r"x>3", r"(3,\infty)"), (r"-2\le x\le 7", "[-2,7]"),
    ("f(x)=\\sin x", "f(x)=\\sin(x)"), (r"x=2", r"x=\log_2 4"), (r"\log_2 12", r"\log_{2}(12)"),
    ("x=1,y=2", "y=2,x=1"), ("March 14", r"\text{March } 14"), ("no", "No"), ("odd", "Odd"),
    ("12\\pi", r"12\pi\text{ cm}^3"), ("1011_2", "1011_{2}"), ("1011_2", "1011"), ("10!", "10 !"),
    ("10!+x", "x+10!"), ("3^{200000}+x", "x+3^{200000}"), (r"\binom{8}{2}", "28"), ("2^{2^3}", "256"),
    ("e^{x^2}", "e^{x^{2}}"), ("3^{200000}", "3^{200000}"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "prediction"), RIGHT)
def test_verify_math__equal_answers_are_right(answer, prediction):
    assert boxed(answer, prediction) == "right"


@given(
    st.integers(-(10**6), 10**6),
    st.integers(1, 10**4),
    st.sampled_from(["{}/{}", r"\frac{{{}}}{{{}}}", r"\dfrac{{ {} }}{{ {} }}"]),
    st.integers(1, 9),
)
def test_verify_math__fractions_are_compared_exactly(top, bottom, form, factor):
    answer = rf"\frac{{{top}}}{{{bottom}}}"
    assert boxed(answer, form.format(top * factor, bottom * factor)) == "right"
    assert boxed(answer, form.format(top * factor + 1, bottom * factor)) == "wrong"


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_verify_math__decimals_are_compared_exactly(value):
    assert boxed(f"{value:f}", f"{value:,f}000") == "right"
    assert boxed(f"{value:f}", f"{value:f}001") == "wrong"


WRONG = [
    ("7", "8=7"), ("7", r"7\%"), ("7", "7,7"), ("7", "7 or 8"), ("7", r"7\text{ or }8"),
    ("7", ",".join(["7"] * 60)), ("27648", "27647"), ("1/3", "0.333333"), ("0.333333", "1/3"),
    ("x^2+1", "x^2+1=x^2+1"), ("5", "-5"), ("1/2", "2"), (r"\{1,2\}", "(1,2)"), ("1,2", "(1,2)"),
    ("1,2", "[1,2]"), ("(1,2)", "[1,2]"), ("[1,2)", "[1,2]"), ("(1,2)", r"\{1,2\}"), ("(1,2)", "(2,1)"),
    ("3,5,7", "3,5"), ("3,5,7", "3,5,7,7"), ("(3,100)", "3100"), ("11", "1 1"), ("1000", "1,00"),
    ("east", "seat"), ("Evelyn", "Navin"), ("(B)", "C"), ("12c", "12d"), ("5m", "5"), ("5xyz", "5"),
    ("5", "5x"), ("5", "5 million"), ("5", r"5\text{ million}"), ("x=1", "y=1"), ("y=-2x", "2y=-2x"),
    ("0", "0/0"), ("5", "1/0"), ("1", r"\sin^2 x+\cos^2 x"), ("2k", "2"), ("x+1", "x-1"),
    (r"\sqrt{2}", "1.4142"), (r"12\pi", r"13\pi"), ("5", "five"), ("0.2", "20"), ("3R^2", "3r^2"),
    (r"\pi(R-r)", "0"), ("0.5", "5"), (r"\pi", r"\pi\text{x(1)}"), ("6+9i", "6-9i"), ("5", r"\emptyset"),
    ("2", "x"), ("7", r"7\text{ or 8}"), ("7", "7 and eight"), ("25", r"5\text{ squared}"), ("5", r"x\not=5"),
    ("5", "x!=5"), ("[1,2]", r"x\not\in[1,2]"), ("23", "2**3"), ("1011_2", "1011_3"), ("odd", "ddo"),
    ("Ann Lee", "Lee Ann"), ("x", "X"), ("[0,6)", "0,6"), ("x<3", "-x<-3"), (r"x\le 3", "x<3"),
    ("x=1", "x=1=1"), ("x^2=4", "0=0"), ("(1,3)", r"1\le x<3"),
    (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"), ("(3,5),(1,2)", "(3,2),(1,5)"),
    (r"\{7,8\}", r"\{7,7\}"), (r"0.\overline{3}", "0.3"), ("5", r"1/0\cdot 0+5"), ("x^{10}", "x^{11}"),
    ("27648", "27648.0001"), (r"\sqrt{2}", "1.414214"), (r"\pi", "3.141592653589793"),
    ("1/3", "0.33333333333333333333"), (".0000672", r"6.7\cdot 10^{-5}"), (r"\sqrt{2}", r"\sqrt{2}+10^{-20}"),
    (r"\sqrt{2}", r"\frac{99}{70}"), (r"\log 2", "0.301030"), ("e^2+1", "8.389056"), (r"\sin 1", "0.841471"),
    (r"\sqrt[3]{2}", "1.259921"), (r"\ln 2", r"\ln 2+10^{-20}"), ("7", r"\{7,8\}"), ("7", r"7\pm 1"),
    ("[1,2)", "(1,2]"), ("5", "$ $"), ("56", "5_6"),
]  # fmt: skip
"""Closeness is not equality, nor is a list with the answer in it, another bracket, or other letters."""


@pytest.mark.parametrize(("answer", "prediction"), WRONG)
def test_verify_math__unequal_answers_are_wrong(answer, prediction):
    assert boxed(answer, prediction) == "wrong"


REJECTED = [
    (r"\sqrt{5}", "9^{99999}"), ("5", "9^{9^9}"), ("5", "100000000!"), ("5", r"\binom{10^7}{10^6}"),
    ("x+5", "x" * 201), (r"\int_0^1 x!", r"\int_0^1 x!!"), (r"\max(a,b)", r"\max(a,b^{9^{9}})"),
    (r"\max(a,b)", r"\max(a,b)^{10000}"), (r"\max(a,b)", r"\sum_{i=1}^{9} i"),
    (r"\max(a,b)", r"\max(\sin a,\sin b,\sin c,\sin d,\sin e,\sin f,\sin g,\sin h,\sin k)"),
]  # fmt: skip
"""They would be slow to compute, or hold more of what is slow than the reference does."""


@pytest.mark.parametrize(("answer", "prediction"), REJECTED)
def test_verify_math__predictions_that_cost_too_much_are_rejected(answer, prediction):
    assert boxed(answer, prediction) == "rejected"


QUICK = [
    ("x+5", "(x+y+z+w)^{1000}"), (r"\sqrt{5}", r"\sqrt{" * 20 + "5" + "}" * 20), ("x!", "x!!"),
    (r"e^{x^2}", r"x^{y^{z}}9^{9^9}"), (r"\sqrt{x}", "x^{999}"), (r"\sqrt{x}", r"\cos^{20} x\sin^{20} x"),
    (r"\sqrt{x}", r"\tan^{15}(x+y+z)"), (r"\sqrt{x}", "(a+b+c+d+e+f+g+h)^{9}"),
    (r"\sqrt{x}", r"(\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7}+x)^{20}"), ("x!+" * 60 + "y", "x+" * 120 + "y"),
    ("5", "(" * 3000 + "5" + ")" * 3000),
]  # fmt: skip
"""Slow for a computer algebra system, and decided by values."""


@pytest.mark.parametrize(("answer", "prediction"), QUICK)
def test_verify_math__costly_forms_are_compared_without_expanding_them(answer, prediction, monkeypatch):
    monkeypatch.setattr(math, "_math_verify", None)
    assert boxed(answer, prediction) in ("wrong", "rejected")


@pytest.mark.parametrize(
    ("answer", "prediction", "expected"),
    [
        (r"\int_0^1 x^2\,dx", r"\int_0^1 x^{2} dx", "right"), (r"\int_0^1 x^2\,dx", r"\frac{1}{3}", "right"),
        (r"\int_0^1 x^2\,dx", r"\frac{1}{4}", "wrong"), (r"\sum_{k=1}^{n} k^2", r"\sum_{k=1}^n k\cdot k", "right"),
        (r"\sum_{k=1}^{n} k^2", r"\sum_{k=1}^n k^3", "wrong"), (r"\max(a,b)", r"\max(b,a)", "right"),
        (r"\max(a,b)", r"\min(a,b)", "wrong"), (r"y=\int_0^x e^{t^2} dt", r"y = \int_0^x e^{t^{2}}dt", "right"),
        (r"\frac{1}{3}", r"\int_0^1 x^2\,dx", "wrong"), (r"\int_0^1 3R^2", r"\int_0^1 3r^2", "wrong"),
    ],
)  # fmt: skip
def test_verify_math__math_verify_reads_what_is_no_plain_expression(answer, prediction, expected):
    assert boxed(answer, prediction) == expected


@pytest.mark.parametrize(
    ("answer", "prediction", "exact", "rounded"),
    [
        (r"\sqrt{2}", "1.41421", "wrong", "right"), (r"\sqrt{2}", "1.414214", "wrong", "right"),
        (r"\sqrt{2}", "1.4142", "wrong", "wrong"), (r"\sqrt{2}", "1.41422", "wrong", "wrong"),
        ("1/3", "0.333333", "wrong", "right"), ("1/3", "0.33333", "wrong", "wrong"),
        (r"-\frac{2}{3}", "-0.666667", "wrong", "right"), (r"-\frac{2}{3}", "-0.666666", "wrong", "wrong"),
        (r"\pi\text{ cm}", r"3.14159\text{ cm}", "wrong", "right"), (r"\pi", r"3.14159\text{ cm}", "wrong", "right"),
        (r"(\pi,1)", "(3.14159,1)", "wrong", "right"), ("123456.7", "123457", "wrong", "wrong"),
        (r"\frac{1}{45!}", "0.000000", "wrong", "wrong"), ("27648", "27647.9", "wrong", "wrong"),
        ("x", "1.41421", "wrong", "wrong"),
    ],
)  # fmt: skip
def test_verify_math__rounded_accepts_decimals_of_six_digits(answer, prediction, exact, rounded):
    for setting, expected in ((False, exact), (True, rounded)):
        (verdict,) = verify_math(ask(answer), [rf"\boxed{{{prediction}}}"], rounded=setting)
        assert verdict.reason == expected


@pytest.mark.parametrize(
    ("answer", "prediction", "question", "expected"),
    [
        ("1,234", "1234", "How many are there?", "right"), ("1,234", "1234", "", "wrong"),
        ("1,234", "1234", "What are the solutions, separated by commas?", "wrong"),
        ("1,234", "1234", "How many positive integers are there?", "right"),
        ("1,234", "1234", "Find all positive integers n.", "wrong"), ("1,234", "1234", "Find the roots.", "wrong"),
        ("1,234", "1234", "Find the sum of all solutions.", "right"),
        ("so\n#### 1,234", "1234", "", "right"),
        ("1,234", "234,1", "", "right"), ("1,034", "1034", "", "right"), ("1,234", "1,234", "", "right"),
        ("(1,234)", "1234", "How many are there?", "wrong"), ("1234", "1,234", "Find all solutions.", "right"),
    ],
)  # fmt: skip
def test_verify_math__a_comma_is_one_of_thousands_where_no_list_is_asked_for(
    answer, prediction, question, expected
):
    assert boxed(answer, prediction, question) == expected


HOSTILE = [
    "9^{9^9}", "9^9^9", "9^{(9^9)}", "{9}^{9^{9}}", "100000000!", r"\binom{100000}{50000}",
    r"\sum_{i=1}^{10^9} i", r"\int_0^1 x dx", r"\prod_{i=1}^{9999999} i", r"\Gamma(10^8)",
    "(" * 90 + "5" + ")" * 90, "9^{999999}", "9^{-999999}", "(((9^{999})^{999})^{999})^{999}",
    r"9^{999 \cdot 999}", "9" * 150, "5" * 5000, "1," * 5000 + "1", "1+" * 150 + "1",
    "(" * 3000 + "4" + ")" * 3000, "{" * 3000 + "4" + "}" * 3000, r"\frac{1}{1+" * 1000 + "1" + "}" * 1000,
    r"\binom{10^9}{10^5}", r"\frac{1000000!}{999998!}", "1.0000001^{99999}", "10^{-99999}", "a_" * 20 + "a",
]  # fmt: skip


@pytest.mark.parametrize("prediction", HOSTILE)
@pytest.mark.parametrize("answer", [r"\sqrt{5}", "5"])
def test_verify_math__hostile_predictions_never_reach_math_verify(answer, prediction, monkeypatch):
    monkeypatch.setattr(math, "_math_verify", None)
    assert boxed(answer, prediction) in ("rejected", "wrong")


PERCENTS = [{"role": "system", "content": "s"}, {"role": "user", "content": "What Percent is it?"}]


@pytest.mark.parametrize(
    ("answer", "prediction", "question", "expected"),
    [
        ("10", r"10\%", "What percent is it?", "right"),
        ("10", r"10\%", PERCENTS, "right"),
        ("10", "10%", "How many % is it?", "right"),
        ("10", r"10\%", "How much is it?", "wrong"),
        ("0.1", r"10\%", "How much is it?", "right"),
    ],
)
def test_verify_math__a_percent_sign_is_a_unit_in_questions_for_percents(
    answer, prediction, question, expected
):
    assert boxed(answer, prediction, question) == expected


@pytest.mark.parametrize(
    ("answer", "prediction", "question", "expected"),
    [
        ("204", "204_5", "Express it in base 5.", "right"), ("204", "204_5", "Express it in base $5$.", "right"),
        ("204", "204_{5}", "Express $413_5$ so.", "right"), ("204", "204_2", "Its base-two form?", "right"),
        ("101", "101_2", "Write five in binary.", "right"), ("204", "204_6", "Express it in base 5.", "wrong"),
        ("204", "204_5", "Express it.", "wrong"), ("204_5", "204_6", "In base 6?", "wrong"),
    ],
)  # fmt: skip
def test_verify_math__a_base_is_that_of_the_question(answer, prediction, question, expected):
    assert boxed(answer, prediction, question) == expected


# Whole references and responses


@pytest.mark.parametrize("answer", ["so\n#### 1,200", r"thus \boxed{1200}", "  1200 ", "1200.0"])
def test_verify_math__the_reference_is_the_answer_in_it_or_all_of_it(answer):
    assert reason(answer, "#### 1200") == "right"
    assert reason(answer, "#### 1201") == "wrong"


@pytest.mark.parametrize("answer", [None, "", " \n", r"\boxed{}", r"\fbox{ }", "$ $", r"\text{}", "{}"])
def test_verify_math__an_empty_reference_is_no_verdict(answer):
    verdicts = verify_math(ask(answer), [r"\boxed{1}", "x"])
    assert [(v.outcome, v.reason) for v in verdicts] == [(None, "no_verdict")] * 2


def test_verify_math__one_verdict_a_response_in_order():
    responses = ["it is 5", r"\boxed{5}", r"\boxed{6}", "#### 5", r"\boxed{}", r"\boxed{9^{9^{9}}}"]
    verdicts = verify_math(ask("5"), responses)
    assert [v.reason for v in verdicts] == ["no_answer", "right", "wrong", "right", "no_answer", "rejected"]
    assert [v.outcome for v in verdicts] == [0.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    assert verify_math(ask("5"), []) == []


@pytest.mark.parametrize(
    ("answer", "boxes", "expected"),
    [
        ("5", ["5"] * 100, "right"), ("5", ["5", "5.0", r"\frac{10}{2}"], "right"),
        ("5", ["4", "5"], "wrong"), ("5", ["5", "4"], "wrong"), ("5", [str(i) for i in range(6)], "wrong"),
        ("5", [str(i) for i in range(100) if i != 5] + ["5"], "wrong"),
        ("5", ["5" + "0" * 300, "5"], "wrong"), ("5", ["5." + "0" * i for i in range(8)], "right"),
        ("5", ["5." + "0" * i for i in range(9)], "wrong"), ("(1,2)", ["1", "2"], "wrong"),
        ("1,2", ["1", "2"], "right"), ("1,2", ["2", "1"], "right"), ("1,2", ["1", "2", "3"], "wrong"),
        ("1,2", ["1", "2", "1,2"], "right"), (r"1\pm\sqrt{2}", [r"1+\sqrt{2}", r"1-\sqrt{2}"], "right"),
        ("1,2", ["3,4", "1,2"], "wrong"), ("1,2", ["3", "1,2"], "wrong"),
        ("1,2", [str(i) for i in range(20)] + ["1,2"], "wrong"),
    ],
)  # fmt: skip
def test_verify_math__all_of_several_boxes_must_be_right(answer, boxes, expected):
    assert reason(answer, " then ".join(rf"\boxed{{{b}}}" for b in boxes)) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("#### 5\n#### 5", "right"), ("#### 4\n#### 5", "wrong"),
        ("#### Step 1\n#### Step 2\n\\boxed{5}", "right"),
        ("\n".join(f"#### {i}" for i in range(6)), "wrong"), ("5" * 100, "no_answer"),
        (r"\boxed{" * 20_000, "no_answer"),
    ],
)  # fmt: skip
def test_verify_math__lines_count_like_boxes(response, expected):
    assert reason("5", response) == expected


# Hostile responses


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 20_000, r"\boxed{" * 140_000, r"\boxed{" * 120_000 + "4" + "}" * 120_000,
        r"\boxed{" * 120_000 + "}" * 120_000, r"\boxed{6}" * 110_000, "{" * 500_000 + "}" * 500_000,
        " ".join(rf"\boxed{{{i}}}" for i in range(80_000)), "#" * 1_000_000, "\n####" * 200_000,
        "\n#### 6" * 140_000, "\\" * 1_000_001, " " * 1_000_000, "\n" * 1_000_000,
        (r"\boxed" + " " * 1000) * 1000, r"\boxed" + " " * 1_000_000, "####" + " " * 1_000_000,
        r"\boxed{" + "x" * 1_000_000 + "}", r"\boxed{" + "," * 190 + "}", r"\boxed{" + "_" * 190 + "}",
        r"\boxed{" + "a " * 95 + "}", r"\boxed{" + "^" * 190 + "}", r"\boxed{" + r"\text{a} " * 20 + "}",
        r"\boxed{" + "1," * 90 + "x}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("answer", ["5", r"\{1,2\}"])
def test_verify_math__a_megabyte_of_text_is_read_in_time(answer, text):
    boxed("x+1!", "1+x!")  # imports
    start = time.perf_counter()
    assert reason(answer, text) in ("wrong", "no_answer", "rejected")
    assert canonical_answer(text) is None or "box" in text or "####" in text
    assert time.perf_counter() - start < 5


def test_verify_math__a_poisoned_comparator_changes_no_later_verdict():
    poison = [
        r"\boxed{__import__('sympy').Basic.__eq__.__call__}",
        r"\boxed{\pi\text{; import sympy; sympy.Basic.__eq__ = lambda *a: True}}",
        r"\boxed{(Basic.equals:=lambda a,b:True)}",
        r"\boxed{\operatorname{exec}(simplify=lambda x:0)}",
        r"\boxed{x=6}",
        r"\boxed{5:=6}",
    ]
    responses = [*poison, r"\boxed{\log_2 64}", r"\boxed{\log_2 32}", r"\boxed{6}"]
    verdicts = verify_math(ask("5"), responses)
    assert [v.outcome for v in verdicts] == [0.0] * len(poison) + [0.0, 1.0, 0.0]


@pytest.mark.parametrize("prefix", ["", r"\pi ", r"\pi+", r"\text{a} "])
@pytest.mark.parametrize(
    "code",
    [
        "__import__('pathlib').Path('MARK').touch()",
        "exec(\"open('MARK','w')\")",
        "open('MARK','w')",
        "(lambda: open('MARK','w'))()",
        r"\text{open('MARK','w')}",
    ],
)
def test_verify_math__no_code_in_an_answer_is_run(code, prefix, tmp_path):
    mark = tmp_path / "m"
    for answer in ("5", "x", r"\pi"):
        assert boxed(answer, prefix + code.replace("MARK", str(mark))) != "right"
    assert not mark.exists()


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet=r"\{}()[]^_,.=+-/%$!0123456789xyi fracsqtpm", max_size=30),
    st.sampled_from(["5", "x+1", "1,2"]),
)
def test_verify_math__raises_nothing_and_is_deterministic(prediction, answer):
    response = rf"\boxed{{{prediction}}} #### {prediction}"
    first = verify_math(ask(answer), [response])
    math._judge.cache_clear()
    math._parse.cache_clear()
    assert verify_math(ask(answer), [response]) == first


def test_verify_math__runs_in_a_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(boxed(r"\sqrt{7}+1", r"1+\sqrt{7}")))
    thread.start()
    thread.join()
    assert found == ["right"]


def test_verify_math__math_verify_is_not_imported_before_it_is_needed():
    code = (
        "import sys; from openprime.verifiers.math import verify_math; from openprime.types import Prompt;"
        "verify_math(Prompt('p', (), 'q', '5'), [r'\\boxed{5}', '#### 6']);"
        "print([m for m in ('math_verify', 'sympy', 'mpmath', 'torch', 'transformers') if m in sys.modules])"
    )
    path = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path}
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (r"\boxed{0.50}", "1/2"), (r"\boxed{\frac12}", "1/2"), ("#### 1,200.0", "1200"),
        (r"\boxed{x = 5\text{ cm}}", "5"), (r"\boxed{\left( 1,\, 2 \right)}", "(1,2)"),
        (r"\boxed{\dfrac{\pi}{2}}", r"\frac{\pi}{2}"), (r"\boxed{\text{(C)}}", "C"),
        (r"\boxed{10\%}", "1/10"), ("five", None),
    ],
)  # fmt: skip
def test_canonical_answer__is_one_for_equal_answers(text, canonical):
    assert canonical_answer(text) == canonical


# Real references


@needs_files
@pytest.mark.parametrize(
    ("name", "field", "count"),
    [
        ("math-500.jsonl", "expected_answer", 500),
        ("aime-2022-2024.jsonl", "answer", 90),
        ("amc-2022-2023.jsonl", "answer", 83),
        ("gsm8k-test.jsonl", "answer", 1319),
        ("gsm8k-train.jsonl", "answer", 7473),
    ],
)
def test_verify_math__every_gold_answer_is_right_and_a_changed_one_wrong(name, field, count):
    rows = rows_of(name)
    assert len(rows) == count
    for row in rows:
        gold = str(row[field]).removesuffix(".0")
        answer = gold.split("####")[1] if name.startswith("gsm8k") else gold
        responses = [rf"\boxed{{{answer}}}", f"#### {answer}", rf"\boxed{{9{answer}}}", f"#### {answer}-1"]
        verdicts = verify_math(ask(gold), responses if len(rows) < 1000 else responses[:3])
        assert [v.reason for v in verdicts[:2]] == ["right"] * 2, gold
        assert [v.outcome for v in verdicts[2:]] == [0.0] * (len(verdicts) - 2), gold


@needs_files
def test_verify_math__every_published_solution_of_math_500_is_right():
    for row in rows_of("math-500.jsonl"):
        assert reason(row["expected_answer"], row["solution"], row["problem"]) == "right", row["id"]


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "5",
            "-3/4",
            r"\frac{1}{2}",
            "1,234",
            "5 cm",
            r"30^\circ",
            "4210_{5}",
            "10:30",
            "A",
            "(B)",
            "Tuesday",
        ),
        *(
            "no such integers exist",
            r"\{1, 2\}",
            r"(-\infty, 3] \cup [5, 7)",
            "x = 5, y = 6",
            "5x - 7y + 4 = 0",
        ),
        *(r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "n!", r"\cot x", "steps\n#### 72", r"so \boxed{\sqrt{2}}"),
    ],
)
def test_is_readable__what_answers_can_be_compared_with(answer):
    assert is_readable(reference_of(answer))


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "",
            " ",
            r"\boxed{}",
            r"\frac{1}{",
            r"2\sqrt{3",
            "}{",
            "x^2+",
            "https://example.org/a.png",
            "7" * 300,
        ),
        "it holds for all of them because every second one was sold twice",
        r"\text{Yes, it is possible for all n greater than 3}",
    ],
)
def test_is_readable__not_what_is_empty_broken_long_or_prose(answer):
    assert not is_readable(reference_of(answer))


@needs_files
@pytest.mark.parametrize(
    ("name", "field"),
    [("math-500", "expected_answer"), ("aime-2022-2024", "answer"), ("amc-2022-2023", "answer")],
)
def test_is_readable__every_reference_of_the_benchmarks(name, field):
    references = [reference_of(str(row[field])) for row in rows_of(f"{name}.jsonl")]
    assert [reference for reference in references if not is_readable(reference)] == []
