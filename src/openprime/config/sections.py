"""Settings that several commands share: one class a topic, one docstring a field."""

import importlib.util
import json
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from openprime.types import UserError


def zero_or(lowest: float) -> AfterValidator:
    """Refuses numbers that are nearly nothing."""

    def check(value: float) -> float:
        if 0 < value < lowest:
            raise ValueError(f"Input should be 0, or {lowest:g} and more")
        return value

    return AfterValidator(check)


# No value of a range makes a command grow without end, or compute what cannot mean anything.
LARGEST = 2**31 - 1
Positive = Annotated[int, Field(gt=0, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, le=1e6), zero_or(1e-12)]
Scale = Annotated[float, Field(ge=1e-6, le=1e6)]
Norm = Annotated[float, Field(ge=1e-6, le=1e12)]
Seconds = Annotated[float, Field(ge=1e-3, le=1e6)]
Temperature = Annotated[float, Field(ge=0.01, le=100)]
TemperatureOr0 = Annotated[float, Field(ge=0, le=100), zero_or(0.01)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Length = Annotated[int, Field(gt=0, le=2**20)]
"""Of a response, in tokens."""
LengthOr0 = Annotated[int, Field(ge=0, le=2**20)]
Several = Annotated[int, Field(gt=0, le=2**17)]
"""Prompts or sequences at a time."""
Passes = Annotated[float, Field(ge=1e-6, le=1000)]
"""Over the data."""
AT_A_TIME = 2**28
"""Largest number of tokens that are sampled at a time."""
MADE = 2**20
"""Largest number of rows that an embedded task makes."""
Dtype = Literal["auto", "float32", "bfloat16"]
Template = Literal["none", "eurus", "eurus-actions"]
StepSplit = Literal["newline", "blank_line", "numbered", "actions"]
"""Where a step of a response ends: a line, a blank line, before `Step k:`, before an action tag such as [VERIFY]."""


class Section(BaseModel):
    """Refuses keys it does not know, numbers that are not finite, and text that no file can hold."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)
    positional: ClassVar[tuple[str, ...]] = ()
    """Settings of a command that may stand without their flag, in this order."""

    required: ClassVar[tuple[str, ...]] = ()
    """Settings of a command that have no default."""

    @field_validator("*")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        for text in _texts(value):
            if "\0" in text or (not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text)):
                raise ValueError("Input should be text without zeros and halves of characters")
        return value

    def check(self) -> list[str]:
        """Refuse settings that are missing or cannot be together; returns notes on those that have no effect."""
        for path in self.required:
            if not value_of(self, path):
                flag = path.replace("_", "-")
                raise UserError(f"{path} is not set: put it into the YAML file or give --{flag}")
        return []


def _texts(value: Any) -> Iterator[str]:
    """The texts in plain values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | dict):
        for inner in value.items() if isinstance(value, dict) else value:
            yield from _texts(inner)


class DeviceConfig(Section):
    """Where and how a command computes."""

    seed: Seed = 0
    """Seed of everything random."""
    dtype: Dtype = "auto"
    """Precision of matrix products: float32, bfloat16, or auto (bfloat16 on a GPU that has it, float32 on a CPU).
    Weights, optimiser, logits and log-probabilities are float32."""
    device: str = "auto"
    """auto (cuda where there is one), cpu, or cuda."""


