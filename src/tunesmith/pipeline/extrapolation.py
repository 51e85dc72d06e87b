"""What more data would buy: a power law through the measured points of a learning curve, and how sure that is.

    error(n) = c + a · n^-b,   a >= 0, c >= 0, b in [0.05, 2]

the form that errors follow over orders of magnitude of data (Hestness et al. 2017, arXiv 1712.00409; Rosenfeld et al.
2019, arXiv 1909.12673). Error is one minus the metric. The fit is repeated on bootstrap resamples of the test rows, the
same for all points, and the interval is that of the predictions. It holds what the test set leaves open, and not the
chance of a single training: two seeds give two curves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tunesmith.evaluation.statistics import percentile_interval

FloatArray = npt.NDArray[np.float64]
Answer = Literal["more_data_helps", "more_data_does_not_help", "cannot_tell"]
_EXPONENTS = np.geomspace(0.05, 2.0, 160)
_FEWEST_POINTS = 3


@dataclass(frozen=True, slots=True)
class Prediction:
    """The metric expected with so many rows, and the gain over all present rows; each with its interval."""

    rows: int
    value: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float


@dataclass(frozen=True, slots=True)
class Extrapolation:
    """`answer` is about the first prediction, that of twice the rows. `a`, `b`, `c`: fitted to the measured values."""

    predictions: tuple[Prediction, ...]
    answer: Answer
    a: float
    b: float
    c: float


def extrapolate(
    rows: Sequence[int],
    values: Sequence[float],
    draws: FloatArray,
    *,
    min_gain: float,
    confidence: float,
    factors: Sequence[float] = (2.0, 4.0),
) -> Extrapolation | None:
    """Predictions at `factors` times the largest number of rows; None with fewer than three points.

    Parameters
    ----------
    rows: training rows of each point, ascending. values: the metric (0-1, higher is better) of each.
    draws: [points, resamples], the metric on the same resampled test rows for all points.
    min_gain: the smallest gain worth having.

    It helps where the whole interval of the gain from twice the rows is at least `min_gain`, does not where all of it
    is below, and else cannot be told; nor where all resamples are alike.
    """
    if len(rows) < _FEWEST_POINTS:
        return None
    n = np.asarray(rows, dtype=np.float64)
    a, b, c = (float(part[0]) for part in fit_power_law(n, 1 - np.asarray(values, dtype=np.float64)[:, None]))
    drawn = fit_power_law(n, 1 - draws)
    largest = n[-1]
    predictions = []
    for factor in factors:
        gains = drawn[0] * (largest ** -drawn[1] - (factor * largest) ** -drawn[1])
        expected = 1 - drawn[2] - drawn[0] * (factor * largest) ** -drawn[1]
        low, high = percentile_interval(expected, confidence)
        gain_low, gain_high = percentile_interval(gains, confidence)
        value = 1 - c - a * (factor * largest) ** -b
        gain = a * (largest**-b - (factor * largest) ** -b)
        predictions.append(
            Prediction(round(factor * largest), value, min(low, value), max(high, value), gain, gain_low, gain_high)
        )
    # Where all rows are right, or all wrong, resamples cannot differ: an interval of no width says nothing.
    flat = bool(np.ptp(draws) == 0)
    answer: Answer = "cannot_tell" if flat else _answer(predictions[0], min_gain)
    return Extrapolation(tuple(predictions), answer, a, b, c)


def fit_power_law(
    rows: FloatArray, errors: FloatArray, exponents: FloatArray = _EXPONENTS
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Least squares of `c + a n^-b` for each column of `errors` [points, k]: a, b, c, each [k].

    For every exponent of a grid the best a and c are known in closed form, also where one of them is held at 0.
    """
    best = np.full(errors.shape[1], np.inf)
    found = [np.zeros(errors.shape[1]) for _ in "abc"]
    means = errors.mean(axis=0)
    scale = rows[-1]
    for exponent in exponents:
        x = (rows / scale) ** -exponent
        centred = x - x.mean()
        slope = np.maximum(centred @ (errors - means) / (centred @ centred), 0.0)
        floor = means - slope * x.mean()
        below = floor < 0  # then the law goes to 0: a pure power
        slope = np.where(below, x @ errors / (x @ x), slope)
        floor = np.where(below, 0.0, floor)
        wrong = ((errors - floor - slope * x[:, None]) ** 2).sum(axis=0)
        better = wrong < best - 1e-15
        best = np.where(better, wrong, best)
        for kept, new in zip(found, (slope * scale**exponent, np.full_like(best, exponent), floor), strict=True):
            kept[better] = new[better]
    return found[0], found[1], found[2]


def _answer(twice: Prediction, min_gain: float) -> Answer:
    if twice.gain_low >= min_gain:
        return "more_data_helps"
    if twice.gain_high < min_gain:
        return "more_data_does_not_help"
    return "cannot_tell"
