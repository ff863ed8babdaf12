"""What every stage can be told: one schema a stage, one docstring a field.

A run is a YAML file and flags for one-off changes: `openprime rl configs/rl/tiny.yaml --steps 5`.
Imports no torch.
"""

import difflib
import importlib.util
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0)]
Dtype = Literal["float32", "bfloat16"]
Template = Literal["none", "eurus", "eurus-actions"]
StepSplit = Literal["newline", "blank_line", "numbered", "actions"]
"""Where a step of a response ends: a line, a blank line, before `Step k:`, before an action tag such as [VERIFY]."""
Schema = TypeVar("Schema", bound=BaseModel)


class Section(BaseModel):
    """Refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", validate_default=True)
    positional: ClassVar[tuple[str, ...]] = ()
    """Settings of a command that may stand without their flag, in this order."""


class PromptFormat(Section):
    """From a question to what the model reads."""

    system: str = ""
    """System message put before every prompt. Empty: the template's."""
    suffix: str = ""
    """Text put behind every prompt, such as a request for a boxed answer. Empty: the template's."""
    template: Template = "none"
    """eurus: the published recipe's request for a boxed answer or a program, by the row's verifier. eurus-actions:
    with the system message of the seven actions too."""
    chat_template: Literal["auto", "none"] = "auto"
    """auto: the tokenizer's own. none: the prompt's text as it is."""


class DataConfig(PromptFormat):
    """Where prompts come from and how a row is read."""

    source: str = ""
    """`task:clock` and `task:programs` (embedded), `gym:NAME` (a task of reasoning-gym), a .jsonl, .json or .parquet
    file, or a data set on the hub."""
    subset: str = ""
    """Configuration of a hub data set that has several, such as `main` of openai/gsm8k."""
    split: str = "train"
    """Split of a hub data set or of the embedded task (train and test never share a prompt)."""
    limit: Count = 0
    """Use the first so many rows; 0 is all. For the embedded task: how many rows to make."""
    prompt_field: str = ""
    """Field with the prompt (text or chat messages), dots reach inside. Empty: found from the row's shape
    (`prompt`, `messages`, `question`, `problem`, `query`, `question_content`)."""
    prompt_template: str = ""
    """The prompt as a text with {fields} of the row, instead of one field. A list's entries stand on lines of their
    own."""
    answer_field: str = ""
    """Field with the reference answer. Empty: the first there is of `reward_model.ground_truth`, `answer`,
    `expected_answer`, `final_answer`, `input_output` and `solution`."""
    response_field: str = ""
    """Field with the demonstration, for SFT. Empty: `completion`, `response`, or the last of `messages`."""
    where: dict[str, str] = Field(default={}, validate_default=False)
    """Keep the rows whose field contains a text, such as {url: 2024_AIME}."""
    verifier: str = "math"
    """`math`, `code`, or `module:function` with the signature (prompts, completions, **columns) -> list of float.
    `gym:` data bring their own."""
    verifier_field: str = ""
    """Field that names each row's verifier, for data that mix several, such as `ability` (math, code)."""
    max_prompt_tokens: Positive = 1024
    """Longest prompt, in tokens."""
    too_long: Literal["drop", "error"] = "drop"
    """What to do with a longer prompt; dropped ones are counted and reported."""
    horizon: Annotated[int, Field(ge=2, le=32)] = 8
    """Embedded task only: operations in a prompt, which are steps in its solution."""
    task_seed: int = 0
    """Embedded task and reasoning-gym: seed of the rows (and of the demonstrator's misconceptions)."""
    gym: dict[str, Any] = Field(default={}, validate_default=False)
    """reasoning-gym only: settings of the task's generator, such as {min_terms: 2}."""


class JudgedDataConfig(DataConfig):
    """Where judged responses come from."""

    outcome_field: str = ""
    """Field with the outcome of a response in [0, 1]. Empty: `outcome`, `correct` or `label`."""
    steps_field: str = "steps"
    """Field with the steps of a response, a list of texts, for loss=steps; joined by blank lines they are the
    response."""
    labels_field: str = ""
    """Field with a label for each step (in [0, 1], or +1 and -1), or the index of the first wrong step (-1: none), from
    which on all count as wrong; for loss=steps. Empty: `labels` or `label`."""


