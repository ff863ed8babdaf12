"""What a run takes, by arithmetic alone: bytes on each device in each phase of a step, tokens and FLOPs.

Weights, gradients, AdamW's two moments and logits are float32. With dtype=bfloat16 matrix products read copies of
the weights in bfloat16 and leave most activations in bfloat16; sums of blocks stay float32. What one sequence of
L blocks keeps for the backward pass was counted tensor by tensor for Qwen2 and Llama; benchmarks/plan_memory.py
holds it against measured peaks.
"""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM

from openprime.config import (
    DistillRLConfig,
    LoRAConfig,
    LoRAOptimizerConfig,
    OfflinePRMConfig,
    OptimizerConfig,
    PrimeConfig,
    RLConfig,
    SFTConfig,
)
from openprime.engines.transformers import GROW_BY
from openprime.models.checks import first_line
from openprime.models.hub import read_architecture
from openprime.models.lm import CPU_TOKENS
from openprime.models.logprobs import BLOCK_ELEMENTS, CHUNK_ELEMENTS, KEPT_ELEMENTS
from openprime.models.shape import Shape, shape_of
from openprime.prime.rollouts import prompts_for
from openprime.types import UserError

GiB = 2**30
PARTS = (
    "weights",
    "optimiser",
    "gradients",
    "copies",
    "activations",
    "cache",
    "logits",
    "candidates",
    "engine",
)
"""copies: weights gathered from other ranks or cast to bfloat16. engine: vLLM's share of a GPU, or on several ranks
the transformers engine's whole copy of the policy."""

TrainingConfig = RLConfig | SFTConfig | OfflinePRMConfig
Bytes = dict[str, float]
"""Part -> bytes on one device."""


def read_shape(name: str) -> Shape:
    """The shape of a model folder, a config.json or a hub id; its weights are neither needed nor read.

    Raises UserError where there is no configuration of a causal language model.
    """
    try:
        config = read_architecture(name)
    except UserError as error:
        raise UserError(
            f"{error}; to plan with another one, name a model folder or a config.json with --architecture (and "
            "--prm-architecture)"
        ) from error
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return shape_of(model)
    except Exception as error:  # not our code: anything may come
        raise UserError(f"{name}: no model can be made of its config.json: {first_line(error)}") from error


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a run runs."""

    ranks: int = 1
    """Processes, a device each."""
    memory: float = 80 * GiB
    """Bytes of a device."""
    per_node: int = 8
    """Devices of a node."""
    pass_rate: float = 0.5
    """Share of the groups drawn that pass the filter."""


@dataclass(frozen=True, slots=True)
class Part:
    """A model of a run, as far as memory and arithmetic go."""

    role: str
    """policy, prm, reference, or model (SFT)."""
    shape: Shape
    optimizer: OptimizerConfig
    trained: bool = True
    shares_base: bool = False
    """Its own weights are already counted with another part's."""
    depth: float = 1.0
    """Share of the blocks that it learns, or that it has of its own; where it is less than 1 no embeddings and head."""

    @property
    def lora(self) -> LoRAConfig | None:
        """The adapter, where one is trained instead of all weights."""
        lora = getattr(self.optimizer, "lora", LoRAConfig())
        return lora if self.trained and lora.rank else None

    @property
    def trainable(self) -> int:
        """Parameters that training changes."""
        return self.trained * (self.shape.adapter(self.lora) if self.lora else self.own)

    @property
    def layers(self) -> int:
        """Blocks that it learns."""
        return self.shape.layers if self.depth == 1 else max(1, round(self.depth * self.shape.layers))

    @property
    def own(self) -> int:
        """Parameters that it learns, or has beside another part's."""
        s = self.shape
        return s.parameters if self.depth == 1 else round(s.matrices * self.layers / s.layers)

    @property
    def held(self) -> int:
        """Parameters in memory that no other part has."""
        own = 0 if self.shares_base else self.shape.parameters if self.trained else self.own
        return own + (self.trainable if self.lora else 0)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run takes."""

    phases: dict[str, Bytes]
    """sampling, reference, prm, policy or training -> bytes on a device at that phase's peak, by part."""
    resident: Bytes
    """Of these what is there all the time."""
    host: Bytes
    """Bytes of a node's memory, by what needs them."""
    checkpoint: float
    """Bytes on the disk."""

    @property
    def peak(self) -> float:
        """Bytes on a device."""
        return max(sum(parts.values()) for parts in self.phases.values())


