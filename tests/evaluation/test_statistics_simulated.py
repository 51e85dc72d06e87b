"""Intervals hold the truth as often as they say, and tests raise no more false alarms than they may: in simulation.

Seeds are fixed, so these cannot fail by chance; the bounds leave about two standard errors of the simulation around
what is promised (94 to 96 % at 95 %, at most 5 % false alarms).
"""

from __future__ import annotations

import time
from functools import cache

import numpy as np
import pytest

from tunesmith.errors import DataError
from tunesmith.evaluation.measuring import Measuring
from tunesmith.evaluation.statistics import (
    across_seeds,
    bootstrap,
    difference_interval,
    holm,
    mcnemar_exact,
    newcombe_paired,
    swap_test,
    wilson,
)
from tunesmith.tasks.extraction import EntityF1
from tunesmith.tasks.metrics import MeanMetric

MEAN = MeanMetric("mean", binary=False, score=lambda answer, target: float(answer))
RIGHT = MeanMetric("accuracy", binary=True, score=lambda answer, target: float(answer))
wilson_of = cache(wilson)
newcombe_of = cache(newcombe_paired)
mcnemar_of = cache(mcnemar_exact)


def columns(scores: np.ndarray) -> np.ndarray:
    return np.stack([scores, np.ones(len(scores))], axis=1)


@pytest.mark.parametrize("n", [50, 200, 1000])
def test_wilson_covers(n: int) -> None:
    """Over true shares between 5 and 95 %, as users' are."""
    rng = np.random.default_rng(n)
    truth = rng.uniform(0.05, 0.95, 20_000)
    intervals = np.array([wilson_of(int(k), n) for k in rng.binomial(n, truth)])
    held = (intervals[:, 0] <= truth) & (truth <= intervals[:, 1])
    assert 0.945 <= held.mean() <= 0.956


@pytest.mark.parametrize("n", [50, 200, 1000])
def test_newcombe_covers(n: int) -> None:
    """Over tables of pairs that answer alike or not, better or not."""
    rng = np.random.default_rng(n)
    held = []
    for _ in range(3000):
        both, neither = rng.uniform(0.2, 0.5, 2)
        only_a = rng.uniform(0.1, 0.9) * (1 - both - neither)
        shares = [both, only_a, 1 - both - neither - only_a, neither]
        low, high = newcombe_of(*(int(k) for k in rng.multinomial(n, shares)))
        held.append(low <= shares[1] - shares[2] <= high)
    assert 0.94 <= np.mean(held) <= 0.96


@pytest.mark.parametrize("n", [50, 150])
def test_bca_of_graded_differences_covers(n: int) -> None:
    """Skewed scores, many of them exactly 1, alike from row to row: like F1 or ROUGE of answers."""
    rng = np.random.default_rng(n)

    def world(rows: int) -> tuple[np.ndarray, np.ndarray]:
        shared = rng.standard_normal(rows)
        a, b = (np.clip(0.8 + gain + 0.25 * (shared + rng.standard_normal(rows)), 0, 1) for gain in (0.06, 0.0))
        return a, b

    a, b = world(400_000)
    truth = float((a - b).mean())
    measuring = Measuring(400, 0.95, 0)
    held, worlds = 0, 1000
    for _ in range(worlds):
        (found,) = measuring.differences(MEAN, ["a", "b"], [columns(one) for one in world(n)])
        held += found.low <= truth <= found.high
    assert 0.935 <= held / worlds <= 0.965


def test_bca_of_an_f1_near_its_end_covers() -> None:
    rng = np.random.default_rng(11)
    metric = EntityF1()

    def world(n: int) -> np.ndarray:
        wanted = rng.integers(1, 12, n)
        hits = rng.binomial(wanted, rng.beta(12, 1, n))
        return np.stack([hits, rng.binomial(wanted, 0.05), wanted - hits], axis=1).astype(float)

    truth = float(metric.finish(world(400_000).sum(axis=0)))
    held, worlds = 0, 1000
    for seed in range(worlds):
        _, low, high = Measuring(400, 0.95, seed).value(metric, world(150))
        held += low <= truth <= high
    assert 0.935 <= held / worlds <= 0.965


def test_no_more_false_alarms_than_promised() -> None:
    """Two candidates that are equally good: McNemar and the swap test cry wolf in at most 5 %."""
    rng = np.random.default_rng(0)
    wolf = []
    for only in rng.integers(4, 60, 4000):
        only_a = int(rng.binomial(only, 0.5))
        wolf.append(mcnemar_of(only_a, int(only) - only_a) <= 0.05)
    assert 0.01 <= np.mean(wolf) <= 0.05
    graded = []
    for seed in range(800):
        shared = rng.standard_normal(40)
        a, b = (columns(np.clip(0.7 + 0.3 * (shared + rng.standard_normal(40)), 0, 1)) for _ in range(2))
        graded.append(swap_test([a, b], [(0, 1)], MEAN.finish, resamples=199, seed=seed)[0] <= 0.05)
    assert 0.03 <= np.mean(graded) <= 0.065


def test_holm_keeps_false_alarms_over_several_candidates() -> None:
    rng = np.random.default_rng(1)
    p_values = rng.uniform(size=(4000, 6))
    plain = (p_values <= 0.05).any(axis=1).mean()
    corrected = np.mean([min(holm(list(row))) <= 0.05 for row in p_values])
    assert plain > 0.2
    assert 0.04 <= corrected <= 0.055


