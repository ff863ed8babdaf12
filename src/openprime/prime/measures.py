"""What alarms look at in a step (`run/alarms.py`): its process rewards, its repetitions, what its verifier pays for."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from openprime.prime.rewards import better_pairs
from openprime.types import Batch, Group, Metrics, Response

GRAM = 4
"""Tokens that must come again in their order to be a repetition."""
MARKS = ("\\boxed", "####")
"""What an answer begins with."""


def process_metrics(batch: Batch) -> Metrics:
    """Process returns of a batch's responses, and what they go with; none where there are no process rewards.

    Rank correlations are of responses to one prompt that are alike right or wrong: that a right response has the
    larger return, and may be shorter, is what a PRM is for.
    """
    rewards, mask = batch.rewards, batch.response_mask  # [B, T]
    if rewards is None or not rewards.any():
        return {}
    returns = rewards.double().sum(-1).cpu()  # [B]
    alike = (2 * batch.group + (batch.outcome > 0.5)).cpu()
    rows = [ids[own].tolist() for ids, own in zip(batch.token_ids.cpu(), mask.cpu(), strict=True)]
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.float64)
    repeated = torch.tensor([repetition(row) for row in rows], dtype=torch.float64)
    return {
        "reward/process": float(returns.mean()),
        "reward/process_std": float(returns.std(correction=0)),
        "reward/pairs": float(better_pairs(batch.outcome, batch.group).sum()),
        "reward/length_correlation": rank_correlation(returns, lengths, alike),
        "reward/repetition_correlation": rank_correlation(returns, repeated, alike),
    }


def rank_correlation(x: Tensor, y: Tensor, cell: Tensor) -> float:
    """Kendall's tau-a of x and y [B] over the pairs of rows of one cell [B]: the mean of sign(dx) sign(dy).

    A pair that is equal in one of them counts as 0, so that it stays small where nearly all lengths are the same, as
    Pearson's does not. nan where there are no pairs.
    """
    same = cell[:, None] == cell[None, :]
    same.fill_diagonal_(False)
    signs = [(values[:, None] - values[None, :]).sign() for values in (x.double(), y.double())]  # [B, B]
    return float((signs[0] * signs[1])[same].mean())


def repetition(token_ids: Sequence[int]) -> float:
    """Share of a response's runs of 4 tokens that it has had before; 0 where it is shorter."""
    grams = list(zip(*(token_ids[start:] for start in range(GRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def paid_metrics(groups: Sequence[Group]) -> Metrics:
    """Shares of the right responses that are empty, and that give an answer which is right for another reference too.

    None where no response is right. An answer is the text from its last mark on, without a mark the whole text; a
    prompt without a reference has no part in the second share.
    """
    references: dict[str, set[str]] = defaultdict(set)  # of the prompts for which an answer is right
    right: list[Response] = []
    for group in groups:
        for response in group.responses:
            if response.outcome is not None and response.outcome > 0.5:
                right.append(response)
                if group.prompt.answer is not None:
                    references[answer_of(response.text)].add(answer_of(group.prompt.answer))
    if not right:
        return {}
    empty = [not response.text.strip() for response in right]
    several = [len(references.get(answer_of(response.text), ())) > 1 for response in right]
    constant = [many and not nothing for many, nothing in zip(several, empty, strict=True)]
    return {"verify/paid_empty": sum(empty) / len(right), "verify/paid_constant": sum(constant) / len(right)}


def answer_of(text: str) -> str:
    """The text from its last mark on, else all of it, without spaces around it."""
    return text[max(0, *(text.rfind(mark) for mark in MARKS)) :].strip()
