"""What is done with jobs, whatever the dialect: made, found, cancelled, paused, resumed, deleted.

A job that is made waits in `validating_files` until a worker takes it up, so making one is answered at once. What runs
is asked to stop (`Job.wish`) and stops within a step; what does not run is moved at once.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.service.catalogue import shown_base
from tunesmith.service.context import Service
from tunesmith.service.errors import ApiError, invalid
from tunesmith.service.ids import Flavour, azure_id, new_id
from tunesmith.service.jobs import events
from tunesmith.service.jobs.events import Draft
from tunesmith.service.jobs.hyperparameters import NAMES
from tunesmith.service.jobs.lifecycle import ALLOWED, Action
from tunesmith.service.jobs.preferences import refuse_method
from tunesmith.service.jobs.request import AUTO, LARGEST_SEED, JobRequest
from tunesmith.service.store.interface import Found, Page
from tunesmith.service.store.nouns import Checkpoint, Event, File, Job, JobStatus, Model, Wish
from tunesmith.service.worker.tidying import forget

PURPOSE = "fine-tune"
MOST_CHECKPOINTS = 3
"""The last ends of epochs that are kept, of which the very last is the tuned model itself."""
WAIT = 2.0
"""Seconds in which a worker usually has done what was wished; a client that waits for three must not ask again."""
_LOOK = 0.05

_ENDED: Mapping[JobStatus, str] = {
    "succeeded": "has already completed",
    "failed": "has already failed",
    "cancelled": "has already been cancelled",
}

_NOT_TRAINED: Mapping[str, str] = {"remote": "is served elsewhere", "onnx": "is an export"}
"""Engines whose models no job can begin with."""


def create_job(service: Service, request: JobRequest, flavour: Flavour = "openai") -> Job:
    """A new job in `validating_files`, with its first events.

    Raises `ApiError`: 404 for an unknown model, 400 for files that are not there or not for fine-tuning, for
    hyperparameters that contradict each other, and for methods that are not offered here, whose rows and graders are
    checked all the same.
    """
    asked = request.asked_hyperparameters()
    model = service.catalogue.model_of(request.model)
    if model.ref.engine in _NOT_TRAINED:
        raise invalid(
            f"The model '{request.model}' {_NOT_TRAINED[model.ref.engine]} and cannot be fine-tuned here.",
            param="model",
            code="model_not_supported",
        )
    files = _files(service, request)
    if request.method_type != "supervised":
        refuse_method(service, request, files)
    _refuse_too_many(service)
    hyperparameters = {name: asked.get(name, AUTO) for name in NAMES}
    now = service.now()
    job = Job(
        id=azure_id("ftjob") if flavour == "azure" else new_id("ftjob"),
        created_at=now,
        model=model.shown,
        base=model.ref.base,
        training_file=request.training_file,
        validation_file=request.validation_file,
        status="validating_files",
        seed=request.seed if request.seed is not None else secrets.randbelow(LARGEST_SEED),
        organization_id=service.settings.organization,
        method=supervised(hyperparameters),
        suffix=request.suffix,
        metadata=request.metadata,
        integrations=tuple(one.model_dump(exclude_none=True) for one in request.integrations or ()),
        hyperparameters=hyperparameters,
        evidence="pending" if service.settings.evidence else "none",
        flavour=flavour,
        extra=_extra(service, request, model.record),
    )
    drafts = [events.created(job, first_base(job)), events.validating(job), *_remarks(request, asked)]
    service.store.add_all([job, *_numbered(job, drafts, now)])
    return job


def supervised(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """`method` of a supervised job."""
    return {"type": "supervised", "supervised": {"hyperparameters": dict(hyperparameters)}}


def first_base(job: Job) -> str:
    """The base below everything that a job's model has learnt, as it is told to a client."""
    return str(job.extra.get("first_base") or shown_base(job.base))


