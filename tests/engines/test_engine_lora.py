"""Sampling from a base with an adapter: the same samples as from merged weights."""

import pytest
import torch
from tiny_zoo import VOCABULARY, make

from openprime.config import LoRAConfig
from openprime.engines.transformers import TransformersEngine
from openprime.models.lora import add_adapter, merged_model, trained_parameters
from openprime.models.tiny import build_tokenizer
from openprime.types import Group, Prompt, Sampling

pytest.importorskip("peft")
PROMPTS = [Prompt(str(i), tuple(range(3, 7 + i)), "", None) for i in range(3)]


def adapted():
    model = make("qwen2")
    add_adapter(model, "policy", LoRAConfig(rank=2))
    with torch.no_grad():
        for parameter in trained_parameters(model, "policy").values():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def sampled(model) -> list[Group]:
    engine = TransformersEngine(model, build_tokenizer(["a b\n"] * 9, 300), frozenset({VOCABULARY}))
    return engine.generate(PROMPTS, Sampling(2, 12, 1.0), seed=1)


def test_samples_are_those_of_the_merged_model():
    model = adapted()
    ours, theirs = sampled(model), sampled(merged_model(model, "policy"))
    assert [r.token_ids for g in ours for r in g.responses] == [
        r.token_ids for g in theirs for r in g.responses
    ]
