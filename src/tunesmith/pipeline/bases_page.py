"""The comparison of bases as one HTML file: complete without network or scripts, for any screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from tunesmith.pipeline.base_types import BaseEntry, BitsPerByte, Measured, Score
from tunesmith.pipeline.preview_page import environment
from tunesmith.runs.atomic import write_text
from tunesmith.training.resources import shown_bytes
from tunesmith.verdict import wording
from tunesmith.verdict.charts import nice_ticks

if TYPE_CHECKING:
    from tunesmith.pipeline.bases import BasesReport

COLUMNS: tuple[tuple[str, str], ...] = (
    ("shown", "bits per byte, answers behind examples"),
    ("answers", "answers alone"),
    ("inputs", "inputs"),
    ("few_shot", "few-shot"),
    ("zero_shot", "zero-shot"),
    ("parameters", "parameters"),
    ("tune", "memory to tune"),
    ("serve", "memory to serve"),
    ("training", "training here"),
    ("answer", "one answer here"),
    ("tokens", "tokens per byte"),
    ("context", "context, longest row"),
    ("servers", "serves adapters"),
    ("licence", "licence"),
)
"""Columns of the table by key, in order; the command line has the same ones."""
_ROW = 36


def write_bases(path: Path, report: BasesReport, title: str) -> None:
    """Write the page as one file, whole or not at all. Raises `ResourceError` where it cannot be written."""
    write_text(path, render_bases(report, title).encode("utf-8", "replace").decode("utf-8"))


def render_bases(report: BasesReport, title: str) -> str:
    """The page as HTML."""
    page = environment()
    css, _, _ = jinja2.PackageLoader("tunesmith.verdict", "templates").get_source(page, "report.css")
    ordered = in_order(report)
    charts = [
        bits_chart(
            [(short_name(e.base), getattr(e.measured, key)) for e in ordered], title=name, confidence=report.confidence
        )
        for key, name in (
            ("shown", "Answers, behind the same examples"),
            ("answers", "Answers, without examples"),
            ("inputs", "Inputs, as bare text"),
        )
    ]
    return page.get_template("bases.html.jinja").render(
        css=Markup(css),
        title=title,
        report=report,
        columns=COLUMNS,
        lines=[(short_name(entry.base), place_of(report, entry.base), cells(entry)) for entry in ordered],
        charts=[chart for chart in charts if chart],
        metric=wording.metric_name(report.metric),
    )


def short_name(base: str) -> str:
    """A folder by its last two names, which fit a table; other names as they are."""
    return "/".join(base.split("/")[-2:]) if base.startswith("/") else base


def in_order(report: BasesReport) -> list[BaseEntry]:
    """The bases that were measured: ranked ones in their order, then the others as they were named."""
    places = {one.base: one.place for one in report.ranking.ranked}
    measured = [entry for entry in report.entries if entry.measured is not None]
    return sorted(measured, key=lambda entry: places.get(entry.base, len(places) + 1))


def place_of(report: BasesReport, base: str) -> str:
    """`1`, `2`, `2 (not clearly behind)`, or a dash for a base that is not in the order."""
    for one in report.ranking.ranked:
        if one.base == base:
            return str(one.place) if one.place == 1 or one.clearly_behind else f"{one.place} (not clearly behind)"
    return "–"


def cells(entry: BaseEntry) -> dict[str, str]:
    """The figures of a measured base in words, by the keys of `COLUMNS`."""
    found = entry.measured
    if found is None:
        return {}
    return {
        "shown": f"{bits_text(found.shown)}; {found.shots} fit",
        "answers": bits_text(found.answers),
        "inputs": bits_text(found.inputs),
        "few_shot": _score(found.few_shot),
        "zero_shot": _score(found.zero_shot),
        "parameters": short_count(found.parameters),
        "tune": shown_bytes(found.tune_memory_bytes),
        "serve": shown_bytes(found.serve_memory_bytes) if found.serve_memory_bytes is not None else "not known",
        "training": f"{wording.duration(found.training_seconds)} "
        f"({wording.count(round(found.train_tokens_per_second))} tokens/s)",
        "answer": f"{wording.duration(found.answer_seconds)} "
        f"({wording.count(round(found.answer_tokens_per_second))} tokens/s)",
        "tokens": f"{found.tokens_per_byte:.2f}",
        "context": _context(found),
        "servers": ", ".join(found.servers) or "none",
        "licence": f"{entry.licence.name}: {entry.licence.words}",
    }


def bits_text(found: BitsPerByte | None) -> str:
    """`0.812 (0.790 to 0.835)`, with the rows that were left out."""
    if found is None:
        return "not measured"
    text = f"{found.value:.3f}"
    if found.low is not None and found.high is not None:
        text += f" ({found.low:.3f} to {found.high:.3f})"
    return f"{text}; {found.left_out} rows left out" if found.left_out else text


def short_count(number: int) -> str:
    """10400000 → `10.4M`."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return str(number)