def parts_of(config: TrainingConfig, shape: Shape, prm: Shape) -> list[Part]:
    """The models of a run; `prm` is the shape of `prm.model`."""
    if isinstance(config, SFTConfig):
        return [Part("model", shape, config.optimizer)]
    if isinstance(config, OfflinePRMConfig):
        on_base = bool(config.optimizer.lora.rank) and config.reference in ("", config.model)
        optimizer = config.optimizer
        return [Part("prm", shape, optimizer), Part("reference", shape, optimizer, False, on_base)]
    policy = Part("policy", shape, config.policy)
    if isinstance(config, DistillRLConfig):
        # The PRM has an adapter where the policy has one. The reference is the policy; a copy of what is trained
        # is kept for the export, and with adapters counts nothing.
        settings = config.prm.model_dump() | {"lora": config.policy.lora}
        settings.pop("minibatch")
        on_base, learnt = bool(config.policy.lora.rank), LoRAOptimizerConfig.model_validate(settings)
        return [
            policy,
            Part("prm", shape, learnt, True, on_base, config.distill.prm_depth),
            Part("reference", shape, config.policy, False, on_base, config.distill.prm_depth),
        ]
    if not isinstance(config, PrimeConfig):
        return [policy]
    on_policy, adapted = policy.lora and config.prm.model in ("", config.model), bool(config.prm.lora.rank)
    updated = config.prm.update != "never"
    found = [policy, Part("prm", prm, config.prm, updated, bool(on_policy and adapted))]
    if config.prm.reference == "frozen":
        found.append(Part("reference", prm, config.prm, False, bool(on_policy or adapted)))
    return found


OWN = ("auto", "transformers")
"""Engines that are planned as the trainer's own model: nobody knows yet whether vLLM will be there."""


