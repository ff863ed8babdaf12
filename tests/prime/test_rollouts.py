"""Collecting a batch of groups with an engine and a verifier that do as they are told."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import pytest

from openprime.config import FilterConfig, RolloutConfig
from openprime.prime.rollouts import CannotFillError, Collector, derive_seed
from openprime.prime.stream import PromptStream
from openprime.types import Group, Prompt, Response, Sampling, Verdict
from openprime.verifiers.pool import with_verdicts

Outcomes = tuple[float | None, ...]
GOOD, HARD, EASY = (1.0, 0.0, 1.0, 0.0), (0.0,) * 4, (1.0,) * 4


def prompts(count: int) -> list[Prompt]:
    """Numbered prompts."""
    return [Prompt(f"p:{i}", (i,), f"prompt {i}", str(i)) for i in range(count)]


@dataclass
class FakeEngine:
    """Answers at once; response k of a prompt is the text "k". Remembers every call."""

    version: int = 0
    truncated: Callable[[Prompt, int], bool] = lambda prompt, k: False
    calls: list[tuple[list[str], Sampling, int]] = field(default_factory=list)

    def generate(
        self,
        prompts: list[Prompt],
        sampling: Sampling,
        seed: int,
        check: Callable[[], None] | None = None,
        finished: Callable[[Group], None] | None = None,
        first: int = 0,
    ) -> list[Group]:
        """The groups, in the prompts' order."""
        self.calls.append(([prompt.id for prompt in prompts], sampling, seed))
        groups = []
        for prompt in prompts:
            made = [
                Response((k, 9), (-1.0, -0.5), str(k), self.truncated(prompt, k))
                for k in range(sampling.responses)
            ]
            groups.append(Group(prompt, tuple(made), self.version))
            if check is not None:
                check()
        for group in reversed(groups):  # the last one ends first
            if finished is not None:
                finished(group)
        return groups

    @property
    def drawn(self) -> list[str]:
        """Ids of all prompts so far, in the order of sampling."""
        return [name for names, _, _ in self.calls for name in names]


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


def collector(
    outcomes: Callable[[int], Outcomes],
    wanted: int = 4,
    data: int = 100,
    engine: FakeEngine | None = None,
    low: float = 0.2,
    high: float = 0.8,
    max_draws: float = 10.0,
    **rollout: object,
) -> Collector:
    """A collector of groups of four."""
    settings = RolloutConfig.model_validate({"prompts": wanted, "responses": 4} | rollout)
    bounds = FilterConfig(low=low, high=high, max_draws=max_draws)
    return Collector(
        engine or FakeEngine(),  # pyright: ignore[reportArgumentType]
        PromptStream(prompts(data), seed=3),
        Script(outcomes),  # pyright: ignore[reportArgumentType]
        settings,
        bounds,
        seed=5,
    )


def nothing() -> None:
    """A check that never interrupts."""


def thirds(i: int) -> Outcomes:
    """Every third prompt is worth keeping, the others are too hard or too easy."""
    return (GOOD, HARD, EASY)[i % 3]


def names(groups: list[Group]) -> list[str]:
    """The prompts' ids."""
    return [group.prompt.id for group in groups]


# Filling


@pytest.mark.parametrize("wanted", [1, 3, 8])
def test_a_batch_is_exactly_the_prompts_asked_for_all_within_the_bounds(wanted: int):
    collect = collector(thirds, wanted=wanted)
    for step in range(1, 8):
        groups = collect.collect(step, nothing)
        assert len(groups) == wanted
        assert all(0.2 <= group.accuracy <= 0.8 for group in groups)
        assert all(len(group.responses) == 4 for group in groups)


def test_trap_06_a_short_batch_is_refilled_and_never_padded_with_failed_groups():
    """Nine of ten draws fail; a batch is still made of groups that passed, each drawn prompt at most once."""
    collect = collector(lambda i: GOOD if i % 10 == 0 else (HARD, EASY)[i % 2], wanted=4, max_draws=25)
    groups = collect.collect(1, nothing)
    assert len(groups) == 4
    assert all(int(group.prompt.id.removeprefix("p:")) % 10 == 0 for group in groups)
    assert len(set(names(groups))) == 4
    assert [r.outcome for group in groups for r in group.responses] == [*GOOD] * 4
    assert collect.metrics["rollout/draws"] > 1


