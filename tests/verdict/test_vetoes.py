from __future__ import annotations

import numpy as np
import pytest

from tests.verdict.cases import decided, pair, row
from tunesmith.errors import RecipeError
from tunesmith.evaluation.types import Evaluation, MetricValue
from tunesmith.verdict.headline import headline
from tunesmith.verdict.types import Forgetting, Limits, Verdict
from tunesmith.verdict.vetoes import slice_differences


def scored(name: str, scores: np.ndarray, valid: float = 1.0) -> Evaluation:
    rows = tuple(row(i, float(score)) for i, score in enumerate(scores))
    value, n = float(scores.mean()), len(scores)
    metrics = (MetricValue(name, "accuracy", value, value - 0.04, value + 0.04, n),)
    return Evaluation(name, rows, (*metrics, MetricValue(name, "valid_json", valid, valid, valid, n)), 0.1, 0.2, 1.0)


TUNED = np.ones(200)
TUNED[:20] = 0
OTHER = np.ones(200)
OTHER[20:80] = 0
SLICES = {
    "label refund": [f"r{i}" for i in range(20)],
    "label card": [f"r{i}" for i in range(20, 110)],
    "label loan": [f"r{i}" for i in range(110, 200)],
}
"""Tuned is better by 20 points, yet wrong on every row of one label that the alternative gets right."""


def verdict(*, valid: float = 1.0, other_valid: float = 1.0, target: float | None = None, **more: object) -> Verdict:
    return decided(
        [scored("tuned", TUNED, valid), scored("few_shot", OTHER, other_valid)],
        [pair("few_shot", (0.2, 0.12, 0.28), p_value=1e-6)],
        target=target,
        **more,  # type: ignore[arg-type]
    )


def test_without_limits_it_is_shipped() -> None:
    found = verdict()
    assert (found.decision, found.rule, found.vetoes) == ("ship_tuned", "better_by_min_gain", ())


def test_a_slice_that_surely_got_worse_forbids_it() -> None:
    found = verdict(slices=SLICES)
    assert (found.decision, found.candidate, found.rule) == ("keep_prompting", "few_shot", "vetoed")
    assert found.vetoes == (
        "On label refund it is surely worse than few-shot: -100.0 points on 20 rows (p < 0.001, adjusted for all "
        "slices).",
    )
    assert found.vetoes[0] in found.reason
    assert found.sensitivity == ()
    assert headline(found).startswith("Keep prompting (few-shot): tuned brings +20.0 points")
    assert verdict(slices=SLICES, limits=Limits(slice_loss=None)).decision == "ship_tuned"


def test_where_the_alternative_misses_the_target_none_is_left() -> None:
    found = verdict(slices=SLICES, target=0.8)
    assert (found.decision, found.candidate, found.rule) == ("none_good_enough", None, "vetoed")
    assert headline(found) == "None is good enough: tuned may not be shipped"


def test_slices_of_few_rows_are_left_out_and_p_values_are_adjusted_for_the_others() -> None:
    a, b = scored("tuned", TUNED), scored("few_shot", OTHER)
    alone = slice_differences(a, b, "accuracy", {"label refund": SLICES["label refund"]})
    found = slice_differences(a, b, "accuracy", {**SLICES, "tiny": ["r0", "r1"]})
    assert [one.name for one in found] == ["label refund", "label loan", "label card"]
    # Of three slices the second smallest p is doubled; the tiny slice does not count.
    assert found[0].p_value == pytest.approx(2 * alone[0].p_value)
    assert found[0].n == 20


def test_many_slices_of_an_equally_good_model_rarely_forbid_it() -> None:
    """Forty labels, no true regression on any: Holm keeps false vetoes to a few in a hundred, graded scores or not."""
    rng = np.random.default_rng(0)
    slices = {f"label {k}": [f"r{i}" for i in range(25 * k, 25 * (k + 1))] for k in range(40)}
    limits = Limits()
    vetoed = 0
    for _ in range(40):
        a, b = (rng.random(1000) < 0.8 for _ in range(2))
        worst = slice_differences(scored("tuned", a), scored("few_shot", b), "accuracy", slices)
        vetoed += any(one.difference < -(limits.slice_loss or 0) and one.p_value <= 0.05 for one in worst)
    assert vetoed <= 3
    graded = slice_differences(scored("tuned", np.full(50, 0.4)), scored("few_shot", np.full(50, 0.7)), "accuracy",
                               {"all": [f"r{i}" for i in range(50)]})  # fmt: skip
    assert graded[0].difference == pytest.approx(-0.3)
    assert graded[0].p_value < 0.001


def test_a_gate_that_is_missed_forbids_it() -> None:
    found = verdict(valid=0.97, limits=Limits(gates={"valid_json": 0.99}))
    assert found.rule == "vetoed"
    assert found.vetoes == ("Its valid JSON of 97.0 % is below the 99.0 % required.",)
    assert verdict(valid=0.99, limits=Limits(gates={"valid_json": 0.99})).decision == "ship_tuned"
    with pytest.raises(RecipeError, match="rouge_l"):
        verdict(limits=Limits(gates={"rouge_l": 0.5}))


def test_forgetting_forbids_it_where_it_is_limited() -> None:
    worse = Forgetting(8.0, 10.0)
    assert verdict(forgetting=worse).decision == "ship_tuned"
    found = verdict(forgetting=worse, limits=Limits(perplexity_rise=0.2))
    assert "perplexity rose by 25.0 %, from 8 to 10; at most 20.0 % is allowed" in found.vetoes[0]
    lost = Forgetting(8.0, 8.0, skill=pair("base", (-0.1, -0.14, -0.06), 150))
    assert "-10.0 points against the base on 150" in verdict(forgetting=lost, limits=Limits(skill_loss=0.05)).vetoes[0]
    assert verdict(forgetting=lost, limits=Limits(skill_loss=0.08)).decision == "ship_tuned"


def test_what_is_not_shipped_anyway_is_not_vetoed() -> None:
    found = decided(
        [scored("tuned", TUNED), scored("few_shot", OTHER)],
        [pair("few_shot", (-0.1, -0.15, -0.05), p_value=0.001)],
        slices=SLICES,
    )
    assert (found.rule, found.vetoes) == ("gain_below_min_gain", ())


def test_a_slice_of_rows_that_hang_together_is_worth_no_more_than_its_groups() -> None:
    alone = {f"r{i}": f"c{i}" for i in range(200)}
    together = {f"r{i}": f"c{i // 10}" for i in range(200)}
    (first, *_) = slice_differences(scored("tuned", TUNED), scored("few_shot", OTHER), "accuracy", SLICES, alone)
    assert (first.name, first.difference, first.n) == ("label refund", -1.0, 20) and first.p_value < 0.001
    (first, *_) = slice_differences(scored("tuned", TUNED), scored("few_shot", OTHER), "accuracy", SLICES, together)
    assert (first.name, first.difference, first.n) == ("label refund", -1.0, 20)
    assert first.p_value == 1.0, "two groups: one swap in two is as large, times three slices"
    assert verdict(slices=SLICES, clusters=alone).rule == "vetoed"
    assert verdict(slices=SLICES, clusters=together).decision == "ship_tuned"
