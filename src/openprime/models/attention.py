"""Attention over packed tokens and over a cache, in the place of transformers' `sdpa`.

Packed tokens have no padding, and rows that begin with the same prompt share it: everything but attention itself
works on each token once. On a GPU in half precision one call of `varlen_attn` a layer reads them as they are, beside a
copy of the keys and values; elsewhere attention sets the rows out again, for a moment, one layer at a time.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import embedding, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "openprime"
PACKS = frozenset(("llama", "mistral", "qwen2", "qwen3", "phi", "gemma2", "cohere", "granite", "gpt2"))
"""Architectures (`model_type`) whose layers mix tokens in attention alone, and hand it its keyword arguments."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Rows set out in blocks of about one length, padded: what `sdpa` takes."""

    rows: tuple[
        Tensor, ...
    ]  # each [b, t]: places of rows' tokens among the N; any place where a row has ended
    back: Tensor  # [N]: where each token stands among the tokens of `rows`, flattened and put together


@dataclass(frozen=True, slots=True)
class Sequences:
    """Rows one behind the other, without padding: what `varlen_attn` takes.

    Of R rows each is the first to bring some of the N tokens: its own, and its prompt where no row before had it. They
    stand together, so that queries need no copy. A row sees its whole prompt.
    """

    keys: Tensor | None  # [K]: places of the tokens that each row sees; None where they are the N, in order
    new: Tensor  # [R + 1] int32: tokens that the rows before bring
    seen: Tensor  # [R + 1] int32: tokens that the rows before see
    most_new: int
    most_seen: int


@dataclass(frozen=True, slots=True)
class Packing:
    """N tokens of a batch [B, T] in one row. Padding, and what nothing is predicted from, is left out."""

    token_ids: Tensor  # [1, N]
    positions: Tensor  # [1, N]: of each token in its own row
    rows: Blocks | Sequences
    """How attention finds them again."""
    places: Tensor  # [M]: of the tokens before the M True places of the mask, row by row


_OWN: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def use_own_attention(model: PreTrainedModel) -> bool:
    """Put `attention` in the place of `sdpa`; True where it is there now.

    Only where layers call it by its name, with keys and values alone: others ask for the name `sdpa` in their own
    code, and do something else where it has another (Falcon, sparse attention with an index).
    """
    if model not in _OWN:
        config = model.config
        _OWN[model] = (
            config._attn_implementation == "sdpa"
            and bool(model._supports_attention_backend)
            and only_attention(model)
        )
        if _OWN[model]:
            model.set_attn_implementation(NAME)
    return _OWN[model]


