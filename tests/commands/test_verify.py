"""`openprime verify` through the command line, on files as users have them."""

import json
from pathlib import Path

import pytest

from openprime.cli import main
from support.tiny_runs import records

SQUARE = {"inputs": ["2\n", "5\n"], "outputs": ["4\n", "25\n"], "fn_name": None}
ADD = {"inputs": [[1, 2], [3, 4]], "outputs": [3, 7], "fn_name": "add"}


def fenced(program: str) -> str:
    return f"Here it is.\n```python\n{program}\n```\n"


ROWS = [
    ({"response": r"so \boxed{\frac{1}{2}}", "answer": "0.5", "id": 7}, 1.0, "right"),
    ({"response": "#### 5", "answer": "4"}, 0.0, "wrong"),
    ({"response": "I do not know", "answer": 4}, 0.0, "no_answer"),
    ({"response": r"\boxed{9^{9^{9^{9}}}}", "answer": "4"}, 0.0, "rejected"),
    ({"response": fenced("print(int(input()) ** 2)"), "tests": SQUARE}, 1.0, "right"),
    ({"response": fenced("print(4)"), "tests": SQUARE}, 0.5, "partial"),
    ({"response": fenced("while True: pass"), "tests": SQUARE}, 0.0, "timeout"),
    ({"response": fenced("def add(a, b): return a + b"), "tests": ADD}, 1.0, "right"),
    ({"response": fenced("def add(a, b): return 1 / 0"), "tests": ADD}, 0.0, "crash"),
    ({"response": "no program", "tests": ADD}, 0.0, "no_answer"),
    ({"response": fenced("print(1)"), "tests": {"inputs": ["1"], "outputs": []}}, None, "no_verdict"),
    ({"response": r"\boxed{}", "answer": "4"}, 0.0, "no_answer"),
    ({"response": r"\boxed{4}", "answer": " "}, None, "no_verdict"),
    ({"response": r"\boxed{4}", "answer": None}, None, "no_verdict"),
    ({"response": None, "answer": 4.0}, 0.0, "no_answer"),
    ({"response": "#### 4", "answer": 4.0}, 1.0, "right"),
]


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_verify__every_row_comes_back_judged_and_the_console_sums_up(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    path = write(tmp_path / "responses.jsonl", [row for row, _, _ in ROWS])
    out = tmp_path / "deep" / "judged.jsonl"
    assert main(["verify", "--file", str(path), "--out", str(out), "--verify.code.seconds", "0.5"]) == 0
    judged = records(out)
    assert [(row["outcome"], row["reason"]) for row in judged] == [(o, reason) for _, o, reason in ROWS]
    for (row, _, _), found in zip(ROWS, judged, strict=True):
        assert {key: found[key] for key in row} == row
        assert found["seconds"] >= 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("right 4", "no_answer 4", "wrong 1", "timeout 1", "rejected 1", "16 responses, 25.0% right"):
        assert part in said
    assert "one output, whatever the input, passes the tests of 0.0% of 7 rows with tests" in said
    assert "the answer 4 is that of 85.7% of 7 rows with an answer" in said
    assert "a second with" in said
    assert "sandbox: strict" in said


def test_verify__says_how_many_rows_a_constant_solves(tmp_path: Path, capsys: pytest.CaptureFixture):
    same = {"inputs": ["1", "2"], "outputs": ["7", "7"]}
    rows = [{"response": fenced("print(7)"), "tests": tests} for tests in (same, same, SQUARE)]
    rows += [{"response": "#### 3", "answer": answer} for answer in ("3", 3, " 3", "5")]
    path = write(tmp_path / "r.jsonl", rows)
    assert main(["verify", str(path), "--out", str(tmp_path / "o.jsonl")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "one output, whatever the input, passes the tests of 66.7% of 3 rows with tests" in said
    assert "the answer 3 is that of 75.0% of 4 rows with an answer" in said


def test_verify__a_row_that_cannot_be_judged_says_why(tmp_path: Path):
    rows = [{"response": fenced("print(1)"), "tests": {"inputs": ["1"], "outputs": []}}]
    path, out = write(tmp_path / "r.jsonl", rows), tmp_path / "o.jsonl"
    assert main(["verify", str(path), "--out", str(out)]) == 0
    assert records(out)[0]["note"] == "tests need two lists of the same length, inputs and outputs"


def test_verify__score_share_or_all(tmp_path: Path):
    path = write(tmp_path / "r.jsonl", [{"response": fenced("print(4)"), "tests": SQUARE}])
    out = tmp_path / "o.jsonl"
    assert main(["verify", str(path), "--out", str(out), "--verify.code.score", "all"]) == 0
    assert (records(out)[0]["outcome"], records(out)[0]["reason"]) == (0.0, "wrong")


def test_verify__a_users_function_and_rows_that_name_their_verifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "by_length.py").write_text(
        "def score(prompts, completions, answer, **columns):\n"
        "    if completions[0] == 'bad': raise KeyError('oh')\n"
        "    return [len(c) / 10 for c in completions]\n"
    )
    rows = [
        {"response": "12345", "answer": "x", "verifier": "by_length:score"},
        {"response": "#### 4", "answer": "4", "verifier": "math"},
    ]
    args = ["verify", str(write(tmp_path / "r.jsonl", rows)), "--out", "o.jsonl"]
    assert main([*args, "--allow-modules", "by_length:score"]) == 0
    assert [row["outcome"] for row in records(tmp_path / "o.jsonl")] == [0.5, 1.0]
    rows = [{"response": "bad", "answer": "x"}, {"response": "fine", "answer": "x"}]
    args = ["verify", str(write(tmp_path / "r.jsonl", rows)), "--out", "o.jsonl"]
    with pytest.warns(UserWarning, match="oh"):
        assert main([*args, "--verifier", "by_length:score"]) == 0
    assert [row["outcome"] for row in records(tmp_path / "o.jsonl")] == [None, 0.4]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"answer": "4"}], "row 1: no text in the field response; there are: answer"),
        ([{"response": "#### 4", "answer": "4"}, {"response": 4, "answer": "4"}], "row 2: no text"),
        ([{"response": "#### 4"}], "row 1: no field answer, nor tests for code; there are: response"),
        ([{"response": "", "answer": "4", "verifier": "maths"}], "no verifier 'maths'"),
        ([], "no rows"),
        ([[1]], "r.jsonl:1: expected an object"),
    ],
)
def test_verify__rows_that_cannot_be_judged_are_refused_before_any_is(
    tmp_path: Path, capsys: pytest.CaptureFixture, rows: list, message: str
):
    path = write(tmp_path / "r.jsonl", rows)
    assert main(["verify", str(path), "--out", str(tmp_path / "o.jsonl")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "o.jsonl").exists()


def test_verify__files_that_are_not_there_and_the_file_itself_as_result(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert main(["verify", "nowhere.jsonl", "--out", "o.jsonl"]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err
    path = write(tmp_path / "r.jsonl", [{"response": "a", "answer": "1"}])
    assert main(["verify", str(path), "--out", str(path)]) == 2
    assert "is the file to read" in capsys.readouterr().err
    assert len(records(path)) == 1
    assert main(["verify", str(path)]) == 2
    assert "out is not set" in capsys.readouterr().err
