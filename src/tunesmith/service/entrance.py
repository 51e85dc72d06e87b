"""The outermost layer: a name for every request, the headers of every answer, and an answer whatever happens inside.

It notes what came of a request (`Visit`) for the log, the figures and the audit, and is pure ASGI, so that streams pass
through it piece by piece.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.service.errors import ApiError
from tunesmith.service.ids import Flavour, new_id
from tunesmith.service.refusals import answer_to

log = logging.getLogger("tunesmith.service")

VERSION = "2020-10-01"
"""The version of OpenAI's API that answers name."""
GONE = 499
"""Status that the log has for a client that left before the answer began."""

ROOTS = ("/openai/v1", "/openai", "/v1")
"""Where the dialects begin, the longer before the shorter."""

_DEPLOYMENTS = re.compile(r"/subscriptions/", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(slots=True)
class Visit:
    """One request as it goes on. `route` is the path as it is declared (`/v1/files/{id}`), `unmatched` until one is
    found; `key_id` the key it came with; `seconds` until the answer began and until it ended.
    """

    request_id: str
    method: str
    path: str
    flavour: Flavour
    begun: float = field(default_factory=time.perf_counter)
    route: str = "unmatched"
    key_id: str | None = None
    status: int = GONE
    bytes: int = 0
    seconds_to_begin: float | None = None
    seconds: float = 0.0


Watcher = Callable[[Visit], None]
"""Is told of every request that ended."""
Recorder = Callable[[Visit], Awaitable[None]]
"""Is told of every answer before it is sent."""


def visit_of(scope: Scope) -> Visit:
    """The visit of a request, from within any layer."""
    return cast(Visit, scope["state"]["visit"])


def flavour_of_path(path: str) -> Flavour:
    """Azure's dialect under `/openai/…` and the management paths, but not under `/openai/v1`."""
    if path.startswith("/openai/v1/") or path == "/openai/v1":
        return "openai"
    return "azure" if path.startswith("/openai/") or _DEPLOYMENTS.match(path) else "openai"


class Entrance:
    """Everything else is inside."""

    def __init__(
        self, app: ASGIApp, *, organization: str, watchers: Sequence[Watcher] = (), recorder: Recorder | None = None
    ) -> None:
        self.app, self.organization, self.watchers, self.recorder = app, organization, watchers, recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = Visit(new_id("req", separator="_"), scope["method"], scope["path"], flavour_of_path(scope["path"]))
        state = scope.setdefault("state", {})
        state["visit"], state["request_id"], state["flavour"] = visit, visit.request_id, visit.flavour
        begun = False

        async def told(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                await self._begin(visit, scope, message)
                begun = True
            elif message["type"] == "http.response.body":
                visit.bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._answer(scope, receive, told, lambda: begun)
        finally:
            visit.seconds = time.perf_counter() - visit.begun
            for watcher in self.watchers:
                watcher(visit)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, begun: Callable[[], bool]) -> None:
        visit = visit_of(scope)
        try:
            if _CONTROL.search(visit.path):
                # No name has them, and patterns of paths take the end of a line for the end of a path.
                raise ApiError(404, f"Invalid URL ({visit.method[:20]} {visit.path[:200]})")
            await self.app(scope, receive, send)
        except ClientDisconnect:
            return
        except ApiError as refusal:
            if begun():
                raise
            response: Response = answer_to(refusal, visit.flavour, visit.request_id)
        except Exception as error:
            # The border of the service: what nobody foresaw is told to the log, and to the client only that it was.
            log.exception("request failed", extra={"request_id": visit.request_id, "path": visit.path[:200]})
            if begun():
                raise
            response = answer_to(error, visit.flavour, visit.request_id)
        else:
            return
        await response(scope, receive, send)

    async def _begin(self, visit: Visit, scope: Scope, message: Message) -> None:
        visit.status = message["status"]
        visit.route = _route_of(scope)
        if self.recorder is not None:
            await self.recorder(visit)
        visit.seconds_to_begin = time.perf_counter() - visit.begun
        headers = MutableHeaders(scope=message)
        headers["x-request-id"] = visit.request_id
        headers["openai-version"] = VERSION
        headers["openai-organization"] = self.organization
        headers["openai-processing-ms"] = str(round(visit.seconds_to_begin * 1000))
        headers["x-content-type-options"] = "nosniff"
        headers.setdefault("cache-control", "no-store")
        if visit.flavour == "azure":
            headers["apim-request-id"] = visit.request_id
            headers["x-ms-request-id"] = visit.request_id


def _route_of(scope: Scope) -> str:
    """The declared path, prefix included, so that figures have few names."""
    declared = getattr(scope.get("route"), "path", None)
    if declared is None:
        return "unmatched"
    root = next((root for root in ROOTS if scope["path"].startswith(f"{root}/")), "")
    return cast(str, declared) if declared.startswith(f"{root}/") else root + declared