def only_attention(model: PreTrainedModel) -> bool:
    """True where keys and values are all that a model keeps of past tokens: no state of a recurrence or convolution."""
    layers = DynamicCache(config=model.config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def chooses_tokens(model: PreTrainedModel) -> bool:
    """True where layers pick the tokens that they attend to, by an index of their own."""
    layers = DynamicCache(config=model.config).layers
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    return any(type(layer) not in plain and not isinstance(layer, LinearAttentionLayer) for layer in layers)


def packs(model: PreTrainedModel) -> bool:
    """True where the model may be given packed tokens."""
    return use_own_attention(model) and model.config.model_type in PACKS


def takes_sequences(model: PreTrainedModel, device: torch.device) -> bool:
    """True where `varlen_attn` attends for a model that packs: in half precision (autocast) on an NVIDIA GPU.

    Its kernels are those of flash attention, from Ampere on, for heads of up to 256 numbers, a multiple of 8. They know
    sliding windows and shared key heads, and no soft caps.
    """
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return (
        device.type == "cuda"
        and torch.is_autocast_enabled(device.type)
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and width % 8 == 0
        and width <= 256
        and not getattr(config, "attn_logit_softcapping", None)
    )


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
        if isinstance(packing.rows, Sequences):
            return _in_sequences(query, key, value, packing.rows, **kwargs), None
        return _in_blocks(module, query, key, value, packing.rows, **kwargs), None
    one_mask = attention_mask is None or attention_mask.shape[1] == 1
    plain = one_mask and kwargs.get("position_bias") is None and kwargs.get("softcap") is None
    if query.shape[2] > 1 or query.shape[1] == key.shape[1] or not plain:
        return _set_out(module, query, key, value, attention_mask, **kwargs), None
    return _shared_heads(query, key, value, attention_mask, kwargs.get("scaling")), None


def _in_sequences(query: Tensor, key: Tensor, value: Tensor, rows: Sequences, **kwargs) -> Tensor:
    """Causal attention within each row; query [1, H, N, D], and the result [1, N, H, D] in autocast's precision."""
    assert kwargs.get("softcap") is None
    kind = query.device.type
    half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    q, k, v = (x[0].transpose(0, 1).to(half) for x in (query, key, value))  # [N, H, D]
    if rows.keys is not None:
        k, v = (embedding(rows.keys, x.flatten(1)).unflatten(-1, x.shape[1:]) for x in (k, v))  # [K, H', D]
    window = kwargs.get("sliding_window")
    found = varlen_attn(
        q,
        k,
        v,
        rows.new,
        rows.seen,
        rows.most_new,
        rows.most_seen,
        scale=kwargs.get("scaling"),
        # Tokens to the left and to the right of a query's own place, where its row's last query stands at its last key.
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(found, Tensor)  # not with its log-sum-exp
    return found[None]


def _in_blocks(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, **kwargs
) -> Tensor:
    """Causal attention within each row; query [1, H, N, D], and the result [1, N, H, D]."""
    dtype = query.dtype
    # The bfloat16 kernel of a CPU is slower than the float32 one, four times in the backward pass; within autocast
    # `sdpa` would be cast to it again.
    on_cpu = query.device.type == "cpu"
    wide = torch.float32 if on_cpu else dtype
    flat = [x[0].transpose(0, 1).flatten(1).to(wide) for x in (query, key, value)]  # [N, H * D]
    heads = [x.shape[1] for x in (query, key, value)]
    found = []
    for rows in blocks.rows:
        window = kwargs.get("sliding_window")
        mask = _band(rows.shape[1], window, rows.device) if window and window < rows.shape[1] else None
        q, k, v = (
            embedding(rows, x).unflatten(-1, (n, -1)).transpose(1, 2)
            for x, n in zip(flat, heads, strict=True)
        )
        with torch.autocast("cpu", enabled=False) if on_cpu else nullcontext():
            out = _set_out(module, q, k, v, mask, **kwargs)  # [b, t, H, D]
        found.append(out.flatten(2).flatten(0, 1))
    together = found[0] if len(found) == 1 else torch.cat(found)
    return embedding(blocks.back, together).unflatten(-1, (heads[0], -1)).to(dtype)[None]


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


def _set_out(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs
) -> Tensor:
    """Attention of rows that are set out: `sdpa`, which leaves soft caps out, or `_capped`; [B, T, H, D]."""
    if (cap := kwargs.get("softcap")) is not None:
        return _capped(query, key, value, mask, cap, kwargs["scaling"])
    if query.device.type == "cuda" and query.dtype == torch.float32 and query.shape[1] != key.shape[1]:
        # The one float32 kernel of a GPU that is not quadratic in memory takes no shared heads before torch 2.14.
        shared = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(shared, 1) for x in (key, value))
        kwargs.setdefault("is_causal", getattr(module, "is_causal", True))
        module = nn.Module()  # one without groups of heads
    return sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]


def _capped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, cap: float, scaling: float
) -> Tensor:
    """Attention whose scores s become cap * tanh(s / cap) (Gemma 2, arXiv 2408.00118).

    mask [B, 1, T, T'], False where a token is not seen; None: all that came before are. Returns [B, T, H, D].
    """
    shared = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(shared, 1) for x in (key, value))
    scores = cap * (query @ key.transpose(-1, -2) * (scaling / cap)).tanh()  # [B, H, T, T']
    if mask is None:
        new, seen = scores.shape[-2:]
        mask = torch.ones(new, seen, dtype=torch.bool, device=scores.device).tril(seen - new)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value).transpose(1, 2)


# cuDNN's kernel, which a recent GPU would take, builds and keeps a plan for every new shape: tens of milliseconds each,
# and almost every block of a micro-batch, and every token that is decoded, has a shape of its own.
torch.backends.cuda.enable_cudnn_sdp(False)
AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
