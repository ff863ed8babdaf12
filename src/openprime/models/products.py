"""Products of matrices on a CPU, by oneDNN: large ones in float32, and of few rows in bfloat16.

torch's own in float32 come from MKL, which leaves half of what AVX-512 can do unused on a processor that is not
Intel's: `python benchmarks/products.py`. Whatever else there is multiplies as torch does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

LARGE = 2**17
"""Numbers of a weight from which on oneDNN multiplies: with a smaller one a product takes less time than its start."""
ROWS = 32
"""Rows that oneDNN's own layout of a weight is made for."""
MANY = 256
"""Rows that are multiplied with it at a time: of more the layout is slow."""


def use_onednn(model: nn.Module) -> None:
    """Let those of a model's linear layers that are on a CPU multiply by `linear`, in place."""
    for layer in model.modules():
        if type(layer) is nn.Linear and layer.weight.device.type == "cpu":
            layer.__class__ = Linear


class Linear(nn.Linear):
    """torch's, by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """input @ weight.T + bias."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K] @ weight.T [K, N] + bias [N], differentiable: `nn.functional.linear`."""
    if torch.is_autocast_enabled("cpu") or not _by_onednn(x, weight):
        return nn.functional.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return _product(x, weight, bias)
    found: Any = _Linear.apply(x.flatten(0, -2), weight, bias)
    return found.unflatten(0, x.shape[:-1])


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a [M, K] @ b [K, N], without gradient."""
    return _product(a, b.t()) if _by_onednn(a, b) else a @ b


def _by_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN multiplies two matrices, of which the second may be a weight."""
    wide = a.dtype == b.dtype == torch.float32 and a.device.type == b.device.type == "cpu"
    return wide and a.numel() > 0 and b.numel() >= LARGE and torch.backends.mkldnn.is_available()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx, *grads):
        (grad,), (x, weight) = grads, ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t()) if need_x else None,
            _product(grad.t(), x.t()) if need_weight else None,
            grad.sum(0) if need_bias else None,
        )


@contextmanager
def packed_products(model: PreTrainedModel) -> Iterator[None]:
    """Let a CPU's linear layers multiply by copies of their weights in oneDNN's layout: few rows take half the time.

    For passes within bfloat16's autocast and without gradients: bfloat16 copies of the blocks' weights and a float32
    one of the head's.
    """
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        yield
        return
    head, changed = model.get_output_embeddings(), []
    for layer in model.modules():
        if type(layer) is not nn.Linear and type(layer) is not Linear:
            continue
        dtype = torch.float32 if layer is head else torch.bfloat16
        weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().to(dtype), ROWS)
        bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        setattr(layer, "forward", partial(_packed_product, layer, weight, bias, dtype))  # noqa: B010
        changed.append(layer)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


def _packed_product(
    layer: nn.Linear, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, x: Tensor
) -> Tensor:
    """x @ weight.T + bias in `dtype`, where the layer would have computed in it."""
    own = torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype
    if own != dtype or not x.numel():
        return linear(x, layer.weight, layer.bias)
    parts = [_product(part, weight, bias) for part in x.to(dtype).flatten(0, -2).split(MANY)]
    found = parts[0] if len(parts) == 1 else torch.cat(parts)
    return found.unflatten(0, x.shape[:-1])
