"""Held-out quality of scores and of step judgements: pair counting, loops and published values."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openprime.evaluation.calibration import (
    FirstErrorF1,
    best_threshold,
    brier,
    cross_fitted_f1,
    expected_calibration_error,
    first_error,
    first_error_f1,
    lowest_is_last,
    roc_auc,
)
from support import brute
from support.strategies import property_test

tenths = st.integers(0, 10).map(lambda k: k / 10)
labelled = st.lists(st.tuples(tenths, st.booleans()), min_size=1, max_size=30)
forecasts = st.lists(st.tuples(st.one_of(tenths, st.floats(0, 1)), st.booleans()), min_size=1, max_size=40)


def triple(result: FirstErrorF1) -> tuple[float, float, float]:
    return result.error_accuracy, result.correct_accuracy, result.f1


# ROC


@property_test
@given(labelled)
def test_roc_auc_counts_pairs(rows: list[tuple[float, bool]]):
    scores, labels = [score for score, _ in rows], [label for _, label in rows]
    assert roc_auc(scores, labels) == pytest.approx(brute.roc_auc(scores, labels), nan_ok=True)


@pytest.mark.parametrize(
    ("scores", "labels", "area"),
    [
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),  # the example of scikit-learn's roc_auc_score
        ([1.0, 2.0, 3.0], [False, False, True], 1.0),
        ([1.0, 2.0, 3.0], [True, False, False], 0.0),
        ([5.0, 5.0, 5.0], [True, False, False], 0.5),
        ([1.0, 2.0, 2.0], [False, True, False], 0.75),
    ],
)
def test_roc_auc_by_hand(scores: list[float], labels: list[bool], area: float):
    assert roc_auc(scores, labels) == area


@property_test
@given(labelled)
def test_roc_auc_sees_ranks_alone(rows: list[tuple[float, bool]]):
    scores, labels = [score for score, _ in rows], [label for _, label in rows]
    area = roc_auc(scores, labels)
    assert roc_auc(np.exp(scores), labels) == pytest.approx(area, nan_ok=True)
    assert roc_auc([-s for s in scores], labels) == pytest.approx(1 - area, nan_ok=True)
    assert roc_auc(scores[::-1], labels[::-1]) == pytest.approx(area, nan_ok=True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("labels", [[True, True], [False, False]])
def test_roc_auc_of_one_class_is_nan(labels: list[bool]):
    assert math.isnan(roc_auc([1.0, 2.0], labels))
    assert math.isnan(roc_auc([], []))


def test_roc_auc_refuses_what_it_cannot_rank():
    with pytest.raises(ValueError, match="a label for every score"):
        roc_auc([1.0, 2.0], [True])
    with pytest.raises(ValueError, match="numbers"):
        roc_auc([1.0, math.nan], [True, False])
    with pytest.raises(ValueError, match="true or false"):
        roc_auc([1.0, 2.0], [0.5, 1.0])


# Calibration


@property_test
@given(forecasts)
def test_brier_is_a_mean_square(rows: list[tuple[float, bool]]):
    wanted = sum((p - o) ** 2 for p, o in rows) / len(rows)
    assert brier([p for p, _ in rows], [o for _, o in rows]) == pytest.approx(wanted)


def test_brier_by_hand():
    """The example of scikit-learn's brier_score_loss; and soft outcomes."""
    assert brier([0.1, 0.9, 0.8, 0.3], [0, 1, 1, 0]) == pytest.approx(0.0375)
    assert brier([0.5, 1.0, 0.0], [0.25, 1.0, 1.0]) == pytest.approx((0.0625 + 1) / 3)


@property_test
@given(forecasts, st.integers(1, 12))
def test_calibration_error_bin_by_bin(rows: list[tuple[float, bool]], bins: int):
    probabilities, outcomes = [p for p, _ in rows], [float(o) for _, o in rows]
    wanted = brute.expected_calibration_error(probabilities, outcomes, bins)
    assert expected_calibration_error(probabilities, outcomes, bins) == pytest.approx(wanted, abs=1e-12)


def test_calibration_error_of_torchmetrics():
    """The example of BinaryCalibrationError with n_bins=2 and norm='l1'."""
    error = expected_calibration_error([0.25, 0.25, 0.55, 0.75, 0.75], [0, 0, 1, 1, 1], bins=2)
    assert error == pytest.approx(0.29, abs=1e-4)


def test_calibration_error_of_certain_forecasts():
    assert expected_calibration_error([0.0, 1.0, 0.0, 1.0], [0, 1, 0, 1]) == 0.0
    assert expected_calibration_error([0.0, 1.0], [1, 0]) == 1.0
    assert expected_calibration_error([0.0, 1.0, 1.0, 1.0], [0, 1, 1, 0]) == pytest.approx(0.25)


def test_calibration_error_puts_an_edge_into_the_bin_below():
    """7/100 times 100 is above 7 in floating point, 29/100 times 100 is below 29."""
    for k in range(1, 100):
        # Alone in its bin, each of the two errs by its own difference; together they would cancel.
        pair = [k / 100, math.nextafter(k / 100, 1)]
        assert expected_calibration_error(pair, [0, 1], bins=100) == pytest.approx(0.5)
        pair = [k / 100, math.nextafter(k / 100, 0)]
        assert expected_calibration_error(pair, [0, 1], bins=100) == pytest.approx(abs(0.5 - k / 100))


