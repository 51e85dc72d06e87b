"""Charts as inline SVG, drawn by small functions.

Every chart is as wide as its box: horizontal places are percentages, heights are pixels, so text keeps its size on a
phone. Colours are classes, filled in by `report.css` for light and dark. All text is escaped here; what the functions
return is safe to put into the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from tunesmith.verdict import wording

Role = Literal["tuned", "best", "other"]
Format = Callable[[float], str]

_ROW = 36
_AXIS = 24
_PANEL = 200
_MAX_POINTS = 400


@dataclass(frozen=True, slots=True)
class Interval:
    """A line of an interval chart; `note` stands small under its label."""

    label: str
    value: float
    low: float
    high: float
    role: Role = "other"
    note: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line through an interval chart, named in its axis."""

    at: float
    label: str
    css: Literal["mark", "zero"] = "mark"


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a line chart: points (x, y) in order of x; `dots` shows each point."""

    label: str
    points: tuple[tuple[float, float], ...]
    css: str
    dots: bool = False


def interval_chart(
    lines: Sequence[Interval],
    *,
    title: str,
    number: Format,
    tick: Format,
    marks: Sequence[Mark] = (),
    bars: bool = True,
    confidence: float,
) -> Markup:
    """Value and whiskers of each line on one axis that includes 0; `bars` draws a bar from there (values >= 0 only)."""
    ends = [0.0, *(mark.at for mark in marks), *(line.low for line in lines), *(line.high for line in lines)]
    ticks = nice_ticks(min(ends), max(*ends, min(ends) + 0.01))
    low, high = ticks[0], ticks[-1]

    def place(value: float) -> float:
        return 100 * (value - low) / (high - low)

    rows = [_interval_row(line, place, ticks, marks, number=number, bars=bars) for line in lines]
    described = "; ".join(
        f"{line.label} {number(line.value)}, {wording.level(confidence)} interval "
        f"{number(line.low)} to {number(line.high)}"
        for line in lines
    )
    axis = _axis(ticks, place, tick)
    legend = Markup("").join(
        Markup('<span class="key"><i class="swatch {0}"></i>{1}</span>').format(mark.css, mark.label) for mark in marks
    )
    return Markup(
        '<div class="ichart"><div role="img" aria-label="{title}: {described}">{rows}{axis}</div>{legend}</div>'
    ).format(
        title=title,
        described=described,
        rows=Markup("").join(rows),
        axis=axis,
        legend=Markup('<p class="legend">{0}</p>').format(legend) if marks else "",
    )


def _interval_row(
    line: Interval, place: Callable[[float], float], ticks: Sequence[float], marks: Sequence[Mark],
    *, number: Format, bars: bool,
) -> Markup:  # fmt: skip
    middle = _ROW / 2

    def x(value: float) -> str:
        return f"{place(value):.2f}%"

    parts = [_vertical(x(tick), "grid") for tick in ticks]
    if bars:
        parts.append(
            Markup('<rect class="bar {0}" x="0" y="{1}" width="{2}" height="14" rx="2"/>').format(
                line.role, middle - 7, x(line.value)
            )
        )
    parts += [_vertical(x(mark.at), mark.css) for mark in marks]
    parts.append(
        Markup('<line class="whisker {0}" x1="{1}" x2="{2}" y1="{3}" y2="{3}"/>').format(
            line.role, x(line.low), x(line.high), middle
        )
    )
    for end in (line.low, line.high):
        parts.append(
            Markup('<line class="whisker {0}" x1="{1}" x2="{1}" y1="{2}" y2="{3}"/>').format(
                line.role, x(end), middle - 5, middle + 5
            )
        )
    parts.append(Markup('<circle class="dot {0}" cx="{1}" cy="{2}" r="5"/>').format(line.role, x(line.value), middle))
    note = Markup(" <small>{0}</small>").format(line.note) if line.note else ""
    return Markup(
        '<div class="irow {role}"><div class="iname">{label}{note}</div>'
        '<svg class="iplot" width="100%" height="{height}" aria-hidden="true">{parts}</svg>'
        '<div class="ivalue"><b>{value}</b> <small>{low} to {high}</small></div></div>'
    ).format(
        role=line.role,
        label=line.label,
        note=note,
        height=_ROW,
        parts=Markup("").join(parts),
        value=number(line.value),
        low=wording.bare_points(line.low),
        high=wording.bare_points(line.high),
    )


def _vertical(x: str, css: str) -> Markup:
    return Markup('<line class="{0}" x1="{1}" x2="{1}" y1="0" y2="100%"/>').format(css, x)


def _axis(ticks: Sequence[float], place: Callable[[float], float], tick: Format) -> Markup:
    labels = []
    for value in ticks:
        at = place(value)
        anchor = "start" if at < 2 else "end" if at > 98 else "middle"
        labels.append(
            Markup('<text class="tick" x="{0:.2f}%" y="15" text-anchor="{1}">{2}</text>').format(
                at, anchor, tick(value)
            )
        )
    return Markup(
        '<div class="irow iaxis"><svg class="iplot" width="100%" height="{0}" aria-hidden="true">{1}</svg></div>'
    ).format(_AXIS, Markup("").join(labels))


def line_chart(
    series: Sequence[Series], *, title: str, x_label: str, number: Format, best_x: float | None = None
) -> Markup:
    """Lines over a common x, with the place of the best checkpoint marked; nothing where there is no point to draw."""
    series = [line for s in series if (line := Series(s.label, _thinned(s.points), s.css, s.dots)).points]
    if not series:
        return Markup("")
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    x_low, x_high = min(xs), max(xs)
    y_ticks = nice_ticks(min(ys), max(ys))
    y_low, y_high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def x(value: float) -> float:
        return 100 * (value - x_low) / (x_high - x_low) if x_high > x_low else 50.0

    def y(value: float) -> float:
        return _PANEL * (1 - (value - y_low) / (y_high - y_low)) if y_high > y_low else _PANEL / 2

    parts = [
        Markup(
            '<line class="grid" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>'
            '<text class="tick" x="-8" y="{1:.1f}" text-anchor="end">{2}</text>'
        ).format(y(tick), y(tick) + 4, number(tick))
        for tick in y_ticks
    ]
    steps = [tick for tick in nice_ticks(x_low, x_high, 6) if x_low <= tick <= x_high] or [x_low]
    parts += [
        Markup('<text class="tick" x="{0:.2f}%" y="{1}" text-anchor="middle">{2:g}</text>').format(
            x(step), _PANEL + 18, step
        )
        for step in steps
    ]
    if best_x is not None:
        parts.append(
            Markup('<line class="mark" x1="{0:.2f}%" x2="{0:.2f}%" y1="0" y2="{1}"/>').format(x(best_x), _PANEL)
        )
    lines = Markup("").join(
        Markup('<polyline class="line {0}" points="{1}"/>').format(
            line.css, " ".join(f"{10 * x(px):.1f},{y(py):.1f}" for px, py in line.points)
        )
        for line in series
    )
    parts.append(
        Markup(
            '<svg x="0" y="0" width="100%" height="{0}" viewBox="0 0 1000 {0}" preserveAspectRatio="none">{1}</svg>'
        ).format(_PANEL, lines)
    )
    for line in series:
        if line.dots:
            parts += [
                Markup('<circle class="point {0}" cx="{1:.2f}%" cy="{2:.1f}" r="{3}"/>').format(
                    line.css, x(px), y(py), 5 if px == best_x else 3
                )
                for px, py in line.points
            ]
    described = "; ".join(
        f"{line.label} from {number(line.points[0][1])} to {number(line.points[-1][1])}" for line in series
    )
    keys = [Markup('<span class="key"><i class="swatch {0}"></i>{1}</span>').format(s.css, s.label) for s in series]
    if best_x is not None:
        keys.append(Markup('<span class="key"><i class="swatch mark"></i>{0}</span>').format(f"best, step {best_x:g}"))
    return Markup(
        '<figure class="lchart"><figcaption>{title} <small>by {x_label}</small></figcaption>'
        '<svg width="100%" height="{height}" role="img" aria-label="{title} by {x_label}: {described}">{parts}</svg>'
        '<p class="legend">{keys}</p></figure>'
    ).format(
        title=title,
        height=_PANEL + 24,
        x_label=x_label,
        described=described,
        parts=Markup("").join(parts),
        keys=Markup("").join(keys),
    )


def histogram(groups: Sequence[tuple[str, Role, Sequence[int]]], *, title: str) -> Markup:
    """Counts per tenth of a score from 0 to 1, the groups' columns side by side."""
    bins = len(groups[0][2])
    highest = max(1, *(count for _, _, counts in groups for count in counts))
    slot = 100 / bins
    width = slot * 0.84 / len(groups)
    parts = []
    for position, (_, role, counts) in enumerate(groups):
        for index, count in enumerate(counts):
            if count == 0:
                continue
            height = max(2.0, (_PANEL - 20) * count / highest)
            left = index * slot + slot * 0.08 + position * width
            parts.append(
                Markup('<rect class="column {0}" x="{1:.2f}%" y="{2:.1f}" width="{3:.2f}%" height="{4:.1f}"/>').format(
                    role, left, _PANEL - height, width * 0.94, height
                )
            )
            if count == max(counts):
                parts.append(
                    Markup('<text class="tick" x="{0:.2f}%" y="{1:.1f}" text-anchor="middle">{2}</text>').format(
                        left + width / 2, _PANEL - height - 5, count
                    )
                )
    parts.append(Markup('<line class="axis" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(_PANEL))
    parts += [
        Markup('<text class="tick" x="{0}%" y="{1}" text-anchor="{2}">{3}</text>').format(
            20 * i, _PANEL + 18, "start" if i == 0 else "end" if i == 5 else "middle", f"{20 * i} %"
        )
        for i in range(6)
    ]
    described = "; ".join(f"{label}: {', '.join(map(str, counts))}" for label, _, counts in groups)
    keys = Markup("").join(
        Markup('<span class="key"><i class="swatch {0}"></i>{1}</span>').format(role, label)
        for label, role, _ in groups
    )
    return Markup(
        '<figure class="hchart"><figcaption>{title}</figcaption><svg width="100%" height="{height}" role="img" '
        'aria-label="{title}, rows per tenth: {described}">{parts}</svg><p class="legend">{keys}</p></figure>'
    ).format(title=title, height=_PANEL + 24, described=described, parts=Markup("").join(parts), keys=keys)


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that span [low, high]."""
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError(f"an axis from {low} to {high} cannot be drawn")
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def smoothed(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Exponential moving average of y over about a 25th of the points.

    Corrected for its start as in Adam (Kingma and Ba 2015, section 3).
    """
    weight = 1 - 1 / max(2.0, len(points) / 25)
    result = []
    total = 0.0
    for count, (x, y) in enumerate(points, start=1):
        total = weight * total + (1 - weight) * y
        result.append((x, total / (1 - weight**count)))
    return tuple(result)


def _thinned(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """At most `_MAX_POINTS` points, evenly taken, the last one kept; points that are no numbers are left out."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if len(finite) <= _MAX_POINTS:
        return tuple(finite)
    step = (len(finite) - 1) / (_MAX_POINTS - 1)
    return tuple(finite[round(i * step)] for i in range(_MAX_POINTS))
