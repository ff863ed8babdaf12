"""A run that was stopped and resumed is the run that was not (trap 10), bit for bit."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from openprime.cli import main
from openprime.engines.transformers import TransformersEngine
from openprime.prime.rollouts import Rollouts
from openprime.run import checkpoint
from openprime.run.run import Run
from support.tiny_prm import save_prm
from support.tiny_runs import (
    SFT,
    assert_same_run,
    end,
    metrics,
    records,
    rl,
    rl_args,
    start,
    wait_for,
    weights,
)

SAVING = ("--save-every", "2", "--sample-every", "1", "--keep", "3")
STEPS = ("--steps", "4", *SAVING)
LONG = ("--steps", "8", *SAVING)
REWARDS = """
import os, time, zlib
from openprime.verifiers.math import verify_math
from openprime.types import Prompt

def score(prompts, completions, answer, **columns):
    time.sleep(float(os.environ.get("REWARD_SECONDS", 0)))
    prompt = Prompt("", (), prompts[0], answer[0])
    return [verdict.outcome for verdict in verify_math(prompt, completions)]

def thirds(prompts, completions, **columns):
    passes = zlib.crc32(prompts[0].encode()) % 3 == 0
    return [float(passes and len(text) % 2 == 0 or passes and i == 0) * (i < 3) for i, text in enumerate(completions)]
"""
KINDS = {
    "prime": (),
    "surplus": ("--rollout.prompts", "5", "--data.verifier", "my_rewards:thirds"),
    "step rewards, dpo, epochs": (
        *("--prm.loss", "dpo", "--advantage.granularity", "step", "--policy.epochs", "2"),
        *("--policy.schedule", "cosine", "--prm.schedule", "cosine", "--policy.warmup", "0.3"),
    ),
    "prefix, balanced": (
        *("--prm.loss", "prefix", "--prm.beta", "auto", "--prm.balance", "--advantage.scaling", "return"),
        *("--prm.reference", "policy", "--prm.minibatch", "4"),
    ),
    "distill": (
        *(
            "--algorithm",
            "distill",
            "--prm.minibatch",
            "4",
            "--policy.epochs",
            "2",
            "--distill.prm-epochs",
            "2",
            "--distill.replay",
            "2",
        ),
        *("--filter.low", "0", "--filter.high", "1"),
    ),
    "skill gate": ("--advantage.skill-gate", "--prm.lr", "1e-2"),
    "outcome": ("--algorithm", "outcome"),
    "epoch after epoch": ("--data.limit", "3", "--filter.low", "0", "--filter.high", "1"),
}
SLOW_KINDS = ("outcome", "epoch after epoch")


class Killed(BaseException):
    """Ends a run in this process as suddenly as a signal 9: nothing catches it."""


@pytest.fixture(scope="module", autouse=True)
def rewards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory, with reward functions: one takes as long as it is told, one decides itself
    which prompts pass the filter, whatever the model says."""
    folder, before = tmp_path_factory.mktemp("rewards"), Path.cwd()
    (folder / "my_rewards.py").write_text(REWARDS)
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def uninterrupted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Four steps without a stop, of each kind once."""
    done: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in done:
            done[kind] = rl(model, tmp_path_factory.mktemp("whole") / "run", *STEPS, *KINDS[kind])
        return done[kind]

    return run


@pytest.fixture
def killing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """Makes a function raise at its n-th call: before it, or after it has done its work."""

    def at(owner: object, name: str, call: int, after: bool = False) -> None:
        real, count = getattr(owner, name), [0]

        def counted(*args: object, **options: object) -> object:
            count[0] += 1
            if count[0] == call and not after:
                raise Killed
            result = real(*args, **options)
            if count[0] == call:
                raise Killed
            return result

        monkeypatch.setattr(owner, name, counted)

    yield at
    monkeypatch.undo()


def models(kind: str) -> tuple[str, ...]:
    """The folders with models that a run leaves."""
    return {"outcome": ("model",), "distill": ("model", "prm", "reference")}.get(kind, ("model", "prm"))


# Killed in this process, at moments chosen with care


def some_slow(names: Iterable[str], slow: Iterable[str]) -> list:
    """Parameters, some of them marked."""
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in names]


@pytest.mark.parametrize("kind", some_slow(KINDS, SLOW_KINDS))
def test_trap_10__a_killed_run_goes_on_exactly(
    model: Path, tmp_path: Path, uninterrupted: Callable, killing: Callable, monkeypatch, kind: str
):
    """Killed when step 3 is logged but not saved: the data cursor, the prompts put back, the pass rate, the
    PRM's optimiser and the schedules all come from the checkpoint of step 2."""
    whole = uninterrupted(kind)
    killing(Run, "_write", 4, after=True)  # the fourth record, after that of step 0
    with pytest.raises(Killed):
        main(rl_args(model, tmp_path / "run", *STEPS, *KINDS[kind]))
    monkeypatch.undo()
    assert [row["step"] for row in records(tmp_path / "run" / "metrics.jsonl")] == [0, 1, 2, 3]
    rl(model, tmp_path / "run", *STEPS, *KINDS[kind], "--resume")
    assert_same_run(tmp_path / "run", whole, *models(kind))


