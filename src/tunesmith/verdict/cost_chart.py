"""What candidates cost in all by the number of requests: where lines cross, the one has paid for itself.

Drawn as in `charts.py`: horizontal places are percentages, heights pixels, colours classes of `report.css`, and all
text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tunesmith.verdict import wording
from tunesmith.verdict.charts import Format, nice_ticks

_PANEL = 260
_TIMES = 40
"""How many times as much the one compared must cost as the other for the axes to be logarithmic."""
_DECADES = 6
"""Powers of ten of money shown at most; what costs less is named, and lies below the chart."""
_SAMPLES = 60
_TICKS = 6


@dataclass(frozen=True, slots=True)
class CostLine:
    """One candidate: what is paid once, and per request. `css` is its colour and dashes."""

    label: str
    once: float
    per_request: float
    css: str

    def total(self, requests: float) -> float:
        return self.once + requests * self.per_request


@dataclass(frozen=True, slots=True)
class RequestMark:
    """A number of requests that is marked, such as the break-even."""

    requests: float
    label: str
    css: str = "mark"


@dataclass(frozen=True, slots=True)
class _Axis:
    """From `low` to `high`; logarithmic ones begin at a power of ten."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool

    def place(self, value: float) -> float:
        """0 to 1; below 0 for what lies under the axis."""
        if self.logarithmic:
            return math.log(max(value, self.low / 1e9) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def samples(self, end: float) -> list[float]:
        """Values evenly far apart on the axis, from its beginning to `end`."""
        shares = [i / _SAMPLES for i in range(_SAMPLES + 1)]
        if self.logarithmic:
            return [self.low * (end / self.low) ** share for share in shares]
        return [self.low + (end - self.low) * share for share in shares]


def cost_chart(
    lines: Sequence[CostLine], *, requests: float, marks: Sequence[RequestMark], money: Format, title: str
) -> Markup:
    """Total cost of each line up to so many `requests`; nothing where nothing costs anything.

    A line that costs nothing lies on the ground, or below the chart where axes are logarithmic.

    The first two lines are those to be compared. Both axes are logarithmic where their totals lie so far apart that the
    cheaper one could not be told from the ground, or where a mark lies close to the beginning.
    """
    ends = [line.total(requests) for line in lines]
    if requests <= 0 or not any(ends):
        return Markup("")
    marks = [mark for mark in marks if 0 < mark.requests <= requests]
    apart = 0 < _TIMES * min(ends[:2]) < max(ends[:2])  # what is free has no place on such an axis
    logarithmic = apart or any(mark.requests * _TIMES < requests for mark in marks)
    if logarithmic:
        first = min([requests / 1000, *(mark.requests / 10 for mark in marks)])
        x = _logarithmic(min(max(1.0, first), requests / 10), requests, requests)
        least = min(end for end in ends if end > 0)
        y = _logarithmic(max(least, max(ends) / 10**_DECADES), max(ends))
    else:
        x, y = _linear(requests, requests), _linear(max(ends))
    parts = _axes(x, y, money) + [_mark(mark, x) for mark in marks] + [_curves(lines, x, y, requests)]
    scale = ", both axes logarithmic" if logarithmic else ""
    described = "; ".join(f"{line.label} {money(round(line.total(requests), 4))}" for line in lines)
    return Markup(
        '<figure class="cchart"><figcaption>{title} <small>by requests{scale}</small></figcaption>'
        '<svg width="100%" height="{height}" role="img" aria-label="{title} by requests{scale}. After {requests} '
        'requests: {described}. {marked}">{parts}</svg><p class="legend">{keys}</p></figure>'
    ).format(
        title=title,
        scale=scale,
        height=_PANEL + 28,
        requests=wording.count(round(requests)),
        described=described,
        marked="; ".join(mark.label for mark in marks),
        parts=Markup("").join(parts),
        keys=_keys(lines, marks, y, requests),
    )


def _linear(high: float, end: float | None = None) -> _Axis:
    """From 0; it ends at `end`, else at the round number over `high`."""
    ticks = nice_ticks(0, high, 4)
    end = ticks[-1] if end is None else end
    return _Axis(0.0, end, tuple(tick for tick in ticks if tick <= end), False)


def _logarithmic(low: float, high: float, end: float | None = None) -> _Axis:
    """Named at powers of ten; it ends at `end`, else at the power of ten over `high`."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    step = math.ceil((last - first) / _TICKS)
    end = 10.0**last if end is None else end
    ticks = tuple(10.0**power for power in range(first, last + 1, step) if 10.0**power <= end)
    return _Axis(10.0**first, end, ticks, True)


def _axes(x: _Axis, y: _Axis, money: Format) -> list[Markup]:
    parts = []
    for tick in y.ticks:
        at = _PANEL * (1 - y.place(tick))
        parts.append(
            Markup(
                '<line class="grid" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>'
                '<text class="tick" x="-8" y="{1:.1f}" text-anchor="end">{2}</text>'
            ).format(at, at + 4, money(tick))
        )
    for tick in x.ticks:
        share = x.place(tick)
        anchor = "start" if share < 0.02 else "end" if share > 0.98 else "middle"
        parts.append(
            Markup('<text class="tick" x="{0:.2f}%" y="{1}" text-anchor="{2}">{3}</text>').format(
                100 * share, _PANEL + 18, anchor, wording.short_amount(tick)
            )
        )
    return parts


def _mark(mark: RequestMark, x: _Axis) -> Markup:
    return Markup('<line class="{0}" x1="{1:.2f}%" x2="{1:.2f}%" y1="0" y2="{2}"/>').format(
        mark.css, 100 * x.place(mark.requests), _PANEL
    )


def _curves(lines: Sequence[CostLine], x: _Axis, y: _Axis, requests: float) -> Markup:
    drawn = [
        Markup('<polyline class="line {0}" points="{1}"/>').format(
            line.css,
            " ".join(
                f"{1000 * x.place(at):.1f},{_PANEL * (1 - y.place(line.total(at))):.1f}" for at in x.samples(requests)
            ),
        )
        for line in reversed(lines)  # the first one lies on top
    ]
    return Markup(
        '<svg x="0" y="0" width="100%" height="{0}" viewBox="0 0 1000 {0}" preserveAspectRatio="none" '
        'class="clip">{1}</svg>'
    ).format(_PANEL, Markup("").join(drawn))


def _keys(lines: Sequence[CostLine], marks: Sequence[RequestMark], y: _Axis, requests: float) -> Markup:
    """Lines lie, marks stand."""
    named = []
    for line in lines:
        below = " (too little for this chart)" if line.total(requests) < y.low else ""
        named.append((f"line {line.css}", (0, 28, 7, 7), f"{line.label}{below}"))
    named += [(mark.css, (14, 14, 0, 14), mark.label) for mark in marks]
    return Markup("").join(
        Markup(
            '<span class="key"><svg class="sample" width="28" height="14" aria-hidden="true">'
            '<line class="{0}" x1="{1}" x2="{2}" y1="{3}" y2="{4}"/></svg>{5}</span>'
        ).format(css, *ends, label)
        for css, ends, label in named
    )
