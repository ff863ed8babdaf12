"""The stream of prompts: epochs, prompts put back, and going on where it stopped."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openprime.prime.stream import PromptStream
from openprime.types import Prompt

property_test = settings(max_examples=120, deadline=None, derandomize=True)


def prompts_of(size: int) -> list[Prompt]:
    return [Prompt(f"row {i}", (i,), "", None) for i in range(size)]


def numbers(prompts: list[Prompt]) -> list[int]:
    return [prompt.token_ids[0] for prompt in prompts]


@property_test
@given(st.integers(1, 12), st.integers(0, 3), st.lists(st.integers(0, 9), max_size=12))
def test_every_epoch_is_a_permutation_however_it_is_taken(size: int, seed: int, counts: list[int]):
    stream = PromptStream(prompts_of(size), seed)
    taken = [n for count in counts for n in numbers(stream.take(count))]
    assert len(taken) == sum(counts)
    for start in range(0, len(taken), size):
        epoch = taken[start : start + size]
        assert len(set(epoch)) == len(epoch)
        if len(epoch) == size:
            assert sorted(epoch) == list(range(size))


def test_the_order_depends_on_the_seed_and_the_epoch():
    orders = []
    for seed in (0, 1):
        stream = PromptStream(prompts_of(20), seed)
        orders += [tuple(numbers(stream.take(20))) for _ in range(3)]
    assert len(set(orders)) == 6
    assert tuple(range(20)) not in orders
    again = PromptStream(prompts_of(20), 0)
    assert [tuple(numbers(again.take(20))) for _ in range(3)] == orders[:3]


def test_one_prompt_is_drawn_again_and_again():
    assert numbers(PromptStream(prompts_of(1), 0).take(4)) == [0] * 4


def test_prompts_put_back_come_first_in_their_order():
    stream = PromptStream(prompts_of(10), 0)
    first = stream.take(6)
    following = numbers(PromptStream(prompts_of(10), 0).take(12))[6:]
    stream.put_back(first[2:5])
    assert numbers(stream.take(5)) == numbers(first[2:5]) + following[:2]
    assert numbers(stream.take(4)) == following[2:6]


def test_what_is_put_back_later_comes_before_what_was_put_back_earlier():
    stream = PromptStream(prompts_of(10), 0)
    a, b, c, d = stream.take(4)
    stream.put_back([a, b])
    stream.put_back([c, d])
    assert stream.take(4) == [c, d, a, b]


def test_putting_nothing_back_changes_nothing():
    stream, other = PromptStream(prompts_of(5), 0), PromptStream(prompts_of(5), 0)
    stream.put_back([])
    assert stream.take(7) == other.take(7)


@property_test
@given(
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=8),
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=8),
)
def test_a_restored_stream_goes_on_exactly(size: int, before: list, after: list):
    """(take, put so many of them back), before and after the checkpoint, which goes through JSON."""

    def go(stream: PromptStream, moves: list[tuple[int, int]]) -> list[int]:
        seen = []
        for count, back in moves:
            taken = stream.take(count)
            seen += numbers(taken)
            stream.put_back(taken[:back])
        return seen

    straight = PromptStream(prompts_of(size), 3)
    go(straight, before)
    state = json.loads(json.dumps(straight.state()))
    resumed = PromptStream(prompts_of(size), 3)
    go(resumed, [(4, 2)])  # whatever it did is forgotten
    resumed.restore(state)
    assert go(resumed, after) == go(straight, after)
    assert resumed.state() == straight.state()


def test_trap_10_a_checkpoint_in_the_middle_of_returned_prompts_keeps_them():
    stream = PromptStream(prompts_of(6), 1)
    taken = stream.take(5)
    stream.put_back(taken[1:4])
    assert stream.take(1) == taken[1:2]
    state = stream.state()
    resumed = PromptStream(prompts_of(6), 1)
    resumed.restore(state)
    assert resumed.take(2) == taken[2:4]
    assert resumed.take(9) == (stream.take(2) + stream.take(9))[2:]


def test_trap_10_a_state_is_a_snapshot():
    stream = PromptStream(prompts_of(6), 1)
    taken = stream.take(3)
    stream.put_back(taken)
    state = stream.state()
    kept = json.dumps(state)
    stream.take(2)
    assert json.dumps(state) == kept
    resumed = PromptStream(prompts_of(6), 1)
    resumed.restore(state)
    resumed.take(3)
    assert json.dumps(state) == kept


@pytest.mark.parametrize("size", [5, 7])
def test_data_of_another_size_is_refused(size: int):
    state = PromptStream(prompts_of(6), 1).state()
    with pytest.raises(ValueError, match=f"6 prompts, the data now has {size}"):
        PromptStream(prompts_of(size), 1).restore(state)


def test_a_stream_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one prompt"):
        PromptStream([], 0)


def test_two_epochs_in_a_row_rarely_begin_alike():
    stream = PromptStream(prompts_of(50), 0)
    firsts = [numbers(stream.take(50))[0] for _ in range(20)]
    assert sum(a == b for a, b in pairwise(firsts)) <= 3
