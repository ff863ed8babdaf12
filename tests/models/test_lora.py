"""Adapters: one base in memory against separate models made by hand, and merged weights against the adapter."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from openprime.config import LoRAConfig
from openprime.models import lora
from openprime.models.lora import (
    Loader,
    add_adapter,
    merged_model,
    merged_tensors,
    trained_parameters,
    using_adapter,
)
from openprime.prime.prm import ImplicitPRM
from support.tiny_zoo import VOCABULARY, make

pytest.importorskip("peft")
POLICY, PRM = LoRAConfig(rank=4, alpha=6.0), LoRAConfig(rank=2, alpha=1.0, targets=("q_proj", "down_proj"))
IDS = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(3))


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def with_two(kind: str = "qwen2 tied") -> tuple[PreTrainedModel, PreTrainedModel]:
    """(base with the adapters `policy` and `prm`, neither of them 0; the base alone)."""
    base = make(kind)
    model = copy.deepcopy(base)
    add_adapter(model, "policy", POLICY)
    add_adapter(model, "prm", PRM)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model, base


def by_hand(
    model: PreTrainedModel, base: PreTrainedModel, adapter: str, config: LoRAConfig
) -> PreTrainedModel:
    """The base with W + (alpha / rank) B A written into its weights, found by parameter names alone."""
    whole, parts = copy.deepcopy(base), dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in whole.named_parameters():
            owner = name.removesuffix(".weight")
            if f"{owner}.lora_A.{adapter}.weight" in parts:
                a, b = (parts[f"{owner}.lora_{x}.{adapter}.weight"] for x in "AB")
                assert a.shape[0] == b.shape[1] == config.rank
                weight += config.alpha / config.rank * b @ a
    return whole


@pytest.mark.parametrize("kind", ["qwen2 tied", "qwen2", "llama", "phi, head with a bias"])
def test_one_base_is_policy_prm_and_reference_at_a_time(kind: str):
    prm = PRM if "phi" not in kind else PRM.model_copy(update={"targets": ("q_proj", "fc2")})
    model, base = copy.deepcopy(make(kind)), make(kind)
    add_adapter(model, "policy", POLICY)
    add_adapter(model, "prm", prm)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    alone = {
        "policy": by_hand(model, base, "policy", POLICY),
        "prm": by_hand(model, base, "prm", prm),
        "": base,
    }
    for name, other in (("policy", "prm"), ("prm", ""), ("", "policy")):
        with using_adapter(model, name):
            torch.testing.assert_close(logits(model), logits(alone[name]), atol=2e-5, rtol=1e-4)
            assert (logits(model) - logits(alone[other])).abs().max() > 0.01
    torch.testing.assert_close(
        logits(model), logits(alone["policy"]), atol=2e-5, rtol=1e-4
    )  # the first is active


def test_a_new_adapter_changes_nothing():
    model, base = make("qwen2"), make("qwen2")
    add_adapter(model, "policy", POLICY)
    assert torch.equal(logits(model), logits(base))


def test_switching_nests_and_comes_back_after_an_error():
    model, _ = with_two()
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


def test_gradients_reach_the_adapter_in_use_and_nothing_else():
    model, _ = with_two()
    for name in ("prm", "policy"):
        model.zero_grad()
        with using_adapter(model, name):
            model(input_ids=IDS).logits.sum().backward()
        reached = {n for n, p in model.named_parameters() if p.grad is not None}
        assert reached == set(trained_parameters(model, name))
        assert reached
        assert all(f".{name}." in n for n in reached)


def test_a_model_without_adapters_is_left_alone():
    model = make("qwen2")
    with using_adapter(model, ""):
        assert all(p.requires_grad for p in model.parameters())
    assert trained_parameters(model, "") == dict(model.named_parameters())
    assert merged_model(model, "") is model
    for (name, weight), (other, own) in zip(merged_tensors(model, ""), model.named_parameters(), strict=True):
        assert name == other
        assert weight is own


@pytest.mark.parametrize("kind", ["qwen2 tied", "llama", "phi, head with a bias"])
def test_merged_weights_have_the_base_models_names_and_compute_the_same(kind: str, tmp_path: Path):
    base, model = make(kind), make(kind)
    add_adapter(model, "policy", POLICY)
    with torch.no_grad():
        for parameter in trained_parameters(model, "policy").values():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    tensors = dict(merged_tensors(model, "policy"))
    assert list(tensors) == [name for name, _ in base.named_parameters()]
    assert not any(tensor.requires_grad for name, tensor in tensors.items() if "proj" in name)
    merged_model(model, "policy").save_pretrained(tmp_path)
    assert not list(tmp_path.glob("adapter*"))
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    for other in (read, merged_model(model, "policy")):
        torch.testing.assert_close(logits(other), logits(model), atol=2e-5, rtol=1e-4)
    assert not torch.allclose(logits(read), logits(base), atol=0.01)


def test_the_loader_loads_a_base_once_and_what_is_trained_whole_apart(monkeypatch: pytest.MonkeyPatch):
    loaded = []

    def load(name: str, *how: object) -> PreTrainedModel:
        loaded.append(name)
        return make("qwen2")

    monkeypatch.setattr(lora, "load_trained", load)
    loader, off = Loader(torch.device("cpu")), LoRAConfig()
    policy, active = loader.trained("a", "policy", POLICY)
    prm, second = loader.trained("a", "prm", POLICY)
    assert (active, second, loaded) == ("policy", "prm", ["a"])
    assert policy is prm is loader.reference("a")
    assert loader.trained("a", "policy", off)[0] is not policy
    small, _ = loader.trained("b", "prm", off)
    assert loader.reference("b") is not small
    assert loaded == ["a", "a", "b", "b"]
    assert all(p.requires_grad for p in small.parameters())
    assert not any(p.requires_grad for p in loader.reference("b").parameters())


def test_the_reference_of_a_prm_may_carry_the_policys_adapter(make_plain_batch):
    """A PRM trained whole, its reference the base under the policy's adapter: read without it, and left in use."""
    model, base = with_two()
    phi = make("qwen2 tied", seed=5)
    ours, theirs = ImplicitPRM(phi, model, 0.1), ImplicitPRM(phi, copy.deepcopy(base), 0.1)
    policy = logits(model)
    assert torch.equal(ours.reference_logprobs(make_plain_batch), theirs.reference_logprobs(make_plain_batch))
    assert torch.equal(logits(model), policy)
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("kind", "targets", "said"),
    [
        ("qwen2", ("q_proj", "qq_proj"), r"\['qq_proj'\]: not among .*down_proj.*q_proj"),
        ("qwen2", ("lm_head",), r"\['lm_head'\]: not among"),
        ("qwen2 tied", ("embed_tokens",), r"\['embed_tokens'\]: not among"),
        ("gpt2", (), r"none; set lora\.rank=0"),
    ],
)
def test_targets_that_are_no_linear_layer_of_a_block_are_refused(
    kind: str, targets: tuple[str, ...], said: str
):
    with pytest.raises(ValueError, match=said):
        add_adapter(make(kind), "policy", LoRAConfig(rank=2, targets=targets))


