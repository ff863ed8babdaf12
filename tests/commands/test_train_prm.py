"""`openprime prm`: from judged responses to an implicit PRM, on a model of 23,000 parameters."""

import json
import math
import os
import random
import shutil
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import fmean, median

import pytest
import torch
import yaml
from safetensors.torch import load_file

from openprime.cli import main
from openprime.commands.train_prm import batch_accuracy, choose_scale, plan_steps, units_of
from openprime.config import OfflinePRMConfig, read_config
from openprime.data.records import JudgedResponse, read_judged, split_prompts
from openprime.models.hub import load_model, load_tokenizer, save_model
from openprime.models.lm import LM
from openprime.models.tiny import build_model, build_tokenizer
from openprime.prime import prm as prm_module
from openprime.prime.prm import ImplicitPRM, read_settings
from openprime.run.checkpoint import checkpoints, load_checkpoint
from openprime.run.run import Run
from openprime.types import Batch, Prompt, Response
from support import brute
from support.tiny_prm import token_logprobs
from support.tiny_runs import assert_same_run, metrics, records, weights

WORDS = ("one", "two", "six", "ten", "add", "sub")
LOSSES = ("ce", "dpo", "nca", "kto", "prefix", "steps")
HELD_OUT = {
    *("loss", "pairwise_accuracy", "pairwise_low", "pairwise_high"),
    *("auc", "ece", "brier", "lowest_step_last"),
}


def judged_rows(count: int, steps: bool = False) -> list[dict]:
    """Four responses of three steps to each of `count` prompts, the prompts in turn; a wrong one has a slip in a step.

    Each sixth prompt has right ones only.
    """
    rng, rows = random.Random("0"), []
    for i in range(4):
        for p in range(count):
            text = [" ".join(rng.choices(WORDS, k=rng.randint(1, 3))) for _ in range(3)]
            wrong = p % 6 != 5 and (i + p) % 4 in (0, 1)
            slip = rng.randrange(3) if wrong else -1
            if wrong:
                text[slip] += " oops"
            judged = (
                {"steps": text, "labels": slip}
                if steps
                else {"response": "\n".join(text), "outcome": not wrong}
            )
            rows.append({"prompt": f"say {p}"} | judged)
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


