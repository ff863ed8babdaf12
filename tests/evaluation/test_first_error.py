"""`openprime evaluate --benchmark processbench`: does a PRM find the first wrong step?"""

import json
import math
import random
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from openprime.cli import main
from openprime.evaluation.calibration import cross_fitted_f1
from openprime.run import run as run_module
from support.tiny_prm import BETA, save_prm
from support.tiny_runs import records

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def item(i: int) -> dict:
    """A row in ProcessBench's fields; one in three is right."""
    rng = random.Random(i)
    steps = [f"+two is {rng.choice(NUMBERS)}.\n*three é {i}" for _ in range(rng.randrange(1, 6))]
    label = -1 if i % 3 == 0 else rng.randrange(len(steps))
    return {
        "id": f"gsm8k-{i}",
        "generator": "x",
        "problem": f"Start {NUMBERS[i % 10]}\n+two = ?",
        "steps": steps,
        "final_answer_correct": label < 0,
        "label": label,
    }


ITEMS = [item(i) for i in range(14)]


def write(path: Path, rows: list[dict]) -> str:
    """A file of rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def prm(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PRM whose rewards are all over the place."""
    return save_prm(model, tmp_path_factory.mktemp("first-errors") / "prm")


def args(data: str, prm: Path, out: Path, *flags: str) -> list[str]:
    """Arguments of an evaluation."""
    given = ("--data", data, "--prm", str(prm), "--out", str(out))
    return ["evaluate", "--benchmark", "processbench", *given, *flags]


@pytest.fixture(scope="module")
def done(prm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of all items."""
    folder = tmp_path_factory.mktemp("done")
    assert main(args(write(folder / "items.jsonl", ITEMS), prm, folder / "out")) == 0
    return folder / "out"


def read(out: Path) -> tuple[dict, list[dict]]:
    """Results and rows."""
    results = json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)
    return results["benchmarks"]["processbench"], records(out / "processbench" / "responses.jsonl")


def by_hand(prm: Path, model: Path, row: dict, chat: bool = True) -> list[float]:
    """The reward of each step, through transformers' own forward pass."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    before = (
        f"<|im_start|>user\n{row['problem']}<|im_end|>\n<|im_start|>assistant\n" if chat else row["problem"]
    )
    start = tokenizer(before, add_special_tokens=False)["input_ids"]
    text = "\n\n".join(row["steps"])
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = [*encoded["input_ids"], tokenizer.eos_token_id]
    whole = torch.tensor([[*start, *ids]])
    logprobs = []
    for name in (prm, model):
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)(whole).logits[0].double()
        table = logits.log_softmax(-1)
        logprobs.append([float(table[len(start) + t - 1, token]) for t, token in enumerate(ids)])
    rewards = [BETA * (a - b) for a, b in zip(*logprobs, strict=True)]
    ends, position = [], 0
    for step in row["steps"]:
        position += len(step) + 2  # the blank line belongs to the step before it
        ends.append(position)
    sums = [0.0] * len(row["steps"])
    places = [begin for begin, _ in encoded["offset_mapping"]] + [len(text)]
    for place, reward in zip(places, rewards, strict=True):
        sums[next((k for k, end in enumerate(ends) if place < end), len(ends) - 1)] += reward
    return sums


def test_the_reward_of_a_step_is_the_log_ratio_of_its_tokens(done: Path, prm: Path, model: Path):
    _, rows = read(done)
    assert [row["item"] for row in rows] == list(range(len(ITEMS)))
    for row, given in zip(rows, ITEMS, strict=True):
        assert row["step_rewards"] == pytest.approx(by_hand(prm, model, given), abs=1e-4)
    assert any(reward < 0 for row in rows for reward in row["step_rewards"])
    assert any(reward > 0 for row in rows for reward in row["step_rewards"])


def harmonic(found: list[int], labels: list[int]) -> tuple[float, float, float]:
    """Shares of wrong and of right solutions that are judged rightly, and their harmonic mean."""
    shares = []
    for wrong in (True, False):
        hits = [f == label for f, label in zip(found, labels, strict=True) if (label >= 0) == wrong]
        shares.append(sum(hits) / len(hits))
    return *shares, 2 * shares[0] * shares[1] / sum(shares) if sum(shares) else 0.0


def test_the_first_step_below_0_is_called_wrong(done: Path):
    results, rows = read(done)
    found = []
    for row, given in zip(rows, ITEMS, strict=True):
        below = [k for k, reward in enumerate(row["step_rewards"]) if reward < 0]
        assert row["first_error"] == (below[0] if below else -1)
        assert row["label"] == given["label"]
        found.append(row["first_error"])
    expected = harmonic(found, [given["label"] for given in ITEMS])
    measured = results["first_error"]["threshold 0"]
    assert (measured["error_accuracy"], measured["correct_accuracy"], measured["f1"]) == pytest.approx(
        expected
    )
    assert results["items"] == len(ITEMS)


def test_the_other_threshold_has_not_seen_what_it_judges(done: Path):
    results, rows = read(done)
    rewards, labels = [row["step_rewards"] for row in rows], [row["label"] for row in rows]
    expected = cross_fitted_f1(rewards, labels, 0)  # which has tests of its own
    assert results["first_error"]["threshold from the other half"]["f1"] == pytest.approx(expected.f1)


def test_the_share_of_lowest_last_steps(done: Path):
    results, rows = read(done)
    several = [row["step_rewards"] for row in rows if len(row["step_rewards"]) > 1]
    expected = sum(min(rewards[:-1]) > rewards[-1] for rewards in several) / len(several)
    assert results["lowest_step_last"] == pytest.approx(expected)


