"""Which interval and which test a metric and a pair of candidates get; the methods are in `statistics`.

| metric | rows | value | difference | test |
|---|---|---|---|---|
| right or wrong | independent | Wilson | Newcombe | exact McNemar |
| right or wrong | in clusters | Wilson, effective rows | bootstrap over clusters (BCa) | swaps of clusters |
| any other | independent | bootstrap (BCa) | bootstrap (BCa) | swaps of rows |
| any other | in clusters | bootstrap over clusters (BCa) | the same | swaps of clusters |

From 20,000 rows on the bootstrap gives way to the normal interval, and the swaps to the normal test.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from tunesmith.evaluation.statistics import (
    Interval,
    bootstrap,
    cluster_sums,
    difference_interval,
    effective_rows,
    jackknife,
    jackknife_error,
    mcnemar_exact,
    swap_test,
    value_interval,
    wilson,
)
from tunesmith.evaluation.statistics.intervals import MANY_ROWS, alike_interval, large_sample_interval
from tunesmith.evaluation.statistics.types import NORMAL
from tunesmith.evaluation.types import PairedDifference
from tunesmith.tasks.types import FloatArray, Metric

SWAPS = "permutation"
"""Name of the swap test, as it stands beside a p-value."""


@dataclass(frozen=True, slots=True)
class Measuring:
    """How intervals are made. `clusters` names the cluster of every row [n]; None where rows are independent."""

    resamples: int
    confidence: float
    seed: int
    clusters: tuple[Hashable, ...] | None = None

    def value(self, metric: Metric, statistics: FloatArray) -> tuple[float, float, float]:
        """A metric over rows from its statistics [n, d], and its interval."""
        value = float(metric.finish(statistics.sum(axis=0)))
        if metric.binary:
            n = len(statistics) if self.clusters is None else effective_rows(metric.item(statistics), self.clusters)
            return value, *wilson(value * n, n, self.confidence)
        sums = self._units(statistics)
        without = jackknife(sums, metric.finish)
        if large := large_sample_interval(value, without, self.confidence):
            return value, *large
        draws = bootstrap([sums], metric.finish, resamples=self.resamples, seed=self.seed)[0]
        return value, *value_interval(value, len(sums), draws, self.confidence, leave_one_out=without)

    def differences(
        self, metric: Metric, names: Sequence[str], statistics: Sequence[FloatArray]
    ) -> Iterator[PairedDifference]:
        """Every pair of candidates: first minus second, in the order of `names`."""
        pairs = list(combinations(range(len(names)), 2))
        values = [float(metric.finish(one.sum(axis=0))) for one in statistics]
        if metric.binary and self.clusters is None:
            found = [self._right_or_wrong(metric, statistics[i], statistics[j]) for i, j in pairs]
        else:
            found = self._resampled(metric, values, [self._units(one) for one in statistics], pairs)
        test = "McNemar" if metric.binary and self.clusters is None else SWAPS
        groups = len(set(self.clusters)) if self.clusters is not None else None
        for (i, j), (interval, p_value) in zip(pairs, found, strict=True):
            difference, n = values[i] - values[j], len(statistics[i])
            yield PairedDifference(
                names[i],
                names[j],
                metric.name,
                difference,
                *interval,
                p_value,
                n,
                test=test,
                clusters=groups,
                differing_clusters=self._differing_clusters(statistics[i], statistics[j]),
            )

    def _differing_clusters(self, a: FloatArray, b: FloatArray) -> int | None:
        if self.clusters is None:
            return None
        return int(np.count_nonzero((self._units(a) != self._units(b)).any(axis=1)))

    def _right_or_wrong(self, metric: Metric, a: FloatArray, b: FloatArray) -> tuple[Interval, float]:
        table = _paired_table(metric, a, b)
        n = len(a)
        right_a, right_b = (table[0] + table[1]) / n, (table[0] + table[2]) / n
        interval = difference_interval(right_a, right_b, n, None, self.confidence, table=table)
        return interval, mcnemar_exact(table[1], table[2])

    def _resampled(
        self,
        metric: Metric,
        values: Sequence[float],
        units: Sequence[FloatArray],
        pairs: Sequence[tuple[int, int]],
    ) -> list[tuple[Interval, float]]:
        without = [jackknife(one, metric.finish) for one in units]
        if len(units[0]) >= MANY_ROWS:
            return [self._normal(values[i] - values[j], without[i] - without[j], len(units[0])) for i, j in pairs]
        draws = bootstrap(units, metric.finish, resamples=self.resamples, seed=self.seed)
        p_values = swap_test(units, pairs, metric.finish, resamples=self.resamples, seed=self.seed)
        return [
            (
                difference_interval(
                    values[i],
                    values[j],
                    len(units[0]),
                    draws[i] - draws[j],
                    self.confidence,
                    leave_one_out=without[i] - without[j],
                ),
                p_value,
            )
            for (i, j), p_value in zip(pairs, p_values, strict=True)
        ]

    def _normal(self, difference: float, without: FloatArray, n: int) -> tuple[Interval, float]:
        interval = large_sample_interval(difference, without, self.confidence)
        if interval is None:  # not one row differs
            return alike_interval(difference, n, self.confidence), 1.0
        return interval, 2 * NORMAL.cdf(-abs(difference) / jackknife_error(without))

    def _units(self, statistics: FloatArray) -> FloatArray:
        """What is resampled as one: a row, or the sum over a cluster."""
        return statistics if self.clusters is None else cluster_sums(statistics, self.clusters)


def _paired_table(metric: Metric, a: FloatArray, b: FloatArray) -> tuple[int, int, int, int]:
    """Rows that both, only a, only b, neither got right."""
    right_a, right_b = metric.item(a) > 0.5, metric.item(b) > 0.5
    parts = (right_a & right_b, right_a & ~right_b, ~right_a & right_b, ~right_a & ~right_b)
    both, only_a, only_b, neither = (int(np.count_nonzero(part)) for part in parts)
    return both, only_a, only_b, neither
