"""Choosing among responses and counting right ones: enumeration, closed forms and published values."""

import math
import statistics

import brute
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import property_test

from openprime.algorithm.voting import (
    best_of_n,
    bootstrap_interval,
    majority_vote,
    pass_at_k,
    weighted_vote,
    wilson_interval,
)

answers = st.lists(st.sampled_from(["1", "2", "3/4", None]), min_size=1, max_size=12)
quarters = st.integers(-8, 20).map(lambda n: n / 4)


# Best of N


@property_test
@given(st.lists(quarters, min_size=1, max_size=12))
def test_best_of_n_is_the_first_of_the_highest(scores: list[float]):
    assert best_of_n(scores) == scores.index(max(scores))


def test_best_of_n_needs_a_response():
    with pytest.raises(ValueError, match="at least one"):
        best_of_n([])


# Votes


@property_test
@given(st.data(), answers)
def test_weighted_vote(data: st.DataObject, given_answers: list[str | None]):
    size = len(given_answers)
    weights = data.draw(st.lists(quarters, min_size=size, max_size=size))
    assert weighted_vote(given_answers, weights) == brute.weighted_vote(given_answers, weights)


@property_test
@given(answers)
def test_majority_vote(given_answers: list[str | None]):
    winner = majority_vote(given_answers)
    assert winner == brute.weighted_vote(given_answers, [1.0] * len(given_answers))
    said = [answer for answer in given_answers if answer is not None]
    if said:
        assert given_answers[winner] == statistics.mode(said)  # the first among the most frequent


@pytest.mark.parametrize(
    ("given_answers", "weights", "winner"),
    [
        (["a", "b", "b"], [1.0, 1.0, 1.0], 1),
        (["a", "b", "b"], [2.5, 1.0, 1.0], 0),
        (["b", "a", "a", "b"], [1.0, 1.0, 1.0, 1.0], 0),  # a tie: the answer seen first
        ([None, None, None, "c"], [9.0, 9.0, 9.0, 0.0], 3),
        ([None, "a", "b"], [9.0, -2.0, -1.0], 2),  # log-probabilities are negative
        ([None, None], [1.0, 2.0], 0),
    ],
)
def test_weighted_vote_by_hand(given_answers: list[str | None], weights: list[float], winner: int):
    assert weighted_vote(given_answers, weights) == winner


@pytest.mark.parametrize(("given_answers", "weights"), [([], []), (["a"], []), (["a"], [1.0, 2.0])])
def test_weighted_vote_needs_a_weight_for_every_answer(given_answers: list[str], weights: list[float]):
    with pytest.raises(ValueError, match="as many weights"):
        weighted_vote(given_answers, weights)


def test_majority_vote_needs_an_answer():
    with pytest.raises(ValueError, match="at least one"):
        majority_vote([])


# pass@k


@pytest.mark.parametrize("n", range(1, 9))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n: int):
    for right in range(n + 1):
        for k in range(1, n + 1):
            assert pass_at_k(n, right, k) == pytest.approx(brute.pass_at_k(n, right, k), abs=1e-12)


@pytest.mark.parametrize(
    ("n", "right", "k", "value"),
    [
        (4, 1, 1, 0.25),
        (5, 2, 3, 0.9),
        (10, 3, 5, 1 - 21 / 252),
        (200, 1, 100, 0.5),
        (200, 200, 1, 1.0),
        (200, 0, 200, 0.0),
        (200, 101, 100, 1.0),
    ],
)
def test_pass_at_k_by_hand(n: int, right: int, k: int, value: float):
    assert pass_at_k(n, right, k) == pytest.approx(value, abs=1e-12)


@property_test
@given(st.integers(1, 300), st.data())
def test_pass_at_k_is_the_stable_product_of_the_codex_paper(n: int, data: st.DataObject):
    """1 - prod_{i=n-c+1}^{n} (1 - k/i), figure 3 of arXiv 2107.03374."""
    right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    product = 1.0 if n - right >= k else 0.0
    if product:
        product = math.prod(1 - k / i for i in range(n - right + 1, n + 1))
    assert pass_at_k(n, right, k) == pytest.approx(1 - product, abs=1e-9)


def test_pass_at_k_of_many_samples_does_not_overflow():
    assert pass_at_k(20_000, 10, 2_000) == pytest.approx(1 - 0.9**10, abs=1e-3)


@pytest.mark.parametrize(
    ("n", "right", "k"), [(4, 1, 0), (4, 1, 5), (4, 5, 1), (4, -1, 1), (0, 0, 0), (0, 0, 1)]
)
def test_pass_at_k_refuses_impossible_counts(n: int, right: int, k: int):
    with pytest.raises(ValueError, match=f"n={n}, right={right}, k={k}"):
        pass_at_k(n, right, k)


# Intervals


@property_test
@given(st.integers(1, 400), st.data(), st.sampled_from([1.0, 1.644854, 1.959964]))
def test_wilson_interval_solves_its_quadratic(n: int, data: st.DataObject, z: float):
    right = data.draw(st.integers(0, n))
    low, high = wilson_interval(right, n, z)
    assert (low, high) == pytest.approx(brute.wilson_interval(right, n, z), abs=1e-9)
    assert low <= right / n + 1e-12
    assert right / n <= high + 1e-12
    assert (1 - high, 1 - low) == pytest.approx(wilson_interval(n - right, n, z), abs=1e-12)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_of_newcombe(right: int, n: int, low: float, high: float):
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    assert wilson_interval(right, n) == pytest.approx((low, high), abs=6e-5)


def test_wilson_interval_is_95_per_cent_by_default():
    assert wilson_interval(3, 17) == wilson_interval(3, 17, 1.959964)
    assert statistics.NormalDist().inv_cdf(0.975) == pytest.approx(1.959964, abs=1e-6)


@pytest.mark.parametrize(("right", "n"), [(0, 0), (5, 4), (-1, 4), (0, -1)])
def test_wilson_interval_refuses_impossible_counts(right: int, n: int):
    with pytest.raises(ValueError, match=f"right={right}, n={n}"):
        wilson_interval(right, n)


def test_bootstrap_interval_of_a_share():
    """Five of ten: resampled counts are binomial, whose 2.5% and 97.5% points are 2 and 8."""
    assert bootstrap_interval([0.0, 1.0] * 5, draws=4000) == pytest.approx((0.2, 0.8))


def test_bootstrap_interval_of_a_large_sample_is_normal():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = bootstrap_interval(values.tolist(), confidence=0.9)
    half = 1.644854 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_bootstrap_interval_can_be_repeated():
    values = [0.0, 0.25, 1.0, 0.5, 0.75]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, draws=50, seed=3) != bootstrap_interval(values, draws=50, seed=4)


def test_bootstrap_interval_widens_with_confidence():
    values = np.random.default_rng(2).random(50).tolist()
    narrow, wide = bootstrap_interval(values, 0.5), bootstrap_interval(values, 0.99)
    assert wide[0] < narrow[0] < sum(values) / 50 < narrow[1] < wide[1]


def test_bootstrap_interval_of_equal_values_is_a_point():
    assert bootstrap_interval([0.5] * 7) == (0.5, 0.5)
    assert bootstrap_interval([0.5]) == (0.5, 0.5)


def test_bootstrap_interval_needs_a_value():
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])


@pytest.mark.parametrize(("right", "n"), [(0, 2), (20, 20), (0, 7), (336, 336)])
def test_wilson_interval_stays_within_0_and_1(right: int, n: int):
    low, high = wilson_interval(right, n)
    assert 0.0 <= low <= right / n <= high <= 1.0
