"""How far what was asked could change before the decision does: smallest gain, target, number of requests.

Nothing is measured anew: the rules are asked again about the same rows with another setting, and the place where their
answer changes is found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from tunesmith.verdict import wording
from tunesmith.verdict.case import Case

_STEPS = 40
_DAYS_PER_MONTH = 365.25 / 12
_MOST_REQUESTS = 1e9
"""A month. Where a decision still holds there, it holds at any number."""

Decides = Callable[[Case], object]
"""What the rules say of a case: anything that is equal where the decision is the same."""


def sensitivity(case: Case, decides: Decides) -> tuple[str, ...]:
    """Sentences such as "Holds unless requests fall under 40 a day", for a case that was decided."""
    return tuple(
        sentence
        for sentence in (_of_min_gain(case, decides), _of_target(case, decides), _of_volume(case, decides))
        if sentence
    )


def _of_min_gain(case: Case, decides: Decides) -> str:
    def with_gain(value: float) -> Case:
        return replace(case, min_gain=value)

    low, high = holds_between(lambda value: decides(with_gain(value)) == decides(case), case.min_gain, 0.0, 1.0)
    if low <= 0 and high >= 1:
        return ""
    bounds = []
    if high < 1:
        bounds.append(f"rises above {wording.bare_points(high)} points")
    if low > 0:
        bounds.append(f"falls to {wording.bare_points(low)} points or less")
    return f"Holds unless the smallest gain worth having {' or '.join(bounds)}."


def _of_target(case: Case, decides: Decides) -> str:
    if case.target is None:
        return ""

    def with_target(value: float) -> Case:
        return replace(case, target=value)

    low, high = holds_between(lambda value: decides(with_target(value)) == decides(case), case.target, 0.0, 1.0)
    if low <= 0 and high >= 1:
        return "Holds for any target."
    bounds = []
    if high < 1:
        bounds.append(f"rises above {wording.percent(high)}")
    if low > 0:
        bounds.append(f"falls to {wording.percent(low)} or less")
    return f"Holds unless the target {' or '.join(bounds)}."


def _of_volume(case: Case, decides: Decides) -> str:
    """Requests matter only where a margin makes the cheaper of two count as better."""
    if case.margin is None or case.volume is None:
        return ""
    volume = case.volume

    def same(logarithm: float) -> bool:
        asked = replace(case, volume=replace(volume, requests_per_month=math.exp(logarithm)))
        return decides(asked) == decides(case)

    low, high = holds_between(same, math.log(volume.requests_per_month), 0.0, math.log(_MOST_REQUESTS))
    bounds = []
    if low > 0:
        bounds.append(f"fall under {_per_day(math.exp(low))}")
    if high < math.log(_MOST_REQUESTS):
        bounds.append(f"rise over {_per_day(math.exp(high))}")
    return f"Holds unless requests {' or '.join(bounds)}." if bounds else "Holds for any number of requests."


def holds_between(holds: Callable[[float], bool], at: float, least: float, most: float) -> tuple[float, float]:
    """The interval around `at`, within `least` and `most`, at whose ends `holds` turns false.

    `at` holds. The end itself where it holds there; where it is lost and won again further out, one place of change
    is found.
    """
    return _edge(holds, at, min(least, at)), _edge(holds, at, max(most, at))


def _edge(holds: Callable[[float], bool], inside: float, outside: float) -> float:
    if holds(outside):
        return outside
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return inside


def _per_day(per_month: float) -> str:
    a_day = per_month / _DAYS_PER_MONTH
    if a_day < 1:
        return f"{wording.count(max(round(per_month), 1))} a month"
    return f"{wording.count(round(a_day))} a day"
