"""Quality against what it costs: dots with intervals, numbered as in the table, joined where none is better at both.

Drawn as in `charts.py`: horizontal places are percentages, heights pixels, colours classes of `report.css`, and all
text is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tunesmith.verdict import wording
from tunesmith.verdict.charts import nice_ticks

_HEIGHT = 240
_NEAR_X, _NEAR_Y = 5.0, 18.0
"""Percent and pixels within which two dots' numbers would lie on each other."""


@dataclass(frozen=True, slots=True)
class Point:
    """One export: `x` is its size or speed, `y` its quality (0-1) with an interval. `usable`: it passed every check."""

    number: int
    label: str
    x: float
    y: float
    low: float
    high: float
    usable: bool = True


def on_front(points: Sequence[Point], *, smaller: bool) -> list[Point]:
    """The usable points that no other usable one beats in quality without being worse in x, in order of x."""

    def beats(one: Point, other: Point) -> bool:
        as_good_x = one.x <= other.x if smaller else one.x >= other.x
        better_x = one.x < other.x if smaller else one.x > other.x
        return as_good_x and one.y >= other.y and (better_x or one.y > other.y)

    usable = [point for point in points if point.usable]
    front = [point for point in usable if not any(beats(other, point) for other in usable)]
    return sorted(front, key=lambda point: (point.x, point.y))


def front_chart(
    points: Sequence[Point],
    *,
    title: str,
    axis: str,
    tick: Callable[[float], str],
    smaller: bool,
    tuned: float | None,
) -> Markup:
    """Quality (0-1) over x; `smaller` says that less of x is better. `tuned` is drawn as a line to compare with."""
    ys = [end for point in points for end in (point.low, point.high)] + ([tuned] if tuned is not None else [])
    y_ticks = [at for at in nice_ticks(min(ys), max(ys), 4) if 0 <= at <= 1]
    x_ticks = nice_ticks(0.0, max(point.x for point in points) or 1.0, 4)
    bottom, top = min(*ys, *y_ticks), max(*ys, *y_ticks)

    def across(value: float) -> float:
        return 100 * value / x_ticks[-1]

    def up(value: float) -> float:
        return _HEIGHT * (1 - (value - bottom) / ((top - bottom) or 1))

    parts = [_level(up(at), wording.percent(at)) for at in y_ticks] + [_upright(across(at), tick(at)) for at in x_ticks]
    if tuned is not None:
        parts.append(Markup('<line class="mark" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>').format(up(tuned)))
    front = on_front(points, smaller=smaller)
    if len(front) > 1:
        along = " ".join(f"{10 * across(point.x):.1f},{up(point.y):.1f}" for point in front)
        parts.append(
            Markup(
                '<svg x="0" y="0" width="100%" height="{0}" viewBox="0 0 1000 {0}" preserveAspectRatio="none">'
                '<polyline class="line tuned" points="{1}"/></svg>'
            ).format(_HEIGHT, along)
        )
    parts += _dots(points, front, across, up)
    described = "; ".join(
        f"{point.label}: {tick(point.x)}, {wording.percent(point.y)}" + ("" if point.usable else ", failed")
        for point in points
    )
    keys = [("dot tuned", "none is better at both"), ("dot", "another is"), ("mark", "the tuned model")]
    if any(not point.usable for point in points):
        keys.insert(2, ("dot failed", "failed its verification"))
    return Markup(
        '<figure class="fchart"><figcaption>{title} <small>{axis}</small></figcaption>'
        '<svg width="100%" height="{height}" role="img" aria-label="{title}, {axis}. {described}">{parts}</svg>'
        '<p class="legend">{keys}</p></figure>'
    ).format(
        title=title,
        axis=axis,
        height=_HEIGHT + 28,
        described=described,
        parts=Markup("").join(parts),
        keys=Markup("").join(
            Markup('<span class="key"><i class="swatch {0}"></i>{1}</span>').format(css, name) for css, name in keys
        ),
    )


def _dots(
    points: Sequence[Point], front: Sequence[Point], across: Callable[[float], float], up: Callable[[float], float]
) -> list[Markup]:
    """Whiskers first, then dots, then numbers; a number moves under its dot where another one stands above it."""
    whiskers, dots, numbers = [], [], []
    taken: list[tuple[float, float]] = []
    for point in points:
        x, y = across(point.x), up(point.y)
        css = "failed" if not point.usable else "tuned" if point in front else ""
        whiskers.append(
            Markup('<line class="whisker {0} thin" x1="{1:.2f}%" x2="{1:.2f}%" y1="{2:.1f}" y2="{3:.1f}"/>').format(
                css, x, up(point.low), up(point.high)
            )
        )
        dots.append(Markup('<circle class="dot {0}" cx="{1:.2f}%" cy="{2:.1f}" r="5.5"/>').format(css, x, y))
        places = [(dx, dy) for dy in (-9, 20, -24, 35) for dx in (8, -8)]
        dx, dy = next((one for one in places if _free(x, y + one[1], one[0], taken)), places[0])
        taken.append((x + dx / 3, y + dy))
        numbers.append(
            Markup('<text class="tick" x="{0:.2f}%" dx="{1}" y="{2:.1f}" text-anchor="{3}">{4}</text>').format(
                x, dx, y + dy, "start" if dx > 0 else "end", point.number
            )
        )
    return [*whiskers, *dots, *numbers]


def _free(x: float, y: float, dx: float, taken: Sequence[tuple[float, float]]) -> bool:
    at = x + dx / 3
    return all(abs(at - other_x) >= _NEAR_X or abs(y - other_y) >= _NEAR_Y for other_x, other_y in taken)


def _level(y: float, name: str) -> Markup:
    return Markup(
        '<line class="grid" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>'
        '<text class="tick" x="-8" y="{1:.1f}" text-anchor="end">{2}</text>'
    ).format(y, y + 4, name)


def _upright(x: float, name: str) -> Markup:
    return Markup(
        '<line class="grid" x1="{0:.2f}%" x2="{0:.2f}%" y1="0" y2="{1}"/>'
        '<text class="tick" x="{0:.2f}%" y="{2}" text-anchor="{3}">{4}</text>'
    ).format(x, _HEIGHT, _HEIGHT + 18, "start" if x == 0 else "end" if x > 99 else "middle", name)
