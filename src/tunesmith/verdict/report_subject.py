"""Whom the report is about, whom it is compared with, and what was measured of both."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.evaluation.types import Evaluation, MetricValue
from tunesmith.verdict import wording
from tunesmith.verdict.charts import Role
from tunesmith.verdict.costs import is_tuned
from tunesmith.verdict.report_data import ReportData


@dataclass(frozen=True, slots=True)
class Subject:
    """The tuned model beside its best alternative; where nothing was tuned, what was chosen beside the next best.

    `evaluation` and `other` are None where there is none. `tuned`: whether the subject is the tuned model.
    """

    name: str
    evaluation: Evaluation | None
    other: Evaluation | None
    tuned: bool

    @property
    def label(self) -> str:
        return wording.candidate_name(self.name)

    @property
    def title(self) -> str:
        """`label` as a sentence begins."""
        return wording.capitalised(self.label)

    @property
    def other_name(self) -> str | None:
        return self.other.candidate if self.other is not None else None

    @property
    def other_label(self) -> str:
        return wording.candidate_name(self.other.candidate) if self.other is not None else ""

    @property
    def both(self) -> list[Evaluation]:
        return [evaluation for evaluation in (self.evaluation, self.other) if evaluation is not None]

    def role(self, candidate: str) -> Role:
        """How a candidate is drawn: the subject stands out, its other one too, all else is in the background."""
        if candidate == self.name or (self.tuned and is_tuned(candidate, self.name)):
            return "tuned"
        return "best" if candidate == self.other_name else "other"


def subject_of(report: ReportData) -> Subject:
    """Tuned where it was evaluated, else the verdict's candidate, else the highest value."""
    verdict = report.verdict
    tuned = evaluation_of(report, report.tuned_name)
    if tuned is not None:
        return Subject(report.tuned_name, tuned, evaluation_of(report, verdict.best_alternative), True)
    ranked = sorted(report.evaluations, key=lambda e: -_deciding(report, e.candidate))
    chosen = evaluation_of(report, verdict.candidate or verdict.best_alternative) or next(iter(ranked), None)
    if chosen is None:
        return Subject(report.tuned_name, None, None, True)
    others = [evaluation for evaluation in ranked if evaluation is not chosen]
    return Subject(chosen.candidate, chosen, next(iter(others), None), False)


def evaluation_of(report: ReportData, name: str | None) -> Evaluation | None:
    return next((evaluation for evaluation in report.evaluations if evaluation.candidate == name), None)


def value_of(report: ReportData, candidate: str, metric: str) -> MetricValue | None:
    return next((v for v in report.comparison if v.candidate == candidate and v.metric == metric), None)


def _deciding(report: ReportData, candidate: str) -> float:
    value = value_of(report, candidate, report.verdict.metric)
    return value.value if value is not None else -1.0


def is_binary(evaluation: Evaluation, metric: str) -> bool:
    """Whether answers are right or wrong in this metric, with nothing between."""
    return all(row.scores[metric] in (0, 1) for row in evaluation.rows)