@pytest.mark.parametrize("measure", [brier, expected_calibration_error])
@pytest.mark.parametrize(
    ("probabilities", "outcomes", "words"),
    [
        ([], [], "and one"),
        ([0.5], [1, 0], "as many"),
        ([1.5], [1], "sigmoid"),
        ([-0.1], [1], "sigmoid"),
        ([0.5], [2], "sigmoid"),
        ([math.nan], [1], "sigmoid"),
    ],
)
def test_forecasts_are_probabilities(measure, probabilities: list[float], outcomes: list[int], words: str):
    with pytest.raises(ValueError, match=words):
        measure(probabilities, outcomes)


def test_calibration_error_needs_a_bin():
    with pytest.raises(ValueError, match="one bin"):
        expected_calibration_error([0.5], [1], bins=0)


# The lowest step


@property_test
@given(st.lists(st.lists(st.integers(-2, 2).map(float), max_size=5), max_size=8))
def test_lowest_is_last(rows: list[list[float]]):
    long = [row for row in rows if len(row) >= 2]
    last = [all(row[-1] < reward for reward in row[:-1]) for row in long]
    wanted = sum(last) / len(long) if long else math.nan
    assert lowest_is_last(rows) == pytest.approx(wanted, nan_ok=True)


def test_lowest_is_last_by_hand():
    rows = [[1.0, 0.0, -1.0], [0.0, 0.0], [-1.0, 0.0, -1.0], [0.5, 0.25], [-9.0], []]
    assert lowest_is_last(rows) == 0.5
    assert math.isnan(lowest_is_last([[1.0], []]))


# The first error


@property_test
@given(st.lists(tenths, max_size=8), tenths)
def test_first_error(scores: list[float], threshold: float):
    assert first_error(scores, threshold) == brute.first_error(scores, threshold)


def test_first_error_by_hand():
    scores = [0.9, 0.5, 0.2, 0.7, 0.1]
    thresholds = [0.1, 0.15, 0.5, 0.6, 0.95]
    assert [first_error(scores, t) for t in thresholds] == [-1, 4, 2, 1, 0]
    assert first_error([], 0.5) == -1


@property_test
@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 3)), max_size=20))
def test_first_error_f1(rows: list[tuple[int, int]]):
    predicted, labels = [p for p, _ in rows], [label for _, label in rows]
    wanted = brute.first_error_f1(predicted, labels)
    assert triple(first_error_f1(predicted, labels)) == pytest.approx(wanted, nan_ok=True)


def test_first_error_f1_by_hand():
    """12 of 40 wrong steps named, 18 of 20 correct responses let pass: 2 * 0.3 * 0.9 / 1.2.

    Late, early or missing blame of an erroneous response are all as wrong, and any blame of a correct one.
    """
    labels = [2] * 40 + [-1] * 20
    predicted = [2] * 12 + [3] * 10 + [1] * 10 + [-1] * 8 + [-1] * 18 + [0, 2]
    assert triple(first_error_f1(predicted, labels)) == pytest.approx((0.3, 0.9, 0.45))


def test_first_error_f1_of_nothing_right_and_of_one_class():
    assert triple(first_error_f1([-1, 0], [1, -1])) == (0.0, 0.0, 0.0)
    assert triple(first_error_f1([1, 0], [1, -1])) == (1.0, 0.0, 0.0)
    assert triple(first_error_f1([1, 0], [1, 2])) == pytest.approx((0.5, math.nan, math.nan), nan_ok=True)
    assert triple(first_error_f1([-1], [-1])) == pytest.approx((math.nan, 1.0, math.nan), nan_ok=True)
    with pytest.raises(ValueError, match="every prediction"):
        first_error_f1([1, 0], [1])


# The threshold


def responses(seed: int, count: int, steps: int, grain: int) -> tuple[list[list[float]], list[int]]:
    """Random step scores, coarse enough for ties, and labels of both kinds."""
    rng = random.Random(seed)
    scores = [[rng.randint(-grain, grain) / 4 for _ in range(rng.randint(1, steps))] for _ in range(count)]
    return scores, [-1, 0, *(rng.randint(-1, len(row) - 1) for row in scores[2:])]


@property_test
@given(st.integers(0, 10**6), st.integers(2, 25), st.integers(1, 6), st.integers(1, 20))
def test_best_threshold_is_the_best_of_all(seed: int, count: int, steps: int, grain: int):
    scores, labels = responses(seed, count, steps, grain)
    threshold = best_threshold(scores, labels)
    assert math.isfinite(threshold)
    found = brute.first_error_f1([brute.first_error(row, threshold) for row in scores], labels)[2]
    assert found == pytest.approx(brute.largest_f1(scores, labels), abs=1e-12)
    # The lowest of equals: no threshold below it does as well, if it judges otherwise at all.
    ours = [brute.first_error(row, threshold) for row in scores]
    for lower in {score for row in scores for score in row if score < threshold}:
        theirs = [brute.first_error(row, lower) for row in scores]
        right, wrong = (
            [p == label for p, label in zip(made, labels, strict=True)] for made in (ours, theirs)
        )
        assert right == wrong or brute.first_error_f1(theirs, labels)[2] < found


