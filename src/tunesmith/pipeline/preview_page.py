"""The preview as one HTML file: complete without network or scripts, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tunesmith.pipeline.numbers import Cost
from tunesmith.pipeline.preview import DataPreview
from tunesmith.runs.atomic import write_text
from tunesmith.text.numbers import Bin
from tunesmith.text.preview import TokenPreview
from tunesmith.text.templates import origin_text
from tunesmith.training.resources import shown_bytes
from tunesmith.verdict import wording

_MARKS = {"\n": "↵\n", "\t": "→\t", "\r": "␍"}


def write_preview(path: Path, made: DataPreview, title: str) -> None:
    """Write the page as one file, whole or not at all. Raises `ResourceError` where it cannot be written."""
    write_text(path, render_preview(made, title).encode("utf-8", "replace").decode("utf-8"))


def render_preview(made: DataPreview, title: str) -> str:
    """The page as HTML."""
    page = environment()
    report_css, _, _ = jinja2.PackageLoader("tunesmith.verdict", "templates").get_source(page, "report.css")
    return page.get_template("preview.html.jinja").render(
        css=Markup(report_css),
        title=title,
        data=made,
        origin=origin_text(made.origin),
        tokens=made.numbers.tokens,
        histogram=histogram(made.numbers.tokens.histogram),
        costs=[cost_cells(cost, made.numbers.currency) for cost in made.numbers.costs],
    )


def environment() -> jinja2.Environment:
    """Templates of this room; everything that is put into a page is escaped."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("tunesmith.pipeline", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "count": wording.count,
        "percent": wording.percent,
        "token_spans": token_spans,
    }
    made.filters.update(filters)
    return made


def token_spans(row: TokenPreview) -> Markup:
    """One span per token: its class says whether it is learnt, special or behind the limit, its title all the rest.

    A token that ends in the middle of a character shows nothing; the character stands at its last token.
    """
    parts = []
    for place, ((text, weight), special, id_) in enumerate(zip(row.tokens, row.special, row.ids, strict=True)):
        if place == row.cut:
            parts.append(Markup('<b class="cut">{0} tokens fit; what follows does not</b>').format(row.cut))
        classes = ["t"]
        if weight:
            classes.append("learnt" if abs(weight) >= 1 else "partly")
        if special:
            classes.append("special")
        if row.cut is not None and place >= row.cut:
            classes.append("beyond")
        shown = "".join(_MARKS.get(character, character) for character in text)
        parts.append(
            Markup('<span class="{0}" title="token {1}, id {2}, loss weight {3:g}">{4}</span>').format(
                " ".join(classes), place + 1, id_, weight, shown
            )
        )
    return Markup("").join(parts)


def histogram(bins: Sequence[Bin]) -> Markup:
    """Rows by tokens as horizontal bars, which keep their labels readable at any width."""
    most = max((one.rows for one in bins), default=0)
    lines = [
        Markup(
            '<div class="hrow"><span>{0}</span><span class="track"><i style="width:{1:.1f}%"></i></span>'
            "<span>{2}</span></div>"
        ).format(bin_name(one), 100 * one.rows / most, wording.count(one.rows))
        for one in bins
    ]
    return Markup('<div class="hbars" role="img" aria-label="rows by length in tokens: {0}">{1}</div>').format(
        "; ".join(f"{bin_name(one)} tokens: {one.rows} rows" for one in bins), Markup("").join(lines)
    )


def bin_name(one: Bin) -> str:
    """`120 to 139`."""
    return f"{one.low} to {one.high}"


_HOW = {
    "measured": "measured",
    "unmeasured": "not measured: see `tunesmith check`",
    "estimated": "estimated",
    "service": "price list",
}


def cost_cells(cost: Cost, currency: str) -> dict[str, str]:
    """A line of the table of costs in words; a dash where something does not apply. `currency`: of electricity."""
    return {
        "place": cost.place,
        "how": _HOW[cost.kind],
        "time": between(cost.seconds, wording.duration) if cost.fits is not False else "does not fit",
        "memory": _memory(cost),
        "money": between(cost.money, lambda value: wording.money(value, cost.currency)),
        "electricity": between(cost.electricity, lambda value: wording.money(value, currency)),
    }


def between(ends: tuple[float, float] | None, text: Any) -> str:
    """`3.2 min to 8.1 min`, or one value where both are the same."""
    if ends is None:
        return "–"
    low, high = text(ends[0]), text(ends[1])
    return low if low == high else f"{low} to {high}"


def _memory(cost: Cost) -> str:
    if cost.memory_bytes is None:
        return "–"
    return f"{'at least ' if cost.kind == 'estimated' else ''}{shown_bytes(cost.memory_bytes)}"
