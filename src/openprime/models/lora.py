"""Low-rank adapters (LoRA, arXiv 2106.09685): several trained models on one base model in memory.

W x + (alpha / rank) B A x for each adapted linear layer; W is frozen, B starts at 0. The policy's adapter and the
PRM's stand side by side on the same base; with both off, the base is the reference. Of several ranks each has a share
of the base and the whole of the adapters.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from openprime.config import LoRAConfig
from openprime.models.checks import trial_rows
from openprime.models.hub import compute_device, named_tensors
from openprime.ranks import first, world
from openprime.types import UserError


def add_adapter(model: PreTrainedModel, name: str, config: LoRAConfig) -> list[str]:
    """Give a model an adapter and freeze its own weights; the adapter that came first is the active one.

    Returns a note where a part of the blocks gets none. Raises UserError for a target that is no linear layer of the
    model's blocks.
    """
    from peft import LoraConfig, inject_adapter_in_model  # an extra: pip install 'openprime[lora]'

    layers = linear_layers(model)
    known = {layer.split(".")[-1] for layer in layers}
    unknown = sorted(set(config.targets) - known)
    if unknown or not known:
        raise UserError(
            f"lora.targets={unknown}: not among the linear layers of this model's blocks, which are: "
            + (", ".join(sorted(known)) or "none; set lora.rank=0")
        )
    first = name if not has_adapters(model) else model.active_adapters()[0]
    chosen = [layer for layer in layers if layer.split(".")[-1] in (config.targets or known)]
    notes = _left_out(model, set(chosen), least=3 if config.targets else 2)
    with _whole_shapes(model, chosen), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a second adapter is meant
        warnings.filterwarnings("ignore", "While injecting the PEFT adapters")  # names, not a rule for names
        inject_adapter_in_model(
            LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=["none by its name"]),  # pyright: ignore
            model,
            name,
            state_dict={f"{layer}.lora_A.weight": torch.empty(0) for layer in chosen},
        )
    model._hf_peft_config_loaded = True
    _switch(model, first)
    return notes


@contextmanager
def _whole_shapes(model: PreTrainedModel, layers: list[str]) -> Iterator[None]:
    """Layers with weights of their whole shape, without memory, in the place of their shares.

    PEFT takes shares over ranks with copies, whose mesh has names, for those of tensor parallelism: its adapters would
    fit a share.
    """
    linear = [module for module in map(model.get_submodule, layers) if isinstance(module, nn.Linear)]
    modules = [module for module in linear if isinstance(module.weight, DTensor)]
    shares = [module.weight for module in modules]
    try:
        for module, share in zip(modules, shares, strict=True):
            empty = torch.empty((), device=share.device).expand(share.shape)
            module.weight = nn.Parameter(empty, requires_grad=False)
        yield
    finally:
        for module, share in zip(modules, shares, strict=True):
            module.weight = share.requires_grad_(False)


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of the blocks' linear layers that can have an adapter: those that are called, for a few tokens.

    Some mixers take a layer's weight and never call it (`dt_proj`), or do so in fused kernels (`out_proj`), past an
    adapter. Routed experts of one tensor are no linear layers.
    """
    head, gives, hooks = model.get_output_embeddings(), {}, []
    modules = {name.removesuffix(".base_layer"): module for name, module in model.named_modules()}
    for name, module in modules.items():
        hook = lambda module, inputs, output, name=name: gives.update({name: type(output)})  # noqa: E731
        hooks.append(module.register_forward_hook(hook))
    try:
        with torch.no_grad():
            ids = torch.tensor(trial_rows(model)[-1:], device=compute_device(model))
            model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for name, module in modules.items():
        if not isinstance(module, nn.Linear) or module is head or ".lora_" in name:
            continue
        owner, _, own = name.rpartition(".")
        in_mamba = {"A_log", "D"} <= dict(modules[owner].named_parameters(recurse=False)).keys()
        expert = owner not in gives  # no token was routed to it
        plain = gives.get(name) is Tensor or expert  # some routers give tuples
        found += [name] if plain and not (in_mamba and own == "out_proj") else []
    return found


def _left_out(model: PreTrainedModel, adapted: set[str], least: int) -> list[str]:
    """A note on the matrices of the blocks that get no adapter, where they are a hundredth of all or more.

    Of at least so many dimensions: routed experts have three.
    """
    embedded = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head: Any = model.get_output_embeddings()
    outside = embedded | {id(p) for p in head.parameters()}
    sizes: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        plain = name.replace(".base_layer", "")
        if parameter.dim() < 2 or id(parameter) in outside or ".lora_" in name:
            continue
        kind = ".".join(
            [part for part in plain.removesuffix(".weight").split(".") if not part.isdigit()][-2:]
        )
        sizes[kind] += parameter.numel()
        if parameter.dim() >= least and plain.removesuffix(".weight") not in adapted:
            left[kind] += parameter.numel()
    share = left.total() / max(1, sizes.total())
    names = ", ".join(kind for kind, size in left.most_common(4) if size)
    return [f"lora: no adapter for {share:.0%} of the blocks' weights ({names})"] if share >= 0.01 else []


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


@contextmanager
def made_up(model: PreTrainedModel, adapter: str) -> Iterator[None]:
    """An adapter that is still 0 with values in it; afterwards it is 0 again."""
    ups = [p for name, p in trained_parameters(model, adapter).items() if ".lora_B." in name]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for up in ups:
            up.copy_(0.1 * torch.randn(up.shape, generator=generator))
    try:
        yield
    finally:
        with torch.no_grad():
            for up in ups:
                up.zero_()


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
        plain = AutoModelForCausalLM.from_config(model.config, trust_remote_code=False)
    plain.requires_grad_(False)  # which it passes on to the weights that it takes, the base's own among them
    weights = (
        (name, tensor if world() == 1 else tensor.cpu()) for name, tensor in merged_tensors(model, adapter)
    )
    plain.load_state_dict({name: tensor for name, tensor in weights if first()}, strict=False, assign=True)
    plain.tie_weights()
    # One tensor may be two buffers, as in rotary positions after a long row.
    for name, buffer in model.named_buffers(remove_duplicate=False):
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
