"""Norms, rotary positions and gated feed-forward layers as single kernels, by liger-kernel (arXiv 2410.10989)."""

from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel

from openprime.types import UserError

KINDS = frozenset(("llama", "mistral", "qwen2", "qwen3", "gemma2", "granite"))
"""Architectures (`model_type`) whose log-probabilities and gradients with these kernels are compared with those
without, in tests/models/test_liger.py."""


def use_liger(name: str, model: PreTrainedModel) -> None:
    """Let a model compute with Liger's kernels, in place; its weights keep their names.

    The rotation is its architecture's, of every model in this process. The head stays ours (trap 11). Raises UserError
    for an architecture that is not among KINDS.
    """
    if (kind := model.config.model_type) not in KINDS:
        raise UserError(
            f"{name}: kernels=liger is for {', '.join(sorted(KINDS))}, not for a {kind} model: set kernels=torch"
        )
    apply_liger_kernel(model, {"cross_entropy": False, "fused_linear_cross_entropy": False})
