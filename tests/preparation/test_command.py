"""`openprime data` through the command line: what is kept, what a model is asked, and going on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from openprime.cli import main
from openprime.data.chat import SYSTEM
from openprime.preparation.checking import REWRITE, SOLVE
from support.tiny_runs import PYTHONPATH, records

LONG = (
    "A farmer has {n} cows in the north field and as many sheep in the south one, of which {m} are sold on Monday. "
    "How many animals are left?"
)
ROWS = [
    {"question": "What is 2+3?", "answer": "5", "level": 1},
    {"question": "what  is $2+3$?", "answer": "6"},  # the same question, whatever its answer
    {"question": "In the diagram, what is $x$?", "answer": "5"},
    {"question": "Prove that 2 is even.", "answer": "2"},
    {"question": "What is 7+7?", "answer": ""},
    {"question": "", "answer": "5"},
    {"question": "What is 8+8?", "answer": r"\frac{16}{"},
    {"question": "Find 4+4. (A) 7 (B) 8 (C) 9", "answer": "(B)"},
    {"question": "Which of the following is even? (A) 7 (B) 8 (C) 9", "answer": "B"},
    {"question": LONG.format(n=20, m=10), "answer": "30"},
    {
        "question": LONG.format(n=20, m=10).replace("farmer", "poor farmer"),
        "answer": "#### 30",
    },  # nearly the same
    {"question": LONG.format(n=25, m=20), "answer": "#### 30"},  # other numbers, more than one piece in five
    {"question": LONG.format(n=20, m=11), "answer": "29"},  # nearly, with another answer
    {
        "question": "A question of the test set, which nobody is to learn before it is evaluated: what is 5 times 5?",
        "answer": "25",
    },
]
REASONS = {
    **{
        1: "duplicate",
        2: "figure",
        3: "proof",
        4: "no_reference",
        5: "no_question",
        6: "unparsable",
        8: "choice",
    },
    **{10: "near_duplicate", 13: "benchmark"},
}
KEPT = [i for i in range(len(ROWS)) if i not in REASONS]
FORM = "[ASSESS]\n\n# It is asked for a sum.\n\nNext action: [OUTPUT]\n\n[OUTPUT]\n\n\\boxed{{{}}}"


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def said(body: dict) -> str:
    """The user's text in a request."""
    return body["messages"][-1]["content"]


def test_data__every_row_is_kept_or_dropped_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture):
    source, out = write(tmp_path / "rows.jsonl", ROWS), tmp_path / "out"
    test_set = write(
        tmp_path / "test.jsonl", [{"problem": ROWS[13]["question"].replace("A question", "One")}]
    )
    flags = ["--data.source", source, "--benchmarks", test_set, "--out", str(out)]
    assert main(["data", *flags]) == 0
    kept, dropped = records(out / "prepared.jsonl"), records(out / "dropped.jsonl")
    assert {row["origin"]: row["reason"] for row in dropped} == {
        f"rows.jsonl:{i}": r for i, r in REASONS.items()
    }
    assert [row["origin"] for row in kept] == [f"rows.jsonl:{i}" for i in KEPT]
    assert kept[0] == {"prompt": "What is 2+3?", "answer": "5", "origin": "rows.jsonl:0", "level": 1}
    opened = {"prompt": "Find 4+4.", "answer": "8", "origin": "rows.jsonl:7", "original": ROWS[7]["question"]}
    assert kept[1] == opened
    notes = {row["origin"]: row.get("note", "") for row in dropped}
    assert notes["rows.jsonl:10"] == f"rows.jsonl:9: {ROWS[9]['question']}"
    assert notes["rows.jsonl:13"].startswith("test.jsonl: One of the test set, which nobody is to learn")
    report = json.loads((out / "report.json").read_text())
    assert (report["rows"], report["kept"], report["opened"]) == (len(ROWS), len(KEPT), 1)
    assert {name: each["rows"] for name, each in report["dropped"].items()} == Counter(REASONS.values())
    assert report["dropped"]["figure"]["examples"] == [
        {"origin": "rows.jsonl:2", "question": ROWS[2]["question"], "answer": "5"}
    ]
    assert report["sources"] == {"rows.jsonl": len(ROWS)}
    shown = " ".join(capsys.readouterr().out.split())
    assert "near_duplicate 1 7.1%" in shown
    assert f"of them 1 were multiple choice {len(ROWS)} rows in" in shown
    assert main(["data", *flags]) == 2
    assert main(["data", *flags, "--resume"]) == 0
    assert records(out / "prepared.jsonl") == kept