def memory_of(config: TrainingConfig, machine: Machine, shape: Shape, prm: Shape) -> Budget:
    """Bytes on each device, phase by phase, for the longest sequences that the configuration allows.

    Raises UserError where the machine's ranks cannot be divided among the copies of models.
    """
    models, bfloat16, ranks = parts_of(config, shape, prm), is_bfloat16(config), machine.ranks
    shares = config.parallel.shares(ranks)
    offload = config.parallel.cpu_offload
    sharded = ranks > 1 or offload or config.parallel.shard
    there = 0 if offload else 1 / shares
    adapters = sum(part.trainable for part in models if part.lora)  # whole on every rank
    resident = {
        "weights": 4 * (there * (sum(part.held for part in models) - adapters) + adapters),
        "optimiser": 8 * (there * (sum(part.trainable for part in models) - adapters) + adapters),
    }
    phases: dict[str, Bytes] = {}
    if isinstance(config, RLConfig):
        if config.engine.kind in OWN and (ranks > 1 or config.parallel.shard):
            embeddings = 4 * shape.head * (1 if shape.tied else 2)
            resident["engine"] = (2 if bfloat16 else 4) * shape.matrices + embeddings
        longest = longest_of(config)
        rows = config.rollout.prompts * config.rollout.responses / ranks
        phases["sampling"] = resident | sampling_bytes(config, machine, shape, bfloat16)
    else:
        longest, rows = config.max_tokens, config.batch / ranks
    of_batch = {"candidates": candidate_bytes(config, shape)} if isinstance(config, DistillRLConfig) else {}
    for part in models:
        tokens = micro_batch_tokens(part.optimizer, longest, config.device)
        if part.trained:
            again = -(-rows * longest // tokens) > 1  # micro-batches, on the longest sequences
            own = 0 if offload else part.trainable / (1 if part.lora else shares)
            found = training_bytes(part, tokens, again, own, sharded, bfloat16, config.device != "cpu")
        else:
            found = scoring_bytes(part.shape, tokens, sharded, bfloat16, config.device != "cpu")
        phases["training" if part.role == "model" else part.role] = resident | of_batch | found
    saved = 12.0 * sum(part.trainable for part in models)  # weights and AdamW's two moments
    return Budget(phases, resident, host_bytes(config, machine, models), saved)


def candidate_bytes(config: DistillRLConfig, shape: Shape) -> float:
    """Candidates (8 bytes each), targets, and two models' log-probabilities of them, for all batches on every rank.

    Where targets are made there are two more of the latter.
    """
    rows = (1 + config.distill.replay) * config.rollout.prompts * config.rollout.responses
    places = rows * longest_of(config)
    return places * (1 + min(config.distill.candidates, shape.vocabulary)) * (8.0 + 5 * 4)


def is_bfloat16(config: TrainingConfig) -> bool:
    """Whether blocks multiply in bfloat16; `auto` is planned for a GPU that does."""
    return config.dtype == "bfloat16" or (config.dtype == "auto" and config.device != "cpu")


def longest_of(config: RLConfig) -> int:
    """Tokens of the longest prompt and response together."""
    return config.data.max_prompt_tokens + config.rollout.max_response_tokens


def micro_batch_tokens(optimizer: OptimizerConfig, longest: int, device: str = "auto") -> int:
    """Padded tokens of a micro-batch of the longest sequences, whole ones."""
    budget = optimizer.tokens_per_microbatch
    return max(1, (min(budget, CPU_TOKENS) if device == "cpu" else budget) // longest) * longest


def kept_per_block(shape: Shape, bfloat16: bool, adapter: LoRAConfig | None, gpu: bool) -> float:
    """Bytes a token and block that the forward pass keeps for the backward pass.

    Inputs of both norms and of every linear layer, queries, keys, values, attention's output and its partition,
    and four vectors of the gated feed-forward layer. Norms keep their result too, for the gradient of their weights.
    """
    d, q, k, f = shape.width, shape.query, shape.key, shape.mlp
    small = 4 * 2 + 4 * shape.heads  # norms' roots; partitions of heads
    norms = 2 * d if adapter else 4 * d
    ranks = 7 * adapter.rank if adapter else 0
    if not bfloat16:
        return 4 * (norms + 2 * d + 3 * q + 2 * k + 4 * f + ranks) + small
    # Each of q, k, v, gate and up casts its input anew. A CPU attends in float32.
    attention = 2 * (2 * q + 2 * k) if gpu else 4 * (2 * q + 2 * k)
    return 4 * norms + attention + 2 * (5 * d + q + 4 * f + ranks) + small


def training_bytes(
    part: Part, tokens: int, again: bool, own: float, sharded: bool, bfloat16: bool, gpu: bool
) -> Bytes:
    """Beside what is resident: forward and backward passes over micro-batches, at the higher of two peaks.

    One is where a backward pass begins: all activations are there and the head's gradient has just been made. The
    other is where it ends, with the embedding's: a tied head's gradient has waited for it, both as large as the
    embedding. From the second micro-batch on (`again`), the gradients of those before are there as well, of `own`
    parameters.
    """
    s, lora, recompute = part.shape, part.lora, part.optimizer.gradient_checkpointing
    block = kept_per_block(s, bfloat16, lora, gpu)
    kept = part.layers * (4 * s.width if recompute else block) + (block if recompute else 0)
    kept += 4 * s.width * (2 if lora else 4)  # last state, its norm's, the one for the head, its gradient
    flowing = (
        2 if bfloat16 else 4
    ) * 2 * s.mlp + 4 * 2 * s.width  # gradients within the block that is being passed
    passing = (
        2 * 4 * s.matrices / s.layers if sharded and not lora else 0.0
    )  # whole ones, until they are reduced
    head = 4.0 * s.head if part.depth == 1 and not lora else 0.0
    if gpu:
        logits = 4.0 * min(CHUNK_ELEMENTS, tokens * s.vocabulary)
    else:
        logits = 4.0 * min(KEPT_ELEMENTS, tokens * s.vocabulary)
        logits += min(BLOCK_ELEMENTS, tokens * s.vocabulary) * (6 if bfloat16 else 4)
    begin = {
        "gradients": 4 * own if again else 0.0,
        "activations": tokens * (kept + flowing),
        "copies": copied_bytes(s, sharded, bfloat16, whole=not (recompute and lora)) + passing,
        "logits": logits + head,
    }
    end = {
        "gradients": 4 * own + (head if s.tied else 0.0) + (head if again else 0.0),
        "activations": tokens * 4 * 2 * s.width,
        "copies": copied_bytes(s, sharded, bfloat16) + passing,
    }
    return max(begin, end, key=lambda parts: sum(parts.values()))


def scoring_bytes(shape: Shape, tokens: int, sharded: bool, bfloat16: bool, gpu: bool) -> Bytes:
    """Beside what is resident: a forward pass that keeps nothing, within one block."""
    return {
        "copies": copied_bytes(shape, sharded, bfloat16),
        "activations": tokens * ((2 if bfloat16 else 4) * 3 * shape.mlp + 4 * 4 * shape.width),
        "logits": 4 * min(CHUNK_ELEMENTS if gpu else BLOCK_ELEMENTS, tokens * shape.vocabulary),
    }


def copied_bytes(shape: Shape, sharded: bool, bfloat16: bool, whole: bool = False) -> float:
    """Weights gathered from other ranks, two blocks at a time and the head; or cast, `whole` or a matrix at a time.

    Autocast keeps its copies until a pass is over where weights require gradients, and the backward pass needs them.
    """
    if sharded:
        blocks = 2 * (2 if bfloat16 else 4) * shape.matrices / shape.layers
        return blocks + 4 * shape.head * (1 if shape.tied else 2)
    cast = shape.matrices if whole else shape.largest
    return 2.0 * cast if bfloat16 else 0.0


def cache_per_token(shape: Shape, bfloat16: bool, engine: str) -> int:
    """Bytes of the KV cache for a position of a sequence."""
    size = 2 if bfloat16 else 4
    # transformers' rotation leaves keys in float32 under autocast.
    return shape.layers * shape.key * (size + (4 if engine == "transformers" else size))


def sampling_bytes(config: RLConfig, machine: Machine, shape: Shape, bfloat16: bool) -> Bytes:
    """Beside what is resident: the engine at its peak, every response as long as it may be."""
    rollout, engine, s = config.rollout, config.engine, shape
    if engine.kind == "server":
        return {}
    if engine.kind == "vllm":
        return {"engine": engine.gpu_memory * machine.memory}
    drawn = prompts_for(rollout.prompts, machine.pass_rate, config.filter.margin)
    rows = min(rollout.sequences, round(drawn * rollout.responses / machine.ranks))
    rows = max(1, rows // rollout.responses) * rollout.responses
    sharded, offloaded = machine.ranks > 1 or config.parallel.shard, config.parallel.cpu_offload
    if config.device == "cpu" and bfloat16:
        copies = 2.0 * s.matrices + 4.0 * s.head  # in oneDNN's own layout
    else:
        copies = 0.0 if sharded else copied_bytes(s, offloaded, bfloat16, whole=True)
    positions = -(-longest_of(config) // GROW_BY) * GROW_BY
    cache = rows * positions * cache_per_token(s, bfloat16, "transformers")
    uniforms = rows * rollout.max_response_tokens * 8
    return {
        "cache": cache * (1 + 1 / (2 * s.layers)),
        "logits": 3 * 4 * rows * s.vocabulary + uniforms,
        "copies": copies,
    }


def host_bytes(config: TrainingConfig, machine: Machine, models: list[Part]) -> Bytes:
    """Bytes of one node's memory, by what needs them."""
    ranks = min(machine.ranks, machine.per_node)
    share = ranks / machine.ranks
    trainable, held = sum(p.trainable for p in models), sum(p.held for p in models)
    return {
        "processes": 3.0 * GiB * ranks,
        "offloaded": config.parallel.replicas * share * (4 * held + 12 * trainable)
        if config.parallel.cpu_offload
        else 0.0,
        "checkpoint": share * 12 * trainable,
        "export": 4.0 * max(p.shape.parameters for p in models if p.trained),
        "verifiers": (config.verify.workers or 8 * ranks) * 0.3 * GiB,
    }


def work_of(
    config: TrainingConfig, models: list[Part], prompt: float, response: float, pass_rate: float
) -> dict[str, float]:
    """Tokens and FLOPs of a step, all devices together, with prompts and responses of so many tokens on average.

    trained_tokens are those of a prompt and a response, each counted once however many models read it;
    training_flops those of the passes of all models, what gradient checkpointing repeats among them.
    """
    sampled = sampling = 0.0
    if isinstance(config, RLConfig):
        k, s = config.rollout.responses, models[0].shape
        rows = config.rollout.prompts * k
        drawn = prompts_for(config.rollout.prompts, pass_rate, config.filter.margin)
        sampled = drawn * k * response
        # Token t of a response attends to the prompt and to t tokens; a prompt is read once for all its responses.
        sampling = sampled * (2 * (s.used + s.head) + 4 * s.layers * s.query * (prompt + response / 2))
        sampling += drawn * prompt * (2 * s.used + 2 * s.layers * s.query * prompt)
    else:
        rows = config.batch
    training = sum(rows * flops_of_row(part, config, prompt, response) for part in models)
    return {
        "sampled_tokens": sampled,
        "trained_tokens": rows * (prompt + response),
        "sampling_flops": sampling,
        "training_flops": training,
    }


def flops_of_row(part: Part, config: TrainingConfig, prompt: float, response: float) -> float:
    """FLOPs of a model's passes over one prompt and response in a step."""
    return sum(flops_by_part(part, config, prompt, response).values())


def flops_by_part(part: Part, config: TrainingConfig, prompt: float, response: float) -> dict[str, float]:
    """`flops_of_row` of the blocks' matrices, of attention, and of the head."""
    s, length = part.shape, prompt + response - 1  # nothing is predicted from the last token
    read = tokens_read(config, prompt, response)
    forward = {
        "blocks": 2 * read * s.used,
        "attention": 2 * s.layers * s.query * length**2,  # causal: half of the positions
        "head": response * 2 * s.head,
    }
    # Backward is twice forward, once where the weights are frozen; the head forms its logits again.
    times, learnt = 1 if part.lora else 2, part.layers / s.layers
    back = {"blocks": times * learnt * forward["blocks"], "attention": times * learnt * forward["attention"]}
    back["head"] = (1 + (times if part.depth == 1 else 1)) * forward["head"]
    update = {kind: forward[kind] + back[kind] for kind in forward}
    if part.optimizer.gradient_checkpointing:
        # A block is computed again up to the last product that is needed: not its own last one, but an adapter's.
        last = 0 if part.lora else read * 2 * s.layers * s.width * s.mlp
        update["blocks"] += learnt * (forward["blocks"] - last)
        update["attention"] += learnt * forward["attention"]
    updates, scorings = passes_of(part, config)
    return {kind: updates * update[kind] + scorings * forward[kind] for kind in forward}


def tokens_read(config: TrainingConfig, prompt: float, response: float) -> float:
    """Tokens of a prompt and response that go through the blocks: packed, a prompt once for all its responses."""
    length = prompt + response - 1
    return length - (prompt * (1 - 1 / config.rollout.responses) if isinstance(config, RLConfig) else 0.0)


def passes_of(part: Part, config: TrainingConfig) -> tuple[int, int]:
    """(updates, forward passes beside them) that a step makes of each row with a model."""
    batches = 1 + config.distill.replay if isinstance(config, DistillRLConfig) else 1
    if not part.trained:
        return 0, batches
    if isinstance(config, RLConfig) and part.role == "policy":
        return batches * config.policy.epochs, 0
    if isinstance(config, DistillRLConfig):
        return batches * config.distill.prm_epochs, batches
    if isinstance(config, PrimeConfig):
        whole = config.prm.minibatch in (0, config.rollout.prompts * config.rollout.responses)
        return 1, {"after": 0 if whole else 1, "before": 2}.get(config.prm.update, 0)
    return 1, 0
