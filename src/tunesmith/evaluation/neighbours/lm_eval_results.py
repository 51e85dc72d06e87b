"""What lm-eval measured, read back from the files it leaves, with an interval for every metric that has one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tunesmith.errors import EngineError
from tunesmith.evaluation.statistics import bootstrap, normal_interval, percentile_interval, wilson

How = Literal["Wilson", "bootstrap", "standard error"]
_RESAMPLES = 10_000
_ERROR = "_stderr"


@dataclass(frozen=True, slots=True)
class BenchmarkValue:
    """One metric of one task. `n` is the number of rows, None for a group of tasks; `value` is None where lm-eval has
    no finite number.

    Rows that are each right or wrong give Wilson's interval, other scores by row a bootstrap one; where only the
    tool's standard error is known (a group of tasks, a metric of all rows together) it is the normal one; without
    that there is none.
    """

    task: str
    metric: str
    filter: str
    value: float | None
    low: float | None
    high: float | None
    interval: How | None
    n: int | None
    shots: int | None


def read_results(folder: Path, confidence: float = 0.95) -> tuple[BenchmarkValue, ...]:
    """The newest results below `folder`. Raises `EngineError` where there are none, or they cannot be understood."""
    files = sorted(folder.rglob("results_*.json"), key=lambda path: path.name)
    if not files:
        raise EngineError("lm-eval left no results", where=str(folder), expected="a file results_….json")
    try:
        told = json.loads(files[-1].read_text(encoding="utf-8"))
        return tuple(_values(told, files[-1], confidence))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            f"these results cannot be understood: {type(error).__name__}: {error}",
            where=str(files[-1]),
            expected="the results of lm-eval 0.4.4 or newer",
        ) from error


def _values(told: Mapping[str, Any], file: Path, confidence: float) -> Iterator[BenchmarkValue]:
    stamp = file.name.removeprefix("results_").removesuffix(".json")
    for task, found in told["results"].items():
        scores = _scores(file.with_name(f"samples_{task}_{stamp}.jsonl"))
        count = told.get("n-samples", {}).get(task, {}).get("effective")
        shots = told.get("n-shot", {}).get(task)
        for key, value in found.items():
            metric, comma, name = key.partition(",")
            if not comma or metric.endswith(_ERROR) or not isinstance(value, int | float):
                continue
            if not _is_number(value):
                yield BenchmarkValue(task, metric, name, None, None, None, None, count, shots)
                continue
            error = found.get(f"{metric}{_ERROR},{name}")
            low, high, how = _interval(float(value), scores.get((metric, name), ()), error, confidence)
            yield BenchmarkValue(task, metric, name, float(value), low, high, how, count, shots)


def _scores(path: Path) -> dict[tuple[str, str], list[Any]]:
    """By metric and filter, the score of every row; nothing where rows were not logged."""
    found: dict[tuple[str, str], list[Any]] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").split("\n"):
            row = json.loads(line) if line else {}
            for metric in row.get("metrics", ()):
                found.setdefault((metric, row["filter"]), []).append(row[metric])
    return found


def _interval(
    value: float, rows: Sequence[Any], error: Any, confidence: float
) -> tuple[float | None, float | None, How | None]:
    """The interval of a metric. Rows count only where their mean is the metric: else it is no mean of rows."""
    if rows and all(_is_number(row) for row in rows) and abs(float(np.mean(rows)) - value) < 1e-9:
        if set(rows) <= {0, 1}:
            return *wilson(float(sum(rows)), len(rows), confidence), "Wilson"
        if len(rows) > 1:
            statistics = np.stack([np.asarray(rows, dtype=np.float64), np.ones(len(rows))], axis=1)
            draws = bootstrap([statistics], lambda s: s[..., 0] / s[..., 1], resamples=_RESAMPLES, seed=0)
            return *percentile_interval(draws[0], confidence), "bootstrap"
    if _is_number(error):
        return *normal_interval(value, float(error), confidence), "standard error"
    return None, None, None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and value - value == 0
