"""What every command can be told: one class a command, in the order of a recipe."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from openprime.config.sections import (
    LARGEST,
    AdvantageConfig,
    AutoEngineConfig,
    CodeConfig,
    Count,
    DataConfig,
    DeviceConfig,
    DistillConfig,
    DistillPolicyConfig,
    DistillPRMConfig,
    EngineConfig,
    EvalConfig,
    FilterConfig,
    JudgedDataConfig,
    Length,
    LengthOr0,
    LoRAOptimizerConfig,
    OutcomeAdvantageConfig,
    ParallelConfig,
    Passes,
    PolicyConfig,
    Positive,
    PRMConfig,
    PromptFormat,
    Rate,
    RolloutConfig,
    Scale,
    ScoringConfig,
    Seconds,
    Section,
    Seed,
    Several,
    Share,
    StepSplit,
    Temperature,
    TemperatureOr0,
    VerifyConfig,
    check_adapters,
    check_engine,
    check_importance,
    check_memory,
    check_shared_base,
    check_url,
    value_of,
    zero_or,
)
from openprime.types import UserError


class FolderConfig(DeviceConfig):
    """What every command has that works for long and fills a folder."""

    out: str = ""
    """The folder for everything that the command leaves."""
    resume: bool = False
    """Go on where an interrupted command stopped, in its folder."""


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
    kernels: Literal["torch", "liger"] = "torch"
    """liger: norms, rotary positions and feed-forward layers as single kernels of liger-kernel, on a GPU."""
    verify: VerifyConfig = VerifyConfig()
    parallel: ParallelConfig = ParallelConfig()


class NewModelConfig(Section):
    """A small Qwen2-architecture model and its tokenizer, made from the training data."""

    vocab_size: Annotated[int, Field(ge=260, le=2**20)] = 512
    """Largest vocabulary of the byte-level BPE tokenizer."""
    hidden_size: Annotated[int, Field(gt=0, le=2**16)] = 128
    """Width; the feed-forward layer is three times as wide."""
    layers: Annotated[int, Field(gt=0, le=1000)] = 3
    """Transformer blocks."""
    heads: Annotated[int, Field(gt=0, le=1000)] = 4
    """Attention heads; must divide the width."""
    max_positions: Length = 4096
    """Longest sequence."""

    @model_validator(mode="after")
    def _is_small(self) -> "NewModelConfig":
        parameters = self.hidden_size * (self.vocab_size + 13 * self.layers * self.hidden_size)
        if parameters > LARGEST:
            raise ValueError(f"hidden_size, layers: about {parameters:,} parameters, more than {LARGEST:,}")
        return self


class SFTConfig(RunConfig):
    """`openprime sft`: supervised fine-tuning on demonstrations."""

    required = ("model", "out", "data.source")
    model: str = ""
    """Directory, GGUF file or hub id of a causal language model; `new` makes one as `new_model` says."""
    new_model: NewModelConfig = NewModelConfig()
    data: DataConfig = DataConfig()
    eval_data: DataConfig = DataConfig()
    """Held-out prompts; no source, no evaluation."""
    eval: EvalConfig = EvalConfig(every=0, max_response_tokens=512)
    sequences: Several = 256
    """Sequences decoded at a time in evaluation."""
    epochs: Passes = 3.0
    """Passes over the data."""
    batch: Positive = 96
    """Demonstrations in one optimiser step."""
    max_tokens: Positive = 4096
    """Longest prompt and response together; longer rows are dropped and counted."""
    optimizer: LoRAOptimizerConfig = LoRAOptimizerConfig(schedule="cosine", warmup=0.1)

    def check(self) -> list[str]:
        """Cross-field checks."""
        notes = super().check()
        check_adapters(self.parallel, self.optimizer)
        check_memory(self.sequences, self.eval.samples, self.eval.max_response_tokens, "eval")
        if self.model == "new" and self.optimizer.lora.rank:
            raise UserError("optimizer.lora.rank: a new model has nothing to adapt: set it to 0")
        if self.model == "new" and self.new_model.hidden_size % self.new_model.heads:
            raise UserError("new_model.heads must divide new_model.hidden_size")
        if self.eval.every and not self.eval_data.source:
            raise UserError(
                "eval.every is set, but eval_data.source is empty: name held-out data or set eval.every=0"
            )
        return notes


class RLConfig(RunConfig):
    """`openprime rl`: online reinforcement learning. What its methods (ALGORITHMS) have in common."""

    required = ("model", "out", "data.source")
    algorithm: str = ""
    """prime: the paper's algorithm 1. outcome: outcome rewards alone, the baseline. distill: in every step the PRM is
    learnt anew from the policy and then teaches it (prime/distill.py); for small models and vocabularies, where it
    needs fewer rollouts. Each has settings of its own: `openprime rl --algorithm outcome --help`."""
    model: str = ""
    """Directory, GGUF file or hub id of the SFT model: the policy, and where the PRM and its reference start."""
    steps: Positive = 592
    """Rollout steps."""
    data: DataConfig = DataConfig()
    eval_data: DataConfig = DataConfig(split="test")
    """Held-out prompts; no source, no evaluation."""
    rollout: RolloutConfig = RolloutConfig()
    engine: EngineConfig = AutoEngineConfig()
    filter: FilterConfig = FilterConfig()
    policy: DistillPolicyConfig = DistillPolicyConfig()
    eval: EvalConfig = EvalConfig()

    def check(self) -> list[str]:
        """What every method asks for."""
        notes = super().check()
        check_engine(self.engine, self.rollout.temperature)
        longest = max(self.rollout.max_response_tokens, self.eval.max_response_tokens)
        most = max(self.rollout.responses, self.eval.samples)
        check_memory(self.rollout.sequences, most, longest, "rollout")
        if self.rollout.max_staleness and self.engine.kind != "server":
            raise UserError(
                "rollout.max_staleness samples beside the trainer: set engine.kind=server as well"
            )
        if self.engine.kind == "server" and self.engine.in_flight and not self.rollout.max_staleness:
            raise UserError(
                "engine.in_flight hands weights over during sampling, but nothing is sampled while the policy is "
                "trained: set rollout.max_staleness as well"
            )
        if self.filter.low > self.filter.high:
            raise UserError(f"filter.low={self.filter.low} is above filter.high={self.filter.high}")
        return notes

    def keeps_samples(self, step: int) -> bool:
        """Whether responses of a step go to samples.jsonl: of every `sample_every`-th one, and of the last one."""
        return bool(self.sample_every) and (step % self.sample_every == 0 or step == self.steps)

    @property
    def step_delimiter(self) -> str:
        """Text that ends a step of a response; '' where steps play no part."""
        return ""


class OutcomeConfig(RLConfig):
    """`openprime rl --algorithm outcome`: outcome rewards alone, without a PRM."""

    algorithm: str = "outcome"
    advantage: OutcomeAdvantageConfig = OutcomeAdvantageConfig()
    policy: PolicyConfig = PolicyConfig()  # pyright: ignore[reportIncompatibleVariableOverride]

    def check(self) -> list[str]:
        """Cross-field checks."""
        notes = super().check()
        check_adapters(self.parallel, self.policy)
        check_importance(self.policy, self.rollout)
        self.advantage.check()
        return notes


class PrimeConfig(RLConfig):
    """`openprime rl`: PRIME, online reinforcement learning with implicit process rewards."""

    algorithm: str = "prime"
    advantage: AdvantageConfig = AdvantageConfig()
    policy: PolicyConfig = PolicyConfig()  # pyright: ignore[reportIncompatibleVariableOverride]
    prm: PRMConfig = PRMConfig()

    def check(self) -> list[str]:
        """Cross-field checks; returns notes on weights that have no effect."""
        notes, a = super().check(), self.advantage
        check_adapters(self.parallel, self.policy, self.prm)
        check_importance(self.policy, self.rollout)
        a.check()
        on_one_base = self.policy.lora.rank and self.prm.lora.rank and self.prm.model in ("", self.model)
        if on_one_base:
            check_shared_base(self.policy, self.prm)
        if not a.process_weight:
            raise UserError(
                "advantage.process_weight=0 leaves outcome rewards alone: set algorithm=outcome instead"
            )
        if a.step_delimiter != "\n" and a.granularity != "step":
            raise UserError("advantage.step_delimiter ends steps: set advantage.granularity=step as well")
        if self.prm.reference == "policy" and self.rollout.temperature != 1:
            raise UserError(
                "prm.reference=policy takes the log-probabilities of sampling, which a rollout.temperature other "
                "than 1 changes: set rollout.temperature=1 or prm.reference=frozen"
            )
        if self.prm.balance and self.prm.loss == "dpo":
            raise UserError(
                "prm.balance is for single responses: set prm.loss=ce or prefix, or prm.balance=false"
            )
        if self.prm.loss == "prefix" and self.prm.beta != "auto" and self.prm.beta < 1:
            notes.append(
                f"prm.loss=prefix takes the mean over tokens, which prm.beta={self.prm.beta} makes very small: "
                "prm.beta=auto fits it to the data"
            )
        if self.prm.margin != "auto" and self.prm.loss != "prefix":
            notes.append(f"no effect with prm.loss={self.prm.loss}: prm.margin")
        if (self.prm.update, self.prm.model, self.prm.reference) == ("never", "", "frozen"):
            raise UserError(
                "prm.update=never with prm.model empty scores with the reference itself: every process reward is 0. "
                "Name a trained PRM in prm.model"
            )
        if a.whitens and a.process_weight == a.outcome_weight != 1:
            notes.append(
                "advantage.process_weight and advantage.outcome_weight are equal and advantages are whitened: "
                "only the ratio of the weights has an effect (trap 3)"
            )
        if a.whitens and not a.outcome_weight and a.process_weight != 1:
            notes.append(
                "advantage.process_weight has no effect: it is the only term and advantages are whitened (trap 3)"
            )
        return notes

    @property
    def step_delimiter(self) -> str:
        """Text that ends a step of a response; '' where steps play no part."""
        return self.advantage.step_delimiter if self.advantage.granularity == "step" else ""


class DistillRLConfig(RLConfig):
    """`openprime rl --algorithm distill`: a PRM that is learnt anew in every step teaches the policy."""

    algorithm: str = "distill"
    prm: DistillPRMConfig = DistillPRMConfig()
    distill: DistillConfig = DistillConfig()

    def check(self) -> list[str]:
        """Cross-field checks."""
        if self.rollout.temperature != 1:
            raise UserError("algorithm=distill compares whole distributions: set rollout.temperature=1")
        if self.rollout.max_staleness:
            raise UserError("algorithm=distill learns from its own samples: set rollout.max_staleness=0")
        check_adapters(self.parallel, self.policy)
        if self.policy.lora.rank:
            check_shared_base(self.policy, self.prm)
            if self.distill.prm_depth < 1:
                raise UserError(
                    "an adapter is learnt in all blocks: set distill.prm_depth=1 or policy.lora.rank=0"
                )
        return super().check()


ALGORITHMS: dict[str, tuple[type[RLConfig], str]] = {
    "prime": (PrimeConfig, "openprime.prime.methods:Prime"),
    "outcome": (OutcomeConfig, "openprime.prime.methods:OutcomeOnly"),
    "distill": (DistillRLConfig, "openprime.prime.distill:Distill"),
}
"""The methods of `openprime rl`: name -> (its settings, the module and class that take a step)."""


class OfflinePRMConfig(RunConfig):
    """`openprime prm`: train an implicit PRM offline, on responses with outcomes or with step labels."""

    required = ("model", "out", "data.source")
    model: str = ""
    """Directory, GGUF file or hub id of a causal language model, or of an implicit PRM that training goes on with."""
    reference: str = ""
    """The frozen reference. Empty: the one that `model` was saved with if it is an implicit PRM, else `model`."""
    data: JudgedDataConfig = JudgedDataConfig()
    """The file of `openprime generate`, or rows with a prompt, a response and an outcome, preference pairs (`chosen`
    and `rejected`), or steps and labels."""
    loss: Literal["ce", "dpo", "nca", "kto", "prefix", "steps"] = "ce"
    """On outcomes: cross-entropy, DPO or NCA on pairs of a prompt's responses, KTO, or prefix: cross-entropy of every
    prefix's mean value, with a margin. On step labels: steps."""
    beta: Scale | Literal["auto"] = "auto"
    """Scale of the log-ratio: r = beta log(phi/ref). auto: 0.05 as published, or more where responses are too likely
    for the sigmoid to move; an implicit PRM that training goes on with keeps its own. With loss=prefix: what lets the
    median response reach twice the margin."""
    margin: Rate | Literal["auto"] = "auto"
    """loss=prefix: how far the values of right and wrong responses are to be from 0. auto: half of what the median
    response can reach, 5 where beta is auto too."""
    held_out: Share = 0.1
    """Share of the prompts kept from training, to measure on."""
    epochs: Passes = 1.0
    """Passes over the data."""
    batch: Positive = 64
    """Responses in one optimiser step (with dpo and nca: rounded up to whole prompts)."""
    max_tokens: Positive = 4096
    """Longest prompt and response together; longer ones are dropped and counted."""
    step_split: StepSplit = "newline"
    """Where the steps of a response end, for the held-out measures."""
    optimizer: LoRAOptimizerConfig = LoRAOptimizerConfig(lr=5e-7, clip_grad=10.0)

    def check(self) -> list[str]:
        """Cross-field checks; returns a note on settings that have no effect."""
        notes = super().check()
        check_adapters(self.parallel, self.optimizer)
        of_outcomes = ("data.outcome_field", "data.response_field", "step_split")
        other = of_outcomes if self.loss == "steps" else ("data.steps_field", "data.labels_field")
        other += () if self.loss == "prefix" else ("margin",)
        unused = [key for key in other if value_of(self, key) != value_of(OfflinePRMConfig(), key)]
        return notes + ([f"no effect with loss={self.loss}: {', '.join(unused)}"] if unused else [])


