"""The rating page's server: one page and three requests, for this machine alone.

It listens on the loopback address, and that alone would not be enough: any page in the same browser can send requests
there, and any user of the machine can. So every request has to carry the token of the printed address, has to name a
loopback host (a strange site cannot pose as ours by its name server), and one that changes something has to come as
JSON with the token in a header, which no other site can send. Paths are looked up in a table and never on the disk.
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tunesmith.errors import ResourceError, TunesmithError
from tunesmith.service.rating.page import render_page
from tunesmith.service.rating.session import RatingSession

LARGEST_BODY = 16_384
_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
_TOKEN = "X-Rating-Token"


class RatingServer:
    """A server for one session, bound at once to a free port, or to `port`. Raises `ResourceError` where it is taken.

    title: shown above the page. rater: name that stands in its field at first.
    """

    def __init__(self, session: RatingSession, *, title: str, port: int = 0, rater: str = "") -> None:
        self.token = secrets.token_urlsafe(24)
        outer = self

        class Handler(_Handler):
            server_of = outer

        self.session, self.title, self.rater = session, title, rater
        try:
            self._http = _Http(("127.0.0.1", port), Handler)
        except OSError as error:
            raise ResourceError(
                f"port {port} cannot be listened on: {error.strerror}", where="--port", fix="leave --port out"
            ) from error

    @property
    def url(self) -> str:
        """The address to open, token included."""
        return f"http://127.0.0.1:{self._http.server_port}/?token={self.token}"

    def serve(self) -> None:
        """Answer until `close`, or Ctrl-C."""
        self._http.serve_forever(poll_interval=0.2)

    def start(self) -> threading.Thread:
        """Answer in a thread of its own."""
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        """Stop answering, from another thread than the one that does, and free the port."""
        self._http.shutdown()
        self.free()

    def free(self) -> None:
        """Free the port once nothing answers any more."""
        self._http.server_close()


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that the other side breaks off, at any point, is nothing to report."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _RefusedError(Exception):
    """A request that is not answered, with its status."""

    def __init__(self, status: int, told: str) -> None:
        self.status = status
        super().__init__(told)


class _Handler(BaseHTTPRequestHandler):
    server_of: RatingServer
    timeout = 15
    """Seconds that a connection may send nothing."""

    def do_GET(self) -> None:
        self._answer(self._page)

    def do_POST(self) -> None:
        self._answer(self._request)

    def _page(self) -> None:
        try:
            address = urlsplit(self.path)
            query = parse_qs(address.query)
        except ValueError as error:
            raise _RefusedError(400, "this is no address") from error
        if address.path != "/":
            raise _RefusedError(404, "there is nothing here")
        given = query.get("token", [""])[0]
        self._check_token(given)
        nonce = secrets.token_urlsafe(16)
        page = render_page(title=self.server_of.title, rater=self.server_of.rater, nonce=nonce)
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self._send(200, "text/html; charset=utf-8", page.encode(), {"Content-Security-Policy": policy})

    def _request(self) -> None:
        self._check_token(self.headers.get(_TOKEN, ""))
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{self.headers.get('Host')}":
            raise _RefusedError(403, "this comes from another page")
        action = self._actions().get(self.path)
        if action is None:
            raise _RefusedError(404, "there is nothing here")
        try:
            answer = action(self._body())
        except TunesmithError as error:
            status = 500 if isinstance(error, ResourceError) else 400
            raise _RefusedError(status, error.what) from error
        self._send(200, "application/json", json.dumps(answer).encode())

    def _actions(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        session = self.server_of.session
        return {
            "/next": lambda body: session.next(_text(body, "rater")),
            "/back": lambda body: session.back(_text(body, "rater"), body.get("pair") and _text(body, "pair")),
            "/rate": lambda body: session.rate(
                _text(body, "rater"), _text(body, "pair"), _text(body, "choice"), _number(body, "seconds")
            ),
        }

    def _body(self) -> dict[str, Any]:
        if self.headers.get_content_type() != "application/json":
            raise _RefusedError(415, "a request is JSON")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            raise _RefusedError(411, "a request says its length")
        if len(length) > 9 or int(length) > LARGEST_BODY:
            raise _RefusedError(413, f"a request has at most {LARGEST_BODY:,} bytes")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise _RefusedError(400, "this is not JSON") from error
        if not isinstance(body, dict):
            raise _RefusedError(400, "a request is a JSON object")
        return body

    def _answer(self, action: Callable[[], None]) -> None:
        try:
            try:
                self._check_host()
                action()
            except _RefusedError as refusal:
                self._send(refusal.status, "application/json", json.dumps({"error": str(refusal)}).encode())
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # whoever asked is gone

    def _check_host(self) -> None:
        host = (self.headers.get("Host") or "").rpartition(":")
        name = host[0] if host[2].isdecimal() else "".join(host)
        if name not in _HOSTS:
            raise _RefusedError(403, "this page answers to 127.0.0.1 and localhost only")

    def _check_token(self, given: str) -> None:
        if not secrets.compare_digest(given.encode("utf-8", "replace"), self.server_of.token.encode()):
            raise _RefusedError(403, "open the address that `tunesmith rate` printed: its token is missing or old")

    def _send(self, status: int, kind: str, data: bytes, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            **(more or {}),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def version_string(self) -> str:
        return "tunesmith"

    def log_message(self, *_: object) -> None:
        """Nothing: the token is part of an address."""


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise _RefusedError(400, f"{name} is a text")
    return value


def _number(body: dict[str, Any], name: str) -> float:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _RefusedError(400, f"{name} is a number")
    try:
        return float(value)
    except OverflowError as error:
        raise _RefusedError(400, f"{name} is a number") from error
