"""Benchmarks of first errors (ProcessBench, arXiv 2412.06559): whether a PRM finds the first wrong step."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from openprime.data.steps import apart
from openprime.evaluation.accuracy import or_none
from openprime.evaluation.benchmarks import Benchmark
from openprime.evaluation.calibration import lowest_is_last
from openprime.prime.prm import ImplicitPRM


def step_rows(benchmark: Benchmark, prm: ImplicitPRM, chunk: range, check: Callable[[], None]) -> list[dict]:
    """A row for each item: the reward of each step, and the first that is called wrong for being below 0."""
    items = [benchmark.items[i] for i in chunk]
    steps = [apart(item.columns["steps"]) for item in items]
    responses = ["".join(texts) for texts in steps]
    scores = prm.score([item.messages for item in items], responses, steps, benchmark.config.data)
    check()
    return [
        {
            "item": i,
            "id": item.id,
            "label": item.columns["label"],
            "step_rewards": [round(reward, 6) for reward in score.step_rewards],
            "first_error": first_error(score.step_rewards, 0.0),
        }
        for i, item, score in zip(chunk, items, scores, strict=True)
    ]


def first_errors(rows: list[dict], seed: int) -> dict[str, Any]:
    """A benchmark's entry in results.json; a step is called wrong where its reward is below a threshold.

    F1 is given for the threshold 0 and, as the published protocol tunes it, for one chosen on the other half
    of the items, halved with `seed`.
    """
    labels, rewards = [row["label"] for row in rows], [row["step_rewards"] for row in rows]
    measured = {
        "threshold 0": first_error_f1([first_error(r, 0.0) for r in rewards], labels),
        "threshold from the other half": cross_fitted_f1(rewards, labels, seed),
    }
    shares = {
        name: {key: or_none(value) for key, value in f1._asdict().items()} for name, f1 in measured.items()
    }
    return {"items": len(rows), "first_error": shares, "lowest_step_last": or_none(lowest_is_last(rewards))}


# The measures


def first_error(step_scores: Sequence[float], threshold: float) -> int:
    """Index of the first step that scores below the threshold, -1 for none."""
    return next((step for step, score in enumerate(step_scores) if score < threshold), -1)


class FirstErrorF1(NamedTuple):
    """ProcessBench's F1 and its two accuracies; nan where there is no response to measure one."""

    error_accuracy: float
    """Share of the erroneous responses whose first wrong step is named exactly."""
    correct_accuracy: float
    """Share of the correct responses in which no step is blamed."""
    f1: float
    """Harmonic mean of the two."""


def first_error_f1(predicted: Sequence[int], labels: Sequence[int]) -> FirstErrorF1:
    """ProcessBench's measure, arXiv 2412.06559. predicted, labels [m]: index of the first wrong step, -1 for none."""
    pairs = list(zip(predicted, labels, strict=True))
    found = [step == label for step, label in pairs if label >= 0]
    passed = [step == label for step, label in pairs if label < 0]
    return FirstErrorF1(
        sum(found) / len(found) if found else math.nan,
        sum(passed) / len(passed) if passed else math.nan,
        float(_f1(sum(found), len(found), sum(passed), len(passed))) if found and passed else math.nan,
    )


def best_threshold(step_scores: Sequence[Sequence[float]], labels: Sequence[int]) -> float:
    """The threshold of `first_error` with the largest F1 over these responses; the lowest of equals.

    step_scores: for each of m responses one finite number a step; labels [m] as in `first_error_f1`. A label
    beyond a response's scores is never predicted. A prediction changes only where the threshold passes a
    lowest score so far; it is put half-way between two of them where a prediction turns right or wrong. nan
    when the responses are all erroneous or all correct, or no threshold makes a difference.
    """
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
    erroneous = np.asarray(labels) >= 0
    if min(erroneous.sum(), (~erroneous).sum()) < 2:
        return FirstErrorF1(math.nan, math.nan, math.nan)
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(erroneous[order], kind="stable")]
    predicted = [-1] * len(labels)
    for ours, others in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        threshold = best_threshold([step_scores[i] for i in others], [labels[i] for i in others])
        for i in ours:
            predicted[i] = first_error(step_scores[i], threshold)
    return first_error_f1(predicted, labels)


def _f1(hits, wrong: int, passes, right: int):
    """Harmonic mean of hits/wrong and passes/right, 0 where both are; one division, so that equals are equal."""
    return 2 * hits * passes / np.maximum(hits * right + passes * wrong, 1)
