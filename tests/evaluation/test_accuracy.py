"""What is measured of judged responses: choosing among N, intervals, rewards of lines."""

import random

import numpy as np
import pytest

from openprime.evaluation.accuracy import best_of, powers, step_auc
from openprime.tasks.clock import check_steps
from support import brute


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("samples", [1, 2, 5, 8])
@pytest.mark.parametrize("names", [(), ("PRM",), ("reference log-probability", "PRM")])
@pytest.mark.parametrize("voting", [True, False])
def test_best_of__every_way_equals_loops_over_all_choices(
    seed: int, samples: int, names: tuple[str, ...], voting: bool
):
    rng = random.Random(seed)

    def rows(*values: object) -> list[list]:
        return [[rng.choice(values) for _ in range(samples)] for _ in range(1 + 2 * seed)]

    right, answers = rows(0.0, 1.0, 0.5), rows("1", "2", "3", None) if voting else rows(None)
    scores = {name: rows(-1.0, 0.25, 0.5, 2.0) for name in names}
    scored = {name: np.array(values) for name, values in scores.items()}
    table, ahead = best_of(np.array(right), answers, scored)
    assert all(list(curve) == powers(samples) for curve in table.values())
    for n in powers(samples):
        found = {method: curve[n][0] for method, curve in table.items()}
        voters = answers if any(map(any, answers)) else None
        assert found == pytest.approx(brute.best_of(right, voters, scores, n)), n
    others = {"majority vote", "reference log-probability"} & found.keys() if "PRM" in found else set()
    assert {name: mean for name, (mean, *_) in ahead.items()} == pytest.approx(
        {name: found["PRM"] - found[name] for name in others}
    )


def test_best_of__the_difference_is_item_by_item():
    """Two ways whose accuracies vary from item to item, one right wherever the other is and in one item more."""
    rng = np.random.default_rng(0)
    right = np.array(
        [[1.0, 0.0] if rng.random() < 0.5 else [0.0, 0.0] for _ in range(40)] + [[1.0, 0.0]] * 10
    )
    prm = np.tile([1.0, 0.0], (50, 1))
    reference = np.array([[1.0, 0.0]] * 40 + [[0.0, 1.0]] * 10)
    table, ahead = best_of(right, [[None, None]] * 50, {"PRM": prm, "reference log-probability": reference})
    mean, low, high = ahead["reference log-probability"]
    assert mean == pytest.approx(0.2)
    assert 0 < low < mean < high
    assert table["PRM"][2][1] < table["reference log-probability"][2][2], "their own intervals overlap"


def test_best_of__one_response_is_no_choice():
    right = np.array([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    scores = {"PRM": np.random.default_rng(0).normal(size=(2, 4))}
    table, _ = best_of(right, [["1", "2", "3", "4"]] * 2, scores)
    assert {row[1][0] for row in table.values()} == {0.25}


def test_powers__double_and_end_with_all():
    assert [powers(n) for n in (1, 3, 8, 12)] == [[1], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]]


# Rewards of lines


def response(lines: list[tuple[float, bool]]) -> dict:
    """A response whose lines have these rewards and verdicts, each line cut into two tokens and its end."""
    tokens, rewards = [], []
    for reward, _ in lines:
        tokens += ["+two", " four", "\n"]
        rewards += [reward - 0.75, 0.5, 0.25]
    tokens += ["####", " 4", "<|im_end|>"]
    rewards += [9.0, -7.0, 1.0]
    return {"tokens": tokens, "rewards": rewards, "steps": [verdict for _, verdict in lines] + [True]}


def auc(pairs: list[tuple[float, bool]]) -> float:
    return brute.roc_auc(*zip(*pairs, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_step_auc__counts_pairs_of_lines(seed: int):
    rng = random.Random(seed)
    lines = [
        [(rng.choice([-2.0, -0.5, 0.0, 0.5, 1.0]), rng.random() < 0.6) for _ in range(rng.randrange(1, 6))]
        for _ in range(12)
    ]
    rows = [{"responses": [response(a), response(b)]} for a, b in zip(lines[::2], lines[1::2], strict=True)]
    assert step_auc(rows) == pytest.approx(auc([pair for some in lines for pair in some]))


@pytest.mark.parametrize(
    "tokens",
    [
        ["+two four", "\n\n\n", "+one five", "\n", "#### 5"],
        ["+two four", "\n", "\n", "\n", "+one five", "\n", "#### 5"],
        ["+two", "\r", " four", "\n", "#### 4"],
        ["+two\x0bfour", "\n", "#### 4"],
        ["+two\u2028", "four", "\n", "#### 4"],
        ["+two four\n+one", " five\n#### 5"],
        ["\n"],
        [],
    ],
)
def test_step_auc__odd_line_ends_do_not_shift_the_rewards(tokens: list[str]):
    """A model may write anything. Lines are those that `check_steps` judges; a token belongs to the line
    that it begins in."""
    text, rewards = "".join(tokens), [0.5 * (-1) ** t * (t + 1) for t in range(len(tokens))]
    verdicts = check_steps("Start two\n+two = ?\n+one = ?", text)
    lines, before = [0.0] * len(verdicts), ""
    odd_ends = len(text.splitlines()) == len(verdicts)  # ends of lines are those of check_steps
    for token, reward in zip(tokens, rewards, strict=True):
        lines[len((before + "x").splitlines() if odd_ends else before.split("\n")) - 1] += reward
        before += token
    known = [(1.0, True), (-1.0, False), (0.0, True)]
    odd = {"tokens": tokens, "rewards": rewards, "steps": verdicts}
    pairs = [*zip(lines, verdicts, strict=True)][:-1] + known
    assert step_auc([{"responses": [odd, response(known)]}]) == pytest.approx(auc(pairs))
