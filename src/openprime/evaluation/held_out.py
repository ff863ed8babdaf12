"""How good an implicit PRM is on held-out judged responses."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch

from openprime.config import OfflinePRMConfig
from openprime.data.records import JudgedResponse, collate_judged
from openprime.data.steps import token_texts
from openprime.evaluation.calibration import brier, expected_calibration_error, lowest_is_last, roc_auc
from openprime.evaluation.voting import bootstrap_interval
from openprime.prime.losses import outcome_loss, prm_prefix_loss
from openprime.prime.prm import ImplicitPRM, Score
from openprime.prime.rewards import pairwise_accuracy
from openprime.types import Metrics

SAMPLE = 256
"""Responses that KTO's reference point is measured on."""
ROWS = 1024
"""Responses that are scored at a time."""


def measure(
    prm: ImplicitPRM, rows: Sequence[JudgedResponse], config: OfflinePRMConfig, margin: float = 0.0
) -> Metrics:
    """How good the PRM is on held-out responses; with step labels the same over steps and their prefix values.

    pairwise_accuracy: how often the better of two of a prompt's responses (steps) has the higher score, mean
    over the prompts that have a pair, with a 95 % bootstrap interval over prompts. auc, ece and brier: over
    all responses (steps), right above one half. lowest_step_last: how often the lowest step reward is the
    last step's; a large share hints at a PRM that judges the outcome instead of the steps. What cannot be
    measured on these responses is left out. `margin`: of the prefix loss.
    """
    values, labels, step_rewards, prefix_losses = [], [], [], []
    places: dict[int, list[int]] = {}
    for row, score in zip(rows, scored(prm, rows, config), strict=True):
        found, truth = [score.reward], [row.response.outcome or 0.0]
        if config.loss == "steps":
            found, truth = list(accumulate(score.step_rewards)), row.labels
        if config.loss == "prefix":
            prefix_losses.append(prefix_loss(score, truth[0], margin))
        places.setdefault(row.group, []).extend(range(len(values), len(values) + len(found)))
        values += found
        labels += truth
        step_rewards.append(score.step_rewards)
    name = "ce" if config.loss in ("steps", "prefix") else config.loss
    z0 = kto_reference_point(prm, rows[:SAMPLE], config.max_tokens) if name == "kto" else 0.0
    scores, truths = torch.tensor(values, dtype=torch.float64), torch.tensor(labels, dtype=torch.float64)
    total, count = 0.0, 0
    for group in places.values():
        whole = torch.zeros(len(group), dtype=torch.long)
        loss, number = outcome_loss(name, scores[group], truths[group], whole, z0)
        total, count = total + float(loss), count + int(number)
    if prefix_losses:
        total, count = sum(prefix_losses), len(prefix_losses)
    found = {"loss": total / count if count else math.nan} | agreement(values, labels, places.values())
    return finite(found | {"lowest_step_last": lowest_is_last(step_rewards)})


def agreement(values: Sequence[float], labels: Sequence[float], groups: Iterable[Sequence[int]]) -> Metrics:
    """How scores go with outcomes in [0, 1], both [m]: the first six of `measure`, nan for what cannot be measured.

    `groups`: the places of each prompt's responses.
    """
    scores, truths = torch.tensor(values, dtype=torch.float64), torch.tensor(labels, dtype=torch.float64)
    accuracies = []
    for group in map(list, groups):
        whole = torch.zeros(len(group), dtype=torch.long)
        won, pairs = pairwise_accuracy(scores[group], truths[group], whole)
        accuracies += [float(won / pairs)] if pairs else []
    probabilities = scores.sigmoid().numpy()
    low, high = bootstrap_interval(accuracies) if accuracies else (math.nan, math.nan)
    return {
        "pairwise_accuracy": sum(accuracies) / len(accuracies) if accuracies else math.nan,
        "pairwise_low": low,
        "pairwise_high": high,
        "auc": roc_auc(values, np.array(labels) > 0.5),
        "ece": expected_calibration_error(probabilities, labels),
        "brier": brier(probabilities, labels),
    }


def finite(found: Metrics) -> Metrics:
    """What could be measured."""
    return {name: value for name, value in found.items() if math.isfinite(value)}


def prefix_loss(score: Score, outcome: float, margin: float) -> float:
    """`prm_prefix_loss` of one response."""
    rewards = torch.tensor([score.token_rewards], dtype=torch.float64)  # [1, T]
    truth = torch.tensor([outcome], dtype=torch.float64)
    return float(prm_prefix_loss(rewards, truth, torch.ones_like(rewards), margin))


def scored(prm: ImplicitPRM, rows: Sequence[JudgedResponse], config: OfflinePRMConfig) -> Iterator[Score]:
    """The rewards of each row, whose steps are its own where they are labelled."""
    assert prm.tokenizer is not None
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        prompt_ids = [row.prompt.token_ids for row in part]
        token_ids = [row.response.token_ids for row in part]
        texts = [[*row.texts] or token_texts(prm.tokenizer, row.response.token_ids) for row in part]
        how = [row.steps for row in part] if config.loss == "steps" else config.step_split
        yield from prm.score_tokens(prompt_ids, token_ids, texts, how)


def kto_reference_point(prm: ImplicitPRM, rows: Sequence[JudgedResponse], max_tokens: int) -> float:
    """z0 of KTO: the mean score of the responses, each set beside the prompt of the next group, at least 0.

    An estimate of beta KL(phi || ref) under the present PRM (arXiv 2402.01306, section 4.1). Pairs of more than
    `max_tokens` are left out; 0 where the rows answer one prompt only.
    """
    prompts = {row.group: row.prompt for row in rows}
    groups = list(prompts)
    after = dict(zip(groups, [*groups[1:], groups[0]], strict=True))
    moved = [replace(row, prompt=prompts[after[row.group]]) for row in rows if after[row.group] != row.group]
    moved = [row for row in moved if len(row.prompt.token_ids) + len(row.response.token_ids) <= max_tokens]
    if not moved:
        return 0.0
    batch = prm.with_reference(collate_judged(moved, 0).to(prm.lm.device))
    scores = prm.response_scores(prm.token_rewards(batch), batch.response_mask)  # [B]
    return max(0.0, float(scores.mean()))
