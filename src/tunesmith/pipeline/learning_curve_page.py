"""The picture of a learning curve: one HTML file, complete without network or scripts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from tunesmith.pipeline.preview_page import environment
from tunesmith.runs.atomic import write_text
from tunesmith.verdict import wording
from tunesmith.verdict.charts import Series, line_chart

if TYPE_CHECKING:
    from tunesmith.pipeline.learning_curve import LearningCurve


def write_curve(path: Path, curve: LearningCurve, title: str) -> None:
    """Write the page whole or not at all. Raises `ResourceError` where it cannot be written."""
    write_text(path, render_curve(curve, title))


def render_curve(curve: LearningCurve, title: str) -> str:
    """The page as HTML."""
    page = environment()
    css, _, _ = jinja2.PackageLoader("tunesmith.verdict", "templates").get_source(page, "report.css")
    lines = [
        (f"{p.rows:,}", "measured", wording.percent(p.value), wording.bare_points(p.low), wording.bare_points(p.high))
        for p in curve.points
    ]
    if curve.extrapolation is not None:
        lines += [
            (
                f"{p.rows:,}",
                "expected",
                wording.percent(p.value),
                wording.bare_points(p.low),
                wording.bare_points(p.high),
            )
            for p in curve.extrapolation.predictions
        ]
    return page.get_template("learning_curve.html.jinja").render(
        css=Markup(css),
        title=title,
        curve=curve,
        metric=wording.metric_name(curve.metric),
        level=wording.level(curve.confidence),
        chart=chart(curve),
        lines=lines,
    )


def chart(curve: LearningCurve) -> Markup:
    """Measured points and the expected ones with the ends of their interval, by number of training rows."""
    measured = tuple((float(p.rows), p.value) for p in curve.points)
    series = [Series("measured", measured, "tuned", dots=True)]
    if curve.extrapolation is not None:
        last, expected = measured[-1], curve.extrapolation.predictions
        series += [
            Series("expected", (last, *((float(p.rows), p.value) for p in expected)), "loss-validation", dots=True),
            Series("lowest expected", (last, *((float(p.rows), p.low) for p in expected)), "faint"),
            Series("highest expected", (last, *((float(p.rows), p.high) for p in expected)), "faint"),
        ]
    return line_chart(
        series,
        title=wording.capitalised(wording.metric_name(curve.metric)),
        x_label="training rows",
        number=wording.percent,
    )
