"""`/fine_tuning`: jobs with their events, checkpoints and reports, and who may use a checkpoint."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from tunesmith.service.context import Service, service_of
from tunesmith.service.errors import ApiError
from tunesmith.service.evidence import evidence_object, report_html, report_of
from tunesmith.service.http import list_body, metadata_query, paging
from tunesmith.service.jobs import operations, permissions
from tunesmith.service.jobs.events import shown_data
from tunesmith.service.jobs.lifecycle import FINAL
from tunesmith.service.jobs.request import JobRequest, PermissionRequest
from tunesmith.service.store.interface import Page
from tunesmith.service.store.nouns import Checkpoint, Event, Job, Permission

MOST_EVENTS = 1_000
LOOK_SECONDS, DRIP_SECONDS = 0.2, 1.0
"""While an answer is held: how often the job is looked at, and how often a space is sent, so that no client with a
read time-out of more than a second gives up."""

_ALONE = {"content-security-policy": "sandbox allow-scripts", "x-content-type-options": "nosniff"}
"""A report shows rows of users: its page has no origin, so nothing in it can speak to this server."""

router = APIRouter(prefix="/fine_tuning", tags=["Fine-tuning"])
_Service = Annotated[Service, Depends(service_of)]
_Newest = Annotated[Page, Depends(paging(largest=MOST_EVENTS))]
_Ten = Annotated[Page, Depends(paging(default=10, largest=MOST_EVENTS))]


def _metadata(request: Request) -> dict[str, str] | None:
    """The filter of a list of jobs: empty for those without metadata, None for all."""
    return {} if request.query_params.getlist("metadata") == ["null"] else metadata_query(request)


def job_object(job: Job) -> dict[str, Any]:
    """OpenAI's job. Beside its fields stand `resolved`, what is really done and why, and `evidence`, how far the
    evaluation is (`GET …/report` shows it).
    """
    return {
        "object": "fine_tuning.job",
        "id": job.id,
        "model": job.model,
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": job.organization_id,
        "result_files": list(job.result_files),
        "status": job.status,
        "validation_file": job.validation_file,
        "training_file": job.training_file,
        "hyperparameters": dict(job.hyperparameters),
        "trained_tokens": job.trained_tokens,
        "error": dict(job.error) if job.error else {},
        "user_provided_suffix": job.suffix,
        "seed": job.seed,
        "estimated_finish": job.estimated_finish,
        "integrations": [dict(one) for one in job.integrations],
        "metadata": dict(job.metadata) if job.metadata is not None else None,
        "usage_metrics": None,
        "shared_with_openai": False,
        "eval_id": None,
        "method": dict(job.method),
        "resolved": dict(job.resolved),
        "evidence": evidence_object(job),
    }


def event_object(event: Event) -> dict[str, Any]:
    """OpenAI's event."""
    return {
        "object": "fine_tuning.job.event",
        "id": event.id,
        "created_at": event.created_at,
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": shown_data(event),
    }


def checkpoint_object(checkpoint: Checkpoint) -> dict[str, Any]:
    """OpenAI's checkpoint."""
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": checkpoint.id,
        "created_at": checkpoint.created_at,
        "fine_tuned_model_checkpoint": checkpoint.name,
        "fine_tuning_job_id": checkpoint.job_id,
        "metrics": {name: value for name, value in checkpoint.metrics.items() if name != "total_steps"},
        "step_number": checkpoint.step,
    }


def permission_object(permission: Permission) -> dict[str, Any]:
    """OpenAI's permission."""
    return {
        "object": "checkpoint.permission",
        "id": permission.id,
        "created_at": permission.created_at,
        "project_id": permission.project_id,
    }


@router.post("/jobs")
def create(body: JobRequest, service: _Service) -> dict[str, Any]:
    """Create a job; answered at once, in `validating_files`."""
    return job_object(operations.create_job(service, body))


@router.get("/jobs")
def list_jobs(
    service: _Service, page: _Newest, metadata: Annotated[dict[str, str] | None, Depends(_metadata)]
) -> dict[str, Any]:
    """Jobs, newest first; `metadata[k]=v` keeps those that hold all of it, `metadata=null` those that have none."""
    found = operations.list_jobs(service, page, metadata)
    return list_body([job_object(one) for one in found.items], found.has_more, ends=False)


@router.get("/jobs/{id}", response_model=None)
async def retrieve(id: str, request: Request, service: _Service) -> Response:
    """One job. With `--wait-jobs` the answer of one that goes on is held, a space at a time, until it has ended."""
    job = await run_in_threadpool(operations.find_job, service, id)
    return retrieved(request, service, job, job_object)


