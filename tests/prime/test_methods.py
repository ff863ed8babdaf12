"""The methods' steps, and the policy's update, against loops and plain PyTorch."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from openprime.config import AdvantageConfig, OutcomeConfig, PolicyConfig, PrimeConfig, PRMConfig
from openprime.models.lm import LM
from openprime.prime.advantages import skill_gate, with_advantages
from openprime.prime.learner import Learner
from openprime.prime.methods import (
    OutcomeOnly,
    Prime,
    gradient_cosine,
    minibatch_generator,
    update_policy,
    with_old_policy,
)
from openprime.prime.prm import OnlinePRM
from openprime.run.console import Clock
from openprime.types import Batch
from support import brute
from support.tiny_lm import make_batch, make_model, naive_logprobs, weights


def sampled(seed: int = 0) -> tuple[Batch, torch.nn.Module]:
    """A batch whose old log-probabilities are near the model's, so that some ratios are clipped; the model."""
    batch, model, generator = make_batch(seed=seed), make_model(seed), torch.Generator().manual_seed(seed)
    noise, advantages = (torch.randn(batch.token_ids.shape, generator=generator) for _ in range(2))
    with torch.no_grad():
        near = (naive_logprobs(model, batch) + 0.3 * noise) * batch.response_mask
    return replace(batch, logprobs=near, old_logprobs=near, advantages=advantages), model


def adamw(model: torch.nn.Module, config: PolicyConfig) -> torch.optim.Optimizer:
    """PyTorch's own, the plain loop over parameters."""
    plain = {"weight_decay": config.weight_decay, "foreach": False, "fused": False}
    return torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, config.beta2), **plain)


