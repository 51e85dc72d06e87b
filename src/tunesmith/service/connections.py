"""Connections as a public server needs them: so many and no more, and none that is held open without a request.

A connection too many is heard and told 503 in OpenAI's words, instead of being cut off; a client that takes its time
with the head of a request, or does not take its answer, is let go.
"""

from __future__ import annotations

import asyncio
import json
import resource
from typing import Any

import h11
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from tunesmith.service.errors import invalid
from tunesmith.service.limits import crowded

HEAD_SECONDS, HURRIED_SECONDS = 30.0, 5.0
"""How long the head of a request may take, the first one's from the connection on; and where there are too many
connections already."""
TAKING_SECONDS = 120.0
"""How long a client may leave an answer lie that is ready for it."""
CROWD = 8
"""Open connections for each that is taken: the others have to be told that they are too many."""
FILES_BESIDE = 200
"""File descriptors that are not connections."""


def protocol(most: int) -> type[H11Protocol]:
    """The protocol of a server that holds at most so many connections."""

    async def turned_away(scope: Scope, receive: Receive, send: Send) -> None:
        error = crowded(most)
        headers = {**error.headers, "connection": "close"}
        answer = JSONResponse(error.body(), status_code=error.status, headers=headers)
        await answer(scope, receive, send)

    class Bounded(H11Protocol):
        """HTTP/1.1 with the bounds of this file."""

        head_timer: asyncio.TimerHandle | None = None
        taking_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            full = len(self.connections) > most
            if full:
                self.app = turned_away
            self.head_timer = self.loop.call_later(HURRIED_SECONDS if full else HEAD_SECONDS, self._too_slow)

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self.head_timer, self.taking_timer):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            # From here on no keep-alive timer runs, so the head of a second request needs one of its own.
            if self.timeout_keep_alive_task is not None:
                if self.head_timer is not None:
                    self.head_timer.cancel()
                self.head_timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)
            super().data_received(data)

        def _too_slow(self) -> None:
            waits = self.cycle is None or self.cycle.response_complete
            if waits and self.timeout_keep_alive_task is None:
                self.transport.abort()

        def pause_writing(self) -> None:
            super().pause_writing()
            self.taking_timer = self.loop.call_later(TAKING_SECONDS, self.transport.abort)

        def resume_writing(self) -> None:
            if self.taking_timer is not None:
                self.taking_timer.cancel()
            super().resume_writing()

        def send_400_response(self, msg: str) -> None:
            """What is no HTTP, in OpenAI's body; nothing once an answer is under way."""
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.close()
                return
            data = json.dumps(invalid(f"Your request is no valid HTTP: {msg}").body()).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(data))),
                ("connection", "close"),
            ]
            events: list[Any] = [
                h11.Response(status_code=400, headers=headers),
                h11.Data(data=data),
                h11.EndOfMessage(),
            ]
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Bounded


def make_room(most: int) -> int:
    """Raise this process's limit of open files as far as it may and needs; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CROWD * most + FILES_BESIDE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