def test_groups_come_in_the_order_of_the_stream():
    collect = collector(thirds)
    groups = collect.collect(1, nothing)
    engine: FakeEngine = collect.engine  # pyright: ignore[reportAssignmentType]
    passing = [name for name in engine.drawn if int(name.removeprefix("p:")) % 3 == 0]
    assert names(groups) == passing[:4]


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
def test_the_bounds_of_the_filter(low: float, high: float, kept: set[float]):
    def outcomes(i: int) -> Outcomes:
        return (1.0,) * (i % 5) + (0.0,) * (4 - i % 5)

    collect = collector(outcomes, wanted=20, low=low, high=high)
    assert {group.accuracy for group in collect.collect(1, nothing)} == kept


def test_soft_outcomes_count_by_their_mean():
    collect = collector(lambda i: (0.3, 0.1, 0.2, 0.4) if i % 2 else (0.1, 0.2, 0.1, 0.1))
    groups = collect.collect(1, nothing)
    assert [group.accuracy for group in groups] == [pytest.approx(0.25)] * 4


# Refilling


def test_the_first_draw_is_the_batch_and_a_refill_is_what_is_missing():
    """All pass: one draw. None of a draw passes: the next asks for more, by the pass rate seen lately."""
    collect = collector(lambda i: GOOD, wanted=6)
    collect.collect(1, nothing)
    engine: FakeEngine = collect.engine  # pyright: ignore[reportAssignmentType]
    assert [len(call[0]) for call in engine.calls] == [6]
    assert collect.metrics["rollout/draws"] == 1
    assert collect.metrics["rollout/passed"] == 1


def test_refills_are_sized_by_the_pass_rate():
    collect = collector(thirds, wanted=30, data=90)
    engine: FakeEngine = collect.engine  # pyright: ignore[reportAssignmentType]
    rate, missing, place = 1.0, 30, 0
    collect.collect(1, nothing)
    for drawn, _, _ in engine.calls:
        assert len(drawn) == math.ceil(missing / max(rate, 0.1))
        passed = sum(int(name.removeprefix("p:")) % 3 == 0 for name in drawn)
        rate = 0.8 * rate + 0.2 * passed / len(drawn)
        missing -= passed
        place += len(drawn)
    assert missing <= 0
    assert collect.pass_rate == pytest.approx(rate)
    assert collect.metrics["rollout/draws"] == len(engine.calls) > 1


def test_a_run_that_knows_its_pass_rate_draws_about_enough_at_once():
    collect = collector(thirds, wanted=30, data=90)
    for step in range(1, 20):
        collect.collect(step, nothing)
    assert collect.metrics["rollout/draws"] <= 2
    assert collect.pass_rate == pytest.approx(1 / 3, abs=0.1)


def test_every_draw_has_a_seed_of_its_own():
    collect = collector(thirds)
    for step in range(1, 6):
        collect.collect(step, nothing)
    engine: FakeEngine = collect.engine  # pyright: ignore[reportAssignmentType]
    seeds = [seed for _, _, seed in engine.calls]
    assert len(set(seeds)) == len(seeds) > 5
    assert seeds[0] == derive_seed(5, 1, 0)
    assert {call[1] for call in engine.calls} == {Sampling(4, 3072, 1.0)}


# What is left over


def test_surplus_prompts_return_to_the_stream_and_are_drawn_next():
    collect = collector(lambda i: GOOD, wanted=3)
    collect.pass_rate = 0.3  # so that it draws ten and all pass
    engine: FakeEngine = collect.engine  # pyright: ignore[reportAssignmentType]
    first = collect.collect(1, nothing)
    drawn = engine.drawn
    assert len(drawn) == 10
    assert names(first) == drawn[:3]
    assert names(collect.collect(2, nothing)) == drawn[3:6]
    assert names(collect.collect(3, nothing)) == drawn[6:9]


