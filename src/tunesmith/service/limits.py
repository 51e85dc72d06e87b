"""How much of everything one server takes: bytes of a body, requests of a key, requests at the same time."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.service.auth import asks_a_model
from tunesmith.service.entrance import visit_of
from tunesmith.service.errors import ApiError, invalid
from tunesmith.service.settings import Limits

FORM_SLACK = 1_000_000
"""Bytes of a form beside its file."""
SILENCE_SECONDS = 60.0
"""How long a client may send nothing while its body is awaited."""
DRAIN_SECONDS, DRAIN_BYTES = 20.0, 2_000_000_000
"""How much of a body that is refused is still read and thrown away: a client that is cut off while it writes never
reads why."""
DEEPEST = 100
"""Most levels of nesting in JSON."""
ON_THE_LOOP = 200_000
"""Bytes of JSON that are parsed without leaving the event loop."""

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


class _Body:
    """One request's body as it comes in."""

    def __init__(self, source: Receive, largest: int, silence: float, headers: Headers) -> None:
        self.source, self.largest, self.silence = source, largest, silence
        self.read = 0
        self.json = _is_json(headers.get("content-type", ""))
        self.declared = _declared(headers.get("content-length"))
        self.ended = self.declared == 0 or (self.declared is None and "transfer-encoding" not in headers)
        self.waits_for_us = headers.get("expect", "").lower() == "100-continue"
        self.started = self.stalled = False

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
            await _check_json(bytes(data))
        return {"type": "http.request", "body": bytes(data), "more_body": False}

    async def _next(self) -> Message:
        """The next message. Behind the body that is the client's going, which may take as long as it likes."""
        self.started = True
        if self.ended:
            return await self.source()
        try:
            async with asyncio.timeout(self.silence):
                message = await self.source()
        except TimeoutError:
            self.ended = self.stalled = True
            raise ApiError(
                408, f"The body of your request stopped arriving for {self.silence:g} seconds.", code="request_timeout"
            ) from None
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
        if self.ended or (self.waits_for_us and not self.started):
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


async def _check_json(data: bytes) -> None:
    """Raises `ApiError` 400 for JSON that the strict grammar does not know, or that would break what comes behind."""
    if len(data) <= ON_THE_LOOP:
        check_json(data)
    else:
        await asyncio.get_running_loop().run_in_executor(None, check_json, data)


def check_json(data: bytes) -> None:
    """See `_check_json`: NaN and infinities, numbers of thousands of digits, half a surrogate pair, nesting beyond
    `DEEPEST`, bytes that are no UTF-8.
    """
    try:
        parsed = json.loads(data, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise _unparsable(f"it is nested deeper than {DEEPEST} levels") from None
    except UnicodeDecodeError as error:
        raise _unparsable(f"it is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise _unparsable(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except ValueError as error:
        raise _unparsable("a number in it is too long" if "digits" in str(error) else str(error)) from None
    if data.count(b"[") + data.count(b"{") > DEEPEST and _depth(parsed) > DEEPEST:
        raise _unparsable(f"it is nested deeper than {DEEPEST} levels")
    if b"\\u" in data:
        try:
            json.dumps(parsed, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _unparsable("a text in it holds half of a surrogate pair (\\ud800 to \\udfff alone)") from None


def _unparsable(why: str) -> ApiError:
    return invalid(f"We could not parse the JSON body of your request: {why}.")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number in it is too large")
    return value


def _depth(value: Any) -> int:
    """Levels of nesting, without recursion."""
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        one, level = waiting.pop()
        if isinstance(one, dict | list):
            deepest = max(deepest, level)
            waiting.extend((inner, level + 1) for inner in (one.values() if isinstance(one, dict) else one))
    return deepest


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
