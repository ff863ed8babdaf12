"""Choosing among responses and counting right ones: enumeration, closed forms and published values."""

import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openprime.evaluation.voting import best_of_n_subsets, bootstrap_interval, pass_at_k, vote_subsets
from support import brute
from support.strategies import property_test

# Best of N


@property_test
@given(st.data(), st.integers(1, 8))
def test_best_of_n_subsets__equals_enumeration(data: st.DataObject, m: int):
    """Coarse scores have ties, soft outcomes have thirds."""
    scores = data.draw(st.lists(st.integers(0, 3).map(float), min_size=m, max_size=m))
    outcomes = data.draw(st.lists(st.integers(0, 3).map(lambda k: k / 3), min_size=m, max_size=m))
    for n in range(1, m + 1):
        wanted = brute.best_of_n_subsets(scores, outcomes, n)
        assert best_of_n_subsets(scores, outcomes, n) == pytest.approx(wanted, abs=1e-12)


def test_best_of_n_subsets__score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="not a number"):
        best_of_n_subsets([1.0, math.nan], [0.0, 1.0], 1)


@pytest.mark.parametrize("m", [5, 64, 256])
def test_best_of_n_subsets__by_binary_outcomes_is_pass_at_k(m: int):
    outcomes = [float(random.Random(i).random() < 0.1) for i in range(m)]
    for n in (1, 2, m // 2, m - 1, m):
        wanted = pass_at_k(m, int(sum(outcomes)), n)
        assert best_of_n_subsets(outcomes, outcomes, n) == pytest.approx(wanted, abs=1e-12)


# Votes


@property_test
@given(st.data(), st.integers(1, 8))
def test_vote_subsets__equals_enumeration(data: st.DataObject, m: int):
    """At most C(8, 4) = 70 subsets, so that nothing is drawn; weights with ties, and below 0."""
    said = data.draw(st.lists(st.sampled_from(["1", "2", "3/4", None]), min_size=m, max_size=m))
    weights = data.draw(st.lists(st.integers(-2, 4).map(lambda k: k / 2), min_size=m, max_size=m))
    outcomes = data.draw(st.lists(st.integers(0, 4).map(lambda k: k / 4), min_size=m, max_size=m))
    for n in range(1, m + 1):
        wanted = brute.vote_subsets(said, weights, outcomes, n)
        assert vote_subsets(said, weights, outcomes, n, draws=70) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("said", "weights", "winner"),
    [
        (["a", "b", "b"], [1.0, 1.0, 1.0], 1),
        (["a", "b", "b"], [2.5, 1.0, 1.0], 0),
        (["b", "a", "a", "b"], [1.0, 1.0, 1.0, 1.0], 0),  # a tie: the answer seen first
        ([None, None, None, "c"], [9.0, 9.0, 9.0, 0.0], 3),
        ([None, "a", "b"], [9.0, -2.0, -1.0], 2),  # log-probabilities are negative
        ([None, None], [1.0, 2.0], 0),
    ],
)
def test_vote_subsets__winner_of_all_by_hand(said: list[str | None], weights: list[float], winner: int):
    places = [float(i) for i in range(len(said))]
    assert vote_subsets(said, weights, places, len(said)) == winner


def test_vote_subsets__draws_where_there_are_too_many():
    """12 choose 6 is 924: few draws come near to the exact mean, and follow from the seed."""
    rng = random.Random(1)
    said = [rng.choice(["a", "b", "c"]) for _ in range(12)]
    outcomes = [float(answer == "a") for answer in said]
    weights = [rng.random() for _ in range(12)]
    exact = brute.vote_subsets(said, weights, outcomes, 6)
    assert 0.2 < exact < 0.8, "else the test says nothing"
    assert vote_subsets(said, weights, outcomes, 6, draws=924) == pytest.approx(exact, abs=1e-12)
    drawn = vote_subsets(said, weights, outcomes, 6, draws=923, seed=3)
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(0.25 / 923))
    assert drawn == vote_subsets(said, weights, outcomes, 6, draws=923, seed=3)
    assert len({vote_subsets(said, weights, outcomes, 6, draws=50, seed=seed) for seed in range(5)}) > 1


def test_vote_subsets__drawn_choices_hold_a_response_once_and_in_order():
    """Of 15 votes for 15 answers the one seen first wins; one that stood twice in a choice would."""
    said, ones = list(range(20)), [1.0] * 20
    for k in range(6):  # C(19 - k, 14) of the C(20, 15) choices begin with response k
        share = vote_subsets(said, ones, [float(i == k) for i in said], 15, draws=4000)
        wanted = math.comb(19 - k, 14) / math.comb(20, 15)
        assert share == pytest.approx(wanted, abs=4 * math.sqrt(wanted / 4000))


# pass@k


@pytest.mark.parametrize(
    ("n", "right", "k", "value"),
    [(10, 3, 5, 1 - 21 / 252), (200, 1, 100, 0.5), (200, 101, 100, 1.0), (20_000, 10, 2_000, 1 - 0.9**10)],
)
def test_pass_at_k__by_hand(n: int, right: int, k: int, value: float):
    assert pass_at_k(n, right, k) == pytest.approx(value, abs=1e-3 if n > 200 else 1e-12)


@property_test
@given(st.integers(1, 300), st.data())
def test_pass_at_k__is_the_stable_product_of_the_codex_paper(n: int, data: st.DataObject):
    """1 - prod_{i=n-c+1}^{n} (1 - k/i), figure 3 of arXiv 2107.03374."""
    right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    product = math.prod(max(0.0, 1 - k / i) for i in range(n - right + 1, n + 1))
    assert pass_at_k(n, right, k) == pytest.approx(1 - product, abs=1e-9)


# Intervals


def test_bootstrap_interval__of_a_share():
    """Five of ten: resampled counts are binomial, whose 2.5% and 97.5% points are 2 and 8."""
    assert bootstrap_interval([0.0, 1.0] * 5, draws=4000) == pytest.approx((0.2, 0.8))


@pytest.mark.parametrize("size", [1, 2, 37, 3000])
def test_bootstrap_interval__equals_draw_by_draw(size: int):
    """One draw after the other from one stream: numbers published with a seed stay what they were."""
    values = np.random.default_rng(9).random(size)
    rng = np.random.default_rng(4)
    means = [statistics.fmean(values[rng.integers(0, size, size=size)]) for _ in range(500)]
    cuts = np.quantile(means, [0.05, 0.95])
    assert bootstrap_interval(values.tolist(), 0.9, 500, seed=4) == pytest.approx(tuple(cuts), abs=1e-12)
