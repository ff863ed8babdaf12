"""A run's cadence, on a loop without a model: what is recorded, what is saved, and what an error or a signal leaves."""

import io
import json
import math
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from rich.console import Console

from openprime.config import PrimeConfig
from openprime.ranks import LostRankError
from openprime.run.checkpoint import checkpoints, load_checkpoint
from openprime.run.console import Interrupted
from openprime.run.jsonl import read_jsonl
from openprime.run.run import Run
from openprime.types import EngineError, Metrics, NonFiniteError, RunError, UserError


def config(folder: Path, **settings: object) -> PrimeConfig:
    """A configuration whose run lives in `folder`."""
    return PrimeConfig.model_validate({"model": "m", "out": str(folder), "data": {"source": "d"}} | settings)


class Number:
    """A part of a run: a number."""

    def __init__(self) -> None:
        self.value = 0

    def state(self) -> dict:
        return {"value": self.value}

    def restore(self, state: dict) -> None:
        self.value = state["value"]


def headline(metrics: Metrics) -> dict[str, str]:
    return {"x": f"{metrics['x']:g}"}


Hook = Callable[[str, int], None]


def nothing(place: str, step: int) -> None:
    """Happens at every place of the loop."""


def go(folder: Path, at: Hook = nothing, lines: int = 0, **settings: object) -> list[tuple[int, bool, bool]]:
    """Six steps of a loop: each takes ten items of data, and training adds 1 to the weights.

    `at` is called at its places. Returns (step, whether it was due every 4, and at the end only) of each.
    """
    weights, data, due = Number(), Number(), []
    with Run(config(folder, **settings), "rl") as run:
        fresh = run.begin({"weights": weights}, cursor=data)
        assert (weights.value, data.value) == (run.done, 10 * run.done)
        if fresh:
            with run.step(0), run.clock.phase("evaluate"):
                at("start", 0)
                run.log({"x": 0, "eval/greedy": 0})
        if run.unfinished:
            with run.step(run.done), run.measuring("evaluate"):
                at("again", run.done)
                run.log({"eval/greedy": run.done / 10})
        for step in run.steps(6, headline, lines):
            with run.step(step):
                data.value += 10
                at("sampling", step)
                with run.training(), run.clock.phase("step"):
                    weights.value += 1
                    at("training", step)
                run.log({"x": weights.value})
                run.sample([{"step": step}, {"step": step}])
                at("evaluation", step)
                with run.measuring("evaluate"):
                    at("measuring", step)
                    run.log({"eval/greedy": step / 10})
                due.append((step, run.due(4), run.due(0)))
        run.export("model", lambda out: (out / "x").write_text(str(weights.value)))
    return due


def steps(folder: Path, name: str = "metrics.jsonl") -> list[int]:
    """The steps that a record tells of."""
    return [row["step"] for row in read_jsonl(folder / name)]


def saved(folder: Path) -> dict[int, tuple[int, int]]:
    """Step of each checkpoint -> (weights, place in the data)."""
    found = map(load_checkpoint, checkpoints(folder / "checkpoints"))
    return {state["step"]: (state["weights"]["value"], state["cursor"]["value"]) for state in found}


def breaking(place: str, step: int, error: BaseException) -> Hook:
    """Raises the error at a place of the loop."""

    def at(now: str, number: int) -> None:
        if (now, number) == (place, step):
            raise error

    return at


def assert_goes_on(folder: Path) -> None:
    """Resumed, the run leaves what one without a stop leaves."""
    go(folder, resume=True)
    assert steps(folder) == list(range(7))
    rows = read_jsonl(folder / "metrics.jsonl")
    assert [row["x"] for row in rows] == list(range(7))
    assert [row["eval/greedy"] for row in rows if "eval/greedy" in row] == [step / 10 for step in range(7)]
    assert steps(folder, "samples.jsonl") == [step for step in range(1, 7) for _ in range(2)]
    assert saved(folder)[6] == (6, 60)
    assert (folder / "model" / "x").read_text() == "6"


# Without a stop


