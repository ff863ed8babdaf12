"""Runs on several ranks, and what they have to leave."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openprime.run.checkpoint import checkpoints
from support.tiny_runs import PYTHONPATH, metrics, records, rl_args

NOISE = ("policy/mismatch_mean", "policy/mismatch_max", "policy/kl")
"""What is nothing but rounding, or is as small."""
FLAGS = (
    *("--steps", "3", "--rollout.prompts", "4", "--policy.minibatch", "8", "--policy.lr", "1e-4"),
    *("--save-every", "1", "--keep", "9", "--sample-every", "1"),
)
"""Three steps with the filter on; responses end after 5 to 16 tokens."""


def start(
    ranks: int,
    args: list[str],
    *how: str,
    program: tuple[str, ...] = ("-m", "openprime"),
    before: tuple[str, ...] = (),
    **environment,
):
    """The command on several ranks, in a session of its own; `before`: words of another command that starts it."""
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", str(ranks), *how)
    return subprocess.Popen(
        [*before, sys.executable, *(torchrun if ranks > 1 else ()), *program, *args],
        env=os.environ | PYTHONPATH | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> str:
    """What it said; it is killed, ranks and all, where it does not end."""
    try:
        return process.communicate(timeout=400)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def on_ranks(ranks: int, args: list[str], *how: str, **options) -> str:
    """Run the command on several ranks, which must succeed; returns what it said."""
    process = start(ranks, args, *how, **options)
    said = finish(process)
    assert process.returncode == 0, said
    return said


def assert_equal_to_rounding(got: Path, expected: Path) -> None:
    """The same metrics, samples and weights within 1e-5."""
    ours, theirs = metrics(got), metrics(expected)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == [0, 1, 2, 3]
    for row, other in zip(ours, theirs, strict=True):
        assert list(row) == list(other)
        for name, value in row.items():
            # At step 1 the PRM is its reference: noise alone orders its scores.
            if name not in NOISE and (row["step"], name) != (1, "prm/pairwise_accuracy"):
                assert value == pytest.approx(other[name], rel=1e-5, abs=1e-5), (row["step"], name)
    for row, other in zip(records(got / "samples.jsonl"), records(expected / "samples.jsonl"), strict=True):
        assert row["tokens"] == other["tokens"]
        assert row["rewards"] == pytest.approx(
            other["rewards"], rel=1e-4, abs=2e-5
        )  # five digits are written
    assert_equal_weights(got, expected)


def assert_equal_weights(got: Path, expected: Path) -> None:
    """The exported models, within 1e-5; they have learned more than that."""
    for name in ("model", "prm", "reference"):
        assert (got / name).exists() == (expected / name).exists()
        if (expected / name).exists():
            ours, theirs = (load_file(folder / name / "model.safetensors") for folder in (got, expected))
            assert ours.keys() == theirs.keys()
            for key, tensor in theirs.items():
                torch.testing.assert_close(ours[key], tensor, rtol=0, atol=1e-5)


def back_to(step: int, run: Path, out: Path) -> Path:
    """A copy of a run as it was when it had saved a step."""
    shutil.copytree(run, out)
    for name in ("model", "prm", "reference"):
        shutil.rmtree(out / name, ignore_errors=True)
    for path in checkpoints(out / "checkpoints"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    return out


def process_of(rank: int, agent: subprocess.Popen) -> int:
    """The process of one of torchrun's ranks."""
    for child in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"no rank {rank}")


def steps_saved(out: Path) -> list[str]:
    """Names of whole checkpoints."""
    return [path.name for path in checkpoints(out / "checkpoints")]


def start_by_hand(model: Path, *places: tuple[Path, tuple[str, ...]]) -> list[subprocess.Popen]:
    """Ranks started one by one, each with its own working directory and flags; the run is in `run` there."""
    common = {"WORLD_SIZE": str(len(places)), "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(free_port()), "LOCAL_RANK": "0"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "openprime", *rl_args(model, Path("run"), *FLAGS, *flags)],
            cwd=folder,
            env=os.environ | PYTHONPATH | common | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for rank, (folder, flags) in enumerate(places)
    ]


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """(status, what it said) of each."""
    said = [finish(process) for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
