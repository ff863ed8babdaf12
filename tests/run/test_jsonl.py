"""JSONL files that were cut anywhere are whole again afterwards, and nothing is made twice."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from openprime.run import jsonl
from openprime.run.console import Interrupted
from openprime.run.jsonl import append_jsonl, fill_jsonl, index_jsonl, keep_until, read_jsonl, resume_jsonl
from openprime.types import StorageError, UserError

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
    return fill_jsonl(path, [{"item": i} for i in range(total)], "items", Console(quiet=True), make)


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


DAMAGE = {
    "noise": b'{"item": \xff}\n',
    "half of it": b'{"item": 3, "chu\n',
    "nothing": b"\n",
    "null": b"null\n",
    "a number": b"17\n",
    "another object": b'{"mine": true}\n',
    "zeros": b"\0" * 40 + b"\n",
    "an open list": b"[" * 5000 + b"\n",
    "gone": b"",
}


@pytest.mark.parametrize("place", [0, 3, 4, 8])
@pytest.mark.parametrize("name", DAMAGE)
def test_fill_jsonl__a_damaged_line_is_made_again_and_nothing_else(
    whole: bytes, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, place: int
):
    lines = whole.splitlines(keepends=True)
    path, make = tmp_path / "torn.jsonl", Maker()
    path.write_bytes(b"".join([*lines[:place], DAMAGE[name], *lines[place + 1 :]]))
    assert [row["item"] for row in fill(path, make)] == list(range(10))
    assert path.read_bytes() == whole
    assert make.asked == [CHUNKS[place // 4]]
    said = f"note: {path}, line {place + 1}: damaged, left out\n"
    assert capsys.readouterr().err == (said if name not in ("nothing", "gone") else "")


def test_fill_jsonl__lines_run_together_cost_their_items_only(whole: bytes, tmp_path: Path):
    """A line feed that has changed makes one line of two; zeros before a line, as a machine may leave, cost none."""
    path, make = tmp_path / "torn.jsonl", Maker()
    lines = whole.splitlines(keepends=True)
    lines[2] = lines[2].replace(b"\n", b"x")
    lines[7] = b"\0" * 500 + lines[7]
    path.write_bytes(b"".join(lines[:9]))
    fill(path, make)
    assert path.read_bytes() == whole
    assert make.asked == [CHUNKS[0], CHUNKS[2]]


def test_fill_jsonl__a_kill_while_lines_are_made_again_loses_nothing(whole: bytes, tmp_path: Path):
    """At every moment the file has all rows that are known, or more."""
    lines = whole.splitlines(keepends=True)
    path = tmp_path / "torn.jsonl"
    path.write_bytes(b"".join([b"x\n", *lines[1:5], b"x\n", *lines[6:9]]))
    make, seen = Maker(), []

    def watching(items: range, check: Callable[[], None]) -> list[dict]:
        seen.append(path.read_bytes())
        return make(items, check)

    fill_jsonl(path, [{"item": i} for i in range(10)], "items", Console(quiet=True), watching)
    assert path.read_bytes() == whole
    assert [text.count(b'"item"') for text in seen] == [7, 8, 9]
    assert make.asked == CHUNKS


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


def test_fill_jsonl__lines_of_other_items_are_refused(whole: bytes, tmp_path: Path):
    with pytest.raises(UserError, match=r"whole\.jsonl, line 10: .* of none of the 9 items: the data"):
        fill(tmp_path / "whole.jsonl", Maker(), 9)
    lines = whole.splitlines(keepends=True)
    for text, line in ((lines[5] + lines[1], 2), (lines[0] + lines[0], 2), (b'{"item": 77}\n' + lines[1], 1)):
        (tmp_path / "other.jsonl").write_bytes(text)
        with pytest.raises(UserError, match=rf"other\.jsonl, line {line}: it is of none of the 10 items"):
            fill(tmp_path / "other.jsonl", Maker())
        assert (tmp_path / "other.jsonl").read_bytes() == text
    assert (tmp_path / "whole.jsonl").read_bytes() == whole


def test_append_jsonl__a_full_disk_is_one_line(tmp_path: Path):
    with pytest.raises(StorageError, match=r"^/dev/full cannot be written \(.*No space.*\): make room and"):
        append_jsonl(Path("/dev/full"), {"text": "x" * 100_000})


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
    assert len(resume_jsonl(path, [{}] * 10)) == 10
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


@pytest.mark.parametrize("name", [name for name in DAMAGE if name != "gone"])
def test_keep_until__a_damaged_line_loses_nothing_behind_it(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str
):
    path = tmp_path / "metrics.jsonl"
    for step in range(6):
        append_jsonl(path, {"step": step, "x": step / 7})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], DAMAGE[name], *lines[3:]]) + b'{"step": 6')
    keep_until(path, 4)
    capsys.readouterr()
    kept = [row["step"] for row in read_jsonl(path) if "step" in row]
    assert kept == [0, 1, 3, 4]
    quiet = name in ("nothing", "another object")
    assert capsys.readouterr().err == ("" if quiet else f"note: {path}, line 3: damaged, left out\n")
    append_jsonl(path, {"step": 5})
    assert [row["step"] for row in read_jsonl(path) if "step" in row] == [0, 1, 3, 4, 5]


def test_read_jsonl__a_file_that_is_being_written_is_read_as_far_as_it_goes(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    assert read_jsonl(path) == [
        {"step": 1},
        {"step": 2},
    ]  # a file that an editor left without the last line feed
    path.write_bytes(b'{"step": 1}\n{"step": 2')
    assert read_jsonl(path) == [{"step": 1}]
    assert read_jsonl(tmp_path / "nowhere.jsonl") == []


def test_index_jsonl__where_each_line_begins_and_the_half_one_cut_off(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"id": "ä"}\nbroken\n{"id": "b"}\n{"no": 1}\n{"id": "c"'.encode())
    assert index_jsonl(path, "id") == {"ä": 0, "b": 20}
    assert path.read_bytes().endswith(b'{"no": 1}\n')
    assert index_jsonl(tmp_path / "gone.jsonl", "id") == {}
