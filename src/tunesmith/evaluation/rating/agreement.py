"""How far several raters agree beyond chance, and whether they do at all.

Cohen's kappa for two raters, Fleiss' kappa where all of several raters rated the same rows, Krippendorff's alpha where
rows have different numbers of ratings. Labels are nominal: a tie is no half-way house between two candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from tunesmith.errors import DataError
from tunesmith.evaluation.statistics import Interval, bootstrap, wilson
from tunesmith.tasks.types import FloatArray

_RESAMPLES = 4_000
_PERMUTATIONS = 10_000
_CHUNK = 4_000_000
"""Labels of permutations held at once, one byte each."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """A coefficient with its interval over `n` rows rated by `raters`.

    value: 1 is complete agreement, 0 what chance gives; None (with its interval) where all ratings are one and the same
    label, so that chance alone would agree as well. observed: share of equal ratings among pairs of ratings of a row.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    observed: float
    n: int
    raters: int
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def cohen_kappa(first: Sequence[str], second: Sequence[str], *, confidence: float = 0.95) -> Agreement:
    """Cohen's kappa of two raters' labels of the same rows (Cohen 1960, Educ. Psychol. Meas. 20:37-46).

    The interval is normal, with the large-sample standard error of Fleiss, Cohen & Everitt 1969 (Psychol. Bull.
    72:323-327). Where that is 0, as for complete agreement, it follows from the Wilson interval of the agreement.
    """
    _require(len(first) == len(second) and len(first) > 0, "two lists of as many labels, at least one")
    from sklearn.metrics import cohen_kappa_score

    labels = sorted({*first, *second})
    n = len(first)
    place = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)))
    np.add.at(counts, ([place[x] for x in first], [place[x] for x in second]), 1.0)
    table = counts / n
    observed, expected = float(np.trace(counts)) / n, float(table.sum(axis=1) @ table.sum(axis=0))
    if expected >= 1 - 1e-12:
        return Agreement("Cohen's kappa", None, None, None, observed, n, 2, confidence)
    kappa = float(cohen_kappa_score(list(first), list(second), labels=labels))
    error = _kappa_error(table, kappa, expected, n)
    if error < 1e-9:
        low, high = _from_agreement(wilson(observed * n, n, confidence), expected)
    else:
        reach = NormalDist().inv_cdf(0.5 + confidence / 2) * error
        low, high = kappa - reach, kappa + reach
    return Agreement("Cohen's kappa", kappa, max(low, -1.0), min(high, 1.0), observed, n, 2, confidence)


def _kappa_error(table: FloatArray, kappa: float, expected: float, n: int) -> float:
    """Standard error from the shares of a square table [k, k]: equation 13 of Fleiss, Cohen & Everitt 1969."""
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    diagonal = np.diag(table)
    on = float(np.sum(diagonal * (1 - (rows + columns) * (1 - kappa)) ** 2))
    weights = (columns[:, None] + rows[None, :]) ** 2
    off = (1 - kappa) ** 2 * float(np.sum(table * weights) - np.sum(diagonal * np.diag(weights)))
    rest = (kappa - expected * (1 - kappa)) ** 2
    return math.sqrt(max(on + off - rest, 0.0) / n) / (1 - expected)


