"""Calibration: figures against scikit-learn and by hand, calibrated sources, known temperatures, odd rows."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.evaluation.calibration import (
    BINS,
    FEWEST_TO_FIT,
    Beliefs,
    beliefs_of,
    bins_of_equal_mass,
    bins_of_equal_width,
    brier_score,
    calibration,
    expected_calibration_error,
    fit_temperature,
    log_loss,
    tempered,
)


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def drawn(rng: np.random.Generator, probabilities: np.ndarray) -> np.ndarray:
    """A label per row, drawn with its probability."""
    return (probabilities.cumsum(axis=1) < rng.random((len(probabilities), 1))).sum(axis=1)


def source(n: int, labels: int, temperature: float, seed: int) -> Beliefs:
    """Beliefs of a model whose logits are `temperature` times too large."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 2, (n, labels))
    expected = drawn(rng, softmax(truth))
    believed = softmax(truth * temperature)
    names = [f"label {i}" for i in range(labels)]
    found, left_out = beliefs_of(
        [(dict(zip(names, row, strict=True)), names[y]) for row, y in zip(believed.tolist(), expected, strict=True)]
    )
    assert found is not None and not left_out
    return found


def test_brier_score_and_log_loss_agree_with_scikit_learn() -> None:
    from sklearn.metrics import brier_score_loss
    from sklearn.metrics import log_loss as sklearn_log_loss

    beliefs = source(400, 5, 1.7, seed=1)
    probabilities = np.exp(beliefs.logs)
    assert log_loss(beliefs) == pytest.approx(sklearn_log_loss(beliefs.expected, probabilities), rel=1e-9)
    per_label = [brier_score_loss(beliefs.expected == k, probabilities[:, k]) for k in range(5)]
    assert brier_score(beliefs) == pytest.approx(sum(per_label), rel=1e-9)


def test_the_reliability_curve_agrees_with_scikit_learn() -> None:
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(5)
    confidence = rng.random(2_000)
    right = (rng.random(2_000) < confidence**2).astype(float)
    ours = bins_of_equal_width(confidence, right, 10)
    accuracy, mean = calibration_curve(right, confidence, n_bins=10, strategy="uniform")
    assert [one.accuracy for one in ours] == pytest.approx(accuracy)
    assert [one.confidence for one in ours] == pytest.approx(mean)


def test_calibration_error_by_hand() -> None:
    # Two bins of ten rows: 0.55 sure and 4 in 10 right, 0.95 sure and 9 in 10 right.
    confidence = np.array([0.55] * 10 + [0.95] * 10)
    right = np.array([1.0] * 4 + [0.0] * 6 + [1.0] * 9 + [0.0])
    for bins in (bins_of_equal_width(confidence, right), bins_of_equal_mass(confidence, right)):
        assert [(one.n, one.accuracy) for one in bins] == [(10, 0.4), (10, 0.9)]
        assert expected_calibration_error(bins) == pytest.approx((0.15 + 0.05) / 2)


def test_a_calibrated_source_has_a_small_error_and_asks_for_no_temperature() -> None:
    found = calibration("tuned", source(8_000, 8, 1.0, seed=2), source(8_000, 8, 1.0, seed=3))
    assert found.ece < 0.02 and found.ece_width < 0.02
    assert found.temperature == pytest.approx(1.0, abs=0.05)
    # What is drawn from the probabilities has the log loss of their entropy.
    beliefs = source(8_000, 8, 1.0, seed=2)
    entropy = -float((np.exp(beliefs.logs) * beliefs.logs).sum(axis=1).mean())
    assert found.log_loss == pytest.approx(entropy, abs=0.03)


def test_what_chance_alone_shows_is_what_a_calibrated_source_shows() -> None:
    few = [calibration("tuned", source(200, 5, 1.0, seed=seed)) for seed in range(20)]
    shown = float(np.mean([found.ece for found in few]))
    told = float(np.mean([found.ece_by_chance for found in few]))
    assert told == pytest.approx(shown, rel=0.15) and shown > 0.05  # by far not 0
    many = calibration("tuned", source(8_000, 5, 1.0, seed=0))
    assert many.ece_by_chance < told / 4
    boastful = calibration("tuned", source(2_000, 5, 3.0, seed=0))
    assert boastful.ece > 5 * boastful.ece_by_chance
    assert calibration("tuned", source(200, 5, 1.0, seed=3)) == few[3]


@pytest.mark.parametrize("wrong_by", [0.5, 2.0, 3.5])
def test_a_known_temperature_is_recovered_and_mends_the_test_rows(wrong_by: float) -> None:
    test, validation = source(4_000, 6, wrong_by, seed=4), source(4_000, 6, wrong_by, seed=5)
    found = calibration("tuned", test, validation)
    assert found.temperature == pytest.approx(wrong_by, rel=0.06)
    assert found.scaled is not None and found.fitted_on == 4_000
    assert found.ece > 0.05 > 0.03 > found.scaled.ece
    assert found.scaled.log_loss < found.log_loss and found.scaled.brier < found.brier
    assert found.scaled.temperature is None and found.scaled.scaled is None