def test_failed_prompts_do_not_return():
    """Only want of room sends a prompt back; one that failed comes again an epoch later."""
    collect = collector(lambda i: GOOD if i < 50 else HARD, wanted=5, data=100, max_draws=1000)
    engine: FakeEngine = collect.engine  # pyright: ignore[reportAssignmentType]
    trained: list[str] = []
    while len(trained) < 50:
        trained += names(collect.collect(len(trained), nothing))
    assert sorted(trained) == sorted(f"p:{i}" for i in range(50))  # every good one once in an epoch
    hard = Counter(name for name in engine.drawn if int(name.removeprefix("p:")) >= 50)
    assert max(hard.values()) <= 2


def test_trap_08_all_groups_of_a_batch_are_from_one_policy_version():
    """Surplus groups are sampled anew by the next policy: nothing of an older version is carried over."""
    engine = FakeEngine()
    collect = collector(thirds, wanted=5, engine=engine)
    for step in range(1, 12):
        engine.version = step * 10
        collect.pass_rate = 0.15  # draw far too many: a surplus every step
        before = len(engine.calls)
        groups = collect.collect(step, nothing)
        assert {group.policy_version for group in groups} == {step * 10}
        now = [name for names, _, _ in engine.calls[before:] for name in names]
        assert set(names(groups)) <= set(now)  # each was sampled in this very step


# Responses without an outcome


@pytest.mark.parametrize("choice", ["drop", "keep"])
def test_truncated_responses_are_dropped_or_judged_as_they_are(choice: str):
    engine = FakeEngine(truncated=lambda prompt, k: k in (0, 1))
    collect = collector(lambda i: (0.0, 0.0, 1.0, 0.0), engine=engine, truncated=choice)
    groups = collect.collect(1, nothing)
    if choice == "keep":
        assert [r.text for r in groups[0].responses] == ["0", "1", "2", "3"]
        assert groups[0].accuracy == 0.25
        assert collect.metrics["rollout/accuracy"] == 0.25
    else:
        assert [r.text for r in groups[0].responses] == ["2", "3"]
        assert [r.outcome for r in groups[0].responses] == [1.0, 0.0]
        assert groups[0].accuracy == 0.5  # and this is what the filter looks at


def test_the_filter_looks_at_what_is_left_after_dropping():
    engine = FakeEngine(truncated=lambda prompt, k: k == 0)
    collect = collector(
        lambda i: (1.0, 0.0, 0.0, 0.0) if i % 2 else (1.0, 1.0, 0.0, 0.0), engine=engine, truncated="drop"
    )
    groups = collect.collect(1, nothing)
    assert {int(name.removeprefix("p:")) % 2 for name in names(groups)} == {0}


@pytest.mark.parametrize("choice", ["drop", "keep"])
def test_what_was_sampled_is_measured_whole_even_when_it_is_dropped(choice: str):
    """How much is cut off is what one wants to know when it is dropped; its tokens were paid for."""
    engine = FakeEngine(truncated=lambda prompt, k: k == 0)
    collect = collector(lambda i: GOOD, engine=engine, truncated=choice)
    collect.collect(1, nothing)
    assert collect.metrics["rollout/truncated"] == 0.25
    assert collect.metrics["rollout/tokens"] == 4 * 4 * 2


@pytest.mark.parametrize(
    "outcomes", [(1.0, None, None, None), (None,) * 4], ids=["one outcome", "no outcome"]
)
def test_groups_with_fewer_than_two_outcomes_never_pass(outcomes: Outcomes):
    collect = collector(lambda i: GOOD if i % 2 else outcomes, low=0.0, high=1.0)
    assert all(int(name.removeprefix("p:")) % 2 for name in names(collect.collect(1, nothing)))


def test_dropping_to_fewer_than_two_never_passes():
    engine = FakeEngine(truncated=lambda prompt, k: prompt.token_ids[0] % 2 == 0 and k > 0)
    collect = collector(lambda i: GOOD, low=0.0, high=1.0, engine=engine, truncated="drop")
    assert all(int(name.removeprefix("p:")) % 2 for name in names(collect.collect(1, nothing)))


def test_no_verdict_is_left_out_of_the_mean():
    collect = collector(lambda i: (1.0, 0.0, None, None))
    (group, *_) = collect.collect(1, nothing)
    assert group.accuracy == 0.5
    assert len(group.responses) == 2  # those with an outcome
    assert collect.metrics["verify/no_verdict"] == 0.5
    assert collect.metrics["rollout/accuracy"] == 0.5


