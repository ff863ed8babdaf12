"""`openprime report`: one self-contained page about runs; opens without a network."""

import json
from collections.abc import Sequence
from html import escape
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from rich.console import Console

from openprime.colours import full_colour
from openprime.config import ReportConfig
from openprime.evaluation import page
from openprime.evaluation.runs import Line, Run, differences, lines_of, read_runs, samples_of
from openprime.run.jsonl import read_jsonl
from openprime.types import UserError

Curves = tuple[tuple[str, str, str], ...]
"""(metric, title, unit); a metric that ends with @ goes on with a number."""

LEARNING: Curves = (
    ("sft/loss", "Loss on demonstrations", "nats a token"),
    ("eval/greedy", "Held-out accuracy, greedy", "accuracy"),
    ("eval/avg@", "Held-out accuracy, sampled", "accuracy"),
    ("rollout/accuracy", "Accuracy of rollouts, before the filter", "accuracy"),
)
PRM: Curves = (
    ("prm/pairwise_accuracy", "PRM: pairwise accuracy on new groups", "accuracy (.5 is chance)"),
    ("prm/brier", "PRM: calibration, Brier score", "score (.25 is chance)"),
    ("prm/score_right", "PRM: mean score of right responses", "score"),
    ("prm/score_wrong", "PRM: mean score of wrong responses", "score"),
    ("reward/process", "Process return of a response", "return"),
    ("reward/length_correlation", "Process return and length", "correlation"),
    ("reward/repetition_correlation", "Process return and repetition", "correlation"),
    ("prm/loss", "PRM: loss", "nats"),
)
ADVANTAGES: Curves = (
    ("advantage/process_share", "Share of the advantage's variance: process", "share"),
    ("advantage/outcome_share", "Share of the advantage's variance: outcome", "share"),
    ("advantage/correlation", "Process and outcome term of the advantage", "correlation over tokens"),
    ("policy/gradient_cosine", "Gradients of process and outcome term", "cosine"),
)
ROLLOUTS: Curves = (
    ("rollout/passed", "Groups that pass the filter", "share"),
    ("rollout/response_tokens", "Length of responses", "tokens"),
    ("rollout/truncated", "Truncated responses", "share"),
    ("rollout/entropy", "Entropy of the policy", "nats a token"),
    ("rollout/tokens_per_second", "Sampling", "tokens a second"),
)
POLICY: Curves = (
    ("policy/clip_fraction", "Clipped tokens", "share"),
    ("policy/kl", "Distance of an update", "nats a token"),
    ("policy/grad_norm", "Norm of the policy's gradient", "norm"),
    ("policy/mismatch_mean", "Sampler against trainer: mean difference", "nats"),
    ("policy/mismatch_max", "Sampler against trainer: largest difference", "nats"),
)
PHASES = (
    ("time/{}", "Seconds a step", "seconds", "stack"),
    ("speed/{}_tflops", "Model FLOP a second", "TFLOPS", "group"),
    ("speed/{}_mfu", "Model FLOP use", "share of the device's peak", "group"),
    ("memory/{}_peak", "Largest GPU memory within a step", "GiB", "group"),
)
"""(metric of a phase, title, unit, how the bars of phases stand)"""
OWN_PLACE = ("time/", "alarm/", "step", "rollout/rollouts")
"""Beginnings of metrics that are shown otherwise than by a curve of their own."""
DASHES = ("solid", "dash", "dot", "dashdot")
"""Lines of more runs than there are colours."""


def report(config: ReportConfig) -> None:
    """Write the page."""
    config.check()
    runs = read_runs(config.runs)
    parts = [*about(runs), *inspector(runs)]
    if config.evaluation:
        parts += evaluated(Path(config.evaluation))
    page.write(Path(config.out), config.title, parts)
    Console().print(f"written: {config.out}")


def about(runs: Sequence[Run]) -> list[str]:
    """All of the page that metrics, settings and alarms say."""
    lines = lines_of(runs)
    named = {metric for curves in (LEARNING, PRM, ADVANTAGES, ROLLOUTS, POLICY) for metric, *_ in curves}
    logged = dict.fromkeys(key for run in runs for row in run.rows for key in row)
    others = [
        (key, key, "") for key in logged if key not in named and not key.startswith((*OWN_PLACE, "eval/avg@"))
    ]
    sections = {
        "Alarms": alarms(runs),
        "Learning": curves(lines, LEARNING),
        "Process reward model": curves(lines, PRM),
        "Advantages": curves(lines, ADVANTAGES),
        "Rollouts": curves(lines, ROLLOUTS),
        "Policy update": curves(lines, POLICY),
        "Time, memory, FLOP": "".join(by_phase(lines, *bars) for bars in PHASES),
        "Other metrics": closed(f"{len(others)} more", curves(lines, others)),
        "Configuration": configurations(lines),
    }
    told = {title: html for title, html in sections.items() if html}
    return [
        page.contents([*told, "Responses"]),
        overview(lines),
        switches(lines),
        *(page.section(title, html) for title, html in told.items()),
    ]