def test_run__a_step_is_recorded_timed_and_saved_when_due(tmp_path: Path, capsys: pytest.CaptureFixture):
    due = go(tmp_path, save_every=4, keep=9)
    assert_goes_on(tmp_path)  # a finished run stays as it is
    assert saved(tmp_path) == {4: (4, 40), 6: (6, 60)}
    assert [step for step, every, _ in due if every] == [4, 6]
    assert [step for step, _, last in due if last] == [6]
    first, *others = read_jsonl(tmp_path / "metrics.jsonl")
    assert set(first) == {"step", "x", "eval/greedy", "time/evaluate"}
    for row in others:
        assert row.keys() == {"step", "x", "time/step", "eval/greedy", "time/evaluate"}
        assert row["time/step"] > 0
    assert list((tmp_path / "tensorboard").glob("events.*"))
    said = capsys.readouterr().out
    assert "step 5: held-out accuracy, greedy 0.500" in said
    assert [line.split()[1] for line in said.splitlines() if line.startswith("rl ")] == [
        f"{step}/6" for step in range(1, 7)
    ]
    assert "resumed at step 6 from" in said


@pytest.mark.parametrize("terminal", [True, False])
def test_run__what_is_measured_before_the_first_step_is_said_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
):
    said = io.StringIO()
    console = Console(file=said, force_terminal=terminal, width=120)
    monkeypatch.setattr("openprime.run.run.plain_console", lambda quiet: console)
    with Run(config(tmp_path), "rl") as run:
        run.begin({"weights": Number()}, cursor=Number())
        with run.step(0), run.measuring("evaluate"):
            run.log({"x": 0})
    assert ("rl: evaluate" in said.getvalue()) is terminal


def test_run__what_is_measured_in_a_step_is_shown_on_its_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said = io.StringIO()
    console = Console(file=said, force_terminal=True, width=120)
    monkeypatch.setattr("openprime.run.run.plain_console", lambda quiet: console)
    asked: list[str] = []
    monkeypatch.setattr(console, "status", lambda text: nullcontext(asked.append(text)))
    go(tmp_path)
    assert "evaluate" in said.getvalue()
    assert asked == []  # one live line at a time


@pytest.mark.parametrize(
    ("lines", "told"), [(3, ["2/6", "4/6", "6/6"]), (4, [f"{n}/6" for n in range(1, 7)])]
)
def test_run_steps__about_so_many_lines_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture, lines: int, told: list[str]
):
    go(tmp_path, lines=lines)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in said if line.startswith("rl ")] == told


@pytest.mark.parametrize(("save_every", "kept"), [(0, [6]), (1, [5, 6]), (3, [3, 6])])
def test_run__saves_every_so_many_steps_and_at_the_end(tmp_path: Path, save_every: int, kept: list[int]):
    go(tmp_path, save_every=save_every, keep=2)
    assert list(saved(tmp_path)) == kept


def test_run__a_folder_in_use_is_refused(tmp_path: Path):
    go(tmp_path)
    with pytest.raises(UserError, match="holds a run already"):
        Run(config(tmp_path), "rl")


# Errors


GONE, BAD, FULL, STOPPED = EngineError("gone"), UserError("bad"), OSError("full"), KeyboardInterrupt()
LOST = LostRankError("rank 1 lost another rank")


@pytest.mark.parametrize(
    ("place", "step", "errors", "save_every", "kept", "recorded"),
    [
        # The state before the step, with the data's cursor of before: its prompts are drawn again.
        ("sampling", 1, (GONE,), 0, {0: (0, 0)}, 0),
        ("sampling", 4, (GONE, BAD, FULL, STOPPED), 0, {3: (3, 30)}, 3),
        # Within training weights are neither old nor new: nothing; records after the last checkpoint are made again.
        ("training", 3, (GONE, STOPPED), 0, {}, 2),
        ("training", 5, (GONE, BAD, FULL, STOPPED), 3, {3: (3, 30)}, 4),
        # After training the step; what was broken off when it was measured is measured again, and recorded then.
        ("measuring", 4, (GONE, STOPPED), 0, {4: (4, 40)}, 3),
        # Step 0 saves nothing; weights of lost ranks cannot be gathered.
        ("start", 0, (GONE,), 1, {}, -1),
        ("sampling", 2, (LOST,), 0, {}, 1),
        ("evaluation", 2, (LOST,), 0, {}, 1),
    ],
)
def test_run_step__an_error_leaves_what_is_whole_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture, place, step, errors, save_every, kept, recorded
):
    for i, error in enumerate(errors):
        folder = tmp_path / str(i)
        with pytest.raises(type(error)):
            go(folder, breaking(place, step, error), save_every=save_every)
        assert saved(folder) == kept
        assert not (folder / "model").exists()
        metrics = folder / "metrics.jsonl"
        rows = read_jsonl(metrics) if metrics.exists() else []
        assert [(row["step"], row["x"]) for row in rows] == [(n, n) for n in range(recorded + 1)]
        assert all(row["time/step"] > 0 for row in rows[1:])
        said = f"saved after step {max(kept, default=0)}; go on with --resume" in capsys.readouterr().out
        assert said == (place in ("sampling", "measuring") and error is not LOST)
        assert_goes_on(folder)


