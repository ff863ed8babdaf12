"""Token log-probabilities from float32 logits in bounded memory, on packed tokens where the model allows."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from openprime.models.attention import Blocks, Packing, Sequences, packs, takes_sequences
from openprime.models.products import linear, matmul
from openprime.models.shape import count_pass

BLOCK_ELEMENTS = 2**22
"""Logits held at a time: 16 MiB in float32, which stay in a CPU's cache."""
KEPT_ELEMENTS = 2**26
"""Logits that the forward pass leaves to the backward pass, 256 MiB in float32; the others are made again."""
CHUNK_ELEMENTS = 2**27
"""Logits held at a time on a GPU, 512 MiB in float32: of many tokens and the whole vocabulary."""
SIMILAR = 0.75
"""Rows are attended together when the shortest is at least this share of the longest."""


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of about one length that go through a model together, padded on the right."""

    rows: Tensor  # [b]
    width: int
    at: Tensor  # [n]: of each place that is asked for, its row of the block
    before: Tensor  # [n]: and the column of the token before it
    own: Tensor  # [n]: its number among all N


@dataclass(frozen=True, slots=True)
class Layout:
    """How a block of rows [B, T] goes through a model. Made on the host, for reading it from a GPU means to wait."""

    at: Tensor  # [N]: the places that are asked for, in the flattened rows
    packing: Packing | None
    blocks: tuple[Block, ...]
    """Where there is no packing."""
    back: Tensor  # [N]: the order of the places among those of the blocks, one after the other
    tokens: int
    """That go through the model, padding left out."""
    squares: int
    """Of the rows' lengths, summed: twice the pairs of tokens that attention works on."""


def lay_out(
    model: PreTrainedModel, token_ids: Tensor, mask: Tensor, device: torch.device | None = None
) -> Layout:
    """The layout, on `device` or their own, of rows token_ids and mask [B, T], which are best on the host.

    Made within the autocast that the model will compute in, for attention depends on it.
    """
    device = device or token_ids.device
    at = mask.flatten().nonzero()[:, 0]
    ends = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1).tolist()
    squares = sum(max(0, end - 1) ** 2 for end in ends)  # nothing is predicted from the last token
    if packs(model) and len(at):
        packing = pack(token_ids, mask, device, takes_sequences(model, device))
        return Layout(sent(at, device), packing, (), at[:0], packing.token_ids.shape[1], squares)
    # Padded rows, those of about one length together; they need no attention mask: nothing looks to the right.
    together = similar_lengths(ends) or [[0]]  # one row where nothing is asked for: all passes leave a graph
    if isinstance(model, FSDPModule):  # as many passes on every rank
        together = [list(range(len(ends)))]
    number = (mask.flatten().cumsum(0) - 1).view_as(mask)  # of each place among the N
    blocks, order = [], [at[:0]]
    for block in together:
        rows, width = torch.tensor(block, device=mask.device), max(1, *(ends[row] for row in block))
        own, columns = mask[rows, :width].nonzero(as_tuple=True)
        order.append(number[rows[own], columns])
        parts = (sent(x, device) for x in (rows, own, columns - 1, order[-1]))
        blocks.append(Block(next(parts), width, *parts))
    back = sent(torch.cat(order).argsort(), device)
    return Layout(sent(at, device), None, tuple(blocks), back, sum(max(0, end - 1) for end in ends), squares)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for it."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def token_logprobs(
    model: PreTrainedModel,
    token_ids: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
    layout: Layout | None = None,
) -> Tensor:
    """log p(token t | tokens before t) at temperature `temperature`, in nats, where `mask` is True; 0 elsewhere.

    Args: token_ids [B, T], right-padded; mask [B, T], False at position 0. Within autocast the transformer
    multiplies in bfloat16; logits and log-softmax are float32 all the same (trap 11). `layout`: that of these rows,
    where it has been made.
    Returns [B, T] float32, differentiable. Of a sharded model every rank must call it.
    """
    layout = layout or lay_out(model, token_ids, mask)
    own = token_ids.flatten()[layout.at][:, None]
    _, values = _response_logprobs(model, token_ids, layout, own, 0, temperature)
    return _placed(values, mask, layout)[..., 0]


