"""Losses as SUMS. The learner divides once by a count over the whole batch (trap 9)."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from openprime.prime.rewards import Scoring, better_pairs, prefix_values, response_scores, token_rewards
from openprime.types import Batch

PAIRS = ("dpo", "nca")
"""Losses on pairs of a prompt's responses."""
BALANCED = ("ce", "prefix")
"""Losses that can be balanced within groups."""
Reduction = Literal["token", "sequence"]
LARGEST_LOG_RATIO = 20.0
SMALLEST_SHARE = 1e-6
"""A group's accuracy is clipped this far from 0 and 1 before its log-odds are taken."""
PRIOR_SHARE = 0.02
"""The same of the accuracy that `prior_log_odds` expects."""
SMALLEST_REST = 1e-6
"""The least probability of the rest of a vocabulary: below it float32 sums of the others say nothing."""


def sft_loss(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Sum of -log p over the response tokens; its count is the number of those tokens."""
    return -(logprobs * mask).sum()


def token_weights(mask: Tensor, reduction: Reduction) -> tuple[Tensor, float]:
    """Weight of each token [B, T] and the number to divide the summed loss by.

    token: every token of the batch counts alike. sequence: every response counts alike, its tokens
    share its weight (1/T_i each).
    """
    mask = mask.float()
    if reduction == "token":
        return mask, float(mask.sum())
    return mask / mask.sum(-1, keepdim=True).clamp(min=1), float(mask.shape[0])


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """The clipped policy loss and what one logs of it; all are weighted sums."""

    loss: Tensor
    clipped: Tensor
    """Weight of the tokens whose gradient the clip removed."""
    kl: Tensor
    """Sum of (ratio - 1 - log ratio) >= 0, an estimate of KL(old || new) in nats."""


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    clip_low: float,
    clip_high: float,
) -> PolicyLoss:
    """-sum_t w_t min(ratio_t A_t, clip(ratio_t, 1 - clip_low, 1 + clip_high) A_t). PPO; PRIME eq. 6.

    All tensors [B, T]; clip_high > clip_low is DAPO's clip-higher (arXiv 2503.14476).
    """
    difference = torch.where(weights > 0, logprobs - old_logprobs, 0.0)
    log_ratio = difference.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)  # exp must stay finite
    ratio = log_ratio.exp()
    plain = ratio * advantages
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    with torch.no_grad():
        was_clipped = (weights * (clipped < plain)).sum()
        kl = (weights * (ratio - 1 - log_ratio)).sum()
    return PolicyLoss(-(weights * torch.minimum(plain, clipped)).sum(), was_clipped, kl)


def with_rest(logprobs: Tensor) -> Tensor:
    """Log-probabilities of k tokens [..., k], and behind them that of all others as one outcome, [..., k + 1].

    log(1 - sum_a p(a)). A KL between two distributions that are lumped so is never above their whole KL (data
    processing), and is it where the k hold all probability: the rest, which is at least SMALLEST_REST, then is the same
    in both and has no gradient.
    """
    rest = (1 - logprobs.exp().sum(-1, keepdim=True)).clamp(min=SMALLEST_REST)
    return torch.cat([logprobs, rest.log()], -1)


def tilted_reference(
    log_prm: Tensor, log_ref: Tensor, clip_low: float, clip_high: float, kl_coefficient: float
) -> Tensor:
    """kl_coefficient * log ref(a) + clip(log phi(a)/ref(a), clip_low, clip_high) for every outcome a, [..., k + 1].

    Outcomes are tokens and the rest of the vocabulary (`with_rest`).

    Over `kl_coefficient` and normalised it is the log of the KL-regularised optimal policy
    pi*(a) proportional to ref(a) exp(r(a) / kl_coefficient), where r is the clipped process reward.
    """
    return kl_coefficient * log_ref + (log_prm - log_ref).clamp(clip_low, clip_high)


def distillation_loss(log_policy: Tensor, tilted: Tensor, mask: Tensor, kl_coefficient: float) -> Tensor:
    """Sum over the tokens of `mask` of kl_coefficient * KL(policy || tilted reference), less a constant.

    On-policy distillation towards a reward-tilted reference: the same as
    -E_policy[clip(log phi/ref)] + kl_coefficient * KL(policy || ref), with no sampled token in it. log_policy
    [B, T, k + 1]; `tilted` from `tilted_reference`; mask [B, T]. Count: the tokens of the mask.
    """
    return ((log_policy.exp() * (kl_coefficient * log_policy - tilted)).sum(-1) * mask).sum()


def importance_weights(logprobs: Tensor, sampled: Tensor, mask: Tensor, ceiling: float) -> Tensor:
    """min(p / p_sampled, ceiling) of each token where `mask` is True, 1 elsewhere; truncated importance sampling.

    For samples of another engine or of older weights (trap 12). logprobs: of the policy that is about to be
    updated; sampled: of the distribution that was sampled from; all [B, T]. The ceiling bounds the variance
    (Ionides 2008), and leaves alone what the policy has become less likely to do.
    """
    difference = torch.where(mask, logprobs - sampled, 0.0)
    return torch.where(mask, difference.clamp(max=LARGEST_LOG_RATIO).exp().clamp(max=ceiling), 1.0)


def prm_ce_loss(scores: Tensor, outcomes: Tensor) -> Tensor:
    """Sum over responses of the cross-entropy of sigmoid(s(y)) against o in [0, 1]. PRIME eq. 4; 2412.01981 eq. 5.

    scores, outcomes [B]; outcomes may be soft (the share of tests passed). Count: B.
    """
    return F.binary_cross_entropy_with_logits(scores, outcomes.to(scores.dtype), reduction="sum")


def two_sided_loss(
    values: Tensor, outcomes: Tensor, margin: float = 0.0, group_outcome: Tensor | None = None
) -> Tensor:
    """-[w1 o log sigmoid(v + b - m) + w0 (1 - o) log(1 - sigmoid(v + b + m))] of each value. 2604.13197, eq. 9.

    A value has to be m above 0 where the outcome o is right and m below where it is wrong. Without `group_outcome`
    b is 0 and w1 = w0 = 1, and with m = 0 besides it is the cross-entropy. With it, mu, the update is balanced:
    b = logit(mu) explains how hard the prompt is, so that v has to tell the group's responses apart and nothing else,
    and the rarer kind weighs more: w1 = 1 - mu, w0 = mu. A group whose outcomes are all 0 or all 1 weighs nothing,
    for there is nothing to tell apart. Outcomes may be soft; the two terms then share a response.
    All tensors have one shape, or broadcast to it.
    """
    right, wrong = outcomes, 1 - outcomes
    if group_outcome is not None:
        right, wrong = right * (1 - group_outcome), wrong * group_outcome
        values = values + group_outcome.clamp(SMALLEST_SHARE, 1 - SMALLEST_SHARE).logit()
    return -(right * F.logsigmoid(values - margin) + wrong * F.logsigmoid(-values - margin))


def prior_log_odds(group_outcome: Tensor, overall: float) -> Tensor:
    """The log-odds that a response is right before anything of it is read, [B], from its group's mean outcome [B].

    A cross-entropy on scores that are shifted by them teaches a PRM nothing that the prompt explains, only what
    tells a group's responses apart. But where a group is all right or all wrong, nobody is there to be told apart from:
    by its own mean such a group would teach nothing, though a sure error is the plainest lesson of all. There the
    whole batch's mean `overall` is expected instead, and the tokens of a group that is all wrong are worse than that.
    """
    mixed = (group_outcome > 0) & (group_outcome < 1)
    mean = torch.where(mixed, group_outcome, overall)
    return mean.clamp(PRIOR_SHARE, 1 - PRIOR_SHARE).logit()


def prm_shifted_loss(logprobs: Tensor, batch: Batch, beta: float, overall: float) -> Tensor:
    """Sum over responses of `prm_ce_loss` of s(y) + `prior_log_odds`, from log phi [b, t]. Count: B.

    The batch carries log ref and its groups' mean outcomes; `overall` is that of the whole batch.
    """
    assert batch.ref_logprobs is not None
    assert batch.group_outcome is not None
    scores = response_scores(token_rewards(logprobs, batch.ref_logprobs, batch.response_mask, beta))  # [b]
    return prm_ce_loss(scores + prior_log_odds(batch.group_outcome, overall), batch.outcome)


def prm_prefix_loss(
    rewards: Tensor, outcomes: Tensor, mask: Tensor, margin: float, group_outcome: Tensor | None = None
) -> Tensor:
    """Sum over responses of the mean over their tokens of `two_sided_loss` of the mean prefix value. 2604.13197, eq. 9.

    Every prefix is taught the outcome, not the whole response alone, so that a step can be judged where it ends.
    rewards [B, T], 0 off the mask, as of `token_rewards`; outcomes, group_outcome [B]; mask [B, T]. Count: B.
    """
    mean = None if group_outcome is None else group_outcome[:, None]
    losses = two_sided_loss(prefix_values(rewards, mask), outcomes[:, None], margin, mean)  # [B, T]
    return response_scores(losses * mask, mask).sum()


def prm_step_loss(values: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over labelled steps k of the cross-entropy of sigmoid(q_k) against the step's label, and their number.

    q_k is the prefix value at the step's last token (2412.01981 prop. 3.1, `prefix_values`). Stage 2 of
    EurusPRM trains an implicit PRM with step labels in this way; at the last token it is `prm_ce_loss`.
    values [B, T]; labels [B, T] in [0, 1]; mask [B, T] bool, True where a labelled step ends. What stands
    off the mask, NaN included, has no part in it. Count: the labelled steps, which may be 0.
    """
    mask = mask.bool()
    values, labels = (torch.where(mask, x, 0.0).to(values.dtype) for x in (values, labels))
    found = F.binary_cross_entropy_with_logits(values, labels, reduction="none")
    return (found * mask).sum(), mask.sum()


def prm_dpo_loss(scores: Tensor, outcomes: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over (better i, worse j) pairs of a group of -log sigmoid(s_i - s_j), and the number of pairs.

    scores, outcomes, group [B]; the rows must hold whole groups. Count: the pairs, so that the mean is
    over pairs; it may be 0. 2412.01981 section 3.2.
    """
    better = better_pairs(outcomes, group)  # [B, B]
    margin = scores[:, None] - scores[None, :]
    return -(F.logsigmoid(margin) * better).sum(), better.sum()


def prm_nca_loss(scores: Tensor, outcomes: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over (better i, worse j) pairs of -log sigmoid(s_i) - 0.5 log sigmoid(-s_i) - 0.5 log sigmoid(-s_j).

    The pairwise form of noise contrastive alignment (arXiv 2402.05369), as an objective of an implicit PRM
    in 2412.01981 section 3. Unlike DPO it holds the absolute score of the better response, not only the margin.
    scores, outcomes, group [B]; whole groups. Count: the pairs, which may be 0.
    """
    better = better_pairs(outcomes, group)  # [B, B]
    chosen = -F.logsigmoid(scores) - 0.5 * F.logsigmoid(-scores)
    rejected = -0.5 * F.logsigmoid(-scores)
    return (better * (chosen[:, None] + rejected[None, :])).sum(), better.sum()


def prm_kto_loss(scores: Tensor, outcomes: Tensor, reference_point: Tensor | float) -> Tensor:
    """Sum over responses of 1 - sigmoid(s - z0) where o > 1/2, 1 - sigmoid(z0 - s) elsewhere (arXiv 2402.01306, eq. 8).

    An objective of an implicit PRM in 2412.01981 section 3. reference_point z0 >= 0, in units of the score,
    estimates beta KL(phi || reference): the mean score of responses set beside other prompts, at least 0.
    No gradient flows through it. scores, outcomes [B]. Count: B.
    """
    z0 = torch.as_tensor(reference_point, dtype=scores.dtype, device=scores.device).detach().clamp(min=0)
    sign = torch.where(outcomes > 0.5, 1.0, -1.0).to(scores.dtype)
    return torch.sigmoid(-sign * (scores - z0)).sum()


def prm_loss(
    name: str,
    logprobs: Tensor,
    batch: Batch,
    beta: float,
    reference_point: float = 0.0,
    margin: float = 0.0,
    balance: bool = False,
) -> Tensor:
    """Sum of a PRM's loss `name` (ce, dpo, nca, kto, prefix or steps) over a micro-batch, from log phi [b, t].

    The batch carries the reference's log-probabilities, for `steps` the labels too, and with `balance`, which ce and
    prefix have (`two_sided_loss`), its groups' mean outcomes (`with_group_outcome`). dpo and nca need whole groups;
    kto has its `reference_point` z0, prefix its `margin`.
    """
    assert batch.ref_logprobs is not None
    rewards = token_rewards(logprobs, batch.ref_logprobs, batch.response_mask, beta)  # [b, t]
    mean = batch.group_outcome if balance else None  # [b]
    assert not balance or (mean is not None and name in BALANCED)
    if name == "prefix":
        return prm_prefix_loss(rewards, batch.outcome, batch.response_mask, margin, mean)
    if mean is not None:
        return two_sided_loss(response_scores(rewards), batch.outcome, group_outcome=mean).sum()
    if name == "steps":
        assert batch.labels is not None
        return prm_step_loss(prefix_values(rewards), batch.labels, batch.step_end)[0]
    return outcome_loss(name, response_scores(rewards), batch.outcome, batch.group, reference_point)[0]


def prm_loss_count(name: str, batch: Batch) -> int:
    """Count that divides the summed `prm_loss` of a batch: responses, pairs (may be 0) or labelled steps."""
    if name == "steps":
        return int(batch.step_end.sum())
    return int(better_pairs(batch.outcome, batch.group).sum()) if name in PAIRS else len(batch)


def scoring_of(name: str) -> Scoring:
    """What the PRM's loss `name` makes the score of a response."""
    return "mean" if name == "prefix" else "sum"


def outcome_loss(
    name: str, scores: Tensor, outcomes: Tensor, group: Tensor, reference_point: float = 0.0
) -> tuple[Tensor, Tensor | int]:
    """Sum of a loss over responses or pairs, and their number. scores, outcomes, group [B]; whole groups for pairs."""
    if name == "ce":
        return prm_ce_loss(scores, outcomes), len(scores)
    if name == "kto":
        return prm_kto_loss(scores, outcomes, reference_point), len(scores)
    return (prm_dpo_loss if name == "dpo" else prm_nca_loss)(scores, outcomes, group)
