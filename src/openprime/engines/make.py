"""The engine that a configuration asks for."""

from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from openprime.config import EngineConfig, FolderConfig, TrainingServerConfig
from openprime.engines.server import ServerEngine
from openprime.engines.transformers import TransformersEngine
from openprime.engines.vllm import VLLMEngine, start_vllm
from openprime.models.hub import end_tokens, load_model, most_positions, named_end_tokens, pick_device
from openprime.types import Engine

Weights = Callable[[], Iterable[tuple[str, Tensor]]]
"""The present weights, under their Hugging Face names."""


def make_engine(
    config: EngineConfig,
    run: FolderConfig,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    sequences: int,
    longest: int,
    policy: PreTrainedModel | None = None,
    weights: Weights | None = None,
) -> Engine:
    """An engine that samples from the model `name`.

    Args: sequences: decoded at a time. longest: prompt and response together, in tokens. policy: the model
    that is trained, if one is; then `weights` gives its weights at any time.
    """
    device, bfloat16 = pick_device(run.device), run.dtype == "bfloat16"
    if config.kind == "transformers":
        model = policy or load_model(name, device)
        return TransformersEngine(model, tokenizer, end_tokens(model, tokenizer), sequences, bfloat16)
    ends, longest = named_end_tokens(name, tokenizer), min(longest, most_positions(name))
    if config.kind == "server":
        out = Path(run.out)
        shared = config.shared_folder if isinstance(config, TrainingServerConfig) else ""
        folder = Path(shared) / out.name if shared else out / "weights"
        return ServerEngine(
            config.urls, name, tokenizer, ends, sequences, longest, folder, config.timeout, bfloat16
        )

    def start():
        return start_vllm(
            name,
            device,
            bfloat16,
            sequences,
            longest,
            config.gpu_memory,
            config.tensor_parallel,
            sleeps=weights is not None,
        )

    return VLLMEngine(start, tokenizer, ends, config.timeout, weights)