def test_run_step__an_error_behind_training_leaves_the_step_and_its_record(tmp_path: Path):
    with pytest.raises(EngineError):
        go(tmp_path, breaking("evaluation", 4, GONE))
    assert saved(tmp_path) == {4: (4, 40)}
    assert steps(tmp_path) == [0, 1, 2, 3, 4]
    assert go(tmp_path, resume=True)[0][0] == 5


def test_run_step__a_step_is_saved_once(tmp_path: Path):
    """The checkpoint that is there is not written again when the next step breaks off."""
    state, when = tmp_path / "checkpoints" / "step-000003" / "state.pt", []

    def at(place: str, step: int) -> None:
        if (place, step) == ("sampling", 4):
            when.append(state.stat().st_mtime_ns)
            raise GONE

    with pytest.raises(EngineError):
        go(tmp_path, at, save_every=3)
    assert when == [state.stat().st_mtime_ns]


@pytest.mark.parametrize("place", ["sampling", "training", "evaluation"])
@pytest.mark.parametrize("save_every", [0, 2])
def test_run_step__of_numbers_not_finite_names_the_step_and_the_way_back(tmp_path: Path, place, save_every):
    """Such weights are not worth keeping."""
    with pytest.raises(RunError) as error:
        go(tmp_path, breaking(place, 3, NonFiniteError("loss nan")), save_every=save_every)
    assert error.value.exit_code == 1
    last = tmp_path / "checkpoints" / "step-000002"
    way = f"The last good checkpoint is {last}." if save_every else "There is no checkpoint yet."
    assert str(error.value).startswith(f"step 3: loss nan. {way} Lower the learning rate")
    assert saved(tmp_path) == ({2: (2, 20)} if save_every else {})
    assert steps(tmp_path) == [0, 1, 2]


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("place", "step", "last", "recorded"),
    [
        # At once where nothing is lost by it.
        ("start", 0, None, -1),
        ("sampling", 1, 0, 0),
        ("sampling", 3, 2, 2),
        # After the training of a step, which is saved.
        ("training", 3, 3, 2),
        ("evaluation", 3, 3, 2),
        # What is measured is measured again; the step gets its record then.
        ("measuring", 3, 3, 2),
        ("measuring", 6, 6, 5),
    ],
)
def test_run__a_signal_ends_it_with_a_checkpoint(
    tmp_path: Path, number: signal.Signals, place: str, step: int, last: int | None, recorded: int
):

    def at(now: str, step_now: int) -> None:
        if (now, step_now) == (place, step):
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stop:
        go(tmp_path, at, save_every=0)
    assert stop.value.exit_code == 128 + number
    assert not (tmp_path / "model").exists()
    assert signal.getsignal(number) == before
    assert saved(tmp_path) == ({} if last is None else {last: (last, 10 * last)})
    assert (tmp_path / "metrics.jsonl").exists() == (recorded >= 0)
    assert steps(tmp_path) == list(range(recorded + 1))
    assert_goes_on(tmp_path)


def test_run__what_a_signal_broke_off_is_measured_until_it_is_done(tmp_path: Path):
    """A second signal breaks it off again; a kill behind it costs nothing."""

    def at(now: str, step: int) -> None:
        if (now, step) in (("measuring", 3), ("again", 3)):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        go(tmp_path, at)
    with pytest.raises(Interrupted):
        go(tmp_path, at, resume=True)
    assert steps(tmp_path) == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):  # behind the measure, before anything is saved
        go(tmp_path, breaking("training", 4, ZeroDivisionError()), resume=True)
    assert steps(tmp_path) == [0, 1, 2, 3]
    assert saved(tmp_path) == {3: (3, 30)}
    assert_goes_on(tmp_path)


