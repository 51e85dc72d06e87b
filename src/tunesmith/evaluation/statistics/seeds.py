"""Several trainings of one recipe: the seed as a second source of noise beside the rows.

An interval over rows answers "what if other rows had been drawn?", not "what if it had been trained again?". With S
trainings scored on the same n rows, both answers are in the table of differences d[s, i]. Rows and seeds are crossed:
every row meets every seed, so S·n numbers are not S·n independent rows, and are never treated as such. The variance of
the overall mean is

    V = R + S' - E      R   variance over rows of the rows' means / n
                        S'  variance over seeds of the seeds' means / S
                        E   variance of what neither explains / (n S), which is in both

(the two-way random effects model; Searle, Casella & McCulloch 1992, "Variance Components", chapter 4; that pooling all
numbers is misleading, and counting R + S' errs on the wide side: Owen 2007, doi 10.1214/07-AOAS122). The degrees of
freedom are Satterthwaite's (1946, Biometrics Bulletin 2:110-114): three seeds that disagree leave few more than two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tunesmith.errors import DataError
from tunesmith.evaluation.statistics.resampling import Finish, jackknife
from tunesmith.evaluation.statistics.types import Interval, t_value
from tunesmith.tasks.types import FloatArray


@dataclass(frozen=True, slots=True)
class AcrossSeeds:
    """A mean over rows and seeds, and where its uncertainty comes from (standard errors)."""

    mean: float
    interval: Interval
    error: float
    row_error: float
    seed_error: float
    degrees: float
    rows: int
    seeds: int


def across_seeds(values: FloatArray, confidence: float = 0.95) -> AcrossSeeds:
    """The mean of values [seeds, rows] with an interval for another draw of rows *and* another training.

    `values` are row scores, or row differences to one alternative that has no seed of its own. For a metric that is no
    mean take `pseudo_values`. Raises `DataError` for fewer than two seeds or two rows, which show no spread.
    """
    seeds, rows = values.shape
    if seeds < 2 or rows < 2:
        raise DataError(
            f"{seeds} trainings on {rows} test rows show no spread",
            where="evaluate.seeds",
            expected="at least two trainings and two test rows",
            fix="train with more seeds, or use the interval over rows alone",
        )
    mean = float(values.mean())
    row_means, seed_means = values.mean(axis=0), values.mean(axis=1)
    rest = values - row_means[None, :] - seed_means[:, None] + mean
    from_rows = float(row_means.var(ddof=1)) / rows
    from_seeds = float(seed_means.var(ddof=1)) / seeds
    from_rest = float((rest**2).sum()) / ((rows - 1) * (seeds - 1)) / (rows * seeds)
    variance = max(from_rows + from_seeds - from_rest, from_rows, from_seeds)
    spread = from_rows**2 / (rows - 1) + from_seeds**2 / (seeds - 1)
    degrees = variance**2 / spread if spread > 0 else float(seeds - 1)
    error = math.sqrt(variance)
    reach = t_value(confidence, degrees) * error
    return AcrossSeeds(
        mean,
        (mean - reach, mean + reach),
        error,
        math.sqrt(from_rows),
        math.sqrt(from_seeds),
        degrees,
        rows,
        seeds,
    )


def pseudo_values(statistics: FloatArray, finish: Finish) -> FloatArray:
    """What each row contributes to a metric [n]: `n v - (n-1) v_without_row` (Tukey 1958; the jackknife's).

    For a mean these are the rows' scores themselves; for an F1 they are numbers whose mean is the F1 (up to 1/n) and
    whose variance is that of the F1.
    """
    n = len(statistics)
    value = float(finish(statistics.sum(axis=0)))
    return n * value - (n - 1) * jackknife(statistics, finish)
