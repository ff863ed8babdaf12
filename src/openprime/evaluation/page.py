"""Pages: functions that return HTML, for `report`, `watch`, `evaluate` and `ask`. A page holds all that it needs.

Texts are escaped here, those in figures too: what a model, a prompt or a folder's name holds is shown and never run.
Should one slip through, the policy of the page lets nothing run but its own scripts, and nothing be fetched.
`results` is what results.json holds.
"""

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape, unescape
from itertools import cycle
from math import copysign
from operator import sub
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from openprime.colours import tint

Rows = dict[str, dict[str, str]]
"""A line's name -> heading -> cell; what follows a number in brackets goes on a line of its own."""
Series = dict[str, list[tuple[Any, Any]]]
"""A name -> points (x, y), or (x, (y, low, high))."""

COLOURS = ("#2563eb", "#ea580c", "#059669", "#a855f7", "#dc2626", "#64748b")
"""Told apart from each other, from white and from the dark page."""
ACCURACY = (
    "95 % bootstrap intervals over items. cut: responses that reached the token limit. Below the number of items, "
    "where there are any: items that could not be judged."
)
FIRST_ERROR = (
    "A step is called wrong where its reward is below the threshold: 0, or the one with the best F1 on the other half "
    "of the items. F1 of two shares: of wrong solutions whose first wrong step is found, and of right ones in which no "
    "step is blamed."
)
"""What the columns of the tables of an evaluation mean."""


def write(path: Path, title: str, parts: Iterable[str]) -> None:
    """Write one file with everything inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document(title, parts), encoding="utf-8", newline="\n")


def document(title: str, parts: Iterable[str], version: str = "") -> str:
    """A whole page: its parts, the style, and the scripts that they need, plotly among them where there are figures.

    `version`: of what `openprime watch` serves, which asks its server for a newer one.
    """
    body = "\n".join(part for part in (f"<h1>{escape(title)}</h1>", *parts) if part)
    wanted = {"page.js": "data-figure" in body, "inspector.js": "id=inspector" in body, "watch.js": version}
    scripts = [_own(name) for name, needed in wanted.items() if needed or version]
    if scripts:
        from plotly.offline import get_plotlyjs

        scripts = [get_plotlyjs(), *scripts]
    head = f"<meta charset=utf-8>{policy(scripts, bool(version))}<title>{escape(title)}</title>"
    head += f'<meta name=viewport content="width=device-width, initial-scale=1"><style>{_own("report.css")}</style>'
    end = "".join(f"<script>{script}</script>" for script in scripts)
    attribute = f' data-version="{escape(version)}"' if version else ""
    text = f"<body{attribute}><main>{body}</main>{end}</body></html>\n"
    return f"<!doctype html><html lang=en>{head}{text}".encode(
        "utf-8", "replace"
    ).decode()  # half a character


def _own(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def policy(scripts: Iterable[str], live: bool = False) -> str:
    """A content security policy: these scripts run, whatever else the page holds, and nothing is fetched.

    `live`: but from the page's own server.
    """
    sums = [b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{checksum}'" for checksum in sums) or "'none'"
    rules = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
    ) + ("; connect-src 'self'" if live else "")
    return f"<meta http-equiv=Content-Security-Policy content=\"{rules}; form-action 'none'\">"


def data(name: str, value: Any) -> str:
    """Data for a script of the page, which finds them by their name."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for odd in "<>&\u2028\u2029":
        text = text.replace(odd, f"\\u{ord(odd):04x}")
    return f"<script type=application/json id={name}>{text}</script>"


def section(title: str, *parts: str) -> str:
    """A part of a page under a heading, to which `contents` leads."""
    kept = "".join(part for part in parts if part)
    return f"<section id={_place(title)}><h2>{escape(title)}</h2>{kept}</section>" if kept else ""


def contents(titles: Iterable[str]) -> str:
    """Links to sections."""
    links = "".join(f'<a href="#{_place(title)}">{escape(title)}</a>' for title in titles)
    return f"<nav aria-label=Sections>{links}</nav>"


