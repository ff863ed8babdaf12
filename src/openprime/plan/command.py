"""`openprime plan`: what a training run takes, and which setting to change where it does not fit."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from openprime.config import (
    OfflinePRMConfig,
    PlanConfig,
    PrimeConfig,
    RLConfig,
    SFTConfig,
    build,
    find_config,
    merge,
    package_configs,
    parse_yaml,
    read_config,
    read_tags,
)
from openprime.plan.memory import (
    OWN,
    PARTS,
    GiB,
    Machine,
    Shape,
    TrainingConfig,
    cache_per_token,
    is_bfloat16,
    longest_of,
    memory_of,
    parts_of,
    read_shape,
    work_of,
)
from openprime.plan.seconds import (
    ATTENTION,
    BANDWIDTH,
    COPIED,
    FLOAT32,
    LAUNCH,
    PRODUCTS,
    TF32,
    phase_seconds,
    sampling_seconds,
    weights_seconds,
)
from openprime.types import UserError

RESERVE = 3.0
"""GiB of a GPU for the CUDA context, NCCL and what the allocator cannot use."""
SCHEMAS: dict[str, type[TrainingConfig]] = {"sft": SFTConfig, "rl": RLConfig, "prm": OfflinePRMConfig}


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

    Raises UserError for a configuration or a model that cannot be read.
    """
    run = read_run(config)
    shape = prm = read_shape(ours(config.architecture) or run.model)
    if isinstance(run, PrimeConfig) and run.prm.model not in ("", run.model):
        prm = read_shape(ours(config.prm_architecture) or run.prm.model)
    machine = Machine(config.gpus, config.gpu_memory * GiB, config.gpus_per_node, config.pass_rate)
    budget = memory_of(run, machine, shape, prm)
    limit = config.gpu_memory - (RESERVE if run.device != "cpu" else 0.0)

    def fits(settings: list[str]) -> bool:
        """Whether the run fits with these changes."""
        words = " ".join(settings).split()
        gpus = int(words[words.index("--gpus") + 1]) if "--gpus" in words else config.gpus
        changed = changed_run(run, tuple(word for word in words if "=" in word))
        return memory_of(changed, replace(machine, ranks=gpus), shape, prm).peak <= limit * GiB

    fit = budget.peak <= limit * GiB
    return {
        "configuration": config.config,
        "gpus": config.gpus,
        "gpu_memory": config.gpu_memory,
        "usable": limit,
        "models": {
            part.role: {"parameters": part.shape.parameters, "trained": part.trainable, "own": part.held}
            for part in parts_of(run, shape, prm)
        },
        "phases": {
            phase: {part: parts[part] / GiB for part in PARTS if parts.get(part)}
            for phase, parts in budget.phases.items()
        },
        "peak": budget.peak / GiB,
        "fits": fit,
        "changes": [] if fit else advise(changes(run, config.gpus), fits),
        "host": {name: size / GiB for name, size in budget.host.items() if size},
        "checkpoint": budget.checkpoint / GiB,
        "checkpoints": run.keep + 1,
        "checkpoint_seconds": budget.checkpoint / GiB / config.disk_bandwidth,
        "disk_bandwidth": config.disk_bandwidth,
        "notes": notes(run, machine, shape),
        **estimate(config, run, shape, prm),
    }


def ours(architecture: str) -> str:
    """An architecture as it is named, or among those that come with the package."""
    place = package_configs().parent / architecture
    return str(place) if architecture and place.exists() and not Path(architecture).exists() else architecture


def read_run(config: PlanConfig) -> TrainingConfig:
    """The configuration that is planned, with the settings of `config.set` over it."""
    path = find_config(config.config)
    stage = path.resolve().parent.name if config.stage == "auto" else config.stage
    if stage not in SCHEMAS:
        raise UserError(f"{path}: of which command? Its folder is not named sft, rl or prm: give --stage")
    tags = read_tags([f"--{setting}" for setting in config.set])
    return changed_run(read_config(SCHEMAS[stage], path, tags), config.set)


def changed_run(run: TrainingConfig, settings: tuple[str, ...]) -> TrainingConfig:
    """A configuration with `key=value` settings over it."""
    values = run.model_dump()
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: expected key=value, such as policy.lora.rank=32")
        value: Any = parse_yaml(text, f"--set {setting}")
        for name in reversed(key.split(".")):
            value = {name: value}
        values = merge(values, value)
    return build(RLConfig if isinstance(run, RLConfig) else type(run), values, where="--set")


