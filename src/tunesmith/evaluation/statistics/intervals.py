"""Intervals of one score, and of the difference of two scores on the same rows.

| of | interval |
|---|---|
| a share of right answers | Wilson's score interval, which stays honest at 0, at 1 and on few rows |
| the difference of two such shares | Newcombe's paired interval |
| anything else | bootstrap, bias-corrected and accelerated (BCa), with Student's instead of the normal quantile |
| anything on very many rows | normal, with the jackknife's standard error |

Where every resample gives the same number (one row; all answers alike) the bootstrap would claim certainty. Then the
interval falls back to the score interval, which only knows the number of rows.
"""

from __future__ import annotations

import math

import numpy as np

from tunesmith.evaluation.statistics.resampling import jackknife_error
from tunesmith.evaluation.statistics.types import NORMAL, Interval, require_rows, t_value, z_value
from tunesmith.tasks.types import FloatArray

MANY_ROWS = 20_000
"""From here on the bootstrap costs seconds and shows nothing that the jackknife's standard error does not."""


def wilson(successes: float, n: float, confidence: float = 0.95) -> Interval:
    """Score interval of a proportion (Wilson 1927, JASA 22:209-212).

    `(p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)`. `n` may be an effective number of rows (see `clusters`).
    Raises `DataError` for n < 1.
    """
    require_rows(math.floor(n))
    z = z_value(confidence)
    share = successes / n
    centre = share + z * z / (2 * n)
    reach = z * math.sqrt(max(share * (1 - share), 0.0) / n + z * z / (4 * n * n))
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
    require_rows(n)
    right_a, right_b = both + only_a, both + only_b
    return square_and_add(
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


def square_and_add(a: float, interval_a: Interval, b: float, interval_b: Interval, phi: float) -> Interval:
    """Interval of a - b from the intervals of a and b and their correlation `phi`."""
    below_a, above_a = a - interval_a[0], interval_a[1] - a
    below_b, above_b = b - interval_b[0], interval_b[1] - b
    down = math.sqrt(max(below_a**2 - 2 * phi * below_a * above_b + above_b**2, 0.0))
    up = math.sqrt(max(above_a**2 - 2 * phi * above_a * below_b + below_b**2, 0.0))
    return max(a - b - down, -1.0), min(a - b + up, 1.0)


def percentile_interval(draws: FloatArray, confidence: float) -> Interval:
    """The middle `confidence` of the draws (percentile bootstrap)."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def bca_interval(draws: FloatArray, value: float, leave_one_out: FloatArray, confidence: float) -> Interval:
    """Bias-corrected and accelerated bootstrap (Efron 1987, JASA 82:171-185), widened for few rows.

    It moves the percentiles where the draws lie off the measured value (`z0`) and where their spread changes with the
    value (`a`, from the jackknife), as with an F1 near 1 or a ROUGE near 0. In place of the normal quantile stands
    `sqrt(n/(n-1)) t` with n - 1 degrees of freedom, since the percentiles of a mean are too narrow on few rows by just
    that much (Hesterberg 2015, arXiv:1411.5279, section 4.6).

    Parameters
    ----------
    draws: bootstrap values of the metric, or of the difference.
    value: the one measured on all rows.
    leave_one_out: the same without each row (or cluster) in turn [n]; n at least 2.
    """
    n, many = len(leave_one_out), len(draws)
    below = np.count_nonzero(draws < value - 1e-12) + 0.5 * np.count_nonzero(np.abs(draws - value) <= 1e-12)
    offset = NORMAL.inv_cdf(min(max(below / many, 0.5 / many), 1 - 0.5 / many))
    away = leave_one_out.mean() - leave_one_out
    spread = float((away**2).sum())
    acceleration = float((away**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    reach = math.sqrt(n / (n - 1)) * t_value(confidence, n - 1)
    levels = [_shifted_level(offset, acceleration, sign * reach) for sign in (-1, 1)]
    low, high = np.quantile(draws, levels)
    return float(low), float(high)


def _shifted_level(offset: float, acceleration: float, quantile: float) -> float:
    """The share of draws below the end of a BCa interval."""
    moved = offset + quantile
    shrink = 1 - acceleration * moved
    if shrink <= 0:  # the skew is beyond what the correction can express: all draws on that side
        return 0.0 if quantile < 0 else 1.0
    return NORMAL.cdf(offset + moved / shrink)


def normal_interval(value: float, error: float, confidence: float) -> Interval:
    """`value ± z error`."""
    reach = z_value(confidence) * error
    return value - reach, value + reach


def value_interval(
    value: float,
    n: float,
    draws: FloatArray | None,
    confidence: float,
    *,
    leave_one_out: FloatArray | None = None,
) -> Interval:
    """Interval of one metric in 0-1 over n rows.

    `draws` are its bootstrap values, or None for a 0/1 metric, which takes Wilson. So do draws that are all equal: a
    mean of scores within 0-1 varies at most as much as a mean of zeros and ones, so this errs on the wide side. With
    `leave_one_out` (from `jackknife`) the interval is BCa, else of plain percentiles.
    """
    if draws is None or np.ptp(draws) == 0:
        return wilson(value * n, n, confidence)
    if leave_one_out is None or len(leave_one_out) < 2:
        return percentile_interval(draws, confidence)
    low, high = bca_interval(draws, value, leave_one_out, confidence)
    return min(low, value), max(high, value)


def difference_interval(
    a: float,
    b: float,
    n: float,
    draws: FloatArray | None,
    confidence: float,
    *,
    table: tuple[int, int, int, int] | None = None,
    leave_one_out: FloatArray | None = None,
) -> Interval:
    """Interval of a - b on the same n rows.

    `table` holds (both, only a, only b, neither) right for a 0/1 metric on independent rows, which takes Newcombe's
    interval. Others take `draws` of the difference: BCa with `leave_one_out`, the difference without each row in turn,
    else percentiles. Draws that are all equal take `alike_interval`. Where there are no draws, Wilson intervals are
    combined as if uncorrelated, which errs on the wide side.
    """
    if table is not None:
        return newcombe_paired(*table, confidence=confidence)
    if draws is not None and np.ptp(draws) == 0:
        return alike_interval(a - b, n, confidence)
    if draws is None:
        return square_and_add(a, wilson(a * n, n, confidence), b, wilson(b * n, n, confidence), 0.0)
    if leave_one_out is None or len(leave_one_out) < 2:
        return percentile_interval(draws, confidence)
    low, high = bca_interval(draws, a - b, leave_one_out, confidence)
    return min(low, a - b), max(high, a - b)


def alike_interval(difference: float, n: float, confidence: float) -> Interval:
    """Interval of a paired difference where all of n rows have the same one.

    Rows with another one may be a share of up to `1 - (tail)^(1/n)` and n rows would still have shown none (Clopper and
    Pearson 1934, Biometrika 26:404-413, for no success); each could change the mean of scores within 0-1 by its whole.
    """
    reach = float(1 - ((1 - confidence) / 2) ** (1 / n))
    return max(difference - reach, -1.0), min(difference + reach, 1.0)


def large_sample_interval(value: float, leave_one_out: FloatArray, confidence: float) -> Interval | None:
    """The normal interval on at least `MANY_ROWS` rows (or clusters) that show any spread, else None."""
    if len(leave_one_out) < MANY_ROWS:
        return None
    error = jackknife_error(leave_one_out)
    return normal_interval(value, error, confidence) if error > 0 else None
