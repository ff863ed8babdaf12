"""`openprime prm`: from judged responses to an implicit PRM, on a model of 23,000 parameters."""

import json
import math
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
import torch
import yaml
from safetensors.torch import load_file

from openprime.cli import main
from openprime.commands import train_prm as stage
from openprime.config import OfflinePRMConfig, read_config
from openprime.data.records import read_judged, split_prompts
from openprime.models.hub import load_model, load_tokenizer, save_model
from openprime.models.tiny import build_model, build_tokenizer
from openprime.prime import online as prm
from openprime.prime.prm import ImplicitPRM, read_settings
from openprime.run.checkpoint import checkpoints
from openprime.run.run import Run
from openprime.types import Batch
from support.tiny_runs import assert_same_run, metrics, records, weights

WORDS = ("one", "two", "six", "ten", "add", "sub")
LOSSES = ("ce", "dpo", "nca", "kto", "steps")
HELD_OUT = {
    "loss",
    "pairwise_accuracy",
    "pairwise_low",
    "pairwise_high",
    "auc",
    "ece",
    "brier",
    "lowest_step_last",
}


def sentence(rng: random.Random, right: bool) -> list[str]:
    """Three steps; a wrong response has a slip in one of them."""
    steps = [" ".join(rng.choices(WORDS, k=rng.randint(1, 3))) for _ in range(3)]
    if not right:
        steps[rng.randrange(3)] += " oops"
    return steps


def judged_rows(count: int, steps: bool = False, seed: int = 0) -> list[dict]:
    """Four responses to each of `count` prompts, the prompts in turn; each sixth prompt has right ones only."""
    rng, rows = random.Random(f"{seed}"), []
    for i in range(4):
        for p in range(count):
            text = sentence(rng, right=p % 6 == 5 or (i + p) % 4 not in (0, 1))
            row: dict = {"prompt": f"say {p}"}
            if steps:
                wrong = [k for k, step in enumerate(text) if "oops" in step]
                row |= {"steps": text, "labels": wrong[0] if wrong else -1}
            else:
                row |= {"response": "\n".join(text), "outcome": "oops" not in " ".join(text)}
            rows.append(row)
    return rows


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that has learnt nothing yet."""
    folder = tmp_path_factory.mktemp("start") / "model"
    tokenizer = build_tokenizer(["say one two six ten add sub oops\n"] * 9, 290)
    folder.mkdir()
    save_model(build_model(tokenizer, 32, 1, 2, 128, 0), tokenizer, folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Loss -> a file for it: 30 prompts, 120 responses."""
    folder = tmp_path_factory.mktemp("data")
    outcomes = write(folder / "outcomes.jsonl", judged_rows(30))
    steps = write(folder / "steps.jsonl", judged_rows(30, steps=True))
    return {loss: steps if loss == "steps" else outcomes for loss in LOSSES}


def arguments(model: str, source: str, out: Path, *flags: str) -> list[str]:
    """24 prompts or so to train on, eight steps an epoch, a rate that moves so small a model."""
    given = ["prm", "--model", model, "--data.source", source, "--out", str(out), "--held-out", "0.2"]
    return [*given, "--batch", "12", "--optimizer.lr", "1e-2", *flags]


def train(model: str, source: str, out: Path, *flags: str) -> Path:
    assert main(arguments(model, source, out, *flags)) == 0
    return out


def held_out(out: Path) -> dict:
    return json.loads((out / "held_out.json").read_text(encoding="utf-8"))


def without_noise(row: dict) -> dict:
    """Before the first update all scores are 0, and their signs mean nothing."""
    return {name: value for name, value in row.items() if row["step"] > 1 or "accuracy" not in name}


# What a run does


