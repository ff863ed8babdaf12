"""Takes over weights in vLLM's workers; loaded by vLLM itself, here or in a server (`--worker-extension-cls`)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Weights:
    """Methods for vLLM's worker, in a process that runs vLLM."""

    def take_weights(self: Any, weights: str | Iterable[tuple[str, Tensor]]) -> None:
        """New weights from a folder of safetensors files, or from (Hugging Face name, tensor) pairs."""
        # The worker's own call: it sets what some layers ask for when their weights are processed.
        if isinstance(weights, str):
            self.reload_weights(weights_path=weights)
        else:
            self.reload_weights(weights_iterator=iter(weights))
        # On a CPU the head's product uses a packed copy, which reloading tied embeddings leaves as it was. Models whose
        # head is always the embedding (Gemma 2, Cohere) have none of their own.
        head = getattr(self.model_runner.get_model(), "lm_head", None)
        if head is not None and head.weight.device.type == "cpu":
            with torch.no_grad():
                head.quant_method.process_weights_after_loading(head)
