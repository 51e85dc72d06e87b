"""The perplexity of expected answers, against a plain pass over prompt and answer."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.inference.torch_engine import TorchEngine
from tunesmith.pipeline.answer_perplexity import answer_perplexity
from tunesmith.pipeline.evaluating import evaluate, evaluate_ways, prompted
from tunesmith.pipeline.prepare import Prepared, prepare, read_data
from tunesmith.pipeline.stage import engine_of
from tunesmith.recipe import Recipe
from tunesmith.runs import RunFolder


def silent(event: object) -> None:
    """Nobody listens."""


def prepared_with(folder: Path, base: Path, task: str, long: int = 0) -> Prepared:
    rows = [{"prompt": f"say {n} and {n + 1}", "completion": f"it is {n} then {n + 1}"} for n in range(40)]
    rows += [{"prompt": f"long {n} " + "word " * 400, "completion": f"end {n}"} for n in range(long)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe.model_validate(
        {
            "task": task,
            "data": {"train": str(folder / "rows.jsonl"), "split": {"method": "order", "validation": 4, "test": 6}},
            "base": str(base),
            "evaluate": {"max_new_tokens": 4, "bootstrap": 100, "latency_rows": 1},
        }
    )
    return prepare(recipe, read_data(recipe))


def plain(prepared: Prepared) -> float:
    """One ordinary pass per row."""
    nats, count = 0.0, 0
    candidate = prompted("zero_shot", prepared, engine_of(prepared))
    for example in prepared.rows.splits.test:
        turns = [*candidate.prompt(example).messages, example.messages[-1]]
        sample = prepared.renderer.sample(turns, loss="last")
        ids = torch.tensor(sample.ids)[None]
        with torch.inference_mode():
            told = prepared.base.model.eval()(input_ids=ids).logits[0].double().log_softmax(-1)
        for place in range(1, ids.shape[1]):
            if sample.weights[place] > 0:
                nats -= float(told[place - 1, ids[0, place]])
                count += 1
    return math.exp(nats / count)


def test_it_is_that_of_a_plain_pass_and_stands_in_the_notes(tmp_path: Path, base: Path) -> None:
    prepared = prepared_with(tmp_path, base, "generation")
    folder = RunFolder.create_at(tmp_path / "run")
    candidate = prompted("zero_shot", prepared, engine_of(prepared))
    (found,) = evaluate_ways(candidate, prepared, folder, silent)
    assert found.notes["perplexity"] == pytest.approx(plain(prepared), rel=1e-3)
    assert found.notes["perplexity"] > 1 and "perplexity_left_out" not in found.notes


def test_a_second_call_asks_nobody(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepared_with(tmp_path, base, "summarisation")
    folder = RunFolder.create_at(tmp_path / "run")
    candidate = prompted("zero_shot", prepared, engine_of(prepared))
    asked_before = evaluate(candidate, prepared, folder, silent)
    first = answer_perplexity(candidate, asked_before, prepared, folder, silent, adapter=None)

    def asked(*_: Any, **__: Any) -> Any:
        raise AssertionError("asked again")

    monkeypatch.setattr(TorchEngine, "score", asked)
    assert first["perplexity"] > 1
    assert answer_perplexity(candidate, asked_before, prepared, folder, silent, adapter=None) == first
    with pytest.raises(AssertionError, match="asked again"):
        answer_perplexity(candidate, asked_before, prepared, folder, silent, adapter="another")
    # Other documents, examples or wordings make other prompts.
    others = replace(asked_before, rows=tuple(replace(row, prompt=row.prompt + "!") for row in asked_before.rows))
    with pytest.raises(AssertionError, match="asked again"):
        answer_perplexity(candidate, others, prepared, folder, silent, adapter=None)


def test_rows_that_do_not_fit_are_counted_and_labels_have_none(tmp_path: Path, base: Path) -> None:
    prepared = prepared_with(tmp_path, base, "generation", long=2)
    folder = RunFolder.create_at(tmp_path / "run")
    candidate = prompted("zero_shot", prepared, engine_of(prepared))
    answers = evaluate(candidate, prepared, folder, silent)
    found = answer_perplexity(candidate, answers, prepared, folder, silent, adapter=None)
    assert found["perplexity_left_out"] == 2 and found["perplexity"] > 1
    labels = prepared_with(tmp_path, base, "classification")
    candidate = prompted("zero_shot", labels, engine_of(labels))
    assert answer_perplexity(candidate, answers, labels, folder, silent, adapter=None) == {}