@pytest.fixture(scope="module")
def trained(
    start: str, data: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """(loss) -> a run of three epochs with it, once."""
    done: dict[str, Path] = {}

    def run(loss: str) -> Path:
        if loss not in done:
            out = tmp_path_factory.mktemp("trained") / loss
            done[loss] = train(start, data[loss], out, "--loss", loss, "--epochs", "3", "--beta", "0.1")
        return done[loss]

    return run


@pytest.mark.parametrize("loss", LOSSES)
def test_training_teaches_what_is_right(loss: str, trained: Callable[[str], Path]):
    found = held_out(trained(loss))
    start, end = found["start"], found["end"]
    assert start["pairwise_accuracy"] == start["auc"] == 0.5  # the PRM is its reference: all scores are 0
    assert start["brier"] == pytest.approx(0.25)
    assert end["pairwise_accuracy"] > 0.85
    assert end["auc"] > 0.85
    assert end["loss"] < start["loss"]
    assert end["pairwise_low"] <= end["pairwise_accuracy"] <= end["pairwise_high"]


@pytest.mark.parametrize("loss", LOSSES)
def test_metrics_have_their_names_and_are_finite(loss: str, trained: Callable[[str], Path]):
    rows = records(trained(loss) / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(len(rows)))
    accuracy = "prm/pairwise_accuracy" if loss in ("dpo", "nca") else "prm/accuracy"
    kto = {"prm/reference_point"} if loss == "kto" else set()
    for row in rows:
        names = {name for name in row if not name.startswith("time/")} - {"step"}
        trains = {"prm/loss", "prm/grad_norm", "prm/lr", accuracy} | kto if row["step"] else set()
        measured = {f"held_out/{name}" for name in HELD_OUT} if row["step"] in (0, len(rows) - 1) else set()
        assert names == trains | measured
        assert all(math.isfinite(value) for value in row.values())
    found = held_out(trained(loss))
    for name in HELD_OUT:
        assert rows[-1][f"held_out/{name}"] == found["end"][name]
        assert rows[0][f"held_out/{name}"] == found["start"][name]


@pytest.mark.parametrize("loss", ["ce", "steps"])
def test_the_held_out_measures_are_those_of_the_saved_prm(loss: str, trained: Callable[[str], Path]):
    """Texts scored by the PRM as it is loaded from its folder, and every measure counted by hand."""
    out, rows = trained(loss), judged_rows(30, loss == "steps")
    prompts: dict[str, list[dict]] = {}
    for row in rows:
        prompts.setdefault(row["prompt"], []).append(row)
    found = held_out(out)
    names = held_prompts(out)
    assert found["prompts"] == len(names)
    prm = ImplicitPRM.from_pretrained(str(out / "prm"))
    values, labels, lowest, accuracies = [], [], [], []
    for name in names:
        mine = prompts[name]
        if loss == "steps":
            pieces = [[f"{step}\n\n" for step in row["steps"][:-1]] + row["steps"][-1:] for row in mine]
            scores = prm.score([name] * len(mine), ["".join(p) for p in pieces], pieces)
            v = [sum(s.step_rewards[: k + 1]) for s in scores for k in range(3)]
            first = [3 if row["labels"] == -1 else row["labels"] for row in mine]
            o = [float(k < f) for f in first for k in range(3)]
        else:
            scores = prm.score([name] * len(mine), [row["response"] for row in mine])
            v, o = [s.reward for s in scores], [float(row["outcome"]) for row in mine]
        lowest += [min(s.step_rewards) == s.step_rewards[-1] for s in scores]
        pairs = [
            1.0 if a > b else 0.5 if a == b else 0.0
            for a, x in zip(v, o, strict=True)
            for b, y in zip(v, o, strict=True)
            if x > y
        ]
        accuracies += [sum(pairs) / len(pairs)] if pairs else []
        values += v
        labels += o
    p = [1 / (1 + math.exp(-value)) for value in values]
    every = [
        (a > b) + 0.5 * (a == b)
        for a, x in zip(values, labels, strict=True)
        for b, y in zip(values, labels, strict=True)
        if x > y
    ]
    bins: dict[int, list[float]] = {}
    for q, o in zip(p, labels, strict=True):
        bins.setdefault(min(9, math.ceil(q * 10) - 1), []).append(o - q)
    end = found["end"]
    assert len(accuracies) < len(names)  # a prompt without a pair tells nothing
    assert end["pairwise_accuracy"] == pytest.approx(sum(accuracies) / len(accuracies), abs=1e-6)
    assert end["auc"] == pytest.approx(sum(every) / len(every), abs=1e-6)
    assert end["brier"] == pytest.approx(
        sum((q - o) ** 2 for q, o in zip(p, labels, strict=True)) / len(p), abs=1e-5
    )
    assert end["ece"] == pytest.approx(sum(abs(sum(b)) for b in bins.values()) / len(p), abs=1e-5)
    assert end["lowest_step_last"] == pytest.approx(sum(lowest) / len(lowest), abs=1e-6)
    ce = [-math.log(q if o else 1 - q) for q, o in zip(p, labels, strict=True)]
    assert end["loss"] == pytest.approx(sum(ce) / len(ce), abs=1e-4)


def held_prompts(out: Path) -> list[str]:
    """The prompts that a run held out, from its configuration."""
    config = read_config(OfflinePRMConfig, out / "config.yaml")
    rows = read_judged(config.data, load_tokenizer(config.model), 4096, config.loss == "steps").rows
    held = split_prompts(rows, config.held_out, config.seed)[1]
    return list(dict.fromkeys(row.prompt.messages[0]["content"] for row in held))  # type: ignore[index]


@pytest.mark.parametrize("loss", ["ce", "dpo"])
def test_held_out_prompts_are_never_trained_on(
    loss: str, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Though their rows stand far apart in the data. Every other response is seen once an epoch."""
    trained_on, measured = Counter(), Counter()
    update, measure = stage.prm_loss, stage.measure

    def seen(rows) -> Counter:
        return Counter((row.prompt.messages[0]["content"], row.response.text) for row in rows)

    collate = stage.collate_judged
    monkeypatch.setattr(stage, "collate_judged", lambda rows, pad: batches.append(rows) or collate(rows, pad))
    monkeypatch.setattr(stage, "prm_loss", lambda *a: trained_on.update(seen(batches[-1])) or update(*a))
    monkeypatch.setattr(
        stage, "measure", lambda prm, rows, c: measured.update(seen(rows)) or measure(prm, rows, c)
    )
    batches: list = []
    rows = judged_rows(20) + [
        {"prompt": "say 3", "response": f"once more {i}", "outcome": i % 2} for i in range(4)
    ]
    source = write(tmp_path / "d.jsonl", rows)
    train(start, source, tmp_path / "run", "--loss", loss, "--epochs", "2", "--batch", "8")
    held = {prompt for prompt, _ in measured}
    assert held
    assert not held & {prompt for prompt, _ in trained_on}
    expected = Counter((row["prompt"], row["response"]) for row in rows)
    assert measured == {key: 2 * count for key, count in expected.items() if key[0] in held}  # start and end
    if loss == "dpo":  # which has nothing to learn from prompts without a wrong response
        held |= {row["prompt"] for row in rows} - {row["prompt"] for row in rows if not row["outcome"]}
    whole = {key: 2 * count for key, count in expected.items() if key[0] not in held}
    assert set(trained_on) == set(whole)
    assert all(trained_on[key] >= count for key, count in whole.items())
    assert trained_on.total() < sum(whole.values()) + 12  # the last step is filled up


@pytest.mark.parametrize("loss", LOSSES)
def test_how_a_batch_is_cut_changes_nothing(loss: str, start: str, data: dict[str, str], tmp_path: Path):
    flags = ("--loss", loss, "--epochs", "0.5", "--optimizer.tokens-per-microbatch")
    runs = [
        train(start, data[loss], tmp_path / name, *flags, tokens)
        for name, tokens in (("whole", "100000"), ("small", "40"))
    ]
    for row, other in zip(*(metrics(run) for run in runs), strict=True):
        assert without_noise(row) == pytest.approx(without_noise(other), rel=2e-3, abs=2e-4)
    ours, theirs = (load_file(run / "prm" / "model.safetensors") for run in runs)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-2, atol=1e-3)


def test_a_reference_kept_in_memory_is_that_of_each_batch(
    start: str, data: dict[str, str], trained, tmp_path
):
    """One epoch computes it batch by batch, three epochs begin with the same steps."""
    once = metrics(train(start, data["steps"], tmp_path / "run", "--loss", "steps", "--beta", "0.1"))
    for row, other in zip(once[:-1], metrics(trained("steps")), strict=False):
        assert without_noise(row) == pytest.approx(without_noise(other), rel=1e-3, abs=1e-5)


def test_kto_takes_its_reference_point_from_the_batch(
    start: str, data: dict[str, str], tmp_path: Path, monkeypatch
):
    batches, collate, loss = [], stage.collate_judged, stage.prm_loss
    given, taken = [], []
    monkeypatch.setattr(stage, "collate_judged", lambda rows, pad: batches.append(rows) or collate(rows, pad))
    monkeypatch.setattr(
        stage, "kto_reference_point", lambda prm, rows, longest: given.append((rows, longest)) or 0.37
    )
    monkeypatch.setattr(stage, "prm_loss", lambda *a: taken.append((batches[-1], a[-1])) or loss(*a))
    flags = ("--loss", "kto", "--held-out", "0", "--max-tokens", "90", "--epochs", "0.3")
    out = train(start, data["kto"], tmp_path / "run", *flags)
    assert given == [(rows, 90) for rows, _ in taken]
    assert [z0 for _, z0 in taken] == [0.37] * 3
    assert [row["prm/reference_point"] for row in metrics(out)] == [0.37] * 3


def test_the_accuracy_of_a_batch_by_hand():
    """Scores 0.3, -0.1, 0.2, -0.4 of two prompts; labelled steps at the second and the last token."""
    rewards = torch.tensor([[0.0, -0.2, 0.5], [0.0, 0.3, -0.4], [0.0, 0.3, -0.1], [0.0, -0.1, -0.3]])
    where = torch.tensor([[False, True, True]] * 4)
    batch = Batch(
        token_ids=torch.zeros(4, 3, dtype=torch.long),
        response_mask=where,
        lengths=torch.full((4,), 3),
        outcome=torch.tensor([1.0, 1.0, 0.25, 0.0]),
        group=torch.tensor([5, 5, 5, 7]),
        logprobs=torch.zeros(4, 3),
        step_end=where,
    )
    labels = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    right = {"ce": 2 / 4, "kto": 2 / 4, "steps": 5 / 8}  # prefix values -.2 .3, .3 -.1, .3 .2, -.1 -.4
    for loss, share in right.items():
        assert stage.batch_accuracy(loss, rewards, batch, labels) == {"prm/accuracy": share}
    for loss in ("dpo", "nca"):  # of the pairs (0.3 over 0.2) and (-0.1 over 0.2)
        assert stage.batch_accuracy(loss, rewards, batch, labels) == {"prm/pairwise_accuracy": 0.5}


@pytest.mark.parametrize(("sizes", "batch"), [([1] * 10, 3), ([1] * 4, 9), ([4, 1, 3, 2, 5], 6), ([7, 7], 3)])
@pytest.mark.parametrize("epochs", [0.5, 1, 3])
def test_every_unit_is_taken_once_an_epoch(sizes: list[int], batch: int, epochs: float):
    plan = stage.plan_steps(sizes, batch, epochs, seed=1)
    units = [unit for step in plan for unit in step]
    for epoch in range(len(units) // len(sizes)):
        assert sorted(units[epoch * len(sizes) : (epoch + 1) * len(sizes)]) == list(range(len(sizes)))
    taken = [sum(sizes[unit] for unit in step) for step in plan]
    size = min(batch, sum(sizes))
    for step, count in zip(plan, taken, strict=True):
        assert size <= count < size + sizes[step[-1]]  # full, but for the last unit not yet
    assert sum(taken[:-1]) < round(epochs * sum(sizes)) <= sum(taken)
    assert stage.plan_steps(sizes, batch, epochs + 2, seed=1)[: len(plan)] == plan
    if len(sizes) == 10 and epochs == 3:
        assert units[:10] != units[10:20]
        assert units != [unit for step in stage.plan_steps(sizes, batch, epochs, seed=2) for unit in step]


# Resuming


class Killed(BaseException):
    """Ends a run in this process as suddenly as a signal 9: nothing catches it."""


KINDS = {
    "reference kept": ("--loss", "ce", "--epochs", "1.5"),
    "reference by batch": ("--loss", "dpo", "--optimizer.schedule", "cosine"),
    "kto": ("--loss", "kto", "--epochs", "1.2"),
}
SAVING = ("--save-every", "3", "--optimizer.warmup", "2")


@pytest.fixture(scope="module")
def whole(
    start: str, data: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """(kind) -> a run of it without a stop, once."""
    done: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in done:
            out = tmp_path_factory.mktemp("whole") / "run"
            done[kind] = train(start, data["ce"], out, *SAVING, *KINDS[kind])
        return done[kind]

    return run


def assert_same(got: Path, expected: Path) -> None:
    assert_same_run(got, expected, "prm")
    assert held_out(got) == held_out(expected)
    assert (got / "prm" / "implicit_prm.json").read_text() == (
        expected / "prm" / "implicit_prm.json"
    ).read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_trap_10_a_killed_run_goes_on_exactly(
    kind: str, start: str, data: dict[str, str], tmp_path: Path, whole: Callable[[str], Path], monkeypatch
):
    """Killed when step 5 is logged and step 3 was the last saved."""
    args, expected, real = (
        arguments(start, data["ce"], tmp_path / "run", *SAVING, *KINDS[kind]),
        whole(kind),
        Run.log,
    )

    def log(self: Run, step: int, values: dict[str, float]) -> None:
        real(self, step, values)
        if step == 5:
            raise Killed

    monkeypatch.setattr(Run, "log", log)
    with pytest.raises(Killed):
        main(args)
    monkeypatch.undo()
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000003"]
    assert not (tmp_path / "run" / "prm").exists()
    assert main([*args, "--resume"]) == 0
    assert_same(tmp_path / "run", expected)
    assert main([*args, "--resume"]) == 0  # a finished run stays as it is
    assert_same(tmp_path / "run", expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on_exactly(
    number: signal.Signals, start: str, data: dict[str, str], tmp_path: Path, whole, monkeypatch, capsys
):
    kind = "reference kept"
    args, real = arguments(start, data["ce"], tmp_path / "run", *SAVING, *KINDS[kind]), Run.log

    def log(self: Run, step: int, values: dict[str, float]) -> None:
        if step == 4:
            os.kill(os.getpid(), number)
        real(self, step, values)

    expected = whole(kind)
    monkeypatch.setattr(Run, "log", log)
    assert main(args) == 128 + number
    monkeypatch.undo()
    said = capsys.readouterr().err
    assert f"stopped by {number.name}: saved; go on with --resume" in said
    assert "Traceback" not in said
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step-000004"
    assert main([*args, "--resume"]) == 0
    assert_same(tmp_path / "run", expected)


def test_beta_is_kept_and_other_data_are_refused_when_a_run_goes_on(
    start: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    rows = judged_rows(8)
    source = write(tmp_path / "d.jsonl", rows)
    train(start, source, tmp_path / "run")
    beta = read_settings(str(tmp_path / "run" / "prm"))[0]
    monkeypatch.setattr(stage, "choose_beta", None)  # would be another one now
    train(start, source, tmp_path / "run", "--epochs", "2", "--resume")
    assert read_settings(str(tmp_path / "run" / "prm"))[0] == beta
    assert f"beta {beta:.3g}, as before" in capsys.readouterr().out
    write(tmp_path / "d.jsonl", rows[:-4])
    assert main(arguments(start, source, tmp_path / "run", "--epochs", "3", "--resume")) == 2
    said = capsys.readouterr().err
    assert "responses, the data now has" in said
    assert "Traceback" not in said


# beta


def nats_by_hand(model: str, rows: list[dict]) -> float:
    """-log p of the median response, each alone through the model's own forward pass."""
    prm = ImplicitPRM.from_pretrained(model, model)
    assert prm.tokenizer is not None
    values = []
    for row in rows:
        chat = [{"role": "user", "content": row["prompt"]}]
        text = prm.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        prompt = prm.tokenizer(text)["input_ids"]
        ids = prompt + prm.tokenizer(row["response"])["input_ids"] + [prm.tokenizer.eos_token_id]
        with torch.no_grad():
            logs = prm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        values.append(-sum(float(logs[t - 1, ids[t]]) for t in range(len(prompt), len(ids))))
    return median(values)


def short_rows() -> list[dict]:
    """A letter or two a response, so that responses have few nats."""
    rng = random.Random("short")
    return [
        {"prompt": f"say {p}", "response": "".join(rng.choices("abcdef", k=1 + (i > 2))), "outcome": i % 2}
        for p in range(9)
        for i in range(5)
    ]


def test_beta_auto_lets_the_median_response_reach_a_fixed_probability(
    start: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prm, "REACH", 2.0)  # so that the beta of so poor a model lies between the bounds
    out = train(start, write(tmp_path / "d.jsonl", short_rows()), tmp_path / "run", "--epochs", "0.1")
    held = held_prompts(out)
    nats = nats_by_hand(start, [row for row in short_rows() if row["prompt"] not in held])
    expected = prm.REACH / nats
    assert 0.05 < expected < 1
    beta, reference = read_settings(str(out / "prm"))
    assert beta == pytest.approx(expected, rel=1e-3)
    assert Path(reference) == Path(start)
    assert held_out(out)["beta"] == beta
    said = " ".join(capsys.readouterr().out.split())
    bound = 1 / (1 + math.exp(-prm.REACH))
    assert f"beta {beta:.3g}; the median response has {nats:.3g} nats" in said
    assert f"its P(right) can reach {bound:.2f}" in said
    assert "cannot rise" not in said


@pytest.mark.parametrize(("nats", "expected"), [(1000.0, 0.05), (prm.REACH / 4, 1.0), (0.0, 1.0)])
def test_beta_auto_has_bounds(nats: float, expected: float):
    assert stage.choose_beta("auto", None, nats, []) == expected


def test_a_beta_that_is_too_small_is_warned_about(
    start: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prm, "REACH", 2.0)
    source = write(tmp_path / "d.jsonl", short_rows())
    out = train(start, source, tmp_path / "run", "--epochs", "0.1", "--beta", "0.001")
    assert read_settings(str(out / "prm"))[0] == 0.001
    held = held_prompts(out)
    nats = nats_by_hand(start, [row for row in short_rows() if row["prompt"] not in held])
    bound = 1 / (1 + math.exp(-0.001 * nats))
    said = " ".join(capsys.readouterr().out.split())
    assert f"with beta=0.001 the sigmoid cannot rise above {bound:.2f} for half of the responses" in said
    assert f"beta={prm.REACH / nats:.2g} would let it move" in said


@pytest.mark.parametrize(("beta", "warned"), [(0.039, True), (0.043, False)])
def test_the_warning_stands_where_the_sigmoid_stays_below_three_fifths(beta: float, warned: bool):
    """logit(0.6) = 0.405 at ten nats."""
    notes: list[str] = []
    assert stage.choose_beta(beta, None, 10.0, notes) == beta
    assert any("cannot rise" in note for note in notes) == warned


# Going on from a PRM


def test_a_second_stage_goes_on_from_the_first(start: str, data: dict[str, str], trained, tmp_path: Path):
    first = trained("ce")
    out = train(str(first / "prm"), data["ce"], tmp_path / "run", "--loss", "dpo", "--epochs", "0.3")
    assert read_settings(str(out / "prm")) == read_settings(str(first / "prm"))
    before, after = held_out(first)["end"], held_out(out)["start"]
    for name in HELD_OUT - {"loss"}:  # the losses differ
        assert after[name] == pytest.approx(before[name], abs=1e-5)
    assert weights(out / "prm") != weights(first / "prm")


def test_beta_and_reference_of_a_second_stage_can_be_named(start: str, data, trained, tmp_path: Path):
    first = trained("ce")
    other = shutil.copytree(start, tmp_path / "other")
    flags = ("--beta", "0.3", "--reference", str(other), "--epochs", "0.1")
    out = train(str(first / "prm"), data["ce"], tmp_path / "run", *flags)
    beta, reference = read_settings(str(out / "prm"))
    assert (beta, Path(reference)) == (0.3, other)


def test_steps_after_outcomes(data: dict[str, str], trained, tmp_path: Path):
    """Stage 2 with step labels on the PRM of stage 1."""
    out = train(str(trained("ce") / "prm"), data["steps"], tmp_path / "run", "--loss", "steps")
    found = held_out(out)
    assert found["end"]["loss"] < found["start"]["loss"]
    assert found["start"]["auc"] != 0.5


# What is refused


@pytest.fixture
def refused(start: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """(rows, *flags, model) -> what is said on stderr; the run must not have begun."""

    def go(rows: list[dict], *flags: str, model: str = start) -> str:
        capsys.readouterr()
        assert main(arguments(model, write(tmp_path / "d.jsonl", rows), tmp_path / "run", *flags)) == 2
        assert not (tmp_path / "run").exists()
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return said

    return go


@pytest.mark.parametrize("loss", ["dpo", "nca"])
def test_losses_on_pairs_need_a_pair(loss: str, refused, start: str, tmp_path: Path, capsys):
    rows = [
        {"prompt": f"say {p}", "response": f"x {i}", "outcome": p % 2} for p in range(9) for i in range(3)
    ]
    said = refused(rows, "--loss", loss)
    assert "prompts has both a right and a wrong response" in said
    assert f"no pair for loss={loss}: set loss=ce" in said
    rows += [{"prompt": f"say {p}", "response": "y", "outcome": (p + 1) % 2} for p in range(7)]
    out = train(
        start, write(tmp_path / "some.jsonl", rows), tmp_path / "some", "--loss", loss, "--held-out", "0"
    )
    said = " ".join(capsys.readouterr().out.split())
    assert (
        f"2 of 9 prompts have no right or no wrong response: left out, as loss={loss} learns from pairs"
        in said
    )
    assert not (out / "held_out.json").exists()
    rows = metrics(out)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))  # no measure before the first step
    assert len(rows) > 1


def test_models_with_different_vocabularies_are_refused(refused, start: str, tmp_path: Path):
    tokenizer = build_tokenizer(["quite another text"] * 9, 270)
    (tmp_path / "other").mkdir()
    save_model(load_model(start), tokenizer, tmp_path / "other")
    said = refused(judged_rows(8), "--reference", str(tmp_path / "other"))
    assert f"the vocabulary of {start}" in said
    assert f"differs from that of {tmp_path / 'other'}" in said


def test_a_prm_without_a_reference_needs_one(refused, trained, tmp_path: Path):
    prm = shutil.copytree(trained("ce") / "prm", tmp_path / "prm")
    (prm / "implicit_prm.json").write_text('{"beta": 0.1, "reference": ""}')
    assert "saved without a reference model: name it (--reference)" in refused(judged_rows(8), model=str(prm))


def test_rows_of_another_kind_are_refused(refused):
    assert "loss=steps needs steps and their labels" in refused(judged_rows(8), "--loss", "steps")
    assert "step labels need loss=steps" in refused(
        [row | {"label": 1} for row in judged_rows(8, steps=True)]
    )
    assert "held_out=1.0 keeps all 8 prompts from training" in refused(judged_rows(8), "--held-out", "1")


def test_settings_without_effect_are_noted(start: str, data: dict[str, str], tmp_path: Path, capsys):
    train(start, data["ce"], tmp_path / "run", "--epochs", "0.1", "--data.labels-field", "marks")
    assert "note: no effect with loss=ce: data.labels_field" in capsys.readouterr().out
    flags = ("--loss", "steps", "--step-split", "numbered", "--data.outcome-field", "x")
    train(start, data["steps"], tmp_path / "other", "--epochs", "0.1", *flags)
    said = " ".join(capsys.readouterr().out.split())
    assert "no effect with loss=steps: data.outcome_field, step_split" in said


def test_a_loss_that_is_not_finite_names_the_step_and_the_way_back(
    start: str, data: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert (
        main(arguments(start, data["ce"], tmp_path / "run", "--optimizer.lr", "1e30", "--save-every", "1"))
        == 1
    )
    said = capsys.readouterr().err
    assert "the optimiser step was not taken" in said
    assert "The last good checkpoint is" in said
    assert "Lower optimizer.lr" in said


@pytest.mark.parametrize("name", ["tiny", "eurus-prm-7b", "eurus-prm-7b-stage2"])
def test_the_configurations_can_be_read(name: str):
    path = Path(__file__).parents[2] / "configs" / "prm" / f"{name}.yaml"
    config = read_config(OfflinePRMConfig, path)
    assert config.check() == []
    if name != "tiny":  # as published: the EurusPRM model cards and 2412.01981
        assert (config.loss, config.optimizer.lr, config.batch, config.epochs) == ("ce", 5e-7, 64, 1)
        assert yaml.safe_load(path.read_text())["data"]["source"].startswith("PRIME-RL/EurusPRM-Stage")
