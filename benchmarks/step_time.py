"""One RL step beside TRL's GRPO and RLOO, and SFT beside TRL's, on the same model, prompts, lengths and threads.

    pip install -c constraints.txt trl
    python benchmarks/step_time.py [--shape tiny] [--precision float32] [--repeats 3] [--json FILE]
    python benchmarks/step_time.py --scaling growth.html [--json FILE]

The systems take turns: in each of the repeats, every system runs in a process of its own, one step to warm up and
one that counts, with as many threads. The model has random weights and an end-of-sequence token
outside its vocabulary, so that on both sides every response has its full length. The verifier is the same function
of no cost, outcomes 0, 1, 0, 1. The batch is one optimiser step for all, AdamW, KL 0 unless it says otherwise.
bfloat16 is autocast on both sides: weights and optimiser stay float32. TRL with "defaults" recomputes activations
(gradient checkpointing) and has, for RLOO, a KL penalty of 0.05 that needs a reference model; "tuned" is without
both. Its micro-batch is --trl-rows rows, ours as our defaults say. Without TRL only ours is measured.

CPU seconds are those of the process and its children: what to compare on a machine that does other work too.
--scaling grows one thing at a time on our side and sets time against the work, counted in multiplications.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from step_work import SHAPES, Shape

SYSTEMS = {
    "PRIME": "ours, process and outcome rewards",
    "PRIME, policy as reference": "ours, prm.reference=policy",
    "outcome-only": "ours, the outcome-only baseline",
    "TRL GRPO": "defaults",
    "TRL GRPO tuned": "no gradient checkpointing",
    "TRL RLOO": "defaults: gradient checkpointing, KL 0.05",
    "TRL RLOO tuned": "no gradient checkpointing, KL 0",
    "SFT": "ours",
    "TRL SFT": "defaults",
    "TRL SFT tuned": "no gradient checkpointing",
}
PARTS = {"sampling": "rollout", "scoring": "reference", "PRM": "prm", "policy": "policy"}
"""Columns of the table: phases of a step. With TRL, `policy` is all that is neither sampling nor scoring."""
RATIOS = (
    ("outcome-only", "TRL GRPO"),
    ("outcome-only", "TRL GRPO tuned"),
    ("PRIME", "TRL RLOO"),
    ("PRIME", "TRL RLOO tuned"),
    ("PRIME", "TRL GRPO"),
    ("PRIME", "outcome-only"),
    ("PRIME, policy as reference", "outcome-only"),
    ("SFT", "TRL SFT"),
    ("SFT", "TRL SFT tuned"),
)
GROWTH = Shape(128, 2, 4, 2, 384, 512, 4, 4, 64)
LONG = replace(GROWTH, prompts=2, responses=2)
AXES = {
    "response length": {n: (replace(LONG, new_tokens=n), 1) for n in (64, 256, 1024, 4096)},
    "vocabulary": {n: (replace(GROWTH, vocabulary=n), 1) for n in (512, 8_192, 32_768, 151_936)},
    "prompts": {n: (replace(GROWTH, prompts=n), 1) for n in (4, 16, 64)},
    "K": {n: (replace(GROWTH, responses=n), 1) for n in (4, 16, 64)},
    "ranks": {n: (SHAPES["tiny"], n) for n in (1, 2, 4)},
}
"""What grows: value -> shape and ranks. With more ranks the batch stays, the CPU seconds are those of all together."""


def measure(task: dict) -> dict:
    """One system, in a process of its own."""
    threads, here = str(task["threads"]), Path(__file__).resolve().parent
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    ranks = task.get("ranks", 1)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *(torchrun if ranks > 1 else ())]
    command += [str(here / "step_work.py"), json.dumps(task)]
    # In this folder the workers of the pool find the verifier.
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=here)
    if done.returncode:
        raise SystemExit(f"{task['system']} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def medians(runs: list[dict]) -> dict:
    """One system's median seconds and CPU seconds of a step and its parts, and what it is besides."""
    steps = [step for run in runs for step in run["steps"]]
    row = {name: max(run[name] for run in runs) for name in ("tokens", "peak_mib", "peak_over_start_mib")}
    for i, kind in enumerate(("seconds", "cpu_seconds")):
        found = [{name: spent[i] for name, spent in step.items()} for step in steps]
        for step in found:
            known = sum(step.get(name, 0.0) for name in ("rollout", "reference"))
            if "rollout" in step:
                step.setdefault("policy", step["step"] - known)
        row[kind] = {name: statistics.median(step[name] for step in found) for name in found[0]}
    row["tokens_per_cpu_second"] = row["tokens"] / row["cpu_seconds"]["step"]
    return row | {"every_step": steps}


