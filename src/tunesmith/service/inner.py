"""Asking this server's own models from within it: a request to the very routes that clients use, without a socket.

So a row of a batch, a row of an eval and a grading model are answered exactly as a client would be, refusals included.
What stands before the routes for strangers' sake (keys, limits, the audit log) is left out: who may create a batch or
an eval was asked when it was created.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI

from tunesmith.service.context import Service
from tunesmith.service.refusals import as_api_error, install

log = logging.getLogger("tunesmith.service")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a route answered."""

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def message(self) -> str:
        """The sentence of a refusal."""
        return str((self.body.get("error") or {}).get("message") or f"the answer has status {self.status}")


Post = Callable[[str, Mapping[str, Any]], Awaitable[Reply]]
"""(path, body) → reply, as `Inner.post`."""


class Inner:
    """The routes that answer, of one service. One event loop may ask many at once."""

    def __init__(self, service: Service) -> None:
        from tunesmith.service.dialect.openai import chat, completions, embeddings, responses

        self.app = FastAPI()
        self.app.state.service = service
        install(self.app)
        for module in (chat, completions, responses, embeddings):
            self.app.include_router(module.router, prefix="/v1")

    async def post(self, path: str, body: Mapping[str, Any]) -> Reply:
        """Ask a route such as `/v1/chat/completions`. Cancelling ends the work of the engine."""
        data = json.dumps(body).encode()
        status, headers, parts = 500, {}, list[bytes]()
        unread = [data]

        async def receive() -> dict[str, Any]:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            await asyncio.Event().wait()  # nobody hangs up in here; who asked cancels instead
            raise AssertionError

        async def send(message: MutableMapping[str, Any]) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = {name.decode(): value.decode() for name, value in message["headers"]}
            elif message["type"] == "http.response.body":
                parts.append(message.get("body", b""))

        try:
            await self.app(_scope(path, len(data)), receive, send)
        except Exception as error:
            # One row that meets a mistake of ours must not end the others: it is told as a client would be told.
            log.error("a request from within failed", exc_info=error, extra={"path": path})
            refused = as_api_error(error)
            return Reply(refused.status, refused.body(), dict(refused.headers))
        return Reply(status, json.loads(b"".join(parts)), headers)


def _scope(path: str, length: int) -> dict[str, Any]:
    headers = [(b"host", b"within"), (b"content-type", b"application/json"), (b"content-length", b"%d" % length)]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": ("within", 0),
        "state": {},
    }
