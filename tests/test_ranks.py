"""How a batch is dealt to ranks, and the cut of each rank's share into micro-batches."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openprime import ranks
from openprime.models import logprobs
from openprime.models.logprobs import micro_batches
from openprime.ranks import deal, gather, on_first, share, together

property_test = settings(max_examples=150, deadline=None, derandomize=True)
sizes = st.lists(st.integers(1, 50), min_size=1, max_size=30)
worlds = st.integers(2, 9)


class Ranks:
    """A rank of several, for what needs no communication."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def __call__(self, rank: int, world: int) -> None:
        for module in (ranks, logprobs):
            self.monkeypatch.setattr(module, "rank", lambda: rank)
            self.monkeypatch.setattr(module, "world", lambda: world)


@given(lengths=sizes, world=worlds, units=st.integers(1, 8))
@property_test
def test_a_batch_is_dealt_whole_with_units_kept_together_and_no_rank_far_ahead(
    lengths: list[int], world: int, units: int
):
    together = [row % units for row in range(len(lengths))]
    with pytest.MonkeyPatch.context() as patch:
        Ranks(patch)(0, world)
        shares = deal(torch.tensor(lengths), torch.tensor(together))
        alone = deal(torch.tensor(lengths))
    assert len(shares) == world
    for dealt in (shares, alone):
        assert sorted(row for rows in dealt for row in rows) == list(range(len(lengths)))
    where = {together[row]: rank for rank, rows in enumerate(shares) for row in rows}
    assert all(where[together[row]] == rank for rank, rows in enumerate(shares) for row in rows)
    for dealt, unit in ((shares, together), (alone, range(len(lengths)))):
        tokens = [sum(lengths[row] for row in rows) for rows in dealt]
        largest = Counter()
        for row, length in enumerate(lengths):
            largest[unit[row]] += length
        assert max(tokens) - min(tokens) <= max(largest.values())


@given(lengths=sizes, world=worlds, tokens=st.integers(1, 200), pairs=st.booleans())
@property_test
def test_all_ranks_have_as_many_micro_batches_and_together_the_batch(
    lengths: list[int], world: int, tokens: int, pairs: bool
):
    unit = torch.tensor([row // 2 for row in range(len(lengths))]) if pairs else None
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(world):
            Ranks(patch)(rank, world)
            found.append(micro_batches(torch.tensor(lengths), tokens, unit, pairs))
    assert len({len(own) for own in found}) == 1
    rows = [row for own in found for micro in own for row in micro.tolist()]
    assert sorted(rows) == list(range(len(lengths)))
    for own in found:
        for micro in own:
            held = sum(lengths[row] for row in micro.tolist())
            units = {int(unit[row]) for row in micro.tolist()} if unit is not None else set(micro.tolist())
            assert held <= tokens or len(units) == 1
    # Somebody needs the last one.
    assert any(len(own[-1]) for own in found)


@given(count=st.integers(0, 60), world=worlds)
@property_test
def test_shares_of_prompts_stand_in_order_and_differ_by_one_at_most(count: int, world: int):
    parts = []
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(world):
            Ranks(patch)(rank, world)
            parts.append(share(count))
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_has_everything_and_its_errors_are_its_own():
    assert share(5) == range(5)
    assert gather("x") == ["x"]
    assert deal(torch.tensor([3, 1, 2])) == [[0, 1, 2]]
    error = KeyError("mine")

    def fail() -> None:
        raise error

    for call in (on_first, together):
        assert call(lambda: 7) == 7
        with pytest.raises(KeyError) as raised:
            call(fail)
        assert raised.value is error
