"""Small measured cases to decide, written as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.evaluation.types import Evaluation, MetricValue, PairedDifference, ScoredAnswer
from tunesmith.verdict.decision import decide
from tunesmith.verdict.types import CandidateCost, Verdict

Measured = tuple[float, float, float]
"""Value with its interval: (value, low, high)."""


def row(index: int, score: float, metric: str = "accuracy", **more: Any) -> ScoredAnswer:
    values: dict[str, Any] = {
        "id": f"r{index}", "prompt": "p", "answer": "a", "expected": "e", "parsed": "a", "scores": {metric: score},
        "prompt_tokens": 20, "answer_tokens": 3, "stopped": True,
    }  # fmt: skip
    return ScoredAnswer(**{**values, **more})


def evaluation(
    name: str, measured: Measured, n: int = 200, *, latency: float = 0.1, alike: bool = False, **notes: Any
) -> Evaluation:
    """As many rows right as the value says; others than those of tuned, unless `alike`."""
    value, low, high = measured
    shift = 0 if alike or name == "tuned" else n // 10
    rows = tuple(row(i, float((i + shift) % n < round(value * n))) for i in range(n))
    return Evaluation(
        name, rows, (MetricValue(name, "accuracy", value, low, high, n),), latency, 2 * latency, 1.0, notes
    )


def pair(
    b: str, measured: Measured, n: int = 200, *, p_value: float | None = None, a: str = "tuned"
) -> PairedDifference:
    difference, low, high = measured
    return PairedDifference(a, b, "accuracy", difference, low, high, p_value, n)


def cost(candidate: str, per_1000: float, one_off: float = 0.0) -> CandidateCost:
    return CandidateCost(candidate, 10.0, 2.0, 0.1, 0.2, per_1000, one_off)


def decided(
    evaluations: Sequence[Evaluation], differences: Sequence[PairedDifference], *, min_gain: float = 0.01,
    target: float | None = None, costs: Mapping[str, CandidateCost] | None = None, **more: Any,
) -> Verdict:  # fmt: skip
    return decide(
        {e.candidate: e for e in evaluations}, differences, metric="accuracy", min_gain=min_gain, target=target,
        confidence=0.95, power=0.8, costs=costs or {}, **more,
    )  # fmt: skip