class ScoringConfig(Section):
    """An implicit PRM that scores responses."""

    prm: str = ""
    """Directory or hub id of an implicit PRM; empty: without."""
    reference: str = ""
    """The PRM's reference. Empty: the one that the PRM was saved with."""


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
    """`task:clock`, `task:programs` and `task:words` (embedded), `gym:NAME` (a task of reasoning-gym), a .jsonl,
    .json or .parquet file, or a data set on the hub."""
    subset: str = ""
    """Configuration of a hub data set that has several, such as `main` of openai/gsm8k."""
    split: str = "train"
    """Split of a hub data set or of the embedded task (train and test never share a prompt)."""
    limit: Count = 0
    """Use the first so many rows; 0 is all. For the embedded task: how many rows to make."""
    prompt_field: str = ""
    """Field with the prompt (text or chat messages), dots reach inside. Empty: found from the row's shape
    (`prompt`, `messages`, `question`, `problem`, `query`, `question_content`, `conversations`, `trajectory`). The
    answer at a conversation's end is left out. Messages, and a row's `tools`, may have all that the model's chat
    template writes."""
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
    allow_modules: tuple[str, ...] = ()
    """`module:function` that rows may name there, beside `verifier`. Others are refused: a row must not choose what
    code is imported and run."""
    max_prompt_tokens: Annotated[int, Field(gt=0, le=2**24)] = 1024
    """Longest prompt, in tokens."""
    too_long: Literal["drop", "error"] = "drop"
    """What to do with a longer prompt; dropped ones are counted and reported."""
    horizon: Annotated[int, Field(ge=2, le=32)] = 8
    """Embedded task only: operations in a prompt, which are steps in its solution."""
    task_seed: Seed = 0
    """Embedded task and reasoning-gym: seed of the rows (and of the demonstrator's misconceptions)."""
    gym: dict[str, Any] = Field(default={}, validate_default=False)
    """reasoning-gym only: settings of the task's generator, such as {min_terms: 2}."""

    @field_validator("gym")
    @classmethod
    def _is_plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        return plain(value)

    @model_validator(mode="after")
    def _can_be_made(self) -> "DataConfig":
        if self.source.startswith(("task:", "gym:")) and self.limit > MADE:
            raise ValueError(f"limit={self.limit}: an embedded task makes at most {MADE:,} rows")
        return self


def plain(value: dict[str, Any]) -> dict[str, Any]:
    """A table of texts and finite numbers. Raises ValueError for any other."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Input should be texts and finite numbers: {error}") from error
    return value


class JudgedDataConfig(DataConfig):
    """Where judged responses come from."""

    outcome_field: str = ""
    """Field with the outcome of a response in [0, 1]. Empty: `outcome`, `correct` or `label`; rows with `chosen` and
    `rejected` need none."""
    steps_field: str = "steps"
    """Field with the steps of a response, a list of texts, for loss=steps; joined by blank lines they are the
    response. `completions` will do, and an `input` of the problem and its steps, each with a mark (Math-Shepherd)."""
    labels_field: str = ""
    """Field with a label for each step (in [0, 1], or +1 and -1), or the index of the first wrong step (-1: none), from
    which on all count as wrong; for loss=steps; + and - will do. Empty: `labels`, `label`, `values` or `value`."""


class LoRAConfig(Section):
    """Low-rank adapters in the place of training all weights (arXiv 2106.09685); needs the extra `lora`."""

    rank: Annotated[int, Field(ge=0, le=8192)] = 0
    """Rank of an adapter; 0 trains all weights. A policy and a PRM that both have adapters and start from the same
    model share it in memory, and with the adapters off it is the reference too."""
    alpha: Scale = 32.0
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
    beta2: Annotated[float, Field(ge=1e-6, lt=1)] = 0.999
    """AdamW's second-moment decay."""
    clip_grad: Norm = 1.0
    """Largest global gradient norm."""
    tokens_per_microbatch: Positive = 16384
    """Tokens in one forward and backward pass; bounds memory, changes no result. At most 2,048 on a CPU, where
    more are slower."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


class LoRAOptimizerConfig(OptimizerConfig):
    """AdamW on all weights of a model or on an adapter."""

    lora: LoRAConfig = LoRAConfig()


class CodeConfig(Section):
    """How programs are judged against tests, in a sandbox."""

    score: Literal["share", "all"] = "share"
    """Outcome: the share of the cases passed, or 1 only where all are."""
    max_cases: Count = 0
    """Cases of a prompt to run, drawn with a seed of the prompt; 0 is all."""
    seconds: Seconds = 4.0
    """Time for one case."""
    total_seconds: Seconds = 20.0
    """Time for all cases of one program."""
    memory_mb: Annotated[int, Field(ge=64, le=2**22)] = 1024
    """Memory of a program, in MiB."""
    packages: tuple[str, ...] = ("numpy", "scipy", "sortedcontainers")
    """What programs may import beside the standard library. These three where they are installed; others must be."""
    allow_weak_sandbox: bool = False
    """Run programs also where this machine cannot isolate them (no Landlock or seccomp). They are then able to
    read and change your files."""

    @property
    def longest(self) -> float:
        """Seconds after which not the program but the sandbox has failed."""
        return 2 * self.total_seconds + 30


class VerifyConfig(Section):
    """Where and how verifiers run."""

    workers: Annotated[int, Field(ge=0, le=4096)] = 0
    """Processes; 0 is one a core."""
    answers: Literal["auto", "boxed", "last_box", "hashes"] = "auto"
    """Mathematics: where a response has its answer. In boxes, in lines `#### answer`, or in what comes later; all must
    be right, but with last_box, as public evaluations have it, only the last box."""
    rounded_decimals: bool = False
    """Mathematics: accept a decimal of six significant digits or more that rounds the reference (1.41421 for the root
    of 2)."""
    seconds: Seconds = 60.0
    """Time that a user's function may take for the responses to one prompt."""
    code: CodeConfig = CodeConfig()


