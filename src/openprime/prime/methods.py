"""The methods that learn from a batch of judged rollouts: PRIME, and outcome rewards alone.

A method is one class with the calls of `Method`; `ALGORITHMS` in config/commands.py names it and its settings.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from openprime.config import AdvantageConfig, OutcomeConfig, PolicyConfig, PrimeConfig
from openprime.models.hub import load_tokenizer, same_vocabulary
from openprime.models.lm import LM, Loader
from openprime.prime.advantages import outcome_returns, skill_gate, with_advantages
from openprime.prime.learner import Learner, minibatches
from openprime.prime.losses import importance_weights, policy_loss, token_weights
from openprime.prime.prm import OnlinePRM, is_prm, read_settings
from openprime.prime.rollouts import derive_seed
from openprime.ranks import all_sum
from openprime.run.console import Clock
from openprime.types import Batch, Metrics, RunError

Write = Callable[[Path], None]
"""Writes a model into an empty folder; every rank calls it."""


class Method(Protocol):
    """Turns a batch of judged rollouts into better weights of the policy."""

    @classmethod
    def build(cls, config: Any, models: Loader, tokenizer: PreTrainedTokenizerBase, clock: Clock) -> Self:
        """The method that the settings ask for, before its first step."""
        ...

    def step(self, policy: Learner, batch: Batch) -> tuple[Batch, Metrics]:
        """Learn from a batch. Returns it with the columns that were computed, `rewards` among them, and metrics."""
        ...

    def state(self) -> dict[str, Any]:
        """State for a checkpoint, beside the policy's."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        ...

    def models(self) -> dict[str, Write]:
        """Models that a run exports beside the policy: the name of each folder, and the function that fills it."""
        ...