def test_resume__the_kinds_have_something_to_lose(uninterrupted: Callable):
    """Else the test above could pass with a state that is missing."""
    state = checkpoint.load_checkpoint(uninterrupted("surplus") / "checkpoints" / "step-000002")
    assert state["cursor"]["stream"]["returned"]
    assert 0 < state["cursor"]["pass_rate"] < 1
    assert state["cursor"]["rollouts"] > 2 * 5 * 4
    state = checkpoint.load_checkpoint(uninterrupted("prime") / "checkpoints" / "step-000002")
    assert state["method"]["optimizer"]["state"]
    assert state["method"]["updates"] == 2
    assert state["policy"]["updates"] == 4
    assert state["cursor"]["stream"]["cursor"] > 0


MOMENTS: dict[str, tuple[object, str, int, bool]] = {
    "before the first record": (Run, "_write", 1, False),
    "before anything was trained": (Rollouts, "collect", 1, False),
    "before the first checkpoint": (Run, "_write", 3, False),
    "in the first save": (checkpoint.os, "fsync", 1, False),
    "in a later save": (checkpoint.os, "fsync", 3, False),
    "saved, old ones not yet deleted": (checkpoint, "checkpoints", 2, False),
    "between sampling and training": (Rollouts, "collect", 3, True),
    "after the last save, before the export": (Run, "export", 1, False),
    "half-way through the export": (Run, "export", 2, False),
}


SLOW_MOMENTS = (
    "before the first record",
    "before anything was trained",
    "before the first checkpoint",
    "saved, old ones not yet deleted",
    "after the last save, before the export",
)


@pytest.mark.parametrize("moment", some_slow(MOMENTS, SLOW_MOMENTS))
def test_resume__a_run_goes_on_from_wherever_it_was_killed(
    model: Path, tmp_path: Path, uninterrupted: Callable, killing: Callable, monkeypatch, moment: str
):
    whole = uninterrupted("prime")
    killing(*MOMENTS[moment])
    with pytest.raises(Killed):
        main(rl_args(model, tmp_path / "run", *STEPS))
    monkeypatch.undo()
    rl(model, tmp_path / "run", *STEPS, "--resume")
    assert_same_run(tmp_path / "run", whole, "model", "prm")


def test_resume__a_record_cut_in_half_is_made_again(
    model: Path, tmp_path: Path, uninterrupted: Callable, killing: Callable, monkeypatch
):
    whole, run = uninterrupted("prime"), tmp_path / "run"
    killing(Run, "_write", 4, after=True)
    with pytest.raises(Killed):
        main(rl_args(model, run, *STEPS))
    monkeypatch.undo()
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text[:-20])
    with (run / "samples.jsonl").open("a") as file:
        file.write('{"step": 3, "prompt": "Start')
    rl(model, run, *STEPS, "--resume")
    assert_same_run(run, whole, "model", "prm")


@pytest.mark.slow
def test_resume__killed_twice(
    model: Path, tmp_path: Path, uninterrupted: Callable, killing: Callable, monkeypatch
):
    whole, run = uninterrupted("prime"), tmp_path / "run"
    for call, flags in ((4, ()), (1, ("--resume",))):  # after step 3, twice
        killing(Run, "_write", call, after=True)
        with pytest.raises(Killed):
            main(rl_args(model, run, *STEPS, *flags))
        monkeypatch.undo()
    rl(model, run, *STEPS, "--resume")
    assert_same_run(run, whole, "model", "prm")


def test_resume__a_finished_run_that_is_resumed_stays_as_it_is(
    model: Path, tmp_path: Path, uninterrupted: Callable
):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted("prime"), run)
    rl(model, run, *STEPS, "--resume")
    assert_same_run(run, uninterrupted("prime"), "model", "prm")


