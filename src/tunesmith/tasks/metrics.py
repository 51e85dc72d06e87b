"""What all metrics share: means of item scores, F1 from counts, and reading one metric off a set of answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.data.types import Example
from tunesmith.tasks.types import FloatArray, Metric, Task


class ItemMean:
    """The mean of a score per item: statistics (score, 1) of each. An unreadable answer (`parsed` None) scores 0.

    What inherits from it has `score(parsed, expected)`, 0-1, which is not called for unreadable answers.
    """

    score: Callable[[Any, Any], float]

    def statistics(self, parsed: Sequence[Any], expected: Sequence[Any]) -> FloatArray:
        """Per-item (score, 1) [n, 2]."""
        result = np.ones((len(parsed), 2))
        for row, answer, target in zip(result, parsed, expected, strict=True):
            row[0] = 0.0 if answer is None else self.score(answer, target)
        return result

    def finish(self, sums: FloatArray) -> FloatArray:
        """Mean [...] from sums [..., 2]; 0 over no items."""
        return ratio(sums[..., 0], sums[..., 1])

    def item(self, statistics: FloatArray) -> FloatArray:
        """The scores themselves [n]."""
        scores: FloatArray = statistics[:, 0]
        return scores


@dataclass
class MeanMetric(ItemMean):
    """A mean of item scores by a function; `binary` where it gives 0 or 1 only."""

    name: str
    binary: bool
    score: Callable[[Any, Any], float]


def ratio(numerator: FloatArray, denominator: FloatArray, empty: float = 0.0) -> FloatArray:
    """Elementwise quotient, `empty` where the denominator is 0."""
    filled = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), empty)
    np.divide(numerator, denominator, out=filled, where=denominator > 0)
    return filled


def quick_score(task: Task, texts: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    """Every metric of `task` over answers `texts` to `examples`, without intervals; for curves during training."""
    parsed = [task.read(text, example) for text, example in zip(texts, examples, strict=True)]
    expected = [task.target(example) for example in examples]
    return {name: value_of(metric, parsed, expected) for name, metric in task.metrics.items()}


def value_of(metric: Metric, parsed: Sequence[Any], expected: Sequence[Any]) -> float:
    """One metric over all items."""
    return float(metric.finish(metric.statistics(parsed, expected).sum(axis=0)))


def by_name(*metrics: Metric) -> Mapping[str, Metric]:
    """Metrics keyed by their names, in this order."""
    return {metric.name: metric for metric in metrics}