def candidate_logprobs(
    model: PreTrainedModel,
    token_ids: Tensor,
    mask: Tensor,
    candidates: Tensor,
    temperature: float = 1.0,
    layout: Layout | None = None,
) -> Tensor:
    """log p(candidate | tokens before t) of candidates [B, T, c] where `mask` is True, 0 elsewhere, [B, T, c].

    As `token_logprobs`, which has one candidate, the token itself. Memory grows with the candidates and not with the
    vocabulary.
    """
    layout = layout or lay_out(model, token_ids, mask)
    _, values = _response_logprobs(
        model, token_ids, layout, candidates.flatten(0, 1)[layout.at], 0, temperature
    )
    return _placed(values, mask, layout)


@torch.no_grad()
def likeliest_logprobs(
    model: PreTrainedModel,
    token_ids: Tensor,
    mask: Tensor,
    likeliest: int,
    temperature: float = 1.0,
    layout: Layout | None = None,
) -> tuple[Tensor, Tensor]:
    """Candidates and their log-probabilities, both [B, T, 1 + k]: token t itself, then the k likeliest, in order.

    k is `likeliest`, or the vocabulary's size where that is less. Arguments as in `token_logprobs`; in one forward
    pass, without gradient.
    """
    layout = layout or lay_out(model, token_ids, mask)
    own = token_ids.flatten()[layout.at][:, None]
    ids, values = _response_logprobs(model, token_ids, layout, own, likeliest, temperature)
    return _placed(ids, mask, layout), _placed(values, mask, layout)


def _placed(values: Tensor, mask: Tensor, layout: Layout) -> Tensor:
    """[N, c] at the N places of a mask [B, T], 0 elsewhere, [B, T, c]."""
    whole = values.new_zeros(mask.numel(), values.shape[1])
    return whole.index_copy(0, layout.at, values).view(*mask.shape, -1)


def _response_logprobs(
    model: PreTrainedModel, token_ids: Tensor, layout: Layout, *args: Any
) -> tuple[Tensor, Tensor]:
    """`whole_logprobs` of a model whose weights may be in shares."""
    count_pass(model, layout.tokens, layout.squares, len(layout.at))
    if isinstance(model, FSDPModule):
        gathered: Any = model
        return gathered.response_logprobs(token_ids, layout, *args)
    return whole_logprobs(model, token_ids, layout, *args)


