"""What a model is made of, as far as memory and arithmetic go; and the arithmetic that this process has done."""

import time
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from openprime.config import LoRAConfig


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder with gated feed-forward layers, such as Qwen2 or Llama; others are counted as if they were one."""

    parameters: int
    """All of them, tied ones once."""
    linear: tuple[tuple[str, int, int], ...]
    """(name, inputs, outputs) of every linear layer of the blocks."""
    matrices: int
    """Weights of the blocks' matrices."""
    idle: int
    """Of these, those of routed experts that a token is not sent to."""
    largest: int
    """Weights of the largest matrix."""
    layers: int
    width: int
    heads: int
    query: int
    """Width of all query heads together; 0 where nothing is attended to."""
    key: int
    """Width of all key heads together, and of all value heads."""
    mlp: int
    """Inner width of the feed-forward layers that a token passes in a block."""
    vocabulary: int
    tied: bool
    """The head is the embedding."""

    @property
    def used(self) -> int:
        """Weights of the blocks' matrices that a token is multiplied with."""
        return self.matrices - self.idle

    @property
    def head(self) -> int:
        """Weights of the head, and of the embedding."""
        return self.vocabulary * self.width

    def adapter(self, config: LoRAConfig) -> int:
        """Parameters of a LoRA adapter: rank (inputs + outputs) for every linear layer that gets one."""
        chosen = [(i, o) for name, i, o in self.linear if not config.targets or name in config.targets]
        return config.rank * sum(inputs + outputs for inputs, outputs in chosen)


def shape_of(model: PreTrainedModel) -> Shape:
    """The shape of a model, which may be on the meta device."""
    config = model.config
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    outside = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    outside |= {id(p) for p in head.parameters()}  # pyright: ignore[reportOptionalMemberAccess]
    convolved = {id(p) for m in model.modules() if isinstance(m, nn.Conv1d) for p in m.parameters()}
    inside = [p for p in model.parameters() if p.dim() > 1 and id(p) not in outside]
    linear = tuple(
        (path.split(".")[-1], module.in_features, module.out_features)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    # Not every architecture has these: older ones share no key heads and split the width evenly.
    width, heads = config.hidden_size, _most(config, "num_attention_heads")
    head_width = _most(config, "head_dim") or width // max(1, heads)
    chosen, mlp = _most(config, "num_experts_per_tok", "moe_k"), _most(config, "intermediate_size")
    routed = [p for p in inside if chosen and p.dim() == 3 and id(p) not in convolved]  # [expert, ...]
    if routed:
        mlp = max(mlp, chosen * (_most(config, "moe_intermediate_size") or mlp))
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        linear=linear,
        matrices=sum(p.numel() for p in inside),
        idle=sum(p.numel() // len(p) * max(0, len(p) - chosen) for p in routed),
        largest=max(p.numel() for p in inside),
        layers=config.num_hidden_layers,
        width=width,
        heads=heads,
        query=heads * head_width,
        key=(_most(config, "num_key_value_heads") or heads) * head_width,
        mlp=mlp or 4 * width,
        vocabulary=config.vocab_size,
        tied=head.weight is embedding.weight,  # pyright: ignore[reportOptionalMemberAccess]
    )


def _most(config: PreTrainedConfig, *names: str) -> int:
    """The first of these settings that a configuration has, of a layer where it has most; 0 without any."""
    for name in names:
        try:
            value = getattr(config, name, None)
        except RuntimeError:  # unlike from layer to layer
            value = [getattr(layer, name) for layer in config.per_layer_config]
        if value:
            return max(value) if isinstance(value, list) else value
    return 0


@dataclass(slots=True)
class Work:
    """Operations of the forward and backward passes of this process's models, what gradient checkpointing repeats left
    out: what model FLOP use counts (PaLM, arXiv 2204.02311, appendix B)."""

    flops: float = 0.0


DONE = Work()
_SHAPES: WeakKeyDictionary[PreTrainedModel, Shape] = WeakKeyDictionary()


def count_pass(model: PreTrainedModel, tokens: int, squares: int, asked: int) -> None:
    """Add a pass over `tokens` tokens of rows whose squared lengths sum to `squares`, with `asked` rows of logits.

    Forward, and where gradients are on also backward: twice the work of forward, or once where the weights are frozen
    and an adapter learns.
    """
    if model not in _SHAPES:
        _SHAPES[model] = shape_of(model)
    s, head = _SHAPES[model], _head(model)
    forward = 2 * tokens * s.used + 2 * s.layers * s.query * squares + 2 * asked * s.head
    again = 0 if not torch.is_grad_enabled() else 2 if head.weight.requires_grad else 1
    DONE.flops += (1 + again) * forward


def _head(model: PreTrainedModel) -> Any:
    return model.get_output_embeddings()


PEAKS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H800": 989.0,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
    "RTX 4090": 165.0,
}
"""10^12 operations a second of dense bfloat16 products, by what a card's name has in it; NVIDIA's data sheets."""
MEASURED = 8192
"""Rows of the square matrices whose product measures a card that is not listed."""


def peak_tflops(device: torch.device) -> tuple[float, str]:
    """(a GPU's peak in bfloat16, in 10^12 operations a second, how it is known); 0 for a CPU."""
    if device.type != "cuda":
        return 0.0, ""
    name = torch.cuda.get_device_name(device)
    for known, tflops in PEAKS.items():
        if known in name:
            return tflops, f"as NVIDIA says of {known}"
    return measured_tflops(device, MEASURED), f"measured: {MEASURED} rows squared on {name}"


def measured_tflops(device: torch.device, rows: int, repeats: int = 5) -> float:
    """10^12 operations a second of a bfloat16 product of two square matrices on a GPU, float32 on a CPU."""
    cuda = device.type == "cuda"
    matrix = torch.ones(rows, rows, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
    seconds = []
    for _ in range(repeats):
        if cuda:
            torch.cuda.synchronize(device)
        begun = time.perf_counter()
        torch.mm(matrix, matrix)
        if cuda:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return 2 * rows**3 / min(seconds) / 1e12