class RolloutConfig(Section):
    """How groups are collected."""

    prompts: Several = 256
    """Groups in a training batch, counted after the filter."""
    responses: Annotated[int, Field(ge=2, le=2**14)] = 4
    """K, responses to each prompt."""
    max_response_tokens: Length = 3072
    """Longest response, in tokens."""
    temperature: Temperature = 1.0
    """Sampling temperature; the trainer divides its logits by the same number."""
    truncated: Literal["drop", "keep"] = "keep"
    """A response cut at the limit: leave it out, or judge it as it is."""
    sequences: Several = 256
    """Sequences that the engine decodes at a time; bounds memory, changes no sample."""
    max_staleness: Annotated[int, Field(ge=0, le=1000)] = 0
    """engine.kind=server: sample up to so many steps ahead, while the trainer works; the weights are then as many
    steps old. Needs policy.importance_clip."""

    @model_validator(mode="after")
    def _can_be_held(self) -> "RolloutConfig":
        if self.prompts * self.responses > 2**22:
            raise ValueError(f"prompts * responses: at most {2**22:,} in a batch")
        return self


VLLM_OURS = {
    "model": "model",
    "skip_tokenizer_init": "",
    "trust_remote_code": "",
    "dtype": "dtype",
    "max_model_len": "data.max_prompt_tokens and max_response_tokens",
    "max_num_seqs": "sequences",
    "gpu_memory_utilization": "engine.gpu_memory",
    "tensor_parallel_size": "engine.tensor_parallel",
    "distributed_executor_backend": "",
    "enable_sleep_mode": "",
    "generation_config": "",
    "logprobs_mode": "",
    "worker_extension_cls": "",
    "seed": "seed",
}
"""Arguments of `vllm.LLM` that `engines/vllm.py::start_vllm` gives, and the setting that they come from, if any."""


class AutoEngineConfig(Section):
    """vLLM where it is installed and there is a GPU, else the trainer's own model, as they are by default."""

    kind: Literal["auto"] = "auto"
    """auto: vllm where it is installed and there is a GPU, else transformers. transformers: the trainer's own model.
    vllm: vLLM in the trainer's process. server: vLLM servers. Each has settings of its own:
    `--engine.kind vllm --help`."""


class TransformersEngineConfig(Section):
    """The trainer's own model samples."""

    kind: Literal["transformers"] = "transformers"
    """Or auto, vllm, server."""


class VLLMEngineConfig(Section):
    """vLLM in the trainer's process."""

    kind: Literal["vllm"] = "vllm"
    """Or auto, transformers, server."""
    gpu_memory: Annotated[float, Field(ge=0.01, le=1)] = 0.5
    """Share of a GPU's memory for its weights and KV cache. Training has all of it: vLLM sleeps meanwhile. On a
    CPU the environment variable VLLM_CPU_KVCACHE_SPACE says how many GiB the cache has (1)."""
    tensor_parallel: Annotated[int, Field(gt=0, le=1024)] = 1
    """GPUs that share one copy of the model."""
    timeout: Seconds = 600.0
    """Seconds without progress after which it counts as hung."""
    args: dict[str, Any] = Field(default={}, validate_default=False)
    """More arguments of `vllm.LLM`, such as {max_num_batched_tokens: 16384, enforce_eager: true}. Those that are set
    from here are refused."""

    @field_validator("args")
    @classmethod
    def _are_not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in VLLM_OURS:
                instead = f"set {VLLM_OURS[name]}" if VLLM_OURS[name] else "training needs it as it is"
                raise ValueError(f"{name} is not free: {instead}")
        return plain(value)


