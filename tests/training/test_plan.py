"""Schedules and step counts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.training.plan import TrainingPlan, steps_of


def plan(steps: int = 100, warmup: int = 10, schedule: str = "cosine", rate: float = 2.0) -> TrainingPlan:
    return TrainingPlan(steps, 8, rate, seed=0, warmup_steps=warmup, schedule=schedule)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0: 0.2, 4: 1.0, 9: 2.0, 10: 2.0, 99: 2.0}),
        ("linear", {0: 0.2, 9: 2.0, 10: 2.0, 55: 1.0, 99: 2 / 90}),
        ("warmup_stable_decay", {0: 0.2, 9: 2.0, 10: 2.0, 80: 2.0, 81: 1.9, 90: 1.0, 99: 0.1}),
        ("cosine", {0: 0.2, 10: 2.0, 32: 1 + math.cos(math.pi * 22 / 90), 55: 1.0, 99: 1 - math.cos(math.pi / 90)}),
    ],
)
def test_learning_rates_of_named_steps(schedule, expected):
    p = plan(schedule=schedule)
    assert {step: p.learning_rate_at(step) for step in expected} == pytest.approx(expected)


@given(
    steps=st.integers(1, 300),
    share=st.floats(0, 0.99),
    schedule=st.sampled_from(["cosine", "linear", "constant", "warmup_stable_decay"]),
)
def test_rates_rise_to_the_peak_then_never_rise_and_never_vanish(steps, share, schedule):
    warmup = round(steps * share)
    p = plan(steps, warmup, schedule)
    rates = [p.learning_rate_at(step) for step in range(steps)]
    assert all(0 < rate <= p.learning_rate for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert max(rates) == pytest.approx(p.learning_rate)


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "steps"),
    [(100, 8, 1, 13), (100, 8, 2, 26), (100, 8, 0.5, 7), (3, 8, 1, 1), (16, 8, 1.5, 3), (10, 8, 0.01, 1)],
)
def test_steps_of_epochs(rows, batch, epochs, steps):
    assert steps_of(rows, batch, epochs) == steps
