"""The PRM that learns beside the policy: what it scores with, when it is updated and on what."""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from openprime.config import PRMConfig
from openprime.models.lm import LM, micro_batches
from openprime.prime.learner import Learner
from openprime.prime.losses import PAIRS, prm_loss, prm_loss_count
from openprime.prime.prm import OnlinePRM, minibatches_of_groups, moving_average
from openprime.run.console import Clock
from openprime.types import Batch
from support import brute
from support.tiny_lm import GROUP, make_batch, make_model, naive_logprobs, weights

BETA = 0.3


@pytest.fixture
def batch() -> Batch:
    return make_batch()


def make_prm(reference: bool = True, **options) -> OnlinePRM:
    """A PRM that differs from its reference, with a rate that moves it visibly."""
    config = PRMConfig(
        **({"lr": 0.05, "beta": BETA, "clip_grad": 1e9, "tokens_per_microbatch": 20} | options)
    )
    learner = Learner(LM(make_model(seed=1)), config, 10)
    return OnlinePRM(learner, LM(make_model(seed=2)) if reference else None, config, Clock())


@torch.no_grad()
def by_hand(prm: OnlinePRM, batch: Batch) -> Tensor:
    """r_t = beta * (log phi - log ref) under the present weights, token by token, [B, T]."""
    phi = naive_logprobs(prm.lm.model, batch)
    ref = batch.logprobs if prm.reference is None else naive_logprobs(prm.reference.model, batch)
    return torch.where(batch.response_mask, BETA * (phi - ref), 0.0)


