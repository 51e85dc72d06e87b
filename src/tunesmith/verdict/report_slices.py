"""Groups of test rows on which the subject is better or worse than on all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from tunesmith.evaluation.types import Evaluation
from tunesmith.verdict import wording
from tunesmith.verdict.report_data import ReportData
from tunesmith.verdict.report_subject import Subject
from tunesmith.verdict.vetoes import FEWEST_SLICE_ROWS, slice_differences

_SHOWN = 24


@dataclass(frozen=True, slots=True)
class SliceLine:
    """One slice: mean scores of the subject and of the other, their difference and its adjusted p-value.

    `surely`: better, worse, or "" where these rows do not tell. `start`, `width`: of the bar from no difference, in
    percent of a column that is as wide as the largest difference to both sides.
    """

    name: str
    n: int
    score: float
    other: float | None = None
    difference: float | None = None
    p_value: float | None = None
    surely: str = ""
    start: float = 50.0
    width: float = 0.0


@dataclass(frozen=True, slots=True)
class Slices:
    """`lines` are shown, the worst first; `more` folded away. `sentence`: what stands out, and what was left out."""

    sentence: str
    lines: list[SliceLine]
    more: list[SliceLine]
    compared: bool


def slices(report: ReportData, subject: Subject) -> Slices | None:
    """None where the task knows no slices, or all are smaller than what can be compared."""
    main = subject.evaluation
    if main is None or not report.slices:
        return None
    metric = report.verdict.metric
    measured = {row.id for row in main.rows}
    known = {name: [i for i in ids if i in measured] for name, ids in report.slices.items()}
    large = {name: ids for name, ids in known.items() if len(ids) >= FEWEST_SLICE_ROWS}
    if not large:
        return None
    lines = _compared(report, subject, large) if subject.other is not None else _alone(main, metric, large)
    small = len(known) - len(large)
    sentence = _sentence(lines, subject, small)
    return Slices(sentence, *_shown(lines), subject.other is not None)


def _compared(report: ReportData, subject: Subject, large: Mapping[str, Sequence[str]]) -> list[SliceLine]:
    main, other, metric = subject.evaluation, subject.other, report.verdict.metric
    assert main is not None and other is not None
    a, b = _scores(main, metric), _scores(other, metric)
    found = slice_differences(main, other, metric, large, report.clusters)
    widest = max((abs(one.difference) for one in found), default=0.0) or 1.0
    limit = 1 - report.verdict.assumptions["confidence"]
    lines = []
    for one in found:
        ids = large[one.name]
        sure = one.p_value <= limit
        reach = 50 * abs(one.difference) / widest
        lines.append(
            SliceLine(
                name=one.name,
                n=one.n,
                score=fmean(a[i] for i in ids),
                other=fmean(b[i] for i in ids),
                difference=one.difference,
                p_value=one.p_value,
                surely="" if not sure else "better" if one.difference > 0 else "worse",
                start=50 - reach if one.difference < 0 else 50.0,
                width=reach,
            )
        )
    return lines


def _alone(main: Evaluation, metric: str, large: Mapping[str, Sequence[str]]) -> list[SliceLine]:
    scores = _scores(main, metric)
    lines = [SliceLine(name, len(ids), fmean(scores[i] for i in ids)) for name, ids in large.items()]
    return sorted(lines, key=lambda line: (line.score, line.name))


def _scores(evaluation: Evaluation, metric: str) -> dict[str, float]:
    return {row.id: row.scores[metric] for row in evaluation.rows}


def _sentence(lines: Sequence[SliceLine], subject: Subject, small: int) -> str:
    parts = []
    if subject.other is not None:
        worse = [line.name for line in lines if line.surely == "worse"]
        better = [line.name for line in lines if line.surely == "better"]
        where = f"against {subject.other_label}"
        if worse:
            parts.append(f"{subject.title} is surely worse {where} on {wording.listed(worse)}.")
        if better:
            parts.append(f"{subject.title} is surely better {where} on {wording.listed(better)}.")
        if not worse and not better:
            parts.append(f"On no slice do these rows tell {subject.label} from {subject.other_label}.")
        parts.append("p-values are adjusted for the number of slices (Holm).")
    if small:
        what = "slice of fewer than" if small == 1 else "slices of fewer than"
        parts.append(f"{wording.count(small)} {what} {FEWEST_SLICE_ROWS} rows left out: too few to compare.")
    return " ".join(parts)


def _shown(lines: list[SliceLine]) -> tuple[list[SliceLine], list[SliceLine]]:
    """Few are all shown; of many the worst, and the best at the end of them, in their order."""
    if len(lines) <= _SHOWN:
        return lines, []
    worst = lines[: _SHOWN * 2 // 3]
    best = lines[-(_SHOWN - len(worst)) :]
    return worst + best, lines[len(worst) : -len(best)]
