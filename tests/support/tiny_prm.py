"""An implicit PRM for tests of what uses one: the small SFT model with noise on its weights."""

from pathlib import Path

import torch

from openprime.models.hub import load_model, load_tokenizer
from openprime.prime.prm import ImplicitPRM

BETA = 0.2


def save_prm(model: Path, folder: Path) -> Path:
    """Write a PRM whose reference is `model`; every token has a reward well away from 0."""
    phi = load_model(str(model))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in phi.parameters():
            parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
    ImplicitPRM(phi, None, BETA).save_pretrained(folder, load_tokenizer(str(model)), str(model))
    return folder
