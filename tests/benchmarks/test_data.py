"""The benchmark of large data: its rows are what they are said to be, and its page says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.data import ROWS, page, structure, verdict, write_rows


def test_the_rows_are_chats_with_planted_faults_and_the_same_each_time(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for file in (first, second):
        write_rows(file, 3_000)
    assert first.read_bytes() == second.read_bytes()
    rows = [json.loads(line) for line in first.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 3_000
    assert 400 < first.stat().st_size / len(rows) < 600
    found = structure(first, "")
    broken = sum(len(row["messages"]) == 1 for row in rows)
    assert found["rows"] == 3_000 and found["usable"] == 3_000 - broken > 2_900
    assert sum(found["findings"].values()) == broken > 0


def test_limits_of_memory_and_time_hold_for_a_million_rows_only() -> None:
    slow = {"seconds": 61.0, "peak_bytes": 1, "rows": ROWS}
    assert verdict("structure", slow, ROWS) is False and verdict("structure", slow, 50_000) is None
    assert verdict("structure", {**slow, "seconds": 59.0}, ROWS) is True
    assert verdict("structure", {"seconds": 1.0, "peak_bytes": 2_000_000_000}, ROWS) is False
    assert verdict("tokens", {"share": 0.7, "as_one_by_one": True}, 50_000) is True
    assert verdict("tokens", {"share": 0.7, "as_one_by_one": False}, 50_000) is False
    assert verdict("tokens", {"share": 0.5, "as_one_by_one": True}, 50_000) is False


def test_the_page_says_what_missed_its_limit() -> None:
    tokens = {
        "seconds": 2.0, "cpu_seconds": 3.0, "rows": 10, "peak_bytes": 5e8, "tokens_per_second": 7e5,
        "raw_tokens_per_second": 1e6,
        "share": 0.7, "bytes_per_token_on_disk": 2.5, "as_one_by_one": True, "met": True,
    }  # fmt: skip
    structure = {"seconds": 61.0, "cpu_seconds": 99.0, "rows": ROWS, "peak_bytes": 1e9, "met": False}
    measures = {"structure": structure, "tokens": tokens}
    text = page(
        {
            "command": "python x",
            "date": "2026-01-02T03",
            "rows": ROWS,
            "bytes": 5e8,
            "machine": "m",
            "load_before": 0.1,
            "measures": measures,
        }
    )
    assert "| 61.0 | 99.0 | 16,393 | 1,000 MB | 60 s, 1.5 GB | **no** |" in text and "load before the runs 0.1" in text
    assert "**0.70** of the tokenizer's own batch rate" in text and "exactly those" in text
