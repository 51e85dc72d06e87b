"""How much is taken: bodies, requests in a minute, requests at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from tests.service.apps import client_of, http_scope, make_service
from tunesmith.service.app import make_app
from tunesmith.service.errors import ApiError
from tunesmith.service.keys import create_key
from tunesmith.service.limits import FORM_SLACK, Bodies, Patience, RateLimiter, largest_body
from tunesmith.service.settings import Limits

SMALL = Limits(file=3_000, batch_file=2_000, part=5_000, body=1_000, free_disk=0)


@pytest.mark.parametrize("root", ["/v1", "/openai", "/openai/v1"])
def test_each_path_has_its_size(root: str) -> None:
    assert largest_body(f"{root}/files", SMALL) == 3_000 + FORM_SLACK
    assert largest_body(f"{root}/uploads/up_1/parts", SMALL) == 5_000 + FORM_SLACK
    for path in ("chat/completions", "files/file-1", "uploads", "uploads/a/b/parts", "fine_tuning/jobs"):
        assert largest_body(f"{root}/{path}", SMALL) == 1_000


def _reading(app: FastAPI) -> FastAPI:
    @app.post("/v1/read")
    async def read(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    return app


def test_a_body_that_is_too_large_is_413(tmp_path: Path) -> None:
    service = make_service(tmp_path, limits=SMALL)
    with TestClient(_reading(make_app(service))) as client:
        for kind in ("application/octet-stream", "application/json"):
            headers = {"content-type": kind}
            assert client.post("/v1/read", content=b"1" * 1_000, headers=headers).json() == {"bytes": 1_000}
            answer = client.post("/v1/read", content=b"1" * 1_001, headers=headers)
            assert answer.status_code == 413
            assert answer.json()["error"]["message"] == (
                "Maximum content size limit (1,000 bytes) exceeded (1,001 bytes declared)."
            )
        streamed = client.post("/v1/read", content=iter([b"1" * 600] * 9))
        assert streamed.status_code == 413
        assert streamed.json()["error"]["code"] == "content_too_large"
    service.store.close()


Told = list[dict[str, Any]]


async def _through(
    inner: Callable[..., Any], messages: list[dict[str, Any]], headers: dict[str, str], **more: Any
) -> tuple[Told, int]:
    """What `Bodies` sends for a request that arrives as `messages`, and how many of them it took."""
    told: Told = []
    taken = 0

    async def receive() -> dict[str, Any]:
        nonlocal taken
        if taken == len(messages):
            await asyncio.sleep(3600)
        taken += 1
        return messages[taken - 1]

    async def send(message: Any) -> None:
        told.append(message)

    scope = {"type": "http", "path": "/v1/x", "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    await Bodies(inner, limits=SMALL, **more)(scope, receive, send)
    return told, taken


def _chunks(*sizes: int) -> list[dict[str, Any]]:
    last = len(sizes) - 1
    return [{"type": "http.request", "body": b"x" * n, "more_body": i < last} for i, n in enumerate(sizes)]


async def _refusing(scope: Any, receive: Any, send: Any) -> None:
    """Answers without having read anything."""
    await send({"type": "http.response.start", "status": 401, "headers": []})
    await send({"type": "http.response.body", "body": b"no"})


async def _wanting(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await receive()


def test_a_body_that_is_refused_is_read_to_its_end_first() -> None:
    """A client that is cut off while it writes never reads the answer."""
    told, taken = asyncio.run(_through(_refusing, _chunks(10, 10, 10), {"content-length": "30"}))
    assert taken == 3
    assert (b"connection", b"close") not in told[0]["headers"]


def test_so_is_one_that_a_layer_in_between_refuses() -> None:
    async def layer(scope: Any, receive: Any, send: Any) -> None:
        raise ApiError(401, "no")

    read: list[int] = []

    async def counted(length: str, chunks: Told) -> ApiError:
        async def receive() -> dict[str, Any]:
            read.append(1)
            return chunks.pop(0)

        scope = http_scope("POST", "/v1/x", {"content-length": length})
        with pytest.raises(ApiError) as refused:
            await Bodies(layer, limits=SMALL)(scope, receive, _nowhere)
        return refused.value

    assert "connection" not in asyncio.run(counted("30", _chunks(10, 10, 10))).headers
    assert len(read) == 3
    assert asyncio.run(counted(str(10**12), _chunks(10))).headers["connection"] == "close"
    assert len(read) == 3


async def _nowhere(message: Any) -> None:
    raise AssertionError(f"nothing is to be sent: {message}")


def test_a_client_that_waits_to_be_asked_is_not_asked() -> None:
    told, taken = asyncio.run(_through(_refusing, _chunks(10, 10), {"content-length": "20", "expect": "100-continue"}))
    assert taken == 0
    assert (b"connection", b"close") in told[0]["headers"]


def test_an_endless_body_is_not_waited_for() -> None:
    told, taken = asyncio.run(_through(_refusing, _chunks(10, 10), {"content-length": str(10**12)}))
    assert taken == 0
    assert (b"connection", b"close") in told[0]["headers"]


def test_a_length_of_thousands_of_digits_is_a_large_one() -> None:
    with pytest.raises(ApiError) as refused:
        asyncio.run(_through(_wanting, _chunks(3), {"content-length": "9" * 5_000}))
    assert refused.value.status == 413


def test_a_body_that_stops_half_way_is_given_up() -> None:
    half = [{"type": "http.request", "body": b"x", "more_body": True}]
    with pytest.raises(ApiError, match=r"stopped arriving for 0\.05 seconds") as refused:
        asyncio.run(_through(_wanting, half, {"content-length": "20"}, silence=0.05))
    assert refused.value.status == 408


def test_a_body_that_comes_byte_by_byte_is_given_up() -> None:
    """Silence alone does not tell: a byte now and then would hold a place for hours."""

    async def drips() -> ApiError:
        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b"x", "more_body": True}

        async def reading(scope: Any, receive: Any, send: Any) -> None:
            while True:
                await receive()

        scope = http_scope("POST", "/v1/x", {"content-length": "900"})
        with pytest.raises(ApiError) as refused:
            await asyncio.wait_for(Bodies(reading, limits=SMALL, silence=0.1)(scope, receive, _nowhere), 10)
        return refused.value

    refused = asyncio.run(drips())
    assert refused.status == 408
    assert "slower than 500 bytes a second" in refused.message


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"content-length": "0", "transfer-encoding": "chunked"}, "both 'Content-Length' and 'Transfer-Encoding'"),
        ({"content-length": "30", "content-encoding": "gzip"}, "Unsupported content encoding: 'gzip'"),
    ],
)
def test_a_body_whose_end_or_text_is_not_clear_is_refused_unread(headers: dict[str, str], said: str) -> None:
    """Of two lengths each side may believe another one; and a length of 0 would pass every limit."""
    with pytest.raises(ApiError) as refused:
        asyncio.run(_through(_wanting, _chunks(10, 10, 10), headers))
    assert refused.value.status == 400 and said in refused.value.message
    assert refused.value.headers["connection"] == "close"


def test_after_the_body_a_client_may_be_silent() -> None:
    """A stream waits for its client's going, which is no part of the body."""
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(_through(_wanting, _chunks(3), {"content-length": "3"}, silence=0.01), 0.1))


