"""Implicit process rewards against a slow reference, and what must hold of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openprime.prime.rewards import (
    gather_rewards,
    last_token,
    pairwise_accuracy,
    prefix_values,
    response_scores,
    reward_positions,
    scale_by_return,
    token_rewards,
)
from support import brute
from support.strategies import GRANULARITIES, Case, cases, property_test, widen

granularities = st.sampled_from(GRANULARITIES)


@property_test
@given(cases(), st.sampled_from([0.05, 0.5, 1.0]))
def test_token_rewards_are_beta_times_the_log_ratio(case: Case, beta: float):
    logprobs, reference = case.values("prm"), case.values("reference")
    ours = token_rewards(case.block(logprobs), case.block(reference), case.mask, beta)
    case.check(ours, brute.token_rewards(logprobs, reference, beta))


def test_a_model_like_its_reference_gives_no_reward():
    logprobs = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert (token_rewards(logprobs, logprobs.clone(), torch.ones(3, 5, dtype=torch.bool), 0.05) == 0).all()


def test_response_score_is_the_log_odds_of_being_right():
    """A response three times as likely under the PRM as under its reference: sigmoid(log 3) = 3/4."""
    mask = torch.tensor([[False, True, True]])
    prm = torch.tensor([[9.0, math.log(0.5), math.log(0.6)]])
    reference = torch.tensor([[7.0, math.log(0.25), math.log(0.4)]])
    score = response_scores(token_rewards(prm, reference, mask, beta=1.0))
    assert torch.sigmoid(score).item() == pytest.approx(0.75)
    assert torch.sigmoid(0.05 * score).item() == pytest.approx(1 / (1 + 3**-0.05))


@property_test
@given(cases())
def test_scores_and_prefix_values(case: Case):
    rewards = case.values("rewards")
    block = case.clean(rewards)
    scores, prefixes = response_scores(block), prefix_values(block)
    assert scores.tolist() == pytest.approx([brute.response_score(row) for row in rewards], abs=1e-4)
    wanted = [brute.prefix_values(row) for row in rewards]
    case.check(prefixes.where(case.mask, 0), wanted)
    for b, first in enumerate(case.prompts):
        assert (prefixes[b, :first] == 0).all(), "a prompt token has a value"
        last = first + case.lengths[b] - 1
        assert prefixes[b, last].item() == pytest.approx(scores[b].item(), abs=1e-4)


@property_test
@given(cases(), granularities)
def test_reward_positions(case: Case, granularity: str):
    ours = reward_positions(case.mask, case.step_end, granularity)
    wanted = case.positions([brute.positions(ends, granularity) for ends in case.ends])
    assert ours.dtype == torch.bool
    assert torch.equal(ours, wanted)


@property_test
@given(cases())
def test_last_token(case: Case):
    last = last_token(case.mask)
    assert last.sum(-1).tolist() == [1] * len(case)
    wanted = [first + length - 1 for first, length in zip(case.prompts, case.lengths, strict=True)]
    assert last.long().argmax(-1).tolist() == wanted


def test_last_token_of_an_empty_response_is_nowhere():
    mask = torch.tensor([[False, False, False], [False, True, False]])
    assert last_token(mask).tolist() == [[False, False, False], [False, True, False]]


@property_test
@given(cases(), granularities)
def test_gather_rewards(case: Case, granularity: str):
    rewards = case.values("rewards")
    stands = [brute.positions(ends, granularity) for ends in case.ends]
    ours = gather_rewards(case.clean(rewards), case.positions(stands))
    assert ours.dtype == torch.float32
    case.check(ours, [brute.gather(row, stand) for row, stand in zip(rewards, stands, strict=True)])


@property_test
@given(cases())
def test_the_total_is_the_same_for_every_granularity(case: Case):
    rewards = case.clean(case.values("rewards"))
    for granularity in GRANULARITIES:
        gathered = gather_rewards(rewards, reward_positions(case.mask, case.step_end, granularity))
        torch.testing.assert_close(response_scores(gathered), response_scores(rewards), rtol=1e-5, atol=1e-4)


def test_gather_by_hand():
    """Two prompt tokens, then steps of two, one and two tokens, then padding."""
    rewards = torch.tensor([[0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 0.0]])
    mask = torch.tensor([[False, False, True, True, True, True, True, False]])
    ends = torch.tensor([[False, True, False, True, True, False, False, True]])
    by_step = gather_rewards(rewards, reward_positions(mask, ends, "step"))
    assert by_step.tolist() == [[0.0, 0.0, 0.0, 3.0, 4.0, 0.0, 24.0, 0.0]]
    by_response = gather_rewards(rewards, reward_positions(mask, ends, "response"))
    assert by_response.tolist() == [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 31.0, 0.0]]
    assert gather_rewards(rewards, reward_positions(mask, ends, "token")).tolist() == rewards.tolist()


def test_token_granularity_leaves_long_responses_as_they_are():
    """3,072 tokens of a small reward on top of a large one: running totals must not eat the small ones."""
    rewards = torch.full((1, 3072), 1e-4)
    rewards[0, 0] = 1e4
    gathered = gather_rewards(rewards, torch.ones(1, 3072, dtype=torch.bool))
    torch.testing.assert_close(gathered, rewards, rtol=1e-5, atol=0)


@property_test
@given(cases(), granularities, st.integers(0, 3), st.integers(0, 3))
def test_gather_does_not_see_row_order_or_columns(case: Case, granularity: str, left: int, right: int):
    rewards = case.clean(case.values("rewards"))
    stands = reward_positions(case.mask, case.step_end, granularity)
    gathered = gather_rewards(rewards, stands)

    order = torch.randperm(len(case), generator=torch.Generator().manual_seed(case.seed))
    assert torch.equal(gather_rewards(rewards[order], stands[order]), gathered[order])

    mask, ends = widen(case.mask, left, right, False), widen(case.step_end, left, right, True)
    wide = gather_rewards(widen(rewards, left, right, 0.0), reward_positions(mask, ends, granularity))
    assert torch.equal(wide, widen(gathered, left, right, 0.0))


@property_test
@given(cases(), st.sampled_from([0.0, 0.9, 1.0]))
def test_scale_by_return(case: Case, gamma: float):
    rewards = case.values("rewards")
    largest = brute.largest_return(rewards, gamma)
    wanted = brute.scale_by_return(rewards, gamma)
    case.check(scale_by_return(case.clean(rewards), largest), wanted)
    case.check(scale_by_return(case.clean(rewards), torch.tensor(largest)), wanted)
    assert brute.largest_return(wanted, gamma) == pytest.approx(1.0, abs=2e-3) or largest < 1e-3


def test_scaling_a_batch_without_rewards_gives_zero():
    assert (scale_by_return(torch.zeros(2, 3), 0.0) == 0).all()


@property_test
@given(cases())
def test_pairwise_accuracy(case: Case):
    scores = case.scores()
    won, pairs = pairwise_accuracy(torch.tensor(scores), case.outcome_tensor, case.group_tensor)
    assert (won.item(), pairs.item()) == brute.pairwise_accuracy(scores, case.outcomes, case.group)


@property_test
@given(cases())
def test_pairwise_accuracy_adds_up_over_groups(case: Case):
    scores, outcomes, group = torch.tensor(case.scores()), case.outcome_tensor, case.group_tensor
    parts = [
        pairwise_accuracy(scores[group == g], outcomes[group == g], group[group == g]) for g in group.unique()
    ]
    won, pairs = pairwise_accuracy(scores, outcomes, group)
    assert won == sum(part[0] for part in parts)
    assert pairs == sum(part[1] for part in parts)


@pytest.mark.parametrize(
    ("scores", "won"),
    [([2.0, 1.0, -1.0], 2.0), ([0.0, 1.0, -1.0], 1.0), ([1.0, 1.0, 0.0], 1.5), ([0.0, 0.0, 0.0], 1.0)],
)
def test_pairwise_accuracy_by_hand(scores: list[float], won: float):
    """One right response against two wrong ones; the response to another prompt does not count."""
    outcomes = torch.tensor([1.0, 0.0, 0.0, 0.0])
    result = pairwise_accuracy(torch.tensor([*scores, 5.0]), outcomes, torch.tensor([0, 0, 0, 1]))
    assert [part.item() for part in result] == [won, 2]


def test_pairwise_accuracy_of_equal_outcomes_counts_no_pair():
    won, pairs = pairwise_accuracy(torch.tensor([1.0, 2.0]), torch.ones(2), torch.zeros(2, dtype=torch.long))
    assert (won.item(), pairs.item()) == (0.0, 0)


def test_token_rewards_off_the_mask_are_zero_whatever_stands_there():
    infinite = torch.tensor([[-1.0, float("-inf")]])
    rewards = token_rewards(infinite, infinite, torch.tensor([[True, False]]), 0.05)
    assert rewards.tolist() == [[0.0, 0.0]]
