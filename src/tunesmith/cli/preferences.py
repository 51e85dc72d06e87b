"""One line about what people or a judge preferred."""

from __future__ import annotations

from tunesmith.evaluation.rating import Preference
from tunesmith.verdict.wording import candidate_name, capitalised, count, interval, percent


def preference_line(preference: Preference) -> str:
    """`People: tuned is preferred to few-shot in 61.2 % (95 % CI 52.0 to 69.6; 120 pairs)`, and whether it counts."""
    who = "People" if preference.source == "people" else "Judge"
    a, b = candidate_name(preference.a), candidate_name(preference.b)
    rate = preference.win_rate
    if rate is None:
        return f"{who}: no result for {a} against {b}; {preference.why}"
    found = (
        f"{who}: {a} is preferred to {b} in {percent(rate.value)} "
        f"({interval(rate.low, rate.high, rate.confidence)}; {count(rate.wins)} won, {count(rate.ties)} tied, "
        f"{count(rate.losses)} lost)"
    )
    if not preference.counts:
        return f"{found}. Does not count: {preference.why}"
    return f"{found}. {_conclusion(preference)}; {preference.why}"


def _conclusion(preference: Preference) -> str:
    better = preference.surely_better
    if better is None:
        return "Neither is surely better"
    return f"{capitalised(candidate_name(preference.a if better else preference.b))} is surely better"
