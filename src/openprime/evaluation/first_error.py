"""Benchmarks of first errors (ProcessBench, arXiv 2412.06559): does a PRM find the first wrong step?"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from openprime.data.chat import complete
from openprime.data.steps import apart
from openprime.evaluation.accuracy import or_none
from openprime.evaluation.calibration import cross_fitted_f1, first_error, first_error_f1, lowest_is_last
from openprime.evaluation.items import Benchmark
from openprime.prime.prm import ImplicitPRM
from openprime.run.jsonl import fill_jsonl

PLAIN = {"system": "", "suffix": "", "template": "none"}
"""The prompts are complete already."""


def first_errors(
    benchmark: Benchmark, prm: ImplicitPRM, seed: int, folder: Path, console: Console
) -> dict[str, Any]:
    """Score every step; a step is called wrong where its reward is below a threshold.

    F1 is given for the threshold 0 and, as the published protocol tunes it, for one chosen on the other half
    of the items, halved with `seed`.
    """
    items, form = benchmark.items, benchmark.config.data

    def make(chunk: range, check: Callable[[], None]) -> list[dict]:
        chosen = [items[i] for i in chunk]
        prompts = [complete(item.messages, item.id, form, item.verifier) for item in chosen]
        steps = [apart(item.columns["steps"]) for item in chosen]
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
        "threshold from the other half": cross_fitted_f1(rewards, labels, seed),
    }
    return {
        "items": len(rows),
        "first_error": {
            name: {key: or_none(value) for key, value in asdict(f1).items()} for name, f1 in measured.items()
        },
        "lowest_step_last": or_none(lowest_is_last(rewards)),
    }
