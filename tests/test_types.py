"""The batch: every column is cut and moved with its rows."""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from openprime.types import Batch
from support.strategies import Case, cases, property_test

BLOCKS = (
    "labels",
    "ref_logprobs",
    "rewards",
    "returns",
    "old_logprobs",
    "importance",
    "advantages",
    "weights",
)
CANDIDATES = ("candidates", "targets")
OPTIONAL = (*BLOCKS, *CANDIDATES, "group_outcome")


def numbered(case: Case, missing: set[str]) -> Batch:
    """A batch whose columns say where they stand: 1000 b + t; without some of the optional ones."""
    here = 1000 * torch.arange(len(case))[:, None] + torch.arange(case.width)  # [B, T]
    columns = {name: here + 100_000 * i for i, name in enumerate(BLOCKS) if name not in missing}
    columns |= {name: torch.stack([here, -here], -1) for name in CANDIDATES if name not in missing}
    group_outcome = None if "group_outcome" in missing else here[:, 0].float()
    batch = case.batch(token_ids=here, logprobs=here.float(), **columns)
    return replace(batch, group_outcome=group_outcome)


@property_test
@given(cases(), st.sets(st.sampled_from(OPTIONAL)), st.data())
def test_trap_07__select_cuts_every_column_alike(case: Case, missing: set[str], data: st.DataObject):
    """Values stay with their rows, in the order asked for, to the width of the longest; None stays None."""
    batch = numbered(case, missing)
    rows = data.draw(st.lists(st.integers(0, len(batch) - 1), min_size=1, max_size=9), "rows")
    found = batch.select(torch.tensor(rows))
    width = max(case.prompts[b] + case.lengths[b] for b in rows)
    assert len(found) == len(rows)
    assert found.token_ids.shape == (len(rows), width)
    for name in Batch.__slots__:
        whole, part = getattr(batch, name), getattr(found, name)
        assert (part is None) == (whole is None) == (name in missing), name
        for place, row in enumerate(rows if part is not None else ()):
            expected = whole[row]
            assert torch.equal(part[place], expected[:width] if whole.dim() > 1 else expected), name


@property_test
@given(cases())
def test_batch__shortest_is_one_row_without_padding(case: Case):
    found = numbered(case, set()).shortest()
    assert found.token_ids.shape == (1, int(found.lengths))
    assert int(found.lengths) == min(p + n for p, n in zip(case.prompts, case.lengths, strict=True))


@property_test
@given(cases(), st.sets(st.sampled_from(OPTIONAL)))
def test_batch__to_moves_every_column(case: Case, missing: set[str]):
    batch = numbered(case, missing)
    moved = batch.to("meta")
    for name in Batch.__slots__:
        before, after = getattr(batch, name), getattr(moved, name)
        assert (after is None) == (before is None), name
        if after is not None:
            assert after.device.type == "meta", name
            assert after.shape == before.shape, name
