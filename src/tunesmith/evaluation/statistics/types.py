"""What the files of this folder share: an interval, a quantile, and the refusal to measure on nothing."""

from __future__ import annotations

from statistics import NormalDist

from tunesmith.errors import DataError

Interval = tuple[float, float]
NORMAL = NormalDist()


def z_value(confidence: float) -> float:
    """Two-sided normal quantile: 0.95 → 1.96."""
    return NORMAL.inv_cdf(0.5 + confidence / 2)


def t_value(confidence: float, degrees: float) -> float:
    """Two-sided quantile of Student's t (Student 1908); the normal one for very many degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + confidence / 2))


def require_rows(n: int) -> None:
    """Raise `DataError` for n = 0."""
    if n < 1:
        raise DataError(
            "there are no rows to measure on", expected="at least one test row", fix="give data.test or data.split.test"
        )
