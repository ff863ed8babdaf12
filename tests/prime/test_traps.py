"""The traps of published implementations that show in pure functions on one process."""

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
    whiten,
)
from openprime.prime.losses import (
    policy_loss,
    prm_ce_loss,
    prm_dpo_loss,
    prm_loss,
    prm_loss_count,
    sft_loss,
    token_weights,
)
from openprime.prime.rewards import (
    gather_rewards,
    last_token,
    pairwise_accuracy,
    response_scores,
    reward_positions,
    scale_by_return,
    token_rewards,
)
from support.strategies import GRANULARITIES, Case, build, cases, property_test

EXACT, RELEASED = Centring("rloo", "exact"), Centring("rloo", "released")
reductions = st.sampled_from(["token", "sequence"])


@property_test
@given(cases(), st.sampled_from(GRANULARITIES))
def test_trap_01__the_released_leave_one_out_scales_deviations_within_a_response(
    case: Case, granularity: str
):
    """The released form turns a deviation r_t - m_i into K/(K-1) times it; the exact one leaves it."""
    stands = reward_positions(case.mask, case.step_end, granularity)
    rewards = gather_rewards(case.clean(case.values("rewards")), stands)

    def deviations(values: Tensor) -> Tensor:
        return (values - values.sum(-1, keepdim=True) / stands.sum(-1, keepdim=True)) * stands

    plain = deviations(rewards)
    size = case.group_tensor.bincount()[case.group_tensor][:, None]
    exact = centre(rewards, stands, case.group_tensor, EXACT)
    released = centre(rewards, stands, case.group_tensor, RELEASED)
    torch.testing.assert_close(deviations(exact), plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(deviations(released), plain * size / (size - 1), rtol=1e-4, atol=1e-4)


@property_test
@given(cases())
def test_trap_01__both_leave_one_outs_are_the_same_for_outcomes(case: Case):
    placed, last = outcome_rewards(case.outcome_tensor, case.mask), last_token(case.mask)
    exact = centre(placed, last, case.group_tensor, EXACT)
    torch.testing.assert_close(centre(placed, last, case.group_tensor, RELEASED), exact, rtol=1e-5, atol=1e-6)


def scaled_and_whitened(case: Case, shards: list[Tensor], share: bool) -> Tensor:
    """Advantages computed shard by shard; with `share`, maximum and moments are reduced over shards."""
    rewards, mask = case.clean(case.values("rewards")), case.mask
    outcomes, group = case.outcome_tensor, case.group_tensor
    largest = [returns_to_go(rewards[rows], mask[rows], 1.0).abs().max() for rows in shards]
    combined = []
    for own, rows in zip(largest, shards, strict=True):
        scaled = scale_by_return(rewards[rows], torch.stack(largest).max() if share else own)
        process = returns_to_go(centre(scaled, mask[rows], group[rows], EXACT), mask[rows], 1.0)
        placed = outcome_rewards(outcomes[rows], mask[rows])
        centred = centre(placed, last_token(mask[rows]), group[rows], EXACT)
        combined.append(combine(process, returns_to_go(centred, mask[rows], 1.0), 1.0, 1.0))
    sums = [moments(values, mask[rows]) for values, rows in zip(combined, shards, strict=True)]
    out = torch.zeros_like(rewards)
    for values, own, rows in zip(combined, sums, shards, strict=True):
        out[rows] = whiten(values, mask[rows], sum(sums) if share else own)
    return out


def by_group(case: Case) -> list[Tensor]:
    """The rows of each group."""
    return [(case.group_tensor == g).nonzero()[:, 0] for g in set(case.group)]


@property_test
@given(cases())
def test_trap_02__statistics_reduced_over_shards_equal_those_of_the_whole_batch(case: Case):
    whole = scaled_and_whitened(case, [torch.arange(len(case))], share=True)
    shards = scaled_and_whitened(case, by_group(case), share=True)
    torch.testing.assert_close(shards, whole, rtol=1e-4, atol=1e-4)


def test_trap_02__statistics_of_one_shard_would_depend_on_the_number_of_shards():
    """What the trap looks like: without the reduction the same batch gives other advantages."""
    case = build([4, 4], ["mixed", "wrong"], longest=8, prompt=2, spare=1, seed=5)
    whole = scaled_and_whitened(case, [torch.arange(8)], share=True)
    assert (scaled_and_whitened(case, by_group(case), share=False) - whole).abs().max() > 0.1


@property_test
@given(cases(), st.integers(2, 4))
def test_trap_02__moments_add_up_over_any_rows(case: Case, ranks: int):
    block = case.block(case.values("values"))
    whole = moments(block, case.mask)
    parts = [moments(block[rank::ranks], case.mask[rank::ranks]) for rank in range(ranks)]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-9)


