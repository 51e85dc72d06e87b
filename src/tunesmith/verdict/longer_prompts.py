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
    """One sentence for each such candidate whose prompts really are longer, as `prompt_costs` finds them."""
    return [
        f"The {LONGER_PROMPTS[one.candidate]} in the prompts of {wording.candidate_name(one.candidate)} make them "
        f"{one.times:.1f} times as long ({wording.count(round(one.extra_tokens))} tokens more), {_adds(one, currency)}."
        for one in prompt_costs(costs, requests_per_month)
        if round(one.extra_tokens) > 0
    ]


def _adds(one: PromptCost, currency: str) -> str:
    """What that costs; where time is paid for, the longer prompt may happen to be answered sooner."""
    each, month = (wording.money(abs(amount), currency) for amount in (one.extra_per_1000, one.extra_per_month))
    if one.extra_per_1000 < 0:
        return f"yet 1,000 requests, by the latency measured, cost {each} less"
    return f"which adds {each} to 1,000 requests and {month} to a month"
