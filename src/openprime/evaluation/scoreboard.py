"""The results of an evaluation for people: a table in the terminal and a page.

`results` is what results.json holds, read from it or about to be written: the keys of all tables are texts.
"""

import html
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from openprime.evaluation.page import COLOURS, draw, write_html

Results = dict[str, Any]
Rows = dict[str, dict[str, str]]
"""A line's name -> heading -> cell."""

THRESHOLDS = {"threshold 0": "0", "threshold from the other half": "tuned"}


def print_results(results: Results, console: Console) -> None:
    """One line a benchmark, then the first errors, then the ways to choose among N; 80 columns will do."""
    console.print(f"\n{title(results)}; 95 % intervals over items", markup=False, highlight=False)
    for rows in (accuracy_rows(results), first_error_rows(results)):
        if rows:
            console.print(table("benchmark", rows))
    for name, result in results["benchmarks"].items():
        if len(result.get("best_of_n", {})) > 3:
            console.print(f"{name}: accuracy of the chosen response", markup=False, highlight=False)
            console.print(table("chosen by", choice_rows(result)))


def table(first: str, rows: Rows) -> Table:
    """Rows for the terminal: an interval goes on a line of its own, and a long name rather than a number is folded."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    made.add_column(first, overflow="fold")
    for heading in headings(rows):
        made.add_column(heading, justify="right", no_wrap=True)
    for name, row in rows.items():
        cells = [row.get(heading, "").replace(" (", "\n").replace(")", "") for heading in headings(rows)]
        made.add_row(escape(name), *cells)
    return made


def headings(rows: Rows) -> list[str]:
    """Those of all rows, in the order of their first appearance."""
    return list(dict.fromkeys(heading for row in rows.values() for heading in row))


def title(results: Results) -> str:
    """Whose results they are."""
    prm = f" with the PRM {results['prm']}" if results["prm"] else ""
    return f"{results['model'] or 'recorded responses'}{prm}"


def accuracy_rows(results: Results) -> Rows:
    """What is said of each benchmark of answers."""
    rows: Rows = {}
    for name, result in results["benchmarks"].items():
        if "first_error" in result:
            continue
        n, left_out = str(result["samples"]), result["left_out"]
        row = {"items": str(result["items"]) + (f" (-{left_out})" if left_out else "")}
        chosen = result.get("best_of_n", {})
        for heading, values in (
            ("greedy", result.get("greedy")),
            (f"avg@{n}", result.get(f"avg@{n}")),
            (f"pass@{n}", result.get("pass@k", {}).get(n)),
            (f"maj@{n}", result.get("maj@k", {}).get(n)),
            (f"PRM bo{n}", chosen.get("PRM", {}).get(n)),
        ):
            if values:
                row[heading] = with_interval(values)
        if "truncated" in result:
            row["cut"] = f"{result['truncated']:.0%}"
        rows[name] = row
    return rows


def first_error_rows(results: Results) -> Rows:
    """What is said of each benchmark of first errors, by threshold."""
    rows: Rows = {}
    for name, result in results["benchmarks"].items():
        for how, measured in result.get("first_error", {}).items():
            numbers = {
                "error found": measured["error_accuracy"],
                "right kept": measured["correct_accuracy"],
                "F1": measured["f1"],
            }
            cells = {key: "-" if value is None else f"{value:.3f}" for key, value in numbers.items()}
            rows[f"{name}, threshold {THRESHOLDS[how]}"] = {"items": str(result["items"])} | cells
    return rows


def choice_rows(result: Results) -> Rows:
    """Best-of-N of one benchmark."""
    rows: Rows = {}
    for method, row in result["best_of_n"].items():
        *most, last = row.items()
        rows[method] = {f"N={n}": f"{values[0]:.3f}" for n, values in most}
        rows[method] |= {f"N={last[0]}": f"{last[1][0]:.3f}", "95 %": between(last[1])}
    return rows


def with_interval(values: tuple[float, float, float]) -> str:
    """Mean and interval."""
    return f"{values[0]:.3f} ({between(values)})"


def between(values: tuple[float, float, float]) -> str:
    """The interval."""
    return f"{values[1]:.2f}-{values[2]:.2f}"


# The page


def write_page(results: Results, path: Path) -> None:
    """The same as a page with figures."""
    heading = f"openprime evaluate: {title(results)}"
    parts = [f"<h1>{html.escape(heading)}</h1>", *overview(results), accuracies(results)]
    parts += [
        best_of_n(name, result) for name, result in results["benchmarks"].items() if "best_of_n" in result
    ]
    write_html(path, heading, parts)


def overview(results: Results) -> list[str]:
    """The tables."""
    notes = {
        "accuracy": "95 % bootstrap intervals over items. cut: responses that reached the token limit. Below the "
        "number of items, where there are any: items that could not be judged.",
        "errors": "A step is called wrong where its reward is below the threshold: 0, or the one with the best F1 "
        "on the other half of the items. F1 of two shares: of wrong solutions whose first wrong step is found, and "
        "of right ones in which no step is blamed.",
    }
    accuracy, errors = accuracy_rows(results), first_error_rows(results)
    parts = [html_table("benchmark", accuracy), f"<p>{notes['accuracy']}</p>"] if accuracy else []
    return parts + ([html_table("benchmark", errors), f"<p>{notes['errors']}</p>"] if errors else [])


def html_table(first: str, rows: Rows) -> str:
    """Rows for a page."""
    head = f"<th>{first}" + "".join(f"<th>{html.escape(heading)}" for heading in headings(rows))
    lines = [
        f"<tr><td>{html.escape(name)}" + "".join(f"<td>{html_cell(row.get(h, ''))}" for h in headings(rows))
        for name, row in rows.items()
    ]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def html_cell(text: str) -> str:
    """A number, and what stands behind it in brackets on a line of its own."""
    number, _, more = html.escape(text).removesuffix(")").partition(" (")
    return f"{number}<br><span class=tag>{more}</span>" if more else number


def accuracies(results: Results) -> str:
    """Bars with intervals: greedy, average, majority and the PRM's choice on each benchmark."""
    bars: dict[str, dict[str, tuple[float, float, float]]] = {}
    for name, result in results["benchmarks"].items():
        n, chosen = str(result.get("samples", 0)), result.get("best_of_n", {})
        for label, values in {
            "greedy": result.get("greedy"),
            f"avg@{n}": result.get(f"avg@{n}"),
            f"maj@{n}": result.get("maj@k", {}).get(n),
            f"PRM bo{n}": chosen.get("PRM", {}).get(n),
        }.items():
            if values:
                bars.setdefault(label, {})[name] = values
    if not bars:
        return ""
    figure = go.Figure()
    for i, (label, values) in enumerate(bars.items()):
        figure.add_bar(
            name=label,
            x=list(values),
            y=[v[0] for v in values.values()],
            error_y=error_bars(list(values.values())),
            marker={"color": COLOURS[i % len(COLOURS)]},
        )
    figure.update_layout(showlegend=True)
    figure.update_yaxes(range=[0, 1.02])
    return draw(figure, "Accuracy", "", "accuracy", height=360)


