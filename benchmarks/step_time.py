"""One RL step beside TRL's GRPO and RLOO, and SFT beside TRL's, on the same model, prompts, lengths and cores.

    pip install -c constraints.txt trl
    python benchmarks/step_time.py [--shape tiny] [--precision float32] [--repeats 3] [--json FILE]
    python benchmarks/step_time.py --scaling growth.html [--json FILE]

Every system runs in a process of its own, one after the other, on the same cores with as many threads, after one
step to warm up. The model has random weights and an end-of-sequence token outside its vocabulary, so that on both
sides every response has its full length. The verifier is the same function of no cost, outcomes 0, 1, 0, 1.
The batch is one optimiser step for all, AdamW, KL 0 unless it says otherwise. bfloat16 is autocast on both sides:
weights and optimiser stay float32. TRL with "defaults" recomputes activations (gradient checkpointing) and has,
for RLOO, a KL penalty of 0.05 that needs a reference model; "tuned" is without both. Its micro-batch is
--trl-rows rows, ours as our defaults say. Without TRL only ours is measured.

CPU seconds are those of the process and its children: what to compare on a machine that does other work too.
--scaling grows one thing at a time on our side and sets time against the work, counted in multiplications.
"""

import argparse
import importlib.util
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

RATE = 1e-6
SFT_ROWS = 128


@dataclass(frozen=True, slots=True)
class Shape:
    """A model and a batch."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    mlp: int
    vocabulary: int
    prompts: int
    responses: int
    new_tokens: int
    prompt_tokens: tuple[int, int] = (16, 32)

    def work(self) -> float:
        """Multiplications of a PRIME step: sampling, reference, and two models forward and backward."""
        head = self.hidden // self.heads * self.key_value_heads
        block = 2 * self.hidden * (self.hidden + head) + 3 * self.hidden * self.mlp
        body, logits = self.layers * block, self.hidden * self.vocabulary
        rows = self.prompts * self.responses
        prompt = sum(self.prompt_tokens) / 2
        total = prompt + self.new_tokens
        attention = self.layers * self.hidden * total  # 2 products, on average half of the positions
        prefill = self.prompts * prompt * body
        sampled = rows * self.new_tokens * (body + logits + attention)
        passes = 1 + 3 + 3  # reference, PRM and policy; the head forms its logits again in the backward pass
        trained = rows * (total * (body + attention) * passes + self.new_tokens * logits * (1 + 4 + 4))
        return prefill + sampled + trained


SHAPES = {
    "tiny": Shape(256, 4, 4, 2, 768, 512, 32, 4, 96),  # 3.28M parameters
    "mid": Shape(512, 8, 8, 2, 2048, 32_000, 8, 4, 128),  # 46.8M parameters
}
SYSTEMS = {
    "PRIME": "ours, process and outcome rewards",
    "outcome-only": "ours, the control",
    "TRL GRPO": "defaults",
    "TRL GRPO tuned": "no gradient checkpointing",
    "TRL RLOO": "defaults: gradient checkpointing, KL 0.05",
    "TRL RLOO tuned": "no gradient checkpointing, KL 0",
    "SFT": "ours",
    "TRL SFT": "defaults",
    "TRL SFT tuned": "no gradient checkpointing",
}
PARTS = ("sampling", "scoring", "PRM", "policy", "other")
GROWTH = Shape(128, 2, 4, 2, 384, 512, 4, 4, 64)
AXES = {
    "response length": [replace(GROWTH, prompts=2, responses=2, new_tokens=n) for n in (64, 256, 1024, 4096)],
    "vocabulary": [replace(GROWTH, vocabulary=n) for n in (512, 8_192, 32_768, 151_936)],
    "prompts": [replace(GROWTH, prompts=n) for n in (4, 16, 64)],
    "K": [replace(GROWTH, responses=n) for n in (2, 4, 16, 64)],
}
AXIS_FIELD = {
    "response length": "new_tokens",
    "vocabulary": "vocabulary",
    "prompts": "prompts",
    "K": "responses",
}


def alternate(prompts, completions, **columns) -> list[float]:
    """The verifier of both sides."""
    return [float(i % 2) for i in range(len(completions))]


# What both sides read


def make_files(folder: Path, shape: Shape, seed: int = 0) -> None:
    """`rl` and `sft` models (the same weights), `prompts.jsonl` and `demonstrations.jsonl`."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tokenizer(shape.vocabulary)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, eos_token_id=config.eos_token_id)
    model.save_pretrained(folder / "sft")
    tokenizer.save_pretrained(folder / "sft")
    draw = random.Random(seed)
    prompts = [text_of(draw, tokenizer, draw.randint(*shape.prompt_tokens)) for _ in range(shape.prompts)]
    write_rows(folder / "prompts.jsonl", [{"prompt": p, "answer": "1"} for p in prompts])
    answers = [text_of(draw, tokenizer, draw.randint(64, 126)) for _ in range(SFT_ROWS)]
    rows = [{"prompt": prompts[i % len(prompts)], "completion": a} for i, a in enumerate(answers)]
    write_rows(folder / "demonstrations.jsonl", rows)
    tokenizer.add_special_tokens({"eos_token": "<never>"})  # its id is the first that the model does not have
    assert tokenizer.eos_token_id == shape.vocabulary
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder / "rl")
    tokenizer.save_pretrained(folder / "rl")


