"""Any number of ranks with any number of servers do what one process does, also ahead of the trainer."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from openprime.cli import main
from support.rank_runs import (
    FLAGS,
    NOISE,
    assert_equal_to_rounding,
    back_to,
    ended,
    on_ranks,
    start_by_hand,
    steps_saved,
)
from support.sampling_server import SamplingServer, seeds_of_requests
from support.tiny_runs import metrics, records, rl, rl_args

AHEAD = ("--rollout.max-staleness", "2")
STILL = (*FLAGS, "--policy.lr", "0", "--policy.importance-clip", "2")
"""The policy stays what it is, so that what is sampled ahead is what would be sampled later; the PRM learns."""
Servers = Callable[..., SamplingServer]


@pytest.fixture
def servers(model: Path) -> Iterator[Servers]:
    """Starts servers, and stops them."""
    started: list[SamplingServer] = []

    def start(**options) -> SamplingServer:
        started.append(SamplingServer(model=str(model), max_model_len=4096, **options))
        return started[-1]

    yield start
    for server in started:
        if not server.released.is_set():
            server.stop()


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A run of one process that samples by itself, made once."""
    done: dict[tuple[str, ...], Path] = {}

    def made(*flags: str) -> Path:
        if flags not in done:
            with seeds_of_requests():
                done[flags] = rl(model, tmp_path_factory.mktemp("alone") / "run", *flags)
        return done[flags]

    return made


def urls(*servers: SamplingServer) -> tuple[str, ...]:
    """The flags that name them."""
    return ("--engine.kind", "server", "--engine.urls", *(server.url for server in servers))


def completions(run: Path) -> int:
    """Prompts that were sampled in a run, the six of each evaluation included."""
    rows = metrics(run)
    return rows[-1]["rollout/rollouts"] // 4 + 6 * sum("eval/greedy" in row for row in rows)


def assert_equal_but_for_staleness(got: Path, expected: Path) -> None:
    """The metrics of one process within 1e-5; returns how old the weights were."""
    ours, theirs = metrics(got), metrics(expected)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == [0, 1, 2, 3]
    for row, other in zip(ours, theirs, strict=True):
        assert set(row) - set(other) <= {"rollout/staleness"}
        assert 0 <= row.get("rollout/staleness", 0) <= 2
        for name, value in other.items():
            if name not in NOISE and (row["step"], name) != (1, "prm/pairwise_accuracy"):
                assert row[name] == pytest.approx(value, rel=1e-5, abs=1e-5), (row["step"], name)
    assert max(row.get("rollout/staleness", 0) for row in ours) > 0


def test_servers__one_process_with_three_does_what_it_does_without(
    model: Path, tmp_path: Path, servers: Servers, alone: Callable
):
    three = [servers() for _ in range(3)]
    rl(model, tmp_path / "run", *FLAGS, *urls(*three))
    assert_equal_to_rounding(tmp_path / "run", alone(*FLAGS))
    assert all(server.asked for server in three)
    assert sum(len(server.asked) for server in three) == completions(tmp_path / "run")


def test_servers__four_ranks_with_one_do_what_one_process_does_without(
    model: Path, tmp_path: Path, servers: Servers, alone: Callable
):
    server = servers()
    on_ranks(4, rl_args(model, tmp_path / "run", *FLAGS, *urls(server)))
    assert_equal_to_rounding(tmp_path / "run", alone(*FLAGS))
    assert len(server.asked) == completions(tmp_path / "run")  # by one rank
    assert [Path(path).name.rpartition("-")[2] for path in server.taken[1:]] == ["1", "2", "3"]


def test_servers__two_ranks_sample_ahead_lose_a_server_and_one_goes_on_from_them(
    model: Path, tmp_path: Path, servers: Servers, alone: Callable
):
    """What was sampled ahead is neither lost nor trained on twice."""
    dying, other = servers(dies_after=12), servers()
    said = on_ranks(2, rl_args(model, tmp_path / "run", *STILL, *AHEAD, *urls(dying, other)))
    assert said.count(f"{dying.url}: ") == 1
    expected = alone(*STILL)
    assert_equal_but_for_staleness(tmp_path / "run", expected)
    for step, row in enumerate(metrics(expected)[1:], 1):
        kept = torch.load(tmp_path / "run" / "checkpoints" / f"step-{step:06d}" / "state.pt")["cursor"]
        assert kept["rollouts"] == row["rollout/rollouts"]
    resumed = back_to(1, tmp_path / "run", tmp_path / "resumed")
    assert main(rl_args(model, resumed, *STILL, *AHEAD, *urls(other), "--resume")) == 0
    assert_equal_but_for_staleness(resumed, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 2), (2, 4)])
