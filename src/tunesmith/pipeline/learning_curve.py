"""A learning curve: train on a quarter, a half and all rows, score on the same test, say what more rows would buy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.data.types import Example
from tunesmith.evaluation.statistics import bootstrap, value_interval
from tunesmith.evaluation.types import Evaluation
from tunesmith.pipeline.evaluating import run_tuned
from tunesmith.pipeline.extrapolation import Extrapolation, FloatArray, extrapolate
from tunesmith.pipeline.learning_curve_page import write_curve
from tunesmith.pipeline.prepare import DataFindingsError, Listener, Rows, prepare
from tunesmith.pipeline.seeds import measured_alone
from tunesmith.pipeline.subsets import SHARES, Subset, freeze_subsets, nested_subsets
from tunesmith.pipeline.training import run_training
from tunesmith.recipe import dump_recipe
from tunesmith.recipe.schema import ONE_LABEL, Recipe
from tunesmith.runs import RunFolder, write_json, write_text
from tunesmith.tasks import fit_task
from tunesmith.tasks.types import Metric, Task
from tunesmith.verdict import wording

CURVE = "learning_curve.json"
_RESAMPLES = 2_000
FEW_TEST_ROWS = 30
"""With fewer test rows nothing is extrapolated."""

Measure = Callable[[Subset], Evaluation]
"""Trains on a subset and scores the model on the test rows, which are the same each time."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The metric after training on so many rows, with its interval."""

    share: float
    rows: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """Points by number of rows, and what follows from them. `extrapolation` is None where nothing can be said."""

    metric: str
    points: tuple[CurvePoint, ...]
    test_rows: int
    min_gain: float
    confidence: float
    extrapolation: Extrapolation | None
    conclusion: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def subsets_of(recipe: Recipe, rows: Rows) -> tuple[Subset, ...]:
    """The subsets that a recipe means: of its shares and its split's seed, by label where answers are one."""
    return nested_subsets(
        rows.splits.train,
        recipe.data.learning_curve_shares or SHARES,
        seed=recipe.data.split.seed,
        stratified=rows.task_type in ONE_LABEL,
    )


def run_learning_curve(
    recipe: Recipe,
    rows: Rows,
    folder: Path,
    listener: Listener = lambda event: None,
    *,
    full: Evaluation | None = None,
) -> LearningCurve:
    """Freeze the subsets in `folder`, train on each in a folder of its own there, and conclude.

    A training that was done before is read. `full`: the tuned model's evaluation on all rows, where it is known; then
    nothing is trained on all rows again. Writes `learning_curve.json` and `learning_curve.html`.
    """
    subsets = subsets_of(recipe, rows)
    splits = rows.splits
    freeze_subsets(folder, subsets, seed=recipe.data.split.seed, test_sha256=splits.hashes["test"])
    task = fit_task(recipe.task, rows.task_type, [*splits.train, *splits.validation, *splits.test])
    recipe = _with_task(recipe, task)

    def measure(subset: Subset) -> Evaluation:
        if full is not None and subset.share == 1:
            return full
        listener({"kind": "note", "text": f"learning curve: training on {len(subset.rows):,} rows"})
        return train_on(subset, recipe, rows, folder / f"rows-{len(subset.rows)}", listener)

    curve = curve_of(subsets, measure, task, recipe)
    write_json(folder / CURVE, curve.to_dict())
    write_curve(folder / CURVE.replace(".json", ".html"), curve, recipe.name or "learning curve")
    return curve


