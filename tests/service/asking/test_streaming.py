"""Server-sent events: every text survives every client's way of splitting, and streams are closed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai._streaming import SSEDecoder
from starlette.requests import ClientDisconnect, Request

from tunesmith.service.asking.merging import merged
from tunesmith.service.dialect.openai.streaming import event_stream, sse
from tunesmith.service.errors import ApiError

TEXT = st.text(
    alphabet=st.characters(exclude_categories=["Cs"]) | st.sampled_from('\n\r\x85\u2028\u2029\x0b\x0c\x1c"\\')
)


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=4), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=10))
def test_events_survive_any_splitting(texts: list[str], sizes: list[int]) -> None:
    body = "".join(sse({"text": text, "type": "t"}, "t") for text in texts).encode()
    pieces = []
    place = turn = 0
    while place < len(body):
        size = sizes[turn % len(sizes)]
        pieces.append(body[place : place + size])
        place, turn = place + size, turn + 1
    found = [event for event in SSEDecoder().iter_bytes(iter(pieces)) if event.data]
    assert [json.loads(event.data)["text"] for event in found] == texts and {event.event for event in found} == {"t"}
    by_text = [line for line in body.decode().splitlines() if line.startswith("data: ")]
    assert [json.loads(line.removeprefix("data: "))["text"] for line in by_text] == texts


async def told(*events: Any, closed: list[bool] | None = None) -> AsyncGenerator[Any, None]:
    try:
        for event in events:
            if isinstance(event, Exception):
                raise event
            yield event
    finally:
        if closed is not None:
            closed.append(True)


def request_of(*received: Any) -> Request:
    """A request whose client sends nothing more but `received`."""
    waiting = list(received)

    async def receive() -> Any:
        if waiting:
            return waiting.pop(0)
        return await asyncio.Future()

    return Request({"type": "http"}, receive)


async def lines_of(events: AsyncGenerator[Any, None], **more: Any) -> list[str]:
    response = await event_stream(request_of(), events, **more)
    return [str(line) async for line in response.body_iterator]


def test_a_stream_ends_with_done_or_with_its_error() -> None:
    error = ApiError(500, "It broke.", "server_error")
    assert asyncio.run(lines_of(told({"a": 1}))) == ['data: {"a":1}\n\n', "data: [DONE]\n\n"]
    assert asyncio.run(lines_of(told())) == ["data: [DONE]\n\n"]
    broken = asyncio.run(lines_of(told({"a": 1}, error)))
    assert len(broken) == 2 and json.loads(broken[1].removeprefix("data: "))["error"]["message"] == "It broke."
    named = asyncio.run(lines_of(told({"type": "one"}), named=True))
    assert named == ['event: one\ndata: {"type":"one"}\n\n']


def test_what_fails_before_the_first_event_is_an_answer() -> None:
    with pytest.raises(ApiError, match=r"It broke\."):
        asyncio.run(lines_of(told(ApiError(400, "It broke."))))


def test_leaving_before_the_first_event_closes_the_stream() -> None:
    closed: list[bool] = []

    async def waits() -> AsyncGenerator[Any, None]:
        try:
            yield await asyncio.Future()
        finally:
            closed.append(True)

    with pytest.raises(ClientDisconnect):
        asyncio.run(asyncio.wait_for(event_stream(request_of({"type": "http.disconnect"}), waits()), 5))
    assert closed == [True]


def test_merging_keeps_the_order_within_and_closes_all() -> None:
    closed: list[bool] = []

    async def slow(values: range) -> AsyncGenerator[int, None]:
        try:
            for value in values:
                await asyncio.sleep(0)
                yield value
        finally:
            closed.append(True)

    async def all_of() -> list[tuple[int, int]]:
        return [one async for one in merged([slow(range(3)), slow(range(10, 15)), slow(range(0))], 2)]

    got = asyncio.run(all_of())
    assert [value for place, value in got if place == 0] == [0, 1, 2]
    assert [value for place, value in got if place == 1] == [10, 11, 12, 13, 14] and len(got) == 8
    assert len(closed) == 3

    async def leave() -> int:
        stream = merged([slow(range(1000)), slow(range(1000))], 2)
        first = await anext(stream)
        await stream.aclose()
        return first[1]

    closed.clear()
    assert asyncio.run(leave()) == 0 and len(closed) == 2


def test_merging_raises_the_first_error_and_ends_the_others() -> None:
    closed: list[bool] = []

    async def all_of() -> None:
        async for _ in merged([told(1, ApiError(400, "It broke.")), told(*range(500), closed=closed)], 2):
            await asyncio.sleep(0)

    with pytest.raises(ApiError):
        asyncio.run(all_of())
    assert closed == [True]
