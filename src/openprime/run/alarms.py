"""Alarms: rules over the metrics of a run's steps, each with what it saw and what to do about it (docs/alarms.md).

A rule looks at the history up to the present step and nothing else, so that a resumed run says what an uninterrupted
one says. It stays silent where it lacks the metrics that it needs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from openprime.types import Metrics

WINDOW = 5
"""Steps over which rules take means: a single step is noise."""
FEWEST = 3
"""Values that a mean needs; not every step has every metric."""
QUIET = 10
"""Steps without it after which an alarm is said again."""
MASTERED = 0.8
"""Accuracy before the filter from which on little is left to learn: right and wrong are then rarely compared, samples
are alike, and few groups pass."""

History = Sequence[Metrics]
"""The metrics of the steps done, the last one last."""


class Seen(NamedTuple):
    """What a rule saw."""

    value: float
    says: str


Rule = Callable[[History], Seen | None]
"""None: nothing to say."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A rule with its name."""

    name: str
    rule: Rule
    about: str
    """The rule in words."""
    do: str
    """What to do about it."""


class Watch:
    """Looks at every step of a run, and says an alarm once, and again when it has been silent for `QUIET` steps."""

    def __init__(self, alarms: Sequence[Alarm], history: Sequence[dict[str, Any]] = ()) -> None:
        """`history`: the rows of metrics.jsonl; step 0 is only measured."""
        self.alarms, self.history = alarms, [row for row in history if row["step"]]
        self._last = {a.name: row["step"] for row in history for a in alarms if row.get(f"alarm/{a.name}")}
        """Alarm -> the last step that had it."""

    def look(self, step: int, metrics: Metrics) -> tuple[Metrics, list[dict[str, Any]]]:
        """(`alarm/NAME` of every alarm, 1 where the step has it; the events that are to be said) of finite metrics."""
        self.history.append(metrics)
        rings, events = {}, []
        for alarm in self.alarms:
            seen = alarm.rule(self.history)
            rings[f"alarm/{alarm.name}"] = float(seen is not None)
            if seen is None:
                continue
            if step - self._last.get(alarm.name, -QUIET - 1) > QUIET:
                events.append(
                    {
                        "step": step,
                        "alarm": alarm.name,
                        "value": seen.value,
                        "says": seen.says,
                        "do": alarm.do,
                    }
                )
            self._last[alarm.name] = step
        return rings, events


def mean(rows: History, name: str, fewest: int = FEWEST) -> float | None:
    """Mean of a metric over the rows that have it; None where fewer than `fewest` do."""
    values = [row[name] for row in rows if name in row]
    return sum(values) / len(values) if len(values) >= fewest else None


def mastered(rows: History) -> bool:
    """Whether little is left to learn."""
    accuracy = mean(rows, "rollout/accuracy", 1)
    return accuracy is not None and accuracy >= MASTERED


def process_without_outcome(history: History) -> Seen | None:
    """The process return rises and the accuracy does not."""
    before, now = history[-2 * WINDOW : -WINDOW], history[-WINDOW:]
    process, earlier = mean(now, "reward/process"), mean(before, "reward/process")
    accuracy, past = mean(now, "rollout/accuracy"), mean(before, "rollout/accuracy")
    std = mean(now, "reward/process_std")
    if process is None or earlier is None or accuracy is None or past is None or std is None:
        return None
    if process - earlier <= std or accuracy - past >= 0.02 or mastered(now):
        return None
    says = f"process return {earlier:.3g} -> {process:.3g}, accuracy {past:.3f} -> {accuracy:.3f}"
    return Seen(process - earlier, says)


def reward_for_length(history: History) -> Seen | None:
    """The PRM pays for length, or for brevity."""
    found = mean(history[-WINDOW:], "reward/length_correlation", WINDOW)
    if found is None or abs(found) <= 0.4:
        return None
    return Seen(found, f"rank correlation of process return with length {found:+.2f}")


def reward_for_repetition(history: History) -> Seen | None:
    """The PRM pays for repetition; that it punishes it is as it should be."""
    found = mean(history[-WINDOW:], "reward/repetition_correlation", WINDOW)
    if found is None or found <= 0.4:
        return None
    return Seen(found, f"rank correlation of process return with repetition {found:+.2f}")


