"""How well probabilities of labels can be believed, and one number that mends most of what is wrong with them.

A source is calibrated if of all answers with probability 0.8 eight in ten are right. Measured are

    ECE       Σ_b n_b/n |accuracy_b − confidence_b|, over bins of equal mass (Naeini et al. 2015; arXiv 1706.04599)
    Brier     mean over rows of Σ_label (p_label − [label is expected])², 0 to 2 (Brier 1950)
    log loss  mean of −log p_expected, in nats

Confidence is the probability of the likeliest label. Bins of equal mass are the default: a tuned model puts most rows
into the top bin of equal width, and the few in the others are then all that is measured; with equal mass every bin is
as sure as the next, and the bias of ECE is smaller (Nixon et al. 2019, arXiv 1904.01685). Equal width is computed
beside it, as it is what most papers report. ECE is never 0 on a finite number of rows, so what a calibrated model shows
on as many is given too (Vaicenavicius et al. 2019, arXiv 1902.06977: consistency resampling).

Temperature scaling (arXiv 1706.04599, section 4.2) divides log-probabilities by one number T and normalises again. The
likeliest label stays what it was, so no answer changes. T is fitted on *validation* rows: log loss is convex in 1/T,
and its derivative is found to be 0 by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

BINS = 15
"""As in arXiv 1706.04599."""
FEWEST_PER_BIN = 10
"""Rows a bin of equal mass holds at least: fewer rows, fewer bins."""
FEWEST_TO_FIT = 20
"""Validation rows from which on a temperature is fitted, if one of them is wrong: else the coldest would fit best."""
SMALLEST = 1e-12
"""Probabilities under this count as this: a row the model holds for impossible must not make all others worthless."""
_DRAWS = 200
_COLDEST, _HOTTEST = 0.05, 20.0
"""Temperatures lie between."""


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Answers whose confidence lies in (low, high]: their mean confidence, and the share of them that is right."""

    low: float
    high: float
    confidence: float
    accuracy: float
    n: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """Of one candidate on the test rows. `scaled` is the same after dividing log-probabilities by `temperature`, which
    was fitted on validation rows; both None where there were too few of them, or none was wrong.

    ece: over `bins` (equal mass). ece_width: over bins of equal width. fitted_on: validation rows of the temperature.
    left_out: rows without probabilities, or whose expected answer is none of the labels. ece_by_chance: the mean ECE if
    exactly as many answers were right as these confidences promise.
    """

    candidate: str
    n: int
    ece: float
    brier: float
    log_loss: float
    bins: tuple[ReliabilityBin, ...]
    temperature: float | None = None
    scaled: Calibration | None = None
    ece_width: float = 0.0
    fitted_on: int = 0
    left_out: int = 0
    ece_by_chance: float = 0.0


@dataclass(frozen=True, slots=True)
class Beliefs:
    """What a model believed of rows: `logs` [n, labels] of log-probabilities, `expected` [n] as places of labels."""

    labels: tuple[str, ...]
    logs: FloatArray
    expected: IntArray

    @property
    def n(self) -> int:
        return len(self.expected)

    def divided_by(self, temperature: float) -> Beliefs:
        """With log-probabilities divided by a temperature, normalised again."""
        return Beliefs(self.labels, _normalised(self.logs / temperature), self.expected)


def beliefs_of(rows: Sequence[tuple[Mapping[str, float] | None, str]]) -> tuple[Beliefs | None, int]:
    """Rows as (probabilities by label, expected label), and how many were left out.

    Left out is a row without probabilities, with other labels than the first one's, or whose expected label is none of
    them. None where no row is left.
    """
    first = next((probabilities for probabilities, _ in rows if probabilities), None)
    if first is None:
        return None, len(rows)
    labels = tuple(first)
    place = {label: i for i, label in enumerate(labels)}
    kept = [(p, place[label]) for p, label in rows if p and label in place and p.keys() == place.keys()]
    if not kept:
        return None, len(rows)
    probabilities = np.array([[p[label] for label in labels] for p, _ in kept], dtype=np.float64)
    logs = _normalised(np.log(np.maximum(probabilities, SMALLEST)))
    return Beliefs(labels, logs, np.array([label for _, label in kept], dtype=np.int64)), len(rows) - len(kept)


def tempered(probabilities: Mapping[str, float], temperature: float) -> dict[str, float]:
    """One row's probabilities, their logarithms divided by a temperature, normalised again."""
    logs = np.log(np.maximum(np.array(list(probabilities.values()), dtype=np.float64), SMALLEST))
    return dict(zip(probabilities, np.exp(_normalised(logs[None] / temperature))[0].tolist(), strict=True))


def calibration(candidate: str, test: Beliefs, validation: Beliefs | None = None, *, left_out: int = 0) -> Calibration:
    """The calibration on test rows, as it is and after the temperature that fits the validation rows."""
    plain = _measured(candidate, test)
    temperature = scaled = None
    if validation is not None and validation.n >= FEWEST_TO_FIT and not _right(validation).all():
        temperature = fit_temperature(validation)
        scaled = _measured(candidate, test.divided_by(temperature))
    return Calibration(
        candidate,
        plain.n,
        plain.ece,
        plain.brier,
        plain.log_loss,
        plain.bins,
        temperature,
        scaled,
        plain.ece_width,
        validation.n if validation is not None and temperature is not None else 0,
        left_out,
        plain.ece_by_chance,
    )