def test_resume__more_steps_go_on_where_the_last_ended(model: Path, tmp_path: Path, uninterrupted: Callable):
    """With a constant rate the number of steps changes nothing but the evaluation at the end."""
    run = rl(model, tmp_path / "run", *STEPS, "--steps", "3")
    rl(model, run, *STEPS, "--resume")
    ours, theirs = metrics(run), metrics(uninterrupted("prime"))
    assert ours[3].pop("eval/greedy") >= 0
    assert ours == theirs
    for name in ("model", "prm"):
        assert weights(run / name) == weights(uninterrupted("prime") / name)


def test_resume__how_often_one_saves_changes_nothing(model: Path, tmp_path: Path, uninterrupted: Callable):
    run = rl(model, tmp_path / "run", *STEPS, "--save-every", "1", "--keep", "1")
    assert_same_run(run, uninterrupted("prime"), "model", "prm")


# Stopped by a signal, in this process


@pytest.mark.parametrize(
    ("number", "owner", "name", "call", "saved"),
    [
        (signal.SIGTERM, Run, "_write", 1, 0),  # before the first step
        (signal.SIGTERM, Run, "_write", 4, 3),  # the step that is under way is finished and saved
        (signal.SIGINT, Run, "_write", 4, 3),
        (signal.SIGTERM, TransformersEngine, "_decode", 4, None),  # sampling
        (signal.SIGINT, TransformersEngine, "_decode", 4, None),
    ],
)
def test_resume__a_signal_saves_and_the_run_goes_on_exactly(
    model: Path,
    tmp_path: Path,
    uninterrupted: Callable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    number: signal.Signals,
    owner: type,
    name: str,
    call: int,
    saved: int | None,
):
    whole, run, count = uninterrupted("prime"), tmp_path / "run", [0]
    real = getattr(owner, name)

    def counted(*args: object, **options: object) -> object:
        count[0] += 1
        if count[0] == call:
            os.kill(os.getpid(), number)
        return real(*args, **options)

    monkeypatch.setattr(owner, name, counted)
    capsys.readouterr()
    assert main(rl_args(model, run, *STEPS)) == 128 + number
    monkeypatch.undo()
    said = capsys.readouterr()
    assert f"openprime: stopped by {number.name}" in said.err
    assert "Traceback" not in said.err
    last = checkpoint.checkpoints(run / "checkpoints")[-1]
    if saved is not None:
        assert last.name == f"step-{saved:06d}"
    assert metrics(run)[-1]["step"] == int(last.name.removeprefix("step-"))
    assert not (run / "model").exists()
    rl(model, run, *STEPS, "--resume")
    assert_same_run(run, whole, "model", "prm")


