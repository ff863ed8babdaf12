"""Low-rank adapters (LoRA, arXiv 2106.09685): several trained models on one base model in memory.

W x + (alpha / rank) B A x for each adapted linear layer; W is frozen, B starts at 0. The policy's adapter and the
PRM's stand side by side on the same base; with both off, the base is the reference. Of several ranks each has a share
of the base and the whole of the adapters.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from openprime.config import LoRAConfig
from openprime.models.hub import named_tensors
from openprime.ranks import first, world
from openprime.types import UserError


def add_adapter(model: PreTrainedModel, name: str, config: LoRAConfig) -> None:
    """Give a model an adapter and freeze its own weights; the adapter that came first is the active one.

    Raises UserError for a target that is no linear layer of the model's blocks.
    """
    from peft import LoraConfig  # an extra: pip install 'openprime[lora]'

    head = model.get_output_embeddings()
    modules = [(n, m) for n, m in model.named_modules() if m is not head and ".lora_" not in n]
    known = {n.removesuffix(".base_layer").split(".")[-1] for n, m in modules if isinstance(m, nn.Linear)}
    unknown = sorted(set(config.targets) - known)
    if unknown or not known:
        raise UserError(
            f"lora.targets={unknown}: not among the linear layers of this model's blocks, which are: "
            + (", ".join(sorted(known)) or "none; set lora.rank=0")
        )
    first = name if not has_adapters(model) else model.active_adapters()[0]
    targets = sorted(config.targets or known)
    options: Any = {"r": config.rank, "lora_alpha": config.alpha, "target_modules": targets}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a second adapter is meant
        model.add_adapter(LoraConfig(**options), name)
    _switch(model, first)


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether a model carries any."""
    return model._hf_peft_config_loaded


@contextmanager
def using_adapter(model: PreTrainedModel, name: str) -> Iterator[None]:
    """The model with this adapter alone, or with '' as it is without any; afterwards the one before is active again.

    Parameters of the adapter in use require gradients, those of the others do not. Does nothing to a model that
    carries no adapters.
    """
    if not has_adapters(model):
        assert not name
        yield
        return
    layer = next(_layers(model))[1]
    before = "" if layer.disable_adapters else layer.active_adapters[0]
    _switch(model, name)
    try:
        yield
    finally:
        _switch(model, before)


def trained_parameters(model: PreTrainedModel, adapter: str) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name: those of an adapter, or with '' all."""
    named = model.named_parameters()
    return {name: p for name, p in named if not adapter or (f".{adapter}." in name and ".lora_" in name)}


def merged_tensors(model: PreTrainedModel, adapter: str) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) as in the model without adapters, this one merged in, W + (alpha / rank) B A, one at a time.

    With '' a model's own weights. Tied weights come once.
    """
    if not adapter:
        yield from named_tensors(model)
        return
    layers: dict[str, Any] = dict(_layers(model))
    for name, weight in named_tensors(model):
        owner, inside, kind = name.rpartition(".base_layer.")
        if ".lora_" in name:
            continue
        if kind == "weight" and inside and adapter in layers[owner].lora_A:
            with torch.no_grad():
                weight = weight + layers[owner].get_delta_weight(adapter)
        yield (f"{owner}.{kind}" if inside else name), weight


def merged_model(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """A model without adapters that computes what this one does with the adapter on; with '' the model itself.

    Every rank calls it, and the first one gets the weights.
    """
    if not adapter:
        return model
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config)
    weights = (
        (name, tensor if world() == 1 else tensor.cpu()) for name, tensor in merged_tensors(model, adapter)
    )
    plain.load_state_dict({name: tensor for name, tensor in weights if first()}, strict=False, assign=True)
    plain.tie_weights()
    for name, buffer in model.named_buffers():
        owner, _, kind = name.rpartition(".")
        setattr(plain.get_submodule(owner), kind, buffer)
    plain.generation_config = model.generation_config
    return plain.eval()


def _layers(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Names and modules of the adapted layers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return ((name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))


def _switch(model: PreTrainedModel, name: str) -> None:
    for _, layer in _layers(model):
        if name:
            layer.set_adapter(name)
        layer.enable_adapters(bool(name))
