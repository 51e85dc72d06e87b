"""Bootstrap, jackknife and swap test of any metric that is a function of sums over rows.

One resample is one set of row weights, and a chunk of resamples is one matrix product `weights [b, n] @ statistics
[n, d]`. Candidates get the *same* weights, which is what makes their differences paired. 10,000 resamples of 2,000
rows take about half a second on one core even for the 154 sums of a 77-class macro-F1; memory is bounded by the chunk,
not by the resamples. Where rows hang together, give sums per cluster instead (`clusters.cluster_sums`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from tunesmith.errors import DataError
from tunesmith.evaluation.statistics.types import require_rows
from tunesmith.tasks.types import FloatArray

Finish = Callable[[FloatArray], FloatArray]

CHUNK_ELEMENTS = 1_000_000
"""Row weights held at once (8 MB of them as float64)."""
_TIES = 1e-12
"""Sums in another order differ in the last bits; a swap that changes nothing must still count as equal."""


def bootstrap(statistics: Sequence[FloatArray], finish: Finish, *, resamples: int, seed: int) -> FloatArray:
    """A metric of several candidates on the same resamples of rows (Efron & Tibshirani 1993, chapter 6).

    Parameters
    ----------
    statistics: per candidate, sums' contributions per row [n, d]; n is the same for all.
    finish: the metric [b] from sums [b, d].
    resamples: how many samples of n rows, drawn with replacement.
    seed: of the draws.

    Returns
    -------
    [candidates, resamples]: column j of every row is computed on the same resampled rows.

    Raises
    ------
    DataError: for no rows, or candidates with different numbers of rows.
    """
    n = _rows_of(statistics)
    # Chunks depend on n alone, so a candidate's draws do not depend on which others are compared with it.
    per_chunk = max(1, CHUNK_ELEMENTS // n)
    joined = np.concatenate(statistics, axis=1)
    ends = np.cumsum([one.shape[1] for one in statistics])[:-1]
    generator = np.random.default_rng(seed)
    draws = np.empty((len(statistics), resamples))
    for start in range(0, resamples, per_chunk):
        stop = min(start + per_chunk, resamples)
        sums = _row_weights(generator, stop - start, n) @ joined
        for drawn, part in zip(draws, np.split(sums, ends, axis=1), strict=True):
            drawn[start:stop] = finish(part)
    return draws


def jackknife(statistics: FloatArray, finish: Finish) -> FloatArray:
    """The metric without each row in turn [n] (Efron & Tibshirani 1993, chapter 11)."""
    require_rows(len(statistics))
    return finish(statistics.sum(axis=0) - statistics)


def jackknife_error(leave_one_out: FloatArray) -> float:
    """Standard error of the metric from its values without each row (or cluster) in turn: `sqrt((n-1)/n Σ (v - v̄)²)`.

    For a mean this is the usual `s / sqrt(n)`. 0 for a single row, which shows no spread.
    """
    n = len(leave_one_out)
    spread = float(((leave_one_out - leave_one_out.mean()) ** 2).sum())
    return float(np.sqrt((n - 1) / n * spread))


def swap_test(
    statistics: Sequence[FloatArray],
    pairs: Sequence[tuple[int, int]],
    finish: Finish,
    *,
    resamples: int,
    seed: int,
) -> list[float]:
    """Two-sided p-values of the differences of pairs of candidates, by swapping their answers row by row.

    If two candidates are equally good, exchanging their answers to any rows changes nothing but the sign of a row's
    difference. A fair coin decides for each row; p is the share of such exchanges with a difference at least as large
    as the one measured, the measured one included, so that it is never 0 (Fisher's sign-flip permutation; for metrics
    that are no means Yeh 2000, arXiv:cs/0008005; Phipson & Smyth 2010, arXiv:1603.05766).

    Parameters
    ----------
    statistics, finish, seed: as for `bootstrap`; every pair gets the same coins.
    pairs: candidates by their place in `statistics`.
    resamples: coins tossed per row.
    """
    n = _rows_of(statistics)
    totals = [one.sum(axis=0) for one in statistics]
    measured = [abs(float(finish(totals[i]) - finish(totals[j]))) for i, j in pairs]
    reached = np.zeros(len(pairs), dtype=np.int64)
    generator = np.random.default_rng(seed)
    joined = np.concatenate(statistics, axis=1)
    ends = np.cumsum([one.shape[1] for one in statistics])[:-1]
    per_chunk = max(1, CHUNK_ELEMENTS // n)
    for start in range(0, resamples, per_chunk):
        sums = _coins(generator, min(per_chunk, resamples - start), n) @ joined
        chosen = np.split(sums, ends, axis=1)
        for place, (i, j) in enumerate(pairs):
            moved = chosen[j] - chosen[i]
            swapped = finish(totals[i] + moved) - finish(totals[j] - moved)
            reached[place] += np.count_nonzero(np.abs(swapped) >= measured[place] - _TIES)
    return [float((1 + count) / (1 + resamples)) for count in reached]


def _row_weights(generator: np.random.Generator, samples: int, n: int) -> FloatArray:
    """How often each of n rows occurs in each of `samples` samples of n rows with replacement [samples, n]."""
    drawn = generator.integers(0, n, size=(samples, n))
    drawn += np.arange(samples)[:, None] * n
    counts = np.bincount(drawn.ravel(), minlength=samples * n)
    return counts.reshape(samples, n).astype(np.float64)


def _coins(generator: np.random.Generator, samples: int, n: int) -> FloatArray:
    """0 or 1 with equal chance [samples, n]."""
    width = -(-n // 8)
    drawn: npt.NDArray[np.uint8] = np.frombuffer(generator.bytes(samples * width), dtype=np.uint8)
    return np.unpackbits(drawn.reshape(samples, width), axis=1)[:, :n].astype(np.float64)


def _rows_of(statistics: Sequence[FloatArray]) -> int:
    n = len(statistics[0])
    require_rows(n)
    if any(len(one) != n for one in statistics):
        raise DataError(
            "candidates have different numbers of rows",
            expected="the same rows for every candidate",
            fix="evaluate all candidates on the same test set",
        )
    return n
