"""The picture of a search: one HTML file, complete without network or scripts."""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup

from tunesmith.pipeline.preview_page import environment
from tunesmith.runs.atomic import write_text
from tunesmith.verdict import wording
from tunesmith.verdict.report_search import SearchData, searched

PAGE = "search.html"


def write_page(folder: Path, data: SearchData | None, title: str) -> None:
    """Write `search.html`, whole or not at all; nothing where there is nothing to show."""
    if data is not None:
        write_text(folder / PAGE, render_page(data, title))


def render_page(data: SearchData, title: str) -> str:
    """The page as HTML: the section that a report has too, by itself."""
    page = environment()
    of_reports = jinja2.PackageLoader("tunesmith.verdict", "templates")
    assert page.loader is not None
    page.loader = jinja2.ChoiceLoader([page.loader, of_reports])
    page.filters["capitalize_first"] = wording.capitalised
    css, _, _ = of_reports.get_source(page, "report.css")
    return page.get_template("search.html.jinja").render(css=Markup(css), title=title, searched=searched(data))
