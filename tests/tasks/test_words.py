"""Sentences with two given words."""

import re

import pytest

from openprime.config import DataConfig
from openprime.tasks import rows
from openprime.tasks.words import NOUNS, score
from openprime.types import Prompt
from openprime.verifiers.worker import make_verifier

VERIFIER = "openprime.tasks.words:score"


def make(**options) -> list[dict]:
    return rows(DataConfig(source="task:words", **options))


def test_rows__ask_for_two_words_and_show_a_right_sentence():
    verify, _ = make_verifier(VERIFIER, {})
    for row in make(limit=200):
        a, b = re.fullmatch(
            r"Write one sentence with the words ([a-z]+) and ([a-z]+)\.", row["prompt"]
        ).groups()
        assert row["words"] == [a, b]
        assert a != b
        assert {a, b} <= set(NOUNS)
        prompt = Prompt("0", (), row["prompt"], None, columns=row)
        assert [verdict.outcome for verdict in verify(prompt, [row["response"]])] == [1.0]


def test_rows__depend_on_seed_split_and_index_alone():
    assert make(limit=50) == make(limit=20) + make(limit=50)[20:]
    assert make(limit=50) != make(limit=50, task_seed=1)
    assert make(limit=50) != make(limit=50, split="rl")


def test_rows__no_pair_of_the_test_is_in_training_in_either_order():
    def pairs(split: str) -> set:
        return {
            frozenset(row["words"])
            for seed in range(3)
            for row in make(split=split, limit=10**6, task_seed=seed)
        }

    test, train = pairs("test"), pairs("train")
    assert not test & train
    assert len(test | train) == len(NOUNS) * (len(NOUNS) - 1) // 2
    assert 0.15 < len(test) / len(test | train) < 0.25


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("The horse waits at the old bridge.", 1),
        ("  Is the horse under the bridge?\n", 1),
        ("Horse and bridge.", 0),  # too short
        ("The horse waits at the old bridges.", 0),  # another word
        ("the horse waits at the old bridge.", 0),
        ("The horse waits at the old bridge", 0),  # cut off
        ("The horse waits. The bridge is old.", 0),
        ("Horse, bridge, horse, bridge, horse, bridge.", 0),
        ("The horse " + "and then another " * 10 + "bridge.", 0),
        (
            "The horse waits at the bridge for all ten of us who come from so far to see it here.",
            1,
        ),  # 20 words
        ("The horse waits at the bridge for all ten of us who come from so far to see it here now.", 0),
        ("A horse, a bridge.", 0),
        ("A horse on a bridge.", 1),
        ("", 0),
        ("The horse and the bridge " * 10**6, 0),
    ],
)
def test_score__one_sentence_with_both_words(text: str, outcome: int):
    assert score(["p"], [text], words=[["horse", "bridge"]]) == [outcome]
    assert score(["p"], [[{"role": "assistant", "content": text}]], words=[["horse", "bridge"]]) == [outcome]
