"""What a run takes, by arithmetic alone: bytes on each device in each phase of a step, tokens and FLOPs.

Weights, gradients, AdamW's two moments and logits are float32. With dtype=bfloat16 matrix products read copies of
the weights in bfloat16 and leave most activations in bfloat16; sums of blocks stay float32. What one sequence of
L blocks keeps for the backward pass was counted tensor by tensor for Qwen2 and Llama; benchmarks/plan_memory.py
holds it against measured peaks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from openprime.config import LoRAConfig, OfflinePRMConfig, OptimizerConfig, RLConfig, SFTConfig

if TYPE_CHECKING:
    from openprime.plan.shape import Shape

GiB = 2**30
LOGITS = 2**22
"""Logits that `models.logprobs` holds at a time."""
KEPT_LOGITS = 2**26
"""Logits that its forward pass leaves to the backward pass."""
CACHE_STEP = 128
"""Positions that the transformers engine's cache makes room for at a time."""
PARTS = ("weights", "optimiser", "gradients", "copies", "activations", "cache", "logits", "engine")
"""copies: weights gathered from other ranks or cast to bfloat16. engine: vLLM's share of a GPU, or on several ranks
the transformers engine's whole copy of the policy."""

TrainingConfig = RLConfig | SFTConfig | OfflinePRMConfig
Bytes = dict[str, float]
"""Part -> bytes on one device."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a run runs."""

    ranks: int = 1
    """Processes, a device each."""
    memory: float = 80 * GiB
    """Bytes of a device."""
    cpu_offload: bool = False
    """Weights, gradients and optimiser wait in the host's memory."""
    engine: str = "transformers"
    """Or vllm, server."""
    engine_share: float = 0.5
    """Share of a device that vLLM takes while it samples."""
    tensor_parallel: int = 1
    """Devices that share a copy of vLLM's model."""
    pass_rate: float = 0.5
    """Share of the groups drawn that pass the filter."""
    token_limit: int = 0
    """Most padded tokens of a micro-batch whatever the configuration says; 0 is none."""


@dataclass(frozen=True, slots=True)
class Part:
    """A model of a run, as far as memory and arithmetic go."""

    role: str
    """policy, prm, reference, or model (SFT)."""
    shape: Shape
    lora: LoRAConfig
    trained: bool
    optimizer: OptimizerConfig
    shares_base: bool = False
    """Its own weights are already counted with another part's."""

    @property
    def adapter(self) -> bool:
        """Whether only an adapter of it is trained."""
        return self.trained and self.lora.rank > 0

    @property
    def trainable(self) -> int:
        """Parameters that training changes."""
        if not self.trained:
            return 0
        return self.shape.adapter(self.lora) if self.adapter else self.shape.parameters

    @property
    def held(self) -> int:
        """Parameters in memory that no other part has."""
        own = 0 if self.shares_base else self.shape.parameters
        return own + (self.trainable if self.adapter else 0)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run takes."""

    phases: dict[str, Bytes]
    """sampling, reference, prm, policy or training -> bytes on a device at that phase's peak, by part."""
    resident: Bytes
    """Of these what is there all the time."""
    host: Bytes = field(default_factory=dict)
    """Bytes of a node's memory, by what needs them."""

    @property
    def peak(self) -> float:
        """Bytes on a device."""
        return max(sum(parts.values()) for parts in self.phases.values())


def parts_of(config: TrainingConfig, shape: Shape, prm: Shape) -> list[Part]:
    """The models of a run; `prm` is the shape of `prm.model`."""
    off = LoRAConfig()
    if isinstance(config, SFTConfig):
        return [Part("model", shape, config.optimizer.lora, True, config.optimizer)]
    if isinstance(config, OfflinePRMConfig):
        o = config.optimizer
        on_base = bool(o.lora.rank) and config.reference in ("", config.model)
        return [Part("prm", shape, o.lora, True, o), Part("reference", shape, off, False, o, on_base)]
    found = [Part("policy", shape, config.policy.lora, True, config.policy)]
    if not config.advantage.process_weight:
        return found
    same = config.prm.model in ("", config.model)
    trained = config.prm.update != "never"
    on_policy = same and bool(config.policy.lora.rank) and bool(config.prm.lora.rank)
    found.append(Part("prm", prm, config.prm.lora, trained, config.prm, on_policy))
    if config.prm.reference == "frozen":
        of_policy = same and bool(config.policy.lora.rank)
        shared = bool(config.prm.lora.rank) or of_policy
        found.append(Part("reference", prm, off, False, config.prm, shared))
    return found


