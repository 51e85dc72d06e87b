"""Worlds whose truth is known, for `verdict.py`: what candidates really score and cost, and rows drawn from them.

A world fixes the true score of tuned and of one to five alternatives, what each costs, and what is asked (the smallest
gain worth having, at times a target, at times a margin within which cheaper counts as better). Its rows are drawn from
that truth: a latent difficulty common to all candidates makes their answers to one row alike, as in real comparisons.
Nothing here knows the rules of `tunesmith.verdict`; what would be right to do follows from the true numbers alone
(`World.acceptable`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.evaluation.comparison import compare, metric_values
from tunesmith.evaluation.types import Evaluation, ScoredAnswer
from tunesmith.tasks.extraction import EntityF1
from tunesmith.tasks.metrics import MeanMetric
from tunesmith.tasks.types import FloatArray, Metric
from tunesmith.verdict.decision import decide
from tunesmith.verdict.types import CandidateCost, Verdict, Volume

TUNED = "tuned"
MONTHS = 12
CONFIDENCE, POWER = 0.95, 0.8
_NORMAL = NormalDist()
_PRICES = {  # of 1,000 requests; a guess of the order of magnitude, spread by a factor of two
    TUNED: 0.3,
    "zero_shot": 0.3,
    "few_shot": 1.0,
    "retrieval": 0.9,
    "trivial_tfidf": 0.001,
    "remote_large": 5.0,
}
_KINDS = tuple(name for name in _PRICES if name != TUNED)
_ROUNDING = 1e-9


@dataclass(frozen=True)
class World:
    """One truth. `values` are the true scores (fractions); `rows` those of the test set."""

    number: int
    metric: str
    values: Mapping[str, float]
    correlation: float
    spread: float
    rows: int
    min_gain: float
    target: float | None
    margin: float | None
    costs: Mapping[str, CandidateCost]
    requests_per_month: int

    @property
    def alternatives(self) -> list[str]:
        return [name for name in self.values if name != TUNED]

    @property
    def best(self) -> float:
        """The true score of the best alternative."""
        return max(self.values[name] for name in self.alternatives)

    @property
    def gain(self) -> float:
        """What tuned truly gains over the best alternative."""
        return self.values[TUNED] - self.best

    def total_cost(self, name: str) -> float:
        """What a candidate costs in a year at this volume."""
        cost = self.costs[name]
        return cost.one_off + MONTHS * self.requests_per_month * cost.per_1000_requests / 1000

    def reaches_target(self, name: str) -> bool:
        return self.target is None or self.values[name] >= self.target

    def cheaper(self, name: str, other: str) -> bool:
        return self.total_cost(name) < self.total_cost(other)

    def gain_asked(self, alternative: str) -> float:
        """What tuned has to gain over an alternative: it may lose the margin where it is cheaper."""
        if self.margin is not None and self.cheaper(TUNED, alternative):
            return -self.margin
        return self.min_gain

    def tuned_is_worth_it(self, alternative: str) -> bool:
        gain = self.values[TUNED] - self.values[alternative]
        return gain >= self.gain_asked(alternative) - _ROUNDING

    def in_the_running(self, name: str) -> bool:
        """Whether an alternative is as good as the best of them, or within the margin and cheaper."""
        lead = self.best - self.values[name]
        top = max(self.alternatives, key=lambda one: self.values[one])
        allowed = max(self.margin or 0.0, self.min_gain) if self.cheaper(name, top) else self.min_gain
        return lead < allowed - _ROUNDING

    def acceptable(self) -> frozenset[str]:
        """All candidates that it would be right to recommend; none where no candidate reaches the target.

        Tuned, where it is worth it against every alternative in the running; else those of them against which it is
        not. Candidates that miss the target are no choice, and tuned needs no gain where only it reaches the target.
        """
        running = [name for name in self.alternatives if self.in_the_running(name) and self.reaches_target(name)]
        if self.reaches_target(TUNED) and all(self.tuned_is_worth_it(name) for name in running):
            return frozenset({TUNED}) if running or self.gain > 0 else frozenset()
        return frozenset(name for name in running if not self.tuned_is_worth_it(name))

    @property
    def truth(self) -> str:
        """What is right, in a word: `ship`, `alternative` or `none`."""
        if not any(self.reaches_target(name) for name in self.values):
            return "none"
        return "ship" if TUNED in self.acceptable() else "alternative"

    def is_right(self, verdict: Verdict) -> bool:
        """Whether a verdict that decides is right; of `cannot_tell` it is not asked."""
        if verdict.decision == "none_good_enough":
            return self.truth == "none"
        return verdict.candidate in self.acceptable()


def draw_world(number: int, seed: int) -> World:
    """World `number`: even ones truly have tuned as winner, odd ones do not."""
    rng = np.random.default_rng([seed, number])
    while True:
        world = _draw(number, rng)
        if world.values[TUNED] <= 0.99 and (world.truth == "ship") == (number % 2 == 0):
            return world


def _draw(number: int, rng: np.random.Generator) -> World:
    min_gain = float(rng.choice([0.005, 0.01, 0.02, 0.05]))
    gain = {
        0: lambda: 0.0,
        1: lambda: -abs(rng.normal(0, 0.08)),
        2: lambda: rng.uniform(0, min_gain),
        3: lambda: min_gain + rng.exponential(0.08),
    }[int(rng.choice(4, p=[1 / 6, 1 / 6, 1 / 6, 1 / 2]))]()
    names = list(rng.permutation(_KINDS)[: rng.integers(1, len(_KINDS) + 1)])
    best = rng.uniform(0.3, 0.95)
    values = {TUNED: float(best + gain), names[0]: float(best)}
    for name in names[1:]:
        values[str(name)] = max(float(best - (rng.exponential(0.08) if rng.random() < 0.7 else 0.0)), 0.02)
    top = max(values.values())
    return World(
        number=number,
        metric=str(rng.choice(["accuracy", "rouge_l", "entity_f1"], p=[0.5, 0.25, 0.25])),
        values=values,
        correlation=float(rng.uniform(0.2, 0.8)),
        spread=float(rng.uniform(0.2, 0.5)),
        rows=round(math.exp(rng.uniform(math.log(50), math.log(2000)))),
        min_gain=min_gain,
        target=float(np.clip(top + rng.uniform(-0.2, 0.2), 0.05, 0.98)) if rng.random() < 0.3 else None,
        margin=float(rng.choice([0.01, 0.02, 0.03, 0.05])) if rng.random() < 0.2 else None,
        costs={name: _cost(name, rng) for name in values},
        requests_per_month=round(math.exp(rng.uniform(math.log(1e3), math.log(1e6)))),
    )


def _cost(name: str, rng: np.random.Generator) -> CandidateCost:
    price = _PRICES[name] * math.exp(rng.normal(0, 0.7))
    one_off = 250 * math.exp(rng.normal(0, 0.7)) if name == TUNED else 0.0
    return CandidateCost(name, 100.0, 10.0, 0.5, 1.0, price, one_off)


# Rows.

Parts = Mapping[str, npt.NDArray[np.float64]]
"""By candidate, per row: a score [n], or for the F1 true positives, false positives and false negatives [n, 3]."""


def draw_rows(world: World, n: int, seed: Sequence[int]) -> Parts:
    """n answers of every candidate, alike from row to row by the row's difficulty."""
    rng = np.random.default_rng(list(seed))
    shared = rng.standard_normal(n)
    items = 1 + rng.poisson(4, n)
    found = {}
    for name, value in world.values.items():
        latent = math.sqrt(world.correlation) * shared + math.sqrt(1 - world.correlation) * rng.standard_normal(n)
        if world.metric == "accuracy":
            found[name] = (latent < _NORMAL.inv_cdf(value)).astype(float)
            continue
        score = np.clip(_centre(value, world.spread) + world.spread * latent, 0, 1)
        if world.metric == "rouge_l":
            found[name] = score
        else:  # as many items answered as expected, so that the F1 is the share of items found
            hits = rng.binomial(items, score).astype(float)
            found[name] = np.stack([hits, items - hits, items - hits], axis=1)
    return found