def test_resume__usr1_saves_after_the_step_and_the_run_goes_on(
    model: Path,
    tmp_path: Path,
    uninterrupted: Callable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    """In the third step, which would not be saved."""
    whole, run, count = uninterrupted("prime"), tmp_path / "run", [0]
    real = Run._write

    def counted(self: Run, values: dict) -> None:
        count[0] += 1
        if count[0] == 4:  # the fourth record, after that of step 0
            os.kill(os.getpid(), signal.SIGUSR1)
        real(self, values)

    monkeypatch.setattr(Run, "_write", counted)
    assert main(rl_args(model, run, *STEPS, "--save-every", "0")) == 0
    monkeypatch.undo()
    assert capsys.readouterr().out.count("saved after step 3, as SIGUSR1 asked\n") == 1
    assert_same_run(run, whole, "model", "prm")
    third, last = checkpoint.checkpoints(run / "checkpoints")
    assert (third.name, last.name) == ("step-000003", "step-000004")
    shutil.rmtree(last)
    rl(model, run, *STEPS, "--resume")
    assert_same_run(run, whole, "model", "prm")


# Killed and stopped for good: processes of their own


def slow_args(model: Path, out: Path) -> list[str]:
    """A run whose verifier takes its time when it is told to."""
    return rl_args(model, out, *LONG, "--data.verifier", "my_rewards:score")


@pytest.fixture(scope="module")
def long_run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps without a stop."""
    out = tmp_path_factory.mktemp("long") / "run"
    assert main(slow_args(model, out)) == 0
    return out


def kill_and_resume(model: Path, out: Path, rewards: Path, seconds: float) -> None:
    """Start in a process, kill it `seconds` after its first checkpoint, and go on in this process."""
    process = start(slow_args(model, out), cwd=rewards, REWARD_SECONDS="0.02")
    wait_for((out / "checkpoints" / "step-000002").exists, process)
    time.sleep(seconds)
    assert end(process, signal.SIGKILL)[0] == -signal.SIGKILL
    text = (out / "metrics.jsonl").read_text()
    assert 3 <= text.count("\n") < 9  # killed on the way
    assert not (out / "model").exists()
    assert main([*slow_args(model, out), "--resume"]) == 0


def test_trap_10__kill_9_at_any_moment_and_resume(model: Path, tmp_path: Path, rewards: Path, long_run: Path):
    seconds = random.uniform(0, 0.4)
    print(f"killed {seconds:.3f} s after the first checkpoint")
    kill_and_resume(model, tmp_path / "run", rewards, seconds)
    assert_same_run(tmp_path / "run", long_run, "model", "prm")


@pytest.mark.slow
def test_trap_10__kill_9_at_many_moments(model: Path, tmp_path: Path, rewards: Path, long_run: Path):
    for i in range(12):
        kill_and_resume(model, tmp_path / f"run{i}", rewards, 0.04 * i)
        assert_same_run(tmp_path / f"run{i}", long_run, "model", "prm")


@pytest.mark.slow
def test_resume__an_interrupt_from_outside_is_status_130_and_resume_is_exact(
    model: Path, tmp_path: Path, rewards: Path, long_run: Path
):
    out = tmp_path / "run"
    process = start(slow_args(model, out), cwd=rewards, REWARD_SECONDS="0.05")
    wait_for((out / "metrics.jsonl").exists, process)
    status, errors = end(process, signal.SIGINT)
    assert status == 130
    assert "saving first" in errors
    assert "stopped by SIGINT" in errors
    assert "Traceback" not in errors
    assert checkpoint.checkpoints(out / "checkpoints")
    assert main([*slow_args(model, out), "--resume"]) == 0
    assert_same_run(out, long_run, "model", "prm")


# Fine-tuning


SFT_FLAGS = ("--epochs", "0.4", "--save-every", "4", "--eval.every", "5")
"""12 steps."""


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SFT run without a stop."""
    out = tmp_path_factory.mktemp("sft") / "run"
    assert main([*SFT, *SFT_FLAGS, "--out", str(out)]) == 0
    assert len(records(out / "metrics.jsonl")) == 12
    return out


@pytest.mark.parametrize(
    ("owner", "name", "call", "after"),
    [
        (Run, "_write", 2, True),
        (Run, "_write", 10, True),
        (checkpoint.os, "fsync", 3, False),
        (Run, "export", 1, False),
    ],
)
def test_trap_10__fine_tuning_goes_on_exactly(
    tmp_path: Path, fine_tuned: Path, killing: Callable, monkeypatch, owner, name: str, call: int, after: bool
):
    args = [*SFT, *SFT_FLAGS, "--out", str(tmp_path / "run")]
    killing(owner, name, call, after)
    with pytest.raises(Killed):
        main(args)
    monkeypatch.undo()
    assert main([*args, "--resume"]) == 0
    assert_same_run(tmp_path / "run", fine_tuned, "model")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_resume__a_signal_stops_fine_tuning_with_a_checkpoint(
    tmp_path: Path, fine_tuned: Path, monkeypatch, capsys: pytest.CaptureFixture, number: signal.Signals
):
    args, count, real = [*SFT, *SFT_FLAGS, "--out", str(tmp_path / "run")], [0], Run._write

    def log(*arguments: object) -> None:
        count[0] += 1
        if count[0] == 7:
            os.kill(os.getpid(), number)
        real(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Run, "_write", log)
    assert main(args) == 128 + number
    monkeypatch.undo()
    assert "Traceback" not in capsys.readouterr().err
    assert checkpoint.checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step-000007"
    assert main([*args, "--resume"]) == 0
    assert_same_run(tmp_path / "run", fine_tuned, "model")


@pytest.mark.parametrize("stage", ["rl", "sft"])
def test_resume__a_stopped_run_says_how_to_go_on(
    model: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture, stage: str
):
    args = [*SFT, *SFT_FLAGS, "--out", str(tmp_path / "run")]
    if stage == "rl":
        args = rl_args(model, tmp_path / "run", *STEPS)
    real = Run._write

    def write(self: Run, values: dict[str, float]) -> None:
        if self.step_number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, values)

    monkeypatch.setattr(Run, "_write", write)
    capsys.readouterr()
    assert main(args) == 143
    said = capsys.readouterr()
    assert "--resume" in said.out + said.err


