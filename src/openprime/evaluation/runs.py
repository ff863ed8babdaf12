"""What the folders of training runs say: metrics, settings, alarms, samples; which runs differ in the seed alone."""

import re
from array import array
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import ceil, sqrt
from os.path import commonprefix
from pathlib import Path
from statistics import fmean, stdev
from sys import byteorder
from typing import Any

import yaml

from openprime.run.folder import flatten
from openprime.run.jsonl import read_jsonl
from openprime.types import UserError

FILES = ("config.yaml", "metrics.jsonl", "samples.jsonl", "alarms.jsonl")
"""What is read of a run's folder."""
ASIDE = {"seed", "out", "resume", "save_every", "keep", "sample_every", "wandb", "device", "verify.workers"}
"""Settings that make no other configuration; nor does `data.task_seed`."""
T_QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
"""97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom; with more, the last one, a little wide."""
KINDS = ("rewards", "returns", "advantages", "logprobs")
"""What a token of samples.jsonl can have, beside its text."""
MOST_TOKENS = 200_000
"""Tokens of samples in one page: about 4 MB."""

Point = tuple[float, float, float, float]
"""(x, mean over runs, low, high)."""


@dataclass(frozen=True)
class Run:
    """The records of one run; a run that has just begun has none."""

    folder: str
    """As the user wrote it."""

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.folder)

    @cached_property
    def rows(self) -> list[dict[str, float]]:
        """The rows of metrics.jsonl that have a step, with what are numbers in them."""
        rows = [
            {k: v for k, v in row.items() if type(v) in (int, float) and abs(v) < 1e300}
            for row in read_jsonl(self.path / "metrics.jsonl")
        ]
        return [row for row in rows if "step" in row]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings, keys with dots; none where there is no config.yaml that can be read."""
        try:
            found = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            return {}
        return dict(flatten(found)) if isinstance(found, dict) else {}

    @cached_property
    def alarms(self) -> list[dict[str, Any]]:
        """The rows of alarms.jsonl."""
        return read_jsonl(self.path / "alarms.jsonl")

    @property
    def configuration(self) -> tuple[tuple[str, str], ...]:
        """The settings without what a seed changes: that of the task, and the paths that name it."""
        seed = re.compile(rf"(?<![\w.])(seed[-_]?)?{self.settings.get('seed', 0)}(?![\w.])")
        kept = []
        for key, value in self.settings.items():
            if key not in ASIDE and not key.endswith("_seed"):
                text = str(value)
                kept.append((key, seed.sub("*", text) if "/" in text else text))
        return tuple(kept)

    def points(self, metric: str) -> list[tuple[float, float, float]]:
        """(step, rollouts or else the step, value) of a metric; one that ends with @ goes on with any number."""
        return [
            (row["step"], row.get("rollout/rollouts", row["step"]), value)
            for row in self.rows
            for key, value in row.items()
            if key == metric or (metric.endswith("@") and key.startswith(metric))
        ]


@dataclass(frozen=True)
class Line:
    """Runs of one configuration that differ in their seeds, under one name: a line in every figure."""

    name: str
    runs: tuple[Run, ...]

    def curve(self, metric: str) -> list[Point]:
        """The mean over runs at the steps that all have, with its 95 % t interval; of one run its own values."""
        tables = [{step: (x, y) for step, x, y in run.points(metric)} for run in self.runs]
        found = []
        for step in tables[0]:
            if all(step in table for table in tables):
                xs, ys = zip(*(table[step] for table in tables), strict=True)
                mean, half = fmean(ys), half_width(ys)
                found.append((fmean(xs), mean, mean - half, mean + half))
        return found


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % t interval of a mean; 0 for a single value."""
    n = len(values)
    return T_QUANTILES[min(n - 1, len(T_QUANTILES)) - 1] * stdev(values) / sqrt(n) if n > 1 else 0.0


def read_runs(folders: Iterable[str], begun: bool = True) -> list[Run]:
    """Runs by their folders. Raises UserError for a folder of another kind; `begun`: and where there is no metric."""
    runs = [Run(folder) for folder in folders]
    for run in runs:
        needed = ("metrics.jsonl",) if begun else ("metrics.jsonl", "config.yaml")
        if not any((run.path / name).is_file() for name in needed):
            raise UserError(f"{run.folder}: not a run's folder: it has no {needed[0]}")
    return runs