def make_tokenizer(size: int):
    """A byte-level BPE tokenizer of exactly `size` tokens, merges made up."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens, merges = list(letters), []
    for left in tokens:  # grows while it is read
        for right in letters[: min(len(letters), size - 2 - len(tokens))]:
            tokens.append(left + right)
            merges.append((left, right))
        if len(tokens) >= size - 2:
            break
    vocabulary = {token: i for i, token in enumerate([*tokens, "<pad>", "<end>"])}
    return Qwen2Tokenizer(
        vocab=vocabulary, merges=merges, unk_token=None, pad_token="<pad>", eos_token="<end>"
    )


def text_of(draw: random.Random, tokenizer, tokens: int) -> str:
    """Words of letters, of about so many tokens."""
    text = ""
    while len(tokenizer.encode(text)) < tokens:
        text += " " + "".join(draw.choices("etaoinshrdlu", k=draw.randint(1, 3)))
    return text.strip()


def write_rows(path: Path, rows: list[dict]) -> None:
    """JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# One system, in a process of its own


class Meter:
    """Wall and CPU seconds of the parts of a step; stands in for a run's clock."""

    def __init__(self) -> None:
        self.steps: list[dict[str, list[float]]] = []
        self.parts: dict[str, list[float]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count a block towards `name`."""
        wall, cpu = time.perf_counter(), cpu_seconds()
        yield
        held = self.parts.setdefault(name, [0.0, 0.0])
        held[0] += time.perf_counter() - wall
        held[1] += cpu_seconds() - cpu

    @contextmanager
    def step(self) -> Iterator[None]:
        """A whole step."""
        self.parts = {}
        with self.phase("step"):
            yield
        self.steps.append(self.parts)

    def result(self, tokens: int, before: int) -> dict:
        """Medians over the steps, the first one left out."""
        kept = self.steps[1:]
        names = {name for step in kept for name in step}
        nothing = [0.0, 0.0]
        wall, cpu = (
            {n: statistics.median(step.get(n, nothing)[i] for step in kept) for n in sorted(names)}
            for i in (0, 1)
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "seconds": wall,
            "cpu_seconds": cpu,
            "every_step": self.steps,
            "tokens": tokens,
            "peak_mib": peak / 1024,
            "peak_over_start_mib": (peak - before) / 1024,
        }


def cpu_seconds() -> float:
    """CPU seconds of this process and its children, dead or alive."""
    total = time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    stats = [Path(f"/proc/{child}/stat") for child in children(os.getpid())]
    for stat in stats:
        if stat.exists():
            user, system = stat.read_text().rsplit(")", 1)[1].split()[11:13]
            total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total


def children(process: int) -> list[str]:
    """Child processes, down to the last."""
    path = Path(f"/proc/{process}/task/{process}/children")
    own = path.read_text().split() if path.exists() else []
    return own + [child for parent in own for child in children(int(parent))]


def run_ours(system: str, folder: Path, shape: Shape, precision: str, steps: int) -> dict:
    """RL steps of `openprime rl`, made of its own pieces."""
    import torch

    from openprime.config import (
        AdvantageConfig,
        DataConfig,
        PolicyConfig,
        PRMConfig,
        RLConfig,
        RolloutConfig,
        VerifyConfig,
    )
    from openprime.data.collate import collate
    from openprime.models.hub import pad_token
    from openprime.stages import rl
    from openprime.verifiers.pool import Pool

    rows = shape.prompts * shape.responses
    config = RLConfig(
        model=str(folder / "rl"),
        steps=steps,
        data=DataConfig(
            source=str(folder / "prompts.jsonl"), verifier="step_time:alternate", chat_template="none"
        ),
        eval_data=DataConfig(),
        rollout=RolloutConfig(
            prompts=shape.prompts, responses=shape.responses, max_response_tokens=shape.new_tokens
        ),
        advantage=AdvantageConfig(process_weight=float(system == "PRIME")),
        policy=PolicyConfig(lr=RATE, minibatch=rows),
        prm=PRMConfig(),
        out=str(folder / f"run-{system}-{precision}"),
        dtype=precision,  # pyright: ignore[reportArgumentType]
        verify=VerifyConfig(workers=1),
    )
    meter = Meter()
    with Pool(config.verify) as pool:
        parts = rl.prepare(config, pool)
        parts.run.clock = meter  # pyright: ignore[reportAttributeAccessIssue]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for step in range(steps):
            with meter.step():
                with meter.phase("rollout"):
                    groups = parts.collector.collect(step, lambda: None)
                batch = collate(groups, parts.step_ends, pad_token(parts.tokenizer))
                rewards, _ = rl.process_rewards(parts.prm, batch, parts.run)
                advantages, _ = rl.compute_advantages(batch, rewards, config.advantage)
                with meter.phase("policy"):
                    generator = torch.Generator().manual_seed(step)
                    rl.update_policy(parts.policy, batch, advantages, config.policy, generator)
                parts.engine.load(parts.policy.model.named_parameters(), step)
    tokens = int(batch.response_mask.sum())
    assert tokens == rows * shape.new_tokens, "a response ended early"
    return meter.result(tokens, before)


def run_trl(system: str, folder: Path, shape: Shape, precision: str, steps: int, rows_at_once: int) -> dict:
    """Steps of TRL's GRPOTrainer or RLOOTrainer, timed from outside."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    grpo, tuned = "GRPO" in system, "tuned" in system
    make_config, make_trainer = (GRPOConfig, GRPOTrainer) if grpo else (RLOOConfig, RLOOTrainer)
    rows = shape.prompts * shape.responses
    rows_at_once = min(rows, rows_at_once)
    config = make_config(
        max_steps=steps,
        per_device_train_batch_size=rows_at_once,
        gradient_accumulation_steps=rows // rows_at_once,
        num_generations=shape.responses,
        max_completion_length=shape.new_tokens,
        shuffle_dataset=False,
        **trl_settings(folder, precision, tuned),
        **({"beta": 0.0} if tuned else {}),
    )
    trainer = make_trainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "rl", dtype=torch.float32),
        reward_funcs=alternate,
        args=config,
        train_dataset=load_dataset("json", data_files=str(folder / "prompts.jsonl"), split="train"),
        processing_class=AutoTokenizer.from_pretrained(folder / "rl"),
    )
    meter, sampled = Meter(), []
    generate, score = trainer._generate_single_turn, trainer._get_per_token_logps_and_entropies

    def timed_generate(*args, **kwargs):
        with meter.phase("rollout"):
            found = generate(*args, **kwargs)
        sampled.append(sum(map(len, found if isinstance(found, list) else found[0])))
        return found

    def timed_score(*args, **kwargs):
        if torch.is_grad_enabled():
            return score(*args, **kwargs)
        with meter.phase("reference"):
            return score(*args, **kwargs)

    trainer._generate_single_turn, trainer._get_per_token_logps_and_entropies = timed_generate, timed_score
    before = watch(trainer, meter)
    assert sampled == [rows * shape.new_tokens] * steps, f"a response ended early: {sampled}"
    return meter.result(sampled[-1], before)


