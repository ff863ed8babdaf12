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
    out, console, begun = Path(config.out), Console(highlight=False), time.perf_counter()
    if (out / "sft").exists():
        raise UserError(f"{out} holds a demo already: choose another --out, or remove it")
    place, seed = shlex.quote(str(out)), f"--seed {config.seed}"
    start, runs = f"--model {place}/sft/model {seed}", " ".join(f"{place}/{name}" for name in RUNS)
    for command in (
        f"sft configs/sft/tiny.yaml --out {place}/sft {seed}",
        f"rl configs/rl/tiny.yaml {start} --out {place}/prime",
        f"rl configs/rl/tiny-distill.yaml {start} --out {place}/distill",
        f"rl configs/rl/tiny.yaml {start} --out {place}/outcome-only --algorithm outcome --policy.epochs 8",
        f"evaluate configs/evaluate/tiny.yaml {start} --prm {place}/prime/prm --out {place}/best-of-n",
        f"report --title 'openprime demo' --out {place}/report.html --runs {runs} --evaluation {place}/best-of-n",
    ):
        console.rule(align="left", style="dim")
        console.print(f"[bold]$ openprime {command}")
        if status := main(shlex.split(command)):
            raise SystemExit(status)
    summary = summarise(out) | {"seconds": time.perf_counter() - begun}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    console.rule(align="left", style="dim")
    console.print(verdict(summary))
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
    runs, chosen = summary["runs"], summary["best_of_n"]["best_of_n"]
    lines = [
        f"Held-out greedy accuracy, {runs['prime']['start']:.3f} at the start. One seed: a few hundredths are noise."
    ]
    for name, about in RUNS.items():
        needed = runs[name]["rollouts_to_mark"]
        reached = f"{MARK} after {needed:,.0f} rollouts" if needed is not None else f"{MARK} not reached"
        lines.append(f"  {about}: {reached}, {runs[name]['final']['eval/greedy']:.3f} at the end")
    n = summary["best_of_n"]["samples"]
    shown = ("PRM", "majority vote", "reference log-probability", "PRM-weighted vote")
    said = ", ".join(f"{name} {chosen[name][str(n)][0]:.3f}" for name in shown)
    return "\n".join([*lines, f"Best of {n} responses of the SFT model: {said}."])


def crossing(curve: list[tuple[float, float]], mark: float) -> float | None:
    """x where a curve first reaches the mark, on straight lines between its points; None if nowhere."""
    x0, y0 = curve[0]
    for x, y in curve:
        if y >= mark:
            return x if y == y0 else x0 + (x - x0) * (mark - y0) / (y - y0)
        x0, y0 = x, y
    return None
