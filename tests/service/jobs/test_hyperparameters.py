from __future__ import annotations

import math

import pytest

from tunesmith.recipe.resolve import usual_learning_rate
from tunesmith.service.jobs.hyperparameters import auto_batch_size, auto_epochs, resolve_hyperparameters


@pytest.mark.parametrize(
    ("rows", "epochs"),
    [(0, 25), (1, 25), (3, 25), (4, 25), (5, 20), (10, 10), (33, 3), (34, 3), (101, 3), (8_333, 3), (8_334, 2),
     (12_500, 2), (12_501, 1), (25_001, 1), (1_000_000, 1)],
)  # fmt: skip
def test_epochs_follow_the_notebooks_rule(rows: int, epochs: int) -> None:
    assert auto_epochs(rows) == epochs


def test_the_epoch_rule_is_the_one_written_down() -> None:
    """Section 2.4: 3; if rows x 3 < 100 then min(25, 100 // rows); if rows x 3 > 25,000 then max(1, 25,000 // rows)."""
    for rows in range(1, 60_000, 7):
        expected = 3
        if rows * 3 < 100:
            expected = min(25, 100 // rows)
        elif rows * 3 > 25_000:
            expected = max(1, 25_000 // rows)
        assert auto_epochs(rows) == expected, rows


@pytest.mark.parametrize(("rows", "size"), [(10, 1), (101, 1), (1_000, 2), (50_000, 100), (128_000, 256), (10**7, 256)])
def test_batches_are_a_five_hundredth_of_the_rows(rows: int, size: int) -> None:
    assert auto_batch_size(rows) == size


def test_the_cookbooks_job_has_303_steps() -> None:
    numbers = resolve_hyperparameters({}, rows=101, parameters=10_000_000)
    assert numbers.hyperparameters() == {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.0}
    assert (numbers.steps_per_epoch, numbers.steps) == (101, 303)
    assert all(numbers.reasons[name].startswith("auto: ") for name in numbers.hyperparameters())


def test_the_multiplier_multiplies_a_rate_that_is_told() -> None:
    usual = usual_learning_rate("lora", 10_000_000)
    eight = resolve_hyperparameters({"batch_size": 8, "learning_rate_multiplier": 0.5}, 100, 10_000_000)
    two = resolve_hyperparameters({"batch_size": 2, "learning_rate_multiplier": 0.5}, 100, 10_000_000)
    many = resolve_hyperparameters({"batch_size": 64, "learning_rate_multiplier": 0.5}, 100, 10_000_000)
    assert eight.learning_rate == many.learning_rate == 0.5 * usual
    assert math.isclose(two.learning_rate, 0.5 * usual / 2)
    assert "sqrt(2/8)" in two.reasons["learning_rate"]
    assert two.reasons["batch_size"] == two.reasons["learning_rate_multiplier"] == "as asked for"


def test_a_batch_is_no_larger_than_the_file() -> None:
    numbers = resolve_hyperparameters({"batch_size": 256}, 10, 10_000_000)
    assert (numbers.batch_size, numbers.steps_per_epoch) == (10, 1)
    assert numbers.reasons["batch_size"] == "256 was asked for, and there are 10 training rows"


def test_the_last_batch_of_an_epoch_may_be_smaller() -> None:
    assert resolve_hyperparameters({"batch_size": 4, "n_epochs": 2}, 10, 10).steps == 6
