"""Shared by engines: responses from tokens, seeds of prompts, files of weights."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from openprime.types import NonFiniteError, Response

SHARD = 4 * 2**30
"""Bytes in one file of weights."""


def to_response(
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    tokenizer: PreTrainedTokenizerBase,
    end_tokens: frozenset[int],
) -> Response:
    """Sampled tokens as a response. Raises NonFiniteError where a log-probability is not finite."""
    if not np.isfinite(logprobs).all():
        raise NonFiniteError("the policy's logits are not finite")
    return Response(
        token_ids=tuple(token_ids),
        logprobs=tuple(logprobs),
        text=str(tokenizer.decode(list(token_ids), skip_special_tokens=True)),
        truncated=token_ids[-1] not in end_tokens,
    )


def prompt_seed(seed: int, place: int) -> int:
    """The seed of one prompt's responses; its low 32 bits differ too, more than which a CPU's generator ignores."""
    return int(np.random.SeedSequence([seed, place]).generate_state(1, np.uint64)[0] >> 2)


def write_weights(
    named_tensors: Iterable[tuple[str, Tensor]], folder: Path, dtype: torch.dtype | None = None
) -> None:
    """Safetensors files of at most SHARD bytes or one tensor each; `dtype` None: as they are."""
    shard: dict[str, Tensor] = {}
    files = 0

    def write() -> None:
        save_file(shard, folder / f"model-{files:05d}.safetensors", {"format": "pt"})

    for name, tensor in named_tensors:
        held = tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
        if shard and sum(t.nbytes for t in shard.values()) + held.nbytes > SHARD:
            write()
            files, shard = files + 1, {}
        shard[name] = held
    write()
