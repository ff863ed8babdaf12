"""An implicit PRM for tests of what uses one: the small SFT model with noise on its weights."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from openprime.models.hub import load_model, load_tokenizer
from openprime.models.lm import LM
from openprime.prime.prm import ImplicitPRM

BETA = 0.2


def save_prm(model: Path, folder: Path) -> Path:
    """Write a PRM whose reference is `model`; every token has a reward well away from 0."""
    phi = load_model(str(model))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in phi.parameters():
            parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
    ImplicitPRM(LM(phi), None, BETA).save_pretrained(folder, load_tokenizer(str(model)), str(model))
    return folder


def token_logprobs(model: Path, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
    """log p of the response's tokens, by transformers' own forward pass over the whole sequence."""
    with torch.no_grad():
        logits = _model(model)(torch.tensor([[*prompt, *response]])).logits[0].double()
    table = logits.log_softmax(-1)[len(prompt) - 1 :]
    return [float(table[t, token]) for t, token in enumerate(response)]


def token_rewards(prm: Path, reference: Path, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
    """beta * log-ratio of the two models, token by token."""
    phi, ref = (token_logprobs(model, prompt, response) for model in (prm, reference))
    return [BETA * (a - b) for a, b in zip(phi, ref, strict=True)]


def greedy_tokens(model: Path, prompt: Sequence[int], tokens: int) -> list[int]:
    """The greedy response by transformers' own `generate`."""
    ids = torch.tensor([list(prompt)])
    made: Any = _model(model).generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return made[0, len(prompt) :].tolist()


@cache
def _model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
