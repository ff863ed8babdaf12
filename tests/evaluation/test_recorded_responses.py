"""`openprime evaluate --responses FILE`: recorded responses, judged and scored, and what is wrong with a file."""

import itertools
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from openprime.cli import main
from openprime.evaluation.benchmarks import mark_bare
from openprime.prime.prm import ImplicitPRM
from openprime.run import jsonl
from openprime.types import Prompt
from openprime.verifiers.math import verify_math
from openprime.verifiers.pool import Pool
from support.tiny_prm import save_prm
from support.tiny_runs import records

QUESTIONS = [{"question": f"What is {i} + {i}?", "answer": f"It is so.\n#### {2 * i}"} for i in range(6)]


def write(path: Path, rows: list) -> Path:
    """A JSONL file; texts go in as they are."""
    texts = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six questions."""
    return write(tmp_path / "questions.jsonl", QUESTIONS)


def recorded(i: int, count: int = 4) -> list[str]:
    """Responses to question i: the k-th is right where k divides i."""
    texts = [f"I add.\nIt is \\boxed{{{2 * i + i % (k + 1)}}}" for k in range(count)]
    return [*texts[:-1], ""]


def args(data: Path, responses: Path, out: Path, *flags: str) -> list[str]:
    """Arguments of an evaluation."""
    files = ("--data", str(data), "--responses", str(responses), "--out", str(out))
    return ["evaluate", "--benchmark", "gsm8k", *files, *flags]


def judge(data: Path, rows: list, tmp_path: Path, *flags: str) -> tuple[dict, list[dict]]:
    """Results and rows of an evaluation that must succeed."""
    out = tmp_path / "out"
    assert main(args(data, write(tmp_path / "responses.jsonl", rows), out, *flags)) == 0
    results = json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)
    return results["benchmarks"]["gsm8k"], records(out / "gsm8k" / "responses.jsonl")


LINES = [{"responses": recorded(i)} for i in range(6)]


def test_evaluate_responses__are_judged_without_a_model(data: Path, tmp_path: Path):
    results, rows = judge(data, LINES, tmp_path)
    expected = [[float(i % (k + 1) == 0) for k in range(3)] + [0.0] for i in range(6)]
    assert [[r["outcome"] for r in row["responses"]] for row in rows] == expected
    assert {row["responses"][-1]["reason"] for row in rows} == {"no_answer"}
    assert [[r["text"] for r in row["responses"]] for row in rows] == [line["responses"] for line in LINES]
    assert results["samples"] == 4
    assert results["avg@4"][0] == pytest.approx(np.mean(expected))
    for k in (1, 2, 4):
        shares = [np.mean([max(c) for c in itertools.combinations(row, k)]) for row in expected]
        assert results["pass@k"][str(k)][0] == pytest.approx(np.mean(shares))
    for key in ("greedy", "truncated", "response_tokens"):
        assert key not in results


def test_read_recorded__fewer_responses_or_the_first_items(data: Path, tmp_path: Path):
    """With a line for every item, and with a line for those alone."""
    results, rows = judge(data, LINES, tmp_path, "--samples", "2", "--limit", "2")
    assert results["items"] == len(rows) == 2
    assert [[r["text"] for r in row["responses"]] for row in rows] == [x["responses"][:2] for x in LINES[:2]]
    assert results["avg@2"][0] == pytest.approx(np.mean([[1.0, float(i % 2 == 0)] for i in range(2)]))
    (tmp_path / "again").mkdir()
    assert judge(data, LINES[:2], tmp_path / "again", "--samples", "2", "--limit", "2") == (results, rows)


def test_evaluate_responses__a_prm_scores_them(data: Path, tmp_path: Path, model: Path):
    """Also an empty one, which has the reward of its end."""
    folder = save_prm(model, tmp_path / "prm")
    results, rows = judge(data, LINES, tmp_path, "--prm", str(folder), "--step-split", "newline")
    prm = ImplicitPRM.from_pretrained(str(folder), device="cpu")
    for row in rows:
        for r in row["responses"]:
            (score,) = prm.score([row["prompt"]], [r["text"]])
            assert r["rewards"] == pytest.approx(score.token_rewards, abs=3e-5)
            assert len(r["step_rewards"]) == (2 if r["text"] else 1)
            assert r["reference_logprob"] == pytest.approx(sum(score.reference_logprobs), abs=1e-3)
        assert len(row["responses"][-1]["rewards"]) == 1
    shares = []
    for row in rows:
        pairs = itertools.combinations(row["responses"], 2)
        shares.append(np.mean([max(pair, key=lambda r: r["reward"])["outcome"] for pair in pairs]))
    assert results["best_of_n"]["PRM"]["2"][0] == pytest.approx(np.mean(shares))
    assert "PRM-weighted vote" in results["best_of_n"]


def test_evaluate_responses__files_of_our_own_can_be_judged_again(data: Path, tmp_path: Path, model: Path):
    """The file of an evaluation or of generate: with another PRM, say."""
    results, _ = judge(data, LINES, tmp_path)
    out = tmp_path / "again"
    assert main(args(data, tmp_path / "out" / "gsm8k" / "responses.jsonl", out)) == 0
    assert json.loads((out / "results.json").read_text())["benchmarks"]["gsm8k"] == results
    clock = [
        "--data.source",
        "task:clock",
        "--data.split",
        "test",
        "--data.horizon",
        "8",
        "--data.limit",
        "4",
    ]
    few = ["--responses", "2", "--max-response-tokens", "16", "--out", str(tmp_path / "made")]
    assert main(["generate", str(model), *clock, *few]) == 0
    made = tmp_path / "made" / "responses.jsonl"
    given = ["--benchmark", "clock", "--limit", "4", "--responses", str(made)]
    assert main(["evaluate", *given, "--out", str(tmp_path / "judged")]) == 0
    for row, same in zip(
        records(tmp_path / "judged" / "clock" / "responses.jsonl"), records(made), strict=True
    ):
        for r, s in zip(row["responses"], same["responses"], strict=True):
            assert (r["text"], r["outcome"], r["reason"]) == (s["text"], s["outcome"], s["reason"])


@pytest.mark.parametrize("chat", [True, False])
def test_evaluate_responses__chat_prompts_are_items_too(tmp_path: Path, chat: bool):
    prompt = [{"role": "user", "content": "1 + 1?"}] if chat else "1 + 1?"
    data = write(tmp_path / "questions.jsonl", [{"prompt": prompt, "answer": 2}] * 3)
    results, rows = judge(data, [{"responses": [f"#### {n}"]} for n in (2, 3, 2)], tmp_path)
    assert all(row["prompt"][0]["content"].startswith("1 + 1?\n\nPresent the answer") for row in rows)
    assert [row["responses"][0]["outcome"] for row in rows] == [1.0, 0.0, 1.0]  # equal items, each judged
    assert results["avg@1"][0] == pytest.approx(2 / 3)


# Where the answer stands


@pytest.mark.parametrize(
    ("mode", "outcomes"),
    [("auto", [1, 1, 0, 1, 1]), ("hashes", [1, 0, 1, 0, 1]), ("boxed", [0, 1, 0, 1, 1])],
)
def test_evaluate_responses__where_the_answer_stands_may_be_told(
    tmp_path: Path, mode: str, outcomes: list[int]
):
    """A bare answer counts as one in every way."""
    data = write(tmp_path / "questions.jsonl", [QUESTIONS[1]])
    texts = ["#### 2", "\\boxed{2}", "#### 2\nor \\boxed{3}", "#### 3\nor \\boxed{2}", "2"]
    results, (row,) = judge(data, [{"responses": texts}], tmp_path, "--verify.answers", mode)
    assert [r["outcome"] for r in row["responses"]] == outcomes
    assert results["maj@k"]["5"][0] == 1.0  # 2 is the most frequent answer in every way


def test_evaluate_responses__votes_are_of_the_answers_that_are_judged(tmp_path: Path):
    """By hashes 2 has two votes of three; by boxes it has none, and 5 has two."""
    data = write(tmp_path / "questions.jsonl", [QUESTIONS[1]])
    texts = ["#### 3\n\\boxed{5}", "#### 2\n\\boxed{5}", "#### 2\n\\boxed{6}"]
    for mode, expected in (("hashes", 1.0), ("boxed", 0.0)):
        (tmp_path / mode).mkdir()
        results, _ = judge(data, [{"responses": texts}], tmp_path / mode, "--verify.answers", mode)
        assert results["maj@k"]["3"][0] == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2", "right"),
        (" 2.0 \n", "right"),
        (r"\frac{4}{2}", "right"),
        ("2 apples", "right"),
        ("3", "wrong"),
        ("x", "wrong"),
        (r"\text{not a number}", "wrong"),
        ("The answer is 2", "no_answer"),
        ("I cannot say.", "no_answer"),
        ("es ist 2", "no_answer"),
        ("1\n2", "no_answer"),
        ("", "no_answer"),
        (" \n\t", "no_answer"),
        ("\\boxed{}", "wrong"),
    ],
)
def test_mark_bare__a_bare_answer_is_one_but_prose_is_not(text: str, reason: str):
    item = Prompt("p:0", (), "1 + 1?", "2")
    (verdict,) = verify_math(item, [mark_bare(text, item)])
    assert verdict.reason == reason


def test_mark_bare__a_reference_of_several_words_is_an_answer_too():
    item = Prompt("p:0", (), "Which?", "no real solution")
    assert mark_bare("no real solution", item) == r"\boxed{no real solution}"
    assert mark_bare("no known solution", item) == "no known solution"


# Bad input


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"responses": "2"}, ", responses: expected a list with at least one entry, found '2'"),
        ({"response": "2", "id": 3}, ': expected {"responses": [...]}, found the fields response, id'),
        ({}, ': expected {"responses": [...]}, found the fields (none)'),
        ({"responses": ["2", "3", "\ud83d"]}, ": half a character (a lone surrogate"),
        (
            {"responses": ["2"]},
            ": 1 responses, other lines have more: use the first of each with --samples 1",
        ),
        ("[1, 2]", ": expected an object {...} on each line, found [1, 2]"),
        ('{"responses": ["2", "3"', ": not valid JSON"),
    ],
)
def test_read_recorded__a_line_of_another_kind_is_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, line: object, message: str
):
    rows = [*LINES[:2], "", line, *LINES[3:]]  # blank lines are no rows, but they are lines
    path = write(tmp_path / "responses.jsonl", rows)
    assert main(args(data, path, tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert f"openprime: {path}:4{message}" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_read_recorded__more_than_there_are_cannot_be_chosen_from(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    rows = [*LINES[:4], {"responses": ["2", "3"]}, LINES[5]]
    path = write(tmp_path / "responses.jsonl", rows)
    assert main(args(data, path, tmp_path / "out", "--samples", "4")) == 2
    assert f"{path}:5: 2 responses, fewer than samples=4" in capsys.readouterr().err
    assert main(args(data, path, tmp_path / "out")) == 2
    assert f"{path}:5: 2 responses, other lines have more" in capsys.readouterr().err
    assert main(args(data, path, tmp_path / "out", "--samples", "2")) == 0
    path.write_text(json.dumps(rows))  # an array has no lines
    path = path.rename(tmp_path / "responses.json")
    assert main(args(data, path, tmp_path / "json", "--samples", "4")) == 2
    assert f"{path}, entry 4: 2 responses, fewer than samples=4" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [LINES[:5], [*LINES, LINES[0]]])
def test_read_recorded__as_many_lines_as_items(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, rows: list
):
    path = write(tmp_path / "responses.jsonl", rows)
    assert main(args(data, path, tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert (
        f"{path}: {len(rows)} lines for the 6 items of {data}: line i holds the responses to item i" in said
    )


def test_evaluate_responses__settings_of_sampling_have_no_effect(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    judge(data, LINES, tmp_path, "--temperature", "0.5", "--max-response-tokens", "9")
    said = " ".join(capsys.readouterr().out.split())
    assert "note: no effect where nothing is sampled: temperature, max_response_tokens" in said


def test_evaluate_responses__none_can_be_judged(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """No tests in any row: nothing is left to judge."""
    path = write(tmp_path / "responses.jsonl", LINES)
    (tmp_path / "code.yaml").write_text("data: {source: x, verifier: code}")
    given = args(data, path, tmp_path / "out", "--benchmark", str(tmp_path / "code.yaml"))
    assert main(given) == 2
    assert "6 of 6 prompts have tests that cannot be judged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Going on


def test_evaluate_responses__a_signal_stops_between_items_and_nothing_is_lost(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    whole = tmp_path / "whole"
    path = write(tmp_path / "responses.jsonl", LINES)
    assert main(args(data, path, whole)) == 0
    monkeypatch.setattr(jsonl, "CHUNK", 2)
    real = Pool.judge

    def stop(pool: Pool, groups: list) -> list:
        if groups[0].prompt.id.endswith(":2"):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(pool, groups)

    monkeypatch.setattr(Pool, "judge", stop)
    assert main(args(data, path, tmp_path / "out")) == 143
    assert "stopped by SIGTERM: saved; go on with --resume" in capsys.readouterr().err
    assert len(records(tmp_path / "out" / "gsm8k" / "responses.jsonl")) == 2
    monkeypatch.setattr(Pool, "judge", real)
    assert main(args(data, path, tmp_path / "out", "--resume")) == 0
    for name in ("gsm8k/responses.jsonl", "results.json"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()
