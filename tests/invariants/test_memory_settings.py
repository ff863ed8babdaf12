"""Settings that bound memory change no result: only the order of additions in float32."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from support.tiny_runs import metrics, records, rl

STEPS = ("--steps", "3", "--eval.samples", "2", "--sample-every", "1")
NOISE = ("policy/mismatch_mean", "policy/mismatch_max", "policy/kl")
"""What is nothing but that noise, or is as small."""
SETTINGS = {
    "one sequence at a time": ("--rollout.sequences", "1"),
    "five sequences at a time": ("--rollout.sequences", "5"),
    "policy, one sequence a pass": ("--policy.tokens-per-microbatch", "1"),
    "policy, a few sequences a pass": ("--policy.tokens-per-microbatch", "100"),
    "PRM, one sequence a pass": ("--prm.tokens-per-microbatch", "1"),
    "PRM, a few sequences a pass": ("--prm.tokens-per-microbatch", "150"),
    "recomputed activations": ("--policy.gradient-checkpointing", "--prm.gradient-checkpointing"),
}
LOSSES = {
    "cross-entropy": (),
    "dpo": ("--prm.loss", "dpo", "--policy.reduction", "sequence", "--advantage.whiten", "True"),
}


@pytest.fixture(scope="module")
def plain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs that have memory enough."""
    done: dict[str, Path] = {}

    def run(loss: str) -> Path:
        if loss not in done:
            done[loss] = rl(model, tmp_path_factory.mktemp("plain") / "run", *STEPS, *LOSSES[loss])
        return done[loss]

    return run


def assert_close(got: Path, expected: Path) -> None:
    """The same metrics but for noise, and the same samples."""
    ours, theirs = metrics(got), metrics(expected)
    assert len(ours) == len(theirs) == 4
    for row, other in zip(ours, theirs, strict=True):
        assert list(row) == list(other)
        for name, value in row.items():
            # At step 1 the PRM is its reference: noise alone orders its scores.
            if name not in NOISE and (row["step"], name) != (1, "prm/pairwise_accuracy"):
                close = math.isclose(value, other[name], rel_tol=1e-4, abs_tol=2e-6)
                assert close, f"step {row['step']}, {name}: {value} and {other[name]}"
    for row, other in zip(records(got / "samples.jsonl"), records(expected / "samples.jsonl"), strict=True):
        assert row["tokens"] == other["tokens"]
        assert row["rewards"] == pytest.approx(other["rewards"], rel=1e-3, abs=2e-5)


QUICK = {
    ("cross-entropy", "one sequence at a time"),
    ("cross-entropy", "policy, a few sequences a pass"),
    ("cross-entropy", "PRM, a few sequences a pass"),
    ("dpo", "five sequences at a time"),
    ("dpo", "policy, one sequence a pass"),
    ("dpo", "PRM, one sequence a pass"),
    ("dpo", "recomputed activations"),
}
CASES = [
    pytest.param(loss, setting, marks=() if (loss, setting) in QUICK else pytest.mark.slow)
    for loss in LOSSES
    for setting in SETTINGS
]


@pytest.mark.parametrize(("loss", "setting"), CASES)
def test_memory_settings__memory_settings_change_no_result(
    model: Path, tmp_path: Path, plain: Callable, loss: str, setting: str
):
    run = rl(model, tmp_path / "run", *STEPS, *LOSSES[loss], *SETTINGS[setting])
    assert_close(run, plain(loss))


def test_memory_settings__the_comparison_can_fail(model: Path, tmp_path: Path, plain: Callable):
    """A thousandth of the learning rate is more than noise."""
    run = rl(model, tmp_path / "run", *STEPS, "--policy.lr", "1.001e-3")
    with pytest.raises(AssertionError, match="step "):
        assert_close(run, plain("cross-entropy"))
