"""The readers on real benchmark files; skipped where the folder with them is absent."""

import json
from pathlib import Path

import pytest

from openprime.cli import main
from openprime.config import DataConfig
from openprime.data.readers import read_demonstrations, read_prompts
from support.benchmark_files import FOLDER, needs_files, rows_of

pytestmark = needs_files


@pytest.mark.parametrize(
    ("name", "rows", "first"),
    [
        ("math-500.jsonl", 500, "4"),
        ("aime-2022-2024.jsonl", 90, "116"),
        ("amc-2022-2023.jsonl", 83, "142"),
    ],
)
def test_read_prompts__of_benchmarks(tokenizer, name, rows, first):
    found = read_prompts(DataConfig(source=str(FOLDER / name), max_prompt_tokens=10_000), tokenizer)
    assert (len(found.prompts), found.rows, found.prompts[0].answer) == (rows, rows, first)
    assert all(prompt.answer and not prompt.answer.endswith(".0") for prompt in found.prompts)


def test_read_demonstrations__gsm8k_as_prompts_and_demonstrations(tokenizer):
    config = DataConfig(
        source=str(FOLDER / "gsm8k-test.jsonl"), response_field="answer", max_prompt_tokens=4000
    )
    prompts = read_prompts(config, tokenizer)
    demonstrations = read_demonstrations(config, tokenizer, 10_000)
    assert len(prompts.prompts) == len(demonstrations.rows) == 1319
    assert tokenizer.decode(demonstrations.rows[0].response_ids).endswith("\n#### 18<|end|>")
    assert demonstrations.rows[0].prompt_ids == prompts.prompts[0].token_ids


# benchmark: (file, items, left out, field of the reference)
JUDGED = {
    "gsm8k": ("gsm8k-test.jsonl", 1319, 0, "answer"),
    "math-500": ("math-500.jsonl", 500, 0, "solution"),
    "aime": ("aime-2022-2024.jsonl", 90, 0, "answer"),
    "aime-2024": ("aime-2022-2024.jsonl", 30, 0, "answer"),
    "amc": ("amc-2022-2023.jsonl", 83, 0, "answer"),
    "humaneval": ("humaneval.jsonl", 161, 3, "canonical_solution"),
    "mbpp": ("mbpp.jsonl", 398, 1, "code"),
}
WRONG = {"humaneval": "    return None\n", "mbpp": "x = 1"}
"""Instead of a wrong number."""


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each reference and a wrong response, judged by one command."""
    folder = tmp_path_factory.mktemp("real")
    for name, (file, _, _, field) in JUDGED.items():
        pairs = [[str(row[field]), WRONG.get(name, r"\boxed{-98765}")] for row in rows_of(file)]
        text = "".join(json.dumps({"responses": pair}) + "\n" for pair in pairs)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    args = ["--data", *(str(FOLDER / file) for file, *_ in JUDGED.values())]
    args += ["--responses", *(str(folder / f"{name}.jsonl") for name in JUDGED)]
    assert main(["evaluate", "--benchmark", *JUDGED, *args, "--out", str(folder / "out")]) == 0
    return folder / "out"


@pytest.mark.parametrize("name", JUDGED)
def test_evaluate__all_references_are_right(evaluated, name):
    """Of every item that can be judged; and a wrong response to none."""
    _, items, left_out, _ = JUDGED[name]
    result = json.loads((evaluated / "results.json").read_text())["benchmarks"][name]
    assert (result["items"], result["left_out"]) == (items, left_out)
    lines = (evaluated / name / "responses.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    outcomes = [[r["outcome"] for r in json.loads(line)["responses"]] for line in lines]
    assert outcomes == [[1.0, 0.0]] * items
    assert result["avg@2"] == [0.5, 0.5, 0.5]
    assert result["reasons"]["right"] == items
