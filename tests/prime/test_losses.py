"""Losses and their gradients against a slow reference in float64, and what must hold of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from openprime.prime.losses import (
    distillation_loss,
    importance_weights,
    policy_loss,
    prm_ce_loss,
    prm_dpo_loss,
    prm_kto_loss,
    prm_nca_loss,
    prm_step_loss,
    sft_loss,
    tilted_reference,
    token_weights,
)
from openprime.prime.rewards import prefix_values, response_scores, token_rewards
from support import brute
from support.strategies import Case, cases, property_test, widen

reductions = st.sampled_from(["token", "sequence"])
clips = st.sampled_from([(0.2, 0.2), (0.2, 0.28), (0.1, 0.5), (0.3, 0.15)])


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    """d loss / d leaf."""
    return torch.autograd.grad(loss, leaf)[0]


# Supervised


@property_test
@given(cases())
def test_sft_loss_is_the_summed_surprise(case: Case):
    logprobs = case.values("logprobs")
    leaf = case.block(logprobs, torch.float64).requires_grad_()
    loss = sft_loss(leaf, case.mask)
    assert loss.item() == pytest.approx(-math.fsum(value for row in logprobs for value in row), abs=1e-9)
    case.check(gradient(loss, leaf), [[-1.0] * length for length in case.lengths])


# Weights


@property_test
@given(cases(), reductions)
def test_token_weights(case: Case, reduction: str):
    weights, count = token_weights(case.mask, reduction)
    wanted, divisor = brute.token_weights(case.lengths, reduction)
    case.check(weights, wanted)
    assert count == divisor
    assert weights.sum().item() == pytest.approx(count, rel=1e-5), "weights over the divisor are a mean"


@property_test
@given(cases())
def test_sequence_weights_count_every_response_alike(case: Case):
    weights, _ = token_weights(case.mask, "sequence")
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(case)))


def test_token_and_sequence_means_by_hand():
    """One token of loss 1 beside three tokens of loss 5: mean 4 over tokens, 3 over responses."""
    mask = torch.tensor([[True, False, False], [True, True, True]])
    losses = torch.tensor([[1.0, 7.0, 7.0], [5.0, 5.0, 5.0]])
    for reduction, mean in (("token", 4.0), ("sequence", 3.0)):
        weights, count = token_weights(mask, reduction)
        assert ((weights * losses).sum() / count).item() == pytest.approx(mean)


def test_an_empty_response_weighs_nothing():
    weights, _ = token_weights(torch.tensor([[False, False], [True, True]]), "sequence")
    assert weights.tolist() == [[0.0, 0.0], [0.5, 0.5]]


# Policy


@property_test
@given(cases(), clips, reductions, st.sampled_from([0.05, 0.3, 2.0]))
def test_policy_loss_and_gradient(case: Case, clip: tuple[float, float], reduction: str, step: float):
    old, moves, advantages = case.values("old"), case.values("moves", step), case.values("advantages")
    new = [[o + m for o, m in zip(*rows, strict=True)] for rows in zip(old, moves, strict=True)]
    weights, _ = token_weights(case.mask, reduction)
    leaf = case.block(new, torch.float64).requires_grad_()
    # The garbage off the mask is the same in every block: move one, so that its ratio overflows.
    behind = case.block(old, torch.float64) - 2e4 * ~case.mask
    ours = policy_loss(leaf, behind, case.block(advantages, torch.float64), weights, *clip)

    wanted_weights, _ = brute.token_weights(case.lengths, reduction)
    loss, clipped, kl, slopes = brute.policy_loss(new, old, advantages, wanted_weights, *clip)
    assert ours.loss.item() == pytest.approx(loss, rel=1e-6, abs=1e-6)
    assert ours.clipped.item() == pytest.approx(clipped, rel=1e-5)
    assert ours.kl.item() == pytest.approx(kl, rel=1e-6, abs=1e-6)
    assert not ours.clipped.requires_grad
    assert not ours.kl.requires_grad
    case.check(gradient(ours.loss, leaf), slopes, 1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.25, 1.0, -1.25, False),  # inside 1 + 0.28
        (1.5, 1.0, -1.28, True),
        (1.5, -1.0, 1.5, False),  # too likely and bad: must still be pushed down
        (0.5, 1.0, -0.5, False),  # too unlikely and good: must still be pushed up
        (0.5, -1.0, 0.8, True),
        (0.85, -1.0, 0.85, False),  # inside 1 - 0.2
        (3.0, 0.0, 0.0, False),
    ],
)
def test_policy_loss_by_hand(ratio: float, advantage: float, loss: float, clipped: bool):
    """clip_low 0.2 and clip_high 0.28; where the clip bites, the gradient is exactly 0."""
    leaf = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1)
    ours = policy_loss(leaf, torch.zeros(1, 1), advantage * one, one, 0.2, 0.28)
    assert ours.loss.item() == pytest.approx(loss)
    assert ours.clipped.item() == float(clipped)
    assert ours.kl.item() == pytest.approx(ratio - 1 - math.log(ratio))
    slope = gradient(ours.loss, leaf).item()
    assert slope == 0 if clipped else slope == pytest.approx(-ratio * advantage)


def test_policy_gradient_against_finite_differences():
    """The reference's own derivative is checked too, away from the corners of the clip."""
    old = [[-1.0, -2.0, -0.5, -1.5]]
    advantages = [[1.0, -1.0, 0.5, -2.0]]
    weights = [[0.25, 0.5, 1.0, 2.0]]
    new = [-0.9, -2.4, 0.1, -1.2]
    by_differences = brute.slopes(
        lambda x: brute.policy_loss([x], old, advantages, weights, 0.2, 0.28)[0], new
    )
    assert by_differences == pytest.approx(
        brute.policy_loss([new], old, advantages, weights, 0.2, 0.28)[3][0], abs=1e-8
    )
    leaf = torch.tensor([new], dtype=torch.float64, requires_grad=True)
    ours = policy_loss(leaf, torch.tensor(old), torch.tensor(advantages), torch.tensor(weights), 0.2, 0.28)
    assert gradient(ours.loss, leaf)[0].tolist() == pytest.approx(by_differences, abs=1e-6)


