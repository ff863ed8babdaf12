"""Rollouts: prompts to groups of judged responses that pass the filter (PRIME algorithm 1, lines 3 to 5)."""

import math
import random
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any

from openprime.config import FilterConfig, RolloutConfig
from openprime.data.collate import collate
from openprime.prime.measures import paid_metrics, repetition
from openprime.ranks import apart, first, gather, on_first, share, together, world
from openprime.types import Batch, Engine, Group, Metrics, Prompt, Response, Sampling, UserError, Verdict
from openprime.verifiers.pool import Pool, with_verdicts

SMALLEST_PASS_RATE = 0.1
"""A draw never assumes that fewer groups pass the filter."""

REASONS = ("no_answer", "timeout", "rejected", "crash")
"""Reasons of a verdict beside right and wrong."""


class CannotFillError(UserError):
    """The data are too easy or too hard to fill a batch."""


@dataclass(slots=True)
class Rollouts:
    """Keeps the training batch full of groups that the filter lets pass."""

    engine: Engine
    stream: "PromptStream"
    pool: Pool
    rollout: RolloutConfig
    filter: FilterConfig
    seed: int
    step_ends: frozenset[int] = frozenset()
    """Tokens that end a step of a response."""
    pad_token: int = 0
    pass_rate: float = 1.0
    """Share of drawn groups that passed lately: how many prompts to draw."""
    rollouts: int = 0
    """Responses sampled since the start, before the filter."""
    metrics: Metrics = field(default_factory=dict)
    """Of the last call of `collect`."""

    def collect(self, step: int, check: Callable[[], None]) -> list[Group]:
        """`rollout.prompts` groups of the present policy that pass the filter.

        Draws prompts until the batch is full. Surplus groups go with this policy version; their
        prompts, like all that are not trained on only for want of room, return to the stream.
        `check` is called between batches of sequences and may raise to interrupt. Raises CannotFillError
        after `filter.max_draws` times the batch's prompts.
        """
        wanted, kept, drawn = self.rollout.prompts, [], []
        limit = int(self.filter.max_draws * wanted)
        seconds = {"rollout": 0.0, "verify": 0.0}
        k, longest = self.rollout.responses, self.rollout.max_response_tokens
        sampling = Sampling(k, longest, self.rollout.temperature)
        draws = 0
        while len(kept) < wanted:
            together(check)
            if len(drawn) >= limit:
                raise CannotFillError(self._why(drawn, kept))
            rate = max(self.pass_rate, SMALLEST_PASS_RATE)
            enough = prompts_for(wanted - len(kept), rate, self.filter.margin)
            prompts = self.stream.take(min(math.ceil(enough), limit - len(drawn)))
            seed = derive_seed(self.seed, step, draws)
            groups = sample_and_verify(self.engine, self.pool, prompts, sampling, seed, check, seconds)
            passed = [group for group in map(self._usable, groups) if self._passes(group)]
            self.pass_rate = 0.8 * self.pass_rate + 0.2 * len(passed) / len(groups)
            drawn += groups
            kept += passed
            draws += 1
        self.stream.put_back([group.prompt for group in kept[wanted:]])
        self.rollouts += len(drawn) * k
        self.metrics = self._measure(drawn, len(kept), draws, seconds)
        return kept[:wanted]

    def batch(self, groups: list[Group]) -> Batch:
        """The groups as one block for the trainer."""
        return collate(groups, self.step_ends, self.pad_token)

    def state(self) -> dict[str, Any]:
        """State for a checkpoint (trap 10)."""
        return {"stream": self.stream.state(), "pass_rate": self.pass_rate, "rollouts": self.rollouts}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.stream.restore(state["stream"])
        self.pass_rate, self.rollouts = state["pass_rate"], state["rollouts"]

    def close(self) -> None:
        """Nothing is under way between calls."""

    def _usable(self, group: Group) -> Group:
        """The responses to learn from: with an outcome, and if so asked not truncated."""
        drop = self.rollout.truncated == "drop"
        kept = tuple(r for r in group.responses if r.outcome is not None and not (drop and r.truncated))
        return group if len(kept) == len(group.responses) else replace(group, responses=kept)

    def _passes(self, group: Group) -> bool:
        """A group needs two outcomes to be compared, and a mean outcome within the bounds."""
        return len(group.responses) >= 2 and self.filter.low <= group.accuracy <= self.filter.high

    def _measure(self, drawn: list[Group], passed: int, draws: int, seconds: dict[str, float]) -> Metrics:
        responses = [r for group in drawn for r in group.responses]
        tokens = sum(len(r.token_ids) for r in responses)
        outcomes = [r.outcome for r in responses if r.outcome is not None]
        return (
            {
                "rollout/accuracy": sum(outcomes) / len(outcomes) if outcomes else math.nan,
                "rollout/passed": passed / len(drawn),
                "rollout/draws": draws,
                "rollout/rollouts": self.rollouts,
                "rollout/tokens": tokens,
                "rollout/tokens_per_second": tokens / seconds["rollout"],
                "rollout/response_tokens": tokens / max(1, len(responses)),
                "rollout/truncated": sum(r.truncated for r in responses) / max(1, len(responses)),
                "rollout/entropy": -sum(sum(r.logprobs) for r in responses) / max(1, tokens),
                "rollout/repetition": sum(repetition(r.token_ids) for r in responses)
                / max(1, len(responses)),
            }
            | {f"time/{phase}": value for phase, value in seconds.items()}
            | verify_metrics(responses)
            | paid_metrics(drawn)
            | self.pool.metrics()
        )

    def _why(self, drawn: list[Group], kept: list[Group]) -> str:
        usable = [group for group in map(self._usable, drawn) if len(group.responses) >= 2]
        low = sum(group.accuracy < self.filter.low for group in usable)
        high = sum(group.accuracy > self.filter.high for group in usable)
        mean = sum(group.accuracy for group in usable) / max(1, len(usable))
        few = len(drawn) - len(usable)
        if few > low + high:
            advice = (
                "the verifier gives no outcome, or responses are truncated: raise rollout.max_response_tokens"
            )
        elif low >= high:
            advice = "the data are too hard: start from a better model, take easier prompts, raise rollout.responses"
        else:
            advice = "the data are too easy: take harder prompts"
        if sum(paid_metrics(drawn).values()) > 0.1:
            advice += ", unless the verifier pays for empty or constant answers: try it with openprime verify"
        return (
            f"{len(drawn)} prompts were drawn and {len(kept)} of the {self.rollout.prompts} groups wanted passed "
            f"the filter [{self.filter.low}, {self.filter.high}]: {low} groups were below it, {high} above, mean "
            f"accuracy {mean:.3f}, too few responses with an outcome in {few}. Likely {advice}; or widen "
            "filter.low and filter.high, lower rollout.prompts, or raise filter.max_draws"
        )


