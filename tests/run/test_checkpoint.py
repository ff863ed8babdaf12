"""Checkpoints: round trip, number kept, and the state after a full disk or a kill."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from openprime.run import checkpoint
from openprime.run.checkpoint import (
    SHARDS,
    Background,
    checkpoints,
    load_checkpoint,
    load_shards,
    save_checkpoint,
)
from openprime.types import StorageError


def draw() -> list[float]:
    """The next numbers of every global generator; the normal ones are made in pairs, one is kept back."""
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),  # noqa: NPY002
        float(np.random.randn()),  # noqa: NPY002
        float(torch.rand(())),
        float(torch.randn(())),
    ]


# Round trip


def test_load_checkpoint__gives_back_what_was_saved(tmp_path: Path):
    state = {
        "learner": {
            "model": {"w": torch.randn(3, 4), "b": torch.zeros(0)},
            "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(3, 4)}}},
            "updates": 17,
        },
        "collector": {"stream": {"returned": [4, 2], "epoch": 1}, "pass_rate": 0.1 + 0.2},
        "half": torch.randn(5).to(torch.bfloat16),
        "nothing": None,
        "text": "ok ✓",
    }
    path = save_checkpoint(tmp_path, 12, state, keep=2)
    assert path == tmp_path / "step-000012"
    loaded = load_checkpoint(path)
    assert loaded.pop("step") == 12
    assert loaded.pop("text") == state.pop("text")
    torch.testing.assert_close(loaded, state, rtol=0, atol=0)


@pytest.mark.parametrize("before", [0, 1])
def test_load_checkpoint__random_generators_go_on(tmp_path: Path, before: int):
    """Saving disturbs none. With an odd number of normal draws behind them, Python and numpy keep one back."""

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        for _ in range(before):
            draw()

    seed()
    expected = [draw() for _ in range(5)]
    seed()
    path = save_checkpoint(tmp_path, 1, {"x": torch.ones(3)}, keep=1)
    assert [draw() for _ in range(5)] == expected
    load_checkpoint(path)
    assert [draw() for _ in range(5)] == expected


# Which ones there are


def test_checkpoints__are_the_whole_ones_by_number(tmp_path: Path):
    for step in (999_999, 1_000_000, 2, 10):
        save_checkpoint(tmp_path, step, {}, keep=9)
    for name in (".partial-step-000011", "step-12", "step-abcdef", "step-000013.old", "notes"):
        (tmp_path / name).mkdir()
    steps = ["step-000002", "step-000010", "step-999999", "step-1000000"]
    assert [path.name for path in checkpoints(tmp_path)] == steps
    assert checkpoints(tmp_path / "nowhere") == []


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_save_checkpoint__keeps_the_last_ones(tmp_path: Path, keep: int):
    for step in range(1, 8):
        save_checkpoint(tmp_path, step, {"n": step}, keep)
        assert [load_checkpoint(p)["n"] for p in checkpoints(tmp_path)] == list(range(1, step + 1))[-keep:]
    save_checkpoint(tmp_path, 7, {"n": 70}, keep)  # replaces it
    assert [load_checkpoint(p)["n"] for p in checkpoints(tmp_path)] == [*range(1, 7), 70][-keep:]
    assert sorted(path.name for path in tmp_path.iterdir()) == [p.name for p in checkpoints(tmp_path)]


def test_save_checkpoint__a_partial_folder_is_not_in_the_way(tmp_path: Path):
    """A kill in the middle of a save leaves one."""
    save_checkpoint(tmp_path, 1, {"n": 1}, keep=1)
    partial = tmp_path / ".partial-step-000002"
    partial.mkdir()
    (partial / "state.pt").write_bytes(b"half")
    (partial / "other").write_bytes(b"")
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000001"]
    save_checkpoint(tmp_path, 2, {"n": 2}, keep=1)
    assert load_checkpoint(checkpoints(tmp_path)[-1])["n"] == 2
    assert not partial.exists()


def test_save_checkpoint__is_named_once_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Until the data are on the disk there is no folder of that name."""
    seen: list[bool] = []
    sync = os.fsync

    def watch(handle: int) -> None:
        seen.append((tmp_path / "step-000001").exists())
        sync(handle)

    monkeypatch.setattr(checkpoint.os, "fsync", watch)
    save_checkpoint(tmp_path, 1, {"w": torch.ones(1000)}, keep=1)
    assert seen[0] is False  # the file
    assert seen[-1] is True  # the folder, after the rename


# A full disk