@property_test
@given(cases(), reductions)
def test_on_policy_the_gradient_is_the_weighted_advantage(case: Case, reduction: str):
    """Ratio 1: REINFORCE, nothing clipped, no KL."""
    advantages = case.block(case.values("advantages"), torch.float64)
    leaf = case.block(case.values("new"), torch.float64).requires_grad_()
    weights, _ = token_weights(case.mask, reduction)
    ours = policy_loss(leaf, leaf.detach().clone(), advantages, weights, 0.2, 0.2)
    torch.testing.assert_close(gradient(ours.loss, leaf), -weights.double() * advantages)
    assert ours.clipped.item() == 0
    assert ours.kl.item() == 0


@property_test
@given(cases(), reductions, st.integers(1, 3))
def test_policy_loss_does_not_see_row_order_or_padding(case: Case, reduction: str, extra: int):
    blocks = [case.block(case.values(name, 0.5), torch.float64) for name in ("new", "old", "advantages")]

    def run(rows: Tensor, extra: int) -> list[float]:
        new, old, advantages = (widen(block[rows], extra, extra, 77.0) for block in blocks)
        weights, count = token_weights(widen(case.mask[rows], extra, extra, False), reduction)
        ours = policy_loss(new, old, advantages, weights, 0.2, 0.28)
        return [ours.loss.item(), ours.clipped.item(), ours.kl.item(), count]

    rows = torch.arange(len(case))
    order = torch.randperm(len(case), generator=torch.Generator().manual_seed(case.seed))
    plain = run(rows, 0)
    assert run(order, 0) == pytest.approx(plain, rel=1e-5, abs=1e-6)
    assert run(rows, extra) == pytest.approx(plain, rel=1e-5, abs=1e-6)


