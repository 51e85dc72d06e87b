"""Every method against scipy, statsmodels or scikit-learn, which compute it in another way."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluation.statistics import (
    bca_interval,
    bootstrap,
    cluster_sums,
    clustered_error,
    effective_rows,
    equivalence,
    holm,
    jackknife,
    jackknife_error,
    mcnemar_exact,
    non_inferiority,
    pseudo_values,
    smallest_detectable,
    swap_test,
    wilson,
)
from tunesmith.tasks.extraction import EntityF1
from tunesmith.tasks.metrics import MeanMetric

MEAN = MeanMetric("mean", binary=False, score=lambda answer, target: float(answer))


def columns(scores: np.ndarray) -> np.ndarray:
    """Statistics (score, 1) of a mean."""
    return np.stack([scores, np.ones(len(scores))], axis=1)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 500), st.data())
def test_wilson(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    assert wilson(successes, n) == pytest.approx(proportion_confint(successes, n, method="wilson"), abs=1e-9)


@pytest.mark.parametrize("table", [(0, 0), (1, 0), (0, 7), (3, 12), (40, 41), (400, 300)])
def test_mcnemar(table: tuple[int, int]) -> None:
    only_a, only_b = table
    reference = mcnemar([[50, only_a], [only_b, 50]], exact=True).pvalue if only_a + only_b else 1.0
    assert mcnemar_exact(only_a, only_b) == pytest.approx(reference, rel=1e-9)


def test_holm() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 12):
        for p_values in (rng.random(size), rng.random(size) ** 4, np.full(size, 0.02), np.zeros(size), np.ones(size)):
            reference = multipletests(p_values, method="holm")[1]
            assert holm(list(p_values)) == pytest.approx(reference, abs=1e-12)
    assert holm([]) == []


def test_equivalence_and_non_inferiority() -> None:
    rng = np.random.default_rng(0)
    for shift, margin in [(0.0, 0.1), (0.03, 0.05), (0.2, 0.1), (-0.06, 0.05)]:
        a = rng.normal(0.7 + shift, 0.2, 80)
        b = a - rng.normal(shift, 0.1, 80)
        difference, error = float((a - b).mean()), float((a - b).std(ddof=1) / np.sqrt(80))
        p, (_, lower, _), _ = ttost_paired(a, b, -margin, margin)
        assert equivalence(difference, error, margin, 79) == pytest.approx(p, abs=1e-12)
        assert non_inferiority(difference, error, margin, 79) == pytest.approx(lower, abs=1e-12)
    with pytest.raises(RecipeError, match="margin"):
        equivalence(0.0, 0.1, 0.0)


def test_equivalent_is_what_the_interval_says() -> None:
    """p <= 5 % exactly where the 90 % interval lies within the margin."""
    for difference in np.linspace(-0.1, 0.1, 41):
        inside = abs(difference) + scipy.stats.norm.ppf(0.95) * 0.02 <= 0.06
        assert (equivalence(float(difference), 0.02, 0.06) <= 0.05) == inside


def test_smallest_detectable_difference() -> None:
    found = smallest_detectable(0.02, confidence=0.95, power=0.8)
    power = NormalIndPower(ddof=0).power(found / (0.02 * 10), nobs1=100, ratio=0, alpha=0.05)
    assert power == pytest.approx(0.8, abs=1e-4)


def test_bca_is_scipys_on_many_rows() -> None:
    """On 400 rows the widening for few rows is a thousandth; what is left is Efron's correction for the skew."""
    scores = np.random.default_rng(4).beta(8, 0.7, 400)
    draws = bootstrap([columns(scores)], MEAN.finish, resamples=10_000, seed=0)[0]
    found = bca_interval(draws, scores.mean(), jackknife(columns(scores), MEAN.finish), 0.95)
    reference = scipy.stats.bootstrap((scores,), np.mean, n_resamples=10_000, rng=np.random.default_rng(1))
    assert found == pytest.approx(tuple(reference.confidence_interval), abs=1e-3)