@property_test
@given(cases())
def test_trap_02__pairwise_accuracy_adds_up_over_groups(case: Case):
    scores, outcomes, group = torch.tensor(case.scores()), case.outcome_tensor, case.group_tensor
    parts = [pairwise_accuracy(scores[rows], outcomes[rows], group[rows]) for rows in by_group(case)]
    whole = pairwise_accuracy(scores, outcomes, group)
    assert [sum(column) for column in zip(*parts, strict=True)] == list(whole)


@property_test
@given(cases())
def test_trap_05__token_granularity_keeps_the_last_reward(case: Case):
    rewards = case.clean(case.values("rewards"))
    gathered = gather_rewards(rewards, reward_positions(case.mask, case.step_end, "token"))
    torch.testing.assert_close(gathered, rewards, rtol=1e-6, atol=1e-6)


@property_test
@given(cases())
def test_trap_05__response_granularity_is_one_number_on_one_token(case: Case):
    rewards = case.clean(case.values("rewards"))
    gathered = gather_rewards(rewards, reward_positions(case.mask, case.step_end, "response"))
    assert (gathered[~last_token(case.mask)] == 0).all()
    torch.testing.assert_close(gathered[last_token(case.mask)], rewards.sum(-1), rtol=1e-5, atol=1e-4)


@property_test
@given(cases())
def test_trap_05__a_step_is_paid_on_its_own_last_token(case: Case):
    """No reward crosses a step: changing the rewards of one step changes its payment only."""
    rewards = case.clean(case.values("rewards"))
    stands = reward_positions(case.mask, case.step_end, "step")
    rows = torch.arange(len(case))
    changed, wanted = rewards.clone(), torch.zeros_like(rewards)
    changed[rows, torch.tensor(case.prompts)] += 1.0
    wanted[rows, stands.long().argmax(-1)] = 1.0  # the first step's last token
    difference = gather_rewards(changed, stands) - gather_rewards(rewards, stands)
    torch.testing.assert_close(difference, wanted, rtol=1e-5, atol=1e-4)


@property_test
@given(cases(), reductions)
def test_trap_09__losses_are_sums(case: Case, reduction: str):
    """One pass over the batch and one pass for each row: the same loss and gradient, divided once."""
    old, advantages = (case.block(case.values(n, 0.5), torch.float64) for n in ("old", "advantages"))
    weights, count = token_weights(case.mask, reduction)

    def learn(shards: list[slice]) -> tuple[Tensor, float]:
        leaf = case.block(case.values("new", 0.5), torch.float64).requires_grad_()
        total = 0.0
        for rows in shards:
            loss = policy_loss(leaf[rows], old[rows], advantages[rows], weights[rows], 0.2, 0.28).loss / count
            loss = loss + sft_loss(leaf[rows], case.mask[rows]) / count
            scores = response_scores(leaf[rows] * case.mask[rows])
            loss = loss + prm_ce_loss(scores, case.outcome_tensor[rows]) / len(case)
            loss.backward()
            total += loss.item()
        return leaf.grad, total

    at_once, total = learn([slice(0, len(case))])
    accumulated, summed = learn([slice(b, b + 1) for b in range(len(case))])
    torch.testing.assert_close(accumulated, at_once, rtol=1e-9, atol=1e-12)
    assert summed == pytest.approx(total, rel=1e-9, abs=1e-9)


@property_test
@given(cases(), reductions)
def test_trap_09__token_weights_and_counts_add_up_over_micro_batches(case: Case, reduction: str):
    weights, count = token_weights(case.mask, reduction)
    parts = [token_weights(case.mask[b : b + 1], reduction) for b in range(len(case))]
    assert torch.equal(torch.cat([part[0] for part in parts]), weights)
    assert sum(part[1] for part in parts) == count


@pytest.mark.parametrize("name", ["ce", "dpo", "nca", "kto", "prefix", "steps"])
@property_test
@given(case=cases())
def test_trap_09__prm_losses_and_counts_add_up_over_groups(name: str, case: Case):
    """`select` cuts the columns that a loss needs like the tokens."""
    logprobs = case.block(case.values("prm"))
    batch = case.batch(
        logprobs=logprobs,
        ref_logprobs=case.block(case.values("reference")),
        labels=case.block(case.values("labels")).clamp(0, 1),
        step_end=case.positions(case.ends),
    )
    parts = [batch.select(rows) for rows in by_group(case)]
    loss = sum(prm_loss(name, part.logprobs, part, 0.3, 0.2, 0.5) for part in parts)
    torch.testing.assert_close(loss, prm_loss(name, logprobs, batch, 0.3, 0.2, 0.5), rtol=1e-4, atol=1e-4)
    assert sum(prm_loss_count(name, part) for part in parts) == prm_loss_count(name, batch)


