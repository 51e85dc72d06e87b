"""The top of the report and its foot: the tiles of the verdict, what it was asked, what its numbers rest on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tunesmith.recipe.schema import Prices
from tunesmith.verdict import wording
from tunesmith.verdict.costs import FORMULAS, break_even, months
from tunesmith.verdict.report_data import ReportData
from tunesmith.verdict.report_subject import Subject, value_of


@dataclass(frozen=True, slots=True)
class Tile:
    name: str
    value: str
    note: str = ""


def tiles(report: ReportData, subject: Subject) -> list[Tile]:
    """The few numbers that a reader takes away."""
    verdict = report.verdict
    shown = []
    for evaluation in subject.both:
        value = value_of(report, evaluation.candidate, verdict.metric)
        if value is not None:
            role = "the best alternative" if subject.tuned else "the next best"
            suffix = "" if evaluation is subject.evaluation else f", {role}"
            name = f"{wording.capitalised(wording.candidate_name(evaluation.candidate))}{suffix}"
            interval = wording.interval(value.low, value.high, verdict.assumptions["confidence"])
            shown.append(Tile(name, wording.percent(value.value), interval))
    costs = {cost.candidate: cost for cost in report.costs}
    main, other = costs.get(subject.name), costs.get(subject.other_name or "")
    if main:
        money = partial(wording.money, currency=report.prices.currency)
        note = f"{wording.candidate_name(other.candidate)}: {money(other.per_1000_requests)}" if other else ""
        shown.append(Tile(f"{subject.title}, per 1,000 requests", money(main.per_1000_requests), note))
    if verdict.rows_needed is not None:
        shown.append(Tile("Test rows needed", f"about {wording.count(verdict.rows_needed)}", "in all, to decide"))
    elif main and other and verdict.decision == "ship_tuned":
        shown.append(_break_even_tile(report, break_even(main, other)))
    return shown


def _break_even_tile(report: ReportData, requests: int | None) -> Tile:
    if requests is None:
        return Tile("Break-even", "never", "tuned is not cheaper per request")
    time = wording.time_to(months(requests, report.goal.requests_per_month))
    return Tile("Break-even", wording.short_count(requests), f"requests, {time} at your volume")


def thresholds(report: ReportData) -> list[tuple[str, str]]:
    """What was asked of the deciding metric."""
    of = report.verdict.assumptions
    target = wording.percent(of["target"]) if of["target"] is not None else "none"
    return [
        ("deciding metric", wording.metric_name(report.verdict.metric)),
        ("smallest gain worth having", f"{wording.bare_points(of['min_gain'])} points"),
        ("target", target),
        ("confidence", wording.level(of["confidence"])),
        ("power", wording.level(of["power"])),
    ]


def assumptions(report: ReportData) -> list[tuple[str, str]]:
    """Prices, volume, formulas and what else the numbers take for granted."""
    prices = report.prices
    money = partial(wording.money, currency=prices.currency)
    listed = [
        ("one hour of this machine", money(prices.hardware_per_hour)),
        ("human work on data and review", f"{prices.hours_of_work:g} hours at {money(prices.work_per_hour)}"),
        ("expected volume", f"{wording.count(report.goal.requests_per_month)} requests per month"),
        *FORMULAS.items(),
        ("test rows", "this run neither trained on them nor used them to choose anything"),
        (
            "rows needed",
            "all test rows, the present ones included, on which the rules decide with the stated power, when no effect "
            "at all and some effect count as equally likely before the test",
        ),
    ]
    shown = {"min_gain", "target", "confidence", "power", "requests_per_month", *Prices.model_fields}
    listed += [(k.replace("_", " "), str(v)) for k, v in report.verdict.assumptions.items() if k not in shown]
    return listed + list(report.extra_assumptions.items())
