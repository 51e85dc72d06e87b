"""The benchmark of keeping and listing, on a few objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the script sees it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import service_store

    return service_store


def test_a_small_run_lists_everything_and_makes_a_page(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_TIMES", 2)
    figures = bench.measure(uploads=3, jobs=5, events=250)
    assert [(one["requests"], one["objects"]) for one in figures] == [(3, 3), (2, 4), (2, 5), (3, 250)]
    assert all(0 < one["median_ms"] <= one["p95_ms"] <= one["max_ms"] for one in figures)
    page = bench.page({"machine": "a machine", "load_before": 0.5, "figures": figures})
    assert page.count("reached") == 4 and "page through 250 events" in page


def test_the_percentile_is_told_and_judged(bench: Any) -> None:
    seconds = [n / 1000 for n in range(1, 101)]
    assert bench.told("x", seconds, 100)["p95_ms"] == 95.0
    assert not bench.told("x", seconds, 100)["met"]
    assert bench.told("x", [0.001] * 95 + [9.0] * 5, 100)["met"]
