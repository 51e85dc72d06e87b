"""The nouns of the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tunesmith.evaluation.types import PairedDifference

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
class Volume:
    """How much is asked: requests a month, and the months over which costs are added up."""

    requests_per_month: float
    months: float = 12.0

    @property
    def requests(self) -> float:
        return self.requests_per_month * self.months


@dataclass(frozen=True, slots=True)
class Forgetting:
    """What the model can do beside its task, before and after tuning.

    perplexity_*: per token of general text that no training row holds. skill: tuned minus base on held-out general
    instructions; None where not measured, or where the base followed none of them, so that there was none to forget.
    instructions: how many were asked; skill_before, skill_after: the share that was followed.
    """

    perplexity_before: float
    perplexity_after: float
    skill: PairedDifference | None = None
    instructions: int = 0
    skill_before: float | None = None
    skill_after: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What tuned must keep, whatever it gains. Fractions.

    gates: by metric, the least that tuned must have (`{"valid_json": 0.99}`).
    slice_loss: how much worse than the best alternative it may be on one slice of the rows; None looks at no slices.
    perplexity_rise: by which share the perplexity of general text may rise; None lets it.
    skill_loss: how much it may lose on general instructions; None lets it lose.
    """

    gates: Mapping[str, float] = field(default_factory=dict)
    slice_loss: float | None = 0.0
    perplexity_rise: float | None = None
    skill_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision, and why.

    rule: the name of the rule that fired (`decision.RULES`).
    rows_needed: all test rows on which it would be decided; set only for cannot_tell, None where more rows would not
        help.
    vetoes: why tuned is not shipped although it would be by its gain.
    tied: alternatives that these rows cannot tell from the one recommended.
    sensitivity: within which bounds of what was asked the decision stays the same, as sentences.
    benefits: what tuning brings (`quality`, `prompts`, `base`), each with its `text` and numbers; empty where nothing
        was trained.
    """

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
    vetoes: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    sensitivity: tuple[str, ...] = ()
    benefits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __str__(self) -> str:
        """The verdict in a line."""
        from tunesmith.verdict.headline import headline

        return headline(self)
