"""Agreement of responses, the form of demonstrations, rewritten questions; by hand."""

import pytest

from openprime.preparation.checking import agreed, fit, in_form
from openprime.types import Prompt
from openprime.verifiers.math import verify_math

RIGHT, OTHER, NONE, UNSOLVABLE = r"so \boxed{5}", r"\boxed{7}", "I do not know", r"\boxed{\text{unsolvable}}"


@pytest.mark.parametrize(
    ("texts", "reason", "share"),
    [
        ([RIGHT] * 5, "", 1.0),
        ([RIGHT, r"\boxed{5.0}", r"\boxed{\frac{10}{2}}", OTHER, NONE], "", 0.6),
        ([RIGHT, RIGHT, OTHER, NONE, r"\boxed{8}"], "no_agreement", 0.4),
        ([OTHER, r"\boxed{7.0}", OTHER, RIGHT, RIGHT], "other_answer", 0.4),
        ([UNSOLVABLE, r"\boxed{unsolvable}", UNSOLVABLE, RIGHT, RIGHT], "unsolvable", 0.4),
        ([NONE] * 5, "no_agreement", 0.0),
        ([], "refused", 0.0),
    ],
)
def test_agreed__by_hand(texts: list[str], reason: str, share: float):
    verdicts = verify_math(Prompt("p", (), "What is 2+3?", "5"), texts)
    found, right, note = agreed(texts, verdicts, 0.6)
    assert (found, right) == (reason, share)
    assert bool(note) == bool(reason and texts)


GOOD = (
    "[ASSESS]\n\n# What is asked\n\nNext action: [ADVANCE]\n\n[ADVANCE]\n\n# 2+3=5\n\nNext action: [VERIFY]\n\n"
    "[VERIFY]\n\n# 5-3=2\n\nNext action: [OUTPUT]\n\n[OUTPUT]\n\n" + r"\boxed{5}"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, True),
        (f"\n{GOOD}\n", True),
        ("Let us see.\n\n" + GOOD, False),  # begins with no action
        (GOOD.replace("[VERIFY]\n\n#", "[PIVOT]\n\n#"), False),  # another than was named
        (GOOD.replace("Next action: [VERIFY]\n\n", ""), False),
        (GOOD.replace("[OUTPUT]\n\n\\", "[SYNTHESIZE]\n\n\\"), False),  # does not end with OUTPUT
        (GOOD + "\n\nNext action: [ASSESS]", False),
        (r"[OUTPUT]" + "\n\n" + r"\boxed{5}", False),  # no step before it
        (r"\boxed{5}", False),
        ("", False),
        (GOOD.replace("ADVANCE", "JUMP"), False),  # none of the seven
    ],
)
def test_in_form__by_hand(text: str, expected: bool):
    assert in_form(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is the sum of 2 and 3?", "What is the sum of 2 and 3?"),
        ("NEEDS OPTIONS", ""),
        ("It needs options.", ""),
        ("What is the sum of 2 and 4?", ""),  # a number is lost
        ("What is 2+3? (A) 4 (B) 5 (C) 6", ""),
        ("", ""),
        ("2 and 3 " * 100, ""),  # says more than the question
    ],
)
def test_fit__a_rewritten_question_is_whole_and_open(text: str, expected: str):
    assert fit(text, "What is 2+3?") == expected