class ServerEngineConfig(Section):
    """vLLM servers, here or on other machines."""

    kind: Literal["server"] = "server"
    """Or auto, transformers, vllm."""
    urls: tuple[str, ...] = ()
    """Where they listen, such as http://node1:8000."""
    timeout: Seconds = 600.0
    """Seconds for the responses to one prompt after which a server counts as hung; and for which servers that are all
    gone are waited for."""
    shared_folder: str = ""
    """In training: a folder that they and the trainer see under the same path; new weights go through it. Empty:
    `weights` in `out`."""
    in_flight: bool = False
    """Hand new weights over while servers sample ahead of the trainer (rollout.max_staleness): responses under way go
    on from them. Otherwise a server gets them when it has answered all that was asked of it."""


EngineConfig = Annotated[
    AutoEngineConfig | TransformersEngineConfig | VLLMEngineConfig | ServerEngineConfig,
    Field(discriminator="kind"),
]


def vllm_samples_at(temperature: float) -> bool:
    """Whether vLLM takes a temperature as it is."""
    return not temperature or 0.01 <= temperature <= 2


def check_engine(engine: EngineConfig, temperature: float) -> None:
    """Refuse what an engine cannot do."""
    if engine.kind in ("vllm", "server") and not vllm_samples_at(temperature):
        raise UserError(
            f"engine.kind={engine.kind}: vLLM samples at temperatures of 0.01 to 2, not {temperature}"
        )
    if not isinstance(engine, ServerEngineConfig):
        return
    if not engine.urls:
        raise UserError("engine.kind=server, but engine.urls is empty: say where the vLLM servers listen")
    for url in engine.urls:
        check_url(url, "engine.urls")


def check_url(url: str, where: str) -> None:
    """Refuse what is no address of a server."""
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        right = False
    if not right:
        raise UserError(f"{where}: {url!r} is no address such as http://node1:8000")


def check_memory(sequences: int, responses: int, tokens: int, where: str) -> None:
    """Refuse what no memory holds: the tokens of all sequences that are decoded at a time."""
    if max(sequences, responses) * tokens > AT_A_TIME:
        raise UserError(
            f"{where}: {max(sequences, responses):,} sequences of up to {tokens:,} tokens at a time are more than "
            f"{AT_A_TIME:,} tokens: lower sequences, or the longest response"
        )


class FilterConfig(Section):
    """The online prompt filter (PRIME section 4.1): which groups are kept."""

    low: Share = 0.2
    """Smallest mean outcome of a kept group."""
    high: Share = 0.8
    """Largest mean outcome of a kept group."""
    max_draws: Annotated[float, Field(ge=1, le=1e6)] = 10.0
    """Give up with an error after drawing this many times `rollout.prompts` prompts for one batch."""
    margin: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Prompts beyond those of which enough pass on average, in standard deviations of how many pass: with 0 about every
    second draw leaves the batch short and another one follows, with 1.5 one in ten does, for more surplus rollouts.
    Worth it where a draw takes as long as its longest response, however few its prompts."""


class OutcomeAdvantageConfig(Section):
    """From outcomes to advantages."""

    estimator: Literal["rloo", "grpo", "reinforce"] = "rloo"
    """Baseline within a group."""
    preset: Literal["exact", "released"] = "exact"
    """exact: the paper's formulas. released: what the published training code computes (rloo only)."""
    outcome_gamma: Share = 1.0
    """Discount of outcome returns, per token."""
    whiten: bool | None = None
    """Give the advantages of a batch mean 0 and variance 1. Unset: by preset (exact: no, released: yes)."""

    @property
    def whitens(self) -> bool:
        """Whether advantages are whitened."""
        return (self.preset == "released") if self.whiten is None else self.whiten

    def check(self) -> list[str]:
        """Refuse what the published training code does not compute."""
        if self.preset == "released" and self.estimator != "rloo":
            raise UserError("advantage.preset=released is defined for estimator=rloo only")
        return super().check()


