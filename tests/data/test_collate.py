"""Groups of responses as one block of tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openprime.data.chat import Turn
from openprime.data.collate import collate, collate_demonstrations, tokens_containing
from openprime.types import Batch, Group, Prompt, Response


def prompt(*ids: int) -> Prompt:
    return Prompt(f"p{ids}", ids, "", None)


def response(ids: tuple[int, ...], outcome: float | None = 1.0, text: str = "") -> Response:
    """Log-probabilities are minus a hundredth of the token."""
    return Response(ids, tuple(-i / 100 for i in ids), text, False, outcome)


@pytest.fixture
def groups() -> list[Group]:
    """Four prompts; the second has lost a response, the third all of them. Token 5 ends a step, in a prompt none."""
    return [
        Group(prompt(10, 5), (response((20, 5, 21)), response((22,), 0.0)), 0),
        Group(prompt(12), (response((23, 24), None), response((5, 25, 5, 26, 2), 0.25)), 0),
        Group(prompt(13), (response((27,), None),), 0),
        Group(prompt(14, 15, 16), (response((28, 2), 0.5),), 0),
    ]


def test_collate__by_hand(groups: list[Group]):
    batch = collate(groups, frozenset({5, 26}), 9)
    assert batch.token_ids.tolist() == [
        [10, 5, 20, 5, 21, 9],
        [10, 5, 22, 9, 9, 9],
        [12, 5, 25, 5, 26, 2],
        [14, 15, 16, 28, 2, 9],
    ]
    assert batch.response_mask.int().tolist() == [
        [0, 0, 1, 1, 1, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 1],
        [0, 0, 0, 1, 1, 0],
    ]
    assert batch.step_end.int().tolist() == [
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    torch.testing.assert_close(
        batch.logprobs,
        torch.tensor(
            [
                [0, 0, -0.20, -0.05, -0.21, 0],
                [0, 0, -0.22, 0, 0, 0],
                [0, -0.05, -0.25, -0.05, -0.26, -0.02],
                [0, 0, 0, -0.28, -0.02, 0],
            ]
        ),
    )
    assert batch.lengths.tolist() == [5, 3, 6, 5]
    assert batch.outcome.tolist() == [1.0, 0.0, 0.25, 0.5]
    assert batch.group.tolist() == [0, 0, 1, 3]
    assert len(batch) == 4
    there = [name for name in Batch.__slots__ if getattr(batch, name) is not None]
    assert there == ["token_ids", "response_mask", "lengths", "outcome", "group", "logprobs", "step_end"]
    assert {batch.token_ids.dtype, batch.lengths.dtype, batch.group.dtype} == {torch.int64}
    assert {batch.outcome.dtype, batch.logprobs.dtype} == {torch.float32}


def test_trap_13__token_ids_are_carried_whatever_the_text_says():
    """Two ways to write the same text, and a text that says something else altogether."""
    p = Prompt("p", (7, 8), "another prompt", "4", {"prompt": "and another"})
    answers = (
        response((30, 31), text="ab"),
        response((32,), text="ab"),
        response((33, 2), text="nothing of it"),
    )
    batch = collate([Group(p, answers, 0)], frozenset(), 0)
    assert [row[:n] for row, n in zip(batch.token_ids.tolist(), batch.lengths.tolist(), strict=True)] == [
        [7, 8, 30, 31],
        [7, 8, 32],
        [7, 8, 33, 2],
    ]


def test_trap_14__an_end_token_that_is_also_padding_counts_in_the_response_alone():
    batch = collate([Group(prompt(1), (response((4, 2)), response((4, 6, 6, 2))), 0)], frozenset(), 2)
    assert batch.token_ids.tolist() == [[1, 4, 2, 2, 2], [1, 4, 6, 6, 2]]
    assert batch.response_mask.sum(-1).tolist() == [2, 4]
    assert batch.logprobs[0].tolist()[3:] == [0, 0]


def test_collate__groups_without_any_verdict_make_no_batch():
    with pytest.raises(ValueError):
        collate([Group(prompt(1), (response((2,), None),), 0)], frozenset(), 0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_select__keeps_each_row_whole(data: st.DataObject):
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=6))
    groups = [
        Group(prompt(*range(10, 10 + p)), (response(tuple(range(20 + i, 20 + i + r)), i / 10),), 0)
        for i, (p, r) in enumerate(sizes)
    ]
    batch = collate(groups, frozenset({22, 24}), 0)
    rows = data.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=8))
    chosen = batch.select(torch.tensor(rows))
    alone = [collate([groups[row]], frozenset({22, 24}), 0) for row in rows]
    assert chosen.token_ids.shape[1] == max(int(one.lengths[0]) for one in alone)
    for place, one in enumerate(alone):
        n = int(one.lengths[0])
        assert int(chosen.lengths[place]) == n
        for name in ("token_ids", "response_mask", "logprobs", "step_end"):
            assert torch.equal(getattr(chosen, name)[place, :n], getattr(one, name)[0])
            assert not bool(getattr(chosen, name)[place, n:].any())
        assert chosen.outcome[place] == one.outcome[0]
        assert int(chosen.group[place]) == rows[place]


def test_batch__moves_as_a_whole(groups: list[Group]):
    moved = collate(groups, frozenset(), 9).to("meta")
    columns = [getattr(moved, name) for name in Batch.__slots__]
    assert {column.device.type for column in columns if column is not None} == {"meta"}


def test_collate_demonstrations__are_groups_of_one():
    batch = collate_demonstrations([Turn((1, 2), (3, 4, 0)), Turn((5,), (6,))], 9)
    assert batch.token_ids.tolist() == [[1, 2, 3, 4, 0], [5, 6, 9, 9, 9]]
    assert batch.response_mask.int().tolist() == [[0, 0, 1, 1, 1], [0, 1, 0, 0, 0]]
    assert batch.group.tolist() == [0, 1]
    assert not bool(batch.logprobs.any())


def test_tokens_containing__are_found_by_what_they_decode_to(tokenizer):
    vocabulary = {i: tokenizer.decode([i]) for i in range(len(tokenizer))}
    found = tokens_containing(tokenizer, "e")
    assert found == {i for i, text in vocabulary.items() if "e" in text}
    assert len(found) > 3
    assert {vocabulary[i] for i in tokens_containing(tokenizer, "\n")} == {"\n"}
    assert tokens_containing(tokenizer, "no token has this") == frozenset()
