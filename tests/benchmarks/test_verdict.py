"""The simulation of the verdict, reduced: what it calls right, how it counts, and that the bars hold on few worlds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.verdict.types import CandidateCost, Verdict

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import verdict

    return verdict


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _verdict_worlds

    return _verdict_worlds


def world(worlds: Any, tuned: float, few_shot: float, retrieval: float, **more: Any) -> Any:
    costs = {name: CandidateCost(name, 1, 1, 1, 1, 1.0, 0.0) for name in ("tuned", "few_shot", "retrieval")}
    values = {"tuned": tuned, "few_shot": few_shot, "retrieval": retrieval}
    made = worlds.World(0, "accuracy", values, 0.5, 0.3, 200, 0.02, None, None, costs, 10_000)
    return replace(made, **more)


class TestWhatIsRight:
    def test_a_gain_worth_having_is_shipped_and_a_smaller_one_is_not(self, worlds: Any) -> None:
        assert world(worlds, 0.82, 0.80, 0.7).acceptable() == {"tuned"}
        assert world(worlds, 0.819, 0.80, 0.7).acceptable() == {"few_shot"}
        assert world(worlds, 0.7, 0.80, 0.785).acceptable() == {"few_shot", "retrieval"}

    def test_a_target_rules_candidates_out(self, worlds: Any) -> None:
        assert world(worlds, 0.81, 0.80, 0.7, target=0.805).acceptable() == {"tuned"}
        assert world(worlds, 0.7, 0.80, 0.79, target=0.795).acceptable() == {"few_shot"}
        none = world(worlds, 0.81, 0.80, 0.7, target=0.9)
        assert (none.acceptable(), none.truth) == (frozenset(), "none")

    def test_with_a_margin_the_cheaper_may_be_worse(self, worlds: Any) -> None:
        dear = {"few_shot": CandidateCost("few_shot", 1, 1, 1, 1, 9.0, 0.0)}
        one = world(worlds, 0.79, 0.80, 0.7, margin=0.02)
        assert one.acceptable() == {"few_shot"}
        assert replace(one, costs={**one.costs, **dear}).acceptable() == {"tuned"}

    def test_of_verdicts(self, worlds: Any) -> None:
        def says(decision: Any, candidate: str | None) -> Verdict:
            return Verdict(decision, candidate, "", "", None, "accuracy")

        one = world(worlds, 0.70, 0.80, 0.7)
        assert one.is_right(says("keep_prompting", "few_shot"))
        assert not one.is_right(says("use_retrieval", "retrieval"))
        assert not one.is_right(says("ship_tuned", "tuned"))
        assert not one.is_right(says("none_good_enough", None))
        assert world(worlds, 0.70, 0.80, 0.7, target=0.9).is_right(says("none_good_enough", None))


@pytest.mark.parametrize("metric", ["accuracy", "rouge_l", "entity_f1"])
def test_rows_have_the_scores_that_the_world_says(worlds: Any, metric: str) -> None:
    one = world(worlds, 0.92, 0.80, 0.4, metric=metric)
    parts = worlds.draw_rows(one, 60_000, (1, 2))
    for name, value in one.values.items():
        statistics = worlds._METRICS[metric].statistics(parts[name].tolist(), [None] * 60_000)
        assert float(worlds._METRICS[metric].finish(statistics.sum(axis=0))) == pytest.approx(value, abs=0.006)


def test_half_of_the_worlds_have_no_true_winner_and_all_kinds_occur(worlds: Any) -> None:
    drawn = [worlds.draw_world(number, 1) for number in range(300)]
    assert [one.truth == "ship" for one in drawn] == [True, False] * 150
    assert {one.truth for one in drawn} == {"ship", "alternative", "none"}
    assert {name for one in drawn if one.truth == "alternative" for name in one.acceptable()} >= {
        "zero_shot", "few_shot", "retrieval", "trivial_tfidf", "remote_large",
    }  # fmt: skip
    assert min(one.rows for one in drawn) < 60 and max(one.rows for one in drawn) > 1700
    assert worlds.draw_world(7, 1) == drawn[7]


def test_the_detectable_gain_is_that_of_the_sample(worlds: Any) -> None:
    one = world(worlds, 0.85, 0.80, 0.4, rows=400)
    gains = [
        float((p["tuned"] - p["few_shot"]).mean()) for p in (worlds.draw_rows(one, 400, (3, k)) for k in range(600))
    ]
    assert worlds.detectable_gain(one, 1) == pytest.approx(2.8016 * np.std(gains), rel=0.1)


def test_figures_count_what_they_say(bench: Any) -> None:
    def record(right: bool | None, decision: str, gain: float, **more: Any) -> dict[str, Any]:
        return {"right": right, "decision": decision, "gain": gain, "detectable": 0.1, "truth": "ship",
                "rows_needed": None, **more}  # fmt: skip

    records = [
        record(True, "ship_tuned", 0.2),
        record(False, "ship_tuned", 0.01),
        record(None, "cannot_tell", -0.16, rows_needed=500, later="ship_tuned", later_right=True),
        record(None, "cannot_tell", 0.05, rows_needed=900, later="cannot_tell", later_right=None),
        record(None, "cannot_tell", 0.05, rows_needed=900_000),
    ]
    found = bench.figures(records)
    assert found["right_or_cannot_tell"] == 0.8 and found["wrong_ship"] == 0.2
    assert (found["clear_worlds"], found["cannot_tell_in_clear_worlds"]) == (2, 0.5)
    assert (found["asked_for_rows"], found["decided_by_rows_needed"]) == (3, pytest.approx(1 / 3))
    assert set(bench.missed(found)) == set(bench.BARS)


def test_the_bars_hold_on_few_worlds(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of the work: fewer worlds and resamples, and only short tests are lengthened."""
    monkeypatch.setattr(bench, "MOST_ROWS", 6000)
    records = [bench.run_world(number, seed=1, resamples=200) for number in range(80)]
    found = bench.figures(records)
    assert found["no_true_winner"] == 0.5
    assert found["right_or_cannot_tell"] >= 0.97
    assert found["wrong_ship"] <= 0.025
    assert found["clear_worlds"] >= 12 and found["cannot_tell_in_clear_worlds"] <= 0.2
    lengthened = [record for record in records if "later" in record]
    assert len(lengthened) >= 5
    assert sum(record["later"] != "cannot_tell" for record in lengthened) / len(lengthened) >= 0.6
    assert bench.run_world(3, seed=1, resamples=200) == records[3]
    settings = {"worlds": 80, "seed": 1, "resamples": 200, "jobs": 1, "minutes": 1.0, "most_rows": 6000}
    text = bench.page(records, found, settings)
    assert text.count("| ≥") == 2 and text.count("| ≤") == 2
    assert "| tuned is the winner | 40 |" in text
    json.dumps(records)


def test_the_published_run_meets_every_bar(bench: Any) -> None:
    files = sorted((BENCHMARKS / "results").glob("verdict-*.json"))
    if not files:
        pytest.skip("nothing published yet: run benchmarks/verdict.py")
    published = json.loads(files[-1].read_text())
    assert len(published["outcomes"]) == published["worlds"] >= 2000
    found = bench.figures(published["outcomes"])
    assert found == pytest.approx(published["figures"])
    assert bench.missed(found) == []
    decisions = {one["decision"] for one in published["outcomes"]}
    assert decisions >= {
        "ship_tuned", "keep_prompting", "use_retrieval", "use_trivial", "use_remote", "none_good_enough", "cannot_tell",
    }  # fmt: skip
