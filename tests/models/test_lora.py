"""Adapters: one base in memory against separate models made by hand, and merged weights against the adapter."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from openprime.config import LoRAConfig
from openprime.models.lora import (
    add_adapter,
    has_adapters,
    merged_model,
    merged_tensors,
    trained_parameters,
    using_adapter,
)
from openprime.types import UserError
from support.tiny_zoo import VOCABULARY, make

pytest.importorskip("peft")
POLICY, PRM = LoRAConfig(rank=4, alpha=6.0), LoRAConfig(rank=2, alpha=1.0, targets=("q_proj", "down_proj"))
IDS = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(3))


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def assert_computes(model: PreTrainedModel, other: PreTrainedModel) -> None:
    torch.testing.assert_close(logits(model), logits(other), atol=2e-5, rtol=1e-4)


def adapted(kind: str = "qwen2 tied", **adapters: LoRAConfig) -> PreTrainedModel:
    """A base with adapters, the policy's and the PRM's if none are given; none of them is 0."""
    model = make(kind)
    for name, config in (adapters or {"policy": POLICY, "prm": PRM}).items():
        add_adapter(model, name, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def by_hand(model: PreTrainedModel, kind: str, adapter: str, config: LoRAConfig) -> PreTrainedModel:
    """The base with W + (alpha / rank) B A written into its weights, found by parameter names alone."""
    whole, parts = make(kind), dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in whole.named_parameters():
            owner = name.removesuffix(".weight")
            if f"{owner}.lora_A.{adapter}.weight" in parts:
                a, b = (parts[f"{owner}.lora_{x}.{adapter}.weight"] for x in "AB")
                assert a.shape[0] == b.shape[1] == config.rank
                weight += config.alpha / config.rank * b @ a
    return whole


@pytest.mark.parametrize("kind", ["qwen2 tied", "qwen2", "llama", "phi, head with a bias"])
def test_using_adapter__one_base_is_policy_prm_and_reference_in_turn(kind: str):
    prm = PRM.model_copy(update={"targets": ("q_proj", "fc2")}) if "phi" in kind else PRM
    model = adapted(kind, policy=POLICY, prm=prm)
    alone = {name: by_hand(model, kind, name, c) for name, c in (("policy", POLICY), ("prm", prm))}
    alone[""] = make(kind)
    for name, other in (("policy", "prm"), ("prm", ""), ("", "policy")):
        with using_adapter(model, name):
            assert_computes(model, alone[name])
            assert (logits(model) - logits(alone[other])).abs().max() > 0.01
    assert_computes(model, alone["policy"])  # the first is active


def test_using_adapter__nests_and_comes_back_after_an_error():
    model = adapted()
    outside = logits(model)
    with using_adapter(model, "prm"):
        inside = logits(model)
        with using_adapter(model, ""):
            with using_adapter(model, "policy"):
                assert torch.equal(logits(model), outside)
            assert not torch.equal(logits(model), outside)
        assert torch.equal(logits(model), inside)
    with pytest.raises(KeyError), using_adapter(model, "prm"):
        raise KeyError
    assert torch.equal(logits(model), outside)


def test_using_adapter__gradients_reach_the_one_in_use_and_nothing_else():
    model = adapted()
    for name in ("prm", "policy"):
        model.zero_grad()
        with using_adapter(model, name):
            model(input_ids=IDS).logits.sum().backward()
        reached = {n for n, p in model.named_parameters() if p.grad is not None}
        assert reached == set(trained_parameters(model, name))
        assert reached
        assert all(f".{name}." in n for n in reached)


def test_using_adapter__leaves_a_model_without_adapters_alone():
    model = make("qwen2")
    with using_adapter(model, ""):
        assert all(p.requires_grad for p in model.parameters())
    assert not has_adapters(model)
    assert trained_parameters(model, "") == dict(model.named_parameters())
    assert merged_model(model, "") is model
    for (name, weight), (other, own) in zip(merged_tensors(model, ""), model.named_parameters(), strict=True):
        assert name == other
        assert weight is own


def test_add_adapter__changes_nothing_at_first():
    model = make("qwen2")
    add_adapter(model, "policy", POLICY)
    assert has_adapters(model)
    assert torch.equal(logits(model), logits(make("qwen2")))


def test_add_adapter__without_targets_takes_every_matrix_of_the_blocks():
    model = adapted(policy=POLICY)
    taken = {name.split(".lora_")[0] for name in trained_parameters(model, "policy")}
    matrices = {n.removesuffix(".weight") for n, p in make("qwen2 tied").named_parameters() if p.dim() == 2}
    assert taken == matrices - {"model.embed_tokens"}
    hidden = torch.randn(3, 32)
    layer = model.model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["policy"].weight, layer.lora_B["policy"].weight
    expected = F.linear(hidden, layer.base_layer.weight, layer.base_layer.bias) + 1.5 * hidden @ a.T @ b.T
    torch.testing.assert_close(layer(hidden), expected)


@pytest.mark.parametrize(
    ("kind", "targets", "said"),
    [
        ("qwen2", ("q_proj", "qq_proj"), r"\['qq_proj'\]: not among .*down_proj.*q_proj"),
        ("qwen2", ("lm_head",), r"\['lm_head'\]: not among"),
        ("qwen2 tied", ("embed_tokens",), r"\['embed_tokens'\]: not among"),
        ("gpt2", (), r"none; set lora\.rank=0"),
    ],
)
def test_add_adapter__targets_that_are_no_linear_layer_of_a_block_are_refused(
    kind: str, targets: tuple[str, ...], said: str
):
    with pytest.raises(UserError, match=said):
        add_adapter(make(kind), "policy", LoRAConfig(rank=2, targets=targets))


@pytest.mark.parametrize("kind", ["qwen2 tied", "llama", "phi, head with a bias"])
def test_merged_model__has_the_bases_names_and_computes_the_same(kind: str, tmp_path: Path):
    model = adapted(kind, policy=POLICY)
    tensors = dict(merged_tensors(model, "policy"))
    assert list(tensors) == [name for name, _ in make(kind).named_parameters()]
    assert not any(tensor.requires_grad for name, tensor in tensors.items() if "proj" in name)
    merged_model(model, "policy").save_pretrained(tmp_path)
    assert not list(tmp_path.glob("adapter*"))
    for other in (AutoModelForCausalLM.from_pretrained(tmp_path), merged_model(model, "policy")):
        assert_computes(other, model)
        assert not torch.allclose(logits(other), logits(make(kind)), atol=0.01)
    learnt = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert learnt == set(
        trained_parameters(model, "policy")
    )  # the base stays as it is: no gradients of its weights
