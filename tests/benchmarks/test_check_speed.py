"""The table that `check` is timed on, and how a process is measured."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the script sees it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import check_speed

    return check_speed


def test_the_table_has_distinct_rows_and_twenty_labels(bench: Any, tmp_path: Path) -> None:
    bench.write_table(tmp_path / "rows.csv", 500)
    rows = list(csv.DictReader((tmp_path / "rows.csv").open(encoding="utf-8")))
    assert len(rows) == len({row["text"] for row in rows}) == 500
    assert len({row["label"] for row in rows}) == 20
    assert set(rows[0]) == {"text", "label"}


def test_a_process_is_measured_whole(bench: Any) -> None:
    measured = bench.measure(["--help"])
    assert "tunesmith" in measured.output.lower()
    assert 0 < measured.seconds < 30
    assert measured.peak_bytes > 5_000_000


def test_a_failing_command_ends_the_benchmark(bench: Any) -> None:
    with pytest.raises(SystemExit, match="ended with"):
        bench.measure(["check", "/nowhere/recipe.yaml"])
