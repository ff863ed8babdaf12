"""JSONL files that grow: appended to, cut off after a kill, filled item by item."""

import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from openprime.run.console import Bar, Signals
from openprime.types import UserError

CHUNK = 128
"""Items of a file that are made at a time: what a kill can cost."""


def append_jsonl(path: Path, row: dict) -> None:
    """Add a line to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict]:
    """The rows of a file that is whole."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def keep_until(path: Path, step: int) -> None:
    """Drop the records after `step`, and a last line that a kill left half-written."""
    _cut(path, [end for row, end in _whole_lines(path) if row["step"] <= step])


def resume_jsonl(path: Path) -> list[dict]:
    """The rows of a file that goes on; a last line that a kill left half-written is cut off."""
    lines = _whole_lines(path)
    _cut(path, [end for _, end in lines])
    return [row for row, _ in lines]


def fill_jsonl(
    path: Path,
    total: int,
    title: str,
    console: Console,
    make: Callable[[range, Callable[[], None]], list[dict]],
) -> list[dict]:
    """The rows of items 0..total-1 in a file, a line an item, made in chunks by `make(items, check)`.

    Lines that are there already are kept, so that an interrupted command goes on without repeating or
    losing an item. A chunk is always the same items, whatever was there: it may be sampled with a seed of
    its own. `make` calls `check` now and then, which raises Interrupted after a signal.
    """
    rows = resume_jsonl(path)
    if len(rows) > total:
        raise UserError(
            f"{path}: {len(rows)} lines for {total} items: the data have changed; choose another --out"
        )
    with Signals() as signals, Bar(console, title, total, len(rows)) as bar:
        begun, before = time.perf_counter(), len(rows)
        while len(rows) < total:
            signals.check()
            start = len(rows) // CHUNK * CHUNK
            chunk = range(start, min(start + CHUNK, total))
            made = make(chunk, signals.check)
            assert len(made) == len(chunk)
            for row in made[len(rows) - start :]:
                append_jsonl(path, row)
                rows.append(row)
            pace = (len(rows) - before) / (time.perf_counter() - begun)
            bar.report(len(rows), {"items/s": f"{pace:.2f}"})
    return rows


def _whole_lines(path: Path) -> list[tuple[dict, int]]:
    """Rows of a JSONL file and where each ends, in bytes, up to the first line that is not whole."""
    whole, end = [], 0
    with path.open("rb") if path.is_file() else io.BytesIO() as file:
        for line in file:  # in bytes: only a line feed ends a line
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
            except ValueError:
                break
            end += len(line)
            whole.append((row, end))
    return whole


def _cut(path: Path, ends: list[int]) -> None:
    """Shorten a file to the last of these ends, in one step: a kill meanwhile loses nothing."""
    if path.is_file():
        os.truncate(path, max(ends, default=0))
