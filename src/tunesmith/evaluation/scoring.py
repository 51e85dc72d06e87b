"""Asking a candidate, scoring its answers, and keeping them so that an interrupted evaluation continues.

Rows go to `<name>.jsonl.partial` as they arrive and get their final name when all are there. A repeated call takes the
rows that are already written, if they are the same examples in the same order, and asks for the rest only.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from tunesmith.data.types import Example
from tunesmith.errors import DataError, EngineError, ResourceError
from tunesmith.evaluation.prompts import PromptCandidate
from tunesmith.evaluation.types import Answer, Candidate, ScoredAnswer
from tunesmith.tasks.types import Task

Progress = Callable[[int, int], None]
"""Called with (rows answered, rows in all)."""


def answer_and_score(
    candidate: Candidate,
    task: Task,
    examples: Sequence[Example],
    path: Path,
    *,
    on_progress: Progress | None = None,
) -> tuple[ScoredAnswer, ...]:
    """Every example answered, scored and written to `path`, one JSON object per line.

    A complete file for these examples is read, not asked again; whoever changes a candidate under the same name
    removes the file. Raises `DataError` without examples, `EngineError` where the candidate gives too few answers,
    `ResourceError` where the file cannot be written.
    """
    if not examples:
        raise DataError("there are no rows to evaluate on", expected="at least one test row", fix="give data.test")
    finished = finished_rows(path, examples)
    if finished is not None:
        return finished
    return _answer_rest(candidate, task, examples, path, on_progress)


def finished_rows(path: Path, examples: Sequence[Example]) -> tuple[ScoredAnswer, ...] | None:
    """The rows of a complete file for exactly these examples, else None."""
    if not path.is_file():
        return None
    rows, _ = _read_rows(path, examples)
    return tuple(rows) if len(rows) == len(examples) else None


def measure_latency(candidate: Candidate, examples: Sequence[Example], rows: int) -> tuple[float, float]:
    """Median and 95th percentile of the seconds that one request takes, asked one at a time.

    `rows` examples are taken at equal distances; the first is asked once more before, unmeasured, so that nothing is
    loaded or built within the measurement; nothing is drawn beside the greedy answer. Changes the candidate's notes:
    read those before.
    """
    if not examples:
        raise DataError("there are no rows to measure latency on", expected="at least one row", fix="give data.test")
    if isinstance(candidate, PromptCandidate):
        candidate = replace(candidate, draws=None)
    positions = np.linspace(0, len(examples) - 1, min(rows, len(examples))).round().astype(int)
    chosen = [examples[position] for position in positions]
    _seconds_of(candidate, chosen[0])
    seconds = [_seconds_of(candidate, example) for example in chosen]
    p50, p95 = np.percentile(seconds, [50, 95])
    return float(p50), float(p95)


def score_answer(task: Task, example: Example, answer: Answer) -> ScoredAnswer:
    """One answer parsed and scored by every metric of the task."""
    texts = (answer.text, *answer.samples)
    parsed = task.read_samples(texts, example) if answer.samples else task.read(answer.text, example)
    target = task.target(example)
    scores = {
        name: float(metric.item(metric.statistics([parsed], [target]))[0]) for name, metric in task.metrics.items()
    }
    return ScoredAnswer(
        id=example.id,
        prompt=answer.prompt,
        answer=answer.text,
        expected=example.expected,
        parsed=parsed,
        scores=scores,
        prompt_tokens=answer.prompt_tokens,
        answer_tokens=answer.answer_tokens,
        stopped=answer.stopped,
        probabilities=answer.probabilities,
        samples=answer.samples,
    )


def _seconds_of(candidate: Candidate, example: Example) -> float:
    start = time.perf_counter()
    for _ in candidate.answer([example]):
        pass
    return time.perf_counter() - start


def _answer_rest(
    candidate: Candidate, task: Task, examples: Sequence[Example], path: Path, on_progress: Progress | None
) -> tuple[ScoredAnswer, ...]:
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        rows, size = _read_rows(partial, examples) if partial.is_file() else ([], 0)
        file = partial.open("ab")
    try:
        if file.tell() > size:
            file.truncate(size)
        answers = candidate.answer(examples, skip=len(rows))
        for example, answer in zip(examples[len(rows) :], answers, strict=False):
            rows.append(score_answer(task, example, answer))
            with writing(path):
                _write_row(file, rows[-1])
            if on_progress is not None:
                on_progress(len(rows), len(examples))
        if len(rows) < len(examples):
            raise EngineError(
                f"{candidate.name} gave {len(rows)} answers to {len(examples)} rows",
                where=str(partial),
                expected="one answer per row",
                fix="repeat the command; it continues with the missing rows",
            )
        with writing(path):
            os.fsync(file.fileno())
    finally:
        with writing(path):
            file.close()
    with writing(path):
        partial.replace(path)
    return tuple(rows)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says why a file cannot be written. Only around file operations: an engine's own OSError is another story."""
    try:
        yield
    except OSError as problem:
        raise ResourceError(
            f"the evaluation cannot be written: {problem.strerror or problem}",
            where=str(path),
            expected="a writable folder with space left",
            fix="free some space or choose another output.dir; the answers so far are kept",
        ) from problem


def _write_row(file: IO[bytes], row: ScoredAnswer) -> None:
    # A lone surrogate can come out of a byte-level model; it has no UTF-8 form, only a JSON escape.
    line = json.dumps(asdict(row), ensure_ascii=False)
    try:
        data = line.encode()
    except UnicodeEncodeError:
        data = json.dumps(asdict(row)).encode()
    file.write(data + b"\n")
    file.flush()


def _read_rows(path: Path, examples: Sequence[Example]) -> tuple[list[ScoredAnswer], int]:
    """The rows at the beginning of a file that belong to `examples`, and the bytes they take.

    A last line that was cut is left out. One row of another example makes the whole file worthless: no rows, 0 bytes.
    """
    rows: list[ScoredAnswer] = []
    size = 0
    with path.open("rb") as file:
        for line in file:
            row = _read_row(line)
            if row is None:
                break
            if len(rows) == len(examples) or not _belongs(row, examples[len(rows)]):
                return [], 0
            rows.append(row)
            size += len(line)
    return rows, size


def _read_row(line: bytes) -> ScoredAnswer | None:
    """One row, or None for a line that was not written to its end."""
    if not line.endswith(b"\n"):
        return None
    try:
        values: dict[str, Any] = json.loads(line)
        return ScoredAnswer(**{**values, "samples": tuple(values.get("samples", ()))})
    except (ValueError, TypeError):
        return None


def _belongs(row: ScoredAnswer, example: Example) -> bool:
    return row.id == example.id and row.expected == example.expected