# Data that cannot fill a batch


@pytest.mark.parametrize(
    ("outcomes", "words"),
    [
        (HARD, ("too hard", "mean accuracy 0.000", "40 groups were below", "0 above")),
        (EASY, ("too easy", "mean accuracy 1.000", "0 groups were below", "40 above")),
        ((0.1,) * 4, ("too hard", "mean accuracy 0.100")),
    ],
)
def test_data_too_hard_or_too_easy_are_an_error_that_says_what_to_do(outcomes: Outcomes, words: tuple):
    collect = collector(lambda i: outcomes)
    with pytest.raises(CannotFillError) as error:
        collect.collect(1, nothing)
    message = str(error.value)
    assert "40 prompts were drawn and 0 of the 4 groups wanted passed" in message
    assert "[0.2, 0.8]" in message
    for word in (*words, "filter.low", "filter.high", "rollout.prompts", "filter.max_draws"):
        assert word in message


@pytest.mark.parametrize(("wanted", "max_draws", "most"), [(4, 10, 40), (4, 1, 4), (3, 2.5, 7), (1, 1, 1)])
def test_it_gives_up_after_the_draws_allowed(wanted: int, max_draws: float, most: int):
    collect = collector(lambda i: HARD, wanted=wanted, max_draws=max_draws, data=7)
    with pytest.raises(CannotFillError, match=f"^{most} prompts were drawn"):
        collect.collect(1, nothing)
    engine: FakeEngine = collect.engine  # pyright: ignore[reportAssignmentType]
    assert len(engine.drawn) == most


def test_filling_at_the_last_draw_allowed_is_no_error():
    collect = collector(lambda i: GOOD, wanted=4, max_draws=1)
    assert len(collect.collect(1, nothing)) == 4


def test_partly_filled_is_an_error_too():
    seen: Counter[int] = Counter()

    def once(i: int) -> Outcomes:
        seen[i] += 1
        return GOOD if i == 0 and seen[i] <= 4 else HARD  # it is asked for each of the four responses at once

    collect = collector(once, wanted=4, data=10, max_draws=3)
    with pytest.raises(
        CannotFillError, match=r"12 prompts were drawn and [12] of the 4 groups wanted passed"
    ):
        collect.collect(1, nothing)


@pytest.mark.parametrize("outcomes", [(None,) * 4, (1.0, None, None, None)])
def test_a_verifier_without_verdicts_is_not_called_hard_data(outcomes: Outcomes):
    collect = collector(lambda i: outcomes)
    with pytest.raises(CannotFillError) as error:
        collect.collect(1, nothing)
    message = str(error.value)
    assert "too few responses with an outcome in 40" in message
    assert "0 groups were below it, 0 above" in message
    assert "too hard" not in message
    assert "too easy" not in message


def test_dropped_responses_are_not_called_hard_data():
    collect = collector(lambda i: GOOD, engine=FakeEngine(truncated=lambda prompt, k: True), truncated="drop")
    with pytest.raises(CannotFillError) as error:
        collect.collect(1, nothing)
    assert "too few responses with an outcome in 40" in str(error.value)
    assert "too hard" not in str(error.value)


# Counting


def test_rollouts_are_counted_before_the_filter():
    collect = collector(thirds)
    engine: FakeEngine = collect.engine  # pyright: ignore[reportAssignmentType]
    for step in range(1, 6):
        collect.collect(step, nothing)
        assert collect.rollouts == len(engine.drawn) * 4
        assert collect.metrics["rollout/rollouts"] == collect.rollouts


def test_measures_are_of_everything_drawn():
    collect = collector(thirds, wanted=30, data=90, max_draws=3)
    collect.collect(1, nothing)
    engine: FakeEngine = collect.engine  # pyright: ignore[reportAssignmentType]
    drawn = [int(name.removeprefix("p:")) for name in engine.drawn]
    outcomes = [outcome for i in drawn for outcome in thirds(i) if outcome is not None]
    measured = collect.metrics
    assert measured["rollout/accuracy"] == pytest.approx(sum(outcomes) / len(outcomes))
    assert measured["rollout/passed"] == pytest.approx(sum(i % 3 == 0 for i in drawn) / len(drawn))
    assert measured["rollout/tokens"] == len(drawn) * 4 * 2
    assert measured["rollout/response_tokens"] == 2
    assert measured["rollout/entropy"] == 0.75  # the mean of -log p
    assert measured["verify/no_verdict"] == 0
    assert measured["time/rollout"] >= 0
    assert measured["time/verify"] >= 0