def prompts_for(groups: int, pass_rate: float, margin: float) -> float:
    """Prompts to draw for so many groups that pass: their mean, and `margin` standard deviations more.

    Of n prompts n p groups pass on average, with a variance of n p (1 - p).
    """
    return (groups + margin * math.sqrt(groups * (1 - pass_rate))) / pass_rate


Answer = tuple[tuple[Response, ...], int]
"""A group on its way to other ranks: without its prompt, which they have, and whose tests may be large."""


def answers_of(groups: list[Group]) -> list[Answer]:
    """The responses of each group, and the version of the policy that they are from."""
    return [(group.responses, group.policy_version) for group in groups]


def sample_and_verify(
    engine: Engine,
    pool: Pool,
    prompts: list[Prompt],
    sampling: Sampling,
    seed: int,
    check: Callable[[], None] | None = None,
    seconds: dict[str, float] | None = None,
) -> list[Group]:
    """Groups of judged responses, in the order of the prompts; each is judged while others are sampled.

    The prompts are the same on every rank; each samples and judges its share, and all get all groups. With a remote
    engine the first rank does all of it: a group is judged where it arrives, while others are sampled.
    Adds to `seconds` those of `rollout` and, what is left of it when sampling has ended, of `verify`.
    """
    if world() > 1 and engine.remote:

        def alone() -> tuple[list[Answer], dict[str, float] | None]:
            with apart():
                groups = sample_and_verify(engine, pool, prompts, sampling, seed, check, seconds)
            return answers_of(groups), seconds

        answers, spent = on_first(alone)
        if seconds is not None and spent is not None:
            seconds |= spent
        return [Group(prompt, *answer) for prompt, answer in zip(prompts, answers, strict=True)]

    verdicts: dict[int, list[Future[Verdict]]] = {}

    def verify(group: Group) -> None:
        verdicts[id(group)] = pool.submit(group.prompt, [r.text for r in group.responses])

    own = share(len(prompts))
    begun = time.perf_counter()
    sampled = together(
        lambda: engine.generate(prompts[own.start : own.stop], sampling, seed, check, verify, own.start)
    )
    ended = time.perf_counter()
    judged = together(lambda: [with_verdicts(group, verdicts[id(group)]) for group in sampled])
    groups = judged
    if world() > 1:
        answers = [answer for part in gather(answers_of(judged)) for answer in part]
        groups = [Group(prompt, *answer) for prompt, answer in zip(prompts, answers, strict=True)]
    together(lambda: pool.require_verdicts(groups))
    if seconds is not None:
        seconds["rollout"] += ended - begun
        seconds["verify"] += time.perf_counter() - ended
    return groups


