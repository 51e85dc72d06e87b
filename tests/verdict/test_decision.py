from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verdict.cases import cost, decided, evaluation, pair
from tunesmith.errors import RecipeError, VerificationError
from tunesmith.evaluation.statistics import AcrossSeeds
from tunesmith.verdict.decision import RULES
from tunesmith.verdict.headline import headline, title_of
from tunesmith.verdict.reasons import decision_for
from tunesmith.verdict.types import CandidateCost, Verdict

TUNED = evaluation("tuned", (0.861, 0.82, 0.89))
FEW_SHOT = evaluation("few_shot", (0.749, 0.70, 0.79))
CLEAR_GAIN = pair("few_shot", (0.112, 0.089, 0.136), p_value=0.0001)


def test_a_sure_gain_is_shipped() -> None:
    verdict = decided(
        [TUNED, FEW_SHOT], [CLEAR_GAIN], costs={"tuned": cost("tuned", 1.0, 6.2), "few_shot": cost("few_shot", 3.0)}
    )
    assert (verdict.decision, verdict.candidate, verdict.rule) == ("ship_tuned", "tuned", "better_by_min_gain")
    assert verdict.rows_needed is None
    assert verdict.best_alternative == "few_shot"
    assert headline(verdict) == (
        "Ship tuned: +11.2 points (95 % CI 8.9 to 13.6) over few-shot, break-even 3,100 requests"
    )
    assert "+11.2 points accuracy over few-shot (95 % CI 8.9 to 13.6, n=200, McNemar p < 0.001)" in verdict.reason


def test_a_difference_measured_the_other_way_round_is_turned() -> None:
    turned = pair("tuned", (-0.112, -0.136, -0.089), a="few_shot", p_value=0.0001)
    assert decided([TUNED, FEW_SHOT], [turned]).difference == decided([TUNED, FEW_SHOT], [CLEAR_GAIN]).difference


@pytest.mark.parametrize(
    ("name", "decision", "title"),
    [
        ("zero_shot", "keep_prompting", "Keep prompting (zero-shot)"),
        ("few_shot", "keep_prompting", "Keep prompting (few-shot)"),
        ("retrieval", "use_retrieval", "Use retrieval"),
        ("trivial_tfidf", "use_trivial", "Use the trivial (tfidf) baseline"),
        ("remote_large", "use_remote", "Use the remote (large) model"),
        ("documents", "use_retrieval", "Use retrieval (documents)"),
        ("zero_shot_grammar", "keep_prompting", "Keep prompting (zero-shot, grammar)"),
        ("retrieval_scored", "use_retrieval", "Use retrieval (retrieval, scored)"),
    ],
)
def test_a_gain_that_is_surely_too_small_means_the_alternative(name: str, decision: str, title: str) -> None:
    verdict = decided([TUNED, evaluation(name, (0.85, 0.81, 0.88))], [pair(name, (0.005, 0.001, 0.009))])
    assert (verdict.decision, verdict.candidate, verdict.rule) == (decision, name, "gain_below_min_gain")
    assert title_of(verdict) == title
    assert headline(verdict).startswith(f"{title}: tuned brings +0.5 points (95 % CI 0.1 to 0.9)")


def test_a_candidate_of_no_known_kind_cannot_be_recommended() -> None:
    with pytest.raises(VerificationError, match="no kind"):
        decision_for("oracle")


@pytest.mark.parametrize(
    "measured", [(0.03, -0.01, 0.07), (0.005, -0.02, 0.03), (-0.01, -0.05, 0.03), (0.0, -0.01, 0.01)]
)
def test_an_open_difference_asks_for_more_rows(measured: tuple[float, float, float]) -> None:
    verdict = decided([TUNED, FEW_SHOT], [pair("few_shot", measured, p_value=0.2)])
    assert (verdict.decision, verdict.candidate, verdict.rule) == ("cannot_tell", None, "too_few_rows")
    assert verdict.rows_needed is not None
    assert verdict.rows_needed > 200
    assert f"About {verdict.rows_needed:,} test rows in all" in verdict.reason
    assert headline(verdict).endswith(f"about {verdict.rows_needed:,} test rows needed")