@pytest.fixture(scope="module")
def trained(start: str, data, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """(loss) -> a run of three epochs with it, once."""

    @cache
    def run(loss: str) -> Path:
        out = tmp_path_factory.mktemp("trained") / loss
        return train(start, data[loss], out, "--loss", loss, "--epochs", "3", "--beta", "0.1")

    return run


def held_out(out: Path) -> dict:
    return json.loads((out / "held_out.json").read_text(encoding="utf-8"))


def split(out: Path) -> tuple[list[JudgedResponse], list[JudgedResponse]]:
    """What a run trained on and what it held out, from its configuration."""
    config = read_config(OfflinePRMConfig, out / "config.yaml")
    rows = read_judged(
        config.data, load_tokenizer(config.model), config.max_tokens, config.loss == "steps"
    ).rows
    return split_prompts(rows, config.held_out, config.seed)


def asked(row: JudgedResponse) -> str:
    """The text of a row's prompt."""
    return row.prompt.messages[0]["content"]  # type: ignore[index]


def without_noise(row: dict) -> dict:
    """Before the first update all scores are 0, and their signs mean nothing."""
    return {name: value for name, value in row.items() if row["step"] > 1 or "accuracy" not in name}


def said(capsys: pytest.CaptureFixture) -> str:
    return " ".join(capsys.readouterr().out.split())


# What a run does


@pytest.mark.parametrize("loss", LOSSES)
def test_prm__training_teaches_what_is_right(loss: str, trained: Callable[[str], Path]):
    found = held_out(trained(loss))
    start, end = found["start"], found["end"]
    assert start["pairwise_accuracy"] == start["auc"] == 0.5  # the PRM is its reference: all scores are 0
    assert start["brier"] == pytest.approx(0.25)
    assert end["pairwise_accuracy"] > 0.85
    assert end["auc"] > 0.85
    assert end["loss"] < start["loss"]
    assert end["pairwise_low"] <= end["pairwise_accuracy"] <= end["pairwise_high"]


@pytest.mark.parametrize("loss", LOSSES)
def test_prm__metrics_have_their_names_and_are_finite(loss: str, trained: Callable[[str], Path]):
    rows, found = records(trained(loss) / "metrics.jsonl"), held_out(trained(loss))
    assert [row["step"] for row in rows] == list(range(len(rows)))
    accuracy = "prm/pairwise_accuracy" if loss in ("dpo", "nca") else "prm/accuracy"
    trains = {"prm/loss", "prm/grad_norm", "prm/lr", accuracy} | (
        {"prm/reference_point"} if loss == "kto" else set()
    )
    for row in rows:
        when = {0: "start", len(rows) - 1: "end"}.get(row["step"])
        measured = {f"held_out/{name}": found[when][name] for name in HELD_OUT} if when else {}
        names = {name for name in row if not name.startswith(("time/", "speed/"))} - {"step"}
        assert names == measured.keys() | (trains if row["step"] else set())
        assert row.items() >= measured.items()
        assert all(math.isfinite(value) for value in row.values())


def moved(rows: list[JudgedResponse], longest: int) -> tuple[list[str], list[str]]:
    """(prompts, responses): each response beside the prompt after its own, where both are not too long together."""
    ids = {asked(row): row.prompt.token_ids for row in rows}
    prompts = list(ids)
    beside = [prompts[(prompts.index(asked(row)) + 1) % len(prompts)] for row in rows]
    kept = [
        (name, row.response.text)
        for name, row in zip(beside, rows, strict=True)
        if len(ids[name]) + len(row.response.token_ids) <= longest
    ]
    return [name for name, _ in kept], [text for _, text in kept]


def reference_point(prm: ImplicitPRM, rows: list[JudgedResponse], longest: int) -> float:
    """KTO's z0: the mean score of responses that are beside other prompts, at least 0."""
    return max(0.0, fmean(score.reward for score in prm.score(*moved(rows, longest))))


@pytest.mark.parametrize("loss", LOSSES)
def test_prm__held_out_measures_are_those_of_the_saved_prm(loss: str, trained: Callable[[str], Path]):
    """Texts scored by the PRM as it is loaded from its folder, and every measure counted in loops."""
    out, steps = trained(loss), loss == "steps"
    found, held = held_out(out), split(out)[1]
    names = list(dict.fromkeys(map(asked, held)))
    prm = ImplicitPRM.from_pretrained(str(out / "prm"))
    values, labels, group, lowest = [], [], [], []
    for g, name in enumerate(names):
        rows = [row for row in judged_rows(30, steps) if row["prompt"] == name]
        if steps:
            pieces = [[f"{step}\n\n" for step in row["steps"][:-1]] + row["steps"][-1:] for row in rows]
            scores = prm.score([name] * len(rows), ["".join(p) for p in pieces], pieces)
            values += [sum(score.step_rewards[: k + 1]) for score in scores for k in range(3)]
            labels += [float(row["labels"] == -1 or k < row["labels"]) for row in rows for k in range(3)]
        else:
            scores = prm.score([name] * len(rows), [row["response"] for row in rows])
            values += [score.reward for score in scores]
            labels += [float(row["outcome"]) for row in rows]
        group += [g] * (len(values) - len(group))
        lowest += [min(score.step_rewards) == score.step_rewards[-1] for score in scores]
    assert (found["prompts"], found["responses"]) == (len(names), len(held))
    p = [1 / (1 + math.exp(-value)) for value in values]
    z0 = reference_point(prm, held, 4096) if loss == "kto" else 0.0
    if loss == "prefix":
        scale, rewards = json.loads((out / "held_out.json").read_text()), []
        for name in names:
            rows = [row for row in judged_rows(30) if row["prompt"] == name]
            scores = prm.score([name] * len(rows), [row["response"] for row in rows])
            rewards += [score.token_rewards for score in scores]
        total, count = brute.prefix_loss(rewards, labels, scale["margin"], [None] * len(labels)), len(labels)
    else:
        total, count = brute.outcome_loss("ce" if steps else loss, values, labels, group, z0)
    won = []
    for g in set(group):
        own = [i for i, other in enumerate(group) if other == g]
        right, pairs = brute.pairwise_accuracy(
            [values[i] for i in own], [labels[i] for i in own], [g] * len(own)
        )
        won += [right / pairs] if pairs else []
    assert len(won) < len(names)  # a prompt without a pair tells nothing
    expected = {
        "loss": total / count,
        "pairwise_accuracy": fmean(won),
        "auc": brute.roc_auc(values, [label > 0.5 for label in labels]),
        "ece": brute.expected_calibration_error(p, labels, 10),
        "brier": fmean((q - o) ** 2 for q, o in zip(p, labels, strict=True)),
        "lowest_step_last": fmean(lowest),
    }
    assert {name: found["end"][name] for name in expected} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("loss", ["ce", "dpo"])
def test_prm__held_out_prompts_are_never_trained_on(loss: str, start: str, tmp_path: Path):
    """Though their rows stand far apart: a run on the others alone is the same, step by step.

    DPO has nothing to learn from prompts without a wrong response.
    """
    rows, flags = judged_rows(20), ("--loss", loss, "--epochs", "2", "--batch", "8")
    out = train(start, write(tmp_path / "all.jsonl", rows), tmp_path / "run", *flags)
    left = {asked(row) for row in split(out)[1]}
    assert left
    if loss == "dpo":
        left |= {row["prompt"] for row in rows} - {row["prompt"] for row in rows if not row["outcome"]}
    source = write(tmp_path / "some.jsonl", [row for row in rows if row["prompt"] not in left])
    other = train(start, source, tmp_path / "other", *flags, "--held-out", "0")
    theirs = metrics(other)
    assert [row | ours for row, ours in zip(metrics(out)[1:], theirs, strict=True)] == metrics(out)[1:]
    assert weights(out / "prm") == weights(other / "prm")


@pytest.mark.parametrize("loss", LOSSES)
def test_prm__how_a_batch_is_cut_changes_nothing(loss: str, start: str, data: dict[str, str], tmp_path: Path):
    flags = ("--loss", loss, "--epochs", "0.5", "--optimizer.tokens-per-microbatch")
    runs = [
        train(start, data[loss], tmp_path / name, *flags, tokens)
        for name, tokens in (("whole", "100000"), ("small", "40"))
    ]
    for row, other in zip(*(metrics(run) for run in runs), strict=True):
        assert without_noise(row) == pytest.approx(without_noise(other), rel=2e-3, abs=2e-4)
    ours, theirs = (load_file(run / "prm" / "model.safetensors") for run in runs)
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)