# PRM, cross-entropy


# Truncated importance weights


@property_test
@given(cases(), st.sampled_from([0.5, 1.0, 2.0, 100.0]))
def test_importance_weights_are_truncated_ratios(case: Case, ceiling: float):
    new, sampled = case.values("logprobs"), case.values("reference")
    got = importance_weights(
        case.block(new, torch.float64), case.block(sampled, torch.float64), case.mask, ceiling
    )
    wanted = [
        [min(math.exp(n - s), ceiling) for n, s in zip(ours, theirs, strict=True)]
        for ours, theirs in zip(new, sampled, strict=True)
    ]
    case.check(got.where(case.mask, 0.0), wanted)
    assert bool((got[~case.mask] == 1).all())


def test_importance_weights_of_what_lies_far_off_are_finite():
    weights = importance_weights(
        torch.tensor([[0.0, -400.0]]), torch.tensor([[-400.0, 0.0]]), torch.tensor([[True, True]]), 2.0
    )
    assert weights.tolist() == [[2.0, 0.0]]


def test_weighting_advantages_is_weighting_the_loss():
    g = torch.Generator().manual_seed(0)
    new, old, advantages = (torch.randn(4, 6, generator=g, dtype=torch.float64) for _ in range(3))
    weights = 2 * torch.rand(4, 6, generator=g, dtype=torch.float64)
    ones = torch.ones_like(weights)
    by_advantage = policy_loss(new, old, advantages * weights, ones, 0.2, 0.3).loss
    by_loss = policy_loss(new, old, advantages, weights, 0.2, 0.3).loss
    torch.testing.assert_close(by_advantage, by_loss)


@property_test
@given(cases())
def test_ce_loss_and_gradient(case: Case):
    scores = case.scores()
    leaf = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    loss = prm_ce_loss(leaf, case.outcome_tensor)
    assert loss.item() == pytest.approx(brute.ce_loss(scores, case.outcomes))
    wanted = brute.slopes(lambda x: brute.ce_loss(x, case.outcomes), scores)
    assert gradient(loss, leaf).tolist() == pytest.approx(wanted, abs=1e-6)


def test_ce_loss_by_hand():
    assert prm_ce_loss(torch.zeros(3), torch.tensor([0.0, 0.5, 1.0])).item() == pytest.approx(3 * math.log(2))
    odds = torch.tensor([math.log(3.0)])  # P(correct) = 3/4
    assert prm_ce_loss(odds, torch.ones(1)).item() == pytest.approx(-math.log(0.75))
    assert prm_ce_loss(odds, torch.zeros(1)).item() == pytest.approx(-math.log(0.25))


def test_ce_loss_of_a_soft_label_is_least_at_its_log_odds():
    leaf = torch.tensor([math.log(0.3 / 0.7)], dtype=torch.float64, requires_grad=True)
    loss = prm_ce_loss(leaf, torch.tensor([0.3], dtype=torch.float64))
    assert gradient(loss, leaf).item() == pytest.approx(0.0, abs=1e-12)


def test_ce_loss_of_extreme_scores_is_finite():
    leaf = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    loss = prm_ce_loss(leaf, torch.tensor([1.0, 0.0, 0.0, 1.0]))
    assert loss.item() == pytest.approx(2e4)
    assert gradient(loss, leaf).tolist() == [0.0, 0.0, 1.0, -1.0]


def test_ce_gradient_at_the_reference_is_reinforce():
    """phi = ref: the loss falls along beta * (o - 1/2) for every token of the response."""
    mask = torch.tensor([[False, True, True], [True, True, False]])
    reference = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    leaf = reference.clone().requires_grad_()
    scores = response_scores(token_rewards(leaf, reference, mask, beta=0.05))
    slope = gradient(prm_ce_loss(scores, torch.tensor([1.0, 0.25])), leaf)
    wanted = -0.05 * (torch.tensor([[1.0], [0.25]]) - 0.5) * mask
    torch.testing.assert_close(slope, wanted.double(), rtol=1e-6, atol=1e-8)


