"""What a number of rows can show, and how many rows show a given difference."""

from __future__ import annotations

import math

from tunesmith.evaluation.statistics.types import NORMAL, Interval, require_rows, z_value


def smallest_detectable(error: float, *, confidence: float = 0.95, power: float = 0.8) -> float:
    """The smallest true difference that is told from none with `power`: `(z_confidence + z_power) error`.

    `error` is the standard error of the difference on the rows at hand (Miller 2024, arXiv:2411.00640, section 5;
    Chow, Shao & Wang 2008, "Sample Size Calculations in Clinical Research", section 3.2).
    """
    return (z_value(confidence) + NORMAL.inv_cdf(power)) * error


def rows_needed(
    distance: float, standard_error: float, n: int, *, confidence: float = 0.95, power: float = 0.8
) -> int | None:
    """Test rows in all, so that a difference truly `distance` away from a threshold is told from it with `power`.

    `standard_error` is that of the paired difference on `n` rows and shrinks with their square root, so
    `rows = n ((z_confidence + z_power) se / distance)²` (two-sided; sources as for `smallest_detectable`). None where
    the distance is 0, as no number of rows would do. At least n + 1: it is asked only where n rows were not enough.
    """
    require_rows(n)
    if distance == 0:
        return None
    detectable = smallest_detectable(standard_error, confidence=confidence, power=power)
    return max(n + 1, math.ceil(n * (detectable / distance) ** 2))


def standard_error(interval: Interval, confidence: float = 0.95) -> float:
    """The standard error that an interval's width stands for, taking it as normal."""
    return (interval[1] - interval[0]) / (2 * z_value(confidence))
