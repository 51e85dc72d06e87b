"""What people and judges preferred, as it bears on the verdict: it may forbid shipping, and never ships by itself.

A metric sees one side of an answer; whoever reads both answers sees the rest. So a sure preference for the best
alternative is reason enough not to ship, whatever the metric says. The other way round it is not: people are asked
about one pair of candidates, often on a part of the rows, and nobody chose before what gain in preference is worth the
cost. Where they surely prefer tuned and the metric cannot tell, it is said, and the decision stays the metric's.
"""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.evaluation.rating import Preference
from tunesmith.verdict import wording


def surely_prefers(preference: Preference, candidate: str, other: str) -> bool:
    """Whether it counts, is about these two, and surely prefers `candidate`."""
    if {preference.a, preference.b} != {candidate, other}:
        return False
    return preference.surely_better is (preference.a == candidate)


def objections(preferences: Sequence[Preference], tuned: str, alternative: str) -> list[str]:
    """Sure preferences for the alternative, as sentences.

    A judge stands in for people, so it is not heard where people who were asked about the same two surely say the
    opposite.
    """
    against = [one for one in preferences if surely_prefers(one, alternative, tuned)]
    people_for = any(one.source == "people" and surely_prefers(one, tuned, alternative) for one in preferences)
    return [preference_sentence(one) for one in against if one.source == "people" or not people_for]


def remarks(
    preferences: Sequence[Preference], tuned: str, alternative: str | None, *, shipped: bool, said: Sequence[str] = ()
) -> list[str]:
    """What is told of preferences beside the verdict; `said` are sentences that stand in its reason already."""
    found = []
    for one in preferences:
        sentence = preference_sentence(one)
        if sentence in said:
            continue
        if not shipped and alternative is not None and surely_prefers(one, tuned, alternative):
            sentence += " That alone does not ship it: the metric does not show a gain that is worth it."
        found.append(sentence)
    return found


def preference_sentence(preference: Preference) -> str:
    """`People surely prefer few-shot to tuned: 62.0 % (95 % CI 53.1 to 70.2, n=120).`, or why it says nothing."""
    who = "People" if preference.source == "people" else "The judge"
    verb = "" if preference.source == "people" else "s"
    rate = preference.win_rate
    a, b = wording.candidate_name(preference.a), wording.candidate_name(preference.b)
    if rate is None:
        return f"{who} said nothing of {a} against {b}: {preference.why}."
    value, low, high = rate.value, rate.low, rate.high
    if value < 0.5:
        a, b, value, low, high = b, a, 1 - value, 1 - high, 1 - low
    shown = f"{wording.percent(value)} ({wording.interval(low, high, rate.confidence)}, n={rate.n})"
    if not preference.counts:
        return f"{who} prefer{verb} {a} to {b} in {shown}, which does not count: {preference.why}."
    if preference.surely_better is None:
        return f"{who} surely prefer{verb} neither {a} nor {b}: {a} wins {shown}."
    return f"{who} surely prefer{verb} {a} to {b}: {shown}."