def test_prm__a_reference_kept_in_memory_is_that_of_each_batch(start: str, data, trained, tmp_path: Path):
    """One epoch computes it batch by batch, three epochs begin with the same steps."""
    once = metrics(train(start, data["steps"], tmp_path / "run", "--loss", "steps", "--beta", "0.1"))
    for row, other in zip(once[:-1], metrics(trained("steps")), strict=False):
        assert without_noise(row) == pytest.approx(without_noise(other), rel=1e-3, abs=1e-5)


def test_prm__kto_takes_its_reference_point_from_the_batch(start: str, tmp_path: Path):
    """The third step once more, from the weights before; what is too long beside another prompt is left out."""
    rows = [
        {"prompt": "say" + " one" * p, "response": f"{'ten ' * (9 - p - i % 2)}{i}", "outcome": i > 0}
        for p in range(8)
        for i in range(4)
    ]
    flags = (
        *("--loss", "kto", "--beta", "0.5", "--epochs", "1"),
        *("--held-out", "0", "--save-every", "1", "--keep", "9"),
    )
    source = write(tmp_path / "d.jsonl", rows)
    longest = max(len(row.prompt.token_ids + row.response.token_ids) for row in read_rows(start, source))
    out = train(start, source, tmp_path / "run", *flags, "--max-tokens", str(longest))
    training = split(out)[0]
    batch = [training[i] for i in plan_steps([1] * len(rows), 12, 1, seed=0)[2]]
    assert 0 < len(moved(batch, longest)[0]) < len(batch)
    phi = load_model(start)
    phi.load_state_dict(load_checkpoint(out / "checkpoints" / "step-000002")["learner"]["model"])
    prm = ImplicitPRM(LM(phi), LM(load_model(start)), 0.5, load_tokenizer(start))
    z0 = reference_point(prm, batch, longest)
    assert z0 > 0
    third = metrics(out)[2]
    assert third["prm/reference_point"] == pytest.approx(z0, rel=1e-4)
    scores = [
        score.reward for score in prm.score([asked(r) for r in batch], [r.response.text for r in batch])
    ]
    loss = brute.kto_loss(scores, [row.response.outcome or 0.0 for row in batch], z0) / len(batch)
    assert third["prm/loss"] == pytest.approx(loss, rel=1e-4)


