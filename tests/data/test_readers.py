"""Rows, fields, answers, lengths and demonstrations, from every source and shape."""

import datetime
import decimal
import json
import os
import subprocess
import sys
import types

import datasets
import pyarrow
import pytest
from pyarrow import parquet
from tokenizers import processors

from openprime.config import DataConfig
from openprime.data.chat import Turn
from openprime.data.readers import (
    as_answer,
    each_row,
    load_rows,
    read_demonstrations,
    read_prompts,
    read_questions,
    value_at,
)
from openprime.types import UserError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def source(tmp_path):
    """Write rows to a JSONL file and return its name."""
    return lambda rows, name="data.jsonl": write(tmp_path / name, rows)


# Files


@pytest.mark.parametrize("kind", ["jsonl", "json lines", "json array", "parquet"])
def test_load_rows__every_kind_of_file_gives_the_same_rows(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", None)  # no cache and no network for local files
    rows = [
        {"prompt": "é 1", "answer": "2", "n": {"a": [1, 2]}},
        {"prompt": "q", "answer": "3", "n": {"a": []}},
    ]
    if kind == "parquet":
        path = tmp_path / "x.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == "json array":
        path = tmp_path / "x.json"
        path.write_text("\n  " + json.dumps(rows, indent=2), encoding="utf-8")
    else:
        path = tmp_path / ("x.jsonl" if kind == "jsonl" else "x.json")
        write(path, rows)
    assert load_rows(DataConfig(source=str(path))) == rows
    assert load_rows(DataConfig(source=str(path), limit=1)) == rows[:1]
    assert load_rows(DataConfig(source=str(path), limit=9)) == rows


def test_load_rows__mixed_types_blank_lines_byte_order_mark_and_windows_ends(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": "2"}\n{"a": 3.5, "b": null}\n\n')
    assert load_rows(DataConfig(source=str(path))) == [{"a": 1}, {"a": "2"}, {"a": 3.5, "b": None}]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_load_rows__a_changed_file_gives_the_new_rows(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    for value in ("old", "new"):  # same size, and the same time of change
        if kind == "parquet":
            parquet.write_table(pyarrow.table({"prompt": [value]}), path)
        else:
            write(path, [{"prompt": value}])
        os.utime(path, (1_700_000_000, 1_700_000_000))
        assert load_rows(DataConfig(source=str(path))) == [{"prompt": value}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": \n{"a": 3}\n', r"x\.jsonl:2: not valid JSON"),
        ("x.jsonl", b'{"a": 1}\n\n{"a": "half', r"x\.jsonl:3: not valid JSON"),
        ("x.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', r"x\.jsonl:2: not UTF-8"),
        ("x.jsonl", '{"a": "1"}\n'.encode("utf-16"), r"x\.jsonl:1: not UTF-8"),
        ("x.jsonl", b'{"a": 1}\n[1, 2]\n', r"x\.jsonl:2: expected an object"),
        ("x.jsonl", b'{"a": "\\ud83d\\ude00"}\n{"a": ["x", {"b\\uDFFF": 1}]}\n', r"x\.jsonl:2: half a char.* surr"),
        ("x.json", b'[{"a": "\\uD800"}]', r"x\.json:1: half a character"),
        ("x.jsonl", b'{"a": ' + b"1" * 5000 + b"}\n", r"x\.jsonl:1: JSON that cannot be read: .*digits"),
        ("x.jsonl", b"[" * 100_000 + b"\n", r"x\.jsonl:1: JSON that cannot be read: .*recursion"),
        ("x.parquet", b"PAR1", r"x\.parquet: not a readable parquet file"),
        ("x.jsonl", b"", r"x\.jsonl: no rows"), ("x.jsonl", b"\n\n", r"x\.jsonl: no rows"),
        ("x.json", b'[{"a": 1},\n {"a": }]', r"x\.json:2: not valid JSON"),
        ("x.json", b'[{"a": 1},\n\n {"a": "\xff"}]', r"x\.json:3: not UTF-8"),
        ("x.json", b'[{"a": 1}, 7]', r"x\.json: entry 1 is not an object"), ("x.json", b"[]", r"x\.json: no rows"),
        ("x.json", b"", r"x\.json: no rows"),
        ("x.parquet", b"PAR1 not parquet", r"x\.parquet: not a readable parquet"),
        ("x.csv", b"a,b\n1,2\n", r"x\.csv is not one of the kinds .*\.jsonl, \.json, \.parquet"),
    ],
)  # fmt: skip
def test_load_rows__faulty_files_are_named_with_the_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_rows(DataConfig(source=str(path)))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.jsonl", "b.parquet"], r"2 kinds \(\.jsonl, \.parquet of"),
        (["a.csv"], r"0 kinds \(none of .*: name one file"),
    ],
)
def test_load_rows__a_folder_of_other_files_is_named(tmp_path, files: list[str], message: str):
    for name in files:
        (tmp_path / name).write_text('{"a": 1}\n')
    with pytest.raises(
        UserError, match=rf"data\.source: the folder {tmp_path} has files of {message}"
    ) as error:
        load_rows(DataConfig(source=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_load_rows__a_folder_of_one_kind_is_read(tmp_path):
    for i in range(2):
        write(tmp_path / f"{i}.jsonl", [{"a": i}])
    assert load_rows(DataConfig(source=str(tmp_path))) == [{"a": 0}, {"a": 1}]


def test_load_rows__what_json_has_no_words_for_is_text(tmp_path):
    row = {
        "when": datetime.date(2024, 2, 3),
        "cost": decimal.Decimal("1.50"),
        "raw": b"ab",
        "n": {"at": datetime.time(1)},
    }
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "x.parquet")
    (found,) = load_rows(DataConfig(source=str(tmp_path / "x.parquet")))
    assert found == {"when": "2024-02-03", "cost": "1.50", "raw": "b'ab'", "n": {"at": "01:00:00"}}
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("name", ["gone.jsonl", "gone.json", "gone.parquet"])
def test_load_rows__a_missing_file_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=f"there is no file .*{name}"):
        load_rows(DataConfig(source=str(tmp_path / name)))


def test_load_rows__a_half_written_last_line_is_said_to_be_one(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "ha')
    with pytest.raises(ValueError, match=r"x\.jsonl:2: .*interrupted: finish it with --resume, or delete"):
        load_rows(DataConfig(source=str(path)))
    path.write_bytes(b'{"a": 1}\n{"a": "ha\n')
    with pytest.raises(ValueError, match=r"x\.jsonl:2: not valid JSON") as error:
        load_rows(DataConfig(source=str(path)))
    assert "interrupted" not in str(error.value)


# The hub and the embedded tasks


def test_load_rows__a_hub_id_is_asked_for_its_split(monkeypatch, tokenizer):
    asked = []

    def load_dataset(name, subset, split):
        asked.append((name, subset, split))
        return datasets.Dataset.from_list([{"question": str(i), "answer": float(i)} for i in range(5)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = DataConfig(source="owner/name", split="test", limit=2)
    prompts = read_prompts(config, tokenizer).prompts
    assert asked == [("owner/name", None, "test")]
    assert [(p.id, p.answer) for p in prompts] == [("owner/name:test:0", "0"), ("owner/name:test:1", "1")]
    assert len(load_rows(DataConfig(source="owner/name", subset="main"))) == 5
    assert asked[1:] == [("owner/name", "main", "train")]


@pytest.mark.parametrize(
    "error", [ConnectionError("no route"), ValueError("no split"), RuntimeError("scripts")]
)
def test_load_rows__an_unreachable_hub_id_is_explained(monkeypatch, error):
    def load_dataset(name, subset, split):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        ValueError,
        match=f"owner/name is neither a local file.*nor .*hub.* split train .*data.subset.*: {error}",
    ):
        load_rows(DataConfig(source="owner/name"))


def test_load_rows__embedded_tasks_are_asked_by_name(monkeypatch, tokenizer):
    tasks = types.ModuleType("openprime.tasks")
    tasks.rows = lambda config: [{"prompt": "p", "answer": str(config.horizon), "response": "r"}]
    monkeypatch.setitem(sys.modules, "openprime.tasks", tasks)
    monkeypatch.setattr("openprime.tasks", tasks, raising=False)
    config = DataConfig(source="task:clock", horizon=3)
    (prompt,) = read_prompts(config, tokenizer).prompts
    assert (prompt.id, prompt.answer, prompt.messages) == ("task:clock:train:0", "3", "p")
    (demonstration,) = read_demonstrations(config, tokenizer, 100).rows
    assert tokenizer.decode(demonstration.response_ids) == "r<|end|>"


# Fields

USER = [{"role": "user", "content": "1+1?"}]
TALK = [*USER, {"role": "assistant", "content": "two"}]


@pytest.mark.parametrize(
    ("row", "messages", "answer"),
    [
        ({"data_source": "m", "prompt": USER, "reward_model": {"ground_truth": "2", "style": "rule"}}, USER, "2"),
        ({"prompt": USER, "reward_model": {"ground_truth": '["2"]'}, "answer": "no"}, USER, '["2"]'),
        ({"prompt": "1+1?", "answer": "2", "level": 3}, "1+1?", "2"), ({"prompt": USER, "answer": 2}, USER, "2"),
        ({"messages": TALK, "answer": "2"}, USER, "2"), ({"messages": USER, "answer": "2"}, USER, "2"),
        ({"question": "1+1?", "answer": "so\n#### 2"}, "1+1?", "so\n#### 2"),
        ({"problem": "1+1?", "answer": 2.0}, "1+1?", "2"),
        ({"problem": "1+1?", "solution": "x", "expected_answer": "2"}, "1+1?", "2"),
    ],
)  # fmt: skip
def test_read_prompts__shapes_are_recognised(source, tokenizer, row, messages, answer):
    (prompt,) = read_prompts(DataConfig(source=source([row])), tokenizer).prompts
    assert (prompt.messages, prompt.answer, prompt.columns) == (messages, answer, row)
    assert prompt.id == "data.jsonl:0"
    assert tokenizer.decode(prompt.token_ids) == "<|user|>1+1?<|end|><|assistant|>"


MEMORY = """
import gc, json, sys
from pathlib import Path
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from openprime.config import DataConfig
from openprime.data.readers import read_prompts

core = Tokenizer(models.WordLevel({f"w{i}": 1000 + i for i in range(3600)} | {"?": 0}, unk_token="?"))
core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?", eos_token="?")
path = Path(sys.argv[1])
with path.open("w") as file:
    for i in range(20000):
        words = " ".join(f"w{(180 * i + j) % 3600}" for j in range(180))
        file.write(json.dumps({"prompt": words, "answer": "1"}) + "\\n")

def mebibytes(line):
    return int(Path("/proc/self/status").read_text().split(line + ":")[1].split()[0]) / 1024

config = DataConfig(source=str(path), chat_template="none")
read_prompts(config.model_copy(update={"limit": 10}), tokenizer)
before = mebibytes("VmRSS")
prompts = read_prompts(config, tokenizer).prompts
tokens = [token for prompt in prompts for token in prompt.token_ids]
print(len(tokens), len(set(map(id, tokens))), tokens[180 * 20 - 1], mebibytes("VmHWM") - before)
"""
"""Reads 20,000 prompts of 180 tokens, and prints their tokens and the most memory that reading took."""


@pytest.mark.slow
def test_read_prompts__memory_is_a_small_part_of_a_number_for_each_token(tmp_path):
    """A number of its own takes 36 bytes, and what tokenizers return of a token 120 more."""
    said = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "data.jsonl")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    tokens, objects, last, peak = said.split()
    assert (int(tokens), int(objects), int(last)) == (20000 * 180, 3600, 4599)
    assert float(peak) * 2**20 < 64 * 20000 * 180


def test_read_prompts__verl_parquet_with_an_array_of_structs(tmp_path, tokenizer):
    rows = [
        {"data_source": "math", "prompt": [{"role": "system", "content": "s"}, *USER], "ability": "math"},
        {"data_source": "math", "prompt": [{**USER[0], "name": None}], "ability": "math"},  # a key left empty
    ]
    for row in rows:
        row["reward_model"] = {"ground_truth": "2", "style": "rule"}
    path = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    prompts = read_prompts(DataConfig(source=str(path)), tokenizer).prompts
    assert [p.messages for p in prompts] == [rows[0]["prompt"], USER]
    assert [p.answer for p in prompts] == ["2", "2"]
    assert [p.id for p in prompts] == ["train.parquet:0", "train.parquet:1"]


def test_read_prompts__named_fields_reach_inside_and_win(source, tokenizer):
    row = {"prompt": "no", "answer": "no", "extra": {"task": {"text": "yes"}, "label": 7}}
    config = DataConfig(source=source([row]), prompt_field="extra.task.text", answer_field="extra.label")
    (prompt,) = read_prompts(config, tokenizer).prompts
    assert (prompt.messages, prompt.answer) == ("yes", "7")


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"prompt": "a", "x": {"b": 1}}, {"answer_field": "x.c"}, r" x\.c.*: prompt, x\.b\..*answer_field"),
        ({"prompt": "a", "b": 1}, {"prompt_field": "text"}, r"field text.*: prompt, b\..*data\.prompt_field"),
        ({"text": "a"}, {}, r"field prompt or messages or question .*: text\..*data\.prompt_field"),
        ({"prompt": "a", "b": {"c": 1}}, {"prompt_field": "b.c.d"}, r"field b\.c\.d"),
        ({"prompt": 5, "answer": "1"}, {}, r"data\.jsonl:0: expected text or a list of messages, found 5"),
        ({"prompt": " ", "answer": "1"}, {}, r"data\.jsonl:0: expected text"),
        ({"prompt": [], "answer": "1"}, {}, r"data\.jsonl:0: expected text"),
        ({"prompt": ["a"], "answer": "1"}, {}, r"data\.jsonl:0: expected a message .*'a'"),
        ({"prompt": [{"role": "user", "content": None}]}, {}, r"data\.jsonl:0: expected a message"),
    ],
)  # fmt: skip
def test_read_prompts__bad_fields_are_named_with_those_that_exist(source, tokenizer, row, settings, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(DataConfig(source=source([row]), **settings), tokenizer)


# Which rows

ROWS = [
    {"question": f"q{i}", "answer": str(i), "url": f"contest/{2022 + i // 2}_I/{i}", "meta": {"level": i % 3}}
    for i in range(6)
]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"url": "2023_I"}, [2, 3]),
        ({"meta.level": "2"}, [2, 5]),
        ({"url": "2024", "meta.level": "1"}, [4]),
        ({"url": "contest"}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_load_rows__where_a_field_has_a_text(tmp_path, kind, where, kept):
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    else:
        write(path, ROWS)
    for limit in (0, 1, 2, 9):  # of the rows that are kept
        config = DataConfig(source=str(path), where=where, limit=limit)
        assert load_rows(config) == [ROWS[i] for i in kept][: limit or None]


def test_load_rows__where_on_the_hub_and_on_rows_without_the_field(monkeypatch, source):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(ROWS))
    config = DataConfig(source="owner/name", where={"url": "2024"}, limit=1)
    assert load_rows(config) == ROWS[4:5]
    rows = [{"a": "1"}, {"a": "2", "b": "x"}, {"a": "3", "b": None}]
    assert load_rows(DataConfig(source=source(rows), where={"b": "x"})) == rows[1:2]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"link": "2024"}, r"no row has a field link \(data\.where\); there are: question.*meta\.level"),
        ({"url": "2025"}, r"none of 6 rows is kept by data\.where \{'url': '2025'\}"),
    ],
)
def test_load_rows__where_keeps_nothing(source, where, message):
    with pytest.raises(ValueError, match=message):
        load_rows(DataConfig(source=source(ROWS), where=where))


