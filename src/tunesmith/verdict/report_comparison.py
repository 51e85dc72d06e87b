"""All candidates side by side: values, ways of answering, paired differences, and the spread over trainings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tunesmith.evaluation.types import Evaluation, MetricValue, PairedDifference
from tunesmith.verdict import charts, wording
from tunesmith.verdict.case import reversed_pair
from tunesmith.verdict.charts import Interval, Mark, Role
from tunesmith.verdict.costs import is_tuned
from tunesmith.verdict.report_data import ReportData
from tunesmith.verdict.report_subject import Subject, evaluation_of, value_of


@dataclass(frozen=True, slots=True)
class Line:
    """A candidate in the comparison: its values in the order of the metrics, None where not measured."""

    label: str
    role: Role
    note: str
    metrics_row: list[MetricValue | None]
    deciding: MetricValue | None


def comparison_lines(report: ReportData, subject: Subject) -> list[Line]:
    """All candidates, the highest value of the deciding metric first."""
    metrics = list(dict.fromkeys(value.metric for value in report.comparison))
    lines = []
    for candidate in dict.fromkeys(value.candidate for value in report.comparison):
        evaluation = evaluation_of(report, candidate)
        base, way = wording.split_way(candidate)
        first = evaluation_of(report, base) if way is not None else None
        lines.append(
            Line(
                label=wording.candidate_name(candidate),
                role=subject.role(candidate),
                note=note_text(evaluation.notes, first.notes if first else {}) if evaluation else "",
                metrics_row=[value_of(report, candidate, metric) for metric in metrics],
                deciding=value_of(report, candidate, report.verdict.metric),
            )
        )
    return sorted(lines, key=lambda line: -line.deciding.value if line.deciding else math.inf)


def note_text(notes: Mapping[str, Any], said: Mapping[str, Any]) -> str:
    """Single facts as `name value`, without counts of what did not occur.

    said: the notes of the same candidate in its first way of answering: what is the same there is not repeated. Tables
    among the notes are left to the evaluation files.
    """
    parts = []
    for key, value in notes.items():
        if key == "decoding" or (key in said and said[key] == value):
            continue  # said elsewhere
        if value == 0 and not isinstance(value, bool):
            continue
        if key == "k_used" and isinstance(value, Mapping):
            if value["mean"] < notes["k"]:
                parts.append(f"really shown {value['mean']:.1f} on average")
        elif key == "unanswerable_rows":
            parts.append(f"{value} rows did not fit")
        elif isinstance(value, bool | int | float | str):
            text = f"{value:g}" if isinstance(value, float) else str(value)
            parts.append(f"{key.replace('_', ' ')} {text}")
    return ", ".join(parts)


def comparison_chart(report: ReportData, lines: Sequence[Line]) -> Markup:
    """The deciding metric of every candidate, with the target."""
    measured = [
        Interval(line.label, line.deciding.value, line.deciding.low, line.deciding.high, line.role)
        for line in lines
        if line.deciding
    ]
    target = report.verdict.assumptions["target"]
    return charts.interval_chart(
        measured,
        title=f"{wording.capitalised(wording.metric_name(report.verdict.metric))} by candidate",
        number=wording.percent,
        tick=lambda value: f"{100 * value:g} %",
        marks=[Mark(target, f"target {wording.percent(target)}")] if target is not None else [],
        confidence=report.verdict.assumptions["confidence"],
    )


# Ways of answering.


@dataclass(frozen=True, slots=True)
class Way:
    """One way in which a candidate was asked; `value` of the deciding metric."""

    name: str
    value: MetricValue | None
    unreadable: int
    rows: int
    latency: float


@dataclass(frozen=True, slots=True)
class Ways:
    """A candidate that was asked in more than one way; those found best first by value are marked in the table."""

    label: str
    role: Role
    ways: list[Way]


def ways(report: ReportData, subject: Subject) -> list[Ways]:
    """Candidates with further ways of answering (`few_shot` and `few_shot_grammar`), each way a line."""
    names = [evaluation.candidate for evaluation in report.evaluations]
    found: dict[str, list[Way]] = {}
    for evaluation in report.evaluations:
        base, way = wording.split_way(evaluation.candidate)
        if base in names:
            found.setdefault(base, []).append(_way(report, evaluation, way or "as in the comparison"))
    return [
        Ways(wording.candidate_name(base), subject.role(base), several)
        for base, several in found.items()
        if len(several) > 1
    ]


def _way(report: ReportData, evaluation: Evaluation, name: str) -> Way:
    noted = evaluation.notes.get("decoding")
    return Way(
        name=WAYS.get(noted, noted) if isinstance(noted, str) else WAYS.get(name, name),
        value=value_of(report, evaluation.candidate, report.verdict.metric),
        unreadable=sum(1 for row in evaluation.rows if row.parsed is None),
        rows=len(evaluation.rows),
        latency=evaluation.latency_p50,
    )


WAYS = {"free": "free text", "grammar": "under the grammar of the answer", "scored": "every label scored"}


# Differences.


@dataclass(frozen=True, slots=True)
class Differences:
    """`of_subject` as the subject minus the other, the strongest other first."""

    of_subject: list[PairedDifference]
    others: list[PairedDifference]


def differences(report: ReportData, subject: Subject) -> Differences:
    name = subject.name
    of_subject = [
        pair if pair.a == name else reversed_pair(pair) for pair in report.differences if name in (pair.a, pair.b)
    ]
    of_subject.sort(key=lambda pair: (pair.metric != report.verdict.metric, pair.metric, pair.difference))
    return Differences(of_subject, [pair for pair in report.differences if name not in (pair.a, pair.b)])


def difference_chart(report: ReportData, subject: Subject) -> Markup | None:
    """The subject minus each other in the metric that decides, the strongest other first."""
    metric, min_gain = report.verdict.metric, report.verdict.assumptions["min_gain"]
    pairs = [
        pair
        for pair in differences(report, subject).of_subject
        if pair.metric == metric and not (subject.tuned and is_tuned(pair.b, subject.name))
    ]
    if not pairs:
        return None
    marks = [Mark(0.0, "no difference", "zero")]
    if min_gain > 0 and subject.tuned:
        marks.append(Mark(min_gain, f"smallest gain worth having, {wording.bare_points(min_gain)} points"))
    return charts.interval_chart(
        [_over(p, f"over {wording.candidate_name(p.b)}", "tuned" if p.b == subject.other_name else "best")
         for p in pairs],
        title=f"{subject.title} minus each alternative, points of {wording.metric_name(metric)}",
        number=_signed,
        tick=_tick,
        marks=marks,
        bars=False,
        confidence=report.verdict.assumptions["confidence"],
    )  # fmt: skip


def _over(pair: PairedDifference, label: str, role: Role) -> Interval:
    return Interval(label, pair.difference, pair.low, pair.high, role)


def _signed(value: float) -> str:
    return wording.points(value).removesuffix(" points")


def _tick(value: float) -> str:
    return f"{100 * value:+g}" if value else "0"


# Several trainings.


@dataclass(frozen=True, slots=True)
class SeedSpread:
    sentence: str
    chart: Markup


def seed_spread(report: ReportData, subject: Subject) -> SeedSpread | None:
    """The difference over rows alone, and over rows and trainings; None for a single training."""
    seeds = report.seeds
    if seeds is None:
        return None
    confidence = report.verdict.assumptions["confidence"]
    low, high = seeds.interval
    variance = seeds.row_error**2 + seeds.seed_error**2
    share = seeds.seed_error**2 / variance if variance > 0 else 0.0
    sentence = (
        f"Over {seeds.seeds} trainings on the same rows that differ only in their seed, {subject.label} gains "
        f"{wording.points(seeds.mean)} ({wording.interval(low, high, confidence)}). Of what is uncertain about it, "
        f"{wording.percent(share)} comes from the training and the rest from the rows; no row is counted twice."
    )
    lines = [Interval(f"{seeds.seeds} trainings, rows and seeds", seeds.mean, low, high, "tuned")]
    for pair in differences(report, subject).of_subject:
        if pair.metric == report.verdict.metric and pair.b == subject.other_name:
            lines.append(_over(pair, "one training, rows alone", "best"))
    chart = charts.interval_chart(
        lines,
        title=f"{subject.title} minus {subject.other_label or 'the best alternative'}, with and without the noise of "
        "training",
        number=_signed,
        tick=_tick,
        marks=[Mark(0.0, "no difference", "zero")],
        bars=False,
        confidence=confidence,
    )
    return SeedSpread(sentence, chart)
