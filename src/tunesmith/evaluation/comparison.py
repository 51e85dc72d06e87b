"""From a candidate to its evaluation, and from evaluations to a comparison with intervals."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data.types import Example
from tunesmith.errors import DataError, RecipeError, TunesmithError
from tunesmith.evaluation.scoring import Progress, answer_and_score, finished_rows, measure_latency, writing
from tunesmith.evaluation.statistics import bootstrap, difference_interval, mcnemar_exact, value_interval
from tunesmith.evaluation.types import Candidate, Evaluation, MetricValue, PairedDifference, ScoredAnswer
from tunesmith.tasks.types import FloatArray, Metric, Task


@dataclass(frozen=True)
class Comparison:
    """All candidates on the same rows: every metric with its interval, and differences of the metric that decides."""

    metric: str
    values: tuple[MetricValue, ...]
    differences: tuple[PairedDifference, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One dict per candidate and metric: candidate, metric, value, low, high, n."""
        return [asdict(value) for value in self.values]

    def to_pandas(self) -> Any:
        """`rows()` as a pandas DataFrame; raises `TunesmithError` where pandas is not installed."""
        try:
            import pandas
        except ImportError as problem:
            raise TunesmithError(
                "a table needs pandas, which is not installed",
                where="Comparison.to_pandas",
                expected="the extra `pandas`",
                fix="pip install 'tunesmith[pandas]', or use Comparison.rows()",
            ) from problem
        return pandas.DataFrame(self.rows(), columns=["candidate", "metric", "value", "low", "high", "n"])

    def value(self, candidate: str, metric: str | None = None) -> MetricValue:
        """One candidate's value of a metric, by default of the one that decides. Raises `KeyError`."""
        name = metric or self.metric
        for value in self.values:
            if (value.candidate, value.metric) == (candidate, name):
                return value
        raise KeyError((candidate, name))

    def difference(self, a: str, b: str) -> PairedDifference:
        """a minus b, whichever way round it was computed. Raises `KeyError`."""
        for found in self.differences:
            if (found.a, found.b) == (a, b):
                return found
            if (found.a, found.b) == (b, a):
                return PairedDifference(
                    a, b, found.metric, -found.difference, -found.high, -found.low, found.p_value, found.n
                )
        raise KeyError((a, b))


def evaluate_candidate(
    candidate: Candidate,
    task: Task,
    examples: Sequence[Example],
    folder: Path,
    *,
    latency_rows: int,
    resamples: int,
    confidence: float,
    seed: int,
    on_progress: Progress | None = None,
) -> Evaluation:
    """Answers in `folder/<name>.jsonl`, metrics with intervals, latency; repeated, it continues where it stopped.

    What cannot be computed again from the answers (latency, seconds, notes) is kept in `folder/<name>.timing.json`.
    `seconds` is the time spent on answering in the call that finished it.
    """
    path = folder / f"{candidate.name}.jsonl"
    known = load_evaluation(
        folder, candidate.name, task, examples, resamples=resamples, confidence=confidence, seed=seed
    )
    if known is not None:
        return known
    start = time.perf_counter()
    rows = answer_and_score(candidate, task, examples, path, on_progress=on_progress)
    seconds = time.perf_counter() - start
    # Asking for nothing makes a candidate whose answers were all there describe the rows in its notes.
    for _ in candidate.answer(examples, skip=len(examples)):
        pass
    notes = dict(candidate.notes)
    p50, p95 = measure_latency(candidate, examples, latency_rows)
    timing = {"latency_p50": p50, "latency_p95": p95, "seconds": seconds, "notes": notes}
    _write_json(_timing_path(folder, candidate.name), timing)
    metrics = metric_values(candidate.name, rows, task, resamples=resamples, confidence=confidence, seed=seed)
    return Evaluation(candidate.name, rows, metrics, p50, p95, seconds, notes)