def _place(title: str) -> str:
    return "-".join(re.findall(r"\w+", title.lower()))


# Tables


def grid(first: str, rows: Rows) -> list[list[str]]:
    """The headings, `first` above the names, then a line a row."""
    headings = list(dict.fromkeys(heading for row in rows.values() for heading in row))
    return [[first, *headings], *([name, *(row.get(h, "") for h in headings)] for name, row in rows.items())]


def table(first: str, rows: Rows) -> str:
    """A table."""
    head, *lines = grid(first, rows)
    return _table("numbers", map(escape, head), ([escape(n), *map(_cell, cells)] for n, *cells in lines))


def texts(headings: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A table of texts, to be read rather than compared."""
    return _table("texts", map(escape, headings), (map(escape, line) for line in lines))


def _table(kind: str, head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A table of HTML, which scrolls where it is wider than the page."""
    made = []
    for name, *cells in lines:
        made.append(f"<tr><th scope=row>{name}" + "".join(f"<td>{cell}" for cell in cells))
    top = "".join(f"<th scope=col>{heading}" for heading in head)
    return f"<div class=scroll tabindex=0><table class={kind}><tr>{top}{''.join(made)}</table></div>"


def _cell(text: str) -> str:
    number, _, more = escape(text).removesuffix(")").partition(" (")
    return f"{number}<br><span class=tag>{more}</span>" if more else number


def console_table(first: str, rows: Rows) -> Table:
    """The same for the terminal, where a long name rather than a number is folded."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    (name, *headings), *lines = grid(first, rows)
    made.add_column(name, overflow="fold")
    for heading in headings:
        made.add_column(heading, justify="right", no_wrap=True)
    for name, *cells in lines:
        made.add_row(name, *(cell.replace(" (", "\n").replace(")", "") for cell in cells))
    return made


# Figures


def traces(series: Series, flat: bool = False, **style: Any) -> list[dict[str, Any]]:
    """A plotly trace for each name with points, bars lying down if `flat`; a name keeps its colour in every figure."""
    made = []
    for (name, points), shade in zip(series.items(), cycle(COLOURS), strict=False):
        if points:
            x = [_label(x) for x, _ in points]
            y, *bounds = zip(*(y if isinstance(y, Sequence) else (y,) for _, y in points), strict=True)
            trace = {"name": _label(name), "marker": {"color": shade}, "x": x, "y": y} | style
            if flat:
                trace |= {"x": y, "y": x, "orientation": "h"}
            if bounds:
                above, below = list(map(sub, bounds[1], y)), list(map(sub, y, bounds[0]))
                trace["error_y"] = {"array": above, "arrayminus": below, "thickness": 1}
            made.append(trace)
    return made


def _label(value: Any) -> Any:
    """A text as plotly shows it unchanged: it takes <b> and &amp; for markup."""
    return escape(value, quote=False) if isinstance(value, str) else value


def figure(traces: list[dict[str, Any]], title: str, x: str, y: str, height: int = 300, **layout: Any) -> str:
    """A figure of plotly traces, as data: `document` adds what draws it, in the page's colours.

    For those who do not see it: its title, axes, and where each of its lines begins and ends.
    """
    from plotly.graph_objects import Figure

    made = Figure(traces)
    made.update_layout(
        title={"text": _label(title), "font": {"size": 15}},
        template="none",
        height=height,
        margin={"l": 60, "r": 20, "t": 45, "b": 45},
        xaxis_title=x,
        yaxis_title=y,
        legend={"orientation": "h", "y": -0.25},
        font={"family": "system-ui, sans-serif", "size": 12},
        **layout,
    )
    data = json.dumps(json.loads(str(made.to_json())), separators=(",", ":"))
    known = [trace for trace in traces if trace.get("hoverinfo") != "skip"]
    said = f"{title}. {y} over {x}. " + "; ".join(f"{trace['name']}: {_ends(trace)}" for trace in known)
    return (
        f'<div class=figure style="height:{height}px" role=img aria-label="{escape(unescape(said))}" '
        f'data-name="{escape(title)}" data-figure="{escape(data)}"></div>'
    )


def _ends(trace: dict[str, Any]) -> str:
    values = [value for value in trace["y"] if isinstance(value, int | float)] or list(trace["x"])
    return f"{values[0]:.3g} to {values[-1]:.3g}" if len(values) > 1 else f"{values[0]:.3g}"


# Responses and their rewards


def card(about: str, body: str) -> str:
    """A box with a line about it; `body` is HTML."""
    return f"<div class=card><span class=tag>{escape(about)}</span><pre>{body}</pre></div>"


def pair(*cards: str) -> str:
    """Boxes beside each other."""
    return f"<div class=pair>{''.join(cards)}</div>"


def response_card(
    verdict: str, tokens: Sequence[str], rewards: Sequence[float], largest: float, steps: Sequence[bool] = ()
) -> str:
    """A response, each token in the colour of its reward; the end has a reward, but no text.

    `steps`: a verdict a line; the tokens of a wrong one are underlined.
    """
    line, spans = 0, []
    for t, (token, reward) in enumerate(zip(tokens, rewards, strict=True), 1):
        slip = " slip" if line < len(steps) and not steps[line] and token.strip() else ""
        text = escape(token).replace("\n", "<span class=end>⏎</span>\n")
        if not token and t == len(tokens):
            text = "<span class=end>∎</span>"
        style = f"background:{tint(reward / largest)}"
        spans.append(f'<span class="tok{slip}" style="{style}" title="{reward:+.4f}">{text}</span>')
        line += token.count("\n")
    return card(f"{verdict}, score {sum(rewards):+.3f}", "".join(spans))


def legend(largest: float) -> str:
    """The colours of `response_card`, in words."""
    return (
        f"Every token in the colour of its process reward, <span class=bar></span> from {-largest:+.3f} to "
        f"{largest:+.3f} and beyond (point at a token for its number); the end has one too."
    )


def step_bars(steps: list[str], rewards: list[float]) -> str:
    """The steps of a response, each with its reward as a number and as a bar."""
    longest = max(map(abs, rewards)) or 1.0
    lines = []
    for step, reward in zip(steps, rewards, strict=True):
        width = 50 * abs(reward) / longest
        left = 50 - width * (reward <= 0)
        style = f"margin-left:{left:.1f}%;width:{width:.1f}%;background:{tint(copysign(1, reward))}"
        bar = f'<div style="{style}"></div>'
        lines.append(f"<tr><td>{reward:+.4f}<td class=axis>{bar}<td>{escape(step.strip())}")
    return f"<table class=steps>{''.join(lines)}</table>"


# An evaluation


def model_names(results: dict[str, Any]) -> str:
    """The model and the PRM of an evaluation."""
    prm = f" with the PRM {results['prm']}" if results["prm"] else ""
    return f"{results['model'] or 'recorded responses'}{prm}"


def evaluation(results: dict[str, Any]) -> list[str]:
    """The tables of an evaluation, the accuracies as bars, and Best-of-N of each benchmark as curves."""
    tables = ((accuracy_rows(results), ACCURACY), (first_error_rows(results), FIRST_ERROR))
    parts = [f"{table('benchmark', rows)}\n<p>{note}</p>" for rows, note in tables if rows]
    benchmarks, series = results["benchmarks"], {}
    for name, result in benchmarks.items():
        for label, values in accuracies(result).items():
            if not label.startswith("pass@"):
                series.setdefault(label, []).append((name, values))
    if series:
        layout = {"showlegend": True, "yaxis_range": [0, 1.02]}
        parts.append(figure(traces(series, type="bar"), "Accuracy", "", "accuracy", 360, **layout))
    return parts + [best_of_n(name, result) for name, result in benchmarks.items() if "best_of_n" in result]


def accuracies(result: dict[str, Any]) -> dict[str, Sequence[float]]:
    """Greedy and sampled accuracy, pass@N, and the accuracies of the majority vote and of the PRM's choice among N."""
    n, best = str(result.get("samples")), result.get("best_of_n", {})
    found = {
        "greedy": result.get("greedy"),
        f"avg@{n}": result.get(f"avg@{n}"),
        f"pass@{n}": result.get("pass@k", {}).get(n),
        f"maj@{n}": result.get("maj@k", {}).get(n),
        f"PRM bo{n}": best.get("PRM", {}).get(n),
    }
    return {label: values for label, values in found.items() if values}


def accuracy_rows(results: dict[str, Any]) -> Rows:
    """A line for each benchmark of answers."""
    rows: Rows = {}
    for name, result in results["benchmarks"].items():
        if "first_error" not in result:
            left_out = f" (-{result['left_out']})" if result["left_out"] else ""
            rows[name] = {"items": f"{result['items']}{left_out}"}
            for label, (mean, low, high) in accuracies(result).items():
                rows[name][label] = f"{mean:.3f} ({low:.2f}-{high:.2f})"
            if "truncated" in result:
                rows[name]["cut"] = f"{result['truncated']:.0%}"
    return rows


def first_error_rows(results: dict[str, Any]) -> Rows:
    """A line for each benchmark of first errors and threshold."""
    headings = {"error_accuracy": "error found", "correct_accuracy": "right kept", "f1": "F1"}
    rows: Rows = {}
    for name, result in results["benchmarks"].items():
        for threshold, shares in result.get("first_error", {}).items():
            short = "0" if threshold == "threshold 0" else "tuned"
            rows[f"{name}, threshold {short}"] = {"items": str(result["items"])} | {
                heading: "-" if shares[key] is None else f"{shares[key]:.3f}"
                for key, heading in headings.items()
            }
    return rows


def best_of_n_rows(result: dict[str, Any]) -> Rows:
    """A line for each way to choose one of N responses."""
    rows: Rows = {}
    for method, curve in result["best_of_n"].items():
        rows[method] = {f"N={n}": f"{mean:.3f}" for n, (mean, *_) in curve.items()}
        *_, (_, low, high) = curve.values()
        rows[method]["95 %"] = f"{low:.2f}-{high:.2f}"
    return rows


def ahead_note(result: dict[str, Any]) -> str:
    """How far the PRM's choice is ahead of the others, item by item."""
    found = result.get("prm_ahead", {}).items()
    said = [f"{mean:+.3f} ({low:+.2f} to {high:+.2f}) of the {name}" for name, (mean, low, high) in found]
    return f"PRM ahead, item by item, at N={result['samples']}: {'; '.join(said)}" if said else ""


def best_of_n(name: str, result: dict[str, Any]) -> str:
    """Best-of-N of a benchmark: curves and table."""
    curves = result["best_of_n"]
    sizes = [int(n) for n in next(iter(curves.values()))]
    drawn = traces(
        {
            method: [(n * 1.01 ** (i - len(curves) / 2), curve[str(n)]) for n in sizes]
            for i, (method, curve) in enumerate(curves.items())  # beside each other, or bars hide bars
        },
        type="scatter",
        hovertemplate="%{y:.3f}",
    )
    for trace in drawn:
        trace["line"] = {"dash": "dot" if trace["name"] in ("oracle", "random") else "solid"}
        trace["visible"] = "legendonly" if trace["name"].startswith("PRM, ") else True
    axes = {"xaxis_type": "log", "xaxis_tickvals": sizes, "yaxis_rangemode": "tozero"}
    note = f"{result['items']} items, {result['samples']} responses each; one of N is chosen."
    parts = [
        f"<h2>Best of N: {escape(name)}</h2><p>{escape(note)}</p>",
        figure(drawn, "Accuracy of the chosen response", "N", "accuracy", 380, **axes),
        table("chosen by", best_of_n_rows(result)),
    ]
    if note := ahead_note(result):
        parts.append(f"<p>{escape(note)}</p>")
    if (auc := result.get("step_auc")) is not None:
        steps = "Rewards of lines against the oracle step checker: area under the ROC curve {:.3f} (.5 is chance)."
        parts.append(f"<p>{steps.format(auc)}</p>")
    return "".join(parts)
