"""Regression: a number per input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tunesmith.data.types import Example
from tunesmith.tasks.answers import bad_answer, without_closing
from tunesmith.tasks.base import TextTask
from tunesmith.tasks.maths import NUMBER, as_number, exactly
from tunesmith.tasks.metrics import MeanMetric
from tunesmith.tasks.types import FloatArray, Metric


@dataclass(frozen=True)
class Regression(TextTask):
    """A number between `low` and `high`, the least and greatest in the data. `tolerance`: an error that still is right.

    An unreadable answer is off by the whole range; in R² by the way to its farther end.
    """

    low: float
    high: float
    tolerance: float | None = None
    name: ClassVar[str] = "regression"
    default_instruction: ClassVar[str] = "Give the number that belongs to the input."
    answer_wording: ClassVar[str] = "Reply with one number and nothing else."

    @property
    def own_metrics(self) -> Sequence[Metric]:
        """1 - MAE over the range decides, or the share within the tolerance where one is given; R² beside it."""
        error = MeanMetric("mae_score", binary=False, score=self._mae_score)
        r2 = RSquared(self.low, self.high)
        if self.tolerance is None:
            return (error, r2)
        limit = exactly(self.tolerance)
        within = MeanMetric(
            "within_tolerance", binary=True, score=lambda a, b: float(abs(exactly(a) - exactly(b)) <= limit)
        )
        return (within, error, r2)

    def parse(self, text: str) -> float | None:
        """The number that the text is, or the only one in it; None where there are none or several."""
        bare = without_closing(text, self.closing)
        found = {as_number(number) for number in NUMBER.findall(bare)}
        whole = as_number(bare)
        number = whole if whole is not None else found.pop() if len(found) == 1 else None
        try:
            return None if number is None else float(number)
        except OverflowError:
            return None

    def target(self, example: Example) -> float:
        """The number of an example; raises `DataError` where it is none."""
        number = self.parse(example.expected)
        if number is None:
            raise bad_answer(example, "the answer is not a number", "a number", "correct the row, or set task.type")
        return number

    def slices(self, example: Example) -> Mapping[str, str]:
        """Rows by the third of the range their number is in."""
        span = (self.high - self.low) or 1.0
        third = min(2, int(3 * (self.target(example) - self.low) / span))
        return {"value": ("low", "middle", "high")[third]}

    def _mae_score(self, answer: float, target: float) -> float:
        """1 minus the absolute error over the range, at least 0; its mean is 1 - MAE / (high - low)."""
        if answer == target:
            return 1.0
        span = self.high - self.low
        return max(0.0, 1.0 - abs(answer - target) / span) if span else 0.0


@dataclass(frozen=True)
class RSquared:
    """The coefficient of determination, 1 - Σ(y - a)² / Σ(y - mean y)²; 0 for the best constant, below it for worse.

    Where all y are equal it is 1 if all answers are right, else 0. An error counts at most as the span of the data, so
    that one wild answer does not decide alone. Statistics per item: (error², y, y², 1).
    """

    low: float
    high: float
    name = "r2"
    binary = False

    def statistics(self, parsed: Sequence[Any], expected: Sequence[Any]) -> FloatArray:
        """[n, 4]; y is centred on the middle of the range, which keeps the sums exact enough."""
        result = np.ones((len(parsed), 4))
        middle, span = (self.low + self.high) / 2, self.high - self.low
        for row, answer, target in zip(result, parsed, expected, strict=True):
            worst = max(target - self.low, self.high - target)
            error = worst if answer is None else min(abs(answer - target), span)
            row[:3] = error**2, target - middle, (target - middle) ** 2
        return result

    def finish(self, sums: FloatArray) -> FloatArray:
        """R² [...] from sums [..., 4]."""
        errors, y, y2, count = (sums[..., i] for i in range(4))
        spread = y2 - y**2 / np.maximum(count, 1)
        flat = spread <= 1e-12 * np.maximum(y2, 1e-300)
        constant = np.where(errors <= 1e-18 * np.maximum(y2, 1e-300), 1.0, 0.0)
        result: FloatArray = np.where(flat, constant, 1 - errors / np.where(flat, 1.0, spread))
        return result

    def item(self, statistics: FloatArray) -> FloatArray:
        """1 minus the error over the range, squared alike: 1 for a right answer [n]."""
        span = (self.high - self.low) ** 2
        scores: FloatArray = 1 - statistics[:, 0] / span if span else (statistics[:, 0] == 0).astype(np.float64)
        return scores
