"""Baselines, returns and whitening against a slow reference, and what must hold of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from openprime.prime.advantages import (
    Centring,
    centre,
    combine,
    moments,
    outcome_rewards,
    returns_to_go,
    skill_gate,
    whiten,
)
from openprime.prime.rewards import (
    gather_rewards,
    last_token,
    reward_positions,
    scale_by_return,
    token_rewards,
)
from support import brute
from support.strategies import ESTIMATORS, GRANULARITIES, Case, cases, property_test, widen

granularities = st.sampled_from(GRANULARITIES)
estimators = st.sampled_from(ESTIMATORS)
gammas = st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0])


def one_group(*outcomes: float) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, positions and group ids of responses of one token each to one prompt."""
    rewards = torch.tensor(outcomes)[:, None]
    return rewards, torch.ones_like(rewards, dtype=torch.bool), torch.zeros(len(outcomes), dtype=torch.long)


@pytest.mark.parametrize(("accuracy", "left"), [(0.0, 0.0), (0.5, 0.0), (0.6, 0.2), (0.75, 0.5), (1.0, 1.0)])
def test_the_skill_gate_is_shut_at_chance_and_open_at_perfection(accuracy: float, left: float):
    assert skill_gate(accuracy) == pytest.approx(left)


# Returns to go


@property_test
@given(cases(), gammas)
def test_returns_to_go(case: Case, gamma: float):
    rewards = case.values("rewards")
    ours = returns_to_go(case.block(rewards), case.mask, gamma)
    assert ours.dtype == torch.float32
    case.check(ours, [brute.returns_to_go(row, gamma) for row in rewards])


def test_returns_to_go_by_hand():
    mask = torch.tensor([[False, True, True, True, False]])
    rewards = torch.tensor([[9.0, 1.0, 2.0, 4.0, 9.0]])
    assert returns_to_go(rewards, mask, 0.5).tolist() == [[0.0, 3.0, 4.0, 4.0, 0.0]]
    assert returns_to_go(rewards, mask, 1.0).tolist() == [[0.0, 7.0, 6.0, 4.0, 0.0]]
    assert returns_to_go(rewards, mask, 0.0).tolist() == [[0.0, 1.0, 2.0, 4.0, 0.0]]


@property_test
@given(cases(), gammas)
def test_returns_obey_the_recursion(case: Case, gamma: float):
    """G_t = c_t + gamma G_{t+1}."""
    rewards = case.clean(case.values("rewards"))
    returns = returns_to_go(rewards, case.mask, gamma)
    following = widen(returns, 0, 1, 0.0)[:, 1:]
    torch.testing.assert_close(returns, ((rewards + gamma * following) * case.mask), rtol=1e-5, atol=1e-4)


def test_returns_of_long_responses_keep_small_rewards():
    rewards = torch.full((1, 3072), 1e-4)
    rewards[0, -1] = 1e4
    mask = torch.ones(1, 3072, dtype=torch.bool)
    for gamma in (1.0, 1 - 1e-9):
        first = returns_to_go(rewards, mask, gamma)[0, 0].item()
        assert first == pytest.approx(gamma**3071 * 1e4 + 0.3071, rel=1e-6)


# Baselines


@property_test
@given(cases(), estimators, granularities)
def test_centre(case: Case, estimator: tuple[str, str], granularity: str):
    stands = [brute.positions(ends, granularity) for ends in case.ends]
    rewards = [brute.gather(row, stand) for row, stand in zip(case.values("rewards"), stands, strict=True)]
    ours = centre(case.block(rewards), case.positions(stands), case.group_tensor, Centring(*estimator))
    assert ours.dtype == torch.float32
    assert (ours[~case.positions(stands)] == 0).all()
    case.check(ours, brute.CENTRE[estimator](rewards, stands, case.group))