def curve_of(subsets: Sequence[Subset], measure: Measure, task: Task, recipe: Recipe) -> LearningCurve:
    """The curve of what `measure` finds on each subset. Raises `DataError` where there are no test rows."""
    spec = recipe.evaluate
    wanted = str(recipe.goal.metric)
    metric = task.metrics[wanted if wanted in task.metrics else next(iter(task.metrics))]
    statistics = [_statistics(metric, task, measure(subset)) for subset in subsets]
    draws = bootstrap(statistics, metric.finish, resamples=_RESAMPLES, seed=recipe.train.seed)
    points = []
    for subset, one, drawn in zip(subsets, statistics, draws, strict=True):
        value = float(metric.finish(one.sum(axis=0)))
        low, high = value_interval(value, len(one), None if metric.binary else drawn, spec.confidence)
        points.append(CurvePoint(subset.share, len(subset.rows), value, low, high))
    test_rows, min_gain = len(statistics[0]), recipe.verdict.min_gain
    found = None
    if test_rows >= FEW_TEST_ROWS:
        found = extrapolate(
            [point.rows for point in points],
            [point.value for point in points],
            draws,
            min_gain=min_gain,
            confidence=spec.confidence,
        )
    return LearningCurve(
        metric=metric.name,
        points=tuple(points),
        test_rows=test_rows,
        min_gain=min_gain,
        confidence=spec.confidence,
        extrapolation=found,
        conclusion=_conclusion(found, metric.name, test_rows, len(points), min_gain, spec.confidence),
    )


def train_on(subset: Subset, recipe: Recipe, rows: Rows, folder: Path, listener: Listener) -> Evaluation:
    """Train on a subset in a run folder of its own, and score the model on all test rows.

    What `auto` means is decided anew for so many rows, as it would be by whoever has no more.
    """
    splits = replace(rows.splits, train=subset.rows, hashes={**rows.splits.hashes, "train": subset.sha256})
    run = RunFolder.create_at(folder)
    recipe = recipe.model_copy(update={"evaluate": measured_alone(recipe.evaluate)})
    with run.lock():
        prepared = prepare(recipe, replace(rows, splits=splits))
        errors = [finding for finding in prepared.findings if finding.severity == "error"]
        if errors:
            raise DataFindingsError(errors)
        write_text(
            run.recipe_file, dump_recipe(prepared.recipe, {c.key: c.reason for c in prepared.choices}, omit_auto=True)
        )
        _, prepared = run_training(prepared, recipe, run, listener)
        evaluation = run_tuned(prepared, run, listener)[0]
        run.set_status("finished", verdict=f"learning curve, {len(subset.rows):,} rows")
    return evaluation


def _with_task(recipe: Recipe, task: Task) -> Recipe:
    """The recipe with the labels of all rows: a subset may lack some, and would else learn another task."""
    labels = getattr(task, "labels", None)
    if labels is None or recipe.task.labels != "auto":
        return recipe
    return recipe.model_copy(update={"task": recipe.task.model_copy(update={"labels": list(labels)})})


def _statistics(metric: Metric, task: Task, evaluation: Evaluation) -> FloatArray:
    """The metric's statistics of each test row [n, d]."""
    expected = [task.target(Example(row.id, (), row.expected, 0, "evaluation")) for row in evaluation.rows]
    return metric.statistics([row.parsed for row in evaluation.rows], expected)


def _conclusion(
    found: Extrapolation | None, metric: str, test_rows: int, points: int, min_gain: float, confidence: float
) -> str:
    name = wording.metric_name(metric)
    if found is None:
        if test_rows < FEW_TEST_ROWS:
            return f"Cannot tell what more rows would buy: {test_rows} test rows are too few."
        return f"Cannot tell what more rows would buy: {points} points make no curve."
    twice = found.predictions[0]
    gain = (
        f"about {wording.points(twice.gain)} of {name} "
        f"({wording.interval(twice.gain_low, twice.gain_high, confidence)})"
    )
    worth = f"{wording.bare_points(min_gain)} points"
    if found.answer == "more_data_helps":
        return f"More rows should help: {twice.rows:,} rows, twice as many, would bring {gain}."
    if found.answer == "more_data_does_not_help":
        return (
            f"More rows of this kind should not help: twice as many would bring {gain}, less than the {worth} worth "
            "having. Better rows, another base or another task description may."
        )
    return (
        f"Cannot tell whether more rows would help: twice as many would bring {gain}, and {worth} are worth having. "
        "More test rows, or several seeds, would tell."
    )
