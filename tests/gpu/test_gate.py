"""The gate, part by part: on a GPU, and as far as a CPU can where there is none."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

GATE = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
PARTS = (
    *("precision", "attention", "head", "reads", "random_state", "padded", "shards", "logprobs"),
    *("prime", "outcome", "distill", "resume"),
)
FAST = ("precision", "attention", "head", "reads", "random_state", "padded")


def check(parts: tuple[str, ...], out: Path, *flags: str) -> None:
    """Every line that asks for something is as it must be."""
    command = [sys.executable, str(GATE), "--out", str(out), "--parts", *parts, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=590)
    assert (out / "gate.json").is_file(), done.stdout + done.stderr
    found = json.loads((out / "gate.json").read_text())["parts"]
    assert found.keys() == {*parts}
    for part, result in found.items():
        assert "error" not in result, f"{part}: {result}"
        assert not [line for line in result["rows"] if line["right"] is False], done.stdout
    assert done.returncode == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("part", [*PARTS, "liger", "vllm"])
def test_gate__on_a_gpu(part: str, tmp_path: Path):
    package = {"liger": "liger_kernel", "vllm": "vllm"}.get(part)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    check((part,), tmp_path)


@pytest.mark.slow
def test_gate__its_code_runs_on_a_cpu(tmp_path: Path):
    check(
        (*FAST, "shards", "logprobs", "outcome"),
        tmp_path,
        "--device",
        "cpu",
        "--shape",
        "tiny",
        "--steps",
        "2",
    )
