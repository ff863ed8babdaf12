"""Collecting a batch of groups with an engine and a verifier that do as they are told; the stream of prompts."""

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openprime.config import FilterConfig, RolloutConfig
from openprime.prime.rollouts import CannotFillError, PromptStream, Rollouts, accuracy, derive_seed
from openprime.types import Group, Prompt, Response, Sampling, Verdict
from openprime.verifiers.pool import with_verdicts
from support.strategies import property_test

Outcomes = tuple[float | None, ...]
GOOD, HARD, EASY = (1.0, 0.0, 1.0, 0.0), (0.0,) * 4, (1.0,) * 4


def prompts(count: int) -> list[Prompt]:
    """Numbered prompts."""
    return [Prompt(f"p:{i}", (i,), f"prompt {i}", str(i)) for i in range(count)]


def numbers(found: Sequence[Prompt | Group]) -> list[int]:
    """Of prompts, or of groups' prompts."""
    return [(one.prompt if isinstance(one, Group) else one).token_ids[0] for one in found]


@dataclass
class FakeEngine:
    """Answers at once; response k of a prompt is the text "k". Remembers every call."""

    version: int = 0
    truncated: Callable[[int, int], bool] = lambda prompt, k: False
    calls: list[tuple[list[int], Sampling, int]] = field(default_factory=list)

    def generate(self, prompts, sampling, seed, check=None, finished=None, first=0) -> list[Group]:
        """The groups, in the prompts' order."""
        self.calls.append((numbers(prompts), sampling, seed))
        groups = []
        for prompt in prompts:
            cut = [self.truncated(prompt.token_ids[0], k) for k in range(sampling.responses)]
            made = tuple(Response((k, 9), (-1.0, -0.5), str(k), own) for k, own in enumerate(cut))
            groups.append(Group(prompt, made, self.version))
            if check is not None:
                check()
        for group in reversed(groups):  # the last one ends first
            if finished is not None:
                finished(group)
        return groups

    @property
    def drawn(self) -> list[int]:
        """All prompts so far, in the order of sampling."""
        return [number for drawn, _, _ in self.calls for number in drawn]


@dataclass
class Script:
    """A pool that reads the outcomes of a prompt's responses off a list."""

    outcomes: Callable[[int], Outcomes]

    def submit(self, prompt: Prompt, texts: Sequence[str]) -> list["Future[Verdict]"]:
        """The verdict of response k is outcome k."""
        told = self.outcomes(prompt.token_ids[0])
        return futures([Verdict(told[int(text)], "right" if told[int(text)] else "wrong") for text in texts])

    def require_verdicts(self, groups: list[Group]) -> None:
        """No verdict is a failure."""

    def metrics(self) -> dict[str, float]:
        """No programs are run."""
        return {}


def futures(verdicts: list[Verdict]) -> list["Future[Verdict]"]:
    """Verdicts that are there already."""
    made: list[Future[Verdict]] = [Future() for _ in verdicts]
    for future, verdict in zip(made, verdicts, strict=True):
        future.set_result(verdict)
    return made


def rollouts_of(
    outcomes: Callable[[int], Outcomes],
    wanted: int = 4,
    data: int = 100,
    engine: FakeEngine | None = None,
    low: float = 0.2,
    high: float = 0.8,
    max_draws: float = 10.0,
    truncated: str = "keep",
    margin: float = 0.0,
) -> Rollouts:
    """Groups of four."""
    return Rollouts(
        engine or FakeEngine(),
        PromptStream(prompts(data), seed=3),
        Script(outcomes),
        RolloutConfig(prompts=wanted, responses=4, truncated=truncated),
        FilterConfig(low=low, high=high, max_draws=max_draws, margin=margin),
        seed=5,
    )


def nothing() -> None:
    """A check that never interrupts."""


def good(i: int) -> Outcomes:
    """Every prompt is worth keeping."""
    return GOOD


def thirds(i: int) -> Outcomes:
    """Every third prompt is worth keeping, the others are too hard or too easy."""
    return (GOOD, HARD, EASY)[i % 3]


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {
        name: value for name, value in metrics.items() if "time/" not in name and "per_second" not in name
    }


# Filling


