"""Clock arithmetic against arithmetic of the test's own."""

import random
from collections import Counter
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openprime.config import DataConfig
from openprime.tasks import rows
from openprime.tasks.clock import check_steps, misconceptions
from openprime.types import Prompt
from openprime.verifiers.math import verify_math

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
property_test = settings(max_examples=100, deadline=None, derandomize=True)


def make(**options) -> list[dict[str, str]]:
    return rows(DataConfig(source="task:clock", **options))


def prompts(**options) -> set[str]:
    return {row["prompt"] for row in make(**options)}


def truth(prompt: str) -> tuple[list[str], list[int]]:
    """(operations, digit after each), worked out from the worksheet."""
    first, *asked = prompt.split("\n")
    start, digit = first.split(" ")
    assert start == "Start"
    now, operations, digits = NAMES.index(digit), [], []
    for line in asked:
        operation, equals, question = line.split(" ")
        assert (equals, question) == ("=", "?")
        operand = NAMES.index(operation[1:])
        now = {"+": now + operand, "*": now * operand}[operation[0]] % 10
        operations.append(operation)
        digits.append(now)
    return operations, digits


def result(operation: str, digit: int) -> int:
    return truth(f"Start {NAMES[digit]}\n{operation} = ?")[1][0]


def write(operations: list[str], digits: list[int]) -> list[str]:
    """A worksheet filled in."""
    lines = [f"{o} {NAMES[d]}" for o, d in zip(operations, digits, strict=True)]
    return [*lines, f"#### {digits[-1]}"]


# Rows


@pytest.mark.parametrize("horizon", [2, 8, 16, 32])
@pytest.mark.parametrize("split", ["train", "test"])
def test_rows__answers_are_right(horizon: int, split: str):
    for row in make(horizon=horizon, split=split, limit=300):
        operations, digits = truth(row["prompt"])
        assert len(operations) == horizon
        assert row["answer"] == str(digits[-1])


def test_rows__operations_starts_and_answers_are_spread_evenly():
    made = make(limit=2000)
    seen = Counter(o for row in made[:300] for o in truth(row["prompt"])[0])
    starts = Counter(row["prompt"].split()[1] for row in made)
    answers = Counter(row["answer"] for row in made)
    for counts, kinds, most in ((seen, 12, 2), (starts, 10, 1.5), (answers, 10, 1.5)):
        assert len(counts) == kinds
        assert max(counts.values()) < most * min(counts.values())
    for operation in seen:
        assert {result(operation, digit) for digit in range(10)} == set(range(10)), "permutes the digits"
    assert len({row["prompt"] for row in made}) == 2000


def test_rows__depend_on_seed_split_and_index_alone():
    many = make(limit=50)
    random.seed(99)
    assert make(limit=50) == many
    assert make(limit=20) == many[:20]
    assert make(limit=0)[:50] == many
    assert len(make(limit=0)) == 1000


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("option", [{"split": "rl"}, {"task_seed": 1}, {"horizon": 9}])
def test_rows__another_split_seed_or_horizon_shares_no_prompt(split: str, option: dict):
    assert not prompts(limit=2000, split=split) & prompts(limit=2000, **{"split": split} | option)


@pytest.mark.parametrize("horizon", [2, 3, 4, 8])
def test_rows__train_and_test_share_no_prompt_even_where_prompts_are_few(horizon: int):
    """The configuration promises it for every horizon; at horizon 2 there are 1,440 prompts in all."""
    assert not prompts(horizon=horizon, limit=2000) & prompts(horizon=horizon, split="test", limit=2000)


def test_rows__another_task_is_refused():
    with pytest.raises(ValueError, match=r"no embedded task 'watch'.*clock"):
        rows(DataConfig(source="task:watch"))


def test_rows__the_verifier_reads_right_and_wrong_answers():
    for row in make(limit=30):
        operations, digits = truth(row["prompt"])
        right = "\n".join(write(operations, digits))
        wrong = "\n".join(write(operations, [*digits[:-1], (digits[-1] + 1) % 10]))
        asked = Prompt("p", (), row["prompt"], row["answer"])
        verdicts = verify_math(asked, [right, wrong, "", row["response"]])
        shown = row["response"].endswith(f"#### {row['answer']}")
        assert [v.outcome for v in verdicts] == [1.0, 0.0, 0.0, float(shown)]


# The noisy demonstrator


@pytest.mark.parametrize("horizon", [8, 16, 32])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rows__the_demonstrator_is_right_three_times_in_ten(horizon: int, seed: int):
    made = make(horizon=horizon, task_seed=seed, limit=3000)
    right = sum(row["response"].splitlines()[-1] == f"#### {row['answer']}" for row in made)
    assert 0.2 < right / len(made) < 0.4


@pytest.mark.parametrize("horizon", [8, 16, 32])
@pytest.mark.parametrize("seed", range(5))
def test_misconceptions__about_half_are_more_likely_than_not(horizon: int, seed: int):
    flaws = misconceptions(horizon, seed)
    often = sum(flaw.probability > 0.5 for flaw in flaws.values())
    assert len(flaws) >= 4
    assert abs(often - len(flaws) / 2) <= 1
    for skill, flaw in flaws.items():
        assert 0.6 <= flaw.probability <= 0.9 or 0.2 <= flaw.probability <= 0.4
        assert flaw.digit in set(range(10)) - {result(*skill)}