def load_evaluation(
    folder: Path,
    name: str,
    task: Task,
    examples: Sequence[Example],
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> Evaluation | None:
    """A finished evaluation of exactly these examples from its two files, else None; intervals are computed anew."""
    rows = finished_rows(folder / f"{name}.jsonl", examples)
    timing = _read_json(_timing_path(folder, name))
    if rows is None or timing is None:
        return None
    metrics = metric_values(name, rows, task, resamples=resamples, confidence=confidence, seed=seed)
    return Evaluation(
        name, rows, metrics, timing["latency_p50"], timing["latency_p95"], timing["seconds"], timing["notes"]
    )


def metric_values(
    candidate: str, rows: Sequence[ScoredAnswer], task: Task, *, resamples: int, confidence: float, seed: int
) -> tuple[MetricValue, ...]:
    """Every metric of the task over scored rows: 0/1 metrics with Wilson, others with bootstrap intervals."""
    result = []
    for metric in task.metrics.values():
        statistics = _statistics(metric, task, rows)
        value = float(metric.finish(statistics.sum(axis=0)))
        draws = None if metric.binary else bootstrap([statistics], metric.finish, resamples=resamples, seed=seed)[0]
        low, high = value_interval(value, len(rows), draws, confidence)
        result.append(MetricValue(candidate, metric.name, value, low, high, len(rows)))
    return tuple(result)


def compare(
    evaluations: Sequence[Evaluation], task: Task, metric: str, *, resamples: int, confidence: float, seed: int
) -> Comparison:
    """Candidates side by side, and the difference of every pair in `metric`, paired by row.

    Raises `RecipeError` for a metric the task does not have, `DataError` where candidates answered different rows.
    """
    chosen = task.metrics.get(metric)
    if chosen is None:
        raise RecipeError(
            f"the task {task.name} has no metric {metric!r}",
            where="goal.metric",
            expected=", ".join(task.metrics),
            fix="choose one of these, or auto",
        )
    _require_same_rows(evaluations)
    values = tuple(value for evaluation in evaluations for value in evaluation.metrics)
    if len(evaluations) < 2:
        return Comparison(metric, values, ())
    statistics = [_statistics(chosen, task, evaluation.rows) for evaluation in evaluations]
    draws = bootstrap(statistics, chosen.finish, resamples=resamples, seed=seed)
    names = [evaluation.candidate for evaluation in evaluations]
    differences = tuple(
        _difference(chosen, (names[i], names[j]), (statistics[i], statistics[j]), draws[i] - draws[j], confidence)
        for i in range(len(names))
        for j in range(i + 1, len(names))
    )
    return Comparison(metric, values, differences)


def _difference(
    metric: Metric,
    names: tuple[str, str],
    statistics: tuple[FloatArray, FloatArray],
    draws: FloatArray,
    confidence: float,
) -> PairedDifference:
    a, b = (float(metric.finish(one.sum(axis=0))) for one in statistics)
    n = len(statistics[0])
    table = _paired_table(metric, *statistics) if metric.binary else None
    low, high = difference_interval(a, b, n, draws, confidence, table=table)
    p_value = mcnemar_exact(table[1], table[2]) if table is not None else None
    return PairedDifference(names[0], names[1], metric.name, a - b, low, high, p_value, n)


def _paired_table(metric: Metric, a: FloatArray, b: FloatArray) -> tuple[int, int, int, int]:
    """Rows that both, only a, only b, neither got right."""
    right_a, right_b = metric.item(a) > 0.5, metric.item(b) > 0.5
    parts = (right_a & right_b, right_a & ~right_b, ~right_a & right_b, ~right_a & ~right_b)
    both, only_a, only_b, neither = (int(np.count_nonzero(part)) for part in parts)
    return both, only_a, only_b, neither


def _statistics(metric: Metric, task: Task, rows: Sequence[ScoredAnswer]) -> FloatArray:
    expected = [task.target(Example(row.id, (), row.expected, 0, "evaluation")) for row in rows]
    return metric.statistics([row.parsed for row in rows], expected)


def _require_same_rows(evaluations: Sequence[Evaluation]) -> None:
    if not evaluations:
        raise DataError(
            "there is nothing to compare", expected="at least one evaluated candidate", fix="add a baseline"
        )
    ids = [row.id for row in evaluations[0].rows]
    for evaluation in evaluations[1:]:
        if [row.id for row in evaluation.rows] != ids:
            raise DataError(
                f"{evaluation.candidate} and {evaluations[0].candidate} answered different rows",
                expected="the same rows in the same order for every candidate",
                fix="evaluate both on the same test set again",
            )


def _timing_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.timing.json"


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        with partial.open("w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
