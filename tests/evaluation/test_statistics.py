from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from tunesmith.errors import DataError
from tunesmith.evaluation.statistics import (
    bootstrap,
    difference_interval,
    mcnemar_exact,
    newcombe_paired,
    percentile_interval,
    rows_needed,
    standard_error,
    value_interval,
    wilson,
)
from tunesmith.tasks.classification import MacroF1
from tunesmith.tasks.extraction import EntityF1
from tunesmith.tasks.metrics import MeanMetric

MEAN = MeanMetric("mean", binary=False, score=lambda answer, target: float(answer))


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17:857-872, table I.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_published_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 3000), st.data(), st.floats(0.51, 0.999))
def test_wilson_equals_scipy_and_holds_its_value(n: int, data: st.DataObject, confidence: float) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n, confidence)
    reference = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-9)
    assert 0 <= low <= successes / n <= high <= 1
    assert high - low > 0


def test_newcombe_equals_the_published_example() -> None:
    # Newcombe 1998, Statistics in Medicine 17:2635-2650, table II: 36, 12, 2, 0, method 10.
    assert newcombe_paired(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)


@given(st.tuples(*[st.integers(0, 60)] * 4).filter(any))
def test_newcombe_holds_the_difference_and_mirrors(table: tuple[int, int, int, int]) -> None:
    both, only_a, only_b, neither = table
    low, high = newcombe_paired(both, only_a, only_b, neither)
    assert -1 <= low <= (only_a - only_b) / sum(table) <= high <= 1
    assert high > low
    mirrored = newcombe_paired(both, only_b, only_a, neither)
    assert (-mirrored[1], -mirrored[0]) == pytest.approx((low, high))


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_the_doubled_binomial_tail(only_a: int, only_b: int) -> None:
    from math import comb

    n, smaller = only_a + only_b, min(only_a, only_b)
    tail = sum(comb(n, i) for i in range(smaller + 1)) / 2**n
    assert mcnemar_exact(only_a, only_b) == pytest.approx(min(1.0, 2 * tail))


def test_bootstrap_is_the_plain_one() -> None:
    """Weights times statistics is the metric on resampled rows: checked against resampling with scikit-learn."""
    generator = np.random.default_rng(3)
    labels = np.array(list("abc"))
    expected = labels[generator.integers(0, 3, 60)]
    parsed = np.where(generator.random(60) < 0.6, expected, labels[generator.integers(0, 3, 60)])
    metric = MacroF1(("a", "b", "c"))
    statistics = metric.statistics(list(parsed), list(expected))
    draws = bootstrap([statistics], metric.finish, resamples=4000, seed=1)[0]
    plain = []
    for _ in range(1500):
        rows = generator.integers(0, 60, 60)
        plain.append(f1_score(expected[rows], parsed[rows], average="macro"))
    assert draws.mean() == pytest.approx(np.mean(plain), abs=0.01)
    assert percentile_interval(draws, 0.95) == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.02)


def test_bootstrap_is_paired_seeded_and_independent_of_company() -> None:
    generator = np.random.default_rng(0)
    a = MEAN.statistics(list(generator.random(50)), [None] * 50)
    b = a.copy()
    b[:, 0] *= 0.5
    draws = bootstrap([a, b], MEAN.finish, resamples=300, seed=4)
    assert draws[1] == pytest.approx(draws[0] * 0.5)
    alone = bootstrap([b], MEAN.finish, resamples=300, seed=4)
    assert alone[0] == pytest.approx(draws[1])
    assert not np.allclose(draws, bootstrap([a, b], MEAN.finish, resamples=300, seed=5))


def test_no_rows_and_unequal_rows_are_errors() -> None:
    with pytest.raises(DataError, match="no rows"):
        wilson(0, 0)
    with pytest.raises(DataError, match="no rows"):
        bootstrap([np.zeros((0, 2))], MEAN.finish, resamples=10, seed=0)
    with pytest.raises(DataError, match="different numbers"):
        bootstrap([np.ones((3, 2)), np.ones((4, 2))], MEAN.finish, resamples=10, seed=0)


@pytest.mark.parametrize("n", [1, 5, 200])
def test_no_interval_claims_certainty(n: int) -> None:
    """All right, or all rows alike: the width still says how few rows there were."""
    perfect = np.ones((n, 2))
    draws = bootstrap([perfect, perfect], MEAN.finish, resamples=200, seed=0)
    low, high = value_interval(1.0, n, draws[0], 0.95)
    assert (low, high) == wilson(n, n) and low < 1
    difference = difference_interval(1.0, 1.0, n, draws[0] - draws[1], 0.95)
    assert difference[0] < 0 < difference[1]
    binary = difference_interval(1.0, 1.0, n, draws[0] - draws[1], 0.95, table=(n, 0, 0, 0))
    assert binary[0] < 0 < binary[1]


