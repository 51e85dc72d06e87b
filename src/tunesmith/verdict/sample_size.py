"""How many test rows a decision needs.

The usual formula, n = s² (z_conf + z_power)² / effect² (Miller 2024, "Adding Error Bars to Evals", section 5), asks
for the effect as if it were known. Where a decision failed the effect is not known: planning with the measured one
promises too much, most of all where tuning in truth changes nothing. So the chance of a decision is averaged over the
effects that are plausible after the present rows; that is *assurance* (O'Hagan, Stevens and Campbell 2005, "Assurance
in clinical trial design"). Before the rows, "some effect, of the order of ten points" and "none that matters" count as
equally likely, and of the latter "none at all" and "too small", anywhere between none and the gain a asked for. n rows
with estimate d and variance s² per row then leave

    some effect    with weight ∝ 1/2 Normal(d; 0, s²/n + τ²), distributed as Normal(k d, k s²/n), k = τ² / (τ² + s²/n)
    no effect      with weight ∝ 1/4 Normal(d; 0, s²/n)
    too small      with weight ∝ 1/4 of the mean of Normal(d; g, s²/n) over g between 0 and a

The last one matters: rows that do not decide are mostly such on which the effect is small, and a forecast without it
asks for too few (it promised 80 % and kept 73 % in worlds as those of benchmarks/verdict.py).

The estimate on N rows, of which the first n are the present ones, is (n d + (N − n) new) / N. The answer is the
smallest N at which the decision rule decides with the stated power.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

_NORMAL = NormalDist()
_SMALL_STEPS = 10
"""Points that stand for all effects too small to matter."""
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
    asked: float | None,
) -> int:
    """Test rows in all (more than `n`) that decide with probability `power`, rounded up to two significant digits.

    Parameters
    ----------
    estimate, variance: the effect measured on `n` rows and its variance per row (fractions; variance above 0).
    yes_from, no_below: the decision rule. With the standard error of the estimate on N rows, an estimate of at least
        `yes_from(error)` decides one way and one less than `no_below(error)` the other. Both must meet as the error
        goes to 0, or no number of rows would be enough.
    asked: the gain that divides the two, not 0: `no_below(0)` and `yes_from(0)`. No effect and effects between that and
        this are then plausible. None where there is no such gain: every effect is as likely as any other.
    """
    beliefs = _beliefs(estimate, variance / n, asked)

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


def _beliefs(estimate: float, error2: float, asked: float | None) -> list[_Belief]:
    """What the true effect may be after the present rows; `error2` is the squared standard error."""
    if asked is None:
        return [_Belief(1.0, estimate, error2)]
    seen = NormalDist(estimate, math.sqrt(error2))
    small = [asked * (step + 0.5) / _SMALL_STEPS for step in range(_SMALL_STEPS)]
    shrink = _TAU**2 / (_TAU**2 + error2)
    beliefs = [
        _Belief(0.5 * NormalDist(0, math.sqrt(error2 + _TAU**2)).pdf(estimate), shrink * estimate, shrink * error2),
        _Belief(0.25 * seen.pdf(0), 0.0, 0.0),
        *(_Belief(0.25 * seen.pdf(effect) / _SMALL_STEPS, effect, 0.0) for effect in small),
    ]
    total = sum(belief.weight for belief in beliefs)
    return [_Belief(belief.weight / total, belief.mean, belief.variance) for belief in beliefs]


def two_digits_up(number: int) -> int:
    """Up to two significant digits: a forecast has no more."""
    step = int(10 ** max(0, len(str(number)) - 2))
    return -(-number // step) * step
