"""Which models read packed tokens, and what attention computes where heads share keys."""

import inspect
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.varlen import varlen_attn
from torch.utils._python_dispatch import TorchDispatchMode

from openprime.models.attention import NAME, PACKS, Sequences, attention, packs, takes_sequences
from openprime.models.logprobs import pack, token_logprobs
from support.tiny_zoo import PLAIN, SCALED, make
from support.varlen import plain_varlen_attn


def test_packs__the_architectures_that_are_tried_with_their_log_probabilities():
    """In test_logprobs.py, and no other."""
    models = [make(name) for name in (*PLAIN, *SCALED)]
    assert {model.config.model_type for model in models} == PACKS
    assert all(packs(model) for model in models)


def test_packs__a_saved_model_does_not_name_our_attention(tmp_path):
    model = make("llama")
    assert packs(model)
    assert model.config._attn_implementation == NAME
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("masked", [False, True])
def test_attention__heads_that_share_a_key_head_see_what_they_saw_with_keys_of_their_own(masked: bool):
    g = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, h, t, 8, generator=g) for h, t in ((6, 1), (2, 5), (2, 5)))
    mask = torch.arange(5) >= torch.tensor([0, 2, 4])[:, None, None, None] if masked else None
    found, _ = attention(torch.nn.Module(), query, key, value, mask, scaling=0.3)
    assert found.shape == (3, 1, 6, 8)
    for row in range(3):
        for head in range(6):
            scores = 0.3 * key[row, head // 3] @ query[row, head, 0]  # [5]
            if mask is not None:
                scores = scores.masked_fill(~mask[row, 0, 0], -math.inf)
            expected = scores.softmax(-1) @ value[row, head // 3]
            torch.testing.assert_close(found[row, 0, head], expected)


def test_attention__no_kernel_that_plans_for_every_shape():
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_attention__float32_heads_on_a_gpu_have_keys_of_their_own(
    device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """Tensors without memory, which need no device."""
    handed = []
    made = lambda q: q.new_empty(2, 5, 6, 8).transpose(1, 2)  # noqa: E731
    record = lambda q, k, v, **how: handed.append((k, how)) or made(q)  # noqa: E731
    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    module = torch.nn.Module()
    module.num_key_value_groups = 3
    with FakeTensorMode():
        q, k, v = (torch.empty(2, heads, 5, 8, device=device, dtype=dtype) for heads in (6, 2, 2))
        found, _ = attention(module, q, k, v, None, scaling=0.3)
    assert found.shape == (2, 5, 6, 8)
    ((keys, how),) = handed
    own = device == "cuda" and dtype == torch.float32
    assert (keys.shape[1], how.get("enable_gqa", False), how["is_causal"]) == (6 if own else 2, not own, True)


def test_attention__packed_rows_on_a_cpu_are_multiplied_in_float32_within_autocast():
    """The bfloat16 kernel is several times slower there, and autocast would take it."""
    seen = set()

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "scaled_dot_product" in str(func):
                seen.add(args[0].dtype)
            return func(*args, **(kwargs or {}))

    ids = torch.arange(12).view(2, 6)
    mask = torch.tensor([[False, False, True, True, True, True]] * 2)
    model = make("qwen2")
    token_logprobs(model, ids, mask)  # what is tried once, before
    with Seen(), torch.autocast("cpu", torch.bfloat16):
        token_logprobs(model, ids, mask)
    assert seen == {torch.float32}


def test_varlen_attn__its_stand_in_takes_what_it_takes():
    """So that the tests on a CPU cannot drift from the kernel."""
    real, plain = (inspect.signature(f).parameters for f in (varlen_attn, plain_varlen_attn))
    assert list(real) == list(plain)
    assert [(p.kind, p.default) for p in real.values()] == [(p.kind, p.default) for p in plain.values()]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("shared", [False, True])
def test_attention__varlen_attn_itself_takes_what_a_gpu_would_hand_it(shared: bool, window: int | None):
    """On tensors without memory, which need no device: shapes and types of forward and backward passes."""
    ids = torch.arange(12).view(2, 6)
    ids[1, :2] = ids[0, :2] if shared else ids[1, :2]
    mask = torch.tensor([[False, False, True, True, True, True]] * 2)
    tokens, seen = (8 if shared else 10), []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.extend([args] if func is torch.ops.torch_attn._varlen_attn.default else [])
            return func(*args, **(kwargs or {}))

    packing = pack(ids, mask, sequences=True)
    rows = packing.rows
    assert isinstance(rows, Sequences)
    assert (rows.keys is not None) == shared
    with FakeTensorMode():
        moved = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype)
            for name in ("keys", "new", "seen")
            if (tensor := getattr(rows, name)) is not None
        }
        packing = replace(packing, rows=replace(rows, **moved))
        leaves = [torch.empty(1, tokens, h, 8, dtype=torch.bfloat16, requires_grad=True) for h in (6, 2, 2)]
        parts = [leaf.transpose(1, 2) for leaf in leaves]
        with Seen():
            found, _ = attention(torch.nn.Module(), *parts, None, packing, scaling=0.3, sliding_window=window)
        found.float().sum().backward()
    assert (found.shape, found.dtype) == ((1, tokens, 6, 8), torch.bfloat16)
    assert all(leaf.grad is not None and leaf.grad.shape == leaf.shape for leaf in leaves)
    ((query, key, _, _, _, most_new, most_seen, causal, scale, sides, gqa, *_),) = seen
    assert (query.shape, key.shape) == ((tokens, 6, 8), (10, 2, 8))
    assert (most_new, most_seen, scale, gqa) == (5, 5, 0.3, True)
    assert (causal, sides) == (window is None, [-1 if window is None else 2, 0])


@pytest.mark.parametrize(
    ("name", "changes", "takes"),
    [
        ("qwen2", {}, True),
        ("mistral", {}, True),
        ("llama", {"hidden_size": 48}, False),  # heads of 12
        ("llama", {"head_dim": 264}, False),
        ("gemma2", {}, False),  # soft caps
        ("gemma2", {"attn_logit_softcapping": None}, True),
    ],
)
def test_takes_sequences__heads_that_the_kernel_knows(
    name: str, changes: dict, takes: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    model = make(name, **changes)
    assert takes_sequences(model, torch.device("cuda")) == takes
    assert not takes_sequences(model, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not takes_sequences(model, torch.device("cuda"))  # Turing
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    assert not takes_sequences(model, torch.device("cuda"))  # float32