def find_job(service: Service, id: str) -> Job:
    """Raises `ApiError` 404 where there is none."""
    job = service.store.get(Job, id)
    if job is None:
        raise ApiError(404, f"Could not find fine tune: {id[:128]}", param="fine_tune_id", code="fine_tune_not_found")
    return job


def list_jobs(service: Service, page: Page, metadata: Mapping[str, str] | None = None) -> Found[Job]:
    """Jobs of both dialects, newest first. `metadata`: what they hold, None for any; empty: they have none."""
    where = {"metadata": None} if metadata is not None and not metadata else None
    return service.store.page(Job, page, where=where, metadata=metadata)


def list_events(service: Service, id: str, page: Page) -> Found[Event]:
    """The events of a job, newest first. Raises `ApiError` 404 where there is no such job."""
    return service.store.page(Event, page, where={"job_id": find_job(service, id).id})


def list_checkpoints(service: Service, id: str, page: Page) -> Found[Checkpoint]:
    """The checkpoints of a job, newest first. Raises `ApiError` 404 where there is no such job."""
    return service.store.page(Checkpoint, page, where={"job_id": find_job(service, id).id})


def cancel_job(service: Service, id: str, *, wait: float = WAIT) -> Job:
    """End a job. One that runs is asked to, and has mostly done so when this returns (`wait` seconds at most)."""
    return _stop(service, id, "cancel", "cancelled", wait)


def pause_job(service: Service, id: str, *, wait: float = WAIT) -> Job:
    """Stop a job so that it can be resumed; as `cancel_job`."""
    return _stop(service, id, "pause", "paused", wait)


def resume_job(service: Service, id: str) -> Job:
    """Let a paused job wait for a worker again."""
    while True:
        job = _allowed(service, id, "resume")
        moved = service.store.move_job(id, "queued", only_from=[job.status], wish=None)
        if moved is not None:
            tell(service, moved, events.resumed())
            return moved


def delete_job(service: Service, id: str) -> Job:
    """Forget a job that has ended, with its events, its checkpoints' records and its run. Its model, files and names
    stay.
    """
    job = _allowed(service, id, "delete")
    for kind in (Checkpoint, Event):
        service.store.remove_all(kind, {"job_id": id})
    service.store.remove(Job, id)
    forget(service.settings.home, job.id)
    return job


def tell(service: Service, job: Job, draft: Draft) -> Event:
    """Append an event to a job's."""
    return service.store.tell(job.id, draft.message, created_at=service.now(), **draft.fields())


def _stop(service: Service, id: str, wish: Wish, to: JobStatus, wait: float) -> Job:
    while True:
        job = _allowed(service, id, wish)
        if job.status == "running":
            asked = service.store.move_job(id, "running", only_from=["running"], wish=wish)
            if asked is not None:
                return _until_stopped(service, asked, wait)
            continue
        ended = {"finished_at": service.now(), "estimated_finish": None} if to == "cancelled" else {}
        moved = service.store.move_job(id, to, only_from=[job.status], wish=None, **ended)
        if moved is not None:
            tell(service, moved, events.cancelled() if to == "cancelled" else events.paused())
            return moved


def _until_stopped(service: Service, job: Job, seconds: float) -> Job:
    """The job once it runs no more, or as it is when the time is over: the wish stays."""
    end = time.monotonic() + seconds
    while job.status == "running" and time.monotonic() < end:
        time.sleep(_LOOK)
        job = service.store.get(Job, job.id) or job
    return job


def _allowed(service: Service, id: str, action: Action) -> Job:
    """The job, if this may be asked of it now; else `ApiError` 400 with the reason."""
    job = find_job(service, id)
    if job.status in ALLOWED[action]:
        return job
    if action in ("cancel", "pause") and job.status in _ENDED:
        message = f"Job {_ENDED[job.status]}: {id}"
    elif action == "pause":
        message = f"Job cannot be paused while its status is '{job.status}': {id}"
    elif action == "resume":
        message = f"Job is not paused and cannot be resumed (its status is '{job.status}'): {id}"
    else:
        message = f"Job cannot be deleted while its status is '{job.status}': {id}. Cancel it first."
    raise invalid(message, code="invalid_job_status")


