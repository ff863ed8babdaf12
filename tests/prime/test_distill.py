"""Distillation: a PRM learnt anew from the policy, and a policy that moves towards what its rewards ask for."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from openprime.config import DistillConfig, PolicyConfig, PRMConfig
from openprime.prime import distill
from openprime.prime.distill import Distiller, minibatches
from openprime.prime.learner import Learner
from openprime.run.console import Clock
from openprime.types import Batch

GROUP, OUTCOMES = [0, 0, 0, 1, 1, 2, 2, 2], [1, 0, 1, 0, 1, 0, 1, 0]
HOW = DistillConfig(prm_epochs=3, low=-1.5, high=0.4, anchor=0.7)


@pytest.fixture
def batch(make_batch: Callable[..., Batch]) -> Batch:
    return make_batch(GROUP, OUTCOMES)


@pytest.fixture
def policy(make_model) -> Learner:
    return Learner(make_model(seed=5), PolicyConfig(lr=0.02, tokens_per_microbatch=40, clip_grad=1e9), 100)


@pytest.fixture
def make(make_model) -> Callable[..., Distiller]:
    def build(**prm) -> Distiller:
        options = {"lr": 0.01, "minibatch": 3, "tokens_per_microbatch": 20, **prm}
        return Distiller(make_model(seed=1), make_model(seed=2), PRMConfig(**options), HOW)

    return build


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distributions(model, batch: Batch) -> list[Tensor]:
    """log p(. | before) at every response token, one response at a time, in float64."""
    model = copy.deepcopy(model).double()
    found = []
    for row, mask, length in zip(batch.token_ids, batch.response_mask, batch.lengths, strict=True):
        logits = model(input_ids=row[None, :length]).logits[0]
        found += [logits[t - 1].log_softmax(-1) for t in range(int(length)) if mask[t]]
    return found


def target_kl(policy, prm, reference, batch: Batch) -> float:
    """Mean over tokens of KL(policy || ref * exp(clip(log phi/ref) / anchor) / Z)."""
    total, count = 0.0, 0
    models = (distributions(m, batch) for m in (policy, prm, reference))
    for pi, phi, ref in zip(*models, strict=True):
        tilted = (ref + (phi - ref).clamp(HOW.low, HOW.high) / HOW.anchor).log_softmax(-1)
        total += float((pi.exp() * (pi - tilted)).sum().detach())
        count += 1
    return total / count


def test_the_prm_starts_from_the_policy_and_learns_the_outcomes(
    make: Callable[..., Distiller], policy: Learner, batch: Batch
):
    distiller = make()
    start = copy.deepcopy(policy.model.state_dict())
    distiller.learn(policy, batch, generator())
    for name, value in distiller.reference.state_dict().items():
        assert torch.equal(value, start[name]), "the reference is the policy"
    for name, value in policy.model.state_dict().items():
        assert torch.equal(value, start[name]), "the policy has not moved"
    reference = distiller.prm.reference_logprobs(batch)
    scores = distiller.prm.token_rewards(batch, reference).sum(-1)
    assert scores[batch.outcome > 0.5].mean() > scores[batch.outcome < 0.5].mean() + 0.1
    nats = sorted((-reference.sum(-1)).tolist())
    assert distiller.prm.beta == pytest.approx(min(1.0, max(0.05, 0.5 / nats[(len(nats) - 1) // 2])))


def test_the_prm_begins_every_step_anew(make: Callable[..., Distiller], policy: Learner, batch: Batch):
    """What it learnt from another batch before leaves nothing behind, its optimiser's memory included."""
    one, two = make(), make()
    other = replace(batch, outcome=1 - batch.outcome)
    one.learn(policy, other, generator(1))
    one.learn(policy, batch, generator())
    two.learn(policy, batch, generator())
    for name, value in one.prm.model.state_dict().items():
        assert torch.equal(value, two.prm.model.state_dict()[name])


def test_the_policy_approaches_the_tilted_reference(
    make: Callable[..., Distiller], policy: Learner, batch: Batch
):
    distiller = make(lr=0.05)
    distiller.learn(policy, batch, generator())
    models = distiller.prm.model, distiller.reference
    before = target_kl(policy.model, *models, batch)
    distiller.teach(policy, batch, PolicyConfig(minibatch=8, epochs=40), generator())
    after = target_kl(policy.model, *models, batch)
    assert before > 0.01
    assert after < before / 4


