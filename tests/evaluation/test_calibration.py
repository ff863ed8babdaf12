"""Held-out quality of scores: pair counting, loops and published values."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openprime.evaluation.calibration import brier, expected_calibration_error, lowest_is_last, roc_auc
from support import brute
from support.strategies import property_test

tenths = st.integers(0, 10).map(lambda k: k / 10)
labelled = st.lists(st.tuples(tenths, st.booleans()), min_size=1, max_size=30)
forecasts = st.lists(st.tuples(st.one_of(tenths, st.floats(0, 1)), st.booleans()), min_size=1, max_size=40)


# ROC


@property_test
@given(labelled)
def test_roc_auc__counts_pairs(rows: list[tuple[float, bool]]):
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
def test_roc_auc__by_hand(scores: list[float], labels: list[bool], area: float):
    assert roc_auc(scores, labels) == area


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("labels", [[True, True], [False, False], []])
def test_roc_auc__of_one_class_is_nan(labels: list[bool]):
    assert math.isnan(roc_auc([1.0, 2.0][: len(labels)], labels))


def test_roc_auc__score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="numbers"):
        roc_auc([1.0, math.nan], [True, False])


# Calibration


def test_brier__by_hand():
    """The example of scikit-learn's brier_score_loss; and soft outcomes."""
    assert brier([0.1, 0.9, 0.8, 0.3], [0, 1, 1, 0]) == pytest.approx(0.0375)
    assert brier([0.5, 1.0, 0.0], [0.25, 1.0, 1.0]) == pytest.approx((0.0625 + 1) / 3)


@property_test
@given(forecasts, st.integers(1, 12))
def test_expected_calibration_error__equals_bin_by_bin(rows: list[tuple[float, bool]], bins: int):
    probabilities, outcomes = [p for p, _ in rows], [float(o) for _, o in rows]
    wanted = brute.expected_calibration_error(probabilities, outcomes, bins)
    assert expected_calibration_error(probabilities, outcomes, bins) == pytest.approx(wanted, abs=1e-12)


def test_expected_calibration_error__of_torchmetrics():
    """The example of BinaryCalibrationError with n_bins=2 and norm='l1'."""
    error = expected_calibration_error([0.25, 0.25, 0.55, 0.75, 0.75], [0, 0, 1, 1, 1], bins=2)
    assert error == pytest.approx(0.29, abs=1e-4)


def test_expected_calibration_error__an_edge_belongs_to_the_bin_below():
    """7/100 times 100 is above 7 in floating point, 29/100 times 100 is below 29."""
    for k in range(1, 100):
        # Alone in its bin, each of the two errs by its own difference; together they would cancel.
        pair = [k / 100, math.nextafter(k / 100, 1)]
        assert expected_calibration_error(pair, [0, 1], bins=100) == pytest.approx(0.5)
        pair = [k / 100, math.nextafter(k / 100, 0)]
        assert expected_calibration_error(pair, [0, 1], bins=100) == pytest.approx(abs(0.5 - k / 100))


# The lowest step


@property_test
@given(st.lists(st.lists(st.integers(-2, 2).map(float), max_size=5), max_size=8))
def test_lowest_is_last__equals_loops(rows: list[list[float]]):
    long = [row for row in rows if len(row) >= 2]
    last = [all(row[-1] < reward for reward in row[:-1]) for row in long]
    wanted = sum(last) / len(long) if long else math.nan
    assert lowest_is_last(rows) == pytest.approx(wanted, nan_ok=True)
