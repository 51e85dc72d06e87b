"""The ways of answering in a run: candidates of their own, kept, continued, and measured with the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipeline.conftest import RECIPE, tone_rows, write_csv
from tunesmith.evaluation.prompts import PromptCandidate
from tunesmith.pipeline.evaluating import evaluate_ways, is_tuned, prompted, ways
from tunesmith.pipeline.prepare import Prepared, prepare, read_data
from tunesmith.pipeline.stage import engine_of
from tunesmith.recipe import Recipe
from tunesmith.runs import RunFolder

TONES = {"cold", "neutral", "warm"}


def prepared_with(folder: Path, base: Path, evaluate: str = "", more: str = "", data: str = "rows.csv") -> Prepared:
    write_csv(folder / "rows.csv", tone_rows())
    text = RECIPE.format(base=base).replace("bootstrap: 200", f"bootstrap: 200{evaluate}") + more
    changes = {"rows.csv": data, "test: 40": "test: 12", "max_new_tokens: 16": "max_new_tokens: 8"}
    for old, new in {**changes, "batch_size: 2": "batch_size: 8", "latency_rows: 3": "latency_rows: 1"}.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "recipe.yaml").write_text(text)
    recipe = Recipe.from_yaml(folder / "recipe.yaml")
    return prepare(recipe, read_data(recipe))


def silent(event: object) -> None:
    """Nobody listens."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_labels_are_answered_freely_and_scored_by_default(here: Path, base: Path) -> None:
    prepared = prepared_with(here, base)
    assert list(ways(prepared)) == ["free", "scored"]
    folder = RunFolder.create_at(here / "run")
    candidate = prompted("zero_shot", prepared, engine_of(prepared))
    found = evaluate_ways(candidate, prepared, folder, silent)
    assert [one.candidate for one in found] == ["zero_shot", "zero_shot_scored"]
    free, scored = found
    assert all(row.parsed in TONES and row.stopped for row in scored.rows)
    for row in scored.rows:
        assert row.probabilities is not None and set(row.probabilities) == TONES
        assert sum(row.probabilities.values()) == pytest.approx(1)
    assert all(row.probabilities is None for row in free.rows) and free.notes["decoding"] == "free"
    assert (folder.path / "evaluation" / "zero_shot_scored.calibration.json").is_file()


def test_a_second_call_asks_nobody(here: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepared_with(here, base, ", decoding: [grammar, free]")
    folder = RunFolder.create_at(here / "run")
    candidate = prompted("zero_shot", prepared, engine_of(prepared))
    first = evaluate_ways(candidate, prepared, folder, silent)
    assert [one.candidate for one in first] == ["zero_shot", "zero_shot_free"]
    assert candidate.decoding == "grammar" and all(row.parsed in TONES for row in first[0].rows)
    assert first[1].notes["cut"] > 0  # a random model does not stop by itself
    monkeypatch.setattr(PromptCandidate, "answer", None)
    assert evaluate_ways(candidate, prepared, folder, silent) == first


def test_another_way_under_the_same_name_is_asked_anew(here: Path, base: Path) -> None:
    folder = RunFolder.create_at(here / "run")
    free = prepared_with(here, base, ", decoding: [free]")
    before = evaluate_ways(prompted("zero_shot", free, engine_of(free)), free, folder, silent)
    held = prepared_with(here, base, ", decoding: [grammar]")
    after = evaluate_ways(prompted("zero_shot", held, engine_of(held)), held, folder, silent)
    assert [one.candidate for one in before + after] == ["zero_shot"] * 2
    assert all(row.parsed in TONES for row in after[0].rows) and not all(row.parsed for row in before[0].rows)


def test_several_answers_per_row_are_drawn_and_kept(here: Path, base: Path) -> None:
    rows = [{"ask": f"number {i}", "code": f"x = {i}", "test": f"assert x == {i}"} for i in range(40)]
    (here / "code.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = "code.jsonl, columns: {prompt: ask, answer: [code, test]}"
    prepared = prepared_with(here, base, ", samples: 2", "task: code\n", data)
    folder = RunFolder.create_at(here / "run")
    found = evaluate_ways(prompted("zero_shot", prepared, engine_of(prepared)), prepared, folder, silent)
    assert [one.candidate for one in found] == ["zero_shot"]
    assert all(len(row.samples) == 2 and len(row.parsed) == 3 for row in found[0].rows)
    assert {value.metric for value in found[0].metrics} == {"exact_match", "valid_python"}
    again = evaluate_ways(prompted("zero_shot", prepared, engine_of(prepared)), prepared, folder, silent)
    assert again == found


def test_which_names_are_the_tuned_model() -> None:
    assert all(map(is_tuned, ("tuned", "tuned_scored", "tuned_grammar", "tuned_free")))
    assert not any(map(is_tuned, ("zero_shot_scored", "tuned_merged", "untuned")))