def test_the_page_and_the_table_say_so(done: Path, prm: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    results, _ = read(done)
    shown = f"{results['first_error']['threshold 0']['f1']:.3f}"
    assert f"<td>{shown}" in (done / "results.html").read_text()
    assert main(args(write(tmp_path / "items.jsonl", ITEMS), prm, tmp_path / "out")) == 0
    out = capsys.readouterr().out
    assert shown in out
    assert "threshold 0" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(("rows", "key"), [(ITEMS[::3], "error_accuracy"), ([ITEMS[1]], "correct_accuracy")])
def test_without_wrong_or_without_right_solutions_there_is_no_f1(
    prm: Path, tmp_path: Path, capsys: pytest.CaptureFixture, rows: list[dict], key: str
):
    """results.json is JSON still, which knows no NaN."""
    assert main(args(write(tmp_path / "items.jsonl", rows), prm, tmp_path / "out")) == 0
    results, _ = read(tmp_path / "out")
    measured = results["first_error"]["threshold 0"]
    assert measured["f1"] is measured[key] is None
    assert " - " in capsys.readouterr().out


def test_a_prm_without_a_chat_template(prm: Path, model: Path, tmp_path: Path):
    plain = Path(shutil.copytree(prm, tmp_path / "plain"))
    (plain / "chat_template.jinja").unlink()
    assert main(args(write(tmp_path / "items.jsonl", ITEMS[:2]), plain, tmp_path / "out")) == 0
    _, rows = read(tmp_path / "out")
    for row, given in zip(rows, ITEMS, strict=False):
        assert row["step_rewards"] == pytest.approx(by_hand(prm, model, given, chat=False), abs=1e-4)


def test_the_parts_of_the_hub(prm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load_dataset(name: str, subset: str | None, split: str) -> datasets.Dataset:
        asked.append((name, subset, split))
        return datasets.Dataset.from_list(ITEMS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    names = ("processbench", "processbench-math", "processbench-olympiadbench", "processbench-omnimath")
    given = ("--prm", str(prm), "--limit", "4", "--out", str(tmp_path / "out"))
    assert main(["evaluate", "--benchmark", *names, *given]) == 0
    splits = ("gsm8k", "math", "olympiadbench", "omnimath")
    assert asked == [("Qwen/ProcessBench", None, split) for split in splits]
    for name in names:
        assert len(records(tmp_path / "out" / name / "responses.jsonl")) == 4


# Going on


def test_after_a_stop_the_same_comes_out(
    done: Path, prm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run_module, "CHUNK", 4)
    data, out = write(tmp_path / "items.jsonl", ITEMS), tmp_path / "out"
    real, count = run_module.append_jsonl, [0]

    def die(path: Path, row: dict) -> None:
        real(path, row)
        count[0] += 1
        if count[0] == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "append_jsonl", die)
    assert main(args(data, prm, out)) == 130
    assert len(records(out / "processbench" / "responses.jsonl")) == 6
    monkeypatch.setattr(run_module, "append_jsonl", real)
    assert main(args(data, prm, out, "--resume")) == 0
    assert read(out)[0]["first_error"] == read(done)[0]["first_error"]
    for row, other in zip(read(out)[1], read(done)[1], strict=True):
        assert row["step_rewards"] == pytest.approx(other["step_rewards"], abs=1e-5)  # other company


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "no row has a field steps; there are: id, generator, problem, steps, "),
        ({"steps": None, "label": None}, "no row has a field steps nor label; there are: "),
        ({"problem": None}, "no row has a field prompt or messages or question or problem"),
        ({"steps": []}, "items.jsonl:0, steps: expected a list with at least one entry, found []"),
        ({"steps": "one"}, "items.jsonl:0, steps: expected a list with at least one entry, found 'one'"),
        ({"steps": ["a", 3]}, "items.jsonl:0, steps[1]: expected text, found 3"),
        ({"label": 9}, "items.jsonl:0: label must be the index of a step or -1, found 9"),
        ({"label": -2}, "items.jsonl:0: label must be the index of a step or -1, found -2"),
        ({"label": True}, "items.jsonl:0: label must be the index of a step or -1, found True"),
        ({"label": "0"}, "items.jsonl:0: label must be the index of a step or -1, found '0'"),
        ({"problem": ["x"]}, "items.jsonl:0: expected a message with `role` and `content`"),
    ],
)
def test_rows_of_another_kind_are_named(
    prm: Path, tmp_path: Path, capsys: pytest.CaptureFixture, changes: dict, message: str
):
    data = write(tmp_path / "items.jsonl", [ITEMS[0] | changes])
    assert main(args(data, prm, tmp_path / "out")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_it_needs_a_prm_and_no_responses(prm: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    data = write(tmp_path / "items.jsonl", ITEMS)
    given = ["evaluate", "--benchmark", "processbench", "--data", data, "--out", str(tmp_path / "out")]
    assert main(given) == 2
    assert "processbench asks a PRM for the first wrong step: name it with --prm" in capsys.readouterr().err
    assert main([*given, "--prm", str(prm), "--responses", data]) == 2
    assert (
        "processbench asks a PRM for the first wrong step; it takes no responses" in capsys.readouterr().err
    )
    assert main([*given, "--prm", str(tmp_path)]) == 2
    assert "not an implicit PRM: it has no implicit_prm.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_measure_of_these_tests():
    assert harmonic([0, 1, -1, 0], [0, 0, -1, -1]) == (0.5, 0.5, 0.5)
    assert math.isclose(harmonic([0, 0, -1, 0], [0, 0, -1, -1])[2], 2 / 3)