def _centre(mean: float, spread: float) -> float:
    """The mean of a normal variable whose values, cut off at 0 and 1, have this mean; by bisection."""

    def cut(centre: float) -> float:
        def below(limit: float) -> float:  # E[min(x, limit)]
            z = (limit - centre) / spread
            return centre * _NORMAL.cdf(z) - spread * _NORMAL.pdf(z) + limit * (1 - _NORMAL.cdf(z))

        return below(1.0) - below(0.0)

    low, high = -5.0, 6.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cut(middle) < mean else (low, middle)
    return (low + high) / 2


def detectable_gain(world: World, seed: int) -> float:
    """The smallest true gain over the best alternative that this test set shows with the power asked for.

    (z_confidence + z_power) standard errors; the variance per row is that of 20,000 other rows of this world.
    """
    parts = draw_rows(world, 20_000, (seed, world.number, 2))
    best = max(world.alternatives, key=lambda name: world.values[name])
    weights = parts[best][:, 0] + parts[best][:, 2] if world.metric == "entity_f1" else np.ones(20_000)
    scores = {name: _hits(world, parts[name]) for name in (TUNED, best)}
    residuals = scores[TUNED] - scores[best] - world.gain * weights
    error = float(residuals.std() / weights.mean()) / math.sqrt(world.rows)
    return (_NORMAL.inv_cdf(0.5 + CONFIDENCE / 2) + _NORMAL.inv_cdf(POWER)) * error


