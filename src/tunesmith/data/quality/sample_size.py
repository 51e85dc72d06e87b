"""How small a difference a test set can show, before any model is asked.

Two models answer the same n test rows. The difference of their shares of right answers has, where they differ on a
share d of the rows, about the variance d / n (McNemar's setting). With significance 5 % on two sides and power 80 % the
smallest difference that is found is (1.960 + 0.842) √(d / n), the usual formula for paired designs (Miller 2024,
arXiv 2411.00640, section 5). Before the models are known d is assumed to be 12 %; 100 rows then show 10 points.
"""

from __future__ import annotations

import math
from statistics import NormalDist

DISAGREEMENT = 0.12
"""Share of test rows on which two models are assumed to differ."""
CONFIDENCE, POWER = 0.95, 0.8


def detectable_difference(
    rows: int, *, disagreement: float = DISAGREEMENT, confidence: float = CONFIDENCE, power: float = POWER
) -> float:
    """The smallest true difference, as a fraction, that `rows` test rows show with this power. At most 1."""
    if rows <= 0:
        return 1.0
    return min(1.0, _quantiles(confidence, power) * math.sqrt(disagreement / rows))


def rows_to_detect(
    difference: float, *, disagreement: float = DISAGREEMENT, confidence: float = CONFIDENCE, power: float = POWER
) -> int:
    """The test rows that show a true difference (a fraction above 0) with this power."""
    return math.ceil(disagreement * (_quantiles(confidence, power) / difference) ** 2)


def _quantiles(confidence: float, power: float) -> float:
    normal = NormalDist()
    return normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(power)
