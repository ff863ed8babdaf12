"""`torch.nn.attention.varlen.varlen_attn` by loops, on any device and in any precision: it runs on GPUs alone."""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest


def plain_varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: AuxRequest | None = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """query [T_q, H, D], key and value [T_k, H', D] of sequences one behind the other: [T_q, H, D].

    Where a sequence has fewer queries than keys its last query stands at its last key, as in flash attention's kernels
    (`mask.h`: column limits of row + keys - queries). A window of (left, right) sees so many tokens beside its own;
    -1 is without end. What the kernels check is checked: heads, lengths, int32, and the last of a head's numbers
    adjacent in memory.
    """
    assert return_aux is None
    assert seqused_k is None
    assert block_table is None
    assert num_splits is None
    assert cu_seq_k is not None
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert len(cu_seq_q) == len(cu_seq_k) > 1
    assert query.dtype == key.dtype == value.dtype
    assert all(x.stride(-1) == 1 and x.shape[-1] % 8 == 0 for x in (query, key, value))
    assert enable_gqa or query.shape[1] == key.shape[1]
    starts, firsts = cu_seq_q.tolist(), cu_seq_k.tolist()
    assert (starts[0], firsts[0]) == (0, 0)
    assert (starts[-1], firsts[-1]) == (len(query), len(key)) == (len(query), len(value))
    assert max_q == max(b - a for a, b in pairwise(starts))
    assert max_k == max(b - a for a, b in pairwise(firsts))
    shared, (left, right) = query.shape[1] // key.shape[1], window_size
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    found = []
    for i in range(len(starts) - 1):
        q, k, v = (
            x[a[i] : a[i + 1]].transpose(0, 1) for x, a in ((query, starts), (key, firsts), (value, firsts))
        )  # [H, t, D]
        k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
        place = torch.arange(q.shape[1], device=q.device)[:, None] + k.shape[1] - q.shape[1]
        other = torch.arange(k.shape[1], device=q.device)
        seen = ((other <= place + right) | (right < 0)) & ((other >= place - left) | (left < 0))
        scores = (
            (q @ k.transpose(1, 2) * scale).float() if q.dtype.itemsize < 4 else q @ k.transpose(1, 2) * scale
        )
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).to(v.dtype)
        found.append((weights @ v).transpose(0, 1))
    return torch.cat(found)
