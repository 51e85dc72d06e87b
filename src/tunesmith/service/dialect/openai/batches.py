"""OpenAI's `batches`: create, list, retrieve, cancel."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import Field

from tunesmith.service.batches.operations import cancel_batch, create_batch, get_batch
from tunesmith.service.context import Service, flavour_of, service_of
from tunesmith.service.http import Body, Metadata, list_body, paging
from tunesmith.service.store.interface import Page
from tunesmith.service.store.nouns import Batch

router = APIRouter(prefix="/batches", tags=["Batch"])
Parts = Annotated[Service, Depends(service_of)]

_MOMENTS = (
    "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at",
    "cancelled_at",
)  # fmt: skip


class ExpiresAfter(Body):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=3_600, le=2_592_000)


class CreateBatch(Body):
    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


@router.post("")
def create(body: CreateBatch, request: Request, service: Parts) -> dict[str, Any]:
    """The batch is `validating` at first; what is wrong with its file is told in `errors` once it is `failed`."""
    expires = body.output_expires_after
    made = create_batch(
        service,
        body.endpoint,
        body.input_file_id,
        body.completion_window,
        body.metadata,
        expires.seconds if expires else None,
        flavour_of(request),
    )
    return batch_body(made)


@router.get("")
def list_batches(service: Parts, page: Annotated[Page, Depends(paging())]) -> dict[str, Any]:
    """Newest first."""
    found = service.store.page(Batch, page)
    return list_body([batch_body(one) for one in found.items], found.has_more)


@router.get("/{batch_id}")
def retrieve(batch_id: str, service: Parts) -> dict[str, Any]:
    return batch_body(get_batch(service, batch_id))


@router.post("/{batch_id}/cancel")
def cancel(batch_id: str, service: Parts) -> dict[str, Any]:
    """Finished rows stay in the output file; the others are told in the error file."""
    return batch_body(cancel_batch(service, batch_id))


def batch_body(batch: Batch) -> dict[str, Any]:
    """The batch object. The result files are named only once they are there."""
    ended = batch.status in ("completed", "expired", "cancelled")
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": batch.errors,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file_id if ended else None,
        "error_file_id": batch.error_file_id if ended else None,
        "created_at": batch.created_at,
        **{name: batch.moments.get(name) for name in _MOMENTS},
        "request_counts": dict(batch.request_counts),
        "usage": batch.usage,
        "metadata": batch.metadata,
    }
