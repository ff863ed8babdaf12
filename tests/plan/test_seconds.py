"""What a plan's times are made of, against operations that are counted, and phases worked out by hand."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from openprime.config import PlanConfig, PrimeConfig, RLConfig, SFTConfig, build
from openprime.models import attention, logprobs
from openprime.models.logprobs import pack, packed_inputs, selected_logprobs
from openprime.models.shape import Shape, shape_of
from openprime.plan.memory import Part, flops_by_part, parts_of
from openprime.plan.seconds import (
    LAUNCHES,
    block_bytes,
    head_bytes,
    phase_seconds,
    sampling_seconds,
    weights_seconds,
)

TOKENS = 521
"""A prime: what is as large as many tokens is of the tokens, and what is not is not."""
VIEWS = (
    "view",
    "_unsafe_view",
    "t",
    "transpose",
    "expand",
    "slice",
    "unsqueeze",
    "detach",
    "alias",
    "select",
)
VIEWS += ("as_strided", "reshape", "empty", "split", "empty_like", "empty_strided", "new_empty", "permute")


class Passed(TorchDispatchMode):
    """Bytes that operations but products and attention read and write of the tokens' tensors; kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.kernels = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        made = list(found) if isinstance(found, tuple | list) else [found]
        lists = [y for x in args if isinstance(x, tuple | list) for y in x]
        tensors = [x for x in (*args, *lists, *made) if isinstance(x, torch.Tensor)]
        self.kernels += name not in VIEWS
        if name not in (
            *VIEWS,
            "mm",
            "addmm",
            "addmm_",
            "gather",
            "scatter_add_",
        ):  # the last two touch one in a row
            self.bytes += sum(t.numel() * t.element_size() for t in tensors if t.numel() % TOKENS == 0)
        return found


def passed(layers: int, backward: bool) -> Passed:
    """Of one pass of a Qwen2 model in bfloat16; attention, one kernel a layer and pass, is left out."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=40,
            hidden_size=96,
            intermediate_size=320,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
        )
    )
    assert attention.packs(model)
    ids, mask = torch.zeros(1, TOKENS + 1, dtype=torch.long), torch.ones(1, TOKENS + 1, dtype=torch.bool)
    mask[:, 0] = False
    inputs = packed_inputs(pack(ids, mask, sequences=True))
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(backward), Passed() as count:
        hidden = model.base_model(**inputs).last_hidden_state
        if backward:
            hidden.sum().backward()
    return count


@pytest.mark.parametrize("backward", [False, True])
def test_block_bytes__are_those_that_are_counted(backward: bool, monkeypatch: pytest.MonkeyPatch):
    """Of a second block; `varlen_attn`, which has no part in them, hands its queries on."""

    class Query(torch.autograd.Function):
        @staticmethod
        def forward(ctx, query, key, value):
            ctx.save_for_backward(key, value)
            return query.view_as(query)

        @staticmethod
        def backward(ctx, *grads):
            key, value = ctx.saved_tensors
            return grads[0].view_as(grads[0]), torch.empty_like(key), torch.empty_like(value)

    monkeypatch.setattr(attention, "varlen_attn", lambda q, k, v, *_, **__: Query.apply(q, k, v))
    one, two = passed(1, backward), passed(2, backward)
    shape = Shape(0, (), 0, 0, 0, 1, 96, 4, 128, 64, 320, 40, True)
    assert (two.bytes - one.bytes) / TOKENS == pytest.approx(block_bytes(shape, backward), rel=0.07)
    assert two.kernels - one.kernels == pytest.approx(
        LAUNCHES[backward], rel=0.1
    )  # casts of weights among them


@pytest.mark.parametrize("backward", [False, True])
def test_head_bytes__are_those_that_are_counted(backward: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logprobs, "by_tokens", lambda device: True)
    hidden, weight = torch.randn(TOKENS, 4, requires_grad=True), torch.randn(1000, 4, requires_grad=True)
    with torch.set_grad_enabled(backward), Passed() as count:
        values = selected_logprobs(hidden, weight, None, torch.zeros(TOKENS, 1, dtype=torch.long))
        if backward:
            values.sum().backward()
    shape = Shape(0, (), 0, 0, 0, 1, 4, 1, 4, 4, 4, 1000, True)
    # Of the products, which are not counted, the logits' own are written, and read for two gradients.
    products = 4 if backward else 1
    assert count.bytes / TOKENS + 4 * 1000 * products == pytest.approx(head_bytes(shape, backward), rel=0.02)


def run_of(tokens: int = 16384, **rollout) -> PrimeConfig:
    return PrimeConfig.model_validate(
        {
            "dtype": "bfloat16",
            "engine": {"kind": "transformers"},
            "filter": {"margin": 1.0},
            "rollout": {"prompts": 16, "responses": 4} | rollout,
            "policy": {"gradient_checkpointing": True, "tokens_per_microbatch": tokens},
        }
    )


def small() -> Shape:
    return shape_of(Qwen2ForCausalLM(Qwen2Config(vocab_size=400, hidden_size=96, intermediate_size=320)))


def test_phase_seconds__by_hand():
    """64 rows on two devices; four responses share a prompt of 100; the policy's blocks are computed again."""
    config, shape, run = PlanConfig(gpus=2, gpu_tflops=100, gpu_bandwidth=1.0), small(), run_of()
    policy, prm, reference = parts_of(run, shape, shape)
    for part in (policy, prm, reference):
        found, flops = phase_seconds(config, run, part, 100, 300), flops_by_part(part, run, 100, 300)
        assert found.products == pytest.approx(32 * flops["blocks"] / 60e12)
        assert found.attention == pytest.approx(32 * flops["attention"] / 30e12)
        assert found.head == pytest.approx(32 * flops["head"] / 30e12)  # TF32: half as fast
        forward, update = (shape.layers * (100 / 4 + 299) * block_bytes(shape, b) for b in (False, True))
        blocks = {"policy": forward + update, "prm": update, "reference": forward}[part.role]
        logits = 300 * head_bytes(shape, part.trained)
        assert found.memory == pytest.approx(32 * (blocks + logits) / 0.8e12)
        assert found.total == max(found.products + found.attention + found.head + found.memory, found.host)
    host = phase_seconds(config, run, policy, 100, 300).host
    assert host == pytest.approx((51 + 147) * shape.layers * 8e-6)  # 10,368 tokens: one micro-batch
    run = run_of(1296)
    assert phase_seconds(config, run, parts_of(run, shape, shape)[0], 100, 300).host == pytest.approx(
        8 * host
    )


