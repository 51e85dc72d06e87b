"""What examples or passages in the prompt cost with every request: the price of not tuning that is overlooked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tunesmith.verdict import wording
from tunesmith.verdict.types import CandidateCost

LONGER_PROMPTS: Mapping[str, str] = {"few_shot": "examples", "retrieval": "examples", "documents": "passages"}
"""Candidates that are the base with more in the prompt, and what that is."""


@dataclass(frozen=True, slots=True)
class PromptCost:
    """What a longer prompt costs with every request, against the same model asked with its instruction alone.

    extra_tokens: prompt tokens more per request. times: how many times as long the prompt is.
    """

    candidate: str
    extra_tokens: float
    times: float
    extra_per_1000: float
    extra_latency: float
    extra_per_month: float


def prompt_costs(costs: Mapping[str, CandidateCost], requests_per_month: float) -> list[PromptCost]:
    """What is in the prompts beside the question costs, against `zero_shot`: the same base without it.

    Empty where zero-shot was not measured: another model's prompt is no measure.
    """
    plain = costs.get("zero_shot")
    if plain is None or plain.prompt_tokens == 0:
        return []
    return [
        PromptCost(
            candidate=name,
            extra_tokens=costs[name].prompt_tokens - plain.prompt_tokens,
            times=costs[name].prompt_tokens / plain.prompt_tokens,
            extra_per_1000=costs[name].per_1000_requests - plain.per_1000_requests,
            extra_latency=costs[name].latency_p50 - plain.latency_p50,
            extra_per_month=(costs[name].per_1000_requests - plain.per_1000_requests) * requests_per_month / 1000,
        )
        for name in costs
        if name in LONGER_PROMPTS
    ]


def longer_prompts_sentences(costs: Mapping[str, CandidateCost], requests_per_month: float, currency: str) -> list[str]:
    """One sentence for each such candidate, as `prompt_costs` finds them."""
    return [
        f"The {LONGER_PROMPTS[one.candidate]} in the prompts of {wording.candidate_name(one.candidate)} make them "
        f"{one.times:.1f} times as long ({wording.count(round(one.extra_tokens))} tokens more), which adds "
        f"{_signed(one.extra_per_1000, currency)} to 1,000 requests and "
        f"{_signed(one.extra_per_month, currency)} to a month."
        for one in prompt_costs(costs, requests_per_month)
    ]


def _signed(amount: float, currency: str) -> str:
    """An extra cost; below zero where the longer prompt happened to be answered sooner."""
    return f"{'-' if amount < 0 else ''}{wording.money(abs(amount), currency)}"