def prm_at_chance(history: History) -> Seen | None:
    """The PRM does not know right from wrong. Steps count by their pairs, of which a good policy leaves few."""
    rows = [row for row in history[-2 * WINDOW :] if {"prm/pairwise_accuracy", "reward/pairs"} <= row.keys()]
    pairs = sum(row["reward/pairs"] for row in rows)
    if len(history) < 2 * WINDOW or pairs < 500 or mastered(rows[-WINDOW:]):
        return None
    found = sum(row["prm/pairwise_accuracy"] * row["reward/pairs"] for row in rows) / pairs
    return Seen(found, f"PRM pairwise accuracy {found:.3f} on {pairs:.0f} pairs") if found < 0.52 else None


def calibration_drift(history: History) -> Seen | None:
    """The PRM's probabilities get worse."""
    rise = risen(history, "prm/brier")
    if rise is None or rise[1] - rise[0] <= 0.1 or rise[1] <= 0.25:
        return None
    return Seen(rise[1], f"Brier score of the PRM {rise[0]:.3f} -> {rise[1]:.3f}")


def entropy_collapse(history: History) -> Seen | None:
    """The policy samples one response and has not learnt the task."""
    steps = [row for row in history if "rollout/entropy" in row]
    first, now = mean(steps[:FEWEST], "rollout/entropy"), mean(steps[-FEWEST:], "rollout/entropy")
    if first is None or now is None or now >= 0.1 * first or mastered(steps[-FEWEST:]):
        return None
    return Seen(now, f"entropy {first:.3g} -> {now:.3g} nats a token")


def filter_starving(history: History) -> Seen | None:
    """Most of what is sampled is thrown away, and not because the policy has learnt it."""
    found, accuracy = (mean(history[-WINDOW:], f"rollout/{what}") for what in ("passed", "accuracy"))
    if found is None or accuracy is None or found >= (0.15 if accuracy < MASTERED else 0.1):
        return None
    return Seen(found, f"{found:.0%} of the groups pass the filter, mean accuracy {accuracy:.2f}")


def truncation_rising(history: History) -> Seen | None:
    """Responses grow past the limit."""
    rise = risen(history, "rollout/truncated")
    if rise is None or rise[1] - rise[0] <= 0.1:
        return None
    return Seen(rise[1], f"truncated responses {rise[0]:.1%} -> {rise[1]:.1%}")


def sampler_mismatch(history: History, limit: float) -> Seen | None:
    """The sampler drifts from the trainer. Of stale samples the distance is that of the weights."""
    rows = history[-FEWEST:]
    found = mean(rows, "policy/mismatch_mean")
    if found is None or found <= limit / 4 or any(row.get("rollout/staleness") for row in rows):
        return None
    return Seen(found, f"sampler and trainer are {found:.3g} nats a token apart, the limit is {limit:g}")


def verifier_timeouts(history: History) -> Seen | None:
    """The verifier runs out of time more and more."""
    rise = risen(history, "verify/timeout")
    if rise is None or rise[1] - rise[0] <= 0.05:
        return None
    return Seen(rise[1], f"verifier time-outs {rise[0]:.1%} -> {rise[1]:.1%}")


def paid_for_nothing(history: History) -> Seen | None:
    """What answers no question is right. At once: no sound verifier does so."""
    rows = history[-FEWEST:]
    empty, constant = (mean(rows, f"verify/paid_{what}", 1) for what in ("empty", "constant"))
    if empty is None or constant is None or empty + constant <= 0.1:
        return None
    says = f"of the right responses {empty:.0%} are empty, {constant:.0%} also right for other references"
    return Seen(empty + constant, says)


def risen(history: History, name: str) -> tuple[float, float] | None:
    """(lowest mean of a window so far, that of the last one) of a metric; None before the first window is full."""
    values = [row[name] for row in history if name in row]
    means = [sum(values[end - WINDOW : end]) / WINDOW for end in range(WINDOW, len(values) + 1)]
    return (min(means), means[-1]) if means else None


