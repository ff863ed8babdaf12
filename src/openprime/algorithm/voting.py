"""Choosing among N responses, and counting right ones."""

import math
from collections.abc import Hashable, Sequence

import numpy as np


def best_of_n(scores: Sequence[float]) -> int:
    """Index of the highest score; the first of equals."""
    if len(scores) == 0:
        raise ValueError("best_of_n needs at least one response")
    return max(range(len(scores)), key=lambda i: scores[i])


def weighted_vote(answers: Sequence[Hashable | None], weights: Sequence[float]) -> int:
    """Index of the first response that gives the answer with the largest summed weight.

    None (no answer) never wins unless nobody answered; of equal answers the one seen first wins.
    """
    if len(answers) == 0 or len(answers) != len(weights):
        raise ValueError("weighted_vote needs as many weights as answers, and at least one")
    totals: dict[Hashable, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            totals[answer] = totals.get(answer, 0.0) + weight
    if not totals:
        return 0
    winner = max(totals, key=lambda answer: totals[answer])
    return answers.index(winner)


def majority_vote(answers: Sequence[Hashable | None]) -> int:
    """Index of the first response that gives the most frequent answer (self-consistency)."""
    return weighted_vote(answers, [1.0] * len(answers))


def pass_at_k(n: int, right: int, k: int) -> float:
    """Unbiased pass@k from n samples of which `right` are right: 1 - C(n-right, k) / C(n, k).

    Chen et al., arXiv 2107.03374, eq. 1.
    """
    if not 1 <= k <= n or not 0 <= right <= n:
        raise ValueError(f"pass@k needs 1 <= k <= n and 0 <= right <= n, not n={n}, right={right}, k={k}")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over items (prompts)."""
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("an interval needs at least one value")
    rng = np.random.default_rng(seed)
    means = [data[rng.integers(0, data.size, size=data.size)].mean() for _ in range(draws)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def wilson_interval(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a share right/n; sound near 0 and 1, where the bootstrap is not."""
    if not 0 <= right <= n or n == 0:
        raise ValueError(f"a share needs 0 <= right <= n and n > 0, not right={right}, n={n}")
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
