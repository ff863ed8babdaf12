"""JSONL files that were cut anywhere are whole again afterwards, and nothing is made twice."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from openprime.run import jsonl
from openprime.run.console import Interrupted
from openprime.run.jsonl import append_jsonl, fill_jsonl, keep_until, read_jsonl, resume_jsonl
from openprime.types import UserError

CHUNKS = [(0, 4), (4, 8), (8, 10)]


class Maker:
    """Makes rows that tell of their chunk, and remembers which it was asked for; stops at an item."""

    def __init__(self, stop: int = 1000) -> None:
        self.asked: list[tuple[int, int]] = []
        self.stop = stop

    def __call__(self, items: range, check: Callable[[], None]) -> list[dict]:
        self.asked.append((items.start, items.stop))
        if self.stop in items:
            os.kill(os.getpid(), signal.SIGTERM)
        check()
        return [{"item": i, "chunk": items.start, "text": "é\u2028\x85"} for i in items]


def fill(path: Path, make: Maker, total: int = 10) -> list[dict]:
    """The rows of ten items, four at a time."""
    return fill_jsonl(path, total, "items", Console(quiet=True), make)


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A file that was filled without a break."""
    monkeypatch.setattr(jsonl, "CHUNK", 4)
    make, path = Maker(), tmp_path / "whole.jsonl"
    rows = fill(path, make)
    assert [row["item"] for row in rows] == list(range(10))
    assert rows == read_jsonl(path)
    assert make.asked == CHUNKS
    return path.read_bytes()


def test_fill_jsonl__a_file_that_was_cut_anywhere_is_filled_to_the_same_bytes(whole: bytes, tmp_path: Path):
    """Whatever of it a kill has left, in the middle of a character too; whole lines are not made again."""
    path = tmp_path / "cut.jsonl"
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        make = Maker()
        rows = fill(path, make)
        assert path.read_bytes() == whole
        assert [row["item"] for row in rows] == list(range(10))
        lines = whole[:length].count(b"\n")
        assert make.asked == [chunk for chunk in CHUNKS if chunk[1] > lines]


def test_fill_jsonl__a_line_that_is_no_json_ends_what_is_kept(whole: bytes, tmp_path: Path):
    lines = whole.splitlines(keepends=True)
    path = tmp_path / "torn.jsonl"
    path.write_bytes(b"".join([*lines[:3], b'{"item": \xff}\n', *lines[4:]]))
    fill(path, Maker())
    assert path.read_bytes() == whole


def test_fill_jsonl__a_signal_stops_between_chunks_and_nothing_is_lost(whole: bytes, tmp_path: Path):
    path = tmp_path / "stopped.jsonl"
    with pytest.raises(Interrupted) as stop:
        fill(path, Maker(stop=5))
    assert stop.value.exit_code == 128 + signal.SIGTERM
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:4])
    make = Maker()
    fill(path, make)
    assert make.asked == CHUNKS[1:]
    assert path.read_bytes() == whole


def test_fill_jsonl__more_lines_than_items_are_refused(whole: bytes, tmp_path: Path):
    with pytest.raises(UserError, match=r"whole\.jsonl: 10 lines for 9 items: the data have changed"):
        fill(tmp_path / "whole.jsonl", Maker(), 9)
    assert (tmp_path / "whole.jsonl").read_bytes() == whole


def test_resume_jsonl__never_holds_a_file_empty(
    whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A kill in that moment would lose all that was done: it is shortened, not written anew."""
    path, real = tmp_path / "kept.jsonl", Path.open
    path.write_bytes(whole + b'{"item": 1')

    def read_only(self: Path, mode: str = "r", *rest, **options):
        assert "w" not in mode, "written anew"
        return real(self, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", read_only)
    assert len(resume_jsonl(path)) == 10
    assert path.read_bytes() == whole


@pytest.mark.parametrize("text", ["plain", "a\u2028b", "a\x85b", "a\x0cb", "a\x1cb", "a\rb"])
def test_keep_until__cuts_later_rows_off_and_a_half_one_too(tmp_path: Path, text: str):
    """A response may hold any character; only a line feed ends a row."""
    path = tmp_path / "samples.jsonl"
    rows = [{"step": step, "tokens": [text], "x": step / 7} for step in range(6)]
    for row in rows:
        append_jsonl(path, row)
    with path.open("a") as file:
        file.write('{"step": 6, "x": 0.1')
    for step, kept in ((9, 6), (3, 4), (3, 4), (-1, 0)):
        keep_until(path, step)
        assert read_jsonl(path) == rows[:kept]
        assert path.read_bytes().count(b"\n") == kept
    keep_until(tmp_path / "nowhere.jsonl", 3)
    assert not (tmp_path / "nowhere.jsonl").exists()