def verify_metrics(responses: list[Response]) -> dict[str, float]:
    """Shares of responses by what their verification came to, and its mean seconds."""
    count = max(1, len(responses))
    metrics = {f"verify/{reason}": sum(r.reason == reason for r in responses) / count for reason in REASONS}
    metrics["verify/no_verdict"] = sum(r.outcome is None for r in responses) / count
    metrics["verify/seconds"] = sum(r.verify_seconds for r in responses) / count
    return metrics


def derive_seed(*parts: int | str) -> int:
    """A seed for one purpose, such as (run's seed, step, draw)."""
    return random.Random("-".join(map(str, parts))).getrandbits(62)


def accuracy(
    engine: Engine,
    pool: Pool,
    prompts: list[Prompt],
    samples: int,
    max_tokens: int,
    seed: int,
    check: Callable[[], None] | None = None,
) -> Metrics:
    """Greedy accuracy and, with `samples`, avg@k on prompts. A response without a verdict counts as wrong."""
    if not prompts:
        return {}
    greedy = sample_and_verify(engine, pool, prompts, Sampling(1, max_tokens, 0.0), seed, check)
    metrics = {"eval/greedy": mean_outcome(greedy)}
    if samples:
        sampling = Sampling(samples, max_tokens)
        drawn = sample_and_verify(engine, pool, prompts, sampling, derive_seed(seed, "evaluate"), check)
        metrics[f"eval/avg@{samples}"] = mean_outcome(drawn)
    return metrics


def mean_outcome(groups: list[Group]) -> float:
    """Mean outcome over all responses."""
    outcomes = [r.outcome or 0.0 for group in groups for r in group.responses]
    return sum(outcomes) / len(outcomes)