@pytest.fixture
def make_plain_batch():
    """Two rows, the last five tokens the response."""
    from openprime.types import Batch

    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[:, 4:] = True
    return Batch(
        token_ids=IDS,
        response_mask=mask,
        lengths=torch.tensor([9, 9]),
        outcome=torch.tensor([0.0, 1.0]),
        group=torch.tensor([0, 0]),
        logprobs=torch.zeros(2, 9),
        step_end=torch.zeros_like(mask),
    )


def test_the_linear_layers_are_those_that_the_block_is_made_of():
    """Every matrix of a block gets an adapter where `targets` is empty, and nothing outside the blocks does."""
    model = make("qwen2 tied")
    add_adapter(model, "policy", POLICY)
    adapted = {name.split(".lora_")[0] for name in trained_parameters(model, "policy")}
    matrices = {n.removesuffix(".weight") for n, p in make("qwen2 tied").named_parameters() if p.dim() == 2}
    assert adapted == matrices - {"model.embed_tokens"}
    hidden = torch.randn(3, 32)
    layer = model.model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["policy"].weight, layer.lora_B["policy"].weight
    expected = F.linear(hidden, layer.base_layer.weight, layer.base_layer.bias) + 1.5 * hidden @ a.T @ b.T
    torch.testing.assert_close(layer(hidden), expected)
