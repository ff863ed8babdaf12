"""Rollouts that are collected ahead of the trainer, with rollouts that only note what they are asked."""

import threading
import time

import pytest

from openprime.prime.rollouts import CannotFillError, RolloutsAhead
from openprime.types import Group, Prompt


class Noted:
    """In the place of Rollouts: groups of the weights that are there, one a permit, and a state that counts."""

    def __init__(self, permits: int, fails_at: int = 0) -> None:
        self.version, self.count, self.fails_at = 0, 0, fails_at
        self.begun: list[int] = []
        self.metrics: dict[str, float] = {}
        self.gate = threading.Semaphore(permits)

    def collect(self, step: int, check) -> list[Group]:
        self.begun.append(step)
        while not self.gate.acquire(timeout=0.01):
            check()
        if step == self.fails_at:
            raise CannotFillError("too hard")
        self.count += 1
        self.metrics = {"step": step}
        return [Group(Prompt("p", (1,), "", None), (), self.version)]

    def wait_for(self, begun: list[int]) -> None:
        """Until these steps have been begun, and no others."""
        while self.begun != begun:
            assert len(self.begun) < len(begun)
            time.sleep(0.001)

    def state(self) -> dict:
        return {"count": self.count}

    def restore(self, state: dict) -> None:
        self.count = state["count"]


def nothing() -> None:
    pass


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_rollouts_ahead__are_so_many_steps_ahead_and_no_more(steps: int):
    noted = Noted(permits=20)  # as fast as it can
    ahead = RolloutsAhead(noted, steps, last=6)
    for step in range(1, 7):
        (group,) = ahead.collect(step, nothing)
        assert ahead.metrics["step"] == step
        assert ahead.metrics["rollout/staleness"] == step - 1 - group.policy_version
        assert 0 <= ahead.metrics["rollout/staleness"] <= steps
        assert ahead.state() == {"count": step}  # what is collected ahead is not saved
        noted.wait_for(list(range(1, min(step + steps, 6) + 1)))  # the others are begun while we train
        noted.version = step
    ahead.close()


def test_rollouts_ahead__the_next_step_is_collected_while_the_trainer_works():
    noted = Noted(permits=1)
    ahead = RolloutsAhead(noted, 1, last=3)
    ahead.collect(1, nothing)
    noted.wait_for([1, 2])
    ahead.close()  # in the middle of it: does not wait for a permit that nobody gives
    assert noted.count == 1


def test_rollouts_ahead__an_error_arrives_with_the_step_that_it_belongs_to():
    ahead = RolloutsAhead(Noted(permits=5, fails_at=2), 2, last=5)
    assert ahead.collect(1, nothing)
    with pytest.raises(CannotFillError):
        ahead.collect(2, nothing)
    assert ahead.state() == {"count": 1}
    ahead.close()


def test_rollouts_ahead__hear_an_interrupt_while_they_wait_and_resume_where_they_were():
    noted = Noted(permits=0)
    ahead, again = (RolloutsAhead(noted, 1, last=5) for _ in range(2))

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ahead.collect(1, stop)
    ahead.close()
    again.restore({"count": 3})
    assert noted.count == 3
    assert again.state() == {"count": 3}
    noted.gate.release(5)
    again.collect(4, nothing)
    assert noted.begun[1] == 4
    again.close()
