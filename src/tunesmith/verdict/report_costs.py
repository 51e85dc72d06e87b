"""What the candidates cost, and when tuning has paid for itself."""

from __future__ import annotations

from functools import partial

from markupsafe import Markup

from tunesmith.verdict import wording
from tunesmith.verdict.cost_chart import CostLine, RequestMark, cost_chart
from tunesmith.verdict.costs import break_even, months, total_cost
from tunesmith.verdict.report_data import ReportData
from tunesmith.verdict.report_subject import Subject
from tunesmith.verdict.types import CandidateCost

_MONTHS = 12
_BEYOND = 20
"""How many times the year's requests a break-even may lie away and still be drawn."""
_OTHERS = 4
"""Candidates drawn beside the subject and its best alternative: more lines are no longer told apart."""


def break_even_sentence(report: ReportData, subject: Subject) -> str:
    """What tuning cost, what it saves per request, and when it has paid for itself."""
    costs = {cost.candidate: cost for cost in report.costs}
    main, other = costs.get(subject.name), costs.get(subject.other_name or "")
    money = partial(wording.money, currency=report.prices.currency)
    if main is None:
        return f"{subject.title} was not measured, so its cost is not known."
    if not subject.tuned:
        return _sentence_untuned(main, other, subject, money)
    once = f"Tuning cost {money(main.one_off)} once."
    if other is None:
        return f"{once} There is no alternative to pay it back against."
    each = (
        f"1,000 requests cost {money(main.per_1000_requests)} with tuned and "
        f"{money(other.per_1000_requests)} with {subject.other_label}."
    )
    requests = break_even(main, other)
    if requests is None:
        return f"{once} {each} Tuned is not cheaper per request, so only better answers can pay for it."
    time = wording.time_to(months(requests, report.goal.requests_per_month))
    return (
        f"{once} {each} Cheaper requests pay it back after {wording.count(requests)} requests: {time} at "
        f"{wording.count(report.goal.requests_per_month)} requests a month."
    )


def _sentence_untuned(main: CandidateCost, other: CandidateCost | None, subject: Subject, money: partial[str]) -> str:
    sentence = f"Nothing was tuned. 1,000 requests cost {money(main.per_1000_requests)} with {subject.label}"
    if other is None:
        return f"{sentence}."
    return f"{sentence} and {money(other.per_1000_requests)} with {subject.other_label}."


def cost_curve(report: ReportData, subject: Subject) -> Markup:
    """Total cost over the requests of a year, or as far as the break-even where that is in sight."""
    costs = {cost.candidate: cost for cost in report.costs}
    main, other = costs.get(subject.name), costs.get(subject.other_name or "")
    year = float(_MONTHS * report.goal.requests_per_month)
    requests = year
    marks = [RequestMark(year, f"a year at your volume, {wording.short_count(round(year))} requests", "zero")]
    even = break_even(main, other) if main and other else None
    if even and even <= _BEYOND * year:
        requests = max(year, 1.5 * even)
        marks.insert(0, RequestMark(even, f"break-even with {subject.other_label}, {wording.count(even)} requests"))
    return cost_chart(
        _lines(report, subject),
        requests=requests,
        marks=marks,
        money=wording.short_amount,
        title=f"Total cost in {report.prices.currency}",
    )


def _lines(report: ReportData, subject: Subject) -> list[CostLine]:
    """The subject, its best alternative, then the cheapest of the rest; further ways of asking cost much the same."""
    costs = [c for c in report.costs if wording.split_way(c.candidate)[1] is None or c.candidate == subject.other_name]
    rest = [c for c in costs if c.candidate not in (subject.name, subject.other_name)]
    year = _MONTHS * report.goal.requests_per_month
    rest = sorted(rest, key=lambda cost: total_cost(cost, year))[:_OTHERS]
    first = [c for name in (subject.name, subject.other_name) for c in costs if c.candidate == name]
    styles = dict(zip((c.candidate for c in rest), (f"other{i}" for i in range(1, _OTHERS + 1)), strict=False))
    styles |= {subject.name: "tuned", subject.other_name or "": "best"}
    return [
        CostLine(wording.candidate_name(c.candidate), c.one_off, c.per_1000_requests / 1000, styles[c.candidate])
        for c in [*first, *rest]
    ]
