"""Takes over weights in vLLM's workers; loaded by vLLM itself, here or in a server (`--worker-extension-cls`)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Weights:
    """Methods for vLLM's worker, in a process that runs vLLM."""

    def take_weights(self: Any, weights: str | Iterable[tuple[str, Tensor]]) -> None:
        """New weights from a folder of safetensors files, or from (Hugging Face name, tensor) pairs."""
        if isinstance(weights, str):
            self.model_runner.reload_weights(weights_path=weights)
        else:
            self.model_runner.reload_weights(weights_iterator=iter(weights))
        model = self.model_runner.get_model()
        head = model.lm_head
        # On a CPU the head's product uses a packed copy, which reloading tied embeddings leaves as it was.
        if head.weight.device.type == "cpu":
            with torch.no_grad():
                head.quant_method.process_weights_after_loading(head)