# Records and exports


def test_run_log__records_are_plain_finite_numbers(tmp_path: Path):
    """JSON knows no NaN: strict readers (jq, JavaScript, DuckDB) refuse the whole line."""
    folder = tmp_path / "run"
    with Run(config(folder), "rl") as run:
        run.begin({})
        with run.step(0):
            run.log({"a/b": torch.tensor(0.5), "c": 3})  # pyright: ignore[reportArgumentType]
            run.log({"c": 4, "d": math.nan, "e": -math.inf})
    (line,) = (folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 0, "a/b": 0.5, "c": 4.0}


def log_records(log: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, which begins 7 bytes into the file: checksum, length, kind, part."""
    at, record = 7, b""
    while at + 7 <= len(log) + 7:
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15  # a block's end
            continue
        size, kind = struct.unpack_from("<4xHB", log, at - 7)
        record += log[at : at + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last of several
            yield record
            record = b""


def offline(folder: Path) -> list[dict]:
    """What a Weights & Biases run without a network has recorded: settings and metrics."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in sorted(folder.rglob("*.wandb")):
        for data in log_records(path.read_bytes()[7:]):
            record = Record.FromString(data)
            if record.HasField("run"):
                settings = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                found.append({"id": record.run.run_id, "project": record.run.project, **settings})
            elif record.HasField("history"):
                rows = record.history.item
                found.append({".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in rows})
    return found


def test_run__weights_and_biases_gets_settings_metrics_and_samples_and_a_resumed_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "run"
    row = {"prompt": [{"role": "user", "content": "2 + 2?"}], "outcome": 1.0, "reason": "right"}
    row |= {"tokens": ["4", " !"], "rewards": [0.5, -0.25], "truncated": False}
    for step in (1, 2):
        with Run(config(folder, wandb="project", resume=step > 1), "rl") as run:
            run.begin({})
            run.done = step - 1
            for number in run.steps(2, lambda metrics: {}):
                if number == step:
                    with run.step(number):
                        run.sample([row])
                        run.log({"a/b": number / 2, "d": math.nan})
    for _ in range(300):  # its own process goes on writing for a moment
        found = [r for r in offline(folder) if "id" in r or "a/b" in r]
        if len(found) == 4:
            break
        time.sleep(0.1)
    began, first, again, second = found
    assert began["id"] == again["id"]
    assert (began["project"], began["model"]) == ("project", "m")
    assert [(r["_step"], r["a/b"], "d" in r) for r in (first, second)] == [(1, 0.5, False), (2, 1.0, False)]
    tables = [json.loads(path.read_text()) for path in folder.rglob("samples*.table.json")]
    columns = ["prompt", "outcome", "reason", "tokens", "rewards", "truncated"]
    assert tables == 2 * [{"columns": columns, "data": [["user: 2 + 2?", 1.0, "right", "4 !", 0.25, False]]}]


def test_run__weights_and_biases_must_be_there_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"not installed: pip install 'openprime\[wandb\]'"):
        Run(config(tmp_path / "run", wandb="project"), "rl")
    assert not (tmp_path / "run").exists()


def test_run_sample__keeps_any_text(tmp_path: Path):
    run = Run(config(tmp_path), "rl")
    row = {"step": 1, "text": 'line\nline\u2028 "quoted" ✓ \x85'}
    run.sample([row, row])
    assert read_jsonl(tmp_path / "samples.jsonl") == [row, row]


def test_run_export__is_whole_or_absent(tmp_path: Path):
    run = Run(config(tmp_path), "rl")

    def write(folder: Path) -> None:
        (folder / "a").write_text("new")

    def fail(folder: Path) -> None:
        (folder / "b").write_text("half")
        raise OSError("disk full")

    for before in ([], ["a"]):
        with pytest.raises(OSError, match="disk full"):
            run.export("model", fail)
        assert [path.name for path in (tmp_path / "model").glob("*")] == before
        assert run.export("model", write) == tmp_path / "model"
        assert [path.name for path in (tmp_path / "model").iterdir()] == ["a"]
        assert not (tmp_path / ".partial-model").exists()
