"""The planner's benchmark: its arithmetic, and that one quick run works. Errors themselves are never tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the script sees it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import planner

    return planner


def result(peak: int, predicted: int, seconds: float, expected: float) -> dict[str, Any]:
    memory = {"micro_batch_tokens": 64, "recompute": [1], "predicted_peak_bytes": predicted, "limit_bytes": 9}
    time = {"training_seconds": expected - 2, "validation_seconds": 1.5, "answering_seconds": 0.5}
    took = {"seconds": seconds, "training_seconds": seconds - 1, "answering_seconds": 0.4, "cpu_seconds": seconds / 2}
    return {"memory": memory, "time": time, "peak_bytes": peak, "tokens": 100, "planning_seconds": 1.0, **took}


def rows(bench: Any, *results: dict[str, Any]) -> list[dict[str, Any]]:
    run = bench.Run("8M", "lora", "short")
    return [bench.row(run, run.job(Path("m"), None), one) for one in results]


def test_twelve_runs_of_two_shapes_three_methods_and_two_kinds_of_rows(bench: Any) -> None:
    assert len(bench.RUNS) == len({run.name for run in bench.RUNS}) == 12
    assert all(run.job(Path("m"), None).steps >= 8 for run in bench.RUNS)


def test_errors_are_relative_to_what_was_measured(bench: Any) -> None:
    (line,) = rows(bench, result(peak=200, predicted=180, seconds=10.0, expected=12.0))
    assert line["memory_error"] == pytest.approx(-0.1)
    assert line["time_error"] == pytest.approx(0.2)
    assert line["processor_share"] == pytest.approx(0.5)


def test_the_summary_takes_the_worst_of_memory_and_the_median_of_time(bench: Any) -> None:
    lines = rows(
        bench,
        result(100, 110, 10.0, 10.0),
        result(100, 95, 10.0, 19.0),
        result(100, 84, 10.0, 9.0),
        {"refused": "too little", "planning_seconds": 1.0, "steps_done": 0},
    )
    said = bench.summary(lines)
    assert said["runs"] == 3
    assert said["memory_error"]["worst"] == pytest.approx(0.16) and not said["memory_met"]
    assert said["time_error"]["median"] == pytest.approx(0.1) and said["time_met"]
    assert said["refused_before_step_1"]
    assert not bench.summary(lines[:3])["refused_before_step_1"]


def test_limits_are_above_and_below_what_is_needed(bench: Any) -> None:
    parts = {"process": 400e6, "weights": 100e6, "activations": 150e6, "temporary": 30e6, "heap": 20e6}
    assert bench.limits_for(parts) == ("620MB", "502MB")


def test_long_rows_are_long_and_half_learnt(bench: Any) -> None:
    import _planner_job as jobs

    long = jobs.samples(jobs.Job("m", "lora", "long", 4, 2), 20, 500, seed=0)
    assert all(600 <= len(row.ids) < 1000 and row.supervised == len(row.ids) - len(row.ids) // 2 for row in long)
    again = jobs.samples(jobs.Job("m", "lora", "long", 4, 2), 20, 500, seed=0)
    assert all((a.ids == b.ids).all() for a, b in zip(long, again, strict=True))


def test_the_page_names_every_run_and_the_refusal(bench: Any) -> None:
    lines = rows(bench, result(100, 110, 10.0, 10.0), {"refused": "too little memory", "steps_done": 0})
    facts = {"processor": "P", "threads": 1, "torch": "2", "load_before": 0.0, "date": "2026-01-01T00:00"}
    page = bench.table({"environment": facts, "summary": bench.summary(lines), "rows": lines})
    assert "| 8M-lora-short | 64 | 1 |" in page and "+10%" in page and "too little memory" in page


def test_wrong_options_are_refused(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.parse(["--runs", "9M-lora-short"])
    assert "8M-qlora-long" in capsys.readouterr().err


@pytest.mark.slow
def test_a_quick_run_predicts_trains_and_refuses(tmp_path: Path) -> None:
    out = tmp_path / "quick.json"
    command = [sys.executable, str(BENCHMARKS / "planner.py"), "--quick", "--out", str(out), "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(out.read_text())
    trained, refused = report["rows"]
    assert 0.5 < trained["predicted_bytes"] / trained["measured_bytes"] < 2
    assert trained["predicted_seconds"] > 0 and report["raw"][0]["steps_done"] == 4
    assert refused["steps_done"] == 0 and "at least" in refused["refused"]