def test_value_at__a_key_may_have_dots_itself(source, tokenizer):
    row = {"a.b": 1, "a": {"b": 2, "c.d": {"e": 3}}, "x.y": {"z": 4}, "x": {"y": None}}
    paths = {"a.b": 1, "a.c.d.e": 3, "x.y.z": 4, "x.y": {"z": 4}, "a.b.c": None, "a.c": None, "x.q": None}
    assert {path: value_at(row, path) for path in paths} == paths
    rows = [{"my.prompt": "q", "reward.model": {"truth": "7"}}]
    config = DataConfig(source=source(rows), prompt_field="my.prompt", answer_field="reward.model.truth")
    assert [(p.messages, p.answer) for p in read_prompts(config, tokenizer).prompts] == [("q", "7")]


# Conversations as prompts


@pytest.mark.parametrize("as_json", [False, True], ids=["objects", "JSON"])
@pytest.mark.parametrize("field", ["messages", "conversation", "extra.talk"])
def test_read_prompts__an_answer_never_reaches_the_prompt(source, tokenizer, field: str, as_json: bool):
    talk = json.dumps(TALK) if as_json else TALK
    row = {"answer": "2"} | ({"extra": {"talk": talk}} if "." in field else {field: talk})
    found = read_prompts(DataConfig(source=source([row]), prompt_field=field), tokenizer)
    assert tokenizer.decode(found.prompts[0].token_ids) == "<|user|>1+1?<|end|><|assistant|>"
    assert found.prompts[0].messages == USER


