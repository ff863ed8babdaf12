"""`openprime sft`: from demonstrations to a model."""

import json
import math
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from openprime.cli import main
from openprime.commands.sft import rows_of_step
from support.tiny_runs import SFT, records, weights


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine steps on 60 rows, three epochs."""
    out = tmp_path_factory.mktemp("tuned") / "run"
    assert (
        main([*SFT, "--data.limit", "60", "--eval.every", "4", "--eval.samples", "2", "--out", str(out)]) == 0
    )
    return out


def test_metrics_have_their_names_and_are_finite(tuned: Path):
    rows = records(tuned / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 10))
    for row in rows:
        assert {"sft/loss", "sft/grad_norm", "sft/lr", "sft/tokens", "time/step"} <= set(row)
        assert all(math.isfinite(value) for value in row.values())
        assert ("eval/greedy" in row) == ("eval/avg@2" in row) == (row["step"] in (4, 8, 9))
    assert rows[-1]["sft/loss"] < rows[0]["sft/loss"]
    assert rows[0]["sft/loss"] == pytest.approx(math.log(300), rel=0.3)


def test_the_model_loads_and_speaks(tuned: Path):
    tokenizer = AutoTokenizer.from_pretrained(tuned / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tuned / "model")
    assert sum(p.numel() for p in loaded.parameters()) < 30_000
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokenizer("Zoë\n\t∑").input_ids) == "Zoë\n\t∑"


def test_fine_tuning_goes_on_from_a_model(tuned: Path, tmp_path: Path):
    args = [
        *SFT,
        "--data.limit",
        "60",
        "--epochs",
        "1",
        "--model",
        str(tuned / "model"),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(args) == 0
    first = records(tmp_path / "o" / "metrics.jsonl")[0]["sft/loss"]
    assert first == pytest.approx(records(tuned / "metrics.jsonl")[-1]["sft/loss"], rel=0.3)
    assert weights(tmp_path / "o" / "model") != weights(tuned / "model")


def test_demonstrations_over_the_limit_are_dropped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture):
    rows = [{"prompt": f"say {i}", "response": "x" if i else "x y z " * 60} for i in range(10)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--data.source", str(tmp_path / "d.jsonl"), "--eval-data.source=", "--max-tokens", "80"]
    assert main([*SFT, *flags, "--epochs", "1", "--out", str(tmp_path / "o")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "1 demonstrations are over max_tokens=80: dropped" in out
    assert "9 demonstrations" in out


def test_evaluation_works_with_the_response_limit_left_at_its_default(tuned: Path, tmp_path: Path):
    """0 means the same as in training, which here is the longest sequence."""
    config = tmp_path / "my.yaml"
    config.write_text(
        f"model: {tuned / 'model'}\n"
        'data: {source: "task:clock", horizon: 2, limit: 20}\n'
        'eval_data: {source: "task:clock", horizon: 2, limit: 2, split: test}\n'
        "eval: {every: 1}\n"
        "batch: 20\n"
        "epochs: 1\n"
        f"out: {tmp_path / 'o'}\n"
    )
    assert main(["sft", str(config)]) == 0
    assert "eval/greedy" in records(tmp_path / "o" / "metrics.jsonl")[0]


@pytest.mark.parametrize(("count", "batch"), [(10, 3), (10, 10), (3, 7), (1, 2)])
def test_every_demonstration_is_seen_once_an_epoch(count: int, batch: int):
    seen = [row for step in range(1, 3 * count + 1) for row in rows_of_step(count, batch, step, seed=1)]
    assert len(seen) == 3 * count * batch
    for epoch in range(3):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))
    if count == 10:
        assert seen[:10] != seen[10:20]
        assert (
            seen[:10] != [row for step in range(1, 11) for row in rows_of_step(10, batch, step, seed=2)][:10]
        )