@pytest.mark.parametrize("wanted", [1, 3, 8])
def test_collect__a_batch_is_the_prompts_asked_for_all_within_the_bounds_in_the_streams_order(wanted: int):
    rollouts = rollouts_of(thirds, wanted=wanted)
    for step in range(1, 8):
        before = len(rollouts.engine.drawn)
        groups = rollouts.collect(step, nothing)
        assert all(0.2 <= group.accuracy <= 0.8 for group in groups)
        assert all(len(group.responses) == 4 for group in groups)
        passing = [number for number in rollouts.engine.drawn[before:] if number % 3 == 0]
        assert numbers(groups) == passing[:wanted]
        assert len(groups) == wanted


def test_trap_06__a_short_batch_is_refilled_and_never_padded_with_failed_groups():
    """Nine of ten draws fail; a batch is still made of groups that passed, each drawn prompt at most once."""
    rollouts = rollouts_of(lambda i: GOOD if i % 10 == 0 else (HARD, EASY)[i % 2], max_draws=25)
    groups = rollouts.collect(1, nothing)
    assert all(number % 10 == 0 for number in numbers(groups))
    assert len(set(numbers(groups))) == len(groups) == 4
    assert [r.outcome for group in groups for r in group.responses] == [*GOOD] * 4
    assert rollouts.metrics["rollout/draws"] > 1


@pytest.mark.parametrize(
    ("low", "high", "kept"),
    [
        (0.2, 0.8, {0.25, 0.5, 0.75}),
        (0.25, 0.75, {0.25, 0.5, 0.75}),  # the bounds themselves pass
        (0.26, 0.74, {0.5}),
        (0.0, 1.0, {0.0, 0.25, 0.5, 0.75, 1.0}),
        (0.0, 0.0, {0.0}),
        (1e-9, 1 - 1e-9, {0.25, 0.5, 0.75}),  # "not all equal"
    ],
)
def test_collect__the_bounds_of_the_filter(low: float, high: float, kept: set[float]):
    def outcomes(i: int) -> Outcomes:
        return (1.0,) * (i % 5) + (0.0,) * (4 - i % 5)

    rollouts = rollouts_of(outcomes, wanted=20, low=low, high=high)
    assert {group.accuracy for group in rollouts.collect(1, nothing)} == kept


def test_collect__soft_outcomes_count_by_their_mean():
    rollouts = rollouts_of(lambda i: (0.3, 0.1, 0.2, 0.4) if i % 2 else (0.1, 0.2, 0.1, 0.1))
    assert [group.accuracy for group in rollouts.collect(1, nothing)] == [pytest.approx(0.25)] * 4


# Refilling


def test_collect__where_all_pass_the_first_draw_is_the_batch():
    rollouts = rollouts_of(good, wanted=6)
    rollouts.collect(1, nothing)
    assert [len(drawn) for drawn, _, _ in rollouts.engine.calls] == [6]
    assert rollouts.metrics["rollout/draws"] == rollouts.metrics["rollout/passed"] == 1


def test_collect__refills_are_sized_by_the_pass_rate():
    rollouts = rollouts_of(thirds, wanted=30, data=90)
    rate, missing = 1.0, 30
    rollouts.collect(1, nothing)
    for drawn, _, _ in rollouts.engine.calls:
        assert len(drawn) == math.ceil(missing / max(rate, 0.1))
        passed = sum(number % 3 == 0 for number in drawn)
        rate = 0.8 * rate + 0.2 * passed / len(drawn)
        missing -= passed
    assert missing <= 0
    assert rollouts.pass_rate == pytest.approx(rate)
    assert rollouts.metrics["rollout/draws"] == len(rollouts.engine.calls) > 1
    for step in range(2, 20):
        rollouts.collect(step, nothing)
    assert rollouts.metrics["rollout/draws"] <= 2  # it knows its pass rate, and draws about enough at once
    assert rollouts.pass_rate == pytest.approx(1 / 3, abs=0.1)


