"""`openprime plan`: what a training run takes, and which setting to change where it does not fit."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from openprime.config import (
    EngineConfig,
    OfflinePRMConfig,
    PlanConfig,
    RLConfig,
    SFTConfig,
    explain,
    find_config,
    merge,
    read_config,
)
from openprime.models.hub import find_file
from openprime.models.logprobs import CPU_TOKENS
from openprime.plan.memory import (
    PARTS,
    Budget,
    GiB,
    Layout,
    TrainingConfig,
    cache_per_token,
    memory_of,
    parts_of,
    work_of,
)
from openprime.plan.shape import Shape, read_shape
from openprime.types import UserError

RESERVE = 3.0
"""GiB of a GPU for the CUDA context, NCCL and what the allocator cannot use."""
MOST_GPUS = 512
"""That are advised."""
SCHEMAS: dict[str, type[TrainingConfig]] = {"sft": SFTConfig, "rl": RLConfig, "prm": OfflinePRMConfig}
Fits = Callable[[TrainingConfig, Layout], bool]
Change = tuple[str, TrainingConfig, Layout]
"""(what to change, in words; the run with the change)."""


def plan(config: PlanConfig) -> None:
    """Print the plan of a configuration."""
    config.check()
    found = make_plan(config)
    if config.format == "json":
        print(json.dumps(found, indent=2))
    else:
        show(found, Console())


def make_plan(config: PlanConfig) -> dict[str, Any]:
    """The plan as plain values: GiB, tokens, FLOPs, hours, and what was assumed.

    Raises ValueError for a configuration or a model that cannot be read.
    """
    run = read_run(config)
    shape = read_shape(config.architecture or located(run.model))
    prm = shape
    if isinstance(run, RLConfig) and run.prm.model not in ("", run.model):
        prm = read_shape(config.prm_architecture or located(run.prm.model))
    layout = layout_of(config, run)
    budget = memory_of(run, layout, shape, prm, config.gpus_per_node)
    limit = config.gpu_memory - (RESERVE if run.device != "cpu" else 0.0)
    fits: Fits = lambda run, layout: memory_of(run, layout, shape, prm).peak <= limit * GiB  # noqa: E731
    models = parts_of(run, shape, prm)
    return {
        "configuration": config.config,
        "gpus": config.gpus,
        "gpu_memory": config.gpu_memory,
        "usable": limit,
        "models": {
            part.role: {"parameters": part.shape.parameters, "trained": part.trainable, "own": part.held}
            for part in models
        },
        "phases": in_gib(budget),
        "peak": budget.peak / GiB,
        "fits": budget.peak <= limit * GiB,
        "changes": [] if budget.peak <= limit * GiB else advise(run, layout, fits),
        "host": {name: size / GiB for name, size in budget.host.items() if size},
        "notes": notes(run, layout, shape, limit),
        **estimate(config, run, shape, prm),
    }


def read_run(config: PlanConfig) -> TrainingConfig:
    """The configuration that is planned, with the settings of `config.set` over it."""
    path = find_config(config.config)
    stage = path.resolve().parent.name if config.stage == "auto" else config.stage
    if stage not in SCHEMAS:
        raise UserError(f"{path}: of which command? Its folder is not named sft, rl or prm: give --stage")
    return changed_run(read_config(SCHEMAS[stage], path), config.set)


def changed_run(run: TrainingConfig, settings: tuple[str, ...]) -> TrainingConfig:
    """A configuration with `key=value` settings over it."""
    values: dict[str, Any] = run.model_dump()
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: expected key=value, such as policy.lora.rank=32")
        value: Any = yaml.safe_load(text)
        for name in reversed(key.split(".")):
            value = {name: value}
        values = merge(values, value)
    try:
        return type(run).model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, type(run), "--set")) from error


def located(model: str) -> str:
    """The model's configuration, said with what to do where there is none."""
    if find_file(model, "config.json") is None:
        raise UserError(
            f"{model}: its config.json is not here: name one with --architecture (or --prm-architecture), such as "
            "configs/models/qwen2.5-math-7b"
        )
    return model


def layout_of(config: PlanConfig, run: TrainingConfig) -> Layout:
    """Where the run runs."""
    engine = run.engine if isinstance(run, RLConfig) else EngineConfig()
    return Layout(
        ranks=config.gpus,
        memory=config.gpu_memory * GiB,
        cpu_offload=run.parallel.cpu_offload,
        engine=engine.kind,
        engine_share=engine.gpu_memory,
        tensor_parallel=engine.tensor_parallel,
        pass_rate=config.pass_rate,
        token_limit=CPU_TOKENS if run.device == "cpu" else 0,
    )


