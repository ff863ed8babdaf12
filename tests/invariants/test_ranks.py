"""Several ranks do what one process does, go on where any number of them stopped, and end when one is lost."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openprime.cli import main
from support.rank_runs import (
    FLAGS,
    assert_equal_to_rounding,
    assert_equal_weights,
    back_to,
    ended,
    finish,
    on_ranks,
    process_of,
    start,
    start_by_hand,
    steps_saved,
)
from support.tiny_runs import SFT, metrics, records, rl, rl_args

DISTILL = ("--algorithm", "distill", "--prm.minibatch", "8", "--filter.low", "0", "--filter.high", "1")
KINDS = {
    "prime": (),
    "pairs": (
        *("--prm.loss", "dpo", "--prm.minibatch", "8", "--policy.reduction", "sequence"),
        *("--advantage.whiten", "True", "--advantage.scaling", "return", "--rollout.prompts", "3"),
        *("--policy.tokens-per-microbatch", "60", "--policy.gradient-checkpointing"),
    ),
    "prefix": (
        *("--prm.loss", "prefix", "--prm.beta", "auto", "--prm.balance", "--advantage.scaling", "return"),
        *("--prm.tokens-per-microbatch", "60"),
    ),
    "outcome": ("--algorithm", "outcome", "--policy.epochs", "2", "--policy.minibatch", "5"),
    "lora": (
        *("--policy.lora.rank", "4", "--prm.lora.rank", "4", "--policy.lr", "1e-3", "--prm.lr", "1e-2"),
        *("--policy.gradient-checkpointing", "--prm.gradient-checkpointing"),
    ),
    "distill": (*DISTILL, "--prm.lr", "1e-3", "--distill.candidates", "8"),
    "distill, replay": (*DISTILL, "--prm.lr", "5e-4", "--distill.replay", "1"),
    "distill, half a PRM": (*DISTILL, "--prm.lr", "1e-3", "--distill.prm-depth", "0.5"),
    "distill, lora": (
        *(*DISTILL, "--policy.lora.rank", "4", "--policy.lr", "1e-3", "--prm.lr", "5e-3"),
        *("--policy.tokens-per-microbatch", "60", "--prm.tokens-per-microbatch", "60"),
    ),
}
WITHOUT_ADVANTAGES = ("distill", "distill, replay", "distill, half a PRM", "distill, lora")
"""They are not kept of these."""
SCRIPT = """
import os, sys
import torch
from openprime.cli import main
from openprime.prime import methods

real, calls = methods.with_advantages, []

def kept(*args):
    batch, spread = real(*args)
    calls.append((batch.token_ids, batch.advantages))
    torch.save(calls, os.path.join(os.environ["KEPT"], "rank-" + os.environ.get("RANK", "0")))
    return batch, spread

methods.with_advantages = kept
sys.exit(main(sys.argv[1:]))
"""
"""The command, which leaves the advantages of every step in a folder, as every rank had them."""


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Path]:
    """(ranks, kind) -> the folder of a run, made once; its advantages are in `kept`."""
    done: dict[tuple[int, str], Path] = {}
    script = tmp_path_factory.mktemp("script") / "kept.py"
    script.write_text(SCRIPT)

    def made(ranks: int, kind: str = "prime") -> Path:
        if (ranks, kind) not in done:
            out = tmp_path_factory.mktemp("ranks") / "run"
            kept = out.parent / "kept"
            kept.mkdir()
            args = rl_args(model, out, *FLAGS, *KINDS[kind])
            said = on_ranks(ranks, args, program=(str(script),), KEPT=str(kept))
            assert said.count("rl 3/3") == said.count("done: ") == 1, said
            done[ranks, kind] = out
        return done[ranks, kind]

    return made


def moved(folder: Path, start: Path) -> float:
    """How far a run's policy is from where it began."""
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder / "model", start))
    return max(float((ours[key] - theirs[key]).abs().max()) for key in theirs)


