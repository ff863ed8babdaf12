"""`openprime demo`, whole."""

import json
from pathlib import Path

import pytest

from openprime.cli import main
from openprime.commands.demo import crossing, summarise, verdict


def test_crossing__is_reached_between_two_evaluations():
    assert crossing([(0, 0.5), (10, 0.5)], 0.9) is None
    assert crossing([(0, 0.95), (10, 1.0)], 0.9) == 0
    assert crossing([(0, 0.0), (10, 1.0)], 0.9) == 9
    assert crossing([(0, 0.0), (10, 0.8), (30, 1.0), (40, 0.0)], 0.9) == 20


def test_demo__folder_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "sft").mkdir()
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "holds a demo already" in capsys.readouterr().err


def fake(out: Path, prime: list[float], baseline: list[float], **chosen: float) -> Path:
    """What the demo's commands leave, as far as its summary reads it; distillation is at 1 at once."""
    for name, curve in (("prime", prime), ("distill", [prime[0], 1.0]), ("outcome-only", baseline)):
        (out / name).mkdir(parents=True)
        rows = [{"step": 0, "rollout/rollouts": 0.0, "eval/greedy": curve[0], "eval/avg@4": 0.25}]
        for step, value in enumerate(curve[1:], 1):
            rows.append(
                {"step": 2 * step - 1, "rollout/rollouts": 200.0 * step - 100, "rollout/accuracy": 0.5}
            )
            rows.append({"step": 2 * step, "rollout/rollouts": 200.0 * step, "eval/greedy": value})
        (out / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ways = {"majority vote": 0.5, "reference log-probability": 0.25, "PRM": 0.5, "PRM-weighted vote": 0.25}
    ways |= {name.replace("_", " "): value for name, value in chosen.items()}
    table = {name: {"1": [0.1, 0.0, 0.2], "8": [0.2, 0.1, 0.3], "16": [v, 0, 1]} for name, v in ways.items()}
    (out / "best-of-n").mkdir()
    results = {"model": "m", "prm": "p", "benchmarks": {"clock": {"samples": 16, "best_of_n": table}}}
    (out / "best-of-n" / "results.json").write_text(json.dumps(results))
    return out


def test_summarise__has_the_curves_and_the_choices(tmp_path: Path):
    summary = summarise(fake(tmp_path, [0.25, 0.5, 0.75], [0.25, 0.25, 0.5]))
    prime = summary["runs"]["prime"]
    assert prime["curve"] == [(0.0, 0.25), (200.0, 0.5), (400.0, 0.75)]
    assert (prime["start"], prime["final"]) == (0.25, {"eval/greedy": 0.75})
    assert summary["best_of_n"]["samples"] == 16
    assert json.loads(json.dumps(summary))["runs"]["outcome-only"]["final"] == {"eval/greedy": 0.5}


def test_verdict__has_a_line_for_every_run(tmp_path: Path):
    said = verdict(summarise(fake(tmp_path, [0.4, 0.6, 1.0], [0.4, 0.5, 0.75]))).splitlines()
    assert "0.400 at the start" in said[0]
    assert said[1] == "  PRIME: 0.9 after 350 rollouts, 1.000 at the end"
    assert said[2] == "  PRIME by distillation: 0.9 after 167 rollouts, 1.000 at the end"
    assert said[3] == "  outcome rewards alone: 0.9 not reached, 0.750 at the end"


def test_verdict__has_each_way_to_choose_with_the_largest_n(tmp_path: Path):
    said = verdict(summarise(fake(tmp_path, [0.1, 0.2], [0.1, 0.2], majority_vote=0.75))).splitlines()[-1]
    assert said == (
        "Best of 16 responses of the SFT model: PRM 0.500, majority vote 0.750, reference log-probability 0.250, "
        "PRM-weighted vote 0.250."
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_demo__runs_whole_and_says_what_came_out(tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    for command in ("sft", "rl", "evaluate", "report"):
        assert f"$ openprime {command}" in said
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["runs"]) == {"prime", "distill", "outcome-only"}
    for run in summary["runs"].values():
        assert 0 <= run["start"] < run["final"]["eval/greedy"] <= 1  # both learn
        assert run["curve"][0][0] == 0
        assert len(run["curve"]) > 5
    assert len({run["start"] for run in summary["runs"].values()}) == 1
    assert not list(out.glob("*/alarms.jsonl"))
    assert "Held-out greedy accuracy," in " ".join(said.split())
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(word in page for word in ("prime", "distill", "outcome-only", "Best of N"))
    assert summary["best_of_n"]["samples"] == 16
    for name in (
        "sft/model",
        "prime/model",
        "prime/prm",
        "distill/prm",
        "distill/reference",
        "outcome-only/model",
    ):
        assert (out / name / "model.safetensors").is_file()
    assert not (out / "outcome-only" / "prm").exists()
