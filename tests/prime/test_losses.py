"""Losses and their gradients against a slow reference in float64, and what must hold of them."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from openprime.prime.losses import (
    SMALLEST_REST,
    distillation_loss,
    importance_weights,
    outcome_loss,
    policy_loss,
    prior_log_odds,
    prm_ce_loss,
    prm_dpo_loss,
    prm_kto_loss,
    prm_loss,
    prm_loss_count,
    prm_nca_loss,
    prm_prefix_loss,
    prm_shifted_loss,
    prm_step_loss,
    sft_loss,
    tilted_reference,
    token_weights,
    two_sided_loss,
    with_rest,
)
from openprime.prime.rewards import prefix_values, response_scores, token_rewards, with_group_outcome
from support import brute
from support.strategies import Case, cases, property_test
from support.tiny_lm import make_batch

PRM_LOSSES = ("ce", "dpo", "nca", "kto")
reductions = st.sampled_from(["token", "sequence"])
clips = st.sampled_from([(0.2, 0.2), (0.2, 0.28), (0.1, 0.5), (0.3, 0.15)])


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    """d loss / d leaf."""
    return torch.autograd.grad(loss, leaf)[0]


def ragged_slopes(loss: Callable[[brute.Ragged], float], at: brute.Ragged) -> brute.Ragged:
    """Gradient by central differences, for rows of different lengths."""

    def rows(flat: list[float]) -> brute.Ragged:
        rest = iter(flat)
        return [[next(rest) for _ in row] for row in at]

    return rows(brute.slopes(lambda flat: loss(rows(flat)), [value for row in at for value in row]))


# Supervised


@property_test
@given(cases())
def test_sft_loss__is_the_summed_surprise(case: Case):
    logprobs = case.values("logprobs")
    leaf = case.block(logprobs, torch.float64).requires_grad_()
    loss = sft_loss(leaf, case.mask)
    assert loss.item() == pytest.approx(-math.fsum(value for row in logprobs for value in row), abs=1e-9)
    case.check(gradient(loss, leaf), [[-1.0] * length for length in case.lengths])


# Weights


@property_test
@given(cases(), reductions)
def test_token_weights__over_the_count_are_a_mean(case: Case, reduction: str):
    weights, count = token_weights(case.mask, reduction)
    wanted, divisor = brute.token_weights(case.lengths, reduction)
    case.check(weights, wanted)
    assert count == divisor
    assert weights.sum().item() == pytest.approx(count, rel=1e-5)


def test_token_weights__by_hand():
    """One token of loss 1 beside three tokens of loss 5: mean 4 over tokens, 3 over responses."""
    mask = torch.tensor([[True, False, False], [True, True, True]])
    losses = torch.tensor([[1.0, 7.0, 7.0], [5.0, 5.0, 5.0]])
    for reduction, mean in (("token", 4.0), ("sequence", 3.0)):
        weights, count = token_weights(mask, reduction)
        assert ((weights * losses).sum() / count).item() == pytest.approx(mean)
    empty, _ = token_weights(torch.tensor([[False, False], [True, True]]), "sequence")
    assert empty.tolist() == [[0.0, 0.0], [0.5, 0.5]]


# Policy


@property_test
@given(cases(), clips, reductions, st.sampled_from([0.0, 0.05, 0.3, 2.0]))
def test_policy_loss__equals_the_loops(case: Case, clip: tuple[float, float], reduction: str, step: float):
    """With a step of 0 the policy is the old one: REINFORCE, nothing clipped, no KL."""
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
def test_policy_loss__by_hand(ratio: float, advantage: float, loss: float, clipped: bool):
    """clip_low 0.2 and clip_high 0.28; where the clip bites, the gradient is exactly 0."""
    leaf = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1)
    ours = policy_loss(leaf, torch.zeros(1, 1), advantage * one, one, 0.2, 0.28)
    assert ours.loss.item() == pytest.approx(loss)
    assert ours.clipped.item() == float(clipped)
    assert ours.kl.item() == pytest.approx(ratio - 1 - math.log(ratio))
    slope = gradient(ours.loss, leaf).item()
    assert slope == 0 if clipped else slope == pytest.approx(-ratio * advantage)


def test_policy_loss__survives_a_huge_ratio():
    """A log-ratio that exp cannot hold is clipped like any other: finite loss, gradient 0."""
    leaf = torch.tensor([[100.0, -1.0]], requires_grad=True)
    loss = policy_loss(leaf, torch.tensor([[0.0, -1.0]]), torch.ones(1, 2), torch.ones(1, 2), 0.2, 0.2).loss
    assert loss.item() == pytest.approx(-2.2)
    assert gradient(loss, leaf).tolist() == [[0.0, -1.0]]


def test_policy_loss__weighting_advantages_is_weighting_the_loss():
    g = torch.Generator().manual_seed(0)
    new, old, advantages = (torch.randn(4, 6, generator=g, dtype=torch.float64) for _ in range(3))
    weights = 2 * torch.rand(4, 6, generator=g, dtype=torch.float64)
    by_advantage = policy_loss(new, old, advantages * weights, torch.ones_like(weights), 0.2, 0.3).loss
    by_loss = policy_loss(new, old, advantages, weights, 0.2, 0.3).loss
    torch.testing.assert_close(by_advantage, by_loss)


@property_test
@given(cases(), st.sampled_from([0.5, 1.0, 2.0, 100.0]))
def test_importance_weights__are_truncated_ratios(case: Case, ceiling: float):
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


def test_importance_weights__of_what_lies_far_off_are_finite():
    weights = importance_weights(
        torch.tensor([[0.0, -400.0]]), torch.tensor([[-400.0, 0.0]]), torch.tensor([[True, True]]), 2.0
    )
    assert weights.tolist() == [[2.0, 0.0]]


# Implicit PRM: on outcomes


@pytest.mark.parametrize("name", PRM_LOSSES)
@property_test
@given(case=cases(), z0=st.floats(-3, 3))
def test_outcome_loss__equals_the_loops(name: str, case: Case, z0: float):
    scores = case.scores()
    leaf = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    loss, count = outcome_loss(name, leaf, case.outcome_tensor, case.group_tensor, z0)

    def slow(scores: list[float]) -> tuple[float, int]:
        return brute.outcome_loss(name, scores, case.outcomes, case.group, z0)

    assert (loss.item(), count) == (pytest.approx(slow(scores)[0]), slow(scores)[1])
    if name in ("ce", "kto") or len(scores) <= 12:  # finite differences over pairs are slow
        slopes = brute.slopes(lambda x: slow(x)[0], scores)
        assert gradient(loss, leaf).tolist() == pytest.approx(slopes, abs=1e-6)


def test_prm_ce_loss__by_hand():
    assert prm_ce_loss(torch.zeros(3), torch.tensor([0.0, 0.5, 1.0])).item() == pytest.approx(3 * math.log(2))
    odds = torch.tensor([math.log(3.0)])  # P(correct) = 3/4
    assert prm_ce_loss(odds, torch.ones(1)).item() == pytest.approx(-math.log(0.75))
    assert prm_ce_loss(odds, torch.zeros(1)).item() == pytest.approx(-math.log(0.25))


def test_prm_ce_loss__of_a_soft_label_is_least_at_its_log_odds():
    leaf = torch.tensor([math.log(0.3 / 0.7)], dtype=torch.float64, requires_grad=True)
    loss = prm_ce_loss(leaf, torch.tensor([0.3], dtype=torch.float64))
    assert gradient(loss, leaf).item() == pytest.approx(0.0, abs=1e-12)


def test_prm_ce_loss__of_extreme_scores_is_finite():
    leaf = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    loss = prm_ce_loss(leaf, torch.tensor([1.0, 0.0, 0.0, 1.0]))
    assert loss.item() == pytest.approx(2e4)
    assert gradient(loss, leaf).tolist() == [0.0, 0.0, 1.0, -1.0]


def test_prm_ce_loss__first_gradient_is_reinforce_with_baseline_one_half():
    """phi = ref: the loss falls along beta * (o - 1/2) for every token of the response, and so along
    beta * (o - 1/2) * grad log phi(y). What a PRM knows beyond that it has from somewhere else."""
    mask = torch.tensor([[False, True, True], [True, True, False]])
    reference = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    leaf = reference.clone().requires_grad_()
    scores = response_scores(token_rewards(leaf, reference, mask, beta=0.05))
    slope = gradient(prm_ce_loss(scores, torch.tensor([1.0, 0.25])), leaf)
    wanted = -0.05 * (torch.tensor([[1.0], [0.25]]) - 0.5) * mask
    torch.testing.assert_close(slope, wanted.double(), rtol=1e-6, atol=1e-8)


def test_prm_dpo_loss__by_hand():
    """One right against two wrong, and a response to another prompt that is in no pair."""
    scores = torch.tensor([math.log(3.0), 0.0, math.log(3.0), 50.0], requires_grad=True)
    outcomes, group = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0, 0, 0, 1])
    loss, pairs = prm_dpo_loss(scores, outcomes, group)
    assert pairs.item() == 2
    assert loss.item() == pytest.approx(-math.log(0.75) - math.log(0.5))
    assert gradient(loss, scores).tolist() == pytest.approx([-0.75, 0.25, 0.5, 0.0])


def test_prm_dpo_loss__of_extreme_scores_is_finite():
    leaf = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss, _ = prm_dpo_loss(leaf, torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.long))
    assert loss.item() == pytest.approx(2e4)
    assert gradient(loss, leaf).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("pair_loss", [prm_dpo_loss, prm_nca_loss])
@pytest.mark.parametrize("outcome", [0.0, 0.5, 1.0])
def test_prm_dpo_loss__and_nca_without_pairs_are_zero_with_a_zero_gradient(pair_loss, outcome: float):
    leaf = torch.tensor([3.0, -1e4, 1e4], requires_grad=True)
    loss, pairs = pair_loss(leaf, torch.full((3,), outcome), torch.zeros(3, dtype=torch.long))
    assert (loss.item(), pairs.item()) == (0.0, 0)
    assert gradient(loss, leaf).tolist() == [0.0, 0.0, 0.0]


def test_prm_nca_loss__holds_the_score_of_the_better_response():
    """Where DPO is content with a large margin at any level, NCA pulls a right response's low score up."""
    scores = torch.tensor([-10.0, -30.0], requires_grad=True)
    outcomes, group = torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.long)
    for loss, slope in ((prm_dpo_loss, 0), (prm_nca_loss, -1)):
        found = gradient(loss(scores, outcomes, group)[0], scores).tolist()
        assert found == pytest.approx([slope, 0], abs=1e-4)


