"""The nouns of the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Decision = Literal[
    "ship_tuned", "keep_prompting", "use_retrieval", "use_trivial", "use_remote", "none_good_enough", "cannot_tell"
]


@dataclass(frozen=True, slots=True)
class CandidateCost:
    """What one candidate costs. Money in the recipe's currency, time in seconds."""

    candidate: str
    prompt_tokens: float
    answer_tokens: float
    latency_p50: float
    latency_p95: float
    per_1000_requests: float
    one_off: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision, and why. `rule` names the rule that fired; `rows_needed` is set only for cannot_tell."""

    decision: Decision
    candidate: str | None
    reason: str
    rule: str
    rows_needed: int | None
    metric: str
    best_alternative: str | None = None
    difference: Mapping[str, Any] | None = None
    break_even_requests: int | None = None
    caveats: tuple[str, ...] = ()
    assumptions: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The verdict in a line."""
        from tunesmith.verdict.headline import headline

        return headline(self)