def test_the_first_gradient_is_that_of_the_kl(make: Callable[..., Distiller], policy: Learner, batch: Batch):
    """By autograd through the definition, in float64; `anchor` times KL, mean over the batch's tokens."""
    distiller = make(lr=0.05)
    distiller.learn(policy, batch, generator())
    seen: dict[str, Tensor] = {}
    step = policy.optimizer.step

    def note() -> None:
        seen.update({n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None})
        step()

    policy.optimizer.step = note  # pyright: ignore[reportAttributeAccessIssue]
    model = copy.deepcopy(policy.model).double()
    distiller.teach(policy, batch, PolicyConfig(minibatch=8, epochs=1), generator())
    parts = (distributions(m, batch) for m in (distiller.prm.model, distiller.reference))
    loss, count = torch.zeros((), dtype=torch.float64), 0
    pairs = list(zip(*parts, strict=True))
    at = 0
    for row, mask, length in zip(batch.token_ids, batch.response_mask, batch.lengths, strict=True):
        logits = model(input_ids=row[None, :length]).logits[0]
        for t in range(int(length)):
            if mask[t]:
                phi, ref = (x.detach() for x in pairs[at])
                tilted = (ref + (phi - ref).clamp(HOW.low, HOW.high) / HOW.anchor).log_softmax(-1)
                pi = logits[t - 1].log_softmax(-1)
                loss = loss + HOW.anchor * (pi.exp() * (pi - tilted)).sum()
                at, count = at + 1, count + 1
    (loss / count).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(seen[name].double(), parameter.grad, atol=2e-5, rtol=1e-3)


def test_targets_made_again_are_the_kept_ones(
    make: Callable[..., Distiller], make_model, batch: Batch, monkeypatch: pytest.MonkeyPatch
):
    results = []
    for most in (distill.KEPT_ELEMENTS, 0):
        monkeypatch.setattr(distill, "KEPT_ELEMENTS", most)
        policy = Learner(make_model(seed=5), PolicyConfig(lr=0.02, tokens_per_microbatch=40), 100)
        distiller = make()
        distiller.learn(policy, batch, generator())
        distiller.teach(policy, batch, PolicyConfig(minibatch=3, epochs=2), generator())
        results.append(policy.model.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], atol=1e-4, rtol=1e-3)


def test_teaching_looks_at_no_outcome(make: Callable[..., Distiller], make_model, batch: Batch):
    results = []
    for outcome in (batch.outcome, 1 - batch.outcome):
        policy = Learner(make_model(seed=5), PolicyConfig(lr=0.02), 100)
        distiller = make()
        distiller.learn(policy, batch, generator())
        distiller.teach(policy, replace(batch, outcome=outcome), PolicyConfig(minibatch=4), generator())
        results.append(policy.model.state_dict())
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name])


def test_skill_is_measured_before_the_prm_has_seen_the_batch(
    make: Callable[..., Distiller], policy: Learner, batch: Batch
):
    distiller, config = make(), PolicyConfig(minibatch=8)
    _, first = distiller.step(policy, batch, config, generator(), Clock())
    assert "prm/pairwise_accuracy" not in first, "there is no PRM before the first step"
    twin = copy.deepcopy(distiller)
    rewards = twin.prm.token_rewards(batch, twin.prm.reference_logprobs(batch)).sum(-1).tolist()
    groups = batch.group.tolist()
    pairs = [
        float(rewards[i] > rewards[j]) + 0.5 * (rewards[i] == rewards[j])
        for i in range(len(groups))
        for j in range(len(groups))
        if groups[i] == groups[j] and OUTCOMES[i] > OUTCOMES[j]
    ]
    _, second = distiller.step(policy, batch, config, generator(), Clock())
    assert second["prm/pairwise_accuracy"] == pytest.approx(sum(pairs) / len(pairs))


def test_minibatches_take_every_row_once(batch: Batch):
    rows = torch.cat(minibatches(batch, 3, generator())).tolist()
    assert sorted(rows) == list(range(len(batch)))
    assert [len(part) for part in minibatches(batch, 3, generator())] == [3, 3, 2]