@pytest.mark.parametrize("said", ["Let me think: ", "two"])
def test_read_prompts__a_prompt_that_ends_with_the_assistant_is_refused(source, tokenizer, said: str):
    row = {"prompt": [*USER, {"role": "assistant", "content": said}], "answer": "2", "response": "two"}
    config = DataConfig(source=source([row]))
    for read in (
        lambda: read_prompts(config, tokenizer),
        lambda: read_demonstrations(config, tokenizer, 100),
    ):
        with pytest.raises(
            UserError, match=r"data\.jsonl:0: the prompt ends with a message of the assistant"
        ):
            read()


def test_read_prompts__text_that_looks_like_json_stays_text(source, tokenizer):
    texts = ['[{"a": 1}]', "[1, 2]", "[", '[{"role": "user"}, 3]', "[[[", "[]"]
    rows = [{"prompt": text, "answer": "1"} for text in texts]
    assert [p.messages for p in read_prompts(DataConfig(source=source(rows)), tokenizer).prompts] == texts
    rows = [{"prompt": "q", "response": text} for text in texts]
    found = read_demonstrations(DataConfig(source=source(rows)), tokenizer, 100).rows
    assert [tokenizer.decode(row.response_ids) for row in found] == [f"{text}<|end|>" for text in texts]


