"""Worlds with known truth: how often the verdict is wrong."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.verdict.worlds import draw_hits, verdict_of

ALTERNATIVES = ("zero_shot", "few_shot", "retrieval")


def verdicts(
    seed: int, worlds: int, n: int, gain: float, *, spread: float = 0.0, correlation: float = 0.5
) -> Counter[str]:
    """Decisions in worlds where tuned is better than the best alternative by `gain`; those are `spread` apart."""
    rng = np.random.default_rng(seed)
    chances = {"tuned": 0.7 + gain} | {name: 0.7 - spread * i for i, name in enumerate(ALTERNATIVES)}
    return Counter(
        verdict_of(rng, draw_hits(rng, chances, n, correlation), min_gain=0.02).decision for _ in range(worlds)
    )


@pytest.mark.parametrize(("n", "spread"), [(60, 0.0), (60, 0.2), (240, 0.2)])
def test_what_is_not_better_is_hardly_ever_shipped(n: int, spread: float) -> None:
    worlds = 400
    shipped = verdicts(1, worlds, n, 0.0, spread=spread)["ship_tuned"]
    # At most 2.5 % in truth; four standard deviations of room for the draw.
    assert shipped / worlds <= 0.025 + 4 * (0.025 * 0.975 / worlds) ** 0.5


def test_a_gain_worth_having_is_hardly_ever_denied() -> None:
    """At a true gain of exactly `min_gain`, over three equally good alternatives."""
    worlds = 400
    found = verdicts(2, worlds, 150, 0.02)
    denied = worlds - found["ship_tuned"] - found["cannot_tell"]
    assert denied / worlds <= 0.05


def test_clear_worlds_are_decided() -> None:
    better = verdicts(3, 100, 400, 0.15, spread=0.05)
    assert better["ship_tuned"] >= 95
    worse = verdicts(4, 100, 400, -0.15, spread=0.05)
    assert worse["keep_prompting"] >= 95


def test_the_rows_asked_for_mostly_decide() -> None:
    rng = np.random.default_rng(5)
    outcomes = []
    for world in range(60):
        gain = 0.0 if world % 2 else float(rng.normal(0, 0.1))
        chances = {"tuned": 0.7 + gain, "few_shot": 0.7}
        hits = draw_hits(rng, chances, 100, 0.5)
        verdict = verdict_of(rng, hits, min_gain=0.03)
        if verdict.rows_needed is None:
            continue
        more = draw_hits(rng, chances, verdict.rows_needed - 100, 0.5)
        everything = {name: np.concatenate([hits[name], more[name]]) for name in hits}
        outcomes.append(verdict_of(rng, everything, min_gain=0.03).decision != "cannot_tell")
    assert len(outcomes) >= 20
    assert float(np.mean(outcomes)) >= 0.65
