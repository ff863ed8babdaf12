"""What the folders of runs say."""

import base64
import json
import struct
from pathlib import Path

import pytest
from scipy.stats import t as student

from openprime.evaluation import runs
from openprime.types import UserError
from support.sampled_runs import sampled_run


def read(*folders: Path) -> list[runs.Run]:
    return runs.read_runs(map(str, folders))


def test_lines_of__runs_that_differ_in_seeds_alone_are_one_line(tmp_path: Path):
    """Seeds in paths and of tasks are no difference; a setting is."""
    made = [
        sampled_run(
            tmp_path / f"prime-seed{s}", seed=s, model=f"m/sft-seed{s}/model", **{"data.task_seed": s}
        )
        for s in range(3)
    ]
    other = sampled_run(tmp_path / "outcome", algorithm="outcome")
    again = sampled_run(tmp_path / "again", algorithm="outcome")  # the same seed: two lines
    found = runs.lines_of(read(*made, other, again))
    assert [line.name for line in found] == ["prime (3 seeds)", "outcome", "again"]
    assert [len(line.runs) for line in found] == [3, 1, 1]
    assert runs.differences(found) == [
        ["model", "m/sft-*/model", "-", "-"],
        ["algorithm", "-", "outcome", "outcome"],
    ]


def test_curve__mean_with_its_interval_as_far_as_all_runs_have_come(tmp_path: Path):
    """Against the quantile of scipy."""
    made = read(*(sampled_run(tmp_path / f"s{s}", steps=2 + s, seed=s) for s in range(3)))
    (line,) = runs.lines_of(made)
    half = student.ppf(0.975, 2) * 0.01 / 3**0.5
    for step, (x, mean, low, high) in enumerate(line.curve("rollout/accuracy"), 1):
        assert (x, mean) == (8 * step, pytest.approx(step / 10 + 0.01))
        assert (low, high) == (pytest.approx(mean - half, rel=1e-3), pytest.approx(mean + half, rel=1e-3))
    assert len(line.curve("rollout/accuracy")) == 2


def test_t_quantiles__are_those_of_student():
    assert pytest.approx(student.ppf(0.975, range(1, 11)), abs=0.006) == list(runs.T_QUANTILES)


def test_packed__sixteen_bits_of_the_largest():
    values = [0.5, -2.0, 0.0, 1e-3]
    scale, text = runs.packed(values)
    whole = struct.unpack("<4h", base64.b64decode(text))
    assert [scale * number for number in whole] == pytest.approx(values, abs=2.0 / 32767 / 2)
    assert runs.packed([0.0, 0.0])[1] == base64.b64encode(bytes(4)).decode()


def test_samples_of__what_does_not_fit_is_left_out_evenly_and_said(tmp_path: Path):
    """Sixteen tokens a group; the last group stays."""
    made = read(sampled_run(tmp_path / "r", steps=7))
    for most, steps in ((112, [1, 2, 3, 4, 5, 6, 7]), (64, [1, 3, 5, 7]), (50, [1, 4, 7]), (1, [7])):
        found = runs.samples_of(made, ["r"], most)
        assert [group["step"] for group in found["runs"][0]["groups"]] == steps
        assert found["left_out"].startswith(f"{7 - len(steps)} groups" if len(steps) < 7 else "")


def test_samples_of__rows_of_another_kind_are_left_out(tmp_path: Path):
    folder = sampled_run(tmp_path / "r", steps=1)
    good = json.loads((folder / "samples.jsonl").read_text().splitlines()[0])
    changes = ({"rewards": [1]}, {"rewards": ["a"] * 4}, {"tokens": []}, {"step": "1"}, {"outcome": None})
    rows = [good | change for change in changes] + [{"step": 1}]
    with (folder / "samples.jsonl").open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    ((group,),) = (run["groups"] for run in runs.samples_of(read(folder), ["r"])["runs"])
    assert len(group["responses"]) == 4


def test_read_runs__a_run_that_has_just_begun_needs_no_metrics(tmp_path: Path):
    folder = sampled_run(tmp_path / "begun", steps=0)
    assert len(runs.read_runs([str(folder)], begun=False)) == 1
    with pytest.raises(UserError, match="begun: not a run's folder"):
        read(folder)
    assert runs.Run(str(tmp_path / "nowhere")).rows == []
