"""What the host reads of tensors that stand for a GPU's: each read waits until the GPU has done all its work."""

from collections import Counter
from dataclasses import fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from openprime.types import Batch

READS = {
    "item",
    "tolist",
    "cpu",
    "numpy",
    "nonzero",
    "masked_select",
    "unique",
    "__bool__",
    "__int__",
    "__float__",
}
READS |= {"__index__", "argwhere", "where"}
aten = torch.ops.aten
DISPATCHED = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.unique_consecutive.default,
}


class OnDevice(Tensor):
    """A tensor that notes when it is read; what is made of it is one too, but for its copy on the host."""

    found: ClassVar[Counter[str]] = Counter()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        indices = args[1] if name in ("__getitem__", "__setitem__") else ()
        indices = indices if isinstance(indices, tuple) else (indices,)
        masked = any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)
        if masked or (name in READS and (name != "where" or len(args) == 1)):
            cls.found[name] += 1
        made: Any = super().__torch_function__(func, types, args, kwargs or {})
        return made.as_subclass(Tensor) if name == "cpu" else made


def on_device(batch: Batch) -> Batch:
    """The batch with columns that note when they are read."""
    columns = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(batch, **{k: v.as_subclass(OnDevice) for k, v in columns.items() if v is not None})


class ReadsWithin(TorchDispatchMode):
    """Counts operations that give the host something, on whatever tensors, of forward and backward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = (
            args[1] if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default) else ()
        )
        if func in DISPATCHED or any(mask is not None and mask.dtype == torch.bool for mask in masks):
            self.found[str(func)] += 1
        return func(*args, **kwargs or {})
