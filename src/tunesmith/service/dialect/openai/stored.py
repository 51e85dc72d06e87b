"""`/chat/completions/{id}` and their list: completions that were asked for with `store`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from tunesmith.service.asking.keeping import (
    change_metadata,
    completion_body,
    forget_completion,
    kept_completion,
    kept_completions,
    message_bodies,
)
from tunesmith.service.context import Service, service_of
from tunesmith.service.dialect.openai.paging import page_of
from tunesmith.service.http import Body, Metadata, list_body, metadata_query, paging
from tunesmith.service.store.interface import Page

router = APIRouter(tags=["Stored completions"])
Here = Annotated[Service, Depends(service_of)]


class ChangedMetadata(Body):
    """Other metadata for a kept completion."""

    metadata: Metadata | None


@router.get("/chat/completions", summary="List kept completions")
def list_completions(
    service: Here,
    page: Annotated[Page, Depends(paging(order="asc"))],
    metadata: Annotated[dict[str, str] | None, Depends(metadata_query)],
    model: str | None = None,
) -> dict[str, Any]:
    """Oldest first, as at OpenAI; by model and metadata."""
    found = kept_completions(service, page, model=model, metadata=metadata)
    return list_body([completion_body(record) for record in found.items], found.has_more)


@router.get("/chat/completions/{completion_id}", summary="One kept completion")
def retrieve_completion(completion_id: str, service: Here) -> dict[str, Any]:
    """A `chat.completion` with its metadata."""
    return completion_body(kept_completion(service, completion_id))


@router.post("/chat/completions/{completion_id}", summary="Change the metadata of a kept completion")
def update_completion(completion_id: str, body: ChangedMetadata, service: Here) -> dict[str, Any]:
    """The completion with its new metadata."""
    return completion_body(change_metadata(service, completion_id, body.metadata))


@router.delete("/chat/completions/{completion_id}", summary="Forget a kept completion")
def delete_completion(completion_id: str, service: Here) -> dict[str, Any]:
    """`{id, object, deleted}`."""
    forget_completion(service, completion_id)
    return {"object": "chat.completion.deleted", "id": completion_id, "deleted": True}


@router.get("/chat/completions/{completion_id}/messages", summary="The messages of a kept completion")
def list_messages(
    completion_id: str, service: Here, page: Annotated[Page, Depends(paging(order="asc"))]
) -> dict[str, Any]:
    """What was asked, first message first."""
    shown, more = page_of(message_bodies(kept_completion(service, completion_id)), page)
    return list_body(shown, more)
