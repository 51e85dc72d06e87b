"""Rows that hang together: turns of one conversation, passages of one document, rows of one template.

Ten questions about one document say less than ten about ten documents. Counting them as independent makes intervals too
narrow (Miller 2024, arXiv:2411.00640, section 2.2). So whole clusters are resampled and swapped: as every metric is a
function of sums over rows, a cluster is simply one row with the sum of its rows.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from tunesmith.errors import DataError
from tunesmith.evaluation.statistics.types import require_rows
from tunesmith.tasks.types import FloatArray


def cluster_sums(statistics: FloatArray, clusters: Sequence[Hashable]) -> FloatArray:
    """Sums per cluster [g, d] of statistics per row [n, d], clusters in the order of their first rows.

    Raises `DataError` where there are not as many clusters' names as rows.
    """
    places = cluster_places(clusters, len(statistics))
    sums = np.zeros((int(places.max()) + 1, statistics.shape[1]))
    np.add.at(sums, places, statistics)
    return sums


def cluster_places(clusters: Sequence[Hashable], n: int) -> npt.NDArray[np.int64]:
    """For every row the number of its cluster [n], counted from 0 in the order of first rows."""
    require_rows(n)
    if len(clusters) != n:
        raise DataError(
            f"{len(clusters)} cluster names were given for {n} rows",
            expected="the name of one cluster for every row",
            fix="give each test row its conversation, document or template",
        )
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in clusters], dtype=np.int64)


def clustered_error(scores: FloatArray, clusters: Sequence[Hashable]) -> float:
    """Standard error of a mean of scores [n] whose rows hang together in clusters.

    `sqrt(g/(g-1) Σ_c (Σ_{i in c} (x_i - x̄))²) / n` (Liang & Zeger 1986, Biometrika 73:13-22, with the usual correction
    for few clusters). With every row its own cluster it is `s / sqrt(n)`. Raises `DataError` for a single cluster.
    """
    residuals = cluster_sums((scores - scores.mean())[:, None], clusters)[:, 0]
    g = len(residuals)
    if g < 2:
        raise DataError(
            "all rows are in one cluster, so nothing shows how much clusters differ",
            expected="test rows of at least two conversations, documents or templates",
            fix="test on more of them, or choose another column for data.split.group_by",
        )
    return math.sqrt(g / (g - 1) * float((residuals**2).sum())) / len(scores)


def effective_rows(scores: FloatArray, clusters: Sequence[Hashable]) -> float:
    """The number of independent rows that would give the same standard error (Kish 1965, "Survey Sampling", 5.4).

    Between 1 and n; the number of clusters where rows show no spread, or are all in one.
    """
    n, g, variance = len(scores), len(set(clusters)), float(scores.var())
    if g < 2 or variance == 0:
        return float(g)
    error = clustered_error(scores, clusters)
    # Where every cluster has the same mean, clustering takes nothing away.
    return min(max(variance / error**2, 1.0), float(n)) if error > 0 else float(n)
