"""Implicit process rewards against a slow reference, and what must hold of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openprime.prime.rewards import (
    better_pairs,
    gather_rewards,
    last_token,
    pairwise_accuracy,
    prefix_values,
    response_scores,
    reward_positions,
    scale_by_return,
    token_rewards,
    with_group_outcome,
)
from support import brute
from support.strategies import GRANULARITIES, Case, cases, property_test


@property_test
@given(cases(), st.sampled_from([0.05, 0.5, 1.0]))
def test_token_rewards__are_beta_times_the_log_ratio(case: Case, beta: float):
    logprobs, reference = case.values("prm"), case.values("reference")
    ours = token_rewards(case.block(logprobs), case.block(reference), case.mask, beta)
    case.check(ours, brute.token_rewards(logprobs, reference, beta))


def test_token_rewards__are_zero_off_the_mask_whatever_stands_there():
    infinite = torch.tensor([[-1.0, float("-inf")]])
    rewards = token_rewards(infinite, infinite, torch.tensor([[True, False]]), 0.05)
    assert rewards.tolist() == [[0.0, 0.0]]


@property_test
@given(cases())
def test_response_scores__and_prefix_values_are_sums(case: Case):
    rewards = case.values("rewards")
    block = case.clean(rewards)
    scores, prefixes = response_scores(block), prefix_values(block)
    assert scores.tolist() == pytest.approx([brute.response_score(row) for row in rewards], abs=1e-4)
    case.check(prefixes.where(case.mask, 0), [brute.prefix_values(row) for row in rewards])
    for b, first in enumerate(case.prompts):
        assert (prefixes[b, :first] == 0).all(), "a prompt token has a value"
        last = first + case.lengths[b] - 1
        assert prefixes[b, last].item() == pytest.approx(scores[b].item(), abs=1e-4)


@property_test
@given(cases())
def test_response_scores__and_prefix_values_over_a_mask_are_means(case: Case):
    """The last prefix is the whole response."""
    rewards = case.values("rewards")
    block = case.clean(rewards)
    scores, prefixes = response_scores(block, case.mask), prefix_values(block, case.mask)
    expected = [brute.mean_prefix_values(row) for row in rewards]
    case.check(prefixes.where(case.mask, 0), expected)
    assert scores.tolist() == pytest.approx([row[-1] for row in expected], abs=1e-4)
    assert bool(prefixes.isfinite().all())


@property_test
@given(cases())
def test_with_group_outcome__is_the_mean_of_the_whole_group(case: Case):
    """A part of the batch has it from the whole."""
    batch = with_group_outcome(case.batch())
    expected = brute.group_outcomes(case.outcomes, case.group)
    assert batch.group_outcome.tolist() == pytest.approx(expected, abs=1e-6)
    part = batch.select(torch.arange(0, len(case), 2))
    assert part.group_outcome.tolist() == pytest.approx(expected[::2], abs=1e-6)


def test_response_scores__are_the_log_odds_of_being_right():
    """A response three times as likely under the PRM as under its reference: sigmoid(log 3) = 3/4."""
    mask = torch.tensor([[False, True, True]])
    prm = torch.tensor([[9.0, math.log(0.5), math.log(0.6)]])
    reference = torch.tensor([[7.0, math.log(0.25), math.log(0.4)]])
    score = response_scores(token_rewards(prm, reference, mask, beta=1.0))
    assert torch.sigmoid(score).item() == pytest.approx(0.75)
    assert torch.sigmoid(0.05 * score).item() == pytest.approx(1 / (1 + 3**-0.05))


@property_test
@given(cases(), st.sampled_from(GRANULARITIES))
def test_gather_rewards__pays_every_stretch_where_it_ends(case: Case, granularity: str):
    """The total of a response is the same for every granularity (trap 5)."""
    stands = [brute.positions(ends, granularity) for ends in case.ends]
    found = reward_positions(case.mask, case.step_end, granularity)
    assert found.dtype == torch.bool
    assert torch.equal(found, case.positions(stands))
    rewards = case.values("rewards")
    ours = gather_rewards(case.clean(rewards), found)
    assert ours.dtype == torch.float32
    case.check(ours, [brute.gather(row, stand) for row, stand in zip(rewards, stands, strict=True)])
    torch.testing.assert_close(
        response_scores(ours), response_scores(case.clean(rewards)), rtol=1e-5, atol=1e-4
    )


def test_gather_rewards__by_hand():
    """Two prompt tokens, then steps of two, one and two tokens, then padding."""
    rewards = torch.tensor([[0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 0.0]])
    mask = torch.tensor([[False, False, True, True, True, True, True, False]])
    ends = torch.tensor([[False, True, False, True, True, False, False, True]])
    for granularity, expected in (
        ("token", rewards.tolist()),
        ("step", [[0.0, 0.0, 0.0, 3.0, 4.0, 0.0, 24.0, 0.0]]),
        ("response", [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 31.0, 0.0]]),
    ):
        assert gather_rewards(rewards, reward_positions(mask, ends, granularity)).tolist() == expected


def test_gather_rewards__keeps_small_rewards_of_long_responses():
    """3,072 tokens of a small reward on top of a large one: running totals must not eat the small ones."""
    rewards = torch.full((1, 3072), 1e-4)
    rewards[0, 0] = 1e4
    gathered = gather_rewards(rewards, torch.ones(1, 3072, dtype=torch.bool))
    torch.testing.assert_close(gathered, rewards, rtol=1e-5, atol=0)


def test_last_token__of_an_empty_response_is_nowhere():
    mask = torch.tensor([[False, False, False], [False, True, False], [True, True, False]])
    assert last_token(mask).tolist() == [[False] * 3, [False, True, False], [False, True, False]]


@property_test
@given(cases(), st.sampled_from([0.0, 0.9, 1.0]))
def test_scale_by_return__divides_by_the_largest_return(case: Case, gamma: float):
    rewards = case.values("rewards")
    largest, wanted = brute.largest_return(rewards, gamma), brute.scale_by_return(rewards, gamma)
    for given_as in (largest, torch.tensor(largest)):
        case.check(scale_by_return(case.clean(rewards), given_as), wanted)
    assert brute.largest_return(wanted, gamma) == pytest.approx(1.0, abs=2e-3) or largest < 1e-3


def test_scale_by_return__of_a_batch_without_rewards_is_zero():
    assert (scale_by_return(torch.zeros(2, 3), 0.0) == 0).all()


@property_test
@given(cases())
def test_pairwise_accuracy__counts_every_pair(case: Case):
    scores, pairs = case.scores(), brute.better_pairs(case.outcomes, case.group)
    better = better_pairs(case.outcome_tensor, case.group_tensor)
    assert sorted(map(tuple, better.nonzero().tolist())) == sorted(pairs)
    won, count = pairwise_accuracy(torch.tensor(scores), case.outcome_tensor, case.group_tensor)
    assert (won.item(), count.item()) == brute.pairwise_accuracy(scores, case.outcomes, case.group)


@pytest.mark.parametrize(
    ("scores", "outcomes", "expected"),
    [
        ([2.0, 1.0, -1.0], [1.0, 0.0, 0.0], [2.0, 2]),
        ([0.0, 1.0, -1.0], [1.0, 0.0, 0.0], [1.0, 2]),
        ([1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.5, 2]),
        ([0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 2]),
        ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [0.0, 0]),
    ],
)
def test_pairwise_accuracy__by_hand(scores: list[float], outcomes: list[float], expected: list[float]):
    """One right response against two wrong ones, or none wrong; the response to another prompt does not count."""
    found = pairwise_accuracy(
        torch.tensor([*scores, 5.0]), torch.tensor([*outcomes, 0.0]), torch.tensor([0, 0, 0, 1])
    )
    assert [part.item() for part in found] == expected