def lines_of(runs: Sequence[Run]) -> list[Line]:
    """Runs of one configuration and several seeds as one line; names are the folders', as short as they can be."""
    families: dict[Any, list[Run]] = {}
    for i, run in enumerate(runs):
        families.setdefault(run.configuration or i, []).append(run)
    found: list[tuple[Run, ...]] = []
    for family in families.values():
        seeds = {run.settings.get("seed") for run in family}
        found += [tuple(family)] if len(seeds) == len(family) else [(run,) for run in family]
    short = [_common([run.path.name for run in family]) or family[0].path.name for family in found]
    names = [
        name if short.count(name) == 1 else family[0].folder
        for name, family in zip(short, found, strict=True)
    ]
    counts = [f" ({len(family)} seeds)" if len(family) > 1 else "" for family in found]
    return [Line(n + count, family) for n, count, family in zip(names, counts, found, strict=True)]


def _common(names: list[str]) -> str:
    """The beginning that names share, without what introduces a seed."""
    if len(set(names)) == 1:
        return names[0]
    return re.sub(r"[-_. ]+(seed|s)?[-_. ]*$|seed$", "", commonprefix(names))  # noqa: RUF071


def differences(lines: Sequence[Line]) -> list[list[str]]:
    """[setting, its value for each line] of every setting that is not the same for all."""
    settings = [dict(line.runs[0].configuration) for line in lines]
    keys = dict.fromkeys(key for own in settings for key in own)
    rows = [[key, *(own.get(key, "-") for own in settings)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def samples_of(runs: Sequence[Run], names: Sequence[str], most: int = MOST_TOKENS) -> dict[str, Any]:
    """What the inspector shows: the groups of samples.jsonl, each token's values as 16-bit integers times a scale.

    Where there are more than `most` tokens, groups are left out evenly; the last ones are kept. A row that is not what
    a run writes is left out.
    """
    found = []
    known = [(name, groups) for run, name in zip(runs, names, strict=True) if (groups := groups_of(run))]
    left_out = 0
    for name, groups in known:
        kept = _fitting(groups, most // len(known))
        left_out += len(groups) - len(kept)
        found.append({"name": name, "groups": [_packed(group) for group in kept]})
    said = f"{left_out} groups are left out, evenly, to keep the page small: samples.jsonl has them."
    return {"runs": found, "left_out": said if left_out else ""}


def groups_of(run: Run) -> list[list[dict]]:
    """The rows of samples.jsonl, group by group."""
    rows = [row for row in read_jsonl(run.path / "samples.jsonl") if _is_sample(row)]
    return [list(group) for _, group in groupby(rows, lambda r: (r["step"], r.get("group"), r["prompt"]))]


def _is_sample(row: dict) -> bool:
    tokens, outcome = row.get("tokens"), row.get("outcome")
    if not (isinstance(tokens, list) and tokens and all(isinstance(token, str) for token in tokens)):
        return False
    if type(row.get("step")) is not int or type(outcome) not in (int, float) or "prompt" not in row:
        return False
    return "rewards" in row and all(_numbers(row[kind], len(tokens)) for kind in KINDS if kind in row)


def _numbers(values: Any, count: int) -> bool:
    fits = isinstance(values, list) and len(values) == count
    return fits and all(type(value) in (int, float) and abs(value) < 1e300 for value in values)


def _fitting(groups: list[list[dict]], most: int) -> list[list[dict]]:
    """Every n-th group, from the last one back, so that their tokens are at most `most`."""
    sizes = [sum(len(row["tokens"]) for row in group) for group in groups]
    n = max(1, ceil(sum(sizes) / most))
    while n < len(groups) and sum(sizes[::-1][::n]) > most:
        n += 1
    return groups[::-1][::n][::-1]


def _packed(group: list[dict]) -> dict[str, Any]:
    """A group for the page."""
    row, prompt = group[0], group[0]["prompt"]
    chat = prompt if isinstance(prompt, list) else []
    said = [f"{m.get('role')}: {m.get('content')}" if isinstance(m, dict) else str(m) for m in chat]
    text = "\n\n".join(said) if chat else str(prompt)
    asked = str(chat[-1].get("content")) if chat and isinstance(chat[-1], dict) else text
    responses = []
    for sample in group:
        kept = {
            "outcome": sample["outcome"],
            "tokens": sample["tokens"],
            "reason": str(sample.get("reason", "")),
        }
        kept["truncated"] = bool(sample.get("truncated"))
        responses.append(kept | {kind: packed(sample[kind]) for kind in KINDS if kind in sample})
    answer = row.get("answer")
    return {
        "step": row["step"],
        "group": str(row.get("group", text)),
        "prompt": text,
        "line": " ".join(asked.split())[:90],
        "answer": None if answer is None else str(answer),
        "responses": responses,
    }


def packed(values: Sequence[float]) -> tuple[float, str]:
    """(scale, base64 of little-endian 16-bit integers) whose product are the values, to 1/32767 of the largest."""
    scale = max(1e-30, *map(abs, values)) / 32767
    whole = array("h", (round(value / scale) for value in values))
    if byteorder == "big":
        whole.byteswap()
    return scale, b64encode(whole.tobytes()).decode()