@pytest.mark.parametrize("margin", [0.0, 1.0, 2.0])
def test_collect__a_margin_is_in_standard_deviations_of_the_groups_that_pass(margin: float):
    """Of 200 prompts at a rate of one half 100 pass, with a standard deviation of 7.07 by the binomial formula."""
    rollouts = rollouts_of(good, wanted=100, data=1000, margin=margin)
    rollouts.pass_rate = 0.5
    rollouts.collect(1, nothing)
    (drawn,) = (call[0] for call in rollouts.engine.calls)
    assert len(drawn) == math.ceil(200 + margin * math.sqrt(200 * 0.5 * 0.5) / 0.5)


def test_collect__with_a_margin_second_draws_are_rare():
    """A normal variable is above 1.5 standard deviations in 6.7 % of all cases, and below its mean in half of them."""

    def short(margin: float) -> float:
        coin = random.Random(1)
        sides = [coin.random() < 0.5 for _ in range(20_000)]
        flips = rollouts_of(lambda i: GOOD if sides[i] else HARD, wanted=100, data=20_000, margin=margin)
        flips.pass_rate = 0.5
        steps = range(1, 61)
        return sum(len(flips.collect(s, nothing)) and flips.metrics["rollout/draws"] > 1 for s in steps) / 60

    assert short(0.0) > 0.35
    assert short(1.5) < 0.2  # the pass rate is itself an estimate


def test_collect__every_draw_has_a_seed_of_its_own():
    rollouts = rollouts_of(thirds)
    for step in range(1, 6):
        rollouts.collect(step, nothing)
    seeds = [seed for _, _, seed in rollouts.engine.calls]
    assert len(set(seeds)) == len(seeds) > 5
    assert seeds[0] == derive_seed(5, 1, 0)
    assert {sampling for _, sampling, _ in rollouts.engine.calls} == {Sampling(4, 3072, 1.0)}


# What is left over


def test_collect__surplus_prompts_return_to_the_stream_and_are_drawn_next():
    rollouts = rollouts_of(good, wanted=3)
    rollouts.pass_rate = 0.3  # so that it draws ten and all pass
    first, drawn = numbers(rollouts.collect(1, nothing)), rollouts.engine.drawn
    assert len(drawn) == 10
    assert [first, *(numbers(rollouts.collect(step, nothing)) for step in (2, 3))] == [
        drawn[:3],
        drawn[3:6],
        drawn[6:9],
    ]


def test_collect__failed_prompts_do_not_return():
    """Only want of room sends a prompt back; one that failed comes again an epoch later."""
    rollouts = rollouts_of(lambda i: GOOD if i < 50 else HARD, wanted=5, max_draws=1000)
    trained: list[int] = []
    while len(trained) < 50:
        trained += numbers(rollouts.collect(len(trained), nothing))
    assert sorted(trained) == list(range(50))  # every good one once in an epoch
    assert max(Counter(number for number in rollouts.engine.drawn if number >= 50).values()) <= 2


def test_trap_08__all_groups_of_a_batch_are_from_one_policy_version():
    """Surplus groups are sampled anew by the next policy: nothing of an older version is carried over."""
    engine = FakeEngine()
    rollouts = rollouts_of(thirds, wanted=5, engine=engine)
    for step in range(1, 12):
        engine.version = step * 10
        rollouts.pass_rate = 0.15  # draw far too many: a surplus every step
        before = len(engine.drawn)
        groups = rollouts.collect(step, nothing)
        assert {group.policy_version for group in groups} == {step * 10}
        assert set(numbers(groups)) <= set(engine.drawn[before:])  # each was sampled in this very step


# Responses without an outcome


@pytest.mark.parametrize(
    ("choice", "texts", "share"), [("keep", ["0", "1", "2", "3"], 0.25), ("drop", ["2", "3"], 0.5)]
)
def test_collect__truncated_responses_are_dropped_or_judged_as_they_are(
    choice: str, texts: list[str], share: float
):
    """What was sampled is measured whole: how much is cut off is what one wants to know when it is dropped."""
    engine = FakeEngine(truncated=lambda prompt, k: k < 2)
    rollouts = rollouts_of(lambda i: (0.0, 0.0, 1.0, 0.0), engine=engine, truncated=choice)
    group = rollouts.collect(1, nothing)[0]
    assert [r.text for r in group.responses] == texts
    assert group.accuracy == share  # and this is what the filter looks at
    assert rollouts.metrics["rollout/accuracy"] == 0.25
    assert rollouts.metrics["rollout/truncated"] == 0.5
    assert rollouts.metrics["rollout/tokens"] == 4 * 4 * 2