# PRM, steps


@property_test
@given(cases(), st.sampled_from([float("nan"), float("inf"), 1e4]))
def test_step_loss_and_gradient(case: Case, garbage: float):
    values = [brute.prefix_values(row) for row in case.values("rewards")]
    labels = [[float(round(4 * abs(label)) % 5) / 4 for label in row] for row in case.values("labels")]
    labelled = case.positions(case.ends)
    leaf = torch.where(labelled, case.block(values, torch.float64), garbage).requires_grad_()
    loss, count = prm_step_loss(leaf, torch.where(labelled, case.block(labels), garbage), labelled)
    wanted, steps = brute.step_loss(values, labels, case.ends)
    assert count.item() == steps
    assert loss.item() == pytest.approx(wanted)
    flat = [value for row in values for value in row]

    def of_flat(flat: list[float]) -> float:
        rest = iter(flat)
        return brute.step_loss([[next(rest) for _ in row] for row in values], labels, case.ends)[0]

    if len(flat) <= 60:  # finite differences over many tokens are slow
        slopes = iter(brute.slopes(of_flat, flat))
        case.check(gradient(loss, leaf), [[next(slopes) for _ in row] for row in values], 1e-6)


def test_step_loss_by_hand():
    """Two labelled steps of one response, P(right) 3/4 and 1/4, and an unlabelled one between them."""
    odds = math.log(3.0)
    leaf = torch.tensor([[0.0, odds, 9.0, -odds]], requires_grad=True)
    labels = torch.tensor([[1.0, 1.0, 0.0, 0.5]])
    loss, steps = prm_step_loss(leaf, labels, torch.tensor([[False, True, False, True]]))
    assert steps.item() == 2
    assert loss.item() == pytest.approx(-math.log(0.75) - 0.5 * math.log(0.25) - 0.5 * math.log(0.75))
    assert gradient(loss, leaf)[0].tolist() == pytest.approx([0.0, -0.25, 0.0, -0.25])


@property_test
@given(cases())
def test_step_loss_at_the_last_token_is_the_response_loss(case: Case):
    values = prefix_values(case.clean(case.values("rewards"), torch.float64))
    last = case.positions([[t == length - 1 for t in range(length)] for length in case.lengths])
    loss, count = prm_step_loss(values, case.outcome_tensor[:, None].expand_as(values), last)
    assert count.item() == len(case)
    torch.testing.assert_close(loss, prm_ce_loss(values[last], case.outcome_tensor))


def test_step_loss_reaches_every_token_of_the_prefix():
    """The label of step k moves r_1..r_k alike, and no later token."""
    leaf = torch.zeros(1, 4, requires_grad=True)
    step_ends = torch.tensor([[False, True, False, True]])
    loss, _ = prm_step_loss(prefix_values(leaf), torch.tensor([[0.0, 1.0, 0.0, 0.0]]), step_ends)
    assert gradient(loss, leaf)[0].tolist() == [0.0, 0.0, 0.5, 0.5]


def test_step_loss_without_labels_is_zero_with_a_zero_gradient():
    leaf = torch.tensor([[3.0, 1e4]], requires_grad=True)
    loss, count = prm_step_loss(leaf, torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool))
    assert (loss.item(), count.item()) == (0.0, 0)
    assert gradient(loss, leaf).tolist() == [[0.0, 0.0]]


# PRM, pairs


@property_test
@given(cases())
def test_dpo_loss_and_gradient(case: Case):
    scores = case.scores()
    leaf = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    loss, pairs = prm_dpo_loss(leaf, case.outcome_tensor, case.group_tensor)
    wanted, count = brute.dpo_loss(scores, case.outcomes, case.group)
    assert pairs.item() == count
    assert loss.item() == pytest.approx(wanted)
    if len(scores) <= 12:  # finite differences over pairs are slow
        slopes = brute.slopes(lambda x: brute.dpo_loss(x, case.outcomes, case.group)[0], scores)
        assert gradient(loss, leaf).tolist() == pytest.approx(slopes, abs=1e-6)


