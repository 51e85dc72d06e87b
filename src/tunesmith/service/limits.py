"""How much of everything one server takes: bytes of a body, requests of a key, requests at the same time."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.service.auth import asks_a_model
from tunesmith.service.entrance import visit_of
from tunesmith.service.errors import ApiError
from tunesmith.service.json_check import check_json_aside
from tunesmith.service.settings import Limits

FORM_SLACK = 1_000_000
"""Bytes of a form beside its file."""
SILENCE_SECONDS = 60.0
"""How long a client may send nothing while its body is awaited."""
SLOWEST = 500
"""Bytes a second that a body has to come with, on the whole: else a byte now and then would hold a place for ever."""
DRAIN_SECONDS, DRAIN_BYTES = 20.0, 2_000_000_000
"""How much of a body that is refused is still read and thrown away: a client that is cut off while it writes never
reads why."""

_FILES = re.compile(r"/(v1|openai|openai/v1|openai/deployments/[^/]+)/files/?")
_PARTS = re.compile(r"/(v1|openai|openai/v1)/uploads/[^/]+/parts/?")


class Bodies:
    """Reads bodies under their limits: size while they come, silence, and JSON that is none.

    JSON is looked at only where an endpoint asks for its body, so that `cancel` and `DELETE` take whatever a client
    sends with them. This layer is outside of those that refuse a request unread.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits, silence: float = SILENCE_SECONDS) -> None:
        self.app, self.limits, self.silence = app, limits, silence

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        _check_framing(headers)
        body = _Body(receive, largest_body(scope["path"], self.limits), self.silence, headers)

        async def answered(message: Message) -> None:
            if message["type"] == "http.response.start":
                await body.throw_away()
                if body.left_over:
                    MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        try:
            await self.app(scope, body.receive, answered)
        except ApiError as refusal:
            # A layer between here and the endpoints refused it; the entrance, outside, will say so.
            await body.throw_away()
            if body.left_over:
                refusal.headers = {**refusal.headers, "connection": "close"}
            raise


def largest_body(path: str, limits: Limits) -> int:
    """Most bytes of a request to this path."""
    if _FILES.fullmatch(path):
        return max(limits.file, limits.batch_file) + FORM_SLACK
    return limits.part + FORM_SLACK if _PARTS.fullmatch(path) else limits.body


def _check_framing(headers: Headers) -> None:
    """Raises `ApiError` 400 for a body of which it is not clear where it ends, or that is something else unpacked."""
    if "content-length" in headers and "transfer-encoding" in headers:
        raise ApiError(
            400,
            "Your request has both 'Content-Length' and 'Transfer-Encoding'. Send one of them.",
            headers={"connection": "close"},
        )
    coding = headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise ApiError(
            400,
            f"Unsupported content encoding: {coding[:80]!r}. Send the body as it is, uncompressed.",
            code="unsupported_content_encoding",
            headers={"connection": "close"},
        )


class _Body:
    """One request's body as it comes in."""

    def __init__(self, source: Receive, largest: int, silence: float, headers: Headers) -> None:
        self.source, self.largest, self.silence = source, largest, silence
        self.read = 0
        self.json = _is_json(headers.get("content-type", ""))
        self.declared = _declared(headers.get("content-length"))
        self.ended = self.declared == 0 or (self.declared is None and "transfer-encoding" not in headers)
        self.waits_for_us = headers.get("expect", "").lower() == "100-continue"
        self.stalled = False
        self.begun: float | None = None

    async def receive(self) -> Message:
        if self.declared is not None and self.declared > self.largest:
            raise self._too_large()
        if not self.json or self.ended:
            return await self._next()
        data = bytearray()
        while not self.ended:
            message = await self._next()
            if message["type"] != "http.request":
                return message
            data += message.get("body", b"")
        if data:
            await check_json_aside(bytes(data))
        return {"type": "http.request", "body": bytes(data), "more_body": False}

    async def _next(self) -> Message:
        """The next message. Behind the body that is the client's going, which may take as long as it likes."""
        now = asyncio.get_running_loop().time()
        if self.begun is None:
            self.begun = now
        if self.ended:
            return await self.source()
        slow = self.begun + self.silence + self.read / SLOWEST
        try:
            async with asyncio.timeout_at(min(now + self.silence, slow)):
                message = await self.source()
        except TimeoutError:
            self.ended = self.stalled = True
            how = f"stopped arriving for {self.silence:g} seconds"
            if slow < now + self.silence:
                how = f"came slower than {SLOWEST} bytes a second"
            raise ApiError(408, f"The body of your request {how}.", code="request_timeout") from None
        if message["type"] == "http.request":
            self.read += len(message.get("body", b""))
            self.ended = not message.get("more_body", False)
            if self.read > self.largest:
                raise self._too_large()
        else:
            self.ended = True
        return message

    @property
    def left_over(self) -> bool:
        """Whether something of the body was never read, so that the connection cannot be used again."""
        return not self.ended or self.stalled

    async def throw_away(self) -> None:
        """Read what is left, within bounds, before an early answer is sent."""
        if self.ended or (self.waits_for_us and self.begun is None):
            return
        if self.declared is not None and self.declared > DRAIN_BYTES:
            return
        thrown = 0
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self.ended and thrown < DRAIN_BYTES:
                    message = await self.source()
                    thrown += len(message.get("body", b""))
                    self.ended = message["type"] != "http.request" or not message.get("more_body", False)
        except TimeoutError:
            return

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"Maximum content size limit ({self.largest:,} bytes) exceeded"
            + (f" ({self.declared:,} bytes declared)." if self.declared else "."),
            code="content_too_large",
        )


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _declared(length: str | None) -> int | None:
    if length is None or not (length.isascii() and length.isdigit()):
        return None
    return int(length) if len(length) < 20 else 10**20  # more digits than Python would read


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float


