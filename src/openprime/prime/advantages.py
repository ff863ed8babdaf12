"""Advantages from process and outcome rewards (PRIME, arXiv 2502.01456, section 3.3 and eq. 5).

Baselines act within a group, on the positions where rewards stand. Statistics of a whole batch
(the largest return, mean and variance for whitening) are passed in, because a batch may be spread
over ranks (trap 2).
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from openprime.config import AdvantageConfig, OutcomeAdvantageConfig
from openprime.prime.rewards import gather_rewards, last_token, reward_positions, scale_by_return
from openprime.types import Batch, Metrics, UserError

Estimator = Literal["rloo", "grpo", "reinforce"]
Preset = Literal["exact", "released"]
EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Centring:
    """Baseline of rewards within their group."""

    estimator: Estimator = "rloo"
    preset: Preset = "exact"


def with_advantages(
    batch: Batch, config: OutcomeAdvantageConfig, process_weight: float = 0.0, outcome_weight: float = 1.0
) -> tuple[Batch, Metrics]:
    """The batch with its advantages, PRIME eq. 5, and how their variance splits.

    A_t = w_process * G^process_t + w_outcome * G^outcome_t. With a `process_weight` of 0 outcomes alone count.
    """
    mask = batch.response_mask
    outcome = outcome_returns(batch, config)  # [B, T]
    process = torch.zeros_like(outcome)  # [B, T]
    if process_weight:
        assert isinstance(config, AdvantageConfig)
        process = process_returns(batch, config)
        batch = replace(batch, returns=process)
    advantages = combine(process, outcome, process_weight, outcome_weight)
    if config.whitens:
        advantages = whiten(advantages, mask, moments(advantages, mask))
    spread = {
        "advantage/process_std": process_weight * float(process[mask].std()),
        "advantage/outcome_std": outcome_weight * float(outcome[mask].std()),
        "advantage/std": float(advantages[mask].std()),
    }
    if process_weight:
        spread |= split_of_variance(process_weight * process[mask], outcome_weight * outcome[mask])
    return replace(batch, advantages=advantages), spread


def process_returns(batch: Batch, config: AdvantageConfig) -> Tensor:
    """G^process_t: returns to go of the centred process rewards, [B, T]; the first term of PRIME eq. 5."""
    assert batch.rewards is not None
    mask = batch.response_mask
    positions = reward_positions(mask, batch.step_end, config.granularity)
    placed = gather_rewards(batch.rewards, positions)  # [B, T]
    if config.scales_by_return:
        placed = scale_by_return(placed, returns_to_go(placed, mask, config.process_gamma).abs().max())
    centred = centre(placed, positions, batch.group, Centring(config.estimator, config.preset))
    return returns_to_go(centred, mask, config.process_gamma)


def outcome_returns(batch: Batch, config: OutcomeAdvantageConfig) -> Tensor:
    """G^outcome_t: returns to go of the centred outcomes, [B, T]; the second term of PRIME eq. 5."""
    mask, how = batch.response_mask, Centring(config.estimator, config.preset)
    centred = centre(outcome_rewards(batch.outcome, mask), last_token(mask), batch.group, how)
    return returns_to_go(centred, mask, config.outcome_gamma)


def returns_to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """G_t = sum_{u >= t} gamma^(u-t) c_u on response tokens, 0 elsewhere. [B, T], float32."""
    rewards = rewards.double() * mask
    if gamma == 1.0:
        returns = rewards.flip(-1).cumsum(-1).flip(-1)
    else:
        returns = torch.zeros_like(rewards)
        running = torch.zeros_like(rewards[:, 0])
        for t in range(rewards.shape[-1] - 1, -1, -1):
            running = rewards[:, t] + gamma * running
            returns[:, t] = running
    return (returns * mask).float()


def centre(rewards: Tensor, positions: Tensor, group: Tensor, how: Centring) -> Tensor:
    """Rewards [B, T] less their group baseline, on `positions` [B, T]; 0 elsewhere.

    With m_i the mean reward of response i over its positions and K responses in the group:

    - rloo, exact: c_t = r_t - (1/(K-1)) * sum_{j != i} m_j (PRIME eq. 5).
    - rloo, released: c_t = r_t * K/(K-1) - sum_j m_j / (K-1), as the published training code computes
      it at token granularity: deviations within a response are scaled by K/(K-1) (trap 1). Equal to
      `exact` when a response has one reward.
    - grpo: (r_t - mean) / (std + 1e-6), over all rewards of the group (DeepSeekMath,
      arXiv 2402.03300, section 4.1.3), std with Bessel's correction; an all-equal group gives 0 (trap 15).
    - reinforce: c_t = r_t.

    A group of one response has nobody to be compared with: rloo raises UserError.
    """
    rewards = rewards.double() * positions
    if how.estimator == "reinforce":
        return rewards.float()
    groups = int(group.max()) + 1
    if how.estimator == "grpo":
        count = _sum_by_group(positions.double().sum(-1), group, groups)[group, None].clamp(min=1)
        mean = _sum_by_group(rewards.sum(-1), group, groups)[group, None] / count
        deviation = (rewards - mean) * positions
        square = _sum_by_group((deviation**2).sum(-1), group, groups)[group, None]
        std = (square / (count - 1).clamp(min=1)).sqrt()
        return (deviation / (std + EPSILON)).float()
    size = _sum_by_group(torch.ones_like(rewards[:, 0]), group, groups)[group, None]  # K of each row
    if bool((size < 2).any()):
        raise UserError("rloo compares the responses of a group: every group needs two or more")
    mean = rewards.sum(-1, keepdim=True) / positions.sum(-1, keepdim=True).clamp(min=1)  # m_i, [B, 1]
    group_sum = _sum_by_group(mean[:, 0], group, groups)[group, None]
    if how.preset == "exact":
        centred = rewards - (group_sum - mean) / (size - 1)
    else:
        centred = rewards * size / (size - 1) - group_sum / (size - 1)
    return (centred * positions).float()


def outcome_rewards(outcome: Tensor, mask: Tensor) -> Tensor:
    """The outcome [B] placed on the last token of its response, [B, T]."""
    return outcome[:, None] * last_token(mask)


def combine(process: Tensor, outcome: Tensor, process_weight: float, outcome_weight: float) -> Tensor:
    """A_t = w_process * G^process_t + w_outcome * G^outcome_t. PRIME eq. 5, [B, T]."""
    return process_weight * process + outcome_weight * outcome


def split_of_variance(process: Tensor, outcome: Tensor) -> Metrics:
    """Shares of two terms, [N] each, in the variance of their sum, and their correlation.

    The share of a term x is cov(x, sum) / var(sum): the two add up to 1, and one is negative where its term works
    against a larger other one. nan where nothing varies.
    """
    both = torch.cov(torch.stack([process, outcome]).double())  # [2, 2]
    shares, spread = both.sum(1) / both.sum(), both.diagonal().sqrt()
    return {
        "advantage/process_share": float(shares[0]),
        "advantage/outcome_share": float(shares[1]),
        "advantage/correlation": float(both[0, 1] / spread.prod()),
    }


def skill_gate(accuracy: float) -> float:
    """Factor of the process weight for a PRM that ranks this share of pairs rightly: max(0, 2 a - 1), 0 at chance."""
    return max(0.0, 2 * accuracy - 1)


def moments(values: Tensor, mask: Tensor) -> Tensor:
    """(count, sum, sum of squares) of the masked values, float64 [3]: add them up over ranks."""
    kept = torch.where(mask.bool(), values.double(), 0.0)
    return torch.stack([mask.sum().double(), kept.sum(), (kept**2).sum()])


def whiten(advantages: Tensor, mask: Tensor, moments: Tensor) -> Tensor:
    """(A - mean) / sqrt(population variance + 1e-8) with the given global moments; 0 off the mask. [B, T]."""
    count, total, squares = moments
    mean = total / count
    variance = (squares / count - mean**2).clamp(min=0)
    return (((advantages - mean) * torch.rsqrt(variance + 1e-8)) * mask).float()


def _sum_by_group(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """Sum of values [B] over the rows of each group, [G]."""
    return values.new_zeros(groups).index_add_(0, group, values)
