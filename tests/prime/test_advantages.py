"""Baselines, returns, whitening and all of equation 5 against a slow reference, and what must hold of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from openprime.config import AdvantageConfig, OutcomeAdvantageConfig
from openprime.prime.advantages import (
    Centring,
    centre,
    moments,
    returns_to_go,
    skill_gate,
    split_of_variance,
    whiten,
    with_advantages,
)
from openprime.prime.rewards import gather_rewards, reward_positions
from support import brute
from support.strategies import ESTIMATORS, GRANULARITIES, Case, cases, property_test

granularities = st.sampled_from(GRANULARITIES)
estimators = st.sampled_from(ESTIMATORS)
gammas = st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0])
weights = st.sampled_from([(1.0, 1.0), (0.3, 2.0), (0.0, 1.0), (5.0, 0.0)])


@pytest.mark.parametrize(("accuracy", "left"), [(0.0, 0.0), (0.5, 0.0), (0.6, 0.2), (0.75, 0.5), (1.0, 1.0)])
def test_skill_gate__is_shut_at_chance_and_open_at_perfection(accuracy: float, left: float):
    assert skill_gate(accuracy) == pytest.approx(left)


@pytest.mark.parametrize(
    ("process", "outcome", "expected"),
    [
        ([1, -1, 1, -1], [1, 1, -1, -1], (0.5, 0.5, 0.0)),  # of one size, and nothing to do with each other
        ([2, 0, 2, 0], [1, -1, 1, -1], (0.5, 0.5, 1.0)),  # the same but for a constant
        ([1, -1, 1, -1], [3, -3, 3, -3], (0.25, 0.75, 1.0)),
        ([-1, 1, -1, 1], [3, -3, 3, -3], (-0.5, 1.5, -1.0)),  # against each other: of the sum 2, -1 and 3
        ([0, 0, 0, 0], [1, -1, 1, -1], (0.0, 1.0, math.nan)),
    ],
)
def test_split_of_variance__by_hand(process: list, outcome: list, expected: tuple):
    found = split_of_variance(torch.tensor(process).float(), torch.tensor(outcome).float())
    names = ("process_share", "outcome_share", "correlation")
    assert [found[f"advantage/{name}"] for name in names] == pytest.approx(expected, nan_ok=True)


# Returns to go


@property_test
@given(cases(), gammas)
def test_returns_to_go__are_discounted_sums(case: Case, gamma: float):
    rewards = case.values("rewards")
    ours = returns_to_go(case.block(rewards), case.mask, gamma)
    assert ours.dtype == torch.float32
    case.check(ours, [brute.returns_to_go(row, gamma) for row in rewards])


def test_returns_to_go__by_hand():
    mask = torch.tensor([[False, True, True, True, False]])
    rewards = torch.tensor([[9.0, 1.0, 2.0, 4.0, 9.0]])
    assert returns_to_go(rewards, mask, 0.5).tolist() == [[0.0, 3.0, 4.0, 4.0, 0.0]]
    assert returns_to_go(rewards, mask, 1.0).tolist() == [[0.0, 7.0, 6.0, 4.0, 0.0]]
    assert returns_to_go(rewards, mask, 0.0).tolist() == [[0.0, 1.0, 2.0, 4.0, 0.0]]


@pytest.mark.parametrize("gamma", [1.0, 1 - 1e-9])
def test_returns_to_go__keep_small_rewards_of_long_responses(gamma: float):
    rewards = torch.full((1, 3072), 1e-4)
    rewards[0, -1] = 1e4
    first = returns_to_go(rewards, torch.ones(1, 3072, dtype=torch.bool), gamma)[0, 0].item()
    assert first == pytest.approx(gamma**3071 * 1e4 + 0.3071, rel=1e-6)


# Baselines


@property_test
@given(cases(), estimators, granularities)
def test_centre__equals_the_loops(case: Case, estimator: tuple[str, str], granularity: str):
    stands = [brute.positions(ends, granularity) for ends in case.ends]
    rewards = [brute.gather(row, stand) for row, stand in zip(case.values("rewards"), stands, strict=True)]
    ours = centre(case.block(rewards), case.positions(stands), case.group_tensor, Centring(*estimator))
    assert ours.dtype == torch.float32
    assert (ours[~case.positions(stands)] == 0).all()
    case.check(ours, brute.CENTRE[estimator](rewards, stands, case.group))


EXACT, RELEASED, GRPO = Centring("rloo", "exact"), Centring("rloo", "released"), Centring("grpo")


@pytest.mark.parametrize(
    ("how", "rewards", "expected"),
    [
        # One right of four: 1 - 0 = 1 and three times 0 - 1/3; for grpo mean 1/4, standard deviation 1/2.
        (Centring(), [[1], [0], [0], [0]], [[1], [-1 / 3], [-1 / 3], [-1 / 3]]),
        (GRPO, [[1], [0], [0], [0]], [[1.5], [-0.5], [-0.5], [-0.5]]),
        # Means 2 and 5: each token of one response is compared with the mean of the other.
        (EXACT, [[1, 3], [4, 5, 6]], [[-4, -2], [2, 3, 4]]),
        (RELEASED, [[1, 3], [4, 5, 6]], [[-5, -1], [1, 3, 5]]),
        (Centring("reinforce"), [[0.75]], [[0.75]]),  # nobody to be compared with
        (GRPO, [[0.75]], [[0]]),
    ],
)
def test_centre__by_hand(how: Centring, rewards: list[list[float]], expected: list[list[float]]):
    """GRPO's standard deviation has Bessel's correction; the default is the exact leave-one-out."""
    block, wanted = (
        pad_sequence([torch.tensor(row, dtype=torch.float32) for row in rows], batch_first=True)
        for rows in (rewards, expected)
    )
    stands = torch.arange(block.shape[1]) < torch.tensor([[len(row)] for row in rewards])
    ours = centre(block, stands, torch.zeros(len(rewards), dtype=torch.long), how)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)


@property_test
@given(cases(), granularities)
def test_centre__rloo_means_sum_to_zero_over_a_group(case: Case, granularity: str):
    """The mean centred reward of response i is m_i less the others' mean, so the group's sum is 0."""
    stands = reward_positions(case.mask, case.step_end, granularity)
    rewards = gather_rewards(case.clean(case.values("rewards")), stands)
    for how in (EXACT, RELEASED) if granularity == "response" else (EXACT,):
        means = centre(rewards, stands, case.group_tensor, how).sum(-1) / stands.sum(-1)
        for g in set(case.group):
            assert means[case.group_tensor == g].sum().item() == pytest.approx(0.0, abs=1e-3)


@property_test
@given(cases(), granularities)
def test_centre__grpo_has_mean_zero_and_variance_one_in_every_group(case: Case, granularity: str):
    stands = reward_positions(case.mask, case.step_end, granularity)
    rewards = gather_rewards(case.clean(case.values("rewards")), stands)
    centred = centre(rewards, stands, case.group_tensor, GRPO)
    for g in set(case.group):
        rows = case.group_tensor == g
        inside, raw = centred[rows][stands[rows]], rewards[rows][stands[rows]]
        assert inside.mean().item() == pytest.approx(0.0, abs=1e-4)
        if raw.std() > 0.01:
            assert inside.std().item() == pytest.approx(1.0, abs=1e-3)


@property_test
@given(cases(), st.sampled_from(ESTIMATORS[:3]))
def test_centre__a_constant_added_to_a_group_changes_nothing(case: Case, estimator: tuple[str, str]):
    """Baselines remove whatever all the responses to a prompt share."""
    rewards, how = case.clean(case.values("rewards")), Centring(*estimator)
    shift = torch.tensor([3.0, -2.0, 0.5, 8.0])[case.group_tensor][:, None]
    plain = centre(rewards, case.mask, case.group_tensor, how)
    shifted = centre(rewards + shift, case.mask, case.group_tensor, how)
    if how != GRPO or plain.abs().max() >= 1e-3:
        torch.testing.assert_close(shifted, plain, rtol=1e-3, atol=1e-3)


@property_test
@given(cases(), estimators)
def test_centre__groups_do_not_touch_each_other(case: Case, estimator: tuple[str, str]):
    """A group is centred alike with and without the others in the batch, whatever its number."""
    rewards, how = case.clean(case.values("rewards")), Centring(*estimator)
    together = centre(rewards, case.mask, case.group_tensor, how)
    for g in set(case.group):
        rows = case.group_tensor == g
        alone = centre(rewards[rows], case.mask[rows], case.group_tensor[rows] + 7, how)
        torch.testing.assert_close(together[rows], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", [EXACT, RELEASED])
@pytest.mark.parametrize("group", [[0], [0, 0, 1], [2, 2, 0]])
def test_centre__rloo_refuses_a_group_of_one(how: Centring, group: list[int]):
    rewards = torch.ones(len(group), 2)
    with pytest.raises(ValueError, match="two or more"):
        centre(rewards, rewards.bool(), torch.tensor(group), how)


# Whitening


@property_test
@given(cases(), st.sampled_from([0.01, 1.0, 100.0]))
def test_whiten__gives_mean_zero_and_variance_one(case: Case, scale: float):
    values = case.values("values", scale)
    block = case.block(values)
    ours = whiten(block, case.mask, moments(block, case.mask))
    assert ours.dtype == torch.float32
    case.check(ours, brute.whiten(values), 1e-4)
    inside = ours[case.mask]
    assert inside.mean().item() == pytest.approx(0.0, abs=1e-4)
    if block[case.mask].var(correction=0) > 1e-3:
        assert inside.var(correction=0).item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.7, 0.7, 0.7, 0.7], [0.0, 0.0, 0.0, 0.0]),
        # Variance as mean square less squared mean: only float64 holds 1e4 + {0, 1}.
        ([1e4, 1e4 + 1, 1e4, 1e4 + 1], [-1.0, 1.0, -1.0, 1.0]),
    ],
)
def test_whiten__by_hand(values: list[float], expected: list[float]):
    block, mask = torch.tensor([values]), torch.ones(1, 4, dtype=torch.bool)
    ours = whiten(block, mask, moments(block, mask))
    torch.testing.assert_close(ours, torch.tensor([expected]), rtol=1e-5, atol=1e-5)


@property_test
@given(cases())
def test_moments__are_count_sum_and_squares(case: Case):
    values = case.values("values")
    tokens = [value for row in values for value in row]
    ours = moments(case.block(values), case.mask)
    assert ours.dtype == torch.float64
    wanted = [len(tokens), math.fsum(tokens), math.fsum(value**2 for value in tokens)]
    assert ours.tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-9)


# All of it


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids="-".join)
@property_test
@given(case=cases(), gamma=st.tuples(gammas, gammas), weight=weights, data=st.data())
def test_with_advantages__equals_the_loops(
    estimator: tuple[str, str], granularity: str, case: Case, gamma: tuple, weight: tuple, data: st.DataObject
):
    """Equation 5, its variants and its spread; rows in any order, padding on both sides."""
    how = AdvantageConfig(
        estimator=estimator[0],
        preset=estimator[1],
        granularity=granularity,
        scaling=data.draw(st.sampled_from([None, "none", "return"]), "scaling"),
        whiten=data.draw(st.sampled_from([None, False, True]), "whiten"),
        process_gamma=gamma[0],
        outcome_gamma=gamma[1],
        process_weight=weight[0],
        outcome_weight=weight[1],
    )
    rewards = case.values("rewards", 0.2)
    batch = case.batch(rewards=case.clean(rewards))
    found, spread = with_advantages(batch, how, *weight)
    process, outcome, total = brute.advantages(rewards, case.ends, case.outcomes, case.group, how)
    assert found.advantages.dtype == torch.float32
    case.check(found.advantages, total, 1e-3 if how.whitens else 1e-4)
    for name, expected in (
        ("std", brute.std(total)),
        ("process_std", weight[0] * brute.std(process)),
        ("outcome_std", weight[1] * brute.std(outcome)),
    ):
        assert spread[f"advantage/{name}"] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    if weight[0]:
        case.check(found.returns, process, 1e-4)
    kept = [name for name in batch.__slots__ if name not in ("advantages", "returns")]
    assert all(getattr(found, name) is getattr(batch, name) for name in kept)


@property_test
@given(cases(), estimators)
def test_with_advantages__outcomes_alone_need_no_process_rewards(case: Case, estimator: tuple[str, str]):
    """With a process weight of 0 nothing depends on what they say."""
    how = {"estimator": estimator[0], "preset": estimator[1]}
    alone, _ = with_advantages(case.batch(), OutcomeAdvantageConfig(**how))
    batch = case.batch(rewards=case.clean(case.values("rewards")))
    weighted, _ = with_advantages(batch, AdvantageConfig(**how), 0.0, 1.0)
    assert torch.equal(weighted.advantages, alone.advantages)