class RolloutsAhead:
    """Rollouts that are collected in a thread of their own, up to `steps` steps ahead of the trainer.

    In the place of Rollouts. Groups are at most `steps` versions of the policy older than those of Rollouts would be.
    What has been collected ahead is not saved: a resumed run collects it anew. Of several ranks the first one has the
    thread, which talks to no other rank; the main threads hand on what it has collected.
    """

    def __init__(self, rollouts: Rollouts, steps: int, last: int) -> None:
        """`last`: the last step of the run."""
        self.rollouts, self.steps, self.last = rollouts, steps, last
        self.metrics: dict[str, float] = {}
        self._thread = ThreadPoolExecutor(1)
        self._coming: deque[Future[tuple[list[Group], Metrics, dict]]] = deque()
        self._next = 0
        self._state = rollouts.state()
        self._stop = False

    def collect(self, step: int, check: Callable[[], None]) -> list[Group]:
        """The groups of a step, and those of the next steps begun."""
        if first():
            if not self._coming:
                self._next = step
            while self._next <= min(step + self.steps, self.last):
                self._coming.append(self._thread.submit(self._collect, self._next))
                self._next += 1
        begun = time.perf_counter()
        while not on_first(lambda: bool(wait([self._coming[0]], timeout=0.2).done)):
            together(check)
        groups = self._handed_out()
        old = [step - 1 - group.policy_version for group in groups]
        self.metrics |= {"rollout/staleness": sum(old) / len(old), "time/wait": time.perf_counter() - begun}
        return groups

    def _handed_out(self) -> list[Group]:
        """The groups of the oldest call; its metrics and state are ours then."""
        if world() == 1:
            groups, self.metrics, self._state = self._coming.popleft().result()
            return groups
        stream = self.rollouts.stream

        def collected() -> tuple[list[int], list[Answer], Metrics, dict]:
            groups, metrics, state = self._coming.popleft().result()
            return stream.places([group.prompt for group in groups]), answers_of(groups), metrics, state

        places, answers, self.metrics, self._state = on_first(collected)
        return [Group(stream.prompts[i], *answer) for i, answer in zip(places, answers, strict=True)]

    def batch(self, groups: list[Group]) -> Batch:
        """As `Rollouts.batch`."""
        return self.rollouts.batch(groups)

    def state(self) -> dict:
        """State for a checkpoint, as of the step that was last handed out."""
        return self._state

    def restore(self, state: dict) -> None:
        """Go on from `state()`."""
        self.rollouts.restore(state)
        self._state = state

    def _collect(self, step: int) -> tuple[list[Group], Metrics, dict]:
        with apart():
            groups = self.rollouts.collect(step, self._check)
        return groups, self.rollouts.metrics, self.rollouts.state()

    def close(self) -> None:
        """End what is under way."""
        self._stop = True
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _check(self) -> None:
        if self._stop:
            raise CancelledError


class PromptStream:
    """Epochs of the data set, each in an order that depends on (seed, epoch) alone; put-back prompts come first."""

    def __init__(self, prompts: list[Prompt], seed: int) -> None:
        if not prompts:
            raise UserError("a stream needs at least one prompt")
        self.prompts, self.seed = prompts, seed
        self.epoch, self.cursor = 0, 0
        self.returned: deque[int] = deque()
        self._index = {prompt.id: i for i, prompt in enumerate(prompts)}
        self._order = self._shuffled()

    def take(self, count: int) -> list[Prompt]:
        """The next `count` prompts."""
        taken = []
        while len(taken) < count:
            if self.returned:
                taken.append(self.prompts[self.returned.popleft()])
                continue
            if self.cursor == len(self._order):
                self.epoch, self.cursor = self.epoch + 1, 0
                self._order = self._shuffled()
            taken.append(self.prompts[self._order[self.cursor]])
            self.cursor += 1
        return taken

    def put_back(self, prompts: list[Prompt]) -> None:
        """Return unused prompts; they are the next to be taken, in this order."""
        self.returned.extendleft(reversed(self.places(prompts)))

    def places(self, prompts: list[Prompt]) -> list[int]:
        """Where prompts of the data set stand in it."""
        return [self._index[prompt.id] for prompt in prompts]

    def state(self) -> dict:
        """State for a checkpoint (trap 10)."""
        return {
            "epoch": self.epoch,
            "cursor": self.cursor,
            "returned": list(self.returned),
            "size": len(self.prompts),
        }

    def restore(self, state: dict) -> None:
        """Go on from `state()`; the data must be the same."""
        if state["size"] != len(self.prompts):
            raise UserError(
                f"the checkpoint was made with {state['size']} prompts, the data now has {len(self.prompts)}: "
                "resume with the data that the run began with"
            )
        self.epoch, self.cursor, self.returned = state["epoch"], state["cursor"], deque(state["returned"])
        self._order = self._shuffled()

    def _shuffled(self) -> list[int]:
        order = list(range(len(self.prompts)))
        random.Random(f"stream-{self.seed}-{self.epoch}").shuffle(order)
        return order
