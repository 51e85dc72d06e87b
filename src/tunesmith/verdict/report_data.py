"""Everything a report shows, as the pipeline hands it over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.types import Finding
from tunesmith.evaluation.calibration import Calibration
from tunesmith.evaluation.rating import Preference
from tunesmith.evaluation.statistics import AcrossSeeds
from tunesmith.evaluation.types import Evaluation, MetricValue, PairedDifference
from tunesmith.recipe.schema import Goal, Prices
from tunesmith.verdict.more_rows import MoreRows
from tunesmith.verdict.report_exports import ExportLine
from tunesmith.verdict.report_search import SearchData
from tunesmith.verdict.report_tried import TriedData
from tunesmith.verdict.types import CandidateCost, Forgetting, Verdict


@dataclass(frozen=True, slots=True)
class ReportData:
    """One finished run.

    name, created: of the run; `created` as it shall be shown, such as `2026-11-21 14:05`.
    task: classification, extraction or generation.
    labels: of a classification, in the order in which they shall be listed; empty collects them from the rows.
    goal, prices: from the resolved recipe.
    training: facts of the training by name (steps, tokens, seconds, tokens_per_second, peak_memory_bytes, ...);
        None where nothing was trained.
    history: events in order: {kind: "train_step", step, loss, ...} and
        {kind: "validation", step, loss, metrics: {name: value}, best: bool}.
    split_sizes: rows by part, such as {"train": 336, "validation": 48, "test": 96}.
    choices: settings that were decided automatically, as (key, value, reason).
    warnings: what went otherwise than asked, as sentences; shown under the verdict with its caveats.
    slices: ids of test rows by the name of a slice, such as `label refund`.
    clusters: by test row, the group with which it hangs together; None where rows are independent.
    calibration: of the candidates that scored labels.
    forgetting: general text and instructions before and after tuning; None where not measured.
    seeds: tuned minus the best alternative over several trainings; None for a single one.
    preferences: what people and judges preferred, people first.
    more_rows: what twice as many training rows would bring, by a learning curve; None without one.
    search: the trials that chose the run's settings; None where these were given.
    """

    name: str
    created: str
    task: str
    recipe_yaml: str
    manifest: Mapping[str, Any]
    goal: Goal
    prices: Prices
    verdict: Verdict
    evaluations: tuple[Evaluation, ...]
    comparison: tuple[MetricValue, ...]
    differences: tuple[PairedDifference, ...]
    costs: tuple[CandidateCost, ...]
    findings: tuple[Finding, ...]
    splits_explanation: str
    split_sizes: Mapping[str, int]
    training: Mapping[str, Any] | None = None
    history: tuple[Mapping[str, Any], ...] = ()
    labels: tuple[str, ...] = ()
    choices: tuple[tuple[str, str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    tuned_name: str = "tuned"
    extra_assumptions: Mapping[str, str] = field(default_factory=dict)
    slices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    clusters: Mapping[str, str] | None = None
    calibration: tuple[Calibration, ...] = ()
    forgetting: Forgetting | None = None
    seeds: AcrossSeeds | None = None
    preferences: tuple[Preference, ...] = ()
    more_rows: MoreRows | None = None
    exports: tuple[ExportLine, ...] = ()
    tried: TriedData | None = None
    search: SearchData | None = None