def test_best_threshold_by_hand():
    """The second step of the first errs; between 0.2 and 0.6 all three are judged rightly."""
    scores, labels = [[0.9, 0.2, 0.1], [0.6, 0.8], [0.7]], [1, -1, -1]
    assert best_threshold(scores, labels) == pytest.approx(0.4)
    scores, labels = [[0.0, 1.0], [1.0, 0.5], [2.0, 2.0]], [0, 1, -1]
    assert best_threshold(scores, labels) == pytest.approx(0.75), "all right in (0.5, 1]"
    scores, labels = [[0.5, 0.0], [0.9, 0.8], [2.0]], [1, 1, -1]
    assert best_threshold(scores, labels) == pytest.approx(0.25), "one right in (0, 0.5], one in (0.8, 0.9]"


def test_best_threshold_between_extreme_floats():
    one = math.nextafter(1.0, 0)
    for low, high in ((one, 1.0), (1.0, math.nextafter(1.0, 2)), (0.0, 5e-324), (1.6e308, 1.7e308)):
        threshold = best_threshold([[low], [high]], [0, -1])
        assert low < threshold <= high


def test_best_threshold_where_every_one_is_as_bad():
    """The later step errs but never scores below the first; F1 is 0 throughout, and the threshold is a number."""
    assert math.isfinite(best_threshold([[0.0, 1.0], [0.5]], [1, -1]))
    assert math.isfinite(best_threshold([[0.5], [0.5]], [0, -1]))
    assert math.isfinite(best_threshold([[0.5, 0.1], [0.5]], [7, -1])), "a label beyond the scores"


def test_best_threshold_of_a_response_without_scores():
    """It blames nobody at any threshold; where nothing else depends on the threshold, there is none to choose."""
    threshold = best_threshold([[], [0.5]], [-1, 0])
    assert math.isfinite(threshold)
    assert first_error([0.5], threshold) == 0
    assert math.isnan(best_threshold([[], [0.5, 0.9]], [-1, 1]))


@pytest.mark.parametrize("labels", [[0, 1], [-1, -1]])
def test_best_threshold_of_one_class_is_nan(labels: list[int]):
    assert math.isnan(best_threshold([[0.5, 0.1], [0.5, 0.2]], labels))
    assert math.isnan(best_threshold([], []))


def test_a_label_for_every_response():
    for function in (best_threshold, cross_fitted_f1):
        with pytest.raises(ValueError, match="every response"):
            function([[0.5], [0.1]], [0])


# Cross-fitting


def test_cross_fitted_f1_of_a_perfect_judge_is_1():
    """Wrong steps score below 0, right ones above 1: any half gives a threshold between."""
    rng = random.Random(3)
    labels = [-1, -1, 0, 1] + [rng.randint(-1, 4) for _ in range(40)]
    scores = [[-rng.random() if step == label else 1 + rng.random() for step in range(5)] for label in labels]
    for seed in range(5):
        assert triple(cross_fitted_f1(scores, labels, seed)) == (1.0, 1.0, 1.0)


def test_cross_fitted_f1_judges_a_response_with_the_other_half():
    """Two of each kind. Either half's threshold is the mean of its two scores, and the other half meets it.

    Within a half the erroneous response scores below the correct one, whoever is paired: 0 or 10 against
    11 or 21. The thresholds are 5.5 and 15.5 (pairs (0, 11), (10, 21)), or 10.5 and 10.5.
    """
    scores, labels = [[0.0], [11.0], [10.0], [21.0]], [0, -1, 0, -1]
    apart = (0.5, 0.5, 0.5)  # 10 is above 5.5, and 11 is below 15.5
    seen = {triple(cross_fitted_f1(scores, labels, seed)) for seed in range(20)}
    assert seen == {apart, (1.0, 1.0, 1.0)}


def test_cross_fitted_f1_has_no_skill_on_noise():
    """Fitted on the very responses it judges, a threshold would do better than on fresh ones."""
    scores, labels = responses(5, 400, 5, 1000)
    crossed = [cross_fitted_f1(scores, labels, seed).f1 for seed in range(10)]
    fitted = brute.largest_f1(scores, labels)
    assert max(crossed) <= fitted
    assert sum(crossed) / 10 < fitted
    assert crossed == [cross_fitted_f1(scores, labels, seed).f1 for seed in range(10)]


@property_test
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(0, 5))
def test_cross_fitted_f1_has_both_kinds_in_each_half(seed: int, count: int, split: int):
    """A number whenever there are two of each kind, however few they are."""
    scores, labels = responses(seed, count, 3, 4)
    enough = min(sum(label >= 0 for label in labels), sum(label < 0 for label in labels)) >= 2
    assert math.isfinite(cross_fitted_f1(scores, labels, split).f1) == enough