def fit_temperature(beliefs: Beliefs) -> float:
    """The temperature (0.05 to 20) with the least log loss.

    Over b = 1/T the loss is convex; its derivative is the mean of E_b[log p] − log p_expected, E_b under the scaled
    probabilities, and grows with b.
    """
    wanted = float(_of_expected(beliefs).mean())

    def slope(inverse: float) -> float:
        scaled = np.exp(_normalised(beliefs.logs * inverse))
        return float((scaled * beliefs.logs).sum(axis=1).mean()) - wanted

    low, high = 1 / _HOTTEST, 1 / _COLDEST
    if slope(low) >= 0:
        return _HOTTEST
    if slope(high) <= 0:
        return _COLDEST
    while high - low > 1e-6 * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1 / math.sqrt(low * high)


def brier_score(beliefs: Beliefs) -> float:
    """Mean squared distance of the probabilities from 1 for the expected label and 0 for the others; 0 to 2."""
    wanted = np.zeros_like(beliefs.logs)
    wanted[np.arange(beliefs.n), beliefs.expected] = 1.0
    return float(((np.exp(beliefs.logs) - wanted) ** 2).sum(axis=1).mean())


def log_loss(beliefs: Beliefs) -> float:
    """Mean of −log p of the expected label, in nats."""
    return -float(_of_expected(beliefs).mean())


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Mean distance of accuracy and confidence over bins, weighted by their rows."""
    rows = sum(one.n for one in bins)
    return sum(one.n * abs(one.accuracy - one.confidence) for one in bins) / rows if rows else 0.0


def bins_of_equal_width(confidence: FloatArray, right: FloatArray, bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """Bins (0, 1/bins], …; those without rows are left out. `confidence`, `right` (0 or 1): [n]."""
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    edges = [(i / bins, (i + 1) / bins) for i in range(bins)]
    return tuple(
        _bin(low, high, confidence[places == i], right[places == i])
        for i, (low, high) in enumerate(edges)
        if (places == i).any()
    )


def bins_of_equal_mass(confidence: FloatArray, right: FloatArray, bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """Bins of as many rows each, `FEWEST_PER_BIN` or more; rows of the same confidence stay in one bin."""
    n = len(confidence)
    if not n:
        return ()
    count = max(1, min(bins, n // FEWEST_PER_BIN))
    ordered = np.sort(confidence)
    edges = np.unique(ordered[[min(n - 1, -(-n * (i + 1) // count) - 1) for i in range(count)]])
    places = np.searchsorted(edges, confidence, side="left")
    lows = [0.0, *edges[:-1].tolist()]
    return tuple(_bin(lows[i], float(edges[i]), confidence[places == i], right[places == i]) for i in range(len(edges)))


def _measured(candidate: str, beliefs: Beliefs) -> Calibration:
    confidence = np.exp(beliefs.logs).max(axis=1)
    right = _right(beliefs).astype(np.float64)
    bins = bins_of_equal_mass(confidence, right)
    return Calibration(
        candidate,
        beliefs.n,
        expected_calibration_error(bins),
        brier_score(beliefs),
        log_loss(beliefs),
        bins,
        ece_width=expected_calibration_error(bins_of_equal_width(confidence, right)),
        ece_by_chance=_ece_by_chance(confidence, bins),
    )


def _ece_by_chance(confidence: FloatArray, bins: Sequence[ReliabilityBin]) -> float:
    """Mean ECE over draws in which each answer is right with the probability of its confidence [n]."""
    places = np.searchsorted([one.high for one in bins], confidence, side="left")
    draw = np.random.default_rng(0)
    total = 0.0
    for number in range(len(bins)):
        inside = confidence[places == number]
        right = (draw.random((_DRAWS, len(inside))) < inside).sum(axis=1)
        total += float(np.abs(right - inside.sum()).mean())
    return total / len(confidence)


def _bin(low: float, high: float, confidence: FloatArray, right: FloatArray) -> ReliabilityBin:
    return ReliabilityBin(low, high, float(confidence.mean()), float(right.mean()), len(confidence))


def _right(beliefs: Beliefs) -> npt.NDArray[np.bool_]:
    """Whether the likeliest label is the expected one [n]."""
    right: npt.NDArray[np.bool_] = beliefs.logs.argmax(axis=1) == beliefs.expected
    return right


def _of_expected(beliefs: Beliefs) -> FloatArray:
    """Log-probability of the expected label [n]."""
    found: FloatArray = beliefs.logs[np.arange(beliefs.n), beliefs.expected]
    return found


def _normalised(logs: FloatArray) -> FloatArray:
    """Log-probabilities [n, k] whose exponentials add up to 1 in each row."""
    shifted = logs - logs.max(axis=1, keepdims=True)
    result: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