def test_a_smaller_gain_to_find_needs_more_rows() -> None:
    found = [
        decided([TUNED, FEW_SHOT], [pair("few_shot", (0.005, -0.03, 0.04))], min_gain=gain).rows_needed or 0
        for gain in (0.03, 0.02, 0.01)
    ]
    assert found[0] < found[1] < found[2]


def test_the_smallest_gain_itself_is_enough_despite_rounding() -> None:
    verdict = decided([TUNED, FEW_SHOT], [pair("few_shot", (0.87 - 0.77 - 0.09, 0.002, 0.02))], min_gain=0.01)
    assert 0.87 - 0.77 - 0.09 < 0.01
    assert verdict.decision == "ship_tuned"


def test_resampling_alone_does_not_ship_what_mcnemar_doubts() -> None:
    verdict = decided([TUNED, FEW_SHOT], [pair("few_shot", (0.112, 0.004, 0.2), p_value=0.08)])
    assert verdict.rule == "too_few_rows"


def test_it_must_be_better_than_every_alternative_not_only_the_highest() -> None:
    retrieval = evaluation("retrieval", (0.745, 0.6, 0.85))
    verdict = decided([TUNED, FEW_SHOT, retrieval], [CLEAR_GAIN, pair("retrieval", (0.116, -0.01, 0.24), p_value=0.07)])
    assert verdict.best_alternative == "few_shot"
    assert verdict.decision == "cannot_tell"
    assert "not surely better than retrieval" in verdict.reason


def test_the_best_of_several_was_picked_for_its_luck() -> None:
    """One alternative settles it; the same numbers as the best of four do not."""
    names = ["few_shot", "zero_shot", "retrieval", "trivial_x"]
    close = [pair(name, (-0.03 + 0.001 * i, -0.065 + 0.001 * i, 0.008 + 0.001 * i)) for i, name in enumerate(names)]
    others = [evaluation(name, (0.89 - 0.001 * i, 0.85, 0.93)) for i, name in enumerate(names)]
    assert decided([TUNED, others[0]], close[:1]).decision == "keep_prompting"
    verdict = decided([TUNED, *others], close)
    assert verdict.decision == "cannot_tell"
    assert "best among 4" in verdict.reason


def test_far_weaker_alternatives_do_not_blur_the_choice() -> None:
    weak = [evaluation(name, (0.2, 0.15, 0.25)) for name in ("zero_shot", "trivial_x")]
    far = [pair(name, (0.66, 0.6, 0.7)) for name in ("zero_shot", "trivial_x")]
    best = evaluation("few_shot", (0.89, 0.85, 0.93))
    assert decided([TUNED, best, *weak], [pair("few_shot", (-0.03, -0.065, 0.008)), *far]).decision == "keep_prompting"


def test_of_equal_alternatives_the_lightest_is_best_however_fast_each_was_measured() -> None:
    names = ("zero_shot", "few_shot", "retrieval", "remote_large")
    others = [evaluation(name, (0.75, 0.7, 0.8)) for name in names]
    pairs = [pair(name, (0.111, 0.08, 0.14)) for name in names]
    tokens = {"zero_shot": 30.0, "few_shot": 300.0, "retrieval": 200.0, "remote_large": 10.0}
    for money in (1.0, 5.0):
        costs = {name: CandidateCost(name, tokens[name], 2.0, 0.1, 0.2, money, 0.0) for name in names}
        costs["few_shot"] = CandidateCost("few_shot", 300.0, 2.0, 0.1, 0.2, 3.0, 0.0)
        assert decided([TUNED, *others], pairs, costs=costs).best_alternative == "zero_shot"
        assert decided([TUNED, others[3]], pairs[3:], costs=costs).best_alternative == "remote_large"
    assert decided([TUNED, *others], pairs).best_alternative == "few_shot"  # nothing is known: the first by name