def test_misconceptions__depend_on_horizon_and_seed_alone():
    assert misconceptions(8, 0) == misconceptions(8, 0)
    assert misconceptions(8, 0) != misconceptions(8, 1)
    assert len(misconceptions(8, 0)) > len(misconceptions(32, 0))


def test_rows__the_demonstrator_errs_as_often_as_a_misconception_says_and_carries_errors_on():
    """The same wrong digit every time, in all splits alike."""
    flaws = misconceptions(8, 0)
    met, wrong = Counter(), Counter()
    for row in [*make(limit=3000), *make(limit=3000, split="test")]:
        operations, _ = truth(row["prompt"])
        lines = row["response"].split("\n")
        assert [line.split()[0] for line in lines] == [*operations, "####"]
        before = NAMES.index(row["prompt"].split()[1])
        for operation, line in zip(operations, lines, strict=False):
            skill, right = (operation, before), result(operation, before)
            before = NAMES.index(line.split()[1])
            assert before == right or before == flaws[skill].digit
            met[skill] += skill in flaws
            wrong[skill] += before != right
        assert lines[-1] == f"#### {before}"
    assert {skill for skill in met if met[skill]} == set(flaws)
    for skill, flaw in flaws.items():
        spread = (flaw.probability * (1 - flaw.probability) / met[skill]) ** 0.5
        assert abs(wrong[skill] / met[skill] - flaw.probability) < 5 * spread


# The oracle step checker

FOUR = "Start four\n+seven = ?\n*three = ?\n+five = ?"


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("+seven one\n*three three\n+five eight\n#### 8", [True] * 4),
        ("+seven two\n*three six\n+five one\n#### 1", [False, True, True, True]),
        # An error that is not carried on is two: the line, and the one that does not follow from it.
        ("+seven two\n*three three\n+five eight\n#### 8", [False, False, True, True]),
        # Another operation than the worksheet's, though rightly worked out.
        ("+seven one\n*seven seven\n+five two\n#### 2", [True, False, True, True]),
        ("+seven one\n+five six\n*three three\n#### 3", [True, False, False, True]),
        # The right digit by another operation, or behind another sign.
        ("+seven one\n+two three\n+five eight\n#### 8", [True, False, True, True]),
        ("+seven one\n*three three\n+five eight\nanswer 8", [True, True, True, False]),
        # Lines that cannot be read; what follows has nothing to follow from.
        ("+seven one\n*three ten\n+five eight\n#### 8", [True, False, False, True]),
        ("+seven one\n*three\n+five eight\n#### 8", [True, False, False, True]),
        ("+seven one\n\n+five eight\n#### 8", [True, False, False, True]),
        ("+seven one\n*three three three\n+five eight\n#### 8", [True, False, False, True]),
        ("+seven 1\n*three three\n+five eight\n#### 8", [False, False, True, True]),
        ("+seven one\n*three three\n+five eight\n#### eight", [True, True, True, False]),
        ("+seven one\n*three three\n+five eight\n8", [True, True, True, False]),
        # Lines that are missing, or too many.
        ("+seven one\n*three three", [True, True]),
        ("+seven one\n*three three\n#### 3", [True, True, False]),
        ("+seven one\n*three three\n+five eight\n#### 8\n#### 8", [True, True, True, True, False]),
        ("+seven one\n*three three\n+five eight\n+five three\n#### 3", [True, True, True, False, False]),
        ("#### 8", [False]),
        ("", []),
    ],
)
def test_check_steps__by_hand(response: str, expected: list[bool]):
    assert check_steps(FOUR, response) == expected


@cache
def worksheets() -> list[str]:
    return [row["prompt"] for row in make(limit=300)]


@property_test
@given(st.integers(0, 299), st.integers(0, 8), st.integers(1, 9), st.booleans())
def test_check_steps__marks_exactly_the_wrong_lines(index: int, line: int, shift: int, carried: bool):
    """One line where its error is carried on; else the next too, for no operation maps two digits to one."""
    prompt = worksheets()[index]
    operations, digits = truth(prompt)
    response = write(operations, digits)
    if line == 8:
        response[8] = f"#### {(digits[-1] + shift) % 10}"
    else:
        wrong = (digits[line] + shift) % 10
        rest = truth("\n".join([f"Start {NAMES[wrong]}", *(f"{o} = ?" for o in operations[line + 1 :])]))[1]
        response[line] = f"{operations[line]} {NAMES[wrong]}"
        if carried:
            response = write(operations, [*digits[:line], wrong, *rest])
    marked = {line} if carried or line == 8 else {line, line + 1}
    assert check_steps(prompt, "\n".join(response)) == [i not in marked for i in range(9)]


def test_check_steps__finds_the_demonstrators_errors():
    for row in make(limit=300):
        marks = check_steps(row["prompt"], row["response"])
        assert len(marks) == 9
        assert marks[-1], "the answer follows from the last line"
        if row["response"].splitlines()[-1] != f"#### {row['answer']}":
            assert not all(marks)
