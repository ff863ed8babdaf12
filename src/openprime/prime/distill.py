"""The other use of an implicit PRM: learnt anew from the policy in every step, it teaches the policy all it knows.

PRIME takes one PRM update and one policy update from a batch, and rewards sampled tokens alone. Much of what the labels
say is then left unused. Here a step

1. looks up the policy's log-probabilities of the sampled tokens and of each place's likeliest tokens, the candidates:
   before its update the policy is the reference, and no other model is asked;
2. makes the PRM a copy of the policy and trains it on the batch's outcomes (PRIME eq. 4), for a few epochs, with what a
   prompt explains taken out (`prior_log_odds`);
3. moves the policy towards the distribution that the PRM's rewards ask for, at every token, over the candidates and the
   rest of the vocabulary as one outcome (`distillation_loss`), so that no token's reward depends on which one was
   sampled. A clipped policy loss on outcomes (eq. 6) stands beside it, for batches that teach a PRM little. The
   rewards count as 0 as long as the PRM's pairwise accuracy on responses that are new to it, a moving average over
   steps, is not above chance: a PRM that knows nothing would teach just that.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from openprime.config import DistillRLConfig, OutcomeAdvantageConfig
from openprime.models.lm import LM, Loader
from openprime.models.lora import trained_parameters
from openprime.prime.advantages import outcome_returns
from openprime.prime.learner import Learner, fill, minibatch_rows, minibatches
from openprime.prime.losses import (
    distillation_loss,
    policy_loss,
    prm_shifted_loss,
    tilted_reference,
    with_rest,
)
from openprime.prime.methods import Write, minibatch_generator, mismatch
from openprime.prime.prm import PUBLISHED_BETA, ImplicitPRM, fitting_beta, median_nats, moving_average
from openprime.prime.rewards import (
    mean_scores,
    pairwise_accuracy,
    response_scores,
    token_rewards,
    with_group_outcome,
)
from openprime.run.checkpoint import SHARDS, load_shards
from openprime.run.console import Clock
from openprime.types import Batch, Metrics

CLIP_LOW, CLIP_HIGH = 0.2, 0.28
"""Of the policy loss on outcomes, as DAPO has it."""


class Distill:
    """A PRM of the policy's size, where it began in the last step, and the policy that it teaches."""

    chance = 0.5
    """The PRM teaches where its skill, a moving average of its pairwise accuracy on new responses, is above this."""

    def __init__(self, config: DistillRLConfig, model: LM, clock: Clock) -> None:
        """`model` becomes the PRM; its trained weights must be those of the policy's, one by one."""
        self.config, self.clock, self.steps = config, clock, 0
        model = replace(model, tokens_per_microbatch=config.prm.tokens_per_microbatch)
        self.prm = ImplicitPRM(model, None, PUBLISHED_BETA)
        self.weights = trained_parameters(model.model, model.adapter)
        learnt = {
            name: weight for name, weight in self.weights.items() if model.adapter or weight.requires_grad
        }
        self.start = {name: weight.detach().clone() for name, weight in learnt.items()}
        """Those of the PRM's weights that it learns, before it learnt from the last batch: its reference's."""
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.skill: float | None = None
        self.past: list[Batch] = []
        """Batches of the last steps, the newest first."""

    @classmethod
    def build(
        cls, config: DistillRLConfig, models: Loader, tokenizer: PreTrainedTokenizerBase, clock: Clock
    ) -> Self:
        """As `Method.build`. Where the policy has an adapter the PRM is another one on the same base."""
        model = models.trained(config.model, "prm", config.policy, depth=config.distill.prm_depth)
        method = cls(config, model, clock)
        method.tokenizer = tokenizer
        return method

    def step(self, policy: Learner, batch: Batch) -> tuple[Batch, Metrics]:
        """The PRM from the policy and the outcomes, then the policy from the PRM."""
        self.steps += 1
        generator = minibatch_generator(self.config.seed, self.steps)
        batches, new = [batch, *self.past], len(batch)
        self.past = batches[: self.config.distill.replay]
        with self.clock.phase("reference"):
            batch, known = self.look_up(policy, joined(batches))
        with self.clock.phase("prm"):
            batch, metrics = self.learn(policy, batch, known, generator, new)
        with self.clock.phase("policy"):
            taught = self.teach(policy, batch, generator, new)
        return first_rows(batch, new), metrics | taught

    def look_up(self, policy: Learner, batch: Batch) -> tuple[Batch, Tensor]:
        """The batch with its candidates and reference, and log ref of the candidates, [B, T, 1 + k]."""
        candidates, known = policy.lm.likeliest(batch, self.config.distill.candidates)
        return replace(batch, candidates=candidates, ref_logprobs=known[..., 0]), known

    def learn(
        self, policy: Learner, batch: Batch, known: Tensor, generator: torch.Generator, new: int
    ) -> tuple[Batch, Metrics]:
        """The PRM from the policy and the batch's outcomes; the batch with its process rewards and the targets.

        Where the PRM's skill is not above chance the targets are the reference. Metrics are of the first `new` rows.
        """
        assert batch.ref_logprobs is not None
        copy_weights(policy.trained.values(), self.weights.values())
        copy_weights((self.weights[name] for name in self.start), self.start.values())
        self.prm.beta = fitting_beta(median_nats(batch, "sum"))
        metrics = self.train(with_group_outcome(batch), generator, new)
        found, how = self.prm.lm.candidate_logprobs(batch), self.config.distill  # [B, T, 1 + k]
        rewards = token_rewards(found[..., 0], batch.ref_logprobs, batch.response_mask, self.prm.beta)
        self.skill = moving_average(self.skill, metrics.get("prm/pairwise_accuracy", math.nan))
        heard = self.skill is None or self.skill > self.chance
        phi, ref = (
            with_rest(logprobs[..., 1:]) for logprobs in (found if heard else known, known)
        )  # [B, T, k + 1]
        targets = tilted_reference(phi, ref, how.low, how.high, how.kl_coefficient)
        metrics |= mean_scores(response_scores(rewards[:new]), first_rows(batch, new))
        metrics |= {} if self.skill is None else {"prm/skill": self.skill}
        metrics["policy/target_kl"] = target_kl(ref, targets, batch.response_mask, how.kl_coefficient)
        return replace(batch, rewards=rewards, targets=targets), metrics

    def train(self, batch: Batch, generator: torch.Generator, new: int) -> Metrics:
        """`prm_epochs` of the PRM on the outcomes. Its skill is that of the first epoch's forward passes.

        Each of the first `new` responses is then scored by what the PRM has learnt from other minibatches.
        """
        assert batch.ref_logprobs is not None
        how, beta, epochs = self.config.prm, self.prm.beta, self.config.distill.prm_epochs
        size, scores = how.minibatch or len(batch), torch.zeros_like(batch.outcome)
        learner = Learner(self.prm.lm, how, epochs * -(-len(batch) // size))
        loss = partial(prm_shifted_loss, beta=beta, overall=float(batch.outcome.mean()))
        done = []
        for epoch in range(epochs):
            for i, rows in enumerate(minibatch_rows(batch, size, generator)):
                part = batch.select(rows)
                done.append(learner.update(part, loss, len(part)))
                if epoch == 0 and i > 0:  # before its first update the PRM is its reference: scores of 0
                    assert part.ref_logprobs is not None
                    logprobs, known, mask = done[-1].logprobs, part.ref_logprobs, part.response_mask
                    scores[rows] = response_scores(token_rewards(logprobs, known, mask, beta))
        last = [update.loss for update in done[-(len(done) // epochs) :]]
        metrics = {
            "prm/loss": sum(last) / len(last),
            "prm/grad_norm": max(update.grad_norm for update in done),
            "prm/lr": how.lr,
            "prm/beta": beta,
        }
        won, pairs = pairwise_accuracy(scores[:new], batch.outcome[:new], batch.group[:new])
        return metrics | ({"prm/pairwise_accuracy": float(won / pairs)} if len(last) > 1 else {})

    def teach(self, policy: Learner, batch: Batch, generator: torch.Generator, new: int) -> Metrics:
        """The policy from the PRM, and by `outcome_weight` from the outcomes of the first `new` rows, its own."""
        how, settings = self.config.distill, self.config.policy
        reference = batch.ref_logprobs
        assert reference is not None
        returns = outcome_returns(batch, OutcomeAdvantageConfig())
        returns[new:] = 0
        batch = replace(batch, old_logprobs=reference, advantages=returns)

        def loss(logprobs: Tensor, micro: Batch) -> Tensor:
            targets, old, advantages = micro.targets, micro.old_logprobs, micro.advantages
            assert targets is not None
            assert old is not None
            assert advantages is not None
            mask = micro.response_mask
            total = distillation_loss(with_rest(logprobs[..., 1:]), targets, mask, how.kl_coefficient)
            if how.outcome_weight:
                own = logprobs[..., 0]
                found = policy_loss(own, old, advantages, mask.float(), CLIP_LOW, CLIP_HIGH)
                total = total + how.outcome_weight * found.loss
            return total

        done = []
        for _ in range(settings.epochs):
            for part in minibatches(batch, settings.minibatch, generator):
                done.append(policy.update(part, loss, int(part.response_mask.sum()), candidates=True))
        return {
            "policy/loss": sum(update.loss for update in done) / len(done),
            "policy/grad_norm": sum(update.grad_norm for update in done) / len(done),
            "policy/lr": done[-1].lr,
        } | mismatch(reference[:new], first_rows(batch, new))

    def state(self) -> dict[str, Any]:
        """State for a checkpoint: the last step's PRM and where it began."""
        tensors = self._tensors()
        sharded = isinstance(self.prm.lm.model, FSDPModule)
        return {
            SHARDS if sharded else "tensors": tensors,
            "beta": self.prm.beta,
            "steps": self.steps,
            "skill": self.skill,
            "past": [{name: getattr(batch, name) for name in Batch.__slots__} for batch in self.past],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`, that of another number of ranks too."""
        self.prm.beta, self.steps, self.skill = state["beta"], state["steps"], state["skill"]
        self.past = [Batch(**columns).to(self.prm.lm.device) for columns in state["past"]]
        if SHARDS in state:
            load_shards(state[SHARDS], self._tensors())
            return
        for name, tensor in self._tensors().items():
            fill(tensor, state["tensors"][name])

    def _tensors(self) -> dict[str, Tensor]:
        named = {"prm": self.weights, "reference": self.start}
        return {
            f"{part}.{name}": weight.detach() for part, own in named.items() for name, weight in own.items()
        }

    def models(self) -> dict[str, Write]:
        """The last step's PRM, and its reference."""
        assert self.tokenizer is not None
        tokenizer, reference = self.tokenizer, str(Path(self.config.out) / "reference")

        def save_reference(folder: Path) -> None:
            with self.as_it_began():
                self.prm.lm.save(folder, tokenizer, self.config.data)

        return {
            "reference": save_reference,
            "prm": lambda folder: self.prm.save_pretrained(folder, tokenizer, reference),
        }

    @contextmanager
    def as_it_began(self) -> Iterator[None]:
        """The PRM's model with its reference's weights."""
        learnt = [self.weights[name] for name in self.start]
        trained = [weight.detach().clone() for weight in learnt]
        copy_weights(self.start.values(), learnt)
        try:
            yield
        finally:
            copy_weights(trained, learnt)


def joined(batches: Sequence[Batch]) -> Batch:
    """Several batches as one, row by row, whose groups stay apart. What one of them lacks the whole lacks."""
    width = max(batch.token_ids.shape[1] for batch in batches)
    before = [0, *accumulate(int(batch.group.max()) + 1 for batch in batches)]

    def column(name: str) -> Any:
        parts = [getattr(batch, name) for batch in batches]
        if any(part is None for part in parts):
            return None
        if name == "group":
            parts = [part + start for part, start in zip(parts, before, strict=False)]
        if parts[0].dim() > 1:  # [b, t], padded as rows are
            parts = [F.pad(part, (0, width - part.shape[1])) for part in parts]
        return torch.cat(parts)

    return Batch(*map(column, Batch.__slots__))


def first_rows(batch: Batch, count: int) -> Batch:
    """A batch's first rows, as wide as it is: of the joined batch of a step, the new ones."""
    return batch.select(torch.arange(count, device=batch.lengths.device), batch.token_ids.shape[1])


def target_kl(log_ref: Tensor, targets: Tensor, mask: Tensor, kl_coefficient: float) -> float:
    """Mean over tokens of KL(ref || target) in nats: how far the policy is to move. [B, T, k + 1], mask [B, T]."""
    less_constant = distillation_loss(log_ref, targets, mask, kl_coefficient) / kl_coefficient
    constant = ((targets / kl_coefficient).logsumexp(-1) * mask).sum()
    return float((less_constant + constant) / mask.sum())


@torch.no_grad()
def copy_weights(weights: Iterable[Tensor], into: Iterable[Tensor]) -> None:
    """Copy weights, each of which may be in shares; every rank copies its own."""
    for source, target in zip(weights, into, strict=True):
        _own(target).copy_(_own(source))


def _own(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
