"""`openprime generate`: what is written of the responses, and that a stop repeats and loses nothing."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from openprime.cli import main
from openprime.data.records import vocabulary_id
from openprime.run import jsonl
from openprime.tasks.clock import check_steps
from support.tiny_runs import end, lines, records, start_in_chunks, wait_for

CLOCK = ("--data.source", "task:clock", "--data.split", "prm", "--data.horizon", "2", "--data.limit", "10")
FLAGS = ("--responses", "5", "--max-response-tokens", "16")


def args(model: Path, out: Path, *flags: str) -> list[str]:
    """Arguments of a small run; later flags win."""
    return ["generate", str(model), "--out", str(out), *CLOCK, *FLAGS, *flags]


def generate(model: Path, out: Path, *flags: str) -> list[dict]:
    """The rows of a run that must succeed."""
    assert main(args(model, out, *flags)) == 0
    return records(out / "responses.jsonl")


@pytest.fixture(scope="module")
def done(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a suffix."""
    out = tmp_path_factory.mktemp("generate") / "out"
    generate(model, out, "--data.suffix", "\nGo.", "--data.system", "Count.")
    return out


def write(path: Path, rows: list[dict]) -> str:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# What is written


def test_generate__each_prompt_has_a_line_with_its_responses(done: Path, model: Path):
    rows, tokenizer = records(done / "responses.jsonl"), AutoTokenizer.from_pretrained(model)
    assert [row["item"] for row in rows] == list(range(10))
    assert [row["id"] for row in rows] == [f"task:clock:prm:{i}" for i in range(10)]
    for row in rows:
        system, user = row["prompt"]
        assert system == {"role": "system", "content": "Count."}
        assert user["content"].endswith(" = ?\nGo.")
        assert row["vocabulary"] == vocabulary_id(tokenizer)
        assert len(row["responses"]) == 5
        for r in row["responses"]:
            assert tokenizer.decode(r["token_ids"], skip_special_tokens=True) == r["text"]
            assert r["truncated"] == (r["token_ids"][-1] != tokenizer.eos_token_id)
            assert len(r["token_ids"]) == 16 or not r["truncated"]
            right = r["text"].strip().splitlines()[-1:] == [f"#### {row['answer']}"]
            assert r["outcome"] == float(right)
            assert (r["reason"] == "right") == right
            lines_right = check_steps(user["content"].removesuffix("\nGo."), r["text"])
            assert (
                r["outcome"] == 1.0 or len(lines_right) != 3 or not all(lines_right)
            )  # answers of their prompts
    texts = [r["text"] for row in rows for r in row["responses"]]
    assert len(set(texts)) > 30  # sampled, not decoded greedily


def test_generate__what_changes_the_samples(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """The seed, not how many are decoded at a time; at temperature 0 they are greedy, all alike."""
    rows = generate(model, tmp_path / "many")
    said = " ".join(capsys.readouterr().out.split())
    reasons = [r["reason"] for row in rows for r in row["responses"]]
    assert "50 responses: " in said
    assert all(f"{reason} {reasons.count(reason)}" in said for reason in reasons)
    assert generate(model, tmp_path / "one", "--sequences", "1") == rows
    assert generate(model, tmp_path / "seed", "--seed", "1") != rows
    for row in generate(model, tmp_path / "greedy", "--temperature", "0"):
        assert len({tuple(r["token_ids"]) for r in row["responses"]}) == 1


def test_generate__equal_prompts_are_each_answered(model: Path, tmp_path: Path):
    rows = [{"prompt": "Start one\n+two = ?\n+one = ?", "answer": "4"}] * 3
    source = write(tmp_path / "d.jsonl", rows)
    found = generate(model, tmp_path / "out", "--data.source", source, "--data.limit", "0")
    assert [row["id"] for row in found] == ["d.jsonl:0", "d.jsonl:1", "d.jsonl:2"]
    assert len({str(row["responses"]) for row in found}) == 3  # with random numbers of its own


def test_generate__what_is_left_out_is_said_and_keeps_its_number(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    tests = json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]})
    rows = [
        {"prompt": "Start one", "answer": tests},
        {"prompt": "Start one " * 50, "answer": tests},
        {"prompt": "Start two", "answer": '["[/INST]", 1'},
        {"prompt": "Start six", "answer": tests},
    ]
    source = write(tmp_path / "d.jsonl", rows)
    flags = ("--data.source", source, "--data.verifier", "code", "--data.max-prompt-tokens", "60")
    found = generate(model, tmp_path / "out", *flags)
    assert [(row["item"], row["id"]) for row in found] == [(0, "d.jsonl:0"), (3, "d.jsonl:3")]
    assert {r["reason"] for row in found for r in row["responses"]} == {"no_answer"}
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of 4 prompts are over 60 tokens: dropped" in said
    assert "1 of 3 prompts have tests that cannot be judged: left out (d.jsonl:2: " in said
    assert "[/INST]" in said  # no markup of rich, which would end with an error


REWARD = """
def score(prompts, completions, **columns):
    return [None, 0.25, 0.5, 0.75, 1.0]
"""


