"""Fine-tuning jobs as Azure's data plane has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import Field, field_validator
from starlette.concurrency import run_in_threadpool

from tunesmith.service import copying
from tunesmith.service.context import Service, service_of
from tunesmith.service.dialect.azure.objects import (
    UNSET,
    checkpoint_object,
    event_object,
    job_object,
    list_object,
)
from tunesmith.service.dialect.openai.jobs import MOST_EVENTS, report, retrieved
from tunesmith.service.errors import ApiError
from tunesmith.service.http import Body, metadata_query, paging
from tunesmith.service.jobs import operations
from tunesmith.service.jobs.request import AUTO, JobRequest
from tunesmith.service.store.interface import Page
from tunesmith.service.store.nouns import Model

router = APIRouter()
beyond = APIRouter()
"""What Azure has under `/openai/v1` and OpenAI has not."""

_Service = Annotated[Service, Depends(service_of)]
_Page = Annotated[Page, Depends(paging(largest=MOST_EVENTS))]
_TIERS = {name.lower(): name for name in ("Standard", "GlobalStandard", "developerTier", "DataZoneStandard")}


class AzureJobRequest(JobRequest):
    """As OpenAI's, with Azure's spellings: -1 for `auto`, and tiers in any case."""

    @field_validator("hyperparameters", mode="before")
    @classmethod
    def _auto(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {name: AUTO if value == UNSET else value for name, value in given.items()}

    @field_validator("trainingType", mode="before")
    @classmethod
    def _tier(cls, given: Any) -> Any:
        return _TIERS.get(given.lower(), given) if isinstance(given, str) else given


class CopyRequest(Body):
    """Where a checkpoint is copied to: an account's path, and its region."""

    destinationResourceId: Annotated[str, Field(min_length=1, max_length=1024)]  # noqa: N815
    region: Annotated[str, Field(min_length=1, max_length=64)]


def copying_asked_for(
    header: Annotated[str | None, Header(alias="aoai-copy-ft-checkpoints", max_length=64)] = None,
) -> None:
    """Copying is a preview at Azure, and has to be asked for as one."""
    if header != "preview":
        raise ApiError(
            400,
            "Copying checkpoints is in preview: send the header 'aoai-copy-ft-checkpoints: preview'.",
            param="aoai-copy-ft-checkpoints",
        )


@router.post("/fine_tuning/jobs", status_code=201)
def create_job(body: AzureJobRequest, service: _Service) -> dict[str, Any]:
    """A new job: answered at once, worked on behind."""
    return job_object(operations.create_job(service, body, "azure"))


@router.get("/fine_tuning/jobs")
def list_jobs(
    service: _Service, page: _Page, metadata: Annotated[dict[str, str] | None, Depends(metadata_query)]
) -> dict[str, Any]:
    """Jobs of both dialects, newest first."""
    found = operations.list_jobs(service, page, metadata)
    return list_object([job_object(one) for one in found.items], found.has_more)


@router.get("/fine_tuning/jobs/{job}", response_model=None)
async def retrieve_job(job: str, request: Request, service: _Service) -> Response:
    """One job; held until it has ended where the server is set up so."""
    found = await run_in_threadpool(operations.find_job, service, job)
    return retrieved(request, service, found, job_object)


@router.delete("/fine_tuning/jobs/{job}", status_code=204, response_class=Response)
@beyond.delete("/fine_tuning/jobs/{job}", status_code=204, response_class=Response)
def delete_job(job: str, service: _Service) -> Response:
    """Forget a job that has ended; its model and files stay."""
    operations.delete_job(service, job)
    return Response(status_code=204)


@router.post("/fine_tuning/jobs/{job}/cancel")
def cancel_job(job: str, service: _Service) -> dict[str, Any]:
    """End a job."""
    return job_object(operations.cancel_job(service, job))


@router.post("/fine_tuning/jobs/{job}/pause")
def pause_job(job: str, service: _Service) -> dict[str, Any]:
    """Stop a job so that it can be resumed."""
    return job_object(operations.pause_job(service, job))


@router.post("/fine_tuning/jobs/{job}/resume")
def resume_job(job: str, service: _Service) -> dict[str, Any]:
    """Let a paused job go on."""
    return job_object(operations.resume_job(service, job))


@router.get("/fine_tuning/jobs/{job}/events")
def list_events(job: str, service: _Service, page: _Page) -> dict[str, Any]:
    """A job's events in Azure's words, newest first."""
    found = operations.list_events(service, job, page)
    return list_object([event_object(one) for one in found.items], found.has_more)


@router.get("/fine_tuning/jobs/{job}/checkpoints")
def list_checkpoints(
    job: str, service: _Service, page: Annotated[Page, Depends(paging(default=10, largest=MOST_EVENTS))]
) -> dict[str, Any]:
    """A job's checkpoints, newest first."""
    found = operations.list_checkpoints(service, job, page)
    return list_object([checkpoint_object(one) for one in found.items], found.has_more)


router.add_api_route("/fine_tuning/jobs/{id}/report", report, response_model=None)

_COPY = "/fine_tuning/jobs/{job}/checkpoints/{checkpoint}/copy"


@router.post(_COPY, dependencies=[Depends(copying_asked_for)])
@beyond.post(_COPY, dependencies=[Depends(copying_asked_for)])
def copy_checkpoint(job: str, checkpoint: str, body: CopyRequest, service: _Service) -> dict[str, Any]:
    """Copy a checkpoint to another account, under its own name."""
    return _copies(job, copying.copy_checkpoint(service, job, checkpoint, body.destinationResourceId, body.region))


@router.get(_COPY, dependencies=[Depends(copying_asked_for)])
@beyond.get(_COPY, dependencies=[Depends(copying_asked_for)])
def copies_of(job: str, checkpoint: str, service: _Service) -> dict[str, Any]:
    """Where a checkpoint was copied to."""
    return _copies(job, copying.copied_model(service, job, checkpoint))


def _copies(job: str, model: Model) -> dict[str, Any]:
    return {
        "checkpointedModelName": model.id,
        "fineTuningJobId": job,
        "copiedAccountDetails": [{**one, "status": "Completed"} for one in model.copies],
    }
