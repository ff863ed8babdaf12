"""`openprime score` through the command line: the rows come back with the rewards that the PRM gives."""

import datetime
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from transformers import AutoTokenizer

from openprime.cli import main
from openprime.commands import score as stage
from openprime.config import PromptFormat
from openprime.data.records import vocabulary_id
from openprime.models.tiny import build_tokenizer
from openprime.prime.prm import ImplicitPRM, Score
from openprime.run import jsonl
from openprime.run.jsonl import read_jsonl
from openprime.types import Group, Prompt, Response
from support.tiny_prm import save_prm, token_rewards

QUESTION = "Start four\n+seven = ?"
FIELDS = {"tokens", "token_rewards", "steps", "step_rewards", "reward", "probability"}


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_prm(model, tmp_path_factory.mktemp("score") / "prm")


@pytest.fixture(scope="module")
def prm(folder: Path) -> ImplicitPRM:
    return ImplicitPRM.from_pretrained(str(folder), device="cpu")


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def scored(folder: Path, tmp_path: Path, rows: list[dict], *flags: str) -> list[dict]:
    """The rows as the command leaves them."""
    path, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out"
    assert main(["score", str(path), "--prm", str(folder), "--out", str(out), *flags]) == 0
    return read_jsonl(out / "scores.jsonl")


def assert_score(found: dict, expected: Score) -> None:
    assert found["tokens"] == expected.tokens
    assert found["token_rewards"] == pytest.approx(expected.token_rewards, abs=1e-5)
    assert found["step_rewards"] == pytest.approx(expected.step_rewards, abs=1e-5)
    assert found["reward"] == pytest.approx(expected.reward, abs=1e-5)
    odds = 2.718281828459045**expected.reward
    assert found["probability"] == pytest.approx(odds / (1 + odds), abs=1e-5)


# What comes back


def test_score__rows_come_back_with_their_rewards(
    folder: Path, prm: ImplicitPRM, tmp_path: Path, capsys: pytest.CaptureFixture
):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    rows = [
        {"prompt": QUESTION, "response": "+seven one\n#### 1", "id": 7, "note": {"a": [1.5, None]}},
        {"prompt": None, "question": QUESTION, "response": ""},
        {"problem": chat, "response": "e\u0301 😀\n\nso\u2028 it is"},
    ]
    found = scored(folder, tmp_path, rows)
    expected = prm.score([QUESTION, QUESTION, chat], [row["response"] for row in rows])
    for row, result, score in zip(rows, found, expected, strict=True):
        assert {key: result[key] for key in row} == row
        assert set(result) == set(row) | FIELDS
        assert_score(result, score)
        assert result["steps"] == score.steps
    said = capsys.readouterr().out
    tokens = sum(len(score.tokens) for score in expected)
    mean = sum(score.reward for score in expected) / 3
    assert f"3 rows, 3 responses, {tokens} tokens: mean reward {mean:+.4f}, mean probability 0." in said
    assert f"written: {tmp_path / 'out' / 'scores.jsonl'}\n" in said


def test_score__a_line_may_have_several_responses(folder: Path, prm: ImplicitPRM, tmp_path: Path):
    rows = [
        {"prompt": QUESTION, "answer": "1", "responses": ["one", {"text": "two\n2", "outcome": 0.0}]},
        {"prompt": "What?", "responses": [{"text": "three", "token_ids": []}]},
    ]
    found = scored(folder, tmp_path, rows)
    expected = prm.score([QUESTION, QUESTION, "What?"], ["one", "two\n2", "three"])
    results = [response for row in found for response in row["responses"]]
    for result, score in zip(results, expected, strict=True):
        assert_score(result, score)
        assert result["steps"] == score.steps
    assert [set(result) - FIELDS for result in results] == [
        {"text"},
        {"text", "outcome"},
        {"text", "token_ids"},
    ]
    assert [set(row) for row in found] == [set(row) for row in rows]


