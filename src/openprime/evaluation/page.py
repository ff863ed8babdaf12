"""Pages that hold everything they need, and figures on them; they open without a network."""

from html import escape
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626", "#475569")
STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")


def write_html(out: Path, title: str, parts: list[str]) -> None:
    """One page with everything that it needs inside."""
    out.parent.mkdir(parents=True, exist_ok=True)
    body = "\n".join(part for part in parts if part)
    head = f"<meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
    page = f"<!doctype html><html lang=en>{head}<script>{get_plotlyjs()}</script><body>{body}</body></html>\n"
    out.write_text(page, encoding="utf-8")


def draw(figure: go.Figure, title: str, x: str, y: str, height: int = 300) -> str:
    """A figure as HTML without its own copy of the library."""
    figure.update_layout(
        title={"text": title, "font": {"size": 15}},
        template="plotly_white",
        height=height,
        margin={"l": 60, "r": 20, "t": 45, "b": 45},
        xaxis_title=x,
        yaxis_title=y,
        legend={"orientation": "h", "y": -0.25},
        font={"family": "system-ui, sans-serif", "size": 12},
    )
    return figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True}
    )
