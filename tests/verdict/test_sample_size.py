from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.verdict.sample_size import rows_needed, two_digits_up, z_value, zero_event_bound

Z = z_value(0.95)


def needed(estimate: float, variance: float, n: int, min_gain: float, power: float = 0.8) -> int:
    return rows_needed(
        estimate, variance, n, power=power, yes_from=lambda error: max(min_gain, Z * error),
        no_below=lambda error: min_gain - Z * error, asked=min_gain or None,
    )  # fmt: skip


def test_known_values() -> None:
    assert pytest.approx(1.959964, abs=1e-6) == Z
    # The rule of three: none of 100 rows, upper end near 3.6 % for two-sided 95 %.
    assert zero_event_bound(100, 0.95) == pytest.approx(0.03622, abs=1e-5)
    assert [two_digits_up(n) for n in (7, 99, 100, 101, 1234, 12000)] == [7, 99, 100, 110, 1300, 12000]


def test_where_only_no_effect_is_plausible_the_usual_formula_is_the_least_that_is_needed() -> None:
    """With an estimate of 0 on many rows a large effect is out of the question, and `min_gain` remains to be excluded.

    Effects between the two are harder to tell from it, so that more rows are asked for than the formula says.
    """
    variance, min_gain = 0.25, 0.02
    usual = variance * ((Z + z_value(0.6)) / min_gain) ** 2
    assert z_value(0.6) == pytest.approx(0.8416, abs=1e-4)
    assert usual < needed(0.0, variance, 1200, min_gain) < 5 * usual


@settings(max_examples=60, deadline=None)
@given(
    estimate=st.floats(-0.3, 0.3), variance=st.floats(0.001, 1.0), n=st.integers(5, 5000),
    min_gain=st.sampled_from([0.0, 0.005, 0.02, 0.1]),
)  # fmt: skip
def test_it_is_always_more_than_there_are_and_more_power_needs_no_fewer(
    estimate: float, variance: float, n: int, min_gain: float
) -> None:
    at_80, at_95 = (needed(estimate, variance, n, min_gain, power) for power in (0.8, 0.95))
    assert n < at_80 <= at_95


def test_the_promised_share_of_undecided_cases_is_decided() -> None:
    """Effects drawn as assumed (half Normal(0, 10 points), a quarter none, a quarter too small)."""
    rng = np.random.default_rng(0)
    n, variance, min_gain = 300, 0.3, 0.02
    error = math.sqrt(variance / n)
    decided = []
    while len(decided) < 300:
        truth = float(rng.choice([rng.normal(0, 0.1), 0.0, rng.uniform(0, min_gain)], p=[0.5, 0.25, 0.25]))
        estimate = rng.normal(truth, error)
        if estimate >= max(min_gain, Z * error) or estimate < min_gain - Z * error:
            continue
        total = needed(estimate, variance, n, min_gain)
        new = rng.normal(truth, math.sqrt(variance / (total - n)))
        later, later_error = (n * estimate + (total - n) * new) / total, math.sqrt(variance / total)
        decided.append(later >= max(min_gain, Z * later_error) or later < min_gain - Z * later_error)
    assert 0.72 <= float(np.mean(decided)) <= 0.9