def bits_chart(lines: Sequence[tuple[str, BitsPerByte | None]], *, title: str, confidence: float) -> Markup:
    """Bits per byte as bars with whiskers, fewer is better; nothing where none was measured."""
    known = [(label, found) for label, found in lines if found is not None]
    if not known:
        return Markup("")
    ticks = nice_ticks(0.0, max(found.high or found.value for _, found in known))
    end = ticks[-1]

    def x(value: float) -> str:
        return f"{100 * value / end:.2f}%"

    best = min(found.value for _, found in known)
    rows = [_bar(label, found, x, ticks, "tuned" if found.value == best else "other") for label, found in known]
    described = "; ".join(f"{label} {bits_text(found)}" for label, found in known)
    axis = Markup("").join(
        Markup('<text class="tick" x="{0}" y="15" text-anchor="{1}">{2:g}</text>').format(
            x(tick), "start" if not tick else "end" if tick == end else "middle", tick
        )
        for tick in ticks
    )
    return Markup(
        '<figure><figcaption>{title} <small>bits per byte, less is better; {level} intervals</small></figcaption>'
        '<div class="ichart"><div role="img" aria-label="{title}: {described}">{rows}'
        '<div class="irow iaxis"><svg class="iplot" width="100%" height="24" aria-hidden="true">{axis}</svg></div>'
        "</div></div></figure>"
    ).format(
        title=title, level=wording.level(confidence), described=described, rows=Markup("").join(rows), axis=axis
    )  # fmt: skip


def _bar(label: str, found: BitsPerByte, x: Callable[[float], str], ticks: Sequence[float], role: str) -> Markup:
    middle = _ROW / 2
    parts = [Markup('<line class="grid" x1="{0}" x2="{0}" y1="0" y2="100%"/>').format(x(tick)) for tick in ticks]
    parts.append(
        Markup('<rect class="bar {0}" x="0" y="{1}" width="{2}" height="14" rx="2"/>').format(
            role, middle - 7, x(found.value)
        )
    )
    if found.low is not None and found.high is not None:
        parts.append(
            Markup('<line class="whisker {0}" x1="{1}" x2="{2}" y1="{3}" y2="{3}"/>').format(
                role, x(max(0.0, found.low)), x(found.high), middle
            )
        )
    parts.append(Markup('<circle class="dot {0}" cx="{1}" cy="{2}" r="5"/>').format(role, x(found.value), middle))
    reach = "" if found.low is None or found.high is None else f"{found.low:.3f} to {found.high:.3f}"
    return Markup(
        '<div class="irow {role}"><div class="iname">{label}</div>'
        '<svg class="iplot" width="100%" height="{height}" aria-hidden="true">{parts}</svg>'
        '<div class="ivalue"><b>{value:.3f}</b> <small>{reach}</small></div></div>'
    ).format(role=role, label=label, height=_ROW, parts=Markup("").join(parts), value=found.value, reach=reach)


def _score(found: Score | None) -> str:
    if found is None:
        return "not measured"
    way = ", labels scored" if found.way == "scored" else ""
    return (
        f"{wording.percent(found.value)} ({wording.bare_points(found.low)} to {wording.bare_points(found.high)}){way}"
    )


def _context(found: Measured) -> str:
    text = f"{wording.count(found.context)}, {wording.count(found.longest_row)}"
    if not found.rows_too_long:
        return text
    return f"{text}; {wording.count(found.rows_too_long)} of {wording.count(found.rows)} rows do not fit"