class AdvantageConfig(OutcomeAdvantageConfig):
    """From process rewards and outcomes to advantages."""

    granularity: Literal["token", "step", "response"] = "token"
    """Where process rewards stand."""
    step_delimiter: str = "\n"
    """Text that ends a step of a response, for granularity=step."""
    process_weight: Rate = 1.0
    """Weight of the process term, above 0: outcome rewards alone are algorithm=outcome."""
    outcome_weight: Rate = 1.0
    """Weight of the outcome term."""
    skill_gate: bool = False
    """Multiply the process weight by max(0, 2 a - 1), where a is the moving average of the PRM's pairwise accuracy on
    groups that are new to it: one that ranks no better than chance counts nothing."""
    process_gamma: Share = 1.0
    """Discount of process returns, per token."""
    scaling: Literal["none", "return"] | None = None
    """Process rewards before the baseline: as they are, or over the batch's largest absolute return.
    Unset: by preset (exact: none, released: return)."""

    @property
    def scales_by_return(self) -> bool:
        """Whether process rewards are divided by the largest return."""
        return (self.preset == "released") if self.scaling is None else self.scaling == "return"

    def check(self) -> list[str]:
        """Refuse what the published training code does not compute."""
        if self.preset == "released" and self.granularity != "token":
            raise UserError("advantage.preset=released is defined for granularity=token only")
        return super().check()


class DistillPolicyConfig(LoRAOptimizerConfig):
    """The policy's update by distillation."""

    lr: Rate = 5e-7
    minibatch: Positive = 256
    """Responses in one optimiser step."""
    epochs: Annotated[int, Field(gt=0, le=1000)] = 1
    """Passes over a batch of rollouts."""
    mismatch_limit: Rate | Literal["auto"] = "auto"
    """Largest mean distance between the trainer's and the sampler's log-probabilities of the first batch, in nats a
    token; the run ends above it. auto: 0.01 in float32, 0.2 in bfloat16. 0: no limit."""


class PolicyConfig(DistillPolicyConfig):
    """The policy's update."""

    clip_low: Annotated[float, Field(ge=1e-6, lt=1)] = 0.2
    """The ratio is clipped below 1 minus this."""
    clip_high: Scale = 0.2
    """The ratio is clipped above 1 plus this; larger than clip_low is clip-higher."""
    reduction: Literal["token", "sequence"] = "token"
    """Mean over the batch's tokens, or over responses of their mean over tokens."""
    importance_clip: Rate = 0.0
    """C of the truncated importance weights min(p_trainer / p_sampler, C) of tokens (trap 12), 1 or more, where
    p_trainer, of the policy before its update, becomes the old policy of the clipped loss. 0: no weights, p_sampler is
    the old policy."""


class DistillPRMConfig(OptimizerConfig):
    """The implicit process reward model that distillation learns anew in every step. It has an adapter where the policy
    has one (policy.lora)."""

    lr: Rate = 1e-6
    clip_grad: Norm = 10.0
    minibatch: Count = 0
    """Responses in one optimiser step, in whole groups where pairs are compared; 0 is the whole batch."""


class PRMConfig(DistillPRMConfig, LoRAOptimizerConfig):
    """The implicit process reward model."""

    model: str = ""
    """Model to start from, such as a PRM of `openprime prm`. Empty: the same as the policy."""
    reference: Literal["frozen", "policy"] = "frozen"
    """Reference of the log-ratio: the model the PRM starts from, frozen (a PRM that was trained before keeps its
    own reference); or the sampling policy."""
    beta: Scale | Literal["auto"] = 0.05
    """Scale of the log-ratio: r = beta log(phi/ref). auto: what fits the first batch, as in `openprime prm`."""
    loss: Literal["ce", "dpo", "prefix"] = "ce"
    """Cross-entropy on outcomes, DPO on pairs of a group, or cross-entropy of every prefix's mean value, with a
    margin (set beta to auto)."""
    margin: Rate | Literal["auto"] = "auto"
    """loss=prefix: how far the values of right and wrong responses are to be from 0. auto: half of what the median
    response of the first batch can reach."""
    balance: bool = False
    """loss=ce or prefix: let a group's accuracy explain how hard its prompt is (values are shifted by its log-odds),
    and weigh the rarer kind of response more."""
    update: Literal["after", "before", "never"] = "after"
    """Update after scoring (one forward pass), before scoring (two), or keep the PRM frozen."""


