"""`POST /chat/completions`. What is kept of it is listed in `stored`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from tunesmith.service.asking.chat import complete_chat, plan_chat, stream_chat
from tunesmith.service.asking.chat_request import ChatRequest
from tunesmith.service.context import Service, service_of
from tunesmith.service.dialect.openai.streaming import event_stream, until_gone

router = APIRouter(tags=["Chat"])


@router.post("/chat/completions", summary="Answer a conversation", response_model=None)
async def create_chat_completion(
    body: ChatRequest, request: Request, service: Annotated[Service, Depends(service_of)]
) -> Response | dict[str, Any]:
    """A `chat.completion`, or with `stream` its chunks as server-sent events."""
    return await answer_chat(body, request, service)


async def answer_chat(body: ChatRequest, request: Request, service: Service) -> Response:
    """The same for another dialect's path."""
    plan = await plan_chat(service, body)
    if body.stream:
        return await event_stream(request, stream_chat(service, plan))
    return JSONResponse(await until_gone(request, complete_chat(service, plan)))
