"""How long a step takes, phase by phase, from what its parts do: products, attention, head, memory passed, the host.

Shares of a GPU's peak are what such kernels reach on an H100 or A100 as their authors report it; none is measured with
this package (docs/gpu.md). A measured `mfu` or `tokens_per_second` takes their place.
"""

from dataclasses import dataclass

from openprime.config import PlanConfig, RLConfig
from openprime.models.shape import Shape
from openprime.plan.memory import (
    OWN,
    Part,
    TrainingConfig,
    flops_by_part,
    is_bfloat16,
    passes_of,
    tokens_read,
)

PRODUCTS, ATTENTION = 0.6, 0.3
"""Shares of the peak in bfloat16 that the blocks' products and flash attention's kernels reach."""
TF32, FLOAT32 = 1 / 2, 1 / 16
"""Of the peak in bfloat16: the head's products beside blocks in bfloat16, and all products with dtype=float32."""
BANDWIDTH = 0.8
"""Share of a GPU's bandwidth that passes over tensors reach."""
LAUNCHES, LAUNCH = (51, 147), 8e-6
"""Kernels of a block, forward and with the backward pass; seconds of the host for each."""
COPIED = 3e9
"""Bytes a second of new weights on their way to vLLM."""
MORE_DRAWS = 0.67, 0.4
"""A step's draws beside the first: the first number times the second to the power of `filter.margin`."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """Of a phase, on every device; the host works beside the device."""

    products: float
    attention: float
    head: float
    memory: float
    """Norms, rotation, gates, casts, softmax: what passes over tensors."""
    host: float

    @property
    def total(self) -> float:
        """Of the phase: the device's, or the host's where it is slower."""
        return max(self.products + self.attention + self.head + self.memory, self.host)


def block_bytes(shape: Shape, backward: bool) -> float:
    """Bytes a token that the kernels of a block read and write beside products and attention, in bfloat16.

    Counted for Qwen2 on tensors without memory (`tests/plan/test_seconds.py`): the residual stream, norms and rotation
    are float32, each operation a kernel.
    """
    d, heads, f = shape.width, shape.query + shape.key, shape.mlp
    return 400 * d + 94 * heads + 29 * f if backward else 107 * d + 36.5 * heads + 10.4 * f


def head_bytes(shape: Shape, backward: bool) -> float:
    """Bytes a response token that pass over its logits, float32: `models/logprobs.py::_SelectedByTokens`."""
    return 4 * shape.vocabulary * (16 if backward else 7)


def phase_seconds(
    config: PlanConfig, run: TrainingConfig, part: Part, prompt: float, response: float
) -> Seconds:
    """A model's passes over a step's batch, whose rows the devices share evenly."""
    rows = (
        run.rollout.prompts * run.rollout.responses if isinstance(run, RLConfig) else run.batch
    ) / config.gpus
    peak, bandwidth = config.gpu_tflops * 1e12, config.gpu_bandwidth * 1e12 * BANDWIDTH
    narrow, s, read = is_bfloat16(run), part.shape, tokens_read(run, prompt, response)
    flops = flops_by_part(part, run, prompt, response)
    share = PRODUCTS if narrow else PRODUCTS * FLOAT32
    updates, scorings = passes_of(part, run)
    again = part.optimizer.gradient_checkpointing
    # Blocks that learn are passed forward and back in an update, and forward once more; those before them forward.
    back = updates * part.layers
    forward = scorings * s.layers + (back if again else 0) + updates * (s.layers - part.layers)
    passed = read * (back * block_bytes(s, True) + forward * block_bytes(s, False))
    passed += response * (updates * head_bytes(s, True) + scorings * head_bytes(s, False))
    launches = back * LAUNCHES[1] + forward * LAUNCHES[0]
    return Seconds(
        products=rows * flops["blocks"] / (peak * share),
        attention=rows * flops["attention"] / (peak * (ATTENTION if narrow else ATTENTION * FLOAT32)),
        head=rows * flops["head"] / (peak * PRODUCTS * (TF32 if narrow else FLOAT32)),
        memory=rows * passed / bandwidth,
        host=max(1.0, rows * read / part.optimizer.tokens_per_microbatch) * launches * LAUNCH,
    )


def sampling_seconds(config: PlanConfig, run: RLConfig, shape: Shape, work: dict[str, float]) -> float:
    """Of all draws of a step; a further draw takes as long as its longest response, whose tokens read all weights."""
    if config.tokens_per_second:
        return work["sampled_tokens"] / config.tokens_per_second
    first, base = MORE_DRAWS
    tensor_parallel = run.engine.tensor_parallel if run.engine.kind == "vllm" else 1
    weights = (2 if is_bfloat16(run) else 4) * shape.parameters / tensor_parallel
    token = weights / (config.gpu_bandwidth * 1e12 * BANDWIDTH)
    more = first * base**run.filter.margin * run.rollout.max_response_tokens * token
    return work["sampling_flops"] / (config.gpus * config.gpu_tflops * 1e12 * config.sampling_mfu) + more


def weights_seconds(run: RLConfig, shape: Shape) -> float:
    """New weights to vLLM or servers after a step; the trainer's own model has them."""
    return 0.0 if run.engine.kind in OWN else (2 if is_bfloat16(run) else 4) * shape.parameters / COPIED