def run_sft(folder: Path, precision: str, steps: int) -> dict:
    """Optimiser steps of `openprime sft`, made of its own pieces."""
    from openprime.algorithm.losses import sft_loss
    from openprime.config import DataConfig, OptimizerConfig
    from openprime.data.collate import collate_demonstrations
    from openprime.data.readers import read_demonstrations
    from openprime.models.hub import load_model, load_tokenizer, pad_token
    from openprime.training.learner import Learner

    model, tokenizer = load_model(str(folder / "sft")), load_tokenizer(str(folder / "sft"))
    source = DataConfig(source=str(folder / "demonstrations.jsonl"), chat_template="none")
    data = read_demonstrations(source, tokenizer, 4096)
    learner, meter = Learner(model, OptimizerConfig(lr=RATE), steps, precision == "bfloat16"), Meter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(steps):
        with meter.step():
            batch = collate_demonstrations(data.rows, pad_token(tokenizer))
            loss = lambda logprobs, micro, rows: sft_loss(logprobs, micro.response_mask)  # noqa: E731
            learner.update(batch, loss, int(batch.response_mask.sum()))
    return meter.result(int(batch.lengths.sum()), before)


def run_trl_sft(system: str, folder: Path, precision: str, steps: int, rows_at_once: int) -> dict:
    """Optimiser steps of TRL's SFTTrainer on the same demonstrations."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows_at_once = min(SFT_ROWS, rows_at_once)
    config = SFTConfig(
        max_steps=steps,
        per_device_train_batch_size=rows_at_once,
        gradient_accumulation_steps=SFT_ROWS // rows_at_once,
        **trl_settings(folder, precision, "tuned" in system),
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "sft", dtype=torch.float32),
        args=config,
        train_dataset=load_dataset("json", data_files=str(folder / "demonstrations.jsonl"), split="train"),
        processing_class=AutoTokenizer.from_pretrained(folder / "sft"),
    )
    tokens = sum(len(row["input_ids"]) for row in trainer.train_dataset)
    meter = Meter()
    return meter.result(tokens, watch(trainer, meter))


def trl_settings(folder: Path, precision: str, tuned: bool) -> dict:
    """What TRL's three trainers share."""
    return {
        "output_dir": str(folder / "trl"),
        "learning_rate": RATE,
        "bf16": precision == "bfloat16",
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1000,
        "disable_tqdm": True,
    } | ({"gradient_checkpointing": False} if tuned else {})