class GenerateConfig(FolderConfig):
    """`openprime generate MODEL`: sample and judge N responses to each prompt."""

    positional = ("model",)
    required = ("model", "out", "data.source")
    model: str = ""
    """Directory, GGUF file or hub id of a causal language model."""
    data: DataConfig = DataConfig()
    responses: Annotated[int, Field(gt=0, le=2**14)] = 4
    """N, sampled responses a prompt."""
    temperature: TemperatureOr0 = 1.0
    """Sampling temperature; 0 is greedy decoding."""
    max_response_tokens: Length = 3072
    """Longest response, in tokens."""
    sequences: Several = 256
    """Sequences that the engine decodes at a time; bounds memory, changes no sample."""
    engine: EngineConfig = AutoEngineConfig()
    verify: VerifyConfig = VerifyConfig()

    def check(self) -> list[str]:
        """Cross-field checks."""
        check_engine(self.engine, self.temperature)
        check_memory(self.sequences, self.responses, self.max_response_tokens, "generate")
        return super().check()


FILTERS = ("figure", "proof", "unparsable", "duplicate", "near_duplicate")
"""Filters of `openprime data` that may be left out."""


class PrepareConfig(FolderConfig):
    """`openprime data`: rows to train on, without those that nobody can answer or judge, or that are there twice."""

    required = ("out", "data.source")
    data: DataConfig = DataConfig()
    more_sources: tuple[str, ...] = ()
    """Further files or data sets, read as data.source is, each with fields of its own where data names none. What an
    earlier one has too is a duplicate."""
    filters: tuple[str, ...] = FILTERS
    """What is dropped: questions about a figure, proofs, references that the verifier cannot read (unparsable), the
    same question again, nearly the same one with the same answer (near_duplicate). Rows without a question or a
    reference are always dropped."""
    similarity: Annotated[float, Field(ge=0.5, le=0.99)] = 0.8
    """Share of the three-word pieces of two questions that both have (Jaccard), from which on they are nearly the
    same."""
    benchmarks: tuple[str, ...] = ()
    """Names of benchmarks (configs/benchmarks), YAML files of your own, or files of rows: questions that are one of
    theirs, or nearly, are dropped whatever their answer."""
    choices: Literal["drop", "rules", "ask"] = "rules"
    """Multiple choice. rules: an open question, without the options, whose answer is the right one's text; dropped
    where it needs its options. ask: the model rewrites those questions too, and may refuse (PRIME, appendix A)."""
    samples: Annotated[int, Field(ge=0, le=2**10)] = 0
    """N, responses of the model by which it is seen whether a question can be solved; 0: not checked."""
    agreement: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Smallest share of the N that must have the reference's answer."""
    demonstrations: Annotated[int, Field(ge=0, le=2**10)] = 0
    """Responses of the model to each row that is kept, in the form of the seven actions; the first that is in the form
    and right goes to demonstrations.jsonl, for `openprime sft`. 0: none."""
    model: str = ""
    """Whom to ask: with `endpoint` its name there (empty: the first that it lists), else a directory, GGUF file or hub
    id."""
    endpoint: str = ""
    """Of any OpenAI-compatible server, as http://node1:8000/v1. The key is read from the environment variable
    OPENAI_API_KEY. Empty: the model is sampled from here, by `engine`."""
    timeout: Seconds = 600.0
    """Seconds for one answer of the endpoint; and for which one that is gone is waited for."""
    temperature: Temperature = 1.0
    """Sampling temperature."""
    max_response_tokens: Length = 4096
    """Longest response, in tokens."""
    sequences: Several = 64
    """Responses that are sampled at a time."""
    engine: EngineConfig = AutoEngineConfig()
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Processes that filter; 0 is one a core."""
    verify: VerifyConfig = VerifyConfig()

    @property
    def asks(self) -> bool:
        """Whether a model is asked."""
        return bool(self.samples or self.demonstrations or self.choices == "ask")

    def check(self) -> list[str]:
        """Cross-field checks."""
        notes = super().check()
        if len({self.data.source, *self.more_sources}) <= len(self.more_sources):
            raise UserError("more_sources: a source is named twice")
        for name in self.filters:
            if name not in FILTERS:
                raise UserError(f"filters: no filter {name!r}; there are: {', '.join(FILTERS)}")
        if self.asks and not (self.model or self.endpoint):
            raise UserError(
                "samples, demonstrations and choices=ask ask a model: name a server's in endpoint, or one in model"
            )
        if self.endpoint:
            check_url(self.endpoint, "endpoint")
        check_engine(self.engine, self.temperature)
        check_memory(self.sequences, max(self.samples, self.demonstrations), self.max_response_tokens, "data")
        return notes


class ScoreConfig(FolderConfig, ScoringConfig):
    """`openprime score FILE`: the reward of every token, step and response of a file."""

    positional = ("file",)
    required = ("file", "prm", "out")
    file: str = ""
    """JSONL or parquet with `prompt` (or `question`, `problem`) and `response`, `completion`, `responses` (texts, or
    the file of `openprime generate`) or `steps` (a list of texts, joined by blank lines); or with `messages`."""
    prompt: PromptFormat = PromptFormat()
    """How prompts are put to the PRM. The row's `verifier` (math if it has none) chooses the template's request."""
    step_split: StepSplit = "newline"
    """Where a step of a response ends."""
    tokens_per_microbatch: Positive = 16384
    """Tokens in one forward pass; bounds memory, changes no result."""


class BenchmarkConfig(Section):
    """A benchmark: where its items are and how an answer is judged. One small YAML file each, in configs/benchmarks."""

    about: str = ""
    """What it is, in a line."""
    kind: Literal["answers", "first_error"] = "answers"
    """answers: responses are judged by a verifier. first_error: a PRM finds the first wrong step (ProcessBench)."""
    data: DataConfig = DataConfig(split="test", max_prompt_tokens=1_000_000, too_long="error")
    answers: Literal["auto", "boxed", "last_box", "hashes"] = "auto"
    """Mathematics: where a response has its answer."""
    max_response_tokens: Length = 3072
    """Longest response, in tokens."""


class EvaluateConfig(FolderConfig, ScoringConfig):
    """`openprime evaluate MODEL --benchmark NAME`: accuracy, votes and Best-of-N on benchmarks."""

    positional = ("model",)
    required = ("benchmark", "out")
    model: str = ""
    """Directory, GGUF file or hub id of a causal language model. Not needed with `responses`, nor for ProcessBench."""
    benchmark: tuple[str, ...] = ()
    """Names of benchmarks (configs/benchmarks) or YAML files of your own."""
    data: tuple[str, ...] = ()
    """A local file for each benchmark, in the same order, instead of the hub; '' for one that has none."""
    responses: tuple[str, ...] = ()
    """A file of recorded responses for each benchmark, in the same order ('' for none), judged instead of sampling:
    line i is {"responses": [...]} for item i. Without `samples` all of them."""
    limit: Count = 0
    """Use the first so many items; 0 is all."""
    samples: Annotated[int, Field(ge=0, le=2**14)] = 0
    """N, sampled responses an item, beside the greedy one."""
    temperature: Temperature = 1.0
    """Sampling temperature."""
    max_response_tokens: LengthOr0 = 0
    """Longest response, in tokens; 0 is as the benchmark says."""
    template: Literal["auto", "none", "eurus", "eurus-actions"] = "auto"
    """How items are asked. auto: as the model was trained where it was trained here, else as the benchmark says."""
    step_split: StepSplit = "newline"
    """Where a step of a response ends, for the PRM's step rewards."""
    sequences: Several = 256
    """Sequences that the engine decodes at a time; bounds memory, changes no sample."""
    engine: EngineConfig = AutoEngineConfig()
    tokens_per_microbatch: Positive = 16384
    """Tokens in one scoring pass."""
    verify: VerifyConfig = VerifyConfig(code=CodeConfig(score="all", seconds=10.0, total_seconds=60.0))

    def check(self) -> list[str]:
        """Cross-field checks."""
        notes = super().check()
        check_engine(self.engine, self.temperature)
        check_memory(self.sequences, self.samples, self.max_response_tokens, "evaluate")
        if len(set(self.benchmark)) < len(self.benchmark):
            raise UserError(f"benchmark: one is named twice: {', '.join(self.benchmark)}")
        for name in ("data", "responses"):
            files = getattr(self, name)
            if files and len(files) != len(self.benchmark):
                raise UserError(
                    f"{name}: {len(files)} files for {len(self.benchmark)} benchmarks: name one for each, in order"
                )
        return notes