def assert_equal_advantages(got: Path, expected: Path, ranks: int) -> None:
    """Every rank had the same batches and advantages, those of one process within 1e-5."""
    theirs = torch.load(expected.parent / "kept" / "rank-0")
    assert len(theirs) == 3
    for rank in range(ranks):
        ours = torch.load(got.parent / "kept" / f"rank-{rank}")
        for (tokens, advantages), (other, wanted) in zip(ours, theirs, strict=True):
            assert torch.equal(tokens, other)
            torch.testing.assert_close(advantages, wanted, rtol=1e-5, atol=1e-5)
            assert len(set((wanted != 0).sum(-1).tolist())) > 2  # ragged


# As one process does


def test_ranks__two_ranks_do_what_one_process_does_and_one_goes_on_from_them(
    model: Path, tmp_path: Path, run: Callable
):
    one, two = run(1), run(2)
    assert_equal_to_rounding(two, one)
    assert_equal_advantages(two, one, 2)
    assert moved(one, model) > 2e-4
    resumed = back_to(1, two, tmp_path / "run")
    rl(model, resumed, *FLAGS, "--resume")
    assert_equal_to_rounding(resumed, one)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_trap_02__any_number_of_ranks_does_what_one_process_does(
    model: Path, run: Callable, ranks: int, kind: str
):
    assert moved(run(1, kind), model) > 1e-4
    assert_equal_to_rounding(run(ranks, kind), run(1, kind))
    if kind not in WITHOUT_ADVANTAGES:
        assert_equal_advantages(run(ranks, kind), run(1, kind), ranks)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["prime", "pairs", "lora", "distill"])
def test_ranks__two_copies_in_two_shares_each_do_what_one_process_does(
    model: Path, tmp_path: Path, run: Callable, kind: str
):
    """Hybrid sharding; checkpoints are those of any other number of ranks."""
    one, copies = run(1, kind), ("--parallel.replicas", "2")
    args = rl_args(model, tmp_path / "run", *FLAGS, *KINDS[kind])
    on_ranks(4, [*args, *copies])
    assert_equal_to_rounding(tmp_path / "run", one)
    background = ("--parallel.save-in-background",)
    for name, ranks, flags in (
        ("one", 1, ()),
        ("flat", 4, background),
        ("copies", 4, (*copies, *background)),
    ):
        resumed = back_to(1, tmp_path / "run", tmp_path / name)
        on_ranks(ranks, [*rl_args(model, resumed, *FLAGS, *KINDS[kind]), *flags, "--resume"])
        assert_equal_to_rounding(resumed, one)
    resumed = back_to(2, tmp_path / "flat", tmp_path / "again")
    on_ranks(4, [*rl_args(model, resumed, *FLAGS, *KINDS[kind]), *copies, "--resume"])
    assert_equal_to_rounding(resumed, one)


@pytest.mark.slow
def test_ranks__bfloat16_on_two_ranks_is_near(model: Path, tmp_path: Path):
    """The weights of blocks are rounded before the matrix products instead of in them."""
    flags = (*FLAGS, "--dtype", "bfloat16", "--steps", "1", "--filter.low", "0", "--filter.high", "1")
    one = rl(model, tmp_path / "one", *flags)
    on_ranks(2, rl_args(model, tmp_path / "two", *flags))
    for row, other in zip(metrics(tmp_path / "two"), metrics(one), strict=True):
        assert row["rollout/rollouts"] == other["rollout/rollouts"]
    row, other = metrics(tmp_path / "two")[1], metrics(one)[1]
    assert row["policy/mismatch_mean"] < 0.02
    assert row["policy/grad_norm"] == pytest.approx(other["policy/grad_norm"], rel=0.3)
    assert row["prm/loss"] == pytest.approx(other["prm/loss"], abs=0.01)


