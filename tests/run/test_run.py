"""A run's folder: its records, its signals, and what may change when it goes on."""

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from openprime.config import EvaluateConfig, GenerateConfig, PromptFormat, PrimeConfig, SFTConfig
from openprime.models.hub import read_format
from openprime.models.tiny import build_model, build_tokenizer
from openprime.run import run as run_module
from openprime.run.console import Clock, Interrupted, Signals
from openprime.run.jsonl import append_jsonl, fill_jsonl, keep_until, resume_jsonl
from openprime.run.run import Run, check_folder, flatten, open_folder


def config(folder: Path, **settings: object) -> PrimeConfig:
    """A configuration whose run lives in `folder`."""
    return PrimeConfig.model_validate({"model": "m", "out": str(folder), "data": {"source": "d"}} | settings)


def steps(path: Path) -> list[int]:
    """The steps that a record tells of."""
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


# The folder


def test_a_run_writes_down_what_it_was_told_and_made_with(tmp_path: Path):
    Run(config(tmp_path / "a" / "b", steps=7, prm={"beta": 0.3}), "rl")
    settings = yaml.safe_load((tmp_path / "a" / "b" / "config.yaml").read_text())
    assert PrimeConfig.model_validate(settings) == config(tmp_path / "a" / "b", steps=7, prm={"beta": 0.3})
    versions = json.loads((tmp_path / "a" / "b" / "versions.json").read_text())
    assert versions["stage"] == "rl"
    assert {"openprime", "torch", "transformers", "python", "platform"} <= set(versions)


def test_a_folder_in_use_is_refused(tmp_path: Path):
    Run(config(tmp_path), "rl")
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(
        ValueError, match=r"holds a run already: go on with --resume, or choose another --out"
    ):
        Run(config(tmp_path, steps=3), "rl")
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_resuming_what_has_not_begun_begins_it(tmp_path: Path):
    run = Run(config(tmp_path / "new", resume=True), "rl")
    assert run.load() is None
    assert run.step == 0


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"dtype": "bfloat16"}, "dtype: 'float32' -> 'bfloat16'"),
        ({"model": "other"}, "model: 'm' -> 'other'"),
        ({"prm": {"beta": 0.1}}, "prm.beta: 0.05 -> 0.1"),
        ({"rollout": {"prompts": 8}}, "rollout.prompts: 256 -> 8"),
        ({"data": {"source": "other"}}, "data.source: 'd' -> 'other'"),
        ({"advantage": {"whiten": True}}, "advantage.whiten: None -> True"),
    ],
)
def test_a_run_goes_on_with_the_settings_that_it_began_with(tmp_path: Path, settings: dict, key: str):
    Run(config(tmp_path), "rl")
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(ValueError) as error:
        Run(config(tmp_path, resume=True, **settings), "rl")
    assert "was begun with other settings: " + key + "." in str(error.value)
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_every_changed_setting_is_named(tmp_path: Path):
    Run(config(tmp_path), "rl")
    with pytest.raises(ValueError, match=r"settings: prm\.beta: 0\.05 -> 1\.0; seed: 0 -> 3|seed.*prm\.beta"):
        Run(config(tmp_path, resume=True, seed=3, prm={"beta": 1.0}), "rl")


@pytest.mark.parametrize(
    "settings", [{"steps": 1000}, {"save_every": 7}, {"keep": 9}, {"sample_every": 1}, {"wandb": "w"}]
)
def test_what_changes_no_result_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict):
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "wandb.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "installed")
    Run(config(tmp_path / "run"), "rl")
    Run(config(tmp_path / "run", resume=True, **settings), "rl")
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert all(kept[key] == value for key, value in settings.items())


def test_a_setting_that_a_newer_version_brings_is_not_taken_for_a_change_of_others(tmp_path: Path):
    """A run begun by an older version lacks a key; the others still meet their own values."""
    Run(config(tmp_path), "rl")
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del settings["prm"]["beta"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    with pytest.raises(ValueError) as error:
        Run(config(tmp_path, resume=True, seed=1), "rl")
    assert "seed: 0 -> 1" in str(error.value)
    assert "prm.loss" not in str(error.value)  # it has not changed
    assert "eval.every" not in str(error.value)


def test_the_order_of_settings_in_the_file_does_not_matter(tmp_path: Path):
    Run(config(tmp_path), "rl")
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=True))
    Run(config(tmp_path, resume=True), "rl")


def test_another_stage_cannot_go_on_with_a_run(tmp_path: Path):
    sft = SFTConfig.model_validate({"model": "m", "out": str(tmp_path), "data": {"source": "d"}})
    Run(sft, "sft")
    with pytest.raises(ValueError, match="begun with other settings"):
        Run(config(tmp_path, resume=True), "rl")