def chance_p_value(first: Sequence[str], second: Sequence[str], *, seed: int = 0) -> float:
    """One-sided p-value of "the two label independently of each other", by 10,000 random permutations.

    Both keep how often they use each label, so a judge that always says the same, or guesses with the right
    frequencies, gains nothing. `(1 + permutations that agree as often) / (1 + permutations)`.
    """
    _require(len(first) == len(second) and len(first) > 0, "two lists of as many labels, at least one")
    place = {label: i for i, label in enumerate(sorted({*first, *second}))}
    one = np.array([place[label] for label in first], dtype=np.int16)
    other = np.array([place[label] for label in second], dtype=np.int16)
    seen = int(np.count_nonzero(one == other))
    generator = np.random.default_rng(seed)
    as_often, done = 0, 0
    while done < _PERMUTATIONS:
        size = min(_PERMUTATIONS - done, max(1, _CHUNK // len(one)))
        shuffled = generator.permuted(np.broadcast_to(other, (size, len(other))), axis=1)
        as_often += int(np.count_nonzero(np.count_nonzero(shuffled == one, axis=1) >= seen))
        done += size
    return (1 + as_often) / (1 + _PERMUTATIONS)


def fleiss_kappa(counts: FloatArray, *, confidence: float = 0.95, seed: int = 0) -> Agreement:
    """Fleiss' kappa (Fleiss 1971, Psychol. Bull. 76:378-382) of rows rated by the same number of raters.

    counts: ratings per row and label [n, k]; every row has as many, at least 2. The interval is a bootstrap over rows.
    """
    _require(counts.ndim == 2 and len(counts) > 0, "counts [rows, labels]")
    raters = int(counts[0].sum())
    _require(raters >= 2 and bool(np.all(counts.sum(axis=1) == raters)), "the same number of ratings, 2 or more, a row")
    equal = (np.sum(counts * counts, axis=1) - raters) / (raters * (raters - 1))
    statistics = np.column_stack([np.ones(len(counts)), equal, counts / raters])

    def finish(sums: FloatArray) -> FloatArray:
        observed = sums[..., 1] / sums[..., 0]
        expected = np.sum((sums[..., 2:] / sums[..., :1]) ** 2, axis=-1)
        return _ratio(observed - expected, 1 - expected)

    expected = float(np.sum((counts.sum(axis=0) / counts.sum()) ** 2))
    return _bootstrapped(
        "Fleiss' kappa", statistics, finish, float(equal.mean()), expected, raters, confidence, seed=seed
    )


def krippendorff_alpha(ratings: Sequence[Mapping[str, str]], *, confidence: float = 0.95, seed: int = 0) -> Agreement:
    """Krippendorff's alpha for nominal labels (Krippendorff 2011, "Computing Krippendorff's alpha-reliability").

    ratings: label by rater, one mapping per row; rows with a single rating say nothing and are passed over.
    `alpha = 1 - (N - 1) * unequal / (N² - sum of N_label²)`, where `unequal` sums over rows the ordered pairs of unlike
    ratings divided by the row's ratings minus one, and N counts ratings. The interval is a bootstrap over rows.
    """
    shared = [row for row in ratings if len(row) >= 2]
    _require(bool(shared), "at least one row with two ratings")
    labels = sorted({label for row in shared for label in row.values()})
    counts = np.array([[sum(x == label for x in row.values()) for label in labels] for row in shared], dtype=np.float64)
    each = counts.sum(axis=1)
    unequal = (each**2 - np.sum(counts**2, axis=1)) / (each - 1)
    statistics = np.column_stack([unequal, counts])

    def finish(sums: FloatArray) -> FloatArray:
        total = sums[..., 1:].sum(axis=-1)
        unlike = total**2 - np.sum(sums[..., 1:] ** 2, axis=-1)
        return 1 - _ratio((total - 1) * sums[..., 0], unlike)

    total = float(counts.sum())
    expected = 1 - (total**2 - float(np.sum(counts.sum(axis=0) ** 2))) / (total * (total - 1))
    raters = len({rater for row in shared for rater in row})
    observed = 1 - float(unequal.sum()) / total
    return _bootstrapped("Krippendorff's alpha", statistics, finish, observed, expected, raters, confidence, seed=seed)


def _bootstrapped(
    name: str,
    statistics: FloatArray,
    finish: Callable[[FloatArray], FloatArray],
    observed: float,
    expected: float,
    raters: int,
    confidence: float,
    *,
    seed: int,
) -> Agreement:
    n = len(statistics)
    value = float(finish(statistics.sum(axis=0)))
    if math.isnan(value):
        return Agreement(name, None, None, None, observed, n, raters, confidence)
    draws = bootstrap([statistics], finish, resamples=_RESAMPLES, seed=seed)[0]
    draws = draws[~np.isnan(draws)]  # resamples in which only one label is left
    if np.ptp(draws) < 1e-12:
        low, high = _from_agreement(wilson(observed * n, n, confidence), expected)
    else:
        low, high = (float(x) for x in np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2]))
    return Agreement(name, value, max(low, -1.0), min(high, 1.0), observed, n, raters, confidence)


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    """NaN where nothing can be unlike."""
    return np.divide(above, below, out=np.full_like(np.asarray(above, dtype=np.float64), np.nan), where=below > 1e-12)


def _from_agreement(observed: Interval, expected: float) -> Interval:
    """The coefficient's interval from that of the observed agreement, taking chance agreement as known."""
    return (observed[0] - expected) / (1 - expected), (observed[1] - expected) / (1 - expected)


def _require(holds: bool, expected: str) -> None:
    if not holds:
        raise DataError("agreement cannot be measured on these ratings", expected=expected)
