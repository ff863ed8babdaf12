"""Attention over packed tokens and over a cache, in the place of transformers' `sdpa`.

Packed tokens have no padding, and rows that begin with the same prompt share it: everything but attention itself
works on each token once. Attention sets the rows out again, for a moment, one layer at a time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "openprime"
PACKS = frozenset(("llama", "mistral", "qwen2", "qwen3", "phi", "gemma2", "cohere", "granite", "gpt2"))
"""Architectures (`model_type`) whose layers mix tokens in attention alone, and hand it its keyword arguments."""


@dataclass(frozen=True, slots=True)
class Packing:
    """N tokens of a batch [B, T] in one row. Padding, and what nothing is predicted from, is left out."""

    token_ids: Tensor  # [1, N]
    positions: Tensor  # [1, N]: of each token in its own row
    # Each [b, t]: places of rows of about one length; any place where a row has ended.
    rows: tuple[Tensor, ...]
    back: Tensor  # [N]: where each token stands among the tokens of `rows`, flattened and put together
    places: Tensor  # [M]: of the tokens before the M True places of the mask, row by row


def use_own_attention(model: PreTrainedModel) -> None:
    """Put `attention` in the place of `sdpa`; anything else stays."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


def packs(model: PreTrainedModel) -> bool:
    """Whether the model may be given packed tokens."""
    use_own_attention(model)
    return model.config._attn_implementation == NAME and model.config.model_type in PACKS


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """query [B, H, T, D], key and value [B, H', T', D]: attention as transformers calls it; [B, T, H, D]."""
    if packing is not None:
        return _packed(module, query, key, value, packing, **kwargs), None
    one_mask = attention_mask is None or attention_mask.shape[1] == 1
    plain = one_mask and kwargs.get("position_bias") is None
    if query.shape[2] > 1 or query.shape[1] == key.shape[1] or not plain:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return _shared_heads(query, key, value, attention_mask, kwargs.get("scaling")), None


def _packed(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, packing: Packing, **kwargs
) -> Tensor:
    """Causal attention within each row; query [1, H, N, D], and the result [1, N, H, D]."""
    dtype = query.dtype
    # The bfloat16 kernel of a CPU is slower than the float32 one, four times in the backward pass.
    wide = torch.float32 if query.device.type == "cpu" else dtype
    flat = [x[0].transpose(0, 1).flatten(1).to(wide) for x in (query, key, value)]  # [N, H * D]
    heads = [x.shape[1] for x in (query, key, value)]
    found = []
    for rows in packing.rows:
        window = kwargs.get("sliding_window")
        mask = _band(rows.shape[1], window, rows.device) if window and window < rows.shape[1] else None
        q, k, v = (
            embedding(rows, x).unflatten(-1, (n, -1)).transpose(1, 2)
            for x, n in zip(flat, heads, strict=True)
        )
        out, _ = sdpa_attention_forward(module, q, k, v, mask, **kwargs)  # [b, t, H, D]
        found.append(out.flatten(2).flatten(0, 1))
    together = found[0] if len(found) == 1 else torch.cat(found)
    return embedding(packing.back, together).unflatten(-1, (heads[0], -1)).to(dtype)[None]


def _band(width: int, window: int, device: torch.device) -> Tensor:
    """A causal mask that sees `window` tokens, its own among them, [1, 1, T, T]."""
    t = torch.arange(width, device=device)
    behind = t[:, None] - t
    return ((behind >= 0) & (behind < window))[None, None]


def _shared_heads(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """Attention of one position [B, H, 1, D] without copies of the cache where query heads share a key head.

    The heads that share a key head stand as positions of that head: each sees all keys, as it did.
    Transformers repeats keys and values for every query head instead.
    """
    rows, heads, _, width = query.shape
    grouped = query.reshape(rows, key.shape[1], -1, width)
    found = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return found.reshape(rows, 1, heads, -1)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