def _files(service: Service, request: JobRequest) -> dict[str, File]:
    """The request's files by the field that names them. Raises `ApiError` naming every one that cannot be used."""
    found: dict[str, File] = {}
    faults: list[ApiError] = []
    for field in ("training_file", "validation_file"):
        id = getattr(request, field)
        if id is None:
            continue
        file = service.store.get(File, id)
        fault = _file_fault(field, id, file, service.now())
        if fault is not None:
            faults.append(fault)
        elif file is not None:
            found[field] = file
    if faults:
        raise refused(faults)
    return found


def _file_fault(field: str, id: str, file: File | None, now: int) -> ApiError | None:
    code = f"invalid_{field}"
    gone = file is None or file.status == "deleted" or (file.expires_at is not None and file.expires_at <= now)
    if file is None or gone:
        return invalid(f"invalid {field}: {id[:128]}", param=field, code=code)
    if file.purpose != PURPOSE:
        return invalid(
            f"invalid {field}: {id} has the purpose '{file.purpose}', but must have '{PURPOSE}'", param=field, code=code
        )
    if file.status == "error":
        return invalid(f"invalid {field}: {id} could not be read: {file.status_details}", param=field, code=code)
    if file.blob is None:
        return invalid(
            f"File '{id}' is still being processed and is not ready to be used for fine-tuning. "
            "Please try again later.",
            param=field,
        )
    return None


def refused(faults: Sequence[ApiError]) -> ApiError:
    """Several refusals as one: the first, with all of them as its details."""
    first = faults[0]
    if len(faults) == 1:
        return first
    details = tuple({"message": one.message, "param": one.param, "code": one.code} for one in faults)
    return ApiError(first.status, first.message, first.kind, first.param, first.code, details)


def _refuse_too_many(service: Service) -> None:
    most = service.settings.limits.queued_jobs
    waiting = service.store.count(Job, {"status": ["validating_files", "queued", "running", "paused"]})
    if waiting >= most:
        raise invalid(
            f"{waiting:,} fine-tuning jobs are waiting or running, and this server takes at most {most:,}: "
            "cancel some, or wait until some have ended.",
            code="exceeded_quota",
        )


def _extra(service: Service, request: JobRequest, model: Model | None) -> dict[str, Any]:
    """What has no field of its own: Azure's tier, and where a job on a tuned model begins.

    `first_base` is what that model was tuned on at the very first; its `base` may be another tuned model, merged.
    """
    found: dict[str, Any] = {"trainingType": request.trainingType}
    if model is not None and model.adapter:
        before = service.store.get(Job, model.job_id) if model.job_id else None
        found |= {"starts_from": model.id, "first_base": first_base(before) if before else shown_base(model.base)}
    return {name: value for name, value in found.items() if value is not None}


def _remarks(request: JobRequest, asked: Mapping[str, Any]) -> list[Draft]:
    """What of a request is without effect here, said at once."""
    remarks = []
    if request.prompt_loss_weight or asked.get("prompt_loss_weight"):
        remarks.append(events.warned("prompt_loss_weight is not used: only answers are learnt"))
    if request.integrations:
        remarks.append(events.warned("integrations are kept with the job, but nothing is sent to them from here"))
    return remarks


def _numbered(job: Job, drafts: Sequence[Draft], now: int) -> list[Event]:
    """The first events of a job."""
    return [
        Event(
            id=azure_id("ftevent") if job.flavour == "azure" else new_id("ftevent"),
            created_at=now,
            job_id=job.id,
            seq=seq,
            message=draft.message,
            **draft.fields(),
        )
        for seq, draft in enumerate(drafts, 1)
    ]
