"""The small one replaces the big one: within a margin, what is cheaper counts as better; and how long that holds."""

from __future__ import annotations

import pytest

from tests.verdict.cases import cost, decided, evaluation, pair
from tunesmith.verdict.headline import headline
from tunesmith.verdict.sensitivity import holds_between
from tunesmith.verdict.types import Verdict, Volume

TUNED = evaluation("tuned", (0.88, 0.85, 0.91))
BIG = evaluation("remote_big", (0.89, 0.86, 0.92))
COSTS = {"tuned": cost("tuned", 0.1, 240.0), "remote_big": cost("remote_big", 20.1)}
"""240 once, and 0.02 saved by every request: worth it from 12,000 requests on."""


def verdict(low: float = -0.018, high: float = 0.004, *, margin: float | None = 0.02, a_month: int = 10_000) -> Verdict:
    return decided(
        [TUNED, BIG], [pair("remote_big", (-0.01, low, high), p_value=0.3)],
        margin=margin, volume=Volume(a_month, 12), costs=COSTS,
    )  # fmt: skip


def test_surely_as_good_and_cheaper_is_shipped() -> None:
    found = verdict()
    assert (found.decision, found.rule) == ("ship_tuned", "as_good_and_cheaper")
    assert "surely not worse by more than the 2.0 points that do not matter, and cheaper over 12 months" in found.reason
    assert found.assumptions["margin"] == 0.02
    assert headline(found) == (
        "Ship tuned: -1.0 points (95 % CI -1.8 to 0.4) over remote (big), break-even 12,000 requests"
    )


def test_without_a_margin_costs_do_not_decide() -> None:
    assert verdict(margin=None).rule == "gain_below_min_gain"


def test_not_having_found_a_difference_shows_nothing() -> None:
    found = verdict(low=-0.03, high=0.01)
    assert (found.decision, found.rule) == ("cannot_tell", "too_few_rows")
    assert "worse by more than the 2.0 points that do not matter" in found.reason
    assert (found.rows_needed or 0) > 200


def test_surely_worse_by_more_than_the_margin_is_not_shipped() -> None:
    worse = decided(
        [evaluation("tuned", (0.82, 0.79, 0.85)), BIG], [pair("remote_big", (-0.07, -0.1, -0.04), p_value=0.001)],
        margin=0.02, volume=Volume(10_000, 12), costs=COSTS,
    )  # fmt: skip
    assert (worse.decision, worse.rule) == ("use_remote", "worse_than_margin")
    assert "surely worse by more than the 2.0 points that do not matter" in worse.reason


def test_where_it_is_not_cheaper_it_must_gain() -> None:
    assert verdict(a_month=900).rule == "gain_below_min_gain"


def test_it_says_how_few_requests_would_change_it() -> None:
    found = verdict()
    # 12,000 requests in twelve months are 1,000 a month, 33 a day.
    assert "Holds unless requests fall under 33 a day." in found.sensitivity
    fewer = verdict(a_month=900)
    assert "Holds unless requests rise over 33 a day." in fewer.sensitivity


def test_a_cheaper_alternative_that_is_surely_as_good_is_taken_before_the_best() -> None:
    small = evaluation("few_shot", (0.885, 0.85, 0.91))
    costs = {**COSTS, "tuned": cost("tuned", 0.1, 9_000.0), "few_shot": cost("few_shot", 0.2)}
    pairs = [
        pair("remote_big", (-0.06, -0.09, -0.03), p_value=0.001),
        pair("few_shot", (-0.055, -0.085, -0.025), p_value=0.001),
        pair("remote_big", (-0.005, -0.015, 0.005), a="few_shot", p_value=0.5),
    ]
    tuned = evaluation("tuned", (0.83, 0.8, 0.86))
    asked = {"volume": Volume(10_000, 12), "costs": costs}
    assert decided([tuned, BIG, small], pairs, margin=0.03, **asked).candidate == "few_shot"
    assert decided([tuned, BIG, small], pairs, margin=0.01, **asked).candidate == "remote_big"
    assert decided([tuned, BIG, small], pairs, **asked).candidate == "remote_big"


class TestSensitivity:
    CLEAR = pair("few_shot", (0.112, 0.089, 0.136), p_value=0.0001)
    FEW_SHOT = evaluation("few_shot", (0.749, 0.70, 0.79))

    def test_of_the_smallest_gain(self) -> None:
        found = decided([evaluation("tuned", (0.861, 0.82, 0.89)), self.FEW_SHOT], [self.CLEAR])
        assert found.sensitivity == ("Holds unless the smallest gain worth having rises above 11.2 points.",)

    def test_of_the_target(self) -> None:
        found = decided([evaluation("tuned", (0.861, 0.82, 0.89)), self.FEW_SHOT], [self.CLEAR], target=0.8)
        assert "Holds unless the target rises above 86.1 %." in found.sensitivity

    def test_of_using_an_alternative(self) -> None:
        found = decided(
            [evaluation("tuned", (0.75, 0.7, 0.8)), self.FEW_SHOT], [pair("few_shot", (0.001, -0.003, 0.005))]
        )
        assert found.decision == "keep_prompting"
        assert found.sensitivity == (
            "Holds unless the smallest gain worth having falls to 1.8 points or less.",
        ) or found.sensitivity == ("Holds unless the smallest gain worth having falls to 0.5 points or less.",)

    def test_what_is_not_decided_cannot_change(self) -> None:
        assert decided([TUNED, self.FEW_SHOT], [pair("few_shot", (0.03, -0.01, 0.07))]).sensitivity == ()

    def test_bisection_finds_both_ends(self) -> None:
        low, high = holds_between(lambda x: 0.25 < x <= 0.7, 0.5, 0.0, 1.0)
        assert (low, high) == pytest.approx((0.25, 0.7), abs=1e-9)
        assert holds_between(lambda x: True, 0.5, 0.0, 1.0) == (0.0, 1.0)


def test_alternatives_that_cannot_be_told_from_the_one_recommended_are_named() -> None:
    others = [evaluation(name, (value, value - 0.03, value + 0.03))
              for name, value in (("few_shot", 0.89), ("retrieval", 0.885), ("zero_shot", 0.5))]  # fmt: skip
    pairs = [
        pair("few_shot", (-0.08, -0.11, -0.05), p_value=0.001),
        pair("retrieval", (-0.075, -0.1, -0.05), p_value=0.001),
        pair("zero_shot", (0.31, 0.28, 0.34), p_value=0.001),
        pair("retrieval", (0.005, -0.02, 0.03), a="few_shot"),
        pair("zero_shot", (0.39, 0.36, 0.42), a="few_shot"),
    ]
    found = decided([evaluation("tuned", (0.81, 0.78, 0.84)), *others], pairs)
    assert (found.candidate, found.tied) == ("few_shot", ("retrieval",))
    assert any("retrieval may be as good or better" in caveat for caveat in found.caveats)
