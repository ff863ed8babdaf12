"""How prompts and batches are dealt to ranks; what one process does without any."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openprime.ranks import deal, gather, on_first, share, together
from support.ranks import become

property_test = settings(max_examples=150, deadline=None, derandomize=True)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(2, 9), st.integers(1, 8))
@property_test
def test_deal__gives_everything_out_with_units_kept_together_and_no_rank_far_ahead(
    lengths: list[int], world: int, units: int
):
    unit = [row % units for row in range(len(lengths))]
    with pytest.MonkeyPatch.context() as patch:
        become(patch, 0, world)
        shares = deal(torch.tensor(lengths), torch.tensor(unit))
        alone = deal(torch.tensor(lengths))
    assert len(shares) == world
    where = {unit[row]: rank for rank, rows in enumerate(shares) for row in rows}
    assert all(where[unit[row]] == rank for rank, rows in enumerate(shares) for row in rows)
    for dealt, own in ((shares, unit), (alone, range(len(lengths)))):
        assert sorted(row for rows in dealt for row in rows) == list(range(len(lengths)))
        tokens = [sum(lengths[row] for row in rows) for rows in dealt]
        largest = Counter()
        for row, length in enumerate(lengths):
            largest[own[row]] += length
        assert max(tokens) - min(tokens) <= max(largest.values())


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


def test_one_process__has_everything():
    assert share(5) == range(5)
    assert gather("x") == ["x"]
    assert deal(torch.tensor([3, 1, 2])) == [[0, 1, 2]]


@pytest.mark.parametrize("call", [on_first, together])
def test_on_first_and_together__of_one_process_are_its_own_work_and_errors(call):
    error = KeyError("mine")

    def fail() -> None:
        raise error

    assert call(lambda: 7) == 7
    with pytest.raises(KeyError) as raised:
        call(fail)
    assert raised.value is error
