"""Which models read packed tokens, and what attention computes where heads share keys."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from openprime.models.attention import NAME, PACKS, attention, packs
from openprime.models.logprobs import token_logprobs
from support.tiny_zoo import PLAIN, SCALED, make


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
