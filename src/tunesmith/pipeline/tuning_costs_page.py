"""The four costs as one HTML file: complete without network or scripts, light and dark, readable on a phone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from tunesmith.pipeline.preview_page import cost_cells, environment
from tunesmith.pipeline.tuning_costs import State
from tunesmith.pipeline.tuning_costs_words import sections
from tunesmith.runs.atomic import write_text

if TYPE_CHECKING:
    from tunesmith.pipeline.check import CheckReport

STATE_WORDS: dict[State, str] = {"fine": "fine", "look": "look at this", "stop": "stop"}
_TONES: dict[State, str] = {"fine": "info", "look": "warning", "stop": "error"}
_ORDER = {"error": 0, "warning": 1, "info": 2}


def write_tuning_costs(path: Path, report: CheckReport, title: str) -> None:
    """Write the page as one file, whole or not at all. Raises `ResourceError` where it cannot be written."""
    write_text(path, render_tuning_costs(report, title).encode("utf-8", "replace").decode("utf-8"))


def render_tuning_costs(report: CheckReport, title: str) -> str:
    """The page as HTML: the costs, all places a training could run, and the findings of the check."""
    page = environment()
    css, _, _ = jinja2.PackageLoader("tunesmith.verdict", "templates").get_source(page, "report.css")
    numbers, tuning = report.numbers, report.tuning_costs
    found = sections(tuning) if tuning is not None else ()
    return page.get_template("tuning_costs.html.jinja").render(
        css=Markup(css),
        title=title,
        tuning=tuning,
        sections=[(section, STATE_WORDS[section.state], _TONES[section.state]) for section in found],
        costs=[cost_cells(cost, numbers.currency) for cost in numbers.costs] if numbers is not None else [],
        sources=numbers.sources if numbers is not None else (),
        findings=sorted(report.findings, key=lambda finding: _ORDER[finding.severity]),
    )
