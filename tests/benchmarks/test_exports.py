"""What the acceptance of exports counts as right, its page, and what was published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the script sees it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import exports

    return exports


def verified(**more: Any) -> dict[str, Any]:
    scores = {
        "n": 32, "value": 0.8, "low": 0.7, "high": 0.9, "difference": -0.01, "difference_low": -0.02,
        "difference_high": 0.0, "non_inferior": False,
    }  # fmt: skip
    numbers = {"mean_kl": 0.002, "top1_agreement": 0.99, "answer_agreement": 0.9, "scores": scores}
    return {
        "outcome": "verified",
        "bytes": 10_000_000,
        "facts": {"speed": {"decode": 123.4}},
        "verifications": [{"adapter": None, "numbers": numbers}],
        "others": [{"tool": "peft", "same_tokens": True, "kl": 1e-5, "right": True}],
        **more,
    }


STEP = {"outcome": "step", "step": "building", "reason": "no such layer", "instead": "--to gguf"}


def test_what_must_come_out_and_what_may_say_why_not(bench):
    assert bench.right("qwen3", "onnx-int4", verified())
    assert not bench.right("qwen3", "onnx-int4", STEP) and not bench.right("tasteset", "onnx-int4", STEP)
    assert bench.right("gemma3", "onnx-int4", STEP) and bench.right("qwen3", "openvino-int8", STEP)
    assert not bench.right("gemma3", "merged", STEP)
    assert not bench.right("phi3", "gguf-f16", {"outcome": "failed", "reason": "logits"})
    other = {"tool": "peft", "same_tokens": False, "kl": 1e-5, "right": False}
    assert not bench.right("phi3", "adapter", verified(others=[other]))
    assert bench.right("phi3", "gguf-f16", verified(others=[{"said": "it reads no such files"}]))
    assert "it reads no such files" in bench.said(verified(others=[{"said": "it reads no such files"}]))


def test_the_page_says_figures_and_reasons(bench):
    text = bench.page(
        {"tasteset": {"merged": verified()}, "gemma3": {"adapter": verified(), "onnx-int4": STEP}}, ["qwen3"]
    )
    assert "| merged | 10.0 | 123 |  | 32 | 80.0 % (70.0 to 90.0) |" in text
    assert "On the Pareto front of quality and size: merged." in text
    assert "| onnx-int4 | – (1) |" in text
    assert "1. gemma3, building: no such layer. Instead: --to gguf" in text
    assert "| peft | 2 | 1e-05 | 2 of 2 |" in text


def test_what_was_published_is_as_it_must_be(bench):
    newest = max((BENCHMARKS / "results").glob("exports-*.json"))
    found = json.loads(newest.read_text())["found"]
    wrong = [
        (case, name) for case, kept in found.items() for name, one in kept.items() if not bench.right(case, name, one)
    ]
    assert not wrong
    assert {"tasteset", *bench.FAMILIES} == set(found)
    assert all({str(target) for target in bench.TARGETS} <= set(kept) for kept in found.values())
    assert bench.page(found, bench.REQUIRED) == (BENCHMARKS / "exports.md").read_text()