def compare(args: argparse.Namespace, task: dict) -> Iterator[list[dict]]:
    """Every system at every shape and precision: all results, anew after each repeat."""
    from rich.console import Console

    console, results = Console(width=150), []
    ours = [name for name in SYSTEMS if "TRL" not in name]
    systems = list(SYSTEMS) if importlib.util.find_spec("trl") else ours
    if systems == ours:
        console.print("TRL is not installed (pip install -c constraints.txt trl): ours alone")
    systems = [system for system in systems if args.systems is None or system in args.systems]
    for shape in args.shape:
        with tempfile.TemporaryDirectory() as folder:
            base = task | {"folder": folder, "shape": asdict(SHAPES[shape]), "steps": 1}
            measure(base | {"system": "files", "precision": "float32"})
            for precision in args.precision:
                runs: dict[str, list[dict]] = {system: [] for system in systems}
                for repeat in range(args.repeats):
                    for system in systems:
                        runs[system].append(measure(base | {"system": system, "precision": precision}))
                        seconds = medians(runs[system][-1:])["cpu_seconds"]["step"]
                        console.print(f"{shape} {precision} {repeat} {system}: {seconds:.2f} CPU s")
                    rows = {system: medians(found) for system, found in runs.items()}
                    latest = summarise(shape, precision, rows)
                    yield [*results, latest]
                results.append(latest)
                show(console, latest, args)


def summarise(shape: str, precision: str, rows: dict[str, dict]) -> dict:
    """Figures of one shape and precision, with the ratios that matter."""
    cpu = {system: row["cpu_seconds"]["step"] for system, row in rows.items()}
    ratios = {f"{a} / {b}": cpu[a] / cpu[b] for a, b in RATIOS if a in cpu and b in cpu}
    for system in ("PRIME", "PRIME, policy as reference"):
        if {system, "outcome-only"} <= set(cpu):
            ratios[f"{system}: extra share of its step"] = 1 - cpu["outcome-only"] / cpu[system]
    result = {"shape": shape, "precision": precision, "systems": rows, "ratios": ratios}
    if "PRIME" in rows:  # one pass scores and trains
        spent, tokens = rows["PRIME"]["cpu_seconds"], rows["PRIME"]["tokens"]
        alone = {"reference": spent["reference"], "score and update": spent["prm"]}
        result["PRM alone"] = alone | {"tokens_per_cpu_second": tokens / sum(alone.values())}
    return result


