"""What trains an implicit PRM: on outcomes, online beside the policy or offline; on step labels."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from openprime.algorithm.losses import prm_ce_loss, prm_dpo_loss
from openprime.algorithm.rewards import response_scores, token_rewards
from openprime.config import PRMConfig
from openprime.models.implicit_prm import ImplicitPRM
from openprime.training.learner import Learner
from openprime.types import Batch


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
        )

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
            loss, count = self._loss(part, ref)
            if count == 0:  # DPO without a right and a wrong response
                continue
            done = self.learner.update(part, loss, count, part.group if self.config.loss == "dpo" else None)
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

    def _one_update(self, batch: Batch) -> bool:
        whole = self.config.minibatch == 0 or self.config.minibatch >= len(batch)
        return whole and self._loss(batch, batch.logprobs)[1] > 0

    def _loss(self, batch: Batch, reference: Tensor):
        """The loss of a (mini)batch as the learner calls it, and the count that divides it."""
        beta = self.config.beta

        def ce(logprobs: Tensor, micro: Batch, rows: Tensor) -> Tensor:
            rewards = token_rewards(logprobs, reference[rows, : logprobs.shape[1]], micro.response_mask, beta)
            return prm_ce_loss(response_scores(rewards), micro.outcome)

        def dpo(logprobs: Tensor, micro: Batch, rows: Tensor) -> Tensor:
            rewards = token_rewards(logprobs, reference[rows, : logprobs.shape[1]], micro.response_mask, beta)
            return prm_dpo_loss(response_scores(rewards), micro.outcome, micro.group)[0]

        if self.config.loss == "ce":
            return ce, len(batch)
        pairs = prm_dpo_loss(torch.zeros_like(batch.outcome), batch.outcome, batch.group)[1]
        return dpo, int(pairs)


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