def whole_logprobs(
    model: PreTrainedModel, token_ids: Tensor, layout: Layout, ids: Tensor, likeliest: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Tokens and their log-probabilities at the N places of a layout of rows [B, T]: ids [N, c] and [N, c].

    With `likeliest` the ids get so many columns more, and there is no gradient. For a model whose embeddings, last
    norm and head are whole.
    """
    if layout.packing is not None:
        inputs, places = packed_inputs(layout.packing), (0, layout.packing.places)
        return _head_logprobs(model, inputs, places, ids, likeliest, temperature)
    parts = []
    for block in layout.blocks:
        inputs = {"input_ids": token_ids[block.rows, : block.width], "use_cache": False}
        places = (block.at, block.before)
        parts.append(_head_logprobs(model, inputs, places, ids[block.own], likeliest, temperature))
    ids, values = (torch.cat(column) for column in zip(*parts, strict=True))
    return ids[layout.back], values[layout.back]


def _head_logprobs(
    model: PreTrainedModel, inputs: dict, places: tuple, ids: Tensor, likeliest: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """`whole_logprobs` of one forward pass; `places` are those of the tokens before."""
    if has_plain_head(model):
        hidden = model.base_model(**inputs).last_hidden_state[places]  # [N, D]
        head: Any = model.get_output_embeddings()
        narrow = torch.is_autocast_enabled(hidden.device.type)
        with torch.autocast(hidden.device.type, enabled=False):
            if likeliest:
                return with_likeliest(
                    hidden.float(), head.weight, head.bias, ids, likeliest, temperature, narrow
                )
            return ids, selected_logprobs(hidden.float(), head.weight, head.bias, ids, temperature, narrow)
    with float32_head(model):
        logits = model.forward(**inputs).logits[places].float() / temperature  # [N, V]
    if likeliest:
        ids = torch.cat([ids, logits.topk(min(likeliest, logits.shape[-1])).indices], -1)
    return ids, logits.log_softmax(-1).gather(-1, ids)


def pack(
    token_ids: Tensor, mask: Tensor, device: torch.device | None = None, sequences: bool = False
) -> Packing:
    """Pack all tokens that come before a True of `mask`, token_ids and mask [B, T], on `device` or their own.

    What comes before a row's first True is its prompt; what several prompts begin with is packed once. At least one row
    has a True, and none at position 0. `sequences`: for `varlen_attn`.
    """
    device = device or token_ids.device
    ids, wanted = token_ids.cpu().numpy(), mask.cpu().numpy()
    starts, ends = wanted.argmax(1).tolist(), (wanted.shape[1] - 1 - wanted[:, ::-1].argmax(1)).tolist()
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    prompt, seen = ids[0, :0], np.arange(0)  # that of the row before, and the places of its tokens
    rows: list[np.ndarray] = []  # places of each row's tokens
    new: list[int] = []  # tokens that each row brings
    places = [seen] * len(ids)
    packed = 0
    # Sorted, a prompt begins with all that any earlier one shares with it as the one before does.
    for b in sorted(range(len(ids)), key=lambda b: ids[b, : starts[b]].tobytes()):
        start, end = starts[b], ends[b]
        if not wanted[b, start]:
            continue
        assert start, "no token comes before position 0"
        kept, before = _common(ids[b, :start], prompt), packed
        packed += end - kept
        rows.append(np.concatenate([seen[:kept], np.arange(before, packed)]))
        new.append(end - kept)
        prompt, seen = ids[b, :start], rows[-1][:start]
        tokens.append(ids[b, kept:end])
        positions.append(np.arange(kept, end))
        places[b] = rows[-1][wanted[b].nonzero()[0] - 1]
    found = _sequences(rows, new, packed, device) if sequences else _blocks_of(rows, packed, device)
    return Packing(
        token_ids=_made(tokens, device)[None],
        positions=_made(positions, device)[None],
        rows=found,
        places=_made(places, device),
    )


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """How many numbers two rows have in common before they differ."""
    least = min(len(a), len(b))
    differ = np.flatnonzero(a[:least] != b[:least])
    return int(differ[0]) if len(differ) else least


def _made(parts: list[np.ndarray], device: torch.device) -> Tensor:
    """Numbers on the device."""
    return sent(torch.from_numpy(np.concatenate(parts)), device)


def _sequences(rows: list[np.ndarray], new: list[int], packed: int, device: torch.device) -> Sequences:
    """Rows by their places, and how many of the `packed` tokens each brings; those that bring none are left out."""
    bring = [(row, count) for row, count in zip(rows, new, strict=True) if count]
    seen = [len(row) for row, _ in bring]
    keys = None if sum(seen) == packed else _made([row for row, _ in bring], device)
    ends = [np.cumsum([0, *counts], dtype=np.int32) for counts in ([count for _, count in bring], seen)]
    return Sequences(keys, _made(ends[:1], device), _made(ends[1:], device), max(new), max(seen))


def _blocks_of(rows: list[np.ndarray], packed: int, device: torch.device) -> Blocks:
    """Rows by their places in blocks of about one length, and where each of the `packed` tokens stands in them."""
    back, offset, blocks = np.zeros(packed, np.int64), 0, []
    for block in similar_lengths([len(row) for row in rows]):
        width = len(rows[block[0]])
        blocks.append(np.zeros((len(block), width), np.int64))
        for i, b in enumerate(block):
            blocks[-1][i, : len(rows[b])] = rows[b]
            back[rows[b]] = np.arange(offset, offset + len(rows[b]))
            offset += width
    return Blocks(tuple(_made([block], device) for block in blocks), _made([back], device))


def similar_lengths(lengths: list[int]) -> list[list[int]]:
    """Rows in blocks of about one length, longest first; rows of length 0 are left out."""
    blocks: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if lengths[row] == 0:
            break
        if not blocks or lengths[row] < SIMILAR * lengths[blocks[-1][0]]:
            blocks.append([])
        blocks[-1].append(row)
    return blocks


def packed_inputs(packing: Packing) -> dict:
    """What a model is called with."""
    return {
        "input_ids": packing.token_ids,
        "position_ids": packing.positions,
        # Four dimensions: taken for a mask that is complete, and passed on as it is.
        "attention_mask": packing.positions.new_zeros(1, 1, 1, 1),
        "packing": packing,
        "use_cache": False,
    }


_PLAIN: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether the logits are a linear function of the last hidden state, found by trying four tokens.

    A few architectures scale or cap their logits; those go through the model's own head, whole. A cap
    is nearly linear where logits are small, so its setting is looked at as well.
    """
    if model not in _PLAIN:
        capped = any(
            "logit" in key and "cap" in key and value for key, value in model.config.to_dict().items()
        )
        ids = torch.arange(4, device=model.device)[None]
        with torch.no_grad():
            head: Any = model.get_output_embeddings()
            own = model.forward(input_ids=ids, use_cache=False).logits
            plain = torch.full_like(own, torch.nan)
            if model.base_model is not model:  # Llama 4 has it under another name
                hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
                plain = nn.functional.linear(hidden, head.weight, head.bias)
        _PLAIN[model] = not capped and torch.allclose(plain, own, rtol=1e-3, atol=1e-3)
    return _PLAIN[model]


@contextlib.contextmanager
def float32_head(model: PreTrainedModel) -> Iterator[None]:
    """Let the model's own head multiply in float32 within autocast (trap 11)."""
    head: Any = model.get_output_embeddings()
    before = head.__dict__.get("forward")  # another library's product (engines/transformers.py)

    def forward(hidden: Tensor) -> Tensor:
        kind = hidden.device.type
        narrow = torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False), tensor_float32(kind == "cuda" and narrow):
            if before is not None:
                return before(hidden.float())
            return linear(hidden.float(), head.weight, head.bias)

    head.forward = forward
    try:
        yield
    finally:
        del head.forward
        if before is not None:
            head.forward = before