def test_data__what_is_prepared_is_read_by_rl_and_sft_without_a_field_that_is_named(
    tmp_path: Path, tokenizer
):
    from openprime.config import DataConfig
    from openprime.data.readers import read_prompts

    source, out = write(tmp_path / "rows.jsonl", ROWS[:1]), tmp_path / "out"
    assert main(["data", "--data.source", source, "--out", str(out)]) == 0
    (prompt,) = read_prompts(DataConfig(source=str(out / "prepared.jsonl")), tokenizer).prompts
    assert (prompt.messages, prompt.answer) == ("What is 2+3?", "5")


def test_data__several_sources_each_with_its_fields_on_two_processes(tmp_path: Path):
    one = write(
        tmp_path / "one.jsonl", [{"question": f"What is {i}+1?", "answer": str(i + 1)} for i in range(1200)]
    )
    chat = [{"role": "system", "content": "Think."}, {"role": "user", "content": "What is 7+1?"}]
    closed = [chat[0], {"role": "user", "content": "Find it: (A) 1 (B) 2 (C) 3"}]
    two = write(
        tmp_path / "two.jsonl",
        [
            {"prompt": chat, "reward_model": {"ground_truth": "8"}},
            {"prompt": closed, "reward_model": {"ground_truth": "C"}},
            {"prompt": [{"role": "user"}], "reward_model": {"ground_truth": "8"}},
        ],
    )  # fmt: skip
    out = tmp_path / "out"
    assert (
        main(["data", "--data.source", one, "--more-sources", two, "--workers", "2", "--out", str(out)]) == 0
    )
    kept = records(out / "prepared.jsonl")
    assert [row["origin"] for row in kept] == [*(f"one.jsonl:{i}" for i in range(1200)), "two.jsonl:1"]
    assert kept[-1]["prompt"] == [chat[0], {"role": "user", "content": "Find it:"}]
    assert kept[-1]["answer"] == "3"
    reasons = {row["origin"]: row["reason"] for row in records(out / "dropped.jsonl")}
    assert reasons == {"two.jsonl:0": "duplicate", "two.jsonl:2": "no_question"}


def test_data__solvability_by_agreement_of_the_samples_of_an_endpoint(served, tmp_path: Path):
    rows = [{"question": f"What is {i}+1?", "answer": str(i + 1)} for i in range(5)]
    wrong = {1: [r"\boxed{77}"] * 3, 2: [r"\boxed{unsolvable}"] * 3, 3: [r"\boxed{1}", r"\boxed{2}", "?"]}

    def reply(body: dict) -> list[str]:
        (i,) = (i for i, row in enumerate(rows) if said(body) == SOLVE.format(question=row["question"]))
        return wrong.get(i, [rf"so \boxed{{{i + 1}}}", rf"\boxed{{{i + 1}.0}}", "I think 5"])

    endpoint, out = served(reply), tmp_path / "out"
    flags = [
        "--data.source",
        write(tmp_path / "rows.jsonl", rows),
        "--endpoint",
        endpoint.url,
        "--out",
        str(out),
    ]
    flags += ["--samples", "3", "--temperature", "0.7", "--max-response-tokens", "99"]
    assert main(["data", *flags]) == 0
    kept = records(out / "prepared.jsonl")
    assert [(row["origin"], row["accuracy"]) for row in kept] == [
        ("rows.jsonl:0", 0.6667),
        ("rows.jsonl:4", 0.6667),
    ]
    lost = {row["origin"]: row["reason"] for row in records(out / "dropped-by-model.jsonl")}
    assert lost == {
        "rows.jsonl:1": "other_answer",
        "rows.jsonl:2": "unsolvable",
        "rows.jsonl:3": "no_agreement",
    }
    assert len(endpoint.asked) == 5
    seeds = [body.pop("seed") for body in endpoint.asked]
    assert len(set(seeds)) == 5
    for body in endpoint.asked:
        assert body == {
            "model": "a-model",
            "messages": [{"role": "user", "content": said(body)}],
            "n": 3,
            "max_tokens": 99,
            "temperature": 0.7,
        }
    assert main(["data", *flags, "--resume"]) == 0
    assert len(endpoint.asked) == 5
    assert records(out / "prepared.jsonl") == kept