def show(console, result: dict, args: argparse.Namespace) -> None:
    """The table of one shape and precision."""
    from rich.table import Table

    shape = SHAPES[result["shape"]]
    title = (
        f"{result['shape']}, {result['precision']}: {shape.prompts} prompts x {shape.responses} responses x "
        f"{shape.new_tokens} tokens, {args.threads} thread(s), median of {args.repeats}; CPU seconds"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("system")
    for name in (*PARTS, "other", "step", "wall s", "tok/s", "peak MiB"):
        table.add_column(name, justify="right")
    for system, row in result["systems"].items():
        spent = row["cpu_seconds"]
        parts = [spent.get(phase, 0.0) for phase in PARTS.values()]
        parts.append(spent["step"] - sum(parts))
        cells = ["" if "SFT" in system or part < 0.005 else f"{part:.2f}" for part in parts]
        cells += [f"{spent['step']:.2f}", f"{row['seconds']['step']:.2f}"]
        cells += [f"{row['tokens_per_cpu_second']:,.0f}", f"{row['peak_mib']:,.0f}"]
        table.add_row(f"{system} [dim]{SYSTEMS[system]}[/dim]", *cells)
    if "PRM alone" in result:
        reference, update, speed = result["PRM alone"].values()
        cells = [
            "",
            f"{reference:.2f}",
            f"{update:.2f}",
            "",
            "",
            f"{reference + update:.2f}",
            "",
            f"{speed:,.0f}",
        ]
        table.add_row("of PRIME, the PRM alone [dim]ours, scored and trained in one pass[/dim]", *cells, "")
    console.print(table)
    for name, value in result["ratios"].items():
        console.print(f"  {name}: {value:.2f}", highlight=False)


def grow(args: argparse.Namespace, task: dict) -> Iterator[list[dict]]:
    """A PRIME step against each of AXES: all rows, anew after each; a table, a plot."""
    from rich.console import Console
    from rich.table import Table

    console, rows, precision = Console(width=150), [], args.precision[0]
    title = f"How a PRIME step grows, {precision}, {args.threads} thread(s)"
    table = Table(title=title, title_justify="left")
    for name in ("axis", "value", "CPU s", "growth", "work's growth", "growth / work's", "MiB over start"):
        table.add_column(name, justify="left" if name == "axis" else "right")
    for axis, points in AXES.items():
        first: tuple[float, float] | None = None
        for value, (shape, ranks) in points.items():
            with tempfile.TemporaryDirectory() as folder:
                base = task | {"folder": folder, "shape": asdict(shape), "precision": precision}
                measure(base | {"system": "files", "steps": 0})
                row = medians([measure(base | {"system": "PRIME", "steps": args.repeats, "ranks": ranks})])
            seconds, work = row["cpu_seconds"]["step"], shape.work()
            first = first or (seconds, work)
            row |= {"axis": axis, "value": value}
            row |= {"growth": seconds / first[0], "work_growth": work / first[1]}
            rows.append(row)
            yield rows
            cells = [f"{row['value']:,}", f"{seconds:.2f}", f"{row['growth']:.1f}"]
            cells += [f"{row['work_growth']:.1f}", f"{row['growth'] / row['work_growth']:.2f}"]
            table.add_row(axis, *cells, f"{row['peak_over_start_mib']:,.0f}")
            console.print(axis, *cells, highlight=False)
    console.print(table)
    draw(rows, Path(args.scaling), title)
    console.print(f"plot: {args.scaling}")


def draw(rows: list[dict], path: Path, title: str) -> None:
    """Growth of time and of the work above, memory below, a column for every axis."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    axes = [axis for axis in AXES if any(row["axis"] == axis for row in rows)]
    figure = make_subplots(
        rows=2,
        cols=len(axes),
        column_titles=axes,
        vertical_spacing=0.12,
        horizontal_spacing=0.02,
        shared_yaxes=True,
    )
    for column, axis in enumerate(axes, 1):
        own = [row for row in rows if row["axis"] == axis]
        x = [row["value"] for row in own]
        for key, name, line, place in (
            ("growth", "CPU seconds of a step", {"color": "#1f77b4"}, 1),
            ("work_growth", "multiplications of a step", {"color": "#888888", "dash": "dot"}, 1),
            ("peak_over_start_mib", "memory over the start, MiB", {"color": "#d62728"}, 2),
        ):
            y = [row[key] for row in own]
            trace = go.Scatter(x=x, y=y, name=name, line=line, mode="lines+markers", showlegend=column == 1)
            figure.add_trace(trace, row=place, col=column)
        ticks = {"tickvals": x, "ticktext": [f"{value:,}" for value in x]}
        figure.update_xaxes(type="log", minor={"showgrid": False}, **ticks, col=column)
    figure.update_yaxes(type="log", dtick=1, minor={"showgrid": False})
    figure.update_yaxes(title="times the first", row=1, col=1)
    figure.update_yaxes(title="MiB", row=2, col=1)
    legend = {"orientation": "h", "y": 1.12, "x": 1, "xanchor": "right"}
    figure.update_layout(title=title, template="plotly_white", height=620, legend=legend)
    figure.write_html(path, config={"displayModeBar": False})


def main() -> None:
    """Measure, print, and write every figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    precisions = ["float32", "bfloat16"]
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--precision", nargs="+", choices=precisions, default=precisions)
    parser.add_argument("--repeats", type=int, default=3, help="steps that count")
    parser.add_argument("--threads", type=int, default=1, help="threads of every system")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), help="only these")
    parser.add_argument("--trl-rows", type=int, default=128, help="rows of TRL's micro-batch")
    parser.add_argument(
        "--scaling", metavar="FILE.html", help="how time and memory grow, with a plot, instead"
    )
    parser.add_argument("--json", help="write every figure to this file")
    args = parser.parse_args()
    task = {"threads": args.threads, "trl_rows": args.trl_rows}
    for results in (grow if args.scaling else compare)(args, task):
        if args.json:  # as it goes: it takes long
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