def test_another_command_cannot_go_on_with_a_folder_whatever_their_settings_have_in_common(tmp_path: Path):
    shared = {"model": "m", "out": str(tmp_path), "max_response_tokens": 8}
    open_folder(GenerateConfig.model_validate(shared | {"data": {"source": "d"}}), "generate")
    config = EvaluateConfig.model_validate(shared | {"benchmark": ("clock",), "resume": True})
    with pytest.raises(ValueError, match=r"other settings: command: 'generate' -> 'evaluate'"):
        check_folder(config, "evaluate")


def test_looking_at_a_folder_makes_nothing(tmp_path: Path):
    check_folder(config(tmp_path / "new"), "rl")
    assert not (tmp_path / "new").exists()
    open_folder(config(tmp_path / "new"), "rl")
    with pytest.raises(ValueError, match="holds a run already"):
        check_folder(config(tmp_path / "new"), "rl")
    check_folder(config(tmp_path / "new", resume=True), "rl")


# Files of items


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
    monkeypatch.setattr(run_module, "CHUNK", 4)
    rows = fill(tmp_path / "whole.jsonl", Maker())
    assert [row["item"] for row in rows] == list(range(10))
    return (tmp_path / "whole.jsonl").read_bytes()


def test_items_are_made_in_chunks(whole: bytes, tmp_path: Path):
    make = Maker()
    assert fill(tmp_path / "a.jsonl", make) == [json.loads(line) for line in whole.splitlines()]
    assert make.asked == [(0, 4), (4, 8), (8, 10)]


def test_a_file_that_was_cut_anywhere_is_filled_to_the_same_bytes(whole: bytes, tmp_path: Path):
    """Whatever of it a kill has left, in the middle of a character too; whole lines are not made again."""
    path = tmp_path / "cut.jsonl"
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        make = Maker()
        rows = fill(path, make)
        assert path.read_bytes() == whole
        assert [row["item"] for row in rows] == list(range(10))
        lines = whole[:length].count(b"\n")
        assert make.asked == [chunk for chunk in [(0, 4), (4, 8), (8, 10)] if chunk[1] > lines]


def test_a_line_that_is_no_json_ends_what_is_kept(whole: bytes, tmp_path: Path):
    lines = whole.splitlines(keepends=True)
    path = tmp_path / "torn.jsonl"
    path.write_bytes(b"".join([*lines[:3], b'{"item": \xff}\n', *lines[4:]]))
    fill(path, Maker())
    assert path.read_bytes() == whole


def test_a_signal_stops_between_chunks_and_nothing_is_lost(whole: bytes, tmp_path: Path):
    path = tmp_path / "stopped.jsonl"
    with pytest.raises(Interrupted) as stop:
        fill(path, Maker(stop=5))
    assert stop.value.exit_code == 128 + signal.SIGTERM
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:4])
    make = Maker()
    fill(path, make)
    assert make.asked == [(4, 8), (8, 10)]
    assert path.read_bytes() == whole


def test_more_lines_than_items_are_refused(whole: bytes, tmp_path: Path):
    with pytest.raises(ValueError, match=r"whole\.jsonl: 10 lines for 9 items: the data have changed"):
        fill(tmp_path / "whole.jsonl", Maker(), 9)
    assert (tmp_path / "whole.jsonl").read_bytes() == whole


