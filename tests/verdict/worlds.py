"""Worlds whose truth is known: candidates answer right with given chances, correlated from row to row."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from tunesmith.evaluation.types import Evaluation, MetricValue, PairedDifference, ScoredAnswer
from tunesmith.verdict.decision import decide
from tunesmith.verdict.types import Verdict

Hits = Mapping[str, npt.NDArray[np.bool_]]
_NORMAL = NormalDist()


def draw_hits(rng: np.random.Generator, chances: Mapping[str, float], n: int, correlation: float) -> Hits:
    """Right or wrong [n] per candidate: a latent difficulty of each row is shared by all candidates."""
    shared = rng.standard_normal(n)
    hits = {}
    for name, chance in chances.items():
        latent = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * rng.standard_normal(n)
        hits[name] = latent < _NORMAL.inv_cdf(chance)
    return hits


@cache
def _row(index: int, hit: bool) -> ScoredAnswer:
    return ScoredAnswer(
        id=str(index), prompt="", answer="", expected="", parsed=None, scores={"accuracy": float(hit)},
        prompt_tokens=10, answer_tokens=1, stopped=True,
    )  # fmt: skip


def evaluation(name: str, hits: npt.NDArray[np.bool_], z: float = 1.96) -> Evaluation:
    """Accuracy with its Wilson interval."""
    n, p = len(hits), float(hits.mean())
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return Evaluation(
        candidate=name,
        rows=tuple(_row(i, bool(hit)) for i, hit in enumerate(hits)),
        metrics=(MetricValue(name, "accuracy", p, low, high, n),),
        latency_p50=0.1,
        latency_p95=0.2,
        seconds=1.0,
    )


def difference(rng: np.random.Generator, a: str, b: str, hits: Hits, confidence: float = 0.95) -> PairedDifference:
    """Percentile bootstrap of the paired rows, and McNemar's exact test."""
    n = len(hits[a])
    only_a, only_b = int(np.sum(hits[a] & ~hits[b])), int(np.sum(hits[b] & ~hits[a]))
    shares = np.array([only_a, only_b, n - only_a - only_b]) / n
    resampled = rng.multinomial(n, shares, size=1000)
    low, high = np.quantile((resampled[:, 0] - resampled[:, 1]) / n, [(1 - confidence) / 2, (1 + confidence) / 2])
    p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return PairedDifference(a, b, "accuracy", (only_a - only_b) / n, float(low), float(high), p, n)


def verdict_of(
    rng: np.random.Generator, hits: Hits, *, min_gain: float = 0.01, target: float | None = None, power: float = 0.8
) -> Verdict:
    return decide(
        {name: evaluation(name, values) for name, values in hits.items()},
        [difference(rng, "tuned", name, hits) for name in hits if name != "tuned"],
        metric="accuracy", min_gain=min_gain, target=target, confidence=0.95, power=power, costs={},
    )  # fmt: skip
