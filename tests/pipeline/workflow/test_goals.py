"""Goals, the outcomes that no other beats, and the one that is chosen."""

from __future__ import annotations

from tunesmith.pipeline.workflow.goals import choose, unmet, with_pareto
from tunesmith.pipeline.workflow.types import Goal, Outcome


def outcome(number: int, *, state: str = "done", missed: tuple[str, ...] = (), **measures: float) -> Outcome:
    return Outcome(number, {}, (), measures, unmet=missed, state=state)  # type: ignore[arg-type]


def test_thresholds_hold_at_their_value() -> None:
    goals = [Goal("accuracy", "at-least", 0.8), Goal("size_bytes", "at-most", 100)]
    assert unmet(goals, {"accuracy": 0.8, "size_bytes": 100}, {}) == ()
    missed = unmet(goals, {"accuracy": 0.79, "size_bytes": 101}, {})
    assert missed == ("accuracy is 0.79, at least 0.8 was wanted", "size_bytes is 101, at most 100 was wanted")


def test_what_was_not_measured_is_missed() -> None:
    assert unmet([Goal("accuracy", "at-least", 0)], {}, {}) == ("accuracy was not measured",)
    (said,) = unmet([Goal("acuracy", "at-least", 0)], {"accuracy": 1.0, "macro_f1": 1.0}, {})
    assert said == "acuracy was not measured; accuracy, macro_f1 were"
    (said,) = unmet([Goal("accuracy", "max-degradation", 0.1)], {"accuracy": 1.0}, {})
    assert "not measured before" in said


def test_a_loss_is_counted_from_the_reference_in_the_measures_own_direction() -> None:
    accuracy, share = Goal("accuracy", "max-degradation", 0.1), Goal("accuracy", "max-degradation", 0.1, share=True)
    before = {"accuracy": 0.5, "seconds_per_token": 1.0}
    assert unmet([accuracy], {"accuracy": 0.4}, before) == ()
    assert unmet([share], {"accuracy": 0.45}, before) == ()
    assert len(unmet([share], {"accuracy": 0.44}, before)) == 1
    slower = Goal("seconds_per_token", "max-degradation", 0.5)
    assert unmet([slower], {"seconds_per_token": 1.5}, before) == ()
    assert len(unmet([slower], {"seconds_per_token": 1.6}, before)) == 1
    assert unmet([slower], {"seconds_per_token": 0.1}, before) == ()


def test_pareto_keeps_what_no_other_beats() -> None:
    found = with_pareto(
        [
            outcome(1, accuracy=0.9, size_bytes=100),
            outcome(2, accuracy=0.8, size_bytes=50),
            outcome(3, accuracy=0.8, size_bytes=60),
            outcome(4, accuracy=0.9, size_bytes=100),
            outcome(5, accuracy=1.0, size_bytes=1, state="failed"),
        ],
        ["accuracy", "size_bytes"],
    )
    assert [one.number for one in found if one.pareto] == [1, 2, 4]


def test_the_best_that_meets_the_goals_is_chosen_and_ties_go_to_the_next_measure() -> None:
    outcomes = [
        outcome(1, accuracy=0.9, size_bytes=100, missed=("too large",)),
        outcome(2, accuracy=0.8, size_bytes=60),
        outcome(3, accuracy=0.8, size_bytes=50),
    ]
    chosen = choose(outcomes, ["accuracy", "size_bytes"])
    assert chosen is not None and chosen.number == 3
    assert choose(outcomes[:1], ["accuracy"]) is None
