"""Distillation: a PRM learnt anew from the policy, and a policy that moves towards what its rewards ask for."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from openprime.config import DistillConfig, DistillPolicyConfig, DistillPRMConfig, DistillRLConfig
from openprime.models.lm import LM
from openprime.prime import distill
from openprime.prime.distill import Distill
from openprime.prime.learner import Learner
from openprime.run.console import Clock
from openprime.types import Batch
from support import brute
from support.tiny_lm import catch_gradients, make_batch, make_model, naive_distributions, weights

HOW = DistillConfig(prm_epochs=3, low=-1.5, high=0.4, kl_coefficient=0.7)


@pytest.fixture
def batch() -> Batch:
    return make_batch(outcomes=[1, 0, 1, 0, 1, 0, 1, 0])


@pytest.fixture
def policy() -> Learner:
    return make_policy()


def make_policy() -> Learner:
    config = DistillPolicyConfig(lr=0.02, tokens_per_microbatch=40, clip_grad=1e9)
    return Learner(LM(make_model(seed=5)), config, 100)


def make_method(lr: float = 0.01, minibatch: int = 8, epochs: int = 1) -> Distill:
    """Neither its PRM nor its reference is the policy yet."""
    config = DistillRLConfig(
        policy=DistillPolicyConfig(minibatch=minibatch, epochs=epochs),
        prm=DistillPRMConfig(lr=lr, minibatch=3, tokens_per_microbatch=20),
        distill=HOW,
    )
    return Distill(config, LM(make_model(seed=1)), LM(make_model(seed=2)), Clock())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def target_kl(policy: torch.nn.Module, method: Distill, batch: Batch) -> Tensor:
    """Mean over tokens of KL(policy || ref * exp(clip(log phi/ref) / c) / Z), with autograd, in float64."""
    pi = torch.cat(naive_distributions(policy, batch))  # [N, V]
    with torch.no_grad():
        models = (copy.deepcopy(lm.model).double() for lm in (method.prm.lm, method.reference))
        phi, ref = (torch.cat(naive_distributions(model, batch)) for model in models)
        target = (ref + (phi - ref).clamp(HOW.low, HOW.high) / HOW.kl_coefficient).log_softmax(-1)
    return (pi.exp() * (pi - target)).sum(-1).mean()


def test_learn__the_prm_starts_from_the_policy_and_learns_the_outcomes(policy: Learner, batch: Batch):
    method, start = make_method(), weights(policy.lm.model)
    known, metrics = method.learn(policy, batch, generator())
    assert torch.equal(weights(method.reference.model), start), "the reference is the policy"
    assert torch.equal(weights(policy.lm.model), start), "the policy has not moved"
    scores = method.prm.token_rewards(known).sum(-1)
    assert scores[batch.outcome > 0.5].mean() > scores[batch.outcome < 0.5].mean() + 0.1
    nats = sorted((-known.ref_logprobs.sum(-1)).tolist())
    assert method.prm.beta == metrics["prm/beta"] == pytest.approx(min(1.0, max(0.05, 0.5 / nats[3])))


def test_learn__begins_every_step_anew(policy: Learner, batch: Batch):
    """What it learnt from another batch before leaves nothing behind, its optimiser's memory included."""
    one, two = make_method(), make_method()
    one.learn(policy, replace(batch, outcome=1 - batch.outcome), generator(1))
    for method in (one, two):
        method.learn(policy, batch, generator())
    assert torch.equal(weights(one.prm.lm.model), weights(two.prm.lm.model))


def test_teach__the_policy_approaches_the_tilted_reference(policy: Learner, batch: Batch):
    method = make_method(lr=0.05, epochs=40)
    method.learn(policy, batch, generator())
    before = target_kl(policy.lm.model, method, batch)
    method.teach(policy, batch, generator())
    assert before > 0.01
    assert target_kl(policy.lm.model, method, batch) < before / 4


def test_teach__first_gradient_is_that_of_the_kl(policy: Learner, batch: Batch):
    """By autograd through the definition, in float64; the coefficient times KL, mean over the batch's tokens."""
    method = make_method(lr=0.05)
    method.learn(policy, batch, generator())
    twin, caught = copy.deepcopy(policy.lm.model).double(), catch_gradients(policy.optimizer)
    method.teach(policy, batch, generator())
    (HOW.kl_coefficient * target_kl(twin, method, batch)).backward()
    for mine, parameter in zip(caught[0], twin.parameters(), strict=True):
        torch.testing.assert_close(mine.double(), parameter.grad, atol=2e-5, rtol=1e-3)


def test_teach__targets_made_again_are_the_kept_ones(batch: Batch, monkeypatch: pytest.MonkeyPatch):
    results = []
    for most in (distill.KEPT_ELEMENTS, 0):
        monkeypatch.setattr(distill, "KEPT_ELEMENTS", most)
        policy, method = make_policy(), make_method(minibatch=3, epochs=2)
        method.learn(policy, batch, generator())
        method.teach(policy, batch, generator())
        results.append(weights(policy.lm.model))
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-3)


def test_teach__looks_at_no_outcome(batch: Batch):
    results = []
    for outcome in (batch.outcome, 1 - batch.outcome):
        policy, method = make_policy(), make_method(minibatch=4)
        method.learn(policy, batch, generator())
        method.teach(policy, replace(batch, outcome=outcome), generator())
        results.append(weights(policy.lm.model))
    assert torch.equal(*results)


def test_distill_step__skill_is_measured_before_the_prm_has_seen_the_batch(policy: Learner, batch: Batch):
    method = make_method()
    _, first = method.step(policy, batch)
    assert "prm/pairwise_accuracy" not in first, "there is no PRM before the first step"
    scores = method.prm.token_rewards(method.prm.with_reference(batch)).sum(-1).tolist()
    won, pairs = brute.pairwise_accuracy(scores, batch.outcome.tolist(), batch.group.tolist())
    done, second = method.step(policy, batch)
    assert second["prm/pairwise_accuracy"] == pytest.approx(won / pairs)
    right = done.rewards.sum(-1)[batch.outcome > 0.5]
    assert second["prm/score_right"] == pytest.approx(right.mean().item(), rel=1e-5)
