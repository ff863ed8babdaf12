"""Sampling from a base with an adapter: the same samples as from merged weights, cast once."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from openprime.config import LoRAConfig
from openprime.engines.transformers import TransformersEngine
from openprime.models.lora import add_adapter, merged_model, trained_parameters
from openprime.models.placement import Placement
from openprime.models.tiny import build_tokenizer
from openprime.types import Group, Prompt, Sampling
from support.tiny_zoo import VOCABULARY, make

pytest.importorskip("peft")
PROMPTS = [Prompt(str(i), tuple(range(3, 7 + i)), "", None) for i in range(3)]


class Casts(TorchDispatchMode):
    """Counts the casts of the feed-forward layers' matrices to bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if str(func).startswith(("aten.to.", "aten._to_copy")) and found.dtype == torch.bfloat16:
            self.count += tuple(found.shape) in ((32, 48), (48, 32))
        return found


def adapted():
    model = make("qwen2")
    add_adapter(model, "policy", LoRAConfig(rank=2))
    with torch.no_grad():
        for parameter in trained_parameters(model, "policy").values():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def sampled(model, tokens: int = 12, bfloat16: bool = False) -> list[Group]:
    tokenizer = build_tokenizer(["a b\n"] * 9, 300)
    engine = TransformersEngine(model, Placement(bfloat16=bfloat16), tokenizer, frozenset({VOCABULARY}))
    return engine.generate(PROMPTS, Sampling(2, tokens, 1.0), seed=1)


def test_generate__samples_are_those_of_the_merged_model():
    model = adapted()
    ours, theirs = (
        [response.token_ids for group in sampled(one) for response in group.responses]
        for one in (model, merged_model(model, "policy"))
    )
    assert ours == theirs


def test_generate__frozen_weights_are_cast_once_whatever_the_tokens():
    model = adapted()
    before = [p.requires_grad for p in model.parameters()]
    counts = []
    for tokens in (2, 9):
        with Casts() as casts:
            sampled(model, tokens, bfloat16=True)
        counts.append(casts.count)
    assert counts[0] == counts[1] > 0
    assert [p.requires_grad for p in model.parameters()] == before