@property_test
@given(cases(), estimators)
def test_centre_of_outcomes(case: Case, estimator: tuple[str, str]):
    placed = outcome_rewards(case.outcome_tensor, case.mask)
    wanted = brute.outcome_rewards(case.outcomes, case.lengths)
    case.check(placed, wanted)
    stands = [brute.positions(ends, "response") for ends in case.ends]
    ours = centre(placed, last_token(case.mask), case.group_tensor, Centring(*estimator))
    case.check(ours, brute.CENTRE[estimator](wanted, stands, case.group))


@property_test
@given(cases(), st.sampled_from(["exact", "released"]))
def test_rloo_of_outcomes_sums_to_zero_over_a_group(case: Case, preset: str):
    placed = outcome_rewards(case.outcome_tensor, case.mask)
    centred = centre(placed, last_token(case.mask), case.group_tensor, Centring("rloo", preset)).sum(-1)
    for g in set(case.group):
        assert centred[case.group_tensor == g].sum().item() == pytest.approx(0.0, abs=1e-5)


@property_test
@given(cases(), granularities)
def test_rloo_means_sum_to_zero_over_a_group(case: Case, granularity: str):
    """The mean centred reward of response i is m_i less the others' mean, so the group's sum is 0."""
    stands = reward_positions(case.mask, case.step_end, granularity)
    rewards = gather_rewards(case.clean(case.values("rewards")), stands)
    centred = centre(rewards, stands, case.group_tensor, Centring())
    means = centred.sum(-1) / stands.sum(-1)
    for g in set(case.group):
        assert means[case.group_tensor == g].sum().item() == pytest.approx(0.0, abs=1e-3)


def test_rloo_by_hand():
    """Four responses, one right: 1 - 0 = 1 and three times 0 - 1/3."""
    ours = centre(*one_group(1.0, 0.0, 0.0, 0.0), Centring()).flatten()
    torch.testing.assert_close(ours, torch.tensor([1.0, -1 / 3, -1 / 3, -1 / 3]))


def test_rloo_of_process_rewards_by_hand():
    """Means 2 and 5: each token of one response is compared with the mean of the other."""
    rewards = torch.tensor([[1.0, 3.0, 0.0], [4.0, 5.0, 6.0]])
    stands = torch.tensor([[True, True, False], [True, True, True]])
    group = torch.zeros(2, dtype=torch.long)
    exact = centre(rewards, stands, group, Centring("rloo", "exact"))
    assert exact.tolist() == [[-4.0, -2.0, 0.0], [2.0, 3.0, 4.0]]
    released = centre(rewards, stands, group, Centring("rloo", "released"))
    assert released.tolist() == [[-5.0, -1.0, 0.0], [1.0, 3.0, 5.0]]


def test_grpo_by_hand():
    """1, 0, 0, 0: mean 1/4, standard deviation 1/2 with Bessel's correction."""
    ours = centre(*one_group(1.0, 0.0, 0.0, 0.0), Centring("grpo")).flatten()
    torch.testing.assert_close(ours, torch.tensor([1.5, -0.5, -0.5, -0.5]), rtol=1e-5, atol=0)


@property_test
@given(cases(), granularities)
def test_grpo_has_mean_zero_and_variance_one_in_every_group(case: Case, granularity: str):
    stands = reward_positions(case.mask, case.step_end, granularity)
    rewards = gather_rewards(case.clean(case.values("rewards")), stands)
    centred = centre(rewards, stands, case.group_tensor, Centring("grpo"))
    for g in set(case.group):
        rows = case.group_tensor == g
        inside, raw = centred[rows][stands[rows]], rewards[rows][stands[rows]]
        assert inside.mean().item() == pytest.approx(0.0, abs=1e-4)
        if raw.std() > 0.01:
            assert inside.std().item() == pytest.approx(1.0, abs=1e-3)