def test_trap_13__token_ids_of_the_prms_vocabulary_are_taken(folder: Path, prm: ImplicitPRM, tmp_path: Path):
    """Sampled tokens are not always those that their text is encoded to (trap 13)."""
    tokenizer = prm.tokenizer
    assert tokenizer is not None
    ids = [tokenizer.convert_tokens_to_ids(letter) for letter in "seven"]
    assert tokenizer.encode("seven") != ids
    response = {"text": "seven", "token_ids": ids}
    rows = [
        {"prompt": QUESTION, "responses": [response], "vocabulary": vocabulary_id(tokenizer)},
        {"prompt": QUESTION, "responses": [response], "vocabulary": "of another"},
        {"prompt": QUESTION, "responses": [response]},
    ]
    as_they_are, *others = (row["responses"][0] for row in scored(folder, tmp_path, rows))
    chat = [{"role": "user", "content": QUESTION}]
    prompt_ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    group = Group(Prompt("", tuple(prompt_ids), "", None), (Response(tuple(ids), (), "", True),), 0)
    assert_score(as_they_are, prm.score_sampled([group])[0][0])
    assert as_they_are["tokens"] == list("seven")
    for other in others:
        assert_score(other, prm.score([QUESTION], ["seven"])[0])
        assert other["tokens"] != list("seven")


def test_score__steps_are_joined_by_blank_lines(folder: Path, prm: ImplicitPRM, tmp_path: Path):
    steps = ["Step 1: seven\nmore", "Step 2: one", ""]
    rows = [{"problem": QUESTION, "steps": steps, "label": 1}, {"problem": QUESTION, "steps": ["one"]}]
    found = scored(folder, tmp_path, rows)
    pieces = ["Step 1: seven\nmore\n\n", "Step 2: one\n\n", ""]
    (expected,) = prm.score([QUESTION], ["".join(pieces)], [pieces])
    assert_score(found[0], expected)
    assert len(found[0]["step_rewards"]) == 3
    assert found[0]["steps"] == steps  # the row's own
    assert found[0]["label"] == 1
    assert_score(found[1], prm.score([QUESTION], ["one"])[0])


def test_score__step_split(folder: Path, tmp_path: Path):
    rows = [{"prompt": QUESTION, "response": "a\nb\n\nc"}]
    (found,) = scored(folder, tmp_path, rows, "--step-split", "blank_line")
    assert found["steps"] == ["a\nb\n\n", "c"]


TALK = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "seven\n1"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": QUESTION, "completion": "seven\n1"},
        {"prompt": QUESTION, "completion": TALK[1:]},
        {"messages": TALK},
        {"messages": json.dumps(TALK), "id": 3},
        {"question": TALK, "completion": "seven\n1"},
    ],
)
def test_score__formats_that_people_have(folder: Path, prm: ImplicitPRM, tmp_path: Path, row: dict):
    (found,) = scored(folder, tmp_path, [row])
    assert_score(found, prm.score([QUESTION], ["seven\n1"])[0])
    assert {key: found[key] for key in row} == row
    assert found["steps"] == ["seven\n", "1"]


def test_score__a_parquet_file(folder: Path, prm: ImplicitPRM, tmp_path: Path):
    rows = [{"prompt": QUESTION, "response": "one", "at": datetime.date(2024, 1, 2), "none": None}] * 2
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet")
    args = ["score", str(tmp_path / "r.parquet"), "--prm", str(folder), "--out", str(tmp_path / "out")]
    assert main(args) == 0
    assert main([*args, "--resume"]) == 0
    found = read_jsonl(tmp_path / "out" / "scores.jsonl")
    assert [row["at"] for row in found] == ["2024-01-02"] * 2
    for row in found:
        assert_score(row, prm.score([QUESTION], ["one"])[0])


