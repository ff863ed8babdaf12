"""What `openprime rl` does when its engine is gone for good."""

from pathlib import Path

import pytest

from openprime.cli import main
from openprime.engines.transformers import TransformersEngine
from openprime.types import EngineError
from support.tiny_runs import assert_same_run, metrics, rl, rl_args

FLAGS = ("--steps", "3", "--save-every", "0", "--filter.low", "0", "--filter.high", "1", "--eval.every", "2")


@pytest.mark.parametrize(
    ("call", "saved"), [(3, 1), (4, 2)], ids=["sampling of step 2", "evaluation of step 2"]
)
def test_train__the_run_is_saved_says_so_and_goes_on(
    model: Path, tmp_path: Path, call: int, saved: int, monkeypatch, capsys
):
    """Calls of `generate`: evaluation, step 1, step 2, evaluation, step 3, evaluation."""
    calls = 0
    original = TransformersEngine.generate

    def generate(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            raise EngineError("it is gone")
        return original(self, *args, **kwargs)

    whole = rl(model, tmp_path / "whole", *FLAGS)
    with monkeypatch.context() as patch:
        patch.setattr(TransformersEngine, "generate", generate)
        assert main(rl_args(model, tmp_path / "cut", *FLAGS)) == 1
    said = capsys.readouterr()
    assert "it is gone" in said.err
    assert f"saved after step {saved}" in said.out
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == [f"step-{saved:06d}"]
    assert [row["step"] for row in metrics(tmp_path / "cut")] == [0, 1]
    cut = rl(
        model, tmp_path / "cut", *FLAGS, "--resume"
    )  # what was broken off at the end of step 2 is measured first
    assert_same_run(cut, whole, "model", "prm")