@property_test
@given(cases())
def test_a_constant_added_to_a_group_changes_nothing(case: Case):
    """Baselines remove whatever all the responses to a prompt share."""
    rewards = case.clean(case.values("rewards"))
    shift = torch.tensor([3.0, -2.0, 0.5, 8.0])[case.group_tensor][:, None]
    for estimator, preset in ESTIMATORS[:3]:
        how = Centring(estimator, preset)
        plain = centre(rewards, case.mask, case.group_tensor, how)
        shifted = centre(rewards + shift, case.mask, case.group_tensor, how)
        if estimator == "grpo" and plain.abs().max() < 1e-3:
            continue
        torch.testing.assert_close(shifted, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("preset", ["exact", "released"])
@pytest.mark.parametrize("group", [[0], [0, 0, 1], [2, 2, 0]])
def test_rloo_refuses_a_group_of_one(preset: str, group: list[int]):
    rewards = torch.ones(len(group), 2)
    with pytest.raises(ValueError, match="two or more"):
        centre(rewards, rewards.bool(), torch.tensor(group), Centring("rloo", preset))


def test_group_numbers_may_have_gaps():
    rewards, stands, group = one_group(1.0, 0.0, 0.5)
    for estimator, preset in ESTIMATORS:
        how = Centring(estimator, preset)
        assert torch.equal(centre(rewards, stands, group + 7, how), centre(rewards, stands, group, how))


def test_a_group_of_one_under_the_other_estimators():
    rewards, stands, group = one_group(0.75)
    assert centre(rewards, stands, group, Centring("reinforce")).item() == 0.75
    assert centre(rewards, stands, group, Centring("grpo")).item() == 0.0


def test_the_default_is_the_exact_leave_one_out():
    assert Centring() == Centring("rloo", "exact")


# Combination and whitening


@property_test
@given(cases(), st.sampled_from([0.0, 1.0, 5.0]), st.sampled_from([0.0, 1.0, 2.5]))
def test_combine(case: Case, process_weight: float, outcome_weight: float):
    process, outcome = case.values("process"), case.values("outcome")
    ours = combine(case.clean(process), case.clean(outcome), process_weight, outcome_weight)
    case.check(ours, brute.combine(process, outcome, process_weight, outcome_weight))


@property_test
@given(cases(), st.sampled_from([0.01, 1.0, 100.0]))
def test_whiten(case: Case, scale: float):
    values = case.values("values", scale)
    block = case.block(values)
    ours = whiten(block, case.mask, moments(block, case.mask))
    assert ours.dtype == torch.float32
    case.check(ours, brute.whiten(values), 1e-4)


@property_test
@given(cases())
def test_whitened_advantages_have_mean_zero_and_variance_one(case: Case):
    block = case.block(case.values("values"))
    inside = whiten(block, case.mask, moments(block, case.mask))[case.mask]
    assert inside.mean().item() == pytest.approx(0.0, abs=1e-5)
    if block[case.mask].var(correction=0) > 1e-3:
        assert inside.var(correction=0).item() == pytest.approx(1.0, abs=1e-4)


def test_whitening_equal_advantages_gives_zero():
    values, mask = torch.full((3, 4), 0.7), torch.ones(3, 4, dtype=torch.bool)
    assert whiten(values, mask, moments(values, mask)).abs().max() < 1e-6


def test_whitening_survives_a_large_common_offset():
    """Variance as mean square less squared mean: only float64 holds 1e4 + {0, 1}."""
    values, mask = 1e4 + torch.tensor([[0.0, 1.0, 0.0, 1.0]]), torch.ones(1, 4, dtype=torch.bool)
    ours = whiten(values, mask, moments(values, mask))
    torch.testing.assert_close(ours, torch.tensor([[-1.0, 1.0, -1.0, 1.0]]), rtol=1e-5, atol=1e-5)


@property_test
@given(cases())
def test_moments_are_count_sum_and_squares(case: Case):
    values = case.values("values")
    tokens = [value for row in values for value in row]
    ours = moments(case.block(values), case.mask)
    assert ours.dtype == torch.float64
    wanted = [len(tokens), math.fsum(tokens), math.fsum(value**2 for value in tokens)]
    assert ours.tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-9)


# All of it


