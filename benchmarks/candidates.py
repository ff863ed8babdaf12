"""Methods for `sample_efficiency.py` alone: each is a class and a line of ALGORITHMS."""

from dataclasses import replace

import torch
from torch import Tensor

from openprime.config import ALGORITHMS, DistillConfig, DistillRLConfig, OutcomeConfig, PrimeConfig
from openprime.config.sections import Rate, Scale
from openprime.models.lm import LM, Loader
from openprime.prime.advantages import (
    Centring,
    centre,
    moments,
    outcome_returns,
    returns_to_go,
    skill_gate,
    whiten,
    with_advantages,
)
from openprime.prime.distill import Distill, copy_weights, target_kl
from openprime.prime.learner import Learner, minibatches
from openprime.prime.losses import policy_loss, with_rest
from openprime.prime.methods import OutcomeOnly, Prime, minibatch_generator, update_policy, with_old_policy
from openprime.prime.prm import minibatches_of_groups, moving_average
from openprime.prime.rewards import (
    prefix_values,
    response_scores,
    score_metrics,
    token_rewards,
    with_group_outcome,
)
from openprime.tasks.clock import check_steps
from openprime.types import Batch, Metrics

LOW, HIGH = -2.0, 0.3
"""Bounds of log phi - log ref, in nats, before it is a reward of `Improved`."""
ALL = 2**30
"""More tokens than a vocabulary has."""


def take(method: OutcomeOnly, policy: Learner, batch: Batch) -> tuple[Batch, Metrics]:
    """The policy's updates on the batch's advantages, as `OutcomeOnly.improve` does them."""
    method.steps += 1
    with method.clock.phase("policy"):
        batch, mismatch = with_old_policy(policy, batch, method.config.policy.importance_clip)
        generator = minibatch_generator(method.config.seed, method.steps)
        return batch, update_policy(policy, batch, method.config.policy, generator) | mismatch


class MaxRL(OutcomeOnly):
    """Maximum-likelihood reinforcement learning (arXiv 2602.02710): the centred outcome over the group's mean.

    An estimate of the gradient of log p(right) instead of p(right), so that hard prompts weigh more; clipped and
    reused as the outcome-only baseline is.
    """

    def step(self, policy: Learner, batch: Batch) -> tuple[Batch, Metrics]:
        """One pass of policy updates; a group without a right response says nothing."""
        mean = with_group_outcome(batch).group_outcome
        assert mean is not None
        advantage = (batch.outcome - mean) / mean.clamp(min=1e-6)  # [B]
        batch = replace(batch, advantages=advantage[:, None] * batch.response_mask)
        return self.update(policy, replace(batch, rewards=torch.zeros_like(batch.logprobs)))


class TPO(OutcomeOnly):
    """Target policy optimisation (arXiv 2604.06159): outcomes alone, and no clip.

    The target of a group is q_i proportional to p_i exp(z_i / TEMPERATURE): p_i the sampling policy's probability of
    response i among those of its group, z_i its standardised outcome. The loss is the cross-entropy of the policy's
    own p to q, whose gradient vanishes where p is q, so that a batch can be used many times.
    """

    TEMPERATURE = 1.0

    def step(self, policy: Learner, batch: Batch) -> tuple[Batch, Metrics]:
        """`policy.epochs` passes in minibatches of whole groups, in a random order."""
        self.steps += 1
        how, generator = self.config.policy, minibatch_generator(self.config.seed, self.steps)
        done = []
        with self.clock.phase("policy"):
            for _ in range(how.epochs):
                rank = torch.randperm(int(batch.group.max()) + 1, generator=generator).to(batch.group.device)
                shuffled = batch.select(rank[batch.group].argsort(stable=True))
                for rows in minibatches_of_groups(shuffled.group, how.minibatch):
                    part = shuffled.select(rows)
                    groups = len(part.group.unique())
                    done.append(policy.update(part, self.loss, groups, whole_groups=True))
        return replace(batch, rewards=torch.zeros_like(batch.logprobs)), {
            "policy/loss": sum(update.loss for update in done) / len(done),
            "policy/grad_norm": sum(update.grad_norm for update in done) / len(done),
            "policy/lr": done[-1].lr,
        }

    def loss(self, logprobs: Tensor, micro: Batch) -> Tensor:
        """Sum over groups of -sum_i q_i log p_i, eq. 3 of the paper; a micro-batch has whole groups."""
        same = micro.group[:, None] == micro.group[None, :]  # [b, b]
        size = same.sum(-1)

        def log_share(values: Tensor) -> Tensor:
            """log softmax of values [b] within each group."""
            return values - torch.where(same, values, -torch.inf).logsumexp(-1)

        centred = micro.outcome - (same * micro.outcome).sum(-1) / size
        deviation = ((same * centred**2).sum(-1) / size).sqrt()
        standardised = torch.where(deviation > 1e-6, centred / deviation, 0.0)
        new, old = (values.where(micro.response_mask, 0.0).sum(-1) for values in (logprobs, micro.logprobs))
        target = log_share(old + standardised / self.TEMPERATURE).exp()  # eq. 2
        return -(target * log_share(new)).sum()