def test_data__a_model_rewrites_multiple_choice_and_may_refuse(served, tmp_path: Path):
    rows = [{"question": f"Find {i}+1. (A) 0 (B) {i + 1} (C) 99", "answer": "B"} for i in (3, 4, 5)]

    def reply(body: dict) -> list[str]:
        if said(body) == REWRITE.format(question=rows[0]["question"]):
            return ["What is the sum of 3 and 1?"]
        if said(body) == REWRITE.format(question=rows[1]["question"]):
            return ["NEEDS OPTIONS"]
        if said(body) == REWRITE.format(question=rows[2]["question"]):
            return ["What is the sum?"]  # it has lost the numbers
        assert said(body) == SOLVE.format(question="What is the sum of 3 and 1?")
        return [r"\boxed{4}"] * 2

    endpoint, out = served(reply), tmp_path / "out"
    flags = [
        "--data.source",
        write(tmp_path / "rows.jsonl", rows),
        "--endpoint",
        endpoint.url,
        "--out",
        str(out),
    ]
    assert main(["data", *flags, "--choices", "ask", "--samples", "2"]) == 0
    (row,) = records(out / "prepared.jsonl")
    assert (row["prompt"], row["answer"], row["accuracy"]) == ("What is the sum of 3 and 1?", "4", 1.0)
    assert row["original"] == rows[0]["question"]
    report = json.loads((out / "report.json").read_text())
    assert (report["kept"], report["opened"], report["dropped"]["choice"]["rows"]) == (1, 1, 2)


def test_data__demonstrations_in_the_form_of_the_seven_actions(served, tmp_path: Path, tokenizer):
    from openprime.config import DataConfig
    from openprime.data.readers import read_demonstrations

    rows = [{"question": f"What is {i}+1?", "answer": str(i + 1)} for i in range(3)]
    texts = {
        "0": [r"\boxed{1}", FORM.format(7), FORM.format(1), FORM.format("1.0")],
        "1": [FORM.format(5)] * 4,
        "2": [r"\boxed{3}"] * 4,
    }
    endpoint, out = served(lambda body: texts[said(body).split("What is ")[1][0]]), tmp_path / "out"
    flags = [
        "--data.source",
        write(tmp_path / "rows.jsonl", rows),
        "--endpoint",
        endpoint.url,
        "--out",
        str(out),
    ]
    assert main(["data", *flags, "--demonstrations", "4"]) == 0
    assert len(records(out / "prepared.jsonl")) == 3
    (shown,) = records(out / "demonstrations.jsonl")
    asked = "What is 0+1?\n\nPresent the answer in LaTex format: \\boxed{Your answer}"
    assert shown["messages"] == [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": asked},
        {"role": "assistant", "content": FORM.format(1)},
    ]
    report = json.loads((out / "report.json").read_text())
    assert report["demonstrations"] == {"written": 1, "wrong": 1, "not_in_form": 1}
    data = DataConfig(source=str(out / "demonstrations.jsonl"))
    assert len(read_demonstrations(data, tokenizer, 4096).rows) == 1


