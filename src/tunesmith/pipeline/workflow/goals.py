"""Whether an outcome reaches its goals, which outcomes no other beats, and which one is chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tunesmith.pipeline.workflow.types import Goal, Outcome

LOWER_IS_BETTER = frozenset(
    {
        "size_bytes",
        "first_token_seconds",
        "seconds_per_token",
        "peak_memory_bytes",
        "validation_loss",
        "mean_kl",
    }
)


def sign(measure: str) -> int:
    """1 where more is better, -1 where less is."""
    return -1 if measure in LOWER_IS_BETTER else 1


def unmet(goals: Sequence[Goal], measures: Mapping[str, float], reference: Mapping[str, float]) -> tuple[str, ...]:
    """The goals that these measures miss, in words; one whose measure is not there is missed too."""
    return tuple(said for goal in goals if (said := _missed(goal, measures, reference)) is not None)


def _missed(goal: Goal, measures: Mapping[str, float], reference: Mapping[str, float]) -> str | None:
    value = measures.get(goal.measure)
    if value is None:
        others = f"; {', '.join(measures)} were" if measures else ""
        return f"{goal.measure} was not measured{others}"
    if goal.kind == "at-least":
        return None if value >= goal.value else f"{goal.measure} is {value:g}, at least {goal.value:g} was wanted"
    if goal.kind == "at-most":
        return None if value <= goal.value else f"{goal.measure} is {value:g}, at most {goal.value:g} was wanted"
    before = reference.get(goal.measure)
    if before is None:
        return f"{goal.measure} was not measured before, so its loss is not known"
    worse = sign(goal.measure) * (before - value)
    allowed = goal.value * abs(before) if goal.share else goal.value
    if worse <= allowed * (1 + 1e-12):
        return None
    unit = f" ({goal.value:.4g} of it)" if goal.share else ""
    return f"{goal.measure} went from {before:g} to {value:g}, {worse:g} worse; {allowed:g}{unit} is allowed"


def with_pareto(outcomes: Sequence[Outcome], measures: Sequence[str]) -> tuple[Outcome, ...]:
    """The outcomes, those marked that no other finished one beats: as good in every measure, and better in one."""
    whole = [outcome for outcome in outcomes if _whole(outcome)]
    return tuple(
        replace(one, pareto=_whole(one) and not any(_beats(other, one, measures) for other in whole))
        for one in outcomes
    )


def choose(outcomes: Sequence[Outcome], measures: Sequence[str]) -> Outcome | None:
    """Of the outcomes that meet all goals the best in the first measure, of equal ones in the next, and so on.

    None where no outcome meets all goals.
    """
    meeting = [outcome for outcome in outcomes if _whole(outcome) and outcome.meets]
    return max(meeting, key=lambda one: (*(_value(one, name) for name in measures), -one.number), default=None)


def _whole(outcome: Outcome) -> bool:
    return outcome.state == "done" and outcome.searched is None


def _beats(one: Outcome, other: Outcome, measures: Sequence[str]) -> bool:
    pairs = [(_value(one, measure), _value(other, measure)) for measure in measures]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _value(outcome: Outcome, measure: str) -> float:
    """Higher is better; what was not measured is worse than everything."""
    value = outcome.measures.get(measure)
    return -math.inf if value is None else sign(measure) * value