def test_prm_kto_loss__by_hand():
    """At the reference point a right and a wrong response lose one half each; z0 gets no gradient."""
    scores = torch.tensor([2.0, 2.0], requires_grad=True)
    loss = prm_kto_loss(scores, torch.tensor([1.0, 0.0]), scores.mean())
    assert loss.item() == pytest.approx(1.0)
    assert gradient(loss, scores).tolist() == pytest.approx([-0.25, 0.25])
    assert prm_kto_loss(torch.tensor([1e4, -1e4]), torch.tensor([1.0, 0.0]), 0.0).item() == 0.0


# Implicit PRM: on every prefix, and balanced within groups


def test_prm_prefix_loss__by_hand():
    """Mean values log 3, log 3 and 0 of a right response, m = 0; -log 3 of a wrong one; then a margin of log 3."""
    odds = math.log(3.0)
    leaf = torch.tensor([[9.0, odds, odds, -2 * odds], [9.0, -odds, 0.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[False, True, True, True], [False, True, False, False]])
    loss = prm_prefix_loss(leaf * mask, torch.tensor([1.0, 0.0]), mask, 0.0)
    right, wrong = -(2 * math.log(3 / 4) + math.log(1 / 2)) / 3, -math.log(3 / 4)
    assert loss.item() == pytest.approx(right + wrong)
    slope = gradient(loss, leaf)
    ends = [-1 / 4, -1 / 4 / 2, -1 / 2 / 3]  # of each prefix's loss with respect to a reward in it
    assert slope[0].tolist() == pytest.approx([0, sum(ends) / 3, sum(ends[1:]) / 3, ends[2] / 3])
    assert slope[1].tolist() == pytest.approx([0, 1 / 4, 0, 0])
    loss = prm_prefix_loss(leaf * mask, torch.tensor([1.0, 0.0]), mask, odds)
    assert loss.item() == pytest.approx(-(2 * math.log(1 / 2) + math.log(1 / 4)) / 3 - math.log(1 / 2))


def test_prm_prefix_loss__of_one_token_without_a_margin_is_the_cross_entropy():
    scores, outcomes = torch.tensor([0.4, -2.0, 0.0]), torch.tensor([1.0, 0.25, 0.0])
    loss = prm_prefix_loss(scores[:, None], outcomes, torch.ones(3, 1, dtype=torch.bool), 0.0)
    torch.testing.assert_close(loss, prm_ce_loss(scores, outcomes))


def test_two_sided_loss__balanced_by_hand():
    """One of four is right: shifted by log-odds of 1/4, the right one weighs 3/4 and each wrong one 1/4."""
    scores = torch.tensor([math.log(3.0), 0.0, 0.0, 0.0], requires_grad=True)
    found = two_sided_loss(scores, torch.tensor([1.0, 0, 0, 0]), 0.0, torch.full((4,), 0.25))
    assert found.tolist() == pytest.approx([-0.75 * math.log(1 / 2), *[-0.25 * math.log(3 / 4)] * 3])
    assert gradient(found.sum(), scores).tolist() == pytest.approx([-0.75 / 2, *[0.25 / 4] * 3])


def test_two_sided_loss__balanced_right_and_wrong_pull_alike_far_inside_the_margin():
    """Whatever the group's accuracy: with a large margin a response's pull is its weight."""
    for right in range(1, 8):
        outcomes = torch.tensor([1.0] * right + [0.0] * (8 - right))
        scores = torch.zeros(8, requires_grad=True)
        loss = two_sided_loss(scores, outcomes, 20.0, torch.full((8,), right / 8)).sum()
        slope = gradient(loss, scores)
        assert float(slope[:right].sum()) == pytest.approx(-float(slope[right:].sum()), rel=1e-5)


@pytest.mark.parametrize("outcome", [0.0, 1.0])
@pytest.mark.parametrize("margin", [0.0, 5.0])
def test_two_sided_loss__balanced_a_group_of_equal_outcomes_teaches_nothing(outcome: float, margin: float):
    scores = torch.tensor([1e4, 0.3, -1e4], requires_grad=True)
    loss = two_sided_loss(scores, torch.full((3,), outcome), margin, torch.full((3,), outcome)).sum()
    assert loss.item() == 0
    assert gradient(loss, scores).tolist() == [0.0, 0.0, 0.0]


def test_two_sided_loss__balanced_soft_outcomes_share_the_two_terms():
    """And of two responses the better one is pulled further up."""
    scores, mean = torch.zeros(2, requires_grad=True), torch.full((2,), 0.5)
    soft = two_sided_loss(scores, torch.tensor([0.75, 0.25]), 1.0, mean)
    hard = [two_sided_loss(scores, torch.full((2,), o), 1.0, mean) for o in (1.0, 0.0)]
    torch.testing.assert_close(soft[0], 0.75 * hard[0][0] + 0.25 * hard[1][0])
    slope = gradient(soft.sum(), scores)
    assert float(slope[0]) < 0 < float(slope[1])


# Implicit PRM: on step labels, and from log-probabilities


@property_test
@given(cases(), st.sampled_from([float("nan"), float("inf"), 1e4]))
def test_prm_step_loss__equals_the_loops_whatever_stands_off_the_labels(case: Case, garbage: float):
    values = [brute.prefix_values(row) for row in case.values("rewards")]
    labels = soft_labels(case)
    labelled = case.positions(case.ends)
    leaf = torch.where(labelled, case.block(values, torch.float64), garbage).requires_grad_()
    loss, count = prm_step_loss(leaf, torch.where(labelled, case.block(labels), garbage), labelled)
    wanted, steps = brute.step_loss(values, labels, case.ends)
    assert count.item() == steps
    assert loss.item() == pytest.approx(wanted)
    if sum(case.lengths) <= 60:  # finite differences over many tokens are slow
        slopes = ragged_slopes(lambda rows: brute.step_loss(rows, labels, case.ends)[0], values)
        case.check(gradient(loss, leaf), slopes, 1e-6)


def soft_labels(case: Case) -> brute.Ragged:
    """0, 1/4, ..., 1 for every token."""
    return [[float(round(4 * abs(label)) % 5) / 4 for label in row] for row in case.values("labels")]


def test_prm_step_loss__by_hand():
    """Two labelled steps of one response, P(right) 3/4 and 1/4, and an unlabelled one between them; then none."""
    odds = math.log(3.0)
    leaf = torch.tensor([[0.0, odds, 9.0, -odds]], requires_grad=True)
    labels = torch.tensor([[1.0, 1.0, 0.0, 0.5]])
    loss, steps = prm_step_loss(leaf, labels, torch.tensor([[False, True, False, True]]))
    assert steps.item() == 2
    assert loss.item() == pytest.approx(-math.log(0.75) - 0.5 * math.log(0.25) - 0.5 * math.log(0.75))
    assert gradient(loss, leaf)[0].tolist() == pytest.approx([0.0, -0.25, 0.0, -0.25])
    loss, steps = prm_step_loss(leaf, labels, torch.zeros(1, 4, dtype=torch.bool))
    assert (loss.item(), steps.item()) == (0.0, 0)
    assert gradient(loss, leaf).tolist() == [[0.0, 0.0, 0.0, 0.0]]


@property_test
@given(cases())
def test_prm_step_loss__at_the_last_token_is_the_response_loss(case: Case):
    values = prefix_values(case.clean(case.values("rewards"), torch.float64))
    last = case.positions([[t == length - 1 for t in range(length)] for length in case.lengths])
    loss, count = prm_step_loss(values, case.outcome_tensor[:, None].expand_as(values), last)
    assert count.item() == len(case)
    torch.testing.assert_close(loss, prm_ce_loss(values[last], case.outcome_tensor))


@pytest.mark.parametrize(
    ("name", "balance"),
    [*((name, False) for name in (*PRM_LOSSES, "prefix", "steps")), ("ce", True), ("prefix", True)],
)
@property_test
@given(
    case=cases(),
    beta=st.sampled_from([0.05, 0.3]),
    z0=st.sampled_from([0.0, 0.2]),
    margin=st.sampled_from([0.0, 0.5, 5.0]),
)
def test_prm_loss__equals_the_loops(
    name: str, balance: bool, case: Case, beta: float, z0: float, margin: float
):
    """From log-probabilities and a batch; a step's label moves every token of its prefix, and no later one."""
    logprobs, reference, labels = case.values("prm"), case.values("reference"), soft_labels(case)

    def slow(logprobs: brute.Ragged) -> tuple[float, int]:
        rewards = brute.token_rewards(logprobs, reference, beta)
        steps = labels, case.ends
        return brute.prm_loss(name, rewards, case.outcomes, case.group, steps, z0, margin, balance)

    batch = case.batch(
        ref_logprobs=case.block(reference), labels=case.block(labels), step_end=case.positions(case.ends)
    )
    batch = with_group_outcome(batch) if balance else batch
    leaf = case.block(logprobs).requires_grad_()
    loss = prm_loss(name, leaf, batch, beta, z0, margin, balance)
    total, count = slow(logprobs)
    assert loss.item() == pytest.approx(total, rel=1e-4, abs=1e-4)
    assert prm_loss_count(name, batch) == count
    if sum(case.lengths) <= 60:
        slopes = ragged_slopes(lambda rows: slow(rows)[0], logprobs)
        case.check(gradient(loss, leaf), slopes, 1e-4)


# Distillation


@property_test
@given(st.integers(0, 10_000), st.integers(1, 9), st.floats(0.1, 8))
def test_with_rest__the_kl_of_lumped_distributions_is_a_lower_bound_and_whole_where_nothing_is_left(
    seed: int, k: int, sharpness: float
):
    """Of nine tokens k are told apart; the others are one outcome with their summed probability, the gradient too."""
    draw = torch.Generator().manual_seed(seed)
    logits, other = torch.randn(2, 5, 9, generator=draw, dtype=torch.float64).mul(sharpness)
    ids, q = torch.rand(5, 9, generator=draw).argsort(-1)[:, :k], other.log_softmax(-1)
    left = torch.ones(5, 9).bool().scatter(-1, ids, False)
    leaf = logits.clone().requires_grad_()
    # Two graphs from one leaf.
    p, again = leaf.log_softmax(-1), leaf.log_softmax(-1)
    whole, exact = (p.exp() * (p - q)).sum(-1), p.masked_fill(~left, -torch.inf).logsumexp(-1)  # [5]
    lumped, theirs = with_rest(again.gather(-1, ids)), with_rest(q.gather(-1, ids))
    found = (lumped.exp() * (lumped - theirs)).sum(-1)
    assert bool((found <= whole + 1e-5).all())
    if k == 9:
        torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-9)
        mine, others = gradient(found.sum(), leaf), gradient(whole.sum(), leaf)
        torch.testing.assert_close(mine, others, rtol=1e-9, atol=1e-9)
        return
    seen = exact > math.log(2 * SMALLEST_REST)
    torch.testing.assert_close(lumped[seen, -1], exact[seen], rtol=0, atol=1e-8)
    assert bool((lumped[..., -1] >= math.log(SMALLEST_REST) - 1e-9).all())
    mine, others = gradient(lumped[seen, -1].sum(), leaf), gradient(exact[seen].sum(), leaf)
    torch.testing.assert_close(mine, others, rtol=1e-6, atol=1e-8)


