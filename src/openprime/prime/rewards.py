"""Implicit process rewards: from the log-probabilities of two language models to a reward per token.

Sources: PRIME, arXiv 2502.01456 (equation numbers below); "Free process rewards without process
labels", arXiv 2412.01981; prefix values, arXiv 2604.13197.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from openprime.types import Batch, Metrics

Granularity = Literal["token", "step", "response"]
Scoring = Literal["sum", "mean"]
"""A PRM's score of a response or prefix: the sum of its token rewards, or their mean."""


def token_rewards(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, beta: float) -> Tensor:
    """r_t = beta * (log phi(y_t | x, y_<t) - log ref(y_t | x, y_<t)). PRIME eq. 3.

    Args: float32 log-probabilities [B, T] of the PRM and of its reference, in nats (their difference
    is small, so bfloat16 would lose it: trap 11); mask [B, T]. Returns [B, T], 0 off the mask.
    """
    return torch.where(mask.bool(), beta * (logprobs.float() - ref_logprobs.float()), 0.0)


def response_scores(rewards: Tensor, mean_over: Tensor | None = None) -> Tensor:
    """s(y) = sum_t r_t, [B]; the PRM's probability of a right response is sigmoid(s). 2412.01981 eq. 1.

    With `mean_over`, the response mask [B, T], it is the mean of the token rewards: the last of a response's mean
    prefix values, which a PRM of the prefix loss is trained to give (2604.13197).
    """
    total = rewards.sum(-1)
    return total if mean_over is None else total / mean_over.sum(-1).clamp(min=1)


def prefix_values(rewards: Tensor, mean_over: Tensor | None = None) -> Tensor:
    """q_t = sum_{u <= t} r_u, [B, T]: the exponential-average value of the prefix. 2412.01981 prop. 3.1.

    With `mean_over`, the response mask [B, T], the mean of the prefix's rewards instead. 2604.13197, above eq. 9.
    """
    total = rewards.cumsum(-1)
    return total if mean_over is None else total / mean_over.cumsum(-1).clamp(min=1)


def reward_positions(mask: Tensor, step_end: Tensor, granularity: Granularity) -> Tensor:
    """Positions of rewards, [B, T] bool: every token, the last token of every step, or the last token.

    What follows the last step end of a response is a step of its own, ending on the last token.
    """
    if granularity == "token":
        return mask.bool()
    last = last_token(mask)
    return last if granularity == "response" else (step_end & mask.bool()) | last


def last_token(mask: Tensor) -> Tensor:
    """The last response token of each row, [B, T] bool."""
    after = mask.long().flip(-1).cumsum(-1).flip(-1)  # response tokens from t on
    return mask.bool() & (after == 1)


def gather_rewards(rewards: Tensor, positions: Tensor) -> Tensor:
    """Sum token rewards up to the next reward position, inclusive; 0 elsewhere. [B, T].

    `rewards` must be 0 off the response, as those of `token_rewards` are.
    The total of a response is the same for every granularity (trap 5).
    """
    total = rewards.double().cumsum(-1) * positions
    # The sum already placed left of t: the running total at the last position before t.
    width = rewards.shape[-1]
    index = torch.arange(width, device=rewards.device).expand_as(rewards)
    latest = torch.where(positions, index, -1).cummax(-1).values
    before = torch.nn.functional.pad(latest, (1, 0), value=-1)[..., :width]
    placed = total.gather(-1, before.clamp(min=0)) * (before >= 0)
    return ((total - placed) * positions).to(rewards.dtype)


def scale_by_return(rewards: Tensor, largest_return: Tensor | float) -> Tensor:
    """Divide by the largest absolute return to go of the *global* batch, plus 1e-6.

    `largest_return` is that of the placed rewards before any baseline, with the process gamma; it is
    passed in, because the maximum is over all ranks (trap 2).
    """
    return rewards / (largest_return + 1e-6)


def with_group_outcome(batch: Batch) -> Batch:
    """A batch of whole groups with the mean outcome of each row's group."""
    same = (batch.group[:, None] == batch.group[None, :]).to(batch.outcome.dtype)  # [B, B]
    return replace(batch, group_outcome=same @ batch.outcome / same.sum(-1))


def better_pairs(outcomes: Tensor, group: Tensor) -> Tensor:
    """[B, B] bool, True at (i, j) where i and j answer one prompt and i has the better outcome; both [B]."""
    return (group[:, None] == group[None, :]) & (outcomes[:, None] > outcomes[None, :])


def pairwise_accuracy(scores: Tensor, outcomes: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Share of pairs of responses to one prompt of which the PRM ranks the better one higher; ties count one half.

    Args: scores, outcomes, group [B], whole groups. Returns (sum over pairs, number of pairs):
    sums, so that several ranks can add theirs up.
    """
    better = better_pairs(outcomes, group)
    margin = scores[:, None] - scores[None, :]  # [B, B]
    won = (margin > 0).double() + 0.5 * (margin == 0)
    return (won * better).sum(), better.sum()


def score_metrics(scores: Tensor, batch: Batch) -> Metrics:
    """Quality of scores [B] of responses new to a PRM: pairwise accuracy, Brier score, means."""
    won, pairs = pairwise_accuracy(scores, batch.outcome, batch.group)
    return {
        "prm/pairwise_accuracy": float(won / pairs),  # nan where there are no pairs
        "prm/brier": float(((scores.sigmoid() - batch.outcome) ** 2).mean()),
    } | mean_scores(scores, batch)


def mean_scores(scores: Tensor, batch: Batch) -> Metrics:
    """Mean score s(y) of right and of wrong responses; scores [B]."""
    right = batch.outcome > 0.5
    return {"prm/score_right": float(scores[right].mean()), "prm/score_wrong": float(scores[~right].mean())}