def test_the_temperature_is_the_minimum_that_an_independent_search_finds() -> None:
    from scipy.optimize import minimize_scalar

    beliefs = source(300, 4, 2.5, seed=6)
    best = minimize_scalar(lambda t: log_loss(beliefs.divided_by(t)), bounds=(0.05, 20), method="bounded")
    assert fit_temperature(beliefs) == pytest.approx(best.x, rel=1e-3)


def test_a_model_that_is_never_or_always_wrong_gets_the_last_temperature_there_is() -> None:
    never = [({"a": 0.9, "b": 0.1}, "a")] * 30
    always = [({"a": 0.9, "b": 0.1}, "b")] * 30
    for rows, wanted in ((never, 0.05), (always, 20.0)):
        beliefs, _ = beliefs_of(rows)
        assert beliefs is not None and fit_temperature(beliefs) == pytest.approx(wanted)


def test_with_few_validation_rows_nothing_is_fitted() -> None:
    validation = source(FEWEST_TO_FIT - 1, 3, 2.0, seed=7)
    found = calibration("tuned", source(100, 3, 2.0, seed=8), validation)
    assert found.temperature is None and found.scaled is None and found.fitted_on == 0
    assert calibration("tuned", source(100, 3, 2.0, seed=8)).scaled is None


def test_where_no_validation_row_is_wrong_nothing_is_fitted() -> None:
    right, _ = beliefs_of([({"a": 0.6, "b": 0.4}, "a")] * 100)
    once, _ = beliefs_of([({"a": 0.6, "b": 0.4}, "a")] * 99 + [({"a": 0.6, "b": 0.4}, "b")])
    test = source(100, 2, 2.0, seed=8)
    found = calibration("tuned", test, right)
    assert found.temperature is None and found.scaled is None and found.fitted_on == 0
    assert calibration("tuned", test, once).temperature == pytest.approx(math.log(0.6 / 0.4) / math.log(99), rel=1e-4)


def test_rows_that_cannot_be_measured_are_counted_not_dropped_in_silence() -> None:
    sure = {"a": 0.8, "b": 0.2}
    beliefs, left_out = beliefs_of([(sure, "a"), (None, "a"), (sure, "c"), ({"a": 1.0}, "a"), ({}, "b"), (sure, "b")])
    assert beliefs is not None and beliefs.n == 2 and left_out == 4
    assert calibration("tuned", beliefs, left_out=left_out).left_out == 4
    assert beliefs_of([(None, "a"), ({}, "b")]) == (None, 2)
    assert beliefs_of([(sure, "c")]) == (None, 1)


def test_probabilities_of_zero_and_one_do_not_break_the_figures() -> None:
    beliefs, _ = beliefs_of([({"a": 1.0, "b": 0.0}, "a"), ({"a": 1.0, "b": 0.0}, "b")] * 20)
    assert beliefs is not None
    assert log_loss(beliefs) == pytest.approx(-math.log(1e-12) / 2, rel=1e-6)
    assert brier_score(beliefs) == pytest.approx(1.0)
    found = calibration("tuned", beliefs, beliefs)
    assert found.ece == pytest.approx(0.5) and found.bins[0].n == 40
    assert found.scaled is not None and math.isfinite(found.scaled.log_loss)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=300), st.integers(1, 2**32 - 1))
def test_bins_hold_every_row_once_in_order(confidences: list[float], seed: int) -> None:
    confidence = np.array(confidences)
    right = np.random.default_rng(seed).integers(0, 2, len(confidence)).astype(float)
    for bins in (bins_of_equal_mass(confidence, right), bins_of_equal_width(confidence, right)):
        assert sum(one.n for one in bins) == len(confidence) and 1 <= len(bins) <= BINS
        assert sum(one.n * one.accuracy for one in bins) == pytest.approx(right.sum())
        assert all(one.low <= one.confidence + 1e-9 and one.confidence <= one.high + 1e-9 for one in bins)
        assert all(a.high <= b.low + 1e-9 for a, b in pairwise(bins))
        assert 0 <= expected_calibration_error(bins) <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=9), st.floats(0.05, 20))
def test_a_temperature_changes_no_answer(weights: list[float], temperature: float) -> None:
    total = sum(weights)
    probabilities = {f"label {i}": weight / total for i, weight in enumerate(weights)}
    scaled = tempered(probabilities, temperature)
    assert sum(scaled.values()) == pytest.approx(1.0)
    best = max(probabilities.values())
    top = max(scaled, key=lambda label: scaled[label])
    assert probabilities[top] == pytest.approx(best, rel=1e-6)
    assert tempered(probabilities, 1.0) == pytest.approx(probabilities)
