"""The report: one HTML file with everything a decision rests on, complete without network and readable without scripts.

This module renders. What the sections show is decided in `report_*.py`, a file for each, from `ReportData`; drawings
are in `charts.py`, `cost_chart.py` and `reliability_chart.py`, and the page is `templates/report.html.jinja`, where
everything is escaped by default. The one script searches the test rows; the page's policy allows no other.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tunesmith.runs.atomic import write_text
from tunesmith.verdict import (
    mistakes,
    report_comparison,
    report_costs,
    report_mistakes,
    report_training,
    report_verdict,
    wording,
)
from tunesmith.verdict.decision import RULES
from tunesmith.verdict.headline import headline, title_of
from tunesmith.verdict.longer_prompts import longer_prompts_sentences
from tunesmith.verdict.next_steps import next_steps
from tunesmith.verdict.report_calibration import reliabilities
from tunesmith.verdict.report_data import ReportData
from tunesmith.verdict.report_exports import Exports, exports
from tunesmith.verdict.report_preferences import preferences
from tunesmith.verdict.report_rows import groups_of, rows_of
from tunesmith.verdict.report_search import searched
from tunesmith.verdict.report_slices import slices
from tunesmith.verdict.report_subject import Subject, is_binary, subject_of
from tunesmith.verdict.report_tried import tried

_TONES = {"ship_tuned": "good", "cannot_tell": "unsure", "none_good_enough": "bad"}
_CONTENTS = {
    "comparison": "Comparison",
    "differences": "Differences",
    "slices": "Slices",
    "reliability": "Confidence",
    "preferences": "People",
    "cost": "Cost",
    "exports": "Exports",
    "tried": "Formats",
    "next": "Next",
    "training": "Training",
    "search": "Search",
    "mistakes": "Mistakes",
    "errors": "Errors",
    "rows": "All rows",
    "data": "Data",
    "recipe": "Recipe",
    "assumptions": "Assumptions",
}
"""Sections by their id; those that have nothing to show are left out of the page and of its contents."""


def write_report(path: Path, report: ReportData) -> None:
    """Write the report as one file, whole or not at all. Raises `ResourceError` where it cannot be written."""
    # A model may answer half of a surrogate pair, which no UTF-8 file can hold.
    write_text(path, render_report(report).encode("utf-8", "replace").decode("utf-8"))


def render_report(report: ReportData) -> str:
    """The report as HTML."""
    environment = _environment()
    css, script = (_source(environment, name) for name in ("report.css", "report.js"))
    context = _context(report)
    if context["rows"] is None:
        script = ""
    return environment.get_template("report.html.jinja").render(
        css=Markup(css), script=Markup(script), policy=_policy(script), **context
    )


def _policy(script: str) -> str:
    """What the browser may load and run: nothing but this very script."""
    allowed = f"script-src 'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'; " if script else ""
    return f"default-src 'none'; {allowed}style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def _source(environment: jinja2.Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tunesmith.verdict", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
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
        "as_setting": _as_setting,
    }
    environment.filters.update(filters)
    return environment


def _context(report: ReportData) -> dict[str, Any]:
    subject = subject_of(report)
    shown = {
        **_of_verdict(report, subject),
        **_of_comparison(report, subject),
        **_of_costs(report, subject),
        "exports": _of_exports(report),
        "tried": tried(report.tried, confidence=report.verdict.assumptions["confidence"]),
        **_of_training(report, subject),
        **_of_mistakes(report, subject),
        "data": report,
        "subject": subject,
        "manifest": json.dumps(dict(report.manifest), ensure_ascii=False, indent=2),
        "assumptions": report_verdict.assumptions(report),
    }
    return {**shown, "contents": [(key, name) for key, name in _CONTENTS.items() if _is_there(key, shown)]}


def _is_there(section: str, shown: Mapping[str, Any]) -> bool:
    if section == "errors":
        return bool(shown["mistakes"].chosen)
    if section == "training":
        return bool(shown["facts"] or shown["curves"] or shown["forgotten"])
    found = {
        "slices": "slices",
        "reliability": "reliabilities",
        "preferences": "preferences",
        "exports": "exports",
        "tried": "tried",
        "next": "next_steps",
        "search": "searched",
    }
    key = found.get(section, "rows" if section == "rows" else None)
    return key is None or bool(shown[key])


def _of_verdict(report: ReportData, subject: Subject) -> dict[str, Any]:
    verdict = report.verdict
    title = title_of(verdict)
    return {
        "verdict": verdict,
        "title": title,
        "gain": wording.capitalised(headline(verdict).removeprefix(f"{title}: ")),
        "tone": _TONES.get(verdict.decision, "plain"),
        "tiles": report_verdict.tiles(report, subject),
        "cautions": (*verdict.caveats, *report.warnings),
        "rule": RULES[verdict.rule],
        "benefits": [str(one["text"]) for one in verdict.benefits.values() if one.get("text")],
        "thresholds": report_verdict.thresholds(report),
        "metric": wording.metric_name(verdict.metric),
        "confidence": wording.level(verdict.assumptions["confidence"]),
        "next_steps": next_steps(report),
    }


def _of_comparison(report: ReportData, subject: Subject) -> dict[str, Any]:
    lines = report_comparison.comparison_lines(report, subject)
    return {
        "row_count": max((value.n for value in report.comparison), default=0),
        "metrics": list(dict.fromkeys(value.metric for value in report.comparison)),
        "comparison": lines,
        "comparison_chart": report_comparison.comparison_chart(report, lines),
        "ways": report_comparison.ways(report, subject),
        "differences": report_comparison.differences(report, subject),
        "difference_chart": report_comparison.difference_chart(report, subject),
        "seeds": report_comparison.seed_spread(report, subject),
        "slices": slices(report, subject),
        "reliabilities": reliabilities(report, subject),
        "preferences": preferences(report),
    }


def _of_costs(report: ReportData, subject: Subject) -> dict[str, Any]:
    return {
        "costs": report.costs,
        "break_even_sentence": report_costs.break_even_sentence(report, subject),
        "cost_curve": report_costs.cost_curve(report, subject),
        "longer_prompts": longer_prompts_sentences(
            {cost.candidate: cost for cost in report.costs}, report.goal.requests_per_month, report.prices.currency
        ),
    }


def _of_exports(report: ReportData) -> Exports | None:
    metric = report.verdict.metric
    tuned = [v.value for v in report.comparison if (v.candidate, v.metric) == (report.tuned_name, metric)]
    confidence = report.verdict.assumptions["confidence"]
    return exports(report.exports, confidence=confidence, tuned=tuned[0] if tuned else None)


def _of_training(report: ReportData, subject: Subject) -> dict[str, Any]:
    return {
        "facts": report_training.training_facts(report.training),
        "curves": report_training.curves(report),
        "parts": report_training.parts(report, subject),
        "diagnoses": report_training.diagnoses(report),
        "resources": report_training.resources(report),
        "resource_curves": report_training.resource_curves(report),
        "forgotten": report_training.forgotten(report),
        "searched": searched(report.search),
    }


def _of_mistakes(report: ReportData, subject: Subject) -> dict[str, Any]:
    main = subject.evaluation
    of_task = report_mistakes.by_task(report, subject)
    clusters = report_mistakes.clusters(report, subject)
    suspects = report_mistakes.suspects(report, subject)
    matrix = of_task["matrix"]
    groups = groups_of(report, subject, matrix.pairs if matrix else (), clusters, suspects)
    return {
        **of_task,
        "mistakes": report_mistakes.mistakes_of(report, subject),
        "clusters": clusters,
        "suspects": suspects,
        "binary": main is not None and is_binary(main, report.verdict.metric),
        "frame": mistakes.common_frame(main.rows) if main and main.rows else None,
        "rows": rows_of(report, subject, groups),
    }


def _shortened(text: str, limit: int = 2000) -> str:
    text = str(text)
    if len(text) <= limit:
        return text
    return f"{text[:limit]} … ({wording.count(len(text) - limit)} more characters)"


def _clipped(text: str, limit: int) -> str:
    """For names, where it does not matter how much is left out."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _as_setting(value: Any) -> str:
    """A value as it is written in a recipe; a list or mapping on one line, as YAML reads it too."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _unbroken(text: str) -> str:
    """No line ends between a number and its percent sign, or within `p < 0.001`."""
    return text.replace(" %", "\u00a0%").replace("p < ", "p\u00a0<\u00a0").replace("p = ", "p\u00a0=\u00a0")
