"""How good scores and judgements of steps are on held-out responses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


# The first wrong step of a response: ProcessBench, arXiv 2412.06559


def first_error(step_scores: Sequence[float], threshold: float) -> int:
    """Index of the first step that scores below the threshold, -1 for none."""
    return next((step for step, score in enumerate(step_scores) if score < threshold), -1)


@dataclass(frozen=True, slots=True)
class FirstErrorF1:
    """How well the first wrong steps are found; nan where there is no response to tell it by."""

    error_accuracy: float
    """Share of the erroneous responses whose first wrong step is named exactly."""
    correct_accuracy: float
    """Share of the correct responses in which no step is blamed."""
    f1: float
    """Harmonic mean of the two."""


def first_error_f1(predicted: ArrayLike, labels: ArrayLike) -> FirstErrorF1:
    """ProcessBench's measure, arXiv 2412.06559. predicted, labels [m]: index of the first wrong step, -1 for none."""
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.ndim != 1 or predicted.shape != labels.shape:
        raise UserError(f"needs a label for every prediction, not {predicted.shape}, {labels.shape}")
    erroneous, hit = labels >= 0, predicted == labels
    wrong, right = int(erroneous.sum()), int((~erroneous).sum())
    hits, passes = int((hit & erroneous).sum()), int((hit & ~erroneous).sum())
    return FirstErrorF1(
        hits / wrong if wrong else math.nan,
        passes / right if right else math.nan,
        float(_f1(hits, wrong, passes, right)) if wrong and right else math.nan,
    )


def best_threshold(step_scores: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    """The threshold of `first_error` with the largest F1 over these responses; the lowest of equals.

    step_scores: for each of m responses one finite number a step; labels [m] as in `first_error_f1`. A label
    beyond a response's scores is never predicted. A prediction changes only where the threshold passes a
    lowest score so far; it is put half-way between two of them where a prediction turns right or wrong. nan
    when the responses are all erroneous or all correct, or no threshold makes a difference.
    """
    _check_labels(step_scores, labels)
    # With a threshold t an erroneous response is judged rightly for low < t <= high, a correct one for t <= least.
    lows, highs, leasts = [], [], []
    for scores, label in zip(step_scores, labels, strict=True):
        if label < 0:
            leasts.append(min(scores, default=math.inf))
        elif label < len(scores):
            before = min(scores[:label], default=math.inf)
            if scores[label] < before:
                lows.append(scores[label])
                highs.append(before)
    right = len(leasts)
    wrong = len(labels) - right
    edges = np.unique([*lows, *highs, *leasts])
    edges = edges[np.isfinite(edges)]
    if not wrong or not right or not edges.size:
        return math.nan
    left, above = edges[:-1], edges[1:]
    between = left / 2 + above / 2
    between = np.where(between > left, between, above)  # neighbouring floats have no middle
    thresholds = np.concatenate([edges[:1], between, np.nextafter(edges[-1:], np.inf)])
    opened, closed, blamed = (np.searchsorted(np.sort(v), thresholds) for v in (lows, highs, leasts))
    return float(thresholds[_f1(opened - closed, wrong, right - blamed, right).argmax()])


def cross_fitted_f1(
    step_scores: Sequence[Sequence[float]], labels: Sequence[int], seed: int = 0
) -> FirstErrorF1:
    """F1 with a threshold that has not seen the response it judges: two random halves, each with the other's.

    Both halves hold the erroneous and the correct responses alike; nan where either kind has fewer than two.
    """
    _check_labels(step_scores, labels)
    erroneous = np.asarray(labels) >= 0
    if min(erroneous.sum(), (~erroneous).sum()) < 2:
        return FirstErrorF1(math.nan, math.nan, math.nan)
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(erroneous[order], kind="stable")]
    predicted = np.empty(len(labels), dtype=int)
    for ours, others in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        threshold = best_threshold([step_scores[i] for i in others], [labels[i] for i in others])
        predicted[ours] = [first_error(step_scores[i], threshold) for i in ours]
    return first_error_f1(predicted, labels)


def _check_labels(step_scores: Sequence[Sequence[float]], labels: Sequence[int]) -> None:
    if len(step_scores) != len(labels):
        raise UserError(f"needs a label for every response, not {len(step_scores)} and {len(labels)}")


def _f1(hits, wrong: int, passes, right: int):
    """Harmonic mean of hits/wrong and passes/right, 0 where both are; one division, so that equals are equal."""
    return 2 * hits * passes / np.maximum(hits * right + passes * wrong, 1)
