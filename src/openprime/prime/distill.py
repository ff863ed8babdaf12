"""The other use of an implicit PRM: learnt anew from the policy in every step, it teaches the policy all it knows.

PRIME takes one PRM update and one policy update from a batch, and rewards sampled tokens alone. Where models and
responses are small, most of what the labels say is then left unused. Here a step

1. makes the PRM and its reference copies of the policy that sampled the batch,
2. trains the PRM on the batch's outcomes for several epochs (PRIME eq. 4),
3. moves the policy towards the distribution that the PRM's rewards ask for, at every token and over the whole
   vocabulary (`distillation_loss`), so that no token's reward depends on which one was sampled.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from openprime.config import DistillRLConfig
from openprime.models.lm import LM, Loader, micro_batches
from openprime.models.sharding import load_trained
from openprime.prime.learner import Learner, minibatches
from openprime.prime.losses import distillation_loss, prm_loss, tilted_reference
from openprime.prime.methods import Write, minibatch_generator
from openprime.prime.prm import PUBLISHED_BETA, ImplicitPRM, fitting_beta
from openprime.prime.rewards import mean_scores, pairwise_accuracy, response_scores
from openprime.ranks import world
from openprime.run.console import Clock
from openprime.types import Batch, Metrics, UserError

KEPT_ELEMENTS = 2**28
"""The largest batch times vocabulary, 1 GiB, whose targets are kept from epoch to epoch instead of made again."""


class Distill:
    """A PRM and its reference, both the policy's size, and the policy that they teach."""

    def __init__(self, config: DistillRLConfig, model: LM, reference: LM, clock: Clock) -> None:
        self.config, self.clock, self.steps = config, clock, 0
        reference = replace(reference, tokens_per_microbatch=config.prm.tokens_per_microbatch)
        self.prm = ImplicitPRM(
            replace(model, tokens_per_microbatch=config.prm.tokens_per_microbatch), reference, PUBLISHED_BETA
        )
        self.reference = reference
        self.tokenizer: PreTrainedTokenizerBase | None = None

    @classmethod
    def build(
        cls, config: DistillRLConfig, models: Loader, tokenizer: PreTrainedTokenizerBase, clock: Clock
    ) -> Self:
        """As `Method.build`. Raises UserError under torchrun."""
        if world() > 1:
            raise UserError("algorithm=distill is for one process: start it without torchrun")
        model, reference = (LM(load_trained(config.model, models.place), models.place) for _ in range(2))
        method = cls(config, model, reference, clock)
        method.tokenizer = tokenizer
        return method

    def step(self, policy: Learner, batch: Batch) -> tuple[Batch, Metrics]:
        """The PRM from the policy and the outcomes, then the policy from the PRM."""
        self.steps += 1
        generator = minibatch_generator(self.config.seed, self.steps)
        with self.clock.phase("prm"):
            metrics = self.skill(batch) if self.steps > 1 else {}
            batch, learnt = self.learn(policy, batch, generator)
            batch = replace(batch, rewards=self.prm.token_rewards(batch))
        assert batch.rewards is not None
        with self.clock.phase("policy"):
            taught = self.teach(policy, batch, generator)
        return batch, metrics | learnt | mean_scores(response_scores(batch.rewards), batch) | taught

    def skill(self, batch: Batch) -> Metrics:
        """Pairwise accuracy of the last step's PRM on responses that neither it nor its policy has seen."""
        rewards = self.prm.token_rewards(self.prm.with_reference(batch))
        won, pairs = pairwise_accuracy(response_scores(rewards), batch.outcome, batch.group)
        return {"prm/pairwise_accuracy": float(won / pairs)}

    def learn(self, policy: Learner, batch: Batch, generator: torch.Generator) -> tuple[Batch, Metrics]:
        """The PRM from the policy and the batch's outcomes; the batch with its reference's log-probabilities."""
        for lm in (self.prm.lm, self.reference):
            lm.model.load_state_dict(policy.lm.model.state_dict())
        batch = self.prm.with_reference(batch)
        assert batch.ref_logprobs is not None
        self.prm.beta = fitting_beta(float((-batch.ref_logprobs.sum(-1)).median()))
        epochs, size = self.config.distill.prm_epochs, self.config.prm.minibatch or len(batch)
        updates = epochs * -(-len(batch) // size)
        learner = Learner(self.prm.lm, self.config.prm, updates)
        loss = partial(prm_loss, "ce", beta=self.prm.beta)
        done = [
            learner.update(part, loss, len(part))
            for _ in range(epochs)
            for part in minibatches(batch, size, generator)
        ]
        epoch = [update.loss for update in done[-(updates // epochs) :]]
        return batch, {
            "prm/loss": sum(epoch) / len(epoch),
            "prm/grad_norm": max(update.grad_norm for update in done),
            "prm/lr": self.config.prm.lr,
            "prm/beta": self.prm.beta,
        }

    def teach(self, policy: Learner, batch: Batch, generator: torch.Generator) -> Metrics:
        """The policy from the PRM; no outcome is looked at."""
        vocabulary = self.reference.model.config.get_text_config().vocab_size
        if int(batch.response_mask.sum()) * vocabulary <= KEPT_ELEMENTS:
            batch = replace(batch, targets=self.tilted(batch))

        def loss(log_policy: Tensor, micro: Batch) -> Tensor:
            targets = torch.cat(micro.targets or self.tilted(micro))  # [N, V]
            return distillation_loss(log_policy, targets, self.config.distill.kl_coefficient)

        done = []
        for _ in range(self.config.policy.epochs):
            for part in minibatches(batch, self.config.policy.minibatch, generator):
                done.append(policy.update(part, loss, int(part.response_mask.sum()), whole_vocabulary=True))
        return {
            "policy/loss": sum(update.loss for update in done) / len(done),
            "policy/grad_norm": sum(update.grad_norm for update in done) / len(done),
            "policy/lr": done[-1].lr,
        }

    @torch.no_grad()
    def tilted(self, batch: Batch) -> list[Tensor]:
        """The tilted reference of each row's response tokens, B x [T_b, V]."""
        how = self.config.distill
        found: dict[int, Tensor] = {}
        for rows in micro_batches(batch.lengths, self.config.prm.tokens_per_microbatch):
            micro = batch.select(rows)
            log_prm, log_ref = self.prm.lm.distributions(micro), self.reference.distributions(micro)  # [N, V]
            tilted = tilted_reference(log_prm, log_ref, how.low, how.high, how.kl_coefficient)
            found |= dict(zip(rows.tolist(), tilted.split(micro.response_mask.sum(-1).tolist()), strict=True))
        return [found[b] for b in range(len(batch))]

    def state(self) -> dict[str, Any]:
        """State for a checkpoint: the last step's PRM and its reference."""
        models = {"model": self.prm.lm.model.state_dict(), "reference": self.reference.model.state_dict()}
        return models | {"beta": self.prm.beta, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.prm.lm.model.load_state_dict(state["model"])
        self.reference.model.load_state_dict(state["reference"])
        self.prm.beta, self.steps = state["beta"], state["steps"]

    def models(self) -> dict[str, Write]:
        """The last step's PRM, and its reference."""
        assert self.tokenizer is not None
        tokenizer, reference = self.tokenizer, str(Path(self.config.out) / "reference")
        return {
            "reference": lambda folder: self.reference.save(folder, tokenizer, self.config.data),
            "prm": lambda folder: self.prm.save_pretrained(folder, tokenizer, reference),
        }