def in_gib(budget: Budget) -> dict[str, dict[str, float]]:
    """Phase -> part -> GiB on a GPU, what is nothing left out."""
    return {
        phase: {part: parts[part] / GiB for part in PARTS if parts.get(part)}
        for phase, parts in budget.phases.items()
    }


def advise(run: TrainingConfig, layout: Layout, fits: Fits) -> list[list[str]]:
    """What would make a run fit: single changes, or else the first of them together until it does."""
    single = [[what] for what, changed, where in changes(run, layout) if fits(changed, where)]
    if single:
        return single
    together: dict[str, str] = {}
    while following := next(changes(run, layout), None):
        what, run, layout = following
        together[what.replace("=", " ").split(" ")[0]] = what  # of a setting that is changed twice the last
        if not layout.cpu_offload:
            together.pop("parallel.cpu_offload", None)
        if fits(run, layout):
            return [list(together.values())]
    return [["nothing that can be set: take a smaller model"]]


def changes(run: TrainingConfig, layout: Layout) -> Iterator[Change]:
    """Changes that take less memory, those first that cost least."""
    is_rl = isinstance(run, RLConfig)
    sections = ("policy", "prm") if is_rl else ("optimizer",)
    longest = run.data.max_prompt_tokens + run.rollout.max_response_tokens if is_rl else run.max_tokens

    def with_all(name: str, value: object) -> Change:
        settings = tuple(f"{section}.{name}={value}" for section in sections)
        return " ".join(settings), changed_run(run, settings), layout

    values = run.model_dump()
    if not all(values[section]["gradient_checkpointing"] for section in sections):
        yield with_all("gradient_checkpointing", "true")
    most = max(values[section]["tokens_per_microbatch"] for section in sections)
    if most > longest:
        yield with_all("tokens_per_microbatch", longest)
    if is_rl and layout.engine == "transformers" and run.rollout.sequences > 8:
        setting = f"rollout.sequences={max(8, run.rollout.sequences // 8)}"
        yield setting, changed_run(run, (setting,)), layout
    if layout.engine == "vllm" and layout.engine_share > 0.3:
        yield "engine.gpu_memory=0.3", run, replace(layout, engine_share=0.3)
    ranks = [values[section]["lora"]["rank"] for section in sections]
    if layout.ranks > 1 and not layout.cpu_offload and not any(ranks):  # adapters stay on the GPU
        yield "parallel.cpu_offload=true", run, replace(layout, cpu_offload=True)
    if not all(ranks):
        what, adapted, _ = with_all("lora.rank", 32)
        yield what, adapted, replace(layout, cpu_offload=False)
    for times in (2, 4, 8):
        if times * layout.ranks <= MOST_GPUS:
            yield f"--gpus {times * layout.ranks}", run, replace(layout, ranks=times * layout.ranks)


def notes(run: TrainingConfig, layout: Layout, shape: Shape, limit: float) -> list[str]:
    """What the numbers do not say by themselves."""
    said = []
    if isinstance(run, RLConfig) and layout.engine == "vllm":
        size = 2 if run.dtype == "bfloat16" else 4
        room = (
            layout.engine_share * layout.memory - size * shape.parameters / layout.tensor_parallel - 2 * GiB
        )
        longest = run.data.max_prompt_tokens + run.rollout.max_response_tokens
        each = longest * cache_per_token(shape, run.dtype == "bfloat16", "vllm") / layout.tensor_parallel
        if room < each:
            said.append(
                f"vLLM's {layout.engine_share:.0%} of a GPU does not hold the model and one sequence of {longest} "
                "tokens: raise engine.gpu_memory or engine.tensor_parallel"
            )
        else:
            said.append(
                f"vLLM's cache holds {int(room / each)} sequences of {longest} tokens a GPU at a time"
            )
    if isinstance(run, RLConfig) and layout.engine == "transformers" and layout.ranks > 1:
        said.append(
            "engine.kind=transformers keeps a whole copy of the policy on every GPU; vllm samples much faster"
        )
    if layout.ranks > 1 and isinstance(run, RLConfig):
        rows = run.rollout.prompts * run.rollout.responses
        if rows < layout.ranks:
            said.append(f"{rows} responses a step for {layout.ranks} GPUs: some have nothing to train on")
    return said