@contextlib.contextmanager
def tensor_float32(on: bool = True) -> Iterator[None]:
    """Within, a GPU multiplies float32 tensors on its tensor cores: factors of 10 bits (TF32), sums in float32.

    bfloat16 has 7 bits. Set here and not for the whole process, where vLLM sets it as it likes.
    """
    before = torch.get_float32_matmul_precision()
    if on:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        if on:
            torch.set_float32_matmul_precision(before)


def selected_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    temperature: float = 1.0,
    bfloat16: bool = False,
) -> Tensor:
    """log softmax(hidden @ weight.T + bias)[ids] in bounded memory with exact gradients.

    Args: hidden [N, D], weight [V, D], bias [V] or None, ids [N, c], which may repeat. With `bfloat16` the backward
    pass multiplies its float32 gradients of the logits in bfloat16; on a GPU all products then are TF32's.
    Returns [N, c] float32.
    """
    if by_tokens(hidden.device):
        return _SelectedByTokens.apply(hidden, weight, bias, ids, temperature, bfloat16)  # pyright: ignore
    needed = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (hidden, weight, bias)
    )
    kept = KEPT_ELEMENTS if needed else 0
    return _SelectedLogprobs.apply(hidden, weight, bias, ids, temperature, bfloat16, kept)  # pyright: ignore


