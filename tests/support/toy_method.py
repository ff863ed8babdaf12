"""A new method in the way that CONTRIBUTING says: one class, and one line in ALGORITHMS."""

from dataclasses import replace

import torch
from torch import Tensor

from openprime.prime.learner import Learner
from openprime.prime.losses import sft_loss
from openprime.prime.methods import OutcomeOnly
from openprime.types import Batch, Metrics


def imitation(logprobs: Tensor, micro: Batch) -> Tensor:
    """Sum of -log p over the tokens of a micro-batch's responses."""
    return sft_loss(logprobs, micro.response_mask)


class RejectionSampling(OutcomeOnly):
    """Imitate the right responses, and no others (RAFT, arXiv 2304.06767)."""

    def step(self, policy: Learner, batch: Batch) -> tuple[Batch, Metrics]:
        """One optimiser step on the right responses."""
        right = batch.select((batch.outcome > 0.5).nonzero()[:, 0])
        update = policy.update(right, imitation, int(right.response_mask.sum()))
        batch = replace(batch, rewards=torch.zeros_like(batch.logprobs))
        return batch, {"policy/loss": update.loss, "policy/lr": update.lr}