class BesideConfig(ScoringConfig):
    """A second model or a second PRM, shown beside the first."""

    model: str = ""
    """A model that answers too. Empty: the same answer, with the rewards of `beside.prm`."""


class AskConfig(DeviceConfig, ScoringConfig):
    """`openprime ask MODEL "QUESTION"`: an answer, and with a PRM the reward of every token of it."""

    positional = ("model", "question")
    required = ("model",)
    model: str = ""
    """Directory, GGUF file or hub id of a causal language model."""
    question: str = ""
    """What to ask. Empty: read questions one after the other."""
    kind: Literal["math", "code"] = "math"
    """What the template asks for: a boxed answer or a program."""
    template: Literal["auto", "none", "eurus", "eurus-actions"] = "auto"
    """How the question is asked. auto: as the model was trained where it was trained here, else eurus."""
    page: str = ""
    """Write the answers as a page too, such as answer.html."""
    temperature: TemperatureOr0 = 0.0
    """Sampling temperature; 0 is greedy decoding."""
    max_response_tokens: Length = 512
    """Longest answer, in tokens: what a small model on a CPU writes in half a minute."""
    beside: BesideConfig = BesideConfig()
    serve: bool = False
    """Ask in a browser: a page on this machine alone, on which the answer and its rewards are seen as they come."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8018
    """serve: where the page is; 0 is any free one."""

    def check(self) -> list[str]:
        """Cross-field checks."""
        notes = super().check()
        for scoring, prefix in ((self, ""), (self.beside, "beside.")):
            if scoring.reference and not scoring.prm:
                raise UserError(
                    f"{prefix}reference is the PRM's, but no PRM is named: give --{prefix}prm as well"
                )
        if self.beside.prm and not (self.prm or self.beside.model):
            raise UserError("beside.prm has nothing to stand beside: give --prm or --beside.model as well")
        if self.serve and (self.question or self.page):
            raise UserError("serve is a page that questions are typed on: leave the question and --page out")
        return notes


class VerifyStageConfig(Section):
    """`openprime verify FILE`: judge the responses in a file, to try a verifier before training with it."""

    positional = ("file",)
    required = ("file", "out")
    file: str = ""
    """JSONL: `response` and `answer` (mathematics), `tests` (code), or what the verifier of --verifier reads."""
    out: str = ""
    """JSONL to write: the same rows with `outcome`, `reason` and `seconds`."""
    verifier: str = ""
    """Judge every row with this one. Empty: the row's `verifier`, else code where it has tests, else math."""
    allow_modules: tuple[str, ...] = ()
    """`module:function` that rows may name as their `verifier`. Others are refused: a row must not choose what code is
    imported and run."""
    verify: VerifyConfig = VerifyConfig()