class RateLimiter:
    """So many requests a minute for each name, in bursts of at most a minute's worth. 0 is no limit."""

    most_names = 10_000

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self.clock = per_minute, clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, name: str) -> dict[str, str]:
        """Count one request of `name`; returns the headers that tell what is left. Raises `ApiError` 429."""
        now, rate = self.clock(), self.per_minute / 60
        bucket = self._buckets.pop(name, None) or _Bucket(self.per_minute, now)
        bucket.left = min(self.per_minute, bucket.left + (now - bucket.at) * rate)
        bucket.at = now
        self._buckets[name] = bucket
        if len(self._buckets) > self.most_names:
            self._buckets.popitem(last=False)
        if bucket.left < 1:
            wait = max(1, math.ceil((1 - bucket.left) / rate))
            raise ApiError(
                429,
                f"Rate limit reached: {self.per_minute} requests per minute. Try again in {wait} seconds.",
                kind="requests",
                code="rate_limit_exceeded",
                headers={"retry-after": str(wait), **self._headers(bucket, rate)},
            )
        bucket.left -= 1
        return self._headers(bucket, rate)

    def _headers(self, bucket: _Bucket, rate: float) -> dict[str, str]:
        missing = self.per_minute - bucket.left
        return {
            "x-ratelimit-limit-requests": str(self.per_minute),
            "x-ratelimit-remaining-requests": str(int(bucket.left)),
            "x-ratelimit-reset-requests": f"{missing / rate:.1f}s",
        }


class Rates:
    """Requests of each key in a minute, and requests in flight of all together."""

    def __init__(self, app: ASGIApp, *, limits: Limits) -> None:
        self.app, self.limits = app, limits
        self.limiter = RateLimiter(limits.requests_per_minute) if limits.requests_per_minute else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self.limiter is None:
            await self.app(scope, receive, send)
            return
        client = scope.get("client")
        headers = self.limiter.take(visit_of(scope).key_id or f"address:{client[0] if client else ''}")

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        await self.app(scope, receive, told)


def crowded(most: int) -> ApiError:
    """503 for a connection or a request too many."""
    return ApiError(
        503,
        f"The server takes {most} connections and requests at a time, and has them all. Try again in a moment.",
        kind="server_error",
        code="server_overloaded",
        headers={"retry-after": "1"},
    )


class Crowd:
    """At most so many requests at the same time; and none that is new once the server is told to end."""

    exempt = frozenset({"/healthz", "/readyz", "/metrics"})

    def __init__(self, app: ASGIApp, *, most: int, in_flight: InFlight) -> None:
        self.app, self.most, self.in_flight = app, most, in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self.exempt:
            await self.app(scope, receive, send)
            return
        if self.in_flight.draining:
            raise ApiError(
                503,
                "The server is shutting down. Try again in a moment.",
                kind="server_error",
                code="server_shutting_down",
                headers={"retry-after": "5", "connection": "close"},
            )
        if self.in_flight.count >= self.most:
            raise crowded(self.most)
        self.in_flight.count += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.in_flight.count -= 1


class Patience:
    """How long a model may take until its answer begins; a stream that has begun may take as long as it likes."""

    def __init__(self, app: ASGIApp, *, seconds: float | None) -> None:
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not asks_a_model(scope["method"], scope["path"]):
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.seconds) as limit:

                async def told(message: Message) -> None:
                    limit.reschedule(None)
                    await send(message)

                await self.app(scope, receive, told)
        except TimeoutError:
            if not limit.expired():
                raise
            raise ApiError(
                408,
                f"The model did not begin its answer within {self.seconds:g} seconds. Ask for less, or stream it.",
                kind="server_error",
                code="request_timeout",
                headers={"x-should-retry": "false"},
            ) from None


@dataclass(slots=True)
class InFlight:
    """Requests that are being answered; `draining` once nothing new is taken."""

    count: int = 0
    draining: bool = False