@pytest.mark.slow
def test_ranks__fine_tuning_on_two_ranks_is_that_of_one_process(tmp_path: Path):
    flags = ("--epochs", "0.1", "--optimizer.lr", "1e-3", "--save-every", "2", "--eval.every", "2")
    for ranks, name in ((1, "one"), (2, "two")):
        on_ranks(ranks, [*SFT, *flags, "--out", str(tmp_path / name)])
    assert metrics(tmp_path / "two") == [
        pytest.approx(row, rel=1e-5, abs=1e-5) for row in metrics(tmp_path / "one")
    ]
    assert_equal_weights(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_ranks__an_offline_prm_on_two_ranks_is_that_of_one_process(model: Path, tmp_path: Path):
    rows = [
        {"prompt": f"Start {w}\n+one = ?", "response": f"step\n{w * i}", "outcome": float(i % 2)}
        for w in ("two", "three", "four", "five")
        for i in range(1, 5)
    ]
    data = tmp_path / "judged.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--model", str(model), "--data.source", str(data), "--held-out", "0.25", "--batch", "4")
    for ranks, name in ((1, "one"), (2, "two")):
        more = ("--epochs", "2", "--loss", "dpo", "--out", str(tmp_path / name), "--optimizer.lr", "1e-4")
        on_ranks(ranks, ["prm", *flags, *more])
    ours, theirs = metrics(tmp_path / "two"), metrics(tmp_path / "one")
    assert len(theirs) > 3
    for row, other in zip(ours[1:], theirs[1:], strict=True):
        assert row["prm/loss"] == pytest.approx(other["prm/loss"], rel=1e-5)
    assert_equal_weights(tmp_path / "two", tmp_path / "one")


# Stopped and resumed


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_trap_10__a_checkpoint_of_two_ranks_goes_on_at_any_number(
    model: Path, tmp_path: Path, run: Callable, ranks: int
):
    resumed = back_to(1, run(2), tmp_path / "run")
    said = on_ranks(ranks, rl_args(model, resumed, *FLAGS, "--resume"))
    assert said.count("resumed at step 1") == 1
    assert_equal_to_rounding(resumed, run(1))
    if ranks == 2:  # then bit for bit
        for name in ("model", "prm"):
            ours, theirs = ((path / name / "model.safetensors").read_bytes() for path in (resumed, run(2)))
            assert ours == theirs
        assert metrics(resumed) == metrics(run(2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["lora", "distill", "distill, replay", "distill, half a PRM", "distill, lora"]
)
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 2)])
def test_ranks__adapters_and_distillation_go_on_at_another_number_of_ranks(
    model: Path, tmp_path: Path, run: Callable, before: int, after: int, kind: str
):
    """Also after the last step, where the models that are exported come from the checkpoint."""
    for step in (1, 3):
        resumed = back_to(step, run(before, kind), tmp_path / f"run-{step}")
        on_ranks(after, rl_args(model, resumed, *FLAGS, *KINDS[kind], "--resume"))
        assert_equal_to_rounding(resumed, run(1, kind))


@pytest.mark.slow
def test_ranks__checkpoints_in_the_background_are_the_same(model: Path, tmp_path: Path, run: Callable):
    """Each is written while the next step trains; what is resumed from it ends bit for bit as without."""
    args = rl_args(model, tmp_path / "run", *FLAGS, "--parallel.save-in-background")
    on_ranks(2, args)
    assert metrics(tmp_path / "run") == metrics(run(2))
    resumed = back_to(1, tmp_path / "run", tmp_path / "resumed")
    on_ranks(2, rl_args(model, resumed, *FLAGS, "--resume"))
    for name in ("model", "prm"):
        ours, theirs = ((path / name / "model.safetensors").read_bytes() for path in (resumed, run(2)))
        assert ours == theirs


@pytest.mark.slow
def test_ranks__a_checkpoint_of_one_process_goes_on_at_two_ranks(model: Path, tmp_path: Path, run: Callable):
    resumed = back_to(2, run(1), tmp_path / "run")
    on_ranks(2, rl_args(model, resumed, *FLAGS, "--resume"))
    assert_equal_to_rounding(resumed, run(1))


# Lost, stopped and refused


