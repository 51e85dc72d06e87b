"""Whether a loss is surely smaller than what is allowed: by hand, and in simulation."""

from __future__ import annotations

import numpy as np
import pytest

from tunesmith.evaluation.measuring import Measuring
from tunesmith.evaluation.statistics.intervals import alike_interval
from tunesmith.evaluation.statistics.types import z_value
from tunesmith.pipeline.exporting.loss import Decision, decide
from tunesmith.tasks.metrics import MeanMetric

MEAN = MeanMetric("mean", binary=False, score=lambda answer, target: float(answer))


def decision(
    difference: float, error: float, margin: float = 0.01, *, identical: bool = False, **more: int
) -> Decision:
    settings = {"n": 100, "differing": 5, **more}
    low = difference - z_value(0.95) * error
    return decide(difference, low, margin=margin, identical=identical, confidence=0.95, power=0.8, **settings)


def test_more_than_is_allowed_fails_however_few_rows_say_it():
    assert decision(-0.02, 0.03).status == decision(-0.02, 0.0001).status == "failed"


def test_less_passes_only_where_it_is_sure():
    assert decision(-0.005, 0.002).status == "passed"
    assert decision(-0.005, 0.02).status == "unsure"
    assert decision(0.03, 0.05).status == "unsure"  # better here, and yet a loss of a point cannot be ruled out
    assert decision(0.03, 0.01).status == "passed"


def test_the_very_same_answers_are_no_loss_and_no_margin_is_never_sure():
    assert decision(0.0, 0.02, identical=True).status == "passed"
    assert decision(0.0, 0.01, 0.0) == Decision("unsure")
    assert decision(-0.001, 0.01, 0.0).status == "failed"


def test_the_rows_that_would_show_it_do():
    found = decision(0.0, 0.02)
    assert found.rows is not None
    error = 0.02 * (100 / found.rows) ** 0.5  # an error shrinks with the root of the rows
    shown = np.random.default_rng(0).normal(0.0, error, 20_000)
    assert np.mean([decision(one, error).status == "passed" for one in shown]) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(("margin", "expected"), [(0.01, 368), (0.02, 183), (0.05, 72)])
def test_rows_that_are_all_alike_need_few_more(margin, expected):
    """Of answers that differ and score the same, the interval shrinks with the number of rows."""

    def of(n: int) -> Decision:
        low = alike_interval(0.0, n, 0.95)[0]
        return decide(0.0, low, n, margin, differing=0, identical=False, confidence=0.95, power=0.8)

    assert of(40).rows == expected and of(expected).status == "passed" and of(expected - 2).status == "unsure"


@pytest.mark.parametrize(("n", "margin"), [(500, 0.01), (500, 0.02)])
def test_an_export_that_loses_all_that_is_allowed_is_seldom_called_sure(n, margin):
    """A few rows lose much, as in quantised models. 2.5 of 100 may be called sure; both halves together call more."""
    rng, called, by_both_halves, worlds = np.random.default_rng(n), 0, 0, 400
    for seed in range(worlds):
        tuned = rng.beta(4, 1, n)
        lost = rng.random(n) < margin / 0.4  # rows that lose half of 0.8
        exported = np.where(lost, tuned * rng.random(n), tuned)
        columns = [np.stack([one, np.ones(n)], axis=1) for one in (exported, tuned)]
        (pair,) = Measuring(200, 0.95, seed, None).differences(MEAN, ["export", "tuned"], columns)
        both = pair.difference - (pair.high - pair.low) / 2
        told = [
            decide(
                pair.difference, low, n, margin, differing=int(lost.sum()), identical=False, confidence=0.95, power=0.8
            ).status
            for low in (pair.low, both)
        ]
        called, by_both_halves = called + (told[0] == "passed"), by_both_halves + (told[1] == "passed")
    assert called / worlds <= 0.05 and called < by_both_halves
