"""Intervals and tests for scores, and for differences of scores measured on the same rows.

Two kinds of interval are enough here. A share of right answers has the Wilson interval, which stays honest at 0, at 1
and on few rows. Everything else is bootstrapped: a metric is a function of sums over rows, so one resample is one set
of row weights, and a chunk of resamples is one matrix product `weights [b, n] @ statistics [n, d]`. Candidates get
the *same* weights, which is what makes their differences paired. 10,000 resamples of 2,000 rows take about half a
second on one core even for the 154 sums of a 77-class macro-F1; memory is bounded by the chunk, not by the resamples.

Where every resample gives the same number (one row; all answers right) the bootstrap would claim certainty. Then the
interval falls back to the score interval, which only knows the number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from tunesmith.errors import DataError
from tunesmith.tasks.types import FloatArray

Interval = tuple[float, float]

CHUNK_ELEMENTS = 1_000_000
"""Row weights held at once (8 MB of them as float64)."""

FEW_DISCORDANT = 10
"""With fewer rows than this on which two candidates differ, percentiles of resampled differences are too coarse."""


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of a proportion (Wilson 1927, JASA 22:209-212).

    `(p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)`. Raises `DataError` for n = 0.
    """
    _require_rows(n)
    z = _z(confidence)
    share = successes / n
    centre = share + z * z / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low, high = (centre - reach) / scale, (centre + reach) / scale
    # At the ends the formula is exact; only rounding could leave a value outside its own interval.
    return (0.0 if successes <= 0 else low), (1.0 if successes >= n else high)


def newcombe_paired(both: int, only_a: int, only_b: int, neither: int, confidence: float = 0.95) -> Interval:
    """Interval of the difference a - b of two paired proportions.

    Method 10 of Newcombe 1998 ("Improved confidence intervals for the difference between binomial proportions based
    on paired data", Statistics in Medicine 17:2635-2650): Wilson intervals combined by squaring and adding, with the
    continuity-corrected correlation of the two answers. Counts are rows that both, only a, only b, or neither got
    right.
    """
    n = both + only_a + only_b + neither
    _require_rows(n)
    right_a, right_b = both + only_a, both + only_b
    return _square_and_add(
        right_a / n,
        wilson(right_a, n, confidence),
        right_b / n,
        wilson(right_b, n, confidence),
        _corrected_phi(both, only_a, only_b, neither),
    )


def _corrected_phi(both: int, only_a: int, only_b: int, neither: int) -> float:
    """The fourfold table's correlation, drawn towards 0 by n/2 where it is positive (Newcombe's method 10)."""
    n = both + only_a + only_b + neither
    product = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if product == 0:
        return 0.0
    cross = both * neither - only_a * only_b
    corrected = max(cross - n / 2, 0.0) if cross > 0 else float(cross)
    return corrected / math.sqrt(product)