def watch(trainer, meter: Meter) -> int:
    """Train with every optimiser step measured; the process's peak memory before it began."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_begin(self, *args, **kwargs) -> None:
            self.timer = meter.step()
            self.timer.__enter__()

        def on_step_end(self, *args, **kwargs) -> None:
            self.timer.__exit__(None, None, None)

    trainer.add_callback(Watch())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trainer.train()
    return before


def work(task: dict) -> None:
    """Measure one system and print what was found as JSON."""
    os.sched_setaffinity(0, task["cores"])
    import torch

    torch.set_num_threads(len(task["cores"]))
    system, folder, shape = task["system"], Path(task["folder"]), Shape(**task["shape"])
    precision, steps = task["precision"], task["repeats"] + 1
    if system == "files":
        make_files(folder, shape)
        result: dict = {}
    elif system == "SFT":
        result = run_sft(folder, precision, steps)
    elif system.startswith("TRL SFT"):
        result = run_trl_sft(system, folder, precision, steps, task["trl_rows"])
    elif system.startswith("TRL"):
        result = run_trl(system, folder, shape, precision, steps, task["trl_rows"])
    else:
        result = run_ours(system, folder, shape, precision, steps)
    print("\n" + json.dumps(result))


# All of them


def measure(task: dict) -> dict:
    """`work` in a process of its own."""
    threads = str(len(task["cores"]))
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--task", json.dumps(task)]
    here = Path(__file__).resolve().parent  # where the workers of the pool find `alternate`
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=here)
    if done.returncode:
        raise SystemExit(f"{task['system']} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def parts_of(seconds: dict[str, float]) -> dict[str, float]:
    """The columns of the table."""
    found = {
        "sampling": seconds.get("rollout", 0.0),
        "scoring": seconds.get("reference", 0.0),
        "PRM": seconds.get("prm", 0.0),
        "policy": seconds.get("policy", 0.0),
    }
    return found | {"other": seconds["step"] - sum(found.values())}


def compare(args: argparse.Namespace, task: dict) -> list[dict]:
    """Every system at every shape and precision."""
    from rich.console import Console
    from rich.table import Table

    console, results = Console(width=150), []
    systems = list(SYSTEMS if importlib.util.find_spec("trl") else ("PRIME", "outcome-only", "SFT"))
    if "TRL GRPO" not in systems:
        console.print("TRL is not installed (pip install -c constraints.txt trl): ours alone")
    systems = [system for system in systems if args.systems is None or system in args.systems]
    for shape in args.shape:
        with tempfile.TemporaryDirectory() as folder:
            base = task | {"folder": folder, "shape": asdict(SHAPES[shape])}
            measure(base | {"system": "files", "precision": "float32"})
            for precision in args.precision:
                rows = {}
                for system in systems:
                    rows[system] = measure(base | {"system": system, "precision": precision})
                    console.print(
                        f"{shape} {precision} {system}: {rows[system]['cpu_seconds']['step']:.2f} CPU s"
                    )
                results.append(summarise(shape, precision, rows))
                show(console, Table, results[-1], args)
    return results


def summarise(shape: str, precision: str, rows: dict[str, dict]) -> dict:
    """Figures of one shape and precision, with the ratios that matter."""
    for row in rows.values():
        if "policy" not in row["cpu_seconds"] and "rollout" in row["cpu_seconds"]:  # TRL: all that is left
            for kind in ("seconds", "cpu_seconds"):
                known = row[kind].get("rollout", 0.0) + row[kind].get("reference", 0.0)
                row[kind]["policy"] = row[kind]["step"] - known
        row["tokens_per_cpu_second"] = row["tokens"] / row["cpu_seconds"]["step"]
    cpu = {system: row["cpu_seconds"]["step"] for system, row in rows.items()}
    pairs = [(a, b) for a in ("outcome-only", "PRIME") for b in cpu if b.startswith(("TRL GRPO", "TRL RLOO"))]
    pairs += [("PRIME", "outcome-only"), ("SFT", "TRL SFT"), ("SFT", "TRL SFT tuned")]
    ratios = {f"{a} / {b}": cpu[a] / cpu[b] for a, b in pairs if a in cpu and b in cpu}
    if {"PRIME", "outcome-only"} <= set(cpu):
        ratios["PRIME's extra share of its step"] = 1 - cpu["outcome-only"] / cpu["PRIME"]
    return {"shape": shape, "precision": precision, "systems": rows, "ratios": ratios}


def show(console, make_table, result: dict, args: argparse.Namespace) -> None:
    """The table of one shape and precision."""
    shape = SHAPES[result["shape"]]
    title = (
        f"{result['shape']}, {result['precision']}: {shape.prompts} prompts x {shape.responses} responses x "
        f"{shape.new_tokens} tokens, {args.threads} thread(s), median of {args.repeats} steps; CPU seconds"
    )
    table = make_table(title=title, title_justify="left")
    table.add_column("system")
    for name in (*PARTS, "step", "wall s", "tok/s", "peak MiB", "/ GRPO", "/ RLOO tuned"):
        table.add_column(name, justify="right")
    cpu = {system: row["cpu_seconds"]["step"] for system, row in result["systems"].items()}
    for system, row in result["systems"].items():
        sft = "SFT" in system
        parts = parts_of(row["cpu_seconds"])
        cells = ["" if sft or parts[name] < 0.005 else f"{parts[name]:.2f}" for name in PARTS]
        beside = ["", ""] if sft else [ratio(cpu, system, "TRL GRPO"), ratio(cpu, system, "TRL RLOO tuned")]
        table.add_row(
            f"{system} [dim]{SYSTEMS[system]}[/dim]",
            *cells,
            f"{cpu[system]:.2f}",
            f"{row['seconds']['step']:.2f}",
            f"{row['tokens_per_cpu_second']:,.0f}",
            f"{row['peak_mib']:,.0f}",
            *beside,
        )
    console.print(table)
    for name, value in result["ratios"].items():
        console.print(f"  {name}: {value:.2f}", highlight=False)


def ratio(cpu: dict[str, float], system: str, other: str) -> str:
    """A cell."""
    return f"{cpu[system] / cpu[other]:.2f}" if other in cpu else ""


def grow(args: argparse.Namespace, task: dict) -> list[dict]:
    """A PRIME step against response length, vocabulary, batch and K; a table and a page with the plot."""
    from rich.console import Console
    from rich.table import Table

    console, rows = Console(width=150), []
    precision = args.precision[0]
    for axis, shapes in AXES.items():
        for shape in shapes:
            with tempfile.TemporaryDirectory() as folder:
                base = task | {"folder": folder, "shape": asdict(shape), "precision": precision}
                measure(base | {"system": "files"})
                found = measure(base | {"system": "PRIME"})
            value = getattr(shape, AXIS_FIELD[axis])
            rows.append({"axis": axis, "value": value, "work": shape.work(), **found})
    table = Table(
        title=f"How a PRIME step grows, {precision}, {args.threads} thread(s)", title_justify="left"
    )
    for name in ("axis", "value", "CPU s", "growth", "work's growth", "growth / work's", "MiB over start"):
        table.add_column(name, justify="left" if name == "axis" else "right")
    for row in rows:
        first = next(r for r in rows if r["axis"] == row["axis"])
        row["growth"] = row["cpu_seconds"]["step"] / first["cpu_seconds"]["step"]
        row["work_growth"] = row["work"] / first["work"]
        table.add_row(
            row["axis"],
            f"{row['value']:,}",
            f"{row['cpu_seconds']['step']:.2f}",
            f"{row['growth']:.1f}",
            f"{row['work_growth']:.1f}",
            f"{row['growth'] / row['work_growth']:.2f}",
            f"{row['peak_over_start_mib']:,.0f}",
        )
    console.print(table)
    draw(rows, Path(args.scaling))
    console.print(f"plot: {args.scaling}")
    return rows


def draw(rows: list[dict], path: Path) -> None:
    """Time and the work's growth above, memory below, a column for every axis."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=len(AXES), column_titles=list(AXES), vertical_spacing=0.1)
    for column, axis in enumerate(AXES, 1):
        own = [row for row in rows if row["axis"] == axis]
        x = [row["value"] for row in own]
        seconds = [row["cpu_seconds"]["step"] for row in own]
        expected = [seconds[0] * row["work_growth"] for row in own]
        memory = [row["peak_over_start_mib"] for row in own]
        for y, name, line, place in (
            (seconds, "step, CPU s", {"color": "#1f77b4"}, 1),
            (expected, "as the work grows", {"color": "#888888", "dash": "dot"}, 1),
            (memory, "MiB over start", {"color": "#d62728"}, 2),
        ):
            trace = go.Scatter(x=x, y=y, name=name, line=line, mode="lines+markers", showlegend=column == 1)
            figure.add_trace(trace, row=place, col=column)
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    figure.update_layout(title="How a PRIME step grows", template="plotly_white", height=700)
    figure.write_html(path)


