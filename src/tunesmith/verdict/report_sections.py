"""The parts of the report: what each section shows, from what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from markupsafe import Markup

from tunesmith.evaluation.types import Evaluation, MetricValue, PairedDifference
from tunesmith.recipe.schema import Prices
from tunesmith.verdict import charts, mistakes, wording
from tunesmith.verdict.case import reversed_pair
from tunesmith.verdict.charts import Interval, Mark, Role, Series
from tunesmith.verdict.costs import FORMULAS, break_even, is_tuned, months
from tunesmith.verdict.report_data import ReportData


@dataclass(frozen=True, slots=True)
class Tile:
    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A candidate in the comparison: its values in the order of the metrics, None where not measured."""

    label: str
    role: Role
    note: str
    metrics_row: list[MetricValue | None]
    deciding: MetricValue | None


@dataclass(frozen=True, slots=True)
class Mistakes:
    sentence: str
    choice: str
    chosen: list[mistakes.Mistake]


def evaluation_of(report: ReportData, name: str | None) -> Evaluation | None:
    return next((evaluation for evaluation in report.evaluations if evaluation.candidate == name), None)


def _value(report: ReportData, candidate: str, metric: str) -> MetricValue | None:
    return next((v for v in report.comparison if v.candidate == candidate and v.metric == metric), None)


def _role(report: ReportData, candidate: str) -> Role:
    if is_tuned(candidate, report.tuned_name):
        return "tuned"
    return "best" if candidate == report.verdict.best_alternative else "other"


# The verdict.


def tiles(report: ReportData) -> list[Tile]:
    verdict = report.verdict
    shown = []
    for candidate in (report.tuned_name, verdict.best_alternative):
        value = _value(report, candidate, verdict.metric) if candidate else None
        if candidate and value:
            best = "" if candidate == report.tuned_name else ", the best alternative"
            interval = wording.interval(value.low, value.high, verdict.assumptions["confidence"])
            name = f"{wording.capitalised(wording.candidate_name(candidate))}{best}"
            shown.append(Tile(name, wording.percent(value.value), interval))
    costs = {cost.candidate: cost for cost in report.costs}
    tuned = costs.get(report.tuned_name)
    other = costs.get(verdict.best_alternative or "")
    if tuned:
        money = partial(wording.money, currency=report.prices.currency)
        note = f"{wording.candidate_name(other.candidate)}: {money(other.per_1000_requests)}" if other else ""
        shown.append(Tile("Tuned, per 1,000 requests", money(tuned.per_1000_requests), note))
    if verdict.rows_needed is not None:
        shown.append(Tile("Test rows needed", f"about {wording.count(verdict.rows_needed)}", "in all, to decide"))
    elif tuned and other and verdict.decision == "ship_tuned":
        shown.append(_break_even_tile(report, break_even(tuned, other)))
    return shown


def _break_even_tile(report: ReportData, requests: int | None) -> Tile:
    if requests is None:
        return Tile("Break-even", "never", "tuned is not cheaper per request")
    time = wording.time_to(months(requests, report.goal.requests_per_month))
    return Tile("Break-even", _short_count(requests), f"requests, {time} at your volume")


def thresholds(report: ReportData) -> list[tuple[str, str]]:
    of = report.verdict.assumptions
    target = wording.percent(of["target"]) if of["target"] is not None else "none"
    return [
        ("deciding metric", wording.metric_name(report.verdict.metric)),
        ("smallest gain worth having", f"{wording.bare_points(of['min_gain'])} points"),
        ("target", target),
        ("confidence", wording.level(of["confidence"])),
        ("power", wording.level(of["power"])),
    ]


# Comparison and differences.


def comparison_lines(report: ReportData) -> list[Line]:
    metrics = list(dict.fromkeys(value.metric for value in report.comparison))
    lines = []
    for candidate in dict.fromkeys(value.candidate for value in report.comparison):
        evaluation = evaluation_of(report, candidate)
        lines.append(
            Line(
                label=wording.candidate_name(candidate),
                role=_role(report, candidate),
                note=_note_text(evaluation.notes) if evaluation else "",
                metrics_row=[_value(report, candidate, metric) for metric in metrics],
                deciding=_value(report, candidate, report.verdict.metric),
            )
        )
    return sorted(lines, key=lambda line: -line.deciding.value if line.deciding else math.inf)


