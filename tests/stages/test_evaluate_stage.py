"""`openprime evaluate`: choosing among N, the area under the curve, and what the results say of the responses."""

import itertools
import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import records, rl
from transformers import AutoModelForCausalLM, AutoTokenizer

from openprime.cli import main
from openprime.stages import evaluate as evaluate_stage
from openprime.stages.evaluate import best_of, interval, mean_outcome, powers, step_auc
from openprime.tasks.clock import check_steps
from openprime.types import Group, Prompt, Response
from openprime.verifiers.math import canonical_answer

# Choosing


def first_best(values: list[float]) -> int:
    """The first of the highest."""
    best = 0
    for i, value in enumerate(values):
        if value > values[best]:
            best = i
    return best


def first_voted(answers: list[str | None], weights: list[float]) -> int:
    """The first response with the heaviest answer; the earlier answer among equals."""
    totals = {
        a: sum(w for b, w in zip(answers, weights, strict=True) if b == a) for a in answers if a is not None
    }
    if not totals:
        return 0
    heaviest = max(totals.values())
    return next(i for i, a in enumerate(answers) if a is not None and totals[a] == heaviest)


def slow_best_of(right: list, answers: list, scores: dict[str, list], n: int) -> dict[str, list[float]]:
    """For every method, each prompt's accuracy of the choice, over disjoint runs of n samples."""
    table: dict[str, list[float]] = {}
    for p in range(len(right)):
        runs = [range(start, start + n) for start in range(0, len(right[p]), n) if start + n <= len(right[p])]
        found: dict[str, list[float]] = {}
        for run in runs:
            r, a = [right[p][i] for i in run], [answers[p][i] for i in run]
            chosen = {"majority vote": r[first_voted(a, [1.0] * n)], "oracle": max(r), "random": sum(r) / n}
            for name, values in scores.items():
                chosen[name] = r[first_best([values[p][i] for i in run])]
            if "PRM" in scores:
                weights = [1 / (1 + math.exp(-scores["PRM"][p][i])) for i in run]
                chosen["PRM-weighted vote"] = r[first_voted(a, weights)]
            for name, value in chosen.items():
                found.setdefault(name, []).append(value)
        for name, values in found.items():
            table.setdefault(name, []).append(sum(values) / len(values))
    return table