def advise(settings: list[str], fits: Callable[[list[str]], bool]) -> list[list[str]]:
    """What would make a run fit: single changes, or else the first of them together until it does."""
    if single := [[setting] for setting in settings if fits([setting])]:
        return single
    together: dict[str, str] = {}
    for setting in settings:
        together[setting.split("=")[0].split()[0]] = setting  # of a setting that is changed twice the last
        if "lora.rank" in setting:  # adapters stay on the GPU
            together.pop("parallel.cpu_offload", None)
        if fits(list(together.values())):
            return [list(together.values())]
    return [["nothing that can be set: take a smaller model"]]


def changes(run: TrainingConfig, gpus: int) -> list[str]:
    """Changes that take less memory, those first that cost least: settings for --set, or --gpus."""
    names = [name for name in ("policy", "prm", "optimizer") if hasattr(run, name)]
    sections = [getattr(run, name) for name in names]
    longest = longest_of(run) if isinstance(run, RLConfig) else run.max_tokens
    found = []

    def of_all(key: str, value: object) -> None:
        found.append(" ".join(f"{name}.{key}={value}" for name in names))

    if run.parallel.replicas > 1:
        found.append("parallel.replicas=1")
    if not all(section.gradient_checkpointing for section in sections):
        of_all("gradient_checkpointing", "true")
    if max(section.tokens_per_microbatch for section in sections) > longest:
        of_all("tokens_per_microbatch", longest)
    if isinstance(run, RLConfig) and run.engine.kind in OWN and run.rollout.sequences > 8:
        found.append(f"rollout.sequences={max(8, run.rollout.sequences // 8)}")
    if isinstance(run, RLConfig) and run.engine.kind == "vllm" and run.engine.gpu_memory > 0.3:
        found.append("engine.gpu_memory=0.3")
    ranks = [section.lora.rank for section in sections if hasattr(section, "lora")]
    if not run.parallel.cpu_offload and not any(ranks):
        found.append("parallel.cpu_offload=true" + ("" if gpus > 1 else " parallel.shard=true"))
    if ranks and not all(ranks):
        of_all("lora.rank", 32)
        if run.parallel.cpu_offload:
            found[-1] += " parallel.cpu_offload=false"
    return found + [f"--gpus {times * gpus}" for times in (2, 4, 8)]


def notes(run: TrainingConfig, machine: Machine, shape: Shape) -> list[str]:
    """What fits into vLLM's share of a GPU, or what the engine is taken for."""
    if isinstance(run, RLConfig) and run.engine.kind == "auto":
        own = "the trainer's own model samples, as without vLLM; with it: --set engine.kind=vllm"
        return [f"engine.kind=auto: {own}"]
    if not isinstance(run, RLConfig) or run.engine.kind != "vllm":
        return []
    engine, longest, bfloat16 = run.engine, longest_of(run), is_bfloat16(run)
    weights = (2 if bfloat16 else 4) * shape.parameters / engine.tensor_parallel
    room = engine.gpu_memory * machine.memory - weights - 2 * GiB
    each = longest * cache_per_token(shape, bfloat16, "vllm") / engine.tensor_parallel
    if room >= each:
        return [f"vLLM's cache holds {int(room / each)} sequences of {longest} tokens a GPU at a time"]
    return [
        f"vLLM's {engine.gpu_memory:.0%} of a GPU does not hold the model and one sequence of {longest} tokens: raise "
        "engine.gpu_memory or engine.tensor_parallel"
    ]


