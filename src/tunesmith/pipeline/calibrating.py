"""Whether the probabilities of a candidate that scored labels can be believed, kept in the run beside its answers.

The temperature that mends them is fitted on validation rows, which the candidate is asked for once; what is reported is
measured on the test rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.data.types import Example
from tunesmith.evaluation.calibration import Calibration, ReliabilityBin, beliefs_of, calibration
from tunesmith.evaluation.scoring import answer_and_score
from tunesmith.evaluation.types import Candidate, Evaluation, ScoredAnswer
from tunesmith.pipeline.prepare import Listener, Prepared
from tunesmith.pipeline.stage import Stage, data_key, progress
from tunesmith.runs import RunFolder, write_json
from tunesmith.tasks.types import Task

VALIDATION_ROWS = 300
"""Validation rows asked at most, at equal distances. One number is fitted, and of eight labels these fix it to about
6 % (standard deviation over draws); near its minimum the log loss hardly changes.
"""
_VERSION = 2
"""Raised where the same answers give other figures."""
_ENDING = ".calibration.json"


def calibrate(
    candidate: Candidate, evaluation: Evaluation, prepared: Prepared, folder: RunFolder, listener: Listener
) -> Calibration | None:
    """The calibration of a candidate, measured or, for the same answers, read; None where it gave no probabilities.

    Writes `evaluation/<name>.calibration.json` and `evaluation/validation/<name>.jsonl`. Answers to validation rows
    are kept as they come, so that an interrupted run asks for the missing ones only.
    """
    if not any(row.probabilities for row in evaluation.rows):
        return None
    name, splits = evaluation.candidate, prepared.rows.splits
    path = folder.path / "evaluation" / f"{name}{_ENDING}"
    answers = folder.path / "evaluation" / "validation" / f"{name}.jsonl"
    stage = Stage(
        folder,
        f"calibrate_{name}",
        [str(file.relative_to(folder.path)) for file in (path, answers, Path(f"{answers}.partial"))],
        **data_key(prepared),
        answers=_digest(evaluation.rows),
        version=_VERSION,
    )
    if stage.result is not None and path.is_file():
        return _read(path)
    asked = _thinned(splits.validation)
    told: tuple[ScoredAnswer, ...] = ()
    if asked:
        told = answer_and_score(
            candidate, prepared.task, asked, answers, on_progress=progress(listener, "evaluate", f"{name}, validation")
        )
    found = _calibration(name, evaluation.rows, splits.test, told, asked, prepared.task)
    if found is None:
        return None
    write_json(path, asdict(found))
    stage.finish({"ece": found.ece, "temperature": found.temperature})
    return found


def load_calibrations(folder: RunFolder) -> tuple[Calibration, ...]:
    """Those of all candidates of a run, by name; none where no candidate scored labels."""
    return tuple(_read(path) for path in sorted((folder.path / "evaluation").glob(f"*{_ENDING}")))


def _calibration(
    name: str,
    rows: Sequence[ScoredAnswer],
    test: Sequence[Example],
    told: Sequence[ScoredAnswer],
    validation: Sequence[Example],
    task: Task,
) -> Calibration | None:
    """None where no test row has probabilities of its own label."""
    measured, left_out = beliefs_of(_beliefs(rows, test, task))
    if measured is None:
        return None
    fitted, _ = beliefs_of(_beliefs(told, validation, task))
    return calibration(name, measured, fitted, left_out=left_out)


def _beliefs(
    rows: Sequence[ScoredAnswer], examples: Sequence[Example], task: Task
) -> list[tuple[Mapping[str, float] | None, str]]:
    return [(row.probabilities, str(task.target(example))) for row, example in zip(rows, examples, strict=True)]


def _thinned(examples: Sequence[Example]) -> tuple[Example, ...]:
    return tuple(examples[:: max(1, -(-len(examples) // VALIDATION_ROWS))])


def _digest(rows: Sequence[ScoredAnswer]) -> str:
    """What was asked and believed: of the same candidate the same."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.id, row.prompt, dict(row.probabilities or {})]).encode())
    return digest.hexdigest()


def _read(path: Path) -> Calibration:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return _restored(record)


def _restored(record: Mapping[str, Any]) -> Calibration:
    scaled = record["scaled"]
    return Calibration(
        **{
            **record,
            "bins": tuple(ReliabilityBin(**one) for one in record["bins"]),
            "scaled": _restored(scaled) if scaled is not None else None,
        }
    )