@pytest.mark.parametrize("text", ["q", "<s>q"])
def test_read_prompts__a_tokenizer_that_ends_texts_does_not_end_prompts(source, tokenizer, text: str):
    ends = processors.TemplateProcessing(single="<s> $A <|end|>", special_tokens=[("<s>", 1), ("<|end|>", 2)])
    tokenizer.backend_tokenizer.post_processor = ends
    assert tokenizer("q")["input_ids"][-1] == tokenizer.eos_token_id
    config = DataConfig(
        source=source([{"prompt": text, "answer": "1", "response": "r"}]), chat_template="none"
    )
    assert [tokenizer.decode(p.token_ids) for p in read_prompts(config, tokenizer).prompts] == ["<s>q"]
    (turn,) = read_demonstrations(config, tokenizer, 100).rows
    assert [tokenizer.decode(ids) for ids in (turn.prompt_ids, turn.response_ids)] == ["<s>q", "r<|end|>"]


# A prompt of several fields


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{text}", "add"),
        ("{text}\n\n{tests}\n", "add\n\nassert a\nassert b"),
        ("{meta.name}: {text}!", "f: add!"),
        ("{zero}, {no}, {{text}}", "0, False, {add}"),
        ("{text} {} {x y} {'a'}", "add {} {x y} {'a'}"),
        ("{text}{empty}{some}", "add"),
        ("{braces}?", "{answer} {\\1}?"),  # braces in a value are not filled
    ],
)
def test_read_prompts__a_prompt_may_be_made_of_several_fields(source, tokenizer, template, expected):
    row = {"text": "add", "tests": ["assert a", "assert b"], "meta": {"name": "f"}, "zero": 0, "no": False}
    row |= {"answer": "7", "braces": "{answer} {\\1}"}
    rows = [row | {"empty": ""}, row | {"empty": "x", "some": "thing"}]
    config = DataConfig(source=source(rows), prompt_template=template, prompt_field="nowhere")
    assert read_prompts(config, tokenizer).prompts[0].messages == expected


