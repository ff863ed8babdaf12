"""`openprime report`: one self-contained page about runs; opens without a network."""

import json
from html import escape
from pathlib import Path
from statistics import fmean

from rich.console import Console

from openprime.config import ReportConfig
from openprime.evaluation import page
from openprime.run.jsonl import read_jsonl
from openprime.types import UserError

CURVES = (
    ("sft/loss", "Loss on demonstrations", "nats a token"),
    ("eval/greedy", "Held-out accuracy, greedy", "accuracy"),
    ("eval/avg@", "Held-out accuracy, sampled", "accuracy"),
    ("prm/pairwise_accuracy", "PRM: pairwise accuracy on new groups", "accuracy (.5 is chance)"),
    ("rollout/accuracy", "Accuracy of rollouts, before the filter", "accuracy"),
    ("rollout/entropy", "Entropy of the policy", "nats a token"),
    ("policy/mismatch_max", "Sampler against trainer: largest difference", "nats"),
)
"""(metric or its beginning, title, unit)."""
PHASES = ("rollout", "verify", "reference", "prm", "policy")

Runs = dict[str, list[dict]]
"""A run's name -> the rows of its metrics.jsonl."""


def report(config: ReportConfig) -> None:
    """Write the page."""
    config.check()
    runs: Runs = {}
    names = [Path(folder).name for folder in config.runs]
    for folder, name in zip(config.runs, names, strict=True):
        path = Path(folder) / "metrics.jsonl"
        if not path.is_file():
            raise UserError(f"{folder}: not a run's folder: it has no metrics.jsonl")
        runs[name if names.count(name) == 1 else folder] = read_numbers(path)
    parts = [overview(runs), "<h2>Learning</h2>", learning(runs), "<h2>Time</h2>", times(runs)]
    if config.evaluation:
        parts += evaluated(Path(config.evaluation))
    page.write(Path(config.out), config.title, parts)
    Console().print(f"written: {config.out}")


def read_numbers(path: Path) -> list[dict]:
    """The rows of metrics.jsonl that have a step, with what are numbers in them."""
    rows = [
        {name: value for name, value in row.items() if type(value) in (int, float) and abs(value) < 1e300}
        for row in read_jsonl(path)
    ]
    return [row for row in rows if "step" in row]


def overview(runs: Runs) -> str:
    """A table of runs: held-out accuracy at the start and the end, rollouts, seconds a step."""
    rows: page.Rows = {}
    for name, metrics in runs.items():
        held_out = [row for row in metrics if "eval/greedy" in row]
        seconds = [row["time/step"] for row in metrics if "time/step" in row]
        if held_out and seconds:
            first, last = held_out[0], held_out[-1]
            sampled = next((key for key in last if key.startswith("eval/avg@") and key in first), "")
            rows[name] = {
                "greedy accuracy": f"{first['eval/greedy']:.3f} → {last['eval/greedy']:.3f}",
                "sampled accuracy": f"{first[sampled]:.3f} → {last[sampled]:.3f}" if sampled else "",
                "rollouts": f"{last.get('rollout/rollouts', 0):,.0f}",
                "steps": str(last["step"]),
                "seconds a step": f"{fmean(seconds):.2f}",
            }
    note = "<p>Accuracy on held-out prompts, start → end. Rollouts are counted before the filter.</p>"
    return page.table("run", rows) + note


def learning(runs: Runs) -> str:
    """A figure for each metric, over rollouts."""
    counted = any("rollout/rollouts" in row for rows in runs.values() for row in rows)
    figures = []
    for metric, title, unit in CURVES:
        series = {}
        for name, rows in runs.items():
            known = [(row, key) for row in rows for key in row if key.startswith(metric)]
            series[name] = [(row.get("rollout/rollouts", row["step"]), row[key]) for row, key in known]
        if any(series.values()):
            lines = page.traces(series, type="scatter", mode="lines")
            figures.append(page.figure(lines, title, "rollouts" if counted else "step", unit))
    return f"<div class=grid>{''.join(figures)}</div>"


def times(runs: Runs) -> str:
    """Seconds a step, split by phase."""
    series = {}
    for phase in PHASES:
        key = f"time/{phase}"
        seconds = {name: [row[key] for row in rows if key in row] for name, rows in runs.items()}
        series[phase] = [(name, fmean(values or [0])) for name, values in seconds.items()]
    bars = page.traces(series, flat=True, type="bar")
    return page.figure(bars, "Seconds a step", "seconds", "", 150 + 45 * len(runs), barmode="stack")


def evaluated(folder: Path) -> list[str]:
    """Results of `openprime evaluate`, and some responses with the rewards of their tokens."""
    try:
        return _evaluated(folder)
    except UserError:
        raise
    except Exception as error:  # the file may hold anything
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{folder}: not what `openprime evaluate` writes ({why})") from error


def _evaluated(folder: Path) -> list[str]:
    path, wrong = folder / "results.json", f"{folder}: not an evaluation's folder: it has no"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "benchmarks" not in results:
        raise UserError(f"{wrong} results.json with benchmarks")
    parts = [f"<h2>Evaluation: {escape(page.model_names(results))}</h2>", *page.evaluation(results)]
    for name, result in results["benchmarks"].items():
        path = folder / name / "responses.jsonl"
        if not path.is_file():
            raise UserError(f"{wrong} {name}/responses.jsonl")
        if "PRM" in result.get("best_of_n", {}):
            parts.append(token_rewards(name, read_jsonl(path)))
    return parts


def token_rewards(name: str, rows: list[dict], prompts: int = 6) -> str:
    """Some responses, each token coloured by its process reward: one right and one wrong to a prompt."""
    chosen = []
    for row in rows:
        right = [r for r in row["responses"] if r["outcome"]]
        wrong = [r for r in row["responses"] if r["outcome"] == 0]
        if right and wrong and len(chosen) < prompts:
            chosen.append((row, right[0], wrong[0]))
    if not chosen:
        return ""
    responses = [r for _, *both in chosen for r in both]
    largest = page.full_colour(reward for r in responses for reward in r["rewards"])
    note = page.legend(largest)
    if any("steps" in r for r in responses):
        note += " A wavy line: the oracle step checker, which took no part in training, calls the step wrong."
    parts = [f"<h2>The reward of every token: {escape(name)}</h2><p>{note}</p>"]
    for row, *both in chosen:
        prompt = "\n".join(message["content"] for message in row["prompt"])
        cards = [
            page.response_card(r["reason"], r["tokens"], r["rewards"], largest, r.get("steps", ()))
            for r in both
        ]
        parts.append(page.pair(page.card(f"prompt, answer {row['answer']}", escape(prompt)), *cards))
    return "".join(parts)