class TestTarget:
    def test_nothing_reaches_it(self) -> None:
        verdict = decided([TUNED, FEW_SHOT], [CLEAR_GAIN], target=0.95)
        assert (verdict.decision, verdict.candidate, verdict.rule) == ("none_good_enough", None, "none_reaches_target")
        assert headline(verdict) == "None is good enough: no candidate reaches the target of 95.0 % accuracy"
        assert "the best, tuned, has 86.1 % accuracy" in verdict.reason

    def test_reached_surely_or_only_at_the_best_estimate(self) -> None:
        assert "surely reaches" in decided([TUNED, FEW_SHOT], [CLEAR_GAIN], target=0.8).reason
        verdict = decided([TUNED, FEW_SHOT], [CLEAR_GAIN], target=0.85)
        assert verdict.decision == "ship_tuned"
        assert "includes less" in verdict.reason

    def test_a_sure_gain_that_may_miss_the_target_stays_open(self) -> None:
        verdict = decided([TUNED, FEW_SHOT], [CLEAR_GAIN], target=0.88)
        assert (verdict.decision, verdict.rule) == ("cannot_tell", "target_in_doubt")
        assert verdict.rows_needed is not None
        assert verdict.rows_needed > 200

    def test_an_alternative_that_may_miss_the_target_is_not_recommended(self) -> None:
        other = evaluation("few_shot", (0.87, 0.83, 0.91))
        difference = pair("few_shot", (-0.009, -0.02, 0.002))
        assert decided([TUNED, other], [difference], target=0.85).decision == "keep_prompting"
        verdict = decided([TUNED, other], [difference], target=0.89)
        assert (verdict.decision, verdict.rule) == ("cannot_tell", "target_in_doubt")
        assert verdict.reason.startswith("Few-shot has 87.0 %")

    def test_where_only_tuned_can_reach_it_a_small_gain_is_enough(self) -> None:
        other = evaluation("few_shot", (0.84, 0.82, 0.848))
        verdict = decided([TUNED, other], [pair("few_shot", (0.021, 0.01, 0.03))], target=0.85, min_gain=0.05)
        assert (verdict.decision, verdict.rule) == ("ship_tuned", "only_tuned_reaches_target")

    def test_alone_it_decides_against_the_target(self) -> None:
        assert decided([TUNED], [], target=0.8).rule == "only_target"
        assert "nothing to compare with" in headline(decided([TUNED], [], target=0.8))
        assert decided([TUNED], [], target=0.95).decision == "none_good_enough"
        verdict = decided([TUNED], [], target=0.85)
        assert verdict.rule == "target_in_doubt"
        assert (verdict.rows_needed or 0) > 200


def test_alone_without_target_no_number_of_rows_would_help() -> None:
    verdict = decided([TUNED], [])
    assert (verdict.decision, verdict.rule, verdict.rows_needed) == ("cannot_tell", "nothing_to_compare_with", None)
    assert headline(verdict) == "Cannot tell: nothing to compare with"
    assert verdict.difference is None


def test_copies_of_the_tuned_model_are_no_alternatives() -> None:
    copy = evaluation("tuned_onnx", (0.9, 0.88, 0.95))
    assert decided([TUNED, FEW_SHOT, copy], [CLEAR_GAIN]).best_alternative == "few_shot"


def test_another_way_of_asking_tuned_is_named_where_it_is_surely_better() -> None:
    ways = [evaluation(name, (0.9, 0.88, 0.95)) for name in ("tuned_scored", "tuned_grammar")]
    better = pair("tuned", (0.04, 0.01, 0.07), a="tuned_scored", p_value=0.001)
    same = pair("tuned", (0.0, -0.01, 0.01), a="tuned_grammar", p_value=1.0)
    found = decided([TUNED, FEW_SHOT, *ways], [CLEAR_GAIN, better, same])
    assert found.best_alternative == "few_shot"
    (said,) = [caveat for caveat in found.caveats if "asked another way" in caveat]
    assert said == (
        "The tuned model itself is surely better when asked another way, scored: +4.0 points accuracy (95 % CI 1.0 to "
        "7.0); put scored first in evaluate.decoding to let that way decide."
    )
    # The best of two ways: what one comparison would just show, two do not.
    close = pair("tuned", (0.04, 0.001, 0.079), a="tuned_scored", p_value=0.045)
    assert not any("another way" in c for c in decided([TUNED, FEW_SHOT, *ways], [CLEAR_GAIN, close, same]).caveats)
    assert any("another way" in c for c in decided([TUNED, FEW_SHOT, ways[0]], [CLEAR_GAIN, close]).caveats)


