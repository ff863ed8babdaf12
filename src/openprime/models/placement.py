"""Where models are kept, and how precisely they multiply."""

import contextlib
import importlib.util
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from openprime.config import DeviceConfig, RunConfig
from openprime.ranks import world
from openprime.types import UserError

SLOW = "dtype=bfloat16: this CPU has no instructions for it; float32, which auto is on a CPU, is several times faster"


@dataclass(frozen=True, slots=True)
class Placement:
    """Device and precision of the models of a run."""

    device: torch.device = torch.device("cpu")  # noqa: RUF009
    bfloat16: bool = False
    """The blocks multiply in bfloat16. Weights, optimiser, logits and log-probabilities are float32 (trap 11)."""
    cpu_offload: bool = False
    """Sharded weights stay in the host's memory; the GPU holds the block at work."""
    shard: bool = False
    """A single process keeps its weights as several ranks do."""
    replicas: int = 1
    """Copies of a model among the ranks, each in shares over its part of them."""
    liger: bool = False
    """Models compute with Liger's kernels (`models/liger.py`)."""

    @classmethod
    def of(cls, config: DeviceConfig) -> "Placement":
        """What a command's settings ask for.

        Raises UserError for a device that is not there, for copies that cannot be shared evenly, and for Liger's
        kernels without it or on a CPU.
        """
        device = pick_device(config.device)
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        bfloat16 = config.dtype == "bfloat16" or (config.dtype == "auto" and fast)
        if not isinstance(config, RunConfig):
            return cls(device, bfloat16)
        liger = config.kernels == "liger"
        if liger and device.type != "cuda":
            raise UserError(f"kernels=liger needs a GPU, and device is {device.type}: set kernels=torch")
        if liger and importlib.util.find_spec("liger_kernel") is None:
            raise UserError(
                "kernels=liger, but liger-kernel is not installed: pip install 'openprime[liger]', or set kernels=torch"
            )
        parallel = config.parallel
        parallel.shares(world())
        return cls(device, bfloat16, parallel.cpu_offload, parallel.shard, parallel.replicas, liger)

    @property
    def notes(self) -> list[str]:
        """What a user should know of it."""
        slow = self.device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return [SLOW] if self.bfloat16 and slow else []

    def autocast(self) -> AbstractContextManager:
        """Forward passes within it multiply as `bfloat16` says."""
        if self.bfloat16:
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()


def pick_device(name: str) -> torch.device:
    """`auto` is cuda where there is one; of several ranks on a machine each has its own."""
    if name in ("auto", "cuda") and torch.cuda.is_available() and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but PyTorch sees no CUDA device: set device=cpu or auto")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device={name}: no such device: set auto, cpu or cuda") from error
