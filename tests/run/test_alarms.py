"""The rules of alarms on histories worked out by hand, and when an alarm is said."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from openprime.config import DistillRLConfig, PrimeConfig
from openprime.run.alarms import QUIET, Alarm, Seen, Watch, alarms
from openprime.run.jsonl import read_jsonl
from openprime.run.run import Run
from openprime.types import Metrics

ALARMS = {alarm.name: alarm for alarm in alarms(mismatch_limit=0.01)}
PAGE = Path(__file__).parents[2] / "docs" / "alarms.md"

HEALTHY: Metrics = {
    "rollout/accuracy": 0.5,
    "rollout/entropy": 0.3,
    "rollout/passed": 0.6,
    "rollout/truncated": 0.02,
    "reward/process": 0.1,
    "reward/process_std": 0.5,
    "reward/pairs": 100,
    "reward/length_correlation": 0.2,
    "reward/repetition_correlation": -0.2,
    "prm/pairwise_accuracy": 0.6,
    "prm/brier": 0.24,
    "policy/mismatch_mean": 1e-6,
    "verify/timeout": 0.01,
    "verify/paid_empty": 0.0,
    "verify/paid_constant": 0.0,
}

Series = float | Callable[[int], float | None]


def steps(count: int, **series: Series) -> list[Metrics]:
    """A healthy history with other values of some metrics: a number, or that of each step, from 0; None is missing."""
    rows = []
    for i in range(count):
        values = {
            name.replace("_", "/", 1): (value(i) if callable(value) else value)
            for name, value in series.items()
        }
        rows.append({name: v for name, v in (HEALTHY | values).items() if v is not None})
    return rows


def seen(history: list[Metrics]) -> dict[str, Seen]:
    """What the alarms see at the last step."""
    found = {name: alarm.rule(history) for name, alarm in ALARMS.items()}
    return {name: what for name, what in found.items() if what is not None}


def late(value: float, usual: float, since: int = 5) -> Callable[[int], float]:
    """The usual value, and another one from a step on."""
    return lambda i: value if i >= since else usual


CASES = {
    # Five steps at .65, five at .1: more than the .5 of a standard deviation.
    "process-without-outcome": (steps(10, reward_process=late(0.65, 0.1)), 0.55, "0.1 -> 0.65"),
    "reward-for-length": (steps(5, reward_length_correlation=0.45), 0.45, "+0.45"),
    "reward-for-repetition": (steps(5, reward_repetition_correlation=0.7), 0.7, "+0.70"),
    # 5 * 100 pairs at .6 and 5 * 300 at .45: .4875, where the mean of the steps would be .525.
    "prm-at-chance": (
        steps(10, prm_pairwise_accuracy=late(0.45, 0.6), reward_pairs=late(300, 100)),
        0.4875,
        "0.487 on 2000 pairs",
    ),
    "calibration-drift": (steps(10, prm_brier=late(0.35, 0.24)), 0.35, "0.240 -> 0.350"),
    "entropy-collapse": (steps(6, rollout_entropy=late(0.02, 0.3, 3)), 0.02, "0.3 -> 0.02"),
    "filter-starving": (steps(5, rollout_passed=0.14), 0.14, "14% of the groups"),
    "truncation-rising": (steps(10, rollout_truncated=late(0.13, 0.02)), 0.13, "2.0% -> 13.0%"),
    "sampler-mismatch": (steps(3, policy_mismatch_mean=0.003), 0.003, "0.003 nats"),
    "verifier-timeouts": (steps(10, verify_timeout=late(0.07, 0.01)), 0.07, "1.0% -> 7.0%"),
    "paid-for-nothing": (
        steps(1, verify_paid_empty=0.06, verify_paid_constant=0.06),
        0.12,
        "6% are empty, 6% also right",
    ),
}

SILENT = {
    "healthy": steps(30),
    "outcomes rise with process returns": steps(
        10, reward_process=late(0.65, 0.1), rollout_accuracy=late(0.53, 0.5)
    ),
    "process returns rise where all is learnt": steps(
        10, reward_process=late(0.65, 0.1), rollout_accuracy=0.9
    ),
    "process returns fall": steps(10, reward_process=late(-1, 0.1)),
    "a single step of a long correlation": steps(5, reward_length_correlation=late(0.9, 0.2, 4)),
    "few steps with a correlation": steps(9, reward_length_correlation=lambda i: 0.9 if i % 2 else None),
    "repetition is punished": steps(5, reward_repetition_correlation=-0.9),
    "the PRM is new": steps(9, prm_pairwise_accuracy=0.5),
    "few pairs": steps(10, prm_pairwise_accuracy=0.4, reward_pairs=40),
    "nearly all right": steps(10, prm_pairwise_accuracy=0.4, rollout_accuracy=0.85),
    "the PRM knows nothing from the start, and says so": steps(10, prm_brier=0.25),
    "Brier scores below one half's": steps(10, prm_brier=late(0.24, 0.1)),
    "entropy falls as the task is learnt": steps(
        6, rollout_entropy=late(0.02, 0.3, 3), rollout_accuracy=late(0.9, 0.3, 3)
    ),
    "entropy falls to a sixth": steps(6, rollout_entropy=late(0.05, 0.3, 3)),
    "few groups pass, for the task is learnt": steps(5, rollout_passed=0.12, rollout_accuracy=0.95),
    "truncation from the start": steps(10, rollout_truncated=0.4),
    "truncation falls": steps(10, rollout_truncated=late(0.1, 0.4)),
    "samples are stale": [row | {"rollout/staleness": 1.0} for row in steps(5, policy_mismatch_mean=0.1)],
    "outcomes alone": steps(
        10, **{name: lambda i: None for name in ("reward_process", "prm_pairwise_accuracy", "prm_brier")}
    ),
    "nothing is known": [{"x": 1.0}] * 12,
}


@pytest.mark.parametrize("name", ALARMS)
def test_alarms__see_what_is_wrong_and_nothing_else(name: str):
    history, value, says = CASES[name]
    found = seen(history)
    assert set(found) == {name}
    assert found[name].value == pytest.approx(value)
    assert says in found[name].says


@pytest.mark.parametrize("case", SILENT)
def test_alarms__are_silent_where_nothing_is_wrong(case: str):
    for step in range(1, len(SILENT[case]) + 1):
        assert seen(SILENT[case][:step]) == {}


def test_alarms__few_groups_are_too_few_whatever_the_accuracy():
    assert set(seen(steps(5, rollout_passed=0.09, rollout_accuracy=0.95))) == {"filter-starving"}


def test_alarms__the_mismatch_warns_at_a_quarter_of_the_limit():
    history = steps(3, policy_mismatch_mean=0.003)
    for limit, rings in ((0.01, True), (0.011, True), (0.013, False), (0.2, False)):
        (rule,) = (alarm.rule for alarm in alarms(limit) if alarm.name == "sampler-mismatch")
        assert (rule(history) is not None) == rings


# When an alarm is said

HIGH = Alarm("high", lambda rows: Seen(rows[-1]["x"], "x is high") if rows[-1]["x"] > 1 else None, "", "less")


def said(values: list[float], history: list[dict] | None = None) -> tuple[list[float], list[int]]:
    """(`alarm/high` of every step, the steps that said it), of steps after those of a history."""
    watch, before = Watch([HIGH], history or []), len(history or [])
    rings, events = [], []
    for step, x in enumerate(values, before + 1):
        found, new = watch.look(step, {"x": x})
        rings.append(found["alarm/high"])
        events += new
    assert all(event | {"step": 0, "value": 2} == EVENT for event in events)
    return rings, [event["step"] for event in events]


EVENT = {"step": 0, "alarm": "high", "value": 2, "says": "x is high", "do": "less"}


def test_watch__says_an_alarm_once_and_again_when_it_has_been_silent():
    values = [0.0, 2, 2, 0, 2, *[0.0] * QUIET, 2, 2]
    rings, events = said(values)
    assert rings == [float(x > 1) for x in values]
    assert events == [2, 6 + QUIET]
    assert said([2.0, *[0.0] * (QUIET - 1), 2])[1] == [1], "one step less of silence is too short"


def test_watch__goes_on_from_the_records():
    """At every step of the history a new watch says what the old one would have."""
    values = [0.0, 2, 0, 0, 2, *[0.0] * QUIET, 2, 0, 2]
    rings, events = said(values)
    rows = [
        {"step": i, "x": x, "alarm/high": r} for i, (x, r) in enumerate(zip(values, rings, strict=True), 1)
    ]
    for at in range(len(rows)):
        assert said(values[at:], rows[:at]) == (rings[at:], [step for step in events if step > at])


@pytest.mark.parametrize("stop", [2, 4, 5])
def test_run__alarms_are_recorded_said_and_the_same_after_a_stop(
    tmp_path: Path, stop: int, capsys: pytest.CaptureFixture[str]
):
    """Also where the step that said one was not saved."""
    values = {1: 0.0, 2: 2.0, 3: 2.0, 4: 0.0, 5: 3.0, 6: 0.0}

    def go(folder: Path, resume: bool, stop: int = 0) -> None:
        data = {"model": "m", "out": str(folder), "data": {"source": "d"}, "resume": resume, "save_every": 3}
        with Run(PrimeConfig.model_validate(data), "rl") as run:
            run.begin({}, alarms=[HIGH])
            if not run.done:
                with run.step(0):
                    run.log({"x": 9.0})  # only measured
            for step in run.steps(6, lambda metrics: {}):
                with run.step(step), run.training():
                    if step == stop:
                        raise KeyboardInterrupt
                    run.log({"x": values[step]})

    go(tmp_path / "whole", resume=False)
    printed = capsys.readouterr().out
    assert printed.count("alarm: ") == 1
    assert "alarm: step 2: high: x is high. What to do: less\n" in printed
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "stopped", resume=False, stop=stop)
    go(tmp_path / "stopped", resume=True)
    for folder in ("whole", "stopped"):
        assert read_jsonl(tmp_path / folder / "alarms.jsonl") == [EVENT | {"step": 2, "value": 2.0}]
        rows = read_jsonl(tmp_path / folder / "metrics.jsonl")
        assert [row.get("alarm/high") for row in rows] == [None, 0, 1, 1, 0, 1, 0]


# What is written about them


def test_alarms__the_page_has_each_with_its_rule_and_what_to_do():
    rows = re.findall(r"^\| `([\w-]+)` \| (.+) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [(alarm.name, alarm.about, alarm.do) for alarm in ALARMS.values()]


def test_alarms__name_settings_that_there_are():
    sections = ("advantage", "data", "engine", "filter", "policy", "prm", "rollout", "verify")
    names = {n for a in ALARMS.values() for n in re.findall(rf"\b(?:{'|'.join(sections)})\.[a-z_.]+\w", a.do)}
    assert {"verify.code.seconds", "prm.lr", "filter.low"} <= names
    for name in names:
        part = PrimeConfig
        for key in name.split("."):
            assert key in part.model_fields, name
            part = part.model_fields[key].annotation
    assert "mismatch_limit" in DistillRLConfig.model_fields["policy"].annotation.model_fields
