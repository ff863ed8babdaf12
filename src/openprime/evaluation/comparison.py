"""PRMs beside each other on the same responses: what each says of every token, and how well it knows the outcomes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain
from statistics import fmean

from openprime.colours import SOFT, TEXT, full_colour, legend_html
from openprime.config import PromptFormat, StepSplit
from openprime.data.template import Messages
from openprime.evaluation.accuracy import powers
from openprime.evaluation.held_out import agreement, finite
from openprime.evaluation.voting import best_of_n_subsets
from openprime.prime.prm import ImplicitPRM, Score
from openprime.types import Metrics, UserError

SHOWN = 8
"""Responses that a notebook shows; all are in `scores`."""


@dataclass(frozen=True, repr=False)
class Comparison:
    """What PRMs say of the same responses, by their names. A notebook shows it as tables and coloured tokens."""

    prompts: list[str | Messages]
    outcomes: list[float]
    """In [0, 1], one a response; empty where they are not known."""
    scores: dict[str, list[Score]]
    """One a response."""
    measures: dict[str, Metrics]
    """With outcomes: pairwise_accuracy (and pairwise_low, pairwise_high), auc, ece and brier, as
    `held_out.measure` has them; what cannot be measured on these responses is left out."""
    best_of_n: dict[str, dict[int, float]]
    """With outcomes: N -> mean outcome of the response with the highest score among N to a prompt, over all choices of
    N from those that there are; N up to the fewest responses to a prompt."""

    def __repr__(self) -> str:
        """The numbers."""
        head, *lines = self._table()
        widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
        return "\n".join(
            "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]).rstrip()
            for cells in (head, *lines)
        )

    def _repr_html_(self) -> str:
        """The numbers, then each response with its tokens in the colours of each PRM's rewards."""
        head, *lines = self._table()
        top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
        rows = (
            f'<tr><th scope="row">{escape(name)}</th>' + "".join(f"<td>{cell}</td>" for cell in cells)
            for name, *cells in lines
        )
        parts = [f"<table><tr>{top}</tr>{''.join(rows)}</table>"]
        largest = {
            name: full_colour(chain.from_iterable(score.token_rewards for score in scores))
            for name, scores in self.scores.items()
        }
        shown = self.prompts[:SHOWN]
        for i, prompt in enumerate(shown):
            said = f", outcome {self.outcomes[i]:g}" if self.outcomes else ""
            text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content"))
            parts.append(
                f'<div style="margin-top:1em"><b>Response {i}</b>{said}</div>'
                f'<div style="{TEXT};{SOFT}">{escape(text)}</div><div style="display:flex;flex-wrap:wrap">'
            )
            for name, full in largest.items():
                title, tokens = f"<b>{escape(name)}</b>", self.scores[name][i].html(full)
                parts.append(f'<div style="flex:1 1 18em;margin-right:1.5em">{title}{tokens}</div>')
            parts.append("</div>")
        parts += [f"<div>{escape(name)}: {legend_html(full)}</div>" for name, full in largest.items()]
        if more := len(self.prompts) - len(shown):
            parts.append(f"<div>{more} more in <code>scores</code></div>")
        return "".join(parts)

    def _table(self) -> list[list[str]]:
        """Headings, and a line a PRM."""
        measured = ("pairwise_accuracy", "auc", "ece", "brier")
        kept = [key for key in measured if any(key in found for found in self.measures.values())]
        sizes = list(next(iter(self.best_of_n.values()), {}))
        lines = []
        for name, scores in self.scores.items():
            found = self.measures.get(name, {})
            cells = {key: f"{found[key]:.3f}" if key in found else "" for key in kept}
            if "pairwise_low" in found:
                cells["pairwise_accuracy"] += f" ({found['pairwise_low']:.2f}-{found['pairwise_high']:.2f})"
            best = [f"{self.best_of_n[name][n]:.3f}" for n in sizes]
            probability = fmean(score.probability for score in scores)
            lines.append([name, str(len(scores)), f"{probability:.3f}", *cells.values(), *best])
        named = [*(key.replace("_", " ") for key in kept), *(f"best of {n}" for n in sizes)]
        return [["PRM", "responses", "mean probability", *named], *lines]


def compare(
    prms: Mapping[str, ImplicitPRM],
    prompts: Sequence[str | Messages],
    responses: Sequence[str],
    outcomes: Sequence[float] | None = None,
    step_split: StepSplit | Sequence[Sequence[str]] = "newline",
    form: PromptFormat | None = None,
) -> Comparison:
    """Score responses, one to each prompt, by several PRMs; with outcomes in [0, 1] say which one knows them.

    Responses to the same prompt are a group: pairs and Best-of-N are within it. The other arguments are those of
    `ImplicitPRM.score`. Raises UserError for what cannot be scored, and for outcomes that are none.
    """
    if not isinstance(prms, Mapping) or not prms:
        raise UserError('compare: give the PRMs by names of your own, such as {"mine": prm, "theirs": other}')
    truths = [] if outcomes is None else [float(outcome) for outcome in outcomes]
    if outcomes is not None and len(truths) != len(responses):
        raise UserError(f"compare: {len(truths)} outcomes, but {len(responses)} responses: give one to each")
    if wrong := [value for value in truths if not 0 <= value <= 1]:
        raise UserError(f"compare: the outcome {wrong[0]!r}: outcomes are in [0, 1] (1 right, 0 wrong)")
    if not responses:
        raise UserError("compare: there are no responses")
    scores = {name: prm.score(prompts, responses, step_split, form) for name, prm in prms.items()}
    places: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        places.setdefault(json.dumps(prompt, sort_keys=True), []).append(i)
    groups, measures, best = list(places.values()), {}, {}
    for name, found in scores.items() if truths else ():
        values = [score.reward for score in found]
        measures[name] = finite(agreement(values, truths, groups))
        best[name] = {
            n: sum(best_of_n_subsets([values[i] for i in g], [truths[i] for i in g], n) for g in groups)
            / len(groups)
            for n in powers(min(map(len, groups)))
        }
    return Comparison(list(prompts), truths, scores, measures, best)