class _SelectedLogprobs(torch.autograd.Function):
    """Forward keeps one number a token (log of the partition sum), and exp(logits) while there is room.

    What it did not keep, backward makes again: a fourth product beside the logits and the two gradients.
    Blocks of the vocabulary rather than of tokens: a large weight and its gradient pass by once.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, ids, temperature, bfloat16, room):
        partition = hidden.new_full((hidden.shape[0],), -torch.inf)
        values = hidden.new_zeros(ids.shape)
        kept: list[Tensor] = []  # of each block, while there is room: exp(logits - largest), largest
        for part in _blocks(hidden.shape[0], weight.shape[0]):
            logits = _logits(hidden, weight[part], None if bias is None else bias[part], temperature)
            rows, columns, entries = _within(part, ids)
            values[rows, columns] = logits[rows, entries]
            powers, largest, partition = _add(logits, partition)
            room -= powers.numel()
            if room >= 0:
                kept += [powers, largest]
        ctx.save_for_backward(hidden, weight, bias, ids, partition, *kept)
        ctx.temperature, ctx.bfloat16 = temperature, bfloat16
        return values - partition[:, None]

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        hidden, weight, bias, ids, partition, *kept = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden) if need_hidden else None
        grad_weight = torch.empty_like(weight) if need_weight else None
        grad_bias = torch.empty_like(bias) if bias is not None and need_bias else None
        dtype = torch.bfloat16 if ctx.bfloat16 else hidden.dtype
        narrow_hidden, scale = hidden.to(dtype), grad / ctx.temperature  # the temperature's 1/T
        total = scale.sum(-1)  # [N]
        for i, part in enumerate(_blocks(hidden.shape[0], weight.shape[0])):
            # d log p(y) / d logits = onehot(y) - softmax
            if 2 * i < len(kept):
                powers, largest = kept[2 * i : 2 * i + 2]
                grad_logits = powers * (-total * (largest - partition).exp())[:, None]
            else:
                own_bias = None if bias is None else bias[part]
                logits = _logits(hidden, weight[part], own_bias, ctx.temperature)  # [N, v]
                grad_logits = logits.sub_(partition[:, None]).exp_().mul_(-total[:, None])
            rows, columns, entries = _within(part, ids)
            grad_logits.index_put_((rows, entries), scale[rows, columns], accumulate=True)
            narrow = grad_logits.to(dtype)
            if grad_hidden is not None:
                grad_hidden += matmul(narrow, weight[part].to(dtype))
            if grad_weight is not None:
                grad_weight[part] = matmul(narrow.t(), narrow_hidden)
            if grad_bias is not None:
                grad_bias[part] = grad_logits.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def by_tokens(device: torch.device) -> bool:
    """Whether the head goes through chunks of tokens rather than of the vocabulary.

    A GPU has no cache to stay in; it wants few large products, and to be asked for nothing in between.
    """
    return device.type == "cuda"


class _SelectedByTokens(torch.autograd.Function):
    """`_SelectedLogprobs` for a GPU: nothing is kept but one number a token, and nothing is read by the host.

    Four products in all, of CHUNK_ELEMENTS logits at a time; backward makes them again, for the gradient of the weight
    needs all of a token's gradients.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, ids, temperature, tf32):
        values, partition = hidden.new_empty(ids.shape), hidden.new_empty(hidden.shape[0])
        with tensor_float32(tf32):
            for part in _chunks(hidden.shape[0], weight.shape[0]):
                logits = _logits(hidden[part], weight, bias, temperature)  # [n, V]
                values[part] = logits.gather(-1, ids[part])
                partition[part] = _add(logits, hidden.new_full(logits.shape[:1], -torch.inf))[2]
        ctx.save_for_backward(hidden, weight, bias, ids, partition)
        ctx.temperature, ctx.tf32 = temperature, tf32
        return values - partition[:, None]

    @staticmethod
    def backward(ctx, *grads):
        hidden, weight, bias, ids, partition = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        grad_bias = torch.zeros_like(bias) if bias is not None and need_bias else None
        scale = grads[0] / ctx.temperature  # [N, c]
        with tensor_float32(ctx.tf32):
            for part in _chunks(hidden.shape[0], weight.shape[0]):
                # d log p(y) / d logits = onehot(y) - softmax
                logits = _logits(hidden[part], weight, bias, ctx.temperature)  # [n, V]
                grad = logits.sub_(partition[part, None]).exp_().mul_(-scale[part].sum(-1)[:, None])
                grad.scatter_add_(-1, ids[part], scale[part])
                if grad_hidden is not None:
                    grad_hidden[part] = grad @ weight
                if grad_weight is not None:
                    grad_weight.addmm_(grad.t(), hidden[part])
                if grad_bias is not None:
                    grad_bias += grad.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None, None