# Rates.


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_so_many_in_a_minute_and_then_one_by_one() -> None:
    clock = Clock()
    limiter = RateLimiter(60, clock)
    left = [limiter.take("a")["x-ratelimit-remaining-requests"] for _ in range(60)]
    assert left == [str(59 - i) for i in range(60)]
    with pytest.raises(ApiError) as refused:
        limiter.take("a")
    error = refused.value
    assert (error.status, error.code, error.kind) == (429, "rate_limit_exceeded", "requests")
    assert error.headers["retry-after"] == "1"
    assert error.headers["x-ratelimit-limit-requests"] == "60"
    limiter.take("b")
    clock.now = 1.0
    limiter.take("a")
    with pytest.raises(ApiError):
        limiter.take("a")
    clock.now = 1000.0
    assert limiter.take("a")["x-ratelimit-remaining-requests"] == "59"


def test_retry_after_is_when_the_next_is_taken() -> None:
    clock = Clock()
    limiter = RateLimiter(7, clock)
    for _ in range(7):
        limiter.take("a")
    with pytest.raises(ApiError) as refused:
        limiter.take("a")
    clock.now += int(refused.value.headers["retry-after"])
    limiter.take("a")


def test_names_are_not_collected_without_end() -> None:
    limiter = RateLimiter(10, Clock())
    limiter.most_names = 5
    for i in range(50):
        limiter.take(str(i))
    assert len(limiter._buckets) == 5


