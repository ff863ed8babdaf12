"""The first wrong step: ProcessBench's measures, and `openprime evaluate --benchmark processbench`."""

import json
import math
import random
import shutil
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from openprime.cli import main
from openprime.evaluation.first_error import best_threshold, cross_fitted_f1, first_error, first_error_f1
from openprime.run import jsonl
from support import brute
from support.strategies import property_test
from support.tiny_prm import save_prm, token_rewards
from support.tiny_runs import records

# The measures


def test_first_error__by_hand():
    scores = [0.9, 0.5, 0.2, 0.7, 0.1]
    thresholds = [0.1, 0.15, 0.5, 0.6, 0.95]
    assert [first_error(scores, t) for t in thresholds] == [-1, 4, 2, 1, 0]
    assert first_error([], 0.5) == -1


@property_test
@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 3)), max_size=20))
def test_first_error_f1__equals_counting(rows: list[tuple[int, int]]):
    predicted, labels = [p for p, _ in rows], [label for _, label in rows]
    wanted = brute.first_error_f1(predicted, labels)
    assert first_error_f1(predicted, labels) == pytest.approx(wanted, nan_ok=True)


def test_first_error_f1__by_hand():
    """12 of 40 wrong steps named, 18 of 20 correct responses let pass: 2 * 0.3 * 0.9 / 1.2.

    Late, early or missing blame of an erroneous response are all as wrong, and any blame of a correct one.
    """
    labels = [2] * 40 + [-1] * 20
    predicted = [2] * 12 + [3] * 10 + [1] * 10 + [-1] * 8 + [-1] * 18 + [0, 2]
    assert first_error_f1(predicted, labels) == pytest.approx((0.3, 0.9, 0.45))


# The threshold


def responses(seed: int, count: int, steps: int, grain: int) -> tuple[list[list[float]], list[int]]:
    """Random step scores, coarse enough for ties, and labels of both kinds."""
    rng = random.Random(seed)
    scores = [[rng.randint(-grain, grain) / 4 for _ in range(rng.randint(1, steps))] for _ in range(count)]
    return scores, [-1, 0, *(rng.randint(-1, len(row) - 1) for row in scores[2:])]


@property_test
@given(st.integers(0, 10**6), st.integers(2, 25), st.integers(1, 6), st.integers(1, 20))
def test_best_threshold__is_the_best_of_all(seed: int, count: int, steps: int, grain: int):
    scores, labels = responses(seed, count, steps, grain)
    threshold = best_threshold(scores, labels)
    assert math.isfinite(threshold)
    found = brute.first_error_f1([brute.first_error(row, threshold) for row in scores], labels)[2]
    assert found == pytest.approx(brute.largest_f1(scores, labels), abs=1e-12)
    # The lowest of equals: no threshold below it does as well, if it judges otherwise at all.
    ours = [brute.first_error(row, threshold) for row in scores]
    for lower in {score for row in scores for score in row if score < threshold}:
        theirs = [brute.first_error(row, lower) for row in scores]
        right, wrong = (
            [p == label for p, label in zip(made, labels, strict=True)] for made in (ours, theirs)
        )
        assert right == wrong or brute.first_error_f1(theirs, labels)[2] < found


def test_best_threshold__by_hand():
    """The second step of the first errs; between 0.2 and 0.6 all three are judged rightly."""
    scores, labels = [[0.9, 0.2, 0.1], [0.6, 0.8], [0.7]], [1, -1, -1]
    assert best_threshold(scores, labels) == pytest.approx(0.4)
    scores, labels = [[0.0, 1.0], [1.0, 0.5], [2.0, 2.0]], [0, 1, -1]
    assert best_threshold(scores, labels) == pytest.approx(0.75), "all right in (0.5, 1]"
    scores, labels = [[0.5, 0.0], [0.9, 0.8], [2.0]], [1, 1, -1]
    assert best_threshold(scores, labels) == pytest.approx(0.25), "one right in (0, 0.5], one in (0.8, 0.9]"


def test_best_threshold__between_extreme_floats():
    one = math.nextafter(1.0, 0)
    for low, high in ((one, 1.0), (1.0, math.nextafter(1.0, 2)), (0.0, 5e-324), (1.6e308, 1.7e308)):
        threshold = best_threshold([[low], [high]], [0, -1])
        assert low < threshold <= high


def test_best_threshold__is_a_number_where_every_one_is_as_bad():
    """The later step errs but never scores below the first; F1 is 0 throughout, and the threshold is a number."""
    assert math.isfinite(best_threshold([[0.0, 1.0], [0.5]], [1, -1]))
    assert math.isfinite(best_threshold([[0.5], [0.5]], [0, -1]))
    assert math.isfinite(best_threshold([[0.5, 0.1], [0.5]], [7, -1])), "a label beyond the scores"