def test_with_rest__is_safe_in_float32_where_the_others_sum_to_more_than_one():
    leaf = torch.tensor([[0.0, -20.0], [math.log(0.5), math.log(0.5) + 1e-6]], requires_grad=True)
    found = with_rest(leaf)
    torch.testing.assert_close(found[:, -1], torch.full((2,), math.log(SMALLEST_REST)))
    assert bool(gradient(found[:, -1].sum(), leaf).isfinite().all())


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [([1, 0, 0, 0], 0.25), ([1, 1, 1, 0], 0.75), ([0, 0], 0.4), ([1, 1, 1], 0.4), ([0.5, 0.5], 0.5)],
)
def test_prior_log_odds__expect_the_groups_mean_or_where_all_are_alike_the_batchs(outcomes, expected: float):
    group = torch.tensor(outcomes, dtype=torch.float32).mean().expand(len(outcomes))
    odds = prior_log_odds(group, 0.4)
    assert odds.tolist() == pytest.approx([math.log(expected / (1 - expected))] * len(outcomes))
    bounds = [math.log(0.02 / 0.98), math.log(0.98 / 0.02)]
    assert [float(prior_log_odds(group[:1] * 0, p)) for p in (0.0, 1.0)] == pytest.approx(bounds)


def test_prm_shifted_loss__a_mixed_group_pushes_as_much_up_as_down_and_a_sure_error_only_down():
    """The first gradient of a response, whose score is 0: o less the expected outcome, times beta, at every token."""
    outcomes, group = [1.0, 0.0, 0.0, 0.0, 0.0], [0, 0, 0, 1, 1]
    batch = make_batch(group, outcomes)
    known = torch.zeros(batch.token_ids.shape)
    batch = with_group_outcome(replace(batch, ref_logprobs=known))
    leaf = known.clone().requires_grad_()
    loss = prm_shifted_loss(leaf, batch, 0.5, overall=0.2)
    by_hand = sum(-math.log(1 / 3 if o else 2 / 3) for o in outcomes[:3]) - 2 * math.log(0.8)
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    expected = torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.2, 0.2]) - batch.outcome
    torch.testing.assert_close(gradient(loss, leaf), 0.5 * expected[:, None] * batch.response_mask)


