"""Checkpoints: round trip, number kept, and the state after a full disk or a kill."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from openprime.config import PrimeConfig
from openprime.run import checkpoint
from openprime.run.checkpoint import (
    SHARDS,
    Background,
    DamagedError,
    checkpoints,
    load_checkpoint,
    load_shards,
    resume,
    save_checkpoint,
)
from openprime.run.run import Run
from openprime.types import StorageError, UserError


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


def test_restore_random_state__of_a_machine_with_other_gpus(monkeypatch: pytest.MonkeyPatch):
    """Only that of the device in use is kept: all of them would not fit where there are fewer."""
    own, restored = torch.arange(16, dtype=torch.uint8), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: own)
    monkeypatch.setattr(torch.cuda, "set_rng_state", restored.append)
    state = checkpoint.random_state()
    checkpoint.restore_random_state(state)
    (found,) = restored
    assert torch.equal(found, own)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checkpoint.restore_random_state(state)  # on a CPU it means nothing
    assert len(restored) == 1
    assert len(checkpoint.random_state()["cuda"]) == 0


def test_checkpoints__are_the_whole_ones_by_number(tmp_path: Path):
    for step in (999_999, 1_000_000, 2, 10):
        save_checkpoint(tmp_path, step, {}, keep=9)
    for name in (".partial-step-000011", "step-12", "step-abcdef", "step-000013.old", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000014").write_text("a file")
    (tmp_path / "step-000015").symlink_to("step-000015")
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
    with pytest.raises(DamagedError, match="eights"):  # torch: "Weights only load failed"
        load_checkpoint(folder)


# Damage


class Weights:
    """A part of a run: a matrix and a count."""

    def __init__(self) -> None:
        self.matrix, self.count = torch.zeros(40, 50), 0

    def state(self) -> dict:
        return {"matrix": self.matrix.clone(), "count": self.count}

    def restore(self, state: dict) -> None:
        self.count = state["count"]
        self.matrix.copy_(state["matrix"])


class Place:
    """The place in the data."""

    def __init__(self) -> None:
        self.place = 0

    def state(self) -> dict:
        return {"place": self.place}

    def restore(self, state: dict) -> None:
        self.place = state["place"]


def go(folder: Path, last: int = 6, **settings: object) -> tuple[list[int], list[float]]:
    """A run of some steps, saved at each: the steps that were left, and numbers that tell of its whole state."""
    told = {"model": "m", "out": str(folder), "data": {"source": "d"}, "save_every": 1, "keep": 9}
    weights, place, left = Weights(), Place(), []
    torch.manual_seed(3)
    with Run(PrimeConfig.model_validate(told | settings), "rl") as run:
        run.begin({"weights": weights}, cursor=place)
        for step in run.steps(last, lambda metrics: {}):
            with run.step(step):
                place.place += 10
                with run.training():
                    weights.matrix += torch.randn(40, 50)
                    weights.count += 1
            left.append(step)
    return left, [float(weights.matrix.sum()), weights.count, place.place]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A run of six steps, and what it came to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    left, came_to = go(folder)
    assert left == [1, 2, 3, 4, 5, 6]
    return folder, came_to


def content(change: Callable[[dict], Any]) -> Callable[[Path], None]:
    """A checkpoint whose state is another, rightly written."""

    def damage(folder: Path) -> None:
        state = torch.load(folder / "state.pt", weights_only=True)
        torch.save(change(state), folder / "state.pt")

    return damage


def in_bytes(change: Callable[[bytearray], bytes]) -> Callable[[Path], None]:
    """A checkpoint with other bytes in its file."""

    def damage(folder: Path) -> None:
        file = folder / "state.pt"
        file.write_bytes(change(bytearray(file.read_bytes())))

    return damage


def flipped(mark: bytes) -> Callable[[Path], None]:
    """One bit, ten bytes behind the last place of a mark."""

    def change(data: bytearray) -> bytes:
        data[data.rindex(mark) + len(mark) + 10] ^= 4
        return bytes(data)

    return in_bytes(change)


def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else where state.pt was."""

    def damage(folder: Path) -> None:
        (folder / "state.pt").unlink()
        make(folder / "state.pt")

    return damage


def of_another(**settings: object) -> Callable[[Path], None]:
    """The checkpoint of another run, of the same step."""

    def damage(folder: Path) -> None:
        other = folder.parents[2] / "other"
        go(other, **settings)
        shutil.rmtree(folder)
        shutil.copytree(other / "checkpoints" / "step-000006", folder)

    return damage


def older(folder: Path) -> None:
    shutil.copy(folder.with_name("step-000004") / "state.pt", folder / "state.pt")


def of_words(folder: Path) -> None:
    (folder / "state.pt").write_text("hello\nworld\n")


def of_numpy(state: dict) -> dict:
    return state | {"random": state["random"] | {"torch": torch.zeros(3)}}


