"""`openprime rl` from the command line to the exported model, in every way that it can be told to train."""

import json
import math
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from openprime.cli import main
from openprime.config import PrimeConfig, RLConfig
from openprime.models import lm
from openprime.prime import loop
from openprime.prime.prm import read_settings
from openprime.run import launch
from openprime.types import UserError
from openprime.verifiers.pool import Pool
from support.ranks import become
from support.tiny_runs import metrics, records, rl, rl_args, weights

ROLLOUT = {
    "rollout/accuracy",
    "rollout/passed",
    "rollout/draws",
    "rollout/rollouts",
    "rollout/tokens",
    "rollout/response_tokens",
    "rollout/truncated",
    "rollout/entropy",
    "rollout/tokens_per_second",
    "reward/outcome",
    "verify/no_answer",
    "verify/no_verdict",
}
PRM = {
    "prm/pairwise_accuracy",
    "prm/brier",
    "prm/score_right",
    "prm/score_wrong",
    "prm/loss",
    "prm/grad_norm",
    "prm/lr",
}
POLICY = {
    "policy/loss",
    "policy/grad_norm",
    "policy/clip_fraction",
    "policy/kl",
    "policy/lr",
    "policy/mismatch_mean",
    "policy/mismatch_max",
    "advantage/process_std",
    "advantage/outcome_std",
    "advantage/std",
}
TIME = {"time/rollout", "time/verify", "time/policy", "time/step"}
OPEN = ("--filter.low", "0", "--filter.high", "1")