def assert_rewards(mine: Tensor | None, expected: Tensor) -> None:
    assert mine is not None
    assert not mine.requires_grad
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def assert_judged(metrics: dict[str, float], fresh: Tensor, batch: Batch) -> None:
    """The metrics are those of the rewards `fresh` [B, T], given before any update."""
    scores, outcomes = fresh.sum(-1).tolist(), batch.outcome.tolist()
    won, pairs = brute.pairwise_accuracy(scores, outcomes, batch.group.tolist())
    right = [s for s, o in zip(scores, outcomes, strict=True) if o > 0.5]
    wrong = [s for s, o in zip(scores, outcomes, strict=True) if o <= 0.5]
    squares = [(1 / (1 + math.exp(-s)) - o) ** 2 for s, o in zip(scores, outcomes, strict=True)]
    assert metrics["prm/pairwise_accuracy"] == pytest.approx(won / pairs if pairs else math.nan, nan_ok=True)
    assert metrics["prm/brier"] == pytest.approx(sum(squares) / len(squares), rel=1e-4)
    assert metrics["prm/score_right"] == pytest.approx(sum(right) / len(right), rel=1e-3, abs=1e-4)
    assert metrics["prm/score_wrong"] == pytest.approx(sum(wrong) / len(wrong), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("reference", [True, False])
def test_token_rewards__of_a_prm_are_beta_times_the_log_ratio(reference: bool, batch: Batch):
    """With a frozen reference model, and with the sampling policy's own log-probabilities."""
    prm = make_prm(reference)
    known = prm.with_reference(batch)
    assert known.ref_logprobs is not None
    assert torch.equal(known.ref_logprobs, batch.logprobs) == (not reference)
    mine = prm.token_rewards(known)
    assert_rewards(mine, by_hand(prm, batch))
    assert bool((mine[~batch.response_mask] == 0).all())
    assert float(mine.abs().max()) > 0.1


def test_token_rewards__of_a_prm_that_is_its_reference_are_zero(batch: Batch):
    prm = make_prm()
    prm.reference = LM(make_model(seed=1))
    assert float(prm.token_rewards(prm.with_reference(batch)).abs().max()) < 1e-6


# The order of scoring and updating


def test_score_and_update__after_takes_one_forward_pass_with_the_weights_before_the_update(batch: Batch):
    prm = make_prm(update="after")
    expected, before, passes = by_hand(prm, batch), weights(prm.lm.model), []
    prm.token_rewards(prm.with_reference(batch))  # the model's head has been tried
    hook = prm.lm.model.base_model.register_forward_hook(lambda *_: passes.append(1))
    done, metrics = prm.score_and_update(batch)
    hook.remove()
    assert len(passes) == len(micro_batches(batch.lengths, 20, batch.group)) > 1
    assert_rewards(done.rewards, expected)
    assert_judged(metrics, expected, batch)
    assert float((weights(prm.lm.model) - before).abs().max()) > 0.01
    assert float((by_hand(prm, batch) - expected).abs().max()) > 0.05


def test_score_and_update__before_scores_with_the_updated_weights_and_judges_the_old_ones(batch: Batch):
    """The update itself is the same either way, and the reference stays as it was."""
    prm, other = make_prm(update="before"), make_prm(update="after")
    old, reference = by_hand(prm, batch), weights(prm.reference.model)
    done, metrics = prm.score_and_update(batch)
    new = by_hand(prm, batch)
    assert_rewards(done.rewards, new)
    assert_judged(metrics, old, batch)
    assert (new - old).abs().max().item() > 0.05
    _, others = other.score_and_update(batch)
    assert all(others[f"prm/{key}"] == metrics[f"prm/{key}"] for key in ("loss", "grad_norm", "lr"))
    assert torch.equal(weights(prm.lm.model), weights(other.lm.model))
    assert torch.equal(weights(prm.reference.model), reference)


def test_score_and_update__never_leaves_the_weights_alone(batch: Batch):
    prm = make_prm(update="never")
    before = weights(prm.lm.model)
    done, metrics = prm.score_and_update(batch)
    assert torch.equal(weights(prm.lm.model), before)
    assert prm.learner.updates == 0
    assert_rewards(done.rewards, by_hand(prm, batch))
    assert_judged(metrics, by_hand(prm, batch), batch)
    assert math.isnan(metrics["prm/loss"])
    assert math.isnan(metrics["prm/grad_norm"])


@pytest.mark.parametrize("loss", ["ce", "dpo"])
@pytest.mark.parametrize(("update", "minibatch"), [("after", 3), ("after", 1), ("before", 3)])
def test_trap_04__several_minibatches_are_scored_by_one_version_of_the_prm(
    update: str, minibatch: int, loss: str, batch: Batch
):
    prm = make_prm(update=update, minibatch=minibatch, loss=loss)
    old = by_hand(prm, batch)
    done, metrics = prm.score_and_update(batch)
    new = by_hand(prm, batch)
    assert prm.learner.updates == (3 if minibatch == 1 else 2)
    assert_rewards(done.rewards, old if update == "after" else new)
    assert_judged(metrics, old, batch)
    for rows in ([0, 1, 2], [3, 4], [5, 6, 7]):  # every group's rewards would have told another version
        assert (old - new)[rows].abs().max().item() > 0.02


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (1, [[0, 1, 2], [3, 4], [5, 6, 7]]),
        (3, [[0, 1, 2], [3, 4, 5, 6, 7]]),
        (4, [[0, 1, 2, 3, 4], [5, 6, 7]]),
        (5, [[0, 1, 2, 3, 4], [5, 6, 7]]),
        (6, [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (100, [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ],
)
def test_minibatches_of_groups__keep_groups_whole(size: int, expected: list[list[int]]):
    assert [rows.tolist() for rows in minibatches_of_groups(torch.tensor(GROUP), size)] == expected


# What it learns from


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("name", ["ce", "dpo"])
def test_score_and_update__takes_a_step_on_the_loss_of_the_whole_batch(
    name: str, reference: bool, batch: Batch
):
    """One of the learner, whose steps are compared with autograd in test_learner.py."""
    prm, other = make_prm(reference, loss=name), make_prm(reference, loss=name)
    _, metrics = prm.score_and_update(batch)
    loss, count = partial(prm_loss, name, beta=BETA), prm_loss_count(name, batch)
    done = other.learner.update(other.with_reference(batch), loss, count, whole_groups=name in PAIRS)
    assert [metrics[f"prm/{key}"] for key in ("loss", "grad_norm", "lr")] == [done.loss, done.grad_norm, 0.05]
    assert torch.equal(weights(prm.lm.model), weights(other.lm.model))


def test_trap_04__minibatches_mean_their_losses_and_report_the_largest_norm(batch: Batch):
    """Three steps, the loss of each at the weights after the one before."""
    prm, twin = make_prm(minibatch=1), make_prm(minibatch=1)
    losses, norms = [], []
    for rows in ([0, 1, 2], [3, 4], [5, 6, 7]):
        part = batch.select(torch.tensor(rows))
        losses.append(brute.ce_loss(by_hand(twin, part).sum(-1).tolist(), part.outcome.tolist()) / len(rows))
        norms.append(twin.score_and_update(part)[1]["prm/grad_norm"])
    _, metrics = prm.score_and_update(batch)
    assert metrics["prm/loss"] == pytest.approx(sum(losses) / 3, rel=1e-3)
    assert metrics["prm/grad_norm"] == pytest.approx(max(norms), rel=1e-3)
    assert len(set(norms)) == 3


@pytest.mark.parametrize("update", ["after", "before"])
def test_score_and_update__dpo_without_a_pair_updates_nothing(update: str):
    batch, prm = make_batch([0, 0, 1, 1, 2], [1, 1, 0, 0, 1]), make_prm(loss="dpo", update=update)
    before = weights(prm.lm.model)
    done, metrics = prm.score_and_update(batch)
    assert torch.equal(weights(prm.lm.model), before)
    assert prm.learner.updates == 0
    assert_rewards(done.rewards, by_hand(prm, batch))
    assert_judged(metrics, by_hand(prm, batch), batch)
    assert math.isnan(metrics["prm/loss"])
    assert math.isnan(metrics["prm/grad_norm"])
    assert "prm/skill" not in metrics


@pytest.mark.parametrize("update", ["after", "before"])
def test_score_and_update__dpo_passes_over_minibatches_without_a_pair(update: str):
    batch = make_batch([0, 0, 1, 1, 2, 2], [1, 1, 1, 0, 0, 0])
    prm = make_prm(loss="dpo", minibatch=2, update=update)
    old = by_hand(prm, batch)
    done, metrics = prm.score_and_update(batch)
    assert prm.learner.updates == 1
    assert_rewards(done.rewards, old if update == "after" else by_hand(prm, batch))
    right, wrong = old.sum(-1)[2:4].tolist()
    assert metrics["prm/loss"] == pytest.approx(math.log1p(math.exp(wrong - right)), rel=1e-3)


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("name", ["ce", "prefix"])
def test_score_and_update__a_balanced_or_prefix_step_equals_the_loops(name: str, balance: bool, batch: Batch):
    """Its loss at the weights before the step, and its scores, in micro-batches that part groups."""
    prm = make_prm(loss=name, margin=0.5, balance=balance)
    rewards = by_hand(prm, batch)
    rows = [row[mask].tolist() for row, mask in zip(rewards, batch.response_mask, strict=True)]
    outcomes, group = batch.outcome.tolist(), batch.group.tolist()
    loss, count = brute.prm_loss(name, rows, outcomes, group, ([], []), 0.0, 0.5, balance)
    before = weights(prm.lm.model)
    _, metrics = prm.score_and_update(batch)
    assert metrics["prm/loss"] == pytest.approx(loss / count, rel=1e-4)
    assert not torch.equal(weights(prm.lm.model), before)
    scores = [math.fsum(row) / (len(row) if name == "prefix" else 1) for row in rows]
    squares = [(1 / (1 + math.exp(-s)) - o) ** 2 for s, o in zip(scores, outcomes, strict=True)]
    assert metrics["prm/brier"] == pytest.approx(sum(squares) / len(squares), rel=1e-4)
    won, pairs = brute.pairwise_accuracy(scores, outcomes, group)
    assert metrics["prm/pairwise_accuracy"] == pytest.approx(won / pairs)


@pytest.mark.parametrize("reference", [True, False])
def test_score_and_update__auto_fits_the_first_batch_and_stays(reference: bool, batch: Batch):
    """Against the nats a token of the reference, or of the policy that sampled; a resumed PRM keeps them."""
    prm = make_prm(reference, loss="prefix", beta="auto", balance=True)
    known = batch.logprobs if not reference else naive_logprobs(prm.reference.model, batch).detach()
    nats = sorted(-float(row[mask].mean()) for row, mask in zip(known, batch.response_mask, strict=True))
    median = (nats[3] + nats[4]) / 2
    prm.score_and_update(batch)
    assert (prm.beta, prm.margin) == (pytest.approx(10 / median, rel=1e-4), pytest.approx(5.0))
    fitted = prm.beta, prm.margin
    prm.score_and_update(make_batch(seed=1))
    resumed = make_prm(reference, loss="prefix", beta="auto", balance=True)
    resumed.restore(copy.deepcopy(prm.state()))
    resumed.score_and_update(make_batch(seed=2))
    assert (prm.beta, prm.margin) == (resumed.beta, resumed.margin) == fitted


def test_score_and_update__auto_beta_of_the_cross_entropy_is_that_of_offline_training(batch: Batch):
    prm = make_prm(loss="ce", beta="auto")
    nats = sorted(-float(value) for value in naive_logprobs(prm.reference.model, batch).detach().sum(-1))
    prm.score_and_update(batch)
    assert prm.beta == pytest.approx(max(0.05, 0.5 / ((nats[3] + nats[4]) / 2)), rel=1e-4)


def test_score_and_update__a_following_reference_is_the_policy_of_each_batch(batch: Batch):
    """Prefix and balance against the sampler: the same outcomes, sampled by another policy, have other rewards."""
    prm = make_prm(False, loss="prefix", margin=0.5, balance=True)
    other = replace(batch, logprobs=batch.logprobs - 0.3 * batch.response_mask)
    expected = by_hand(prm, batch)
    done, _ = make_prm(False, loss="prefix", margin=0.5, balance=True).score_and_update(other)
    assert_rewards(done.rewards, expected + BETA * 0.3 * batch.response_mask)


def test_score_and_update__teaches_the_outcomes(batch: Batch):
    prm = make_prm(lr=0.01)
    steps = [prm.score_and_update(batch) for _ in range(25)]
    assert steps[-1][1]["prm/loss"] < 0.5 * steps[0][1]["prm/loss"]
    scores = steps[-1][0].rewards.sum(-1)
    assert bool((scores[batch.outcome == 1] > scores[batch.outcome == 0].max()).all())


# Its skill, and going on


@pytest.mark.parametrize(
    ("before", "value", "after"),
    [(None, 0.7, 0.7), (0.5, 1.0, 0.6), (0.5, 0.0, 0.4), (0.5, math.nan, 0.5), (None, math.nan, None)],
)
def test_moving_average__by_hand(before: float | None, value: float, after: float | None):
    """The first batch counts whole; one without pairs says nothing."""
    assert moving_average(before, value) == pytest.approx(after)


def test_online_prm_restore__goes_on_exactly(batch: Batch):
    """Skill included; it is an average over batches of what was measured before their updates."""
    straight, resumed = make_prm(), make_prm()
    skill = None
    for seed in range(3):
        other = make_batch(seed=seed)
        _, metrics = straight.score_and_update(other)
        skill = moving_average(skill, metrics["prm/pairwise_accuracy"])
        assert metrics["prm/skill"] == skill
    resumed.restore(copy.deepcopy(straight.state()))
    (ours, metrics), (theirs, expected) = (prm.score_and_update(batch) for prm in (resumed, straight))
    assert metrics == expected
    assert torch.equal(ours.rewards, theirs.rewards)
    assert torch.equal(weights(resumed.lm.model), weights(straight.lm.model))
