"""Intervals, tests and sample sizes for scores, and for differences of scores measured on the same rows.

One rule stands above all: **candidates are compared row by row, and a row is counted once**. The same rows answered by
two candidates, by three seeds or in two conditions are never put together as if they were more rows. What hangs
together (turns of a conversation, passages of a document, rows of one template) is resampled together.

- `intervals`: Wilson, Newcombe, BCa; which of them a metric or a difference gets
- `resampling`: bootstrap, jackknife and swap test of any metric that is computed from sums over rows
- `significance`: McNemar, equivalence and non-inferiority, Holm
- `clusters`: rows that hang together
- `seeds`: several trainings as a second source of noise beside the rows
- `power`: the smallest detectable difference, and the rows needed to see a given one
"""

from tunesmith.evaluation.statistics.clusters import cluster_sums, clustered_error, effective_rows
from tunesmith.evaluation.statistics.intervals import (
    bca_interval,
    difference_interval,
    newcombe_paired,
    normal_interval,
    percentile_interval,
    value_interval,
    wilson,
)
from tunesmith.evaluation.statistics.power import rows_needed, smallest_detectable, standard_error
from tunesmith.evaluation.statistics.resampling import bootstrap, jackknife, jackknife_error, swap_test
from tunesmith.evaluation.statistics.seeds import AcrossSeeds, across_seeds, pseudo_values
from tunesmith.evaluation.statistics.significance import equivalence, holm, mcnemar_exact, non_inferiority
from tunesmith.evaluation.statistics.types import Interval

__all__ = [
    "AcrossSeeds",
    "Interval",
    "across_seeds",
    "bca_interval",
    "bootstrap",
    "cluster_sums",
    "clustered_error",
    "difference_interval",
    "effective_rows",
    "equivalence",
    "holm",
    "jackknife",
    "jackknife_error",
    "mcnemar_exact",
    "newcombe_paired",
    "non_inferiority",
    "normal_interval",
    "percentile_interval",
    "pseudo_values",
    "rows_needed",
    "smallest_detectable",
    "standard_error",
    "swap_test",
    "value_interval",
    "wilson",
]
