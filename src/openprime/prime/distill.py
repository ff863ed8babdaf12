"""The other use of an implicit PRM: learnt anew from the policy in every step, it teaches the policy all it knows.

PRIME takes one PRM update and one policy update from a batch, and rewards sampled tokens alone. Where models and
responses are small, most of what the labels say is then left unused. Here a step

1. makes the PRM and its reference copies of the policy that sampled the batch,
2. trains the PRM on the batch's outcomes for several epochs (PRIME eq. 4),
3. moves the policy towards the distribution that the PRM's rewards ask for, at every token and over the whole
   vocabulary (`distillation_loss`), so that no token's reward depends on which one was sampled.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from openprime.config import DistillConfig, PolicyConfig, PRMConfig
from openprime.models.logprobs import micro_batches, token_distributions
from openprime.prime.learner import Learner
from openprime.prime.losses import distillation_loss, tilted_reference
from openprime.prime.online import fitting_beta, prm_loss
from openprime.prime.prm import ImplicitPRM
from openprime.prime.rewards import pairwise_accuracy, response_scores
from openprime.run.console import Clock
from openprime.types import Batch

KEPT_ELEMENTS = 2**28
"""The largest batch times vocabulary, 1 GiB, whose targets are kept from epoch to epoch instead of made again."""


class Distiller:
    """A PRM and its reference, both the policy's size."""

    def __init__(
        self,
        model: PreTrainedModel,
        reference: PreTrainedModel,
        prm: PRMConfig,
        distill: DistillConfig,
        bfloat16: bool = False,
    ) -> None:
        self.config, self.distill, self.reference = prm, distill, reference
        tokens = prm.tokens_per_microbatch
        self.prm = ImplicitPRM(model, reference, prm.beta, None, tokens, bfloat16)
        self.steps = 0

    def step(
        self, policy: Learner, batch: Batch, config: PolicyConfig, generator: torch.Generator, clock: Clock
    ) -> tuple[Tensor, dict[str, float]]:
        """One step on a batch of judged responses: the PRM's token rewards [B, T], and what was done."""
        with clock.phase("prm"):
            metrics = self.skill(batch)
            metrics |= self.learn(policy, batch, generator)
            rewards = self.prm.token_rewards(batch, self.prm.reference_logprobs(batch))
        scores = response_scores(rewards)
        metrics["prm/score_right"] = float(scores[batch.outcome > 0.5].mean())
        metrics["prm/score_wrong"] = float(scores[batch.outcome <= 0.5].mean())
        with clock.phase("policy"):
            metrics |= self.teach(policy, batch, config, generator)
        self.steps += 1
        return rewards, metrics

    def skill(self, batch: Batch) -> dict[str, float]:
        """How often the last step's PRM ranks responses rightly that neither it nor its policy has seen."""
        if self.steps == 0:
            return {}
        rewards = self.prm.token_rewards(batch, self.prm.reference_logprobs(batch))
        won, pairs = pairwise_accuracy(response_scores(rewards), batch.outcome, batch.group)
        return {"prm/pairwise_accuracy": float(won / pairs)}

    def learn(self, policy: Learner, batch: Batch, generator: torch.Generator) -> dict[str, float]:
        """The PRM from the policy and from the batch's outcomes."""
        for model in (self.prm.model, self.reference):
            model.load_state_dict(policy.model.state_dict())
        reference = self.prm.reference_logprobs(batch)
        self.prm.beta = fitting_beta(float((-reference.sum(-1)).median()))
        size = self.config.minibatch or len(batch)
        updates = self.distill.prm_epochs * -(-len(batch) // size)
        learner = Learner(self.prm.model, self.config, updates, policy.bfloat16)
        losses, norms = [], []
        for _ in range(self.distill.prm_epochs):
            for rows in minibatches(batch, size, generator):
                part = batch.select(rows)
                known = reference[rows, : part.token_ids.shape[1]]
                done = learner.update(part, *prm_loss(self.config.loss, part, known, self.prm.beta))
                losses.append(done.loss)
                norms.append(done.grad_norm)
        epoch = losses[-(updates // self.distill.prm_epochs) :]
        return {
            "prm/loss": sum(epoch) / len(epoch),
            "prm/grad_norm": max(norms),
            "prm/lr": self.config.lr,
            "prm/beta": self.prm.beta,
        }

    def teach(
        self, policy: Learner, batch: Batch, config: PolicyConfig, generator: torch.Generator
    ) -> dict[str, float]:
        """The policy from the PRM; no outcome is looked at."""
        vocabulary = self.reference.config.get_text_config().vocab_size
        kept = int(batch.response_mask.sum()) * vocabulary <= KEPT_ELEMENTS
        known = self.tilted(batch) if kept else []
        done = []
        for _ in range(config.epochs):
            for rows in minibatches(batch, config.minibatch, generator):

                def loss(log_policy: Tensor, micro: Batch, at: Tensor, rows: Tensor = rows) -> Tensor:
                    tilted = [known[b] for b in rows[at].tolist()] if kept else self.tilted(micro)
                    return distillation_loss(log_policy, torch.cat(tilted), self.distill.anchor)

                part = batch.select(rows)
                done.append(policy.update(part, loss, int(part.response_mask.sum()), whole_vocabulary=True))
        return {
            "policy/loss": sum(update.loss for update in done) / len(done),
            "policy/grad_norm": sum(update.grad_norm for update in done) / len(done),
            "policy/lr": done[-1].lr,
        }

    @torch.no_grad()
    def tilted(self, batch: Batch) -> list[Tensor]:
        """The tilted reference of each row's response tokens, [T_b, V]."""
        found: dict[int, Tensor] = {}
        for rows in micro_batches(batch.lengths, self.config.tokens_per_microbatch):
            micro = batch.select(rows)
            given = (micro.token_ids, micro.response_mask, 1.0, self.prm.bfloat16)
            log_prm, log_ref = (token_distributions(m, *given) for m in (self.prm.model, self.reference))
            how = self.distill
            whole = tilted_reference(log_prm, log_ref, how.low, how.high, how.anchor)
            lengths = micro.response_mask.sum(-1).tolist()
            found |= dict(zip(rows.tolist(), whole.split(lengths), strict=True))
        return [found[b] for b in range(len(batch))]

    def state(self) -> dict:
        """What a checkpoint keeps: the last step's PRM and its reference."""
        models = {"model": self.prm.model.state_dict(), "reference": self.reference.state_dict()}
        return models | {"beta": self.prm.beta, "steps": self.steps}

    def restore(self, state: dict) -> None:
        """Go on from `state()`."""
        self.prm.model.load_state_dict(state["model"])
        self.reference.load_state_dict(state["reference"])
        self.prm.beta, self.steps = state["beta"], state["steps"]


def minibatches(batch: Batch, size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """All rows in a random order, in equal parts of about `size`."""
    order = torch.randperm(len(batch), generator=generator).to(batch.token_ids.device)
    return order.tensor_split(-(-len(batch) // size))