DAMAGE: dict[str, Callable[[Path], None]] = {
    "empty": in_bytes(lambda data: b""),
    "one byte": in_bytes(lambda data: bytes(data[:1])),
    "the first half": in_bytes(lambda data: bytes(data[: len(data) // 2])),
    "the second half": in_bytes(lambda data: bytes(data[len(data) // 2 :])),
    "a byte less": in_bytes(lambda data: bytes(data[:-1])),
    "zeros": in_bytes(lambda data: bytes(len(data))),
    "zeros at the end": in_bytes(lambda data: bytes(data[:-5000]) + bytes(5000)),
    "noise": in_bytes(lambda data: random.Random(1).randbytes(len(data))),
    "text": of_words,
    "a bit of the list of files": flipped(b"data/0"),
    "a bit of a tensor": in_bytes(lambda data: bytes(data[:3000] + bytes([data[3000] ^ 1]) + data[3001:])),
    "a bit of the pickle": in_bytes(lambda data: bytes(data).replace(b"matrix", b"metrix", 1)),
    "no state.pt": instead(lambda file: None),
    "a folder": instead(lambda file: file.mkdir()),
    "a link to itself": instead(lambda file: file.symlink_to(file)),
    "a link to nowhere": instead(lambda file: file.symlink_to("nowhere")),
    "a pipe": instead(lambda file: os.mkfifo(file)),
    "a list": content(lambda state: [1, 2]),
    "a tensor": content(lambda state: torch.zeros(3)),
    "nothing": content(lambda state: {}),
    "no step": content(lambda state: {k: v for k, v in state.items() if k != "step"}),
    "a step of text": content(lambda state: state | {"step": "6"}),
    "no weights": content(lambda state: {k: v for k, v in state.items() if k != "weights"}),
    "no place": content(lambda state: {k: v for k, v in state.items() if k != "cursor"}),
    "no generators": content(lambda state: {k: v for k, v in state.items() if k != "random"}),
    "generators of text": content(lambda state: state | {"random": "seed"}),
    "a generator of another size": content(of_numpy),
    "weights of null": content(lambda state: state | {"weights": None}),
    "weights of a list": content(lambda state: state | {"weights": [1]}),
    "a matrix of text": content(lambda state: state | {"weights": {"matrix": "0", "count": 6}}),
    "another shape": content(lambda state: state | {"weights": {"matrix": torch.zeros(7), "count": 6}}),
    "settings of text": content(lambda state: state | {"settings": "all"}),
    "another step's": older,
    "another seed's": of_another(seed=1),
    "another model's": of_another(model="n"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_run__a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    whole: tuple[Path, list[float]], tmp_path: Path, capsys: pytest.CaptureFixture, name: str
):
    folder, last = tmp_path / "it" / "run", tmp_path / "it" / "run" / "checkpoints" / "step-000006"
    shutil.copytree(whole[0], folder)
    DAMAGE[name](last)
    out = {"out": str(folder)}
    capsys.readouterr()
    left, came_to = go(folder, resume=True, **out)
    assert left == [6]
    assert came_to == whole[1]  # to the last bit, generators included
    said = capsys.readouterr()
    (line,) = [line for line in said.out.splitlines() if "note:" in line]
    assert line.startswith(f"note: checkpoint {last} is damaged (")
    assert line.endswith("): set aside as step-000006.damaged; going on from step-000005")
    assert "Traceback" not in said.out + said.err
    assert "resumed at step 5 from" in said.out
    assert load_checkpoint(last)["step"] == 6  # written anew
    assert go(folder, resume=True, **out) == ([], whole[1])
    shutil.rmtree(folder / "checkpoints")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_run__a_checkpoint_that_may_not_be_read_is_named(whole: tuple[Path, list[float]], tmp_path: Path):
    shutil.copytree(whole[0], tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-000006" / "state.pt").chmod(0)
    assert go(tmp_path / "run", resume=True) == ([6], whole[1])


def test_run__any_byte_that_has_changed_is_found_or_has_no_effect(
    whole: tuple[Path, list[float]], tmp_path: Path
):
    """300 places in a checkpoint's file: it is damaged, or read as it was."""
    path, draw = tmp_path / "step-000006", random.Random(0)
    shutil.copytree(whole[0] / "checkpoints" / "step-000006", path)
    data, expected = (path / "state.pt").read_bytes(), load_checkpoint(path)
    found = 0
    for place in (draw.randrange(len(data)) for _ in range(300)):
        (path / "state.pt").write_bytes(
            data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :]
        )
        try:
            torch.testing.assert_close(load_checkpoint(path), expected, rtol=0, atol=0)
        except DamagedError:
            found += 1
    assert found > 200


def test_run__where_no_checkpoint_is_left_it_says_what_to_do(whole: tuple[Path, list[float]], tmp_path: Path):
    folder = tmp_path / "it" / "run"
    shutil.copytree(whole[0], folder)
    metrics = (folder / "metrics.jsonl").read_bytes()
    for path, damage in zip(checkpoints(folder / "checkpoints"), list(DAMAGE.values())[:6], strict=True):
        damage(path)
    with pytest.raises(
        UserError,
        match=r"step-000006 is damaged \(.*\); nor can any of the 5 before it be used: put back a copy .*--out$",
    ) as error:
        go(folder, resume=True)
    assert "\n" not in str(error.value)
    assert (folder / "metrics.jsonl").read_bytes() == metrics  # nothing has been touched
    assert len(checkpoints(folder / "checkpoints")) == 6


def test_run__what_lies_beside_checkpoints_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Files and folders of any name: the run saves, keeps as many as it should, and goes on."""
    folder = tmp_path / "run"
    beside = folder / "checkpoints"
    for name in ("notes", "step-7", "step-000009.old", "step-999999"):
        (beside / name).mkdir(parents=True)
    (beside / "step-999999" / "a.txt").write_text("mine")
    for name in ("step-000002", "step-000003", ".partial-step-000004", "readme.txt", "step-abc"):
        (beside / name).write_text("mine")
    (beside / "step-000005").symlink_to("nowhere")
    (beside / "step-000008").symlink_to("step-000008")
    assert go(folder, 4, keep=2)[0] == [1, 2, 3, 4]
    assert [p.name for p in checkpoints(beside)] == ["step-000003", "step-000004", "step-999999"]
    assert go(folder, keep=2, resume=True)[0] == [5, 6]
    assert "step-999999 is damaged (there is no state.pt)" in capsys.readouterr().out
    assert [p.name for p in checkpoints(beside)] == ["step-000005", "step-000006"]
    assert (beside / "step-999999.damaged" / "a.txt").read_text() == "mine"
    assert (beside / "readme.txt").read_text() == "mine"


def test_run__checkpoints_of_an_earlier_run_are_not_taken_for_its_own(tmp_path: Path):
    """Only the folder's settings were removed: the new run writes its own."""
    go(tmp_path / "run", 2, seed=5)
    (tmp_path / "run" / "config.yaml").unlink()
    _, came_to = go(tmp_path / "run", 2)
    assert go(tmp_path / "run", 2, resume=True) == ([], came_to)


def shard_file(folder: Path) -> Path:
    return next((folder / SHARDS).glob("*.distcp"))


def metadata_flipped(folder: Path) -> None:
    data = bytearray((folder / SHARDS / ".metadata").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / SHARDS / ".metadata").write_bytes(data)


def shard_flipped(folder: Path) -> None:
    data = bytearray(shard_file(folder).read_bytes())
    data[len(data) // 2] ^= 1
    shard_file(folder).write_bytes(data)


SHARD_DAMAGE: dict[str, Callable[[Path], object]] = {
    "no shards": lambda folder: shutil.rmtree(folder / SHARDS),
    "a shard is missing": lambda folder: shard_file(folder).unlink(),
    "a shard is empty": lambda folder: shard_file(folder).write_bytes(b""),
    "half a shard": lambda folder: os.truncate(shard_file(folder), shard_file(folder).stat().st_size // 2),
    "a bit of a shard": shard_flipped,
    "no metadata": lambda folder: (folder / SHARDS / ".metadata").unlink(),
    "a bit of the metadata": metadata_flipped,
    "empty metadata": lambda folder: (folder / SHARDS / ".metadata").write_bytes(b""),
    "metadata only": lambda folder: (shard_file(folder).unlink(), (folder / "state.pt").unlink()),
    "of another size": lambda folder: save(folder.parent, 2, torch.ones(4)),
    "of another name": lambda folder: save(folder.parent, 2, torch.ones(300), "v"),
}


def save(folder: Path, step: int, weights: torch.Tensor, name: str = "w") -> Path:
    return save_checkpoint(folder, step, {"policy": {"n": step, SHARDS: {name: weights}}}, 9)


@pytest.mark.parametrize("name", SHARD_DAMAGE)
def test_resume__damaged_shards_are_named_and_the_ones_before_them_used(
    tmp_path: Path, background: Background, name: str
):
    save(tmp_path / "c", 1, torch.arange(300.0))
    SHARD_DAMAGE[name](save(tmp_path / "c", 2, torch.zeros(300)))
    held, said = torch.full((300,), 7.0), []

    def restore(state: dict) -> None:
        load_shards(state["policy"][SHARDS], {"w": held})

    assert resume(tmp_path / "c", {}, restore, said.append) == tmp_path / "c" / "step-000001"
    assert torch.equal(held, torch.arange(300.0))
    (line,) = said
    assert line.startswith(f"checkpoint {tmp_path}/c/step-000002 is damaged (")
    assert "\n" not in line
