"""Accuracy, pass@k and Best-of-N of a benchmark's judged responses."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from openprime.evaluation.benchmarks import Benchmark
from openprime.evaluation.calibration import roc_auc
from openprime.evaluation.voting import best_of_n_subsets, bootstrap_interval, pass_at_k, vote_subsets
from openprime.verifiers.math import canonical_answer

Interval = tuple[float, float, float]
"""(mean over items, low, high), 95 %."""
Curves = dict[str, dict[int, Interval]]
"""method -> N -> interval."""

WAYS: dict[str, Callable[[dict], float]] = {
    "reference log-probability": lambda r: r["reference_logprob"],
    "PRM": lambda r: r["reward"],
    "PRM, mean of tokens": lambda r: np.mean(r["rewards"]),
    "PRM, lowest token": lambda r: min(r["rewards"]),
    "PRM, last token": lambda r: r["rewards"][-1],
    "PRM, mean of steps": lambda r: np.mean(r["step_rewards"]),
    "PRM, lowest step": lambda r: min(r["step_rewards"]),
    "PRM, last step": lambda r: r["step_rewards"][-1],
}
"""Scores by which one of N responses may be chosen."""


def summarise(rows: list[dict], benchmark: Benchmark) -> dict[str, Any]:
    """A benchmark's entry in results.json."""
    every = [r for row in rows for r in (*row["responses"], *([row["greedy"]] if "greedy" in row else []))]
    results: dict[str, Any] = {
        "items": len(rows),
        "left_out": benchmark.left_out,
        "reasons": dict(Counter(r["reason"] for r in every).most_common()),
    }
    if benchmark.is_sampled:
        results["response_tokens"] = float(np.mean([len(r["token_ids"]) for r in every]))
        results["truncated"] = float(np.mean([r["truncated"] for r in every]))
        results["greedy"] = interval([row["greedy"]["outcome"] or 0.0 for row in rows])
    results["samples"] = n = len(rows[0]["responses"])
    if n == 0:
        return results
    right = np.array([[r["outcome"] or 0.0 for r in row["responses"]] for row in rows])  # [P, N]
    results[f"avg@{n}"] = interval(right.mean(-1))
    if n == 1:
        return results
    count = (right >= 1).sum(-1)
    results["pass@k"] = {k: interval([pass_at_k(n, int(c), k) for c in count]) for k in powers(n)}
    mode = benchmark.config.answers
    answers = [  # of programs no two are alike
        [canonical_answer(r["text"], mode) if item.verifier != "code" else None for r in row["responses"]]
        for row, item in zip(rows, benchmark.items, strict=True)
    ]
    ways = WAYS if "rewards" in rows[0]["responses"][0] else {}
    scores = {
        name: np.array([[way(r) for r in row["responses"]] for row in rows]) for name, way in ways.items()
    }
    curves, ahead = best_of(right, answers, scores)
    results["best_of_n"] = curves
    if ahead:
        results["prm_ahead"] = ahead
    if "majority vote" in curves:
        results["maj@k"] = curves["majority vote"]
    if scores and benchmark.config.data.source == "task:clock":
        results["step_auc"] = or_none(step_auc(rows))
    return results


def best_of(
    right: np.ndarray, answers: list[list[str | None]], scores: dict[str, np.ndarray]
) -> tuple[Curves, dict[str, Interval]]:
    """Accuracy of each way to choose one of N responses, for N = 1, 2, 4, ... of all that there are.

    For fewer than all: the mean over all choices of N of them, exact for scores, over 200 choices drawn
    with a seed for votes, which there are where anything has an answer. Equal scores share. Intervals are 95 %
    bootstrap intervals over items.

    Beside it: by how much the PRM's choice of all is ahead of a vote's and of the reference's, item by item. Their own
    intervals may overlap where that of the difference does not reach 0.
    """
    items, samples = right.shape
    last: dict[str, np.ndarray] = {}
    curves: Curves = {}

    def add(name: str, accuracy: Callable[[int, int], float]) -> None:
        """The curve over N of what `accuracy(item, n)` says of an item."""
        found = {n: np.array([accuracy(i, n) for i in range(items)]) for n in powers(samples)}
        curves[name], last[name] = {n: interval(values) for n, values in found.items()}, found[samples]

    def add_vote(name: str, weights: np.ndarray) -> None:
        add(name, lambda i, n: vote_subsets(answers[i], weights[i], right[i], n))

    voting = any(answer is not None for row in answers for answer in row)
    add("random", lambda i, n: float(right[i].mean()))
    if voting:
        add_vote("majority vote", np.ones_like(right))
    for name, score in scores.items():
        add(name, lambda i, n, score=score: best_of_n_subsets(score[i], right[i], n))
    if voting and "PRM" in scores:
        add_vote("PRM-weighted vote", 1 / (1 + np.exp(-scores["PRM"])))
    add("oracle", lambda i, n: best_of_n_subsets(right[i], right[i], n))
    others = ("majority vote", "reference log-probability") if "PRM" in last else ()
    ahead = {name: interval(last["PRM"] - last[name]) for name in others if name in last}
    return curves, ahead


def interval(values) -> Interval:
    """(mean, low, high)."""
    return (float(np.mean(values)), *bootstrap_interval(values))


def powers(n: int) -> list[int]:
    """1, 2, 4, ... up to n, and n itself."""
    return sorted({2**i for i in range(n.bit_length())} | {n})


def step_auc(rows: list[dict]) -> float:
    """Area under the ROC curve of the rewards of lines, right ones against wrong ones; the embedded task alone.

    The oracle step checker that judges the lines serves this analysis only. The answer's line is left out.
    """
    labels, values = [], []
    for row in rows:
        for response in row["responses"]:
            line_rewards = [0.0]
            for token, reward in zip(response["tokens"], response["rewards"], strict=True):
                line_rewards[-1] += reward
                line_rewards += [0.0] * token.count("\n")
            verdicts = response["steps"][:-1]
            labels += verdicts
            values += line_rewards[: len(verdicts)]
    return roc_auc(values, labels)


def or_none(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else value
