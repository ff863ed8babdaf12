"""What engines outside the trainer's model have in common."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from openprime.types import NonFiniteError, Response


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
