"""Where the subject goes wrong: confusions, fields, the spread of scores, groups of errors, labels in doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tunesmith.evaluation.types import Evaluation
from tunesmith.recipe.schema import ONE_LABEL
from tunesmith.verdict import charts, mistakes, wording
from tunesmith.verdict.error_clusters import ErrorCluster, error_clusters
from tunesmith.verdict.noise_suspects import NoiseSuspect, noise_suspects
from tunesmith.verdict.report_data import ReportData
from tunesmith.verdict.report_subject import Subject, is_binary

_FREE_TEXT = ("generation", "summarisation", "translation")
"""Tasks whose answers are hardly ever met word by word."""
_PAIRS = 10


@dataclass(frozen=True, slots=True)
class Mistakes:
    sentence: str
    choice: str
    chosen: list[mistakes.Mistake]


def mistakes_of(report: ReportData, subject: Subject) -> Mistakes:
    """How much is wrong, and the answers that are shown whole."""
    main, other = subject.evaluation, subject.other
    if main is None or not main.rows:
        return Mistakes(f"{subject.title} was not evaluated.", "", [])
    metric = report.verdict.metric
    wrong = mistakes.wrong_rows(main, metric)
    unreadable = sum(1 for row in main.rows if row.parsed is None)
    cut = sum(1 for row in main.rows if not row.stopped)
    how = "wrong" if is_binary(main, metric) else "not entirely right"
    sentence = f"{wording.count(wrong)} of {wording.count(len(main.rows))} test rows are {how}."
    if report.task in _FREE_TEXT and how != "wrong":
        sentence = f"Scores of {wording.count(len(main.rows))} answers; few free texts are met word by word."
    if unreadable:
        sentence += f" {wording.count(unreadable)} answers could not be read and count as wrong."
    if cut:
        sentence += f" {wording.count(cut)} were cut at the token limit."
    chosen = mistakes.choose_mistakes(main, other, metric)
    choice = f"Chosen from {wording.count(wrong)}, the lowest scores first."
    right = sum(1 for mistake in chosen if mistake.other_right)
    if other is not None and right:
        choice = (
            f"Chosen from {wording.count(wrong)}: {right} that {subject.other_label} got right, "
            f"{len(chosen) - right} that it got wrong too; the lowest scores first."
        )
    return Mistakes(sentence, choice, chosen)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A confusion matrix as it is shown: `counts` has a line per label, and a last one for the labels folded together.

    `columns` end with those labels, where there are any, and with what could not be read. `totals`: rows per line.
    """

    labels: list[str]
    columns: list[str]
    counts: list[list[int]]
    totals: list[int]
    folded: int
    pairs: list[tuple[str, str, int, int]]
    label_count: int


def matrix_of(report: ReportData, evaluation: Evaluation) -> Matrix:
    """The labels most often confused, all others folded into one line and one column."""
    found = mistakes.confusion(evaluation, report.labels, report.verdict.metric)
    labels, counts = list(found.labels), [list(line) for line in found.counts]
    columns, totals = list(found.columns), list(found.totals)
    folded = found.label_count - len(labels)
    if folded:
        shown = set(labels)
        name = f"{folded} other labels"
        columns.insert(-1, name)
        for line, total in zip(counts, totals, strict=True):
            line.insert(-1, total - sum(line))
        outside = [pair for pair in found.pairs if pair[0] not in shown]
        rest = [sum(n for _, answered, n, _ in outside if answered == label) for label in labels]
        unreadable = sum(n for _, answered, n, _ in outside if answered == mistakes.UNREADABLE)
        total = len(evaluation.rows) - sum(totals)
        counts.append([*rest, total - sum(rest) - unreadable, unreadable])
        labels.append(name)
        totals.append(total)
    return Matrix(labels, columns, counts, totals, folded, list(found.pairs[:_PAIRS]), found.label_count)


def by_task(report: ReportData, subject: Subject) -> dict[str, Any]:
    """What shows best where this kind of task goes wrong."""
    found: dict[str, Any] = {"matrix": None, "fields": None, "items": None, "has_fields": False, "histogram": None}
    main = subject.evaluation
    if main is None or not main.rows:
        return found
    if report.task in ONE_LABEL:
        found["matrix"] = matrix_of(report, main)
    elif report.task == "extraction":
        scores = {evaluation.candidate: mistakes.item_scores(evaluation) for evaluation in subject.both}
        found["items"] = scores[main.candidate]
        names = [score.field for score in found["items"].fields]
        found["has_fields"] = len(names) > 1
        found["fields"] = [
            (name, wording.candidate_name(candidate), subject.role(candidate), score)
            for name in names
            for candidate, scored in scores.items()
            for score in scored.fields
            if score.field == name
        ]
    else:
        found["histogram"] = _histogram(report, subject.both, subject)
    return found


def _histogram(report: ReportData, both: Sequence[Evaluation], subject: Subject) -> Markup:
    """The spread of a graded score; of the deciding one where it is graded."""
    rows = both[0].rows
    names = [report.verdict.metric, *rows[0].scores]
    metric = next((n for n in names if any(row.scores[n] not in (0, 1) for row in rows)), report.verdict.metric)
    return charts.histogram(
        [
            (wording.candidate_name(e.candidate), subject.role(e.candidate), mistakes.score_histogram(e, metric))
            for e in both
        ],
        title=f"Rows by {wording.metric_name(metric)} of the answer",
    )


def clusters(report: ReportData, subject: Subject) -> tuple[ErrorCluster, ...]:
    """Groups of the subject's wrong answers."""
    if subject.evaluation is None or not subject.evaluation.rows:
        return ()
    return error_clusters(subject.evaluation, report.verdict.metric)


def suspects(report: ReportData, subject: Subject) -> tuple[NoiseSuspect, ...]:
    """Test rows whose label the subject doubts; for tasks whose answers are labels."""
    if report.task not in ONE_LABEL or subject.evaluation is None:
        return ()
    return noise_suspects(report.evaluations, report.verdict.metric, tuned=subject.name, calibration=report.calibration)
