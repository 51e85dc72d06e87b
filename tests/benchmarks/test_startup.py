"""The start-up benchmark: what it starts takes a step, and the moments it reports are those of the run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the script sees it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import startup

    return startup


def test_both_sides_get_the_same_rows(bench: Any, tmp_path: Path) -> None:
    bench.write_rows(tmp_path / "rows.jsonl")
    recipe = bench.write_recipe(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    chats = [json.loads(line) for line in (tmp_path / "chats.jsonl").read_text().splitlines()]
    assert len(rows) == bench.ROWS == len({json.dumps(row) for row in rows})
    assert [row["prompt"] + row["completion"] for row in rows] == [chat["messages"] for chat in chats]
    from tunesmith.recipe import load_recipe

    assert load_recipe(recipe).base.model == "embedded:base"


def test_phases_are_the_first_event_of_each_kind(bench: Any, tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    assert bench._phases(events, 0.0) == {}
    told = [
        ("1970-01-01T00:00:11+00:00", {"kind": "stage_started", "stage": "check"}),
        ("1970-01-01T00:00:12+00:00", {"kind": "stage_finished", "stage": "check"}),
        ("1970-01-01T00:00:13+00:00", {"kind": "stage_started", "stage": "train"}),
        ("1970-01-01T00:00:14+00:00", {"kind": "train_started"}),
        ("1970-01-01T00:00:15+00:00", {"kind": "train_step", "step": 1}),
        ("1970-01-01T00:00:16+00:00", {"kind": "train_step", "step": 2}),
    ]
    events.write_text("".join(json.dumps({"time": t, **event}) + "\n" for t, event in told) + '{"kind": "tr')
    assert bench._phases(events, 10.0) == {
        "stage_started check": 1.0,
        "stage_finished check": 2.0,
        "train_started": 4.0,
        "train_step": 5.0,
    }


def test_a_training_that_takes_no_step_is_told(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("trane: {}\n")
    with pytest.raises(SystemExit, match="took no step"):
        bench.start_ours(tmp_path, "run", os.environ)


@pytest.mark.slow
def test_a_training_is_timed_to_its_first_step(bench: Any, tmp_path: Path) -> None:
    bench.write_rows(tmp_path / "rows.jsonl")
    bench.write_recipe(tmp_path)
    phases = bench.start_ours(tmp_path, "run", {**os.environ, "OMP_NUM_THREADS": "1"})
    assert list(phases) == list(bench.PHASES)
    assert 0 < phases["stage_started check"] < phases["train_step"] < bench.PATIENCE
    assert sorted(phases.values()) == list(phases.values())