@router.post("/jobs/{id}/cancel")
def cancel(id: str, service: _Service) -> dict[str, Any]:
    """End a job."""
    return job_object(operations.cancel_job(service, id))


@router.post("/jobs/{id}/pause")
def pause(id: str, service: _Service) -> dict[str, Any]:
    """Stop a job so that it can be resumed."""
    return job_object(operations.pause_job(service, id))


@router.post("/jobs/{id}/resume")
def resume(id: str, service: _Service) -> dict[str, Any]:
    """Go on with a paused job."""
    return job_object(operations.resume_job(service, id))


@router.get("/jobs/{id}/events")
def list_events(id: str, service: _Service, page: _Newest) -> dict[str, Any]:
    """What happened, newest first."""
    found = operations.list_events(service, id, page)
    return list_body([event_object(one) for one in found.items], found.has_more, ends=False)


@router.get("/jobs/{id}/checkpoints")
def list_checkpoints(id: str, service: _Service, page: _Ten) -> dict[str, Any]:
    """Models of earlier steps that answer by name, newest first."""
    found = operations.list_checkpoints(service, id, page)
    return list_body([checkpoint_object(one) for one in found.items], found.has_more)


@router.get("/jobs/{id}/report", response_model=None)
def report(id: str, request: Request, service: _Service) -> Response:
    """Baselines, scores and verdict of a job's model: JSON, or the report's page where HTML is asked for."""
    job = operations.find_job(service, id)
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse(dict(report_of(service, job)))
    page = report_html(service, job)
    if page is None:
        told = report_of(service, job)
        why = told["message"] or f"the evidence is {told['status']}"
        raise ApiError(404, f"There is no report of job {id}: {why}.", param="id")
    return FileResponse(page, media_type="text/html", headers=_ALONE)


# The name of a checkpoint has colons, and a slash where its base is a hub's; both come raw or percent-encoded.
@router.post("/checkpoints/{name:path}/permissions")
def allow(name: str, body: PermissionRequest, service: _Service) -> dict[str, Any]:
    """Let projects use a checkpoint."""
    made = permissions.allow(service, name, body.project_ids)
    return list_body([permission_object(one) for one in made], False)


@router.get("/checkpoints/{name:path}/permissions")
def list_permissions(
    name: str,
    service: _Service,
    limit: Annotated[int, Query(ge=1, le=MOST_EVENTS)] = 10,
    after: Annotated[str | None, Query(max_length=512)] = None,
    order: Literal["ascending", "descending"] = "descending",
    project_id: Annotated[str | None, Query(max_length=128)] = None,
) -> dict[str, Any]:
    """Which projects may use a checkpoint."""
    page = Page(limit, after or None, "asc" if order == "ascending" else "desc")
    found = permissions.list_permissions(service, name, page, project_id)
    return list_body([permission_object(one) for one in found.items], found.has_more)


@router.delete("/checkpoints/{name:path}/permissions/{id}")
def disallow(name: str, id: str, service: _Service) -> dict[str, Any]:
    """Take a permission back."""
    permissions.disallow(service, name, id)
    return {"object": "checkpoint.permission", "id": id, "deleted": True}


def retrieved(request: Request, service: Service, job: Job, shown: Callable[[Job], dict[str, Any]]) -> Response:
    """The answer to `retrieve`, with the job as a dialect shows it; held where the settings say so."""
    if not service.settings.wait_jobs or not _goes_on(job):
        return JSONResponse(shown(job))
    return StreamingResponse(_when_ended(request, service, job, shown), media_type="application/json")


def _goes_on(job: Job) -> bool:
    """Whether the job will end by itself; a paused one will not."""
    return job.status not in FINAL and job.status != "paused"


async def _when_ended(
    request: Request, service: Service, job: Job, shown: Callable[[Job], dict[str, Any]]
) -> AsyncIterator[bytes]:
    """Spaces, then the job. A server that is told to end, and a job that is gone, end the waiting."""
    told = time.monotonic()
    yield b" "
    while _goes_on(job) and not _draining(request):
        await asyncio.sleep(LOOK_SECONDS)
        now = await run_in_threadpool(service.store.get, Job, job.id)
        if now is None:
            break
        job = now
        if time.monotonic() - told >= DRIP_SECONDS:
            told = time.monotonic()
            yield b" "
    yield json.dumps(shown(job)).encode()


def _draining(request: Request) -> bool:
    in_flight = getattr(request.app.state, "in_flight", None)
    return bool(in_flight is not None and in_flight.draining)