def begun(model: Path, out: Path, *how: str) -> subprocess.Popen:
    """Two ranks that have saved step 2 of many."""
    process = start(2, rl_args(model, out, *FLAGS, "--steps", "40", "--save-every", "2"), *how)
    while not (out / "checkpoints" / "step-000002").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_ranks__a_rank_that_dies_or_hangs_ends_the_run_with_a_checkpoint(
    model: Path, tmp_path: Path, number: signal.Signals
):
    out = tmp_path / "run"
    process = begun(model, out)
    os.kill(process_of(1, process), number)
    said = finish(process)
    assert process.returncode != 0
    told = "lost another rank" if number == signal.SIGKILL else "nothing was heard of rank 1"
    assert f"{told}" in said
    assert f"The last checkpoint in {out / 'checkpoints'} is whole: go on with --resume" in said
    last = int(steps_saved(out)[-1].removeprefix("step-"))
    assert not (out / "model").exists()
    rl(model, out, *FLAGS, "--steps", str(last + 1), "--save-every", "2", "--resume")
    assert metrics(out)[-1]["step"] == last + 1


@pytest.mark.slow
def test_ranks__torchrun_starts_lost_ranks_again_and_they_resume(model: Path, tmp_path: Path, run: Callable):
    out = tmp_path / "run"
    args = rl_args(model, out, *FLAGS, "--steps", "8", "--save-every", "2")
    process = start(2, args, "--max-restarts", "2")
    while not (out / "checkpoints" / "step-000002").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    os.kill(process_of(0, process), signal.SIGKILL)
    said = finish(process)
    assert process.returncode == 0, said
    assert said.count("resumed at step") == 1
    assert [row["step"] for row in records(out / "metrics.jsonl")] == list(range(9))
    ours, theirs = metrics(out)[1:3], metrics(run(2))[1:3]
    assert ours == theirs


@pytest.mark.slow
def test_ranks__a_signal_to_one_rank_stops_all_at_the_same_step(model: Path, tmp_path: Path):
    out = tmp_path / "run"
    process = begun(model, out)
    os.kill(process_of(1, process), signal.SIGTERM)
    said = finish(process)
    assert process.returncode != 0
    for rank in (0, 1):
        assert f"rank {rank}: stopped by SIGTERM: saved" in said
    last = int(steps_saved(out)[-1].removeprefix("step-"))
    assert metrics(out)[-1]["step"] == last


@pytest.mark.slow
def test_ranks__usr1_to_one_rank_has_all_save_and_go_on(model: Path, tmp_path: Path):
    """Also where it goes to torchrun too, which ignores it, as docs/scaling.md says."""
    out = tmp_path / "run"
    args = rl_args(model, out, *FLAGS, "--steps", "6", "--save-every", "0")
    process = start(2, args, before=("bash", "-c", "trap '' USR1; exec \"$@\"", "-"))
    while not (out / "metrics.jsonl").exists() or len(records(out / "metrics.jsonl")) < 3:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGUSR1)
    os.kill(process_of(1, process), signal.SIGUSR1)
    said = finish(process)
    assert process.returncode == 0, said
    first, last = steps_saved(out)
    assert f"saved after step {int(first.removeprefix('step-'))}, as SIGUSR1 asked" in said
    assert last == "step-000006"
    assert metrics(out)[-1]["step"] == 6


@pytest.mark.slow
def test_ranks__ranks_with_different_settings_are_refused(model: Path, tmp_path: Path):
    places = [(tmp_path, ()), (tmp_path, ("--prm.beta", "0.25", "--seed", "3"))]
    for rank, (status, said) in enumerate(ended(start_by_hand(model, *places))):
        assert status == 2
        assert f"rank {rank}: " in said
        assert "rank 1 differs from rank 0: seed: 0 -> 3; prm.beta: 0.3 -> 0.25: start every rank" in said
        assert "Traceback" not in said
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.slow
def test_ranks__a_folder_that_is_not_shared_is_refused(model: Path, tmp_path: Path):
    places = [tmp_path / "machine0", tmp_path / "machine1"]
    for place in places:
        place.mkdir()
    for status, said in ended(start_by_hand(model, *((place, ()) for place in places))):
        assert status == 2
        assert (
            "rank 1 does not see what rank 0 wrote into run: `out` must be on a file system that all" in said
        )
    assert not any(path.is_file() for place in places for path in place.rglob("*"))


def test_ranks__other_commands_are_for_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["evaluate", "x"]) == 2
    assert (
        "rank 1: evaluate is a command for one process: torchrun is for sft, rl, prm"
        in capsys.readouterr().err
    )