def test_trap_09__a_batch_twice_has_twice_the_loss():
    """A mean would not change."""
    case = build([3, 5], ["mixed", "soft"], longest=6, prompt=2, spare=1, seed=2)
    twice = torch.arange(len(case)).repeat(2)
    new, old, advantages = (case.block(case.values(n, 0.5)) for n in ("new", "old", "advantages"))
    scores, outcomes = torch.tensor(case.scores()), case.outcome_tensor
    group = torch.cat([case.group_tensor, case.group_tensor + 2])
    for reduction in ("token", "sequence"):
        weights, count = token_weights(case.mask, reduction)
        doubled, doubled_count = token_weights(case.mask[twice], reduction)
        once = policy_loss(new, old, advantages, weights, 0.2, 0.2)
        both = policy_loss(new[twice], old[twice], advantages[twice], doubled, 0.2, 0.2)
        for name in ("loss", "clipped", "kl"):
            torch.testing.assert_close(getattr(both, name), 2 * getattr(once, name))
        assert doubled_count == 2 * count
    torch.testing.assert_close(sft_loss(new[twice], case.mask[twice]), 2 * sft_loss(new, case.mask))
    torch.testing.assert_close(prm_ce_loss(scores[twice], outcomes[twice]), 2 * prm_ce_loss(scores, outcomes))
    loss, pairs = prm_dpo_loss(scores, outcomes, case.group_tensor)
    both_loss, both_pairs = prm_dpo_loss(scores[twice], outcomes[twice], group)
    torch.testing.assert_close(both_loss, 2 * loss)
    assert both_pairs == 2 * pairs


@property_test
@given(cases(), st.sampled_from(GRANULARITIES))
def test_trap_14__the_end_of_sequence_has_its_reward_and_padding_never(case: Case, granularity: str):
    """The last response token is the end of sequence; the columns behind it hold garbage."""
    prm, reference, mask = case.block(case.values("prm")), case.block(case.values("reference")), case.mask
    reference[~mask] = -1e5
    last = last_token(mask)
    stands = reward_positions(mask, case.step_end, granularity)
    assert not (stands & ~mask).any()
    assert (stands & last).any(-1).all(), "every response is paid on its end of sequence"

    rewards = token_rewards(prm, reference, mask, 0.05)
    torch.testing.assert_close(rewards[last], 0.05 * (prm - reference)[last])
    outcome = outcome_rewards(case.outcome_tensor, mask)
    assert torch.equal(outcome[last], case.outcome_tensor)

    gathered = gather_rewards(rewards, stands)
    centred = centre(gathered, stands, case.group_tensor, EXACT)
    returns = returns_to_go(centred, mask, 1.0)
    whitened = whiten(returns, mask, moments(returns, mask))
    weights = [token_weights(mask, reduction)[0] for reduction in ("token", "sequence")]
    for block in (rewards, gathered, outcome, centred, returns, whitened, *weights):
        assert (block[~mask] == 0).all()
    assert all((weight[last] > 0).all() for weight in weights)


def test_trap_14__the_end_of_sequence_takes_part_in_every_loss():
    mask = torch.tensor([[False, True, True, False]])
    leaf = torch.full((1, 4), -1.0, requires_grad=True)
    weights, _ = token_weights(mask, "token")
    losses = [
        policy_loss(leaf, leaf.detach(), torch.ones(1, 4), weights, 0.2, 0.2).loss,
        sft_loss(leaf, mask),
        prm_ce_loss(response_scores(token_rewards(leaf, leaf.detach(), mask, 1.0)), torch.ones(1)),
    ]
    for loss in losses:
        slope = torch.autograd.grad(loss, leaf)[0]
        assert (slope[mask] < 0).all()
        assert (slope[~mask] == 0).all()


@pytest.mark.parametrize("outcome", [0.0, 1.0, 0.5, 1 / 3, 0.1])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 16])
def test_trap_15__all_equal_groups_in_grpo_give_zero(outcome: float, size: int):
    """0/0 is 0, and beside it a mixed group keeps its advantages."""
    outcomes = torch.tensor([outcome] * size + [1.0, 0.0])
    group = torch.tensor([0] * size + [1, 1])
    mask = torch.ones(size + 2, 3, dtype=torch.bool)
    centred = centre(outcome_rewards(outcomes, mask), last_token(mask), group, Centring("grpo"))
    assert centred.isfinite().all()
    assert centred[:size].abs().max() < 1e-6
    torch.testing.assert_close(centred[size:, 2], torch.tensor([0.5**0.5, -(0.5**0.5)]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("estimator", ["rloo", "grpo", "reinforce"])
def test_trap_15__a_batch_without_differences_whitens_to_zero(estimator: str):
    """All right: no advantage, no NaN, whatever the estimator."""
    mask = torch.ones(6, 4, dtype=torch.bool)
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    placed = outcome_rewards(torch.ones(6), mask)
    returns = returns_to_go(centre(placed, last_token(mask), group, Centring(estimator)), mask, 1.0)
    whitened = whiten(returns, mask, moments(returns, mask))
    assert whitened.isfinite().all()
    assert whitened.abs().max() < 1e-6
