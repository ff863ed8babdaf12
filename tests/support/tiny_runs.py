"""Runs small enough for tests: a model of 23,000 parameters, two operations a prompt, two prompts a step."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from openprime.cli import main

CLOCK = ("--data.source", "task:clock", "--data.horizon", "2", "--eval-data.horizon", "2")
SFT = (
    *("sft", "configs/sft/tiny.yaml", *CLOCK, "--data.limit", "600", "--eval-data.limit", "8"),
    *("--new-model.vocab-size", "300", "--new-model.hidden-size", "32", "--new-model.layers", "1"),
    *("--new-model.heads", "2", "--batch", "20", "--epochs", "3", "--optimizer.lr", "1e-2"),
    *("--eval.samples", "0", "--eval.max-response-tokens", "16"),
)
"""90 steps."""
RL = (
    *("rl", "configs/rl/tiny.yaml", *CLOCK, "--data.limit", "100", "--eval-data.limit", "6"),
    *("--rollout.prompts", "2", "--rollout.responses", "4", "--rollout.max-response-tokens", "16"),
    *("--filter.max-draws", "100", "--policy.minibatch", "4", "--policy.warmup", "0", "--policy.epochs", "1"),
    *("--policy.lr", "1e-3", "--eval.samples", "0", "--steps", "2", "--prm.warmup", "0"),
)
"""Two optimiser steps of the policy to a rollout step; held-out prompts only at the start and the end."""


TIMES = {"rollout/tokens_per_second", "verify/seconds"}
"""Metrics that depend on the clock, beside time/ and speed/."""

PYTHONPATH = {
    "PYTHONPATH": os.pathsep.join(
        str(Path(part).resolve()) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part
    )
}
"""Without relative folders, for a process with another working directory."""


@cache
def sft_model(root: Path) -> Path:
    """The model that every run starts from; about one sampled answer in ten is right."""
    out = root / "sft"
    assert main([*SFT, "--out", str(out)]) == 0
    return out / "model"


def rl_args(model: Path, out: Path, *flags: str) -> list[str]:
    """Arguments of a small RL run."""
    own = RL[:-2] if {"outcome", "raft"} & {*flags} else RL  # without a PRM's flag
    return [*own, "--model", str(model), "--out", str(out), *flags]


def rl(model: Path, out: Path, *flags: str) -> Path:
    """A small RL run in this process, which must succeed; returns its folder."""
    assert main(rl_args(model, out, *flags)) == 0
    return out


def records(path: Path) -> list[dict]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def metrics(folder: Path) -> list[dict]:
    """A run's metrics without what depends on the clock."""
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "speed/")) and k not in TIMES}
        for row in records(folder / "metrics.jsonl")
    ]


def weights(folder: Path) -> bytes:
    """The bytes of an exported model."""
    return (folder / "model.safetensors").read_bytes()


def assert_same_run(got: Path, expected: Path, *models: str) -> None:
    """Both runs left the same records and the same exported models, bit for bit, the clock apart."""
    ours, theirs = metrics(got), metrics(expected)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        assert list(map(repr, row.items())) == list(map(repr, other.items()))  # nan equals nan
    for name in ("samples.jsonl", "alarms.jsonl"):
        if (expected / name).exists():
            assert (got / name).read_text() == (expected / name).read_text()
    for name in models:
        assert weights(got / name) == weights(expected / name), f"{name}/ differs"


def start(args: list[str], cwd: Path | None = None, **environment: str) -> subprocess.Popen:
    """The command in a process of its own."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start what is in their background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        [sys.executable, "-m", "openprime", *args],
        cwd=cwd,
        env=os.environ | PYTHONPATH | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(ready: Callable[[], bool], process: subprocess.Popen, seconds: float = 120) -> None:
    """Wait until something is there, while the process lives."""
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, f"the process has ended:\n{process.communicate()}"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


def end(process: subprocess.Popen, number: signal.Signals) -> tuple[int, str]:
    """Send a signal and wait; returns the exit status and what was said on stderr."""
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


SMALL_CHUNKS = """
import sys
from openprime.cli import main
from openprime.run import jsonl

jsonl.CHUNK = 4
sys.exit(main(sys.argv[1:]))
"""


def start_in_chunks(args: list[str]) -> subprocess.Popen:
    """The command in a process of its own, which makes four items of a file at a time."""
    return subprocess.Popen(
        [sys.executable, "-c", SMALL_CHUNKS, *args],
        env=os.environ | PYTHONPATH,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(path: Path) -> int:
    """Whole lines of a file."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0
