"""A method is one class and one line: tests/support/toy_method.py is the class, here is the line."""

import inspect
from pathlib import Path

import pytest

from openprime.cli import main
from openprime.config import ALGORITHMS, OutcomeConfig
from support.tiny_runs import metrics, rl, rl_args, weights
from support.toy_method import RejectionSampling


@pytest.fixture(autouse=True)
def _one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(ALGORITHMS, "raft", (OutcomeConfig, "support.toy_method:RejectionSampling"))


def test_method__a_new_one_trains_resumes_and_exports(model: Path, tmp_path: Path):
    flags = ("--algorithm", "raft", "--save-every", "1", "--sample-every", "1")
    whole = rl(model, tmp_path / "whole", *flags, "--steps", "3")
    rows = metrics(whole)[1:]
    assert all(row["policy/loss"] > 0 and "advantage/std" not in row for row in rows)
    assert weights(whole / "model") != weights(model)
    assert not (whole / "prm").exists()
    part = rl(model, tmp_path / "part", *flags, "--steps", "2")
    rl(model, part, *flags, "--steps", "3", "--resume")
    assert metrics(part)[3] == rows[2]
    assert weights(part / "model") == weights(whole / "model")


def test_method__a_new_one_has_the_settings_of_its_schema(model: Path, tmp_path: Path, capsys):
    with pytest.raises(SystemExit):
        main(["rl", "--algorithm", "raft", "--help"])
    assert "--advantage.estimator" in capsys.readouterr().out
    assert main(rl_args(model, tmp_path / "run", "--algorithm", "rafts")) == 2
    assert "raft" in capsys.readouterr().err


def test_method__a_toy_takes_few_lines():
    assert len(inspect.getsource(RejectionSampling).splitlines()) < 15