@pytest.mark.parametrize("again", [False, True])
def test_phase_seconds__blocks_that_do_not_learn_are_passed_forward_alone(again: bool):
    """A PRM of the last half of the blocks: in two epochs these forward and back, the others forward; one scoring."""
    config, shape = PlanConfig(gpus=1, gpu_bandwidth=1.0), small()
    settings = {"prm_depth": 0.5, "prm_epochs": 2}
    checkpointing = {"gradient_checkpointing": again}
    run = build(RLConfig, {"algorithm": "distill", "distill": settings, "prm": checkpointing})
    part, half = parts_of(run, shape, shape)[1], shape.layers // 2
    found = phase_seconds(config, run, part, 100, 300)
    back, forward = 2 * half, shape.layers + 2 * half + (2 * half if again else 0)
    blocks = back * block_bytes(shape, True) + forward * block_bytes(shape, False)
    logits = 2 * head_bytes(shape, True) + head_bytes(shape, False)
    rows, responses = run.rollout.prompts * run.rollout.responses, run.rollout.responses
    passed = (100 / responses + 299) * blocks + 300 * logits
    assert found.memory == pytest.approx(rows * passed / 0.8e12)


def test_phase_seconds__float32_is_a_sixteenth_of_the_peak():
    config = PlanConfig(gpus=1)
    exact, narrow = (
        phase_seconds(config, SFTConfig(dtype=dtype), Part("model", small(), SFTConfig().optimizer), 9, 99)
        for dtype in ("float32", "bfloat16")
    )
    assert exact.products == pytest.approx(16 * narrow.products)
    assert exact.head == pytest.approx(8 * narrow.head)


def test_sampling_seconds__a_second_draw_is_as_long_as_its_longest_response():
    config, shape = PlanConfig(gpus=2, gpu_tflops=100, gpu_bandwidth=1.0), small()
    run = run_of(max_response_tokens=500)
    work = {"sampled_tokens": 1000.0, "sampling_flops": 2e12}
    token = 2 * shape.parameters / 0.8e12
    expected = 2e12 / (200e12 * 0.1) + 0.67 * 0.4 * 500 * token
    assert sampling_seconds(config, run, shape, work) == pytest.approx(expected)
    measured = config.model_copy(update={"tokens_per_second": 50.0})
    assert sampling_seconds(measured, run, shape, work) == 20.0
    assert weights_seconds(run, shape) == 0.0  # the trainer's own model
