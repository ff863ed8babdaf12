"""Benchmarks of first errors (ProcessBench, arXiv 2412.06559): does a PRM find the first wrong step?"""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from openprime.algorithm.metrics import cross_fitted_f1, first_error, first_error_f1, lowest_is_last
from openprime.config import DataConfig, EvaluateConfig
from openprime.data.chat import complete, read_messages
from openprime.data.readers import PROMPT_FIELDS, field_of, load_rows
from openprime.training.run import fill_jsonl
from openprime.types import Prompt

if TYPE_CHECKING:
    from openprime.stages.evaluate import Models
    from openprime.stages.items import Benchmark

SEPARATOR = "\n\n"


def read_solutions(data: DataConfig) -> list[Prompt]:
    """The rows as prompts: a problem, `steps` (texts) and `label` (index of the first wrong step, -1: none).

    Raises ValueError, with the row, for anything else.
    """
    rows = load_rows(data)
    field = field_of(data, rows, "prompt_field", PROMPT_FIELDS)
    missing = [name for name in ("steps", "label") if all(row.get(name) is None for row in rows)]
    if missing:
        raise ValueError(
            f"{data.source}: no row has a field {' nor '.join(missing)}; there are: {', '.join(rows[0])}"
        )
    items = []
    for i, row in enumerate(rows):
        name = f"{Path(data.source).name}:{i}"
        steps, label = row.get("steps"), row.get("label")
        if not isinstance(steps, list) or not steps or not all(isinstance(s, str) for s in steps):
            raise ValueError(f"{name}: steps must be a list of texts, at least one, found {steps!r:.80}")
        if type(label) is not int or not -1 <= label < len(steps):
            raise ValueError(f"{name}: label must be the index of a step or -1, found {label!r}")
        items.append(Prompt(name, (), read_messages(row.get(field), name), None, row))
    return items


def first_errors(
    benchmark: "Benchmark", config: EvaluateConfig, models: "Models", folder: Path, console: Console
) -> dict[str, Any]:
    """Score every step; a step is called wrong where its reward is below a threshold.

    F1 is given for the threshold 0 and, as the published protocol tunes it, for one chosen on the other half
    of the items.
    """
    prm, items, form = models.prm, benchmark.items, benchmark.config.data
    assert prm is not None

    def make(chunk: range, check: Callable[[], None]) -> list[dict]:
        chosen = [items[i] for i in chunk]
        prompts = [complete(item.messages, item.id, form, item.verifier) for item in chosen]
        steps = [parts(item.columns["steps"]) for item in chosen]
        scores = prm.score(prompts, ["".join(s) for s in steps], steps, form.model_copy(update=PLAIN))
        check()
        return [
            {
                "item": i,
                "id": item.id,
                "label": item.columns["label"],
                "step_rewards": [round(reward, 6) for reward in score.step_rewards],
                "first_error": first_error(score.step_rewards, 0.0),
            }
            for i, item, score in zip(chunk, chosen, scores, strict=True)
        ]

    rows = fill_jsonl(folder / "responses.jsonl", len(items), benchmark.name, console, make)
    labels, rewards = [row["label"] for row in rows], [row["step_rewards"] for row in rows]
    measured = {
        "threshold 0": first_error_f1([first_error(r, 0.0) for r in rewards], labels),
        "threshold from the other half": cross_fitted_f1(rewards, labels, config.seed),
    }
    return {
        "items": len(rows),
        "first_error": {
            name: {key: or_none(value) for key, value in asdict(f1).items()} for name, f1 in measured.items()
        },
        "lowest_step_last": or_none(lowest_is_last(rewards)),
    }


def or_none(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else value


PLAIN = {"system": "", "suffix": "", "template": "none"}
"""The prompts are complete already."""


def parts(steps: list[str]) -> list[str]:
    """The steps with the blank lines between them."""
    return [*(step + SEPARATOR for step in steps[:-1]), steps[-1]]