@pytest.mark.slow
def test_data__a_killed_command_goes_on_and_asks_nothing_twice(served, tmp_path: Path):
    rows = [{"question": f"What is {i}+1?", "answer": str(i + 1)} for i in range(40)]
    source = write(tmp_path / "rows.jsonl", rows)
    halted: list[int] = [10]

    def reply(body: dict) -> list[str]:
        while halted and len(endpoint.answered) >= halted[0]:
            time.sleep(0.02)
        number = int(said(body).split("What is ")[1].split("+")[0])
        return [rf"\boxed{{{number + 1 + (number % 4 == 3)}}}"]

    def flags(out: Path) -> list[str]:
        asks = ["--samples", "1", "--demonstrations", "1", "--sequences", "2", "--endpoint", endpoint.url]
        return ["data", "--data.source", source, "--out", str(out), *asks]

    endpoint, out = served(reply), tmp_path / "out"
    for stop in (signal.SIGKILL, signal.SIGTERM):
        resume = ["--resume"] if out.exists() else []
        command = [sys.executable, "-m", "openprime", *flags(out), *resume]
        process = subprocess.Popen(command, env=os.environ | PYTHONPATH, stderr=subprocess.PIPE, text=True)
        while len(endpoint.asked) < len(endpoint.answered) + 2 or len(endpoint.answered) < halted[0]:
            time.sleep(0.02)
            assert process.poll() is None, process.stderr.read()
        time.sleep(0.3)
        process.send_signal(stop)
        _, error = process.communicate(timeout=60)
        assert process.returncode == (-9 if stop == signal.SIGKILL else 143), error
        halted[0] += 20
        if stop == signal.SIGTERM:
            halted.clear()
    assert main([*flags(out), "--resume"]) == 0
    endpoint.stop()
    asked = Counter(said(body) + str(len(body["messages"])) for body in endpoint.asked)
    assert len(asked) == 40 + 30  # solutions, and demonstrations of the rows that are kept
    assert len(endpoint.asked) <= 70 + 2 * 2  # but for those that were under way
    assert len(records(out / "prepared.jsonl")) == 30
    assert len(records(out / "answers.jsonl")) == 70


def test_data__a_local_model_is_sampled_by_the_packages_own_engine(model: Path, tmp_path: Path):
    rows = [
        {"question": f"Start {word}\n+one = ?\n+two = ?", "answer": "5"} for word in ("two", "three", "four")
    ]
    source, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out"
    flags = ["--data.source", source, "--model", str(model), "--samples", "3", "--agreement", "0.3"]
    flags += ["--max-response-tokens", "12", "--demonstrations", "2"]
    assert main(["data", *flags, "--out", str(out)]) == 0
    answers = records(out / "answers.jsonl")
    assert [len(answer["texts"]) for answer in answers][:3] == [3, 3, 3]
    report = json.loads((out / "report.json").read_text())
    assert report["kept"] + sum(each["rows"] for each in report["dropped"].values()) == 3
    assert main(["data", *flags, "--out", str(tmp_path / "again")]) == 0
    again = records(tmp_path / "again" / "answers.jsonl")
    assert {a["key"]: a["texts"] for a in again} == {a["key"]: a["texts"] for a in answers}
    # What was lost is sampled as it was.
    (out / "checked.jsonl").unlink()
    (out / "demonstrated.jsonl").unlink(missing_ok=True)
    (out / "answers.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers if a is not answers[1]))
    assert main(["data", *flags, "--out", str(out), "--resume"]) == 0
    assert {a["key"]: a["texts"] for a in records(out / "answers.jsonl")} == {
        a["key"]: a["texts"] for a in answers
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--filters", "figures"], "no filter 'figures'; there are: figure, proof"),
        (["--samples", "3"], "name a server's in endpoint, or one in model"),
        (["--samples", "3", "--endpoint", "node1:8000"], "'node1:8000' is no address"),
        (["--samples", "3", "--endpoint", "http://127.0.0.1:9/v1"], "is it the address as far as /v1"),
        (["--more-sources", "rows.jsonl"], "a source is named twice"),
        (["--data.prompt-field", "text"], "no row has a field text; there are: question, answer"),
        (["--more-sources", "gone.jsonl"], "there is no file gone.jsonl"),
        (["--benchmarks", "gone.jsonl"], "there is no file gone.jsonl"),
        (["--benchmarks", "empty.jsonl"], "empty.jsonl has no question in any row: name its fields in a YAML"),
    ],
)  # fmt: skip
def test_data__a_mistake_is_named(
    flags: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", ROWS[:1])
    write(tmp_path / "empty.jsonl", [{"problem": "What is 2 + 3?", "messages": []}])
    assert main(["data", "--data.source", "rows.jsonl", "--out", "out", *flags]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_data__where_nothing_is_kept_it_says_why(tmp_path: Path, capsys: pytest.CaptureFixture):
    source = write(tmp_path / "rows.jsonl", ROWS[2:4])
    assert main(["data", "--data.source", source, "--out", str(tmp_path / "out")]) == 2
    assert "none of 2 rows is kept: figure 1, proof 1" in " ".join(capsys.readouterr().err.split())