def advantages(
    prm: Tensor,
    reference: Tensor,
    outcome: Tensor,
    mask: Tensor,
    step_end: Tensor,
    group: Tensor,
    how: Centring,
    granularity: str,
    gamma: float,
) -> Tensor:
    """The whole way from log-probabilities to whitened advantages, on one process."""
    stands = reward_positions(mask, step_end, granularity)
    rewards = gather_rewards(token_rewards(prm, reference, mask, 0.05), stands)
    rewards = scale_by_return(rewards, returns_to_go(rewards, mask, gamma).abs().max())
    process = returns_to_go(centre(rewards, stands, group, how), mask, gamma)
    placed = outcome_rewards(outcome, mask)
    outcomes = returns_to_go(centre(placed, last_token(mask), group, how), mask, 1.0)
    combined = combine(process, outcomes, 1.0, 2.0)
    return whiten(combined, mask, moments(combined, mask))


@property_test
@given(cases(), estimators, granularities, gammas)
def test_advantages_from_log_probabilities(
    case: Case, estimator: tuple[str, str], granularity: str, gamma: float
):
    prm, reference = case.values("prm"), case.values("reference")
    stands = [brute.positions(ends, granularity) for ends in case.ends]
    rewards = brute.token_rewards(prm, reference, 0.05)
    rewards = [brute.gather(row, stand) for row, stand in zip(rewards, stands, strict=True)]
    rewards = brute.scale_by_return(rewards, gamma)
    process = brute.CENTRE[estimator](rewards, stands, case.group)
    last = [brute.positions(ends, "response") for ends in case.ends]
    outcome = brute.outcome_rewards(case.outcomes, case.lengths)
    outcome = brute.CENTRE[estimator](outcome, last, case.group)
    wanted = brute.whiten(
        brute.combine(
            [brute.returns_to_go(row, gamma) for row in process],
            [brute.returns_to_go(row, 1.0) for row in outcome],
            1.0,
            2.0,
        )
    )
    ours = advantages(
        case.block(prm),
        case.block(reference),
        case.outcome_tensor,
        case.mask,
        case.step_end,
        case.group_tensor,
        Centring(*estimator),
        granularity,
        gamma,
    )
    case.check(ours, wanted, 1e-3)


@property_test
@given(cases(), estimators, granularities, st.integers(0, 3), st.integers(0, 3))
def test_advantages_do_not_see_row_order_or_columns(
    case: Case, estimator: tuple[str, str], granularity: str, left: int, right: int
):
    blocks = [case.block(case.values("prm")), case.block(case.values("reference"))]
    how = Centring(*estimator)

    def run(rows: Tensor, left: int, right: int) -> Tensor:
        prm, reference = (widen(block[rows], left, right, 1e3) for block in blocks)
        mask = widen(case.mask[rows], left, right, False)
        ends = widen(case.step_end[rows], left, right, True)
        outcome, group = case.outcome_tensor[rows], case.group_tensor[rows]
        return advantages(prm, reference, outcome, mask, ends, group, how, granularity, 0.9)

    rows = torch.arange(len(case))
    plain = run(rows, 0, 0)
    order = torch.randperm(len(case), generator=torch.Generator().manual_seed(case.seed))
    torch.testing.assert_close(run(order, 0, 0), plain[order], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(run(rows, left, right), widen(plain, left, right, 0.0), rtol=1e-3, atol=1e-3)


@property_test
@given(cases())
def test_groups_do_not_touch_each_other(case: Case):
    """The centred rewards of a group are the same with and without the other groups in the batch."""
    rewards = case.clean(case.values("rewards"))
    for estimator, preset in ESTIMATORS:
        how = Centring(estimator, preset)
        together = centre(rewards, case.mask, case.group_tensor, how)
        for g in set(case.group):
            rows = case.group_tensor == g
            alone = centre(
                rewards[rows], case.mask[rows], torch.zeros(int(rows.sum()), dtype=torch.long), how
            )
            torch.testing.assert_close(together[rows], alone, rtol=1e-5, atol=1e-5)
