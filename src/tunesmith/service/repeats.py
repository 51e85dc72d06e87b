"""The same request twice makes one thing.

A client that did not get an answer asks again, and its first request may have made a job. Known as the same are
requests with the same `Idempotency-Key`, for a day, and those that the official client marks as a retry
(`x-stainless-retry-count` above 0) of the same body, for a quarter of an hour: it sends no key of its own. The second
gets the answer of the first, and waits for it where the first is still being worked on.

Two equal bodies that are no retries are two requests. A form is another at every sending (its boundary is drawn anew):
here it is known by its key only, and a file that is uploaded again is found by its bytes (`filing.create_file`).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.service.entrance import visit_of
from tunesmith.service.errors import invalid
from tunesmith.service.store.interface import AtMost, Store
from tunesmith.service.store.nouns import Repeat

KEY_SECONDS, RETRY_SECONDS = 86_400, 900
LONGEST_KEY, LARGEST_ANSWER = 255, 200_000
"""Characters of a key, and bytes of an answer that is kept."""
SWEEP = 200
"""After so many kept answers, those that are over are removed."""

_MAKES = re.compile(
    r"/(v1|openai|openai/v1)/"
    r"(files(/import)?|uploads(/[^/]+/complete)?|fine_tuning/jobs|batches|evals(/[^/]+/runs)?|fine_tuning/checkpoints/.+/permissions)/?"
)


@dataclass(slots=True)
class _Request:
    """What a request is known by; `seconds` is how long its answer is good, 0 where it is not to be repeated itself."""

    name: str
    body: str
    seconds: int


class Repeats:
    """Answers a repeated request from what the first was told."""

    def __init__(self, app: ASGIApp, *, store: Store) -> None:
        self.app, self.store = app, store
        self.under_way: dict[str, asyncio.Event] = {}
        self.kept = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not _MAKES.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        key = headers.get("idempotency-key", "")
        form = headers.get("content-type", "").startswith("multipart/")
        if not key and (form or "x-stainless-retry-count" not in headers):
            await self.app(scope, receive, send)
            return
        if len(key) > LONGEST_KEY:
            raise invalid(f"Invalid value for 'Idempotency-Key': more than {LONGEST_KEY} characters.")
        body = b"" if form else await _whole(receive)
        if body is None:
            return  # the client is gone
        request = _named(scope, headers, key, body)
        while request.seconds and (before := self.under_way.get(request.name)) is not None:
            await before.wait()
        # Nothing is awaited between the last look and this, so that of several that waited one goes on.
        done = self.under_way.setdefault(request.name, asyncio.Event())
        try:
            if not request.seconds or not await self._answered(request, scope, receive, send):
                await self._first(request, scope, receive if form else _again(body, receive), send)
        finally:
            if self.under_way.get(request.name) is done:
                del self.under_way[request.name]
            done.set()

    async def _answered(self, request: _Request, scope: Scope, receive: Receive, send: Send) -> bool:
        """Whether the answer of an earlier one could be sent."""
        found = await run_in_threadpool(self.store.get, Repeat, request.name)
        if found is None or found.created_at < time.time() - request.seconds:
            return False
        if found.request != request.body:
            raise invalid(
                "Invalid value for 'Idempotency-Key': it came before with another body. "
                "Use a new key for a new request.",
                code="idempotency_key_reused",
            )
        headers = {"idempotent-replayed": "true"}
        await Response(found.body, found.status, headers, "application/json")(scope, receive, send)
        return True

    async def _first(self, request: _Request, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer it, and keep the answer before the client has it."""
        answer = _Answer()

        async def kept(message: Message) -> None:
            answer.add(message)
            if answer.good and message["type"] == "http.response.body" and not message.get("more_body", False):
                await run_in_threadpool(self._keep, request, answer)
            await send(message)

        await self.app(scope, receive, kept)

    def _keep(self, request: _Request, answer: _Answer) -> None:
        now = int(time.time())
        fresh = Repeat(request.name, now, request.body, answer.status, answer.body.decode())
        self.store.remove(Repeat, request.name)
        self.store.add(fresh)
        self.kept += 1
        if self.kept % SWEEP == 0:
            for old in self.store.all(Repeat, {"created_at": AtMost(now - KEY_SECONDS)}):
                self.store.remove(Repeat, old.id)


@dataclass(slots=True)
class _Answer:
    """An answer as it goes out."""

    status: int = 0
    json: bool = False
    body: bytearray = field(default_factory=bytearray)

    def add(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.json = MutableHeaders(scope=message).get("content-type", "").startswith("application/json")
        elif self.good:
            self.body += message.get("body", b"")

    @property
    def good(self) -> bool:
        """Whether it says that something was made, and is small enough to keep."""
        return 200 <= self.status < 300 and self.json and len(self.body) <= LARGEST_ANSWER


def _named(scope: Scope, headers: Headers, key: str, body: bytes) -> _Request:
    digest = hashlib.sha256(body).hexdigest()
    parts = [visit_of(scope).key_id or "", scope["path"].rstrip("/")]
    if key:
        # A form's boundary is drawn anew for each request, so that equal forms differ as bytes.
        same = digest if body else headers.get("content-length", "")
        return _Request(_sha("key", *parts, key), same, KEY_SECONDS)
    return _Request(_sha("body", *parts, digest), "", RETRY_SECONDS if is_retry(headers) else 0)


def is_retry(headers: Mapping[str, str]) -> bool:
    """Whether the official client says that it asks again."""
    return headers.get("x-stainless-retry-count", "0").strip() not in ("", "0")


def _sha(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


async def _whole(receive: Receive) -> bytes | None:
    data = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        data += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(data)


def _again(body: bytes, receive: Receive) -> Receive:
    """The body once more, and then what else comes."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