class LoRAConfig(Section):
    """Low-rank adapters in the place of training all weights (arXiv 2106.09685); needs the extra `lora`."""

    rank: Count = 0
    """Rank of an adapter; 0 trains all weights. A policy and a PRM that both have adapters and start from the same
    model share it in memory, and with the adapters off it is the reference too."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """An adapter's product is scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Linear layers that get an adapter, such as q_proj and v_proj. Empty: all of the blocks'."""


class OptimizerConfig(Section):
    """AdamW, what it trains, and how a batch is cut into micro-batches."""

    lr: Rate = 1e-5
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After warm-up: constant, or cosine to zero at the last step."""
    warmup: Rate = 0.0
    """Linear warm-up: a share of all optimiser steps below 1, a number of steps from 1 on."""
    weight_decay: Rate = 0.0
    """AdamW's decoupled weight decay."""
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """AdamW's second-moment decay."""
    clip_grad: Annotated[float, Field(gt=0)] = 1.0
    """Largest global gradient norm."""
    tokens_per_microbatch: Positive = 16384
    """Tokens in one forward and backward pass; bounds memory, changes no result. At most 2,048 on a CPU, where
    more are slower."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    lora: LoRAConfig = LoRAConfig()


class CodeConfig(Section):
    """How programs are judged against tests, in a sandbox."""

    score: Literal["share", "all"] = "share"
    """Outcome: the share of the cases passed, or 1 only where all are."""
    max_cases: Count = 0
    """Cases of a prompt to run, drawn with a seed of the prompt; 0 is all."""
    seconds: Annotated[float, Field(gt=0)] = 4.0
    """Time for one case."""
    total_seconds: Annotated[float, Field(gt=0)] = 20.0
    """Time for all cases of one program."""
    memory_mb: Annotated[int, Field(ge=64)] = 1024
    """Memory of a program, in MiB."""
    packages: tuple[str, ...] = ("numpy",)
    """What programs may import beside the standard library."""
    allow_weak_sandbox: bool = False
    """Run programs also where this machine cannot isolate them (no Landlock or seccomp). They are then able to
    read and change your files."""

    @property
    def longest(self) -> float:
        """Seconds after which not the program but the sandbox has failed."""
        return 2 * self.total_seconds + 30


class VerifyConfig(Section):
    """Where and how verifiers run."""

    workers: Count = 0
    """Processes; 0 is one a core."""
    answers: Literal["auto", "boxed", "hashes"] = "auto"
    """Mathematics: where a response has its answer. The last box, the last line `#### answer`, or the later one."""
    seconds: Annotated[float, Field(gt=0)] = 60.0
    """Time that a user's function may take for the responses to one prompt."""
    code: CodeConfig = CodeConfig()


class RolloutConfig(Section):
    """How groups are collected."""

    prompts: Positive = 256
    """Groups in a training batch, counted after the filter."""
    responses: Annotated[int, Field(ge=2)] = 4
    """K, responses to each prompt."""
    max_response_tokens: Positive = 3072
    """Longest response, in tokens."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature; the trainer divides its logits by the same number."""
    truncated: Literal["drop", "keep"] = "keep"
    """A response cut at the limit: leave it out, or judge it as it is."""
    sequences: Positive = 256
    """Sequences that the engine decodes at a time; bounds memory, changes no sample."""