def test_best_threshold__of_a_response_without_scores():
    """It blames nobody at any threshold; where nothing else depends on the threshold, there is none to choose."""
    threshold = best_threshold([[], [0.5]], [-1, 0])
    assert math.isfinite(threshold)
    assert first_error([0.5], threshold) == 0
    assert math.isnan(best_threshold([[], [0.5, 0.9]], [-1, 1]))


@pytest.mark.parametrize("labels", [[0, 1], [-1, -1]])
def test_best_threshold__of_one_class_is_nan(labels: list[int]):
    assert math.isnan(best_threshold([[0.5, 0.1], [0.5, 0.2]], labels))
    assert math.isnan(best_threshold([], []))


# Cross-fitting


def test_cross_fitted_f1__of_a_perfect_judge_is_1():
    """Wrong steps score below 0, right ones above 1: any half gives a threshold between."""
    rng = random.Random(3)
    labels = [-1, -1, 0, 1] + [rng.randint(-1, 4) for _ in range(40)]
    scores = [[-rng.random() if step == label else 1 + rng.random() for step in range(5)] for label in labels]
    for seed in range(5):
        assert cross_fitted_f1(scores, labels, seed) == (1.0, 1.0, 1.0)


def test_cross_fitted_f1__uses_the_threshold_of_the_other_half():
    """Two of each kind. Either half's threshold is the mean of its two scores, and the other half meets it.

    Within a half the erroneous response scores below the correct one, whoever is paired: 0 or 10 against
    11 or 21. The thresholds are 5.5 and 15.5 (pairs (0, 11), (10, 21)), or 10.5 and 10.5.
    """
    scores, labels = [[0.0], [11.0], [10.0], [21.0]], [0, -1, 0, -1]
    apart = (0.5, 0.5, 0.5)  # 10 is above 5.5, and 11 is below 15.5
    seen = {cross_fitted_f1(scores, labels, seed) for seed in range(20)}
    assert seen == {apart, (1.0, 1.0, 1.0)}


@property_test
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(0, 5))
def test_cross_fitted_f1__has_both_kinds_in_each_half(seed: int, count: int, split: int):
    """A number whenever there are two of each kind, however few they are."""
    scores, labels = responses(seed, count, 3, 4)
    enough = min(sum(label >= 0 for label in labels), sum(label < 0 for label in labels)) >= 2
    assert math.isfinite(cross_fitted_f1(scores, labels, split).f1) == enough


# The command

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def item(i: int) -> dict:
    """A row in ProcessBench's fields; one in three is right."""
    rng = random.Random(i)
    steps = [f"+two is {rng.choice(NUMBERS)}.\n*three é {i}" for _ in range(rng.randrange(1, 6))]
    label = -1 if i % 3 == 0 else rng.randrange(len(steps))
    problem = f"Start {NUMBERS[i % 10]}\n+two = ?"
    row = {"id": f"gsm8k-{i}", "generator": "x", "problem": problem, "steps": steps}
    return row | {"final_answer_correct": label < 0, "label": label}


ITEMS = [item(i) for i in range(14)]