def _note_text(notes: Mapping[str, Any]) -> str:
    """Single facts as `name value`; tables among the notes are left to the evaluation files."""
    parts = []
    for key, value in notes.items():
        if key == "k" and value == 0:
            continue
        if key == "k_used" and isinstance(value, Mapping):
            if value["mean"] < notes["k"]:
                parts.append(f"really shown {value['mean']:.1f} on average")
        elif key == "unanswerable_rows":
            if value:
                parts.append(f"{value} rows did not fit")
        elif isinstance(value, bool | int | float | str):
            text = f"{value:g}" if isinstance(value, float) else str(value)
            parts.append(f"{key.replace('_', ' ')} {text}")
    return ", ".join(parts)


def comparison_chart(report: ReportData, lines: Sequence[Line]) -> Markup:
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


@dataclass(frozen=True, slots=True)
class Differences:
    """`of_tuned` as tuned minus the other, the strongest alternative first."""

    of_tuned: list[PairedDifference]
    others: list[PairedDifference]


def differences(report: ReportData) -> Differences:
    tuned = report.tuned_name
    of_tuned = [
        pair if pair.a == tuned else reversed_pair(pair) for pair in report.differences if tuned in (pair.a, pair.b)
    ]
    of_tuned.sort(key=lambda pair: (pair.metric != report.verdict.metric, pair.metric, pair.difference))
    return Differences(of_tuned, [pair for pair in report.differences if tuned not in (pair.a, pair.b)])


def difference_chart(report: ReportData) -> Markup | None:
    """Tuned minus each alternative in the metric that decides, the strongest alternative first."""
    metric, min_gain = report.verdict.metric, report.verdict.assumptions["min_gain"]
    pairs = [pair for pair in differences(report).of_tuned if pair.metric == metric]
    if not pairs:
        return None
    marks = [Mark(0.0, "no difference", "zero")]
    if min_gain > 0:
        marks.append(Mark(min_gain, f"smallest gain worth having, {wording.bare_points(min_gain)} points"))
    return charts.interval_chart(
        [
            Interval(f"over {wording.candidate_name(p.b)}", p.difference, p.low, p.high, _difference_role(report, p))
            for p in pairs
        ],
        title=f"Tuned minus each alternative, points of {wording.metric_name(metric)}",
        number=lambda value: wording.points(value).removesuffix(" points"),
        tick=lambda value: f"{100 * value:+g}" if value else "0",
        marks=marks,
        bars=False,
        confidence=report.verdict.assumptions["confidence"],
    )


def _difference_role(report: ReportData, pair: PairedDifference) -> Role:
    """The pair that decides is drawn in the colour of tuned."""
    return "tuned" if pair.b == report.verdict.best_alternative else "best"


# Cost and training.


def break_even_sentence(report: ReportData) -> str:
    costs = {cost.candidate: cost for cost in report.costs}
    tuned, other = costs.get(report.tuned_name), costs.get(report.verdict.best_alternative or "")
    money = partial(wording.money, currency=report.prices.currency)
    if tuned is None:
        return "Tuned was not measured, so its cost is not known."
    once = f"Tuning cost {money(tuned.one_off)} once."
    if other is None:
        return f"{once} There is no alternative to pay it back against."
    name = wording.candidate_name(other.candidate)
    each = (
        f"1,000 requests cost {money(tuned.per_1000_requests)} with tuned and "
        f"{money(other.per_1000_requests)} with {name}."
    )
    requests = break_even(tuned, other)
    if requests is None:
        return f"{once} {each} Tuned is not cheaper per request, so only better answers can pay for it."
    time = wording.time_to(months(requests, report.goal.requests_per_month))
    return (
        f"{once} {each} Cheaper requests pay it back after {wording.count(requests)} requests: {time} at "
        f"{wording.count(report.goal.requests_per_month)} requests a month."
    )


