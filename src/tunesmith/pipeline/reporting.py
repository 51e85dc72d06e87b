"""The report of a run, from its evidence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from tunesmith.evaluation.rating import Preference
from tunesmith.pipeline.calibrating import load_calibrations
from tunesmith.pipeline.evidence import Evidence
from tunesmith.pipeline.exporting.records import export_lines, tried_exports
from tunesmith.pipeline.learning_curve import CURVE
from tunesmith.pipeline.searching.record import trials_shown
from tunesmith.runs import RunFolder, read_events
from tunesmith.verdict.more_rows import MoreRows
from tunesmith.verdict.report import write_report
from tunesmith.verdict.report_data import ReportData
from tunesmith.verdict.types import Verdict


def write_run_report(
    folder: RunFolder, evidence: Evidence, verdict: Verdict, preferences: Sequence[Preference] = ()
) -> None:
    """Write `report.html`, in place of an older one."""
    recipe, background, best = evidence.recipe, evidence.background, verdict.best_alternative
    seeds = evidence.seeds
    write_report(
        folder.report,
        ReportData(
            name=folder.name,
            created=datetime.now().strftime("%Y-%m-%d %H:%M"),
            task=background.task,
            recipe_yaml=folder.recipe_file.read_text(encoding="utf-8"),
            manifest=folder.manifest(),
            goal=recipe.goal,
            prices=recipe.verdict.prices,
            verdict=verdict,
            evaluations=evidence.evaluations,
            comparison=evidence.comparison.values,
            differences=evidence.comparison.differences,
            costs=tuple(evidence.costs.values()),
            findings=background.findings,
            splits_explanation=background.splits_explanation,
            split_sizes=background.split_sizes,
            training=evidence.training,
            history=_history(folder) if evidence.training is not None else (),
            labels=background.labels,
            choices=background.choices,
            slices=evidence.slices,
            clusters=evidence.clusters,
            calibration=tuple(one for one in load_calibrations(folder) if one.candidate in evidence.by_name),
            forgetting=evidence.forgetting,
            seeds=seeds.differences.get(best) if seeds is not None and best is not None else None,
            preferences=tuple(preferences),
            more_rows=_more_rows(folder),
            exports=export_lines(folder),
            tried=tried_exports(folder),
            search=trials_shown(folder.path),
        ),
    )


def _history(folder: RunFolder) -> tuple[dict[str, Any], ...]:
    """The steps and validations of the run's training, each step with what the machine was doing meanwhile.

    That is in the log only, which holds the steps of further trainings (other seeds, parts of the rows) too, and those
    that an interruption lost: the newest of the same number within a stage `train` is the one that was kept.
    """
    kept = json.loads((folder.path / "training.json").read_text(encoding="utf-8"))
    logged: dict[int, dict[str, Any]] = {}
    stage = None
    for event in read_events(folder.events_file) if folder.events_file.is_file() else ():
        match event["kind"]:
            case "stage_started":
                stage = event["stage"]
            case "train_step" if stage == "train":
                logged[event["step"]] = event
    return tuple(
        {**logged.get(entry["step"], {}), **entry} if entry["kind"] == "train_step" else entry
        for entry in kept["history"]
    )


def _more_rows(folder: RunFolder) -> MoreRows | None:
    """What twice as many training rows would bring, where the run's learning curve says it."""
    path = folder.path / "learning_curve" / CURVE
    found = json.loads(path.read_text(encoding="utf-8"))["extrapolation"] if path.is_file() else None
    if found is None:
        return None
    twice = found["predictions"][0]
    return MoreRows(twice["rows"], twice["gain"], twice["gain_low"], twice["gain_high"])
