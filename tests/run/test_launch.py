"""How ranks meet over a store, and what they refuse; whole runs on ranks are in invariants/test_ranks.py."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from openprime.config import PrimeConfig, VerifyConfig
from openprime.run import launch
from openprime.run.launch import joined, meet, same_everywhere, workers
from openprime.types import UserError
from support.ranks import become


def start(size: int, store: TCPStore) -> list[str]:
    """The names that `size` ranks agree on, each with a connection of its own."""
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: meet(store.clone(), rank, size), reversed(range(size))))


def test_meet__ranks_agree_on_a_new_name_whatever_earlier_ones_left():
    store = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=30))
    names = [start(3, store) for _ in range(4)]
    for agreed in names:
        assert len(set(agreed)) == 1
        assert agreed[0]
    assert len({agreed[0] for agreed in names}) == 4


def test_meet__ranks_agree_after_a_start_in_which_some_died():
    """A rank that said hello and died, then a start of all."""
    store = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=1))
    with pytest.raises(RuntimeError):
        meet(store.clone(), 1, 2)  # nobody answers
    store.set_timeout(timedelta(seconds=30))
    agreed = start(2, store)
    assert len(set(agreed)) == 1
    assert agreed[0]


def test_same_everywhere__names_what_differs(monkeypatch: pytest.MonkeyPatch):
    others = [{"seed": 1, "steps": 4}, {"seed": 1, "steps": 4}, {"seed": 2, "steps": 4}]
    monkeypatch.setattr(launch, "gather", lambda value: others)
    with pytest.raises(UserError, match=r"^rank 2 differs from rank 0: seed: 1 -> 2: do as I say$"):
        same_everywhere(others[1], "do as I say")
    monkeypatch.setattr(launch, "gather", lambda value: others[:2])
    same_everywhere(others[0], "do as I say")


def test_workers__are_shared_among_the_ranks_of_a_machine(monkeypatch: pytest.MonkeyPatch):
    assert workers(VerifyConfig(workers=3)) == 0  # as configured
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert workers(VerifyConfig()) == 2
    assert workers(VerifyConfig(workers=24)) == 3
    assert workers(VerifyConfig(workers=1)) == 1
    become(monkeypatch, 0, 8)
    assert workers(VerifyConfig(), all_on_first=True) == 0  # as configured
    become(monkeypatch, 1, 8)
    assert workers(VerifyConfig(), all_on_first=True) == 2  # to read the data


@pytest.mark.parametrize("setting", ["cpu_offload", "save_in_background"])
def test_joined__settings_of_several_ranks_are_refused_in_one_process(tmp_path: Path, setting: str):
    config = PrimeConfig.model_validate({"out": str(tmp_path), "parallel": {setting: True}})
    with pytest.raises(UserError, match=rf"parallel\.{setting} has .*: start with torchrun"), joined(config):
        pass
