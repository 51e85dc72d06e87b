"""Tests of one difference, and the correction for having made several."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.errors import RecipeError
from tunesmith.evaluation.statistics.types import NORMAL


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value of McNemar's test (McNemar 1947, Psychometrika 12:153-157).

    Of the rows on which exactly one of two candidates is right, half should fall to each if they are equally good:
    a binomial test. 1 where there are no such rows.
    """
    discordant = only_a + only_b
    if discordant == 0:
        return 1.0
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(only_a, only_b), discordant, 0.5)))


def non_inferiority(difference: float, error: float, margin: float, degrees: float | None = None) -> float:
    """One-sided p-value of "a is worse than b by `margin` or more"; small means: surely not that much worse.

    `difference` is a - b with standard error `error` above 0; `degrees` of freedom for Student's t, None for the normal
    distribution. Raises `RecipeError` for a margin that is not above 0.
    """
    _require_margin(margin)
    return 1 - _cdf((difference + margin) / error, degrees)


def equivalence(difference: float, error: float, margin: float, degrees: float | None = None) -> float:
    """p-value of "a and b differ by `margin` or more": the larger of two one-sided tests (TOST).

    Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15:657-680. It is at most α exactly where the
    interval of confidence 1 - 2α lies within ± margin. Arguments as for `non_inferiority`.
    """
    _require_margin(margin)
    not_below = 1 - _cdf((difference + margin) / error, degrees)
    not_above = _cdf((difference - margin) / error, degrees)
    return max(not_below, not_above)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for there being several, in the order given (Holm 1979, Scandinavian J. of Statistics 6:65-70).

    Those at most α are true findings all together with a probability of at least 1 - α, however they depend on each
    other. Never smaller than the plain p, never larger than Bonferroni's.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _cdf(statistic: float, degrees: float | None) -> float:
    if degrees is None:
        return NORMAL.cdf(statistic)
    from scipy.special import stdtr

    return float(stdtr(degrees, statistic))


def _require_margin(margin: float) -> None:
    if not margin > 0:
        raise RecipeError(
            f"a margin of {margin:g} leaves nothing to be equivalent within",
            where="verdict.margin",
            expected="a fraction above 0, such as 0.02 for two points",
            fix="give the largest loss that does not matter, or leave the margin out",
        )