def _chunks(tokens: int, vocabulary: int) -> list[slice]:
    """Ranges of the tokens, of whole tiles of a tensor core."""
    size = max(128, CHUNK_ELEMENTS // vocabulary // 128 * 128)
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


@torch.no_grad()
def with_likeliest(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    likeliest: int,
    temperature: float = 1.0,
    tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    """The ids [N, c] and after them the k likeliest of the vocabulary, and log-probabilities, both [N, c + k].

    Arguments as in `selected_logprobs`, and in as little memory. k is `likeliest`, V at most. `tf32`: how a GPU
    multiplies.
    """
    if by_tokens(hidden.device):
        columns = ids.shape[1] + min(likeliest, weight.shape[0])
        found, logprobs = ids.new_empty(len(ids), columns), hidden.new_empty(len(ids), columns)
        with tensor_float32(tf32):
            for rows in _chunks(hidden.shape[0], weight.shape[0]):
                logits = _logits(hidden[rows], weight, bias, temperature)  # [n, V]
                top = logits.topk(min(likeliest, logits.shape[1]))
                found[rows] = torch.cat([ids[rows], top.indices], -1)
                values = torch.cat([logits.gather(-1, ids[rows]), top.values], -1)
                partition = _add(logits, hidden.new_full(logits.shape[:1], -torch.inf))[2]
                logprobs[rows] = values - partition[:, None]
        return found, logprobs
    partition = hidden.new_full((hidden.shape[0],), -torch.inf)
    values = hidden.new_zeros(ids.shape)
    best, where = (
        hidden.new_empty(len(hidden), 0),
        ids.new_empty(len(hidden), 0),
    )  # [N, k], of the blocks so far
    for part in _blocks(hidden.shape[0], weight.shape[0]):
        logits = _logits(hidden, weight[part], None if bias is None else bias[part], temperature)
        rows, columns, entries = _within(part, ids)
        values[rows, columns] = logits[rows, entries]
        top = logits.topk(min(likeliest, logits.shape[1]))
        best = torch.cat([best, top.values], -1)
        where = torch.cat([where, top.indices + part.start], -1)
        kept = best.topk(min(likeliest, best.shape[1]))
        best, where = kept.values, where.gather(-1, kept.indices)
        _, _, partition = _add(logits, partition)
    return torch.cat([ids, where], -1), torch.cat([values, best], -1) - partition[:, None]


def _add(logits: Tensor, partition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(logits - largest) in the logits' memory, the largest, and the log of the partition sum with theirs."""
    largest = logits.amax(-1)
    powers = logits.sub_(largest[:, None]).exp_()
    return powers, largest, torch.logaddexp(partition, largest + powers.sum(-1).log_())


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = linear(hidden, weight, bias)
    return logits if temperature == 1.0 else logits.div_(temperature)


def _blocks(tokens: int, vocabulary: int) -> list[slice]:
    """Ranges of the vocabulary."""
    size = max(1, BLOCK_ELEMENTS // max(1, tokens))
    return [slice(start, min(start + size, vocabulary)) for start in range(0, vocabulary, size)]


def _within(part: slice, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which of the ids [N, c] are in a block: their rows, their columns, and their entries of the block."""
    rows, columns = ((ids >= part.start) & (ids < part.stop)).nonzero(as_tuple=True)
    return rows, columns, ids[rows, columns] - part.start
