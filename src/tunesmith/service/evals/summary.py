"""What a run says in the end: counts, shares with their intervals, tokens by model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.service.store.nouns import OutputItem

CONFIDENCE = 0.95
RESAMPLES = 2_000
SEED = 0
"""Of the bootstrap, so that the same items give the same interval."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The fields of a run that are made from its items."""

    result_counts: Mapping[str, int]
    per_testing_criteria_results: tuple[Mapping[str, Any], ...]
    per_model_usage: tuple[Mapping[str, Any], ...]

    def fields(self) -> dict[str, Any]:
        """As changes of the run's record."""
        return {
            "result_counts": self.result_counts,
            "per_testing_criteria_results": self.per_testing_criteria_results,
            "per_model_usage": self.per_model_usage,
        }


def summarise(items: Sequence[OutputItem], criteria: Sequence[Mapping[str, Any]]) -> Summary:
    """Counts and intervals of the items there are; a criterion with an error on an item counts neither way."""
    return Summary(
        counts(Counter(one.status for one in items)),
        tuple(_criterion(str(one["id"]), items) for one in criteria),
        _usage(items),
    )


def counts(ends: Counter[str]) -> dict[str, int]:
    """Items by how they ended."""
    return {"total": ends.total(), "passed": ends["pass"], "failed": ends["fail"], "errored": ends["error"]}


def scores_of(criterion: str, items: Sequence[OutputItem]) -> dict[int, tuple[float, bool]]:
    """Score and pass by the place of the item, where the criterion was graded without an error."""
    return {
        item.place: (float(result["score"]), bool(result["passed"]))
        for item in items
        for result in item.results
        if result["name"] == criterion and result.get("error") is None
    }


def _criterion(criterion: str, items: Sequence[OutputItem]) -> dict[str, Any]:
    from tunesmith.evaluation.statistics import wilson

    scores = scores_of(criterion, items)
    n = len(scores)
    passed = sum(passed for _, passed in scores.values())
    shown: dict[str, Any] = {"testing_criteria": criterion, "passed": passed, "failed": n - passed}
    # Beyond the hosted service's fields: how sure these are.
    shown["pass_rate"] = passed / n if n else None
    shown["pass_rate_interval"] = list(wilson(passed, n, CONFIDENCE)) if n else None
    values = [score for score, _ in scores.values()]
    shown["mean_score"] = sum(values) / n if n else None
    shown["mean_score_interval"] = list(mean_interval(values)) if n else None
    return shown


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Of a mean: Wilson for zeros and ones, else the bootstrap (BCa), which asks nothing about the range of scores.

    Scores that are all alike within 0-1 get Wilson's too, which knows the number of rows; others a point.
    """
    import numpy as np

    from tunesmith.evaluation.statistics import bca_interval, bootstrap, jackknife, wilson

    column = np.array(values, dtype=np.float64)
    if set(values) <= {0.0, 1.0} or (np.ptp(column) == 0 and 0 <= column[0] <= 1):
        return wilson(float(column.sum()), len(values), CONFIDENCE)
    if np.ptp(column) == 0:
        return float(column[0]), float(column[0])
    statistics = np.stack([column, np.ones_like(column)], axis=1)
    draws = bootstrap([statistics], mean, resamples=RESAMPLES, seed=SEED)[0]
    low, high = bca_interval(draws, float(column.mean()), jackknife(statistics, mean), CONFIDENCE)
    return min(low, float(column.mean())), max(high, float(column.mean()))


def mean(sums: Any) -> Any:
    """The mean [...] from sums of values and of ones [..., 2]."""
    return sums[..., 0] / sums[..., 1]


def _usage(items: Sequence[OutputItem]) -> tuple[dict[str, Any], ...]:
    """Tokens of the models that answered and that graded, by name."""
    used: dict[str, dict[str, int]] = {}
    for item in items:
        asked = [(item.sample.get("model") or "", item.sample.get("usage") or {})]
        asked += [pair for result in item.results for pair in (result.get("usage") or {}).items()]
        for model, usage in asked:
            if usage.get("invocation_count"):
                total = used.setdefault(model, {})
                for name, value in usage.items():
                    total[name] = total.get(name, 0) + value
    return tuple({"model_name": model, **used[model]} for model in sorted(used))
