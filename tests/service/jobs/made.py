"""Rows, files and jobs for these tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.service.context import Service
from tunesmith.service.ids import new_id
from tunesmith.service.store.nouns import File, Job

MODEL = "gpt-4o-mini-2024-07-18"


def chat_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Different questions with different answers."""
    return [
        {
            "messages": [
                {"role": "system", "content": "You name the animal."},
                {"role": "user", "content": f"What stands in cage {number}?"},
                {"role": "assistant", "content": f"In cage {number} stands a beast with {number} spots."},
            ]
        }
        for number in range(start, start + count)
    ]


def completion_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Prompts with separators, and labels that begin with a space."""
    return [
        {"prompt": f"letter {number} about a ball\n\n###\n\n", "completion": " hockey" if number % 2 else " baseball"}
        for number in range(start, start + count)
    ]


def preference_rows(count: int) -> list[dict[str, Any]]:
    """Preferences in the guides' names."""
    return [
        {
            "input": {"messages": [{"role": "user", "content": f"Say {number}."}]},
            "preferred_output": [{"role": "assistant", "content": f"{number}, gladly."}],
            "non_preferred_output": [{"role": "assistant", "content": "No."}],
        }
        for number in range(count)
    ]


def question_rows(count: int) -> list[dict[str, Any]]:
    """Rows for a grader."""
    return [
        {"messages": [{"role": "user", "content": f"What is {number} + 1?"}], "sum": str(number + 1)}
        for number in range(count)
    ]


def lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_bytes(lines(rows))
    return path


def a_file(service: Service, rows: Iterable[Mapping[str, Any]] | bytes, **fields: Any) -> File:
    """A file as an upload leaves it."""
    data = rows if isinstance(rows, bytes) else lines(rows)
    file = File(new_id("file"), 1, "rows.jsonl", "fine-tune", len(data), service.blobs.add(data))
    file = replace(file, **fields)
    service.store.add(file)
    return file


def a_job(**fields: Any) -> Job:
    """A job in no store."""
    numbers = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    job = Job(
        id=new_id("ftjob"),
        created_at=100,
        model=MODEL,
        base="embedded:base",
        training_file="file-train",
        validation_file=None,
        status="queued",
        seed=7,
        organization_id="tunesmith",
        method={"type": "supervised", "supervised": {"hyperparameters": numbers}},
        hyperparameters=numbers,
    )
    return replace(job, **fields)