def overview(lines: Sequence[Line]) -> str:
    """A table of runs: held-out accuracy at the start and the end, rollouts, seconds a step; means over seeds."""
    rows: page.Rows = {}
    for line in lines:
        row = rows[line.name] = {}
        for heading, metric in (("greedy accuracy", "eval/greedy"), ("sampled accuracy", "eval/avg@")):
            if points := line.curve(metric):
                row[heading] = f"{points[0][1]:.3f} → {points[-1][1]:.3f}"
        last = [run.rows[-1] for run in line.runs if run.rows]
        seconds = [row["time/step"] for run in line.runs for row in run.rows if "time/step" in row]
        if last:
            counted = [row["rollout/rollouts"] for row in last if "rollout/rollouts" in row]
            row["rollouts"] = f"{fmean(counted):,.0f}" if counted else ""
            planned = line.runs[0].settings.get("steps")
            row["steps"] = f"{fmean(row['step'] for row in last):.0f}" + (f" of {planned}" if planned else "")
        if seconds:
            row["seconds a step"] = f"{fmean(seconds):.2f}"
    note = "<p>Accuracy on held-out prompts, start → end. Rollouts are counted before the filter."
    if any(len(line.runs) > 1 for line in lines):
        note += (
            " Runs that differ in their seeds alone are one line: its mean, with 95 % t intervals as a band, as far as"
            " all of them have come; each of them is drawn faintly."
        )
    return page.table("run", rows) + note + "</p>"


def switches(lines: Sequence[Line]) -> str:
    """The legend of all figures: a button for each line, which hides it and shows it again."""
    buttons = []
    for line, (shade, dash) in zip(lines, styles(len(lines)), strict=True):
        look = f"border-top-color:{shade};border-top-style:{'solid' if dash == 'solid' else 'dashed'}"
        buttons.append(
            f'<button type=button aria-pressed=true data-run="{escape(line.name)}">'
            f'<span class=key style="{look}"></span>{escape(line.name)}</button>'
        )
    return f'<div class=runs role=group aria-label="Runs shown">{"".join(buttons)}</div>'


