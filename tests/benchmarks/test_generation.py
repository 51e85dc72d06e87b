"""The benchmark of generation on a tiny model: both sides answer the same rows, and the page says what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.inference.test_torch_engine import stopping_model
from tests.tiny import byte_tokenizer
from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.text.render import Renderer

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as the script sees it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import generation

    monkeypatch.setattr(generation, "PREFIX_TOKENS", 150)
    return generation


def test_both_sides_are_asked_the_same_and_compared(bench: Any) -> None:
    engine = TorchEngine(stopping_model(), Renderer(byte_tokenizer(), "raw"), context=512)
    work = bench.workload("labels", engine, bench.intents(None), "Classify.", 6, 8)
    shared = {prompt[:-1][-1].content for prompt in work.prompts}
    assert len(work.prompts) == 6 and len(shared) == 1 and work.source == "generated"
    assert all(engine.count_tokens(prompt[:-1]) >= 150 for prompt in work.prompts)
    compared = bench.compare(engine, work, rounds=2)
    assert compared.same == compared.rows == 6 and len(compared.ours) == len(compared.theirs) == 2
    scored = bench.scored(engine, work, 2, 1)
    assert scored["largest_difference"] < 1e-4 and scored["labels"] == len(work.labels)
    held = bench.held(engine, work, 2)
    assert held["answers_that_are_labels"]["free"] == 0


def test_the_page_shows_the_figures(bench: Any) -> None:
    one = {"workload": "labels", "source": "generated", "max_new_tokens": 8, "rows": 4, "ours": [40.0, 30.0],
           "theirs": [5.0, 6.0], "times": 6.5, "same": 4, "answer_tokens": 3.2}  # fmt: skip
    report = {
        "date": "2026-01-02T03:04:05",
        "machine": "a machine",
        "base": "b",
        "threads": 2,
        "load_before": 0.1,
        "compared": [one],
    }
    assert "| labels | generated | 8 tokens | 3.2 | 40.0, 30.0 | 5.0, 6.0 | **6.5** | 4 of 4 |" in bench.page(report)


def test_too_few_rows_are_told(bench: Any) -> None:
    engine = TorchEngine(stopping_model(), Renderer(byte_tokenizer(), "raw"), context=512)
    with pytest.raises(SystemExit, match="only"):
        bench.workload("labels", engine, ("few", [("a question", "label") for _ in range(20)]), "Classify.", 30, 8)
