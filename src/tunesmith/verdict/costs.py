"""What a candidate costs: tokens, time and money, from what was measured and the prices in the recipe.

Requests are counted one at a time, as they were when latency was measured: a machine that answers one request is
taken to be busy with it for the median latency. Batching would lower the cost of every candidate that runs here.

    cost per 1,000 requests = 1000 × latency p50 [s] / 3600 × hardware_per_hour
    one-off cost of tuning  = training [s] / 3600 × hardware_per_hour + hours_of_work × work_per_hour
    break-even [requests]   = one-off / (alternative per request − tuned per request)
    cost over a time        = one-off + requests × cost per request

A candidate behind an endpoint costs its tokens instead: prompt and answer tokens × their prices per million.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from tunesmith.evaluation.types import Evaluation
from tunesmith.recipe.schema import Prices
from tunesmith.verdict.types import CandidateCost

FORMULAS = {
    "cost per 1,000 requests": "1,000 × median latency × price of an hour of this machine, one request at a time",
    "cost per 1,000 requests of a model behind an endpoint": "measured prompt and answer tokens × their prices",
    "one-off cost of tuning": "training time × price of an hour of this machine + human hours × their price",
    "break-even": "one-off cost of tuning / (cost per request of the alternative − cost per request of tuned)",
}


def is_tuned(candidate: str, tuned: str = "tuned") -> bool:
    """Whether a candidate is the tuned model or an exported copy of it (`tuned_<format>`)."""
    return candidate == tuned or candidate.startswith(f"{tuned}_")


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """What an endpoint takes for a million tokens, in the recipe's currency."""

    prompt: float
    answer: float


def candidate_costs(
    evaluations: Mapping[str, Evaluation],
    *,
    prices: Prices,
    training_seconds: float,
    tuned: str = "tuned",
    token_prices: Mapping[str, TokenPrice] | None = None,
) -> dict[str, CandidateCost]:
    """The cost of every candidate, in the order of `evaluations`.

    Only what was tuned has a one-off cost: `training_seconds` of machine and the human hours for data and review.
    `token_prices` are those of candidates behind an endpoint, by name; the others are charged by time.
    """
    one_off = training_seconds / 3600 * prices.hardware_per_hour + prices.hours_of_work * prices.work_per_hour
    found = {}
    for name, evaluation in evaluations.items():
        prompt_tokens = fmean(row.prompt_tokens for row in evaluation.rows) if evaluation.rows else 0.0
        answer_tokens = fmean(row.answer_tokens for row in evaluation.rows) if evaluation.rows else 0.0
        if price := (token_prices or {}).get(name):
            per_1000 = (prompt_tokens * price.prompt + answer_tokens * price.answer) / 1000
        else:
            per_1000 = 1000 * evaluation.latency_p50 / 3600 * prices.hardware_per_hour
        found[name] = CandidateCost(
            candidate=name,
            prompt_tokens=prompt_tokens,
            answer_tokens=answer_tokens,
            latency_p50=evaluation.latency_p50,
            latency_p95=evaluation.latency_p95,
            per_1000_requests=per_1000,
            one_off=one_off if is_tuned(name, tuned) else 0.0,
        )
    return found


def burden(candidate: str, costs: Mapping[str, CandidateCost]) -> tuple[bool, float, str]:
    """By what candidates of equal score are put in order, the lightest first.

    What runs here comes before an endpoint, then few tokens before many. These repeat from run to run; measured time
    and what it costs do not, and would recommend now one, now the other.
    """
    cost = costs.get(candidate)
    tokens = cost.prompt_tokens + cost.answer_tokens if cost is not None else math.inf
    return candidate.startswith("remote_"), tokens, candidate


def total_cost(cost: CandidateCost, requests: float) -> float:
    """One-off cost and that of so many requests."""
    return cost.one_off + requests * cost.per_1000_requests / 1000


def break_even(tuned: CandidateCost, alternative: CandidateCost) -> int | None:
    """Requests after which tuning has paid for itself by cheaper requests; None where it never does."""
    one_off = tuned.one_off - alternative.one_off
    saved_per_request = (alternative.per_1000_requests - tuned.per_1000_requests) / 1000
    if one_off <= 0 and saved_per_request >= 0:
        return 0
    if saved_per_request <= 0:
        return None
    return math.ceil(one_off / saved_per_request)


def months(requests: int, requests_per_month: int) -> float:
    """How long `requests` take at the expected volume."""
    return requests / requests_per_month
