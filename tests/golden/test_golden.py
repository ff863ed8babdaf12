"""A short run of the tiny model against its recorded step, loss and reward.

After a change that is meant to change the numbers: GOLDEN=write pytest tests/golden
"""

import json
import os
from pathlib import Path

import pytest

from openprime.cli import main

RECORD = Path(__file__).parent / "tiny.jsonl"
SFT = "--data.horizon 2 --eval-data.source '' --data.limit 1000 --epochs 5 --new-model.hidden-size 64 --batch 32"
RL = "--data.horizon 2 --eval-data.source '' --steps 3 --rollout.prompts 8 --policy.minibatch 16 --data.limit 200"
DISTILL = f"{RL} --steps 2 --prm.minibatch 16 --policy.epochs 2"
SHOWN = ("sft/loss", "reward/outcome", "rollout/accuracy", "prm/loss", "policy/loss", "policy/grad_norm")


def test_tiny_run_is_the_recorded_one(tmp_path: Path):
    """SFT of some seconds, then three steps of PRIME and two of distillation."""
    flags = [word.strip("'") for word in SFT.split()]
    assert main(["sft", "configs/sft/tiny.yaml", "--out", str(tmp_path / "sft"), *flags]) == 0
    model = str(tmp_path / "sft" / "model")
    for name, file, words in (("rl", "tiny", RL), ("distill", "tiny-distill", DISTILL)):
        flags = ["--filter.low", "0", "--filter.high", "1", *(word.strip("'") for word in words.split())]
        command = ["rl", f"configs/rl/{file}.yaml", "--out", str(tmp_path / name), "--model", model]
        assert main([*command, *flags]) == 0
        assert not (tmp_path / name / "alarms.jsonl").exists()
    rows = []
    for stage in ("sft", "rl", "distill"):
        lines = (tmp_path / stage / "metrics.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        rows += [{k: row[k] for k in ("step", *SHOWN) if k in row} | {"stage": stage} for row in found]
    if os.environ.get("GOLDEN") == "write":
        RECORD.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recorded = [json.loads(line) for line in RECORD.read_text().splitlines()]
    assert len(rows) == len(recorded)
    for row, expected in zip(rows, recorded, strict=True):
        numbers = {k: v for k, v in row.items() if k != "stage"}
        assert row["stage"] == expected["stage"]
        assert numbers == pytest.approx(
            {k: v for k, v in expected.items() if k != "stage"}, rel=5e-3, abs=1e-4
        )