class ReportConfig(Section):
    """`openprime report RUN [RUN ...]`: one page about training runs and an evaluation."""

    positional = ("runs",)
    required = ("runs",)
    runs: tuple[str, ...] = ()
    """Folders of runs, drawn beside each other; those of one configuration and several seeds as one line."""
    evaluation: str = ""
    """Folder of `openprime evaluate`; empty: without."""
    out: str = "report.html"
    """The page to write."""
    title: str = "PRIME"
    """The page's title."""


class WatchConfig(Section):
    """`openprime watch RUN [RUN ...]`: the page of `openprime report`, live in a browser on this machine."""

    positional = ("runs",)
    required = ("runs",)
    runs: tuple[str, ...] = ()
    """Folders of runs, in progress or finished."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8017
    """Where it is served, on loopback alone; 0 is any free one."""


class PlanConfig(Section):
    """`openprime plan CONFIG`: memory, tokens, FLOPs, days and cost of a training run, before it is begun."""

    positional = ("config",)
    required = ("config",)
    config: str = ""
    """Configuration of `openprime sft`, `rl` or `prm`."""
    stage: Literal["auto", "sft", "rl", "prm"] = "auto"
    """Which of them. auto: the name of the file's folder."""
    set: tuple[str, ...] = ()
    """Settings of the configuration to change, such as policy.lora.rank=32 rollout.sequences=64."""
    gpus: Several = 8
    """All of the run's."""
    gpu_memory: Scale = 80.0
    """Of one, in GiB."""
    gpus_per_node: Several = 8
    """For the memory of a node."""
    architecture: str = ""
    """config.json of the model, or its folder, where `model` is not here yet."""
    prm_architecture: str = ""
    """The same of `prm.model`."""
    gpu_tflops: Scale = 312.0
    """Peak of a GPU in bfloat16, in 10^12 FLOPs a second: 312 for A100 and A800, 989 for H100."""
    gpu_bandwidth: Scale = 2.0
    """Of a GPU's memory, in 10^12 bytes a second: 2.0 for A100 and A800 of 80 GB, 3.35 for H100."""
    disk_bandwidth: Scale = 2.0
    """Of the file system that holds checkpoints, in GiB a second, all ranks together."""
    mfu: Annotated[float, Field(ge=0, le=1), zero_or(1e-6)] = 0.0
    """Measured: share of the peak that training reaches, what is computed again included. 0: from its parts."""
    sampling_mfu: Annotated[float, Field(ge=1e-6, le=1)] = 0.1
    """Share of the peak that sampling reaches, where `tokens_per_second` is not given."""
    tokens_per_second: Annotated[float, Field(ge=0, le=1e12), zero_or(1e-12)] = 0.0
    """Measured: tokens that all GPUs together sample in a second (`rollout/tokens_per_second`)."""
    pass_rate: Annotated[float, Field(ge=1e-6, le=1)] = 0.5
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


class ConfigsConfig(Section):
    """`openprime configs`: the configurations that come with the package."""


class DemoConfig(Section):
    """`openprime demo`: a small model learns by PRIME on this machine, in minutes."""

    out: str = "demo"
    """Folder for everything that the demo makes."""
    seed: Seed = 0
    """Seed of the whole demo."""