@pytest.mark.parametrize(
    ("even", "truncated", "low"),
    [
        ((1.0, None, None, None), lambda i, k: False, 0.0),  # one outcome
        ((None,) * 4, lambda i, k: False, 0.0),
        (GOOD, lambda i, k: i % 2 == 0 and k > 0, 0.0),  # one is left after dropping
        ((1.0, 0.0, 0.0, 0.0), lambda i, k: k == 0, 0.2),  # none is right after dropping
    ],
)
def test_collect__the_filter_looks_at_what_is_left_and_needs_two_outcomes(
    even: Outcomes, truncated, low: float
):
    engine = FakeEngine(truncated=truncated)
    rollouts = rollouts_of(
        lambda i: GOOD if i % 2 else even, low=low, high=1.0, engine=engine, truncated="drop"
    )
    assert all(number % 2 for number in numbers(rollouts.collect(1, nothing)))


def test_collect__no_verdict_is_left_out_of_the_mean():
    rollouts = rollouts_of(lambda i: (1.0, 0.0, None, None))
    (group, *_) = rollouts.collect(1, nothing)
    assert group.accuracy == rollouts.metrics["rollout/accuracy"] == 0.5
    assert len(group.responses) == 2  # those with an outcome
    assert rollouts.metrics["verify/no_verdict"] == 0.5


# Data that cannot fill a batch

UNJUDGED = ("too few responses with an outcome in 40", "0 groups were below it, 0 above")


@pytest.mark.parametrize(
    ("outcomes", "truncated", "words"),
    [
        (HARD, False, ("too hard", "mean accuracy 0.000", "40 groups were below", "0 above")),
        (EASY, False, ("too easy", "mean accuracy 1.000", "0 groups were below", "40 above")),
        ((0.1,) * 4, False, ("too hard", "mean accuracy 0.100")),
        # Not called hard data: a verifier without verdicts, and responses that are dropped.
        ((None,) * 4, False, UNJUDGED),
        ((1.0, None, None, None), False, UNJUDGED),
        (GOOD, True, UNJUDGED),
    ],
)
def test_cannot_fill_error__says_why_and_what_to_do(outcomes: Outcomes, truncated: bool, words: tuple):
    engine = FakeEngine(truncated=lambda prompt, k: truncated)
    with pytest.raises(CannotFillError) as error:
        rollouts_of(lambda i: outcomes, engine=engine, truncated="drop").collect(1, nothing)
    message = str(error.value)
    remedies = ("filter.low", "filter.high", "rollout.prompts", "filter.max_draws")
    for word in (
        "40 prompts were drawn and 0 of the 4 groups wanted passed",
        "[0.2, 0.8]",
        *words,
        *remedies,
    ):
        assert word in message
    for word in {"too hard", "too easy"} - set(words):
        assert word not in message


@pytest.mark.parametrize(("wanted", "max_draws", "most"), [(4, 10, 40), (4, 1, 4), (3, 2.5, 7), (1, 1, 1)])
def test_collect__gives_up_after_the_draws_allowed(wanted: int, max_draws: float, most: int):
    rollouts = rollouts_of(lambda i: HARD, wanted=wanted, max_draws=max_draws, data=7)
    with pytest.raises(CannotFillError, match=f"^{most} prompts were drawn"):
        rollouts.collect(1, nothing)
    assert len(rollouts.engine.drawn) == most
    assert (
        len(rollouts_of(good, wanted=wanted, max_draws=1).collect(1, nothing)) == wanted
    )  # at the last draw


def test_collect__a_partly_filled_batch_is_an_error_too():
    rollouts = rollouts_of(lambda i: GOOD if i == 0 else HARD, data=10, max_draws=3)
    with pytest.raises(
        CannotFillError, match=r"12 prompts were drawn and [12] of the 4 groups wanted passed"
    ):
        rollouts.collect(1, nothing)


# Counting