class EngineConfig(Section):
    """What samples responses."""

    kind: Literal["transformers", "vllm", "server"] = "transformers"
    """transformers: the trainer's own model. vllm: vLLM in the trainer's process. server: vLLM servers at `urls`."""
    gpu_memory: Annotated[float, Field(gt=0, le=1)] = 0.5
    """vllm: share of a GPU's memory for its weights and KV cache. Training has all of it: vLLM sleeps meanwhile. On a
    CPU the environment variable VLLM_CPU_KVCACHE_SPACE says how many GiB the cache has (1)."""
    tensor_parallel: Positive = 1
    """vllm: GPUs that share one copy of the model."""
    urls: tuple[str, ...] = ()
    """server: where they listen, such as http://node1:8000."""
    shared_folder: str = ""
    """server: a folder that they and the trainer see under the same path; new weights go through it. Empty: `weights`
    in `out`."""
    timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds without progress (vllm), or for the responses to one prompt (server), after which it counts as hung; and
    for which servers that are all gone are waited for."""
    max_staleness: Count = 0
    """server: sample up to so many steps ahead, while the trainer works; the weights are then as many steps old."""
    importance_clip: Rate = 0.0
    """C of the truncated importance weights min(p_trainer / p_sampler, C) of tokens (trap 12), where p_trainer, of the
    policy before its update, becomes the old policy of the clipped loss. 0: no weights, p_sampler is the old policy."""

    def check(self, temperature: float, trains: bool) -> list[str]:
        """Cross-field checks, for a command that trains or one that only samples; returns keys without effect."""
        if self.kind != "transformers" and temperature and not 0.01 <= temperature <= 2:
            raise ValueError(
                f"engine.kind={self.kind}: vLLM samples at temperatures of 0.01 to 2, not {temperature}"
            )
        if self.kind == "server" and not self.urls:
            raise ValueError(
                "engine.kind=server, but engine.urls is empty: say where the vLLM servers listen"
            )
        if 0 < self.importance_clip < 1:
            raise ValueError(
                f"engine.importance_clip={self.importance_clip} would shrink every token's weight: set 1 or more, or 0"
            )
        if self.max_staleness and self.kind != "server":
            raise ValueError(
                f"engine.max_staleness={self.max_staleness} needs engine.kind=server: only servers sample while the "
                "trainer works"
            )
        if self.max_staleness and not self.importance_clip:
            raise ValueError(
                "engine.max_staleness is set, but engine.importance_clip is 0: stale samples need importance weights; "
                "set engine.importance_clip=2"
            )
        used = {
            "transformers": ("kind", "importance_clip"),
            "vllm": ("kind", "gpu_memory", "tensor_parallel", "timeout", "importance_clip"),
            "server": ("kind", "urls", "shared_folder", "timeout", "max_staleness", "importance_clip"),
        }[self.kind]
        idle = () if trains else ("shared_folder", "max_staleness", "importance_clip")
        keys = [key.removeprefix("engine.") for key in changed(self, "engine")]
        return [f"engine.{key}" for key in keys if key not in used or key in idle]


class FilterConfig(Section):
    """The online prompt filter (PRIME section 4.1): which groups are kept."""

    low: Share = 0.2
    """Smallest mean outcome of a kept group."""
    high: Share = 0.8
    """Largest mean outcome of a kept group."""
    max_draws: Annotated[float, Field(ge=1)] = 10.0
    """Give up with an error after drawing this many times `rollout.prompts` prompts for one batch."""


class AdvantageConfig(Section):
    """From rewards to advantages."""

    estimator: Literal["rloo", "grpo", "reinforce"] = "rloo"
    """Baseline within a group."""
    preset: Literal["exact", "released"] = "exact"
    """exact: the paper's formulas. released: what the published training code computes (rloo only)."""
    granularity: Literal["token", "step", "response"] = "token"
    """Where process rewards stand."""
    step_delimiter: str = "\n"
    """Text that ends a step of a response."""
    process_weight: Rate = 1.0
    """Weight of the process term; 0 is the outcome-only control, and no PRM is loaded."""
    outcome_weight: Rate = 1.0
    """Weight of the outcome term."""
    process_gamma: Share = 1.0
    """Discount of process returns, per token."""
    outcome_gamma: Share = 1.0
    """Discount of outcome returns, per token."""
    scaling: Literal["none", "return"] | None = None
    """Process rewards before the baseline: as they are, or over the batch's largest absolute return.
    Unset: by preset (exact: none, released: return)."""
    whiten: bool | None = None
    """Give the advantages of a batch mean 0 and variance 1. Unset: by preset (exact: no, released: yes)."""

    @property
    def scales_by_return(self) -> bool:
        """Whether process rewards are divided by the largest return."""
        return (self.preset == "released") if self.scaling is None else self.scaling == "return"

    @property
    def whitens(self) -> bool:
        """Whether advantages are whitened."""
        return (self.preset == "released") if self.whiten is None else self.whiten


class PolicyConfig(OptimizerConfig):
    """The policy's update."""

    lr: Rate = 5e-7
    minibatch: Positive = 256
    """Responses in one optimiser step."""
    epochs: Positive = 1
    """Passes over a batch of rollouts."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The ratio is clipped below 1 minus this."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """The ratio is clipped above 1 plus this; larger than clip_low is clip-higher."""
    reduction: Literal["token", "sequence"] = "token"
    """Mean over the batch's tokens, or over responses of their mean over tokens."""


class PRMConfig(OptimizerConfig):
    """The implicit process reward model."""

    lr: Rate = 1e-6
    clip_grad: Annotated[float, Field(gt=0)] = 10.0
    model: str = ""
    """Model to start from, such as a PRM of `openprime prm`. Empty: the same as the policy."""
    reference: Literal["frozen", "policy"] = "frozen"
    """Reference of the log-ratio: the model the PRM starts from, frozen (a PRM that was trained before keeps its
    own reference); or the sampling policy."""
    beta: Annotated[float, Field(gt=0)] = 0.05
    """Reward a nat of log-ratio."""
    loss: Literal["ce", "dpo"] = "ce"
    """Cross-entropy on outcomes, or DPO on pairs of a group."""
    update: Literal["after", "before", "never"] = "after"
    """Update after scoring (one forward pass), before scoring (two), or keep the PRM frozen."""
    minibatch: Count = 0
    """Responses in one optimiser step (with dpo: rounded to whole groups); 0 is the whole batch."""


class DistillConfig(Section):
    """How the policy learns from a PRM that is learnt anew in every step; for algorithm=distill."""

    prm_epochs: Positive = 8
    """Passes of the PRM over the batch's outcomes, in minibatches of prm.minibatch."""
    low: Annotated[float, Field(le=0)] = -2.0
    """Smallest reward of a word, log phi/ref in nats: what is worse is worse no longer."""
    high: Annotated[float, Field(ge=0)] = 0.3
    """Largest reward of a word. Small: the PRM is to take away, not to invent."""
    anchor: Annotated[float, Field(gt=0)] = 0.5
    """Price of a nat of KL to the reference; the policy moves towards ref * exp(reward / anchor)."""