class SPROConfig(OutcomeConfig):
    """`--algorithm spro`."""

    algorithm: str = "spro"
    beta: Scale = 0.05
    """Scale of log policy - log reference."""


class SPRO(OutcomeOnly):
    """Self-guided process rewards (arXiv 2507.01551): the policy is its own PRM, against the SFT model.

    To the outcome's advantage comes the masked step advantage: the cumulative process reward up to a token less its
    mean over those of the group's responses that are as long or longer.
    """

    def __init__(self, config: SPROConfig, clock, reference: LM) -> None:
        super().__init__(config, clock)
        self.beta, self.reference = config.beta, reference

    @classmethod
    def build(cls, config: SPROConfig, models: Loader, tokenizer, clock):
        """As `Method.build`."""
        return cls(config, clock, models.reference(config.model, config.policy.tokens_per_microbatch))

    def step(self, policy: Learner, batch: Batch) -> tuple[Batch, Metrics]:
        """One pass of policy updates."""
        with self.clock.phase("reference"):
            known = self.reference.logprobs(batch)
        rewards = token_rewards(batch.logprobs, known, batch.response_mask, self.beta)
        batch, spread = with_advantages(replace(batch, rewards=rewards), self.config.advantage)
        batch = replace(batch, advantages=batch.advantages + self.masked_step_advantage(batch))
        batch, updated = self.update(policy, batch)
        return batch, spread | updated

    def masked_step_advantage(self, batch: Batch) -> Tensor:
        """Cumulative rewards less their group's mean at the same position, [B, T]; 0 where nobody else is left.

        A group's responses begin in one column, for they answer one prompt.
        """
        assert batch.rewards is not None
        alive = batch.response_mask.to(batch.rewards.dtype)
        total = prefix_values(batch.rewards) * alive  # [B, T]
        same = (batch.group[:, None] == batch.group[None, :]).to(total.dtype)  # [B, B]
        return (total - same @ total / (same @ alive).clamp(min=1)) * alive


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
        ids, log_policy = policy.lm.likeliest(batch, ALL)
        whole = replace(batch, candidates=ids)
        ratio = self.prm.lm.candidate_logprobs(whole) - self.prm.reference.candidate_logprobs(whole)
        clipped = ratio.clamp(LOW, HIGH)  # [B, T, 1 + V]: the token itself, then every other
        surplus = clipped[..., 0] - (log_policy.exp() * clipped)[..., 1:].sum(-1)
        return replace(batch, rewards=self.prm.beta * ratio[..., 0] * mask), surplus * mask