class DistillConfig(Section):
    """How the policy learns from a PRM that is learnt anew in every step."""

    prm_epochs: Annotated[int, Field(gt=0, le=1000)] = 2
    """Passes of the PRM over the batch's outcomes, in minibatches of prm.minibatch."""
    replay: Count = 0
    """Batches of the steps before that PRM and policy learn from again, beside the step's own: fewer rollouts for more
    compute, for a step learns from 1 + replay batches."""
    prm_depth: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the blocks, the last ones, that the PRM learns. Below 1 the others, embeddings and head stay as in the
    policy: they take no backward pass, no optimiser and no second copy. Not with policy.lora."""
    low: Annotated[float, Field(ge=-1e6, le=0)] = -2.0
    """Lower clip of the per-token log-ratio log(phi/ref), in nats."""
    high: Rate = 0.6
    """Upper clip of the per-token log-ratio log(phi/ref), in nats. Small: the PRM is to take away, not to invent."""
    kl_coefficient: Scale = 1.0
    """Coefficient of KL(policy || ref); the policy moves towards ref * exp(reward / kl_coefficient)."""
    candidates: Annotated[int, Field(gt=0, le=2**20)] = 32
    """How many of a token's likeliest alternatives are told apart; the others are one outcome. Memory grows with it,
    not with the vocabulary."""
    outcome_weight: Rate = 0.3
    """Weight of the clipped policy loss on outcome advantages beside the distillation loss: it leads on where a PRM of
    one batch says little. 0: none."""


class EvalConfig(Section):
    """Evaluation on held-out prompts during training."""

    every: Count = 10
    """Steps between evaluations; 0 is only at the start (of rl) and at the end."""
    samples: Annotated[int, Field(ge=0, le=2**14)] = 0
    """Sampled responses a prompt for avg@k; 0 is greedy decoding alone."""
    max_response_tokens: LengthOr0 = 0
    """Longest response; 0 is the same as in training."""


class ParallelConfig(Section):
    """How several ranks share a run that torchrun starts."""

    replicas: Positive = 1
    """Copies of every model, each in shares over as many consecutive ranks: where it is the number of machines, weights
    are gathered within a machine, and only gradients travel between them."""

    shard: bool = False
    """Keep models as several ranks do in a single process too: so that cpu_offload fits a model on one GPU, or to try
    on one GPU what several will do."""
    cpu_offload: bool = False
    """Keep weights, gradients and optimiser in the host's memory; the GPU holds the block at work. Much slower."""
    save_in_background: bool = False
    """Write checkpoints while training goes on: it waits until they have been copied to the host's memory, which must
    have room for them (12 bytes a trained parameter, over all ranks)."""

    def shares(self, ranks: int) -> int:
        """Shares of each copy of a model. Raises UserError where the ranks cannot be divided among the copies."""
        if ranks % self.replicas:
            raise UserError(
                f"parallel.replicas={self.replicas}: {ranks} ranks cannot be divided into as many equal parts"
            )
        return ranks // self.replicas


def value_of(config: BaseModel, path: str) -> Any:
    """The setting at a dotted path."""
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def check_importance(policy: PolicyConfig, rollout: RolloutConfig) -> None:
    """Refuse importance weights that shrink every token's, and stale samples without any."""
    clip = policy.importance_clip
    if 0 < clip < 1:
        raise UserError(
            f"policy.importance_clip={clip} would shrink every token's weight: set 1 or more, or 0"
        )
    if rollout.max_staleness and not clip:
        raise UserError(
            "rollout.max_staleness is set, but policy.importance_clip is 0: stale samples need importance weights; "
            "set policy.importance_clip=2"
        )


def check_adapters(parallel: ParallelConfig, *sections: LoRAOptimizerConfig) -> None:
    """Refuse adapters where they cannot be."""
    if not any(section.lora.rank for section in sections):
        return
    if importlib.util.find_spec("peft") is None:
        raise UserError("lora.rank is set, but peft is not installed: pip install 'openprime[lora]'")
    if parallel.cpu_offload:
        raise UserError(
            "parallel.cpu_offload is for models that are trained whole: leave it out, or set lora.rank=0"
        )


def check_shared_base(policy: OptimizerConfig, prm: OptimizerConfig) -> None:
    """Refuse two adapters on one model of which one recomputes and the other does not."""
    if policy.gradient_checkpointing != prm.gradient_checkpointing:
        raise UserError(
            "the policy and the PRM share one model in memory: set policy.gradient_checkpointing and "
            "prm.gradient_checkpointing to the same"
        )
