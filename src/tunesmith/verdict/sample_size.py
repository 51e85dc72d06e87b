"""How many test rows a decision needs.

The usual formula, n = s² (z_conf + z_power)² / effect² (Miller 2024, "Adding Error Bars to Evals", section 5), asks
for the effect as if it were known. Where a decision failed the effect is not known: planning with the measured one
promises too much, most of all where tuning in truth changes nothing. So the chance of a decision is averaged over the
effects that are plausible after the present rows; that is *assurance* (O'Hagan, Stevens and Campbell 2005, "Assurance
in clinical trial design"). Before the rows, "no effect at all" and "some effect, of the order of ten points" count as
equally likely (a spike and a slab); n rows with estimate d and variance s² per row then leave

    no effect      with weight ∝ Normal(d; 0, s²/n)
    some effect    with weight ∝ Normal(d; 0, s²/n + τ²), distributed as Normal(k d, k s²/n), k = τ² / (τ² + s²/n)

The estimate on N rows, of which the first n are the present ones, is (n d + (N − n) new) / N. The answer is the
smallest N at which the decision rule decides with the stated power.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

_NORMAL = NormalDist()
_TAU = 0.1
"""Size of an effect that is there, as a fraction: tuning that does something moves a metric by some ten points."""


def z_value(confidence: float) -> float:
    """The two-sided normal quantile: 0.95 → 1.96."""
    return _NORMAL.inv_cdf((1 + confidence) / 2)


def zero_event_bound(n: int, confidence: float) -> float:
    """The highest rate an event may have that occurred in none of n rows (Clopper and Pearson 1934)."""
    return 1.0 - float(((1 - confidence) / 2) ** (1 / n))


def rows_needed(
    estimate: float,
    variance: float,
    n: int,
    *,
    power: float,
    yes_from: Callable[[float], float],
    no_below: Callable[[float], float],
    maybe_nothing: bool,
) -> int:
    """Test rows in all (more than `n`) that decide with probability `power`, rounded up to two significant digits.

    Parameters
    ----------
    estimate, variance: the effect measured on `n` rows and its variance per row (fractions; variance above 0).
    yes_from, no_below: the decision rule. With the standard error of the estimate on N rows, an estimate of at least
        `yes_from(error)` decides one way and one less than `no_below(error)` the other. Both must meet as the error
        goes to 0, or no number of rows would be enough.
    maybe_nothing: count "no effect at all" as plausible. It must then be a "no" on enough rows: `no_below(0) > 0`.
        Otherwise every effect is as likely as any other.
    """
    beliefs = _beliefs(estimate, variance / n, maybe_nothing)

    def chance(rows: int) -> float:
        error = math.sqrt(variance / rows)
        new = (rows - n) / rows
        total = 0.0
        for belief in beliefs:
            mean = (1 - new) * estimate + new * belief.mean
            spread = new * math.sqrt(belief.variance + variance / (rows - n))
            yes = 1 - _NORMAL.cdf((yes_from(error) - mean) / spread)
            no = _NORMAL.cdf((no_below(error) - mean) / spread)
            total += belief.weight * (yes + no)
        return total

    low, high = n, 2 * n
    while chance(high) < power:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if chance(middle) < power else (low, middle)
    return two_digits_up(high)


@dataclass(frozen=True, slots=True)
class _Belief:
    weight: float
    mean: float
    variance: float


def _beliefs(estimate: float, error2: float, maybe_nothing: bool) -> list[_Belief]:
    """What the true effect may be after the present rows; `error2` is the squared standard error."""
    if not maybe_nothing:
        return [_Belief(1.0, estimate, error2)]
    nothing = NormalDist(0, math.sqrt(error2)).pdf(estimate)
    something = NormalDist(0, math.sqrt(error2 + _TAU**2)).pdf(estimate)
    shrink = _TAU**2 / (_TAU**2 + error2)
    weight = nothing / (nothing + something) if nothing + something > 0 else 0.0
    return [_Belief(weight, 0.0, 0.0), _Belief(1 - weight, shrink * estimate, shrink * error2)]


def two_digits_up(number: int) -> int:
    """Up to two significant digits: a forecast has no more."""
    step = int(10 ** max(0, len(str(number)) - 2))
    return -(-number // step) * step
