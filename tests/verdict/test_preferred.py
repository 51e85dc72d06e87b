from __future__ import annotations

import pytest

from tests.verdict.cases import decided, evaluation, pair
from tunesmith.evaluation.rating import Preference
from tunesmith.evaluation.rating.win_rate import win_rate
from tunesmith.verdict.preferred import preference_sentence, surely_prefers
from tunesmith.verdict.types import Verdict

TUNED = evaluation("tuned", (0.861, 0.82, 0.89))
FEW_SHOT = evaluation("few_shot", (0.749, 0.70, 0.79))
CLEAR = pair("few_shot", (0.112, 0.089, 0.136), p_value=0.0001)
UNCLEAR = pair("few_shot", (0.02, -0.03, 0.07), p_value=0.4)


def said(wins: int, losses: int, *, source: str = "people", a: str = "tuned", b: str = "few_shot", counts: bool = True):
    rate = win_rate(["a"] * wins + ["b"] * losses) if wins + losses else None
    return Preference(source, a, b, rate, counts, "too few agree", None)  # type: ignore[arg-type]


def verdict(*preferences: Preference, measured=CLEAR, **more: object) -> Verdict:
    return decided([TUNED, FEW_SHOT], [measured], preferences=preferences, **more)  # type: ignore[arg-type]


def test_people_who_surely_prefer_the_best_alternative_veto() -> None:
    found = verdict(said(20, 80))
    assert (found.decision, found.candidate, found.rule) == ("keep_prompting", "few_shot", "vetoed")
    assert found.vetoes == ("People surely prefer few-shot to tuned: 80.0 % (95 % CI 71.1 to 86.7, n=100).",)
    assert found.vetoes[0] not in found.caveats, "what forbids it is the reason, and not said twice"
    assert verdict(said(80, 20, a="few_shot", b="tuned")).vetoes == found.vetoes


def test_it_is_only_shown_where_asked_so_or_where_it_is_not_sure_or_does_not_count() -> None:
    assert verdict(said(20, 80), people="show").decision == "ship_tuned"
    unsure = verdict(said(45, 55))
    assert unsure.decision == "ship_tuned"
    assert unsure.caveats[-1].startswith("People surely prefer neither few-shot nor tuned: few-shot wins 55.0 %")
    uncounted = verdict(said(20, 80, counts=False))
    assert uncounted.decision == "ship_tuned" and "does not count: too few agree" in uncounted.caveats[-1]
    assert verdict(said(0, 0)).caveats[-1] == "People said nothing of tuned against few-shot: too few agree."


def test_only_the_best_alternative_counts() -> None:
    zero = evaluation("zero_shot", (0.5, 0.45, 0.55))
    other = pair("zero_shot", (0.361, 0.3, 0.4), p_value=1e-6)
    preferences = [said(20, 80, b="zero_shot")]
    found = decided([TUNED, FEW_SHOT, zero], [CLEAR, other], preferences=preferences)
    assert found.decision == "ship_tuned" and "prefer zero-shot to tuned" in found.caveats[-1]


def test_a_judge_vetoes_unless_people_surely_say_the_opposite() -> None:
    judge = said(20, 80, source="judge")
    assert verdict(judge).vetoes == (
        "The judge surely prefers few-shot to tuned: 80.0 % (95 % CI 71.1 to 86.7, n=100).",
    )
    assert verdict(said(45, 55), judge).rule == "vetoed"
    heard = verdict(said(80, 20), judge)
    assert heard.decision == "ship_tuned" and len([c for c in heard.caveats if "surely prefer" in c]) == 2


def test_a_preference_for_tuned_ships_nothing_by_itself() -> None:
    found = verdict(said(80, 20), measured=UNCLEAR)
    assert (found.decision, found.rule) == ("cannot_tell", "too_few_rows")
    assert found.caveats[-1] == (
        "People surely prefer tuned to few-shot: 80.0 % (95 % CI 71.1 to 86.7, n=100). That alone does not ship it: "
        "the metric does not show a gain that is worth it."
    )


@pytest.mark.parametrize(("wins", "losses", "expected"), [(80, 20, True), (50, 50, False), (20, 80, False)])
def test_who_is_surely_preferred(wins: int, losses: int, expected: bool) -> None:
    assert surely_prefers(said(wins, losses), "tuned", "few_shot") is expected
    assert surely_prefers(said(wins, losses), "tuned", "zero_shot") is False
    assert preference_sentence(said(wins, losses)).startswith("People surely prefer ")