def estimate(config: PlanConfig, run: TrainingConfig, shape: Shape, prm: Shape) -> dict[str, Any]:
    """Tokens, FLOPs, hours and cost, and what was assumed for them."""
    if isinstance(run, RLConfig):
        prompt_limit, response_limit = run.data.max_prompt_tokens, run.rollout.max_response_tokens
        steps = run.steps
    else:
        prompt_limit = min(run.data.max_prompt_tokens, run.max_tokens // 2)
        response_limit = run.max_tokens - prompt_limit
        held_out = run.held_out if isinstance(run, OfflinePRMConfig) else 0.0
        steps = math.ceil((config.rows or run.data.limit) * (1 - held_out) / run.batch)  # of an epoch
        steps = math.ceil(round(run.epochs * steps, 6))
    prompt = config.prompt_tokens or prompt_limit / 2
    response = config.response_tokens or response_limit / 2
    models = parts_of(run, shape, prm)
    work = work_of(run, models, prompt, response, config.pass_rate)
    parts = {part.role: phase_seconds(config, run, part, prompt, response) for part in models}
    seconds = {role: phase.total for role, phase in parts.items()}
    if config.mfu:
        peak = config.gpus * config.gpu_tflops * 1e12
        rate = work["training_flops"] / (peak * config.mfu) / sum(seconds.values())
        seconds = {role: rate * phase for role, phase in seconds.items()}
    training, sampling = sum(seconds.values()), 0.0
    if isinstance(run, RLConfig):
        sampling = sampling_seconds(config, run, shape, work)
        seconds = {"sampling": sampling, **seconds, "weights": weights_seconds(run, shape)}
    hours = steps * sum(seconds.values()) / 3600
    assumed = [
        f"prompts of {prompt:,.0f} and responses of {response:,.0f} tokens on average"
        + ("" if config.prompt_tokens and config.response_tokens else " (half of the longest)"),
        *training_assumptions(config, run),
        f"{config.price_per_gpu_hour:.2f} a GPU and hour",
    ]
    if isinstance(run, RLConfig):
        assumed += [
            f"{config.pass_rate:.0%} of the groups pass the filter",
            f"sampling at {config.tokens_per_second:,.0f} tokens/s, as measured"
            if config.tokens_per_second
            else f"sampling at {config.sampling_mfu:.0%} of the peak, and where a step needs a second draw its longest "
            "response alone",
            f"new weights to the engine at {COPIED / 1e9:g} GB/s",
            "no time for verifiers, evaluation and checkpoints, nor for the network between GPUs",
        ]
    elif not steps:
        assumed.append("the number of steps is not known: give --rows")
    return {
        "step": work | {"sampling_seconds": sampling, "training_seconds": training},
        "seconds": seconds,
        "parts": {} if config.mfu else {role: asdict(phase) for role, phase in parts.items()},
        "steps": steps,
        "hours": hours,
        "gpu_hours": hours * config.gpus,
        "cost": hours * config.gpus * config.price_per_gpu_hour,
        "assumed": assumed,
    }


def training_assumptions(config: PlanConfig, run: TrainingConfig) -> list[str]:
    """What the times of forward and backward passes rest on."""
    if config.mfu:
        return [f"training at {config.mfu:.0%} of {config.gpu_tflops:,.0f} TFLOPS a GPU, as measured"]
    narrow = is_bfloat16(run)
    part, head = 1.0 if narrow else FLOAT32, TF32 if narrow else FLOAT32
    return [
        f"of {config.gpu_tflops:,.0f} TFLOPS a GPU the blocks' products reach {PRODUCTS * part:.2g}, attention "
        f"{ATTENTION * part:.2g}, the head {PRODUCTS * head:.2g} of the peak",
        f"norms, rotation, gates and softmax at {BANDWIDTH:.0%} of {config.gpu_bandwidth:g} TB/s",
        f"{LAUNCH * 1e6:g} microseconds of the host for a kernel, beside the GPU",
    ]


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
    say(f"fits: {room}" if found["fits"] else f"does NOT fit: {room}. What would make it fit:")
    for group in found["changes"]:
        say("  - " + "; ".join(group))
    host = ", ".join(f"{name} {size:,.0f}" for name, size in found["host"].items())
    say(f"memory of a node: {sum(found['host'].values()):,.0f} GiB ({host})")
    size, most = found["checkpoint"], found["checkpoints"]
    speed = f"{found['checkpoint_seconds']:,.0f} s at {found['disk_bandwidth']:g} GiB/s"
    say(f"a checkpoint: {size:,.1f} GiB, {speed}; at most {most} on the disk, {most * size:,.0f} GiB")
    step = found["step"]
    for what, tokens in (("sampled", step["sampled_tokens"]), ("trained on", step["trained_tokens"])):
        kind = "sampling" if what == "sampled" else "training"
        if tokens:
            work = f"{step[f'{kind}_flops']:.2e} FLOPs; {step[f'{kind}_seconds']:,.1f} s"
            say(f"a step: {tokens:,.0f} tokens {what}; {work}")
    of = {role: sum(v for k, v in parts.items() if k != "host") for role, parts in found["parts"].items()}
    say("seconds of a step: " + ", ".join(f"{role} {took:,.1f}" for role, took in found["seconds"].items()))
    for role, parts in found["parts"].items():
        slow = " (the host is slower)" if parts["host"] > of[role] else ""
        say(f"  {role}: " + ", ".join(f"{name} {took:,.1f}" for name, took in parts.items()) + slow)
    if found["steps"]:
        say(
            f"{found['steps']:,} steps: {found['hours'] / 24:.1f} days, {found['gpu_hours']:,.0f} GPU hours, "
            f"cost {found['cost']:,.0f}"
        )
    for note in found["notes"]:
        say(f"note: {note}")
    say("assumed: " + "; ".join(found["assumed"]))