def test_resume__the_same_seed_fine_tunes_the_same_model(tmp_path: Path, fine_tuned: Path):
    for name, seed in (("same", "0"), ("other", "1")):
        assert main([*SFT, *SFT_FLAGS, "--out", str(tmp_path / name), "--seed", seed]) == 0
    assert_same_run(tmp_path / "same", fine_tuned, "model")
    assert metrics(tmp_path / "other") != metrics(fine_tuned)


# What is refused


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        (("--seed", "3"), "seed: 0 -> 3"),
        (("--prm.beta", "0.1"), "prm.beta: 0.3 -> 0.1"),
        (("--rollout.prompts", "3"), "rollout.prompts: 2 -> 3"),
        (("--data.limit", "50"), "data.limit: 100 -> 50"),
    ],
)
def test_resume__resuming_with_other_settings_is_refused_and_names_them(
    model: Path,
    tmp_path: Path,
    uninterrupted: Callable,
    capsys: pytest.CaptureFixture,
    flags: tuple,
    key: str,
):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted("prime"), run)
    assert main(rl_args(model, run, *STEPS, "--resume", *flags)) == 2
    said = capsys.readouterr().err
    assert f"was begun with other settings: {key}." in said
    assert "Traceback" not in said
    assert_same_run(run, uninterrupted("prime"), "model", "prm")


def test_resume__a_folder_in_use_is_refused_without_resume(
    model: Path, tmp_path: Path, uninterrupted: Callable, capsys: pytest.CaptureFixture
):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted("prime"), run)
    assert main(rl_args(model, run, *STEPS)) == 2
    assert f"{run} holds a run already: go on with --resume" in capsys.readouterr().err
    assert_same_run(run, uninterrupted("prime"), "model", "prm")


NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


@pytest.mark.parametrize("command", ["rl", "sft", "prm", "generate", "score", "evaluate"])
def test_resume__resuming_with_other_data_is_refused(
    command: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Under the same name: in another order, with another answer or response, with fewer rows or more."""
    source, out, small = (
        str(tmp_path / "d.jsonl"),
        ("--out", str(tmp_path / "run")),
        ("--max-response-tokens", "8"),
    )
    free = ("--filter.low", "0", "--filter.high", "1", "--data.source", source, "--data.limit", "0")
    args = {
        "rl": lambda: rl_args(model, tmp_path / "run", *free),
        "sft": lambda: [
            "sft",
            "--model",
            str(model),
            "--data.source",
            source,
            "--batch",
            "4",
            "--epochs",
            "1",
            *out,
        ],
        "prm": lambda: ["prm", "--model", str(model), "--data.source", source, "--batch", "4", *out],
        "generate": lambda: [
            "generate",
            str(model),
            "--data.source",
            source,
            "--responses",
            "1",
            *small,
            *out,
        ],
        "score": lambda: ["score", source, "--prm", str(save_prm(model, tmp_path / "prm")), *out],
        "evaluate": lambda: ["evaluate", str(model), "--benchmark", "gsm8k", "--data", source, *small, *out],
    }[command]()

    def write(rows: list[dict]) -> None:
        Path(source).write_text("".join(json.dumps(row) + "\n" for row in rows))

    rows = [
        {
            "prompt": f"Start two\n+{d} = ?\n+one = ?",
            "answer": str(i),
            "response": f"#### {i}",
            "label": i % 2,
        }
        for i, d in enumerate(NUMBERS)
    ]
    changed = {"rl": "answer", "generate": "answer", "evaluate": "answer", "prm": "label"}.get(
        command, "response"
    )
    other = [*rows[:-1], rows[-1] | {changed: "7.5" if changed != "label" else 0}]
    write(rows)
    assert main(args) == 0
    left = sorted((tmp_path / "run").rglob("*.jsonl"))
    before = [path.read_bytes() for path in left]
    more = [*rows, rows[0] | {"prompt": "more"}]
    for others in (rows[::-1], [*rows[1:], rows[0]], other, rows[:-1], more):
        if others is more and command in ("generate", "score"):  # what has come behind is done too
            continue
        write(others)
        assert main([*args, "--resume"]) == 2
        said = capsys.readouterr().err
        assert "was begun with other data" in said or "the data have changed" in said
        assert "Traceback" not in said
    assert [path.read_bytes() for path in left] == before
    for same in (rows, more) if command in ("generate", "score") else (rows,):
        write(same)
        assert main([*args, "--resume"]) == 0
