"""Methods for `sample_efficiency.py` alone: each is a class and a line of ALGORITHMS."""

from dataclasses import replace

import torch
from torch import Tensor

from openprime.config import ALGORITHMS, DistillRLConfig, OutcomeConfig, PrimeConfig
from openprime.models.lm import Loader
from openprime.prime.advantages import Centring, centre, skill_gate, with_advantages
from openprime.prime.distill import Distill
from openprime.prime.learner import Learner
from openprime.prime.methods import OutcomeOnly, Prime, minibatch_generator, update_policy, with_old_policy
from openprime.prime.prm import moving_average
from openprime.prime.rewards import response_scores, score_metrics
from openprime.tasks.clock import check_steps
from openprime.types import Batch, Metrics

LOW, HIGH = -2.0, 0.3
"""Bounds of log phi - log ref, in nats, before it is a reward of `Improved`."""


def take(method: OutcomeOnly, policy: Learner, batch: Batch) -> tuple[Batch, Metrics]:
    """The policy's updates on the batch's advantages, as `OutcomeOnly.improve` does them."""
    method.steps += 1
    with method.clock.phase("policy"):
        batch, mismatch = with_old_policy(policy, batch, method.config.policy.importance_clip)
        generator = minibatch_generator(method.config.seed, method.steps)
        return batch, update_policy(policy, batch, method.config.policy, generator) | mismatch


class CheckerConfig(OutcomeConfig):
    """`--algorithm checker`."""

    algorithm: str = "checker"

    @property
    def step_delimiter(self) -> str:
        """Lines are steps."""
        return "\n"


class Checker(OutcomeOnly):
    """Analysis only: the oracle step checker of clock arithmetic instead of a PRM, and no outcomes. An upper bound."""

    @classmethod
    def build(cls, config: CheckerConfig, models: Loader, tokenizer, clock):
        """As `Method.build`."""
        method = cls(config, clock)
        method.tokenizer = tokenizer
        return method

    def step(self, policy: Learner, batch: Batch) -> tuple[Batch, Metrics]:
        """One policy update on the lines' verdicts."""
        rewards, mask, how = self.checked(batch), batch.response_mask, self.config.advantage
        advantages = centre(rewards, mask, batch.group, Centring(how.estimator, how.preset))
        return take(self, policy, replace(batch, rewards=rewards, advantages=advantages))

    def checked(self, batch: Batch) -> Tensor:
        """1 on every token of a right line, 0 on those of a wrong one, [B, T]."""
        rewards = torch.zeros_like(batch.logprobs)
        for b, mask in enumerate(batch.response_mask):
            start = int(mask.nonzero()[0])
            prompt = self.tokenizer.decode(batch.token_ids[b, :start], skip_special_tokens=True)
            task = [line for line in prompt.splitlines() if line.startswith("Start") or line.endswith("= ?")]
            response = self.tokenizer.decode(batch.token_ids[b][mask], skip_special_tokens=True)
            right = check_steps("\n".join(task), response)
            ends = batch.step_end[b][mask].long()
            lines = (ends.cumsum(0) - ends).tolist()  # the line of each token
            values = [float(right[line]) if line < len(right) else float(all(right)) for line in lines]
            rewards[b, mask] = torch.tensor(values, device=rewards.device)
        return rewards


class ImprovedConfig(PrimeConfig):
    """`--algorithm improved`."""

    algorithm: str = "improved"


class Improved(Prime):
    """PRIME with exact credit: A_t = r_t - E_policy[r], r the clipped log-ratio; two PRM updates on a batch."""

    def step(self, policy: Learner, batch: Batch) -> tuple[Batch, Metrics]:
        """Credit by the PRM as it is, its updates, then the policy's."""
        how = self.advantage
        with self.clock.phase("prm"):
            batch, credit = self.credit(policy, batch)
            assert batch.rewards is not None
            metrics = score_metrics(response_scores(batch.rewards), batch)
            self.prm.skill = moving_average(self.prm.skill, metrics["prm/pairwise_accuracy"])
            for _ in range(2):
                metrics |= self.prm.learn(batch)[1]
        gate = skill_gate(self.prm.skill or 0.0) if how.skill_gate else 1.0
        batch, _ = with_advantages(batch, how, 0.0, how.outcome_weight)
        batch = replace(batch, advantages=how.process_weight * gate * credit + batch.advantages)
        batch, updated = take(self, policy, batch)
        return batch, metrics | updated

    @torch.no_grad()
    def credit(self, policy: Learner, batch: Batch) -> tuple[Batch, Tensor]:
        """The batch with its process rewards, and each clipped log-ratio less what the policy expects, [B, T]."""
        assert self.prm.reference is not None
        batch, mask = self.prm.with_reference(batch), batch.response_mask
        models = self.prm.lm, self.prm.reference, policy.lm
        log_phi, log_ref, log_policy = (lm.distributions(batch) for lm in models)  # [N, V]
        ratio, tokens = log_phi - log_ref, batch.token_ids[mask][:, None]
        clipped = ratio.clamp(LOW, HIGH)
        surplus = clipped.gather(-1, tokens)[:, 0] - (log_policy.exp() * clipped).sum(-1)
        rewards = self.prm.beta * ratio.gather(-1, tokens)[:, 0]
        nothing = torch.zeros_like(batch.logprobs)
        return replace(batch, rewards=nothing.masked_scatter(mask, rewards)), nothing.masked_scatter(
            mask, surplus
        )


class UndistilledConfig(DistillRLConfig):
    """`--algorithm undistilled`."""

    algorithm: str = "undistilled"


class Undistilled(Distill):
    """The PRM is the policy that its rewards ask for with beta = 1; here it becomes the policy as it is."""

    def teach(self, policy: Learner, batch: Batch, generator: torch.Generator) -> Metrics:
        """Nothing is distilled."""
        policy.lm.model.load_state_dict(self.prm.lm.model.state_dict())
        return {}


ALGORITHMS |= {
    "checker": (CheckerConfig, "candidates:Checker"),
    "improved": (ImprovedConfig, "candidates:Improved"),
    "undistilled": (UndistilledConfig, "candidates:Undistilled"),
}
