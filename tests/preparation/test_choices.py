"""Options as data sets write them."""

import pytest

from openprime.preparation.choices import Open, opened, options

AMC = (
    r"What is the sum of $1$ and $2$? $\textbf{(A)}\ 1 \qquad\textbf{(B)}\ \frac{3}{2} \qquad\textbf{(C)}\ 3"
    r"\qquad\textbf{(D)}\ 4 \qquad\textbf{(E)}\ 5$"
)
LINES = "A shop sells 3 hats a day.\nHow many in 2 days?\nA. 5\nB. 6\nC. 7\nD. None of the above"


@pytest.mark.parametrize(
    ("question", "stem", "texts"),
    [
        ("What is 2+3? (A) 4 (B) 5 (C) 6", "What is 2+3?", ["4", "5", "6"]),
        ("What is 2+3? A) 4, B) 5, C) 6.", "What is 2+3?", ["4", "5", "6"]),
        (AMC, "What is the sum of $1$ and $2$?", ["1", r"\frac{3}{2}", "3", "4", "5"]),
        (
            LINES,
            "A shop sells 3 hats a day.\nHow many in 2 days?",
            ["5", "6", "7", "None of the above"],
        ),
        (
            "Find $x$. (A) $x=1$ (B) $x=2$ (C) $x=3$ (D) $x=4$",
            "Find $x$.",
            ["$x=1$", "$x=2$", "$x=3$", "$x=4$"],
        ),
        (
            r"Find it.\n\n$\text{(A)}\ 10\qquad \text{(B)}\ 20\qquad \text{(C)}\ 30$".replace(r"\n", "\n"),
            "Find it.",
            ["10", "20", "30"],
        ),
    ],
)
def test_options__stem_and_texts(question: str, stem: str, texts: list[str]):
    found = options(question)
    assert found is not None
    assert found[0] == stem
    assert list(found[1].values()) == texts
    assert list(found[1]) == list("ABCDE"[: len(texts)])


@pytest.mark.parametrize(
    "question",
    [
        "In triangle ABC the angle at A is 30 and that at B is 60. Find C.",
        "Points (A), (B) lie on a line.",
        "What is f(A) + f(B) + f(C)?",
        "Is it (A) or (C) or (B)?",
        "What is 2+3?",
    ],
)
def test_options__are_none_where_there_is_no_choice(question: str):
    assert options(question) is None


@pytest.mark.parametrize(
    ("question", "reference", "expected"),
    [
        (AMC, "C", "3"),
        (AMC, r"\textbf{(B)}", r"\frac{3}{2}"),
        (AMC, "(D) 4", "4"),
        (AMC, "3", "3"),
        (AMC, "F", ""),
        (LINES, "B", "6"),
        (LINES, "D", ""),  # speaks of the others
        ("Which of these is prime? (A) 4 (B) 5 (C) 6", "B", ""),
        ("Which of the following is prime? (A) 4 (B) 5 (C) 6", "B", ""),
        ("Which statement is true? (A) 1=2 (B) 2=2 (C) 3=2", "B", ""),
        ("What could be $x$? (A) 1 (B) 2 (C) 3", "B", ""),
    ],
)
def test_opened__the_answer_is_the_right_options_text_or_none(question: str, reference: str, expected: str):
    found = opened(question, reference)
    assert isinstance(found, Open)
    assert found.answer == expected


def test_opened__of_an_open_question_is_none():
    assert opened("What is 2+3?", "5") is None