def test_score__the_end_is_that_of_the_chat_template(
    folder: Path, model: Path, prm: ImplicitPRM, tmp_path: Path
):
    """Where eos_token is another one, which the model never says in a chat; a response cut off has no end."""
    for name, source in (("prm", folder), ("reference", model)):
        shutil.copytree(source, tmp_path / name)
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokenizer.eos_token = "<|endoftext|>"
        tokenizer.save_pretrained(tmp_path / name)
    rows = [{"prompt": QUESTION, "responses": ["one", {"text": "one", "truncated": True}]}]
    flags = ("--reference", str(tmp_path / "reference"))
    whole, cut = scored(tmp_path / "prm", tmp_path, rows, *flags)[0]["responses"]
    ids = tokenizer.encode("one", add_special_tokens=False)
    chat = [{"role": "user", "content": QUESTION}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert whole["token_rewards"] == pytest.approx(token_rewards(folder, model, asked, [*ids, end]), abs=1e-5)
    assert cut["token_rewards"] == pytest.approx(token_rewards(folder, model, asked, ids), abs=1e-5)
    assert_score(whole, prm.score([QUESTION], ["one"])[0])


def test_score__prompt_format(folder: Path, prm: ImplicitPRM, tmp_path: Path):
    rows = [
        {"prompt": QUESTION, "response": "one"},
        {"prompt": QUESTION, "response": "one", "verifier": "code"},
    ]
    found = scored(folder, tmp_path, rows, "--prompt.template", "eurus", "--prompt.system", "Be brief.")
    boxed = "\n\nPresent the answer in LaTex format: \\boxed{Your answer}"
    code = "\n\nWrite Python code to solve the problem. Present the code in \n```python\nYour code\n```\nat the end."
    for result, suffix in zip(found, (boxed, code), strict=True):
        form = PromptFormat(system="Be brief.", suffix=suffix)
        assert_score(result, prm.score([QUESTION], ["one"], form=form)[0])
    assert found[0]["reward"] != pytest.approx(found[1]["reward"], abs=1e-4)


# Interruption


ROWS = [{"prompt": QUESTION, "response": "+seven " * i} for i in range(9)]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch):
    """Two rows are written at a time."""
    monkeypatch.setattr(jsonl, "CHUNK", 2)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("cut", [0, 5, 700, 1500, -1, -100])
def test_score__resumes_without_repeating_or_losing_a_row(folder: Path, tmp_path: Path, cut: int):
    scored(folder, tmp_path, ROWS)
    path = tmp_path / "out" / "scores.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    scored(folder, tmp_path, ROWS, "--resume")
    assert path.read_bytes() == whole