def training_facts(training: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if training is None:
        return []
    shown: dict[str, Callable[[Any], str]] = {
        "steps": wording.count,
        "tokens": wording.count,
        "seconds": wording.duration,
        "tokens_per_second": lambda value: wording.count(round(value)),
        "peak_memory_bytes": lambda value: f"{value / 2**30:.2f} GiB",
    }
    names = {"seconds": "time", "tokens_per_second": "tokens per second", "peak_memory_bytes": "peak memory"}
    return [
        (names.get(key, key.replace("_", " ")), shown[key](value) if key in shown else str(value))
        for key, value in training.items()
        if isinstance(value, bool | int | float | str)
    ]


def curves(report: ReportData) -> list[Markup]:
    """Loss, and the generated task metric, over the steps."""
    steps = tuple((event["step"], event["loss"]) for event in report.history if event["kind"] == "train_step")
    validations = [event for event in report.history if event["kind"] == "validation"]
    best = next((event["step"] for event in reversed(validations) if event.get("best")), None)
    losses = tuple((e["step"], e["loss"]) for e in validations if e.get("loss") is not None)
    drawn = [
        charts.line_chart(
            [
                Series("training, each step", steps, "faint"),
                Series("training, smoothed", charts.smoothed(steps), "best"),
                Series("validation", losses, "loss-validation", dots=True),
            ],
            title="Loss",
            x_label="step",
            number=lambda value: f"{value:.3g}",
            best_x=best,
        )
    ]
    measured = list(dict.fromkeys(name for event in validations for name in event.get("metrics") or {}))
    if measured:
        metric = report.verdict.metric if report.verdict.metric in measured else measured[0]
        points = tuple((e["step"], e["metrics"][metric]) for e in validations if metric in (e.get("metrics") or {}))
        drawn.append(
            charts.line_chart(
                [Series(f"{wording.metric_name(metric)} of answers to validation rows", points, "tuned", dots=True)],
                title=f"Validation {wording.metric_name(metric)}",
                x_label="step",
                number=lambda value: f"{100 * value:.3g} %",
                best_x=best,
            )
        )
    return [chart for chart in drawn if chart]


# Mistakes.


def mistakes_of(report: ReportData, tuned: Evaluation | None, best: Evaluation | None) -> Mistakes:
    if tuned is None or not tuned.rows:
        return Mistakes("Tuned was not evaluated.", "", [])
    metric = report.verdict.metric
    wrong = mistakes.wrong_rows(tuned, metric)
    unreadable = sum(1 for row in tuned.rows if row.parsed is None)
    how = "wrong" if is_binary(tuned, metric) else "not entirely right"
    sentence = f"{wording.count(wrong)} of {wording.count(len(tuned.rows))} test rows are {how}."
    if report.task == "generation" and how != "wrong":
        sentence = f"Scores of {wording.count(len(tuned.rows))} answers; few free texts are met word by word."
    if unreadable:
        sentence += f" {wording.count(unreadable)} answers could not be read and count as wrong."
    chosen = mistakes.choose_mistakes(tuned, best, metric)
    choice = f"Chosen from {wording.count(wrong)}, the lowest scores first."
    right = sum(1 for mistake in chosen if mistake.other_right)
    if best is not None and right:
        choice = (
            f"Chosen from {wording.count(wrong)}: {right} that {wording.candidate_name(best.candidate)} got right, "
            f"{len(chosen) - right} that it got wrong too; the lowest scores first."
        )
    return Mistakes(sentence, choice, chosen)


def is_binary(evaluation: Evaluation, metric: str) -> bool:
    return all(row.scores[metric] in (0, 1) for row in evaluation.rows)


def by_task(report: ReportData, tuned: Evaluation | None, best: Evaluation | None) -> dict[str, Any]:
    """What shows best where this kind of task goes wrong."""
    found: dict[str, Any] = {"matrix": None, "fields": None, "items": None, "has_fields": False, "histogram": None}
    if tuned is None or not tuned.rows:
        return found
    both = [evaluation for evaluation in (tuned, best) if evaluation is not None]
    if report.task == "classification":
        found["matrix"] = mistakes.confusion(tuned, report.labels, report.verdict.metric)
    elif report.task == "extraction":
        scores = {evaluation.candidate: mistakes.item_scores(evaluation) for evaluation in both}
        found["items"] = scores[tuned.candidate]
        names = [score.field for score in found["items"].fields]
        found["has_fields"] = len(names) > 1
        found["fields"] = [
            (name, wording.candidate_name(candidate), _role(report, candidate), score)
            for name in names
            for candidate, scored in scores.items()
            for score in scored.fields
            if score.field == name
        ]
    else:
        found["histogram"] = _histogram(report, both)
    return found


def _histogram(report: ReportData, both: Sequence[Evaluation]) -> Markup:
    """The spread of a graded score; of the deciding one where it is graded."""
    rows = both[0].rows
    names = [report.verdict.metric, *rows[0].scores]
    metric = next((n for n in names if any(row.scores[n] not in (0, 1) for row in rows)), report.verdict.metric)
    return charts.histogram(
        [
            (wording.candidate_name(e.candidate), _role(report, e.candidate), mistakes.score_histogram(e, metric))
            for e in both
        ],
        title=f"Rows by {wording.metric_name(metric)} of the answer",
    )


# Assumptions.


def assumptions(report: ReportData) -> list[tuple[str, str]]:
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


def _short_count(number: int) -> str:
    """12,345 as it is; above a million 32.9 million."""
    for size, name in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:,.1f} {name}"
    return wording.count(number)