def error_bars(values: list[tuple[float, float, float]]) -> dict[str, Any]:
    """Intervals as plotly draws them."""
    above, below = [v[2] - v[0] for v in values], [v[0] - v[1] for v in values]
    return {"type": "data", "array": above, "arrayminus": below, "thickness": 1}


def best_of_n(name: str, result: Results) -> str:
    """Best-of-N curves and table of a benchmark."""
    curves = result["best_of_n"]
    sizes = list(next(iter(curves.values())))
    figure = go.Figure()
    for i, (method, row) in enumerate(curves.items()):
        values = [row[n] for n in sizes]
        dash = "dot" if method in ("oracle", "random") else "solid"
        figure.add_scatter(
            x=[int(n) * 1.01 ** (i - len(curves) / 2) for n in sizes],  # beside each other, or bars hide bars
            y=[v[0] for v in values],
            error_y=error_bars(values),
            name=method,
            hovertemplate="%{y:.3f}",
            line={"color": COLOURS[i % len(COLOURS)], "width": 2, "dash": dash},
            visible="legendonly" if method.startswith("PRM, ") else True,
        )
    figure.update_xaxes(type="log", tickvals=[int(n) for n in sizes])
    figure.update_yaxes(rangemode="tozero")
    auc = result.get("step_auc")
    steps = "Rewards of lines against a perfect checker: area under the ROC curve {:.3f} (.5 is chance)."
    note = f"{result['items']} items, {result['samples']} responses each; one of N is chosen."
    return (
        f"<h2>Best of N: {html.escape(name)}</h2><p>{note}</p>"
        + draw(figure, "Accuracy of the chosen response", "N", "accuracy", height=380)
        + html_table("chosen by", choice_rows(result))
        + (f"<p>{steps.format(auc)}</p>" if auc is not None else "")
    )
