"""What people and judges preferred."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tunesmith.evaluation.rating import Preference, WinRate
from tunesmith.verdict import charts, wording
from tunesmith.verdict.charts import Interval, Mark
from tunesmith.verdict.report_data import ReportData

_SOURCES = {"people": "People", "judge": "A judge"}


@dataclass(frozen=True, slots=True)
class PreferenceLine:
    """One source: who, of what, and whether it counts. `rate` None where nothing was rated."""

    source: str
    pair: str
    rate: WinRate | None
    counts: bool
    why: str
    agreement: str


@dataclass(frozen=True, slots=True)
class Preferences:
    lines: list[PreferenceLine]
    chart: Markup | None


def preferences(report: ReportData) -> Preferences | None:
    """None where nobody was asked."""
    if not report.preferences:
        return None
    return Preferences([_line(one) for one in report.preferences], _chart(report, report.preferences))


def _line(one: Preference) -> PreferenceLine:
    return PreferenceLine(
        source=_SOURCES.get(one.source, one.source),
        pair=f"{wording.candidate_name(one.a)} against {wording.candidate_name(one.b)}",
        rate=one.win_rate,
        counts=one.counts,
        why=one.why,
        agreement=_agreement(one),
    )


def _agreement(one: Preference) -> str:
    """The coefficient and its interval, such as `Cohen κ 0.71 (0.52 to 0.86)`."""
    found = one.agreement or {}
    value = found.get("value")
    if not isinstance(value, int | float):
        return ""
    text = f"{found.get('name', 'agreement')} {value:.2f}"
    low, high = found.get("low"), found.get("high")
    if isinstance(low, int | float) and isinstance(high, int | float):
        text += f" ({low:.2f} to {high:.2f})"
    return text


def _chart(report: ReportData, found: Sequence[Preference]) -> Markup | None:
    lines = [
        Interval(
            f"{_SOURCES.get(one.source, one.source)}: {wording.candidate_name(one.a)} over "
            f"{wording.candidate_name(one.b)}",
            one.win_rate.value,
            one.win_rate.low,
            one.win_rate.high,
            "tuned" if one.counts else "other",
        )
        for one in found
        if one.win_rate is not None
    ]
    if not lines:
        return None
    confidence = next(one.win_rate.confidence for one in found if one.win_rate is not None)
    return charts.interval_chart(
        lines,
        title="Win rate, ties as half",
        number=wording.percent,
        tick=lambda value: f"{100 * value:g} %",
        marks=[Mark(0.5, "as good as each other", "zero")],
        bars=False,
        confidence=confidence,
    )