def styles(count: int) -> list[tuple[str, str]]:
    """(colour, dash) of each line."""
    return [
        (shade, DASHES[i // len(page.COLOURS) % len(DASHES)])
        for i, shade in zip(range(count), cycle(page.COLOURS), strict=False)
    ]


def curves(lines: Sequence[Line], wanted: Sequence[tuple[str, str, str]]) -> str:
    """A figure for each metric that was logged, over rollouts."""
    counted = any("rollout/rollouts" in row for line in lines for run in line.runs for row in run.rows)
    figures = []
    for metric, title, unit in wanted:
        traces, layout = drawn(lines, metric), {}
        if any(trace.get("fill") for trace in traces):  # wide bands of few seeds would make the lines flat
            values = [y for trace in traces if not trace.get("fill") for y in trace["y"]]
            margin = 0.06 * (max(values) - min(values)) or 0.05
            layout["yaxis_range"] = [min(values) - margin, max(values) + margin]
        if traces:
            x = "rollouts" if counted else "step"
            figures.append(page.figure(traces, title, x, unit, showlegend=False, **layout))
    return f"<div class=grid>{''.join(figures)}</div>" if figures else ""


def drawn(lines: Sequence[Line], metric: str) -> list[dict[str, Any]]:
    """The plotly traces of a metric: a line for each `Line`; of several runs with a band, and each run faintly."""
    traces = []
    for line, (shade, dash) in zip(lines, styles(len(lines)), strict=True):
        look = {"type": "scatter", "mode": "lines", "marker": {"color": shade}, "legendgroup": line.name}
        thin = look | {"hoverinfo": "skip", "showlegend": False}
        points = line.curve(metric)
        if len(line.runs) > 1:
            for run in line.runs:
                if own := run.points(metric):
                    _, x, y = zip(*own, strict=True)
                    traces.append(
                        thin | {"x": x, "y": y, "opacity": 0.3, "line": {"color": shade, "width": 1}}
                    )
            if points:
                x, _, low, high = zip(*points, strict=True)
                band = {"x": x + x[::-1], "y": high + low[::-1], "fill": "toself", "line": {"width": 0}}
                traces.append(thin | band | {"fillcolor": shade, "opacity": 0.15})
        if points:
            x, y, _, _ = zip(*points, strict=True)
            (trace,) = page.traces({line.name: list(zip(x, y, strict=True))}, **look)
            mode = "lines+markers" if len(x) == 1 else "lines"
            traces.append(trace | {"line": {"color": shade, "dash": dash, "width": 2}, "mode": mode})
    return traces


def by_phase(lines: Sequence[Line], metric: str, title: str, unit: str, mode: str) -> str:
    """Bars: a metric of the phases of a step, its mean over steps and runs."""
    series: page.Series = {}
    for phase in ("rollout", "verify", "reference", "prm", "policy", "wait"):
        key = metric.format(phase)
        found = {line.name: [r[key] for run in line.runs for r in run.rows if key in r] for line in lines}
        known = any(found.values())  # without points a phase has its colour nevertheless
        series[phase] = [(name, fmean(values or [0])) for name, values in found.items() if known]
    bars = page.traces(series, flat=True, type="bar")
    if not bars:
        return ""
    height = 150 + (45 if mode == "stack" else 15 * len(bars) + 10) * len(lines)
    return page.figure(bars, title, unit, "", height, barmode=mode)


def alarms(runs: Sequence[Run]) -> str:
    """What alarms fired, and what to do about each."""
    rows = []
    for name, run in zip(names_of(runs), runs, strict=True):
        for row in run.alarms:
            value = row.get("value")
            number = f"{value:.3g}" if type(value) in (int, float) else ""
            step, alarm, says, do = (str(row.get(key, "")) for key in ("step", "alarm", "says", "do"))
            rows.append([name, step, alarm, number, says, do])
    if rows:
        return page.texts(("run", "step", "alarm", "value", "what was seen", "what to do"), rows)
    watched = any(key.startswith("alarm/") for run in runs for row in run.rows for key in row)
    return "<p>None has fired.</p>" if watched else ""


def configurations(lines: Sequence[Line]) -> str:
    """Which settings differ between the lines, and all of them."""
    parts = []
    if len(lines) > 1 and (rows := differences(lines)):
        parts.append(page.texts(("setting", *(line.name for line in lines)), rows))
    for line in lines:
        if settings := line.runs[0].settings:
            text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100)
            parts.append(closed(f"All settings: {line.name}", f"<div class=settings>{escape(text)}</div>"))
    return "".join(parts)


def closed(title: str, html: str) -> str:
    """What is shown on demand."""
    return f"<details><summary>{escape(title)}</summary>{html}</details>" if html else ""


INSPECTOR = """
<section id=inspector aria-labelledby=responses><h2 id=responses>Responses</h2>
<p>Sampled responses, token by token. Point at a token, touch it, or go to it with Tab and the arrow
keys for its numbers. The end of a response has them too.</p>
<div class=controls role=search>
<label>Run<select id=run></select></label>
<label>Step<select id=step></select></label>
<label>Outcome<select id=outcome><option value="">all</option><option value=both>right and wrong</option>
<option value=right>one or more right</option><option value=wrong>one or more wrong</option></select></label>
<label>Order<select id=order><option value=late>last step first</option><option value=step>first step first</option>
<option value=largest>largest reward first</option><option value=hard>lowest outcome first</option>
<option value=easy>highest outcome first</option></select></label>
<label>Colour<select id=colour></select></label>
<label>Search<input type=search id=search autocomplete=off></label>
</div><p class=tag><span id=count role=status></span> <span id=left-out></span></p>
<div class=browse><ol id=groups aria-label=Groups></ol><div id=group></div></div></section>
"""
"""What inspector.js fills."""


def inspector(runs: Sequence[Run]) -> list[str]:
    """The samples of runs, to be browsed; where there are none, what would make a run write them."""
    found = samples(runs)
    if not found["runs"]:
        return [
            page.section("Responses", "<p>No samples: a run writes them with <code>sample_every</code>.</p>")
        ]
    return [INSPECTOR, page.data("samples", found)]


def samples(runs: Sequence[Run]) -> dict[str, Any]:
    """What the inspector shows."""
    return samples_of(runs, names_of(runs))


def names_of(runs: Sequence[Run]) -> list[str]:
    """A name for each run: its folder's, or where several are called so the whole path."""
    names = [run.path.name for run in runs]
    return [name if names.count(name) == 1 else run.folder for name, run in zip(names, runs, strict=True)]


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
    largest = full_colour(reward for r in responses for reward in r["rewards"])
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