def test_servers__runs_ahead_go_on_at_any_number_of_ranks(
    model: Path, tmp_path: Path, servers: Servers, alone: Callable, before: int, after: int
):
    server = servers()
    flags = (*STILL, *AHEAD, *urls(server))
    on_ranks(before, rl_args(model, tmp_path / "run", *flags))
    resumed = back_to(2, tmp_path / "run", tmp_path / "resumed")
    on_ranks(after, rl_args(model, resumed, *flags, "--resume"))
    assert_equal_but_for_staleness(resumed, alone(*STILL))


# Errors of the first rank


def test_servers__that_do_not_answer_end_all_ranks_alike(model: Path, tmp_path: Path, servers: Servers):
    gone = servers()
    gone.stop()
    for rank, (status, said) in enumerate(
        ended(start_by_hand(model, *[(tmp_path, (*FLAGS, *urls(gone)))] * 2))
    ):
        assert status == 2
        assert f"openprime: rank {rank}: engine.urls: no server answers: {gone.url}" in said
        assert "Traceback" not in said
    assert not (tmp_path / "run" / "config.yaml").exists()


FAULTS = {
    "servers that die": ((), 20, 1, "no vLLM server has answered for 20 seconds"),
    "data too hard": (
        ("--filter.low", "0.9", "--filter.high", "0.95", "--filter.max-draws", "2"),
        10**9,
        2,
        "8 prompts were drawn and 0 of the 4 groups wanted passed",
    ),
}
"""Flags, completions after which the server is gone, the status and what is said."""


@pytest.mark.parametrize(
    ("name", "ahead"),
    [
        ("servers that die", AHEAD),
        pytest.param("servers that die", (), marks=pytest.mark.slow),
        pytest.param("data too hard", AHEAD, marks=pytest.mark.slow),
        pytest.param("data too hard", (), marks=pytest.mark.slow),
    ],
)
def test_servers__an_error_of_the_first_rank_ends_all_alike_and_is_saved(
    model: Path, tmp_path: Path, servers: Servers, name: str, ahead: tuple[str, ...]
):
    flags, completions, expected, told = FAULTS[name]
    server = servers(dies_after=completions)
    flags = (*STILL, *flags, *ahead, *urls(server), "--engine.timeout", "20", "--steps", "9")
    for rank, (status, said) in enumerate(ended(start_by_hand(model, *[(tmp_path, flags)] * 2))):
        assert status == expected, said
        assert f"openprime: rank {rank}: {told}" in said
        assert "Traceback" not in said
        assert ("saved after step" in said) == (rank == 0)
    last = int(steps_saved(tmp_path / "run")[-1].removeprefix("step-"))
    assert records(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == last


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [AHEAD, ()], ids=["ahead", "beside"])
@pytest.mark.parametrize("rank", [0, 1])
def test_servers__a_signal_to_one_rank_stops_all(
    model: Path, tmp_path: Path, servers: Servers, rank: int, ahead: tuple[str, ...]
):
    server = servers(seconds=0.2)
    flags = (*STILL, *ahead, *urls(server), "--steps", "40")
    processes = start_by_hand(model, *[(tmp_path, flags)] * 2)
    while not (tmp_path / "run" / "checkpoints" / "step-000002").exists():
        assert processes[0].poll() is None, processes[0].communicate()[0]
        time.sleep(0.01)
    os.kill(processes[rank].pid, signal.SIGTERM)
    for number, (status, said) in enumerate(ended(processes)):
        assert status == 128 + signal.SIGTERM
        assert f"rank {number}: stopped by SIGTERM: saved" in said
    last = int(steps_saved(tmp_path / "run")[-1].removeprefix("step-"))
    assert metrics(tmp_path / "run")[-1]["step"] == last