class EvalConfig(Section):
    """Evaluation on held-out prompts during training."""

    every: Count = 10
    """Steps between evaluations; 0 is only at the start (of rl) and at the end."""
    samples: Count = 0
    """Sampled responses a prompt for avg@k; 0 is greedy decoding alone."""
    max_response_tokens: Count = 0
    """Longest response; 0 is the same as in training."""


class FolderConfig(Section):
    """What every command has that works for long and fills a folder."""

    out: str = ""
    """The folder for everything that the command leaves."""
    resume: bool = False
    """Go on where an interrupted command stopped, in its folder."""
    seed: int = 0
    """Seed of everything random."""
    dtype: Dtype = "float32"
    """Precision of matrix products. Weights, optimiser, logits and log-probabilities are float32."""
    device: str = "auto"
    """auto (cuda where there is one), cpu, or cuda."""


class ParallelConfig(Section):
    """How several ranks share a run that torchrun starts."""

    cpu_offload: bool = False
    """Keep weights, gradients and optimiser in the host's memory; the GPU holds the block at work. Much slower."""


class RunConfig(FolderConfig):
    """What every training run has."""

    save_every: Count = 50
    """Steps between checkpoints; 0 is only at the end and on a signal."""
    keep: Positive = 2
    """Checkpoints to keep."""
    sample_every: Count = 10
    """Steps between samples written to samples.jsonl; 0 is never."""
    wandb: str = ""
    """Weights & Biases project to log to as well."""
    verify: VerifyConfig = VerifyConfig()
    parallel: ParallelConfig = ParallelConfig()


class NewModelConfig(Section):
    """A small Qwen2-architecture model and its tokenizer, made from the training data."""

    vocab_size: Annotated[int, Field(ge=260)] = 512
    """Largest vocabulary of the byte-level BPE tokenizer."""
    hidden_size: Positive = 128
    """Width; the feed-forward layer is three times as wide."""
    layers: Positive = 3
    """Transformer blocks."""
    heads: Positive = 4
    """Attention heads; must divide the width."""
    max_positions: Positive = 4096
    """Longest sequence."""


class SFTConfig(RunConfig):
    """`openprime sft`: supervised fine-tuning on demonstrations."""

    model: str = ""
    """Directory or hub id of a causal language model; `new` makes one as `new_model` says."""
    new_model: NewModelConfig = NewModelConfig()
    data: DataConfig = DataConfig()
    eval_data: DataConfig = DataConfig()
    """Held-out prompts; no source, no evaluation."""
    eval: EvalConfig = EvalConfig(every=0, max_response_tokens=512)
    sequences: Positive = 256
    """Sequences decoded at a time in evaluation."""
    epochs: Annotated[float, Field(gt=0)] = 3.0
    """Passes over the data."""
    batch: Positive = 96
    """Demonstrations in one optimiser step."""
    max_tokens: Positive = 4096
    """Longest prompt and response together; longer rows are dropped and counted."""
    optimizer: OptimizerConfig = OptimizerConfig(schedule="cosine", warmup=0.1)

    def check(self) -> None:
        """Cross-field checks."""
        require(self, "model", "out", "data.source")
        require_peft(self.optimizer)
        if self.model == "new" and self.optimizer.lora.rank:
            raise ValueError("optimizer.lora.rank: a new model has nothing to adapt: set it to 0")
        if self.model == "new" and self.new_model.hidden_size % self.new_model.heads:
            raise ValueError("new_model.heads must divide new_model.hidden_size")
        if self.eval.every and not self.eval_data.source:
            raise ValueError(
                "eval.every is set, but eval_data.source is empty: name held-out data or set eval.every=0"
            )


FROZEN_PRM = ("prm.model", "prm.reference", "prm.beta", "prm.update", "prm.tokens_per_microbatch")
PROCESS_ONLY = ("advantage.granularity", "advantage.process_gamma", "advantage.scaling")


OF_PRIME = (
    "prm.model",
    "prm.reference",
    "prm.beta",
    "prm.update",
    "policy.clip_low",
    "policy.clip_high",
    "policy.reduction",
)


