"""`openprime demo`: public commands with the tiny configurations, one after the other."""

import json
import shlex
import time
from itertools import pairwise
from pathlib import Path

from rich.console import Console

from openprime.cli import main
from openprime.config import DemoConfig
from openprime.stages.report import read_jsonl


def demo(config: DemoConfig) -> None:
    """Build and fine-tune a small model, train it by PRIME and by outcome rewards alone, choose among N, report."""
    out, seed = Path(config.out), ["--seed", str(config.seed)]
    if (out / "sft").exists():
        raise ValueError(f"{out} holds a demo already: choose another --out, or remove it")
    console = Console()
    begun = time.perf_counter()
    rl = ["rl", "configs/rl/tiny.yaml", "--model", f"{out}/sft/model", *seed]
    choose = [
        "evaluate",
        "configs/evaluate/tiny.yaml",
        "--model",
        f"{out}/sft/model",
        "--prm",
        f"{out}/prime/prm",
    ]
    report = ["report", "--runs", f"{out}/prime", f"{out}/outcome-only", "--evaluation", f"{out}/best-of-n"]
    commands = [
        ["sft", "configs/sft/tiny.yaml", "--out", f"{out}/sft", *seed],
        [*rl, "--out", f"{out}/prime"],
        [*rl, "--out", f"{out}/outcome-only", "--advantage.process-weight", "0"],
        [*choose, "--out", f"{out}/best-of-n", *seed],
        [*report, "--out", f"{out}/report.html", "--title", "openprime demo"],
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
    for name in ("prime", "outcome-only"):
        rows = [row for row in read_jsonl(out / name / "metrics.jsonl") if "eval/greedy" in row]
        curve = [(row["rollout/rollouts"], row["eval/greedy"]) for row in rows]
        final = {key: value for key, value in rows[-1].items() if key.startswith("eval/")}
        runs[name] = {"start": rows[0]["eval/greedy"], "final": final, "curve": curve}
    results = json.loads((out / "best-of-n" / "results.json").read_text(encoding="utf-8"))
    return {"runs": runs, "best_of_n": results["benchmarks"]["clock"]}


def verdict(summary: dict) -> str:
    """Which method won, as it is."""
    prime, control = (summary["runs"][name]["final"]["eval/greedy"] for name in ("prime", "outcome-only"))
    areas = (area(summary["runs"][name]["curve"]) for name in ("prime", "outcome-only"))
    winner, faster = higher(prime, control), higher(*areas)
    choice = {name: row[max(row, key=int)][0] for name, row in summary["best_of_n"]["best_of_n"].items()}
    n = summary["best_of_n"]["samples"]
    shown = ("PRM", "majority vote", "reference log-probability", "PRM-weighted vote")
    most = max(choice[name] for name in shown)
    best = " and ".join(name for name in shown if choice[name] == most)
    start = summary["runs"]["prime"]["start"]
    return (
        f"Held-out greedy accuracy from {start:.3f} to {prime:.3f} by PRIME, "
        f"to {control:.3f} by outcome rewards alone.\nHigher at the end: {winner}; "
        f"higher on average over the run: {faster}. One seed: a few hundredths are noise.\n"
        f"Best of {n} responses of the SFT model: PRM {choice['PRM']:.3f}, majority vote "
        f"{choice['majority vote']:.3f}, reference log-probability {choice['reference log-probability']:.3f}; "
        f"best was {best}."
    )


def higher(prime: float, control: float) -> str:
    """Whose number is the higher one."""
    return "PRIME" if prime > control else "outcome rewards alone" if control > prime else "neither (a tie)"


def area(curve: list[tuple[float, float]]) -> float:
    """Mean accuracy over the rollouts of a run, by the trapezoid rule."""
    total = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(curve))
    return total / (curve[-1][0] - curve[0][0])
