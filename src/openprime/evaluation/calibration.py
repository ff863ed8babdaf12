"""Held-out quality of scores: area under the ROC curve, Brier score, calibration error, and a look at the steps."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from openprime.types import UserError


def roc_auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties one half.

    scores, labels [m]; labels are bool. nan when one class is absent.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if np.isnan(scores).any():
        raise UserError("an area under the ROC curve needs scores that are numbers")
    if labels.all() or not labels.any():
        return math.nan
    _, rank, tied = np.unique(scores, return_inverse=True, return_counts=True)
    positive = np.bincount(rank, labels)  # with each distinct score, from the lowest
    negative = tied - positive
    won = positive @ (negative.cumsum() - negative / 2)
    return float(won / (positive.sum() * negative.sum()))


def brier(probabilities: ArrayLike, outcomes: ArrayLike) -> float:
    """Mean squared difference of probability and outcome, both [m] in [0, 1]. Brier (1950)."""
    return float(np.square(np.subtract(probabilities, outcomes)).mean())


def expected_calibration_error(probabilities: ArrayLike, outcomes: ArrayLike, bins: int = 10) -> float:
    """sum_b |B_b|/m * |mean outcome of B_b - mean probability of B_b|. Guo et al., arXiv 1706.04599, eq. 3.

    probabilities, outcomes [m] in [0, 1]. Bin b of `bins` of equal width holds the p in ((b-1)/bins, b/bins],
    the first one p = 0 as well. Here p is the probability of a right response, not of the likelier class.
    """
    bin_of = np.searchsorted(np.arange(1, bins) / bins, probabilities)
    return float(np.abs(np.bincount(bin_of, np.subtract(outcomes, probabilities))).sum() / bin_of.size)


def lowest_is_last(step_rewards: Sequence[Sequence[float]]) -> float:
    """Share of the responses of two or more steps whose first lowest step reward is the last one.

    A large share hints at a PRM that judges the outcome instead of the steps (arXiv 2501.07301).
    nan when no response has two steps.
    """
    last = [int(np.argmin(rewards)) == len(rewards) - 1 for rewards in step_rewards if len(rewards) >= 2]
    return float(np.mean(last)) if last else math.nan