@pytest.mark.parametrize("change", [{"reward": "x"}, {"reward": None}, {"tokens": 3}, {"responses": [3]}])
def test_score__a_row_of_another_kind_is_named_in_a_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, change: dict
):
    rows = scored(folder, tmp_path, ROWS)
    path = write(tmp_path / "out" / "scores.jsonl", [rows[0] | change, *rows[1:]])
    args = ["score", str(tmp_path / "rows.jsonl"), "--prm", str(folder), "--out", str(tmp_path / "out")]
    assert main([*args, "--resume"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"openprime: {path} is damaged (")
    assert said.count("\n") == 1


@pytest.mark.parametrize(("number", "call", "left"), [(signal.SIGINT, 3, 4), (signal.SIGTERM, 5, 8)])
def test_score__a_signal_leaves_what_is_written(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    number: int,
    call: int,
    left: int,
):
    """The chunk that is being made is lost, two calls each."""
    monkeypatch.setattr(jsonl, "CHUNK", 4)
    monkeypatch.setattr(stage, "AT_A_TIME", 2)
    args = ["score", str(write(tmp_path / "r.jsonl", ROWS)), "--prm", str(folder)]
    assert main([*args, "--out", str(tmp_path / "whole")]) == 0
    calls = []

    def interrupted(self: ImplicitPRM, *rest: Any) -> list[Score]:
        calls.append(rest)
        if len(calls) == call:
            signal.raise_signal(number)
        return score_tokens(self, *rest)

    score_tokens = ImplicitPRM.score_tokens
    monkeypatch.setattr(ImplicitPRM, "score_tokens", interrupted)
    assert main([*args, "--out", str(tmp_path / "out")]) == 128 + number
    assert f"stopped by {signal.Signals(number).name}: saved; go on with --resume" in capsys.readouterr().err
    assert len(calls) == call
    assert len(read_jsonl(tmp_path / "out" / "scores.jsonl")) == left
    assert main([*args, "--out", str(tmp_path / "out"), "--resume"]) == 0
    name = "scores.jsonl"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_score__another_file_cannot_resume(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    scored(folder, tmp_path, ROWS[:3])
    args = ["score", str(tmp_path / "rows.jsonl"), "--prm", str(folder), "--out", str(tmp_path / "out")]
    assert main(args) == 2
    assert "holds a run already: go on with --resume" in capsys.readouterr().err
    write(tmp_path / "rows.jsonl", [{"prompt": "another", "response": ""}, *ROWS[1:]])
    assert main([*args, "--resume"]) == 2
    assert "scores.jsonl, line 1: it is of none of the" in capsys.readouterr().err
    write(tmp_path / "rows.jsonl", ROWS[:2])
    assert main([*args, "--resume"]) == 2
    assert (
        "scores.jsonl, line 3: it is of none of the 2 items: the data have changed" in capsys.readouterr().err
    )
    assert len(scored(folder, tmp_path, ROWS, "--resume")) == 9  # one that has grown can


# What a user does wrong


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"response": "a"}, "row 2: no field prompt or messages or question or problem"),
        ({"prompt": "", "response": "a"}, "row 2, prompt: expected text or a list of messages"),
        ({"prompt": "q", "reply": "a"}, "row 2: no field response, responses, completion or steps; there are: prompt"),
        ({"prompt": "q", "responses": ["a", 4]}, "row 2, responses[1]: expected text, found 4"),
        ({"prompt": "q", "response": "a", "note": "half \ud83d"}, "r.jsonl:2: half a character"),
        (
            {"prompt": "q", "responses": [{"text": "a", "token_ids": ["x"]}], "vocabulary": True},
            "row 2, responses[0]: expected token_ids as a list of numbers",
        ),
    ],
)  # fmt: skip
def test_score__rows_that_cannot_be_scored_are_refused_before_any_is(
    folder: Path, prm: ImplicitPRM, tmp_path: Path, capsys: pytest.CaptureFixture, row: dict, message: str
):
    assert prm.tokenizer is not None
    row |= {"vocabulary": vocabulary_id(prm.tokenizer)} if "vocabulary" in row else {}
    path = write(tmp_path / "r.jsonl", [{"prompt": "q", "response": "a"}, row])
    assert main(["score", str(path), "--prm", str(folder), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_score__files_folders_and_models_that_do_not_fit(
    folder: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    path = write(tmp_path / "r.jsonl", [{"prompt": "q", "response": "a"}])
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}\n'.encode("latin-1"))
    (tmp_path / "empty.jsonl").touch()
    other = tmp_path / "other"
    prm = ImplicitPRM.from_pretrained(str(folder), device="cpu")
    prm.save_pretrained(other, build_tokenizer(["quite another text"] * 5, 300), "")
    inside = tmp_path / "inside"
    inside.mkdir()
    write(inside / "scores.jsonl", [{"prompt": "q", "response": "a"}])
    out = tmp_path / "out"
    good = {"file": path, "prm": folder, "out": out}
    cases = [
        (good | {"file": tmp_path / "nowhere.jsonl"}, "file: there is no file"),
        (good | {"file": tmp_path / "latin.jsonl"}, "latin.jsonl:1: not UTF-8"),
        (good | {"file": tmp_path / "empty.jsonl"}, "empty.jsonl: no rows"),
        (good | {"out": path}, "r.jsonl is a file: name a folder"),
        (good | {"file": inside / "scores.jsonl", "out": inside}, "scores.jsonl is the file to read"),
        (good | {"prm": model}, "not an implicit PRM"),
        (good | {"reference": other}, "the vocabulary of"),
        (good | {"prm": other, "reference": model}, "the vocabulary of"),
        ({"file": path, "prm": folder}, "out is not set"),
        ({"file": path, "out": out}, "prm is not set"),
    ]
    for settings, message in cases:
        flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
        assert main(["score", *flags]) == 2, flags
        err = capsys.readouterr().err
        assert message in err
        assert "Traceback" not in err
    assert not out.exists()
    assert read_jsonl(inside / "scores.jsonl") == [{"prompt": "q", "response": "a"}]