def test_rates_are_counted_for_each_key(tmp_path: Path) -> None:
    service = make_service(tmp_path, host="0.0.0.0", limits=Limits(requests_per_minute=2, free_disk=0))
    (_, one), (_, other) = create_key(service.store, "one"), create_key(service.store, "other")
    with client_of(service) as client:

        def ask(secret: str) -> Any:
            return client.get("/v1/models", headers={"api-key": secret})

        first = ask(one)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert ask(one).status_code == 200
        refused = ask(one)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "2 requests per minute" in refused.json()["error"]["message"]
        assert ask(other).status_code == 200


def test_without_a_limit_nothing_is_counted(tmp_path: Path) -> None:
    with client_of(make_service(tmp_path)) as client:
        answers = [client.get("/v1/models") for _ in range(50)]
    assert all(one.status_code == 200 and "x-ratelimit-limit-requests" not in one.headers for one in answers)


# Requests at a time.


def test_requests_too_many_at_a_time_are_503_at_once(tmp_path: Path) -> None:
    service = make_service(tmp_path, limits=Limits(connections=2, free_disk=0))
    app = make_app(service)
    gate = asyncio.Event()

    @app.get("/v1/wait")
    async def wait() -> str:
        await gate.wait()
        return "done"

    async def several() -> list[tuple[int, dict[bytes, bytes]]]:
        async def ask(path: str) -> tuple[int, dict[bytes, bytes]]:
            seen: list[Any] = []

            async def receive() -> dict[str, Any]:
                return {"type": "http.request", "body": b"", "more_body": False}

            async def send(message: Any) -> None:
                seen.append(message)

            await app(http_scope("GET", path), receive, send)
            return seen[0]["status"], dict(seen[0]["headers"])

        waiting = [asyncio.create_task(ask("/v1/wait")) for _ in range(2)]
        await asyncio.sleep(0.05)
        early = [await ask("/v1/wait"), await ask("/healthz"), await ask("/metrics")]
        gate.set()
        return [*early, *await asyncio.gather(*waiting), await ask("/v1/wait")]

    crowded, health, metrics, *others = asyncio.run(several())
    assert crowded[0] == 503
    assert crowded[1][b"retry-after"] == b"1"
    assert health[0] == metrics[0] == 200
    assert [status for status, _ in others] == [200, 200, 200]
    assert app.state.in_flight.count == 0
    service.store.close()


# Time.


def _asking(seconds: float, inner: Callable[..., Any], path: str = "/v1/chat/completions") -> Told:
    told: Told = []

    async def send(message: Any) -> None:
        told.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(Patience(inner, seconds=seconds)(http_scope("POST", path), receive, send))
    return told


def test_an_answer_that_does_not_begin_is_given_up_and_its_work_ended() -> None:
    ended = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    with pytest.raises(ApiError, match=r"within 0\.05 seconds") as refused:
        _asking(0.05, slow)
    assert refused.value.status == 408
    assert refused.value.headers["x-should-retry"] == "false"
    assert ended == [True]


def test_an_answer_that_has_begun_may_take_its_time() -> None:
    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(0.1)
        await send({"type": "http.response.body", "body": b"x"})

    assert len(_asking(0.05, stream)) == 2


def test_only_questions_to_models_are_timed() -> None:
    """A job's answer may be held until the job has ended."""

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.1)

    for path in ("/v1/fine_tuning/jobs/ftjob-1", "/v1/files", "/v1/batches"):
        assert _asking(0.01, slow, path) == []


def test_a_time_out_of_the_endpoint_itself_is_its_own() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise TimeoutError("of something else")

    with pytest.raises(TimeoutError, match="of something else"):
        _asking(5, broken)
