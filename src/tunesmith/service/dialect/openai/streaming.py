"""Answers that come while they are written: server-sent events, and what happens when the client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from tunesmith.service.context import flavour_of
from tunesmith.service.errors import ApiError
from tunesmith.service.ids import Flavour
from tunesmith.service.refusals import body_of

T = TypeVar("T")
Json = Mapping[str, Any]
_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def event_stream(
    request: Request, events: AsyncGenerator[Json, None], *, named: bool = False
) -> StreamingResponse:
    """A stream of JSON objects. The first one is waited for, so that what is wrong with a request is still answered
    with a status of its own; what goes wrong later is an event. A client that leaves closes the generator.

    `named` gives every event its `type` as its name and leaves out the closing `[DONE]`, as `/responses` has it.
    """
    first = await until_gone(request, _first(events))
    lines = _lines(first, events, named, flavour_of(request))
    return StreamingResponse(lines, media_type="text/event-stream", headers=_HEADERS)


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which ends at once when the client leaves. Raises `ClientDisconnect` then."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientDisconnect
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


def sse(event: Json, name: str | None = None) -> str:
    """One event. Its data is one line for every client: those that split text, and not bytes, see the end of a line in
    three characters that JSON leaves as they are.
    """
    head = f"event: {name}\n" if name else ""
    data = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return f"{head}data: {data.translate(_ENDS)}\n\n"


async def _lines(
    first: Json | None, events: AsyncGenerator[Json, None], named: bool, flavour: Flavour
) -> AsyncGenerator[str, None]:
    async with aclosing(events):
        try:
            if first is not None:
                yield sse(first, str(first["type"]) if named else None)
            async for event in events:
                yield sse(event, str(event["type"]) if named else None)
        except ApiError as error:
            yield sse(body_of(error, flavour), "error" if named else None)
            return
        if not named:
            yield "data: [DONE]\n\n"


async def _first(events: AsyncGenerator[Json, None]) -> Json | None:
    return await anext(events, None)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
