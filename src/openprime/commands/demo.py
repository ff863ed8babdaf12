"""`openprime demo`: public commands with the tiny configurations, one after the other."""

import json
import shlex
import time
from pathlib import Path

from rich.console import Console

from openprime.cli import main
from openprime.config import DemoConfig
from openprime.run.jsonl import read_jsonl
from openprime.types import UserError

RUNS = {
    "prime": "PRIME",
    "distill": "PRIME by distillation",
    "outcome-only": "outcome rewards alone",
}
"""Folders of the training runs, and what they are."""
MARK = 0.9
"""Accuracy to which rollouts are counted."""


def demo(config: DemoConfig) -> None:
    """Build and fine-tune a small model, train it by PRIME and by outcome rewards alone, choose among N, report."""
    out, seed = Path(config.out), ["--seed", str(config.seed)]
    if (out / "sft").exists():
        raise UserError(f"{out} holds a demo already: choose another --out, or remove it")
    console = Console()
    begun = time.perf_counter()
    start, evaluation = ["--model", f"{out}/sft/model", *seed], f"{out}/best-of-n"
    runs, prm = [f"{out}/{name}" for name in RUNS], ["--prm", f"{out}/prime/prm"]
    report = ["report", "--title", "openprime demo", "--out", f"{out}/report.html"]
    commands = [
        ["sft", "configs/sft/tiny.yaml", "--out", f"{out}/sft", *seed],
        ["rl", "configs/rl/tiny.yaml", *start, "--out", f"{out}/prime"],
        ["rl", "configs/rl/tiny-distill.yaml", *start, "--out", f"{out}/distill"],
        ["rl", "configs/rl/tiny.yaml", *start, "--out", f"{out}/outcome-only", "--algorithm", "outcome"],
        ["evaluate", "configs/evaluate/tiny.yaml", *start, *prm, "--out", evaluation],
        [*report, "--runs", *runs, "--evaluation", evaluation],
    ]
    for command in commands:
        console.rule(align="left", style="dim")
        console.print(f"[bold]$ openprime {shlex.join(command)}", highlight=False)
        status = main(command)
        if status:
            raise SystemExit(status)
    summary = summarise(out) | {"seconds": time.perf_counter() - begun}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    console.rule(align="left", style="dim")
    console.print(verdict(summary), highlight=False)
    console.print(
        f"{summary['seconds']:.0f} s. The page: {out / 'report.html'}   the figures: {out / 'summary.json'}"
    )


def summarise(out: Path) -> dict:
    """The demo's figures."""
    runs = {}
    for name in RUNS:
        rows = [row for row in read_jsonl(out / name / "metrics.jsonl") if "eval/greedy" in row]
        curve = [(row["rollout/rollouts"], row["eval/greedy"]) for row in rows]
        final = {key: value for key, value in rows[-1].items() if key.startswith("eval/")}
        runs[name] = {"start": rows[0]["eval/greedy"], "final": final, "curve": curve}
        runs[name]["rollouts_to_mark"] = crossing(curve, MARK)
    results = json.loads((out / "best-of-n" / "results.json").read_text(encoding="utf-8"))
    return {"runs": runs, "best_of_n": results["benchmarks"]["clock"]}


def verdict(summary: dict) -> str:
    """The figures in words."""
    lines = [
        f"Held-out greedy accuracy, {summary['runs']['prime']['start']:.3f} at the start. One seed: a few hundredths "
        "are noise."
    ]
    for name, about in RUNS.items():
        run = summary["runs"][name]
        needed = run["rollouts_to_mark"]
        reached = f"{MARK} after {needed:,.0f} rollouts" if needed is not None else f"{MARK} not reached"
        lines.append(f"  {about}: {reached}, {run['final']['eval/greedy']:.3f} at the end")
    choice = {name: row[max(row, key=int)][0] for name, row in summary["best_of_n"]["best_of_n"].items()}
    n = summary["best_of_n"]["samples"]
    shown = ("PRM", "majority vote", "reference log-probability", "PRM-weighted vote")
    most = max(choice[name] for name in shown)
    best = " and ".join(name for name in shown if choice[name] == most)
    lines.append(
        f"Best of {n} responses of the SFT model: PRM {choice['PRM']:.3f}, majority vote "
        f"{choice['majority vote']:.3f}, reference log-probability {choice['reference log-probability']:.3f}; "
        f"best was {best}."
    )
    return "\n".join(lines)


def crossing(curve: list[tuple[float, float]], mark: float) -> float | None:
    """x where a curve first reaches the mark, on straight lines between its points; None if nowhere."""
    x0, y0 = curve[0]
    for x, y in curve:
        if y >= mark:
            return x if y == y0 else x0 + (x - x0) * (mark - y0) / (y - y0)
        x0, y0 = x, y
    return None
