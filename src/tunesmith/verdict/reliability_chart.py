"""The reliability diagram: how often answers are right by how sure they are, and how many are how sure.

Drawn as in `charts.py`: horizontal places are percentages, heights pixels, colours classes of `report.css`, and all
text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from tunesmith.evaluation.calibration import ReliabilityBin
from tunesmith.evaluation.statistics import wilson

_SIDE = 300
_MOST_POINTS = 8
"""Bins drawn: neighbours are put together, as many small ones hide each other."""
_COLUMNS = 44
"""Height of the columns under the diagram."""


def reliability_chart(
    before: Sequence[ReliabilityBin], after: Sequence[ReliabilityBin], *, title: str, confidence: float
) -> Markup:
    """Share right by confidence, with score intervals; `after` is the same after temperature, empty where none was
    fitted.
    """
    shown = [(before, "best", "as answered"), (after, "tuned", "after temperature")]
    if not after:  # a single set of points stands in the colour of the subject
        shown = [(before, "tuned", "as answered")]
    shown = [(_together(bins), css, name) for bins, css, name in shown]
    least = min(
        (value for bins, _, _ in shown for one in bins for value in (one.confidence, one.accuracy)), default=0.0
    )
    low = math.floor(4 * least) / 4 if least < 1 else 0.75
    parts = [_grid_line(share, low) for share in (0, 0.25, 0.5, 0.75, 1) if share >= low]
    parts.append(Markup('<line class="diagonal" x1="0" y1="{0}" x2="100%" y2="0"/>').format(_SIDE))
    for bins, css, _ in shown:
        parts += _points(bins, low, css, confidence)
    parts.append(_counts(after or before, low))
    keys = [(f"dot {css}", name) for _, css, name in shown]
    keys += [("diagonal", "as sure as right"), ("counts", "answers by confidence")]
    return Markup(
        '<figure class="rchart"><figcaption>{title} <small>share right by confidence</small></figcaption>'
        '<svg width="100%" height="{height}" role="img" aria-label="{title}, share right by confidence. {described}">'
        '{parts}</svg><p class="legend">{keys}</p></figure>'
    ).format(
        title=title,
        height=_SIDE + 30 + _COLUMNS + 4,
        described="; ".join(f"{name}: {_described(bins)}" for bins, _, name in shown),
        parts=Markup("").join(parts),
        keys=Markup("").join(
            Markup('<span class="key"><i class="swatch {0}"></i>{1}</span>').format(css, name) for css, name in keys
        ),
    )


def _together(bins: Sequence[ReliabilityBin]) -> list[ReliabilityBin]:
    """Neighbouring bins put together until there are few enough, empty ones left out."""
    filled = [one for one in bins if one.n]
    size = math.ceil(len(filled) / _MOST_POINTS)
    return [_merged(filled[start : start + size]) for start in range(0, len(filled), size or 1)]


def _merged(bins: Sequence[ReliabilityBin]) -> ReliabilityBin:
    n = sum(one.n for one in bins)
    confidence = sum(one.confidence * one.n for one in bins) / n
    accuracy = sum(one.accuracy * one.n for one in bins) / n
    return ReliabilityBin(bins[0].low, bins[-1].high, confidence, accuracy, n)


def _share(value: float, low: float) -> float:
    """Place of a value on an axis from `low` to 1."""
    return max(0.0, (value - low) / (1 - low))


def _grid_line(share: float, low: float) -> Markup:
    place = _share(share, low)
    y = _SIDE * (1 - place)
    return Markup(
        '<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
        '<line class="grid" x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="{side}"/>'
        '<text class="tick" x="-8" y="{text:.1f}" text-anchor="end">{name:g} %</text>'
        '<text class="tick" x="{x:.2f}%" y="{below}" text-anchor="{anchor}">{name:g} %</text>'
    ).format(
        y=y,
        x=100 * place,
        name=100 * share,
        side=_SIDE,
        text=y + 4,
        below=_SIDE + 18,
        anchor="start" if place == 0 else "end" if place == 1 else "middle",
    )


def _points(bins: Sequence[ReliabilityBin], low: float, css: str, confidence: float) -> list[Markup]:
    """Whiskers, the line through the points, then the points."""
    places = [(100 * _share(one.confidence, low), _SIDE * (1 - _share(one.accuracy, low))) for one in bins]
    parts = []
    for one, (x, _) in zip(bins, places, strict=True):
        ends = wilson(one.accuracy * one.n, one.n, confidence)
        parts.append(
            Markup('<line class="whisker {0} thin" x1="{1:.2f}%" x2="{1:.2f}%" y1="{2:.1f}" y2="{3:.1f}"/>').format(
                css, x, *(_SIDE * (1 - _share(end, low)) for end in ends)
            )
        )
    parts.append(
        Markup(
            '<svg x="0" y="0" width="100%" height="{0}" viewBox="0 0 1000 {0}" preserveAspectRatio="none">'
            '<polyline class="line {1}" points="{2}"/></svg>'
        ).format(_SIDE, css, " ".join(f"{10 * x:.1f},{y:.1f}" for x, y in places))
    )
    parts += [Markup('<circle class="dot {0}" cx="{1:.2f}%" cy="{2:.1f}" r="5"/>').format(css, x, y) for x, y in places]
    return parts


def _counts(bins: Sequence[ReliabilityBin], low: float) -> Markup:
    """Columns of answers by confidence, ten over the width.

    Bins of equal mass are all as large, so each is counted where its mean lies.
    """
    columns = [0] * 10
    for one in bins:
        columns[min(9, int(10 * _share(one.confidence, low)))] += one.n
    most = max(columns) or 1
    bottom = _SIDE + 30 + _COLUMNS
    drawn = [
        Markup('<rect class="counts" x="{0:.1f}%" y="{1:.1f}" width="9%" height="{2:.1f}"/>').format(
            10 * place + 0.5, bottom - _COLUMNS * n / most, _COLUMNS * n / most
        )
        for place, n in enumerate(columns)
        if n
    ]
    axis = Markup('<line class="axis" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(bottom)
    return Markup("").join([*drawn, axis])


def _described(bins: Sequence[ReliabilityBin]) -> str:
    return ", ".join(f"{one.n} answers {one.confidence:.0%} sure, {one.accuracy:.0%} right" for one in bins)
