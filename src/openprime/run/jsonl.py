"""JSONL files that grow: appended to, cut off after a kill, filled item by item.

A line that is damaged is left out and said; what stands behind it is kept.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from openprime.run.console import Bar, Signals
from openprime.types import StorageError, UserError

CHUNK = 128
"""Items of a file that are made at a time: what a kill can cost."""


def append_jsonl(path: Path, row: dict) -> None:
    """Add a line to a file. Raises StorageError where it cannot be written."""
    _add(path, [row])


def _add(path: Path, rows: Sequence[dict]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error}): make room and go on with --resume"
        ) from error


def read_jsonl(path: Path) -> list[dict]:
    """The rows of a file; it may be growing."""
    return [row for row, *_ in _rows(path, unended=True)]


def keep_until(path: Path, step: int) -> None:
    """Drop the records after `step`, and a last line that a kill left half-written."""
    kept = [end for row, _, end, _ in _rows(path) if isinstance(row.get("step"), int) and row["step"] <= step]
    _cut(path, max(kept, default=0))


def fill_jsonl(
    path: Path,
    marks: Sequence[dict],
    title: str,
    console: Console,
    make: Callable[[range, Callable[[], None]], list[dict]],
) -> list[dict]:
    """The rows of items in a file, a line an item, made in chunks by `make(items, check)`.

    `marks`: keys and values of each item's row that no other item's has. Lines that are there already are kept, so
    that an interrupted command goes on without repeating or losing an item; one that is damaged is made again. A
    chunk is always the same items, whatever was there: it may be sampled with a seed of its own. `make` calls
    `check` now and then; a signal raises Interrupted within it, or there, and the chunk is lost.
    """
    total = len(marks)
    rows = resume_jsonl(path, marks)
    missing = rows.count(None)
    with Signals() as signals, Bar(console, title, total, total - missing) as bar:
        begun, before = time.perf_counter(), missing
        while missing:
            signals.check()
            start = rows.index(None) // CHUNK * CHUNK
            chunk = range(start, min(start + CHUNK, total))
            with signals.interruptible():
                made = make(chunk, signals.check)
            assert len(made) == len(chunk)
            new = [i for i in chunk if rows[i] is None]
            at_the_end = not any(rows[new[0] :])
            for i in new:
                rows[i] = made[i - start]
                if at_the_end:
                    append_jsonl(path, made[i - start])
            if not at_the_end:
                _write(path, [row for row in rows if row is not None])
            missing = rows.count(None)
            pace = (before - missing) / (time.perf_counter() - begun)
            bar.report(total - missing, {"items/s": f"{pace:.2f}"})
    return [row for row in rows if row is not None]


def resume_jsonl(path: Path, marks: Sequence[dict]) -> list[dict | None]:
    """The rows of a file that goes on, each at the place of its item; None where there is none.

    A last line that a kill left half-written is cut off. Raises UserError for a row of no item.
    """
    rows: list[dict | None] = [None] * len(marks)
    place, whole = 0, 0
    for row, _, end, line in _rows(path):
        if not marks[0].keys() <= row.keys():
            _say(path, line)
            continue
        place = next((i for i in range(place, len(marks)) if marks[i].items() <= row.items()), len(marks))
        if place == len(marks):
            raise UserError(
                f"{path}, line {line}: it is of none of the {len(marks)} items: the data have changed; choose "
                "another --out"
            )
        rows[place] = row
        place, whole = place + 1, end
    _cut(path, whole)
    return rows


def index_jsonl(path: Path, key: str) -> dict[str, int]:
    """The value of `key` in each row -> where its line begins, in bytes: for rows that memory should not hold.

    A last line that a kill left half-written is cut off.
    """
    places: dict[str, int] = {}
    whole = 0
    for row, begin, end, line in _rows(path):
        whole = end
        if isinstance(row.get(key), str):
            places[row[key]] = begin
        else:
            _say(path, line)
    _cut(path, whole)
    return places


def _rows(path: Path, unended: bool = False) -> Iterator[tuple[dict, int, int, int]]:
    """(row, where its line begins and ends in bytes, the line's number) of every line that is whole.

    `unended`: also of a last one without its line feed.
    """
    if not path.is_file():
        return
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):  # in bytes: only a line feed ends a line
            end += len(line)
            try:
                row = json.loads(line.lstrip(b"\0"))  # where the machine broke down a file can have zeros
            except (ValueError, RecursionError):
                row = None
            if not line.endswith(b"\n") and not (unended and isinstance(row, dict)):
                return  # a kill has left it half-written, or it is just being written
            if isinstance(row, dict):
                yield row, end - len(line), end, number
            elif line.strip():
                _say(path, number)


def _say(path: Path, line: int) -> None:
    print(f"note: {path}, line {line}: damaged, left out", file=sys.stderr, flush=True)


def _write(path: Path, rows: list[dict]) -> None:
    """Put rows in the place of a file's, in one step: a kill meanwhile loses nothing."""
    partial = path.with_name(f".partial-{path.name}")
    partial.unlink(missing_ok=True)
    _add(partial, rows)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _cut(path: Path, end: int) -> None:
    """Shorten a file, in one step: a kill meanwhile loses nothing."""
    if path.is_file():
        os.truncate(path, end)
