"""Importing from an address: what is opened, what is not, and what the client is told."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tunesmith.service.errors import ApiError
from tunesmith.service.fetching import Rules, fetched, is_public

BODY = b'{"messages": []}\n' * 1000


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        getattr(self, "_" + path.strip("/").replace("-", "_"), self._missing)()

    def _rows(self) -> None:
        self._answer(200, BODY)

    def _missing(self) -> None:
        self._answer(404, b"a secret of the inside")

    def _moved(self) -> None:
        self._answer(302, b"", Location="/rows")

    def _round(self) -> None:
        self._answer(302, b"", Location="/round")

    def _nowhere(self) -> None:
        self._answer(301, b"")

    def _to_a_file(self) -> None:
        self._answer(302, b"", Location="file:///etc/passwd")

    def _broken(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY) + 10))
        self.end_headers()
        self.wfile.write(BODY)

    def _unannounced(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(50):
            self.wfile.write(BODY)

    def _chunked(self) -> None:
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(BODY), 1000):
            piece = BODY[start : start + 1000]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def _dripping(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(200):
            try:
                self.wfile.write(b"x")
                self.wfile.flush()
            except OSError:
                return
            time.sleep(0.02)

    def _slow_headers(self) -> None:
        for number in range(200):
            try:
                self.wfile.write(b"HTTP/1.0 200 OK\r\n" if number == 0 else b"X-More: 1\r\n")
            except OSError:
                return
            time.sleep(0.05)

    def _garbage(self) -> None:
        self.wfile.write(b"this is no HTTP\r\n\r\n")

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def far() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@contextmanager
def refused() -> Iterator[dict[str, str]]:
    told: dict[str, str] = {}
    with pytest.raises(ApiError) as caught:
        yield told
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "fileImportFailed", "content_url")
    told["message"] = caught.value.message
    for secret in ("127.0.0.1", "secret", "Errno", "/etc"):
        assert secret not in caught.value.message


def read(url: str, most: int = 10_000_000, **rules: Any) -> bytes:
    with fetched(url, Rules(most, private=True, **rules)) as pieces:
        return b"".join(pieces)


@pytest.mark.parametrize("path", ["/rows", "/rows?sig=a%20b", "/moved", "/chunked"])
def test_the_bytes_arrive(far: str, path: str) -> None:
    assert read(far + path) == BODY


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/nothing", "its server answered with status 404"),
        ("/round", "it redirects more than 3 times"),
        ("/nowhere", "it redirects to nowhere"),
        ("/to-a-file", "expected an address that begins with https:// or http://"),
        ("/broken", "it ended in the middle"),
        ("/garbage", "the connection to its server failed"),
    ],
)
def test_what_goes_wrong_is_told_without_what_was_found(far: str, path: str, reason: str) -> None:
    with refused() as told:
        read(far + path)
    assert told["message"] == f"The file could not be imported from 'content_url': {reason}."


@pytest.mark.parametrize("path", ["/rows", "/unannounced", "/chunked"])
def test_no_more_than_the_limit_is_read(far: str, path: str) -> None:
    with refused() as told:
        read(far + path, most=2_000)
    assert "it is larger than" in told["message"]


def test_headers_that_drip_are_cut_off(far: str) -> None:
    began = time.monotonic()
    with refused() as told:
        read(far + "/slow-headers", seconds=0.4)
    assert "not there within" in told["message"] and time.monotonic() - began < 2


def test_a_sender_that_drips_is_left(far: str) -> None:
    began = time.monotonic()
    with refused() as told:
        read(far + "/dripping", seconds=0.3)
    assert "was not there within" in told["message"] and time.monotonic() - began < 2


@pytest.mark.parametrize(
    "url",
    [
        "",
        "rows.jsonl",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://example.org/x",
        "gopher://example.org/",
        "http://",
        "http://user:word@example.org/x",
        "http://example.org:99999/",
        "http://example.org:0/",
        "http://example.org/a b",
        "http://example.org/a\r\nHost: x",
        "http://[::1/",
        "http://exämple.org/",
    ],
)
def test_what_is_no_address_to_open(url: str) -> None:
    looked: list[str] = []
    with refused(), fetched(url, Rules(10), lambda host, port: looked.append(host) or []):
        raise AssertionError("it was opened")
    assert not looked, "nothing was looked up"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    ],
)  # fmt: skip
def test_addresses_of_the_inside_are_not_opened(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    rules = Rules(10)
    for found in ([address], ["93.184.215.14", address]):
        with refused() as told, fetched("http://innocent.example/rows", rules, lambda host, port, f=found: f):  # type: ignore[misc]
            raise AssertionError("it was opened")
        assert "opens no private addresses" in told["message"]


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "64:ff9b::5db8:d70e"])
def test_addresses_of_the_outside_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_a_name_is_looked_up_once_and_the_checked_address_is_the_one_that_is_asked(far: str) -> None:
    asked: list[str] = []

    def lookup(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    port = far.rpartition(":")[2]
    with fetched(f"http://rows.example:{port}/rows", Rules(10**6, private=True), lookup) as pieces:
        assert b"".join(pieces) == BODY
    assert asked == ["rows.example"]


def test_a_redirect_is_checked_like_the_first_address(far: str) -> None:
    """A public host that sends us to the inside: here the second look-up finds it so."""
    seen: list[str] = []

    def lookup(host: str, port: int) -> list[str]:
        seen.append(host)
        if len(seen) > 1:
            raise ApiError(400, "second look", param="content_url", code="fileImportFailed")
        return ["127.0.0.1"]

    port = far.rpartition(":")[2]
    with refused() as told, fetched(f"http://rows.example:{port}/moved", Rules(10, private=True), lookup):
        raise AssertionError("it was opened")
    assert told["message"] == "second look" and seen == ["rows.example", "rows.example"]


def test_a_host_that_is_not_found() -> None:
    def lookup(host: str, port: int) -> list[str]:
        raise OSError("[Errno -2] Name or service not known")

    with refused() as told, fetched("https://nowhere.example/x", Rules(10), lookup):
        raise AssertionError("it was opened")
    assert "its host could not be found" in told["message"]