@pytest.mark.parametrize("samples", [1, 2, 5, 8, 12])
@pytest.mark.parametrize("names", [(), ("PRM",), ("reference log-probability", "PRM")])
def test_every_way_to_choose_equals_the_loops(
    samples: int, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(evaluate_stage, "bootstrap_interval", lambda values: (0.0, 1.0))  # takes time
    for seed in range(5):
        rng = random.Random(seed)
        prompts = rng.randrange(1, 7)
        right = [[rng.choice([0.0, 1.0, 0.5]) for _ in range(samples)] for _ in range(prompts)]
        answers = [[rng.choice(["1", "2", "3", None]) for _ in range(samples)] for _ in range(prompts)]
        scores = {
            name: [[rng.choice([-1.0, 0.25, 0.5, 2.0]) for _ in range(samples)] for _ in range(prompts)]
            for name in names
        }
        arrays = {name: np.array(values) for name, values in scores.items()}
        table = best_of(np.array(right), answers, arrays)
        for n in powers(samples):
            expected = slow_best_of(right, answers, scores, n)
            assert set(table) == set(expected)
            for method, values in expected.items():
                assert table[method][n][0] == pytest.approx(sum(values) / len(values)), (method, n)
        assert all(list(row) == powers(samples) for row in table.values())


def test_sizes_double_and_end_with_all():
    assert powers(1) == [1]
    assert powers(8) == [1, 2, 4, 8]
    assert powers(12) == [1, 2, 4, 8, 12]
    assert powers(3) == [1, 2, 3]


def test_of_one_there_is_no_choice():
    right = np.array([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    table = best_of(right, [["1", "2", "3", "4"]] * 2, {"PRM": np.random.default_rng(0).normal(size=(2, 4))})
    assert {row[1][0] for row in table.values()} == {0.25}


def test_an_interval_is_the_mean_within_its_bounds():
    values = np.random.default_rng(0).random(200)
    mean, low, high = interval(values)
    assert mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / math.sqrt(200)
    assert low == pytest.approx(mean - half, rel=0.1)
    assert high == pytest.approx(mean + half, rel=0.1)


def test_no_verdict_counts_as_wrong():
    made = [Response((1,), (0.0,), "", False, outcome) for outcome in (1.0, 0.5, None, 0.0)]
    assert mean_outcome([Group(Prompt("p", (1,), "", None), tuple(made), 0)]) == 0.375


# Rewards of lines


def response(lines: list[tuple[float, bool]], answer: bool = True) -> dict:
    """A response whose lines have these rewards and verdicts, each line cut into two tokens and its end."""
    tokens, rewards = [], []
    for reward, _ in lines:
        tokens += ["+two", " four", "\n"]
        rewards += [reward - 0.75, 0.5, 0.25]
    if answer:
        tokens += ["####", " 4", "<|im_end|>"]
        rewards += [9.0, -7.0, 1.0]
    return {
        "tokens": tokens,
        "rewards": rewards,
        "steps": [verdict for _, verdict in lines] + [True] * answer,
    }


def pairwise_auc(pairs: list[tuple[float, bool]]) -> float:
    """How often a right line has the higher reward of a right and a wrong one; ties count one half."""
    won = count = 0.0
    for (a, good), (b, other) in itertools.product(pairs, pairs):
        if good and not other:
            count += 1
            won += 1.0 if a > b else 0.5 if a == b else 0.0
    return won / count


@pytest.mark.parametrize("seed", range(20))
def test_the_area_under_the_curve_is_the_share_of_ordered_pairs(seed: int):
    rng = random.Random(seed)
    lines = [
        [(rng.choice([-2.0, -0.5, 0.0, 0.5, 1.0]), rng.random() < 0.6) for _ in range(rng.randrange(1, 6))]
        for _ in range(12)
    ]
    rows = [{"responses": [response(a), response(b)]} for a, b in zip(lines[::2], lines[1::2], strict=True)]
    assert step_auc(rows) == pytest.approx(pairwise_auc([pair for some in lines for pair in some]))


def test_all_tied_is_one_half():
    assert step_auc([{"responses": [response([(1.0, True), (1.0, False), (1.0, True)])]}]) == 0.5


def test_the_order_of_the_rewards_decides():
    assert step_auc([{"responses": [response([(1.0, True), (0.5, False)])]}]) == 1
    assert step_auc([{"responses": [response([(0.5, True), (1.0, False)])]}]) == 0


def test_without_a_wrong_line_there_is_no_curve():
    assert math.isnan(step_auc([{"responses": [response([(1.0, True), (0.5, True)])]}]))


@pytest.mark.parametrize(
    "tokens",
    [
        ["+two four", "\n\n\n", "+one five", "\n", "#### 5"],
        ["+two four", "\n", "\n", "\n", "+one five", "\n", "#### 5"],
        ["+two", "\r", " four", "\n", "#### 4"],
        ["+two\x0bfour", "\n", "#### 4"],
        ["+two\u2028", "four", "\n", "#### 4"],
        ["+two four\n+one", " five\n#### 5"],
        ["\n"],
        [],
    ],
)
def test_odd_line_ends_do_not_shift_the_rewards(tokens: list[str]):
    """A model may write anything. Lines are those that `check_steps` judges; a token belongs to the line
    that it begins in."""
    text, rewards = "".join(tokens), [0.5 * (-1) ** t * (t + 1) for t in range(len(tokens))]
    verdicts = check_steps("Start two\n+two = ?\n+one = ?", text)
    lines, before = [0.0] * len(verdicts), ""
    odd_ends = len(text.splitlines()) == len(
        verdicts
    )  # whether these are ends of lines is check_steps's choice
    for token, reward in zip(tokens, rewards, strict=True):
        lines[len((before + "x").splitlines() if odd_ends else before.split("\n")) - 1] += reward
        before += token
    known = [(1.0, True), (-1.0, False), (0.0, True)]
    pairs = [*zip(lines, verdicts, strict=True)][:-1] + known
    odd = {"tokens": tokens, "rewards": rewards, "steps": verdicts}
    assert step_auc([{"responses": [odd, response(known)]}]) == pytest.approx(pairwise_auc(pairs))


# The command


ARGS = (
    *("evaluate", "configs/evaluate/tiny.yaml", "--data.horizon", "2", "--data.limit", "12"),
    *("--samples", "6", "--max-response-tokens", "16"),
)


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PRM that has learnt a little."""
    run = rl(model, tmp_path_factory.mktemp("prm") / "run", "--steps", "4", "--prm.lr", "5e-3")
    return run / "prm"


@pytest.fixture(scope="module")
def with_prm(model: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation with a PRM."""
    out = tmp_path_factory.mktemp("with") / "out"
    assert main([*ARGS, "--model", str(model), "--prm", str(trained), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def without(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without."""
    out = tmp_path_factory.mktemp("without") / "out"
    assert main([*ARGS, "--model", str(model), "--prm=", "--out", str(out)]) == 0
    return out


def read(folder: Path) -> tuple[dict, list[dict]]:
    """Results and responses."""
    return json.loads((folder / "results.json").read_text()), records(folder / "responses.jsonl")


def test_results_follow_from_the_responses(with_prm: Path, model: Path):
    results, rows = read(with_prm)
    assert (results["model"], results["prompts"], results["samples"]) == (str(model), 12, 6)
    assert len(rows) == 12
    assert all(len(row["responses"]) == 6 for row in rows)
    right = [[r["outcome"] for r in row["responses"]] for row in rows]
    assert results["avg@6"][0] == pytest.approx(np.mean(right))
    for k, value in results["pass@k"].items():
        expected = [
            np.mean([any(chosen) for chosen in itertools.combinations(outcomes, int(k))])
            for outcomes in right
        ]
        assert value == pytest.approx(np.mean(expected))
    assert list(results["pass@k"]) == ["1", "2", "4", "6"]
    answers = [[canonical_answer(r["text"]) for r in row["responses"]] for row in rows]
    scores = {"PRM": [[sum(r["rewards"]) for r in row["responses"]] for row in rows]}
    for n in (1, 2, 4, 6):
        expected = slow_best_of(right, answers, scores, n)
        for method, values in expected.items():
            got = results["best_of_n"][method][str(n)]
            assert got[0] == pytest.approx(np.mean(values)), (method, n)
            assert got[1] - 1e-9 <= got[0] <= got[2] + 1e-9
    assert set(results["best_of_n"]) == {*expected, "reference log-probability"}


def test_outcomes_follow_from_the_texts(with_prm: Path):
    _, rows = read(with_prm)
    for row in rows:
        for r in row["responses"]:
            last = r["text"].strip().splitlines()[-1:]
            assert r["outcome"] == float(last == [f"#### {row['answer']}"])
            assert r["reason"] in ("right", "wrong", "no_answer")
            assert r["truncated"] == (r["tokens"][-1] != "<|im_end|>")
            assert "".join(r["tokens"]).replace("<|im_end|>", "") == r["text"]


def test_the_area_follows_from_the_responses(with_prm: Path):
    results, rows = read(with_prm)
    pairs = []
    for row in rows:
        for r in row["responses"]:
            lines: list[float] = [0.0]
            for token, reward in zip(r["tokens"], r["rewards"], strict=True):
                lines[-1] += reward
                lines += [0.0] * token.count("\n")
            verdicts = check_steps(row["prompt"], r["text"])
            assert r["steps"] == verdicts
            pairs += list(zip(lines, verdicts[:-1], strict=False))
    assert {good for _, good in pairs} == {True, False}
    assert results["step_auc"] == pytest.approx(pairwise_auc(pairs), abs=1e-6)


def test_rewards_are_the_log_ratio_of_prm_and_reference(with_prm: Path, trained: Path, model: Path):
    """Whole sequences through transformers' own forward pass."""
    _, rows = read(with_prm)
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = Counter(tokenizer.decode([i]) for i in range(len(tokenizer)))
    tokens = {text: i for i in range(len(tokenizer)) if texts[text := tokenizer.decode([i])] == 1}
    phi, ref = (AutoModelForCausalLM.from_pretrained(m, dtype=torch.float32) for m in (trained, model))
    assert json.loads((trained / "implicit_prm.json").read_text()) == {"beta": 0.3, "reference": str(model)}
    compared = 0
    for row in rows[:4]:
        start = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, return_dict=False
        )
        for r in row["responses"]:
            if not all(token in tokens for token in r["tokens"]):
                continue  # a piece of a character
            ids = [tokens[token] for token in r["tokens"]]
            whole = torch.tensor([[*start, *ids]])
            with torch.no_grad():
                difference = [m(whole).logits[0].log_softmax(-1) for m in (phi, ref)]
            expected = [
                0.3 * float(difference[0][len(start) + t - 1, i] - difference[1][len(start) + t - 1, i])
                for t, i in enumerate(ids)
            ]
            assert r["rewards"] == pytest.approx(expected, abs=2e-5)
            compared += any(abs(value) > 1e-3 for value in r["rewards"])
    assert compared > 10


def test_without_a_prm_there_are_no_rewards(without: Path, with_prm: Path):
    results, rows = read(without)
    other, theirs = read(with_prm)
    assert set(results["best_of_n"]) == {"random", "majority vote", "oracle"}
    assert "step_auc" not in results
    for row, their in zip(rows, theirs, strict=True):
        assert [r["text"] for r in row["responses"]] == [r["text"] for r in their["responses"]]
        assert not any("rewards" in r or "tokens" in r for r in row["responses"])
    for key in ("greedy", "avg@6", "pass@k"):
        assert results[key] == other[key]


def test_evaluating_again_replaces_the_results(model: Path, without: Path, tmp_path: Path):
    out = tmp_path / "out"
    for seed in ("1", "0"):
        assert main([*ARGS, "--model", str(model), "--prm=", "--out", str(out), "--seed", seed]) == 0
        results, rows = read(out)
        assert len(rows) == 12
    assert rows == read(without)[1]
    assert results == read(without)[0]


def test_how_many_are_decoded_and_scored_at_a_time_changes_nothing(
    model: Path, trained: Path, with_prm: Path, tmp_path: Path
):
    few = ("--sequences", "7", "--tokens-per-microbatch", "50")
    assert (
        main([*ARGS, *few, "--model", str(model), "--prm", str(trained), "--out", str(tmp_path / "o")]) == 0
    )
    (results, rows), (other, theirs) = read(tmp_path / "o"), read(with_prm)
    for row, their in zip(rows, theirs, strict=True):
        for r, t in zip(row["responses"], their["responses"], strict=True):
            assert r["text"] == t["text"]
            assert r["rewards"] == pytest.approx(t["rewards"], abs=2e-5)
    assert results["greedy"] == other["greedy"]
    assert results["avg@6"] == other["avg@6"]


def test_the_limit_holds(with_prm: Path):
    _, rows = read(with_prm)
    lengths = Counter(len(r["tokens"]) for row in rows for r in row["responses"])
    assert max(lengths) <= 16


def test_a_prm_without_a_reference_needs_one(
    model: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    settings = trained / "implicit_prm.json"
    before = settings.read_text()
    settings.write_text('{"beta": 0.3, "reference": ""}')
    args = [
        *ARGS,
        "--data.limit",
        "2",
        "--model",
        str(model),
        "--prm",
        str(trained),
        "--out",
        str(tmp_path / "o"),
    ]
    try:
        assert main(args) == 2
        err = capsys.readouterr().err
        assert "saved without" in err
        assert "--reference" in err
        assert main([*args, "--reference", str(model)]) == 0
    finally:
        settings.write_text(before)


def test_a_model_as_its_own_prm_is_refused_with_a_reason(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert main([*ARGS, "--model", str(model), "--prm", str(model), "--out", str(tmp_path / "o")]) == 2
    assert f"{model}: not an implicit PRM: it has no implicit_prm.json" in capsys.readouterr().err