def alarms(mismatch_limit: float) -> tuple[Alarm, ...]:
    """The alarms of `openprime rl`; `mismatch_limit` in nats a token, as `policy.mismatch_limit`."""
    return (
        Alarm(
            "process-without-outcome",
            process_without_outcome,
            "mean process return of 5 steps more than one standard deviation of a step's responses above that of the 5 "
            "steps before, while accuracy before the filter rose by less than .02 and is below .8",
            "the policy may be gaming the PRM: read the responses with the largest returns (samples.jsonl), lower "
            "advantage.process_weight or set advantage.skill_gate, train the PRM faster (prm.lr)",
        ),
        Alarm(
            "reward-for-length",
            reward_for_length,
            "rank correlation (Kendall's tau-a) of process return and length among responses to one prompt that are "
            "alike right or wrong, mean of 5 steps, above .4 or below -.4",
            "the PRM pays for length, or for brevity, not for being right: watch rollout/response_tokens, lower "
            "advantage.process_weight, or use prm.loss=prefix, whose scores are means",
        ),
        Alarm(
            "reward-for-repetition",
            reward_for_repetition,
            "the same rank correlation of process return and repetition (share of runs of 4 tokens that came before), "
            "mean of 5 steps, above .4",
            "the PRM pays for loops: read the longest responses, lower advantage.process_weight, train the PRM faster "
            "(prm.lr)",
        ),
        Alarm(
            "prm-at-chance",
            prm_at_chance,
            "PRM pairwise accuracy below .52 over the pairs of 10 steps, at least 500, with accuracy below .8 in the "
            "last 5",
            "process rewards are noise: see whether outcomes can be trusted, raise prm.lr or prm.beta, start from a "
            "trained PRM (prm.model), or set advantage.skill_gate until it has learnt",
        ),
        Alarm(
            "calibration-drift",
            calibration_drift,
            "Brier score of the PRM, mean of 5 steps, more than .1 above its lowest and above .25, that of always "
            "saying one half",
            "the PRM's probabilities no longer follow outcomes: lower prm.lr or prm.beta, see whether the verifier or "
            "the data have changed; with prm.loss=dpo scores are no probabilities, look at pairwise accuracy",
        ),
        Alarm(
            "entropy-collapse",
            entropy_collapse,
            "entropy of sampled tokens, mean of 3 steps, below a tenth of that of the first 3, with accuracy below .8",
            "the policy no longer explores: lower policy.lr or policy.epochs, raise policy.clip_high or "
            "rollout.temperature, go on from an earlier checkpoint",
        ),
        Alarm(
            "filter-starving",
            filter_starving,
            "less than .15 of the drawn groups pass the filter, mean of 5 steps; with accuracy from .8 on less than .1",
            "most sampling is wasted: take easier prompts where accuracy is low and harder ones where it is high, "
            "raise rollout.responses, or widen filter.low and filter.high",
        ),
        Alarm(
            "truncation-rising",
            truncation_rising,
            "share of truncated responses, mean of 5 steps, more than .1 above its lowest",
            "responses grow past the limit: raise rollout.max_response_tokens, read some for loops, see whether length "
            "is paid for (reward-for-length)",
        ),
        Alarm(
            "sampler-mismatch",
            partial(sampler_mismatch, limit=mismatch_limit),
            "distance of the sampler's log-probabilities from the trainer's, mean of 3 steps, above a quarter of "
            "policy.mismatch_limit; silent where samples are stale",
            "the sampler computes another model than the trainer (docs/traps.md, trap 12): set "
            "policy.importance_clip=2, or see whether the engine's dtype and weights are the trainer's",
        ),
        Alarm(
            "verifier-timeouts",
            verifier_timeouts,
            "share of responses whose verification ran out of time, mean of 5 steps, more than .05 above its lowest",
            "outcomes are lost or wrong: see whether the machine is overloaded (verify.workers), raise verify.seconds "
            "or verify.code.seconds, read what responses make the verifier slow",
        ),
        Alarm(
            "paid-for-nothing",
            paid_for_nothing,
            "more than .1 of the right responses, mean of the last 3 steps, are empty or give an answer that was right "
            "for another reference answer too",
            "the verifier pays for answers that ignore the question: stop, try it on such answers with openprime "
            "verify, mend it, start anew",
        ),
    )