def naive_step(
    optimizer: torch.optim.Optimizer, model, batch: Batch, config: PolicyConfig, temperature: float = 1.0
) -> dict[str, float]:
    """One AdamW step on the clipped loss of a batch, written out."""
    new, mask = naive_logprobs(model, batch, temperature), batch.response_mask
    blocks = (new, batch.old_logprobs, batch.advantages)
    rows = [[row[own].tolist() for row, own in zip(block, mask, strict=True)] for block in blocks]
    weights, count = brute.token_weights([len(row) for row in rows[0]], config.reduction)
    loss, clipped, kl, slopes = brute.policy_loss(*rows, weights, config.clip_low, config.clip_high)
    optimizer.zero_grad()
    flat = torch.tensor([slope / count for row in slopes for slope in row])
    new.backward(torch.zeros_like(new).masked_scatter(mask, flat))
    norm = math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in model.parameters()))
    for p in model.parameters():
        p.grad.mul_(min(1.0, config.clip_grad / (norm + 1e-6)))
    optimizer.step()
    return {"loss": loss / count, "grad_norm": norm, "clip_fraction": clipped / count, "kl": kl / count}


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("clip_grad", [0.01, 1000.0])
@pytest.mark.parametrize("tokens", [1, 20, 16384])
def test_update_policy__one_minibatch_is_one_plain_adamw_step(reduction: str, clip_grad: float, tokens: int):
    config = PolicyConfig(
        lr=0.01,
        minibatch=8,
        reduction=reduction,
        clip_grad=clip_grad,
        clip_high=0.3,
        weight_decay=0.1,
        beta2=0.95,
        tokens_per_microbatch=tokens,
    )
    batch, model = sampled()
    plain = copy.deepcopy(model)
    optimizer = adamw(plain, config)
    expected = naive_step(optimizer, plain, batch, config)
    learner = Learner(LM(model), config, 1)
    metrics = update_policy(learner, batch, config, torch.Generator().manual_seed(0))
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        # Adam's first step hardly feels the gradient's size, its memory of the gradient does.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)
        memory = [o.state[p]["exp_avg"] for o, p in ((learner.optimizer, ours), (optimizer, theirs))]
        scale = float(memory[1].abs().max())
        torch.testing.assert_close(*memory, rtol=1e-3, atol=1e-5 * scale + 1e-9)
    assert metrics["policy/loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert metrics["policy/grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    assert metrics["policy/clip_fraction"] == pytest.approx(expected["clip_fraction"], abs=1e-6)
    assert metrics["policy/clip_fraction"] > 0.05
    assert metrics["policy/kl"] == pytest.approx(expected["kl"], rel=1e-3)
    assert metrics["policy/lr"] == 0.01


@pytest.mark.parametrize("minibatch", [2, 3, 5])
def test_update_policy__minibatches_and_epochs_are_plain_steps_one_after_the_other(minibatch: int):
    """Every response once an epoch, in the generator's order; the old log-probabilities stay the sampler's."""
    config = PolicyConfig(lr=0.01, minibatch=minibatch, epochs=2, tokens_per_microbatch=16)
    batch, model = sampled(1)
    plain, seen = copy.deepcopy(model), []
    optimizer, generator = adamw(plain, config), torch.Generator().manual_seed(4)
    for _ in range(2):
        order = torch.randperm(8, generator=generator).tolist()
        parts = -(-8 // minibatch)
        for size in (8 // parts + (i < 8 % parts) for i in range(parts)):
            rows, order = order[:size], order[size:]
            assert size <= minibatch
            seen.append(naive_step(optimizer, plain, batch.select(torch.tensor(rows)), config))
    learner = Learner(LM(model), config, len(seen))
    metrics = update_policy(learner, batch, config, torch.Generator().manual_seed(4))
    assert learner.updates == len(seen)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    for name in ("loss", "grad_norm"):
        mean = sum(step[name] for step in seen) / len(seen)
        assert metrics[f"policy/{name}"] == pytest.approx(mean, rel=1e-3)


def test_update_policy__divides_its_logits_by_the_temperature():
    config = PolicyConfig(lr=0.01, minibatch=8, clip_grad=1000.0)
    batch, model = sampled(2)
    plain = copy.deepcopy(model)
    naive_step(adamw(plain, config), plain, batch, config, 0.7)
    learner = Learner(LM(model, temperature=0.7), config, 1)
    update_policy(learner, batch, config, torch.Generator().manual_seed(0))
    torch.testing.assert_close(weights(model), weights(plain), rtol=1e-4, atol=2e-4)


def test_trap_12__the_mismatch_is_taken_before_any_update():
    config = PolicyConfig(lr=0.1, minibatch=8, epochs=2)
    batch, model = sampled(3)
    with torch.no_grad():
        gap = (naive_logprobs(model, batch) - batch.logprobs)[batch.response_mask].abs()
    metrics = update_policy(Learner(LM(model), config, 2), batch, config, torch.Generator())
    assert metrics["policy/mismatch_mean"] == pytest.approx(float(gap.mean()), rel=1e-4)
    assert metrics["policy/mismatch_max"] == pytest.approx(float(gap.max()), rel=1e-4)


def test_trap_12__importance_weights_make_the_policy_before_its_update_the_old_one():
    batch, model = sampled(4)
    policy = Learner(LM(model), PolicyConfig(), 1)
    plain, metrics = with_old_policy(policy, batch, 0)
    assert plain.old_logprobs is batch.logprobs
    assert (plain.importance, metrics) == (None, {})

    found, metrics = with_old_policy(policy, batch, 1.2)
    with torch.no_grad():
        own = naive_logprobs(model, batch)
    torch.testing.assert_close(found.old_logprobs, own, rtol=1e-4, atol=1e-5)
    mask = batch.response_mask
    log_ratio = (own - batch.logprobs)[mask]
    ratios = log_ratio.exp().clamp(max=1.2)
    torch.testing.assert_close(found.importance[mask], ratios, rtol=1e-4, atol=1e-5)
    assert metrics == {
        "policy/mismatch_mean": pytest.approx(log_ratio.abs().mean().item(), rel=1e-4),
        "policy/mismatch_max": pytest.approx(log_ratio.abs().max().item(), rel=1e-4),
        "policy/importance_mean": pytest.approx(ratios.mean().item(), rel=1e-4),
        "policy/importance_truncated": pytest.approx((ratios == ratios.max()).float().mean().item()),
    }
    assert 0.1 < metrics["policy/importance_truncated"] < 0.9


def test_update_policy__importance_weighs_the_advantages():
    """Tokens count by it."""
    config, results = PolicyConfig(lr=0.1, minibatch=8), []
    batch, model = sampled(4)
    batch, _ = with_old_policy(Learner(LM(model), config, 1), batch, 1.2)
    weighted = replace(batch, importance=None, advantages=batch.advantages * batch.importance)
    for one in (batch, weighted):
        learner = Learner(LM(copy.deepcopy(model)), config, 1)
        update_policy(learner, one, config, torch.Generator().manual_seed(0))
        results.append(weights(learner.lm.model))
    assert torch.equal(*results)


def flat_gradient(model, batch: Batch, advantages: torch.Tensor) -> torch.Tensor:
    """Of the sum of A log pi over response tokens, all parameters in a row; PyTorch's own."""
    model.zero_grad()
    (naive_logprobs(model, batch) * advantages)[batch.response_mask].sum().backward()
    return torch.cat([p.grad.flatten().double() for p in model.parameters()])


@pytest.mark.parametrize("minibatch", [3, 8])
@pytest.mark.parametrize("tokens", [20, 16384])
def test_gradient_cosine__is_that_of_two_gradients_side_by_side(minibatch: int, tokens: int):
    """Of the terms of eq. 5 on the first rows; weights and moments of the policy stay what they were."""
    how, config = AdvantageConfig(), PolicyConfig(minibatch=minibatch, tokens_per_microbatch=tokens)
    batch, model = sampled(5)
    rewards = torch.randn(batch.token_ids.shape, generator=torch.Generator().manual_seed(6))
    batch, _ = with_advantages(replace(batch, rewards=rewards * batch.response_mask), how, 3.0, 0.5)
    outcome = (batch.advantages - 3.0 * batch.returns) / 0.5  # of eq. 5
    rows = torch.arange(minibatch)
    process, outcome = (
        flat_gradient(copy.deepcopy(model), part, part.advantages)
        for part in (replace(batch, advantages=term).select(rows) for term in (batch.returns, outcome))
    )
    expected = torch.nn.functional.cosine_similarity(process, outcome, dim=0)
    learner = Learner(LM(model), config, 1)
    before = copy.deepcopy(learner.state())
    metrics = gradient_cosine(learner, batch, how, config)
    assert metrics == {"policy/gradient_cosine": pytest.approx(float(expected), abs=1e-4)}
    assert 0.01 < abs(float(expected)) < 0.99
    torch.testing.assert_close(learner.state(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())


def test_gradient_cosine__is_not_a_number_where_a_term_is_nothing():
    how, config = AdvantageConfig(), PolicyConfig()
    batch, model = sampled(5)
    batch = replace(batch, returns=torch.zeros_like(batch.logprobs))
    metrics = gradient_cosine(Learner(LM(model), config, 1), batch, how, config)
    assert math.isnan(metrics["policy/gradient_cosine"])


# Whole steps


def policy_for(config: PrimeConfig | OutcomeConfig) -> Learner:
    return Learner(LM(make_model()), config.policy, 100)


def prime(config: PrimeConfig) -> Prime:
    """Its PRM is not its reference."""
    learner = Learner(LM(make_model(1)), config.prm, 100)
    prm = OnlinePRM(learner, LM(make_model(2)), config.prm, Clock())
    return Prime(config, Clock(), prm, lambda folder: None)


SMALL = {"policy": PolicyConfig(lr=0.01, minibatch=3), "seed": 3}
PRIME = PrimeConfig(**SMALL, prm=PRMConfig(lr=0.01, beta=0.3))


def test_outcome_only_step__is_equations_5_and_6():
    config, batch = OutcomeConfig(**SMALL), make_batch()
    policy, twin = policy_for(config), policy_for(config)
    done, metrics = OutcomeOnly(config, Clock()).step(policy, batch)
    by_hand, spread = with_advantages(batch, config.advantage)
    assert torch.equal(done.advantages, by_hand.advantages)
    assert not done.rewards.any()
    by_hand = replace(by_hand, old_logprobs=batch.logprobs)
    updated = update_policy(twin, by_hand, config.policy, minibatch_generator(3, 1))
    assert metrics == spread | updated
    assert torch.equal(weights(policy.lm.model), weights(twin.lm.model))


@pytest.mark.parametrize("gated", [False, True])
def test_prime_step__is_equations_3_to_6(gated: bool):
    """Rewards of the PRM before its update; the skill gate scales the process term."""
    how = AdvantageConfig(process_weight=2.0, outcome_weight=0.5, skill_gate=gated)
    config, batch = PRIME.model_copy(update={"advantage": how}), make_batch(seed=2)
    method, other, policy, twin = prime(config), prime(config), policy_for(config), policy_for(config)
    done, metrics = method.step(policy, batch)
    scored, learnt = other.prm.score_and_update(batch)
    assert torch.equal(done.rewards, scored.rewards)
    gate = skill_gate(learnt["prm/pairwise_accuracy"]) if gated else 1.0
    assert 0 < gate < 1 or not gated
    by_hand, spread = with_advantages(scored, how, 2.0 * gate, 0.5)
    assert torch.equal(done.advantages, by_hand.advantages)
    by_hand = replace(by_hand, old_logprobs=batch.logprobs)
    updated = update_policy(twin, by_hand, config.policy, minibatch_generator(3, 1))
    assert metrics == learnt | spread | updated
    assert torch.equal(weights(policy.lm.model), weights(twin.lm.model))
    assert torch.equal(weights(method.prm.lm.model), weights(other.prm.lm.model))


def test_prime_step__measures_gradients_when_responses_are_kept_and_in_the_last_step():
    """And learns the same whether it does or not."""
    metrics, ends = {}, []
    for every in (0, 2):
        config = PRIME.model_copy(update={"sample_every": every, "steps": 5})
        method, policy = prime(config), policy_for(config)
        metrics[every] = [method.step(policy, make_batch(seed=seed))[1] for seed in range(5)]
        ends.append(weights(policy.lm.model))
    cosines = [step.pop("policy/gradient_cosine", None) for step in metrics[2]]
    assert [cosine is not None for cosine in cosines] == [False, True, False, True, True]
    assert metrics[0] == metrics[2]
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    "make", [prime, lambda config: OutcomeOnly(config, Clock())], ids=["prime", "outcome"]
)
def test_method_restore__goes_on_exactly(make):
    """The number of steps seeds the minibatches."""
    batches = [make_batch(seed=seed) for seed in range(3)]
    straight, resumed, policy, other = make(PRIME), make(PRIME), policy_for(PRIME), policy_for(PRIME)
    for batch in batches[:2]:
        straight.step(policy, batch)
    resumed.restore(copy.deepcopy(straight.state()))
    other.restore(copy.deepcopy(policy.state()))
    (_, expected), (_, found) = straight.step(policy, batches[2]), resumed.step(other, batches[2])
    assert found == expected
    assert torch.equal(weights(other.lm.model), weights(policy.lm.model))
