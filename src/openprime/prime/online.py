"""What trains an implicit PRM: on outcomes, online beside the policy or offline; on step labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from openprime.config import PRMConfig
from openprime.data.records import JudgedResponse as Judged
from openprime.data.records import collate_judged
from openprime.models.hub import compute_device
from openprime.prime.learner import Learner, Loss
from openprime.prime.losses import prm_ce_loss, prm_dpo_loss, prm_kto_loss, prm_nca_loss, prm_step_loss
from openprime.prime.prm import PUBLISHED_BETA, ImplicitPRM
from openprime.prime.rewards import prefix_values, response_scores, token_rewards
from openprime.types import Batch

PAIRS = ("dpo", "nca")
"""Losses on pairs of a prompt's responses."""


REACH = 0.5
"""What `fitting_beta` makes of beta S, where S is -log ref of the median response: its P(right) can reach 0.62."""


SKILL_RATE = 0.2
"""Weight of a new batch in the moving average of a PRM's skill."""


@dataclass(frozen=True, slots=True)
class PRMStep:
    """Rewards of a batch, and what the update on it did."""

    rewards: Tensor
    """Token rewards [B, T], with the weights that `prm.update` asks for."""
    fresh_scores: Tensor
    """Response scores [B] before any update on this batch: how good the PRM is on responses new to it."""
    loss: float
    """Mean loss over the step's updates; nan when frozen."""
    grad_norm: float
    """Largest gradient norm of the step's updates, before clipping; nan when frozen."""
    lr: float


class PRMTrainer:
    """Trains phi of r_t = beta * (log phi - log ref) from outcomes alone (PRIME section 3.2, eq. 3 and 4)."""

    def __init__(self, learner: Learner, reference: PreTrainedModel | None, config: PRMConfig) -> None:
        """`reference` None: the sampling policy's log-probabilities, which the batch carries."""
        self.learner, self.config = learner, config
        self.prm = ImplicitPRM(
            learner.model,
            reference,
            config.beta,
            tokens_per_microbatch=config.tokens_per_microbatch,
            bfloat16=learner.bfloat16,
            adapter=learner.adapter,
        )
        self.skill: float | None = None
        """Moving average of pairwise accuracy on groups new to the PRM."""

    def judge(self, accuracy: float) -> None:
        """Take note of the pairwise accuracy on a batch new to the PRM; nan, where there are no pairs, says nothing."""
        if not math.isnan(accuracy):
            before = accuracy if self.skill is None else self.skill
            self.skill = before + SKILL_RATE * (accuracy - before)

    def update(self, batch: Batch, reference: Tensor) -> tuple[list[float], list[float], float, Tensor]:
        """Train on the batch's outcomes, one pass in minibatches of whole groups.

        Returns losses and gradient norms of the optimiser steps, the last learning rate, and the token
        rewards [B, T] that the update's own forward passes gave.
        """
        rewards = torch.zeros_like(reference)
        losses, norms, rate = [], [], 0.0
        for rows in _minibatches(batch.group, self.config.minibatch):
            part = batch.select(rows)
            ref = reference[rows, : part.token_ids.shape[1]]
            loss, count, pairs = prm_loss(self.config.loss, part, ref, self.config.beta)
            if count == 0:  # DPO without a right and a wrong response
                continue
            done = self.learner.update(part, loss, count, pairs)
            fresh = token_rewards(done.logprobs, ref, part.response_mask, self.config.beta)
            rewards[rows, : fresh.shape[1]] = fresh
            losses.append(done.loss)
            norms.append(done.grad_norm)
            rate = done.lr
        return losses, norms, rate, rewards

    def step(self, batch: Batch, reference: Tensor) -> PRMStep:
        """Score and update as `config.update` says (PRIME algorithm 1)."""
        nothing = float("nan")
        if self.config.update == "never":
            rewards = self.prm.token_rewards(batch, reference)
            return PRMStep(rewards, response_scores(rewards), nothing, nothing, 0.0)
        if self.config.update == "after" and self._one_update(batch):
            # Single forward: the only update's own forward pass saw the weights before the update.
            losses, norms, rate, rewards = self.update(batch, reference)
            fresh = response_scores(rewards)
        else:
            # One version of the PRM scores the whole batch (trap 4).
            rewards = self.prm.token_rewards(batch, reference)
            fresh = response_scores(rewards)
            losses, norms, rate, _ = self.update(batch, reference)
            if self.config.update == "before":
                rewards = self.prm.token_rewards(batch, reference)
        mean = sum(losses) / len(losses) if losses else nothing
        return PRMStep(rewards, fresh, mean, max(norms, default=nothing), rate)

    def state(self) -> dict:
        """What a checkpoint keeps."""
        return self.learner.state() | {"skill": self.skill}

    def restore(self, state: dict) -> None:
        """Go on from `state()`."""
        self.skill = state["skill"]
        self.learner.restore(state)

    def _one_update(self, batch: Batch) -> bool:
        whole = self.config.minibatch == 0 or self.config.minibatch >= len(batch)
        return whole and _count(self.config.loss, batch) > 0