def test_dpo_loss_by_hand():
    """One right against two wrong, and a response to another prompt that is in no pair."""
    scores = torch.tensor([math.log(3.0), 0.0, math.log(3.0), 50.0], requires_grad=True)
    outcomes, group = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0, 0, 0, 1])
    loss, pairs = prm_dpo_loss(scores, outcomes, group)
    assert pairs.item() == 2
    assert loss.item() == pytest.approx(-math.log(0.75) - math.log(0.5))
    assert gradient(loss, scores).tolist() == pytest.approx([-0.75, 0.25, 0.5, 0.0])


def test_dpo_pairs_of_soft_outcomes_follow_their_order():
    loss, pairs = prm_dpo_loss(
        torch.zeros(3), torch.tensor([0.25, 0.75, 0.5]), torch.zeros(3, dtype=torch.long)
    )
    assert pairs.item() == 3
    assert loss.item() == pytest.approx(3 * math.log(2))


@pytest.mark.parametrize("outcomes", [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
def test_dpo_loss_without_pairs_is_zero_with_a_zero_gradient(outcomes: list[float]):
    leaf = torch.tensor([3.0, -1e4, 1e4], requires_grad=True)
    loss, pairs = prm_dpo_loss(leaf, torch.tensor(outcomes), torch.zeros(3, dtype=torch.long))
    assert (loss.item(), pairs.item()) == (0.0, 0)
    assert gradient(loss, leaf).tolist() == [0.0, 0.0, 0.0]


def test_dpo_loss_of_extreme_scores_is_finite():
    leaf = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss, _ = prm_dpo_loss(leaf, torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.long))
    assert loss.item() == pytest.approx(2e4)
    assert gradient(loss, leaf).tolist() == [-1.0, 1.0]


@property_test
@given(cases())
def test_dpo_loss_sees_only_differences_within_a_group(case: Case):
    scores = torch.tensor(case.scores(), dtype=torch.float64)
    shift = torch.tensor([3.0, -2.0, 0.5, 8.0], dtype=torch.float64)[case.group_tensor]
    plain, _ = prm_dpo_loss(scores, case.outcome_tensor, case.group_tensor)
    shifted, _ = prm_dpo_loss(scores + shift, case.outcome_tensor, case.group_tensor)
    torch.testing.assert_close(shifted, plain)


@property_test
@given(cases())
def test_nca_loss_and_gradient(case: Case):
    scores = case.scores()
    leaf = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    loss, pairs = prm_nca_loss(leaf, case.outcome_tensor, case.group_tensor)
    wanted, count = brute.nca_loss(scores, case.outcomes, case.group)
    assert pairs.item() == count
    assert loss.item() == pytest.approx(wanted)
    if len(scores) <= 12:
        slopes = brute.slopes(lambda x: brute.nca_loss(x, case.outcomes, case.group)[0], scores)
        assert gradient(loss, leaf).tolist() == pytest.approx(slopes, abs=1e-6)


def test_nca_loss_holds_the_score_of_the_better_response():
    """Where DPO is content with a large margin at any level, NCA pulls a right response's low score up."""
    scores = torch.tensor([-10.0, -30.0], requires_grad=True)
    outcomes, group = torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.long)
    assert gradient(prm_dpo_loss(scores, outcomes, group)[0], scores).tolist() == pytest.approx(
        [0, 0], abs=1e-6
    )
    assert gradient(prm_nca_loss(scores, outcomes, group)[0], scores).tolist() == pytest.approx(
        [-1, 0], abs=1e-4
    )


@property_test
@given(cases(), st.floats(-3, 3))
def test_kto_loss_and_gradient(case: Case, reference_point: float):
    scores = case.scores()
    leaf = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    loss = prm_kto_loss(leaf, case.outcome_tensor, reference_point)
    assert loss.item() == pytest.approx(brute.kto_loss(scores, case.outcomes, reference_point))
    slopes = brute.slopes(lambda x: brute.kto_loss(x, case.outcomes, reference_point), scores)
    assert gradient(loss, leaf).tolist() == pytest.approx(slopes, abs=1e-6)