def test_read_prompts__fields_of_a_template_that_no_row_has_are_named(source, tokenizer):
    config = DataConfig(source=source([{"text": "a", "meta": {"b": 1}}]), prompt_template="{prompt} {text}")
    with pytest.raises(
        ValueError, match=r"no row has a field prompt \(data\.prompt_template\).*text, meta\.b"
    ):
        read_prompts(config, tokenizer)


# Answers


@pytest.mark.parametrize(
    ("value", "verifier", "answer"),
    [
        (["2"], "math", "2"), (["2"], "code", "2"), (["$2$", "$3$"], "math", "$2$, $3$"),
        ([2, 3.0, 0.5], "math", "2, 3, 0.5"), ([7], "math", "7"), ([], "math", ""),
        (["2", "3"], "code", '["2", "3"]'), (["2", "3"], "my:score", '["2", "3"]'),
        ([[1, 2], [3]], "math", "[[1, 2], [3]]"),
        ({"inputs": [1], "outputs": [2]}, "math", '{"inputs": [1], "outputs": [2]}'),
    ],
)  # fmt: skip
def test_as_answer__several_answers_are_one_list_for_mathematics(source, tokenizer, value, verifier, answer):
    assert as_answer(value, verifier) == answer
    if answer:
        config = DataConfig(source=source([{"question": "q", "final_answer": value}]), verifier=verifier)
        assert read_prompts(config, tokenizer).prompts[0].answer == answer


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (142.0, "142"), (-1.0, "-1"), (0.5, "0.5"), (7, "7"), ("5.0", "5.0"), ("", ""), (None, None),
        (float("nan"), None), (float("inf"), "inf"), (["1", "é"], '["1", "é"]'), (True, "True"),
    ],
)  # fmt: skip
def test_as_answer__is_text(value, answer):
    assert as_answer(value) == answer


def test_read_prompts__mathematics_needs_answers(source, tokenizer):
    rows = [{"prompt": "q", "answer": a} for a in ("1", None, "2", "", " ", None)] + [{"prompt": "q"}]
    config = DataConfig(source=source(rows))
    with pytest.raises(
        ValueError, match=r"5 of 7 rows have no answer \(row 1, 3, 4, \.\.\.\).*data\.answer_field"
    ):
        read_prompts(config, tokenizer)
    other = read_prompts(config.model_copy(update={"verifier": "my:score"}), tokenizer)
    assert [p.answer for p in other.prompts] == ["1", None, "2", "", " ", None, None]
    with pytest.raises(ValueError, match=r"1 of 1 rows have no answer \(row 0\)"):
        read_prompts(DataConfig(source=source([{"prompt": "q"}])), tokenizer)


