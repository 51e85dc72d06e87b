"""The page about a move: what each job was, what it is here, what it cost there. One file, no network, no scripts."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tunesmith.runs.atomic import write_bytes, write_json
from tunesmith.service.moving.bringing import Moved, counted

PAGE, DATA = "overview.html", "overview.json"


def write_overview(moved: Moved) -> Path:
    """Write the page and the same as JSON into the folder; returns the page."""
    write_json(moved.out / DATA, overview(moved))
    page = moved.out / PAGE
    write_bytes(page, render_overview(moved).encode("utf-8", "replace"))
    return page


def overview(moved: Moved) -> dict[str, Any]:
    """Everything that was found and made."""
    return {
        "source": str(moved.source),
        "base": moved.base,
        "dollars": round(moved.dollars, 2),
        "jobs": [asdict(job) for job in moved.jobs],
        "evals": [asdict(one) for one in moved.evals],
        "completions": moved.completions,
        "kept": list(moved.kept),
        "problems": list(moved.problems),
    }


def render_overview(moved: Moved) -> str:
    """The page as HTML; everything that comes from the export is escaped."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("tunesmith.service.moving", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["counted"] = counted
    made.filters["day"] = lambda seconds: datetime.fromtimestamp(seconds, UTC).date().isoformat()
    made.filters["loss"] = lambda losses: ", ".join(
        f"{name.removesuffix('_loss')} {value:.3f}" for name, value in losses.items()
    )
    css, _, _ = jinja2.PackageLoader("tunesmith.verdict", "templates").get_source(made, "report.css")
    return made.get_template("overview.html.jinja").render(css=Markup(css), moved=moved)