@pytest.fixture(scope="module")
def prm(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_prm(model, tmp_path_factory.mktemp("first-errors") / "prm")


def args(folder: Path, prm: Path, rows: list[dict] = ITEMS) -> list[str]:
    """Arguments of an evaluation of these rows in a folder."""
    data = folder / "items.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("--data", str(data), "--prm", str(prm), "--out", str(folder / "out"))
    return ["evaluate", "--benchmark", "processbench", *given]


def read(folder: Path) -> tuple[dict, list[dict]]:
    """Results and rows; JSON knows no NaN."""
    results = json.loads((folder / "out" / "results.json").read_text(), parse_constant=pytest.fail)
    return results["benchmarks"]["processbench"], records(folder / "out" / "processbench" / "responses.jsonl")


@pytest.fixture(scope="module")
def done(prm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation of all items."""
    folder = tmp_path_factory.mktemp("done")
    assert main(args(folder, prm)) == 0
    return folder


def by_hand(prm: Path, model: Path, row: dict, chat: bool = True) -> list[float]:
    """The reward of each step, through transformers' own forward pass."""
    tokenizer, problem = AutoTokenizer.from_pretrained(model), row["problem"]
    before = f"<|im_start|>user\n{problem}<|im_end|>\n<|im_start|>assistant\n" if chat else problem
    start = tokenizer(before, add_special_tokens=False)["input_ids"]
    text = "\n\n".join(row["steps"])
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    rewards = token_rewards(prm, model, start, [*encoded["input_ids"], tokenizer.eos_token_id])
    ends, position = [], 0
    for step in row["steps"]:
        position += len(step) + 2  # the blank line belongs to the step before it
        ends.append(position)
    sums = [0.0] * len(row["steps"])
    places = [begin for begin, _ in encoded["offset_mapping"]] + [len(text)]
    for place, reward in zip(places, rewards, strict=True):
        sums[next((k for k, end in enumerate(ends) if place < end), len(ends) - 1)] += reward
    return sums


def test_first_errors__reward_of_a_step_is_the_log_ratio_of_its_tokens(done: Path, prm: Path, model: Path):
    _, rows = read(done)
    assert [row["item"] for row in rows] == list(range(len(ITEMS)))
    for row, wanted in zip(rows, ITEMS, strict=True):
        assert row["step_rewards"] == pytest.approx(by_hand(prm, model, wanted), abs=1e-4)
    assert any(reward < 0 for row in rows for reward in row["step_rewards"])
    assert any(reward > 0 for row in rows for reward in row["step_rewards"])


def test_first_errors__results_follow_from_the_step_rewards(done: Path):
    results, rows = read(done)
    rewards, labels = [row["step_rewards"] for row in rows], [wanted["label"] for wanted in ITEMS]
    found = [brute.first_error(row, 0.0) for row in rewards]
    assert [(row["first_error"], row["label"]) for row in rows] == list(zip(found, labels, strict=True))
    measured = results["first_error"]["threshold 0"]
    assert tuple(measured) == ("error_accuracy", "correct_accuracy", "f1")
    assert tuple(measured.values()) == pytest.approx(brute.first_error_f1(found, labels))
    tuned = cross_fitted_f1(rewards, labels, 0)
    assert results["first_error"]["threshold from the other half"]["f1"] == pytest.approx(tuned.f1)
    several = [row for row in rewards if len(row) > 1]
    last = sum(min(row[:-1]) > row[-1] for row in several) / len(several)
    assert results["lowest_step_last"] == pytest.approx(last)
    assert results["items"] == len(ITEMS)


def test_first_errors__page_and_table_say_so(
    done: Path, prm: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    results, _ = read(done)
    shown = f"{results['first_error']['threshold 0']['f1']:.3f}"
    page = (done / "out" / "results.html").read_text()
    assert f"<td>{shown}" in page
    assert "<script" not in page  # no figures, so no library
    assert main(args(tmp_path, prm)) == 0
    out = capsys.readouterr().out
    assert shown in out
    assert "threshold 0" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(("rows", "key"), [(ITEMS[::3], "error_accuracy"), ([ITEMS[1]], "correct_accuracy")])
def test_first_errors__without_wrong_or_without_right_solutions_there_is_no_f1(
    prm: Path, tmp_path: Path, capsys: pytest.CaptureFixture, rows: list[dict], key: str
):
    assert main(args(tmp_path, prm, rows)) == 0
    measured = read(tmp_path)[0]["first_error"]["threshold 0"]
    assert measured["f1"] is measured[key] is None
    assert " - " in capsys.readouterr().out


def test_first_errors__prm_without_a_chat_template(prm: Path, model: Path, tmp_path: Path):
    plain = Path(shutil.copytree(prm, tmp_path / "plain"))
    (plain / "chat_template.jinja").unlink()
    assert main(args(tmp_path, plain, ITEMS[:2])) == 0
    for row, wanted in zip(read(tmp_path)[1], ITEMS, strict=False):
        assert row["step_rewards"] == pytest.approx(by_hand(prm, model, wanted, chat=False), abs=1e-4)


def test_first_errors__parts_of_the_hub(prm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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


def test_first_errors__resumed_equals_uninterrupted(
    prm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert main(args(tmp_path, prm)) == 0
    results, rows = read(tmp_path)
    path = tmp_path / "out" / "processbench" / "responses.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:6]))
    monkeypatch.setattr(jsonl, "CHUNK", 4)
    assert main([*args(tmp_path, prm), "--resume"]) == 0
    assert read(tmp_path)[0]["first_error"] == results["first_error"]
    for row, other in zip(read(tmp_path)[1], rows, strict=True):
        assert row["step_rewards"] == pytest.approx(other["step_rewards"], abs=1e-5)  # other company


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
def test_first_errors__rows_of_another_kind_are_named(
    prm: Path, tmp_path: Path, capsys: pytest.CaptureFixture, changes: dict, message: str
):
    assert main(args(tmp_path, prm, [ITEMS[0] | changes])) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_first_errors__needs_a_prm_and_no_responses(prm: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    whole = args(tmp_path, prm)
    for flags, message in (
        (whole[:5] + whole[7:], "processbench asks a PRM for the first wrong step: name it with --prm"),
        ([*whole, "--responses", whole[4]], "asks a PRM for the first wrong step; it takes no responses"),
        ([*whole, "--prm", str(tmp_path)], "not an implicit PRM: it has no implicit_prm.json"),
    ):
        assert main(flags) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
