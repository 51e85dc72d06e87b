"""Test rows that stand in the recorded training text of the base weaken the verdict, and it says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import save_base
from tunesmith import Recipe, run
from tunesmith.models.training_text import TrainingTextRecord

QUESTIONS = [f"What should be done about parcel number {i} that never arrived here?" for i in range(20)]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    base = save_base(tmp_path / "base")
    for part, rows in (("train", QUESTIONS[:12]), ("validation", QUESTIONS[12:14]), ("test", QUESTIONS[14:])):
        lines = [f'"{q}",{("ask", "send")[i % 2]}' for i, q in enumerate(rows)]
        (tmp_path / f"{part}.csv").write_text("question,label\n" + "\n".join(lines) + "\n")
    files = {part: str(tmp_path / f"{part}.csv") for part in ("train", "validation", "test")}
    return Recipe.model_validate(
        {
            "task": "classification",
            "data": {**files, "columns": {"prompt": "question", "answer": "label"}},
            "base": str(base),
            "method": {"rank": 2},
            "train": {"max_steps": 1, "evaluations": 0, "tensorboard": False},
            "baselines": [],
            "evaluate": {"bootstrap": 100, "latency_rows": 1, "max_new_tokens": 4},
        }
    )


def record(tmp_path: Path, texts: list[str]) -> None:
    TrainingTextRecord.from_texts(texts).save(tmp_path / "base" / "training_text.hashes")


def test_seen_rows_are_counted_in_the_verdict_and_named_in_the_manifest(recipe: Recipe, tmp_path: Path) -> None:
    record(tmp_path, [QUESTIONS[0], QUESTIONS[15].upper(), QUESTIONS[17]])  # one is a training row: it does not count
    result = run(recipe, out=tmp_path / "run")
    assert result.verdict is not None
    assert [c for c in result.verdict.caveats if c.startswith("2 of 6 test rows occur in the text the base was")]
    assert len(result.folder.manifest()["base"]["test_rows_in_training_text"]) == 2


def test_without_seen_rows_nothing_is_said(recipe: Recipe, tmp_path: Path) -> None:
    record(tmp_path, ["An entirely different text that nobody asks about here."])
    result = run(recipe, out=tmp_path / "run")
    assert result.verdict is not None
    assert not [c for c in result.verdict.caveats if "the base" in c and "occur" in c]


def test_a_base_without_a_record_is_said_to_have_none(recipe: Recipe, tmp_path: Path) -> None:
    result = run(recipe, out=tmp_path / "run")
    assert result.verdict is not None
    assert [c for c in result.verdict.caveats if "without such a record" in c]
