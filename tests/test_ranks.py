"""How prompts are shared by ranks; what one process does without any."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openprime.ranks import apart, gather, is_lost_connection, on_first, share, together, world
from openprime.types import EngineError
from support.ranks import become

property_test = settings(max_examples=150, deadline=None, derandomize=True)


@given(count=st.integers(0, 60), world=st.integers(2, 9))
@property_test
def test_share__parts_stand_in_order_and_differ_by_one_at_most(count: int, world: int):
    parts = []
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(world):
            become(patch, rank, world)
            parts.append(share(count))
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_apart__a_rank_is_one_process_in_this_thread_alone(monkeypatch: pytest.MonkeyPatch):
    become(monkeypatch, 1, 4)
    with ThreadPoolExecutor(1) as thread:
        with apart():
            assert (world(), share(8), gather("x"), on_first(lambda: "y")) == (1, range(8), ["x"], "y")
            assert thread.submit(world).result() == 4
        assert (world(), share(8)) == (4, range(2, 4))
        with pytest.raises(KeyError), apart():
            raise KeyError
        assert world() == 4


def test_is_lost_connection__is_not_what_we_say_of_a_server():
    said = "http://node:8000: ConnectionResetError Connection reset by peer"
    assert is_lost_connection(RuntimeError(said))
    assert not is_lost_connection(EngineError(said))


def test_one_process__has_everything():
    assert share(5) == range(5)
    assert gather("x") == ["x"]


@pytest.mark.parametrize("call", [on_first, together])
def test_on_first_and_together__of_one_process_are_its_own_work_and_errors(call):
    error = KeyError("mine")

    def fail() -> None:
        raise error

    assert call(lambda: 7) == 7
    with pytest.raises(KeyError) as raised:
        call(fail)
    assert raised.value is error
