from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.verdict import worlds
from tests.verdict.cases import cost, evaluation
from tunesmith.errors import RecipeError
from tunesmith.evaluation.statistics import wilson
from tunesmith.evaluation.types import Evaluation, MetricValue
from tunesmith.verdict.decision import RULES
from tunesmith.verdict.good_enough import RULE, good_enough, lowest_value
from tunesmith.verdict.headline import headline
from tunesmith.verdict.types import Verdict

FEW_SHOT = evaluation("few_shot", (0.90, 0.85, 0.93))
ZERO_SHOT = evaluation("zero_shot", (0.70, 0.63, 0.76))


def found(
    *evaluations: Evaluation, target: float | None = 0.8, costs: Mapping[str, Any] | None = None
) -> Verdict | None:
    by_name = {one.candidate: one for one in evaluations}
    return good_enough(by_name, metric="accuracy", target=target, confidence=0.95, costs=costs or {})


def test_one_that_surely_reaches_the_target_is_the_verdict() -> None:
    verdict = found(FEW_SHOT, ZERO_SHOT)
    assert verdict is not None and verdict.rule == RULE and RULE in RULES
    assert (verdict.decision, verdict.candidate, verdict.difference) == ("keep_prompting", "few_shot", None)
    assert verdict.reason == (
        "Few-shot has 90.0 % accuracy (95 % CI 85.0 to 93.0, n=200): surely at least the target of 80.0 % (at least "
        "84.2 %, allowing for the choice among 2 alternatives). It is good enough, so nothing was trained."
    )
    assert headline(verdict) == (
        "Keep prompting (few-shot): it surely reaches the target of 80.0 % accuracy, nothing was trained"
    )
    assert verdict.sensitivity == ("Holds unless the target rises above 84.2 %.",)
    assert verdict.benefits == {}


@pytest.mark.parametrize("target", [None, 0.86, 0.95])
def test_without_target_or_where_the_interval_reaches_below_it_nothing_is_decided(target: float | None) -> None:
    assert found(FEW_SHOT, ZERO_SHOT, target=target) is None
    assert found() is None


def test_the_more_were_measured_the_surer_the_best_must_be() -> None:
    assert found(FEW_SHOT, target=0.85) is not None
    weak = [evaluation(name, (0.2, 0.15, 0.26)) for name in ("zero_shot", "retrieval", "trivial_majority")]
    assert found(FEW_SHOT, *weak, target=0.85) is None
    assert found(FEW_SHOT, *weak, target=0.83) is not None


def test_a_cheaper_one_that_reaches_it_too_is_named() -> None:
    trivial = evaluation("trivial_tfidf", (0.88, 0.83, 0.92))
    costs = {"few_shot": cost("few_shot", 3.0), "trivial_tfidf": cost("trivial_tfidf", 0.1)}
    verdict = found(FEW_SHOT, trivial, costs=costs)
    assert verdict is not None and verdict.candidate == "few_shot" and verdict.tied == ("trivial_tfidf",)
    assert verdict.reason.endswith(
        "Trivial (tfidf) surely reaches it too; trivial (tfidf) costs less with every request."
    )
    dearer = found(FEW_SHOT, trivial, evaluation("retrieval", (0.87, 0.83, 0.91)))
    assert dearer is not None and dearer.reason.endswith(" Trivial (tfidf), retrieval surely reach it too.")


def test_what_was_tuned_before_does_not_stop_a_training() -> None:
    assert found(evaluation("tuned", (0.99, 0.98, 1.0)), evaluation("tuned_scored", (0.99, 0.98, 1.0))) is None


def test_caveats_of_the_numbers_stand_beside_it() -> None:
    verdict = found(evaluation("few_shot", (0.95, 0.85, 0.99), 20))
    assert verdict is not None and any("Only 20 test rows" in caveat for caveat in verdict.caveats)


def test_a_metric_that_was_not_measured_is_named() -> None:
    with pytest.raises(RecipeError, match="rouge"):
        good_enough({"few_shot": FEW_SHOT}, metric="rouge_l", target=0.5, confidence=0.95, costs={})


def test_stopping_for_one_that_misses_the_target_is_rare_however_many_there_are() -> None:
    """Six alternatives that just miss the target, four hundred times: some 2.5 % stop. Uncorrected it would be 12 %."""
    rng = np.random.default_rng(3)
    names = ("zero_shot", "few_shot", "retrieval", "documents", "trivial_a", "trivial_b")
    stopped = plain = 0
    times = 400
    for _ in range(times):
        hits = worlds.draw_hits(rng, dict.fromkeys(names, 0.7), 150, 0.0)
        measured = [worlds.evaluation(name, values) for name, values in hits.items()]
        stopped += found(*measured, target=0.7) is not None
        plain += any(one.metrics[0].low >= 0.7 for one in measured)
    assert plain / times > 0.06, "a world without luck shows nothing"
    assert stopped / times <= 0.035


@pytest.mark.parametrize(("right", "n"), [(75, 75), (199, 200), (70, 75), (12, 75), (0, 75)])
@pytest.mark.parametrize("alternatives", [1, 3, 10])
def test_the_lower_end_among_several_is_wilsons_at_their_joint_confidence(
    right: int, n: int, alternatives: int
) -> None:
    value = MetricValue("few_shot", "accuracy", right / n, *wilson(right, n, 0.95), n)
    expected = wilson(right, n, 1 - 0.05 / alternatives)[0]
    assert lowest_value(value, alternatives, 0.95) == pytest.approx(expected, abs=1e-12)


def test_all_rows_right_stops_no_more_often_than_it_may() -> None:
    """75 of 75 right, ten alternatives: one whose truth is the lower end gets there by luck in at most 2.5 % / 10."""
    value = MetricValue("few_shot", "accuracy", 1.0, *wilson(75, 75, 0.95), 75)
    assert lowest_value(value, 10, 0.95) ** 75 < 0.0025
    wide = MetricValue("few_shot", "accuracy", 0.9, 0.0, 0.95, 75)
    assert lowest_value(wide, 10, 0.95) == 0.0
