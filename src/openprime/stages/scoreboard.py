"""The results of an evaluation for people: a table in the terminal and a page."""

from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from rich.console import Console
from rich.table import Table

from openprime.stages.report import COLOURS, best_of_n, draw, write_html

Results = dict[str, Any]


def print_results(results: Results, console: Console) -> None:
    """One line a benchmark, then the ways to choose among N, then the first errors."""
    rows = {name: columns(result) for name, result in results["benchmarks"].items()}
    headings = list(dict.fromkeys(heading for row in rows.values() for heading in row))
    table = Table(
        title=f"{results['model'] or 'recorded responses'} (95 % intervals over items)", title_justify="left"
    )
    table.add_column("benchmark")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, row in rows.items():  # intervals on a line of their own: narrow columns
        table.add_row(name, *(row.get(heading, "").replace(" (", "\n(") for heading in headings))
    console.print(table)
    for name, result in results["benchmarks"].items():
        if "best_of_n" in result and len(result["best_of_n"]) > 3:
            console.print(choices_table(name, result))


def columns(result: Results) -> dict[str, str]:
    """What the table says of a benchmark: heading -> cell."""
    left_out = result.get("left_out", 0)
    row = {"items": f"{result['items']}" + (f" ({left_out} left out)" if left_out else "")}
    n = result.get("samples", 0)
    for heading, key in (("greedy", "greedy"), (f"avg@{n}", f"avg@{n}")):
        if key in result:
            row[heading] = with_interval(result[key])
    if "pass@k" in result:
        row[f"pass@{n}"] = with_interval(result["pass@k"][n])
    if "maj@k" in result:
        row[f"maj@{n}"] = with_interval(result["maj@k"][n])
    if "PRM" in result.get("best_of_n", {}):
        row[f"PRM bo{n}"] = with_interval(result["best_of_n"]["PRM"][n])
    if "truncated" in result:
        row["truncated"] = f"{result['truncated']:.1%}"
    for how, measured in result.get("first_error", {}).items():
        cells = [measured[key] for key in ("error_accuracy", "correct_accuracy", "f1")]
        row[f"F1 ({how})"] = "-" if None in cells else "{2:.3f} (wrong {0:.3f}, right {1:.3f})".format(*cells)
    return row


def choices_table(name: str, result: Results) -> Table:
    """Best-of-N of one benchmark."""
    table = Table(title=f"{name}: accuracy of the chosen response", title_justify="left")
    table.add_column("chosen by")
    sizes = list(next(iter(result["best_of_n"].values())))
    for n in sizes:
        table.add_column(f"N={n}", justify="right")
    for method, row in result["best_of_n"].items():
        table.add_row(method, *(f"{row[n][0]:.3f}" for n in sizes[:-1]), with_interval(row[sizes[-1]]))
    return table


def with_interval(values: tuple[float, float, float]) -> str:
    """Mean and interval."""
    mean, low, high = values
    return f"{mean:.3f} ({low:.3f}-{high:.3f})"


def write_page(results: Results, path: Path) -> None:
    """The same as a page with figures; opens without a network."""
    title = f"openprime evaluate: {results['model'] or 'recorded responses'}"
    parts = [f"<h1>{escape(title)}</h1>", overview(results), accuracies(results)]
    parts += [
        best_of_n(name, result) for name, result in results["benchmarks"].items() if "best_of_n" in result
    ]
    write_html(path, title, parts)


def overview(results: Results) -> str:
    """The table."""
    rows = {name: columns(result) for name, result in results["benchmarks"].items()}
    headings = list(dict.fromkeys(heading for row in rows.values() for heading in row))
    head = "<th>benchmark" + "".join(f"<th>{escape(heading)}" for heading in headings)
    lines = [
        f"<tr><td>{escape(name)}" + "".join(f"<td>{escape(row.get(h, ''))}" for h in headings)
        for name, row in rows.items()
    ]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table><p>95 % bootstrap intervals over items.</p>"


def accuracies(results: Results) -> str:
    """Bars with intervals: greedy, average, majority and the PRM's choice on each benchmark."""
    figure, bars = go.Figure(), {}
    for name, result in results["benchmarks"].items():
        n = result.get("samples", 0)
        best = result.get("best_of_n", {})
        for label, value in {
            "greedy": result.get("greedy"),
            f"avg@{n}": result.get(f"avg@{n}"),
            f"maj@{n}": best.get("majority vote", {}).get(n),
            f"PRM bo{n}": best.get("PRM", {}).get(n),
        }.items():
            if value:
                bars.setdefault(label, {})[name] = value
    for (label, values), colour in zip(bars.items(), COLOURS, strict=False):
        figure.add_bar(
            name=label,
            x=list(values),
            y=[v[0] for v in values.values()],
            error_y={
                "type": "data",
                "array": [v[2] - v[0] for v in values.values()],
                "arrayminus": [v[0] - v[1] for v in values.values()],
                "thickness": 1,
            },
            marker={"color": colour},
        )
    return draw(figure, "Accuracy", "", "accuracy", height=360) if bars else ""