def test_collect__measures_everything_drawn_before_the_filter():
    rollouts = rollouts_of(thirds, wanted=30, data=90)
    rollouts.collect(1, nothing)
    drawn, found = rollouts.engine.drawn, rollouts.metrics
    outcomes = [outcome for i in drawn for outcome in thirds(i) if outcome is not None]
    assert found["rollout/accuracy"] == pytest.approx(sum(outcomes) / len(outcomes))
    assert found["rollout/passed"] == pytest.approx(sum(i % 3 == 0 for i in drawn) / len(drawn))
    assert found["rollout/tokens"] == len(drawn) * 4 * 2
    assert found["rollout/response_tokens"] == 2
    assert found["rollout/entropy"] == 0.75  # the mean of -log p
    assert found["verify/no_verdict"] == 0
    assert min(found["time/rollout"], found["time/verify"]) >= 0
    for step in range(2, 6):
        rollouts.collect(step, nothing)
        assert rollouts.rollouts == rollouts.metrics["rollout/rollouts"] == len(rollouts.engine.drawn) * 4


def test_accuracy__is_greedy_and_a_mean_over_samples():
    """A response without a verdict counts as wrong."""
    engine, pool = FakeEngine(), Script(lambda i: (1.0, 0.5, None, 0.0) if i else (None, 0.0, 1.0, 1.0))
    found = accuracy(engine, pool, prompts(2), 4, 7, seed=5)
    assert found == {"eval/greedy": 0.5, "eval/avg@4": (1.5 + 2.0) / 8}
    assert [call[:2] for call in engine.calls] == [([0, 1], Sampling(1, 7, 0.0)), ([0, 1], Sampling(4, 7))]
    assert accuracy(engine, pool, prompts(2), 0, 7, seed=5) == {"eval/greedy": 0.5}
    assert accuracy(engine, pool, [], 4, 7, seed=5) == {}


# Going on, and stopping


def test_trap_10__restored_rollouts_go_on_exactly():
    """The cursor, the returned prompts, the epoch and the pass rate; a state is a copy."""
    one, other = rollouts_of(thirds, data=31), rollouts_of(thirds, data=31)
    for step in range(1, 5):
        one.collect(step, nothing)
    one.stream.put_back(one.stream.take(2))
    state, text = one.state(), repr(one.state())
    other.restore(state)
    one.engine.calls.clear()
    for step in range(5, 30):
        assert numbers(one.collect(step, nothing)) == numbers(other.collect(step, nothing))
        assert untimed(one.metrics) == untimed(other.metrics)
    assert one.engine.calls == other.engine.calls
    assert one.state() == other.state()
    assert repr(state) == text
    assert state["stream"]["returned"]


@pytest.mark.parametrize("calls", [1, 2, 7])
def test_collect__check_may_interrupt(calls: int):
    """Before anything is drawn too; what was begun can be begun again."""
    left = [calls]

    def check() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    rollouts, again = rollouts_of(thirds, wanted=8), rollouts_of(thirds, wanted=8)
    state = rollouts.state()
    with pytest.raises(KeyboardInterrupt):
        rollouts.collect(1, check)
    assert bool(rollouts.engine.calls) == (calls > 1)
    rollouts.restore(state)
    assert numbers(rollouts.collect(1, nothing)) == numbers(again.collect(1, nothing))
    assert rollouts.rollouts == again.rollouts


# Helpers


def test_with_verdicts__puts_every_verdict_with_its_response():
    engine, (prompt,) = FakeEngine(version=7), prompts(1)
    (group,) = engine.generate([prompt], Sampling(4, 8), 0)
    texts = [r.text for r in group.responses]
    judged = with_verdicts(group, Script(lambda i: (1.0, 0.0, 0.5, None)).submit(prompt, texts))
    assert [r.outcome for r in judged.responses] == [1.0, 0.0, 0.5, None]
    assert [r.reason for r in judged.responses] == ["right", "wrong", "right", "wrong"]
    assert [(r.token_ids, r.text, r.logprobs) for r in judged.responses] == [
        (r.token_ids, r.text, r.logprobs) for r in group.responses
    ]
    assert (judged.prompt, judged.policy_version) == (prompt, 7)
    with pytest.raises(ValueError):
        with_verdicts(group, futures([Verdict(1.0, "right")] * 3))  # one is missing