class DistRLConfig(PrimeConfig):
    """`--algorithm distrl`."""

    algorithm: str = "distrl"
    likely: Rate = 0.1
    """Tokens that the old policy gives so much probability are candidates."""
    candidate_weight: Scale = 0.1
    """Weight of their loss beside that of the sampled tokens."""
    process_weight: Scale = 0.05
    """Weight of the sampled tokens' process advantage beside the outcome's."""


class DistRL(Prime):
    """Distribution-level updates (arXiv 2604.13197, section 4 and eq. 10) beside those of sampled tokens.

    Its PRM is that of PRIME with `prm.loss: prefix`, `prm.balance`, `prm.reference: policy`, `prm.update: before`.
    Every likely token a of a place has the advantage beta log(phi(a) / old(a)) over the standard deviation of the
    prefix values; its loss is PPO's, and a place's is their mean by old(a). A sampled token has the outcome's
    advantage, normalised within its group, and the whitened return to go of the centred process rewards.
    """

    def step(self, policy: Learner, batch: Batch) -> tuple[Batch, Metrics]:
        """The PRM's update and its scores, then one pass of policy updates."""
        self.steps += 1
        settings, how = self.config, self.config.policy
        assert isinstance(settings, DistRLConfig)
        generator = minibatch_generator(settings.seed, self.steps)
        batch, metrics = self.prm.score_and_update(batch)
        with self.clock.phase("prm"):
            ids, old = policy.lm.likeliest(batch, int(1 / settings.likely))  # no more tokens are that likely
            batch = replace(batch, candidates=ids, old_logprobs=old[..., 0])
            phi = self.prm.lm.candidate_logprobs(batch)  # [B, T, 1 + k]
        batch = replace(batch, advantages=self.sampled_advantages(batch, settings.process_weight))
        credit = self.credit(batch, phi[..., 1:], old[..., 1:])
        batch = replace(batch, targets=torch.cat([old[..., 1:], credit], -1))  # [B, T, 2 k]

        def loss(logprobs: Tensor, micro: Batch) -> Tensor:
            assert micro.targets is not None
            assert micro.old_logprobs is not None
            assert micro.advantages is not None
            mask, clips = micro.response_mask.float(), (how.clip_low, how.clip_high)
            known, advantages = micro.targets.chunk(2, -1)
            weights = self.shares(known) * mask[..., None]
            sampled = policy_loss(logprobs[..., 0], micro.old_logprobs, micro.advantages, mask, *clips)
            others = policy_loss(logprobs[..., 1:], known, advantages, weights, *clips)
            return sampled.loss + settings.candidate_weight * others.loss

        done = []
        with self.clock.phase("policy"):
            for _ in range(how.epochs):
                for part in minibatches(batch, how.minibatch, generator):
                    done.append(policy.update(part, loss, int(part.response_mask.sum()), candidates=True))
        return replace(batch, targets=None), metrics | {
            "policy/loss": sum(update.loss for update in done) / len(done),
            "policy/grad_norm": sum(update.grad_norm for update in done) / len(done),
            "policy/lr": done[-1].lr,
        }

    def sampled_advantages(self, batch: Batch, process_weight: float) -> Tensor:
        """Of the sampled tokens, [B, T]."""
        assert batch.rewards is not None
        mask = batch.response_mask
        own = outcome_returns(batch, self.advantage.model_copy(update={"estimator": "grpo"}))
        centred = (batch.rewards - batch.rewards[mask].mean()) * mask
        process = returns_to_go(centred, mask, 1.0)
        return own + process_weight * whiten(process, mask, moments(process, mask))

    def credit(self, batch: Batch, phi: Tensor, old: Tensor) -> Tensor:
        """Of the candidates, [B, T, k], from log phi and log old."""
        assert batch.rewards is not None
        mask = batch.response_mask
        values = prefix_values(batch.rewards, mask)[mask]
        return self.prm.beta * (phi - old) / values.std(correction=0).clamp(min=1e-6)

    def shares(self, old: Tensor) -> Tensor:
        """Of each candidate in its place's loss, [B, T, k], from log old; all 0 where no token is likely enough."""
        assert isinstance(self.config, DistRLConfig)
        kept = old.exp() * (old.exp() >= self.config.likely)
        return kept / kept.sum(-1, keepdim=True).clamp(min=1e-9)