FULL = """
import json, resource, signal, sys
from pathlib import Path
import torch
from openprime.run.checkpoint import checkpoints, load_checkpoint, save_checkpoint

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder, said = Path(sys.argv[1]), []
save_checkpoint(folder, 1, {"w": torch.arange(50_000.0)}, keep=1)
for limit in (0, 1_000, 100_000, 199_000):  # at the start, in the header, in the middle, near the end
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        save_checkpoint(folder, 2, {"w": torch.zeros(50_000)}, keep=1)
        error = None
    except OSError as failed:
        error = str(failed)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    kept = load_checkpoint(checkpoints(folder)[-1])
    said.append([error, sorted(path.name for path in folder.iterdir()), kept["step"], float(kept["w"].double().sum())])
save_checkpoint(folder, 2, {"w": torch.zeros(50_000)}, keep=1)
size, last = (folder / "step-000002" / "state.pt").stat().st_size, folder / "step-000003"
watching, busy, seen = True, False, []

def look(event, arguments):  # before every file is opened, made, moved or removed
    global busy
    if watching and not busy and event.startswith(("os.", "open", "shutil.")):
        busy = True
        file = last / "state.pt"
        seen.append([event, last.exists(), file.exists() and file.stat().st_size == size])
        busy = False

sys.addaudithook(look)
save_checkpoint(folder, 3, {"w": torch.zeros(50_000)}, keep=1)
watching = False
print(json.dumps([said, load_checkpoint(checkpoints(folder)[-1])["step"], seen]))
"""


def test_save_checkpoint__a_full_disk_or_a_kill_leaves_whole_checkpoints_only(tmp_path: Path):
    """The writes really fail: the process may write no more than so many bytes to a file."""
    command = [sys.executable, "-c", FULL, str(tmp_path / "checkpoints")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said, last, seen = json.loads(done.stdout)
    for error, names, step, total in said:
        assert error is not None
        assert str(tmp_path / "checkpoints" / "step-000002") in error
        assert "--resume" in error
        assert "\n" not in error
        assert names == ["step-000001"]  # no partial folder either
        assert step == 1
        assert total == sum(range(50_000))
    assert last == 3  # with room again, it works again
    # A kill between any two operations on files finds no checkpoint of that name, or a whole one.
    assert {event for event, _, _ in seen} >= {"os.mkdir", "os.rename"}
    assert all(whole == there for _, there, whole in seen), seen


# In the background


@pytest.fixture
def background(tmp_path: Path) -> Iterator[Background]:
    """A process group of one rank, which shards need."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield Background()
    dist.destroy_process_group()


def held(path: Path) -> list[float]:
    """The shards of a checkpoint, three zeros before."""
    state, tensor = load_checkpoint(path), torch.zeros(3)
    load_shards(state["policy"][SHARDS], {"w": tensor})
    return tensor.tolist()


def test_background__writes_what_was_there_before_training_went_on(
    tmp_path: Path, background: Background, monkeypatch: pytest.MonkeyPatch
):
    go_on, write = threading.Event(), checkpoint._write
    monkeypatch.setattr(checkpoint, "_write", lambda *args: go_on.wait(60) and write(*args))
    weights, position = torch.tensor([1.0, 2.0, 3.0]), [7]
    torch.manual_seed(5)
    state = {"policy": {"updates": 4, SHARDS: {"w": weights}}, "collector": position}
    path = save_checkpoint(tmp_path, 1, state, 1, background)
    weights.zero_()
    position.append(8)
    drawn = torch.rand(2)
    assert checkpoints(tmp_path) == []  # not before it is whole
    go_on.set()
    background.wait()
    assert checkpoints(tmp_path) == [path]
    assert held(path) == [1.0, 2.0, 3.0]
    assert torch.equal(torch.rand(2), drawn)
    assert load_checkpoint(path)["collector"] == [7]
    save_checkpoint(tmp_path, 2, state, 1, background)
    background.wait()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000002"]
    assert held(tmp_path / "step-000002") == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("part", ["shards", "state.pt"])
def test_background__a_full_disk_is_an_error_of_the_next_save(
    tmp_path: Path, background: Background, part: str
):
    small, large = torch.ones(3), torch.ones(2_000_000)
    save_checkpoint(tmp_path / "run", 1, {"policy": {SHARDS: {"w": small}}}, 1, background)
    background.wait()
    shard, rest = (large, small) if part == "shards" else (small, large)
    state = {"policy": {SHARDS: {"w": shard}}, "rest": rest}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        save_checkpoint(tmp_path / "run", 2, state, 1, background)
        with pytest.raises(
            StorageError, match=r"step-000002 could not be written .*previous checkpoint stays"
        ):
            background.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step-000001"]
    assert held(tmp_path / "run" / "step-000001") == [1.0, 1.0, 1.0]
    background.wait()  # said once


def test_save_checkpoint__a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(StorageError, match="checkpoints/step-000001 could not be written"):
        save_checkpoint(tmp_path / "checkpoints", 1, {}, keep=1)
    assert (tmp_path / "checkpoints").read_text() == "a file"


def test_load_checkpoint__runs_no_code(tmp_path: Path):
    class Trap:
        def __reduce__(self) -> tuple:
            return (exec, ("raise SystemExit('code was run')",))

    folder = tmp_path / "step-000001"
    folder.mkdir()
    torch.save({"step": 1, "random": Trap()}, folder / "state.pt")
    with pytest.raises(Exception, match="eights"):  # torch: "Weights only load failed"
        load_checkpoint(folder)