@property_test
@given(st.integers(0, 10_000), st.floats(-3, 0), st.floats(0, 2), st.floats(0.1, 2))
def test_distillation_loss__is_a_kl_to_the_tilted_reference(
    seed: int, low: float, high: float, coefficient: float
):
    """c * KL(policy || ref exp(clip(log phi/ref)/c)/Z) - c log Z, token by token of the mask."""
    draw = torch.Generator().manual_seed(seed)
    pi, phi, ref = (
        torch.randn(2, 3, 7, generator=draw, dtype=torch.float64).mul(2).log_softmax(-1) for _ in range(3)
    )
    mask, expected = torch.rand(2, 3, generator=draw) < 0.6, 0.0
    for n in mask.nonzero().unbind():
        n = tuple(n.tolist())
        weights = [
            math.exp(float(ref[n][a]) + min(max(float(phi[n][a] - ref[n][a]), low), high) / coefficient)
            for a in range(7)
        ]
        z = math.fsum(weights)
        for a in range(7):
            p = math.exp(float(pi[n][a]))
            expected += coefficient * p * (float(pi[n][a]) - math.log(weights[a] / z))
        expected -= coefficient * math.log(z)
    found = distillation_loss(pi, tilted_reference(phi, ref, low, high, coefficient), mask, coefficient)
    assert found.item() == pytest.approx(expected, abs=1e-9)


def test_distillation_loss__has_no_gradient_at_its_target():
    draw = torch.Generator().manual_seed(0)
    phi, ref = (torch.randn(4, 9, generator=draw, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    tilted = tilted_reference(phi, ref, -2, 0.3, 0.5)

    def slope(logits: Tensor) -> float:
        leaf = logits.detach().requires_grad_()
        loss = distillation_loss(leaf.log_softmax(-1), tilted, torch.ones(4), 0.5)
        return gradient(loss, leaf).abs().max().item()

    assert slope(ref + (phi - ref).clamp(-2, 0.3) / 0.5) < 1e-12
    assert slope(ref + 0.1 * phi) > 1e-3