class UndistilledConfig(DistillRLConfig):
    """`--algorithm undistilled`."""

    algorithm: str = "undistilled"


class Undistilled(Distill):
    """The PRM is the policy that its rewards ask for with beta = 1; here it becomes the policy as it is."""

    def teach(self, policy: Learner, batch: Batch, generator: torch.Generator, new: int) -> Metrics:
        """Nothing is distilled."""
        copy_weights(self.weights.values(), policy.trained.values())
        return {}


class ShuffledConfig(DistillRLConfig):
    """`--algorithm shuffled`."""

    algorithm: str = "shuffled"


class Shuffled(Distill):
    """A control: distillation from outcomes that say nothing, those of the batch in a random order."""

    chance = -1.0  # the PRM teaches whatever it knows

    def step(self, policy: Learner, batch: Batch) -> tuple[Batch, Metrics]:
        """PRM, outcome advantages and the PRM's metrics see shuffled outcomes; the batch keeps its own."""
        draw = minibatch_generator(self.config.seed + 1, self.steps + 1)
        order = torch.randperm(len(batch), generator=draw).to(batch.outcome.device)
        done, metrics = super().step(policy, replace(batch, outcome=batch.outcome[order]))
        return replace(done, outcome=batch.outcome, group_outcome=None), metrics


class SharpeningConfig(DistillConfig):
    """`distill` of `--algorithm sharpened`."""

    outcome_weight: Rate = 0.0
    target_kl: Scale = 0.03
    """How far the targets are from the policy: mean KL(policy || target) of a token, in nats."""


class SharpenedConfig(DistillRLConfig):
    """`--algorithm sharpened`."""

    algorithm: str = "sharpened"
    distill: SharpeningConfig = SharpeningConfig()  # pyright: ignore[reportIncompatibleVariableOverride]


class Sharpened(Distill):
    """A control: no PRM and no outcome. The target is the sampling policy made surer of itself, ref^(1 + c) / Z.

    arXiv 2608.31046 finds that on-policy distillation mostly suppresses unlikely tokens, as this does.
    """

    def learn(
        self, policy: Learner, batch: Batch, known: Tensor, generator: torch.Generator, new: int
    ) -> tuple[Batch, Metrics]:
        """Targets in the units of `tilted_reference`, with c such that they are as far away as asked for."""
        how, mask = self.config.distill, batch.response_mask
        assert isinstance(how, SharpeningConfig)
        ref = with_rest(known[..., 1:])  # [B, T, k + 1]
        low, high = 0.0, 64.0
        for _ in range(40):  # the KL grows with c
            c = (low + high) / 2
            kl = target_kl(ref, (1 + c) * ref, mask, 1.0)
            low, high = (c, high) if kl < how.target_kl else (low, c)
        targets = how.kl_coefficient * (1 + low) * ref
        nothing = torch.zeros_like(batch.logprobs)
        kl = target_kl(ref, targets, mask, how.kl_coefficient)
        return replace(batch, rewards=nothing, targets=targets), {
            "policy/target_kl": kl,
            "policy/sharpening": low,
        }


ALGORITHMS |= {
    "maxrl": (OutcomeConfig, "candidates:MaxRL"),
    "tpo": (OutcomeConfig, "candidates:TPO"),
    "spro": (SPROConfig, "candidates:SPRO"),
    "checker": (CheckerConfig, "candidates:Checker"),
    "improved": (ImprovedConfig, "candidates:Improved"),
    "distrl": (DistRLConfig, "candidates:DistRL"),
    "undistilled": (UndistilledConfig, "candidates:Undistilled"),
    "shuffled": (ShuffledConfig, "candidates:Shuffled"),
    "sharpened": (SharpenedConfig, "candidates:Sharpened"),
}
