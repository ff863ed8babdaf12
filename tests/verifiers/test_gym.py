"""Scorers of reasoning-gym as verifiers."""

import pytest

from openprime.config import DataConfig
from openprime.data.readers import load_rows
from openprime.types import Prompt, Verdict
from openprime.verifiers import gym
from openprime.verifiers.gym import verify_gym

pytest.importorskip("reasoning_gym")
TASKS = ("chain_sum", "gcd", "basic_arithmetic", "word_sorting", "countdown", "maze")


def prompts(task: str, limit: int = 1) -> list[Prompt]:
    found = load_rows(DataConfig(source=f"gym:{task}", limit=limit))
    return [Prompt("g", (), row["question"], row["answer"], row, "reasoning_gym") for row in found]


def test_verify_gym__takes_answers_from_their_tags_or_as_in_mathematics():
    (asked,) = prompts("chain_sum")
    answer = asked.answer
    responses = [
        f"so <answer>{answer}</answer>",
        f"<answer>1</answer> no, <answer> {answer} </answer>",
        rf"thus \boxed{{{answer}}}",
        f"#### {answer}",
        "<answer>nothing of the kind</answer>",
        f"the answer is {answer}",
        "<answer></answer>",
        "<answer>" * 20_000,
    ]
    reasons = [verdict.reason for verdict in verify_gym(asked, responses)]
    assert reasons == ["right"] * 4 + ["wrong"] + ["no_answer"] * 3


def test_verify_gym__keeps_parts_of_an_outcome_and_gives_none_where_the_scorer_raises(monkeypatch):
    scores = {"half": 0.5, "much": 7.0, "less": -1.0}
    monkeypatch.setattr(gym, "_scorer", lambda name: lambda answer, entry: scores[answer])
    texts = [f"<answer>{answer}</answer>" for answer in ("half", "much", "less", "unknown")]
    assert verify_gym(prompts("chain_sum")[0], texts) == [
        Verdict(0.5, "partial"),
        Verdict(1.0, "right"),
        Verdict(0.0, "wrong"),
        Verdict(0.0, "crash"),
    ]


@pytest.mark.parametrize("task", TASKS)
def test_verify_gym__the_reference_answer_is_right(task: str):
    for asked in prompts(task, limit=5):
        (verdict,) = verify_gym(asked, [asked.columns["response"]])
        assert verdict.outcome == 1.0, asked