def prm_loss(
    name: str,
    batch: Batch,
    reference: Tensor,
    beta: float,
    labels: Tensor | None = None,
    reference_point: float = 0.0,
) -> tuple[Loss, int, bool]:
    """The loss of a batch as the learner calls it, the count that divides its sum, and whether groups stay whole.

    `name` is ce, dpo, nca, kto or steps; `reference` [B, T] log ref of the response tokens. steps needs
    `labels` [B, T] where the batch's `step_end` is True; kto its `reference_point` z0. The count is the
    responses, pairs or labelled steps, and may be 0 for pairs.
    """

    def loss(logprobs: Tensor, micro: Batch, rows: Tensor) -> Tensor:
        width = logprobs.shape[1]
        rewards = token_rewards(logprobs, reference[rows, :width], micro.response_mask, beta)
        if name == "steps":
            assert labels is not None
            return prm_step_loss(prefix_values(rewards), labels[rows, :width], micro.step_end)[0]
        return outcome_loss(name, response_scores(rewards), micro.outcome, micro.group, reference_point)[0]

    return loss, _count(name, batch), name in PAIRS


def outcome_loss(
    name: str, scores: Tensor, outcomes: Tensor, group: Tensor, reference_point: float = 0.0
) -> tuple[Tensor, int]:
    """Sum of a loss over responses or pairs, and their number. scores, outcomes, group [B]; whole groups for pairs."""
    if name == "ce":
        return prm_ce_loss(scores, outcomes), len(scores)
    if name == "kto":
        return prm_kto_loss(scores, outcomes, reference_point), len(scores)
    total, pairs = (prm_dpo_loss if name == "dpo" else prm_nca_loss)(scores, outcomes, group)
    return total, int(pairs)


def fitting_beta(nats: float) -> float:
    """The beta for responses of which the median has S = `nats` nats under the reference: REACH / S, in [.05, 1].

    The log-ratio of a response, sum_t log(phi/ref), cannot exceed -log ref(y), for phi(y) <= 1. So sigmoid(beta S)
    bounds P(right) of the median response from above, and a beta that is too small leaves the loss nothing to gain.
    """
    return max(PUBLISHED_BETA, min(1.0, REACH / max(nats, 1e-6)))


def kto_reference_point(prm: ImplicitPRM, rows: Sequence[Judged], max_tokens: int) -> float:
    """z0 of KTO: the mean score of the responses, each set beside the prompt of the next group, at least 0.

    An estimate of beta KL(phi || ref) under the present PRM (arXiv 2402.01306, section 4.1). Pairs of more than
    `max_tokens` are left out; 0 where the rows answer one prompt only.
    """
    prompts = {row.group: row.prompt for row in rows}
    groups = list(prompts)
    after = dict(zip(groups, [*groups[1:], groups[0]], strict=True))
    moved = [replace(row, prompt=prompts[after[row.group]]) for row in rows if after[row.group] != row.group]
    moved = [row for row in moved if len(row.prompt.token_ids) + len(row.response.token_ids) <= max_tokens]
    if not moved:
        return 0.0
    batch = collate_judged(moved, 0)[0].to(compute_device(prm.model))
    scores = response_scores(prm.token_rewards(batch, prm.reference_logprobs(batch)))
    return max(0.0, float(scores.mean()))


def _count(name: str, batch: Batch) -> int:
    """What divides the summed loss of a batch."""
    if name == "steps":
        return int(batch.step_end.sum())
    return outcome_loss(name, torch.zeros_like(batch.outcome), batch.outcome, batch.group)[1]


def _minibatches(group: Tensor, size: int) -> list[Tensor]:
    """Rows in minibatches of about `size` responses, groups kept whole, in the batch's order; 0 is all."""
    if size == 0:
        return [torch.arange(len(group), device=group.device)]
    batches: list[list[int]] = [[]]
    last = None
    for row, g in enumerate(group.tolist()):
        if g != last and len(batches[-1]) >= size:
            batches.append([])
        batches[-1].append(row)
        last = g
    return [torch.tensor(rows, device=group.device) for rows in batches]
