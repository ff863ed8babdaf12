"""`openprime report`: one self-contained page about runs; opens without a network."""

import json
from html import escape
from itertools import cycle
from pathlib import Path

import plotly.graph_objects as go
from rich.console import Console

from openprime.config import ReportConfig
from openprime.evaluation import scoreboard
from openprime.evaluation.page import COLOURS, draw, write_html
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


def report(config: ReportConfig) -> None:
    """Write the page."""
    config.check()
    runs = {}
    for folder in config.runs:
        path = Path(folder) / "metrics.jsonl"
        if not path.is_file():
            raise UserError(f"{folder}: not a run's folder: it has no metrics.jsonl")
        alike = sum(Path(other).name == Path(folder).name for other in config.runs)
        runs[Path(folder).name if alike == 1 else folder] = read_jsonl(path)
    parts = [
        f"<h1>{escape(config.title)}</h1>",
        overview(runs),
        "<h2>Learning</h2>",
        curves(runs),
        "<h2>Time</h2>",
        times(runs),
    ]
    if config.evaluation:
        parts += evaluated(Path(config.evaluation))
    write_html(Path(config.out), config.title, parts)
    Console().print(f"written: {config.out}")


def evaluated(folder: Path) -> list[str]:
    """What `openprime evaluate` found, and some responses with the rewards of their tokens."""
    if not (folder / "results.json").is_file():
        raise UserError(f"{folder}: not an evaluation's folder: it has no results.json")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    if "benchmarks" not in results:
        raise UserError(f"{folder}: not an evaluation's folder: its results.json is of another command")
    parts = [
        f"<h2>Evaluation: {escape(scoreboard.title(results))}</h2>",
        *scoreboard.overview(results),
        scoreboard.accuracies(results),
    ]
    for name, result in results["benchmarks"].items():
        path = folder / name / "responses.jsonl"
        if not path.is_file():
            raise UserError(f"{folder}: not an evaluation's folder: it has no {name}/responses.jsonl")
        if "best_of_n" in result:
            parts.append(scoreboard.best_of_n(name, result))
            parts.append(token_rewards(name, read_jsonl(path)) if "PRM" in result["best_of_n"] else "")
    return parts


def overview(runs: dict[str, list[dict]]) -> str:
    """Where each run began and ended."""
    rows = []
    for name, metrics in runs.items():
        evaluated = [row for row in metrics if "eval/greedy" in row]
        steps = [row for row in metrics if "time/step" in row]
        if not evaluated or not steps:
            continue
        first, last = evaluated[0], evaluated[-1]
        sampled = next((f"{first[k]:.3f} → {last[k]:.3f}" for k in last if k.startswith("eval/avg@")), "")
        seconds = sum(row["time/step"] for row in steps) / len(steps)
        rows.append(
            f"<tr><td>{escape(name)}<td>{first['eval/greedy']:.3f} → {last['eval/greedy']:.3f}<td>{sampled}"
            f"<td>{last.get('rollout/rollouts', 0):,.0f}<td>{last['step']}<td>{seconds:.2f}</tr>"
        )
    head = "<tr><th>run<th>greedy accuracy<th>sampled accuracy<th>rollouts<th>steps<th>seconds a step</tr>"
    note = "<p>Accuracy on held-out prompts, start → end. Rollouts are counted before the filter.</p>"
    return f"<table>{head}{''.join(rows)}</table>{note}"


def curves(runs: dict[str, list[dict]]) -> str:
    """One figure a metric, over rollouts."""
    figures = []
    for metric, title, unit in CURVES:
        figure = go.Figure()
        for (name, rows), colour in zip(runs.items(), cycle(COLOURS), strict=False):
            key = next((k for row in rows for k in row if k.startswith(metric)), None)
            points = (
                [(row.get("rollout/rollouts", row["step"]), row[key]) for row in rows if key in row]
                if key
                else []
            )
            if points:
                x, y = zip(*points, strict=True)
                figure.add_scatter(x=x, y=y, name=name, mode="lines", line={"color": colour, "width": 2})
        counted = any("rollout/rollouts" in row for rows in runs.values() for row in rows)
        if figure.data:
            figures.append(draw(figure, title, "rollouts" if counted else "step", unit))
    return f"<div class=grid>{''.join(figures)}</div>"