def _square_and_add(a: float, interval_a: Interval, b: float, interval_b: Interval, phi: float) -> Interval:
    """Interval of a - b from the intervals of a and b and their correlation `phi`."""
    below_a, above_a = a - interval_a[0], interval_a[1] - a
    below_b, above_b = b - interval_b[0], interval_b[1] - b
    down = math.sqrt(max(below_a**2 - 2 * phi * below_a * above_b + above_b**2, 0.0))
    up = math.sqrt(max(above_a**2 - 2 * phi * above_a * below_b + below_b**2, 0.0))
    return max(a - b - down, -1.0), min(a - b + up, 1.0)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value of McNemar's test (McNemar 1947, Psychometrika 12:153-157).

    Of the rows on which exactly one of two candidates is right, half should fall to each if they are equally good:
    a binomial test. 1 where there are no such rows.
    """
    discordant = only_a + only_b
    if discordant == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_a, discordant, 0.5).pvalue)


def bootstrap(
    statistics: Sequence[FloatArray], finish: Callable[[FloatArray], FloatArray], *, resamples: int, seed: int
) -> FloatArray:
    """A metric of several candidates on the same resamples of rows (Efron & Tibshirani 1993, chapter 6).

    Parameters
    ----------
    statistics: per candidate, sums' contributions per row [n, d]; n is the same for all.
    finish: the metric [b] from sums [b, d].
    resamples: how many samples of n rows, drawn with replacement.
    seed: of the draws.

    Returns
    -------
    [candidates, resamples]: column j of every row is computed on the same resampled rows.

    Raises
    ------
    DataError: for no rows, or candidates with different numbers of rows.
    """
    n = len(statistics[0])
    _require_rows(n)
    if any(len(one) != n for one in statistics):
        raise DataError(
            "candidates have different numbers of rows",
            expected="the same rows for every candidate",
            fix="evaluate all candidates on the same test set",
        )
    # Chunks depend on n alone, so a candidate's draws do not depend on which others are compared with it.
    rows_per_chunk = max(1, CHUNK_ELEMENTS // n)
    joined = np.concatenate(statistics, axis=1)
    ends = np.cumsum([one.shape[1] for one in statistics])[:-1]
    generator = np.random.default_rng(seed)
    draws = np.empty((len(statistics), resamples))
    for start in range(0, resamples, rows_per_chunk):
        stop = min(start + rows_per_chunk, resamples)
        sums = _row_weights(generator, stop - start, n) @ joined
        for drawn, part in zip(draws, np.split(sums, ends, axis=1), strict=True):
            drawn[start:stop] = finish(part)
    return draws


def _row_weights(generator: np.random.Generator, samples: int, n: int) -> FloatArray:
    """How often each of n rows occurs in each of `samples` samples of n rows with replacement [samples, n]."""
    drawn = generator.integers(0, n, size=(samples, n))
    drawn += np.arange(samples)[:, None] * n
    counts = np.bincount(drawn.ravel(), minlength=samples * n)
    return counts.reshape(samples, n).astype(np.float64)


def percentile_interval(draws: FloatArray, confidence: float) -> Interval:
    """The middle `confidence` of the draws (percentile bootstrap)."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def value_interval(value: float, n: int, draws: FloatArray | None, confidence: float) -> Interval:
    """Interval of one metric in 0-1 over n rows.

    `draws` are its bootstrap values, or None for a 0/1 metric, which takes Wilson. So do draws that are all equal: a
    mean of scores within 0-1 varies at most as much as a mean of zeros and ones, so this errs on the wide side.
    """
    if draws is None or np.ptp(draws) == 0:
        return wilson(value * n, n, confidence)
    return percentile_interval(draws, confidence)


def difference_interval(
    a: float, b: float, n: int, draws: FloatArray, confidence: float, *, table: tuple[int, int, int, int] | None = None
) -> Interval:
    """Interval of a - b on the same n rows: percentiles of `draws` of the difference.

    `table` holds (both, only a, only b, neither) right for a 0/1 metric; with fewer than `FEW_DISCORDANT` rows on
    which the two differ it takes Newcombe's interval instead. Other metrics whose draws are all equal combine Wilson
    intervals as if uncorrelated, which errs on the wide side.
    """
    if table is not None and table[1] + table[2] < FEW_DISCORDANT:
        return newcombe_paired(*table, confidence=confidence)
    if np.ptp(draws) == 0:
        return _square_and_add(a, wilson(a * n, n, confidence), b, wilson(b * n, n, confidence), 0.0)
    return percentile_interval(draws, confidence)


def rows_needed(
    distance: float, standard_error: float, n: int, *, confidence: float = 0.95, power: float = 0.8
) -> int | None:
    """Test rows in all, so that a difference truly `distance` away from a threshold is told from it with `power`.

    `standard_error` is that of the paired difference on `n` rows and shrinks with their square root, so
    `rows = n ((z_confidence + z_power) se / distance)²` (two-sided; Chow, Shao & Wang 2008, "Sample Size Calculations
    in Clinical Research", section 3.2). None where the distance is 0, as no number of rows would do. At least n + 1:
    it is asked only where n rows were not enough.
    """
    _require_rows(n)
    if distance == 0:
        return None
    z = _z(confidence) + NormalDist().inv_cdf(power)
    return max(n + 1, math.ceil(n * (z * standard_error / distance) ** 2))


def standard_error(interval: Interval, confidence: float = 0.95) -> float:
    """The standard error that an interval's width stands for, taking it as normal."""
    return (interval[1] - interval[0]) / (2 * _z(confidence))


def _z(confidence: float) -> float:
    """Two-sided normal quantile."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _require_rows(n: int) -> None:
    if n < 1:
        raise DataError(
            "there are no rows to measure on", expected="at least one test row", fix="give data.test or data.split.test"
        )
