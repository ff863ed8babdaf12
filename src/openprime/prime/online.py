"""The implicit PRM that learns beside the policy: it scores a batch and is updated on the batch's outcomes."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from openprime.config import PRMConfig
from openprime.models.lm import LM
from openprime.prime.learner import Learner
from openprime.prime.losses import PAIRS, prm_loss, prm_loss_count
from openprime.prime.prm import ImplicitPRM
from openprime.prime.rewards import pairwise_accuracy, response_scores, token_rewards
from openprime.run.console import Clock
from openprime.types import Batch, Metrics

SKILL_RATE = 0.2
"""Weight of a new batch in the moving average of a PRM's skill."""


class OnlinePRM:
    """Trains phi of r_t = beta * (log phi - log ref) from outcomes alone (PRIME section 3.2, eq. 3 and 4)."""

    def __init__(self, learner: Learner, reference: LM | None, config: PRMConfig, clock: Clock) -> None:
        """`reference` None: the sampling policy's log-probabilities, which the batch carries."""
        self.learner, self.config, self.clock = learner, config, clock
        self.prm = ImplicitPRM(learner.lm, reference, config.beta)
        self.skill: float | None = None
        """Moving average of pairwise accuracy on groups new to the PRM."""

    def score_and_update(self, batch: Batch) -> tuple[Batch, Metrics]:
        """The batch with its process rewards (eq. 3), and what the PRM's update on its outcomes (eq. 4) did.

        `config.update`: after: score, then update. before: update, then score. never: score only.
        """
        with self.clock.phase("reference"):
            batch = self.prm.with_reference(batch)
        with self.clock.phase("prm"):
            if self.config.update == "after" and self._is_one_update(batch):
                # Single forward: the only update's own forward pass saw the weights before the update.
                rewards, metrics = self.update(batch)
                fresh = response_scores(rewards)
            else:
                # One version of the PRM scores the whole batch (trap 4).
                rewards = self.prm.token_rewards(batch)  # [B, T]
                fresh = response_scores(rewards)  # [B]
                metrics = self.update(batch)[1] if self.config.update != "never" else NO_UPDATE
                if self.config.update == "before":
                    rewards = self.prm.token_rewards(batch)
        return replace(batch, rewards=rewards), metrics | self.judge(fresh, batch)

    def update(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Train on the batch's outcomes, one pass in minibatches of whole groups (PRIME eq. 4).

        Returns the token rewards [B, T] that the update's own forward passes gave, and what was done.
        """
        rewards = torch.zeros_like(batch.logprobs)
        loss, pairs = partial(prm_loss, self.config.loss, beta=self.prm.beta), self.config.loss in PAIRS
        losses, norms, rate = [], [], 0.0
        for rows in minibatches_of_groups(batch.group, self.config.minibatch):
            part = batch.select(rows)
            if not (
                count := prm_loss_count(self.config.loss, part)
            ):  # DPO without a right and a wrong response
                continue
            done = self.learner.update(part, loss, count, whole_groups=pairs)
            assert part.ref_logprobs is not None
            fresh = token_rewards(done.logprobs, part.ref_logprobs, part.response_mask, self.prm.beta)
            rewards[rows, : fresh.shape[1]] = fresh
            losses.append(done.loss)
            norms.append(done.grad_norm)
            rate = done.lr
        mean = sum(losses) / len(losses) if losses else math.nan
        return rewards, {"prm/loss": mean, "prm/grad_norm": max(norms, default=math.nan), "prm/lr": rate}

    def judge(self, scores: Tensor, batch: Batch) -> Metrics:
        """How good the PRM is on responses new to it, from the scores [B] that it gave them before any update."""
        won, pairs = pairwise_accuracy(scores, batch.outcome, batch.group)
        accuracy = float(won / pairs)  # nan where there are no pairs, which says nothing of its skill
        if not math.isnan(accuracy):
            before = accuracy if self.skill is None else self.skill
            self.skill = before + SKILL_RATE * (accuracy - before)
        return {
            "prm/pairwise_accuracy": accuracy,
            "prm/brier": float(((scores.sigmoid() - batch.outcome) ** 2).mean()),
            **mean_scores(scores, batch),
        } | ({} if self.skill is None else {"prm/skill": self.skill})

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return self.learner.state() | {"skill": self.skill}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.skill = state["skill"]
        self.learner.restore(state)

    def _is_one_update(self, batch: Batch) -> bool:
        whole = self.config.minibatch == 0 or self.config.minibatch >= len(batch)
        return whole and prm_loss_count(self.config.loss, batch) > 0


NO_UPDATE: Metrics = {"prm/loss": math.nan, "prm/grad_norm": math.nan, "prm/lr": 0.0}


def mean_scores(scores: Tensor, batch: Batch) -> Metrics:
    """Mean score s(y) of right and of wrong responses; scores [B]."""
    right = batch.outcome > 0.5
    return {"prm/score_right": float(scores[right].mean()), "prm/score_wrong": float(scores[~right].mean())}


def minibatches_of_groups(group: Tensor, size: int) -> list[Tensor]:
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