def test_shortening_a_file_never_holds_it_empty(
    whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A kill in that moment would lose all that was done."""
    path = tmp_path / "kept.jsonl"
    path.write_bytes(whole + b'{"item": 1')

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("written anew")

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert len(resume_jsonl(path)) == 10
    assert path.read_bytes() == whole


# Records


def test_records_are_one_line_a_step_of_plain_numbers(tmp_path: Path):
    import torch

    run = Run(config(tmp_path), "rl")
    run.log(1, {"a/b": torch.tensor(0.5), "c": 3})  # pyright: ignore[reportArgumentType]
    run.log(2, {"a/b": 1e-9})
    run.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "a/b": 0.5, "c": 3.0},
        {"step": 2, "a/b": 1e-9},
    ]
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_samples_keep_any_text(tmp_path: Path):
    run = Run(config(tmp_path), "rl")
    row = {"step": 1, "text": 'line\nline\u2028 "quoted" ✓ \x85'}
    run.sample([row, row])
    text = (tmp_path / "samples.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.split("\n")[:-1]] == [row, row]


def test_later_records_are_cut_off_and_a_half_line_too(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    for step in range(6):
        append_jsonl(path, {"step": step, "x": step / 7})
    whole = path.read_text().splitlines(keepends=True)
    with path.open("a") as file:
        file.write('{"step": 6, "x": 0.1')
    keep_until(path, 3)
    assert path.read_text() == "".join(whole[:4])
    keep_until(path, 3)
    assert path.read_text() == "".join(whole[:4])
    keep_until(path, -1)
    assert path.read_text() == ""
    keep_until(tmp_path / "nowhere.jsonl", 3)
    assert not (tmp_path / "nowhere.jsonl").exists()


@pytest.mark.parametrize("text", ["a\u2028b", "a\x85b", "a\x0cb", "a\x1cb", "a\rb"])
def test_cutting_records_off_keeps_lines_with_odd_characters(tmp_path: Path, text: str):
    """A response may hold any character; only a line feed ends a record."""
    path = tmp_path / "samples.jsonl"
    for step in (1, 2, 3):
        append_jsonl(path, {"step": step, "tokens": [text]})
    keep_until(path, 2)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert rows == [{"step": step, "tokens": [text]} for step in (1, 2)]


def test_going_on_cuts_records_at_the_checkpoint(tmp_path: Path):
    run = Run(config(tmp_path), "rl")
    for step in range(6):
        run.log(step, {"x": step})
        run.sample([{"step": step}, {"step": step}])
        if step in (2, 4):
            run.save(step, {"n": step})
    run.close()
    again = Run(config(tmp_path, resume=True), "rl")
    state = again.load()
    assert state is not None
    assert (state["n"], again.step) == (4, 4)
    assert steps(tmp_path / "metrics.jsonl") == [0, 1, 2, 3, 4]
    assert steps(tmp_path / "samples.jsonl") == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_going_on_without_a_checkpoint_begins_the_records_anew(tmp_path: Path):
    run = Run(config(tmp_path), "rl")
    run.log(0, {"x": 1})
    run.log(1, {"x": 1})
    run.close()
    again = Run(config(tmp_path, resume=True), "rl")
    assert again.load() is None
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_step_is_saved_once(tmp_path: Path):
    run = Run(config(tmp_path), "rl")
    run.save(3, {"n": 1})
    run.save(3, {"n": 2})
    assert run_module.load_checkpoint(tmp_path / "checkpoints" / "step-000003")["n"] == 1


# Exports


def test_an_export_is_whole_or_absent(tmp_path: Path):
    run = Run(config(tmp_path), "rl")

    def write(folder: Path) -> None:
        (folder / "a").write_text("new")

    def fail(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run.export("model", fail)
    assert not (tmp_path / "model").exists()
    run.export("model", write)
    with pytest.raises(OSError, match="disk full"):
        run.export("model", fail)
    assert (tmp_path / "model" / "a").read_text() == "new"
    run.export("model", write)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["a"]
    assert not (tmp_path / ".partial-model").exists()


def test_a_model_remembers_how_it_was_asked(tmp_path: Path):
    """prompt_format.json: what evaluation needs to ask it in the same way."""
    tokenizer = build_tokenizer(["one two three"], 300)
    model = build_model(tokenizer, 8, 1, 2, 32, 0)
    asked = {"source": "d", "suffix": " Box it.", "system": "Be brief.", "template": "eurus", "limit": 3}
    run = Run(config(tmp_path, data=asked), "rl")
    folder = run.export_model("model", model, tokenizer, run.config.data)  # pyright: ignore
    form = {"system": "Be brief.", "suffix": " Box it.", "template": "eurus", "chat_template": "auto"}
    assert json.loads((folder / "prompt_format.json").read_text()) == form
    assert read_format(str(folder)) == PromptFormat.model_validate(form)
    (folder / "prompt_format.json").unlink()
    assert read_format(str(folder)) is None


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_raised_at_the_next_check(
    number: signal.Signals, capsys: pytest.CaptureFixture
):
    before = signal.getsignal(number)
    with Signals() as signals:
        signals.check()
        os.kill(os.getpid(), number)
        assert signals.received == number
        with pytest.raises(Interrupted, match=f"stopped by {number.name}") as stop:
            signals.check()
        assert stop.value.exit_code == 128 + number
    assert signal.getsignal(number) == before
    assert "saving first" in capsys.readouterr().err


def test_a_second_interrupt_stops_at_once():
    with Signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), Signals():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) == before


# The clock


def test_the_clock_adds_up_by_phase_and_begins_anew(monkeypatch: pytest.MonkeyPatch):
    now = iter([0.0, 1.0, 5.0, 7.0, 10.0, 14.0])
    monkeypatch.setattr(run_module.time, "perf_counter", lambda: next(now))
    clock = Clock()
    with clock.phase("a"):
        pass
    with clock.phase("b"):
        pass
    with pytest.raises(ZeroDivisionError), clock.phase("a"):
        raise ZeroDivisionError
    assert clock.take() == {"time/a": 5.0, "time/b": 2.0}
    assert clock.take() == {}


def test_settings_are_flattened_to_dotted_keys():
    assert flatten({"a": 1, "b": {"c": None, "d": {"e": [1]}}}) == [("a", 1), ("b.c", None), ("b.d.e", [1])]


def test_numbers_that_are_no_json_do_not_break_other_readers(tmp_path: Path):
    """JSON knows no NaN: strict readers (jq, JavaScript, DuckDB) refuse the whole line."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    run = Run(config(tmp_path), "rl")
    run.log(1, {"x": math.nan, "y": 1.0})
    run.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["y"] == 1.0
