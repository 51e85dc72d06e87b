"""Calibration in a run: measured where labels were scored, kept, and measured anew only where answers changed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.pipeline.conftest import QUICK
from tests.tasks.rows import example
from tunesmith.data.types import Example
from tunesmith.evaluation.scoring import score_answer
from tunesmith.evaluation.types import Answer, Evaluation
from tunesmith.pipeline import calibrating
from tunesmith.pipeline.calibrating import calibrate, load_calibrations
from tunesmith.recipe.schema import Task as TaskSpec
from tunesmith.runs import RunFolder
from tunesmith.tasks import Task, fit_task

TEST = [example(f"test {i}", "ab"[i % 2], line=i) for i in range(40)]
VALIDATION = [example(f"validation {i}", "ab"[i % 2], line=100 + i) for i in range(30)]


@dataclass
class Sure:
    """Says the right label with `right`, but for the first validation row; `asked` counts rows."""

    right: float = 0.9
    name: str = "tuned_scored"
    breaks_after: int | None = None
    asked: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def answer(self, examples: Sequence[Example], skip: int = 0) -> Iterator[Answer]:
        for one in examples[skip:]:
            if self.breaks_after is not None and len(self.asked) >= self.breaks_after:
                raise KeyboardInterrupt
            self.asked.append(one.id)
            other = "b" if one.expected == "a" else "a"
            right = 1 - self.right if one.id == VALIDATION[0].id else self.right
            said = one.expected if right > 0.5 else other
            yield Answer(said, one.question, probabilities={one.expected: right, other: 1 - right})


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What calibration needs of a prepared run: its rows and its task."""
    monkeypatch.setattr(calibrating, "data_key", lambda prepared: {"rows": "the same"})
    task = fit_task(TaskSpec(), "classification", TEST + VALIDATION)  # type: ignore[call-arg]
    splits = SimpleNamespace(test=tuple(TEST), validation=tuple(VALIDATION))
    return SimpleNamespace(task=task, rows=SimpleNamespace(splits=splits))


def evaluated(candidate: Sure, task: Task) -> Evaluation:
    rows = tuple(score_answer(task, one, answer) for one, answer in zip(TEST, candidate.answer(TEST), strict=True))
    candidate.asked.clear()
    return Evaluation(candidate.name, rows, (), 0.1, 0.2, 1.0)


def silent(event: dict[str, Any]) -> None:
    """Hears nothing."""


def test_validation_rows_are_asked_once_and_the_result_is_kept(tmp_path: Path, prepared: Any) -> None:
    folder, candidate = RunFolder.create_at(tmp_path / "run"), Sure()
    evaluation = evaluated(candidate, prepared.task)
    found = calibrate(candidate, evaluation, prepared, folder, silent)
    assert found is not None and found.n == 40 and found.fitted_on == 30 and found.left_out == 0
    # It is right in 29 of 30 validation rows and says 0.9: too modest.
    assert found.ece == pytest.approx(0.1) and found.temperature == pytest.approx(math.log(9) / math.log(29), rel=1e-4)
    assert found.scaled is not None and found.scaled.ece == pytest.approx(1 / 30, rel=1e-3)
    assert candidate.asked == [one.id for one in VALIDATION]
    assert calibrate(candidate, evaluation, prepared, folder, silent) == found and len(candidate.asked) == 30
    assert load_calibrations(folder) == (found,)


def test_other_answers_are_measured_anew(tmp_path: Path, prepared: Any) -> None:
    folder, first, second = RunFolder.create_at(tmp_path / "run"), Sure(), Sure(0.2)
    before = calibrate(first, evaluated(first, prepared.task), prepared, folder, silent)
    after = calibrate(second, evaluated(second, prepared.task), prepared, folder, silent)
    assert before is not None and after is not None and after.ece == pytest.approx(0.8)
    assert len(second.asked) == 30 and load_calibrations(folder) == (after,)


def test_an_interrupted_asking_goes_on_where_it_was(tmp_path: Path, prepared: Any) -> None:
    folder, candidate = RunFolder.create_at(tmp_path / "run"), Sure()
    evaluation = evaluated(candidate, prepared.task)
    candidate.breaks_after = 12
    with pytest.raises(KeyboardInterrupt):
        calibrate(candidate, evaluation, prepared, folder, silent)
    assert load_calibrations(folder) == ()
    candidate.breaks_after = None
    found = calibrate(candidate, evaluation, prepared, folder, silent)
    assert found is not None and found.fitted_on == 30
    assert candidate.asked == [one.id for one in VALIDATION]


def test_without_probabilities_or_validation_rows(tmp_path: Path, prepared: Any) -> None:
    folder, candidate = RunFolder.create_at(tmp_path / "run"), Sure()
    evaluation = evaluated(candidate, prepared.task)
    free = replace(evaluation, rows=tuple(replace(row, probabilities=None) for row in evaluation.rows))
    assert calibrate(candidate, free, prepared, folder, silent) is None
    assert load_calibrations(folder) == () and candidate.asked == []
    prepared.rows.splits.validation = ()
    found = calibrate(candidate, evaluation, prepared, folder, silent)
    assert found is not None and found.scaled is None and found.temperature is None


def test_many_validation_rows_are_thinned(tmp_path: Path, prepared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrating, "VALIDATION_ROWS", 14)
    folder, candidate = RunFolder.create_at(tmp_path / "run"), Sure()
    calibrate(candidate, evaluated(candidate, prepared.task), prepared, folder, silent)
    assert candidate.asked == [one.id for one in VALIDATION[::3]]


def test_a_run_that_scores_labels_keeps_their_calibration(project: Path, tunesmith: Any) -> None:
    told = ("run", "recipe.yaml", "--json", *QUICK, "--set", "baselines=[zero_shot]",
            "--set", "evaluate.decoding=[scored]", "--set", "data.split.validation=30")  # fmt: skip
    said = tunesmith(*told)
    assert said.code == 0, said
    run = RunFolder(Path(said.json["run"]))
    found = {one.candidate: one for one in load_calibrations(run)}
    assert set(found) == {"zero_shot", "tuned"}
    for one in found.values():
        assert one.n == 40 and one.fitted_on == 30 and one.temperature is not None and one.left_out == 0
        assert 0 <= one.ece <= 1 and 0 <= one.brier <= 2 and sum(each.n for each in one.bins) == 40
        assert one.scaled is not None and one.scaled.log_loss > 0
    kept = json.loads((run.path / "evaluation" / "tuned.calibration.json").read_text())
    assert kept["temperature"] == found["tuned"].temperature
    assert "reliability" in run.report.read_text(encoding="utf-8").lower()
