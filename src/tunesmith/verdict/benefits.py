"""The three things tuning can bring: better answers, shorter prompts, and a base that several tasks share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.evaluation.types import PairedDifference
from tunesmith.verdict import wording
from tunesmith.verdict.types import CandidateCost

PROMPTS = ("zero_shot", "few_shot", "retrieval", "documents")
"""Kinds of candidates that are the untuned base with a prompt: what a tuned model's shorter prompt is held against."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Of a tuned model: `tuned` bytes on disk, and the `base` bytes in memory that it is put on if `shared`."""

    tuned: int
    base: int
    shared: bool


def is_prompt(candidate: str) -> bool:
    """Whether a candidate is the base with a prompt, in whatever way it answers."""
    return any(candidate == kind or candidate.startswith(f"{kind}_") for kind in PROMPTS)


def benefits_of(
    values: Mapping[str, float],
    pair: PairedDifference | None,
    costs: Mapping[str, CandidateCost],
    *,
    metric: str,
    confidence: float,
    requests_per_month: float | None,
    weights: Weights | None,
    tuned: str = "tuned",
) -> dict[str, dict[str, Any]]:
    """`quality`, `prompts` and `base`, each with a sentence (`text`) and the numbers behind it; unknown ones left out.

    values: of the deciding metric by candidate. pair: tuned minus the best alternative.
    """
    found: dict[str, dict[str, Any]] = {}
    if pair is not None:
        found["quality"] = {
            "text": f"Quality: {wording.points(pair.difference)} {wording.metric_name(metric)} over "
            f"{wording.candidate_name(pair.b)} ({wording.interval(pair.low, pair.high, confidence)}).",
            "over": pair.b,
            "difference": pair.difference,
            "low": pair.low,
            "high": pair.high,
        }
    prompts = [name for name in values if is_prompt(name) and name in costs]
    if prompts and tuned in costs:
        best = max(prompts, key=lambda name: (values[name], -costs[name].prompt_tokens, name))
        found["prompts"] = _prompts(costs[tuned], costs[best], requests_per_month)
    if weights is not None:
        found["base"] = _base(weights)
    return found


def _prompts(tuned: CandidateCost, best: CandidateCost, requests_per_month: float | None) -> dict[str, Any]:
    saved = best.prompt_tokens - tuned.prompt_tokens
    more = "fewer" if saved >= 0 else "more"
    text = (
        f"Prompts: {wording.count(round(abs(saved)))} tokens {more} per request than "
        f"{wording.candidate_name(best.candidate)}, the best prompt ({wording.count(round(tuned.prompt_tokens))} in "
        f"place of {wording.count(round(best.prompt_tokens))})"
    )
    a_month = None if requests_per_month is None else saved * requests_per_month
    if a_month is not None:
        text += f", {wording.count(round(abs(a_month)))} a month"
    return {"text": f"{text}.", "than": best.candidate, "tokens_saved": saved, "tokens_saved_per_month": a_month}


def _base(weights: Weights) -> dict[str, Any]:
    if weights.shared:
        text = (
            f"Base: shared. The adapter takes {_size(weights.tuned)} beside the {_size(weights.base)} of the base, "
            "which serves other adapters too."
        )
    else:
        text = f"Base: not shared. The tuned model is a whole one of {_size(weights.tuned)}."
    return {"text": text, "shared": weights.shared, "tuned_bytes": weights.tuned, "base_bytes": weights.base}


def _size(count: int) -> str:
    amount = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
