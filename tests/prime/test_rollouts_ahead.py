"""The collector that works ahead, with a collector that only notes what it is asked."""

import threading
import time

import pytest

from openprime.prime.rollouts import Ahead, CannotFillError
from openprime.types import Group, Prompt

NOBODY = Prompt("p", (1,), "", None)


class Noted:
    """In the place of a Collector: groups of the weights that are there, and a state that counts."""

    def __init__(self) -> None:
        self.version = 0
        self.begun: list[int] = []
        self.metrics: dict[str, float] = {}
        self.count = 0
        self.gate = threading.Semaphore(0)
        self.fails_at = 0

    def collect(self, step: int, check) -> list[Group]:
        self.begun.append(step)
        while not self.gate.acquire(timeout=0.01):
            check()
        if step == self.fails_at:
            raise CannotFillError("too hard")
        self.count += 1
        self.metrics = {"step": step}
        return [Group(NOBODY, (), self.version)]

    def state(self) -> dict:
        return {"count": self.count}

    def restore(self, state: dict) -> None:
        self.count = state["count"]


def nothing() -> None:
    pass


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_it_is_so_many_steps_ahead_and_no_more(steps: int):
    noted = Noted()
    ahead = Ahead(noted, steps, last=6)  # pyright: ignore[reportArgumentType]
    for _ in range(20):
        noted.gate.release()  # as fast as it can
    for step in range(1, 7):
        (group,) = ahead.collect(step, nothing)
        assert ahead.metrics["step"] == step
        assert ahead.metrics["rollout/staleness"] == step - 1 - group.policy_version
        assert 0 <= ahead.metrics["rollout/staleness"] <= steps
        assert ahead.state() == {"count": step}  # what is collected ahead is not saved
        expected = list(range(1, min(step + steps, 6) + 1))
        while noted.begun != expected:  # the others are begun while we train
            assert len(noted.begun) < len(expected)
            time.sleep(0.001)
        noted.version = step
    ahead.close()


def test_the_next_step_is_collected_while_the_trainer_works():
    noted = Noted()
    ahead = Ahead(noted, 1, last=3)  # pyright: ignore[reportArgumentType]
    noted.gate.release()
    ahead.collect(1, nothing)
    while noted.begun != [1, 2]:
        time.sleep(0.001)
    ahead.close()  # in the middle of it: does not wait for a gate that nobody opens
    assert noted.count == 1


def test_an_error_arrives_with_the_step_that_it_belongs_to():
    noted = Noted()
    noted.fails_at = 2
    ahead = Ahead(noted, 2, last=5)  # pyright: ignore[reportArgumentType]
    for _ in range(5):
        noted.gate.release()
    assert ahead.collect(1, nothing)
    with pytest.raises(CannotFillError):
        ahead.collect(2, nothing)
    assert ahead.state() == {"count": 1}
    ahead.close()


def test_an_interrupt_is_heard_while_it_waits_and_it_resumes_where_it_was():
    noted = Noted()
    ahead = Ahead(noted, 1, last=5)  # pyright: ignore[reportArgumentType]

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ahead.collect(1, stop)
    ahead.close()
    again = Ahead(noted, 1, last=5)  # pyright: ignore[reportArgumentType]
    again.restore({"count": 3})
    assert noted.count == 3
    assert again.state() == {"count": 3}
    for _ in range(5):
        noted.gate.release()
    again.collect(4, nothing)
    assert noted.begun[1] == 4
    again.close()
