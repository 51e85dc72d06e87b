"""Whether the probabilities of labels can be believed: the reliability of each candidate that scored them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from tunesmith.evaluation.calibration import Calibration
from tunesmith.verdict import wording
from tunesmith.verdict.reliability_chart import reliability_chart
from tunesmith.verdict.report_data import ReportData
from tunesmith.verdict.report_subject import Subject

_GAP = 0.02
"""A gap between mean confidence and accuracy that is worth a word."""


def _score(value: float) -> str:
    return f"{value:.3f}"


_MEASURES: tuple[tuple[str, Callable[[Calibration], float], Callable[[float], str]], ...] = (
    ("calibration error (ECE)", lambda one: one.ece, wording.percent),
    ("the same by chance, were it calibrated", lambda one: one.ece_by_chance, wording.percent),
    ("ECE over bins of equal width", lambda one: one.ece_width, wording.percent),
    ("Brier score", lambda one: one.brier, _score),
    ("log loss", lambda one: one.log_loss, _score),
)


@dataclass(frozen=True, slots=True)
class Reliability:
    """One candidate's diagram; `rows` are its measures as (name, as answered, after temperature or None)."""

    title: str
    sentence: str
    chart: Markup
    rows: list[tuple[str, str, str | None]]
    calibration: Calibration


def reliabilities(report: ReportData, subject: Subject) -> list[Reliability]:
    """The subject's first, then the others in their order."""
    ordered = sorted(report.calibration, key=lambda one: subject.role(one.candidate) != "tuned")
    return [_reliability(report, one) for one in ordered]


def _reliability(report: ReportData, found: Calibration) -> Reliability:
    title = wording.capitalised(wording.candidate_name(found.candidate))
    scaled = found.scaled
    measures = [
        (name, form(read(found)), form(read(scaled)) if scaled is not None else None) for name, read, form in _MEASURES
    ]
    chart = reliability_chart(
        found.bins, scaled.bins if scaled else (), title=title, confidence=report.verdict.assumptions["confidence"]
    )
    return Reliability(title, _sentence(found), chart, measures, found)


def _sentence(found: Calibration) -> str:
    rows = sum(one.n for one in found.bins) or 1
    confidence = sum(one.confidence * one.n for one in found.bins) / rows
    accuracy = sum(one.accuracy * one.n for one in found.bins) / rows
    gap = confidence - accuracy
    says = f"It is {wording.percent(confidence)} sure on average and right in {wording.percent(accuracy)}"
    if abs(gap) < _GAP:
        said = [f"{says}: as sure as it may be, on average."]
    else:
        how = "too sure of itself" if gap > 0 else "less sure of itself than it could be"
        said = [f"{says}: {how} by {wording.bare_points(abs(gap))} points."]
    said.append(_of_temperature(found))
    if found.left_out:
        said.append(f"{wording.count(found.left_out)} rows without probabilities, or with another label, are left out.")
    return " ".join(said)


def _of_temperature(found: Calibration) -> str:
    if found.temperature is None or found.scaled is None:
        return "No temperature was fitted: there were too few validation rows, or none was answered wrong."
    of = f"A temperature of {found.temperature:.2f}, fitted on {wording.count(found.fitted_on)} validation rows"
    error = wording.percent(found.scaled.ece)
    if found.scaled.ece < found.ece:
        return f"{of}, brings the calibration error down to {error}; it changes no answer."
    return f"{of}, does not help: the calibration error is then {error}."
