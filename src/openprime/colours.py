"""Tokens in the colours of their rewards, for pages, the terminal and notebooks."""

from collections.abc import Iterable, Sequence
from html import escape
from math import ceil


def full_colour(rewards: Iterable[float]) -> float:
    """The reward of the strongest colour: the 99th percentile, for one outlier among many would make all others pale.

    Of a hundred tokens and fewer the largest one. inspector.js and ask.js do the same.
    """
    sizes = sorted(map(abs, rewards))
    return sizes[ceil(0.99 * (len(sizes) - 1))] or 1.0


def colour(share: float) -> str:
    """White (0) to three quarters of blue (1 and more) or of red (-1 and less): dark text stays readable."""
    full, strength = _mix(share)
    return "#" + "".join(f"{round(255 + (channel - 255) * strength):02x}" for channel in full)


def tint(share: float) -> str:
    """The same over the page, light or dark."""
    (red, green, blue), strength = _mix(share)
    return f"rgba({red},{green},{blue},{strength:.3f})"


def _mix(share: float) -> tuple[tuple[int, int, int], float]:
    return (37, 99, 235) if share > 0 else (220, 38, 38), 0.75 * min(1.0, abs(share))


# In a notebook: every style stands beside its text, which has the colour of the notebook, light or dark.

TEXT = "font-family:ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;text-align:left"
SOFT = "font-size:.85em;opacity:.8"


def tokens_html(tokens: Sequence[str], rewards: Sequence[float], largest: float) -> str:
    """Tokens in the colours of their rewards, which are seen by pointing at them; `largest` has the strongest colour.

    A token that ends inside a character has its reward with the one that completes it. The end is a mark.
    """
    spans, pending = [], 0.0
    for t, (token, reward) in enumerate(zip(tokens, rewards, strict=True), 1):
        pending += reward
        if token or t == len(tokens):
            text = escape(token).replace("\n", f'<span style="{SOFT}">⏎</span>\n') if token else "∎"
            style = f"background-color:{tint(pending / largest)};border-radius:3px"
            spans.append(f'<span style="{style}" title="{pending:+.4f}">{text}</span>')
            pending = 0.0
    return f'<div style="{TEXT};margin:.3em 0">{"".join(spans)}</div>'


def legend_html(largest: float) -> str:
    """The colours of `tokens_html`, in words."""
    ends = f"linear-gradient(90deg,{tint(-1)},transparent,{tint(1)})"
    bar = f'<span style="background-image:{ends};border-radius:3px">{"&nbsp;" * 20}</span>'
    return (
        f'<div style="{SOFT}">Reward of a token: {-largest:+.3f} {bar} {largest:+.3f} and beyond; point at one for its '
        "number. ∎ is the end.</div>"
    )


def steps_html(steps: Sequence[str], rewards: Sequence[float]) -> str:
    """Steps with their rewards as numbers, folded up."""
    cell = "text-align:left;vertical-align:top;padding:.1em .8em .1em 0"
    rows = "".join(
        f'<tr><td style="{cell}">{reward:+.4f}</td><td style="{cell};{TEXT}">{escape(step.strip())}</td></tr>'
        for step, reward in zip(steps, rewards, strict=True)
    )
    return f'<details><summary style="cursor:pointer">Rewards of the steps</summary><table>{rows}</table></details>'
