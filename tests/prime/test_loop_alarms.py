"""Alarms ring in runs that are wrong in their way, through the real loop, and in no other."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from openprime.cli import main
from openprime.engines import transformers as engine
from support.tiny_runs import records, rl, rl_args

VERIFIERS = '''
import random, zlib
from openprime.types import Verdict

def coin(prompts, completions, **columns):
    """Outcomes that nothing explains."""
    draw = random.Random(prompts[0] + "".join(completions))
    return [float(draw.random() < 0.5) for _ in completions]

def any_number(prompts, completions, **columns):
    return [float("#### " in text) for text in completions]

def always(prompts, completions, **columns):
    return [1.0 for _ in completions]

def hard(prompts, completions, **columns):
    """One prompt in ten is solved, by half of its responses."""
    solved = zlib.crc32(prompts[0].encode()) % 10 == 0
    return [float(solved and i % 2) for i, _ in enumerate(completions)]

def long(prompts, completions, **columns):
    """The longer half of the responses is right."""
    sizes = sorted(map(len, completions))
    return [float(len(text) > sizes[len(sizes) // 2 - 1]) for text in completions]

class Breaking:
    """All are wrong; from its 21st call on, the sixth step of four prompts, right or out of time."""
    def __init__(self):
        self.calls = 0

    def __call__(self, prompt, completions):
        self.calls += 1
        if self.calls <= 20:
            return [Verdict(0.0, "wrong") for _ in completions]
        return [Verdict(None, "timeout") if i % 4 == 0 else Verdict(1.0, "right") for i, _ in enumerate(completions)]
'''
ALL = ("--filter.low", "0", "--filter.high", "1")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the verifiers."""
    (tmp_path / "broken.py").write_text(VERIFIERS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rung(run: Path) -> dict[str, int]:
    """Alarm -> the step that said it first; `alarm/NAME` and alarms.jsonl are of one mind."""
    path = run / "alarms.jsonl"
    events = records(path) if path.exists() else []
    first = {}
    for event in events:
        assert event.keys() == {"step", "alarm", "value", "says", "do"}
        first.setdefault(event["alarm"], event["step"])
    marked: dict[str, int] = {}
    for row in records(run / "metrics.jsonl"):
        for name, value in row.items():
            if name.startswith("alarm/") and value:
                marked.setdefault(name.removeprefix("alarm/"), row["step"])
    assert first == marked
    return first


def sharpened(model: Path, folder: Path) -> Path:
    """A model that likes what `model` likes, and more so: as a PRM it pays for every likely token."""
    lm = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        lm.model.norm.weight.mul_(1.5)  # pyright: ignore[reportAttributeAccessIssue]
    lm.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def test_train__a_sound_run_has_no_alarm(model: Path, tmp_path: Path):
    run = rl(model, tmp_path / "run", *ALL, "--steps", "6", "--rollout.prompts", "4")
    assert rung(run) == {}
    row = records(run / "metrics.jsonl")[-1]
    assert sum(name.startswith("alarm/") for name in row) == 11
    assert row["reward/process_std"] > 0


def test_train__a_frozen_prm_that_is_gamed(model: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    """Its rewards are all that is learnt from, and are had by what is likely; outcomes are the throws of a coin."""
    prm = sharpened(model, here / "prm")
    flags = ("--data.verifier", "broken:coin", "--prm.model", str(prm), "--prm.update", "never")
    weights = ("--advantage.process-weight", "5", "--advantage.outcome-weight", "0", "--policy.lr", "1e-2")
    size = ("--rollout.prompts", "8", "--rollout.responses", "8", "--policy.minibatch", "16", "--steps", "15")
    found = rung(rl(model, here / "run", *ALL, *flags, *weights, *size))
    assert found["prm-at-chance"] == 10
    assert {"process-without-outcome", "entropy-collapse"} <= found.keys()
    assert "alarm: step 10: prm-at-chance: PRM pairwise accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("seed", ["0", "1"])
def test_train__a_verifier_that_pays_for_length(model: Path, here: Path, seed: str):
    size = ("--rollout.prompts", "8", "--rollout.responses", "8", "--policy.minibatch", "16", "--steps", "15")
    flags = (
        "--algorithm",
        "outcome",
        "--data.verifier",
        "broken:long",
        "--policy.lr",
        "3e-3",
        "--seed",
        seed,
    )
    found = rung(rl(model, here / "run", *ALL, *size, *flags))
    assert "truncation-rising" in found


def test_train__a_verifier_that_breaks(model: Path, here: Path):
    """What it says turns, so that the PRM is far off, and it runs out of time."""
    prm = sharpened(model, here / "prm")
    flags = ("--data.verifier", "broken:Breaking", "--verify.workers", "1", "--rollout.prompts", "4")
    frozen = ("--prm.model", str(prm), "--prm.update", "never", "--prm.beta", "1", "--policy.lr", "1e-9")
    found = rung(rl(model, here / "run", *ALL, *flags, *frozen, "--steps", "10"))
    assert found["verifier-timeouts"] == 7, "one step of a quarter is a mean of .05, and no more"
    assert 6 < found["calibration-drift"] <= 10


def test_train__a_verifier_that_pays_for_any_number(model: Path, here: Path):
    assert rung(
        rl(model, here / "run", *ALL, "--data.verifier", "broken:any_number", "--rollout.prompts", "8")
    ) == {"paid-for-nothing": 1}


def test_train__a_verifier_that_pays_for_everything_leaves_nothing_to_the_filter(
    model: Path, here: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(rl_args(model, here / "run", "--data.verifier", "broken:always")) == 2
    assert "the verifier pays for empty or constant answers" in capsys.readouterr().err


def test_train__data_that_are_too_hard(model: Path, here: Path):
    run = rl(model, here / "run", "--data.verifier", "broken:hard", "--steps", "3")
    assert rung(run) == {"filter-starving": 3}


def test_train__a_sampler_that_is_a_little_off(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Half of the distance that ends a run at its first step."""
    original = engine.to_response
    wrong = lambda tokens, logprobs, *rest: original(tokens, [p - 0.005 for p in logprobs], *rest)  # noqa: E731
    monkeypatch.setattr(engine, "to_response", wrong)
    assert rung(rl(model, tmp_path / "run", *ALL, "--steps", "3")) == {"sampler-mismatch": 3}
