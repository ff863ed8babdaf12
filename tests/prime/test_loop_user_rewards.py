"""A user's own reward function and the data formats of other trainers, from the command line."""

import json
from pathlib import Path

import pytest

from support.tiny_runs import records, rl

REWARD = '''
import json
from pathlib import Path

def score(prompts, completions, answer, tag, **columns):
    """TRL's signature: one list a column, as long as the completions."""
    assert len(prompts) == len(completions) == len(answer) == len(tag)
    with Path("calls.jsonl").open("a") as file:
        row = {"prompts": prompts, "completions": completions, "answer": answer, "tag": tag}
        file.write(json.dumps(row | {"columns": sorted(columns)}) + "\\n")
    return [float(i % 2) for i in range(len(completions))]

def shares(prompts, completions, **columns):
    return [None, 0.25, 0.5, 0.75]
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the user's module."""
    (tmp_path / "my_reward.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def worksheets(count: int) -> list[str]:
    """Prompts of the kind that the model knows."""
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return [f"Start {words[i % 10]}\n+two = ?\n*three = ?" for i in range(count)]


def write(path: Path, rows: list[dict]) -> str:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_train__a_reward_function_of_the_current_directory(model: Path, here: Path):
    rows = [{"prompt": p, "answer": str(i), "tag": f"t{i}"} for i, p in enumerate(worksheets(6))]
    source = write(here / "d.jsonl", rows)
    run = rl(
        model, here / "run", "--data.source", source, "--data.verifier", "my_reward:score", "--steps", "1"
    )
    calls = records(here / "calls.jsonl")
    assert len(calls) == 2  # every group passes the filter: two prompts, one call each
    for call in calls:
        (prompt,) = set(call["prompts"])
        i = worksheets(6).index(prompt)
        assert call["answer"] == [str(i)] * 4
        assert call["tag"] == [f"t{i}"] * 4
        assert len(call["completions"]) == 4
        assert all(isinstance(text, str) and "<|im_end|>" not in text for text in call["completions"])
    row = records(run / "metrics.jsonl")[1]
    assert row["reward/outcome"] == row["rollout/accuracy"] == 0.5
    assert [sample["outcome"] for sample in records(run / "samples.jsonl")] == [0.0, 1.0] * 4


def test_train__soft_outcomes_and_no_verdicts(model: Path, here: Path):
    """Outcomes between 0 and 1 train the PRM as they are; a response without one is left out."""
    run = rl(model, here / "run", "--data.verifier", "my_reward:shares", "--steps", "2")
    for row in records(run / "metrics.jsonl")[1:]:
        assert row["reward/outcome"] == 0.5
        assert row["verify/no_verdict"] == 0.25
    assert [sample["outcome"] for sample in records(run / "samples.jsonl")] == [0.25, 0.5, 0.75] * 2


def verl_rows() -> list[dict]:
    """The shape of PRIME's and verl's parquet files."""
    return [
        {
            "data_source": "clock",
            "prompt": [{"role": "user", "content": text}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(i)},
            "extra_info": {"split": "train", "index": i},
        }
        for i, text in enumerate(worksheets(10))
    ]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_train__rows_in_the_shape_of_prime_and_verl(model: Path, here: Path, ending: str):
    source = here / f"d.{ending}"
    if ending == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(verl_rows()), source)
    else:
        write(source, verl_rows())
    flags = ("--filter.low", "0", "--filter.high", "1", "--steps", "1")
    run = rl(model, here / "run", "--data.source", str(source), *flags)
    samples = records(run / "samples.jsonl")
    assert len(samples) == 8
    for row in samples:
        (message,) = row["prompt"]
        assert row["answer"] == str(worksheets(10).index(message["content"]))


def test_train__messages_reach_the_reward_function_as_messages(model: Path, here: Path):
    rows = [row | {"answer": "7", "tag": "x"} for row in verl_rows()]
    source = write(here / "d.jsonl", rows)
    rl(model, here / "run", "--data.source", source, "--data.verifier", "my_reward:score", "--steps", "1")
    for call in records(here / "calls.jsonl"):
        for prompt, completion in zip(call["prompts"], call["completions"], strict=True):
            assert [message["role"] for message in prompt] == ["user"]
            assert [message["role"] for message in completion] == ["assistant"]
        assert {"data_source", "extra_info", "reward_model"} <= set(call["columns"])


def test_train__rows_of_several_verifiers_train_together(model: Path, here: Path):
    """As in the published recipe: mathematics, code and a function of one's own in one data set."""
    tests = json.dumps({"inputs": ["1"], "outputs": ["2"], "fn_name": None})
    names = ["my_reward:score", "math", "code"]
    rows = [
        {"prompt": p, "answer": "4" if name == "math" else tests, "ability": name, "tag": "t"}
        for p, name in zip(worksheets(6), names * 2, strict=True)
    ]
    rows.append({"prompt": worksheets(7)[6], "answer": "no tests", "ability": "code", "tag": "t"})
    source = write(here / "d.jsonl", rows)
    run = rl(
        *(model, here / "run", "--data.source", source, "--data.verifier-field", "ability", "--steps", "1"),
        *("--data.allow-modules", "my_reward:score", "--filter.low", "0", "--filter.high", "1"),
        *("--rollout.prompts", "6"),
    )
    calls = records(here / "calls.jsonl")
    mine = {row["prompt"] for row in rows if row["ability"] == "my_reward:score"}
    assert {prompt for call in calls for prompt in call["prompts"]} == mine, "the others did not come to it"
    row = records(run / "metrics.jsonl")[1]
    assert row["verify/no_answer"] > 0, "a small model writes no program"
    assert row["verify/strict_sandbox"] == 1.0
    assert row["rollout/rollouts"] == 24, "the seventh prompt has no tests"