def test_rows_that_do_not_differ_say_how_many_still_may() -> None:
    """Paired rows that are all alike bound the difference by the share of others that may have been missed."""
    for n, share in ((140, 0.02), (300, 0.01)):
        low, high = difference_interval(0.8, 0.8, n, np.zeros(100), 0.95)
        assert -low == high and share < high < 1.5 * share
        assert (1 - high) ** n == pytest.approx(0.025)


def test_bootstrap_intervals_cover() -> None:
    """Entity F1 of documents of uneven length: 95 % intervals hold the truth in about 95 % of 400 worlds."""
    generator = np.random.default_rng(11)
    metric = EntityF1()

    def world(n: int) -> np.ndarray:
        wanted = generator.integers(1, 12, n)
        hits = generator.binomial(wanted, generator.beta(6, 3, n))
        return np.stack([hits, generator.binomial(wanted, 0.2), wanted - hits], axis=1).astype(float)

    truth = float(metric.finish(world(400_000).sum(axis=0)))
    held = 0
    for seed in range(400):
        draws = bootstrap([world(120)], metric.finish, resamples=400, seed=seed)[0]
        low, high = percentile_interval(draws, 0.95)
        held += low <= truth <= high
    assert 0.92 <= held / 400 <= 0.98


@pytest.mark.parametrize(("n", "only_a", "only_b"), [(60, 0.08, 0.03), (60, 0.02, 0.02), (150, 0.2, 0.1)])
def test_paired_differences_of_binary_metrics_cover(n: int, only_a: float, only_b: float) -> None:
    """Many and few discordant rows: Newcombe takes over where the bootstrap is too coarse."""
    generator = np.random.default_rng(n)
    held = 0
    for seed in range(500):
        cells = generator.choice(4, n, p=[0.5, only_a, only_b, 0.5 - only_a - only_b])
        a, b = np.isin(cells, [0, 1]), np.isin(cells, [0, 2])
        statistics = [np.stack([right, np.ones(n)], axis=1).astype(float) for right in (a, b)]
        draws = bootstrap(statistics, MEAN.finish, resamples=300, seed=seed)
        table = tuple(int((cells == cell).sum()) for cell in range(4))
        low, high = difference_interval(a.mean(), b.mean(), n, draws[0] - draws[1], 0.95, table=table)  # type: ignore[arg-type]
        held += low <= only_a - only_b <= high
    assert held / 500 >= 0.925


def test_rows_needed_gives_the_wanted_power() -> None:
    generator = np.random.default_rng(2)
    spread, effect = 0.5, 0.08
    rows = rows_needed(effect, spread / np.sqrt(100), 100)
    assert rows is not None and rows == pytest.approx((1.95996 + 0.84162) ** 2 * spread**2 / effect**2, abs=1)
    means = generator.normal(effect, spread, (4000, rows)).mean(axis=1)
    assert (means - 1.95996 * spread / np.sqrt(rows) > 0).mean() == pytest.approx(0.8, abs=0.03)
    assert rows_needed(0.0, 0.05, 100) is None
    assert rows_needed(0.9, 0.01, 100) == 101
    assert rows_needed(-0.08, 0.05, 100) == rows


@given(st.floats(-0.9, 0.9), st.floats(0.001, 0.4), st.floats(0.6, 0.99))
@settings(max_examples=30)
def test_standard_error_is_read_back_from_a_normal_interval(centre: float, error: float, confidence: float) -> None:
    from scipy.stats import norm

    low, high = norm.interval(confidence, centre, error)
    assert standard_error((low, high), confidence) == pytest.approx(error)


def test_memory_is_bounded_by_a_chunk_not_by_the_resamples() -> None:
    generator = np.random.default_rng(0)
    labels = tuple(f"label {i}" for i in range(77))
    expected = [labels[i] for i in generator.integers(0, 77, 2000)]
    metric = MacroF1(labels)
    statistics = metric.statistics([labels[i] for i in generator.integers(0, 77, 2000)], expected)
    tracemalloc.start()
    draws = bootstrap([statistics, statistics], metric.finish, resamples=3000, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert draws.shape == (2, 3000)
    # All weights at once would be 48 MB; a chunk holds a sixth, and a few temporaries of its size.
    assert peak < 45e6
