"""What users get wrong, from the command line: the status, and a message that says what to do."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from openprime.cli import main
from openprime.commands import sft as sft_stage
from openprime.prime import methods
from openprime.prime.losses import PolicyLoss
from openprime.run.checkpoint import checkpoints, load_checkpoint
from support.tiny_runs import PYTHONPATH, SFT, assert_same_run, metrics, records, rl, rl_args

OPEN = ("--filter.low", "0", "--filter.high", "1")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> Run:
    """Run the RL command; returns the status, and what was said on stdout and stderr, in one line each."""

    def go(*flags: str, start: Path = model) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(rl_args(start, tmp_path / "run", *flags))
        out, err = capsys.readouterr()
        return status, " ".join(out.split()), err

    return go


def write(path: Path, *rows: object) -> str:
    """A JSONL file; text goes in as it is."""
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def worksheet(i: int) -> dict[str, str]:
    """A row of the kind that the model knows."""
    return {"prompt": f"Start {['one', 'two', 'six'][i % 3]}\n+two = ?\n+one = ?", "answer": str(i % 10)}


# Data


def test_train__a_malformed_line_is_named_by_file_and_line(run: Run, tmp_path: Path):
    source = write(tmp_path / "d.jsonl", worksheet(0), worksheet(1), '{"prompt": "half', worksheet(2))
    status, _, err = run("--data.source", source)
    assert status == 2
    assert f"{source}:3: not valid JSON" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_train__a_row_without_an_answer_is_named(run: Run, tmp_path: Path):
    source = write(tmp_path / "d.jsonl", worksheet(0), {"prompt": "Start one"}, worksheet(1))
    status, _, err = run("--data.source", source)
    assert status == 2
    assert "1 of 3 rows have no answer (row 1)" in err
    assert "data.answer_field" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "Start one", "answer": "1"}, ("no row has a field prompt", "text", "data.prompt_field")),
        ({"prompt": 7, "answer": "1"}, ("d.jsonl:0", "expected text or a list of messages")),
        ({"prompt": "", "answer": "1"}, ("d.jsonl:0",)),
        ([1, 2], ("d.jsonl:1", "expected an object")),
    ],
)
def test_train__rows_that_cannot_be_read_are_named(
    run: Run, tmp_path: Path, row: object, words: tuple[str, ...]
):
    status, _, err = run("--data.source", write(tmp_path / "d.jsonl", row))
    assert status == 2
    assert all(word in err for word in words), err
    assert "Traceback" not in err


def test_train__an_empty_file_is_named(run: Run, tmp_path: Path):
    status, _, err = run("--data.source", write(tmp_path / "d.jsonl"))
    assert status == 2
    assert "d.jsonl: no rows" in err


def test_train__prompts_over_the_limit_are_dropped_and_counted(run: Run, tmp_path: Path):
    long = {"prompt": "Start one\n" + "+two = ?\n" * 100, "answer": "1"}
    source = write(tmp_path / "d.jsonl", *[worksheet(i) for i in range(8)], long, long)
    flags = ("--data.source", source, "--data.max-prompt-tokens", "60", *OPEN, "--steps", "1")
    status, out, _ = run(*flags)
    assert status == 0
    assert "2 of 10 prompts are over 60 tokens: dropped" in out
    status, _, err = run(*flags, "--data.too-long", "error", "--resume")
    assert status == 2
    assert re.search(r"d\.jsonl:8: the prompt has \d+ tokens, more than data\.max_prompt_tokens=60", err)
    status, _, err = run("--data.source", source, "--data.max-prompt-tokens", "5", "--resume")
    assert status == 2
    assert "all 10 prompts exceed data.max_prompt_tokens=5: raise it" in err


# Models


@pytest.fixture
def changed(model: Path, tmp_path: Path) -> Path:
    """A copy of the model to spoil."""
    return Path(shutil.copytree(model, tmp_path / "changed"))


def test_train__a_tokenizer_without_a_chat_template(run: Run, changed: Path):
    (changed / "chat_template.jinja").unlink()
    status, _, err = run(start=changed)
    assert status == 2
    assert "the tokenizer has no chat template: set data.chat_template: none" in err
    assert "Traceback" not in err
    plain = ("--data.chat-template", "none", "--eval-data.chat-template", "none")
    status, _, err = run(*plain, *OPEN, "--steps", "1", start=changed)
    assert status == 0, err


def test_train__a_model_that_is_no_causal_language_model(run: Run, changed: Path):
    config = json.loads((changed / "config.json").read_text())
    config["architectures"] = ["Qwen2ForSequenceClassification"]
    (changed / "config.json").write_text(json.dumps(config))
    status, _, err = run(start=changed)
    assert status == 2
    assert f"{changed}: not a causal language model" in err
    assert "Qwen2ForSequenceClassification" in err
    assert "Traceback" not in err


def test_train__a_folder_without_a_model(run: Run, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    status, _, err = run(start=tmp_path / "empty")
    assert status == 2
    assert str(tmp_path / "empty") in err
    assert "Traceback" not in err


def test_train__weights_that_cannot_be_read_are_named(run: Run, changed: Path):
    (changed / "model.safetensors").write_bytes(b"half a file")
    status, _, err = run(start=changed)
    assert status != 0
    assert str(changed) in err


def test_train__nothing_is_begun_with_bad_input(run: Run, changed: Path, tmp_path: Path):
    """Else the same command, put right, would be told that the folder holds a run already."""
    (changed / "model.safetensors").unlink()
    assert run(start=changed)[0] == 2
    assert not (tmp_path / "run").exists()


def test_train__wandb_that_is_not_installed_is_said_before_anything_is_begun(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    status, _, err = run("--wandb", "project")
    assert status == 2
    assert "pip install 'openprime[wandb]'" in err
    assert not (tmp_path / "run").exists()


# Data that teach nothing


@pytest.mark.parametrize(("value", "word"), [("0.0", "too hard"), ("1.0", "too easy")])
def test_train__data_too_hard_or_too_easy_are_status_2_with_the_pass_rates(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, word: str
):
    module = f"always_{value[0]}"
    (tmp_path / f"{module}.py").write_text(
        f"def score(prompts, **columns):\n    return [{value}] * len(prompts)\n"
    )
    monkeypatch.chdir(tmp_path)
    status, _, err = run("--data.verifier", f"{module}:score", "--filter.max-draws", "5")
    assert status == 2
    assert "10 prompts were drawn and 0 of the 2 groups wanted passed the filter [0.2, 0.8]" in err
    assert f"mean accuracy {float(value):.3f}" in err
    assert word in err
    assert "Traceback" not in err


# Numbers that are not finite


def poison(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Make the policy's loss not a number from some micro-batch on."""
    real, count = methods.policy_loss, [0]

    def loss(*args: object) -> PolicyLoss:
        count[0] += 1
        done = real(*args)  # pyright: ignore[reportArgumentType]
        return done if count[0] < call else PolicyLoss(done.loss * math.nan, done.clipped, done.kl)

    monkeypatch.setattr(methods, "policy_loss", loss)