def times(runs: dict[str, list[dict]]) -> str:
    """Seconds a step, split by phase."""
    figure = go.Figure()
    for phase, colour in zip(PHASES, COLOURS, strict=False):
        means = []
        for rows in runs.values():
            values = [row[f"time/{phase}"] for row in rows if f"time/{phase}" in row]
            means.append(sum(values) / len(values) if values else 0.0)
        figure.add_bar(y=list(runs), x=means, name=phase, orientation="h", marker={"color": colour})
    figure.update_layout(barmode="stack")
    return draw(figure, "Seconds a step", "seconds", "", height=150 + 45 * len(runs))


def token_rewards(name: str, rows: list[dict], prompts: int = 6) -> str:
    """Some responses, each token coloured by its process reward: one right and one wrong to a prompt."""
    chosen = []
    for row in rows:
        right = [r for r in row["responses"] if r["outcome"] and "rewards" in r]
        wrong = [r for r in row["responses"] if r["outcome"] == 0 and "rewards" in r]
        if right and wrong:
            chosen.append((row, right[0], wrong[0]))
    chosen = chosen[:prompts]
    if not chosen:
        return ""
    sizes = sorted(abs(v) for _, *pair in chosen for r in pair for v in r["rewards"])
    largest = sizes[int(0.99 * (len(sizes) - 1))] or 1.0  # one outlier would make all others pale
    cards = []
    for row, *pair in chosen:
        prompt = (
            row["prompt"]
            if isinstance(row["prompt"], str)
            else "\n".join(m["content"] for m in row["prompt"])
        )
        tag = f"prompt, answer {escape(str(row['answer']))}"
        cells = f"<div class=card><span class=tag>{tag}</span><pre>{escape(prompt)}</pre></div>"
        cells += "".join(response_card(r, largest) for r in pair)
        cards.append(f"<div class=pair>{cells}</div>")
    legend = (
        "<p>Every token in the colour of its process reward, <span class=bar></span> from "
        f"{-largest:.2f} to {largest:.2f} and beyond (point at a token for its number); the end has one too. "
    )
    if any("steps" in r for _, *pair in chosen for r in pair):
        legend += "A wavy line marks a step that a perfect checker calls wrong; the checker took no part in training."
    return f"<h2>The reward of every token: {escape(name)}</h2>{legend}</p>{''.join(cards)}"


def response_card(response: dict, largest: float) -> str:
    """One response; its end has no text, but a reward."""
    line, spans = 0, []
    steps = response.get("steps", [])
    for t, (token, reward) in enumerate(zip(response["tokens"], response["rewards"], strict=True), 1):
        colour = "37,99,235" if reward > 0 else "220,38,38"
        wrong_step = line < len(steps) and not steps[line]
        slip = " slip" if wrong_step and token.strip() else ""
        text = escape(token).replace("\n", "<span class=end>⏎</span>\n")
        if not token and t == len(response["tokens"]):
            text = "<span class=end>∎</span>"
        style = f"background:rgba({colour},{0.75 * min(1.0, abs(reward) / largest):.3f})"
        spans.append(f'<span class="tok{slip}" style="{style}" title="{reward:+.4f}">{text}</span>')
        line += token.count("\n")
    verdict = escape(response["reason"])
    total = sum(response["rewards"])
    return f"<div class=card><span class=tag>{verdict}, score {total:+.3f}</span><pre>{''.join(spans)}</pre></div>"


def read_jsonl(path: Path) -> list[dict]:
    """The rows of one of our own records."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
