"""Patterns on sentences as data sets have them, and the reason of each kind of row."""

import pytest

from openprime.config.commands import FILTERS
from openprime.preparation.filters import FIGURE, PROOF, REASONS, judge


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is $x$?\n[asy] draw((0,0)--(1,1)); [/asy]", True),
        ("In the diagram, $AB = 5$. What is $BC$?", True),
        ("In the figure below, quadrilateral $CDEG$ is a square.", True),
        ("Twelve 1 by 1 squares form a rectangle, as shown. What is its area?", True),
        ("As shown in the figure, the circle touches the line.", True),
        (r"Find the area. \includegraphics{a.png}", True),
        ("Find the area. ![](https://cdn.example/a.png)", True),
        ("The graph below shows the rainfall of May.", True),
        ("Anna draws a diagram of her garden with 5 trees. How many are left?", False),
        ("How many figures has the number $2^{10}$?", False),
        ("The sales figures of May are 20. Those of June are twice as high.", False),
        ("She hangs a picture on the wall and 3 in the hall.", False),
        ("What is the slope of the graph of $y = 3x$?", False),
    ],
)
def test_figure__is_found_where_the_text_needs_one(question: str, expected: bool):
    assert bool(FIGURE.search(question)) == expected


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Prove that $n^2$ is even.", True),
        ("Let $n$ be even. Show that $n^2$ is even.", True),
        ("Find all $n$ and prove that there are no others.", True),
        ("Demonstrate that the sum is finite.", True),
        ("Write a proof of the theorem.", True),
        ("Disprove: every prime is odd.", True),
        ("They light enough fireworks to show the full year.", False),
        ("Show your work. What is $2+2$?", False),
        ("A show that lasts 3 hours costs 5 dollars.", False),
        ("He bought a waterproof coat and 80 proof rum.", False),
        ("Verify the receipt of 5 dollars: how much is missing?", False),
    ],
)
def test_proof__is_found_where_one_is_asked_for(question: str, expected: bool):
    assert bool(PROOF.search(question)) == expected


CHOICE = "What is 2+3? (A) 4 (B) 5 (C) 6"


@pytest.mark.parametrize(
    ("question", "answer", "reason", "kept"),
    [
        ("What is 2+3?", "5", "", ("What is 2+3?", "5")),
        ("What is 2+3?", "2+3 = 5\n#### 5", "", ("What is 2+3?", "2+3 = 5\n#### 5")),
        ("  ", "5", "no_question", None),
        ("What is 2+3?", "", "no_reference", None),
        ("What is 2+3?", r"\boxed{}", "no_reference", None),
        ("What is 2+3?", "See the solution.", "no_reference", None),
        ("Is it so?", "proof", "proof", None),
        ("What is 2+3?", r"\frac{5}{", "unparsable", None),
        (CHOICE, "B", "", ("What is 2+3?", "5")),
        (CHOICE, "D", "choice", None),
        ("Which of the following is even? (A) 3 (B) 4 (C) 5", "B", "choice", None),
        ("In the diagram, prove that it is so.", "", "figure", None),
    ],
)
def test_judge__the_first_reason_and_the_open_question(
    question: str, answer: str, reason: str, kept: tuple[str, str] | None
):
    found = judge({"question": question, "answer": answer, "verifier": "math"}, FILTERS, "rules")
    assert found == (reason, *(kept or (question, answer)))
    assert reason in {"", *REASONS}


def test_judge__filters_that_are_left_out_keep_their_rows():
    row = {"question": "In the diagram, show that it is so.", "answer": r"\frac{5}{", "verifier": "math"}
    assert judge(row, FILTERS, "rules")[0] == "figure"
    assert judge(row, ("proof", "unparsable"), "rules")[0] == "proof"
    assert judge(row, ("unparsable",), "rules")[0] == "unparsable"
    assert judge(row, (), "rules")[0] == ""


def test_judge__choices_may_be_dropped_all():
    assert judge({"question": CHOICE, "answer": "B", "verifier": "math"}, FILTERS, "drop")[0] == "choice"


def test_judge__a_row_of_another_verifier_is_not_mathematics():
    row = {"question": "Show that the program prints the figure below.", "answer": "", "verifier": "code"}
    assert judge(row, FILTERS, "rules")[0] == ""