def test_jackknife_of_a_mean_is_the_textbook_error_and_its_pseudo_values_the_scores() -> None:
    scores = np.random.default_rng(1).random(37)
    without = jackknife(columns(scores), MEAN.finish)
    assert jackknife_error(without) == pytest.approx(scores.std(ddof=1) / np.sqrt(37))
    assert pseudo_values(columns(scores), MEAN.finish) == pytest.approx(scores)


def test_jackknife_of_an_f1_is_the_f1_without_each_row() -> None:
    counts = np.random.default_rng(2).integers(1, 6, (9, 3)).astype(float)
    metric = EntityF1()
    plain = [float(metric.finish(np.delete(counts, row, axis=0).sum(axis=0))) for row in range(9)]
    assert jackknife(counts, metric.finish) == pytest.approx(plain)
    assert pseudo_values(counts, metric.finish).mean() == pytest.approx(
        float(metric.finish(counts.sum(axis=0))), abs=0.02
    )


@pytest.mark.parametrize("shift", [0.0, 0.12, 0.3])
def test_swap_test_is_scipys_exact_permutation_test(shift: float) -> None:
    rng = np.random.default_rng(5)
    a, b = rng.random(12) * 0.5 + shift, rng.random(12) * 0.5
    reference = scipy.stats.permutation_test(
        (a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis), permutation_type="samples", n_resamples=np.inf
    ).pvalue
    found = swap_test([columns(a), columns(b)], [(0, 1), (1, 0)], MEAN.finish, resamples=20_000, seed=0)
    assert found == pytest.approx([reference, reference], abs=0.012)


def test_swap_test_of_what_is_alike_is_one_and_never_zero() -> None:
    same = columns(np.random.default_rng(0).random(20))
    assert swap_test([same, same], [(0, 1)], MEAN.finish, resamples=200, seed=0) == [1.0]
    better = columns(np.ones(40))
    worse = columns(np.zeros(40))
    assert swap_test([better, worse], [(0, 1)], MEAN.finish, resamples=200, seed=0) == [pytest.approx(1 / 201)]


def test_clustered_error_is_the_sandwich_of_a_regression_on_a_constant() -> None:
    rng = np.random.default_rng(3)
    clusters = rng.integers(0, 14, 120)
    scores = rng.random(120) + rng.normal(0, 0.4, 14)[clusters]
    fitted = OLS(scores, np.ones(120)).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False, "df_correction": False}
    )
    g = len(set(clusters))
    assert clustered_error(scores, list(clusters)) == pytest.approx(float(fitted.bse[0]) * np.sqrt(g / (g - 1)))


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 60), st.integers(0, 10**6))
def test_rows_of_their_own_are_no_clusters(n: int, seed: int) -> None:
    scores = np.random.default_rng(seed).random(n)
    assert clustered_error(scores, list(range(n))) == pytest.approx(scores.std(ddof=1) / np.sqrt(n))
    assert cluster_sums(columns(scores), [f"row {i}" for i in range(n)]) == pytest.approx(columns(scores))


def test_effective_rows() -> None:
    alike = np.repeat(np.random.default_rng(0).integers(0, 2, 30), 5).astype(float)
    names = [i // 5 for i in range(150)]
    # Five equal rows each: as good as 30 rows, up to the correction for few clusters.
    assert effective_rows(alike, names) == pytest.approx(29, abs=1e-6)
    assert effective_rows(np.ones(150), names) == 30
    assert effective_rows(alike, ["one"] * 150) == 1
    assert effective_rows(np.tile([0.0, 1.0], 75), [i // 2 for i in range(150)]) == 150


def test_clusters_refuse_what_makes_no_sense() -> None:
    with pytest.raises(DataError, match="2 cluster names were given for 3 rows"):
        cluster_sums(np.ones((3, 2)), ["a", "b"])
    with pytest.raises(DataError, match="one cluster"):
        clustered_error(np.array([0.0, 1.0]), ["a", "a"])