def test_train__a_loss_that_is_not_finite_stops_before_the_step(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The third step's second update: the checkpoint of step 2 is whole, and the run goes on from it."""
    flags = ("--steps", "4", "--save-every", "1", "--keep", "9", "--sample-every", "1")
    poison(monkeypatch, 6)
    status, _, err = run(*flags)
    assert status == 1
    last = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert last.name == "step-000002"
    assert re.search(
        r"openprime: step 3: loss nan, gradient norm \w+[.:] [Tt]he optimiser step was not taken", err
    )
    assert str(last) in err
    assert [row["step"] for row in records(tmp_path / "run" / "metrics.jsonl")] == [0, 1, 2]
    assert not (tmp_path / "run" / "model").exists()
    state = load_checkpoint(last)
    assert state["policy"]["updates"] == 4
    assert all(value.isfinite().all() for value in state["policy"]["model"].values())
    monkeypatch.undo()
    assert run(*flags, "--resume")[0] == 0
    whole = rl(model, tmp_path / "whole", *flags)
    assert_same_run(tmp_path / "run", whole, "model", "prm")


def test_train__a_loss_that_is_not_finite_at_the_first_step(run: Run, monkeypatch: pytest.MonkeyPatch):
    poison(monkeypatch, 1)
    status, _, err = run()
    assert status == 1
    assert "step 1: loss nan" in err
    assert "There is no checkpoint yet" in err


@pytest.mark.parametrize("flags", [OPEN, ()], ids=["filter open", "filter"])
def test_train__a_learning_rate_that_is_far_too_high_is_said_to_be(
    run: Run, tmp_path: Path, flags: tuple[str, ...]
):
    """The weights are infinite after a step: not the data are to blame, and no sample was drawn from them."""
    many = ("--policy.minibatch", "8", "--steps", "5", "--save-every", "1", "--filter.max-draws", "10")
    status, _, err = run(*flags, *many, "--policy.lr", "1e6", "--policy.weight-decay", "1e6")
    assert status == 1
    assert re.search(r"step [12]: ", err)
    assert "earning rate" in err
    assert "too hard" not in err
    for row in metrics(tmp_path / "run"):
        assert all(math.isfinite(value) for value in row.values())


def test_train__fine_tuning_stops_before_the_step_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    real, count = sft_stage.sft_loss, [0]

    def loss(*args: torch.Tensor) -> torch.Tensor:
        count[0] += 1
        return real(*args) * (math.inf if count[0] == 5 else 1.0)

    monkeypatch.setattr(sft_stage, "sft_loss", loss)
    flags = ("--epochs", "0.3", "--save-every", "2", "--out", str(tmp_path / "run"))
    assert main([*SFT, *flags]) == 1
    err = capsys.readouterr().err
    assert "step 5: loss inf" in err
    assert "step-000004" in err
    assert "Lower the learning rate" in err
    assert len(records(tmp_path / "run" / "metrics.jsonl")) == 4
    monkeypatch.undo()
    assert main([*SFT, *flags, "--resume"]) == 0
    assert main([*SFT, *flags[:-1], str(tmp_path / "whole")]) == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole", "model")


# A full disk

FULL = """
import resource, signal, sys
from openprime.cli import main

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
sys.exit(main(sys.argv[1:]))
"""


def test_train__a_full_disk_is_status_1_and_the_run_goes_on_afterwards(model: Path, tmp_path: Path):
    """No file may grow over 400 kB: the checkpoint of step 2 has 600. Records and models are smaller."""
    flags = ("--steps", "3", "--save-every", "2", "--sample-every", "1", "--eval.every", "2")
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", FULL, *rl_args(model, run, *flags)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | PYTHONPATH,
    )
    assert done.returncode == 1, done.stderr
    assert f"openprime: checkpoint {run / 'checkpoints' / 'step-000002'} could not be written" in done.stderr
    assert "make room and go on with --resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((run / "checkpoints").iterdir()) == []
    assert main(rl_args(model, run, *flags, "--resume")) == 0
    whole = rl(model, tmp_path / "whole", *flags)
    assert_same_run(run, whole, "model", "prm")


# Reward functions that fail


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return [2.0] * len(prompts)", ("outcome 2.0", "[0, 1]")),
        ("return [1.0]", ("returned 1 outcomes", "for 4 completions")),
        ("return 1.0", ("expected a list",)),
        ("raise RuntimeError('my service is down')", ("my service is down", "Traceback", "failing_")),
    ],
)
def test_train__a_reward_function_that_fails(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: tuple[str, ...]
):
    module = f"failing_{abs(hash(body))}"
    (tmp_path / f"{module}.py").write_text(f"def score(prompts, **columns):\n    {body}\n")
    monkeypatch.chdir(tmp_path)
    code, _, err = run("--data.verifier", f"{module}:score")
    assert code == 2
    assert all(word in err for word in words), err
    assert "openprime: the verifier failed on every response" in err


def test_train__the_model_of_these_tests_is_sound(model: Path):
    """Else the tests above would fail for another reason."""
    assert all(p.isfinite().all() for p in AutoModelForCausalLM.from_pretrained(model).parameters())
