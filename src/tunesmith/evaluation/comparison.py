"""From a candidate to its evaluation, and from evaluations to a comparison with intervals."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data.types import Example
from tunesmith.errors import DataError, RecipeError, TunesmithError
from tunesmith.evaluation.measuring import Measuring
from tunesmith.evaluation.scoring import Progress, answer_and_score, finished_rows, measure_latency, writing
from tunesmith.evaluation.statistics import AcrossSeeds, across_seeds, cluster_sums, pseudo_values
from tunesmith.evaluation.types import Candidate, Evaluation, MetricValue, PairedDifference, ScoredAnswer
from tunesmith.tasks.types import FloatArray, Metric, Task

Clusters = Mapping[str, Hashable]
"""By row id, the name of what a row hangs together with: its conversation, document or template."""


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
                return replace(found, a=a, b=b, difference=-found.difference, low=-found.high, high=-found.low)
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
    clusters: Clusters | None = None,
    on_progress: Progress | None = None,
) -> Evaluation:
    """Answers in `folder/<name>.jsonl`, metrics with intervals, latency; repeated, it continues where it stopped.

    What cannot be computed again from the answers (latency, seconds, notes) is kept in `folder/<name>.timing.json`.
    `seconds` is the time spent on answering in the call that finished it.
    """
    path = folder / f"{candidate.name}.jsonl"
    intervals: dict[str, Any] = {
        "resamples": resamples,
        "confidence": confidence,
        "seed": seed,
        "clusters": clusters,
    }
    known = load_evaluation(folder, candidate.name, task, examples, **intervals)
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
    metrics = metric_values(candidate.name, rows, task, **intervals)
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
    clusters: Clusters | None = None,
) -> Evaluation | None:
    """A finished evaluation of exactly these examples from its two files, else None; intervals are computed anew."""
    rows = finished_rows(folder / f"{name}.jsonl", examples)
    timing = _read_json(_timing_path(folder, name))
    if rows is None or timing is None:
        return None
    metrics = metric_values(name, rows, task, resamples=resamples, confidence=confidence, seed=seed, clusters=clusters)
    return Evaluation(
        name, rows, metrics, timing["latency_p50"], timing["latency_p95"], timing["seconds"], timing["notes"]
    )


def metric_values(
    candidate: str,
    rows: Sequence[ScoredAnswer],
    task: Task,
    *,
    resamples: int,
    confidence: float,
    seed: int,
    clusters: Clusters | None = None,
) -> tuple[MetricValue, ...]:
    """Every metric of the task over scored rows: 0/1 metrics with Wilson, others with bootstrap intervals.

    `clusters`: as for `compare`.
    """
    measuring = Measuring(resamples, confidence, seed, _cluster_of(rows, clusters))
    targets = _targets(task, rows)
    result = []
    for metric in task.metrics.values():
        value, low, high = measuring.value(metric, _statistics(metric, rows, targets))
        result.append(MetricValue(candidate, metric.name, value, low, high, len(rows)))
    return tuple(result)


def compare(
    evaluations: Sequence[Evaluation],
    task: Task,
    metric: str,
    *,
    resamples: int,
    confidence: float,
    seed: int,
    clusters: Clusters | None = None,
) -> Comparison:
    """Candidates side by side, and the difference of every pair in `metric`, paired by row.

    `clusters` names by row id what hangs together (a conversation, a document, a template): whole clusters are then
    resampled and swapped. Give the evaluations the same, for the intervals of their values.

    Raises `RecipeError` for a metric the task does not have, `DataError` where candidates answered different rows or
    `clusters` lacks one.
    """
    chosen = _metric(task, metric)
    _require_same_rows(evaluations)
    values = tuple(value for evaluation in evaluations for value in evaluation.metrics)
    if len(evaluations) < 2:
        return Comparison(metric, values, ())
    measuring = Measuring(resamples, confidence, seed, _cluster_of(evaluations[0].rows, clusters))
    targets = _targets(task, evaluations[0].rows)
    statistics = [_statistics(chosen, evaluation.rows, targets) for evaluation in evaluations]
    names = [evaluation.candidate for evaluation in evaluations]
    return Comparison(metric, values, tuple(measuring.differences(chosen, names, statistics)))


def compare_seeds(
    tuned: Sequence[Evaluation],
    alternative: Evaluation,
    task: Task,
    metric: str,
    *,
    confidence: float,
    clusters: Clusters | None = None,
) -> AcrossSeeds:
    """Tuned minus an alternative, where tuned was trained several times with other seeds.

    The interval is for another draw of rows (or of `clusters`, as for `compare`) and another training; every row counts
    once (see `statistics.seeds`). Raises as `compare`, and `DataError` for fewer than two trainings.
    """
    _require_same_rows([alternative, *tuned])
    other, *ours = _contributions([alternative, *tuned], task, metric, clusters)
    return across_seeds(np.array([one - other for one in ours]), confidence)


def value_over_seeds(
    tuned: Sequence[Evaluation], task: Task, metric: str, *, confidence: float, clusters: Clusters | None = None
) -> AcrossSeeds:
    """The metric itself over several trainings, with the interval of `compare_seeds`; raises as that."""
    _require_same_rows(tuned)
    return across_seeds(np.array(_contributions(tuned, task, metric, clusters)), confidence)


def _contributions(
    evaluations: Sequence[Evaluation], task: Task, metric: str, clusters: Clusters | None
) -> list[FloatArray]:
    """What each row, or each cluster of rows, contributes to the metric [units], by candidate."""
    chosen = _metric(task, metric)
    rows = evaluations[0].rows
    targets, of_rows = _targets(task, rows), _cluster_of(rows, clusters)
    found = []
    for evaluation in evaluations:
        statistics = _statistics(chosen, evaluation.rows, targets)
        units = statistics if of_rows is None else cluster_sums(statistics, of_rows)
        found.append(pseudo_values(units, chosen.finish))
    return found


def _metric(task: Task, name: str) -> Metric:
    chosen = task.metrics.get(name)
    if chosen is None:
        raise RecipeError(
            f"the task {task.name} has no metric {name!r}",
            where="goal.metric",
            expected=", ".join(task.metrics),
            fix="choose one of these, or auto",
        )
    return chosen


def _cluster_of(rows: Sequence[ScoredAnswer], clusters: Clusters | None) -> tuple[Hashable, ...] | None:
    """The cluster of every row, in their order; None where rows are independent."""
    if clusters is None:
        return None
    missing = next((row.id for row in rows if row.id not in clusters), None)
    if missing is not None:
        raise DataError(
            f"test row {missing} belongs to no cluster",
            where="data.split.group_by",
            expected="the name of one cluster for every test row",
            fix="fill the column in every row, or leave data.split.group_by out",
        )
    return tuple(clusters[row.id] for row in rows)


def _targets(task: Task, rows: Sequence[ScoredAnswer]) -> list[Any]:
    """What every row expects, read once for all metrics and candidates."""
    return [task.target(Example(row.id, (), row.expected, 0, "evaluation")) for row in rows]


def _statistics(metric: Metric, rows: Sequence[ScoredAnswer], targets: Sequence[Any]) -> FloatArray:
    return metric.statistics([row.parsed for row in rows], targets)


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