def test_generate__outcomes_of_ones_own(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "graded.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    for row in generate(model, tmp_path / "out", "--data.verifier", "graded:score"):
        assert [r["outcome"] for r in row["responses"]] == [None, 0.25, 0.5, 0.75, 1.0]


def test_generate__a_model_without_a_chat_template(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    plain = Path(shutil.copytree(model, tmp_path / "plain"))
    (plain / "chat_template.jinja").unlink()
    assert main(args(plain, tmp_path / "out")) == 2
    assert "set data.chat_template: none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert len(generate(plain, tmp_path / "out", "--data.chat-template", "none")) == 10


# Going on


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four prompts at a time."""
    monkeypatch.setattr(jsonl, "CHUNK", 4)


@pytest.mark.usefixtures("chunks")
def test_generate__wherever_it_dies_the_same_comes_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Within a chunk and at its end, and with half a line."""
    generate(model, tmp_path / "whole")
    whole = (tmp_path / "whole" / "responses.jsonl").read_bytes()
    out, real = tmp_path / "out", jsonl.append_jsonl
    for count in (1, 4, 6, 10):

        def die(path: Path, row: dict, count: int = count) -> None:
            real(path, row)
            if lines(path) == count:
                raise KeyboardInterrupt

        monkeypatch.setattr(jsonl, "append_jsonl", die)
        assert main(args(model, out, *(["--resume"] if count > 1 else []))) == 130
        assert lines(out / "responses.jsonl") == count
        with (out / "responses.jsonl").open("ab") as file:
            file.write('{"item": 7, "id": "é'.encode()[: 5 * count])
    monkeypatch.setattr(jsonl, "append_jsonl", real)
    generate(model, out, "--resume", "--sequences", "7")
    assert (out / "responses.jsonl").read_bytes() == whole


MANY = ("--data.limit", "72", "--responses", "8")


@pytest.mark.usefixtures("chunks")
def test_generate__a_kill_and_a_signal_cost_no_prompt(model: Path, tmp_path: Path):
    """kill -9, then SIGTERM, each in a process of its own, at some moment."""
    out = tmp_path / "out"
    process = start_in_chunks(args(model, out, *MANY))
    wait_for(lambda: lines(out / "responses.jsonl") >= 8, process)
    assert end(process, signal.SIGKILL)[0] == -signal.SIGKILL
    killed = lines(out / "responses.jsonl")
    assert 8 <= killed < 72
    process = start_in_chunks(args(model, out, *MANY, "--resume"))
    wait_for(lambda: lines(out / "responses.jsonl") >= killed + 4, process)
    status, errors = end(process, signal.SIGTERM)
    assert status == 128 + signal.SIGTERM
    assert "openprime: stopped by SIGTERM: saved; go on with --resume" in errors
    assert "Traceback" not in errors
    assert killed + 4 <= lines(out / "responses.jsonl") < 72
    rows = generate(model, out, *MANY, "--resume")
    assert [row["item"] for row in rows] == list(range(72))
    generate(model, tmp_path / "whole", *MANY)
    whole = (tmp_path / "whole" / "responses.jsonl").read_bytes()
    assert (out / "responses.jsonl").read_bytes() == whole


@pytest.mark.parametrize("responses", [None, 3, ["a"], [{}], [{"reason": []}]])
def test_generate__a_row_of_another_kind_is_named_in_a_line(
    model: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture, responses: object
):
    out = Path(shutil.copytree(done, tmp_path / "out"))
    path = out / "responses.jsonl"
    write(path, [row | {"responses": responses} for row in records(path)])
    assert main(args(model, out, "--data.suffix", "\nGo.", "--data.system", "Count.", "--resume")) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"openprime: {path} is damaged (")
    assert said.count("\n") == 1


def test_generate__a_folder_in_use_is_refused_and_other_settings_too(
    done: Path, model: Path, capsys: pytest.CaptureFixture
):
    before = (done / "responses.jsonl").read_bytes()
    same = ("--data.suffix", "\nGo.", "--data.system", "Count.")
    assert main(args(model, done, *same)) == 2
    assert f"{done} holds a run already: go on with --resume" in capsys.readouterr().err
    assert main(args(model, done, *same, "--resume", "--responses", "6", "--temperature", "0.5")) == 2
    said = capsys.readouterr().err
    assert "responses: 5 -> 6" in said
    assert "temperature: 1.0 -> 0.5" in said
    assert (done / "responses.jsonl").read_bytes() == before


def test_generate__nothing_is_begun_with_bad_input(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    spoilt = Path(shutil.copytree(model, tmp_path / "spoilt"))
    (spoilt / "model.safetensors").write_bytes(b"half a file")
    assert main(args(spoilt, tmp_path / "out")) != 0
    assert main(args(model, tmp_path / "out", "--data.source", str(tmp_path / "gone.jsonl"))) == 2
    assert main(args(model, tmp_path / "out", "--data.verifier", "gone:score")) == 2
    assert main(["generate", "--out", str(tmp_path / "out"), *CLOCK]) == 2
    said = capsys.readouterr().err
    for words in (str(spoilt), "there is no file", "no module gone", "model is not set"):
        assert words in said
    assert not (tmp_path / "out").exists()