def test_derive_seed__depends_on_every_part_and_on_nothing_else():
    parts = [(0, 1, 2), (0, 1, 3), (0, 2, 1), (1, 1, 2), (0, 12), (0, "1", 22)]
    seeds = [derive_seed(*one) for one in parts]
    assert len(set(seeds)) == len(seeds)
    assert derive_seed(0, 1, 2) == seeds[0] == 989396449473754069
    assert all(0 <= seed < 2**62 for seed in seeds)


# The stream


@property_test
@given(st.integers(1, 12), st.integers(0, 3), st.lists(st.integers(0, 9), max_size=12))
def test_prompt_stream__every_epoch_is_a_permutation_however_it_is_taken(
    size: int, seed: int, counts: list[int]
):
    stream = PromptStream(prompts(size), seed)
    taken = [n for count in counts for n in numbers(stream.take(count))]
    assert len(taken) == sum(counts)
    for start in range(0, len(taken), size):
        epoch = taken[start : start + size]
        assert len(set(epoch)) == len(epoch)


def test_prompt_stream__order_depends_on_the_seed_and_the_epoch():
    streams = [PromptStream(prompts(20), seed) for seed in (0, 1, 0)]
    orders = [[tuple(numbers(stream.take(20))) for _ in range(3)] for stream in streams]
    assert len({*orders[0], *orders[1], tuple(range(20))}) == 7
    assert orders[2] == orders[0]
    stream = PromptStream(prompts(50), 0)
    firsts = [numbers(stream.take(50))[0] for _ in range(20)]
    assert sum(a == b for a, b in pairwise(firsts)) <= 3


def test_prompt_stream__what_is_put_back_comes_first_in_its_order_the_latest_before_the_earlier():
    stream, other = PromptStream(prompts(10), 0), PromptStream(prompts(10), 0)
    a, b, c, d, *rest = other.take(18)
    assert stream.take(4) == [a, b, c, d]
    stream.put_back([a, b])
    stream.put_back([c, d])
    stream.put_back([])
    assert stream.take(3) == [c, d, a]
    assert stream.take(15) == [b, *rest]


Moves = list[tuple[int, int]]
moves = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=8)


@property_test
@given(st.integers(1, 9), moves, moves)
def test_trap_10__a_restored_stream_goes_on_exactly(size: int, before: Moves, after: Moves):
    """(take, put so many of them back), before and after the checkpoint, which is a snapshot that goes through JSON."""

    def go(stream: PromptStream, steps: Moves) -> list[int]:
        seen = []
        for count, back in steps:
            taken = stream.take(count)
            seen += numbers(taken)
            stream.put_back(taken[:back])
        return seen

    straight, resumed = PromptStream(prompts(size), 3), PromptStream(prompts(size), 3)
    go(straight, before)
    state = straight.state()
    kept = json.dumps(state)
    go(resumed, [(4, 2)])  # whatever it did is forgotten
    resumed.restore(state)
    after = [*after, (9, 3)]
    assert go(resumed, after) == go(straight, after)
    assert resumed.state() == straight.state()
    assert json.dumps(state) == kept
    resumed.restore(json.loads(kept))
    assert resumed.state() == state


def test_trap_10__a_checkpoint_in_the_middle_of_returned_prompts_keeps_them():
    stream, resumed = PromptStream(prompts(6), 1), PromptStream(prompts(6), 1)
    taken = stream.take(5)
    stream.put_back(taken[1:4])
    assert stream.take(1) == taken[1:2]
    resumed.restore(stream.state())
    assert resumed.take(2) == taken[2:4]
    assert resumed.take(9) == stream.take(11)[2:]


@pytest.mark.parametrize("size", [5, 7])
def test_prompt_stream__refuses_data_of_another_size(size: int):
    state = PromptStream(prompts(6), 1).state()
    with pytest.raises(ValueError, match=f"6 prompts, the data now has {size}"):
        PromptStream(prompts(size), 1).restore(state)


def test_prompt_stream__of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one prompt"):
        PromptStream([], 0)