class OutcomeOnly:
    """Outcome rewards alone: PRIME eq. 5 without its process term, then eq. 6. The baseline without a PRM."""

    def __init__(self, config: OutcomeConfig | PrimeConfig, clock: Clock) -> None:
        self.config, self.clock, self.steps = config, clock, 0

    @classmethod
    def build(cls, config: Any, models: Loader, tokenizer: PreTrainedTokenizerBase, clock: Clock) -> Self:
        """As `Method.build`."""
        return cls(config, clock)

    def step(self, policy: Learner, batch: Batch) -> tuple[Batch, Metrics]:
        """Advantages from outcomes, one pass of policy updates."""
        batch = replace(batch, rewards=torch.zeros_like(batch.logprobs))
        batch, spread = with_advantages(batch, self.config.advantage)  # eq. 5, its second term
        batch, improved = self.update(policy, batch)  # eq. 6
        return batch, spread | improved

    def update(self, policy: Learner, batch: Batch) -> tuple[Batch, Metrics]:
        """The old policy of the batch, then clipped policy updates on it (eq. 6)."""
        self.steps += 1
        generator = minibatch_generator(self.config.seed, self.steps)
        with self.clock.phase("policy"):
            batch, mismatch = with_old_policy(policy, batch, self.config.policy.importance_clip)
            return batch, update_policy(policy, batch, self.config.policy, generator) | mismatch

    def state(self) -> dict[str, Any]:
        """The steps taken, which seed the minibatches."""
        return {"steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.steps = state["steps"]

    def models(self) -> dict[str, Write]:
        """None beside the policy."""
        return {}


class Prime(OutcomeOnly):
    """PRIME: a process reward model that starts as the policy and learns from outcomes beside it."""

    def __init__(self, config: PrimeConfig, clock: Clock, prm: OnlinePRM, save: Write) -> None:
        """`save` writes the PRM."""
        super().__init__(config, clock)
        self.advantage, self.prm, self.save = config.advantage, prm, save

    @classmethod
    def build(
        cls, config: PrimeConfig, models: Loader, tokenizer: PreTrainedTokenizerBase, clock: Clock
    ) -> Self:
        """The PRM starts as a copy of `prm.model`, else of the policy; its reference stays there."""
        name = config.prm.model or config.model
        if config.prm.model:
            same_vocabulary(load_tokenizer(name), name, tokenizer, config.model)
        responses = config.rollout.prompts * config.rollout.responses
        updates = -(-responses // (config.prm.minibatch or responses))
        learner = Learner(models.trained(name, "prm", config.prm), config.prm, config.steps * updates)
        learner.lm.try_save(tokenizer)
        known = reference_name(config)
        frozen = models.reference(known, config.prm.tokens_per_microbatch) if known else None
        prm = OnlinePRM(learner, frozen, config.prm, clock)
        return cls(config, clock, prm, lambda folder: prm.save_pretrained(folder, tokenizer, known))

    def step(self, policy: Learner, batch: Batch) -> tuple[Batch, Metrics]:
        """One PRM update and one pass of policy updates: algorithm 1, lines 6 to 12."""
        how = self.advantage
        batch, learnt = self.prm.score_and_update(batch)  # r_t = beta log(phi/ref), eq. 3; phi learns, eq. 4
        gate = skill_gate(learnt.get("prm/skill", 0.0)) if how.skill_gate else 1.0
        weights = how.process_weight * gate, how.outcome_weight
        batch, spread = with_advantages(batch, how, *weights)  # eq. 5
        if self.config.keeps_samples(self.steps + 1) and all(weights):  # it costs time
            with self.clock.phase("policy"):
                spread |= gradient_cosine(policy, batch, how, self.config.policy)
        batch, improved = self.update(policy, batch)  # eq. 6
        return batch, learnt | spread | improved

    def state(self) -> dict[str, Any]:
        """The PRM's weights, optimiser and skill, and the steps taken."""
        return self.prm.state() | super().state()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        super().restore(state)
        self.prm.restore(state)

    def models(self) -> dict[str, Write]:
        """The PRM, with the name of its reference."""
        return {"prm": self.save}


def reference_name(config: PrimeConfig) -> str:
    """The frozen reference: that of a PRM trained before, else where the PRM starts; '' for the sampling policy.

    Of a frozen PRM without one of its own it is the policy's start.
    """
    if config.prm.reference == "policy":
        return ""
    saved = read_settings(config.prm.model).reference if config.prm.model and is_prm(config.prm.model) else ""
    if saved:
        return saved
    return config.model if config.prm.update == "never" else (config.prm.model or config.model)


def minibatch_generator(seed: int, step: int) -> torch.Generator:
    """The random order of a step's minibatches."""
    return torch.Generator().manual_seed(derive_seed(seed, "minibatches", step))


def with_old_policy(policy: Learner, batch: Batch, ceiling: float) -> tuple[Batch, Metrics]:
    """The batch with the old policy of the clipped loss, and the importance weights of its tokens (trap 12).

    `ceiling` 0: the sampler is the old policy. Else the policy itself before its update is, and tokens are weighted
    by min(p_trainer / p_sampler, ceiling); then metrics say how far the two are apart.
    """
    if not ceiling:
        return replace(batch, old_logprobs=batch.logprobs), {}
    own, mask = policy.lm.logprobs(batch), batch.response_mask  # [B, T]
    weights = importance_weights(own, batch.logprobs, mask, ceiling)  # [B, T]
    truncated = (own - batch.logprobs)[mask] > math.log(ceiling)
    return replace(batch, old_logprobs=own, importance=weights), mismatch(own, batch) | {
        "policy/importance_mean": float(weights[mask].mean()),
        "policy/importance_truncated": float(truncated.float().mean()),
    }


def mismatch(logprobs: Tensor, batch: Batch) -> Metrics:
    """Distance of the trainer's log-probabilities [B, T] of sampled tokens from the sampler's, in nats (trap 12)."""
    gap = (logprobs - batch.logprobs)[batch.response_mask].abs()
    return {"policy/mismatch_mean": float(gap.mean()), "policy/mismatch_max": float(gap.max())}


MISMATCH = {False: 0.01, True: 0.2}
"""Nats a token between trainer and sampler, in float32 and with blocks in bfloat16, that rounding does not explain."""


def mismatch_limit(lm: LM, limit: float | Literal["auto"]) -> float:
    """`policy.mismatch_limit` in nats; what auto gives where there is none."""
    return MISMATCH[lm.place.bfloat16] if limit == "auto" or not limit else limit


def check_mismatch(lm: LM, batch: Batch, limit: float | Literal["auto"]) -> None:
    """Raise RunError where the sampler's log-probabilities of a batch are not those of the policy it sampled from.

    `limit`: of the mean distance in nats, as `policy.mismatch_limit`. Whatever the cause, all that is learnt from
    such samples is wrong (trap 12).
    """
    if limit == 0:
        return
    limit = mismatch_limit(lm, limit)
    gap = mismatch(lm.logprobs(batch), batch)["policy/mismatch_mean"]
    if gap > limit:
        raise RunError(
            f"the trainer's log-probabilities of the sampled tokens are {gap:.3g} nats from the sampler's on average, "
            f"above policy.mismatch_limit={limit:g}: the two do not compute the same model. See whether the engine "
            "(engine.kind, its version and its dtype) knows this architecture and its rotation, and whether a server "
            "serves this very model (docs/traps.md, trap 12)"
        )


def gradient_cosine(policy: Learner, batch: Batch, how: AdvantageConfig, config: PolicyConfig) -> Metrics:
    """Cosine of the policy's gradients along the two terms of eq. 5, where the new policy is still the old one.

    Of the first minibatch's worth of responses; the terms' weights do not matter to it. For gradients g and h,
    2 g.h = |g + h|^2 - |g|^2 - |h|^2: three norms, and never two gradients in memory. nan where one of them is 0.
    """
    assert batch.returns is not None
    terms = batch.returns, outcome_returns(batch, how)  # [B, T] each
    token, count = token_weights(batch.response_mask, config.reduction)
    rows = torch.arange(min(config.minibatch, len(batch)), device=batch.returns.device)

    def norm(advantages: Tensor) -> float:
        part = replace(batch, advantages=advantages, weights=token).select(rows)
        return policy.gradient_norm(part, policy_gradient, count)

    process, outcome, both = norm(terms[0]), norm(terms[1]), norm(terms[0] + terms[1])
    scale = 2 * process * outcome
    return {"policy/gradient_cosine": (both**2 - process**2 - outcome**2) / scale if scale else math.nan}


def policy_gradient(logprobs: Tensor, micro: Batch) -> Tensor:
    """Eq. 6 where the ratio is 1 and nothing is clipped: the sum of -w_t A_t log pi_t, over [b, t]."""
    assert micro.advantages is not None
    assert micro.weights is not None
    return -(micro.weights * micro.advantages * logprobs).sum()


def update_policy(policy: Learner, batch: Batch, config: PolicyConfig, generator: torch.Generator) -> Metrics:
    """Clipped policy updates on minibatches of responses, PRIME eq. 6."""
    sums = torch.zeros(3, dtype=torch.float64, device=batch.logprobs.device)

    def loss(logprobs: Tensor, micro: Batch) -> Tensor:
        old, advantages, weights = micro.old_logprobs, micro.advantages, micro.weights  # [b, t]
        assert old is not None
        assert advantages is not None
        assert weights is not None
        if micro.importance is not None:  # as good as weighting the loss, for these weights are positive
            advantages = advantages * micro.importance
        found = policy_loss(logprobs, old, advantages, weights, config.clip_low, config.clip_high)
        sums.add_(torch.stack([found.clipped, found.kl, weights.sum()]))
        return found.loss

    updates = []
    gap: Metrics = {}
    for _ in range(config.epochs):
        for part in minibatches(batch, config.minibatch, generator):
            weights, count = token_weights(part.response_mask, config.reduction)
            updates.append(policy.update(replace(part, weights=weights), loss, count))
            gap = gap or mismatch(updates[0].logprobs, part)  # before any update
    all_sum(sums)
    return {
        "policy/loss": sum(update.loss for update in updates) / len(updates),
        "policy/grad_norm": sum(update.grad_norm for update in updates) / len(updates),
        "policy/clip_fraction": float(sums[0] / sums[2]),
        "policy/kl": float(sums[1] / sums[2]),
        "policy/lr": updates[-1].lr,
    } | gap
