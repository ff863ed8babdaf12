"""`openprime sft`: from demonstrations to a model."""

import json
import math
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from openprime.cli import main
from openprime.commands.sft import rows_of_step
from support.tiny_runs import SFT, records, weights


def sft(out: Path, *flags: str) -> Path:
    """A small run on 60 rows, which must succeed."""
    assert main([*SFT, "--data.limit", "60", *flags, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine steps, three epochs."""
    return sft(tmp_path_factory.mktemp("tuned") / "run", "--eval.every", "4", "--eval.samples", "2")


def test_sft__metrics_have_their_names_and_are_finite(tuned: Path):
    rows = records(tuned / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 10))
    for row in rows:
        assert {"sft/loss", "sft/grad_norm", "sft/lr", "sft/tokens", "time/step"} <= set(row)
        assert all(math.isfinite(value) for value in row.values())
        assert ("eval/greedy" in row) == ("eval/avg@2" in row) == (row["step"] in (4, 8, 9))
    assert rows[-1]["sft/loss"] < rows[0]["sft/loss"]
    assert rows[0]["sft/loss"] == pytest.approx(math.log(300), rel=0.3)


def test_sft__the_model_loads_and_speaks(tuned: Path):
    tokenizer = AutoTokenizer.from_pretrained(tuned / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tuned / "model")
    assert sum(p.numel() for p in loaded.parameters()) < 30_000
    chat = [{"role": "user", "content": "x"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokenizer("Zoë\n\t∑").input_ids) == "Zoë\n\t∑"


def test_sft__a_model_that_others_load_stops_where_the_chat_template_ends_a_turn(tuned: Path, tmp_path: Path):
    """As of a base model with a chat template: its end of sequence ends documents, not turns."""
    shutil.copytree(tuned / "model", tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    turn, document = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps({"eos_token_id": document}))
    out = sft(tmp_path / "run", "--epochs", "1", "--model", str(tmp_path / "base"))
    found = AutoModelForCausalLM.from_pretrained(out / "model").generation_config.eos_token_id
    assert found == sorted([turn, document])
    assert records(out / "metrics.jsonl")[-1]["eval/greedy"] >= 0  # sampled, and ended somewhere
    (first, *_) = records(out / "metrics.jsonl")
    (as_before, *_) = records(
        sft(tmp_path / "as", "--epochs", "1", "--model", str(tuned / "model")) / "metrics.jsonl"
    )
    assert first["sft/loss"] == as_before["sft/loss"]  # the rows are the same to the token


def test_sft__goes_on_from_a_model(tuned: Path, tmp_path: Path):
    out = sft(tmp_path / "run", "--epochs", "1", "--model", str(tuned / "model"))
    first, last = records(out / "metrics.jsonl")[0], records(tuned / "metrics.jsonl")[-1]
    assert first["sft/loss"] == pytest.approx(last["sft/loss"], rel=0.3)
    assert weights(out / "model") != weights(tuned / "model")


def test_sft__demonstrations_over_the_limit_are_dropped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    rows = [{"prompt": f"say {i}", "response": "x" if i else "x y z " * 60} for i in range(10)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("--data.source", str(tmp_path / "d.jsonl"), "--eval-data.source=", "--max-tokens", "80")
    sft(tmp_path / "run", *data, "--epochs", "1")
    said = " ".join(capsys.readouterr().out.split())
    assert "1 demonstrations are over max_tokens=80: dropped" in said
    assert "9 demonstrations" in said


def test_sft__evaluation_works_with_the_response_limit_left_at_its_default(tuned: Path, tmp_path: Path):
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


@pytest.mark.parametrize(
    ("count", "batch", "sizes"),
    [(10, 3, [3, 3, 3, 1]), (10, 10, [10]), (3, 7, [3]), (1, 2, [1]), (6, 2, [2, 2, 2])],
)
def test_rows_of_step__every_demonstration_is_seen_once_an_epoch(count: int, batch: int, sizes: list[int]):
    """The last step of an epoch has what is left."""

    def seen(seed: int) -> list[list[int]]:
        return [rows_of_step(count, batch, step, seed) for step in range(1, 3 * len(sizes) + 1)]

    steps = seen(1)
    assert [len(step) for step in steps] == 3 * sizes
    rows = [row for step in steps for row in step]
    for epoch in range(3):
        assert sorted(rows[epoch * count : (epoch + 1) * count]) == list(range(count))
    if count == 10:
        assert rows[:10] != rows[10:20]
        assert steps != seen(2)


@pytest.mark.parametrize(("epochs", "steps", "passes"), [(1, 1, 1), (2, 2, 2), (2.5, 3, 3)])
def test_sft__a_few_rows_are_passed_over_as_often_as_the_setting_says(
    tmp_path: Path, epochs: float, steps: int, passes: int
):
    """However large the batch."""
    rows = [{"prompt": f"say {i}", "task": "now", "output": "x y"} for i in range(5)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = (
        "--data.source",
        str(tmp_path / "d.jsonl"),
        "--data.response-field",
        "output",
        "--data.limit",
        "0",
    )
    template = ("--data.prompt-template", "{task}: {prompt}", "--eval-data.source=", "--batch", "96")
    out = sft(tmp_path / "run", *data, *template, "--epochs", str(epochs))
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    ids = tokenizer("x y", add_special_tokens=False)["input_ids"]
    tokens = [row["sft/tokens"] for row in records(out / "metrics.jsonl")]
    assert tokens == [5 * (len(ids) + 1)] * steps
    assert sum(tokens) == passes * 5 * (len(ids) + 1)
