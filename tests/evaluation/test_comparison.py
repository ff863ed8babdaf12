"""PRMs beside each other, against pairs and choices that are counted one by one."""

import random
from itertools import combinations, product

import pytest

from openprime.evaluation.comparison import SHOWN, compare
from openprime.prime.prm import Score
from openprime.types import UserError


class Fixed:
    """A PRM that gives each response a known reward."""

    def __init__(self, rewards: dict[str, float]) -> None:
        self.rewards = rewards

    def score(self, prompts, responses, step_split, form):
        assert len(prompts) == len(responses)
        return [
            Score([text, ""], [self.rewards[text], 0.0], [-1.0, 0.0], [text], [0, 0]) for text in responses
        ]


@pytest.fixture
def case():
    """5 prompts of 4 responses in mixed order, with ties of a PRM that knows little."""
    rng = random.Random(3)
    rows = [(f"question {p}", f"<i>{p}.{k}", float(rng.random() < 0.5)) for p in range(5) for k in range(4)]
    rng.shuffle(rows)
    prompts, responses, outcomes = map(list, zip(*rows, strict=True))
    knows = Fixed({r: o - 0.5 + rng.uniform(-0.7, 0.7) for _, r, o in rows})
    ties = Fixed({r: float(rng.randrange(2)) for _, r, _ in rows})
    return {"knows": knows, "ties": ties}, prompts, responses, outcomes


def brute(prm: Fixed, prompts: list, responses: list, outcomes: list) -> tuple[float, float, float]:
    """(pairwise accuracy, AUC, best of 2), by loops."""

    def won(pairs: list[tuple[int, int]]) -> list[float]:
        values = [prm.rewards[r] for r in responses]
        return [1.0 if values[i] > values[j] else 0.5 if values[i] == values[j] else 0.0 for i, j in pairs]

    def better(places: list[int]) -> list[tuple[int, int]]:
        return [(i, j) for i, j in product(places, places) if outcomes[i] > outcomes[j]]

    groups = [[i for i, p in enumerate(prompts) if p == name] for name in dict.fromkeys(prompts)]
    each = [sum(won(pairs)) / len(pairs) for group in groups if (pairs := better(group))]
    everywhere = won(better([*range(len(responses))]))
    chosen = []
    for group in groups:
        found = []
        for i, j in combinations(group, 2):
            a, b = prm.rewards[responses[i]], prm.rewards[responses[j]]
            found.append(outcomes[i] if a > b else outcomes[j] if b > a else (outcomes[i] + outcomes[j]) / 2)
        chosen.append(sum(found) / len(found))
    return sum(each) / len(each), sum(everywhere) / len(everywhere), sum(chosen) / len(chosen)


def test_compare__measures_are_those_counted_one_by_one(case):
    prms, prompts, responses, outcomes = case
    got = compare(prms, prompts, responses, outcomes)
    for name, prm in prms.items():
        pairs, auc, best = brute(prm, prompts, responses, outcomes)
        assert got.measures[name]["pairwise_accuracy"] == pytest.approx(pairs, abs=1e-9)
        assert got.measures[name]["auc"] == pytest.approx(auc, abs=1e-9)
        assert list(got.best_of_n[name]) == [1, 2, 4]
        assert got.best_of_n[name][1] == pytest.approx(sum(outcomes) / len(outcomes))
        assert got.best_of_n[name][2] == pytest.approx(best)
        assert [score.reward for score in got.scores[name]] == [prm.rewards[r] for r in responses]
    assert got.measures["knows"]["pairwise_accuracy"] > got.measures["ties"]["pairwise_accuracy"]


def test_compare__a_cell_shows_both_beside_each_other(case):
    prms, prompts, responses, outcomes = case
    got = compare(prms, prompts, responses, outcomes)
    html = got._repr_html_()
    assert html.count("Rewards of the steps") == 2 * SHOWN
    assert f"{len(responses) - SHOWN} more" in html
    assert "<i>" not in html
    for response in responses[:SHOWN]:
        text = response.replace("<", "&lt;").replace(">", "&gt;")
        assert html.count(f'">{text}</span>') == 2
    lines = repr(got).splitlines()
    assert lines[0].split()[:2] == ["PRM", "responses"]
    assert f"{got.measures['knows']['auc']:.3f}" in lines[1]


def test_compare__without_outcomes_shows_the_scores_alone(case):
    prms, prompts, responses, _ = case
    got = compare(prms, prompts, responses)
    assert (got.measures, got.best_of_n, got.outcomes) == ({}, {}, [])
    assert "pairwise" not in got._repr_html_()


def test_compare__messages_are_grouped_by_what_they_say():
    prm = Fixed({"a": 1.0, "b": 0.0})
    asked = [[{"role": "user", "content": "q"}] for _ in range(2)]
    got = compare({"one": prm}, asked, ["a", "b"], [1.0, 0.0])  # type: ignore[dict-item]
    assert got.measures["one"]["pairwise_accuracy"] == 1.0


@pytest.mark.parametrize(
    ("prms", "outcomes", "said"),
    [
        ({}, None, "by names"),
        ([Fixed({})], None, "by names"),
        ({"a": Fixed({"r": 0.0})}, [], "0 outcomes, but 1 responses"),
        ({"a": Fixed({"r": 0.0})}, [1.5], "the outcome 1.5"),
    ],
)
def test_compare__what_is_wrong_is_said(prms, outcomes, said: str):
    with pytest.raises(UserError, match=said):
        compare(prms, ["p"], ["r"], outcomes)
    with pytest.raises(UserError, match=r"no responses"):
        compare({"a": Fixed({})}, [], [])  # type: ignore[dict-item]