def memory_of(config: TrainingConfig, layout: Layout, shape: Shape, prm: Shape, per_node: int = 8) -> Budget:
    """Bytes on each device, phase by phase, for the longest sequences that the configuration allows."""
    models, bfloat16 = parts_of(config, shape, prm), config.dtype == "bfloat16"
    there = 0 if layout.cpu_offload else 1 / layout.ranks
    adapters = sum(part.trainable for part in models if part.adapter)  # whole on every rank
    resident = {
        "weights": 4 * (there * (sum(part.held for part in models) - adapters) + adapters),
        "optimiser": 8 * (there * (sum(part.trainable for part in models) - adapters) + adapters),
    }
    phases: dict[str, Bytes] = {}
    if isinstance(config, RLConfig) and layout.engine == "transformers" and layout.ranks > 1:
        embeddings = 4 * shape.head * (1 if shape.tied else 2)
        resident["engine"] = (2 if bfloat16 else 4) * shape.matrices + embeddings
    if isinstance(config, RLConfig):
        longest = config.data.max_prompt_tokens + config.rollout.max_response_tokens
        rows = config.rollout.prompts * config.rollout.responses / layout.ranks
        phases["sampling"] = resident | sampling_bytes(config, layout, models[0], bfloat16)
    else:
        longest, rows = config.max_tokens, config.batch / layout.ranks
    for part in models:
        tokens = micro_batch_tokens(part.optimizer, longest, layout)
        passes = -(-rows * longest // tokens)  # micro-batches, on the longest sequences
        name = "training" if part.role == "model" else part.role
        train = training_bytes if part.trained else scoring_bytes
        phases[name] = resident | train(part, tokens, passes, layout, bfloat16)
    return Budget(phases, resident, host_bytes(config, layout, models, per_node))


def micro_batch_tokens(optimizer: OptimizerConfig, longest: int, layout: Layout) -> int:
    """Padded tokens of a micro-batch of the longest sequences, whole ones."""
    budget = min(optimizer.tokens_per_microbatch, layout.token_limit or optimizer.tokens_per_microbatch)
    return max(1, budget // longest) * longest


def kept_per_block(shape: Shape, bfloat16: bool, adapter: LoRAConfig | None) -> float:
    """Bytes a token and block that the forward pass keeps for the backward pass.

    Inputs of both norms and of every linear layer, queries, keys, values, attention's output and its partition,
    and four vectors of the gated feed-forward layer. Norms keep their result too, for the gradient of their weights.
    """
    d, q, k, f = shape.width, shape.query, shape.key, shape.mlp
    small = 4 * 2 + 4 * shape.heads  # norms' roots; partitions of heads
    norms = 2 * d if adapter else 4 * d
    if not bfloat16:
        ranks = 4 * 7 * adapter.rank if adapter else 0
        return 4 * (norms + 2 * d + 3 * q + 2 * k + 4 * f) + ranks + small
    ranks = 2 * 7 * adapter.rank if adapter else 0
    # Each of q, k, v, gate and up casts its input anew.
    return 4 * norms + 2 * (5 * d + 3 * q + 2 * k + 4 * f) + ranks + small


def training_bytes(part: Part, tokens: int, passes: float, layout: Layout, bfloat16: bool) -> Bytes:
    """Beside what is resident: forward and backward passes over micro-batches, at the higher of two peaks.

    One is where a backward pass begins: all activations are there and the head's gradient has just been made. The
    other is where it ends, with the embedding's: a tied head's gradient has waited for it, both as large as the
    embedding. From the second micro-batch on, the gradients of those before are there as well.
    """
    s, lora = part.shape, part.lora if part.adapter else None
    recompute, again = part.optimizer.gradient_checkpointing, passes > 1
    size = 2 if bfloat16 else 4
    block = kept_per_block(s, bfloat16, lora)
    kept = s.layers * (4 * s.width if recompute else block) + (block if recompute else 0)
    kept += (
        4 * s.width * (2 if lora else 4)
    )  # last state, its norm's, the one gathered for the head, its gradient
    flowing = size * 2 * s.mlp + 4 * 2 * s.width  # gradients within the block that is being passed
    sharded = layout.ranks > 1 or layout.cpu_offload
    gradients = 0.0 if layout.cpu_offload else 4 * part.trainable / (1 if lora else layout.ranks)
    passing = (
        2 * 4 * s.matrices / s.layers if sharded and not lora else 0.0
    )  # whole ones, until they are reduced
    head = 0.0 if lora else 4.0 * s.head
    logits = 4.0 * min(KEPT_LOGITS, tokens * s.vocabulary)
    begin = {
        "gradients": gradients if again else 0.0,
        "activations": tokens * (kept + flowing),
        "copies": copied_bytes(s, layout, bfloat16, whole=not (recompute and lora)) + passing,
        "logits": logits + min(LOGITS, tokens * s.vocabulary) * (6 if bfloat16 else 4) + head,
    }
    end = {
        "gradients": gradients + (head if s.tied else 0.0) + (head if again else 0.0),
        "activations": tokens * 4 * 2 * s.width,
        "copies": copied_bytes(s, layout, bfloat16, whole=False) + passing,
    }
    return max(begin, end, key=lambda parts: sum(parts.values()))


def scoring_bytes(part: Part, tokens: int, passes: float, layout: Layout, bfloat16: bool) -> Bytes:
    """Beside what is resident: a forward pass that keeps nothing, within one block."""
    s, size = part.shape, 2 if bfloat16 else 4
    inner = tokens * (size * 3 * s.mlp + 4 * 4 * s.width)
    copies = copied_bytes(s, layout, bfloat16, whole=part.trained and not part.adapter)
    return {"copies": copies, "activations": inner, "logits": min(LOGITS, tokens * s.vocabulary) * 4}


def copied_bytes(shape: Shape, layout: Layout, bfloat16: bool, whole: bool) -> float:
    """Weights gathered from other ranks, two blocks at a time and the head; or cast, `whole` or a matrix at a time.

    Autocast keeps its copies until a pass is over where weights require gradients, and the backward pass needs them.
    """
    size = 2 if bfloat16 else 4
    if layout.ranks > 1 or layout.cpu_offload:
        return 2 * size * shape.matrices / shape.layers + 4 * shape.head * (1 if shape.tied else 2)
    if not bfloat16:
        return 0.0
    return 2.0 * (shape.matrices if whole else max(i * o for _, i, o in shape.linear))


def cache_per_token(shape: Shape, bfloat16: bool, engine: str) -> int:
    """Bytes of the KV cache for a position of a sequence."""
    size = 2 if bfloat16 else 4
    # transformers' rotation leaves keys in float32 under autocast.
    return shape.layers * shape.key * (size + (4 if engine == "transformers" else size))


def sampling_bytes(config: RLConfig, layout: Layout, policy: Part, bfloat16: bool) -> Bytes:
    """Beside what is resident: the engine at its peak, every response as long as it may be."""
    s, rollout = policy.shape, config.rollout
    if layout.engine == "server":
        return {}
    if layout.engine == "vllm":
        return {"engine": layout.engine_share * layout.memory}
    drawn = rollout.prompts / layout.pass_rate * rollout.responses / layout.ranks
    rows = min(rollout.sequences, round(drawn))
    rows = max(1, rows // rollout.responses) * rollout.responses
    longest = config.data.max_prompt_tokens + rollout.max_response_tokens
    positions = -(-longest // CACHE_STEP) * CACHE_STEP
    cache = rows * positions * cache_per_token(s, bfloat16, "transformers")
    uniforms = rows * rollout.max_response_tokens * 8
    copies = 0.0 if layout.ranks > 1 else copied_bytes(s, layout, bfloat16, whole=True)
    return {
        "cache": cache * (1 + 1 / (2 * s.layers)),
        "logits": 3 * 4 * rows * s.vocabulary + uniforms,
        "copies": copies,
    }


def host_bytes(config: TrainingConfig, layout: Layout, models: Iterable[Part], per_node: int = 8) -> Bytes:
    """Bytes of one node's memory, by what needs them."""
    models = list(models)
    ranks = min(layout.ranks, per_node)
    share = ranks / layout.ranks
    trainable, held = sum(p.trainable for p in models), sum(p.held for p in models)
    return {
        "processes": 3.0 * GiB * ranks,
        "offloaded": share * (4 * held + 12 * trainable) if layout.cpu_offload else 0.0,
        "checkpoint": share * 12 * trainable,
        "export": 4.0 * max(p.shape.parameters for p in models if p.trained),
        "verifiers": (config.verify.workers or 8 * ranks) * 0.3 * GiB,
    }


@dataclass(frozen=True, slots=True)
class Work:
    """What a step has to compute, all devices together."""

    sampled_tokens: float
    trained_tokens: float
    """Prompt and response, each counted once however many models read it."""
    sampling_flops: float
    training_flops: float
    """Of the passes of all models, those that gradient checkpointing repeats among them."""


def work_of(
    config: TrainingConfig, models: Iterable[Part], prompt: float, response: float, pass_rate: float
) -> Work:
    """Tokens and FLOPs of a step with prompts and responses of so many tokens on average."""
    by_role = {part.role: part for part in models}
    sampled = sampling = 0.0
    if isinstance(config, RLConfig):
        k, s = config.rollout.responses, by_role["policy"].shape
        rows, drawn = config.rollout.prompts * k, config.rollout.prompts / pass_rate
        sampled = drawn * k * response
        # Token t of a response attends to the prompt and to t tokens; a prompt is read once for all its responses.
        sampling = sampled * (2 * (s.matrices + s.head) + 4 * s.layers * s.query * (prompt + response / 2))
        sampling += drawn * prompt * (2 * s.matrices + 2 * s.layers * s.query * prompt)
    else:
        rows = config.batch
    training = sum(rows * flops_of_row(part, config, prompt, response) for part in by_role.values())
    return Work(sampled, rows * (prompt + response), sampling, training)


def flops_of_row(part: Part, config: TrainingConfig, prompt: float, response: float) -> float:
    """FLOPs of a model's passes over one prompt and response in a step."""
    s, length = part.shape, prompt + response - 1  # nothing is predicted from the last token
    read = length
    if isinstance(config, RLConfig):  # packed tokens: a prompt is read once for its responses
        read -= prompt * (1 - 1 / config.rollout.responses)
    body = (
        2 * read * s.matrices + 2 * s.layers * s.query * length**2
    )  # causal attention: half of the positions
    head = response * 2 * s.head
    if not part.trained:
        return body + head
    # Backward is twice forward, once where the weights are frozen; the head forms its logits again.
    update = (2 if part.adapter else 3) * body + (3 if part.adapter else 4) * head
    if part.optimizer.gradient_checkpointing:
        # A block is computed again up to the last product that is needed: not its own last one, but an adapter's.
        update += body - (0 if part.adapter else read * 2 * s.layers * s.width * s.mlp)
    passes, scorings = 1, 0
    if isinstance(config, RLConfig):
        passes = config.policy.epochs if part.role == "policy" else 1
        whole = config.prm.minibatch in (0, config.rollout.prompts * config.rollout.responses)
        scorings = {"after": 0 if whole else 1, "before": 2}.get(config.prm.update, 0) * (part.role == "prm")
    return passes * update + scorings * (body + head)
