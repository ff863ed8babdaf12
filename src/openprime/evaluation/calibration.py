"""Held-out quality of scores: area under the ROC curve, Brier score, calibration error, and a look at the steps."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from openprime.types import UserError


def roc_auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties one half.

    scores, labels [m]; labels are bool, or 0 and 1. nan when one class is absent.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise UserError(f"roc_auc needs a label for every score, not shapes {scores.shape}, {labels.shape}")
    if np.isnan(scores).any() or not np.isin(labels, (0, 1)).all():
        raise UserError("roc_auc needs scores that are numbers, and labels that are true or false")
    if labels.all() or not labels.any():
        return math.nan
    _, rank, tied = np.unique(scores, return_inverse=True, return_counts=True)
    positive = np.bincount(rank, labels)  # with each distinct score, from the lowest
    negative = tied - positive
    won = positive @ (negative.cumsum() - negative / 2)
    return float(won / (positive.sum() * negative.sum()))


def brier(probabilities: ArrayLike, outcomes: ArrayLike) -> float:
    """Mean squared difference of probability and outcome, both [m] in [0, 1]. Brier (1950)."""
    probabilities, outcomes = _probabilities(probabilities, outcomes)
    return float(((probabilities - outcomes) ** 2).mean())


def expected_calibration_error(probabilities: ArrayLike, outcomes: ArrayLike, bins: int = 10) -> float:
    """sum_b |B_b|/m * |mean outcome of B_b - mean probability of B_b|. Guo et al., arXiv 1706.04599, eq. 3.

    probabilities, outcomes [m] in [0, 1]. Bin b of `bins` of equal width holds the p in ((b-1)/bins, b/bins],
    the first one p = 0 as well. Here p is the probability of a right response, not of the likelier class.
    """
    probabilities, outcomes = _probabilities(probabilities, outcomes)
    if bins < 1:
        raise UserError(f"a calibration error needs at least one bin, not {bins}")
    bin_of = np.searchsorted(np.arange(1, bins) / bins, probabilities)
    return float(np.abs(np.bincount(bin_of, outcomes - probabilities)).sum() / probabilities.size)


def _probabilities(probabilities: ArrayLike, outcomes: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [m], checked."""
    p, o = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    if p.ndim != 1 or p.shape != o.shape or p.size == 0:
        raise UserError(f"needs as many probabilities as outcomes, and one, not {p.shape}, {o.shape}")
    if not all(((values >= 0) & (values <= 1)).all() for values in (p, o)):
        raise UserError("probabilities and outcomes lie in [0, 1]; apply the sigmoid to a score first")
    return p, o


def lowest_is_last(step_rewards: Sequence[Sequence[float]]) -> float:
    """Share of the responses of two or more steps whose first lowest step reward is the last one.

    A large share hints at a PRM that judges the outcome instead of the steps (arXiv 2501.07301).
    nan when no response has two steps.
    """
    last = [int(np.argmin(rewards)) == len(rewards) - 1 for rewards in step_rewards if len(rewards) >= 2]
    return float(np.mean(last)) if last else math.nan
