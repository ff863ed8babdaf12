"""Products of float32 matrices on a CPU, by oneDNN.

torch's own come from MKL, which leaves half of what AVX-512 can do unused on a processor that is not Intel's:
`python benchmarks/products.py`. Other precisions, and devices, multiply as torch does.
"""

from typing import Any

import torch
from torch import Tensor, nn

LARGE = 2**17
"""Numbers of a weight from which on oneDNN multiplies: with a smaller one a product takes less time than its start."""


def use_onednn(model: nn.Module) -> None:
    """Let a model's linear layers multiply by `linear`, in place."""
    for layer in model.modules():
        if type(layer) is nn.Linear:
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
