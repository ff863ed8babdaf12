"""The readers on real benchmark files; skipped where the folder with them is absent."""

from pathlib import Path

import pytest

from openprime.config import DataConfig
from openprime.data.readers import read_demonstrations, read_prompts

FOLDER = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="needs benchmark files in ../shared/data of the repository"
)


@pytest.mark.parametrize(
    ("name", "rows", "first"),
    [
        ("math-500.jsonl", 500, "4"),
        ("aime-2022-2024.jsonl", 90, "116"),
        ("amc-2022-2023.jsonl", 83, "142"),
    ],
)
def test_prompts_of_benchmarks(tokenizer, name, rows, first):
    found = read_prompts(DataConfig(source=str(FOLDER / name), max_prompt_tokens=10_000), tokenizer)
    assert (len(found.prompts), found.rows, found.prompts[0].answer) == (rows, rows, first)
    assert all(prompt.answer and not prompt.answer.endswith(".0") for prompt in found.prompts)


def test_gsm8k_as_prompts_and_demonstrations(tokenizer):
    config = DataConfig(
        source=str(FOLDER / "gsm8k-test.jsonl"), response_field="answer", max_prompt_tokens=4000
    )
    prompts = read_prompts(config, tokenizer)
    demonstrations = read_demonstrations(config, tokenizer, 10_000)
    assert len(prompts.prompts) == len(demonstrations.rows) == 1319
    assert tokenizer.decode(demonstrations.rows[0].response_ids).endswith("\n#### 18<|end|>")
    assert demonstrations.rows[0].prompt_ids == prompts.prompts[0].token_ids