class RLConfig(RunConfig):
    """`openprime rl`: online reinforcement learning with implicit process rewards."""

    algorithm: Literal["prime", "distill"] = "prime"
    """prime: the paper's algorithm 1. distill: in every step the PRM is learnt anew from the policy and then teaches
    it (training/distill.py); for small models and vocabularies, where it needs fewer rollouts."""

    model: str = ""
    """Directory or hub id of the SFT model: the policy, and where the PRM and its reference start."""
    steps: Positive = 592
    """Rollout steps."""
    data: DataConfig = DataConfig()
    eval_data: DataConfig = DataConfig(split="test")
    """Held-out prompts; no source, no evaluation."""
    rollout: RolloutConfig = RolloutConfig()
    engine: EngineConfig = EngineConfig()
    filter: FilterConfig = FilterConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    policy: PolicyConfig = PolicyConfig()
    prm: PRMConfig = PRMConfig()
    distill: DistillConfig = DistillConfig()
    eval: EvalConfig = EvalConfig()

    def check(self) -> list[str]:
        """Cross-field checks; returns warnings about settings that have no effect."""
        require(self, "model", "out", "data.source")
        require_peft(self.policy, self.prm)
        if self.algorithm == "distill":
            return self.check_distill()
        a, warnings = self.advantage, []
        on_one_base = self.policy.lora.rank and self.prm.lora.rank and self.prm.model in ("", self.model)
        recompute = self.policy.gradient_checkpointing, self.prm.gradient_checkpointing
        if on_one_base and a.process_weight and recompute[0] != recompute[1]:
            raise ValueError(
                "the policy and the PRM share one model in memory: set policy.gradient_checkpointing and "
                "prm.gradient_checkpointing to the same"
            )
        if self.filter.low > self.filter.high:
            raise ValueError(f"filter.low={self.filter.low} is above filter.high={self.filter.high}")
        if a.process_weight == 0 and a.outcome_weight == 0:
            raise ValueError(
                "advantage.process_weight and advantage.outcome_weight are both 0: nothing to learn from"
            )
        if a.preset == "released" and (a.estimator, a.granularity) != ("rloo", "token"):
            raise ValueError(
                "advantage.preset=released is defined for estimator=rloo and granularity=token only"
            )
        if self.prm.reference == "policy" and a.process_weight and self.rollout.temperature != 1:
            raise ValueError(
                "prm.reference=policy takes the log-probabilities of sampling, which a rollout.temperature other "
                "than 1 changes: set rollout.temperature=1 or prm.reference=frozen"
            )
        if a.process_weight == 0:
            unused = changed(self.prm, "prm") + [k for k in changed(a, "advantage") if k in PROCESS_ONLY]
            if unused:
                warnings.append(
                    "advantage.process_weight=0: no PRM, so these have no effect: " + ", ".join(unused)
                )
        elif a.whitens and a.process_weight == a.outcome_weight != 1:
            warnings.append(
                "advantage.process_weight and advantage.outcome_weight are equal and advantages are whitened: "
                "only the ratio of the weights has an effect (trap 3)"
            )
        if a.whitens:
            for name, weight, other in (
                ("process_weight", a.process_weight, a.outcome_weight),
                ("outcome_weight", a.outcome_weight, a.process_weight),
            ):
                if other == 0 and weight != 1:
                    warnings.append(
                        f"advantage.{name} has no effect: it is the only term and advantages are whitened"
                    )
        unused = self.engine.check(self.rollout.temperature, trains=True) + changed(self.distill, "distill")
        unused += ["advantage.outcome_gamma"] if a.outcome_weight == 0 and a.outcome_gamma != 1 else []
        if a.granularity != "step":
            unused += [k for k in changed(a, "advantage") if k == "advantage.step_delimiter"]
        if self.prm.update == "never" and a.process_weight:
            unused += [k for k in changed(self.prm, "prm") if k not in FROZEN_PRM]
        if unused:
            warnings.append("no effect under the other settings: " + ", ".join(unused))
        if (
            self.prm.update == "never"
            and self.prm.model == ""
            and self.prm.reference == "frozen"
            and a.process_weight
        ):
            raise ValueError(
                "prm.update=never with prm.model empty scores with the reference itself: every process reward is 0. "
                "Name a trained PRM in prm.model"
            )
        return warnings

    @property
    def uses_prm(self) -> bool:
        """Not so for the outcome-only control."""
        return self.algorithm == "distill" or self.advantage.process_weight > 0

    def check_distill(self) -> list[str]:
        """`check` for algorithm=distill."""
        if self.policy.lora.rank or self.prm.lora.rank:
            raise ValueError(
                "algorithm=distill makes its PRM of all the policy's weights: policy.lora.rank, prm.lora.rank must be 0"
            )
        if self.rollout.temperature != 1:
            raise ValueError("algorithm=distill compares whole distributions: set rollout.temperature=1")
        if self.prm.loss != "ce":
            raise ValueError("algorithm=distill learns its PRM by cross-entropy: set prm.loss=ce")
        if self.filter.low > self.filter.high:
            raise ValueError(f"filter.low={self.filter.low} is above filter.high={self.filter.high}")
        unused = self.engine.check(self.rollout.temperature, trains=True) + changed(
            self.advantage, "advantage"
        )
        for section, prefix in ((self.prm, "prm"), (self.policy, "policy")):
            unused += [k for k in changed(section, prefix) if k in OF_PRIME]
        return [f"algorithm=distill: these have no effect: {', '.join(unused)}"] if unused else []