@pytest.fixture(scope="module")
def prime(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of PRIME with the defaults."""
    out = tmp_path_factory.mktemp("prime") / "run"
    return rl(model, out, "--steps", "4", "--save-every", "2", "--sample-every", "2", "--eval.every", "3")


@pytest.fixture(scope="module")
def train(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A run of two steps with some flags; the same flags give the same run again, already done."""
    folder = tmp_path_factory.mktemp("runs")

    @cache
    def once(*flags: str) -> Path:
        return rl(model, folder / str(once.cache_info().misses), *flags)

    return once


def generates(folder: Path) -> None:
    """The folder is a model that transformers can load and sample from."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Start four\n+two = ?\n+one = ?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=False,
    )
    out = loaded.generate(ids, max_new_tokens=3, do_sample=False)
    assert out.shape[1] > ids.shape[1]
    assert all(p.isfinite().all() for p in loaded.parameters())


# What a run leaves


def test_train__metrics_have_their_names_and_are_finite(prime: Path):
    rows = records(prime / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert set(rows[0]) == {"step", "rollout/rollouts", "eval/greedy", "time/evaluate"}
    for row in rows[1:]:
        missing = (ROLLOUT | PRM | POLICY | TIME | {"time/reference", "time/prm"}) - set(row)
        assert not missing
        assert all(math.isfinite(value) for value in row.values())
        assert 0 <= row["prm/pairwise_accuracy"] <= 1
        assert row["policy/kl"] > -1e-6
        assert row["policy/lr"] == 1e-3
        assert row["prm/lr"] == 1e-3
        assert 0.2 <= row["reward/outcome"] <= 0.8  # what the filter lets pass
    assert [row["step"] for row in rows if "eval/greedy" in row] == [0, 3, 4]
    counts = [row["rollout/rollouts"] for row in rows]
    assert counts == sorted(counts)
    assert counts[1] >= 8


def test_trap_12__the_sampler_and_the_trainer_agree(prime: Path):
    """Both see the same weights: what differs is the order of additions in float32."""
    for row in records(prime / "metrics.jsonl")[1:]:
        assert 0 <= row["policy/mismatch_mean"] <= row["policy/mismatch_max"] < 1e-4


def test_trap_12__they_agree_at_another_temperature(train: Callable[..., Path]):
    run = train("--rollout.temperature", "0.7")
    for row in records(run / "metrics.jsonl")[1:]:
        assert row["policy/mismatch_max"] < 1e-4


def test_train__the_first_scores_of_a_prm_that_is_its_reference_are_zero(prime: Path):
    first, *later = records(prime / "metrics.jsonl")[1:]
    assert (first["prm/score_right"], first["prm/score_wrong"]) == (0, 0)
    assert first["prm/pairwise_accuracy"] == 0.5
    assert first["prm/brier"] == 0.25
    assert first["prm/loss"] == pytest.approx(math.log(2))
    assert first["advantage/process_std"] == 0
    assert all(row["prm/score_right"] != 0 for row in later)
    assert all(row["advantage/process_std"] > 0 for row in later)


def test_train__samples_carry_a_reward_for_every_token(prime: Path):
    rows = records(prime / "samples.jsonl")
    assert {row["step"] for row in rows} == {2, 4}
    assert len(rows) == 2 * 2 * 4  # two groups of four at each
    for row in rows:
        for column in ("rewards", "returns", "advantages", "logprobs"):
            assert len(row["tokens"]) == len(row[column]) > 0
            assert any(value != 0 for value in row[column])
        assert row["reason"] == ("right" if row["outcome"] else row["reason"])
        assert row["truncated"] == ("<|im_end|>" not in row["tokens"])
        assert row["prompt"].startswith("Start ")
        assert row["answer"].isdigit()
        assert row["outcome"] in (0, 1)
        text = "".join(row["tokens"])
        right = f"#### {row['answer']}" == text.replace("<|im_end|>", "").strip().splitlines()[-1]
        assert right == bool(row["outcome"])


def test_train__a_run_can_be_read_again(prime: Path):
    for name in ("config.yaml", "versions.json", "model/config.json", "prm/implicit_prm.json"):
        assert (prime / name).is_file()
    assert [p.name for p in sorted((prime / "checkpoints").iterdir())] == ["step-000002", "step-000004"]
    assert not list(prime.glob(".partial*"))


def test_train__models_are_written_for_transformers(prime: Path, model: Path):
    for name in ("model", "prm"):
        generates(prime / name)
        assert weights(prime / name) != weights(model)
    assert weights(prime / "model") != weights(prime / "prm")
    assert read_settings(str(prime / "prm")) == (0.3, str(model), "sum")


def test_train__the_outcome_only_baseline_loads_no_prm(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    loaded = []
    real = lm.load_trained

    def load(name: str, *args: object):
        loaded.append(name)
        return real(name, *args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(lm, "load_trained", load)
    run = rl(model, tmp_path / "run", "--algorithm", "outcome")
    assert loaded == [str(model)]
    assert not (run / "prm").exists()
    for row in records(run / "metrics.jsonl")[1:]:
        assert not [name for name in row if name.startswith("prm/")]
        assert "time/prm" not in row
        assert row["advantage/process_std"] == 0
        assert row["advantage/std"] == pytest.approx(row["advantage/outcome_std"])
    # The file is PRIME's: what the baseline does not have is left out, and that is said.
    assert "note: algorithm=outcome has no prm: left out of" in capsys.readouterr().err


def test_train__prime_and_outcome_only_begin_alike(prime: Path, train: Callable[..., Path]):
    """The first step samples the same responses; the PRM gives nothing yet, so the update is the same too."""
    ours, theirs = metrics(prime)[1], metrics(train(*WAYS["rloo outcome"]))[1]
    for name in ROLLOUT - {"rollout/tokens_per_second"} | {
        "policy/loss",
        "policy/grad_norm",
        "advantage/std",
    }:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-6), name


# The same seed and another one


def test_train__the_same_seed_gives_the_same_run_and_another_seed_does_not(
    model: Path, tmp_path: Path, prime: Path
):
    flags = ("--steps", "4", "--save-every", "2", "--sample-every", "2", "--eval.every", "3")
    again = rl(model, tmp_path / "again", *flags)
    assert list(map(repr, metrics(again))) == list(map(repr, metrics(prime)))
    assert (again / "samples.jsonl").read_text() == (prime / "samples.jsonl").read_text()
    for name in ("model", "prm"):
        assert weights(again / name) == weights(prime / name)
    other = rl(model, tmp_path / "other", *flags, "--seed", "1")
    assert metrics(other)[1] != metrics(prime)[1]
    assert weights(other / "model") != weights(prime / "model")


# Every way to train


@pytest.fixture(scope="module")
def trained_prm(prime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PRM that differs from the SFT model."""
    folder = tmp_path_factory.mktemp("trained") / "prm"
    shutil.copytree(prime / "prm", folder)
    return folder


WAYS = {
    "rloo outcome": ("--algorithm", "outcome"),
    "grpo": ("--advantage.estimator", "grpo"),
    "grpo outcome": ("--advantage.estimator", "grpo", "--algorithm", "outcome"),
    "reinforce": ("--advantage.estimator", "reinforce"),
    "reinforce outcome": ("--advantage.estimator", "reinforce", "--algorithm", "outcome"),
    "process alone": ("--advantage.outcome-weight", "0"),
    "update before": ("--prm.update", "before"),
    "reference policy": ("--prm.reference", "policy"),
    "dpo": ("--prm.loss", "dpo"),
    "dpo in minibatches": ("--prm.loss", "dpo", "--prm.minibatch", "4"),
    "ce in minibatches": ("--prm.minibatch", "4"),
    "step rewards": ("--advantage.granularity", "step"),
    "response rewards": ("--advantage.granularity", "response"),
    "released": ("--advantage.preset", "released"),
    "truncated dropped": ("--rollout.truncated", "drop", "--rollout.max-response-tokens", "14"),
    "bfloat16": ("--dtype", "bfloat16"),
    "no evaluation": ("--eval-data.source=", "--eval.every", "0"),
    "sampled evaluation": ("--eval.samples", "2", "--eval.every", "1"),
    "by sequence": ("--policy.reduction", "sequence"),
    "two epochs, clip higher": ("--policy.epochs", "2", "--policy.clip-high", "0.28"),
    "discounts": ("--advantage.process-gamma", "0.9", "--advantage.outcome-gamma", "0.99"),
    "gradient checkpointing": ("--policy.gradient-checkpointing", "--prm.gradient-checkpointing"),
    "filter open": OPEN,
    "filter open, dpo": (*OPEN, "--prm.loss", "dpo"),
    "filter open, grpo, whitened": (*OPEN, "--advantage.estimator", "grpo", "--advantage.whiten", "True"),
}


@pytest.mark.parametrize("way", WAYS)
def test_train__every_way_to_train_runs_and_leaves_models(model: Path, train: Callable[..., Path], way: str):
    run = train(*WAYS[way])
    rows = records(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    has_prm = "outcome" not in way
    assert (run / "prm").exists() == has_prm
    for row in rows[1:]:
        assert set(row) >= POLICY | ROLLOUT
        assert all(math.isfinite(value) for value in row.values())
        assert ("prm/lr" in row) == has_prm
    assert weights(run / "model") != weights(model)
    for name in ("model", "prm") if has_prm else ("model",):
        loaded = AutoModelForCausalLM.from_pretrained(run / name)
        assert all(p.isfinite().all() for p in loaded.parameters())
    if has_prm:
        assert weights(run / "prm") != weights(model)
    if way == "no evaluation":
        assert not any(name.startswith("eval/") for row in rows for name in row)
    if way == "sampled evaluation":
        assert all({"eval/greedy", "eval/avg@2"} <= set(row) for row in rows)
    if way == "released":  # whitened: every token's advantage has variance 1
        assert rows[2]["advantage/std"] == pytest.approx(1, abs=0.02)
    if way == "truncated dropped":
        assert rows[2]["rollout/response_tokens"] < 14


def test_train__the_skill_gate_keeps_a_prm_out_that_ranks_at_chance(train: Callable[..., Path]):
    flags = ("--steps", "4", "--policy.lr", "1e-4")
    outcome = metrics(train("--algorithm", "outcome", *flags))[1:]
    flags += ("--prm.lr", "1e-2")
    gated = metrics(train("--advantage.skill-gate", *flags))[1:]
    # At first the PRM is its reference: a step of outcomes alone.
    assert gated[0]["prm/pairwise_accuracy"] == 0.5
    assert gated[0]["policy/grad_norm"] == outcome[0]["policy/grad_norm"]
    skill = 0.5
    for row in gated:
        skill += 0.2 * (row["prm/pairwise_accuracy"] - skill)
        assert row["prm/skill"] == pytest.approx(skill)
        assert (row["advantage/process_std"] > 0) == (skill > 0.5)
    assert max(row["prm/skill"] for row in gated) > 0.5
    ungated = metrics(train(*flags))[1:]
    assert ungated[0]["prm/skill"] == 0.5
    assert gated[-1]["policy/grad_norm"] != ungated[-1]["policy/grad_norm"]


def test_train__ways_that_should_differ_do(train: Callable[..., Path]):
    """Settings reach the mathematics: at the second step no two of these train alike."""
    ways = (
        *("grpo", "grpo outcome", "rloo outcome", "reinforce", "reinforce outcome", "process alone"),
        *("update before", "dpo", "ce in minibatches", "step rewards", "response rewards", "released"),
        *("by sequence", "two epochs, clip higher", "discounts", "bfloat16"),
    )
    seen = {way: metrics(train(*WAYS[way]))[2]["policy/grad_norm"] for way in ways}
    seen["prime"] = metrics(train())[2]["policy/grad_norm"]
    assert len(set(seen.values())) == len(seen), seen


def test_train__a_frozen_prm_scores_and_stays_as_it_is(train: Callable[..., Path], trained_prm: Path):
    run = train("--prm.update", "never", "--prm.model", str(trained_prm))
    for row in records(run / "metrics.jsonl")[1:]:
        assert row["advantage/process_std"] > 0
        assert "prm/loss" not in row or math.isnan(row["prm/loss"])
    assert weights(run / "prm") == weights(trained_prm)


def test_train__a_frozen_prm_is_saved_with_the_reference_that_it_was_scored_against(
    model: Path, train: Callable[..., Path], trained_prm: Path
):
    """Its own weights as its reference would make every reward 0 in `openprime evaluate`."""
    run = train("--prm.update", "never", "--prm.model", str(trained_prm))
    assert read_settings(str(run / "prm")) == (0.3, str(model), "sum")


def test_train__a_prm_that_trains_on_keeps_its_reference(
    model: Path, train: Callable[..., Path], trained_prm: Path
):
    """With its own weights as reference all that it knows would count for nothing: every first reward would be 0."""
    run = train("--prm.model", str(trained_prm))
    first = records(run / "metrics.jsonl")[1]
    assert first["prm/score_right"] != 0
    assert first["advantage/process_std"] > 0
    assert read_settings(str(run / "prm")).reference == str(model)
    assert weights(run / "prm") != weights(trained_prm)


def test_train__another_model_as_prm_starts_at_itself(
    train: Callable[..., Path], trained_prm: Path, tmp_path: Path
):
    plain = tmp_path / "plain"
    shutil.copytree(trained_prm, plain)
    (plain / "implicit_prm.json").unlink()
    run = train("--prm.model", str(plain))
    assert records(run / "metrics.jsonl")[1]["prm/score_right"] == 0
    assert read_settings(str(run / "prm")).reference == str(plain)


def test_train__a_policy_reference_is_saved_as_none(train: Callable[..., Path]):
    run = train("--prm.reference", "policy")
    assert read_settings(str(run / "prm")) == (0.3, "", "sum")


def test_train__a_prm_of_another_vocabulary_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    settings = json.loads((other / "tokenizer.json").read_text())
    settings["added_tokens"].append(
        settings["added_tokens"][-1] | {"id": len(settings["model"]["vocab"]) + 5, "content": "<|more|>"}
    )
    (other / "tokenizer.json").write_text(json.dumps(settings))
    assert main(rl_args(model, tmp_path / "run", "--prm.model", str(other))) == 2
    assert f"the vocabulary of {other}" in capsys.readouterr().err


def test_train__before_means_that_scores_come_after_the_update(train: Callable[..., Path]):
    """At the first step the PRM is its reference: only an update before scoring gives a process reward."""
    after, before = (metrics(train(*flags))[1] for flags in ((), WAYS["update before"]))
    assert after["advantage/process_std"] == 0
    assert before["advantage/process_std"] > 0
    for name in ("prm/pairwise_accuracy", "prm/brier", "prm/loss", "prm/grad_norm", "prm/score_right"):
        assert before[name] == pytest.approx(after[name], rel=1e-5, abs=1e-7)  # measured before any update


def test_train__the_policy_reference_is_the_sampler(train: Callable[..., Path]):
    """At the first step policy, PRM and frozen reference are one model, so the two references agree."""
    frozen, policy = (metrics(train(*flags))[1] for flags in ((), WAYS["reference policy"]))
    assert policy["prm/loss"] == pytest.approx(frozen["prm/loss"], rel=1e-5)
    assert policy["policy/loss"] == pytest.approx(frozen["policy/loss"], rel=1e-3, abs=1e-4)


def test_train__schedules_are_counted_in_optimiser_steps(train: Callable[..., Path]):
    """Two policy updates a step and one of the PRM: the logged rate is that of the step's last update."""
    run = train("--policy.warmup", "3", "--prm.schedule", "cosine", "--steps", "2")
    rows = records(run / "metrics.jsonl")[1:]
    assert [row["policy/lr"] for row in rows] == pytest.approx([1e-3 * 2 / 3, 1e-3])
    assert [row["prm/lr"] for row in rows] == pytest.approx([1e-3, 0.5e-3])
    run = train("--policy.schedule", "cosine", "--prm.warmup", "1", "--prm.minibatch", "4", "--steps", "2")
    rows = records(run / "metrics.jsonl")[1:]
    expected = [0.5 * (1 + math.cos(math.pi * update / 4)) * 1e-3 for update in (1, 3)]
    assert [row["policy/lr"] for row in rows] == pytest.approx(expected)


def test_train__time_of_a_step_is_the_sum_of_its_phases(prime: Path):
    for row in records(prime / "metrics.jsonl")[1:]:
        phases = [
            v for k, v in row.items() if k.startswith("time/") and k not in ("time/step", "time/evaluate")
        ]
        assert row["time/step"] == pytest.approx(sum(phases))
        assert row["rollout/tokens_per_second"] == pytest.approx(row["rollout/tokens"] / row["time/rollout"])


def test_train__evaluation_time_is_recorded_with_the_evaluation(prime: Path):
    for row in records(prime / "metrics.jsonl"):
        assert ("time/evaluate" in row) == ("eval/greedy" in row), row["step"]


def test_train__says_first_how_much_there_is_to_do(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert main(rl_args(model, tmp_path / "run")) == 0
    trained = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(model).parameters())
    said = capsys.readouterr().out
    start = f"{trained:,} trained parameters, 100 prompts, 6 held out, 2 steps"
    assert said.index(start) < said.index("step 0: held-out accuracy")


def test_train__a_run_leaves_the_process_as_it_was(train: Callable[..., Path]):
    train()
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


@pytest.mark.parametrize(
    ("rank", "engine", "expected"), [(1, "server", 2), (0, "server", 16), (1, "auto", 2)]
)
def test_train__counts_its_verifiers_once_the_ranks_have_met(
    monkeypatch: pytest.MonkeyPatch, rank: int, engine: str, expected: int
):
    """Before, every rank takes itself for the first one, which with servers verifies for all."""
    counted = []

    @contextmanager
    def joined(config: RLConfig) -> Iterator[None]:
        become(monkeypatch, rank, 8)
        yield

    def build(config: RLConfig, pool: Pool) -> None:
        counted.append(pool.workers)
        raise UserError("that is all")

    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(loop, "joined", joined)
    monkeypatch.setattr(loop, "build", build)
    with pytest.raises(UserError, match="that is all"):
        loop.train(PrimeConfig.model_validate({"engine": {"kind": engine}}))
    assert counted == [expected]