@pytest.mark.parametrize(
    ("rows", "bad", "kept"), [(400, 2, True), (400, 3, True), (400, 4, False), (99, 1, False)]
)
def test_read_prompts__few_rows_without_an_answer_are_left_out_and_said(
    source, tokenizer, rows, bad, kept: bool
):
    """Fewer than one in a hundred; the others keep their numbers."""
    data = [{"prompt": f"q{i}", "answer": None if 5 <= i < 5 + bad else str(i)} for i in range(rows)]
    config, which = DataConfig(source=source(data)), "row 5, 6" + (", 7" if bad > 2 else "")
    if not kept:
        with pytest.raises(UserError, match=rf"{bad} of {rows} rows have no answer \(row 5"):
            read_prompts(config, tokenizer)
        return
    found = read_prompts(config, tokenizer)
    assert found.notes == [f"{bad} of {rows} rows have no answer ({which}): left out"]
    assert [p.id for p in found.prompts] == [f"data.jsonl:{i}" for i in range(rows) if not 5 <= i < 5 + bad]
    assert all(p.answer == p.id.split(":")[1] for p in found.prompts)
    with pytest.raises(UserError, match="have no answer"):  # recorded responses stand row by row
        read_questions(config)


# Verifiers


def test_read_prompts__each_row_may_name_its_verifier(source, tokenizer):
    rows = [
        {"prompt": "q", "answer": "1", "extra": {"ability": "math"}},
        {"prompt": "w", "answer": "", "extra": {"ability": "my_reward:score"}},
    ]
    allowed = ("my_reward:score", "other:score")
    config = DataConfig(source=source(rows), verifier_field="extra.ability", allow_modules=allowed)
    assert [p.verifier for p in read_prompts(config, tokenizer).prompts] == ["math", "my_reward:score"]
    rows[1]["extra"] = {"ability": "math"}
    with pytest.raises(ValueError, match=r"1 of 2 rows have no answer \(row 1\)"):
        read_prompts(config.model_copy(update={"source": source(rows, "b.jsonl")}), tokenizer)
    for missing in ({"ability": 3}, {"ability": ""}, {"skill": "math"}):
        rows[1]["extra"] = missing
        other = config.model_copy(update={"source": source(rows, "c.jsonl")})
        with pytest.raises(
            ValueError, match=r"row 1 has no verifier's name in extra\.ability .*there are: prompt"
        ):
            read_prompts(other, tokenizer)


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({}, True),
        ({"allow_modules": ("my:scores", "my")}, True),
        ({"verifier": "other:score"}, True),
        ({"verifier": "my:score"}, False),
        ({"allow_modules": ("a:b", "my:score")}, False),
    ],
)
def test_read_prompts__a_row_does_not_choose_what_is_imported(
    source, tokenizer, settings: dict, refused: bool
):
    rows = [{"prompt": "q", "answer": "1", "by": "math"}, {"prompt": "w", "answer": "1", "by": "my:score"}]
    config = DataConfig(source=source(rows), verifier_field="by", **settings)
    if not refused:
        assert [p.verifier for p in read_prompts(config, tokenizer).prompts] == ["math", "my:score"]
        return
    with pytest.raises(
        ValueError, match=r"row 1, by: 'my:score' would be imported .* in data\.allow_modules if"
    ):
        read_prompts(config, tokenizer)


@pytest.mark.parametrize("column", ["prompts", "completions"])
def test_read_prompts__a_column_with_the_name_of_an_argument_is_named(source, tokenizer, column: str):
    config = DataConfig(source=source([{"prompt": "q", "answer": "1", column: [1]}]))
    assert len(read_prompts(config, tokenizer).prompts) == 1
    with pytest.raises(
        UserError, match=rf"data\.jsonl:0: the verifier my:score gets .* rename the column {column}"
    ):
        read_prompts(config.model_copy(update={"verifier": "my:score"}), tokenizer)


# Lengths


def test_read_prompts__long_ones_are_dropped_and_counted(source, tokenizer):
    rows = [{"prompt": "x" * n, "answer": str(n)} for n in (3, 30, 4, 40)]
    found = read_prompts(DataConfig(source=source(rows), max_prompt_tokens=7), tokenizer)  # 3 of the template
    assert [(p.id, p.answer, len(p.token_ids)) for p in found.prompts] == [
        ("data.jsonl:0", "3", 6),
        ("data.jsonl:2", "4", 7),
    ]
    assert (found.rows, found.notes) == (4, ["2 of 4 prompts are over 7 tokens: dropped"])
    config = DataConfig(source=source(rows), max_prompt_tokens=32, too_long="error")
    with pytest.raises(ValueError, match=r"data\.jsonl:1: the prompt has 33 tokens.*max_prompt_tokens=32"):
        read_prompts(config, tokenizer)
    assert len(read_prompts(config.model_copy(update={"max_prompt_tokens": 43}), tokenizer).prompts) == 4
    with pytest.raises(ValueError, match=r"all 4 prompts exceed data\.max_prompt_tokens=3"):
        read_prompts(DataConfig(source=source(rows), max_prompt_tokens=3), tokenizer)