class OfflinePRMConfig(RunConfig):
    """`openprime prm`: train an implicit PRM offline, on responses with outcomes or with step labels."""

    model: str = ""
    """Directory or hub id of a causal language model, or of an implicit PRM that training goes on with."""
    reference: str = ""
    """The frozen reference. Empty: the one that `model` was saved with if it is an implicit PRM, else `model`."""
    data: JudgedDataConfig = JudgedDataConfig()
    """The file of `openprime generate`, or rows with a prompt, a response and an outcome, or with steps and labels."""
    loss: Literal["ce", "dpo", "nca", "kto", "steps"] = "ce"
    """On outcomes: cross-entropy, DPO or NCA on pairs of a prompt's responses, KTO. On step labels: steps."""
    beta: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Reward a nat of log-ratio. auto: 0.05 as published, or more where responses hold too few nats for the sigmoid
    to move; an implicit PRM that training goes on with keeps its own."""
    held_out: Share = 0.1
    """Share of the prompts kept from training, to measure on."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the data."""
    batch: Positive = 64
    """Responses in one optimiser step (with dpo and nca: rounded up to whole prompts)."""
    max_tokens: Positive = 4096
    """Longest prompt and response together; longer ones are dropped and counted."""
    step_split: StepSplit = "newline"
    """Where the steps of a response end, for the held-out measures."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=5e-7, clip_grad=10.0)

    def check(self) -> list[str]:
        """Cross-field checks; returns notes on settings that have no effect."""
        require(self, "model", "out", "data.source")
        require_peft(self.optimizer)
        of_outcomes = ("data.outcome_field", "data.response_field", "step_split")
        other = of_outcomes if self.loss == "steps" else ("data.steps_field", "data.labels_field")
        keys = [key.strip(".") for key in changed(self.data, "data") + changed(self, "")]
        unused = [key for key in keys if key in other]
        return [f"no effect with loss={self.loss}: {', '.join(unused)}"] if unused else []


class GenerateConfig(FolderConfig):
    """`openprime generate MODEL`: sample and judge N responses to each prompt."""

    positional = ("model",)
    model: str = ""
    """Directory or hub id of a causal language model."""
    data: DataConfig = DataConfig()
    responses: Positive = 4
    """N, sampled responses a prompt."""
    temperature: Rate = 1.0
    """Sampling temperature; 0 is greedy decoding."""
    max_response_tokens: Positive = 3072
    """Longest response, in tokens."""
    sequences: Positive = 256
    """Sequences that the engine decodes at a time; bounds memory, changes no sample."""
    engine: EngineConfig = EngineConfig()
    verify: VerifyConfig = VerifyConfig()

    def check(self) -> None:
        """Cross-field checks."""
        require(self, "model", "out", "data.source")
        self.engine.check(self.temperature, trains=False)


class ScoreConfig(FolderConfig):
    """`openprime score FILE`: the reward of every token, step and response of a file."""

    positional = ("file",)
    file: str = ""
    """JSONL with `prompt` (or `question`, `problem`) and `response`, `responses` (texts, or the file of `openprime
    generate`) or `steps` (a list of texts, joined by blank lines)."""
    prm: str = ""
    """Directory or hub id of an implicit PRM."""
    reference: str = ""
    """Its reference. Empty: the one that the PRM was saved with."""
    prompt: PromptFormat = PromptFormat()
    """How prompts are put to the PRM. The row's `verifier` (math if it has none) chooses the template's request."""
    step_split: StepSplit = "newline"
    """Where a step of a response ends."""
    tokens_per_microbatch: Positive = 16384
    """Tokens in one forward pass; bounds memory, changes no result."""

    def check(self) -> None:
        """Cross-field checks."""
        require(self, "file", "prm", "out")


class BenchmarkConfig(Section):
    """A benchmark: where its items are and how an answer is judged. One small YAML file each, in configs/benchmarks."""

    about: str = ""
    """What it is, in a line."""
    kind: Literal["answers", "first_error"] = "answers"
    """answers: responses are judged by a verifier. first_error: a PRM finds the first wrong step (ProcessBench)."""
    data: DataConfig = DataConfig(split="test", max_prompt_tokens=1_000_000, too_long="error")
    answers: Literal["auto", "boxed", "hashes"] = "auto"
    """Mathematics: where a response has its answer."""
    max_response_tokens: Positive = 3072
    """Longest response, in tokens."""


class EvaluateConfig(FolderConfig):
    """`openprime evaluate MODEL --benchmark NAME`: accuracy, votes and Best-of-N on benchmarks."""

    positional = ("model",)
    model: str = ""
    """Directory or hub id of a causal language model. Not needed with `responses`, nor for ProcessBench."""
    benchmark: tuple[str, ...] = ()
    """Names of benchmarks (configs/benchmarks) or YAML files of your own."""
    data: tuple[str, ...] = ()
    """A local file for each benchmark, in the same order, instead of the hub; '' for one that has none."""
    responses: tuple[str, ...] = ()
    """A file of recorded responses for each benchmark, in the same order ('' for none), judged instead of sampling:
    line i is {"responses": [...]} for item i. Without `samples` all of them."""
    limit: Count = 0
    """Use the first so many items; 0 is all."""
    samples: Count = 0
    """N, sampled responses an item, beside the greedy one."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature."""
    max_response_tokens: Count = 0
    """Longest response, in tokens; 0 is as the benchmark says."""
    template: Literal["auto", "none", "eurus", "eurus-actions"] = "auto"
    """How items are asked. auto: as the model was trained where it was trained here, else as the benchmark says."""
    prm: str = ""
    """Directory or hub id of an implicit PRM for Best-of-N and ProcessBench; empty: without."""
    reference: str = ""
    """The PRM's reference. Empty: the one that the PRM was saved with."""
    step_split: StepSplit = "newline"
    """Where a step of a response ends, for the PRM's step rewards."""
    sequences: Positive = 256
    """Sequences that the engine decodes at a time; bounds memory, changes no sample."""
    engine: EngineConfig = EngineConfig()
    tokens_per_microbatch: Positive = 16384
    """Tokens in one scoring pass."""
    verify: VerifyConfig = VerifyConfig(code=CodeConfig(score="all", seconds=10.0, total_seconds=60.0))

    def check(self) -> None:
        """Cross-field checks."""
        require(self, "benchmark", "out")
        self.engine.check(self.temperature, trains=False)
        if len(set(self.benchmark)) < len(self.benchmark):
            raise ValueError(f"benchmark: one is named twice: {', '.join(self.benchmark)}")
        for name in ("data", "responses"):
            files = getattr(self, name)
            if files and len(files) != len(self.benchmark):
                raise ValueError(
                    f"{name}: {len(files)} files for {len(self.benchmark)} benchmarks: name one for each, in order"
                )


