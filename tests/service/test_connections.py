"""Clients that hold a connection and do nothing with it."""

from __future__ import annotations

import asyncio
import http.client
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.responses import StreamingResponse

from tests.service.apps import Served, make_service, served
from tunesmith.service import connections

GET = b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server that is in a hurry."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(connections, "TAKING_SECONDS", 0.5)
    with served(make_service(tmp_path), endless) as live:
        yield live


def endless(app: FastAPI) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 100_000
            await asyncio.sleep(0)

    @app.get("/v1/endless")
    async def stream() -> StreamingResponse:
        return StreamingResponse(pieces(), media_type="text/plain")


def answer(one: socket.socket) -> bytes:
    """The next answer, whole."""
    one.settimeout(20)
    got = b""
    while not got.endswith(b'{"status":"ok"}'):
        got += one.recv(65536)
    return got


def closed(one: socket.socket, within: float) -> bool:
    """Whether the server hangs up in this time without a word."""
    one.settimeout(within)
    try:
        return one.recv(100) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


def test_the_head_of_a_second_request_is_not_waited_for_for_ever(live: Served) -> None:
    with socket.create_connection(("127.0.0.1", live.port)) as one:
        one.sendall(GET)
        assert b"200" in answer(one)
        one.sendall(b"GET /v1/models HT")
        begun = time.monotonic()
        assert closed(one, 20)
        assert time.monotonic() - begun > 0.2


def test_a_connection_between_two_requests_is_kept(live: Served) -> None:
    with socket.create_connection(("127.0.0.1", live.port)) as one:
        for _ in range(3):
            one.sendall(GET)
            assert b"200" in answer(one)
            assert not closed(one, 0.5)


def test_an_answer_that_nobody_takes_is_given_up(live: Served) -> None:
    with socket.create_connection(("127.0.0.1", live.port)) as one:
        one.sendall(b"GET /v1/endless HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        in_flight = live.server.app.state.in_flight
        until = time.monotonic() + 10
        while in_flight.count == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert in_flight.count == 1
        while in_flight.count and time.monotonic() < until:
            time.sleep(0.05)
        assert in_flight.count == 0


def test_an_answer_that_is_taken_slowly_goes_on(live: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)
    connection.request("GET", "/v1/endless")
    got = connection.getresponse()
    begun = time.monotonic()
    while time.monotonic() - begun < 1.5:
        assert got.read(2_000_000)
        time.sleep(0.1)
    connection.close()
