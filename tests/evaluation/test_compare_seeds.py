"""Several trainings compared with an alternative on the same rows, single or in clusters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tunesmith.errors import DataError
from tunesmith.evaluation import compare_seeds, value_over_seeds
from tunesmith.evaluation.statistics import across_seeds
from tunesmith.evaluation.types import Evaluation, ScoredAnswer
from tunesmith.tasks.metrics import MeanMetric

TASK: Any = SimpleNamespace(
    name="generation",
    metrics={"score": MeanMetric("score", binary=False, score=lambda parsed, expected: float(parsed))},
    target=lambda example: example.expected,
)
RNG = np.random.default_rng(0)
TUNED, OTHER = RNG.random((3, 40)), RNG.random(40)


def evaluation(name: str, scores: np.ndarray) -> Evaluation:
    rows = tuple(ScoredAnswer(f"r{i}", "p", "a", "e", float(s), {"score": s}, 1, 1, True) for i, s in enumerate(scores))
    return Evaluation(name, rows, (), 0.1, 0.2, 1.0)


def test_rows_and_trainings_are_crossed() -> None:
    trainings = [evaluation("tuned", scores) for scores in TUNED]
    found = compare_seeds(trainings, evaluation("other", OTHER), TASK, "score", confidence=0.9)
    expected = across_seeds(TUNED - OTHER, 0.9)
    assert found.interval == pytest.approx(expected.interval) and (found.rows, found.seeds) == (40, 3)
    alone = value_over_seeds(trainings, TASK, "score", confidence=0.9)
    assert alone.mean == pytest.approx(TUNED.mean())
    assert alone.interval == pytest.approx(across_seeds(TUNED, 0.9).interval)


def test_clusters_count_in_place_of_rows() -> None:
    """Four rows of each of ten customers, whose answers are alike: ten customers, and a wider interval."""
    of_row = {f"r{i}": f"c{i // 4}" for i in range(40)}
    alike = [evaluation("tuned", np.repeat(scores[::4], 4)) for scores in TUNED]
    other = evaluation("other", np.repeat(OTHER[::4], 4))
    single = compare_seeds(alike, other, TASK, "score", confidence=0.95)
    found = compare_seeds(alike, other, TASK, "score", confidence=0.95, clusters=of_row)
    assert found.rows == 10 and found.mean == pytest.approx(single.mean)
    assert found.row_error == pytest.approx(single.row_error * np.sqrt(39 / 9))
    # As if each customer had been asked once.
    once = across_seeds(TUNED[:, ::4] - OTHER[::4])
    assert found.interval == pytest.approx(once.interval)
    with pytest.raises(DataError, match="belongs to no cluster"):
        compare_seeds(alike, other, TASK, "score", confidence=0.95, clusters={})


def test_one_training_shows_no_spread() -> None:
    with pytest.raises(DataError, match="no spread"):
        value_over_seeds([evaluation("tuned", OTHER)], TASK, "score", confidence=0.95)