class AskConfig(Section):
    """`openprime ask MODEL "QUESTION"`: an answer, and with a PRM the reward of every token of it."""

    positional = ("model", "question")
    model: str = ""
    """Directory or hub id of a causal language model."""
    question: str = ""
    """What to ask. Empty: read questions one after the other."""
    kind: Literal["math", "code"] = "math"
    """What the template asks for: a boxed answer or a program."""
    template: Literal["auto", "none", "eurus", "eurus-actions"] = "auto"
    """How the question is asked. auto: as the model was trained where it was trained here, else eurus."""
    prm: str = ""
    """Directory or hub id of an implicit PRM, which colours every token; empty: without."""
    reference: str = ""
    """The PRM's reference. Empty: the one that the PRM was saved with."""
    page: str = ""
    """Write the answers as a page too, such as answer.html."""
    temperature: Rate = 0.0
    """Sampling temperature; 0 is greedy decoding."""
    max_response_tokens: Positive = 3072
    """Longest answer, in tokens."""
    seed: int = 0
    """Seed of sampling."""
    dtype: Dtype = "float32"
    """Precision of matrix products."""
    device: str = "auto"
    """auto (cuda where there is one), cpu, or cuda."""

    def check(self) -> None:
        """Cross-field checks."""
        require(self, "model")
        if self.reference and not self.prm:
            raise ValueError("reference is the PRM's, but no PRM is named: give --prm as well")


class VerifyStageConfig(Section):
    """`openprime verify FILE`: judge the responses in a file, to try a verifier before training with it."""

    positional = ("file",)
    file: str = ""
    """JSONL: `response` and `answer` (mathematics), `tests` (code), or what the verifier of --verifier reads."""
    out: str = ""
    """JSONL to write: the same rows with `outcome`, `reason` and `seconds`."""
    verifier: str = ""
    """Judge every row with this one. Empty: the row's `verifier`, else code where it has tests, else math."""
    verify: VerifyConfig = VerifyConfig()

    def check(self) -> None:
        """Cross-field checks."""
        require(self, "file", "out")


class ReportConfig(Section):
    """`openprime report`: one page about training runs and an evaluation."""

    runs: tuple[str, ...] = ()
    """Folders of runs, drawn beside each other."""
    evaluation: str = ""
    """Folder of `openprime evaluate`; empty: without."""
    out: str = ""
    """The page to write, such as report.html."""
    title: str = "PRIME"
    """The page's title."""

    def check(self) -> None:
        """Cross-field checks."""
        require(self, "runs", "out")