def estimate(config: PlanConfig, run: TrainingConfig, shape: Shape, prm: Shape) -> dict[str, Any]:
    """Tokens, FLOPs, hours and cost, and what was assumed for them."""
    if isinstance(run, RLConfig):
        prompt_limit, response_limit = run.data.max_prompt_tokens, run.rollout.max_response_tokens
        steps = run.steps
    else:
        prompt_limit = min(run.data.max_prompt_tokens, run.max_tokens // 2)
        response_limit = run.max_tokens - prompt_limit
        rows = config.rows or run.data.limit
        held_out = run.held_out if isinstance(run, OfflinePRMConfig) else 0.0
        steps = math.ceil(rows * (1 - held_out) * run.epochs / run.batch)
    prompt = config.prompt_tokens or prompt_limit / 2
    response = config.response_tokens or response_limit / 2
    work = work_of(run, parts_of(run, shape, prm), prompt, response, config.pass_rate)
    peak = config.gpus * config.gpu_tflops * 1e12
    training = work.training_flops / (peak * config.mfu)
    sampling = work.sampling_flops / (peak * config.sampling_mfu)
    if config.tokens_per_second:
        sampling = work.sampled_tokens / config.tokens_per_second
    hours = steps * (training + sampling) / 3600
    assumed = [
        f"prompts of {prompt:,.0f} and responses of {response:,.0f} tokens on average"
        + ("" if config.prompt_tokens and config.response_tokens else " (half of the longest)"),
        f"training at {config.mfu:.0%} of {config.gpu_tflops:,.0f} TFLOPS a GPU",
        f"{config.price_per_gpu_hour:.2f} a GPU and hour",
    ]
    if isinstance(run, RLConfig):
        assumed += [
            f"{config.pass_rate:.0%} of the groups pass the filter",
            f"sampling at {config.tokens_per_second:,.0f} tokens/s, as measured"
            if config.tokens_per_second
            else f"sampling at {config.sampling_mfu:.0%} of the same",
            "no time for verifiers, evaluation and checkpoints",
        ]
    elif not steps:
        assumed.append("the number of steps is not known: give --rows")
    return {
        "step": {
            "sampled_tokens": work.sampled_tokens,
            "trained_tokens": work.trained_tokens,
            "sampling_flops": work.sampling_flops,
            "training_flops": work.training_flops,
            "sampling_seconds": sampling,
            "training_seconds": training,
        },
        "steps": steps,
        "hours": hours,
        "gpu_hours": hours * config.gpus,
        "cost": hours * config.gpus * config.price_per_gpu_hour,
        "assumed": assumed,
    }


def show(found: dict[str, Any], console: Console) -> None:
    """Tables and sentences."""
    say = lambda text: console.print(text, highlight=False, markup=False)  # noqa: E731
    for role, sizes in found["models"].items():
        trained = f", {sizes['trained']:,} trained" if sizes["trained"] else ", frozen"
        shared = "" if sizes["own"] >= sizes["parameters"] else ", on a base that is there already"
        say(f"{role}: {sizes['parameters']:,} parameters{trained}{shared}")
    table = Table(
        title=f"GiB on each of {found['gpus']} GPUs, at the peak of each phase", title_justify="left"
    )
    parts = [part for part in PARTS if any(part in phase for phase in found["phases"].values())]
    for column in ("phase", *parts, "all"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for phase, sizes in found["phases"].items():
        cells = [f"{sizes[part]:.2f}" if part in sizes else "" for part in parts]
        table.add_row(phase, *cells, f"{sum(sizes.values()):.2f}")
    console.print(table)
    room = f"{found['peak']:.1f} of {found['usable']:.1f} GiB ({found['gpu_memory']:g} less what CUDA takes)"
    if found["fits"]:
        say(f"fits: {room}")
    else:
        say(f"does NOT fit: {room}. What would make it fit:")
        for group in found["changes"]:
            say("  - " + "; ".join(group))
    host = ", ".join(f"{name} {size:,.0f}" for name, size in found["host"].items())
    say(f"memory of a node: {sum(found['host'].values()):,.0f} GiB ({host})")
    step = found["step"]
    if step["sampled_tokens"]:
        say(
            f"a step: {step['sampled_tokens']:,.0f} tokens sampled, {step['trained_tokens']:,.0f} trained on; "
            f"{step['sampling_flops']:.2e} and {step['training_flops']:.2e} FLOPs; "
            f"{step['sampling_seconds']:,.0f} and {step['training_seconds']:,.0f} s"
        )
    else:
        say(
            f"a step: {step['trained_tokens']:,.0f} tokens; {step['training_flops']:.2e} FLOPs; "
            f"{step['training_seconds']:,.1f} s"
        )
    if found["steps"]:
        say(
            f"{found['steps']:,} steps: {found['hours'] / 24:.1f} days, {found['gpu_hours']:,.0f} GPU hours, "
            f"cost {found['cost']:,.0f}"
        )
    for note in found["notes"]:
        say(f"note: {note}")
    say("assumed: " + "; ".join(found["assumed"]))