def test_kto_loss_by_hand():
    """At the reference point a right and a wrong response lose one half each; z0 gets no gradient."""
    scores = torch.tensor([2.0, 2.0], requires_grad=True)
    loss = prm_kto_loss(scores, torch.tensor([1.0, 0.0]), scores.mean())
    assert loss.item() == pytest.approx(1.0)
    assert gradient(loss, scores).tolist() == pytest.approx([-0.25, 0.25])
    assert prm_kto_loss(torch.tensor([1e4, -1e4]), torch.tensor([1.0, 0.0]), 0.0).item() == 0.0


@property_test
@given(cases())
def test_prm_losses_do_not_see_row_order(case: Case):
    scores, outcomes, group = torch.tensor(case.scores()).double(), case.outcome_tensor, case.group_tensor
    order = torch.randperm(len(case), generator=torch.Generator().manual_seed(case.seed))
    torch.testing.assert_close(prm_ce_loss(scores[order], outcomes[order]), prm_ce_loss(scores, outcomes))
    shuffled, pairs = prm_dpo_loss(scores[order], outcomes[order], group[order])
    plain, count = prm_dpo_loss(scores, outcomes, group)
    torch.testing.assert_close(shuffled, plain)
    assert pairs == count


def test_policy_loss_survives_a_huge_ratio():
    """A log-ratio that exp cannot hold is clipped like any other: finite loss, gradient 0."""
    logprobs = torch.tensor([[100.0, -1.0]], requires_grad=True)
    result = policy_loss(logprobs, torch.tensor([[0.0, -1.0]]), torch.ones(1, 2), torch.ones(1, 2), 0.2, 0.2)
    result.loss.backward()
    assert float(result.loss) == pytest.approx(-2.2)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[0.0, -1.0]]


# Distillation


@property_test
@given(st.integers(0, 10_000), st.floats(-3, 0), st.floats(0, 2), st.floats(0.1, 2))
def test_distillation_loss_is_a_kl_to_the_tilted_reference(seed: int, low: float, high: float, anchor: float):
    """anchor * KL(policy || ref exp(clip(log phi/ref)/anchor)/Z) - anchor log Z, word by word."""
    draw = torch.Generator().manual_seed(seed)
    pi, phi, ref = (
        torch.randn(3, 7, generator=draw, dtype=torch.float64).mul(2).log_softmax(-1) for _ in range(3)
    )
    expected = 0.0
    for n in range(3):
        weights = [
            math.exp(float(ref[n, a]) + min(max(float(phi[n, a] - ref[n, a]), low), high) / anchor)
            for a in range(7)
        ]
        z = math.fsum(weights)
        for a in range(7):
            p = math.exp(float(pi[n, a]))
            expected += anchor * p * (float(pi[n, a]) - math.log(weights[a] / z))
        expected -= anchor * math.log(z)
    assert distillation_loss(
        pi, tilted_reference(phi, ref, low, high, anchor), anchor
    ).item() == pytest.approx(expected, abs=1e-9)


def test_distillation_has_no_gradient_at_its_target():
    draw = torch.Generator().manual_seed(0)
    phi, ref = (torch.randn(4, 9, generator=draw, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    logits = (ref + (phi - ref).clamp(-2, 0.3) / 0.5).requires_grad_()
    tilted = tilted_reference(phi, ref, -2, 0.3, 0.5)
    loss = distillation_loss(logits.log_softmax(-1), tilted, 0.5)
    assert gradient(loss, logits).abs().max() < 1e-12
    elsewhere = (ref + 0.1 * phi).detach().requires_grad_()
    loss = distillation_loss(elsewhere.log_softmax(-1), tilted, 0.5)
    assert gradient(loss, elsewhere).abs().max() > 1e-3
