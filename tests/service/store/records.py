"""Records for tests."""

from __future__ import annotations

from typing import Any

from tunesmith.service.store.nouns import Event, File, Job


def job(id: str = "ftjob-1", **more: Any) -> Job:
    fields: dict[str, Any] = {
        "created_at": 100,
        "model": "gpt-4o-mini",
        "base": "embedded:base",
        "training_file": "file-1",
        "validation_file": None,
        "status": "queued",
        "seed": 1,
        "organization_id": "org",
        "method": {"type": "supervised"},
    }
    return Job(id=id, **{**fields, **more})


def file(id: str = "file-1", **more: Any) -> File:
    fields: dict[str, Any] = {
        "created_at": 100,
        "filename": "a.jsonl",
        "purpose": "fine-tune",
        "bytes": 3,
        "blob": "0" * 64,
    }
    return File(id=id, **{**fields, **more})


def event(seq: int, job_id: str = "ftjob-1", **more: Any) -> Event:
    fields: dict[str, Any] = {"created_at": 100, "level": "info", "message": f"event {seq}"}
    return Event(id=f"ftevent-{job_id}-{seq}", job_id=job_id, seq=seq, **{**fields, **more})
