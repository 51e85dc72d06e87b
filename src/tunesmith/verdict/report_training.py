"""How the training went: facts, curves, the parts of the data side by side, what it used, what was forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from markupsafe import Markup

from tunesmith.evaluation.types import PairedDifference
from tunesmith.verdict import charts, wording
from tunesmith.verdict.charts import Interval, Mark, Series
from tunesmith.verdict.report_data import ReportData
from tunesmith.verdict.report_subject import Subject, value_of

_APART = 1.25
"""Validation loss over training loss, both at the best step, from which on the gap is worth a word."""


def training_facts(training: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Single facts as (name, value); tables among them have a place of their own."""
    if training is None:
        return []
    shown: dict[str, Callable[[Any], str]] = {
        "steps": wording.count,
        "tokens": wording.count,
        "supervised_tokens": wording.count,
        "seconds": wording.duration,
        "tokens_per_second": lambda value: wording.count(round(value)),
        "peak_memory_bytes": wording.size,
    }
    names = {"seconds": "time", "tokens_per_second": "tokens per second", "peak_memory_bytes": "peak memory"}
    return [
        (names.get(key, key.replace("_", " ")), _fact(value, shown.get(key)))
        for key, value in training.items()
        if isinstance(value, bool | int | float | str)
    ]


def _fact(value: Any, form: Callable[[Any], str] | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if form is not None and isinstance(value, int | float):
        return form(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# Curves.


def curves(report: ReportData) -> list[Markup]:
    """Loss, and the generated task metric, over the steps."""
    steps = tuple((event["step"], event["loss"]) for event in _steps(report))
    validations = _validations(report)
    best = _best_step(report)
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


def _steps(report: ReportData) -> list[Mapping[str, Any]]:
    return [event for event in report.history if event["kind"] == "train_step"]


def _validations(report: ReportData) -> list[Mapping[str, Any]]:
    return [event for event in report.history if event["kind"] == "validation"]


def _best_step(report: ReportData) -> float | None:
    return next((event["step"] for event in reversed(_validations(report)) if event.get("best")), None)


# Training, validation and test rows side by side.


@dataclass(frozen=True, slots=True)
class Parts:
    """Measures as (name, on training rows, on validation rows, on test rows); "" where not measured."""

    step: float
    rows: list[tuple[str, str, str, str]]
    sentence: str


def parts(report: ReportData, subject: Subject) -> Parts | None:
    """What the chosen step scores on the three parts of the data; None where no step was validated."""
    step = _best_step(report)
    chosen = next((event for event in reversed(_validations(report)) if event["step"] == step), None)
    if step is None or chosen is None or report.training is None:
        return None
    probe = chosen.get("probe") or {}
    found: list[tuple[str, str, str, str]] = []
    if "train_loss" in probe and "loss" in probe:
        found.append(("loss", f"{probe['train_loss']:.3f}", f"{probe['loss']:.3f}", ""))
    elif chosen.get("loss") is not None:
        around = [event["loss"] for event in _steps(report) if abs(event["step"] - step) <= max(5, 0.05 * step)]
        finite = [value for value in around if math.isfinite(value)]
        train = f"{fmean(finite):.3f} (of the steps around)" if finite else ""
        found.append(("loss", train, f"{chosen['loss']:.3f}", ""))
    if "train_accuracy" in probe and "accuracy" in probe:
        train, other = wording.percent(probe["train_accuracy"]), wording.percent(probe["accuracy"])
        found.append(("answer tokens right", train, other, ""))
    for metric, value in (chosen.get("metrics") or {}).items():
        found.append((wording.metric_name(metric), "", wording.percent(value), _on_test(report, subject, metric)))
    return Parts(step, found, _gap(probe)) if found else None


def _on_test(report: ReportData, subject: Subject, metric: str) -> str:
    value = value_of(report, subject.name, metric) if subject.tuned else None
    if value is None:
        return ""
    return f"{wording.percent(value.value)} ({wording.bare_points(value.low)} to {wording.bare_points(value.high)})"


def _gap(probe: Mapping[str, float]) -> str:
    """What the losses of training and validation rows, at the same weights, say of learning by heart."""
    train, other = probe.get("train_loss"), probe.get("loss")
    if train is None or other is None or not train > 0:
        return ""
    if other > _APART * train:
        return (
            f"The loss on validation rows is {other / train:.1f} times that on training rows at the same weights: part "
            "of what was learnt was learnt by heart."
        )
    return "Training and validation rows are met about alike at the same weights: little was learnt by heart."


# What it used.


@dataclass(frozen=True, slots=True)
class Use:
    """A resource over the steps: mean, highest, and how it is called."""

    name: str
    mean: str
    highest: str


def _percent_sign(value: float) -> str:
    return f"{value:.0f} %"


_RESOURCES: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "tokens_per_second": ("tokens per second", lambda value: wording.count(round(value))),
    "mfu": ("share of the measured ceiling of this machine", wording.percent),
    "memory_bytes": ("memory", wording.size),
    "rss_bytes": ("memory of the process", wording.size),
    "cpu_percent": ("processor, 100 % is one core", _percent_sign),
    "cpu_celsius": ("processor temperature", lambda value: f"{value:.0f} °C"),
    "gpu_use_percent": ("GPU", _percent_sign),
    "gpu_memory_bytes": ("GPU memory", wording.size),
    "gpu_watts": ("GPU power", lambda value: f"{value:.0f} W"),
    "gpu_celsius": ("GPU temperature", lambda value: f"{value:.0f} °C"),
}


def resources(report: ReportData) -> list[Use]:
    """What the steps recorded of this machine."""
    found = []
    for key, (name, form) in _RESOURCES.items():
        values = [float(event[key]) for event in _steps(report) if isinstance(event.get(key), int | float)]
        if values:
            found.append(Use(name, form(fmean(values)), form(max(values))))
    return found


_CURVES = (("tokens_per_second", "Speed", "tokens per second", 1.0), ("memory_bytes", "Memory", "GiB", 2.0**30))


def resource_curves(report: ReportData) -> list[Markup]:
    """Speed and memory over the steps, where they were recorded more than once."""
    drawn = []
    for key, title, unit, scale in _CURVES:
        points = tuple(
            (event["step"], event[key] / scale) for event in _steps(report) if isinstance(event.get(key), int | float)
        )
        if len(points) > 1:
            chart = charts.line_chart(
                [Series(f"{title.lower()} of each step", points, "best")],
                title=f"{title}, {unit}",
                x_label="step",
                number=lambda value: f"{value:,.4g}",
            )
            drawn.append(chart)
    return drawn


# What was found, and what was forgotten.


def diagnoses(report: ReportData) -> list[Mapping[str, Any]]:
    """What the training was found to suffer from: records of `training.diagnosis.Diagnosis`."""
    return list((report.training or {}).get("diagnoses", ()))


@dataclass(frozen=True, slots=True)
class Forgotten:
    sentence: str
    rows: list[tuple[str, str, str, str]]
    chart: Markup | None


def forgotten(report: ReportData) -> Forgotten | None:
    """General text and general instructions, before and after tuning; None where not measured."""
    found = report.forgetting
    if found is None:
        return None
    rise = found.perplexity_after / found.perplexity_before - 1
    rows = [
        (
            "perplexity of general text",
            f"{found.perplexity_before:.3g}",
            f"{found.perplexity_after:.3g}",
            f"{100 * rise:+.1f} %",
        )
    ]
    moved = "rose" if rise > 0 else "fell"
    sentence = f"The perplexity of general text {moved} by {wording.percent(abs(rise))}."
    if abs(rise) < 0.0005:
        sentence = "The perplexity of general text is what it was."
    if found.skill_before is not None and found.skill_after is not None:
        change = wording.points(found.skill_after - found.skill_before)
        before, after = wording.percent(found.skill_before), wording.percent(found.skill_after)
        rows.append(("general instructions followed", before, after, change))
    if found.skill is None:
        said = "General instructions were not asked."
        if found.instructions:
            said = f"The base followed none of {found.instructions} general instructions: there was none to forget."
        return Forgotten(f"{sentence} {said}", rows, None)
    skill = found.skill
    confidence = report.verdict.assumptions["confidence"]
    says = "lost" if skill.high < 0 else "gained" if skill.low > 0 else "neither surely lost nor surely gained"
    sentence += (
        f" On {wording.count(skill.n)} general instructions it has {says}: {wording.points(skill.difference)} "
        f"({wording.interval(skill.low, skill.high, confidence)})."
    )
    return Forgotten(sentence, rows, _skill_chart(skill, confidence))


def _skill_chart(skill: PairedDifference, confidence: float) -> Markup:
    return charts.interval_chart(
        [Interval("general instructions", skill.difference, skill.low, skill.high, "tuned")],
        title="Tuned minus base on general instructions, points",
        number=lambda value: wording.points(value).removesuffix(" points"),
        tick=lambda value: f"{100 * value:+g}" if value else "0",
        marks=[Mark(0.0, "no difference", "zero")],
        bars=False,
        confidence=confidence,
    )
