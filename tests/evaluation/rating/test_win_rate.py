"""The win rate, its interval, and what two sources leave for the verdict."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.evaluation.rating.stored import store_run
from tunesmith.errors import DataError, VerificationError
from tunesmith.evaluation.rating import read_preferences, win_rate
from tunesmith.evaluation.rating.of_run import write_summary
from tunesmith.evaluation.statistics import mcnemar_exact, wilson


@pytest.mark.parametrize(("wins", "losses"), [(30, 10), (10, 30), (1, 19), (7, 0), (0, 1)])
def test_without_ties_the_interval_is_wilsons(wins, losses):
    found = win_rate(["a"] * wins + ["b"] * losses)
    assert found.value == wins / (wins + losses)
    if losses and wins:
        assert (found.low, found.high) == pytest.approx(wilson(wins, wins + losses), abs=1e-12)
    assert found.p_value == mcnemar_exact(wins, losses)
    assert found.n == wins + losses
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_ties_are_half_and_leave_less_to_chance():
    without = win_rate(["a"] * 30 + ["b"] * 30)
    ties = win_rate(["a"] * 10 + ["tie"] * 40 + ["b"] * 10)
    assert without.value == ties.value == 0.5
    assert ties.high - ties.low < 0.7 * (without.high - without.low)
    only = win_rate(["tie"] * 60)
    assert only.low < 0.5 < only.high and only.p_value == 1.0


def test_what_was_not_judged_is_counted_and_bounds_the_rate():
    found = win_rate(["a"] * 6 + ["b"] * 2 + [None] * 8)
    assert (found.value, found.unjudged, found.n) == (0.75, 8, 8)
    assert (found.lowest, found.highest) == (6 / 16, 14 / 16)
    with pytest.raises(DataError):
        win_rate([None, None])


@pytest.mark.parametrize("shares", [(0.4, 0.3, 0.3), (0.2, 0.7, 0.1), (0.55, 0.0, 0.45)])
def test_the_interval_covers(shares):
    generator = np.random.default_rng(1)
    true = shares[0] + shares[1] / 2
    held = 0
    for wins, ties, losses in generator.multinomial(80, shares, size=600):
        found = win_rate(["a"] * wins + ["tie"] * ties + ["b"] * losses)
        held += found.low <= true <= found.high
    assert 0.93 <= held / 600 <= 0.985


def test_a_preference_about_other_answers_does_not_count(tmp_path):
    run = store_run(tmp_path / "run", {"tuned": ["1", "2"], "zero_shot": ["2", "3"]})
    assert read_preferences(run.evaluation) == ()
    write_summary(run, "tuned", "zero_shot")
    (found,) = read_preferences(run.evaluation)
    assert (found.source, found.counts, found.why) == ("people", False, "nothing was rated")
    kept = json.loads((run.evaluation / "rating.json").read_text())
    kept |= {"win_rate": win_rate(["a"] * 20 + ["b"]).to_dict(), "counts": True, "why": "two raters"}
    (run.evaluation / "rating.json").write_text(json.dumps(kept))
    (found,) = read_preferences(run.evaluation)
    assert found.counts and found.surely_better is True and found.win_rate.wins == 20
    with (run.evaluation / "tuned.jsonl").open("a") as file:
        file.write("\n")
    (found,) = read_preferences(run.evaluation)
    assert not found.counts and found.surely_better is None and "changed" in found.why


def test_a_damaged_preference_is_told(tmp_path):
    (tmp_path / "judge.json").write_text('{"a": "x"}')
    with pytest.raises(VerificationError, match=r"judge\.json"):
        read_preferences(tmp_path)