class TestClusters:
    """Forty conversations of six turns, each as a whole easy or hard for one candidate or the other."""

    NAMES = tuple(f"talk {row // 6}" for row in range(240))

    def world(self, rng: np.random.Generator) -> list[np.ndarray]:
        taste = np.repeat(rng.normal(0, 0.15, 40), 6)
        noise = rng.normal(0, 0.1, (2, 240))
        return [columns(0.5 + taste + noise[0]), columns(0.5 - taste + noise[1])]

    def test_counted_as_rows_they_raise_false_alarms_and_as_clusters_they_do_not(self) -> None:
        rng = np.random.default_rng(0)
        alarms = {"rows": 0, "clusters": 0, "interval": 0}
        worlds = 400
        for _ in range(worlds):
            statistics = self.world(rng)
            (rows,) = Measuring(200, 0.95, 0).differences(MEAN, ["a", "b"], statistics)
            (found,) = Measuring(200, 0.95, 0, self.NAMES).differences(MEAN, ["a", "b"], statistics)
            assert found.clusters == 40 and found.n == 240
            alarms["rows"] += (rows.p_value or 0) <= 0.05
            alarms["clusters"] += (found.p_value or 0) <= 0.05
            alarms["interval"] += not found.low <= 0 <= found.high
        assert alarms["rows"] / worlds > 0.2
        assert alarms["clusters"] / worlds <= 0.07
        assert alarms["interval"] / worlds <= 0.08

    def test_right_or_wrong_in_clusters(self) -> None:
        """A share's interval knows only the effective rows; its difference is resampled by clusters, not by McNemar."""
        rng = np.random.default_rng(2)
        a = np.repeat(rng.integers(0, 2, 40), 6).astype(float)
        b = np.repeat(rng.integers(0, 2, 40), 6).astype(float)
        plain, grouped = Measuring(500, 0.95, 0), Measuring(500, 0.95, 0, self.NAMES)
        width = [high - low for _, low, high in (m.value(RIGHT, columns(a)) for m in (plain, grouped))]
        assert width[1] == pytest.approx(width[0] * np.sqrt(6), rel=0.1)
        (found,) = grouped.differences(RIGHT, ["a", "b"], [columns(a), columns(b)])
        (naive,) = plain.differences(RIGHT, ["a", "b"], [columns(a), columns(b)])
        assert (found.test, naive.test) == ("permutation", "McNemar")
        assert found.high - found.low == pytest.approx((naive.high - naive.low) * np.sqrt(6), rel=0.15)


class TestSeeds:
    def world(self, rng: np.random.Generator, seeds: int, rows: int) -> np.ndarray:
        """True mean 0.05; rows, seeds and their interplay all vary."""
        return (
            0.05 + rng.normal(0, 0.3, (1, rows)) + rng.normal(0, 0.03, (seeds, 1)) + rng.normal(0, 0.2, (seeds, rows))
        )

    @pytest.mark.parametrize(("seeds", "rows"), [(3, 100), (5, 400)])
    def test_it_covers_another_training_and_other_rows(self, seeds: int, rows: int) -> None:
        rng = np.random.default_rng(seeds)
        held = pooled = 0
        worlds = 1500
        for _ in range(worlds):
            values = self.world(rng, seeds, rows)
            low, high = across_seeds(values).interval
            held += low <= 0.05 <= high
            reach = 1.96 * values.std(ddof=1) / np.sqrt(values.size)
            pooled += abs(values.mean() - 0.05) <= reach
        assert 0.94 <= held / worlds <= 0.985
        assert pooled / worlds < 0.85  # what counting every number as a row would have claimed

    def test_where_seeds_agree_only_rows_count(self) -> None:
        row = np.random.default_rng(0).random(50)
        found = across_seeds(np.stack([row, row, row]))
        assert found.seed_error == pytest.approx(0, abs=1e-12)
        assert found.error == pytest.approx(row.std(ddof=1) / np.sqrt(50))
        assert found.degrees == pytest.approx(49, rel=0.01)
        assert (found.rows, found.seeds) == (50, 3)

    def test_one_training_shows_no_spread(self) -> None:
        with pytest.raises(DataError, match="show no spread"):
            across_seeds(np.ones((1, 50)))


def test_ten_thousand_resamples_of_two_thousand_rows_take_under_a_second() -> None:
    statistics = [columns(np.random.default_rng(seed).random(2000)) for seed in range(2)]
    taken = []
    for _ in range(3):
        start = time.process_time()
        draws = bootstrap(statistics, MEAN.finish, resamples=10_000, seed=0)
        taken.append(time.process_time() - start)
    assert draws.shape == (2, 10_000)
    assert min(taken) < 1.0


def test_on_very_many_rows_the_normal_interval_is_the_bootstraps(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    statistics = [columns(rng.random(1500)), columns(rng.random(1500))]
    (slow,) = Measuring(4000, 0.95, 0).differences(MEAN, ["a", "b"], statistics)
    value = Measuring(4000, 0.95, 0).value(MEAN, statistics[0])
    for module in ("measuring", "statistics.intervals"):
        monkeypatch.setattr(f"tunesmith.evaluation.{module}.MANY_ROWS", 1000)
    (fast,) = Measuring(4000, 0.95, 0).differences(MEAN, ["a", "b"], statistics)
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high), abs=1.5e-3)
    assert fast.p_value == pytest.approx(slow.p_value, abs=0.03)
    assert Measuring(4000, 0.95, 0).value(MEAN, statistics[0]) == pytest.approx(value, abs=1e-3)
    (same,) = Measuring(4000, 0.95, 0).differences(MEAN, ["a", "b"], [statistics[0], statistics[0]])
    assert same.p_value == 1.0 and same.low < 0 < same.high


def test_without_draws_a_difference_errs_on_the_wide_side() -> None:
    low, high = difference_interval(0.8, 0.7, 100, None, 0.95)
    assert low < 0 < 0.1 < high
