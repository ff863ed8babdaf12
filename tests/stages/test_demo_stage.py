"""`openprime demo`, whole."""

import json
from pathlib import Path

import pytest

from openprime.cli import main
from openprime.stages.demo import area


def test_the_area_is_the_mean_over_rollouts():
    assert area([(0, 0.5), (10, 0.5)]) == 0.5
    assert area([(0, 0.0), (10, 1.0)]) == 0.5
    assert area([(0, 0.0), (10, 1.0), (40, 1.0)]) == pytest.approx((5 + 30) / 40)


def test_a_folder_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "sft").mkdir()
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "holds a demo already" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_runs_whole_and_says_what_came_out(tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    for command in ("sft", "rl", "evaluate", "report"):
        assert f"$ openprime {command}" in said
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["runs"]) == {"prime", "outcome-only"}
    for run in summary["runs"].values():
        assert 0 <= run["start"] < run["final"]["eval/greedy"] <= 1  # both learn
        assert run["curve"][0][0] == 0
        assert len(run["curve"]) > 5
    assert summary["runs"]["prime"]["start"] == summary["runs"]["outcome-only"]["start"]
    assert "Held-out greedy accuracy from" in " ".join(said.split())
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(word in page for word in ("prime", "outcome-only", "Best of N"))
    assert summary["best_of_n"]["samples"] == 16
    for name in ("sft/model", "prime/model", "prime/prm", "outcome-only/model"):
        assert (out / name / "model.safetensors").is_file()
    assert not (out / "outcome-only" / "prm").exists()