def _hits(world: World, part: FloatArray) -> FloatArray:
    return part[:, 0] if world.metric == "entity_f1" else part


# From rows to a verdict, by the code that every run uses.


class _CountF1(EntityF1):
    """The project's entity F1 over answers that are counts already."""

    def statistics(self, parsed: Sequence[Any], expected: Sequence[Any]) -> FloatArray:
        return np.array(parsed, dtype=float).reshape(-1, 3)


@dataclass(frozen=True)
class _Task:
    """As much of a task as comparing needs: its metric."""

    metrics: Mapping[str, Metric]
    name: str = "simulated"

    def target(self, example: object) -> None:
        return None


_METRICS: Mapping[str, Metric] = {
    "accuracy": MeanMetric("accuracy", binary=True, score=lambda parsed, _: float(parsed)),
    "rouge_l": MeanMetric("rouge_l", binary=False, score=lambda parsed, _: float(parsed)),
    "entity_f1": _CountF1(),
}


def verdict_on(world: World, parts: Parts, *, resamples: int, seed: int) -> Verdict:
    """What is decided from these rows: `compare` and `decide` as in every run."""
    task: Any = _Task({world.metric: _METRICS[world.metric]})
    settings: dict[str, Any] = {"resamples": resamples, "confidence": CONFIDENCE, "seed": seed}
    evaluations = []
    for name, part in parts.items():
        rows = _scored(world.metric, part)
        evaluations.append(
            Evaluation(name, rows, metric_values(name, rows, task, **settings), 0.5, 1.0, 1.0),
        )
    comparison = compare(evaluations, task, world.metric, **settings)
    return decide(
        {one.candidate: one for one in evaluations},
        comparison.differences,
        metric=world.metric,
        min_gain=world.min_gain,
        target=world.target,
        confidence=CONFIDENCE,
        power=POWER,
        costs=world.costs,
        margin=world.margin,
        volume=Volume(world.requests_per_month, MONTHS),
    )


def _scored(metric: str, part: FloatArray) -> tuple[ScoredAnswer, ...]:
    """Rows as they stand in `evaluation/<candidate>.jsonl`."""
    if metric == "accuracy":
        return tuple(map(_right_or_wrong, range(len(part)), part.tolist()))
    scores = _METRICS[metric].item(part).tolist() if metric == "entity_f1" else part.tolist()
    return tuple(map(_answer, range(len(part)), part.tolist(), scores, repeat(metric)))


def _answer(place: int, parsed: Any, score: float, metric: str) -> ScoredAnswer:
    return ScoredAnswer(str(place), "", "", "", parsed, {metric: score}, 100, 10, True)


@cache
def _right_or_wrong(place: int, score: float) -> ScoredAnswer:
    """The same row for all worlds: making millions anew would take most of the time."""
    return _answer(place, score, score, "accuracy")


def joined(first: Parts, more: Parts) -> Parts:
    """The same rows with others added."""
    return {name: np.concatenate([first[name], more[name]]) for name in first}
