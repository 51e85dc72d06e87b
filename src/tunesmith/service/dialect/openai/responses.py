"""`/responses`: answers to items, kept so that the next request can continue them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response

from tunesmith.service.asking.response_request import CountRequest, ResponseRequest
from tunesmith.service.asking.responses import (
    complete_response,
    count_tokens,
    forget_response,
    input_items,
    kept_response,
    plan_response,
    stream_response,
)
from tunesmith.service.context import Service, service_of
from tunesmith.service.dialect.openai.paging import page_of
from tunesmith.service.dialect.openai.streaming import event_stream, until_gone
from tunesmith.service.errors import ApiError
from tunesmith.service.http import list_body, paging
from tunesmith.service.store.interface import Page

router = APIRouter(tags=["Responses"])
Here = Annotated[Service, Depends(service_of)]


@router.post("/responses", summary="Answer items", response_model=None)
async def create_response(body: ResponseRequest, request: Request, service: Here) -> Response | dict[str, Any]:
    """A `response`, or with `stream` its typed events as server-sent events."""
    plan = await plan_response(service, body)
    if body.stream:
        return await event_stream(request, stream_response(service, plan), named=True)
    return JSONResponse(await until_gone(request, complete_response(service, plan)))


@router.post("/responses/input_tokens", summary="Count the tokens of a request")
async def count_input_tokens(body: CountRequest, service: Here) -> dict[str, Any]:
    """`{object, input_tokens}`: what a response to the same fields would tell as `usage.input_tokens`."""
    return {"object": "response.input_tokens", "input_tokens": await count_tokens(service, body)}


@router.get("/responses/{response_id}", summary="One kept response", response_model=None)
def retrieve_response(response_id: str, service: Here, stream: bool = Query(False)) -> dict[str, Any]:
    """The response as it was given. What was streamed is not streamed again."""
    if stream:
        raise ApiError(
            400, "Only responses in the background can be streamed again.", param="stream", code="unsupported_value"
        )
    return dict(kept_response(service, response_id).answer)


@router.delete("/responses/{response_id}", summary="Forget a kept response")
def delete_response(response_id: str, service: Here) -> dict[str, Any]:
    """`{id, object, deleted}`."""
    forget_response(service, response_id)
    return {"id": response_id, "object": "response", "deleted": True}


@router.post("/responses/{response_id}/cancel", summary="Refused: no response is answered in the background")
def cancel_response(response_id: str, service: Here) -> dict[str, Any]:
    """Raises `ApiError`: 404 where there is none, else 400."""
    kept_response(service, response_id)
    raise ApiError(400, "Only responses in the background can be cancelled.", param="response_id")


@router.get("/responses/{response_id}/input_items", summary="What a kept response was an answer to")
def list_input_items(response_id: str, service: Here, page: Annotated[Page, Depends(paging())]) -> dict[str, Any]:
    """Newest first, with what the response continued."""
    shown, more = page_of(input_items(service, response_id), page)
    return list_body(shown, more)
