"""Best-of-N, votes and pass@k over all choices of n from m responses, and the interval of a mean."""

import itertools
import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from openprime.types import UserError


def best_of_n_subsets(scores: ArrayLike, outcomes: ArrayLike, n: int) -> float:
    """Exact mean outcome of the highest-scored of n responses, over all C(m, n) choices of n from the m given.

    scores, outcomes [m]. Within a choice the responses that share the highest score share the choice
    equally. Then a score that s responses have and b are below wins in C(b + s, n) - C(b, n) of the
    choices, and each of the s counts alike. With binary outcomes for scores it is pass@n.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if np.isnan(scores).any():
        raise UserError("Best-of-N cannot rank a score that is not a number")
    _, rank, tied = np.unique(scores, return_inverse=True, return_counts=True)
    choices = math.comb(scores.size, n)
    at_most = [0.0, *(math.comb(int(below), n) / choices for below in tied.cumsum())]
    return float(np.diff(at_most) @ (np.bincount(rank, outcomes) / tied))


def vote_subsets(
    answers: Sequence[Hashable | None],
    weights: ArrayLike,
    outcomes: ArrayLike,
    n: int,
    draws: int = 200,
    seed: int = 0,
) -> float:
    """Mean outcome of the weighted vote among n of the m responses given; maj@n where every weight is 1.

    The vote chooses the first response with the answer of the largest summed weight, of equal answers the one
    seen first; None (no answer) is chosen only where nobody answered. answers, weights, outcomes [m]. It is
    exact, over all C(m, n) choices of n, if these are at most `draws`; else the mean over `draws` independent
    random choices, which follow from (m, n, draws, seed) alone, so that methods are compared on the same ones.
    The responses of a choice keep their order.
    """
    m, weights, outcomes = len(answers), np.asarray(weights, dtype=np.float64), np.asarray(outcomes)
    number = {answer: i for i, answer in enumerate(dict.fromkeys(answers))}
    codes = np.array([number[answer] for answer in answers])
    if math.comb(m, n) <= draws:
        chosen = np.array(list(itertools.combinations(range(m), n)))  # [S, n]
    else:
        chosen = np.sort(np.random.default_rng(seed).random((draws, m)).argsort(-1)[:, :n], -1)
    cells = np.arange(len(chosen))[:, None] * len(number) + codes[chosen]  # one a (choice, answer)
    totals = np.bincount(cells.ravel(), weights[chosen].ravel())[cells]
    if None in number:
        totals[codes[chosen] == number[None]] = -np.inf  # wins only where nobody answered
    winners = np.take_along_axis(chosen, totals.argmax(-1)[:, None], -1)
    return float(outcomes[winners].mean())


def pass_at_k(n: int, right: int, k: int) -> float:
    """Unbiased pass@k from n samples of which `right` are right: 1 - C(n-right, k) / C(n, k).

    Chen et al., arXiv 2107.03374, eq. 1.
    """
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def bootstrap_interval(
    values: ArrayLike, confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over items (prompts)."""
    data, rng = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    rows = max(1, 2**20 // data.size)  # draws at a time, for the memory
    blocks = [(min(rows, draws - start), data.size) for start in range(0, draws, rows)]
    means = np.concatenate([data[rng.integers(0, data.size, size=block)].mean(-1) for block in blocks])
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
