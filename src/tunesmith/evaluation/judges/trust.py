"""Whether a judge counts: measured on rows that people labelled, before its opinion on the others is asked for.

A judge that guesses still gives a win rate with a narrow interval, around the wrong number. So it has to agree with
people better than chance would, on labels it was not shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.evaluation.judges.judged import JudgedPair
from tunesmith.evaluation.rating.agreement import Agreement, chance_p_value, cohen_kappa
from tunesmith.evaluation.rating.win_rate import Outcome

FEWEST_LABELS = 20
"""With fewer labelled pairs even a good judge can hardly be told from chance."""
MOST_UNJUDGED = 0.1
"""A judge that leaves a larger share of the pairs without an outcome chooses its own test set."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Whether a judge counts, and why (not). agreement: Cohen's kappa with people; p_value: of agreeing by chance."""

    counts: bool
    why: str
    agreement: Agreement | None = None
    p_value: float | None = None

    def to_dict(self) -> dict[str, Any] | None:
        """The agreement as JSON values, None where it was not measured."""
        return {**self.agreement.to_dict(), "p_value": self.p_value} if self.agreement else None


def measure_trust(
    judged: Sequence[JudgedPair],
    labels: Mapping[str, Outcome],
    *,
    confidence: float = 0.95,
    least_kappa: float = 0.0,
    seed: int = 0,
) -> Trust:
    """Compare a judge's outcomes with what people said of the same pairs, by pair key.

    It counts if at least `FEWEST_LABELS` labelled pairs have an outcome, at most `MOST_UNJUDGED` have none, agreement
    is better than chance (one-sided permutation test at half of one minus the confidence, and the lower end of kappa's
    interval above 0), and kappa is at least `least_kappa`.
    """
    asked = [one for one in judged if one.pair.key in labels]
    known = [(one.outcome, labels[one.pair.key]) for one in asked if one.outcome is not None]
    if len(asked) - len(known) > MOST_UNJUDGED * len(asked):
        return Trust(False, f"{len(asked) - len(known)} of {len(asked)} labelled pairs got no outcome from it")
    if len(known) < FEWEST_LABELS:
        return Trust(False, f"only {len(known)} pairs have a human label; at least {FEWEST_LABELS} are needed")
    own, human = [str(one) for one, _ in known], [str(label) for _, label in known]
    agreement = cohen_kappa(own, human, confidence=confidence)
    if agreement.value is None or agreement.low is None:
        return Trust(False, "people and judge gave all pairs one label, which shows nothing", agreement)
    p_value = chance_p_value(own, human, seed=seed)
    told = f"Cohen's kappa {agreement.value:.2f} on {agreement.n} pairs"
    if p_value > (1 - confidence) / 2 or agreement.low <= 0:
        return Trust(False, f"it agrees with people no better than chance: {told}", agreement, p_value)
    if agreement.value < least_kappa:
        return Trust(False, f"{told} is under the {least_kappa:g} asked for", agreement, p_value)
    return Trust(True, f"it agrees with people better than chance: {told}", agreement, p_value)
