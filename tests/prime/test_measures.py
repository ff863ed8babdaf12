"""What alarms look at, by hand and against loops."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from openprime.data.collate import collate
from openprime.prime.measures import answer_of, paid_metrics, process_metrics, rank_correlation, repetition
from openprime.types import Batch, Group, Prompt, Response


def response(text: str, outcome: float | None, tokens: tuple[int, ...] = (1, 2)) -> Response:
    return Response(tokens, (0.0,) * len(tokens), text, False, outcome)


def group(answer: str | None, *responses: Response) -> Group:
    return Group(Prompt("p", (1, 2, 3), "?", answer), responses, 0)


@pytest.mark.parametrize(
    ("tokens", "share"),
    [
        ((), 0),
        ((1, 2, 3), 0),
        ((1, 2, 3, 4), 0),
        ((7, 7, 7, 7, 7), 1 / 2),  # 7777 twice
        ((1, 2, 3, 4, 1, 2, 3, 4), 1 / 5),  # 1234 2341 3412 4123 1234
        ((1, 2) * 50, 95 / 97),
    ],
)
def test_repetition__is_the_share_of_runs_that_came_before(tokens: tuple[int, ...], share: float):
    assert repetition(tokens) == pytest.approx(share)


def test_rank_correlation__is_kendalls_tau_over_pairs_of_one_cell():
    torch.manual_seed(0)
    cell = torch.randint(0, 5, (40,))
    x, y = torch.randn(40), torch.randint(0, 6, (40,))
    signs = [
        float(torch.sign(x[i] - x[j]) * torch.sign((y[i] - y[j]).float()))
        for i, j in combinations(range(40), 2)
        if cell[i] == cell[j]
    ]
    assert rank_correlation(x, y, cell) == pytest.approx(sum(signs) / len(signs))
    assert rank_correlation(x, x.exp(), cell) == 1
    assert rank_correlation(x, -x, cell) == -1
    assert math.isnan(rank_correlation(x, x, torch.arange(40)))


def test_rank_correlation__of_nearly_equal_lengths_is_small():
    """One response in ten that is longer and has the largest return: Pearson's would be 1."""
    odd = torch.tensor([0.0] * 9 + [1.0])
    assert rank_correlation(odd, odd, torch.zeros(10)) == pytest.approx(9 / 45)


def rewarded(groups: list[Group], rewards: list[float]) -> Batch:
    """A batch in which each response's reward stands on its last token."""
    batch = collate(groups, frozenset(), 0)
    placed = torch.zeros_like(batch.logprobs)
    placed[torch.arange(len(batch)), batch.lengths - 1] = torch.tensor(rewards)
    return replace(batch, rewards=placed)


def test_process_metrics__correlate_what_is_alike_right_or_wrong():
    """Right responses are short and have the larger returns; of those alike the longer, which loop, have them."""
    loop, plain = (5,) * 12, (1, 2, 3, 4, 5, 6, 7, 8)
    groups = [
        group(
            "1",
            response("a", 1.0, plain[:4]),
            response("b", 1.0, plain[:6]),
            response("c", 0.0, plain),
            response("d", 0.0, loop),
        ),
        group("2", response("a", 1.0, plain[:4]), response("d", 0.0, loop), response("c", 0.0, plain)),
    ]
    metrics = process_metrics(rewarded(groups, [2.0, 3.0, -2.0, -1.0, 2.0, 0.0, -4.0]))
    assert metrics["reward/process"] == 0
    assert metrics["reward/process_std"] == pytest.approx(math.sqrt((4 + 9 + 4 + 1 + 4 + 0 + 16) / 7))
    assert metrics["reward/pairs"] == 2 * 2 + 1 * 2
    assert metrics["reward/length_correlation"] == 1
    assert metrics["reward/repetition_correlation"] == pytest.approx(2 / 3), "two right ones do not repeat"


def test_process_metrics__without_process_rewards_are_none():
    batch = collate([group("1", response("a", 1.0), response("b", 0.0))], frozenset(), 0)
    assert process_metrics(batch) == {}
    assert process_metrics(rewarded([group("1", response("a", 1.0))], [0.0])) == {}


def test_paid_metrics__are_shares_of_the_right_responses():
    groups = [
        group("3", response(r"so \boxed{7}", 1.0), response(" \n", 1.0), response("#### 3", 1.0)),
        group(
            "work #### 4", response(r"or \boxed{7}", 1.0), response("#### 4", 1.0), response("#### 3", 0.0)
        ),
        group("4", response("", 0.0), response("#### 4", None)),
    ]
    assert paid_metrics(groups) == {"verify/paid_empty": 1 / 5, "verify/paid_constant": 2 / 5}


def test_paid_metrics__one_answer_to_prompts_of_one_reference_is_sound():
    same = [group(f"because {i} #### 4", response("#### 4", 1.0)) for i in range(3)]
    unknown = [group(None, response("yes", 1.0)) for _ in range(3)]
    assert paid_metrics(same + unknown) == {"verify/paid_empty": 0, "verify/paid_constant": 0}
    assert paid_metrics([group("1", response("", 0.0))]) == {}


def test_answer_of__begins_at_the_last_mark():
    assert answer_of(r"\boxed{1} then \boxed{2}. ") == r"\boxed{2}."
    assert answer_of("#### 1\n#### 2\n") == "#### 2"
    assert answer_of(" no mark ") == "no mark"