def test_where_trainings_differ_more_than_rows_more_rows_are_not_asked_for() -> None:
    def across(row_error: float, seed_error: float) -> AcrossSeeds:
        return AcrossSeeds(0.03, (-0.05, 0.11), 0.03, row_error, seed_error, 2.5, 200, 3)

    def verdict(**errors: float) -> Verdict:
        unclear = pair("few_shot", (0.03, -0.05, 0.11), p_value=0.3)
        return decided([TUNED, FEW_SHOT], [unclear], trainings={"few_shot": across(**errors)})

    found = verdict(row_error=0.01, seed_error=0.03)
    assert (found.rule, found.rows_needed) == ("too_few_rows", None)
    assert (
        "The 3 trainings differ by more than the rows leave open (standard errors of 3.0 and 1.0 points)"
        in found.reason
    )
    assert "test rows in all" not in found.reason
    assert headline(found).endswith("more trainings needed")
    assert (verdict(row_error=0.03, seed_error=0.01).rows_needed or 0) > 200


def test_alike_on_almost_every_row_is_not_alike_in_truth() -> None:
    same = evaluation("few_shot", (0.861, 0.82, 0.89), alike=True)
    verdict = decided([TUNED, same], [pair("few_shot", (0.0, 0.0, 0.0), p_value=1.0)])
    assert verdict.decision == "cannot_tell"
    assert verdict.difference is not None
    assert verdict.difference["high"] == pytest.approx(0.018, abs=0.001)
    assert any("score alike" in caveat for caveat in verdict.caveats)
    assert decided([TUNED, same], [pair("few_shot", (0.0, 0.0, 0.0))], min_gain=0.02).decision == "keep_prompting"


def test_caveats_name_what_the_numbers_show() -> None:
    few = [
        evaluation("tuned", (0.9, 0.7, 0.99), 20),
        evaluation("few_shot", (0.2, 0.1, 0.4), 20, k=8, k_used={"mean": 5.5}),
    ]
    verdict = decided(few, [pair("few_shot", (0.7, 0.4, 0.9), 20)], caveats=["3 test rows occur in the base's text."])
    assert verdict.caveats[0] == "3 test rows occur in the base's text."
    assert any("Only 20 test rows" in caveat for caveat in verdict.caveats)
    assert any("5.5 of its 8 examples" in caveat for caveat in verdict.caveats)


class TestRefuses:
    def test_without_tuned(self) -> None:
        with pytest.raises(RecipeError, match="no tuned model"):
            decided([FEW_SHOT], [])

    def test_other_rows(self) -> None:
        with pytest.raises(VerificationError, match="same test rows"):
            decided([TUNED, evaluation("few_shot", (0.7, 0.6, 0.8), 199)], [CLEAR_GAIN])

    def test_a_missing_difference(self) -> None:
        with pytest.raises(VerificationError, match="not measured"):
            decided([TUNED, FEW_SHOT], [pair("retrieval", (0.1, 0.0, 0.2))])


@settings(max_examples=150, deadline=None)
@given(
    tuned=st.floats(0.02, 0.98), other=st.floats(0.02, 0.98), half=st.floats(0.001, 0.3),
    min_gain=st.sampled_from([0.0, 0.01, 0.05]), target=st.sampled_from([None, 0.3, 0.9]),
)  # fmt: skip
def test_every_case_gets_one_verdict_that_agrees_with_itself(
    tuned: float, other: float, half: float, min_gain: float, target: float | None
) -> None:
    difference = tuned - other
    verdict = decided(
        [evaluation(name, (v, v - half, v + half)) for name, v in (("tuned", tuned), ("few_shot", other))],
        [pair("few_shot", (difference, difference - half, difference + half))],
        min_gain=min_gain, target=target,
    )  # fmt: skip
    assert verdict.rule in RULES
    assert (verdict.rows_needed is not None) == (verdict.decision == "cannot_tell")
    assert verdict.rows_needed is None or verdict.rows_needed > 200
    assert (verdict.candidate is None) == (verdict.decision in {"cannot_tell", "none_good_enough"})
    assert headline(verdict).startswith(title_of(verdict) + ": ")
    if verdict.decision == "ship_tuned":
        assert verdict.difference is not None
        assert verdict.difference["low"] > 0