class PlanConfig(Section):
    """`openprime plan CONFIG`: memory, tokens, FLOPs, days and cost of a training run, before it is begun."""

    positional = ("config",)
    config: str = ""
    """Configuration of `openprime sft`, `rl` or `prm`."""
    stage: Literal["auto", "sft", "rl", "prm"] = "auto"
    """Which of them. auto: the name of the file's folder."""
    set: tuple[str, ...] = ()
    """Settings of the configuration to change, such as policy.lora.rank=32 rollout.sequences=64."""
    gpus: Positive = 8
    """All of the run's."""
    gpu_memory: Annotated[float, Field(gt=0)] = 80.0
    """Of one, in GiB."""
    gpus_per_node: Positive = 8
    """For the memory of a node."""
    architecture: str = ""
    """config.json of the model, or its folder, where `model` is not here yet."""
    prm_architecture: str = ""
    """The same of `prm.model`."""
    gpu_tflops: Annotated[float, Field(gt=0)] = 312.0
    """Peak of a GPU in bfloat16, in 10^12 FLOPs a second: 312 for A100 and A800, 989 for H100."""
    mfu: Annotated[float, Field(gt=0, le=1)] = 0.35
    """Share of the peak that training reaches."""
    sampling_mfu: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the peak that sampling reaches, where `tokens_per_second` is not given."""
    tokens_per_second: Rate = 0.0
    """Measured: tokens that all GPUs together sample in a second (`rollout/tokens_per_second`)."""
    pass_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the groups that pass the filter (`rollout/passed`)."""
    prompt_tokens: Count = 0
    """Of a prompt, on average; 0: half of the longest."""
    response_tokens: Count = 0
    """Of a response, on average; 0: half of the longest."""
    rows: Count = 0
    """sft and prm: rows of the data, for the number of steps; 0: `data.limit`."""
    price_per_gpu_hour: Rate = 2.0
    """In any currency."""
    format: Literal["table", "json"] = "table"
    """What is printed."""

    def check(self) -> None:
        """Cross-field checks."""
        require(self, "config")


class DemoConfig(Section):
    """`openprime demo`: a small model learns by PRIME on this machine, in minutes."""

    out: str = "demo"
    """Folder for everything that the demo makes."""
    seed: int = 0
    """Seed of the whole demo."""


def changed(section: BaseModel, prefix: str) -> list[str]:
    """Keys of a section that differ from their defaults."""
    fields = type(section).model_fields
    return [f"{prefix}.{name}" for name, field in fields.items() if getattr(section, name) != field.default]


def require(config: BaseModel, *paths: str) -> None:
    """Refuse empty settings that have no default."""
    for path in paths:
        value: Any = config
        for name in path.split("."):
            value = getattr(value, name)
        if not value:
            raise ValueError(
                f"{path} is not set: put it into the YAML file or give --{path.replace('_', '-')}"
            )


def require_peft(*sections: OptimizerConfig) -> None:
    """Refuse adapters where the library for them is missing."""
    if any(section.lora.rank for section in sections) and importlib.util.find_spec("peft") is None:
        raise ValueError("lora.rank is set, but peft is not installed: pip install 'openprime[lora]'")


def package_configs() -> Path:
    """The folder with the configurations that come with the package."""
    here = Path(__file__).resolve().parent
    return next(place for place in (here / "configs", here.parent.parent / "configs") if place.is_dir())


def find_config(name: str) -> Path:
    """A configuration file: as named, or among those that come with the package."""
    here = Path(__file__).resolve().parent
    places = [Path(name), *(root / name for root in (here, here.parent.parent)), here / "configs" / name]
    places.append(here.parent.parent / "configs" / name)
    for place in places:
        if place.is_file():
            return place
    raise ValueError(f"{name}: no such configuration file, neither here nor among those of the package")


def read_config(schema: type[Schema], path: Path) -> Schema:
    """Read a YAML file into a schema, naming each fault by file and key."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected keys and values, found {type(values).__name__}")
    try:
        return schema.model_validate(merge(schema().model_dump(), values))
    except ValidationError as error:
        raise ValueError(explain(error, schema, str(path))) from error


def merge(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The values over the defaults, section by section: a section keeps the defaults that it does not name."""
    merged = dict(defaults)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(defaults.get(key), dict)
        merged[key] = merge(defaults[key], value) if both else value
    return merged


def explain(error: ValidationError, schema: type[BaseModel], where: str) -> str:
    """One line a fault: key path, what is wrong, and for an unknown key the nearest valid one."""
    lines = []
    for fault in error.errors():
        path = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            *parents, name = path.split(".")
            known = key_paths(schema)
            depth = len(parents)
            here = {k.split(".")[depth] for k in known if k.split(".")[:depth] == parents}
            beside = [".".join([*parents, k]) for k in difflib.get_close_matches(name, sorted(here), 1)]
            elsewhere = [k for k in known if k.split(".")[-1] == name] or difflib.get_close_matches(
                path, known, 1
            )
            near = (beside + elsewhere)[:1]
            hint = f"; did you mean {near[0]}?" if near else f"; valid here: {', '.join(sorted(here))}"
            lines.append(f"{where}: unknown key {path}{hint}")
        else:
            lines.append(f"{where}: {path}: {fault['msg']} (found {fault['input']!r})")
    return "\n".join(lines)


def key_paths(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """All keys of a schema, with dots."""
    paths = []
    for name, field in schema.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            paths += key_paths(kind, f"{prefix}{name}.")
        else:
            paths.append(prefix + name)
    return paths
