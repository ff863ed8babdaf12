"""What every command can be told: one class a command, in the order of a recipe."""

from typing import Annotated, Literal

from pydantic import Field

from openprime.config.sections import (
    AdvantageConfig,
    CodeConfig,
    Count,
    DataConfig,
    DistillConfig,
    Dtype,
    EngineConfig,
    EvalConfig,
    FilterConfig,
    JudgedDataConfig,
    OptimizerConfig,
    ParallelConfig,
    PolicyConfig,
    Positive,
    PRMConfig,
    PromptFormat,
    Rate,
    RolloutConfig,
    Section,
    Share,
    StepSplit,
    VerifyConfig,
    changed,
    check_adapters,
    require,
)
from openprime.types import UserError


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
        check_adapters(self.parallel, self.optimizer)
        if self.model == "new" and self.optimizer.lora.rank:
            raise UserError("optimizer.lora.rank: a new model has nothing to adapt: set it to 0")
        if self.model == "new" and self.new_model.hidden_size % self.new_model.heads:
            raise UserError("new_model.heads must divide new_model.hidden_size")
        if self.eval.every and not self.eval_data.source:
            raise UserError(
                "eval.every is set, but eval_data.source is empty: name held-out data or set eval.every=0"
            )


FROZEN_PRM = ("prm.model", "prm.reference", "prm.beta", "prm.update", "prm.tokens_per_microbatch")
PROCESS_ONLY = (
    "advantage.skill_gate",
    "advantage.granularity",
    "advantage.process_gamma",
    "advantage.scaling",
)


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
        check_adapters(self.parallel, self.policy, self.prm)
        if self.algorithm == "distill":
            return self.check_distill()
        a, warnings = self.advantage, []
        on_one_base = self.policy.lora.rank and self.prm.lora.rank and self.prm.model in ("", self.model)
        recompute = self.policy.gradient_checkpointing, self.prm.gradient_checkpointing
        if on_one_base and a.process_weight and recompute[0] != recompute[1]:
            raise UserError(
                "the policy and the PRM share one model in memory: set policy.gradient_checkpointing and "
                "prm.gradient_checkpointing to the same"
            )
        if self.filter.low > self.filter.high:
            raise UserError(f"filter.low={self.filter.low} is above filter.high={self.filter.high}")
        if a.process_weight == 0 and a.outcome_weight == 0:
            raise UserError(
                "advantage.process_weight and advantage.outcome_weight are both 0: nothing to learn from"
            )
        if a.preset == "released" and (a.estimator, a.granularity) != ("rloo", "token"):
            raise UserError(
                "advantage.preset=released is defined for estimator=rloo and granularity=token only"
            )
        if self.prm.reference == "policy" and a.process_weight and self.rollout.temperature != 1:
            raise UserError(
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
            raise UserError(
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
            raise UserError(
                "algorithm=distill makes its PRM of all the policy's weights: policy.lora.rank, prm.lora.rank must be 0"
            )
        if self.rollout.temperature != 1:
            raise UserError("algorithm=distill compares whole distributions: set rollout.temperature=1")
        if self.prm.loss != "ce":
            raise UserError("algorithm=distill learns its PRM by cross-entropy: set prm.loss=ce")
        if self.filter.low > self.filter.high:
            raise UserError(f"filter.low={self.filter.low} is above filter.high={self.filter.high}")
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
        check_adapters(self.parallel, self.optimizer)
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
            raise UserError(f"benchmark: one is named twice: {', '.join(self.benchmark)}")
        for name in ("data", "responses"):
            files = getattr(self, name)
            if files and len(files) != len(self.benchmark):
                raise UserError(
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
            raise UserError("reference is the PRM's, but no PRM is named: give --prm as well")


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