def main() -> None:
    """Measure, print, and write every figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["tiny", "mid"])
    parser.add_argument(
        "--precision", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"]
    )
    parser.add_argument("--repeats", type=int, default=3, help="steps that count, after one to warm up")
    parser.add_argument("--threads", type=int, default=1, help="cores and threads of every system")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), help="only these")
    parser.add_argument("--trl-rows", type=int, default=128, help="rows of TRL's micro-batch")
    parser.add_argument(
        "--scaling", metavar="FILE.html", help="how time and memory grow, with a plot, instead"
    )
    parser.add_argument("--json", help="write every figure to this file")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        work(json.loads(args.task))
        return
    cores = sorted(os.sched_getaffinity(0))[-args.threads :]
    task = {"cores": cores, "repeats": args.repeats, "trl_rows": args.trl_rows}
    results = grow(args, task) if args.scaling else compare(args, task)
    if args.json:
        found = {"settings": vars(args), "machine": machine(), "results": results}
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def machine() -> dict[str, str]:
    """Where it was measured."""
    from importlib.metadata import version

    names = [name for name in ("torch", "transformers", "trl") if importlib.util.find_spec(name)]
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return {"platform": platform.platform(), "cpu": model} | {name: version(name) for name in names}


if __name__ == "__main__":
    main()