# Demonstrations


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "1+1?", "completion": "two"},
        {"prompt": "1+1?", "response": "two", "answer": "2"},
        {"prompt": USER, "completion": [{"role": "assistant", "content": "two"}]},
        {"messages": TALK},
        {"messages": TALK, "response": "two"},
        {"conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "two"}]},
        {"conversations": '[{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "two"}]'},
        {"question": "1+1?", "completion": "two"},
        {"a": "1", "b": "1", "completion": "two"},  # by data.prompt_template
    ],
)
def test_read_demonstrations__every_shape(source, tokenizer, row):
    template = "{a}+{b}?" if "a" in row else ""
    found = read_demonstrations(DataConfig(source=source([row]), prompt_template=template), tokenizer, 100)
    encode = tokenizer.convert_tokens_to_ids
    prompt = [encode("<|user|>"), *tokenizer("1+1?", add_special_tokens=False).input_ids]
    prompt += [encode("<|end|>"), encode("<|assistant|>")]
    response = [*tokenizer("two", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    assert found.rows == [Turn(tuple(prompt), tuple(response))]
    assert found.notes == []


def test_read_demonstrations__few_empty_responses_are_left_out_and_said(source, tokenizer):
    rows = [{"prompt": f"q{i}", "completion": " " if i == 7 else f"r{i}"} for i in range(101)]
    found = read_demonstrations(DataConfig(source=source(rows)), tokenizer, 100)
    assert found.notes == ["1 of 101 rows have an empty response (row 7): left out"]
    assert [tokenizer.decode(row.response_ids) for row in found.rows[6:8]] == ["r6<|end|>", "r8<|end|>"]


TOOLS = [{"type": "function", "function": {"name": "add"}}]
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}], "weight": None}
TEMPLATE = (
    "{% for t in tools or [] %}<|system|>{{ t.function.name }}<|end|>{% endfor %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }}]{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize("as_json", [False, True], ids=["objects", "JSON"])
def test_read_demonstrations__calls_of_tools_are_part_of_a_response(source, tokenizer, as_json: bool):
    """Of the last message, whose content is empty; earlier ones and the tools are in the prompt."""
    chat = [*USER, CALL, {"role": "tool", "content": "2", "tool_call_id": "x"}, *USER, CALL]
    row = {
        "messages": json.dumps(chat) if as_json else chat,
        "tools": json.dumps(TOOLS) if as_json else TOOLS,
    }
    config = DataConfig(source=source([row]))
    with pytest.raises(
        UserError, match=r"data\.jsonl:0: the row has tools, which the tokenizer's chat template leaves"
    ):
        read_demonstrations(config, tokenizer, 100)
    tokenizer.chat_template = TEMPLATE
    (turn,) = read_demonstrations(config, tokenizer, 100).rows
    prompt = (
        "<|system|>add<|end|><|user|>1+1?<|end|><|assistant|>[add]<|end|><|tool|>2<|end|><|user|>1+1?<|end|>"
    )
    assert tokenizer.decode(turn.prompt_ids) == prompt + "<|assistant|>"
    assert tokenizer.decode(turn.response_ids) == "[add]<|end|>"
    found = read_prompts(DataConfig(source=source([row | {"answer": "2"}])), tokenizer)
    assert tokenizer.decode(found.prompts[0].token_ids) == prompt + "<|assistant|>"


@pytest.mark.parametrize("extra", [{"reasoning_content": "why"}, {"weight": 0}, {"loss": False}])
def test_read_demonstrations__keys_of_a_message_do_not_vanish(source, tokenizer, extra: dict):
    rows = [{"messages": TALK}, {"messages": [*USER, TALK[-1] | extra]}]
    (key,) = extra
    with pytest.raises(
        UserError, match=rf"data\.jsonl:1: message 1 \(assistant\) has {key}, which .* leaves out"
    ):
        read_demonstrations(DataConfig(source=source(rows)), tokenizer, 100)


def test_read_demonstrations__named_fields(source, tokenizer):
    row = {"question": "1+1?", "answer": "#### 2", "extra": {"talk": TALK}}
    config = DataConfig(source=source([row]), response_field="answer")
    assert (
        tokenizer.decode(read_demonstrations(config, tokenizer, 100).rows[0].response_ids) == "#### 2<|end|>"
    )
    config = DataConfig(source=source([row]), prompt_field="extra.talk")
    (row,) = read_demonstrations(config, tokenizer, 100).rows
    assert tokenizer.decode(row.prompt_ids) == "<|user|>1+1?<|end|><|assistant|>"
    assert tokenizer.decode(row.response_ids) == "two<|end|>"


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"prompt": "a", "completion": ""}, {}, r"1 of 2 rows have an empty response \(row 1\)"),
        ({"prompt": "a", "completion": " \n"}, {}, r"1 of 2 rows have an empty response \(row 1\)"),
        ({"prompt": "a", "completion": None}, {}, r"data\.jsonl:1: the response must be text"),
        ({"prompt": "a", "completion": USER}, {}, r"data\.jsonl:1: the response must be text"),
        ({"prompt": "a", "completion": TALK}, {}, r"data\.jsonl:1: the response must be text"),
        ({"prompt": "a", "response": "b"}, {"response_field": "reply"}, r"reply.*: .*response.*data\.resp"),
        ({"messages": [*TALK, *USER]}, {}, r"data\.jsonl:1: the response must be .*message of the assistant"),
        ({"messages": [*USER, *USER]}, {}, r"data\.jsonl:1: the response must be .*message of the assistant"),
        ({"messages": USER}, {}, r"data\.jsonl:1: no response: messages .* completion or response.*data\.response_f"),
        ({"prompt": "a", "answer": "b"}, {}, r"data\.jsonl:0: no response: prompt .* completion or response"),
    ],
)  # fmt: skip
def test_read_demonstrations__bad_ones_are_named(source, tokenizer, row, settings, message):
    good = (
        {"messages": TALK}
        if "messages" in row
        else {"prompt": "a", **({} if "answer" in row else {"completion": "b"})}
    )
    with pytest.raises(ValueError, match=message):
        read_demonstrations(DataConfig(source=source([good, row]), **settings), tokenizer, 100)


