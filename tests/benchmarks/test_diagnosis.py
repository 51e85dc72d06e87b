"""The twenty published runs are diagnosed again from their events, and a few are run again in a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.training.diagnosis import diagnose

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the script sees it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import diagnosis

    return diagnosis


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    """The newest published results."""
    files = sorted((BENCHMARKS / "results").glob("diagnosis-*.json"))
    if not files:
        pytest.skip("nothing published yet: run benchmarks/diagnosis.py")
    found: dict[str, Any] = json.loads(files[-1].read_text())
    return found


def test_ten_spoiled_and_ten_healthy_runs_were_published(published):
    assert len({run["name"] for run in published["runs"]}) == 20
    assert sum(run["expected"] is None for run in published["runs"]) == 10
    assert len({run["expected"] for run in published["runs"]}) == 11  # ten mistakes, each with a diagnosis of its own


def test_each_spoiled_run_is_diagnosed_and_its_remedy_helped(bench, published):
    for run in (run for run in published["runs"] if run["expected"] is not None):
        found = diagnose(run["history"], bench.facts_from(run))
        assert [d.code for d in found] == [run["expected"]], run["name"]
        assert list(found[0].overrides) == run["remedy"], run["name"]
        assert run["scores_after"][run["metric"]] > run["scores"].get(run["metric"], 0.0), run["name"]


def test_no_healthy_run_is_diagnosed_at_any_validation(bench, published):
    for run in (run for run in published["runs"] if run["expected"] is None):
        facts, history = bench.facts_from(run), run["history"]
        assert diagnose(history, facts) == (), run["name"]
        ends = [i + 1 for i, event in enumerate(history) if event["kind"] == "validation"]
        assert len(ends) > 4
        for end in ends:
            assert diagnose(history[:end], facts, finished=False) == (), run["name"]


def test_the_page_shows_what_the_results_say(bench, published):
    shown = bench.page(published["runs"], published["seed"])
    assert shown == (BENCHMARKS / "diagnosis.md").read_text()
    assert "wrong" not in shown.split("What each")[0]


def test_tasks_are_seeded_and_their_rows_distinct(bench):
    for task in (bench.tasks.tones, bench.tasks.intents, bench.tasks.dates, bench.tasks.orders, bench.tasks.codes):
        rows = task(150, 3)
        assert rows == task(150, 3) != task(150, 4)
        assert len({prompt for prompt, _ in rows}) == 150
    uneven = bench.tasks.uneven(bench.tasks.tones(300, 0, labels=2), "warm", 0.9, 100, 0)
    assert sum(answer == "warm" for _, answer in uneven) == 90
    rows = bench.tasks.intents(60, 0)
    muddled = bench.tasks.shuffled_answers(rows, 0)
    assert [p for p, _ in muddled] == [p for p, _ in rows] and sorted(a for _, a in muddled) == sorted(
        a for _, a in rows
    )
    assert sum(a == b for (_, a), (_, b) in zip(rows, muddled, strict=True)) < 30


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
def test_a_few_runs_again(bench, tmp_path, number):
    case = bench.quick(0)[number]
    record = bench.judge(case, tmp_path, remedied=False)
    assert record["right"], (record["name"], record["codes"], record["told_at"])