# Going on, and stopping


def test_a_restored_collector_goes_on_exactly():
    """The cursor, the returned prompts, the epoch and the pass rate (trap 10)."""
    one = collector(thirds, data=31)
    for step in range(1, 5):
        one.collect(step, nothing)
    one.stream.put_back(one.stream.take(2))
    state = one.state()
    other = collector(thirds, data=31)
    other.restore(state)
    ours: FakeEngine = one.engine  # pyright: ignore[reportAssignmentType]
    ours.calls.clear()
    for step in range(5, 30):
        assert names(one.collect(step, nothing)) == names(other.collect(step, nothing))
        assert {k: v for k, v in one.metrics.items() if "time/" not in k} == {
            k: v for k, v in other.metrics.items() if "time/" not in k
        }
    assert ours.calls == other.engine.calls  # pyright: ignore[reportAttributeAccessIssue]
    assert one.state() == other.state()


def test_a_state_is_a_copy():
    collect = collector(thirds, wanted=3)
    collect.pass_rate = 0.1
    collect.collect(1, nothing)
    state, text = collect.state(), repr(collect.state())
    assert state["stream"]["returned"]
    for step in range(2, 5):
        collect.collect(step, nothing)
    assert repr(state) == text


@pytest.mark.parametrize("calls", [1, 2, 7])
def test_check_may_interrupt(calls: int):
    class Stop(Exception):
        pass

    left = [calls]

    def check() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Stop

    collect = collector(thirds, wanted=8)
    state = collect.state()
    with pytest.raises(Stop):
        collect.collect(1, check)
    collect.restore(state)  # and what was begun can be begun again
    again = collector(thirds, wanted=8)
    assert names(collect.collect(1, nothing)) == names(again.collect(1, nothing))
    assert collect.rollouts == again.rollouts


def test_check_is_called_before_anything_is_drawn():
    def check() -> None:
        raise KeyboardInterrupt

    collect = collector(thirds)
    with pytest.raises(KeyboardInterrupt):
        collect.collect(1, check)
    assert collect.engine.calls == []  # pyright: ignore[reportAttributeAccessIssue]


# Helpers


def test_judge_puts_every_verdict_with_its_response():
    engine, (prompt,) = FakeEngine(version=7), prompts(1)
    (group,) = engine.generate([prompt], Sampling(4, 8), 0)
    texts = [r.text for r in group.responses]
    judged = with_verdicts(group, Script(lambda i: (1.0, 0.0, 0.5, None)).submit(group.prompt, texts))
    assert [r.outcome for r in judged.responses] == [1.0, 0.0, 0.5, None]
    assert [r.reason for r in judged.responses] == ["right", "wrong", "right", "wrong"]
    assert [(r.token_ids, r.text, r.logprobs) for r in judged.responses] == [
        (r.token_ids, r.text, r.logprobs) for r in group.responses
    ]
    assert (judged.prompt, judged.policy_version) == (prompt, 7)


def test_a_verifier_must_judge_every_response():
    engine, (prompt,) = FakeEngine(), prompts(1)
    (group,) = engine.generate([prompt], Sampling(4, 8), 0)
    with pytest.raises(ValueError):
        with_verdicts(group, futures([Verdict(1.0, "right")] * 3))


def test_seeds_depend_on_every_part_and_on_nothing_else():
    seeds = [
        derive_seed(*parts) for parts in [(0, 1, 2), (0, 1, 3), (0, 2, 1), (1, 1, 2), (0, 12), (0, "1", 22)]
    ]
    assert len(set(seeds)) == len(seeds)
    assert derive_seed(0, 1, 2) == seeds[0] == 989396449473754069
    assert all(0 <= seed < 2**62 for seed in seeds)
