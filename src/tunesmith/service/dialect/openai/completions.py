"""`POST /completions`: going on with a text."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from tunesmith.service.asking.completion_request import CompletionRequest
from tunesmith.service.asking.completions import complete_text, plan_completion, stream_text
from tunesmith.service.context import Service, service_of
from tunesmith.service.dialect.openai.streaming import event_stream, until_gone

router = APIRouter(tags=["Completions"])


@router.post("/completions", summary="Go on with a text", response_model=None)
async def create_completion(
    body: CompletionRequest, request: Request, service: Annotated[Service, Depends(service_of)]
) -> Response | dict[str, Any]:
    """A `text_completion`, or with `stream` its parts as server-sent events."""
    return await answer_completion(body, request, service)


async def answer_completion(body: CompletionRequest, request: Request, service: Service) -> Response:
    """The same for another dialect's path."""
    plan = await plan_completion(service, body)
    if body.stream:
        return await event_stream(request, stream_text(service, plan))
    return JSONResponse(await until_gone(request, complete_text(service, plan)))
