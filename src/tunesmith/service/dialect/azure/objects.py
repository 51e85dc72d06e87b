"""The nouns as Azure's data plane tells them where it tells them otherwise: jobs, events, checkpoints, models.

What is not known yet is null or -1 there, where OpenAI has a text or leaves it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tunesmith.service.catalogue import shown_base
from tunesmith.service.dialect.azure.errors import job_error
from tunesmith.service.evidence import evidence_object
from tunesmith.service.jobs.events import kind_of, shown_data
from tunesmith.service.jobs.names import root_of
from tunesmith.service.jobs.request import AUTO
from tunesmith.service.store.nouns import Checkpoint, Event, Job, JobStatus, Model

UNSET = -1
"""A hyperparameter that is not decided yet."""

_STATUS: Mapping[JobStatus, str] = MappingProxyType({"validating_files": "pending", "queued": "pending"})
_LEVELS: Mapping[str, str] = MappingProxyType({"warn": "warning"})
_TEXTS: Mapping[str, str] = MappingProxyType(
    {
        "queued": "Job enqueued. Waiting for jobs ahead to complete.",
        "started": "Job started.",
        "model": "Postprocessing started.",
        "succeeded": "Job succeeded.",
        "cancelled": "Job canceled.",
        "paused": "Job paused.",
        "resumed": "Job resumed. Waiting for jobs ahead to complete.",
    }
)
"""Events that Azure has words of its own for. Others are told as at OpenAI; none is left out, so pages stay pages."""


def job_object(job: Job) -> dict[str, Any]:
    """A job. `trainingType` and what was resolved are told where they are known."""
    hyperparameters = _numbers(job.hyperparameters)
    kind = job.method.get("type", "supervised")
    told: dict[str, Any] = {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "status": _STATUS.get(job.status, job.status),
        "model": job.model,
        "fine_tuned_model": job.fine_tuned_model,
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "hyperparameters": hyperparameters,
        "method": {"type": kind, kind: {"hyperparameters": hyperparameters}},
        "result_files": list(job.result_files) or None,
        "trained_tokens": job.trained_tokens,
        "estimated_finish": job.estimated_finish,
        "error": job_error(job.error) if job.error else None,
        "seed": job.seed,
        "suffix": job.suffix,
        "metadata": dict(job.metadata) if job.metadata else None,
        "organization_id": None,
        "integrations": [dict(one) for one in job.integrations] or None,
        "evidence": evidence_object(job),
    }
    if "trainingType" in job.extra:
        told["trainingType"] = job.extra["trainingType"]
    if job.resolved:
        told["resolved"] = dict(job.resolved)
    return told


def event_object(event: Event) -> dict[str, Any]:
    """An event in Azure's words; only those of steps have data."""
    told: dict[str, Any] = {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": event.created_at,
        "level": _LEVELS.get(event.level, event.level),
        "message": _message(event),
        "type": event.type,
    }
    data = {name: value for name, value in shown_data(event).items() if name != "total_steps"}
    return told | {"data": data} if data else told


def checkpoint_object(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint: a model as it was after a step."""
    return {
        "id": checkpoint.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": checkpoint.created_at,
        "fine_tuned_model_checkpoint": checkpoint.name,
        "fine_tuning_job_id": checkpoint.job_id,
        "metrics": {name: value for name, value in checkpoint.metrics.items() if name != "total_steps"},
        "step_number": checkpoint.step,
    }


def model_object(model: Model) -> dict[str, Any]:
    """A model with what it can do here. Azure's fields come beside those that the official client needs."""
    base = model.adapter is None and model.job_id is None
    told: dict[str, Any] = {
        "id": model.id,
        "object": "model",
        "created": model.created_at,
        "created_at": model.created_at,
        "updated_at": model.created_at,
        "owned_by": model.owned_by,
        "status": "succeeded",
        "lifecycle_status": "generally-available",
        "capabilities": {
            "fine_tune": True,
            "inference": True,
            "completion": True,
            "chat_completion": True,
            "embeddings": False,
        },
        # Nothing here is ever taken away.
        "deprecation": {},
        "tunesmith": {"base": shown_base(model.base), "kind": model.kind},
    }
    return told if base else told | {"model": root_of(model.id), "fine_tune": model.job_id}


def list_object(items: list[dict[str, Any]], has_more: bool = False) -> dict[str, Any]:
    """A page."""
    return {"object": "list", "data": items, "has_more": has_more}


def _message(event: Event) -> str:
    kind, data = kind_of(event), event.data or {}
    if kind == "step" and "train_loss" in data:
        return f"Step {data['step']}: training loss={data['train_loss']}"
    if kind == "results":
        return f"Completed results file: {data['file']}"
    return _TEXTS.get(kind, event.message)


def _numbers(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: UNSET if value in (AUTO, None) else value for name, value in hyperparameters.items()}