def read_rows(model: str, source: str) -> list[JudgedResponse]:
    config = OfflinePRMConfig.model_validate({"data": {"source": source}})
    return read_judged(config.data, load_tokenizer(model), 4096).rows


def test_batch_accuracy__by_hand():
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
        labels=torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
    )
    right = {"ce": 2 / 4, "kto": 2 / 4, "steps": 5 / 8}  # prefix values -.2 .3, .3 -.1, .3 .2, -.1 -.4
    for loss, share in right.items():
        assert batch_accuracy(loss, rewards, batch) == {"prm/accuracy": share}
    for loss in ("dpo", "nca"):  # of the pairs (0.3 over 0.2) and (-0.1 over 0.2)
        assert batch_accuracy(loss, rewards, batch) == {"prm/pairwise_accuracy": 0.5}


def test_units_of__single_responses_or_whole_prompts():
    prompt, response = Prompt("", (), "", None), Response((), (), "", False)
    rows = [JudgedResponse(group, prompt, response) for group in (4, 9, 4, 2, 9)]
    for loss in LOSSES:
        pairs = loss in ("dpo", "nca")
        assert units_of(rows, loss) == ([[0, 2], [1, 4], [3]] if pairs else [[i] for i in range(5)])


@pytest.mark.parametrize(("sizes", "batch"), [([1] * 10, 3), ([1] * 4, 9), ([4, 1, 3, 2, 5], 6), ([7, 7], 3)])
@pytest.mark.parametrize("epochs", [0.5, 1, 3])
def test_plan_steps__every_unit_is_taken_once_an_epoch(sizes: list[int], batch: int, epochs: float):
    plan = plan_steps(sizes, batch, epochs, seed=1)
    units = [unit for step in plan for unit in step]
    for epoch in range(len(units) // len(sizes)):
        assert sorted(units[epoch * len(sizes) : (epoch + 1) * len(sizes)]) == list(range(len(sizes)))
    taken = [sum(sizes[unit] for unit in step) for step in plan]
    done = 0
    for step, count in zip(plan, taken, strict=True):
        assert count < batch + sizes[step[-1]]  # full, but for the last unit not yet
        done += len(step)
        assert count >= batch or done % len(sizes) == 0  # an epoch's last step is short
    assert sum(taken[:-1]) < round(epochs * sum(sizes)) <= sum(taken)
    assert plan_steps(sizes, batch, epochs + 2, seed=1)[: len(plan)] == plan
    if len(sizes) == 10 and epochs == 3:
        assert units[:10] != units[10:20]
        assert units != [unit for step in plan_steps(sizes, batch, epochs, seed=2) for unit in step]


# Resuming

KINDS = {
    "reference kept": ("--loss", "ce", "--epochs", "1.5"),
    "reference by batch": ("--loss", "dpo", "--optimizer.schedule", "cosine"),
    "kto": ("--loss", "kto", "--epochs", "1.2"),
}
SAVING = ("--save-every", "3", "--keep", "9", "--optimizer.warmup", "2")


@pytest.fixture(scope="module")
def whole(start: str, data, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """(kind) -> a run of it without a stop, once."""

    @cache
    def run(kind: str) -> Path:
        return train(start, data["ce"], tmp_path_factory.mktemp("whole") / "run", *SAVING, *KINDS[kind])

    return run


def assert_same(got: Path, expected: Path) -> None:
    assert_same_run(got, expected, "prm")
    assert held_out(got) == held_out(expected)
    assert read_settings(str(got / "prm")) == read_settings(str(expected / "prm"))


@pytest.mark.parametrize("kind", KINDS)
def test_prm__trap_10_a_killed_run_goes_on_exactly(kind: str, start: str, data, tmp_path: Path, whole):
    """From what a kill leaves while step 6 is under way: half a line, and the checkpoint of step 3."""
    run = shutil.copytree(whole(kind), tmp_path / "run")
    for path in checkpoints(run / "checkpoints")[1:]:
        shutil.rmtree(path)
    shutil.rmtree(run / "prm")
    (run / "held_out.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:6]) + lines[6][:9])
    for _ in range(2):  # a finished run stays as it is
        train(start, data["ce"], run, *SAVING, *KINDS[kind], "--resume")
        assert_same(run, whole(kind))


def test_prm__a_signal_saves_and_the_run_goes_on_exactly(
    start, data, tmp_path: Path, whole, monkeypatch, capsys
):
    args, real = arguments(start, data["ce"], tmp_path / "run", *SAVING, *KINDS["reference kept"]), Run.log

    def log(self: Run, *values) -> None:
        if self.step_number == 4 and not self.signals.received:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, *values)

    monkeypatch.setattr(Run, "log", log)
    assert main(args) == 128 + signal.SIGTERM
    monkeypatch.undo()
    errors = capsys.readouterr().err
    assert "stopped by SIGTERM: saved; go on with --resume" in errors
    assert "Traceback" not in errors
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step-000004"
    assert main([*args, "--resume"]) == 0
    assert_same(tmp_path / "run", whole("reference kept"))


def test_prm__a_resumed_run_keeps_beta_and_refuses_other_data(
    start: str, tmp_path: Path, capsys, monkeypatch
):
    rows = judged_rows(8)
    source = write(tmp_path / "d.jsonl", rows)
    beta = read_settings(str(train(start, source, tmp_path / "run") / "prm"))[0]
    monkeypatch.setattr(prm_module, "REACH", 50.0)  # it would be another one now
    train(start, source, tmp_path / "run", "--epochs", "2", "--resume")
    assert read_settings(str(tmp_path / "run" / "prm"))[0] == beta
    assert f"beta {beta:.3g}, as before" in said(capsys)
    write(tmp_path / "d.jsonl", rows[:-4])
    assert main(arguments(start, source, tmp_path / "run", "--epochs", "3", "--resume")) == 2
    errors = capsys.readouterr().err
    assert "was begun with other data" in errors
    assert "Traceback" not in errors


# beta


@pytest.mark.parametrize("beta", ["auto", "0.001"])
def test_prm__beta_auto_fits_the_median_response(beta: str, start: str, tmp_path: Path, capsys, monkeypatch):
    """On responses of a letter or two, which have few nats; one that is too small is warned about."""
    monkeypatch.setattr(
        prm_module, "REACH", 2.0
    )  # so that the beta of so poor a model lies between the bounds
    rng = random.Random("short")
    rows = [
        {"prompt": f"say {p}", "response": "".join(rng.choices("abcdef", k=1 + (i > 2))), "outcome": i % 2}
        for p in range(9)
        for i in range(5)
    ]
    source = write(tmp_path / "d.jsonl", rows)
    out = train(start, source, tmp_path / "run", "--epochs", "0.1", "--beta", beta)
    nats = median(
        -sum(token_logprobs(Path(start), row.prompt.token_ids, row.response.token_ids))
        for row in split(out)[0]
    )
    fitting = 2.0 / nats
    assert 0.05 < fitting < 1
    found, reference, _ = read_settings(str(out / "prm"))
    assert found == (pytest.approx(fitting, rel=1e-3) if beta == "auto" else 0.001)
    assert Path(reference) == Path(start)
    assert held_out(out)["beta"] == found
    bound, text = 1 / (1 + math.exp(-found * nats)), said(capsys)
    assert f"beta {found:.3g}; the median response has {nats:.3g} nats" in text
    assert f"its P(right) cannot rise above {bound:.2f}" in text
    assert (f": beta={fitting:.2g} would let it move" in text) == (beta != "auto")


@pytest.mark.parametrize(
    ("asked", "nats", "beta", "warned"),
    [
        ("auto", 1000.0, 0.05, True),  # the published one at least
        ("auto", 0.125, 1.0, False),
        ("auto", 0.0, 1.0, False),
        (0.039, 10.0, 0.039, True),  # logit(0.6) = 0.405 at ten nats
        (0.043, 10.0, 0.043, False),
    ],
)
def test_choose_scale__beta_has_bounds_and_warns_below_three_fifths(
    asked, nats: float, beta: float, warned: bool
):
    notes: list[str] = []
    assert choose_scale(asked, "auto", None, nats, "sum", notes) == (beta, 0.0)
    assert any("would let it move" in note for note in notes) == (warned and asked != "auto")


# Going on from a PRM


def test_prm__a_second_stage_goes_on_from_the_first(start: str, data, trained, tmp_path: Path):
    first = trained("ce")
    out = train(str(first / "prm"), data["ce"], tmp_path / "run", "--loss", "dpo", "--epochs", "0.3")
    assert read_settings(str(out / "prm")) == read_settings(str(first / "prm"))
    before, after = held_out(first)["end"], held_out(out)["start"]
    for name in HELD_OUT - {"loss"}:  # the losses differ
        assert after[name] == pytest.approx(before[name], abs=1e-5)
    assert weights(out / "prm") != weights(first / "prm")


def test_prm__beta_and_reference_of_a_second_stage_can_be_named(start: str, data, trained, tmp_path: Path):
    other = shutil.copytree(start, tmp_path / "other")
    flags = ("--beta", "0.3", "--reference", str(other), "--epochs", "0.1")
    out = train(str(trained("ce") / "prm"), data["ce"], tmp_path / "run", *flags)
    beta, reference, _ = read_settings(str(out / "prm"))
    assert (beta, Path(reference)) == (0.3, other)


def test_prm__a_prefix_loss_begins_at_its_margin(trained: Callable[[str], Path]):
    """All values are 0 then; with a beta of 0.1 the margin is half of what the median response can reach."""
    margin = held_out(trained("prefix"))["margin"]
    assert 0.05 < margin < 1
    assert metrics(trained("prefix"))[1]["prm/loss"] == pytest.approx(math.log1p(math.exp(margin)), rel=1e-4)


def test_prm__beta_of_another_scoring_is_not_kept(start: str, data, trained, tmp_path: Path, capsys):
    """The mean of token rewards after their sum, and the sum after the mean: the unit of beta is another."""
    prefix = train(
        str(trained("ce") / "prm"), data["prefix"], tmp_path / "p", "--loss", "prefix", "--epochs", "0.1"
    )
    note = next(line for line in capsys.readouterr().out.splitlines() if "nats a token" in line)
    nats = float(note.split("response has ")[1].split()[0])
    assert read_settings(str(prefix / "prm"))[::2] == (pytest.approx(10 / nats, rel=0.01), "mean")
    assert held_out(prefix)["margin"] == pytest.approx(5.0)
    again = train(str(prefix / "prm"), data["prefix"], tmp_path / "a", "--loss", "prefix", "--epochs", "0.1")
    assert read_settings(str(again / "prm")) == read_settings(str(prefix / "prm"))
    back = train(str(prefix / "prm"), data["ce"], tmp_path / "b", "--epochs", "0.1")
    beta, _, scoring = read_settings(str(back / "prm"))
    assert 0.05 <= beta <= 1 < read_settings(str(prefix / "prm")).beta
    assert scoring == "sum"
    assert "margin" not in held_out(back)


def test_prm__steps_after_outcomes(data: dict[str, str], trained, tmp_path: Path):
    """Stage 2 with step labels on the PRM of stage 1."""
    found = held_out(train(str(trained("ce") / "prm"), data["steps"], tmp_path / "run", "--loss", "steps"))
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
        errors = capsys.readouterr().err
        assert "Traceback" not in errors
        return errors

    return go


@pytest.mark.parametrize("loss", ["dpo", "nca"])
def test_prm__losses_on_pairs_need_a_pair(loss: str, refused, start: str, tmp_path: Path, capsys):
    rows = [
        {"prompt": f"say {p}", "response": f"x {i}", "outcome": p % 2} for p in range(9) for i in range(3)
    ]
    errors = refused(rows, "--loss", loss)
    assert "prompts has both a right and a wrong response" in errors
    assert f"no pair for loss={loss}: set loss=ce" in errors
    rows += [{"prompt": f"say {p}", "response": "y", "outcome": (p + 1) % 2} for p in range(7)]
    source = write(tmp_path / "some.jsonl", rows)
    out = train(start, source, tmp_path / "some", "--loss", loss, "--held-out", "0")
    left = "2 of 9 prompts have no right or no wrong response: left out"
    assert f"{left}, as loss={loss} learns from pairs" in said(capsys)
    assert not (out / "held_out.json").exists()
    steps = [row["step"] for row in metrics(out)]
    assert steps == list(range(1, len(steps) + 1))  # no measure before the first step
    assert len(steps) > 1


def test_prm__models_with_different_vocabularies_are_refused(refused, start: str, tmp_path: Path):
    (tmp_path / "other").mkdir()
    save_model(load_model(start), build_tokenizer(["quite another text"] * 9, 270), tmp_path / "other")
    errors = refused(judged_rows(8), "--reference", str(tmp_path / "other"))
    assert f"the vocabulary of {start}" in errors
    assert f"differs from that of {tmp_path / 'other'}" in errors


def test_prm__one_without_a_reference_needs_one(refused, trained, tmp_path: Path):
    prm = shutil.copytree(trained("ce") / "prm", tmp_path / "prm")
    (prm / "implicit_prm.json").write_text('{"beta": 0.1, "reference": ""}')
    assert "saved without a reference model: name it (--reference)" in refused(judged_rows(8), model=str(prm))


def test_prm__rows_of_another_kind_are_refused(refused):
    assert "no row has a field labels or label" in refused(judged_rows(8), "--loss", "steps")
    labelled = [row | {"label": 1} for row in judged_rows(8, steps=True)]
    assert "step labels need loss=steps" in refused(labelled)
    assert "held_out=1.0 keeps all 8 prompts from training" in refused(judged_rows(8), "--held-out", "1")


def test_prm__settings_without_effect_are_noted(start: str, data: dict[str, str], tmp_path: Path, capsys):
    train(start, data["ce"], tmp_path / "run", "--epochs", "0.1", "--data.labels-field", "marks")
    assert "note: no effect with loss=ce: data.labels_field" in said(capsys)
    settings = {"model": "m", "out": "o", "loss": "steps", "step_split": "numbered"}
    settings["data"] = {"source": "d", "outcome_field": "x"}
    notes = OfflinePRMConfig.model_validate(settings).check()
    assert notes == ["no effect with loss=steps: data.outcome_field, step_split"]
    asked = {"model": "m", "out": "o", "data": {"source": "d"}, "margin": 1.0}
    assert OfflinePRMConfig.model_validate(asked).check() == ["no effect with loss=ce: margin"]
    assert OfflinePRMConfig.model_validate(asked | {"loss": "prefix"}).check() == []


def test_prm__a_loss_that_is_not_finite_names_the_way_back(start: str, data, tmp_path: Path, capsys):
    args = arguments(start, data["ce"], tmp_path / "run", "--optimizer.lr", "1e6", "--save-every", "1")
    args += ["--optimizer.weight-decay", "1e6"]
    assert main(args) == 1
    errors = capsys.readouterr().err
    assert "the optimiser step was not taken. The last good checkpoint is" in errors
    assert "Lower the learning rate" in errors


@pytest.mark.parametrize("name", ["tiny", "eurus-prm-7b", "eurus-prm-7b-stage2"])
def test_prm__the_configurations_can_be_read(name: str):
    path = Path(__file__).parents[2] / "configs" / "prm" / f"{name}.yaml"
    config = read_config(OfflinePRMConfig, path)
    assert config.check() == []
    if name != "tiny":  # as published: the EurusPRM model cards and 2412.01981
        assert (config.loss, config.optimizer.lr, config.batch, config.epochs) == ("ce", 5e-7, 64, 1)
        assert yaml.safe_load(path.read_text())["data"]["source"].startswith("PRIME-RL/EurusPRM-Stage")
