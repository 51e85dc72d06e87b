"""Ordinal classification: one of several labels that have an order, such as grades."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tunesmith.tasks.classification import Classification, MacroF1
from tunesmith.tasks.metrics import MeanMetric
from tunesmith.tasks.types import FloatArray, Metric


@dataclass(frozen=True)
class Ordinal(Classification):
    """One of `labels`, which stand in their order; an answer one step off is better than one far off."""

    name: ClassVar[str] = "ordinal"

    @property
    def own_metrics(self) -> Sequence[Metric]:
        """Quadratic weighted kappa decides; accuracy, up to one step too, mean distance and macro-F1 beside it."""
        rank = {label: i for i, label in enumerate(self.labels)}
        steps = max(1, len(self.labels) - 1)
        return (
            QuadraticKappa(self.labels),
            MeanMetric("accuracy", binary=True, score=lambda answer, target: float(answer == target)),
            MeanMetric("adjacent_accuracy", binary=True, score=lambda a, t: float(abs(rank[a] - rank[t]) <= 1)),
            MeanMetric("mae_score", binary=False, score=lambda a, t: 1 - abs(rank[a] - rank[t]) / steps),
            MacroF1(self.labels),
        )


@dataclass(frozen=True)
class QuadraticKappa:
    """Cohen's kappa with quadratic weights (Cohen 1968, Psychological Bulletin 70:213-220) over the labels' ranks.

    With quadratic weights it is 1 - mean (x - y)² / (mean x² + mean y² - 2 mean x mean y), a function of sums; 1 for
    perfect agreement, 0 for as much as chance gives, below 0 for less. Where chance could not disagree (one label
    throughout) it is 1 if all answers are right, else 0. An unreadable answer counts as the label farthest from the
    expected one. Statistics per item: ((x - y)², x, y, x², y², 1).
    """

    labels: tuple[str, ...]
    name = "quadratic_kappa"
    binary = False

    def statistics(self, parsed: Sequence[Any], expected: Sequence[Any]) -> FloatArray:
        """[n, 6]."""
        rank = {label: i for i, label in enumerate(self.labels)}
        last = len(self.labels) - 1
        result = np.ones((len(parsed), 6))
        for row, answer, target in zip(result, parsed, expected, strict=True):
            y = rank[target]
            x = rank[answer] if answer is not None else (last if y <= last - y else 0)
            row[:5] = (x - y) ** 2, x, y, x * x, y * y
        return result

    def finish(self, sums: FloatArray) -> FloatArray:
        """Kappa [...] from sums [..., 6]."""
        cost, x, y, x2, y2, count = (sums[..., i] for i in range(6))
        n = np.maximum(count, 1)
        chance = x2 + y2 - 2 * x * y / n
        none = chance <= 1e-12
        result: FloatArray = np.where(none, np.where(cost > 0, 0.0, 1.0), 1 - cost / np.where(none, 1.0, chance))
        return result

    def item(self, statistics: FloatArray) -> FloatArray:
        """1 minus the squared distance in steps over the greatest possible [n]."""
        most = max(1, len(self.labels) - 1) ** 2
        scores: FloatArray = 1 - statistics[:, 0] / most
        return scores