def test_read_demonstrations__long_ones_are_dropped_and_counted(source, tokenizer):
    rows = [{"prompt": "x" * p, "completion": "y" * r} for p, r in ((1, 1), (1, 9), (9, 1), (2, 2), (30, 1))]
    config = DataConfig(source=source(rows), max_prompt_tokens=12)
    found = read_demonstrations(config, tokenizer, 8)  # 3 tokens of the template, 1 of the end
    assert [(len(d.prompt_ids), len(d.response_ids)) for d in found.rows] == [(4, 2), (5, 3)]
    assert found.notes == [
        "1 of 5 prompts are over 12 tokens: dropped",
        "2 demonstrations are over max_tokens=8: dropped",
    ]
    with pytest.raises(ValueError, match="all 5 rows are longer than max_tokens=5"):
        read_demonstrations(config, tokenizer, 5)
    with pytest.raises(ValueError, match=r"data\.jsonl:4: the prompt has 33 tokens"):
        read_demonstrations(config.model_copy(update={"too_long": "error"}), tokenizer, 8)


def test_read_demonstrations__a_tokenizer_without_an_end_cannot_learn(source, tokenizer):
    tokenizer.eos_token = None
    config = DataConfig(source=source([{"prompt": "a", "completion": "b"}]))
    assert len(read_demonstrations(config, tokenizer, 100).rows) == 1  # the chat template has an end
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        read_demonstrations(config.model_copy(update={"chat_template": "none"}), tokenizer, 100)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    with pytest.raises(ValueError, match="has a token that ends a response"):
        read_demonstrations(config, tokenizer, 100)


def test_read_prompts__every_row_has_an_id_of_its_own(source, tokenizer):
    """Equal prompts too: each of them is asked."""
    config = DataConfig(source=source([{"question": f"q{i % 7}", "answer": str(i)} for i in range(1000)]))
    found = read_prompts(config, tokenizer)
    assert [prompt.id for prompt in found.prompts] == [f"data.jsonl:{i}" for i in range(1000)]
    assert [prompt.answer for prompt in found.prompts] == [str(i) for i in range(1000)]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "task"])
@pytest.mark.parametrize(
    "settings", [{}, {"limit": 7}, {"where": {"n": "1"}}, {"where": {"n": "1"}, "limit": 5}]
)
def test_each_row__gives_the_rows_of_load_rows(tmp_path, kind, settings):
    rows = [{"n": str(i), "question": f"q{i}", "parts": [{"a": i}, {"a": None}]} for i in range(2500)]
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind != "task":
        path.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)) + "\n")
    else:
        path, settings = "task:clock", {"limit": 9}
    config = DataConfig(source=str(path), **settings)
    assert list(each_row(config)) == load_rows(config)


def test_each_row__names_the_line_that_cannot_be_read_when_it_comes_to_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "one"}\n[]\n')
    rows = each_row(DataConfig(source=str(path)))
    assert next(rows) == {"question": "one"}
    with pytest.raises(UserError, match=r"rows\.jsonl:2: expected an object"):
        next(rows)
