"""The report: one HTML file with everything a decision rests on, complete without network or scripts.

This module renders. What each section shows is decided in `report_sections.py`, from `ReportData` and `mistakes.py`;
drawings are in `charts.py`, and the page is `templates/report.html.jinja`, where everything is escaped by default.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tunesmith.runs.atomic import write_text
from tunesmith.verdict import mistakes, wording
from tunesmith.verdict import report_sections as sections
from tunesmith.verdict.decision import RULES
from tunesmith.verdict.headline import headline, title_of
from tunesmith.verdict.longer_prompts import longer_prompts_sentences
from tunesmith.verdict.report_data import ReportData

_TONES = {"ship_tuned": "good", "cannot_tell": "unsure", "none_good_enough": "bad"}
_CONTENTS = {
    "comparison": "Comparison",
    "differences": "Differences",
    "cost": "Cost",
    "training": "Training",
    "mistakes": "Mistakes",
    "errors": "Errors",
    "data": "Data",
    "recipe": "Recipe",
    "assumptions": "Assumptions",
}


def write_report(path: Path, report: ReportData) -> None:
    """Write the report as one file, whole or not at all. Raises `ResourceError` where it cannot be written."""
    # A model may answer half of a surrogate pair, which no UTF-8 file can hold.
    write_text(path, render_report(report).encode("utf-8", "replace").decode("utf-8"))


def render_report(report: ReportData) -> str:
    """The report as HTML."""
    environment = _environment(report)
    css, _, _ = _loader().get_source(environment, "report.css")
    return environment.get_template("report.html.jinja").render(css=Markup(css), **_context(report))


def _loader() -> jinja2.PackageLoader:
    return jinja2.PackageLoader("tunesmith.verdict", "templates")


def _environment(report: ReportData) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=_loader(), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters: dict[str, Callable[..., str]] = {
        "percent": wording.percent,
        "points": wording.points,
        "bare_points": wording.bare_points,
        "count": wording.count,
        "duration": wording.duration,
        "p_value": wording.p_value,
        "candidate_name": wording.candidate_name,
        "metric_name": wording.metric_name,
        "capitalize_first": wording.capitalised,
        "amount": wording.amount,
        "shortened": _shortened,
        "clipped": _clipped,
        "unbroken": _unbroken,
    }
    environment.filters.update(filters)
    return environment


def _context(report: ReportData) -> dict[str, Any]:
    verdict = report.verdict
    tuned = sections.evaluation_of(report, report.tuned_name)
    best = sections.evaluation_of(report, verdict.best_alternative)
    lines = sections.comparison_lines(report)
    title = title_of(verdict)
    wrong = sections.mistakes_of(report, tuned, best)
    return {
        "data": report,
        "verdict": verdict,
        "title": title,
        "gain": wording.capitalised(headline(verdict).removeprefix(f"{title}: ")),
        "tone": _TONES.get(verdict.decision, "plain"),
        "tiles": sections.tiles(report),
        "cautions": (*verdict.caveats, *report.warnings),
        "rule": RULES[verdict.rule],
        "thresholds": sections.thresholds(report),
        "contents": [(key, name) for key, name in _CONTENTS.items() if key != "errors" or wrong.chosen],
        "metric": wording.metric_name(verdict.metric),
        "confidence": wording.level(verdict.assumptions["confidence"]),
        "rows": max((value.n for value in report.comparison), default=0),
        "metrics": list(dict.fromkeys(value.metric for value in report.comparison)),
        "comparison": lines,
        "comparison_chart": sections.comparison_chart(report, lines),
        "differences": sections.differences(report),
        "difference_chart": sections.difference_chart(report),
        "costs": report.costs,
        "break_even_sentence": sections.break_even_sentence(report),
        "longer_prompts": longer_prompts_sentences(
            {cost.candidate: cost for cost in report.costs}, report.goal.requests_per_month, report.prices.currency
        ),
        "facts": sections.training_facts(report.training),
        "curves": sections.curves(report),
        "mistakes": wrong,
        "best_label": wording.capitalised(wording.candidate_name(verdict.best_alternative or "")),
        "binary": tuned is not None and sections.is_binary(tuned, verdict.metric),
        "frame": mistakes.common_frame(tuned.rows) if tuned and tuned.rows else None,
        "manifest": json.dumps(dict(report.manifest), ensure_ascii=False, indent=2),
        "assumptions": sections.assumptions(report),
        **sections.by_task(report, tuned, best),
    }


def _shortened(text: str, limit: int = 2000) -> str:
    text = str(text)
    if len(text) <= limit:
        return text
    return f"{text[:limit]} … ({wording.count(len(text) - limit)} more characters)"


def _clipped(text: str, limit: int) -> str:
    """For names, where it does not matter how much is left out."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _unbroken(text: str) -> str:
    """No line ends between a number and its percent sign, or within `p < 0.001`."""
    return text.replace(" %", "\u00a0%").replace("p < ", "p\u00a0<\u00a0").replace("p = ", "p\u00a0=\u00a0")
