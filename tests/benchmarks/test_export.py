"""The benchmark of exports: every engine in a process of its own on a tiny model, and what the page says."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import build, byte_tokenizer
from tunesmith.models.artifact import Target

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the script sees it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import export

    return export


def row(name: str, decode: list[float], size: int = 10, **more: Any) -> dict[str, Any]:
    """Figures of one case as the report holds them."""
    found = {
        "name": name, "threads": 1, "skipped": None, "decode": decode, "prefill": [100.0], "first_ms": [640.0],
        "decode_by_clock": decode, "load": [0.5], "bytes": size, "peak": 5_000_000, "imports": 2_000_000, "kl": 0.01,
        "top1": 0.9,
    }  # fmt: skip
    return found | more


def test_engines_in_processes_of_their_own_are_the_same_model(bench: Any, tmp_path: Path) -> None:
    from _export_models import Model
    from _serve_models import make_adapter

    base = tmp_path / "base"
    build("llama").save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    model = Model("tiny", base, make_adapter(base, tmp_path / "adapter", 1))
    wanted = [
        bench.Case(f"{bench.PLAIN}, 1 thread", threads=1),
        bench.Case("onnx-plain fp32", Target("onnx-plain", "fp32")),
        bench.Case("gguf nonsense", Target("gguf", "q4_k_m")),
    ]
    options = argparse.Namespace(threads=1, rounds=2, prompt=12, new=6, llama_python=sys.executable)
    plain, onnx, skipped = bench.measure(model, wanted, tmp_path, options)
    for one in (plain, onnx):
        assert len(one.first) == len(one.rest) == len(one.load) == 2 and min(one.first + one.rest + one.clock) > 0
        assert one.size > 0 and one.peak > one.imports > 1e7
    assert plain.kl == 0 and plain.top1 == 1
    assert onnx.kl < 1e-6 and onnx.top1 > 0.99
    assert skipped.skipped and not skipped.rest and bench.summary("tiny", [skipped.to_dict(12, 6), row(
        f"{bench.PLAIN}, 1 thread", [1.0])]) == {}  # fmt: skip
    again = (tmp_path / "onnx-plain-fp32" / "model.onnx").stat().st_mtime_ns
    bench._job(model, bench.Measured(wanted[1], 1), tmp_path, 12, 6)
    assert (tmp_path / "onnx-plain-fp32" / "model.onnx").stat().st_mtime_ns == again  # written once


def test_parity_is_the_mean_divergence_and_the_share_of_equal_top_tokens(bench: Any) -> None:
    expected = np.log(np.array([[[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]]], dtype=np.float32))
    found = np.log(np.array([[[0.25, 0.5, 0.25], [0.8, 0.1, 0.1]]], dtype=np.float32)) + 7
    kl, top = bench.parity(expected, found)
    assert kl == pytest.approx((0.5 * np.log(2) - 0.25 * np.log(2)) / 2, rel=1e-5) and top == 0.5
    assert bench.parity(expected, expected) == (0, 1)


def test_only_exports_that_are_small_enough_count_and_against_the_better_threads(bench: Any) -> None:
    rows = [
        row(f"{bench.PLAIN}, 1 thread", [10.0], 100),
        row(f"{bench.PLAIN}, 2 threads", [19.0, 20.0, 90.0], 100),
        row("onnx int8", [200.0], 32),
        row("onnx int4", [80.0, 100.0, 110.0], 30),
        row("gguf q8_0", [85.0], 28, kl=0.001),
        row("gguf f16", [50.0], 28, kl=0.0),
        row("onnx-multi int4, adapter switched in", [60.0], 31),
        {"name": "torchao int8", "threads": 1, "skipped": "torchao is not installed"},
    ]
    found = bench.summary("135M-untied", rows)
    assert found["best"] == {"name": "onnx int4", "times": 5.0, "share": 0.3, "kl": 0.01}
    assert found["nearest"]["name"] == "gguf q8_0"
    assert found["reached"] and found["switched"] == 3.0 and not found["switched_reached"]
    assert "reached" not in bench.summary("embedded", rows)
    report = {
        "machine": "a machine", "date": "2026-01-02", "costs": [
            {"model": "135M-tied", "export": "onnx int4", "seconds": 140.0, "computing": 130.0,
             "peak": 2_000_000_000, "load": 0.1, "reached": False}],
        "models": {"x": {"model": "135M-untied", "threads": 2, "prompt": 64, "new": 64, "parameters": 163_000_000,
                         "measured": "2026-01-02T03:04+00:00", "summary": found, "rows": rows}},
    }  # fmt: skip
    assert [line.partition(":")[0] for line in bench.missed(report)] == ["x", "135M-tied, onnx int4"]
    text = bench.page(report)
    assert "| torchao int8 | left out: torchao is not installed |" in text
    assert "SmolLM2-135M's shape, head apart, 2 threads | onnx int4 | **5.00** | 4, 6: yes | 0.300" in text
    assert "**3.00** | 3.5: **no** |" in text and "| 130 | 140 | 2.00 | 0.1 | **no** |" in text
    widths = {
        line.count("|") for line in text.splitlines() if line.startswith(("| transformers", "| torchao", "| onnx"))
    }
    assert len(widths) == 1


def test_memory_of_what_a_process_started_counts(bench: Any) -> None:
    from _export_cost import watched

    inner = "import time; held = bytearray(150_000_000); time.sleep(0.5)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], start_new_session=True)"
    cost = watched([sys.executable, "-c", outer])
    assert 150e6 < cost.peak < 400e6 and 0 < cost.computing < cost.seconds < 60 and cost.seconds > 0.5
    with pytest.raises(RuntimeError, match="status 3"):
        watched([sys.executable, "-c", "raise SystemExit(3)"])


def test_the_page_says_what_the_results_say(bench: Any) -> None:
    newest = max((BENCHMARKS / "results").glob("export-*.json"))
    report = json.loads(newest.read_text(encoding="utf-8"))
    assert bench.page(report) == (BENCHMARKS / "export.md").read_text(encoding="utf-8")
    assert bench.missed(report) == report["missed"]
    for one in report["models"].values():
        assert bench.summary(one["model"], one["rows"]) == one["summary"]
