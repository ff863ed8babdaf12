"""Rows at random: every reader gives a value, or says in one line what is wrong with which row."""

import copy
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from openprime.commands.score import read_item
from openprime.config import DataConfig, JudgedDataConfig, PromptFormat
from openprime.data.chat import encode_turns
from openprime.data.readers import read_demonstrations, read_prompts
from openprime.data.records import collate_judged, read_judged, read_rows, to_verify
from openprime.types import UserError
from support.chat_templates import FAMILIES, make_tokenizer

TOKENIZERS = [make_tokenizer(family) for family in FAMILIES.values()]
ASK, SAY = {"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A.\nB."}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
MARKED = "Q? Step 1: a ки\nStep 2: b ки"
GOOD: dict[str, list[dict[str, Any]]] = {
    "prompts": [
        {"prompt": "Q?", "answer": "1"},
        {"messages": [ASK, SAY], "answer": 2.0, "tools": TOOLS},
        {"question": "Q?", "reward_model": {"ground_truth": "3", "style": "rule"}, "extra.key": {"a": [1]}},
        {"problem": "Q?", "solution": ["1", "2"], "verifier": "math"},
        {"prompt": json.dumps([ASK]), "answer": "4"},
    ],
    "demonstrations": [
        {"prompt": "Q?", "completion": "A."},
        {"prompt": [ASK], "completion": [SAY]},
        {"messages": [ASK, CALL, {"role": "tool", "content": "1", "tool_call_id": "x"}, SAY], "tools": TOOLS},
        {"messages": json.dumps([ASK, SAY | {"reasoning_content": "Why."}])},
    ],
    "judged": [
        {"prompt": "Q?", "response": "A.", "outcome": True},
        {"messages": [ASK, SAY], "label": "False"},
        {"prompt": "Q?", "chosen": "A.", "rejected": "B."},
        {"chosen": [ASK, SAY], "rejected": [ASK, SAY | {"content": "C"}], "margin": 0.5},
        {
            "prompt": [ASK],
            "vocabulary": "x",
            "responses": [{"text": "A.", "token_ids": [5, 6], "outcome": 1.0}],
        },
    ],
    "steps": [
        {"problem": "Q?", "steps": ["a", "b"], "label": 1},
        {"prompt": "Q?", "completions": ["a", "b"], "labels": [True, False]},
        {"input": MARKED, "label": MARKED.replace("ки", "+")},
        {"input": MARKED, "value": ["+", "-"]},
    ],
    "records": [
        {"prompt": "Q?", "response": "A.\n\nB.", "verifier": "code"},
        {"messages": [ASK, SAY]},
        {"problem": "Q?", "steps": ["a", "b"]},
        {"prompt": [ASK], "responses": ["A.", {"text": "B.", "truncated": True}], "tools": TOOLS},
    ],
    "verify": [
        {"response": "A.", "answer": "1"},
        {"response": None, "answer": ["1", "2"], "question": "Q?"},
        {"response": "x", "tests": {"inputs": [1], "outputs": [2]}, "prompt": [ASK, SAY]},
        {"response": "x", "verifier": "my:score", "answer": {"a": [1]}},
    ],
}
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 10**30, "HUGE", 0.5, -0.0, 1e400, float("nan"), "", " ", "\n", "1", "True", "+",
    "ки", "{", "[", "[]", '[{"role": 1}]', json.dumps([ASK, SAY]), "\x00\x1b[31m", "é\u2028😀", "\ud800", "a" * 3000,
    "<|im_end|>", "</think>", "{{ messages }}", [], {}, [[]], [None], [1, "a"], ["a", ""], {"a": {"b": None}}, {"": 1},
    [SAY], [ASK, ASK], [ASK, {"role": "assistant"}], [{"role": "clown", "content": "x"}], [ASK | {"name": 3}],
    [{"role": "assistant", "content": [{"type": "text"}]}], {"role": "user", "content": "x"},
    [SAY | {"tool_calls": "x"}], [SAY | {"tool_calls": [{}]}],
]  # fmt: skip
NAMES = [
    "prompt",
    "response",
    "label",
    "tools",
    "role",
    "a.b",
    "",
    "token_ids",
    "a\nb",
    "\x1b[31m",
    "n" * 300,
]


def nested(depth: int, chance: random.Random) -> Any:
    """A list in a list in a list, or dictionaries."""
    value: Any = "x"
    for _ in range(depth):
        value = [value] if chance.random() < 0.5 else {"a": value}
    return value


