"""Before anything is trained: does an alternative surely reach the target already, so that tuning is not needed?

"Surely" means that the whole interval lies at or above the target. With m alternatives there are m chances to look good
by luck, so the lower end of each interval is taken at the confidence at which all m hold together (Bonferroni; Holm's
first step is the same). The chance of stopping for an alternative that truly misses the target is then at most half of
1 - confidence, however many were measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.evaluation.types import Evaluation, MetricValue
from tunesmith.verdict import wording
from tunesmith.verdict.caveats import measured_caveats
from tunesmith.verdict.costs import burden, is_tuned
from tunesmith.verdict.reasons import decision_for
from tunesmith.verdict.sample_size import z_value
from tunesmith.verdict.types import CandidateCost, Verdict

RULE = "alternative_reaches_target"
_ROUNDING = 1e-9


def good_enough(
    evaluations: Mapping[str, Evaluation],
    *,
    metric: str,
    target: float | None,
    confidence: float,
    costs: Mapping[str, CandidateCost],
    caveats: Sequence[str] = (),
    assumptions: Mapping[str, Any] | None = None,
) -> Verdict | None:
    """The verdict for the best alternative that surely reaches the target; None where none does, or none is set.

    Of several the one with the highest value is recommended, as everywhere; those that surely reach it too are `tied`,
    and the cheapest of them is named. Arguments as for `decide`. Raises `RecipeError` where `metric` was not measured.
    """
    if target is None:
        return None
    values = {name: _value(one, metric) for name, one in evaluations.items() if not is_tuned(name)}
    lowest = {name: lowest_value(value, len(values), confidence) for name, value in values.items()}

    def rank(name: str) -> tuple[Any, ...]:
        return -values[name].value, *burden(name, costs)

    reaching = sorted((name for name in values if lowest[name] >= target - _ROUNDING), key=rank)
    if not reaching:
        return None
    best, *others = reaching
    return Verdict(
        decision=decision_for(best),
        candidate=best,
        reason=_reason(values[best], lowest[best], reaching, costs, target, confidence, len(values)),
        rule=RULE,
        rows_needed=None,
        metric=metric,
        best_alternative=best,
        caveats=(*caveats, *measured_caveats({name: evaluations[name] for name in values}, values[best].n)),
        assumptions={**(assumptions or {}), "target": target, "confidence": confidence},
        tied=tuple(others),
        sensitivity=(f"Holds unless the target rises above {wording.percent(max(lowest.values()))}.",),
    )


def lowest_value(value: MetricValue, alternatives: int, confidence: float) -> float:
    """The lower end of a value's interval at the confidence at which those of all alternatives hold together.

    The interval is read as Wilson's score interval, which it is for a share of right answers: `value - low =
    z sqrt(low (1 - low) / n)` gives the n behind it (fewer than the rows where they hang together, more where a metric
    varies less than right and wrong do), and that n the interval at the other confidence. Stretching the half interval
    in proportion would be too short near 1, where its length grows with z² and not with z.
    """
    if alternatives < 2 or not 0 < value.low < value.value:
        return value.low
    n = (z_value(confidence) / (value.value - value.low)) ** 2 * value.low * (1 - value.low)
    z = z_value(1 - (1 - confidence) / alternatives)
    share = min(value.value, 1.0)
    reach = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return (share + z * z / (2 * n) - reach) / (1 + z * z / n)


def _reason(
    value: MetricValue,
    lowest: float,
    reaching: Sequence[str],
    costs: Mapping[str, CandidateCost],
    target: float,
    confidence: float,
    alternatives: int,
) -> str:
    name = wording.capitalised(wording.candidate_name(value.candidate))
    interval = wording.interval(value.low, value.high, confidence)
    among = ""
    if alternatives > 1:
        among = f" (at least {wording.percent(lowest)}, allowing for the choice among {alternatives} alternatives)"
    text = (
        f"{name} has {wording.percent(value.value)} {wording.metric_name(value.metric)} ({interval}, n={value.n}): "
        f"surely at least the target of {wording.percent(target)}{among}. It is good enough, so nothing was trained."
    )
    others = [wording.candidate_name(other) for other in reaching if other != value.candidate]
    if not others:
        return text
    text += f" {wording.capitalised(', '.join(others))} surely reach{'es' if len(others) == 1 else ''} it too"
    cheapest = min(reaching, key=lambda other: _per_request(costs, other))
    if _per_request(costs, cheapest) < _per_request(costs, value.candidate):
        text += f"; {wording.candidate_name(cheapest)} costs less with every request"
    return f"{text}."


def _per_request(costs: Mapping[str, CandidateCost], name: str) -> float:
    return costs[name].per_1000_requests if name in costs else float("inf")


def _value(evaluation: Evaluation, metric: str) -> MetricValue:
    for value in evaluation.metrics:
        if value.metric == metric:
            return value
    raise RecipeError(
        f"{evaluation.candidate} has no value of {metric!r}",
        where="goal.metric",
        expected=", ".join(value.metric for value in evaluation.metrics),
    )
