"""Measures of an implicit PRM on held-out responses; those of whole runs are in tests/commands/test_train_prm.py."""

import random

import pytest
import torch

from openprime.data.records import JudgedResponse
from openprime.evaluation.held_out import kto_reference_point
from openprime.models.lm import LM
from openprime.prime.prm import ImplicitPRM
from openprime.types import Prompt, Response
from support.tiny_lm import VOCABULARY, make_model

BETA = 0.3


@pytest.fixture
def judged() -> list[JudgedResponse]:
    """Two, one and three responses to three prompts; tokens at random."""
    rng = random.Random("judged")

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCABULARY) for _ in range(count))

    prompts = [Prompt(str(g), tokens(g + 1), "", None) for g in range(3)]
    return [
        JudgedResponse(g, prompts[g], Response(tokens(length), (0.0,) * length, "", False, 1.0))
        for g, length in ((0, 3), (2, 5), (1, 4), (0, 2), (2, 6), (2, 1))
    ]


def test_kto_reference_point__is_the_mean_score_beside_the_next_prompt(judged: list[JudgedResponse]):
    """By hand: groups appear in the order 0, 2, 1, so 0 goes beside 2, 2 beside 1 and 1 beside 0."""
    model, reference, beside = make_model(1), make_model(2), {0: 2, 2: 1, 1: 0}
    prompts = {row.group: row.prompt.token_ids for row in judged}
    scores, lengths = [], []
    for row in judged:
        ids, start = prompts[beside[row.group]] + row.response.token_ids, len(prompts[beside[row.group]])
        with torch.no_grad():
            logs = [m(torch.tensor([ids])).logits[0].log_softmax(-1) for m in (model, reference)]
        ratios = [logs[0][t - 1, ids[t]] - logs[1][t - 1, ids[t]] for t in range(start, len(ids))]
        scores.append(BETA * sum(map(float, ratios)))
        lengths.append(len(ids))
    there, back = (ImplicitPRM(LM(a), LM(b), BETA) for a, b in ((model, reference), (reference, model)))
    mean = sum(scores) / len(scores)
    found = sorted(kto_reference_point(prm, judged, 100) for prm in (there, back))
    assert found == pytest.approx([0.0, abs(mean)], abs=1e-5)  # never below 0
    assert abs(mean) > 0.01

    # Pairs of more than seven tokens are left out.
    short = [score for score, length in zip(scores, lengths, strict=True) if length <= 7]
    assert 0 < len(short) < len(scores)
    prm = there if sum(short) > 0 else back
    assert kto_reference_point(prm, judged, 7) == pytest.approx(abs(sum(short)) / len(short), abs=1e-5)
    assert kto_reference_point(prm, [row for row in judged if row.group == 2], 100) == 0.0
    assert model.base_model.embed_tokens.weight.grad is None