def changed(row: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """The same with something odd in one place of it, a key more, less or of another name."""
    whole = value = dict(row)
    while True:
        if not value:
            return whole
        key: Any = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if not isinstance(value[key], dict | list) or chance.random() < 0.3:
            break
        value[key] = copy.copy(value[key])
        value = value[key]
    how = chance.random()
    if how < 0.1 and isinstance(value, dict):
        del value[key]
    elif how < 0.2 and isinstance(value, dict):
        value[chance.choice(["prompt", "response", "label", "tools", "role", "a.b", "", "token_ids"])] = (
            value.pop(key)
        )
    else:
        value[key] = nested(chance.choice([3, 90, 400]), chance) if how < 0.25 else chance.choice(ODD)
    return whole


def rows_at_random(kind: str, chance: random.Random) -> list[dict[str, Any]]:
    """A good row changed in one to three places, alone or beside good ones."""
    row = chance.choice(GOOD[kind])
    for _ in range(chance.choice([0, 1, 1, 1, 2, 3])):
        row = changed(row, chance)
    beside = [chance.choice(GOOD[kind]) for _ in range(chance.choice([0, 0, 1]))]
    return [*beside, row]


def read(kind: str, path: Path, chance: random.Random) -> object:
    """What a command does with a file before it begins to work."""
    tokenizer, template = (
        chance.choice([*TOKENIZERS, *TOKENIZERS[:1] * 20]),
        chance.choice(["auto"] * 9 + ["none"]),
    )
    settings: dict[str, Any] = {"source": str(path), "chat_template": template}
    settings |= chance.choice(
        [*[{}] * 12, {"suffix": "!"}, {"where": {"answer": "1"}}, {"prompt_template": "{prompt} {a.b}"}]
    )
    if kind == "prompts":
        return read_prompts(
            DataConfig(**settings, verifier=chance.choice(["math", "code", "my:score"])), tokenizer
        )
    if kind == "demonstrations":
        return read_demonstrations(DataConfig(**settings), tokenizer, 500)
    if kind in ("judged", "steps"):
        data = read_judged(JudgedDataConfig(**settings), tokenizer, 500, kind == "steps")
        return collate_judged(data.rows, 0)
    rows = read_rows(path)
    if kind == "verify":
        return [to_verify(row, f"row {i}", "", ["my:score"]) for i, row in enumerate(rows)]
    for i, row in enumerate(rows):
        prompt, tools, verifier, responses = read_item(row, f"row {i}", "x")
        form, count = PromptFormat(chat_template=template), len(responses)
        said, ended = [r.said for r in responses], [not r.truncated for r in responses]
        column = (
            [prompt] * count,
            said,
            [f"row {i}"] * count,
            form,
            tokenizer,
            [verifier] * count,
            [tools] * count,
        )
        for turn, response in zip(encode_turns(*column, ended, texts=True), responses, strict=True):
            assert isinstance(response.said, tuple) or "".join(turn.texts) == response.text
    json.dumps(rows, ensure_ascii=False).encode()
    return rows


def fuzzed(kind: str, count: int, write: Callable[[list[dict], random.Random], Path | None]) -> Counter[str]:
    """How many files were read, and how many refused in one line; anything else raises."""
    found: Counter[str] = Counter()
    for seed in range(count):
        chance = random.Random(f"{kind}-{seed}")
        path = write(rows_at_random(kind, chance), chance)
        if path is None:
            found["not written"] += 1
            continue
        try:
            read(kind, path, chance)
            found["read"] += 1
        except UserError as error:
            said = str(error)
            one_line = said.isprintable() and len(said) < 3000
            found["refused" if one_line else f"{kind}, seed {seed}: {said!r:.1000}"] += 1
        except Exception as error:
            error.add_note(f"{kind}, seed {seed}: {path.read_bytes()[:600]!r}")
            raise
    return found


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_readers__a_row_at_random_is_read_or_refused_in_a_line(tmp_path: Path, kind: str, count: int):
    def write(rows: list[dict], chance: random.Random) -> Path:
        path = tmp_path / "x.jsonl"
        text = "".join(json.dumps(row) + chance.choice("\n" * 19 + "\0") for row in rows)
        path.write_text(text.replace('"HUGE"', "1" * 5000), encoding="utf-8")
        return path

    found = fuzzed(kind, count, write)
    print(kind, dict(found))
    assert found.keys() <= {"read", "refused"}
    assert found["read"] >= count / 20
    assert found["refused"] >= count / 20


@pytest.mark.parametrize("count", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_readers__a_parquet_file_at_random_is_read_or_refused_in_a_line(tmp_path: Path, count: int):
    def write(rows: list[dict], chance: random.Random) -> Path | None:
        path = tmp_path / "x.parquet"
        try:
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        except (
            pyarrow.ArrowException,
            OverflowError,
            UnicodeEncodeError,
            ValueError,
            TypeError,
        ):  # no Arrow has it
            return None
        if chance.random() < 0.3:
            data = bytearray(path.read_bytes())
            for _ in range(chance.choice([1, 3, 20])):
                data[chance.randrange(len(data))] = chance.randrange(256)
            path.write_bytes(bytes(data[: chance.choice([len(data), len(data), len(data) // 2])]))
        return path

    found = sum((fuzzed(kind, 2 * count, write) for kind in GOOD), Counter())
    print(dict(found))
    assert found.keys() <= {"read", "refused", "not written"}
    assert found["read"] + found["refused"] >= 6 * count
    assert found["read"] >= count
